//! The transforms of F(2x2, 3x3) and F(4x4, 3x3), with registers along channels.

use crate::isa::Isa;
use crate::lanes::Lanes;
use crate::shared::Shared;

/// The sides of the largest transformed tile.
pub const MOST_SIDE: usize = 6;

/// The transforms along one axis, of columns first and then of rows. Elements beyond a vector's length are unused.
pub trait Scheme {
    /// Outputs of a tile along an axis.
    const OUT: usize;
    /// Inputs of a tile along an axis, and the side of a transformed tile.
    const SIDE: usize = Self::OUT + 2;

    /// `SIDE` transformed elements of `SIDE` inputs.
    ///
    /// # Safety
    /// As [`Lanes::zero`].
    unsafe fn input<L: Lanes>(d: [L; MOST_SIDE]) -> [L; MOST_SIDE];

    /// `SIDE` transformed elements of 3 weights.
    ///
    /// # Safety
    /// As [`Lanes::zero`].
    unsafe fn weight<L: Lanes>(g: [L; MOST_SIDE]) -> [L; MOST_SIDE];

    /// `OUT` outputs of `SIDE` transformed elements.
    ///
    /// # Safety
    /// As [`Lanes::zero`].
    unsafe fn output<L: Lanes>(m: [L; MOST_SIDE]) -> [L; MOST_SIDE];
}

/// F(2x2, 3x3): 16 multiplications for 4 outputs instead of 36.
pub struct Two;

impl Scheme for Two {
    const OUT: usize = 2;

    #[inline(always)]
    unsafe fn input<L: Lanes>(d: [L; MOST_SIDE]) -> [L; MOST_SIDE] {
        // SAFETY: the caller's promise.
        unsafe { [d[0].sub(d[2]), d[1].add(d[2]), d[2].sub(d[1]), d[1].sub(d[3]), d[4], d[5]] }
    }

    #[inline(always)]
    unsafe fn weight<L: Lanes>(g: [L; MOST_SIDE]) -> [L; MOST_SIDE] {
        // SAFETY: the caller's promise.
        unsafe {
            let (ends, middle) = (g[0].add(g[2]).scale(0.5), g[1].scale(0.5));
            [g[0], ends.add(middle), ends.sub(middle), g[2], g[4], g[5]]
        }
    }

    #[inline(always)]
    unsafe fn output<L: Lanes>(m: [L; MOST_SIDE]) -> [L; MOST_SIDE] {
        // SAFETY: the caller's promise.
        unsafe { [m[0].add(m[1]).add(m[2]), m[1].sub(m[2]).sub(m[3]), m[2], m[3], m[4], m[5]] }
    }
}

/// F(4x4, 3x3): 36 multiplications for 16 outputs instead of 144.
pub struct Four;

impl Scheme for Four {
    const OUT: usize = 4;

    #[inline(always)]
    unsafe fn input<L: Lanes>(d: [L; MOST_SIDE]) -> [L; MOST_SIDE] {
        // SAFETY: the caller's promise.
        unsafe {
            let (even, odd) = (d[4].sub(d[2].scale(4.0)), d[3].sub(d[1].scale(4.0)));
            let (far_even, far_odd) = (d[4].sub(d[2]), d[3].sub(d[1]).scale(2.0));
            [
                d[0].scale(4.0).add(d[4]).sub(d[2].scale(5.0)),
                even.add(odd),
                even.sub(odd),
                far_even.add(far_odd),
                far_even.sub(far_odd),
                d[1].scale(4.0).add(d[5]).sub(d[3].scale(5.0)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn weight<L: Lanes>(g: [L; MOST_SIDE]) -> [L; MOST_SIDE] {
        // SAFETY: the caller's promise.
        unsafe {
            let (ends, middle) = (g[0].add(g[2]).scale(-1.0 / 6.0), g[1].scale(-1.0 / 6.0));
            let (far_ends, far_middle) =
                (g[0].scale(1.0 / 24.0).add(g[2].scale(1.0 / 6.0)), g[1].scale(1.0 / 12.0));
            [
                g[0].scale(0.25),
                ends.add(middle),
                ends.sub(middle),
                far_ends.add(far_middle),
                far_ends.sub(far_middle),
                g[2],
            ]
        }
    }

    #[inline(always)]
    unsafe fn output<L: Lanes>(m: [L; MOST_SIDE]) -> [L; MOST_SIDE] {
        // SAFETY: the caller's promise.
        unsafe {
            let (even, odd) = (m[1].add(m[2]), m[1].sub(m[2]));
            let (far_even, far_odd) = (m[3].add(m[4]), m[3].sub(m[4]));
            [
                m[0].add(even).add(far_even),
                odd.add(far_odd.scale(2.0)),
                even.add(far_even.scale(4.0)),
                odd.add(far_odd.scale(8.0)).add(m[5]),
                m[4],
                m[5],
            ]
        }
    }
}

/// A window of pixels of an image: where a tile reads or writes.
pub struct Window<'a> {
    /// Where the image begins, in elements.
    pub image: usize,
    pub h: usize,
    pub w: usize,
    /// From a pixel to the next.
    pub channels: usize,
    /// The channels in question.
    pub range: std::ops::Range<usize>,
    pub top: isize,
    pub left: isize,
    /// From one plane of transformed elements to the next.
    pub plane: usize,
    /// Of the output channels in question.
    pub bias: Option<&'a [f32]>,
}

impl Window<'_> {
    fn pixel(&self, y: usize, x: usize) -> Option<usize> {
        let (y, x) = (self.top + y as isize, self.left + x as isize);
        let inside = (0..self.h as isize).contains(&y) && (0..self.w as isize).contains(&x);
        inside.then(|| self.image + (y as usize * self.w + x as usize) * self.channels + self.range.start)
    }
}

/// What pixels outside an image hold.
static ZEROS: [f32; 16] = [0.0; 16];

/// Transforms a tile of `images` into `to[element][channel of the range]`.
///
/// # Safety
/// As [`Lanes::zero`]; the range holds `L::COUNT` channels or more.
#[inline(always)]
unsafe fn input_tile<S: Scheme, L: Lanes>(images: &[f32], window: &Window, to: &mut [f32]) {
    let channels = window.range.len();
    assert!(images.len() >= window.image + window.h * window.w * window.channels);
    assert!(window.range.end <= window.channels);
    assert!(to.len() >= (S::SIDE * S::SIDE - 1) * window.plane + channels && channels >= L::COUNT);
    let mut pixels = [[ZEROS.as_ptr(); MOST_SIDE]; MOST_SIDE];
    let mut steps = [[0; MOST_SIDE]; MOST_SIDE];
    for y in 0..S::SIDE {
        for x in 0..S::SIDE {
            if let Some(at) = window.pixel(y, x) {
                (pixels[y][x], steps[y][x]) = (images[at..].as_ptr(), 1);
            }
        }
    }
    for block in 0..channels.div_ceil(L::COUNT) {
        let at = (block * L::COUNT).min(channels - L::COUNT);
        // SAFETY: pixels inside the image hold the range (checked), others read `ZEROS`; `to` holds every element.
        unsafe {
            let mut half = [[L::zero(); MOST_SIDE]; MOST_SIDE];
            for x in 0..S::SIDE {
                let mut column = [L::zero(); MOST_SIDE];
                for y in 0..S::SIDE {
                    column[y] = L::load(pixels[y][x].add(steps[y][x] * at));
                }
                let column = S::input(column);
                for y in 0..S::SIDE {
                    half[y][x] = column[y];
                }
            }
            for y in 0..S::SIDE {
                let row = S::input(half[y]);
                for x in 0..S::SIDE {
                    row[x].store(to.as_mut_ptr().add((y * S::SIDE + x) * window.plane + at));
                }
            }
        }
    }
}

/// Transforms `from[element][channel of the range]` back into the outputs that are inside an image.
///
/// # Safety
/// As [`input_tile`], and no other task writes these outputs.
#[inline(always)]
unsafe fn output_tile<S: Scheme, L: Lanes>(from: &[f32], window: &Window, images: Shared<f32>) {
    let channels = window.range.len();
    assert!(from.len() >= (S::SIDE * S::SIDE - 1) * window.plane + channels && channels >= L::COUNT);
    assert!(window.bias.is_none_or(|bias| bias.len() == channels));
    for block in 0..channels.div_ceil(L::COUNT) {
        let at = (block * L::COUNT).min(channels - L::COUNT);
        // SAFETY: `from` holds every element (checked), and so does the part.
        unsafe {
            let bias = window.bias.map_or(L::zero(), |bias| L::load(bias.as_ptr().add(at)));
            let mut half = [[L::zero(); MOST_SIDE]; MOST_SIDE];
            for x in 0..S::SIDE {
                let mut column = [L::zero(); MOST_SIDE];
                for y in 0..S::SIDE {
                    column[y] = L::load(from.as_ptr().add((y * S::SIDE + x) * window.plane + at));
                }
                let column = S::output(column);
                for y in 0..S::OUT {
                    half[y][x] = column[y];
                }
            }
            for y in 0..S::OUT {
                let row = S::output(half[y]);
                for x in 0..S::OUT {
                    if let Some(pixel) = window.pixel(y, x) {
                        row[x].add(bias).store(images.part(pixel + at, L::COUNT).as_mut_ptr());
                    }
                }
            }
        }
    }
}

/// Transforms filters `[tap][lane]`, 16 at a time, into elements that lie `plane` apart.
///
/// # Safety
/// As [`Lanes::zero`], and 16 floats may be written at each element of `to`.
#[inline(always)]
unsafe fn weight_filters<S: Scheme, L: Lanes>(from: &[[f32; 16]; 9], plane: usize, to: *mut f32) {
    for at in (0..16).step_by(L::COUNT) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut half = [[L::zero(); MOST_SIDE]; MOST_SIDE];
            for x in 0..3 {
                let mut column = [L::zero(); MOST_SIDE];
                for y in 0..3 {
                    column[y] = L::load(from[y * 3 + x].as_ptr().add(at));
                }
                let column = S::weight(column);
                for y in 0..S::SIDE {
                    half[y][x] = column[y];
                }
            }
            for y in 0..S::SIDE {
                let row = S::weight(half[y]);
                for x in 0..S::SIDE {
                    row[x].store(to.add((y * S::SIDE + x) * plane + at));
                }
            }
        }
    }
}

/// The transforms of one kind of register.
///
/// # Safety (of all)
/// The processor has the instructions, and as the function compiled says.
pub struct Transforms {
    pub input: unsafe fn(&[f32], &Window, &mut [f32]),
    pub output: unsafe fn(&[f32], &Window, Shared<f32>),
    pub weight: unsafe fn(&[[f32; 16]; 9], usize, *mut f32),
}

macro_rules! transforms {
    ($name:ident, $lanes:ty, $(#[$features:meta])?) => {
        fn $name<S: Scheme>() -> Transforms {
            $(#[$features])?
            unsafe fn input<S: Scheme>(images: &[f32], window: &Window, to: &mut [f32]) {
                // SAFETY: the caller's promise.
                unsafe { input_tile::<S, $lanes>(images, window, to) }
            }
            $(#[$features])?
            unsafe fn output<S: Scheme>(from: &[f32], window: &Window, images: Shared<f32>) {
                // SAFETY: the caller's promise.
                unsafe { output_tile::<S, $lanes>(from, window, images) }
            }
            $(#[$features])?
            unsafe fn weight<S: Scheme>(from: &[[f32; 16]; 9], plane: usize, to: *mut f32) {
                // SAFETY: the caller's promise.
                unsafe { weight_filters::<S, $lanes>(from, plane, to) }
            }
            Transforms { input: input::<S>, output: output::<S>, weight: weight::<S> }
        }
    };
}
#[cfg(target_arch = "x86_64")]
transforms!(avx512, std::arch::x86_64::__m512, #[target_feature(enable = "avx512f")]);
#[cfg(target_arch = "x86_64")]
transforms!(avx2, std::arch::x86_64::__m256, #[target_feature(enable = "avx2,fma")]);
transforms!(portable, [f32; 4],);
transforms!(single, [f32; 1],);

impl Transforms {
    /// The widest registers that `channels`, the fewer of both sides, fill.
    pub fn new<S: Scheme>(isa: Isa, channels: usize) -> Transforms {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if channels >= 16 => avx512::<S>(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 if channels >= 8 => avx2::<S>(),
            _ if channels >= 4 => portable::<S>(),
            _ => single::<S>(),
        }
    }
}
