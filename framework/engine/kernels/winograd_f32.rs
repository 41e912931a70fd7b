//! 3x3 f32 convolutions of stride 1 by Winograd's minimal filtering (Lavin & Gray 2016, "Fast Algorithms for Convolutional
//! Neural Networks"): F(2x2, 3x3) has 16 multiplications for a tile of 2x2 outputs instead of 36, F(4x4, 3x3) 36 for 4x4
//! instead of 144, and rounding errors that are some five times as large.
//!
//! A block of tiles is transformed onto the stack, each element of a transformed tile in a plane of its own; a plane times
//! the weights of that element, which are transformed when they are packed, is one matrix product a panel of channels; its
//! results are transformed back into pixels.
//!
//! ```text
//! format "W16f", "W64f" (2x2), "X16f" or "X64f" (4x4)
//! data: for each panel of 16 or 64 channels, for each element: [c][lanes] f32
//! ```

// Closures and iterators over registers are not compiled for the caller's instructions: loops are.
#![allow(clippy::needless_range_loop)]

use super::packed::{LANES, expect, read, write};
use super::{ConvGeom, ConvWeights, KernelType, Operands, Packed, QEpilogue, Tile};
use lacuna_kernels::gemm::tile::{First, Product, Row, run};
use lacuna_kernels::isa::Isa;
use lacuna_kernels::lanes::Lanes;
use lacuna_kernels::winograd::{Four, MOST_SIDE, Scheme, Two};
#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::float32x4_t;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512};
use std::mem::MaybeUninit;

/// The most tiles of a block: whole register tiles of 6 and 12 rows.
const TILES: usize = 48;
/// Floats of a block's transformed tiles: most of a second-level cache, so that many tiles share each reading of the weights.
const INPUT: usize = 100 << 10;
/// Floats of a block's products with one panel.
const OUTPUT: usize = 52 << 10;
/// Floats by which planes differ from whole sets of the cache.
const LINE: usize = 16;
/// The fewest and the most input channels: registers are full, and tiles enough fit a block.
const CHANNELS: std::ops::RangeInclusive<u32> = 16..=512;

struct Format {
    isa: Isa,
    name: &'static [u8; 4],
    panel: usize,
}

const TWO_AVX2: Format = Format { isa: Isa::Avx2, name: b"W16f", panel: 16 };
const TWO_AVX512: Format = Format { isa: Isa::Avx512, name: b"W64f", panel: 64 };
const FOUR_AVX2: Format = Format { isa: Isa::Avx2, name: b"X16f", panel: 16 };
const FOUR_AVX512: Format = Format { isa: Isa::Avx512, name: b"X64f", panel: 64 };
#[cfg(target_arch = "aarch64")]
const TWO_NEON: Format = Format { isa: Isa::Neon, name: b"W16f", panel: 16 };
#[cfg(target_arch = "aarch64")]
const FOUR_NEON: Format = Format { isa: Isa::Neon, name: b"X16f", panel: 16 };

pub(super) fn supports(g: &ConvGeom) -> bool {
    let window = [g.kh, g.kw, g.sh, g.sw, g.dh, g.dw];
    g.group == 1 && window == [3, 3, 1, 1, 1, 1] && CHANNELS.contains(&g.c) && g.oc >= *CHANNELS.start()
}

#[cfg(target_arch = "x86_64")]
pub(super) fn pack_two_avx2(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    pack::<Two>(&TWO_AVX2, weights, g)
}

#[cfg(target_arch = "x86_64")]
pub(super) fn pack_two_avx512(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    pack::<Two>(&TWO_AVX512, weights, g)
}

#[cfg(target_arch = "x86_64")]
pub(super) fn pack_four_avx2(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    pack::<Four>(&FOUR_AVX2, weights, g)
}

#[cfg(target_arch = "x86_64")]
pub(super) fn pack_four_avx512(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    pack::<Four>(&FOUR_AVX512, weights, g)
}

#[cfg(target_arch = "aarch64")]
pub(super) fn pack_two_neon(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    pack::<Two>(&TWO_NEON, weights, g)
}

#[cfg(target_arch = "aarch64")]
pub(super) fn pack_four_neon(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    pack::<Four>(&FOUR_NEON, weights, g)
}

/// Slots are those of a direct row, which others are compared with.
fn pack<S: Scheme>(format: &Format, weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::F32, weights);
    let elements = S::SIDE * S::SIDE;
    let (oc, c) = (g.oc as usize, g.c as usize);
    let padded = oc.next_multiple_of(LANES);
    let mut packed = write(format.name, weights, g, ([0; 4], &[]), elements * padded * c * 4, |data| {
        let ConvWeights::F32 { w, .. } = *weights else { return };
        let data: &mut [f32] = bytemuck::cast_slice_mut(data);
        for o in 0..oc {
            let first = o / format.panel * format.panel;
            let lanes = format.panel.min(padded - first);
            let panel = &mut data[first * elements * c..][..lanes * elements * c];
            for k in 0..c {
                let tap = |y: usize, x: usize| w[((o * 3 + y) * 3 + x) * c + k];
                let rows = [0, 1, 2].map(|y| weight::<S>([tap(y, 0), tap(y, 1), tap(y, 2)]));
                for x in 0..S::SIDE {
                    let column = weight::<S>([rows[0][x], rows[1][x], rows[2][x]]);
                    for y in 0..S::SIDE {
                        panel[((y * S::SIDE + x) * c + k) * lanes + o - first] = column[y];
                    }
                }
            }
        }
    });
    packed.steps = (elements * c * oc.div_ceil(format.panel)) as u64;
    packed.slots = (9 * c * padded) as u64;
    packed
}

fn weight<S: Scheme>(taps: [f32; 3]) -> [f32; MOST_SIDE] {
    let mut g = [[0.0]; MOST_SIDE];
    for i in 0..3 {
        g[i] = [taps[i]];
    }
    // SAFETY: one float is a register that every processor has.
    unsafe { S::weight::<[f32; 1]>(g) }.map(|[v]| v)
}

macro_rules! runs {
    ($name:ident, $scheme:ty, $lanes:ty, $format:ident, $features:literal) => {
        /// # Safety
        /// See [`super::RunFn`].
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(o: &Operands<'_>) {
            // SAFETY: as the caller promises.
            unsafe { run_tile::<$scheme, $lanes>(&$format, o) };
        }
    };
}

#[cfg(target_arch = "x86_64")]
runs!(run_two_avx2, Two, __m256, TWO_AVX2, "avx2,fma");
#[cfg(target_arch = "x86_64")]
runs!(run_four_avx2, Four, __m256, FOUR_AVX2, "avx2,fma");
#[cfg(target_arch = "x86_64")]
runs!(run_two_avx512, Two, __m512, TWO_AVX512, "avx2,fma,avx512f");
#[cfg(target_arch = "x86_64")]
runs!(run_four_avx512, Four, __m512, FOUR_AVX512, "avx2,fma,avx512f");
#[cfg(target_arch = "aarch64")]
runs!(run_two_neon, Two, float32x4_t, TWO_NEON, "neon");
#[cfg(target_arch = "aarch64")]
runs!(run_four_neon, Four, float32x4_t, FOUR_NEON, "neon");

/// A tile of outputs: elements of the first one's tap (0, 0), of its channel 0 in y and in the residual.
#[derive(Clone, Copy, Default)]
struct Spot {
    x: usize,
    y: usize,
    r: usize,
    /// Lines and columns of x that outputs of the image have taps on. Others count as zeros.
    read: [usize; 2],
    /// Lines and columns of outputs.
    write: [usize; 2],
}

struct Scratch {
    /// `[element][tile][c]`, planes some lines apart.
    input: [f32; INPUT],
    /// `[element][tile][lanes]` of one panel.
    output: [f32; OUTPUT],
}

/// # Safety
/// See [`super::RunFn`]; the processor has the instructions of `L`.
#[inline(always)]
unsafe fn run_tile<S: Scheme, L: Lanes>(format: &Format, o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, ref tile, .. } = o;
    let (x, r, y) = o.floats();
    tile.check(g, format.panel);
    let s = read(format.name, g, packed);
    let (data, bias): (&[f32], &[f32]) = (bytemuck::cast_slice(s.data), bytemuck::cast_slice(s.bias));
    let (c, elements) = (g.c as usize, S::SIDE * S::SIDE);
    let fit = |floats: usize, channels: usize| (floats / elements - 2 * LINE) / channels;
    let most = fit(INPUT, c).min(fit(OUTPUT, format.panel)).min(TILES);
    let most = if most >= 12 { most / 6 * 6 } else { most };
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let scratch = scratch.as_mut_ptr();
    // SAFETY: fields of the scratch, which are written before they are read.
    let (to, from) =
        unsafe { ((&raw mut (*scratch).input).cast::<f32>(), (&raw mut (*scratch).output).cast::<f32>()) };
    let mut spots = [Spot::default(); TILES];
    let mut rows = [Row { a: 0, c: 0 }; TILES];
    let mut walk = Walk { row: tile.rows.start, col: tile.cols.start };
    loop {
        let count =
            spots[..most].iter_mut().map_while(|spot| walk.next::<S>(g, tile, e).map(|s| *spot = s)).count();
        if count == 0 {
            return;
        }
        // An odd number of lines between planes keeps the elements of a tile in different sets of the cache.
        let plane_of = |channels: usize| ((count * channels).div_ceil(LINE) | 1) * LINE;
        let plane = plane_of(c);
        for (i, spot) in spots[..count].iter().enumerate() {
            // SAFETY: the spot's taps are readable; planes hold `count` rows of `c`, all of them `INPUT` at most.
            unsafe { input_tile::<S, L>(g, spot, x, plane, to.add(i * c)) };
        }
        for first in (tile.ocs.start as usize..tile.ocs.end as usize).step_by(format.panel) {
            let lanes = (g.oc as usize - first).next_multiple_of(LANES).min(format.panel);
            let columns = lanes.min(tile.ocs.end as usize - first);
            let out_plane = plane_of(lanes);
            for (i, row) in rows[..count].iter_mut().enumerate() {
                *row = Row { a: i * c, c: i * lanes };
            }
            let panel = &data[first * elements * c..][..lanes * elements * c];
            // Weights are read once a block, in order: the next element's are fetched during this one's product.
            let weights = |element: usize| &panel[element * c * lanes..][..c * lanes];
            let ahead =
                |element: usize| (element + 1 < elements).then(|| (weights(element + 1).as_ptr(), c * lanes));
            for element in 0..elements {
                let product = Product {
                    a: to.wrapping_add(element * plane),
                    runs: &[0],
                    run_len: c,
                    a_step: 1,
                    b: weights(element).as_ptr(),
                    b_step: lanes,
                    c: from.wrapping_add(element * out_plane),
                    columns: lanes,
                    first: First::Zero,
                    last: None,
                    ahead: ahead(element),
                };
                // SAFETY: planes hold `count` rows of `c` and of `lanes`, the panel `c` rows of `lanes` for each element.
                unsafe { run(format.isa, &product, &rows[..count]) };
            }
            let bias = &bias[first..first + lanes];
            for (i, spot) in spots[..count].iter().enumerate() {
                let residual = e.has_residual.then_some(r.wrapping_add(spot.r + first));
                // SAFETY: planes hold the tile's `lanes`, of which `columns` of the spot's pixels may be written.
                unsafe {
                    let from = from.add(i * lanes);
                    output_tile::<S, L>(
                        g,
                        e,
                        spot,
                        (from, out_plane),
                        bias,
                        columns,
                        residual,
                        y.add(spot.y + first),
                    );
                }
            }
        }
    }
}

/// Goes over the outputs of a part in tiles, which lie in one image each.
struct Walk {
    row: u32,
    col: u32,
}

impl Walk {
    fn next<S: Scheme>(&mut self, g: &ConvGeom, tile: &Tile, e: &QEpilogue) -> Option<Spot> {
        let (row, col) = (self.row, self.col);
        if row >= tile.rows.end || tile.cols.is_empty() {
            return None;
        }
        let to_end = [g.oh - row % g.oh, g.ow - col].map(|n| n as usize);
        let lines = to_end[0].min((tile.rows.end - row) as usize).min(S::OUT);
        let columns = S::OUT.min((tile.cols.end - col) as usize);
        self.col += columns as u32;
        if self.col >= tile.cols.end {
            (self.row, self.col) = (row + lines as u32, tile.cols.start);
        }
        Some(Spot {
            x: g.x_at(row, col),
            y: g.y_at(row, col),
            r: if e.has_residual { g.r_at(row, col) } else { 0 },
            read: to_end.map(|n| S::SIDE.min(n + 2)),
            write: [lines, columns],
        })
    }
}

/// What lies outside of an image and its border.
static ZEROS: [f32; 16] = [0.0; 16];

/// Transforms a tile of `x` into `to[element * plane + channel]`.
///
/// # Safety
/// The processor has the instructions of `L`, which `g.c` channels fill; the spot's taps are readable, and `g.c` elements of
/// each plane may be written.
#[inline(always)]
unsafe fn input_tile<S: Scheme, L: Lanes>(
    g: &ConvGeom,
    spot: &Spot,
    x: *const f32,
    plane: usize,
    to: *mut f32,
) {
    let (c, line, pixel) = (g.c as usize, g.x_row as usize, g.x_pixel as usize);
    let mut pixels = [[ZEROS.as_ptr(); MOST_SIDE]; MOST_SIDE];
    let mut steps = [[0; MOST_SIDE]; MOST_SIDE];
    for (i, (pixels, steps)) in pixels.iter_mut().zip(&mut steps).enumerate().take(spot.read[0]) {
        for (j, (at, step)) in pixels.iter_mut().zip(steps).enumerate().take(spot.read[1]) {
            (*at, *step) = (x.wrapping_add(spot.x + i * line + j * pixel), 1);
        }
    }
    for block in 0..c.div_ceil(L::COUNT) {
        let at = (block * L::COUNT).min(c - L::COUNT);
        // SAFETY: the caller's promise, for channels `at..at + COUNT`; what is outside reads `ZEROS`.
        unsafe {
            let mut half = [[L::zero(); MOST_SIDE]; MOST_SIDE];
            for j in 0..S::SIDE {
                let mut column = [L::zero(); MOST_SIDE];
                for i in 0..S::SIDE {
                    column[i] = L::load(pixels[i][j].wrapping_add(steps[i][j] * at));
                }
                let column = S::input(column);
                for i in 0..S::SIDE {
                    half[i][j] = column[i];
                }
            }
            for i in 0..S::SIDE {
                let row = S::input(half[i]);
                for j in 0..S::SIDE {
                    row[j].store(to.add((i * S::SIDE + j) * plane + at));
                }
            }
        }
    }
}

/// Transforms products back, adds bias and residual, clamps, and writes `columns` channels of the spot's pixels.
///
/// # Safety
/// The processor has the instructions of `L`; `bias.len()` elements of each plane of `from` may be read, a whole number of
/// registers, and as many of the residual; `y` holds the spot's outputs.
#[inline(always)]
unsafe fn output_tile<S: Scheme, L: Lanes>(
    g: &ConvGeom,
    e: &QEpilogue,
    spot: &Spot,
    (from, plane): (*const f32, usize),
    bias: &[f32],
    columns: usize,
    residual: Option<*const f32>,
    y: *mut f32,
) {
    for at in (0..columns).step_by(L::COUNT) {
        // SAFETY: the caller's promise, for channels `at..at + COUNT`; fewer are written where there are fewer.
        unsafe {
            let bias = L::load(bias.as_ptr().add(at));
            let mut half = [[L::zero(); MOST_SIDE]; MOST_SIDE];
            for j in 0..S::SIDE {
                let mut column = [L::zero(); MOST_SIDE];
                for i in 0..S::SIDE {
                    column[i] = L::load(from.add((i * S::SIDE + j) * plane + at));
                }
                let column = S::output(column);
                for i in 0..S::OUT {
                    half[i][j] = column[i];
                }
            }
            for i in 0..spot.write[0] {
                let row = S::output(half[i]);
                for j in 0..spot.write[1] {
                    let mut v = row[j].add(bias);
                    if let Some(residual) = residual {
                        v = v.add(L::load(residual.add(i * g.r_row as usize + j * g.r_pixel as usize + at)));
                    }
                    let v = v.clamp(e.min, e.max);
                    let y = y.add(i * g.y_row as usize + j * g.y_pixel as usize + at);
                    if columns - at >= L::COUNT {
                        v.store(y);
                    } else {
                        let mut floats = [0.0; LANES];
                        v.store(floats.as_mut_ptr());
                        y.copy_from_nonoverlapping(floats.as_ptr(), columns - at);
                    }
                }
            }
        }
    }
}
