//! `com.microsoft::DynamicQuantizeLSTM`: an LSTM whose products are of integers, quantised while it runs.
//!
//! As onnxruntime computes it (`DynamicQuantizeLSTM` of its contributed ops): all of x is quantised once, the state in
//! every step, each to u8 over its range; products with the weights are scaled to f32; the rest is an LSTM in f32. Written
//! out as the product of x and a loop for each direction. Weights are `[directions, inputs, 4·hidden]`, gates in ONNX's
//! order: input, output, forget, cell.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::{OnnxOp, function};
use crate::error::{Error, Result};
use crate::node::Node;
use crate::read::Reader;
use crate::read::control::Turns;
use crate::tensor::Constant;
use lacuna_ir::op::Axes;
use lacuna_ir::params::Params;
use lacuna_ir::{Attr, DType, OpKind, ValueId};

pub const OPS: &[OnnxOp] =
    &[function("DynamicQuantizeLSTM", &["direction", "hidden_size", "input_forget"], read_dynamic_lstm)];

/// About how many nodes the body of the loop has.
const BODY_NODES: usize = 24;

/// A matrix of integers: scale and zero point, which may be one for each column.
#[derive(Clone, Copy)]
struct Weight {
    q: ValueId,
    scale: ValueId,
    zero: ValueId,
}

/// One direction of the op.
struct Direction {
    backwards: bool,
    /// Products of x, `[steps, batch, 4·hidden]`.
    x: ValueId,
    recurrent: Weight,
    bias: Option<ValueId>,
    /// State and cell before the first step.
    start: [ValueId; 2],
}

fn read_dynamic_lstm<'m>(r: &mut Reader<'m>, node: &Node<'m>) -> Result<Vec<ValueId>> {
    for (i, what) in [(4, "lengths of sequences"), (7, "peepholes")] {
        if r.input(node, i)?.is_some() {
            return Err(node.unsupported(&format!(" with {what}")));
        }
    }
    if node.flag("input_forget", false)? {
        return Err(node.unsupported(" with input_forget"));
    }
    let backwards: &[bool] = match node.text("direction")?.unwrap_or("forward") {
        "forward" => &[false],
        "reverse" => &[true],
        "bidirectional" => &[false, true],
        other => return Err(node.attribute("direction", format!("is '{other}'"))),
    };
    let x = r.required(node, 0)?;
    let weights = [(1, 8), (2, 10)].map(|(q, scale)| {
        let part = |i| r.required(node, i);
        Ok::<Weight, Error>(Weight { q: part(q)?, scale: part(scale)?, zero: part(scale.saturating_add(1))? })
    });
    let [input, recurrent] = weights;
    let (input, recurrent) = (input?, recurrent?);
    let columns = r.graph.shape(recurrent.q).last().and_then(|d| d.fixed()).unwrap_or(0);
    let hidden = i64::try_from(columns).unwrap_or(0).div_euclid(4);
    if node.int("hidden_size")?.is_some_and(|n| n != hidden) || hidden == 0 {
        return Err(node.attribute("hidden_size", format!("the weights are for {hidden}")));
    }
    let [q, scale, zero] = quantised(r, node, x)?;
    let mut results: [Vec<ValueId>; 3] = Default::default();
    for (i, &backwards) in (0..).zip(backwards) {
        let [input, recurrent] = [weight_of(r, node, input, i), weight_of(r, node, recurrent, i)];
        let (input, recurrent) = (input?, recurrent?);
        let x_products = product(r, node, q, scale, zero, input)?;
        let bias = match r.input(node, 3)? {
            Some(bias) => Some(both_biases(r, node, bias, i)?),
            None => None,
        };
        let start = [start(r, node, 5, i, x, hidden)?, start(r, node, 6, i, x, hidden)?];
        let made = direction(r, node, Direction { backwards, x: x_products, recurrent, bias, start })?;
        for ((list, v), axis) in results.iter_mut().zip(made).zip([1, 0, 0]) {
            list.push(r.op(node, OpKind::Unsqueeze, Attr::Axes(axes(&[axis])), &[v])?);
        }
    }
    let [all, last, cell] = results;
    let mut joined = Vec::new();
    for (list, axis) in [(all, 1), (last, 0), (cell, 0)] {
        joined.push(r.op(node, OpKind::Concat, Attr::Axis(axis), &list)?);
    }
    Ok(joined)
}

fn axes(list: &[i64]) -> Axes {
    Axes::new(list).unwrap_or(Axes { len: 0, axes: [0; 8] })
}

fn quantised(r: &mut Reader<'_>, node: &Node<'_>, x: ValueId) -> Result<[ValueId; 3]> {
    let parts = r.some_results(node, OpKind::DynamicQuantizeLinear, Attr::None, &[x], 3)?;
    <[ValueId; 3]>::try_from(parts).map_err(|_| node.arity("quantises to something else".to_string()))
}

/// Entry `i` along the first dimension.
fn entry(r: &mut Reader<'_>, node: &Node<'_>, v: ValueId, i: i64) -> Result<ValueId> {
    let at = r.add_constant("direction", Constant { dims: vec![], ..Constant::list_i64(&[i]) })?;
    r.op(node, OpKind::Gather, Attr::Axis(0), &[v, at])
}

fn weight_of(r: &mut Reader<'_>, node: &Node<'_>, all: Weight, i: i64) -> Result<Weight> {
    Ok(Weight {
        q: entry(r, node, all.q, i)?,
        scale: entry(r, node, all.scale, i)?,
        zero: entry(r, node, all.zero, i)?,
    })
}

/// A product with what was quantised, as f32.
fn product(
    r: &mut Reader<'_>,
    node: &Node<'_>,
    q: ValueId,
    scale: ValueId,
    zero: ValueId,
    w: Weight,
) -> Result<ValueId> {
    let sums = r.op(node, OpKind::MatMulInteger, Attr::None, &[q, w.q, zero, w.zero])?;
    let sums = r.op(node, OpKind::Cast, Attr::Cast(DType::F32), &[sums])?;
    let scale = r.op(node, OpKind::Mul, Attr::None, &[scale, w.scale])?;
    r.op(node, OpKind::Mul, Attr::None, &[sums, scale])
}

/// The biases of input and state, which stand one behind the other.
fn both_biases(r: &mut Reader<'_>, node: &Node<'_>, bias: ValueId, i: i64) -> Result<ValueId> {
    let own = entry(r, node, bias, i)?;
    match r.some_results(node, OpKind::Split, in_parts(2), &[own], 2)?.as_slice() {
        &[a, b] => r.op(node, OpKind::Add, Attr::None, &[a, b]),
        _ => Err(node.arity("has no two biases".to_string())),
    }
}

/// Parts along the last dimension.
fn in_parts(count: i32) -> Attr {
    let kind = OpKind::Split;
    Attr::Params(Params::usual(kind).with(kind, "axis", -1).with(kind, "num_outputs", count))
}

/// Input `input` for direction `i`; zeros if it is absent.
fn start(
    r: &mut Reader<'_>,
    node: &Node<'_>,
    input: usize,
    i: i64,
    x: ValueId,
    hidden: i64,
) -> Result<ValueId> {
    if let Some(all) = r.input(node, input)? {
        return entry(r, node, all, i);
    }
    let (batch, hidden) = (r.size_of(node, x, 1)?, r.list(node, "hidden", &[hidden])?);
    let dims = r.op(node, OpKind::Concat, Attr::Axis(0), &[batch, hidden])?;
    let zero = r.add_constant("zero", Constant::scalar_f32(0.0))?;
    r.op(node, OpKind::Expand, Attr::None, &[zero, dims])
}

/// States of all steps, the last state, and the last cell.
fn direction<'m>(r: &mut Reader<'m>, node: &Node<'m>, d: Direction) -> Result<Vec<ValueId>> {
    let steps = r.size_of(node, d.x, 0)?;
    let one = r.list(node, "one", &[1])?;
    let last = r.op(node, OpKind::Sub, Attr::None, &[steps, one])?;
    let last = r.op(node, OpKind::Squeeze, Attr::Axes(axes(&[])), &[last])?;
    let level = r.level();
    let turns = Turns::of("step", BODY_NODES, steps, &d.start);
    let made = r.repeat(node, &turns, &mut |r, own| {
        let &[turn, condition, h, c] = own else { return Ok(Vec::new()) };
        let x = r.captured(level, d.x)?;
        let at = match d.backwards {
            true => {
                let last = r.captured(level, last)?;
                r.op(node, OpKind::Sub, Attr::None, &[last, turn])?
            }
            false => turn,
        };
        let recurrent = [d.recurrent.q, d.recurrent.scale, d.recurrent.zero].map(|v| r.captured(level, v));
        let [w, w_scale, w_zero] = recurrent;
        let recurrent = Weight { q: w?, scale: w_scale?, zero: w_zero? };
        let [q, scale, zero] = quantised(r, node, h)?;
        let of_state = product(r, node, q, scale, zero, recurrent)?;
        let of_input = r.op(node, OpKind::Gather, Attr::Axis(0), &[x, at])?;
        let mut gates = r.op(node, OpKind::Add, Attr::None, &[of_input, of_state])?;
        if let Some(bias) = d.bias {
            let bias = r.captured(level, bias)?;
            gates = r.op(node, OpKind::Add, Attr::None, &[gates, bias])?;
        }
        let parts = r.some_results(node, OpKind::Split, in_parts(4), &[gates], 4)?;
        let &[input, output, forget, new] = parts.as_slice() else { return Ok(Vec::new()) };
        let [input, output, forget] =
            [input, output, forget].map(|gate| r.op(node, OpKind::Sigmoid, Attr::None, &[gate]));
        let new = r.op(node, OpKind::Tanh, Attr::None, &[new])?;
        let kept = r.op(node, OpKind::Mul, Attr::None, &[forget?, c])?;
        let added = r.op(node, OpKind::Mul, Attr::None, &[input?, new])?;
        let c = r.op(node, OpKind::Add, Attr::None, &[kept, added])?;
        let bounded = r.op(node, OpKind::Tanh, Attr::None, &[c])?;
        let h = r.op(node, OpKind::Mul, Attr::None, &[output?, bounded])?;
        Ok(vec![condition, h, c, h])
    })?;
    let &[h, c, all] = made.as_slice() else { return Err(node.arity("makes no three results".to_string())) };
    Ok(vec![r.laid_out(node, all, 0, d.backwards)?, h, c])
}
