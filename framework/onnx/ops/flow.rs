//! Choices and loops. How they are read is in `read/control.rs`.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::{OnnxOp, Read, function, wrong};
use crate::read::control::{read_if, read_loop, read_scan};
use crate::write::NodeOut;
use lacuna_ir::op::{IfAttr, LoopAttr};
use lacuna_ir::{Attr, OpKind};

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    OnnxOp {
        name: "If",
        kind: OpKind::If,
        attrs: &["then_branch", "else_branch"],
        read: Read::Ops(read_if),
        write: Some(write_if),
        since: 0,
        spare_outputs: false,
    },
    OnnxOp {
        name: "Loop",
        kind: OpKind::Loop,
        attrs: &["body"],
        read: Read::Ops(read_loop),
        write: Some(write_loop),
        since: 0,
        spare_outputs: false,
    },
    function(
        "Scan",
        &[
            "body",
            "num_scan_inputs",
            "directions",
            "scan_input_axes",
            "scan_input_directions",
            "scan_output_axes",
            "scan_output_directions",
        ],
        read_scan,
    ),
];

fn write_if(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::If(IfAttr { then_body, else_body }) = *attr else { return Err(wrong(attr)) };
    out.body("then_branch", then_body, 1, 0)?;
    match else_body {
        Some(body) => out.body("else_branch", body, 1, 0)?,
        None => out.failing_body("else_branch", then_body)?,
    }
    out.drop_captures(1);
    Ok(())
}

fn write_loop(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Loop(LoopAttr { body, states }) = *attr else { return Err(wrong(attr)) };
    let own = usize::try_from(states).ok().and_then(|n| n.checked_add(2)).ok_or("too many states")?;
    out.body("body", body, own, own)?;
    out.drop_captures(own);
    Ok(())
}
