//! The quantisation modifier's arguments as a typed [`Quantization`]: schemes by name or written out, the older form by
//! submodules, the session style's groups of layers.

use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::kind::{LayerQuant, QuantArgs, Quantization};
use crate::modifier::Reader;
use crate::params::{Selector, selector};
use crate::value::{boolean, float, int, is_names, is_null};
use crate::yaml::NodeId;

/// What holds where a recipe does not say otherwise.
const ACTIVATION: QuantArgs = QuantArgs { bits: 8, symmetric: false, per_channel: false };
const WEIGHT: QuantArgs = QuantArgs { bits: 8, symmetric: true, per_channel: false };
const STANDARD: LayerQuant = LayerQuant { input: Some(ACTIVATION), weight: Some(WEIGHT), output: None };

impl Reader<'_> {
    /// The class in any of its forms.
    pub(crate) fn quantization(&mut self, start: f64, end: f64) -> Option<Quantization> {
        if end >= 0.0 {
            self.error(self.at("end_epoch"), "quantisation does not end", "leave `end_epoch` out");
        }
        let has = |name| self.row.keys.iter().any(|key| key.name == name);
        let (older, in_groups) = (has("submodules"), has("config_groups"));
        let scheme = match () {
            _ if older => self.older_scheme()?,
            _ if in_groups => LayerQuant::default(),
            _ => self.scheme(self.arg("scheme"))?,
        };
        let mut overrides = if in_groups { self.config_groups()? } else { Vec::new() };
        let entries: Vec<(NodeId, NodeId)> =
            self.arg("scheme_overrides").map(|node| self.doc.map(node).collect()).unwrap_or_default();
        for (name, value) in entries {
            let names = selector(self.doc, self.file, name, self.found)?;
            overrides.push((
                names,
                if is_null(self.doc, value) { LayerQuant::default() } else { self.scheme(Some(value))? },
            ));
        }
        if let Some(node) = self.given("custom_quantizable_module_types") {
            let message = "`custom_quantizable_module_types` has no effect";
            self.found.push(Diagnostic::warning(self.file, self.doc.pos(node), message, ""));
        }
        let tensorrt = self.bool("tensorrt")
            || self.arg("scheme").is_some_and(|node| self.doc.text(node) == Some("tensorrt"));
        let optional_epoch = |reader: &Self, name| {
            reader.given(name).and_then(|node| float(reader.doc, node)).filter(|&e| e >= 0.0)
        };
        let steps = self.given("num_calibration_steps").and_then(|node| int(self.doc, node));
        Some(Quantization {
            start,
            disable_observer: optional_epoch(self, "disable_quantization_observer_epoch"),
            freeze_bn: optional_epoch(self, "freeze_bn_stats_epoch"),
            scheme,
            overrides,
            ignore: if older { self.names("exclude_module_types")? } else { self.names("ignore")? },
            strict: self.bool("strict"),
            submodules: self.names("submodules")?,
            calibration_steps: steps.and_then(|n| u32::try_from(n).ok()),
            fuse: !tensorrt && self.text("model_fuse_fn_name") != "no_fuse",
            linear_activations: !older || self.bool("quantize_linear_activations"),
            conv_activations: !older || self.bool("quantize_conv_activations"),
            embeddings: !older || self.bool("quantize_embeddings"),
            reduce_range: self.bool("reduce_range"),
        })
    }

    /// Its outputs are quantised too, but for those that the schedule takes out by the type of their layer.
    fn older_scheme(&mut self) -> Option<LayerQuant> {
        let symmetric = self.bool("tensorrt");
        let activation = self.bits("activation_bits")?;
        let weight = self.bits("weight_bits")?;
        let activation = QuantArgs { bits: activation, symmetric, per_channel: false };
        let weight = QuantArgs { bits: weight, symmetric: true, per_channel: false };
        let output = Some(activation).filter(|_| !self.bool("tensorrt"));
        Some(LayerQuant { input: Some(activation), weight: Some(weight), output })
    }

    fn bits(&mut self, name: &str) -> Option<u8> {
        let bits = self.arg(name).map_or(Some(8), |node| int(self.doc, node));
        let bits = bits.and_then(|n| u8::try_from(n).ok()).filter(|n| (2..=8).contains(n));
        if bits.is_none() {
            self.error(self.at(name), format!("`{name}` must be 2 to 8"), "");
        }
        bits
    }

    /// The session style's groups: each names its layers in `targets` and their scheme. Other layers stay in floating
    /// point, and of two groups that name one layer the first counts.
    fn config_groups(&mut self) -> Option<Vec<(Selector, LayerQuant)>> {
        let mut groups = Vec::new();
        for (_, group) in self.doc.map(self.arg("config_groups")?).collect::<Vec<_>>() {
            let targets = self.doc.map(group).find(|&(key, _)| self.doc.text(key) == Some("targets"));
            let Some((_, targets)) = targets.filter(|&(_, node)| is_names(self.doc, node)) else {
                let help = "add `targets: [re:.*]`";
                self.error(self.doc.pos(group), "a group of layers needs `targets`, a list of names", help);
                return None;
            };
            let targets = selector(self.doc, self.file, targets, self.found)?;
            groups.push((targets, self.written_scheme(group, true)?));
        }
        groups.reverse();
        Some(groups)
    }

    /// A scheme by name or written out.
    fn scheme(&mut self, node: Option<NodeId>) -> Option<LayerQuant> {
        let Some(node) = node.filter(|&node| !is_null(self.doc, node)) else { return Some(STANDARD) };
        match self.doc.text(node) {
            Some("tensorrt") => {
                Some(LayerQuant { input: Some(QuantArgs { symmetric: true, ..ACTIVATION }), ..STANDARD })
            }
            Some("default" | "deepsparse") => Some(STANDARD),
            Some(name) => {
                let help = did_you_mean(name, ["default", "deepsparse", "tensorrt"]);
                self.error(self.doc.pos(node), format!("unknown quantisation scheme `{name}`"), help);
                None
            }
            None => self.written_scheme(node, false),
        }
    }

    /// A scheme written out: a part that is null stays in floating point. Of what is absent, a group leaves parts in
    /// floating point and takes arguments as usual; a scheme takes parts as usual, and arguments are those of SparseML's
    /// class for them, asymmetric for weights too.
    fn written_scheme(&mut self, node: NodeId, in_group: bool) -> Option<LayerQuant> {
        let (mut scheme, weights) = match in_group {
            true => (LayerQuant::default(), WEIGHT),
            false => (STANDARD, QuantArgs { symmetric: false, ..WEIGHT }),
        };
        for (key, value) in self.doc.map(node).collect::<Vec<_>>() {
            let name = self.doc.show(key);
            let (slot, base) = match name.as_str() {
                // Of a configuration group: the layers that it means.
                "targets" if in_group => continue,
                "input_activations" => (&mut scheme.input, ACTIVATION),
                "weights" => (&mut scheme.weight, weights),
                "output_activations" => (&mut scheme.output, ACTIVATION),
                _ => {
                    let help = did_you_mean(&name, ["input_activations", "weights", "output_activations"]);
                    self.error(self.doc.pos(key), format!("a scheme has no part `{name}`"), help);
                    continue;
                }
            };
            *slot = if is_null(self.doc, value) { None } else { Some(self.quant_args(value, base)?) };
        }
        Some(scheme)
    }

    fn quant_args(&mut self, node: NodeId, base: QuantArgs) -> Option<QuantArgs> {
        let mut args = base;
        if !self.doc.is_map(node) {
            self.error(
                self.doc.pos(node),
                "quantisation arguments are a map",
                "num_bits, symmetric, strategy",
            );
            return None;
        }
        for (key, value) in self.doc.map(node).collect::<Vec<_>>() {
            let name = self.doc.show(key);
            let problem = match name.as_str() {
                "num_bits" => match int(self.doc, value) {
                    Some(bits @ 2..=8) => {
                        args.bits = bits as u8;
                        None
                    }
                    _ => Some("`num_bits` must be 2 to 8".to_owned()),
                },
                "symmetric" => match boolean(self.doc, value) {
                    Some(symmetric) => {
                        args.symmetric = symmetric;
                        None
                    }
                    None => Some("`symmetric` must be true or false".to_owned()),
                },
                "strategy" => match self.doc.text(value) {
                    Some(strategy @ ("tensor" | "channel")) => {
                        args.per_channel = strategy == "channel";
                        None
                    }
                    _ => Some("`strategy` must be tensor or channel".to_owned()),
                },
                "type" if self.doc.text(value) != Some("int") => Some("`type` must be int".to_owned()),
                "dynamic" if boolean(self.doc, value) != Some(false) => Some(
                    "ranges measured anew for each batch (`dynamic: true`) are not known here".to_owned(),
                ),
                "group_size" if !is_null(self.doc, value) => {
                    Some("scales for groups of weights (`group_size`) are not known here".to_owned())
                }
                "type" | "dynamic" | "group_size" => None,
                // Options of PyTorch observers.
                "kwargs" | "observer" | "observer_kwargs" => None,
                _ => Some(format!("quantisation arguments have no key `{name}`")),
            };
            if let Some(problem) = problem {
                let help = did_you_mean(&name, ["num_bits", "symmetric", "strategy", "type", "kwargs"]);
                let help = if help.contains(&format!("`{name}`")) { String::new() } else { help };
                self.error(self.doc.pos(value), problem, help);
                return None;
            }
        }
        Some(args)
    }
}
