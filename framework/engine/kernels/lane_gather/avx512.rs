//! The step loop of LaneGather on AVX-512 VBMI + VNNI.
//!
//! The loop is one `asm!` block: written with intrinsics, the compiler hoists the gathers of several steps and
//! spills them, at two to four times the time. There is one loop per shape of a block of pixels: `q` pixels from
//! one address and `q2` from another, both with one stride. The second address is the next `q` pixels of a row, or
//! the row below where rows are short (two rows of 7 pixels).

use super::{FORMAT, STEP_BYTES};
use crate::kernels::dense_avx512::{Requant, lanes_before};
use crate::kernels::packed::{LANES, Sections, read};
use crate::kernels::{ConvGeom, QEpilogue, Tile, blocks};
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

/// The most pixels from one address, and of one row of a pair.
const HALF: u32 = 8;

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
                            second = in(reg) block.x_second,
                            s = in(reg) block.x_stride,
                            s3 = in(reg) block.x_stride * 3,
                            s5 = in(reg) block.x_stride * 5,
                            s7 = in(reg) block.x_stride * 7,
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
                    $({
                        const SECOND: bool = $i >= $q;
                        const NTH: usize = if SECOND { $i - $q } else { $i };
                        let y = NTH * block.y_stride + if SECOND { block.y_second } else { 0 };
                        let r = NTH * block.r_stride + if SECOND { block.r_second } else { 0 };
                        let y = block.y.wrapping_add(y + channel * block.y_size);
                        block.requant.store(acc[$i], mult, mask, y, block.r.wrapping_add(r + channel));
                    })*
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
pub(in crate::kernels) unsafe fn run(
    g: &ConvGeom,
    e: &QEpilogue,
    packed: &[u8],
    x: *const u8,
    r: *const u8,
    y: *mut u8,
    tile: &Tile,
) {
    debug_assert!(tile.rows.end <= g.rows && tile.cols.end <= g.ow && tile.ocs.end <= g.oc);
    debug_assert!((tile.ocs.start as usize).is_multiple_of(LANES));
    let s = read(FORMAT, g, packed);
    let y_size = if e.out_f32 { 4 } else { 1 };
    // SAFETY: the caller vouches for the processor.
    let requant = unsafe { Requant::new(e) };
    let (g, tile) = g.flattened(tile, e.has_residual);
    let residual = |row, col| if e.has_residual { g.r_at(row, col) } else { 0 };
    // A block of pixels from (row, col), its second part from `second`.
    let block = |row: u32, col: u32, second: (u32, u32)| {
        let (x_at, y_at, r_at) = (g.x_at(row, col), g.y_at(row, col), residual(row, col));
        Block {
            sections: &s,
            groups: tile.ocs.start as usize / LANES..(tile.ocs.end as usize).div_ceil(LANES),
            end: tile.ocs.end as usize,
            requant: &requant,
            x: x.wrapping_add(x_at),
            x_stride: (g.sw * g.x_pixel) as usize,
            x_second: g.x_at(second.0, second.1) - x_at,
            y: y.wrapping_add(y_at * y_size),
            y_stride: g.y_pixel as usize * y_size,
            y_second: (g.y_at(second.0, second.1) - y_at) * y_size,
            y_size,
            r: r.wrapping_add(r_at),
            r_stride: g.r_pixel as usize,
            r_second: residual(second.0, second.1) - r_at,
        }
    };
    let cols = tile.cols.len() as u32;
    let mut row = tile.rows.start;
    while row < tile.rows.end && cols > 0 {
        if cols <= HALF && row + 1 < tile.rows.end {
            // SAFETY: both rows belong to the tile.
            unsafe { EVEN[cols as usize - 1](&block(row, tile.cols.start, (row + 1, tile.cols.start))) };
            row += 2;
            continue;
        }
        for part in blocks(tile.cols.clone(), 2 * HALF) {
            let pixels = part.end - part.start;
            let q = if pixels <= HALF { pixels } else { pixels.div_ceil(2) };
            let f = match pixels {
                ..=HALF => SINGLE[q as usize - 1],
                n if n % 2 == 0 => EVEN[q as usize - 1],
                _ => ODD[q as usize - 5],
            };
            // SAFETY: the pixels of `part` belong to the tile.
            unsafe { f(&block(row, part.start, (row, part.start + q.min(pixels - 1)))) };
        }
        row += 1;
    }
}
