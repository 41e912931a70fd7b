//! Layer normalisation against f64, and its gradients against differences.

mod support;

use lacuna_kernels::layer_norm::{backward, forward};
use support::{assert_close, garbage, numbers, on_threads, wide};

const EPSILON: f32 = 1e-5;

fn expected(x: &[f64], gamma: &[f64], beta: &[f64]) -> Vec<f64> {
    let width = gamma.len();
    let normalise = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / width as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let std = (variance + f64::from(EPSILON)).sqrt();
        (0..width).map(|i| (x[i] - mean) / std * gamma[i] + beta[i]).collect::<Vec<f64>>()
    };
    x.chunks(width).flat_map(normalise).collect()
}

#[test]
fn agrees_with_f64_with_and_without_a_residual() {
    for (rows, width) in [(1, 1), (3, 7), (5, 16), (70, 384), (2000, 33), (1, 1000)] {
        let [x, residual] = [1, 2].map(|seed| numbers(rows * width, seed));
        let [gamma, beta] = [3, 4].map(|seed| numbers(width, seed));
        let sum: Vec<f32> = x.iter().zip(&residual).map(|(x, r)| x + r).collect();
        let plain = on_threads(|| {
            let (mut y, mut mean, mut inverse_std) = (garbage(x.len()), garbage(rows), garbage(rows));
            forward(&x, None, &gamma, &beta, EPSILON, &mut y, &mut mean, &mut inverse_std);
            y
        });
        assert_close(&plain, &expected(&wide(&x), &wide(&gamma), &wide(&beta)), 2e-5);
        let with_residual = on_threads(|| {
            let (mut y, mut mean, mut inverse_std) = (garbage(x.len()), garbage(rows), garbage(rows));
            let mut found = garbage(x.len());
            let residual = Some((&residual[..], &mut found[..]));
            forward(&x, residual, &gamma, &beta, EPSILON, &mut y, &mut mean, &mut inverse_std);
            assert_eq!(found, sum);
            y
        });
        assert_close(&with_residual, &expected(&wide(&sum), &wide(&gamma), &wide(&beta)), 2e-5);
    }
}

/// A mean a thousand times the deviation costs few digits.
#[test]
fn a_large_mean_keeps_the_variance() {
    let x: Vec<f32> = numbers(256, 1).iter().map(|x| 1000.0 + x).collect();
    let (gamma, beta) = (vec![1.0; 256], vec![0.0; 256]);
    let (mut y, mut mean, mut inverse_std) = (garbage(256), garbage(1), garbage(1));
    forward(&x, None, &gamma, &beta, EPSILON, &mut y, &mut mean, &mut inverse_std);
    assert_close(&y, &expected(&wide(&x), &wide(&gamma), &wide(&beta)), 1e-3);
}

/// The sum of dy * y, whose derivatives `backward` computes, differentiated in f64.
#[test]
fn gradients_agree_with_differences() {
    for (rows, width) in [(1, 1), (4, 7), (3, 16), (5, 37), (150, 3)] {
        let [x, dy] = [1, 2].map(|seed| numbers(rows * width, seed));
        let [gamma, beta] = [3, 4].map(|seed| numbers(width, seed));
        let found = on_threads(|| gradients(&x, &gamma, &beta, &dy));
        let loss = |parts: &[f64]| {
            let (x, rest) = parts.split_at(rows * width);
            let (gamma, beta) = rest.split_at(width);
            expected(x, gamma, beta).iter().zip(&dy).map(|(y, &dy)| y * f64::from(dy)).sum::<f64>()
        };
        let at = wide(&[x, gamma, beta].concat());
        let differences: Vec<f64> = (0..at.len())
            .map(|i| {
                let moved = |by: f64| {
                    loss(
                        &at.iter()
                            .enumerate()
                            .map(|(j, x)| if j == i { x + by } else { *x })
                            .collect::<Vec<_>>(),
                    )
                };
                (moved(1e-5) - moved(-1e-5)) / 2e-5
            })
            .collect();
        assert_close(&found, &differences, 2e-4);
    }
}

/// Sums over many rows, cut into tasks, miss no row.
#[test]
fn gradients_of_gamma_and_beta_sum_all_rows() {
    let (rows, width) = (4100, 40);
    let [x, dy] = [1, 2].map(|seed| numbers(rows * width, seed));
    let (gamma, beta) = (numbers(width, 3), vec![0.0; width]);
    let found = on_threads(|| gradients(&x, &gamma, &beta, &dy));
    let normalised = expected(&wide(&x), &vec![1.0; width], &wide(&beta));
    let (mut d_gamma, mut d_beta) = (vec![0.0; width], vec![0.0; width]);
    for i in 0..rows * width {
        d_gamma[i % width] += normalised[i] * f64::from(dy[i]);
        d_beta[i % width] += f64::from(dy[i]);
    }
    assert_close(&found[rows * width..], &[d_gamma, d_beta].concat(), 1e-4);
}

/// Gradients of x, gamma and beta, one behind the other.
fn gradients(x: &[f32], gamma: &[f32], beta: &[f32], dy: &[f32]) -> Vec<f32> {
    let width = gamma.len();
    let rows = x.len() / width;
    let (mut y, mut mean, mut inverse_std) = (garbage(x.len()), garbage(rows), garbage(rows));
    forward(x, None, gamma, beta, EPSILON, &mut y, &mut mean, &mut inverse_std);
    let (mut dx, mut d_gamma, mut d_beta) = (garbage(x.len()), garbage(width), garbage(width));
    backward(x, gamma, &mean, &inverse_std, dy, &mut dx, &mut d_gamma, &mut d_beta);
    [dx, d_gamma, d_beta].concat()
}
