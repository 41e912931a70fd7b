//! What runs per tile of results, for each instruction set.
//!
//! A tile is `R` rows by `C` columns of lines. Its shape is a constant of the compiled code, so that its sums stay in
//! registers while the open weights of a row go by.

use super::pattern::Entry;
use super::{LANES, Line, Tile};
use crate::isa::Isa;

/// The open weights of some rows in one block of channels, and the lines they multiply.
#[derive(Clone, Copy)]
pub struct Block<'a> {
    /// Row r owns `entries[starts[r]..starts[r + 1]]`.
    pub starts: &'a [u32],
    pub entries: &'a [Entry],
    /// By place: lines from the tile's first line to what the weight multiplies.
    pub offsets: &'a [u32],
    /// From the tile's first line of the block's first channel on.
    pub lines: &'a [Line],
    /// Lines from one row of the tile to the next.
    pub step: usize,
}

impl Block<'_> {
    /// Checks everything the kernels rely on; `farthest` is the largest of `offsets`.
    #[inline(always)]
    fn check(&self, tile: Tile, farthest: u32) {
        let last = farthest as usize + (tile.rows - 1) * self.step + tile.columns;
        assert!(last <= self.lines.len() && !self.starts.is_empty());
        assert!(self.starts[self.starts.len() - 1] as usize <= self.entries.len());
    }
}

/// Adds to the tile of each row, `sums[row][tile.rows * tile.columns]`, its open weights times the lines they see. The
/// sums start from `initial(row)` when `fresh` says so.
pub fn accumulate(
    isa: Isa,
    tile: Tile,
    block: &Block,
    farthest: u32,
    fresh: Option<&[f32]>,
    sums: &mut [Line],
) {
    block.check(tile, farthest);
    let rows = block.starts.len() - 1;
    assert!(sums.len() == rows * tile.rows * tile.columns && fresh.is_none_or(|f| f.len() == rows));
    match isa {
        // SAFETY: the processor has the instructions; bounds are checked above, places by `List`.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe {
            match (tile.rows, tile.columns) {
                (2, 4) => avx512::accumulate::<2, 4>(block, fresh, sums),
                (1, 4) => avx512::accumulate::<1, 4>(block, fresh, sums),
                (1, 8) => avx512::accumulate::<1, 8>(block, fresh, sums),
                _ => unreachable!("no tile of {tile:?}"),
            }
        },
        // SAFETY: the processor has the instructions.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { accumulate_avx2(tile, block, fresh, sums) },
        _ => accumulate_plain::<false>(tile, block, fresh, sums),
    }
}

/// Adds to `sums[entry]`, one line per open weight of the block, the products of the row's tile of `others` with the
/// lines that the weight sees. Row r's tile begins at `others[r * plane]`, its rows `others_step` apart.
pub fn correlate(
    isa: Isa,
    tile: Tile,
    block: &Block,
    farthest: u32,
    (others, plane, others_step): (&[Line], usize, usize),
    sums: &mut [Line],
) {
    block.check(tile, farthest);
    let rows = block.starts.len() - 1;
    assert!(rows == 0 || (rows - 1) * plane + (tile.rows - 1) * others_step + tile.columns <= others.len());
    assert!(sums.len() == (block.starts[rows] - block.starts[0]) as usize);
    let others = (others, plane, others_step);
    match isa {
        // SAFETY: the processor has the instructions; bounds are checked above, places by `List`.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe {
            match (tile.rows, tile.columns) {
                (2, 4) => avx512::correlate::<2, 4>(block, others, sums),
                (1, 4) => avx512::correlate::<1, 4>(block, others, sums),
                (1, 8) => avx512::correlate::<1, 8>(block, others, sums),
                _ => unreachable!("no tile of {tile:?}"),
            }
        },
        // SAFETY: the processor has the instructions.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { correlate_avx2(tile, block, others, sums) },
        _ => correlate_plain::<false>(tile, block, others, sums),
    }
}

/// lines[channel * plane][lane] = data[lane * stride + channel] for `channels` channels; lanes from `lanes` on are 0.
pub fn gather(
    isa: Isa,
    data: &[f32],
    stride: usize,
    lanes: usize,
    channels: usize,
    plane: usize,
    lines: &mut [Line],
) {
    assert!(lanes <= LANES && (lanes == 0 || (lanes - 1) * stride + channels <= data.len()));
    assert!(channels == 0 || (channels - 1) * plane < lines.len());
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 && lanes > 0 {
        // SAFETY: the processor has the instructions; bounds are checked above.
        return unsafe { avx512::gather(data, stride, lanes, channels, plane, lines) };
    }
    for channel in 0..channels {
        let line = &mut lines[channel * plane].0;
        line.fill(0.0);
        for (lane, v) in line[..lanes].iter_mut().enumerate() {
            *v = data[lane * stride + channel];
        }
    }
}

/// rows[lane][channel] = lines[channel * plane][lane]; up to 16 rows of up to 16 channels.
pub fn scatter(isa: Isa, lines: &[Line], plane: usize, rows: [&mut [f32]; LANES]) {
    let channels = rows[0].len();
    assert!(channels > 0 && channels <= LANES && (channels - 1) * plane < lines.len());
    assert!(rows.iter().all(|row| row.is_empty() || row.len() == channels));
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 {
        // SAFETY: the processor has the instructions; bounds are checked above.
        return unsafe { avx512::scatter(lines, plane, channels, rows) };
    }
    for (lane, row) in rows.into_iter().enumerate() {
        for (channel, v) in row.iter_mut().enumerate() {
            *v = lines[channel * plane].0[lane];
        }
    }
}

#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn accumulate_plain<const FUSED: bool>(tile: Tile, block: &Block, fresh: Option<&[f32]>, sums: &mut [Line]) {
    let lines = tile.rows * tile.columns;
    for (r, sums) in sums.chunks_exact_mut(lines).enumerate() {
        let entries = &block.entries[block.starts[r] as usize..block.starts[r + 1] as usize];
        for (i, sums) in sums.chunks_exact_mut(2).enumerate() {
            let first = (2 * i / tile.columns) * block.step + 2 * i % tile.columns;
            let mut acc = [sums[0].0, sums[1].0];
            if let Some(fresh) = fresh {
                acc = [[fresh[r]; LANES]; 2];
            }
            for e in entries {
                let at = first + block.offsets[e.place as usize] as usize;
                let x: &[Line; 2] = block.lines[at..at + 2].try_into().expect("two lines");
                for (acc, x) in acc.iter_mut().zip(x) {
                    for (acc, &x) in acc.iter_mut().zip(&x.0) {
                        *acc = multiply_add::<FUSED>(e.value, x, *acc);
                    }
                }
            }
            (sums[0].0, sums[1].0) = (acc[0], acc[1]);
        }
    }
}

#[inline(always)]
fn correlate_plain<const FUSED: bool>(
    tile: Tile,
    block: &Block,
    (others, plane, others_step): (&[Line], usize, usize),
    sums: &mut [Line],
) {
    for (r, pair) in block.starts.windows(2).enumerate() {
        let others = &others[r * plane..];
        for at in pair[0] as usize..pair[1] as usize {
            let offset = block.offsets[block.entries[at].place as usize] as usize;
            let mut acc = sums[at - block.starts[0] as usize].0;
            for i in 0..tile.rows {
                let x = &block.lines[offset + i * block.step..][..tile.columns];
                for (other, x) in others[i * others_step..].iter().zip(x) {
                    for ((acc, &x), &other) in acc.iter_mut().zip(&x.0).zip(&other.0) {
                        *acc = multiply_add::<FUSED>(other, x, *acc);
                    }
                }
            }
            sums[at - block.starts[0] as usize].0 = acc;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn accumulate_avx2(tile: Tile, block: &Block, fresh: Option<&[f32]>, sums: &mut [Line]) {
    accumulate_plain::<true>(tile, block, fresh, sums)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn correlate_avx2(tile: Tile, block: &Block, others: (&[Line], usize, usize), sums: &mut [Line]) {
    correlate_plain::<true>(tile, block, others, sums)
}

#[cfg(target_arch = "x86_64")]
#[path = "avx512.rs"]
mod avx512;
