//! Convolution with one filter per channel, forward and backward, for any window.
//!
//! Registers lie along channels, 16 of an image's at once. The forward pass and the input gradient are one computation:
//! each position gathers a few positions of the other image (`Axis` says which), so that every output is written once
//! and no sum crosses tasks. The weight gradient keeps the sums of one channel block in registers along rows.

/// Repeats `$body` for the first `$count` of up to 19 columns, a constant each time: what an unrolled loop would be, where
/// the compiler may decline to unroll and then keep sums in memory.
macro_rules! each_column {
    ($column:ident, $count:expr, $body:block) => {
        each_column!(@ $column, $count, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18)
    };
    (@ $column:ident, $count:expr, $body:block, $($number:literal)*) => {
        const { assert!($count <= 19) };
        $(if $number < $count {
            let $column: usize = $number;
            $body
        })*
    };
}

mod gather;
mod weight;

use crate::scratch::{self, Buffer};
use crate::{ConvShape, isa::Isa};
use gather::{Row, RowKernel, Window2d};
use rayon::prelude::*;
use std::cell::RefCell;

/// What a task's rows in and out may take of a core's second-level cache.
const BAND_BYTES: usize = 256 << 10;
/// Channel blocks gathered together, whose weights then stay in the first-level cache.
const GROUP_BLOCKS: usize = 16;
/// Multiplications of 16 lanes below which another task costs more than it saves (about 10 microseconds).
const TASK_STEPS: usize = 16 << 10;
/// More than threads, so that the last to finish is not far behind.
const MAX_TASKS: usize = 32;

/// y = x * w (+ bias). x is `[n, h, w, c]`, w is `[c, 1, kh, kw]`, bias is `[c]`, y is `[n, oh, ow, c]`.
///
/// # Panics
/// If `shape` is not depthwise or a slice does not fit it.
pub fn forward(x: &[f32], w: &[f32], bias: Option<&[f32]>, shape: &ConvShape, y: &mut [f32]) {
    forward_on(Isa::best(), x, w, bias, shape, y);
}

/// dx of y = x * w. dy is [n, oh, ow, c], w is [c, 1, kh, kw], dx is [n, h, w, c].
///
/// # Panics
/// As [`forward`].
pub fn input_gradient(w: &[f32], dy: &[f32], shape: &ConvShape, dx: &mut [f32]) {
    input_gradient_on(Isa::best(), w, dy, shape, dx);
}

/// dw of y = x * w. x is [n, h, w, c], dy is [n, oh, ow, c], dw is [c, 1, kh, kw].
///
/// # Panics
/// As [`forward`].
pub fn weight_gradient(x: &[f32], dy: &[f32], shape: &ConvShape, dw: &mut [f32]) {
    weight_gradient_on(Isa::best(), x, dy, shape, dw);
}

pub(crate) fn forward_on(
    isa: Isa,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    shape: &ConvShape,
    y: &mut [f32],
) {
    check(shape, x.len(), w.len(), y.len());
    assert!(bias.is_none_or(|b| b.len() == shape.c), "bias of {:?} channels", bias.map(<[f32]>::len));
    let axis = |k, out, at: usize| {
        [Axis {
            first_output: 0,
            output_step: 1,
            outputs: out,
            taps: k,
            first_weight: 0,
            weight_step: 1,
            first_input: -(shape.pad_begin[at] as isize),
            input_step: shape.stride[at],
            tap_step: shape.dilation[at],
        }]
    };
    let (vertical, horizontal) = (axis(shape.kh, shape.oh, 0), axis(shape.kw, shape.ow, 1));
    let window =
        Window2d { vertical: &vertical, horizontal: &horizontal, kw: shape.kw, taps: shape.kh * shape.kw };
    correlate(isa, x, [shape.h, shape.w], w, bias, shape.c, window, [shape.oh, shape.ow], y);
}

pub(crate) fn input_gradient_on(isa: Isa, w: &[f32], dy: &[f32], shape: &ConvShape, dx: &mut [f32]) {
    check(shape, dx.len(), w.len(), dy.len());
    let vertical = gradient_axes(shape.h, shape.kh, shape.stride[0], shape.dilation[0], shape.pad_begin[0]);
    let horizontal = gradient_axes(shape.w, shape.kw, shape.stride[1], shape.dilation[1], shape.pad_begin[1]);
    let window =
        Window2d { vertical: &vertical, horizontal: &horizontal, kw: shape.kw, taps: shape.kh * shape.kw };
    correlate(isa, dy, [shape.oh, shape.ow], w, None, shape.c, window, [shape.h, shape.w], dx);
}

pub(crate) fn weight_gradient_on(isa: Isa, x: &[f32], dy: &[f32], shape: &ConvShape, dw: &mut [f32]) {
    check(shape, x.len(), dw.len(), dy.len());
    weight::weight_gradient(isa, x, dy, shape, dw);
}

fn check(shape: &ConvShape, x: usize, w: usize, y: usize) {
    assert!(shape.groups == shape.c && shape.o == shape.c && shape.c > 0, "not depthwise: {shape:?}");
    assert!(x == shape.x_len(), "{x} elements of images for {shape:?}");
    assert!(w == shape.w_len(), "{w} weights for {shape:?}");
    assert!(y == shape.y_len(), "{y} elements of outputs for {shape:?}");
}

/// One of the regular sequences of positions, along height or width, that gather with the same taps: output `i` lies at
/// `first_output + i * output_step` and its tap `j` multiplies the input at
/// `first_input + i * input_step + j * tap_step`, where that is inside, with the weight at
/// `first_weight + j * weight_step`.
#[derive(Clone, Copy)]
struct Axis {
    first_output: usize,
    output_step: usize,
    outputs: usize,
    taps: usize,
    first_weight: isize,
    weight_step: isize,
    first_input: isize,
    input_step: usize,
    tap_step: usize,
}

impl Axis {
    /// The taps of output `i` that lie inside an image of `size`: (the first, how many).
    fn inside(&self, i: usize, size: usize) -> (usize, usize) {
        let start = self.first_input + (i * self.input_step) as isize;
        let inside = |j: &usize| (0..size as isize).contains(&(start + (j * self.tap_step) as isize));
        match (0..self.taps).find(inside) {
            Some(first) => (first, (first..self.taps).take_while(inside).count()),
            None => (0, 0),
        }
    }
}

/// The positions of dx along one axis of `size`. Position p is touched by tap k of the output o where
/// o * stride + k * dilation = p + pad; positions alike modulo the stride therefore share their taps.
fn gradient_axes(size: usize, taps: usize, stride: usize, dilation: usize, pad: usize) -> Vec<Axis> {
    let apart = stride / greatest_common_divisor(stride, dilation);
    (0..stride.min(size))
        .map(|first_output| {
            let at = first_output + pad;
            let lowest = (0..taps.min(apart)).find(|k| (k * dilation) % stride == at % stride);
            let count = lowest.map_or(0, |k| (taps - k).div_ceil(apart));
            let highest = lowest.map_or(0, |k| k + (count - 1) * apart);
            Axis {
                first_output,
                output_step: stride,
                outputs: (size - first_output).div_ceil(stride),
                taps: count,
                first_weight: highest as isize,
                weight_step: -(apart as isize),
                first_input: (at as isize - (highest * dilation) as isize).div_euclid(stride as isize),
                input_step: 1,
                tap_step: apart * dilation / stride,
            }
        })
        .collect()
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Gathers every position of `y`, images of [to_h, to_w], from `x`, images of [from_h, from_w].
#[allow(clippy::too_many_arguments)]
fn correlate(
    isa: Isa,
    x: &[f32],
    from: [usize; 2],
    w: &[f32],
    bias: Option<&[f32]>,
    c: usize,
    window: Window2d,
    to: [usize; 2],
    y: &mut [f32],
) {
    if y.is_empty() {
        return;
    }
    let kernel = RowKernel::new(isa, c);
    with_packed(w, c, kernel.lanes, |packed| {
        let (row_in, row_out) = (from[1] * c, to[1] * c);
        let rows = y.len() / row_out;
        let steps = rows * (to[1] * w.len()).div_ceil(16 * window.vertical.len() * window.horizontal.len());
        let tasks = (steps / TASK_STEPS).clamp(1, MAX_TASKS);
        let per_task = rows.div_ceil(tasks);
        let rows_in_cache = (BAND_BYTES / 4 / (row_in + row_out)).max(1);
        y.par_chunks_mut(per_task * row_out).enumerate().for_each(|(task, y)| {
            let (mut row, end) = (task * per_task, task * per_task + y.len() / row_out);
            let mut rest = y;
            while row < end {
                let (image, top) = (row / to[0], row % to[0]);
                let band = rows_in_cache.min(to[0] - top).min(end - row);
                let (y, after) = rest.split_at_mut(band * row_out);
                let x = &x[image * from[0] * row_in..][..from[0] * row_in];
                gather_band(x, from, packed, bias, c, window, top, to[1], &kernel, y);
                (row, rest) = (row + band, after);
            }
        });
    });
}

/// Gathers rows `top..` of one image into `y`, a channel block at a time.
#[allow(clippy::too_many_arguments)]
fn gather_band(
    x: &[f32],
    from: [usize; 2],
    packed: &[f32],
    bias: Option<&[f32]>,
    c: usize,
    window: Window2d,
    top: usize,
    columns_out: usize,
    kernel: &RowKernel,
    y: &mut [f32],
) {
    let (row_in, row_out) = (from[1] * c, columns_out * c);
    let (blocks, taps) = (c.div_ceil(kernel.lanes), window.taps);
    for first_block in (0..blocks).step_by(GROUP_BLOCKS) {
        for (i, y) in y.chunks_exact_mut(row_out).enumerate() {
            let axis = &window.vertical[(top + i) % window.vertical.len()];
            let at = (top + i) / window.vertical.len();
            let (first, rows) = axis.inside(at, from[0]);
            let input = axis.first_input + (at * axis.input_step + first * axis.tap_step) as isize;
            let weight_row = axis.first_weight + first as isize * axis.weight_step;
            for horizontal in window.horizontal {
                let row = Row {
                    x,
                    first_x: input * row_in as isize,
                    x_row_step: axis.tap_step * row_in,
                    columns: from[1],
                    rows,
                    weight: packed,
                    taps,
                    first_weight: weight_row * window.kw as isize + horizontal.first_weight,
                    weight_row_step: axis.weight_step * window.kw as isize,
                    bias,
                    channels: c,
                    blocks: first_block..blocks.min(first_block + GROUP_BLOCKS),
                    axis: *horizontal,
                };
                kernel.run(&row, y);
            }
        }
    }
}

/// Calls `f` with the weight [c, taps] as [block, tap, lane]: the taps of `lanes` channels side by side. The last block
/// ends with the last channel, so that it may repeat channels of the one before and no register is part empty.
fn with_packed(w: &[f32], c: usize, lanes: usize, f: impl FnOnce(&[f32])) {
    thread_local! {
        static PACKED: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
    }
    let taps = w.len() / c;
    scratch::with(&PACKED, |packed| {
        let packed = packed.at_least(c.div_ceil(lanes) * taps * lanes);
        packed.par_chunks_exact_mut(taps * lanes).with_min_len(16).enumerate().for_each(|(block, packed)| {
            let channel = (block * lanes).min(c - lanes);
            let w = &w[channel * taps..(channel + lanes) * taps];
            for (tap, packed) in packed.chunks_exact_mut(lanes).enumerate() {
                for (lane, packed) in packed.iter_mut().enumerate() {
                    *packed = w[lane * taps + tap];
                }
            }
        });
        f(packed);
    });
}

#[cfg(test)]
mod tests;
