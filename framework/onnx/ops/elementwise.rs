//! Ops on single elements.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::{OnnxOp, op, read_plain, write_plain, wrong};
use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::tensor::Constant;
use crate::write::NodeOut;
use lacuna_ir::op::{Attr, ClipAttr};
use lacuna_ir::{OpKind, ValueId};

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
        read: read_dropout,
        write: None,
        spare_outputs: true,
    },
    op("Add", OpKind::Add, &[], read_plain, write_plain),
    op("Sub", OpKind::Sub, &[], read_plain, write_plain),
    op("Mul", OpKind::Mul, &[], read_plain, write_plain),
    op("Div", OpKind::Div, &[], read_plain, write_plain),
    op("Sqrt", OpKind::Sqrt, &[], read_plain, write_plain),
    op("Erf", OpKind::Erf, &[], read_plain, write_plain),
    op("Tanh", OpKind::Tanh, &[], read_plain, write_plain),
    op("Cast", OpKind::Cast, &["to", "saturate"], read_cast, write_cast),
];

/// At inference Dropout copies its input. The ratio does not matter then.
fn read_dropout(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    if let Some(training) = r.constant(node, 2)?
        && r.graph.const_bytes(training).is_some_and(|bytes| bytes.iter().any(|&b| b != 0))
    {
        return Err(node.unsupported(" in training mode; export the model for inference"));
    }
    Ok((Attr::None, vec![r.required(node, 0)?]))
}

/// Bounds are inputs since operator set 11; some exporters go on writing them as attributes.
fn read_clip(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
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
    if node.proto.input.len() > 3 {
        return Err(node.arity(format!("it takes 1 to 3 inputs, not {}", node.proto.input.len())));
    }
    Ok((Attr::Clip(attr), vec![r.required(node, 0)?]))
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
