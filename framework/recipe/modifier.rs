//! One modifier of a recipe: its tagged map checked against the table row by row, then as a typed [`Kind`].

use crate::diagnostic::{Diagnostic, Pos, Severity, did_you_mean};
use crate::kind::{Kind, LayerQuant, LrClass, LrFunction, QuantArgs, Quantization};
use crate::modifier_table::{Absent, COMMON_KEYS, EPOCH_MAX, KeyRow, MODIFIERS, ModifierRow, Status, Type};
use crate::params::{Selector, selector};
use crate::value::{MASK_EXPECTED, boolean, float, int, is_names, is_null, mask};
use crate::yaml::{Data, Document, NodeId};

/// A modifier as the recipe has it, after evaluation.
#[derive(Clone, Debug)]
pub struct Modifier {
    /// Place of its tag.
    pub pos: Pos,
    /// Row of [`MODIFIERS`].
    pub row: &'static ModifierRow,
    /// The list that it stands in, such as `pruning_modifiers`.
    pub group: String,
    /// Row of [`Recipe::stages`](crate::Recipe::stages), in a staged recipe.
    pub stage: Option<u32>,
    /// The keys given, in the order of the text, without those that have no effect.
    pub args: Vec<Arg>,
    /// `enabled: false` keeps a modifier in the file and out of the schedule.
    pub enabled: bool,
    pub kind: Kind,
}

/// A key that a recipe gives: its table row and the node of its value.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    pub key: &'static KeyRow,
    pub value: NodeId,
}

impl Modifier {
    pub fn class(&self) -> &'static str {
        self.row.class
    }

    /// Epoch at which it starts, -1 before training.
    pub fn start_epoch(&self) -> f64 {
        self.epochs().0
    }

    /// Epoch at which it ends, -1 never.
    pub fn end_epoch(&self) -> f64 {
        self.epochs().1
    }

    fn epochs(&self) -> (f64, f64) {
        match &self.kind {
            Kind::EpochRange { start, end }
            | Kind::ConstantPruning { start, end, .. }
            | Kind::TrainableParams { start, end, .. }
            | Kind::Distillation { start, end, .. }
            | Kind::LearningRate { start, end, .. }
            | Kind::LearningRateFunction { start, end, .. }
            | Kind::ParsedOnly { start, end } => (*start, *end),
            Kind::SetLearningRate { start, .. } | Kind::SetWeightDecay { start, .. } => (*start, -1.0),
            Kind::Pruning(pruning) => (pruning.start, pruning.end),
            Kind::Quantization(quantization) => (quantization.start, -1.0),
        }
    }
}

/// Reads the tagged node `node` as a modifier. `None` after an error; everything found goes to `found`.
pub(crate) fn read(
    doc: &Document,
    file: &str,
    node: NodeId,
    group: &str,
    stage: Option<u32>,
    found: &mut Vec<Diagnostic>,
) -> Option<Modifier> {
    let tag = doc.tag(node).unwrap_or_default();
    // SparseML also writes the framework in front: `!pytorch.GMPruningModifier`.
    let class = tag.rsplit('.').next().unwrap_or(tag);
    let pos = doc.pos(node);
    let forms: Vec<&ModifierRow> = MODIFIERS.iter().filter(|row| row.class == class).collect();
    if forms.is_empty() {
        let help = did_you_mean(class, MODIFIERS.iter().map(|row| row.class));
        found.push(Diagnostic::error(file, pos, format!("unknown modifier `!{class}`"), help));
        return None;
    }
    if !doc.is_map(node) && doc.data(node) != Data::Null {
        let message = format!("`!{class}` takes keys and values, here stands `{}`", doc.brief(node));
        found.push(Diagnostic::error(file, pos, message, ""));
        return None;
    }
    let row = form(doc, node, &forms);
    let errors = found.len();
    let mut reader = Reader { doc, file, row, pos, args: Vec::new(), found };
    reader.collect(node);
    // What follows uses the values, so they must all be right.
    if reader.found[errors..].iter().any(|d| d.severity == Severity::Error) {
        return None;
    }
    let kind = reader.kind()?;
    let enabled = reader.bool("enabled");
    let args = reader.args;
    if found[errors..].iter().any(|d| d.severity == Severity::Error) {
        return None;
    }
    Some(Modifier { pos, row, group: group.to_owned(), stage, args, enabled, kind })
}

/// The first form that knows every key given; else the one that knows most of them.
fn form(doc: &Document, node: NodeId, forms: &[&'static ModifierRow]) -> &'static ModifierRow {
    let unknown = |row: &'static ModifierRow| {
        doc.map(node).filter(|&(key, _)| find_key(row, doc.text(key).unwrap_or_default()).is_none()).count()
    };
    forms.iter().copied().min_by_key(|row| unknown(row)).unwrap_or(forms[0])
}

fn find_key(row: &'static ModifierRow, name: &str) -> Option<&'static KeyRow> {
    row.keys.iter().chain(COMMON_KEYS).find(|key| key.name == name)
}

pub(crate) struct Reader<'a> {
    pub(crate) doc: &'a Document,
    pub(crate) file: &'a str,
    pub(crate) row: &'static ModifierRow,
    pos: Pos,
    args: Vec<Arg>,
    pub(crate) found: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    /// Matches the map's keys with the table: unknown and missing ones are errors, values must fit their type.
    fn collect(&mut self, node: NodeId) {
        let class = self.row.class;
        for (key, value) in self.doc.map(node) {
            let name = self.doc.text(key).map_or_else(|| self.doc.brief(key), str::to_owned);
            let Some(key_row) = find_key(self.row, &name) else {
                let names: Vec<&str> = self.row.keys.iter().map(|key| key.name).collect();
                let mut help = did_you_mean(&name, names.iter().copied());
                if help.is_empty() {
                    help = format!("known keys: {}", names.join(", "));
                }
                self.error(self.doc.pos(key), format!("`!{class}` has no key `{name}`"), help);
                continue;
            };
            if key_row.default == Absent::Dropped {
                let message = format!("`{name}` has no effect");
                self.found.push(Diagnostic::warning(self.file, self.doc.pos(key), message, ""));
                continue;
            }
            if let Err(expected) = self.fits(key_row, value) {
                let message = format!("`{name}` must be {expected}, not `{}`", self.doc.brief(value));
                self.error(self.doc.pos(value), message, "");
            }
            self.args.push(Arg { key: key_row, value });
        }
        let required = self.row.keys.iter().filter(|key| key.default == Absent::Required);
        let missing: Vec<&str> =
            required.map(|key| key.name).filter(|name| self.arg(name).is_none()).collect();
        if !missing.is_empty() {
            let help = format!(
                "add {}",
                missing.iter().map(|name| format!("`{name}: ...`")).collect::<Vec<_>>().join(", ")
            );
            self.error(self.pos, format!("`!{class}` lacks what it needs"), help);
        }
    }

    /// Whether a value has its key's type; the error says what is expected.
    fn fits(&self, key: &KeyRow, value: NodeId) -> Result<(), String> {
        if key.default == Absent::Null && is_null(self.doc, value) {
            return Ok(());
        }
        let text = self.doc.text(value);
        let number = float(self.doc, value);
        let within = |low: f64, high: f64| number.is_some_and(|n| (low..=high).contains(&n));
        let sparsity = || number.is_some_and(|n| (0.0..1.0).contains(&n));
        let (ok, expected) = match key.ty {
            Type::Any => (true, String::new()),
            Type::Epoch => {
                (number == Some(-1.0) || within(0.0, EPOCH_MAX), format!("an epoch: -1 or 0 to {EPOCH_MAX}"))
            }
            Type::Frequency => (
                number == Some(-1.0) || number.is_some_and(|n| n > 0.0 && n <= EPOCH_MAX),
                "a number of epochs above 0, or -1 for every step".to_owned(),
            ),
            Type::Float => (number.is_some_and(f64::is_finite), "a finite number".to_owned()),
            Type::Between(low, high) => (within(low, high), format!("a number from {low} to {high}")),
            Type::Sparsity => (sparsity(), "a sparsity, 0 or more and less than 1".to_owned()),
            Type::InitSparsity => (
                sparsity() || text == Some("__FROM_PARAM__"),
                "a sparsity (0 or more and less than 1) or `__FROM_PARAM__`".to_owned(),
            ),
            Type::FinalSparsity => {
                let groups = self.doc.is_map(value)
                    && self.doc.map(value).all(|(k, v)| {
                        float(self.doc, k).is_some_and(|n| (0.0..1.0).contains(&n)) && is_names(self.doc, v)
                    });
                let expected = "a sparsity (0 or more and less than 1) or a map from sparsity to parameters";
                (sparsity() || groups, expected.to_owned())
            }
            Type::Int => (int(self.doc, value).is_some(), "a whole number".to_owned()),
            Type::Bool => (boolean(self.doc, value).is_some(), "true or false".to_owned()),
            Type::Text => (text.is_some(), "a text".to_owned()),
            Type::OneOf(names) => {
                (text.is_some_and(|t| names.contains(&t)), format!("one of {}", names.join(", ")))
            }
            Type::Params | Type::Names => (is_names(self.doc, value), "a name or a list of names".to_owned()),
            Type::Ints => (
                self.doc.list(value).iter().all(|&n| int(self.doc, n).is_some()),
                "a list of integers".to_owned(),
            ),
            Type::Mask => (mask(self.doc, value).is_some(), MASK_EXPECTED.to_owned()),
            Type::Map => (self.doc.is_map(value), "a map".to_owned()),
            Type::Scheme => (
                self.doc.is_map(value)
                    || text.is_some_and(|t| ["default", "deepsparse", "tensorrt"].contains(&t)),
                "default, deepsparse, tensorrt or a map".to_owned(),
            ),
        };
        if ok { Ok(()) } else { Err(expected) }
    }

    fn kind(&mut self) -> Option<Kind> {
        let start = self.float("start_epoch");
        let end = self.float("end_epoch");
        if start >= 0.0 && end >= 0.0 && start > end {
            let at = self.arg("end_epoch").map_or(self.pos, |node| self.doc.pos(node));
            self.error(at, format!("ends at epoch {end}, before it starts at epoch {start}"), "");
        }
        if self.row.status == Status::ParsedOnly && self.row.class != "DistillationModifier" {
            return Some(Kind::ParsedOnly { start, end });
        }
        Some(match self.row.class {
            "EpochRangeModifier" => Kind::EpochRange { start, end },
            "SetLearningRateModifier" => {
                self.no_param_groups();
                Kind::SetLearningRate { learning_rate: self.float("learning_rate"), start }
            }
            "LearningRateFunctionModifier" => self.lr_function(start, end),
            "LearningRateModifier" => Kind::LearningRate {
                class: self.lr_class(start, end)?,
                init: self.float("init_lr"),
                start,
                end,
            },
            "SetWeightDecayModifier" => {
                self.no_param_groups();
                Kind::SetWeightDecay { weight_decay: self.float("weight_decay"), start }
            }
            "TrainableParamsModifier" => Kind::TrainableParams {
                params: self.params("params")?,
                trainable: self.bool("trainable"),
                strict: self.bool("params_strict"),
                start,
                end,
            },
            "ConstantPruningModifier" => Kind::ConstantPruning { params: self.params("params")?, start, end },
            "QuantizationModifier" => Kind::Quantization(self.quantization(start, end)?),
            "DistillationModifier" => Kind::Distillation {
                hardness: self.float("hardness"),
                temperature: self.float("temperature"),
                start,
                end,
            },
            _ => Kind::Pruning(self.pruning(start, end)?),
        })
    }

    fn lr_function(&mut self, start: f64, end: f64) -> Kind {
        self.no_param_groups();
        let function = match self.text("lr_func") {
            "cosine" => LrFunction::Cosine,
            "cyclic_linear" => LrFunction::CyclicLinear,
            _ => LrFunction::Linear,
        };
        let cycle_epochs = self.float("cycle_epochs");
        if function == LrFunction::CyclicLinear && cycle_epochs <= 0.0 {
            self.error(self.at("cycle_epochs"), "`cycle_epochs` must be above 0", "");
        }
        if end < 0.0 {
            self.error(self.at("end_epoch"), "a learning-rate function needs an end epoch", "");
        }
        Kind::LearningRateFunction {
            function,
            init: self.float("init_lr"),
            last: self.float("final_lr"),
            start,
            end,
            cycle_epochs,
        }
    }

    fn lr_class(&mut self, start: f64, end: f64) -> Option<LrClass> {
        let kwargs = self.arg("lr_kwargs")?;
        let class = self.text("lr_class").to_owned();
        let names: &[&str] = match class.as_str() {
            "StepLR" => &["step_size", "gamma"],
            "MultiStepLR" => &["milestones", "gamma"],
            "ExponentialLR" => &["gamma"],
            _ => &["lr_min", "cycle_epochs"],
        };
        let mut values: Vec<NodeId> = Vec::new();
        for (key, _) in self.doc.map(kwargs) {
            let name = self.doc.show(key);
            if !names.contains(&name.as_str()) {
                let mut help = did_you_mean(&name, names.iter().copied());
                if help.is_empty() {
                    help = format!("known keys: {}", names.join(", "));
                }
                self.error(self.doc.pos(key), format!("{class} has no argument `{name}`"), help);
            }
        }
        for name in names {
            match self.doc.map(kwargs).find(|&(key, _)| self.doc.text(key) == Some(name)) {
                Some((_, value)) => values.push(value),
                None => self.error(self.doc.pos(kwargs), format!("{class} needs the argument `{name}`"), ""),
            }
        }
        if values.len() < names.len() {
            return None;
        }
        Some(match class.as_str() {
            "StepLR" => {
                LrClass::Step { step_size: self.above_zero(values[0])?, gamma: self.above_zero(values[1])? }
            }
            "MultiStepLR" => {
                let list: Vec<NodeId> = self.doc.list(values[0]).to_vec();
                let milestones: Option<Vec<f64>> = list.iter().map(|&node| self.above_zero(node)).collect();
                let milestones = milestones?;
                for (&node, &milestone) in list.iter().zip(&milestones) {
                    if milestone <= start || (end >= 0.0 && milestone >= end) {
                        let message = format!("milestone {milestone} is not between start and end epoch");
                        self.error(self.doc.pos(node), message, "");
                    }
                }
                LrClass::MultiStep { milestones, gamma: self.above_zero(values[1])? }
            }
            "ExponentialLR" => LrClass::Exponential { gamma: self.above_zero(values[0])? },
            _ => {
                let minimum = float(self.doc, values[0]).filter(|lr| (0.0..=1.0).contains(lr));
                if minimum.is_none() {
                    self.error(self.doc.pos(values[0]), "`lr_min` must be a number from 0 to 1", "");
                }
                LrClass::CosineWarmRestarts { minimum: minimum?, cycle_epochs: self.above_zero(values[1])? }
            }
        })
    }

    fn above_zero(&mut self, node: NodeId) -> Option<f64> {
        let value = float(self.doc, node).filter(|&n| n > 0.0 && n <= EPOCH_MAX);
        if value.is_none() {
            let message = format!("a number above 0 is needed here, not `{}`", self.doc.brief(node));
            self.error(self.doc.pos(node), message, "");
        }
        value
    }

    fn quantization(&mut self, start: f64, end: f64) -> Option<Quantization> {
        if end >= 0.0 {
            self.error(self.at("end_epoch"), "quantisation does not end", "leave `end_epoch` out");
        }
        let older = self.row.keys.iter().any(|key| key.name == "submodules");
        let scheme = if older { self.older_scheme()? } else { self.scheme(self.arg("scheme"))? };
        let mut overrides = Vec::new();
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
            fuse: !tensorrt,
            linear_activations: !older || self.bool("quantize_linear_activations"),
            conv_activations: !older || self.bool("quantize_conv_activations"),
            embeddings: !older || self.bool("quantize_embeddings"),
            reduce_range: self.bool("reduce_range"),
        })
    }

    fn older_scheme(&mut self) -> Option<LayerQuant> {
        let symmetric = self.bool("tensorrt");
        let activation = self.bits("activation_bits")?;
        let weight = self.bits("weight_bits")?;
        Some(LayerQuant {
            input: Some(QuantArgs { bits: activation, symmetric, per_channel: false }),
            weight: Some(QuantArgs { bits: weight, symmetric: true, per_channel: false }),
            output: None,
        })
    }

    fn bits(&mut self, name: &str) -> Option<u8> {
        let bits = self.arg(name).map_or(Some(8), |node| int(self.doc, node));
        let bits = bits.and_then(|n| u8::try_from(n).ok()).filter(|n| (2..=8).contains(n));
        if bits.is_none() {
            self.error(self.at(name), format!("`{name}` must be 2 to 8"), "");
        }
        bits
    }

    /// A scheme by name or written out. Written out, a part that is absent or null stays in floating point.
    fn scheme(&mut self, node: Option<NodeId>) -> Option<LayerQuant> {
        let activation = QuantArgs { bits: 8, symmetric: false, per_channel: false };
        let weight = QuantArgs { bits: 8, symmetric: true, per_channel: false };
        let standard = LayerQuant { input: Some(activation), weight: Some(weight), output: None };
        let Some(node) = node.filter(|&node| !is_null(self.doc, node)) else { return Some(standard) };
        match self.doc.text(node) {
            Some("tensorrt") => {
                let input = Some(QuantArgs { symmetric: true, ..activation });
                return Some(LayerQuant { input, ..standard });
            }
            Some("default" | "deepsparse") => return Some(standard),
            Some(name) => {
                let help = did_you_mean(name, ["default", "deepsparse", "tensorrt"]);
                self.error(self.doc.pos(node), format!("unknown quantisation scheme `{name}`"), help);
                return None;
            }
            None => {}
        }
        let mut scheme = LayerQuant::default();
        for (key, value) in self.doc.map(node).collect::<Vec<_>>() {
            let name = self.doc.show(key);
            let (slot, base) = match name.as_str() {
                "input_activations" => (&mut scheme.input, activation),
                "weights" => (&mut scheme.weight, weight),
                "output_activations" => (&mut scheme.output, activation),
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
                // Options of PyTorch observers.
                "kwargs" => None,
                _ => Some(format!("quantisation arguments have no key `{name}`")),
            };
            if let Some(problem) = problem {
                let help = did_you_mean(&name, ["num_bits", "symmetric", "strategy", "kwargs"]);
                let help = if help.contains(&format!("`{name}`")) { String::new() } else { help };
                self.error(self.doc.pos(value), problem, help);
                return None;
            }
        }
        Some(args)
    }

    fn no_param_groups(&mut self) {
        if let Some(node) = self.given("param_groups") {
            let help = "leave `param_groups` out: the optimiser has one group";
            self.error(self.doc.pos(node), "parameter groups are not carried out yet", help);
        }
    }

    /// The node of a key that was given.
    pub(crate) fn arg(&self, name: &str) -> Option<NodeId> {
        self.args.iter().find(|arg| arg.key.name == name).map(|arg| arg.value)
    }

    /// The node of a key that was given and is not null.
    pub(crate) fn given(&self, name: &str) -> Option<NodeId> {
        self.arg(name).filter(|&node| !is_null(self.doc, node))
    }

    pub(crate) fn at(&self, name: &str) -> Pos {
        self.arg(name).map_or(self.pos, |node| self.doc.pos(node))
    }

    pub(crate) fn default(&self, name: &str) -> Absent {
        find_key(self.row, name).map_or(Absent::Null, |key| key.default)
    }

    /// A number of the recipe or the table; -1 where the class has no such key.
    pub(crate) fn float(&self, name: &str) -> f64 {
        let given = self.arg(name).and_then(|node| float(self.doc, node));
        given.unwrap_or(match self.default(name) {
            Absent::Float(value) => value,
            _ => -1.0,
        })
    }

    pub(crate) fn bool(&self, name: &str) -> bool {
        let given = self.arg(name).and_then(|node| boolean(self.doc, node));
        given.unwrap_or(self.default(name) == Absent::Bool(true))
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        match (self.arg(name).and_then(|node| self.doc.text(node)), self.default(name)) {
            (Some(text), _) => text,
            (None, Absent::Text(text)) => text,
            _ => "",
        }
    }

    pub(crate) fn params(&mut self, name: &str) -> Option<Selector> {
        let node = self.arg(name)?;
        let selected = selector(self.doc, self.file, node, self.found)?;
        if selected.patterns.is_empty() {
            self.error(
                self.doc.pos(node),
                format!("`{name}` names no parameter"),
                "use __ALL_PRUNABLE__ for all",
            );
        }
        Some(selected)
    }

    /// A list of layer names; `Some(None)` where it is absent or empty.
    fn names(&mut self, name: &str) -> Option<Option<Selector>> {
        let Some(node) = self.given(name) else { return Some(None) };
        let selected = selector(self.doc, self.file, node, self.found)?;
        Some(if selected.patterns.is_empty() { None } else { Some(selected) })
    }

    pub(crate) fn error(&mut self, pos: Pos, message: impl Into<String>, help: impl Into<String>) {
        self.found.push(Diagnostic::error(self.file, pos, message, help));
    }
}
