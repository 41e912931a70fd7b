//! The part that all packed weights share.
//!
//! ```text
//! byte 0   u32 format, u32 channels, u32 entries of the table, u32 args[4], zeros up to
//! byte 64  i32 bias[G * 16]    int8: bias - x_zero * Σw; f32: the bits of the bias     G = ceil(oc / 16)
//!          f32 mult[G * 16]    zero for f32 kernels
//!          u32 table[entries]  zeros up to the next multiple of 64; its meaning is the format's
//!          data                the format's weights
//! ```
//! All sections start at multiples of 64 bytes; numbers are little-endian. Channels beyond `oc` are zero.

use super::{ConvGeom, ConvWeights, KernelType, Packed};
use crate::memory::AlignedBytes;

pub(super) const LANES: usize = 16;

/// A packed blob, cut into its sections.
pub(super) struct Sections<'a> {
    pub bias: &'a [i32],
    pub mult: &'a [f32],
    pub table: &'a [u32],
    pub args: [u32; 4],
    pub data: &'a [u8],
}

/// Byte offsets of mult, table and data.
fn offsets(oc: usize, entries: usize) -> [usize; 3] {
    let padded = oc.div_ceil(LANES) * LANES * 4;
    [64 + padded, 64 + 2 * padded, 64 + 2 * padded + (entries * 4).next_multiple_of(64)]
}

/// Reads a blob. One of another format is the planner's mistake and stops here.
pub(super) fn read<'a>(format: &[u8; 4], g: &ConvGeom, bytes: &'a [u8]) -> Sections<'a> {
    assert!(bytes.len() >= 64 && &bytes[..4] == format, "weights are not packed as {format:?}");
    let head: &[u32] = bytemuck::cast_slice(&bytes[..64]);
    assert_eq!(head[1], g.oc, "weights are packed for another number of channels");
    let entries = head[2] as usize;
    let [mult, table, data] = offsets(g.oc as usize, entries);
    Sections {
        bias: bytemuck::cast_slice(&bytes[64..mult]),
        mult: bytemuck::cast_slice(&bytes[mult..table]),
        table: bytemuck::cast_slice(&bytes[table..table + entries * 4]),
        args: [head[3], head[4], head[5], head[6]],
        data: &bytes[data..],
    }
}

/// Writes header, bias, mult and table; `fill` gets the zeroed data section. `steps` and `slots` as in [`Packed`].
pub(super) fn write(
    format: &[u8; 4],
    weights: &ConvWeights<'_>,
    g: &ConvGeom,
    (args, table): ([u32; 4], &[u32]),
    data_len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Packed {
    let oc = g.oc as usize;
    let depth = g.depth();
    let [mult_at, table_at, data_at] = offsets(oc, table.len());
    let mut bytes = AlignedBytes::zeroed(data_at + data_len);
    bytes[..4].copy_from_slice(format);
    let head: &mut [u32] = bytemuck::cast_slice_mut(&mut bytes[..64]);
    head[1] = g.oc;
    head[2] = table.len() as u32;
    head[3..7].copy_from_slice(&args);
    let nonzeros = match *weights {
        ConvWeights::Int8 { w, bias, mult, x_zero } => {
            assert!(
                w.len() == oc * depth && bias.len() == oc && mult.len() == oc,
                "weights of another shape"
            );
            let folded: &mut [i32] = bytemuck::cast_slice_mut(&mut bytes[64..mult_at]);
            for o in 0..oc {
                let sum = sum(&w[o * depth..][..depth]);
                folded[o] = bias[o].wrapping_sub(x_zero.wrapping_mul(sum));
            }
            bytes[mult_at..][..oc * 4].copy_from_slice(bytemuck::cast_slice(mult));
            count_nonzeros(w)
        }
        ConvWeights::F32 { w, bias } => {
            assert!(w.len() == oc * depth && bias.len() == oc, "weights of another shape");
            bytes[64..][..oc * 4].copy_from_slice(bytemuck::cast_slice(bias));
            w.iter().filter(|&&v| v != 0.0).count() as u64
        }
    };
    bytes[table_at..][..table.len() * 4].copy_from_slice(bytemuck::cast_slice(table));
    fill(&mut bytes[data_at..]);
    Packed { bytes, steps: 0, slots: 0, nonzeros }
}

/// Elements that are summed in a narrow number: loops over short vectors.
const BLOCK: usize = 128;

fn sum(w: &[i8]) -> i32 {
    let block = |w: &[i8]| w.iter().map(|&v| v as i16).sum::<i16>() as i32;
    w.chunks(BLOCK).fold(0, |sum, w| sum.wrapping_add(block(w)))
}

pub(crate) fn count_nonzeros(w: &[i8]) -> u64 {
    w.chunks(BLOCK).map(|w| w.iter().map(|&v| u8::from(v != 0)).sum::<u8>() as u64).sum()
}

/// Sum of the magnitudes.
pub(crate) fn magnitude(w: &[i8]) -> i64 {
    let block = |w: &[i8]| w.iter().map(|v| v.unsigned_abs() as u16).sum::<u16>() as i64;
    w.chunks(BLOCK).map(block).sum()
}

/// Calls `f` with the place and value of every weight that is not zero.
pub(crate) fn each_nonzero(w: &[i8], mut f: impl FnMut(usize, i8)) {
    let (eights, rest) = w.as_chunks::<8>();
    for (eight, at) in eights.iter().zip((0..).step_by(8)) {
        // Most weights are zero: one look at eight of them skips many.
        let mut left = u64::from_le_bytes(eight.map(|v| v as u8));
        while left != 0 {
            let byte = left.trailing_zeros() / 8;
            f(at + byte as usize, (left >> (8 * byte)) as i8);
            left &= !(0xff << (8 * byte));
        }
    }
    let at = w.len() - rest.len();
    rest.iter().enumerate().filter(|(_, v)| **v != 0).for_each(|(i, &v)| f(at + i, v));
}

/// Dense panels: all weights of up to `width` neighbouring channels, step by step.
///
/// ```text
/// table: byte offset in x of every run        args: steps per run, bytes of a step of one 16-channel vector
/// data:  for each panel, for each run, for each step: [vectors of the panel][lanes][unit elements]
/// ```
/// A run is a stretch of x that one output reads without a gap: the kx taps of one ky where pixels lie back to
/// back, otherwise one tap. It is `unit` elements a step, the last step filled up with zero weights. The last
/// panel has as many vectors as it needs.
pub(super) struct Panels {
    pub table: Vec<u32>,
    /// Elements of one run.
    pub run_len: usize,
    pub steps_per_run: usize,
    pub unit: usize,
    /// Channels of the last panel are a multiple of this.
    pub lanes: usize,
}

impl Panels {
    /// `unit` elements a step; `x_size` bytes per element of x.
    pub fn new(g: &ConvGeom, unit: usize, x_size: usize) -> Panels {
        assert!(g.depth() > 0, "a convolution has taps and channels");
        let joined = g.kw > 1 && g.dw == 1 && g.x_pixel == g.c;
        let kxs = if joined { 1 } else { g.kw };
        let run_len = (if joined { g.kw } else { 1 } * g.c) as usize;
        let table = (0..g.kh)
            .flat_map(|ky| (0..kxs).map(move |kx| (ky, kx)))
            .map(|(ky, kx)| (g.tap_at(ky, kx) * x_size) as u32)
            .collect();
        Panels { table, run_len, steps_per_run: run_len.div_ceil(unit), unit, lanes: LANES }
    }

    pub fn steps(&self) -> usize {
        self.table.len() * self.steps_per_run
    }

    /// Calls `put(channel, element of OHWI, slot)` for every weight; slots count elements of the data section.
    pub fn for_each(&self, g: &ConvGeom, width: usize, mut put: impl FnMut(usize, usize, usize)) {
        let (oc, depth, steps) = (g.oc as usize, g.depth(), self.steps());
        for o in 0..oc {
            let first = o / width * width;
            let lanes = width.min((oc - first).next_multiple_of(self.lanes));
            let mut slot = first * steps * self.unit + (o - first) * self.unit;
            let mut element = o * depth;
            for _ in 0..self.table.len() {
                for step in 0..self.steps_per_run {
                    let len = self.unit.min(self.run_len - step * self.unit);
                    for i in 0..len {
                        put(o, element + i, slot + i);
                    }
                    element += len;
                    slot += lanes * self.unit;
                }
            }
        }
    }

    /// Packs with `width` channels a panel; `element` is one weight's bytes, placed by slot number.
    pub fn pack<const N: usize>(
        &self,
        format: &[u8; 4],
        weights: &ConvWeights<'_>,
        g: &ConvGeom,
        width: usize,
        place: impl Fn(usize) -> usize,
    ) -> Packed {
        let slots = self.steps() * self.unit * (g.oc as usize).next_multiple_of(self.lanes);
        let args = [self.steps_per_run as u32, 0, 0, 0];
        let mut packed = write(format, weights, g, (args, &self.table), slots * N, |data| {
            self.for_each(g, width, |_, element, slot| {
                let at = place(slot) * N;
                data[at..at + N].copy_from_slice(&element_bytes::<N>(weights, element));
            });
        });
        packed.steps = (self.steps() * (g.oc as usize).div_ceil(width)) as u64;
        packed.slots = slots as u64;
        packed
    }
}

/// One weight as the kernel reads it: i8 as one or two bytes, f32 as four.
fn element_bytes<const N: usize>(weights: &ConvWeights<'_>, i: usize) -> [u8; N] {
    let mut out = [0; N];
    match *weights {
        ConvWeights::Int8 { w, .. } => out.copy_from_slice(&(w[i] as i16).to_le_bytes()[..N]),
        ConvWeights::F32 { w, .. } => out.copy_from_slice(&w[i].to_le_bytes()[..N]),
    }
    out
}

/// Whether every result, in units of the output's scale and before its residual, stays below 2^30 whatever x holds.
pub(super) fn bounded(weights: &ConvWeights<'_>, g: &ConvGeom) -> bool {
    let ConvWeights::Int8 { w, bias, mult, x_zero } = *weights else { return false };
    w.chunks_exact(g.depth()).zip(bias).zip(mult).all(|((w, &bias), &mult)| {
        let most = (255 + x_zero.unsigned_abs() as i64) * magnitude(w) + (bias as i64).abs();
        most as f64 * (mult as f64).abs() < (1u32 << 30) as f64
    })
}

pub(super) fn expect(dtype: KernelType, weights: &ConvWeights<'_>) {
    let given = match weights {
        ConvWeights::Int8 { .. } => KernelType::Int8,
        ConvWeights::F32 { .. } => KernelType::F32,
    };
    assert_eq!(dtype, given, "weights of another type than the kernel's");
}
