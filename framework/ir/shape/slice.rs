//! Ops that take parts of a tensor, repeat or pad it: what is computed of operands stays open until it is known.

use super::{
    Fact, Facts, InferInput, Inputs, axis_index, check_dims, expect_dtype, expect_scalar, input, list_len,
    number, one, optional, rank, show, sizes, typed, wrong_attr,
};
use crate::op::{Attr, Axes};
use crate::symbols::Element;
use crate::tensor::{DType, Dim, Elements};

fn expect_list(i: usize, x: &InferInput<'_>) -> Result<usize, String> {
    if !matches!(x.dtype, DType::I64 | DType::I32) {
        return Err(format!("input {i} is {}, it must be i64 or i32", x.dtype));
    }
    list_len(i, x)
}

/// The axes that an operand lists, from the front; all `n` first ones if it is absent; `None` if they are not known.
pub fn listed_axes(
    axes: Option<InferInput<'_>>,
    n: usize,
    rank: usize,
) -> Result<Option<Vec<usize>>, String> {
    let listed = match axes {
        None => Some((0..n as i64).collect()),
        Some(axes) => axes.ints(),
    };
    let Some(listed) = listed else { return Ok(None) };
    if listed.len() != n {
        return Err(format!("{} axes are listed for {n} numbers", listed.len()));
    }
    let mut seen = vec![false; rank];
    let mut out = Vec::with_capacity(n);
    for axis in listed {
        let at = axis_index(axis, rank)?;
        if std::mem::replace(&mut seen[at], true) {
            return Err(format!("axis {axis} is given twice"));
        }
        out.push(at);
    }
    Ok(Some(out))
}

/// First element and count along one dimension (Python's rules: ends are clamped).
pub fn slice_range(size: u64, start: i64, end: i64, step: i64) -> Result<(i64, u64), String> {
    if step == 0 {
        return Err("a step of 0 goes nowhere".to_string());
    }
    let n = i64::try_from(size).map_err(|_| "the dimension is too large".to_string())?;
    let from_front = |v: i64| if v < 0 { v.saturating_add(n) } else { v };
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let start = from_front(start).clamp(low.max(0), high.max(0));
    let end = from_front(end).clamp(low, high);
    let span = if step > 0 { end.saturating_sub(start) } else { start.saturating_sub(end) };
    let count = if span <= 0 || n == 0 { 0 } else { (span as u64).div_ceil(step.unsigned_abs()) };
    Ok((start, count))
}

/// x, starts, ends, optional axes and steps.
pub fn slice(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = input(inputs, 0)?;
    let n = expect_list(1, &input(inputs, 1)?)?;
    for i in 2..5 {
        if let Some(list) = optional(inputs, i)
            && expect_list(i, &list)? != n
        {
            return Err(format!("input {i} must list {n} numbers, as input 1 does"));
        }
    }
    let lists = |i: usize| optional(inputs, i).map_or(Some(vec![1; n]), |x| x.ints());
    let mut dims = x.dims.to_vec();
    let Some(axes) = listed_axes(optional(inputs, 3), n, dims.len())? else {
        return one(x.dtype, vec![Dim::Unknown; dims.len()]);
    };
    let known = (input(inputs, 1)?.ints(), input(inputs, 2)?.ints(), lists(4));
    for (i, &axis) in axes.iter().enumerate() {
        dims[axis] = match (&known, dims[axis]) {
            ((Some(starts), Some(ends), Some(steps)), Dim::Fixed(size)) => {
                Dim::Fixed(slice_range(size, starts[i], ends[i], steps[i])?.1)
            }
            // All of a dimension, whatever it is.
            ((Some(starts), Some(ends), Some(steps)), dim)
                if starts[i] == 0 && ends[i] >= i64::from(i32::MAX) && steps[i] == 1 =>
            {
                dim
            }
            _ => Dim::Unknown,
        };
    }
    one(x.dtype, dims)
}

/// Sizes of the parts of a dimension.
pub fn split_sizes(size: u64, parts: usize, given: Option<&[i64]>) -> Result<Vec<u64>, String> {
    let sizes = match given {
        Some(given) => sizes(1, given)?,
        // The last part may be smaller.
        None => {
            let part = size.div_ceil(parts.max(1) as u64);
            (0..parts as u64).map(|i| part.min(size.saturating_sub(i.saturating_mul(part)))).collect()
        }
    };
    let sum = sizes.iter().try_fold(0u64, |sum, &s| sum.checked_add(s));
    if sum != Some(size) {
        return Err(format!("parts of {sizes:?} do not make {size}"));
    }
    Ok(sizes)
}

/// How many numbers lie between two of which one is a symbol, in steps of one.
fn counted(inputs: Inputs<'_>) -> Option<Dim> {
    let element = |i: usize| input(inputs, i).ok()?.elements()?.first().copied();
    let (start, limit, Element::Number(1)) = (element(0)?, element(1)?, element(2)?) else { return None };
    let symbols = input(inputs, 0).ok()?.symbols;
    match symbols.sub(limit, start) {
        length @ Element::Symbol(s) if symbols.is_size(length) => Some(Dim::Symbol(s)),
        _ => None,
    }
}

/// x and optional sizes of the parts; as many results as there are parts.
pub fn split(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [axis, parts] = attr.numbers()?;
    let x = input(inputs, 0)?;
    let axis = axis_index(axis.int(), x.dims.len())?;
    let list = optional(inputs, 1);
    let parts = match &list {
        Some(list) => expect_list(1, list)?,
        None => usize::try_from(parts.int()).ok().filter(|&n| n <= 4096).ok_or("num_outputs is no count")?,
    };
    if parts == 0 {
        return Err("splits into no parts".to_string());
    }
    let given = list.as_ref().map(InferInput::ints);
    let part_dims: Vec<Dim> = match (x.dims[axis], given) {
        (Dim::Fixed(size), None) => split_sizes(size, parts, None)?.into_iter().map(Dim::Fixed).collect(),
        (Dim::Fixed(size), Some(Some(given))) => {
            split_sizes(size, parts, Some(&given))?.into_iter().map(Dim::Fixed).collect()
        }
        (_, Some(Some(given))) => sizes(1, &given)?.into_iter().map(Dim::Fixed).collect(),
        (dim, None) if parts == 1 => vec![dim],
        _ => vec![Dim::Unknown; parts],
    };
    let facts = part_dims.into_iter().map(|part| {
        let mut dims = x.dims.to_vec();
        dims[axis] = part;
        check_dims(&dims)?;
        Ok(Fact { dtype: x.dtype, dims })
    });
    facts.collect()
}

/// x, pads (all begins, then all ends), optional value and axes. Negative pads cut off.
pub fn pad(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let (x, pads) = (input(inputs, 0)?, typed(inputs, 1, DType::I64)?);
    let n = list_len(1, &pads)?;
    if let Some(value) = optional(inputs, 2) {
        expect_dtype(2, &value, x.dtype)?;
        expect_scalar(2, &value)?;
    }
    if !n.is_multiple_of(2) {
        return Err(format!("{n} pads: there must be two for each axis"));
    }
    let mut dims = x.dims.to_vec();
    if optional(inputs, 3).is_none() && n / 2 != dims.len() {
        return Err(format!("{n} pads for {} dimensions: there must be two for each", dims.len()));
    }
    let axes = listed_axes(optional(inputs, 3), n / 2, dims.len())?;
    let (Some(axes), Some(pads)) = (axes, pads.ints()) else {
        return one(x.dtype, vec![Dim::Unknown; dims.len()]);
    };
    for (i, &axis) in axes.iter().enumerate() {
        dims[axis] = match (dims[axis], pads[i], pads[n / 2 + i]) {
            (dim, 0, 0) => dim,
            (Dim::Fixed(size), before, after) => {
                let size = i128::from(size) + i128::from(before) + i128::from(after);
                Dim::Fixed(
                    u64::try_from(size).map_err(|_| format!("pads leave {size} elements on axis {axis}"))?,
                )
            }
            _ => Dim::Unknown,
        };
    }
    one(x.dtype, dims)
}

/// x and how often each dimension is repeated.
pub fn tile(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let (x, repeats) = (input(inputs, 0)?, typed(inputs, 1, DType::I64)?);
    if list_len(1, &repeats)? != x.dims.len() {
        return Err(format!("input 1 must list a count for each of {} dimensions", x.dims.len()));
    }
    let known = repeats.ints().map(|r| sizes(1, &r)).transpose()?;
    let times = |(i, &dim): (usize, &Dim)| match (dim, known.as_ref().map(|k| k[i])) {
        (dim, Some(1)) => Ok(dim),
        (Dim::Fixed(size), Some(n)) => {
            size.checked_mul(n).map(Dim::Fixed).ok_or_else(|| "too large".to_string())
        }
        _ => Ok(Dim::Unknown),
    };
    one(x.dtype, x.dims.iter().enumerate().map(times).collect::<Result<Vec<Dim>, String>>()?)
}

/// start, limit, delta: numbers of one dtype.
pub fn range(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let first = input(inputs, 0)?;
    if matches!(first.dtype, DType::Bool | DType::U8 | DType::I8) {
        return Err(format!("input 0 is {}, it must be f32, i32 or i64", first.dtype));
    }
    let mut known = Vec::with_capacity(3);
    for i in 0..3 {
        let x = typed(inputs, i, first.dtype)?;
        expect_scalar(i, &x)?;
        known.extend(x.value().map(|t| &t.elements));
    }
    if let Some(length) = counted(inputs) {
        return one(first.dtype, vec![length]);
    }
    if known.len() < 3 {
        return one(first.dtype, vec![Dim::Unknown]);
    }
    let count = match known[..] {
        [Elements::F32(a), Elements::F32(b), Elements::F32(step)] => {
            range_count(a[0].into(), b[0].into(), step[0].into())
        }
        _ => {
            let ints: Option<Vec<i64>> =
                (0..3).map(|i| input(inputs, i).ok()?.ints()?.first().copied()).collect();
            let ints = ints.ok_or("start, limit and delta must be one number each")?;
            let span = i128::from(ints[1]) - i128::from(ints[0]);
            match i128::from(ints[2]) {
                0 => None,
                step if (span < 0) != (step < 0) || span == 0 => Some(0),
                step => u64::try_from(span.unsigned_abs().div_ceil(step.unsigned_abs())).ok(),
            }
        }
    };
    one(first.dtype, vec![Dim::Fixed(count.ok_or("delta is 0, or the range has no end")?)])
}

/// `max(ceil((limit - start) / delta), 0)`, if that is a number that fits.
fn range_count(start: f64, limit: f64, delta: f64) -> Option<u64> {
    let n = ((limit - start) / delta).ceil();
    (n.is_finite() && n < 1e15).then(|| n.max(0.0) as u64)
}

/// Dimensions `start..end` of x, as i64.
pub fn shape_of(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = input(inputs, 0)?;
    let (start, end) = shape_range(attr, x.dims.len())?;
    one(DType::I64, vec![Dim::Fixed((end - start) as u64)])
}

/// Which dimensions Shape gives.
pub fn shape_range(attr: &Attr, rank: usize) -> Result<(usize, usize), String> {
    let [start, end] = attr.numbers()?.map(|p| p.int());
    let n = rank as i64;
    let clamp = |v: i64| if v < 0 { (v + n).max(0) } else { v.min(n) };
    let (start, end) = (clamp(start), clamp(end));
    Ok((start as usize, end.max(start) as usize))
}

/// A matrix, or a stack of them; optional diagonal.
pub fn trilu(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = input(inputs, 0)?;
    if x.dims.len() < 2 {
        return Err(format!("input 0 has {} dimensions, it must have at least 2", x.dims.len()));
    }
    if let Some(k) = optional(inputs, 1) {
        expect_dtype(1, &k, DType::I64)?;
        expect_scalar(1, &k)?;
    }
    one(x.dtype, x.dims.to_vec())
}

/// The dims of a matrix, f32.
pub fn eye_like(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let [h, w] = rank(0, &input(inputs, 0)?)?;
    one(DType::F32, vec![h, w])
}

fn block(size: i64) -> Result<u64, String> {
    u64::try_from(size)
        .ok()
        .filter(|&b| b > 0)
        .ok_or_else(|| format!("blocksize is {size}: it must be at least 1"))
}

pub fn depth_to_space(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let b = block(attr.numbers::<1>()?[0].int())?;
    let x = input(inputs, 0)?;
    let [n, c, h, w] = rank(0, &x)?;
    let channels = number(0, "the channel count", c)?;
    let square = b.checked_mul(b).filter(|&s| channels.is_multiple_of(s));
    let square = square.ok_or_else(|| format!("{channels} channels are not a multiple of {b} squared"))?;
    let times = |what: &str, dim: Dim| match dim {
        dim if b == 1 => Ok(dim),
        dim => {
            number(0, what, dim)?.checked_mul(b).map(Dim::Fixed).ok_or_else(|| format!("{what} overflows"))
        }
    };
    one(x.dtype, vec![n, Dim::Fixed(channels / square), times("the height", h)?, times("the width", w)?])
}

pub fn space_to_depth(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let b = block(attr.numbers::<1>()?[0].int())?;
    let x = input(inputs, 0)?;
    let [n, c, h, w] = rank(0, &x)?;
    let c = number(0, "the channel count", c)?.checked_mul(b).and_then(|c| c.checked_mul(b));
    let part = |what: &str, dim: Dim| match dim {
        dim if b == 1 => Ok(dim),
        dim => {
            let size = number(0, what, dim)?;
            let whole = size.is_multiple_of(b).then_some(Dim::Fixed(size / b));
            whole.ok_or_else(|| format!("{what} of {size} is not a multiple of {b}"))
        }
    };
    let c = Dim::Fixed(c.ok_or("the channel count overflows")?);
    one(x.dtype, vec![n, c, part("the height", h)?, part("the width", w)?])
}

/// x and how many elements of each sequence are reversed.
pub fn reverse_sequence(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [batch, time] = attr.numbers()?.map(|p| p.int());
    let (x, lengths) = (input(inputs, 0)?, typed(inputs, 1, DType::I64)?);
    let (b, t) = (axis_index(batch, x.dims.len())?, axis_index(time, x.dims.len())?);
    if b == t || b > 1 || t > 1 {
        return Err("batch_axis and time_axis must be 0 and 1".to_string());
    }
    let [n] = rank(1, &lengths)?;
    if n != x.dims[b] {
        return Err(format!("input 1 has {} lengths for {} sequences", show(&[n]), show(&x.dims[b..=b])));
    }
    one(x.dtype, x.dims.to_vec())
}

/// x cut or padded around its middle to a shape, on some axes.
pub fn center_crop_pad(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Axes(axes) = attr else { return Err(wrong_attr(attr)) };
    let (x, shape) = (input(inputs, 0)?, input(inputs, 1)?);
    let axes = chosen_axes(axes, x.dims.len())?;
    if expect_list(1, &shape)? != axes.len() {
        return Err(format!("input 1 must list a size for each of {} axes", axes.len()));
    }
    let mut dims = x.dims.to_vec();
    let known = shape.ints().map(|s| sizes(1, &s)).transpose()?;
    for (i, &axis) in axes.iter().enumerate() {
        dims[axis] = match &known {
            Some(known) => Dim::Fixed(known[i]),
            None => Dim::Unknown,
        };
    }
    one(x.dtype, dims)
}

/// Axes of an attribute from the front; none given means all.
pub fn chosen_axes(axes: &Axes, rank: usize) -> Result<Vec<usize>, String> {
    if axes.as_slice().is_empty() {
        return Ok((0..rank).collect());
    }
    let mut out: Vec<usize> = Vec::new();
    for &axis in axes.as_slice() {
        let at = axis_index(axis.into(), rank)?;
        if out.contains(&at) {
            return Err(format!("axis {axis} is given twice"));
        }
        out.push(at);
    }
    Ok(out)
}
