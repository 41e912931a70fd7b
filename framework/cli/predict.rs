//! `lacuna predict`: a model on image files and texts. One subcommand per task.

use crate::classify::Classifier;
use crate::detect;
use crate::error::{Exit, Failure, Result};
use crate::model_file::{self, WeightsName};
use crate::samples::{metadata_error, per_channel};
use crate::term;
use crate::texts;
use lacuna_data::images::{image_files, load_image, to_nchw};
use lacuna_ir::Graph;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(clap::Args, Debug)]
pub struct Predict {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand, Debug)]
enum Task {
    /// The most likely classes of each image
    #[command(
        after_help = "Examples:\n  lacuna predict classify model.onnx shoe.png bag.jpg --top 3\n  lacuna predict classify model.onnx images/ --json"
    )]
    Classify(Classify),
    /// The objects on each image, as boxes; --output draws them
    #[command(
        after_help = "Examples:\n  lacuna predict detect yolov5s.onnx street.jpg\n  lacuna predict detect yolov5s.pt --model yolov5s photos/ --output boxes/ --json"
    )]
    Detect(detect::Detect),
    /// The objects on each image, pixel by pixel; --output draws them, --json gives COCO's run lengths
    #[command(
        after_help = "Examples:\n  lacuna predict segment yolact.onnx street.jpg --output masks/\n  lacuna predict segment yolov8n-seg.onnx photos/ --json"
    )]
    Segment(detect::Detect),
    /// How alike texts are in meaning; --json has their vectors
    #[command(
        after_help = "Examples:\n  lacuna predict embed minilm/model.safetensors --model minilm_l6_embed \"a cat sleeps\" \"the cat is asleep\" \"stocks fell\"\n  lacuna predict embed sentences.onnx --tokenizer minilm/tokenizer.json --file texts.txt --json"
    )]
    Embed(texts::Embed),
    /// The most likely classes of each text
    #[command(
        after_help = "Examples:\n  lacuna predict classify-text runs/train \"profits rose in the third quarter\"\n  lacuna predict classify-text model.onnx --file texts.txt --top 3 --json"
    )]
    ClassifyText(texts::ClassifyText),
}

#[derive(clap::Args, Debug)]
struct Classify {
    /// Run folder, .safetensors file of a run, or .onnx or .lacuna file
    #[arg(value_name = "MODEL")]
    path: PathBuf,
    /// PNG or JPEG files, or folders of them
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    /// Which weights of a run folder
    #[arg(long, value_enum, default_value_t = WeightsName::Best)]
    name: WeightsName,
    /// Classes to show for each image
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// Mean of each channel, of pixels in 0..1, where the model file does not say it
    #[arg(long, value_delimiter = ',')]
    mean: Option<Vec<f32>>,
    /// Standard deviation of each channel, likewise
    #[arg(long, value_delimiter = ',')]
    std: Option<Vec<f32>>,
    /// Threads; all cores if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One image's most likely classes: index, name, probability.
type Ranking = Vec<(usize, String, f32)>;

pub fn run(options: Predict) -> Result<()> {
    match options.task {
        Task::Classify(options) => classify(options),
        Task::Detect(options) => detect::run(options, false),
        Task::Segment(options) => detect::run(options, true),
        Task::Embed(options) => texts::embed(options),
        Task::ClassifyText(options) => texts::classify(options),
    }
}

/// What came of images, in order.
pub struct Done<T> {
    pub results: Vec<(PathBuf, T)>,
    failed: Vec<(PathBuf, Failure)>,
}

/// Calls `one` on every image file, and on those of folders, and shows how far it is. An image that cannot be used does not
/// stop the others.
pub fn each_image<T>(given: &[PathBuf], mut one: impl FnMut(&Path) -> Result<T>) -> Result<Done<T>> {
    let mut done = Done { results: Vec::new(), failed: Vec::new() };
    let mut files = Vec::new();
    for path in given {
        match image_files(path) {
            Ok(found) => files.extend(found),
            Err(e) => done.failed.push((path.clone(), Failure::from(e))),
        }
    }
    let bar = term::bar(files.len() as u64);
    for file in files {
        match one(&file) {
            Ok(result) => done.results.push((file, result)),
            Err(failure) if failure.exit == Exit::Data => done.failed.push((file, failure)),
            Err(failure) => return Err(failure),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(done)
}

impl<T> Done<T> {
    /// The model, and for each image what `value` makes of its result under `key`, or its error.
    pub fn as_json(&self, model: &Path, key: &str, value: impl Fn(&T) -> Value) -> Value {
        let image = |(file, result): &(PathBuf, T)| json!({ "image": file.display().to_string(), key: value(result) });
        let error = |(file, failure): &(PathBuf, Failure)| json!({ "image": file.display().to_string(), "error": failure.to_string() });
        json!({
            "model": model.display().to_string(),
            "results": self.results.iter().map(image).collect::<Vec<_>>(),
            "errors": self.failed.iter().map(error).collect::<Vec<_>>(),
        })
    }

    /// A failure that says which images failed, if any did.
    pub fn end(self, what: &str) -> Result<()> {
        if self.failed.is_empty() {
            return Ok(());
        }
        let count = format!(
            "predict: {} of {} images {what}",
            self.failed.len(),
            self.failed.len() + self.results.len()
        );
        let messages =
            self.failed.into_iter().flat_map(|(_, failure)| failure.messages).chain([count]).collect();
        Err(Failure { exit: Exit::Data, messages })
    }
}

fn classify(options: Classify) -> Result<()> {
    let model = model_file::open(&options.path, options.name, None)?;
    let path = model.path().to_owned();
    let graph = model.into_graph()?;
    let mut classifier = Classifier::new(&graph, options.threads.map(|n| n as usize))?;
    let channels = classifier.input[0];
    let mean = per_channel(&graph, &path, "mean", options.mean.as_deref(), channels)?;
    let std = per_channel(&graph, &path, "std", options.std.as_deref(), channels)?;
    let classes = class_names(&graph, &path, classifier.classes)?;

    let done = each_image(&options.images, |file| {
        classify_file(&mut classifier, file, &mean, &std, &classes, options.top as usize)
    })?;
    if options.json {
        let class =
            |(index, name, p): &(usize, String, f32)| json!({ "class": index, "label": name, "score": p });
        term::say_json(&done.as_json(&path, "classes", |ranking| ranking.iter().map(class).collect()));
    } else if !done.results.is_empty() {
        term::say(as_table(&done.results));
    }
    done.end("were not classified")
}

fn classify_file(
    classifier: &mut Classifier,
    file: &Path,
    mean: &[f32],
    std: &[f32],
    classes: &[String],
    top: usize,
) -> Result<Ranking> {
    let [_, h, w] = classifier.input;
    let image = load_image(file)?;
    let x = to_nchw(&image, h, w, mean, std)?;
    let logits = classifier.logits(&x, 1)?;
    let probability = classifier.probabilities(&logits);
    let mut order: Vec<usize> = (0..classes.len()).collect();
    // Stable: of equal ones the lower class comes first, as in top-1.
    order.sort_by(|&a, &b| probability[b].total_cmp(&probability[a]));
    Ok(order.into_iter().take(top).map(|i| (i, classes[i].clone(), probability[i])).collect())
}

/// The names in the metadata, or numbers.
pub(crate) fn class_names(g: &Graph, path: &Path, classes: usize) -> Result<Vec<String>> {
    let Some(text) = g.metadata("lacuna.classes") else {
        return Ok((0..classes).map(|i| i.to_string()).collect());
    };
    let names: Vec<String> = serde_json::from_str(text).map_err(|e| metadata_error(path, "classes", &e))?;
    if names.len() != classes {
        let why = format!("{} names for {classes} classes (export the model again)", names.len());
        return Err(metadata_error(path, "classes", &why));
    }
    Ok(names)
}

fn as_table(results: &[(PathBuf, Ranking)]) -> String {
    let mut rows = Vec::new();
    for (file, ranking) in results {
        for (i, (_, name, p)) in ranking.iter().enumerate() {
            let file = if i == 0 { file.display().to_string() } else { String::new() };
            rows.push(vec![file, name.clone(), format!("{:.2} %", p * 100.0)]);
        }
    }
    term::table(&["image", "class", ">probability"], &rows)
}
