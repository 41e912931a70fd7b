//! Depthwise int8 convolutions on AVX2: up to four neighbouring outputs of 16 channels, two taps at a time.
//!
//! Bytes become 16-bit numbers, and those of two taps neighbours, so that one `vpmaddwd` multiplies and adds both for eight
//! channels, exactly. Weights are packed as the portable row packs them.

use super::depthwise::FORMAT;
use super::packed::{LANES, read};
use super::{ConvGeom, QEpilogue, Tile, blocks, dense_avx2};
use std::arch::x86_64::*;

/// The most outputs at a time.
const OUTPUTS: usize = 4;
const TAPS_MAX: usize = 64;

type Sums = [[i32; LANES]; OUTPUTS];

/// One channel is a matrix product too, whose results may be floats.
pub(super) fn supports(g: &ConvGeom) -> bool {
    super::depthwise(g) && g.c > 1 && u64::from(g.kh) * u64::from(g.kw) <= TAPS_MAX as u64
}

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run(
    g: &ConvGeom,
    e: &QEpilogue,
    packed: &[u8],
    x: *const u8,
    r: *const u8,
    y: *mut u8,
    tile: &Tile,
) {
    tile.check(g, LANES);
    const BY_OUTPUTS: [unsafe fn(&Job<'_>, &mut Sums); OUTPUTS] =
        [outputs::<1>, outputs::<2>, outputs::<3>, outputs::<4>];
    let s = read(FORMAT, g, packed);
    let weights: &[[i8; LANES]] = bytemuck::cast_slice(s.data);
    let mut taps = [0; TAPS_MAX];
    let taps = &mut taps[..g.depth()];
    for (i, tap) in taps.iter_mut().enumerate() {
        *tap = g.tap_at(i as u32 / g.kw, i as u32 % g.kw);
    }
    for row in tile.rows.clone() {
        for cols in blocks(tile.cols.clone(), OUTPUTS as u32) {
            for first in (tile.ocs.start as usize..tile.ocs.end as usize).step_by(LANES) {
                let job = Job {
                    x: x.wrapping_add(g.x_at(row, cols.start) + first),
                    x_output: g.x_step(),
                    taps,
                    weights: &weights[first / LANES * taps.len()..][..taps.len()],
                    bias: s.bias[first..][..LANES].try_into().expect("bias is padded to whole blocks"),
                };
                let mut sums = [[0; LANES]; OUTPUTS];
                let lanes = LANES.min(tile.ocs.end as usize - first);
                // SAFETY: the processor has AVX2; all taps of these outputs are readable, of a last block of fewer
                // channels with at most 15 bytes more, less than READ_AFTER; pixels and channels belong to the tile.
                unsafe {
                    BY_OUTPUTS[cols.len() - 1](&job, &mut sums);
                    for (sums, col) in sums.iter().zip(cols.clone()) {
                        let mut residual = [0; LANES];
                        if e.has_residual {
                            r.add(g.r_at(row, col) + first)
                                .copy_to_nonoverlapping(residual.as_mut_ptr(), lanes);
                        }
                        let bytes = dense_avx2::requant(s.mult[first..].as_ptr(), e, sums, &residual);
                        let y = y.add(g.y_at(row, col) + first);
                        match lanes {
                            LANES => y.cast::<[u8; LANES]>().write(bytes),
                            _ => y.copy_from_nonoverlapping(bytes.as_ptr(), lanes),
                        }
                    }
                }
            }
        }
    }
}

/// Outputs that lie in one row, of one block of channels.
struct Job<'a> {
    /// Tap (0, 0) of the first output.
    x: *const u8,
    /// Bytes from one output to the next.
    x_output: usize,
    /// Bytes from tap (0, 0) to each tap.
    taps: &'a [usize],
    weights: &'a [[i8; LANES]],
    bias: &'a [i32; LANES],
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
