//! Normalisations.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::{OnnxOp, op, wrong};
use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::write::NodeOut;
use lacuna_ir::op::{Attr, NormAttr};
use lacuna_ir::{OpKind, ValueId};

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    op(
        "BatchNormalization",
        OpKind::BatchNormalization,
        &["epsilon", "momentum", "training_mode"],
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
];

fn read_batch_norm(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    if node.flag("training_mode", false)? {
        return Err(node.unsupported(" in training mode; export the model for inference"));
    }
    node.finite("momentum", 0.9)?;
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
