//! Multi-head attention, out = softmax(q k^T / sqrt(width) + mask) v, forward and backward, without ever storing the
//! probabilities: a block of queries is handled at a time, and the backward pass computes them again from the one number
//! per query that the forward pass saves (Dao et al., 2022, "FlashAttention"). Each pair of batch element and head is a
//! task; its matrices fit a core's cache.

mod product;

use crate::isa::Isa;
use crate::scratch;
use crate::shared::Shared;
use crate::tasks::each;
use crate::transpose::scatter;
use crate::vector::{Vector, by_vector};
use product::{Left, PANEL, Right, Sizes, Target, product};
use std::marker::PhantomData;

/// Queries handled at a time: what bounds the scratch memory to a multiple of the number of keys.
const BLOCK: usize = 64;

/// Columns are filled up to a multiple of this, so that vectors are whole.
const LANES: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    pub batch: usize,
    pub heads: usize,
    /// Tokens that ask, of each batch element.
    pub queries: usize,
    /// Tokens that are looked at, of each batch element.
    pub keys: usize,
    /// Floats of one head.
    pub width: usize,
}

impl AttentionShape {
    /// Floats of `saved`: one per batch element, head and query.
    pub fn saved_len(&self) -> usize {
        self.batch * self.heads * self.queries
    }

    /// Floats of a row with all heads.
    pub fn columns(&self) -> usize {
        self.heads * self.width
    }

    /// `width^-0.5`
    fn scale(&self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }
}

/// Some columns of a matrix in row order: row r starts at `r * stride + first`.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub first: usize,
}

impl<'a> Rows<'a> {
    /// All columns of a matrix.
    pub fn whole(data: &'a [f32], columns: usize) -> Self {
        Rows { data, stride: columns, first: 0 }
    }

    /// From `row` and `column` on.
    fn part(self, row: usize, column: usize) -> Self {
        Rows { data: &self.data[row * self.stride..], first: self.first + column, ..self }
    }

    fn left(self) -> Left<'a> {
        Left { data: &self.data[self.first..], row: self.stride, step: 1 }
    }

    fn right(self) -> Right<'a> {
        Right { data: &self.data[self.first..], step: self.stride, panel: PANEL }
    }

    fn assert_holds(&self, rows: usize, columns: usize) {
        assert!(self.first + columns <= self.stride, "columns {}+{columns} of {}", self.first, self.stride);
        assert!(
            rows * self.stride <= self.data.len(),
            "{rows} rows of {} in {}",
            self.stride,
            self.data.len()
        );
    }
}

/// Some columns of a matrix in row order, to be written by several tasks.
pub struct RowsMut<'a> {
    first: *mut f32,
    rows: usize,
    stride: usize,
    columns: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: tasks write disjoint parts, by the contract of `at`.
unsafe impl Send for RowsMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for RowsMut<'_> {}

impl<'a> RowsMut<'a> {
    /// All columns of a matrix.
    pub fn whole(data: &'a mut [f32], columns: usize) -> Self {
        let [whole] = Self::split(data, columns, [0], columns);
        whole
    }

    /// `N` times `columns` columns of one matrix with rows of `stride` floats, beginning at columns `firsts`.
    ///
    /// # Panics
    /// If two of them overlap or one does not fit a row.
    pub fn split<const N: usize>(
        data: &'a mut [f32],
        stride: usize,
        firsts: [usize; N],
        columns: usize,
    ) -> [Self; N] {
        for (i, &first) in firsts.iter().enumerate() {
            assert!(first + columns <= stride, "columns {first}+{columns} of {stride}");
            assert!(
                firsts[..i].iter().all(|&other| first.abs_diff(other) >= columns),
                "columns overlap: {firsts:?}"
            );
        }
        let rows = data.len() / stride;
        let at = data.as_mut_ptr();
        firsts.map(|first| RowsMut {
            first: at.wrapping_add(first),
            rows,
            stride,
            columns,
            lifetime: PhantomData,
        })
    }

    /// Where to write `rows` rows from `row` and `columns` columns from `column`.
    ///
    /// # Safety
    /// Meanwhile no other task writes any of them.
    unsafe fn at(&self, row: usize, rows: usize, column: usize, columns: usize) -> Target<'_> {
        assert!(row + rows <= self.rows && column + columns <= self.columns);
        // SAFETY: inside the matrix (asserted), and nobody else's by the caller's promise.
        unsafe {
            Target::new(self.first.wrapping_add(row * self.stride + column), self.stride, rows, columns)
        }
    }
}

/// Writes `out` `[batch * queries][heads * width]` and `saved` `[batch][heads][queries]` (the logarithm of each query's sum
/// of exponentials, for [`backward`]).
///
/// `q` holds batch * queries rows, `k` and `v` batch * keys rows, each of heads * width columns. `mask` `[batch][keys]` is
/// added to the scores: 0, or minus infinity for a key that is not to be seen. A query that sees no key gets 0.
///
/// # Panics
/// If a slice does not have the length its shape asks.
pub fn forward(
    q: Rows,
    k: Rows,
    v: Rows,
    mask: Option<&[f32]>,
    shape: AttentionShape,
    out: &mut [f32],
    saved: &mut [f32],
) {
    let AttentionShape { batch, heads, queries, keys, width } = shape;
    assert_fits(q, k, v, mask, shape);
    assert_eq!(out.len(), batch * queries * shape.columns());
    assert_eq!(saved.len(), shape.saved_len());
    let (out, saved) = (RowsMut::whole(out, shape.columns()), Shared::new(saved));
    let padded = Padded::of(shape);
    each(batch * heads, |task| {
        let (n, first) = (task / heads, task % heads * width);
        let [k, v] = [k, v].map(|x| x.part(n * keys, first));
        let lens = [padded.panels, padded.keys, padded.scores];
        scratch::with_parts(lens, |[k_panels, mask_row, scores]| {
            into_panels(k, keys, width, k_panels);
            fill_mask(mask.map(|mask| &mask[n * keys..][..keys]), keys, mask_row);
            for from in (0..queries).step_by(BLOCK) {
                let rows = BLOCK.min(queries - from);
                let q = q.part(n * queries + from, first);
                let to_scores = Sizes { rows, columns: padded.keys, depth: width };
                product(to_scores, q.left(), panels(k_panels, width), Target::of(scores, padded.keys), false);
                // SAFETY: this task's queries.
                let saved = unsafe { saved.part(task * queries + from, rows) };
                probabilities(scores, mask_row, shape.scale(), saved);
                // SAFETY: this head's columns of some of this batch element's rows.
                let out = unsafe { out.at(n * queries + from, rows, first, width) };
                let p = Left { data: scores, row: padded.keys, step: 1 };
                product(Sizes { rows, columns: width, depth: keys }, p, v.right(), out, false);
            }
        });
    });
}

/// Writes the gradients of q, k and v from `dout`, that of [`forward`]'s `out`. `q`, `k`, `v`, `mask` and `saved` are
/// those of the forward pass; `dq`, `dk` and `dv` have the rows and columns of q, k and v, and may be columns of one
/// matrix ([`RowsMut::split`]).
///
/// # Panics
/// If a slice does not have the length its shape asks.
pub fn backward(
    q: Rows,
    k: Rows,
    v: Rows,
    mask: Option<&[f32]>,
    saved: &[f32],
    dout: &[f32],
    shape: AttentionShape,
    dq: RowsMut,
    dk: RowsMut,
    dv: RowsMut,
) {
    let AttentionShape { batch, heads, queries, keys, width } = shape;
    assert_fits(q, k, v, mask, shape);
    assert_eq!(dout.len(), batch * queries * shape.columns());
    assert_eq!(saved.len(), shape.saved_len());
    for (gradient, rows) in [(&dq, queries), (&dk, keys), (&dv, keys)] {
        assert!(gradient.columns == shape.columns() && gradient.rows >= batch * rows, "a gradient's size");
    }
    let padded = Padded::of(shape);
    let dout = Rows::whole(dout, shape.columns());
    each(batch * heads, |task| {
        let (n, first) = (task / heads, task % heads * width);
        let [k, v] = [k, v].map(|x| x.part(n * keys, first));
        let lens = [padded.panels, padded.panels, padded.keys, padded.scores, padded.scores];
        scratch::with_parts(lens, |[k_panels, v_panels, mask_row, p, ds]| {
            into_panels(k, keys, width, k_panels);
            into_panels(v, keys, width, v_panels);
            fill_mask(mask.map(|mask| &mask[n * keys..][..keys]), keys, mask_row);
            for from in (0..queries).step_by(BLOCK) {
                let rows = BLOCK.min(queries - from);
                let row = n * queries + from;
                let [q, dout] = [q, dout].map(|x| x.part(row, first));
                let to_scores = Sizes { rows, columns: padded.keys, depth: width };
                product(to_scores, q.left(), panels(k_panels, width), Target::of(p, padded.keys), false);
                product(to_scores, dout.left(), panels(v_panels, width), Target::of(ds, padded.keys), false);
                score_gradients(p, ds, mask_row, shape.scale(), &saved[task * queries + from..][..rows]);

                // SAFETY: this head's columns of this batch element's rows.
                let (dq, dk, dv) = unsafe {
                    (
                        dq.at(row, rows, first, width),
                        dk.at(n * keys, keys, first, width),
                        dv.at(n * keys, keys, first, width),
                    )
                };
                let transposed = |data| Left { data, row: 1, step: padded.keys };
                let to_keys = Sizes { rows: keys, columns: width, depth: rows };
                product(to_keys, transposed(p), dout.right(), dv, from > 0);
                product(to_keys, transposed(ds), q.right(), dk, from > 0);
                let ds = Left { data: ds, row: padded.keys, step: 1 };
                product(Sizes { rows, columns: width, depth: keys }, ds, k.right(), dq, false);
            }
        });
    });
}

/// Sizes of a task's scratch memory; scores have columns filled up to whole vectors.
struct Padded {
    keys: usize,
    /// Floats of a matrix with a column per key, in panels.
    panels: usize,
    /// Floats of the scores of a block.
    scores: usize,
}

impl Padded {
    fn of(shape: AttentionShape) -> Padded {
        let keys = shape.keys.next_multiple_of(LANES);
        Padded {
            keys,
            panels: shape.keys.next_multiple_of(PANEL) * shape.width,
            scores: BLOCK.min(shape.queries) * keys,
        }
    }
}

fn panels(data: &[f32], width: usize) -> Right<'_> {
    Right { data, step: PANEL, panel: PANEL * width }
}

fn assert_fits(q: Rows, k: Rows, v: Rows, mask: Option<&[f32]>, shape: AttentionShape) {
    let AttentionShape { batch, heads, queries, keys, width } = shape;
    assert!(batch > 0 && heads > 0 && queries > 0 && keys > 0 && width > 0, "{shape:?}");
    q.assert_holds(batch * queries, shape.columns());
    k.assert_holds(batch * keys, shape.columns());
    v.assert_holds(batch * keys, shape.columns());
    assert!(mask.is_none_or(|mask| mask.len() == batch * keys), "a mask of batch * keys numbers");
}

/// Lays out rows as columns, in panels of 64; the last vector is filled up with zeros. A vector of rows at a time, so that
/// a page of memory is visited once.
fn into_panels(from: Rows, rows: usize, width: usize, panels: &mut [f32]) {
    for first in (0..rows).step_by(LANES) {
        let panel = &mut panels[first / PANEL * PANEL * width..][..PANEL * width];
        let data = &from.data[first * from.stride + from.first..];
        let here = LANES.min(rows - first);
        scatter(Isa::best(), data, here, width, from.stride, panel, LANES, |l| l * PANEL + first % PANEL);
    }
}

/// The mask of one batch element; keys that only fill up a vector are not to be seen.
fn fill_mask(mask: Option<&[f32]>, keys: usize, row: &mut [f32]) {
    match mask {
        Some(mask) => row[..keys].copy_from_slice(mask),
        None => row[..keys].fill(0.0),
    }
    row[keys..].fill(f32::NEG_INFINITY);
}

by_vector! {
    /// Replaces the scores of each query by their softmax, exp(scale * score + mask) over its sum, and writes the
    /// logarithm of that sum. If no key is seen these are 0 and infinity.
    fn probabilities(scores: &mut [f32], mask: &[f32], scale: f32, log_sums: &mut [f32]) = probabilities_of
}

#[inline(always)]
fn probabilities_of<V: Vector>(v: V, scores: &mut [f32], mask: &[f32], scale: f32, log_sums: &mut [f32]) {
    let factor = v.splat(scale);
    for (row, log_sum) in scores.chunks_exact_mut(mask.len()).zip(log_sums) {
        let mut most = v.splat(f32::NEG_INFINITY);
        for (s, m) in row.chunks_exact_mut(V::COUNT).zip(mask.chunks_exact(V::COUNT)) {
            let score = v.load(s).mul_add(factor, v.load(m));
            score.store(s);
            most = score.larger(most);
        }
        let most = most.largest();
        if most == f32::NEG_INFINITY {
            row.fill(0.0);
            *log_sum = f32::INFINITY;
            continue;
        }
        let (shift, mut sum) = (v.splat(most), v.splat(0.0));
        for s in row.chunks_exact_mut(V::COUNT) {
            let e = v.load(s).sub(shift).exp();
            e.store(s);
            sum = sum.add(e);
        }
        let sum = sum.sum();
        let inverse = v.splat(1.0 / sum);
        for s in row.chunks_exact_mut(V::COUNT) {
            v.load(s).mul(inverse).store(s);
        }
        *log_sum = most + sum.ln();
    }
}

by_vector! {
    /// Replaces scores `p` by probabilities, and the gradients `dp` of the probabilities by those of the products q k^T:
    /// p (dp - sum of p dp) scale.
    fn score_gradients(p: &mut [f32], dp: &mut [f32], mask: &[f32], scale: f32, log_sums: &[f32])
        = score_gradients_of
}

#[inline(always)]
fn score_gradients_of<V: Vector>(
    v: V,
    p: &mut [f32],
    dp: &mut [f32],
    mask: &[f32],
    scale: f32,
    log_sums: &[f32],
) {
    let width = mask.len();
    let factor = v.splat(scale);
    for ((p, dp), &log_sum) in p.chunks_exact_mut(width).zip(dp.chunks_exact_mut(width)).zip(log_sums) {
        let (shift, mut sum) = (v.splat(log_sum), v.splat(0.0));
        for ((p, dp), m) in
            p.chunks_exact_mut(V::COUNT).zip(dp.chunks_exact(V::COUNT)).zip(mask.chunks_exact(V::COUNT))
        {
            let e = v.load(p).mul_add(factor, v.load(m)).sub(shift).exp();
            e.store(p);
            sum = e.mul_add(v.load(dp), sum);
        }
        let mean = v.splat(sum.sum());
        for (p, dp) in p.chunks_exact(V::COUNT).zip(dp.chunks_exact_mut(V::COUNT)) {
            v.load(p).mul(factor).mul(v.load(dp).sub(mean)).store(dp);
        }
    }
}
