//! Depthwise int8 convolutions on NEON: up to four neighbouring outputs of 16 channels.
//!
//! Bytes become 16-bit numbers, weights once for all outputs, and widening multiplications add their products exactly.
//! Weights are packed as the portable row packs them.

use super::depthwise_i8::{Code, Job, Sums};
use super::{Operands, depthwise_i8, neon};
use std::arch::aarch64::*;

const CODE: Code =
    Code { sums: [outputs::<1>, outputs::<2>, outputs::<3>, outputs::<4>], requant: neon::requant };

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run(o: &Operands<'_>) {
    // SAFETY: the caller's promise.
    unsafe { depthwise_i8::run(&CODE, o) };
}

/// # Safety
/// 16 bytes may be read at every tap of `P` outputs.
#[target_feature(enable = "neon")]
unsafe fn outputs<const P: usize>(job: &Job<'_>, out: &mut Sums) {
    let mut sums = [neon::loaded(job.bias); P];
    for (&tap, weights) in job.taps.iter().zip(job.weights) {
        // SAFETY: the array holds 16 bytes.
        let w = unsafe { vld1q_s8(weights.as_ptr()) };
        let (w_low, w_high) = (vmovl_s8(vget_low_s8(w)), vmovl_high_s8(w));
        for (p, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let x = unsafe { vld1q_u8(job.x.wrapping_add(p.wrapping_mul(job.x_output)).wrapping_add(tap)) };
            let x_low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(x)));
            let x_high = vreinterpretq_s16_u16(vmovl_high_u8(x));
            sums[0] = vmlal_s16(sums[0], vget_low_s16(x_low), vget_low_s16(w_low));
            sums[1] = vmlal_high_s16(sums[1], x_low, w_low);
            sums[2] = vmlal_s16(sums[2], vget_low_s16(x_high), vget_low_s16(w_high));
            sums[3] = vmlal_high_s16(sums[3], x_high, w_high);
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        neon::stored(sums, out);
    }
}
