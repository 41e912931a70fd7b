//! What modifiers do at every step between the backward pass and the next forward pass.

use crate::columns::{Columns, HIDDEN, MOVABLE};
use crate::masks::Mask;
use lacuna_nn::params::Updated;
use lacuna_recipe::WatchKind;

/// A watch of the schedule with its rows of the parameter table.
#[derive(Clone, Debug)]
pub struct Watching {
    pub modifier: u32,
    pub rows: Vec<usize>,
    pub kind: WatchKind,
}

impl Watching {
    /// Whether it needs the gradients of masked weights too, which kernels for sparse weights leave out.
    pub fn needs_masked_gradients(&self) -> bool {
        matches!(self.kind, WatchKind::Movement | WatchKind::TopKast { .. })
    }
}

/// Share of a gradient times its weight that counts (Sanh et al. 2020; SparseML's factor).
const MOVEMENT_RATE: f32 = 0.01;

/// Before the optimiser: reads gradients, changes them, brings hidden weights out.
pub fn before_step(
    watch: &Watching,
    updates: &mut [Updated<'_>],
    columns: &mut Columns,
    masks: &[Option<Mask>],
    lr: f64,
) {
    for update in updates.iter_mut().filter(|u| watch.rows.contains(&u.row)) {
        let row = update.row;
        if let (Some(hidden), Some(mask)) = (columns.get(watch.modifier, HIDDEN, row), &masks[row]) {
            for ((w, &hidden), &open) in update.values.iter_mut().zip(hidden).zip(mask) {
                if open == 0 {
                    *w = hidden;
                }
            }
        }
        match watch.kind {
            WatchKind::Movement => {
                let score = columns.at(watch.modifier, "score", row, update.values.len());
                for ((score, &w), &g) in score.iter_mut().zip(&*update.values).zip(&*update.gradient) {
                    *score -= MOVEMENT_RATE * g * w;
                }
            }
            WatchKind::TopKast { decay, forward_sparsity } => {
                let movable = columns.get(watch.modifier, MOVABLE, row);
                let (Some(mask), Some(movable)) = (&masks[row], movable) else { continue };
                let used = 1.0 - decay * lr;
                let unused = if forward_sparsity > 0.0 { 1.0 - decay * lr / forward_sparsity } else { 1.0 };
                for ((w, &open), &movable) in update.values.iter_mut().zip(mask).zip(movable) {
                    if open == 1 {
                        *w *= used as f32;
                    } else if movable != 0.0 {
                        *w *= unused as f32;
                    }
                }
            }
            WatchKind::Powerpropagation { alpha } => {
                // dL/dtheta = dL/dw * alpha * |theta|^(alpha - 1)
                for (w, g) in update.values.iter_mut().zip(update.gradient.iter_mut()) {
                    let theta = w.abs().powf(1.0 / alpha as f32);
                    *w = theta.copysign(*w);
                    *g *= alpha as f32 * theta.powf(alpha as f32 - 1.0);
                }
            }
        }
    }
}

/// After the optimiser: hides what is masked, with zeros signed as [`State`](crate::state::State) says.
pub fn after_step(
    watch: &Watching,
    updates: &mut [Updated<'_>],
    columns: &mut Columns,
    masks: &[Option<Mask>],
) {
    for update in updates.iter_mut().filter(|u| watch.rows.contains(&u.row)) {
        let (row, len) = (update.row, update.values.len());
        if let WatchKind::Powerpropagation { alpha } = watch.kind {
            for (i, w) in update.values.iter_mut().enumerate() {
                let masked = masks[row].as_ref().is_some_and(|mask| mask[i] == 0);
                *w *= w.abs().powf(alpha as f32 - 1.0);
                // A small theta may have become a zero that is not a mask's.
                if *w == 0.0 && !masked {
                    *w = -0.0;
                }
            }
        }
        if columns.get(watch.modifier, HIDDEN, row).is_none() {
            continue;
        }
        let Some(mask) = &masks[row] else { continue };
        let movable = columns.get(watch.modifier, MOVABLE, row).map(<[f32]>::to_vec);
        let hidden = columns.at(watch.modifier, HIDDEN, row, len);
        for (i, (w, &open)) in update.values.iter_mut().zip(mask).enumerate() {
            if open == 1 {
                if *w == 0.0 {
                    *w = -0.0;
                }
            } else {
                if movable.as_ref().is_none_or(|m| m[i] != 0.0) {
                    hidden[i] = *w;
                }
                *w = 0.0;
            }
        }
    }
}

/// The mask under which the optimiser changes a row with hidden weights; `None` where it has none.
pub fn optimizer_mask(watch: &Watching, columns: &Columns, row: usize) -> Option<Mask> {
    let hidden = columns.get(watch.modifier, HIDDEN, row)?;
    Some(match columns.get(watch.modifier, MOVABLE, row) {
        Some(movable) => movable.iter().map(|&m| u8::from(m != 0.0)).collect(),
        None => vec![1; hidden.len()],
    })
}
