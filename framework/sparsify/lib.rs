//! Post-training sparsification: any graph of the model level becomes sparse and eight-bit without training.
//!
//! ```text
//! layers      which ops have weights that can be pruned and quantised            (layers.rs)
//! calibrate   what values hold, measured on samples by the engine                (calibrate.rs, range.rs)
//! prune       which weights go: by magnitude, activation-aware                   (prune.rs)
//! reconstruct ... or so that those that stay make up for them                    (reconstruct.rs, moments.rs)
//! select      which values become eight-bit                                      (select.rs)
//! rewrite     the graph again, with new weights and QuantizeLinear pairs         (rewrite.rs)
//! revert      layers that cost too much accuracy get their own weights back      (revert.rs)
//! ```
//! [`Oneshot`] holds what is measured once; [`Oneshot::apply`] makes one graph of it, for any set of layers that are left
//! alone. Weights are symmetric per output channel, activations u8 per tensor, as ONNX's QDQ form and the engine's integer
//! kernels have them.

#![forbid(unsafe_code)]

mod calibrate;
mod error;
mod layers;
mod moments;
mod prune;
mod range;
mod reconstruct;
mod revert;
mod rewrite;
mod select;

pub use calibrate::Stats;
pub use error::{Error, Result};
pub use layers::{Layer, Layers, layers};
pub use prune::{Structure, keep};
pub use range::{RangeRule, Ranges};
pub use revert::{Reverted, revert_until};

use calibrate::{Observed, calibrate};
use lacuna_ir::{Graph, IdVec, Tensor, ValueId};
use moments::Moments;
use reconstruct::reconstruct;
use rewrite::{Edits, rewrite};
use serde::Serialize;

/// Whether layers become eight-bit, and when their inputs' ranges are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantize {
    No,
    /// Ranges are measured on samples and are part of the file (QuantizeLinear / DequantizeLinear pairs).
    Static,
    /// Inputs of convolutions and matrix products are quantised over the range they have in each run
    /// (DynamicQuantizeLinear, ConvInteger, MatMulInteger); all else stays f32. Needs no samples.
    Dynamic,
}

/// How it is decided which weights go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The smallest.
    Magnitude,
    /// The smallest after multiplication with the energy of the channel that they multiply (Wanda). Needs samples.
    Activation,
    /// Those that the others can make up for best, which then do (SparseGPT). Needs samples. Layers in groups and those
    /// with very long windows go by [`Method::Activation`].
    Reconstruction,
}

/// What [`Oneshot::apply`] makes of a graph.
#[derive(Clone, Debug)]
pub struct Options {
    /// Share of the weights of every prunable layer that become zero, 0 to 1.
    pub sparsity: f64,
    pub structure: Structure,
    pub method: Method,
    pub quantize: Quantize,
    pub range: RangeRule,
    /// Biases take over the mean of what rounding and pruning change (Nagel et al., ICCV 2019, section 4.2). Needs samples.
    pub correct_biases: bool,
    /// Ops whose names match are left alone.
    pub keep: Vec<regex::Regex>,
    /// Threads of the engine while it measures; all cores if absent.
    pub threads: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            sparsity: 0.0,
            structure: Structure::Unstructured,
            method: Method::Magnitude,
            quantize: Quantize::No,
            range: RangeRule::MinMax,
            correct_biases: true,
            keep: Vec::new(),
            threads: None,
        }
    }
}

/// What became of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerReport {
    pub name: String,
    pub kind: &'static str,
    /// Of the weight.
    pub shape: Vec<usize>,
    pub zeros: u64,
    pub elements: u64,
    pub quantized: bool,
    /// Energy of the error that the new weights make in the layer's result, relative to the result's own, estimated
    /// from the energies of the input's channels; their shape alone where nothing was measured.
    pub error: f64,
    /// Why the layer was left alone; empty if it was not.
    pub kept: String,
}

/// A graph and what was measured of it.
pub struct Oneshot {
    graph: Graph,
    layers: Layers,
    stats: IdVec<ValueId, Option<Stats>>,
    /// The pruned weights of each layer; absent where none go.
    pruned: Vec<Option<Vec<f32>>>,
    options: Options,
}

impl Oneshot {
    /// Prepares `g`: folds batch norms into the layers before them, finds the layers, and measures on `samples` (the
    /// inputs of one run each, in the graph's order).
    ///
    /// # Errors
    /// [`Error::Options`] for a sparsity outside 0..1 or that the structure does not have, and for what needs samples where
    /// there are none; [`Error::Sample`] for a sample that the graph does not take, and for values that are not finite.
    pub fn new(g: &Graph, samples: &[Vec<Tensor>], options: Options) -> Result<Oneshot> {
        if !(0.0..1.0).contains(&options.sparsity) {
            return Err(Error::Options(format!("sparsity {} is not in 0..1", options.sparsity)));
        }
        if options.sparsity > 0.0 {
            options.structure.check(options.sparsity).map_err(Error::Options)?;
        }
        if options.sparsity > 0.0 && options.method != Method::Magnitude && samples.is_empty() {
            return Err(Error::Options(
                "pruning by activations needs some: give samples, or prune by magnitude".into(),
            ));
        }
        if options.quantize == Quantize::Static && samples.is_empty() {
            return Err(Error::Options("activations are quantised to measured ranges: give samples".into()));
        }
        let mut graph = g.clone();
        lacuna_ir::passes::simplify(&mut graph)?;
        let graph = graph.compact();
        let layers = layers(&graph, &options.keep);
        if layers.rows.is_empty() {
            return Err(Error::Options("the model has no layer whose weights are f32 constants".into()));
        }
        let mut stats = IdVec::filled(None, graph.value_name.len());
        let mut moments: Vec<Option<Moments>> = vec![None; layers.rows.len()];
        if !samples.is_empty() {
            if options.sparsity > 0.0 && options.method == Method::Reconstruction {
                moments = layers.rows.iter().map(|l| Moments::of(&graph, l)).collect();
            }
            let fixed = options.quantize == Quantize::Static;
            let observed = observed(&graph, &layers, fixed);
            let histograms = fixed && options.range != RangeRule::MinMax;
            let mut each = |v: ValueId, t: &Tensor, x: &[f32]| {
                let of = layers.rows.iter().zip(&mut moments).filter(|(l, _)| l.x == v);
                of.for_each(|(_, m)| m.iter_mut().for_each(|m| m.add(t, x)));
            };
            stats = calibrate(&graph, &observed, samples, histograms, options.threads, &mut each)?;
        }
        let pruned: Vec<Option<Vec<f32>>> = layers
            .rows
            .iter()
            .zip(&mut moments)
            .map(|(layer, moments)| pruned(&graph, layer, stats[layer.x].as_ref(), moments.take(), &options))
            .collect();
        Ok(Oneshot { graph, layers, stats, pruned, options })
    }

    pub fn layers(&self) -> &[Layer] {
        &self.layers.rows
    }

    /// The graph with every layer pruned and quantised but those of `reverted` (one entry for each of
    /// [`Oneshot::layers`]), and what became of each layer.
    pub fn apply(&self, reverted: &[bool]) -> Result<(Graph, Vec<LayerReport>)> {
        let (g, quantize) = (&self.graph, self.options.quantize);
        let mut edits = Edits::none(g);
        let mut reports = Vec::with_capacity(self.layers.rows.len());
        for ((layer, pruned), &reverted) in self.layers.rows.iter().zip(&self.pruned).zip(reverted) {
            let w = g.const_f32(layer.weight).ok_or_else(|| Error::Layer {
                layer: layer.name.clone(),
                why: "its weights are not f32 constants".into(),
            })?;
            let energy = self.stats[layer.x].as_ref().map(|s| s.channel_energy(layer.in_channels()));
            let kept = match reverted {
                true => "its error was too large for the drop allowed".to_string(),
                false => layer.kept.clone(),
            };
            let new = match pruned {
                Some(pruned) if kept.is_empty() => pruned.clone(),
                _ => w.to_vec(),
            };
            let quantized = quantize != Quantize::No && kept.is_empty();
            let scales = quantized.then(|| layer.weight_scales(&new));
            let effective = match &scales {
                Some(scales) => layer.rounded(&new, scales),
                None => new.clone(),
            };
            if kept.is_empty()
                && self.options.correct_biases
                && let Some(stats) = &self.stats[layer.x]
            {
                let mean = stats.channel_mean(layer.in_channels());
                edits.shift(g, layer, &layer.lost_mean(&w, &effective, &mean));
            }
            reports.push(LayerReport {
                name: layer.name.clone(),
                kind: g.op_kind[layer.op].name(),
                shape: layer.dims.clone(),
                zeros: effective.iter().filter(|w| **w == 0.0).count() as u64,
                elements: w.len() as u64,
                quantized,
                error: layer.relative_error(&w, &effective, energy.as_deref()),
                kept,
            });
            edits.set_weight(layer, new, scales);
        }
        edits.dynamic = quantize == Quantize::Dynamic;
        if quantize == Quantize::Static {
            let alone: Vec<bool> = reports.iter().map(|r| !r.quantized).collect();
            let chosen = select::values(g, &self.layers, &alone);
            edits.ranges = Ranges::new(g, &chosen, &self.stats, self.options.range)?;
        }
        Ok((rewrite(g, &self.layers, &edits)?, reports))
    }
}

/// The inputs of layers, with sums per channel, and whatever is to become eight-bit.
fn observed(g: &Graph, layers: &Layers, quantize: bool) -> IdVec<ValueId, Option<Observed>> {
    let mut observed: IdVec<ValueId, Option<Observed>> = IdVec::filled(None, g.value_name.len());
    if quantize {
        let chosen = select::values(g, layers, &vec![false; layers.rows.len()]);
        for v in chosen.ids().filter(|&v| chosen[v]) {
            observed[v] = Some(Observed { channels: None });
        }
    }
    for layer in &layers.rows {
        observed[layer.x] = Some(Observed { channels: Some(layer.x_axis) });
    }
    observed
}

/// The weights of a layer after pruning; `None` if none go.
fn pruned(
    g: &Graph,
    layer: &Layer,
    stats: Option<&Stats>,
    moments: Option<Moments>,
    options: &Options,
) -> Option<Vec<f32>> {
    let Options { sparsity, structure, method, .. } = *options;
    if sparsity == 0.0 || !layer.prunable || !layer.kept.is_empty() {
        return None;
    }
    let w = g.const_f32(layer.weight)?;
    if let Some(new) = moments.and_then(|m| reconstruct(layer, &w, &m, sparsity, structure)) {
        return Some(new);
    }
    let energy = stats.filter(|_| method != Method::Magnitude).map(|s| s.channel_energy(layer.in_channels()));
    let keep = keep(layer, &w, energy.as_deref(), sparsity, structure);
    Some(w.iter().zip(&keep).map(|(&w, &keep)| if keep { w } else { 0.0 }).collect())
}
