//! Steps on rows: look-ups in a table of rows, and layer normalisation with a sum before and a rounding behind it.

use super::{by_isa, requantize, share};
use crate::target::Isa;
use lacuna_ir::op::{Affine, Requant};
use lacuna_ir::reference::norm::{add_norm_row, offset};

/// Copies rows of `x[outer, limit, inner]` to `y[outer, indices, inner]`; both are dense, sizes are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatherStep {
    pub outer: usize,
    pub limit: usize,
    pub indices: usize,
    pub inner_bytes: usize,
    /// Indices are i64, else i32.
    pub wide: bool,
}

impl GatherStep {
    pub fn units(&self) -> usize {
        self.outer * self.indices
    }
}

/// The place of index `i` among `limit`; a negative one counts from the end. One that is out of range, which
/// `Session` refuses where it sees it, finds the nearest there is.
pub fn index_in(i: i64, limit: usize) -> usize {
    let last = limit as i64 - 1;
    (if i < 0 { i.saturating_add(limit as i64) } else { i }).clamp(0, last) as usize
}

/// # Safety
/// `y`, `x` and `indices` are the first elements of dense operands of the step's sizes; nobody writes the last two
/// meanwhile, and other parts write other rows of `y`.
pub unsafe fn run_gather(
    s: &GatherStep,
    y: *mut u8,
    x: *const u8,
    indices: *const u8,
    part: usize,
    parts: usize,
) {
    for unit in share(s.units(), part, parts) {
        let (outer, i) = (unit / s.indices, unit % s.indices);
        // SAFETY: `i` is one of the indices, `at` one of x's rows.
        unsafe {
            let index = match s.wide {
                true => *indices.cast::<i64>().add(i),
                false => i64::from(*indices.cast::<i32>().add(i)),
            };
            let at = outer * s.limit + index_in(index, s.limit);
            std::ptr::copy_nonoverlapping(
                x.add(at * s.inner_bytes),
                y.add(unit * s.inner_bytes),
                s.inner_bytes,
            );
        }
    }
}

/// A row operand: elements from row to row, and what they mean where they are u8.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowOperand {
    pub stride: usize,
    /// Absent: elements are f32.
    pub affine: Option<Affine>,
}

/// `lacuna_ir`'s `AddNorm`, and with one operand and an f32 result its `LayerNormalization`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormStep {
    pub rows: usize,
    pub len: usize,
    pub a: RowOperand,
    pub b: Option<RowOperand>,
    pub epsilon: f32,
    pub y_mult: f32,
    /// The u8 result and its elements from row to row.
    pub out: Option<(Requant, usize)>,
    /// Elements from row to row of the f32 result. It lies in scratch, one row for each part, if there is none.
    pub f32_stride: Option<usize>,
}

/// Operands of a [`NormStep`]; what there is none of is not read.
#[derive(Clone, Copy, Debug)]
pub struct NormOperands {
    /// The u8 result.
    pub y: *mut u8,
    /// The f32 result, or scratch.
    pub x: *mut f32,
    pub a: *const u8,
    pub b: *const u8,
    pub scale: *const f32,
    pub bias: *const f32,
}

/// Runs one part of a normalisation.
///
/// # Safety
/// The processor has `isa`. Operands are the first elements of buffers that hold all that `s` addresses, aligned
/// for their types; results overlap no operand, and other parts write other rows.
pub unsafe fn run_norm(isa: Isa, s: &NormStep, p: NormOperands, part: usize, parts: usize) {
    for row in share(s.rows, part, parts) {
        // SAFETY: the row lies inside the operands; scratch has one for each part.
        unsafe {
            let at = s.f32_stride.map_or(part * s.len, |stride| row * stride);
            let start =
                |p: *const u8, o: RowOperand| p.add(row * o.stride * if o.affine.is_some() { 1 } else { 4 });
            let row = NormOperands {
                y: s.out.map_or(p.y, |(_, stride)| p.y.add(row * stride)),
                x: p.x.add(at),
                a: start(p.a, s.a),
                b: s.b.map_or(p.b, |b| start(p.b, b)),
                ..p
            };
            #[cfg(target_arch = "x86_64")]
            if isa >= Isa::Avx512Vnni {
                super::avx512::norm_row(s, row);
                continue;
            }
            run_row(isa, s, row);
        }
    }
}

by_isa! {
    /// Normalises one row; operands begin there.
    ///
    /// # Safety
    /// As [`run_norm`].
    run_row, norm_row, (s: &NormStep, p: NormOperands)
}

#[inline(always)]
unsafe fn norm_row(s: &NormStep, p: NormOperands) {
    let offset = offset(s.a.affine, s.b.and_then(|b| b.affine));
    // SAFETY: a row has `len` elements in every operand (`run_norm`).
    unsafe {
        let x = std::slice::from_raw_parts_mut(p.x, s.len);
        let bytes = |p: *const u8| std::slice::from_raw_parts(p, s.len);
        let floats = |p: *const u8| std::slice::from_raw_parts(p.cast::<f32>(), s.len);
        // The operands that are f32, then those that are u8.
        match (s.a.affine.is_some(), s.b.map(|b| b.affine.is_some())) {
            (false, None) => x.copy_from_slice(floats(p.a)),
            (false, Some(false)) => {
                x.iter_mut().zip(floats(p.a)).zip(floats(p.b)).for_each(|((x, a), b)| *x = a + b)
            }
            (false, Some(true)) => x.iter_mut().zip(floats(p.a)).for_each(|(x, a)| *x = a + offset),
            (true, Some(false)) => x.iter_mut().zip(floats(p.b)).for_each(|(x, b)| *x = b + offset),
            (true, _) => x.fill(offset),
        }
        if let Some(m) = s.b.and_then(|b| b.affine) {
            x.iter_mut().zip(bytes(p.b)).for_each(|(x, &q)| *x = f32::from(q).mul_add(m.mult, *x));
        }
        if let Some(m) = s.a.affine {
            x.iter_mut().zip(bytes(p.a)).for_each(|(x, &q)| *x = f32::from(q).mul_add(m.mult, *x));
        }
        let (scale, bias) = (p.scale.cast::<u8>(), p.bias.cast::<u8>());
        add_norm_row(x, floats(scale), floats(bias), s.epsilon);
        if let Some((out, _)) = s.out {
            let y = std::slice::from_raw_parts_mut(p.y, s.len);
            y.iter_mut().zip(&*x).for_each(|(y, &x)| *y = requantize(x * s.y_mult, out));
        }
    }
}
