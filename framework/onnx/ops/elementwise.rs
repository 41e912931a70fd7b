//! Ops on single elements.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::{OnnxOp, Read, function, op, params, plain, read_plain, since, write_plain, wrong};
use crate::error::Result;
use crate::node::Node;
use crate::proto::tensor_proto::DataType;
use crate::read::Reader;
use crate::tensor::Constant;
use crate::write::NodeOut;
use bytes::Bytes;
use lacuna_ir::op::{Attr, Axes, ClipAttr};
use lacuna_ir::params::Params;
use lacuna_ir::{DType, Dim, OpKind, ValueId};

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    op("Relu", OpKind::Relu, &[], read_plain, write_plain),
    op("Sigmoid", OpKind::Sigmoid, &[], read_plain, write_plain),
    op("Clip", OpKind::Clip, &["min", "max"], read_clip, write_clip),
    op("Identity", OpKind::Identity, &[], read_plain, write_plain),
    function("Dropout", &["ratio", "seed"], read_dropout),
    binary("Add", OpKind::Add),
    binary("Sub", OpKind::Sub),
    binary("Mul", OpKind::Mul),
    binary("Div", OpKind::Div),
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
    OnnxOp { read: Read::Op(read_bitwise_not), ..since(18, "BitwiseNot", OpKind::BitwiseNot) },
    plain("IsNaN", OpKind::IsNaN),
    params("IsInf", OpKind::IsInf, &[]),
    binary("Pow", OpKind::Pow),
    params("Mod", OpKind::Mod, &[]),
    params("BitShift", OpKind::BitShift, &[]),
    since(18, "BitwiseAnd", OpKind::BitwiseAnd),
    since(18, "BitwiseOr", OpKind::BitwiseOr),
    since(18, "BitwiseXor", OpKind::BitwiseXor),
    binary("And", OpKind::And),
    binary("Or", OpKind::Or),
    binary("Xor", OpKind::Xor),
    binary("Equal", OpKind::Equal),
    binary("Less", OpKind::Less),
    binary("Greater", OpKind::Greater),
    plain("LessOrEqual", OpKind::LessOrEqual),
    plain("GreaterOrEqual", OpKind::GreaterOrEqual),
    plain("Sum", OpKind::Sum),
    plain("Mean", OpKind::Mean),
    plain("Max", OpKind::Max),
    plain("Min", OpKind::Min),
    OnnxOp { read: Read::Ops(read_prelu), ..plain("PRelu", OpKind::PRelu) },
    plain("Expand", OpKind::Expand),
    plain("Where", OpKind::Where),
    OnnxOp { write: None, ..op("CastLike", OpKind::Cast, &["saturate"], read_cast_like, write_cast) },
    OnnxOp {
        read: Read::Ops(read_cast),
        ..op("Cast", OpKind::Cast, &["to", "saturate"], read_cast_like, write_cast)
    },
    OnnxOp { read: Read::Never, ..op("Cast", OpKind::RoundFloat, &[], read_cast_like, write_round_float) },
];

const fn binary(name: &'static str, kind: OpKind) -> OnnxOp {
    OnnxOp { read: Read::Ops(read_binary), attrs: &["axis", "broadcast"], ..plain(name, kind) }
}

/// `x` with dimensions of 1 behind its own, so that they begin at dimension `axis` of `rank`.
fn aligned(r: &mut Reader<'_>, node: &Node<'_>, x: ValueId, axis: i64, rank: usize) -> Result<ValueId> {
    let own = r.graph.shape(x).len();
    let axis = usize::try_from(if axis < 0 {
        axis.saturating_add(i64::try_from(rank).unwrap_or(i64::MAX))
    } else {
        axis
    });
    let end = axis.ok().and_then(|axis| axis.checked_add(own)).filter(|end| *end <= rank);
    let end = end.ok_or_else(|| node.attribute("axis", "does not fit the shapes"))?;
    let behind: Vec<i64> = (end..rank).filter_map(|d| i64::try_from(d).ok()).collect();
    if behind.is_empty() {
        return Ok(x);
    }
    // Axes count dimensions of the result, which begins with the operand's own.
    let first = i64::try_from(own).unwrap_or(i64::MAX);
    let axes: Vec<i64> = (0..).map(|i| first.saturating_add(i)).take(behind.len()).collect();
    let axes = Axes::new(&axes).ok_or_else(|| node.attribute("axis", "does not fit the shapes"))?;
    r.op(node, OpKind::Unsqueeze, Attr::Axes(axes), &[x])
}

/// Before operator set 7 the second operand's dimensions could be those of the first from `axis` on.
fn read_binary(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let kind = OpKind::from_name(&node.proto.op_type).ok_or_else(|| node.unsupported(" yet"))?;
    let mut operands = r.inputs(node)?;
    let old = node.int("axis")?.filter(|_| node.int("broadcast").is_ok_and(|b| b == Some(1)));
    if node.opset >= 7 && (node.int("axis")?.is_some() || node.int("broadcast")?.is_some()) {
        return Err(node.attribute("broadcast", "is not known since operator set 7"));
    }
    if let (Some(axis), [a, b]) = (old, operands.as_mut_slice()) {
        let rank = r.graph.shape(*a).len();
        *b = aligned(r, node, *b, axis, rank)?;
    }
    Ok(vec![r.op(node, kind, Attr::None, &operands)?])
}

/// Before operator set 7 a list of slopes was one for each channel.
fn read_prelu(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let (x, mut slope) = (r.required(node, 0)?, r.required(node, 1)?);
    let rank = r.graph.shape(x).len();
    if node.opset < 7
        && rank > 1
        && r.graph.shape(slope).len() == 1
        && r.graph.shape(slope) != [Dim::Fixed(1)]
    {
        slope = aligned(r, node, slope, 1, rank)?;
    }
    Ok(vec![r.op(node, OpKind::PRelu, Attr::None, &[x, slope])?])
}

/// Bits above those of the file's type would be set.
fn read_bitwise_not(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let x = r.required(node, 0)?;
    if r.is_widened(x) {
        return Err(node.unsupported(" of a type that graphs hold in a wider one; cast it first"));
    }
    Ok((Attr::None, vec![x]))
}

/// A cast to the element type of the second input, which is not read otherwise.
fn read_cast_like(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    node.flag("saturate", true)?;
    let like = r.required(node, 1)?;
    Ok((Attr::Cast(r.dtype(like)), vec![r.required(node, 0)?]))
}

/// At inference Dropout copies its input and keeps everything. The ratio does not matter then; nor does the mode in
/// training mode, if the ratio is 0.
fn read_dropout(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let ratio = r.input(node, 1)?.and_then(|v| r.graph.const_f32(v)?.first().copied());
    if let Some(training) = r.constant(node, 2)?
        && r.graph.const_bytes(training).is_some_and(|bytes| bytes.iter().any(|&b| b != 0))
        && ratio != Some(0.0)
    {
        return Err(node.unsupported(" in training mode; export the model for inference"));
    }
    let x = r.required(node, 0)?;
    if node.proto.output.get(1).is_none_or(String::is_empty) {
        return Ok(vec![x]);
    }
    let yes = Constant { dtype: DType::Bool, dims: vec![], bytes: Bytes::from_static(&[1]) };
    let yes = r.add_constant(&format!("{}.keep", node.name), yes)?;
    let shape = r.shape_of(node, x)?;
    Ok(vec![x, r.op(node, OpKind::Expand, Attr::None, &[yes, shape])?])
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

/// A cast to a type of narrower floats rounds through it; wider ones are f32 in the graph.
fn read_cast(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    node.flag("saturate", true)?;
    let code = node.int("to")?.ok_or_else(|| node.attribute("to", "is absent, it is required"))?;
    let code = i32::try_from(code).map_err(|_| node.attribute("to", format!("is {code}")))?;
    let x = r.required(node, 0)?;
    let narrow = match DataType::try_from(code) {
        Ok(DataType::Float16) => Some(0),
        Ok(DataType::Bfloat16) => Some(1),
        _ => None,
    };
    let dtype = match DataType::try_from(code) {
        Ok(DataType::Float16 | DataType::Bfloat16 | DataType::Double) => DType::F32,
        _ => crate::tensor::dtype(code, &node.name)?,
    };
    let y = match r.dtype(x) {
        DType::F32 if narrow.is_some() => x,
        _ => r.op(node, OpKind::Cast, Attr::Cast(dtype), &[x])?,
    };
    match narrow {
        None => Ok(vec![y]),
        Some(to) => {
            let kind = OpKind::RoundFloat;
            Ok(vec![r.op(node, kind, Attr::Params(Params::usual(kind).with(kind, "to", to)), &[y])?])
        }
    }
}

fn write_round_float(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let half = attr.numbers::<1>()?.iter().all(|p| p.choice() == 0);
    let narrow = if half { DataType::Float16 } else { DataType::Bfloat16 };
    out.twice("narrow", i64::from(i32::from(narrow)), i64::from(i32::from(DataType::Float)));
    Ok(())
}

fn write_cast(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Cast(dtype) = attr else { return Err(wrong(attr)) };
    out.int("to", i64::from(crate::tensor::code(*dtype)));
    Ok(())
}
