//! Modifiers that change the loss, parameters' values, layers and rates, each over its whole schedule: a small model is
//! trained by the trainer, and again here in f64 by formulas worked out by hand; every step's loss and rate agree. Images
//! are *synthetic*.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use lacuna_data::{Augment, BatchSpec, Batches, ImageSet, Samples};
use lacuna_nn::layers::{Init, Linear};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Pass};
use lacuna_nn::{Classifier, Input};
use lacuna_train::run_folder::RunFolder;
use lacuna_train::weights::Metadata;
use lacuna_train::{Fit, Optimizer, Outcome, Teacher, TrainArgs, fit_with};
use std::sync::Arc;

const IN: usize = 4;
const OUT: usize = 3;
const BATCH: usize = 8;
const STEPS: usize = 4;
const EPOCHS: usize = 4;
const LR: f64 = 0.3;
const DECAY: f64 = 0.01;

/// Two linear layers; the first keeps the shape. Between them is a place with a threshold, which passes everything at 0.
#[derive(Module, Debug)]
struct Two {
    hidden: Linear,
    act: ActivationQuantizer,
    fc: Linear,
}

impl Two {
    fn new(seed: u64, device: &Device) -> Two {
        let init = &mut Init::new(device, seed);
        let act = ActivationQuantizer::behind_relu(device);
        Two { hidden: Linear::new(IN, IN, init), act, fc: Linear::new(IN, OUT, init) }
    }
}

impl Classifier for Two {
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        let x = x.into().images();
        let [n, c, h, w] = x.dims();
        let x = self.hidden.forward(&Activation::plain(x.reshape([n, c * h * w])), pass);
        self.fc.forward(&self.act.forward(x, pass), pass)
    }
}

fn set() -> ImageSet {
    let n = BATCH * STEPS;
    let images: Vec<u8> = (0..n * IN).map(|i| ((i * 7919 + i / 5 * 31) % 251) as u8).collect();
    ImageSet {
        images,
        labels: (0..n).map(|i| (i * 5 % OUT) as u8).collect(),
        h: 2,
        w: 2,
        c: 1,
        classes: ["a", "b", "c"].map(String::from).to_vec(),
        mean: vec![0.5],
        std: vec![0.3],
        mirror: true,
        boxes: None,
    }
}

/// Loss and rate of every step, as the trainer logs them, and all that it logs.
fn trained(modifiers: &str, teacher: Teacher<Two>) -> (Vec<[f64; 2]>, Vec<serde_json::Value>) {
    let (_, lines) = run(Two::new(1, &Device::flex().autodiff()), modifiers, teacher);
    let steps = lines.iter().filter(|line| !line["train/loss"].is_null() && !line["train/lr"].is_null());
    let steps: Vec<[f64; 2]> =
        steps.map(|line| ["train/loss", "train/lr"].map(|name| line[name].as_f64().unwrap())).collect();
    assert_eq!(steps.len(), STEPS * EPOCHS);
    (steps, lines)
}

fn run<M: Classifier>(net: M, modifiers: &str, teacher: Teacher<M>) -> (Outcome<M>, Vec<serde_json::Value>) {
    let text = format!(
        "modifiers:\n  - !EpochRangeModifier {{start_epoch: 0, end_epoch: {EPOCHS}}}\n{}",
        modifiers.lines().map(|line| format!("  {line}\n")).collect::<String>()
    );
    let recipe = lacuna_recipe::parse(&text, "r.yaml", &[])
        .unwrap_or_else(|found| panic!("{text}{}", lacuna_recipe::render(&found)));
    let folder = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(folder.path(), "run", false).unwrap();
    let set = Arc::new(Samples::from(set()));
    let args = TrainArgs {
        batch: BATCH,
        seed: 11,
        optimizer: Optimizer::Sgd { momentum: 0.0, nesterov: false },
        lr: LR,
        weight_decay: DECAY,
        max_images: None,
        augment: false,
        checkpoint_steps: 0,
    };
    let fit = Fit {
        args,
        recipe: &recipe,
        train: set.clone(),
        test: &set,
        folder: &folder,
        metadata: Metadata::new(),
        resume: false,
        report: &mut |_| {},
    };
    let outcome = fit_with(net, teacher, &[], fit).unwrap_or_else(|e| panic!("{text}{e}"));
    let lines = std::fs::read_to_string(folder.path.join("metrics.jsonl")).unwrap();
    (outcome, lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

// ---- the same by hand -------------------------------------------------------------------------------

type Matrix = Vec<Vec<f64>>;

/// Weights and biases of both layers, and of a projection of the logits.
#[derive(Clone)]
struct Hand {
    w1: Matrix,
    b1: Vec<f64>,
    w2: Matrix,
    b2: Vec<f64>,
    projection: Matrix,
}

/// What is different at a step.
#[derive(Clone)]
struct Rules {
    lr: f64,
    decay: f64,
    removed: bool,
    frozen: [bool; 4],
    /// Hardness, temperature, teacher.
    distil: Option<(f64, f64, Hand)>,
    /// Gain, normalise, project, teacher; epsilon is 0.001.
    features: Option<(f64, bool, bool, Hand)>,
    /// Alpha, function, of the outputs (of `fc`) instead of the inputs.
    penalty: Option<(f64, &'static str, bool)>,
    /// What is not above it does not pass.
    threshold: f64,
}

impl Default for Rules {
    fn default() -> Rules {
        let (distil, features, penalty) = (None, None, None);
        let threshold = f64::NEG_INFINITY;
        Rules {
            lr: LR,
            decay: DECAY,
            removed: false,
            frozen: [false; 4],
            distil,
            features,
            penalty,
            threshold,
        }
    }
}

fn times(w: &Matrix, x: &[f64]) -> Vec<f64> {
    w.iter().map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn plus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn softmax(z: &[f64], temperature: f64) -> Vec<f64> {
    let e: Vec<f64> = z.iter().map(|z| (z / temperature).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

impl Hand {
    fn of(net: &Two) -> Hand {
        let matrix = |t: Tensor<2>| -> Matrix {
            let [_, n] = t.dims();
            let values: Vec<f32> = t.into_data().try_to_vec().unwrap();
            values.chunks(n).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
        };
        let vector = |t: Tensor<1>| -> Vec<f64> {
            t.into_data().try_to_vec::<f32>().unwrap().iter().map(|&v| f64::from(v)).collect()
        };
        // The trainer's first projection: PyTorch's values, from a stream of its own.
        let projection = Init::new(&Device::flex(), 0).fan_in_uniform(OUT, [OUT, OUT]);
        Hand {
            w1: matrix(net.hidden.weight.val()),
            b1: vector(net.hidden.bias.val()),
            w2: matrix(net.fc.weight.val()),
            b2: vector(net.fc.bias.val()),
            projection: matrix(projection.val()),
        }
    }

    fn hidden(&self, x: &[f64], removed: bool) -> Vec<f64> {
        if removed { x.to_vec() } else { plus(&times(&self.w1, x), &self.b1) }
    }

    fn logits(&self, x: &[f64]) -> Vec<f64> {
        plus(&times(&self.w2, &self.hidden(x, false)), &self.b2)
    }

    /// Loss, and one step of SGD without momentum; decay acts on matrices.
    fn step(&mut self, x: &[Vec<f64>], y: &[usize], rules: &Rules) -> f64 {
        let n = x.len() as f64;
        let mut hidden: Vec<Vec<f64>> = x.iter().map(|x| self.hidden(x, rules.removed)).collect();
        let passes: Vec<Vec<bool>> =
            hidden.iter().map(|h| h.iter().map(|&h| h > rules.threshold).collect()).collect();
        for (h, passes) in hidden.iter_mut().flatten().zip(passes.iter().flatten()) {
            *h = if *passes { *h } else { 0.0 };
        }
        let z: Vec<Vec<f64>> = hidden.iter().map(|h| plus(&times(&self.w2, h), &self.b2)).collect();
        let mut loss = 0.0;
        let mut dz: Vec<Vec<f64>> = Vec::new();
        for (z, &y) in z.iter().zip(y) {
            let mut p = softmax(z, 1.0);
            loss -= p[y].ln() / n;
            p[y] -= 1.0;
            dz.push(p.iter().map(|p| p / n).collect());
        }
        let mut dh: Vec<Vec<f64>> = vec![vec![0.0; IN]; x.len()];
        let mut d_projection = vec![vec![0.0; OUT]; OUT];
        if let Some((hardness, t, teacher)) = &rules.distil {
            let mut divergence = 0.0;
            for (i, x) in x.iter().enumerate() {
                let (p, q) = (softmax(&teacher.logits(x), *t), softmax(&z[i], *t));
                divergence += p.iter().zip(&q).map(|(p, q)| p * (p.ln() - q.ln())).sum::<f64>() * t * t / n;
                for k in 0..OUT {
                    dz[i][k] = (1.0 - hardness) * dz[i][k] + hardness * t * (q[k] - p[k]) / n;
                }
            }
            loss = (1.0 - hardness) * loss + hardness * divergence;
        }
        if let Some((gain, normalize, project, teacher)) = &rules.features {
            let count = n * OUT as f64;
            let theirs: Vec<Vec<f64>> = x.iter().map(|x| teacher.logits(x)).collect();
            let size: f64 = theirs.iter().flatten().map(|t| t * t).sum::<f64>() / count;
            let by = gain / if *normalize { size + 0.001 } else { 1.0 };
            for i in 0..x.len() {
                let ours = if *project { times(&self.projection, &z[i]) } else { z[i].clone() };
                for k in 0..OUT {
                    let d = ours[k] - theirs[i][k];
                    loss += by * d * d / count;
                    let slope = 2.0 * by * d / count;
                    if *project {
                        for j in 0..OUT {
                            dz[i][j] += slope * self.projection[k][j];
                            d_projection[k][j] += slope * z[i][j];
                        }
                    } else {
                        dz[i][k] += slope;
                    }
                }
            }
        }
        if let Some((alpha, function, outputs)) = rules.penalty {
            let values = if outputs { &z } else { &hidden };
            let sum: f64 = values.iter().flatten().map(|v| v.abs()).sum();
            let squares: f64 = values.iter().flatten().map(|v| v * v).sum();
            let above: f64 = values.iter().flatten().map(|v| v.max(0.0)).sum();
            let (value, slope): (f64, Box<dyn Fn(f64) -> f64>) = match function {
                "l1" => (sum, Box::new(f64::signum)),
                "l2" => (squares, Box::new(|v| 2.0 * v)),
                "relu" => (above, Box::new(|v| if v > 0.0 { 1.0 } else { 0.0 })),
                _ => (
                    sum * sum / squares,
                    Box::new(move |v| {
                        2.0 * sum * v.signum() / squares - 2.0 * v * sum * sum / (squares * squares)
                    }),
                ),
            };
            loss += alpha * value / n;
            let to = if outputs { &mut dz } else { &mut dh };
            for (to, values) in to.iter_mut().zip(values) {
                to.iter_mut().zip(values).for_each(|(d, &v)| *d += alpha * slope(v) / n);
            }
        }
        let Rules { lr, decay, .. } = *rules;
        let (mut d_w1, mut d_b1) = (vec![vec![0.0; IN]; IN], vec![0.0; IN]);
        let (mut d_w2, mut d_b2) = (vec![vec![0.0; IN]; OUT], vec![0.0; OUT]);
        for i in 0..x.len() {
            for k in 0..OUT {
                d_b2[k] += dz[i][k];
                for j in 0..IN {
                    d_w2[k][j] += dz[i][k] * hidden[i][j];
                    dh[i][j] += dz[i][k] * self.w2[k][j];
                }
            }
            for k in (0..IN).filter(|&k| passes[i][k]) {
                d_b1[k] += dh[i][k];
                (0..IN).for_each(|j| d_w1[k][j] += dh[i][k] * x[i][j]);
            }
        }
        let matrix = |w: &mut Matrix, d: &Matrix| {
            w.iter_mut().zip(d).for_each(|(w, d)| {
                w.iter_mut().zip(d).for_each(|(w, d)| *w -= lr * (d + decay * *w));
            });
        };
        let vector = |b: &mut Vec<f64>, d: &Vec<f64>| b.iter_mut().zip(d).for_each(|(b, d)| *b -= lr * d);
        let still = |i: usize| rules.frozen[i] || (rules.removed && i < 2);
        if !still(0) {
            matrix(&mut self.w1, &d_w1);
        }
        if !still(1) {
            vector(&mut self.b1, &d_b1);
        }
        if !still(2) {
            matrix(&mut self.w2, &d_w2);
        }
        if !still(3) {
            vector(&mut self.b2, &d_b2);
        }
        if rules.features.as_ref().is_some_and(|features| features.2) {
            matrix(&mut self.projection, &d_projection);
        }
        loss
    }
}

/// Trains by the recipe and by hand and compares every step. `at(step, weights)` is what holds at a step, and may change
/// the weights before it.
fn compare(
    name: &str,
    modifiers: &str,
    teacher: Teacher<Two>,
    mut at: impl FnMut(usize, &mut Hand) -> Rules,
) {
    let (have, _) = trained(modifiers, teacher);
    let mut hand = Hand::of(&Two::new(1, &Device::flex()));
    let set = set();
    for step in 0..STEPS * EPOCHS {
        let spec = BatchSpec::train(BATCH, 11, (step / STEPS) as u64, Augment::NONE);
        let batch = Batches::new(&set, spec).unwrap().nth(step % STEPS).unwrap();
        let x: Vec<Vec<f64>> =
            batch.x.chunks(IN).map(|x| x.iter().map(|&v| f64::from(v)).collect()).collect();
        let y: Vec<usize> = batch.y.iter().map(|&y| y as usize).collect();
        let rules = at(step, &mut hand);
        let loss = hand.step(&x, &y, &rules);
        let [loss_there, lr_there] = have[step];
        assert!(
            (lr_there - rules.lr).abs() <= 1e-9,
            "{name}, step {step}: rate {lr_there}, not {}",
            rules.lr
        );
        let off = (loss_there - loss).abs();
        assert!(off <= 2e-5 * (1.0 + loss.abs()), "{name}, step {step}: loss {loss_there}, not {loss}");
    }
}

fn other() -> (Teacher<Two>, Hand) {
    let net = Two::new(99, &Device::flex());
    let hand = Hand::of(&net);
    (Teacher::Other(net, Pass::default()), hand)
}

/// Steps of epochs `from` to before `to`.
fn within(step: usize, from: f64, to: f64) -> bool {
    let epoch = step as f64 / STEPS as f64;
    epoch >= from && epoch < to
}

#[test]
fn distillation_from_another_network() {
    let (teacher, hand) = other();
    let recipe = "- !DistillationModifier {start_epoch: 0.5, end_epoch: 2.5, hardness: 0.7, temperature: 3.0, \
                  distill_output_keys: [logits]}";
    compare("distillation", recipe, teacher, |step, _| Rules {
        distil: within(step, 0.5, 2.5).then(|| (0.7, 3.0, hand.clone())),
        ..Rules::default()
    });
}

#[test]
fn distillation_from_itself_as_it_was_at_the_start() {
    let mut copy = None;
    compare(
        "self",
        "- !DistillationModifier {start_epoch: 1, end_epoch: -1}",
        Teacher::Itself,
        |step, hand| {
            if step == STEPS {
                copy = Some(hand.clone());
            }
            Rules { distil: copy.clone().map(|copy| (0.5, 2.0, copy)), ..Rules::default() }
        },
    );
}

#[test]
fn a_disabled_teacher_changes_nothing_and_a_missing_one_is_an_error() {
    let recipe = "- !DistillationModifier {hardness: 0.9}";
    compare("disabled", recipe, Teacher::Disabled, |_, _| Rules::default());
    let text = format!("modifiers:\n  - !EpochRangeModifier {{start_epoch: 0, end_epoch: 1}}\n  {recipe}\n");
    let recipe = lacuna_recipe::parse(&text, "r.yaml", &[]).unwrap();
    let schedule = lacuna_train::trainer::compile(&Two::new(1, &Device::flex()), &recipe, 4).unwrap();
    let error = lacuna_train::loss::Losses::<Two>::new(Teacher::Missing, &schedule).err().unwrap();
    assert!(error.to_string().contains("--teacher"), "{error}");
}

#[test]
fn distillation_of_features_with_and_without_projection() {
    for (normalize, project) in [(true, true), (false, true), (true, false), (false, false)] {
        let (teacher, hand) = other();
        let recipe = format!(
            "- !PerLayerDistillationModifier {{start_epoch: 0, end_epoch: 3, gain: 0.05, student_layer_names: [fc], \
             normalize: {normalize}, project_features: {project}, epsilon: 0.001}}"
        );
        compare(&recipe, &recipe, teacher, |step, _| Rules {
            features: within(step, 0.0, 3.0).then(|| (0.05, normalize, project, hand.clone())),
            ..Rules::default()
        });
    }
}

#[test]
fn penalties_on_activations() {
    for function in ["l1", "l2", "relu", "hs"] {
        for (side, outputs) in [("inp", false), ("out", true)] {
            let recipe = format!(
                "- !ASRegModifier {{start_epoch: 1, end_epoch: 3, layers: [fc], alpha: 0.05, reg_func: {function}, \
                 reg_tens: {side}}}"
            );
            compare(&recipe, &recipe, Teacher::Missing, |step, _| Rules {
                penalty: within(step, 1.0, 3.0).then_some((0.05, function, outputs)),
                ..Rules::default()
            });
        }
    }
}

#[test]
fn a_threshold_of_activations() {
    for (layers, threshold) in [("__ALL__", 0.3), ("[act]", 0.05), ("['re:a.*']", 0.7)] {
        let recipe = format!(
            "- !FATReLUModifier {{layers: {layers}, threshold: {threshold}, start_epoch: 0.5, end_epoch: 3}}"
        );
        compare(&recipe, &recipe, Teacher::Missing, |step, _| Rules {
            threshold: if within(step, 0.5, 3.0) { threshold } else { f64::NEG_INFINITY },
            ..Rules::default()
        });
    }
}

#[test]
fn a_layer_left_out_and_put_back() {
    let recipe = "- !LayerPruningModifier {start_epoch: 1, end_epoch: 2.5, layers: [hidden]}";
    compare("layer pruning", recipe, Teacher::Missing, |step, _| Rules {
        removed: within(step, 1.0, 2.5),
        ..Rules::default()
    });
}

#[test]
fn parameters_set_and_moved() {
    let recipe = "- !SetParamModifier {params: [fc.bias], val: [0.5, -0.25, 1.0], start_epoch: 1}\n\
                  - !GradualParamModifier {params: ['re:hidden.bias'], init_val: 0.0, final_val: 2.0, start_epoch: 0, \
                  end_epoch: 2, update_frequency: 0.5, inter_func: cubic}";
    compare("set", recipe, Teacher::Missing, |step, hand| {
        if step == STEPS {
            hand.b2 = vec![0.5, -0.25, 1.0];
        }
        if step <= 2 * STEPS && step % (STEPS / 2) == 0 {
            let left = 1.0 - step as f64 / (2 * STEPS) as f64;
            hand.b1 = vec![2.0 * (1.0 - left * left * left); IN];
        }
        Rules::default()
    });
}

#[test]
fn parameters_frozen_and_freed_again() {
    let recipe = "- !TrainableParamsModifier {params: ['re:hidden.*'], trainable: False, start_epoch: 0, end_epoch: 3}\n\
                  - !TrainableParamsModifier {params: [hidden.weight, nothing], params_strict: False, trainable: True, \
                  start_epoch: 1, end_epoch: 2}\n\
                  - !TrainableParamsModifier {params: [fc.bias], trainable: False, start_epoch: 2}";
    compare("trainable", recipe, Teacher::Missing, |step, _| {
        let hidden = within(step, 0.0, 3.0);
        // Freed from 1 to 2, then back to what it was before: frozen.
        let weight = hidden && !within(step, 1.0, 2.0);
        Rules { frozen: [weight, hidden, false, within(step, 2.0, 9.0)], ..Rules::default() }
    });
}

#[test]
fn weight_decay_is_set() {
    let recipe = "- !SetWeightDecayModifier {weight_decay: 0.2, start_epoch: 1.5}";
    compare("decay", recipe, Teacher::Missing, |step, _| Rules {
        decay: if within(step, 1.5, 9.0) { 0.2 } else { DECAY },
        ..Rules::default()
    });
}

#[test]
fn every_learning_rate_class_is_its_closed_form() {
    let epoch = |step: usize| step as f64 / STEPS as f64;
    type Curve = Box<dyn Fn(usize) -> f64>;
    let part = move |step: usize| (epoch(step) - 0.5) / 3.0;
    let cases: Vec<(&str, Curve)> = vec![
        ("!SetLearningRateModifier {learning_rate: 0.1, start_epoch: 1}", {
            Box::new(move |s| if epoch(s) < 1.0 { LR } else { 0.1 })
        }),
        (
            "!LearningRateFunctionModifier {lr_func: linear, init_lr: 0.4, final_lr: 0.1, start_epoch: 0.5, end_epoch: 3.5}",
            Box::new(move |s| match part(s) {
                p if p < 0.0 => LR,
                p => 0.4 + p.min(1.0) * (0.1 - 0.4),
            }),
        ),
        (
            "!LearningRateFunctionModifier {lr_func: cosine, init_lr: 0.4, final_lr: 0.1, start_epoch: 0.5, end_epoch: 3.5}",
            Box::new(move |s| match part(s) {
                p if p < 0.0 => LR,
                p => 0.1 + 0.15 * (1.0 + (std::f64::consts::PI * p.min(1.0)).cos()),
            }),
        ),
        (
            "!LearningRateFunctionModifier {lr_func: cyclic_linear, cycle_epochs: 2, init_lr: 0.4, final_lr: 0.05, \
             start_epoch: 0, end_epoch: 4}",
            Box::new(|s| 0.4 - 0.35 * (s % (2 * STEPS)) as f64 / (2 * STEPS - 1) as f64),
        ),
        (
            "!LearningRateModifier {lr_class: StepLR, lr_kwargs: {step_size: 1.5, gamma: 0.5}, init_lr: 0.4, start_epoch: 0}",
            Box::new(move |s| 0.4 * 0.5f64.powf((epoch(s) / 1.5).floor())),
        ),
        (
            "!LearningRateModifier {lr_class: MultiStepLR, lr_kwargs: {milestones: [1.25, 2.5], gamma: 0.1}, init_lr: 0.4, \
             start_epoch: 0}",
            Box::new(move |s| {
                0.4 * if epoch(s) >= 2.5 {
                    0.01
                } else if epoch(s) >= 1.25 {
                    0.1
                } else {
                    1.0
                }
            }),
        ),
        (
            "!LearningRateModifier {lr_class: ExponentialLR, lr_kwargs: {gamma: 0.7}, init_lr: 0.4, start_epoch: 0}",
            Box::new(|s| 0.4 * 0.7f64.powi((s / STEPS) as i32)),
        ),
        (
            "!LearningRateModifier {lr_class: CosineAnnealingWarmRestarts, lr_kwargs: {lr_min: 0.02, cycle_epochs: 1.5}, \
             init_lr: 0.4, start_epoch: 0}",
            Box::new(move |s| {
                let inside = epoch(s) % 1.5 / 1.5;
                0.02 + 0.19 * (1.0 + (std::f64::consts::PI * inside).cos())
            }),
        ),
    ];
    for (recipe, curve) in cases {
        compare(recipe, &format!("- {recipe}"), Teacher::Missing, |step, _| Rules {
            lr: curve(step),
            ..Rules::default()
        });
    }
}

#[test]
fn sparsity_is_logged_when_the_recipe_says() {
    let recipe = "- !SparsificationLoggingModifier {start_epoch: 1, end_epoch: 3, update_frequency: 0.5}\n\
                  - !SetParamModifier {params: [fc.weight], val: 0, start_epoch: 2}\n\
                  - !TrainableParamsModifier {params: [fc.weight], trainable: False, start_epoch: 2}\n\
                  - !QuantizationModifier {start_epoch: 2.5, ignore: [hidden]}";
    let (_, lines) = trained(recipe, Teacher::Missing);
    let of = |name: &str| -> Vec<(u64, f64)> {
        let values = lines.iter().filter(|line| !line[name].is_null());
        values.map(|line| (line["step"].as_u64().unwrap(), line[name].as_f64().unwrap())).collect()
    };
    // At step 8 sparsity is logged before the weights are set, at step 10 before quantisation begins.
    assert_eq!(of("ParamPruning/fc.weight"), [(4, 0.0), (6, 0.0), (8, 0.0), (10, 1.0), (12, 1.0)]);
    assert_eq!(of("ParamPruning/hidden.weight"), [4, 6, 8, 10, 12].map(|step| (step, 0.0)));
    assert_eq!(of("ParamQuantization/fc.weight"), [(4, 0.0), (6, 0.0), (8, 0.0), (10, 0.0), (12, 1.0)]);
    assert!(of("ParamQuantization/hidden.weight").iter().all(|&(_, v)| v == 0.0));
}

// ---- quantisation over its phases -------------------------------------------------------------------

#[derive(Module, Debug)]
struct Seen {
    image: ActivationQuantizer,
    fc: Linear,
}

impl Classifier for Seen {
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        let x = self.image.forward(x.into().images(), pass);
        let [n, c, h, w] = x.x.dims();
        self.fc.forward(&x.map(|x| x.reshape([n, c * h * w])), pass)
    }
}

/// Two calibration batches, then training steps until observers are switched off: the range is the moving average of
/// exactly those batches, and stays.
#[test]
fn quantisation_goes_through_its_phases() {
    let recipe = "- !QuantizationModifier {start_epoch: 1, disable_quantization_observer_epoch: 2.5, num_calibration_steps: 2, \
                  freeze_bn_stats_epoch: 3, scheme: {weights: {symmetric: true, num_bits: 6}}}\n\
                  - !TrainableParamsModifier {params: __ALL__, trainable: False}";
    let device = Device::flex().autodiff();
    let init = &mut Init::new(&device, 1);
    let net = Seen { image: ActivationQuantizer::new(&device), fc: Linear::new(IN, OUT, init) };
    let weights: Vec<f32> = net.fc.weight.val().into_data().try_to_vec().unwrap();
    let (outcome, _) = run(net, recipe, Teacher::Missing);
    assert_eq!(outcome.pass.quant, lacuna_nn::quant::Quant::Frozen);
    let set = set();
    let mut batches: Vec<Vec<f32>> =
        Batches::new(&set, BatchSpec::eval(BATCH)).unwrap().take(2).map(|batch| batch.x).collect();
    for step in STEPS..STEPS * 5 / 2 {
        let spec = BatchSpec::train(BATCH, 11, (step / STEPS) as u64, Augment::NONE);
        batches.push(Batches::new(&set, spec).unwrap().nth(step % STEPS).unwrap().x);
    }
    let mut range: Option<[f32; 2]> = None;
    for x in &batches {
        let seen = x.iter().fold([f32::INFINITY, f32::NEG_INFINITY], |[lo, hi], &v| [lo.min(v), hi.max(v)]);
        range = Some(match range {
            None => seen,
            Some(old) => [0, 1].map(|end| 0.99 * old[end] + 0.01 * seen[end]),
        });
    }
    let have: Vec<f32> = outcome.module.image.range.get().into_data().try_to_vec().unwrap();
    for (have, want) in have.iter().zip(range.unwrap()) {
        assert!((have - want).abs() <= 1e-6 * (1.0 + want.abs()), "{have} is not {want}");
    }
    // Frozen weights have one range, and one step of 6 bits for the whole tensor.
    let step: Vec<f32> = outcome.module.fc.weight_quantizer.step.get().into_data().try_to_vec().unwrap();
    let largest = weights.iter().fold(0f32, |m, w| m.max(w.abs()));
    assert!(step.iter().all(|s| (s - largest / 31.5).abs() <= 1e-6), "{step:?} of {largest}");
}

// ---- resuming ---------------------------------------------------------------------------------------

/// The weights at the end of a training that is stopped at `stop`, if given, and resumed from its last checkpoint.
fn weights_after(modifiers: &str, teacher: fn() -> Teacher<Two>, stop: Option<u64>) -> Vec<u8> {
    let text = format!(
        "modifiers:\n  - !EpochRangeModifier {{start_epoch: 0, end_epoch: {EPOCHS}}}\n{}",
        modifiers.lines().map(|line| format!("  {line}\n")).collect::<String>()
    );
    let recipe = lacuna_recipe::parse(&text, "r.yaml", &[]).unwrap();
    let place = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(place.path(), "run", false).unwrap();
    let set = Arc::new(Samples::from(set()));
    let train = |resume: bool, stop: Option<u64>| {
        let args = TrainArgs {
            batch: BATCH,
            seed: 11,
            optimizer: Optimizer::ADAM,
            lr: 0.02,
            weight_decay: DECAY,
            max_images: None,
            augment: false,
            checkpoint_steps: 3,
        };
        let mut report = |progress: lacuna_train::trainer::Progress<'_>| {
            if let lacuna_train::trainer::Progress::Step { step, .. } = progress {
                assert_ne!(Some(step), stop, "stopped on purpose");
            }
        };
        let fit = Fit {
            args,
            recipe: &recipe,
            train: set.clone(),
            test: &set,
            folder: &folder,
            metadata: Metadata::new(),
            resume,
            report: &mut report,
        };
        fit_with(Two::new(1, &Device::flex().autodiff()), teacher(), &[], fit)
    };
    if stop.is_some() {
        let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| train(false, stop)));
        assert!(stopped.is_err(), "{modifiers} ran through");
    }
    train(stop.is_some(), None).unwrap_or_else(|e| panic!("{modifiers}: {e}"));
    std::fs::read(folder.weights("last")).unwrap()
}

/// Teachers, projections and their moments, what was frozen, layers left out and schemes are all in the checkpoint.
#[test]
fn what_modifiers_remember_survives_a_stop() {
    let itself: fn() -> Teacher<Two> = || Teacher::Itself;
    let another: fn() -> Teacher<Two> = || Teacher::Other(Two::new(99, &Device::flex()), Pass::default());
    let cases = [
        ("- !DistillationModifier {start_epoch: 0.5, end_epoch: 3.5}", itself),
        ("- !PerLayerDistillationModifier {start_epoch: 0.5, end_epoch: 3.5, gain: 0.1}", another),
        (
            "- !ASRegModifier {start_epoch: 0, layers: __ALL__, alpha: [0.1, 0.2], layer_normalized: True}",
            itself,
        ),
        ("- !LayerPruningModifier {start_epoch: 1, end_epoch: 3, layers: __ALL__}", itself),
        ("- !FATReLUModifier {start_epoch: 1, end_epoch: 3, threshold: 0.2}", itself),
        (
            "- !TrainableParamsModifier {params: [fc.weight], trainable: False, start_epoch: 1, end_epoch: 3}",
            itself,
        ),
        (
            "- !QuantizationModifier {start_epoch: 1, disable_quantization_observer_epoch: 3, submodules: [fc], \
             weight_bits: 5}",
            itself,
        ),
    ];
    for (modifiers, teacher) in cases {
        let through = weights_after(modifiers, teacher, None);
        for stop in [2, 7, 11, 14] {
            assert!(
                through == weights_after(modifiers, teacher, Some(stop)),
                "{modifiers}, stopped at {stop}"
            );
        }
    }
}
