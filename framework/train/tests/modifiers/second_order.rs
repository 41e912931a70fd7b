//! OBSPruning and MFACPruning against inverses by Gauss and Jordan.

use crate::harness::{STEPS_PER_EPOCH, Seen, Tensors, Training};
use crate::oracle::{self, Pattern, fisher_inverse};
use crate::{Case, EPOCHS};
use lacuna_recipe::Action;
use lacuna_train::optimizer::Optimizer;

const DAMP: f64 = 1e-4;
const EPS: f64 = 1.1920929e-7;

struct Expected {
    names: &'static [&'static str],
    grads: usize,
    rounds: usize,
    /// Places of a Fisher block: single weights, or groups of four.
    block: usize,
    fours: bool,
    global: bool,
}

macro_rules! case {
    ($class:literal, $keys:literal, $expected:expr) => {
        Case {
            class: $class,
            keys: $keys,
            also: "",
            check: |lines, optimizer| check(lines, optimizer, &$expected),
        }
    };
}

pub const CASES: &[Case] = &[
    case!(
        "OBSPruningModifier",
        "params: [conv2.weight, conv3.weight, fc.weight], init_sparsity: 0.2, final_sparsity: 0.8, start_epoch: 1, end_epoch: 3, \
         update_frequency: 1, inter_func: linear, num_grads: 6, damp: 1e-4, fisher_block_size: 10",
        Expected {
            names: &["conv2.weight", "conv3.weight", "fc.weight"],
            grads: 6,
            rounds: 1,
            block: 10,
            fours: false,
            global: true
        }
    ),
    case!(
        "OBSPruningModifier",
        "params: [conv1.weight, conv2.weight, fc.weight], init_sparsity: 0.2, final_sparsity: 0.8, start_epoch: 1, end_epoch: 3, \
         update_frequency: 1, inter_func: linear, num_grads: 5, damp: 1e-4, fisher_block_size: 8, num_recomputations: 3, \
         mask_type: block4, global_sparsity: False",
        Expected {
            names: &["conv1.weight", "conv2.weight", "fc.weight"],
            grads: 5,
            rounds: 3,
            block: 8,
            fours: true,
            global: false
        }
    ),
    case!(
        "OBSPruningModifier",
        "params: [fc.weight], init_sparsity: 0.2, final_sparsity: 0.8, start_epoch: 1, end_epoch: 3, update_frequency: 1, \
         inter_func: linear, num_grads: 3, damp: 1e-4",
        Expected { names: &["fc.weight"], grads: 3, rounds: 1, block: 1, fours: false, global: true }
    ),
    case!(
        "MFACPruningModifier",
        "params: [conv2.weight, fc.weight], init_sparsity: 0.2, final_sparsity: 0.8, start_epoch: 1, end_epoch: 3, \
         update_frequency: 1, inter_func: linear, num_grads: 6, damp: 1e-4, fisher_block_size: 100",
        Expected {
            names: &["conv2.weight", "fc.weight"],
            grads: 6,
            rounds: 1,
            block: 100,
            fours: false,
            global: false
        }
    ),
];

fn check(lines: &[&str], optimizer: Optimizer, expected: &Expected) {
    let training = Training::new(EPOCHS, lines, optimizer);
    let shapes: Vec<Vec<usize>> = expected.names.iter().map(|name| training.shape(name)).collect();
    let steps = u64::from(STEPS_PER_EPOCH);
    let (mut events, mut moved) = (0, 0);
    training.run(0, |seen| {
        let Seen::Event { event, step, before, after, gradients } = seen else { return };
        let Action::SetSparsity { .. } = event.action else { return };
        assert_eq!(gradients.len(), expected.grads * expected.rounds);
        let target = 0.2 + 0.6 * (*step - steps) as f64 / (2 * steps) as f64;
        let mut weights: Vec<Vec<f32>> = expected.names.iter().map(|n| before.weights[*n].clone()).collect();
        let mut masks: Vec<Vec<u8>> = (0..weights.len())
            .map(|t| {
                before.masks.get(expected.names[t]).cloned().unwrap_or_else(|| vec![1; weights[t].len()])
            })
            .collect();
        let zeros: Vec<f64> = masks.iter().map(|m| m.iter().filter(|m| **m == 0).count() as f64).collect();
        let sizes: Vec<f64> = masks.iter().map(|m| m.len() as f64).collect();
        let own = |t: usize| match expected.global {
            true => zeros.iter().sum::<f64>() / sizes.iter().sum::<f64>(),
            false => zeros[t] / sizes[t],
        };
        let starts: Vec<f64> = (0..weights.len()).map(own).collect();
        for (round, gradients) in gradients.chunks(expected.grads).enumerate() {
            let part = (round + 1) as f64 / expected.rounds as f64;
            let sparsity = |t: usize| starts[t] + part * (target - starts[t]);
            one_round(expected, &shapes, &mut weights, &mut masks, gradients, sparsity);
        }
        for ((name, w), mask) in expected.names.iter().zip(&weights).zip(&masks) {
            assert!(after.masks[*name] == *mask, "{lines:?}: the mask of {name} at step {step}");
            for (i, (found, want)) in after.weights[*name].iter().zip(w).enumerate() {
                let close = (found - want).abs() <= 1e-5 * (0.1 + want.abs());
                assert!(close, "{lines:?}: {name}[{i}] at step {step}: {found} {want}");
                moved += usize::from(mask[i] == 1 && (found - before.weights[*name][i]).abs() > 1e-4);
            }
        }
        events += 1;
    });
    assert_eq!(events, 3);
    // Alone in its block, a weight has none that could make up for it.
    assert!(moved > 5 || expected.block == 1, "{lines:?}: {moved} weights made up for others");
}

/// Scores, masks and the update of what survives, for all tensors.
fn one_round(
    expected: &Expected,
    shapes: &[Vec<usize>],
    weights: &mut [Vec<f32>],
    masks: &mut [Vec<u8>],
    gradients: &[Tensors],
    sparsity: impl Fn(usize) -> f64,
) {
    let mut scored = Vec::new();
    let mut blocks_of = Vec::new();
    for (t, name) in expected.names.iter().enumerate() {
        // The gradients of masked weights count as zero.
        let open = |g: &Tensors| -> Vec<f32> {
            g[*name].iter().zip(&masks[t]).map(|(g, m)| if *m == 1 { *g } else { 0.0 }).collect()
        };
        let gradients: Vec<Vec<f32>> = gradients.iter().map(open).collect();
        let units = oracle::groups(&shapes[t], if expected.fours { Pattern::Fours } else { Pattern::Single });
        let each = if expected.fours { expected.block / 4 } else { expected.block };
        let mut scores = vec![0.0f32; weights[t].len()];
        let mut blocks = Vec::new();
        for units in units.chunks(each) {
            let places: Vec<usize> = units.concat();
            let inverse = fisher_inverse(&gradients, &places, DAMP);
            let mut first = 0;
            for unit in units {
                let w: Vec<f64> = unit.iter().map(|&i| f64::from(weights[t][i])).collect();
                let score = if expected.fours {
                    let part = |r: usize| inverse[first + r][first..first + unit.len()].to_vec();
                    let solved = oracle::invert((0..unit.len()).map(part).collect());
                    let product = |row: &Vec<f64>| row.iter().zip(&w).map(|(a, b)| a * b).sum::<f64>();
                    0.5 * solved.iter().map(product).zip(&w).map(|(a, b)| a * b).sum::<f64>()
                } else {
                    w[0] * w[0] / (2.0 * inverse[first][first] + EPS)
                };
                unit.iter().for_each(|&i| scores[i] = score as f32);
                first += unit.len();
            }
            blocks.push((places, units.iter().map(Vec::len).collect::<Vec<_>>(), inverse));
        }
        scores.iter_mut().zip(&masks[t]).filter(|(_, m)| **m == 0).for_each(|(s, _)| *s = f32::NEG_INFINITY);
        scored.push((scores, shapes[t].clone(), sparsity(t)));
        blocks_of.push(blocks);
    }
    let pattern = if expected.fours { Pattern::Fours } else { Pattern::Single };
    let new = oracle::masks(&scored, pattern, expected.global);
    for (t, blocks) in blocks_of.iter().enumerate() {
        for (places, lens, inverse) in blocks {
            let lens = if expected.fours { lens } else { &vec![1; places.len()] };
            compensate(places, lens, inverse, &mut weights[t], &masks[t], &new[t]);
        }
        for (w, m) in weights[t].iter_mut().zip(&new[t]).filter(|(_, m)| **m == 0) {
            *w = f32::from(*m);
        }
    }
    masks.clone_from_slice(&new);
}

/// w -= F⁻¹ v, where v is (the part of F⁻¹ of one group, of one weight or four)⁻¹ w for newly masked groups.
fn compensate(
    places: &[usize],
    lens: &[usize],
    inverse: &[Vec<f64>],
    weights: &mut [f32],
    old: &[u8],
    new: &[u8],
) {
    let newly = |i: usize| old[i] == 1 && new[i] == 0;
    let mut v = vec![0.0; places.len()];
    let mut first = 0;
    for &len in lens {
        let w: Vec<f64> = places[first..first + len].iter().map(|&i| f64::from(weights[i])).collect();
        let part = |r: usize| inverse[first + r][first..first + len].to_vec();
        let solved = oracle::invert((0..len).map(part).collect());
        for r in (0..len).filter(|&r| newly(places[first + r])) {
            v[first + r] = solved[r].iter().zip(&w).map(|(a, b)| a * b).sum();
        }
        first += len;
    }
    for (k, &i) in places.iter().enumerate() {
        let update: f64 = inverse[k].iter().zip(&v).map(|(a, b)| a * b).sum();
        weights[i] = (f64::from(weights[i]) - update) as f32;
    }
}
