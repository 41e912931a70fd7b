//! Sparse f32 convolutions of any pattern of zeros, on AVX-512, AVX2 and NEON.
//!
//! One nonzero weight is broadcast and multiplied with a vector of pixels, so pixels must be neighbours. A block of up
//! to 64 pixels is turned into a tile `[element of the window][pixel]`, [`DEPTH`] elements at a time: the tile stays in
//! the first-level cache while every output channel adds its weights of that depth to its sums, which lie in the
//! second-level cache. Then the sums are turned back into NHWC. Tile and sums lie on the stack.
//!
//! ```text
//! format "S64f", args: blocks of depth, runs of the window, elements of a run
//! table: u32 runs[runs]                              element of x where each run begins, see [`Panels`]
//!        u32 first[blocks of depth * groups + 1]     first pair of every block of weights
//!        u32 order[blocks of depth * groups][64]     channel of the group | pairs << 8, most pairs first
//! data:  pairs: u16 offsets[2] in bytes of the tile, f32 weights[2]
//! ```
//! Groups are 64 channels. Channels are taken by their number of pairs, so that a branch predictor sees loops of the same
//! length many times. An odd weight's partner is 0 at the tile's first row, which holds zeros.

use super::packed::{Panels, expect, read, write};
use super::{ConvGeom, ConvWeights, KernelType, Operands, Packed, blocks};
use std::mem::MaybeUninit;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

const FORMAT: &[u8; 4] = b"S64f";
/// Channels of a group.
const GROUP: usize = 64;
/// Elements of the window in one tile.
const DEPTH: usize = 128;
/// Pixels of a block: a row of a tile or of sums.
const PIXELS: usize = 64;
/// Pixels are taken so many at a time.
const VECTOR: usize = 16;
/// Channels whose sums are kept at a time.
const CHANNELS: usize = 512;

/// Two weights of a channel: bytes from the tile's beginning to the first's row and, in the upper half, to the second's; the
/// bits of both.
type Pair = [u32; 3];

pub(super) fn pack(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::F32, weights);
    let ConvWeights::F32 { w, .. } = *weights else { unreachable!("checked") };
    let (oc, depth) = (g.oc as usize, g.depth());
    let (groups, depths) = (oc.div_ceil(GROUP), depth.div_ceil(DEPTH));
    let mut pairs: Vec<Pair> = Vec::new();
    let (mut first, mut order) = (vec![0], vec![0; depths * groups * GROUP]);
    for (block, order) in order.chunks_exact_mut(GROUP).enumerate() {
        let (elements, channels) = (block / groups * DEPTH, block % groups * GROUP);
        let elements = elements..depth.min(elements + DEPTH);
        let of_channel = |lane: usize| match w.get((channels + lane) * depth..) {
            Some(row) if !row.is_empty() => &row[elements.clone()],
            _ => &[],
        };
        let count = |lane: usize| of_channel(lane).iter().filter(|v| **v != 0.0).count().div_ceil(2);
        let mut lanes: Vec<usize> = (0..GROUP).collect();
        lanes.sort_by_key(|&lane| std::cmp::Reverse(count(lane)));
        for (order, &lane) in order.iter_mut().zip(&lanes) {
            *order = (lane | count(lane) << 8) as u32;
            let weights = of_channel(lane).iter().enumerate().filter(|(_, v)| **v != 0.0);
            let mut entries = weights.map(|(i, v)| [((1 + i) * PIXELS * 4) as u32, v.to_bits()]);
            while let Some([offset, weight]) = entries.next() {
                let [partner, other] = entries.next().unwrap_or([0, 0]);
                pairs.push([offset | partner << 16, weight, other]);
            }
        }
        first.push(pairs.len() as u32);
    }
    let runs = Panels::new(g, 1, 1);
    let args = [depths as u32, runs.table.len() as u32, runs.run_len as u32, 0];
    let table = [runs.table, first, order].concat();
    let bytes: &[u8] = bytemuck::cast_slice(&pairs);
    let mut packed = write(FORMAT, weights, g, (args, &table), bytes.len(), |data| {
        data[..bytes.len()].copy_from_slice(bytes);
    });
    packed.steps = pairs.len() as u64;
    packed.slots = 2 * pairs.len() as u64;
    packed
}

/// What a processor does with vectors.
struct Vectors {
    /// `tile[k][p] = x[pixels[p] + at + k]` for `rows` rows, filled up to a multiple of 16, and all pixels.
    gather: unsafe fn(x: *const f32, pixels: &[usize], at: usize, rows: usize, tile: *mut f32),
    /// Adds the weights of a group's block to sums of `[vectors of pixels - 1]`.
    multiply: [unsafe fn(&Multiply<'_>); PIXELS / VECTOR],
    /// Writes the sums of channels.
    scatter: unsafe fn(&Scatter<'_>),
}

struct Multiply<'a> {
    order: &'a [u32],
    pairs: *const Pair,
    tile: *const f32,
    /// `[channel of the group][PIXELS]`
    sums: *mut f32,
    /// Sums begin with it, if there is one, and not with what they are.
    bias: Option<*const f32>,
    /// Lines to fetch into the second-level cache meanwhile, so many for each channel: where there is an instruction for it.
    ahead: *const i8,
    lines: usize,
}

/// What this block of pixels will write and add, and the next will read, fetched while its weights are multiplied.
#[derive(Default)]
struct Ahead {
    /// Stretches of lines: where they begin, how many.
    stretches: [(usize, usize); 3],
}

impl Ahead {
    const LINE: usize = 64;

    /// Elements `range` of y, x or the residual, unless little of it belongs to what is used.
    fn add(&mut self, nth: usize, base: *const f32, range: std::ops::Range<usize>, used: usize) {
        if range.len() <= 2 * used {
            let begin = base.wrapping_add(range.start).addr();
            self.stretches[nth] = (begin, (range.len() * 4).div_ceil(Ahead::LINE));
        }
    }

    fn lines(&self) -> usize {
        self.stretches.iter().map(|s| s.1).sum()
    }

    /// The next lines of one stretch, at most `most`.
    fn take(&mut self, most: usize) -> (*const i8, usize) {
        let nth = self.stretches.iter().position(|s| s.1 > 0).unwrap_or(0);
        let stretch = &mut self.stretches[nth];
        let (begin, lines) = (stretch.0, stretch.1.min(most));
        *stretch = (begin + lines * Ahead::LINE, stretch.1 - lines);
        (std::ptr::without_provenance(begin), lines)
    }
}

struct Scatter<'a> {
    /// `[channel][PIXELS]`
    sums: *const f32,
    channels: usize,
    /// Elements of y and of the residual where the first channel of each pixel lies.
    y_at: &'a [usize],
    r_at: &'a [usize],
    y: *mut f32,
    r: Option<*const f32>,
    min: f32,
    max: f32,
}

/// Row 0 of the tile is zero; gathering writes up to 15 rows more than it is asked for.
#[repr(C, align(64))]
struct Scratch {
    tile: [f32; (1 + DEPTH + 15) * PIXELS],
    sums: [f32; CHANNELS * PIXELS],
}

/// # Safety
/// See [`super::RunFn`].
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn run_avx512(o: &Operands<'_>) {
    // SAFETY: as the caller promises.
    unsafe { run(&avx512::VECTORS, o) };
}

/// # Safety
/// See [`super::RunFn`].
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn run_avx2(o: &Operands<'_>) {
    // SAFETY: as the caller promises.
    unsafe { run(&avx2::VECTORS, o) };
}

/// # Safety
/// See [`super::RunFn`].
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn run_neon(o: &Operands<'_>) {
    // SAFETY: as the caller promises.
    unsafe { run(&neon::VECTORS, o) };
}

/// # Safety
/// See [`super::RunFn`]; the processor has the instructions of `vectors`.
unsafe fn run(vectors: &Vectors, o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, ref tile, .. } = o;
    let (x, r, y) = o.floats();
    tile.check(g, GROUP);
    let s = read(FORMAT, g, packed);
    let [depths, runs, run_len, _] = s.args.map(|v| v as usize);
    let groups = (g.oc as usize).div_ceil(GROUP);
    let (runs, table) = s.table.split_at(runs);
    let (first, order) = table.split_at(depths * groups + 1);
    let pairs: &[Pair] = bytemuck::cast_slice(s.data);
    let bias: &[f32] = bytemuck::cast_slice(s.bias);

    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let scratch = scratch.as_mut_ptr();
    // SAFETY: the scratch is ours, and written before it is read: row 0 here, the others by `gather`, sums by the
    // first block of depth.
    let (zeros, sums) = unsafe { (&raw mut (*scratch).tile, &raw mut (*scratch).sums) };
    let (zeros, sums): (*mut f32, *mut f32) = (zeros.cast(), sums.cast());
    // SAFETY: the tile's first row.
    unsafe { zeros.write_bytes(0, PIXELS) };

    let width = tile.cols.len() as u32;
    let pixels = tile.rows.len() as u32 * width;
    let (mut x_at, mut y_at, mut r_at) = ([0; PIXELS], [0; PIXELS], [0; PIXELS]);
    for block in blocks(0..pixels.div_ceil(VECTOR as u32), (PIXELS / VECTOR) as u32) {
        let first_pixel = block.start * VECTOR as u32;
        let used = (pixels.min(block.end * VECTOR as u32) - first_pixel) as usize;
        let filled = block.len() * VECTOR;
        g.each_pixel(tile, first_pixel..first_pixel + used as u32, e.has_residual, |p, x, y, r| {
            (x_at[p], y_at[p], r_at[p]) = (x, y, r);
        });
        // Lanes without a pixel compute another's, which nobody stores.
        let spare = x_at[0];
        x_at[used..filled].fill(spare);

        let mut ahead = Ahead::default();
        if block.end * (VECTOR as u32) < pixels {
            let next = |i: u32| g.x_at(tile.rows.start + i / width, tile.cols.start + i % width);
            let end = pixels.min((block.end + block.len() as u32) * VECTOR as u32);
            let (begin, last) = (next(block.end * VECTOR as u32), next(end - 1));
            let tap = runs[runs.len() - 1] as usize;
            ahead.add(1, x, begin + tap..last + tap + run_len, filled * g.c as usize);
        }
        for channels in tile.ocs.clone().step_by(CHANNELS) {
            let end = tile.ocs.end.min(channels + CHANNELS as u32) as usize;
            let channels = channels as usize;
            ahead.add(0, y, y_at[0] + channels..y_at[used - 1] + end, used * (end - channels));
            if e.has_residual {
                let (begin, last) = (r_at[0] + channels, r_at[used - 1] + end);
                ahead.add(2, r, begin..last, used * (end - channels));
            }
            let each = ahead.lines().div_ceil(depths * (end - channels));
            for depth in 0..depths {
                // SAFETY: every run is readable for all pixels; the 15 elements that may follow it are part of its
                // buffer or the slack behind.
                unsafe {
                    let tile = zeros.add(PIXELS);
                    gather(vectors, x, &x_at[..filled], (runs, run_len), depth * DEPTH, g.depth(), tile);
                }
                for group in channels / GROUP..end.div_ceil(GROUP) {
                    let b = depth * groups + group;
                    let sums_at = (group * GROUP - channels) * PIXELS;
                    let order = &order[b * GROUP..][..GROUP.min(end - group * GROUP)];
                    let (fetch, lines) = ahead.take(each * order.len());
                    let job = Multiply {
                        order,
                        pairs: pairs[first[b] as usize..first[b + 1] as usize].as_ptr(),
                        tile: zeros,
                        sums: sums.wrapping_add(sums_at),
                        bias: (depth == 0).then(|| bias[group * GROUP..].as_ptr()),
                        ahead: fetch,
                        lines: lines.div_ceil(order.len()),
                    };
                    // SAFETY: order and pairs are one block's; lanes beyond the channels are last in the order.
                    unsafe { vectors.multiply[block.len() - 1](&job) };
                }
            }
            let job = Scatter {
                sums,
                channels: end - channels,
                y_at: &y_at[..used],
                r_at: &r_at[..used],
                y: y.wrapping_add(channels),
                r: e.has_residual.then(|| r.wrapping_add(channels)),
                min: e.min,
                max: e.max,
            };
            // SAFETY: the pixels and channels are the tile's.
            unsafe { (vectors.scatter)(&job) };
        }
    }
}

/// Fills the tile with the elements of all runs from `begin` on.
///
/// # Safety
/// See [`Vectors::gather`].
unsafe fn gather(
    vectors: &Vectors,
    x: *const f32,
    pixels: &[usize],
    (runs, run_len): (&[u32], usize),
    begin: usize,
    depth: usize,
    tile: *mut f32,
) {
    let end = depth.min(begin + DEPTH);
    let mut at = begin;
    while at < end {
        let (run, within) = (at / run_len, at % run_len);
        let len = (run_len - within).min(end - at);
        // SAFETY: as the caller promises; the tile has 15 rows more than a block of depth.
        unsafe {
            let tile = tile.add((at - begin) * PIXELS);
            (vectors.gather)(x, pixels, runs[run] as usize + within, len, tile);
        }
        at += len;
    }
}
