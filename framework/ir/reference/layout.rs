//! Ops that move elements and compute nothing.

use super::{Inputs, Outputs, output_dims, strides, tensor, wrong_attr};
use crate::op::Attr;
use crate::shape;
use crate::tensor::{Elements, Tensor};

/// Builds a tensor of `dims` whose element `i` is element `f(i)` of `x`.
fn gather(x: &Tensor, dims: Vec<usize>, f: impl Fn(usize) -> usize) -> Tensor {
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
    Ok(vec![gather(x, dims.clone(), from)])
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
