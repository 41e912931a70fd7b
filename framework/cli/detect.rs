//! `lacuna predict detect` and `lacuna predict segment`: boxes on pictures, and masks.

use crate::error::{Failure, Result};
use crate::model_file::{self, WeightsName};
use crate::predict::each_image;
use crate::samples::height_and_width;
use crate::term;
use lacuna_data::images::load_image;
use lacuna_pipelines::detector::{Reading, Segment, Thresholds};
use lacuna_pipelines::draw::{draw, draw_segments, save_png};
use lacuna_pipelines::masks::Mask;
use lacuna_pipelines::{Detection, Detector};
use serde_json::{Value, json};
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
    /// How to read the results of a file of others: yolox, yolov5, yolov8, ssd300, ssdlite, ssd_mobilenet or yolact; told
    /// from their shapes if not given
    #[arg(long, value_name = "NAME")]
    head: Option<String>,
    /// Height and width of the network's input, where the file leaves them open
    #[arg(long, value_name = "H,W", value_parser = height_and_width)]
    size: Option<[usize; 2]>,
    /// Text file of the names of the classes, one a line, where the model file does not say them
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Write each picture with what was found on it to this folder, as PNG
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

/// Most bytes of a file of names.
const CLASSES_BYTES_MAX: u64 = 1 << 20;

/// The lines of a file of names.
fn class_names(path: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::metadata(path).map_err(|e| Failure::io(path, e))?.len();
    if bytes > CLASSES_BYTES_MAX {
        let what = format!("{bytes} bytes of names, at most {CLASSES_BYTES_MAX}");
        return Err(Failure::input(format!("{}: {what}", path.display())));
    }
    let text = std::fs::read_to_string(path).map_err(|e| Failure::io(path, e))?;
    Ok(text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect())
}

/// An object, and its mask if that was asked for.
type Found = (Detection, Option<Mask>);

/// `masks`: whether masks are asked for.
pub fn run(options: Detect, masks: bool) -> Result<()> {
    let reading = Reading {
        head: options.head.clone(),
        size: options.size,
        classes: options.classes.as_deref().map(class_names).transpose()?,
    };
    let model = model_file::open(&options.path, WeightsName::Best, options.model.as_deref())?;
    let path = model.path().to_owned();
    let mut graph = model.into_graph()?;
    graph.name = path.display().to_string();
    let mut detector = Detector::with(&graph, options.threads.map(|n| n as usize), &reading)?;
    drop(graph);
    if masks && !detector.has_masks() {
        let what = "finds boxes and no masks (use `lacuna predict detect`)";
        return Err(Failure::input(format!("{}: {what}", path.display())));
    }
    let thresholds = Thresholds { score: options.score, overlap: options.iou, most: options.most as usize };
    if let Some(dir) = &options.output {
        std::fs::create_dir_all(dir).map_err(|e| Failure::io(dir, e))?;
    }
    let done = each_image(&options.images, |file| {
        one(&mut detector, file, &thresholds, masks, options.output.as_deref())
    })?;
    if options.json {
        let object = |(d, mask): &Found| {
            let mut object = json!({ "class": d.class, "label": detector.classes[d.class], "score": d.score, "box": d.corners });
            if let Some(mask) = mask {
                object["area"] = json!(mask.area());
                object["segmentation"] = json!(mask);
            }
            object
        };
        let objects = |found: &Vec<Found>| -> Value { found.iter().map(object).collect() };
        term::say_json(&done.as_json(&path, "objects", objects));
    } else if !done.results.is_empty() {
        term::say(table(&done.results, &detector.classes, masks));
    }
    done.end("could not be used")
}

fn one(
    detector: &mut Detector,
    file: &Path,
    thresholds: &Thresholds,
    masks: bool,
    output: Option<&Path>,
) -> Result<Vec<Found>> {
    let mut picture = load_image(file)?;
    let segments = if masks { detector.segment(&picture, thresholds)? } else { Vec::new() };
    let found = if masks { Vec::new() } else { detector.detect(&picture, thresholds)? };
    if let Some(dir) = output {
        match masks {
            true => draw_segments(&mut picture, &segments, &detector.classes),
            false => draw(&mut picture, &found, &detector.classes),
        }
        let stem = file.file_stem().unwrap_or_default();
        save_png(&picture, &dir.join(stem).with_extension("png"))?;
    }
    let outlined = segments.into_iter().map(|Segment { detection, mask }| (detection, Some(mask)));
    Ok(found.into_iter().map(|d| (d, None)).chain(outlined).collect())
}

fn table(results: &[(PathBuf, Vec<Found>)], classes: &[String], masks: bool) -> String {
    let mut rows = Vec::new();
    for (file, found) in results {
        let name = file.display().to_string();
        if found.is_empty() {
            rows.push(vec![name.clone(), "nothing".into()]);
        }
        for (i, (d, mask)) in found.iter().enumerate() {
            let corners = d.corners.map(|v| format!("{v:.0}")).join(" ");
            let name = if i == 0 { name.clone() } else { String::new() };
            let mut row = vec![name, classes[d.class].clone(), format!("{:.3}", d.score), corners];
            row.extend(mask.as_ref().map(|mask| mask.area().to_string()));
            rows.push(row);
        }
    }
    let titles = ["image", "object", ">score", ">left top right bottom", ">pixels"];
    term::table(&titles[..if masks { 5 } else { 4 }], &rows)
}
