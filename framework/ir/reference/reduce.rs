//! Reductions and softmax. Sums run in row-major order of the input.

use super::element::{Number, larger, on_numbers, smaller};
use super::{Inputs, Outputs, f32s, optional, output_dims, strides, tensor, wrong_attr};
use crate::op::{Attr, Axes};
use crate::shape;
use crate::tensor::{Elements, Tensor};

/// Which group of the result each element of x belongs to, and how many groups there are. Groups have the dims of x
/// with 1 for what is reduced.
struct Groups {
    reduced: Vec<bool>,
    own: Vec<usize>,
    out: Vec<usize>,
    dims: Vec<usize>,
    count: usize,
}

impl Groups {
    fn new(attr: &Attr, inputs: Inputs<'_>) -> Result<Groups, String> {
        let Attr::Reduce(r) = attr else { return Err(wrong_attr(attr)) };
        let x = tensor(inputs, 0)?;
        let reduced = match optional(inputs, 1) {
            None => shape::reduced_axes(&r.axes, x.dims.len())?,
            Some(t) => {
                let axes = t.as_i64().and_then(Axes::new).ok_or("input 1 must list at most 8 axes")?;
                shape::reduced_axes(&axes, x.dims.len())?
            }
        };
        let kept: Vec<usize> =
            x.dims.iter().zip(&reduced).map(|(&d, &gone)| if gone { 1 } else { d }).collect();
        let count = kept.iter().product();
        Ok(Groups { reduced, own: strides(&x.dims), out: strides(&kept), dims: x.dims.clone(), count })
    }

    /// The group of element `i`.
    fn of(&self, i: usize) -> usize {
        let place = |d: usize| i / self.own[d] % self.dims[d] * self.out[d];
        (0..self.dims.len()).filter(|&d| !self.reduced[d]).map(place).sum()
    }

    /// Elements of one group.
    fn size(&self) -> usize {
        self.dims.iter().zip(&self.reduced).filter(|(_, gone)| **gone).map(|(&d, _)| d).product()
    }

    /// Folds every group from `start`, in row-major order of the input.
    fn fold<T: Copy, A: Copy>(&self, x: &[T], start: A, f: impl Fn(A, T) -> A) -> Vec<A> {
        let mut y = vec![start; self.count];
        for (i, &x) in x.iter().enumerate() {
            let at = self.of(i);
            y[at] = f(y[at], x);
        }
        y
    }
}

pub fn mean(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::reduce, attr, inputs)?;
    let groups = Groups::new(attr, inputs)?;
    let mut y = groups.fold(f32s(inputs, 0)?, 0.0f32, |a, x| a + x);
    y.iter_mut().for_each(|y| *y /= groups.size() as f32);
    Ok(vec![Tensor::from_f32(&dims, y)])
}

/// Folds of numbers: integers wrap.
macro_rules! folds {
    ($($name:ident from $start:ident: $f:expr;)*) => {$(
        pub fn $name(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
            fn all<T: Number>(groups: &Groups, x: &[T]) -> Vec<T> {
                groups.fold(x, start::$start(), $f)
            }
            let dims = output_dims(shape::reduce_number, attr, inputs)?;
            let groups = Groups::new(attr, inputs)?;
            let elements = on_numbers!(&tensor(inputs, 0)?.elements, x => all(&groups, x));
            Ok(vec![Tensor { dims, elements }])
        }
    )*};
}

/// What folds of no elements give.
mod start {
    use super::Number;

    pub fn zero<T: Number>() -> T {
        T::default()
    }

    pub fn one<T: Number>() -> T {
        T::ONE
    }
}

folds! {
    sum from zero: |a, x| a.add(x);
    prod from one: |a, x| a.mul(x);
    sum_square from zero: |a, x| a.add(x.mul(x));
    l1 from zero: |a, x| a.add(if x < T::default() { T::default().sub(x) } else { x });
}

/// Folds of numbers and bools. No elements give what every element is better than.
fn extreme(attr: &Attr, inputs: Inputs<'_>, max: bool) -> Outputs {
    fn all<T: Number>(groups: &Groups, x: &[T], max: bool) -> Vec<T> {
        match max {
            true => groups.fold(x, T::LOWEST, |a, x| larger(x, a)),
            false => groups.fold(x, T::HIGHEST, |a, x| smaller(x, a)),
        }
    }
    let dims = output_dims(shape::reduce_any, attr, inputs)?;
    let groups = Groups::new(attr, inputs)?;
    let elements = match &tensor(inputs, 0)?.elements {
        Elements::Bool(x) => {
            Elements::Bool(groups.fold(x, u8::from(!max), |a, x| if max { a.max(x) } else { a.min(x) }))
        }
        other => on_numbers!(other, x => all(&groups, x, max)),
    };
    Ok(vec![Tensor { dims, elements }])
}

pub fn max(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    extreme(attr, inputs, true)
}

pub fn min(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    extreme(attr, inputs, false)
}

fn after_f32(attr: &Attr, inputs: Inputs<'_>, add: fn(f32, f32) -> f32, end: fn(f32) -> f32) -> Outputs {
    let dims = output_dims(shape::reduce_f32, attr, inputs)?;
    let groups = Groups::new(attr, inputs)?;
    let y = groups.fold(f32s(inputs, 0)?, 0.0f32, add);
    Ok(vec![Tensor::from_f32(&dims, y.into_iter().map(end).collect())])
}

pub fn l2(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    after_f32(attr, inputs, |a, x| a + x * x, f32::sqrt)
}

pub fn log_sum(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    after_f32(attr, inputs, |a, x| a + x, f32::ln)
}

/// `max + ln Σ exp(x - max)`, so that nothing overflows.
pub fn log_sum_exp(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::reduce_f32, attr, inputs)?;
    let groups = Groups::new(attr, inputs)?;
    let x = f32s(inputs, 0)?;
    let most = groups.fold(x, f32::NEG_INFINITY, f32::max);
    let mut y = vec![0.0f32; groups.count];
    for (i, &x) in x.iter().enumerate() {
        let at = groups.of(i);
        y[at] += (x - if most[at].is_finite() { most[at] } else { 0.0 }).exp();
    }
    let end = |(y, most): (f32, f32)| if most.is_finite() { most + y.ln() } else { y.ln() };
    Ok(vec![Tensor::from_f32(&dims, y.into_iter().zip(most).map(end).collect())])
}

fn arg_extreme(attr: &Attr, inputs: Inputs<'_>, max: bool) -> Outputs {
    fn all<T: Number>(x: &[T], n: usize, inner: usize, max: bool, last: bool) -> Vec<i64> {
        let lines = (0..x.len() / n).map(|line| line / inner * n * inner + line % inner);
        let best = |start: usize| {
            let mut best = 0;
            for j in 1..n {
                let (new, old) = (x[start + j * inner], x[start + best * inner]);
                if (max && new > old) || (!max && new < old) || (last && new == old) {
                    best = j;
                }
            }
            best as i64
        };
        lines.map(best).collect()
    }
    let dims = output_dims(shape::arg_reduce, attr, inputs)?;
    let [axis, _, last] = attr.numbers()?;
    let x = tensor(inputs, 0)?;
    let axis = shape::axis_index(axis.int(), x.dims.len())?;
    let (n, inner) = (x.dims[axis], x.dims[axis + 1..].iter().product::<usize>().max(1));
    let y = match &x.elements {
        Elements::F32(x) => all(x, n, inner, max, last.flag()),
        Elements::I64(x) => all(x, n, inner, max, last.flag()),
        Elements::I32(x) => all(x, n, inner, max, last.flag()),
        Elements::U8(x) | Elements::Bool(x) => all(x, n, inner, max, last.flag()),
        Elements::I8(x) => all(x, n, inner, max, last.flag()),
    };
    Ok(vec![Tensor::from_i64(&dims, y)])
}

pub fn arg_max(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    arg_extreme(attr, inputs, true)
}

pub fn arg_min(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    arg_extreme(attr, inputs, false)
}

/// Calls `f` with the length of a line and the distance of its elements, for every block of lines along the axis.
fn along_axis(attr: &Attr, inputs: Inputs<'_>, f: impl Fn(usize, usize, &mut [f32])) -> Outputs {
    let dims = output_dims(shape::same_f32, attr, inputs)?;
    let Attr::Axis(axis) = attr else { return Err(wrong_attr(attr)) };
    let axis = shape::axis_index(*axis as i64, dims.len())?;
    let (n, inner) = (dims[axis], dims[axis + 1..].iter().product::<usize>());
    let mut y = f32s(inputs, 0)?.to_vec();
    if n * inner > 0 {
        y.chunks_exact_mut(n * inner).for_each(|block| f(n, inner, block));
    }
    Ok(vec![Tensor::from_f32(&dims, y)])
}

/// `x - max - ln Σ exp(x - max)` along one axis.
pub fn log_softmax(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    along_axis(attr, inputs, |n, inner, y| {
        for i in 0..inner {
            let max = (0..n).fold(f32::NEG_INFINITY, |m, j| m.max(y[j * inner + i]));
            let sum = (0..n).fold(0.0f32, |sum, j| sum + (y[j * inner + i] - max).exp()).ln();
            (0..n).for_each(|j| y[j * inner + i] = y[j * inner + i] - max - sum);
        }
    })
}

/// 1 at the first largest element along one axis, 0 elsewhere.
pub fn hardmax(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    along_axis(attr, inputs, |n, inner, y| {
        for i in 0..inner {
            let best =
                (1..n).fold(0, |best, j| if y[j * inner + i] > y[best * inner + i] { j } else { best });
            (0..n).for_each(|j| y[j * inner + i] = if j == best { 1.0 } else { 0.0 });
        }
    })
}

/// `exp(x - max) / Σ exp(x - max)` along one axis.
pub fn softmax(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    along_axis(attr, inputs, softmax_block)
}

/// In place over `y[n, inner]`, along the first dimension.
pub fn softmax_block(n: usize, inner: usize, y: &mut [f32]) {
    for i in 0..inner {
        let max = (0..n).fold(f32::NEG_INFINITY, |m, j| m.max(y[j * inner + i]));
        let mut sum = 0.0f32;
        for j in 0..n {
            let e = (y[j * inner + i] - max).exp();
            y[j * inner + i] = e;
            sum += e;
        }
        (0..n).for_each(|j| y[j * inner + i] /= sum);
    }
}
