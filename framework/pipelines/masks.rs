//! Masks of objects: sums of prototypes (Bolya et al., 2019, arXiv:1904.02689, section 3), and COCO's way of writing them.

use crate::heads::Prototypes;
use crate::letterbox::Letterbox;
use serde::Serialize;
use std::ops::Range;

/// Which pixels of a picture belong to an object, as COCO's uncompressed run lengths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mask {
    /// Height and width of the picture.
    pub size: [usize; 2],
    /// Pixels column by column from the left, each from the top: so many that do not belong to it, so many that do, and so on
    /// in turn.
    pub counts: Vec<u32>,
}

impl Mask {
    /// Of bits for each column of the picture that has any; `columns(x)` are those of column x from row `first` on.
    fn of_columns(
        size: [usize; 2],
        [left, right]: [usize; 2],
        first: usize,
        columns: impl Fn(usize) -> Vec<bool>,
    ) -> Mask {
        let [h, w] = size;
        let mut runs = Runs { counts: vec![0], inside: false };
        runs.add(false, left * h);
        for x in left..right {
            let bits = columns(x);
            runs.add(false, first);
            bits.iter().for_each(|&bit| runs.add(bit, 1));
            runs.add(false, h - first - bits.len());
        }
        runs.add(false, (w - right) * h);
        Mask { size, counts: runs.counts }
    }

    /// Columns, and rows in each, of the pixels that belong to the object; a column may come more than once.
    pub fn pixels(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let h = self.size[0].max(1);
        let mut at = 0;
        let runs = self.counts.iter().enumerate().filter_map(move |(i, &n)| {
            let run = at..at + n as usize;
            at = run.end;
            (i % 2 == 1).then_some(run)
        });
        // A run may go on in the next column.
        runs.flat_map(move |run| {
            let columns = run.start / h..run.end.div_ceil(h);
            columns.map(move |x| (x, run.start.max(x * h) - x * h..run.end.min((x + 1) * h) - x * h))
        })
    }

    /// Number of pixels that belong to the object.
    pub fn area(&self) -> usize {
        self.counts.iter().skip(1).step_by(2).map(|&n| n as usize).sum()
    }
}

/// Run lengths so far, and what the last of them counts.
struct Runs {
    counts: Vec<u32>,
    inside: bool,
}

impl Runs {
    fn add(&mut self, bit: bool, n: usize) {
        if bit != self.inside && n > 0 {
            self.inside = bit;
            self.counts.push(0);
        }
        if let Some(last) = self.counts.last_mut() {
            // A picture has at most 2^26 pixels.
            *last += n as u32;
        }
    }
}

/// The mask of the object in the box `corners` of the picture: the sigmoid of the weighted sum of prototypes, between their
/// pixels linear, more than one half; nothing outside of the box. `planes` are the prototypes [count, h, w], which cover the
/// network's input of `size` (height, width), in which the picture lies as `placed` says.
pub fn mask(
    coefficients: &[f32],
    planes: &[f32],
    prototypes: Prototypes,
    size: [usize; 2],
    placed: &Letterbox,
    corners: [f32; 4],
) -> Mask {
    let picture = placed.picture.map(|side| side as usize);
    let inside = |v: f32, axis: usize| (v.ceil().max(0.0) as usize).min(picture[axis]);
    let [left, top, right, bottom] =
        [inside(corners[0], 0), inside(corners[1], 1), inside(corners[2], 0), inside(corners[3], 1)];
    let whole = [picture[1], picture[0]];
    if left >= right || top >= bottom {
        return Mask { size: whole, counts: vec![(whole[0] * whole[1]) as u32] };
    }
    let cells = [prototypes.w, prototypes.h];
    // Where the middle of a pixel of the picture lies between the middles of prototypes' pixels: the one before, the one
    // behind, and how far from the first.
    let between = |place: usize, axis: usize| {
        let at = placed.place([place as f32 + 0.5; 2])[axis];
        let at = at * cells[axis] as f32 / size[1 - axis] as f32 - 0.5;
        let at = at.clamp(0.0, (cells[axis] - 1) as f32);
        let before = at as usize;
        (before, (before + 1).min(cells[axis] - 1), at - before as f32)
    };
    let (x0, x1) = (between(left, 0).0, between(right - 1, 0).1);
    let (y0, y1) = (between(top, 1).0, between(bottom - 1, 1).1);
    let columns = x1 + 1 - x0;
    let mut soft = vec![0.0; columns * (y1 + 1 - y0)];
    for (plane, coefficient) in planes.chunks_exact(cells[0] * cells[1]).zip(coefficients) {
        for (y, row) in soft.chunks_exact_mut(columns).enumerate() {
            let from = &plane[(y0 + y) * cells[0] + x0..][..columns];
            row.iter_mut().zip(from).for_each(|(sum, v)| *sum += coefficient * v);
        }
    }
    soft.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));

    let rows: Vec<(usize, usize, f32)> = (top..bottom).map(|y| between(y, 1)).collect();
    Mask::of_columns(whole, [left, right], top, |x| {
        let (a, b, part) = between(x, 0);
        let across = |row: usize| {
            let row = &soft[(row - y0) * columns..][..columns];
            row[a - x0] + (row[b - x0] - row[a - x0]) * part
        };
        let bit = |&(a, b, part): &(usize, usize, f32)| {
            let upper = across(a);
            upper + (across(b) - upper) * part > 0.5
        };
        rows.iter().map(bit).collect()
    })
}
