//! Top-KAST (Jayakumar et al. 2020, arXiv:2106.03517): the forward pass uses the largest weights, the backward pass moves
//! more of them, and all the others rest with the value that they had.

use super::prune::{Target, hide, masks_of, unhide};
use crate::columns::MOVABLE;
use crate::error::Result;
use crate::state::State;
use burn::module::Module;

/// New masks by magnitude of all weights, hidden ones included: `target` for the forward pass, `backward` of all at rest.
pub fn set_two_masks<M: Module>(
    state: &mut State,
    module: M,
    modifier: u32,
    rows: &[usize],
    target: &Target,
    backward: f64,
) -> Result<M> {
    let mut weights = state.weights(&module, rows);
    unhide(state, modifier, rows, &mut weights);
    let magnitudes = || weights.iter().map(|w| w.iter().map(|v| v.abs()).collect()).collect();
    let forward = masks_of(state, rows, magnitudes(), &vec![target.sparsity; rows.len()], target)?;
    let movable = masks_of(state, rows, magnitudes(), &vec![backward; rows.len()], target)?;
    for (&row, movable) in rows.iter().zip(&movable) {
        state.columns.set(modifier, MOVABLE, row, movable.iter().map(|&m| f32::from(m)).collect());
    }
    Ok(hide(state, module, modifier, rows, &weights, forward))
}
