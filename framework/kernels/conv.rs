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

/// `y[n,oh,ow,o]` = `x[n,h,w,c]` * `w[o,c/groups,kh,kw]` + `bias[o]`.
///
/// # Panics
/// If a slice has another length than the shape says.
pub fn forward(x: &[f32], w: &[f32], bias: Option<&[f32]>, shape: &ConvShape, y: &mut [f32]) {
    if winograd::pays(shape) {
        return winograd::forward(x, w, bias, shape, y);
    }
    forward_direct(x, w, bias, shape, y);
}

/// [`forward`] by multiplying and adding alone: to the last bits, for values on an integer grid.
///
/// # Panics
/// As [`forward`].
pub fn forward_direct(x: &[f32], w: &[f32], bias: Option<&[f32]>, shape: &ConvShape, y: &mut [f32]) {
    forward_on(Isa::best(), x, w, bias, shape, y);
}

/// `dx[n,h,w,c]` from `w[o,c/groups,kh,kw]` and `dy[n,oh,ow,o]`.
///
/// # Panics
/// If a slice has another length than the shape says.
pub fn input_gradient(w: &[f32], dy: &[f32], shape: &ConvShape, dx: &mut [f32]) {
    input_gradient_on(Isa::best(), w, dy, shape, dx);
}

/// `dw[o,c/groups,kh,kw]` from `x[n,h,w,c]` and `dy[n,oh,ow,o]`.
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
                packed_steps: steps,
                first_step: 0,
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

/// Inputs (y + i * stride, x + j * stride), which read dy through the same taps.
struct Phase {
    y: usize,
    x: usize,
    /// Indices of taps in the weight, and their offsets in dy.
    taps: Vec<usize>,
    offsets: Vec<[isize; 2]>,
}

fn phases(s: &ConvShape) -> Vec<Phase> {
    let mut phases = Vec::new();
    for y in 0..s.stride[0].min(s.h) {
        for x in 0..s.stride[1].min(s.w) {
            let (ys, xs) = (phase_taps(s, 0, y), phase_taps(s, 1, x));
            let pairs = || ys.iter().flat_map(|y| xs.iter().map(move |x| (y, x)));
            phases.push(Phase {
                y,
                x,
                taps: pairs().map(|(y, x)| y.0 * s.kw + x.0).collect(),
                offsets: pairs().map(|(y, x)| [y.1, x.1]).collect(),
            });
        }
    }
    phases
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
    let phases = phases(s);
    if phases.iter().any(|phase| phase.taps.is_empty()) {
        dx.par_chunks_mut(1 << 16).for_each(|part| part.fill(0.0));
    }
    let (c, o, taps) = (s.c / s.groups, s.o / s.groups, s.kh * s.kw);
    let panels = panels(c);
    // The weight is packed phase by phase; taps that no phase reads come last.
    let mut places = vec![usize::MAX; taps];
    let mut next = 0..taps;
    for (tap, place) in phases.iter().flat_map(|phase| &phase.taps).zip(&mut next) {
        places[*tap] = place;
    }
    places.iter_mut().filter(|place| **place == usize::MAX).zip(next).for_each(|(to, place)| *to = place);
    scratch::with(&WEIGHTS, |weights| {
        for group in 0..s.groups {
            pack_panels(&panels, taps * o, weights, |panel, out| {
                let lanes = panel.lanes();
                for i in 0..o {
                    let from = &w[((group * o + i) * c + panel.first) * taps..][..panel.columns * taps];
                    if taps == 1 {
                        out[i * lanes..][..panel.columns].copy_from_slice(from);
                    } else {
                        let to = |tap: usize| (places[tap] * o + i) * lanes;
                        scatter(isa, from, panel.columns, taps, taps, out, lanes, to);
                    }
                }
            });
            let mut first_tap = 0;
            for Phase { y, x, taps: own, offsets } in &phases {
                if own.is_empty() {
                    continue;
                }
                let reading = Reading {
                    n: s.n,
                    h: s.oh,
                    w: s.ow,
                    rows: (s.h - y).div_ceil(s.stride[0]),
                    cols: (s.w - x).div_ceil(s.stride[1]),
                    stride: [1, 1],
                    taps: offsets.clone(),
                };
                let pass = Pass {
                    isa,
                    reading,
                    x: dy,
                    channels: Channels { first: group * o, count: o, pitch: s.o },
                    panels: &panels,
                    weights: weights.filled(),
                    packed_steps: taps * o,
                    first_step: first_tap * o,
                    bias: None,
                    outputs: Layout {
                        start: (y * s.w + x) * s.c + group * c,
                        image: s.h * s.w * s.c,
                        row: s.stride[0] * s.w * s.c,
                        pixel: s.stride[1] * s.c,
                    },
                };
                first_tap += own.len();
                // SAFETY: the lengths of all slices were checked against the shape.
                unsafe { pass::run(&pass, dx) };
            }
        }
    });
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

/// `db[channels]` = Σ over pixels of `dy[pixels][channels]`.
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
