//! Dense f32 convolutions on AVX2, AVX-512 and NEON: the register tile that training uses, over weights packed beforehand.
//!
//! Steps run over the runs of x that [`Panels`] lists, so one loop serves every window, stride and dilation.
//!
//! ```text
//! format "D16f" or "D64f", data: panels of 16 or 64 channels, see [`Panels`]; its table counts elements
//! step: 1, [vectors][8 or 16 lanes] f32, 8 with panels of 16
//! ```

use super::packed::{LANES, Panels, expect, read};
use super::{ConvGeom, ConvWeights, KernelType, Operands, Packed, blocks};
use lacuna_kernels::gemm::tile::{First, Last, Product, Row, run};
use lacuna_kernels::isa::Isa;

/// Pixels that are multiplied with one panel after the other, at most: as many as a small image has, so that large weights
/// are read once, and whole tiles of 6, 8 and 12.
const PIXELS: usize = 480;

/// Weights that are multiplied with all pixels before the next are, where pixels are few.
const CHUNK: usize = 128 << 10;

/// So many pixels or fewer.
const FEW: usize = 120;

/// Channels of a panel, what the format is called, and how products are cut.
struct Format {
    panel: usize,
    /// Those of the last panel are a multiple of this.
    lanes: usize,
    name: &'static [u8; 4],
    /// Elements of x that pixels of a block have: they are read again for every panel, from the second-level cache.
    block: usize,
    /// Steps of a panel that are multiplied with all pixels of a block before the next are: their weights stay in the
    /// first-level cache, and sums of sums have smaller rounding errors.
    steps: usize,
}

/// Panels are narrow, so that x is read four times as often as with AVX-512.
const AVX2: Format = Format { panel: 16, lanes: 8, name: b"D16f", block: 48 << 10, steps: 160 };
/// Made for AVX2: no ARM processor was at hand to find out what suits NEON. Two of its registers are 8 lanes.
#[cfg(target_arch = "aarch64")]
const NEON: Format = AVX2;
const AVX512: Format = Format { panel: 64, lanes: LANES, name: b"D64f", block: 128 << 10, steps: 512 };

#[cfg(target_arch = "x86_64")]
pub(super) fn pack_avx2(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    pack(&AVX2, weights, g)
}

#[cfg(target_arch = "x86_64")]
pub(super) fn pack_avx512(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    pack(&AVX512, weights, g)
}

#[cfg(target_arch = "aarch64")]
pub(super) fn pack_neon(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    pack(&NEON, weights, g)
}

fn pack(format: &Format, weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::F32, weights);
    let mut panels = Panels { lanes: format.lanes, ..Panels::new(g, 1, 1) };
    // Long runs in parts of one length: their weights lie in the same order.
    let parts = (1..=panels.run_len / 32)
        .find(|&n| panels.run_len.is_multiple_of(n) && panels.run_len / n <= format.steps);
    if let Some(parts) = parts {
        let len = panels.run_len / parts;
        let begins = |run: u32| (0..parts).map(move |i| run + (i * len) as u32);
        panels.table = panels.table.into_iter().flat_map(begins).collect();
        (panels.run_len, panels.steps_per_run) = (len, len);
    }
    panels.pack::<4>(format.name, weights, g, format.panel, |slot| slot)
}

/// # Safety
/// See [`super::RunFn`].
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn run_avx2(o: &Operands<'_>) {
    // SAFETY: as the caller promises.
    unsafe { run_tile(Isa::Avx2, &AVX2, o) };
}

/// # Safety
/// See [`super::RunFn`].
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn run_avx512(o: &Operands<'_>) {
    // SAFETY: as the caller promises.
    unsafe { run_tile(Isa::Avx512, &AVX512, o) };
}

/// # Safety
/// See [`super::RunFn`].
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn run_neon(o: &Operands<'_>) {
    // SAFETY: as the caller promises.
    unsafe { run_tile(Isa::Neon, &NEON, o) };
}

/// Pixels inside: a panel's weights stay in the nearest caches while they stream by.
///
/// # Safety
/// See [`super::RunFn`].
unsafe fn run_tile(isa: Isa, format: &Format, o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, ref tile, .. } = o;
    let (x, r, y) = o.floats();
    tile.check(g, format.panel);
    let s = read(format.name, g, packed);
    let run_len = s.args[0] as usize;
    let steps = s.table.len() * run_len;
    let (data, bias): (&[f32], &[f32]) = (bytemuck::cast_slice(s.data), bytemuck::cast_slice(s.bias));
    let (mut rows, mut r_at, mut y_at) = ([Row { a: 0, c: 0 }; PIXELS], [0; PIXELS], [0; PIXELS]);
    let pixels = tile.rows.len() as u32 * tile.cols.len() as u32;
    let most = (format.block / g.c as usize).clamp(48, PIXELS) / 12 * 12;
    for block in blocks(0..pixels, most as u32) {
        let (rows, r_at) = (&mut rows[..block.len()], &mut r_at[..block.len()]);
        let y_at = &mut y_at[..block.len()];
        g.each_pixel(tile, block, e.has_residual, |p, x, y, r| {
            rows[p] = Row { a: x, c: y };
            (r_at[p], y_at[p]) = (r, y);
        });
        for first in tile.ocs.clone().step_by(format.panel) {
            let first = first as usize;
            let lanes = (g.oc as usize - first).next_multiple_of(format.lanes).min(format.panel);
            let columns = lanes.min(tile.ocs.end as usize - first);
            let panel = &data[first * steps..][..lanes * steps];
            // For few pixels weights take longer to arrive than to be multiplied: runs whose weights fit the second-level
            // cache beside those that are fetched meanwhile.
            let few = pixels as usize <= FEW;
            // With AVX2 a block's pixels are few, so that weights arrive often.
            let fetches = few || isa == Isa::Avx2;
            let fit = if few { CHUNK / (run_len * lanes) } else { format.steps / run_len };
            let together = fit.clamp(1, s.table.len());
            for (i, runs) in s.table.chunks(together).enumerate() {
                let (begin, end) = (i * together == 0, i * together + runs.len() == s.table.len());
                let weights = &panel[i * together * run_len * lanes..][..runs.len() * run_len * lanes];
                // The first sums take the residual, because y may lie over it; the others what is there already.
                let residual = match begin {
                    true => e.has_residual.then(|| (r.wrapping_add(first), &*r_at)),
                    false => Some((y.wrapping_add(first).cast_const(), &*y_at)),
                };
                let bias = begin.then(|| bias[first..][..columns].as_ptr());
                let (min, max) = if end { (e.min, e.max) } else { (f32::NEG_INFINITY, f32::INFINITY) };
                let product = Product {
                    a: x,
                    runs,
                    run_len,
                    a_step: 1,
                    b: weights.as_ptr(),
                    b_step: lanes,
                    c: y.wrapping_add(first),
                    columns,
                    first: First::Zero,
                    last: Some(Last { bias, residual, min, max }),
                    ahead: fetches.then(|| (weights.as_ptr().wrapping_add(weights.len()), weights.len())),
                };
                // SAFETY: every run is readable, and every channel writable, for pixels of the tile; bias and weights are
                // cut to the panel's size.
                unsafe { run(isa, &product, rows) };
            }
        }
    }
}
