//! Runs that are only timed.

use crate::memory::AlignedBytes;
use crate::plan::{Bases, Blob, Fault, Plan};
use crate::target::Isa;
use crate::workers::{Apart, Workers};
use lacuna_ir::{Graph, ValueId};
use std::time::{Duration, Instant};

/// Runs of a plan whose results nobody wants: inputs are zeros.
pub struct Trial<'a> {
    arena: &'a mut AlignedBytes,
    workers: &'a mut Workers,
    isa: Isa,
    inputs: Vec<AlignedBytes>,
    outputs: Vec<AlignedBytes>,
}

impl Trial<'_> {
    pub fn new<'a>(g: &Graph, isa: Isa, arena: &'a mut AlignedBytes, workers: &'a mut Workers) -> Trial<'a> {
        let zeros = |&v: &ValueId| {
            let dims = g.fixed_shape(v).unwrap_or_default();
            AlignedBytes::zeroed(dims.iter().product::<usize>() * g.value_dtype[v].size())
        };
        let [inputs, outputs] = [&g.inputs, &g.outputs].map(|list| list.iter().map(zeros).collect());
        Trial { arena, workers, isa, inputs, outputs }
    }

    pub fn run(&mut self, plan: &Plan, blobs: &[Blob], times: &mut [u64]) {
        let inputs: Vec<*const u8> = self.inputs.iter().map(|x| x.as_ptr()).collect();
        let outputs: Vec<*mut u8> = self.outputs.iter_mut().map(|y| y.as_mut_ptr()).collect();
        // Zeros may be refused by an op: that is no matter here.
        let fault = Fault::default();
        let bases = Bases {
            arena: self.arena.as_mut_ptr(),
            weights: blobs.as_ptr(),
            inputs: inputs.as_ptr(),
            outputs: outputs.as_ptr(),
            isa: self.isa,
            fault: &fault,
        };
        // SAFETY: the arena is as large as the plan asks for, inputs and outputs are at least as large as the dims the
        // plan was built for, and every blob that the plan's rows name is in the table.
        unsafe { self.workers.run(plan, &bases, Some(times)) };
    }

    /// The best of a few runs.
    pub fn time(&mut self, plan: &Plan, blobs: &[Blob], runs: usize) -> Duration {
        let mut times = vec![0; plan.steps()];
        best_of(runs, || self.run(plan, blobs, &mut times))
    }

    /// The best of a few runs of all pieces of a batch, each on a thread of its own.
    pub fn time_apart(&mut self, plan: &Plan, blobs: &[Blob], pieces: usize, runs: usize) -> Duration {
        let inputs = rows_of_pieces(&mut self.inputs, pieces);
        let outputs = rows_of_pieces(&mut self.outputs, pieces);
        let fault = Fault::default();
        let bases = Bases {
            arena: self.arena.as_mut_ptr(),
            weights: blobs.as_ptr(),
            inputs: inputs.as_ptr().cast(),
            outputs: outputs.as_ptr(),
            isa: self.isa,
            fault: &fault,
        };
        let apart = Apart {
            pieces,
            arena_bytes: plan.arena_bytes,
            inputs: self.inputs.len(),
            outputs: self.outputs.len(),
        };
        // SAFETY: as in `run`; the arena is large enough for all threads ([`crate::batch::measure_ways`]), and pieces are
        // parts of inputs and outputs of the whole batch.
        best_of(runs, || unsafe { self.workers.run_apart(plan, &bases, apart, None) })
    }
}

/// Where each operand of each piece begins.
fn rows_of_pieces(operands: &mut [AlignedBytes], pieces: usize) -> Vec<*mut u8> {
    let starts: Vec<(*mut u8, usize)> =
        operands.iter_mut().map(|bytes| (bytes.as_mut_ptr(), bytes.len() / pieces)).collect();
    (0..pieces)
        .flat_map(|piece| starts.iter().map(move |&(start, each)| start.wrapping_add(piece * each)))
        .collect()
}

fn best_of(runs: usize, mut run: impl FnMut()) -> Duration {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..runs).map(time).min().unwrap_or_default()
}
