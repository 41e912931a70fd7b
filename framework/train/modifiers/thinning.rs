//! Layer thinning: channels that are zero leave the network. Every tensor along them becomes really smaller (weights, batch
//! norm, statistics, masks, momentum), and the results stay what they were, up to the order of sums.

use super::channels::{Group, Part, groups};
use super::structured::{channel, image};
use crate::error::{Error, Result};
use crate::state::State;
use lacuna_nn::Classifier;
use lacuna_nn::params;
use lacuna_recipe::MaskStructure;

/// Removes the channels whose filters (or, by channel, whose readers) are all zero. Of each group one channel stays.
pub fn thin<M: Classifier>(state: &mut State, module: M, structure: MaskStructure) -> Result<M> {
    let groups = groups(&module, image(state)?).map_err(Error::Recipe)?;
    let all: Vec<usize> = (0..state.params.len()).collect();
    let tensors = state.weights(&module, &all);
    // For each row and axis, which places stay.
    let mut kept: Vec<Vec<Option<Vec<bool>>>> =
        state.params.shape.iter().map(|s| vec![None; s.len()]).collect();
    let mut any = false;
    for group in &groups {
        let mut stays = in_use(state, group, &tensors, structure);
        if !stays.contains(&true) {
            stays[0] = true;
        }
        if !stays.contains(&false) {
            continue;
        }
        any = true;
        for member in &group.members {
            kept[member.row][member.axis] = Some(stays.clone());
        }
    }
    if !any {
        return Ok(module);
    }
    let shapes = state.params.shape.clone();
    let stays = |row: usize, i: usize| {
        let axes = kept[row].iter().enumerate();
        axes.flat_map(|(axis, kept)| Some((axis, kept.as_ref()?)))
            .all(|(axis, kept)| kept[channel(i, &shapes[row], axis)])
    };
    let thinned = |row: usize, values: &[f32]| -> Vec<f32> {
        (0..values.len()).filter(|&i| stays(row, i)).map(|i| values[i]).collect()
    };
    let module = params::resize_each(module, |row, values| {
        let sides = shapes[row].iter().zip(&kept[row]);
        let side = |(&n, kept): (&usize, &Option<Vec<bool>>)| {
            kept.as_ref().map_or(n, |kept| kept.iter().filter(|k| **k).count())
        };
        let shape: Vec<usize> = sides.map(side).collect();
        (shape != shapes[row]).then(|| (thinned(row, values), shape))
    });
    for row in 0..shapes.len() {
        let n: usize = shapes[row].iter().product();
        for moment in [&mut state.moments.first[row], &mut state.moments.second[row]] {
            if moment.len() == n {
                *moment = thinned(row, moment);
            }
        }
        if let Some(mask) = state.mask[row].take() {
            let mask: Vec<u8> = (0..n).filter(|&i| stays(row, i)).map(|i| mask[i]).collect();
            // What was masked is gone; nothing is left to hold.
            state.mask[row] = Some(mask).filter(|mask| mask.contains(&0));
        }
    }
    state.columns.resize(|row, values| {
        if values.len() == shapes[row].iter().product::<usize>() {
            thinned(row, values)
        } else {
            values.to_vec()
        }
    });
    state.resized(&module);
    Ok(state.set_masks(module, []))
}

/// Which channels of a group do something.
fn in_use(state: &State, group: &Group, tensors: &[Vec<f32>], structure: MaskStructure) -> Vec<bool> {
    let counts = |part: Part| match structure {
        MaskStructure::Channel => part == Part::Reader,
        _ => matches!(part, Part::Maker | Part::Depthwise | Part::Scale),
    };
    let mut used = vec![false; group.size];
    let mut looked_at = false;
    for member in group.members.iter().filter(|m| counts(m.part)) {
        looked_at = true;
        let shape = &state.params.shape[member.row];
        for (i, _) in tensors[member.row].iter().enumerate().filter(|(_, w)| **w != 0.0) {
            used[channel(i, shape, member.axis)] = true;
        }
    }
    if looked_at { used } else { vec![true; group.size] }
}
