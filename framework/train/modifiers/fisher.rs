//! Second-order pruning in the framework of the Optimal Brain Surgeon: what the loss grows by when a weight becomes zero
//! and the others make up for it, by the empirical Fisher matrix F = damp · I + 1/m · sum of g gᵀ over m gradients,
//! of which only blocks along the diagonal are looked at.
//!
//! - oBERT (Kurtic et al. 2022, arXiv:2203.07259) holds the inverse of each block and adds one gradient after another.
//! - M-FAC (Frantar et al. 2021, arXiv:2107.03356) holds the gradients, and never a matrix: blocks may be large.
//!
//! Both are the Woodbury identity, in f64: with a damp of 1e-7 the inverse begins at 1e7, and f32 would lose what is left.

use super::Sample;
use super::prune::{Target, masks_of};
use crate::error::{Error, Result};
use crate::masks::Mask;
use crate::state::State;
use burn::module::Module;
use lacuna_nn::params;
use lacuna_nn::quant::{Norm, Pass, Quant};
use lacuna_recipe::{Fisher, MaskStructure};
use rayon::prelude::*;

/// Most memory for estimates, all tensors together.
pub const FISHER_BYTES_MAX: usize = 16 << 30;

/// Added to what is divided by, as SparseML does: f32's epsilon.
const EPS: f64 = f32::EPSILON as f64;

/// Weights in a block of four along the input channels.
const GROUP: usize = 4;

/// Marks a place that no weight takes, where blocks are filled up.
const NONE: u32 = u32::MAX;

/// New masks for `rows` at their sparsities, and the surviving weights moved so that the loss grows least.
pub fn prune<M: Module>(
    state: &mut State,
    mut module: M,
    rows: &[usize],
    sparsity: &[f64],
    target: &Target,
    fisher: &Fisher,
    sample: &mut Sample<'_, M>,
) -> Result<M> {
    let masked = |state: &State, row: usize| {
        let zeros = state.mask[row].iter().flatten().filter(|m| **m == 0).count();
        (zeros, state.params.elements(row).max(1))
    };
    let before: Vec<(usize, usize)> = rows.iter().map(|&row| masked(state, row)).collect();
    let before: Vec<f64> = match target.scope {
        lacuna_recipe::Scope::Global => {
            let (zeros, all) = before.iter().fold((0, 0), |(z, n), b| (z + b.0, n + b.1));
            vec![zeros as f64 / all as f64; rows.len()]
        }
        _ => before.iter().map(|&(zeros, n)| zeros as f64 / n as f64).collect(),
    };
    for round in 1..=fisher.recomputations {
        let part = f64::from(round) / f64::from(fisher.recomputations);
        let now: Vec<f64> = sparsity.iter().zip(&before).map(|(s, b)| b + part * (s - b)).collect();
        let estimates = estimate(state, &module, rows, target.structure, fisher, sample)?;
        module = prune_by(state, module, rows, &now, target, &estimates)?;
    }
    Ok(module)
}

/// One round: scores, masks, and the update of what survives.
fn prune_by<M: Module>(
    state: &mut State,
    module: M,
    rows: &[usize],
    sparsity: &[f64],
    target: &Target,
    estimates: &[Estimate],
) -> Result<M> {
    let mut weights = state.weights(&module, rows);
    let old: Vec<Mask> = rows
        .iter()
        .map(|&row| state.mask[row].clone().unwrap_or_else(|| vec![1; state.params.elements(row)]))
        .collect();
    let mut scores = Vec::with_capacity(rows.len());
    for ((estimate, w), old) in estimates.iter().zip(&weights).zip(&old) {
        let mut score = estimate.scores(w);
        // What is masked stays masked.
        score.iter_mut().zip(old).filter(|(_, open)| **open == 0).for_each(|(s, _)| *s = f32::NEG_INFINITY);
        scores.push(score);
    }
    let masks = masks_of(state, rows, scores, sparsity, target)?;
    for (((estimate, w), old), new) in estimates.iter().zip(&mut weights).zip(&old).zip(&masks) {
        let newly = |i: usize| old[i] == 1 && new[i] == 0;
        let update = estimate.compensation(w, newly);
        for (i, w) in w.iter_mut().enumerate() {
            *w = if new[i] == 0 { 0.0 } else { (f64::from(*w) - update[i]) as f32 };
        }
    }
    let module = params::update_each(module, |row, values| {
        if let Some(i) = rows.iter().position(|&r| r == row) {
            values.copy_from_slice(&weights[i]);
        }
    });
    Ok(state.set_masks(module, rows.iter().copied().zip(masks.into_iter().map(Some))))
}

/// Estimates for each row from fresh gradients, of the network as it would be evaluated: the running statistics of batch
/// norm, and nothing that the pass would remember.
fn estimate<M: Module>(
    state: &State,
    module: &M,
    rows: &[usize],
    structure: MaskStructure,
    fisher: &Fisher,
    sample: &mut Sample<'_, M>,
) -> Result<Vec<Estimate>> {
    let quant = if state.pass.quant == Quant::Off { Quant::Off } else { Quant::Frozen };
    let pass = Pass { quant, norm: Norm::Frozen, ..state.pass };
    let elements = rows.iter().map(|&row| state.params.elements(row));
    let each = if fisher.matrix_free { 4 * fisher.grads as usize } else { 8 * fisher.block as usize };
    let bytes = elements.map(|n| n.saturating_mul(each)).fold(0usize, usize::saturating_add);
    if bytes > FISHER_BYTES_MAX {
        return Err(Error::Recipe(format!(
            "the estimates of the Fisher matrix would take {} GiB, more than {}; lower fisher_block_size or num_grads",
            bytes >> 30,
            FISHER_BYTES_MAX >> 30
        )));
    }
    let new = |&row: &usize| {
        let shape = &state.params.shape[row];
        Estimate::new(shape, structure, fisher)
    };
    let mut estimates: Vec<Estimate> = rows.iter().map(new).collect();
    for _ in 0..fisher.grads {
        let gradients = sample(module, &pass, fisher.batch.map(|n| n as usize))?;
        params::for_each_gradient(module, &gradients, |row, g| {
            let Some(i) = rows.iter().position(|&r| r == row) else { return };
            match &state.mask[row] {
                // A masked weight has no part in the matrix.
                Some(mask) => {
                    let open: Vec<f32> =
                        g.iter().zip(mask).map(|(&g, &open)| if open == 1 { g } else { 0.0 }).collect();
                    estimates[i].add(&open);
                }
                None => estimates[i].add(g),
            }
        });
    }
    estimates.iter_mut().for_each(Estimate::finish);
    Ok(estimates)
}

/// The inverse of one tensor's Fisher matrix, block by block.
pub struct Estimate {
    damp: f64,
    /// m.
    grads: f64,
    /// Weights in a block.
    block: usize,
    /// Whether blocks of four weights are scored together.
    grouped: bool,
    /// Place of each weight in the tensor, block after block, each filled up with [`NONE`].
    places: Vec<u32>,
    elements: usize,
    form: Form,
}

enum Form {
    /// [blocks, block, block]
    Inverse(Vec<f64>),
    /// Of each gradient so far: the tensor's elements; and the diagonal of the inverse, by place in `places`.
    Gradients { kept: Vec<Vec<f32>>, diagonal: Vec<f64> },
}

impl Estimate {
    /// Of no gradients yet: 1 / damp on the diagonal.
    pub fn new(shape: &[usize], structure: MaskStructure, fisher: &Fisher) -> Estimate {
        let elements: usize = shape.iter().product();
        let grouped = structure == MaskStructure::Block4 && !fisher.matrix_free;
        let mut places = if grouped { grouped_places(shape) } else { (0..elements as u32).collect() };
        // A block larger than the tensor is the tensor.
        let block = (fisher.block as usize).clamp(1, places.len().max(1));
        places.resize(places.len().next_multiple_of(block), NONE);
        let form = if fisher.matrix_free {
            Form::Gradients { kept: Vec::with_capacity(fisher.grads as usize), diagonal: Vec::new() }
        } else {
            let mut inverse = vec![0.0; places.len() * block];
            for matrix in inverse.chunks_exact_mut(block * block) {
                matrix.iter_mut().step_by(block + 1).for_each(|v| *v = 1.0 / fisher.damp);
            }
            Form::Inverse(inverse)
        };
        Estimate { damp: fisher.damp, grads: f64::from(fisher.grads), block, grouped, places, elements, form }
    }

    /// Adds one of the m gradients.
    pub fn add(&mut self, g: &[f32]) {
        let (block, m) = (self.block, self.grads);
        let inverse = match &mut self.form {
            Form::Gradients { kept, .. } => return kept.push(g.to_vec()),
            Form::Inverse(inverse) => inverse,
        };
        let blocks = inverse.par_chunks_exact_mut(block * block).zip(self.places.par_chunks_exact(block));
        let buffers = || (vec![0.0f64; block], vec![0.0f64; block]);
        blocks.with_min_len(16).for_each_init(buffers, |(g_block, product), (inverse, places)| {
            if gather(g, places, g_block) {
                // Sherman-Morrison, with 1/m in front of the outer product.
                multiply(inverse, g_block, product);
                let alpha = m + dot(g_block, product);
                for (row, &p) in inverse.chunks_exact_mut(block).zip(&*product) {
                    let factor = p / alpha;
                    row.iter_mut().zip(&*product).for_each(|(v, &q)| *v -= factor * q);
                }
            }
        });
    }

    /// After the last gradient.
    pub fn finish(&mut self) {
        let Form::Gradients { kept, .. } = &self.form else { return };
        let (damp, block) = (self.damp, self.block);
        let part = |places: &[u32]| {
            let g = gathered(kept, places);
            let l = factor(&g, places.len(), self.grads, damp);
            let m = kept.len();
            let mut column = vec![0.0; m];
            let diagonal = (0..places.len()).map(|i| {
                (0..m).for_each(|k| column[k] = g[k * places.len() + i]);
                solve_lower(&l, &mut column);
                1.0 / damp - dot(&column, &column) / (damp * damp)
            });
            diagonal.collect::<Vec<f64>>()
        };
        let found: Vec<f64> = self.places.par_chunks_exact(block).flat_map_iter(part).collect();
        if let Form::Gradients { diagonal, .. } = &mut self.form {
            *diagonal = found;
        }
    }

    /// The diagonal of the inverse, by place in the tensor.
    pub fn diagonal(&self) -> Vec<f64> {
        let mut out = vec![0.0; self.elements];
        for (i, &place) in self.places.iter().enumerate().filter(|(_, place)| **place != NONE) {
            let (b, k) = (i / self.block, i % self.block);
            out[place as usize] = match &self.form {
                Form::Inverse(inverse) => inverse[(b * self.block + k) * self.block + k],
                Form::Gradients { diagonal, .. } => diagonal[i],
            };
        }
        out
    }

    /// The inverse times `v`.
    pub fn times(&self, v: &[f64]) -> Vec<f64> {
        let (block, damp) = (self.block, self.damp);
        let part = |(b, places): (usize, &[u32])| {
            let v: Vec<f64> = places.iter().map(|&p| if p == NONE { 0.0 } else { v[p as usize] }).collect();
            let mut out = vec![0.0; block];
            if v.iter().all(|&v| v == 0.0) {
                return out;
            }
            match &self.form {
                Form::Inverse(inverse) => {
                    multiply(&inverse[b * block * block..][..block * block], &v, &mut out)
                }
                Form::Gradients { kept, .. } => {
                    let g = gathered(kept, places);
                    let l = factor(&g, block, self.grads, damp);
                    let mut inner: Vec<f64> = g.chunks_exact(block).map(|g| dot(g, &v)).collect();
                    solve_lower(&l, &mut inner);
                    solve_upper(&l, &mut inner);
                    out.iter_mut().zip(&v).for_each(|(o, v)| *o = v / damp);
                    for (g, c) in g.chunks_exact(block).zip(&inner) {
                        let c = c / (damp * damp);
                        out.iter_mut().zip(g).for_each(|(o, g)| *o -= c * g);
                    }
                }
            }
            out
        };
        let found: Vec<f64> = self.places.par_chunks_exact(block).enumerate().flat_map_iter(part).collect();
        let mut out = vec![0.0; self.elements];
        for (&place, value) in self.places.iter().zip(found).filter(|(place, _)| **place != NONE) {
            out[place as usize] = value;
        }
        out
    }

    /// What the loss grows by without each weight: w² / 2 F⁻¹ᵢᵢ, or wᵀ (F⁻¹ of the four)⁻¹ w / 2 of its group of four.
    pub fn scores(&self, w: &[f32]) -> Vec<f32> {
        if self.grouped {
            let mut out = vec![0.0f32; w.len()];
            self.each_group(w, |places, w, solved| {
                let score = 0.5 * dot(w, solved);
                places.iter().for_each(|&p| out[p as usize] = score as f32);
            });
            return out;
        }
        let score = |(&w, d): (&f32, f64)| (f64::from(w) * f64::from(w) / (2.0 * d + EPS)) as f32;
        w.iter().zip(self.diagonal()).map(score).collect()
    }

    /// What to take from the weights `w` when those that are `newly` masked become zero.
    pub fn compensation(&self, w: &[f32], newly: impl Fn(usize) -> bool) -> Vec<f64> {
        let mut v = vec![0.0; w.len()];
        if self.grouped {
            self.each_group(w, |places, _, solved| {
                for (&p, &s) in places.iter().zip(solved).filter(|(p, _)| newly(**p as usize)) {
                    v[p as usize] = s;
                }
            });
        } else {
            let diagonal = self.diagonal();
            for i in (0..w.len()).filter(|&i| newly(i)) {
                v[i] = f64::from(w[i]) / (diagonal[i] + EPS);
            }
        }
        self.times(&v)
    }

    /// For each group of four: its places, its weights w, and (its part of the inverse)⁻¹ w.
    fn each_group(&self, w: &[f32], mut f: impl FnMut(&[u32], &[f64], &[f64])) {
        let Form::Inverse(inverse) = &self.form else { return };
        for (i, places) in self.places.chunks(GROUP).enumerate() {
            let places = &places[..places.iter().take_while(|p| **p != NONE).count()];
            let (b, first) = (i * GROUP / self.block, i * GROUP % self.block);
            let n = places.len();
            let at = |r: usize, c: usize| inverse[(b * self.block + first + r) * self.block + first + c];
            let part: Vec<f64> = (0..n * n).map(|k| at(k / n, k % n)).collect();
            let w: Vec<f64> = places.iter().map(|&p| f64::from(w[p as usize])).collect();
            let l = cholesky(part, n);
            let mut solved = w.clone();
            solve_lower(&l, &mut solved);
            solve_upper(&l, &mut solved);
            f(places, &w, &solved);
        }
    }
}

/// Places in the order of a tensor whose inputs come last, each run of four inputs filled up to four.
fn grouped_places(shape: &[usize]) -> Vec<u32> {
    let mut places = Vec::new();
    crate::masks::structure::each_run_of(shape, GROUP, |run| {
        places.extend(run.iter().map(|&i| i as u32));
        places.resize(places.len().next_multiple_of(GROUP), NONE);
    });
    places
}

/// Copies what stands at `places` of `g`; whether any of it is not zero.
fn gather(g: &[f32], places: &[u32], out: &mut [f64]) -> bool {
    let mut any = false;
    for (out, &place) in out.iter_mut().zip(places) {
        *out = if place == NONE { 0.0 } else { f64::from(g[place as usize]) };
        any |= *out != 0.0;
    }
    any
}

/// [gradients, places]
fn gathered(kept: &[Vec<f32>], places: &[u32]) -> Vec<f64> {
    let mut out = vec![0.0; kept.len() * places.len()];
    for (g, out) in kept.iter().zip(out.chunks_exact_mut(places.len())) {
        gather(g, places, out);
    }
    out
}

/// The Cholesky factor of m I + G Gᵀ / damp, of G [gradients, n].
fn factor(g: &[f64], n: usize, m: f64, damp: f64) -> Vec<f64> {
    let rows: Vec<&[f64]> = g.chunks_exact(n).collect();
    let count = rows.len();
    let mut k = vec![0.0; count * count];
    for i in 0..count {
        for j in 0..=i {
            let v = dot(rows[i], rows[j]) / damp + if i == j { m } else { 0.0 };
            (k[i * count + j], k[j * count + i]) = (v, v);
        }
    }
    cholesky(k, count)
}

/// Lower factor of a positive definite matrix [n, n]; a pivot that rounding made too small counts as the smallest number.
fn cholesky(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    for j in 0..n {
        let (done, rest) = a.split_at_mut((j + 1) * n);
        let row = &mut done[j * n..];
        let pivot = (row[j] - dot(&row[..j], &row[..j])).max(f64::MIN_POSITIVE).sqrt();
        row[j] = pivot;
        for lower in rest.chunks_exact_mut(n) {
            lower[j] = (lower[j] - dot(&lower[..j], &row[..j])) / pivot;
        }
    }
    a
}

fn solve_lower(l: &[f64], x: &mut [f64]) {
    let n = x.len();
    for i in 0..n {
        x[i] = (x[i] - dot(&l[i * n..i * n + i], &x[..i])) / l[i * n + i];
    }
}

fn solve_upper(l: &[f64], x: &mut [f64]) {
    let n = x.len();
    for i in (0..n).rev() {
        x[i] /= l[i * n + i];
        let xi = x[i];
        for (j, x) in x[..i].iter_mut().enumerate() {
            *x -= l[i * n + j] * xi;
        }
    }
}

fn multiply(matrix: &[f64], v: &[f64], out: &mut [f64]) {
    out.iter_mut().zip(matrix.chunks_exact(v.len())).for_each(|(out, row)| *out = dot(row, v));
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fisher(block: u32, grads: u32, matrix_free: bool) -> Fisher {
        Fisher { grads, batch: None, damp: 1e-3, block, recomputations: 1, matrix_free }
    }

    /// The inverse of damp I + 1/m sum g gᵀ within blocks, by Gauss and Jordan.
    fn inverse(gradients: &[Vec<f32>], block: usize, damp: f64) -> Vec<f64> {
        let n = gradients[0].len();
        let mut a = vec![0.0f64; n * n];
        for i in 0..n {
            for j in 0..n {
                let same = i / block == j / block;
                let sum: f64 = gradients.iter().map(|g| f64::from(g[i]) * f64::from(g[j])).sum();
                a[i * n + j] = if same { sum / gradients.len() as f64 } else { 0.0 };
            }
            a[i * n + i] += damp;
        }
        let mut out: Vec<f64> = (0..n * n).map(|k| f64::from(u8::from(k / n == k % n))).collect();
        for p in 0..n {
            let pivot = a[p * n + p];
            (0..n).for_each(|c| {
                a[p * n + c] /= pivot;
                out[p * n + c] /= pivot;
            });
            for r in (0..n).filter(|&r| r != p) {
                let factor = a[r * n + p];
                (0..n).for_each(|c| {
                    a[r * n + c] -= factor * a[p * n + c];
                    out[r * n + c] -= factor * out[p * n + c];
                });
            }
        }
        out
    }

    #[test]
    fn both_forms_are_the_inverse_of_the_blocks() {
        let (n, m, block) = (14, 5, 4);
        let value = |k: usize, i: usize| ((k * 31 + i * 17) % 23) as f32 / 11.0 - 1.0;
        let gradients: Vec<Vec<f32>> = (0..m).map(|k| (0..n).map(|i| value(k, i)).collect()).collect();
        let expected = inverse(&gradients, block, 1e-3);
        for matrix_free in [false, true] {
            let rule = fisher(block as u32, m as u32, matrix_free);
            let mut estimate = Estimate::new(&[n], MaskStructure::Unstructured, &rule);
            gradients.iter().for_each(|g| estimate.add(g));
            estimate.finish();
            for (i, d) in estimate.diagonal().iter().enumerate() {
                assert!((d / expected[i * n + i] - 1.0).abs() < 1e-9, "{matrix_free} {i}: {d}");
            }
            for column in 0..n {
                let unit: Vec<f64> = (0..n).map(|i| f64::from(u8::from(i == column))).collect();
                for (i, found) in estimate.times(&unit).iter().enumerate() {
                    let (want, size) = (expected[i * n + column], expected[i * n + i].abs());
                    assert!((found - want).abs() < 1e-9 * size, "{matrix_free} {i} {column}: {found} {want}");
                }
            }
        }
    }
}
