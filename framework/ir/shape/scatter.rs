//! Ops that read or write by index, and ops whose results are as long as the data say.

use super::{
    Fact, Facts, InferInput, Inputs, axis_index, check_dims, expect_dims, expect_dtype, expect_scalar, input,
    number, one, optional, show, typed,
};
use crate::op::Attr;
use crate::tensor::{DType, Dim};

fn expect_indices(i: usize, x: &InferInput<'_>) -> Result<(), String> {
    if !matches!(x.dtype, DType::I64 | DType::I32) {
        return Err(format!("input {i} is {}, it must be i64 or i32", x.dtype));
    }
    Ok(())
}

/// x and indices of one rank, along an axis.
pub fn gather_elements(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Axis(axis) = attr else { return Err(super::wrong_attr(attr)) };
    let (x, indices) = (input(inputs, 0)?, input(inputs, 1)?);
    expect_indices(1, &indices)?;
    fits_indices(&x, &indices, (*axis).into())?;
    one(x.dtype, indices.dims.to_vec())
}

/// Indices have x's rank, and no more of any dimension but the axis.
fn fits_indices(x: &InferInput<'_>, indices: &InferInput<'_>, axis: i64) -> Result<(), String> {
    let axis = axis_index(axis, x.dims.len())?;
    let fits = |(d, (have, want)): (usize, (&Dim, &Dim))| match (have.fixed(), want.fixed()) {
        (Some(have), Some(want)) => d == axis || want <= have,
        _ => true,
    };
    if x.dims.len() != indices.dims.len() || !x.dims.iter().zip(indices.dims).enumerate().all(fits) {
        return Err(format!("indices {} do not fit {}", show(indices.dims), show(x.dims)));
    }
    Ok(())
}

/// x, indices `[.., k]`: the last dimension counts the dimensions of x that an index goes into.
pub fn gather_nd(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [batch] = attr.numbers()?;
    let (x, indices) = (input(inputs, 0)?, typed(inputs, 1, DType::I64)?);
    let (&k, front) = indices.dims.split_last().ok_or("input 1 is one number: it needs a dimension")?;
    let k = number(1, "the last dimension", k)? as usize;
    let batch = usize::try_from(batch.int()).ok().filter(|&b| b <= front.len() && b + k <= x.dims.len());
    let batch = batch.ok_or_else(|| format!("indices {} do not fit {}", show(indices.dims), show(x.dims)))?;
    let differ = |(a, b): (&Dim, &Dim)| a.fixed().is_some() && b.fixed().is_some() && a != b;
    if x.dims[..batch].iter().zip(front).any(differ) || k == 0 {
        return Err(format!("indices {} do not fit {}", show(indices.dims), show(x.dims)));
    }
    one(x.dtype, [front, &x.dims[batch + k..]].concat())
}

/// x, indices, updates: x with some elements replaced.
pub fn scatter_elements(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [axis] = attr.numbers()?;
    let (x, indices, updates) = (input(inputs, 0)?, input(inputs, 1)?, input(inputs, 2)?);
    expect_indices(1, &indices)?;
    fits_indices(&x, &indices, axis.int())?;
    expect_dtype(2, &updates, x.dtype)?;
    expect_dims(2, &updates, indices.dims)?;
    one(x.dtype, x.dims.to_vec())
}

pub fn scatter_nd(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let (x, indices, updates) = (input(inputs, 0)?, typed(inputs, 1, DType::I64)?, input(inputs, 2)?);
    let (&k, front) = indices.dims.split_last().ok_or("input 1 is one number: it needs a dimension")?;
    let k = number(1, "the last dimension", k)? as usize;
    if k > x.dims.len() {
        return Err(format!("indices {} do not fit {}", show(indices.dims), show(x.dims)));
    }
    expect_dtype(2, &updates, x.dtype)?;
    expect_dims(2, &updates, &[front, &x.dims[k..]].concat())?;
    one(x.dtype, x.dims.to_vec())
}

/// indices, depth, values `[off, on]`.
pub fn one_hot(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [axis] = attr.numbers()?;
    let (indices, depth, values) = (input(inputs, 0)?, input(inputs, 1)?, input(inputs, 2)?);
    expect_scalar(1, &depth)?;
    expect_dims(2, &values, &[Dim::Fixed(2)])?;
    let mut dims = indices.dims.to_vec();
    let axis = axis_index(axis.int(), dims.len() + 1)?;
    let known = match depth.dtype {
        DType::F32 => super::known_floats(&depth).and_then(|v| Some(*v.first()? as i64)),
        _ => depth.ints().and_then(|v| v.first().copied()),
    };
    dims.insert(
        axis,
        match known {
            Some(n) => {
                Dim::Fixed(u64::try_from(n).map_err(|_| format!("depth is {n}: it must not be negative"))?)
            }
            None => Dim::Unknown,
        },
    );
    one(values.dtype, dims)
}

/// Indices of what is not zero, `[rank, count]`.
pub fn non_zero(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = input(inputs, 0)?;
    one(DType::I64, vec![Dim::Fixed(x.dims.len() as u64), Dim::Unknown])
}

/// x, condition bool list: slices of an axis, or elements of x flattened.
pub fn compress(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [axis] = attr.numbers()?;
    let (x, condition) = (input(inputs, 0)?, typed(inputs, 1, DType::Bool)?);
    let [_] = super::rank(1, &condition)?;
    let mut dims = x.dims.to_vec();
    match axis.int() {
        NO_AXIS => dims = vec![Dim::Unknown],
        axis => {
            let axis = axis_index(axis, dims.len())?;
            dims[axis] = Dim::Unknown;
        }
    }
    one(x.dtype, dims)
}

/// Stands for an axis that is not given.
pub const NO_AXIS: i64 = i32::MAX as i64;

/// Distinct elements, or slices of an axis; their first places, what each element became, and counts.
pub fn unique(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [axis] = attr.numbers()?;
    let x = input(inputs, 0)?;
    let count = Dim::Unknown;
    let mut dims = x.dims.to_vec();
    let whole = match axis.int() {
        NO_AXIS => {
            let all = x.dims.iter().try_fold(1u64, |p, d| p.checked_mul(d.fixed()?));
            dims = vec![count];
            all.map_or(Dim::Unknown, Dim::Fixed)
        }
        axis => {
            let axis = axis_index(axis, dims.len())?;
            std::mem::replace(&mut dims[axis], count)
        }
    };
    check_dims(&dims)?;
    let list = |dim: Dim| Fact { dtype: DType::I64, dims: vec![dim] };
    Ok(vec![Fact { dtype: x.dtype, dims }, list(count), list(whole), list(count)])
}

/// x and k: values and indices.
pub fn top_k(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [axis] = attr.numbers()?;
    let (x, k) = (input(inputs, 0)?, typed(inputs, 1, DType::I64)?);
    expect_scalar(1, &k)?;
    let axis = axis_index(axis.int(), x.dims.len())?;
    let mut dims = x.dims.to_vec();
    dims[axis] = match k.ints().and_then(|k| k.first().copied()) {
        Some(k) => {
            let fits = u64::try_from(k).ok().filter(|&k| dims[axis].fixed().is_none_or(|n| k <= n));
            Dim::Fixed(fits.ok_or_else(|| {
                format!("k is {k}, axis {axis} of input 0 has {}", show(&dims[axis..=axis]))
            })?)
        }
        None => Dim::Unknown,
    };
    check_dims(&dims)?;
    Ok(vec![Fact { dtype: x.dtype, dims: dims.clone() }, Fact { dtype: DType::I64, dims }])
}

/// boxes `f32[B,N,4]`, scores `f32[B,C,N]`, optional limit, overlap and score: rows of (batch, class, box).
pub fn non_max_suppression(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let [b, n, four] = super::rank(0, &typed(inputs, 0, DType::F32)?)?;
    let scores = typed(inputs, 1, DType::F32)?;
    let [_, c, _] = super::rank::<3>(1, &scores)?;
    expect_dims(1, &scores, &[b, c, n])?;
    if four != Dim::Fixed(4) {
        return Err("a box has 4 numbers".to_string());
    }
    for (i, dtype) in [(2, DType::I64), (3, DType::F32), (4, DType::F32)] {
        if let Some(x) = optional(inputs, i) {
            expect_dtype(i, &x, dtype)?;
            expect_scalar(i, &x)?;
        }
    }
    one(DType::I64, vec![Dim::Unknown, Dim::Fixed(3)])
}
