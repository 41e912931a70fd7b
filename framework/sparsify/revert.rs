//! Layers that cost too much accuracy get their own weights back.

use crate::error::Result;
use crate::{LayerReport, Oneshot};
use lacuna_ir::Graph;

/// What [`revert_until`] found.
pub struct Reverted {
    pub graph: Graph,
    pub layers: Vec<LayerReport>,
    /// The score of `graph`.
    pub score: f64,
    pub evaluations: usize,
}

/// The graph with as few layers left alone as it takes for `score` to be at least `wanted`. Layers are given back in the
/// order of their [`LayerReport::error`], largest first; how many is searched for by halving, so that a few evaluations
/// do. `score` need not grow with every layer: what is returned was measured.
///
/// # Errors
/// Those of [`Oneshot::apply`] and of `score`. With every layer given back the graph is the original but for folded batch
/// norms, and is returned whatever its score.
pub fn revert_until<E: From<crate::Error>>(
    oneshot: &Oneshot,
    wanted: f64,
    mut score: impl FnMut(&Graph) -> Result<f64, E>,
) -> Result<Reverted, E> {
    let count = oneshot.layers().len();
    let (graph, layers) = oneshot.apply(&vec![false; count])?;
    let found = Reverted { score: score(&graph)?, graph, layers, evaluations: 1 };
    if found.score >= wanted {
        return Ok(found);
    }
    let reports = &found.layers;
    let mut order: Vec<usize> = (0..count).filter(|&i| reports[i].kept.is_empty()).collect();
    order.sort_by(|&a, &b| reports[b].error.total_cmp(&reports[a].error));
    let mut evaluations = 1;
    let mut attempt = |given_back: usize| -> Result<Reverted, E> {
        let mut reverted = vec![false; count];
        order[..given_back].iter().for_each(|&i| reverted[i] = true);
        let (graph, layers) = oneshot.apply(&reverted)?;
        evaluations += 1;
        Ok(Reverted { score: score(&graph)?, graph, layers, evaluations })
    };
    // `low` layers are too few; with `high` the score was measured as enough, or all are given back.
    let (mut low, mut high) = (0, order.len());
    let mut found = attempt(high)?;
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let tried = attempt(middle)?;
        match tried.score >= wanted {
            true => (high, found) = (middle, tried),
            false => low = middle,
        }
    }
    found.evaluations = evaluations;
    Ok(found)
}
