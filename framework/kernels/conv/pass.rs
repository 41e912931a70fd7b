//! One pass over images: every output is a sum over taps and channels. The forward pass is one, the gradient of the input
//! one per phase of the stride.
//!
//! Tasks are bands of outputs (and panels of output channels, where bands are few). A task lays its part of the image out
//! with its zeros if any are read, and multiplies it with panel after panel of the packed weight, a block of steps at a
//! time.

use super::reading::{Channels, Layout, Reading};
use crate::gemm::STEPS;
use crate::gemm::tile::{self, First, MOST_COLUMNS, Product, Row};
use crate::isa::Isa;
use crate::scratch::{self, Buffer};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Tasks to aim at, and the fewest that keep two threads equally busy.
const TASKS: usize = 16;
const FEWEST_TASKS: usize = 8;

/// Outputs of a band: enough to amortise reading the weights, and no more than this many elements read. One panel of
/// weights stays in L2, several come from farther away.
const FEWEST_OUTPUTS: [usize; 2] = [48, 128];
const BAND_ELEMENTS: usize = 1 << 17;

/// Columns `first..first + columns` of a right operand, packed in rows of `lanes`.
#[derive(Clone, Copy, Debug)]
pub struct Panel {
    pub first: usize,
    pub columns: usize,
}

impl Panel {
    pub fn lanes(&self) -> usize {
        self.columns.next_multiple_of(16)
    }
}

/// Panels of equal width, as far as vectors of 16 allow.
pub fn panels(columns: usize) -> Vec<Panel> {
    let vectors = columns.div_ceil(16);
    let count = vectors.div_ceil(MOST_COLUMNS / 16);
    let cut = |i: usize| (vectors * i / count * 16).min(columns);
    (0..count).map(|i| Panel { first: cut(i), columns: cut(i + 1) - cut(i) }).collect()
}

/// Lays a weight out as `[panel][step][lanes]`: `pack` writes one panel. Lanes beyond the columns are never read.
pub fn pack_panels(
    panels: &[Panel],
    steps: usize,
    out: &mut Buffer,
    pack: impl Fn(&Panel, &mut [f32]) + Sync,
) {
    let len: usize = panels.iter().map(|panel| steps * panel.lanes()).sum();
    let mut rest = out.at_least(len);
    let mut parts = Vec::with_capacity(panels.len());
    for panel in panels {
        let (part, after) = rest.split_at_mut(steps * panel.lanes());
        parts.push((panel, part));
        rest = after;
    }
    if len < 1 << 15 {
        parts.into_iter().for_each(|(panel, part)| pack(panel, part));
    } else {
        parts.into_par_iter().for_each(|(panel, part)| pack(panel, part));
    }
}

/// y(output, panel.first + j) = `bias[j]` + Σ_tap Σ_channel x(pixel of the tap, channel) * weight(step, j)
pub struct Pass<'a> {
    pub isa: Isa,
    pub reading: Reading,
    pub x: &'a [f32],
    pub channels: Channels,
    pub panels: &'a [Panel],
    /// `[panel][packed steps][lanes]`; the pass takes those from `first_step` on, `[tap][channel]`.
    pub weights: &'a [f32],
    pub packed_steps: usize,
    pub first_step: usize,
    pub bias: Option<&'a [f32]>,
    /// Where the outputs of the first image begin, and their distances.
    pub outputs: Layout,
}

/// Steps that one product takes at a time.
struct Block {
    first: usize,
    runs: Range<usize>,
    /// Elements of a run before the block's.
    skip: usize,
    run_len: usize,
}

/// A result that tasks write disjoint elements of, not always in one stretch.
#[derive(Clone, Copy)]
pub struct Target(pub *mut f32);
// SAFETY: tasks write disjoint elements: an output and a column belong to one task.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    pub fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

#[derive(Default)]
struct Scratch {
    copy: Buffer,
    rows: Vec<Row>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Stretches of x that an output reads without a gap: neighbouring taps where pixels lie back to back, otherwise one tap.
fn runs(reading: &Reading, layout: &Layout, channels: usize) -> (Vec<u32>, usize) {
    let offsets: Vec<usize> = reading.tap_offsets(layout).collect();
    let per_row = reading.taps.iter().take_while(|tap| tap[0] == reading.taps[0][0]).count();
    let joined = layout.pixel == channels
        && offsets.chunks(per_row).all(|row| row.windows(2).all(|pair| pair[1] == pair[0] + channels));
    let (step, run_len) = if joined { (per_row, per_row * channels) } else { (1, channels) };
    let offset = |at: usize| u32::try_from(at).expect("taps within 2^32 elements of each other");
    (offsets.into_iter().step_by(step).map(offset).collect(), run_len)
}

fn blocks(runs: usize, run_len: usize) -> Vec<Block> {
    if run_len <= STEPS {
        let group = STEPS / run_len;
        let block = |first: usize| Block {
            first: first * run_len,
            runs: first..(first + group).min(runs),
            skip: 0,
            run_len,
        };
        return (0..runs).step_by(group).map(block).collect();
    }
    let parts = run_len.div_ceil(STEPS);
    let cut = |i: usize| i * run_len / parts;
    let block = |run: usize, i: usize| Block {
        first: run * run_len + cut(i),
        runs: run..run + 1,
        skip: cut(i),
        run_len: cut(i + 1) - cut(i),
    };
    (0..runs).flat_map(|run| (0..parts).map(move |i| block(run, i))).collect()
}

/// # Safety
/// `x`, `weights` and `bias` are as long as reading, channels and panels say, every output and column lies inside `y`, and
/// the reading has taps and outputs.
pub unsafe fn run(pass: &Pass<'_>, y: &mut [f32]) {
    let Pass { reading, channels, panels, .. } = pass;
    let count = channels.count;
    let outputs = reading.n * reading.rows * reading.cols;
    let read = count * reading.stride[0] * reading.stride[1];
    let fewest = FEWEST_OUTPUTS[(panels.len() > 1) as usize];
    let most = (BAND_ELEMENTS / read).max(fewest);
    let bands = reading.bands(outputs.div_ceil(TASKS).clamp(fewest, most));
    let groups = FEWEST_TASKS.div_ceil(bands.len()).min(panels.len());
    let in_place = reading.is_inside();
    let layout_of = |band| {
        if in_place { reading.in_place(band, channels) } else { reading.copied(band, count) }
    };
    let (runs, run_len) = runs(reading, &layout_of(&bands[0]), count);
    let blocks = blocks(runs.len(), run_len);
    let steps = reading.taps.len() * count;
    let y = Target(y.as_mut_ptr());
    (0..bands.len() * groups).into_par_iter().for_each(|task| {
        let (band, group) = (&bands[task / groups], task % groups);
        let panels = &panels[group * panels.len() / groups..(group + 1) * panels.len() / groups];
        let layout = layout_of(band);
        scratch::with(&SCRATCH, |Scratch { copy, rows }| {
            let x = if in_place {
                pass.x
            } else {
                let copy = copy.at_least(reading.copied_len(band, count));
                reading.copy(pass.x, band, channels, copy);
                copy
            };
            rows.clear();
            for image in 0..band.images {
                for row in 0..band.rows {
                    let a = layout.start + image * layout.image + row * reading.stride[0] * layout.row;
                    let to = &pass.outputs;
                    let c = to.start + (band.image + image) * to.image + (band.row + row) * to.row;
                    let (a_step, c_step) = (reading.stride[1] * layout.pixel, to.pixel);
                    rows.extend((0..reading.cols).map(|i| Row { a: a + i * a_step, c: c + i * c_step }));
                }
            }
            let mut offsets = Vec::with_capacity(runs.len());
            for panel in panels {
                let first = panel.first * pass.packed_steps + pass.first_step * panel.lanes();
                let weights = &pass.weights[first..][..panel.lanes() * steps];
                for block in &blocks {
                    offsets.clear();
                    offsets.extend(runs[block.runs.clone()].iter().map(|run| run + block.skip as u32));
                    let product = Product {
                        ahead: None,
                        a: x.as_ptr(),
                        runs: &offsets,
                        run_len: block.run_len,
                        a_step: 1,
                        b: weights[block.first * panel.lanes()..].as_ptr(),
                        b_step: panel.lanes(),
                        c: y.at(panel.first),
                        columns: panel.columns,
                        first: match pass.bias {
                            _ if block.first > 0 => First::Sum,
                            Some(bias) => First::Bias(bias[panel.first..].as_ptr()),
                            None => First::Zero,
                        },
                        last: None,
                    };
                    // SAFETY: the caller's promise; a copy is as long as its layout.
                    unsafe { tile::run(pass.isa, &product, rows) };
                }
            }
        });
    });
}
