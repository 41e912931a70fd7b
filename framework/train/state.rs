//! Everything that training changes besides the weights, as columns over the rows of a [`ParamTable`], and what the
//! events of a recipe do to it. Modifiers are functions over these columns, not objects.

use crate::checkpoint::NamedTensor;
use crate::error::{Error, Result};
use crate::masks::{self, Mask};
use burn::module::Module;
use burn::tensor::Gradients;
use lacuna_nn::params::{self, ParamTable, Role};
use lacuna_nn::quant::{Norm, Pass, Quant};
use lacuna_recipe::{Action, LayerQuant, MaskStructure, ParamRow, QuantArgs, Schedule};

/// Share of a step below which a weight counts as rounding to zero: a half, and some for a grid that the last update
/// has moved a little.
const ROUNDS_TO_ZERO: f32 = 0.51;

/// Row `i` of `mask`, `momentum` and `trainable` belongs to row `i` of `params`.
pub struct State {
    pub params: ParamTable,
    pub mask: Vec<Option<Mask>>,
    /// SGD's velocity; empty until the first step with a gradient.
    pub momentum: Vec<Vec<f32>>,
    pub trainable: Vec<bool>,
    pub weight_decay: f64,
    pub pass: Pass,
}

impl State {
    pub fn new<M: Module>(module: &M, weight_decay: f64) -> State {
        let params = ParamTable::of(module);
        let rows = params.len();
        State {
            mask: vec![None; rows],
            momentum: vec![Vec::new(); rows],
            trainable: params.role.iter().map(|&role| role != Role::Buffer).collect(),
            params,
            weight_decay,
            pass: Pass::default(),
        }
    }

    /// The table as a recipe is compiled for it: rows that are trained.
    pub fn recipe_rows(&self) -> Vec<ParamRow> {
        recipe_rows(&self.params)
    }

    /// Carries out one event. Returns whether the model is another kind of model from here on (sparser, quantised),
    /// so that earlier accuracies say nothing about it.
    pub fn apply<M: Module>(&mut self, module: M, schedule: &Schedule, action: &Action) -> Result<(M, bool)> {
        let rows = |range| -> Vec<usize> {
            let table = trained_rows(&self.params);
            schedule.params(range).iter().map(|&r| table[r as usize]).collect()
        };
        match *action {
            Action::SetSparsity { params, sparsity, structure, scope } => {
                let rows = rows(params);
                let module = self.prune(module, &rows, sparsity, structure, scope)?;
                Ok((module, true))
            }
            Action::FixMasks { params } => {
                let rows = rows(params);
                params::for_each(&module, |row, w| {
                    if rows.contains(&row) {
                        self.mask[row] = Some(w.iter().map(|&v| (v != 0.0) as u8).collect());
                    }
                });
                Ok((module, false))
            }
            Action::ReleaseMasks { params } => {
                for row in rows(params) {
                    self.mask[row] = None;
                }
                Ok((module, false))
            }
            Action::SetLearningRate(_) => Ok((module, false)),
            Action::SetWeightDecay(decay) => {
                self.weight_decay = decay;
                Ok((module, false))
            }
            Action::StartQuantization(_) => {
                self.pass.quant = Quant::Observe;
                Ok((module, true))
            }
            Action::FreezeObservers => {
                self.pass.quant = Quant::Frozen;
                Ok((module, false))
            }
            Action::FreezeBatchNorm => {
                self.pass.norm = Norm::Frozen;
                Ok((module, false))
            }
            Action::SetTrainable { params, trainable } => {
                for row in rows(params) {
                    self.trainable[row] = trainable;
                }
                Ok((module, false))
            }
            Action::RestoreTrainable { params } => {
                for row in rows(params) {
                    self.trainable[row] = true;
                }
                Ok((module, false))
            }
        }
    }

    fn prune<M: Module>(
        &mut self,
        module: M,
        rows: &[usize],
        sparsity: f64,
        structure: lacuna_recipe::MaskStructure,
        scope: lacuna_recipe::Scope,
    ) -> Result<M> {
        let mut weights: Vec<Vec<f32>> = vec![Vec::new(); rows.len()];
        params::for_each(&module, |row, w| {
            if let Some(i) = rows.iter().position(|&r| r == row) {
                weights[i] = w.to_vec();
            }
        });
        let views: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
        let masks = masks::by_magnitude(&views, sparsity, structure, scope).map_err(Error::Recipe)?;
        for (&row, mask) in rows.iter().zip(masks) {
            self.mask[row] = Some(mask);
        }
        Ok(self.enforce_masks(module))
    }

    /// Sets every masked weight to exactly zero.
    fn enforce_masks<M: Module>(&self, module: M) -> M {
        params::update_each(module, |row, w| {
            if let Some(mask) = &self.mask[row] {
                hold(mask, w);
            }
        })
    }

    /// One step of SGD with momentum (PyTorch's form: `v = m·v + g + decay·w`, `w -= lr·v`; decay on weights of
    /// convolutions and linear layers only). Masked weights are exactly 0.0 before and after.
    pub fn sgd_step<M: Module>(&mut self, module: M, gradients: &Gradients, lr: f64, momentum: f64) -> M {
        let (lr, momentum) = (lr as f32, momentum as f32);
        let State { params, mask, momentum: velocity, trainable, weight_decay, .. } = self;
        params::update_with_gradients(module, gradients, |row, w, g| {
            if !trainable[row] {
                return;
            }
            let decay = if params.role[row] == Role::Weight { *weight_decay as f32 } else { 0.0 };
            let v = &mut velocity[row];
            if v.is_empty() {
                v.resize(w.len(), 0.0);
            }
            for ((w, v), g) in w.iter_mut().zip(v.iter_mut()).zip(g) {
                *v = momentum * *v + (g + decay * *w);
                *w -= lr * *v;
            }
            if let Some(mask) = &mask[row] {
                hold(mask, v);
                hold(mask, w);
            }
        })
    }

    /// Moves every weight that its mask leaves open but its grid would round to zero to the nearest other step, so
    /// that the integer tensor has the zeros of the mask and no others. Does nothing before quantisation.
    pub fn keep_open_weights_off_zero<M: Module>(&self, module: M) -> M {
        if self.pass.quant == Quant::Off {
            return module;
        }
        let mut steps: Vec<Vec<f32>> = vec![Vec::new(); self.params.len()];
        params::for_each(&module, |row, values| {
            let owner = self.params.name[row].strip_suffix("_quantizer.step");
            if let Some(weight) = owner.and_then(|name| self.params.row(name)) {
                steps[weight] = values.to_vec();
            }
        });
        params::update_each(module, |row, w| {
            let (Some(mask), false) = (&self.mask[row], steps[row].is_empty()) else { return };
            let per_channel = w.len() / steps[row].len();
            for (i, (w, &open)) in w.iter_mut().zip(mask).enumerate() {
                let step = steps[row][i / per_channel];
                if open == 1 && w.abs() <= ROUNDS_TO_ZERO * step {
                    *w = step.copysign(*w);
                }
            }
        })
    }

    // ---- saving --------------------------------------------------------------------------------

    pub fn momentum_tensors(&self) -> Vec<NamedTensor> {
        self.columns(|row| Some(self.momentum[row].clone()).filter(|v| !v.is_empty()))
    }

    pub fn mask_tensors(&self) -> Vec<NamedTensor> {
        self.columns(|row| self.mask[row].as_ref().map(|m| m.iter().map(|&b| b as f32).collect()))
    }

    fn columns(&self, data: impl Fn(usize) -> Option<Vec<f32>>) -> Vec<NamedTensor> {
        let rows = (0..self.params.len()).filter_map(|row| Some((row, data(row)?)));
        rows.map(|(row, data)| NamedTensor {
            name: self.params.name[row].clone(),
            dims: self.params.shape[row].clone(),
            data,
        })
        .collect()
    }

    pub fn restore(&mut self, momentum: &[NamedTensor], masks: &[NamedTensor]) -> Result<()> {
        for t in momentum {
            let row = self.find(t)?;
            self.momentum[row] = t.data.clone();
        }
        for t in masks {
            let row = self.find(t)?;
            self.mask[row] = Some(t.data.iter().map(|&v| (v != 0.0) as u8).collect());
        }
        Ok(())
    }

    fn find(&self, t: &NamedTensor) -> Result<usize> {
        self.params.row(&t.name).filter(|&row| self.params.shape[row] == t.dims).ok_or_else(|| {
            Error::Weights(format!(
                "the checkpoint's '{}' {:?} does not belong to this model",
                t.name, t.dims
            ))
        })
    }
}

/// Zero where the mask is closed; positive zero, so that files hold no sign bits of dead weights.
fn hold(mask: &[u8], values: &mut [f32]) {
    for (v, &m) in values.iter_mut().zip(mask) {
        if m == 0 {
            *v = 0.0;
        }
    }
}

/// Refuses what a compiled recipe asks of tensors and training does not do yet, before a step is spent. `layers` is the
/// number of layers that can be quantised.
pub fn check_supported(schedule: &Schedule, layers: usize) -> Result<()> {
    for event in &schedule.events {
        let refused = match event.action {
            Action::SetSparsity { structure, .. } if structure != MaskStructure::Unstructured => {
                "masks other than unstructured ones are not made yet; use mask_type: unstructured"
            }
            Action::StartQuantization(s) if !s.linear_activations || !s.conv_activations => {
                "weights are not quantised without activations yet; leave quantize_linear_activations and \
                 quantize_conv_activations on"
            }
            Action::StartQuantization(s) if schedule.layers(s.layers).len() != layers => {
                "only whole models are quantised yet; leave submodules, ignore and excluded types out"
            }
            Action::StartQuantization(s) if !schedule.layers(s.layers).iter().all(|l| l.quant == INT8) => {
                "the only scheme yet is 8-bit asymmetric input_activations, 8-bit symmetric weights with strategy: \
                 channel, and no output_activations; write it out under scheme:"
            }
            _ => continue,
        };
        let class = schedule.modifier(event);
        return Err(Error::Recipe(format!("{class} at epoch {}: {refused}", event.epoch)));
    }
    Ok(())
}

/// What [`lacuna_nn::quant`] does to every layer.
const INT8: LayerQuant = LayerQuant {
    input: Some(QuantArgs { bits: 8, symmetric: false, per_channel: false }),
    weight: Some(QuantArgs { bits: 8, symmetric: true, per_channel: true }),
    output: None,
};

fn trained_rows(params: &ParamTable) -> Vec<usize> {
    (0..params.len()).filter(|&row| params.role[row] != Role::Buffer).collect()
}

/// The rows of a parameter table that a recipe may name.
pub fn recipe_rows(params: &ParamTable) -> Vec<ParamRow> {
    let row = |i: usize| ParamRow {
        name: params.name[i].clone(),
        shape: params.shape[i].clone(),
        prunable: params.role[i] == Role::Weight,
    };
    trained_rows(params).into_iter().map(row).collect()
}

/// The names of layers that can be quantised: those that own a prunable weight.
pub fn quantizable_layers(params: &ParamTable) -> Vec<String> {
    let weights = (0..params.len()).filter(|&i| params.role[i] == Role::Weight);
    weights.filter_map(|i| params.name[i].strip_suffix(".weight").map(str::to_owned)).collect()
}
