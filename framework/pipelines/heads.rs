//! What detectors give, as boxes: one row of [`Head`] for each way in which they say it.
//!
//! ```text
//! Anchors   a map [A * (5 + classes), h, w] for each level: YOLOv3 and v5 before decoding
//! Dfl       a map [4 * bins + classes, h, w] for each level: YOLOv8 before decoding
//! Rows      [boxes, 5 + classes] of centre, size, objectness, classes: YOLOv5 as others export it
//! Columns   [4 + classes, boxes] of centre, size, classes: YOLOv8 as others export it
//! Grid      [cells, 5 + classes] of offsets in cells: YOLOX
//! Priors    [boxes, 4] and [boxes, 1 + classes], or each transposed: SSD and YOLACT
//! ```
//! Networks that find masks, too, give coefficients with every box, and prototypes [masks, h, w] last: a mask is the sum of
//! the prototypes times the coefficients (Bolya et al., 2019, arXiv:1904.02689).
//!
//! ```text
//! Dfl       a map [masks, h, w] more for each level
//! Columns   masks more rows: [4 + classes + masks, boxes]
//! Priors    a table more: [boxes, masks]
//! ```

use crate::boxes::Detection;
use crate::priors::{Priors, Scores};
use serde::{Deserialize, Serialize};

/// How results are to be read. Lengths are in pixels of the network's input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Head {
    Anchors { strides: Vec<usize>, anchors: Vec<Vec<[f32; 2]>> },
    Dfl { strides: Vec<usize>, bins: usize },
    Rows,
    Columns,
    Grid { strides: Vec<usize> },
    Priors(Priors),
}

/// What shapes of results say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    pub classes: usize,
    pub masks: Option<Prototypes>,
}

/// Number, height and width of prototypes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prototypes {
    pub count: usize,
    pub h: usize,
    pub w: usize,
}

/// A box, and the place among all boxes of the network where it was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub detection: Detection,
    pub place: usize,
}

/// One result of a network, of one picture, without the batch.
#[derive(Clone, Copy, Debug)]
pub struct Result<'a> {
    pub dims: &'a [usize],
    pub values: &'a [f32],
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn corners(x: f32, y: f32, w: f32, h: f32) -> [f32; 4] {
    [x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0]
}

impl Head {
    /// Number of classes, if shapes (without the batch) are those that this head makes of an input of `h` x `w`.
    pub fn classes(&self, shapes: &[Vec<usize>], size: [usize; 2]) -> Option<usize> {
        Some(self.contents(shapes, size)?.classes)
    }

    /// What results of these shapes (without the batch) hold, if this head makes them of an input of `h` x `w`.
    pub fn contents(&self, shapes: &[Vec<usize>], [h, w]: [usize; 2]) -> Option<Contents> {
        let maps = |strides: &[usize], shapes: &[Vec<usize>]| {
            let fits = |(s, shape): (&usize, &Vec<usize>)| {
                *s > 0 && shape.len() == 3 && shape[1] == h / s && shape[2] == w / s
            };
            let channels = shapes.first()?.first()?;
            let alike = shapes.iter().all(|shape| shape.first() == Some(channels));
            (shapes.len() == strides.len() && alike && strides.iter().zip(shapes).all(fits))
                .then_some(*channels)
        };
        let table = || match shapes {
            [one] => one.as_slice().try_into().ok(),
            _ => None,
        };
        let mut masks = None;
        let classes = match self {
            Head::Anchors { strides, anchors } => {
                let per_cell = anchors.first()?.len();
                let alike = anchors.len() == strides.len() && anchors.iter().all(|a| a.len() == per_cell);
                let channels =
                    maps(strides, shapes).filter(|c| alike && per_cell > 0 && c.is_multiple_of(per_cell))?;
                (channels / per_cell).checked_sub(5)?
            }
            Head::Dfl { strides, bins } => {
                let (boxes, rest) = shapes.split_at_checked(strides.len())?;
                if let Some((last, coefficients)) = rest.split_last() {
                    let found = prototypes(last)?;
                    masks = Some(found).filter(|m| maps(strides, coefficients) == Some(m.count));
                    masks?;
                }
                maps(strides, boxes)?.checked_sub(bins.checked_mul(4)?)?
            }
            Head::Rows => {
                let [_, k]: [usize; 2] = table()?;
                k.checked_sub(5)?
            }
            Head::Columns => {
                let (first, rest) = shapes.split_first()?;
                let &[k, _] = first.as_slice() else { return None };
                masks = match rest {
                    [] => None,
                    [one] => Some(prototypes(one)?),
                    _ => return None,
                };
                k.checked_sub(4 + masks.map_or(0, |m| m.count))?
            }
            Head::Grid { strides } => {
                let [n, k]: [usize; 2] = table()?;
                let cells =
                    strides.iter().map(|&s| Some(h.checked_div(s)? * w.checked_div(s)?)).sum::<Option<_>>();
                k.checked_sub(5).filter(|_| cells == Some(n))?
            }
            Head::Priors(priors) => {
                let width = |shape: &Vec<usize>| match *shape.as_slice() {
                    [n, k] if n == priors.len() => Some(k),
                    [k, n] if n == priors.len() => Some(k),
                    _ => None,
                };
                let (tables, last) = match shapes {
                    [_, _] => (shapes, None),
                    [tables @ .., last] if tables.len() == 3 => (tables, Some(last)),
                    _ => return None,
                };
                if let Some(last) = last {
                    masks = Some(prototypes(last)?).filter(|m| width(&tables[2]) == Some(m.count));
                    masks?;
                }
                width(&tables[1])?.checked_sub(1).filter(|_| width(&tables[0]) == Some(4))?
            }
        };
        (classes > 0).then_some(Contents { classes, masks })
    }

    /// Every box whose best class scores at least `least`. Shapes are those that [`Head::classes`] accepted.
    pub fn decode(&self, results: &[Result<'_>], size: [usize; 2], least: f32) -> Vec<Detection> {
        self.candidates(results, size, least).into_iter().map(|c| c.detection).collect()
    }

    /// [`Head::decode`], with the places of the boxes.
    pub fn candidates(&self, results: &[Result<'_>], [h, w]: [usize; 2], least: f32) -> Vec<Candidate> {
        let mut found = Vec::new();
        match self {
            Head::Anchors { strides, anchors } => {
                let mut first = 0;
                for ((stride, anchors), map) in strides.iter().zip(anchors).zip(results) {
                    anchor_map(map, *stride as f32, anchors, first, least, &mut found);
                    first += anchors.len() * map.dims[1] * map.dims[2];
                }
            }
            Head::Dfl { strides, bins } => {
                let mut first = 0;
                for (stride, map) in strides.iter().zip(results) {
                    dfl_map(map, *stride as f32, *bins, first, least, &mut found);
                    first += map.dims[1] * map.dims[2];
                }
            }
            Head::Rows => {
                rows(&results[0], |row| (corners(row[0], row[1], row[2], row[3]), row[4]), least, &mut found)
            }
            Head::Columns => {
                let masks = results.get(1).map_or(0, |prototypes| prototypes.dims[0]);
                columns(&results[0], masks, least, &mut found)
            }
            Head::Grid { strides } => {
                let cells: Vec<[f32; 3]> = strides
                    .iter()
                    .flat_map(|&s| (0..(h / s) * (w / s)).map(move |i| [i % (w / s), i / (w / s), s]))
                    .map(|cell| cell.map(|v| v as f32))
                    .collect();
                let mut cells = cells.iter();
                let cell = |row: &[f32]| {
                    let &[x, y, s] = cells.next().unwrap_or(&[0.0; 3]);
                    let (w, h) = (row[2].exp() * s, row[3].exp() * s);
                    (corners((row[0] + x) * s, (row[1] + y) * s, w, h), row[4])
                };
                rows(&results[0], cell, least, &mut found);
            }
            Head::Priors(priors) => tables(priors, results, [h, w], least, &mut found),
        }
        found.retain(|c| c.detection.corners.iter().all(|v| v.is_finite()));
        found
    }

    /// What the prototypes are multiplied by for the box at `place`. Shapes are those in which [`Head::contents`] found masks.
    pub fn coefficients(&self, results: &[Result<'_>], place: usize) -> Vec<f32> {
        let Some((prototypes, others)) = results.split_last() else { return Vec::new() };
        let count = prototypes.dims[0];
        match self {
            Head::Columns => {
                let (k, n) = (others[0].dims[0], others[0].dims[1]);
                (k - count..k).map(|row| others[0].values[row * n + place]).collect()
            }
            Head::Dfl { strides, .. } => {
                let mut at = place;
                for map in &others[strides.len()..] {
                    let cells = map.dims[1] * map.dims[2];
                    if at < cells {
                        return (0..count).map(|channel| map.values[channel * cells + at]).collect();
                    }
                    at -= cells;
                }
                Vec::new()
            }
            Head::Priors(priors) => {
                let table = Table::new(&others[2], priors.len());
                (0..count).map(|i| table.at(place, i)).collect()
            }
            Head::Anchors { .. } | Head::Rows | Head::Grid { .. } => Vec::new(),
        }
    }
}

/// Prototypes [count, h, w], if a result is that.
fn prototypes(shape: &[usize]) -> Option<Prototypes> {
    match *shape {
        [count, h, w] if count * h * w > 0 => Some(Prototypes { count, h, w }),
        _ => None,
    }
}

/// The class that scores best, by `score(class)`.
fn best(classes: usize, score: impl Fn(usize) -> f32) -> (usize, f32) {
    (0..classes).map(|c| (c, score(c))).fold((0, f32::MIN), |a, b| if b.1 > a.1 { b } else { a })
}

/// Rows of a box, its objectness, and classes; `shape` gives corners and objectness.
fn rows(
    table: &Result<'_>,
    mut shape: impl FnMut(&[f32]) -> ([f32; 4], f32),
    least: f32,
    found: &mut Vec<Candidate>,
) {
    for (place, row) in table.values.chunks_exact(table.dims[1]).enumerate() {
        let (corners, object) = shape(row);
        if object < least {
            continue;
        }
        let (class, score) = best(row.len() - 5, |c| row[5 + c] * object);
        if score >= least {
            found.push(Candidate { detection: Detection { corners, class, score }, place });
        }
    }
}

/// The last `masks` rows are coefficients.
fn columns(table: &Result<'_>, masks: usize, least: f32, found: &mut Vec<Candidate>) {
    let (k, n) = (table.dims[0], table.dims[1]);
    let at = |row: usize, i: usize| table.values[row * n + i];
    for place in 0..n {
        let (class, score) = best(k - 4 - masks, |c| at(4 + c, place));
        if score >= least {
            let corners = corners(at(0, place), at(1, place), at(2, place), at(3, place));
            found.push(Candidate { detection: Detection { corners, class, score }, place });
        }
    }
}

/// A table with a row, or a column, for each of `boxes`.
struct Table<'a> {
    values: &'a [f32],
    /// From one box to the next, and from one of its elements to the next.
    steps: [usize; 2],
    width: usize,
}

impl<'a> Table<'a> {
    fn new(result: &Result<'a>, boxes: usize) -> Table<'a> {
        let [n, k] = [result.dims[0], result.dims[1]];
        match n == boxes {
            true => Table { values: result.values, steps: [k, 1], width: k },
            false => Table { values: result.values, steps: [1, k], width: n },
        }
    }

    fn at(&self, place: usize, i: usize) -> f32 {
        self.values[place * self.steps[0] + i * self.steps[1]]
    }
}

/// Offsets from prior boxes, and scores. Each class that scores enough is an object of its own.
fn tables(
    priors: &Priors,
    results: &[Result<'_>],
    [h, w]: [usize; 2],
    least: f32,
    found: &mut Vec<Candidate>,
) {
    let n = priors.len();
    let (offsets, scores) = (Table::new(&results[0], n), Table::new(&results[1], n));
    let [centre, side] = priors.variances;
    let (y, x) = if priors.y_first { (0, 1) } else { (1, 0) };
    for (place, [px, py, pw, ph]) in priors.boxes().enumerate() {
        let raw = |class: usize| scores.at(place, class);
        let (top, sum) = match priors.scores {
            Scores::Softmax => {
                let top = (0..scores.width).map(raw).fold(f32::MIN, f32::max);
                (top, (0..scores.width).map(|c| (raw(c) - top).exp()).sum::<f32>())
            }
            Scores::Sigmoid | Scores::Shares => (0.0, 1.0),
        };
        for class in 1..scores.width {
            let score = match priors.scores {
                Scores::Softmax => (raw(class) - top).exp() / sum,
                Scores::Sigmoid => sigmoid(raw(class)),
                Scores::Shares => raw(class),
            };
            if score >= least {
                let offset = |i: usize| offsets.at(place, i);
                let corners = corners(
                    (px + offset(x) * centre * pw) * w as f32,
                    (py + offset(y) * centre * ph) * h as f32,
                    pw * (offset(2 + x) * side).exp() * w as f32,
                    ph * (offset(2 + y) * side).exp() * h as f32,
                );
                found.push(Candidate { detection: Detection { corners, class: class - 1, score }, place });
            }
        }
    }
}

/// Ultralytics' YOLOv5: centres up to half a cell outside of their cell, sizes up to four anchors.
fn anchor_map(
    map: &Result<'_>,
    stride: f32,
    anchors: &[[f32; 2]],
    first: usize,
    least: f32,
    found: &mut Vec<Candidate>,
) {
    let (h, w) = (map.dims[1], map.dims[2]);
    let per_anchor = map.dims[0] / anchors.len();
    for (a, anchor) in anchors.iter().enumerate() {
        for i in 0..h * w {
            let raw = |channel: usize| map.values[(a * per_anchor + channel) * h * w + i];
            let object = sigmoid(raw(4));
            if object < least {
                continue;
            }
            let (class, logit) = best(per_anchor - 5, |c| raw(5 + c));
            let score = object * sigmoid(logit);
            if score >= least {
                let centre =
                    |channel: usize, cell: usize| (2.0 * sigmoid(raw(channel)) - 0.5 + cell as f32) * stride;
                let size = |channel: usize, anchor: f32| (2.0 * sigmoid(raw(channel))).powi(2) * anchor;
                let corners =
                    corners(centre(0, i % w), centre(1, i / w), size(2, anchor[0]), size(3, anchor[1]));
                let place = first + a * h * w + i;
                found.push(Candidate { detection: Detection { corners, class, score }, place });
            }
        }
    }
}

/// Distances from the middle of a cell to the four sides, each the mean of a distribution over `bins` whole numbers (Li et
/// al., 2020, arXiv:2006.04388).
fn dfl_map(map: &Result<'_>, stride: f32, bins: usize, first: usize, least: f32, found: &mut Vec<Candidate>) {
    let (c, h, w) = (map.dims[0], map.dims[1], map.dims[2]);
    for i in 0..h * w {
        let raw = |channel: usize| map.values[channel * h * w + i];
        let (class, logit) = best(c - 4 * bins, |c| raw(4 * bins + c));
        let score = sigmoid(logit);
        if score < least {
            continue;
        }
        let distance = |side: usize| {
            let logits = (0..bins).map(|b| raw(side * bins + b));
            let top = logits.clone().fold(f32::MIN, f32::max);
            let (sum, mean) = logits.enumerate().fold((0.0, 0.0), |(sum, mean), (b, x)| {
                let e = (x - top).exp();
                (sum + e, mean + e * b as f32)
            });
            mean / sum
        };
        let (x, y) = ((i % w) as f32 + 0.5, (i / w) as f32 + 0.5);
        let corners =
            [x - distance(0), y - distance(1), x + distance(2), y + distance(3)].map(|v| v * stride);
        found.push(Candidate { detection: Detection { corners, class, score }, place: first + i });
    }
}
