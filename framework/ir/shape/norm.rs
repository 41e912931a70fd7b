//! Normalisations.

use super::{
    Fact, Facts, Inputs, axis_index, check_dims, check_u8, check_zero, expect_dims, expect_like, input,
    number, one, optional, typed, wrong_attr,
};
use crate::op::Attr;
use crate::tensor::{DType, Dim};

/// Batch normalisation: x[N,C,...] and four vectors of C, all f32.
pub fn first_f32(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Epsilon(epsilon) = attr else { return Err(wrong_attr(attr)) };
    check_epsilon(*epsilon)?;
    let x = typed(inputs, 0, DType::F32)?;
    let channels = *x.dims.get(1).ok_or("input 0 needs at least 2 dimensions [N,C,...]")?;
    for i in 1..5 {
        expect_like(i, &typed(inputs, i, DType::F32)?, &[channels])?;
    }
    one(x.dtype, x.dims.to_vec())
}

/// Layer normalisation: scale and bias have the trailing dimensions of x.
pub fn layer_norm(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Norm(a) = attr else { return Err(wrong_attr(attr)) };
    check_epsilon(a.epsilon)?;
    let x = typed(inputs, 0, DType::F32)?;
    let axis = axis_index(a.axis as i64, x.dims.len())?;
    for i in 1..3 {
        if i == 1 || optional(inputs, i).is_some() {
            expect_like(i, &typed(inputs, i, DType::F32)?, &x.dims[axis..])?;
        }
    }
    check_dims(x.dims)?;
    // Means, and inverses of deviations: a number for each run.
    let ones = vec![Dim::Fixed(1); x.dims.len() - axis];
    let statistic = Fact { dtype: x.dtype, dims: [&x.dims[..axis], &ones].concat() };
    Ok(vec![Fact { dtype: x.dtype, dims: x.dims.to_vec() }, statistic.clone(), statistic])
}

/// Rows of u8 or f32, summed and normalised; a u8 result, an f32 result, or both.
pub fn add_norm(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::AddNorm(a) = attr else { return Err(wrong_attr(attr)) };
    check_epsilon(a.epsilon)?;
    let x = input(inputs, 0)?;
    let &width = x.dims.last().ok_or("input 0 needs a dimension")?;
    if number(0, "the width", width)? == 0 {
        return Err("cannot normalise rows of no elements".to_string());
    }
    for i in 1..3 {
        expect_dims(i, &typed(inputs, i, DType::F32)?, &[width])?;
    }
    let operands = [Some((0, x, a.a)), optional(inputs, 3).map(|b| (3, b, a.b))];
    for (i, operand, affine) in operands.into_iter().flatten() {
        if !matches!(operand.dtype, DType::F32 | DType::U8) {
            return Err(format!("input {i} is {}, it must be u8 or f32", operand.dtype));
        }
        check_zero("a zero point", affine.zero)?;
        expect_dims(i, &operand, x.dims)?;
    }
    let mut facts = Vec::with_capacity(2);
    if let Some(out) = &a.out {
        check_u8(out)?;
        facts.extend(one(DType::U8, x.dims.to_vec())?);
    }
    if a.keep {
        facts.extend(one(DType::F32, x.dims.to_vec())?);
    }
    if facts.is_empty() { Err("has no result: neither u8 nor f32".to_string()) } else { Ok(facts) }
}

pub(super) fn check_epsilon(epsilon: f32) -> Result<(), String> {
    if epsilon.is_finite() && epsilon >= 0.0 {
        return Ok(());
    }
    Err(format!("epsilon is {epsilon}: it must be finite and not negative"))
}
