//! Normalisations.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::params::read_params;
use super::{OnnxOp, Read, function, op, params, wrong};
use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::tensor::Constant;
use crate::write::NodeOut;
use lacuna_ir::op::{Attr, Axes, NormAttr, ReduceAttr};
use lacuna_ir::{OpKind, ValueId};

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    op(
        "BatchNormalization",
        OpKind::BatchNormalization,
        &["consumed_inputs", "epsilon", "is_test", "momentum", "spatial", "training_mode"],
        read_batch_norm,
        write_batch_norm,
    ),
    OnnxOp {
        spare_outputs: true,
        ..op(
            "LayerNormalization",
            OpKind::LayerNormalization,
            &["axis", "epsilon", "stash_type"],
            read_layer_norm,
            write_layer_norm,
        )
    },
    op(
        "InstanceNormalization",
        OpKind::InstanceNormalization,
        &["epsilon"],
        read_instance_norm,
        write_batch_norm,
    ),
    OnnxOp {
        since: 21,
        read: Read::Ops(read_group_norm),
        attrs: &["epsilon", "num_groups", "stash_type"],
        ..params("GroupNormalization", OpKind::GroupNormalization, &[])
    },
    params("LRN", OpKind::LRN, &[]),
    function("MeanVarianceNormalization", &["axes"], read_mean_variance),
];

fn read_batch_norm(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    if node.flag("training_mode", false)? {
        return Err(node.unsupported(" in training mode; export the model for inference"));
    }
    node.finite("momentum", 0.9)?;
    if node.opset < 9 && !node.flag("spatial", true)? {
        return Err(node.unsupported(" with statistics for every place (spatial 0)"));
    }
    Ok((Attr::Epsilon(node.finite("epsilon", 1e-5)?), r.inputs(node)?))
}

fn write_batch_norm(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Epsilon(epsilon) = attr else { return Err(wrong(attr)) };
    out.float("epsilon", *epsilon);
    Ok(())
}

/// In the graph sums are f32, whatever `stash_type` says.
fn read_layer_norm(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    node.int("stash_type")?;
    let attr = NormAttr { axis: node.axis(-1)?, epsilon: node.finite("epsilon", 1e-5)? };
    Ok((Attr::Norm(attr), r.inputs(node)?))
}

fn write_layer_norm(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Norm(norm) = attr else { return Err(wrong(attr)) };
    out.int("axis", i64::from(norm.axis));
    out.float("epsilon", norm.epsilon);
    Ok(())
}

fn read_instance_norm(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    Ok((Attr::Epsilon(node.finite("epsilon", 1e-5)?), r.inputs(node)?))
}

/// Scale and bias are for each group before operator set 21: then every channel gets its group's.
fn read_group_norm(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    node.int("stash_type")?;
    let kind = OpKind::GroupNormalization;
    let numbers = read_params(node, kind)?;
    let mut operands = r.inputs(node)?;
    if node.opset < 21 {
        let x = r.required(node, 0)?;
        let groups = node.int("num_groups")?.unwrap_or(1);
        let channels = r.graph.shape(x).get(1).and_then(|c| i64::try_from(c.fixed()?).ok());
        let each = channels.and_then(|c| c.checked_div(groups));
        let each = each.ok_or_else(|| node.unsupported(" of a number of channels that is not known"))?;
        let (wide, flat) = (r.list(node, "wide", &[groups, each])?, r.list(node, "flat", &[-1])?);
        let last = Axes::new(&[-1]).map(Attr::Axes).ok_or_else(|| node.arity("no axis".to_string()))?;
        for operand in operands.iter_mut().skip(1) {
            let column = r.op(node, OpKind::Unsqueeze, last, &[*operand])?;
            let all = r.op(node, OpKind::Expand, Attr::None, &[column, wide])?;
            *operand = r.op(node, OpKind::Reshape, Attr::None, &[all, flat])?;
        }
    }
    Ok(vec![r.op(node, kind, Attr::Params(numbers), &operands)?])
}

/// `(x - mean) / (deviation + 1e-9)`.
fn read_mean_variance(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let x = r.required(node, 0)?;
    let axes = node.ints("axes")?.unwrap_or(&[0, 2, 3]);
    let axes =
        Axes::new(axes).ok_or_else(|| node.attribute("axes", format!("{axes:?} are not at most 8 axes")))?;
    let mean = Attr::Reduce(ReduceAttr { axes, keep_dims: true });
    let average = r.op(node, OpKind::ReduceMean, mean, &[x])?;
    let centred = r.op(node, OpKind::Sub, Attr::None, &[x, average])?;
    let square = r.op(node, OpKind::Mul, Attr::None, &[centred, centred])?;
    let variance = r.op(node, OpKind::ReduceMean, mean, &[square])?;
    let deviation = r.op(node, OpKind::Sqrt, Attr::None, &[variance])?;
    let small = r.add_constant(&format!("{}.epsilon", node.name), Constant::scalar_f32(1e-9))?;
    let divisor = r.op(node, OpKind::Add, Attr::None, &[deviation, small])?;
    Ok(vec![r.op(node, OpKind::Div, Attr::None, &[centred, divisor])?])
}
