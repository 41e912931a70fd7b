//! 2-D convolution for training: forward, gradient of the input, gradient of the weight, gradient of the bias.
//!
//! Images are NHWC, so that a pixel's channels are a row of a matrix product where they lie: nothing is laid out as
//! patches. The forward pass multiplies pixels with the weight, packed once a call. The gradient of the input does the same
//! with dy and the weight turned round; with a stride, inputs fall into stride² phases, each of which reads dy through its
//! own few taps. Every geometry goes one way but two that have modules of their own: depthwise ones, and those where
//! Winograd's algorithm pays.

pub(crate) mod pass;
mod reading;
mod weight_gradient;

use crate::depthwise;
use crate::isa::Isa;
use crate::scratch::{self, Buffer};
use crate::shape::ConvShape;
use crate::transpose::scatter;
use crate::winograd;
use pass::{Pass, pack_panels, panels};
use rayon::prelude::*;
use reading::{Channels, Layout, Reading};
use std::cell::RefCell;
use weight_gradient::WeightGradient;

thread_local! {
    static WEIGHTS: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
}

/// y[n,oh,ow,o] = x[n,h,w,c] * w[o,c/groups,kh,kw] + bias[o].
///
/// # Panics
/// If a slice has another length than the shape says.
pub fn forward(x: &[f32], w: &[f32], bias: Option<&[f32]>, shape: &ConvShape, y: &mut [f32]) {
    forward_on(Isa::best(), x, w, bias, shape, y);
}

/// dx[n,h,w,c] from w[o,c/groups,kh,kw] and dy[n,oh,ow,o].
///
/// # Panics
/// If a slice has another length than the shape says.
pub fn input_gradient(w: &[f32], dy: &[f32], shape: &ConvShape, dx: &mut [f32]) {
    input_gradient_on(Isa::best(), w, dy, shape, dx);
}

/// dw[o,c/groups,kh,kw] from x[n,h,w,c] and dy[n,oh,ow,o].
///
/// # Panics
/// If a slice has another length than the shape says.
pub fn weight_gradient(x: &[f32], dy: &[f32], shape: &ConvShape, dw: &mut [f32]) {
    weight_gradient_on(Isa::best(), x, dy, shape, dw);
}

fn assert_lengths(s: &ConvShape, x: usize, w: usize, y: usize) {
    assert!(x == s.x_len() && w == s.w_len() && y == s.y_len(), "slices of {x}, {w} and {y} for {s:?}");
}

fn forward_on(isa: Isa, x: &[f32], w: &[f32], bias: Option<&[f32]>, s: &ConvShape, y: &mut [f32]) {
    assert_lengths(s, x.len(), w.len(), y.len());
    assert!(bias.is_none_or(|bias| bias.len() == s.o), "a bias of another length than {}", s.o);
    if y.is_empty() {
        return;
    }
    if s.is_depthwise() {
        return depthwise::forward_on(isa, x, w, bias, s, y);
    }
    if winograd::pays(s) {
        return winograd::forward_on(isa, x, w, bias, s, y);
    }
    let (c, o, taps) = (s.c / s.groups, s.o / s.groups, s.kh * s.kw);
    let (steps, panels) = (c * taps, panels(o));
    scratch::with(&WEIGHTS, |weights| {
        for group in 0..s.groups {
            let first = group * o;
            pack_panels(&panels, steps, weights, |panel, out| {
                let (w, lanes) = (&w[(first + panel.first) * steps..], panel.lanes());
                scatter(isa, w, panel.columns, steps, steps, out, lanes, |j| {
                    (j % taps * c + j / taps) * lanes
                });
            });
            let pass = Pass {
                isa,
                reading: Reading::of_forward(s),
                x,
                channels: Channels { first: group * c, count: c, pitch: s.c },
                panels: &panels,
                weights: weights.filled(),
                bias: bias.map(|bias| &bias[first..first + o]),
                outputs: Layout { start: first, image: s.oh * s.ow * s.o, row: s.ow * s.o, pixel: s.o },
            };
            // SAFETY: the lengths of all slices were checked against the shape.
            unsafe { pass::run(&pass, y) };
        }
    });
}

/// The taps through which inputs `phase, phase + stride, ...` of an axis read dy: (index of the tap, offset in dy).
fn phase_taps(s: &ConvShape, axis: usize, phase: usize) -> Vec<(usize, isize)> {
    let (k, stride) = ([s.kh, s.kw][axis], s.stride[axis] as isize);
    let from = (phase + s.pad_begin[axis]) as isize;
    let offset = |tap: usize| from - (tap * s.dilation[axis]) as isize;
    let reads = |tap: &usize| offset(*tap) % stride == 0;
    (0..k).rev().filter(reads).map(|tap| (tap, offset(tap) / stride)).collect()
}

fn input_gradient_on(isa: Isa, w: &[f32], dy: &[f32], s: &ConvShape, dx: &mut [f32]) {
    assert_lengths(s, dx.len(), w.len(), dy.len());
    if dx.is_empty() {
        return;
    }
    if s.is_depthwise() {
        return depthwise::input_gradient_on(isa, w, dy, s, dx);
    }
    if winograd::pays(s) {
        return winograd::input_gradient_on(isa, w, dy, s, dx);
    }
    let phases: Vec<_> = (0..s.stride[0].min(s.h))
        .flat_map(|y| (0..s.stride[1].min(s.w)).map(move |x| (y, x)))
        .map(|(y, x)| ((y, x), phase_taps(s, 0, y), phase_taps(s, 1, x)))
        .collect();
    if phases.iter().any(|(_, ys, xs)| ys.is_empty() || xs.is_empty()) {
        dx.par_chunks_mut(1 << 16).for_each(|part| part.fill(0.0));
    }
    let (c, o) = (s.c / s.groups, s.o / s.groups);
    let (taps, panels) = (s.kh * s.kw, panels(c));
    scratch::with(&WEIGHTS, |weights| {
        for group in 0..s.groups {
            for ((y, x), ys, xs) in &phases {
                if ys.is_empty() || xs.is_empty() {
                    continue;
                }
                let own: Vec<usize> =
                    ys.iter().flat_map(|(ky, _)| xs.iter().map(move |(kx, _)| ky * s.kw + kx)).collect();
                pack_panels(&panels, own.len() * o, weights, |panel, out| {
                    let from = w[(group * o * c + panel.first) * taps..].chunks(c * taps);
                    turn(from, o, taps, &own, panel.columns, panel.lanes(), out);
                });
                let reading = Reading {
                    n: s.n,
                    h: s.oh,
                    w: s.ow,
                    rows: (s.h - y).div_ceil(s.stride[0]),
                    cols: (s.w - x).div_ceil(s.stride[1]),
                    stride: [1, 1],
                    taps: ys.iter().flat_map(|(_, y)| xs.iter().map(move |(_, x)| [*y, *x])).collect(),
                };
                let pass = Pass {
                    isa,
                    reading,
                    x: dy,
                    channels: Channels { first: group * o, count: o, pitch: s.o },
                    panels: &panels,
                    weights: weights.filled(),
                    bias: None,
                    outputs: Layout {
                        start: (y * s.w + x) * s.c + group * c,
                        image: s.h * s.w * s.c,
                        row: s.stride[0] * s.w * s.c,
                        pixel: s.stride[1] * s.c,
                    },
                };
                // SAFETY: the lengths of all slices were checked against the shape.
                unsafe { pass::run(&pass, dx) };
            }
        }
    });
}

/// Writes `out[own tap, o][columns]` from the weight's rows [o][columns of c, tap].
fn turn<'a>(
    from: impl Iterator<Item = &'a [f32]>,
    o: usize,
    taps: usize,
    own: &[usize],
    columns: usize,
    lanes: usize,
    out: &mut [f32],
) {
    for (i, from) in from.take(o).enumerate() {
        for (k, tap) in own.iter().enumerate() {
            let to = &mut out[(k * o + i) * lanes..][..columns];
            if taps == 1 {
                to.copy_from_slice(&from[..columns]);
            } else {
                for (to, from) in to.iter_mut().zip(from[*tap..].iter().step_by(taps)) {
                    *to = *from;
                }
            }
        }
    }
}

fn weight_gradient_on(isa: Isa, x: &[f32], dy: &[f32], s: &ConvShape, dw: &mut [f32]) {
    assert_lengths(s, x.len(), dw.len(), dy.len());
    if dy.is_empty() || dw.is_empty() {
        dw.fill(0.0);
        return;
    }
    if s.is_depthwise() {
        return depthwise::weight_gradient_on(isa, x, dy, s, dw);
    }
    let (c, o) = (s.c / s.groups, s.o / s.groups);
    for (group, dw) in dw.chunks_exact_mut(o * c * s.kh * s.kw).enumerate() {
        let gradient = WeightGradient {
            isa,
            reading: Reading::of_forward(s),
            x,
            channels: Channels { first: group * c, count: c, pitch: s.c },
            dy,
            outputs: Channels { first: group * o, count: o, pitch: s.o },
        };
        weight_gradient::run(&gradient, dw);
    }
}

/// db[channels] = Σ over pixels of dy[pixels][channels].
///
/// # Panics
/// If `dy` is not whole pixels, or `db` has another length.
pub fn bias_gradient(dy: &[f32], channels: usize, db: &mut [f32]) {
    assert!(channels > 0 && dy.len().is_multiple_of(channels) && db.len() == channels);
    const PARTS: usize = 16;
    let pixels = dy.len() / channels;
    let part = pixels.div_ceil(PARTS).max(64);
    let sums: Vec<Vec<f64>> = dy
        .par_chunks(part * channels)
        .map(|dy| {
            let mut sums = vec![0f64; channels];
            let mut few = vec![0f32; channels];
            for dy in dy.chunks(64 * channels) {
                sum_pixels(dy, &mut few);
                for (sum, few) in sums.iter_mut().zip(&few) {
                    *sum += *few as f64;
                }
            }
            sums
        })
        .collect();
    for (i, db) in db.iter_mut().enumerate() {
        *db = sums.iter().map(|part| part[i]).sum::<f64>() as f32;
    }
}

crate::by_isa! {
    fn sum_pixels(dy: &[f32], sums: &mut [f32]) {
        sums.fill(0.0);
        for pixel in dy.chunks_exact(sums.len()) {
            for (sum, v) in sums.iter_mut().zip(pixel) {
                *sum += v;
            }
        }
    }
}

#[cfg(test)]
mod tests;
