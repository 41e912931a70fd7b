//! The weight gradient: a tap's sum over several columns stays in registers, and otherwise in a scratch that lies in the
//! first-level cache. Images are cut into parts by shape alone, whose sums are added in order.

use crate::scratch::{self, Buffer};
use crate::{ConvShape, isa::Isa, lanes::Lanes};
use rayon::prelude::*;
use std::{cell::RefCell, ops::Range};

/// Channels of a task where there are enough: whole blocks, and several cache lines of a pixel.
const GROUP_CHANNELS: usize = 128;
/// Of a task, half the first-level cache.
const SUMS_BYTES: usize = 16 << 10;
/// Tasks wanted: images are cut into parts until there are about so many.
const TASKS: usize = 8;

/// See [`super::weight_gradient`]; the slices fit the shape.
pub fn weight_gradient(isa: Isa, x: &[f32], dy: &[f32], shape: &ConvShape, dw: &mut [f32]) {
    thread_local! {
        static SUMS: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
    }
    let kernel = Kernel::new(isa, shape.c);
    let taps = shape.kh * shape.kw;
    // Every task covers as many whole blocks, but for the last of a part.
    let blocks = shape.c.div_ceil(kernel.lanes);
    let in_cache = (4 * blocks * taps * kernel.lanes).div_ceil(SUMS_BYTES);
    let groups = (shape.c / GROUP_CHANNELS).min(TASKS).max(in_cache);
    let group_blocks = blocks.div_ceil(groups);
    let groups = blocks.div_ceil(group_blocks);
    let rows = shape.n * shape.oh;
    let parts = TASKS.div_ceil(groups).min(rows).max(1);
    let part_rows = rows.div_ceil(parts);
    let sums_of_task = group_blocks * taps * kernel.lanes;
    let group_weights = group_blocks * kernel.lanes * taps;
    scratch::with(&SUMS, |sums| {
        // [group, part, block, tap, lane]
        let sums = sums.at_least(groups * parts * sums_of_task);
        sums.par_chunks_exact_mut(sums_of_task).enumerate().for_each(|(task, sums)| {
            let (group, part) = (task / parts, task % parts);
            let first_block = group * group_blocks;
            let here = group_blocks.min(blocks - first_block);
            let part = (part * part_rows).min(rows)..((part + 1) * part_rows).min(rows);
            sums.fill(0.0);
            add_rows(x, dy, shape, &kernel, part, first_block, &mut sums[..here * taps * kernel.lanes]);
        });
        dw.par_chunks_mut(group_weights).zip(sums.par_chunks_exact(parts * sums_of_task)).for_each(
            |(dw, sums)| {
                for (i, dw) in dw.chunks_mut(kernel.lanes * taps).enumerate() {
                    // The last block ends with the last channel: only its last lanes are new.
                    let skipped = kernel.lanes - dw.len() / taps;
                    for (lane, dw) in dw.chunks_exact_mut(taps).enumerate() {
                        for (tap, dw) in dw.iter_mut().enumerate() {
                            let at = (i * taps + tap) * kernel.lanes + skipped + lane;
                            let parts = sums[at..].iter().step_by(sums_of_task);
                            *dw = parts.fold(0.0, |sum, part| sum + part);
                        }
                    }
                }
            },
        );
    });
}

/// Adds output rows `rows`, counted over all images, to the sums [block, tap, lane] of the blocks from `first_block`.
fn add_rows(
    x: &[f32],
    dy: &[f32],
    shape: &ConvShape,
    kernel: &Kernel,
    rows: Range<usize>,
    first_block: usize,
    sums: &mut [f32],
) {
    let ConvShape { c, kh, kw, .. } = *shape;
    let (row_in, row_out) = (shape.w * c, shape.ow * c);
    let function = (kernel.choose)(kw, shape.stride[1], shape.dilation[1]);
    let blocks = first_block..first_block + sums.len() / (kh * kw * kernel.lanes);
    assert!(kernel.lanes <= c && blocks.end <= c.div_ceil(kernel.lanes));
    for row in rows {
        let (image, y) = (row / shape.oh, row % shape.oh);
        let top = (y * shape.stride[0]) as isize - shape.pad_begin[0] as isize;
        let inside = |k: usize| {
            let at = top + (k * shape.dilation[0]) as isize;
            (0..shape.h as isize).contains(&at).then_some(at as usize)
        };
        let Some((first_tap, first)) = (0..kh).find_map(|k| Some((k, inside(k)?))) else { continue };
        let taps = (first_tap..kh).take_while(|k| inside(*k).is_some()).count();
        let span = (taps - 1) * shape.dilation[0] + 1;
        let row = Row {
            x: &x[(image * shape.h + first) * row_in..][..span * row_in],
            dy: &dy[row * row_out..][..row_out],
            blocks: blocks.clone(),
            taps: first_tap..first_tap + taps,
            shape,
        };
        // SAFETY: the processor has the instruction set; the slices hold every row in full, the blocks are of the channels
        // (checked) and the sums hold all their taps.
        unsafe { function(&row, sums) }
    }
}

/// A row of output gradients and the input rows its window covers.
struct Row<'a> {
    /// From the first tap row inside the image to the last.
    x: &'a [f32],
    dy: &'a [f32],
    blocks: Range<usize>,
    /// Tap rows inside the image.
    taps: Range<usize>,
    shape: &'a ConvShape,
}

impl Row<'_> {
    /// The first channel of a block of `lanes`.
    fn channel(&self, block: usize, lanes: usize) -> usize {
        (block * lanes).min(self.shape.c - lanes)
    }

    /// From the input row of a tap row to that of the next.
    fn x_step(&self) -> usize {
        self.shape.dilation[0] * self.shape.w * self.shape.c
    }

    /// The first sum of a tap row in sums [block, tap row, tap, lane].
    fn sums_of(&self, block: usize, tap_row: usize, lanes: usize) -> usize {
        ((block - self.blocks.start) * self.shape.kh + tap_row) * self.shape.kw * lanes
    }
}

/// The row functions of one kind of register.
struct Kernel {
    lanes: usize,
    choose: fn(taps: usize, stride: usize, dilation: usize) -> RowFunction,
}

/// Adds a row to sums [block, tap row, tap, lane].
///
/// # Safety
/// The processor has the instructions; x and dy are whole rows, the blocks are inside and the sums hold their taps.
type RowFunction = unsafe fn(&Row, &mut [f32]);

impl Kernel {
    /// The widest registers that `channels` fill.
    fn new(isa: Isa, channels: usize) -> Kernel {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if channels >= 16 => Kernel { lanes: 16, choose: avx512 },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 if channels >= 8 => Kernel { lanes: 8, choose: avx2 },
            _ if channels >= 4 => Kernel { lanes: 4, choose: |_, _, _| row_of_any::<[f32; 4]> },
            _ => Kernel { lanes: 1, choose: |_, _, _| row_of_any::<[f32; 1]> },
        }
    }
}

fn row_of_any<L: Lanes>(row: &Row, sums: &mut [f32]) {
    // SAFETY: plain Rust needs no instructions; only `add_rows` calls this.
    unsafe { any_row::<L>(row, sums) }
}

/// Row functions compiled for a register, by window. `$rows` tap rows of 3 taps are summed at once, as many as registers
/// hold, so that columns of dy are loaded once for all of them.
#[cfg(target_arch = "x86_64")]
macro_rules! row_functions {
    ($choose:ident, $lanes:ty, $features:literal, $rows:literal) => {
        fn $choose(taps: usize, stride: usize, dilation: usize) -> RowFunction {
            #[target_feature(enable = $features)]
            unsafe fn row<const ROWS: usize, const TAPS: usize, const STRIDE: usize>(
                row: &Row,
                sums: &mut [f32],
            ) {
                // SAFETY: the caller's promise.
                unsafe { row_of_width::<$lanes, ROWS, TAPS, STRIDE>(row, sums) }
            }
            #[target_feature(enable = $features)]
            unsafe fn any(row: &Row, sums: &mut [f32]) {
                // SAFETY: the caller's promise.
                unsafe { any_row::<$lanes>(row, sums) }
            }
            match (taps, stride, dilation) {
                (3, 1, 1) => row::<$rows, 3, 1>,
                (3, 2, 1) => row::<$rows, 3, 2>,
                (5, 1, 1) => row::<1, 5, 1>,
                (5, 2, 1) => row::<1, 5, 2>,
                (7, 1, 1) => row::<1, 7, 1>,
                _ => any,
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
row_functions!(avx512, std::arch::x86_64::__m512, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl", 3);
#[cfg(target_arch = "x86_64")]
row_functions!(avx2, std::arch::x86_64::__m256, "avx2,fma", 1);

/// Covers a row with tiles of one width: the one with the fewest sums, each tile costing about one more for its totals.
///
/// # Safety
/// As [`RowFunction`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn row_of_width<L: Lanes, const ROWS: usize, const TAPS: usize, const STRIDE: usize>(
    row: &Row,
    sums: &mut [f32],
) {
    let columns = row.shape.ow;
    // SAFETY: the caller's promise.
    unsafe {
        match [8, 6, 4].into_iter().min_by_key(|width| columns.div_ceil(*width) * (width + 1)) {
            Some(8) => tiles::<L, 8, ROWS, TAPS, STRIDE>(row, sums),
            Some(6) => tiles::<L, 6, ROWS, TAPS, STRIDE>(row, sums),
            _ => tiles::<L, 4, ROWS, TAPS, STRIDE>(row, sums),
        }
    }
}

/// Tile after tile of `WIDTH` columns of dy; of each all blocks, so that memory is read pixel after pixel.
///
/// # Safety
/// As [`RowFunction`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn tiles<L: Lanes, const WIDTH: usize, const ROWS: usize, const TAPS: usize, const STRIDE: usize>(
    row: &Row,
    sums: &mut [f32],
) {
    let shape = row.shape;
    for start in (0..shape.ow).step_by(WIDTH) {
        let first_column = (start * STRIDE) as isize - shape.pad_begin[1] as isize;
        let reach = ((WIDTH - 1) * STRIDE + TAPS) as isize;
        let edge = first_column < 0 || first_column + reach > shape.w as isize || start + WIDTH > shape.ow;
        for block in row.blocks.clone() {
            let mut tap_row = row.taps.start;
            // SAFETY: the caller's promise; the tap rows are the row's.
            unsafe {
                while ROWS > 1 && tap_row + ROWS <= row.taps.end {
                    if edge {
                        tile::<L, WIDTH, ROWS, TAPS, STRIDE, true>(row, block, tap_row, start, sums);
                    } else {
                        tile::<L, WIDTH, ROWS, TAPS, STRIDE, false>(row, block, tap_row, start, sums);
                    }
                    tap_row += ROWS;
                }
                while tap_row < row.taps.end {
                    if edge {
                        tile::<L, WIDTH, 1, TAPS, STRIDE, true>(row, block, tap_row, start, sums);
                    } else {
                        tile::<L, WIDTH, 1, TAPS, STRIDE, false>(row, block, tap_row, start, sums);
                    }
                    tap_row += 1;
                }
            }
        }
    }
}

/// What columns outside an image hold.
#[cfg(target_arch = "x86_64")]
static ZEROS: [f32; 16] = [0.0; 16];

/// Adds columns `start..start + WIDTH` of dy to `ROWS` rows of taps. `EDGE`: some columns are outside and read as zero.
///
/// # Safety
/// As [`RowFunction`]; the tap rows are the row's, and without `EDGE` all columns are inside.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn tile<
    L: Lanes,
    const WIDTH: usize,
    const ROWS: usize,
    const TAPS: usize,
    const STRIDE: usize,
    const EDGE: bool,
>(
    row: &Row,
    block: usize,
    tap_row: usize,
    start: usize,
    sums: &mut [f32],
) {
    let shape = row.shape;
    let first_column = (start * STRIDE) as isize - shape.pad_begin[1] as isize;
    let channel = row.channel(block, L::COUNT);
    // SAFETY: the caller's promise; columns that are outside read `ZEROS`.
    unsafe {
        let load = |line: *const f32, column: isize, columns: usize| {
            let outside = EDGE && (column < 0 || column >= columns as isize);
            L::load(if outside { ZEROS.as_ptr() } else { line.wrapping_offset(column * shape.c as isize) })
        };
        let x = row.x.as_ptr().add((tap_row - row.taps.start) * row.x_step() + channel);
        let dy = row.dy.as_ptr().add(channel);
        let sums = sums.as_mut_ptr().add(row.sums_of(block, tap_row, L::COUNT));
        let mut totals = [[L::zero(); TAPS]; ROWS];
        for (r, totals) in totals.iter_mut().enumerate() {
            for (tap, total) in totals.iter_mut().enumerate() {
                *total = L::load(sums.add((r * TAPS + tap) * L::COUNT));
            }
        }
        let mut gradients = [L::zero(); WIDTH];
        for (i, gradient) in gradients.iter_mut().enumerate() {
            *gradient = load(dy, (start + i) as isize, shape.ow);
        }
        each_column!(column, (WIDTH - 1) * STRIDE + TAPS, {
            for (r, totals) in totals.iter_mut().enumerate() {
                let value = load(x.wrapping_add(r * row.x_step()), first_column + column as isize, shape.w);
                for (tap, total) in totals.iter_mut().enumerate() {
                    if column >= tap
                        && (column - tap).is_multiple_of(STRIDE)
                        && (column - tap) / STRIDE < WIDTH
                    {
                        *total = total.multiply_add(value, gradients[(column - tap) / STRIDE]);
                    }
                }
            }
        });
        for (r, totals) in totals.into_iter().enumerate() {
            for (tap, total) in totals.into_iter().enumerate() {
                total.store(sums.add((r * TAPS + tap) * L::COUNT));
            }
        }
    }
}

/// Any window: a tap at a time, in four sums of every fourth column.
///
/// # Safety
/// As [`RowFunction`].
#[inline(always)]
unsafe fn any_row<L: Lanes>(row: &Row, sums: &mut [f32]) {
    let shape = row.shape;
    for block in row.blocks.clone() {
        let channel = row.channel(block, L::COUNT);
        for (r, tap_row) in row.taps.clone().enumerate() {
            for tap in 0..shape.kw {
                // Columns of dy whose input column, column * stride + shift, is inside.
                let shift = (tap * shape.dilation[1]) as isize - shape.pad_begin[1] as isize;
                let begin = (-shift).max(0).unsigned_abs().div_ceil(shape.stride[1]);
                let end = (shape.w as isize - shift).max(0).unsigned_abs().div_ceil(shape.stride[1]);
                // SAFETY: the caller's promise; columns outside the image are left out.
                unsafe {
                    let x = row.x.as_ptr().add(r * row.x_step() + channel);
                    let dy = row.dy.as_ptr().add(channel);
                    let mut totals = [L::zero(); 4];
                    for column in begin..end.min(shape.ow) {
                        let from = ((column * shape.stride[1]) as isize + shift) as usize;
                        let (x, dy) = (L::load(x.add(from * shape.c)), L::load(dy.add(column * shape.c)));
                        totals[column % 4] = totals[column % 4].multiply_add(x, dy);
                    }
                    let sum = sums.as_mut_ptr().add(row.sums_of(block, tap_row, L::COUNT) + tap * L::COUNT);
                    let total = totals[0].add(totals[1]).add(totals[2].add(totals[3]));
                    L::load(sum).add(total).store(sum);
                }
            }
        }
    }
}
