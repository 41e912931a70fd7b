//! Compiles the modifiers that prune: when masks change, how many zeros each change makes, and by which score.

use crate::diagnostic::Pos;
use crate::kind::{Inter, MaskStructure, Pruning, PruningGroup, Scope, ScoreRule};
use crate::modifier::Modifier;
use crate::plan::{Action, Compiler, EVENTS_MAX, Fisher, PoolRange, Score, Watch, WatchKind};

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

    fn check_structure(&mut self, pos: Pos, pruning: &Pruning, group: &PruningGroup, params: PoolRange) {
        match pruning.structure {
            MaskStructure::NOfM { keep, of } => {
                let zeros = 1.0 - f64::from(keep) / f64::from(of);
                let fits = |s: f64| s == 0.0 || (s - zeros).abs() <= 0.01;
                if !fits(group.final_sparsity) || !pruning.init_sparsity.is_some_and(fits) {
                    let message = format!("a {keep}:{of} mask has {zeros} zeros or none");
                    self.error(pos, message, format!("set `init_sparsity` and `final_sparsity` to {zeros}"));
                }
            }
            MaskStructure::Block { rows, columns } => {
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
            MaskStructure::Filter | MaskStructure::Channel if pruning.scope == Scope::Global => {
                let message = "filters and channels of different tensors cannot be ranked together";
                self.error(pos, message, "leave `global_sparsity` out");
            }
            _ => {}
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

/// The part of the way from initial to final sparsity at the part `x` of the time: SparseML's three curves.
/// The cubic one is equation 1 of Zhu & Gupta 2017.
fn interpolate(inter: Inter, x: f64) -> f64 {
    let x = x.clamp(0.0, 1.0);
    match inter {
        Inter::Linear => x,
        Inter::Cubic => 1.0 - (1.0 - x).powi(3),
        Inter::InverseCubic => 1.0 - (1.0 - x).cbrt(),
    }
}
