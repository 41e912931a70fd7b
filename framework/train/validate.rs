//! Accuracy on a test set: by the module's own forward pass, or by the engine that will run it one day.
//!
//! The engine is faster: on resnet20, 90 % pruned, and two cores, `lacuna eval RUN` took 0.11 s in int8 and 0.54 s in f32
//! where `lacuna eval RUN --burn` took 0.95 s and 0.80 s. So [`validate`] prefers it, under a rule that has the same
//! outcome on every run: the first batch is computed both ways, and the engine does the rest if both put every image of
//! it into the same class.

use crate::detection;
use crate::error::{Error, Result};
use crate::inputs::input_of;
use lacuna_data::{Batch, BatchSpec, Batches, ImageSet, SetRef, metrics};
use lacuna_engine::{InputRef, Options, OutputMut, Session};
use lacuna_nn::capture::{capture, capture_tokens};
use lacuna_nn::quant::Pass;
use lacuna_nn::{BoxHead, Classifier};
use lacuna_pipelines::boxes::nms;
use lacuna_pipelines::heads::Result as Map;
use lacuna_pipelines::scores::{MOST, OVERLAP_MAX, SCORE_MIN, scores_of};

/// Images or texts per run.
const BATCH: usize = 250;

/// What computed an accuracy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evaluator {
    Engine,
    Module,
}

impl Evaluator {
    pub fn name(self) -> &'static str {
        match self {
            Evaluator::Engine => "engine",
            Evaluator::Module => "module",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Names and values, 0 to 1; the first is the one to compare by.
    pub scores: Vec<(&'static str, f64)>,
    pub evaluator: Evaluator,
    /// Why this one.
    pub why: String,
}

/// Top-1 accuracy.
pub const TOP1: &str = "metrics/accuracy_top1";
/// Average precision of detectors, over overlaps from 0.5 to 0.95, and at 0.5.
pub const MAP: &str = "metrics/mAP50-95";
pub const MAP50: &str = "metrics/mAP50";

/// Scores (0..1) of a module on a device without autodiff, by its own forward pass: top-1 accuracy, or the average precision
/// of a detector.
pub fn evaluate<'a, M: Classifier>(
    module: &M,
    set: impl Into<SetRef<'a>>,
    pass: &Pass,
) -> Result<Vec<(&'static str, f64)>> {
    let set = set.into();
    if let Some(head) = module.head() {
        return detections(module, &head, set, pass);
    }
    let mut score = Score::default();
    for batch in Batches::new(set, BatchSpec::eval(BATCH))? {
        score.add(&module_logits(module, &batch, pass)?, &batch.y)?;
    }
    Ok(vec![(TOP1, score.accuracy())])
}

/// As [`evaluate`], by the engine where that agrees with the module on the first batch.
pub fn validate<'a, M: Classifier>(
    module: &M,
    set: impl Into<SetRef<'a>>,
    pass: &Pass,
) -> Result<Evaluation> {
    let set = set.into();
    if module.head().is_some() {
        let scores = evaluate(module, set, pass)?;
        return Ok(Evaluation {
            scores,
            evaluator: Evaluator::Module,
            why: "a detector is evaluated as it is trained".into(),
        });
    }
    let mut batches = Batches::new(set, BatchSpec::eval(BATCH))?;
    let mut score = Score::default();
    let Some(first) = batches.next() else {
        let scores = vec![(TOP1, 0.0)];
        return Ok(Evaluation { scores, evaluator: Evaluator::Module, why: "no data".into() });
    };
    let logits = module_logits(module, &first, pass)?;
    score.add(&logits, &first.y)?;
    let classes = logits.len() / first.y.len();
    let (mut session, why) = match agreeing_engine(module, pass, &first, &logits) {
        Ok(session) => {
            (Some(session), format!("the same classes for the first {} {}", first.y.len(), kind(&first)))
        }
        Err(why) => (None, why),
    };
    let mut batch = first;
    while batches.fill(&mut batch) {
        let logits = match &mut session {
            Some(session) => engine_logits(session, &batch, classes).map_err(Error::Engine)?,
            None => module_logits(module, &batch, pass)?,
        };
        score.add(&logits, &batch.y)?;
    }
    let evaluator = if session.is_some() { Evaluator::Engine } else { Evaluator::Module };
    Ok(Evaluation { scores: vec![(TOP1, score.accuracy())], evaluator, why })
}

/// Images of a detector in a run: they are large.
const BATCH_OF_BOXES: usize = 8;

/// Average precision in the pixels of the set, where boxes of all scores count.
fn detections<M: Classifier>(
    module: &M,
    head: &BoxHead,
    set: SetRef<'_>,
    pass: &Pass,
) -> Result<Vec<(&'static str, f64)>> {
    let SetRef::Images(set @ ImageSet { boxes: Some(boxes), .. }) = set else {
        return Err(Error::Recipe("the network detects, and the images have no boxes".into()));
    };
    let device = module.devices().first().cloned().unwrap_or_default();
    let (decoder, size) = (detection::head_of(head), [set.h, set.w]);
    let mut found = Vec::new();
    for mut batch in Batches::new(set, BatchSpec::eval(BATCH_OF_BOXES))? {
        let images = batch.dims[0];
        let x = input_of(&mut batch, &device);
        let mut maps: Vec<(Vec<usize>, Vec<f32>)> = Vec::new();
        for map in module.maps(x, pass) {
            let dims = map.dims()[1..].to_vec();
            maps.push((dims, map.into_data().try_into_vec().map_err(|e| Error::Weights(format!("{e:?}")))?));
        }
        for image in 0..images {
            let views = maps.iter().map(|(dims, values)| {
                let each = values.len() / images;
                Map { dims, values: &values[image * each..(image + 1) * each] }
            });
            let views: Vec<Map<'_>> = views.collect();
            let all = decoder.decode(&views, size, SCORE_MIN);
            found.push(nms(all, OVERLAP_MAX, MOST));
        }
    }
    let scores = scores_of(&found, &|image| boxes.of(image).to_vec(), set.classes.len());
    Ok(vec![(MAP, scores.map()), (MAP50, scores.map50())])
}

#[derive(Default)]
struct Score {
    correct: usize,
    seen: usize,
}

impl Score {
    fn add(&mut self, logits: &[f32], labels: &[i64]) -> Result<()> {
        self.correct += metrics::top_k_correct(logits, logits.len() / labels.len(), labels, 1)?;
        self.seen += labels.len();
        Ok(())
    }

    fn accuracy(&self) -> f64 {
        self.correct as f64 / self.seen.max(1) as f64
    }
}

fn module_logits<M: Classifier>(module: &M, batch: &Batch, pass: &Pass) -> Result<Vec<f32>> {
    let device = module.devices().first().cloned().unwrap_or_default();
    let x = input_of(&mut batch.clone(), &device);
    module.forward(x, pass).into_data().try_into_vec().map_err(|e| Error::Weights(format!("{e:?}")))
}

fn engine_logits(session: &mut Session, batch: &Batch, classes: usize) -> lacuna_engine::Result<Vec<f32>> {
    let mut logits = vec![0.0; batch.y.len() * classes];
    let out = &mut [OutputMut::f32(&mut logits)];
    match &batch.tokens {
        None => session.run_into(&[InputRef::f32(&batch.dims, &batch.x)], out)?,
        Some(tokens) => {
            let mask: Vec<i64> = tokens.mask.iter().map(|&m| i64::from(m != 0.0)).collect();
            let dims = &tokens.dims;
            session.run_into(&[InputRef::i64(dims, &tokens.ids), InputRef::i64(dims, &mask)], out)?;
        }
    }
    Ok(logits)
}

/// What a batch is of, for messages.
fn kind(batch: &Batch) -> &'static str {
    if batch.tokens.is_some() { "texts" } else { "images" }
}

/// The module compiled, if it gives `batch` the classes of `logits`; else why it will not do.
fn agreeing_engine<M: Classifier>(
    module: &M,
    pass: &Pass,
    batch: &Batch,
    logits: &[f32],
) -> std::result::Result<Session, String> {
    let classes = logits.len() / batch.y.len();
    let captured = match (&batch.tokens, batch.dims) {
        (None, [_, c, h, w]) => {
            capture(module, "input", [1, c, h, w], &["logits"], |m, x| m.forward(x, pass))
        }
        (Some(_), _) => capture_tokens(module, false, &["logits"], |m, x| m.forward(x, pass)),
    };
    let mut graph = captured.map_err(|e| format!("the module is no graph: {e}"))?;
    lacuna_ir::passes::simplify(&mut graph).map_err(|e| e.to_string())?;
    let threads = Some(rayon::current_num_threads());
    let options = Options { threads, batch: Some(batch.y.len()), ..Options::default() };
    let engine = |e: lacuna_engine::Error| format!("the engine cannot run it: {e}");
    let mut session = Session::new(&graph.compact(), &options).map_err(engine)?;
    let found = engine_logits(&mut session, batch, classes).map_err(engine)?;
    let rows = logits.chunks_exact(classes).zip(found.chunks_exact(classes));
    let other = rows.filter(|(a, b)| metrics::argmax(a) != metrics::argmax(b)).count();
    match other {
        0 => Ok(session),
        n => {
            let (all, kind) = (batch.y.len(), kind(batch));
            Err(format!("the engine puts {n} of the first {all} {kind} into another class"))
        }
    }
}
