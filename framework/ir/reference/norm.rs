//! Normalisation.

use super::fixed::{LANES, sum_lanes};
use super::quant::requantize;
use super::{Inputs, Outputs, all_output_dims, f32s, optional, output_dims, tensor, wrong_attr};
use crate::op::{AddNormAttr, Affine, Attr};
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
    let all = all_output_dims(shape::layer_norm, attr, inputs)?;
    let dims = all[0].clone();
    let Attr::Norm(norm) = *attr else { return Err(wrong_attr(attr)) };
    let axis = shape::axis_index(norm.axis as i64, dims.len())?;
    let len: usize = dims[axis..].iter().product();
    let (scale, none) = (f32s(inputs, 1)?, vec![0.0; len]);
    let bias = if optional(inputs, 2).is_some() { f32s(inputs, 2)? } else { &none };
    let mut y = f32s(inputs, 0)?.to_vec();
    if len > 0 {
        y.chunks_exact_mut(len).for_each(|row| add_norm_row(row, scale, bias, norm.epsilon));
    }
    let (mut means, mut inverses) = (Vec::new(), Vec::new());
    for row in f32s(inputs, 0)?.chunks_exact(len.max(1)) {
        let (mean, inverse) = center(&mut row.to_vec(), norm.epsilon);
        means.push(mean);
        inverses.push(inverse);
    }
    Ok(vec![
        Tensor::from_f32(&dims, y),
        Tensor::from_f32(&all[1], means),
        Tensor::from_f32(&all[2], inverses),
    ])
}

/// Normalises one row in place; the bias is added with one rounding.
#[inline(always)]
pub fn add_norm_row(x: &mut [f32], scale: &[f32], bias: &[f32], epsilon: f32) {
    let (_, inverse) = center(x, epsilon);
    for ((x, &scale), &bias) in x.iter_mut().zip(scale).zip(bias) {
        *x = (*x * inverse).mul_add(scale, bias);
    }
}

/// Takes the mean away; returns it, and one over the deviation: sums in lanes ([`sum_lanes`]) over the length, squares
/// are added with one rounding.
#[inline(always)]
fn center(x: &mut [f32], epsilon: f32) -> (f32, f32) {
    let len = x.len() as f32;
    let mut lanes = [0.0f32; LANES];
    for block in x.chunks(LANES) {
        lanes.iter_mut().zip(block).for_each(|(lane, x)| *lane += x);
    }
    let mean = sum_lanes(lanes) / len;
    let mut lanes = [0.0f32; LANES];
    for block in x.chunks_mut(LANES) {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *x -= mean;
            *lane = x.mul_add(*x, *lane);
        }
    }
    (mean, 1.0 / (sum_lanes(lanes) / len + epsilon).sqrt())
}

/// What the zero points of u8 operands add to every element of their sum.
pub fn offset(a: Option<Affine>, b: Option<Affine>) -> f32 {
    let of = |m: Option<Affine>| m.map_or(0.0, |m| -(m.zero as f32 * m.mult));
    of(a) + of(b)
}

/// `a + b`: the f32 operands and [`offset`] (where an operand is u8) are added, then each u8 operand, b first, is
/// multiplied and added with one rounding.
fn sum(a: &Tensor, b: Option<&Tensor>, norm: &AddNormAttr) -> Result<Vec<f32>, String> {
    let affine = |t: &Tensor, m: Affine| t.as_u8().map(|_| m);
    let offset = offset(affine(a, norm.a), b.and_then(|b| affine(b, norm.b)));
    let mut x = vec![offset; a.len()];
    if let (Some(a), Some(b)) = (a.as_f32(), b.and_then(Tensor::as_f32)) {
        x.iter_mut().zip(a).zip(b).for_each(|((x, a), b)| *x = a + b);
    } else if let Some(real) = a.as_f32().or(b.and_then(Tensor::as_f32)) {
        let alone = b.is_none();
        x.iter_mut().zip(real).for_each(|(x, r)| *x = if alone { *r } else { r + offset });
    }
    for (operand, m) in [(b, norm.b), (Some(a), norm.a)] {
        match operand.map(|t| &t.elements) {
            Some(Elements::U8(q)) => {
                x.iter_mut().zip(q).for_each(|(x, &q)| *x = f32::from(q).mul_add(m.mult, *x));
            }
            Some(Elements::F32(_)) | None => {}
            Some(_) => return Err("rows must be u8 or f32".to_string()),
        }
    }
    Ok(x)
}

pub fn add_norm(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::add_norm, attr, inputs)?;
    let Attr::AddNorm(norm) = *attr else { return Err(wrong_attr(attr)) };
    let mut x = sum(tensor(inputs, 0)?, optional(inputs, 3), &norm)?;
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
