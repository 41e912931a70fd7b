//! The compiled [`Schedule`]: looked up by step while training, printed before it.

use crate::diagnostic::Diagnostic;
use crate::kind::{MaskStructure, Scope};
use crate::loss::{LossTerm, Pair, Penalty, Side, TermKind};
use crate::plan::{Action, Event, PoolRange, Score, Watch};
use crate::plan_quant::LayerScheme;
use crate::recipe::Recipe;
use std::collections::HashMap;
use std::f64::consts::PI;
use std::fmt::Write as _;

/// All that a recipe does to one training, by step.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Steps of the whole training: epochs times steps per epoch.
    pub steps: u64,
    pub steps_per_epoch: u32,
    /// Sorted by step; events of one step are in the order in which they must happen.
    pub events: Vec<Event>,
    /// Findings that do not stop the training.
    pub warnings: Vec<Diagnostic>,
    pub(crate) pool: Vec<u32>,
    pub(crate) layers: Vec<LayerScheme>,
    /// What adds to the loss, each from its first step to before its end.
    pub terms: Vec<LossTerm>,
    pub(crate) pairs: Vec<Pair>,
    pub(crate) penalised: Vec<(u32, f64)>,
    pub(crate) values: Vec<f32>,
    pub(crate) numbers: Vec<(&'static str, f64)>,
    pub(crate) rates: Vec<RateRow>,
    pub(crate) watches: Vec<Watch>,
    /// Class name of each modifier of the recipe.
    modifiers: Vec<&'static str>,
}

/// One learning-rate curve and the steps at which it sets the rate. The last row wins where two set it at one step.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct RateRow {
    pub first: u64,
    pub last: u64,
    pub curve: Curve,
}

/// Start, end and cycles in epochs; sizes and milestones in steps from the row's first step.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Curve {
    Constant(f64),
    Linear { init: f64, last: f64, start: f64, end: f64 },
    Cosine { init: f64, last: f64, start: f64, end: f64 },
    Cyclic { init: f64, last: f64, start: f64, end: f64, cycle_epochs: f64 },
    Step { init: f64, gamma: f64, size: f64 },
    MultiStep { init: f64, gamma: f64, milestones: Vec<f64> },
    Restarts { init: f64, minimum: f64, start: f64, cycle_epochs: f64 },
}

/// One line of the printed schedule.
#[derive(Clone, PartialEq, Debug)]
pub struct ScheduleRow {
    pub epoch: f64,
    pub step: u64,
    pub modifier: &'static str,
    /// Parameters or layers concerned, where an action concerns some.
    pub matched: Option<usize>,
    pub value: String,
}

impl Schedule {
    pub(crate) fn empty(recipe: &Recipe, steps_per_epoch: u32) -> Schedule {
        Schedule {
            steps: u64::from(recipe.max_epochs()) * u64::from(steps_per_epoch),
            steps_per_epoch,
            events: Vec::new(),
            warnings: Vec::new(),
            pool: Vec::new(),
            layers: Vec::new(),
            terms: Vec::new(),
            pairs: Vec::new(),
            penalised: Vec::new(),
            values: Vec::new(),
            numbers: Vec::new(),
            rates: Vec::new(),
            watches: Vec::new(),
            modifiers: recipe.modifiers.iter().map(|m| m.class()).collect(),
        }
    }

    /// The learning rate of a step; `None` before the recipe first sets one.
    pub fn learning_rate(&self, step: u64) -> Option<f64> {
        let mut best: Option<(u64, &RateRow)> = None;
        for row in self.rates.iter().filter(|row| row.first <= step) {
            let set_at = step.min(row.last);
            if best.is_none_or(|(at, _)| set_at >= at) {
                best = Some((set_at, row));
            }
        }
        best.map(|(at, row)| row.at(at, f64::from(self.steps_per_epoch)))
    }

    /// The events of one step, in the order in which they must happen.
    pub fn events_at(&self, step: u64) -> &[Event] {
        let begin = self.events.partition_point(|event| event.step < step);
        let end = self.events.partition_point(|event| event.step <= step);
        &self.events[begin..end]
    }

    /// What modifiers do at this step beside events, in the order of the recipe.
    pub fn watches_at(&self, step: u64) -> impl Iterator<Item = &Watch> {
        self.watches.iter().filter(move |watch| (watch.first..watch.end).contains(&step))
    }

    /// The rows of the parameter table that a range means.
    pub fn params(&self, range: PoolRange) -> &[u32] {
        &self.pool[range.range()]
    }

    /// The rows of [`Schedule::terms`] that add to the loss of a step.
    pub fn terms_at(&self, step: u64) -> impl Iterator<Item = (usize, &LossTerm)> {
        self.terms.iter().enumerate().filter(move |(_, term)| (term.first..term.end).contains(&step))
    }

    /// The layers whose features are compared.
    pub fn pairs(&self, range: PoolRange) -> &[Pair] {
        &self.pairs[range.range()]
    }

    /// The layers whose activations are penalised (rows of the layers that `compile` was given), and how much.
    pub fn penalised(&self, range: PoolRange) -> &[(u32, f64)] {
        &self.penalised[range.range()]
    }

    /// One number, or one for each element of a tensor.
    pub fn values(&self, range: PoolRange) -> &[f32] {
        &self.values[range.range()]
    }

    /// Keys of a user's modifier and their numbers, a yes as 1.
    pub fn numbers(&self, range: PoolRange) -> &[(&'static str, f64)] {
        &self.numbers[range.range()]
    }

    /// The class of the modifier that an event comes from.
    pub fn modifier(&self, event: &Event) -> &'static str {
        self.class(event.modifier)
    }

    /// The class of the modifier with that number in the recipe.
    pub fn class(&self, modifier: u32) -> &'static str {
        self.modifiers[modifier as usize]
    }

    /// The layers that a range means.
    pub fn layers(&self, range: PoolRange) -> &[LayerScheme] {
        &self.layers[range.range()]
    }

    /// The events as lines to print. The updates between a pruning's first and last are one line.
    pub fn describe(&self) -> Vec<ScheduleRow> {
        let mut updates: HashMap<(u32, u32), (usize, usize)> = HashMap::new();
        for event in &self.events {
            if let Action::SetSparsity { params, .. } = event.action {
                updates.entry((event.modifier, params.start)).or_default().1 += 1;
            }
        }
        let mut rows = Vec::new();
        for event in &self.events {
            let mut value = show_action(self, &event.action);
            if let Action::SetSparsity { params, .. } = event.action {
                let (seen, all) = updates.entry((event.modifier, params.start)).or_default();
                *seen += 1;
                match *seen {
                    2 if *all > 3 => value = format!("{value}, the first of {} updates", *all - 2),
                    n if n > 2 && n < *all => continue,
                    _ => {}
                }
            }
            rows.push(ScheduleRow {
                epoch: event.epoch,
                step: event.step,
                modifier: self.modifier(event),
                matched: matched(&event.action),
                value,
            });
        }
        rows
    }

    /// [`Schedule::describe`] as an aligned table.
    pub fn table(&self) -> String {
        let rows = self.describe();
        let width = rows.iter().map(|row| row.modifier.len()).max().unwrap_or(0).max("modifier".len());
        let mut out =
            format!("{:>8}  {:>8}  {:width$}  {:>7}  value\n", "epoch", "step", "modifier", "matched");
        for row in rows {
            let matched = row.matched.map_or(String::new(), |n| n.to_string());
            let _ = writeln!(
                out,
                "{:>8.2}  {:>8}  {:width$}  {matched:>7}  {}",
                row.epoch, row.step, row.modifier, row.value
            );
        }
        let epochs = self.steps / u64::from(self.steps_per_epoch.max(1));
        let _ = writeln!(out, "{epochs} epochs of {} steps: {} steps", self.steps_per_epoch, self.steps);
        out
    }
}

impl RateRow {
    /// The value at a step from `first` to `last`.
    pub(crate) fn at(&self, step: u64, steps_per_epoch: f64) -> f64 {
        let epoch = step as f64 / steps_per_epoch;
        let since = (step - self.first) as f64;
        let ended = step >= self.last;
        let part = |start: f64, end: f64| {
            if ended { 1.0 } else { ((epoch - start) / (end - start)).clamp(0.0, 1.0) }
        };
        match &self.curve {
            Curve::Constant(value) => *value,
            Curve::Linear { init, last, start, end } => init + part(*start, *end) * (last - init),
            Curve::Cosine { init, last, start, end } => {
                last + (init - last) * (1.0 + (PI * part(*start, *end)).cos()) / 2.0
            }
            Curve::Cyclic { last, .. } if ended => *last,
            Curve::Cyclic { init, last, start, end, cycle_epochs } => {
                let (total, cycle) = ((end - start) * steps_per_epoch, cycle_epochs * steps_per_epoch);
                let current = (step as f64 - start * steps_per_epoch).max(0.0);
                // A last cycle that does not fit runs faster, so that it too ends at the final rate. (SparseML means
                // that as well, but there the faster cycle begins in the middle of its course.)
                let whole = (total / cycle + 1e-9).floor() * cycle;
                let (inside, cycle) =
                    if current < whole { (current % cycle, cycle) } else { (current - whole, total - whole) };
                if cycle > 1.0 { init - (inside / (cycle - 1.0)).min(1.0) * (init - last) } else { *init }
            }
            Curve::Step { init, gamma, size } => init * gamma.powf((since / size).floor()),
            Curve::MultiStep { init, gamma, milestones } => {
                let passed = milestones.iter().filter(|&&milestone| milestone <= since).count();
                init * gamma.powi(passed as i32)
            }
            Curve::Restarts { init, minimum, start, cycle_epochs } => {
                let inside = (epoch - start).max(0.0) % cycle_epochs;
                minimum + (init - minimum) * (1.0 + (PI * inside / cycle_epochs).cos()) / 2.0
            }
        }
    }
}

fn matched(action: &Action) -> Option<usize> {
    match action {
        Action::SetSparsity { params, .. }
        | Action::ReleaseMasks { params }
        | Action::DropHidden { params }
        | Action::SetTwoMasks { params, .. }
        | Action::Rewire { params, .. }
        | Action::FixMasks { params }
        | Action::SetTrainable { params, .. }
        | Action::RestoreTrainable { params }
        | Action::SetParams { params, .. }
        | Action::Custom { params, .. }
        | Action::RemoveLayers { layers: params, .. }
        | Action::SetThreshold { layers: params, .. } => Some(params.len as usize),
        Action::StartQuantization(scheme) => Some(scheme.layers.len as usize),
        _ => None,
    }
}

fn show_action(schedule: &Schedule, action: &Action) -> String {
    match action {
        Action::SetSparsity { sparsity, own_share, structure, scope, score, .. } => {
            let scope = match scope {
                Scope::Uniform => "",
                Scope::Global => " over all of them",
                Scope::Dependent => " in each group",
            };
            let own = if *own_share > 0.0 { format!(" + {own_share:.4} of its own") } else { String::new() };
            let score = match score {
                Score::Magnitude => String::new(),
                Score::Movement => ", by movement".to_owned(),
                Score::Fisher(fisher) => format!(", by {} gradients", fisher.grads),
            };
            let structure = match structure {
                MaskStructure::Unstructured => String::new(),
                MaskStructure::Block4 => ", block4".to_owned(),
                MaskStructure::NOfM { keep, of } => format!(", {keep}:{of}"),
                MaskStructure::Block { rows, columns } => format!(", blocks [{rows}, {columns}]"),
                MaskStructure::PairRun { rows, columns } => {
                    format!(", SparseML's blocks [{rows}, {columns}]")
                }
                MaskStructure::Filter => ", filters".to_owned(),
                MaskStructure::Channel => ", channels".to_owned(),
            };
            format!("sparsity {sparsity:.4}{own}{structure}{scope}{score}")
        }
        Action::ReleaseMasks { .. } => "masks released".to_owned(),
        Action::SetTwoMasks { forward, backward, .. } => {
            format!("sparsity {forward:.4} forward, {backward:.4} backward")
        }
        Action::Rewire { fraction, .. } => format!("{fraction:.4} of the open weights replaced"),
        Action::Thin { .. } => "channels of zeros removed".to_owned(),
        Action::ResetMomentum => "momentum reset".to_owned(),
        Action::DropHidden { .. } => "weights behind masks dropped".to_owned(),
        Action::FixMasks { .. } => "zeros kept".to_owned(),
        Action::SetLearningRate(rate) => format!("learning rate {rate}"),
        Action::SetWeightDecay(decay) => format!("weight decay {decay}"),
        Action::StartQuantization(scheme) => show_scheme(schedule.layers(scheme.layers)),
        Action::FreezeObservers => "quantisation ranges frozen".to_owned(),
        Action::FreezeBatchNorm => "batch-norm statistics frozen".to_owned(),
        Action::SetTrainable { trainable, .. } => if *trainable { "trained" } else { "frozen" }.to_owned(),
        Action::RestoreTrainable { .. } => "trained or frozen as before".to_owned(),
        Action::SetParams { from, to, part, .. } => match (schedule.values(*from), schedule.values(*to)) {
            (&[from], &[to]) => format!("set to {}", f64::from(from) + part * f64::from(to - from)),
            _ if from == to => "set to a tensor".to_owned(),
            _ => format!("{part:.4} of the way from one tensor to another"),
        },
        Action::RemoveLayers { removed, .. } => {
            if *removed { "replaced by the identity" } else { "put back" }.to_owned()
        }
        Action::SetThreshold { threshold: 0.0, .. } => "plain ReLU".to_owned(),
        Action::SetThreshold { threshold, .. } => format!("nothing up to {threshold} passes"),
        Action::BeginTerm { term } => schedule
            .terms
            .get(*term as usize)
            .map_or_else(String::new, |term| show_term(schedule, &term.kind)),
        Action::EndTerm { .. } => "the loss as it was before".to_owned(),
        Action::LogSparsity => "sparsity logged".to_owned(),
        Action::Custom { numbers, part, .. } => {
            let numbers = schedule.numbers(*numbers).iter().filter(|(name, _)| !name.ends_with("_epoch"));
            let numbers: Vec<String> = numbers.map(|(name, value)| format!("{name} {value}")).collect();
            format!("{} at {part:.2} of its time", numbers.join(", "))
        }
    }
}

fn show_term(schedule: &Schedule, kind: &TermKind) -> String {
    match *kind {
        TermKind::Distillation { hardness, temperature } => {
            format!("loss and a teacher's outputs: hardness {hardness}, temperature {temperature}")
        }
        TermKind::Features { gain, pairs, .. } => {
            format!(
                "loss and {gain} of the distance to {} of a teacher's layers",
                schedule.pairs(pairs).len()
            )
        }
        TermKind::Activations { layers, function, of, .. } => {
            let of = if of == Side::Input { "inputs" } else { "outputs" };
            let function = match function {
                Penalty::L1 => "l1",
                Penalty::L2 => "l2",
                Penalty::Relu => "relu",
                Penalty::HoyerSquare => "Hoyer square",
            };
            format!("loss and the {function} of {of} of {} layers", schedule.penalised(layers).len())
        }
    }
}

/// The scheme of the first layer in words; the others may differ where the recipe overrides it.
fn show_scheme(layers: &[LayerScheme]) -> String {
    let Some(first) = layers.first() else { return "nothing quantised".to_owned() };
    let mut parts = Vec::new();
    for (name, args) in
        [("weights", first.quant.weight), ("inputs", first.quant.input), ("outputs", first.quant.output)]
    {
        if let Some(args) = args {
            let sign = if args.symmetric { "int" } else { "uint" };
            let each = if args.per_channel { " per channel" } else { "" };
            parts.push(format!("{name} {sign}{}{each}", args.bits));
        }
    }
    let differ =
        if layers.iter().any(|layer| layer.quant != first.quant) { ", some layers differ" } else { "" };
    format!("{}{differ}", parts.join(", "))
}
