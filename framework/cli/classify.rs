//! An image classifier on the engine: images in, logits out, whatever batch the model file fixed.

use crate::error::{Failure, Result};
use lacuna_data::{BatchSpec, Batches, ImageSet, metrics};
use lacuna_engine::{InputRef, Options, OutputMut, Session};
use lacuna_ir::{DType, Graph, OpKind};
use std::time::Instant;

/// Images per run where the model leaves it open.
const EVAL_BATCH: usize = 64;

pub struct Classifier {
    session: Session,
    /// Channels, height, width.
    pub input: [usize; 3],
    pub classes: usize,
    /// Images per run: the model's, or as many as are given.
    fixed_batch: Option<usize>,
    /// The graph ends in a softmax of its own.
    gives_probabilities: bool,
    padded: Vec<f32>,
}

/// A result on a labelled set.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Evaluation {
    pub images: usize,
    pub correct: usize,
    /// 0 to 1.
    pub top1: f64,
    pub seconds: f64,
}

impl Evaluation {
    pub fn new(images: usize, correct: usize, seconds: f64) -> Evaluation {
        Evaluation { images, correct, top1: correct as f64 / images.max(1) as f64, seconds }
    }
}

impl Classifier {
    /// Compiles a graph with one f32 input `[n, c, h, w]` whose first output is f32 `[n, classes]`.
    pub fn new(graph: &Graph, threads: Option<usize>) -> Result<Classifier> {
        let session = Session::new(graph, &Options { threads, ..Options::default() })?;
        let misfit = |what: String| {
            Failure::input(format!("{}: not an image classifier: {what} (see `lacuna analyze`)", graph.name))
        };
        let [input] = session.inputs() else {
            return Err(misfit(format!("it has {} inputs", session.inputs().len())));
        };
        let &[batch, Some(c), Some(h), Some(w)] = input.dims.as_slice() else {
            return Err(misfit(format!("input '{}' is not [n, channels, height, width]", input.name)));
        };
        let output = session.outputs().first().ok_or_else(|| misfit("it has no output".into()))?;
        let &[_, Some(classes)] = output.dims.as_slice() else {
            return Err(misfit(format!("output '{}' is not [n, classes]", output.name)));
        };
        if input.dtype != DType::F32 || output.dtype != DType::F32 || session.outputs().len() > 1 {
            return Err(misfit("it needs one f32 input and one f32 output".into()));
        }
        if batch == Some(0) || classes == 0 || c * h * w == 0 {
            return Err(misfit("a dimension is 0".into()));
        }
        let last = graph.outputs.first().and_then(|&v| graph.producer(v));
        let gives_probabilities = last.is_some_and(|op| graph.op_kind[op] == OpKind::Softmax);
        let input = [c, h, w];
        Ok(Classifier {
            session,
            input,
            classes,
            fixed_batch: batch,
            gives_probabilities,
            padded: Vec::new(),
        })
    }

    /// Logits `[n, classes]` of `n` images `x`, `[n, c, h, w]`.
    pub fn logits(&mut self, x: &[f32], n: usize) -> Result<Vec<f32>> {
        let [c, h, w] = self.input;
        let pixels = c * h * w;
        let mut out = vec![0.0; n * self.classes];
        let Some(batch) = self.fixed_batch.filter(|&b| b != n) else {
            self.run(x, n, &mut out)?;
            return Ok(out);
        };
        // Runs of the fixed batch; the last is filled up with zeros.
        let mut padded = std::mem::take(&mut self.padded);
        let mut part = vec![0.0; batch * self.classes];
        for (x, out) in x.chunks(batch * pixels).zip(out.chunks_mut(batch * self.classes)) {
            padded.clear();
            padded.extend_from_slice(x);
            padded.resize(batch * pixels, 0.0);
            self.run(&padded, batch, &mut part)?;
            out.copy_from_slice(&part[..out.len()]);
        }
        self.padded = padded;
        Ok(out)
    }

    fn run(&mut self, x: &[f32], n: usize, out: &mut [f32]) -> Result<()> {
        let [c, h, w] = self.input;
        let dims = [n, c, h, w];
        Ok(self.session.run_into(&[InputRef::f32(&dims, x)], &mut [OutputMut::f32(out)])?)
    }

    /// Probabilities from one image's row of logits.
    pub fn probabilities(&self, logits: &[f32]) -> Vec<f32> {
        if self.gives_probabilities {
            return logits.to_vec();
        }
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exp: Vec<f32> = logits.iter().map(|v| (v - top).exp()).collect();
        let sum: f32 = exp.iter().sum();
        exp.iter().map(|e| e / sum).collect()
    }

    /// Top-1 on every image of `set`; `step` is told how many more are done.
    pub fn evaluate(&mut self, set: &ImageSet, mut step: impl FnMut(u64)) -> Result<Evaluation> {
        let ([c, h, w], classes) = (self.input, self.classes);
        if [c, h, w] != [set.c, set.h, set.w] || classes != set.classes.len() {
            return Err(Failure::input(format!(
                "model: takes {c}x{h}x{w} images of {classes} classes, the data has {}x{}x{} of {} (give other --data)",
                set.c,
                set.h,
                set.w,
                set.classes.len()
            )));
        }
        let start = Instant::now();
        let (mut images, mut correct) = (0, 0);
        for batch in Batches::new(set, BatchSpec::eval(self.fixed_batch.unwrap_or(EVAL_BATCH)))? {
            let logits = self.logits(&batch.x, batch.y.len())?;
            correct += metrics::top_k_correct(&logits, classes, &batch.y, 1)?;
            images += batch.y.len();
            step(batch.y.len() as u64);
        }
        Ok(Evaluation::new(images, correct, start.elapsed().as_secs_f64()))
    }
}

/// Top-1 of a graph on the engine.
pub fn evaluate(graph: &Graph, set: &ImageSet, threads: Option<usize>) -> Result<Evaluation> {
    Classifier::new(graph, threads)?.evaluate(set, |_| {})
}
