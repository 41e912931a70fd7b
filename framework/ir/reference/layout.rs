//! Ops that move elements and compute nothing.

use super::{Inputs, Outputs, output_dims, strides, tensor, wrong_attr};
use crate::op::Attr;
use crate::shape;
use crate::tensor::{Elements, Tensor};

/// Builds a tensor of `dims` whose element `i` is element `f(i)` of `x`.
pub(super) fn pick(x: &Tensor, dims: Vec<usize>, f: impl Fn(usize) -> usize) -> Tensor {
    let n: usize = dims.iter().product();
    let elements = match &x.elements {
        Elements::F32(x) => Elements::F32((0..n).map(|i| x[f(i)]).collect()),
        Elements::I64(x) => Elements::I64((0..n).map(|i| x[f(i)]).collect()),
        Elements::I32(x) => Elements::I32((0..n).map(|i| x[f(i)]).collect()),
        Elements::U8(x) => Elements::U8((0..n).map(|i| x[f(i)]).collect()),
        Elements::I8(x) => Elements::I8((0..n).map(|i| x[f(i)]).collect()),
        Elements::Bool(x) => Elements::Bool((0..n).map(|i| x[f(i)]).collect()),
    };
    Tensor { dims, elements }
}

pub fn reshape(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::reshape, attr, inputs)?;
    Ok(vec![Tensor { dims, elements: tensor(inputs, 0)?.elements.clone() }])
}

pub fn flatten(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::flatten, attr, inputs)?;
    Ok(vec![Tensor { dims, elements: tensor(inputs, 0)?.elements.clone() }])
}

/// Output dimension `i` is input dimension `perm[i]`.
pub fn transpose(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::transpose, attr, inputs)?;
    let Attr::Perm(perm) = attr else { return Err(wrong_attr(attr)) };
    let x = tensor(inputs, 0)?;
    let perm = shape::permutation(perm, x.dims.len())?;
    let (own, out) = (strides(&x.dims), strides(&dims));
    let from = |i: usize| (0..perm.len()).map(|d| i / out[d] % dims[d] * own[perm[d]]).sum();
    Ok(vec![pick(x, dims.clone(), from)])
}

pub fn unsqueeze(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::unsqueeze, attr, inputs)?;
    Ok(vec![Tensor { dims, elements: tensor(inputs, 0)?.elements.clone() }])
}

pub fn squeeze(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::squeeze, attr, inputs)?;
    Ok(vec![Tensor { dims, elements: tensor(inputs, 0)?.elements.clone() }])
}

/// An index that is out of range is an error.
pub fn gather(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::gather, attr, inputs)?;
    let Attr::Axis(axis) = attr else { return Err(wrong_attr(attr)) };
    let (x, indices) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
    let axis = shape::axis_index(*axis as i64, x.dims.len())?;
    let limit = x.dims[axis];
    let at = |i: i64| {
        let from_front = if i < 0 { i.saturating_add(limit as i64) } else { i };
        usize::try_from(from_front)
            .ok()
            .filter(|&i| i < limit)
            .ok_or_else(|| format!("index {i} does not exist: axis {axis} of input 0 has {limit} elements"))
    };
    let indices: Result<Vec<usize>, String> = match &indices.elements {
        Elements::I64(i) => i.iter().map(|&i| at(i)).collect(),
        Elements::I32(i) => i.iter().map(|&i| at(i64::from(i))).collect(),
        _ => return Err("input 1 must be i64 or i32".to_string()),
    };
    let indices = indices?;
    let inner: usize = x.dims[axis + 1..].iter().product();
    let run = indices.len() * inner;
    let from = |i: usize| (i / run * limit + indices[i % run / inner]) * inner + i % inner;
    Ok(vec![pick(x, dims, from)])
}

pub fn concat(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::concat, attr, inputs)?;
    let Attr::Axis(axis) = attr else { return Err(wrong_attr(attr)) };
    let axis = shape::axis_index(*axis as i64, dims.len())?;
    let dtype = tensor(inputs, 0)?.dtype();
    let outer: usize = dims[..axis].iter().product();
    let inner: usize = dims[axis + 1..].iter().product::<usize>() * dtype.size();
    let mut bytes = Vec::new();
    for i in 0..outer {
        for x in inputs.iter().flatten() {
            let run = x.dims[axis] * inner;
            bytes.extend_from_slice(&x.bytes()[i * run..][..run]);
        }
    }
    Ok(vec![Tensor::from_bytes(dtype, &dims, &bytes).ok_or("the joined parts do not fill the result")?])
}

pub fn resize(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::resize, attr, inputs)?;
    repeat_pixels(attr, inputs, dims, [2, 3])
}

pub fn resize_nhwc(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::resize_nhwc, attr, inputs)?;
    repeat_pixels(attr, inputs, dims, [1, 2])
}

/// Element (.., y, x, ..) of the result is element (.., y / scale, x / scale, ..) of the input; `axes` are those of y and x.
fn repeat_pixels(attr: &Attr, inputs: Inputs<'_>, dims: Vec<usize>, axes: [usize; 2]) -> Outputs {
    let Attr::Resize(a) = attr else { return Err(wrong_attr(attr)) };
    let x = tensor(inputs, 0)?;
    let (own, out) = (strides(&x.dims), strides(&dims));
    let mut factor = [1; 4];
    axes.iter().zip(a.scale).for_each(|(&axis, scale)| factor[axis] = scale as usize);
    let from = |i: usize| (0..4).map(|d| i / out[d] % dims[d] / factor[d] * own[d]).sum();
    Ok(vec![pick(x, dims.clone(), from)])
}
