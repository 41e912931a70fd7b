//! Pooling of NHWC images: the mean of an image, and maximum of windows, with gradients.
//!
//! Gradients are gathered: each place of dx adds up the windows it lies in, so that it is written once and places are
//! independent of each other.

use crate::by_isa;
use crate::shape::{ConvShape, Window};
use crate::shared::Shared;
use rayon::prelude::*;

/// Windows of `kernel` over images `x` = [n, c, h, w]. (Rounding sizes up is more `pad_end`.)
///
/// # Panics
/// If the window does not fit the padded image.
pub fn shape(x: [usize; 4], kernel: [usize; 2], window: Window) -> ConvShape {
    ConvShape::new(x, [x[1], 1, kernel[0], kernel[1]], window.grouped(x[1]))
}

/// Columns of a task of a mean over an image.
const COLUMNS: usize = 256;
const LANES: usize = 64;
/// Rows whose sum is left to f32.
const ROWS: usize = 64;

/// `y[n][c]` = mean of `x[n][pixels][c]` over the pixels.
///
/// # Panics
/// If lengths do not fit, or there are no pixels.
pub fn global_average(x: &[f32], [n, pixels, c]: [usize; 3], y: &mut [f32]) {
    assert!(pixels > 0, "the mean of no pixels");
    assert!(
        x.len() == n * pixels * c && y.len() == n * c,
        "x is not [{n}][{pixels}][{c}], or y not [{n}][{c}]"
    );
    let per_image = c.div_ceil(COLUMNS);
    let y = Shared::new(y);
    (0..n * per_image).into_par_iter().for_each(|task| {
        let (image, at) = (task / per_image, task % per_image * COLUMNS);
        let len = COLUMNS.min(c - at);
        // SAFETY: tasks have disjoint columns of images.
        let y = unsafe { y.part(image * c + at, len) };
        column_means(&x[image * pixels * c..][..pixels * c], c, at, y);
    });
}

/// `dx[n][pixels][c]` = `dy[n][c]` / pixels.
///
/// # Panics
/// If lengths do not fit, or there are no pixels.
pub fn global_average_backward(dy: &[f32], [n, pixels, c]: [usize; 3], dx: &mut [f32]) {
    assert!(pixels > 0, "the mean of no pixels");
    assert!(
        dx.len() == n * pixels * c && dy.len() == n * c,
        "dx is not [{n}][{pixels}][{c}], or dy not [{n}][{c}]"
    );
    if dx.is_empty() {
        return;
    }
    dx.par_chunks_mut(pixels * c).zip(dy.par_chunks(c)).for_each(|(dx, dy)| {
        let (first, rest) = dx.split_at_mut(c);
        for (dx, dy) in first.iter_mut().zip(dy) {
            *dx = dy / pixels as f32;
        }
        rest.chunks_exact_mut(c).for_each(|row| row.copy_from_slice(first));
    });
}

/// `y[n,oh,ow,c]` = maximum of each window, and in `at` the place of it in its window, row by row (the first of equals;
/// NaN counts as largest). Padding takes no part.
///
/// # Panics
/// If lengths do not fit, a window has more than 256 places, or one lies in padding altogether.
pub fn max(x: &[f32], s: &ConvShape, y: &mut [f32], at: &mut [u8]) {
    check(s, x.len(), y.len());
    assert!(s.kh * s.kw <= 256, "a window of {} x {} places", s.kh, s.kw);
    assert_eq!(at.len(), y.len(), "y and the places of its maxima differ in length");
    let row = s.ow * s.c;
    if y.is_empty() {
        return;
    }
    y.par_chunks_mut(row).zip(at.par_chunks_mut(row)).enumerate().for_each(|(line, (y, at))| {
        let mut taps = Vec::new();
        for (ox, (y, at)) in y.chunks_exact_mut(s.c).zip(at.chunks_exact_mut(s.c)).enumerate() {
            taps_of_output(s, line, ox, &mut taps);
            assert!(!taps.is_empty(), "a window lies in padding altogether");
            max_of_taps(x, &taps, y, at);
        }
    });
}

/// `dx[n,h,w,c]` of [`max`].
///
/// # Panics
/// As [`max`].
pub fn max_backward(dy: &[f32], at: &[u8], s: &ConvShape, dx: &mut [f32]) {
    check(s, dx.len(), dy.len());
    assert_eq!(at.len(), dy.len(), "dy and the places of maxima differ in length");
    assert!(s.kh * s.kw <= 256, "a window of {} x {} places", s.kh, s.kw);
    if dx.is_empty() {
        return;
    }
    dx.par_chunks_mut(s.w * s.c).enumerate().for_each(|(line, dx)| {
        let mut taps = Vec::new();
        for (ix, dx) in dx.chunks_exact_mut(s.c).enumerate() {
            taps_of_input(s, line, ix, &mut taps);
            sum_where_maximum(dy, at, &taps, dx);
        }
    });
}

fn check(s: &ConvShape, image: usize, pooled: usize) {
    assert!(s.groups == s.c && s.o == s.c, "pooling has a window per channel");
    assert!(image == s.x_len() && pooled == s.y_len(), "images and results do not fit {s:?}");
}

/// A pixel, by its first float, and its place in the window.
#[derive(Clone, Copy)]
struct Tap {
    at: usize,
    place: u8,
}

/// Where on an axis of the image tap `t` of output `o` lies.
fn input_of(s: &ConvShape, o: usize, axis: usize, t: usize, size: usize) -> Option<usize> {
    (o * s.stride[axis] + t * s.dilation[axis]).checked_sub(s.pad_begin[axis]).filter(|&i| i < size)
}

/// Which output has place `i` of the image at its tap `t`.
fn output_of(s: &ConvShape, i: usize, axis: usize, t: usize, size: usize) -> Option<usize> {
    let from = (i + s.pad_begin[axis]).checked_sub(t * s.dilation[axis])?;
    let o = from / s.stride[axis];
    (from.is_multiple_of(s.stride[axis]) && o < size).then_some(o)
}

/// Pixels of x in the window of output (line, ox); `line` counts the rows of all images.
fn taps_of_output(s: &ConvShape, line: usize, ox: usize, taps: &mut Vec<Tap>) {
    let (image, oy) = (line / s.oh, line % s.oh);
    taps.clear();
    for ky in 0..s.kh {
        let Some(iy) = input_of(s, oy, 0, ky, s.h) else { continue };
        for kx in 0..s.kw {
            let Some(ix) = input_of(s, ox, 1, kx, s.w) else { continue };
            taps.push(Tap { at: ((image * s.h + iy) * s.w + ix) * s.c, place: (ky * s.kw + kx) as u8 });
        }
    }
}

/// Pixels of y whose windows have pixel (line, ix) of x.
fn taps_of_input(s: &ConvShape, line: usize, ix: usize, taps: &mut Vec<Tap>) {
    let (image, iy) = (line / s.h, line % s.h);
    taps.clear();
    for ky in 0..s.kh {
        let Some(oy) = output_of(s, iy, 0, ky, s.oh) else { continue };
        for kx in 0..s.kw {
            let Some(ox) = output_of(s, ix, 1, kx, s.ow) else { continue };
            taps.push(Tap { at: ((image * s.oh + oy) * s.ow + ox) * s.c, place: (ky * s.kw + kx) as u8 });
        }
    }
}

by_isa! {
    /// y = means of columns at..at + y.len() of `x[..][c]`.
    fn column_means(x: &[f32], c: usize, at: usize, y: &mut [f32]) {
        let count = (x.len() / c) as f64;
        for (tile, y) in y.chunks_mut(LANES).enumerate() {
            let at = at + tile * LANES;
            let mut total = [0f64; LANES];
            for x in x.chunks(ROWS * c) {
                let mut sum = [0f32; LANES];
                if y.len() == LANES {
                    for x in x.chunks_exact(c) {
                        let x = &x[at..][..LANES];
                        for l in 0..LANES {
                            sum[l] += x[l];
                        }
                    }
                } else {
                    for x in x.chunks_exact(c) {
                        sum.iter_mut().zip(&x[at..][..y.len()]).for_each(|(sum, x)| *sum += x);
                    }
                }
                total.iter_mut().zip(&sum).for_each(|(total, &sum)| *total += sum as f64);
            }
            y.iter_mut().zip(&total).for_each(|(y, total)| *y = (total / count) as f32);
        }
    }
}

by_isa! {
    fn max_of_taps(x: &[f32], taps: &[Tap], y: &mut [f32], at: &mut [u8]) {
        for (tile, (y, at)) in y.chunks_mut(LANES).zip(at.chunks_mut(LANES)).enumerate() {
            let (start, len) = (tile * LANES, y.len());
            let (mut best, mut place) = ([0f32; LANES], [taps[0].place as u32; LANES]);
            best[..len].copy_from_slice(&x[taps[0].at + start..][..len]);
            for tap in &taps[1..] {
                let x = &x[tap.at + start..][..len];
                let tap = tap.place as u32;
                if let Ok(x) = <&[f32; LANES]>::try_from(x) {
                    for l in 0..LANES {
                        (best[l], place[l]) = larger((best[l], place[l]), (x[l], tap));
                    }
                } else {
                    for ((best, place), &x) in best.iter_mut().zip(&mut place).zip(x) {
                        (*best, *place) = larger((*best, *place), (x, tap));
                    }
                }
            }
            y.copy_from_slice(&best[..len]);
            at.iter_mut().zip(&place).for_each(|(at, &place)| *at = place as u8);
        }
    }
}

/// The larger of two values with its place, the first of equals, NaN being largest. By bits: a branch per lane would
/// not be vector code.
#[inline(always)]
fn larger(best: (f32, u32), x: (f32, u32)) -> (f32, u32) {
    let wins = 0u32.wrapping_sub(((x.0 > best.0) | x.0.is_nan()) as u32);
    let select = |a: u32, b: u32| (a & wins) | (b & !wins);
    (f32::from_bits(select(x.0.to_bits(), best.0.to_bits())), select(x.1, best.1))
}

by_isa! {
    fn sum_where_maximum(dy: &[f32], at: &[u8], taps: &[Tap], dx: &mut [f32]) {
        dx.fill(0.0);
        let c = dx.len();
        for tap in taps {
            for ((dx, &dy), &at) in dx.iter_mut().zip(&dy[tap.at..][..c]).zip(&at[tap.at..][..c]) {
                *dx += if at == tap.place { dy } else { 0.0 };
            }
        }
    }
}
