//! A register of floats, for kernels whose sums must stay in registers: plain loops leave that to chance.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// `COUNT` floats. Only `multiply_add` rounds differently by kind: once where the processor fuses it, else twice.
///
/// Every function is inlined into a caller compiled for the instruction set; the processor must have it.
pub trait Lanes: Copy {
    const COUNT: usize;

    /// # Safety
    /// The processor has the instructions of this kind.
    unsafe fn zero() -> Self;

    /// # Safety
    /// As [`Lanes::zero`], and `COUNT` floats may be read at `from`.
    unsafe fn load(from: *const f32) -> Self;

    /// # Safety
    /// As [`Lanes::zero`], and `COUNT` floats may be written at `to`.
    unsafe fn store(self, to: *mut f32);

    /// self + a * b
    ///
    /// # Safety
    /// As [`Lanes::zero`].
    unsafe fn multiply_add(self, a: Self, b: Self) -> Self;

    /// # Safety
    /// As [`Lanes::zero`].
    unsafe fn add(self, other: Self) -> Self;

    /// # Safety
    /// As [`Lanes::zero`].
    unsafe fn sub(self, other: Self) -> Self;

    /// # Safety
    /// As [`Lanes::zero`].
    unsafe fn scale(self, by: f32) -> Self;

    /// Between two bounds; NaN stays NaN.
    ///
    /// # Safety
    /// As [`Lanes::zero`].
    unsafe fn clamp(self, min: f32, max: f32) -> Self;
}

#[cfg(target_arch = "x86_64")]
impl Lanes for __m512 {
    const COUNT: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the processor has AVX-512 by the caller's promise.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise; no alignment is asked.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise; no alignment is asked.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, a: Self, b: Self) -> Self {
        // SAFETY: the processor has AVX-512 by the caller's promise.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the processor has AVX-512 by the caller's promise.
        unsafe { _mm512_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: the processor has AVX-512 by the caller's promise.
        unsafe { _mm512_sub_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn scale(self, by: f32) -> Self {
        // SAFETY: the processor has AVX-512 by the caller's promise.
        unsafe { _mm512_mul_ps(self, _mm512_set1_ps(by)) }
    }

    #[inline(always)]
    unsafe fn clamp(self, min: f32, max: f32) -> Self {
        // Bounds come first: these instructions return their second operand when one is NaN.
        // SAFETY: the processor has AVX-512 by the caller's promise.
        unsafe { _mm512_min_ps(_mm512_set1_ps(max), _mm512_max_ps(_mm512_set1_ps(min), self)) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for __m256 {
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the processor has AVX2 by the caller's promise.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise; no alignment is asked.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise; no alignment is asked.
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, a: Self, b: Self) -> Self {
        // SAFETY: the processor has FMA by the caller's promise.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the processor has AVX2 by the caller's promise.
        unsafe { _mm256_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: the processor has AVX2 by the caller's promise.
        unsafe { _mm256_sub_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn scale(self, by: f32) -> Self {
        // SAFETY: the processor has AVX2 by the caller's promise.
        unsafe { _mm256_mul_ps(self, _mm256_set1_ps(by)) }
    }

    #[inline(always)]
    unsafe fn clamp(self, min: f32, max: f32) -> Self {
        // Bounds come first: these instructions return their second operand when one is NaN.
        // SAFETY: the processor has AVX2 by the caller's promise.
        unsafe { _mm256_min_ps(_mm256_set1_ps(max), _mm256_max_ps(_mm256_set1_ps(min), self)) }
    }
}

#[cfg(target_arch = "aarch64")]
impl Lanes for float32x4_t {
    const COUNT: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the processor has NEON by the caller's promise.
        unsafe { vdupq_n_f32(0.0) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise; no alignment is asked.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise; no alignment is asked.
        unsafe { vst1q_f32(to, self) }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, a: Self, b: Self) -> Self {
        // SAFETY: the processor has NEON by the caller's promise.
        unsafe { vfmaq_f32(self, a, b) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the processor has NEON by the caller's promise.
        unsafe { vaddq_f32(self, other) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: the processor has NEON by the caller's promise.
        unsafe { vsubq_f32(self, other) }
    }

    #[inline(always)]
    unsafe fn scale(self, by: f32) -> Self {
        // SAFETY: the processor has NEON by the caller's promise.
        unsafe { vmulq_n_f32(self, by) }
    }

    #[inline(always)]
    unsafe fn clamp(self, min: f32, max: f32) -> Self {
        // SAFETY: the processor has NEON by the caller's promise; these instructions keep a NaN.
        unsafe { vminq_f32(vmaxq_f32(self, vdupq_n_f32(min)), vdupq_n_f32(max)) }
    }
}

/// The first `count` floats at `from`, 4 at most; the other lanes are 0.
///
/// # Safety
/// So many floats may be read.
#[cfg(target_arch = "aarch64")]
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn load_some(from: *const f32, count: usize) -> float32x4_t {
    let mut v = vdupq_n_f32(0.0);
    // SAFETY: the caller's promise: each lane is read if it is one of the first `count`.
    unsafe {
        if count > 3 {
            return vld1q_f32(from);
        }
        if count > 0 {
            v = vld1q_lane_f32::<0>(from, v);
        }
        if count > 1 {
            v = vld1q_lane_f32::<1>(from.add(1), v);
        }
        if count > 2 {
            v = vld1q_lane_f32::<2>(from.add(2), v);
        }
    }
    v
}

/// Writes the first `count` lanes, 4 at most, to `to`.
///
/// # Safety
/// So many floats may be written.
#[cfg(target_arch = "aarch64")]
#[inline]
#[target_feature(enable = "neon")]
pub unsafe fn store_some(v: float32x4_t, to: *mut f32, count: usize) {
    // SAFETY: the caller's promise: each lane is written if it is one of the first `count`.
    unsafe {
        if count > 3 {
            return vst1q_f32(to, v);
        }
        if count > 0 {
            vst1q_lane_f32::<0>(to, v);
        }
        if count > 1 {
            vst1q_lane_f32::<1>(to.add(1), v);
        }
        if count > 2 {
            vst1q_lane_f32::<2>(to.add(2), v);
        }
    }
}

/// Any processor. Four fill its smallest registers; one is for what is left.
impl<const N: usize> Lanes for [f32; N] {
    const COUNT: usize = N;

    #[inline(always)]
    unsafe fn zero() -> Self {
        [0.0; N]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: `N` floats may be read, by the caller's promise; floats in an array need no other alignment.
        unsafe { from.cast::<[f32; N]>().read() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: `N` floats may be written, by the caller's promise.
        unsafe { to.cast::<[f32; N]>().write(self) }
    }

    #[inline(always)]
    unsafe fn multiply_add(mut self, a: Self, b: Self) -> Self {
        for i in 0..N {
            self[i] += a[i] * b[i];
        }
        self
    }

    #[inline(always)]
    unsafe fn add(mut self, other: Self) -> Self {
        for i in 0..N {
            self[i] += other[i];
        }
        self
    }

    #[inline(always)]
    unsafe fn sub(mut self, other: Self) -> Self {
        for i in 0..N {
            self[i] -= other[i];
        }
        self
    }

    #[inline(always)]
    unsafe fn scale(self, by: f32) -> Self {
        self.map(|v| v * by)
    }

    #[inline(always)]
    unsafe fn clamp(self, min: f32, max: f32) -> Self {
        self.map(|v| {
            let v = if v < min { min } else { v };
            if v > max { max } else { v }
        })
    }
}
