//! The training loop. One function, [`fit`], runs a compiled schedule over a data set; everything it needs to go on
//! after a kill is in its checkpoints: weights, velocities, masks, the state of the recipe and the offsets of the logs.
//! Batches are a pure function of seed, epoch and position, so nothing of the data has to be saved.

use crate::checkpoint::{self, Checkpoint};
use crate::error::{Error, Result};
use crate::logs::{LogOffsets, Logs};
use crate::run_folder::RunFolder;
use crate::state::{State, quantizable_layers, recipe_rows};
use crate::weights::{self, Metadata};
use burn::module::Module;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use lacuna_data::{Augment, BatchSpec, Batches, ImageSet, Prefetch, metrics};
use lacuna_nn::Classifier;
use lacuna_nn::params::ParamTable;
use lacuna_nn::quant::{Norm, Pass, Quant};
use lacuna_recipe::{Action, Recipe, Schedule};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// What a training is told besides its model, data and recipe.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct TrainArgs {
    pub batch: usize,
    pub seed: u64,
    pub momentum: f64,
    /// Used until the recipe sets one.
    pub lr: f64,
    pub weight_decay: f64,
    /// Images per epoch, if fewer than the set has.
    pub max_images: Option<usize>,
    /// Augment training images (flip, shift by two pixels).
    pub augment: bool,
    /// Steps between checkpoints; one is written at every epoch's end too.
    pub checkpoint_steps: u64,
}

impl Default for TrainArgs {
    fn default() -> Self {
        TrainArgs {
            batch: 64,
            seed: 0,
            momentum: 0.9,
            lr: 0.1,
            weight_decay: 0.0,
            max_images: None,
            augment: true,
            checkpoint_steps: 500,
        }
    }
}

impl TrainArgs {
    fn batches(&self, epoch: u64) -> BatchSpec {
        let augment = if self.augment { Augment::SMALL } else { Augment::NONE };
        BatchSpec { max_images: self.max_images, ..BatchSpec::train(self.batch, self.seed, epoch, augment) }
    }

    pub fn steps_per_epoch(&self, train: &ImageSet) -> u32 {
        u32::try_from(self.batches(0).batches(train)).unwrap_or(u32::MAX)
    }
}

/// One training: what [`fit`] runs.
pub struct Fit<'a> {
    pub args: TrainArgs,
    pub recipe: &'a Recipe,
    pub train: Arc<ImageSet>,
    pub test: &'a ImageSet,
    pub folder: &'a RunFolder,
    /// Goes into every file of weights.
    pub metadata: Metadata,
    /// Continue from the newest checkpoint of the folder.
    pub resume: bool,
    /// Told about progress.
    pub report: &'a mut dyn FnMut(Progress<'_>),
}

/// What a training tells as it goes.
pub enum Progress<'a> {
    /// Before the first step: the compiled schedule and where it starts.
    Schedule {
        schedule: &'a Schedule,
        first_step: u64,
    },
    Step {
        step: u64,
        steps: u64,
        loss: f32,
        lr: f64,
    },
    Epoch(&'a EpochRow),
    Warning(String),
}

/// One line of `results.csv`.
#[derive(Clone, Debug, PartialEq)]
pub struct EpochRow {
    pub epoch: u64,
    pub loss: f64,
    pub lr: f64,
    pub accuracy: f64,
    /// Share of exact zeros among the prunable weights.
    pub sparsity: f64,
    pub quant: Quant,
}

/// What a training ends with.
pub struct Outcome<M> {
    /// On the device without autodiff.
    pub module: M,
    pub pass: Pass,
    pub accuracy: f64,
    pub best_accuracy: f64,
}

/// The part of a checkpoint that is not tensors.
#[derive(Serialize, Deserialize)]
struct SavedState {
    step: u64,
    args: TrainArgs,
    recipe: String,
    quant: String,
    norm_frozen: bool,
    weight_decay: f64,
    trainable: Vec<bool>,
    loss_sum: f64,
    loss_count: u64,
    best: Option<f64>,
    logs: LogOffsets,
}

const QUANT_NAMES: [(Quant, &str); 3] =
    [(Quant::Off, "off"), (Quant::Observe, "observe"), (Quant::Frozen, "frozen")];

/// The name of a quantisation phase in files.
pub fn quant_name(quant: Quant) -> &'static str {
    QUANT_NAMES.iter().find(|(q, _)| *q == quant).map_or("off", |(_, name)| name)
}

/// The phase of that name.
pub fn quant_from_name(name: &str) -> Option<Quant> {
    QUANT_NAMES.iter().find(|(_, n)| *n == name).map(|(q, _)| *q)
}

/// Compiles a recipe for a module.
pub fn compile<M: Module>(module: &M, recipe: &Recipe, steps_per_epoch: u32) -> Result<Schedule> {
    let table = ParamTable::of(module);
    Ok(lacuna_recipe::compile(recipe, &recipe_rows(&table), &quantizable_layers(&table), steps_per_epoch)?)
}

/// Trains `module` (on an autodiff device) to the end of the recipe.
///
/// Writes into the folder: `results.csv`, `metrics.jsonl`, a TensorBoard file, `weights/best|last`,
/// `weights/pruned` as they were before quantisation began, and checkpoints.
pub fn fit<M: Classifier>(mut module: M, fit: Fit<'_>) -> Result<Outcome<M>> {
    let Fit { args, recipe, train, test, folder, metadata, resume, report } = fit;
    let steps_per_epoch = args.steps_per_epoch(&train);
    let schedule = compile(&module, recipe, steps_per_epoch)?;
    let device = module.devices().first().cloned().unwrap_or_default().autodiff();
    let mut state = State::new(&module, args.weight_decay);
    let (mut step, mut loss_sum, mut loss_count, mut best) = (0u64, 0f64, 0u64, None::<f64>);
    let mut logs;
    match checkpoint_to_resume(resume, folder)? {
        Some(saved) => {
            for warning in &saved.warnings {
                report(Progress::Warning(warning.clone()));
            }
            let s: SavedState = serde_json::from_value(saved.state.clone())
                .map_err(|e| Error::Resume(format!("{}: {e}", saved.path.display())))?;
            if s.args != args || s.recipe != recipe.text {
                return Err(Error::Resume(format!(
                    "{} was made with other arguments or another recipe; resume with the folder's own",
                    saved.path.display()
                )));
            }
            module = weights::put(module, saved.file("model")?).map_err(Error::Weights)?;
            state.restore(saved.file("optimizer")?, saved.file("masks")?)?;
            if s.trainable.len() == state.trainable.len() {
                state.trainable = s.trainable;
            }
            state.weight_decay = s.weight_decay;
            state.pass = Pass {
                quant: quant_from_name(&s.quant).unwrap_or_default(),
                norm: if s.norm_frozen { Norm::Frozen } else { Norm::Batch },
            };
            (step, loss_sum, loss_count, best) = (s.step, s.loss_sum, s.loss_count, s.best);
            logs = Logs::resume(&folder.path, &s.logs)?;
        }
        None => {
            checkpoint::clear(&folder.path)?;
            logs = Logs::create(&folder.path)?;
        }
    }
    report(Progress::Schedule { schedule: &schedule, first_step: step });

    let mut accuracy = f64::NAN;
    while step < schedule.steps {
        let (epoch, at) = (step / steps_per_epoch as u64, step % steps_per_epoch as u64);
        let mut batches = Prefetch::new(train.clone(), args.batches(epoch), at as usize)?;
        while let Some(batch) = batches.next() {
            for event in schedule.events_at(step) {
                if matches!(event.action, Action::StartQuantization(_)) {
                    weights::save(&module, &folder.weights("pruned"), &described(&metadata, &state.pass))?;
                }
                let changed;
                (module, changed) = state.apply(module, &schedule, &event.action)?;
                if changed {
                    best = None;
                }
            }
            let lr = schedule.learning_rate(step).unwrap_or(args.lr);
            let loss = loss_of(&module, &batch.x, &batch.y, batch.dims, &state.pass, &device);
            let value: f32 = loss.clone().into_scalar();
            if !value.is_finite() {
                return Err(Error::Diverged { step, loss: value });
            }
            module = state.sgd_step(module, &loss.backward(), lr, args.momentum);
            batches.recycle(batch);
            loss_sum += value as f64;
            loss_count += 1;
            step += 1;
            logs.scalars(step, &[("train/loss", value as f64), ("train/lr", lr)])?;
            report(Progress::Step { step, steps: schedule.steps, loss: value, lr });

            let epoch_ends = step.is_multiple_of(steps_per_epoch as u64);
            if step == schedule.steps {
                for event in schedule.events_at(step) {
                    (module, _) = state.apply(module, &schedule, &event.action)?;
                }
            }
            if epoch_ends {
                let valid = module.valid();
                accuracy = evaluate(&valid, test, &state.pass)?;
                let loss = loss_sum / loss_count.max(1) as f64;
                let sparsity = sparsity_of(&module, &state);
                let row =
                    EpochRow { epoch: epoch + 1, loss, lr, accuracy, sparsity, quant: state.pass.quant };
                let values = [
                    ("epoch", row.epoch as f64),
                    ("train/loss", row.loss),
                    ("train/lr", row.lr),
                    ("metrics/accuracy_top1", row.accuracy),
                    ("sparsity", row.sparsity),
                ];
                logs.epoch(&values)?;
                logs.scalars(step, &values[3..])?;
                report(Progress::Epoch(&row));
                (loss_sum, loss_count) = (0.0, 0);
                if best.is_none_or(|b| accuracy > b) {
                    best = Some(accuracy);
                    weights::save(&valid, &folder.weights("best"), &described(&metadata, &state.pass))?;
                }
                weights::save(&valid, &folder.weights("last"), &described(&metadata, &state.pass))?;
            }
            if epoch_ends || (args.checkpoint_steps > 0 && step.is_multiple_of(args.checkpoint_steps)) {
                let saved = SavedState {
                    step,
                    args: args.clone(),
                    recipe: recipe.text.clone(),
                    quant: quant_name(state.pass.quant).into(),
                    norm_frozen: state.pass.norm == Norm::Frozen,
                    weight_decay: state.weight_decay,
                    trainable: state.trainable.clone(),
                    loss_sum,
                    loss_count,
                    best,
                    logs: logs.sync()?,
                };
                save_checkpoint(folder, &module, &state, &saved)?;
            }
        }
    }
    logs.flush()?;
    let module = module.valid();
    if accuracy.is_nan() {
        accuracy = evaluate(&module, test, &state.pass)?;
    }
    Ok(Outcome { module, pass: state.pass, accuracy, best_accuracy: best.unwrap_or(accuracy) })
}

fn checkpoint_to_resume(resume: bool, folder: &RunFolder) -> Result<Option<Checkpoint>> {
    Ok(if resume { checkpoint::load_latest(&folder.path)? } else { None })
}

fn save_checkpoint<M: Module>(
    folder: &RunFolder,
    module: &M,
    state: &State,
    saved: &SavedState,
) -> Result<()> {
    let model = weights::tensors(module, &state.params);
    let files: [(&str, &[_]); 3] =
        [("model", &model), ("optimizer", &state.momentum_tensors()), ("masks", &state.mask_tensors())];
    let json = serde_json::to_value(saved).map_err(|e| Error::Resume(e.to_string()))?;
    checkpoint::save(&folder.path, saved.step, &files, &json)?;
    Ok(())
}

/// Metadata of weights: how they were made, and how to run them.
fn described(metadata: &Metadata, pass: &Pass) -> Metadata {
    let mut metadata = metadata.clone();
    metadata.insert("lacuna.quant".into(), quant_name(pass.quant).into());
    metadata
}

/// Share of exact zeros among prunable weights.
fn sparsity_of<M: Module>(module: &M, state: &State) -> f64 {
    let (mut zeros, mut all) = (0usize, 0usize);
    lacuna_nn::params::for_each(module, |row, w| {
        if state.params.role[row] == lacuna_nn::params::Role::Weight {
            zeros += w.iter().filter(|&&v| v == 0.0).count();
            all += w.len();
        }
    });
    zeros as f64 / all.max(1) as f64
}

fn loss_of<M: Classifier>(
    module: &M,
    x: &[f32],
    y: &[i64],
    dims: [usize; 4],
    pass: &Pass,
    device: &Device,
) -> Tensor<1> {
    let n = dims[0];
    let x = Tensor::<4>::from_data(TensorData::new(x.to_vec(), dims), device);
    let y = Tensor::<2, Int>::from_data(TensorData::new(y.to_vec(), [n, 1]), device);
    let log_probability = log_softmax(module.forward(x, pass), 1).gather(1, y);
    log_probability.mean().neg()
}

/// Top-1 accuracy (0..1) of a module on a device without autodiff.
pub fn evaluate<M: Classifier>(module: &M, set: &ImageSet, pass: &Pass) -> Result<f64> {
    let device = module.devices().first().cloned().unwrap_or_default();
    let (mut correct, mut seen) = (0usize, 0usize);
    for batch in Batches::new(set, BatchSpec::eval(250))? {
        let n = batch.y.len();
        let x = Tensor::<4>::from_data(TensorData::new(batch.x, batch.dims), &device);
        let logits: Vec<f32> =
            module.forward(x, pass).into_data().try_to_vec().map_err(|e| Error::Weights(format!("{e:?}")))?;
        correct += metrics::top_k_correct(&logits, logits.len() / n, &batch.y, 1)?;
        seen += n;
    }
    Ok(correct as f64 / seen.max(1) as f64)
}

/// Reads the recipe of a path, with overrides `key=value`.
pub fn load_recipe(path: &Path, overrides: &[(String, String)]) -> Result<Recipe> {
    Ok(Recipe::load(path, overrides)?)
}
