//! The plan: a flat program for one binding of the symbolic dimensions.
//!
//! Row `i` of every `step_*` column describes step `i`. A step's kind picks a parameter table, `step_row` the row
//! in it, `step_args` its operands: `(space, offset)` pairs into the arena, the packed weights, the caller's
//! inputs or outputs. Running a plan walks these arrays; it allocates nothing, follows no trait object and
//! takes no lock, except in steps of the reference path (`fallback.rs`).

mod arena;
mod bands;
mod build;
mod cache;
mod choose;
mod conv;
mod cost;
mod exec;
mod fallback;
mod join;
mod meetings;
mod order;
mod place;
mod recurrent;
mod rows;
mod side_by_side;
mod spread;
mod weights;

use crate::kernels::steps::{
    AttentionStep, FillStep, GatherStep, LstmStep, MapOp, MapStep, MatMulStep, MeanStep, NormStep,
    PixelsStep, PoolStep, ReduceStep, share,
};
use crate::kernels::{ConvGeom, QEpilogue, Tile};
use lacuna_ir::flow::Bodies;
use lacuna_ir::{Range32, ValueId};

pub use bands::{BandLayer, BandStep};
pub use build::{Built, build};
pub use cache::folder as cache_folder;
pub use cache::store as store_choices;
pub use choose::{How, KernelChoice, measure};
pub use conv::packed_constants;
pub use exec::{Bases, run_step};
pub use fallback::{BodySessions, Fault, ReferenceStep, fault_error};
pub use order::Orders;
pub use place::{Place, Root};
pub use weights::{Blob, Weights};

/// The most bytes an arena may have.
pub const ARENA_BYTES_MAX: u64 = 1 << 36;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepKind {
    Conv,
    Map,
    Fill,
    Pool,
    Mean,
    Reduce,
    MatMul,
    Gather,
    Pixels,
    Norm,
    Attention,
    Lstm,
    /// Layers whose own steps do nothing.
    Bands,
    /// The op table's own function.
    Reference,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Arena,
    /// A blob of the packed weights.
    Weights(u32),
    Input(u32),
    Output(u32),
}

/// An operand: bytes from the start of its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub space: Space,
    pub offset: usize,
}

/// What threads divide among themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Rows,
    /// Blocks of so many columns.
    Cols(u32),
    /// Blocks of so many output channels.
    Channels(u32),
    /// Nothing: a step behind this one runs it, a band of lines at a time.
    Banded,
}

/// Operands x, y and, if the epilogue has one, the residual: starts of their buffers.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvStep {
    /// Row of `CONV_KERNELS`.
    pub kernel: usize,
    pub geom: ConvGeom,
    pub epilogue: QEpilogue,
    /// Blob of the packed weights.
    pub weights: u32,
    pub split: Split,
    pub then: Option<Then>,
}

impl ConvStep {
    /// What a part of the step computes.
    fn tile(&self, part: usize, parts: usize) -> Tile {
        let g = &self.geom;
        let block = |total: u32, size: u32| {
            let own = share(total.div_ceil(size) as usize, part, parts);
            (own.start as u32 * size).min(total)..(own.end as u32 * size).min(total)
        };
        let mut tile = Tile { rows: 0..g.rows, cols: 0..g.ow, ocs: 0..g.oc };
        match self.split {
            Split::Rows => tile.rows = block(g.rows, 1),
            Split::Cols(size) => tile.cols = block(g.ow, size),
            Split::Channels(size) => tile.ocs = block(g.oc, size),
            Split::Banded => tile.rows = 0..0,
        }
        tile
    }
}

/// What f32 results become while they are in the caches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Then {
    /// Of one operand.
    pub map: MapOp,
    /// A factor, and what is added after it.
    pub affine: Option<[f32; 2]>,
}

/// What people read about a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepInfo {
    /// Name of the op in the lowered graph.
    pub op: String,
    pub kind: &'static str,
    pub kernel: &'static str,
    /// Elements of the weights, and how many of those packed are not zero.
    pub weights: u64,
    pub nonzeros: u64,
    /// Share of a sparse kernel's slots that hold a weight.
    pub slot_efficiency: Option<f64>,
    pub estimated_ns: f64,
    /// Why this kernel.
    pub reason: String,
}

#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub step_kind: Vec<StepKind>,
    pub step_row: Vec<u32>,
    pub step_args: Vec<Range32>,
    /// How many threads get a part.
    pub step_parts: Vec<u32>,
    /// Whether all threads meet after the step.
    pub step_barrier: Vec<bool>,
    pub args: Vec<Slot>,

    pub convs: Vec<ConvStep>,
    pub maps: Vec<MapStep>,
    pub fills: Vec<FillStep>,
    pub pools: Vec<PoolStep>,
    pub means: Vec<MeanStep>,
    pub reduces: Vec<ReduceStep>,
    pub matmuls: Vec<MatMulStep>,
    pub gathers: Vec<GatherStep>,
    pub pixels: Vec<PixelsStep>,
    pub norms: Vec<NormStep>,
    pub attentions: Vec<AttentionStep>,
    pub lstms: Vec<LstmStep>,
    pub bands: Vec<BandStep>,
    pub band_layers: Vec<BandLayer>,
    pub references: Vec<ReferenceStep>,
    /// Graphs that ops of the reference path run.
    pub bodies: Bodies,
    pub body_sessions: BodySessions,

    /// Inputs whose elements are indices, and how many there are to choose from.
    pub index_limits: Vec<(usize, usize)>,
    /// Blobs of constants that only this plan has.
    pub computed_blobs: Vec<u32>,
    pub arena_bytes: usize,
    /// Not read by a run: one row per step, and where values lie.
    pub step_info: Vec<StepInfo>,
    /// Places of values in buffers and the buffers' offsets in the arena, for those who look at values after a run.
    pub value_place: Vec<(ValueId, Place)>,
    pub buffer_offset: Vec<usize>,
}

impl Plan {
    /// Whether a step may find that it cannot be done.
    pub fn may_fail(&self) -> bool {
        self.step_kind.contains(&StepKind::Reference)
    }

    pub fn steps(&self) -> usize {
        self.step_kind.len()
    }

    /// Takes steps from the end. Their rows of the tables stay, unused.
    fn truncate(&mut self, steps: usize) {
        self.step_kind.truncate(steps);
        self.step_row.truncate(steps);
        self.step_args.truncate(steps);
        self.step_parts.truncate(steps);
        self.step_barrier.truncate(steps);
        self.step_info.truncate(steps);
    }
}
