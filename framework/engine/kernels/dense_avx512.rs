//! Dense int8 convolutions on AVX-512 with VNNI.
//!
//! One tile of registers is up to 6 pixels x 64 channels (24 sums, 4 weights, one broadcast): each step
//! broadcasts 4 bytes of every pixel and multiplies them with the weights of 16, 32, 48 or 64 channels. Panels of up to
//! 32 channels take 12 pixels. Steps run over the runs of x that [`Panels`] lists,
//! so one loop serves every window, stride and dilation.
//!
//! ```text
//! format "D64i", data: panels of 64 channels, see [`Panels`]
//! step: 4 neighbours of a run, [vectors][16 lanes][4] i8
//! ```

use super::packed::{Panels, Sections, expect, read};
use super::{ConvGeom, ConvWeights, KernelType, Packed, QEpilogue, Tile, blocks};
use std::arch::x86_64::*;

const PANEL: usize = 64;

pub(super) fn pack_i8(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::Int8, weights);
    Panels::new(g, 4, 1).pack::<1>(b"D64i", weights, g, PANEL, |slot| slot)
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
    /// # Safety
    /// All 16 channels may be written at each y and, with a residual, read at each r; `out_f32` is false.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn store_four(&self, rows: [(__m512i, __m512, *mut u8, *const u8); 4]) {
        let sums = rows.map(|(acc, mult, ..)| (acc, mult));
        // SAFETY: 16 channels are readable at each r.
        let residual = |i: usize| unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(rows[i].3.cast())) };
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let bytes = _mm512_permutexvar_epi32(order, self.four_as_bytes(sums, residual));
        // SAFETY: 16 channels may be written at each y.
        unsafe {
            _mm_storeu_si128(rows[0].2.cast(), _mm512_castsi512_si128(bytes));
            _mm_storeu_si128(rows[1].2.cast(), _mm512_extracti32x4_epi32::<1>(bytes));
            _mm_storeu_si128(rows[2].2.cast(), _mm512_extracti32x4_epi32::<2>(bytes));
            _mm_storeu_si128(rows[3].2.cast(), _mm512_extracti32x4_epi32::<3>(bytes));
        }
    }

    /// Results of four vectors of sums, as bytes. Packing works within 128 bits: dword 4 * k + i of the result holds
    /// lanes 4 * k.. of vector i. `residual(i)` has the residual's bytes of vector i, and is asked only if there is one.
    ///
    /// Clamping after rounding is the same, because bounds are integers; only `hi` must come before the conversion to
    /// i32, which turns what is too large into the smallest number. Packing saturates what is too small.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub fn four_as_bytes(
        &self,
        sums: [(__m512i, __m512); 4],
        residual: impl Fn(usize) -> __m512i,
    ) -> __m512i {
        let mut q = [_mm512_setzero_si512(); 4];
        for i in 0..4 {
            let (acc, mult) = sums[i];
            let mut f = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), mult);
            if self.has_residual {
                let r = _mm512_sub_epi32(residual(i), self.residual_zero);
                f = _mm512_add_ps(f, _mm512_mul_ps(_mm512_cvtepi32_ps(r), self.residual_mult));
            }
            q[i] = _mm512_cvtps_epi32(_mm512_min_ps(f, self.hi));
        }
        let low = _mm512_adds_epi16(_mm512_packs_epi32(q[0], q[1]), self.zero_words);
        let high = _mm512_adds_epi16(_mm512_packs_epi32(q[2], q[3]), self.zero_words);
        _mm512_max_epu8(_mm512_packus_epi16(low, high), self.lo_bytes)
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

/// Panels outside, pixels inside: a panel's weights stay in the nearest caches while pixels stream by.
///
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
    debug_assert!(tile.rows.end <= g.rows && tile.cols.end <= g.ow && tile.ocs.end <= g.oc);
    debug_assert!((tile.ocs.start as usize).is_multiple_of(PANEL));
    let s = read(b"D64i", g, packed);
    let y_size = if e.out_f32 { 4 } else { 1 };
    // SAFETY: the caller vouches for the processor.
    let q = unsafe { Requant::new(e) };
    let (flat, tile) = g.flattened(tile, e.has_residual);
    let steps = s.table.len() * s.args[0] as usize;
    for first in tile.ocs.clone().step_by(PANEL) {
        let first = first as usize;
        let vectors = (g.oc as usize - first).div_ceil(16).min(4);
        let data = &s.data[first * steps * 4..][..vectors * 16 * steps * 4];
        let panel = Panel {
            sections: &s,
            weights: data.as_ptr(),
            first,
            end: tile.ocs.end as usize,
            x_stride: flat.x_step(),
            y_stride: flat.y_pixel as usize * y_size,
            r_stride: flat.r_pixel as usize,
        };
        let most = if vectors <= 2 { 12 } else { 6 };
        for row in tile.rows.clone() {
            for cols in blocks(tile.cols.clone(), most) {
                // SAFETY: the offsets of pixels of the tile, inside the caller's buffers; blocks are of the panel's
                // vectors and as many pixels.
                unsafe {
                    let at = Pixels {
                        x: x.add(flat.x_at(row, cols.start)),
                        y: y.add((flat.y_at(row, cols.start) + first) * y_size),
                        r: if e.has_residual { r.add(flat.r_at(row, cols.start) + first) } else { r },
                    };
                    int8::BLOCKS[vectors - 1][cols.len() - 1](&panel, &q, at);
                }
            }
        }
    }
}
