//! Softmax and its logarithm, forward and backward, against f64.

mod support;

use lacuna_kernels::softmax::{log_softmax, log_softmax_backward, softmax, softmax_backward};
use support::{assert_close, garbage, numbers, on_threads, wide};

const SIZES: [(usize, usize); 7] = [(1, 1), (3, 7), (5, 16), (2, 100), (300, 384), (1, 40_000), (70_000, 3)];

fn probabilities(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|x| (x - largest).exp()).sum();
    x.iter().map(|x| (x - largest).exp() / sum).collect()
}

fn of_rows(x: &[f32], width: usize, row: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    wide(x).chunks(width).flat_map(row).collect()
}

#[test]
fn agrees_with_f64() {
    for (rows, width) in SIZES {
        let x: Vec<f32> = numbers(rows * width, 1).iter().map(|x| x * 20.0).collect();
        let compute = |kernel: fn(&[f32], usize, &mut [f32])| {
            on_threads(|| {
                let mut y = garbage(x.len());
                kernel(&x, width, &mut y);
                y
            })
        };
        assert_close(&compute(softmax), &of_rows(&x, width, probabilities), 1e-6);
        let logs = |row: &[f64]| probabilities(row).iter().map(|p| p.ln()).collect();
        assert_close(&compute(log_softmax), &of_rows(&x, width, logs), 2e-6);
    }
}

#[test]
fn gradients_agree_with_f64() {
    for (rows, width) in SIZES {
        let [x, dy] = [1, 2].map(|seed| numbers(rows * width, seed));
        type Forward = fn(&[f32], usize, &mut [f32]);
        type Backward = fn(&[f32], &[f32], usize, &mut [f32]);
        let compute = |forward: Forward, backward: Backward| {
            on_threads(|| {
                let (mut y, mut dx) = (garbage(x.len()), garbage(x.len()));
                forward(&x, width, &mut y);
                backward(&y, &dy, width, &mut dx);
                dx
            })
        };
        let (mut expected, mut of_log) = (Vec::new(), Vec::new());
        for (x, dy) in wide(&x).chunks(width).zip(wide(&dy).chunks(width)) {
            let p = probabilities(x);
            let weighted: f64 = p.iter().zip(dy).map(|(p, dy)| p * dy).sum();
            let sum: f64 = dy.iter().sum();
            expected.extend(p.iter().zip(dy).map(|(p, dy)| p * (dy - weighted)));
            of_log.extend(p.iter().zip(dy).map(|(p, dy)| dy - p * sum));
        }
        assert_close(&compute(softmax, softmax_backward), &expected, 1e-6);
        assert_close(&compute(log_softmax, log_softmax_backward), &of_log, 1e-5);
    }
}

#[test]
fn extreme_inputs() {
    let x = [f32::NEG_INFINITY, 3e38, 3e38, -3e38];
    let mut y = garbage(4);
    softmax(&x, 4, &mut y);
    assert_eq!(y, [0.0, 0.5, 0.5, 0.0]);
    softmax(&[1.0, f32::NAN], 2, &mut y[..2]);
    assert!(y[..2].iter().all(|y| y.is_nan()));
}
