//! Matrix products.

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
use crate::write::NodeOut;
use lacuna_ir::op::{Attr, GemmAttr};
use lacuna_ir::{OpKind, ValueId};

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    op("Gemm", OpKind::Gemm, &["alpha", "beta", "broadcast", "transA", "transB"], read_gemm, write_gemm),
    op("MatMul", OpKind::MatMul, &[], read_plain, write_plain),
];

fn read_gemm(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    if node.int("broadcast")?.is_some() && node.opset >= 7 {
        return Err(node.attribute("broadcast", "is not known since operator set 7"));
    }
    let attr = GemmAttr {
        alpha: node.finite("alpha", 1.0)?,
        beta: node.finite("beta", 1.0)?,
        trans_a: node.flag("transA", false)?,
        trans_b: node.flag("transB", false)?,
    };
    Ok((Attr::Gemm(attr), r.inputs(node)?))
}

fn write_gemm(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Gemm(gemm) = attr else { return Err(wrong(attr)) };
    out.float("alpha", gemm.alpha);
    out.float("beta", gemm.beta);
    out.int("transA", i64::from(gemm.trans_a));
    out.int("transB", i64::from(gemm.trans_b));
    Ok(())
}
