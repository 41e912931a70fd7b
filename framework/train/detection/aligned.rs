//! The loss of YOLOv8 (Jocher et al., 2023, github.com/ultralytics/ultralytics): task-aligned assignment (Feng et al., 2021,
//! arXiv:2108.07755), complete IoU, and the distribution focal loss of distances (Li et al., 2020, arXiv:2006.04388).
//!
//! Every cell whose middle lies in a box has a metric for it, score^0.5 * overlap^6. The ten best cells of a box answer for
//! it (a cell of several boxes for the one it overlaps most); each is to score as high as its metric says, in units in which
//! the best cell's is the box's best overlap.

use super::overlap::complete_iou;
use super::{BoxLoss, Map, cross_entropy, sigmoid};
use lacuna_data::boxes::BatchBox;

const CELLS_OF_A_BOX: usize = 10;
const SCORE_POWER: f64 = 0.5;
const OVERLAP_POWER: i32 = 6;
const GAIN_BOX: f64 = 7.5;
const GAIN_CLASS: f64 = 0.5;
const GAIN_DISTANCE: f64 = 1.5;
const EPSILON: f64 = 1e-9;

/// A cell of a level.
struct Cell {
    level: usize,
    /// Place in its map's plane.
    at: usize,
    stride: f64,
    /// Its middle in pixels.
    middle: [f64; 2],
}

/// What the maps say at a cell.
struct Said {
    /// Shares of each bin, of the four sides in turn.
    shares: Vec<f64>,
    /// Mean distances of the sides, in cells.
    distances: [f64; 4],
    corners: [f64; 4],
}

/// A cell that answers for a box.
#[derive(Clone, Copy)]
struct Answer {
    image: usize,
    cell: usize,
    /// Of `boxes`.
    of: usize,
    /// What it should score.
    score: f64,
}

pub(super) fn loss(strides: &[usize], bins: usize, maps: &[Map<'_>], boxes: &[BatchBox]) -> BoxLoss {
    let [n, c, ..] = maps[0].dims;
    let classes = c - 4 * bins;
    let cells = cells(strides, maps);
    let at = |image: usize, cell: &Cell, channel: usize| {
        let [_, c, h, w] = maps[cell.level].dims;
        (image * c + channel) * h * w + cell.at
    };
    let raw = |image: usize, cell: &Cell, channel: usize| maps[cell.level].values[at(image, cell, channel)];
    let said = |image: usize, cell: &Cell| say(cell, bins, |channel| raw(image, cell, channel));
    let mut answers = Vec::new();
    for image in 0..n {
        let here: Vec<usize> = (0..boxes.len()).filter(|&i| boxes[i].image as usize == image).collect();
        let score = |cell: usize, class: usize| sigmoid(raw(image, &cells[cell], 4 * bins + class));
        let corners = |cell: usize| said(image, &cells[cell]).corners;
        assign(image, &cells, boxes, &here, score, corners, &mut answers);
    }
    let sum = answers.iter().map(|a| a.score).sum::<f64>().max(1.0);
    let scale = n as f64 / sum;
    let mut gradients: Vec<Vec<f32>> = maps.iter().map(|map| vec![0.0; map.values.len()]).collect();
    let mut parts = [0.0; 3];
    // As if nothing were there; what is there corrects it.
    for image in 0..n {
        for cell in &cells {
            for class in 0..classes {
                let logit = raw(image, cell, 4 * bins + class);
                parts[2] += GAIN_CLASS * scale * cross_entropy(logit, 0.0);
                gradients[cell.level][at(image, cell, 4 * bins + class)] =
                    (GAIN_CLASS * scale * sigmoid(logit)) as f32;
            }
        }
    }
    for a in &answers {
        let (cell, b) = (&cells[a.cell], &boxes[a.of]);
        let channel = 4 * bins + b.class as usize;
        let logit = raw(a.image, cell, channel);
        parts[2] += GAIN_CLASS * scale * (cross_entropy(logit, a.score) - cross_entropy(logit, 0.0));
        gradients[cell.level][at(a.image, cell, channel)] -= (GAIN_CLASS * scale * a.score) as f32;

        let said = said(a.image, cell);
        let truth = b.corners.map(f64::from);
        let (iou, by_corner) = complete_iou(said.corners, truth);
        let weight = scale * a.score;
        parts[0] += GAIN_BOX * weight * (1.0 - iou);
        for side in 0..4 {
            // Left and top move against their distances.
            let sign = if side < 2 { -1.0 } else { 1.0 };
            let by_distance = -GAIN_BOX * weight * by_corner[side] * sign * cell.stride;
            let target = distance_to(truth[side], side, cell).clamp(0.0, bins as f64 - 1.01);
            let (low, rest) = (target as usize, target.fract());
            for bin in 0..bins {
                let share = said.shares[side * bins + bin];
                let wanted = match bin {
                    _ if bin == low => 1.0 - rest,
                    _ if bin == low + 1 => rest,
                    _ => 0.0,
                };
                if wanted > 0.0 {
                    parts[1] -= GAIN_DISTANCE * weight / 4.0 * wanted * share.max(f64::MIN_POSITIVE).ln();
                }
                let slope = by_distance * share * (bin as f64 - said.distances[side])
                    + GAIN_DISTANCE * weight / 4.0 * (share - wanted);
                gradients[cell.level][at(a.image, cell, side * bins + bin)] += slope as f32;
            }
        }
    }
    BoxLoss { value: parts.iter().sum(), parts, gradients }
}

fn cells(strides: &[usize], maps: &[Map<'_>]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (level, (&stride, map)) in strides.iter().zip(maps).enumerate() {
        let [_, _, h, w] = map.dims;
        let stride = stride as f64;
        cells.extend((0..h * w).map(|at| {
            let middle = [(at % w) as f64 + 0.5, (at / w) as f64 + 0.5].map(|v| v * stride);
            Cell { level, at, stride, middle }
        }));
    }
    cells
}

fn say(cell: &Cell, bins: usize, raw: impl Fn(usize) -> f32) -> Said {
    let mut shares = Vec::with_capacity(4 * bins);
    let mut distances = [0.0; 4];
    for (side, distance) in distances.iter_mut().enumerate() {
        let logits = (0..bins).map(|bin| f64::from(raw(side * bins + bin)));
        let top = logits.clone().fold(f64::MIN, f64::max);
        shares.extend(logits.map(|x| (x - top).exp()));
        let own = &mut shares[side * bins..];
        let sum: f64 = own.iter().sum();
        own.iter_mut().for_each(|share| *share /= sum);
        *distance = own.iter().enumerate().map(|(bin, share)| bin as f64 * share).sum();
    }
    let [x, y] = cell.middle;
    let [l, t, r, b] = distances.map(|d| d * cell.stride);
    Said { shares, distances, corners: [x - l, y - t, x + r, y + b] }
}

/// From the cell's middle to a side of the box, in cells.
fn distance_to(edge: f64, side: usize, cell: &Cell) -> f64 {
    let distance = (edge - cell.middle[side % 2]) / cell.stride;
    if side < 2 { -distance } else { distance }
}

/// The cells that answer for the boxes of an image.
fn assign(
    image: usize,
    cells: &[Cell],
    boxes: &[BatchBox],
    here: &[usize],
    score: impl Fn(usize, usize) -> f64,
    corners: impl Fn(usize) -> [f64; 4],
    answers: &mut Vec<Answer>,
) {
    /// A cell in a box.
    #[derive(Clone, Copy)]
    struct Candidate {
        cell: usize,
        of: usize,
        overlap: f64,
        metric: f64,
    }
    // Of each box, cells in it from the best metric down.
    let mut inside: Vec<Vec<Candidate>> = Vec::with_capacity(here.len());
    for &of in here {
        let [x0, y0, x1, y1] = boxes[of].corners.map(f64::from);
        let class = boxes[of].class as usize;
        let is_in = |cell: &Cell| {
            let [x, y] = cell.middle;
            (x - x0).min(y - y0).min(x1 - x).min(y1 - y) > EPSILON
        };
        let candidate = |cell: usize| {
            let overlap = complete_iou(corners(cell), [x0, y0, x1, y1]).0.max(0.0);
            let metric = score(cell, class).powf(SCORE_POWER) * overlap.powi(OVERLAP_POWER);
            Candidate { cell, of, overlap, metric }
        };
        let mut own: Vec<Candidate> = (0..cells.len()).filter(|&i| is_in(&cells[i])).map(candidate).collect();
        own.sort_by(|a, b| b.metric.total_cmp(&a.metric));
        inside.push(own);
    }
    // A cell that several boxes chose goes to the box, of all that it lies in, that it overlaps most.
    let chosen = inside.iter().flat_map(|own| own.iter().take(CELLS_OF_A_BOX));
    let mut times = vec![0u32; cells.len()];
    chosen.clone().for_each(|candidate| times[candidate.cell] += 1);
    let mut kept: Vec<Candidate> = chosen.copied().filter(|candidate| times[candidate.cell] == 1).collect();
    for cell in (0..cells.len()).filter(|&cell| times[cell] > 1) {
        let all = inside.iter().flatten().filter(|candidate| candidate.cell == cell);
        kept.extend(all.copied().reduce(|a, b| if b.overlap > a.overlap { b } else { a }));
    }
    for &of in here {
        let own = kept.iter().filter(|candidate| candidate.of == of);
        let most = |what: fn(&Candidate) -> f64| own.clone().map(what).fold(0.0, f64::max);
        let (metric, overlap) = (most(|c| c.metric), most(|c| c.overlap));
        answers.extend(own.clone().map(|candidate| Answer {
            image,
            cell: candidate.cell,
            of,
            score: candidate.metric * overlap / (metric + EPSILON),
        }));
    }
}
