//! Softmax and its logarithm over the last axis, forward and backward.

use crate::shared::Shared;
use crate::tasks::{each, rows_per_task};
use crate::vector::{Vector, by_vector, each_vector};

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

/// The largest of a row.
#[inline(always)]
pub(crate) fn largest<V: Vector>(v: V, row: &[f32]) -> f32 {
    let mut most = v.splat(f32::NEG_INFINITY);
    each_vector!(V, row.len(), |at, n| most = v.read(row, at, n, f32::NEG_INFINITY).larger(most));
    most.largest()
}

/// Writes e^(x - shift) over a row and returns its sum.
#[inline(always)]
pub(crate) fn exponentials<V: Vector>(v: V, x: &[f32], shift: f32, y: &mut [f32]) -> f32 {
    let (shift, mut sum) = (v.splat(shift), v.splat(0.0));
    each_vector!(V, x.len(), |at, n| {
        let e = v.read(x, at, n, f32::NEG_INFINITY).sub(shift).exp();
        e.write(y, at, n);
        sum = sum.add(e);
    });
    sum.sum()
}

by_vector! { fn softmax_rows(x: &[f32], width: usize, y: &mut [f32]) = softmax_of }

#[inline(always)]
fn softmax_of<V: Vector>(v: V, x: &[f32], width: usize, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let inverse = v.splat(1.0 / exponentials(v, x, largest(v, x), y));
        each_vector!(V, width, |at, n| v.read(y, at, n, 0.0).mul(inverse).write(y, at, n));
    }
}

by_vector! { fn softmax_gradient_rows(y: &[f32], dy: &[f32], width: usize, dx: &mut [f32]) = softmax_gradient_of }

#[inline(always)]
fn softmax_gradient_of<V: Vector>(v: V, y: &[f32], dy: &[f32], width: usize, dx: &mut [f32]) {
    for ((y, dy), dx) in y.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
        let mut sum = v.splat(0.0);
        each_vector!(V, width, |at, n| sum = v.read(y, at, n, 0.0).mul_add(v.read(dy, at, n, 0.0), sum));
        let sum = v.splat(sum.sum());
        each_vector!(V, width, |at, n| {
            v.read(dy, at, n, 0.0).sub(sum).mul(v.read(y, at, n, 0.0)).write(dx, at, n);
        });
    }
}

by_vector! { fn log_softmax_rows(x: &[f32], width: usize, y: &mut [f32]) = log_softmax_of }

#[inline(always)]
fn log_softmax_of<V: Vector>(v: V, x: &[f32], width: usize, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let most = largest(v, x);
        let log_sum = v.splat(exponentials(v, x, most, y).ln());
        let most = v.splat(most);
        each_vector!(V, width, |at, n| v.read(x, at, n, 0.0).sub(most).sub(log_sum).write(y, at, n));
    }
}

by_vector! {
    fn log_softmax_gradient_rows(y: &[f32], dy: &[f32], width: usize, dx: &mut [f32]) = log_softmax_gradient_of
}

#[inline(always)]
fn log_softmax_gradient_of<V: Vector>(v: V, y: &[f32], dy: &[f32], width: usize, dx: &mut [f32]) {
    for ((y, dy), dx) in y.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
        let mut sum = v.splat(0.0);
        each_vector!(V, width, |at, n| sum = sum.add(v.read(dy, at, n, 0.0)));
        let minus_sum = v.splat(-sum.sum());
        each_vector!(V, width, |at, n| {
            v.read(y, at, n, 0.0).exp().mul_add(minus_sum, v.read(dy, at, n, 0.0)).write(dx, at, n);
        });
    }
}
