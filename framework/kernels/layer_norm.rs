//! Layer normalisation over the last axis (Ba, Kiros and Hinton, 2016), with the residual sum in front of it:
//! y = gamma * (s - mean) / std + beta, s = x + residual.

use crate::scratch;
use crate::shared::Shared;
use crate::tasks::{each, rows_per_task};
use crate::vector::{Vector, by_vector, each_vector};

/// Writes `y`, and per row the `mean` and the inverse of the standard deviation (of variance + `epsilon`), for
/// [`backward`]. Rows are as wide as `gamma`. With a `residual` (what to add, where to write the sum) it is the sum that
/// is normalised.
///
/// # Panics
/// If a slice does not have the length of `x`, or its number of rows.
pub fn forward(
    x: &[f32],
    residual: Option<(&[f32], &mut [f32])>,
    gamma: &[f32],
    beta: &[f32],
    epsilon: f32,
    y: &mut [f32],
    mean: &mut [f32],
    inverse_std: &mut [f32],
) {
    let (rows, width) = assert_rows(x, gamma, mean, inverse_std);
    assert!(beta.len() == width && y.len() == x.len());
    let per_task = rows_per_task(rows, width);
    let (y, mean, inverse_std) = (Shared::new(y), Shared::new(mean), Shared::new(inverse_std));
    let residual = residual.map(|(residual, sum)| {
        assert!(residual.len() == x.len() && sum.len() == x.len());
        (residual, Shared::new(sum))
    });
    each(rows.div_ceil(per_task), |task| {
        let row = task * per_task;
        let here = per_task.min(rows - row);
        let (from, len) = (row * width, here * width);
        // SAFETY: tasks have rows of their own.
        let (y, mean, inverse_std) =
            unsafe { (y.part(from, len), mean.part(row, here), inverse_std.part(row, here)) };
        let x = &x[from..][..len];
        match residual {
            Some((residual, sum)) => {
                // SAFETY: as above.
                let sum = unsafe { sum.part(from, len) };
                sum_and_normalise(
                    x,
                    &residual[from..][..len],
                    sum,
                    gamma,
                    beta,
                    epsilon,
                    y,
                    mean,
                    inverse_std,
                )
            }
            None => normalise(x, gamma, beta, epsilon, y, mean, inverse_std),
        }
    });
}

/// Writes the gradients of what was normalised (so of x, and of the residual alike), of gamma and of beta from `dy`.
/// `x` is what was normalised: the sum, if there was a residual.
///
/// # Panics
/// As [`forward`].
pub fn backward(
    x: &[f32],
    gamma: &[f32],
    mean: &[f32],
    inverse_std: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    d_gamma: &mut [f32],
    d_beta: &mut [f32],
) {
    let (rows, width) = assert_rows(x, gamma, mean, inverse_std);
    assert!(dy.len() == x.len() && dx.len() == x.len() && d_gamma.len() == width && d_beta.len() == width);
    let per_task = rows_per_task(rows, width);
    let tasks = rows.div_ceil(per_task);
    let dx = Shared::new(dx);
    scratch::with_parts([tasks * 2 * width], |[partial]| {
        let shared = Shared::new(partial);
        each(tasks, |task| {
            let row = task * per_task;
            let here = per_task.min(rows - row);
            let (from, len) = (row * width, here * width);
            // SAFETY: tasks have rows of their own, and sums of their own.
            let (dx, sums) = unsafe { (dx.part(from, len), shared.part(task * 2 * width, 2 * width)) };
            let (mean, inverse_std) = (&mean[row..][..here], &inverse_std[row..][..here]);
            sums.fill(0.0);
            let (d_gamma, d_beta) = sums.split_at_mut(width);
            gradients(&x[from..][..len], gamma, mean, inverse_std, &dy[from..][..len], dx, d_gamma, d_beta);
        });
        sum_partial(partial, d_gamma, d_beta);
    });
}

fn assert_rows(x: &[f32], gamma: &[f32], mean: &[f32], inverse_std: &[f32]) -> (usize, usize) {
    let width = gamma.len();
    assert!(width > 0 && x.len().is_multiple_of(width), "{} floats in rows of {width}", x.len());
    let rows = x.len() / width;
    assert!(
        mean.len() == rows && inverse_std.len() == rows,
        "a mean and a deviation for each of {rows} rows"
    );
    (rows, width)
}

/// Normalises one row of sum `total`; returns its mean and inverse standard deviation. The variance is that of the
/// differences from the mean: the row is in cache, and no digits are lost to a large mean.
#[inline(always)]
fn normalise_row<V: Vector>(
    v: V,
    x: &[f32],
    total: f32,
    gamma: &[f32],
    beta: &[f32],
    epsilon: f32,
    y: &mut [f32],
) -> (f32, f32) {
    let width = gamma.len();
    let mean = total / width as f32;
    let (shift, mut squares) = (v.splat(mean), v.splat(0.0));
    each_vector!(V, width, |at, n| {
        let difference = v.read(x, at, n, mean).sub(shift);
        squares = difference.mul_add(difference, squares);
    });
    let inverse_std = 1.0 / (squares.sum() / width as f32 + epsilon).sqrt();
    let factor = v.splat(inverse_std);
    each_vector!(V, width, |at, n| {
        let normal = v.read(x, at, n, 0.0).sub(shift).mul(factor);
        normal.mul_add(v.read(gamma, at, n, 0.0), v.read(beta, at, n, 0.0)).write(y, at, n);
    });
    (mean, inverse_std)
}

by_vector! {
    fn normalise(
        x: &[f32],
        gamma: &[f32],
        beta: &[f32],
        epsilon: f32,
        y: &mut [f32],
        mean: &mut [f32],
        inverse_std: &mut [f32],
    ) = normalise_of
}

#[inline(always)]
fn normalise_of<V: Vector>(
    v: V,
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    epsilon: f32,
    y: &mut [f32],
    mean: &mut [f32],
    inverse_std: &mut [f32],
) {
    let width = gamma.len();
    let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
    for (((x, y), mean), inverse_std) in rows.zip(mean).zip(inverse_std) {
        let mut total = v.splat(0.0);
        each_vector!(V, width, |at, n| total = total.add(v.read(x, at, n, 0.0)));
        (*mean, *inverse_std) = normalise_row(v, x, total.sum(), gamma, beta, epsilon, y);
    }
}

by_vector! {
    fn sum_and_normalise(
        x: &[f32],
        residual: &[f32],
        sum: &mut [f32],
        gamma: &[f32],
        beta: &[f32],
        epsilon: f32,
        y: &mut [f32],
        mean: &mut [f32],
        inverse_std: &mut [f32],
    ) = sum_and_normalise_of
}

#[inline(always)]
fn sum_and_normalise_of<V: Vector>(
    v: V,
    x: &[f32],
    residual: &[f32],
    sum: &mut [f32],
    gamma: &[f32],
    beta: &[f32],
    epsilon: f32,
    y: &mut [f32],
    mean: &mut [f32],
    inverse_std: &mut [f32],
) {
    let width = gamma.len();
    let inputs = x.chunks_exact(width).zip(residual.chunks_exact(width));
    let rows = inputs.zip(sum.chunks_exact_mut(width)).zip(y.chunks_exact_mut(width));
    for (((((x, residual), sum), y), mean), inverse_std) in rows.zip(mean).zip(inverse_std) {
        let mut total = v.splat(0.0);
        each_vector!(V, width, |at, n| {
            let both = v.read(x, at, n, 0.0).add(v.read(residual, at, n, 0.0));
            both.write(sum, at, n);
            total = total.add(both);
        });
        (*mean, *inverse_std) = normalise_row(v, sum, total.sum(), gamma, beta, epsilon, y);
    }
}

by_vector! {
    /// With n = (x - mean) / std and g = gamma dy: dx = (g - mean of g - n * mean of g n) / std, d_gamma += dy n and
    /// d_beta += dy.
    fn gradients(
        x: &[f32],
        gamma: &[f32],
        mean: &[f32],
        inverse_std: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        d_gamma: &mut [f32],
        d_beta: &mut [f32],
    ) = gradients_of
}

#[inline(always)]
fn gradients_of<V: Vector>(
    v: V,
    x: &[f32],
    gamma: &[f32],
    mean: &[f32],
    inverse_std: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    d_gamma: &mut [f32],
    d_beta: &mut [f32],
) {
    let width = gamma.len();
    let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width));
    for (((x, dy), dx), (&mean, &inverse_std)) in rows.zip(mean.iter().zip(inverse_std)) {
        let (shift, factor) = (v.splat(mean), v.splat(inverse_std));
        let (mut sum_g, mut sum_gn) = (v.splat(0.0), v.splat(0.0));
        each_vector!(V, width, |at, n| {
            let normal = v.read(x, at, n, 0.0).sub(shift).mul(factor);
            let dy = v.read(dy, at, n, 0.0);
            let g = dy.mul(v.read(gamma, at, n, 0.0));
            dy.mul_add(normal, v.read(d_gamma, at, n, 0.0)).write(d_gamma, at, n);
            dy.add(v.read(d_beta, at, n, 0.0)).write(d_beta, at, n);
            sum_g = sum_g.add(g);
            sum_gn = g.mul_add(normal, sum_gn);
        });
        let mean_g = v.splat(sum_g.sum() / width as f32);
        let minus_mean_gn = v.splat(-sum_gn.sum() / width as f32);
        each_vector!(V, width, |at, n| {
            let normal = v.read(x, at, n, 0.0).sub(shift).mul(factor);
            let g = v.read(dy, at, n, 0.0).mul(v.read(gamma, at, n, 0.0));
            normal.mul_add(minus_mean_gn, g.sub(mean_g)).mul(factor).write(dx, at, n);
        });
    }
}

/// Adds the tasks' sums in their order.
fn sum_partial(partial: &[f32], d_gamma: &mut [f32], d_beta: &mut [f32]) {
    d_gamma.fill(0.0);
    d_beta.fill(0.0);
    let width = d_gamma.len();
    for sums in partial.chunks_exact(2 * width) {
        let (gamma, beta) = sums.split_at(width);
        for (total, sum) in d_gamma.iter_mut().zip(gamma).chain(d_beta.iter_mut().zip(beta)) {
            *total += sum;
        }
    }
}
