//! Schedules against closed forms computed here by hand, independently of the compiler.

use lacuna_recipe::{Action, LayerRow, ParamRow, Recipe, Schedule, compile, parse, render};

fn model() -> Vec<ParamRow> {
    let row = |name: &str, prunable| ParamRow { name: name.to_owned(), shape: vec![8, 8], prunable };
    vec![row("a.weight", true), row("a.bias", false), row("b.weight", true), row("xb.weight", true)]
}

fn recipe(text: &str) -> Recipe {
    parse(text, "r.yaml", &[]).unwrap_or_else(|found| panic!("{}", render(&found)))
}

fn schedule(text: &str, steps_per_epoch: u32) -> Schedule {
    let layer = |name: &str| LayerRow {
        name: name.to_owned(),
        kind: "Linear".to_owned(),
        has_weight: true,
        removable: false,
        rectifies: false,
    };
    let layers = [layer("a"), layer("b")];
    compile(&recipe(text), &model(), &layers, steps_per_epoch)
        .unwrap_or_else(|found| panic!("{}", render(&found)))
}

fn pruning(keys: &str) -> String {
    format!(
        "modifiers:\n  - !EpochRangeModifier {{start_epoch: 0, end_epoch: 10}}\n  - !GMPruningModifier {{params: __ALL_PRUNABLE__, {keys}}}\n"
    )
}

fn sparsities(schedule: &Schedule) -> Vec<(u64, f64)> {
    let sparsity = |action| match action {
        Action::SetSparsity { sparsity, .. } => Some(sparsity),
        _ => None,
    };
    schedule.events.iter().filter_map(|event| Some((event.step, sparsity(event.action)?))).collect()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12 * (1.0 + b.abs())
}

#[test]
fn cubic_pruning_has_the_steps_and_values_of_its_formula() {
    let keys =
        "init_sparsity: 0.05, final_sparsity: 0.9, start_epoch: 1, end_epoch: 3, update_frequency: 0.5";
    let found = sparsities(&schedule(&pruning(keys), 100));
    let steps: Vec<u64> = found.iter().map(|&(step, _)| step).collect();
    assert_eq!(steps, [100, 150, 200, 250, 300]);
    for (step, sparsity) in found {
        let left = 1.0 - (step as f64 / 100.0 - 1.0) / 2.0;
        let expected = 0.9 + (0.05 - 0.9) * left * left * left;
        assert!(close(sparsity, expected), "{step}: {sparsity} is not {expected}");
    }
}

#[test]
fn linear_and_inverse_cubic_pruning_follow_their_formulas() {
    let keys = "init_sparsity: 0.2, final_sparsity: 0.8, start_epoch: 0, end_epoch: 4, update_frequency: 1";
    for (inter, curve) in
        [("linear", (|x| x) as fn(f64) -> f64), ("inverse_cubic", |x| 1.0 - (1.0 - x).powf(1.0 / 3.0))]
    {
        let text = pruning(&format!("{keys}, inter_func: {inter}"));
        for (step, sparsity) in sparsities(&schedule(&text, 7)) {
            assert!(close(sparsity, 0.2 + 0.6 * curve(step as f64 / 28.0)), "{inter} {step}: {sparsity}");
        }
    }
}

/// For many settings: starts at the start, ends at the end with exactly the final sparsity, never decreases, and has as
/// many updates as periods fit.
#[test]
fn pruning_schedules_are_monotone_and_complete() {
    let mut checked = 0;
    for steps_per_epoch in [1_u32, 3, 10, 469] {
        for (start, end) in [(0.0, 1.0), (0.5, 2.25), (2.0, 2.0), (1.0, 10.0)] {
            for frequency in ["-1", "0.01", "0.1", "0.3", "0.5", "7"] {
                let keys = format!(
                    "init_sparsity: 0.1, final_sparsity: 0.9, start_epoch: {start}, end_epoch: {end}, update_frequency: {frequency}"
                );
                let found = sparsities(&schedule(&pruning(&keys), steps_per_epoch));
                // The first step at or after an epoch, in integers: start, end and frequency are hundredths.
                let step =
                    |epoch: f64| ((epoch * 100.0).round() as u64 * u64::from(steps_per_epoch)).div_ceil(100);
                let (first, last) = (step(start), step(end));
                let period = if frequency == "-1" { 1 } else { step(frequency.parse().unwrap()).max(1) };
                let what = format!("{keys} at {steps_per_epoch} steps");
                assert_eq!(found[0].0, first, "{what}");
                assert_eq!(*found.last().unwrap(), (last, 0.9), "{what}");
                assert_eq!(found.len() as u64, (last - first).div_ceil(period) + 1, "{what}");
                assert!(found.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1), "{what}");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 96);
}

#[test]
fn learning_rates_follow_their_formulas_at_every_step() {
    let text = "modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 10}
  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 0.1, final_lr: 0.5, start_epoch: 1, end_epoch: 2}
  - !LearningRateFunctionModifier {lr_func: cosine, init_lr: 0.4, final_lr: 1e-2, start_epoch: 3, end_epoch: 5}
  - !LearningRateFunctionModifier {lr_func: cosine, init_lr: 0.1, final_lr: 0.2, start_epoch: 6, end_epoch: 7}
";
    let schedule = schedule(text, 8);
    assert_eq!(schedule.steps, 80);
    for step in 0..=80_u64 {
        let epoch = step as f64 / 8.0;
        let cosine =
            |from: f64, to: f64, x: f64| to + (from - to) * (1.0 + (std::f64::consts::PI * x).cos()) / 2.0;
        let expected = match step {
            0..8 => None,
            8..24 => Some(0.1 + 0.4 * (epoch - 1.0).min(1.0)),
            24..48 => Some(cosine(0.4, 0.01, ((epoch - 3.0) / 2.0).min(1.0))),
            _ => Some(cosine(0.1, 0.2, (epoch - 6.0).min(1.0))),
        };
        match (schedule.learning_rate(step), expected) {
            (None, None) => {}
            (Some(found), Some(expected)) => {
                assert!(close(found, expected), "{step}: {found} is not {expected}")
            }
            other => panic!("{step}: {other:?}"),
        }
    }
}

#[test]
fn schedulers_step_as_in_torch() {
    let class = |class: &str, kwargs: &str, end: i32| {
        let text = format!(
            "modifiers:\n  - !EpochRangeModifier {{start_epoch: 0, end_epoch: 9}}\n  - !LearningRateModifier {{lr_class: {class}, lr_kwargs: {kwargs}, init_lr: 0.5, start_epoch: 1, end_epoch: {end}}}\n"
        );
        schedule(&text, 4)
    };
    let rates = |schedule: &Schedule, steps: &[u64]| -> Vec<f64> {
        steps.iter().map(|&step| schedule.learning_rate(step).unwrap()).collect()
    };
    // StepLR and ExponentialLR drop after whole steps since the start at step 4.
    assert_eq!(
        rates(&class("StepLR", "{step_size: 1.5, gamma: 0.5}", -1), &[4, 9, 10, 15, 16]),
        [0.5, 0.5, 0.25, 0.25, 0.125]
    );
    assert_eq!(
        rates(&class("ExponentialLR", "{gamma: 0.5}", -1), &[4, 7, 8, 11, 12]),
        [0.5, 0.5, 0.25, 0.25, 0.125]
    );
    // Milestones are absolute epochs: 2 and 2.5 are steps 8 and 10.
    let multi = class("MultiStepLR", "{milestones: [2, 2.5], gamma: 0.5}", 4);
    assert_eq!(
        rates(&multi, &[4, 7, 8, 9, 10, 15, 16, 36]),
        [0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    );
    // At its end such a scheduler stops without another step: epoch 3 would be the third drop.
    let ended = class("StepLR", "{step_size: 1, gamma: 0.5}", 3);
    assert_eq!(rates(&ended, &[11, 12, 30]), [0.25, 0.25, 0.25]);
    // Warm restarts: a half cosine of 2 epochs, again from the top.
    let warm = class("CosineAnnealingWarmRestarts", "{lr_min: 0.1, cycle_epochs: 2}", -1);
    for step in 4..36_u64 {
        let inside = (step as f64 / 4.0 - 1.0) % 2.0;
        let expected = 0.1 + 0.4 * (1.0 + (std::f64::consts::PI * inside / 2.0).cos()) / 2.0;
        assert!(close(warm.learning_rate(step).unwrap(), expected), "{step}");
    }
}

/// SparseML: the rate reaches `final_lr` on the last step of each cycle, and a shorter last cycle does too.
#[test]
fn cyclic_linear_restarts_by_step() {
    let text = "modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 3}
  - !LearningRateFunctionModifier {lr_func: cyclic_linear, init_lr: 0.5, final_lr: 0.1, start_epoch: 0, end_epoch: 2.6, cycle_epochs: 1}
";
    let schedule = schedule(text, 5);
    let found: Vec<f64> = (0..=14).map(|step| schedule.learning_rate(step).unwrap()).collect();
    let expected = [0.5, 0.4, 0.3, 0.2, 0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.5, 0.3, 0.1, 0.1, 0.1];
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < 1e-9, "{step}: {found} is not {expected}");
    }
}

#[test]
fn events_of_one_step_go_by_end_then_start_then_place() {
    let text = "modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 4}
  - !SetWeightDecayModifier {weight_decay: 0.1, start_epoch: 2}
  - !GMPruningModifier {params: a.weight, init_sparsity: 0.1, final_sparsity: 0.5, start_epoch: 2, end_epoch: 4, update_frequency: 1}
  - !GMPruningModifier {params: b.weight, init_sparsity: 0.1, final_sparsity: 0.6, start_epoch: 1, end_epoch: 3, update_frequency: 1}
  - !SetLearningRateModifier {learning_rate: 0.1, start_epoch: 2}
";
    let schedule = schedule(text, 6);
    let at: Vec<u32> = schedule.events_at(12).iter().map(|event| event.modifier).collect();
    assert_eq!(at, [3, 2, 1, 4]);
    assert!(schedule.events_at(13).is_empty());
    assert!(schedule.events.windows(2).all(|pair| pair[0].step <= pair[1].step));
    let last = schedule.events_at(schedule.steps);
    assert_eq!(last.len(), 1, "the final mask of modifier 2 comes after the last step");
}

/// `re:` matches at the start of a name and need not reach its end, as Python's `re.match`.
#[test]
fn patterns_match_as_in_python() {
    let rows = |params: &str| -> Result<Vec<u32>, String> {
        let text = format!(
            "modifiers:\n  - !EpochRangeModifier {{start_epoch: 0, end_epoch: 1}}\n  - !TrainableParamsModifier {{params: {params}, trainable: False}}\n"
        );
        let schedule = compile(&recipe(&text), &model(), &[], 1).map_err(|found| render(&found))?;
        let Action::SetTrainable { params, .. } = schedule.events[0].action else { panic!() };
        Ok(schedule.params(params).to_vec())
    };
    assert_eq!(rows("'re:b'").unwrap(), [2]);
    assert_eq!(rows("'re:.*b'").unwrap(), [1, 2, 3]);
    assert_eq!(rows("'re:a|x'").unwrap(), [0, 1, 3]);
    assert_eq!(rows("['re:.*weight$', a.weight]").unwrap(), [0, 2, 3]);
    assert_eq!(rows("__ALL__").unwrap(), [0, 1, 2, 3]);
    assert_eq!(rows("__ALL_PRUNABLE__").unwrap(), [0, 2, 3]);
    assert!(
        rows("b.weigh")
            .unwrap_err()
            .contains("r.yaml:3:39: error: no parameter matches `b.weigh` (nearest: `b.weight`")
    );
}

#[test]
fn what_lies_after_the_end_is_left_out_with_a_warning() {
    let text = "modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 4}
  - !QuantizationModifier {start_epoch: 1, disable_quantization_observer_epoch: 5}
";
    let schedule = schedule(text, 6);
    assert_eq!(schedule.events.len(), 1);
    assert!(matches!(schedule.events[0].action, Action::StartQuantization(scheme) if scheme.layers.len == 2));
    assert_eq!(schedule.warnings.len(), 1);
    assert!(schedule.warnings[0].to_string().starts_with("r.yaml:3:5: warning: "));
}
