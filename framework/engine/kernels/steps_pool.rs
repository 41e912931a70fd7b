//! Windows and whole planes, NHWC: channels are the inner loop.

use super::{by_isa, requantize, share};
use crate::target::Isa;
use lacuna_ir::op::{PoolAttr, Requant};
use std::ops::Range;

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
    /// The taps along axis `d` (0 height, 1 width) that lie in the data for output `out`, and the first one's position.
    fn taps(&self, d: usize, out: usize) -> (Range<usize>, usize) {
        let w = &self.attr.window;
        let (start, pad) = (out * w.stride[d] as usize, w.pads[d] as usize);
        let dilation = w.dilation[d] as usize;
        // Divisions would take longer than the taps of most windows.
        let taps_in = |positions: usize| if dilation == 1 { positions } else { positions.div_ceil(dilation) };
        let first = taps_in(pad.saturating_sub(start));
        let end = taps_in((self.x[d] + pad).saturating_sub(start)).min(w.kernel[d] as usize);
        (first..end.max(first), (start + first * dilation).saturating_sub(pad))
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

    /// Calls `f` for every output of part `part`.
    #[inline(always)]
    fn each(&self, part: usize, parts: usize, mut f: impl FnMut(&Output)) {
        let [n, oh, ow] = self.y;
        let dilation = self.attr.window.dilation.map(|d| d as usize);
        let steps = [0, 1].map(|d| dilation[d].wrapping_mul(self.x_strides[1 + d]));
        for row in share(n * oh, part, parts) {
            let (n, oy) = (row / oh, row % oh);
            let (kys, iy) = self.taps(0, oy);
            let x = n * self.x_strides[0] + iy * self.x_strides[1];
            let y = n * self.y_strides[0] + oy * self.y_strides[1];
            for ox in 0..ow {
                let (kxs, ix) = self.taps(1, ox);
                f(&Output {
                    at: [oy, ox],
                    x: x + ix * self.x_strides[2],
                    y: y + ox * self.y_strides[2],
                    taps: [kys.len(), kxs.len()],
                    steps,
                });
            }
        }
    }
}

/// One pixel of a result, and the taps that lie in the data.
struct Output {
    /// Row and column.
    at: [usize; 2],
    /// Elements to the first tap's pixel and to the result's.
    x: usize,
    y: usize,
    /// How many taps there are along height and width, and elements from one to the next.
    taps: [usize; 2],
    steps: [usize; 2],
}

/// Runs one part of a pooling.
///
/// # Safety
/// As `super::run_pool`.
pub unsafe fn run_pool(isa: Isa, s: &PoolStep, y: *mut u8, x: *const u8, part: usize, parts: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if s.kind == PoolKind::MaxF32 && isa >= Isa::Avx2 {
            return max_f32_avx2(s, y.cast(), x.cast(), part, parts);
        }
        #[cfg(target_arch = "x86_64")]
        if s.kind == PoolKind::MaxU8 && isa >= Isa::Avx512Vnni {
            return max_u8_avx512(s, y, x, part, parts);
        }
        run_any(isa, s, y, x, part, parts);
    }
}

/// As [`max_u8_avx512`], for floats: not a number wins.
///
/// # Safety
/// As [`run_pool`]; the processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn max_f32_avx2(s: &PoolStep, y: *mut f32, x: *const f32, part: usize, parts: usize) {
    use std::arch::x86_64::*;
    let c = s.x[2];
    s.each(part, parts, |out| {
        for from in (0..c).step_by(8) {
            let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((c - from).min(8) as i32), lanes);
            let mut most = _mm256_set1_ps(f32::NEG_INFINITY);
            // SAFETY: channels of pixels of x and y, of this part's outputs (`super::run_pool`).
            unsafe {
                let mut line = x.add(out.x + from);
                for _ in 0..out.taps[0] {
                    let mut tap = line;
                    for _ in 0..out.taps[1] {
                        let v =
                            if c - from >= 8 { _mm256_loadu_ps(tap) } else { _mm256_maskload_ps(tap, mask) };
                        let wins = _mm256_or_ps(
                            _mm256_cmp_ps::<_CMP_GT_OQ>(v, most),
                            _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v),
                        );
                        most = _mm256_blendv_ps(most, v, wins);
                        tap = tap.wrapping_add(out.steps[1]);
                    }
                    line = line.wrapping_add(out.steps[0]);
                }
                match c - from >= 8 {
                    true => _mm256_storeu_ps(y.add(out.y + from), most),
                    false => _mm256_maskstore_ps(y.add(out.y + from), mask, most),
                }
            }
        }
    });
}

/// The compiler keeps the results of a fold in memory; here they stay in a register.
///
/// # Safety
/// As [`run_pool`]; the processor has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn max_u8_avx512(s: &PoolStep, y: *mut u8, x: *const u8, part: usize, parts: usize) {
    use std::arch::x86_64::*;
    let c = s.x[2];
    s.each(part, parts, |out| {
        for from in (0..c).step_by(64) {
            let lanes = u64::MAX >> (64 - (c - from).min(64));
            let mut most = _mm512_setzero_si512();
            // SAFETY: channels of pixels of x and y, of this part's outputs (`super::run_pool`).
            unsafe {
                let mut line = x.add(out.x + from);
                for _ in 0..out.taps[0] {
                    let mut tap = line;
                    for _ in 0..out.taps[1] {
                        most = _mm512_max_epu8(most, _mm512_maskz_loadu_epi8(lanes, tap.cast()));
                        tap = tap.wrapping_add(out.steps[1]);
                    }
                    line = line.wrapping_add(out.steps[0]);
                }
                _mm512_mask_storeu_epi8(y.add(out.y + from).cast(), lanes, most);
            }
        }
    });
}

by_isa! {
    /// # Safety
    /// As [`run_pool`].
    run_any, pool, (s: &PoolStep, y: *mut u8, x: *const u8, part: usize, parts: usize)
}

#[inline(always)]
unsafe fn pool(s: &PoolStep, y: *mut u8, x: *const u8, part: usize, parts: usize) {
    let greater = |m: f32, x: f32| if x > m || x.is_nan() { x } else { m };
    // SAFETY: the caller's promise.
    unsafe {
        match s.kind {
            PoolKind::MaxU8 => fold(s, y, x, part, parts, 0u8, |m, x| m.max(x), |_, _| {}),
            PoolKind::MaxF32 => {
                fold(s, y.cast(), x.cast(), part, parts, f32::NEG_INFINITY, greater, |_, _| {})
            }
            PoolKind::AverageF32 => {
                let divide = |y: &mut [f32], out: &Output| {
                    let count = match s.attr.count_include_pad {
                        true => s.positions(out.at[0], out.at[1]),
                        false => out.taps[0] * out.taps[1],
                    };
                    let n = count.max(1) as f32;
                    y.iter_mut().for_each(|y| *y /= n);
                };
                fold(s, y.cast(), x.cast(), part, parts, 0.0f32, |m, x| m + x, divide)
            }
        }
    }
}

/// Folds the taps of every output into it, then calls `finish(channels, output)`.
#[inline(always)]
unsafe fn fold<T: Copy>(
    s: &PoolStep,
    y: *mut T,
    x: *const T,
    part: usize,
    parts: usize,
    start: T,
    f: impl Fn(T, T) -> T,
    finish: impl Fn(&mut [T], &Output),
) {
    let c = s.x[2];
    s.each(part, parts, |out| {
        // SAFETY: an output pixel of this part, parts are disjoint; taps lie in the data (`super::run_pool`).
        unsafe {
            let y = std::slice::from_raw_parts_mut(y.add(out.y), c);
            y.fill(start);
            for ky in 0..out.taps[0] {
                for kx in 0..out.taps[1] {
                    let tap = x.add(out.x + ky * out.steps[0] + kx * out.steps[1]);
                    let tap = std::slice::from_raw_parts(tap, c);
                    y.iter_mut().zip(tap).for_each(|(y, &x)| *y = f(*y, x));
                }
            }
            finish(y, out);
        }
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

/// Channels whose sums are kept at a time.
const BLOCK: usize = 64;
/// Threads divide channels in such pieces.
const PIECE: usize = 16;

impl MeanStep {
    pub fn units(&self) -> usize {
        self.x[0] * self.x[3].div_ceil(PIECE)
    }

    /// Calls `f(image, first channel, channels)` for blocks of part `part`'s channels.
    #[inline(always)]
    fn each(&self, part: usize, parts: usize, mut f: impl FnMut(usize, usize, usize)) {
        let c = self.x[3];
        let pieces = c.div_ceil(PIECE);
        let own = share(self.units(), part, parts);
        let mut unit = own.start;
        while unit < own.end {
            let (n, piece) = (unit / pieces, unit % pieces);
            let end = (piece + BLOCK / PIECE).min(pieces).min(piece + own.end - unit);
            f(n, piece * PIECE, (end * PIECE).min(c) - piece * PIECE);
            unit += end - piece;
        }
    }
}

/// Runs one part of a global mean.
///
/// # Safety
/// As `super::run_mean`.
pub unsafe fn run_mean(isa: Isa, s: &MeanStep, y: *mut u8, x: *const u8, part: usize, parts: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if let (Some(int), true) = (s.int, isa >= Isa::Avx512Vnni) {
            return mean_u8_avx512(s, int, y, x, part, parts);
        }
        mean_any(isa, s, y, x, part, parts);
    }
}

/// Sums of bytes in 16 bits, which are moved to 32 bits before they can overflow.
///
/// # Safety
/// As [`run_mean`]; the processor has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn mean_u8_avx512(
    s: &MeanStep,
    (zero, mult, out): (i32, f32, Requant),
    y: *mut u8,
    x: *const u8,
    part: usize,
    parts: usize,
) {
    use std::arch::x86_64::*;
    /// 255 times as many fit into 16 bits.
    const ADDED_MAX: usize = 257;
    let none = _mm512_setzero_si512();
    let [_, h, w, _] = s.x;
    s.each(part, parts, |n, from, len| {
        let lanes = u64::MAX >> (64 - len);
        let mut sums = [none; 4];
        for iy in 0..h {
            for first in (0..w).step_by(ADDED_MAX) {
                let (mut low, mut high) = (none, none);
                for ix in first..w.min(first + ADDED_MAX) {
                    // SAFETY: `len` channels of a pixel of image n.
                    let pixel = unsafe {
                        let at = n * s.x_strides[0] + iy * s.x_strides[1] + ix * s.x_strides[2] + from;
                        _mm512_maskz_loadu_epi8(lanes, x.add(at).cast())
                    };
                    low = _mm512_add_epi16(low, _mm512_unpacklo_epi8(pixel, none));
                    high = _mm512_add_epi16(high, _mm512_unpackhi_epi8(pixel, none));
                }
                sums[0] = _mm512_add_epi32(sums[0], _mm512_unpacklo_epi16(low, none));
                sums[1] = _mm512_add_epi32(sums[1], _mm512_unpackhi_epi16(low, none));
                sums[2] = _mm512_add_epi32(sums[2], _mm512_unpacklo_epi16(high, none));
                sums[3] = _mm512_add_epi32(sums[3], _mm512_unpackhi_epi16(high, none));
            }
        }
        let zeros = ((h * w) as i32).wrapping_mul(zero);
        // SAFETY: four registers of 16 sums.
        let sums: [[i32; 16]; 4] = unsafe { std::mem::transmute(sums) };
        // SAFETY: `len` channels of image n's result; parts write disjoint channels.
        let y = unsafe { std::slice::from_raw_parts_mut(y.add(n * s.y_image + from), len) };
        for (i, y) in y.iter_mut().enumerate() {
            // Unpacking works within 128 bits: register v holds channels 4 * v.. of each 16.
            let sum = sums[i / 4 % 4][i / 16 * 4 + i % 4].wrapping_sub(zeros);
            *y = requantize(sum as f32 * mult, out);
        }
    });
}

by_isa! {
    /// # Safety
    /// As [`run_mean`].
    mean_any, mean, (s: &MeanStep, y: *mut u8, x: *const u8, part: usize, parts: usize)
}

#[inline(always)]
unsafe fn mean(s: &MeanStep, y: *mut u8, x: *const u8, part: usize, parts: usize) {
    let pixels = s.x[1] * s.x[2];
    s.each(part, parts, |n, from, len| {
        let (x_at, y_at) = (n * s.x_strides[0] + from, n * s.y_image + from);
        // SAFETY: channels `from..from + len` of image `n`'s pixels; parts write disjoint channels.
        unsafe {
            match s.int {
                Some((zero, mult, out)) => {
                    let add = |a: i32, x: u8| a.wrapping_add(x as i32 - zero);
                    let sums = sum_pixels(s, x.add(x_at), len, 0i32, add, i32::wrapping_add);
                    let y = std::slice::from_raw_parts_mut(y.add(y_at), len);
                    y.iter_mut().zip(&sums).for_each(|(y, &a)| *y = requantize(a as f32 * mult, out));
                }
                None => {
                    let sums = sum_pixels(
                        s,
                        x.cast::<f32>().add(x_at),
                        len,
                        0.0f32,
                        |a, x: f32| a + x,
                        |a, b| a + b,
                    );
                    let y = std::slice::from_raw_parts_mut(y.cast::<f32>().add(y_at), len);
                    y.iter_mut().zip(&sums).for_each(|(y, &a)| *y = a / pixels as f32);
                }
            }
        }
    });
}

/// Sums of lines are summed: errors of thousands of roundings in a row would show in the results of networks.
#[inline(always)]
unsafe fn sum_pixels<A: Copy, T: Copy>(
    s: &MeanStep,
    x: *const T,
    len: usize,
    start: A,
    add: impl Fn(A, T) -> A,
    join: impl Fn(A, A) -> A,
) -> [A; BLOCK] {
    let mut sums = [start; BLOCK];
    for iy in 0..s.x[1] {
        let mut line = [start; BLOCK];
        for ix in 0..s.x[2] {
            // SAFETY: a pixel of the image at `x`, `len` channels of it.
            let x =
                unsafe { std::slice::from_raw_parts(x.add(iy * s.x_strides[1] + ix * s.x_strides[2]), len) };
            line.iter_mut().zip(x).for_each(|(a, &x)| *a = add(*a, x));
        }
        sums.iter_mut().zip(&line).for_each(|(a, &line)| *a = join(*a, line));
    }
    sums
}
