//! The sparse f32 kernel's loops on NEON: vectors of 4 pixels.

use super::{Multiply, PIXELS, Scatter, Vectors};
use lacuna_kernels::lanes::{load_some, store_some};
use std::arch::aarch64::*;

pub const VECTORS: Vectors =
    Vectors { gather, multiply: [multiply::<4>, multiply::<8>, multiply::<12>, multiply::<16>], scatter };

const LANES: usize = 4;

/// Vector `k` of the result holds element `k` of all rows.
///
/// # Safety
/// NEON; 4 elements may be read at each row.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn transposed(rows: [*const f32; LANES]) -> [float32x4_t; LANES] {
    // SAFETY: as the caller promises.
    let a = unsafe { rows.map(|row| vld1q_f32(row)) };
    let d = |v| vreinterpretq_f64_f32(v);
    let even = [d(vtrn1q_f32(a[0], a[1])), d(vtrn1q_f32(a[2], a[3]))];
    let odd = [d(vtrn2q_f32(a[0], a[1])), d(vtrn2q_f32(a[2], a[3]))];
    [
        vreinterpretq_f32_f64(vtrn1q_f64(even[0], even[1])),
        vreinterpretq_f32_f64(vtrn1q_f64(odd[0], odd[1])),
        vreinterpretq_f32_f64(vtrn2q_f64(even[0], even[1])),
        vreinterpretq_f32_f64(vtrn2q_f64(odd[0], odd[1])),
    ]
}

/// # Safety
/// See [`Vectors::gather`]; NEON.
#[target_feature(enable = "neon")]
unsafe fn gather(x: *const f32, pixels: &[usize], at: usize, rows: usize, tile: *mut f32) {
    for (i, pixels) in pixels.chunks_exact(LANES).enumerate() {
        let mut from = [x; LANES];
        for (from, &pixel) in from.iter_mut().zip(pixels) {
            *from = from.wrapping_add(pixel + at);
        }
        for k in (0..rows).step_by(LANES) {
            // SAFETY: as the caller promises, and the tile has room for whole steps of 16 rows.
            unsafe {
                let v = transposed(from.map(|p| p.wrapping_add(k)));
                for j in 0..LANES {
                    vst1q_f32(tile.add((k + j) * PIXELS + i * LANES), v[j]);
                }
            }
        }
    }
}

/// # Safety
/// NEON; every offset is a row of the tile, sums hold the group.
#[target_feature(enable = "neon")]
unsafe fn multiply<const V: usize>(s: &Multiply<'_>) {
    let mut pair = s.pairs;
    for &order in s.order {
        let (lane, pairs) = ((order & 0xff) as usize, order >> 8);
        if pairs == 0 && s.bias.is_none() {
            break;
        }
        // SAFETY: as the caller promises.
        unsafe {
            let sums = s.sums.add(lane * PIXELS);
            let mut sum = match s.bias {
                Some(bias) => [vdupq_n_f32(*bias.add(lane)); V],
                None => {
                    let mut sum = [vdupq_n_f32(0.0); V];
                    for v in 0..V {
                        sum[v] = vld1q_f32(sums.add(v * LANES));
                    }
                    sum
                }
            };
            for _ in 0..pairs {
                let [offsets, a_bits, b_bits] = *pair;
                let (a, b) = (offsets & 0xffff, offsets >> 16);
                pair = pair.add(1);
                for (offset, bits) in [(a, a_bits), (b, b_bits)] {
                    let (w, x) = (f32::from_bits(bits), s.tile.byte_add(offset as usize));
                    for v in 0..V {
                        sum[v] = vfmaq_n_f32(sum[v], vld1q_f32(x.add(v * LANES)), w);
                    }
                }
            }
            for v in 0..V {
                vst1q_f32(sums.add(v * LANES), sum[v]);
            }
        }
    }
}

/// # Safety
/// See [`Vectors::scatter`]; NEON.
#[target_feature(enable = "neon")]
unsafe fn scatter(s: &Scatter<'_>) {
    let (min, max) = (vdupq_n_f32(s.min), vdupq_n_f32(s.max));
    // A few pixels at a time, so that each is written from its first channel to its last.
    for first in (0..s.y_at.len()).step_by(LANES) {
        for channel in (0..s.channels).step_by(LANES) {
            let lanes = s.channels - channel;
            // SAFETY: sums hold whole vectors of channels; no more lanes are read and written than the tile has channels.
            unsafe {
                let v = transposed([0, 1, 2, 3].map(|o| s.sums.wrapping_add((channel + o) * PIXELS + first)));
                for (p, &v) in (first..s.y_at.len()).zip(&v) {
                    let mut sum = v;
                    if let Some(r) = s.r {
                        sum = vaddq_f32(sum, load_some(r.wrapping_add(s.r_at[p] + channel), lanes));
                    }
                    // These instructions keep a NaN.
                    let sum = vminq_f32(vmaxq_f32(sum, min), max);
                    store_some(sum, s.y.wrapping_add(s.y_at[p] + channel), lanes);
                }
            }
        }
    }
}
