//! Depthwise int8 convolutions on AVX2: up to four neighbouring outputs of 16 channels, two taps at a time.
//!
//! Bytes become 16-bit numbers, and those of two taps neighbours, so that one `vpmaddwd` multiplies and adds both for eight
//! channels, exactly. Weights are packed as the portable row packs them.

use super::depthwise_i8::{Code, Job, Sums};
use super::{Operands, dense_avx2, depthwise_i8};
use std::arch::x86_64::*;

const CODE: Code =
    Code { sums: [outputs::<1>, outputs::<2>, outputs::<3>, outputs::<4>], requant: dense_avx2::requant };

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run(o: &Operands<'_>) {
    // SAFETY: the caller's promise.
    unsafe { depthwise_i8::run(&CODE, o) };
}

/// # Safety
/// The processor has AVX2; 16 bytes may be read at every tap of `P` outputs.
#[target_feature(enable = "avx2")]
unsafe fn outputs<const P: usize>(job: &Job<'_>, out: &mut Sums) {
    // SAFETY: the caller's promise; arrays hold 16 elements.
    unsafe {
        // The first sums are of channels 0 to 3 and 8 to 11, the second of the others: as neighbours are interleaved.
        let bias: *const __m256i = job.bias.as_ptr().cast();
        let bias = [_mm256_loadu_si256(bias), _mm256_loadu_si256(bias.add(1))];
        let mut sums = [halves(bias); P];
        let weight = |i: usize| _mm256_cvtepi8_epi16(_mm_loadu_si128(job.weights[i].as_ptr().cast()));
        for i in (0..job.taps.len()).step_by(2) {
            let pair = i + 1 < job.taps.len();
            let (w0, w1) = (weight(i), if pair { weight(i + 1) } else { _mm256_setzero_si256() });
            let w = [_mm256_unpacklo_epi16(w0, w1), _mm256_unpackhi_epi16(w0, w1)];
            let taps = [job.taps[i], job.taps[i + usize::from(pair)]];
            for p in 0..P {
                let at = job.x.wrapping_add(p.wrapping_mul(job.x_output));
                let [x0, x1] =
                    taps.map(|tap| _mm256_cvtepu8_epi16(_mm_loadu_si128(at.wrapping_add(tap).cast())));
                let low = _mm256_madd_epi16(_mm256_unpacklo_epi16(x0, x1), w[0]);
                let high = _mm256_madd_epi16(_mm256_unpackhi_epi16(x0, x1), w[1]);
                sums[p] = [_mm256_add_epi32(sums[p][0], low), _mm256_add_epi32(sums[p][1], high)];
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            let [low, high] = halves(sums);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), low);
            _mm256_storeu_si256(out.as_mut_ptr().add(8).cast(), high);
        }
    }
}

/// The first halves of both, and the second halves.
#[inline]
#[target_feature(enable = "avx2")]
fn halves([a, b]: [__m256i; 2]) -> [__m256i; 2] {
    [_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b)]
}
