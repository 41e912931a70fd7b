//! Activations against f64, their gradients against differences, at every length.

use lacuna_kernels::activation::{self, Act};

const ACTS: [Act; 9] = [
    Act::None,
    Act::Relu,
    Act::Relu6,
    Act::Leaky,
    Act::Silu,
    Act::HardSwish,
    Act::Sigmoid,
    Act::Gelu,
    Act::GeluTanh,
];

/// erf by its Taylor series for small |x| and by the continued fraction of erfc beyond.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..200 {
            term *= -a * a / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let fraction = (1..100).rev().fold(a, |f, k| a + k as f64 / 2.0 / f);
        1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

fn value(act: Act, x: f64) -> f64 {
    match act {
        Act::None => x,
        Act::Relu => x.max(0.0),
        Act::Relu6 => x.clamp(0.0, 6.0),
        Act::Leaky => {
            if x < 0.0 {
                0.1 * x
            } else {
                x
            }
        }
        Act::Silu => x / (1.0 + (-x).exp()),
        Act::HardSwish => x * (x + 3.0).clamp(0.0, 6.0) / 6.0,
        Act::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Act::Gelu => x * 0.5 * (1.0 + erf(x / 2f64.sqrt())),
        Act::GeluTanh => {
            x * 0.5 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
    }
}

/// -30 to 30, away from the corners of ReLU6 and hard swish by more than the step of a difference.
fn points(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i as f32 + 0.337) * 60.0 / len as f32 - 30.0).collect()
}

#[test]
fn exponential_is_good_to_two_ulp() {
    let mut worst = 0f64;
    for i in 0..400_000 {
        let x = -87.3 + i as f32 * (175.9 / 400_000.0);
        let expected = (x as f64).exp();
        let ulp = f32::from_bits((expected as f32).to_bits() + 1) as f64 - expected as f32 as f64;
        worst = worst.max((activation::exp(x) as f64 - expected).abs() / ulp);
    }
    assert!(worst < 2.0, "{worst} ulp");
}

#[test]
fn exponential_of_extremes() {
    let mut x = [0.0f32; 8];
    x[..7].copy_from_slice(&[0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 88.8, -200.0, f32::NAN]);
    // Below the smallest normal number the result has fewer bits, not none.
    x[7] = -95.0;
    x.iter_mut().for_each(|x| *x = activation::exp(*x));
    assert_eq!(x[..6], [1.0, 1.0, f32::INFINITY, 0.0, f32::INFINITY, 0.0]);
    assert!(x[6].is_nan());
    assert!((x[7] as f64 - (-95f64).exp()).abs() < 2e-45, "{}", x[7]);
}

#[test]
fn normal_distribution_function_is_good_to_1e_7() {
    for i in 0..200_000 {
        let x = -10.0 + i as f32 * 1e-4;
        let (cdf, density) = activation::normal_cdf(x);
        let x = x as f64;
        assert!((cdf as f64 - 0.5 * (1.0 + erf(x / 2f64.sqrt()))).abs() < 1e-7, "cdf({x})");
        assert!((density as f64 - (-0.5 * x * x).exp()).abs() < 1e-7, "density({x})");
    }
}

#[test]
fn values_agree_with_f64_at_every_length() {
    for act in ACTS {
        for len in [0, 1, 15, 16, 17, 100, 50_001] {
            let x = points(len);
            let mut y = vec![f32::NAN; len];
            activation::forward(act, &x, &mut y);
            for (&x, &y) in x.iter().zip(&y) {
                let expected = value(act, x as f64);
                let error = (y as f64 - expected).abs();
                assert!(error <= 2e-7 * (1.0 + x.abs() as f64), "{act:?}({x}) = {y}, not {expected}");
            }
        }
    }
}

#[test]
fn gradients_agree_with_differences_at_every_length() {
    for act in ACTS {
        for len in [1, 17, 50_001] {
            let x = points(len);
            let dy: Vec<f32> = (0..len).map(|i| 0.5 + (i % 7) as f32).collect();
            let mut dx = vec![f32::NAN; len];
            activation::backward(act, &x, &dy, &mut dx);
            for i in 0..len {
                let at = x[i] as f64;
                // The corners have no derivative.
                if [0.0, 6.0, 3.0, -3.0].iter().any(|corner: &f64| (at - corner).abs() < 1e-4) {
                    continue;
                }
                let slope = (value(act, at + 1e-5) - value(act, at - 1e-5)) / 2e-5;
                let error = (dx[i] as f64 - dy[i] as f64 * slope).abs();
                assert!(error < 1e-6 * dy[i] as f64, "{act:?}'({at}) · {} = {}, not {slope}", dy[i], dx[i]);
            }
        }
    }
}

#[test]
fn not_a_number_stays_one() {
    for act in ACTS {
        let mut y = [0.0; 1];
        activation::forward(act, &[f32::NAN], &mut y);
        assert!(y[0].is_nan(), "{act:?}");
    }
}
