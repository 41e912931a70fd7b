//! `x * sigmoid(x)` is one op.

use super::rewrite::*;
use crate::error::Result;
use crate::target::Target;
use lacuna_ir::{Attr, DType, Graph, OpKind};

pub fn fuse_silu(g: &mut Graph, _: &Target) -> Result<usize> {
    let uses = g.uses();
    let mut changes = 0;
    for op in g.order.clone() {
        if g.op_kind[op] != OpKind::Mul || g.value_dtype[g.outputs_of(op)[0]] != DType::F32 {
            continue;
        }
        let [a, b] = [0, 1].map(|i| g.inputs_of(op)[i]);
        let is_sigmoid_of = |s, x| {
            let sigmoid = made_by(g, s, OpKind::Sigmoid).filter(|_| sole_use(g, &uses, s).is_some());
            sigmoid.is_some_and(|sigmoid| g.inputs_of(sigmoid)[0] == x)
        };
        let x = match (is_sigmoid_of(a, b), is_sigmoid_of(b, a)) {
            (true, _) => b,
            (_, true) => a,
            _ => continue,
        };
        let name = g.op_name[op].clone();
        let y = op_before(g, op, OpKind::Silu, Attr::None, &name, &[x])?;
        g.replace_uses(g.outputs_of(op)[0], y);
        changes += 1;
    }
    sweep(g);
    Ok(changes)
}
