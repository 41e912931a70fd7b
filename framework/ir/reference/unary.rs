//! Functions of one element.

use super::element::{Number, on_integers, on_numbers};
use super::fixed::erf_value;
use super::{Inputs, Outputs, f32s, output_dims, tensor};
use crate::op::Attr;
use crate::shape;
use crate::tensor::{Elements, Tensor};

fn map(attr: &Attr, inputs: Inputs<'_>, f: impl Fn(f32) -> f32) -> Outputs {
    let dims = output_dims(shape::same_f32, attr, inputs)?;
    Ok(vec![Tensor::from_f32(&dims, f32s(inputs, 0)?.iter().map(|&x| f(x)).collect())])
}

/// Functions without parameters, by name.
macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident: $f:expr;)*) => {$(
        $(#[$doc])*
        pub fn $name(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
            map(attr, inputs, $f)
        }
    )*};
}

functions! {
    ceil: f32::ceil;
    floor: f32::floor;
    /// To nearest, ties to even.
    round: f32::round_ties_even;
    exp: f32::exp;
    log: f32::ln;
    reciprocal: |x| 1.0 / x;
    sin: f32::sin;
    cos: f32::cos;
    tan: f32::tan;
    asin: f32::asin;
    acos: f32::acos;
    atan: f32::atan;
    sinh: f32::sinh;
    cosh: f32::cosh;
    asinh: f32::asinh;
    acosh: f32::acosh;
    atanh: f32::atanh;
    softsign: |x| x / (1.0 + x.abs());
    softplus: softplus_value;
    /// Misra, Mish: A Self Regularized Non-Monotonic Activation Function, 2019.
    mish: |x| x * softplus_value(x).tanh();
    hard_swish: |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0);
}

/// `ln(1 + exp(x))`, written so that large x do not overflow.
pub fn softplus_value(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `alpha * (exp(x) - 1)` below 0.
pub fn elu(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let alpha = attr.numbers::<1>()?[0].float();
    map(attr, inputs, |x| if x < 0.0 { alpha * x.exp_m1() } else { x })
}

/// Barron, Continuously Differentiable Exponential Linear Units, 2017.
pub fn celu(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let alpha = attr.numbers::<1>()?[0].float();
    map(attr, inputs, |x| x.max(0.0) + (alpha * (x / alpha).exp_m1()).min(0.0))
}

/// Klambauer et al., Self-Normalizing Neural Networks, 2017.
pub fn selu(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let [alpha, gamma] = attr.numbers::<2>()?.map(|p| p.float());
    map(attr, inputs, |x| if x > 0.0 { gamma * x } else { gamma * (alpha * x.exp() - alpha) })
}

pub fn leaky_relu(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let alpha = attr.numbers::<1>()?[0].float();
    map(attr, inputs, |x| if x < 0.0 { alpha * x } else { x })
}

pub fn thresholded_relu(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let alpha = attr.numbers::<1>()?[0].float();
    map(attr, inputs, |x| if x > alpha { x } else { 0.0 })
}

pub fn hard_sigmoid(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let [alpha, beta] = attr.numbers::<2>()?.map(|p| p.float());
    map(attr, inputs, |x| (alpha * x + beta).clamp(0.0, 1.0))
}

/// Hendrycks and Gimpel, Gaussian Error Linear Units, 2016: exact, or by tanh.
pub fn gelu(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let by_tanh = attr.numbers::<1>()?[0].choice() == 1;
    map(attr, inputs, |x| match by_tanh {
        false => 0.5 * x * (1.0 + erf_value(x * std::f32::consts::FRAC_1_SQRT_2)),
        true => {
            let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
    })
}

/// Towards zero by `bias` outside of `-lambd..lambd`, 0 inside.
pub fn shrink(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    fn all<T: Number>(x: &[T], lambd: f64, bias: f64) -> Vec<T> {
        let one = |&x: &T| match x.to_f64() {
            v if v < -lambd => T::from_f64(v + bias),
            v if v > lambd => T::from_f64(v - bias),
            _ => T::default(),
        };
        x.iter().map(one).collect()
    }
    let dims = output_dims(shape::same_number, attr, inputs)?;
    let [lambd, bias] = attr.numbers::<2>()?.map(|p| f64::from(p.float()));
    let elements = on_numbers!(&tensor(inputs, 0)?.elements, x => all(x, lambd, bias));
    Ok(vec![Tensor { dims, elements }])
}

pub fn abs(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::same_number, attr, inputs)?;
    let elements = match &tensor(inputs, 0)?.elements {
        // The sign bit goes, of a zero too.
        Elements::F32(x) => Elements::F32(x.iter().map(|x| x.abs()).collect()),
        other => on_integers!(other, x => x.iter().map(|&x| magnitude(x)).collect()),
    };
    Ok(vec![Tensor { dims, elements }])
}

fn magnitude<T: Number>(x: T) -> T {
    if x < T::default() { T::default().sub(x) } else { x }
}

pub fn neg(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::same_number, attr, inputs)?;
    let elements = match &tensor(inputs, 0)?.elements {
        Elements::F32(x) => Elements::F32(x.iter().map(|x| -x).collect()),
        other => on_integers!(other, x => x.iter().map(|&x| Number::sub(Default::default(), x)).collect()),
    };
    Ok(vec![Tensor { dims, elements }])
}

/// -1, 0 or 1; not a number stays so.
pub fn sign(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    fn one<T: Number>(x: T) -> T {
        let zero = T::default();
        if x > zero {
            T::ONE
        } else if x < zero {
            zero.sub(T::ONE)
        } else if x.is_nan() {
            x
        } else {
            zero
        }
    }
    let dims = output_dims(shape::same_number, attr, inputs)?;
    let elements = on_numbers!(&tensor(inputs, 0)?.elements, x => x.iter().map(|&x| one(x)).collect());
    Ok(vec![Tensor { dims, elements }])
}

pub fn not(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::same_bool, attr, inputs)?;
    let x = tensor(inputs, 0)?.as_bool().ok_or("input 0 must be bool")?;
    Ok(vec![Tensor::from_bool(&dims, x.iter().map(|&x| u8::from(x == 0)).collect())])
}

pub fn bitwise_not(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::same_integer, attr, inputs)?;
    let elements = on_integers!(&tensor(inputs, 0)?.elements, x => x.iter().map(|&x| !x).collect());
    Ok(vec![Tensor { dims, elements }])
}

pub fn is_nan(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::f32_to_bool, attr, inputs)?;
    Ok(vec![Tensor::from_bool(&dims, f32s(inputs, 0)?.iter().map(|x| u8::from(x.is_nan())).collect())])
}

pub fn is_inf(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::f32_to_bool, attr, inputs)?;
    let [negative, positive] = attr.numbers::<2>()?.map(|p| p.flag());
    let is = |&x: &f32| u8::from(negative && x == f32::NEG_INFINITY || positive && x == f32::INFINITY);
    Ok(vec![Tensor::from_bool(&dims, f32s(inputs, 0)?.iter().map(is).collect())])
}

/// To the nearest value of a narrower type, ties to even.
pub fn round_float(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let half = attr.numbers::<1>()?[0].choice() == 0;
    map(attr, inputs, |x| if half { through_f16(x) } else { through_bf16(x) })
}

/// The upper half of the bits.
pub fn through_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    if x.is_nan() {
        return x;
    }
    let even = (bits >> 16) & 1;
    f32::from_bits(bits.wrapping_add(0x7fff + even) & 0xffff_0000)
}

/// IEEE 754 binary16: 11 bits from 2^-14 on, steps of 2^-24 below, at most 65504.
pub fn through_f16(x: f32) -> f32 {
    let magnitude = x.abs();
    if !magnitude.is_finite() || magnitude == 0.0 {
        return x;
    }
    // Half way to the next value beyond the largest.
    if magnitude >= 65520.0 {
        return f32::INFINITY.copysign(x);
    }
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-14);
    let step = 2.0f32.powi(exponent - 10);
    ((magnitude / step).round_ties_even() * step).copysign(x)
}
