//! The vector code of interleaved steps on NEON.
//!
//! A block of 64 pixels is four strips of 16, one after the other in every row of the tile and in every channel's sums. Each is
//! turned and finished by itself; only the steps go through all four, so that they are decoded once for 64 pixels. Unpacking
//! the rows of four weights puts those of one pixel next to each other, and the pixels stay in order.

use super::{Blocks, GROUP, Layer, Pixels, SIGNED_QUADS, STRIP, Scratch, WIDE_QUADS, offset};
use crate::kernels::neon::{finished, quad, scaled, sdot_0, signed, usdot_0};
use std::arch::aarch64::*;
use std::mem::MaybeUninit;

/// Products of signed bytes.
pub(super) const DOT: Blocks = Blocks { fill: fill::<true>, add: add_dot, finish };
/// Products of unsigned and signed bytes.
pub(super) const I8MM: Blocks = Blocks { fill: fill::<false>, add: add_i8mm, finish };

/// Pixels of a register of bytes.
const LANE: usize = 16;
/// Registers of a row of the tile.
const LANES: usize = 4;
const PIXELS: usize = LANE * LANES;

// What both forms have in common is all that this file relies on.
const _: () = assert!(WIDE_QUADS.pixels == PIXELS && SIGNED_QUADS.pixels == PIXELS);
const _: () = assert!(WIDE_QUADS.weights == 4 && SIGNED_QUADS.weights == 4);
const _: () = assert!(WIDE_QUADS.element == 1 && SIGNED_QUADS.element == 1);
const STEP: usize = WIDE_QUADS.step();
const STRIPS: usize = WIDE_QUADS.strips();

turning!(uint8x16_t, "neon", vzip1q_u8, vzip2q_u8);

/// 16 bytes of each of 16 pixels, turned: register `i` holds byte `i` of all pixels.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn turned(from: *const u8, pixels: &[usize; LANE]) -> [uint8x16_t; 16] {
    // SAFETY: the caller's promise.
    turn(pixels.map(|p| unsafe { vld1q_u8(from.wrapping_add(p)) }))
}

/// The places of the 16 pixels of a lane.
#[inline]
fn of_lane(places: &[usize; PIXELS], lane: usize) -> &[usize; LANE] {
    places[lane * LANE..][..LANE].try_into().expect("a lane has 16 pixels")
}

/// # Safety
/// As [`Blocks::fill`]: the pixels belong to the tile.
#[target_feature(enable = "neon")]
unsafe fn fill<const SIGNED: bool>(
    layer: &Layer<'_>,
    pixels: &Pixels,
    part: usize,
    scratch: &mut MaybeUninit<Scratch>,
) {
    let first = part * STRIPS;
    let strips = &layer.strips[first..layer.strips.len().min(first + STRIPS)];
    for (nth, &offset) in strips.iter().enumerate() {
        for lane in 0..LANES {
            // SAFETY: a strip starts at a channel of a tap of every pixel and ends at most 15 bytes after the last one; a
            // part has no more strips than a tile has rows for.
            unsafe {
                let tile: *mut u8 = scratch.as_mut_ptr().cast();
                let row = tile.add(nth * STRIP * PIXELS + lane * LANE);
                let v = turned(layer.x.wrapping_add(offset as usize), of_lane(&pixels.x, lane));
                for (i, v) in v.into_iter().enumerate() {
                    let v = if SIGNED { vreinterpretq_u8_s8(signed(v)) } else { v };
                    vst1q_u8(row.add(i * PIXELS), v);
                }
            }
        }
    }
}

/// Defines [`Blocks::add`] by the products of a step. Rows of the tile are `$of_row` of its bytes.
macro_rules! add {
    ($name:ident, $features:literal, $dot:ident, $of_row:path) => {
        /// # Safety
        /// As [`Blocks::add`]: the processor has the features, the tile holds the block's part of the window.
        #[target_feature(enable = $features)]
        unsafe fn $name(
            layer: &Layer<'_>,
            block: usize,
            channels: usize,
            scratch: &mut MaybeUninit<Scratch>,
        ) {
            let group = block / layer.parts;
            let start = block.is_multiple_of(layer.parts);
            let steps = layer.first[block] as usize..layer.first[block + 1] as usize;
            let mut step = layer.data[steps.start * STEP..steps.end * STEP].as_ptr();
            for &entry in &layer.order[block * GROUP..(block + 1) * GROUP] {
                let (channel, count) = (entry as usize % 256, entry as usize / 256);
                if group * GROUP + channel >= layer.end {
                    // Beyond the tile, or beyond the last channel.
                    // SAFETY: within the block's steps.
                    step = unsafe { step.add(count * STEP) };
                    continue;
                }
                // SAFETY: the scratch holds sums of `Form::channels` channels, 64 each; the packer's offsets are rows of the
                // tile, and `count` steps follow.
                unsafe {
                    let scratch = scratch.as_mut_ptr();
                    let tile: *const u8 = (&raw const (*scratch).tile).cast();
                    let sums: *mut i32 =
                        (&raw mut (*scratch).sums).cast::<i32>().add((channels + channel) * PIXELS);
                    let mut acc = [vdupq_n_s32(layer.bias[group * GROUP + channel]); 4 * LANES];
                    if !start {
                        for i in 0..4 * LANES {
                            acc[i] = vld1q_s32(sums.add(4 * i));
                        }
                    }
                    for _ in 0..count {
                        let w = vreinterpretq_s8_u8(quad(step.add(8)));
                        let rows = [0, 1, 2, 3].map(|i| tile.add(offset(step, i)));
                        for lane in 0..LANES {
                            let [a, b, c, d] = rows.map(|row| vld1q_u8(row.add(lane * LANE)));
                            let ([a, b], [c, d]) = (both(a, b), both(c, d));
                            let quads = [words(a, c), words(b, d)];
                            for i in 0..4 {
                                let acc = &mut acc[4 * lane + i];
                                *acc = $dot(*acc, $of_row(quads[i / 2][i % 2]), w);
                            }
                        }
                        step = step.add(STEP);
                    }
                    acc.into_iter().enumerate().for_each(|(i, v)| vst1q_s32(sums.add(4 * i), v));
                }
            }
        }
    };
}

add!(add_dot, "neon,dotprod", sdot_0, vreinterpretq_s8_u16);
add!(add_i8mm, "neon,i8mm", usdot_0, vreinterpretq_u8_u16);

/// Interleaves pairs of bytes.
#[inline]
#[target_feature(enable = "neon")]
fn words(a: uint8x16_t, b: uint8x16_t) -> [uint16x8_t; 2] {
    let (a, b) = (vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b));
    [vzip1q_u16(a, b), vzip2q_u16(a, b)]
}

/// # Safety
/// As [`Blocks::finish`]: all parts of these channels have been added.
#[target_feature(enable = "neon")]
unsafe fn finish(
    layer: &Layer<'_>,
    pixels: &Pixels,
    channel: usize,
    at: usize,
    scratch: &mut MaybeUninit<Scratch>,
) {
    let e = layer.epilogue;
    let channels = (layer.end - channel).min(16);
    // SAFETY: the scratch holds sums of these channels.
    let sums = unsafe {
        let sums: *const [i32; PIXELS] = (&raw const (*scratch.as_mut_ptr()).sums).cast();
        std::slice::from_raw_parts(sums.add(at), channels)
    };
    if e.out_f32 {
        // SAFETY: only channels of the tile are written.
        unsafe { floats(layer, pixels, channel, sums) };
        return;
    }
    for lane in 0..LANES {
        let count = pixels.count.saturating_sub(lane * LANE).min(LANE);
        if count == 0 {
            return;
        }
        let mut v = [vdupq_n_u8(0); 16];
        if e.has_residual {
            // SAFETY: 16 bytes from a channel of the residual are readable.
            v = unsafe { turned(layer.r.wrapping_add(channel), of_lane(&pixels.r, lane)) };
        }
        for (o, sums) in sums.iter().enumerate() {
            // SAFETY: a lane's sums are 16 of the channel's 64.
            let sums = [0, 4, 8, 12].map(|i| unsafe { vld1q_s32(sums.as_ptr().add(lane * LANE + i)) });
            let mult = vdupq_n_f32(layer.mult[channel + o]);
            v[o] = finished(e, scaled(sums, [mult; 4]), v[o]);
        }
        let v = turn(v);
        for (bytes, &y_at) in v.into_iter().zip(of_lane(&pixels.y, lane)).take(count) {
            // SAFETY: the channels belong to the tile.
            unsafe {
                let y = layer.y.add(y_at + channel);
                if channels == 16 {
                    vst1q_u8(y, bytes);
                } else {
                    y.copy_from_nonoverlapping((&raw const bytes).cast(), channels);
                }
            }
        }
    }
}

/// Writes `acc * mult`.
///
/// # Safety
/// The channels from `channel` on belong to the tile.
#[cold]
unsafe fn floats(layer: &Layer<'_>, pixels: &Pixels, channel: usize, sums: &[[i32; PIXELS]]) {
    for (o, sums) in sums.iter().enumerate() {
        for (&sum, &y_at) in sums.iter().zip(&pixels.y).take(pixels.count) {
            let f = sum as f32 * layer.mult[channel + o];
            // SAFETY: the channel belongs to the tile.
            unsafe { layer.y.cast::<f32>().add(y_at + channel + o).write(f) };
        }
    }
}
