//! Depthwise f32 convolutions on AVX-512, AVX2 and NEON: up to four neighbouring outputs of one vector of channels.
//!
//! Windows 3 and 5 wide, with strides 1 and 2, read each input once for all outputs and columns of the window that
//! need it. Channels are the innermost loop, so that memory is read and written in its own order. Weights are packed as
//! the portable row packs them.

use super::depthwise::FORMAT;
use super::packed::{LANES, read};
use super::{Operands, blocks};
#[cfg(target_arch = "aarch64")]
use lacuna_kernels::lanes::{load_some, store_some};
#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// The most outputs at a time.
const OUTPUTS: usize = 4;

/// Outputs that lie in one row: strides are elements, `x`, `y` and the residual are those of the first output's channel 0.
struct Job<'a> {
    x: *const f32,
    /// From one output to the next, from one column of the window to the next, from one row to the next.
    x_output: usize,
    x_column: usize,
    x_line: usize,
    kh: usize,
    kw: usize,
    /// `[block of 16 channels][tap][16]`
    weights: &'a [f32],
    bias: &'a [f32],
    channels: std::ops::Range<usize>,
    y: *mut f32,
    y_output: usize,
    r: Option<*const f32>,
    r_output: usize,
    min: f32,
    max: f32,
}

/// A register of channels.
///
/// # Safety (of all)
/// The processor has the instructions; pointers hold the lanes in question.
trait Vector: Copy {
    const COUNT: usize;
    unsafe fn zero() -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn multiply_add(self, a: Self, b: Self) -> Self;
    /// Adds the first `lanes` of a residual, clamps, and writes as many.
    unsafe fn finish(self, residual: Option<*const f32>, min: f32, max: f32, lanes: usize, to: *mut f32);
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m512 {
    const COUNT: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn finish(self, residual: Option<*const f32>, min: f32, max: f32, lanes: usize, to: *mut f32) {
        let mask = (0xffffu32 >> (16 - lanes.min(16))) as __mmask16;
        // SAFETY: the mask keeps to the lanes in question.
        unsafe {
            let sum = match residual {
                Some(r) => _mm512_add_ps(self, _mm512_maskz_loadu_ps(mask, r)),
                None => self,
            };
            // Bounds come first: these instructions return their second operand when one is NaN.
            let sum = _mm512_min_ps(_mm512_set1_ps(max), _mm512_max_ps(_mm512_set1_ps(min), sum));
            match lanes >= Self::COUNT {
                true => _mm512_storeu_ps(to, sum),
                false => _mm512_mask_storeu_ps(to, mask, sum),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m256 {
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn finish(self, residual: Option<*const f32>, min: f32, max: f32, lanes: usize, to: *mut f32) {
        // SAFETY: the mask keeps to the lanes in question.
        unsafe {
            let (min, max) = (_mm256_set1_ps(min), _mm256_set1_ps(max));
            if lanes >= Self::COUNT {
                let sum = residual.map_or(self, |r| _mm256_add_ps(self, _mm256_loadu_ps(r)));
                return _mm256_storeu_ps(to, _mm256_min_ps(max, _mm256_max_ps(min, sum)));
            }
            // A store with a mask takes some twenty cycles on AMD's processors.
            let index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes as i32), index);
            let sum = residual.map_or(self, |r| _mm256_add_ps(self, _mm256_maskload_ps(r, mask)));
            _mm256_maskstore_ps(to, mask, _mm256_min_ps(max, _mm256_max_ps(min, sum)));
        }
    }
}

/// Two registers: one alone would leave the units that add waiting for each other's sums.
#[cfg(target_arch = "aarch64")]
impl Vector for [float32x4_t; 2] {
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        unsafe { [vdupq_n_f32(0.0); 2] }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { [vaddq_f32(self[0], other[0]), vaddq_f32(self[1], other[1])] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { [vld1q_f32(from), vld1q_f32(from.add(4))] }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { [vfmaq_f32(self[0], a[0], b[0]), vfmaq_f32(self[1], a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn finish(self, residual: Option<*const f32>, min: f32, max: f32, lanes: usize, to: *mut f32) {
        // SAFETY: the lanes in question are those of the two registers.
        unsafe {
            let (min, max) = (vdupq_n_f32(min), vdupq_n_f32(max));
            for i in 0..2 {
                let lanes = lanes.saturating_sub(4 * i);
                let sum = match residual {
                    Some(r) => vaddq_f32(self[i], load_some(r.wrapping_add(4 * i), lanes)),
                    None => self[i],
                };
                // These instructions keep a NaN.
                store_some(vminq_f32(vmaxq_f32(sum, min), max), to.wrapping_add(4 * i), lanes);
            }
        }
    }
}

/// Asks for the line of an element that will be read soon.
#[inline(always)]
fn fetch(at: *const f32) {
    // SAFETY: a hint, which may name any address.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    // Rust has no such hint for other processors yet.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// `P` outputs. `KW` is the window's width and `S` the outputs' distance in inputs, where outputs share their inputs;
/// with 0 each reads its own.
///
/// # Safety
/// The processor has the vector's instructions; the job's outputs belong to the tile, and all their taps are readable.
#[inline(always)]
unsafe fn outputs<V: Vector, const KW: usize, const S: usize, const P: usize>(job: &Job<'_>) {
    let taps = job.kh * job.kw;
    for channel in job.channels.clone().step_by(V::COUNT) {
        let weights = &job.weights[channel / LANES * taps * LANES..][..taps * LANES];
        let weights = weights.as_ptr().wrapping_add(channel % LANES);
        let x = job.x.wrapping_add(channel);
        // SAFETY: bias and weights are padded to whole blocks of 16 channels; a last vector reads at most 15 elements
        // more of x, less than READ_AFTER.
        unsafe {
            if KW > 0 {
                // Of the last row, which nothing has read yet, what outputs to the right will read.
                let ahead = x.wrapping_add((job.kh - 1) * job.x_line + 2 * P * S * job.x_column);
                for i in 0..P * S {
                    fetch(ahead.wrapping_add(i * job.x_column));
                }
            }
            let mut sums = [V::zero(); P];
            for ky in 0..job.kh {
                let x = x.wrapping_add(ky.wrapping_mul(job.x_line));
                let weights = weights.add(ky * job.kw * LANES);
                if KW > 0 {
                    let mut w = [sums[0]; KW];
                    for kx in 0..KW {
                        w[kx] = V::load(weights.add(kx * LANES));
                    }
                    for i in 0..(P - 1) * S + KW {
                        let input = V::load(x.add(i * job.x_column));
                        for p in 0..P {
                            if i >= p * S && i < p * S + KW {
                                sums[p] = sums[p].multiply_add(input, w[i - p * S]);
                            }
                        }
                    }
                } else {
                    for kx in 0..job.kw {
                        let w = V::load(weights.add(kx * LANES));
                        let x = x.wrapping_add(kx.wrapping_mul(job.x_column));
                        for p in 0..P {
                            let input = V::load(x.wrapping_add(p.wrapping_mul(job.x_output)));
                            sums[p] = sums[p].multiply_add(input, w);
                        }
                    }
                }
            }
            // A bias that sums begin with would make their rounding errors larger.
            let bias = V::load(job.bias.as_ptr().add(channel));
            for p in 0..P {
                let r = job.r.map(|r| r.wrapping_add(p * job.r_output + channel));
                let to = job.y.wrapping_add(p * job.y_output + channel);
                sums[p].add(bias).finish(r, job.min, job.max, job.channels.end - channel, to);
            }
        }
    }
}

type OutputsFn = unsafe fn(&Job<'_>);

/// By outputs: any window, then the windows and strides that share inputs.
struct Functions {
    any: [OutputsFn; OUTPUTS],
    three: [[OutputsFn; OUTPUTS]; 2],
    five: [[OutputsFn; OUTPUTS]; 2],
}

macro_rules! functions {
    ($table:ident, $function:ident, $vector:ty, $features:literal) => {
        /// # Safety
        /// As [`outputs`].
        #[target_feature(enable = $features)]
        unsafe fn $function<const KW: usize, const S: usize, const P: usize>(job: &Job<'_>) {
            // SAFETY: the caller's promise.
            unsafe { outputs::<$vector, KW, S, P>(job) }
        }

        const $table: Functions = Functions {
            any: [$function::<0, 0, 1>, $function::<0, 0, 2>, $function::<0, 0, 3>, $function::<0, 0, 4>],
            three: [
                [$function::<3, 1, 1>, $function::<3, 1, 2>, $function::<3, 1, 3>, $function::<3, 1, 4>],
                [$function::<3, 2, 1>, $function::<3, 2, 2>, $function::<3, 2, 3>, $function::<3, 2, 4>],
            ],
            five: [
                [$function::<5, 1, 1>, $function::<5, 1, 2>, $function::<5, 1, 3>, $function::<5, 1, 4>],
                [$function::<5, 2, 1>, $function::<5, 2, 2>, $function::<5, 2, 3>, $function::<5, 2, 4>],
            ],
        };
    };
}
#[cfg(target_arch = "x86_64")]
functions!(AVX512, outputs_avx512, __m512, "avx512f");
#[cfg(target_arch = "x86_64")]
functions!(AVX2, outputs_avx2, __m256, "avx2,fma");
#[cfg(target_arch = "aarch64")]
functions!(NEON, outputs_neon, [float32x4_t; 2], "neon");

/// # Safety
/// See [`super::RunFn`].
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn run_avx512(o: &Operands<'_>) {
    // SAFETY: as the caller promises.
    unsafe { run(&AVX512, o) };
}

/// # Safety
/// See [`super::RunFn`].
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn run_avx2(o: &Operands<'_>) {
    // SAFETY: as the caller promises.
    unsafe { run(&AVX2, o) };
}

/// # Safety
/// See [`super::RunFn`].
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn run_neon(o: &Operands<'_>) {
    // SAFETY: as the caller promises.
    unsafe { run(&NEON, o) };
}

/// # Safety
/// See [`super::RunFn`]; the processor has the instructions of `functions`.
unsafe fn run(functions: &Functions, o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, ref tile, .. } = o;
    let (x, r, y) = o.floats();
    tile.check(g, LANES);
    let s = read(FORMAT, g, packed);
    let by_outputs = match (g.kw, g.dw, g.sw) {
        (3, 1, 1 | 2) => &functions.three[g.sw as usize - 1],
        (5, 1, 1 | 2) => &functions.five[g.sw as usize - 1],
        _ => &functions.any,
    };
    for row in tile.rows.clone() {
        for cols in blocks(tile.cols.clone(), OUTPUTS as u32) {
            let job = Job {
                x: x.wrapping_add(g.x_at(row, cols.start)),
                x_output: g.x_step(),
                x_column: (g.dw as usize).wrapping_mul(g.x_pixel as usize),
                x_line: (g.dh as usize).wrapping_mul(g.x_row as usize),
                kh: g.kh as usize,
                kw: g.kw as usize,
                weights: bytemuck::cast_slice(s.data),
                bias: bytemuck::cast_slice(s.bias),
                channels: tile.ocs.start as usize..tile.ocs.end as usize,
                y: y.wrapping_add(g.y_at(row, cols.start)),
                y_output: g.y_pixel as usize,
                r: e.has_residual.then(|| r.wrapping_add(g.r_at(row, cols.start))),
                r_output: g.r_pixel as usize,
                min: e.min,
                max: e.max,
            };
            // SAFETY: as the caller promises.
            unsafe { by_outputs[cols.len() - 1](&job) };
        }
    }
}
