//! The sparse f32 kernel's loops on AVX-512: vectors of 16 pixels.

use super::{Multiply, PIXELS, Scatter, VECTOR, Vectors};
use std::arch::x86_64::*;

pub const VECTORS: Vectors =
    Vectors { gather, multiply: [multiply::<1>, multiply::<2>, multiply::<3>, multiply::<4>], scatter };

/// Vector `k` of the result holds element `k` of all rows.
///
/// Quarters of rows are put in place as they are loaded, so that what is left is to transpose within 128 bits.
///
/// # Safety
/// AVX-512 F; 16 elements may be read at each row.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn transposed(row: impl Fn(usize) -> *const f32) -> [__m512; 16] {
    let mut a = [_mm512_setzero_ps(); 16];
    for i in 0..4 {
        let rows = [row(i), row(4 + i), row(8 + i), row(12 + i)];
        for q in 0..4 {
            // SAFETY: as the caller promises.
            unsafe {
                let part = |nth: usize| _mm_loadu_ps(rows[nth].add(4 * q));
                let v = _mm512_castps128_ps512(part(0));
                let v = _mm512_insertf32x4::<1>(v, part(1));
                let v = _mm512_insertf32x4::<2>(v, part(2));
                a[4 * q + i] = _mm512_insertf32x4::<3>(v, part(3));
            }
        }
    }
    let d = |v| _mm512_castps_pd(v);
    for q in 0..4 {
        let a = &mut a[4 * q..4 * q + 4];
        let low = [_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpacklo_ps(a[2], a[3])];
        let high = [_mm512_unpackhi_ps(a[0], a[1]), _mm512_unpackhi_ps(a[2], a[3])];
        a[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(low[0]), d(low[1])));
        a[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(low[0]), d(low[1])));
        a[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(high[0]), d(high[1])));
        a[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(high[0]), d(high[1])));
    }
    a
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
                let [offsets, a_bits, b_bits] = *pair;
                let (a, b) = (offsets & 0xffff, offsets >> 16);
                pair = pair.add(1);
                let (w, x) = (_mm512_set1_ps(f32::from_bits(a_bits)), s.tile.byte_add(a as usize));
                for v in 0..V {
                    even[v] = _mm512_fmadd_ps(w, _mm512_load_ps(x.add(v * VECTOR)), even[v]);
                }
                let (w, x) = (_mm512_set1_ps(f32::from_bits(b_bits)), s.tile.byte_add(b as usize));
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
                let mut v = transposed(|o| sums.wrapping_add(o * PIXELS));
                let pixels = s.y_at.len().min(first + VECTOR);
                for (p, sum) in (first..pixels).zip(&mut v) {
                    if let Some(r) = s.r {
                        let r = r.wrapping_add(s.r_at[p] + channel);
                        *sum = _mm512_add_ps(*sum, _mm512_maskz_loadu_ps(mask, r));
                    }
                    // Bounds come first: these instructions return their second operand when one is NaN.
                    let sum = _mm512_min_ps(max, _mm512_max_ps(min, *sum));
                    _mm512_mask_storeu_ps(s.y.wrapping_add(s.y_at[p] + channel), mask, sum);
                }
            }
        }
    }
}
