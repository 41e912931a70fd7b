//! Products of values that are quantised while they run (DynamicQuantizeLinear, ConvInteger, MatMulInteger).
//!
//! `q, s, z = DynamicQuantizeLinear(x)`, then `Cast(ConvInteger(q, w, z, w_zero) [+ b])` is a sum of products of whole
//! numbers below 2^8. The f32 kernels compute the same numbers: of `q - z` ([`OpKind::DynamicCentred`]) and
//! `w - w_zero` every product, and every sum below 2^24, is exact in f32, in any order. Beyond that sums are rounded. What
//! does not match runs as it stands.

use super::rewrite::*;
use crate::error::Result;
use crate::target::Target;
use lacuna_ir::{Attr, DType, Graph, OpId, OpKind, Tensor, Uses, ValueId};

pub fn lower_dynamic(g: &mut Graph, _: &Target) -> Result<usize> {
    let uses = g.uses();
    let integer = |op: &OpId| matches!(g.op_kind[*op], OpKind::ConvInteger | OpKind::MatMulInteger);
    let found: Vec<(OpId, Product)> =
        g.order.iter().copied().filter(integer).filter_map(|op| Some((op, matched(g, &uses, op)?))).collect();
    let mut centred: Vec<(OpId, ValueId)> = Vec::new();
    for (op, product) in &found {
        rewrite(g, *op, product, &mut centred)?;
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
    /// The cast to f32.
    cast: OpId,
}

fn matched(g: &Graph, uses: &Uses, op: OpId) -> Option<Product> {
    let (quantised, zero) = (g.input_of(op, 0)?, g.input_of(op, 2)?);
    let quantise = made_by(g, quantised, OpKind::DynamicQuantizeLinear)?;
    let [q, _, z] = *g.outputs_of(quantise) else { return None };
    (q == quantised && z == zero).then_some(())?;
    let mut bias = None;
    let sums = g.outputs_of(op)[0];
    let mut cast = sole_use(g, uses, sums)?;
    if g.op_kind[cast] == OpKind::Add {
        bias = Some(*g.inputs_of(cast).iter().find(|&&v| v != sums)?);
        let sums = g.outputs_of(cast)[0];
        cast = sole_use(g, uses, sums)?;
    }
    (g.op_attr[cast] == Attr::Cast(DType::F32)).then_some(())?;
    Some(Product { quantise, weights: weights(g, op)?, bias, cast })
}

/// The weights without their zero points.
fn weights(g: &Graph, op: OpId) -> Option<Tensor> {
    let w = g.input_of(op, 1)?;
    let (ints, dims) = (const_ints(g, w)?, g.fixed_shape(w)?);
    let zeros = g.input_of(op, 3).map_or(Some(vec![0]), |z| const_ints(g, z))?;
    // Element i has zero point i / run % count.
    let run = if g.op_kind[op] == OpKind::ConvInteger { dims[1..].iter().product::<usize>() } else { 1 };
    let value = |(i, &q): (usize, &i32)| (q - zeros[i / run.max(1) % zeros.len()]) as f32;
    Some(Tensor::from_f32(&dims, ints.iter().enumerate().map(value).collect()))
}

fn rewrite(g: &mut Graph, op: OpId, found: &Product, centred: &mut Vec<(OpId, ValueId)>) -> Result<()> {
    let name = g.op_name[op].clone();
    let x = match centred.iter().find(|(quantise, _)| *quantise == found.quantise) {
        Some(&(_, x)) => x,
        None => centre(g, found.quantise)?,
    };
    centred.push((found.quantise, x));
    let w = constant(g, &format!("{name}/weight"), &found.weights);
    let kind = if g.op_kind[op] == OpKind::ConvInteger { OpKind::Conv } else { OpKind::MatMul };
    let (attr, at) = (g.op_attr[op], found.cast);
    let mut y = op_before(g, at, kind, attr, &name, &[x, w])?;
    if let Some(bias) = found.bias {
        let name = format!("{name}/bias");
        let bias = op_before(g, at, OpKind::Cast, Attr::Cast(DType::F32), &name, &[bias])?;
        y = op_before(g, at, OpKind::Add, Attr::None, &name, &[y, bias])?;
    }
    g.replace_uses(g.outputs_of(at)[0], y);
    Ok(())
}

/// Whole numbers for what `quantise` quantises; its scale is made with them.
fn centre(g: &mut Graph, quantise: OpId) -> Result<ValueId> {
    let (name, number, x) = (g.op_name[quantise].clone(), g.value_name.len(), g.inputs_of(quantise)[0]);
    let names = [format!("{name}:{number}"), format!("{name}:{}", number + 1)];
    let op = g.insert_op(OpKind::DynamicCentred, Attr::None, &name, &[x], &[&names[0], &names[1]])?;
    let position = g.order.iter().position(|&o| o == quantise).expect("the op is in the order");
    g.order.insert(position, op);
    let [y, scale] = *g.outputs_of(op) else { unreachable!("two results were named") };
    g.replace_uses(g.outputs_of(quantise)[1], scale);
    Ok(y)
}
