//! Images as they come, f32 planes, become quantised pixels of three or four bytes: what stands before a first convolution.

use super::{by_isa, round_small, share};
use crate::target::Isa;

/// Planes of f32 to pixels of u8. Operands y, x, scale (f32), zero point (u8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelsStep {
    pub images: usize,
    pub h: usize,
    pub w: usize,
    pub channels: usize,
    /// Elements of x from image to image, plane to plane, row to row; a row's elements lie side by side.
    pub x_strides: [usize; 3],
    /// Elements of y from image to image and row to row.
    pub y_strides: [usize; 2],
}

impl PixelsStep {
    /// Whether there is a row for pixels of so many channels and bytes. Bytes past the channels hold anything.
    pub fn is_for(channels: usize, bytes: usize) -> bool {
        matches!((channels, bytes), (3, 3) | (4, 4))
    }

    pub fn units(&self) -> usize {
        self.images * self.h
    }
}

/// Scale and zero point, and how a quotient is made.
#[derive(Clone, Copy)]
pub struct Quantise {
    scale: f32,
    zero: i32,
    /// What x is clamped to before it is divided: the least and the greatest result, times the scale.
    lo: f32,
    hi: f32,
    /// `1 / scale`, where multiplications can replace the division.
    reciprocal: Option<f32>,
}

impl Quantise {
    fn new(scale: f32, zero: u8, fused: bool) -> Quantise {
        let zero = zero as i32;
        // Far from the ends of f32 neither reciprocal nor remainders lose bits.
        let plain = (1e-18..1e18).contains(&scale);
        let (lo, hi) = match plain {
            true => (-zero as f32 * scale, (255 - zero) as f32 * scale),
            false => (f32::NEG_INFINITY, f32::INFINITY),
        };
        Quantise { scale, zero, lo, hi, reciprocal: (plain && fused).then_some(1.0 / scale) }
    }

    /// `x / scale` as division rounds it, by Markstein's theorem: a quotient within one unit in the last place,
    /// corrected by its exact remainder times the correctly rounded reciprocal. The first correction brings it there.
    #[inline(always)]
    fn quotient(&self, x: f32, reciprocal: f32) -> f32 {
        let q = x * reciprocal;
        let q = (-q).mul_add(self.scale, x).mul_add(reciprocal, q);
        (-q).mul_add(self.scale, x).mul_add(reciprocal, q)
    }

    /// x within the bounds, 0 if it is no number. Clamping before the division or after it is the same, because the
    /// bounds are whole steps.
    #[inline(always)]
    fn clamp(&self, x: f32) -> f32 {
        let x = if x.is_nan() { 0.0 } else { x };
        let x = if x > self.lo { x } else { self.lo };
        if x < self.hi { x } else { self.hi }
    }
}

/// Runs one part.
///
/// # Safety
/// As [`super::run_map`]: `p` points at the first elements of y, x, scale and zero point, which hold all that `s`
/// addresses; x is three or four planes, and pixels of y lie side by side.
pub unsafe fn run_pixels(isa: Isa, s: &PixelsStep, p: [*mut u8; 4], part: usize, parts: usize) {
    // SAFETY: the caller's promise. Rows of AVX2 and above fuse multiplication and addition.
    unsafe {
        let q = Quantise::new(p[2].cast::<f32>().read_unaligned(), *p[3], isa >= Isa::Avx2);
        run(isa, s, p[0], p[1].cast(), &q, part, parts);
    }
}

by_isa! {
    /// # Safety
    /// As [`run_pixels`].
    run, pixels, (s: &PixelsStep, y: *mut u8, x: *const f32, q: &Quantise, part: usize, parts: usize)
}

#[inline(always)]
unsafe fn pixels(s: &PixelsStep, y: *mut u8, x: *const f32, q: &Quantise, part: usize, parts: usize) {
    for unit in share(s.units(), part, parts) {
        let (n, row) = (unit / s.h, unit % s.h);
        // SAFETY: rows of the image's planes and of its pixels; parts write disjoint rows.
        unsafe {
            let x = x.add(n * s.x_strides[0] + row * s.x_strides[2]);
            let plane = |c: usize| std::slice::from_raw_parts(x.add(c * s.x_strides[1]), s.w);
            let y = y.add(n * s.y_strides[0] + row * s.y_strides[1]);
            match s.channels {
                3 => {
                    line([plane(0), plane(1), plane(2)], std::slice::from_raw_parts_mut(y.cast(), s.w), q);
                }
                _ => {
                    let planes = [plane(0), plane(1), plane(2), plane(3)];
                    line(planes, std::slice::from_raw_parts_mut(y.cast(), s.w), q);
                }
            }
        }
    }
}

/// Pixels that are made at a time: a vector of each plane.
const BLOCK: usize = 16;

#[inline(always)]
fn line<const C: usize>(x: [&[f32]; C], y: &mut [[u8; C]], q: &Quantise) {
    match q.reciprocal {
        Some(r) => blocks(x, y, q.zero, |x| round_small(q.quotient(q.clamp(x), r))),
        None => blocks(x, y, 0, |x| super::quantize(x, q.scale, q.zero, 0, 255)),
    }
}

/// `f` of each element, plus `zero`, is a byte.
#[inline(always)]
fn blocks<const C: usize>(x: [&[f32]; C], y: &mut [[u8; C]], zero: i32, f: impl Fn(f32) -> i32 + Copy) {
    let (whole, rest) = y.as_chunks_mut::<BLOCK>();
    let x = x.map(|plane| plane.as_chunks::<BLOCK>());
    for (i, y) in whole.iter_mut().enumerate() {
        write(block(x.map(|(whole, _)| &whole[i]), zero, f), y);
    }
    if !rest.is_empty() {
        let last = x.map(|(_, rest)| {
            let mut padded = [0.0; BLOCK];
            padded[..rest.len()].copy_from_slice(rest);
            padded
        });
        write(block(last.each_ref(), zero, f), rest);
    }
}

/// Channels as the bytes of a word.
#[inline(always)]
fn block<const C: usize>(x: [&[f32; BLOCK]; C], zero: i32, f: impl Fn(f32) -> i32) -> [i32; BLOCK] {
    let mut pixels = [0i32; BLOCK];
    for c in 0..C {
        for i in 0..BLOCK {
            pixels[i] += (f(x[c][i]) + zero) << (8 * c);
        }
    }
    pixels
}

/// The first `C` bytes of each word.
#[inline(always)]
fn write<const C: usize>(words: [i32; BLOCK], y: &mut [[u8; C]]) {
    for (y, word) in y.iter_mut().zip(words) {
        y.copy_from_slice(&word.to_le_bytes()[..C]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values at and beside every tie and bound, and odd ones, on every row, against a true division.
    #[test]
    fn quotients_equal_divisions() {
        for scale in
            [0.036212794f32, 1.0, 0.1, 3.0e-3, 7.7e9, 1e-17, 1e-30, 1e30, 0.0, -0.5, f32::NAN, f32::INFINITY]
        {
            for zero in [0u8, 3, 124, 255] {
                let mut x = vec![
                    f32::NAN,
                    f32::INFINITY,
                    f32::NEG_INFINITY,
                    -0.0,
                    f32::MAX,
                    f32::MIN_POSITIVE,
                    1e-44,
                ];
                for i in -600..600 {
                    let at = i as f32 * 0.5 * scale;
                    x.extend([at, at.next_up(), at.next_down(), at * 1.0001, i as f32 * 0.371 * scale]);
                }
                x.resize(x.len().next_multiple_of(12), 0.5);
                for (channels, isa) in
                    [3, 4].into_iter().flat_map(|c| Isa::available().map(move |isa| (c, isa)))
                {
                    let w = x.len() / channels;
                    let (x_strides, y_strides) = ([0, w, 0], [0, 0]);
                    let s = PixelsStep { images: 1, h: 1, w, channels, x_strides, y_strides };
                    let mut y = vec![9u8; w * channels];
                    let (mut scale, mut zero) = (scale, zero);
                    let p = [y.as_mut_ptr(), x.as_mut_ptr().cast(), (&raw mut scale).cast(), &raw mut zero];
                    // SAFETY: one row of `w` pixels, as many planes of `w` elements as they have bytes.
                    unsafe { run_pixels(isa, &s, p, 0, 1) };
                    for (i, &x) in x.iter().enumerate() {
                        let want = lacuna_ir::reference::quant::quantize_value(x, scale, zero as i32, 0, 255);
                        let got = y[i % w * channels + i / w] as i32;
                        assert_eq!(got, want, "{x} / {scale} + {zero} on {isa}");
                    }
                }
            }
        }
    }
}
