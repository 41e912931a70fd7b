//! What callers hold: a compiled graph that runs.

use crate::batch::{Cut, Cutting, measure_ways, point_at, separable};
use crate::binding::{Binding, Tail, specialise};
use crate::error::{Error, Result};
use crate::memory::AlignedBytes;
use crate::passes::{PassReport, lower};
use crate::plan::{
    Bases, Blob, Built, Fault, How, KernelChoice, Orders, Plan, Root, StepInfo, Weights, build, cache_folder,
    fault_error, measure, packed_constants, store_choices,
};
use crate::target::{Isa, Target};
use crate::trial::Trial;
use crate::workers::{Apart, Workers};
use lacuna_ir::bind::shape_inputs;
use lacuna_ir::{DType, Dim, Graph, Id, Tensor, ValueId};
use serde::Serialize;

/// Whether kernels are chosen by measurement. Integer results never depend on it; f32 results differ within the
/// bound of [`crate::kernels`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tune {
    /// By the cost model alone: the same choice every time, and the session is ready soonest.
    #[default]
    Off,
    /// By the cost model, then by some ten to thirty runs of the plan when the session is made.
    On,
    /// As found on disk, where an earlier session of the same model and machine left it; otherwise as `On`, and kept
    /// there. The folder is `LACUNA_CACHE`, or `lacuna` in the user's cache folder. Files that cannot be read or
    /// written are no error.
    Cached,
}

/// How a session is made. The default is all cores and the best kernels by the cost model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Threads, the caller's included; all cores if absent.
    pub threads: Option<usize>,
    /// Kernel rows up to this one; `LACUNA_ISA` or what the processor has if absent.
    pub isa: Option<Isa>,
    pub kernels: KernelChoice,
    /// The batch to bind at once, and to choose kernels for; 1 if absent. Other batches run too.
    pub batch: Option<usize>,
    pub tune: Tune,
    /// Keep the session's thread number i on core `first_core + i`. The caller's own thread is number 0: it can do the
    /// same with [`pin_thread`](crate::pin_thread).
    pub first_core: Option<usize>,
    /// Bytes of a core's second-level cache that plans are made for; as of most processors if absent. Chains of f32 layers with
    /// values much larger than that run a band of lines at a time.
    pub cache_bytes: Option<usize>,
    /// Let f32 layers multiply in bfloat16, where that is faster: sums and tensors stay f32, and results get the error of factors
    /// with 8 bits ([`crate::kernels`]). Weights of whole numbers, and branches that data choose, stay f32. An error where the
    /// processor cannot (AVX512_BF16).
    pub bf16: bool,
    /// Keep every value of the lowered graph after a run, for [`Session::value`]. Costs memory.
    pub keep_values: bool,
    /// Give the graph's weights back once they are packed. [`Session::lowered`] then lacks them.
    pub release_weights: bool,
}

/// What a symbol that is not the batch, such as the length of sequences, is bound to until a run says otherwise, if the
/// network takes that many: kernels are chosen for it.
pub const LENGTH: u64 = 128;

/// An input or output: `None` stands for a dimension that a run binds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    pub name: String,
    #[serde(serialize_with = "dtype_name")]
    pub dtype: DType,
    pub dims: Vec<Option<usize>>,
}

fn dtype_name<S: serde::Serializer>(dtype: &DType, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(dtype.name())
}

macro_rules! views {
    ($($ty:ty, $dtype:ident, $name:ident;)*) => {
        impl<'a> InputRef<'a> {
            $(pub fn $name(dims: &'a [usize], elements: &'a [$ty]) -> InputRef<'a> {
                InputRef { dtype: DType::$dtype, dims, bytes: bytemuck::cast_slice(elements) }
            })*
        }

        impl<'a> OutputMut<'a> {
            $(pub fn $name(elements: &'a mut [$ty]) -> OutputMut<'a> {
                OutputMut { dtype: DType::$dtype, bytes: bytemuck::cast_slice_mut(elements) }
            })*
        }
    };
}

/// A borrowed dense row-major tensor.
#[derive(Clone, Copy, Debug)]
pub struct InputRef<'a> {
    dtype: DType,
    dims: &'a [usize],
    bytes: &'a [u8],
}

/// Where an output goes: dense, row-major.
#[derive(Debug)]
pub struct OutputMut<'a> {
    dtype: DType,
    bytes: &'a mut [u8],
}

views! {
    f32, F32, f32;
    i64, I64, i64;
    i32, I32, i32;
    u8, U8, u8;
    i8, I8, i8;
}

impl<'a> From<&'a Tensor> for InputRef<'a> {
    fn from(t: &'a Tensor) -> InputRef<'a> {
        InputRef { dtype: t.dtype(), dims: &t.dims, bytes: t.bytes() }
    }
}

/// One step, as `analyze` and `benchmark` show it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepProfile {
    pub op: String,
    pub kind: &'static str,
    pub kernel: &'static str,
    /// Elements of the weights, and how many of those packed are not zero, in number and as a share.
    pub weights: u64,
    pub nonzeros: u64,
    pub density: f64,
    pub slot_efficiency: Option<f64>,
    pub estimated_ns: f64,
    /// Median over the runs.
    pub measured_ns: Option<f64>,
    pub reason: String,
}

/// Addresses of the caller's memory, set at the start of a run and used in it only.
#[derive(Default)]
struct Pointers(Vec<*mut u8>);

// SAFETY: nothing behind the addresses is touched outside `Session::run_into`, which holds the borrows.
unsafe impl Send for Pointers {}
// SAFETY: as above; a shared session reads none of them.
unsafe impl Sync for Pointers {}

/// Where the packed weights lie.
struct Blobs(Vec<Blob>);

// SAFETY: the blobs are owned by the session's `Weights`, and read only.
unsafe impl Send for Blobs {}
// SAFETY: as above.
unsafe impl Sync for Blobs {}

/// A compiled graph. Not shared between threads: one run at a time, on the session's own threads.
pub struct Session {
    graph: Graph,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    reports: Vec<PassReport>,
    target: Target,
    options: Options,
    weights: Weights,
    blobs: Blobs,
    /// What each symbol is bound to.
    symbols: Vec<u64>,
    cut: Option<Cut>,
    /// Runs of the plan that make a run of the session, each for the next images of the batch.
    pieces: usize,
    /// More than one if each piece is one thread's: then each thread has an arena of its own.
    arenas: usize,
    /// Inputs whose contents decide shapes, and what they held when the session was bound last.
    shape_inputs: Vec<usize>,
    contents: Vec<(usize, Tensor)>,
    /// Which outputs the plan writes, in its order.
    head_outputs: Vec<usize>,
    tail: Option<Tail>,
    /// Dims of each output under this binding; of those of the tail, in the last run.
    output_dims: Vec<Vec<usize>>,
    output_is_sized: Vec<bool>,
    plan: Plan,
    arena: AlignedBytes,
    workers: Workers,
    input_pointers: Pointers,
    output_pointers: Pointers,
    /// Scratch for the symbols of a run.
    wanted: Vec<u64>,
    fault: Fault,
}

fn port(g: &Graph, v: ValueId) -> Port {
    let dims = g.shape(v).iter().map(|d| d.fixed().map(|n| n as usize)).collect();
    Port { name: g.value_name[v].clone(), dtype: g.value_dtype[v], dims }
}

/// As many arenas as `copies`, one after another.
fn new_arena(plan: &Plan, copies: usize) -> Result<AlignedBytes> {
    let bytes = plan.arena_bytes * copies;
    AlignedBytes::try_zeroed(bytes).ok_or(Error::OutOfMemory { bytes: bytes as u64 })
}

fn start_workers(threads: usize, first_core: Option<usize>) -> Result<Workers> {
    Workers::start(threads, first_core)
        .map_err(|e| Error::Options(format!("cannot start {threads} threads: {e}")))
}

/// Sets every symbol that is the first dimension of an input.
fn bind_batch(g: &Graph, batch: usize, symbols: &mut [u64]) {
    for &v in &g.inputs {
        if let Some(&Dim::Symbol(s)) = g.shape(v).first() {
            symbols[s.index()] = batch as u64;
        }
    }
}

/// Sizes to begin with: [`LENGTH`], then what networks take that do not take that. Readers of text lines want a height
/// of 48 or 32, short sequences have few positions, windows of sound have some hundred samples.
const FIRST_SIZES: [u64; 12] = [LENGTH, 64, 48, 32, 16, 8, 4, 2, 1, 256, 512, 1024];

/// A binding to begin with: of the first of [`FIRST_SIZES`] that the network takes.
fn first_binding(g: &Graph, batch: usize) -> Result<(Vec<u64>, Binding)> {
    let mut refused = None;
    for size in FIRST_SIZES {
        let mut symbols = vec![size; g.symbols.len()];
        bind_batch(g, batch, &mut symbols);
        match specialise(g, &symbols, &[]) {
            Ok(bound) => return Ok((symbols, bound)),
            Err(why) => refused.get_or_insert(why),
        };
    }
    Err(refused.expect("a size was tried"))
}

impl Session {
    /// Compiles `g`: runs the passes, packs the weights, plans for [`Options::batch`] (every other symbol is
    /// [`LENGTH`]).
    pub fn new(g: &Graph, options: &Options) -> Result<Session> {
        Session::bound(g, options, |g| first_binding(g, options.batch.unwrap_or(1)))
    }

    /// Compiles `g` for inputs of the sizes that these have.
    pub(crate) fn for_inputs(g: &Graph, options: &Options, inputs: &[Tensor]) -> Result<Session> {
        Session::bound(g, options, |g| {
            let mut symbols = vec![LENGTH; g.symbols.len()];
            for (&v, input) in g.inputs.iter().zip(inputs) {
                for (dim, &size) in g.shape(v).iter().zip(&input.dims) {
                    if let Dim::Symbol(s) = dim {
                        symbols[s.index()] = size as u64;
                    }
                }
            }
            let bound = specialise(g, &symbols, &[])?;
            Ok((symbols, bound))
        })
    }

    /// `bind` says what the symbols of the lowered graph are.
    fn bound(
        g: &Graph,
        options: &Options,
        bind: impl FnOnce(&Graph) -> Result<(Vec<u64>, Binding)>,
    ) -> Result<Session> {
        let target = Target::new(options.isa, options.threads)?;
        let target = Target { cache_bytes: options.cache_bytes.unwrap_or(target.cache_bytes), ..target };
        let target = target.with_bf16(options.bf16)?;
        let (mut graph, reports) = lower(g, &target)?;
        let shape_inputs = shape_inputs(&graph);
        let (symbols, mut bound) = bind(&graph)?;
        let cache = cache_folder().filter(|_| options.tune == Tune::Cached);
        let how = How {
            target: &target,
            choice: options.kernels,
            tune: options.tune != Tune::Off,
            cache: cache.as_deref(),
        };
        // What is not planned yet may need them later.
        let whole = bound.tail.is_none() && shape_inputs.is_empty();
        let mut weights = Weights::default();
        if whole && !options.keep_values && options.kernels != KernelChoice::Dense {
            weights.orders = Orders::of(&graph, &target, cache.as_deref());
        }
        let release = if options.release_weights && whole { packed_constants(&graph) } else { Vec::new() };
        let emptied = || release.iter().for_each(|&c| graph.consts[c] = Default::default());
        let head = std::mem::take(&mut bound.graph);
        // Sizes of inputs and outputs, for measuring runs.
        let ends = Graph { op_kind: Default::default(), consts: Default::default(), ..head.clone() };
        let built = build(head, &bound.computed, &how, options.keep_values, &mut weights, emptied)?;
        let Built { mut plan, contests, key, kept_way } = built;
        let mut workers = start_workers(target.threads, options.first_core)?;
        let mut arena = new_arena(&plan, 1)?;
        let mut way = kept_way.unwrap_or_default();
        let batch = separable(&graph).filter(|_| whole && !options.keep_values);
        if how.tune && kept_way.is_none() {
            let mut trial = Trial::new(&ends, target.isa, &mut arena, &mut workers);
            if !contests.is_empty() {
                let blobs = weights.table();
                measure(&mut plan, &mut weights, contests, |plan, times| trial.run(plan, &blobs, times));
            }
            if let Some(batch) = batch {
                let of = (&graph, &symbols[..], batch);
                way = measure_ways(of, &plan, &mut weights, &target, options.kernels, &mut trial);
            }
            if let (Some(folder), Some(key)) = (&cache, key) {
                store_choices(folder, key, &plan, way);
            }
        }
        weights.lay_out(&plan);
        let inputs: Vec<Port> = graph.inputs.iter().map(|&v| port(&graph, v)).collect();
        // Passes give values new names: outputs keep those of the caller's graph.
        let outputs: Vec<Port> = (g.outputs.iter().zip(&graph.outputs))
            .map(|(&old, &new)| Port { name: g.value_name[old].clone(), ..port(&graph, new) })
            .collect();
        let mut session = Session {
            input_pointers: Pointers::default(),
            output_pointers: Pointers::default(),
            arena,
            blobs: Blobs(weights.table()),
            wanted: symbols.clone(),
            shape_inputs,
            contents: Vec::new(),
            head_outputs: Vec::new(),
            tail: None,
            output_dims: Vec::new(),
            output_is_sized: Vec::new(),
            options: *options,
            graph,
            inputs,
            outputs,
            reports,
            target,
            weights,
            symbols,
            cut: batch.map(|batch| Cut { batch, way }),
            pieces: 1,
            arenas: 1,
            plan,
            workers,
            fault: Fault::default(),
        };
        session.adopt(bound, &Cutting::of(None, &session.symbols, &target));
        if Cutting::of(session.cut, &session.symbols, &target).pieces > 1 {
            session.rebind(Vec::new())?;
            session.arena = new_arena(&session.plan, session.arenas)?;
        }
        Ok(session)
    }

    /// One more session of the same model, bound as this one, that reads the same packed weights: it costs its
    /// activations only. It has `threads` threads; if this one's are pinned, the other's are too, from `first_core` on.
    pub fn stream(&self, threads: usize, first_core: usize) -> Result<Session> {
        let target = Target::new(Some(self.target.isa), Some(threads))?;
        let target = Target { cache_bytes: self.target.cache_bytes, bf16: self.target.bf16, ..target };
        let options = Options {
            threads: Some(threads),
            first_core: self.options.first_core.map(|_| first_core),
            ..self.options
        };
        let mut weights = self.weights.clone();
        let cutting = Cutting::of(self.cut, &self.symbols, &target);
        let mut bound = specialise(&self.graph, &cutting.symbols, &self.contents)?;
        let plan = match threads == self.target.threads {
            true => self.plan.clone(),
            false => {
                let how = How { target: &cutting.target, choice: options.kernels, tune: false, cache: None };
                let head = std::mem::take(&mut bound.graph);
                build(head, &bound.computed, &how, options.keep_values, &mut weights, || ())?.plan
            }
        };
        let mut session = Session {
            graph: self.graph.clone(),
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            reports: self.reports.clone(),
            target,
            options,
            blobs: Blobs(weights.table()),
            weights,
            symbols: self.symbols.clone(),
            cut: self.cut,
            pieces: 1,
            arenas: 1,
            shape_inputs: self.shape_inputs.clone(),
            contents: self.contents.clone(),
            head_outputs: Vec::new(),
            tail: None,
            output_dims: Vec::new(),
            output_is_sized: Vec::new(),
            arena: AlignedBytes::default(),
            plan,
            workers: start_workers(threads, options.first_core)?,
            input_pointers: Pointers::default(),
            output_pointers: Pointers::default(),
            wanted: self.symbols.clone(),
            fault: Fault::default(),
        };
        session.adopt(bound, &cutting);
        session.arena = new_arena(&session.plan, session.arenas)?;
        Ok(session)
    }

    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    pub fn target(&self) -> Target {
        self.target
    }

    /// What the passes did.
    pub fn passes(&self) -> &[PassReport] {
        &self.reports
    }

    /// The lowered graph: `lacuna_ir::interp` on it gives what the engine gives, bit for bit in integers. With
    /// [`Options::release_weights`] packed weights are empty in it.
    pub fn lowered(&self) -> &Graph {
        &self.graph
    }

    pub fn steps(&self) -> &[StepInfo] {
        &self.plan.step_info
    }

    pub fn arena_bytes(&self) -> usize {
        self.plan.arena_bytes * self.arenas
    }

    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Dims of output `i` under the present binding. Where data decide them, those of the last run; before the first,
    /// what is not known is 0.
    pub fn output_dims(&self, i: usize) -> Vec<usize> {
        self.output_dims[i].clone()
    }

    /// The ops that the interpreter runs after the plan, by name and kind, because data decide the sizes of their results.
    pub fn tail(&self) -> Vec<(String, &'static str)> {
        let ops = self.tail.iter().flat_map(|t| t.ops());
        ops.map(|(name, kind)| (name.to_string(), kind)).collect()
    }

    /// Plans for this batch: every symbol that is the first dimension of an input becomes `batch`.
    /// Packed weights stay. Runs of that batch then allocate nothing.
    pub fn bind(&mut self, batch: usize) -> Result<()> {
        if batch == 0 {
            return Err(Error::Options("a batch of 0 has nothing to run: bind at least 1".to_string()));
        }
        self.wanted.clone_from(&self.symbols);
        bind_batch(&self.graph, batch, &mut self.wanted);
        self.bind_wanted()
    }

    /// Makes `wanted` the binding. On failure the old one stays.
    fn bind_wanted(&mut self) -> Result<()> {
        if self.wanted == self.symbols {
            return Ok(());
        }
        let contents = self.contents.clone();
        self.rebind(contents)
    }

    fn rebind(&mut self, contents: Vec<(usize, Tensor)>) -> Result<()> {
        let cutting = Cutting::of(self.cut, &self.wanted, &self.target);
        // What does not bind or plan in pieces runs whole.
        if cutting.pieces > 1 && self.rebind_as(&cutting, contents.clone()).is_ok() {
            return Ok(());
        }
        self.rebind_as(&Cutting::of(None, &self.wanted, &self.target), contents)
    }

    /// On failure the old binding stays.
    fn rebind_as(&mut self, cutting: &Cutting, contents: Vec<(usize, Tensor)>) -> Result<()> {
        let mut bound = specialise(&self.graph, &cutting.symbols, &contents)?;
        // A new batch finds its weights packed; what is new is chosen by the cost model.
        let how = How { target: &cutting.target, choice: self.options.kernels, tune: false, cache: None };
        let head = std::mem::take(&mut bound.graph);
        // A tail finds what it reads in the graph's order of channels: then all of it is packed anew.
        let reorders = bound.tail.is_some() && !self.weights.orders.is_empty();
        let mut weights = if reorders { Weights::default() } else { self.weights.clone() };
        let plan = build(head, &bound.computed, &how, self.options.keep_values, &mut weights, || ())?.plan;
        let arenas = cutting.arenas(&plan);
        if plan.arena_bytes * arenas > self.arena.len() {
            self.arena = new_arena(&plan, arenas)?;
        }
        if !reorders {
            self.plan.computed_blobs.iter().for_each(|&blob| weights.reuse(blob));
        }
        self.weights = weights;
        self.blobs.0 = self.weights.table();
        self.plan = plan;
        self.contents = contents;
        self.symbols.clone_from(&self.wanted);
        self.adopt(bound, cutting);
        Ok(())
    }

    /// Takes over a binding of the plan that is there.
    fn adopt(&mut self, bound: Binding, cutting: &Cutting) {
        let pieces = cutting.pieces;
        self.pieces = pieces;
        self.arenas = cutting.arenas(&self.plan);
        let ranks = |i: usize| self.outputs[i].dims.iter().map(|d| d.unwrap_or(0)).collect();
        self.output_is_sized = bound.output_dims.iter().map(Option::is_some).collect();
        self.output_dims =
            bound.output_dims.into_iter().enumerate().map(|(i, d)| d.unwrap_or_else(|| ranks(i))).collect();
        let crossing = bound.tail.as_ref().map_or(0, |t| t.inputs.len());
        if pieces > 1 {
            self.output_dims.iter_mut().for_each(|dims| dims[0] *= pieces);
        }
        self.input_pointers.0 = vec![std::ptr::null_mut(); pieces * self.inputs.len()];
        self.output_pointers.0 = vec![std::ptr::null_mut(); pieces * (bound.head_outputs.len() + crossing)];
        self.head_outputs = bound.head_outputs;
        self.tail = bound.tail;
    }

    /// Binds the session to the dims, and where they decide shapes to the contents, of these inputs.
    fn bind_to(&mut self, inputs: &[InputRef<'_>]) -> Result<()> {
        self.read_symbols(inputs)?;
        let same = |k: usize, i: usize| {
            let held = self.contents.get(k).map(|(_, t)| t);
            held.is_some_and(|t| t.dims == inputs[i].dims && t.bytes() == inputs[i].bytes)
        };
        if self.shape_inputs.iter().enumerate().all(|(k, &i)| same(k, i)) {
            return self.bind_wanted();
        }
        let tensor = |&i: &usize| {
            let t = Tensor::from_bytes(inputs[i].dtype, inputs[i].dims, inputs[i].bytes);
            t.map(|t| (i, t)).ok_or_else(|| misfit(&self.inputs[i], &inputs[i]))
        };
        let contents = self.shape_inputs.iter().map(tensor).collect::<Result<_>>()?;
        self.rebind(contents)
    }

    /// Reads the symbols off the inputs' dims into `wanted`.
    fn read_symbols(&mut self, inputs: &[InputRef<'_>]) -> Result<()> {
        if inputs.len() != self.inputs.len() {
            return Err(Error::Input {
                name: self.inputs.get(inputs.len()).map_or_else(String::new, |p| p.name.clone()),
                why: format!("{} inputs were given, the graph has {}", inputs.len(), self.inputs.len()),
            });
        }
        self.wanted.fill(0);
        for (i, input) in inputs.iter().enumerate() {
            let shape = self.graph.shape(self.graph.inputs[i]);
            let mut fits = input.dtype == self.inputs[i].dtype && input.dims.len() == shape.len();
            let count = input.dims.iter().try_fold(input.dtype.size(), |n, &d| n.checked_mul(d));
            fits &= count == Some(input.bytes.len());
            for (&dim, &given) in shape.iter().zip(input.dims) {
                fits &= match dim {
                    Dim::Fixed(n) => n == given as u64,
                    Dim::Unknown => false,
                    Dim::Symbol(s) => {
                        let known = std::mem::replace(&mut self.wanted[s.index()], given as u64);
                        given > 0 && (known == 0 || known == given as u64)
                    }
                };
            }
            if !fits {
                return Err(misfit(&self.inputs[i], input));
            }
        }
        // A symbol that no input carries keeps its binding.
        for (wanted, &now) in self.wanted.iter_mut().zip(&self.symbols) {
            if *wanted == 0 {
                *wanted = now;
            }
        }
        Ok(())
    }

    /// Runs the graph. Once a batch is bound, further runs of that batch allocate nothing, unless ops run on the reference
    /// path ([`Session::steps`] says which, and why).
    ///
    /// # Errors
    /// [`Error::Input`] and [`Error::Output`] for what does not fit the graph; [`Error::Op`] for an op of the reference
    /// path that cannot be evaluated on these data; [`Error::TooLarge`] for a new batch
    /// whose activations pass the limit.
    pub fn run_into(&mut self, inputs: &[InputRef<'_>], outputs: &mut [OutputMut<'_>]) -> Result<()> {
        self.run_timed(inputs, outputs, None)
    }

    fn run_timed(
        &mut self,
        inputs: &[InputRef<'_>],
        outputs: &mut [OutputMut<'_>],
        times: Option<&mut [u64]>,
    ) -> Result<()> {
        self.bind_to(inputs)?;
        self.check_outputs(outputs)?;
        let made = self.run_bound(inputs, outputs, times)?;
        for (k, t) in made.iter().enumerate() {
            let i = self.tail.as_ref().map_or(0, |tail| tail.outputs[k]);
            if outputs[i].bytes.len() != t.bytes().len() {
                return Err(Error::Output {
                    name: self.outputs[i].name.clone(),
                    why: format!(
                        "is {}{:?} for these data, {} bytes were given: `run` returns outputs whose size data decide",
                        t.dtype(),
                        t.dims,
                        outputs[i].bytes.len()
                    ),
                });
            }
            outputs[i].bytes.copy_from_slice(t.bytes());
        }
        Ok(())
    }

    /// Runs the plan, which writes `outputs` where it makes them, and the tail, whose results it returns.
    fn run_bound(
        &mut self,
        inputs: &[InputRef<'_>],
        outputs: &mut [OutputMut<'_>],
        mut times: Option<&mut [u64]>,
    ) -> Result<Vec<Tensor>> {
        self.check_indices(inputs)?;
        let mut of_piece = Vec::new();
        if let Some(times) = times.as_deref_mut().filter(|_| self.pieces > 1) {
            times.fill(0);
            of_piece = vec![0; times.len()];
        }
        self.point_at(inputs, outputs);
        let (of_inputs, of_outputs) =
            (self.input_pointers.0.len() / self.pieces, self.output_pointers.0.len() / self.pieces);
        let bases = Bases {
            arena: self.arena.as_mut_ptr(),
            weights: self.blobs.0.as_ptr(),
            inputs: self.input_pointers.0.as_ptr().cast(),
            outputs: self.output_pointers.0.as_ptr(),
            isa: self.target.isa,
            fault: &self.fault,
        };
        // SAFETY, of both: the arena is as large as the plan asks for, as many times as there are arenas; inputs and
        // outputs were checked to have the dtypes, dims and lengths the plan was built for, or as many times that as there
        // are pieces (those of the tail were made so), their types guarantee alignment, and the steps write no input.
        if self.arenas > 1 {
            let arena_bytes = self.plan.arena_bytes;
            let apart = Apart { pieces: self.pieces, arena_bytes, inputs: of_inputs, outputs: of_outputs };
            unsafe { self.workers.run_apart(&self.plan, &bases, apart, times) };
        } else {
            for piece in 0..self.pieces {
                let bases = Bases {
                    inputs: bases.inputs.wrapping_add(piece * of_inputs),
                    outputs: bases.outputs.wrapping_add(piece * of_outputs),
                    ..bases
                };
                let of_run = if of_piece.is_empty() { times.as_deref_mut() } else { Some(&mut of_piece[..]) };
                unsafe { self.workers.run(&self.plan, &bases, of_run) };
                if let Some(fault) = self.fault.take() {
                    return Err(fault_error(&self.plan, fault));
                }
                let total = times.as_deref_mut().unwrap_or_default();
                total.iter_mut().zip(&of_piece).for_each(|(total, ns)| *total += ns);
            }
        }
        let Some(tail) = &self.tail else { return Ok(Vec::new()) };
        let made = tail.run()?;
        for (&i, t) in tail.outputs.iter().zip(&made) {
            self.output_dims[i].clone_from(&t.dims);
        }
        Ok(made)
    }

    /// Sets the addresses of a run.
    fn point_at(&mut self, inputs: &[InputRef<'_>], outputs: &mut [OutputMut<'_>]) {
        let pieces = self.pieces;
        let read = inputs.iter().map(|x| (x.bytes.as_ptr().cast_mut(), x.bytes.len() / pieces));
        point_at(&mut self.input_pointers.0, pieces, read);
        let made = self.head_outputs.iter().map(|&i| {
            let bytes = &mut *outputs[i].bytes;
            (bytes.as_mut_ptr(), bytes.len() / pieces)
        });
        let crossing = self.tail.iter_mut().flat_map(|tail| &mut tail.inputs);
        let crossing = crossing.map(|t| (output_of(t).bytes.as_mut_ptr(), 0));
        point_at(&mut self.output_pointers.0, pieces, made.chain(crossing));
    }

    /// Indices among the inputs must find a row of what they look up.
    fn check_indices(&self, inputs: &[InputRef<'_>]) -> Result<()> {
        for &(input, limit) in &self.plan.index_limits {
            let bytes = inputs[input].bytes;
            let wrong = |i: &i64| *i < -(limit as i64) || *i >= limit as i64;
            let found = match inputs[input].dtype {
                DType::I64 => bytemuck::cast_slice::<u8, i64>(bytes).iter().copied().find(wrong),
                _ => bytemuck::cast_slice::<u8, i32>(bytes).iter().map(|&i| i64::from(i)).find(wrong),
            };
            if let Some(i) = found {
                return Err(Error::Input {
                    name: self.inputs[input].name.clone(),
                    why: format!("holds the index {i}, there are {limit} rows to choose from"),
                });
            }
        }
        Ok(())
    }

    fn check_outputs(&self, outputs: &[OutputMut<'_>]) -> Result<()> {
        if outputs.len() != self.outputs.len() {
            return Err(Error::Output {
                name: self.outputs.get(outputs.len()).map_or_else(String::new, |p| p.name.clone()),
                why: format!("{} outputs were given, the graph has {}", outputs.len(), self.outputs.len()),
            });
        }
        for (i, output) in outputs.iter().enumerate() {
            let port = &self.outputs[i];
            let want = match self.output_is_sized[i] {
                true => self.output_dims[i].iter().product::<usize>() * port.dtype.size(),
                false => output.bytes.len(),
            };
            if output.dtype != port.dtype || output.bytes.len() != want {
                return Err(Error::Output {
                    name: port.name.clone(),
                    why: format!(
                        "is {} with {want} bytes for this batch, {} with {} bytes was given",
                        port.dtype,
                        output.dtype,
                        output.bytes.len()
                    ),
                });
            }
        }
        Ok(())
    }

    /// Runs the graph and returns its outputs in new tensors.
    pub fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.run_times(inputs, None)
    }

    fn run_times(&mut self, inputs: &[Tensor], times: Option<&mut [u64]>) -> Result<Vec<Tensor>> {
        let inputs: Vec<InputRef<'_>> = inputs.iter().map(InputRef::from).collect();
        self.bind_to(&inputs)?;
        // What the tail makes is put in its place afterwards.
        let mut tensors: Vec<Tensor> = (0..self.outputs.len())
            .map(|i| match self.output_is_sized[i] {
                true => Tensor::zeros(self.outputs[i].dtype, &self.output_dims[i]),
                false => Tensor::zeros(self.outputs[i].dtype, &[0]),
            })
            .collect();
        let mut outputs: Vec<OutputMut<'_>> = tensors.iter_mut().map(output_of).collect();
        let made = self.run_bound(&inputs, &mut outputs, times)?;
        for (k, t) in made.into_iter().enumerate() {
            let i = self.tail.as_ref().map_or(0, |tail| tail.outputs[k]);
            tensors[i] = t;
        }
        Ok(tensors)
    }

    /// Runs `runs` times and returns what each step is and how long it took.
    pub fn profile(&mut self, inputs: &[Tensor], runs: usize) -> Result<Vec<StepProfile>> {
        // The first run binds the batch, which changes the steps.
        self.run(inputs)?;
        let mut times = vec![vec![0; self.plan.steps()]; runs];
        for times in &mut times {
            self.run_times(inputs, Some(times))?;
        }
        let median = |step: usize| {
            let mut of: Vec<u64> = times.iter().map(|t| t[step]).collect();
            of.sort_unstable();
            of.get(of.len() / 2).map(|&ns| ns as f64)
        };
        Ok(self.plan.step_info.iter().enumerate().map(|(i, info)| profile_row(info, median(i))).collect())
    }

    /// What each step is and is expected to cost, without running.
    pub fn analyze(&self) -> Vec<StepProfile> {
        self.plan.step_info.iter().map(|info| profile_row(info, None)).collect()
    }

    /// A value of [`Session::lowered`] after a run, if it was kept ([`Options::keep_values`]) and has a place of its
    /// own or shares one. Padding is left out.
    pub fn value(&self, v: ValueId) -> Option<Tensor> {
        if !self.options.keep_values {
            return None;
        }
        let (_, place) = self.plan.value_place.iter().find(|(x, _)| *x == v)?;
        let Root::Buffer(buffer) = place.root else { return None };
        let dtype = *self.graph.value_dtype.get(v)?;
        let size = dtype.size();
        let start = self.plan.buffer_offset[buffer];
        let count: usize = place.dims.iter().product();
        let mut bytes = Vec::with_capacity(count * size);
        for i in 0..count {
            let (mut rest, mut at) = (i, place.origin);
            for d in (0..place.dims.len()).rev() {
                at += rest % place.dims[d] * place.strides[d];
                rest /= place.dims[d];
            }
            bytes.extend_from_slice(self.arena.get(start + at * size..start + (at + 1) * size)?);
        }
        Tensor::from_bytes(dtype, &place.dims, &bytes)
    }
}

fn profile_row(info: &StepInfo, measured_ns: Option<f64>) -> StepProfile {
    StepProfile {
        op: info.op.clone(),
        kind: info.kind,
        kernel: info.kernel,
        weights: info.weights,
        nonzeros: info.nonzeros,
        density: if info.weights == 0 { 1.0 } else { info.nonzeros as f64 / info.weights as f64 },
        slot_efficiency: info.slot_efficiency,
        estimated_ns: info.estimated_ns,
        measured_ns,
        reason: info.reason.clone(),
    }
}

fn output_of(t: &mut Tensor) -> OutputMut<'_> {
    use lacuna_ir::Elements::*;
    match &mut t.elements {
        F32(v) => OutputMut::f32(v),
        I64(v) => OutputMut::i64(v),
        I32(v) => OutputMut::i32(v),
        I8(v) => OutputMut::i8(v),
        U8(v) => OutputMut::u8(v),
        Bool(v) => OutputMut { dtype: DType::Bool, bytes: v },
    }
}

fn misfit(port: &Port, given: &InputRef<'_>) -> Error {
    let dims: Vec<String> =
        port.dims.iter().map(|d| d.map_or_else(|| "any".to_string(), |n| n.to_string())).collect();
    Error::Input {
        name: port.name.clone(),
        why: format!(
            "is {}[{}] in the graph, {}{:?} with {} bytes was given",
            port.dtype,
            dims.join(","),
            given.dtype,
            given.dims,
            given.bytes.len()
        ),
    }
}
