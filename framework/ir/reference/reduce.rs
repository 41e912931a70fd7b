//! Reductions and softmax. Sums run in row-major order of the input.

use super::{Inputs, Outputs, f32s, output_dims, strides, tensor, wrong_attr};
use crate::op::Attr;
use crate::shape;
use crate::tensor::Tensor;

pub fn mean(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::reduce, attr, inputs)?;
    let Attr::Reduce(r) = attr else { return Err(wrong_attr(attr)) };
    let x = tensor(inputs, 0)?;
    let reduced = shape::reduced_axes(&r.axes, x.dims.len())?;
    let kept: Vec<usize> = x.dims.iter().zip(&reduced).map(|(&d, &gone)| if gone { 1 } else { d }).collect();
    let (own, out) = (strides(&x.dims), strides(&kept));
    let mut y = vec![0.0f32; kept.iter().product()];
    for (i, &x_i) in f32s(inputs, 0)?.iter().enumerate() {
        let at: usize =
            (0..kept.len()).filter(|&d| !reduced[d]).map(|d| i / own[d] % x.dims[d] * out[d]).sum();
        y[at] += x_i;
    }
    let count: usize = x.dims.iter().zip(&reduced).filter(|(_, gone)| **gone).map(|(&d, _)| d).product();
    y.iter_mut().for_each(|y| *y /= count as f32);
    Ok(vec![Tensor::from_f32(&dims, y)])
}

/// `exp(x - max) / Σ exp(x - max)` along one axis.
pub fn softmax(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::same_f32, attr, inputs)?;
    let Attr::Axis(axis) = attr else { return Err(wrong_attr(attr)) };
    let axis = shape::axis_index(*axis as i64, dims.len())?;
    let (n, inner) = (dims[axis], dims[axis + 1..].iter().product::<usize>());
    let mut y = f32s(inputs, 0)?.to_vec();
    if n * inner > 0 {
        for block in y.chunks_exact_mut(n * inner) {
            softmax_block(n, inner, block);
        }
    }
    Ok(vec![Tensor::from_f32(&dims, y)])
}

/// In place over `y[n, inner]`, along the first dimension.
pub fn softmax_block(n: usize, inner: usize, y: &mut [f32]) {
    for i in 0..inner {
        let max = (0..n).fold(f32::NEG_INFINITY, |m, j| m.max(y[j * inner + i]));
        let mut sum = 0.0f32;
        for j in 0..n {
            let e = (y[j * inner + i] - max).exp();
            y[j * inner + i] = e;
            sum += e;
        }
        (0..n).for_each(|j| y[j * inner + i] /= sum);
    }
}
