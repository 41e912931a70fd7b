//! Batch normalisation (Ioffe and Szegedy, 2015) fused with what follows it: the residual sum, the activation and,
//! in quantisation-aware training, the observer and the fake quantisation of the result.
//!
//! x is [rows][c], a row per pixel. All of it is bound by memory: training reads x twice and writes y once, and its
//! gradient reads x and dy twice and writes dx once, whatever is fused. The gradient computes the value before the
//! activation again from x, instead of reading what the forward pass could have kept.
//!
//! Work is done on groups of whole rows as wide as a multiple of 64 floats, so that columns stay in vector lanes for any
//! number of channels, and in blocks that stay in the first cache between the steps. Sums are f32 in a block, f64 from
//! there on, of values less a pivot of their column, so that a mean far from zero costs no digits.

use crate::activation::{Act, Function, with_function};
use crate::by_isa;
use crate::fake_quant::{self, Grid};
use crate::shared::Shared;
use rayon::prelude::*;

/// Turns the range of the activated result into the grid to put it on, if any: the observer of the caller.
pub type Observer<'a> = &'a dyn Fn(f32, f32) -> Option<Grid>;

/// What the gradient is told of the residual sum of the forward pass.
#[derive(Clone, Copy, Debug)]
pub enum Skip<'a> {
    None,
    /// What was added, [rows][c].
    Residual(&'a [f32]),
    /// Something was added, and this is the result y [rows][c], not quantised. Enough for [`Act::None`], [`Act::Relu`]
    /// and [`Act::Relu6`].
    Output(&'a [f32]),
}

/// How [rows][c] is cut. Depends on shape only.
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

const LANES: usize = 64;
const BLOCK: usize = 4096;
const TASKS: usize = 32;

impl Plan {
    fn new(rows: usize, c: usize) -> Plan {
        assert!(rows > 0 && c > 0, "[{rows}][{c}] has no statistics");
        let multiple = c * LANES / greatest_common_divisor(c, LANES);
        let width = multiple * (4 * LANES).div_ceil(multiple);
        let block = width * (BLOCK / width).max(1);
        let len = rows * c;
        let task = block * len.div_ceil(block).div_ceil(TASKS).max(4 * BLOCK / block).max(1);
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

    /// Adds up, over tasks and the rows of a group, values of columns that tasks left in [tasks][N][width].
    fn join<const N: usize>(&self, parts: &[f64], channel: usize) -> [f64; N] {
        let mut sums = [0f64; N];
        for task in parts.chunks_exact(N * self.width) {
            for (sum, columns) in sums.iter_mut().zip(task.chunks_exact(self.width)) {
                *sum += columns[channel..].iter().step_by(self.c).sum::<f64>();
            }
        }
        sums
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Normalisation as y = x · scale + shift. From the f32 statistics, which the gradient has too: it must come to the
/// same bits.
fn folded(gamma: &[f32], beta: &[f32], mean: &[f32], var: &[f32], eps: f64) -> (Vec<f32>, Vec<f32>) {
    let fold = |i: usize| {
        let scale = gamma[i] as f64 / (var[i] as f64 + eps).sqrt();
        (scale as f32, (beta[i] as f64 - mean[i] as f64 * scale) as f32)
    };
    (0..gamma.len()).map(fold).unzip()
}

/// `y = act(gamma · (x - mean) / sqrt(var + eps) + beta [+ residual])` with the mean and biased variance of each
/// column, which are returned in `mean` and `var` \[c\]. x, residual and y are [rows][c].
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
    let (scale, shift) = folded(gamma, beta, mean, var, eps);
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
    let pivot: Vec<f32> = (0..c)
        .map(|i| (0..samples).map(|s| x[s * rows / samples * c + i]).sum::<f32>() / samples as f32)
        .collect();
    let spread = plan.spread(&pivot);
    let mut parts = vec![0f64; tasks * 2 * width];
    let mut range_parts = vec![fake_quant::NOTHING; if ranges { tasks * width } else { 0 }];
    let range_part = Shared::new(&mut range_parts);
    parts.par_chunks_mut(2 * width).enumerate().for_each(|(task, part)| {
        let (sum, square) = part.split_at_mut(width);
        // SAFETY: each task has its own `width` elements.
        let range = if ranges { unsafe { range_part.part(task * width, width) } } else { &mut [] };
        for (start, len) in plan.blocks(task) {
            let x = &x[start..][..len];
            add_moments(x, &spread, sum, square);
            if ranges {
                widen(x, range);
            }
        }
    });
    for i in 0..c {
        let [sum, square] = plan.join(&parts, i);
        let offset = sum / rows as f64;
        mean[i] = (pivot[i] as f64 + offset) as f32;
        var[i] = (square / rows as f64 - offset * offset).max(0.0) as f32;
    }
    if !ranges {
        return Vec::new();
    }
    let of_channel =
        |i: usize| range_parts[i..].iter().step_by(c).copied().fold(fake_quant::NOTHING, fake_quant::join);
    // Copies of a channel are c apart within a group, and groups are a multiple of c.
    (0..c).map(of_channel).collect()
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
        Act::None | Act::Relu | Act::Relu6 | Act::Sigmoid => None,
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
        for (start, len) in plan.blocks(task) {
            // SAFETY: blocks are disjoint.
            let y = unsafe { y.part(start, len) };
            let x = &x[start..][..len];
            match residual {
                None => affine(act, x, &scale, &shift, y),
                Some(r) => affine_residual(act, x, &r[start..][..len], &scale, &shift, y),
            }
            match then {
                Then::Nothing => {}
                Then::Observe => range = fake_quant::join(range, fake_quant::range_block(y)),
                Then::Quantize(grid) => fake_quant::quantize_block(y, grid),
            }
        }
        range
    });
    tasks.reduce(|| fake_quant::NOTHING, fake_quant::join)
}

/// Gradients of [`forward`]: of x in `dx` [rows][c], of gamma and beta in `d_gamma` and `d_beta` \[c\], and of the residual
/// in `d_residual` [rows][c] if it is wanted. (It is `dy` itself for [`Act::None`] without a grid.)
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
    assert!([gamma.len(), beta.len(), mean.len(), var.len()] == [c; 4], "parameters are not [{c}]");
    assert!(d_gamma.len() == c && d_beta.len() == c, "gradients of parameters are not [{c}]");
    let (scale, shift) = folded(gamma, beta, mean, var, eps);
    let before = Before::new(&plan, act, grid, &scale, &shift);
    differentiate(x, skip, dy, &plan, &before, mean, dx, d_residual, |i, sum, product| {
        // dx = scale · (dz - Σ dz / rows - (x - mean) · d_gamma / rows / sqrt(var + eps)), as a sum of three terms.
        let inverse = 1.0 / (var[i] as f64 + eps).sqrt();
        (d_gamma[i], d_beta[i]) = ((product * inverse) as f32, sum as f32);
        let scale = scale[i] as f64;
        let by_x = -scale * product * inverse * inverse / rows as f64;
        (by_x as f32, (-scale * sum / rows as f64 - by_x * mean[i] as f64) as f32)
    });
}

/// Gradients of [`forward_with`], named as those of [`backward`]: of scale and shift in `d_scale` and `d_shift` \[c\].
///
/// # Panics
/// As [`backward`].
pub fn backward_with(
    x: &[f32],
    skip: Skip,
    dy: &[f32],
    rows: usize,
    c: usize,
    scale: &[f32],
    shift: &[f32],
    act: Act,
    grid: Option<Grid>,
    dx: &mut [f32],
    d_scale: &mut [f32],
    d_shift: &mut [f32],
    d_residual: Option<&mut [f32]>,
) {
    let plan = Plan::new(rows, c);
    assert!([scale.len(), shift.len(), d_scale.len(), d_shift.len()] == [c; 4], "parameters are not [{c}]");
    let before = Before::new(&plan, act, grid, scale, shift);
    let zeros = vec![0f32; c];
    differentiate(x, skip, dy, &plan, &before, &zeros, dx, d_residual, |i, sum, product| {
        (d_scale[i], d_shift[i]) = (product as f32, sum as f32);
        (0.0, 0.0)
    });
}

/// dx = scale · dz + slope · x + offset, where dz is the gradient before the activation and `terms` gives slope and
/// offset of a column for its number, Σ dz and Σ dz · (x - center).
fn differentiate(
    x: &[f32],
    skip: Skip,
    dy: &[f32],
    plan: &Plan,
    before: &Before,
    center: &[f32],
    dx: &mut [f32],
    d_residual: Option<&mut [f32]>,
    mut terms: impl FnMut(usize, f64, f64) -> (f32, f32),
) {
    let (len, rows, c) = (plan.len(), plan.rows, plan.c);
    assert!([x.len(), dy.len(), dx.len()] == [len; 3], "x, dy and dx are not [{rows}][{c}]");
    assert!(d_residual.as_ref().is_none_or(|d| d.len() == len), "d_residual is not [{rows}][{c}]");
    match skip {
        Skip::None => {}
        Skip::Residual(r) => assert_eq!(r.len(), len, "the residual has another shape than x"),
        Skip::Output(y) => {
            assert_eq!(y.len(), len, "y has another shape than x");
            let told = matches!(before.act, Act::None | Act::Relu | Act::Relu6) && before.inside.is_none();
            assert!(told, "the gradient needs the residual itself, not the output");
        }
    }
    let with_residual = d_residual.is_some();
    let d_residual = Shared::new(d_residual.unwrap_or_default());

    // The gradient before the activation: summed, and kept where it is the residual's.
    let center = plan.spread(center);
    let mut parts = vec![0f64; plan.tasks * 2 * plan.width];
    parts.par_chunks_mut(2 * plan.width).enumerate().for_each(|(task, part)| {
        let (sum, product) = part.split_at_mut(plan.width);
        let mut room = before.room(plan);
        for (start, len) in plan.blocks(task) {
            let x = &x[start..][..len];
            let dz = if with_residual {
                // SAFETY: blocks are disjoint, and d_residual has the length of x.
                let dz = unsafe { d_residual.part(start, len) };
                before.gradient_into(x, skip, dy, start, dz);
                &*dz
            } else {
                before.gradient(x, skip, dy, start, &mut room)
            };
            add_products(x, dz, &center, sum, product);
        }
    });

    let (slope, offset): (Vec<f32>, Vec<f32>) = (0..c)
        .map(|i| {
            let [sum, product] = plan.join(&parts, i);
            terms(i, sum, product)
        })
        .unzip();
    let (slope, offset) = (plan.spread(&slope), plan.spread(&offset));
    let dx = Shared::new(dx);
    (0..plan.tasks).into_par_iter().rev().for_each(|task| {
        let mut room = before.room(plan);
        for (start, len) in plan.blocks(task) {
            let x = &x[start..][..len];
            let dz = if with_residual {
                // SAFETY: blocks are disjoint, and d_residual has the length of x.
                unsafe { &*d_residual.part(start, len) }
            } else {
                before.gradient(x, skip, dy, start, &mut room)
            };
            // SAFETY: blocks are disjoint.
            let dx = unsafe { dx.part(start, len) };
            finish(x, dz, &before.scale, &slope, &offset, dx);
        }
    });
}

/// What lies between the normalised value and y.
struct Before {
    act: Act,
    /// Values of y that pass a gradient.
    inside: Option<(f32, f32)>,
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Before {
    fn new(plan: &Plan, act: Act, grid: Option<Grid>, scale: &[f32], shift: &[f32]) -> Before {
        let inside = grid.map(|grid| grid.inside());
        Before { act, inside, scale: plan.spread(scale), shift: plan.spread(shift) }
    }

    /// Whether dy is the gradient as it is.
    fn is_nothing(&self) -> bool {
        self.act == Act::None && self.inside.is_none()
    }

    /// Memory for the gradient of a block.
    fn room(&self, plan: &Plan) -> Vec<f32> {
        vec![0f32; if self.is_nothing() { 0 } else { plan.block }]
    }

    /// The gradient of the sum of normalised value and residual, of the block of x at `start`.
    fn gradient<'a>(
        &self,
        x: &[f32],
        skip: Skip,
        dy: &'a [f32],
        start: usize,
        room: &'a mut [f32],
    ) -> &'a [f32] {
        if self.is_nothing() {
            return &dy[start..][..x.len()];
        }
        let dz = &mut room[..x.len()];
        self.gradient_into(x, skip, dy, start, dz);
        dz
    }

    fn gradient_into(&self, x: &[f32], skip: Skip, dy: &[f32], start: usize, dz: &mut [f32]) {
        let dy = &dy[start..][..x.len()];
        let (act, scale, shift) = (self.act, &self.scale[..], &self.shift[..]);
        match (skip, self.inside) {
            (Skip::None, None) => gradient(act, x, scale, shift, dy, dz),
            (Skip::None, Some(inside)) => gradient_inside(act, x, scale, shift, inside, dy, dz),
            (Skip::Residual(r), None) => {
                gradient_residual(act, x, &r[start..][..x.len()], scale, shift, dy, dz)
            }
            (Skip::Residual(r), Some(inside)) => {
                gradient_residual_inside(act, x, &r[start..][..x.len()], scale, shift, inside, dy, dz);
            }
            (Skip::Output(y), _) => gradient_of_output(act, &y[start..][..x.len()], dy, dz),
        }
    }
}

by_isa! {
    /// Adds, for each column of the groups in x, Σ (x - pivot) and Σ (x - pivot)².
    fn add_moments(x: &[f32], pivot: &[f32], sum: &mut [f64], square: &mut [f64]) {
        accumulate(x, x, pivot, sum, square, |x, _, pivot| {
            let d = x - pivot;
            (d, d * d)
        });
    }
}

by_isa! {
    /// Adds, for each column of the groups in x, Σ dz and Σ dz (x - center).
    fn add_products(x: &[f32], dz: &[f32], center: &[f32], sum: &mut [f64], product: &mut [f64]) {
        accumulate(x, dz, center, sum, product, |x, dz, center| (dz, dz * (x - center)));
    }
}

/// Adds the two results of `f(a, b, column's value)` over the groups in a and b to the sums of their columns.
#[inline(always)]
fn accumulate(
    a: &[f32],
    b: &[f32],
    column: &[f32],
    first: &mut [f64],
    second: &mut [f64],
    f: impl Fn(f32, f32, f32) -> (f32, f32),
) {
    let width = column.len();
    assert!(a.len() == b.len() && first.len() == width && second.len() == width);
    let groups = a.len() / width;
    for at in (0..width).step_by(LANES) {
        let column: &[f32; LANES] =
            column[at..][..LANES].try_into().expect("a group is a multiple of the lanes");
        let (mut u, mut v) = ([0f32; LANES], [0f32; LANES]);
        for group in 0..groups {
            let (a, b) = (&a[group * width + at..][..LANES], &b[group * width + at..][..LANES]);
            for l in 0..LANES {
                let (p, q) = f(a[l], b[l], column[l]);
                u[l] += p;
                v[l] += q;
            }
        }
        for l in 0..LANES {
            first[at + l] += u[l] as f64;
            second[at + l] += v[l] as f64;
        }
    }
    // The last rows, which are no whole group.
    for (i, (&a, &b)) in a[groups * width..].iter().zip(&b[groups * width..]).enumerate() {
        let (p, q) = f(a, b, column[i]);
        first[i] += p as f64;
        second[i] += q as f64;
    }
}

by_isa! {
    /// Widens the range of each column by the groups in x.
    fn widen(x: &[f32], range: &mut [(f32, f32)]) {
        for x in x.chunks(range.len()) {
            for ((lo, hi), &x) in range.iter_mut().zip(x) {
                *lo = if x < *lo { x } else { *lo };
                *hi = if x > *hi { x } else { *hi };
            }
        }
    }
}

by_isa! {
    fn affine(act: Act, x: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) {
        let (scale, shift) = (scale, &shift[..scale.len()]);
        with_function!(act, F => for (x, y) in x.chunks(scale.len()).zip(y.chunks_mut(scale.len())) {
            for (((y, &x), &scale), &shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                *y = F::value(x * scale + shift);
            }
        })
    }
}

by_isa! {
    fn affine_residual(act: Act, x: &[f32], r: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) {
        let width = scale.len();
        with_function!(act, F => for ((x, r), y) in x.chunks(width).zip(r.chunks(width)).zip(y.chunks_mut(width)) {
            for ((((y, &x), &r), &scale), &shift) in y.iter_mut().zip(x).zip(r).zip(scale).zip(shift) {
                *y = F::value(x * scale + shift + r);
            }
        })
    }
}

by_isa! {
    fn gradient(act: Act, x: &[f32], scale: &[f32], shift: &[f32], dy: &[f32], dz: &mut [f32]) {
        let width = scale.len();
        with_function!(act, F => for ((x, dy), dz) in x.chunks(width).zip(dy.chunks(width)).zip(dz.chunks_mut(width)) {
            for ((((dz, &x), &dy), &scale), &shift) in dz.iter_mut().zip(x).zip(dy).zip(scale).zip(shift) {
                *dz = F::gradient(x * scale + shift, dy);
            }
        })
    }
}

by_isa! {
    fn gradient_inside(
        act: Act, x: &[f32], scale: &[f32], shift: &[f32], inside: (f32, f32), dy: &[f32], dz: &mut [f32],
    ) {
        let width = scale.len();
        with_function!(act, F => for ((x, dy), dz) in x.chunks(width).zip(dy.chunks(width)).zip(dz.chunks_mut(width)) {
            for ((((dz, &x), &dy), &scale), &shift) in dz.iter_mut().zip(x).zip(dy).zip(scale).zip(shift) {
                *dz = pull::<F>(x * scale + shift, inside, dy);
            }
        })
    }
}

by_isa! {
    fn gradient_residual(
        act: Act, x: &[f32], r: &[f32], scale: &[f32], shift: &[f32], dy: &[f32], dz: &mut [f32],
    ) {
        let width = scale.len();
        let rows = x.chunks(width).zip(r.chunks(width)).zip(dy.chunks(width)).zip(dz.chunks_mut(width));
        with_function!(act, F => for (((x, r), dy), dz) in rows {
            let columns = dz.iter_mut().zip(x).zip(r).zip(dy).zip(scale).zip(shift);
            for (((((dz, &x), &r), &dy), &scale), &shift) in columns {
                *dz = F::gradient(x * scale + shift + r, dy);
            }
        })
    }
}

by_isa! {
    fn gradient_residual_inside(
        act: Act, x: &[f32], r: &[f32], scale: &[f32], shift: &[f32], inside: (f32, f32), dy: &[f32], dz: &mut [f32],
    ) {
        let width = scale.len();
        let rows = x.chunks(width).zip(r.chunks(width)).zip(dy.chunks(width)).zip(dz.chunks_mut(width));
        with_function!(act, F => for (((x, r), dy), dz) in rows {
            let columns = dz.iter_mut().zip(x).zip(r).zip(dy).zip(scale).zip(shift);
            for (((((dz, &x), &r), &dy), &scale), &shift) in columns {
                *dz = pull::<F>(x * scale + shift + r, inside, dy);
            }
        })
    }
}

/// The gradient of the activation where the grid behind it passes one.
#[inline(always)]
fn pull<F: Function>(z: f32, (lo, hi): (f32, f32), dy: f32) -> f32 {
    let y = F::value(z);
    F::gradient(z, if y >= lo && y <= hi { dy } else { 0.0 })
}

by_isa! {
    fn gradient_of_output(act: Act, y: &[f32], dy: &[f32], dz: &mut [f32]) {
        with_function!(act, F => for ((dz, &y), &dy) in dz.iter_mut().zip(y).zip(dy) {
            *dz = F::gradient(y, dy);
        })
    }
}

by_isa! {
    /// dx = dz · scale + x · slope + offset.
    fn finish(x: &[f32], dz: &[f32], scale: &[f32], slope: &[f32], offset: &[f32], dx: &mut [f32]) {
        let width = scale.len();
        for ((x, dz), dx) in x.chunks(width).zip(dz.chunks(width)).zip(dx.chunks_mut(width)) {
            let columns = dx.iter_mut().zip(x).zip(dz).zip(scale).zip(slope).zip(offset);
            for (((((dx, &x), &dz), &scale), &slope), &offset) in columns {
                *dx = dz * scale + (x * slope + offset);
            }
        }
    }
}
