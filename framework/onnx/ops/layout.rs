//! Ops that move elements and compute nothing.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::{OnnxOp, op, params, write_axis, write_plain, wrong};
use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::tensor::Constant;
use crate::write::NodeOut;
use lacuna_ir::op::{Attr, Axes};
use lacuna_ir::{DType, Element, OpKind, ValueId};

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    op("Reshape", OpKind::Reshape, &["allowzero", "shape"], read_reshape, write_plain),
    op("Flatten", OpKind::Flatten, &["axis"], read_flatten, write_axis),
    op("Transpose", OpKind::Transpose, &["perm"], read_transpose, write_transpose),
    op("Concat", OpKind::Concat, &["axis"], read_concat, write_axis),
    op("Gather", OpKind::Gather, &["axis"], read_gather, write_axis),
    op("GatherElements", OpKind::GatherElements, &["axis"], read_gather, write_axis),
    params("GatherND", OpKind::GatherND, &[]),
    OnnxOp { write: Some(write_scatter), ..params("ScatterElements", OpKind::ScatterElements, &[]) },
    OnnxOp { write: None, ..params("Scatter", OpKind::ScatterElements, &[]) },
    OnnxOp { write: Some(write_scatter), ..params("ScatterND", OpKind::ScatterND, &[]) },
    op("Unsqueeze", OpKind::Unsqueeze, &["axes"], read_axes, write_axes),
    op("Squeeze", OpKind::Squeeze, &["axes"], read_axes, write_axes),
];

/// In the graph a 0 copies the input's dimension; with `allowzero` it would be a dimension of size zero.
fn read_reshape(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    if let Some(given) = node.ints("shape")? {
        if node.opset >= 5 {
            return Err(node.attribute("shape", "is an input since operator set 5"));
        }
        return Ok((Attr::None, vec![r.required(node, 0)?, r.list(node, "shape", given)?]));
    }
    let shape = r.required(node, 1)?;
    if r.dtype(shape) != DType::I64 {
        return Err(node.arity("its shape must be an i64 list".to_string()));
    }
    // A dimension of an input is not 0: neither is what stands for it.
    let zero = match (r.graph.const_i64(shape), r.graph.value_elements.get(&shape)) {
        (Some(shape), _) => shape.contains(&0),
        (None, Some(shape)) => shape.iter().any(|e| matches!(e, Element::Number(0) | Element::Unknown)),
        (None, None) => true,
    };
    if node.flag("allowzero", false)? && zero {
        return Err(node.unsupported(" to a shape that may hold a 0 which does not copy (allowzero)"));
    }
    Ok((Attr::None, r.inputs(node)?))
}

fn read_flatten(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    Ok((Attr::Axis(node.axis(1)?), r.inputs(node)?))
}

fn read_concat(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    if node.int("axis")?.is_none() {
        return Err(node.attribute("axis", "is absent, it is required"));
    }
    Ok((Attr::Axis(node.axis(0)?), r.inputs(node)?))
}

fn read_gather(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    Ok((Attr::Axis(node.axis(0)?), r.inputs(node)?))
}

/// Axes are an attribute before operator set 13, an input from then on; Squeeze may have none.
fn read_axes(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let x = r.required(node, 0)?;
    let operand = r.input(node, 1)?;
    if let Some(v) = operand.filter(|v| r.dtype(*v) != DType::I64) {
        return Err(node.arity(format!("axes are {}, they must be i64", r.dtype(v))));
    }
    let input = operand.and_then(|v| r.graph.const_i64(v));
    let attr = node.ints("axes")?;
    if (attr.is_some() && node.opset >= 13) || (operand.is_some() && node.opset < 13) {
        return Err(node.attribute("axes", "is an input since operator set 13, an attribute before"));
    }
    let axes = match (input.as_deref(), attr) {
        (Some(axes), _) | (None, Some(axes)) => axes,
        (None, None) if operand.is_some() || node.proto.op_type == "Squeeze" => &[],
        (None, None) => return Err(node.attribute("axes", "is absent, it is required")),
    };
    let axes =
        Axes::new(axes).ok_or_else(|| node.attribute("axes", format!("{axes:?} are not at most 8 axes")))?;
    let computed = operand.filter(|_| input.is_none());
    Ok((Attr::Axes(axes), [x].into_iter().chain(computed).collect()))
}

fn write_axes(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Axes(axes) = attr else { return Err(wrong(attr)) };
    if !axes.as_slice().is_empty() {
        let axes: Vec<i64> = axes.as_slice().iter().map(|a| i64::from(*a)).collect();
        out.constant("axes", Constant::list_i64(&axes));
    }
    Ok(())
}

fn read_transpose(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let perm = node.ints("perm")?.unwrap_or_default();
    let perm =
        Axes::new(perm).ok_or_else(|| node.attribute("perm", format!("{perm:?} are not at most 8 axes")))?;
    Ok((Attr::Perm(perm), r.inputs(node)?))
}

fn write_transpose(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Perm(perm) = attr else { return Err(wrong(attr)) };
    if !perm.as_slice().is_empty() {
        out.ints("perm", perm.as_slice().iter().map(|a| i64::from(*a)));
    }
    Ok(())
}

/// Sums and products came with operator set 16, extremes with 18.
fn write_scatter(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let reduction = match out.kind {
        OpKind::ScatterND => attr.numbers::<1>()?.map(|p| p.choice()),
        _ => attr.numbers::<2>()?.last().map_or([0], |p| [p.choice()]),
    };
    if reduction >= [3] {
        out.needs(18);
    }
    super::params::write_params(attr, out)
}
