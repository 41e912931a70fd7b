//! f32 functions that are one fixed sequence of operations, and sums in one fixed order: vector code that repeats
//! them gives the same bits. `mul_add` is rounded once, on every machine.

/// Sums have this many lanes: element `i` is added to lane `i % LANES`. Enough for four chains of additions in
/// registers of sixteen.
pub const LANES: usize = 64;

/// The sum of the lanes: neighbours half of what is left apart, halving.
#[inline(always)]
pub fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// 1.5 * 2^23: adding it to `|x| < 2^22` and taking it away again rounds to nearest even.
pub const ROUND: f32 = 12_582_912.0;

/// What [`exp2_value`] takes as the smallest exponent, and for what is not a number.
pub const EXP2_MIN: f32 = -100.0;

/// `(2^f - 1) / f` for |f| <= 1/2, lowest power first: a minimax fit.
pub const EXP2: [f32; 4] = [0.693_124_2, 0.240_240_99, 0.055_906_43, 0.009_582_851];

/// 2^x for x up to 127, within 3e-6 of the result; 2^-100 below that.
#[inline(always)]
pub fn exp2_value(x: f32) -> f32 {
    let x = if x > EXP2_MIN { x } else { EXP2_MIN };
    let shifted = x + ROUND;
    let f = x - (shifted - ROUND);
    let mut p = EXP2[3];
    for c in [EXP2[2], EXP2[1], EXP2[0], 1.0] {
        p = p.mul_add(f, c);
    }
    // The low bits of `shifted` are the whole part; those above leave the word.
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// `ln(2)^n / n!`: the Taylor series of 2^f, which for |f| <= 1/2 is nearer than an f32 shows.
const EXP2_SERIES: [f32; 7] = [
    std::f32::consts::LN_2,
    0.240_226_5,
    0.055_504_11,
    0.009_618_129,
    0.001_333_355_8,
    0.000_154_035_3,
    0.000_015_252_734,
];

/// What [`exp_near`] takes as the smallest exponent, and for what is not a number.
const EXP_MIN: f32 = -69.0;

/// What `LOG2_E` lacks of the binary logarithm of e.
const LOG2_E_REST: f32 = 1.925_963e-8;

/// e^x for x up to 87, to two units in the last place: what many layers in a row may ask for. e^-69 below that.
///
/// Operation after operation for all elements, here and below, so that a processor waits for no result where they fill
/// several registers. Loops, because closures stay functions of their own here, without the caller's instructions.
#[inline(always)]
fn exp_near<const N: usize>(mut x: [f32; N]) -> [f32; N] {
    let (mut shifted, mut f) = ([0.0f32; N], [0.0f32; N]);
    for i in 0..N {
        x[i] = if x[i] > EXP_MIN { x[i] } else { EXP_MIN };
    }
    for i in 0..N {
        shifted[i] = std::f32::consts::LOG2_E * x[i] + ROUND;
    }
    // The fraction of x * log2(e), as if that were never rounded.
    for i in 0..N {
        f[i] = x[i].mul_add(std::f32::consts::LOG2_E, -(shifted[i] - ROUND));
    }
    for i in 0..N {
        f[i] = x[i].mul_add(LOG2_E_REST, f[i]);
    }
    let mut p = [EXP2_SERIES[6]; N];
    for k in (0..6).rev() {
        for i in 0..N {
            p[i] = p[i].mul_add(f[i], EXP2_SERIES[k]);
        }
    }
    for i in 0..N {
        let bits = p[i].mul_add(f[i], 1.0).to_bits().wrapping_add(shifted[i].to_bits() << 23);
        p[i] = f32::from_bits(bits);
    }
    p
}

/// e^x within 3e-7 of the result, for x from -69 to 87; 0 below.
#[inline(always)]
pub fn exp_value(x: f32) -> f32 {
    let [y] = exp_near([x]);
    let y = if x < EXP_MIN { 0.0 } else { y };
    if x.is_nan() { x } else { y }
}

/// `x * sigmoid(x)`, within 5e-7 of the result; -0 for x below -87.
#[inline(always)]
pub fn silu_value(x: f32) -> f32 {
    let [y] = silu_values([x]);
    y
}

/// [`silu_value`] of each.
#[inline(always)]
pub fn silu_values<const N: usize>(x: [f32; N]) -> [f32; N] {
    let mut y = exp_of_opposite(x);
    for i in 0..N {
        y[i] = x[i] / (1.0 + y[i]);
    }
    for i in 0..N {
        y[i] = if x[i] <= -EXP_MAX { -0.0 } else { y[i] };
    }
    y
}

/// `1 / (1 + exp(-x))`, within 5e-7 of the result; 0 for x below -87.
#[inline(always)]
pub fn sigmoid_value(x: f32) -> f32 {
    let [y] = sigmoid_values([x]);
    y
}

/// [`sigmoid_value`] of each.
#[inline(always)]
pub fn sigmoid_values<const N: usize>(x: [f32; N]) -> [f32; N] {
    let mut y = exp_of_opposite(x);
    for i in 0..N {
        y[i] = 1.0 / (1.0 + y[i]);
    }
    for i in 0..N {
        y[i] = if x[i] <= -EXP_MAX { 0.0 } else { y[i] };
    }
    for i in 0..N {
        y[i] = if x[i].is_nan() { x[i] } else { y[i] };
    }
    y
}

/// e^-x, and no more than e^87.
#[inline(always)]
fn exp_of_opposite<const N: usize>(mut x: [f32; N]) -> [f32; N] {
    for i in 0..N {
        x[i] = if -x[i] < EXP_MAX { -x[i] } else { EXP_MAX };
    }
    exp_near(x)
}

/// The hyperbolic tangent, within 3e-7 of the result.
#[inline(always)]
pub fn tanh_value(x: f32) -> f32 {
    let a = x.abs();
    let z = x * x;
    let mut small = TANH[4];
    for i in (0..4).rev() {
        small = small.mul_add(z, TANH[i]);
    }
    // The sum of a zero and its opposite has no sign of its own.
    let small = (small * z).mul_add(x, x).copysign(x);
    let twice = if a < 20.0 { 2.0 * a } else { 40.0 };
    let [e] = exp_near([twice]);
    let large = (1.0 - 2.0 / (1.0 + e)).copysign(x);
    let y = if a < 0.625 { small } else { large };
    if x.is_nan() { x } else { y }
}

/// `(tanh(x) / x - 1) / x²` in x² for |x| < 0.625, lowest power first: the fit of Cephes.
const TANH: [f32; 5] = [-0.333_332_8, 0.133_314_42, -0.053_739_715, 0.020_639_088, -0.005_704_988_7];

/// The largest power of e that is a normal number, nearly.
const EXP_MAX: f32 = 87.0;

/// `erf(x) / x` in x² for |x| <= 1, lowest power first: a minimax fit.
pub const ERF: [f32; 6] = [
    std::f32::consts::FRAC_2_SQRT_PI,
    -0.376_123_55,
    0.112_804_115,
    -0.026_717_707,
    0.004_924_789,
    -0.000_566_015_3,
];

/// `-log2(1 - erf(x))` for 1 <= x <= 4, lowest power first: a minimax fit.
pub const ERFC: [f32; 6] =
    [0.003_854_434_5, 1.612_123, 0.944_227_8, 0.127_872_14, -0.021_320_343, 0.001_659_711_1];

/// The error function, within 5e-7.
#[inline(always)]
pub fn erf_value(x: f32) -> f32 {
    let a = x.abs();
    let z = x * x;
    let mut small = ERF[5];
    for i in (0..5).rev() {
        small = small.mul_add(z, ERF[i]);
    }
    let a4 = if a < 4.0 { a } else { 4.0 };
    let mut power = ERFC[5];
    for i in (0..5).rev() {
        power = power.mul_add(a4, ERFC[i]);
    }
    let large = (1.0 - exp2_value(-power)).copysign(x);
    if a < 1.0 {
        small * x
    } else if a.is_nan() {
        x
    } else {
        large
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tangents_are_as_near_as_they_say() {
        for i in -40_000..40_000 {
            let x = i as f32 * 3e-4 + 1e-6;
            let want = f64::from(x).tanh();
            assert!((f64::from(tanh_value(x)) - want).abs() <= 3e-7 * want.abs(), "{x}: {}", tanh_value(x));
        }
        let ends = [f32::NEG_INFINITY, -0.0, 0.0, f32::INFINITY].map(|x| tanh_value(x).to_bits());
        assert_eq!(ends, [-1.0f32, -0.0, 0.0, 1.0].map(f32::to_bits));
        assert!(tanh_value(f32::NAN).is_nan());
    }

    #[test]
    fn exponentials_and_silu_are_as_near_as_they_say() {
        for i in -86_000..86_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            let near = |got: f32, want: f64, bound: f64| (f64::from(got) - want).abs() <= bound * want.abs();
            assert!(x < EXP_MIN || near(exp_value(x), exact, 3e-7), "{x}");
            assert!(near(sigmoid_value(x), 1.0 / (1.0 + 1.0 / exact), 5e-7), "{x}");
            assert!(near(silu_value(x), f64::from(x) / (1.0 + 1.0 / exact), 5e-7), "{x}");
        }
        assert_eq!([f32::NEG_INFINITY, -100.0, 0.0].map(exp_value), [0.0, 0.0, 1.0]);
        assert!(exp_value(f32::NAN).is_nan());
        assert_eq!([f32::NEG_INFINITY, f32::INFINITY].map(sigmoid_value), [0.0, 1.0]);
        assert!(sigmoid_value(f32::NAN).is_nan());
        assert_eq!(silu_value(f32::INFINITY), f32::INFINITY);
        assert!(silu_value(f32::NAN).is_nan());
        assert_eq!([f32::MIN, f32::NEG_INFINITY].map(silu_value), [0.0, 0.0]);
    }

    #[test]
    fn powers_and_the_error_function_are_as_near_as_they_say() {
        for i in -99_000..127_000 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp2();
            assert!((f64::from(exp2_value(x)) / want - 1.0).abs() < 3.2e-6, "{x}");
        }
        let least = exp2_value(-100.0);
        assert_eq!([exp2_value(f32::NEG_INFINITY), exp2_value(f32::NAN), exp2_value(-1e9)], [least; 3]);
        // The integral, by Simpson's rule.
        let (step, mut integral) = (1.0 / 1024.0, 0.0f64);
        let density = |x: f64| (-x * x).exp() * std::f64::consts::FRAC_2_SQRT_PI;
        for i in 0..6 * 1024 {
            let x = i as f64 * step;
            assert!((f64::from(erf_value(x as f32)) - integral).abs() < 5e-7, "{x}");
            assert!((f64::from(erf_value(-x as f32)) + integral).abs() < 5e-7, "{x}");
            integral += step / 6.0 * (density(x) + 4.0 * density(x + step / 2.0) + density(x + step));
        }
        assert_eq!([erf_value(f32::INFINITY), erf_value(-1e30), erf_value(0.0)], [1.0, -1.0, 0.0]);
        assert!(erf_value(f32::NAN).is_nan());
    }

    #[test]
    fn lanes_are_summed_by_halves() {
        let mut lanes = [0.0; LANES];
        (lanes[0], lanes[8], lanes[4]) = (1.0, -1.0, 3.0);
        assert_eq!(sum_lanes(lanes), 3.0);
        (lanes[0], lanes[8], lanes[1]) = (1e30, -1e30, 5.0);
        assert_eq!(sum_lanes(lanes), 8.0);
    }
}
