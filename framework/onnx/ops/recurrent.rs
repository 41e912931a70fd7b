//! Recurrent ops and losses.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::params::{choice, float_bits, write_params};
use super::{OnnxOp, Read, op, params, plain, wrong};
use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::write::NodeOut;
use lacuna_ir::op::{Attr, Equation};
use lacuna_ir::params::{ACTIVATIONS, Params, params_of};
use lacuna_ir::{OpKind, ValueId};

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    recurrent("LSTM", OpKind::LSTM, &["input_forget"]),
    recurrent("GRU", OpKind::GRU, &["linear_before_reset"]),
    recurrent("RNN", OpKind::RNN, &[]),
    params("NegativeLogLikelihoodLoss", OpKind::NegativeLogLikelihoodLoss, &[]),
    params("SoftmaxCrossEntropyLoss", OpKind::SoftmaxCrossEntropyLoss, &[]),
    op("Einsum", OpKind::Einsum, &["equation"], read_einsum, write_einsum),
    plain("Det", OpKind::Det),
];

const fn recurrent(name: &'static str, kind: OpKind, more: &'static [&'static str]) -> OnnxOp {
    let attrs = match more {
        [] => COMMON,
        _ => ALL,
    };
    OnnxOp {
        name,
        kind,
        attrs,
        read: Read::Ops(read_recurrent),
        write: Some(write_recurrent),
        since: 0,
        spare_outputs: false,
    }
}

const COMMON: &[&str] =
    &["activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "layout"];
const ALL: &[&str] = &[
    "activation_alpha",
    "activation_beta",
    "activations",
    "clip",
    "direction",
    "hidden_size",
    "input_forget",
    "layout",
    "linear_before_reset",
];

/// Names of the activations of a kind, in the order of ONNX's list, one direction after the other.
fn slots(kind: OpKind) -> &'static [&'static str] {
    match kind {
        OpKind::LSTM => &["f", "g", "h", "f_back", "g_back", "h_back"],
        OpKind::GRU => &["f", "g", "f_back", "g_back"],
        _ => &["f", "f_back"],
    }
}

fn usual(kind: OpKind) -> &'static [&'static str] {
    match kind {
        OpKind::LSTM => &["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh", "Tanh"],
        OpKind::GRU => &["Sigmoid", "Tanh", "Sigmoid", "Tanh"],
        _ => &["Tanh", "Tanh"],
    }
}

/// Activations are a list of names; parameters of their own are not known.
fn read_recurrent(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let kind = OpKind::from_name(&node.proto.op_type).ok_or_else(|| node.unsupported(" yet"))?;
    for name in ["activation_alpha", "activation_beta"] {
        if node.floats(name)?.is_some_and(|v| !v.is_empty()) {
            return Err(node.unsupported(&format!(" with {name}: activations have their usual parameters")));
        }
    }
    let direction = node.text("direction")?.unwrap_or("forward");
    let mut numbers = Params::usual(kind)
        .with(
            kind,
            "direction",
            choice(node, "direction", &["forward", "reverse", "bidirectional"], direction)?,
        )
        .with(kind, "hidden_size", i32::try_from(node.int("hidden_size")?.unwrap_or(0)).unwrap_or(-1))
        .with(kind, "clip", float_bits(node.float("clip")?.unwrap_or(f32::INFINITY)))
        .with(kind, "layout", i32::from(node.flag("layout", false)?));
    for name in ["input_forget", "linear_before_reset"] {
        numbers = numbers.with(kind, name, i32::from(node.flag(name, false)?));
    }
    let given = node.texts("activations")?.unwrap_or_else(|| usual(kind).to_vec());
    let used = if direction == "bidirectional" { slots(kind).len() } else { slots(kind).len().div_euclid(2) };
    if given.len() < used {
        return Err(node.attribute("activations", format!("names {}, it must name {used}", given.len())));
    }
    for (slot, name) in slots(kind).iter().zip(given) {
        numbers = numbers.with(kind, slot, choice(node, "activations", ACTIVATIONS, name)?);
    }
    let operands = r.inputs(node)?;
    r.results(node, kind, Attr::Params(numbers), &operands)
}

fn write_recurrent(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Params(numbers) = attr else { return Err(wrong(attr)) };
    write_params(attr, out)?;
    out.forget(slots(out.kind))?;
    let both = numbers.bits.first() == Some(&2);
    let used = if both { slots(out.kind).len() } else { slots(out.kind).len().div_euclid(2) };
    let mut names = Vec::new();
    for slot in slots(out.kind).iter().take(used) {
        let at = params_of(out.kind).iter().position(|p| p.name == *slot).and_then(|i| numbers.bits.get(i));
        let name = at.and_then(|bits| ACTIVATIONS.get(usize::try_from(*bits).ok()?));
        names.push(*name.ok_or_else(|| format!("'{slot}' is no activation"))?);
    }
    out.texts("activations", &names);
    Ok(())
}

fn read_einsum(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let text =
        node.text("equation")?.ok_or_else(|| node.attribute("equation", "is absent, it is required"))?;
    let equation = Equation::new(text)
        .ok_or_else(|| node.unsupported(&format!(" with equation '{text}': at most 64 letters are read")))?;
    Ok((Attr::Equation(equation), r.inputs(node)?))
}

fn write_einsum(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Equation(equation) = attr else { return Err(wrong(attr)) };
    out.text("equation", equation.as_str());
    Ok(())
}
