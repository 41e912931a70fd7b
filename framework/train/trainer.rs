//! The training loop. One function, [`fit`], runs a compiled schedule over a data set; everything it needs to go on
//! after a kill is in its checkpoints: weights, moments, masks, the state of the recipe and the offsets of the logs.
//! Batches are a pure function of seed, epoch and position, so nothing of the data has to be saved.

use crate::checkpoint;
use crate::detection;
use crate::error::{Error, Result};
use crate::exact::Exact;
use crate::inputs::{self, input_of};
use crate::logs::{LogOffsets, Logs};
use crate::loss::{Losses, Teacher};
use crate::modifiers::{self, Custom};
use crate::optimizer::Optimizer;
use crate::quantize;
use crate::run_folder::RunFolder;
use crate::state::{State, recipe_rows};
use crate::validate::{Evaluation, Evaluator, evaluate, validate};
use crate::weights::{self, Metadata};
use burn::module::Module;
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use lacuna_data::{Augment, Batch, BatchSpec, Batches, Prefetch, Samples};
use lacuna_nn::params::ParamTable;
use lacuna_nn::quant::{Norm, Pass, Quant};
use lacuna_nn::scheme::LayerScheme;
use lacuna_nn::{BoxHead, Classifier, Results, ops};
use lacuna_recipe::{Action, Recipe, Schedule};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Share of the training's time spent waiting for batches above which the user is told.
const WAIT_SHARE_MAX: f64 = 0.05;

/// What a training is told besides its model, data and recipe.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct TrainArgs {
    pub batch: usize,
    pub seed: u64,
    #[serde(flatten)]
    pub optimizer: Optimizer,
    /// Used until the recipe sets one.
    pub lr: f64,
    pub weight_decay: f64,
    /// Images or texts per epoch, if fewer than the set has.
    pub max_images: Option<usize>,
    /// Augment training images (shift by two pixels, and flip where the set allows it).
    pub augment: bool,
    /// Steps between checkpoints; one is written at every epoch's end too.
    pub checkpoint_steps: u64,
}

impl Default for TrainArgs {
    fn default() -> Self {
        TrainArgs {
            batch: 64,
            seed: 0,
            optimizer: Optimizer::SGD,
            lr: Optimizer::SGD.default_lr(),
            weight_decay: Optimizer::SGD.default_weight_decay(),
            max_images: None,
            augment: true,
            checkpoint_steps: 500,
        }
    }
}

impl TrainArgs {
    fn batches(&self, set: &Samples, epoch: u64) -> BatchSpec {
        let augment = match set {
            Samples::Images(set) if self.augment && set.mirror => Augment::SMALL,
            Samples::Images(_) if self.augment => Augment { flip: 0.0, ..Augment::SMALL },
            _ => Augment::NONE,
        };
        BatchSpec { max_images: self.max_images, ..BatchSpec::train(self.batch, self.seed, epoch, augment) }
    }

    fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub fn steps_per_epoch(&self, train: &Samples) -> u32 {
        u32::try_from(self.batches(train, 0).batches(train)).unwrap_or(u32::MAX)
    }
}

/// One training: what [`fit`] runs.
pub struct Fit<'a> {
    pub args: TrainArgs,
    pub recipe: &'a Recipe,
    pub train: Arc<Samples>,
    pub test: &'a Samples,
    pub folder: &'a RunFolder,
    /// Goes into every file of weights.
    pub metadata: Metadata,
    /// Continue from the newest checkpoint of the folder.
    pub resume: bool,
    /// Told about progress.
    pub report: &'a mut (dyn FnMut(Progress<'_>) + Send),
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
    /// The first of the scores.
    pub accuracy: f64,
    /// Top-1, or what detectors are judged by.
    pub scores: Vec<(&'static str, f64)>,
    /// What computed the accuracy, and why that.
    pub evaluator: Evaluator,
    pub evaluator_reason: String,
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
    /// In JSON: equal texts are equal arguments, to the last bit.
    args: String,
    recipe: String,
    quant: String,
    norm_frozen: bool,
    weight_decay: Exact,
    trainable: Vec<bool>,
    /// Of the optimiser, for each row.
    steps: Vec<u64>,
    loss_sum: Exact,
    loss_count: u64,
    best: Option<Exact>,
    /// Shapes of all tensors before channels were removed, where that happened.
    full_shape: Option<Vec<Vec<usize>>>,
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

/// A pass as numbers of a checkpoint's tensor.
pub(crate) fn pass_numbers(pass: &Pass) -> [f32; 3] {
    let quant = QUANT_NAMES.iter().position(|(q, _)| *q == pass.quant).unwrap_or(0);
    [quant as f32, f32::from(u8::from(pass.norm == Norm::Frozen)), f32::from(u8::from(pass.sparse))]
}

pub(crate) fn pass_from_numbers(numbers: &[f32]) -> Option<Pass> {
    let &[quant, frozen, sparse] = numbers else { return None };
    let quant = QUANT_NAMES.iter().enumerate().find(|(i, _)| *i as f32 == quant)?.1.0;
    let norm = if frozen == 1.0 { Norm::Frozen } else { Norm::Batch };
    Some(Pass { quant, norm, sparse: sparse == 1.0 })
}

/// Compiles a recipe for a module.
///
/// Errors: the recipe's own, each with its place.
pub fn compile<M: Module>(module: &M, recipe: &Recipe, steps_per_epoch: u32) -> Result<Schedule> {
    let table = ParamTable::of(module);
    let layers = quantize::layers(&table);
    Ok(lacuna_recipe::compile(recipe, &recipe_rows(&table), &layers, steps_per_epoch)?)
}

/// Trains `module` (on an autodiff device) to the end of the recipe.
///
/// Writes into the folder: `results.csv`, `metrics.jsonl`, a TensorBoard file, `weights/best|last`,
/// `weights/pruned` as they were before quantisation began, and checkpoints.
pub fn fit<M: Classifier>(module: M, fit: Fit<'_>) -> Result<Outcome<M>> {
    fit_with(module, Teacher::Missing, &[], fit)
}

/// [`fit`] with a teacher, for recipes that distil, and with modifiers of a user's own.
pub fn fit_with<M: Classifier>(
    module: M,
    teacher: Teacher<M>,
    custom: &[Custom],
    fit: Fit<'_>,
) -> Result<Outcome<M>> {
    // Inside the thread pool, an op starts its tasks without waking a sleeping thread first: a tenth of a small step.
    rayon::scope(|_| fit_in_pool(module, teacher, custom, fit))
}

fn fit_in_pool<M: Classifier>(
    module: M,
    teacher: Teacher<M>,
    custom: &[Custom],
    mut fit: Fit<'_>,
) -> Result<Outcome<M>> {
    let steps_per_epoch = u64::from(fit.args.steps_per_epoch(&fit.train));
    let schedule = compile(&module, fit.recipe, fit.args.steps_per_epoch(&fit.train))?;
    let device = module.devices().first().cloned().unwrap_or_default().autodiff();
    let losses = Losses::new(teacher, &schedule)?;
    let mut run = begin(module, losses, &mut fit)?;
    run.state.custom = custom.to_vec();
    let example = inputs::zeros((&*fit.train).into(), &device.clone().inner());
    run.state.flow = quantize::flow(&run.module, example);
    (fit.report)(Progress::Schedule { schedule: &schedule, first_step: run.step });

    let (epoch, at) = (run.step / steps_per_epoch, run.step % steps_per_epoch);
    let left = schedule.steps.saturating_sub(run.step);
    let mut batches = Prefetch::new(fit.train.clone(), fit.args.batches(&fit.train, epoch), at, left)?;
    let mut pace = Pace::default();
    loop {
        let asked = Instant::now();
        let Some(mut batch) = batches.next() else { break };
        let waited = asked.elapsed();
        let epoch = run.step / steps_per_epoch;
        run = run.apply_events(&schedule, &fit, &device)?;
        run.state.watch(&schedule, run.step);
        let lr = schedule.learning_rate(run.step).unwrap_or(fit.args.lr);
        let loss;
        (run, loss) = run.train_on(&mut batch, &schedule, lr, &device, &fit.args.optimizer)?;
        batches.recycle(batch);
        pace.add(waited, asked.elapsed());
        run.logs.timings(run.step, &pace.of_last_step())?;
        (fit.report)(Progress::Step { step: run.step, steps: schedule.steps, loss, lr });
        let last = run.step == schedule.steps;
        if last {
            run = run.apply_events(&schedule, &fit, &device)?;
        }
        let epoch_ends = last || run.step.is_multiple_of(steps_per_epoch);
        if epoch_ends {
            run.module = run.state.keep_open_weights_off_zero(run.module);
            run.end_epoch(epoch + 1, lr, &mut fit)?;
        }
        if epoch_ends || (fit.args.checkpoint_steps > 0 && run.step.is_multiple_of(fit.args.checkpoint_steps))
        {
            run.save_checkpoint(&fit)?;
        }
    }
    if let Some(warning) = pace.warning() {
        (fit.report)(Progress::Warning(warning));
    }
    run.logs.flush()?;
    let module = weights::plain_zeros(run.module.valid());
    let accuracy = match run.accuracy {
        Some(accuracy) => accuracy,
        None => evaluate(&module, fit.test, &run.state.pass)?.first().map_or(0.0, |score| score.1),
    };
    Ok(Outcome { module, pass: run.state.pass, accuracy, best_accuracy: run.best.unwrap_or(accuracy) })
}

/// How long steps take and wait for their batches, in this process. The first step is left out: nothing can be ready
/// for it.
#[derive(Default)]
struct Pace {
    /// Waiting and all of the last step.
    last: [Duration; 2],
    /// The same of all steps but the first.
    sum: [Duration; 2],
    steps: u64,
}

impl Pace {
    fn add(&mut self, waited: Duration, all: Duration) {
        self.last = [waited, all];
        if self.steps > 0 {
            self.sum = [self.sum[0] + waited, self.sum[1] + all];
        }
        self.steps += 1;
    }

    fn of_last_step(&self) -> [(&'static str, f64); 2] {
        let [waited, all] = self.last.map(|d| d.as_secs_f64() * 1e3);
        [("train/data_wait_ms", waited), ("train/step_ms", all)]
    }

    fn warning(&self) -> Option<String> {
        let [waited, all] = self.sum.map(|d| d.as_secs_f64());
        let share = waited / all;
        (share > WAIT_SHARE_MAX).then(|| {
            let each = waited / (self.steps - 1) as f64 * 1e3;
            format!(
                "the loader is the bottleneck: {:.0} % of the training waited for batches, {each:.1} ms a step \
                 (train less augmentation, or give the loader a core of its own with fewer --threads)",
                share * 100.0
            )
        })
    }
}

/// A training under way.
struct Run<M> {
    module: M,
    state: State,
    losses: Losses<M>,
    step: u64,
    /// Of the current epoch.
    loss_sum: f64,
    loss_count: u64,
    /// At the end of the last epoch.
    accuracy: Option<f64>,
    /// Of this kind of model: sparser or quantised models start anew.
    best: Option<f64>,
    logs: Logs,
}

/// A new training, or the newest checkpoint's.
fn begin<M: Classifier>(module: M, mut losses: Losses<M>, fit: &mut Fit<'_>) -> Result<Run<M>> {
    let mut state = State::new(&module, fit.args.weight_decay);
    state.image = image_of(fit);
    let saved = if fit.resume { checkpoint::load_latest(&fit.folder.path)? } else { None };
    let Some(saved) = saved else {
        checkpoint::clear(&fit.folder.path)?;
        let logs = Logs::create(&fit.folder.path)?;
        return Ok(Run {
            module,
            state,
            losses,
            step: 0,
            loss_sum: 0.0,
            loss_count: 0,
            accuracy: None,
            best: None,
            logs,
        });
    };
    for warning in &saved.warnings {
        (fit.report)(Progress::Warning(warning.clone()));
    }
    let s: SavedState = serde_json::from_value(saved.state.clone())
        .map_err(|e| Error::Resume(format!("{}: {e}", saved.path.display())))?;
    if s.args != fit.args.text() || s.recipe != fit.recipe.text {
        return Err(Error::Resume(format!(
            "{} was made with other arguments or another recipe; resume with the folder's own",
            saved.path.display()
        )));
    }
    let damaged = |what: &str| Error::Resume(format!("{}: {what}; start a new run", saved.path.display()));
    let tensors = saved.file("model")?;
    let module = match &s.full_shape {
        None => weights::put(module, tensors).map_err(Error::Weights)?,
        Some(_) => {
            let image =
                image_of(fit).ok_or_else(|| damaged("channels were removed from a network of texts"))?;
            weights::put_thinned(module, tensors, image).map_err(Error::Weights)?
        }
    };
    state.thinned_from(&module, s.full_shape);
    if s.trainable.len() != state.trainable.len() {
        return Err(damaged("it is of a model with other parameters"));
    }
    state.trainable = s.trainable;
    state.weight_decay = s.weight_decay.0;
    state.pass.quant =
        quant_from_name(&s.quant).ok_or_else(|| damaged("it names an unknown quantisation phase"))?;
    state.pass.norm = if s.norm_frozen { Norm::Frozen } else { Norm::Batch };
    let (first, second) = (saved.file("first_moment")?, saved.file("second_moment")?);
    let (masks, columns) = (saved.file("masks")?, saved.file("columns")?);
    let module = state.restore(module, first, second, s.steps, masks, columns)?;
    losses.restore(&module, saved.file("loss")?)?;
    let logs = Logs::resume(&fit.folder.path, &s.logs)?;
    let SavedState { step, loss_sum, loss_count, best, .. } = s;
    let (loss_sum, best) = (loss_sum.0, best.map(|best| best.0));
    Ok(Run { module, state, losses, step, loss_sum, loss_count, accuracy: None, best, logs })
}

/// Channels, height and width of the training's images, where it has them.
fn image_of(fit: &Fit<'_>) -> Option<[usize; 3]> {
    fit.train.images().map(|set| [set.c, set.h, set.w])
}

impl<M: Classifier> Run<M> {
    /// Carries out what the recipe says for this step.
    fn apply_events(mut self, schedule: &Schedule, fit: &Fit<'_>, device: &Device) -> Result<Self> {
        let mut data = GradientData::new(fit, self.step);
        for event in schedule.events_at(self.step) {
            if matches!(event.action, Action::StartQuantization(_)) {
                let described = described(fit, &self.state);
                weights::save(&self.module, &fit.folder.weights("pruned"), &described)?;
            }
            let changed;
            let mut sample = |module: &M, pass: &Pass, images: Option<usize>| {
                data.gradients(module, pass, images.unwrap_or(fit.args.batch), device)
            };
            (self.module, changed) =
                modifiers::apply(&mut self.state, self.module, schedule, event, &mut sample)?;
            match event.action {
                Action::StartQuantization(scheme) => self.calibrate(scheme.calibration_steps, fit, device)?,
                Action::BeginTerm { term } => {
                    let term = &schedule.terms[term as usize];
                    self.losses.begin(term, &self.module, &self.state.pass);
                }
                Action::LogSparsity => self.log_sparsity()?,
                _ => {}
            }
            if changed {
                self.best = None;
            }
        }
        Ok(self)
    }

    /// The share of zeros of every prunable tensor, and of every layer whether its weight is quantised.
    fn log_sparsity(&mut self) -> Result<()> {
        let (params, quantised) = (&self.state.params, self.state.pass.quant != Quant::Off);
        let mut values: Vec<(String, f64)> = Vec::new();
        lacuna_nn::params::for_each(&self.module, |row, v| {
            let name = &params.name[row];
            if params.role[row] == lacuna_nn::params::Role::Weight {
                let zeros = v.iter().filter(|v| **v == 0.0).count();
                values.push((format!("ParamPruning/{name}"), zeros as f64 / v.len().max(1) as f64));
            }
            if let Some(layer) = name.strip_suffix("_quantizer.scheme").filter(|n| n.ends_with(".weight")) {
                let on = quantised && LayerScheme::read(v).weight.is_some();
                values.push((format!("ParamQuantization/{layer}"), f64::from(u8::from(on))));
            }
        });
        let values: Vec<(&str, f64)> = values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        Ok(self.logs.scalars(self.step, &values)?)
    }

    /// Shows the first batches of the training set, unchanged, to the observers; batch norm uses its running statistics.
    fn calibrate(&self, steps: u32, fit: &Fit<'_>, device: &Device) -> Result<()> {
        let pass = Pass { norm: Norm::Frozen, ..self.state.pass };
        for mut batch in Batches::new(&*fit.train, BatchSpec::eval(fit.args.batch))?.take(steps as usize) {
            self.module.results(input_of(&mut batch, device), &pass);
        }
        Ok(())
    }

    /// Forward, loss, backward, update. The memory of the images is lent to the tensors of the step and given back.
    fn train_on(
        mut self,
        batch: &mut Batch,
        schedule: &Schedule,
        lr: f64,
        device: &Device,
        optimizer: &Optimizer,
    ) -> Result<(Self, f32)> {
        let x = input_of(batch, device);
        let (pass, table) = (self.state.training_pass(), &self.state.params);
        let head = self.module.head();
        let task = |results| loss_of(results, head.as_ref(), batch, device);
        let total = self.losses.of_step(&self.module, table, schedule, self.step, &x, &pass, task)?;
        let value: f32 = total.loss.clone().into_scalar();
        if !value.is_finite() {
            return Err(Error::Diverged { step: self.step, loss: value });
        }
        let gradients = total.loss.backward();
        self.losses.step(&total, &gradients, optimizer, lr, self.state.weight_decay);
        self.module = self.state.step(self.module, gradients, optimizer, lr);
        inputs::give_back(x, batch);
        self.loss_sum += value as f64;
        self.loss_count += 1;
        self.step += 1;
        self.logs.scalars(self.step, &[("train/loss", value as f64), ("train/lr", lr)])?;
        for (class, part) in &total.parts {
            let name = format!("train/{}_loss", class.trim_end_matches("Modifier"));
            self.logs
                .scalars(self.step, &[("train/task_loss", total.task as f64), (&name, f64::from(*part))])?;
        }
        Ok((self, value))
    }

    /// Evaluates, logs, and keeps the weights.
    fn end_epoch(&mut self, epoch: u64, lr: f64, fit: &mut Fit<'_>) -> Result<()> {
        let module = self.module.valid();
        let Evaluation { scores, evaluator, why } = validate(&module, fit.test, &self.state.pass)?;
        let accuracy = scores.first().map_or(0.0, |score| score.1);
        let row = EpochRow {
            epoch,
            loss: self.loss_sum / self.loss_count.max(1) as f64,
            lr,
            accuracy,
            scores,
            evaluator,
            evaluator_reason: why,
            sparsity: sparsity_of(&self.module, &self.state),
            quant: self.state.pass.quant,
        };
        (self.loss_sum, self.loss_count, self.accuracy) = (0.0, 0, Some(accuracy));
        let mut values = vec![("epoch", row.epoch as f64), ("train/loss", row.loss), ("train/lr", row.lr)];
        values.extend(&row.scores);
        values.push(("sparsity", row.sparsity));
        self.logs.epoch(&values)?;
        let by_engine = f64::from(u8::from(row.evaluator == Evaluator::Engine));
        values.push(("metrics/by_engine", by_engine));
        self.logs.scalars(self.step, &values[3..])?;
        (fit.report)(Progress::Epoch(&row));
        let described = described(fit, &self.state);
        if self.best.is_none_or(|best| accuracy > best) {
            self.best = Some(accuracy);
            weights::save(&module, &fit.folder.weights("best"), &described)?;
        }
        weights::save(&module, &fit.folder.weights("last"), &described)
    }

    fn save_checkpoint(&mut self, fit: &Fit<'_>) -> Result<()> {
        let saved = SavedState {
            step: self.step,
            args: fit.args.text(),
            recipe: fit.recipe.text.clone(),
            quant: quant_name(self.state.pass.quant).into(),
            norm_frozen: self.state.pass.norm == Norm::Frozen,
            weight_decay: Exact(self.state.weight_decay),
            trainable: self.state.trainable.clone(),
            steps: self.state.moments.steps.clone(),
            loss_sum: Exact(self.loss_sum),
            loss_count: self.loss_count,
            best: self.best.map(Exact),
            full_shape: self.state.is_thinned().then(|| self.state.full_shape.clone()),
            logs: self.logs.sync()?,
        };
        let model = weights::tensors(&self.module, &self.state.params);
        let (first, second) = (self.state.first_moment_tensors(), self.state.second_moment_tensors());
        let (masks, columns) = (self.state.mask_tensors(), self.state.column_tensors());
        let loss = self.losses.tensors(&self.state.params);
        let files: [(&str, &[_]); 6] = [
            ("model", &model),
            ("first_moment", &first),
            ("second_moment", &second),
            ("masks", &masks),
            ("columns", &columns),
            ("loss", &loss),
        ];
        let json = serde_json::to_value(&saved).map_err(|e| Error::Resume(e.to_string()))?;
        checkpoint::save(&fit.folder.path, saved.step, &files, &json)?;
        Ok(())
    }
}

/// Training batches for gradients that a modifier asks for at an event. They come shuffled anew for each step, in an order
/// that a resumed training repeats.
struct GradientData<'a> {
    set: &'a Samples,
    spec: BatchSpec,
    batches: Option<Batches<'a>>,
}

/// Passes over the data that the gradients of one step may need.
const GRADIENT_EPOCHS_MAX: u64 = 1 << 12;

impl<'a> GradientData<'a> {
    fn new(fit: &'a Fit<'_>, step: u64) -> GradientData<'a> {
        // Epochs of training count up from 0, these down from the end.
        let epoch = u64::MAX - step * GRADIENT_EPOCHS_MAX;
        GradientData { set: &fit.train, spec: fit.args.batches(&fit.train, epoch), batches: None }
    }

    /// Of the loss of `images` images or texts.
    fn gradients<M: Classifier>(
        &mut self,
        module: &M,
        pass: &Pass,
        images: usize,
        device: &Device,
    ) -> Result<Gradients> {
        let mut batch = match &mut self.batches {
            Some(batches) if self.spec.batch == images => batches.next(),
            _ => None,
        };
        if batch.is_none() {
            self.spec = BatchSpec { batch: images, epoch: self.spec.epoch - 1, ..self.spec };
            let batches = self.batches.insert(Batches::new(self.set, self.spec)?);
            batch = batches.next();
        }
        let mut batch = batch.ok_or_else(|| Error::Recipe("there is no data for a gradient".into()))?;
        let x = input_of(&mut batch, device);
        Ok(loss_of(module.results(x, pass), module.head().as_ref(), &batch, device).backward())
    }
}

/// Metadata of weights: how they were made, and how to run them.
fn described(fit: &Fit<'_>, state: &State) -> Metadata {
    let mut metadata = fit.metadata.clone();
    metadata.insert("lacuna.quant".into(), quant_name(state.pass.quant).into());
    if let Some([c, h, w]) = image_of(fit).filter(|_| state.is_thinned()) {
        metadata.insert(weights::THINNED.into(), format!("{c}x{h}x{w}"));
    }
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

/// Mean cross-entropy of logits [n, classes]; of maps the loss of their head.
fn loss_of(results: Results, head: Option<&BoxHead>, batch: &Batch, device: &Device) -> Tensor<1> {
    match (results, head) {
        (Results::Maps(maps), Some(head)) => detection::on_maps(head, maps, &batch.boxes),
        (Results::Maps(_), None) => unreachable!("maps come from a network with a head"),
        (Results::Logits(logits), _) => {
            let labels = TensorData::new(batch.y.clone(), [batch.y.len()]);
            ops::cross_entropy(logits, Tensor::<1, Int>::from_data(labels, device))
        }
    }
}

/// Reads the recipe of a path, with overrides `key=value`.
pub fn load_recipe(path: &Path, overrides: &[(String, String)]) -> Result<Recipe> {
    Ok(Recipe::load(path, overrides)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loader_that_holds_training_up_is_named() {
        let ms = Duration::from_millis;
        let mut pace = Pace::default();
        assert_eq!(pace.warning(), None);
        pace.add(ms(500), ms(510));
        assert_eq!(pace.warning(), None, "nothing can be ready for the first step");
        pace.add(ms(1), ms(99));
        assert_eq!(pace.warning(), None);
        pace.add(ms(19), ms(101));
        assert_eq!(pace.of_last_step(), [("train/data_wait_ms", 19.0), ("train/step_ms", 101.0)]);
        let warning = pace.warning().expect("a tenth of the time is waiting");
        assert!(warning.contains("10 %") && warning.contains("10.0 ms a step"), "{warning}");
    }
}
