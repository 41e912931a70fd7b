//! Cases for ops whose attributes are numbers, or that have none: one row each.

use super::{BATCH, Cases};
use lacuna_ir::params::{Params, Usual, params_of};
use lacuna_ir::{Attr, DType, OpKind, Tensor};

/// The usual numbers of `kind` with some replaced.
pub fn numbers(kind: OpKind, changed: &[(&str, f32)]) -> Attr {
    let mut params = Params::usual(kind);
    for (name, v) in changed {
        let i = params_of(kind)
            .iter()
            .position(|p| p.name == *name)
            .unwrap_or_else(|| panic!("{kind:?}: {name}"));
        params.bits[i] = match params_of(kind)[i].usual {
            Usual::Float(_) => v.to_bits() as i32,
            _ => *v as i32,
        };
    }
    if params_of(kind).is_empty() { Attr::None } else { Attr::Params(params) }
}

const X: &[usize] = &[BATCH, 4, 5];

pub fn elementwise(c: &mut Cases) {
    use OpKind::*;
    // What goes in: any float, or shifted and scaled into the function's domain.
    for (kind, scale, shift) in [
        (Abs, 1.0, 0.0),
        (Neg, 1.0, 0.0),
        (Sign, 1.0, 0.0),
        (Ceil, 1.0, 0.0),
        (Floor, 1.0, 0.0),
        (Round, 2.0, 0.0),
        (Exp, 1.0, 0.0),
        (Log, 1.0, 2.5),
        (Reciprocal, 1.0, 2.5),
        (Sin, 1.0, 0.0),
        (Cos, 1.0, 0.0),
        (Tan, 0.5, 0.0),
        (Asin, 0.45, 0.0),
        (Acos, 0.45, 0.0),
        (Atan, 1.0, 0.0),
        (Sinh, 1.0, 0.0),
        (Cosh, 1.0, 0.0),
        (Asinh, 1.0, 0.0),
        (Acosh, 1.0, 3.5),
        (Atanh, 0.45, 0.0),
        (Softsign, 1.0, 0.0),
        (Softplus, 1.0, 0.0),
        (Mish, 1.0, 0.0),
        (HardSwish, 2.0, 0.0),
        (IsNaN, 1.0, 0.0),
    ] {
        let x = c.float(X, scale, shift);
        c.given("f32", kind, Attr::None, x, vec![]);
    }
    for (label, kind, changed) in [
        ("usual", Elu, &[][..]),
        ("half", Elu, &[("alpha", 0.5)]),
        ("half", Celu, &[("alpha", 0.5)]),
        ("usual", Selu, &[]),
        ("own", Selu, &[("alpha", 1.5), ("gamma", 2.0)]),
        ("usual", LeakyRelu, &[]),
        ("third", LeakyRelu, &[("alpha", 0.3)]),
        ("usual", ThresholdedRelu, &[]),
        ("sixth", HardSigmoid, &[("alpha", 0.1667)]),
        ("exact", Gelu, &[]),
        ("tanh", Gelu, &[("approximate", 1.0)]),
        ("usual", Shrink, &[]),
        ("soft", Shrink, &[("bias", 0.5), ("lambd", 0.7)]),
        ("positive", IsInf, &[("detect_negative", 0.0)]),
    ] {
        c.one(label, kind, numbers(kind, changed), (DType::F32, X), vec![]);
    }
    c.one("bool", Not, Attr::None, (DType::Bool, X), vec![]);
    c.one("u8", BitwiseNot, Attr::None, (DType::U8, X), vec![]);
    for kind in [And, Or, Xor] {
        let b = c.random(DType::Bool, &[4, 1]);
        c.one("bool", kind, Attr::None, (DType::Bool, X), vec![b]);
    }
    for kind in [BitwiseAnd, BitwiseOr, BitwiseXor] {
        let b = c.random(DType::I32, &[5]);
        c.one("i32", kind, Attr::None, (DType::I32, X), vec![b]);
    }
    for kind in [Equal, Less, Greater, LessOrEqual, GreaterOrEqual] {
        let b = c.random(DType::I64, &[4, 1]);
        c.one("i64", kind, Attr::None, (DType::I64, X), vec![b]);
        let b = c.random(DType::F32, &[5]);
        c.one("f32", kind, Attr::None, (DType::F32, X), vec![b]);
    }
    let by = |n: u8| Tensor::from_u8(&[5], vec![0, 1, 2, 7, n]);
    c.one("left", BitShift, numbers(BitShift, &[]), (DType::U8, X), vec![by(3)]);
    c.one("right", BitShift, numbers(BitShift, &[("direction", 1.0)]), (DType::U8, X), vec![by(4)]);
    let b = Tensor::from_i64(&[5], vec![3, -4, 7, 1, -2]);
    c.one("i64", Mod, numbers(Mod, &[]), (DType::I64, X), vec![b]);
    let b = c.float(&[5], 1.0, 2.5);
    c.one("f32", Mod, numbers(Mod, &[("fmod", 1.0)]), (DType::F32, X), vec![b]);
    let x = c.float(X, 1.0, 2.5);
    let b = Tensor::from_f32(&[5], vec![0.0, 1.0, 2.0, -1.5, 0.5]);
    c.given("f32", Pow, Attr::None, x, vec![b]);
    let b = Tensor::from_i64(&[], vec![3]);
    c.one("mixed", Pow, Attr::None, (DType::F32, X), vec![b]);
    for kind in [Sum, Mean, Max, Min] {
        let (a, b) = (c.random(DType::F32, &[5]), c.random(DType::F32, &[4, 1]));
        c.one("three", kind, Attr::None, (DType::F32, X), vec![a, b]);
        c.one("one", kind, Attr::None, (DType::F32, X), vec![]);
    }
    let b = c.random(DType::I64, &[5]);
    c.one("i64", Max, Attr::None, (DType::I64, X), vec![b]);
    let slope = c.random(DType::F32, &[4, 1]);
    c.one("channel", PRelu, Attr::None, (DType::F32, X), vec![slope]);
    let (a, b) = (c.random(DType::F32, &[4, 1]), c.random(DType::F32, &[5]));
    c.one("broadcast", Where, Attr::None, (DType::Bool, X), vec![a, b]);
    c.one(
        "wide",
        Expand,
        Attr::None,
        (DType::F32, &[2, 1, 5]),
        vec![Tensor::from_i64(&[4], vec![2, 1, 3, 1])],
    );
}
