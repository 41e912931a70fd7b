//! Normalisation.

use super::fixed::{LANES, sum_lanes};
use super::quant::{dequantize_value, requantize};
use super::{Inputs, Outputs, f32s, optional, output_dims, tensor, wrong_attr};
use crate::op::{Affine, Attr};
use crate::shape;
use crate::tensor::{Elements, Tensor};

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

/// Over all dimensions from `axis` on.
pub fn layer_norm(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::layer_norm, attr, inputs)?;
    let Attr::Norm(norm) = *attr else { return Err(wrong_attr(attr)) };
    let axis = shape::axis_index(norm.axis as i64, dims.len())?;
    let len: usize = dims[axis..].iter().product();
    let (scale, none) = (f32s(inputs, 1)?, vec![0.0; len]);
    let bias = if optional(inputs, 2).is_some() { f32s(inputs, 2)? } else { &none };
    let mut y = f32s(inputs, 0)?.to_vec();
    if len > 0 {
        y.chunks_exact_mut(len).for_each(|row| add_norm_row(row, scale, bias, norm.epsilon));
    }
    Ok(vec![Tensor::from_f32(&dims, y)])
}

/// Normalises one row in place: mean and variance are sums in lanes ([`sum_lanes`]) over the length, squares are added
/// with one rounding, and so is the bias.
pub fn add_norm_row(x: &mut [f32], scale: &[f32], bias: &[f32], epsilon: f32) {
    let len = x.len() as f32;
    let mut lanes = [0.0; LANES];
    x.iter().enumerate().for_each(|(i, x)| lanes[i % LANES] += x);
    let mean = sum_lanes(lanes) / len;
    let mut lanes = [0.0f32; LANES];
    for (i, x) in x.iter_mut().enumerate() {
        *x -= mean;
        lanes[i % LANES] = x.mul_add(*x, lanes[i % LANES]);
    }
    let inverse = 1.0 / (sum_lanes(lanes) / len + epsilon).sqrt();
    for ((x, &scale), &bias) in x.iter_mut().zip(scale).zip(bias) {
        *x = (*x * inverse).mul_add(scale, bias);
    }
}

/// The f32 values of an operand that may be u8.
fn real(t: &Tensor, affine: Affine) -> Result<Vec<f32>, String> {
    match &t.elements {
        Elements::F32(x) => Ok(x.clone()),
        Elements::U8(q) => {
            Ok(q.iter().map(|&q| dequantize_value(q.into(), affine.mult, affine.zero)).collect())
        }
        _ => Err(format!("rows are {}, they must be u8 or f32", t.dtype())),
    }
}

pub fn add_norm(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::add_norm, attr, inputs)?;
    let Attr::AddNorm(norm) = *attr else { return Err(wrong_attr(attr)) };
    let mut x = real(tensor(inputs, 0)?, norm.a)?;
    if let Some(b) = optional(inputs, 3) {
        let b = real(b, norm.b)?;
        x.iter_mut().zip(b).for_each(|(x, b)| *x += b);
    }
    let (scale, bias) = (f32s(inputs, 1)?, f32s(inputs, 2)?);
    x.chunks_exact_mut(scale.len().max(1)).for_each(|row| add_norm_row(row, scale, bias, norm.epsilon));
    let mut results = Vec::with_capacity(2);
    if let Some(out) = norm.out {
        let q = x.iter().map(|&x| requantize(x * norm.y_mult, out) as u8).collect();
        results.push(Tensor::from_u8(&dims, q));
    }
    if norm.keep {
        results.push(Tensor::from_f32(&dims, x));
    }
    Ok(results)
}
