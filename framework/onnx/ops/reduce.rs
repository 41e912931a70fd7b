//! Reductions and softmax.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::params::read_params;
use super::{OnnxOp, Read, params, write_axis, wrong};
use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::tensor::Constant;
use crate::write::NodeOut;
use lacuna_ir::op::{Attr, Axes, ReduceAttr};
use lacuna_ir::{DType, Dim, OpKind, ValueId};

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    reduction("ReduceMean", OpKind::ReduceMean),
    reduction("ReduceSum", OpKind::ReduceSum),
    reduction("ReduceProd", OpKind::ReduceProd),
    reduction("ReduceMax", OpKind::ReduceMax),
    reduction("ReduceMin", OpKind::ReduceMin),
    reduction("ReduceL1", OpKind::ReduceL1),
    reduction("ReduceL2", OpKind::ReduceL2),
    reduction("ReduceSumSquare", OpKind::ReduceSumSquare),
    reduction("ReduceLogSum", OpKind::ReduceLogSum),
    reduction("ReduceLogSumExp", OpKind::ReduceLogSumExp),
    params("ArgMax", OpKind::ArgMax, &[]),
    params("ArgMin", OpKind::ArgMin, &[]),
    params("CumSum", OpKind::CumSum, &[]),
    OnnxOp {
        read: Read::Ops(read_top_k),
        attrs: &["k", "axis", "largest", "sorted"],
        ..params("TopK", OpKind::TopK, &[])
    },
    along("Softmax", OpKind::Softmax),
    along("LogSoftmax", OpKind::LogSoftmax),
    along("Hardmax", OpKind::Hardmax),
];

const fn reduction(name: &'static str, kind: OpKind) -> OnnxOp {
    let attrs = &["axes", "keepdims", "noop_with_empty_axes"];
    OnnxOp {
        name,
        kind,
        attrs,
        read: Read::Ops(read_reduction),
        write: Some(write_reduction),
        since: 0,
        spare_outputs: false,
    }
}

const fn along(name: &'static str, kind: OpKind) -> OnnxOp {
    OnnxOp {
        name,
        kind,
        attrs: &["axis"],
        read: Read::Ops(read_along),
        write: Some(write_axis),
        since: 0,
        spare_outputs: false,
    }
}

/// The kind that has the node's name.
fn kind_of(node: &Node<'_>) -> Result<OpKind> {
    OpKind::from_name(&node.proto.op_type).ok_or_else(|| node.unsupported(" yet"))
}

/// The operator set from which a reduction's axes are an input; before they were an attribute.
fn axes_are_input(kind: OpKind) -> i64 {
    if kind == OpKind::ReduceSum { 13 } else { 18 }
}

fn read_reduction(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let kind = kind_of(node)?;
    let (x, input, given) = (r.required(node, 0)?, r.input(node, 1)?, node.ints("axes")?);
    let since = axes_are_input(kind);
    if given.is_some() && node.opset >= since {
        return Err(node.attribute("axes", format!("is an input since operator set {since}")));
    }
    if node.proto.input.len() > 2 || (input.is_some() && node.opset < since) {
        return Err(node.arity(format!("it takes x and, from operator set {since} on, axes")));
    }
    let constant = input.and_then(|v| r.graph.const_i64(v));
    if let Some(v) = input.filter(|v| r.dtype(*v) != DType::I64) {
        return Err(node.arity(format!("axes are {}, they must be i64", r.dtype(v))));
    }
    // Known to list nothing, whether its (no) elements are known or not.
    let empty =
        input.is_none_or(|v| r.graph.shape(v) == [Dim::Fixed(0)]) && given.is_none_or(<[i64]>::is_empty);
    if empty && node.flag("noop_with_empty_axes", false)? {
        return Ok(vec![x]);
    }
    let axes = constant.as_deref().or(given).unwrap_or_default();
    let axes =
        Axes::new(axes).ok_or_else(|| node.attribute("axes", format!("{axes:?} are not at most 8 axes")))?;
    let attr = Attr::Reduce(ReduceAttr { axes, keep_dims: node.flag("keepdims", true)? });
    let operands: Vec<ValueId> =
        [x].into_iter().chain(input.filter(|_| constant.is_none() && !empty)).collect();
    drop(constant);
    Ok(vec![r.op(node, kind, attr, &operands)?])
}

fn write_reduction(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Reduce(reduce) = attr else { return Err(wrong(attr)) };
    let axes: Vec<i64> = reduce.axes.as_slice().iter().map(|a| i64::from(*a)).collect();
    if out.inputs() > 1 {
        out.needs(axes_are_input(out.kind));
    } else if !axes.is_empty() && out.opset >= axes_are_input(out.kind) {
        out.constant("axes", Constant::list_i64(&axes));
    } else if !axes.is_empty() {
        out.ints("axes", axes);
    }
    out.int("keepdims", i64::from(reduce.keep_dims));
    Ok(())
}

/// k is an attribute before operator set 10.
fn read_top_k(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let x = r.required(node, 0)?;
    let k = match node.int("k")? {
        Some(k) if node.opset < 10 => r.list(node, "k", &[k])?,
        Some(_) => return Err(node.attribute("k", "is an input since operator set 10")),
        None => r.required(node, 1)?,
    };
    r.results(node, OpKind::TopK, Attr::Params(read_params(node, OpKind::TopK)?), &[x, k])
}

/// Before operator set 13 the input was flattened to two dimensions at `axis`, and a softmax taken over the
/// whole second one. That is one along an axis if all dimensions from `axis` on but that one are 1.
fn read_along(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let kind = kind_of(node)?;
    let x = r.required(node, 0)?;
    if node.opset >= 13 {
        return Ok(vec![r.op(node, kind, Attr::Axis(node.axis(-1)?), &[x])?]);
    }
    let axis = node.axis(1)?;
    let dims = r.graph.shape(x).to_vec();
    let rank = i64::try_from(dims.len()).unwrap_or(i64::MAX);
    let front = if axis < 0 { i64::from(axis).saturating_add(rank) } else { i64::from(axis) };
    let front = usize::try_from(front).ok().filter(|f| *f < dims.len());
    let front = front
        .ok_or_else(|| node.attribute("axis", format!("{axis} does not exist: the input has {rank}")))?;
    let mut wide = dims.iter().enumerate().skip(front).filter(|(_, d)| **d != Dim::Fixed(1));
    let last = wide.next().map_or(dims.len().saturating_sub(1), |(i, _)| i);
    let last = i32::try_from(last).map_err(|_| node.attribute("axis", "is out of range"))?;
    if wide.next().is_none() {
        return Ok(vec![r.op(node, kind, Attr::Axis(last), &[x])?]);
    }
    let flat = r.op(node, OpKind::Flatten, Attr::Axis(axis), &[x])?;
    let y = r.op(node, kind, Attr::Axis(1), &[flat])?;
    let shape = r.shape_of(node, x)?;
    Ok(vec![r.op(node, OpKind::Reshape, Attr::None, &[y, shape])?])
}
