//! Weight gradients: a line of sums per open weight, over all pixels and items.

use super::layout::{Planes, at_least};
use super::moving::{Part, fill};
use super::product::Reading;
use super::tiles::{correlate, sum_lines};
use super::{LANES, SCRATCH, Scratch, TASKS, Tile};
use crate::isa::Isa;
use crate::shared::Shared;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

thread_local! {
    static PARTIAL: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// How the work is cut: into parts of the pixels, each with sums of its own, times parts of the output channels, each with
/// a copy of the input's lines.
struct Cut {
    pixel_parts: usize,
    channels: usize,
    channel_parts: usize,
}

impl Cut {
    /// The cheapest of the cuts into enough tasks. A line costs about 15 cycles to copy, an open weight about 15 to sum up
    /// and to add to other parts'.
    fn new(units: usize, lines: usize, channels: usize, open: usize) -> Cut {
        let cut = |pixel_parts: usize| {
            let parts = TASKS.div_ceil(pixel_parts).min(channels.div_ceil(LANES)).max(1);
            let part = channels.div_ceil(parts).next_multiple_of(LANES);
            Cut { pixel_parts, channels: part, channel_parts: channels.div_ceil(part) }
        };
        let cost = |cut: &Cut| {
            // Fewer tasks than wanted leave threads idle.
            let idle = TASKS.div_ceil(cut.pixel_parts * cut.channel_parts);
            idle * (cut.channel_parts * lines + cut.pixel_parts * open)
        };
        let cuts = [1, 2, 4, 8].into_iter().filter(|&parts| parts <= units).map(cut);
        cuts.min_by_key(cost).expect("one part at least")
    }
}

/// `dw[o][c][taps]` where the list by output is open, of x as `reading` reads it and dy as `results` lays it out.
pub fn gradient(
    isa: Isa,
    tile: Tile,
    (x, reading): (&[f32], &Reading),
    (dy, results): (&[f32], &Planes),
    dw: &mut [f32],
) {
    let Reading { planes: p, list, .. } = reading;
    let (groups, bands) = (results.from.groups(), results.from.height.div_ceil(p.band));
    let (units, open) = (groups * bands, list.entries.len());
    if units == 0 || open == 0 {
        return dw.fill(0.0);
    }
    let cut = Cut::new(units, units * p.len(list.channels), list.rows, open);
    // Taken, not borrowed: while this thread waits it may start on another gradient.
    let mut partial = PARTIAL.take();
    if partial.len() < cut.pixel_parts * open {
        partial.resize(cut.pixel_parts * open, 0.0);
    }
    let sums_of_parts = Shared::new(&mut partial);
    (0..cut.pixel_parts * cut.channel_parts).into_par_iter().for_each(|task| {
        let (part, channel_part) = (task / cut.channel_parts, task % cut.channel_parts);
        let channels = channel_part * cut.channels..list.rows.min((channel_part + 1) * cut.channels);
        let of_part = part * units / cut.pixel_parts..(part + 1) * units / cut.pixel_parts;
        SCRATCH.with_borrow_mut(|Scratch { planes, others, sums, stage }| {
            let lines = at_least(planes, p.len(list.channels));
            let others = at_least(others, results.len(channels.len()));
            let count = (0..list.blocks()).map(|b| list.entries_of(b, channels.clone()).len()).sum();
            let sums = at_least(sums, count);
            for unit in of_part.clone() {
                let (group, band) = (unit / bands, unit % bands);
                fill(isa, x, p, Part { group, band, channels: 0..list.channels }, stage, lines);
                fill(isa, dy, results, Part { group, band, channels: channels.clone() }, stage, others);
                let rows = results.band.min(results.from.height - band * results.band);
                let mut first_sum = 0;
                for b in 0..list.blocks() {
                    let count = list.entries_of(b, channels.clone()).len();
                    let sums = &mut sums[first_sum..][..count];
                    first_sum += count;
                    for i in (0..rows).step_by(tile.rows) {
                        for j in (0..results.from.width).step_by(tile.columns) {
                            let block = reading.block(b, channels.clone(), lines, i * p.step + j);
                            let others = (&others[i * results.step + j..], results.plane, results.step);
                            let fresh = unit == of_part.start && i == 0 && j == 0;
                            correlate(isa, tile, &block, others, fresh, sums);
                        }
                    }
                }
            }
            let mut first_sum = 0;
            for b in 0..list.blocks() {
                let Range { start, end } = list.entries_of(b, channels.clone());
                // SAFETY: these weights of this part are this task's alone.
                let to = unsafe { sums_of_parts.part(part * open + start, end - start) };
                sum_lines(isa, &sums[first_sum..][..to.len()], to);
                first_sum += to.len();
            }
        });
    });
    let row = list.channels * list.taps;
    dw.par_chunks_mut(row * LANES).enumerate().for_each(|(chunk, dw)| {
        for (o, dw) in dw.chunks_exact_mut(row).enumerate() {
            dw.fill(0.0);
            for (b, dw) in dw.chunks_mut(list.block * list.taps).enumerate() {
                let o = chunk * LANES + o;
                for at in list.entries_of(b, o..o + 1) {
                    let sum = (0..cut.pixel_parts).map(|part| partial[part * open + at]).sum();
                    dw[list.entries[at].place as usize] = sum;
                }
            }
        }
    });
    PARTIAL.set(partial);
}
