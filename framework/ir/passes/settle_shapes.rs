//! Shape arithmetic that is worked out already disappears.
//!
//! ```text
//! Shape -> Gather -> Concat -> Reshape [b, t, 768] to [b, t, 12, 64]      becomes      Reshape to {0, 0, 12, 64}
//! ```

use super::Redirect;
use crate::elements::tensor_of;
use crate::error::Result;
use crate::graph::Graph;
use crate::ids::{OpId, ValueId};
use crate::op::OpKind;
use crate::shape::infer;
use crate::tensor::{Dim, Tensor};

/// Small integer results whose elements are all numbers become constants; the target of a reshape becomes one where
/// copying dimensions (0) and leaving one open (-1) says the same; what expands for a reader that broadcasts anyway is
/// passed over. Nothing is taken out: ops that nobody reads any more are left to [`super::drop_dead`].
pub fn settle_shapes(g: &mut Graph) -> Result<usize> {
    let mut redirect = Redirect::new(g);
    let mut changes = 0;
    let mut kept = Vec::with_capacity(g.order.len());
    for op in std::mem::take(&mut g.order) {
        redirect.inputs(g, op);
        if let Some((v, t)) = number_result(g, op) {
            let name = g.value_name[v].clone();
            let constant = g.add_tensor(&name, &t);
            redirect.set(v, constant);
            changes += 1;
            continue;
        }
        if g.op_kind[op] == OpKind::Reshape
            && let Some(target) = target_of(g, op)
        {
            let name = format!("{}.target", g.value_name[g.outputs_of(op)[0]]);
            let constant = g.add_tensor(&name, &Tensor::from_i64(&[target.len()], target));
            let inputs = g.op_inputs[op];
            inputs.of_mut(&mut g.operands)[1] = constant;
            changes += 1;
        }
        if g.op_kind[op] == OpKind::Expand && g.shape(g.inputs_of(op)[0]) == g.shape(g.outputs_of(op)[0]) {
            redirect.set(g.outputs_of(op)[0], g.inputs_of(op)[0]);
            changes += 1;
            continue;
        }
        changes += usize::from(pass_over_expand(g, op));
        kept.push(op);
    }
    redirect.outputs(g);
    g.order = kept;
    Ok(changes)
}

/// The only result of an op, where all its elements are numbers.
fn number_result(g: &Graph, op: OpId) -> Option<(ValueId, Tensor)> {
    let &[v] = g.outputs_of(op) else { return None };
    let elements: Vec<i64> = g.value_elements.get(&v)?.iter().map(|e| e.number()).collect::<Option<_>>()?;
    Some((v, tensor_of(g.value_dtype[v], &g.fixed_shape(v)?, &elements)?))
}

/// The target of a reshape whose operand is computed, if numbers, 0 and one -1 say it.
fn target_of(g: &Graph, op: OpId) -> Option<Vec<i64>> {
    let (x, shape, y) = (g.input_of(op, 0)?, g.input_of(op, 1)?, g.outputs_of(op)[0]);
    if g.const_bytes(shape).is_some() {
        return None;
    }
    let mut hole = false;
    let place = |(i, d): (usize, &Dim)| match *d {
        Dim::Fixed(n) if n > 0 => i64::try_from(n).ok(),
        d @ Dim::Symbol(_) if g.shape(x).get(i) == Some(&d) => Some(0),
        // What data decide only the operand says.
        d @ Dim::Symbol(_) if !g.symbols.is_open(d) && !std::mem::replace(&mut hole, true) => Some(-1),
        _ => None,
    };
    g.shape(y).iter().enumerate().map(place).collect()
}

/// Reads what an Expand reads instead of its result, where the op makes the same of it.
fn pass_over_expand(g: &mut Graph, op: OpId) -> bool {
    use OpKind::*;
    let kind = g.op_kind[op];
    let broadcasts = matches!(kind, Add | Sub | Mul | Div | Where | Equal | Less | Greater | And | Or | Pow);
    if !broadcasts {
        return false;
    }
    let mut changed = false;
    for i in 0..g.inputs_of(op).len() {
        let mut inputs = g.inputs_of(op).to_vec();
        let Some(expand) = g.producer(inputs[i]).filter(|&e| g.op_kind[e] == Expand) else { continue };
        inputs[i] = g.inputs_of(expand)[0];
        let y = g.outputs_of(op)[0];
        let same = infer(g, kind, &g.op_attr[op], &inputs).is_ok_and(|f| f[0].dims == g.shape(y));
        if same && !g.shape(y).iter().any(|&d| g.symbols.is_open(d)) {
            g.op_inputs[op].of_mut(&mut g.operands)[i] = inputs[i];
            changed = true;
        }
    }
    changed
}
