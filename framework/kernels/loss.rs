//! Losses of classifiers with the gradient of their logits, which costs little more than the loss alone.

use crate::shared::Shared;
use crate::softmax::{exponentials, largest};
use crate::tasks::{each, rows_per_task};
use crate::vector::{Vector, by_vector, each_vector};

/// A target that says: this row does not count.
pub const IGNORED: i64 = -100;

/// The mean over rows of the cross-entropy between softmax(logits) and the targets; writes its gradient.
///
/// `logits` and `gradient` are `[rows][classes]`, `targets` `[rows]` with class numbers or [`IGNORED`]. With `smoothing` s the
/// target distribution is 1 - s on the target plus s / classes on every class (Szegedy et al., 2016). 0 if no row counts.
///
/// # Panics
/// If a slice does not have the length of its shape, or a target is neither a class nor [`IGNORED`].
pub fn cross_entropy(
    logits: &[f32],
    classes: usize,
    targets: &[i64],
    smoothing: f32,
    gradient: &mut [f32],
) -> f32 {
    let rows = targets.len();
    assert!(classes > 0 && logits.len() == rows * classes && gradient.len() == logits.len());
    let is_class = |target: i64| (0..classes as i64).contains(&target);
    if let Some(bad) = targets.iter().position(|&target| target != IGNORED && !is_class(target)) {
        panic!("target number {bad} is {}, of {classes} classes", targets[bad]);
    }
    let counted = targets.iter().filter(|&&target| target != IGNORED).count();
    let weight = 1.0 / counted.max(1) as f32;
    let per_task = rows_per_task(rows, classes);
    let mut losses = vec![0.0_f64; rows.div_ceil(per_task)];
    let (gradient, shared_losses) = (Shared::new(gradient), Shared::new(&mut losses));
    each(rows.div_ceil(per_task), |task| {
        let from = task * per_task;
        let here = per_task.min(rows - from);
        let (at, len) = (from * classes, here * classes);
        // SAFETY: tasks have rows, and a loss, of their own.
        let (gradient, loss) = unsafe { (gradient.part(at, len), &mut shared_losses.part(task, 1)[0]) };
        *loss =
            cross_entropy_rows(&logits[at..][..len], &targets[from..][..here], smoothing, weight, gradient);
    });
    (losses.iter().sum::<f64>() * f64::from(weight)) as f32
}

by_vector! {
    /// The sum of the rows' losses; writes `weight` times its gradient.
    fn cross_entropy_rows(logits: &[f32], targets: &[i64], smoothing: f32, weight: f32, gradient: &mut [f32]) -> f64
        = cross_entropy_of
}

#[inline(always)]
fn cross_entropy_of<V: Vector>(
    v: V,
    logits: &[f32],
    targets: &[i64],
    smoothing: f32,
    weight: f32,
    gradient: &mut [f32],
) -> f64 {
    let classes = logits.len() / targets.len();
    let mut total = 0.0;
    let rows = logits.chunks_exact(classes).zip(gradient.chunks_exact_mut(classes));
    for ((logits, gradient), &target) in rows.zip(targets) {
        if target == IGNORED {
            gradient.fill(0.0);
            continue;
        }
        let target = target as usize;
        let most = largest(v, logits);
        let sum = exponentials(v, logits, most, gradient);
        let log_sum = f64::from(most) + f64::from(sum).ln();
        total += f64::from(1.0 - smoothing) * (log_sum - f64::from(logits[target]));
        if smoothing > 0.0 {
            let mut logits_sum = v.splat(0.0);
            each_vector!(V, classes, |at, n| logits_sum = logits_sum.add(v.read(logits, at, n, 0.0)));
            total += f64::from(smoothing) * (log_sum - f64::from(logits_sum.sum()) / classes as f64);
        }
        let (factor, shift) = (v.splat(weight / sum), v.splat(-smoothing / classes as f32 * weight));
        each_vector!(V, classes, |at, n| {
            v.read(gradient, at, n, 0.0).mul_add(factor, shift).write(gradient, at, n)
        });
        gradient[target] -= (1.0 - smoothing) * weight;
    }
    total
}
