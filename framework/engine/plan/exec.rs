//! Runs one part of one step.

use super::bands;
use super::fallback::run_reference;
use super::{Blob, ConvStep, Fault, Plan, Slot, Space, StepKind};
use crate::kernels::steps::{self, ARGS_MAX, AttentionOperands, NormOperands, OPERANDS_MAX};
use crate::kernels::{CONV_KERNELS, ConvGeom, Operands, Tile};
use crate::target::Isa;

/// Where the spaces begin.
#[derive(Clone, Copy, Debug)]
pub struct Bases {
    pub arena: *mut u8,
    /// One row per blob.
    pub weights: *const Blob,
    /// One pointer per input, per output.
    pub inputs: *const *const u8,
    pub outputs: *const *mut u8,
    pub isa: Isa,
    /// Where a step says that it failed; outlives the run.
    pub fault: *const Fault,
}

impl Bases {
    /// # Safety
    /// The slot belongs to the plan these bases were set up for.
    pub(super) unsafe fn at(&self, slot: Slot) -> *mut u8 {
        // SAFETY: the plan's offsets lie inside its spaces.
        unsafe {
            match slot.space {
                Space::Arena => self.arena.add(slot.offset),
                Space::Weights(blob) => (*self.weights.add(blob as usize)).start.add(slot.offset).cast_mut(),
                Space::Input(i) => (*self.inputs.add(i as usize)).add(slot.offset).cast_mut(),
                Space::Output(i) => (*self.outputs.add(i as usize)).add(slot.offset),
            }
        }
    }
}

/// Runs part `part` of `parts` of a step. If the step runs others, the nanoseconds of these are added to `times`, and the
/// result is their sum.
///
/// # Safety
/// `bases` holds an arena of the plan's size, the weights it was built with, and for every input and output of
/// its graph memory of that value's dtype and shape, aligned for it. All parts of earlier steps are done (up to
/// the last barrier), and no two calls do the same part.
pub unsafe fn run_step(
    plan: &Plan,
    bases: &Bases,
    step: usize,
    part: usize,
    parts: usize,
    times: Option<&mut [u64]>,
) -> u64 {
    let parts = parts.min(plan.step_parts[step] as usize);
    if part >= parts {
        return 0;
    }
    let row = plan.step_row[step] as usize;
    let slots = plan.step_args[step].of(&plan.args);
    let mut p = [std::ptr::null_mut(); OPERANDS_MAX];
    // SAFETY: slots, tables and geometries were made together by `build`, which keeps every operand inside its
    // buffer and gives x and residual of convolutions readable bytes around them.
    unsafe {
        if plan.step_kind[step] == StepKind::Reference {
            run_reference(plan, step, slots, bases);
            return 0;
        }
        if plan.step_kind[step] == StepKind::Bands {
            return bands::run(plan, bases, &plan.bands[row], part, parts, times);
        }
        for (p, &slot) in p.iter_mut().zip(slots) {
            *p = bases.at(slot);
        }
        match plan.step_kind[step] {
            StepKind::Conv => run_conv(&plan.convs[row], bases, first(p), part, parts),
            StepKind::Map => steps::run_map(bases.isa, &plan.maps[row], first(p), part, parts),
            StepKind::Fill => steps::run_fill(&plan.fills[row], p[0], part, parts),
            StepKind::Pool => steps::run_pool(bases.isa, &plan.pools[row], p[0], p[1], part, parts),
            StepKind::Mean => steps::run_mean(bases.isa, &plan.means[row], p[0], p[1], part, parts),
            StepKind::Reduce => {
                steps::run_reduce(bases.isa, &plan.reduces[row], p[0].cast(), p[1].cast(), part, parts)
            }
            StepKind::MatMul => steps::run_matmul(bases.isa, &plan.matmuls[row], first(p), part, parts),
            StepKind::Pixels => steps::run_pixels(bases.isa, &plan.pixels[row], first(p), part, parts),
            StepKind::Gather => steps::run_gather(&plan.gathers[row], p[0], p[1], p[2], part, parts),
            StepKind::Reference | StepKind::Bands => {}
            StepKind::Norm => {
                let [y, x, a, b, scale, bias] = p;
                let (x, scale, bias) = (x.cast(), scale.cast(), bias.cast());
                let operands = NormOperands { y, x, a, b, scale, bias };
                steps::run_norm(bases.isa, &plan.norms[row], operands, part, parts)
            }
            StepKind::Lstm => {
                let operands = std::array::from_fn(|i| p[i].cast());
                steps::run_lstm(bases.isa, &plan.lstms[row], operands, part, parts)
            }
            StepKind::Attention => {
                let [y, q, k, v, mask, scratch] = p;
                let operands = AttentionOperands { y, q, k, v, mask: mask.cast(), scratch };
                steps::run_attention(bases.isa, &plan.attentions[row], operands, part, parts)
            }
        }
    }
    0
}

/// The operands of steps that have few.
fn first(p: [*mut u8; OPERANDS_MAX]) -> [*mut u8; ARGS_MAX] {
    std::array::from_fn(|i| p[i])
}

unsafe fn run_conv(s: &ConvStep, bases: &Bases, p: [*mut u8; ARGS_MAX], part: usize, parts: usize) {
    let tile = s.tile(part, parts);
    if tile.is_empty() {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { run_tile(s, &s.geom, bases, [p[0], p[1], p[2]], &tile) };
}

/// Runs a layer, placed as `g` says, for one tile of its result: x, y, residual.
///
/// # Safety
/// As [`run_step`]; nobody else writes what the tile reads or writes.
pub(super) unsafe fn run_tile(
    s: &ConvStep,
    g: &ConvGeom,
    bases: &Bases,
    [x, y, r]: [*mut u8; 3],
    tile: &Tile,
) {
    // SAFETY: the blob is one of the weights' (`run_step`); the kernel was chosen for this processor and
    // geometry.
    let run = |tile: &Tile| unsafe {
        let blob = *bases.weights.add(s.weights as usize);
        let packed = std::slice::from_raw_parts(blob.start, blob.len);
        let operands = Operands { geom: *g, epilogue: s.epilogue, packed, x, r, y, tile: tile.clone() };
        (CONV_KERNELS[s.kernel].run)(&operands);
    };
    let Some(then) = s.then else { return run(tile) };
    // Results become what they are to be while they are in the caches.
    let lines = match BAND as usize / tile.cols.len() {
        // Whole tiles of Winograd's kernels.
        lines @ LINES.. => lines / LINES * LINES,
        lines => lines.max(1),
    };
    let starts = tile.rows.clone().step_by(lines);
    let bands = starts.flat_map(|row| tile.cols.clone().step_by(BAND as usize).map(move |col| (row, col)));
    for (row, col) in bands {
        let rows = row..(row + lines as u32).min(tile.rows.end);
        let band = Tile { rows, cols: col..(col + BAND).min(tile.cols.end), ocs: tile.ocs.clone() };
        run(&band);
        let (width, step) = (band.ocs.len(), g.y_pixel as usize);
        let joined = width == step;
        for row in band.rows.clone() {
            let first = g.y_at(row, band.cols.start) + band.ocs.start as usize;
            for col in 0..if joined { 1 } else { band.cols.len() } {
                let count = if joined { band.cols.len() * width } else { width };
                // SAFETY: channels of pixels of this tile, which the kernel has written.
                unsafe {
                    let y = y.cast::<f32>().add(first + col * step);
                    steps::run_in_place(bases.isa, then.map, y, count);
                    if let Some([scale, shift]) = then.affine {
                        steps::run_affine(bases.isa, y, count, scale, shift);
                    }
                };
            }
        }
    }
}

/// Lines of the largest tiles that kernels cut results into.
const LINES: usize = 4;
/// Pixels after which a layer's results become what they are to be: as many as kernels take at a time.
const BAND: u32 = 480;
