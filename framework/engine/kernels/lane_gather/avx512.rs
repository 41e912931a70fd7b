//! The step loop of LaneGather on AVX-512 VBMI + VNNI.
//!
//! The loop is one `asm!` block: written with intrinsics, the compiler hoists the gathers of several steps and
//! spills them, at two to four times the time. There is one loop per shape of a block of pixels: `q` pixels from
//! one address and `q2` from another, both with one stride. The second address is the next `q` pixels of a row, or
//! the row below where rows are short (two rows of 7 pixels).

use super::{FORMAT, STEP_BYTES};
use crate::kernels::dense_avx512::{Requant, lanes_before, store_fours};
use crate::kernels::packed::{LANES, Sections, read};
use crate::kernels::{Operands, blocks};
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

/// The most pixels from one address, and of one row of a pair.
const HALF: u32 = 8;

/// Bytes of steps that are multiplied with all pixels before the next are: from the second pixels on they come from the
/// second-level cache, and the next are on their way there.
const CHUNK: usize = 64 << 10;

/// A block of pixels: addresses of its first pixel, of its second part relative to that, and strides. Bytes.
struct Block<'a> {
    sections: &'a Sections<'a>,
    groups: Range<usize>,
    /// First channel that is not the tile's.
    end: usize,
    requant: &'a Requant,
    x: *const u8,
    x_stride: usize,
    x_second: usize,
    y: *mut u8,
    y_stride: usize,
    y_second: usize,
    /// Bytes of an element of y.
    y_size: usize,
    r: *const u8,
    r_stride: usize,
    r_second: usize,
    /// Bytes from a step to a line that is fetched with it.
    ahead: usize,
}

impl Block<'_> {
    /// Where a channel of pixel `i` lies in y and in the residual; the second part starts with pixel `q`.
    #[inline(always)]
    fn addresses(&self, q: usize, i: usize, channel: usize) -> (*mut u8, *const u8) {
        let (nth, y, r) = if i < q { (i, 0, 0) } else { (i - q, self.y_second, self.r_second) };
        let y = self.y.wrapping_add(y + nth * self.y_stride + channel * self.y_size);
        (y, self.r.wrapping_add(r + nth * self.r_stride + channel))
    }
}

/// Stores a group that ends within its 16 channels or whose results are more than bytes of its own sums.
///
/// # Safety
/// AVX-512 is there; the block's pixels belong to the tile.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn store_each(block: &Block<'_>, q: usize, channel: usize, mult: __m512, sums: &[__m512i]) {
    let mask = lanes_before(channel, block.end);
    let row = |i: usize| {
        let (y, r) = block.addresses(q, i, channel);
        (mult, y, r)
    };
    // SAFETY: the mask keeps to the tile's channels.
    unsafe { block.requant.store_all(sums, mask, row) };
}

/// Where pixel `aN` or `bN` lies, as an operand.
#[rustfmt::skip]
macro_rules! operand {
    (a0) => { "[{a}]" };
    (a1) => { "[{a} + {s}]" };
    (a2) => { "[{a} + {s} * 2]" };
    (a3) => { "[{a} + {s3}]" };
    (a4) => { "[{a} + {s} * 4]" };
    (a5) => { "[{a} + {s5}]" };
    (a6) => { "[{a} + {s3} * 2]" };
    (a7) => { "[{a} + {s7}]" };
    (b0) => { "[{b}]" };
    (b1) => { "[{b} + {s}]" };
    (b2) => { "[{b} + {s} * 2]" };
    (b3) => { "[{b} + {s3}]" };
    (b4) => { "[{b} + {s} * 4]" };
    (b5) => { "[{b} + {s5}]" };
    (b6) => { "[{b} + {s3} * 2]" };
    (b7) => { "[{b} + {s7}]" };
}

/// Defines `fn name(&Block)` for a list of pixels.
macro_rules! block_loop {
    ($name:ident, $q:literal, $($pixel:ident)*) => {
        block_loop!(@zip $name $q [] [$($pixel)*] [
            (0 "zmm0" "zmm16") (1 "zmm1" "zmm17") (2 "zmm2" "zmm18") (3 "zmm3" "zmm19")
            (4 "zmm4" "zmm20") (5 "zmm5" "zmm21") (6 "zmm6" "zmm22") (7 "zmm7" "zmm23")
            (8 "zmm8" "zmm24") (9 "zmm9" "zmm25") (10 "zmm10" "zmm26") (11 "zmm11" "zmm27")
            (12 "zmm12" "zmm28") (13 "zmm13" "zmm29") (14 "zmm14" "zmm16") (15 "zmm15" "zmm17")
        ]);
    };
    (@zip $name:ident $q:literal [$($done:tt)*] [$pixel:ident $($pixels:ident)*] [($($reg:tt)*) $($regs:tt)*]) => {
        block_loop!(@zip $name $q [$($done)* ($pixel $($reg)*)] [$($pixels)*] [$($regs)*]);
    };
    (@zip $name:ident $q:literal [$(($pixel:ident $i:literal $acc:tt $tmp:tt))*] [] [$($rest:tt)*]) => {
        /// # Safety
        /// AVX-512 VBMI and VNNI are there; all pixels of the block belong to the tile.
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
        unsafe fn $name(block: &Block<'_>) {
            const PIXELS: usize = [$($i),*].len();
            let s = block.sections;
            let groups = (s.bias.len()) / LANES;
            let (first, offsets) = s.table.split_at(groups + 1);
            for group in block.groups.clone() {
                let steps = first[group] as usize..first[group + 1] as usize;
                let (offset, data) = (&offsets[steps.clone()], &s.data[steps.start * STEP_BYTES..steps.end * STEP_BYTES]);
                // SAFETY: `offset` and `data` hold all steps; a window starts at most 31 bytes before a channel of
                // some tap and ends at most 63 after it, which READ_BEFORE and READ_AFTER cover. Data is aligned.
                unsafe {
                    let bias = _mm512_loadu_si512(s.bias.as_ptr().add(group * LANES).cast());
                    let mut acc = [bias; PIXELS];
                    if !offset.is_empty() {
                        asm!(
                            "/* {s} {s3} {s5} {s7} {b} */",
                            "2:",
                            "mov {a:e}, dword ptr [{offset}]",
                            "add {offset}, 4",
                            "add {a}, {x}",
                            "lea {b}, [{a} + {second}]",
                            "vmovdqa64 zmm30, [{data}]",
                            "vmovdqa64 zmm31, [{data} + 64]",
                            "prefetcht1 [{data} + {ahead}]",
                            "sub {data}, -128",
                            $(
                                concat!("vpermb ", $tmp, ", zmm30, ", operand!($pixel)),
                                concat!("vpdpbusd ", $acc, ", ", $tmp, ", zmm31"),
                            )*
                            "dec {n:e}",
                            "jnz 2b",
                            offset = inout(reg) offset.as_ptr() => _,
                            data = inout(reg) data.as_ptr() => _,
                            n = inout(reg) offset.len() => _,
                            x = in(reg) block.x,
                            ahead = in(reg) block.ahead,
                            second = in(reg) block.x_second,
                            s = in(reg) block.x_stride,
                            s3 = in(reg) block.x_stride.wrapping_mul(3),
                            s5 = in(reg) block.x_stride.wrapping_mul(5),
                            s7 = in(reg) block.x_stride.wrapping_mul(7),
                            a = out(reg) _,
                            b = out(reg) _,
                            $(inout($acc) acc[$i],)*
                            out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _, out("zmm20") _,
                            out("zmm21") _, out("zmm22") _, out("zmm23") _, out("zmm24") _, out("zmm25") _,
                            out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _, out("zmm30") _,
                            out("zmm31") _,
                            options(nostack, readonly)
                        );
                    }
                    let channel = group * LANES;
                    let mult = _mm512_loadu_ps(s.mult.as_ptr().add(channel));
                    let mask = lanes_before(channel, block.end);
                    let q = block.requant;
                    let row = |i: usize, acc: __m512i| {
                        let (y, r) = block.addresses($q, i, channel);
                        (acc, mult, y, r)
                    };
                    if mask == 0xffff && q.is_plain() {
                        store_fours!(q.store_four_plain<false>, row, acc, $($i)*);
                    } else if mask == 0xffff && q.is_late() {
                        store_fours!(q.store_four_late<false>, row, acc, $($i)*);
                    } else if mask == 0xffff && q.is_table() {
                        store_fours!(q.store_four_table<false>, row, acc, $($i)*);
                    } else {
                        // A copy: sums whose address is taken would live in memory from the start.
                        let sums = [$(acc[$i]),*];
                        store_each(block, $q, channel, mult, &sums);
                    }
                }
            }
        }
    };
}

block_loop!(p1, 1, a0);
block_loop!(p2, 2, a0 a1);
block_loop!(p3, 3, a0 a1 a2);
block_loop!(p4, 4, a0 a1 a2 a3);
block_loop!(p5, 5, a0 a1 a2 a3 a4);
block_loop!(p6, 6, a0 a1 a2 a3 a4 a5);
block_loop!(p7, 7, a0 a1 a2 a3 a4 a5 a6);
block_loop!(p8, 8, a0 a1 a2 a3 a4 a5 a6 a7);
block_loop!(p1_1, 1, a0 b0);
block_loop!(p2_2, 2, a0 a1 b0 b1);
block_loop!(p3_3, 3, a0 a1 a2 b0 b1 b2);
block_loop!(p4_4, 4, a0 a1 a2 a3 b0 b1 b2 b3);
block_loop!(p5_5, 5, a0 a1 a2 a3 a4 b0 b1 b2 b3 b4);
block_loop!(p6_6, 6, a0 a1 a2 a3 a4 a5 b0 b1 b2 b3 b4 b5);
block_loop!(p7_7, 7, a0 a1 a2 a3 a4 a5 a6 b0 b1 b2 b3 b4 b5 b6);
block_loop!(p8_8, 8, a0 a1 a2 a3 a4 a5 a6 a7 b0 b1 b2 b3 b4 b5 b6 b7);
block_loop!(p5_4, 5, a0 a1 a2 a3 a4 b0 b1 b2 b3);
block_loop!(p6_5, 6, a0 a1 a2 a3 a4 a5 b0 b1 b2 b3 b4);
block_loop!(p7_6, 7, a0 a1 a2 a3 a4 a5 a6 b0 b1 b2 b3 b4 b5);
block_loop!(p8_7, 8, a0 a1 a2 a3 a4 a5 a6 a7 b0 b1 b2 b3 b4 b5 b6);

type BlockFn = unsafe fn(&Block<'_>);
/// `SINGLE[q - 1]`: q pixels from one address.
const SINGLE: [BlockFn; 8] = [p1, p2, p3, p4, p5, p6, p7, p8];
/// `EVEN[q - 1]`: q pixels from each address.
const EVEN: [BlockFn; 8] = [p1_1, p2_2, p3_3, p4_4, p5_5, p6_6, p7_7, p8_8];
/// `ODD[q - 5]`: q pixels from the first address, q - 1 from the second.
const ODD: [BlockFn; 4] = [p5_4, p6_5, p7_6, p8_7];

/// # Safety
/// See [`crate::kernels::RunFn`].
pub(in crate::kernels) unsafe fn run(o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, x, r, y, ref tile } = o;
    tile.check(g, LANES);
    let s = read(FORMAT, g, packed);
    let y_size = if e.out_f32 { 4 } else { 1 };
    // SAFETY: the caller vouches for the processor.
    let requant = unsafe { Requant::new_vbmi(e) }.bounded(s.args[1] != 0);
    let (g, tile) = g.flattened(tile, e.has_residual);
    let cols = tile.cols.len() as u32;
    // Bytes from the first to another pixel of a row.
    let (x_step, y_step, r_step) = (g.x_step(), g.y_pixel as usize * y_size, g.r_pixel as usize);
    let mut block = Block {
        sections: &s,
        groups: 0..0,
        end: tile.ocs.end as usize,
        requant: &requant,
        x,
        x_stride: x_step,
        x_second: 0,
        y,
        y_stride: y_step,
        y_second: 0,
        y_size,
        r,
        r_stride: r_step,
        r_second: 0,
        ahead: 0,
    };
    let row_at = |row: u32| {
        let r = if e.has_residual { g.r_at(row, tile.cols.start) } else { 0 };
        (g.x_at(row, tile.cols.start), g.y_at(row, tile.cols.start) * y_size, r)
    };
    let groups = tile.ocs.start as usize / LANES..(tile.ocs.end as usize).div_ceil(LANES);
    let bytes = |groups: Range<usize>| (s.table[groups.end] - s.table[groups.start]) as usize * STEP_BYTES;
    block.groups = groups.start..groups.start;
    while block.groups.end < groups.end {
        let begin = block.groups.end;
        let more = |end: &usize| bytes(begin..*end) <= CHUNK;
        block.groups = begin..(begin + 1..=groups.end).take_while(more).last().unwrap_or(begin + 1);
        // The first two blocks of pixels fetch both lines of the step that is as far into the next chunk. Behind the last one
        // lies what the next layer begins with, if anything.
        let next = bytes(block.groups.clone());
        let mut lines = [next, next + 64].into_iter();
        let mut row = tile.rows.start;
        while row < tile.rows.end && cols > 0 {
            let (x_at, y_at, r_at) = row_at(row);
            if cols <= HALF && row + 1 < tile.rows.end {
                let (x_below, y_below, r_below) = row_at(row + 1);
                (block.x, block.y, block.r) =
                    (x.wrapping_add(x_at), y.wrapping_add(y_at), r.wrapping_add(r_at));
                block.x_second = x_below.wrapping_sub(x_at);
                block.y_second = y_below.wrapping_sub(y_at);
                block.r_second = r_below.wrapping_sub(r_at);
                block.ahead = lines.next().unwrap_or(0);
                // SAFETY: both rows belong to the tile.
                unsafe { EVEN[cols as usize - 1](&block) };
                row += 2;
                continue;
            }
            for part in blocks(0..cols, 2 * HALF) {
                let pixels = part.len();
                let (q, f) = match pixels {
                    ..=8 => (pixels, SINGLE[pixels - 1]),
                    _ if pixels % 2 == 0 => (pixels / 2, EVEN[pixels / 2 - 1]),
                    _ => (pixels / 2 + 1, ODD[pixels / 2 + 1 - 5]),
                };
                let nth = part.start as usize;
                block.x = x.wrapping_add(x_at + nth * block.x_stride);
                block.y = y.wrapping_add(y_at + nth * block.y_stride);
                block.r = r.wrapping_add(r_at + nth * block.r_stride);
                block.x_second = q * block.x_stride;
                block.y_second = q * block.y_stride;
                block.r_second = q * block.r_stride;
                block.ahead = lines.next().unwrap_or(0);
                // SAFETY: the pixels of `part` belong to the tile.
                unsafe { f(&block) };
            }
            row += 1;
        }
    }
}
