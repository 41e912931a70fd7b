//! Which weights of a layer stay.

use crate::layers::Layer;
use std::fmt;
use std::str::FromStr;

/// What is zeroed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    Unstructured,
    /// Of every `m` consecutive input channels, `n` stay.
    NOfM {
        n: usize,
        m: usize,
    },
    /// Blocks of this many consecutive input channels.
    Block(usize),
}

impl FromStr for Structure {
    type Err = String;

    /// `unstructured`, `N:M` or `1xB`.
    fn from_str(text: &str) -> Result<Structure, String> {
        let bad = || format!("'{text}' is no structure: unstructured, N:M such as 2:4, or 1xB such as 1x4");
        let two = |separator: char| -> Option<(usize, usize)> {
            let (a, b) = text.split_once(separator)?;
            Some((a.parse().ok()?, b.parse().ok()?))
        };
        match (text, two(':'), two('x')) {
            ("unstructured", ..) => Ok(Structure::Unstructured),
            (_, Some((n, m)), _) if 0 < n && n < m && m <= 64 => Ok(Structure::NOfM { n, m }),
            (_, _, Some((1, b))) if (2..=64).contains(&b) => Ok(Structure::Block(b)),
            _ => Err(bad()),
        }
    }
}

impl Structure {
    /// Whether `sparsity` can be had: N:M has one of its own.
    pub fn check(self, sparsity: f64) -> Result<(), String> {
        let Structure::NOfM { n, m } = self else { return Ok(()) };
        let own = 1.0 - n as f64 / m as f64;
        match (own - sparsity).abs() <= 0.01 {
            true => Ok(()),
            false => Err(format!("{self} is a sparsity of {own:.3}, not {sparsity}: ask for that")),
        }
    }
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Structure::Unstructured => f.write_str("unstructured"),
            Structure::NOfM { n, m } => write!(f, "{n}:{m}"),
            Structure::Block(b) => write!(f, "1x{b}"),
        }
    }
}

/// Which elements of `w` stay. An element's score is its magnitude, times the root of the energy of the channel that it
/// multiplies where that is known (Wanda: Sun et al., ICLR 2024); the lowest scores of the layer go, of equal ones the
/// first. Blocks go by their mean score; N:M goes by itself, whatever `sparsity` is.
pub fn keep(
    layer: &Layer,
    w: &[f32],
    energy: Option<&[f64]>,
    sparsity: f64,
    structure: Structure,
) -> Vec<bool> {
    let score = |i: usize| f64::from(w[i].abs()) * energy.map_or(1.0, |e| e[layer.channels(i).1].sqrt());
    let scores: Vec<f64> = (0..w.len()).map(score).collect();
    let groups = match structure {
        Structure::Unstructured => (0..w.len()).map(|i| vec![i]).collect(),
        Structure::Block(b) => groups(layer, b),
        Structure::NOfM { n, m } => return n_of_m(&groups(layer, m), &scores, n, m),
    };
    let mean = |group: &Vec<usize>| group.iter().map(|&i| scores[i]).sum::<f64>() / group.len() as f64;
    let means: Vec<f64> = groups.iter().map(mean).collect();
    let gone = (groups.len() as f64 * sparsity).round_ties_even() as usize;
    let mut keep = vec![true; w.len()];
    for group in lowest(&means, gone) {
        groups[group].iter().for_each(|&i| keep[i] = false);
    }
    keep
}

/// The places of the `count` lowest scores; of equal ones the first.
pub fn lowest(scores: &[f64], count: usize) -> impl Iterator<Item = usize> + use<> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    order.into_iter().take(count)
}

/// The elements that lie side by side along the input channels, `size` at a time; a last group may be shorter.
fn groups(layer: &Layer, size: usize) -> Vec<Vec<usize>> {
    let stride: usize = layer.dims[layer.in_axis + 1..].iter().product();
    let channels = layer.dims[layer.in_axis];
    let elements: usize = layer.dims.iter().product();
    let mut groups = Vec::with_capacity(elements.div_ceil(size));
    for first in (0..elements).filter(|i| (i / stride % channels).is_multiple_of(size)) {
        let left = channels - first / stride % channels;
        groups.push((0..size.min(left)).map(|k| first + k * stride).collect());
    }
    groups
}

/// `n` of every whole group of `m` stay; a shorter last group stays whole.
fn n_of_m(groups: &[Vec<usize>], scores: &[f64], n: usize, m: usize) -> Vec<bool> {
    let mut keep = vec![true; scores.len()];
    for group in groups.iter().filter(|group| group.len() == m) {
        let of_group: Vec<f64> = group.iter().map(|&i| scores[i]).collect();
        lowest(&of_group, m - n).for_each(|i| keep[group[i]] = false);
    }
    keep
}
