//! Steps on rows: look-ups in a table of rows, and layer normalisation with a sum before and a rounding behind it.

use super::{by_isa, requantize, share};
use lacuna_ir::op::{Affine, Requant};
use lacuna_ir::reference::fixed::{LANES, sum_lanes};

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

by_isa! {
    /// Runs one part of a normalisation.
    ///
    /// # Safety
    /// The processor has `isa`. Operands are the first elements of buffers that hold all that `s` addresses, aligned
    /// for their types; results overlap no operand, and other parts write other rows.
    run_norm, norm, (s: &NormStep, p: NormOperands, part: usize, parts: usize)
}

#[inline(always)]
unsafe fn norm(s: &NormStep, p: NormOperands, part: usize, parts: usize) {
    // SAFETY: rows `share` gives lie inside the operands (`run_norm`); `len` elements of each are its own.
    unsafe {
        let scale = std::slice::from_raw_parts(p.scale, s.len);
        let bias = std::slice::from_raw_parts(p.bias, s.len);
        for row in share(s.rows, part, parts) {
            let at = s.f32_stride.map_or(part * s.len, |stride| row * stride);
            let x = std::slice::from_raw_parts_mut(p.x.add(at), s.len);
            let sum = load_rows(s, p, row, x);
            normalise(x, sum, scale, bias, s.epsilon);
            if let Some((out, stride)) = s.out {
                let y = std::slice::from_raw_parts_mut(p.y.add(row * stride), s.len);
                y.iter_mut().zip(&*x).for_each(|(y, &x)| *y = requantize(x * s.y_mult, out));
            }
        }
    }
}

/// Writes the sum of the operands' rows to `x` and returns its sum.
#[inline(always)]
unsafe fn load_rows(s: &NormStep, p: NormOperands, row: usize, x: &mut [f32]) -> f32 {
    // SAFETY: as in `norm`.
    unsafe {
        let a = p.a.add(row * s.a.stride * if s.a.affine.is_some() { 1 } else { 4 });
        let b = match s.b {
            Some(o) => p.b.add(row * o.stride * if o.affine.is_some() { 1 } else { 4 }),
            None => p.b,
        };
        let bytes = |p: *const u8, m: Affine| {
            let q = std::slice::from_raw_parts(p, s.len);
            move |i: usize| (q[i] as i32 - m.zero) as f32 * m.mult
        };
        let floats = |p: *const u8| {
            let f = std::slice::from_raw_parts(p.cast::<f32>(), s.len);
            move |i: usize| f[i]
        };
        match (s.a.affine, s.b.map(|b| b.affine)) {
            (Some(m), Some(Some(n))) => fill(x, pair(bytes(a, m), bytes(b, n))),
            (Some(m), Some(None)) => fill(x, pair(bytes(a, m), floats(b))),
            (None, Some(Some(n))) => fill(x, pair(floats(a), bytes(b, n))),
            (None, Some(None)) => fill(x, pair(floats(a), floats(b))),
            (Some(m), None) => fill(x, bytes(a, m)),
            (None, None) => fill(x, floats(a)),
        }
    }
}

#[inline(always)]
fn pair(a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32) -> impl Fn(usize) -> f32 {
    move |i| a(i) + b(i)
}

/// Sets every `x[i]` to `f(i)`; returns their sum in lanes.
#[inline(always)]
fn fill(x: &mut [f32], f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = x.len() / LANES * LANES;
    for (block, x) in x[..whole].chunks_exact_mut(LANES).enumerate() {
        for lane in 0..LANES {
            let v = f(block * LANES + lane);
            x[lane] = v;
            lanes[lane] += v;
        }
    }
    for i in whole..x.len() {
        x[i] = f(i);
        lanes[i - whole] += x[i];
    }
    sum_lanes(lanes)
}

/// As `lacuna_ir::reference::norm::add_norm_row`, with the sum known.
#[inline(always)]
fn normalise(x: &mut [f32], sum: f32, scale: &[f32], bias: &[f32], epsilon: f32) {
    let len = x.len() as f32;
    let mean = sum / len;
    let mut lanes = [0.0f32; LANES];
    let mut blocks = x.chunks_exact_mut(LANES);
    for block in &mut blocks {
        for lane in 0..LANES {
            block[lane] -= mean;
            lanes[lane] = block[lane].mul_add(block[lane], lanes[lane]);
        }
    }
    for (x, lane) in blocks.into_remainder().iter_mut().zip(&mut lanes) {
        *x -= mean;
        *lane = x.mul_add(*x, *lane);
    }
    let inverse = 1.0 / (sum_lanes(lanes) / len + epsilon).sqrt();
    for ((x, &scale), &bias) in x.iter_mut().zip(scale).zip(bias) {
        *x = (*x * inverse).mul_add(scale, bias);
    }
}
