//! A modifier of your own: one row that says which keys a recipe may give, one function that changes weights, one test.
//!
//!     cargo run --release --example custom_modifier
//!     cargo test --release --example custom_modifier
//!
//! "Shrink and perturb" (Ash and Adams 2020, arXiv:1910.08475): now and then weights are made smaller and given a little
//! noise, so that a network that was trained on something else learns the new more readily. Nothing of the framework
//! changes: the recipe is checked, planned and resumed as with the modifiers that come along.

use lacuna::data::fashion_mnist;
use lacuna::models::find;
use lacuna::nn::layers::Init;
use lacuna::recipe::{Absent, KeyRow, ModifierRow, Status, Type, parse_with, render};
use lacuna::train::modifiers::{Custom, Moment};
use lacuna::train::run_folder::RunFolder;
use lacuna::train::trainer::Progress;
use lacuna::train::weights::Metadata;
use lacuna::train::{Fit, Teacher, TrainArgs, fit_with};
use std::error::Error;
use std::sync::Arc;

const fn key(name: &'static str, ty: Type, default: Absent) -> KeyRow {
    KeyRow { name, ty, default }
}

/// The row: what a recipe may say, and what holds where it says nothing.
const ROWS: &[ModifierRow] = &[ModifierRow {
    class: "ShrinkPerturbModifier",
    does: "makes weights smaller and adds noise to them, now and then",
    status: Status::Custom,
    keys: &[
        key("params", Type::Params, Absent::Required),
        key("shrink", Type::Between(0.0, 1.0), Absent::Float(0.4)),
        key("noise", Type::Between(0.0, 1.0), Absent::Float(0.01)),
        key("start_epoch", Type::Epoch, Absent::Required),
        key("end_epoch", Type::Epoch, Absent::Required),
        key("update_frequency", Type::Frequency, Absent::Float(1.0)),
    ],
}];

/// The function: what happens to one parameter at its start, every update and its end.
fn shrink_and_perturb(moment: &Moment<'_>, weights: &mut [f32]) {
    let (shrink, noise) = (moment.number("shrink") as f32, moment.number("noise") as f32);
    // A stream of the step and the parameter alone, so that a resumed training repeats it.
    let mut state =
        moment.param.bytes().fold(moment.step ^ 0x9e37_79b9, |h, b| h.wrapping_mul(31) ^ u64::from(b));
    for weight in weights {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let uniform = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
        *weight = shrink * *weight + noise * uniform;
    }
}

const RECIPE: &str = "
modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 3}
  - !SetLearningRateModifier {learning_rate: 0.05}
  - !ShrinkPerturbModifier
    params: ['re:layer[23].*weight']
    start_epoch: 1
    end_epoch: 2
    update_frequency: 0.5
";

fn main() -> Result<(), Box<dyn Error>> {
    let recipe = parse_with(RECIPE, "custom_modifier.rs", &[], ROWS).map_err(|found| render(&found))?;
    let (train, test, _) = fashion_mnist::load(None)?;
    let folder = RunFolder::create("runs".as_ref(), "custom_modifier", false)?;
    let args = TrainArgs { max_images: Some(2000), ..TrainArgs::default() };
    let row = find("resnet20").ok_or("resnet20 is a model")?;
    let net = (row.build)(&mut Init::new(&burn::tensor::Device::flex().autodiff(), 0));
    let mut report = |progress: Progress<'_>| match progress {
        Progress::Schedule { schedule, .. } => println!("{}", schedule.table()),
        Progress::Epoch(row) => {
            println!("epoch {}: loss {:.4}, top-1 {:.4}", row.epoch, row.loss, row.accuracy)
        }
        Progress::Step { .. } | Progress::Warning(_) => {}
    };
    let fit = Fit {
        args,
        recipe: &recipe,
        train: Arc::new(train.into()),
        test: &test.into(),
        folder: &folder,
        metadata: Metadata::new(),
        resume: false,
        report: &mut report,
    };
    let own = [Custom { class: "ShrinkPerturbModifier", apply: shrink_and_perturb }];
    fit_with(net, Teacher::Missing, &own, fit)?;
    println!("Run folder: {}", folder.path.display());
    Ok(())
}

/// The test: the recipe acts when it says, and the function does what the paper says.
#[test]
fn weights_shrink_and_move_a_little() {
    use lacuna::recipe::{Action, ParamRow, compile};
    let recipe = parse_with(RECIPE, "custom_modifier.rs", &[], ROWS).map_err(|f| render(&f)).unwrap();
    let param = |name: &str| ParamRow { name: name.to_owned(), shape: vec![8, 8], prunable: true };
    let schedule = compile(&recipe, &[param("layer1.weight"), param("layer2.weight")], &[], 10).unwrap();
    let acts = |event: &&lacuna::recipe::Event| matches!(event.action, Action::Custom { .. });
    let steps: Vec<u64> = schedule.events.iter().filter(acts).map(|event| event.step).collect();
    assert_eq!(steps, [10, 15, 20]);

    let numbers = [("shrink", 0.5), ("noise", 0.1)];
    let moment = Moment { step: 15, part: 0.5, param: "layer2.weight", numbers: &numbers };
    let mut weights: Vec<f32> = (0..1000).map(|i| i as f32 / 100.0).collect();
    shrink_and_perturb(&moment, &mut weights);
    let moved = |(i, w): (usize, &f32)| w - 0.5 * (i as f32 / 100.0);
    let noise: Vec<f32> = weights.iter().enumerate().map(moved).collect();
    assert!(noise.iter().all(|n| n.abs() <= 0.1001));
    let mean = noise.iter().sum::<f32>() / 1000.0;
    let deviation = (noise.iter().map(|n| n * n).sum::<f32>() / 1000.0).sqrt();
    assert!(mean.abs() < 0.01 && (deviation - 0.1 / 3f32.sqrt()).abs() < 0.005, "{mean}, {deviation}");
}
