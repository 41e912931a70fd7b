//! The pass table: how a graph becomes the graph the planner reads.
//!
//! Model ops (NCHW, ONNX meaning) become engine ops (NHWC, fused, integer). The lowered graph is still a
//! [`Graph`]: `lacuna_ir::interp` runs it, and what it gives is what the engine must give, bit for bit where
//! values are integers.

mod activations;
mod add_norm;
mod attention;
mod chosen_rows;
mod detectors;
mod dynamic;
mod fuse_bytes;
mod lower_qdq;
mod rewrite;
mod settle_layout;
mod tables;
mod to_nhwc;

pub(crate) use rewrite::{tensor_params, transposed};

use crate::error::{Error, Result};
use crate::target::Target;
use lacuna_ir::Graph;

/// What one pass did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassReport {
    pub pass: &'static str,
    /// Rewrites made.
    pub changes: usize,
    /// Live ops afterwards.
    pub ops: usize,
}

pub struct Pass {
    pub name: &'static str,
    /// Rewrites the graph in place and says how many rewrites it made.
    pub run: fn(&mut Graph, &Target) -> Result<usize>,
}

/// The passes, in the order they run.
pub const PASSES: &[Pass] = &[
    Pass { name: "simplify_bodies", run: |g, _| Ok(lacuna_ir::passes::simplify_bodies(g)?) },
    Pass { name: "settle_shapes", run: |g, _| Ok(lacuna_ir::passes::settle_shapes(g)?) },
    Pass { name: "fold_const", run: |g, _| Ok(lacuna_ir::passes::fold_const(g)?) },
    Pass { name: "fold_batch_norm", run: fold_all_norms },
    Pass { name: "drop_identity", run: |g, _| Ok(lacuna_ir::passes::drop_identity(g)?) },
    Pass { name: "drop_dead", run: |g, _| Ok(lacuna_ir::passes::drop_dead(g)?) },
    Pass { name: "join_phases", run: detectors::join_phases },
    Pass { name: "turn_heads_first", run: detectors::turn_heads_first },
    Pass { name: "lower_dynamic", run: dynamic::lower_dynamic },
    Pass { name: "lower_qdq", run: lower_qdq::lower_qdq },
    Pass { name: "fuse_activations", run: activations::fuse_activations },
    Pass { name: "to_nhwc", run: to_nhwc::to_nhwc },
    Pass { name: "settle_layout", run: settle_layout::settle_layout },
    Pass { name: "fuse_bytes", run: fuse_bytes::fuse_bytes },
    Pass { name: "chosen_rows", run: chosen_rows::chosen_rows },
];

/// One call folds one of several normalisations in a row.
fn fold_all_norms(g: &mut Graph, _: &Target) -> Result<usize> {
    let mut changes = 0;
    loop {
        match lacuna_ir::passes::fold_batch_norm(g)? {
            0 => return Ok(changes),
            n => changes += n,
        }
    }
}

/// Runs every pass over a copy of `g` and returns the lowered graph without dead rows.
/// In debug builds the verifier runs after each pass.
pub fn lower(g: &Graph, target: &Target) -> Result<(Graph, Vec<PassReport>)> {
    lacuna_ir::verify::verify(g)?;
    let mut lowered = g.compact();
    let mut reports = Vec::with_capacity(PASSES.len());
    for pass in PASSES {
        let changes = (pass.run)(&mut lowered, target)?;
        if cfg!(debug_assertions) {
            lacuna_ir::verify::verify(&lowered)
                .map_err(|e| Error::Pass { pass: pass.name, why: format!("left a broken graph: {e}") })?;
        }
        reports.push(PassReport { pass: pass.name, changes, ops: lowered.order.len() });
    }
    let mut lowered = lowered.compact();
    // Rewrites gave the results new names; a reader of the lowered graph looks for the old ones.
    for (&old, &new) in g.outputs.iter().zip(&lowered.outputs.clone()) {
        if lowered.producer(new).is_some() && lowered.outputs.iter().filter(|&&v| v == new).count() == 1 {
            lowered.value_name[new].clone_from(&g.value_name[old]);
        }
    }
    Ok((lowered, reports))
}
