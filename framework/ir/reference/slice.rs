//! Ops that take parts of a tensor, repeat or pad it.

use super::element::{Number, on_all, on_numbers};
use super::layout::pick;
use super::{Inputs, Outputs, all_output_dims, optional, output_dims, strides, tensor, wrong_attr};
use crate::op::Attr;
use crate::shape;
use crate::tensor::{Elements, Tensor};

/// Integers of an operand, whichever integer type it has.
pub(super) fn ints(t: &Tensor) -> Result<Vec<i64>, String> {
    match &t.elements {
        Elements::I64(v) => Ok(v.clone()),
        Elements::I32(v) => Ok(v.iter().map(|&v| v.into()).collect()),
        _ => Err(format!("a list is {}, it must be i64 or i32", t.dtype())),
    }
}

pub(super) fn int(inputs: Inputs<'_>, i: usize, absent: i64) -> Result<i64, String> {
    match optional(inputs, i) {
        None => Ok(absent),
        Some(t) => ints(t)?.first().copied().ok_or_else(|| format!("input {i} is empty")),
    }
}

/// Axes that an operand lists, from the front; the first `n` if it is absent.
fn axes(inputs: Inputs<'_>, i: usize, n: usize, rank: usize) -> Result<Vec<usize>, String> {
    match optional(inputs, i) {
        None => Ok((0..n).collect()),
        Some(t) => ints(t)?.into_iter().map(|axis| shape::axis_index(axis, rank)).collect(),
    }
}

pub fn slice(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::slice, attr, inputs)?;
    let x = tensor(inputs, 0)?;
    let (starts, ends) = (ints(tensor(inputs, 1)?)?, ints(tensor(inputs, 2)?)?);
    let steps = optional(inputs, 4).map_or(Ok(vec![1; starts.len()]), ints)?;
    let (mut first, mut step) = (vec![0i64; dims.len()], vec![1i64; dims.len()]);
    for (i, axis) in axes(inputs, 3, starts.len(), dims.len())?.into_iter().enumerate() {
        first[axis] = shape::slice_range(x.dims[axis] as u64, starts[i], ends[i], steps[i])?.0;
        step[axis] = steps[i];
    }
    let (own, out) = (strides(&x.dims), strides(&dims));
    let from = |i: usize| -> usize {
        (0..dims.len()).map(|d| (first[d] + (i / out[d] % dims[d]) as i64 * step[d]) as usize * own[d]).sum()
    };
    Ok(vec![pick(x, dims.clone(), from)])
}

pub fn split(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let parts = all_output_dims(shape::split, attr, inputs)?;
    let x = tensor(inputs, 0)?;
    let axis = shape::axis_index(attr.numbers::<1>()?[0].int(), x.dims.len())?;
    let inner: usize = x.dims[axis + 1..].iter().product();
    let mut first = 0;
    let mut results = Vec::with_capacity(parts.len());
    for dims in parts {
        let run = dims[axis] * inner;
        let from = |i: usize| i / run * x.dims[axis] * inner + first * inner + i % run;
        let part = dims[axis];
        results.push(pick(x, dims, from));
        first += part;
    }
    Ok(results)
}

/// Where a padded position lies in the data; `None`: it holds the constant.
fn padded(mode: usize, at: i64, size: i64) -> Option<i64> {
    match mode {
        _ if (0..size).contains(&at) => Some(at),
        1 if size == 1 => Some(0),
        1 => {
            // Mirrored at the first and the last element, which are not repeated.
            let period = 2 * (size - 1);
            let at = at.rem_euclid(period);
            Some(if at < size { at } else { period - at })
        }
        2 => Some(at.clamp(0, size - 1)),
        3 => Some(at.rem_euclid(size)),
        _ => None,
    }
}

pub fn pad(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::pad, attr, inputs)?;
    let mode = attr.numbers::<1>()?[0].choice();
    let (x, pads) = (tensor(inputs, 0)?, ints(tensor(inputs, 1)?)?);
    let mut before = vec![0i64; dims.len()];
    for (i, axis) in axes(inputs, 3, pads.len() / 2, dims.len())?.into_iter().enumerate() {
        before[axis] = pads[i];
    }
    if mode != 0 && x.is_empty() && dims.iter().product::<usize>() > 0 {
        return Err("there is nothing to pad with: input 0 has no elements".to_string());
    }
    let (own, out) = (strides(&x.dims), strides(&dims));
    let from = |i: usize| -> Option<usize> {
        let place = |d: usize| padded(mode, (i / out[d] % dims[d]) as i64 - before[d], x.dims[d] as i64);
        (0..dims.len()).try_fold(0, |sum, d| Some(sum + place(d)? as usize * own[d]))
    };
    let n: usize = dims.iter().product();
    macro_rules! of {
        ($kind:ident, $x:expr) => {{
            let constant = match optional(inputs, 2).map(|t| &t.elements) {
                Some(Elements::$kind(c)) => c.first().copied().unwrap_or_default(),
                _ => Default::default(),
            };
            Elements::$kind((0..n).map(|i| from(i).map_or(constant, |i| $x[i])).collect())
        }};
    }
    let elements = match &x.elements {
        Elements::F32(x) => of!(F32, x),
        Elements::I64(x) => of!(I64, x),
        Elements::I32(x) => of!(I32, x),
        Elements::U8(x) => of!(U8, x),
        Elements::I8(x) => of!(I8, x),
        Elements::Bool(x) => of!(Bool, x),
    };
    Ok(vec![Tensor { dims, elements }])
}

pub fn tile(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::tile, attr, inputs)?;
    let x = tensor(inputs, 0)?;
    let (own, out) = (strides(&x.dims), strides(&dims));
    let from = |i: usize| (0..dims.len()).map(|d| i / out[d] % dims[d] % x.dims[d].max(1) * own[d]).sum();
    Ok(vec![pick(x, dims.clone(), from)])
}

/// `start + i * delta`.
pub fn range(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    fn all<T: Number>(n: usize, start: T, delta: T) -> Vec<T> {
        let step = |v: &T| Some(v.add(delta));
        std::iter::successors(Some(start), step).take(n).collect()
    }
    let dims = output_dims(shape::range, attr, inputs)?;
    let (start, delta) = (tensor(inputs, 0)?, tensor(inputs, 2)?);
    let elements = match (&start.elements, &delta.elements) {
        // Each from its index: sums of floats would drift.
        (Elements::F32(start), Elements::F32(delta)) => {
            Elements::F32((0..dims[0]).map(|i| start[0] + i as f32 * delta[0]).collect())
        }
        (Elements::I64(start), Elements::I64(delta)) => Elements::I64(all(dims[0], start[0], delta[0])),
        (Elements::I32(start), Elements::I32(delta)) => Elements::I32(all(dims[0], start[0], delta[0])),
        _ => return Err("start and delta must be f32, i32 or i64".to_string()),
    };
    Ok(vec![Tensor { dims, elements }])
}

pub fn shape_of(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let x = tensor(inputs, 0)?;
    let (start, end) = shape::shape_range(attr, x.dims.len())?;
    let dims: Vec<i64> = x.dims[start..end].iter().map(|&d| d as i64).collect();
    Ok(vec![Tensor::from_i64(&[dims.len()], dims)])
}

/// Zeros below the diagonal k, or above it.
pub fn trilu(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::trilu, attr, inputs)?;
    let upper = attr.numbers::<1>()?[0].flag();
    let k = int(inputs, 1, 0)?;
    let (h, w) = (dims[dims.len() - 2], dims[dims.len() - 1]);
    let keeps = |i: usize| {
        let beyond = (i % w) as i64 - (i / w % h) as i64;
        if upper { beyond >= k } else { beyond <= k }
    };
    let elements = on_all!(&tensor(inputs, 0)?.elements, x =>
        x.iter().enumerate().map(|(i, &x)| if keeps(i) { x } else { Default::default() }).collect());
    Ok(vec![Tensor { dims, elements }])
}

pub fn eye_like(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::eye_like, attr, inputs)?;
    let k = attr.numbers::<1>()?[0].int();
    let one = |i: usize| if (i % dims[1]) as i64 == (i / dims[1]) as i64 + k { 1.0 } else { 0.0 };
    Ok(vec![Tensor::from_f32(&dims, (0..dims[0] * dims[1]).map(one).collect())])
}

pub fn depth_to_space(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::depth_to_space, attr, inputs)?;
    let [block, mode] = attr.numbers()?;
    let (b, x) = (block.int() as usize, tensor(inputs, 0)?);
    let (own, out, c) = (strides(&x.dims), strides(&dims), dims[1]);
    let from = |i: usize| {
        let at: Vec<usize> = (0..4).map(|d| i / out[d] % dims[d]).collect();
        let part = at[2] % b * b + at[3] % b;
        // Depth holds (row, column, channel), or (channel, row, column).
        let channel = if mode.choice() == 0 { part * c + at[1] } else { at[1] * b * b + part };
        at[0] * own[0] + channel * own[1] + at[2] / b * own[2] + at[3] / b
    };
    Ok(vec![pick(x, dims.clone(), from)])
}

pub fn space_to_depth(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::space_to_depth, attr, inputs)?;
    let (b, x) = (attr.numbers::<1>()?[0].int() as usize, tensor(inputs, 0)?);
    let (own, out, c) = (strides(&x.dims), strides(&dims), x.dims[1]);
    let from = |i: usize| {
        let at: Vec<usize> = (0..4).map(|d| i / out[d] % dims[d]).collect();
        let part = at[1] / c;
        at[0] * own[0] + at[1] % c * own[1] + (at[2] * b + part / b) * own[2] + at[3] * b + part % b
    };
    Ok(vec![pick(x, dims.clone(), from)])
}

pub fn reverse_sequence(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::reverse_sequence, attr, inputs)?;
    let [batch, time] = attr.numbers()?.map(|p| p.int());
    let x = tensor(inputs, 0)?;
    let (b, t) = (shape::axis_index(batch, dims.len())?, shape::axis_index(time, dims.len())?);
    let lengths = ints(tensor(inputs, 1)?)?;
    if lengths.iter().any(|&n| n < 0 || n > dims[t] as i64) {
        return Err(format!("a length is not in 0..={}", dims[t]));
    }
    let own = strides(&dims);
    let from = |i: usize| {
        let (at, n) = (i / own[t] % dims[t], lengths[i / own[b] % dims[b]] as usize);
        if at < n { i - at * own[t] + (n - 1 - at) * own[t] } else { i }
    };
    Ok(vec![pick(x, dims.clone(), from)])
}

/// What is cut off or added is halved; the odd one stands behind.
pub fn center_crop_pad(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::center_crop_pad, attr, inputs)?;
    let Attr::Axes(_) = attr else { return Err(wrong_attr(attr)) };
    let x = tensor(inputs, 0)?;
    let (own, out) = (strides(&x.dims), strides(&dims));
    let shift = |d: usize| {
        let (have, want) = (x.dims[d] as i64, dims[d] as i64);
        if want < have { (have - want) / 2 } else { -((want - have) / 2) }
    };
    let shifts: Vec<i64> = (0..dims.len()).map(shift).collect();
    let from = |i: usize| -> Option<usize> {
        (0..dims.len()).try_fold(0, |sum, d| {
            let at = (i / out[d] % dims[d]) as i64 + shifts[d];
            (0..x.dims[d] as i64).contains(&at).then(|| sum + at as usize * own[d])
        })
    };
    let n: usize = dims.iter().product();
    let elements =
        on_all!(&x.elements, x => (0..n).map(|i| from(i).map_or(Default::default(), |i| x[i])).collect());
    Ok(vec![Tensor { dims, elements }])
}

/// Running sums along an axis that is an operand.
pub fn cum_sum(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    fn all<T: Number>(x: &[T], n: usize, inner: usize, exclusive: bool, reverse: bool) -> Vec<T> {
        let mut y = x.to_vec();
        for start in (0..x.len()).filter(|i| (i / inner).is_multiple_of(n)) {
            let mut sum = T::default();
            for step in 0..n {
                let at = start + if reverse { n - 1 - step } else { step } * inner;
                let next = sum.add(x[at]);
                y[at] = if exclusive { sum } else { next };
                sum = next;
            }
        }
        y
    }
    let dims = output_dims(shape::cum_sum, attr, inputs)?;
    let [exclusive, reverse] = attr.numbers()?.map(|p| p.flag());
    let axis = shape::axis_index(int(inputs, 1, 0)?, dims.len())?;
    let (n, inner) = (dims[axis], dims[axis + 1..].iter().product::<usize>());
    let elements =
        on_numbers!(&tensor(inputs, 0)?.elements, x => all(x, n.max(1), inner.max(1), exclusive, reverse));
    Ok(vec![Tensor { dims, elements }])
}
