//! Normalisation.

use super::{Inputs, Outputs, f32s, output_dims, wrong_attr};
use crate::op::Attr;
use crate::shape;
use crate::tensor::Tensor;

/// `(x - mean) / sqrt(var + epsilon) * scale + bias` per channel (dimension 1), in this order, all in f32.
pub fn batch_norm(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::first_f32, attr, inputs)?;
    let Attr::Epsilon(epsilon) = *attr else { return Err(wrong_attr(attr)) };
    let (x, scale, bias) = (f32s(inputs, 0)?, f32s(inputs, 1)?, f32s(inputs, 2)?);
    let (mean, var) = (f32s(inputs, 3)?, f32s(inputs, 4)?);
    let pixels = dims[2..].iter().product::<usize>().max(1);
    let y = x
        .iter()
        .enumerate()
        .map(|(i, &x)| {
            let c = i / pixels % dims[1];
            (x - mean[c]) / (var[c] + epsilon).sqrt() * scale[c] + bias[c]
        })
        .collect();
    Ok(vec![Tensor::from_f32(&dims, y)])
}
