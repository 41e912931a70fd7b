//! Training with a weight most of whose elements are masked: convolutions and matrix products that visit open weights
//! only.
//!
//! Lanes run over items (images, or tokens of a matrix product), so that one weight, broadcast, multiplies whole
//! registers and any pattern costs the same per open weight:
//!
//! * *forward*: a tile of results of one output channel stays in registers while the channel's open weights go by, each
//!   one broadcast and multiplied with the lines it sees; the order of the lines is in `layout`;
//! * *gradient of the input*: the same with the pattern by input channel;
//! * *gradient of the weight*: a tile of dy stays in registers, every open weight of its channel has a line of sums.
//!
//! The sparse matrix is cut into blocks of input channels whose lines of a tile fit L1, because a load that misses L1
//! costs twice a multiplication. The dense counterpart of the scheme is direct convolution; lanes along pixels and one
//! broadcast per weight is how Elsen et al., *Fast Sparse ConvNets* (2020), compute pointwise layers.

mod gradient;
mod layout;
mod moving;
mod pattern;
mod product;
#[cfg(test)]
mod tests;
mod tiles;

pub use pattern::Pattern;

use crate::isa::Isa;
use crate::{ConvShape, shape::Window, winograd};
use gradient::gradient;
use moving::{Results, Stage};
use product::{Reading, product};
use std::cell::RefCell;

const LANES: usize = 16;

/// One channel and pixel of 16 items.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line([f32; LANES]);

/// Results that are computed together, in lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    pub rows: usize,
    pub columns: usize,
}

impl Tile {
    pub fn lines(self) -> usize {
        self.rows * self.columns
    }
}

/// Lines of a block of channels that a tile reads: as many as an L1 of 32 KiB holds (measured: 384 to 600 are within 5 %
/// of each other, 192 and 1024 cost 5 to 15 % more).
const BLOCK_LINES: usize = 512;
/// Lines of the planes of a task: what L2 and a part of L3 hold. Bands of fewer rows copy more rows twice.
const BAND_LINES: usize = 16 << 10;
/// Tasks that a product is cut into at least: more than threads, so that they end together.
const TASKS: usize = 8;

fn tile(s: &ConvShape) -> Tile {
    if s.is_pointwise() { Tile { rows: 1, columns: 8 } } else { Tile { rows: 2, columns: 4 } }
}

#[derive(Default)]
struct Scratch {
    planes: Vec<Line>,
    others: Vec<Line>,
    sums: Vec<Line>,
    stage: Stage,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `y[n,oh,ow,o]` of `x[n,h,w,c]`, the weight's open elements and, if any, a bias `[o]`.
///
/// # Panics
/// If a slice has another length or the pattern is of another weight's shape, stride, padding or dilation.
pub fn conv_forward(x: &[f32], pattern: &Pattern, bias: Option<&[f32]>, s: &ConvShape, y: &mut [f32]) {
    forward(Isa::best(), x, pattern, bias, s, y);
}

/// `dx[n,h,w,c]` of `dy[n,oh,ow,o]` and the weight's open elements.
///
/// # Panics
/// As [`conv_forward`].
pub fn conv_input_gradient(dy: &[f32], pattern: &Pattern, s: &ConvShape, dx: &mut [f32]) {
    input_gradient(Isa::best(), dy, pattern, s, dx);
}

/// `dw[o,c,kh,kw]` of `x[n,h,w,c]` and `dy[n,oh,ow,o]` where the weight is open, and +0.0 where it is masked.
///
/// # Panics
/// As [`conv_forward`].
pub fn conv_weight_gradient(x: &[f32], dy: &[f32], pattern: &Pattern, s: &ConvShape, dw: &mut [f32]) {
    weight_gradient(Isa::best(), x, dy, pattern, s, dw);
}

/// `y[m,n]` = `x[m,k]` wᵀ + bias for `w[n,k]`.
///
/// # Panics
/// If a slice has another length or the pattern is not [`linear_shape`]'s.
pub fn linear_forward(x: &[f32], pattern: &Pattern, bias: Option<&[f32]>, m: usize, y: &mut [f32]) {
    conv_forward(x, pattern, bias, &of_tokens(pattern, m), y);
}

/// `dx[m,k]` = `dy[m,n]` w.
///
/// # Panics
/// As [`linear_forward`].
pub fn linear_input_gradient(dy: &[f32], pattern: &Pattern, m: usize, dx: &mut [f32]) {
    conv_input_gradient(dy, pattern, &of_tokens(pattern, m), dx);
}

/// `dw[n,k]` = `dyᵀ[n,m]` `x[m,k]` where the weight is open, and +0.0 where it is masked.
///
/// # Panics
/// As [`linear_forward`].
pub fn linear_weight_gradient(x: &[f32], dy: &[f32], pattern: &Pattern, m: usize, dw: &mut [f32]) {
    conv_weight_gradient(x, dy, pattern, &of_tokens(pattern, m), dw);
}

/// The shape under which a linear weight `w[n,k]` and `m` rows are known here.
pub fn linear_shape(m: usize, k: usize, n: usize) -> ConvShape {
    ConvShape::new([m, k, 1, 1], [n, k, 1, 1], Window::new(1, 0))
}

/// Whether a training step (pattern, results, both gradients) of a weight of which `density` is open is faster here than
/// with the dense kernels. Of shapes alone, so that every run decides alike.
///
/// The constants are cycles of a Zen 4 core, measured on ResNet-18's layers at batch 32 and BERT-mini's at 4096 tokens, 5
/// to 50 % open; there the estimate is within a quarter of the time. The dense kernels do 0.9 of 16 multiplications and
/// additions a cycle. Break-even lies at 35 to 55 % for most of these layers, and sooner where a layer has little
/// arithmetic per activation (64 to 128 channels, 1x1) or images fill lines badly (few, or not a multiple of 16).
pub fn pays(s: &ConvShape, density: f64) -> bool {
    /// Per open weight and line of results, in the three passes together; 3 would be the processor's limit.
    const MULTIPLY: f64 = 5.5;
    /// Per line of x and of y, brought into line order or back three times, mostly from memory.
    const COPY: f64 = 3.0 * 40.0;
    /// Per weight: read once, and its gradient written.
    const SCAN: f64 = 4.0;
    /// Per open weight: filed twice, and the lanes of its gradient summed.
    const OPEN: f64 = 55.0;
    const DENSE: f64 = 3.0 / (0.9 * 16.0);
    if s.groups != 1 || s.w_len() >= u32::MAX as usize {
        return false;
    }
    let tile = tile(s);
    let (x, y) = layout::sides(s, tile);
    let computed = y.groups() * y.height.next_multiple_of(tile.rows) * y.width.next_multiple_of(tile.columns);
    let copied = x.groups() * (x.height * x.width * x.channels + y.height * y.width * y.channels);
    let open = density * s.w_len() as f64;
    let sparse = open * (MULTIPLY * computed as f64 + OPEN) + COPY * copied as f64 + SCAN * s.w_len() as f64;
    // Winograd's algorithm halves two of the three dense passes, and a little more.
    let dense = if winograd::pays(s) { 0.6 * DENSE } else { DENSE };
    sparse < dense * s.flops() / 2.0
}

fn of_tokens(pattern: &Pattern, m: usize) -> ConvShape {
    linear_shape(m, pattern.shape.c, pattern.shape.o)
}

fn check(pattern: &Pattern, s: &ConvShape) {
    let window = |s: &ConvShape| ([s.o, s.c, s.kh, s.kw, s.groups], s.stride, s.pad_begin, s.dilation);
    let pointwise = (pattern.shape.is_pointwise(), s.is_pointwise());
    assert!(
        window(&pattern.shape) == window(s) && pointwise.0 == pointwise.1,
        "a pattern of {:?} for {s:?}",
        pattern.shape
    );
}

fn forward(isa: Isa, x: &[f32], pattern: &Pattern, bias: Option<&[f32]>, s: &ConvShape, y: &mut [f32]) {
    check(pattern, s);
    assert!(x.len() == s.x_len() && y.len() == s.y_len(), "lengths for {s:?}");
    assert!(bias.is_none_or(|bias| bias.len() == s.o), "a bias for {s:?}");
    let tile = tile(s);
    let planes = layout::forward_planes(s, tile);
    let results = Results { to: layout::sides(s, tile).1, phases: [1, 1] };
    product(isa, tile, x, &Reading::new(&planes, &pattern.by_output), bias, results, y);
}

fn input_gradient(isa: Isa, dy: &[f32], pattern: &Pattern, s: &ConvShape, dx: &mut [f32]) {
    check(pattern, s);
    assert!(dy.len() == s.y_len() && dx.len() == s.x_len(), "lengths for {s:?}");
    let tile = tile(s);
    let planes = layout::backward_planes(s, tile);
    let results = Results { to: layout::sides(s, tile).0, phases: s.stride };
    product(isa, tile, dy, &Reading::new(&planes, &pattern.by_input), None, results, dx);
}

fn weight_gradient(isa: Isa, x: &[f32], dy: &[f32], pattern: &Pattern, s: &ConvShape, dw: &mut [f32]) {
    check(pattern, s);
    assert!(x.len() == s.x_len() && dy.len() == s.y_len() && dw.len() == s.w_len(), "lengths for {s:?}");
    let tile = tile(s);
    let planes = layout::forward_planes(s, tile);
    let results = layout::result_planes(s, tile, &planes);
    gradient(isa, tile, (x, &Reading::new(&planes, &pattern.by_output)), (dy, &results), dw);
}
