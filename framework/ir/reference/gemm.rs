//! Matrix products. f32 sums run over k from 0 upwards, each product and each sum rounded.

use super::quant::requantize;
use super::{Inputs, Outputs, f32s, i8s, i32s, optional, output_dims, strides, tensor, u8s, wrong_attr};
use crate::op::{Attr, QGemmAttr};
use crate::shape;
use crate::tensor::{DType, Elements, Tensor};

pub fn gemm(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::gemm, attr, inputs)?;
    let Attr::Gemm(g) = attr else { return Err(wrong_attr(attr)) };
    let (m, n) = (dims[0], dims[1]);
    let a_dims = &tensor(inputs, 0)?.dims;
    let k = if g.trans_a { a_dims[0] } else { a_dims[1] };
    let mut y = vec![0.0; m * n];
    let a_step = if g.trans_a { [1, m] } else { [k, 1] };
    let b_step = if g.trans_b { [1, k] } else { [n, 1] };
    product_f32([m, n, k], f32s(inputs, 0)?, a_step, f32s(inputs, 1)?, b_step, &mut y);
    if g.alpha != 1.0 {
        y.iter_mut().for_each(|y| *y *= g.alpha);
    }
    if let Some(c) = optional(inputs, 2) {
        let values = f32s(inputs, 2)?;
        let steps = broadcast_steps(&c.dims, &dims);
        for i in 0..m * n {
            y[i] += g.beta * values[i / n * steps[0] + i % n * steps[1]];
        }
    }
    Ok(vec![Tensor::from_f32(&dims, y)])
}

/// `y[i,j] = Σ_k a[i,k] · b[k,j]`; a step is how far apart neighbours along the two dimensions are.
pub fn product_f32(
    mnk: [usize; 3],
    a: &[f32],
    a_step: [usize; 2],
    b: &[f32],
    b_step: [usize; 2],
    y: &mut [f32],
) {
    let [m, n, k] = mnk;
    for i in 0..m {
        for j in 0..n {
            let mut sum = 0.0f32;
            for p in 0..k {
                sum += a[i * a_step[0] + p * a_step[1]] * b[p * b_step[0] + j * b_step[1]];
            }
            y[i * n + j] = sum;
        }
    }
}

/// How far apart neighbours of `dims` are along each dimension of `out`, which it broadcasts to: 0 where it repeats.
pub fn broadcast_steps(dims: &[usize], out: &[usize]) -> Vec<usize> {
    let own = strides(dims);
    let missing = out.len() - dims.len();
    (0..out.len()).map(|i| if i < missing || dims[i - missing] == 1 { 0 } else { own[i - missing] }).collect()
}

pub fn matmul(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::matmul, attr, inputs)?;
    let (a, b) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
    let a_dims = if a.dims.len() == 1 { vec![1, a.dims[0]] } else { a.dims.clone() };
    let b_dims = if b.dims.len() == 1 { vec![b.dims[0], 1] } else { b.dims.clone() };
    let (a_batch, a_mat) = a_dims.split_at(a_dims.len() - 2);
    let (b_batch, b_mat) = b_dims.split_at(b_dims.len() - 2);
    let (m, k, n) = (a_mat[0], a_mat[1], b_mat[1]);
    let kept = usize::from(a.dims.len() > 1) + usize::from(b.dims.len() > 1);
    let batch = &dims[..dims.len() - kept];
    let (a_steps, b_steps) = (broadcast_steps(a_batch, batch), broadcast_steps(b_batch, batch));
    let mut y = vec![0.0; dims.iter().product()];
    let (av, bv) = (f32s(inputs, 0)?, f32s(inputs, 1)?);
    if m * n > 0 {
        for (i, y) in y.chunks_exact_mut(m * n).enumerate() {
            let (mut at, mut ia, mut ib) = (i, 0, 0);
            for d in (0..batch.len()).rev() {
                ia += at % batch[d] * a_steps[d];
                ib += at % batch[d] * b_steps[d];
                at /= batch[d];
            }
            product_f32([m, n, k], &av[ia * m * k..], [k, 1], &bv[ib * k * n..], [n, 1], y);
        }
    }
    Ok(vec![Tensor::from_f32(&dims, y)])
}

pub fn qgemm(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::qgemm, attr, inputs)?;
    let Attr::QGemm(q) = attr else { return Err(wrong_attr(attr)) };
    let (x, w, bias, mult) = (u8s(inputs, 0)?, i8s(inputs, 1)?, i32s(inputs, 2)?, f32s(inputs, 3)?);
    let [n, k] = [tensor(inputs, 1)?.dims[0], tensor(inputs, 1)?.dims[1]];
    let mnk = [dims[..dims.len() - 1].iter().product(), n, k];
    let mut y = Tensor::zeros(if q.out.is_some() { DType::U8 } else { DType::F32 }, &dims);
    match &mut y.elements {
        Elements::U8(y) => {
            qgemm_u8(mnk, x, w, bias, mult, q, y);
            if let Some(table) = super::quant::table(inputs, 4)? {
                y.iter_mut().for_each(|q| *q = table[*q as usize]);
            }
        }
        Elements::F32(y) => qgemm_f32(mnk, x, w, bias, mult, q, y),
        _ => {}
    }
    Ok(vec![y])
}

/// `x[M,K]`, `w[N,K]`, `y[M,N]` u8; `attr.out` says how to round (absent: as if it were the whole u8 range).
pub fn qgemm_u8(
    mnk: [usize; 3],
    x: &[u8],
    w: &[i8],
    bias: &[i32],
    mult: &[f32],
    attr: &QGemmAttr,
    y: &mut [u8],
) {
    let out = attr.out.unwrap_or(crate::op::Requant { zero: 0, lo: 0, hi: 255 });
    for (i, y) in y.iter_mut().enumerate() {
        *y = requantize(qgemm_one(mnk, x, w, bias, mult, attr.x_zero, i), out) as u8;
    }
}

/// As [`qgemm_u8`], but the f32 result itself.
pub fn qgemm_f32(
    mnk: [usize; 3],
    x: &[u8],
    w: &[i8],
    bias: &[i32],
    mult: &[f32],
    attr: &QGemmAttr,
    y: &mut [f32],
) {
    for (i, y) in y.iter_mut().enumerate() {
        *y = qgemm_one(mnk, x, w, bias, mult, attr.x_zero, i);
    }
}

fn qgemm_one(mnk: [usize; 3], x: &[u8], w: &[i8], bias: &[i32], mult: &[f32], x_zero: i32, at: usize) -> f32 {
    let [_, n, k] = mnk;
    let (i, j) = (at / n, at % n);
    let mut acc = bias[j];
    for (&x, &w) in x[i * k..][..k].iter().zip(&w[j * k..][..k]) {
        acc = acc.wrapping_add((x as i32).wrapping_sub(x_zero).wrapping_mul(w as i32));
    }
    acc as f32 * mult[j]
}
