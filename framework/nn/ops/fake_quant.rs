//! Fake quantisation on plain slices: round to the integer grid and back, with the straight-through gradient
//! (Bengio et al., 2013; Jacob et al., 2018): inside the range the gradient passes, outside it is zero.
//!
//! The grid is ONNX's: `q = clamp(rne(x / scale) + zero, lo, hi)`, `y = (q - zero) * scale`, ties to even, so that
//! what training sees is what QuantizeLinear and the integer engine compute.

use rayon::prelude::*;

/// An integer grid: real value = (q - zero) * scale, lo <= q <= hi.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    pub scale: f32,
    pub zero: i32,
    pub lo: i32,
    pub hi: i32,
}

/// Elements per task: large enough to be worth a task, fixed so that nothing depends on threads.
const CHUNK: usize = 1 << 15;

impl Grid {
    /// The range of `x / scale` that is not clamped, as whole floats.
    fn bounds(&self) -> (f32, f32) {
        ((self.lo - self.zero) as f32, (self.hi - self.zero) as f32)
    }
}

/// y = the value of x's grid point.
pub fn forward(x: &[f32], grid: Grid) -> Vec<f32> {
    let mut y = vec![0f32; x.len()];
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| forward_into(x, y, grid));
    y
}

fn forward_into(x: &[f32], y: &mut [f32], grid: Grid) {
    let (lo, hi) = grid.bounds();
    for (y, &x) in y.iter_mut().zip(x) {
        *y = round_ties_even(x / grid.scale).max(lo).min(hi) * grid.scale;
    }
}

/// `round_ties_even` that the compiler vectorises on every x86-64: adding 2^23 to |v| < 2^23 leaves no bits for a
/// fraction, so the sum is rounded to an integer in the current (nearest, ties to even) mode. Larger values are whole
/// already: a bias on the grid of an accumulator reaches them.
#[inline(always)]
fn round_ties_even(v: f32) -> f32 {
    const WHOLE: f32 = 8_388_608.0;
    let size = v.abs();
    if size < WHOLE { ((size + WHOLE) - WHOLE).copysign(v) } else { v }
}

/// dx = dy where x was inside the range of the grid.
pub fn backward(x: &[f32], dy: &[f32], grid: Grid) -> Vec<f32> {
    let mut dx = vec![0f32; x.len()];
    dx.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK)))
        .for_each(|(dx, (x, dy))| backward_into(x, dy, dx, grid));
    dx
}

fn backward_into(x: &[f32], dy: &[f32], dx: &mut [f32], grid: Grid) {
    let (lo, hi) = grid.bounds();
    for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
        let q = round_ties_even(x / grid.scale);
        *dx = if q >= lo && q <= hi { dy } else { 0.0 };
    }
}

/// Per channel: row `i` of `x` (equal rows) on its own symmetric int8 grid of scale `scales[i]`.
pub fn forward_channels(x: &[f32], scales: &[f32], lo: i32, hi: i32) -> Vec<f32> {
    let mut y = vec![0f32; x.len()];
    let row = x.len() / scales.len();
    for ((y, x), &scale) in y.chunks_mut(row).zip(x.chunks(row)).zip(scales) {
        forward_into(x, y, Grid { scale, zero: 0, lo, hi });
    }
    y
}

pub fn backward_channels(x: &[f32], dy: &[f32], scales: &[f32], lo: i32, hi: i32) -> Vec<f32> {
    let mut dx = vec![0f32; x.len()];
    let row = x.len() / scales.len();
    for (((dx, x), dy), &scale) in dx.chunks_mut(row).zip(x.chunks(row)).zip(dy.chunks(row)).zip(scales) {
        backward_into(x, dy, dx, Grid { scale, zero: 0, lo, hi });
    }
    dx
}

/// Smallest and largest element; (+inf, -inf) of nothing. NaN is ignored.
pub fn range(x: &[f32]) -> (f32, f32) {
    let partial = |x: &[f32]| {
        let (mut lo, mut hi) = ([f32::INFINITY; 16], [f32::NEG_INFINITY; 16]);
        let chunks = x.chunks_exact(16);
        for (l, &v) in chunks.remainder().iter().enumerate() {
            lo[l] = lo[l].min(v);
            hi[l] = hi[l].max(v);
        }
        for c in chunks {
            for l in 0..16 {
                lo[l] = lo[l].min(c[l]);
                hi[l] = hi[l].max(c[l]);
            }
        }
        (lo.into_iter().fold(f32::INFINITY, f32::min), hi.into_iter().fold(f32::NEG_INFINITY, f32::max))
    };
    x.par_chunks(CHUNK)
        .map(partial)
        .reduce(|| (f32::INFINITY, f32::NEG_INFINITY), |a, b| (a.0.min(b.0), a.1.max(b.1)))
}
