//! Evaluates ops whose inputs are all constants.

use super::Redirect;
use crate::error::Result;
use crate::graph::Graph;
use crate::ids::OpId;
use crate::op::{Attr, OpKind};
use crate::reference::output_dims;
use crate::tensor::{Tensor, element_count};

/// Results with more elements stay ops.
pub const FOLD_ELEMENTS_MAX: usize = 1 << 24;
/// Ops with more multiplications or comparisons stay ops.
pub const FOLD_WORK_MAX: usize = 1 << 32;

/// Replaces ops of constants by their results, computed with the reference functions. DequantizeLinear stays: what
/// it makes is larger than what it reads, and the engine wants the integers. An op that cannot be evaluated
/// (a division by zero) stays too, and says so when it is run.
pub fn fold_const(g: &mut Graph) -> Result<usize> {
    let mut redirect = Redirect::new(g);
    let mut kept = Vec::with_capacity(g.order.len());
    let order = std::mem::take(&mut g.order);
    let all = order.len();
    for op in order {
        redirect.inputs(g, op);
        match evaluate(g, op) {
            Some(results) => {
                for (v, t) in g.outputs_of(op).to_vec().into_iter().zip(results) {
                    let name = g.value_name[v].clone();
                    let folded = g.add_tensor(&name, &t);
                    redirect.set(v, folded);
                }
            }
            None => kept.push(op),
        }
    }
    redirect.outputs(g);
    g.order = kept;
    Ok(all - g.order.len())
}

fn evaluate(g: &Graph, op: OpId) -> Option<Vec<Tensor>> {
    let row = g.op_kind[op].row();
    if row.kind == OpKind::DequantizeLinear {
        return None;
    }
    let read = |v| g.const_bytes(v).is_some();
    if !g.inputs_of(op).iter().all(|&v| v.is_none() || read(v)) {
        return None;
    }
    let tensors: Vec<Option<Tensor>> =
        g.inputs_of(op).iter().map(|&v| if v.is_none() { None } else { g.const_tensor(v) }).collect();
    let inputs: Vec<Option<&Tensor>> = tensors.iter().map(Option::as_ref).collect();
    let dims = output_dims(row.infer, &g.op_attr[op], &inputs).ok()?;
    let n = element_count(&dims).filter(|&n| n <= FOLD_ELEMENTS_MAX)?;
    let work = n.checked_mul(work_per_element(&g.op_attr[op], row.kind, &inputs))?;
    if work > FOLD_WORK_MAX {
        return None;
    }
    (row.eval)(&g.op_attr[op], &inputs).ok()
}

/// Roughly how many input elements one output element reads.
fn work_per_element(attr: &Attr, kind: OpKind, inputs: &[Option<&Tensor>]) -> usize {
    let dims = |i: usize| inputs.get(i).copied().flatten().map_or(&[][..], |t| &t.dims);
    match (kind, attr) {
        (OpKind::Conv | OpKind::FusedConv | OpKind::FusedConvTranspose | OpKind::QConv, _) => {
            dims(1).iter().skip(1).product()
        }
        (OpKind::Gemm | OpKind::MatMul | OpKind::QGemm, _) => dims(1).iter().copied().max().unwrap_or(1),
        (_, Attr::Pool(p)) => (p.window.kernel[0] as usize).saturating_mul(p.window.kernel[1] as usize),
        _ => 1,
    }
}
