//! 3x3 convolution with stride 1 by Winograd's minimal filtering (Lavin & Gray 2016, "Fast Algorithms for Convolutional
//! Neural Networks").
//!
//! Tiles of the image, the weight and the outputs are transformed so that a convolution becomes one matrix product
//! [tiles x C]·[C x O] per element of a transformed tile. Registers lie along channels. A task takes a block of tiles small
//! enough for its transformed input to stay in the second-level cache.
//!
//! Tiles have 4x4 outputs (a quarter of the direct multiplications) or 2x2 (4/9), whichever is less work in all. Rounding
//! errors, measured against the largest Σ|products| of an image, stay below 5e-6 and 1e-6.

mod transform;

use crate::conv::pass::{Panel, panels};
use crate::gemm::tile::{self, First, Product, Row};
use crate::isa::Isa;
use crate::scratch::{self, Buffer};
use crate::shape::ConvShape;
use crate::shared::Shared;
use rayon::prelude::*;
use std::cell::RefCell;
pub use transform::{Four, MOST_SIDE, Scheme, Two};
use transform::{Transforms, Window};

/// Of a task's transformed input and of one panel of its transformed output, within the second-level cache.
const BLOCK_BYTES: usize = 768 << 10;
/// Tiles of a task: enough to amortise reading the weight, and no more than amortise it well.
const FEWEST_TILES: usize = 24;
const MOST_TILES: usize = 96;
/// Tasks that keep two threads equally busy.
const TASKS: usize = 8;

#[derive(Default)]
struct Scratch {
    input: Buffer,
    output: Buffer,
}

thread_local! {
    static WEIGHTS: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Whether [`forward`] and [`input_gradient`] can compute the shape.
pub fn fits(s: &ConvShape) -> bool {
    [s.kh, s.kw] == [3, 3] && s.stride == [1, 1] && s.dilation == [1, 1] && s.groups == 1
}

/// Whether this is faster than the direct convolution by 1.15 or more.
///
/// Measured with AVX-512 on Zen 4, one thread, images of 4x4 to 56x56: F(4x4) is 1.6 to 2.6 times as fast as the direct
/// convolution with 8 to 24 channels and 1.4 to 3.2 times with 32 to 256 (least with few tiles), F(2x2) 1.2 to 2.0 times.
/// What eats the gain is the transform of the weight, which few tiles do not repay: with 512 channels both are as fast at
/// about 8 images of 4x4. Fewer than 8 channels do not fill registers.
pub fn pays(s: &ConvShape) -> bool {
    fits(s) && s.c.min(s.o) >= 8 && 1.15 * steps::<Two>(s).min(steps::<Four>(s)) <= s.flops() / 2.0
}

/// What the algorithm costs in multiplications of the direct one: those of its products; for each transformed weight as much
/// as those of some tiles, more if the transformed weight leaves the third-level cache; for each transformed element of a
/// tile some more. Fitted to the measurements that [`pays`] speaks of.
fn steps<S: Scheme>(s: &ConvShape) -> f64 {
    const OF_ELEMENT: usize = 6;
    let elements = S::SIDE * S::SIDE;
    let of_weight = if 4 * elements * s.c * s.o > 16 << 20 { 45 } else { 20 };
    let tiles = s.n * s.oh.div_ceil(S::OUT) * s.ow.div_ceil(S::OUT);
    (elements * ((tiles + of_weight) * s.c * s.o + OF_ELEMENT * tiles * (s.c + s.o))) as f64
}

/// `y[n,oh,ow,o]` = `x[n,h,w,c]` * `w[o,c,3,3]` + `bias[o]`.
///
/// # Panics
/// If the shape is another convolution than [`fits`] says or a slice has another length.
pub fn forward(x: &[f32], w: &[f32], bias: Option<&[f32]>, shape: &ConvShape, y: &mut [f32]) {
    forward_on(Isa::best(), x, w, bias, shape, y);
}

/// `dx[n,h,w,c]` from `w[o,c,3,3]` and `dy[n,oh,ow,o]`.
///
/// # Panics
/// As [`forward`].
pub fn input_gradient(w: &[f32], dy: &[f32], shape: &ConvShape, dx: &mut [f32]) {
    input_gradient_on(Isa::best(), w, dy, shape, dx);
}

pub(crate) fn forward_on(isa: Isa, x: &[f32], w: &[f32], bias: Option<&[f32]>, s: &ConvShape, y: &mut [f32]) {
    let by = if steps::<Four>(s) < steps::<Two>(s) { forward_by::<Four> } else { forward_by::<Two> };
    by(isa, x, w, bias, s, y);
}

pub(crate) fn input_gradient_on(isa: Isa, w: &[f32], dy: &[f32], s: &ConvShape, dx: &mut [f32]) {
    let by =
        if steps::<Four>(s) < steps::<Two>(s) { input_gradient_by::<Four> } else { input_gradient_by::<Two> };
    by(isa, w, dy, s, dx);
}

fn forward_by<S: Scheme>(isa: Isa, x: &[f32], w: &[f32], bias: Option<&[f32]>, s: &ConvShape, y: &mut [f32]) {
    assert!(fits(s), "not a 3x3 convolution with stride 1: {s:?}");
    assert!(x.len() == s.x_len() && w.len() == s.w_len() && y.len() == s.y_len(), "slices for {s:?}");
    assert!(bias.is_none_or(|bias| bias.len() == s.o), "a bias of another length than {}", s.o);
    let geometry = Geometry {
        n: s.n,
        from: [s.h, s.w],
        to: [s.oh, s.ow],
        pad: s.pad_begin.map(|pad| pad as isize),
        c: s.c,
        o: s.o,
    };
    convolve::<S>(isa, x, bias, &geometry, y, |c, o, tap| w[(o * s.c + c) * 9 + tap]);
}

fn input_gradient_by<S: Scheme>(isa: Isa, w: &[f32], dy: &[f32], s: &ConvShape, dx: &mut [f32]) {
    assert!(fits(s), "not a 3x3 convolution with stride 1: {s:?}");
    assert!(dx.len() == s.x_len() && w.len() == s.w_len() && dy.len() == s.y_len(), "slices for {s:?}");
    let geometry = Geometry {
        n: s.n,
        from: [s.oh, s.ow],
        to: [s.h, s.w],
        pad: s.pad_begin.map(|pad| 2 - pad as isize),
        c: s.o,
        o: s.c,
    };
    convolve::<S>(isa, dy, None, &geometry, dx, |o, c, tap| w[(o * s.c + c) * 9 + 8 - tap]);
}

/// Images `[from]` of `c` channels, padded at the top and left, convolved into images `[to]` of `o` channels.
struct Geometry {
    n: usize,
    from: [usize; 2],
    to: [usize; 2],
    pad: [isize; 2],
    c: usize,
    o: usize,
}

/// `weight(c, o, tap)` is the filter.
fn convolve<S: Scheme>(
    isa: Isa,
    x: &[f32],
    bias: Option<&[f32]>,
    g: &Geometry,
    y: &mut [f32],
    weight: impl Fn(usize, usize, usize) -> f32 + Sync,
) {
    if y.is_empty() {
        return;
    }
    let transforms = Transforms::new::<S>(isa, g.c.min(g.o));
    let (elements, panels) = (S::SIDE * S::SIDE, panels(g.o));
    let weight_plane = g.c * g.o.next_multiple_of(16);
    let tiles_of = g.to.map(|size| size.div_ceil(S::OUT));
    let tiles = g.n * tiles_of[0] * tiles_of[1];
    let block = (BLOCK_BYTES / 4 / (elements * (g.c + 64))).clamp(FEWEST_TILES, MOST_TILES);
    let blocks = tiles.div_ceil(block).max(TASKS.min(tiles.div_ceil(FEWEST_TILES)));
    let block = tiles.div_ceil(blocks);
    let y = Shared::new(y);
    scratch::with(&WEIGHTS, |weights| {
        let weights = weights.at_least(elements * weight_plane);
        transform_weight(&transforms, g, &panels, weight_plane, weights, weight);
        let weights = &*weights;
        (0..tiles.div_ceil(block)).into_par_iter().for_each(|i| {
            let tiles = i * block..tiles.min((i + 1) * block);
            convolve_block::<S>(isa, &transforms, x, bias, g, &panels, weights, weight_plane, tiles, y);
        });
    });
}

/// Writes `[element][panel][c][lane]`.
fn transform_weight(
    transforms: &Transforms,
    g: &Geometry,
    panels: &[Panel],
    plane: usize,
    weights: &mut [f32],
    weight: impl Fn(usize, usize, usize) -> f32 + Sync,
) {
    let weights = Shared::new(weights);
    let vectors = panels.iter().flat_map(|panel| (0..panel.lanes()).step_by(16).map(move |at| (panel, at)));
    let vectors: Vec<(&Panel, usize)> = vectors.collect();
    const STEPS: usize = 64;
    let chunks = g.c.div_ceil(STEPS);
    (0..vectors.len() * chunks).into_par_iter().for_each(|task| {
        let ((panel, at), chunk) = (vectors[task / chunks], task % chunks);
        let lanes = (panel.columns - at).min(16);
        let mut filters = [[0f32; 16]; 9];
        for c in chunk * STEPS..g.c.min((chunk + 1) * STEPS) {
            for lane in 0..lanes {
                for tap in 0..9 {
                    filters[tap][lane] = weight(c, panel.first + at + lane, tap);
                }
            }
            let to = panel.first * g.c + c * panel.lanes() + at;
            // SAFETY: the processor has the instruction set; every task writes its own lanes, 16 of them inside each plane.
            unsafe { (transforms.weight)(&filters, plane, weights.part(to, 16).as_mut_ptr()) }
        }
    });
}

#[allow(clippy::too_many_arguments)]
fn convolve_block<S: Scheme>(
    isa: Isa,
    transforms: &Transforms,
    x: &[f32],
    bias: Option<&[f32]>,
    g: &Geometry,
    panels: &[Panel],
    weights: &[f32],
    weight_plane: usize,
    tiles: std::ops::Range<usize>,
    y: Shared<f32>,
) {
    let elements = S::SIDE * S::SIDE;
    let count = tiles.len();
    let tiles_of = g.to.map(|size| size.div_ceil(S::OUT));
    let place = |tile: usize| {
        let (image, tile) = (tile / (tiles_of[0] * tiles_of[1]), tile % (tiles_of[0] * tiles_of[1]));
        (image, [tile / tiles_of[1], tile % tiles_of[1]].map(|at| (at * S::OUT) as isize))
    };
    // An odd number of lines between planes keeps the elements of a tile in different sets of the cache.
    let plane_of = |channels: usize| ((count * channels).div_ceil(16) | 1) * 16;
    scratch::with(&SCRATCH, |Scratch { input, output }| {
        let plane = plane_of(g.c);
        let input = input.at_least(elements * plane);
        for (i, tile) in tiles.clone().enumerate() {
            let (image, [top, left]) = place(tile);
            let window = Window {
                image: image * g.from[0] * g.from[1] * g.c,
                h: g.from[0],
                w: g.from[1],
                channels: g.c,
                range: 0..g.c,
                top: top - g.pad[0],
                left: left - g.pad[1],
                plane,
                bias: None,
            };
            // SAFETY: the processor has the instruction set.
            unsafe { (transforms.input)(x, &window, &mut input[i * g.c..]) };
        }
        for panel in panels {
            let lanes = panel.lanes();
            let out_plane = plane_of(lanes);
            let output = output.at_least(elements * out_plane);
            let rows: Vec<Row> = (0..count).map(|i| Row { a: i * g.c, c: i * lanes }).collect();
            for element in 0..elements {
                let product = Product {
                    ahead: None,
                    a: input[element * plane..].as_ptr(),
                    runs: &[0],
                    run_len: g.c,
                    a_step: 1,
                    b: weights[element * weight_plane + panel.first * g.c..].as_ptr(),
                    b_step: lanes,
                    c: output[element * out_plane..].as_mut_ptr(),
                    columns: panel.columns,
                    first: First::Zero,
                    last: None,
                };
                // SAFETY: planes hold `count` rows of all channels, weights `c` rows of all lanes of the panel.
                unsafe { tile::run(isa, &product, &rows) };
            }
            for (i, tile) in tiles.clone().enumerate() {
                let (image, [top, left]) = place(tile);
                let window = Window {
                    image: image * g.to[0] * g.to[1] * g.o,
                    h: g.to[0],
                    w: g.to[1],
                    channels: g.o,
                    range: panel.first..panel.first + panel.columns,
                    top,
                    left,
                    plane: out_plane,
                    bias: bias.map(|bias| &bias[panel.first..panel.first + panel.columns]),
                };
                // SAFETY: the processor has the instruction set; tiles cover each output once.
                unsafe { (transforms.output)(&output[i * lanes..], &window, y) };
            }
        }
    });
}

#[cfg(test)]
mod tests;
