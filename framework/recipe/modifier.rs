//! One modifier of a recipe: its tagged map checked against the table row by row, then as a typed [`Kind`].

use crate::diagnostic::{Diagnostic, Pos, Severity, did_you_mean};
use crate::kind::{Kind, LrClass, LrFunction};
use crate::modifier_table::{Absent, COMMON_KEYS, EPOCH_MAX, KeyRow, ModifierRow, Status, Type, key, rows};
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
    /// The keys given, in the order of the text; those with a default of [`Absent::Dropped`] have no effect.
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

    /// The value of a key that the recipe gives and that is not null.
    pub fn given(&self, doc: &Document, name: &str) -> Option<NodeId> {
        let arg = self.args.iter().find(|arg| arg.key.name == name)?;
        Some(arg.value).filter(|&node| !is_null(doc, node))
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
            | Kind::LayerPruning { start, end, .. }
            | Kind::FatRelu { start, end, .. }
            | Kind::Custom { start, end, .. }
            | Kind::Logging { start, end, .. }
            | Kind::LearningRate { start, end, .. }
            | Kind::LearningRateFunction { start, end, .. }
            | Kind::NotApplicable { start, end } => (*start, *end),
            Kind::SetLearningRate { start, .. } | Kind::SetWeightDecay { start, .. } => (*start, -1.0),
            Kind::Powerpropagation { start, end, .. } => (*start, *end),
            Kind::LayerThinning { start, .. } => (*start, -1.0),
            Kind::Pruning(pruning) => (pruning.start, pruning.end),
            Kind::Acdc(acdc) => (acdc.start, acdc.end),
            Kind::RigL(rigl) => (rigl.start, rigl.end),
            Kind::TopKast(kast) => (kast.start, kast.end),
            Kind::Quantization(quantization) => (quantization.start, -1.0),
            Kind::Loss(loss) => (loss.start, loss.end),
            Kind::SetParam(set) => (set.start, set.end),
        }
    }
}

/// Where a modifier stands and how it is written.
pub(crate) struct Entry<'a> {
    /// As written: `GMPruningModifier`, or with a framework in front, `pytorch.GMPruningModifier`.
    pub class: String,
    pub pos: Pos,
    /// Its map of arguments.
    pub node: NodeId,
    pub group: &'a str,
    pub stage: Option<u32>,
    /// Classes beside those of the table.
    pub custom: &'static [ModifierRow],
    /// Written `Name: {...}` with the session style's names of keys, not `!Name {...}`.
    pub session: bool,
}

/// What the session style calls keys that the classic style has under another name.
const SESSION_NAMES: &[(&str, &str)] = &[
    ("start", "start_epoch"),
    ("end", "end_epoch"),
    ("update", "update_frequency"),
    ("targets", "params"),
    ("update_scheduler", "inter_func"),
    ("mask_structure", "mask_type"),
];

/// Keys that every modifier of the session style takes, without effect here.
const SESSION_KEYS: &[KeyRow] = &[
    key("index", Type::Int, Absent::Dropped),
    key("group", Type::Text, Absent::Dropped),
    key("scheduler_args", Type::Map, Absent::Dropped),
    key("apply_globally", Type::Bool, Absent::Dropped),
];

/// Keys that the session style may leave out though the classic style may not: they are -1 then.
const SESSION_OPTIONAL: &[&str] = &["start_epoch", "update_frequency"];

/// Reads one modifier. `None` after an error; everything found goes to `found`.
pub(crate) fn read(
    doc: &Document,
    file: &str,
    entry: &Entry<'_>,
    found: &mut Vec<Diagnostic>,
) -> Option<Modifier> {
    let Entry { pos, node, session, custom, .. } = *entry;
    let rows = || rows().chain(custom);
    let class = entry.class.rsplit('.').next().unwrap_or_default();
    let forms: Vec<&ModifierRow> = rows().filter(|row| row.class == class).collect();
    if forms.is_empty() {
        let help = did_you_mean(class, rows().map(|row| row.class));
        found.push(Diagnostic::error(file, pos, format!("unknown modifier `!{class}`"), help));
        return None;
    }
    if !doc.is_map(node) && doc.data(node) != Data::Null {
        let message = format!("`!{class}` takes keys and values, here stands `{}`", doc.brief(node));
        found.push(Diagnostic::error(file, pos, message, ""));
        return None;
    }
    let row = form(doc, node, &forms, session);
    let errors = found.len();
    let mut reader = Reader { doc, file, row, pos, args: Vec::new(), found };
    reader.collect(node, session);
    // What follows uses the values, so they must all be right.
    if reader.found[errors..].iter().any(|d| d.severity == Severity::Error) {
        return None;
    }
    let kind = reader.kind();
    let enabled = reader.bool("enabled");
    let args = reader.args;
    if found[errors..].iter().any(|d| d.severity == Severity::Error) {
        return None;
    }
    let Some(kind) = kind else {
        // No modifier may be left out in silence.
        let message = format!("`!{class}` could not be read, and its reader does not say why");
        found.push(Diagnostic::error(file, pos, message, "this is a fault of Lacuna's: please report it"));
        return None;
    };
    Some(Modifier { pos, row, group: entry.group.to_owned(), stage: entry.stage, args, enabled, kind })
}

/// The first form that knows every key given; else the one that knows most of them.
fn form(doc: &Document, node: NodeId, forms: &[&'static ModifierRow], session: bool) -> &'static ModifierRow {
    let unknown = |row: &'static ModifierRow| {
        let known = |key| find_key(row, doc.text(key).unwrap_or_default(), session).is_some();
        doc.map(node).filter(|&(key, _)| !known(key)).count()
    };
    forms.iter().copied().min_by_key(|row| unknown(row)).unwrap_or(forms[0])
}

fn find_key(row: &'static ModifierRow, name: &str, session: bool) -> Option<&'static KeyRow> {
    let find = |name: &str| row.keys.iter().chain(COMMON_KEYS).find(|key| key.name == name);
    if !session {
        return find(name);
    }
    let classic =
        || SESSION_NAMES.iter().find(|(theirs, _)| *theirs == name).and_then(|(_, ours)| find(ours));
    find(name).or_else(classic).or_else(|| SESSION_KEYS.iter().find(|key| key.name == name))
}

/// A key's name as a recipe of that style writes it.
fn written(name: &'static str, session: bool) -> &'static str {
    let theirs = SESSION_NAMES.iter().find(|&&(_, ours)| session && ours == name);
    theirs.map_or(name, |(theirs, _)| theirs)
}

pub(crate) struct Reader<'a> {
    pub doc: &'a Document,
    pub file: &'a str,
    pub row: &'static ModifierRow,
    pos: Pos,
    args: Vec<Arg>,
    pub found: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    /// Matches the map's keys with the table: unknown and missing ones are errors, values must fit their type.
    fn collect(&mut self, node: NodeId, session: bool) {
        self.collect_keys(node, session);
        let optional = |key: &KeyRow| session && SESSION_OPTIONAL.contains(&key.name);
        let required = self.row.keys.iter().filter(|key| key.default == Absent::Required && !optional(key));
        let missing: Vec<&str> =
            required.map(|key| key.name).filter(|name| self.arg(name).is_none()).collect();
        if !missing.is_empty() {
            let add = missing.iter().map(|name| format!("`{}: ...`", written(name, session)));
            let help = format!("add {}", add.collect::<Vec<_>>().join(", "));
            self.error(self.pos, format!("`!{}` lacks what it needs", self.row.class), help);
        }
    }

    fn collect_keys(&mut self, node: NodeId, session: bool) {
        let class = self.row.class;
        for (key, value) in self.doc.map(node) {
            let name = self.doc.text(key).map_or_else(|| self.doc.brief(key), str::to_owned);
            let Some(key_row) = find_key(self.row, &name, session) else {
                let effective = self.row.keys.iter().filter(|key| key.default != Absent::Dropped);
                let names: Vec<&str> = effective.map(|key| written(key.name, session)).collect();
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
            } else if let Err(expected) = self.fits(key_row, value) {
                let message = format!("`{name}` must be {expected}, not `{}`", self.doc.brief(value));
                self.error(self.doc.pos(value), message, "");
            }
            if self.args.iter().any(|arg| arg.key.name == key_row.name) {
                self.error(
                    self.doc.pos(key),
                    format!("`{}` is given twice", key_row.name),
                    "keep one of them",
                );
            } else if key_row.ty == Type::Options {
                self.collect_keys(value, session);
            } else {
                self.args.push(Arg { key: key_row, value });
            }
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
            Type::Map | Type::Options => (self.doc.is_map(value), "a map".to_owned()),
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
        if self.row.status == Status::Custom {
            return self.custom(start, end);
        }
        if self.row.status != Status::Implemented {
            return Some(Kind::NotApplicable { start, end });
        }
        Some(match self.row.class {
            "EpochRangeModifier" => Kind::EpochRange { start, end },
            "SetLearningRateModifier" => {
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
            "QuantizationModifier" | "LegacyQuantizationModifier" => {
                Kind::Quantization(self.quantization(start, end)?)
            }
            "ACDCPruningModifier" => Kind::Acdc(self.acdc(start, end)?),
            "RigLPruningModifier" => Kind::RigL(self.rigl(start, end)?),
            "TopKASTPruningModifier" => Kind::TopKast(self.top_kast(start, end)?),
            "StructuredPruningModifier" => Kind::Pruning(self.structured(start, end)?),
            "LayerThinningModifier" => self.layer_thinning(start)?,
            "PowerpropagationModifier" => self.powerpropagation(start, end)?,
            "DistillationModifier" => self.distillation(start, end)?,
            "PerLayerDistillationModifier" => self.feature_distillation(start, end)?,
            "ASRegModifier" => self.activation_penalty(start, end)?,
            "SetParamModifier" => self.set_param(start)?,
            "GradualParamModifier" => self.gradual_param(start, end)?,
            "LayerPruningModifier" => Kind::LayerPruning { layers: self.params("layers")?, start, end },
            "FATReLUModifier" => Kind::FatRelu {
                layers: self.params("layers")?,
                threshold: self.float("threshold"),
                start,
                end,
            },
            "SparsificationLoggingModifier" => {
                Kind::Logging { start, end, update_frequency: self.float("update_frequency") }
            }
            _ => Kind::Pruning(self.pruning(start, end)?),
        })
    }

    /// A class that a user brought along.
    fn custom(&mut self, start: f64, end: f64) -> Option<Kind> {
        let has = |name: &str| self.row.keys.iter().any(|key| key.name == name);
        let update_frequency =
            if has("update_frequency") { self.float("update_frequency") } else { EPOCH_MAX };
        let number = |key: &KeyRow| match (self.given(key.name), key.default) {
            (Some(node), _) => boolean(self.doc, node)
                .map(|on| f64::from(u8::from(on)))
                .filter(|_| key.ty == Type::Bool)
                .or_else(|| float(self.doc, node)),
            (None, Absent::Float(value)) => Some(value),
            (None, Absent::Int(value)) => Some(value as f64),
            (None, Absent::Bool(on)) => Some(f64::from(u8::from(on))),
            _ => None,
        };
        let numbers = self.row.keys.iter().filter_map(|key| Some((key.name, number(key)?))).collect();
        let params = if has("params") { Some(self.params("params")?) } else { None };
        Some(Kind::Custom { params, numbers, start, end, update_frequency })
    }

    fn lr_function(&mut self, start: f64, end: f64) -> Kind {
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

    /// The node of a key that was given and has an effect.
    pub(crate) fn arg(&self, name: &str) -> Option<NodeId> {
        let effective = |arg: &&Arg| arg.key.name == name && arg.key.default != Absent::Dropped;
        self.args.iter().find(effective).map(|arg| arg.value)
    }

    /// The node of a key that was given and is not null.
    pub(crate) fn given(&self, name: &str) -> Option<NodeId> {
        self.arg(name).filter(|&node| !is_null(self.doc, node))
    }

    pub(crate) fn at(&self, name: &str) -> Pos {
        self.arg(name).map_or(self.pos, |node| self.doc.pos(node))
    }

    pub(crate) fn default(&self, name: &str) -> Absent {
        find_key(self.row, name, false).map_or(Absent::Null, |key| key.default)
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
        let Some(node) = self.arg(name) else {
            return (self.default(name) != Absent::Required).then(|| Selector::all_prunable(self.pos));
        };
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
    pub(crate) fn names(&mut self, name: &str) -> Option<Option<Selector>> {
        let Some(node) = self.given(name) else { return Some(None) };
        let selected = selector(self.doc, self.file, node, self.found)?;
        Some(if selected.patterns.is_empty() { None } else { Some(selected) })
    }

    pub(crate) fn error(&mut self, pos: Pos, message: impl Into<String>, help: impl Into<String>) {
        self.found.push(Diagnostic::error(self.file, pos, message, help));
    }
}
