//! Pruning that lets the weights that stay make up for those that go: SparseGPT (Frantar and Alistarh, ICML 2023), which
//! solves layer by layer for the outputs on the samples (the optimal brain surgeon of Hassibi and Stork, 1992).

use crate::layers::Layer;
use crate::moments::Moments;
use crate::prune::{Structure, lowest};
use rayon::prelude::*;

/// Share of the mean of the diagonal that is added to it, so that it can be inverted.
const DAMPING: f64 = 0.01;
/// Columns whose mask is chosen at once.
const COLUMNS: usize = 128;

/// The new weights of `layer`, in its own layout. `None` where the moments cannot be inverted, and for N:M and blocks
/// that do not divide the input channels.
pub fn reconstruct(
    layer: &Layer,
    w: &[f32],
    moments: &Moments,
    sparsity: f64,
    structure: Structure,
) -> Option<Vec<f32>> {
    let n = moments.length;
    let group = match structure {
        Structure::Unstructured => 1,
        Structure::NOfM { m, .. } => m,
        Structure::Block(b) => b,
    };
    if !layer.dims[layer.in_axis].is_multiple_of(group) {
        return None;
    }
    let upper = inverse_root(&moments.symmetric(), n)?;
    let place = places(layer);
    let mut rows: Vec<Vec<f64>> =
        place.iter().map(|row| row.iter().map(|&i| f64::from(w[i])).collect()).collect();
    // Whole groups in every block of columns; each group of N:M is its own, chosen from weights that are up to date.
    let columns = match structure {
        Structure::NOfM { m, .. } => m,
        _ => COLUMNS.div_ceil(group) * group,
    };
    for from in (0..n).step_by(columns) {
        let to = (from + columns).min(n);
        let keep = mask(&rows, &upper, n, from..to, sparsity, structure);
        rows.par_iter_mut().zip(keep.par_chunks(to - from)).for_each(|(row, keep)| {
            for j in from..to {
                if keep[j - from] {
                    continue;
                }
                let u = &upper[j * n..][..n];
                let error = row[j] / u[j];
                row[j] = 0.0;
                row[j + 1..].iter_mut().zip(&u[j + 1..]).for_each(|(w, u)| *w -= error * u);
            }
        });
    }
    let mut new = vec![0.0f32; w.len()];
    for (row, place) in rows.iter().zip(&place) {
        row.iter().zip(place).for_each(|(&w, &i)| new[i] = w as f32);
    }
    new.iter().all(|w| w.is_finite()).then_some(new)
}

/// For each output channel the elements of its weight in the order of a window: by position, then channel.
fn places(layer: &Layer) -> Vec<Vec<usize>> {
    let mut place = vec![Vec::new(); layer.out_channels()];
    let positions: usize = match layer.dims.len() {
        0..=2 => 1,
        _ => layer.dims[2..].iter().product(),
    };
    for position in 0..positions {
        for channel in 0..layer.dims[layer.in_axis] {
            for (out, place) in place.iter_mut().enumerate() {
                place.push(match layer.out_axis {
                    0 => (out * layer.dims[1] + channel) * positions + position,
                    _ => channel * layer.dims[1] + out,
                });
            }
        }
    }
    place
}

/// Which weights of these columns stay. What a weight's loss costs once the later ones have made up for it is
/// `w² / u_jj²`.
fn mask(
    rows: &[Vec<f64>],
    upper: &[f64],
    n: usize,
    columns: std::ops::Range<usize>,
    sparsity: f64,
    structure: Structure,
) -> Vec<bool> {
    let score = |row: &Vec<f64>, j: usize| (row[j] / upper[j * n + j]).powi(2);
    let scores: Vec<f64> = rows.iter().flat_map(|row| columns.clone().map(move |j| score(row, j))).collect();
    let mut keep = vec![true; scores.len()];
    match structure {
        Structure::NOfM { n, m } => {
            for (scores, keep) in scores.chunks(m).zip(keep.chunks_mut(m)) {
                lowest(scores, m - n).for_each(|i| keep[i] = false);
            }
        }
        Structure::Unstructured | Structure::Block(_) => {
            let size = if let Structure::Block(b) = structure { b } else { 1 };
            let sums: Vec<f64> = scores.chunks(size).map(|s| s.iter().sum()).collect();
            let gone = (sums.len() as f64 * sparsity).round_ties_even() as usize;
            lowest(&sums, gone).for_each(|i| keep[i * size..][..size].fill(false));
        }
    }
    keep
}

/// The upper triangular `u` with `uᵀ u = h⁻¹`, for `h` with some of its mean added to the diagonal.
fn inverse_root(h: &[f64], n: usize) -> Option<Vec<f64>> {
    let mean = (0..n).map(|i| h[i * n + i]).sum::<f64>() / n as f64;
    if !(mean > 0.0 && mean.is_finite()) {
        return None;
    }
    let mut lower = h.to_vec();
    (0..n).for_each(|i| lower[i * n + i] += DAMPING * mean);
    cholesky(&mut lower, n)?;
    let mut inverse = inverse_from_cholesky(&lower, n);
    cholesky(&mut inverse, n)?;
    // `uᵀ` is the lower factor.
    let mut upper = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            upper[j * n + i] = inverse[i * n + j];
        }
    }
    Some(upper)
}

/// In place, the lower factor `l` with `l lᵀ = a`; what lies above the diagonal is left over.
fn cholesky(a: &mut [f64], n: usize) -> Option<()> {
    for j in 0..n {
        let (done, rest) = a.split_at_mut((j + 1) * n);
        let row = &mut done[j * n..];
        let diagonal = row[j] - row[..j].iter().map(|x| x * x).sum::<f64>();
        if !(diagonal > 0.0 && diagonal.is_finite()) {
            return None;
        }
        row[j] = diagonal.sqrt();
        let row = &*row;
        rest.par_chunks_exact_mut(n).with_min_len(64).for_each(|other| {
            let sum: f64 = other[..j].iter().zip(&row[..j]).map(|(a, b)| a * b).sum();
            other[j] = (other[j] - sum) / row[j];
        });
    }
    Some(())
}

/// `(l lᵀ)⁻¹`, whole.
fn inverse_from_cholesky(l: &[f64], n: usize) -> Vec<f64> {
    // Row i: the i-th column of l⁻¹, which solves `l x = e_i`.
    let mut columns = vec![0.0; n * n];
    columns.par_chunks_exact_mut(n).enumerate().for_each(|(i, x)| {
        x[i] = 1.0 / l[i * n + i];
        for k in i + 1..n {
            let sum: f64 = l[k * n + i..k * n + k].iter().zip(&x[i..k]).map(|(l, x)| l * x).sum();
            x[k] = -sum / l[k * n + k];
        }
    });
    let mut inverse = vec![0.0; n * n];
    inverse.par_chunks_exact_mut(n).enumerate().for_each(|(i, out)| {
        for (j, out) in out.iter_mut().enumerate() {
            let from = i.max(j);
            let (a, b) = (&columns[i * n + from..][..n - from], &columns[j * n + from..][..n - from]);
            *out = a.iter().zip(b).map(|(a, b)| a * b).sum();
        }
    });
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_the_inverse_is_one() {
        let n = 7;
        // a aᵀ of a matrix of small whole numbers, and a diagonal.
        let a: Vec<f64> = (0..n * n).map(|i| ((i * 37 + 11) % 13) as f64 - 6.0).collect();
        let h: Vec<f64> = (0..n * n)
            .map(|i| {
                (0..n).map(|k| a[i / n * n + k] * a[i % n * n + k]).sum::<f64>() + f64::from(i / n == i % n)
            })
            .collect();
        let u = inverse_root(&h, n).unwrap();
        let mean = (0..n).map(|i| h[i * n + i]).sum::<f64>() / n as f64;
        for i in 0..n {
            for j in 0..n {
                assert!(i <= j || u[i * n + j] == 0.0);
                // (uᵀ u) h = 1
                let inverse = |a: usize, b: usize| (0..n).map(|k| u[k * n + a] * u[k * n + b]).sum::<f64>();
                let damped = |a: usize, b: usize| h[a * n + b] + if a == b { DAMPING * mean } else { 0.0 };
                let one: f64 = (0..n).map(|k| inverse(i, k) * damped(k, j)).sum();
                assert!((one - f64::from(i == j)).abs() < 1e-9, "{i},{j}: {one}");
            }
        }
        assert!(inverse_root(&[0.0; 4], 2).is_none());
        assert!(inverse_root(&[f64::NAN, 0.0, 0.0, 1.0], 2).is_none());
    }
}
