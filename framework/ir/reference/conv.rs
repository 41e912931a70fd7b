//! Convolutions: NCHW f32, NHWC f32 with its fused tail, NHWC integer.
//!
//! f32 sums: from 0, one product at a time, in the order (ky, kx, c) of the window, each product rounded and
//! each sum rounded; then the bias, then the residual, then the clip. Positions in the padding are skipped.

use super::quant::requantize;
use super::{Inputs, Outputs, f32s, i8s, i32s, optional, output_dims, u8s, wrong_attr};
use crate::op::{Attr, ClipAttr, ConvAttr, QConvAttr};
use crate::shape;
use crate::tensor::{DType, Elements, Tensor};

/// Sizes of one convolution, whatever its layout.
#[derive(Clone, Copy, Debug)]
pub struct ConvShape {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    /// Input channels.
    pub c: usize,
    pub oh: usize,
    pub ow: usize,
    /// Output channels (filters).
    pub o: usize,
    pub attr: ConvAttr,
}

impl ConvShape {
    /// From `x[N,H,W,C]` and `y[N,OH,OW,O]`.
    pub fn nhwc(x: &[usize], y: &[usize], attr: ConvAttr) -> ConvShape {
        ConvShape { n: x[0], h: x[1], w: x[2], c: x[3], oh: y[1], ow: y[2], o: y[3], attr }
    }

    /// From `x[N,C,H,W]` and `y[N,O,OH,OW]`.
    pub fn nchw(x: &[usize], y: &[usize], attr: ConvAttr) -> ConvShape {
        ConvShape { n: x[0], c: x[1], h: x[2], w: x[3], o: y[1], oh: y[2], ow: y[3], attr }
    }

    /// Input row that output row `oy` sees through kernel row `ky`, unless it lies in the padding.
    pub fn row(&self, oy: usize, ky: usize) -> Option<usize> {
        window_index(&self.attr.window, 0, oy, ky, self.h)
    }

    /// Input column that output column `ox` sees through kernel column `kx`, unless it lies in the padding.
    pub fn column(&self, ox: usize, kx: usize) -> Option<usize> {
        window_index(&self.attr.window, 1, ox, kx, self.w)
    }
}

/// Index into `size` elements that window position `out` sees through kernel element `k`; `None` in the padding.
#[inline]
pub fn window_index(w: &crate::op::Window, d: usize, out: usize, k: usize, size: usize) -> Option<usize> {
    let at = out * w.stride[d] as usize + k * w.dilation[d] as usize;
    at.checked_sub(w.pads[d] as usize).filter(|&i| i < size)
}

pub fn conv(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::conv, attr, inputs)?;
    let Attr::Conv(a) = attr else { return Err(wrong_attr(attr)) };
    let x = super::tensor(inputs, 0)?;
    let s = ConvShape::nchw(&x.dims, &dims, *a);
    let mut y = Tensor::zeros(DType::F32, &dims);
    if let Elements::F32(y) = &mut y.elements {
        conv_nchw_f32(
            &s,
            f32s(inputs, 0)?,
            f32s(inputs, 1)?,
            optional(inputs, 2).and_then(Tensor::as_f32),
            y,
        );
    }
    Ok(vec![y])
}

/// `x[N,C,H,W]`, `w[O,C/g,kh,kw]`, `y[N,O,OH,OW]`. The loop over columns is innermost, so that a row of sums grows
/// together; each sum still sees its products in the order of the file's head.
pub fn conv_nchw_f32(s: &ConvShape, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let group = s.attr.group as usize;
    let (cg, og) = (s.c / group, s.o / group);
    let [kh, kw] = s.attr.window.kernel.map(|k| k as usize);
    let (stride, dilation) = (s.attr.window.stride[1] as usize, s.attr.window.dilation[1] as usize);
    for (row, y) in y.chunks_exact_mut(s.ow).enumerate() {
        let (n, o, oy) = (row / s.oh / s.o, row / s.oh % s.o, row % s.oh);
        y.fill(0.0);
        for ky in 0..kh {
            let Some(iy) = s.row(oy, ky) else { continue };
            for kx in 0..kw {
                let Some((first, last)) = columns_inside(s, kx) else { continue };
                let ix = first * stride + kx * dilation - s.attr.window.pads[1] as usize;
                for c in 0..cg {
                    let weight = w[((o * cg + c) * kh + ky) * kw + kx];
                    let start = ((n * s.c + o / og * cg + c) * s.h + iy) * s.w + ix;
                    let y = &mut y[first..=last];
                    if stride == 1 {
                        // The same sums; without the step the compiler computes several columns at once.
                        y.iter_mut().zip(&x[start..]).for_each(|(y, &x)| *y += x * weight);
                    } else {
                        y.iter_mut()
                            .zip(x[start..].iter().step_by(stride))
                            .for_each(|(y, &x)| *y += x * weight);
                    }
                }
            }
        }
        if let Some(bias) = bias {
            y.iter_mut().for_each(|y| *y += bias[o]);
        }
    }
}

/// First and last output column that kernel column `kx` reads data for.
fn columns_inside(s: &ConvShape, kx: usize) -> Option<(usize, usize)> {
    let first = (0..s.ow).find(|&ox| s.column(ox, kx).is_some())?;
    let last = (first..s.ow).rev().find(|&ox| s.column(ox, kx).is_some())?;
    Some((first, last))
}

pub fn fused_conv(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::conv_nhwc, attr, inputs)?;
    let Attr::FusedConv(a) = attr else { return Err(wrong_attr(attr)) };
    let s = ConvShape::nhwc(&super::tensor(inputs, 0)?.dims, &dims, a.conv);
    let residual = optional(inputs, 3).and_then(Tensor::as_f32);
    let mut y = Tensor::zeros(DType::F32, &dims);
    if let Elements::F32(y) = &mut y.elements {
        conv_nhwc_f32(&s, f32s(inputs, 0)?, f32s(inputs, 1)?, f32s(inputs, 2)?, residual, a.clip, y);
    }
    Ok(vec![y])
}

/// `y = min(max(sum + bias + residual, clip.min), clip.max)`; `x[N,H,W,C]`, `w[O,kh,kw,C/g]`, `y[N,OH,OW,O]`.
pub fn conv_nhwc_f32(
    s: &ConvShape,
    x: &[f32],
    w: &[f32],
    bias: &[f32],
    residual: Option<&[f32]>,
    clip: ClipAttr,
    y: &mut [f32],
) {
    for_each_output(s, |at, o, taps| {
        let mut sum = 0.0f32;
        taps.each(|xs, ws| {
            for (&x, &w) in x[xs].iter().zip(&w[ws]) {
                sum += x * w;
            }
        });
        let mut f = sum + bias[o];
        if let Some(r) = residual {
            f += r[at];
        }
        y[at] = super::elementwise::clip_value(f, clip);
    });
}

/// Sums as of a convolution, over the kernel's elements that an output gets something from.
pub fn fused_conv_transpose(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::conv_transpose_nhwc, attr, inputs)?;
    let Attr::FusedConv(a) = attr else { return Err(wrong_attr(attr)) };
    let (x, w, bias) = (f32s(inputs, 0)?, f32s(inputs, 1)?, f32s(inputs, 2)?);
    let &[_, h, wd, c] = &super::tensor(inputs, 0)?.dims[..] else { return Err("x is not NHWC".to_string()) };
    let window = &a.conv.window;
    let [kh, kw] = window.kernel.map(|k| k as usize);
    let (oh, ow, o) = (dims[1], dims[2], dims[3]);
    let mut y = vec![0.0f32; dims.iter().product()];
    for (pixel, y) in y.chunks_exact_mut(o.max(1)).enumerate() {
        let (n, oy, ox) = (pixel / ow / oh, pixel / ow % oh, pixel % ow);
        for (f, y) in y.iter_mut().enumerate() {
            for ky in 0..kh {
                let Some(iy) = spread_from(window, 0, oy, ky, h) else { continue };
                for kx in 0..kw {
                    let Some(ix) = spread_from(window, 1, ox, kx, wd) else { continue };
                    let x = &x[((n * h + iy) * wd + ix) * c..][..c];
                    let w = &w[((f * kh + ky) * kw + kx) * c..][..c];
                    x.iter().zip(w).for_each(|(&x, &w)| *y += x * w);
                }
            }
            *y = super::elementwise::clip_value(*y + bias[f], a.clip);
        }
    }
    Ok(vec![Tensor::from_f32(&dims, y)])
}

/// The element, of `size`, that adds element `k` of a kernel to output `out` of a transposed convolution, if one does.
fn spread_from(w: &crate::op::Window, d: usize, out: usize, k: usize, size: usize) -> Option<usize> {
    let (at, stride) = ((out + w.pads[d] as usize).checked_sub(k)?, w.stride[d] as usize);
    (at.is_multiple_of(stride) && at / stride < size).then_some(at / stride)
}

pub fn qconv(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::qconv, attr, inputs)?;
    let Attr::QConv(a) = attr else { return Err(wrong_attr(attr)) };
    let s = ConvShape::nhwc(&super::tensor(inputs, 0)?.dims, &dims, a.conv);
    let (x, w, bias, mult) = (u8s(inputs, 0)?, i8s(inputs, 1)?, i32s(inputs, 2)?, f32s(inputs, 3)?);
    let residual = optional(inputs, 4).and_then(Tensor::as_u8);
    let table = super::quant::table(inputs, 5)?;
    let mut y = Tensor::zeros(if a.out.is_some() { DType::U8 } else { DType::F32 }, &dims);
    match &mut y.elements {
        Elements::U8(y) => qconv_nhwc(&s, x, w, bias, mult, residual, table, a, y),
        Elements::F32(y) => for_each_output(&s, |at, o, taps| {
            y[at] = integer_sum(x, w, bias[o], a.x_zero, taps) as f32 * mult[o];
        }),
        _ => {}
    }
    Ok(vec![y])
}

/// The integer convolution of [`crate::op::OpKind::QConv`] with u8 results; `x[N,H,W,C]`, `w[O,kh,kw,C/g]`, `y[N,OH,OW,O]`.
pub fn qconv_nhwc(
    s: &ConvShape,
    x: &[u8],
    w: &[i8],
    bias: &[i32],
    mult: &[f32],
    residual: Option<&[u8]>,
    table: Option<&[u8; 256]>,
    attr: &QConvAttr,
    y: &mut [u8],
) {
    let out = attr.out.unwrap_or(crate::op::Requant { zero: 0, lo: 0, hi: 255 });
    for_each_output(s, |at, o, taps| {
        let acc = integer_sum(x, w, bias[o], attr.x_zero, taps);
        let addend =
            residual.map(|r| (r[at] as i32).wrapping_sub(attr.residual_zero) as f32 * attr.residual_mult);
        let f = acc as f32 * mult[o];
        let early = addend.filter(|_| attr.late.is_none());
        let mut q = requantize(early.map_or(f, |r| f + r), out) as u8;
        if let Some(table) = table {
            q = table[q as usize];
        }
        if let (Some(late), Some(r)) = (attr.late, addend) {
            let f = (q as i32).wrapping_sub(late.zero) as f32 * late.mult;
            q = requantize(f + r, late.out) as u8;
        }
        y[at] = q;
    });
}

fn integer_sum(x: &[u8], w: &[i8], bias: i32, x_zero: i32, taps: Taps<'_>) -> i32 {
    let mut acc = bias;
    taps.each(|xs, ws| {
        for (&x, &w) in x[xs].iter().zip(&w[ws]) {
            acc = acc.wrapping_add((x as i32).wrapping_sub(x_zero).wrapping_mul(w as i32));
        }
    });
    acc
}

/// The window of one output of an NHWC convolution.
struct Taps<'a> {
    s: &'a ConvShape,
    n: usize,
    oy: usize,
    ox: usize,
    o: usize,
}

impl Taps<'_> {
    /// Calls `f` with the ranges of x and w of each window position that is not padding, in order (ky, kx).
    #[inline]
    fn each(&self, mut f: impl FnMut(std::ops::Range<usize>, std::ops::Range<usize>)) {
        let s = self.s;
        let group = s.attr.group as usize;
        let cg = s.c / group;
        let first_channel = self.o / (s.o / group) * cg;
        let [kh, kw] = s.attr.window.kernel.map(|k| k as usize);
        for ky in 0..kh {
            let Some(iy) = s.row(self.oy, ky) else { continue };
            for kx in 0..kw {
                let Some(ix) = s.column(self.ox, kx) else { continue };
                let xs = ((self.n * s.h + iy) * s.w + ix) * s.c + first_channel;
                let ws = ((self.o * kh + ky) * kw + kx) * cg;
                f(xs..xs + cg, ws..ws + cg);
            }
        }
    }
}

/// Calls `f` with the index in y, the filter and the window of every output.
#[inline]
fn for_each_output(s: &ConvShape, mut f: impl FnMut(usize, usize, Taps<'_>)) {
    for n in 0..s.n {
        for oy in 0..s.oh {
            for ox in 0..s.ow {
                for o in 0..s.o {
                    let at = ((n * s.oh + oy) * s.ow + ox) * s.o + o;
                    f(at, o, Taps { s, n, oy, ox, o });
                }
            }
        }
    }
}
