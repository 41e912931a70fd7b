//! 2-D convolution for training on plain slices: forward, gradient of the input, gradient of the weight.
//!
//! NCHW f32, one group, square stride and padding. Work is split by groups of images, and every sum is taken in a fixed
//! order, so results are the same bytes on any number of threads. Two ways to the same matrix product:
//!
//! * *Shifted* (stride 1, "same" padding; most layers): a group of images is copied once into zero-padded planes. Patch
//!   row `(c, ky, kx)` is then plane `c` shifted by the tap, so the planes are the patch matrix and nothing is laid out.
//!   Neighbouring rows share their padding columns, neighbouring images their padding rows; the columns of the product
//!   that fall on padding are computed and dropped:
//!
//!   ```text
//!   plane c:  0 0 0 0 | 0 a b c | 0 d e f | 0 0 0 0 | 0 g h i | ...      3 columns, 1 of padding; images [abc/def], [ghi/..
//!   ```
//! * *Gathered* (everything else): patches are laid out as a matrix (im2col).

use super::gemm::{Rows, gemm, starts};
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

    /// Whether the output has the input's size, so that planes shifted by a tap are rows of patches.
    fn is_shifted(&self) -> bool {
        self.stride == 1 && self.kh == 2 * self.pad + 1 && self.kw == self.kh
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

/// Zero-padded planes of a group of images; see the head of the file.
#[derive(Clone, Copy)]
struct Planes {
    images: usize,
    h: usize,
    w: usize,
    pad: usize,
}

impl Planes {
    /// Elements from one row to the next, and from one image to the next.
    fn row(&self) -> usize {
        self.w + self.pad
    }

    fn image(&self) -> usize {
        (self.h + self.pad) * self.row()
    }

    /// Elements of one plane.
    fn len(&self) -> usize {
        self.images * self.image() + self.pad * self.row() + self.pad
    }

    /// Columns of the product: the last one is the last pixel of the last image.
    fn columns(&self) -> usize {
        (self.images - 1) * self.image() + (self.h - 1) * self.row() + self.w
    }

    /// Where each patch row of `channels` planes begins.
    fn taps(&self, channels: usize) -> Vec<usize> {
        let k = 2 * self.pad + 1;
        let tap = |t: usize| t / (k * k) * self.len() + t / k % k * self.row() + t % k;
        (0..channels * k * k).map(tap).collect()
    }

    /// Copies images [image][channel][h*w] into planes [channel][len].
    fn fill(&self, images: &[f32], channels: usize, planes: &mut [f32]) {
        planes.fill(0.0);
        let pixels = self.h * self.w;
        for (i, image) in images.chunks_exact(channels * pixels).enumerate() {
            for (c, from) in image.chunks_exact(pixels).enumerate() {
                let first = c * self.len() + i * self.image() + self.pad * self.row() + self.pad;
                for (y, row) in from.chunks_exact(self.w).enumerate() {
                    planes[first + y * self.row()..][..self.w].copy_from_slice(row);
                }
            }
        }
    }

    /// Copies the pixels of a product [channel][columns] back into images [image][channel][h*w].
    fn take(&self, product: &[f32], channels: usize, images: &mut [f32]) {
        let pixels = self.h * self.w;
        for (i, image) in images.chunks_exact_mut(channels * pixels).enumerate() {
            for (c, to) in image.chunks_exact_mut(pixels).enumerate() {
                let first = c * self.columns() + i * self.image();
                for (y, row) in to.chunks_exact_mut(self.w).enumerate() {
                    row.copy_from_slice(&product[first + y * self.row()..][..self.w]);
                }
            }
        }
    }
}

/// out[n,o,h,w] = weights[o][taps of c channels] over the planes of x[n,c,h,w].
fn shifted(x: &[f32], c: usize, weights: &[f32], o: usize, s: &ConvShape) -> Vec<f32> {
    let (pixels, group) = (s.pixels(), s.group());
    let mut y = vec![0f32; s.n * o * pixels];
    let weight_rows = starts(o, c * s.kh * s.kw);
    let planes_of = |images: usize| Planes { images, h: s.h, w: s.w, pad: s.pad };
    let (whole, rest) = (planes_of(group), planes_of((s.n % group).max(1)));
    let taps = [(whole, whole.taps(c)), (rest, rest.taps(c))];
    y.par_chunks_mut(o * pixels * group).zip(x.par_chunks(c * pixels * group)).for_each(|(y, x)| {
        SCRATCH.with_borrow_mut(|Scratch { patches, grouped }| {
            let (planes, taps) = &taps[(y.len() != o * pixels * group) as usize];
            let padded = at_least(patches, c * planes.len());
            planes.fill(x, c, padded);
            let columns = planes.columns();
            let product = at_least(grouped, o * columns);
            let a = Rows { data: weights, starts: &weight_rows, step: 1 };
            gemm(columns, a, Rows { data: padded, starts: taps, step: 1 }, product, columns, false);
            planes.take(product, o, y);
        });
    });
    y
}

/// y[n,o,oh,ow] of x[n,c,h,w] and w[o,c,kh,kw].
pub fn forward(x: &[f32], w: &[f32], s: &ConvShape) -> Vec<f32> {
    if s.is_shifted() {
        return shifted(x, s.c, w, s.o, s);
    }
    let (k, pixels, group) = (s.patch(), s.pixels(), s.group());
    let (x_image, y_image) = (s.c * s.h * s.w, s.o * pixels);
    let mut y = vec![0f32; s.n * y_image];
    let weight_rows = starts(s.o, k);
    y.par_chunks_mut(y_image * group).zip(x.par_chunks(x_image * group)).for_each(|(y, x)| {
        SCRATCH.with_borrow_mut(|Scratch { patches, grouped }| {
            let images = y.len() / y_image;
            let ld = images * pixels;
            let patches = at_least(patches, k * ld);
            for (i, image) in x.chunks_exact(x_image).enumerate() {
                im2col(image, s, patches, ld, i * pixels);
            }
            let rows = at_least(grouped, s.o * ld);
            let a = Rows { data: w, starts: &weight_rows, step: 1 };
            gemm(ld, a, Rows { data: patches, starts: &starts(k, ld), step: 1 }, rows, ld, false);
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
    let k = s.patch();
    if s.is_shifted() {
        // A convolution of dy with the weight turned round: [c][o, kh-1-ky, kw-1-kx].
        let taps = s.kh * s.kw;
        let mut turned = vec![0f32; w.len()];
        for (i, v) in turned.iter_mut().enumerate() {
            let (c, o, tap) = (i / (s.o * taps), i / taps % s.o, i % taps);
            *v = w[o * k + c * taps + taps - 1 - tap];
        }
        return shifted(dy, s.o, &turned, s.c, s);
    }
    let (pixels, group) = (s.pixels(), s.group());
    let (x_image, y_image) = (s.c * s.h * s.w, s.o * pixels);
    let mut dx = vec![0f32; s.n * x_image];
    let weight_columns = starts(k, 1);
    dx.par_chunks_mut(x_image * group).zip(dy.par_chunks(y_image * group)).for_each(|(dx, dy)| {
        SCRATCH.with_borrow_mut(|Scratch { patches, grouped }| {
            let images = dx.len() / x_image;
            let ld = images * pixels;
            let rows = at_least(grouped, s.o * ld);
            group_rows(dy, s.o, pixels, images, rows);
            let patches = at_least(patches, k * ld);
            let a = Rows { data: w, starts: &weight_columns, step: k };
            gemm(ld, a, Rows { data: rows, starts: &starts(s.o, ld), step: 1 }, patches, ld, false);
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
    let add = if s.is_shifted() { add_shifted_gradient } else { add_gathered_gradient };
    let parts: Vec<Vec<f32>> = x
        .par_chunks(x_image * images_per_part)
        .zip(dy.par_chunks(y_image * images_per_part))
        .map(|(x, dy)| {
            let mut dw_t = vec![0f32; k * s.o];
            SCRATCH.with_borrow_mut(|scratch| {
                for (x, dy) in x.chunks(x_image * group).zip(dy.chunks(y_image * group)) {
                    add(x, dy, s, scratch, &mut dw_t);
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

/// Adds what a group of images gives to dwᵀ[k][o].
fn add_shifted_gradient(x: &[f32], dy: &[f32], s: &ConvShape, scratch: &mut Scratch, dw_t: &mut [f32]) {
    let pixels = s.pixels();
    let planes = Planes { images: x.len() / (s.c * pixels), h: s.h, w: s.w, pad: s.pad };
    let padded = at_least(&mut scratch.patches, s.c * planes.len());
    planes.fill(x, s.c, padded);
    // dyᵀ[column][o] is zero in the columns that fall on padding.
    let columns = planes.columns();
    let dy_t = at_least(&mut scratch.grouped, columns * s.o);
    dy_t.fill(0.0);
    for (i, image) in dy.chunks_exact(s.o * pixels).enumerate() {
        for y in 0..s.h {
            let first = (i * planes.image() + y * planes.row()) * s.o;
            for (x, to) in dy_t[first..][..s.w * s.o].chunks_exact_mut(s.o).enumerate() {
                for (o, v) in to.iter_mut().enumerate() {
                    *v = image[o * pixels + y * s.w + x];
                }
            }
        }
    }
    let a = Rows { data: padded, starts: &planes.taps(s.c), step: 1 };
    gemm(s.o, a, Rows { data: dy_t, starts: &starts(columns, s.o), step: 1 }, dw_t, s.o, true);
}

fn add_gathered_gradient(x: &[f32], dy: &[f32], s: &ConvShape, scratch: &mut Scratch, dw_t: &mut [f32]) {
    let (k, pixels) = (s.patch(), s.pixels());
    let (x_image, y_image) = (s.c * s.h * s.w, s.o * pixels);
    let ld = x.len() / x_image * pixels;
    let patches = at_least(&mut scratch.patches, k * ld);
    for (i, image) in x.chunks_exact(x_image).enumerate() {
        im2col(image, s, patches, ld, i * pixels);
    }
    let dy_t = at_least(&mut scratch.grouped, ld * s.o);
    for (i, image) in dy.chunks_exact(y_image).enumerate() {
        transpose(image, s.o, pixels, &mut dy_t[i * pixels * s.o..][..pixels * s.o]);
    }
    let a = Rows { data: patches, starts: &starts(k, ld), step: 1 };
    gemm(s.o, a, Rows { data: dy_t, starts: &starts(ld, s.o), step: 1 }, dw_t, s.o, true);
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
