//! Optimisers: what a step does to weights, given gradients. Their state is columns of [`State`](crate::state::State),
//! the arithmetic is [`lacuna_kernels::optimizer`]'s: one pass over a tensor, in place.
//!
//! Weight decay acts on the weights of convolutions and linear layers only ([`Role::Weight`]), under every optimiser:
//! decaying biases and norms does not regularise (Goyal et al., 2017, section 5.3).

use lacuna_kernels::optimizer as kernels;
use lacuna_nn::params::{Role, Updated};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Which optimiser, with the numbers of its own; learning rate and weight decay are the recipe's to change.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "optimizer", rename_all = "lowercase")]
pub enum Optimizer {
    /// `v = momentum * v + g + decay * w; w -= lr * v`; with Nesterov `w -= lr * (g + decay * w + momentum * v)`.
    Sgd { momentum: f64, nesterov: bool },
    /// Kingma and Ba 2015 (arXiv:1412.6980); decay is added to the gradient.
    Adam { beta1: f64, beta2: f64, eps: f64 },
    /// Loshchilov and Hutter 2019 (arXiv:1711.05101); decay shrinks the weight itself.
    AdamW { beta1: f64, beta2: f64, eps: f64 },
}

impl Optimizer {
    pub const SGD: Optimizer = Optimizer::Sgd { momentum: 0.9, nesterov: false };
    /// PyTorch's defaults.
    pub const ADAM: Optimizer = Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
    /// PyTorch's defaults.
    pub const ADAMW: Optimizer = Optimizer::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 };

    /// A learning rate to start with: PyTorch's, or 0.1 for SGD, where PyTorch has none.
    pub fn default_lr(&self) -> f64 {
        if matches!(self, Optimizer::Sgd { .. }) { 0.1 } else { 1e-3 }
    }

    /// PyTorch's.
    pub fn default_weight_decay(&self) -> f64 {
        if matches!(self, Optimizer::AdamW { .. }) { 1e-2 } else { 0.0 }
    }
}

/// What an optimiser remembers, as columns over the rows of a parameter table; a row is empty until its first step.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    /// SGD's velocity, or the moving average of gradients.
    pub first: Vec<Vec<f32>>,
    /// The moving average of squared gradients; always empty with SGD.
    pub second: Vec<Vec<f32>>,
    /// Steps that changed the row: frozen rows count none.
    pub steps: Vec<u64>,
}

impl Moments {
    pub fn new(rows: usize) -> Moments {
        Moments { first: vec![Vec::new(); rows], second: vec![Vec::new(); rows], steps: vec![0; rows] }
    }
}

/// What a step needs to know of the rows beside their gradients.
pub struct Rows<'a> {
    pub role: &'a [Role],
    pub trainable: &'a [bool],
    /// Bytes of 0 (masked) or 1 (open) for each row; `None` where all are open and -0.0 needs no care.
    pub mask: Vec<Option<&'a [u8]>>,
}

/// One step of every trainable row that has a gradient, all rows in parallel.
///
/// # Panics
/// If a row's gradient, mask or moments differ from it in length.
pub fn step(
    optimizer: &Optimizer,
    updates: &mut [Updated<'_>],
    moments: &mut Moments,
    rows: &Rows<'_>,
    lr: f64,
    weight_decay: f64,
) {
    let columns = moments.first.iter_mut().zip(&mut moments.second).zip(&mut moments.steps);
    let mut of_row = columns.enumerate();
    let jobs = updates.iter_mut().filter_map(|update| {
        // Updates stand in table order, so one walk over the columns meets them all.
        let (_, ((first, second), steps)) = of_row.by_ref().find(|(row, _)| *row == update.row)?;
        rows.trainable[update.row].then_some(Job { update, first, second, steps })
    });
    let mut jobs: Vec<Job<'_, '_>> = jobs.collect();
    jobs.par_iter_mut().for_each(|job| {
        let row = job.update.row;
        let decay = if rows.role[row] == Role::Weight { weight_decay } else { 0.0 };
        job.run(optimizer, rows.mask[row], lr, decay);
    });
}

struct Job<'a, 'u> {
    update: &'a mut Updated<'u>,
    first: &'a mut Vec<f32>,
    second: &'a mut Vec<f32>,
    steps: &'a mut u64,
}

impl Job<'_, '_> {
    fn run(&mut self, optimizer: &Optimizer, mask: Option<&[u8]>, lr: f64, decay: f64) {
        let (w, g) = (&mut *self.update.values, &*self.update.gradient);
        *self.steps += 1;
        self.first.resize(w.len(), 0.0);
        match *optimizer {
            Optimizer::Sgd { momentum, nesterov } => {
                kernels::sgd(w, self.first, g, mask, &kernels::Sgd { lr, momentum, decay, nesterov });
            }
            Optimizer::Adam { beta1, beta2, eps } => {
                self.second.resize(w.len(), 0.0);
                let rule = kernels::AdamW { lr, beta1, beta2, eps, decay: 0.0 };
                if decay == 0.0 {
                    kernels::adamw(w, self.first, self.second, g, mask, *self.steps, &rule);
                    return;
                }
                let decay = decay as f32;
                let g: Vec<f32> = g.par_iter().zip(&*w).map(|(&g, &w)| g + decay * w).collect();
                kernels::adamw(w, self.first, self.second, &g, mask, *self.steps, &rule);
            }
            Optimizer::AdamW { beta1, beta2, eps } => {
                self.second.resize(w.len(), 0.0);
                let rule = kernels::AdamW { lr, beta1, beta2, eps, decay };
                kernels::adamw(w, self.first, self.second, g, mask, *self.steps, &rule);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three steps of two weights whose gradient follows from them; `steps_are_pytorchs` has what PyTorch 2 makes of it.
    fn run(optimizer: Optimizer) -> Vec<f32> {
        let mut w = vec![0.5f32, -1.0];
        let mut moments = Moments::new(1);
        for _ in 0..3 {
            let mut g = [w[0] * 0.1 + 0.01, w[1] * 0.1 + 0.02];
            let mut updates = [Updated { row: 0, values: &mut w, gradient: &mut g }];
            let rows = Rows { role: &[Role::Weight], trainable: &[true], mask: vec![None] };
            step(&optimizer, &mut updates, &mut moments, &rows, 0.1, 0.05);
        }
        assert_eq!(moments.steps, [3]);
        w
    }

    #[test]
    fn steps_are_pytorchs() {
        let cases = [
            (Optimizer::SGD, [0.452_925_1_f32, -0.928_003_1]),
            (Optimizer::Sgd { momentum: 0.9, nesterov: true }, [0.433_343_65, -0.898_055]),
            (Optimizer::ADAM, [0.203_905_9, -0.701_963_2]),
            (Optimizer::ADAMW, [0.197_713_17, -0.688_959_1]),
        ];
        for (optimizer, want) in cases {
            let got = run(optimizer);
            let close = got.iter().zip(want).all(|(got, want)| (got - want).abs() <= 2e-6);
            assert!(close, "{optimizer:?}: {got:?}, PyTorch {want:?}");
        }
    }

    #[test]
    fn frozen_rows_and_rows_without_gradient_stay() {
        let (mut a, mut b) = (vec![1.0f32; 3], vec![1.0f32; 3]);
        let (mut ga, mut gb) = ([1.0f32; 3], [1.0f32; 3]);
        let mut moments = Moments::new(4);
        let mut updates = [
            Updated { row: 1, values: &mut a, gradient: &mut ga },
            Updated { row: 3, values: &mut b, gradient: &mut gb },
        ];
        let rows = Rows {
            role: &[Role::Weight; 4],
            trainable: &[true, false, true, true],
            mask: vec![None, None, None, Some(&[1, 0, 1])],
        };
        step(&Optimizer::ADAMW, &mut updates, &mut moments, &rows, 0.1, 0.0);
        assert_eq!(a, [1.0; 3]);
        assert_eq!(moments.steps, [0, 0, 0, 1]);
        assert!(moments.first[1].is_empty() && moments.second[3].len() == 3);
        assert!(b[1].to_bits() == 0 && b[0] < 1.0 && b[0] == b[2]);
    }
}
