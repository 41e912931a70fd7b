//! One binding of a session: the graph with numbers for its symbols, cut into what the plan runs and, if data decide
//! sizes, a tail that the interpreter runs after it.

use crate::error::{Error, Result};
use lacuna_ir::bind::bind;
use lacuna_ir::{Graph, Id, SymbolDef, Tensor, ValueId, interp};

/// What the interpreter runs after the plan.
pub struct Tail {
    graph: Graph,
    /// What it reads. The plan writes them, behind the outputs that it makes itself.
    pub inputs: Vec<Tensor>,
    /// Numbers of the session's outputs that it makes.
    pub outputs: Vec<usize>,
}

impl Tail {
    /// Results in the order of [`Tail::outputs`].
    pub fn run(&self) -> Result<Vec<Tensor>> {
        Ok(interp::run(&self.graph, &self.inputs)?)
    }

    /// Names and kinds of the ops, and why they are here.
    pub fn ops(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let g = &self.graph;
        g.order.iter().map(|&op| (g.op_name[op].as_str(), g.op_kind[op].name()))
    }
}

pub struct Binding {
    /// What the plan is built of: its outputs are those of `head_outputs`, then what the tail reads.
    pub graph: Graph,
    /// Values that are constants in this binding only.
    pub computed: Vec<ValueId>,
    pub head_outputs: Vec<usize>,
    pub tail: Option<Tail>,
    /// Dims of every output; none for those of the tail, which a run sizes.
    pub output_dims: Vec<Option<Vec<usize>>>,
}

/// Binds `g` to `symbols` (only the free ones count) and to the contents of inputs that decide shapes.
pub fn specialise(g: &Graph, symbols: &[u64], contents: &[(usize, Tensor)]) -> Result<Binding> {
    let free = |s| (*g.symbols.def(s) == SymbolDef::Free).then(|| symbols[s.index()]);
    let free: Vec<Option<u64>> = g.symbols.ids().map(free).collect();
    let bound = bind(g, &free, contents)?;
    let made = bound.in_tail();
    let (head_outputs, tail_outputs): (Vec<usize>, Vec<usize>) =
        (0..g.outputs.len()).partition(|&i| !made[g.outputs[i].index()]);
    let output_dims =
        g.outputs.iter().map(|&v| bound.graph.fixed_shape(v).filter(|_| !made[v.index()])).collect();
    let (mut tail, mut crossing) = (None, Vec::new());
    if !tail_outputs.is_empty() {
        let (graph, reads) = bound.tail_graph();
        let zeros = |&v: &ValueId| {
            let dims = graph.fixed_shape(v).ok_or_else(|| Error::Pass {
                pass: "bind",
                why: format!("value '{}' has no size, and a tail reads it", graph.value_name[v]),
            })?;
            Ok(Tensor::zeros(graph.value_dtype[v], &dims))
        };
        let inputs = reads.iter().map(zeros).collect::<Result<Vec<Tensor>>>()?;
        crossing = reads;
        tail = Some(Tail { graph, inputs, outputs: tail_outputs });
    }
    let mut graph = bound.graph;
    graph.outputs = head_outputs.iter().map(|&i| g.outputs[i]).chain(crossing).collect();
    drop_unread(&mut graph);
    Ok(Binding { graph, computed: bound.computed, head_outputs, tail, output_dims })
}

/// Takes ops out of the order whose results nothing reads any more.
fn drop_unread(g: &mut Graph) {
    let mut read = vec![false; g.value_name.len()];
    g.outputs.iter().for_each(|v| read[v.index()] = true);
    let mut kept = Vec::with_capacity(g.order.len());
    for &op in g.order.iter().rev() {
        if g.outputs_of(op).iter().any(|v| read[v.index()]) {
            g.inputs_of(op).iter().filter(|v| !v.is_none()).for_each(|v| read[v.index()] = true);
            kept.push(op);
        }
    }
    kept.reverse();
    g.order = kept;
}
