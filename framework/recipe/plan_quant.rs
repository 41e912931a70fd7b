//! Quantisation in a schedule: which layers, each with a scheme of its own, and when its phases begin.

use crate::diagnostic::Pos;
use crate::kind::{LayerQuant, QuantArgs, Quantization};
use crate::params::{Pattern, Selector, no_match_help};
use crate::plan::{Action, Compiler, PoolRange};

/// One layer of the model that a recipe is compiled for, or a block of layers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerRow {
    pub name: String,
    /// As PyTorch names it: `Conv2d`, `Linear`, `Embedding`.
    pub kind: String,
    /// A single layer, which can be quantised; else a block.
    pub has_weight: bool,
    /// Gives what it takes, so that the identity can stand in its place.
    pub removable: bool,
    /// A place behind a ReLU, which has a threshold; not a layer with weights.
    pub rectifies: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuantScheme {
    /// The layers to quantise: [`Schedule::layers`](crate::Schedule::layers) resolves the range.
    pub layers: PoolRange,
    /// Whether convolution, batch norm and activation are fused first.
    pub fuse: bool,
    /// Batches to run through the observers before training goes on.
    pub calibration_steps: u32,
}

/// How one layer is quantised; `layer` is a row of the layers that `compile` was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayerScheme {
    pub layer: u32,
    pub quant: LayerQuant,
}

impl Compiler<'_> {
    pub(crate) fn quantization(&mut self, number: u32, pos: Pos, quantization: &Quantization) {
        let start = quantization.start.max(0.0);
        for (name, epoch) in [
            ("disable_quantization_observer_epoch", quantization.disable_observer),
            ("freeze_bn_stats_epoch", quantization.freeze_bn),
        ] {
            if epoch.is_some_and(|epoch| epoch < start) {
                let message = format!("`{name}` lies before the quantisation starts, at epoch {start}");
                self.error(pos, message, "");
            }
        }
        self.check_layers(&quantization.submodules, true);
        self.check_layers(&quantization.ignore, quantization.strict);
        for (names, _) in &quantization.overrides {
            self.check_layers(&Some(names.clone()), quantization.strict);
        }
        let begin = self.schedule.layers.len() as u32;
        for (row, layer) in self.layers.iter().enumerate().filter(|(_, layer)| layer.has_weight) {
            let quant = layer_quant(quantization, layer);
            if quant != LayerQuant::default() {
                self.schedule.layers.push(LayerScheme { layer: row as u32, quant });
            }
        }
        let layers = PoolRange { start: begin, len: self.schedule.layers.len() as u32 - begin };
        if layers.len == 0 {
            self.error(pos, "this modifier leaves no layer to quantise", "look at `ignore` and `submodules`");
        }
        let per_channel = |args: Option<QuantArgs>| args.is_some_and(|args| args.per_channel);
        let schemes = &self.schedule.layers[begin as usize..];
        if schemes.iter().any(|l| per_channel(l.quant.input) || per_channel(l.quant.output)) {
            let help = "give activations `strategy: tensor`";
            self.error(pos, "activations cannot have a scale for each channel of a weight", help);
        }
        let scheme = QuantScheme {
            layers,
            fuse: quantization.fuse,
            calibration_steps: quantization.calibration_steps.unwrap_or(0),
        };
        self.event(number, self.step(quantization.start), Action::StartQuantization(scheme));
        if let Some(epoch) = quantization.disable_observer {
            self.event(number, self.step(epoch), Action::FreezeObservers);
        }
        if let Some(epoch) = quantization.freeze_bn {
            self.event(number, self.step(epoch), Action::FreezeBatchNorm);
        }
    }

    /// Names of layers: each must be a layer, a module, or a type of layer.
    fn check_layers(&mut self, names: &Option<Selector>, strict: bool) {
        let (params, layers) = (self.params, self.layers);
        for pattern in names.iter().flat_map(|names| &names.patterns) {
            let known = layers.iter().any(|layer| covers(pattern, layer))
                || params.iter().any(|param| pattern.covers_layer(&param.name));
            if !known && strict && !is_type_name(&pattern.text) {
                let help = no_match_help(pattern, layers.iter().map(|layer| layer.name.as_str()));
                self.error(pattern.pos, format!("no layer matches `{}`", pattern.text), help);
            }
        }
    }
}

/// What a modifier does to one layer: nothing where it is left out or ignored, else the scheme of the override that names
/// it most closely (its type before the longest name), else the modifier's own.
fn layer_quant(quantization: &Quantization, layer: &LayerRow) -> LayerQuant {
    let covered = |names: &Option<Selector>| {
        names.as_ref().map(|names| names.patterns.iter().any(|pattern| covers(pattern, layer)))
    };
    if covered(&quantization.submodules) == Some(false) || covered(&quantization.ignore) == Some(true) {
        return LayerQuant::default();
    }
    let closeness = |pattern: &&Pattern| (pattern.text == layer.kind, pattern.text.len());
    let overriding = quantization.overrides.iter().filter_map(|(names, scheme)| {
        let closest = names.patterns.iter().filter(|p| covers(p, layer)).max_by_key(closeness)?;
        Some((closeness(&closest), *scheme))
    });
    let mut quant = match overriding.max_by_key(|(closeness, _)| *closeness) {
        Some((_, scheme)) => scheme,
        None => quantization.scheme,
    };
    match layer.kind.as_str() {
        // Ids are not quantised, and rows are read out as they are.
        "Embedding" if quantization.embeddings => quant = LayerQuant { input: None, output: None, ..quant },
        "Embedding" => quant = LayerQuant::default(),
        "Linear" if !quantization.linear_activations => quant.output = None,
        "Conv2d" if !quantization.conv_activations => quant.output = None,
        _ => {}
    }
    if quantization.reduce_range {
        let narrower = |args: QuantArgs| QuantArgs { bits: args.bits.saturating_sub(1).max(2), ..args };
        quant = LayerQuant {
            input: quant.input.map(narrower),
            weight: quant.weight.map(narrower),
            output: quant.output.map(narrower),
        };
    }
    quant
}

/// Whether a pattern means this layer: its type, its name, a module above it, or a `re:` pattern.
fn covers(pattern: &Pattern, layer: &LayerRow) -> bool {
    pattern.text == layer.kind || pattern.covers_layer(&layer.name)
}

/// Types begin with a capital letter and modules of a model do not. Recipes name types that a model lacks: `BatchNorm2d`,
/// `QATMatMul`.
fn is_type_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && !name.contains('.')
}
