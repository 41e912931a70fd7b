//! Ops on single elements.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::{OnnxOp, Read, op, params, plain, read_plain, since, write_plain, wrong};
use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::tensor::Constant;
use crate::write::NodeOut;
use lacuna_ir::op::{Attr, ClipAttr};
use lacuna_ir::{DType, OpKind, ValueId};

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    op("Relu", OpKind::Relu, &[], read_plain, write_plain),
    op("Sigmoid", OpKind::Sigmoid, &[], read_plain, write_plain),
    op("Clip", OpKind::Clip, &["min", "max"], read_clip, write_clip),
    op("Identity", OpKind::Identity, &[], read_plain, write_plain),
    OnnxOp {
        name: "Dropout",
        kind: OpKind::Identity,
        attrs: &["ratio", "seed"],
        read: Read::Op(read_dropout),
        write: None,
        since: 0,
        spare_outputs: true,
    },
    op("Add", OpKind::Add, &[], read_plain, write_plain),
    op("Sub", OpKind::Sub, &[], read_plain, write_plain),
    op("Mul", OpKind::Mul, &[], read_plain, write_plain),
    op("Div", OpKind::Div, &[], read_plain, write_plain),
    op("Sqrt", OpKind::Sqrt, &[], read_plain, write_plain),
    op("Erf", OpKind::Erf, &[], read_plain, write_plain),
    op("Tanh", OpKind::Tanh, &[], read_plain, write_plain),
    plain("Abs", OpKind::Abs),
    plain("Neg", OpKind::Neg),
    plain("Sign", OpKind::Sign),
    plain("Ceil", OpKind::Ceil),
    plain("Floor", OpKind::Floor),
    plain("Round", OpKind::Round),
    plain("Exp", OpKind::Exp),
    plain("Log", OpKind::Log),
    plain("Reciprocal", OpKind::Reciprocal),
    plain("Sin", OpKind::Sin),
    plain("Cos", OpKind::Cos),
    plain("Tan", OpKind::Tan),
    plain("Asin", OpKind::Asin),
    plain("Acos", OpKind::Acos),
    plain("Atan", OpKind::Atan),
    plain("Sinh", OpKind::Sinh),
    plain("Cosh", OpKind::Cosh),
    plain("Asinh", OpKind::Asinh),
    plain("Acosh", OpKind::Acosh),
    plain("Atanh", OpKind::Atanh),
    plain("Softsign", OpKind::Softsign),
    plain("Softplus", OpKind::Softplus),
    since(18, "Mish", OpKind::Mish),
    plain("HardSwish", OpKind::HardSwish),
    params("Elu", OpKind::Elu, &[]),
    params("Celu", OpKind::Celu, &[]),
    params("Selu", OpKind::Selu, &[]),
    params("LeakyRelu", OpKind::LeakyRelu, &[]),
    params("ThresholdedRelu", OpKind::ThresholdedRelu, &[]),
    params("HardSigmoid", OpKind::HardSigmoid, &[]),
    since(20, "Gelu", OpKind::Gelu),
    params("Shrink", OpKind::Shrink, &[]),
    plain("Not", OpKind::Not),
    since(18, "BitwiseNot", OpKind::BitwiseNot),
    plain("IsNaN", OpKind::IsNaN),
    params("IsInf", OpKind::IsInf, &[]),
    plain("Pow", OpKind::Pow),
    params("Mod", OpKind::Mod, &[]),
    params("BitShift", OpKind::BitShift, &[]),
    since(18, "BitwiseAnd", OpKind::BitwiseAnd),
    since(18, "BitwiseOr", OpKind::BitwiseOr),
    since(18, "BitwiseXor", OpKind::BitwiseXor),
    plain("And", OpKind::And),
    plain("Or", OpKind::Or),
    plain("Xor", OpKind::Xor),
    plain("Equal", OpKind::Equal),
    plain("Less", OpKind::Less),
    plain("Greater", OpKind::Greater),
    plain("LessOrEqual", OpKind::LessOrEqual),
    plain("GreaterOrEqual", OpKind::GreaterOrEqual),
    plain("Sum", OpKind::Sum),
    plain("Mean", OpKind::Mean),
    plain("Max", OpKind::Max),
    plain("Min", OpKind::Min),
    plain("PRelu", OpKind::PRelu),
    plain("Expand", OpKind::Expand),
    plain("Where", OpKind::Where),
    OnnxOp { write: None, ..op("CastLike", OpKind::Cast, &["saturate"], read_cast_like, write_cast) },
    op("Cast", OpKind::Cast, &["to", "saturate"], read_cast, write_cast),
];

/// A cast to the element type of the second input, which is not read otherwise.
fn read_cast_like(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    node.flag("saturate", true)?;
    let like = r.required(node, 1)?;
    Ok((Attr::Cast(r.dtype(like)), vec![r.required(node, 0)?]))
}

/// At inference Dropout copies its input. The ratio does not matter then.
fn read_dropout(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    if let Some(training) = r.constant(node, 2)?
        && r.graph.const_bytes(training).is_some_and(|bytes| bytes.iter().any(|&b| b != 0))
    {
        return Err(node.unsupported(" in training mode; export the model for inference"));
    }
    Ok((Attr::None, vec![r.required(node, 0)?]))
}

const NO_BOUNDS: ClipAttr = ClipAttr { min: f32::NEG_INFINITY, max: f32::INFINITY };

/// Bounds are inputs since operator set 11; some exporters go on writing them as attributes.
fn read_clip(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    if node.proto.input.len() > 3 {
        return Err(node.arity(format!("it takes 1 to 3 inputs, not {}", node.proto.input.len())));
    }
    let x = r.required(node, 0)?;
    let bounds = [r.input(node, 1)?, r.input(node, 2)?];
    let computed = bounds.iter().flatten().any(|v| r.graph.const_bytes(*v).is_none());
    if computed || (r.dtype(x) != DType::F32 && bounds.iter().any(Option::is_some)) {
        if node.float("min")?.is_some() || node.float("max")?.is_some() {
            return Err(node.arity("it has bounds as attributes and as inputs".to_string()));
        }
        return Ok((Attr::Clip(NO_BOUNDS), r.inputs(node)?));
    }
    if r.dtype(x) != DType::F32 {
        // Nothing to do: no bounds, or those of floats.
        return Ok((Attr::Clip(NO_BOUNDS), vec![x, ValueId::NONE, ValueId::NONE]));
    }
    let bound = |i: usize, name: &str, absent: f32| -> Result<f32> {
        let input = match r.constant(node, i)? {
            None => None,
            Some(v) => match r.graph.const_f32(v).as_deref() {
                Some([bound]) => Some(*bound),
                _ => return Err(node.arity(format!("'{name}' must be one f32"))),
            },
        };
        match (input, node.float(name)?) {
            (Some(_), Some(_)) => Err(node.attribute(name, "stands beside the input of that name")),
            (Some(v), None) | (None, Some(v)) if v.is_nan() => Err(node.attribute(name, "is not a number")),
            (input, attr) => Ok(input.or(attr).unwrap_or(absent)),
        }
    };
    let attr = ClipAttr { min: bound(1, "min", f32::NEG_INFINITY)?, max: bound(2, "max", f32::INFINITY)? };
    Ok((Attr::Clip(attr), vec![x]))
}

fn write_clip(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Clip(clip) = attr else { return Err(wrong(attr)) };
    if clip.min > f32::NEG_INFINITY {
        out.constant("min", Constant::scalar_f32(clip.min));
    } else if clip.max < f32::INFINITY {
        out.absent();
    }
    if clip.max < f32::INFINITY {
        out.constant("max", Constant::scalar_f32(clip.max));
    }
    Ok(())
}

fn read_cast(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    node.flag("saturate", true)?;
    let code = node.int("to")?.ok_or_else(|| node.attribute("to", "is absent, it is required"))?;
    let code = i32::try_from(code).map_err(|_| node.attribute("to", format!("is {code}")))?;
    Ok((Attr::Cast(crate::tensor::dtype(code, &node.name)?), r.inputs(node)?))
}

fn write_cast(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Cast(dtype) = attr else { return Err(wrong(attr)) };
    out.int("to", i64::from(crate::tensor::code(*dtype)));
    Ok(())
}
