//! Masks that grow along a curve: GMPruning and its relatives, ConstantPruning.

use crate::harness::{STEPS_PER_EPOCH, Seen, Shot, Training};
use crate::oracle::{self, Pattern};
use crate::{Case, EPOCHS};
use lacuna_recipe::Action;
use lacuna_train::optimizer::Optimizer;

const ALL: &[&str] = &["conv1.weight", "conv2.weight", "conv3.weight", "fc.weight"];

/// What a case expects: which tensors, how sparse at an epoch, in which pattern.
struct Expected {
    names: &'static [&'static str],
    /// Epochs of the first and the last event, and between two.
    start: f64,
    end: f64,
    every: f64,
    /// Sparsity at the part x of the way, for each tensor; its own sparsity at the start is the second argument.
    sparsity: fn(f64, f64, &str) -> f64,
    pattern: Pattern,
    global: bool,
    leave_enabled: bool,
}

const PLAIN: Expected = Expected {
    names: ALL,
    start: 1.0,
    end: 4.0,
    every: 0.5,
    sparsity: |x, _, _| 0.05 + 0.75 * (1.0 - (1.0 - x) * (1.0 - x) * (1.0 - x)),
    pattern: Pattern::Single,
    global: false,
    leave_enabled: true,
};

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
        "GMPruningModifier",
        "params: __ALL_PRUNABLE__, init_sparsity: 0.05, final_sparsity: 0.8, start_epoch: 1, end_epoch: 4, update_frequency: 0.5",
        PLAIN
    ),
    case!(
        "GMPruningModifier",
        "params: ['re:conv.*weight'], init_sparsity: 0.1, final_sparsity: 0.7, start_epoch: 0, end_epoch: 3, \
         update_frequency: 1, inter_func: linear, mask_type: [2, 2], leave_enabled: False",
        Expected {
            names: &["conv1.weight", "conv2.weight", "conv3.weight"],
            start: 0.0,
            end: 3.0,
            every: 1.0,
            sparsity: |x, _, _| 0.1 + 0.6 * x,
            pattern: Pattern::Tile(2, 2),
            leave_enabled: false,
            ..PLAIN
        }
    ),
    case!(
        "GMPruningModifier",
        "params: [], init_sparsity: 0.05, final_sparsity: {0.5: [conv2.weight], 0.9: [conv1.weight, fc.weight]}, \
         start_epoch: 1, end_epoch: 3, update_frequency: -1, inter_func: inverse_cubic",
        Expected {
            names: &["conv1.weight", "conv2.weight", "fc.weight"],
            end: 3.0,
            every: 0.25,
            sparsity: |x, _, name| {
                let last = if name == "conv2.weight" { 0.5 } else { 0.9 };
                0.05 + (1.0 - (1.0 - x).powf(1.0 / 3.0)) * (last - 0.05)
            },
            ..PLAIN
        }
    ),
    case!(
        "GMPruningModifier",
        "params: __ALL_PRUNABLE__, init_sparsity: __FROM_PARAM__, final_sparsity: 0.8, start_epoch: 0, end_epoch: 3, \
         update_frequency: 0.5, inter_func: linear",
        Expected { start: 0.0, end: 3.0, sparsity: |x, own, _| own + x * (0.8 - own), ..PLAIN }
    ),
    case!(
        "GMPruningModifier",
        "params: [conv2.weight, conv3.weight], init_sparsity: 0.05, final_sparsity: 0.8, start_epoch: 1, end_epoch: 4, \
         update_frequency: 0.5, mask_type: [1, 4], global_sparsity: True",
        Expected {
            names: &["conv2.weight", "conv3.weight"],
            pattern: Pattern::Tile(1, 4),
            global: true,
            ..PLAIN
        }
    ),
    case!(
        "GMPruningModifier",
        "params: [conv2.weight, conv3.weight], init_sparsity: 0.05, final_sparsity: 0.8, start_epoch: 1, end_epoch: 4, \
         update_frequency: 0.5, mask_type: filter",
        Expected { names: &["conv2.weight", "conv3.weight"], pattern: Pattern::Filter, ..PLAIN }
    ),
    case!(
        "GMPruningModifier",
        "params: [conv2.weight, conv3.weight], init_sparsity: 0.05, final_sparsity: 0.8, start_epoch: 1, end_epoch: 4, \
         update_frequency: 0.5, mask_type: channel",
        Expected { names: &["conv2.weight", "conv3.weight"], pattern: Pattern::Channel, ..PLAIN }
    ),
    Case {
        class: "GMPruningModifier",
        keys: "params: [conv2.weight], init_sparsity: 0.5, final_sparsity: 0.5, start_epoch: 1, end_epoch: 2, \
               update_frequency: 0.5, mask_type: '2:4'",
        also: "",
        check: two_of_four,
    },
    case!(
        "MagnitudePruningModifier",
        "params: __ALL_PRUNABLE__, init_sparsity: 0.05, final_sparsity: 0.8, start_epoch: 1, end_epoch: 4, \
         update_frequency: 0.5, mask_type: block4",
        Expected { pattern: Pattern::Fours, ..PLAIN }
    ),
    case!(
        "GlobalMagnitudePruningModifier",
        "params: __ALL_PRUNABLE__, init_sparsity: 0.05, final_sparsity: 0.8, start_epoch: 1, end_epoch: 4, update_frequency: 0.5",
        Expected { global: true, ..PLAIN }
    ),
    Case {
        class: "ConstantPruningModifier",
        keys: "params: __ALL_PRUNABLE__, start_epoch: 1, end_epoch: 3",
        also: "",
        check: constant,
    },
];

/// Every fifth weight of conv1 and every second of fc is zero before the training.
fn training(lines: &[&str], optimizer: Optimizer) -> Training {
    Training::new(EPOCHS, lines, optimizer).with_weights(|name, w| {
        let each = match name {
            "conv1.weight" => 5,
            "fc.weight" => 2,
            _ => return,
        };
        w.iter_mut().step_by(each).for_each(|w| *w = 0.0);
    })
}

fn step(epoch: f64) -> u64 {
    (epoch * f64::from(STEPS_PER_EPOCH)).round() as u64
}

fn check(lines: &[&str], optimizer: Optimizer, expected: &Expected) {
    let training = training(lines, optimizer);
    let shapes: Vec<Vec<usize>> = expected.names.iter().map(|name| training.shape(name)).collect();
    let (schedule, trained) = (training.schedule.clone(), training.trained_names());
    let mut own: Vec<f64> = Vec::new();
    let mut masked_at: Vec<u64> = Vec::new();
    let (first, last, every) = (step(expected.start), step(expected.end), step(expected.every));
    let end = training.run(0, |seen| {
        let Seen::Event { event, step, before, after, .. } = seen else { return };
        let Action::SetSparsity { params, .. } = event.action else { return };
        if own.is_empty() {
            let zeros = |name: &&str| {
                let w = &before.weights[*name];
                w.iter().filter(|v| **v == 0.0).count() as f64 / w.len() as f64
            };
            own = expected.names.iter().map(zeros).collect();
        }
        let x = (*step - first) as f64 / (last - first) as f64;
        let tensors: Vec<(Vec<f32>, Vec<usize>, f64)> = (0..expected.names.len())
            .map(|i| {
                let name = expected.names[i];
                let sparsity = (expected.sparsity)(x, own[i], name);
                (oracle::magnitudes(&before.weights[name]), shapes[i].clone(), sparsity)
            })
            .collect();
        let masks = oracle::masks(&tensors, expected.pattern, expected.global);
        for (name, mask) in expected.names.iter().zip(&masks) {
            // A map of sparsities makes an event for each of its entries.
            if !schedule.params(params).iter().any(|&row| trained[row as usize] == **name) {
                continue;
            }
            assert!(
                after.masks[*name] == *mask,
                "{lines:?} {optimizer:?}: the mask of {name} at step {step}"
            );
            keeps_open_weights(before, after, name);
        }
        if masked_at.last() != Some(step) {
            masked_at.push(*step);
        }
    });
    let steps: Vec<u64> = (first..last).step_by(every as usize).chain([last]).collect();
    assert_eq!(masked_at, steps, "{lines:?}");
    let end = end.shot();
    for name in expected.names {
        let zeros = end.weights[*name].iter().filter(|w| **w == 0.0).count();
        assert_eq!(end.masks.contains_key(*name), expected.leave_enabled, "{lines:?} {name}");
        // Released weights have moved since.
        assert!(expected.leave_enabled || zeros == 0, "{lines:?} {name}: {zeros} zeros");
    }
}

/// An event of magnitude pruning changes no weight but those that it masks.
fn keeps_open_weights(before: &Shot, after: &Shot, name: &str) {
    let (before, now, mask) = (&before.weights[name], &after.weights[name], &after.masks[name]);
    assert!(before.iter().zip(now).zip(mask).all(|((b, n), m)| *m == 0 || b == n), "{name} changed");
}

/// Two of each four inputs are masked, the smaller ones.
fn two_of_four(lines: &[&str], optimizer: Optimizer) {
    training(lines, optimizer).run(0, |seen| {
        let Seen::Event { event, before, after, .. } = seen else { return };
        let Action::SetSparsity { .. } = event.action else { return };
        let (w, mask) = (&before.weights["conv2.weight"], &after.masks["conv2.weight"]);
        for places in oracle::groups(&[8, 8, 3, 3], Pattern::Fours) {
            let magnitude: Vec<f32> = places.iter().map(|&i| w[i].abs()).collect();
            let own: Vec<u8> = places.iter().map(|&i| mask[i]).collect();
            assert_eq!(own, oracle::lowest(&magnitude, 2));
        }
    });
}

/// The mask is where weights are not zero at the start, and is held to the end.
fn constant(lines: &[&str], optimizer: Optimizer) {
    let mut first: Option<Shot> = None;
    let end = training(lines, optimizer).run(0, |seen| match seen {
        Seen::Event { event, before, after, .. } if matches!(event.action, Action::FixMasks { .. }) => {
            for name in ALL {
                let open: Vec<u8> = before.weights[*name].iter().map(|w| u8::from(*w != 0.0)).collect();
                assert_eq!(after.masks[*name], open, "{name}");
            }
            first = Some((*after).clone());
        }
        Seen::Step { step: now, after, .. } if (step(1.0)..step(3.0)).contains(now) => {
            assert_eq!(after.masks, first.as_ref().unwrap().masks);
        }
        _ => {}
    });
    assert!(first.is_some_and(|shot| shot.masks["conv2.weight"].iter().all(|m| *m == 1)));
    assert!(end.shot().masks.is_empty());
}
