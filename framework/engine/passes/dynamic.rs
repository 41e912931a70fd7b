//! Products of values that are quantised while they run (DynamicQuantizeLinear, ConvInteger, MatMulInteger).
//!
//! `q, s, z = DynamicQuantizeLinear(x)`, then `Cast(ConvInteger(q, w, z, w_zero) [+ b]) * (s * w_scale)` is a convolution
//! of what the bytes stand for: weights become `(w - w_zero) * w_scale` once, x is rounded to its 256 values where it lies
//! ([`OpKind::DynamicRound`]), and the f32 kernels do the rest. Results differ by the roundings of f32 sums. What does
//! not match runs as it stands.

use super::rewrite::*;
use crate::error::Result;
use crate::target::Target;
use lacuna_ir::{Attr, DType, Graph, OpId, OpKind, Tensor, Uses, ValueId};

pub fn lower_dynamic(g: &mut Graph, _: &Target) -> Result<usize> {
    let uses = g.uses();
    let integer = |op: &OpId| matches!(g.op_kind[*op], OpKind::ConvInteger | OpKind::MatMulInteger);
    let found: Vec<(OpId, Product)> =
        g.order.iter().copied().filter(integer).filter_map(|op| Some((op, matched(g, &uses, op)?))).collect();
    let mut rounded: Vec<(OpId, ValueId)> = Vec::new();
    for (op, product) in &found {
        rewrite(g, *op, product, &mut rounded)?;
    }
    sweep(g);
    Ok(found.len())
}

struct Product {
    /// The op that quantises.
    quantise: OpId,
    weights: Tensor,
    /// An i32 term that is added to the sums.
    bias: Option<ValueId>,
    /// The factor of the sums, and the op that multiplies by it.
    factor: ValueId,
    last: OpId,
}

fn matched(g: &Graph, uses: &Uses, op: OpId) -> Option<Product> {
    let (quantised, zero) = (g.input_of(op, 0)?, g.input_of(op, 2)?);
    let quantise = made_by(g, quantised, OpKind::DynamicQuantizeLinear)?;
    let [q, scale, z] = *g.outputs_of(quantise) else { return None };
    (q == quantised && z == zero).then_some(())?;

    let mut bias = None;
    let mut next = sole_use(g, uses, g.outputs_of(op)[0])?;
    if g.op_kind[next] == OpKind::Add {
        bias = Some(*g.inputs_of(next).iter().find(|&&v| v != g.outputs_of(op)[0])?);
        next = sole_use(g, uses, g.outputs_of(next)[0])?;
    }
    (g.op_attr[next] == Attr::Cast(DType::F32)).then_some(())?;
    let sums = g.outputs_of(next)[0];
    let last = sole_use(g, uses, sums).filter(|&m| g.op_kind[m] == OpKind::Mul)?;
    let factor = *g.inputs_of(last).iter().find(|&&v| v != sums)?;
    // The factor must not stretch the sums.
    (g.shape(g.outputs_of(last)[0]) == g.shape(sums)).then_some(())?;
    let w_scale = other_factor(g, factor, scale)?;
    let weights = weights(g, op, &g.const_f32(w_scale)?, &g.fixed_shape(w_scale)?)?;
    Some(Product { quantise, weights, bias, factor, last })
}

/// `v = scale * other`, in either order.
fn other_factor(g: &Graph, v: ValueId, scale: ValueId) -> Option<ValueId> {
    let product = made_by(g, v, OpKind::Mul)?;
    match *g.inputs_of(product) {
        [a, b] if a == scale => Some(b),
        [a, b] if b == scale => Some(a),
        _ => None,
    }
}

/// What the weights stand for. Scales are one number, or one for each output channel, along the sums' channel axis.
fn weights(g: &Graph, op: OpId, scales: &[f32], scale_dims: &[usize]) -> Option<Tensor> {
    let w = g.input_of(op, 1)?;
    let (ints, dims) = (const_ints(g, w)?, g.fixed_shape(w)?);
    let zeros = g.input_of(op, 3).map_or(Some(vec![0]), |z| const_ints(g, z))?;
    // Element i belongs to channel i / run % channels, and channels lie along this axis of the sums.
    let conv = g.op_kind[op] == OpKind::ConvInteger;
    let channels = if conv { *dims.first()? } else { *dims.last()? };
    let run = if conv { dims[1..].iter().product::<usize>() } else { 1 };
    let from_the_back = if conv { dims.len() - 1 } else { 1 };
    let lies_right = scales.len() == 1
        || scale_dims.len() >= from_the_back && scale_dims[scale_dims.len() - from_the_back] == channels;
    let fits = |n: usize| n == 1 || n == channels;
    (lies_right && fits(scales.len()) && fits(zeros.len())).then_some(())?;
    let value = |(i, &q): (usize, &i32)| {
        let c = i / run.max(1) % channels.max(1);
        (q - zeros[c % zeros.len()]) as f32 * scales[c % scales.len()]
    };
    Some(Tensor::from_f32(&dims, ints.iter().enumerate().map(value).collect()))
}

fn rewrite(g: &mut Graph, op: OpId, found: &Product, rounded: &mut Vec<(OpId, ValueId)>) -> Result<()> {
    let name = g.op_name[op].clone();
    let x = match rounded.iter().find(|(quantise, _)| *quantise == found.quantise) {
        Some(&(_, x)) => x,
        None => round(g, found.quantise)?,
    };
    rounded.push((found.quantise, x));
    let w = constant(g, &format!("{name}/weight"), &found.weights);
    let kind = if g.op_kind[op] == OpKind::ConvInteger { OpKind::Conv } else { OpKind::MatMul };
    let (attr, at) = (g.op_attr[op], found.last);
    let mut y = op_before(g, at, kind, attr, &name, &[x, w])?;
    if let Some(bias) = found.bias {
        let name = format!("{name}/bias");
        let bias = op_before(g, at, OpKind::Cast, Attr::Cast(DType::F32), &name, &[bias])?;
        let bias = op_before(g, at, OpKind::Mul, Attr::None, &name, &[bias, found.factor])?;
        y = op_before(g, at, OpKind::Add, Attr::None, &name, &[y, bias])?;
    }
    g.replace_uses(g.outputs_of(at)[0], y);
    Ok(())
}

/// Rounds what `quantise` quantises, and makes its scale.
fn round(g: &mut Graph, quantise: OpId) -> Result<ValueId> {
    let (name, number, x) = (g.op_name[quantise].clone(), g.value_name.len(), g.inputs_of(quantise)[0]);
    let names = [format!("{name}:{number}"), format!("{name}:{}", number + 1)];
    let op = g.insert_op(OpKind::DynamicRound, Attr::None, &name, &[x], &[&names[0], &names[1]])?;
    let position = g.order.iter().position(|&o| o == quantise).expect("the op is in the order");
    g.order.insert(position, op);
    let [y, scale] = *g.outputs_of(op) else { unreachable!("two results were named") };
    g.replace_uses(g.outputs_of(quantise)[1], scale);
    Ok(y)
}
