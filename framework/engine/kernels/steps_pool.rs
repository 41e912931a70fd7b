//! Windows and whole planes, NHWC: channels are the inner loop.

use super::{by_isa, requantize, share};
use lacuna_ir::op::{PoolAttr, Requant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    MaxF32,
    MaxU8,
    AverageF32,
}

impl PoolKind {
    pub fn name(self) -> &'static str {
        match self {
            PoolKind::MaxF32 => "max_pool_f32",
            PoolKind::MaxU8 => "max_pool_u8",
            PoolKind::AverageF32 => "average_pool_f32",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PoolStep {
    pub kind: PoolKind,
    pub attr: PoolAttr,
    /// Height, width and channels of x.
    pub x: [usize; 3],
    /// Images, height and width of y.
    pub y: [usize; 3],
    /// Elements from image to image, row to row, pixel to pixel.
    pub x_strides: [usize; 3],
    pub y_strides: [usize; 3],
}

impl PoolStep {
    /// The input positions that tap `k` of output `out` may have along axis `d` (0 height, 1 width).
    fn tap(&self, d: usize, out: usize, k: usize) -> Option<usize> {
        let w = &self.attr.window;
        let at = out * w.stride[d] as usize + k * w.dilation[d] as usize;
        at.checked_sub(w.pads[d] as usize).filter(|&i| i < self.x[d])
    }

    /// Window positions in data or declared padding, see the reference.
    fn positions(&self, oy: usize, ox: usize) -> usize {
        let w = &self.attr.window;
        let count = |d: usize, out: usize| {
            let end = self.x[d] + (w.pads[d] + w.pads[d + 2]) as usize;
            let start = out * w.stride[d] as usize;
            (0..w.kernel[d] as usize).filter(|k| start + k * (w.dilation[d] as usize) < end).count()
        };
        count(0, oy) * count(1, ox)
    }

    /// Calls `f(oy, ox, y offset)` for part `part`'s outputs.
    #[inline(always)]
    fn each(&self, part: usize, parts: usize, mut f: impl FnMut(usize, usize, usize, usize)) {
        let [n, oh, ow] = self.y;
        for row in share(n * oh, part, parts) {
            let (n, oy) = (row / oh, row % oh);
            for ox in 0..ow {
                let y = n * self.y_strides[0] + oy * self.y_strides[1] + ox * self.y_strides[2];
                f(n, oy, ox, y);
            }
        }
    }

    /// Calls `f(x offset)` for the taps of one output that lie in the data, row by row.
    #[inline(always)]
    fn taps(&self, n: usize, oy: usize, ox: usize, mut f: impl FnMut(usize)) {
        let [kh, kw] = self.attr.window.kernel.map(|k| k as usize);
        for ky in 0..kh {
            let Some(iy) = self.tap(0, oy, ky) else { continue };
            for kx in 0..kw {
                let Some(ix) = self.tap(1, ox, kx) else { continue };
                f(n * self.x_strides[0] + iy * self.x_strides[1] + ix * self.x_strides[2]);
            }
        }
    }
}

by_isa! {
    /// # Safety
    /// As `super::run_pool`.
    run_pool, pool, (s: &PoolStep, y: *mut u8, x: *const u8, part: usize, parts: usize)
}

#[inline(always)]
unsafe fn pool(s: &PoolStep, y: *mut u8, x: *const u8, part: usize, parts: usize) {
    let greater = |m: f32, x: f32| if x > m || x.is_nan() { x } else { m };
    // SAFETY: the caller's promise.
    unsafe {
        match s.kind {
            PoolKind::MaxU8 => fold(s, y, x, part, parts, 0u8, |m, x| m.max(x), |_, _, _| {}),
            PoolKind::MaxF32 => {
                fold(s, y.cast(), x.cast(), part, parts, f32::NEG_INFINITY, greater, |_, _, _| {})
            }
            PoolKind::AverageF32 => {
                let divide = |y: &mut [f32], taps: usize, positions: usize| {
                    let count = if s.attr.count_include_pad { positions } else { taps };
                    let n = count.max(1) as f32;
                    y.iter_mut().for_each(|y| *y /= n);
                };
                fold(s, y.cast(), x.cast(), part, parts, 0.0f32, |m, x| m + x, divide)
            }
        }
    }
}

/// Folds the taps of every output into it, then calls `finish(channels, taps, positions)`.
#[inline(always)]
unsafe fn fold<T: Copy>(
    s: &PoolStep,
    y: *mut T,
    x: *const T,
    part: usize,
    parts: usize,
    start: T,
    f: impl Fn(T, T) -> T,
    finish: impl Fn(&mut [T], usize, usize),
) {
    let c = s.x[2];
    s.each(part, parts, |n, oy, ox, at| {
        // SAFETY: an output pixel of this part; parts are disjoint (`super::run_pool`).
        let y = unsafe { std::slice::from_raw_parts_mut(y.add(at), c) };
        y.fill(start);
        let mut count = 0;
        s.taps(n, oy, ox, |at| {
            // SAFETY: `taps` gives pixels of x only.
            let x = unsafe { std::slice::from_raw_parts(x.add(at), c) };
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(*y, x));
            count += 1;
        });
        finish(y, count, s.positions(oy, ox));
    });
}

/// The mean of all pixels of each image and channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeanStep {
    /// Images, height, width, channels of x.
    pub x: [usize; 4],
    pub x_strides: [usize; 3],
    /// Elements of y from image to image.
    pub y_image: usize,
    /// u8 in and out, or f32 if absent: zero point of x, multiplier, requantisation.
    pub int: Option<(i32, f32, Requant)>,
}

/// Channels whose sums are kept on the stack at a time.
const BLOCK: usize = 64;

impl MeanStep {
    pub fn units(&self) -> usize {
        self.x[0] * self.x[3].div_ceil(BLOCK)
    }
}

by_isa! {
    /// # Safety
    /// As `super::run_mean`.
    run_mean, mean, (s: &MeanStep, y: *mut u8, x: *const u8, part: usize, parts: usize)
}

#[inline(always)]
unsafe fn mean(s: &MeanStep, y: *mut u8, x: *const u8, part: usize, parts: usize) {
    let [_, h, w, c] = s.x;
    let blocks = c.div_ceil(BLOCK);
    let pixels = h * w;
    for unit in share(s.units(), part, parts) {
        let (n, from) = (unit / blocks, unit % blocks * BLOCK);
        let len = BLOCK.min(c - from);
        let (x_at, y_at) = (n * s.x_strides[0] + from, n * s.y_image + from);
        // SAFETY: channels `from..from + len` of image `n`'s pixels; parts write disjoint channels.
        unsafe {
            match s.int {
                Some((zero, mult, out)) => {
                    let sums =
                        sum_pixels(s, x.add(x_at), len, 0i32, |a, x: u8| a.wrapping_add(x as i32 - zero));
                    let y = std::slice::from_raw_parts_mut(y.add(y_at), len);
                    y.iter_mut().zip(&sums).for_each(|(y, &a)| *y = requantize(a as f32 * mult, out));
                }
                None => {
                    let sums = sum_pixels(s, x.cast::<f32>().add(x_at), len, 0.0f32, |a, x: f32| a + x);
                    let y = std::slice::from_raw_parts_mut(y.cast::<f32>().add(y_at), len);
                    y.iter_mut().zip(&sums).for_each(|(y, &a)| *y = a / pixels as f32);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn sum_pixels<A: Copy, T: Copy>(
    s: &MeanStep,
    x: *const T,
    len: usize,
    start: A,
    add: impl Fn(A, T) -> A,
) -> [A; BLOCK] {
    let mut sums = [start; BLOCK];
    for iy in 0..s.x[1] {
        for ix in 0..s.x[2] {
            // SAFETY: a pixel of the image at `x`, `len` channels of it.
            let x =
                unsafe { std::slice::from_raw_parts(x.add(iy * s.x_strides[1] + ix * s.x_strides[2]), len) };
            sums.iter_mut().zip(x).for_each(|(a, &x)| *a = add(*a, x));
        }
    }
    sums
}
