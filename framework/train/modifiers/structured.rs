//! Structured pruning: whole filters or channels, chosen for a group of tensors together. What depends on a filter is
//! masked with it (scale and shift of its batch norm, a bias), so that its channel is zero everywhere and can be removed
//! without a change of the network's results; see [`super::thinning`].

use super::channels::{Group, Member, Part, groups};
use crate::error::{Error, Result};
use crate::masks::{Mask, mask_lowest, zeros};
use crate::state::State;
use lacuna_nn::Classifier;
use lacuna_recipe::MaskStructure;

/// Masks the lowest channels of every group that `rows` take part in: by the sum of their lengths (L2) over the tensors of
/// the group that are among `rows`.
pub fn set_sparsity<M: Classifier>(
    state: &mut State,
    module: M,
    rows: &[usize],
    sparsity: f64,
    structure: MaskStructure,
) -> Result<M> {
    let groups = groups(&module, image(state)?).map_err(Error::Recipe)?;
    let weights = state.weights(&module, rows);
    let mut masks: Vec<(usize, Option<Mask>)> = Vec::new();
    let scored = if structure == MaskStructure::Channel { Part::Reader } else { Part::Maker };
    for group in &groups {
        let own = group.members.iter().filter(|m| m.part == scored);
        let own: Vec<(&Member, usize)> =
            own.filter_map(|m| Some((m, rows.iter().position(|&r| r == m.row)?))).collect();
        if own.is_empty() {
            continue;
        }
        let mut scores = vec![0.0f64; group.size];
        for (member, i) in own {
            let squares = squares(&weights[i], &state.params.shape[member.row], member.axis);
            scores.iter_mut().zip(squares).for_each(|(score, sum)| *score += sum.sqrt());
        }
        let scores: Vec<f32> = scores.into_iter().map(|s| s as f32).collect();
        // Of the channels that the network began with, some may have been removed.
        let full = full_size(state, group);
        let masked = zeros(full, sparsity).saturating_sub(full - group.size).min(group.size - 1);
        let open = mask_lowest(&scores, masked as f64 / group.size as f64);
        for member in group.members.iter().filter(|m| masks_with(m.part, scored)) {
            let at = masks.iter().position(|(row, _)| *row == member.row).unwrap_or_else(|| {
                masks.push((member.row, Some(vec![1; state.params.elements(member.row)])));
                masks.len() - 1
            });
            let shape = &state.params.shape[member.row];
            for (i, m) in masks[at].1.iter_mut().flatten().enumerate() {
                *m &= open[channel(i, shape, member.axis)];
            }
        }
    }
    Ok(state.set_masks(module, masks))
}

/// What is masked along: with a filter all that makes its channel what it is, with a channel all that reads it.
fn masks_with(part: Part, scored: Part) -> bool {
    match scored {
        Part::Reader => part == Part::Reader,
        _ => matches!(part, Part::Maker | Part::Depthwise | Part::Scale),
    }
}

fn full_size(state: &State, group: &Group) -> usize {
    group.members.first().map_or(group.size, |m| state.full_shape[m.row][m.axis])
}

/// The size of images that the network is trained on.
pub(super) fn image(state: &State) -> Result<[usize; 3]> {
    state.image.ok_or_else(|| Error::Recipe("filters can be pruned in networks for images only".into()))
}

/// Which place along `axis` element `i` has.
pub(super) fn channel(i: usize, shape: &[usize], axis: usize) -> usize {
    let inner: usize = shape[axis + 1..].iter().product();
    i / inner % shape[axis]
}

/// Sum of squares for each place along an axis.
fn squares(w: &[f32], shape: &[usize], axis: usize) -> Vec<f64> {
    let mut sums = vec![0.0; shape[axis]];
    for (i, &w) in w.iter().enumerate() {
        sums[channel(i, shape, axis)] += f64::from(w) * f64::from(w);
    }
    sums
}
