//! Depthwise int8 convolutions on AVX-512 with VNNI, 64 channels at a time.
//!
//! A quad is one channel's bytes of four input rows of one column. One `vpdpbusd` multiplies the quads of 16 channels,
//! and a quad serves several output rows, whose weights are shifted within it:
//!
//! ```text
//! 3x3, stride 1     input rows       y   y+1 y+2 y+3
//!                   output row y     w0  w1  w2  0        R = 2 output rows from Q = 1 quad
//!                   output row y+1   0   w0  w1  w2
//! ```
//!
//! A strip is R output rows of some columns of 64 channels. First its input rows are interleaved into quads, in a
//! scratch of fixed size; then each output takes the quads of its kw columns. Interleaving works within 128 bits: of
//! the four vectors that hold 64 channels, dword 4 * k + i of vector v is channel 16 * k + 4 * v + i, which is the
//! order that packing four vectors of sums into bytes undoes.
//!
//! Where 64 bytes of x are several pixels of few channels, a vector holds as many outputs (`pixels`).
//!
//! ```text
//! format "DW64"; args: Q, R, pixels
//! data: for each block of 64 channels { i32 bias[4][16], f32 mult[4][16], i8 weight[kw][Q][R][4][16][4] }
//! ```

use super::dense_avx512::Requant;
use super::packed::{Sections, expect, read, write};
use super::{ConvGeom, ConvWeights, KernelType, Operands, Packed, QEpilogue, Tile, depthwise};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

const FORMAT: &[u8; 4] = b"DW64";
const BLOCK: usize = 64;
/// Rows of a quad.
const QUAD: usize = 4;
/// Bytes of the quads of 64 channels.
const QUADS: usize = QUAD * BLOCK;
/// Bias and multipliers of a block.
const HEAD: usize = 2 * QUADS;
/// Quads of 64 channels that a strip has room for: half of the nearest cache of small processors.
const SCRATCH: usize = 64;
const ROWS_MAX: usize = 4;

pub(super) fn supports(g: &ConvGeom) -> bool {
    let columns = if g.kw == 1 { 1 } else { (g.kw as u64 - 1) * g.dw as u64 + 1 };
    depthwise(g) && g.c > 1 && g.kh as usize <= 2 * QUAD && columns <= SCRATCH as u64 / 4
}

/// Quads that a column needs, and output rows that they serve.
fn quads_and_rows(g: &ConvGeom) -> (usize, usize) {
    let kh = g.kh as usize;
    let quads = kh.div_ceil(QUAD);
    let rows = if kh > 1 && g.dh > 1 { 1 } else { (quads * QUAD - kh) / g.sh as usize + 1 };
    (quads, rows.min(ROWS_MAX))
}

/// Neighbouring outputs that one vector holds.
fn pixels(g: &ConvGeom) -> usize {
    let c = g.c as usize;
    if g.sw == 1 && g.x_pixel == g.c && c < BLOCK && BLOCK.is_multiple_of(c) { BLOCK / c } else { 1 }
}

pub(super) fn pack(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::Int8, weights);
    let (quads, rows) = quads_and_rows(g);
    let pixels = pixels(g);
    let (kh, kw, channels) = (g.kh as usize, g.kw as usize, g.c as usize);
    let blocks = channels.div_ceil(BLOCK);
    let block_bytes = HEAD + kw * quads * rows * QUADS;
    let args = [quads as u32, rows as u32, pixels as u32, 0];
    let mut packed = write(FORMAT, weights, g, (args, &[]), blocks * block_bytes, |_| ());
    let ConvWeights::Int8 { w, mult, .. } = *weights else { return packed };
    let bias = read(FORMAT, g, &packed.bytes).bias.to_vec();
    let data_at = packed.bytes.len() - blocks * block_bytes;
    for (b, data) in packed.bytes[data_at..].chunks_exact_mut(block_bytes).enumerate() {
        for lane in 0..BLOCK {
            let channel = if pixels > 1 { lane % channels } else { b * BLOCK + lane };
            if channel >= channels {
                continue;
            }
            // Where the lane's dword lies in four vectors.
            let at = (lane / 4 % 4) * BLOCK + lane / 16 * 16 + lane % 4 * 4;
            data[at..at + 4].copy_from_slice(&bias[channel].to_le_bytes());
            data[QUADS + at..][..4].copy_from_slice(&mult[channel].to_le_bytes());
            for (ky, kx) in (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))) {
                for r in 0..rows {
                    let row = r * if rows > 1 { g.sh as usize } else { 0 } + ky;
                    let quad = ((kx * quads + row / QUAD) * rows + r) * QUADS;
                    data[HEAD + quad + at + row % QUAD] = w[(channel * kh + ky) * kw + kx] as u8;
                }
            }
        }
    }
    packed.steps = (kw * quads * QUAD * blocks) as u64;
    packed.slots = packed.steps * BLOCK as u64;
    packed
}

/// What the strips of one block of channels share. Strides are bytes, but for steps in columns of x.
struct Block<'a> {
    requant: &'a Requant,
    /// Whether results are made of their sums alone.
    bare: bool,
    /// Bias, multipliers and weights.
    data: *const u8,
    quads: usize,
    /// Output rows that the weights are packed for.
    packed_rows: usize,
    kw: usize,
    /// Columns from tap to tap, and from vector to vector of outputs.
    tap_step: usize,
    out_step: usize,
    /// From one row of taps to the next; input rows from output row to output row.
    x_row: usize,
    sh: usize,
    kh: usize,
    x_pixel: usize,
    y_row: usize,
    r_row: usize,
    /// From one vector of outputs to the next.
    y_step: usize,
    r_step: usize,
    vectors: usize,
    /// Lanes that are outputs, of every vector but the last and of the last.
    lanes: __mmask64,
    last_lanes: __mmask64,
}

/// Where a strip starts.
#[derive(Clone, Copy)]
struct At {
    x: *const u8,
    y: *mut u8,
    r: *const u8,
}

/// Interleaved rows of a strip: `[columns][Q][4]` vectors.
#[repr(align(64))]
struct Scratch(MaybeUninit<[u8; SCRATCH * QUADS]>);

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run(o: &Operands<'_>) {
    // SAFETY: the caller's promise, which includes the processor.
    unsafe { run_with(&Requant::new(&o.epilogue), o) }
}

/// The same with a faster look-up of bytes.
///
/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_vbmi(o: &Operands<'_>) {
    // SAFETY: the caller's promise, which includes the processor.
    unsafe { run_with(&Requant::new_vbmi(&o.epilogue), o) }
}

unsafe fn run_with(requant: &Requant, o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, x, r, y, ref tile } = o;
    tile.check(g, BLOCK);
    debug_assert!(!e.out_f32);
    let s = read(FORMAT, g, packed);
    let mut scratch = Scratch(MaybeUninit::uninit());
    let mut row = tile.rows.start;
    while row < tile.rows.end {
        let left = (g.oh - row % g.oh).min(tile.rows.end - row) as usize;
        let rows = left.min(s.args[1] as usize);
        let (x_at, y_at) = (g.x_at(row, tile.cols.start), g.y_at(row, tile.cols.start));
        let r_at = if e.has_residual { g.r_at(row, tile.cols.start) } else { 0 };
        for first in tile.ocs.clone().step_by(BLOCK) {
            let block = block(g, e, &s, requant, tile, first);
            let first = first as usize;
            // SAFETY: the rows, columns and channels belong to the tile.
            unsafe {
                let at =
                    At { x: x.add(x_at + first), y: y.add(y_at + first), r: r.wrapping_add(r_at + first) };
                STRIPS[rows - 1](&block, at, &mut scratch);
            }
        }
        row += rows as u32;
    }
}

fn block<'a>(
    g: &ConvGeom,
    e: &QEpilogue,
    s: &Sections<'a>,
    requant: &'a Requant,
    tile: &Tile,
    first: u32,
) -> Block<'a> {
    let [quads, packed_rows, pixels, _] = s.args.map(|a| a as usize);
    let (kh, kw, cols) = (g.kh as usize, g.kw as usize, tile.cols.len());
    let block_bytes = HEAD + kw * quads * packed_rows * QUADS;
    let joined = pixels > 1 && g.y_pixel == g.c && (!e.has_residual || g.r_pixel == g.c);
    let channels = BLOCK.min((tile.ocs.end - first) as usize);
    let (vectors, last) = match joined {
        true => ((cols * channels).div_ceil(BLOCK), (cols * channels - 1) % BLOCK + 1),
        false => (cols, channels),
    };
    let mask = |lanes: usize| u64::MAX >> (BLOCK - lanes);
    Block {
        requant,
        bare: requant.is_bare(),
        data: s.data[first as usize / BLOCK * block_bytes..][..block_bytes].as_ptr(),
        quads,
        packed_rows,
        kw,
        tap_step: if kw > 1 { g.dw as usize } else { 1 },
        out_step: if joined { pixels } else { g.sw as usize },
        x_row: g.x_row as usize * if kh > 1 { g.dh as usize } else { 1 },
        sh: if packed_rows > 1 { g.sh as usize } else { 0 },
        kh,
        x_pixel: g.x_pixel as usize,
        y_row: g.y_row as usize,
        r_row: g.r_row as usize,
        y_step: if joined { BLOCK } else { g.y_pixel as usize },
        r_step: if joined { BLOCK } else { g.r_pixel as usize },
        vectors,
        lanes: mask(if joined { BLOCK } else { channels }),
        last_lanes: mask(last),
    }
}

type StripFn = unsafe fn(&Block<'_>, At, &mut Scratch);

/// By output rows. As many outputs of each row at a time as there are registers for their sums.
const STRIPS: [StripFn; ROWS_MAX] = [strip::<1, 4>, strip::<2, 2>, strip::<3, 1>, strip::<4, 1>];

/// Computes `R` output rows of a tile's columns, `N` vectors of each row at a time.
///
/// # Safety
/// AVX-512 VNNI is there; the strip belongs to the tile.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn strip<const R: usize, const N: usize>(b: &Block<'_>, at: At, scratch: &mut Scratch) {
    let span = (b.kw - 1) * b.tap_step + 1;
    let room = (SCRATCH / b.quads - span) / b.out_step + 1;
    let whole = if b.lanes == b.last_lanes { b.vectors } else { b.vectors - 1 };
    let quads: *mut u8 = scratch.0.as_mut_ptr().cast();
    let mut start = 0;
    while start < b.vectors {
        let end = (start + room).min(b.vectors);
        let columns = (end - start - 1) * b.out_step + span;
        // SAFETY: columns of taps of this strip, at most `SCRATCH / quads`; outputs of the tile, whose quads lie in the
        // scratch then.
        unsafe {
            interleave::<R>(b, at.x.add(start * b.out_step * b.x_pixel), columns, quads);
            let taps = |i: usize| quads.cast_const().add((i - start) * b.out_step * b.quads * QUADS);
            let mut i = start;
            while i + N <= end.min(whole) {
                outputs::<R, N>(b, taps(i), at, i, b.lanes);
                i += N;
            }
            while i < end {
                outputs::<R, 1>(b, taps(i), at, i, if i < whole { b.lanes } else { b.last_lanes });
                i += 1;
            }
        }
        start = end;
    }
}

/// Lays out the quads of `columns` columns from `x` on. Rows that no tap of these output rows reads are read from the
/// last one that is: their weights are zero.
///
/// # Safety
/// The taps of `R` output rows in these columns are readable, and 63 bytes past each; `quads` has room.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn interleave<const R: usize>(b: &Block<'_>, x: *const u8, columns: usize, quads: *mut u8) {
    let last = (R - 1) * b.sh + b.kh - 1;
    for q in 0..b.quads {
        let row = |i: usize| x.wrapping_add((q * QUAD + i).min(last) * b.x_row);
        let rows = [row(0), row(1), row(2), row(3)];
        let mut at = 0;
        let mut to = quads.wrapping_add(q * QUADS);
        for _ in 0..columns {
            // SAFETY: the caller's promise.
            unsafe {
                let [r0, r1, r2, r3] = rows.map(|row| _mm512_loadu_si512(row.add(at).cast()));
                let (low01, high01) = (_mm512_unpacklo_epi8(r0, r1), _mm512_unpackhi_epi8(r0, r1));
                let (low23, high23) = (_mm512_unpacklo_epi8(r2, r3), _mm512_unpackhi_epi8(r2, r3));
                let to: *mut __m512i = to.cast();
                _mm512_store_si512(to, _mm512_unpacklo_epi16(low01, low23));
                _mm512_store_si512(to.add(1), _mm512_unpackhi_epi16(low01, low23));
                _mm512_store_si512(to.add(2), _mm512_unpacklo_epi16(high01, high23));
                _mm512_store_si512(to.add(3), _mm512_unpackhi_epi16(high01, high23));
            }
            at += b.x_pixel;
            to = to.wrapping_add(b.quads * QUADS);
        }
    }
}

/// Computes vectors `i..i + N` of `R` output rows from the quads at `quads`. `R * N <= 4`.
///
/// # Safety
/// The quads of all their taps lie there; `lanes` of each vector may be written, and read in the residual.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn outputs<const R: usize, const N: usize>(
    b: &Block<'_>,
    quads: *const u8,
    at: At,
    i: usize,
    lanes: __mmask64,
) {
    // SAFETY: the block holds bias and multipliers of four vectors and the weights of all taps; the caller's promise
    // for the rest.
    unsafe {
        let vector = |p: *const u8, v: usize| _mm512_load_si512(p.cast::<__m512i>().add(v));
        let bias: [__m512i; 4] = std::array::from_fn(|v| vector(b.data, v));
        // Sums of vector n of row r are number r * N + n.
        let mut acc = [bias; 4];
        let mut weights = b.data.add(HEAD);
        let mut taps = quads;
        for _ in 0..b.kw {
            let mut tap = taps;
            for _ in 0..b.quads {
                for v in 0..4 {
                    let x: [__m512i; N] =
                        std::array::from_fn(|n| vector(tap.add(n * b.out_step * b.quads * QUADS), v));
                    for r in 0..R {
                        let w = vector(weights.add(r * QUADS), v);
                        for n in 0..N {
                            acc[r * N + n][v] = _mm512_dpbusd_epi32(acc[r * N + n][v], x[n], w);
                        }
                    }
                }
                tap = tap.add(QUADS);
                weights = weights.add(b.packed_rows * QUADS);
            }
            taps = taps.add(b.tap_step * b.quads * QUADS);
        }
        if !b.bare {
            // A copy: sums whose address is taken would live in memory from the start.
            let [a0, a1, a2, a3] = acc;
            let copy = |a: [__m512i; 4]| [a[0], a[1], a[2], a[3]];
            let sums = [copy(a0), copy(a1), copy(a2), copy(a3)];
            return store_each(b, at, (i, N), lanes, &sums[..R * N]);
        }
        let store = |t: usize, acc: [__m512i; 4]| {
            let mult = |v: usize| _mm512_castsi512_ps(vector(b.data.add(QUADS), v));
            let sums = [(acc[0], mult(0)), (acc[1], mult(1)), (acc[2], mult(2)), (acc[3], mult(3))];
            let y = at.y.add(t / N * b.y_row + (i + t % N) * b.y_step);
            store_lanes(y, b.requant.four_bare(sums), lanes);
        };
        // One by one: in a loop the compiler would keep the sums in memory.
        store(0, acc[0]);
        if R * N > 1 {
            store(1, acc[1]);
        }
        if R * N > 2 {
            store(2, acc[2]);
        }
        if R * N > 3 {
            store(3, acc[3]);
        }
    }
}

/// Stores the sums of vectors `i..i + n` of some rows where the epilogue has a residual or a table.
///
/// # Safety
/// As [`outputs`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn store_each(b: &Block<'_>, at: At, (i, n): (usize, usize), lanes: __mmask64, acc: &[[__m512i; 4]]) {
    for (t, acc) in acc.iter().enumerate() {
        let (r, vector_at) = (t / n, i + t % n);
        // SAFETY: the caller's promise.
        unsafe {
            let mult = b.data.add(QUADS).cast::<__m512>();
            let sums =
                [(acc[0], *mult), (acc[1], *mult.add(1)), (acc[2], *mult.add(2)), (acc[3], *mult.add(3))];
            let r_at = at.r.wrapping_add(r * b.r_row + vector_at * b.r_step);
            let mut residuals = [_mm512_setzero_si512(); 4];
            if b.requant.has_residual() {
                for v in 0..4 {
                    residuals[v] = residual(r_at, v);
                }
            }
            let bytes = b.requant.four_as_bytes(sums, residuals);
            store_lanes(at.y.add(r * b.y_row + vector_at * b.y_step), bytes, lanes);
        }
    }
}

/// # Safety
/// The bytes in `lanes` may be written at `y`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn store_lanes(y: *mut u8, bytes: __m512i, lanes: __mmask64) {
    // SAFETY: the caller's promise.
    unsafe {
        match lanes {
            u64::MAX => _mm512_storeu_si512(y.cast(), bytes),
            _ => _mm512_mask_storeu_epi8(y.cast(), lanes, bytes),
        }
    }
}

/// Vector `v` of the four that hold 64 channels of a residual.
///
/// # Safety
/// 64 bytes are readable at `r`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn residual(r: *const u8, v: usize) -> __m512i {
    let zero = _mm512_setzero_si512();
    // SAFETY: the caller's promise.
    let r = unsafe { _mm512_loadu_si512(r.cast()) };
    match v {
        0 => _mm512_unpacklo_epi16(_mm512_unpacklo_epi8(r, zero), zero),
        1 => _mm512_unpackhi_epi16(_mm512_unpacklo_epi8(r, zero), zero),
        2 => _mm512_unpacklo_epi16(_mm512_unpackhi_epi8(r, zero), zero),
        _ => _mm512_unpackhi_epi16(_mm512_unpackhi_epi8(r, zero), zero),
    }
}
