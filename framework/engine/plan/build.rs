//! From a lowered graph with fixed shapes to a [`Plan`]: emits steps op by op, then lays out the arena.
//!
//! Reshapes and transposes cost nothing: they are other strides over the same elements. A value is copied only
//! where a reader needs a layout that strides cannot give (a convolution and its border).

use super::arena::{Interval, colour};
use super::bands;
use super::cache;
use super::choose::{Contest, How, settle};
use super::conv;
use super::cost::map_ns;
use super::fallback::emit_reference;
use super::join::{Slice, Slices, slices};
use super::meetings::{kept_until, set_barriers};
use super::place::{Demand, Place, Root, dense_strides};
use super::recurrent;
use super::rows;
use super::spread;
use super::weights::{Requests, Weights, pack};
use super::{ARENA_BYTES_MAX, Plan, Slot, Space, StepInfo, StepKind, Then};
use crate::batch::Way;
use crate::error::{Error, Result};
use crate::kernels::steps::*;
use crate::kernels::{READ_AFTER, READ_BEFORE};
use crate::memory::LINE;
use crate::target::Target;
use bytes::Bytes;
use lacuna_ir::flow;
use lacuna_ir::op::{PoolAttr, Requant, ResizeAttr, Window};
use lacuna_ir::shape::{axis_index, slice_range};
use lacuna_ir::{Attr, DType, Def, Dim, Graph, Id, OpId, OpKind, Range32, ValueId, element_count};

struct Buffer {
    dtype: DType,
    elements: usize,
    first: usize,
    last: usize,
}

/// An operand before the arena is laid out: a root, elements from its start, bytes of an element.
pub(super) type Operand = (Root, usize, usize);

pub(super) struct Builder<'a> {
    pub g: &'a Graph,
    pub target: &'a Target,
    pub weights: &'a mut Weights,
    pub plan: Plan,
    pub requests: Requests,
    places: Vec<Option<Place>>,
    /// Values whose place was set, in that order.
    placed: Vec<ValueId>,
    /// Constants that the next plan may have otherwise.
    computed: Vec<bool>,
    demands: Vec<Option<Demand>>,
    slices: Slices,
    buffers: Vec<Buffer>,
    operands: Vec<Operand>,
    /// Where in the graph's order each value is read last; outputs are read at the end. Empty if buffers are to be kept.
    last_read: Vec<usize>,
    /// By value, the op that reads it, if one does once and nothing else. Empty if all values are to be kept.
    sole_readers: Vec<Option<OpId>>,
    /// Ops whose results the steps of others write.
    done: Vec<bool>,
    /// Those of the current op.
    skipped: Vec<OpId>,
    /// The op that steps are emitted for.
    pub op: OpId,
    /// Whether it is a layer of a chain.
    pub in_bands: bool,
}

/// See [`Builder::tail`].
#[derive(Default)]
pub(super) struct Tail {
    pub ops: Vec<OpId>,
    pub bias: Option<Bytes>,
    pub then: Option<Then>,
}

/// See [`Builder::take_back`].
#[derive(Clone, Copy)]
struct Begun {
    steps: usize,
    buffers: usize,
    placed: usize,
    layers: usize,
}

/// A plan that can run, and what is left to do to make it faster.
pub struct Built {
    pub plan: Plan,
    /// Layers that are to be measured.
    pub contests: Vec<Contest>,
    /// What measured choices are to be kept under.
    pub key: Option<u128>,
    /// How a batch is best run, if that was kept.
    pub kept_way: Option<Way>,
}

/// Plans `g`, whose dimensions are all fixed. With `keep_values` no buffer is used twice, so that every value
/// can be read after a run. `computed` are constants of this plan only. `emitted` is called once when the graph's constants are read no more and nothing is packed yet.
pub fn build(
    g: Graph,
    computed: &[ValueId],
    how: &How<'_>,
    keep_values: bool,
    weights: &mut Weights,
    emitted: impl FnOnce(),
) -> Result<Built> {
    let values = g.value_name.len();
    let mut b = Builder {
        g: &g,
        target: how.target,
        weights,
        plan: Plan { bodies: g.bodies.clone(), ..Plan::default() },
        requests: Requests::default(),
        places: vec![None; values],
        placed: Vec::new(),
        computed: vec![false; values],
        demands: vec![None; values],
        slices: vec![None; values],
        buffers: Vec::new(),
        operands: Vec::new(),
        last_read: if keep_values { Vec::new() } else { last_reads(&g) },
        sole_readers: if keep_values { Vec::new() } else { sole_readers(&g) },
        done: vec![false; g.op_name.len()],
        skipped: Vec::new(),
        op: OpId(0),
        in_bands: false,
    };
    for v in computed {
        b.computed[v.index()] = true;
    }
    for &op in &g.order {
        for &v in g.inputs_of(op).iter().chain(g.outputs_of(op)).filter(|v| !v.is_none()) {
            b.dims(v)?;
        }
    }
    for &op in &g.order {
        if let Some((x, demand)) = conv::demand(&g, op) {
            let known = &mut b.demands[x.index()];
            *known = Some(known.map_or(demand, |k: Demand| k.join(demand).unwrap_or(k)));
        }
    }
    b.slices = slices(&g, &mut b.demands);
    for &op in &g.order {
        b.op = op;
        if !b.done[op.index()] {
            b.emit_or_fall_back(op)?;
        }
    }
    b.copy_outputs()?;
    let (mut plan, Requests { layers, sources }) = b.finish(keep_values)?;
    drop(g);
    emitted();
    let key = how.cache.filter(|_| !layers.is_empty()).map(|_| cache::key(&layers, &sources, how));
    let kept = how.cache.zip(key).and_then(|(folder, key)| cache::load(folder, key, layers.len()));
    let (known, kept_way) = kept.map_or_else(Default::default, |kept| (kept.layers, Some(kept.way)));
    let mut ranked = Vec::with_capacity(layers.len());
    for (found, layer) in pack(&layers, sources, &known, how).into_iter().zip(&layers) {
        let StepInfo { op, kind, .. } = &plan.step_info[layer.step];
        let none = || Error::Op { op: op.clone(), kind, why: "no kernel runs this convolution".to_string() };
        ranked.push(found.ok_or_else(none)?);
    }
    let contests = settle(&mut plan, weights, layers, ranked, how);
    set_barriers(&mut plan);
    Ok(Built { plan, contests, key, kept_way })
}

fn last_reads(g: &Graph) -> Vec<usize> {
    let mut last = vec![0; g.value_name.len()];
    for (at, &op) in g.order.iter().enumerate() {
        for v in g.inputs_of(op) {
            if let Some(last) = last.get_mut(v.index()) {
                *last = at;
            }
        }
    }
    for v in &g.outputs {
        last[v.index()] = usize::MAX;
    }
    last
}

fn sole_readers(g: &Graph) -> Vec<Option<OpId>> {
    let (mut readers, mut uses) = (vec![None; g.value_name.len()], vec![0; g.value_name.len()]);
    for &op in &g.order {
        for v in g.inputs_of(op).iter().filter(|v| !v.is_none()) {
            (readers[v.index()], uses[v.index()]) = (Some(op), uses[v.index()] + 1);
        }
    }
    g.outputs.iter().for_each(|v| uses[v.index()] += 1);
    readers.into_iter().zip(uses).map(|(reader, uses)| reader.filter(|_| uses == 1)).collect()
}

impl Builder<'_> {
    /// What can be done where f32 results of the current op are written, because each op of it alone reads the one before: a
    /// bias for each of `biased` channels, a map, a factor and an addend behind that.
    pub fn tail(&self, biased: Option<usize>) -> Tail {
        let mut tail = Tail { ops: Vec::new(), bias: None, then: None };
        let first = self.g.outputs_of(self.op)[0];
        if self.g.value_dtype[first] != DType::F32 {
            return tail;
        }
        let mut next = self.sole_reader(first);
        if let Some((op, bias)) = next.zip(biased).and_then(|(op, n)| Some((op, self.bias_of(op, n)?))) {
            tail.bias = Some(bias);
            tail.ops.push(op);
            next = self.sole_reader(self.g.outputs_of(op)[0]);
        }
        let map = next.and_then(|op| Some((op, self.map_of(op).filter(|&map| in_place(map))?)));
        let Some((op, map)) = map else { return tail };
        tail.ops.push(op);
        let mut affine = None;
        for (kind, slot) in [(OpKind::Mul, 0), (OpKind::Add, 1)] {
            let last = self.g.outputs_of(tail.ops[tail.ops.len() - 1])[0];
            let Some(op) = self.sole_reader(last).filter(|&op| self.g.op_kind[op] == kind) else { continue };
            let Some(number) = self.constant_beside(op, last).filter(|c| c.len() == 4) else { continue };
            affine.get_or_insert([1.0, 0.0])[slot] = bytemuck::pod_read_unaligned(&number);
            tail.ops.push(op);
        }
        tail.then = Some(Then { map, affine });
        tail
    }

    pub fn sole_reader(&self, v: ValueId) -> Option<OpId> {
        *self.sole_readers.get(v.index())?
    }

    /// Whether no other steps come between those of `op` with its tail and those of `next`.
    pub fn is_next(&mut self, op: OpId, next: OpId) -> bool {
        self.op = op;
        let tail = self.tail(None);
        let behind = self.g.order.iter().skip_while(|&&o| o != op).skip(1);
        behind.into_iter().find(|o| !tail.ops.contains(o)) == Some(&next)
    }

    /// Whether `v` may be wherever the step that writes it likes.
    pub fn is_unplaced(&self, v: ValueId) -> bool {
        self.places[v.index()].is_none() && self.slices[v.index()].is_none()
    }

    /// Operands of a step.
    pub fn operands_of(&self, step: usize) -> &[Operand] {
        self.plan.step_args[step].of(&self.operands)
    }

    /// Emits nothing more for `op`.
    pub fn leave_out(&mut self, op: OpId) {
        self.done[op.index()] = true;
        self.skipped.push(op);
    }

    /// The other operand of a sum or product of `v` that has the shape of `v`, if it is an f32 constant of every plan.
    fn constant_beside(&self, op: OpId, v: ValueId) -> Option<Bytes> {
        let g = self.g;
        let other = *g.inputs_of(op).iter().find(|&&x| x != v)?;
        let lasts = g.value_dtype[other] == DType::F32 && !self.computed[other.index()];
        let same = g.shape(g.outputs_of(op)[0]) == g.shape(v);
        g.const_bytes(other).filter(|_| lasts && same).cloned()
    }

    /// One number for each of `n` columns, if that is what `op` adds.
    fn bias_of(&self, op: OpId, n: usize) -> Option<Bytes> {
        let g = self.g;
        let &v = g.inputs_of(op).iter().find(|&&x| g.const_bytes(x).is_none())?;
        let &c = g.inputs_of(op).iter().find(|&&x| x != v)?;
        let columns = g.shape(c).last() == Some(&Dim::Fixed(n as u64));
        let bias = self.constant_beside(op, v)?;
        (g.op_kind[op] == OpKind::Add && columns && bias.len() == 4 * n).then_some(bias)
    }

    /// Where a step of the current op writes the result of the tail, whose ops need no steps of their own then.
    pub fn place_behind(&mut self, tail: &Tail) -> Result<Place> {
        let Some(last) = tail.ops.last() else { return self.output_place() };
        tail.ops.iter().for_each(|op| self.done[op.index()] = true);
        self.skipped.extend(&tail.ops);
        self.written_place(self.g.outputs_of(*last)[0])
    }

    /// The map of f32 elements that an op of one operand is.
    fn map_of(&self, op: OpId) -> Option<MapOp> {
        let attr = self.g.op_attr[op];
        let float = |i: usize| attr.numbers::<2>().ok().map(|n| n[i].float());
        Some(match self.g.op_kind[op] {
            OpKind::Sigmoid => MapOp::Sigmoid,
            OpKind::Sqrt => MapOp::Sqrt,
            OpKind::Erf => MapOp::Erf,
            OpKind::Tanh => MapOp::Tanh,
            OpKind::Silu => MapOp::Silu,
            OpKind::HardSwish => MapOp::HardSwish,
            OpKind::HardSigmoid => MapOp::HardSigmoid(float(0)?, float(1)?),
            OpKind::LeakyRelu => MapOp::LeakyRelu(float(0)?),
            // The one by tanh has no kernel.
            OpKind::Gelu if attr.numbers::<1>().ok()?[0].choice() == 0 => MapOp::Gelu,
            _ => return None,
        })
    }

    pub fn dims(&self, v: ValueId) -> Result<Vec<usize>> {
        let dims = self.g.fixed_shape(v).ok_or_else(|| Error::Pass {
            pass: "plan",
            why: format!("value '{}' has a symbolic dimension", self.g.value_name[v]),
        })?;
        match element_count(&dims) {
            Some(_) => Ok(dims),
            None => Err(Error::TooLarge { bytes: u64::MAX, max: ARENA_BYTES_MAX }),
        }
    }

    pub fn error<T>(&self, why: impl Into<String>) -> Result<T> {
        let kind = self.g.op_kind[self.op].name();
        Err(Error::Op { op: self.g.op_name[self.op].clone(), kind, why: why.into() })
    }

    /// Where `v` can be read.
    pub fn place(&mut self, v: ValueId) -> Result<Place> {
        if let Some(place) = &self.places[v.index()] {
            return Ok(place.clone());
        }
        let dims = self.dims(v)?;
        let place = match self.g.value_def[v] {
            Def::Input => {
                let i = self.g.inputs.iter().position(|&x| x == v);
                Place::dense(Root::Input(i.expect("an input is listed")), &dims)
            }
            Def::Const(c) => {
                let blob = match self.computed[v.index()] {
                    true => self.weights.computed(&self.g.consts[c]),
                    false => self.weights.constant(v, &self.g.consts[c]),
                };
                if self.computed[v.index()] {
                    self.plan.computed_blobs.push(blob);
                }
                Place::dense(Root::Const(blob), &dims)
            }
            Def::Op(..) => return self.error("reads a value that no step has made"),
        };
        self.set_place(v, place.clone());
        Ok(place)
    }

    pub fn input(&mut self, op: OpId, i: usize) -> Result<Place> {
        match self.g.input_of(op, i) {
            Some(v) => self.place(v),
            None => self.error(format!("input {i} is absent")),
        }
    }

    /// A new buffer, with its border filled by a step of its own.
    pub fn new_place(&mut self, dtype: DType, dims: &[usize], demand: Option<Demand>) -> Result<Place> {
        let buffer = self.buffers.len();
        let max = u32::MAX as u64 * dtype.size() as u64;
        let Some((place, elements)) = Place::in_buffer(buffer, dtype, dims, demand) else {
            return Err(Error::TooLarge { bytes: u64::MAX, max });
        };
        // Kernels address elements with 32 bits.
        if elements >= u32::MAX as usize {
            return Err(Error::TooLarge {
                bytes: (elements as u64).saturating_mul(dtype.size() as u64),
                max,
            });
        }
        let now = self.plan.steps();
        self.buffers.push(Buffer { dtype, elements, first: now, last: now });
        if place.border != [0; 4] {
            self.fill(&place, dtype);
        }
        Ok(place)
    }

    /// A new buffer for the first output of the current op.
    pub fn output_place(&mut self) -> Result<Place> {
        self.output_place_of(0)
    }

    /// A new buffer for output `i` of the current op.
    pub fn output_place_of(&mut self, i: usize) -> Result<Place> {
        self.written_place(self.g.outputs_of(self.op)[i])
    }

    /// Where a step writes `v`: a buffer of its own, or a slice of a join, which is placed with the first of its parts.
    fn written_place(&mut self, v: ValueId) -> Result<Place> {
        if let Some(place) = &self.places[v.index()] {
            return Ok(place.clone());
        }
        let dims = self.dims(v)?;
        let place = match self.slices[v.index()] {
            Some(Slice { whole, channel }) => self.written_place(whole)?.slice(channel, dims[3]),
            None => {
                let demand = self.demands[v.index()].filter(|_| !dims.contains(&0));
                self.new_place(self.g.value_dtype[v], &dims, demand)?
            }
        };
        self.set_place(v, place.clone());
        Ok(place)
    }

    /// The first output of the current op over `residual`, which it adds (f32 only, see the contract of
    /// kernels), or a new buffer where that cannot be: where
    /// something reads the residual's buffer later, or the output's layout is another.
    pub fn output_over(&mut self, x: &Place, residual: &Place) -> Result<Place> {
        let v = self.g.outputs_of(self.op)[0];
        let dims = self.dims(v)?;
        let dtype = self.g.value_dtype[v];
        let Root::Buffer(buffer) = residual.root else { return self.output_place() };
        if self.slices[v.index()].is_some() {
            return self.output_place();
        }
        let now = self.g.order.iter().position(|&op| op == self.op);
        let read_later = |v: ValueId| self.last_read.get(v.index()).is_none_or(|&last| Some(last) > now);
        let held = |v: &ValueId| self.places[v.index()].as_ref().is_some_and(|p| p.root == residual.root);
        let same = Place::in_buffer(buffer, dtype, &dims, self.demands[v.index()])
            .is_some_and(|(p, _)| p == *residual);
        let free = !self.g.value_name.ids().filter(held).any(read_later);
        if !same || !free || self.buffers[buffer].dtype != dtype || x.root == residual.root {
            return self.output_place();
        }
        self.set_place(v, residual.clone());
        Ok(residual.clone())
    }

    fn fill(&mut self, place: &Place, dtype: DType) {
        let [top, left, bottom, right] = place.border;
        let (image, row, pixel) = (place.strides[0], place.strides[1], place.strides[2]);
        let step = FillStep {
            images: place.dims[0],
            row,
            lines: image / row,
            top,
            bottom,
            left: left * pixel,
            right: right * pixel,
            bytes: dtype.size() == 1,
            value: place.fill,
        };
        let moved = step.units() * (left + right) * pixel + step.images * (top + bottom) * row;
        // Whoever writes a line's pixels fills its border, more or less: lines do not travel between caches.
        let parts = if moved < PARALLEL_FILL { 1 } else { self.target.threads.min(step.units()) };
        let row = push(&mut self.plan.fills, step);
        self.step(StepKind::Fill, row, &[(place.root, 0, dtype.size())], parts, "fill_border", moved);
    }

    /// Appends a step. `work` is the bytes or elements it moves, for the estimate.
    pub fn step(
        &mut self,
        kind: StepKind,
        row: u32,
        operands: &[Operand],
        parts: usize,
        kernel: &'static str,
        work: usize,
    ) {
        let now = self.plan.steps();
        for (root, ..) in operands {
            if let Root::Buffer(i) = *root {
                self.buffers[i].last = now;
            }
        }
        let info = StepInfo {
            op: self.g.op_name.get(self.op).cloned().unwrap_or_default(),
            kind: self.g.op_kind.get(self.op).map_or("Copy", |k| k.name()),
            kernel,
            weights: 0,
            nonzeros: 0,
            slot_efficiency: None,
            estimated_ns: map_ns(work),
            reason: String::new(),
        };
        let p = &mut self.plan;
        p.step_kind.push(kind);
        p.step_row.push(row);
        p.step_args.push(Range32::append(&mut self.operands, operands));
        p.step_parts.push(parts.max(1) as u32);
        p.step_barrier.push(true);
        p.step_info.push(info);
    }

    pub fn parts(&self, elements: usize) -> usize {
        if elements < PARALLEL_ELEMENTS { 1 } else { self.target.threads }
    }

    /// A map from `inputs` (each a place and its element size) to `y`, over `y`'s dims.
    fn map(&mut self, op: MapOp, y: &Place, y_size: usize, inputs: &[(&Place, usize)]) -> Result<()> {
        let strides: Vec<Vec<usize>> = inputs.iter().map(|(p, _)| p.broadcast_strides(&y.dims)).collect();
        self.map_strided(op, y, y_size, inputs, &strides)
    }

    fn map_strided(
        &mut self,
        op: MapOp,
        y: &Place,
        y_size: usize,
        inputs: &[(&Place, usize)],
        strides: &[Vec<usize>],
    ) -> Result<()> {
        let mut all: Vec<&[usize]> = vec![&y.strides];
        all.extend(strides.iter().map(|s| s.as_slice()));
        let Some(nd) = Nd::new(&y.dims, &all).map(Nd::with_long_runs) else {
            return self.error(format!("{} dimensions are more than the engine walks", y.dims.len()));
        };
        let mut operands = vec![(y.root, y.origin, y_size)];
        operands.extend(inputs.iter().map(|(p, size)| (p.root, p.origin, *size)));
        let elements = nd.elements();
        let bytes = elements * (y_size + inputs.first().map_or(0, |i| i.1));
        let row = push(&mut self.plan.maps, MapStep { op, nd });
        self.step(StepKind::Map, row, &operands, self.parts(elements), op.name(), bytes);
        Ok(())
    }

    pub fn copy(&mut self, from: &Place, to: &Place, dtype: DType) -> Result<()> {
        let op = match dtype.size() {
            1 => MapOp::Copy1,
            4 => MapOp::Copy4,
            _ => MapOp::Copy8,
        };
        self.map(op, to, dtype.size(), &[(from, dtype.size())])
    }

    /// `place` itself if `fits`, or a copy in a buffer laid out for `demand`.
    pub fn placed_for(&mut self, place: Place, dtype: DType, fits: bool, demand: Demand) -> Result<Place> {
        if fits {
            return Ok(place);
        }
        let copy = self.new_place(dtype, &place.dims, Some(demand))?;
        self.copy(&place, &copy, dtype)?;
        Ok(copy)
    }

    /// The steps of a kernel, or where there is none for these operands the reference function.
    fn emit_or_fall_back(&mut self, op: OpId) -> Result<()> {
        let g = self.g;
        let operands = g.inputs_of(op).iter().chain(g.outputs_of(op)).filter(|v| !v.is_none());
        let empty = operands.clone().any(|&v| g.shape(v).contains(&Dim::Fixed(0)));
        let several = g.outputs_of(op).len() > 1
            && !matches!(g.op_kind[op], OpKind::AddNorm | OpKind::Split | OpKind::LSTM);
        let begun = self.begun();
        match bands::emit(self, op) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // The layers run one by one then.
            Err(Error::Op { .. }) => self.take_back(begun),
            Err(why) => return Err(why),
        }
        self.op = op;
        let fast = if flow::has_bodies(&g.op_attr[op]) {
            let ops = flow::inner_ops(&g.bodies, &g.op_attr[op]);
            match g.op_kind[op] {
                OpKind::If => {
                    self.error(format!("the chosen body runs as a session of its own: {ops} ops in all"))
                }
                _ => self.error(format!("the interpreter runs its body: {ops} ops")),
            }
        } else if g.inputs_of(op).first().is_none_or(|v| v.is_none()) || several {
            self.error("no kernel runs this op")
        } else if empty {
            self.error("kernels do not run on tensors without elements")
        } else {
            self.emit(op)
        };
        let why = match fast {
            Err(Error::Op { why, .. }) => why,
            fast => return fast,
        };
        self.take_back(begun);
        // The reference knows the graph's order of channels only.
        let layer = matches!(g.op_kind[op], OpKind::QConv | OpKind::QGemm);
        let mut ends = [g.inputs_of(op)[0], g.outputs_of(op)[0]].into_iter();
        if layer && ends.any(|v| self.weights.orders.get(v).is_some()) {
            return self.error(&why);
        }
        emit_reference(self, op, why)
    }

    /// How much there is before steps for an op are emitted.
    fn begun(&mut self) -> Begun {
        self.skipped.clear();
        Begun {
            steps: self.plan.steps(),
            buffers: self.buffers.len(),
            placed: self.placed.len(),
            layers: self.requests.layers.len(),
        }
    }

    /// Takes back what came since. Rows of tables that no step refers to do no harm.
    fn take_back(&mut self, to: Begun) {
        self.plan.truncate(to.steps);
        self.buffers.truncate(to.buffers);
        self.requests.layers.truncate(to.layers);
        self.requests.sources.truncate(to.layers);
        self.skipped.drain(..).for_each(|op| self.done[op.index()] = false);
        for v in self.placed.split_off(to.placed) {
            let root = self.places[v.index()].as_ref().map(|p| p.root);
            if matches!(root, Some(Root::Buffer(i)) if i >= to.buffers) {
                self.places[v.index()] = None;
            }
        }
    }

    /// Whether weights of the product are packed: they must be constants of every plan.
    fn packs(&self, op: OpId) -> bool {
        self.lasts(op) && conv::gemm_weights(self.g, op).is_some()
    }

    /// Whether no input is a constant of this plan only.
    pub fn lasts(&self, op: OpId) -> bool {
        self.g.inputs_of(op).iter().all(|v| v.is_none() || !self.computed[v.index()])
    }

    pub fn set_place(&mut self, v: ValueId, place: Place) {
        self.places[v.index()] = Some(place);
        self.placed.push(v);
    }

    fn emit(&mut self, op: OpId) -> Result<()> {
        use OpKind::*;
        let g = self.g;
        let x = g.inputs_of(op)[0];
        let dtype = g.value_dtype[x];
        match (g.op_kind[op], g.op_attr[op]) {
            (QConv | FusedConv, _) => conv::emit_conv(self, op),
            (FusedConvTranspose, Attr::FusedConv(a)) => spread::emit_conv_transpose(self, op, a),
            (QGemm, _) => conv::emit_gemm(self, op),
            (Gemm | MatMul, _) if self.packs(op) => conv::emit_gemm(self, op),
            (Gemm | MatMul, _) => self.matmul(op),
            (LSTM, _) if self.lasts(op) => recurrent::emit_lstm(self, op),
            (Identity, _) => {
                let place = self.place(x)?;
                self.view(Some(place), dtype)
            }
            (Reshape | Flatten | Unsqueeze | Squeeze, _) => {
                let place = self.place(x)?;
                let dims = self.dims(g.outputs_of(op)[0])?;
                self.view(place.reshaped(&dims), dtype)
            }
            (OpKind::Slice, _) => {
                let place = self.sliced(op)?;
                self.part(0, place, dtype)
            }
            (OpKind::Split, Attr::Params(_)) => {
                let x = self.place(x)?;
                let [axis] = g.op_attr[op].numbers().or_else(|why| self.error(why))?;
                let axis = axis_index(axis.int(), x.dims.len()).or_else(|why| self.error(why))?;
                // Channels of an image are surrounded by what the image is surrounded by.
                let border = if axis == 3 && x.dims.len() == 4 { x.border } else { [0; 4] };
                let mut origin = x.origin;
                for (i, &y) in g.outputs_of(op).iter().enumerate() {
                    let dims = self.dims(y)?;
                    let width = dims[axis] * x.strides[axis];
                    self.part(i, Place { origin, dims, border, ..x.clone() }, dtype)?;
                    origin += width;
                }
                Ok(())
            }
            (Transpose, Attr::Perm(perm)) => {
                // None given: the order is reversed.
                let perm: Vec<i64> = match perm.as_slice() {
                    [] => (0..g.shape(x).len() as i64).rev().collect(),
                    perm => perm.iter().map(|&a| a as i64).collect(),
                };
                let place = self.place(x)?.transposed(&perm);
                self.view(Some(place), dtype)
            }
            (Relu, _) if dtype == DType::U8 => {
                let place = self.place(x)?;
                self.view(Some(place), dtype)
            }
            (Relu, _) => self.elementwise(op, MapOp::Relu),
            (Clip, Attr::Clip(c)) if g.inputs_of(op).len() == 1 => self.elementwise(op, MapOp::Clip(c)),
            (Cast, Attr::Cast(to)) => self.cast(op, dtype, to),
            (Gather, Attr::Axis(axis)) => rows::emit_gather(self, op, axis),
            (LayerNormalization, Attr::Norm(norm)) if g.outputs_of(op).len() == 1 => {
                rows::emit_layer_norm(self, op, norm)
            }
            (AddNorm, Attr::AddNorm(norm)) => rows::emit_add_norm(self, op, norm),
            (QAttention, Attr::QAttention(a)) => rows::emit_attention(self, op, a),
            (Add, _) => self.elementwise(op, MapOp::Add),
            (Sub, _) => self.elementwise(op, MapOp::Sub),
            (Mul, _) => self.elementwise(op, MapOp::Mul),
            (Div, _) => self.elementwise(op, MapOp::Div),
            (OpKind::QAdd, Attr::QAdd(a)) => {
                self.eight_bit(a.out)?;
                self.eight_bit_zeros(&[a.a_zero, a.b_zero])?;
                let (a_place, b_place) = (self.input(op, 0)?, self.input(op, 1)?);
                let y = self.output_place()?;
                self.map(MapOp::QAdd(a), &y, 1, &[(&a_place, 1), (&b_place, 1)])
            }
            (OpKind::QMul, Attr::QMul(m)) => {
                self.eight_bit(m.out)?;
                self.eight_bit_zeros(&[m.a_zero, m.b_zero])?;
                let (a_place, b_place) = (self.input(op, 0)?, self.input(op, 1)?);
                let y = self.output_place()?;
                self.map(MapOp::QMul(m), &y, 1, &[(&a_place, 1), (&b_place, 1)])
            }
            (OpKind::QLookup, _) => {
                let (x, table) = (self.input(op, 0)?, self.input(op, 1)?);
                let y = self.output_place()?;
                let strides = [x.strides.clone(), vec![0; x.dims.len()]];
                self.map_strided(MapOp::QLookup, &y, 1, &[(&x, 1), (&table, 1)], &strides)
            }
            (ResizeNhwc, Attr::Resize(r)) => self.resize(op, r),
            (QuantizeLinear | DequantizeLinear | QuantizeSilu, Attr::Axis(axis)) => self.scaled(op, axis),
            (Concat, Attr::Axis(axis)) => self.concat(op, axis),
            (MaxPoolNhwc | AveragePoolNhwc, Attr::Pool(attr)) => self.pool(op, attr),
            (GlobalAvgPoolNhwc, _) => self.mean(op, None),
            (QGlobalAvgPool, Attr::QPool(q)) => {
                self.eight_bit(q.out)?;
                self.eight_bit_zeros(&[q.x_zero])?;
                self.mean(op, Some((q.x_zero, q.mult, q.out)))
            }
            (ReduceMean, Attr::Reduce(r)) if g.inputs_of(op).len() == 1 => {
                let rank = g.shape(x).len() as i64;
                let axes: Vec<usize> = match r.axes.as_slice() {
                    [] => (0..rank as usize).collect(),
                    axes => axes.iter().map(|&a| (a as i64).rem_euclid(rank) as usize).collect(),
                };
                self.reduce(op, ReduceKind::Mean, &axes)
            }
            (ReduceSum, Attr::Reduce(r)) => {
                let rank = g.shape(x).len();
                let listed: Vec<i64> = match g.input_of(op, 1) {
                    Some(v) => g.const_i64(v).map_or(Vec::new(), |axes| axes.to_vec()),
                    None => r.axes.as_slice().iter().map(|&a| i64::from(a)).collect(),
                };
                if listed.is_empty() {
                    return self.error("its axes are not known before a run, or none");
                }
                let axes: Result<Vec<usize>> =
                    listed.iter().map(|&a| axis_index(a, rank).or_else(|why| self.error(why))).collect();
                self.reduce(op, ReduceKind::Sum, &axes?)
            }
            (Expand, _) => {
                let from = self.place(x)?;
                let y = self.output_place()?;
                self.copy(&from, &y, dtype)
            }
            (IsNaN, _) if dtype == DType::F32 => {
                let from = self.place(x)?;
                let y = self.output_place()?;
                self.map(MapOp::IsNan, &y, 1, &[(&from, 4)])
            }
            (Where, _) if g.value_dtype[g.outputs_of(op)[0]].size() == 4 => {
                let [c, a, b] = [self.input(op, 0)?, self.input(op, 1)?, self.input(op, 2)?];
                let y = self.output_place()?;
                self.map(MapOp::Where4, &y, 4, &[(&c, 1), (&a, 4), (&b, 4)])
            }
            (Softmax, Attr::Axis(axis)) => {
                let axis = (axis as i64).rem_euclid(g.shape(x).len().max(1) as i64) as usize;
                self.reduce(op, ReduceKind::Softmax, &[axis])
            }
            _ => match self.map_of(op) {
                Some(map) => self.elementwise(op, map),
                None => self.error("no kernel runs this op on these operands"),
            },
        }
    }

    /// Bounds and zero point of a result must be those of u8: the kernels' rounding rests on it.
    pub fn eight_bit(&self, out: Requant) -> Result<()> {
        let byte = 0..=255;
        if byte.contains(&out.zero) && byte.contains(&out.lo) && byte.contains(&out.hi) && out.lo <= out.hi {
            return Ok(());
        }
        self.error(format!("{out:?} is not within 0..=255"))
    }

    pub fn eight_bit_zeros(&self, zeros: &[i32]) -> Result<()> {
        match zeros.iter().find(|z| !(0..=255).contains(*z)) {
            Some(z) => self.error(format!("zero point {z} is not within 0..=255")),
            None => Ok(()),
        }
    }

    /// The op's result is its input under other strides, unless a convolution needs it laid out.
    pub fn view(&mut self, place: Option<Place>, dtype: DType) -> Result<()> {
        let v = self.g.outputs_of(self.op)[0];
        let demand = self.demands[v.index()];
        match place {
            Some(p) if demand.is_none_or(|d| p.serves(d)) => {
                self.set_place(v, p);
                Ok(())
            }
            Some(p) => {
                let y = self.output_place()?;
                self.copy(&p, &y, dtype)
            }
            None => {
                // A reshape that strides cannot say: through a dense copy of the input.
                let x = self.g.inputs_of(self.op)[0];
                let from = self.place(x)?;
                let mut dense = self.new_place(dtype, &[from.dims.iter().product()], None)?;
                dense.dims = from.dims.clone();
                dense.strides = dense_strides(&from.dims);
                self.copy(&from, &dense, dtype)?;
                let dims = self.dims(v)?;
                self.view(dense.reshaped(&dims), dtype)
            }
        }
    }

    fn elementwise(&mut self, op: OpId, map: MapOp) -> Result<()> {
        let inputs = self.g.inputs_of(op).to_vec();
        if let Some(&v) = inputs.iter().find(|&&v| self.g.value_dtype[v] != DType::F32) {
            return self.error(format!(
                "runs on f32 only, input '{}' is {}",
                self.g.value_name[v], self.g.value_dtype[v]
            ));
        }
        let places: Result<Vec<Place>> = inputs.iter().map(|&v| self.place(v)).collect();
        let places = places?;
        let y = self.output_place()?;
        let inputs: Vec<(&Place, usize)> = places.iter().map(|p| (p, 4)).collect();
        self.map(map, &y, 4, &inputs)
    }

    /// Output `i` of the current op is what lies at `place`, or a copy of it where it is to be laid out otherwise.
    fn part(&mut self, i: usize, place: Place, dtype: DType) -> Result<()> {
        let y = self.g.outputs_of(self.op)[i];
        let serves = self.demands[y.index()].is_none_or(|d| place.serves(d));
        if serves && self.slices[y.index()].is_none() {
            self.set_place(y, place);
            return Ok(());
        }
        let to = self.output_place_of(i)?;
        self.copy(&place, &to, dtype)
    }

    /// Where the elements lie that a Slice takes: strides and an origin say it, if bounds are known and no step goes back.
    fn sliced(&mut self, op: OpId) -> Result<Place> {
        let g = self.g;
        let numbers = |i: usize| match g.input_of(op, i) {
            Some(v) if g.value_dtype[v] == DType::I32 => {
                let ints = g.const_elements::<i32>(v, DType::I32)?;
                Some(Some(ints.iter().map(|&i| i64::from(i)).collect()))
            }
            Some(v) => Some(Some(g.const_i64(v)?.to_vec())),
            None => Some(None),
        };
        let lists: Option<Vec<Option<Vec<i64>>>> = (1..5).map(numbers).collect();
        let Some([Some(starts), Some(ends), axes, steps]) = lists.as_deref() else {
            return self.error("its bounds are not known before a run");
        };
        let mut place = self.input(op, 0)?;
        let rank = place.dims.len();
        for (i, (&start, &end)) in starts.iter().zip(ends).enumerate() {
            let axis = axes.as_ref().map_or(i as i64, |a| a[i]);
            let step = steps.as_ref().map_or(1, |s| s[i]);
            if step < 1 {
                return self.error("a step goes backwards");
            }
            let axis = axis_index(axis, rank).or_else(|why| self.error(why))?;
            let range = slice_range(place.dims[axis] as u64, start, end, step);
            let (first, count) = range.or_else(|why| self.error(why))?;
            place.origin += first as usize * place.strides[axis];
            place.dims[axis] = count as usize;
            place.strides[axis] *= step as usize;
        }
        Ok(Place { border: [0; 4], fill: 0, ..place })
    }

    fn cast(&mut self, op: OpId, from: DType, to: DType) -> Result<()> {
        let map = match (from, to) {
            (DType::I64, DType::F32) => MapOp::CastI64F32,
            (DType::I32, DType::F32) => MapOp::CastI32F32,
            (DType::U8 | DType::Bool, DType::F32) => MapOp::CastU8F32,
            (DType::F32, DType::I64) => MapOp::CastF32I64,
            (DType::F32, DType::I32) => MapOp::CastF32I32,
            _ if from == to => {
                let place = self.input(op, 0)?;
                return self.view(Some(place), from);
            }
            _ => return self.error(format!("the engine has no kernel for a cast of {from} to {to}")),
        };
        let x = self.input(op, 0)?;
        let y = self.output_place()?;
        self.map(map, &y, to.size(), &[(&x, from.size())])
    }

    fn scaled(&mut self, op: OpId, axis: i32) -> Result<()> {
        let g = self.g;
        let (x, scale) = (self.input(op, 0)?, self.input(op, 1)?);
        let x_dtype = g.value_dtype[g.inputs_of(op)[0]];
        let zero_dtype = g.value_dtype[g.inputs_of(op)[2]];
        let (map, sizes) = match (g.op_kind[op], x_dtype, zero_dtype) {
            (OpKind::QuantizeLinear, DType::F32, DType::U8) => (MapOp::QuantizeU8, (1, 4, 1)),
            (OpKind::QuantizeSilu, DType::F32, DType::U8) => (MapOp::QuantizeSilu, (1, 4, 1)),
            (OpKind::QuantizeLinear, DType::F32, DType::I8) => (MapOp::QuantizeI8, (1, 4, 1)),
            (OpKind::DequantizeLinear, DType::U8, DType::U8) => (MapOp::DequantizeU8, (4, 1, 1)),
            (OpKind::DequantizeLinear, DType::I8, DType::I8) => (MapOp::DequantizeI8, (4, 1, 1)),
            (OpKind::DequantizeLinear, DType::I32, _) => (MapOp::DequantizeI32, (4, 4, 4)),
            (_, x, z) => {
                return self.error(format!("the engine has no kernel for {x} with a {z} zero point"));
            }
        };
        let mut along = vec![0; x.dims.len()];
        if scale.dims.iter().product::<usize>() > 1 {
            along[(axis as i64).rem_euclid(x.dims.len() as i64) as usize] = 1;
        }
        let x_strides = x.strides.clone();
        let y = self.output_place()?;
        if map == MapOp::DequantizeI32 {
            return self.map_strided(map, &y, 4, &[(&x, 4), (&scale, 4)], &[x_strides, along]);
        }
        let zero = self.input(op, 2)?;
        if map == MapOp::QuantizeU8 && along.iter().all(|&a| a == 0) && is_image(&x, &y) {
            return self.pixels(&x, &y, &scale, &zero);
        }
        let inputs = [(&x, sizes.1), (&scale, 4), (&zero, sizes.2)];
        self.map_strided(map, &y, sizes.0, &inputs, &[x_strides, along.clone(), along])
    }

    /// Quantises planes into pixels.
    fn pixels(&mut self, x: &Place, y: &Place, scale: &Place, zero: &Place) -> Result<()> {
        let [images, h, w, channels] = [0, 1, 2, 3].map(|d| y.dims[d]);
        let step = PixelsStep {
            images,
            h,
            w,
            channels,
            x_strides: [x.strides[0], x.strides[3], x.strides[1]],
            y_strides: [y.strides[0], y.strides[1]],
        };
        let elements = images * h * w * channels;
        let parts = self.parts(elements).min(step.units());
        let operands = [
            operand(y, DType::U8),
            operand(x, DType::F32),
            operand(scale, DType::F32),
            operand(zero, DType::U8),
        ];
        let row = push(&mut self.plan.pixels, step);
        self.step(StepKind::Pixels, row, &operands, parts, "quantize_pixels_u8", elements * 5);
        Ok(())
    }

    fn concat(&mut self, op: OpId, axis: i32) -> Result<()> {
        let inputs = self.g.inputs_of(op).to_vec();
        let dtype = self.g.value_dtype[inputs[0]];
        let places: Result<Vec<Place>> = inputs.iter().map(|&v| self.place(v)).collect();
        let places = places?;
        let y = self.output_place()?;
        let axis = (axis as i64).rem_euclid(y.dims.len() as i64) as usize;
        let mut at = y.origin;
        for from in &places {
            let to = Place { origin: at, dims: from.dims.clone(), ..y.clone() };
            at += from.dims[axis] * y.strides[axis];
            // A part that was written there already.
            if *from != to {
                self.copy(from, &to, dtype)?;
            }
        }
        Ok(())
    }

    /// A copy over [N, H, scale, W, scale, C]: the input stands still along the two scales.
    fn resize(&mut self, op: OpId, attr: ResizeAttr) -> Result<()> {
        let dtype = self.g.value_dtype[self.g.inputs_of(op)[0]];
        let (x, y) = (self.input(op, 0)?, self.output_place()?);
        let [sh, sw] = attr.scale.map(|s| s as usize);
        let split = |p: &Place, inside: [usize; 2]| Place {
            dims: vec![x.dims[0], x.dims[1], sh, x.dims[2], sw, x.dims[3]],
            strides: vec![p.strides[0], p.strides[1], inside[0], p.strides[2], inside[1], p.strides[3]],
            ..p.clone()
        };
        let from = split(&x, [0, 0]);
        let mut to = split(&y, [y.strides[1], y.strides[2]]);
        to.strides[1] *= sh;
        to.strides[3] *= sw;
        self.copy(&from, &to, dtype)
    }

    /// An NHWC value whose channels lie side by side.
    fn nhwc_input(&mut self, op: OpId) -> Result<Place> {
        let dtype = self.g.value_dtype[self.g.inputs_of(op)[0]];
        let x = self.input(op, 0)?;
        let fits = x.channels_last();
        self.placed_for(x, dtype, fits, Demand::BARE)
    }

    fn pool(&mut self, op: OpId, attr: PoolAttr) -> Result<()> {
        let dtype = self.g.value_dtype[self.g.inputs_of(op)[0]];
        let kind = match (self.g.op_kind[op], dtype) {
            (OpKind::MaxPoolNhwc, DType::F32) => PoolKind::MaxF32,
            (OpKind::MaxPoolNhwc, DType::U8) => PoolKind::MaxU8,
            (OpKind::AveragePoolNhwc, DType::F32) => PoolKind::AverageF32,
            (_, dtype) => return self.error(format!("cannot pool {dtype}")),
        };
        let x = self.nhwc_input(op)?;
        let y = self.output_place()?;
        let [kh, kw] = attr.window.kernel;
        if kind == PoolKind::AverageF32 || kh.min(kw) < SEPARATE_POOL {
            self.pool_step(kind, attr, &x, &y, dtype);
            return Ok(());
        }
        // The largest of a window is the largest of its rows' largest: kh + kw taps, not kh * kw.
        let along = |d: usize| {
            let only = |of: [u32; 2], one: u32| if d == 0 { [of[0], one] } else { [one, of[1]] };
            let w = attr.window;
            let pads = if d == 0 { [w.pads[0], 0, w.pads[2], 0] } else { [0, w.pads[1], 0, w.pads[3]] };
            let window = Window {
                kernel: only(w.kernel, 1),
                stride: only(w.stride, 1),
                dilation: only(w.dilation, 1),
                pads,
            };
            PoolAttr { window, ..attr }
        };
        let rows = self.new_place(dtype, &[x.dims[0], x.dims[1], y.dims[2], x.dims[3]], None)?;
        self.pool_step(kind, along(1), &x, &rows, dtype);
        self.pool_step(kind, along(0), &rows, &y, dtype);
        Ok(())
    }

    fn pool_step(&mut self, kind: PoolKind, attr: PoolAttr, x: &Place, y: &Place, dtype: DType) {
        let three = |s: &[usize]| [s[0], s[1], s[2]];
        let step = PoolStep {
            kind,
            attr,
            x: [x.dims[1], x.dims[2], x.dims[3]],
            y: three(&y.dims),
            x_strides: three(&x.strides),
            y_strides: three(&y.strides),
        };
        let [kh, kw] = attr.window.kernel;
        let work = y.dims.iter().product::<usize>() * (kh * kw) as usize;
        let operands = [operand(y, dtype), operand(x, dtype)];
        let row = push(&mut self.plan.pools, step);
        self.step(StepKind::Pool, row, &operands, self.parts(work), kind.name(), work * dtype.size());
    }

    fn mean(&mut self, op: OpId, int: Option<(i32, f32, Requant)>) -> Result<()> {
        let dtype = self.g.value_dtype[self.g.inputs_of(op)[0]];
        let x = self.nhwc_input(op)?;
        let y = self.output_place()?;
        let step = MeanStep {
            x: [x.dims[0], x.dims[1], x.dims[2], x.dims[3]],
            x_strides: [x.strides[0], x.strides[1], x.strides[2]],
            y_image: y.strides[0],
            int,
        };
        let work = x.dims.iter().product::<usize>();
        let parts = self.parts(work).min(step.units());
        let row = push(&mut self.plan.means, step);
        let kernel = if int.is_some() { "global_mean_u8" } else { "global_mean_f32" };
        let operands = [operand(&y, dtype), operand(&x, dtype)];
        self.step(StepKind::Mean, row, &operands, parts, kernel, work * dtype.size());
        Ok(())
    }

    fn reduce(&mut self, op: OpId, kind: ReduceKind, axes: &[usize]) -> Result<()> {
        if self.g.value_dtype[self.g.inputs_of(op)[0]] != DType::F32 {
            return self.error("runs on f32 only");
        }
        let x = self.input(op, 0)?;
        let y = self.output_place()?;
        // Results along the reduced axes: as many as inputs (softmax), or one, whether its axis was kept or not.
        let mut y_strides = vec![0; x.dims.len()];
        let kept = (0..x.dims.len()).filter(|d| !axes.contains(d));
        if y.dims.len() == x.dims.len() {
            y_strides.clone_from(&y.strides);
        } else {
            kept.zip(&y.strides).for_each(|(d, &s)| y_strides[d] = s);
        }
        let part = |inner: bool| {
            let own: Vec<usize> = (0..x.dims.len()).filter(|d| axes.contains(d) == inner).collect();
            let of = |s: &[usize]| own.iter().map(|&d| s[d]).collect::<Vec<_>>();
            Nd::new(&of(&x.dims), &[&of(&y_strides), &of(&x.strides)])
        };
        let (Some(outer), Some(inner)) = (part(false), part(true)) else {
            return self.error("too many dimensions");
        };
        let work = x.dims.iter().product::<usize>();
        let row = push(&mut self.plan.reduces, ReduceStep { kind, outer, inner });
        let operands = [operand(&y, DType::F32), operand(&x, DType::F32)];
        self.step(StepKind::Reduce, row, &operands, self.parts(work), kind.name(), work * 8);
        Ok(())
    }

    /// A product of two operands of which neither is a plain constant matrix.
    fn matmul(&mut self, op: OpId) -> Result<()> {
        let g = self.g;
        let (trans_a, trans_b, alpha, beta) = match g.op_attr[op] {
            Attr::Gemm(a) => (a.trans_a, a.trans_b, a.alpha, a.beta),
            _ => (false, false, 1.0, 0.0),
        };
        if g.inputs_of(op).iter().any(|&v| !v.is_none() && g.value_dtype[v] != DType::F32) {
            return self.error("runs on f32 only");
        }
        let (a, b) = (self.input(op, 0)?, self.input(op, 1)?);
        let c = match g.input_of(op, 2) {
            Some(c) => Some(self.place(c)?),
            None => None,
        };
        let y = self.output_place()?;
        // numpy: a vector operand is a matrix of one row or one column, which the result then lacks.
        let (a_dims, a_strides) = as_matrix_operand(&a, true, trans_a);
        let (b_dims, b_strides) = as_matrix_operand(&b, false, trans_b);
        let (la, lb) = (a_dims.len() - 2, b_dims.len() - 2);
        let (m, k, n) = (a_dims[la], a_dims[la + 1], b_dims[lb + 1]);
        let lead = la.max(lb);
        let y_last = if b.dims.len() == 1 { 0 } else { y.strides[y.dims.len() - 1] };
        let y_row = if a.dims.len() == 1 { 0 } else { y.strides[lead] };
        let batch_dims = &y.dims[..lead];
        let along = |dims: &[usize], strides: &[usize], l: usize| -> Vec<usize> {
            let own = |d: usize| d.checked_sub(lead - l).filter(|&i| dims[i] == batch_dims[d]);
            (0..lead).map(|d| own(d).map_or(0, |i| strides[i])).collect()
        };
        let batch = Nd::new(
            batch_dims,
            &[
                &y.strides[..lead],
                &along(&a_dims, &a_strides, la),
                &along(&b_dims, &b_strides, lb),
                &vec![0; lead],
            ],
        );
        let Some(batch) = batch else { return self.error("too many dimensions") };
        let c_strides = c.as_ref().map_or(vec![0, 0], |c| c.broadcast_strides(&[m, n]));
        let step = MatMulStep {
            batch,
            m,
            n,
            k,
            y: [y_row, y_last],
            a: [a_strides[la], a_strides[la + 1]],
            b: [b_strides[lb], b_strides[lb + 1]],
            c: [c_strides[0], c_strides[1]],
            alpha,
            beta: if c.is_some() { beta } else { 0.0 },
        };
        let mut operands = vec![operand(&y, DType::F32), operand(&a, DType::F32), operand(&b, DType::F32)];
        operands.extend(c.iter().map(|c| operand(c, DType::F32)));
        let work = step.units() * n * k;
        let parts = self.parts(work).min(step.units());
        let row = push(&mut self.plan.matmuls, step);
        self.step(StepKind::MatMul, row, &operands, parts, "matmul_f32", work);
        Ok(())
    }

    fn copy_outputs(&mut self) -> Result<()> {
        self.op = OpId(u32::MAX);
        for (i, &v) in self.g.outputs.iter().enumerate() {
            let from = self.place(v)?;
            if from.dims.contains(&0) {
                continue;
            }
            let to = Place::dense(Root::Output(i), &from.dims);
            self.copy(&from, &to, self.g.value_dtype[v])?;
            let info = self.plan.step_info.last_mut().expect("a step was added");
            info.op.clone_from(&self.g.value_name[v]);
        }
        Ok(())
    }

    /// Lays out the arena and resolves operands.
    fn finish(mut self, keep_values: bool) -> Result<(Plan, Requests)> {
        let kept_until = kept_until(&self.plan, self.target.threads);
        let intervals: Vec<Interval> = self
            .buffers
            .iter()
            .map(|b| Interval {
                first: if keep_values { 0 } else { b.first },
                last: if keep_values {
                    usize::MAX
                } else {
                    kept_until.get(b.last).copied().unwrap_or(b.last)
                },
                size: (READ_BEFORE + b.elements * b.dtype.size() + READ_AFTER).next_multiple_of(LINE),
            })
            .collect();
        let (offsets, total) = colour(&intervals);
        if total as u64 > ARENA_BYTES_MAX {
            return Err(Error::TooLarge { bytes: total as u64, max: ARENA_BYTES_MAX });
        }
        let offsets: Vec<usize> = offsets.iter().map(|o| o + READ_BEFORE).collect();
        self.plan.arena_bytes = total;
        self.plan.args = self
            .operands
            .iter()
            .map(|&(root, at, size)| match root {
                Root::Buffer(b) => Slot { space: Space::Arena, offset: offsets[b] + at * size },
                Root::Const(blob) => Slot { space: Space::Weights(blob), offset: at * size },
                Root::Input(i) => Slot { space: Space::Input(i as u32), offset: at * size },
                Root::Output(i) => Slot { space: Space::Output(i as u32), offset: at * size },
            })
            .collect();
        self.plan.buffer_offset = offsets;
        self.plan.value_place = self
            .g
            .value_name
            .ids()
            .filter_map(|v| self.places[v.index()].clone().map(|p| (v, p)))
            .filter(|(_, p)| matches!(p.root, Root::Buffer(_)))
            .collect();
        Ok((self.plan, self.requests))
    }
}

/// Borders of fewer elements are filled by one thread: the step that follows need not meet the others then.
const PARALLEL_FILL: usize = 4096;
/// Windows of the largest that are at least so high and wide are taken along one axis and then along the other.
const SEPARATE_POOL: u32 = 4;
/// Maps smaller than this stay on one thread: meeting costs more than it saves.
const PARALLEL_ELEMENTS: usize = 16384;

pub(super) fn push<T>(table: &mut Vec<T>, row: T) -> u32 {
    table.push(row);
    u32::try_from(table.len() - 1).expect("a table holds fewer than 2^32 rows")
}

/// Whether x is planes and y has three or four bytes for each pixel.
fn is_image(x: &Place, y: &Place) -> bool {
    y.dims.len() == 4 && PixelsStep::is_for(y.dims[3], y.strides[2]) && x.strides[2] == 1
}

pub(super) fn operand(p: &Place, dtype: DType) -> Operand {
    (p.root, p.origin, dtype.size())
}

/// Dims and strides of a matmul operand with at least two dimensions, transposed if asked.
fn as_matrix_operand(p: &Place, left: bool, transposed: bool) -> (Vec<usize>, Vec<usize>) {
    let (mut dims, mut strides) = (p.dims.clone(), p.strides.clone());
    if dims.len() == 1 {
        let at = if left { 0 } else { 1 };
        dims.insert(at, 1);
        strides.insert(at, 0);
    }
    if transposed {
        let last = dims.len() - 1;
        dims.swap(last - 1, last);
        strides.swap(last - 1, last);
    }
    (dims, strides)
}
