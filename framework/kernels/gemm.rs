//! Matrix products: of small strided matrices, and of linear layers.
//!
//! Both run on the register [`tile`]. The right operand is packed into panels of up to 64 columns, so that a step reads
//! neighbouring lines; the left one is read where it lies.

pub mod tile;

use crate::conv;
use crate::isa::Isa;
use crate::scratch::{self, Buffer};
use crate::shape::{ConvShape, Window};
use crate::transpose::scatter;
use std::cell::RefCell;
use tile::{First, MOST_COLUMNS, Product, Row};

/// Steps of one pass over a panel: 512 of 64 columns are 128 KB, which stay in L2 beside the left operand.
pub(crate) const STEPS: usize = 2304;

/// Rows for which a right operand that could be read in place is packed all the same.
const PACKED_FROM: usize = 24;

/// Element (i, j) of a matrix is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows back to back.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Matrix<'a> {
        Matrix { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    pub fn transposed(self) -> Matrix<'a> {
        Matrix {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    fn assert_inside(&self) {
        let Matrix { rows, cols, .. } = *self;
        if rows > 0 && cols > 0 {
            let last = (rows - 1) * self.row_stride + (cols - 1) * self.col_stride;
            assert!(last < self.data.len(), "a {rows} x {cols} matrix in {} elements", self.data.len());
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<(Buffer, Vec<Row>)> = const { RefCell::new((Buffer::new(), Vec::new())) };
}

/// `c[i * ldc + j] = (accumulate ? c : 0) + Σ_k a(i, k) * b(k, j)` on the calling thread. Fastest if rows or columns of `b`
/// are contiguous.
///
/// # Panics
/// If the matrices do not fit each other or a slice is too short.
pub fn product(a: Matrix<'_>, b: Matrix<'_>, c: &mut [f32], ldc: usize, accumulate: bool) {
    product_on(Isa::best(), a, b, c, ldc, accumulate);
}

pub(crate) fn product_on(isa: Isa, a: Matrix, b: Matrix, c: &mut [f32], ldc: usize, accumulate: bool) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert_eq!(k, b.rows, "columns of a and rows of b");
    a.assert_inside();
    b.assert_inside();
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= ldc || m == 1, "rows of {n} columns, {ldc} apart");
    assert!((m - 1) * ldc + n <= c.len(), "{m} rows of {n} columns, {ldc} apart, in {} elements", c.len());
    scratch::with(&SCRATCH, |(buffer, rows)| {
        rows.clear();
        rows.extend((0..m).map(|i| Row { a: i * a.row_stride, c: i * ldc }));
        let in_place = b.col_stride == 1 && m < PACKED_FROM;
        for first in (0..k.max(1)).step_by(STEPS) {
            let steps = STEPS.min(k - first);
            for j in (0..n).step_by(MOST_COLUMNS) {
                let columns = MOST_COLUMNS.min(n - j);
                let (b_at, b_step) = if in_place || steps == 0 {
                    (b.data.as_ptr().wrapping_add(first * b.row_stride + j), b.row_stride)
                } else {
                    let lanes = columns.next_multiple_of(16);
                    let panel = buffer.at_least(steps * lanes);
                    pack(isa, b, first..first + steps, j..j + columns, panel, lanes);
                    (panel.as_ptr(), lanes)
                };
                let product = Product {
                    ahead: None,
                    a: a.data.as_ptr().wrapping_add(first * a.col_stride),
                    runs: &[0],
                    run_len: steps,
                    a_step: a.col_stride,
                    b: b_at,
                    b_step,
                    c: c.as_mut_ptr().wrapping_add(j),
                    columns,
                    first: if accumulate || first > 0 { First::Sum } else { First::Zero },
                    last: None,
                };
                // SAFETY: `assert_inside` and the assert on `c` bound every element; `isa` is supported.
                unsafe { tile::run(isa, &product, rows) };
            }
        }
    });
}

/// Copies a block of `b` into rows of `lanes` elements.
fn pack(
    isa: Isa,
    b: Matrix,
    steps: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
    panel: &mut [f32],
    lanes: usize,
) {
    let from = |k: usize, j: usize| k * b.row_stride + j * b.col_stride;
    if b.row_stride == 1 && b.col_stride >= b.rows {
        let x = &b.data[from(steps.start, columns.start)..];
        scatter(isa, x, columns.len(), steps.len(), b.col_stride, panel, lanes, |k| k * lanes);
        return;
    }
    for (k, to) in steps.zip(panel.chunks_exact_mut(lanes)) {
        if b.col_stride == 1 {
            to[..columns.len()].copy_from_slice(&b.data[from(k, columns.start)..][..columns.len()]);
        } else {
            for (j, to) in columns.clone().zip(to) {
                *to = b.data[from(k, j)];
            }
        }
    }
}

/// A linear layer is a pointwise convolution of `m` images of one pixel.
fn pointwise(m: usize, k: usize, n: usize) -> ConvShape {
    ConvShape::new([m, k, 1, 1], [n, k, 1, 1], Window::new(1, 0))
}

/// `y[m][n]` = `x[m][k]` · `w[n][k]`ᵀ + `bias[n]`.
///
/// # Panics
/// If a slice has another length.
pub fn linear(x: &[f32], w: &[f32], bias: Option<&[f32]>, m: usize, k: usize, n: usize, y: &mut [f32]) {
    conv::forward(x, w, bias, &pointwise(m, k, n), y);
}

/// `dx[m][k]` = `dy[m][n]` · `w[n][k]`.
///
/// # Panics
/// If a slice has another length.
pub fn linear_input_gradient(w: &[f32], dy: &[f32], m: usize, k: usize, n: usize, dx: &mut [f32]) {
    conv::input_gradient(w, dy, &pointwise(m, k, n), dx);
}

/// `dw[n][k]` = `dy[m][n]`ᵀ · `x[m][k]`.
///
/// # Panics
/// If a slice has another length.
pub fn linear_weight_gradient(x: &[f32], dy: &[f32], m: usize, k: usize, n: usize, dw: &mut [f32]) {
    conv::weight_gradient(x, dy, &pointwise(m, k, n), dw);
}

#[cfg(test)]
mod tests;
