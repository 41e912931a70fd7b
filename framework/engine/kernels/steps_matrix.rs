//! f32 reductions, softmax, and the matrix product for operands that are both made at run time.

use super::{ARGS_MAX, Nd, by_isa, share};
use crate::target::Isa;
use lacuna_ir::reference::fixed::exp_value;
use std::mem::MaybeUninit;
use std::ops::Range;

mod tile {
    pub use lacuna_kernels::gemm::tile::*;
    pub use lacuna_kernels::isa::Isa;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReduceKind {
    /// One result per outer index: the mean of the inner ones.
    Mean,
    Sum,
    /// As many results as inputs: softmax over the inner index.
    Softmax,
}

impl ReduceKind {
    pub fn name(self) -> &'static str {
        match self {
            ReduceKind::Mean => "mean_f32",
            ReduceKind::Sum => "sum_f32",
            ReduceKind::Softmax => "softmax_f32",
        }
    }
}

/// For every index of `outer`, all of `inner`; operands y, x in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReduceStep {
    pub kind: ReduceKind,
    pub outer: Nd,
    pub inner: Nd,
}

by_isa! {
    /// # Safety
    /// As `super::run_reduce`.
    run_reduce, reduce, (s: &ReduceStep, y: *mut f32, x: *const f32, part: usize, parts: usize)
}

#[inline(always)]
unsafe fn reduce(s: &ReduceStep, y: *mut f32, x: *const f32, part: usize, parts: usize) {
    let (so, si) = (&s.outer, &s.inner);
    let outer_strides = [so.strides[0][so.rank - 1], so.strides[1][so.rank - 1]];
    let inner_strides = [si.strides[0][si.rank - 1], si.strides[1][si.rank - 1]];
    // Not `Nd::each`: its closure would be compiled for any processor, where a fused multiplication is a call.
    for (at, n) in so.runs(part, parts) {
        for i in 0..n {
            // SAFETY: outer plus inner indices address elements of y and x (`super::run_reduce`).
            unsafe {
                let y = y.add(at[0] + i * outer_strides[0]);
                let x = x.add(at[1] + i * outer_strides[1]);
                match s.kind {
                    ReduceKind::Mean | ReduceKind::Sum => {
                        let mut sum = 0.0f32;
                        for (at, n) in si.runs(0, 1) {
                            (0..n).for_each(|j| sum += *x.add(at[1] + j * inner_strides[1]));
                        }
                        let count = if s.kind == ReduceKind::Mean { si.elements() as f32 } else { 1.0 };
                        *y = sum / count;
                    }
                    ReduceKind::Softmax => softmax(y, x, si.elements(), inner_strides),
                }
            }
        }
    }
}

/// `exp(x - max) / Σ exp(x - max)` over `n` elements.
#[inline(always)]
unsafe fn softmax(y: *mut f32, x: *const f32, n: usize, [sy, sx]: [usize; 2]) {
    // SAFETY: the caller's `n` elements at these strides.
    unsafe {
        if sx == 1 && sy == 1 {
            return softmax_row(std::slice::from_raw_parts_mut(y, n), std::slice::from_raw_parts(x, n));
        }
        let max = (0..n).fold(f32::NEG_INFINITY, |m, j| m.max(*x.add(j * sx)));
        let mut sum = 0.0f32;
        for j in 0..n {
            let e = (*x.add(j * sx) - max).exp();
            *y.add(j * sy) = e;
            sum += e;
        }
        (0..n).for_each(|j| *y.add(j * sy) /= sum);
    }
}

/// [`softmax`] of elements side by side, in lanes that the compiler makes vectors of.
#[inline(always)]
fn softmax_row(y: &mut [f32], x: &[f32]) {
    const LANES: usize = 16;
    let whole = x.len() / LANES * LANES;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for x in x.chunks_exact(LANES) {
        lanes.iter_mut().zip(x).for_each(|(m, &x)| *m = if x > *m { x } else { *m });
    }
    let max = lanes.iter().chain(&x[whole..]).fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    let mut sums = [0.0f32; LANES];
    for (y, x) in y.chunks_mut(LANES).zip(x.chunks(LANES)) {
        for ((y, &x), sum) in y.iter_mut().zip(x).zip(&mut sums) {
            *y = exp_value(x - max);
            *sum += *y;
        }
    }
    let sum: f32 = sums.iter().sum();
    y.iter_mut().for_each(|y| *y /= sum);
}

/// `y = alpha * a b + beta * c` for every index of `batch` (operands y, a, b, c).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatMulStep {
    pub batch: Nd,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Strides along m and n, m and k, k and n, m and n.
    pub y: [usize; 2],
    pub a: [usize; 2],
    pub b: [usize; 2],
    pub c: [usize; 2],
    pub alpha: f32,
    /// 0 if there is no c.
    pub beta: f32,
}

impl MatMulStep {
    pub fn units(&self) -> usize {
        self.batch.elements() * self.m
    }
}

/// The most columns of a product's tile.
const PANEL: usize = tile::MOST_COLUMNS;
/// Steps of a product that are summed in registers before the next are.
const DEPTH: usize = 256;
/// Rows that are multiplied with one panel after the other.
const ROWS: usize = 96;

/// Runs one part of the products, by the register tile that dense layers use.
///
/// # Safety
/// As `super::run_matmul`.
pub unsafe fn run_matmul(isa: Isa, s: &MatMulStep, p: [*mut u8; ARGS_MAX], part: usize, parts: usize) {
    let rows = share(s.units(), part, parts);
    let last = s.batch.rank - 1;
    let mut first = 0;
    s.batch.each(0, 1, |at, len| {
        for i in 0..len {
            let at: [usize; ARGS_MAX] = std::array::from_fn(|a| at[a] + i * s.batch.strides[a][last]);
            let (from, to) = (rows.start.max(first), rows.end.min(first + s.m));
            if from < to {
                let operands: [*mut f32; ARGS_MAX] =
                    std::array::from_fn(|a| p[a].cast::<f32>().wrapping_add(at[a]));
                // SAFETY: these rows of this product; parts have disjoint rows (`super::run_matmul`).
                unsafe { product(isa, s, operands, from - first..to - first) };
            }
            first += s.m;
        }
    });
}

/// # Safety
/// The processor has `isa`; the operands hold what the step addresses, and `rows` of y are nobody else's.
unsafe fn product(isa: Isa, s: &MatMulStep, [y, a, b, c]: [*mut f32; ARGS_MAX], rows: Range<usize>) {
    let isa = isa.of_tiles();
    let width = if isa == tile::Isa::Avx512 { PANEL } else { 16 };
    let (mut panel, mut sums) =
        (MaybeUninit::<[f32; DEPTH * PANEL]>::uninit(), MaybeUninit::<[f32; ROWS * PANEL]>::uninit());
    let (panel, sums) = (panel.as_mut_ptr().cast::<f32>(), sums.as_mut_ptr().cast::<f32>());
    // SAFETY: as the caller promises; panels and sums are within their arrays, and written before they are read.
    unsafe {
        for first in (0..s.n).step_by(width) {
            let columns = width.min(s.n - first);
            for start in (0..s.k).step_by(DEPTH) {
                let depth = DEPTH.min(s.k - start);
                let from = b.wrapping_add(start * s.b[0] + first * s.b[1]);
                let (from, step) = match s.b[1] {
                    1 => (from.cast_const(), s.b[0]),
                    _ => (side_by_side(from, s.b, [depth, columns], panel), columns),
                };
                for block in rows.clone().step_by(ROWS) {
                    let count = ROWS.min(rows.end - block);
                    let y = y.wrapping_add(block * s.y[0] + first * s.y[1]);
                    // Where columns of y lie apart, sums are kept here.
                    let (to, to_row) = if s.y[1] == 1 { (y, s.y[0]) } else { (sums, PANEL) };
                    let mut tile_rows = [tile::Row { a: 0, c: 0 }; ROWS];
                    for (i, row) in tile_rows[..count].iter_mut().enumerate() {
                        *row = tile::Row { a: (block + i) * s.a[0], c: i * to_row };
                    }
                    if s.y[1] != 1 && start > 0 {
                        each(count, columns, |i, j| *to.add(i * PANEL + j) = *y.add(i * s.y[0] + j * s.y[1]));
                    }
                    let product = tile::Product {
                        a: a.wrapping_add(start * s.a[1]),
                        runs: &[0],
                        run_len: depth,
                        a_step: s.a[1],
                        b: from,
                        b_step: step,
                        c: to,
                        columns,
                        first: if start == 0 { tile::First::Zero } else { tile::First::Sum },
                        last: None,
                        ahead: None,
                    };
                    tile::run(isa, &product, &tile_rows[..count]);
                    if s.y[1] != 1 {
                        each(count, columns, |i, j| *y.add(i * s.y[0] + j * s.y[1]) = *to.add(i * PANEL + j));
                    }
                }
            }
        }
        if s.alpha == 1.0 && s.beta == 0.0 {
            return;
        }
        let (y, c) = (y.wrapping_add(rows.start * s.y[0]), c.wrapping_add(rows.start * s.c[0]));
        each(rows.len(), s.n, |i, j| {
            let y = y.add(i * s.y[0] + j * s.y[1]);
            let addend = if s.beta == 0.0 { 0.0 } else { s.beta * *c.add(i * s.c[0] + j * s.c[1]) };
            *y = s.alpha * *y + addend;
        });
    }
}

fn each(rows: usize, columns: usize, mut f: impl FnMut(usize, usize)) {
    (0..rows).for_each(|i| (0..columns).for_each(|j| f(i, j)));
}

/// Copies `depth` by `columns` elements of b so that columns lie side by side.
///
/// # Safety
/// They can be read, and as many written at `panel`.
unsafe fn side_by_side(
    b: *const f32,
    strides: [usize; 2],
    [depth, columns]: [usize; 2],
    panel: *mut f32,
) -> *const f32 {
    for j in 0..columns {
        let column = b.wrapping_add(j * strides[1]);
        for k in 0..depth {
            // SAFETY: the caller's promise.
            unsafe { *panel.add(k * columns + j) = *column.add(k * strides[0]) };
        }
    }
    panel
}
