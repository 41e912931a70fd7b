//! `lacuna oneshot`: prunes and quantises a model that is already trained, and writes it as ONNX.

use crate::error::{Failure, Result};
use crate::samples::{ImageInput, ImageOptions, labelled, load_samples};
use crate::{export, model_file, term};
use lacuna_engine::Session;
use lacuna_ir::{Graph, Tensor};
use lacuna_sparsify::{LayerReport, Method, Oneshot, Quantize, RangeRule, Reverted, Structure, revert_until};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(clap::Args, Debug)]
pub struct OneshotCommand {
    /// ONNX or .lacuna file, run folder, or .safetensors file of a run
    #[arg(value_name = "MODEL")]
    path: PathBuf,
    /// ONNX or .lacuna file to write [default: MODEL-oneshot.onnx beside the model]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Share of the weights of each layer that become zero; first and depthwise convolutions stay dense
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    sparsity: f64,
    /// What is zeroed together: unstructured, N:M such as 2:4, or 1xB such as 1x4
    #[arg(long, default_value = "unstructured")]
    structure: Structure,
    /// Which weights go [default: sparsegpt with --calib, else magnitude]
    #[arg(long, value_enum)]
    method: Option<MethodName>,
    /// Make weights and activations eight-bit
    #[arg(long, value_enum)]
    quantize: Option<QuantizeName>,
    /// Folder of images, or of .safetensors files (f32 tensors named as the model's inputs), to measure activations on
    #[arg(long, value_name = "DIR")]
    calib: Option<PathBuf>,
    /// Samples of it to use
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// How ranges come from what was measured: minmax, percentile:P (such as percentile:99.99), or entropy
    #[arg(long, default_value = "minmax", value_parser = range_rule)]
    range: RangeRule,
    /// Leave biases as they are
    #[arg(long)]
    no_bias_correction: bool,
    /// Leave layers alone whose name matches this regular expression; may be given more than once
    #[arg(long, value_name = "REGEX")]
    keep: Vec<regex::Regex>,
    /// Points of top-1 that may be lost on --eval; layers are given back, worst first, until no more are
    #[arg(long, value_name = "POINTS", requires = "eval")]
    max_drop: Option<f64>,
    /// Labelled images: a folder with one folder of images per class
    #[arg(long, value_name = "DIR")]
    eval: Option<PathBuf>,
    #[command(flatten)]
    images: ImageOptions,
    /// Threads; all cores if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum QuantizeName {
    /// Ranges measured on --calib
    Static,
    /// Inputs of convolutions and matrix products over the range they have in each run; all else stays f32
    Dynamic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum MethodName {
    /// The smallest
    Magnitude,
    /// The smallest times the energy of what they multiply
    Wanda,
    /// Those that the others can make up for
    Sparsegpt,
}

impl OneshotCommand {
    fn method(&self) -> MethodName {
        let default = if self.calib.is_some() { MethodName::Sparsegpt } else { MethodName::Magnitude };
        self.method.unwrap_or(default)
    }
}

fn share(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("'{text}' is not a number"))?;
    if (0.0..1.0).contains(&value) { Ok(value) } else { Err(format!("{value} is not in 0..1 (0.8 is 80 %)")) }
}

fn range_rule(text: &str) -> Result<RangeRule, String> {
    match (text, text.strip_prefix("percentile:").map(str::parse::<f64>)) {
        ("minmax", _) => Ok(RangeRule::MinMax),
        ("entropy", _) => Ok(RangeRule::Entropy),
        (_, Some(Ok(p))) if (50.0..=100.0).contains(&p) => Ok(RangeRule::Percentile(p / 100.0)),
        _ => Err("give minmax, entropy, or percentile:P with P from 50 to 100".to_string()),
    }
}

pub fn run(options: OneshotCommand) -> Result<()> {
    if options.sparsity == 0.0 && options.quantize.is_none() {
        return Err(Failure::usage("oneshot: nothing to do (give --sparsity, --quantize, or both)"));
    }
    if options.quantize == Some(QuantizeName::Static) && options.calib.is_none() {
        return Err(Failure::usage("oneshot: --quantize static needs ranges (give --calib DIR)"));
    }
    let model = model_file::open(&options.path, Default::default(), None)?;
    let path = model.path().to_owned();
    let graph = model.into_graph()?;
    let threads = options.threads.map(|n| n as usize);
    let samples = match &options.calib {
        Some(folder) => load_samples(&graph, &path, folder, options.samples as usize, &options.images)?,
        None => Vec::new(),
    };
    let oneshot = Oneshot::new(
        &graph,
        &samples,
        lacuna_sparsify::Options {
            sparsity: options.sparsity,
            structure: options.structure,
            method: match options.method() {
                MethodName::Magnitude => Method::Magnitude,
                MethodName::Wanda => Method::Activation,
                MethodName::Sparsegpt => Method::Reconstruction,
            },
            quantize: match options.quantize {
                None => Quantize::No,
                Some(QuantizeName::Static) => Quantize::Static,
                Some(QuantizeName::Dynamic) => Quantize::Dynamic,
            },
            range: options.range,
            correct_biases: !options.no_bias_correction,
            keep: options.keep.clone(),
            threads,
        },
    )?;
    drop(samples);
    let evaluation = match &options.eval {
        Some(folder) => Some(Labelled::load(&graph, &path, folder, &options.images, threads)?),
        None => None,
    };
    let before = evaluation.as_ref().map(|e| e.top1(&graph)).transpose()?;
    let (found, after) = match (&evaluation, before, options.max_drop) {
        (Some(e), Some(before), Some(drop)) => {
            let found = revert_until(&oneshot, before - drop / 100.0, |g| e.top1(g))?;
            let after = Some(found.score);
            (found, after)
        }
        _ => {
            let (graph, layers) = oneshot.apply(&vec![false; oneshot.layers().len()])?;
            let after = evaluation.as_ref().map(|e| e.top1(&graph)).transpose()?;
            (Reverted { graph, layers, score: after.unwrap_or(0.0), evaluations: 1 }, after)
        }
    };
    let Reverted { mut graph, layers, evaluations, .. } = found;
    graph.metadata.retain(|(key, _)| key != "lacuna.oneshot");
    graph.metadata.push(("lacuna.oneshot".into(), describe(&options)));

    let output = options.output.clone().unwrap_or_else(|| default_output(&options.path));
    let bytes = match model_file::is_container(&output) {
        true => export::write_container(&graph, &output)?,
        false => export::write(&graph, &output)?,
    };
    let images = evaluation.as_ref().map_or(0, |e| e.images.len());
    if options.json {
        term::say_json(&json!({
            "model": path.display().to_string(),
            "output": output.display().to_string(),
            "bytes": bytes,
            "how": describe(&options),
            "layers": layers,
            "top1_before": before,
            "top1": after,
            "images": images,
            "evaluations": evaluations,
        }));
        return Ok(());
    }
    term::say(table(&layers));
    if let (Some(before), Some(after)) = (before, after) {
        let [b, a] = [before, after].map(|s| format!("{:.2} %", s * 100.0));
        term::say(format_args!(
            "\ntop-1 {b} -> {a} on {images} images of {}",
            shown(options.eval.as_deref())
        ));
    }
    let output = output.display();
    term::say(format_args!("\n{} -> {output}  ({})", path.display(), term::bytes(bytes)));
    term::say(format_args!("\nNext:\n  lacuna analyze {output}\n  lacuna benchmark {output}"));
    Ok(())
}

fn shown(path: Option<&Path>) -> String {
    path.map(|p| p.display().to_string()).unwrap_or_default()
}

fn default_output(model: &Path) -> PathBuf {
    if model.is_dir() {
        return model.join("model-oneshot.onnx");
    }
    let stem = model.file_stem().unwrap_or_default().to_string_lossy();
    model.with_file_name(format!("{stem}-oneshot.onnx"))
}

/// How the model was made, for its metadata.
fn describe(options: &OneshotCommand) -> String {
    let mut words = Vec::new();
    if options.sparsity > 0.0 {
        let method = format!("{:?}", options.method()).to_lowercase();
        words.push(format!("{:.1} % {} zeros by {method}", options.sparsity * 100.0, options.structure));
    }
    match options.quantize {
        Some(QuantizeName::Static) => words.push(format!("static int8, ranges by {:?}", options.range)),
        Some(QuantizeName::Dynamic) => words.push("dynamic int8".to_string()),
        None => {}
    }
    words.join("; ")
}

/// Labelled images as inputs.
struct Labelled {
    images: Vec<(Tensor, usize)>,
    threads: Option<usize>,
}

impl Labelled {
    fn load(
        g: &Graph,
        path: &Path,
        folder: &Path,
        options: &ImageOptions,
        threads: Option<usize>,
    ) -> Result<Labelled> {
        let input = ImageInput::new(g, path, options)?;
        let files = labelled(folder)?;
        let images: Result<_> = files.iter().map(|(file, class)| Ok((input.load(file)?, *class))).collect();
        Ok(Labelled { images: images?, threads })
    }

    /// Share of the images whose class has the highest of the model's first output.
    fn top1(&self, g: &Graph) -> Result<f64> {
        let options = lacuna_engine::Options { threads: self.threads, ..Default::default() };
        let mut session = Session::new(g, &options)?;
        let mut right = 0;
        for (x, class) in &self.images {
            let outputs = session.run(std::slice::from_ref(x))?;
            let scores = outputs.first().and_then(Tensor::as_f32).unwrap_or_default();
            if *class >= scores.len() {
                let what =
                    format!("class {class} of --eval is not among the model's {} scores", scores.len());
                return Err(Failure::input(what));
            }
            // Of equal scores the lower class counts.
            let best = (0..scores.len()).rev().max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
            right += usize::from(best == Some(*class));
        }
        Ok(right as f64 / self.images.len().max(1) as f64)
    }
}

fn table(layers: &[LayerReport]) -> String {
    let row = |l: &LayerReport| {
        let shape: Vec<String> = l.shape.iter().map(usize::to_string).collect();
        let what = match (l.kept.is_empty(), l.quantized) {
            (false, _) => format!("left alone: {}", l.kept),
            (true, true) => "int8".to_owned(),
            (true, false) => "f32".to_owned(),
        };
        let error = format!("{:.2} %", l.error * 100.0);
        vec![l.name.clone(), shape.join("x"), term::zeros(l.zeros, l.elements), error, what]
    };
    let rows: Vec<Vec<String>> = layers.iter().map(row).collect();
    term::table(&["layer", "weight", ">zeros", ">error", "becomes"], &rows)
}
