//! Attributes that are the numbers of an op (`lacuna_ir::params`): read and written by its table.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::wrong;
use crate::error::Result;
use crate::node::Node;
use crate::write::NodeOut;
use lacuna_ir::params::{Params, Usual, params_of};
use lacuna_ir::{Attr, OpKind};

/// The numbers of `kind` at a node; what is not there has its usual value.
pub fn read_params(node: &Node<'_>, kind: OpKind) -> Result<Params> {
    let mut params = Params::usual(kind);
    for (param, slot) in params_of(kind).iter().zip(&mut params.bits) {
        let name = param.name;
        *slot = match param.usual {
            Usual::Int(usual) => {
                let v = node.int(name)?.unwrap_or(i64::from(usual));
                // The far ends are open ends (`end` of Shape).
                i32::try_from(v.clamp(i64::from(i32::MIN), i64::from(i32::MAX)))
                    .map_err(|_| node.attribute(name, format!("is {v}")))?
            }
            Usual::Flag(usual) => i32::from(node.flag(name, usual)?),
            Usual::Float(usual) => float_bits(node.float(name)?.unwrap_or(usual)),
            Usual::Choice(names) => match node.text(name)? {
                None => 0,
                Some(text) => choice(node, name, names, text)?,
            },
        };
    }
    Ok(params)
}

pub fn float_bits(v: f32) -> i32 {
    i32::from_le_bytes(v.to_le_bytes())
}

/// The place of `text` among the names that may stand for a choice.
pub fn choice(node: &Node<'_>, attr: &str, names: &[&str], text: &str) -> Result<i32> {
    let at = names.iter().position(|n| *n == text).and_then(|i| i32::try_from(i).ok());
    at.ok_or_else(|| node.unsupported(&format!(" with {attr} '{text}': it may be {}", names.join(", "))))
}

/// Choices, and what differs from the usual value.
pub fn write_params(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let params = match attr {
        Attr::Params(params) => params,
        Attr::None => return Ok(()),
        _ => return Err(wrong(attr)),
    };
    for (param, &bits) in params_of(out.kind).iter().zip(&params.bits) {
        // Some choices have no usual value in ONNX: they are always written.
        if bits == param.usual.bits() && !matches!(param.usual, Usual::Choice(_)) {
            continue;
        }
        match param.usual {
            Usual::Int(_) | Usual::Flag(_) => out.int(param.name, i64::from(bits)),
            Usual::Float(_) => out.float(param.name, f32::from_le_bytes(bits.to_le_bytes())),
            Usual::Choice(names) => {
                let name = usize::try_from(bits).ok().and_then(|i| names.get(i));
                out.text(param.name, name.ok_or_else(|| format!("'{}' has no value {bits}", param.name))?);
            }
        }
    }
    Ok(())
}
