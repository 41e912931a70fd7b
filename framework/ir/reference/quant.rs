//! Quantisation: the one definition of rounding, clamping and zero points that every integer op uses.

use super::elementwise::pairs;
use super::{Inputs, Outputs, f32s, i8s, i32s, optional, output_dims, tensor, u8s, wrong_attr};
use crate::op::{Attr, QAddAttr, QMulAttr, Requant};
use crate::shape;
use crate::tensor::{DType, Elements, Tensor};

/// Writes the f32 result `f` (in units of the output's scale) as an integer: clamped, rounded to nearest with
/// ties to even, moved by the zero point. Not a number becomes `lo`, as a vector `max(f, lo)` makes it.
#[inline]
pub fn requantize(f: f32, out: Requant) -> i32 {
    let lo = out.lo.wrapping_sub(out.zero) as f32;
    let hi = out.hi.wrapping_sub(out.zero) as f32;
    (f.max(lo).min(hi).round_ties_even() as i32).wrapping_add(out.zero)
}

/// `clamp(rne(x / scale) + zero, lo, hi)` with a true division; not a number becomes the zero point.
#[inline]
pub fn quantize_value(x: f32, scale: f32, zero: i32, lo: i32, hi: i32) -> i32 {
    let q = (x / scale).round_ties_even();
    if q.is_nan() {
        return zero;
    }
    // Clamped as a float, where zero - lo and hi - zero are exact: no overflow, same result.
    (q.max(lo.wrapping_sub(zero) as f32).min(hi.wrapping_sub(zero) as f32) as i32).wrapping_add(zero)
}

/// `(q - zero) * scale`, with one rounding of the difference and one of the product.
#[inline]
pub fn dequantize_value(q: i32, scale: f32, zero: i32) -> f32 {
    q.wrapping_sub(zero) as f32 * scale
}

/// Length of a run of elements with the same scale, and number of scales: scale `(i / run) % count`.
fn scale_runs(attr: &Attr, x: &Tensor, scales: usize) -> Result<usize, String> {
    let Attr::Axis(axis) = attr else { return Err(wrong_attr(attr)) };
    if scales == 1 {
        return Ok(1);
    }
    let axis = shape::axis_index(*axis as i64, x.dims.len())?;
    Ok(x.dims[axis + 1..].iter().product::<usize>().max(1))
}

pub fn quantize_linear(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::quantize, attr, inputs)?;
    let (x, scale, zero) = (f32s(inputs, 0)?, f32s(inputs, 1)?, tensor(inputs, 2)?);
    let run = scale_runs(attr, tensor(inputs, 0)?, scale.len())?;
    let elements = match &zero.elements {
        Elements::U8(zero) => {
            let q = |(i, &x): (usize, &f32)| {
                let s = (i / run) % scale.len();
                quantize_value(x, scale[s], zero[s] as i32, 0, 255) as u8
            };
            Elements::U8(x.iter().enumerate().map(q).collect())
        }
        Elements::I8(zero) => {
            let q = |(i, &x): (usize, &f32)| {
                let s = (i / run) % scale.len();
                quantize_value(x, scale[s], zero[s] as i32, -128, 127) as i8
            };
            Elements::I8(x.iter().enumerate().map(q).collect())
        }
        _ => return Err(format!("the zero point is {}, it must be u8 or i8", zero.dtype())),
    };
    Ok(vec![Tensor { dims, elements }])
}

pub fn quantize_silu(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let x = super::elementwise::silu(&Attr::None, &inputs[..1])?.remove(0);
    quantize_linear(attr, &[Some(&x), optional(inputs, 1), optional(inputs, 2)])
}

pub fn dequantize_linear(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::dequantize, attr, inputs)?;
    let (x, scale, zero) = (tensor(inputs, 0)?, f32s(inputs, 1)?, tensor(inputs, 2)?);
    let run = scale_runs(attr, x, scale.len())?;
    let value = |i: usize, q: i32, zero: &dyn Fn(usize) -> i32| {
        let s = (i / run) % scale.len();
        dequantize_value(q, scale[s], zero(s))
    };
    let y: Vec<f32> = match (x.dtype(), zero.dtype()) {
        (DType::U8, DType::U8) => {
            let z = u8s(inputs, 2)?;
            u8s(inputs, 0)?.iter().enumerate().map(|(i, &q)| value(i, q as i32, &|s| z[s] as i32)).collect()
        }
        (DType::I8, DType::I8) => {
            let z = i8s(inputs, 2)?;
            i8s(inputs, 0)?.iter().enumerate().map(|(i, &q)| value(i, q as i32, &|s| z[s] as i32)).collect()
        }
        _ => {
            if i32s(inputs, 2)?.iter().any(|&z| z != 0) {
                return Err("the zero point of an i32 input must be 0".to_string());
            }
            i32s(inputs, 0)?.iter().enumerate().map(|(i, &q)| value(i, q, &|_| 0)).collect()
        }
    };
    Ok(vec![Tensor::from_f32(&dims, y)])
}

pub fn qadd(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::qadd, attr, inputs)?;
    let Attr::QAdd(a) = attr else { return Err(wrong_attr(attr)) };
    let mut y = Tensor::zeros(DType::U8, &dims);
    if let Elements::U8(y) = &mut y.elements {
        qadd_u8(u8s(inputs, 0)?, u8s(inputs, 1)?, a, y);
    }
    Ok(vec![y])
}

/// Elementwise; all three slices have one length.
pub fn qadd_u8(a: &[u8], b: &[u8], attr: &QAddAttr, y: &mut [u8]) {
    for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
        let fa = (a as i32).wrapping_sub(attr.a_zero) as f32 * attr.a_mult;
        let fb = (b as i32).wrapping_sub(attr.b_zero) as f32 * attr.b_mult;
        *y = requantize(fa + fb, attr.out) as u8;
    }
}

/// A table input as an array. Absent: `None`.
pub(super) fn table<'a>(inputs: Inputs<'a>, i: usize) -> Result<Option<&'a [u8; 256]>, String> {
    match optional(inputs, i) {
        None => Ok(None),
        Some(_) => u8s(inputs, i)?.try_into().map(Some).map_err(|_| "a table has 256 elements".to_string()),
    }
}

pub fn qlookup(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::qlookup, attr, inputs)?;
    let table = table(inputs, 1)?.ok_or("input 1 is absent")?;
    Ok(vec![Tensor::from_u8(&dims, u8s(inputs, 0)?.iter().map(|&q| table[q as usize]).collect())])
}

pub fn qmul(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::qmul, attr, inputs)?;
    let Attr::QMul(m) = attr else { return Err(wrong_attr(attr)) };
    let (a, b) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
    let mut y = Vec::new();
    pairs((&a.dims, u8s(inputs, 0)?), (&b.dims, u8s(inputs, 1)?), &dims, |a, b| y.push(qmul_value(a, b, m)));
    Ok(vec![Tensor::from_u8(&dims, y)])
}

/// The factor of b is made first: with one b for many a it is one number.
#[inline]
pub fn qmul_value(a: u8, b: u8, attr: &QMulAttr) -> u8 {
    let factor = (b as i32).wrapping_sub(attr.b_zero) as f32 * attr.mult;
    requantize((a as i32).wrapping_sub(attr.a_zero) as f32 * factor, attr.out) as u8
}
