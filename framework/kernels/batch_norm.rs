//! Batch normalisation (Ioffe and Szegedy, 2015) fused with what follows it: the residual sum, the activation and,
//! in quantisation-aware training, the observer and the fake quantisation of the result.
//!
//! x is `[rows][c]`, a row per pixel. All of it is bound by memory: training reads x twice and writes y once, and its
//! gradient reads x and dy twice and writes dx once. The gradient computes the value before the activation again from x,
//! instead of reading what the forward pass could have kept.
//!
//! Work is done on groups of whole rows as wide as a multiple of 64 floats, so that columns stay in vector lanes for any
//! number of channels, and in blocks that stay in the first cache between the steps. Sums are f32 in a block, f64 from
//! there on, of values less a pivot of their column, so that a mean far from zero costs no digits.

mod loops;

use crate::activation::{Act, Function, with_function};
use crate::fake_quant::{self, Grid};
use crate::shared::Shared;
use crate::stream;
use loops::{Inside, LANES};
use rayon::prelude::*;

/// Turns the range of the activated result into the grid to put it on, if any: the observer of the caller.
pub type Observer<'a> = &'a dyn Fn(f32, f32) -> Option<Grid>;

/// What the gradient is told of the residual sum of the forward pass.
#[derive(Clone, Copy, Debug)]
pub enum Skip<'a> {
    None,
    /// What was added, `[rows][c]`.
    Residual(&'a [f32]),
    /// Something was added, and this is the result y `[rows][c]`, not quantised. Enough for [`Act::None`], [`Act::Relu`]
    /// and [`Act::Relu6`].
    Output(&'a [f32]),
}

/// How `[rows][c]` is cut. Depends on shape only.
struct Plan {
    c: usize,
    rows: usize,
    /// Floats of a group of rows: a multiple of c and of 64.
    width: usize,
    /// Floats of a block: a multiple of `width` that fits the first cache with its companions.
    block: usize,
    /// Floats of a task: a multiple of `block`.
    task: usize,
    tasks: usize,
}

/// Floats of a block of x: with those of dy, dz and dx the first cache is full.
const BLOCK: usize = 2048;
/// Groups of a block at least, so that sums are not joined in f64 too often.
const GROUPS: usize = 4;

impl Plan {
    fn new(rows: usize, c: usize) -> Plan {
        assert!(rows > 0 && c > 0, "[{rows}][{c}] has no statistics");
        let multiple = c * LANES / greatest_common_divisor(c, LANES);
        let width = multiple * (4 * LANES).div_ceil(multiple);
        let block = width * (BLOCK / width).max(GROUPS);
        let len = rows * c;
        // Each task has sums of its own, which are to be small beside what they sum up.
        let tasks = (16_384 / width).clamp(8, 32);
        let task = block * len.div_ceil(block).div_ceil(tasks).max(8 * BLOCK / block).max(1);
        Plan { c, rows, width, block, task, tasks: len.div_ceil(task) }
    }

    fn len(&self) -> usize {
        self.rows * self.c
    }

    /// A value per channel, repeated over a group.
    fn spread(&self, channels: &[f32]) -> Vec<f32> {
        channels.iter().copied().cycle().take(self.width).collect()
    }

    /// (start, length) of the blocks of a task.
    fn blocks(&self, task: usize) -> impl Iterator<Item = (usize, usize)> {
        let end = self.len().min((task + 1) * self.task);
        let block = self.block;
        (task * self.task..end).step_by(block).map(move |start| (start, block.min(end - start)))
    }

    /// Adds up what tasks left in `[tasks][2][width]`, over tasks and the rows of a group, to 2 sums of each channel.
    fn join(&self, parts: &mut [f64]) -> Vec<[f64; 2]> {
        let (total, others) = parts.split_at_mut(2 * self.width);
        for part in others.chunks_exact(total.len()) {
            total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
        }
        let mut sums = vec![[0f64; 2]; self.c];
        let (first, second) = total.split_at(self.width);
        for (first, second) in first.chunks_exact(self.c).zip(second.chunks_exact(self.c)) {
            for ((sum, first), second) in sums.iter_mut().zip(first).zip(second) {
                sum[0] += first;
                sum[1] += second;
            }
        }
        sums
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Normalisation by given statistics \[c\] as (scale, shift) of [`forward_with`].
pub fn fold(gamma: &[f32], beta: &[f32], mean: &[f32], var: &[f32], eps: f64) -> (Vec<f32>, Vec<f32>) {
    // From the f32 statistics, which the gradient has too: it must come to the same bits.
    let of_channel = |i: usize| {
        let scale = gamma[i] as f64 / (var[i] as f64 + eps).sqrt();
        (scale as f32, (beta[i] as f64 - mean[i] as f64 * scale) as f32)
    };
    (0..gamma.len()).map(of_channel).unzip()
}

/// `y = act(gamma · (x - mean) / sqrt(var + eps) + beta [+ residual])` with the mean and biased variance of each
/// column, which are returned in `mean` and `var` `[c]`. x, residual and y are `[rows][c]`.
///
/// With an `observer`, y is put on the grid it answers for the range of the activated values. That range takes no pass
/// over memory unless there is a residual. It is exact where the activation is monotonous; of one with a minimum
/// (SiLU, hard swish, GELU) that minimum counts as reached when there were values on both sides of it.
///
/// # Panics
/// If lengths do not fit, or there are no rows.
pub fn forward(
    x: &[f32],
    rows: usize,
    c: usize,
    gamma: &[f32],
    beta: &[f32],
    residual: Option<&[f32]>,
    eps: f64,
    act: Act,
    observer: Option<Observer>,
    y: &mut [f32],
    mean: &mut [f32],
    var: &mut [f32],
) {
    let plan = Plan::new(rows, c);
    assert!(x.len() == plan.len() && y.len() == x.len(), "x and y are not [{rows}][{c}]");
    assert!(residual.is_none_or(|r| r.len() == x.len()), "the residual has another shape than x");
    assert!([gamma.len(), beta.len(), mean.len(), var.len()] == [c; 4], "parameters are not [{c}]");
    let extremes = statistics(x, &plan, observer.is_some() && residual.is_none(), mean, var);
    let (scale, shift) = fold(gamma, beta, mean, var, eps);
    let Some(observer) = observer else {
        apply(x, &plan, &scale, &shift, residual, act, Then::Nothing, y);
        return;
    };
    if residual.is_none() {
        let (lo, hi) = image(&extremes, &scale, &shift, act);
        let then = observer(lo, hi).map_or(Then::Nothing, Then::Quantize);
        apply(x, &plan, &scale, &shift, residual, act, then, y);
        return;
    }
    let (lo, hi) = apply(x, &plan, &scale, &shift, residual, act, Then::Observe, y);
    if let Some(grid) = observer(lo, hi) {
        fake_quant::quantize_in_place(y, grid);
    }
}

/// `y = act(x · scale + shift [+ residual])`, put on `grid` if there is one: evaluation, or training on given statistics.
///
/// # Panics
/// If lengths do not fit, or there are no rows.
pub fn forward_with(
    x: &[f32],
    rows: usize,
    c: usize,
    scale: &[f32],
    shift: &[f32],
    residual: Option<&[f32]>,
    act: Act,
    grid: Option<Grid>,
    y: &mut [f32],
) {
    let plan = Plan::new(rows, c);
    assert!(x.len() == plan.len() && y.len() == x.len(), "x and y are not [{rows}][{c}]");
    assert!(residual.is_none_or(|r| r.len() == x.len()), "the residual has another shape than x");
    assert!(scale.len() == c && shift.len() == c, "parameters are not [{c}]");
    apply(x, &plan, scale, shift, residual, act, grid.map_or(Then::Nothing, Then::Quantize), y);
}

/// Mean and biased variance of each column, and its range if asked for.
fn statistics(x: &[f32], plan: &Plan, ranges: bool, mean: &mut [f32], var: &mut [f32]) -> Vec<(f32, f32)> {
    let &Plan { c, rows, width, tasks, .. } = plan;
    // Near the mean, so that sums of squares are near the variance.
    let samples = rows.min(16);
    let mut pivot = vec![0f32; c];
    for sample in 0..samples {
        let row = &x[sample * rows / samples * c..][..c];
        pivot.iter_mut().zip(row).for_each(|(pivot, x)| *pivot += x / samples as f32);
    }
    let spread = plan.spread(&pivot);
    let mut parts = vec![0f64; tasks * 2 * width];
    let (least, most) = fake_quant::NOTHING;
    let range_len = if ranges { tasks * width } else { 0 };
    let (mut lo_parts, mut hi_parts) = (vec![least; range_len], vec![most; range_len]);
    let (lo_part, hi_part) = (Shared::new(&mut lo_parts), Shared::new(&mut hi_parts));
    parts.par_chunks_mut(2 * width).enumerate().for_each(|(task, part)| {
        let (sum, square) = part.split_at_mut(width);
        for (start, len) in plan.blocks(task) {
            let x = &x[start..][..len];
            loops::add_moments(x, &spread, sum, square);
            if ranges {
                // SAFETY: each task has its own `width` elements.
                let (lo, hi) =
                    unsafe { (lo_part.part(task * width, width), hi_part.part(task * width, width)) };
                loops::widen(x, lo, hi);
            }
        }
    });
    for (i, [sum, square]) in plan.join(&mut parts).into_iter().enumerate() {
        let offset = sum / rows as f64;
        mean[i] = (pivot[i] as f64 + offset) as f32;
        var[i] = (square / rows as f64 - offset * offset).max(0.0) as f32;
    }
    if !ranges {
        return Vec::new();
    }
    // Copies of a channel are c apart within a group, and groups are a multiple of c.
    let mut range = vec![fake_quant::NOTHING; c];
    for (lo, hi) in lo_parts.chunks_exact(c).zip(hi_parts.chunks_exact(c)) {
        for ((range, &lo), &hi) in range.iter_mut().zip(lo).zip(hi) {
            *range = fake_quant::join(*range, (lo, hi));
        }
    }
    range
}

/// The range of `act(x · scale + shift)` of columns whose ranges are given.
fn image(ranges: &[(f32, f32)], scale: &[f32], shift: &[f32], act: Act) -> (f32, f32) {
    let mut range = fake_quant::NOTHING;
    for ((&(lo, hi), &scale), &shift) in ranges.iter().zip(scale).zip(shift) {
        let (a, b) = (lo * scale + shift, hi * scale + shift);
        let values = with_function!(act, F => [F::value(a), F::value(b)]);
        range = fake_quant::join(range, (values[0].min(values[1]), values[0].max(values[1])));
        if let Some((at, least)) = minimum(act)
            && a.min(b) < at
            && at < a.max(b)
        {
            range.0 = range.0.min(least);
        }
    }
    range
}

/// Where a function that falls and then rises turns, and its value there.
fn minimum(act: Act) -> Option<(f32, f32)> {
    match act {
        Act::Silu => Some((-1.278_464_5, -0.278_464_54)),
        Act::HardSwish => Some((-1.5, -0.375)),
        Act::Gelu => Some((-0.751_791_6, -0.169_971_04)),
        Act::GeluTanh => Some((-0.752_461_5, -0.170_040_75)),
        Act::None | Act::Relu | Act::Relu6 | Act::Leaky | Act::Sigmoid => None,
    }
}

/// What is done to a block of y while it is in the first cache.
#[derive(Clone, Copy)]
enum Then {
    Nothing,
    Observe,
    Quantize(Grid),
}

/// Returns the range of y where it is asked for.
fn apply(
    x: &[f32],
    plan: &Plan,
    scale: &[f32],
    shift: &[f32],
    residual: Option<&[f32]>,
    act: Act,
    then: Then,
    y: &mut [f32],
) -> (f32, f32) {
    let (scale, shift) = (plan.spread(scale), plan.spread(shift));
    let y = Shared::new(y);
    // Last first: the end of x is what the statistics have left in the caches.
    let tasks = (0..plan.tasks).into_par_iter().rev().map(|task| {
        let mut range = fake_quant::NOTHING;
        let mut room = stream::room(plan.len(), plan.block);
        for (start, len) in plan.blocks(task) {
            let x = &x[start..][..len];
            // SAFETY: blocks are disjoint.
            let y = unsafe { y.part(start, len) };
            stream::write(&mut room, y, |y| {
                match residual {
                    None => loops::affine(act, x, &scale, &shift, y),
                    Some(r) => loops::affine_residual(act, x, &r[start..][..len], &scale, &shift, y),
                }
                match then {
                    Then::Nothing => {}
                    Then::Observe => range = fake_quant::join(range, fake_quant::range_block(y)),
                    Then::Quantize(grid) => fake_quant::quantize_block(y, grid),
                }
            });
        }
        stream::finish();
        range
    });
    tasks.reduce(|| fake_quant::NOTHING, fake_quant::join)
}

/// Gradients of [`forward`]: of x in `dx` `[rows][c]`, of gamma and beta in `d_gamma` and `d_beta` `[c]`, and of the residual
/// in `d_residual` `[rows][c]` if it is wanted. (It is `dy` itself for [`Act::None`] without a grid.)
///
/// `mean` and `var` are those of the forward pass, and `skip` what it added. `grid` is the grid its result was put
/// on, if any: the gradient of values that the grid clamps is zero.
///
/// # Panics
/// If lengths do not fit, or the output is given where the residual is needed.
pub fn backward(
    x: &[f32],
    skip: Skip,
    dy: &[f32],
    rows: usize,
    c: usize,
    gamma: &[f32],
    beta: &[f32],
    mean: &[f32],
    var: &[f32],
    eps: f64,
    act: Act,
    grid: Option<Grid>,
    dx: &mut [f32],
    d_gamma: &mut [f32],
    d_beta: &mut [f32],
    d_residual: Option<&mut [f32]>,
) {
    let plan = Plan::new(rows, c);
    let len = plan.len();
    assert!([x.len(), dy.len(), dx.len()] == [len; 3], "x, dy and dx are not [{rows}][{c}]");
    assert!([gamma.len(), beta.len(), mean.len(), var.len()] == [c; 4], "parameters are not [{c}]");
    assert!(d_gamma.len() == c && d_beta.len() == c, "gradients of parameters are not [{c}]");
    assert!(d_residual.as_ref().is_none_or(|d| d.len() == len), "d_residual is not [{rows}][{c}]");
    match skip {
        Skip::None => {}
        Skip::Residual(r) => assert_eq!(r.len(), len, "the residual has another shape than x"),
        Skip::Output(y) => {
            assert_eq!(y.len(), len, "y has another shape than x");
            let told = matches!(act, Act::None | Act::Relu | Act::Relu6) && grid.is_none();
            assert!(told, "the gradient needs the residual itself, not the output");
        }
    }
    let (scale, shift) = fold(gamma, beta, mean, var, eps);
    let inside: Inside = grid.map(|grid| grid.inside());
    let (a, b) = (plan.spread(&scale), plan.spread(&shift));

    // dz, the gradient before the activation, is needed twice. It is kept where it is the residual's, or in dx where
    // that costs less than to compute it again.
    let nothing_between = act == Act::None && inside.is_none();
    let costly = matches!(act, Act::Silu | Act::Sigmoid | Act::Gelu | Act::GeluTanh);
    let keep = costly || !(nothing_between || matches!(skip, Skip::None));
    let with_residual = d_residual.is_some();
    let d_residual = Shared::new(d_residual.unwrap_or_default());
    let dx = Shared::new(dx);
    let kept = if with_residual { Some(d_residual) } else { keep.then_some(dx) };

    let center = plan.spread(mean);
    let mut parts = vec![0f64; plan.tasks * 2 * plan.width];
    parts.par_chunks_mut(2 * plan.width).enumerate().for_each(|(task, part)| {
        let (sum, product) = part.split_at_mut(plan.width);
        for (start, len) in plan.blocks(task) {
            let (x, dy) = (&x[start..][..len], &dy[start..][..len]);
            let Some(kept) = kept else {
                loops::add_gradient_products(act, x, dy, &a, &b, inside, &center, sum, product);
                continue;
            };
            // SAFETY: blocks are disjoint, and dx and d_residual have the length of x.
            let dz = unsafe { kept.part(start, len) };
            match skip {
                Skip::None => loops::gradient(act, x, &a, &b, inside, dy, dz),
                Skip::Residual(r) => {
                    loops::gradient_residual(act, x, &r[start..][..len], &a, &b, inside, dy, dz);
                }
                Skip::Output(y) => loops::gradient_of_output(act, &y[start..][..len], dy, dz),
            }
            loops::add_products(x, dz, &center, sum, product);
        }
    });

    // dx = scale · (dz - Σ dz / rows - (x - mean) · d_gamma / rows / sqrt(var + eps)), as a sum of three terms.
    let (mut slope, mut offset) = (vec![0f32; c], vec![0f32; c]);
    for (i, [sum, product]) in plan.join(&mut parts).into_iter().enumerate() {
        let inverse = 1.0 / (var[i] as f64 + eps).sqrt();
        (d_gamma[i], d_beta[i]) = ((product * inverse) as f32, sum as f32);
        let scale = scale[i] as f64;
        let by_x = -scale * product * inverse * inverse / rows as f64;
        slope[i] = by_x as f32;
        offset[i] = (-scale * sum / rows as f64 - by_x * mean[i] as f64) as f32;
    }
    let (slope, offset) = (plan.spread(&slope), plan.spread(&offset));
    (0..plan.tasks).into_par_iter().rev().for_each(|task| {
        let mut room = stream::room(len, plan.block);
        for (start, len) in plan.blocks(task) {
            let (x, dy) = (&x[start..][..len], &dy[start..][..len]);
            // SAFETY: blocks are disjoint.
            let dx = unsafe { dx.part(start, len) };
            if with_residual {
                // SAFETY: blocks are disjoint, and d_residual has the length of x.
                let dz = unsafe { &*d_residual.part(start, len) };
                stream::write(&mut room, dx, |dx| loops::finish(x, dz, &a, &slope, &offset, dx));
            } else if keep {
                loops::finish_in_place(x, &a, &slope, &offset, dx);
            } else {
                stream::write(&mut room, dx, |dx| {
                    loops::finish_gradient(act, x, dy, &a, &b, inside, &slope, &offset, dx);
                });
            }
        }
        stream::finish();
    });
}

/// Σ dz · x and Σ dz of each column of x and dz `[rows][c]`: the gradients of scale and shift of [`forward_with`], where dz is
/// the gradient before the activation.
///
/// # Panics
/// If lengths do not fit, or there are no rows.
pub fn column_products(
    x: &[f32],
    dz: &[f32],
    rows: usize,
    c: usize,
    d_scale: &mut [f32],
    d_shift: &mut [f32],
) {
    let plan = Plan::new(rows, c);
    assert!(x.len() == plan.len() && dz.len() == x.len(), "x and dz are not [{rows}][{c}]");
    assert!(d_scale.len() == c && d_shift.len() == c, "gradients are not [{c}]");
    let zeros = vec![0f32; plan.width];
    let mut parts = vec![0f64; plan.tasks * 2 * plan.width];
    parts.par_chunks_mut(2 * plan.width).enumerate().for_each(|(task, part)| {
        let (sum, product) = part.split_at_mut(plan.width);
        for (start, len) in plan.blocks(task) {
            loops::add_products(&x[start..][..len], &dz[start..][..len], &zeros, sum, product);
        }
    });
    for (i, [sum, product]) in plan.join(&mut parts).into_iter().enumerate() {
        (d_scale[i], d_shift[i]) = (product as f32, sum as f32);
    }
}
