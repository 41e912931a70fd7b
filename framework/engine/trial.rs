//! Runs that are only timed.

use crate::batch::point_at;
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

    /// Where inputs and outputs of each piece begin.
    fn rows(&mut self, pieces: usize) -> [Vec<*mut u8>; 2] {
        [&mut self.inputs, &mut self.outputs].map(|operands| rows_of_pieces(operands, pieces))
    }

    fn bases(&mut self, blobs: &[Blob], [inputs, outputs]: &[Vec<*mut u8>; 2], fault: &Fault) -> Bases {
        Bases {
            arena: self.arena.as_mut_ptr(),
            weights: blobs.as_ptr(),
            inputs: inputs.as_ptr().cast(),
            outputs: outputs.as_ptr(),
            isa: self.isa,
            fault,
        }
    }

    /// `times` as for [`Workers::run`].
    pub fn run(&mut self, plan: &Plan, blobs: &[Blob], times: Option<&mut [u64]>) {
        // Zeros may be refused by an op: that is no matter here.
        let (rows, fault) = (self.rows(1), Fault::default());
        let bases = self.bases(blobs, &rows, &fault);
        // SAFETY: the arena is as large as the plan asks for, inputs and outputs are at least as large as the dims the
        // plan was built for, and every blob that the plan's rows name is in the table.
        unsafe { self.workers.run(plan, &bases, times) };
    }

    /// The best of a few runs.
    pub fn time(&mut self, plan: &Plan, blobs: &[Blob], runs: usize) -> Duration {
        best_of(runs, || self.run(plan, blobs, None))
    }

    /// The best of a few runs of all pieces of a batch, each on a thread of its own.
    pub fn time_apart(&mut self, plan: &Plan, blobs: &[Blob], pieces: usize, runs: usize) -> Duration {
        let (rows, fault) = (self.rows(pieces), Fault::default());
        let bases = self.bases(blobs, &rows, &fault);
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

fn rows_of_pieces(operands: &mut [AlignedBytes], pieces: usize) -> Vec<*mut u8> {
    let mut table = vec![std::ptr::null_mut(); pieces * operands.len()];
    let starts = operands.iter_mut().map(|bytes| (bytes.as_mut_ptr(), bytes.len() / pieces));
    point_at(&mut table, pieces, starts);
    table
}

fn best_of(runs: usize, mut run: impl FnMut()) -> Duration {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..runs).map(time).min().unwrap_or_default()
}
