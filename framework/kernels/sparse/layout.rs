//! Where activations lie while a sparse kernel works on them: sixteen items to a line, one plane per channel.
//!
//! A *line* holds the same channel and pixel of 16 images. Every tap, stride and dilation then moves by whole lines, so
//! loads stay aligned (an unaligned 64-byte load costs 1.75 aligned ones on Zen 4) and borders are lines of zeros. A
//! matrix product over tokens has no neighbours: there a line holds 16 consecutive rows.

use super::{BAND_LINES, LANES, Line, Tile};
use crate::ConvShape;

/// One NHWC tensor seen as lines: strides are in floats.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    /// From one item of a line to the next.
    pub lane: usize,
    pub row: usize,
    pub column: usize,
    /// From one group of 16 images to the next.
    pub group: usize,
    items: usize,
    /// Items between neighbouring lines: 0 where a group's lines all hold the same images.
    line_items: usize,
}

impl Side {
    fn images(n: usize, height: usize, width: usize, channels: usize) -> Side {
        let lane = height * width * channels;
        let (row, column, group) = (width * channels, channels, LANES * lane);
        Side { channels, height, width, lane, row, column, group, items: n, line_items: 0 }
    }

    /// `items` rows of `channels`, `width` lines to a row of lines.
    fn rows(items: usize, channels: usize, width: usize) -> Side {
        let column = LANES * channels;
        let (row, height) = (width * column, items.div_ceil(LANES * width));
        Side { channels, height, width, lane: channels, row, column, group: 0, items, line_items: LANES }
    }

    /// Items of a line that exist.
    pub fn lanes(&self, group: usize, row: usize, column: usize) -> usize {
        let before = group * LANES + (row * self.width + column) * self.line_items;
        self.items.saturating_sub(before).min(LANES)
    }

    /// Where the first item of a line begins.
    pub fn at(&self, group: usize, row: usize, column: usize) -> usize {
        group * self.group + row * self.row + column * self.column
    }

    pub fn groups(&self) -> usize {
        if self.line_items > 0 { 1 } else { self.items.div_ceil(LANES) }
    }
}

/// Input and output of a convolution as lines.
pub fn sides(s: &ConvShape, tile: Tile) -> (Side, Side) {
    if s.is_pointwise() {
        let items = s.n * s.h * s.w;
        (Side::rows(items, s.c, tile.columns), Side::rows(items, s.o, tile.columns))
    } else {
        (Side::images(s.n, s.h, s.w, s.c), Side::images(s.n, s.oh, s.ow, s.o))
    }
}

/// Which lines of `from` a band of result rows reads, and where each tap begins.
#[derive(Clone, Debug)]
pub struct Planes {
    pub from: Side,
    /// Result rows of a band, a multiple of the tile's.
    pub band: usize,
    /// Rows of lines in a plane.
    pub rows: usize,
    /// (column of `from`, line of a plane's row that holds it), ascending.
    pub columns: Vec<(usize, usize)>,
    /// Lines of a plane's row that hold zeros.
    pub zeros: Vec<usize>,
    /// Lines from one result row to the next.
    pub step: usize,
    /// Lines from one channel to the next.
    pub plane: usize,
    /// Lines from a result's own place to what a tap reads.
    pub taps: Vec<usize>,
    /// Rows of `from` per result row, and the row before which the first result row's window begins.
    row_scale: usize,
    row_shift: isize,
}

impl Planes {
    /// The row of `from` that the first plane row of a band holds.
    pub fn first_row(&self, band: usize) -> isize {
        (band * self.band * self.row_scale) as isize + self.row_shift
    }

    /// Lines of a plane's row.
    pub fn width(&self) -> usize {
        self.columns.len() + self.zeros.len()
    }

    /// Lines of all channels.
    pub fn len(&self, channels: usize) -> usize {
        channels * self.plane
    }

    fn cut(mut self, tile: Tile, grid_rows: usize, rows: impl Fn(usize) -> usize) -> Planes {
        let whole = grid_rows.next_multiple_of(tile.rows).max(tile.rows);
        let row = self.width() * self.from.channels;
        let lines = |band: usize| rows(band) * row;
        self.band = tile.rows;
        while self.band < whole && lines(self.band + tile.rows) <= BAND_LINES {
            self.band += tile.rows;
        }
        // Bands of about equal height.
        let bands = whole.div_ceil(self.band);
        self.band = whole.div_ceil(bands).next_multiple_of(tile.rows);
        self.rows = rows(self.band);
        let plane = self.rows * self.width();
        // An odd distance spreads channels over all sets of a cache; a plane that is one tile is dense already.
        self.plane = if plane == tile.lines() { plane } else { plane | 1 };
        self
    }
}

/// Splits the lines of a plane's row, each of a column or none, into those that hold a column and those of zeros.
fn columns_and_zeros(
    width: usize,
    column: impl Fn(usize) -> Option<usize>,
) -> (Vec<(usize, usize)>, Vec<usize>) {
    let mut columns: Vec<_> = (0..width).filter_map(|line| Some((column(line)?, line))).collect();
    columns.sort_unstable();
    (columns, (0..width).filter(|&line| column(line).is_none()).collect())
}

/// The planes of x that results y read.
pub fn forward_planes(s: &ConvShape, tile: Tile) -> Planes {
    let (x, y) = sides(s, tile);
    let ([sy, sx], [dy, dx]) = (s.stride, s.dilation);
    let width = y.width.next_multiple_of(tile.columns);
    // Columns that a stride passes over lie apart, one run per remainder, so that a tap's results are neighbours.
    let mut runs: Vec<usize> = (0..s.kw).map(|kx| kx * dx % sx).collect();
    runs.sort_unstable();
    runs.dedup();
    let run = width + (s.kw - 1) * dx / sx;
    let column = |i: usize| {
        let padded = i % run * sx + runs[i / run];
        padded.checked_sub(s.pad_begin[1]).filter(|&c| c < x.width)
    };
    let row = runs.len() * run;
    let (columns, zeros) = columns_and_zeros(row, column);
    let taps = (0..s.kh * s.kw).map(|t| {
        let (ky, kx) = (t / s.kw, t % s.kw);
        let which = runs.iter().position(|&r| r == kx * dx % sx).expect("a run for every tap");
        ky * dy * row + which * run + kx * dx / sx
    });
    let (taps, step) = (taps.collect(), sy * row);
    let row_shift = -(s.pad_begin[0] as isize);
    let planes =
        Planes { from: x, band: 0, rows: 0, columns, zeros, step, plane: 0, taps, row_scale: sy, row_shift };
    planes.cut(tile, y.height, |band| (band - 1) * sy + (s.kh - 1) * dy + 1)
}

/// The planes of dy that results dx read. A stride cuts dx into phases (one per remainder of row and column); every tap
/// belongs to one phase.
pub fn backward_planes(s: &ConvShape, tile: Tile) -> Planes {
    let (x, y) = sides(s, tile);
    let reach = |k: usize, axis: usize| {
        let tap = |k| phase_and_shift(s, k, axis).1;
        let (mut low, mut high) = (isize::MAX, isize::MIN);
        for k in 0..k {
            (low, high) = (low.min(tap(k)), high.max(tap(k)));
        }
        (low, high)
    };
    let ((low_y, high_y), (low_x, high_x)) = (reach(s.kh, 0), reach(s.kw, 1));
    let width = x.width.div_ceil(s.stride[1]).next_multiple_of(tile.columns);
    let row = width + (high_x - low_x) as usize;
    let column = |i: usize| usize::try_from(i as isize + low_x).ok().filter(|&c| c < y.width);
    let (columns, zeros) = columns_and_zeros(row, column);
    let taps = (0..s.kh * s.kw).map(|t| {
        let (ky, kx) = (phase_and_shift(s, t / s.kw, 0).1, phase_and_shift(s, t % s.kw, 1).1);
        (ky - low_y) as usize * row + (kx - low_x) as usize
    });
    let taps = taps.collect();
    let planes = Planes {
        from: y,
        band: 0,
        rows: 0,
        columns,
        zeros,
        step: row,
        plane: 0,
        taps,
        row_scale: 1,
        row_shift: low_y,
    };
    let grid_rows = x.height.div_ceil(s.stride[0]);
    planes.cut(tile, grid_rows, |band| band + (high_y - low_y) as usize)
}

/// The planes of dy that go with bands of [`forward_planes`]: every result at its place, zeros around.
pub fn result_planes(s: &ConvShape, tile: Tile, forward: &Planes) -> Planes {
    let y = sides(s, tile).1;
    let width = y.width.next_multiple_of(tile.columns);
    let plane = forward.band * width;
    let (columns, zeros) = columns_and_zeros(width, |c| (c < y.width).then_some(c));
    Planes {
        from: y,
        band: forward.band,
        rows: forward.band,
        columns,
        zeros,
        step: width,
        plane: if plane == tile.lines() { plane } else { plane | 1 },
        taps: vec![0],
        row_scale: 1,
        row_shift: 0,
    }
}

/// The remainder of the rows (axis 0) or columns (axis 1) of dx that tap `k` adds to, and the place of dy that the first
/// of them takes from.
fn phase_and_shift(s: &ConvShape, k: usize, axis: usize) -> (usize, isize) {
    let (stride, ahead) =
        (s.stride[axis] as isize, (k * s.dilation[axis]) as isize - s.pad_begin[axis] as isize);
    let phase = ahead.rem_euclid(stride);
    (phase as usize, (phase - ahead) / stride)
}

/// The phase of dx that tap `t` adds to, counted row by row.
pub fn phase(s: &ConvShape, t: usize) -> usize {
    phase_and_shift(s, t / s.kw, 0).0 * s.stride[1] + phase_and_shift(s, t % s.kw, 1).0
}

/// Lines of one input channel that a tile of results reads at most.
pub fn lines_per_channel(s: &ConvShape, tile: Tile, backward: bool) -> usize {
    let along = |k: usize, axis: usize, tile: usize| {
        let reach = (k - 1) * s.dilation[axis];
        let span =
            if backward { tile + reach / s.stride[axis] } else { (tile - 1) * s.stride[axis] + reach + 1 };
        span.min(tile * k)
    };
    along(s.kh, 0, tile.rows) * along(s.kw, 1, tile.columns)
}

/// Scratch lines.
pub fn at_least(lines: &mut Vec<Line>, len: usize) -> &mut [Line] {
    if lines.len() < len {
        lines.resize(len, Line([0.0; LANES]));
    }
    &mut lines[..len]
}
