//! Reductions.

use super::{
    Facts, Inputs, axis_index, expect_dtype, expect_scalar, input, list_len, one, optional, typed, wrong_attr,
};
use crate::op::{Attr, Axes};
use crate::tensor::{DType, Dim};

/// Which axes are reduced, as flags. An empty list means all.
pub fn reduced_axes(axes: &Axes, rank: usize) -> Result<Vec<bool>, String> {
    let mut reduced = vec![axes.as_slice().is_empty(); rank];
    for &axis in axes.as_slice() {
        if std::mem::replace(&mut reduced[axis_index(axis as i64, rank)?], true) {
            return Err(format!("axis {axis} is given twice"));
        }
    }
    Ok(reduced)
}

/// The mean: x f32, with something to average over.
pub fn reduce(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = typed(inputs, 0, DType::F32)?;
    let Attr::Reduce(a) = attr else { return Err(wrong_attr(attr)) };
    if optional(inputs, 1).is_none() {
        let reduced = reduced_axes(&a.axes, x.dims.len())?;
        if x.dims.iter().zip(&reduced).any(|(&dim, &gone)| gone && dim == Dim::Fixed(0)) {
            return Err("cannot average over no elements".to_string());
        }
    }
    reduce_any(attr, inputs)
}

/// As [`reduce_any`], f32 only.
pub fn reduce_f32(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    typed(inputs, 0, DType::F32)?;
    reduce_any(attr, inputs)
}

/// As [`reduce_any`], for numbers.
pub fn reduce_number(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    if input(inputs, 0)?.dtype == DType::Bool {
        return Err("input 0 is bool, it must be a number".to_string());
    }
    reduce_any(attr, inputs)
}

/// x and optional axes as an operand, then without axes as attributes.
pub fn reduce_any(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Reduce(a) = attr else { return Err(wrong_attr(attr)) };
    let x = input(inputs, 0)?;
    let n = x.dims.len();
    let reduced = match optional(inputs, 1) {
        None => reduced_axes(&a.axes, n)?,
        Some(_) if !a.axes.as_slice().is_empty() => {
            return Err("has axes as attributes and as an operand".to_string());
        }
        Some(axes) => {
            expect_dtype(1, &axes, DType::I64)?;
            let count = list_len(1, &axes)?;
            match axes.ints() {
                Some(axes) => {
                    let axes = Axes::new(&axes).ok_or_else(|| format!("{axes:?} are not at most 8 axes"))?;
                    reduced_axes(&axes, n)?
                }
                None => {
                    let left = if count == 0 { 0 } else { n.checked_sub(count).ok_or("too many axes")? };
                    return one(x.dtype, vec![Dim::Unknown; if a.keep_dims { n } else { left }]);
                }
            }
        }
    };
    let mut dims = Vec::new();
    for (&dim, &gone) in x.dims.iter().zip(&reduced) {
        match (gone, a.keep_dims) {
            (false, _) => dims.push(dim),
            (true, true) => dims.push(Dim::Fixed(1)),
            (true, false) => {}
        }
    }
    one(x.dtype, dims)
}

/// The index of an extreme along one axis.
pub fn arg_reduce(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [axis, keep] = attr.numbers()?;
    let x = input(inputs, 0)?;
    let axis = axis_index(axis.int(), x.dims.len())?;
    if x.dims[axis] == Dim::Fixed(0) {
        return Err("there is no largest or smallest of no elements".to_string());
    }
    let mut dims = x.dims.to_vec();
    match keep.flag() {
        true => dims[axis] = Dim::Fixed(1),
        false => drop(dims.remove(axis)),
    }
    one(DType::I64, dims)
}

/// x and an axis as an operand.
pub fn cum_sum(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let (x, axis) = (input(inputs, 0)?, input(inputs, 1)?);
    if !matches!(axis.dtype, DType::I64 | DType::I32) {
        return Err(format!("input 1 is {}, it must be i64 or i32", axis.dtype));
    }
    expect_scalar(1, &axis)?;
    if let Some(axis) = axis.ints().and_then(|v| v.first().copied()) {
        axis_index(axis, x.dims.len())?;
    }
    super::same_number(&Attr::None, inputs)
}
