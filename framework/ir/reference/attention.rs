//! Integer attention: two products of eight-bit values and a softmax in between, row by row.

use super::fixed::{LANES, exp2_value, sum_lanes};
use super::quant::requantize;
use super::{Inputs, Outputs, f32s, optional, output_dims, tensor, u8s, wrong_attr};
use crate::op::{Attr, QAttentionAttr, Requant};
use crate::shape;
use crate::tensor::{DType, Elements, Tensor};

/// Keys and values of one head: `S` rows of `D` bytes, each `stride` bytes after the one before.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub bytes: &'a [u8],
    pub stride: usize,
}

impl<'a> Rows<'a> {
    fn row(&self, i: usize, len: usize) -> &'a [u8] {
        &self.bytes[i * self.stride..][..len]
    }
}

pub fn qattention(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::qattention, attr, inputs)?;
    let Attr::QAttention(a) = attr else { return Err(wrong_attr(attr)) };
    let (q, k, v) = (u8s(inputs, 0)?, u8s(inputs, 1)?, u8s(inputs, 2)?);
    let (tokens, width, keys) = (dims[1], dims[2], tensor(inputs, 1)?.dims[1]);
    let mask = match optional(inputs, 3) {
        Some(t) => Some((f32s(inputs, 3)?, if t.dims[0] == 1 { 0 } else { keys })),
        None => None,
    };
    let depth = width / a.heads.max(1) as usize;
    let mut y = Tensor::zeros(DType::U8, &dims);
    let Elements::U8(out) = &mut y.elements else { return Err("the result must be u8".to_string()) };
    let mut scratch = vec![0.0; keys];
    for batch in 0..dims[0] {
        let mask = mask.map(|(m, step)| &m[batch * step..][..keys]);
        for at in 0..tokens * width / depth.max(1) {
            let (token, first) = (at * depth / width, at * depth % width);
            let place = (batch * tokens + token) * width + first;
            let start = batch * keys * width + first;
            let (k, v) = (
                Rows { bytes: &k[start.min(k.len())..], stride: width },
                Rows { bytes: &v[start.min(v.len())..], stride: width },
            );
            row(a, &q[place..][..depth], k, v, mask, &mut scratch, &mut out[place..][..depth]);
        }
    }
    Ok(vec![y])
}

/// One query of one head. `p` is scratch, as long as there are keys.
///
/// * score `s = acc as f32 * score_mult + mask · log2(e)`, the sum of mask and product rounded once;
/// * `e = 2^(s - max)` ([`exp2_value`]), summed in lanes ([`sum_lanes`]);
/// * probability `p = rne(min(e * (p_mult / sum), 255))`;
/// * result: `acc as f32 * out_mult` through `out`.
pub fn row(
    a: &QAttentionAttr,
    q: &[u8],
    k: Rows<'_>,
    v: Rows<'_>,
    mask: Option<&[f32]>,
    p: &mut [f32],
    y: &mut [u8],
) {
    let mut max = f32::NEG_INFINITY;
    for (j, p) in p.iter_mut().enumerate() {
        let mut acc = 0i32;
        for (&q, &k) in q.iter().zip(k.row(j, q.len())) {
            let (q, k) = (i32::from(q).wrapping_sub(a.q_zero), i32::from(k).wrapping_sub(a.k_zero));
            acc = acc.wrapping_add(q.wrapping_mul(k));
        }
        let shift = mask.map_or(0.0, |m| m[j] * std::f32::consts::LOG2_E);
        *p = (acc as f32).mul_add(a.score_mult, shift);
        // Written as the processor's maximum is: what is not a number does not count.
        max = if *p > max { *p } else { max };
    }
    let mut lanes = [0.0; LANES];
    for (j, p) in p.iter_mut().enumerate() {
        *p = exp2_value(*p - max);
        lanes[j % LANES] += *p;
    }
    let scale = a.p_mult / sum_lanes(lanes);
    let eight_bit = Requant { zero: 0, lo: 0, hi: 255 };
    for (d, y) in y.iter_mut().enumerate() {
        let mut acc = 0i32;
        for (j, &e) in p.iter().enumerate() {
            let v = i32::from(v.row(j, d + 1)[d]).wrapping_sub(a.v_zero);
            acc = acc.wrapping_add(requantize(e * scale, eight_bit).wrapping_mul(v));
        }
        *y = requantize(acc as f32 * a.out_mult, a.out) as u8;
    }
}
