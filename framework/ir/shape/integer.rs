//! Products of integers, and quantisation to a range that is found at run time.

use super::{Fact, InferInput};
use super::{Facts, Inputs, conv, expect_dims, input, matmul, may_equal, one, optional, show, typed};
use crate::op::Attr;
use crate::tensor::{DType, Dim};

/// x and w are u8 or i8; zero points are of their types: one for x, one or one for each filter for w.
pub fn conv_integer(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [x, w] = eight_bits(inputs)?;
    if let Some(zero) = zero_point(inputs, 2, x.dtype)? {
        expect_one(2, &zero)?;
    }
    if let Some(zero) = zero_point(inputs, 3, w.dtype)? {
        expect_each(3, &zero, w.dims.first().copied())?;
    }
    as_i32(conv(attr, &[Some(float(x)), Some(float(w))])?)
}

/// a and b are u8 or i8; zero points are of their types: one, or one for each row of a and column of b.
pub fn matmul_integer(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [a, b] = eight_bits(inputs)?;
    if let Some(zero) = zero_point(inputs, 2, a.dtype)? {
        expect_each(2, &zero, a.dims.iter().rev().nth(1).copied())?;
    }
    if let Some(zero) = zero_point(inputs, 3, b.dtype)? {
        expect_each(3, &zero, b.dims.last().copied())?;
    }
    as_i32(matmul(attr, &[Some(float(a)), Some(float(b))])?)
}

/// The bytes, their scale and their zero point.
pub fn dynamic_quantize(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let mut facts = one(DType::U8, typed(inputs, 0, DType::F32)?.dims.to_vec())?;
    facts.extend(one(DType::F32, vec![])?);
    facts.extend(one(DType::U8, vec![])?);
    Ok(facts)
}

/// Whole numbers, and their scale.
pub fn dynamic_centred(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let mut facts = one(DType::F32, typed(inputs, 0, DType::F32)?.dims.to_vec())?;
    facts.extend(one(DType::F32, vec![])?);
    Ok(facts)
}

fn eight_bits<'a>(inputs: Inputs<'a>) -> Result<[InferInput<'a>; 2], String> {
    let pair = [input(inputs, 0)?, input(inputs, 1)?];
    match pair.iter().position(|x| !matches!(x.dtype, DType::U8 | DType::I8)) {
        Some(i) => Err(format!("input {i} is {}, it must be u8 or i8", pair[i].dtype)),
        None => Ok(pair),
    }
}

fn zero_point<'a>(inputs: Inputs<'a>, i: usize, dtype: DType) -> Result<Option<InferInput<'a>>, String> {
    let zero = optional(inputs, i);
    match zero.filter(|z| z.dtype != dtype) {
        Some(z) => Err(format!("input {i} is {}, it must be {dtype} as what it belongs to", z.dtype)),
        None => Ok(zero),
    }
}

fn expect_one(i: usize, zero: &InferInput<'_>) -> Result<(), String> {
    match zero.dims {
        [] => Ok(()),
        _ => expect_dims(i, zero, &[Dim::Fixed(1)]),
    }
}

fn expect_each(i: usize, zero: &InferInput<'_>, n: Option<Dim>) -> Result<(), String> {
    match (zero.dims, n) {
        ([] | [Dim::Fixed(1)], _) => Ok(()),
        (&[zero], Some(n)) if may_equal(zero, n) => Ok(()),
        _ => Err(format!("input {i} has shape {}, it must be one number or one for each", show(zero.dims))),
    }
}

fn float(x: InferInput<'_>) -> InferInput<'_> {
    InferInput { dtype: DType::F32, ..x }
}

fn as_i32(facts: Vec<Fact>) -> Facts {
    Ok(facts.into_iter().map(|f| Fact { dtype: DType::I32, ..f }).collect())
}
