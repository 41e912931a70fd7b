//! Masks whose weights come back: AC/DC, movement pruning, RigL, Top-KAST; and Powerpropagation.

use crate::harness::{STEPS_PER_EPOCH, Seen, Tensors, Training};
use crate::oracle::{self, Pattern};
use crate::{Case, EPOCHS};
use lacuna_recipe::Action;
use lacuna_train::optimizer::Optimizer;
use std::f64::consts::PI;

const ALL: &[&str] = &["conv1.weight", "conv2.weight", "conv3.weight", "fc.weight"];
const SIZES: [usize; 4] = [8 * 2 * 9, 8 * 8 * 9, 6 * 8 * 9, 3 * 6];

pub const CASES: &[Case] = &[
    Case {
        class: "ACDCPruningModifier",
        keys: "params: __ALL_PRUNABLE__, compression_sparsity: 0.7, start_epoch: 0, end_epoch: 5, update_frequency: 1",
        also: "",
        check: acdc,
    },
    Case {
        class: "MovementPruningModifier",
        keys: "params: [conv2.weight, fc.weight], init_sparsity: 0.0, final_sparsity: 0.6, start_epoch: 1, end_epoch: 4, \
               update_frequency: 0.5, inter_func: linear",
        also: "",
        check: movement,
    },
    Case {
        class: "GMPruningModifier",
        keys: "params: [conv2.weight, fc.weight], init_sparsity: 0.0, final_sparsity: 0.6, start_epoch: 1, end_epoch: 4, \
               update_frequency: 0.5, inter_func: linear, score_type: movement",
        also: "",
        check: movement,
    },
    Case {
        class: "RigLPruningModifier",
        keys: "params: __ALL_PRUNABLE__, final_sparsity: 0.6, start_epoch: 1, end_epoch: 4, update_frequency: 0.5, \
               num_grads: 2, init_update_fraction: 0.4",
        also: "",
        check: |lines, optimizer| rigl(lines, optimizer, true),
    },
    Case {
        class: "RigLPruningModifier",
        keys: "params: __ALL_PRUNABLE__, final_sparsity: 0.6, start_epoch: 1, end_epoch: 4, update_frequency: 0.5, \
               num_grads: 2, init_update_fraction: 0.4, sparsity_strategy: uniform, momentum_buffer_reset: False",
        also: "",
        check: |lines, optimizer| rigl(lines, optimizer, false),
    },
    Case {
        class: "TopKASTPruningModifier",
        keys: "params: [conv2.weight, fc.weight], forward_sparsity: 0.8, backward_sparsity: 0.5, start_epoch: 1, end_epoch: 4, \
               update_frequency: 0.5, active_weight_decay: 0.1",
        also: "",
        check: top_kast,
    },
    Case {
        class: "PowerpropagationModifier",
        keys: "params: [conv2.weight, fc.weight], alpha: 2.5, start_epoch: 1, end_epoch: 4",
        also: "",
        check: powerpropagation,
    },
];

/// Phases of one epoch: dense, compressed, dense, compressed, and the last, which would be dense, compressed too.
fn acdc(lines: &[&str], optimizer: Optimizer) {
    let training = Training::new(EPOCHS, lines, optimizer);
    let shapes: Vec<Vec<usize>> = ALL.iter().map(|name| training.shape(name)).collect();
    let mut phases = Vec::new();
    training.run(0, |seen| {
        let Seen::Event { event, step, before, after, .. } = seen else { return };
        match event.action {
            Action::ReleaseMasks { .. } => {
                assert!(after.masks.is_empty());
                phases.push((*step, "dense"));
            }
            Action::ResetMomentum => {
                assert!(before.momentum.values().flatten().any(|v| *v != 0.0));
                assert!(after.momentum.values().flatten().all(|v| *v == 0.0));
                phases.push((*step, "reset"));
            }
            _ => {
                let tensors: Vec<_> = ALL
                    .iter()
                    .zip(&shapes)
                    .map(|(name, shape)| (oracle::magnitudes(&before.weights[*name]), shape.clone(), 0.7))
                    .collect();
                let masks = oracle::masks(&tensors, Pattern::Single, true);
                ALL.iter().zip(masks).for_each(|(name, mask)| assert_eq!(after.masks[*name], mask, "{name}"));
                phases.push((*step, "compressed"));
            }
        }
    });
    let of = |phase: u64| {
        let step = phase * u64::from(STEPS_PER_EPOCH);
        match phase {
            0 => vec![(step, "dense")],
            2 => vec![(step, "dense"), (step, "reset")],
            _ => vec![(step, "compressed")],
        }
    };
    assert_eq!(phases, (0..=5).flat_map(of).collect::<Vec<_>>());
}

/// The weights with what is hidden behind their masks.
fn whole(weights: &Tensors, columns: &Tensors, masks: Option<&Vec<u8>>, name: &str) -> Vec<f32> {
    let mut w = weights[name].clone();
    if let (Some(hidden), Some(mask)) = (columns.get(&format!("hidden/{name}")), masks) {
        for i in (0..w.len()).filter(|&i| mask[i] == 0) {
            w[i] = hidden[i];
        }
    }
    w
}

/// Scores are the sums of -0.01 w dL/dw since the start, of masked weights too, which move on behind their masks.
fn movement(lines: &[&str], optimizer: Optimizer) {
    const NAMES: [&str; 2] = ["conv2.weight", "fc.weight"];
    let training = Training::new(EPOCHS, lines, optimizer);
    let shapes: Vec<Vec<usize>> = NAMES.iter().map(|name| training.shape(name)).collect();
    let mut scores: Vec<Vec<f32>> = shapes.iter().map(|s| vec![0.0; s.iter().product()]).collect();
    let (first, last) = (u64::from(STEPS_PER_EPOCH), 4 * u64::from(STEPS_PER_EPOCH));
    let (mut events, mut came_back, mut moved_hidden) = (0, 0, 0);
    let end = training.run(0, |seen| match seen {
        Seen::Event { event, step, before, after, .. } => {
            let Action::SetSparsity { .. } = event.action else { return };
            events += 1;
            let sparsity = 0.6 * (*step - first) as f64 / (last - first) as f64;
            let tensors: Vec<_> =
                scores.iter().zip(&shapes).map(|(s, shape)| (s.clone(), shape.clone(), sparsity)).collect();
            for (name, mask) in NAMES.iter().zip(oracle::masks(&tensors, Pattern::Single, false)) {
                assert_eq!(after.masks[*name], mask, "{lines:?} {name} at step {step}");
                // No value is lost by masking.
                let old = whole(&before.weights, &before.columns, before.masks.get(*name), name);
                let new = whole(&after.weights, &after.columns, after.masks.get(*name), name);
                assert_eq!(old, new, "{name} at step {step}");
                if let Some(old) = before.masks.get(*name) {
                    came_back += old.iter().zip(&mask).filter(|(old, new)| (**old, **new) == (0, 1)).count();
                }
            }
        }
        Seen::Step { step, before, after, gradient } if (first..last).contains(step) => {
            for (name, score) in NAMES.iter().zip(&mut scores) {
                let w = whole(&before.weights, &before.columns, before.masks.get(*name), name);
                for ((s, w), g) in score.iter_mut().zip(&w).zip(&gradient[*name]) {
                    *s += -0.01 * g * w;
                }
                let found = &after.columns[&format!("score/{name}")];
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * (1e-3 + b.abs());
                assert!(found.iter().zip(&*score).all(close), "{name} at step {step}");
                score.copy_from_slice(found); // so that rounding cannot decide about a mask
                let new = whole(&after.weights, &after.columns, after.masks.get(*name), name);
                let mask = &before.masks[*name];
                moved_hidden += (0..w.len()).filter(|&i| mask[i] == 0 && w[i] != new[i]).count();
            }
        }
        Seen::Step { .. } => {}
    });
    assert_eq!(events, 7);
    assert!(came_back > 0 && moved_hidden > 0, "{came_back} weights came back, {moved_hidden} moved hidden");
    let end = end.shot();
    assert!(end.columns.is_empty() && end.masks.len() == 2);
    assert_eq!(end.masks["conv2.weight"].iter().filter(|m| **m == 0).count(), oracle::count(SIZES[1], 0.6));
}

/// Drop the smallest open weights, grow as many by gradient. `kernel`: the densities of Erdős–Rényi with kernels, and the
/// momentum is reset; else uniform, and it is not.
fn rigl(lines: &[&str], optimizer: Optimizer, kernel: bool) {
    let training = Training::new(EPOCHS, lines, optimizer);
    let shapes: Vec<Vec<usize>> = ALL.iter().map(|name| training.shape(name)).collect();
    let ratio = |s: &Vec<usize>| {
        let (sum, product): (usize, usize) = (s.iter().sum(), s.iter().product());
        if kernel { sum as f64 / product as f64 } else { 1.0 }
    };
    let all: f64 = SIZES.iter().sum::<usize>() as f64;
    let norm = 0.4 * all / shapes.iter().zip(SIZES).map(|(s, n)| ratio(s) * n as f64).sum::<f64>();
    let sparsity: Vec<f64> = shapes.iter().map(|s| (1.0 - norm * ratio(s)).clamp(0.0, 1.0)).collect();
    let (first, last) = (u64::from(STEPS_PER_EPOCH), 4 * u64::from(STEPS_PER_EPOCH));
    let (mut updates, mut replaced) = (Vec::new(), 0);
    training.run(0, |seen| {
        let Seen::Event { event, step, before, after, gradients } = seen else { return };
        match event.action {
            Action::SetSparsity { sparsity: of_event, .. } => {
                assert_eq!(*step, first);
                let changed =
                    ALL.iter().position(|name| before.masks.get(*name) != after.masks.get(*name)).unwrap();
                assert!((of_event - sparsity[changed]).abs() < 1e-12);
                let w = oracle::magnitudes(&before.weights[ALL[changed]]);
                let mask = oracle::lowest(&w, oracle::count(w.len(), sparsity[changed]));
                assert_eq!(after.masks[ALL[changed]], mask);
            }
            Action::Rewire { .. } => {
                let part = (*step - first) as f64 / (last - first) as f64;
                let fraction = 0.4 / 2.0 * (1.0 + (PI * part).cos());
                assert_eq!(gradients.len(), 2);
                for name in ALL {
                    let (w, old) = (&before.weights[*name], &before.masks[*name]);
                    let open = old.iter().filter(|m| **m == 1).count();
                    let count = oracle::count(open, fraction);
                    // Masked weights rank last among those to drop.
                    let size: Vec<f32> = w
                        .iter()
                        .zip(old)
                        .map(|(w, m)| if *m == 1 { w.abs() } else { f32::INFINITY })
                        .collect();
                    let dropped = oracle::lowest(&size, count);
                    let sum = |i: usize| (gradients[0][*name][i] + gradients[1][*name][i]).abs();
                    let candidate = |i: usize| old[i] == 0 || dropped[i] == 0;
                    // Of those that are closed now, as many as have no more than `count - 1` others above them.
                    let grows = |i: usize| {
                        let above =
                            |j: usize| candidate(j) && (sum(j) > sum(i) || (sum(j) == sum(i) && j < i));
                        candidate(i) && (0..w.len()).filter(|&j| above(j)).count() < count
                    };
                    let mask: Vec<u8> = (0..w.len()).map(|i| u8::from(!candidate(i) || grows(i))).collect();
                    assert_eq!(after.masks[*name], mask, "{name} at step {step}");
                    let opened = (0..w.len()).filter(|&i| old[i] == 0 && mask[i] == 1);
                    replaced += opened.inspect(|&i| assert_eq!(after.weights[*name][i], 0.0)).count();
                }
                let resting = after.momentum.values().flatten().all(|v| *v == 0.0);
                assert_eq!(resting, kernel, "momentum at step {step}");
                updates.push(*step);
            }
            _ => panic!("{event:?}"),
        }
    });
    assert_eq!(updates, (first + 2..last).step_by(2).collect::<Vec<_>>());
    assert!(replaced > 20, "{replaced} weights were opened");
}

/// The forward mask keeps the largest fifth of both tensors, the backward mask moves the largest half; the rest rests.
fn top_kast(lines: &[&str], optimizer: Optimizer) {
    const NAMES: [&str; 2] = ["conv2.weight", "fc.weight"];
    let training = Training::new(EPOCHS, lines, optimizer);
    let shapes: Vec<Vec<usize>> = NAMES.iter().map(|name| training.shape(name)).collect();
    let (first, last) = (u64::from(STEPS_PER_EPOCH), 4 * u64::from(STEPS_PER_EPOCH));
    let (mut movable, mut came_back): (Vec<Vec<u8>>, usize) = (Vec::new(), 0);
    training.run(0, |seen| match seen {
        Seen::Event { event, step, before, after, .. } => {
            let Action::SetTwoMasks { .. } = event.action else { return };
            let tensors = |sparsity: f64| -> Vec<_> {
                let whole =
                    |name: &&str| whole(&before.weights, &before.columns, before.masks.get(*name), name);
                let scores = NAMES.iter().map(|name| oracle::magnitudes(&whole(name)));
                scores.zip(&shapes).map(|(s, shape)| (s, shape.clone(), sparsity)).collect()
            };
            let forward = oracle::masks(&tensors(0.8), Pattern::Single, true);
            movable = oracle::masks(&tensors(0.5), Pattern::Single, true);
            for (name, mask) in NAMES.iter().zip(&forward) {
                assert_eq!(after.masks[*name], *mask, "{name} at step {step}");
                if let Some(old) = before.masks.get(*name) {
                    came_back += old.iter().zip(mask).filter(|(old, new)| (**old, **new) == (0, 1)).count();
                }
            }
        }
        Seen::Step { step, before, after, gradient } if (first..last).contains(step) => {
            for (name, movable) in NAMES.iter().zip(&movable) {
                let old = whole(&before.weights, &before.columns, before.masks.get(*name), name);
                let new = whole(&after.weights, &after.columns, after.masks.get(*name), name);
                let mask = &before.masks[*name];
                for i in 0..old.len() {
                    assert!(movable[i] == 1 || old[i] == new[i], "{name}[{i}] rests, at step {step}");
                }
                // The first step of SGD from rest is the whole rule: decay apart from the optimiser, then -lr (g + 1e-3 w).
                let plain = matches!(optimizer, Optimizer::Sgd { .. });
                for i in (0..old.len()).filter(|&i| plain && movable[i] == 1) {
                    let momentum = before.momentum[*name][i];
                    let decay = 0.05 * 0.1 * if mask[i] == 1 { 1.0 } else { 1.0 / 0.8 };
                    let w = old[i] * (1.0 - decay);
                    let want = w - 0.05 * (0.9 * momentum + gradient[*name][i] + 1e-3 * w);
                    assert!(
                        (new[i] - want).abs() <= 1e-6 * (1.0 + want.abs()),
                        "{name}[{i}]: {} {want}",
                        new[i]
                    );
                }
            }
        }
        Seen::Step { .. } => {}
    });
    assert!(came_back > 0);
}

/// theta = sign(w) |w|^(1 / 2.5) takes an SGD step along dL/dw * 2.5 |theta|^1.5, then w = theta |theta|^1.5.
fn powerpropagation(lines: &[&str], optimizer: Optimizer) {
    let (first, last) = (u64::from(STEPS_PER_EPOCH), 4 * u64::from(STEPS_PER_EPOCH));
    let mut checked = 0;
    Training::new(EPOCHS, lines, optimizer).run(0, |seen| {
        let Seen::Step { step, before, after, gradient } = seen else { return };
        if !(first..last).contains(step) || !matches!(optimizer, Optimizer::Sgd { .. }) {
            return;
        }
        for name in ["conv2.weight", "fc.weight"] {
            for (i, &w) in before.weights[name].iter().enumerate() {
                let w = f64::from(w);
                let theta = w.signum() * w.abs().powf(0.4);
                let slope = f64::from(gradient[name][i]) * 2.5 * theta.abs().powf(1.5);
                let momentum = before.momentum.get(name).map_or(0.0, |m| f64::from(m[i]));
                let theta = theta - 0.05 * (0.9 * momentum + slope + 1e-3 * theta);
                let want = theta * theta.abs().powf(1.5);
                let found = f64::from(after.weights[name][i]);
                assert!((found - want).abs() <= 3e-6 * (1e-2 + want.abs()), "{name}[{i}]: {found} {want}");
                checked += 1;
            }
        }
    });
    assert!(checked > 0 || !matches!(optimizer, Optimizer::Sgd { .. }));
}
