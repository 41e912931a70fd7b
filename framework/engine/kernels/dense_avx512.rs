//! Dense convolutions on AVX-512: int8 with VNNI, f32 with FMA.
//!
//! One tile of registers is up to 6 pixels x 64 channels (24 sums, 4 weights, one broadcast): each step
//! broadcasts 4 bytes (or one float) of every pixel and multiplies them with the weights of 16, 32, 48 or 64
//! channels. Panels of up to 32 channels take 12 pixels. Steps run over the runs of x that [`Panels`] lists,
//! so one loop serves every window, stride and dilation.
//!
//! ```text
//! format "D64i" or "D64f", data: panels of 64 channels, see [`Panels`]
//! step of i8: 4 neighbours of a run, [vectors][16 lanes][4] i8        step of f32: 1, [vectors][16 lanes] f32
//! ```

use super::packed::{Panels, Sections, expect, read};
use super::{ConvGeom, ConvWeights, KernelType, Packed, QEpilogue, Tile, blocks};
use std::arch::x86_64::*;

const PANEL: usize = 64;

pub(super) fn pack_i8(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::Int8, weights);
    Panels::new(g, 4, 1).pack::<1>(b"D64i", weights, g, PANEL, |slot| slot)
}

pub(super) fn pack_f32(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::F32, weights);
    Panels::new(g, 1, 4).pack::<4>(b"D64f", weights, g, PANEL, |slot| slot)
}

/// Constants of an integer epilogue, one register each.
#[derive(Clone, Copy)]
pub(super) struct Requant {
    zero: __m512i,
    lo: __m512,
    hi: __m512,
    residual_zero: __m512i,
    residual_mult: __m512,
    zero_words: __m512i,
    lo_bytes: __m512i,
    has_residual: bool,
    pub out_f32: bool,
}

impl Requant {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn new(e: &QEpilogue) -> Requant {
        let (lo, hi) = e.bounds();
        Requant {
            zero: _mm512_set1_epi32(e.zero),
            lo: _mm512_set1_ps(lo),
            hi: _mm512_set1_ps(hi),
            residual_zero: _mm512_set1_epi32(e.residual_zero),
            residual_mult: _mm512_set1_ps(e.residual_mult),
            zero_words: _mm512_set1_epi16(e.zero as i16),
            lo_bytes: _mm512_set1_epi8(e.lo as i8),
            has_residual: e.has_residual,
            out_f32: e.out_f32,
        }
    }

    /// Bytes of an element of y.
    pub fn y_size(&self) -> usize {
        if self.out_f32 { 4 } else { 1 }
    }

    /// Writes the channels in `mask` of one pixel; `y` and `r` point at the first of 16 channels.
    ///
    /// # Safety
    /// The channels in `mask` may be written at `y` and, with a residual, read at `r`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn store(&self, acc: __m512i, mult: __m512, mask: __mmask16, y: *mut u8, r: *const u8) {
        // SAFETY: masked accesses touch only the channels in `mask`; whole ones are made only for a full mask.
        unsafe {
            let mut f = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), mult);
            if self.out_f32 {
                _mm512_mask_storeu_ps(y.cast(), mask, f);
                return;
            }
            if self.has_residual {
                let r = if mask == 0xffff {
                    _mm_loadu_si128(r.cast())
                } else {
                    _mm_maskz_loadu_epi8(mask, r.cast())
                };
                let r = _mm512_sub_epi32(_mm512_cvtepu8_epi32(r), self.residual_zero);
                f = _mm512_add_ps(f, _mm512_mul_ps(_mm512_cvtepi32_ps(r), self.residual_mult));
            }
            f = _mm512_min_ps(_mm512_max_ps(f, self.lo), self.hi);
            let bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(f), self.zero));
            if mask == 0xffff {
                _mm_storeu_si128(y.cast(), bytes);
            } else {
                _mm_mask_storeu_epi8(y.cast(), mask, bytes);
            }
        }
    }

    /// Writes 16 channels of each of four pixels (or 64 of one): `rows` are the four sums, their multipliers, and
    /// where y and the residual of each begin. For bytes only.
    ///
    /// Clamping after rounding is the same, because bounds are integers; only `hi` must come before the conversion to
    /// i32, which turns what is too large into the smallest number. Packing saturates what is too small.
    ///
    /// # Safety
    /// All 16 channels may be written at each y and, with a residual, read at each r; `out_f32` is false.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn store_four(&self, rows: [(__m512i, __m512, *mut u8, *const u8); 4]) {
        let mut q = [_mm512_setzero_si512(); 4];
        for i in 0..4 {
            let (acc, mult, _, r) = rows[i];
            let mut f = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), mult);
            if self.has_residual {
                // SAFETY: 16 channels are readable at `r`.
                let r = unsafe { _mm_loadu_si128(r.cast()) };
                let r = _mm512_sub_epi32(_mm512_cvtepu8_epi32(r), self.residual_zero);
                f = _mm512_add_ps(f, _mm512_mul_ps(_mm512_cvtepi32_ps(r), self.residual_mult));
            }
            q[i] = _mm512_cvtps_epi32(_mm512_min_ps(f, self.hi));
        }
        let low = _mm512_adds_epi16(_mm512_packs_epi32(q[0], q[1]), self.zero_words);
        let high = _mm512_adds_epi16(_mm512_packs_epi32(q[2], q[3]), self.zero_words);
        // Packing works within 128 bits: dword 4 * k + i holds channels 4 * k.. of row i.
        let bytes = _mm512_max_epu8(_mm512_packus_epi16(low, high), self.lo_bytes);
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let bytes = _mm512_permutexvar_epi32(order, bytes);
        // SAFETY: 16 channels may be written at each y.
        unsafe {
            _mm_storeu_si128(rows[0].2.cast(), _mm512_castsi512_si128(bytes));
            _mm_storeu_si128(rows[1].2.cast(), _mm512_extracti32x4_epi32::<1>(bytes));
            _mm_storeu_si128(rows[2].2.cast(), _mm512_extracti32x4_epi32::<2>(bytes));
            _mm_storeu_si128(rows[3].2.cast(), _mm512_extracti32x4_epi32::<3>(bytes));
        }
    }
}

/// Lanes of the vector that starts at channel `first` and lie before `end`.
pub(super) fn lanes_before(first: usize, end: usize) -> __mmask16 {
    match end.saturating_sub(first) {
        n @ 0..16 => (1 << n) - 1,
        _ => 0xffff,
    }
}

/// Stores the sums of the listed indices, four at a time and then one by one: `row(i, sum)` says what and where.
macro_rules! store_fours {
    ($q:ident, $row:ident, $acc:ident, $a:literal $b:literal $c:literal $d:literal $($rest:literal)*) => {
        $q.store_four([$row($a, $acc[$a]), $row($b, $acc[$b]), $row($c, $acc[$c]), $row($d, $acc[$d])]);
        store_fours!($q, $row, $acc, $($rest)*);
    };
    ($q:ident, $row:ident, $acc:ident, $($i:literal)*) => {
        $({
            let (acc, mult, y, r) = $row($i, $acc[$i]);
            $q.store(acc, mult, 0xffff, y, r);
        })*
    };
}
pub(super) use store_fours;

/// What all blocks of pixels of one panel share. Strides and offsets are bytes.
struct Panel<'a> {
    sections: &'a Sections<'a>,
    weights: *const u8,
    /// 16-channel vectors: 1 to 4.
    vectors: usize,
    first: usize,
    /// First channel that is not the tile's.
    end: usize,
    x_stride: usize,
    y_stride: usize,
    r_stride: usize,
}

mod int8;

/// Where a block of pixels starts.
#[derive(Clone, Copy)]
struct Pixels {
    x: *const u8,
    y: *mut u8,
    r: *const u8,
}

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_i8(
    g: &ConvGeom,
    e: &QEpilogue,
    packed: &[u8],
    x: *const u8,
    r: *const u8,
    y: *mut u8,
    tile: &Tile,
) {
    let s = read(b"D64i", g, packed);
    let y_size = if e.out_f32 { 4 } else { 1 };
    // SAFETY: the caller vouches for the processor, and for all pixels and channels of the tile.
    unsafe {
        let q = Requant::new(e);
        for_each_block(
            g,
            &s,
            tile,
            e.has_residual,
            (1, y_size, 4),
            Pixels { x, y, r },
            |panel, pixels, at| {
                int8::BLOCKS[panel.vectors - 1][pixels - 1](panel, &q, at);
            },
        );
    }
}

macro_rules! by_pixels {
    ($v:literal: $($p:literal)*) => { [$(block_f32::<$p, $v>),*] };
}

type F32BlockFn = unsafe fn(&Panel<'_>, &QEpilogue, Pixels);

/// Blocks of 1 to 6 or 12 pixels, by vectors of a panel.
const F32_BLOCKS: [&[F32BlockFn]; 4] = [
    &by_pixels!(1: 1 2 3 4 5 6 7 8 9 10 11 12),
    &by_pixels!(2: 1 2 3 4 5 6 7 8 9 10 11 12),
    &by_pixels!(3: 1 2 3 4 5 6),
    &by_pixels!(4: 1 2 3 4 5 6),
];

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_f32(
    g: &ConvGeom,
    e: &QEpilogue,
    packed: &[u8],
    x: *const u8,
    r: *const u8,
    y: *mut u8,
    tile: &Tile,
) {
    let s = read(b"D64f", g, packed);
    // SAFETY: as in `run_i8`.
    unsafe {
        for_each_block(g, &s, tile, e.has_residual, (4, 4, 4), Pixels { x, y, r }, |panel, pixels, at| {
            F32_BLOCKS[panel.vectors - 1][pixels - 1](panel, e, at);
        });
    }
}

/// Panels outside, pixels inside: a panel's weights stay in the nearest caches while pixels stream by.
/// `sizes` are bytes of an element of x and residual, of y, and of all weights of a lane and step.
///
/// # Safety
/// `at` holds the buffers' starts, and `each` may be called for all pixels of the tile.
unsafe fn for_each_block(
    g: &ConvGeom,
    s: &Sections<'_>,
    tile: &Tile,
    residual: bool,
    (x_size, y_size, lane_bytes): (usize, usize, usize),
    at: Pixels,
    each: impl Fn(&Panel<'_>, usize, Pixels),
) {
    debug_assert!(tile.rows.end <= g.rows && tile.cols.end <= g.ow && tile.ocs.end <= g.oc);
    debug_assert!((tile.ocs.start as usize).is_multiple_of(PANEL));
    let (flat, tile) = g.flattened(tile, residual);
    let steps = s.table.len() * s.args[0] as usize;
    for first in tile.ocs.clone().step_by(PANEL) {
        let first = first as usize;
        let vectors = (g.oc as usize - first).div_ceil(16).min(4);
        let data = &s.data[first * steps * lane_bytes..][..vectors * 16 * steps * lane_bytes];
        let panel = Panel {
            sections: s,
            weights: data.as_ptr(),
            vectors,
            first,
            end: tile.ocs.end as usize,
            x_stride: flat.x_step().wrapping_mul(x_size),
            y_stride: flat.y_pixel as usize * y_size,
            r_stride: flat.r_pixel as usize * x_size,
        };
        let most = if vectors <= 2 { 12 } else { 6 };
        for row in tile.rows.clone() {
            for cols in blocks(tile.cols.clone(), most) {
                // SAFETY: the offsets of pixels of the tile, inside the caller's buffers.
                let start = unsafe {
                    Pixels {
                        x: at.x.add(flat.x_at(row, cols.start) * x_size),
                        y: at.y.add((flat.y_at(row, cols.start) + first) * y_size),
                        r: if residual {
                            at.r.add((flat.r_at(row, cols.start) + first) * x_size)
                        } else {
                            at.r
                        },
                    }
                };
                each(&panel, cols.len(), start);
            }
        }
    }
}

/// # Safety
/// `P` pixels from `at` belong to the tile; `V` is the panel's number of vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn block_f32<const P: usize, const V: usize>(panel: &Panel<'_>, e: &QEpilogue, at: Pixels) {
    let s = panel.sections;
    // SAFETY: `read` and `for_each_block` cut bias, table and weights to the panel's size; every run is readable
    // for pixels of the tile.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); V]; P];
        for v in 0..V {
            let bias = _mm512_loadu_ps(s.bias.as_ptr().add(panel.first + v * 16).cast());
            for p in 0..P {
                acc[p][v] = bias;
            }
        }
        let mut weights: *const f32 = panel.weights.cast();
        for &run in s.table {
            let mut x: *const u8 = at.x.add(run as usize);
            for _ in 0..s.args[0] {
                let mut w = [_mm512_setzero_ps(); V];
                for v in 0..V {
                    w[v] = _mm512_load_ps(weights.add(v * 16));
                }
                for p in 0..P {
                    let value = _mm512_set1_ps(x.add(p * panel.x_stride).cast::<f32>().read());
                    for v in 0..V {
                        acc[p][v] = _mm512_fmadd_ps(value, w[v], acc[p][v]);
                    }
                }
                weights = weights.add(V * 16);
                x = x.add(4);
            }
        }
        let (min, max) = (_mm512_set1_ps(e.min), _mm512_set1_ps(e.max));
        for v in 0..V {
            let mask = lanes_before(panel.first + v * 16, panel.end);
            for p in 0..P {
                let mut f = acc[p][v];
                if e.has_residual {
                    let r: *const f32 = at.r.wrapping_add(p * panel.r_stride + v * 64).cast();
                    f = _mm512_add_ps(f, _mm512_maskz_loadu_ps(mask, r));
                }
                // Bounds come first: these instructions return their second operand when one is NaN.
                f = _mm512_min_ps(max, _mm512_max_ps(min, f));
                _mm512_mask_storeu_ps(at.y.wrapping_add(p * panel.y_stride + v * 64).cast(), mask, f);
            }
        }
    }
}
