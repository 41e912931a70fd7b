//! Training with a weight most of whose elements are masked: convolutions and matrix products that visit open weights
//! only.
//!
//! Lanes run over items (images, or tokens of a matrix product), so that one weight, broadcast, multiplies whole
//! registers and any pattern costs the same per open weight:
//!
//! * *forward*: a tile of results of one output channel stays in registers while the channel's open weights go by, each
//!   one broadcast and multiplied with the lines it sees; the layout is in [`layout`];
//! * *gradient of the input*: the same with the pattern by input channel;
//! * *gradient of the weight*: a tile of dy stays in registers, every open weight of its channel has a line of sums.
//!
//! The sparse matrix is cut into blocks of input channels whose lines of a tile fit L1, because a load that misses L1
//! costs twice a multiplication. The dense counterpart of the scheme is direct convolution; lanes along pixels and one
//! broadcast per weight is how Elsen et al., *Fast Sparse ConvNets* (2020), compute pointwise layers.

#[cfg(test)]
mod tests;

mod layout;
mod pattern;
mod tiles;

pub use pattern::Pattern;

use crate::isa::Isa;
use crate::{ConvShape, shape::Window, shared::Shared};
use layout::{Planes, Side, at_least};
use pattern::List;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;
use tiles::{Block, accumulate, correlate, gather, scatter};

const LANES: usize = 16;

/// One channel and pixel of 16 items.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line([f32; LANES]);

/// Results that are computed together, in lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    pub rows: usize,
    pub columns: usize,
}

/// Lines of a block of channels that a tile reads: three quarters of a 32-KiB L1, the rest is for sums and the pattern.
const FORWARD_LINES: usize = 384;
const BACKWARD_LINES: usize = 384;
/// Lines of a task's planes.
const BAND_LINES: usize = 24 << 10;
/// Tasks that a product is cut into at least: more than threads, so that they end together.
const TASKS: usize = 8;

fn tile(s: &ConvShape) -> Tile {
    if s.is_pointwise() { Tile { rows: 1, columns: 4 } } else { Tile { rows: 2, columns: 4 } }
}

#[derive(Default)]
struct Scratch {
    planes: Vec<Line>,
    others: Vec<Line>,
    sums: Vec<Line>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// y[n,oh,ow,o] of x[n,h,w,c], the weight's open elements and, if any, a bias [o].
///
/// # Panics
/// If a slice has another length or the pattern is of another weight's shape, stride, padding or dilation.
pub fn conv_forward(x: &[f32], pattern: &Pattern, bias: Option<&[f32]>, s: &ConvShape, y: &mut [f32]) {
    forward(Isa::best(), x, pattern, bias, s, y);
}

/// dx[n,h,w,c] of dy[n,oh,ow,o] and the weight's open elements.
///
/// # Panics
/// As [`conv_forward`].
pub fn conv_input_gradient(dy: &[f32], pattern: &Pattern, s: &ConvShape, dx: &mut [f32]) {
    input_gradient(Isa::best(), dy, pattern, s, dx);
}

/// dw[o,c,kh,kw] of x[n,h,w,c] and dy[n,oh,ow,o] where the weight is open, and +0.0 where it is masked.
///
/// # Panics
/// As [`conv_forward`].
pub fn conv_weight_gradient(x: &[f32], dy: &[f32], pattern: &Pattern, s: &ConvShape, dw: &mut [f32]) {
    weight_gradient(Isa::best(), x, dy, pattern, s, dw);
}

/// y[m,n] = x[m,k] wᵀ + bias for w[n,k].
///
/// # Panics
/// If a slice has another length or the pattern is not [`linear_shape`]'s.
pub fn linear_forward(x: &[f32], pattern: &Pattern, bias: Option<&[f32]>, m: usize, y: &mut [f32]) {
    conv_forward(x, pattern, bias, &of_tokens(pattern, m), y);
}

/// dx[m,k] = dy[m,n] w.
///
/// # Panics
/// As [`linear_forward`].
pub fn linear_input_gradient(dy: &[f32], pattern: &Pattern, m: usize, dx: &mut [f32]) {
    conv_input_gradient(dy, pattern, &of_tokens(pattern, m), dx);
}

/// dw[n,k] = dyᵀ[n,m] x[m,k] where the weight is open, and +0.0 where it is masked.
///
/// # Panics
/// As [`linear_forward`].
pub fn linear_weight_gradient(x: &[f32], dy: &[f32], pattern: &Pattern, m: usize, dw: &mut [f32]) {
    conv_weight_gradient(x, dy, pattern, &of_tokens(pattern, m), dw);
}

/// The shape under which a linear weight w[n,k] and `m` rows are known here.
pub fn linear_shape(m: usize, k: usize, n: usize) -> ConvShape {
    ConvShape::new([m, k, 1, 1], [n, k, 1, 1], Window::new(1, 0))
}

fn of_tokens(pattern: &Pattern, m: usize) -> ConvShape {
    linear_shape(m, pattern.shape.c, pattern.shape.o)
}

fn check(pattern: &Pattern, s: &ConvShape) {
    let window = |s: &ConvShape| ([s.o, s.c, s.kh, s.kw, s.groups], s.stride, s.pad_begin, s.dilation);
    let pointwise = (pattern.shape.is_pointwise(), s.is_pointwise());
    assert!(
        window(&pattern.shape) == window(s) && pointwise.0 == pointwise.1,
        "a pattern of {:?} for {s:?}",
        pattern.shape
    );
}

fn forward(isa: Isa, x: &[f32], pattern: &Pattern, bias: Option<&[f32]>, s: &ConvShape, y: &mut [f32]) {
    check(pattern, s);
    assert!(
        x.len() == s.x_len() && y.len() == s.y_len() && bias.is_none_or(|b| b.len() == s.o),
        "lengths for {s:?}"
    );
    let tile = tile(s);
    let planes = layout::forward_planes(s, tile, BAND_LINES);
    let to = layout::sides(s, tile).1;
    product(isa, tile, x, &planes, &pattern.by_output, bias, Results { to, phases: [1, 1] }, y);
}

fn input_gradient(isa: Isa, dy: &[f32], pattern: &Pattern, s: &ConvShape, dx: &mut [f32]) {
    check(pattern, s);
    assert!(dy.len() == s.y_len() && dx.len() == s.x_len(), "lengths for {s:?}");
    let tile = tile(s);
    let planes = layout::backward_planes(s, tile, BAND_LINES);
    let to = layout::sides(s, tile).0;
    product(isa, tile, dy, &planes, &pattern.by_input, None, Results { to, phases: s.stride }, dx);
}

/// Where results go: result (i, j) of phase (a, b) is pixel (i * phases[0] + a, j * phases[1] + b).
#[derive(Clone, Copy)]
struct Results {
    to: Side,
    phases: [usize; 2],
}

/// Equal parts of `rows`, each a multiple of 16 rows, so that `tasks` of them and more come out of `units` units.
fn split(rows: usize, units: usize) -> usize {
    let parts = TASKS.div_ceil(units.max(1)).min(rows.div_ceil(LANES)).max(1);
    rows.div_ceil(parts).next_multiple_of(LANES)
}

/// Copies the lines that a band needs of channels `channels`.
fn fill(
    isa: Isa,
    data: &[f32],
    p: &Planes,
    group: usize,
    band: usize,
    channels: Range<usize>,
    lines: &mut [Line],
) {
    let first = p.first_row(band);
    let width = p.columns.len();
    for row in 0..p.rows {
        let y = usize::try_from(first + row as isize).ok().filter(|&y| y < p.from.height);
        for (i, &column) in p.columns.iter().enumerate() {
            let place = y.zip(column);
            let lanes = place.map_or(0, |(y, column)| p.from.lanes(group, y, column));
            let data = match place {
                Some((y, column)) if lanes > 0 => &data[p.from.at(group, y, column) + channels.start..],
                _ => &[],
            };
            gather(isa, data, p.from.lane, lanes, channels.len(), p.plane, &mut lines[row * width + i..]);
        }
    }
}

/// By place in a block: the line it reads.
fn offsets(p: &Planes, list: &List) -> (Vec<u32>, u32) {
    let line = |place| (place / list.taps * p.plane + p.taps[place % list.taps]) as u32;
    let offsets: Vec<u32> = (0..list.block * list.taps).map(line).collect();
    let farthest = offsets.iter().copied().max().unwrap_or(0);
    (offsets, farthest)
}

#[allow(clippy::too_many_arguments)]
fn product(
    isa: Isa,
    tile: Tile,
    data: &[f32],
    p: &Planes,
    list: &List,
    bias: Option<&[f32]>,
    results: Results,
    out: &mut [f32],
) {
    let to = results.to;
    if out.is_empty() {
        return;
    }
    let (grid_rows, grid_columns) =
        (to.height.div_ceil(results.phases[0]), to.width.div_ceil(results.phases[1]));
    let (groups, bands) = (to.groups(), grid_rows.div_ceil(p.band));
    let rows = split(to.channels, groups * bands);
    let splits = to.channels.div_ceil(rows);
    let (offsets, farthest) = offsets(p, list);
    let initial = bias.map_or_else(|| vec![0.0; to.channels], <[f32]>::to_vec);
    let out = Shared::new(out);
    let tile_lines = tile.rows * tile.columns;
    (0..groups * bands * splits).into_par_iter().for_each(|task| {
        let (group, band, split) = (task / splits / bands, task / splits % bands, task % splits);
        let channels = split * rows..to.channels.min((split + 1) * rows);
        SCRATCH.with_borrow_mut(|Scratch { planes, sums, .. }| {
            let lines = at_least(planes, p.len(list.channels));
            fill(isa, data, p, group, band, 0..list.channels, lines);
            let sums = at_least(sums, channels.len() * tile_lines);
            let band_rows = band * p.band..grid_rows.min((band + 1) * p.band);
            for phase in 0..results.phases[0] * results.phases[1] {
                for i in band_rows.clone().step_by(tile.rows) {
                    for j in (0..grid_columns).step_by(tile.columns) {
                        let first = (i - band_rows.start) * p.step + j;
                        for b in 0..list.blocks() {
                            let at = b * list.rows + phase * to.channels;
                            let starts = &list.starts[at + channels.start..=at + channels.end];
                            let count = list.block.min(list.channels - b * list.block);
                            let lines = &lines[b * list.block * p.plane + first..];
                            let block = Block {
                                starts,
                                entries: &list.entries,
                                offsets: &offsets,
                                lines,
                                step: p.step,
                            };
                            // The last block may be smaller, and reach less far.
                            let farthest = farthest - ((list.block - count) * p.plane) as u32;
                            let fresh = (b == 0).then_some(&initial[channels.clone()]);
                            accumulate(isa, tile, &block, farthest, fresh, sums);
                        }
                        let pixels = Pixels { tile, group, i, j, phase };
                        write(isa, sums, pixels, &results, channels.clone(), out);
                    }
                }
            }
        });
    });
}

/// A tile of results.
struct Pixels {
    tile: Tile,
    group: usize,
    i: usize,
    j: usize,
    phase: usize,
}

/// Writes sums[channel][tile] of a tile to where its pixels lie.
fn write(isa: Isa, sums: &[Line], at: Pixels, results: &Results, channels: Range<usize>, out: Shared<f32>) {
    let Results { to, phases } = results;
    let tile_lines = at.tile.rows * at.tile.columns;
    for p in 0..tile_lines {
        let row = (at.i + p / at.tile.columns) * phases[0] + at.phase / phases[1];
        let column = (at.j + p % at.tile.columns) * phases[1] + at.phase % phases[1];
        if row >= to.height || column >= to.width {
            continue;
        }
        let (lanes, first) = (to.lanes(at.group, row, column), to.at(at.group, row, column));
        if lanes == 0 {
            continue;
        }
        for channel in channels.clone().step_by(LANES) {
            let count = (channels.end - channel).min(LANES);
            // SAFETY: these channels of these pixels and images are this task's alone.
            let items = std::array::from_fn(|lane| match lane < lanes {
                true => unsafe { out.part(first + lane * to.lane + channel, count) },
                false => &mut [][..],
            });
            scatter(isa, &sums[(channel - channels.start) * tile_lines + p..], tile_lines, items);
        }
    }
}

fn weight_gradient(isa: Isa, x: &[f32], dy: &[f32], pattern: &Pattern, s: &ConvShape, dw: &mut [f32]) {
    check(pattern, s);
    assert!(x.len() == s.x_len() && dy.len() == s.y_len() && dw.len() == s.w_len(), "lengths for {s:?}");
    let list = &pattern.by_output;
    let tile = tile(s);
    let p = layout::forward_planes(s, tile, BAND_LINES);
    let q = layout::result_planes(s, tile, &p);
    let (offsets, farthest) = offsets(&p, list);
    let (groups, bands) = (q.from.groups(), q.from.height.div_ceil(p.band));
    let units = groups * bands;
    let parts = units.min(TASKS);
    let rows = split(s.o, parts);
    let splits = s.o.div_ceil(rows);
    let open = list.entries.len();
    let mut partial = vec![0f32; parts * open];
    let shared = Shared::new(&mut partial);
    (0..parts * splits).into_par_iter().for_each(|task| {
        let (part, split) = (task / splits, task % splits);
        let channels = split * rows..s.o.min((split + 1) * rows);
        let bounds = |b: usize| {
            let starts = &list.starts[b * list.rows..][channels.start..=channels.end];
            (starts, starts[0] as usize..starts[channels.len()] as usize)
        };
        SCRATCH.with_borrow_mut(|Scratch { planes, others, sums }| {
            let lines = at_least(planes, p.len(s.c));
            let others = at_least(others, q.len(channels.len()));
            let count = (0..list.blocks()).map(|b| bounds(b).1.len()).sum();
            let sums = at_least(sums, count);
            sums.fill(Line([0.0; LANES]));
            for unit in part * units / parts..(part + 1) * units / parts {
                let (group, band) = (unit / bands, unit % bands);
                fill(isa, x, &p, group, band, 0..s.c, lines);
                fill(isa, dy, &q, group, band, channels.clone(), others);
                let band_rows = band * p.band..q.from.height.min((band + 1) * p.band);
                let mut sums = &mut *sums;
                for b in 0..list.blocks() {
                    let (starts, entries) = bounds(b);
                    let (block_sums, rest) = sums.split_at_mut(entries.len());
                    sums = rest;
                    let count = list.block.min(list.channels - b * list.block);
                    let farthest = farthest - ((list.block - count) * p.plane) as u32;
                    for i in (0..band_rows.len()).step_by(tile.rows) {
                        for j in (0..q.from.width).step_by(tile.columns) {
                            let lines = &lines[b * list.block * p.plane + i * p.step + j..];
                            let block = Block {
                                starts,
                                entries: &list.entries,
                                offsets: &offsets,
                                lines,
                                step: p.step,
                            };
                            let tile_of_dy = (&others[i * q.step + j..], q.plane, q.step);
                            correlate(isa, tile, &block, farthest, tile_of_dy, block_sums);
                        }
                    }
                }
            }
            let mut sums = &sums[..];
            for b in 0..list.blocks() {
                let entries = bounds(b).1;
                let (block_sums, rest) = sums.split_at(entries.len());
                sums = rest;
                // SAFETY: these weights of this part are this task's alone.
                let to = unsafe { shared.part(part * open + entries.start, entries.len()) };
                for (to, line) in to.iter_mut().zip(block_sums) {
                    *to = line.sum();
                }
            }
        });
    });
    let row = s.c * list.taps;
    dw.par_chunks_mut(row.max(1)).enumerate().for_each(|(o, dw)| {
        dw.fill(0.0);
        for b in 0..list.blocks() {
            let starts = &list.starts[b * list.rows + o..];
            for at in starts[0] as usize..starts[1] as usize {
                let place = b * list.block * list.taps + list.entries[at].place as usize;
                dw[place] = (0..parts).map(|part| partial[part * open + at]).sum();
            }
        }
    });
}

impl Line {
    fn sum(&self) -> f32 {
        let mut v = self.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] += v[i + half];
            }
        }
        v[0]
    }
}
