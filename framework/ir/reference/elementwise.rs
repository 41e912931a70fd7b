//! Elementwise ops and numpy broadcasting.

use super::element::{Number, on_pairs};
use super::fixed::erf_value;
use super::gemm::broadcast_steps;
use super::{Inputs, Outputs, f32s, output_dims, tensor, wrong_attr};
use crate::op::{Attr, ClipAttr};
use crate::shape;
use crate::tensor::{DType, Elements, Tensor};

/// `max(x, 0)`; not a number stays so.
pub fn relu(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::same_number, attr, inputs)?;
    let elements = match &tensor(inputs, 0)?.elements {
        Elements::F32(x) => Elements::F32(x.iter().map(|&x| relu_value(x)).collect()),
        Elements::I64(x) => Elements::I64(x.iter().map(|&x| x.max(0)).collect()),
        Elements::I32(x) => Elements::I32(x.iter().map(|&x| x.max(0)).collect()),
        Elements::I8(x) => Elements::I8(x.iter().map(|&x| x.max(0)).collect()),
        Elements::U8(x) => Elements::U8(x.clone()),
        Elements::Bool(_) => return Err("input 0 is bool, it must be a number".to_string()),
    };
    Ok(vec![Tensor { dims, elements }])
}

#[inline]
pub fn relu_value(x: f32) -> f32 {
    // Written so that -0.0 becomes 0.0 and not a number stays what it is.
    if x <= 0.0 { 0.0 } else { x }
}

/// `min(max(x, min), max)`; not a number stays so.
#[inline]
pub fn clip_value(x: f32, clip: ClipAttr) -> f32 {
    if x < clip.min {
        clip.min
    } else if x > clip.max {
        clip.max
    } else {
        x
    }
}

fn map_f32(attr: &Attr, inputs: Inputs<'_>, f: impl Fn(f32) -> f32) -> Outputs {
    let dims = output_dims(shape::same_f32, attr, inputs)?;
    Ok(vec![Tensor::from_f32(&dims, f32s(inputs, 0)?.iter().map(|&x| f(x)).collect())])
}

/// `1 / (1 + exp(-x))`.
pub fn sigmoid(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    map_f32(attr, inputs, |x| 1.0 / (1.0 + (-x).exp()))
}

pub fn silu(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    map_f32(attr, inputs, super::fixed::silu_value)
}

pub fn clip(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    if inputs.len() > 1 {
        return super::binary::clip_between(attr, inputs);
    }
    let Attr::Clip(clip) = *attr else { return Err(wrong_attr(attr)) };
    map_f32(attr, inputs, |x| clip_value(x, clip))
}

pub fn sqrt(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    map_f32(attr, inputs, f32::sqrt)
}

pub fn erf(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    map_f32(attr, inputs, erf_value)
}

pub fn tanh(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    map_f32(attr, inputs, f32::tanh)
}

pub fn cast(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    fn to<T: Copy>(x: &[T], dtype: DType, float: fn(T) -> f32, int: fn(T) -> i64) -> Elements {
        match dtype {
            DType::F32 => Elements::F32(x.iter().map(|&x| float(x)).collect()),
            DType::I64 => Elements::I64(x.iter().map(|&x| int(x)).collect()),
            DType::I32 => Elements::I32(x.iter().map(|&x| int(x) as i32).collect()),
            DType::U8 => Elements::U8(x.iter().map(|&x| int(x) as u8).collect()),
            DType::I8 => Elements::I8(x.iter().map(|&x| int(x) as i8).collect()),
            DType::Bool => Elements::Bool(x.iter().map(|&x| u8::from(float(x) != 0.0)).collect()),
        }
    }
    let dims = output_dims(shape::cast, attr, inputs)?;
    let Attr::Cast(dtype) = *attr else { return Err(wrong_attr(attr)) };
    let elements = match &tensor(inputs, 0)?.elements {
        Elements::F32(x) => to(x, dtype, |x| x, |x| x as i64),
        Elements::I64(x) => to(x, dtype, |x| x as f32, |x| x),
        Elements::I32(x) => to(x, dtype, |x| x as f32, i64::from),
        Elements::U8(x) | Elements::Bool(x) => to(x, dtype, f32::from, i64::from),
        Elements::I8(x) => to(x, dtype, f32::from, i64::from),
    };
    Ok(vec![Tensor { dims, elements }])
}

pub fn identity(_: &Attr, inputs: Inputs<'_>) -> Outputs {
    Ok(vec![tensor(inputs, 0)?.clone()])
}

/// Calls `f` for every pair of a broadcast; integers that overflow wrap in the ops below.
pub(super) fn pairs<A: Copy, B: Copy>(
    a: (&[usize], &[A]),
    b: (&[usize], &[B]),
    dims: &[usize],
    mut f: impl FnMut(A, B),
) {
    let (a_steps, b_steps) = (broadcast_steps(a.0, dims), broadcast_steps(b.0, dims));
    let mut index = vec![0usize; dims.len()];
    let (mut ia, mut ib) = (0, 0);
    for _ in 0..dims.iter().product::<usize>() {
        f(a.1[ia], b.1[ib]);
        for d in (0..dims.len()).rev() {
            index[d] += 1;
            ia += a_steps[d];
            ib += b_steps[d];
            if index[d] < dims[d] {
                break;
            }
            ia -= a_steps[d] * dims[d];
            ib -= b_steps[d] * dims[d];
            index[d] = 0;
        }
    }
}

/// Integers wrap; a zero divisor of integers is an error.
macro_rules! arithmetic {
    ($($name:ident: $f:expr;)*) => {$(
        pub fn $name(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
            let dims = output_dims(shape::broadcast, attr, inputs)?;
            let (a, b) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
            let elements = on_pairs!([F32, I64, I32, U8, I8] &a.elements, &b.elements, (x, y) => {
                let mut out = Vec::new();
                let mut failed = false;
                pairs((&a.dims, x), (&b.dims, y), &dims, |x, y| match $f(x, y) {
                    Some(z) => out.push(z),
                    None => failed = true,
                });
                if failed {
                    return Err("integer division by zero: change the divisor".to_string());
                }
                out
            });
            Ok(vec![Tensor { dims, elements }])
        }
    )*};
}

arithmetic! {
    add: |a, b| Some(Number::add(a, b));
    sub: |a, b| Some(Number::sub(a, b));
    mul: |a, b| Some(Number::mul(a, b));
    div: Number::div;
}
