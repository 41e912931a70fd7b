//! Dense convolutions of f32 that multiply in bfloat16, on AVX-512 with BF16 (`vdpbf16ps`).
//!
//! Pixels of a block are gathered into scratch and rounded to bfloat16 there, to nearest even: once for all channels. A row of
//! the scratch holds the elements under one output, run after run (see [`Panels`]), so that one loop serves every window,
//! stride and dilation. Each step broadcasts two neighbours of every row and multiplies them with the weights of 16, 32, 48
//! or 64 channels; sums are f32. Register tiles are those of f32: 6 x 64, 8 x 48, 12 x 32 or 12 x 16.
//!
//! ```text
//! format "D64h", table: element of x where every run begins    args: elements of a run
//! data: for each panel of 64 channels, for each step: [vectors of the panel][16 lanes][2 neighbours] bfloat16
//! ```
//! Steps go through all runs as if they were one, so that only the very last may be filled up, with a zero weight.

// Closures and iterators over registers are not compiled for the caller's instructions: loops are.
#![allow(clippy::needless_range_loop)]

use super::packed::{LANES, Panels, expect, read, write};
use super::{ConvGeom, ConvWeights, KernelType, Operands, Packed, blocks};
use std::arch::x86_64::*;
use std::mem::{MaybeUninit, transmute};
use std::ops::Range;

const PANEL: usize = 64;
/// Steps that all pixels of a block make before the next: their weights stay in the second-level cache beside the scratch, and
/// sums of sums have smaller rounding errors.
const STEPS: usize = 512;
/// Pixels of a block at most: whole tiles of 6, 8 and 12. Weights are read from afar once a block.
const PIXELS: usize = 120;
/// Pairs of neighbours from one row of the scratch to the next: rounding writes whole vectors, which may end behind a row's
/// last pair. An odd number of cache lines, so that rows lie in different sets of the cache.
const STRIDE: usize = STEPS + LANES;

/// Elements that are rounded at once.
const ROUNDED: usize = 2 * LANES;

/// Pairs of neighbours, a row for each pixel of a block.
#[repr(C, align(64))]
struct Scratch([[u32; STRIDE]; PIXELS]);

pub(super) fn pack(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::F32, weights);
    let runs = Panels::new(g, 1, 1);
    let depth = g.depth();
    let steps = depth.div_ceil(2);
    let joined = Panels { table: vec![0], run_len: depth, steps_per_run: steps, unit: 2, lanes: LANES };
    let slots = steps * 2 * (g.oc as usize).next_multiple_of(LANES);
    let args = [runs.run_len as u32, 0, 0, 0];
    let mut packed = write(b"D64h", weights, g, (args, &runs.table), slots * 2, |data| {
        let ConvWeights::F32 { w, .. } = *weights else { return };
        let data: &mut [u16] = bytemuck::cast_slice_mut(data);
        joined.for_each(g, PANEL, |_, element, slot| data[slot] = to_bf16(w[element]));
    });
    packed.steps = (steps * (g.oc as usize).div_ceil(PANEL)) as u64;
    packed.slots = slots as u64;
    packed
}

/// Rounds to nearest even; NaN stays NaN.
fn to_bf16(v: f32) -> u16 {
    const QUIET: u32 = 0x40;
    let bits = v.to_bits();
    let rounded = if v.is_nan() { bits >> 16 | QUIET } else { (bits + 0x7fff + (bits >> 16 & 1)) >> 16 };
    rounded as u16
}

/// Where a block's results go, and what is added to them. Pointers begin at the panel's first channel.
struct Results<'a> {
    y: *mut f32,
    y_at: &'a [usize],
    /// 1 to 64.
    columns: usize,
    bias: Option<*const f32>,
    /// A residual, or the sums of earlier steps.
    added: Option<(*const f32, &'a [usize])>,
    min: f32,
    max: f32,
}

/// # Safety
/// See [`super::RunFn`]; the processor has AVX-512 BF16, too.
pub(super) unsafe fn run(o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, ref tile, .. } = o;
    let (x, r, y) = o.floats();
    tile.check(g, PANEL);
    let s = read(b"D64h", g, packed);
    let (data, bias): (&[u32], &[f32]) = (bytemuck::cast_slice(s.data), bytemuck::cast_slice(s.bias));
    let (depth, run_len) = (g.depth(), s.args[0] as usize);
    let steps = depth.div_ceil(2);
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let scratch: *mut u32 = scratch.as_mut_ptr().cast();
    let (mut x_at, mut y_at, mut r_at) = ([0; PIXELS], [0; PIXELS], [0; PIXELS]);
    let pixels = tile.rows.len() as u32 * tile.cols.len() as u32;
    for block in blocks(0..pixels, PIXELS as u32) {
        let count = block.len();
        g.each_pixel(tile, block, e.has_residual, |p, x, y, r| (x_at[p], y_at[p], r_at[p]) = (x, y, r));
        for begin in (0..steps).step_by(STEPS) {
            let end = steps.min(begin + STEPS);
            let elements = 2 * begin..depth.min(2 * end);
            // SAFETY: every run is readable for pixels of the tile; the scratch has `PIXELS` rows.
            unsafe { gather(x, &x_at[..count], (s.table, run_len), elements, scratch) };
            for first in (tile.ocs.start as usize..tile.ocs.end as usize).step_by(PANEL) {
                let lanes = (g.oc as usize - first).next_multiple_of(LANES).min(PANEL);
                let columns = lanes.min(tile.ocs.end as usize - first);
                let weights = &data[first * steps + begin * lanes..][..(end - begin) * lanes];
                // The first sums take the residual, because y may lie over it; the others what is there already.
                let (bias, added) = match begin {
                    0 => (
                        Some(bias[first..][..lanes].as_ptr()),
                        e.has_residual.then(|| (r.wrapping_add(first), &r_at[..count])),
                    ),
                    _ => (None, Some((y.wrapping_add(first).cast_const(), &y_at[..count]))),
                };
                let (min, max) =
                    if end == steps { (e.min, e.max) } else { (f32::NEG_INFINITY, f32::INFINITY) };
                let y = y.wrapping_add(first);
                let results = Results { y, y_at: &y_at[..count], columns, bias, added, min, max };
                // SAFETY: the scratch holds `count` rows of as many pairs as there are weights for; every channel of
                // `columns` may be written, and its residual read, for pixels of the tile.
                unsafe { multiply(scratch, weights, lanes / LANES, results) };
            }
        }
    }
}

/// Rounds `elements` of the runs of each pixel into a row of the scratch. A zero follows, for the neighbour of a last one.
///
/// # Safety
/// The processor has AVX-512 BF16. The runs of every pixel are readable, `elements` are of them and [`STEPS`] pairs at most, and
/// the scratch has as many rows as there are pixels.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn gather(
    x: *const f32,
    x_at: &[usize],
    (runs, run_len): (&[u32], usize),
    elements: Range<usize>,
    scratch: *mut u32,
) {
    let (first_run, first_from) = (elements.start / run_len, elements.start % run_len);
    for (p, &at) in x_at.iter().enumerate() {
        let (mut from, mut left) = (first_from, elements.len());
        // SAFETY: a row is followed by room for the rest of a vector, which is more than one zero.
        unsafe {
            let mut to: *mut u16 = scratch.add(p * STRIDE).cast();
            for &run in &runs[first_run..] {
                let len = left.min(run_len - from);
                round(x.wrapping_add(at + run as usize + from), len, to);
                to = to.add(len);
                (from, left) = (0, left - len);
                if left == 0 {
                    break;
                }
            }
            to.write(0);
        }
    }
}

/// # Safety
/// The processor has AVX-512 BF16; `len` elements may be read, and `len` rounded up to a multiple of [`ROUNDED`] be written.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn round(x: *const f32, len: usize, to: *mut u16) {
    let whole = len / ROUNDED * ROUNDED;
    // SAFETY: the caller's promise; the masks leave out elements behind the last.
    unsafe {
        for at in (0..whole).step_by(ROUNDED) {
            let [low, high] = [_mm512_loadu_ps(x.add(at)), _mm512_loadu_ps(x.add(at + LANES))];
            store(to.add(at), _mm512_cvtne2ps_pbh(high, low));
        }
        if whole < len {
            let mask = (1u32 << (len - whole)) - 1;
            let low = _mm512_maskz_loadu_ps(mask as __mmask16, x.add(whole));
            let high = _mm512_maskz_loadu_ps((mask >> 16) as __mmask16, x.wrapping_add(whole + LANES));
            store(to.add(whole), _mm512_cvtne2ps_pbh(high, low));
        }
    }
}

/// # Safety
/// AVX-512 is there, and 64 bytes may be written.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(to: *mut u16, v: __m512bh) {
    // SAFETY: the caller's promise; both types are 64 bytes of anything.
    unsafe { _mm512_storeu_si512(to.cast(), transmute::<__m512bh, __m512i>(v)) };
}

/// Multiplies all rows of the scratch with one panel's weights.
///
/// # Safety
/// The processor has AVX-512 BF16. `scratch` has a row for every pixel of `results`, of as many pairs as there are steps of
/// `vectors` registers in `weights`. Bias is readable for all lanes of the panel; residual and y for all columns, and nobody
/// else uses those of y.
unsafe fn multiply(scratch: *const u32, weights: &[u32], vectors: usize, mut results: Results<'_>) {
    let tiles = TILES[vectors - 1];
    let steps = weights.len() / (vectors * LANES);
    let mut scratch = scratch;
    // Tiles as equal as can be: a short one at the end would wait for its own sums.
    while !results.y_at.is_empty() {
        let left = results.y_at.len();
        let rows = left.div_ceil(left.div_ceil(tiles.len()));
        // SAFETY: the caller's promise, for the next `rows` pixels.
        unsafe { tiles[rows - 1](scratch, weights.as_ptr(), steps, &results) };
        scratch = scratch.wrapping_add(rows * STRIDE);
        results.y_at = &results.y_at[rows..];
        if let Some((_, at)) = &mut results.added {
            *at = &at[rows..];
        }
    }
}

type TileFn = unsafe fn(*const u32, *const u32, usize, &Results<'_>);

macro_rules! by_rows {
    ($v:literal: $($p:literal)*) => { &[$(tile::<$p, $v>),*] };
}

/// By vectors of channels, then by rows of the scratch.
const TILES: [&[TileFn]; 4] = [
    by_rows!(1: 1 2 3 4 5 6 7 8 9 10 11 12),
    by_rows!(2: 1 2 3 4 5 6 7 8 9 10 11 12),
    by_rows!(3: 1 2 3 4 5 6 7 8),
    by_rows!(4: 1 2 3 4 5 6),
];

/// The same bits as pairs of neighbours.
#[inline]
#[target_feature(enable = "avx512f")]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 64 bytes of anything.
    unsafe { transmute::<__m512i, __m512bh>(bits) }
}

/// # Safety
/// As of [`multiply`], for `P` pixels and `V` vectors.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile<const P: usize, const V: usize>(
    x: *const u32,
    mut weights: *const u32,
    steps: usize,
    to: &Results<'_>,
) {
    let last = to.columns - (V - 1) * LANES;
    let mask = (0xffffu32 >> (LANES - last)) as __mmask16;
    let mut sums = [[_mm512_setzero_ps(); V]; P];
    // SAFETY: the promise of `multiply`; the mask leaves out channels behind the last.
    unsafe {
        let mut x = x;
        for _ in 0..steps {
            let mut w = [pairs(_mm512_setzero_si512()); V];
            for v in 0..V {
                w[v] = pairs(_mm512_loadu_si512(weights.add(v * LANES).cast()));
            }
            for p in 0..P {
                let pair = pairs(_mm512_set1_epi32((*x.add(p * STRIDE)).cast_signed()));
                for v in 0..V {
                    sums[p][v] = _mm512_dpbf16_ps(sums[p][v], pair, w[v]);
                }
            }
            x = x.wrapping_add(1);
            weights = weights.wrapping_add(V * LANES);
        }
        let load = |at: *const f32| {
            let mut floats = [_mm512_setzero_ps(); V];
            for v in 0..V - 1 {
                floats[v] = _mm512_loadu_ps(at.add(v * LANES));
            }
            floats[V - 1] = _mm512_maskz_loadu_ps(mask, at.add((V - 1) * LANES));
            floats
        };
        let (min, max) = (_mm512_set1_ps(to.min), _mm512_set1_ps(to.max));
        let bias = to.bias.map_or([_mm512_setzero_ps(); V], load);
        for p in 0..P {
            for v in 0..V {
                sums[p][v] = _mm512_add_ps(sums[p][v], bias[v]);
            }
            if let Some((added, at)) = to.added {
                let added = load(added.add(*at.get_unchecked(p)));
                for v in 0..V {
                    sums[p][v] = _mm512_add_ps(sums[p][v], added[v]);
                }
            }
            let y = to.y.add(*to.y_at.get_unchecked(p));
            for v in 0..V {
                // Bounds come first: these instructions return their second operand when one is NaN.
                let result = _mm512_min_ps(max, _mm512_max_ps(min, sums[p][v]));
                match v + 1 < V {
                    true => _mm512_storeu_ps(y.add(v * LANES), result),
                    false => _mm512_mask_storeu_ps(y.add(v * LANES), mask, result),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_round_to_nearest_even() {
        for (v, want) in [
            (0.0, 0.0),
            (-3.0, -3.0),
            // 8 bits: 1.0 and the next are 2^-7 apart.
            (1.0 + 2f32.powi(-8), 1.0),
            (1.0 + 3.0 * 2f32.powi(-8), 1.0 + 2f32.powi(-6)),
            (1.0 + 2f32.powi(-8) + 2f32.powi(-20), 1.0 + 2f32.powi(-7)),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
        ] {
            assert_eq!(f32::from_bits(u32::from(to_bf16(v)) << 16), want, "{v}");
        }
        for nan in [f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)] {
            assert!(f32::from_bits(u32::from(to_bf16(nan)) << 16).is_nan());
        }
    }
}
