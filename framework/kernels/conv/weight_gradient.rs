//! The gradient of a weight: `dwᵀ[tap, c][o]` = Σ_pixel `x[pixel + tap][c]` * `dy[pixel][o]`.
//!
//! A row of the product is a tap and an input channel, a step is a pixel, so that neither operand is turned round. A task
//! is a block of input channels, a block of output channels and a part of the pixels. It lays out a band of x and of dy
//! small enough for the nearest caches, adds its product to its sums, and goes on to the next band. Parts are added in
//! order.

use super::pass::{Panel, Target, panels};
use super::reading::{Band, Channels, Reading};
use crate::gemm::tile::{self, First, Product, Row};
use crate::isa::Isa;
use crate::scratch::{self, Buffer};
use crate::shared::Shared;
use crate::transpose::scatter_to;
use rayon::prelude::*;
use std::cell::RefCell;

/// Pixels of a band: 192 of 64 output channels are 48 KB, read once per few rows of sums.
const BAND: usize = 192;

/// Tasks to aim at. Where the weight has fewer blocks, pixels are cut into parts of two bands at least.
const TASKS: usize = 8;

/// Rows of a task from which dy is packed: fewer read it where it lies.
const PACKED_FROM: usize = 64;

/// Sums of a task: 384 KB, beside which its bands fit L2.
const MOST_SUMS: usize = 96 << 10;

pub struct WeightGradient<'a> {
    pub isa: Isa,
    pub reading: Reading,
    pub x: &'a [f32],
    pub channels: Channels,
    pub dy: &'a [f32],
    pub outputs: Channels,
}

/// Input channels `c..c + cs` and output channels `o..o + os`.
#[derive(Clone, Copy)]
struct Part {
    c: usize,
    cs: usize,
    o: usize,
    os: usize,
}

#[derive(Default)]
struct Scratch {
    x: Buffer,
    dy: Buffer,
    sums: Buffer,
    rows: Vec<Row>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static PARTS: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
}

/// Equal ranges of at most `most`, which begin at multiples of 16.
fn cuts(len: usize, most: usize) -> Vec<(usize, usize)> {
    let (vectors, parts) = (len.div_ceil(16), len.div_ceil(most));
    let cut = |i: usize| (vectors * i / parts * 16).min(len);
    (0..parts).map(|i| (cut(i), cut(i + 1) - cut(i))).collect()
}

/// Writes `dw[o][c][tap]` of the group's channels.
pub fn run(g: &WeightGradient<'_>, dw: &mut [f32]) {
    let taps = g.reading.taps.len();
    let (c, o) = (g.channels.count, g.outputs.count);
    assert_eq!(dw.len(), o * c * taps);
    let most_c = if taps > 1 { 64 } else { 256 };
    let most_o = (MOST_SUMS / (taps * c.min(most_c))).clamp(64, 256) / 64 * 64;
    let grid: Vec<Part> = cuts(c, most_c)
        .into_iter()
        .flat_map(|(c, cs)| cuts(o, most_o).into_iter().map(move |(o, os)| Part { c, cs, o, os }))
        .collect();
    let bands = g.reading.bands(BAND);
    let parts = TASKS.div_ceil(grid.len()).min((bands.len() / 2).max(1));
    // A task's sums: dwᵀ[c, tap][o] with rows as long as its panels.
    let lanes = |part: &Part| part.os.next_multiple_of(16);
    let starts: Vec<usize> = grid
        .iter()
        .scan(0, |at, part| {
            let start = *at;
            *at += taps * part.cs * lanes(part);
            Some(start)
        })
        .collect();
    let dw = Target(dw.as_mut_ptr());
    let write = |part: &Part, sums: &[f32]| {
        let (rows, to) = (part.cs * taps, |o: usize| ((part.o + o) * c + part.c) * taps);
        // SAFETY: tasks of the grid have disjoint (o, c), which `to` keeps inside dw[o][c][tap].
        unsafe { scatter_to(g.isa, sums, rows, part.os, lanes(part), dw.at(0), rows, to) };
    };
    if parts == 1 {
        grid.par_iter().for_each(|part| {
            scratch::with(&SCRATCH, |scratch| {
                let mut sums = std::mem::take(&mut scratch.sums);
                let buffer = sums.at_least(taps * part.cs * lanes(part));
                add_bands(g, part, &bands, scratch, buffer, lanes(part));
                write(part, buffer);
                scratch.sums = sums;
            });
        });
        return;
    }
    let len: usize = grid.iter().map(|part| taps * part.cs * lanes(part)).sum();
    scratch::with(&PARTS, |buffer| {
        let all = buffer.at_least(parts * len);
        let shared = Shared::new(all);
        (0..parts * grid.len()).into_par_iter().for_each(|task| {
            let (i, part) = (task / grid.len(), &grid[task % grid.len()]);
            let bands = &bands[i * bands.len() / parts..(i + 1) * bands.len() / parts];
            let start = i * len + starts[task % grid.len()];
            // SAFETY: every task has its own sums.
            let sums = unsafe { shared.part(start, taps * part.cs * lanes(part)) };
            scratch::with(&SCRATCH, |scratch| add_bands(g, part, bands, scratch, sums, lanes(part)));
        });
        let (total, others) = all.split_at_mut(len);
        let shared = Shared::new(total);
        grid.par_iter().zip(&starts).for_each(|(part, &start)| {
            let own = taps * part.cs * lanes(part);
            // SAFETY: every task has its own sums.
            let sums = unsafe { shared.part(start, own) };
            for other in others.chunks_exact(len) {
                for (sum, v) in sums.iter_mut().zip(&other[start..start + own]) {
                    *sum += v;
                }
            }
            write(part, sums);
        });
    });
}

/// Sums of a task over some bands.
fn add_bands(
    g: &WeightGradient<'_>,
    part: &Part,
    bands: &[Band],
    scratch: &mut Scratch,
    sums: &mut [f32],
    lanes: usize,
) {
    let reading = &g.reading;
    let taps = reading.taps.len();
    let channels = Channels { first: g.channels.first + part.c, count: part.cs, pitch: g.channels.pitch };
    let panels = panels(part.os);
    let Scratch { x, dy, rows, .. } = scratch;
    rows.clear();
    let layout = reading.copied(&bands[0], part.cs);
    for (tap, offset) in reading.tap_offsets(&layout).enumerate() {
        rows.extend((0..part.cs).map(|c| Row { a: offset + c, c: (c * taps + tap) * lanes }));
    }
    let mut runs = Vec::new();
    for (i, band) in bands.iter().enumerate() {
        let first = (band.image * reading.rows + band.row) * reading.cols;
        let pixels = band.images * band.rows * reading.cols;
        runs.clear();
        let (x, a_step, run_len) = if reading.is_plain() && channels.pitch == part.cs {
            runs.push(0);
            (&g.x[reading.in_place(band, &channels).start..], channels.pitch, pixels)
        } else if taps == 1 {
            let x = x.at_least(pixels * part.cs);
            reading.gather(g.x, band, &channels, x);
            runs.push(0);
            (&*x, part.cs, pixels)
        } else {
            let x = x.at_least(reading.copied_len(band, part.cs));
            reading.copy(g.x, band, &channels, x);
            let layout = reading.copied(band, part.cs);
            for image in 0..band.images {
                let row = |row: usize| (image * layout.image + row * reading.stride[0] * layout.row) as u32;
                runs.extend((0..band.rows).map(row));
            }
            (&*x, reading.stride[1] * part.cs, reading.cols)
        };
        for Panel { first: o, columns } in &panels {
            let at = first * g.outputs.pitch + g.outputs.first + part.o + o;
            let width = columns.next_multiple_of(16);
            let (b, b_step) = if g.outputs.pitch == width || rows.len() < PACKED_FROM {
                (&g.dy[at..], g.outputs.pitch)
            } else {
                let dy = dy.at_least(pixels * width);
                let from = g.dy[at..].chunks(g.outputs.pitch);
                for (to, from) in dy.chunks_exact_mut(width).zip(from) {
                    to[..*columns].copy_from_slice(&from[..*columns]);
                }
                (&*dy, width)
            };
            let product = Product {
                ahead: None,
                a: x.as_ptr(),
                runs: &runs,
                run_len,
                a_step,
                b: b.as_ptr(),
                b_step,
                c: sums[*o..].as_mut_ptr(),
                columns: *columns,
                first: if i == 0 { First::Zero } else { First::Sum },
                last: None,
            };
            // SAFETY: rows and runs stay inside the copies of the band, columns inside rows of `lanes` sums.
            unsafe { tile::run(g.isa, &product, rows) };
        }
    }
}
