//! Compiles the modifiers that prune: when masks change, how many zeros each change makes, and by which score.

use crate::diagnostic::Pos;
use crate::kind::{
    Acdc, Inter, MaskStructure, Pruning, PruningGroup, RigL, Scope, ScoreRule, SparsityStrategy, TopKast,
};
use crate::modifier::Modifier;
use crate::plan::{Action, Compiler, EVENTS_MAX, Fisher, PoolRange, Score, Watch, WatchKind};
use std::f64::consts::PI;

impl Compiler<'_> {
    pub(crate) fn pruning(&mut self, number: u32, modifier: &Modifier, pruning: &Pruning) {
        let (first, last) = (self.step(pruning.start), self.step(pruning.end));
        let groups = pruning.groups.len() as u64;
        let Some(steps) = self.updates(modifier.pos, first, last, pruning.update_frequency, groups) else {
            return;
        };
        for group in &pruning.groups {
            let Some(params) = self.select(&group.params, true, true) else { continue };
            self.check_structure(modifier.pos, pruning, group, params);
            let start = pruning.start.max(0.0);
            for &step in &steps {
                let epoch = step as f64 / self.steps_per_epoch;
                let part = if step >= last { 1.0 } else { (epoch - start) / (pruning.end - start) };
                let done = interpolate(pruning.inter, part);
                // init + done * (final - init), where init is a number or what each tensor has.
                let (sparsity, own_share) = match pruning.init_sparsity {
                    _ if step >= last => (group.final_sparsity, 0.0),
                    Some(init) => (init + done * (group.final_sparsity - init), 0.0),
                    None => (done * group.final_sparsity, 1.0 - done),
                };
                let (structure, scope) = (pruning.structure, pruning.scope);
                let score = score(&pruning.score, sparsity);
                let action = Action::SetSparsity { params, sparsity, own_share, structure, scope, score };
                self.event(number, step, action);
            }
            if pruning.score == ScoreRule::Movement {
                self.watch(number, first..last, params, WatchKind::Movement);
                self.event(number, last, Action::DropHidden { params });
            }
            if !pruning.leave_enabled {
                self.event(number, last, Action::ReleaseMasks { params });
            }
        }
    }

    pub(crate) fn acdc(&mut self, number: u32, modifier: &Modifier, acdc: &Acdc) {
        let (first, last) = (self.step(acdc.start), self.step(acdc.end));
        let Some(steps) = self.updates(modifier.pos, first, last, acdc.update_frequency, 2) else { return };
        let Some(params) = self.select(&acdc.params, true, true) else { return };
        self.check_scope(modifier.pos, acdc.structure, acdc.scope);
        self.check_blocks(modifier.pos, acdc.structure, params);
        let period = self.step(acdc.update_frequency).max(1);
        let mut compressed = false;
        for &step in &steps {
            let phase = (step - first) / period;
            if phase.is_multiple_of(2) && step + period < last {
                self.event(number, step, Action::ReleaseMasks { params });
                if compressed && acdc.momentum_reset {
                    self.event(number, step, Action::ResetMomentum);
                }
                compressed = false;
                continue;
            }
            let (sparsity, structure, scope) = (acdc.sparsity, acdc.structure, acdc.scope);
            let score = Score::Magnitude;
            let action = Action::SetSparsity { params, sparsity, own_share: 0.0, structure, scope, score };
            self.event(number, step, action);
            compressed = true;
        }
        if !acdc.leave_enabled {
            self.event(number, last, Action::ReleaseMasks { params });
        }
    }

    pub(crate) fn rigl(&mut self, number: u32, modifier: &Modifier, rigl: &RigL) {
        let (first, last) = (self.step(rigl.start), self.step(rigl.end));
        let Some(steps) = self.updates(modifier.pos, first, last, rigl.update_frequency, 1) else { return };
        let Some(params) = self.select(&rigl.params, true, true) else { return };
        let rows = params.range();
        let shapes: Vec<&[usize]> =
            self.schedule.params(params).iter().map(|&row| &*self.params[row as usize].shape).collect();
        for (sparsity, place) in shared_out(rigl.sparsity, rigl.strategy, &shapes).into_iter().zip(rows) {
            let params = PoolRange { start: place as u32, len: 1 };
            let (structure, scope, score) = (MaskStructure::Unstructured, Scope::Uniform, Score::Magnitude);
            let action = Action::SetSparsity { params, sparsity, own_share: 0.0, structure, scope, score };
            self.event(number, first, action);
        }
        for &step in steps.iter().filter(|&&step| step > first && step < last) {
            let part =
                (step as f64 / self.steps_per_epoch - rigl.start.max(0.0)) / (rigl.end - rigl.start.max(0.0));
            let fraction = rigl.init_fraction * (1.0 + (PI * part).cos()) / 2.0;
            let (grads, momentum_reset) = (rigl.grads, rigl.momentum_reset);
            self.event(number, step, Action::Rewire { params, fraction, grads, momentum_reset });
        }
        if !rigl.leave_enabled {
            self.event(number, last, Action::ReleaseMasks { params });
        }
    }

    pub(crate) fn top_kast(&mut self, number: u32, modifier: &Modifier, kast: &TopKast) {
        let (first, last) = (self.step(kast.start), self.step(kast.end));
        let Some(steps) = self.updates(modifier.pos, first, last, kast.update_frequency, 1) else { return };
        let Some(params) = self.select(&kast.params, true, true) else { return };
        self.check_scope(modifier.pos, kast.structure, kast.scope);
        self.check_blocks(modifier.pos, kast.structure, params);
        for step in steps {
            let (forward, backward) = (kast.forward_sparsity, kast.backward_sparsity);
            let (structure, scope) = (kast.structure, kast.scope);
            self.event(number, step, Action::SetTwoMasks { params, forward, backward, structure, scope });
        }
        let kind =
            WatchKind::TopKast { decay: kast.active_weight_decay, forward_sparsity: kast.forward_sparsity };
        self.watch(number, first..last, params, kind);
        self.event(number, last, Action::DropHidden { params });
        if !kast.leave_enabled {
            self.event(number, last, Action::ReleaseMasks { params });
        }
    }

    /// The steps of updates: the first, one each period, and the last. `None` after an error.
    pub(crate) fn updates(
        &mut self,
        pos: Pos,
        first: u64,
        last: u64,
        update_frequency: f64,
        events_each: u64,
    ) -> Option<Vec<u64>> {
        let period = match update_frequency {
            -1.0 => 1,
            epochs => self.step(epochs).max(1),
        };
        let events = (last - first).div_ceil(period).saturating_mul(events_each);
        if events.saturating_add(self.schedule.events.len() as u64) >= EVENTS_MAX {
            let message = format!("the schedule has more than {EVENTS_MAX} events");
            self.error(pos, message, "raise `update_frequency`");
            return None;
        }
        let mut steps: Vec<u64> = (first..last).step_by(period as usize).collect();
        steps.push(last);
        Some(steps)
    }

    pub(crate) fn watch(
        &mut self,
        modifier: u32,
        steps: std::ops::Range<u64>,
        params: PoolRange,
        kind: WatchKind,
    ) {
        let (first, end) = (steps.start, steps.end);
        self.schedule.watches.push(Watch { modifier, first, end, params, kind });
    }

    fn check_scope(&mut self, pos: Pos, structure: MaskStructure, scope: Scope) {
        let whole = matches!(structure, MaskStructure::Filter | MaskStructure::Channel);
        if whole && scope == Scope::Global {
            let message = "filters and channels of different tensors cannot be ranked together";
            self.error(pos, message, "set `global_sparsity` to false");
        }
    }

    fn check_blocks(&mut self, pos: Pos, structure: MaskStructure, params: PoolRange) {
        let (MaskStructure::Block { rows, columns } | MaskStructure::PairRun { rows, columns }) = structure
        else {
            return;
        };
        for &row in self.schedule.params(params).to_vec().iter() {
            let param = &self.params[row as usize];
            let [outputs, inputs] = [0, 1].map(|d| param.shape.get(d).copied().unwrap_or(1));
            let side = |side: i32, whole: usize| usize::try_from(side).unwrap_or(whole).max(1);
            if outputs % side(rows, outputs) != 0 || inputs % side(columns, inputs) != 0 {
                let name = &param.name;
                let message = format!(
                    "blocks of [{rows}, {columns}] do not divide `{name}` with {outputs} outputs and {inputs} inputs"
                );
                self.error(pos, message, "leave it out of `params`, or use another `mask_type`");
            }
        }
    }

    fn check_structure(&mut self, pos: Pos, pruning: &Pruning, group: &PruningGroup, params: PoolRange) {
        self.check_scope(pos, pruning.structure, pruning.scope);
        self.check_blocks(pos, pruning.structure, params);
        let MaskStructure::NOfM { keep, of } = pruning.structure else { return };
        let zeros = 1.0 - f64::from(keep) / f64::from(of);
        let fits = |s: f64| s == 0.0 || (s - zeros).abs() <= 0.01;
        // Between the two a sparsity that is not the pattern's could not be reached.
        let held = pruning.init_sparsity.is_some_and(|init| (init - group.final_sparsity).abs() <= 0.02);
        if !fits(group.final_sparsity) || !held {
            let message = format!("a {keep}:{of} mask is {zeros} sparse at all times");
            self.error(pos, message, format!("set `init_sparsity` and `final_sparsity` to {zeros}"));
        }
    }
}

fn score(rule: &ScoreRule, sparsity: f64) -> Score {
    match rule {
        ScoreRule::Magnitude => Score::Magnitude,
        ScoreRule::Movement => Score::Movement,
        ScoreRule::Fisher(rule) => {
            let grads = rule.grads.iter().rev().find(|&&(from, _)| from <= sparsity);
            Score::Fisher(Fisher {
                grads: grads.or(rule.grads.first()).map_or(1, |&(_, n)| n),
                batch: rule.batch,
                damp: rule.damp,
                block: rule.block,
                recomputations: rule.recomputations,
                matrix_free: rule.matrix_free,
            })
        }
    }
}

/// The sparsity of each tensor, so that densities are in proportion to the strategy's weight of a shape and all tensors
/// together have `sparsity` (unless one would be more than dense: it is dense, and all have less).
fn shared_out(sparsity: f64, strategy: SparsityStrategy, shapes: &[&[usize]]) -> Vec<f64> {
    let weight = |shape: &[usize]| {
        let sides: Vec<f64> = shape.iter().map(|&n| n as f64).collect();
        match strategy {
            SparsityStrategy::Uniform => 1.0,
            SparsityStrategy::ErdosRenyi => {
                let [o, i] = [0, 1].map(|d| sides.get(d).copied().unwrap_or(1.0));
                (i + o) / (i * o)
            }
            SparsityStrategy::ErdosRenyiKernel => sides.iter().sum::<f64>() / sides.iter().product::<f64>(),
        }
    };
    let elements = |shape: &[usize]| shape.iter().map(|&n| n as f64).product::<f64>();
    let all: f64 = shapes.iter().map(|s| elements(s)).sum();
    let weighted: f64 = shapes.iter().map(|s| weight(s) * elements(s)).sum();
    let factor = (1.0 - sparsity) * all / weighted;
    shapes.iter().map(|s| (1.0 - factor * weight(s)).clamp(0.0, 1.0)).collect()
}

/// The part of the way from initial to final sparsity at the part `x` of the time: SparseML's three curves.
/// The cubic one is equation 1 of Zhu & Gupta 2017.
pub(crate) fn interpolate(inter: Inter, x: f64) -> f64 {
    let x = x.clamp(0.0, 1.0);
    match inter {
        Inter::Linear => x,
        Inter::Cubic => 1.0 - (1.0 - x).powi(3),
        Inter::InverseCubic => 1.0 - (1.0 - x).cbrt(),
    }
}
