//! The average precision of a detector on pictures with boxes.

use crate::error::{Failure, Result};
use crate::model_file::Trained;
use crate::term;
use lacuna_data::average_precision::{STATS, Scores};
use lacuna_data::boxes::{BoxAugment, Label};
use lacuna_data::detection::{self, BoxSet, Part, Reader};
use lacuna_ir::Graph;
use lacuna_nn::Classifier;
use lacuna_pipelines::detector::Thresholds;
use lacuna_pipelines::inputs::{Inputs, image_set};
use lacuna_pipelines::scores::{MOST, OVERLAP_MAX, SCORE_MIN, scores_of};
use lacuna_pipelines::{Detection, Detector};
use serde_json::json;
use std::path::Path;
use std::time::Instant;

/// Which pictures.
pub struct Which<'a> {
    pub dir: &'a Path,
    pub part: Part,
    /// Side of the tiles that they are cut into.
    pub tile: Option<usize>,
    /// At most so many.
    pub most: Option<usize>,
}

impl Which<'_> {
    /// With classes numbered as the detector numbers them.
    fn open(&self, classes: &[String]) -> Result<BoxSet> {
        let mut set =
            detection::open(self.dir, self.part)?.with_classes(classes, self.dir)?.tiled(self.tile)?;
        set.pictures.truncate(self.most.unwrap_or(usize::MAX));
        Ok(set)
    }
}

/// What was measured.
pub struct Measured {
    pub pictures: usize,
    pub boxes: usize,
    pub map: f64,
    pub map50: f64,
    /// Of each class that has boxes; all numbers of COCO. In the pixels of the pictures.
    pub details: Option<(Vec<String>, Scores)>,
    pub seconds: f64,
}

/// On the engine, through the same steps as `lacuna predict detect`; boxes in the pictures' own pixels.
pub fn on_engine(graph: &Graph, which: &Which<'_>, threads: Option<usize>) -> Result<Measured> {
    let mut detector = Detector::new(graph, threads)?;
    let set = which.open(&detector.classes)?;
    let thresholds = Thresholds { score: SCORE_MIN, overlap: OVERLAP_MAX, most: MOST };
    let bar = term::bar(set.pictures.len() as u64);
    let (mut reader, mut found) = (Reader::default(), Vec::with_capacity(set.pictures.len()));
    let start = Instant::now();
    for picture in &set.pictures {
        let boxes: Vec<Detection> = detector.detect(&reader.read(picture)?, &thresholds)?;
        found.push(boxes);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let labels = |picture: usize| -> Vec<Label> {
        let objects = set.objects_of(picture).iter();
        objects
            .map(|o| Label {
                class: o.class,
                corners: o.corners,
                area: o.area,
                crowd: o.crowd,
                ignored: o.ignored,
            })
            .collect()
    };
    let scores = scores_of(&found, &labels, set.classes.len());
    Ok(Measured {
        pictures: set.pictures.len(),
        boxes: (0..set.pictures.len()).map(|picture| set.objects_of(picture).len()).sum(),
        map: scores.map(),
        map50: scores.map50(),
        details: Some((set.classes, scores)),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// By the training's own forward pass, as a training evaluates; boxes in the pixels of the network's input.
pub fn on_burn(trained: &Trained, which: &Which<'_>) -> Result<Measured> {
    let Some(text) = trained.metadata.get("lacuna.classes") else {
        let what = "does not name its classes (leave --burn out)";
        return Err(Failure::input(format!("{}: {what}", trained.path.display())));
    };
    let classes: Vec<String> = serde_json::from_str(text)
        .map_err(|e| Failure::input(format!("{}: lacuna.classes: {e}", trained.path.display())))?;
    if trained.net.head().is_none() {
        let what = "burn only evaluates what it trains, and this has no loss yet (leave --burn out)";
        return Err(Failure::usage(format!("model {}: {what}", trained.row.name)));
    }
    let Some([_, h, w]) = trained.image else {
        return Err(Failure::input(format!("model {}: takes no images", trained.row.name)));
    };
    let inputs = Inputs { size: [h, w], tile: None, augment: BoxAugment::NONE };
    let set = image_set(&which.open(&classes)?, &inputs)?;
    let start = Instant::now();
    let scores = lacuna_train::evaluate(&trained.net, &set, &trained.pass)?;
    let value = |i: usize| scores.get(i).map_or(0.0, |score| score.1);
    Ok(Measured {
        pictures: set.len(),
        boxes: set.boxes.map_or(0, |boxes| boxes.labels.len()),
        map: value(0),
        map50: value(1),
        details: None,
        seconds: start.elapsed().as_secs_f64(),
    })
}

pub fn say(path: &str, runs_on: &str, dir: &Path, result: &Measured, as_json: bool) {
    let Measured { pictures, boxes, map, map50, details, seconds } = result;
    if as_json {
        let mut value = json!({
            "model": path, "data": dir.display().to_string(), "runs_on": runs_on, "images": pictures, "boxes": boxes,
            "mAP50": map50, "mAP50-95": map, "seconds": seconds,
        });
        if let Some((classes, scores)) = details {
            let stats =
                STATS.iter().zip(scores.stats).map(|(name, value)| ((*name).to_owned(), json!(value)));
            value["coco"] = serde_json::Value::Object(stats.collect());
            let class = |(name, of): (&String, &Option<[f64; 2]>)| {
                of.map(|[map, map50]| json!({ "class": name, "mAP50": map50, "mAP50-95": map }))
            };
            value["classes"] = classes.iter().zip(&scores.per_class).filter_map(class).collect();
        }
        term::say_json(&value);
        return;
    }
    if let Some((classes, scores)) = details {
        let row = |(name, of): (&String, &Option<[f64; 2]>)| {
            of.map(|[map, map50]| vec![name.clone(), percent(map50), percent(map)])
        };
        let rows: Vec<Vec<String>> = classes.iter().zip(&scores.per_class).filter_map(row).collect();
        term::say(term::table(&["class", ">mAP50", ">mAP50-95"], &rows));
    }
    term::say(format_args!(
        "{path} on {pictures} pictures with {boxes} boxes ({})\nmAP50 {}, mAP50-95 {}  ({runs_on}, {seconds:.2} s)",
        dir.display(),
        percent(*map50),
        percent(*map)
    ));
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}
