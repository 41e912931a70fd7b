//! Vectors of floats for kernels that work on rows: sums and exponentials that plain loops do not become.

/// `COUNT` floats. Whoever has one runs on a processor with its instructions: the first is made by [`by_vector!`], all
/// others come from it.
pub trait Vector: Copy {
    const COUNT: usize;

    fn splat(self, x: f32) -> Self;
    /// The first `COUNT` floats.
    fn load(self, from: &[f32]) -> Self;
    /// Into the first `COUNT` floats.
    fn store(self, to: &mut [f32]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    /// self * a + b, rounded once where the processor can.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// The larger of each two; `other` where one is NaN.
    fn larger(self, other: Self) -> Self;
    /// The nearest whole numbers, for numbers below 2^22.
    fn rounded(self) -> Self;
    /// self * 2^n for whole n up to 127; 0 for n below -126.
    fn times_power(self, n: Self) -> Self;
    fn sum(self) -> f32;
    fn largest(self) -> f32;

    /// `count` floats from `at`; where that is fewer than `COUNT`, then `fill`.
    #[inline(always)]
    fn read(self, from: &[f32], at: usize, count: usize, fill: f32) -> Self {
        if count == Self::COUNT {
            return self.load(&from[at..at + Self::COUNT]);
        }
        let mut floats = [fill; MOST];
        floats[..count].copy_from_slice(&from[at..at + count]);
        self.load(&floats)
    }

    /// The first `count` to `to[at..]`.
    #[inline(always)]
    fn write(self, to: &mut [f32], at: usize, count: usize) {
        if count == Self::COUNT {
            return self.store(&mut to[at..at + Self::COUNT]);
        }
        let mut floats = [0.0; MOST];
        self.store(&mut floats);
        to[at..at + count].copy_from_slice(&floats[..count]);
    }

    /// e^x within 2 units of the last place, for x up to 88; 0 below -87.7, NaN of NaN.
    #[inline(always)]
    fn exp(self) -> Self {
        // e^x = 2^n e^r with |r| <= ln 2 / 2; ln 2 in two parts, so that n times the first is exact.
        let x = self.splat(-104.0).larger(self);
        let n = x.mul(self.splat(std::f32::consts::LOG2_E)).rounded();
        let r = n.mul_add(self.splat(-0.693_359_4), x);
        let r = n.mul_add(self.splat(2.121_944_4e-4), r);
        let [first, rest @ ..] = EXP;
        let mut p = self.splat(first);
        for coefficient in rest {
            p = p.mul_add(r, self.splat(coefficient));
        }
        let e = p.mul_add(r.mul(r), r.add(self.splat(1.0)));
        e.times_power(n)
    }
}

/// Floats of the largest vector.
const MOST: usize = 16;

/// (e^r - 1 - r) / r^2 for |r| <= ln 2 / 2, highest power first: a minimax fit, 2e-9 of e^r off.
const EXP: [f32; 5] = [1.381_446_7e-3, 8.368_781e-3, 4.166_839e-2, 1.666_652e-1, 4.999_999_4e-1];

/// Does `$body` with the place and the count of each of the vectors that `$len` floats make; the last count may be smaller.
/// (A macro, as a closure would not be compiled for the instruction set.)
macro_rules! each_vector {
    ($vector:ty, $len:expr, |$at:ident, $count:ident| $body:expr) => {{
        let len = $len;
        let whole = len - len % <$vector>::COUNT;
        let mut $at = 0;
        while $at < whole {
            let $count = <$vector>::COUNT;
            $body;
            $at += <$vector>::COUNT;
        }
        if whole < len {
            let $count = len - whole;
            $body;
        }
    }};
}
pub(crate) use each_vector;

/// Compiles a function of `Vector`s once per instruction set and calls the best one of this processor:
/// `by_vector! { fn name(arguments) -> result = generic_function }`, where `generic_function` takes a vector first and is
/// `#[inline(always)]`, as is all that it calls.
macro_rules! by_vector {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: compiled for, and only called on, processors with the instructions.
                    $body(unsafe { $crate::vector::Avx2::new() }, $($arg),*)
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: as above.
                    $body(unsafe { $crate::vector::Avx512::new() }, $($arg),*)
                }
                match $crate::isa::Isa::best() {
                    // SAFETY: the processor has these instructions.
                    $crate::isa::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::isa::Isa::Portable | $crate::isa::Isa::Neon => {}
                }
            }
            $body($crate::vector::Portable::new(), $($arg),*)
        }
    };
}
pub(crate) use by_vector;

#[derive(Clone, Copy)]
pub struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    pub fn new() -> Self {
        Portable([0.0; 8])
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Vector for Portable {
    const COUNT: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> Self {
        Portable([x; 8])
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> Self {
        Portable(std::array::from_fn(|i| from[i]))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..8].copy_from_slice(&self.0);
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        self.mul(a).add(b)
    }

    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn rounded(self) -> Self {
        // 1.5 * 2^23: a sum with it has no bits left for a fraction.
        let whole = self.splat(12_582_912.0);
        self.add(whole).sub(whole)
    }

    #[inline(always)]
    fn times_power(self, n: Self) -> Self {
        self.zip(n, |x, n| x * f32::from_bits(((n as i32 + 127).max(0) as u32) << 23))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let x = self.0;
        ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]))
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
}

macro_rules! x86_vector {
    ($name:ident, $inner:ident, $count:literal, $set1:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident,
     $fma:ident, $max:ident, |$x:ident| $rounded:expr, |$y:ident, $n:ident| $power:expr, |$s:ident| $sum:expr,
     |$l:ident| $largest:expr) => {
        #[cfg(target_arch = "x86_64")]
        #[derive(Clone, Copy)]
        pub struct $name(std::arch::x86_64::$inner);

        #[cfg(target_arch = "x86_64")]
        impl $name {
            /// # Safety
            /// The processor has the instructions.
            #[inline(always)]
            pub unsafe fn new() -> Self {
                // SAFETY: by the caller's promise.
                $name(unsafe { std::arch::x86_64::$set1(0.0) })
            }
        }

        // SAFETY (of every block): a value of this type exists, so the processor has the instructions; loads and stores
        // go through arrays or slices of asserted length.
        #[cfg(target_arch = "x86_64")]
        impl Vector for $name {
            const COUNT: usize = $count;

            #[inline(always)]
            fn splat(self, x: f32) -> Self {
                // SAFETY: a value exists.
                $name(unsafe { std::arch::x86_64::$set1(x) })
            }

            #[inline(always)]
            fn load(self, from: &[f32]) -> Self {
                assert!(from.len() >= $count);
                // SAFETY: a value exists; the slice is long enough.
                $name(unsafe { std::arch::x86_64::$load(from.as_ptr()) })
            }

            #[inline(always)]
            fn store(self, to: &mut [f32]) {
                assert!(to.len() >= $count);
                // SAFETY: a value exists; the slice is long enough.
                unsafe { std::arch::x86_64::$store(to.as_mut_ptr(), self.0) }
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                // SAFETY: a value exists.
                $name(unsafe { std::arch::x86_64::$add(self.0, other.0) })
            }

            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                // SAFETY: a value exists.
                $name(unsafe { std::arch::x86_64::$sub(self.0, other.0) })
            }

            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                // SAFETY: a value exists.
                $name(unsafe { std::arch::x86_64::$mul(self.0, other.0) })
            }

            #[inline(always)]
            fn mul_add(self, a: Self, b: Self) -> Self {
                // SAFETY: a value exists.
                $name(unsafe { std::arch::x86_64::$fma(self.0, a.0, b.0) })
            }

            #[inline(always)]
            fn larger(self, other: Self) -> Self {
                // SAFETY: a value exists.
                $name(unsafe { std::arch::x86_64::$max(self.0, other.0) })
            }

            #[inline(always)]
            fn rounded(self) -> Self {
                let $x = self.0;
                // SAFETY: a value exists.
                $name(unsafe { $rounded })
            }

            #[inline(always)]
            fn times_power(self, n: Self) -> Self {
                let ($y, $n) = (self.0, n.0);
                // SAFETY: a value exists.
                $name(unsafe { $power })
            }

            #[inline(always)]
            fn sum(self) -> f32 {
                let $s = self.0;
                // SAFETY: a value exists.
                unsafe { $sum }
            }

            #[inline(always)]
            fn largest(self) -> f32 {
                let $l = self.0;
                // SAFETY: a value exists.
                unsafe { $largest }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

x86_vector!(
    Avx512,
    __m512,
    16,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_fmadd_ps,
    _mm512_max_ps,
    |x| _mm512_roundscale_ps::<0>(x),
    |x, n| _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(n, _mm512_set1_ps(-126.0)), x, n),
    |x| _mm512_reduce_add_ps(x),
    |x| _mm512_reduce_max_ps(x)
);

x86_vector!(
    Avx2,
    __m256,
    8,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_mul_ps,
    _mm256_fmadd_ps,
    _mm256_max_ps,
    |x| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x),
    |x, n| {
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        let exponent = _mm256_max_epi32(exponent, _mm256_setzero_si256());
        _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
    },
    |x| {
        let half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
        _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
    },
    |x| {
        let half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
        _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)))
    }
);
