//! Fake quantisation on plain slices: round to the integer grid and back, with the straight-through gradient
//! (Bengio et al., 2013; Jacob et al., 2018): inside the range the gradient passes, outside it is zero.
//!
//! The grid is ONNX's: `q = clamp(rne(x / scale) + zero, lo, hi)`, `y = (q - zero) * scale`, ties to even, so that
//! what training sees is what QuantizeLinear and the integer engine compute. NaN stays NaN, and passes no gradient.

use crate::activation::CHUNK;
use crate::by_isa;
use rayon::prelude::*;

/// An integer grid: real value = (q - zero) * scale, lo <= q <= hi.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    pub scale: f32,
    pub zero: i32,
    pub lo: i32,
    pub hi: i32,
}

impl Grid {
    /// The range of `x / scale` that is not clamped, as whole floats.
    ///
    /// # Panics
    /// If it is not within 22 bits, which rounding by [`on_grid`] relies on.
    fn bounds(&self) -> (f32, f32) {
        let (lo, hi) = (self.lo as i64 - self.zero as i64, self.hi as i64 - self.zero as i64);
        assert!(lo >= -(1 << 22) && hi <= 1 << 22 && lo <= hi, "{self:?} is wider than 22 bits");
        (lo as f32, hi as f32)
    }

    /// Smallest and largest x whose `rne(x / scale)` is not clamped: the gradient passes from one to the other.
    pub fn inside(&self) -> (f32, f32) {
        let (lo, hi) = self.bounds();
        let upper = edge(self.scale, hi);
        (-edge(self.scale, -lo), upper)
    }
}

/// Largest x with rne(x / scale) <= bound. Comparing with it is exact and saves a division per element.
fn edge(scale: f32, bound: f32) -> f32 {
    let fits = |x: f32| (x / scale).round_ties_even() <= bound;
    let mut x = ((bound + 0.5) * scale).min(f32::MAX);
    while !fits(x) {
        x = x.next_down();
    }
    while x < f32::MAX && fits(x.next_up()) {
        x = x.next_up();
    }
    x
}

/// 1.5 · 2^23: a sum of it and a value below 2^22 has no bits for a fraction, so it is rounded to nearest, ties to even.
const WHOLE: f32 = 12_582_912.0;

/// The value of x's grid point, for bounds within 22 bits. (Clamping to whole bounds first does not change the result.)
#[inline(always)]
fn on_grid(x: f32, scale: f32, lo: f32, hi: f32) -> f32 {
    let q = x / scale;
    let q = if q < lo { lo } else { q };
    let q = if q > hi { hi } else { q };
    ((q + WHOLE) - WHOLE) * scale
}

/// y = the value of x's grid point.
///
/// # Panics
/// If lengths differ, or the grid is wider than 22 bits.
pub fn quantize(x: &[f32], grid: Grid, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "x and y differ in length");
    let (lo, hi) = grid.bounds();
    y.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .for_each(|(y, x)| quantize_part(x, grid.scale, lo, hi, y));
}

/// x = the value of its grid point.
///
/// # Panics
/// If the grid is wider than 22 bits.
pub fn quantize_in_place(x: &mut [f32], grid: Grid) {
    x.par_chunks_mut(CHUNK).for_each(|x| quantize_block(x, grid));
}

pub(crate) fn quantize_block(x: &mut [f32], grid: Grid) {
    let (lo, hi) = grid.bounds();
    quantize_in_place_part(x, grid.scale, lo, hi);
}

/// dx = dy where x was inside the range of the grid, else 0.
///
/// # Panics
/// If lengths differ, or the grid is wider than 22 bits.
pub fn backward(x: &[f32], dy: &[f32], grid: Grid, dx: &mut [f32]) {
    assert!(x.len() == dy.len() && x.len() == dx.len(), "x, dy and dx differ in length");
    let (lo, hi) = grid.inside();
    let parts = dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK)));
    parts.for_each(|(dx, (x, dy))| gate_part(x, dy, lo, hi, dx));
}

/// Smallest and largest element; (+inf, -inf) of nothing. NaN is ignored.
pub fn range(x: &[f32]) -> (f32, f32) {
    x.par_chunks(CHUNK).map(range_block).reduce(|| NOTHING, join)
}

/// The range of no elements.
pub(crate) const NOTHING: (f32, f32) = (f32::INFINITY, f32::NEG_INFINITY);

/// The range of both.
pub(crate) fn join(a: (f32, f32), b: (f32, f32)) -> (f32, f32) {
    (a.0.min(b.0), a.1.max(b.1))
}

/// Smallest and largest element of each of `min.len()` equal rows of `w`, after a multiplication by `fold[row]`.
///
/// # Panics
/// If lengths do not fit.
pub fn row_ranges(w: &[f32], fold: Option<&[f32]>, min: &mut [f32], max: &mut [f32]) {
    let (rows, k) = rows_of(w, min.len(), fold);
    assert_eq!(max.len(), rows, "min and max differ in length");
    min.par_iter_mut().zip(max.par_iter_mut()).enumerate().with_min_len(rows_per_task(k)).for_each(
        |(row, (min, max))| {
            let (lo, hi) = range_block(&w[row * k..][..k]);
            // Rounding keeps order, so the range of products is the products of the range.
            let f = fold.map_or(1.0, |f| f[row]);
            (*min, *max) = if f < 0.0 { (hi * f, lo * f) } else { (lo * f, hi * f) };
        },
    );
}

/// Rows of k elements.
fn rows_of(w: &[f32], rows: usize, fold: Option<&[f32]>) -> (usize, usize) {
    assert!(rows > 0 && w.len().is_multiple_of(rows), "{} weights in {rows} rows", w.len());
    assert!(fold.is_none_or(|f| f.len() == rows), "a factor for each of {rows} rows");
    (rows, w.len() / rows)
}

/// The limits of a row as whole floats.
fn limits_of(limits: &[[i32; 2]], rows: usize) -> impl Fn(usize) -> (f32, f32) {
    assert!(limits.len() == 1 || limits.len() == rows, "limits of all rows, or of each of {rows}");
    move |row| {
        let [lo, hi] = limits[if limits.len() == 1 { 0 } else { row }];
        (lo as f32, hi as f32)
    }
}

fn rows_per_task(k: usize) -> usize {
    (CHUNK / k.max(1)).max(1)
}

/// Row `i` of a weight, multiplied by `fold[i]` as it will be deployed, put on the grid `scales[i]` · lo..=hi, and
/// divided by `fold[i]` again: out = clamp(rne(w·f / s)) · s / f. `limits` are [lo, hi] of all rows, or of each; those of a
/// grid with a zero point are less by that.
///
/// A weight whose bits are those of +0.0 is masked and stays +0.0; an open one that rounds to zero comes out as -0.0.
/// (A factor of 0 makes all of its open weights -0.0.)
///
/// # Panics
/// If lengths do not fit.
pub fn quantize_folded(
    w: &[f32],
    fold: Option<&[f32]>,
    scales: &[f32],
    limits: &[[i32; 2]],
    out: &mut [f32],
) {
    let (_, k) = rows_of(w, scales.len(), fold);
    let limits = limits_of(limits, scales.len());
    assert_eq!(out.len(), w.len(), "w and out differ in length");
    if w.is_empty() {
        return;
    }
    let rows = out.par_chunks_mut(k).zip(w.par_chunks(k)).enumerate().with_min_len(rows_per_task(k));
    rows.for_each(|(row, (out, w))| {
        let (lo, hi) = limits(row);
        folded_row(w, fold.map_or(1.0, |f| f[row]), scales[row], lo, hi, out);
    });
}

/// Gradients of [`quantize_folded`]: `dw` = d_out where the grid did not clamp, and, if asked for, that of the
/// factors, `d_fold[i]` = Σ d_out · (w where not clamped - out) / f.
///
/// # Panics
/// If lengths do not fit.
pub fn quantize_folded_backward(
    w: &[f32],
    fold: Option<&[f32]>,
    scales: &[f32],
    limits: &[[i32; 2]],
    d_out: &[f32],
    dw: &mut [f32],
    d_fold: Option<&mut [f32]>,
) {
    let (rows, k) = rows_of(w, scales.len(), fold);
    assert!(d_out.len() == w.len() && dw.len() == w.len(), "w, d_out and dw differ in length");
    assert!(d_fold.as_ref().is_none_or(|d| d.len() == rows), "a factor's gradient for each of {rows} rows");
    if w.is_empty() {
        return;
    }
    let limits = limits_of(limits, rows);
    let factor = |row: usize| fold.map_or(1.0, |f| f[row]);
    let row = |row: usize, dw: &mut [f32]| {
        let (lo, hi) = limits(row);
        folded_gradient_row(&w[row * k..][..k], factor(row), scales[row], lo, hi, &d_out[row * k..][..k], dw);
    };
    dw.par_chunks_mut(k).enumerate().with_min_len(rows_per_task(k)).for_each(|(i, dw)| row(i, dw));
    if let Some(d_fold) = d_fold {
        d_fold.par_iter_mut().enumerate().with_min_len(rows_per_task(k)).for_each(|(i, d)| {
            let (w, d_out) = (&w[i * k..][..k], &d_out[i * k..][..k]);
            let (lo, hi) = limits(i);
            *d = factor_gradient(w, factor(i), scales[i], lo, hi, d_out);
        });
    }
}

/// Rounds ties to even at any size: values from 2^23 on are whole already. (The instruction for it exists only from
/// SSE4.1 on; this is vector code everywhere.)
#[inline(always)]
fn round_ties_even(v: f32) -> f32 {
    const WHOLE: f32 = 8_388_608.0;
    let size = v.abs();
    let rounded = ((size + WHOLE) - WHOLE).copysign(v);
    if size < WHOLE { rounded } else { v }
}

/// [`quantize_folded`] of one weight.
#[inline(always)]
fn folded(w: f32, f: f32, scale: f32, lo: f32, hi: f32) -> f32 {
    let q = round_ties_even(w * f / scale);
    let q = if q < lo { lo } else { q };
    let q = if q > hi { hi } else { q };
    let out = q * scale / f;
    let out = if q == 0.0 || out == 0.0 { -0.0 } else { out };
    if w.to_bits() == 0 { 0.0 } else { out }
}

#[inline(always)]
fn is_inside(w: f32, f: f32, scale: f32, lo: f32, hi: f32) -> bool {
    let q = round_ties_even(w * f / scale);
    q >= lo && q <= hi
}

by_isa! {
    fn quantize_part(x: &[f32], scale: f32, lo: f32, hi: f32, y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = on_grid(x, scale, lo, hi);
        }
    }
}

by_isa! {
    fn quantize_in_place_part(x: &mut [f32], scale: f32, lo: f32, hi: f32) {
        for x in x {
            *x = on_grid(*x, scale, lo, hi);
        }
    }
}

by_isa! {
    fn gate_part(x: &[f32], dy: &[f32], lo: f32, hi: f32, dx: &mut [f32]) {
        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
            *dx = if x >= lo && x <= hi { dy } else { 0.0 };
        }
    }
}

by_isa! {
    pub(crate) fn range_block(x: &[f32]) -> (f32, f32) {
        // Several vectors of each, as one minimum waits for the one before.
        const LANES: usize = 64;
        let (mut lo, mut hi) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
        let chunks = x.chunks_exact(LANES);
        let rest = chunks.remainder();
        for x in chunks {
            for l in 0..LANES {
                lo[l] = if x[l] < lo[l] { x[l] } else { lo[l] };
                hi[l] = if x[l] > hi[l] { x[l] } else { hi[l] };
            }
        }
        for (l, &x) in rest.iter().enumerate() {
            lo[l] = lo[l].min(x);
            hi[l] = hi[l].max(x);
        }
        (lo.into_iter().fold(f32::INFINITY, f32::min), hi.into_iter().fold(f32::NEG_INFINITY, f32::max))
    }
}

by_isa! {
    fn folded_row(w: &[f32], f: f32, scale: f32, lo: f32, hi: f32, out: &mut [f32]) {
        for (out, &w) in out.iter_mut().zip(w) {
            *out = folded(w, f, scale, lo, hi);
        }
    }
}

by_isa! {
    fn folded_gradient_row(w: &[f32], f: f32, scale: f32, lo: f32, hi: f32, d_out: &[f32], dw: &mut [f32]) {
        for ((dw, &w), &d) in dw.iter_mut().zip(w).zip(d_out) {
            *dw = if is_inside(w, f, scale, lo, hi) { d } else { 0.0 };
        }
    }
}

by_isa! {
    fn factor_gradient(w: &[f32], f: f32, scale: f32, lo: f32, hi: f32, d_out: &[f32]) -> f32 {
        if f == 0.0 {
            return 0.0;
        }
        let term = |w: f32, d: f32| {
            let open = if is_inside(w, f, scale, lo, hi) { w } else { 0.0 };
            d * (open - folded(w, f, scale, lo, hi))
        };
        let mut sum = [0f32; 16];
        let (w, d_out) = (w.chunks_exact(16), d_out.chunks_exact(16));
        for (l, (&w, &d)) in w.remainder().iter().zip(d_out.remainder()).enumerate() {
            sum[l] = term(w, d);
        }
        for (w, d) in w.zip(d_out) {
            for l in 0..16 {
                sum[l] += term(w[l], d[l]);
            }
        }
        (sum.iter().map(|&s| s as f64).sum::<f64>() / f as f64) as f32
    }
}
