//! Which weights are open, in the order in which the kernels walk them.

use super::tiles::compress;
use super::{BLOCK_LINES, LANES, layout, tile};
use crate::isa::Isa;
use crate::{ConvShape, shared::Shared};
use rayon::prelude::*;
use std::ops::Range;

/// An open weight: its value, and its place among the input channels and taps of its block.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct Entry {
    pub value: f32,
    /// (channel in the block) * taps + tap.
    pub place: u32,
}

/// Open weights of a matrix `[rows][channels][taps]`, blocks of channels outermost: `(block, row)` owns
/// `entries[starts[block * rows + row]..starts[block * rows + row + 1]]`, channels ascending.
#[derive(Clone, Debug)]
pub struct List {
    pub rows: usize,
    pub channels: usize,
    pub taps: usize,
    /// Channels of a block: as many as keep their lines of a tile in L1.
    pub block: usize,
    pub starts: Vec<u32>,
    pub entries: Vec<Entry>,
}

/// The open positions and values of one weight `[o][c][kh][kw]`, by output channel and by input channel.
///
/// A weight is masked where its bits are those of +0.0.
#[derive(Clone, Debug)]
pub struct Pattern {
    pub(super) shape: ConvShape,
    pub(super) by_output: List,
    /// Rows are (phase, input channel), see [`layout::phase`].
    pub(super) by_input: List,
}

impl List {
    fn new(rows: usize, channels: usize, taps: usize, lines: usize) -> List {
        let block = (BLOCK_LINES / lines).clamp(1, channels.max(1));
        // Blocks of about equal size.
        let block = channels.div_ceil(channels.div_ceil(block).max(1)).max(1);
        List { rows, channels, taps, block, starts: Vec::new(), entries: Vec::new() }
    }

    pub fn blocks(&self) -> usize {
        self.channels.div_ceil(self.block)
    }

    /// Indices of the entries of `rows` in block b.
    pub fn entries_of(&self, b: usize, rows: Range<usize>) -> Range<usize> {
        let starts = &self.starts[b * self.rows..];
        starts[rows.start] as usize..starts[rows.end] as usize
    }

    /// Turns `starts[i + 1]` from counts into ends.
    fn sum_up(&mut self) {
        for i in 1..self.starts.len() {
            self.starts[i] += self.starts[i - 1];
        }
        self.entries.resize(self.starts.last().map_or(0, |&n| n as usize), Entry::default());
    }
}

impl Pattern {
    /// The pattern of `w`, which has the shape that `s` says. The images of `s` may be of any number and size.
    ///
    /// # Panics
    /// If `w` has another length, `s` has groups, or 2^32 weights or more.
    pub fn of(w: &[f32], s: &ConvShape) -> Pattern {
        Pattern::with(Isa::best(), w, s)
    }

    pub(super) fn with(isa: Isa, w: &[f32], s: &ConvShape) -> Pattern {
        assert_eq!(w.len(), s.w_len(), "a weight of {} elements for {s:?}", w.len());
        assert!(s.groups == 1 && w.len() < u32::MAX as usize, "no sparse kernel for {s:?}");
        let by_output = by_output(isa, w, s);
        let by_input = by_input(&by_output, s);
        Pattern { shape: *s, by_output, by_input }
    }

    /// Open weights.
    pub fn open(&self) -> usize {
        self.by_output.entries.len()
    }

    /// Open weights of all.
    pub fn density(&self) -> f64 {
        self.open() as f64 / self.shape.w_len().max(1) as f64
    }
}

/// Rows of a weight that a task reads.
const TASK_ROWS: usize = 16;

fn by_output(isa: Isa, w: &[f32], s: &ConvShape) -> List {
    let taps = s.kh * s.kw;
    let lines = layout::lines_per_channel(s, tile(s), false);
    let mut list = List::new(s.o, s.c, taps, lines);
    let (blocks, block) = (list.blocks(), list.block * taps);
    list.starts.resize(blocks * s.o + 1, 0);
    let row = s.c * taps;
    let counts = Shared::new(&mut list.starts);
    // The weight is read once: first the open weights of some rows by row, then all by block.
    let by_row = |(task, w): (usize, &[f32])| {
        let mut open: Vec<Entry> = Vec::new();
        let mut count = 0;
        for (o, w) in w.chunks_exact(row).enumerate() {
            for (b, w) in w.chunks(block).enumerate() {
                if open.len() < count + w.len() + LANES {
                    open.resize((open.len() * 2).max(count + w.len() + LANES), Entry::default());
                }
                let found = compress(isa, w, &mut open[count..]);
                count += found;
                // SAFETY: one element, of this row alone.
                unsafe { counts.part(1 + b * s.o + task * TASK_ROWS + o, 1) }.fill(found as u32);
            }
        }
        open
    };
    let by_row: Vec<Vec<Entry>> = w.par_chunks(row * TASK_ROWS).enumerate().map(by_row).collect();
    list.sum_up();
    let entries = &mut std::mem::take(&mut list.entries);
    let shared = Shared::new(entries);
    by_row.par_iter().enumerate().for_each(|(task, open)| {
        let mut open = &open[..];
        for o in task * TASK_ROWS..s.o.min((task + 1) * TASK_ROWS) {
            for b in 0..blocks {
                let Range { start, end } = list.entries_of(b, o..o + 1);
                // SAFETY: the entries of (b, o), which this task alone writes.
                unsafe { shared.part(start, end - start) }.copy_from_slice(&open[..end - start]);
                open = &open[end - start..];
            }
        }
    });
    list.entries = std::mem::take(entries);
    list
}

fn by_input(from: &List, s: &ConvShape) -> List {
    let taps = s.kh * s.kw;
    let phases = s.stride[0] * s.stride[1];
    let lines = layout::lines_per_channel(s, tile(s), true);
    let mut list = List::new(phases * s.c, s.o, taps, lines);
    let (blocks, block, rows) = (list.blocks(), list.block, list.rows);
    list.starts.resize(blocks * rows + 1, 0);
    // By place in a block of `from`: the row it goes to, without the block's channels, and its tap.
    let places: Vec<(usize, u32)> = (0..from.block * taps)
        .map(|place| (layout::phase(s, place % taps) * s.c + place / taps, (place % taps) as u32))
        .collect();
    let outputs = |b: usize| b * block..s.o.min((b + 1) * block);
    list.starts[1..].par_chunks_mut(rows.max(1)).enumerate().for_each(|(b, counts)| {
        visit(from, outputs(b), &places, |row, _| counts[row] += 1);
    });
    list.sum_up();
    let (starts, entries) = (&list.starts, Shared::new(&mut list.entries));
    (0..blocks).into_par_iter().for_each(|b| {
        let starts = &starts[b * rows..][..rows + 1];
        let first = starts[0];
        // SAFETY: the entries of block b, which this task alone writes.
        let to = unsafe { entries.part(first as usize, (starts[rows] - first) as usize) };
        let mut next: Vec<u32> = starts[..rows].iter().map(|start| start - first).collect();
        visit(from, outputs(b), &places, |row, entry| {
            to[next[row] as usize] = entry;
            next[row] += 1;
        });
    });
    list
}

/// Calls `f(row of the list by input, entry)` for every open weight of `outputs`, these ascending.
#[inline(always)]
fn visit(from: &List, outputs: Range<usize>, places: &[(usize, u32)], mut f: impl FnMut(usize, Entry)) {
    for o in outputs.clone() {
        let first = ((o - outputs.start) * from.taps) as u32;
        for b in 0..from.blocks() {
            let at = b * from.rows + o;
            for e in &from.entries[from.starts[at] as usize..from.starts[at + 1] as usize] {
                let (row, tap) = places[e.place as usize];
                f(row + b * from.block, Entry { value: e.value, place: first + tap });
            }
        }
    }
}
