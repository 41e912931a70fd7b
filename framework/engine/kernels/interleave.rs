//! Sparse int8 convolutions of any pattern of zeros where there is no `vpermb`: on AVX2, with 256-bit and 512-bit VNNI, and with
//! NEON's dot products.
//!
//! A register holds pixels. A block of 32 (or 64) pixels is turned into a tile `[element of the window][pixel]`, a part
//! of the window at a time, so that the tile stays in the first-level cache while every output channel adds its weights
//! of that part to its sums. A step takes the rows of a channel's next 4 nonzero weights (2 without VNNI), whichever
//! they are, interleaves them by unpacking, and multiplies with the weights, which are broadcast: no slot is wasted but in a
//! channel's last step. At last the results are turned back into NHWC. Tile and sums lie on the stack.
//!
//! Without VNNI, `vpmaddubsw` would saturate: magnitude pruning leaves large weights, of which hardly any two are small
//! enough together. So the tile holds 16-bit elements and a step is two `vpmaddwd`. NEON's `sdot` multiplies signed bytes: its
//! tile holds `x - 128`, and the bias makes up for it.
//!
//! ```text
//! format "IL" and the form's letters, args: parts of the window, strips of the window
//! table: u32 strip[strips]                     byte offset in x of every 16 elements of the window, within one tap
//!        u32 first[groups * parts + 1]         first step of every block of weights; blocks of a group are neighbours
//!        u32 order[groups * parts][64]         channel of the group | steps << 8, most steps first
//! data:  steps of { u16 byte offset in the tile; WEIGHTS }, { i16 or i8 weight; WEIGHTS }
//! ```
//! Groups are 64 channels. Channels are taken by their number of steps, so that a branch predictor sees loops of the same
//! length many times.

#[cfg(target_arch = "aarch64")]
use super::neon::for_signed_x;
use super::packed::{expect, read, write};
use super::{ConvGeom, ConvWeights, KernelType, Operands, Packed, QEpilogue, Tile};
use std::mem::MaybeUninit;

/// Defines `turn` (and `interleave` and `both`, which it is made of) for registers whose lanes are 16 bytes each: `$low` and
/// `$high` interleave the lower and the upper halves of the lanes of two registers.
macro_rules! turning {
    ($register:ty, $features:literal, $low:ident, $high:ident) => {
        /// Interleaves register `i` with register `i + 8`. Named one by one: the compiler keeps an indexed array in memory.
        #[inline]
        #[target_feature(enable = $features)]
        fn interleave(v: [$register; 16]) -> [$register; 16] {
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = v;
            let ([q, r], [s, t]) = (both(a, i), both(b, j));
            let ([u, w], [x, y]) = (both(c, k), both(d, l));
            let ([a, b], [c, d]) = (both(e, m), both(f, n));
            let ([e, f], [g, h]) = (both(g, o), both(h, p));
            [q, r, s, t, u, w, x, y, a, b, c, d, e, f, g, h]
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn both(a: $register, b: $register) -> [$register; 2] {
            [$low(a, b), $high(a, b)]
        }

        /// Turns every lane: byte `j` of register `i` becomes byte `i` of register `j`, because each interleaving rotates the
        /// bits of a byte's address by one.
        #[inline]
        #[target_feature(enable = $features)]
        fn turn(v: [$register; 16]) -> [$register; 16] {
            interleave(interleave(interleave(interleave(v))))
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod block;
#[cfg(target_arch = "aarch64")]
mod block_neon;

/// Channels of a group.
const GROUP: usize = 64;
/// Elements of a strip: a byte of each makes up a 128-bit lane, which is what is turned.
const STRIP: usize = 16;
/// Bytes of a tile.
const TILE: usize = 16 << 10;
/// Bytes of the sums that are kept at a time.
const SUMS: usize = 32 << 10;
/// The most pixels of a block.
const PIXELS_MAX: usize = 64;

/// What a step looks like.
#[derive(Clone, Copy)]
struct Form {
    format: &'static [u8; 4],
    /// Weights of a step.
    weights: usize,
    /// Bytes of an element in the tile.
    element: usize,
    pixels: usize,
}

#[cfg(target_arch = "x86_64")]
const PAIRS: Form = Form { format: b"ILp4", weights: 2, element: 2, pixels: 32 };
#[cfg(target_arch = "x86_64")]
const QUADS: Form = Form { format: b"ILq4", weights: 4, element: 1, pixels: 32 };
const WIDE_QUADS: Form = Form { format: b"ILq8", weights: 4, element: 1, pixels: 64 };
/// For `x - 128`.
#[cfg(target_arch = "aarch64")]
const SIGNED_QUADS: Form = Form { format: b"ILs8", ..WIDE_QUADS };

impl Form {
    /// Bytes of a row of the tile: one element of all pixels.
    const fn row(&self) -> usize {
        self.pixels * self.element
    }

    /// Strips of the window in one tile.
    const fn strips(&self) -> usize {
        TILE / self.row() / STRIP
    }

    /// Bytes of a step: offsets, then weights of 4 bytes in all.
    const fn step(&self) -> usize {
        self.weights * 2 + 4
    }

    /// Channels whose sums are kept at a time: whole groups.
    const fn channels(&self) -> usize {
        SUMS / 4 / self.pixels
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) fn pack_avx2(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    pack(&PAIRS, weights, g)
}

#[cfg(target_arch = "x86_64")]
pub(super) fn pack_avxvnni(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    pack(&QUADS, weights, g)
}

#[cfg(target_arch = "x86_64")]
pub(super) fn pack_avx512(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    pack(&WIDE_QUADS, weights, g)
}

#[cfg(target_arch = "aarch64")]
pub(super) fn pack_neondot(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    pack(&SIGNED_QUADS, &for_signed_x(weights), g)
}

#[cfg(target_arch = "aarch64")]
pub(super) fn pack_neoni8mm(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    pack(&WIDE_QUADS, weights, g)
}

fn pack(form: &Form, weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::Int8, weights);
    let ConvWeights::Int8 { w, .. } = *weights else { unreachable!("checked") };
    let (oc, c) = (g.oc as usize, g.c as usize);
    let strips_of_tap = c.div_ceil(STRIP);
    let strips: Vec<u32> = (0..g.kh * g.kw)
        .flat_map(|tap| {
            (0..strips_of_tap).map(move |s| (g.tap_at(tap / g.kw, tap % g.kw) + s * STRIP) as u32)
        })
        .collect();
    let (groups, parts) = (oc.div_ceil(GROUP), strips.len().div_ceil(form.strips()));
    let (mut first, mut order, mut data) = (vec![0u32], Vec::new(), Vec::new());
    for (group, part) in (0..groups).flat_map(|group| (0..parts).map(move |part| (group, part))) {
        let channels: Vec<Vec<(u16, i8)>> = (group * GROUP..(group + 1) * GROUP)
            .map(|o| if o < oc { nonzeros(form, w, g, o, part) } else { Vec::new() })
            .collect();
        let mut lanes: Vec<usize> = (0..GROUP).collect();
        let steps = |lane: usize| channels[lane].len().div_ceil(form.weights);
        lanes.sort_by_key(|&lane| std::cmp::Reverse(steps(lane)));
        for lane in lanes {
            order.push((lane | steps(lane) << 8) as u32);
            channels[lane].chunks(form.weights).for_each(|step| push_step(form, step, &mut data));
        }
        first.push((data.len() / form.step()) as u32);
    }
    let steps = data.len() / form.step();
    let args = [parts as u32, strips.len() as u32, 0, 0];
    let table = [strips, first, order].concat();
    let mut packed = write(form.format, weights, g, (args, &table), data.len(), |out| {
        out[..data.len()].copy_from_slice(&data)
    });
    packed.steps = steps as u64;
    packed.slots = (steps * form.weights) as u64;
    packed
}

/// The nonzero weights of a channel in one part of the window: bytes from the tile's beginning, and value.
fn nonzeros(form: &Form, w: &[i8], g: &ConvGeom, o: usize, part: usize) -> Vec<(u16, i8)> {
    let c = g.c as usize;
    let strips_of_tap = c.div_ceil(STRIP);
    let strips = g.depth() / c * strips_of_tap;
    let own = part * form.strips()..((part + 1) * form.strips()).min(strips);
    own.clone()
        .flat_map(|strip| {
            let (tap, at) = (strip / strips_of_tap, strip % strips_of_tap * STRIP);
            let row = (strip - own.start) * STRIP;
            let elements = &w[o * g.depth() + tap * c..][at..c.min(at + STRIP)];
            elements.iter().enumerate().map(move |(i, &v)| (((row + i) * form.row()) as u16, v))
        })
        .filter(|&(_, v)| v != 0)
        .collect()
}

/// A step that lacks weights reads the tile's first row and multiplies it by zero.
fn push_step(form: &Form, step: &[(u16, i8)], data: &mut Vec<u8>) {
    let slot = |i: usize| step.get(i).copied().unwrap_or((0, 0));
    for i in 0..form.weights {
        data.extend_from_slice(&slot(i).0.to_le_bytes());
    }
    for i in 0..form.weights {
        let bytes = (slot(i).1 as i16).to_le_bytes();
        data.extend_from_slice(&bytes[..4 / form.weights]);
    }
}

/// Scratch of a block of pixels.
#[repr(C, align(64))]
struct Scratch {
    tile: [u8; TILE],
    sums: [i32; SUMS / 4],
}

/// Where the pixels of a block lie: elements from the start of x, y and the residual. Those beyond the tile repeat the
/// last one, to be read but not written.
struct Pixels {
    count: usize,
    x: [usize; PIXELS_MAX],
    y: [usize; PIXELS_MAX],
    r: [usize; PIXELS_MAX],
}

impl Pixels {
    /// The `count` pixels of a tile from `at` on, counted row by row, and repeats up to `size`.
    fn new(g: &ConvGeom, tile: &Tile, residual: bool, at: u32, count: usize, size: usize) -> Pixels {
        let mut pixels = Pixels { count, x: [0; PIXELS_MAX], y: [0; PIXELS_MAX], r: [0; PIXELS_MAX] };
        let cols = tile.cols.len() as u32;
        let (mut row, mut col) = (tile.rows.start + at / cols, tile.cols.start + at % cols);
        let (x_step, y_step, r_step) = (g.x_step(), g.y_pixel as usize, g.r_pixel as usize);
        let mut i = 0;
        while i < count {
            let (x, y) = (g.x_at(row, col), g.y_at(row, col));
            let r = if residual { g.r_at(row, col) } else { 0 };
            let of_row = (count - i).min((tile.cols.end - col) as usize);
            for nth in 0..of_row {
                pixels.x[i + nth] = x + nth * x_step;
                pixels.y[i + nth] = y + nth * y_step;
                pixels.r[i + nth] = r + nth * r_step;
            }
            i += of_row;
            (row, col) = (row + 1, tile.cols.start);
        }
        for places in [&mut pixels.x, &mut pixels.y, &mut pixels.r] {
            let last = places[count - 1];
            places[count..size].fill(last);
        }
        pixels
    }
}

/// What the vector code of a block is given beside its pixels.
struct Layer<'a> {
    epilogue: &'a QEpilogue,
    bias: &'a [i32],
    mult: &'a [f32],
    strips: &'a [u32],
    first: &'a [u32],
    order: &'a [u32],
    data: &'a [u8],
    parts: usize,
    x: *const u8,
    r: *const u8,
    y: *mut u8,
    /// First channel that is not the tile's.
    end: usize,
}

/// The vector code of one width and one kind of step.
struct Blocks {
    /// Turns one part of the window of a block of pixels into a tile.
    fill: unsafe fn(&Layer<'_>, &Pixels, usize, &mut MaybeUninit<Scratch>),
    /// Adds the products of one block of weights, whose channels' sums start at that many channels of the scratch.
    add: unsafe fn(&Layer<'_>, usize, usize, &mut MaybeUninit<Scratch>),
    /// Writes the results of 16 channels, given their first and where their sums start.
    finish: unsafe fn(&Layer<'_>, &Pixels, usize, usize, &mut MaybeUninit<Scratch>),
}

/// # Safety
/// See [`super::RunFn`].
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn run_avx2(o: &Operands<'_>) {
    // SAFETY: the caller's promise.
    unsafe { run(PAIRS, &block::AVX2, o) };
}

/// # Safety
/// See [`super::RunFn`].
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn run_avxvnni(o: &Operands<'_>) {
    // The two encodings of 256-bit VNNI are two extensions; processors have either or both.
    let blocks = if is_x86_feature_detected!("avxvnni") { &block::AVX_VNNI } else { &block::AVX512_VL };
    // SAFETY: the caller's promise.
    unsafe { run(QUADS, blocks, o) };
}

/// # Safety
/// See [`super::RunFn`].
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn run_avx512(o: &Operands<'_>) {
    // SAFETY: the caller's promise.
    unsafe { run(WIDE_QUADS, &block::AVX512, o) };
}

/// # Safety
/// See [`super::RunFn`].
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn run_neondot(o: &Operands<'_>) {
    // SAFETY: the caller's promise.
    unsafe { run(SIGNED_QUADS, &block_neon::DOT, o) };
}

/// # Safety
/// See [`super::RunFn`].
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn run_neoni8mm(o: &Operands<'_>) {
    // SAFETY: the caller's promise.
    unsafe { run(WIDE_QUADS, &block_neon::I8MM, o) };
}

/// # Safety
/// See [`super::RunFn`]; the processor has what `blocks` needs.
unsafe fn run(form: Form, blocks: &Blocks, o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, x, r, y, ref tile } = o;
    tile.check(g, GROUP);
    let s = read(form.format, g, packed);
    let (parts, strips) = (s.args[0] as usize, s.args[1] as usize);
    let (strips, table) = s.table.split_at(strips);
    let (first, order) = table.split_at((g.oc as usize).div_ceil(GROUP) * parts + 1);
    let end = tile.ocs.end as usize;
    let layer = Layer {
        epilogue: e,
        bias: s.bias,
        mult: s.mult,
        strips,
        first,
        order,
        data: s.data,
        parts,
        x,
        r,
        y,
        end,
    };
    let mut scratch = MaybeUninit::uninit();
    let total = tile.rows.len() as u32 * tile.cols.len() as u32;
    for at in super::blocks(0..total, form.pixels as u32) {
        let pixels = Pixels::new(g, tile, e.has_residual, at.start, at.len(), form.pixels);
        for channels in (tile.ocs.start as usize..end).step_by(form.channels()) {
            let channels = channels..end.min(channels + form.channels());
            let groups = channels.start / GROUP..channels.end.div_ceil(GROUP);
            for part in 0..parts {
                // SAFETY: the pixels belong to the tile, and the groups' sums fit the scratch.
                unsafe {
                    (blocks.fill)(&layer, &pixels, part, &mut scratch);
                    for group in groups.clone() {
                        (blocks.add)(
                            &layer,
                            group * parts + part,
                            group * GROUP - channels.start,
                            &mut scratch,
                        );
                    }
                }
            }
            for channel in channels.clone().step_by(16) {
                // SAFETY: all parts have been added.
                unsafe { (blocks.finish)(&layer, &pixels, channel, channel - channels.start, &mut scratch) };
            }
        }
    }
}

/// Offset `i` of a step.
///
/// # Safety
/// `step` has one.
#[inline(always)]
unsafe fn offset(step: *const u8, i: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { step.cast::<u16>().add(i).read_unaligned() as usize }
}
