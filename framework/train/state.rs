//! Everything that training changes besides the weights, as columns over the rows of a [`ParamTable`], and what the
//! events of a recipe do to it. Modifiers are functions over these columns, not objects.
//!
//! While any mask exists ([`Pass::sparse`]), the sign of a zero says whose it is: a masked weight is +0.0, an open one
//! that happens to be zero is -0.0. Kernels can then tell from a weight alone which of its elements stay zero.
//! Checkpoints keep the signs; files of weights know only +0.0.

use crate::checkpoint::NamedTensor;
use crate::error::{Error, Result};
use crate::masks::{self, Mask};
use crate::optimizer::{self, Moments, Optimizer, Rows};
use burn::module::Module;
use burn::tensor::Gradients;
use lacuna_nn::params::{self, ParamTable, Role};
use lacuna_nn::quant::{Norm, Pass, Quant};
use lacuna_recipe::{Action, LayerQuant, MaskStructure, ParamRow, QuantArgs, Schedule};

/// Share of a step below which a weight counts as rounding to zero: a half, and some for a grid that the last update
/// has moved a little.
const ROUNDS_TO_ZERO: f32 = 0.51;

/// Row `i` of `mask`, `moments` and `trainable` belongs to row `i` of `params`.
pub struct State {
    pub params: ParamTable,
    /// Change it with [`State::set_masks`], which keeps weights and `pass` in step with it.
    pub mask: Vec<Option<Mask>>,
    pub moments: Moments,
    pub trainable: Vec<bool>,
    pub weight_decay: f64,
    pub pass: Pass,
    /// A mask with nothing masked, as long as the longest prunable row; empty while there are no masks.
    all_open: Mask,
}

impl State {
    pub fn new<M: Module>(module: &M, weight_decay: f64) -> State {
        let params = ParamTable::of(module);
        let rows = params.len();
        State {
            mask: vec![None; rows],
            moments: Moments::new(rows),
            trainable: params.role.iter().map(|&role| role != Role::Buffer).collect(),
            params,
            weight_decay,
            pass: Pass::default(),
            all_open: Vec::new(),
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
                let mut masks = Vec::with_capacity(rows.len());
                params::for_each(&module, |row, w| {
                    if rows.contains(&row) {
                        masks.push((row, Some(w.iter().map(|&v| (v != 0.0) as u8).collect())));
                    }
                });
                Ok((self.set_masks(module, masks), false))
            }
            Action::ReleaseMasks { params } => {
                let released = rows(params).into_iter().map(|row| (row, None));
                Ok((self.set_masks(module, released), false))
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
        let masks = rows.iter().copied().zip(masks.into_iter().map(Some));
        Ok(self.set_masks(module, masks))
    }

    /// Replaces the masks of some rows; masked weights and their moments become exactly zero.
    pub fn set_masks<M: Module>(
        &mut self,
        module: M,
        masks: impl IntoIterator<Item = (usize, Option<Mask>)>,
    ) -> M {
        for (row, mask) in masks {
            for moment in [&mut self.moments.first[row], &mut self.moments.second[row]] {
                moment
                    .iter_mut()
                    .zip(mask.iter().flatten())
                    .filter(|(_, m)| **m == 0)
                    .for_each(|(v, _)| *v = 0.0);
            }
            self.mask[row] = mask;
        }
        self.pass.sparse = self.mask.iter().any(Option::is_some);
        let longest =
            (0..self.params.len()).filter(|&row| self.is_prunable(row)).map(|row| self.params.elements(row));
        self.all_open = vec![1; longest.max().filter(|_| self.pass.sparse).unwrap_or(0)];
        self.sign_zeros(module)
    }

    fn is_prunable(&self, row: usize) -> bool {
        self.params.role[row] == Role::Weight
    }

    /// What kernels take for the mask of a row: prunable rows without a mask are all open while others have one.
    fn effective_mask(&self, row: usize) -> Option<&[u8]> {
        match &self.mask[row] {
            Some(mask) => Some(mask),
            None if self.pass.sparse && self.is_prunable(row) => {
                Some(&self.all_open[..self.params.elements(row)])
            }
            None => None,
        }
    }

    /// Sets every masked weight to +0.0, and where that has a meaning open zeros to -0.0.
    fn sign_zeros<M: Module>(&self, module: M) -> M {
        if !self.pass.sparse {
            return module;
        }
        params::update_each(module, |row, w| {
            for (w, &open) in w.iter_mut().zip(self.effective_mask(row).unwrap_or_default()) {
                if open == 0 {
                    *w = 0.0;
                } else if *w == 0.0 {
                    *w = -0.0;
                }
            }
        })
    }

    /// One step of the optimiser; see [`optimizer::step`]. Masked weights are exactly +0.0 before and after.
    pub fn step<M: Module>(&mut self, module: M, gradients: Gradients, optimizer: &Optimizer, lr: f64) -> M {
        let mut moments = std::mem::take(&mut self.moments);
        let rows = Rows {
            role: &self.params.role,
            trainable: &self.trainable,
            mask: (0..self.params.len()).map(|row| self.effective_mask(row)).collect(),
        };
        let module = params::update_with_gradients(module, gradients, |updates| {
            optimizer::step(optimizer, updates, &mut moments, &rows, lr, self.weight_decay)
        });
        self.moments = moments;
        module
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

    pub fn first_moment_tensors(&self) -> Vec<NamedTensor> {
        self.columns(|row| Some(self.moments.first[row].clone()).filter(|v| !v.is_empty()))
    }

    pub fn second_moment_tensors(&self) -> Vec<NamedTensor> {
        self.columns(|row| Some(self.moments.second[row].clone()).filter(|v| !v.is_empty()))
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

    /// Takes over what a checkpoint kept of moments and masks; `module` has its weights already.
    ///
    /// Errors: tensors or step counts of another model.
    pub fn restore<M: Module>(
        &mut self,
        module: M,
        first: &[NamedTensor],
        second: &[NamedTensor],
        steps: Vec<u64>,
        masks: &[NamedTensor],
    ) -> Result<M> {
        if steps.len() != self.params.len() {
            return Err(Error::Weights("the checkpoint is of a model with other parameters".into()));
        }
        self.moments.steps = steps;
        for t in first {
            let row = self.find(t)?;
            self.moments.first[row] = t.data.clone();
        }
        for t in second {
            let row = self.find(t)?;
            self.moments.second[row] = t.data.clone();
        }
        let mut found = Vec::with_capacity(masks.len());
        for t in masks {
            found.push((self.find(t)?, Some(t.data.iter().map(|&v| (v != 0.0) as u8).collect())));
        }
        Ok(self.set_masks(module, found))
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
