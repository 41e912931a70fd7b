//! c = a * b for the small matrices of one attention head, all in cache.

use crate::gemm::tile::{First, MOST_COLUMNS, Product, Row, run};
use crate::isa::Isa;
use std::marker::PhantomData;

/// Columns of a panel of [`Right`].
pub const PANEL: usize = MOST_COLUMNS;

/// Rows handed to the tiles at a time: whole tiles of every height.
const ROWS: usize = 96;

/// The left factor: element (i, l) at `i * row + l * step`, so a transposed matrix is one with its strides exchanged.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub step: usize,
}

/// The right factor: element (l, j) at `j / 64 * panel + l * step + j % 64`. A matrix in row order has 64 for `panel`.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    pub data: &'a [f32],
    pub step: usize,
    pub panel: usize,
}

/// Where a product goes.
pub struct Target<'a> {
    at: *mut f32,
    row: usize,
    rows: usize,
    columns: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

impl<'a> Target<'a> {
    /// A matrix in row order.
    pub fn of(data: &'a mut [f32], columns: usize) -> Self {
        Target {
            at: data.as_mut_ptr(),
            row: columns,
            rows: data.len() / columns,
            columns,
            lifetime: PhantomData,
        }
    }

    /// `rows` rows, `row` apart, of `columns` columns.
    ///
    /// # Safety
    /// They may be written during `'a`, by nobody else.
    pub unsafe fn new(at: *mut f32, row: usize, rows: usize, columns: usize) -> Self {
        Target { at, row, rows, columns, lifetime: PhantomData }
    }
}

/// Sizes of a product: c is `[rows][columns]`, and `depth` products are summed for each element.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
}

/// c = a * b, or c += a * b if `add`.
///
/// # Panics
/// If a matrix is smaller than its sizes.
pub fn product(sizes: Sizes, a: Left, b: Right, c: Target, add: bool) {
    let Sizes { rows, columns, depth } = sizes;
    assert!(rows > 0 && columns > 0 && depth > 0);
    assert!(a.data.len() > (rows - 1) * a.row + (depth - 1) * a.step);
    assert!(c.rows >= rows && c.columns >= columns);
    for from in (0..columns).step_by(PANEL) {
        let here = PANEL.min(columns - from);
        let panel = &b.data[from / PANEL * b.panel..];
        assert!(panel.len() >= (depth - 1) * b.step + here);
        let product = Product {
            ahead: None,
            a: a.data.as_ptr(),
            runs: &[0],
            run_len: depth,
            a_step: a.step,
            b: panel.as_ptr(),
            b_step: b.step,
            c: c.at.wrapping_add(from),
            columns: here,
            first: if add { First::Sum } else { First::Zero },
            last: None,
        };
        for first in (0..rows).step_by(ROWS) {
            let at: [Row; ROWS] =
                std::array::from_fn(|i| Row { a: (first + i) * a.row, c: (first + i) * c.row });
            let at = &at[..ROWS.min(rows - first)];
            // SAFETY: the processor has the best set; every element of the three matrices is inside (asserted above).
            unsafe { run(Isa::best(), &product, at) };
        }
    }
}
