//! The rules in plain words and loops, written from the formulas and sharing no code with the crate.

use std::collections::BTreeMap;

/// The pattern of a mask, as the test sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    Single,
    /// Runs of four inputs.
    Fours,
    /// Tiles of outputs by inputs.
    Tile(usize, usize),
    Filter,
    Channel,
}

/// (output, input, kernel position) of a place.
fn coordinates(i: usize, shape: &[usize]) -> (usize, usize, usize) {
    let inputs = shape.get(1).copied().unwrap_or(1);
    let positions: usize = shape.iter().skip(2).product();
    (i / (inputs * positions), i / positions % inputs, i % positions)
}

/// The places of each group, in the order in which groups count.
pub fn groups(shape: &[usize], pattern: Pattern) -> Vec<Vec<usize>> {
    let mut found: BTreeMap<(usize, usize, usize), Vec<usize>> = BTreeMap::new();
    for i in 0..shape.iter().product() {
        let (o, c, p) = coordinates(i, shape);
        let key = match pattern {
            Pattern::Single => (i, 0, 0),
            Pattern::Fours => (o, p, c / 4),
            Pattern::Tile(rows, columns) => (o / rows, c / columns, p),
            Pattern::Filter => (o, 0, 0),
            Pattern::Channel => (c, 0, 0),
        };
        found.entry(key).or_default().push(i);
    }
    found.into_values().collect()
}

/// Mean of a group, or length for whole filters and channels.
fn group_score(scores: &[f32], places: &[usize], pattern: Pattern) -> f32 {
    let of = |i: &usize| f64::from(scores[*i]);
    match pattern {
        Pattern::Filter | Pattern::Channel => places.iter().map(|i| of(i) * of(i)).sum::<f64>().sqrt() as f32,
        _ => (places.iter().map(of).sum::<f64>() / places.len() as f64) as f32,
    }
}

/// Round half to even.
pub fn count(n: usize, sparsity: f64) -> usize {
    let exact = n as f64 * sparsity;
    let below = exact.floor();
    match exact - below {
        d if d > 0.5 || (d == 0.5 && below % 2.0 == 1.0) => below as usize + 1,
        _ => below as usize,
    }
}

/// 0 where a score is among the `k` lowest; of equal ones those that come later.
pub fn lowest(scores: &[f32], k: usize) -> Vec<u8> {
    let rank = |i: usize| {
        let before = |j: usize| scores[j] < scores[i] || (scores[j] == scores[i] && j > i);
        (0..scores.len()).filter(|&j| before(j)).count()
    };
    (0..scores.len()).map(|i| u8::from(rank(i) >= k)).collect()
}

/// The masks of tensors of those scores and shapes, each at its sparsity; or all together at the first.
pub fn masks(tensors: &[(Vec<f32>, Vec<usize>, f64)], pattern: Pattern, global: bool) -> Vec<Vec<u8>> {
    let grouped: Vec<(Vec<Vec<usize>>, Vec<f32>)> = tensors
        .iter()
        .map(|(scores, shape, _)| {
            let groups = groups(shape, pattern);
            let found = groups.iter().map(|places| group_score(scores, places, pattern)).collect();
            (groups, found)
        })
        .collect();
    let masks: Vec<Vec<u8>> = if global {
        let all: Vec<f32> = grouped.iter().flat_map(|(_, s)| s.clone()).collect();
        let mut mask = lowest(&all, count(all.len(), tensors[0].2));
        grouped.iter().map(|(_, s)| mask.drain(..s.len()).collect()).collect()
    } else {
        grouped.iter().zip(tensors).map(|((_, s), t)| lowest(s, count(s.len(), t.2))).collect()
    };
    let mut out = Vec::new();
    for ((groups, _), mask) in grouped.iter().zip(&masks) {
        let mut spread = vec![1; groups.iter().map(Vec::len).sum()];
        groups.iter().zip(mask).for_each(|(places, m)| places.iter().for_each(|&i| spread[i] = *m));
        out.push(spread);
    }
    out
}

pub fn magnitudes(w: &[f32]) -> Vec<f32> {
    w.iter().map(|v| v.abs()).collect()
}

/// The inverse of damp I + 1/m sum g gᵀ over the places of one block.
pub fn fisher_inverse(gradients: &[Vec<f32>], places: &[usize], damp: f64) -> Vec<Vec<f64>> {
    let n = places.len();
    let entry = |i: usize, j: usize| {
        let sum: f64 = gradients.iter().map(|g| f64::from(g[places[i]]) * f64::from(g[places[j]])).sum();
        sum / gradients.len() as f64 + if i == j { damp } else { 0.0 }
    };
    invert((0..n).map(|i| (0..n).map(|j| entry(i, j)).collect()).collect())
}

/// By Gauss and Jordan, with the largest pivot.
pub fn invert(mut a: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let n = a.len();
    for (i, row) in a.iter_mut().enumerate() {
        row.extend((0..n).map(|j| f64::from(u8::from(i == j))));
    }
    for p in 0..n {
        let best = (p..n).max_by(|&x, &y| a[x][p].abs().total_cmp(&a[y][p].abs())).unwrap();
        a.swap(p, best);
        let pivot = a[p][p];
        a[p].iter_mut().for_each(|v| *v /= pivot);
        for r in (0..n).filter(|&r| r != p) {
            let factor = a[r][p];
            let row = a[p].clone();
            a[r].iter_mut().zip(row).for_each(|(v, q)| *v -= factor * q);
        }
    }
    a.into_iter().map(|row| row[n..].to_vec()).collect()
}
