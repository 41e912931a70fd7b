//! The sparse f32 kernel's loops on AVX2: vectors of 8 pixels.

use super::{Multiply, PIXELS, Scatter, Vectors};
use std::arch::x86_64::*;

pub const VECTORS: Vectors =
    Vectors { gather, multiply: [multiply::<2>, multiply::<4>, multiply::<6>, multiply::<8>], scatter };

const LANES: usize = 8;

/// Vector `j` of the result holds element `4 * h + j` of all rows.
///
/// # Safety
/// AVX2; 8 elements may be read at each row.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn half(rows: &[*const f32; LANES], h: usize) -> [__m256; 4] {
    let mut a = [_mm256_setzero_ps(); 4];
    for i in 0..4 {
        // SAFETY: as the caller promises.
        unsafe {
            let part = |row: usize| _mm_loadu_ps(rows[row].add(4 * h));
            a[i] = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(part(i)), part(4 + i));
        }
    }
    let d = |v| _mm256_castps_pd(v);
    let low = [_mm256_unpacklo_ps(a[0], a[1]), _mm256_unpacklo_ps(a[2], a[3])];
    let high = [_mm256_unpackhi_ps(a[0], a[1]), _mm256_unpackhi_ps(a[2], a[3])];
    [
        _mm256_castpd_ps(_mm256_unpacklo_pd(d(low[0]), d(low[1]))),
        _mm256_castpd_ps(_mm256_unpackhi_pd(d(low[0]), d(low[1]))),
        _mm256_castpd_ps(_mm256_unpacklo_pd(d(high[0]), d(high[1]))),
        _mm256_castpd_ps(_mm256_unpackhi_pd(d(high[0]), d(high[1]))),
    ]
}

/// # Safety
/// See [`Vectors::gather`]; AVX2.
#[target_feature(enable = "avx2")]
unsafe fn gather(x: *const f32, pixels: &[usize], at: usize, rows: usize, tile: *mut f32) {
    for (i, pixels) in pixels.chunks_exact(LANES).enumerate() {
        let mut from = [x; LANES];
        for (from, &pixel) in from.iter_mut().zip(pixels) {
            *from = from.wrapping_add(pixel + at);
        }
        for k in (0..rows).step_by(LANES) {
            let from = from.map(|p| p.wrapping_add(k));
            for h in 0..2 {
                // SAFETY: as the caller promises, and the tile has room for whole steps of 16 rows.
                unsafe {
                    let v = half(&from, h);
                    for j in 0..4 {
                        _mm256_store_ps(tile.add((k + 4 * h + j) * PIXELS + i * LANES), v[j]);
                    }
                }
            }
        }
    }
}

/// # Safety
/// AVX2 and FMA; every offset is a row of the tile, sums hold the group.
#[target_feature(enable = "avx2,fma")]
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
            let mut sum = match s.bias {
                Some(bias) => [_mm256_set1_ps(*bias.add(lane)); V],
                None => {
                    let mut sum = [_mm256_setzero_ps(); V];
                    for v in 0..V {
                        sum[v] = _mm256_load_ps(sums.add(v * LANES));
                    }
                    sum
                }
            };
            for _ in 0..pairs {
                let [offsets, a_bits, b_bits] = *pair;
                let (a, b) = (offsets & 0xffff, offsets >> 16);
                pair = pair.add(1);
                for (offset, bits) in [(a, a_bits), (b, b_bits)] {
                    let (w, x) = (_mm256_set1_ps(f32::from_bits(bits)), s.tile.byte_add(offset as usize));
                    for v in 0..V {
                        sum[v] = _mm256_fmadd_ps(w, _mm256_load_ps(x.add(v * LANES)), sum[v]);
                    }
                }
            }
            for v in 0..V {
                _mm256_store_ps(sums.add(v * LANES), sum[v]);
            }
        }
    }
}

/// # Safety
/// See [`Vectors::scatter`]; AVX2.
#[target_feature(enable = "avx2")]
unsafe fn scatter(s: &Scatter<'_>) {
    let (min, max) = (_mm256_set1_ps(s.min), _mm256_set1_ps(s.max));
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    // A few pixels at a time, so that each is written from its first channel to its last.
    for first in (0..s.y_at.len()).step_by(LANES) {
        for channel in (0..s.channels).step_by(LANES) {
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((s.channels - channel) as i32), lanes);
            let rows = std::array::from_fn(|o| s.sums.wrapping_add((channel + o) * PIXELS + first));
            for h in 0..2 {
                // SAFETY: sums hold whole vectors of channels; masks keep to the channels of the tile.
                unsafe {
                    let v = half(&rows, h);
                    for j in 0..4 {
                        let p = first + 4 * h + j;
                        if p >= s.y_at.len() {
                            break;
                        }
                        let mut sum = v[j];
                        if let Some(r) = s.r {
                            let r = r.wrapping_add(s.r_at[p] + channel);
                            sum = _mm256_add_ps(sum, _mm256_maskload_ps(r, mask));
                        }
                        // Bounds come first: these instructions return their second operand when one is NaN.
                        sum = _mm256_min_ps(max, _mm256_max_ps(min, sum));
                        _mm256_maskstore_ps(s.y.wrapping_add(s.y_at[p] + channel), mask, sum);
                    }
                }
            }
        }
    }
}
