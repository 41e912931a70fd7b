//! Filters and channels by groups, and their removal. The groups of the small network, by hand: A is what conv1 and conv2 make
//! (their sum goes on) and what conv2 and conv3 read; B is what conv3 makes and fc reads.

use crate::harness::{STEPS_PER_EPOCH, Seen, Shot, Training};
use crate::oracle;
use crate::{Case, EPOCHS};
use lacuna_recipe::Action;
use lacuna_train::optimizer::Optimizer;

pub const CASES: &[Case] = &[
    Case {
        class: "StructuredPruningModifier",
        keys: "init_sparsity: 0.1, final_sparsity: 0.5, start_epoch: 1, end_epoch: 4, update_frequency: 0.5, inter_func: linear",
        also: "",
        check: filters,
    },
    Case {
        class: "StructuredPruningModifier",
        keys: "init_sparsity: 0.1, final_sparsity: 0.5, start_epoch: 1, end_epoch: 4, update_frequency: 0.5, inter_func: linear, \
               mask_type: channel, params: __ALL_PRUNABLE__",
        also: "",
        check: channels,
    },
    Case {
        class: "LayerThinningModifier",
        keys: "start_epoch: 4",
        also: "!StructuredPruningModifier {init_sparsity: 0.1, final_sparsity: 0.5, start_epoch: 1, end_epoch: 4, \
               update_frequency: 0.5}",
        check: thinning,
    },
    // Removed while masks still grow: what is gone counts as zero.
    Case {
        class: "LayerThinningModifier",
        keys: "start_epoch: 2, update_epochs: [3, 5]",
        also: "!StructuredPruningModifier {init_sparsity: 0.1, final_sparsity: 0.5, start_epoch: 1, end_epoch: 4, \
               update_frequency: 0.5}",
        check: thinning_in_steps,
    },
];

/// (name, side along the axis) and all the places of each side of a tensor [outputs, inputs, positions].
fn filter(i: usize, inputs: usize, positions: usize) -> usize {
    i / (inputs * positions)
}

fn input(i: usize, inputs: usize, positions: usize) -> usize {
    i / positions % inputs
}

/// Length of each slice of `w`, which `slice` numbers.
fn lengths(w: &[f32], n: usize, slice: impl Fn(usize) -> usize) -> Vec<f64> {
    let mut sums = vec![0.0; n];
    w.iter().enumerate().for_each(|(i, w)| sums[slice(i)] += f64::from(*w) * f64::from(*w));
    sums.into_iter().map(f64::sqrt).collect()
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| (a + b) as f32).collect()
}

fn sparsity(step: u64) -> f64 {
    0.1 + 0.4 * (step - u64::from(STEPS_PER_EPOCH)) as f64 / f64::from(3 * STEPS_PER_EPOCH)
}

fn filters(lines: &[&str], optimizer: Optimizer) {
    let mut events = 0;
    Training::new(EPOCHS, lines, optimizer).run(0, |seen| {
        let Seen::Event { event, step, before, after, .. } = seen else { return };
        let Action::SetSparsity { .. } = event.action else { return };
        let w = |name: &str| &before.weights[name];
        let a = lengths(w("conv1.weight"), 8, |i| filter(i, 2, 9));
        let a = sum(&a, &lengths(w("conv2.weight"), 8, |i| filter(i, 8, 9)));
        let b = sum(&lengths(w("conv3.weight"), 6, |i| filter(i, 8, 9)), &[0.0; 6]);
        let a = oracle::lowest(&a, oracle::count(8, sparsity(*step)));
        let b = oracle::lowest(&b, oracle::count(6, sparsity(*step)));
        for (name, open, each) in [
            ("conv1.weight", &a, 18),
            ("bn1.weight", &a, 1),
            ("bn1.bias", &a, 1),
            ("conv2.weight", &a, 72),
            ("bn2.weight", &a, 1),
            ("bn2.bias", &a, 1),
            ("conv3.weight", &b, 72),
            ("bn3.weight", &b, 1),
            ("bn3.bias", &b, 1),
        ] {
            let mask: Vec<u8> = (0..open.len() * each).map(|i| open[i / each]).collect();
            assert_eq!(after.masks[name], mask, "{name} at step {step}");
            assert!(after.weights[name].iter().zip(&mask).all(|(w, m)| *m == 1 || w.to_bits() == 0));
        }
        // The classes of the result stay.
        assert!(!after.masks.contains_key("fc.weight"));
        events += 1;
    });
    assert_eq!(events, 7);
}

fn channels(lines: &[&str], optimizer: Optimizer) {
    let mut events = 0;
    Training::new(EPOCHS, lines, optimizer).run(0, |seen| {
        let Seen::Event { event, step, before, after, .. } = seen else { return };
        let Action::SetSparsity { .. } = event.action else { return };
        let w = |name: &str| &before.weights[name];
        let a = lengths(w("conv2.weight"), 8, |i| input(i, 8, 9));
        let a = sum(&a, &lengths(w("conv3.weight"), 8, |i| input(i, 8, 9)));
        let b = sum(&lengths(w("fc.weight"), 6, |i| input(i, 6, 1)), &[0.0; 6]);
        let a = oracle::lowest(&a, oracle::count(8, sparsity(*step)));
        let b = oracle::lowest(&b, oracle::count(6, sparsity(*step)));
        for (name, open, positions) in
            [("conv2.weight", &a, 9), ("conv3.weight", &a, 9), ("fc.weight", &b, 1)]
        {
            let mask: Vec<u8> = (0..w(name).len()).map(|i| open[input(i, open.len(), positions)]).collect();
            assert_eq!(after.masks[name], mask, "{name} at step {step}");
        }
        // The images' channels stay.
        assert!(!after.masks.contains_key("conv1.weight"));
        events += 1;
    });
    assert_eq!(events, 7);
}

/// What stays of each tensor of the network when the channels `a` and `b` do: (name, per place whether it stays).
fn places(a: &[bool], b: &[bool]) -> Vec<(&'static str, Vec<bool>)> {
    let (na, nb) = (a.len(), b.len());
    let all = |n: usize, stays: &dyn Fn(usize) -> bool| (0..n).map(stays).collect::<Vec<bool>>();
    vec![
        ("conv1.weight", all(na * 18, &|i| a[i / 18])),
        ("bn1.weight", a.to_vec()),
        ("bn1.bias", a.to_vec()),
        ("bn1.running_mean", a.to_vec()),
        ("bn1.running_var", a.to_vec()),
        ("conv2.weight", all(na * na * 9, &|i| a[i / (na * 9)] && a[i / 9 % na])),
        ("bn2.weight", a.to_vec()),
        ("bn2.running_var", a.to_vec()),
        ("conv3.weight", all(nb * na * 9, &|i| b[i / (na * 9)] && a[i / 9 % na])),
        ("bn3.bias", b.to_vec()),
        ("fc.weight", all(3 * nb, &|i| b[i % nb])),
        ("fc.bias", vec![true; 3]),
    ]
}

/// One removal: each tensor is what stays of it, momentum too, and the results are the same.
fn check_removal(before: &Shot, after: &Shot, left: [usize; 2]) {
    let in_use = |name: &str, n: usize| -> Vec<bool> {
        let w = &before.weights[name];
        let each = w.len() / n;
        (0..n).map(|c| w[c * each..(c + 1) * each].iter().any(|w| *w != 0.0)).collect()
    };
    let n = |name: &str| before.weights[name].len();
    let (a, b) = (in_use("conv1.weight", n("bn1.bias")), in_use("conv3.weight", n("bn3.bias")));
    let count = |used: &[bool]| used.iter().filter(|u| **u).count();
    assert_eq!([count(&a), count(&b)], left);
    let kept = |values: &[f32], stays: &[bool]| -> Vec<f32> {
        values.iter().zip(stays).filter(|(_, stays)| **stays).map(|(v, _)| *v).collect()
    };
    for (name, stays) in places(&a, &b) {
        assert_eq!(after.weights[name], kept(&before.weights[name], &stays), "{name}");
        if let Some(momentum) = before.momentum.get(name) {
            assert_eq!(after.momentum[name], kept(momentum, &stays), "momentum of {name}");
        }
    }
    for (before, after) in before.logits.iter().zip(&after.logits) {
        assert!((before - after).abs() <= 1e-5 * (1.0 + before.abs()), "logits {before} {after}");
    }
}

fn thinning(lines: &[&str], optimizer: Optimizer) {
    let mut removals = 0;
    let end = Training::new(EPOCHS, lines, optimizer).run(0, |seen| {
        let Seen::Event { event, step, before, after, .. } = seen else { return };
        let Action::Thin { .. } = event.action else { return };
        assert_eq!(*step, 4 * u64::from(STEPS_PER_EPOCH));
        check_removal(before, after, [4, 3]);
        assert!(after.masks.is_empty(), "nothing is left to mask");
        removals += 1;
    });
    assert_eq!(removals, 1);
    assert_eq!(end.shape("conv2.weight"), [4, 4, 3, 3]);
    assert_eq!(end.shape("fc.weight"), [3, 3]);
    assert!(end.shot().weights["conv2.weight"].iter().all(|w| *w != 0.0));
}

/// At epochs 2, 3 and 5 of a cubic curve from 1 to 4: its thirds.
fn thinning_in_steps(lines: &[&str], optimizer: Optimizer) {
    let curve = |x: f64| 0.1 + 0.4 * (1.0 - (1.0 - x).powi(3));
    let left = |x: f64| [8, 6].map(|n| n - oracle::count(n, curve(x)));
    let expected = [left(1.0 / 3.0), left(2.0 / 3.0), left(1.0)];
    let mut removals = 0;
    let end = Training::new(EPOCHS, lines, optimizer).run(0, |seen| {
        let Seen::Event { event, before, after, .. } = seen else { return };
        let Action::Thin { .. } = event.action else { return };
        check_removal(before, after, expected[removals]);
        removals += 1;
    });
    assert_eq!(removals, 3);
    assert_eq!(end.shape("conv3.weight"), [3, 4, 3, 3]);
}
