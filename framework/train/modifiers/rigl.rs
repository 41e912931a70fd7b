//! RigL (Evci et al. 2020, arXiv:1911.11134): at each update the smallest open weights of a tensor are masked and as many
//! others opened, those whose gradients are largest. An opened weight begins at zero.

use super::Sample;
use crate::error::Result;
use crate::masks::{Mask, zeros};
use crate::state::State;
use burn::module::Module;
use lacuna_nn::params;
use lacuna_nn::quant::{Norm, Pass, Quant};

/// Replaces `fraction` of the open weights of each row.
pub fn rewire<M: Module>(
    state: &mut State,
    module: M,
    rows: &[usize],
    fraction: f64,
    grads: u32,
    sample: &mut Sample<'_, M>,
) -> Result<M> {
    let weights = state.weights(&module, rows);
    let quant = if state.pass.quant == Quant::Off { Quant::Off } else { Quant::Frozen };
    // Kernels for sparse weights would leave out the gradients that this is about.
    let pass = Pass { quant, norm: Norm::Frozen, sparse: false };
    let mut sums: Vec<Vec<f32>> = weights.iter().map(|w| vec![0.0; w.len()]).collect();
    for _ in 0..grads {
        let gradients = sample(&module, &pass, None)?;
        params::for_each_gradient(&module, &gradients, |row, g| {
            if let Some(i) = rows.iter().position(|&r| r == row) {
                sums[i].iter_mut().zip(g).for_each(|(sum, g)| *sum += g);
            }
        });
    }
    let mut masks = Vec::with_capacity(rows.len());
    for ((&row, w), gradient) in rows.iter().zip(&weights).zip(&sums) {
        if let Some(mask) = &state.mask[row] {
            masks.push((row, Some(rewired(mask, w, gradient, fraction))));
        }
    }
    Ok(state.set_masks(module, masks))
}

/// The mask after dropping by magnitude and growing by gradient. Of equal weights the later are dropped, of equal
/// gradients the earlier grow. A weight that was dropped may be opened again.
fn rewired(mask: &Mask, w: &[f32], gradient: &[f32], fraction: f64) -> Mask {
    let mut new = mask.clone();
    let mut open: Vec<usize> = (0..w.len()).filter(|&i| mask[i] == 1).collect();
    let count = zeros(open.len(), fraction);
    open.sort_by(|&a, &b| w[a].abs().total_cmp(&w[b].abs()).then(b.cmp(&a)));
    open[..count].iter().for_each(|&i| new[i] = 0);
    let mut closed: Vec<usize> = (0..w.len()).filter(|&i| new[i] == 0).collect();
    closed.sort_by(|&a, &b| gradient[b].abs().total_cmp(&gradient[a].abs()).then(a.cmp(&b)));
    closed[..count].iter().for_each(|&i| new[i] = 1);
    new
}
