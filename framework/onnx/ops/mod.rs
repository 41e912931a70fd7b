//! The table of ONNX ops: for each its kind in the graph, how to read a node of it and how to write one.
//!
//! One file per family holds its rows and their functions; here is what they share. Rows say what differs between
//! operator sets 11 to 21; what is written is operator set 17. An op that ONNX has under more than one name
//! (Dropout does nothing at inference) has rows that are only read.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

mod dynamic_lstm;
mod elementwise;
mod flow;
mod integer;
mod layout;
mod norm;
pub(crate) mod params;
mod products;
mod quant;
mod recurrent;
mod reduce;
mod sample;
mod slice;
mod windows;

use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::write::NodeOut;
use lacuna_ir::{Attr, OpKind, ValueId};

/// Every row, family by family.
pub const FAMILIES: &[&[OnnxOp]] = &[
    elementwise::OPS,
    windows::OPS,
    products::OPS,
    norm::OPS,
    reduce::OPS,
    layout::OPS,
    slice::OPS,
    sample::OPS,
    recurrent::OPS,
    quant::OPS,
    integer::OPS,
    flow::OPS,
];

/// Ops of the domain com.microsoft that are not written out before (`composite.rs`).
pub const MICROSOFT_OPS: &[OnnxOp] = dynamic_lstm::OPS;

/// All rows of the table.
pub fn onnx_ops() -> impl Iterator<Item = &'static OnnxOp> {
    FAMILIES.iter().copied().flatten()
}

/// One ONNX op.
pub struct OnnxOp {
    pub name: &'static str,
    pub kind: OpKind,
    /// Attributes that may stand at a node; another one is an error.
    pub attrs: &'static [&'static str],
    pub read: Read,
    /// Writes attributes and extra inputs; operands are there already. `None`: `kind` is written under another name.
    pub write: Option<WriteFn>,
    /// The operator set that an op came with, if that is after the one that is usually written.
    pub since: i64,
    /// Outputs that the op in the graph does not have may have names, as long as nothing reads them.
    pub spare_outputs: bool,
}

/// How a node is read.
pub enum Read {
    /// As one op of the row's kind, with these attributes and operands.
    Op(ReadFn),
    /// As one op of the row's kind, whose attributes are its numbers (`lacuna_ir::params`) and whose operands are the
    /// node's.
    Params,
    /// Not at all: nodes of that name are read by another row.
    Never,
    /// As several ops: the values of the node's outputs.
    Ops(for<'m> fn(&mut Reader<'m>, &Node<'m>) -> Result<Vec<ValueId>>),
}

type ReadFn = fn(&mut Reader<'_>, &Node<'_>) -> Result<(Attr, Vec<ValueId>)>;
/// The error says what ONNX cannot express.
type WriteFn = fn(&Attr, &mut NodeOut<'_>) -> Result<(), String>;

/// A scale for each of more channels than this has a zero point for each in the file.
const CHANNELS_MAX: usize = 1 << 20;

const fn op(
    name: &'static str,
    kind: OpKind,
    attrs: &'static [&'static str],
    read: ReadFn,
    write: WriteFn,
) -> OnnxOp {
    OnnxOp { name, kind, attrs, read: Read::Op(read), write: Some(write), since: 0, spare_outputs: false }
}

/// An op without attributes.
const fn plain(name: &'static str, kind: OpKind) -> OnnxOp {
    op(name, kind, &[], read_plain, write_plain)
}

/// An op whose attributes are its numbers; `attrs` may stand at a node besides, and mean nothing.
const fn params(name: &'static str, kind: OpKind, attrs: &'static [&'static str]) -> OnnxOp {
    OnnxOp {
        name,
        kind,
        attrs,
        read: Read::Params,
        write: Some(params::write_params),
        since: 0,
        spare_outputs: false,
    }
}

/// As [`params`], for an op that came with this operator set.
const fn since(opset: i64, name: &'static str, kind: OpKind) -> OnnxOp {
    OnnxOp { since: opset, ..params(name, kind, &[]) }
}

/// An op that the graph has under other names.
const fn function(
    name: &'static str,
    attrs: &'static [&'static str],
    read: for<'m> fn(&mut Reader<'m>, &Node<'m>) -> Result<Vec<ValueId>>,
) -> OnnxOp {
    let kind = OpKind::Identity;
    OnnxOp { name, kind, attrs, read: Read::Ops(read), write: None, since: 0, spare_outputs: false }
}

fn read_plain(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    Ok((Attr::None, r.inputs(node)?))
}

fn write_plain(_: &Attr, _: &mut NodeOut<'_>) -> Result<(), String> {
    Ok(())
}

fn write_axis(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Axis(axis) = attr else { return Err(wrong(attr)) };
    out.int("axis", i64::from(*axis));
    Ok(())
}

fn wrong(attr: &Attr) -> String {
    format!("cannot carry {} attributes", attr.variant())
}

/// The row under which ops of `kind` are written.
pub fn row_of(kind: OpKind) -> Option<&'static OnnxOp> {
    onnx_ops().find(|row| row.kind == kind && row.write.is_some())
}
