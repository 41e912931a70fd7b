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
    /// Checks that every tile lies in the lines, and the rows in the entries.
    fn check(&self, tile: Tile) {
        let farthest = self.offsets.iter().fold(0, |most, &offset| most.max(offset));
        let last = farthest as usize + (tile.rows - 1) * self.step + tile.columns;
        assert!(last <= self.lines.len() && !self.starts.is_empty());
        assert!(self.starts[self.starts.len() - 1] as usize <= self.entries.len());
    }
}

/// Adds to the tile of each row, `sums[row][tile.rows * tile.columns]`, its open weights times the lines they see. The
/// sums of row r start from `fresh[r]`, if there is such, whatever they held.
pub fn accumulate(isa: Isa, tile: Tile, block: &Block, fresh: Option<&[f32]>, sums: &mut [Line]) {
    block.check(tile);
    let rows = block.starts.len() - 1;
    assert!(sums.len() == rows * tile.lines() && fresh.is_none_or(|f| f.len() == rows));
    match isa {
        // SAFETY: the processor has the instructions; bounds are checked above, places by `List`.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe {
            match (tile.rows, tile.columns) {
                (2, 4) => avx512::accumulate::<2, 4>(block, fresh, sums),
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
/// lines that the weight sees; `fresh` starts the sums from zero. Row r's tile begins at `others[r * plane]`, its rows
/// `others_step` apart.
pub fn correlate(
    isa: Isa,
    tile: Tile,
    block: &Block,
    (others, plane, others_step): (&[Line], usize, usize),
    fresh: bool,
    sums: &mut [Line],
) {
    block.check(tile);
    let rows = block.starts.len() - 1;
    assert!(rows == 0 || (rows - 1) * plane + (tile.rows - 1) * others_step + tile.columns <= others.len());
    assert!(sums.len() == (block.starts[rows] - block.starts[0]) as usize);
    let others = (others, plane, others_step);
    match isa {
        // SAFETY: the processor has the instructions; bounds are checked above, places by `List`.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe {
            match (tile.rows, tile.columns) {
                (2, 4) => avx512::correlate::<2, 4>(block, others, fresh, sums),
                (1, 8) => avx512::correlate::<1, 8>(block, others, fresh, sums),
                _ => unreachable!("no tile of {tile:?}"),
            }
        },
        // SAFETY: the processor has the instructions.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { correlate_avx2(tile, block, others, fresh, sums) },
        _ => correlate_plain::<false>(tile, block, others, fresh, sums),
    }
}

/// The sum of each line's lanes.
pub fn sum_lines(isa: Isa, lines: &[Line], sums: &mut [f32]) {
    assert!(lines.len() == sums.len());
    #[cfg(target_arch = "x86_64")]
    let (lines, sums) = if isa == Isa::Avx512 {
        // SAFETY: the processor has the instructions.
        unsafe { avx512::sum_lines(lines, sums) };
        let whole = lines.len() / LANES * LANES;
        (&lines[whole..], &mut sums[whole..])
    } else {
        (lines, sums)
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    for (line, sum) in lines.iter().zip(sums) {
        *sum = line.0.iter().sum();
    }
}

/// The weights of `w` that are not +0.0, each with its index, into the front of `open`; returns how many. `open` has room
/// for 16 more than all.
pub fn compress(isa: Isa, w: &[f32], open: &mut [Entry]) -> usize {
    assert!(open.len() >= w.len() + LANES);
    #[cfg(target_arch = "x86_64")]
    let (mut count, first) = match isa {
        // SAFETY: the processor has the instructions; there is room, as checked.
        Isa::Avx512 => (unsafe { avx512::compress(w, open) }, w.len() / LANES * LANES),
        _ => (0, 0),
    };
    #[cfg(not(target_arch = "x86_64"))]
    let (mut count, first, _) = (0, 0, isa);
    for (place, &value) in w.iter().enumerate().skip(first) {
        // Written always and kept if open: a branch here would be guessed wrong at every open weight.
        open[count] = Entry { value, place: place as u32 };
        count += usize::from(value.to_bits() != 0);
    }
    count
}

/// `lines[channel * plane][lane]` = `data[lane * stride + channel]` for `channels` channels; lanes from `lanes` on are 0.
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
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    for channel in 0..channels {
        let line = &mut lines[channel * plane].0;
        line.fill(0.0);
        for (lane, v) in line[..lanes].iter_mut().enumerate() {
            *v = data[lane * stride + channel];
        }
    }
}

/// `data[lane * stride + channel]` = `lines[channel * plane][lane]` for all 16 lanes. Channels up to the next multiple of 16
/// may be overwritten.
pub fn scatter(isa: Isa, lines: &[Line], plane: usize, channels: usize, stride: usize, data: &mut [f32]) {
    assert!(channels > 0 && (channels - 1) * plane < lines.len());
    let whole = channels.next_multiple_of(LANES);
    assert!(whole <= stride && (LANES - 1) * stride + whole <= data.len());
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 {
        // SAFETY: the processor has the instructions; bounds are checked above.
        return unsafe { avx512::scatter(lines, plane, channels, stride, data) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    for channel in 0..channels {
        for (lane, v) in lines[channel * plane].0.iter().enumerate() {
            data[lane * stride + channel] = *v;
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
    fresh: bool,
    sums: &mut [Line],
) {
    for (r, pair) in block.starts.windows(2).enumerate() {
        let others = &others[r * plane..];
        for at in pair[0] as usize..pair[1] as usize {
            let offset = block.offsets[block.entries[at].place as usize] as usize;
            let sum = &mut sums[at - block.starts[0] as usize].0;
            let mut acc = if fresh { [0.0; LANES] } else { *sum };
            for i in 0..tile.rows {
                let x = &block.lines[offset + i * block.step..][..tile.columns];
                for (other, x) in others[i * others_step..].iter().zip(x) {
                    for ((acc, &x), &other) in acc.iter_mut().zip(&x.0).zip(&other.0) {
                        *acc = multiply_add::<FUSED>(other, x, *acc);
                    }
                }
            }
            *sum = acc;
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
fn correlate_avx2(
    tile: Tile,
    block: &Block,
    others: (&[Line], usize, usize),
    fresh: bool,
    sums: &mut [Line],
) {
    correlate_plain::<true>(tile, block, others, fresh, sums)
}

#[cfg(target_arch = "x86_64")]
#[path = "avx512.rs"]
mod avx512;
