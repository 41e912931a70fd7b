//! Steps that are not convolutions: what they need to know ([`MapStep`], [`PoolStep`], ...) and plain loops that
//! do it, compiled once per instruction set and shaped so that the compiler vectorises them.
//!
//! A step runs as part `part` of `parts`: parts write disjoint elements. Every pointer is the address of an
//! operand's first element; strides count elements. Integer results equal `lacuna_ir::reference` bit for bit.

use crate::target::Isa;
use lacuna_ir::op::{ClipAttr, QAddAttr, QMulAttr, Requant};
use lacuna_ir::reference::fixed::{erf_value, sigmoid_value, sigmoid_values, silu_value, silu_values};
use std::ops::Range;

#[path = "steps_attention.rs"]
mod attention;
#[cfg(target_arch = "x86_64")]
#[path = "steps_avx512.rs"]
mod avx512;
#[path = "steps_bytes.rs"]
mod bytes;
#[path = "steps_matrix.rs"]
mod matrix;
#[path = "steps_pixels.rs"]
mod pixels;
#[path = "steps_pool.rs"]
mod pool;
#[path = "steps_recurrent.rs"]
mod recurrent;
#[path = "steps_rows.rs"]
mod rows;
#[path = "steps_turn.rs"]
mod turn;

pub use attention::{AttentionOperands, AttentionStep, QUERIES, run_attention};
pub use matrix::{MatMulStep, ReduceKind, ReduceStep};
pub use pixels::{PixelsStep, run_pixels};
pub use pool::{MeanStep, PoolKind, PoolStep};
pub use recurrent::{LstmStep, pack_recurrent, recurrent_panel, run_lstm};
pub use rows::{GatherStep, NormOperands, NormStep, RowOperand, index_in, run_gather, run_norm};

/// The most dimensions an index space keeps after neighbours that run on are merged.
pub const RANK_MAX: usize = 8;
/// Result and up to three inputs.
pub const ARGS_MAX: usize = 4;
/// The most operands of any step.
pub const OPERANDS_MAX: usize = 6;

/// An index space and how each operand walks it. Operand 0 is the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nd {
    pub rank: usize,
    pub dims: [usize; RANK_MAX],
    pub strides: [[usize; RANK_MAX]; ARGS_MAX],
}

impl Nd {
    /// Drops dimensions of length one and merges neighbours that every operand walks in one go.
    /// `None` when more than [`RANK_MAX`] remain or there are more than [`ARGS_MAX`] operands.
    pub fn new(dims: &[usize], strides: &[&[usize]]) -> Option<Nd> {
        if strides.len() > ARGS_MAX {
            return None;
        }
        let mut nd = Nd { rank: 0, dims: [1; RANK_MAX], strides: [[0; RANK_MAX]; ARGS_MAX] };
        for d in 0..dims.len() {
            if dims[d] == 1 {
                continue;
            }
            let last = nd.rank.wrapping_sub(1);
            let joins = nd.rank > 0
                && (0..strides.len()).all(|a| nd.strides[a][last] == strides[a][d].wrapping_mul(dims[d]));
            let at = if joins { last } else { nd.rank };
            if at == RANK_MAX {
                return None;
            }
            nd.dims[at] = if joins { nd.dims[at] * dims[d] } else { dims[d] };
            (0..strides.len()).for_each(|a| nd.strides[a][at] = strides[a][d]);
            nd.rank = at + 1;
        }
        if nd.rank == 0 {
            nd.rank = 1;
        }
        Some(nd)
    }

    /// The same index space with its longest dimension innermost, if runs are short (three channels of a pixel):
    /// for what may visit elements in any order.
    pub fn with_long_runs(mut self) -> Nd {
        let last = self.rank - 1;
        let longest = (0..self.rank).max_by_key(|&d| self.dims[d]).unwrap_or(last);
        if self.dims[last] < 8 && self.dims[longest] > 4 * self.dims[last] {
            self.dims.swap(longest, last);
            self.strides.iter_mut().for_each(|s| s.swap(longest, last));
        }
        self
    }

    pub fn elements(&self) -> usize {
        self.dims[..self.rank].iter().product()
    }

    /// Length of the innermost run.
    fn run(&self) -> usize {
        self.dims[self.rank - 1]
    }

    /// Whether there are too few outer rows for the parts, so that runs are cut instead.
    fn cuts_runs(&self, parts: usize) -> bool {
        self.elements() / self.run().max(1) < 2 * parts
    }

    /// The runs of `part`: offsets and length of each.
    #[inline(always)]
    fn runs(&self, part: usize, parts: usize) -> Runs<'_> {
        let run = self.run();
        let outer: usize = self.dims[..self.rank - 1].iter().product();
        let (rows, cols) = match self.cuts_runs(parts) {
            true => (0..outer, share(run.div_ceil(64), part, parts)),
            false => (share(outer, part, parts), 0..run.div_ceil(64)),
        };
        let cols = cols.start * 64..(cols.end * 64).min(run);
        let left = if cols.is_empty() { 0 } else { rows.len() };
        let mut runs = Runs { nd: self, index: [0; RANK_MAX], at: [0; ARGS_MAX], len: cols.len(), left };
        let mut rest = rows.start;
        for d in (0..self.rank - 1).rev() {
            runs.index[d] = rest % self.dims[d];
            rest /= self.dims[d];
        }
        for a in 0..ARGS_MAX {
            runs.at[a] = cols.start * self.strides[a][self.rank - 1];
            (0..self.rank - 1).for_each(|d| runs.at[a] += runs.index[d] * self.strides[a][d]);
        }
        runs
    }

    /// Calls `f(offsets, length)` for the runs of `part`.
    #[inline(always)]
    fn each(&self, part: usize, parts: usize, mut f: impl FnMut([usize; ARGS_MAX], usize)) {
        for (at, len) in self.runs(part, parts) {
            f(at, len);
        }
    }
}

/// See [`Nd::runs`]. Loops over it are compiled for the instruction set of the function they stand in, which a closure
/// that is not inlined would not be.
struct Runs<'a> {
    nd: &'a Nd,
    index: [usize; RANK_MAX],
    at: [usize; ARGS_MAX],
    len: usize,
    left: usize,
}

impl Iterator for Runs<'_> {
    type Item = ([usize; ARGS_MAX], usize);

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let (nd, now) = (self.nd, self.at);
        for d in (0..nd.rank - 1).rev() {
            self.index[d] += 1;
            (0..ARGS_MAX).for_each(|a| self.at[a] += nd.strides[a][d]);
            if self.index[d] < nd.dims[d] {
                break;
            }
            (0..ARGS_MAX).for_each(|a| self.at[a] -= nd.dims[d] * nd.strides[a][d]);
            self.index[d] = 0;
        }
        Some((now, self.len))
    }
}

/// The units that part `part` of `parts` does; one unit goes to part 0.
pub fn share(units: usize, part: usize, parts: usize) -> Range<usize> {
    let start = |p: usize| (p * units).div_ceil(parts);
    start(part)..start(part + 1)
}

/// What a map computes per element. Inputs follow the result in the step's operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MapOp {
    Copy1,
    Copy4,
    Copy8,
    Relu,
    Clip(ClipAttr),
    Sigmoid,
    Sqrt,
    Erf,
    Tanh,
    CastI64F32,
    CastI32F32,
    /// Of bool too.
    CastU8F32,
    CastF32I64,
    CastF32I32,
    Add,
    Sub,
    Mul,
    Div,
    /// x f32, scale f32, zero u8 to u8.
    QuantizeU8,
    /// x f32, scale f32, zero i8 to i8.
    QuantizeI8,
    /// x u8, scale f32, zero u8.
    DequantizeU8,
    /// x i8, scale f32, zero i8.
    DequantizeI8,
    /// x i32, scale f32.
    DequantizeI32,
    QAdd(QAddAttr),
    QMul(QMulAttr),
    /// x `u8`, table `u8[256]`.
    QLookup,
    Silu,
    HardSwish,
    /// `clamp(alpha * x + beta, 0, 1)`.
    HardSigmoid(f32, f32),
    /// The slope below 0.
    LeakyRelu(f32),
    /// By the error function.
    Gelu,
    /// As QuantizeU8, of `Silu`.
    QuantizeSilu,
    /// f32 to bool.
    IsNan,
    /// Condition, two operands of four bytes an element.
    Where4,
}

impl MapOp {
    pub fn name(&self) -> &'static str {
        match self {
            MapOp::Copy1 => "copy_8bit",
            MapOp::Copy4 => "copy_32bit",
            MapOp::Copy8 => "copy_64bit",
            MapOp::Relu => "relu_f32",
            MapOp::Clip(_) => "clip_f32",
            MapOp::Sigmoid => "sigmoid_f32",
            MapOp::Sqrt => "sqrt_f32",
            MapOp::Erf => "erf_f32",
            MapOp::Tanh => "tanh_f32",
            MapOp::CastI64F32 => "cast_i64_f32",
            MapOp::CastI32F32 => "cast_i32_f32",
            MapOp::CastU8F32 => "cast_u8_f32",
            MapOp::CastF32I64 => "cast_f32_i64",
            MapOp::CastF32I32 => "cast_f32_i32",
            MapOp::Add => "add_f32",
            MapOp::Sub => "sub_f32",
            MapOp::Mul => "mul_f32",
            MapOp::Div => "div_f32",
            MapOp::QuantizeU8 => "quantize_u8",
            MapOp::QuantizeI8 => "quantize_i8",
            MapOp::DequantizeU8 => "dequantize_u8",
            MapOp::DequantizeI8 => "dequantize_i8",
            MapOp::DequantizeI32 => "dequantize_i32",
            MapOp::QAdd(_) => "qadd_u8",
            MapOp::QMul(_) => "qmul_u8",
            MapOp::QLookup => "lookup_u8",
            MapOp::Silu => "silu_f32",
            MapOp::HardSwish => "hard_swish_f32",
            MapOp::HardSigmoid(..) => "hard_sigmoid_f32",
            MapOp::LeakyRelu(_) => "leaky_relu_f32",
            MapOp::Gelu => "gelu_f32",
            MapOp::QuantizeSilu => "quantize_silu_u8",
            MapOp::IsNan => "is_nan_f32",
            MapOp::Where4 => "where_32bit",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MapStep {
    pub op: MapOp,
    pub nd: Nd,
}

/// Fills what surrounds the pixels of an NHWC buffer: `lines` image lines per image, `top` of them above and
/// `bottom` below the pixels, `left` and `right` elements beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillStep {
    pub images: usize,
    /// Elements from one line to the next; images follow each other.
    pub row: usize,
    pub lines: usize,
    pub top: usize,
    pub bottom: usize,
    pub left: usize,
    pub right: usize,
    /// u8 elements; f32 elements, which are filled with 0.0, otherwise.
    pub bytes: bool,
    pub value: u8,
}

impl FillStep {
    /// Lines of all images.
    pub fn units(&self) -> usize {
        self.images * self.lines
    }
}

/// Declares `$name`: `$inner` compiled for each instruction set, picked by the first argument.
macro_rules! by_isa {
    ($(#[$doc:meta])* $name:ident, $inner:ident, ($($arg:ident: $ty:ty),*)) => {
        $(#[$doc])*
        pub unsafe fn $name(isa: $crate::target::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2($($arg: $ty),*) {
                    // SAFETY: the caller's promise.
                    unsafe { $inner($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                unsafe fn avx512($($arg: $ty),*) {
                    // SAFETY: the caller's promise.
                    unsafe { $inner($($arg),*) }
                }
                // SAFETY: the caller's promise, which includes that the processor has `isa`.
                return unsafe {
                    match isa {
                        isa if isa >= $crate::target::Isa::Avx512Vnni => avx512($($arg),*),
                        isa if isa >= $crate::target::Isa::Avx2 => avx2($($arg),*),
                        _ => $inner($($arg),*),
                    }
                };
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let _ = isa;
                // SAFETY: the caller's promise.
                unsafe { $inner($($arg),*) }
            }
        }
    };
}
pub(crate) use by_isa;

/// Runs one part of a map.
///
/// # Safety
/// The processor has `isa`. `p[a]` points at operand `a`'s first element and every element that `s.nd`
/// addresses is in its buffer, of the operand's type, aligned; nobody writes the inputs meanwhile, and the
/// result overlaps no input. A table has 256 elements.
pub unsafe fn run_map(isa: Isa, s: &MapStep, p: [*mut u8; ARGS_MAX], part: usize, parts: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if s.op == MapOp::QuantizeSilu && [0, 1].iter().all(|&a| s.nd.strides[a][s.nd.rank - 1] == 1) {
            let (scale, zero) = (*p[2].cast::<f32>(), *p[3]);
            s.nd.each(part, parts, |at, n| {
                silu_bytes(isa, p[0].add(at[0]), p[1].cast::<f32>().add(at[1]), n, scale, zero)
            });
            return;
        }
        let done = bytes::run_map(isa, s, p, part, parts) || turn::run_map(isa, s, p, part, parts);
        if !done {
            run_plain_map(isa, s, p, part, parts);
        }
    }
}

by_isa! {
    /// A run of a quantised SiLU.
    ///
    /// # Safety
    /// The processor has `isa`; `n` elements may be written at y and read at x.
    silu_bytes, silu_row, (y: *mut u8, x: *const f32, n: usize, scale: f32, zero: u8)
}

/// A block at a time: each of the two loops is short enough for the compiler to make vectors of.
#[inline(always)]
unsafe fn silu_row(y: *mut u8, x: *const f32, n: usize, scale: f32, zero: u8) {
    const BLOCK: usize = 256;
    // SAFETY: the caller's promise.
    let (y, x) = unsafe { (std::slice::from_raw_parts_mut(y, n), std::slice::from_raw_parts(x, n)) };
    let mut block = [0.0; BLOCK];
    for (y, x) in y.chunks_mut(BLOCK).zip(x.chunks(BLOCK)) {
        block.iter_mut().zip(x).for_each(|(b, &x)| *b = silu_value(x));
        y.iter_mut().zip(&block).for_each(|(y, &b)| *y = quantize(b, scale, zero as i32, 0, 255) as u8);
    }
}

by_isa! {
    /// # Safety
    /// As [`run_map`].
    run_plain_map, map, (s: &MapStep, p: [*mut u8; ARGS_MAX], part: usize, parts: usize)
}

#[inline(always)]
unsafe fn map(s: &MapStep, p: [*mut u8; ARGS_MAX], part: usize, parts: usize) {
    use MapOp::*;
    let m = Mapper { nd: &s.nd, p, part, parts };
    // SAFETY: each arm reads and writes the types that its op's operands have.
    unsafe {
        match s.op {
            Copy1 => m.unary(|x: u8| x),
            Copy4 => m.unary(|x: u32| x),
            Copy8 => m.unary(|x: u64| x),
            Relu => m.unary(|x: f32| if x <= 0.0 { 0.0 } else { x }),
            Clip(c) => m.unary(move |x: f32| {
                let x = if x < c.min { c.min } else { x };
                if x > c.max { c.max } else { x }
            }),
            Sigmoid => m.unary(sigmoid_value),
            Sqrt => m.unary(|x: f32| x.sqrt()),
            Erf => m.unary(erf_value),
            Tanh => m.unary(|x: f32| x.tanh()),
            CastI64F32 => m.unary(|x: i64| x as f32),
            CastI32F32 => m.unary(|x: i32| x as f32),
            CastU8F32 => m.unary(|x: u8| x as f32),
            CastF32I64 => m.unary(|x: f32| x as i64),
            CastF32I32 => m.unary(|x: f32| x as i64 as i32),
            Add => m.binary(|a: f32, b: f32| a + b),
            Sub => m.binary(|a: f32, b: f32| a - b),
            Mul => m.binary(|a: f32, b: f32| a * b),
            Div => m.binary(|a: f32, b: f32| a / b),
            QuantizeU8 => m.scaled(|x: f32, s, z: u8| quantize(x, s, z as i32, 0, 255) as u8),
            QuantizeI8 => m.scaled(|x: f32, s, z: i8| quantize(x, s, z as i32, -128, 127) as i8),
            DequantizeU8 => m.scaled(|q: u8, s, z: u8| (q as i32 - z as i32) as f32 * s),
            DequantizeI8 => m.scaled(|q: i8, s, z: i8| (q as i32 - z as i32) as f32 * s),
            DequantizeI32 => m.binary(|q: i32, s: f32| q as f32 * s),
            QAdd(q) => m.binary(move |a: u8, b: u8| {
                let fa = (a as i32 - q.a_zero) as f32 * q.a_mult;
                let fb = (b as i32 - q.b_zero) as f32 * q.b_mult;
                requantize(fa + fb, q.out)
            }),
            QMul(q) => m.binary(move |a: u8, b: u8| {
                let factor = (b as i32 - q.b_zero) as f32 * q.mult;
                requantize((a as i32 - q.a_zero) as f32 * factor, q.out)
            }),
            Silu => m.unary(silu_value),
            HardSwish => m.unary(hard_swish_value),
            HardSigmoid(alpha, beta) => m.unary(move |x: f32| clamp_unit(alpha * x + beta)),
            LeakyRelu(alpha) => m.unary(move |x: f32| if x < 0.0 { alpha * x } else { x }),
            Gelu => m.unary(gelu_value),
            QuantizeSilu => m.scaled(|x: f32, s, z: u8| quantize(silu_value(x), s, z as i32, 0, 255) as u8),
            IsNan => m.unary(|x: f32| u8::from(x.is_nan())),
            Where4 => m.select(),
            QLookup => {
                let table = *p[2].cast::<[u8; 256]>();
                m.unary(move |x: u8| table[x as usize])
            }
        }
    }
}

/// Whether [`run_in_place`] can do it: f32 to f32, each element by itself.
pub fn in_place(op: MapOp) -> bool {
    use MapOp::*;
    matches!(op, Silu | HardSwish | Sigmoid | HardSigmoid(..) | LeakyRelu(_) | Gelu)
}

/// Gives each element its value, those of several registers at a time. No function of a closure: one of so much would stay a
/// function of its own, without the caller's instructions.
macro_rules! by_many {
    ($elements:ident, $values:ident, $value:ident) => {{
        let (many, rest) = $elements.as_chunks_mut::<64>();
        for y in many {
            *y = $values(*y);
        }
        rest.iter_mut().for_each(|y| *y = $value(*y));
    }};
}

by_isa! {
    /// Gives `n` elements the map's values. Other maps than those that [`in_place`] names leave them.
    ///
    /// # Safety
    /// The processor has `isa`; the elements are nobody else's.
    run_in_place, map_in_place, (op: MapOp, y: *mut f32, n: usize)
}

#[inline(always)]
unsafe fn map_in_place(op: MapOp, y: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    let y = unsafe { std::slice::from_raw_parts_mut(y, n) };
    match op {
        MapOp::Silu => by_many!(y, silu_values, silu_value),
        MapOp::HardSwish => y.iter_mut().for_each(|y| *y = hard_swish_value(*y)),
        MapOp::Sigmoid => by_many!(y, sigmoid_values, sigmoid_value),
        MapOp::HardSigmoid(a, b) => y.iter_mut().for_each(|y| *y = clamp_unit(a * *y + b)),
        MapOp::LeakyRelu(a) => y.iter_mut().for_each(|y| *y = if *y < 0.0 { a * *y } else { *y }),
        MapOp::Gelu => y.iter_mut().for_each(|y| *y = gelu_value(*y)),
        _ => {}
    }
}

by_isa! {
    /// Gives `n` elements a factor and an addend.
    ///
    /// # Safety
    /// The processor has `isa`; the elements are nobody else's.
    run_affine, affine_in_place, (y: *mut f32, n: usize, scale: f32, shift: f32)
}

#[inline(always)]
unsafe fn affine_in_place(y: *mut f32, n: usize, scale: f32, shift: f32) {
    // SAFETY: the caller's promise.
    let y = unsafe { std::slice::from_raw_parts_mut(y, n) };
    y.iter_mut().for_each(|y| *y = *y * scale + shift);
}

#[inline(always)]
fn hard_swish_value(x: f32) -> f32 {
    // A factor of 1 / 6 would be off by the same part of every element, which sums do not average out.
    x * clamp_unit(x / 6.0 + 0.5)
}

#[inline(always)]
fn gelu_value(x: f32) -> f32 {
    0.5 * x * (1.0 + erf_value(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// Between 0 and 1; not a number stays.
#[inline(always)]
fn clamp_unit(x: f32) -> f32 {
    let x = if x < 0.0 { 0.0 } else { x };
    if x > 1.0 { 1.0 } else { x }
}

/// One part of one map: where its operands are and how it walks them.
struct Mapper<'a> {
    nd: &'a Nd,
    p: [*mut u8; ARGS_MAX],
    part: usize,
    parts: usize,
}

impl Mapper<'_> {
    fn stride(&self, arg: usize) -> usize {
        self.nd.strides[arg][self.nd.rank - 1]
    }

    #[inline(always)]
    unsafe fn unary<A: Copy, Y>(&self, f: impl Fn(A) -> Y) {
        let (sy, sa) = (self.stride(0), self.stride(1));
        let (y, a) = (self.p[0].cast::<Y>(), self.p[1].cast::<A>());
        for (at, n) in self.nd.runs(self.part, self.parts) {
            // SAFETY: the index space addresses only elements of the operands (`run_map`).
            unsafe {
                let (y, a) = (y.add(at[0]), a.add(at[1]));
                if sy == 1 && sa == 1 {
                    let y = std::slice::from_raw_parts_mut(y, n);
                    let a = std::slice::from_raw_parts(a, n);
                    for (y, &a) in y.iter_mut().zip(a) {
                        *y = f(a);
                    }
                } else {
                    (0..n).for_each(|i| *y.add(i * sy) = f(*a.add(i * sa)));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn binary<A: Copy, B: Copy, Y>(&self, f: impl Fn(A, B) -> Y) {
        let (sy, sa, sb) = (self.stride(0), self.stride(1), self.stride(2));
        let (y, a, b) = (self.p[0].cast::<Y>(), self.p[1].cast::<A>(), self.p[2].cast::<B>());
        self.nd.each(self.part, self.parts, |at, n| {
            // SAFETY: the index space addresses only elements of the operands (`run_map`).
            unsafe {
                let (y, a, b) = (y.add(at[0]), a.add(at[1]), b.add(at[2]));
                match (sy, sa, sb) {
                    (1, 1, 1) => {
                        let y = std::slice::from_raw_parts_mut(y, n);
                        let a = std::slice::from_raw_parts(a, n);
                        let b = std::slice::from_raw_parts(b, n);
                        (0..n).for_each(|i| y[i] = f(a[i], b[i]));
                    }
                    (1, 1, 0) => {
                        let y = std::slice::from_raw_parts_mut(y, n);
                        let a = std::slice::from_raw_parts(a, n);
                        let b = *b;
                        (0..n).for_each(|i| y[i] = f(a[i], b));
                    }
                    (1, 0, 1) => {
                        let y = std::slice::from_raw_parts_mut(y, n);
                        let b = std::slice::from_raw_parts(b, n);
                        let a = *a;
                        (0..n).for_each(|i| y[i] = f(a, b[i]));
                    }
                    _ => (0..n).for_each(|i| *y.add(i * sy) = f(*a.add(i * sa), *b.add(i * sb))),
                }
            }
        });
    }

    /// Operands: a condition, what is taken where it holds, what is taken elsewhere.
    #[inline(always)]
    unsafe fn select(&self) {
        let [sy, sc, sa, sb] = [0, 1, 2, 3].map(|a| self.stride(a));
        let (y, c) = (self.p[0].cast::<u32>(), self.p[1]);
        let (a, b) = (self.p[2].cast::<u32>(), self.p[3].cast::<u32>());
        for (at, n) in self.nd.runs(self.part, self.parts) {
            // SAFETY: the index space addresses only elements of the operands (`run_map`).
            unsafe {
                let (y, c, a, b) = (y.add(at[0]), c.add(at[1]), a.add(at[2]), b.add(at[3]));
                match (sy, sc, sa, sb) {
                    (1, 1, 0, 1) => {
                        let (y, c) = (std::slice::from_raw_parts_mut(y, n), std::slice::from_raw_parts(c, n));
                        let (a, b) = (*a, std::slice::from_raw_parts(b, n));
                        for i in 0..n {
                            y[i] = if c[i] != 0 { a } else { b[i] };
                        }
                    }
                    _ => {
                        for i in 0..n {
                            let from = if *c.add(i * sc) != 0 { a.add(i * sa) } else { b.add(i * sb) };
                            *y.add(i * sy) = *from;
                        }
                    }
                }
            }
        }
    }

    /// Operands x, scale, zero point.
    #[inline(always)]
    unsafe fn scaled<A: Copy, Z: Copy, Y>(&self, f: impl Fn(A, f32, Z) -> Y) {
        let [sy, sa, ss, sz] = [0, 1, 2, 3].map(|a| self.stride(a));
        let (y, a) = (self.p[0].cast::<Y>(), self.p[1].cast::<A>());
        let (scale, zero) = (self.p[2].cast::<f32>(), self.p[3].cast::<Z>());
        self.nd.each(self.part, self.parts, |at, n| {
            // SAFETY: the index space addresses only elements of the operands (`run_map`).
            unsafe {
                let (y, a, s, z) = (y.add(at[0]), a.add(at[1]), scale.add(at[2]), zero.add(at[3]));
                if (sy, sa, ss, sz) == (1, 1, 0, 0) {
                    let y = std::slice::from_raw_parts_mut(y, n);
                    let a = std::slice::from_raw_parts(a, n);
                    let (s, z) = (*s, *z);
                    y.iter_mut().zip(a).for_each(|(y, &a)| *y = f(a, s, z));
                } else {
                    (0..n).for_each(|i| *y.add(i * sy) = f(*a.add(i * sa), *s.add(i * ss), *z.add(i * sz)));
                }
            }
        });
    }
}

/// 1.5 * 2^23: adding it to `|f| < 2^22` rounds to nearest even and leaves the integer in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Rounds to nearest, ties to even. `|f| < 2^22`.
#[inline(always)]
fn round_small(f: f32) -> i32 {
    (f + ROUND).to_bits() as i32 - ROUND.to_bits() as i32
}

/// As `lacuna_ir::reference::quant::requantize`. Bounds and zero point are those of eight-bit types.
#[inline(always)]
pub(crate) fn requantize(f: f32, out: Requant) -> u8 {
    let (lo, hi) = ((out.lo - out.zero) as f32, (out.hi - out.zero) as f32);
    let f = if f > lo { f } else { lo };
    let f = if f < hi { f } else { hi };
    (round_small(f) + out.zero) as u8
}

/// As `lacuna_ir::reference::quant::quantize_value`: not a number becomes the zero point.
#[inline(always)]
fn quantize(x: f32, scale: f32, zero: i32, lo: i32, hi: i32) -> i32 {
    let (lo, hi) = ((lo - zero) as f32, (hi - zero) as f32);
    let f = x / scale;
    let f = if f.is_nan() { 0.0 } else { f };
    let f = if f > lo { f } else { lo };
    let f = if f < hi { f } else { hi };
    round_small(f) + zero
}

/// Fills the border of part `part`'s lines.
///
/// # Safety
/// `start` is the buffer's first element (the first border element of image 0); the buffer holds all images;
/// nobody else touches the border meanwhile.
pub unsafe fn run_fill(s: &FillStep, start: *mut u8, part: usize, parts: usize) {
    let size = if s.bytes { 1 } else { 4 };
    let value = if s.bytes { s.value } else { 0 };
    // SAFETY: all ranges lie inside the lines of this part.
    let fill = |from: usize, to: usize| unsafe {
        start.add(from * size).write_bytes(value, (to - from) * size);
    };
    let lines = share(s.units(), part, parts);
    // The right border of a line runs on into the left border of the next, and into lines that are all border.
    let mut from = lines.start * s.row;
    for line in lines.clone() {
        if (s.top..s.lines - s.bottom).contains(&(line % s.lines)) {
            fill(from, line * s.row + s.left);
            from = (line + 1) * s.row - s.right;
        }
    }
    fill(from, lines.end * s.row);
}

/// Runs one part of a pooling. The contract is that of [`run_map`].
///
/// # Safety
/// As [`run_map`]: `y` and `x` point at the first elements of buffers that hold all that `s` addresses.
pub unsafe fn run_pool(isa: Isa, s: &PoolStep, y: *mut u8, x: *const u8, part: usize, parts: usize) {
    // SAFETY: the caller's promise.
    unsafe { pool::run_pool(isa, s, y, x, part, parts) }
}

/// Runs one part of a global mean.
///
/// # Safety
/// As [`run_pool`].
pub unsafe fn run_mean(isa: Isa, s: &MeanStep, y: *mut u8, x: *const u8, part: usize, parts: usize) {
    // SAFETY: the caller's promise.
    unsafe { pool::run_mean(isa, s, y, x, part, parts) }
}

/// Runs one part of a reduction.
///
/// # Safety
/// As [`run_map`], for operands y and x.
pub unsafe fn run_reduce(isa: Isa, s: &ReduceStep, y: *mut f32, x: *const f32, part: usize, parts: usize) {
    // SAFETY: the caller's promise.
    unsafe { matrix::run_reduce(isa, s, y, x, part, parts) }
}

/// Runs one part of a matrix product.
///
/// # Safety
/// As [`run_map`], for operands y, a, b and, if `s.beta != 0`, c.
pub unsafe fn run_matmul(isa: Isa, s: &MatMulStep, p: [*mut u8; ARGS_MAX], part: usize, parts: usize) {
    // SAFETY: the caller's promise.
    unsafe { matrix::run_matmul(isa, s, p, part, parts) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacuna_ir::reference::quant;

    #[test]
    fn shares_cover_all_units_once_and_a_single_unit_goes_to_part_0() {
        for units in 0..40 {
            for parts in 1..7 {
                let all: Vec<usize> = (0..parts).flat_map(|p| share(units, p, parts)).collect();
                assert_eq!(all, (0..units).collect::<Vec<_>>());
            }
        }
        assert_eq!(share(1, 0, 4), 0..1);
    }

    #[test]
    fn merged_index_spaces_visit_the_same_elements() {
        let nd = Nd::new(&[2, 3, 1, 4], &[&[12, 4, 4, 1], &[24, 8, 8, 2]]).unwrap();
        assert_eq!((nd.rank, nd.dims[0]), (1, 24));
        let nd = Nd::new(&[2, 3, 4], &[&[12, 4, 1], &[100, 4, 1]]).unwrap();
        assert_eq!((nd.rank, &nd.dims[..2]), (2, &[2, 12][..]));
        for parts in 1..5 {
            let mut seen = Vec::new();
            for part in 0..parts {
                nd.each(part, parts, |at, n| seen.extend((0..n).map(|i| (at[0] + i, at[1] + i))));
            }
            let want: Vec<_> = (0..24).map(|i| (i, i / 12 * 100 + i % 12)).collect();
            assert_eq!(seen, want);
        }
    }

    #[test]
    fn long_runs_visit_the_same_elements() {
        let nd = Nd::new(&[5, 40, 3], &[&[200, 4, 1], &[40, 1, 1000]]).unwrap();
        let long = nd.with_long_runs();
        assert_eq!((nd.run(), long.run()), (3, 40));
        let visit = |nd: &Nd| {
            let mut seen = Vec::new();
            let s = [0, 1].map(|a| nd.strides[a][nd.rank - 1]);
            (0..3).for_each(|part| {
                nd.each(part, 3, |at, n| seen.extend((0..n).map(|i| (at[0] + i * s[0], at[1] + i * s[1]))))
            });
            seen.sort_unstable();
            seen
        };
        assert_eq!(visit(&nd), visit(&long));
        assert_eq!(visit(&nd).len(), 600);
    }

    #[test]
    fn rounding_equals_the_reference_at_ties_bounds_and_odd_values() {
        let mut values = vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MAX, f32::MIN_POSITIVE];
        for i in -2000..2000 {
            values.extend([i as f32 * 0.25, i as f32 * 0.25 + 1e-5, i as f32 * 0.37]);
        }
        for &x in &values {
            for zero in [0, 3, 128, 255] {
                let out = Requant { zero, lo: zero.min(10), hi: 255 };
                assert_eq!(requantize(x, out) as i32, quant::requantize(x, out), "{x}");
                for scale in [1.0, 0.5, 0.013] {
                    let want = quant::quantize_value(x, scale, zero, 0, 255);
                    assert_eq!(quantize(x, scale, zero, 0, 255), want, "{x} / {scale}");
                }
            }
        }
    }
}
