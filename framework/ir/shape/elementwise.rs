//! Elementwise ops: the dims of one operand, or of two that broadcast.

use super::{Facts, Inputs, axis_index, check_clip, expect_dtype, input, one, show, typed, wrong_attr};
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

/// numpy broadcasting of two inputs of one dtype (f32, i64 or i32).
pub fn broadcast(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let (a, b) = (input(inputs, 0)?, input(inputs, 1)?);
    if !matches!(a.dtype, DType::F32 | DType::I64 | DType::I32) {
        return Err(format!("input 0 is {}, arithmetic takes f32, i64 or i32", a.dtype));
    }
    expect_dtype(1, &b, a.dtype)?;
    one(a.dtype, broadcast_dims(a.dims, b.dims)?)
}

/// The broadcast shape: a dimension meets its equal (a symbol: itself) or 1.
pub fn broadcast_dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, String> {
    let n = a.len().max(b.len());
    let at = |dims: &[Dim], i: usize| (i + dims.len()).checked_sub(n).map_or(Dim::Fixed(1), |j| dims[j]);
    (0..n)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (Dim::Fixed(1), y) => Ok(y),
            (x, Dim::Fixed(1)) => Ok(x),
            _ => Err(format!("shapes {} and {} do not broadcast", show(a), show(b))),
        })
        .collect()
}
