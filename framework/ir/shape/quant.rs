//! Quantisation, and ops on eight-bit values.

use super::{
    Facts, Inputs, axis_index, broadcast_dims, check_u8, check_zero, expect_dims, expect_dtype, expect_like,
    input, may_equal, one, rank, show, typed, wrong_attr,
};
use crate::op::Attr;
use crate::tensor::{DType, Dim};

/// A table of one byte for every byte.
pub(super) fn check_table(inputs: Inputs<'_>, i: usize) -> Result<(), String> {
    expect_dims(i, &typed(inputs, i, DType::U8)?, &[Dim::Fixed(256)])
}

pub fn qlookup(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = typed(inputs, 0, DType::U8)?;
    check_table(inputs, 1)?;
    one(DType::U8, x.dims.to_vec())
}

pub fn qadd(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::QAdd(a) = attr else { return Err(wrong_attr(attr)) };
    check_u8(&a.out)?;
    check_zero("a_zero", a.a_zero)?;
    check_zero("b_zero", a.b_zero)?;
    let x = typed(inputs, 0, DType::U8)?;
    expect_dims(1, &typed(inputs, 1, DType::U8)?, x.dims)?;
    one(DType::U8, x.dims.to_vec())
}

pub fn qmul(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::QMul(a) = attr else { return Err(wrong_attr(attr)) };
    check_u8(&a.out)?;
    check_zero("a_zero", a.a_zero)?;
    check_zero("b_zero", a.b_zero)?;
    let (x, y) = (typed(inputs, 0, DType::U8)?, typed(inputs, 1, DType::U8)?);
    one(DType::U8, broadcast_dims(x.dims, y.dims)?)
}

/// Scale (f32) and zero point agree, and fit x: one element each, or one for each index of the axis.
fn check_scales(attr: &Attr, inputs: Inputs<'_>) -> Result<(), String> {
    let Attr::Axis(axis) = attr else { return Err(wrong_attr(attr)) };
    let (x, scale, zero) = (input(inputs, 0)?, typed(inputs, 1, DType::F32)?, input(inputs, 2)?);
    if let [] | [Dim::Fixed(1)] = scale.dims {
        return match zero.dims {
            [] | [Dim::Fixed(1)] => Ok(()),
            _ => Err(format!("scale is one number, but the zero point has shape {}", show(zero.dims))),
        };
    }
    let [n] = rank(1, &scale)?;
    expect_like(2, &zero, &[n])?;
    let axis = axis_index(*axis as i64, x.dims.len())?;
    if !may_equal(x.dims[axis], n) {
        return Err(format!(
            "scale has shape {}, axis {axis} of input 0 has {}",
            show(&[n]),
            show(&x.dims[axis..=axis])
        ));
    }
    Ok(())
}

pub fn quantize(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = typed(inputs, 0, DType::F32)?;
    let zero = input(inputs, 2)?;
    if !matches!(zero.dtype, DType::U8 | DType::I8) {
        return Err(format!("the zero point is {}, it must be u8 or i8", zero.dtype));
    }
    check_scales(attr, inputs)?;
    one(zero.dtype, x.dims.to_vec())
}

pub fn dequantize(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = input(inputs, 0)?;
    if !matches!(x.dtype, DType::U8 | DType::I8 | DType::I32) {
        return Err(format!("input 0 is {}, it must be u8, i8 or i32", x.dtype));
    }
    expect_dtype(2, &input(inputs, 2)?, x.dtype)?;
    check_scales(attr, inputs)?;
    one(DType::F32, x.dims.to_vec())
}
