//! Activation functions and their gradients: one pass over memory each, in parallel, in place where asked.
//!
//! The functions of one value ([`exp`], [`sigmoid`], [`normal_cdf`]) have no branches and no calls, so that
//! loops over them inside `by_isa!` become vector code; other kernels build on them.

use crate::by_isa;
use rayon::prelude::*;

/// What is applied behind a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    None,
    Relu,
    Relu6,
    /// x, a tenth of it below 0: Darknet's leaky ReLU.
    Leaky,
    /// x · sigmoid(x) (Ramachandran et al., 2017, with beta = 1).
    Silu,
    /// x · clamp(x + 3, 0, 6) / 6 (Howard et al., 2019).
    HardSwish,
    Sigmoid,
    /// x · Φ(x), Φ the normal distribution function (Hendrycks and Gimpel, 2016).
    Gelu,
    /// Gelu with Φ approximated by a tanh, as GPT-2 and PyTorch's `approximate="tanh"` compute it.
    GeluTanh,
}

/// Elements per task: worth a task, a fraction of a core's cache, and fixed so that nothing depends on threads.
pub(crate) const CHUNK: usize = 1 << 14;

/// e^x to 2 ulp; 0 below -103.98, infinity above 88.73, NaN of NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let (p, n) = exp_parts(x, -105.0, 89.0);
    // 2^n in two factors, as n passes the exponents of f32 at both ends.
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// [`exp`] with a range that f32 holds well: what lies outside -87 to 88 counts as -87 or 88.
#[inline(always)]
fn exp_bounded(x: f32) -> f32 {
    let (p, n) = exp_parts(x, -87.0, 88.0);
    p * power_of_two(n)
}

/// e^r and n with e^x = 2^n e^r, |r| <= ln 2 / 2, of x clamped to lo..hi.
#[inline(always)]
fn exp_parts(x: f32, lo: f32, hi: f32) -> (f32, i32) {
    // ln 2 is split so that n times its upper part is exact.
    const LN2_UPPER: f32 = 0.693_359_4;
    const LN2_LOWER: f32 = -2.121_944_4e-4;
    // 1.5 * 2^23: a sum with it has no bits left for a fraction, and n in its lowest ones.
    const WHOLE: f32 = 12_582_912.0;
    let x = if x < lo { lo } else { x };
    let x = if x > hi { hi } else { x };
    let shifted = x * std::f32::consts::LOG2_E + WHOLE;
    let n = shifted - WHOLE;
    let r = (x - n * LN2_UPPER) - n * LN2_LOWER;
    let p = EXP[4];
    let p = p * r + EXP[3];
    let p = p * r + EXP[2];
    let p = p * r + EXP[1];
    let p = p * r + EXP[0];
    ((p * (r * r) + r) + 1.0, shifted.to_bits().wrapping_sub(WHOLE.to_bits()) as i32)
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// (e^r - 1 - r) / r² for |r| <= ln 2 / 2: relative error of e^r 2e-9 (minimax fit, lowest power first).
const EXP: [f32; 5] = [0.499_999_93, 0.166_665_2, 0.041_668_39, 0.008_368_78, 0.001_381_45];

/// 1 / (1 + e^-x), at least 6e-39.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp_bounded(-x))
}

/// [`sigmoid`] and its derivative, which keeps its precision where the value rounds to 1.
#[inline(always)]
pub fn sigmoid_and_slope(x: f32) -> (f32, f32) {
    let e = exp_bounded(-x.abs());
    let above = 1.0 / (1.0 + e);
    let below = e * above;
    (if x < 0.0 { below } else { above }, below * above)
}

/// Φ(x) = (1 + erf(x / √2)) / 2 and e^(-x²/2), absolute errors below 1e-7.
#[inline(always)]
pub fn normal_cdf(x: f32) -> (f32, f32) {
    // Φ(-a) = e^(-a²/2) (1/2 + P(u)), u = 0.27 a / (1 + 0.27 a), after Abramowitz and Stegun 7.1.26. A polynomial
    // around a = 0 and not around infinity keeps the middle exact.
    let a = x.abs();
    let density = exp_bounded(-0.5 * (a * a));
    let scaled = 0.27 * a;
    let u = scaled / (1.0 + scaled);
    let p = TAIL[5];
    let p = p * u + TAIL[4];
    let p = p * u + TAIL[3];
    let p = p * u + TAIL[2];
    let p = p * u + TAIL[1];
    let p = p * u + TAIL[0];
    let below = (p * u + 0.5) * density;
    (if x < 0.0 { below } else { 1.0 - below }, density)
}

/// P by powers of u from the first, fitted to 6e-9 of Φ.
const TAIL: [f32; 6] = [-1.477_564_2, 1.951_789_3, -1.374_715_8, 0.299_002_83, 0.230_252_7, -0.131_558_28];

/// A function of one value with its gradient, chosen when the kernel is compiled.
pub(crate) trait Function {
    fn value(x: f32) -> f32;
    /// dy times the derivative at x.
    fn gradient(x: f32, dy: f32) -> f32;
}

macro_rules! functions {
    ($($name:ident |$x:ident| $value:expr, |$at:ident, $dy:ident| $gradient:expr;)*) => {$(
        pub(crate) struct $name;
        impl Function for $name {
            #[inline(always)]
            fn value($x: f32) -> f32 {
                $value
            }
            #[inline(always)]
            fn gradient($at: f32, $dy: f32) -> f32 {
                $gradient
            }
        }
    )*};
}

functions! {
    Identity |x| x, |_x, dy| dy;
    // Comparisons and not max/min, which would turn NaN into a number.
    Relu |x| if x < 0.0 { 0.0 } else { x }, |x, dy| if x > 0.0 { dy } else { 0.0 };
    Relu6 |x| clamp(x, 0.0, 6.0), |x, dy| if x > 0.0 && x < 6.0 { dy } else { 0.0 };
    Leaky |x| if x < 0.0 { LEAK * x } else { x }, |x, dy| if x < 0.0 { LEAK * dy } else { dy };
    Silu |x| x / (1.0 + exp_bounded(-x)), |x, dy| {
        let (s, slope) = sigmoid_and_slope(x);
        dy * (s + x * slope)
    };
    HardSwish |x| x * clamp(x + 3.0, 0.0, 6.0) * (1.0 / 6.0), |x, dy| {
        let inside = dy * (x * (1.0 / 3.0) + 0.5);
        let below = if x > -3.0 { inside } else { 0.0 };
        if x < 3.0 { below } else { dy }
    };
    Sigmoid |x| sigmoid(x), |x, dy| dy * sigmoid_and_slope(x).1;
    Gelu |x| x * normal_cdf(x).0, |x, dy| {
        let (cdf, density) = normal_cdf(x);
        dy * (cdf + x * (density * INV_SQRT_2PI))
    };
    GeluTanh |x| x * sigmoid(x * (TANH_LINEAR + TANH_CUBIC * (x * x))), |x, dy| {
        let square = x * x;
        let (s, slope) = sigmoid_and_slope(x * (TANH_LINEAR + TANH_CUBIC * square));
        dy * (s + x * (TANH_LINEAR + 3.0 * TANH_CUBIC * square) * slope)
    };
}

/// What [`Act::Leaky`] multiplies negative values by.
pub const LEAK: f32 = 0.1;
const INV_SQRT_2PI: f32 = 0.398_942_3;
/// (1 + tanh u) / 2 = sigmoid(2 u), u = √(2/π) (x + 0.044715 x³): the factors of x and x³ in 2 u.
const TANH_LINEAR: f32 = 1.595_769;
const TANH_CUBIC: f32 = 0.071_354_82;

#[inline(always)]
fn clamp(x: f32, lo: f32, hi: f32) -> f32 {
    let x = if x < lo { lo } else { x };
    if x > hi { hi } else { x }
}

/// Runs `$body` with `$F` standing for the function of `$act`.
macro_rules! with_function {
    ($act:expr, $F:ident => $body:expr) => {
        match $act {
            $crate::activation::Act::None => {
                type $F = $crate::activation::Identity;
                $body
            }
            $crate::activation::Act::Relu => {
                type $F = $crate::activation::Relu;
                $body
            }
            $crate::activation::Act::Relu6 => {
                type $F = $crate::activation::Relu6;
                $body
            }
            $crate::activation::Act::Leaky => {
                type $F = $crate::activation::Leaky;
                $body
            }
            $crate::activation::Act::Silu => {
                type $F = $crate::activation::Silu;
                $body
            }
            $crate::activation::Act::HardSwish => {
                type $F = $crate::activation::HardSwish;
                $body
            }
            $crate::activation::Act::Sigmoid => {
                type $F = $crate::activation::Sigmoid;
                $body
            }
            $crate::activation::Act::Gelu => {
                type $F = $crate::activation::Gelu;
                $body
            }
            $crate::activation::Act::GeluTanh => {
                type $F = $crate::activation::GeluTanh;
                $body
            }
        }
    };
}
pub(crate) use with_function;

/// y = act(x).
///
/// # Panics
/// If lengths differ.
pub fn forward(act: Act, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "x and y differ in length");
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| forward_part(act, x, y));
}

/// dx = dy · act'(x). For ReLU and ReLU6, and for them alone, `x` may be the result of [`forward`].
///
/// # Panics
/// If lengths differ.
pub fn backward(act: Act, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert!(x.len() == dy.len() && x.len() == dx.len(), "x, dy and dx differ in length");
    let parts = dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK)));
    parts.for_each(|(dx, (x, dy))| backward_part(act, x, dy, dx));
}

/// y = v where x > threshold, else 0: the values above a threshold with v = x, their gradients with v = dy.
///
/// # Panics
/// If lengths differ.
pub fn above(threshold: f32, x: &[f32], v: &[f32], y: &mut [f32]) {
    assert!(x.len() == v.len() && x.len() == y.len(), "x, v and y differ in length");
    let parts = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK).zip(v.par_chunks(CHUNK)));
    parts.for_each(|(y, (x, v))| above_part(threshold, x, v, y));
}

by_isa! {
    fn above_part(threshold: f32, x: &[f32], v: &[f32], y: &mut [f32]) {
        for ((y, &x), &v) in y.iter_mut().zip(x).zip(v) {
            *y = if x > threshold { v } else { 0.0 };
        }
    }
}

by_isa! {
    fn forward_part(act: Act, x: &[f32], y: &mut [f32]) {
        with_function!(act, F => for (y, &x) in y.iter_mut().zip(x) { *y = F::value(x) })
    }
}

by_isa! {
    fn backward_part(act: Act, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        with_function!(act, F => for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) { *dx = F::gradient(x, dy) })
    }
}
