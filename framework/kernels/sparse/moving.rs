//! From NHWC to lines and back.

use super::layout::{Planes, Side};
use super::tiles::{gather, scatter};
use super::{LANES, Line, Tile};
use crate::isa::Isa;
use crate::shared::Shared;
use std::ops::Range;

/// Floats of one item that are copied at once. A transposition touches 16 items, often a large power of two apart, where
/// neither prefetching nor a cache's sets serve it; so items are read and written in runs, through a small buffer
/// (measured: 10 instead of 30 to 45 cycles a line).
const RUN: usize = 256;
/// An odd number of lines from item to item.
const ITEM: usize = RUN + LANES;

/// A run of each of 16 items.
#[repr(C, align(64))]
pub struct Stage([f32; LANES * ITEM]);

impl Default for Stage {
    fn default() -> Stage {
        Stage([0.0; LANES * ITEM])
    }
}

/// Which part of the planes to copy.
#[derive(Clone)]
pub struct Part {
    pub group: usize,
    pub band: usize,
    pub channels: Range<usize>,
}

/// Copies the lines that a band needs: `lines[channel][row][line of the row]`.
pub fn fill(isa: Isa, data: &[f32], p: &Planes, part: Part, stage: &mut Stage, lines: &mut [Line]) {
    let (first, count) = (p.first_row(part.band), part.channels.len());
    let stage = &mut stage.0;
    for row in 0..p.rows {
        let y = usize::try_from(first + row as isize).ok().filter(|&y| y < p.from.height);
        let lanes = |column: usize| y.map_or(0, |y| p.from.lanes(part.group, y, column));
        let lines = &mut lines[row * p.width()..];
        let mut clear = |line: usize| {
            for channel in 0..count {
                lines[channel * p.plane + line] = Line([0.0; LANES]);
            }
        };
        p.zeros.iter().for_each(|&line| clear(line));
        p.columns.iter().filter(|&&(column, _)| lanes(column) == 0).for_each(|&(_, line)| clear(line));
        let filled = p.columns.iter().take_while(|&&(column, _)| lanes(column) > 0).count();
        let mut columns = &p.columns[..filled];
        while let (Some(y), Some(&(column, _))) = (y, columns.first()) {
            // Neighbouring columns that fit a run, where an item has several and all their channels are wanted.
            let together = p.from.lane > p.from.column && count == p.from.channels;
            let reach = if together { (RUN / count).max(1) } else { 1 };
            let (run, rest) = columns.split_at(columns.iter().take_while(|c| c.0 < column + reach).count());
            columns = rest;
            let from = p.from.at(part.group, y, column) + part.channels.start;
            let floats = (run[run.len() - 1].0 - column) * p.from.column + count;
            for start in (0..floats).step_by(RUN) {
                let len = (floats - start).min(RUN);
                for lane in 0..lanes(column) {
                    let item = &data[from + lane * p.from.lane + start..][..len];
                    stage[lane * ITEM..][..len].copy_from_slice(item);
                }
                for &(c, line) in run {
                    let (at, channels) = ((c - column) * p.from.column, count.min(len));
                    let to = &mut lines[start * p.plane + line..];
                    gather(isa, &stage[at..], ITEM, lanes(c), channels, p.plane, to);
                }
            }
        }
    }
}

/// Where results go: result (i, j) of phase (a, b) is pixel (i * `phases[0]` + a, j * `phases[1]` + b).
#[derive(Clone, Copy)]
pub struct Results {
    pub to: Side,
    pub phases: [usize; 2],
}

/// A tile of results that begins at (i, j) of a phase, with channels `channels`.
pub struct Place {
    pub group: usize,
    pub phase: usize,
    pub i: usize,
    pub j: usize,
    pub channels: Range<usize>,
}

impl Results {
    /// Rows and columns of the largest phase.
    pub fn grid(&self) -> (usize, usize) {
        (self.to.height.div_ceil(self.phases[0]), self.to.width.div_ceil(self.phases[1]))
    }

    /// Writes `sums[channel][tile]` to where its pixels lie; those beyond the edge are dropped.
    ///
    /// # Safety
    /// No other task writes these channels of these pixels.
    pub unsafe fn write(
        &self,
        isa: Isa,
        tile: Tile,
        sums: &[Line],
        at: &Place,
        stage: &mut Stage,
        out: Shared<f32>,
    ) {
        let Results { to, phases } = self;
        let stage = &mut stage.0;
        for p in 0..tile.lines() {
            let row = (at.i + p / tile.columns) * phases[0] + at.phase / phases[1];
            let column = (at.j + p % tile.columns) * phases[1] + at.phase % phases[1];
            if row >= to.height || column >= to.width {
                continue;
            }
            let (lanes, first) = (to.lanes(at.group, row, column), to.at(at.group, row, column));
            if lanes == 0 {
                continue;
            }
            for run in at.channels.clone().step_by(RUN) {
                let count = (at.channels.end - run).min(RUN);
                let from = &sums[(run - at.channels.start) * tile.lines() + p..];
                scatter(isa, from, tile.lines(), count, ITEM, stage);
                for lane in 0..lanes {
                    // SAFETY: the channels of an item at this place, which by the caller's promise are this task's.
                    let item = unsafe { out.part(first + lane * to.lane + run, count) };
                    item.copy_from_slice(&stage[lane * ITEM..][..count]);
                }
            }
        }
    }
}
