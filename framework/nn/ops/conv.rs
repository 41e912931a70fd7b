//! 2-D convolution for training on plain slices: forward, gradient of the input, gradient of the weight.
//!
//! NCHW f32, one group, square stride and padding. Patches of a few images at a time are laid out as a matrix
//! (im2col) that stays in the L2 cache, and [`gemm`](super::gemm) does the rest. Work is split by image, and every
//! sum is taken in a fixed order, so results are the same bytes on any number of threads.

use super::gemm::{Strided, gemm};
use rayon::prelude::*;
use std::cell::RefCell;

/// Shapes of one convolution: x[n,c,h,w] * w[o,c,kh,kw] -> y[n,o,oh,ow].
#[derive(Clone, Copy, Debug)]
pub struct ConvShape {
    pub n: usize,
    pub c: usize,
    pub h: usize,
    pub w: usize,
    pub o: usize,
    pub kh: usize,
    pub kw: usize,
    pub stride: usize,
    pub pad: usize,
    pub oh: usize,
    pub ow: usize,
}

/// Columns of the patch matrix that a group of images should about fill: enough to amortise a weight load,
/// few enough that the matrix of a typical layer stays in L2.
const COLUMNS: usize = 192;

/// Images per partial sum of a weight gradient. The partition must not depend on the number of threads.
const PARTS: usize = 8;

impl ConvShape {
    pub fn new(x: [usize; 4], w: [usize; 4], stride: usize, pad: usize) -> ConvShape {
        let [n, c, h, width] = x;
        let [o, wc, kh, kw] = w;
        assert_eq!(c, wc, "weight takes {wc} channels, the input has {c}");
        assert!(
            stride > 0 && h + 2 * pad >= kh && width + 2 * pad >= kw,
            "the window does not fit the input"
        );
        let oh = (h + 2 * pad - kh) / stride + 1;
        let ow = (width + 2 * pad - kw) / stride + 1;
        ConvShape { n, c, h, w: width, o, kh, kw, stride, pad, oh, ow }
    }

    fn patch(&self) -> usize {
        self.c * self.kh * self.kw
    }

    fn pixels(&self) -> usize {
        self.oh * self.ow
    }

    /// Images whose patches are laid out together.
    fn group(&self) -> usize {
        COLUMNS.div_ceil(self.pixels()).clamp(1, self.n.max(1))
    }

    /// A 1x1 convolution whose patch matrix is the input itself.
    fn is_pointwise(&self) -> bool {
        self.kh == 1 && self.kw == 1 && self.stride == 1 && self.pad == 0
    }

    /// Output columns `lo..hi` whose tap `kx` falls inside the input.
    fn columns_inside(&self, kx: usize) -> (usize, usize) {
        let lo = self.pad.saturating_sub(kx).div_ceil(self.stride);
        let hi = (self.w + self.pad).saturating_sub(kx).div_ceil(self.stride).min(self.ow);
        (lo.min(hi), hi)
    }
}

#[derive(Default)]
struct Scratch {
    patches: Vec<f32>,
    grouped: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

fn at_least(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Writes the patches of one image into columns `offset..offset + pixels` of `patches[c*kh*kw][ld]`.
fn im2col(x: &[f32], s: &ConvShape, patches: &mut [f32], ld: usize, offset: usize) {
    for c in 0..s.c {
        for ky in 0..s.kh {
            for kx in 0..s.kw {
                let row = (c * s.kh + ky) * s.kw + kx;
                let dst = &mut patches[row * ld + offset..][..s.pixels()];
                let (lo, hi) = s.columns_inside(kx);
                for (oy, d) in dst.chunks_exact_mut(s.ow).enumerate() {
                    let iy = oy * s.stride + ky;
                    if iy < s.pad || iy >= s.h + s.pad || lo == hi {
                        d.fill(0.0);
                        continue;
                    }
                    let src = &x[(c * s.h + iy - s.pad) * s.w..][..s.w];
                    d[..lo].fill(0.0);
                    d[hi..].fill(0.0);
                    let first = lo * s.stride + kx - s.pad;
                    if s.stride == 1 {
                        d[lo..hi].copy_from_slice(&src[first..first + hi - lo]);
                    } else {
                        for (v, &u) in d[lo..hi].iter_mut().zip(src[first..].iter().step_by(s.stride)) {
                            *v = u;
                        }
                    }
                }
            }
        }
    }
}

/// The adjoint of [`im2col`]: adds the columns of one image back onto its pixels.
fn col2im(patches: &[f32], s: &ConvShape, x: &mut [f32], ld: usize, offset: usize) {
    for c in 0..s.c {
        for ky in 0..s.kh {
            for kx in 0..s.kw {
                let row = (c * s.kh + ky) * s.kw + kx;
                let src = &patches[row * ld + offset..][..s.pixels()];
                let (lo, hi) = s.columns_inside(kx);
                for (oy, d) in src.chunks_exact(s.ow).enumerate() {
                    let iy = oy * s.stride + ky;
                    if iy < s.pad || iy >= s.h + s.pad || lo == hi {
                        continue;
                    }
                    let dst = &mut x[(c * s.h + iy - s.pad) * s.w..][..s.w];
                    let first = lo * s.stride + kx - s.pad;
                    for (v, &u) in dst[first..].iter_mut().step_by(s.stride).zip(&d[lo..hi]) {
                        *v += u;
                    }
                }
            }
        }
    }
}

/// Lays `images` planes `[image][rows][pixels]` out as `[rows][image * pixels]`.
fn group_rows(planes: &[f32], rows: usize, pixels: usize, images: usize, out: &mut [f32]) {
    let ld = images * pixels;
    for i in 0..images {
        for r in 0..rows {
            out[r * ld + i * pixels..][..pixels]
                .copy_from_slice(&planes[(i * rows + r) * pixels..][..pixels]);
        }
    }
}

/// y[n,o,oh,ow] of x[n,c,h,w] and w[o,c,kh,kw].
pub fn forward(x: &[f32], w: &[f32], s: &ConvShape) -> Vec<f32> {
    let (k, pixels, group) = (s.patch(), s.pixels(), s.group());
    let (x_image, y_image) = (s.c * s.h * s.w, s.o * pixels);
    let mut y = vec![0f32; s.n * y_image];
    let weights = Strided { data: w, row: k, col: 1 };
    y.par_chunks_mut(y_image * group).zip(x.par_chunks(x_image * group)).for_each(|(y, x)| {
        SCRATCH.with_borrow_mut(|scratch| {
            let images = y.len() / y_image;
            let ld = images * pixels;
            if s.is_pointwise() && images == 1 {
                gemm(s.o, ld, k, weights, x, ld, y, ld, false);
                return;
            }
            let patches = at_least(&mut scratch.patches, k * ld);
            for (i, image) in x.chunks_exact(x_image).enumerate() {
                im2col(image, s, patches, ld, i * pixels);
            }
            if images == 1 {
                gemm(s.o, ld, k, weights, patches, ld, y, ld, false);
                return;
            }
            let rows = at_least(&mut scratch.grouped, s.o * ld);
            gemm(s.o, ld, k, weights, patches, ld, rows, ld, false);
            for (i, image) in y.chunks_exact_mut(y_image).enumerate() {
                for (o, plane) in image.chunks_exact_mut(pixels).enumerate() {
                    plane.copy_from_slice(&rows[o * ld + i * pixels..][..pixels]);
                }
            }
        });
    });
    y
}

/// Gradient of x from dy[n,o,oh,ow].
pub fn input_gradient(w: &[f32], dy: &[f32], s: &ConvShape) -> Vec<f32> {
    let (k, pixels, group) = (s.patch(), s.pixels(), s.group());
    let (x_image, y_image) = (s.c * s.h * s.w, s.o * pixels);
    let mut dx = vec![0f32; s.n * x_image];
    let weights_t = Strided { data: w, row: 1, col: k };
    dx.par_chunks_mut(x_image * group).zip(dy.par_chunks(y_image * group)).for_each(|(dx, dy)| {
        SCRATCH.with_borrow_mut(|scratch| {
            let images = dx.len() / x_image;
            let ld = images * pixels;
            let rows: &[f32] = if images == 1 {
                dy
            } else {
                let rows = at_least(&mut scratch.grouped, s.o * ld);
                group_rows(dy, s.o, pixels, images, rows);
                rows
            };
            if s.is_pointwise() && images == 1 {
                gemm(k, ld, s.o, weights_t, rows, ld, dx, ld, false);
                return;
            }
            let patches = at_least(&mut scratch.patches, k * ld);
            gemm(k, ld, s.o, weights_t, rows, ld, patches, ld, false);
            for (i, image) in dx.chunks_exact_mut(x_image).enumerate() {
                col2im(patches, s, image, ld, i * pixels);
            }
        });
    });
    dx
}

/// Gradient of w[o,c,kh,kw] from dy[n,o,oh,ow].
///
/// Computed transposed, `dwᵀ[k,o] = Σ_pixels patches[k,pixel] · dyᵀ[pixel,o]`, so that the vector dimension is the
/// output channel. The batch is cut into a fixed number of parts whose sums are added in order.
pub fn weight_gradient(x: &[f32], dy: &[f32], s: &ConvShape) -> Vec<f32> {
    let (k, pixels, group) = (s.patch(), s.pixels(), s.group());
    let (x_image, y_image) = (s.c * s.h * s.w, s.o * pixels);
    let images_per_part = s.n.div_ceil(PARTS).next_multiple_of(group);
    let parts: Vec<Vec<f32>> = x
        .par_chunks(x_image * images_per_part)
        .zip(dy.par_chunks(y_image * images_per_part))
        .map(|(x, dy)| {
            let mut dw_t = vec![0f32; k * s.o];
            SCRATCH.with_borrow_mut(|scratch| {
                for (x, dy) in x.chunks(x_image * group).zip(dy.chunks(y_image * group)) {
                    let images = x.len() / x_image;
                    let ld = images * pixels;
                    let patches = at_least(&mut scratch.patches, k * ld);
                    for (i, image) in x.chunks_exact(x_image).enumerate() {
                        im2col(image, s, patches, ld, i * pixels);
                    }
                    let dy_t = at_least(&mut scratch.grouped, ld * s.o);
                    for (i, image) in dy.chunks_exact(y_image).enumerate() {
                        transpose(image, s.o, pixels, &mut dy_t[i * pixels * s.o..][..pixels * s.o]);
                    }
                    let patches = Strided { data: patches, row: ld, col: 1 };
                    gemm(k, s.o, ld, patches, dy_t, s.o, &mut dw_t, s.o, true);
                }
            });
            dw_t
        })
        .collect();
    let mut sum = vec![0f32; k * s.o];
    for part in &parts {
        for (a, b) in sum.iter_mut().zip(part) {
            *a += b;
        }
    }
    let mut dw = vec![0f32; s.o * k];
    transpose(&sum, k, s.o, &mut dw);
    dw
}

/// out[c][r] = x[r][c], in blocks that keep both sides in L1.
fn transpose(x: &[f32], rows: usize, cols: usize, out: &mut [f32]) {
    const B: usize = 16;
    for r0 in (0..rows).step_by(B) {
        for c0 in (0..cols).step_by(B) {
            for r in r0..rows.min(r0 + B) {
                for c in c0..cols.min(c0 + B) {
                    out[c * rows + r] = x[r * cols + c];
                }
            }
        }
    }
}
