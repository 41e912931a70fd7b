//! Masks by score, with the exact rule of SparseML: `k = round_half_even(n · sparsity)` become zero, those of the lowest
//! scores. Among those equal to the k-th lowest the first ones in memory order stay open; where that one is the lowest
//! of all, Python's seeded shuffle chooses.

pub mod python_random;
pub mod structure;

use lacuna_recipe::{MaskStructure, Scope};
use python_random::PythonRandom;

/// One byte for each weight: 1 open, 0 masked.
pub type Mask = Vec<u8>;

/// SparseML's.
const SHUFFLE_SEED: u32 = 42;

/// Scores of one tensor's weights, and how many of them shall be zero.
#[derive(Clone, Copy)]
pub struct Scored<'a> {
    pub scores: &'a [f32],
    pub shape: &'a [usize],
    pub sparsity: f64,
}

/// How many of `n` weights are zero at this sparsity.
pub fn zeros(n: usize, sparsity: f64) -> usize {
    ((n as f64 * sparsity).round_ties_even() as usize).min(n)
}

/// Masks so that each tensor, or all together at the sparsity of the first, has exactly [`zeros`] masked groups of its
/// structure.
///
/// Errors: a structure that does not fit a shape.
pub fn lowest(tensors: &[Scored<'_>], structure: MaskStructure, scope: Scope) -> Result<Vec<Mask>, String> {
    if let MaskStructure::NOfM { keep, of } = structure {
        let mask = |t: &Scored<'_>| match t.sparsity {
            s if s > 0.0 => structure::keep_n_of_m(t.scores, t.shape, keep as usize, of as usize),
            _ => vec![1; t.scores.len()],
        };
        return Ok(tensors.iter().map(mask).collect());
    }
    let scores = tensors.iter().map(|t| structure::group_scores(t.scores, t.shape, structure));
    let scores: Vec<Vec<f32>> = scores.collect::<Result<_, String>>()?;
    let masks: Vec<Mask> = match scope {
        Scope::Global => {
            let all: Vec<f32> = scores.iter().flatten().copied().collect();
            let mask = mask_lowest(&all, tensors.first().map_or(0.0, |t| t.sparsity));
            let mut rest = mask.as_slice();
            let mut next = |n: usize| {
                let (own, others) = rest.split_at(n);
                rest = others;
                own.to_vec()
            };
            scores.iter().map(|s| next(s.len())).collect()
        }
        _ => scores.iter().zip(tensors).map(|(s, t)| mask_lowest(s, t.sparsity)).collect(),
    };
    masks.iter().zip(tensors).map(|(groups, t)| structure::spread(groups, t.shape, structure)).collect()
}

/// Unstructured masks by the magnitudes of `weights`.
pub fn by_magnitude(weights: &[&[f32]], sparsity: f64, scope: Scope) -> Vec<Mask> {
    let magnitudes: Vec<Vec<f32>> = weights.iter().map(|w| w.iter().map(|v| v.abs()).collect()).collect();
    let shapes: Vec<[usize; 1]> = magnitudes.iter().map(|m| [m.len()]).collect();
    let scored = magnitudes.iter().zip(&shapes);
    let tensors: Vec<Scored<'_>> = scored.map(|(scores, shape)| Scored { scores, shape, sparsity }).collect();
    lowest(&tensors, MaskStructure::Unstructured, scope).expect("unstructured masks fit any shape")
}

/// The rule of the module's head, for one list of scores.
pub fn mask_lowest(scores: &[f32], sparsity: f64) -> Mask {
    let mut mask: Mask = vec![1; scores.len()];
    if scores.is_empty() || sparsity <= 0.0 {
        return mask;
    }
    let k = zeros(scores.len(), sparsity);
    let mut sorted = scores.to_vec();
    let (_, threshold, _) = sorted.select_nth_unstable_by(k.saturating_sub(1), f32::total_cmp);
    let threshold = *threshold;
    let lowest = scores.iter().copied().fold(f32::INFINITY, f32::min);
    if threshold > lowest {
        let mut masked = 0;
        for (m, &s) in mask.iter_mut().zip(scores) {
            *m = u8::from(s > threshold);
            masked += usize::from(*m == 0);
        }
        let equal = (0..scores.len()).filter(|&i| scores[i] == threshold);
        equal.take(masked - k).for_each(|i| mask[i] = 1);
        return mask;
    }
    let equal: Vec<u32> = (0..scores.len() as u32).filter(|&i| scores[i as usize] == lowest).collect();
    let mut chosen: Vec<u32> = (0..equal.len() as u32).collect();
    PythonRandom::new(SHUFFLE_SEED).shuffle(&mut chosen);
    chosen.iter().take(k).for_each(|&i| mask[equal[i as usize] as usize] = 0);
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(scores: &[f32], shape: &[usize], sparsity: f64, structure: MaskStructure) -> Mask {
        lowest(&[Scored { scores, shape, sparsity }], structure, Scope::Uniform).unwrap().remove(0)
    }

    #[test]
    fn counts_round_half_to_even() {
        assert_eq!([zeros(5, 0.5), zeros(7, 0.5), zeros(10, 0.85), zeros(1000, 0.9)], [2, 4, 8, 900]);
    }

    #[test]
    fn smallest_go_first_and_of_equals_the_later() {
        let w = [0.5, -0.1, 0.1, 3.0, -0.1, 0.0];
        let mask = |s| by_magnitude(&[&w], s, Scope::Uniform).remove(0);
        assert_eq!(mask(0.5), [1, 1, 0, 1, 0, 0]);
        assert_eq!(mask(0.0), [1; 6]);
        assert_eq!(mask(2.0 / 3.0), [1, 0, 0, 1, 0, 0]);
    }

    /// `random.Random(42).shuffle(list(range(5)))` is [3, 1, 2, 4, 0]: the zeros with these numbers are masked.
    #[test]
    fn among_equally_lowest_ones_pythons_shuffle_chooses() {
        let w = [0.0, 7.0, 0.0, 0.0, 7.0, 0.0, 0.0, 7.0, 7.0, 7.0];
        let places = [0, 2, 3, 5, 6];
        for (sparsity, numbers) in [(0.1, &[3][..]), (0.3, &[3, 1, 2]), (0.5, &[3, 1, 2, 4, 0])] {
            let mut expected = vec![1; 10];
            numbers.iter().for_each(|&n: &usize| expected[places[n]] = 0);
            assert_eq!(mask_lowest(&w, sparsity), expected, "{sparsity}");
        }
    }

    #[test]
    fn global_masks_take_the_smallest_anywhere() {
        let (a, b) = ([1.0f32, 2.0, 3.0], [0.1f32, 0.2, 9.0]);
        assert_eq!(by_magnitude(&[&a, &b], 0.5, Scope::Global), [vec![0, 1, 1], vec![0, 0, 1]]);
    }

    /// Two outputs, six inputs, two kernel positions: blocks of 4 inputs and a rest of 2, for each position.
    #[test]
    fn blocks_of_four_lie_along_the_inputs() {
        let shape = [2, 6, 2];
        let place = |o: usize, i: usize, p: usize| (o * 6 + i) * 2 + p;
        let mut scores = vec![0.0f32; 24];
        for o in 0..2 {
            for i in 0..6 {
                for p in 0..2 {
                    scores[place(o, i, p)] = (1 + o * 4 + p * 2 + i / 4) as f32;
                }
            }
        }
        // Eight blocks with scores 1 to 8; the three lowest go.
        let mask = one(&scores, &shape, 3.0 / 8.0, MaskStructure::Block4);
        for o in 0..2 {
            for i in 0..6 {
                for p in 0..2 {
                    assert_eq!(mask[place(o, i, p)], u8::from(o * 4 + p * 2 + i / 4 >= 3), "{o} {i} {p}");
                }
            }
        }
    }

    /// The rest of a row is filled up with its mean: [4, 2] counts as [4, 2, 3, 3].
    #[test]
    fn the_rest_of_a_row_counts_with_its_mean() {
        let scores = [3.0, 3.0, 3.0, 2.9, 4.0, 2.0];
        let found = structure::group_scores(&scores, &[1, 6], MaskStructure::Block4).unwrap();
        assert_eq!(found, [11.9 / 4.0, 3.0]);
    }

    #[test]
    fn tiles_are_rectangles() {
        // 4 outputs, 4 inputs, tiles of 2 x 2: the one at the lower left is the smallest.
        let score = |o: usize, i: usize| if o >= 2 && i < 2 { 0.5 } else { 1.0 + (o * 4 + i) as f32 };
        let scores: Vec<f32> = (0..16).map(|n| score(n / 4, n % 4)).collect();
        let mask = one(&scores, &[4, 4], 0.25, MaskStructure::Block { rows: 2, columns: 2 });
        let expected: Mask = (0..16).map(|n| u8::from(!(n / 4 >= 2 && n % 4 < 2))).collect();
        assert_eq!(mask, expected);
        assert!(
            lowest(
                &[Scored { scores: &scores, shape: &[4, 4], sparsity: 0.5 }],
                MaskStructure::Block { rows: 3, columns: 1 },
                Scope::Uniform
            )
            .is_err()
        );
        // -1 is the whole side of each tensor.
        let whole = one(&scores, &[4, 4], 0.25, MaskStructure::Block { rows: 1, columns: -1 });
        assert_eq!(whole, [[0; 4], [1; 4], [1; 4], [1; 4]].concat());
    }

    /// SparseML reshapes to [outputs * inputs / (rows * columns), rows * columns, positions] and takes the mean of the
    /// middle axis; computed here by loops over that shape.
    #[test]
    fn sparsemls_blocks_are_runs_of_pairs() {
        let shape = [4, 8, 3, 3];
        let scores: Vec<f32> = (0..4 * 8 * 9).map(|n| (n * 131 % 977) as f32 / 977.0).collect();
        for (rows, columns, as_tiles) in [(2, 4, false), (1, 4, true), (-1, 2, false), (1, -1, true)] {
            let side = |side: i32, whole| usize::try_from(side).unwrap_or(whole);
            let length = side(rows, 4) * side(columns, 8);
            let mut means = Vec::new();
            for run in 0..32 / length {
                for position in 0..9 {
                    let pairs = run * length..(run + 1) * length;
                    means.push(pairs.map(|pair| scores[pair * 9 + position]).sum::<f32>() / length as f32);
                }
            }
            let mut sorted = means.clone();
            sorted.sort_by(f32::total_cmp);
            let masked = zeros(means.len(), 0.3);
            let (threshold, next) = (sorted[masked - 1], sorted[masked]);
            assert!(threshold < next, "[{rows}, {columns}]: no ties in this test");
            let open = |i: usize| u8::from(means[i / 9 / length * 9 + i % 9] > threshold);
            let expected: Mask = (0..scores.len()).map(open).collect();
            assert_eq!(one(&scores, &shape, 0.3, MaskStructure::PairRun { rows, columns }), expected);
            let tiles = one(&scores, &shape, 0.3, MaskStructure::Block { rows, columns });
            assert_eq!(tiles == expected, as_tiles, "[{rows}, {columns}]");
        }
        let odd = Scored { scores: &scores[..12], shape: &[3, 4], sparsity: 0.5 };
        assert!(lowest(&[odd], MaskStructure::PairRun { rows: 2, columns: 4 }, Scope::Uniform).is_err());
    }

    #[test]
    fn two_of_four_keeps_the_highest_and_of_equals_the_earlier() {
        let scores = [1.0, 3.0, 2.0, 4.0, 5.0, 5.0, 5.0, 0.0, 1.0, 2.0];
        let mask = one(&scores, &[1, 10], 0.5, MaskStructure::NOfM { keep: 2, of: 4 });
        assert_eq!(mask, [0, 1, 0, 1, 1, 1, 0, 0, 1, 1]);
        assert_eq!(one(&scores, &[1, 10], 0.0, MaskStructure::NOfM { keep: 2, of: 4 }), [1; 10]);
    }

    #[test]
    fn filters_and_channels_go_by_their_length() {
        // 3 filters, 2 channels, 2 positions.
        let scores = [1.0, 1.0, 1.0, 1.0, 0.0, 1.5, 0.0, 0.0, 3.0, 0.0, 0.0, 0.1];
        let filters = one(&scores, &[3, 2, 2], 1.0 / 3.0, MaskStructure::Filter);
        assert_eq!(filters, [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]);
        let channels = one(&scores, &[3, 2, 2], 0.5, MaskStructure::Channel);
        assert_eq!(channels, [1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0]);
    }
}
