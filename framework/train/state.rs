//! Everything that training changes besides the weights, as columns over the rows of a [`ParamTable`], and what the
//! optimiser does to it. Modifiers are functions over these columns ([`crate::modifiers`]), not objects.
//!
//! While any mask exists ([`Pass::sparse`]), the sign of a zero says whose it is: a masked weight is +0.0, an open one
//! that happens to be zero is -0.0. Kernels can then tell from a weight alone which of its elements stay zero.
//! Checkpoints keep the signs; files of weights know only +0.0.

use crate::checkpoint::NamedTensor;
use crate::columns::Columns;
use crate::error::{Error, Result};
use crate::masks::Mask;
use crate::modifiers::Custom;
use crate::modifiers::watch::{self, Watching};
use crate::optimizer::{self, Moments, Optimizer, Rows};
use burn::module::Module;
use burn::tensor::Gradients;
use lacuna_nn::flow::Meeting;
use lacuna_nn::params::{self, ParamTable, Role};
use lacuna_nn::quant::{Pass, Quant};
use lacuna_recipe::{ParamRow, Schedule, Watch};

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
    /// Modifiers of a user's own.
    pub custom: Vec<Custom>,
    /// What the layers read and make; see [`crate::quantize::flow`].
    pub flow: Vec<Meeting>,
    /// What modifiers remember.
    pub columns: Columns,
    /// Shapes that the network had before channels were removed.
    pub full_shape: Vec<Vec<usize>>,
    /// Channels, height and width of the images that it is trained on, where it is.
    pub image: Option<[usize; 3]>,
    /// What modifiers do at the current step; see [`State::watch`].
    watches: Vec<Watching>,
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
            full_shape: params.shape.clone(),
            image: None,
            params,
            weight_decay,
            pass: Pass::default(),
            custom: Vec::new(),
            flow: Vec::new(),
            columns: Columns::default(),
            watches: Vec::new(),
            all_open: Vec::new(),
        }
    }

    /// The table as a recipe is compiled for it: rows that are trained.
    pub fn recipe_rows(&self) -> Vec<ParamRow> {
        recipe_rows(&self.params)
    }

    /// Rows of the table by their numbers among the trained ones, which is how a schedule names them.
    pub fn trained_rows(&self, numbers: &[u32]) -> Vec<usize> {
        let table = trained_rows(&self.params);
        numbers.iter().map(|&n| table[n as usize]).collect()
    }

    /// Copies of some rows' values.
    pub fn weights<M: Module>(&self, module: &M, rows: &[usize]) -> Vec<Vec<f32>> {
        let mut weights: Vec<Vec<f32>> = vec![Vec::new(); rows.len()];
        params::for_each(module, |row, w| {
            if let Some(i) = rows.iter().position(|&r| r == row) {
                weights[i] = w.to_vec();
            }
        });
        weights
    }

    /// After tensors of the module have got other shapes.
    pub(crate) fn resized<M: Module>(&mut self, module: &M) {
        self.params = ParamTable::of(module);
    }

    /// Takes over a module that a checkpoint's tensors were put into, and what its shapes were at first, if not the same.
    pub fn thinned_from<M: Module>(&mut self, module: &M, full_shape: Option<Vec<Vec<usize>>>) {
        self.params = ParamTable::of(module);
        if let Some(shapes) = full_shape.filter(|shapes| shapes.len() == self.params.len()) {
            self.full_shape = shapes;
        }
    }

    /// Whether channels have been removed.
    pub fn is_thinned(&self) -> bool {
        self.params.shape != self.full_shape
    }

    /// Turns to a step: what modifiers do at it beside events. Call it after the step's events.
    pub fn watch(&mut self, schedule: &Schedule, step: u64) {
        let watching = |watch: &Watch| Watching {
            modifier: watch.modifier,
            rows: self.trained_rows(schedule.params(watch.params)),
            kind: watch.kind,
        };
        self.watches = schedule.watches_at(step).map(watching).collect();
    }

    /// The pass of a training step: as [`State::pass`], but for kernels that leave out gradients which a modifier needs.
    pub fn training_pass(&self) -> Pass {
        let dense = self.watches.iter().any(Watching::needs_masked_gradients);
        Pass { sparse: self.pass.sparse && !dense, ..self.pass }
    }

    /// Replaces the masks of some rows; masked weights and their moments become exactly zero.
    pub fn set_masks<M: Module>(
        &mut self,
        module: M,
        masks: impl IntoIterator<Item = (usize, Option<Mask>)>,
    ) -> M {
        for (row, mask) in masks {
            self.mask[row] = mask;
            // Weights that go on moving behind their masks keep what moves them.
            if !self.columns.is_hidden(row) {
                self.clear_masked_moments(row);
            }
        }
        self.pass.sparse = self.mask.iter().any(Option::is_some);
        let longest =
            (0..self.params.len()).filter(|&row| self.is_prunable(row)).map(|row| self.params.elements(row));
        self.all_open = vec![1; longest.max().filter(|_| self.pass.sparse).unwrap_or(0)];
        self.sign_zeros(module)
    }

    pub(crate) fn clear_masked_moments(&mut self, row: usize) {
        let Some(mask) = &self.mask[row] else { return };
        for moment in [&mut self.moments.first[row], &mut self.moments.second[row]] {
            moment.iter_mut().zip(mask).filter(|(_, m)| **m == 0).for_each(|(v, _)| *v = 0.0);
        }
    }

    /// Sets the optimiser's momentum of all rows to zero.
    pub(crate) fn reset_momentum(&mut self) {
        self.moments.first.iter_mut().for_each(|row| row.fill(0.0));
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
        let (mut moments, mut columns) =
            (std::mem::take(&mut self.moments), std::mem::take(&mut self.columns));
        let module = params::update_with_gradients(module, gradients, |updates| {
            for watch in &self.watches {
                watch::before_step(watch, updates, &mut columns, &self.mask, lr);
            }
            let hidden: Vec<(usize, Mask)> = self
                .watches
                .iter()
                .flat_map(|watch| watch.rows.iter().map(move |&row| (watch, row)))
                .filter_map(|(watch, row)| Some((row, watch::optimizer_mask(watch, &columns, row)?)))
                .collect();
            let mask = |row: usize| {
                let hidden = hidden.iter().find(|(r, _)| *r == row).map(|(_, mask)| mask.as_slice());
                hidden.or_else(|| self.effective_mask(row))
            };
            let rows = Rows {
                role: &self.params.role,
                trainable: &self.trainable,
                mask: (0..self.params.len()).map(mask).collect(),
            };
            optimizer::step(optimizer, updates, &mut moments, &rows, lr, self.weight_decay);
            for watch in self.watches.iter().rev() {
                watch::after_step(watch, updates, &mut columns, &self.mask);
            }
        });
        self.columns = columns;
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
            // Filters of a transposed convolution are its last axes, those of all others the first.
            let transposed = self.params.layer[row] == "ConvTranspose2d";
            let (filters, per_filter) = (steps[row].len(), w.len() / steps[row].len());
            for (i, (w, &open)) in w.iter_mut().zip(mask).enumerate() {
                let step = steps[row][if transposed { i % filters } else { i / per_filter }];
                if open == 1 && w.abs() <= ROUNDS_TO_ZERO * step {
                    *w = step.copysign(*w);
                }
            }
        })
    }

    // ---- saving --------------------------------------------------------------------------------

    pub fn first_moment_tensors(&self) -> Vec<NamedTensor> {
        self.of_rows(|row| Some(self.moments.first[row].clone()).filter(|v| !v.is_empty()))
    }

    pub fn second_moment_tensors(&self) -> Vec<NamedTensor> {
        self.of_rows(|row| Some(self.moments.second[row].clone()).filter(|v| !v.is_empty()))
    }

    pub fn mask_tensors(&self) -> Vec<NamedTensor> {
        self.of_rows(|row| self.mask[row].as_ref().map(|m| m.iter().map(|&b| b as f32).collect()))
    }

    pub fn column_tensors(&self) -> Vec<NamedTensor> {
        self.columns.tensors(&self.params)
    }

    fn of_rows(&self, data: impl Fn(usize) -> Option<Vec<f32>>) -> Vec<NamedTensor> {
        let rows = (0..self.params.len()).filter_map(|row| Some((row, data(row)?)));
        rows.map(|(row, data)| NamedTensor {
            name: self.params.name[row].clone(),
            dims: self.params.shape[row].clone(),
            data,
        })
        .collect()
    }

    /// Takes over what a checkpoint kept of moments, masks and columns; `module` has its weights already.
    ///
    /// Errors: tensors or step counts of another model.
    pub fn restore<M: Module>(
        &mut self,
        module: M,
        first: &[NamedTensor],
        second: &[NamedTensor],
        steps: Vec<u64>,
        masks: &[NamedTensor],
        columns: &[NamedTensor],
    ) -> Result<M> {
        self.columns = Columns::restore(&self.params, columns)?;
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
