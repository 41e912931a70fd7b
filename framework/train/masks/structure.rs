//! Which weights share one mask decision: each group of weights gets one score, and its weights the mask of the group.
//!
//! A tensor is [outputs, inputs, kernel positions...]; in memory the positions of one (output, input) pair lie together.

use super::Mask;
use lacuna_recipe::MaskStructure;

/// Sides of a weight tensor; what has no inputs or no kernel counts 1.
#[derive(Clone, Copy)]
struct Sides {
    outputs: usize,
    inputs: usize,
    positions: usize,
}

impl Sides {
    fn of(shape: &[usize]) -> Sides {
        let side = |d: usize| shape.get(d).copied().unwrap_or(1);
        Sides {
            outputs: side(0),
            inputs: side(1),
            positions: shape.get(2..).unwrap_or_default().iter().product(),
        }
    }

    fn place(&self, output: usize, input: usize, position: usize) -> usize {
        (output * self.inputs + input) * self.positions + position
    }
}

/// One score for each group of a tensor's weights, from the scores of the weights.
///
/// Errors: a structure that does not fit the shape.
pub fn group_scores(scores: &[f32], shape: &[usize], structure: MaskStructure) -> Result<Vec<f32>, String> {
    let sides = Sides::of(shape);
    Ok(match structure {
        MaskStructure::Unstructured => scores.to_vec(),
        MaskStructure::Block4 => {
            let mut out = Vec::with_capacity(scores.len().div_ceil(4));
            each_run(&sides, 4, |run| {
                let sum: f32 = run.iter().map(|&i| scores[i]).sum();
                // A short run at the end is filled up with its own mean, as SparseML does before it takes the mean of 4.
                let mean = sum / run.len() as f32;
                let padded = (run.len()..4).fold(sum, |sum, _| sum + mean);
                out.push(if run.len() == 4 { sum / 4.0 } else { padded / 4.0 });
            });
            out
        }
        MaskStructure::Block { rows, columns } => {
            let [rows, columns] = block(&sides, rows, columns)?;
            let mut out = vec![0.0f32; scores.len() / (rows * columns)];
            each_tile(&sides, rows, columns, |tile, i| out[tile] += scores[i]);
            out.iter_mut().for_each(|sum| *sum /= (rows * columns) as f32);
            out
        }
        MaskStructure::PairRun { rows, columns } => {
            let length: usize = block(&sides, rows, columns)?.iter().product();
            let mut out = vec![0.0f32; scores.len() / length];
            scores.iter().enumerate().for_each(|(i, &s)| out[pair_run(&sides, length, i)] += s);
            out.iter_mut().for_each(|sum| *sum /= length as f32);
            out
        }
        MaskStructure::Filter => {
            let mut squares = vec![0.0f64; sides.outputs];
            let each = sides.inputs * sides.positions;
            scores.iter().enumerate().for_each(|(i, &s)| squares[i / each] += f64::from(s) * f64::from(s));
            squares.into_iter().map(|sum| sum.sqrt() as f32).collect()
        }
        MaskStructure::Channel => {
            let mut squares = vec![0.0f64; sides.inputs];
            let channel = |i: usize| i / sides.positions % sides.inputs;
            scores.iter().enumerate().for_each(|(i, &s)| squares[channel(i)] += f64::from(s) * f64::from(s));
            squares.into_iter().map(|sum| sum.sqrt() as f32).collect()
        }
        MaskStructure::NOfM { .. } => return Err("N:M masks are made group by group".into()),
    })
}

/// The mask of a tensor's weights from the mask of its groups.
///
/// Errors: as [`group_scores`].
pub fn spread(groups: &[u8], shape: &[usize], structure: MaskStructure) -> Result<Mask, String> {
    let sides = Sides::of(shape);
    let n = shape.iter().product();
    let mut mask: Mask = vec![1; n];
    match structure {
        MaskStructure::Unstructured => mask.copy_from_slice(groups),
        MaskStructure::Block4 => {
            let mut group = groups.iter();
            each_run(&sides, 4, |run| {
                let open = *group.next().unwrap_or(&1);
                run.iter().for_each(|&i| mask[i] = open);
            });
        }
        MaskStructure::Block { rows, columns } => {
            let [rows, columns] = block(&sides, rows, columns)?;
            each_tile(&sides, rows, columns, |tile, i| mask[i] = groups[tile]);
        }
        MaskStructure::PairRun { rows, columns } => {
            let length = block(&sides, rows, columns)?.iter().product();
            mask.iter_mut().enumerate().for_each(|(i, m)| *m = groups[pair_run(&sides, length, i)]);
        }
        MaskStructure::Filter => {
            let each = sides.inputs * sides.positions;
            mask.iter_mut().enumerate().for_each(|(i, m)| *m = groups[i / each]);
        }
        MaskStructure::Channel => {
            mask.iter_mut().enumerate().for_each(|(i, m)| *m = groups[i / sides.positions % sides.inputs]);
        }
        MaskStructure::NOfM { .. } => return Err("N:M masks are made group by group".into()),
    }
    Ok(mask)
}

/// Keeps the `keep` highest of every `of` consecutive weights along the inputs; of equal ones the earlier. A shorter run
/// at the end of a row keeps at most as many.
pub fn keep_n_of_m(scores: &[f32], shape: &[usize], keep: usize, of: usize) -> Mask {
    let mut mask: Mask = vec![1; scores.len()];
    each_run(&Sides::of(shape), of, |run| {
        let mut order = run.to_vec();
        // Stable: equal scores stay in their order, so the later ones go first.
        order.reverse();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        order[..order.len().saturating_sub(keep)].iter().for_each(|&i| mask[i] = 0);
    });
    mask
}

/// Calls `f` with the places of the weights in each run of `length` inputs of a tensor; see [`group_scores`].
pub fn each_run_of(shape: &[usize], length: usize, f: impl FnMut(&[usize])) {
    each_run(&Sides::of(shape), length, f);
}

/// Calls `f` with the places of each run of `length` consecutive inputs, for each output and then each kernel position:
/// the order of a tensor whose input axis is moved to the end. Runs do not reach over the end of that axis.
fn each_run(sides: &Sides, length: usize, mut f: impl FnMut(&[usize])) {
    let mut run = Vec::with_capacity(length);
    for output in 0..sides.outputs {
        for position in 0..sides.positions {
            for first in (0..sides.inputs).step_by(length) {
                run.clear();
                let inputs = first..(first + length).min(sides.inputs);
                run.extend(inputs.map(|input| sides.place(output, input, position)));
                f(&run);
            }
        }
    }
}

/// Calls `f(tile, place)` for every weight: tiles of `rows` outputs by `columns` inputs, one for each kernel position,
/// numbered by output, input and position.
fn each_tile(sides: &Sides, rows: usize, columns: usize, mut f: impl FnMut(usize, usize)) {
    let across = sides.inputs / columns;
    for output in 0..sides.outputs {
        for input in 0..sides.inputs {
            let tile = (output / rows * across + input / columns) * sides.positions;
            for position in 0..sides.positions {
                f(tile + position, sides.place(output, input, position));
            }
        }
    }
}

/// The run of `length` (output, input) pairs that the weight at a place belongs to, one run for each kernel position.
fn pair_run(sides: &Sides, length: usize, place: usize) -> usize {
    place / sides.positions / length * sides.positions + place % sides.positions
}

/// The sides of the blocks of one tensor: -1 is its whole side.
fn block(sides: &Sides, rows: i32, columns: i32) -> Result<[usize; 2], String> {
    let side = |side: i32, whole: usize| usize::try_from(side).unwrap_or(whole).max(1);
    let (r, c) = (side(rows, sides.outputs), side(columns, sides.inputs));
    if !sides.outputs.is_multiple_of(r) || !sides.inputs.is_multiple_of(c) {
        let (o, i) = (sides.outputs, sides.inputs);
        return Err(format!("blocks of [{rows}, {columns}] do not divide {o} outputs by {i} inputs"));
    }
    Ok([r, c])
}
