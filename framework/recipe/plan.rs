//! Compiles a recipe, for one model and one number of steps per epoch, to a [`Schedule`]: every event of the
//! training in one table sorted by step, made and checked before the first step and only looked up afterwards.
//!
//! ```text
//! events   [ step | epoch | modifier | action ]   by step, then by (end, start, place in the recipe)
//! pool     [ parameter row, ... ]                 what an action's PoolRange points into
//! layers   [ layer row | input | weight | output ]          see `plan_quant.rs`
//! rates    [ first step | last step | curve ]     closed forms; see `schedule.rs`
//! ```
//! Step `s` is epoch `s / steps_per_epoch`. An event of step `s` happens before that step's forward pass; those of
//! step [`Schedule::steps`] happen after the last step. An epoch between two steps takes effect at the later one.

use crate::diagnostic::{Diagnostic, Pos, did_you_mean, quote_lines};
use crate::kind::{Kind, LrClass, LrFunction, MaskStructure, Scope};
use crate::modifier::Modifier;
use crate::modifier_table::Status;
use crate::params::{Pattern, Selector, no_match_help};
use crate::plan_quant::{LayerRow, QuantScheme};
use crate::recipe::Recipe;
use crate::schedule::{Curve, RateRow, Schedule};

/// Most events in one schedule.
pub const EVENTS_MAX: u64 = 1 << 20;

/// Part of a step that rounding may have added to an epoch times the steps per epoch.
const STEP_SLACK: f64 = 1e-6;

/// One parameter of the model that a recipe is compiled for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParamRow {
    pub name: String,
    /// Output channels first, then input channels, then the kernel.
    pub shape: Vec<usize>,
    /// The weight of a convolution or linear layer.
    pub prunable: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Event {
    pub step: u64,
    pub epoch: f64,
    /// Number of the modifier in [`Recipe::modifiers`].
    pub modifier: u32,
    pub action: Action,
}

/// What happens. Parameters are rows of the table that `compile` was given: [`Schedule::params`] resolves the range.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Action {
    /// Make new masks so that this part of the weights is zero, and hold them until the next event.
    SetSparsity {
        params: PoolRange,
        sparsity: f64,
        /// What is added to `sparsity`: this share of the sparsity that the weights had at the modifier's first event.
        own_share: f64,
        structure: MaskStructure,
        scope: Scope,
        score: Score,
    },
    /// The weights under the masks may move again.
    ReleaseMasks {
        params: PoolRange,
    },
    /// As `SetSparsity` by magnitude with `forward`; weights under that mask go on moving, but for a part `backward` of all.
    SetTwoMasks {
        params: PoolRange,
        forward: f64,
        backward: f64,
        structure: MaskStructure,
        scope: Scope,
    },
    /// In each tensor, mask this part of the open weights, the smallest, and open as many of those that are masked then,
    /// by the magnitude of their summed gradients.
    Rewire {
        params: PoolRange,
        fraction: f64,
        grads: u32,
        momentum_reset: bool,
    },
    /// Remove the channels whose filters (or, by channel, whose readers) are zero.
    Thin {
        structure: MaskStructure,
    },
    /// The optimiser's momentum of all parameters becomes zero.
    ResetMomentum,
    /// Weights that moved on behind their masks are zero from here on.
    DropHidden {
        params: PoolRange,
    },
    /// Mask what is exactly zero now, and hold that.
    FixMasks {
        params: PoolRange,
    },
    /// A learning-rate curve begins, at this value. [`Schedule::learning_rate`] gives the value of every step.
    SetLearningRate(f64),
    SetWeightDecay(f64),
    StartQuantization(QuantScheme),
    /// Scales and zero points stay as they are.
    FreezeObservers,
    /// Running statistics of batch norm stay as they are.
    FreezeBatchNorm,
    SetTrainable {
        params: PoolRange,
        trainable: bool,
    },
    /// Back to what they were before `SetTrainable`.
    RestoreTrainable {
        params: PoolRange,
    },
    /// Every element becomes `from + part * (to - from)`; [`Schedule::values`] resolves the ranges, of one number or one
    /// for each element.
    SetParams {
        params: PoolRange,
        from: PoolRange,
        to: PoolRange,
        part: f64,
    },
    /// Layers become the identity, or what they were. [`Schedule::params`] resolves the range to rows of the layers that
    /// `compile` was given.
    RemoveLayers {
        layers: PoolRange,
        removed: bool,
    },
    /// The ReLUs of these layers cut off what is not above `threshold`; at 0 they are plain again. Rows as in `RemoveLayers`.
    SetThreshold {
        layers: PoolRange,
        threshold: f64,
    },
    /// A row of [`Schedule::terms`] adds to the loss from here on, or no longer.
    BeginTerm {
        term: u32,
    },
    EndTerm {
        term: u32,
    },
    /// A user's function is called; [`Schedule::numbers`] resolves what the recipe gives it. `part` of its time has passed.
    Custom {
        params: PoolRange,
        numbers: PoolRange,
        part: f64,
    },
    /// Write down the sparsity of every tensor, and what is quantised.
    LogSparsity,
}

/// What [`Action::SetSparsity`] chooses weights by; see [`ScoreRule`](crate::ScoreRule).
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Score {
    Magnitude,
    Movement,
    Fisher(Fisher),
}

/// An estimate of the Fisher matrix; see [`FisherRule`](crate::FisherRule).
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Fisher {
    pub grads: u32,
    pub batch: Option<u32>,
    pub damp: f64,
    pub block: u32,
    pub recomputations: u32,
    pub matrix_free: bool,
}

/// What a modifier does at every step from `first` to before `end`. Like learning rates these are looked up by step, so
/// that a resumed training has nothing to remember of them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Watch {
    /// Number of the modifier in [`Recipe::modifiers`].
    pub modifier: u32,
    pub first: u64,
    pub end: u64,
    pub params: PoolRange,
    pub kind: WatchKind,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum WatchKind {
    /// Weights in use shrink by `decay` times the learning rate, those that move behind the mask by 1 / `forward_sparsity`
    /// of that, apart from the optimiser.
    TopKast { decay: f64, forward_sparsity: f64 },
    /// Trained as theta with w = theta * |theta|^(alpha - 1).
    Powerpropagation { alpha: f64 },
    /// Sum up [`Score::Movement`]; masked weights go on moving behind their masks.
    Movement,
}

/// A range of one of the schedule's pools.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolRange {
    pub start: u32,
    pub len: u32,
}

impl PoolRange {
    pub(crate) fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

/// Compiles `recipe` for a model with these parameters and these layers that can be quantised.
///
/// Errors: all found, each with its place in the recipe: a pattern that matches nothing, a modifier that is not carried
/// out yet, a mask structure that does not fit a shape, too many events.
pub fn compile(
    recipe: &Recipe,
    params: &[ParamRow],
    layers: &[LayerRow],
    steps_per_epoch: u32,
) -> Result<Schedule, Vec<Diagnostic>> {
    let mut compiler = Compiler {
        recipe,
        params,
        layers,
        steps_per_epoch: f64::from(steps_per_epoch),
        schedule: Schedule::empty(recipe, steps_per_epoch),
        errors: Vec::new(),
    };
    if steps_per_epoch == 0 {
        compiler.error(Pos::default(), "an epoch has no steps: the data set is smaller than one batch", "");
        return Err(compiler.errors);
    }
    // SparseML's order, for events of one step: by end (never = last), by start, by place in the recipe.
    let mut order: Vec<u32> = (0..recipe.modifiers.len() as u32).collect();
    order.retain(|&m| recipe.modifiers[m as usize].enabled);
    let end = |m: &Modifier| if m.end_epoch() < 0.0 { f64::INFINITY } else { m.end_epoch() };
    order.sort_by(|&a, &b| {
        let (a, b) = (&recipe.modifiers[a as usize], &recipe.modifiers[b as usize]);
        end(a).total_cmp(&end(b)).then(a.start_epoch().total_cmp(&b.start_epoch()))
    });
    for number in order {
        compiler.modifier(number);
    }
    if !compiler.errors.is_empty() {
        compiler.errors.sort_by_key(|d| (d.line, d.column));
        quote_lines(&mut compiler.errors, &recipe.text);
        return Err(compiler.errors);
    }
    let mut schedule = compiler.schedule;
    let end = schedule.steps;
    for event in schedule.events.iter().filter(|event| event.step > end) {
        let modifier = &recipe.modifiers[event.modifier as usize];
        let message =
            format!("`!{}` acts at epoch {}, after the training ends", modifier.class(), event.epoch);
        let help = "lengthen `!EpochRangeModifier`";
        schedule.warnings.push(Diagnostic::warning(&recipe.source, modifier.pos, message, help));
    }
    quote_lines(&mut schedule.warnings, &recipe.text);
    schedule.events.retain(|event| event.step <= end);
    schedule.events.sort_by_key(|event| event.step);
    Ok(schedule)
}

pub(crate) struct Compiler<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) params: &'a [ParamRow],
    pub(crate) layers: &'a [LayerRow],
    pub(crate) steps_per_epoch: f64,
    pub(crate) schedule: Schedule,
    errors: Vec<Diagnostic>,
}

impl Compiler<'_> {
    fn modifier(&mut self, number: u32) {
        let recipe = self.recipe;
        let modifier = &recipe.modifiers[number as usize];
        let class = modifier.class();
        let refused = match modifier.row.status {
            Status::Implemented | Status::Custom => None,
            Status::NotApplicable(why) => Some(format!("`!{class}` does not apply here: {why}")),
        };
        if let Some(message) = refused {
            self.error(modifier.pos, message, "remove it, or set `enabled: false`");
            return;
        }
        // Those of StructuredPruning are lists of names, and of no consequence.
        if let Some(groups) = modifier.given(&recipe.doc, "param_groups")
            && class != "StructuredPruningModifier"
            && recipe.doc.list(groups).iter().any(|&group| recipe.doc.show(group) != "0")
        {
            let help = "leave `param_groups` out, or name group 0";
            self.error(recipe.doc.pos(groups), "the optimiser has one group of parameters", help);
        }
        match &modifier.kind {
            Kind::EpochRange { .. } | Kind::NotApplicable { .. } => {}
            Kind::Loss(loss) => self.loss(number, modifier.pos, loss),
            Kind::Custom { .. } => self.custom(number, modifier),
            Kind::SetParam(set) => self.set_param(number, modifier.pos, set),
            Kind::LayerPruning { layers, start, end } => self.remove_layers(number, layers, *start, *end),
            Kind::FatRelu { layers, threshold, start, end } => {
                self.fat_relu(number, layers, *threshold, *start, *end);
            }
            &Kind::Logging { start, end, update_frequency } => {
                self.logging(number, modifier.pos, start, end, update_frequency)
            }
            Kind::SetLearningRate { learning_rate, start } => {
                let first = self.step(*start);
                self.rate(number, RateRow { first, last: first, curve: Curve::Constant(*learning_rate) });
            }
            &Kind::LearningRateFunction { function, init, last, start, end, cycle_epochs } => {
                let start = start.max(0.0);
                let curve = match function {
                    LrFunction::Linear => Curve::Linear { init, last, start, end },
                    LrFunction::Cosine => Curve::Cosine { init, last, start, end },
                    LrFunction::CyclicLinear => Curve::Cyclic { init, last, start, end, cycle_epochs },
                };
                self.rate(number, RateRow { first: self.step(start), last: self.step(end), curve });
            }
            Kind::LearningRate { class, init, start, end } => {
                self.rate_class(number, class, *init, *start, *end)
            }
            Kind::SetWeightDecay { weight_decay, start } => {
                self.event(number, self.step(*start), Action::SetWeightDecay(*weight_decay));
            }
            Kind::TrainableParams { params, trainable, strict, start, end } => {
                let Some(params) = self.select(params, false, *strict) else { return };
                let action = Action::SetTrainable { params, trainable: *trainable };
                self.event(number, self.step(*start), action);
                if *end >= 0.0 {
                    self.event(number, self.step(*end), Action::RestoreTrainable { params });
                }
            }
            Kind::Pruning(pruning) => self.pruning(number, modifier, pruning),
            Kind::Acdc(acdc) => self.acdc(number, modifier, acdc),
            Kind::RigL(rigl) => self.rigl(number, modifier, rigl),
            Kind::TopKast(kast) => self.top_kast(number, modifier, kast),
            Kind::LayerThinning { structure, start, updates } => {
                for epoch in std::iter::once(start).chain(updates) {
                    self.event(number, self.step(*epoch), Action::Thin { structure: *structure });
                }
            }
            Kind::Powerpropagation { params, alpha, strict, start, end } => {
                let Some(params) = self.select(params, true, *strict) else { return };
                let end = if *end < 0.0 { u64::MAX } else { self.step(*end) };
                let kind = WatchKind::Powerpropagation { alpha: *alpha };
                self.watch(number, self.step(*start)..end, params, kind);
            }
            Kind::ConstantPruning { params, start, end } => {
                let Some(params) = self.select(params, true, true) else { return };
                self.event(number, self.step(*start), Action::FixMasks { params });
                if *end >= 0.0 {
                    self.event(number, self.step(*end), Action::ReleaseMasks { params });
                }
            }
            Kind::Quantization(quantization) => self.quantization(number, modifier.pos, quantization),
        }
    }

    fn rate_class(&mut self, number: u32, class: &LrClass, init: f64, start: f64, end: f64) {
        let start = start.max(0.0);
        let first = self.step(start);
        // Such a scheduler does nothing at its end, so the step before is its last.
        let last = if end < 0.0 { u64::MAX } else { self.step(end).saturating_sub(1).max(first) };
        let steps = |epochs: f64| (epochs * self.steps_per_epoch).round_ties_even();
        let curve = match class {
            LrClass::Step { step_size, gamma } => {
                Curve::Step { init, gamma: *gamma, size: steps(*step_size).max(1.0) }
            }
            LrClass::Exponential { gamma } => Curve::Step { init, gamma: *gamma, size: self.steps_per_epoch },
            LrClass::MultiStep { milestones, gamma } => Curve::MultiStep {
                init,
                gamma: *gamma,
                milestones: milestones.iter().map(|milestone| steps(milestone - start)).collect(),
            },
            LrClass::CosineWarmRestarts { minimum, cycle_epochs } => {
                Curve::Restarts { init, minimum: *minimum, start, cycle_epochs: *cycle_epochs }
            }
        };
        self.rate(number, RateRow { first, last, curve });
    }

    fn rate(&mut self, number: u32, row: RateRow) {
        let value = row.at(row.first, self.steps_per_epoch);
        self.event(number, row.first, Action::SetLearningRate(value));
        self.schedule.rates.push(row);
    }

    /// The parameters that a selector means, each once, in the order of the model. With `prunable_only` a pattern
    /// that matches others too (`__ALL__`, `re:.*weight`) means the prunable ones. `None` after an error.
    pub(crate) fn select(
        &mut self,
        selector: &Selector,
        prunable_only: bool,
        strict: bool,
    ) -> Option<PoolRange> {
        let params = self.params;
        let errors = self.errors.len();
        let mut chosen = vec![false; params.len()];
        for pattern in &selector.patterns {
            let mut matched = 0;
            let mut usable = 0;
            for (row, param) in params.iter().enumerate() {
                if pattern.matches(&param.name, param.prunable) {
                    matched += 1;
                    if param.prunable || !prunable_only {
                        usable += 1;
                        chosen[row] = true;
                    }
                }
            }
            if usable == 0 && (strict || matched > 0) {
                self.no_match(pattern, prunable_only, matched);
            }
        }
        if self.errors.len() > errors {
            return None;
        }
        let start = self.schedule.pool.len() as u32;
        self.schedule.pool.extend((0..params.len() as u32).filter(|&row| chosen[row as usize]));
        Some(PoolRange { start, len: self.schedule.pool.len() as u32 - start })
    }

    fn no_match(&mut self, pattern: &Pattern, prunable_only: bool, matched: usize) {
        let candidates =
            || self.params.iter().filter(|p| p.prunable || !prunable_only).map(|p| p.name.as_str());
        let (message, help) = if matched > 0 {
            let message = format!("`{}` matches only parameters that cannot be pruned", pattern.text);
            (message, no_match_help(pattern, candidates()))
        } else {
            let token = did_you_mean(&pattern.text, ["__ALL__", "__ALL_PRUNABLE__"]);
            let help = if token.is_empty() { no_match_help(pattern, candidates()) } else { token };
            (format!("no parameter matches `{}`", pattern.text), help)
        };
        self.error(pattern.pos, message, help);
    }

    /// The first step at or after an epoch; -1 is the first step.
    pub(crate) fn step(&self, epoch: f64) -> u64 {
        // At most 1e6 epochs of 2^32 steps: below 2^53.
        (epoch * self.steps_per_epoch - STEP_SLACK).ceil().max(0.0) as u64
    }

    pub(crate) fn event(&mut self, modifier: u32, step: u64, action: Action) {
        let epoch = step as f64 / self.steps_per_epoch;
        self.schedule.events.push(Event { step, epoch, modifier, action });
    }

    pub(crate) fn error_count(&self) -> usize {
        self.errors.len()
    }

    pub(crate) fn error(&mut self, pos: Pos, message: impl Into<String>, help: impl Into<String>) {
        self.errors.push(Diagnostic::error(&self.recipe.source, pos, message, help));
    }
}
