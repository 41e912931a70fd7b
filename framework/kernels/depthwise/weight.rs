//! The weight gradient: every tap's sum of one channel block stays in registers along a row, in a scratch that lies in
//! the first-level cache between rows. Images are cut into parts by shape alone, whose sums are added in order.

use super::BAND_BYTES;
use crate::{ConvShape, isa::Isa, lanes::Lanes};
use rayon::prelude::*;
use std::cell::RefCell;

/// Channels of a task where there are enough: whole blocks, and several cache lines of a pixel.
const GROUP_CHANNELS: usize = 128;
/// Tasks wanted: images are cut into parts until there are about so many.
const TASKS: usize = 8;

/// See [`super::weight_gradient`]; the slices fit the shape.
pub fn weight_gradient(x: &[f32], dy: &[f32], shape: &ConvShape, dw: &mut [f32]) {
    thread_local! {
        static PARTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    let kernel = Kernel::best(shape.c);
    let taps = shape.kh * shape.kw;
    // Every task covers as many whole blocks, but for the last of a part.
    let blocks = shape.c.div_ceil(kernel.lanes);
    let groups = (shape.c / GROUP_CHANNELS).clamp(1, TASKS);
    let group_blocks = blocks.div_ceil(groups);
    let groups = blocks.div_ceil(group_blocks);
    let rows = shape.n * shape.oh;
    let parts = TASKS.div_ceil(groups).min(rows).max(1);
    let part_rows = rows.div_ceil(parts);
    let sums_of_task = group_blocks * taps * kernel.lanes;
    // [group, part, block, tap, lane]. Taken, not borrowed: see `with_packed`.
    let mut sums = PARTS.take();
    sums.clear();
    sums.resize(groups * parts * sums_of_task, 0.0);
    sums.par_chunks_exact_mut(sums_of_task).enumerate().for_each(|(task, sums)| {
        let (group, part) = (task / parts, task % parts);
        let first_block = group * group_blocks;
        let here = group_blocks.min(blocks - first_block);
        let part = part * part_rows..((part + 1) * part_rows).min(rows);
        add_rows(x, dy, shape, &kernel, part, first_block, &mut sums[..here * taps * kernel.lanes]);
    });
    let group_weights = group_blocks * kernel.lanes * taps;
    let add_up = |(group, dw): (usize, &mut [f32])| {
        let (first, parts) = sums[group * parts * sums_of_task..][..parts * sums_of_task].split_at(sums_of_task);
        for (i, dw) in dw.chunks_mut(kernel.lanes * taps).enumerate() {
            // The last block ends with the last channel: only its last lanes are new.
            let skipped = kernel.lanes - dw.len() / taps;
            for (lane, dw) in dw.chunks_exact_mut(taps).enumerate() {
                for (tap, dw) in dw.iter_mut().enumerate() {
                    let at = (i * taps + tap) * kernel.lanes + skipped + lane;
                    *dw = parts.iter().skip(at).step_by(sums_of_task).fold(first[at], |sum, part| sum + part);
                }
            }
        }
    };
    dw.par_chunks_mut(group_weights).enumerate().for_each(add_up);
    PARTS.set(sums);
}

/// Adds output rows `rows`, counted over all images, to the sums [block, tap, lane] of the blocks from `first_block`.
fn add_rows(
    x: &[f32],
    dy: &[f32],
    shape: &ConvShape,
    kernel: &Kernel,
    rows: std::ops::Range<usize>,
    first_block: usize,
    sums: &mut [f32],
) {
    let ConvShape { c, kh, kw, .. } = *shape;
    let (row_in, row_out) = (shape.w * c, shape.ow * c);
    let channels = sums.len() / (kh * kw);
    let band_rows = (BAND_BYTES / 4 / ((shape.w * shape.stride[0] + shape.ow) * channels)).max(1);
    let function = (kernel.choose)(kw, shape.stride[1], shape.dilation[1]);
    let mut start = rows.start;
    while start < rows.end {
        let end = rows.end.min(start + band_rows);
        for (block, sums) in sums.chunks_exact_mut(kh * kw * kernel.lanes).enumerate() {
            let channel = ((first_block + block) * kernel.lanes).min(c - kernel.lanes);
            for row in start..end {
                let (image, y) = (row / shape.oh, row % shape.oh);
                let top = (y * shape.stride[0]) as isize - shape.pad_begin[0] as isize;
                let inside = |k: usize| {
                    let at = top + (k * shape.dilation[0]) as isize;
                    (0..shape.h as isize).contains(&at).then_some(at as usize)
                };
                let Some(first) = (0..kh).find(|k| inside(*k).is_some()) else { continue };
                let count = (first..kh).take_while(|k| inside(*k).is_some()).count();
                let input = image * shape.h + inside(first).expect("the first tap row that is inside");
                let span = (count - 1) * shape.dilation[0] + 1;
                let row = Row {
                    x: &x[input * row_in..][..span * row_in],
                    dy: &dy[row * row_out..][..row_out],
                    channel,
                    rows: count,
                    shape,
                };
                let sums = &mut sums[first * kw * kernel.lanes..][..count * kw * kernel.lanes];
                assert!(channel + kernel.lanes <= c);
                // SAFETY: `best` asked for the instructions; the slices hold every row in full, and the lanes of the
                // channel block.
                unsafe { function(&row, sums) }
            }
        }
        start = end;
    }
}

/// A row of output gradients and the input rows its window covers.
struct Row<'a> {
    /// From the first tap row inside the image to the last.
    x: &'a [f32],
    dy: &'a [f32],
    /// First of the channel block.
    channel: usize,
    /// Tap rows inside the image.
    rows: usize,
    shape: &'a ConvShape,
}

/// The row functions of one kind of register.
struct Kernel {
    lanes: usize,
    choose: fn(taps: usize, stride: usize, dilation: usize) -> RowFunction,
}

/// Adds to sums [tap row, tap, lane].
///
/// # Safety
/// The processor has the instructions; x, dy and the sums are whole rows of images and filters, and the block is inside.
type RowFunction = unsafe fn(&Row, &mut [f32]);

impl Kernel {
    /// The widest registers that `channels` fill.
    fn best(channels: usize) -> Kernel {
        match Isa::best() {
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

/// Row functions compiled for a register, by window. `$rows` tap rows of 3 or 5 taps are summed at once, as many as
/// registers hold, so that enough sums are under way to hide how long one addition takes.
#[cfg(target_arch = "x86_64")]
macro_rules! row_functions {
    ($choose:ident, $lanes:ty, $features:literal, $width:literal, $three:literal, $five:literal) => {
        fn $choose(taps: usize, stride: usize, dilation: usize) -> RowFunction {
            #[target_feature(enable = $features)]
            unsafe fn row<const ROWS: usize, const TAPS: usize, const STRIDE: usize>(row: &Row, sums: &mut [f32]) {
                // SAFETY: the caller's promise.
                unsafe { row_of_taps::<$lanes, $width, ROWS, TAPS, STRIDE>(row, sums) }
            }
            #[target_feature(enable = $features)]
            unsafe fn any(row: &Row, sums: &mut [f32]) {
                // SAFETY: the caller's promise.
                unsafe { any_row::<$lanes>(row, sums) }
            }
            match (taps, stride, dilation) {
                (3, 1, 1) => row::<$three, 3, 1>,
                (3, 2, 1) => row::<$three, 3, 2>,
                (5, 1, 1) => row::<$five, 5, 1>,
                (5, 2, 1) => row::<$five, 5, 2>,
                (7, 1, 1) => row::<1, 7, 1>,
                _ => any,
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
row_functions!(avx512, std::arch::x86_64::__m512, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl", 8, 3, 3);
#[cfg(target_arch = "x86_64")]
row_functions!(avx2, std::arch::x86_64::__m256, "avx2,fma", 4, 3, 2);

/// A row, `ROWS` tap rows at a time and what is left of them one at a time.
///
/// # Safety
/// As [`RowFunction`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn row_of_taps<L: Lanes, const WIDTH: usize, const ROWS: usize, const TAPS: usize, const STRIDE: usize>(
    row: &Row,
    sums: &mut [f32],
) {
    let mut first = 0;
    // SAFETY: the caller's promise; tap rows `first..` are inside.
    unsafe {
        while row.rows - first >= ROWS {
            tap_rows::<L, WIDTH, ROWS, TAPS, STRIDE>(row, first, sums);
            first += ROWS;
        }
        if row.rows - first == 2 {
            tap_rows::<L, WIDTH, 2, TAPS, STRIDE>(row, first, sums);
        } else if row.rows - first == 1 {
            tap_rows::<L, WIDTH, 1, TAPS, STRIDE>(row, first, sums);
        }
    }
}

/// What columns outside an image hold.
static ZEROS: [f32; 16] = [0.0; 16];

/// Tap rows `first..first + ROWS`: for each tile of `WIDTH` columns of dy, every input once.
///
/// # Safety
/// As [`RowFunction`]; those tap rows are in the row.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn tap_rows<L: Lanes, const WIDTH: usize, const ROWS: usize, const TAPS: usize, const STRIDE: usize>(
    row: &Row,
    first: usize,
    sums: &mut [f32],
) {
    let shape = row.shape;
    let row_step = shape.dilation[0] * shape.w * shape.c;
    // SAFETY: the caller's promise.
    unsafe {
        let x = row.x.as_ptr().add(first * row_step + row.channel);
        let dy = row.dy.as_ptr().add(row.channel);
        let sums = sums.as_mut_ptr().add(first * TAPS * L::COUNT);
        let mut totals = [[L::zero(); TAPS]; ROWS];
        for (r, totals) in totals.iter_mut().enumerate() {
            for (tap, total) in totals.iter_mut().enumerate() {
                *total = L::load(sums.add((r * TAPS + tap) * L::COUNT));
            }
        }
        let mut start = 0;
        while start < shape.ow {
            let first_column = (start * STRIDE) as isize - shape.pad_begin[1] as isize;
            let reach = ((WIDTH - 1) * STRIDE + TAPS) as isize;
            let inside = first_column >= 0 && first_column + reach <= shape.w as isize && start + WIDTH <= shape.ow;
            if inside {
                tile::<L, WIDTH, ROWS, TAPS, STRIDE, false>(shape, x, dy, start, &mut totals);
            } else {
                tile::<L, WIDTH, ROWS, TAPS, STRIDE, true>(shape, x, dy, start, &mut totals);
            }
            start += WIDTH;
        }
        for (r, totals) in totals.into_iter().enumerate() {
            for (tap, total) in totals.into_iter().enumerate() {
                total.store(sums.add((r * TAPS + tap) * L::COUNT));
            }
        }
    }
}

/// Adds columns `start..start + WIDTH` of dy. `EDGE`: some columns are outside and read as zero.
///
/// # Safety
/// `x` and `dy` point to a channel block of column 0, with `ROWS` rows of x below; as [`RowFunction`].
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
    shape: &ConvShape,
    x: *const f32,
    dy: *const f32,
    start: usize,
    totals: &mut [[L; TAPS]; ROWS],
) {
    let first_column = (start * STRIDE) as isize - shape.pad_begin[1] as isize;
    let row_step = shape.dilation[0] * shape.w * shape.c;
    // SAFETY: the caller's promise; columns that are outside read `ZEROS`.
    unsafe {
        let load = |line: *const f32, column: isize, columns: usize| {
            let outside = EDGE && (column < 0 || column >= columns as isize);
            L::load(if outside { ZEROS.as_ptr() } else { line.wrapping_offset(column * shape.c as isize) })
        };
        let mut gradients = [L::zero(); WIDTH];
        for (i, gradient) in gradients.iter_mut().enumerate() {
            *gradient = load(dy, (start + i) as isize, shape.ow);
        }
        for column in 0..(WIDTH - 1) * STRIDE + TAPS {
            for (r, totals) in totals.iter_mut().enumerate() {
                let value = load(x.wrapping_add(r * row_step), first_column + column as isize, shape.w);
                for (tap, total) in totals.iter_mut().enumerate() {
                    if column >= tap && (column - tap) % STRIDE == 0 && (column - tap) / STRIDE < WIDTH {
                        *total = total.multiply_add(value, gradients[(column - tap) / STRIDE]);
                    }
                }
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
    let row_step = shape.dilation[0] * shape.w * shape.c;
    // SAFETY: the caller's promise; columns outside the image are left out.
    unsafe {
        for r in 0..row.rows {
            for tap in 0..shape.kw {
                let x = row.x.as_ptr().add(r * row_step + row.channel);
                let dy = row.dy.as_ptr().add(row.channel);
                let sum = sums.as_mut_ptr().add((r * shape.kw + tap) * L::COUNT);
                let shift = (tap * shape.dilation[1]) as isize - shape.pad_begin[1] as isize;
                // Columns of dy whose input column, column * stride + shift, is inside.
                let begin = (-shift).max(0).unsigned_abs().div_ceil(shape.stride[1]);
                let end = (shape.w as isize - shift).max(0).unsigned_abs().div_ceil(shape.stride[1]);
                let mut totals = [L::zero(); 4];
                let columns = begin..end.min(shape.ow);
                for column in columns {
                    let from = ((column * shape.stride[1]) as isize + shift) as usize;
                    let total = &mut totals[column % 4];
                    *total = total.multiply_add(L::load(x.add(from * shape.c)), L::load(dy.add(column * shape.c)));
                }
                let total = totals[0].add(totals[1]).add(totals[2].add(totals[3]));
                L::load(sum).add(total).store(sum);
            }
        }
    }
}
