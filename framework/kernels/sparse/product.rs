//! Results and input gradients: tiles of sums over the open weights of each row.

use super::layout::{Planes, at_least};
use super::moving::{Part, Place, Results, fill};
use super::pattern::List;
use super::tiles::{Block, accumulate};
use super::{LANES, Line, SCRATCH, Scratch, TASKS, Tile};
use crate::isa::Isa;
use crate::shared::Shared;
use rayon::prelude::*;
use std::ops::Range;

/// The lines that each open weight of a list multiplies.
pub struct Reading<'a> {
    pub planes: &'a Planes,
    pub list: &'a List,
    /// By place in a block: lines from a tile's first line.
    offsets: Vec<u32>,
}

impl<'a> Reading<'a> {
    pub fn new(planes: &'a Planes, list: &'a List) -> Reading<'a> {
        let line = |place| (place / list.taps * planes.plane + planes.taps[place % list.taps]) as u32;
        Reading { planes, list, offsets: (0..list.block * list.taps).map(line).collect() }
    }

    /// Block b of `rows` at the tile whose first line is `first` of a plane.
    pub fn block<'b>(&'b self, b: usize, rows: Range<usize>, lines: &'b [Line], first: usize) -> Block<'b> {
        let list = self.list;
        let channel = b * list.block;
        let channels = list.block.min(list.channels - channel);
        Block {
            starts: &list.starts[b * list.rows..][rows.start..=rows.end],
            entries: &list.entries,
            offsets: &self.offsets[..channels * list.taps],
            lines: &lines[channel * self.planes.plane + first..],
            step: self.planes.step,
        }
    }
}

/// Rows of equal parts of `rows`, multiples of 16, so that `units` units in so many parts are enough tasks.
fn rows_of_part(rows: usize, units: usize) -> usize {
    let parts = TASKS.div_ceil(units.max(1)).min(rows.div_ceil(LANES)).max(1);
    rows.div_ceil(parts).next_multiple_of(LANES)
}

/// `results[phase][channel]` = bias + the open weights of row (phase, channel) times what they read of `data`.
pub fn product(
    isa: Isa,
    tile: Tile,
    data: &[f32],
    reading: &Reading,
    bias: Option<&[f32]>,
    results: Results,
    out: &mut [f32],
) {
    let Reading { planes: p, list, .. } = reading;
    let to = results.to;
    if out.is_empty() {
        return;
    }
    let (grid_rows, grid_columns) = results.grid();
    let (groups, bands) = (to.groups(), grid_rows.div_ceil(p.band));
    let rows = rows_of_part(to.channels, groups * bands);
    let parts = to.channels.div_ceil(rows);
    let initial = bias.map_or_else(|| vec![0.0; to.channels], <[f32]>::to_vec);
    let out = Shared::new(out);
    (0..groups * bands * parts).into_par_iter().for_each(|task| {
        let (group, band, part) = (task / parts / bands, task / parts % bands, task % parts);
        let channels = part * rows..to.channels.min((part + 1) * rows);
        let band_rows = band * p.band..grid_rows.min((band + 1) * p.band);
        SCRATCH.with_borrow_mut(|Scratch { planes, sums, stage, .. }| {
            let lines = at_least(planes, p.len(list.channels));
            fill(isa, data, p, Part { group, band, channels: 0..list.channels }, stage, lines);
            let sums = at_least(sums, channels.len() * tile.lines());
            for phase in 0..results.phases[0] * results.phases[1] {
                let list_rows = phase * to.channels + channels.start..phase * to.channels + channels.end;
                for i in band_rows.clone().step_by(tile.rows) {
                    for j in (0..grid_columns).step_by(tile.columns) {
                        let first = (i - band_rows.start) * p.step + j;
                        for b in 0..list.blocks() {
                            let block = reading.block(b, list_rows.clone(), lines, first);
                            let fresh = (b == 0).then_some(&initial[channels.clone()]);
                            accumulate(isa, tile, &block, fresh, sums);
                        }
                        let at = Place { group, phase, i, j, channels: channels.clone() };
                        // SAFETY: the tasks' groups, bands or channels differ, and the tiles of a task do.
                        unsafe { results.write(isa, tile, sums, &at, stage, out) };
                    }
                }
            }
        });
    });
}
