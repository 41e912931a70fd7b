//! What the modifiers of a recipe do to a training: one function for each idea, in a file of its own.
//!
//! ```text
//! event of a step     apply           masks, moments, phases           before the forward pass
//! watch of a step     before_step     sees and changes gradients       between backward pass and optimiser
//!                     after_step      puts weights back in order       after the optimiser
//! ```
//! What a modifier remembers is in [`Columns`](crate::columns::Columns); what it needs of the loss at a moment of its own
//! choice, it asks of [`Sample`].

pub mod channels;
pub mod fisher;
pub mod prune;
pub mod rigl;
pub mod structured;
pub mod thinning;
pub mod top_kast;
pub mod watch;

use crate::error::{Error, Result};
use crate::quantize;
use crate::state::State;
use burn::tensor::Gradients;
use lacuna_nn::Classifier;
use lacuna_nn::params;
use lacuna_nn::quant::{Norm, Pass, Quant};
use lacuna_recipe::{Action, Event, PoolRange, Schedule};

/// Column: 1 where a parameter was trained before its modifier froze or freed it.
const TRAINED_BEFORE: &str = "trained_before";

/// A modifier of a user's own: the function behind a row of [`Status::Custom`](lacuna_recipe::Status::Custom).
#[derive(Clone, Copy, Debug)]
pub struct Custom {
    pub class: &'static str,
    /// Changes the values of one parameter.
    pub apply: fn(&Moment<'_>, &mut [f32]),
}

/// When a [`Custom`] modifier acts, and on what.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    pub step: u64,
    /// Of the time from its start to its end, 0 to 1.
    pub part: f64,
    /// Name of the parameter.
    pub param: &'a str,
    /// What the recipe gives, by key.
    pub numbers: &'a [(&'static str, f64)],
}

impl Moment<'_> {
    /// The number of a key of the modifier's row.
    ///
    /// # Panics
    /// If the row has no such key, or one that is no number.
    pub fn number(&self, key: &str) -> f64 {
        let found = self.numbers.iter().find(|(name, _)| *name == key);
        found.unwrap_or_else(|| panic!("the row has no number '{key}'")).1
    }
}

/// Gradients of the loss of the next few training images (`None`: as many as a training step takes) under a pass. Which
/// images come is a function of the step alone.
pub type Sample<'a, M> = dyn FnMut(&M, &Pass, Option<usize>) -> Result<Gradients> + 'a;

/// A [`Sample`] where there is no data.
pub fn no_data<M>(_: &M, _: &Pass, _: Option<usize>) -> Result<Gradients> {
    Err(Error::Recipe("this modifier needs training data for its gradients".into()))
}

/// Carries out one event. Returns whether the model is another kind of model from here on (sparser, quantised), so that
/// earlier accuracies say nothing about it.
pub fn apply<M: Classifier>(
    state: &mut State,
    module: M,
    schedule: &Schedule,
    event: &Event,
    sample: &mut Sample<'_, M>,
) -> Result<(M, bool)> {
    let rows = |range: PoolRange| state.trained_rows(schedule.params(range));
    match event.action {
        Action::SetSparsity { params, sparsity, own_share, structure, scope, score } => {
            let rows = rows(params);
            let target = prune::Target { sparsity, own_share, structure, scope };
            let module = prune::set_sparsity(state, module, event.modifier, &rows, &target, &score, sample)?;
            Ok((module, true))
        }
        Action::Thin { structure } => Ok((thinning::thin(state, module, structure)?, true)),
        Action::SetTwoMasks { params, forward, backward, structure, scope } => {
            let rows = rows(params);
            let target = prune::Target { sparsity: forward, own_share: 0.0, structure, scope };
            let module = top_kast::set_two_masks(state, module, event.modifier, &rows, &target, backward)?;
            Ok((module, true))
        }
        Action::Rewire { params, fraction, grads, momentum_reset } => {
            let rows = rows(params);
            let module = rigl::rewire(state, module, &rows, fraction, grads, sample)?;
            if momentum_reset {
                state.reset_momentum();
            }
            Ok((module, true))
        }
        Action::ResetMomentum => {
            state.reset_momentum();
            Ok((module, false))
        }
        Action::FixMasks { params } => {
            let rows = rows(params);
            let mut masks = Vec::with_capacity(rows.len());
            params::for_each(&module, |row, w| {
                if rows.contains(&row) {
                    masks.push((row, Some(w.iter().map(|&v| (v != 0.0) as u8).collect())));
                }
            });
            Ok((state.set_masks(module, masks), false))
        }
        Action::ReleaseMasks { params } => {
            let released = rows(params).into_iter().map(|row| (row, None));
            Ok((state.set_masks(module, released), false))
        }
        Action::DropHidden { params } => {
            let rows = rows(params);
            prune::drop_hidden(state, event.modifier, &rows);
            Ok((module, false))
        }
        Action::SetLearningRate(_) => Ok((module, false)),
        Action::SetWeightDecay(decay) => {
            state.weight_decay = decay;
            Ok((module, false))
        }
        Action::StartQuantization(scheme) => {
            let (asked, begun) = (schedule.layers(scheme.layers), state.pass.quant != Quant::Off);
            let module = quantize::assign(module, &state.params, &state.flow, asked, scheme.fuse, begun);
            state.pass.quant = Quant::Observe;
            Ok((module, true))
        }
        Action::FreezeObservers => {
            state.pass.quant = Quant::Frozen;
            Ok((module, false))
        }
        Action::FreezeBatchNorm => {
            state.pass.norm = Norm::Frozen;
            Ok((module, false))
        }
        Action::SetTrainable { params, trainable } => {
            for row in rows(params) {
                let before = if state.trainable[row] { 1.0 } else { 0.0 };
                if state.columns.get(event.modifier, TRAINED_BEFORE, row).is_none() {
                    state.columns.set(event.modifier, TRAINED_BEFORE, row, vec![before]);
                }
                state.trainable[row] = trainable;
            }
            Ok((module, false))
        }
        Action::RestoreTrainable { params } => {
            for row in rows(params) {
                if let Some(before) = state.columns.remove(event.modifier, TRAINED_BEFORE, row) {
                    state.trainable[row] = before.first() == Some(&1.0);
                }
            }
            Ok((module, false))
        }
        Action::SetParams { params, from, to, part } => {
            let (rows, from, to) = (rows(params), schedule.values(from), schedule.values(to));
            let module = params::update_each(module, |row, values| {
                if rows.contains(&row) {
                    for (i, value) in values.iter_mut().enumerate() {
                        let at = |ends: &[f32]| f64::from(ends[if ends.len() == 1 { 0 } else { i }]);
                        *value = (at(from) + part * (at(to) - at(from))) as f32;
                    }
                }
            });
            // What a mask covers stays zero.
            Ok((state.set_masks(module, []), false))
        }
        Action::RemoveLayers { layers, removed } => {
            Ok((quantize::remove(module, &state.params, schedule.params(layers), removed), true))
        }
        Action::SetThreshold { layers, threshold } => {
            let layers = schedule.params(layers);
            Ok((quantize::set_threshold(module, &state.params, layers, threshold as f32), false))
        }
        Action::Custom { params, numbers, part } => {
            let (class, rows) = (schedule.modifier(event), rows(params));
            let custom = state.custom.iter().find(|custom| custom.class == class);
            let custom = *custom.ok_or_else(|| Error::Recipe(format!("{class} has no function here")))?;
            let names = state.params.name.clone();
            let module = params::update_each(module, |row, values| {
                if rows.contains(&row) {
                    let moment = Moment {
                        step: event.step,
                        part,
                        param: &names[row],
                        numbers: schedule.numbers(numbers),
                    };
                    (custom.apply)(&moment, values);
                }
            });
            // What a mask covers stays zero.
            Ok((state.set_masks(module, []), false))
        }
        // These are the trainer's: they change no tensor.
        Action::BeginTerm { .. } | Action::EndTerm { .. } | Action::LogSparsity => Ok((module, false)),
    }
}
