//! A row that is chosen at the end is chosen early: what works row by row then does that row's work alone.
//!
//! A classifier on a transformer reads the first token only: the last layer's products, norms and queries of all others
//! are not needed. Keys and values are.

use super::rewrite::*;
use crate::error::Result;
use crate::target::Target;
use lacuna_ir::op::Axes;
use lacuna_ir::{Attr, Graph, OpId, OpKind, Uses, ValueId};

pub fn chosen_rows(g: &mut Graph, _: &Target) -> Result<usize> {
    let mut changes = 0;
    loop {
        let uses = g.uses();
        let found = g.order.iter().copied().find_map(|op| Some((op, row_maker(g, &uses, op)?)));
        let Some((gather, maker)) = found else { return Ok(changes) };
        choose_before(g, gather, maker)?;
        sweep(g);
        changes += 1;
    }
}

/// The op that makes the `[B,T,C]` of which `op` chooses one row of every sequence, if it works row by row and nobody
/// reads another row of what it makes.
fn row_maker(g: &Graph, uses: &Uses, op: OpId) -> Option<OpId> {
    let x = g.input_of(op, 0).filter(|_| g.op_kind[op] == OpKind::Gather)?;
    let index = g.input_of(op, 1)?;
    let one_row = g.shape(x).len() == 3 && matches!(g.op_attr[op], Attr::Axis(1 | -2));
    (one_row && g.shape(index).is_empty() && g.const_i64(index).is_some()).then_some(())?;
    let maker = g.producer(x)?;
    let chosen = |y: ValueId| {
        let same = |&reader: &OpId| {
            let alike = g.op_kind[reader] == OpKind::Gather && g.op_attr[reader] == g.op_attr[op];
            alike && g.inputs_of(reader) == [y, index]
        };
        uses.of(y).iter().all(same) && !g.outputs.contains(&y)
    };
    let all_chosen = g.outputs_of(maker).iter().all(|&y| chosen(y));
    (all_chosen && row_operands(g, maker).is_some()).then_some(maker)
}

/// Which operands of `op` are `[B,T,C]` of which it reads the row that it writes; nothing if it does not work so.
fn row_operands(g: &Graph, op: OpId) -> Option<Vec<usize>> {
    use OpKind::*;
    let inputs = g.inputs_of(op);
    let shape = g.shape(g.outputs_of(op)[0]);
    match g.op_kind[op] {
        QGemm | QLookup | QAttention | Erf | Tanh | Relu | Sigmoid | Clip | Sqrt | Silu | Gelu
        | HardSwish | HardSigmoid | LeakyRelu => Some(vec![0]),
        QuantizeLinear | DequantizeLinear => tensor_params(g, op).map(|_| vec![0]),
        AddNorm => Some([0, 3].into_iter().filter(|&i| g.input_of(op, i).is_some()).collect()),
        Add | Sub | Mul | Div => {
            let rows: Vec<usize> = (0..2).filter(|&i| g.shape(inputs[i]) == shape).collect();
            let others_fit = (0..2).all(|i| rows.contains(&i) || g.shape(inputs[i]).len() <= 1);
            others_fit.then_some(rows)
        }
        _ => None,
    }
}

/// `maker` on the chosen row of its operands, in place of `gather`.
fn choose_before(g: &mut Graph, gather: OpId, maker: OpId) -> Result<()> {
    let name = g.op_name[maker].clone();
    let index = g.inputs_of(gather)[1];
    let choose = |g: &mut Graph, x: ValueId| {
        let name = format!("{}/row", g.value_name[x]);
        op_before(g, gather, OpKind::Gather, Attr::Axis(1), &name, &[x, index])
    };
    let mut inputs = g.inputs_of(maker).to_vec();
    for i in row_operands(g, maker).unwrap_or_default() {
        inputs[i] = choose(g, inputs[i])?;
    }
    let token = Attr::Axes(Axes::new(&[1]).expect("one axis"));
    if g.op_kind[maker] == OpKind::QAttention {
        inputs[0] = op_before(g, gather, OpKind::Unsqueeze, token, &name, &inputs[..1])?;
    }
    let outputs = g.outputs_of(maker).to_vec();
    let names: Vec<String> =
        (0..outputs.len()).map(|i| format!("{name}:{}", g.value_name.len() + i)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let made = g.insert_op(g.op_kind[maker], g.op_attr[maker], &name, &inputs, &names)?;
    let position = g.order.iter().position(|&o| o == gather).expect("the op is in the order");
    g.order.insert(position, made);
    for (i, all) in outputs.into_iter().enumerate() {
        let mut y = g.outputs_of(made)[i];
        if g.op_kind[maker] == OpKind::QAttention {
            y = op_before(g, gather, OpKind::Squeeze, token, &name, &[y])?;
        }
        for reader in g.uses().of(all).to_vec() {
            g.replace_uses(g.outputs_of(reader)[0], y);
        }
    }
    Ok(())
}
