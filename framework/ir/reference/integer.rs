//! Products of integers, and quantisation to a range that is found at run time. Sums are i32 and wrap.

use super::conv::ConvShape;
use super::gemm::broadcast_steps;
use super::quant::quantize_value;
use super::{Inputs, Outputs, f32s, optional, output_dims, tensor, wrong_attr};
use crate::op::Attr;
use crate::shape;
use crate::tensor::{Elements, Tensor};

/// An eight-bit tensor without its zero point: element `i` belongs to zero point `i / run % count`.
fn centred(x: &Tensor, zero: Option<&Tensor>, run: usize) -> Result<Vec<i32>, String> {
    let ints = |t: &Tensor| match &t.elements {
        Elements::U8(v) => Ok(v.iter().map(|&q| i32::from(q)).collect::<Vec<i32>>()),
        Elements::I8(v) => Ok(v.iter().map(|&q| i32::from(q)).collect()),
        _ => Err(format!("{} are not eight bits", t.dtype())),
    };
    let (mut x, zero) = (ints(x)?, zero.map_or(Ok(vec![0]), ints)?);
    x.iter_mut().enumerate().for_each(|(i, q)| *q -= zero[i / run.max(1) % zero.len()]);
    Ok(x)
}

/// `Σ (x - x_zero) · (w - w_zero)`; padding holds the zero point.
pub fn conv_integer(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::conv_integer, attr, inputs)?;
    let Attr::Conv(a) = attr else { return Err(wrong_attr(attr)) };
    let (x, w) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
    let s = ConvShape::nchw(&x.dims, &dims, *a);
    let filter = w.dims[1..].iter().product();
    let (x, w) = (centred(x, optional(inputs, 2), usize::MAX)?, centred(w, optional(inputs, 3), filter)?);
    let group = a.group as usize;
    let (cg, og) = (s.c / group, s.o / group);
    let [kh, kw] = a.window.kernel.map(|k| k as usize);
    let mut y = vec![0i32; s.n * s.o * s.oh * s.ow];
    for (i, y) in y.iter_mut().enumerate() {
        let (ox, oy, o, n) = (i % s.ow, i / s.ow % s.oh, i / s.ow / s.oh % s.o, i / s.ow / s.oh / s.o);
        for ky in 0..kh {
            let Some(iy) = s.row(oy, ky) else { continue };
            for kx in 0..kw {
                let Some(ix) = s.column(ox, kx) else { continue };
                for c in 0..cg {
                    let x = x[((n * s.c + o / og * cg + c) * s.h + iy) * s.w + ix];
                    *y = y.wrapping_add(x * w[((o * cg + c) * kh + ky) * kw + kx]);
                }
            }
        }
    }
    Ok(vec![Tensor::from_i32(&dims, y)])
}

/// numpy matmul of `a - a_zero` and `b - b_zero`.
pub fn matmul_integer(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::matmul_integer, attr, inputs)?;
    let (a, b) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
    let a_dims = if a.dims.len() == 1 { vec![1, a.dims[0]] } else { a.dims.clone() };
    let b_dims = if b.dims.len() == 1 { vec![b.dims[0], 1] } else { b.dims.clone() };
    let (a_batch, a_mat) = a_dims.split_at(a_dims.len() - 2);
    let (b_batch, b_mat) = b_dims.split_at(b_dims.len() - 2);
    let (m, k, n) = (a_mat[0], a_mat[1], b_mat[1]);
    let (av, bv) = (centred(a, optional(inputs, 2), k)?, centred(b, optional(inputs, 3), 1)?);
    let kept = usize::from(a.dims.len() > 1) + usize::from(b.dims.len() > 1);
    let batch = &dims[..dims.len() - kept];
    let (a_steps, b_steps) = (broadcast_steps(a_batch, batch), broadcast_steps(b_batch, batch));
    let mut y = vec![0i32; dims.iter().product()];
    for (i, y) in y.chunks_exact_mut((m * n).max(1)).enumerate() {
        let (mut at, mut ia, mut ib) = (i, 0, 0);
        for d in (0..batch.len()).rev() {
            ia += at % batch[d] * a_steps[d];
            ib += at % batch[d] * b_steps[d];
            at /= batch[d];
        }
        for (j, y) in y.iter_mut().enumerate() {
            let row = &av[(ia * m + j / n) * k..][..k];
            *y = (row.iter().zip(bv[ib * k * n + j % n..].iter().step_by(n)))
                .fold(0, |sum: i32, (&a, &b)| sum.wrapping_add(a * b));
        }
    }
    Ok(vec![Tensor::from_i32(&dims, y)])
}

/// Scale and zero point of the range that holds 0 and every element of x; 1 and 0 where all are 0.
pub fn dynamic_range(x: &[f32]) -> (f32, u8) {
    let (low, high) = x.iter().fold((0.0f32, 0.0f32), |(low, high), &x| (low.min(x), high.max(x)));
    let scale = if low == high { 1.0 } else { (high - low) / 255.0 };
    (scale, (0.0 - low / scale).clamp(0.0, 255.0).round_ties_even() as u8)
}

pub fn dynamic_quantize(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::dynamic_quantize, attr, inputs)?;
    let x = f32s(inputs, 0)?;
    let (scale, zero) = dynamic_range(x);
    let q = x.iter().map(|&x| quantize_value(x, scale, i32::from(zero), 0, 255) as u8);
    Ok(vec![
        Tensor::from_u8(&dims, q.collect()),
        Tensor::from_f32(&[], vec![scale]),
        Tensor::from_u8(&[], vec![zero]),
    ])
}

pub fn dynamic_centred(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::dynamic_centred, attr, inputs)?;
    let x = f32s(inputs, 0)?;
    let (scale, zero) = dynamic_range(x);
    let y = x.iter().map(|&x| centred_value(x, scale, zero)).collect();
    Ok(vec![Tensor::from_f32(&dims, y), Tensor::from_f32(&[], vec![scale])])
}

/// `clamp(rne(x / scale), -zero, 255 - zero)`; not a number becomes 0.
#[inline(always)]
pub fn centred_value(x: f32, scale: f32, zero: u8) -> f32 {
    let q = (x / scale).round_ties_even();
    let (lo, hi) = (-f32::from(zero), 255.0 - f32::from(zero));
    if q.is_nan() { 0.0 } else { q.max(lo).min(hi) }
}
