//! Softmax and its logarithm over the last axis, forward and backward.

use crate::by_isa;
use crate::floats16::{self, LANES, Lanes};
use crate::shared::Shared;
use crate::tasks::{each, rows_per_task};

/// y = e^x / sum of e^x over each row of `width` floats. A row of minus infinities gives NaN.
///
/// # Panics
/// If `x` and `y` are not the same whole number of rows.
pub fn softmax(x: &[f32], width: usize, y: &mut [f32]) {
    by_rows(width, [x, x], y, |[x, _], y| softmax_rows(x, width, y));
}

/// dx from dy and softmax's result y: y (dy - sum of y dy).
///
/// # Panics
/// As [`softmax`].
pub fn softmax_backward(y: &[f32], dy: &[f32], width: usize, dx: &mut [f32]) {
    by_rows(width, [y, dy], dx, |[y, dy], dx| softmax_gradient_rows(y, dy, width, dx));
}

/// y = x - log of the sum of e^x over each row of `width` floats.
///
/// # Panics
/// As [`softmax`].
pub fn log_softmax(x: &[f32], width: usize, y: &mut [f32]) {
    by_rows(width, [x, x], y, |[x, _], y| log_softmax_rows(x, width, y));
}

/// dx from dy and log-softmax's result y: dy - e^y * sum of dy.
///
/// # Panics
/// As [`softmax`].
pub fn log_softmax_backward(y: &[f32], dy: &[f32], width: usize, dx: &mut [f32]) {
    by_rows(width, [y, dy], dx, |[y, dy], dx| log_softmax_gradient_rows(y, dy, width, dx));
}

fn by_rows(
    width: usize,
    inputs: [&[f32]; 2],
    output: &mut [f32],
    rows: impl Fn([&[f32]; 2], &mut [f32]) + Sync + Send,
) {
    assert!(width > 0 && output.len().is_multiple_of(width), "{} floats in rows of {width}", output.len());
    assert!(
        inputs.iter().all(|input| input.len() == output.len()),
        "inputs and outputs of different lengths"
    );
    let len = output.len();
    let per_task = rows_per_task(len / width, width) * width;
    let output = Shared::new(output);
    each(len.div_ceil(per_task), |task| {
        let from = task * per_task;
        let here = per_task.min(len - from);
        // SAFETY: tasks have rows of their own.
        rows(inputs.map(|input| &input[from..][..here]), unsafe { output.part(from, here) });
    });
}

/// The largest of a row; minus infinity for an empty one.
#[inline(always)]
pub(crate) fn largest(row: &[f32]) -> f32 {
    let (whole, rest) = row.as_chunks::<LANES>();
    let mut largest = floats16::tail(rest, f32::NEG_INFINITY);
    for x in whole {
        largest = floats16::zip(*x, largest, floats16::larger);
    }
    floats16::fold(largest, floats16::larger)
}

/// The sum over a row of f of each pair of elements, which is 0 for two zeros.
#[inline(always)]
fn sum_of(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = floats16::zip(floats16::tail(a_rest, 0.0), floats16::tail(b_rest, 0.0), &f);
    for (a, b) in a.iter().zip(b) {
        sums = floats16::zip(sums, floats16::zip(*a, *b, &f), |sum, x| sum + x);
    }
    floats16::sum(sums)
}

/// Writes e^(x - shift) over each row and returns its sum.
#[inline(always)]
pub(crate) fn exponentials(x: &[f32], shift: f32, y: &mut [f32]) -> f32 {
    let shifted = |x: &Lanes| floats16::map(*x, |x| floats16::exp(x - shift));
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks_mut::<LANES>());
    let last = shifted(&floats16::tail(x_rest, f32::NEG_INFINITY));
    y_rest.copy_from_slice(&last[..y_rest.len()]);
    let mut sums = last;
    for (x, y) in x.iter().zip(y) {
        *y = shifted(x);
        sums = floats16::zip(sums, *y, |sum, y| sum + y);
    }
    floats16::sum(sums)
}

by_isa! {
    fn softmax_rows(x: &[f32], width: usize, y: &mut [f32]) {
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let sum = exponentials(x, largest(x), y);
            let inverse = 1.0 / sum;
            for y in y {
                *y *= inverse;
            }
        }
    }
}

by_isa! {
    fn softmax_gradient_rows(y: &[f32], dy: &[f32], width: usize, dx: &mut [f32]) {
        for ((y, dy), dx) in y.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            let sum = sum_of(y, dy, |y, dy| y * dy);
            for ((y, dy), dx) in y.iter().zip(dy).zip(dx) {
                *dx = y * (dy - sum);
            }
        }
    }
}

by_isa! {
    fn log_softmax_rows(x: &[f32], width: usize, y: &mut [f32]) {
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let largest = largest(x);
            let log_sum = exponentials(x, largest, y).ln();
            for (x, y) in x.iter().zip(y) {
                *y = x - largest - log_sum;
            }
        }
    }
}

by_isa! {
    fn log_softmax_gradient_rows(y: &[f32], dy: &[f32], width: usize, dx: &mut [f32]) {
        for ((y, dy), dx) in y.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
            let sum = sum_of(dy, dy, |dy, _| dy);
            for ((y, dy), dx) in y.iter().zip(dy).zip(dx) {
                *dx = dy - floats16::exp(*y) * sum;
            }
        }
    }
}
