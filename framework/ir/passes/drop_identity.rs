//! Removes Identity ops.

use super::Redirect;
use crate::error::Result;
use crate::graph::Graph;
use crate::op::OpKind;

/// Readers of an Identity read its input. One that makes a graph output goes only if its input can take over the
/// output's name: it is the result of an op and not an output itself.
pub fn drop_identity(g: &mut Graph) -> Result<usize> {
    let mut redirect = Redirect::new(g);
    let mut kept = Vec::with_capacity(g.order.len());
    let order = std::mem::take(&mut g.order);
    let all = order.len();
    for op in order {
        redirect.inputs(g, op);
        let (from, to) = (g.outputs_of(op)[0], g.input_of(op, 0));
        let Some(to) = to.filter(|_| g.op_kind[op] == OpKind::Identity) else {
            kept.push(op);
            continue;
        };
        if g.outputs.contains(&from) {
            let taken = g.outputs.iter().any(|&v| redirect.of(v) == to);
            if taken || g.producer(to).is_none() {
                kept.push(op);
                continue;
            }
            g.value_name[to] = g.value_name[from].clone();
        }
        redirect.set(from, to);
    }
    redirect.outputs(g);
    g.order = kept;
    Ok(all - g.order.len())
}
