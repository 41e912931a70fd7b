//! Rewrites that need no knowledge of a machine: one file per pass, one public function each.
//!
//! A pass takes a valid graph and leaves a valid graph (see [`crate::verify`]) that computes the same, and says
//! how often it rewrote. Results are bit-equal, except where a pass says otherwise.

mod drop_dead;
mod drop_identity;
mod fold_batch_norm;
mod fold_const;
mod settle_shapes;

pub use drop_dead::drop_dead;
pub use drop_identity::drop_identity;
pub use fold_batch_norm::fold_batch_norm;
pub use fold_const::{FOLD_ELEMENTS_MAX, FOLD_WORK_MAX, fold_const};

pub use settle_shapes::settle_shapes;

use crate::error::Result;
use crate::graph::Graph;
use crate::ids::{Id, IdVec, OpId, ValueId};
use std::sync::Arc;

pub struct Pass {
    pub name: &'static str,
    pub run: fn(&mut Graph) -> Result<usize>,
}

/// All passes, in the order in which [`simplify`] runs them.
pub const PASSES: &[Pass] = &[
    Pass { name: "drop_identity", run: drop_identity },
    Pass { name: "fold_const", run: fold_const },
    Pass { name: "fold_batch_norm", run: fold_batch_norm },
    Pass { name: "drop_dead", run: drop_dead },
];

/// Runs every pass once; returns each one's name and number of rewrites.
pub fn simplify(g: &mut Graph) -> Result<Vec<(&'static str, usize)>> {
    PASSES
        .iter()
        .map(|pass| {
            let rewrites = (pass.run)(g)?;
            debug_assert_eq!(crate::verify::verify(g), Ok(()), "after {}", pass.name);
            Ok((pass.name, rewrites))
        })
        .collect()
}

/// Runs all that passes do without a machine on the graph's bodies, and on theirs. Returns the number of rewrites.
pub fn simplify_bodies(g: &mut Graph) -> Result<usize> {
    let mut rewrites = 0;
    let mut bodies = IdVec::new();
    for (_, body) in g.bodies.iter() {
        let mut body = (**body).clone();
        rewrites += simplify_bodies(&mut body)? + settle_shapes(&mut body)?;
        rewrites += simplify(&mut body)?.iter().map(|(_, n)| n).sum::<usize>();
        bodies.push(Arc::new(body));
    }
    g.bodies = bodies;
    Ok(rewrites)
}

/// Which value to read instead of each: filled while a pass walks the order, so that many replacements cost one walk.
struct Redirect(Vec<ValueId>);

impl Redirect {
    fn new(g: &Graph) -> Redirect {
        Redirect(g.value_name.ids().collect())
    }

    /// `from` must be a value that existed when the walk began, and `to` one that is itself final.
    fn set(&mut self, from: ValueId, to: ValueId) {
        self.0[from.index()] = to;
    }

    fn of(&self, v: ValueId) -> ValueId {
        // Values made during the walk, and absent inputs, stay what they are.
        self.0.get(v.index()).copied().unwrap_or(v)
    }

    fn inputs(&self, g: &mut Graph, op: OpId) {
        let inputs = g.op_inputs[op];
        inputs.of_mut(&mut g.operands).iter_mut().for_each(|v| *v = self.of(*v));
    }

    fn outputs(&self, g: &mut Graph) {
        g.outputs.iter_mut().for_each(|v| *v = self.of(*v));
    }
}
