//! The sparse f32 kernel's loops on AVX-512: vectors of 16 pixels.

use super::{Multiply, PIXELS, Scatter, VECTOR, Vectors};
use std::arch::asm;
use std::arch::x86_64::*;

pub const VECTORS: Vectors =
    Vectors { gather, multiply: [multiply::<1>, multiply::<2>, multiply::<3>, multiply::<4>], scatter };

/// Vector `k` of the result holds element `k` of all rows.
///
/// Rows `i` and `8 + i` share a register as they are loaded; what is left are three exchanges: of single elements and of pairs within
/// 128 bits, then of those.
///
/// # Safety
/// AVX-512 F; 16 elements may be read at each row.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn transposed(row: impl Fn(usize) -> *const f32) -> [__m512; 16] {
    let d = |v| _mm512_castps_pd(v);
    let s = |v| _mm512_castpd_ps(v);
    let left = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    let right = _mm512_setr_epi32(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    // By half of the elements. Lanes of 128 bits: elements 0 to 3 and 4 to 7 of row `i`, then of row `8 + i`. A row is read at once:
    // rows may lie in one set of the first-level cache, which holds eight lines.
    let mut halves = [[_mm512_setzero_ps(); 8]; 2];
    for i in 0..8 {
        let rows = [row(i), row(8 + i)];
        for half in 0..2 {
            // SAFETY: as the caller promises.
            let [upper, lower] = rows.map(|row| unsafe { _mm256_loadu_ps(row.add(8 * half)) });
            let upper = _mm512_castps_pd(_mm512_castps256_ps512(upper));
            halves[half][i] = s(_mm512_insertf64x4::<1>(upper, _mm256_castps_pd(lower)));
        }
    }
    let mut all = [_mm512_setzero_ps(); 16];
    for (a, all) in halves.iter().zip(all.chunks_exact_mut(8)) {
        // Elements `k` and `4 + k` of four rows and of the four that are 8 rows below.
        let mut four = [[_mm512_setzero_ps(); 4]; 2];
        for (a, four) in a.chunks_exact(4).zip(&mut four) {
            let low = [d(_mm512_unpacklo_ps(a[0], a[1])), d(_mm512_unpacklo_ps(a[2], a[3]))];
            let high = [d(_mm512_unpackhi_ps(a[0], a[1])), d(_mm512_unpackhi_ps(a[2], a[3]))];
            four[0] = s(_mm512_unpacklo_pd(low[0], low[1]));
            four[1] = s(_mm512_unpackhi_pd(low[0], low[1]));
            four[2] = s(_mm512_unpacklo_pd(high[0], high[1]));
            four[3] = s(_mm512_unpackhi_pd(high[0], high[1]));
        }
        for k in 0..4 {
            all[k] = _mm512_permutex2var_ps(four[0][k], left, four[1][k]);
            all[4 + k] = _mm512_permutex2var_ps(four[0][k], right, four[1][k]);
        }
    }
    all
}

/// # Safety
/// See [`Vectors::gather`]; AVX-512 F.
#[target_feature(enable = "avx512f")]
unsafe fn gather(x: *const f32, pixels: &[usize], at: usize, rows: usize, tile: *mut f32) {
    for (i, pixels) in pixels.chunks_exact(VECTOR).enumerate() {
        let pixels: &[usize; VECTOR] = pixels.try_into().expect("a vector");
        for k in (0..rows).step_by(16) {
            let x = x.wrapping_add(at + k);
            // SAFETY: as the caller promises, and the tile has room for whole steps of 16 rows.
            unsafe {
                let v = transposed(|p| x.wrapping_add(pixels[p]));
                for j in 0..16 {
                    _mm512_store_ps(tile.add((k + j) * PIXELS + i * VECTOR), v[j]);
                }
            }
        }
    }
}

/// The float of these bits in all lanes, by way of a general register: a broadcast from memory takes the place of a load of
/// a whole vector, and loads are what [`multiply`] waits for.
#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(bits: u32) -> __m512 {
    let all;
    // SAFETY: registers only.
    unsafe {
        asm!("vpbroadcastd {}, {:e}", out(zmm_reg) all, in(reg) bits, options(pure, nomem, nostack, preserves_flags))
    };
    all
}

/// # Safety
/// AVX-512 F; every offset is a row of the tile, sums hold the group.
#[target_feature(enable = "avx512f")]
unsafe fn multiply<const V: usize>(s: &Multiply<'_>) {
    let (mut pair, mut ahead) = (s.pairs, s.ahead);
    for &order in s.order {
        let (lane, pairs) = ((order & 0xff) as usize, order >> 8);
        if pairs == 0 && s.bias.is_none() {
            break;
        }
        for _ in 0..s.lines {
            _mm_prefetch::<_MM_HINT_T1>(ahead);
            ahead = ahead.wrapping_add(64);
        }
        // SAFETY: as the caller promises.
        unsafe {
            let sums = s.sums.add(lane * PIXELS);
            // Two sums of every vector: one alone would wait for itself.
            let mut even = match s.bias {
                Some(bias) => [_mm512_set1_ps(*bias.add(lane)); V],
                None => {
                    let mut sum = [_mm512_setzero_ps(); V];
                    for v in 0..V {
                        sum[v] = _mm512_load_ps(sums.add(v * VECTOR));
                    }
                    sum
                }
            };
            let mut odd = [_mm512_setzero_ps(); V];
            for _ in 0..pairs {
                // Two of the three in one load.
                let first: u64 = pair.cast::<u64>().read_unaligned();
                let (offsets, a_bits, b_bits) = (first as u32, (first >> 32) as u32, (*pair)[2]);
                let (a, b) = (offsets & 0xffff, offsets >> 16);
                pair = pair.add(1);
                let (w, x) = (broadcast(a_bits), s.tile.byte_add(a as usize));
                for v in 0..V {
                    even[v] = _mm512_fmadd_ps(w, _mm512_load_ps(x.add(v * VECTOR)), even[v]);
                }
                let (w, x) = (broadcast(b_bits), s.tile.byte_add(b as usize));
                for v in 0..V {
                    odd[v] = _mm512_fmadd_ps(w, _mm512_load_ps(x.add(v * VECTOR)), odd[v]);
                }
            }
            for v in 0..V {
                _mm512_store_ps(sums.add(v * VECTOR), _mm512_add_ps(even[v], odd[v]));
            }
        }
    }
}

/// # Safety
/// See [`Vectors::scatter`]; AVX-512 F.
#[target_feature(enable = "avx512f")]
unsafe fn scatter(s: &Scatter<'_>) {
    let (min, max) = (_mm512_set1_ps(s.min), _mm512_set1_ps(s.max));
    // A few pixels at a time, so that each is written from its first channel to its last.
    for first in (0..s.y_at.len()).step_by(VECTOR) {
        for channel in (0..s.channels).step_by(16) {
            let mask = (0xffffu32 >> (16 - (s.channels - channel).min(16))) as __mmask16;
            let sums = s.sums.wrapping_add(channel * PIXELS + first);
            // SAFETY: sums hold whole vectors of 16 channels; masks keep to the channels of the tile.
            unsafe {
                let v = transposed(|o| sums.wrapping_add(o * PIXELS));
                let put = |p: usize, mut sum: __m512| {
                    if let Some(r) = s.r {
                        let r = r.wrapping_add(s.r_at[p] + channel);
                        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, r));
                    }
                    // Bounds come first: these instructions return their second operand when one is NaN.
                    let sum = _mm512_min_ps(max, _mm512_max_ps(min, sum));
                    _mm512_mask_storeu_ps(s.y.wrapping_add(s.y_at[p] + channel), mask, sum);
                };
                // As many as there are registers: a loop of another length would keep them in memory.
                match s.y_at.len() - first {
                    VECTOR.. => (0..VECTOR).for_each(|i| put(first + i, v[i])),
                    some => (0..some).for_each(|i| put(first + i, v[i])),
                }
            }
        }
    }
}
