//! Transposes move until they meet and cancel.
//!
//! `to NCHW` moves down past elementwise ops, `to NHWC` that moves no element moves up; pairs cancel; flatten and
//! reshape see through a transpose that keeps the elements' order. What is left stands at the graph's borders
//! or around an op that has no NHWC form.

use super::rewrite::*;
use crate::error::Result;
use crate::target::Target;
use lacuna_ir::{Attr, DType, Dim, Graph, OpId, OpKind, Tensor, Uses, ValueId};
use std::collections::HashMap;

pub fn settle_layout(g: &mut Graph, _: &Target) -> Result<usize> {
    let mut changes = 0;
    loop {
        let mut n = share_equal(g);
        let mut uses = g.uses();
        for op in g.order.clone() {
            let out = g.outputs_of(op)[0];
            if uses.of(out).is_empty() && !g.outputs.contains(&out) {
                continue;
            }
            if settle(g, &uses, op)? {
                n += 1;
                uses = g.uses();
            }
        }
        sweep(g);
        changes += n;
        if n == 0 {
            return Ok(changes);
        }
    }
}

fn settle(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    use OpKind::*;
    match g.op_kind[op] {
        Transpose => Ok(cancel(g, op)? || rise(g, uses, op)?),
        Relu | Sigmoid | Clip | Sqrt | Identity | Erf | Tanh | Silu | Gelu | HardSwish | HardSigmoid
        | LeakyRelu | QLookup => sink(g, op),
        QuantizeLinear | DequantizeLinear if tensor_params(g, op).is_some() => sink(g, op),
        Add | Sub | Mul | Div | QAdd | QMul => sink_pair(g, op),
        Concat => sink_concat(g, op),
        Slice => sink_slice(g, op),
        Split => sink_split(g, op),
        Flatten | Reshape => see_through(g, op),
        _ => Ok(false),
    }
}

/// If `v` is `to NCHW` of an NHWC value: that value.
fn nhwc_of(g: &Graph, v: ValueId) -> Option<ValueId> {
    let op = made_by(g, v, OpKind::Transpose)?;
    (perm_of(g, op)? == TO_NCHW).then(|| g.inputs_of(op)[0])
}

/// Two transposes of one value by one permutation are one.
fn share_equal(g: &mut Graph) -> usize {
    let mut seen: HashMap<(ValueId, Vec<i64>), ValueId> = HashMap::new();
    let mut changes = 0;
    for op in g.order.clone() {
        let Some(perm) = perm_of(g, op) else { continue };
        let (x, y) = (g.inputs_of(op)[0], g.outputs_of(op)[0]);
        match seen.get(&(x, perm.clone())) {
            Some(&first) => {
                g.replace_uses(y, first);
                changes += 1;
            }
            None => {
                seen.insert((x, perm), y);
            }
        }
    }
    sweep(g);
    changes
}

/// A transpose of a transpose is one transpose, or none.
fn cancel(g: &mut Graph, op: OpId) -> Result<bool> {
    let (x, out) = (g.inputs_of(op)[0], g.outputs_of(op)[0]);
    let Some(outer) = perm_of(g, op) else { return Ok(false) };
    let (source, perm) = match made_by(g, x, OpKind::Transpose) {
        Some(p) => {
            let inner = perm_of(g, p).expect("a transpose has a permutation");
            (g.inputs_of(p)[0], outer.iter().map(|&a| inner[a as usize]).collect())
        }
        None => (x, outer),
    };
    let identity = perm.iter().enumerate().all(|(i, &a)| i as i64 == a);
    if !identity && source == x {
        return Ok(false);
    }
    let y = if identity { source } else { transpose_before(g, op, source, &perm)? };
    g.replace_uses(out, y);
    Ok(true)
}

/// `to NHWC` that keeps the elements' order moves up past a unary op, to the graph's input in the end. So does one
/// right after the quantisation of an input: an input is read through any strides.
fn rise(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    use OpKind::*;
    let x = g.inputs_of(op)[0];
    let Some(unary) = g.producer(x) else { return Ok(false) };
    let elementwise = match g.op_kind[unary] {
        Relu | Sigmoid | Clip | Sqrt | Identity | Erf | Tanh | Silu | Gelu | HardSwish | HardSigmoid
        | LeakyRelu | QLookup => true,
        QuantizeLinear | DequantizeLinear => tensor_params(g, unary).is_some(),
        _ => false,
    };
    let perm = perm_of(g, op).expect("a transpose has a permutation");
    let quantised_input = g.op_kind[unary] == QuantizeLinear
        && matches!(g.value_def[g.inputs_of(unary)[0]], lacuna_ir::Def::Input);
    let free = quantised_input || keeps_order(g.shape(x), &perm);
    if !elementwise || perm != TO_NHWC || sole_use(g, uses, x).is_none() || !free {
        return Ok(false);
    }
    let mut inputs = g.inputs_of(unary).to_vec();
    inputs[0] = transpose_before(g, op, inputs[0], &perm)?;
    let name = g.op_name[unary].clone();
    let y = op_before(g, op, g.op_kind[unary], g.op_attr[unary], &name, &inputs)?;
    g.replace_uses(g.outputs_of(op)[0], y);
    Ok(true)
}

/// A unary elementwise op goes before `to NCHW`.
fn sink(g: &mut Graph, op: OpId) -> Result<bool> {
    let mut inputs = g.inputs_of(op).to_vec();
    let Some(x) = nhwc_of(g, inputs[0]) else { return Ok(false) };
    inputs[0] = x;
    finish(g, op, g.op_attr[op], &inputs)
}

/// An elementwise op on two operands goes before `to NCHW` if at least one is a transposed value.
fn sink_pair(g: &mut Graph, op: OpId) -> Result<bool> {
    let inputs = g.inputs_of(op).to_vec();
    if !inputs.iter().any(|&v| nhwc_of(g, v).is_some()) {
        return Ok(false);
    }
    if !inputs.iter().all(|&v| nhwc_of(g, v).is_some() || g.shape(v).len() == 4 || g.const_f32(v).is_some()) {
        return Ok(false);
    }
    let mut moved = Vec::with_capacity(2);
    for &v in &inputs {
        moved.push(match nhwc_of(g, v) {
            Some(x) => x,
            None => operand_nhwc(g, op, v)?,
        });
    }
    finish(g, op, g.op_attr[op], &moved)
}

/// A broadcast operand of an NCHW op as the operand of the NHWC op.
fn operand_nhwc(g: &mut Graph, at: OpId, v: ValueId) -> Result<ValueId> {
    let Some(tensor) = g.const_tensor(v) else { return transpose_before(g, at, v, &TO_NHWC) };
    let mut dims = vec![1; 4usize.saturating_sub(tensor.dims.len())];
    dims.extend(&tensor.dims);
    let mut elements = Vec::with_capacity(tensor.len());
    let x = tensor.as_f32().unwrap_or(&[]);
    for n in 0..dims[0] {
        for p in 0..dims[2] * dims[3] {
            elements.extend((0..dims[1]).map(|c| x[(n * dims[1] + c) * dims[2] * dims[3] + p]));
        }
    }
    let name = g.value_name[v].clone();
    Ok(constant(g, &name, &Tensor::from_f32(&[dims[0], dims[2], dims[3], dims[1]], elements)))
}

fn sink_concat(g: &mut Graph, op: OpId) -> Result<bool> {
    let Attr::Axis(axis) = g.op_attr[op] else { return Ok(false) };
    let inputs: Option<Vec<ValueId>> = g.inputs_of(op).iter().map(|&v| nhwc_of(g, v)).collect();
    let Some(inputs) = inputs else { return Ok(false) };
    let nchw = axis.rem_euclid(4) as i64;
    let nhwc = TO_NHWC.iter().position(|&a| a == nchw).expect("an axis of four");
    finish(g, op, Attr::Axis(nhwc as i32), &inputs)
}

/// A slice goes before `to NCHW`, where its axes are known.
fn sink_slice(g: &mut Graph, op: OpId) -> Result<bool> {
    let mut inputs = g.inputs_of(op).to_vec();
    let (Some(x), Some(axes)) = (nhwc_of(g, inputs[0]), g.input_of(op, 3)) else { return Ok(false) };
    let Some(nchw) = g.const_i64(axes) else { return Ok(false) };
    let place = |&axis: &i64| TO_NHWC.iter().position(|&a| a == axis.rem_euclid(4)).map(|at| at as i64);
    let Some(nhwc) = nchw.iter().map(place).collect::<Option<Vec<i64>>>() else { return Ok(false) };
    let name = g.op_name[op].clone();
    inputs[0] = x;
    inputs[3] = constant(g, &format!("{name}/axes"), &Tensor::from_i64(&[nhwc.len()], nhwc));
    finish(g, op, g.op_attr[op], &inputs)
}

/// A split of a transposed value is one of the value, with a transpose behind each part.
fn sink_split(g: &mut Graph, op: OpId) -> Result<bool> {
    let mut inputs = g.inputs_of(op).to_vec();
    let (Attr::Params(params), Ok([axis])) = (g.op_attr[op], g.op_attr[op].numbers()) else {
        return Ok(false);
    };
    let Some(x) = nhwc_of(g, inputs[0]) else { return Ok(false) };
    inputs[0] = x;
    let nchw = axis.int().rem_euclid(4);
    let nhwc = TO_NHWC.iter().position(|&a| a == nchw).expect("an axis of four");
    let attr = Attr::Params(params.with(OpKind::Split, "axis", nhwc as i32));
    let (name, number, old) = (g.op_name[op].clone(), g.value_name.len(), g.outputs_of(op).to_vec());
    let names: Vec<String> = (0..old.len()).map(|i| format!("{name}:{}", number + i)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let split = g.insert_op(OpKind::Split, attr, &name, &inputs, &names)?;
    let position = g.order.iter().position(|&o| o == op).expect("the op is in the order");
    g.order.insert(position, split);
    for (old, part) in old.into_iter().zip(g.outputs_of(split).to_vec()) {
        let y = transpose_before(g, op, part, &TO_NCHW)?;
        g.replace_uses(old, y);
    }
    Ok(true)
}

/// `op` on `inputs`, then `to NCHW`, in place of `op`.
fn finish(g: &mut Graph, op: OpId, attr: Attr, inputs: &[ValueId]) -> Result<bool> {
    let name = g.op_name[op].clone();
    let y = op_before(g, op, g.op_kind[op], attr, &name, inputs)?;
    let y = transpose_before(g, op, y, &TO_NCHW)?;
    g.replace_uses(g.outputs_of(op)[0], y);
    Ok(true)
}

/// Flatten and reshape read through a transpose that keeps the order, where the result's shape stays.
fn see_through(g: &mut Graph, op: OpId) -> Result<bool> {
    let mut inputs = g.inputs_of(op).to_vec();
    let Some(t) = made_by(g, inputs[0], OpKind::Transpose) else { return Ok(false) };
    let source = g.inputs_of(t)[0];
    let perm = perm_of(g, t).expect("a transpose has a permutation");
    let out = g.outputs_of(op)[0];
    if !keeps_order(g.shape(source), &perm) || g.value_dtype[source] == DType::I64 {
        return Ok(false);
    }
    inputs[0] = source;
    let kind = g.op_kind[op];
    let shape: Vec<Dim> = g.shape(out).to_vec();
    match lacuna_ir::shape::infer(g, kind, &g.op_attr[op], &inputs) {
        Ok(facts) if facts[0].dims == shape => {
            let name = g.op_name[op].clone();
            let y = op_before(g, op, kind, g.op_attr[op], &name, &inputs)?;
            g.replace_uses(out, y);
            Ok(true)
        }
        _ => Ok(false),
    }
}
