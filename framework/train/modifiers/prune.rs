//! Masks of a given sparsity: by magnitude or by movement, for each tensor or all together.

use super::{Sample, fisher, structured};
use crate::columns::HIDDEN;
use crate::error::{Error, Result};
use crate::masks::{self, Mask, Scored};
use crate::state::State;
use burn::module::Module;
use lacuna_nn::{Classifier, params};
use lacuna_recipe::{MaskStructure, Scope, Score};

/// How many zeros, and in which pattern.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub sparsity: f64,
    /// Share of a tensor's own first sparsity that is added.
    pub own_share: f64,
    pub structure: MaskStructure,
    pub scope: Scope,
}

/// New masks for `rows`.
pub fn set_sparsity<M: Classifier>(
    state: &mut State,
    module: M,
    modifier: u32,
    rows: &[usize],
    target: &Target,
    score: &Score,
    sample: &mut Sample<'_, M>,
) -> Result<M> {
    if target.scope == Scope::Dependent {
        return structured::set_sparsity(state, module, rows, target.sparsity, target.structure);
    }
    let mut weights = state.weights(&module, rows);
    let own = own_sparsities(state, modifier, rows, &weights, target);
    let sparsity: Vec<f64> = own.iter().map(|own| target.sparsity + target.own_share * own).collect();
    match score {
        Score::Magnitude => {
            let scores = weights.iter().map(|w| w.iter().map(|v| v.abs()).collect()).collect();
            let masks = masks_of(state, rows, scores, &sparsity, target)?;
            Ok(state.set_masks(module, rows.iter().copied().zip(masks.into_iter().map(Some))))
        }
        Score::Movement => {
            unhide(state, modifier, rows, &mut weights);
            let score = |(&row, w): (&usize, &Vec<f32>)| {
                state.columns.get(modifier, "score", row).map_or_else(|| vec![0.0; w.len()], <[f32]>::to_vec)
            };
            let scores = rows.iter().zip(&weights).map(score).collect();
            let masks = masks_of(state, rows, scores, &sparsity, target)?;
            Ok(hide(state, module, modifier, rows, &weights, masks))
        }
        Score::Fisher(rule) => fisher::prune(state, module, rows, &sparsity, target, rule, sample),
    }
}

pub(super) fn masks_of(
    state: &State,
    rows: &[usize],
    scores: Vec<Vec<f32>>,
    sparsity: &[f64],
    target: &Target,
) -> Result<Vec<Mask>> {
    let tensors = rows.iter().zip(&scores).zip(sparsity);
    let tensors: Vec<Scored<'_>> = tensors
        .map(|((&row, scores), &sparsity)| Scored { scores, shape: &state.params.shape[row], sparsity })
        .collect();
    masks::lowest(&tensors, target.structure, target.scope).map_err(Error::Recipe)
}

/// The part of each tensor (globally: of all together) that was zero at the modifier's first event. Counts are kept in
/// two parts: an f32 holds whole numbers up to 2^24 only.
fn own_sparsities(
    state: &mut State,
    modifier: u32,
    rows: &[usize],
    weights: &[Vec<f32>],
    target: &Target,
) -> Vec<f64> {
    const PART: usize = 1 << 20;
    if target.own_share == 0.0 {
        return vec![0.0; rows.len()];
    }
    let mut counts = Vec::with_capacity(rows.len());
    for (&row, w) in rows.iter().zip(weights) {
        if state.columns.get(modifier, "own_zeros", row).is_none() {
            let zeros = w.iter().filter(|v| **v == 0.0).count();
            state.columns.set(modifier, "own_zeros", row, vec![(zeros / PART) as f32, (zeros % PART) as f32]);
        }
        let kept = state.columns.get(modifier, "own_zeros", row).unwrap_or_default();
        let zeros = kept.first().copied().unwrap_or(0.0) as f64 * PART as f64;
        counts.push(zeros + kept.get(1).copied().unwrap_or(0.0) as f64);
    }
    let each = |(zeros, w): (&f64, &Vec<f32>)| zeros / w.len().max(1) as f64;
    if target.scope == Scope::Global {
        let all: usize = weights.iter().map(Vec::len).sum();
        return vec![counts.iter().sum::<f64>() / all.max(1) as f64; rows.len()];
    }
    counts.iter().zip(weights).map(each).collect()
}

/// Puts hidden values back into copies of the weights.
pub(super) fn unhide(state: &State, modifier: u32, rows: &[usize], weights: &mut [Vec<f32>]) {
    for (&row, w) in rows.iter().zip(weights) {
        let (Some(hidden), Some(mask)) = (state.columns.get(modifier, HIDDEN, row), &state.mask[row]) else {
            continue;
        };
        for ((w, &hidden), &open) in w.iter_mut().zip(hidden).zip(mask) {
            if open == 0 {
                *w = hidden;
            }
        }
    }
}

/// Sets masks; what they cover of `weights` is hidden, the rest is in the module from here on.
pub(super) fn hide<M: Module>(
    state: &mut State,
    module: M,
    modifier: u32,
    rows: &[usize],
    weights: &[Vec<f32>],
    masks: Vec<Mask>,
) -> M {
    for ((&row, w), mask) in rows.iter().zip(weights).zip(&masks) {
        let hidden = w.iter().zip(mask).map(|(&w, &open)| if open == 0 { w } else { 0.0 }).collect();
        state.columns.set(modifier, HIDDEN, row, hidden);
    }
    let module = params::update_each(module, |row, values| {
        if let Some(i) = rows.iter().position(|&r| r == row) {
            values.copy_from_slice(&weights[i]);
        }
    });
    state.set_masks(module, rows.iter().copied().zip(masks.into_iter().map(Some)))
}

/// What is masked is zero from here on: nothing is left of hidden values, their scores and moments.
pub fn drop_hidden(state: &mut State, modifier: u32, rows: &[usize]) {
    for &row in rows {
        for column in [HIDDEN, crate::columns::MOVABLE, "score"] {
            state.columns.remove(modifier, column, row);
        }
        state.clear_masked_moments(row);
    }
}
