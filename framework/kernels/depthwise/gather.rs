//! One row of outputs: sums in registers, several columns of a channel block at once, so that each input that neighbours
//! share is loaded once and each weight once per row of taps. Blocks come before the next columns: memory is then read
//! pixel after pixel, where columns first would leap from line to line (up to twice as slow).

use super::Axis;
use crate::{isa::Isa, lanes::Lanes};
use std::ops::Range;

/// Which positions are gathered: along each axis the sequences that make up an output image.
#[derive(Clone, Copy)]
pub struct Window2d<'a> {
    pub vertical: &'a [Axis],
    pub horizontal: &'a [Axis],
    /// Weights in a row of the filter, and in all of it.
    pub kw: usize,
    pub taps: usize,
}

/// Outputs of one row and one horizontal sequence, of some channel blocks.
pub struct Row<'a> {
    pub x: &'a [f32],
    /// Of column 0, channel 0 in the input row of the first tap row, in floats.
    pub first_x: isize,
    /// From the input row of a tap row to that of the next.
    pub x_row_step: usize,
    /// Of an input row.
    pub columns: usize,
    /// Tap rows inside the image.
    pub rows: usize,
    /// [block, tap, lane], of all blocks.
    pub weight: &'a [f32],
    /// Of a filter.
    pub taps: usize,
    /// Tap of the first tap row and first column.
    pub first_weight: isize,
    pub weight_row_step: isize,
    /// Of all channels.
    pub bias: Option<&'a [f32]>,
    /// From a pixel to the next.
    pub channels: usize,
    pub blocks: Range<usize>,
    pub axis: Axis,
}

/// The row kernels of one kind of register.
pub struct RowKernel {
    pub lanes: usize,
    choose: fn(taps: usize, step: usize, tap_step: usize) -> RowFunction,
}

/// # Safety
/// The processor has the instructions, and the positions that [`RowKernel::run`] checks are inside.
type RowFunction = unsafe fn(&Row, &mut [f32]);

impl RowKernel {
    /// The widest registers that `channels` fill.
    pub fn new(isa: Isa, channels: usize) -> RowKernel {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if channels >= 16 => RowKernel { lanes: 16, choose: avx512 },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 if channels >= 8 => RowKernel { lanes: 8, choose: avx2 },
            _ if channels >= 4 => RowKernel { lanes: 4, choose: |_, _, _| row_of_any::<[f32; 4]> },
            _ => RowKernel { lanes: 1, choose: |_, _, _| row_of_any::<[f32; 1]> },
        }
    }

    /// Writes the row's outputs into `y`, an output row of all channels.
    ///
    /// # Panics
    /// If an input, weight or output lies outside its slice.
    pub fn run(&self, row: &Row, y: &mut [f32]) {
        let axis = &row.axis;
        if axis.outputs == 0 {
            return;
        }
        let last_output = axis.first_output + (axis.outputs - 1) * axis.output_step;
        assert!((last_output + 1) * row.channels <= y.len());
        assert!(row.bias.is_none_or(|b| b.len() == row.channels));
        assert!(self.lanes <= row.channels && row.blocks.end <= row.channels.div_ceil(self.lanes));
        if row.rows > 0 && axis.taps > 0 {
            let last_row = row.first_x + ((row.rows - 1) * row.x_row_step) as isize;
            let last = last_row + (row.columns * row.channels) as isize;
            assert!(row.first_x >= 0 && last <= row.x.len() as isize);
            let down = (row.rows - 1) as isize * row.weight_row_step;
            let across = (axis.taps - 1) as isize * axis.weight_step;
            let first = row.first_weight + down.min(0) + across.min(0);
            let last = row.first_weight + down.max(0) + across.max(0);
            assert!(first >= 0 && (last as usize) < row.taps);
            assert!(row.weight.len() >= row.blocks.end * row.taps * self.lanes);
        }
        let function = (self.choose)(axis.taps, axis.input_step, axis.tap_step);
        // SAFETY: the processor has the instruction set; inputs, weights and outputs are inside (checked).
        unsafe { function(row, y) }
    }
}

fn row_of_any<L: Lanes>(row: &Row, y: &mut [f32]) {
    // SAFETY: plain Rust needs no instructions; `run` checked the positions.
    unsafe { tiles::<L, 4, 0, 0>(row, y) }
}

/// Row functions compiled for a register, by (taps, step): windows seen in practice, and one for any other.
#[cfg(target_arch = "x86_64")]
macro_rules! row_functions {
    ($choose:ident, $lanes:ty, $features:literal) => {
        fn $choose(taps: usize, step: usize, tap_step: usize) -> RowFunction {
            #[target_feature(enable = $features)]
            unsafe fn row<const TAPS: usize, const STEP: usize>(row: &Row, y: &mut [f32]) {
                // SAFETY: the caller's promise.
                unsafe { row_of_width::<$lanes, TAPS, STEP>(row, y) }
            }
            match (taps, step, tap_step) {
                (1, 1, _) => row::<1, 1>,
                (2, 1, 1) => row::<2, 1>,
                (3, 1, 1) => row::<3, 1>,
                (3, 2, 1) => row::<3, 2>,
                (5, 1, 1) => row::<5, 1>,
                (5, 2, 1) => row::<5, 2>,
                (7, 1, 1) => row::<7, 1>,
                _ => row::<0, 0>,
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
row_functions!(avx512, std::arch::x86_64::__m512, "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl");
#[cfg(target_arch = "x86_64")]
row_functions!(avx2, std::arch::x86_64::__m256, "avx2,fma");

/// Covers a row with tiles of one width: the one with the fewest sums, each tile costing about one more for its weights.
///
/// # Safety
/// As [`RowFunction`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn row_of_width<L: Lanes, const TAPS: usize, const STEP: usize>(row: &Row, y: &mut [f32]) {
    let outputs = row.axis.outputs;
    let width = [8, 7, 6, 4, 3].into_iter().filter(|width| *width <= outputs);
    // SAFETY: the caller's promise.
    unsafe {
        match width.min_by_key(|width| outputs.div_ceil(*width) * (width + 1)) {
            Some(8) => tiles::<L, 8, TAPS, STEP>(row, y),
            Some(7) => tiles::<L, 7, TAPS, STEP>(row, y),
            Some(6) => tiles::<L, 6, TAPS, STEP>(row, y),
            Some(4) => tiles::<L, 4, TAPS, STEP>(row, y),
            Some(_) => tiles::<L, 3, TAPS, STEP>(row, y),
            None => tiles::<L, 1, TAPS, STEP>(row, y),
        }
    }
}

/// Tiles of `WIDTH` outputs; the last overlaps the one before where they do not divide the row.
///
/// # Safety
/// As [`RowFunction`].
#[inline(always)]
unsafe fn tiles<L: Lanes, const WIDTH: usize, const TAPS: usize, const STEP: usize>(
    row: &Row,
    y: &mut [f32],
) {
    let axis = &row.axis;
    let mut start = 0;
    while start < axis.outputs {
        let width = if axis.outputs < WIDTH { 1 } else { WIDTH };
        let at = start.min(axis.outputs - width);
        let first = axis.first_input + (at * axis.input_step) as isize;
        let reach = (width - 1) * axis.input_step + axis.taps.saturating_sub(1) * axis.tap_step;
        let edge = first < 0 || first + reach as isize >= row.columns as isize;
        for block in row.blocks.clone() {
            // SAFETY: the caller's promise; the outputs are of the axis.
            unsafe {
                if width < WIDTH {
                    tile::<L, 1, 0, 0, true>(row, block, at, y);
                } else if edge {
                    tile::<L, WIDTH, TAPS, STEP, true>(row, block, at, y);
                } else {
                    tile::<L, WIDTH, TAPS, STEP, false>(row, block, at, y);
                }
            }
        }
        start += width;
    }
}

/// What columns outside an image hold.
static ZEROS: [f32; 16] = [0.0; 16];

/// Outputs `start..start + WIDTH` of a channel block. With `TAPS` > 0, taps lie side by side, outputs are `STEP` inputs apart and each
/// input is loaded once; with 0 the axis says both. `EDGE`: some columns are outside and read as zero.
///
/// # Safety
/// As [`RowFunction`]; the outputs are in the axis, and without `EDGE` all their columns are inside.
#[inline(always)]
unsafe fn tile<L: Lanes, const WIDTH: usize, const TAPS: usize, const STEP: usize, const EDGE: bool>(
    row: &Row,
    block: usize,
    start: usize,
    y: &mut [f32],
) {
    let axis = &row.axis;
    let first_column = axis.first_input + (start * axis.input_step) as isize;
    let pixel = row.channels as isize;
    let channel = (block * L::COUNT).min(row.channels - L::COUNT);
    // SAFETY: `RowKernel::run` checked every tap of every column inside the image, all weights and all outputs; other
    // columns read `ZEROS`.
    unsafe {
        let load = |line: *const f32, column: isize| {
            let outside = EDGE && (column < 0 || column >= row.columns as isize);
            L::load(if outside { ZEROS.as_ptr() } else { line.wrapping_offset(column * pixel) })
        };
        let mut sums = [row.bias.map_or(L::zero(), |b| L::load(b.as_ptr().add(channel))); WIDTH];
        let mut line = row.x.as_ptr().wrapping_offset(row.first_x + channel as isize);
        let mut weight = row.weight.as_ptr().add(block * row.taps * L::COUNT);
        weight = weight.wrapping_offset(row.first_weight * L::COUNT as isize);
        let tap_step = axis.weight_step * L::COUNT as isize;
        for _ in 0..row.rows {
            if TAPS > 0 {
                let mut weights = [L::zero(); TAPS];
                for (tap, w) in weights.iter_mut().enumerate() {
                    *w = L::load(weight.wrapping_offset(tap as isize * tap_step));
                }
                each_column!(column, (WIDTH - 1) * STEP + TAPS, {
                    let value = load(line, first_column + column as isize);
                    for tap in 0..TAPS {
                        if column >= tap
                            && (column - tap).is_multiple_of(STEP)
                            && (column - tap) / STEP < WIDTH
                        {
                            let output = (column - tap) / STEP;
                            sums[output] = sums[output].multiply_add(value, weights[tap]);
                        }
                    }
                });
            } else {
                for tap in 0..axis.taps {
                    let w = L::load(weight.wrapping_offset(tap as isize * tap_step));
                    for (output, sum) in sums.iter_mut().enumerate() {
                        let column = output * axis.input_step + tap * axis.tap_step;
                        *sum = sum.multiply_add(load(line, first_column + column as isize), w);
                    }
                }
            }
            line = line.wrapping_add(row.x_row_step);
            weight = weight.wrapping_offset(row.weight_row_step * L::COUNT as isize);
        }
        for (output, sum) in sums.into_iter().enumerate() {
            let at = axis.first_output + (start + output) * axis.output_step;
            sum.store(y.as_mut_ptr().add(at * row.channels + channel));
        }
    }
}
