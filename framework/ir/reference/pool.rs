//! Pooling: windows and whole planes, NCHW and NHWC.
//!
//! Sums run over the window (ky, kx), or over the plane, in row-major order, then are divided once.

use super::conv::window_index;
use super::quant::requantize;
use super::{Inputs, Outputs, f32s, output_dims, tensor, u8s, wrong_attr};
use crate::op::{Attr, PoolAttr, QPoolAttr};
use crate::shape;
use crate::tensor::{DType, Elements, Tensor};

/// Sizes of one pooling. `step` is how far apart neighbouring pixels lie in memory, planes follow from it.
#[derive(Clone, Copy, Debug)]
pub struct PoolShape {
    pub n: usize,
    pub c: usize,
    pub h: usize,
    pub w: usize,
    pub oh: usize,
    pub ow: usize,
    pub channels_last: bool,
    pub attr: PoolAttr,
}

impl PoolShape {
    pub fn nchw(x: &[usize], y: &[usize], attr: PoolAttr) -> PoolShape {
        PoolShape { n: x[0], c: x[1], h: x[2], w: x[3], oh: y[2], ow: y[3], channels_last: false, attr }
    }

    pub fn nhwc(x: &[usize], y: &[usize], attr: PoolAttr) -> PoolShape {
        PoolShape { n: x[0], h: x[1], w: x[2], c: x[3], oh: y[1], ow: y[2], channels_last: true, attr }
    }

    fn at(&self, n: usize, c: usize, y: usize, x: usize, h: usize, w: usize) -> usize {
        if self.channels_last {
            ((n * h + y) * w + x) * self.c + c
        } else {
            ((n * self.c + c) * h + y) * w + x
        }
    }

    /// Calls `f` with the index in y, and the indices in x of the window's data, for every output.
    fn each(&self, mut f: impl FnMut(usize, usize, usize, &mut dyn Iterator<Item = usize>)) {
        let [kh, kw] = self.attr.window.kernel.map(|k| k as usize);
        for n in 0..self.n {
            for c in 0..self.c {
                for oy in 0..self.oh {
                    for ox in 0..self.ow {
                        let out = self.at(n, c, oy, ox, self.oh, self.ow);
                        let mut taps =
                            (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))).filter_map(|(ky, kx)| {
                                let iy = window_index(&self.attr.window, 0, oy, ky, self.h)?;
                                let ix = window_index(&self.attr.window, 1, ox, kx, self.w)?;
                                Some(self.at(n, c, iy, ix, self.h, self.w))
                            });
                        f(out, oy, ox, &mut taps);
                    }
                }
            }
        }
    }

    /// Window positions at `(oy, ox)` in data or declared padding: what an average that includes the padding
    /// divides by. What ceil mode adds beyond the padding does not count.
    fn positions(&self, oy: usize, ox: usize) -> usize {
        let count = |d: usize, out: usize, size: usize| {
            let w = &self.attr.window;
            let end = size + w.pads[d] as usize + w.pads[d + 2] as usize;
            let start = out * w.stride[d] as usize;
            (0..w.kernel[d] as usize).filter(|k| start + k * (w.dilation[d] as usize) < end).count()
        };
        count(0, oy, self.h) * count(1, ox, self.w)
    }
}

/// The largest of each window; the padding is smaller than everything. Not a number wins.
pub fn max_f32(s: &PoolShape, x: &[f32], y: &mut [f32]) {
    s.each(|out, _, _, taps| {
        y[out] = taps.map(|i| x[i]).fold(f32::NEG_INFINITY, |m, x| if x > m || x.is_nan() { x } else { m });
    });
}

pub fn max_u8(s: &PoolShape, x: &[u8], y: &mut [u8]) {
    s.each(|out, _, _, taps| y[out] = taps.map(|i| x[i]).max().unwrap_or(0));
}

/// The average of each window; a window without data gives 0.
pub fn average_f32(s: &PoolShape, x: &[f32], y: &mut [f32]) {
    s.each(|out, oy, ox, taps| {
        let (mut sum, mut count) = (0.0f32, 0usize);
        for i in taps {
            sum += x[i];
            count += 1;
        }
        if s.attr.count_include_pad {
            count = s.positions(oy, ox);
        }
        y[out] = if count == 0 { 0.0 } else { sum / count as f32 };
    });
}

fn window_pool(attr: &Attr, inputs: Inputs<'_>, channels_last: bool, max: bool) -> Outputs {
    let rule = match (channels_last, max) {
        (false, _) => shape::pool,
        (true, true) => shape::pool_nhwc,
        (true, false) => shape::pool_nhwc_f32,
    };
    let dims = output_dims(rule, attr, inputs)?;
    let Attr::Pool(a) = attr else { return Err(wrong_attr(attr)) };
    let x = tensor(inputs, 0)?;
    let s =
        if channels_last { PoolShape::nhwc(&x.dims, &dims, *a) } else { PoolShape::nchw(&x.dims, &dims, *a) };
    let mut y = Tensor::zeros(x.dtype(), &dims);
    match (&x.elements, &mut y.elements) {
        (Elements::F32(x), Elements::F32(y)) if max => max_f32(&s, x, y),
        (Elements::F32(x), Elements::F32(y)) => average_f32(&s, x, y),
        (Elements::U8(x), Elements::U8(y)) if max => max_u8(&s, x, y),
        _ => return Err(format!("input 0 cannot be {}", x.dtype())),
    }
    Ok(vec![y])
}

pub fn max_pool(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    window_pool(attr, inputs, false, true)
}

pub fn average_pool(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    window_pool(attr, inputs, false, false)
}

pub fn max_pool_nhwc(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    window_pool(attr, inputs, true, true)
}

pub fn average_pool_nhwc(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    window_pool(attr, inputs, true, false)
}

pub fn global_avg_pool_nhwc(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::global_pool_nhwc, attr, inputs)?;
    let x = tensor(inputs, 0)?;
    let mut y = vec![0.0; dims[0] * dims[3]];
    global_average_nhwc_f32(x.dims[1] * x.dims[2], dims[3], f32s(inputs, 0)?, &mut y);
    Ok(vec![Tensor::from_f32(&dims, y)])
}

/// `x[N,pixels,C]`, `y[N,C]`.
pub fn global_average_nhwc_f32(pixels: usize, c: usize, x: &[f32], y: &mut [f32]) {
    for (i, y) in y.iter_mut().enumerate() {
        let (n, ch) = (i / c, i % c);
        *y = (0..pixels).fold(0.0f32, |sum, p| sum + x[(n * pixels + p) * c + ch]) / pixels as f32;
    }
}

pub fn qglobal_avg_pool(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::qglobal_pool, attr, inputs)?;
    let Attr::QPool(q) = attr else { return Err(wrong_attr(attr)) };
    let x = tensor(inputs, 0)?;
    let mut y = Tensor::zeros(DType::U8, &dims);
    if let Elements::U8(y) = &mut y.elements {
        qglobal_average_nhwc(x.dims[1] * x.dims[2], dims[3], u8s(inputs, 0)?, q, y);
    }
    Ok(vec![y])
}

/// `x[N,pixels,C]`, `y[N,C]`: `f = (Σ (x - x_zero)) as f32 * mult`, then `out`.
pub fn qglobal_average_nhwc(pixels: usize, c: usize, x: &[u8], attr: &QPoolAttr, y: &mut [u8]) {
    for (i, y) in y.iter_mut().enumerate() {
        let (n, ch) = (i / c, i % c);
        let sum = (0..pixels).fold(0i32, |sum, p| {
            sum.wrapping_add((x[(n * pixels + p) * c + ch] as i32).wrapping_sub(attr.x_zero))
        });
        *y = requantize(sum as f32 * attr.mult, attr.out) as u8;
    }
}
