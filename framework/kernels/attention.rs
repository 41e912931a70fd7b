//! Multi-head attention, out = softmax(q k^T / sqrt(width) + mask) v, forward and backward, without ever storing the
//! probabilities: a block of queries is handled at a time, and the backward pass computes them again from the one number
//! per query that the forward pass saves (Dao et al., 2022, "FlashAttention"). Each pair of batch element and head is a
//! task; its matrices fit a core's cache.

mod product;

use crate::isa::Isa;
use crate::shared::Shared;
use crate::tasks::{each, with_scratch};
use crate::transpose::scatter;
use crate::vector::{Vector, by_vector};
use product::{Left, PANEL, Right, Sizes, product};

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

    fn at(&self, row: usize, columns: usize) -> &'a [f32] {
        &self.data[row * self.stride + self.first..][..columns]
    }

    fn skip_columns(self, columns: usize) -> Self {
        Rows { first: self.first + columns, ..self }
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

/// Some columns of a matrix in row order, to be written.
pub struct RowsMut<'a> {
    data: Shared<'a, f32>,
    rows: usize,
    stride: usize,
    first: usize,
    columns: usize,
}

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
        let data = Shared::new(data);
        firsts.map(|first| RowsMut { data, rows, stride, first, columns })
    }

    /// # Safety
    /// No other task holds an overlapping part.
    #[allow(clippy::mut_from_ref)]
    unsafe fn at(&self, row: usize, first: usize, columns: usize) -> &mut [f32] {
        assert!(first + columns <= self.columns);
        // SAFETY: columns of this matrix, disjoint from those of the others of `split` and, by the caller's promise,
        // from those of other tasks.
        unsafe { self.data.part(row * self.stride + self.first + first, columns) }
    }
}

/// Writes `out` [batch * queries][heads * width] and `saved` [batch][heads][queries] (the logarithm of each query's sum
/// of exponentials, for [`backward`]).
///
/// `q` holds batch * queries rows, `k` and `v` batch * keys rows, each of heads * width columns. `mask` [batch][keys] is
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
    let sizes = Padded::of(shape);
    let lens =
        [sizes.key_panels, keys * sizes.width, sizes.keys, BLOCK * sizes.keys, BLOCK * sizes.width, BLOCK];
    each(batch * heads, |task| {
        let (n, head) = (task / heads, task % heads);
        let first = head * width;
        let [q, k, v] = [q, k, v].map(|rows| rows.skip_columns(first));
        with_scratch(lens, |[k_panels, v_rows, mask_row, scores, sums, inverse]| {
            into_panels(k, n * keys, keys, width, k_panels);
            copy_rows(v, n * keys, keys, width, v_rows);
            fill_mask(mask.map(|mask| &mask[n * keys..][..keys]), keys, mask_row);
            for from in (0..queries).step_by(BLOCK) {
                let rows = BLOCK.min(queries - from);
                let row = n * queries + from;
                let q_block = Left { data: &q.data[row * q.stride + q.first..], row: q.stride, step: 1 };
                let k_panels = Right { data: k_panels, step: PANEL, panel: PANEL * width };
                let to_scores = Sizes { rows, columns: sizes.keys, depth: width };
                product(to_scores, q_block, k_panels, scores, sizes.keys, false);
                // SAFETY: this task's queries.
                let saved = unsafe { saved.part(task * queries + from, rows) };
                exponentials(scores, mask_row, shape.scale(), saved, inverse);
                let scores = Left { data: scores, row: sizes.keys, step: 1 };
                let v_rows = Right { data: v_rows, step: sizes.width, panel: PANEL };
                let to_out = Sizes { rows, columns: sizes.width, depth: keys };
                product(to_out, scores, v_rows, sums, sizes.width, false);
                for i in 0..rows {
                    // SAFETY: this head's columns of one of this batch element's rows.
                    let out = unsafe { out.at(row + i, first, width) };
                    for (out, sum) in out.iter_mut().zip(&sums[i * sizes.width..]) {
                        *out = sum * inverse[i];
                    }
                }
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
    let sizes = Padded::of(shape);
    let (block, whole) = (BLOCK * sizes.width, keys * sizes.width);
    let scores = BLOCK * sizes.keys;
    let lens = [
        sizes.key_panels,
        sizes.key_panels,
        whole,
        sizes.keys,
        block,
        block,
        scores,
        scores,
        block,
        whole,
        whole,
    ];
    each(batch * heads, |task| {
        let (n, head) = (task / heads, task % heads);
        let first = head * width;
        let [q, k, v, dout] =
            [q, k, v, Rows::whole(dout, shape.columns())].map(|rows| rows.skip_columns(first));
        with_scratch(lens, |parts| {
            let [
                k_panels,
                v_panels,
                k_rows,
                mask_row,
                q_block,
                dout_block,
                p,
                ds,
                dq_block,
                dk_rows,
                dv_rows,
            ] = parts;
            into_panels(k, n * keys, keys, width, k_panels);
            into_panels(v, n * keys, keys, width, v_panels);
            copy_rows(k, n * keys, keys, width, k_rows);
            fill_mask(mask.map(|mask| &mask[n * keys..][..keys]), keys, mask_row);
            let panels = |data| Right { data, step: PANEL, panel: PANEL * width };
            let (k_panels, v_panels) = (panels(k_panels), panels(v_panels));
            for from in (0..queries).step_by(BLOCK) {
                let rows = BLOCK.min(queries - from);
                let row = n * queries + from;
                copy_rows(q, row, rows, width, q_block);
                copy_rows(dout, row, rows, width, dout_block);
                let in_rows = |data| Left { data, row: sizes.width, step: 1 };
                let over_rows = |data| Right { data, step: sizes.width, panel: PANEL };

                let to_scores = Sizes { rows, columns: sizes.keys, depth: width };
                product(to_scores, in_rows(q_block), k_panels, p, sizes.keys, false);
                product(to_scores, in_rows(dout_block), v_panels, ds, sizes.keys, false);
                let saved = &saved[task * queries + from..][..rows];
                score_gradients(p, ds, mask_row, shape.scale(), saved);

                let transposed = |data| Left { data, row: 1, step: sizes.keys };
                let to_keys = Sizes { rows: keys, columns: sizes.width, depth: rows };
                product(to_keys, transposed(p), over_rows(dout_block), dv_rows, sizes.width, from > 0);
                product(to_keys, transposed(ds), over_rows(q_block), dk_rows, sizes.width, from > 0);
                let ds = Left { data: ds, row: sizes.keys, step: 1 };
                let to_queries = Sizes { rows, columns: sizes.width, depth: keys };
                product(to_queries, ds, over_rows(k_rows), dq_block, sizes.width, false);
                for i in 0..rows {
                    // SAFETY: this head's columns of one of this batch element's rows.
                    let dq = unsafe { dq.at(row + i, first, width) };
                    dq.copy_from_slice(&dq_block[i * sizes.width..][..width]);
                }
            }
            for (to, from) in [(&dk, dk_rows), (&dv, dv_rows)] {
                for i in 0..keys {
                    // SAFETY: as above.
                    let to = unsafe { to.at(n * keys + i, first, width) };
                    to.copy_from_slice(&from[i * sizes.width..][..width]);
                }
            }
        });
    });
}

/// A head's sizes with columns filled up to whole vectors.
struct Padded {
    width: usize,
    keys: usize,
    /// Floats of a matrix with a column per key, in panels.
    key_panels: usize,
}

impl Padded {
    fn of(shape: AttentionShape) -> Padded {
        Padded {
            width: shape.width.next_multiple_of(LANES),
            keys: shape.keys.next_multiple_of(LANES),
            key_panels: shape.keys.next_multiple_of(PANEL) * shape.width,
        }
    }
}

fn assert_fits(q: Rows, k: Rows, v: Rows, mask: Option<&[f32]>, shape: AttentionShape) {
    let AttentionShape { batch, heads, queries, keys, width } = shape;
    assert!(batch > 0 && heads > 0 && queries > 0 && keys > 0 && width > 0, "{shape:?}");
    q.assert_holds(batch * queries, shape.columns());
    k.assert_holds(batch * keys, shape.columns());
    v.assert_holds(batch * keys, shape.columns());
    assert!(mask.is_none_or(|mask| mask.len() == batch * keys), "a mask of batch * keys numbers");
}

/// Copies `rows` rows from `row`, each filled up with zeros to whole vectors.
fn copy_rows(from: Rows, row: usize, rows: usize, width: usize, to: &mut [f32]) {
    for (i, to) in to.chunks_exact_mut(width.next_multiple_of(LANES)).take(rows).enumerate() {
        to[..width].copy_from_slice(from.at(row + i, width));
        to[width..].fill(0.0);
    }
}

/// Lays out `rows` rows from `row` as columns, in panels of 64; the last vector is filled up with zeros.
fn into_panels(from: Rows, row: usize, rows: usize, width: usize, panels: &mut [f32]) {
    for (i, panel) in panels.chunks_exact_mut(PANEL * width).enumerate() {
        let here = PANEL.min(rows - i * PANEL);
        let data = &from.data[(row + i * PANEL) * from.stride + from.first..];
        let lanes = here.next_multiple_of(LANES);
        scatter(Isa::best(), data, here, width, from.stride, panel, lanes, |l| l * PANEL);
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
    /// Replaces the scores of each query by exp(scale * score + mask - the largest), and writes the logarithm of the sum
    /// of exp(scale * score + mask) (infinite if no key is seen) and the inverse of the sum (then 0).
    fn exponentials(scores: &mut [f32], mask: &[f32], scale: f32, log_sums: &mut [f32], inverse: &mut [f32])
        = exponentials_of
}

#[inline(always)]
fn exponentials_of<V: Vector>(
    v: V,
    scores: &mut [f32],
    mask: &[f32],
    scale: f32,
    log_sums: &mut [f32],
    inverse: &mut [f32],
) {
    let factor = v.splat(scale);
    for ((row, log_sum), inverse) in scores.chunks_exact_mut(mask.len()).zip(log_sums).zip(inverse) {
        let mut most = v.splat(f32::NEG_INFINITY);
        for (s, m) in row.chunks_exact_mut(V::COUNT).zip(mask.chunks_exact(V::COUNT)) {
            let score = v.load(s).mul_add(factor, v.load(m));
            score.store(s);
            most = score.larger(most);
        }
        let most = most.largest();
        if most == f32::NEG_INFINITY {
            row.fill(0.0);
            (*log_sum, *inverse) = (f32::INFINITY, 0.0);
            continue;
        }
        let (shift, mut sum) = (v.splat(most), v.splat(0.0));
        for s in row.chunks_exact_mut(V::COUNT) {
            let e = v.load(s).sub(shift).exp();
            e.store(s);
            sum = sum.add(e);
        }
        let sum = sum.sum();
        (*log_sum, *inverse) = (most + sum.ln(), 1.0 / sum);
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
