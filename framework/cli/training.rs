//! A training from options to a run folder: what `lacuna train` and the examples share.
//!
//! Everything that decides the resulting weights stands in [`RunArgs`], which `args.yaml` keeps: a run is resumed
//! from its folder alone.

use crate::error::{Exit, Failure, Result};
use crate::term;
use burn::tensor::Device;
use indicatif::ProgressBar;
use lacuna_data::boxes::BoxAugment;
use lacuna_data::{DataSet, Samples, Source, sets, texts};
use lacuna_models::{InputShape, MODELS, ModelRow, Network, Task};
use lacuna_nn::Classifier;
use lacuna_nn::layers::Init;
use lacuna_pipelines::Tokenizer;
use lacuna_pipelines::inputs::Inputs;
use lacuna_pipelines::text::text_set;
use lacuna_recipe::{Recipe, Schedule};
use lacuna_train::loss::{Losses, Teacher};
use lacuna_train::run_folder::RunFolder;
use lacuna_train::trainer::{self, EpochRow, Progress};
use lacuna_train::weights::Metadata;
use lacuna_train::{Fit, Optimizer, Outcome, TrainArgs};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where tensors live while training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DeviceName {
    /// burn-flex, with this project's own fused ops.
    #[default]
    Flex,
    /// burn-ndarray, with plain burn ops: much slower.
    Ndarray,
}

pub fn device(name: DeviceName) -> Device {
    match name {
        DeviceName::Flex => Device::flex(),
        #[allow(deprecated)]
        DeviceName::Ndarray => Device::ndarray(),
    }
}

/// The row of [`MODELS`] with that name.
pub fn model(name: &str) -> Result<&'static ModelRow> {
    lacuna_models::find(name).ok_or_else(|| {
        let known: Vec<&str> = MODELS.iter().map(|row| row.name).collect();
        Failure::usage(format!("model {name}: there is no such model (models: {})", known.join(", ")))
    })
}

/// How images become inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageArgs {
    /// Height and width of inputs; the model's if absent.
    pub image_size: Option<usize>,
    /// Side of the tiles that pictures with boxes are cut into; whole pictures if absent.
    pub tile: Option<usize>,
    /// Top and bottom may be swapped as well as left and right.
    pub flip_vertical: bool,
    /// Share of a detector's training images that are mosaics of four.
    pub mosaic: f32,
}

impl ImageArgs {
    /// Channels, height and width of inputs of a model that by itself takes `shape`.
    fn shape(&self, [c, h, w]: [usize; 3]) -> [usize; 3] {
        self.image_size.map_or([c, h, w], |side| [c, side, side])
    }

    fn inputs(&self, shape: [usize; 3]) -> Inputs {
        let augment = BoxAugment {
            flip_vertical: if self.flip_vertical { 0.5 } else { 0.0 },
            mosaic: self.mosaic,
            ..BoxAugment::MILD
        };
        let [_, h, w] = self.shape(shape);
        Inputs { size: [h, w], tile: self.tile, augment }
    }
}

/// The data set in a folder (without one, Fashion-MNIST) as the images that a model takes.
pub fn open_data(dir: Option<&Path>, row: &ModelRow, images: &ImageArgs) -> Result<DataSet> {
    if row.task.finds_boxes() {
        return open_boxes(dir, row, images);
    }
    if *images != (ImageArgs { image_size: images.image_size, ..ImageArgs::default() }) {
        return Err(Failure::usage(format!(
            "model {}: is no detector (leave out --tile, --flip-vertical and --mosaic)",
            row.name
        )));
    }
    let InputShape::Image(shape) = row.input else {
        return Err(Failure::usage(format!("model {}: takes {}, not images", row.name, row.input)));
    };
    Ok(sets::open(dir, images.shape(shape))?)
}

fn open_boxes(dir: Option<&Path>, row: &ModelRow, images: &ImageArgs) -> Result<DataSet> {
    let InputShape::Image(shape) = row.input else {
        return Err(Failure::usage(format!("model {}: takes no images", row.name)));
    };
    let Some(head) = row.empty(row.classes).head() else {
        return Err(Failure::usage(format!("model {}: has no loss yet (choose another model)", row.name)));
    };
    let inputs = images.inputs(shape);
    let step = head.strides().iter().copied().max().unwrap_or(1);
    if !inputs.size[0].is_multiple_of(step) {
        return Err(Failure::usage(format!(
            "--image-size {}: model {} takes multiples of {step}",
            inputs.size[0], row.name
        )));
    }
    let Some(dir) = dir else {
        return Err(Failure::usage(format!(
            "model {}: learns from pictures with boxes (give --data DIR)",
            row.name
        )));
    };
    Ok(lacuna_pipelines::inputs::load(dir, &inputs)?)
}

/// A training and a test set of what a model takes.
pub struct Data {
    pub train: Samples,
    pub test: Samples,
    pub source: Source,
    /// Of texts: the file of the vocabulary that made tokens of them, and how many a text has at most.
    pub tokenizer: Option<PathBuf>,
    pub tokens: Option<usize>,
}

/// What a network of tokens is trained on: a file of labelled texts, or a folder with one, and the test file beside it
/// ([`texts::find_pair`]). Texts are cut behind `most` tokens.
pub fn open_texts(data: Option<&Path>, row: &ModelRow, tokenizer: Tokenizer, most: usize) -> Result<Data> {
    if row.task != Task::TextClassification {
        let what = "has no loss yet (choose a classifier of texts)";
        return Err(Failure::usage(format!("model {}: {what}", row.name)));
    }
    let data = text_file(data, row)?;
    let InputShape::Tokens { length, vocabulary } = row.input else {
        return Err(Failure::usage(format!("model {}: takes {}, not texts", row.name, row.input)));
    };
    if most > length {
        return Err(Failure::usage(format!("--tokens {most}: model {} takes {}", row.name, row.input)));
    }
    if tokenizer.words() > vocabulary {
        let (words, file) = (tokenizer.words(), tokenizer.path.display());
        return Err(Failure::input(format!("{file}: {words} tokens, and {} takes {}", row.name, row.input)));
    }
    let [train_file, test_file] = texts::find_pair(data)?;
    let (train, test) = (texts::load(&train_file)?, texts::load(&test_file)?);
    let (classes, of_train, of_test) = texts::class_numbers(&train, &test)?;
    let train = text_set(&tokenizer, &train.texts, of_train, classes.clone(), most)?;
    let test = text_set(&tokenizer, &test.texts, of_test, classes, most)?;
    let source = Source {
        name: train_file.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        part: format!("{} classes, up to {most} tokens", train.classes.len()),
        dir: train_file.parent().unwrap_or(Path::new("")).to_owned(),
        of: "texts",
        train: train.len(),
        test: test.len(),
    };
    let (train, test) = (train.into(), test.into());
    Ok(Data { train, test, source, tokenizer: Some(tokenizer.path), tokens: Some(most) })
}

/// What `--data` names, which texts need.
pub fn text_file<'a>(data: Option<&'a Path>, row: &ModelRow) -> Result<&'a Path> {
    data.ok_or_else(|| {
        let what = "a file such as reviews-train.tsv, beside reviews-test.tsv";
        Failure::usage(format!("model {}: takes texts (give --data FILE: {what})", row.name))
    })
}

/// Number of images or texts that a model would be trained on.
pub fn training_samples(data: Option<&Path>, row: &ModelRow) -> Result<usize> {
    match row.input {
        InputShape::Image(_) if row.task.finds_boxes() => {
            Ok(open_boxes(data, row, &ImageArgs::default())?.train.len())
        }
        InputShape::Image(shape) => Ok(sets::read(data, shape)?.train.len()),
        InputShape::Tokens { .. } => {
            let [train, _] = texts::find_pair(text_file(data, row)?)?;
            Ok(texts::load(&train)?.texts.len())
        }
    }
}

/// Reads `name=value,...` or a JSON object; nothing gives no overrides.
pub fn overrides(recipe_args: &str) -> Result<Vec<(String, String)>> {
    if recipe_args.trim().is_empty() {
        return Ok(Vec::new());
    }
    lacuna_recipe::parse_overrides(recipe_args).map_err(|d| Failure { exit: Exit::Usage, ..d.into() })
}

/// Whose ways a recipe is carried out in, where they differ from what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Compat {
    /// Blocks that are runs of weights instead of tiles
    #[value(name = "sparseml")]
    SparseMl,
}

/// The recipe as it is carried out.
pub fn compatible(recipe: Recipe, compat: Option<Compat>) -> Recipe {
    match compat {
        Some(Compat::SparseMl) => recipe.sparseml_compatible(),
        None => recipe,
    }
}

pub fn load_recipe(path: &Path, recipe_args: &str) -> Result<Recipe> {
    Ok(Recipe::load(path, &overrides(recipe_args)?)?)
}

/// What one epoch of this recipe does to this model, step by step; also the test that every pattern matches.
pub fn compile(row: &ModelRow, recipe: &Recipe, steps_per_epoch: u32) -> Result<Schedule> {
    let net = (row.build)(&mut Init::zeros(&Device::flex()));
    Ok(trainer::compile(&net, recipe, steps_per_epoch)?)
}

/// Everything that decides the weights of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunArgs {
    pub model: String,
    /// As it was given; the text is kept beside the arguments.
    pub recipe: PathBuf,
    pub recipe_args: String,
    #[serde(default)]
    pub compat: Option<Compat>,
    pub data: Option<PathBuf>,
    /// Of texts: the file of the vocabulary; that beside the weights, if absent.
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
    /// Most tokens of a text; as the vocabulary's file says, if absent.
    #[serde(default)]
    pub tokens: Option<usize>,
    /// Weights to start from.
    pub weights: Option<PathBuf>,
    /// Leave the layer that tells classes apart as it is initialised.
    #[serde(default)]
    pub reset_head: bool,
    /// `self`, `disable`, or a file of weights: whom the student of a recipe that distils follows.
    #[serde(default)]
    pub teacher: Option<String>,
    /// The teacher's model, where its file does not say so.
    #[serde(default)]
    pub teacher_model: Option<String>,
    #[serde(default)]
    pub images: ImageArgs,
    pub device: DeviceName,
    /// Threads of the training; all cores if absent.
    pub threads: Option<usize>,
    #[serde(flatten)]
    pub train: TrainArgs,
}

impl RunArgs {
    pub fn new(model: &str, recipe: impl Into<PathBuf>) -> RunArgs {
        RunArgs {
            model: model.to_owned(),
            recipe: recipe.into(),
            recipe_args: String::new(),
            compat: None,
            data: None,
            tokenizer: None,
            tokens: None,
            weights: None,
            reset_head: false,
            teacher: None,
            teacher_model: None,
            images: ImageArgs::default(),
            device: DeviceName::default(),
            threads: None,
            train: TrainArgs::default(),
        }
    }

    /// The command that makes these weights again, without where data and results lie.
    pub fn command(&self) -> String {
        let t = &self.train;
        let mut line = format!("lacuna train --model {} --recipe {}", self.model, self.recipe.display());
        let mut add = |flag: &str, value: &str| line += &format!(" {flag} {value}");
        if !self.recipe_args.is_empty() {
            add("--recipe-args", &format!("'{}'", self.recipe_args));
        }
        if let Some(Compat::SparseMl) = self.compat {
            add("--compat", "sparseml");
        }
        if let Some(weights) = &self.weights {
            add("--weights", &weights.display().to_string());
        }
        for (flag, value) in [("--teacher", &self.teacher), ("--teacher-model", &self.teacher_model)] {
            if let Some(value) = value {
                add(flag, value);
            }
        }
        if let Some(n) = self.tokens {
            add("--tokens", &n.to_string());
        }
        add("--batch", &t.batch.to_string());
        add("--seed", &t.seed.to_string());
        add("--lr", &t.lr.to_string());
        add("--weight-decay", &t.weight_decay.to_string());
        let (name, numbers, nesterov) = match t.optimizer {
            Optimizer::Sgd { momentum, nesterov } => ("sgd", vec![("--momentum", momentum)], nesterov),
            Optimizer::Adam { beta1, beta2, eps } => ("adam", betas(beta1, beta2, eps), false),
            Optimizer::AdamW { beta1, beta2, eps } => ("adamw", betas(beta1, beta2, eps), false),
        };
        add("--optimizer", name);
        numbers.iter().for_each(|(flag, value)| add(flag, &value.to_string()));
        if let Some(n) = t.max_images {
            add("--max-images", &n.to_string());
        }
        if self.reset_head {
            line += " --reset-head";
        }
        let ImageArgs { image_size, tile, flip_vertical, mosaic } = self.images;
        for (flag, value) in [("--image-size", image_size), ("--tile", tile)] {
            if let Some(value) = value {
                line += &format!(" {flag} {value}");
            }
        }
        if flip_vertical {
            line += " --flip-vertical";
        }
        if mosaic > 0.0 {
            line += &format!(" --mosaic {mosaic}");
        }
        if nesterov {
            line += " --nesterov";
        }
        if !t.augment {
            line += " --no-augment";
        }
        line
    }
}

fn betas(beta1: f64, beta2: f64, eps: f64) -> Vec<(&'static str, f64)> {
    vec![("--beta1", beta1), ("--beta2", beta2), ("--eps", eps)]
}

/// Where a new run goes.
#[derive(Clone, Debug)]
pub struct Place {
    pub project: PathBuf,
    pub name: String,
    pub exist_ok: bool,
}

/// A training that is ready: arguments checked, data loaded, recipe compiled once, folder there.
pub struct Job {
    pub args: RunArgs,
    pub row: &'static ModelRow,
    pub recipe: Recipe,
    pub train: Arc<Samples>,
    pub test: Samples,
    pub source: Source,
    /// Of texts: most tokens of one.
    pub tokens: Option<usize>,
    pub folder: RunFolder,
    pub resume: bool,
}

/// Prepares a new run. Whatever is wrong with its arguments is found before the folder is made.
/// `command` is the command line, for `command.txt`.
pub fn start(mut args: RunArgs, place: &Place, command: &[String]) -> Result<Job> {
    for path in [&mut args.data, &mut args.weights, &mut args.tokenizer].into_iter().flatten() {
        *path = kept(path)?;
    }
    if let Some(file) = teacher_file(&args) {
        args.teacher = Some(kept(&file)?.display().to_string());
    }
    let recipe = compatible(load_recipe(&args.recipe, &args.recipe_args)?, args.compat);
    let (row, set) = open(&args, &recipe, None)?;
    let folder = RunFolder::create(&place.project, &place.name, place.exist_ok)?;
    let values = serde_json::to_value(&args).map_err(|e| Failure::usage(format!("arguments: {e}")))?;
    for name in ["best", "last", "pruned"] {
        // Of a run that is being overwritten; most folders are new and hold none.
        let _ = std::fs::remove_file(folder.weights(name));
    }
    folder.write_recipe(&recipe.text)?;
    folder.write_command(command, VERSION)?;
    folder.write_args(&values)?;
    if let Some(vocabulary) = &set.tokenizer {
        keep_vocabulary(vocabulary, &folder)?;
    }
    Ok(job(args, row, recipe, set, folder, false))
}

/// Prepares to go on with the run in `folder`, from its newest checkpoint (from the start if there is none).
pub fn resume(folder: &Path) -> Result<Job> {
    let folder = RunFolder::open(folder)?;
    let args: RunArgs = serde_json::from_value(folder.read_args()?).map_err(|e| {
        let place = folder.path.join("args.yaml");
        Failure::input(format!("{}: {e} (restore the file, or start a new run)", place.display()))
    })?;
    let source = args.recipe.display().to_string();
    let recipe = lacuna_recipe::parse(&folder.read_recipe()?, &source, &overrides(&args.recipe_args)?)?;
    let recipe = compatible(recipe, args.compat);
    let (row, set) = open(&args, &recipe, Some(&folder.path))?;
    Ok(job(args, row, recipe, set, folder, true))
}

/// A file or folder under a name that holds in other folders, from which the run may be resumed. (Links stay: they have
/// the extension and the neighbours that count.)
fn kept(path: &Path) -> Result<PathBuf> {
    let path = crate::model_file::find(path)?;
    path.metadata().map_err(|e| Failure::io(&path, e))?;
    std::path::absolute(&path).map_err(|e| Failure::io(&path, e))
}

/// Copies the vocabulary, and what is said about it, into the folder of a run: its weights are of no use without.
fn keep_vocabulary(file: &Path, folder: &RunFolder) -> Result<()> {
    let config = file.with_file_name("tokenizer_config.json");
    for file in [file, &config].into_iter().filter(|file| file.is_file()) {
        let copy = folder.path.join(file.file_name().unwrap_or_default());
        std::fs::copy(file, &copy).map_err(|e| Failure::io(&copy, e))?;
    }
    Ok(())
}

/// The vocabulary of a run: of its folder, as it was given, or that beside the weights to start from.
fn vocabulary(args: &RunArgs, folder: Option<&Path>) -> Result<Tokenizer> {
    match (folder, &args.tokenizer, &args.weights) {
        (Some(folder), ..) => Ok(Tokenizer::beside(folder)?),
        (_, Some(file), _) => Ok(Tokenizer::open(file)?),
        (.., Some(weights)) => Ok(Tokenizer::beside(weights)?),
        _ => Err(Failure::usage(format!(
            "model {}: takes texts, and no vocabulary is known (give --tokenizer FILE, or --weights with one beside them)",
            args.model
        ))),
    }
}

fn open(args: &RunArgs, recipe: &Recipe, folder: Option<&Path>) -> Result<(&'static ModelRow, Data)> {
    let row = model(&args.model)?;
    let set = match row.input {
        InputShape::Image(_) => {
            let DataSet { train, test, source } = open_data(args.data.as_deref(), row, &args.images)?;
            Data { train: train.into(), test: test.into(), source, tokenizer: None, tokens: None }
        }
        InputShape::Tokens { .. } => {
            text_file(args.data.as_deref(), row)?;
            let tokenizer = vocabulary(args, folder)?;
            let most = args.tokens.unwrap_or(tokenizer.usual);
            open_texts(args.data.as_deref(), row, tokenizer, most)?
        }
    };
    let schedule = compile(row, recipe, args.train.steps_per_epoch(&set.train))?;
    // That the recipe's teacher is there, and has the layers that it names.
    Losses::new(teacher(args, &set.train)?, &schedule)?;
    Ok((row, set))
}

fn job(
    args: RunArgs,
    row: &'static ModelRow,
    recipe: Recipe,
    set: Data,
    folder: RunFolder,
    resume: bool,
) -> Job {
    let Data { train, test, source, tokens, .. } = set;
    Job { args, row, recipe, train: Arc::new(train), test, source, tokens, folder, resume }
}

/// The file that `--teacher` names, if it names one.
fn teacher_file(args: &RunArgs) -> Option<PathBuf> {
    args.teacher.as_deref().filter(|t| !["self", "disable"].contains(t)).map(PathBuf::from)
}

fn teacher(args: &RunArgs, set: &Samples) -> Result<Teacher<Network>> {
    Ok(match (args.teacher.as_deref(), teacher_file(args)) {
        (_, Some(file)) => {
            let found = crate::model_file::open_weights(&file, args.teacher_model.as_deref())?;
            let (fits, what) = match set {
                Samples::Images(set) => {
                    let shape = [set.c, set.h, set.w];
                    (found.row.input == InputShape::Image(shape), format!("{shape:?} images"))
                }
                // Of another vocabulary, its tokens would be other words.
                Samples::Texts(_) => {
                    (found.row.input == model(&args.model)?.input, "texts for the student".into())
                }
            };
            if !fits {
                return Err(Failure::usage(format!(
                    "{}: {} takes {}, the data has {what} (give another --teacher)",
                    file.display(),
                    found.row.name,
                    found.row.input,
                )));
            }
            Teacher::Other(found.net, found.pass)
        }
        (Some("self"), _) => Teacher::Itself,
        (Some(_), _) => Teacher::Disabled,
        (None, _) => Teacher::Missing,
    })
}

/// Runs a job to the end of its recipe. Call [`set_threads`] first, once per process.
pub fn run(job: &Job, report: &mut (dyn FnMut(Progress<'_>) + Send)) -> Result<Outcome<Network>> {
    let args = &job.args;
    let device = device(args.device).autodiff();
    let mut net = job.row.network(job.train.classes().len(), &device, args.train.seed);
    if let Some(path) = &args.weights {
        net = crate::model_file::initial_weights(job.row, net, path, args.reset_head)?;
    }
    let fit = Fit {
        args: args.train.clone(),
        recipe: &job.recipe,
        train: job.train.clone(),
        test: &job.test,
        folder: &job.folder,
        metadata: metadata(job),
        resume: job.resume,
        report,
    };
    Ok(lacuna_train::fit_with(net, teacher(args, &job.train)?, &[], fit)?)
}

/// How the weights were made and what they mean; export copies it into the ONNX file.
fn metadata(job: &Job) -> Metadata {
    let json = |value: serde_json::Value| value.to_string();
    let mut rows = vec![
        ("model", job.row.name.to_owned()),
        ("task", job.row.task.name().to_owned()),
        ("classes", json(job.train.classes().into())),
        ("data", job.source.counts()),
        ("recipe", job.recipe.text.clone()),
        ("seed", job.args.train.seed.to_string()),
        ("command", job.args.command()),
        ("version", VERSION.to_owned()),
    ];
    match &*job.train {
        Samples::Images(set) => {
            rows.extend([("mean", json(shortest(&set.mean))), ("std", json(shortest(&set.std)))]);
            if job.row.input != InputShape::Image([set.c, set.h, set.w]) {
                rows.push(("image", json(vec![set.h, set.w].into())));
            }
        }
        Samples::Texts(_) => rows.extend(job.tokens.map(|n| ("tokens", n.to_string()))),
    }
    rows.into_iter().map(|(key, value)| (format!("lacuna.{key}"), value)).collect()
}

/// f32 values as JSON numbers with as few digits as tell them apart.
pub fn shortest(values: &[f32]) -> serde_json::Value {
    values.iter().map(|v| v.to_string().parse::<f64>().unwrap_or(f64::from(*v))).collect()
}

/// Sets the number of threads that training may use. Only the first call of a process counts.
pub fn set_threads(threads: Option<usize>) -> Result<()> {
    let Some(n) = threads else { return Ok(()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build_global();
    pool.map_err(|e| Failure::usage(format!("--threads {n}: {e}")))
}

/// Shows a training on the terminal: schedule, bar, a line per epoch.
pub struct Reporter {
    bar: ProgressBar,
    started: Instant,
    /// Who computed the accuracy of the last epoch, and why.
    evaluated: String,
    /// Whether boxes are found.
    detects: bool,
}

impl Default for Reporter {
    fn default() -> Self {
        Reporter { bar: term::bar(0), started: Instant::now(), evaluated: String::new(), detects: false }
    }
}

impl Reporter {
    /// Of a training of this model.
    pub fn of(row: &ModelRow) -> Reporter {
        Reporter { detects: row.task.finds_boxes(), ..Reporter::default() }
    }

    pub fn show(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::Schedule { schedule, first_step } => self.begin(schedule, first_step),
            Progress::Step { step, loss, lr, .. } => {
                self.bar.set_position(step);
                self.bar.set_message(format!("loss {loss:.4}  lr {lr:.5}"));
            }
            Progress::Epoch(row) => {
                let line = epoch_line(row, self.started.elapsed().as_secs_f64());
                self.bar.suspend(|| term::say(line));
                let evaluated = format!("by the {}: {}", row.evaluator.name(), row.evaluator_reason);
                if evaluated != self.evaluated {
                    let what = if self.detects { "mAP" } else { "top-1" };
                    self.bar.suspend(|| term::say(format_args!("       {what} {evaluated}")));
                    self.evaluated = evaluated;
                }
            }
            Progress::Warning(warning) => self.bar.suspend(|| term::note("warning", warning)),
        }
    }

    fn begin(&mut self, schedule: &Schedule, first_step: u64) {
        for warning in &schedule.warnings {
            term::note("warning", crate::error::place_and_message(warning));
        }
        term::say(schedule.table());
        if first_step > 0 {
            term::say(format_args!("Resumed at step {first_step} of {}.\n", schedule.steps));
        }
        self.bar.set_length(schedule.steps);
        self.bar.set_position(first_step);
        self.bar.reset_eta();
        self.started = Instant::now();
        let score = if self.detects { "mAP50-95     mAP50" } else { "   top-1" };
        term::say(term::bold(&format!("epoch      loss        lr  {score}  sparsity  int8           time")));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn epoch_line(row: &EpochRow, seconds: f64) -> String {
    let scores: String = row.scores.iter().map(|(_, score)| format!("{:>6.2} %  ", score * 100.0)).collect();
    format!(
        "{:>5}  {:>8.4}  {:>8.5}  {scores}{:>6.2} %  {:<8}  {seconds:>7.1} s",
        row.epoch,
        row.loss,
        row.lr,
        row.sparsity * 100.0,
        trainer::quant_name(row.quant),
    )
}
