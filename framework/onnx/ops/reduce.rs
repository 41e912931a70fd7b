//! Reductions and softmax.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::{OnnxOp, op, write_axis, wrong};
use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::write::NodeOut;
use lacuna_ir::op::{Attr, Axes, ReduceAttr};
use lacuna_ir::{Dim, OpKind, ValueId};

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    op(
        "ReduceMean",
        OpKind::ReduceMean,
        &["axes", "keepdims", "noop_with_empty_axes"],
        read_reduce_mean,
        write_reduce_mean,
    ),
    op("Softmax", OpKind::Softmax, &["axis"], read_softmax, write_axis),
];

/// Axes are an attribute up to operator set 17, an input from 18 on.
fn read_reduce_mean(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let from_input = match r.constant(node, 1)? {
        None => None,
        Some(v) => Some(
            r.graph
                .const_i64(v)
                .ok_or_else(|| node.arity(format!("axes are {}, they must be i64", r.dtype(v))))?,
        ),
    };
    let (attr, input) = (node.ints("axes")?, from_input.as_deref());
    if attr.is_some() && node.opset >= 18 {
        return Err(node.attribute("axes", "is an input since operator set 18"));
    }
    if node.proto.input.len() > 2 || (input.is_some() && node.opset < 18) {
        return Err(node.arity("it takes x and, from operator set 18 on, axes".to_string()));
    }
    let axes = input.or(attr).unwrap_or_default();
    if axes.is_empty() && node.flag("noop_with_empty_axes", false)? {
        return Err(node.unsupported(" without axes where that means to do nothing; remove the node"));
    }
    let axes =
        Axes::new(axes).ok_or_else(|| node.attribute("axes", format!("{axes:?} are not at most 8 axes")))?;
    let attr = ReduceAttr { axes, keep_dims: node.flag("keepdims", true)? };
    Ok((Attr::Reduce(attr), vec![r.required(node, 0)?]))
}

fn write_reduce_mean(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Reduce(reduce) = attr else { return Err(wrong(attr)) };
    if !reduce.axes.as_slice().is_empty() {
        out.ints("axes", reduce.axes.as_slice().iter().map(|a| i64::from(*a)));
    }
    out.int("keepdims", i64::from(reduce.keep_dims));
    Ok(())
}

/// Before operator set 13 the input was flattened to two dimensions at `axis`, and a softmax taken over the
/// whole second one. That is a softmax along one axis if all dimensions from `axis` on but that one are 1.
fn read_softmax(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    if node.opset >= 13 {
        return Ok((Attr::Axis(node.axis(-1)?), r.inputs(node)?));
    }
    let axis = node.axis(1)?;
    let x = r.required(node, 0)?;
    let dims = r.graph.shape(x);
    let rank = i64::try_from(dims.len()).unwrap_or(i64::MAX);
    let front = if axis < 0 { i64::from(axis).saturating_add(rank) } else { i64::from(axis) };
    let front = usize::try_from(front).ok().filter(|f| *f < dims.len());
    let front = front
        .ok_or_else(|| node.attribute("axis", format!("{axis} does not exist: the input has {rank}")))?;
    let mut wide = dims.iter().enumerate().skip(front).filter(|(_, d)| **d != Dim::Fixed(1));
    let axis = wide.next().map_or(dims.len().saturating_sub(1), |(i, _)| i);
    if wide.next().is_some() {
        return Err(node.unsupported(" over several axes at once; export with operator set 13 or later"));
    }
    let axis = i32::try_from(axis).map_err(|_| node.attribute("axis", "is out of range"))?;
    Ok((Attr::Axis(axis), r.inputs(node)?))
}
