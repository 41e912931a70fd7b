//! Elementwise ops: the dims of one operand, or of two that broadcast.

use super::{
    Element, Facts, InferInput, Inputs, axis_index, check_clip, expect_dtype, expect_scalar, input, list_len,
    may_equal, one, optional, show, typed, wrong_attr,
};
use crate::op::Attr;
use crate::tensor::{DType, Dim};

/// Output as input 0.
pub fn same(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = input(inputs, 0)?;
    one(x.dtype, x.dims.to_vec())
}

/// As [`same`], for numbers.
pub fn same_number(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    if input(inputs, 0)?.dtype == DType::Bool {
        return Err("input 0 is bool, it must be a number".to_string());
    }
    same(attr, inputs)
}

/// As [`same`], f32 only; also checks the bounds of Clip and the axis of Softmax.
pub fn same_f32(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = typed(inputs, 0, DType::F32)?;
    match attr {
        Attr::Clip(c) => check_clip(c.min, c.max)?,
        Attr::Axis(a) => {
            axis_index(*a as i64, x.dims.len())?;
        }
        _ => {}
    }
    one(x.dtype, x.dims.to_vec())
}

/// The dtype becomes the attribute's.
pub fn cast(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Cast(dtype) = *attr else { return Err(wrong_attr(attr)) };
    one(dtype, input(inputs, 0)?.dims.to_vec())
}

/// As [`same`], bool only.
pub fn same_bool(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    typed(inputs, 0, DType::Bool)?;
    same(attr, inputs)
}

/// As [`same`], for integers.
pub fn same_integer(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    expect_integer(0, &input(inputs, 0)?)?;
    same(attr, inputs)
}

/// A question about each float.
pub fn f32_to_bool(_: &Attr, inputs: Inputs<'_>) -> Facts {
    one(DType::Bool, typed(inputs, 0, DType::F32)?.dims.to_vec())
}

/// Bounds are attributes, or operands of one element and x's dtype; then either may be absent.
pub fn clip(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Clip(bounds) = attr else { return Err(wrong_attr(attr)) };
    if inputs.len() == 1 {
        return same_f32(attr, inputs);
    }
    if bounds.min > f32::NEG_INFINITY || bounds.max < f32::INFINITY {
        return Err("has bounds as attributes and as operands".to_string());
    }
    let x = input(inputs, 0)?;
    for (i, bound) in [1, 2].into_iter().filter_map(|i| Some((i, optional(inputs, i)?))) {
        expect_dtype(i, &bound, x.dtype)?;
        expect_scalar(i, &bound)?;
    }
    same_number(attr, inputs)
}

fn expect_number(i: usize, x: &InferInput<'_>) -> Result<(), String> {
    if x.dtype == DType::Bool {
        return Err(format!("input {i} is bool, it must be a number"));
    }
    Ok(())
}

fn expect_integer(i: usize, x: &InferInput<'_>) -> Result<(), String> {
    if matches!(x.dtype, DType::F32 | DType::Bool) {
        return Err(format!("input {i} is {}, it must be an integer", x.dtype));
    }
    Ok(())
}

/// Two inputs of one dtype, as they broadcast.
fn two<'a>(inputs: Inputs<'a>) -> Result<(InferInput<'a>, Vec<Dim>), String> {
    let (a, b) = (input(inputs, 0)?, input(inputs, 1)?);
    expect_dtype(1, &b, a.dtype)?;
    Ok((a, broadcast_dims(a.dims, b.dims)?))
}

/// numpy broadcasting of two inputs of one dtype, which are numbers.
pub fn broadcast(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let (a, dims) = two(inputs)?;
    expect_number(0, &a)?;
    one(a.dtype, dims)
}

/// As [`broadcast`], for integers.
pub fn broadcast_integer(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let (a, dims) = two(inputs)?;
    expect_integer(0, &a)?;
    one(a.dtype, dims)
}

/// As [`broadcast`], for bools.
pub fn broadcast_bool(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let (a, dims) = two(inputs)?;
    expect_dtype(0, &a, DType::Bool)?;
    one(a.dtype, dims)
}

/// Two inputs of any one dtype to bool.
pub fn broadcast_compare(_: &Attr, inputs: Inputs<'_>) -> Facts {
    one(DType::Bool, two(inputs)?.1)
}

/// A power has the base's dtype; the exponent is any number.
pub fn broadcast_pow(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let (a, b) = (input(inputs, 0)?, input(inputs, 1)?);
    expect_number(0, &a)?;
    expect_number(1, &b)?;
    one(a.dtype, broadcast_dims(a.dims, b.dims)?)
}

/// Any count of inputs of one dtype.
pub fn variadic(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let first = input(inputs, 0)?;
    expect_number(0, &first)?;
    let mut dims = first.dims.to_vec();
    for i in 1..inputs.len() {
        let x = input(inputs, i)?;
        expect_dtype(i, &x, first.dtype)?;
        dims = broadcast_dims(&dims, x.dims)?;
    }
    one(first.dtype, dims)
}

/// As [`variadic`], f32 only.
pub fn variadic_f32(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    typed(inputs, 0, DType::F32)?;
    variadic(attr, inputs)
}

/// x and a shape that it broadcasts with.
pub fn expand(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let (x, shape) = (input(inputs, 0)?, typed(inputs, 1, DType::I64)?);
    let n = list_len(1, &shape)?;
    let size = |e: Element| e.dim().ok_or("input 1 holds a negative size");
    let target = match shape.elements() {
        Some(target) => target.into_iter().map(size).collect::<Result<Vec<Dim>, _>>()?,
        None => vec![Dim::Unknown; n],
    };
    one(x.dtype, broadcast_dims(x.dims, &target)?)
}

/// The second input broadcasts to the first.
pub fn prelu(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let (x, dims) = two(inputs)?;
    expect_number(0, &x)?;
    if dims.len() != x.dims.len() || !dims.iter().zip(x.dims).all(|(&a, &b)| may_equal(a, b)) {
        return Err(format!("the slope makes the result {}, x is {}", show(&dims), show(x.dims)));
    }
    one(x.dtype, dims)
}

/// Condition, and two inputs of one dtype.
pub fn choose(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let condition = typed(inputs, 0, DType::Bool)?;
    let (a, b) = (input(inputs, 1)?, input(inputs, 2)?);
    expect_dtype(2, &b, a.dtype)?;
    one(a.dtype, broadcast_dims(condition.dims, &broadcast_dims(a.dims, b.dims)?)?)
}

/// The broadcast of shapes that are numbers.
pub fn broadcast_numbers(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let fixed = |dims: &[usize]| dims.iter().map(|&d| Dim::Fixed(d as u64)).collect::<Vec<Dim>>();
    let dims = broadcast_dims(&fixed(a), &fixed(b))?;
    Ok(dims.iter().filter_map(|d| d.fixed()).map(|d| d as usize).collect())
}

/// The broadcast shape: a dimension meets its equal or 1. Which of two symbols is 1, if not both are the same number,
/// is not known.
pub fn broadcast_dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, String> {
    let n = a.len().max(b.len());
    let at = |dims: &[Dim], i: usize| (i + dims.len()).checked_sub(n).map_or(Dim::Fixed(1), |j| dims[j]);
    (0..n)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (Dim::Fixed(1), y) => Ok(y),
            (x, Dim::Fixed(1)) => Ok(x),
            (Dim::Fixed(n), _) | (_, Dim::Fixed(n)) if !both_fixed(at(a, i), at(b, i)) => Ok(Dim::Fixed(n)),
            (x, y) if !both_fixed(x, y) => Ok(Dim::Unknown),
            _ => Err(format!("shapes {} and {} do not broadcast", show(a), show(b))),
        })
        .collect()
}

fn both_fixed(a: Dim, b: Dim) -> bool {
    a.fixed().is_some() && b.fixed().is_some()
}
