//! What detectors give, as boxes: one row of [`Head`] for each way in which they say it.
//!
//! ```text
//! Anchors   a map [A * (5 + classes), h, w] for each level: YOLOv3 and v5 before decoding
//! Dfl       a map [4 * bins + classes, h, w] for each level: YOLOv8 before decoding
//! Rows      [boxes, 5 + classes] of centre, size, objectness, classes: YOLOv5 as others export it
//! Columns   [4 + classes, boxes] of centre, size, classes: YOLOv8 as others export it
//! Grid      [cells, 5 + classes] of offsets in cells: YOLOX
//! ```

use crate::boxes::Detection;
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
    /// The head of a network of others, told from the shapes of its results (without the batch) and its input.
    pub fn of_shapes(shapes: &[Vec<usize>], [h, w]: [usize; 2]) -> Option<Head> {
        let strides = vec![8, 16, 32];
        let cells: usize = strides.iter().map(|s| (h / s) * (w / s)).sum();
        match shapes {
            [one] => match *one.as_slice() {
                [n, k] if k > 5 && n == cells => Some(Head::Grid { strides }),
                [n, k] if k > 5 && n > k => Some(Head::Rows),
                [k, n] if k > 4 && n > k => Some(Head::Columns),
                _ => None,
            },
            _ => None,
        }
    }

    /// Number of classes, if shapes (without the batch) are those that this head makes of an input of `h` x `w`.
    pub fn classes(&self, shapes: &[Vec<usize>], [h, w]: [usize; 2]) -> Option<usize> {
        let maps = |strides: &[usize]| {
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
        let classes = match self {
            Head::Anchors { strides, anchors } => {
                let per_cell = anchors.first()?.len();
                let alike = anchors.len() == strides.len() && anchors.iter().all(|a| a.len() == per_cell);
                let channels =
                    maps(strides).filter(|c| alike && per_cell > 0 && c.is_multiple_of(per_cell))?;
                (channels / per_cell).checked_sub(5)?
            }
            Head::Dfl { strides, bins } => maps(strides)?.checked_sub(bins.checked_mul(4)?)?,
            Head::Rows => {
                let [_, k]: [usize; 2] = table()?;
                k.checked_sub(5)?
            }
            Head::Columns => {
                let [k, _]: [usize; 2] = table()?;
                k.checked_sub(4)?
            }
            Head::Grid { strides } => {
                let [n, k]: [usize; 2] = table()?;
                let cells =
                    strides.iter().map(|&s| Some(h.checked_div(s)? * w.checked_div(s)?)).sum::<Option<_>>();
                k.checked_sub(5).filter(|_| cells == Some(n))?
            }
        };
        (classes > 0).then_some(classes)
    }

    /// Every box whose best class scores at least `least`. Shapes are those that [`Head::classes`] accepted.
    pub fn decode(&self, results: &[Result<'_>], [h, w]: [usize; 2], least: f32) -> Vec<Detection> {
        let mut found = Vec::new();
        match self {
            Head::Anchors { strides, anchors } => {
                for ((stride, anchors), map) in strides.iter().zip(anchors).zip(results) {
                    anchor_map(map, *stride as f32, anchors, least, &mut found);
                }
            }
            Head::Dfl { strides, bins } => {
                for (stride, map) in strides.iter().zip(results) {
                    dfl_map(map, *stride as f32, *bins, least, &mut found);
                }
            }
            Head::Rows => {
                rows(&results[0], |row| (corners(row[0], row[1], row[2], row[3]), row[4]), least, &mut found)
            }
            Head::Columns => columns(&results[0], least, &mut found),
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
        }
        found.retain(|d| d.corners.iter().all(|v| v.is_finite()));
        found
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
    found: &mut Vec<Detection>,
) {
    for row in table.values.chunks_exact(table.dims[1]) {
        let (corners, object) = shape(row);
        if object < least {
            continue;
        }
        let (class, score) = best(row.len() - 5, |c| row[5 + c] * object);
        if score >= least {
            found.push(Detection { corners, class, score });
        }
    }
}

fn columns(table: &Result<'_>, least: f32, found: &mut Vec<Detection>) {
    let (k, n) = (table.dims[0], table.dims[1]);
    let at = |row: usize, i: usize| table.values[row * n + i];
    for i in 0..n {
        let (class, score) = best(k - 4, |c| at(4 + c, i));
        if score >= least {
            found.push(Detection { corners: corners(at(0, i), at(1, i), at(2, i), at(3, i)), class, score });
        }
    }
}

/// Ultralytics' YOLOv5: centres up to half a cell outside of their cell, sizes up to four anchors.
fn anchor_map(map: &Result<'_>, stride: f32, anchors: &[[f32; 2]], least: f32, found: &mut Vec<Detection>) {
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
                found.push(Detection { corners, class, score });
            }
        }
    }
}

/// Distances from the middle of a cell to the four sides, each the mean of a distribution over `bins` whole numbers (Li et
/// al., 2020, arXiv:2006.04388).
fn dfl_map(map: &Result<'_>, stride: f32, bins: usize, least: f32, found: &mut Vec<Detection>) {
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
        found.push(Detection { corners, class, score });
    }
}
