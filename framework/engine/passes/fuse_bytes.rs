//! What follows an integer convolution or matrix product byte by byte moves into it: a table, then a sum. A SiLU of
//! floats moves into the quantisation that follows.

use super::rewrite::*;
use super::tables::look_up;
use crate::error::Result;
use crate::target::Target;
use lacuna_ir::op::LateAdd;
use lacuna_ir::{Attr, DType, Graph, OpId, OpKind, Uses, ValueId};

pub fn fuse_bytes(g: &mut Graph, _: &Target) -> Result<usize> {
    let mut changes = 0;
    let mut uses = g.uses();
    for op in g.order.clone() {
        let changed = match g.op_kind[op] {
            OpKind::QLookup => fuse_table(g, &uses, op)?,
            OpKind::QAdd => fuse_sum(g, &uses, op)?,
            OpKind::QuantizeLinear => fuse_silu(g, &uses, op)?,
            _ => false,
        };
        if changed {
            sweep(g);
            uses = g.uses();
            changes += 1;
        }
    }
    Ok(changes)
}

/// A look-up of the only reader of a product's bytes, or of a look-up's.
fn fuse_table(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    let (x, table) = (g.inputs_of(op)[0], g.inputs_of(op)[1]);
    let Some(maker) = g.producer(x).filter(|_| sole_use(g, uses, x).is_some()) else { return Ok(false) };
    let Some(bytes) = g.const_bytes(table).cloned() else { return Ok(false) };
    let y = match (g.op_kind[maker], g.op_attr[maker]) {
        (OpKind::QConv, Attr::QConv(a))
            if a.out.is_some() && a.late.is_none() && g.input_of(maker, 5).is_none() =>
        {
            with_input(g, op, maker, 5, table)?
        }
        (OpKind::QGemm, Attr::QGemm(a)) if a.out.is_some() && g.input_of(maker, 4).is_none() => {
            with_input(g, op, maker, 4, table)?
        }
        (OpKind::QLookup, _) => {
            let [source, first] = [0, 1].map(|i| g.inputs_of(maker)[i]);
            let Some(first) = g.const_bytes(first).cloned() else { return Ok(false) };
            let both: Vec<u8> = first.iter().map(|&q| bytes[q as usize]).collect();
            look_up(g, op, source, &both)?
        }
        _ => return Ok(false),
    };
    g.replace_uses(g.outputs_of(op)[0], y);
    Ok(true)
}

/// A SiLU that is quantised at once.
fn fuse_silu(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    let mut inputs = g.inputs_of(op).to_vec();
    let Some(silu) = made_by(g, inputs[0], OpKind::Silu) else { return Ok(false) };
    let bytes = g.value_dtype[g.outputs_of(op)[0]] == DType::U8 && tensor_params(g, op).is_some();
    if !bytes || sole_use(g, uses, inputs[0]).is_none() {
        return Ok(false);
    }
    inputs[0] = g.inputs_of(silu)[0];
    let name = g.op_name[op].clone();
    let y = op_before(g, op, OpKind::QuantizeSilu, g.op_attr[op], &name, &inputs)?;
    g.replace_uses(g.outputs_of(op)[0], y);
    Ok(true)
}

/// `maker` once more, before `at`, with `v` as input `i`.
fn with_input(g: &mut Graph, at: OpId, maker: OpId, i: usize, v: ValueId) -> Result<ValueId> {
    let mut inputs = g.inputs_of(maker).to_vec();
    inputs.resize(inputs.len().max(i + 1), ValueId::NONE);
    inputs[i] = v;
    let name = g.op_name[maker].clone();
    op_before(g, at, g.op_kind[maker], g.op_attr[maker], &name, &inputs)
}

/// A sum of a convolution's bytes, which nothing else reads, and other bytes that are there by then.
fn fuse_sum(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    let Attr::QAdd(sum) = g.op_attr[op] else { return Ok(false) };
    let (a, b) = (g.inputs_of(op)[0], g.inputs_of(op)[1]);
    let fits = |v: ValueId| {
        let conv = made_by(g, v, OpKind::QConv).filter(|_| sole_use(g, uses, v).is_some())?;
        let Attr::QConv(attr) = g.op_attr[conv] else { return None };
        let free = attr.late.is_none() && g.input_of(conv, 4).is_none();
        let at = g.order.iter().position(|&o| o == conv)?;
        free.then_some((at, conv, attr))
    };
    // The later one: what the earlier one makes is there then.
    let (of_a, of_b) = (fits(a), fits(b));
    let a_is_later = of_a.map(|x| x.0) > of_b.map(|x| x.0);
    let Some((_, conv, mut attr)) = (if a_is_later { of_a } else { of_b }) else { return Ok(false) };
    let (own_mult, own_zero, other) = match a_is_later {
        true => (sum.a_mult, sum.a_zero, b),
        false => (sum.b_mult, sum.b_zero, a),
    };
    (attr.residual_mult, attr.residual_zero) = match a_is_later {
        true => (sum.b_mult, sum.b_zero),
        false => (sum.a_mult, sum.a_zero),
    };
    attr.late = Some(LateAdd { mult: own_mult, zero: own_zero, out: sum.out });
    let mut inputs = g.inputs_of(conv).to_vec();
    inputs.resize(inputs.len().max(5), ValueId::NONE);
    inputs[4] = other;
    let name = g.op_name[conv].clone();
    let y = op_before(g, op, OpKind::QConv, Attr::QConv(attr), &name, &inputs)?;
    g.replace_uses(g.outputs_of(op)[0], y);
    Ok(true)
}
