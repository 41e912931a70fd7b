//! Layer normalisation takes along the sum before it and the rounding behind it.

use super::lower_qdq::requant;
use super::rewrite::*;
use crate::error::Result;
use lacuna_ir::op::{AddNormAttr, Affine};
use lacuna_ir::{Attr, DType, Graph, OpId, OpKind, Tensor, Uses, ValueId};

/// `[Add] -> LayerNormalization [-> Q]` over the last dimension becomes one op. Who reads the f32 result still can.
pub fn lower_norm(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    let Attr::Norm(norm) = g.op_attr[op] else { return Ok(false) };
    let (x, scale, real) = (g.inputs_of(op)[0], g.inputs_of(op)[1], g.outputs_of(op)[0]);
    let rank = g.shape(x).len() as i32;
    let (Some(len), 1) = (g.fixed_shape(scale), g.shape(scale).len()) else { return Ok(false) };
    if norm.axis != -1 && norm.axis != rank - 1 {
        return Ok(false);
    }
    let name = g.op_name[op].clone();
    let bias = match g.input_of(op, 2) {
        Some(bias) => bias,
        None => constant(g, &format!("{name}/bias"), &Tensor::zeros(DType::F32, &len)),
    };
    let (mut scale, mut bias) = (scale, bias);
    let (a, b) = summands(g, uses, x);
    let ((a, a_affine), b) = (operand(g, a), b.map(|b| operand(g, b)));
    let none = Affine { mult: 1.0, zero: 0 };

    let quantise = quantiser(g, uses, real);
    let readers = uses.of(real).iter().filter(|&&reader| Some(reader) != quantise.map(|(op, _)| op)).count();
    let keep = readers > 0 || g.outputs.contains(&real) || quantise.is_none();
    let mut y_mult = quantise.map_or(1.0, |(_, p)| (1.0 / f64::from(p.scale)) as f32);
    // Where there is no f32 result, rows are normalised to the scale of the u8 one at once.
    if let (false, Some(s), Some(b)) = (keep, g.const_f32(scale), g.const_f32(bias)) {
        let scaled = |x: &[f32]| Tensor::from_f32(&len, x.iter().map(|x| x * y_mult).collect());
        let (s, b) = (scaled(&s), scaled(&b));
        (scale, bias) = (constant(g, &format!("{name}/scale"), &s), constant(g, &format!("{name}/bias"), &b));
        y_mult = 1.0;
    }
    let attr = AddNormAttr {
        a: a_affine.unwrap_or(none),
        b: b.and_then(|b| b.1).unwrap_or(none),
        epsilon: norm.epsilon,
        y_mult,
        out: quantise.map(|(_, p)| requant(p.scale, p.zero, NO_CLIP)),
        keep,
    };
    let inputs: Vec<ValueId> = [a, scale, bias].into_iter().chain(b.map(|b| b.0)).collect();
    let number = g.value_name.len();
    let names = [format!("{name}:{number}"), format!("{name}:{}", number + 1)];
    let names: Vec<&str> =
        names.iter().take(usize::from(quantise.is_some()) + usize::from(keep)).map(String::as_str).collect();
    let made = g.insert_op(OpKind::AddNorm, Attr::AddNorm(attr), &name, &inputs, &names)?;
    let position = g.order.iter().position(|&o| o == op).expect("the op is in the order");
    g.order.insert(position, made);
    let results = g.outputs_of(made).to_vec();
    if let Some((quantise, _)) = quantise {
        g.replace_uses(g.outputs_of(quantise)[0], results[0]);
    }
    if keep {
        g.replace_uses(real, results[results.len() - 1]);
    }
    Ok(true)
}

/// The operands of a sum that nobody else reads, or the value itself.
fn summands(g: &Graph, uses: &Uses, x: ValueId) -> (ValueId, Option<ValueId>) {
    let sum = made_by(g, x, OpKind::Add).filter(|_| sole_use(g, uses, x).is_some());
    match sum.map(|op| (g.inputs_of(op)[0], g.inputs_of(op)[1])) {
        Some((a, b)) if g.shape(a) == g.shape(b) && g.shape(a) == g.shape(x) => (a, Some(b)),
        _ => (x, None),
    }
}

/// The u8 value behind `v` and what it means, or `v`.
fn operand(g: &Graph, v: ValueId) -> (ValueId, Option<Affine>) {
    match dequantised(g, v) {
        Some((q, p)) => (q, Some(Affine { mult: p.scale, zero: p.zero })),
        None => (v, None),
    }
}

/// The only op that rounds `v` to u8.
fn quantiser(g: &Graph, uses: &Uses, v: ValueId) -> Option<(OpId, QParams)> {
    let rounds = |&&op: &&OpId| g.op_kind[op] == OpKind::QuantizeLinear && g.inputs_of(op)[0] == v;
    let mut found = uses.of(v).iter().filter(rounds);
    let (Some(&op), None) = (found.next(), found.next()) else { return None };
    let params = tensor_params(g, op).filter(|_| g.value_dtype[g.outputs_of(op)[0]] == DType::U8)?;
    Some((op, params)).filter(|(_, p)| (1.0 / p.scale).is_finite())
}
