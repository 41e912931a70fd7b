//! `lacuna predict detect`: boxes on pictures.

use crate::error::{Exit, Failure, Result};
use crate::model_file::{self, WeightsName};
use crate::term;
use lacuna_data::images::{image_files, load_image};
use lacuna_pipelines::detector::Thresholds;
use lacuna_pipelines::draw::{draw, save_png};
use lacuna_pipelines::{Detection, Detector};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(clap::Args, Debug)]
pub struct Detect {
    /// File of weights, or .onnx or .lacuna file
    #[arg(value_name = "MODEL")]
    path: PathBuf,
    /// PNG or JPEG files, or folders of them
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    /// Model that the weights are for, where the file does not name it (see lacuna zoo list)
    #[arg(long)]
    model: Option<String>,
    /// Write each picture with its boxes to this folder, as PNG
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Least score of a box
    #[arg(long, default_value_t = Thresholds::default().score, value_parser = share)]
    score: f32,
    /// Most overlap (intersection over union) with a better box of the same class
    #[arg(long, default_value_t = Thresholds::default().overlap, value_parser = share)]
    iou: f32,
    /// Most boxes of a picture
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=30_000))]
    most: u32,
    /// Threads; all cores if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// From 0 to 1.
fn share(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|e| format!("{e}"))?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err("not from 0 to 1".into()) }
}

pub fn run(options: Detect) -> Result<()> {
    let model = model_file::open(&options.path, WeightsName::Best, options.model.as_deref())?;
    let path = model.path().to_owned();
    let mut graph = model.into_graph()?;
    graph.name = path.display().to_string();
    let mut detector = Detector::new(&graph, options.threads.map(|n| n as usize))?;
    drop(graph);
    let thresholds = Thresholds { score: options.score, overlap: options.iou, most: options.most as usize };
    if let Some(dir) = &options.output {
        std::fs::create_dir_all(dir).map_err(|e| Failure::io(dir, e))?;
    }

    let (mut files, mut failed) = (Vec::new(), Vec::new());
    for given in &options.images {
        match image_files(given) {
            Ok(found) => files.extend(found),
            Err(e) => failed.push((given.clone(), Failure::from(e))),
        }
    }
    let bar = term::bar(files.len() as u64);
    let mut results = Vec::new();
    for file in files {
        match one(&mut detector, &file, &thresholds, options.output.as_deref()) {
            Ok(found) => results.push((file, found)),
            Err(failure) if failure.exit == Exit::Data => failed.push((file, failure)),
            Err(failure) => return Err(failure),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();

    if options.json {
        let picture = |(file, found): &(PathBuf, Vec<Detection>)| {
            let one = |d: &Detection| json!({ "class": d.class, "label": detector.classes[d.class], "score": d.score, "box": d.corners });
            json!({ "image": file.display().to_string(), "objects": found.iter().map(one).collect::<Vec<_>>() })
        };
        let error = |(file, failure): &(PathBuf, Failure)| json!({ "image": file.display().to_string(), "error": failure.to_string() });
        term::say_json(&json!({
            "model": path.display().to_string(),
            "results": results.iter().map(picture).collect::<Vec<_>>(),
            "errors": failed.iter().map(error).collect::<Vec<_>>(),
        }));
    } else if !results.is_empty() {
        term::say(table(&results, &detector.classes));
    }
    if failed.is_empty() {
        return Ok(());
    }
    let all = failed.len() + results.len();
    let count = format!("predict: {} of {all} pictures could not be used", failed.len());
    let messages = failed.into_iter().flat_map(|(_, failure)| failure.messages).chain([count]).collect();
    Err(Failure { exit: Exit::Data, messages })
}

fn one(
    detector: &mut Detector,
    file: &Path,
    thresholds: &Thresholds,
    output: Option<&Path>,
) -> Result<Vec<Detection>> {
    let mut picture = load_image(file)?;
    let found = detector.detect(&picture, thresholds)?;
    if let Some(dir) = output {
        draw(&mut picture, &found, &detector.classes);
        let stem = file.file_stem().unwrap_or_default();
        save_png(&picture, &dir.join(stem).with_extension("png"))?;
    }
    Ok(found)
}

fn table(results: &[(PathBuf, Vec<Detection>)], classes: &[String]) -> String {
    let mut rows = Vec::new();
    for (file, found) in results {
        let name = file.display().to_string();
        if found.is_empty() {
            rows.push(vec![name.clone(), "nothing".into(), String::new(), String::new()]);
        }
        for (i, d) in found.iter().enumerate() {
            let corners = d.corners.map(|v| format!("{v:.0}")).join(" ");
            let name = if i == 0 { name.clone() } else { String::new() };
            rows.push(vec![name, classes[d.class].clone(), format!("{:.3}", d.score), corners]);
        }
    }
    term::table(&["image", "object", ">score", ">left top right bottom"], &rows)
}
