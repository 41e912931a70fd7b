//! Losses against f64, and their gradients against differences of the f64 loss.

mod support;

use lacuna_kernels::loss::{IGNORED, cross_entropy};
use support::{assert_close, garbage, numbers, on_threads, wide};

fn expected(logits: &[f64], classes: usize, targets: &[i64], smoothing: f64) -> f64 {
    let counted = targets.iter().filter(|&&target| target != IGNORED).count();
    let rows = logits.chunks(classes).zip(targets).filter(|(_, target)| **target != IGNORED);
    let total: f64 = rows
        .map(|(row, &target)| {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
            let mean = row.iter().sum::<f64>() / classes as f64;
            (1.0 - smoothing) * (log_sum - row[target as usize]) + smoothing * (log_sum - mean)
        })
        .sum();
    total / counted as f64
}

#[test]
fn cross_entropy_agrees_with_f64_and_differences() {
    for (rows, classes) in [(1, 1), (3, 2), (6, 7), (4, 40), (40, 3)] {
        for smoothing in [0.0, 0.1] {
            let logits = numbers(rows * classes, 1);
            let mut targets: Vec<i64> = (0..rows).map(|i| (i * 5 % classes) as i64).collect();
            if rows > 2 {
                targets[1] = IGNORED;
            }
            let found = on_threads(|| {
                let mut gradient = garbage(logits.len());
                let loss = cross_entropy(&logits, classes, &targets, smoothing, &mut gradient);
                gradient.push(loss);
                gradient
            });
            let at = wide(&logits);
            let smoothing = f64::from(smoothing);
            let mut result: Vec<f64> = (0..at.len())
                .map(|i| {
                    let moved = |by: f64| {
                        let mut at = at.clone();
                        at[i] += by;
                        expected(&at, classes, &targets, smoothing)
                    };
                    (moved(1e-5) - moved(-1e-5)) / 2e-5
                })
                .collect();
            result.push(expected(&at, classes, &targets, smoothing));
            assert_close(&found, &result, 1e-6);
        }
    }
}

#[test]
fn many_rows_and_many_classes() {
    for (rows, classes) in [(5000, 10), (9, 30_522)] {
        let logits: Vec<f32> = numbers(rows * classes, 1).iter().map(|x| x * 10.0).collect();
        let targets: Vec<i64> = (0..rows).map(|i| (i * 7919 % classes) as i64).collect();
        let found = on_threads(|| {
            let mut gradient = garbage(logits.len());
            let loss = cross_entropy(&logits, classes, &targets, 0.0, &mut gradient);
            // Rows of a gradient sum to 0.
            assert!(gradient.chunks(classes).all(|row| row.iter().sum::<f32>().abs() < 1e-5));
            vec![loss]
        });
        assert_close(&found, &[expected(&wide(&logits), classes, &targets, 0.0)], 1e-6);
    }
}

#[test]
fn nothing_but_ignored_rows_costs_nothing() {
    let mut gradient = garbage(6);
    assert_eq!(cross_entropy(&[1.0; 6], 3, &[IGNORED; 2], 0.0, &mut gradient), 0.0);
    assert_eq!(gradient, [0.0; 6]);
}

#[test]
#[should_panic(expected = "target number 1 is 3, of 3 classes")]
fn a_target_that_is_no_class_is_refused() {
    cross_entropy(&[0.0; 6], 3, &[0, 3], 0.0, &mut [0.0; 6]);
}
