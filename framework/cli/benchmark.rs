//! `lacuna benchmark`: latency and throughput, with the flags and the JSON keys of `deepsparse.benchmark`.
//!
//! `sync` runs one session on all cores, request after request. `async` runs several sessions side by side, each with
//! its share of the cores. `elastic` has so many callers share all cores: one that is alone gets all of them, otherwise
//! each gets one as soon as one is free. All sessions read the same packed weights. Times are of whole runs, seen by the caller; inputs are random and stay the same.

use crate::error::{Exit, Failure, Result};
use crate::{model_file, term, training};
use lacuna_engine::{InputRef, Options, OutputMut, Pool, Port, Session, Tune};
use lacuna_ir::{DType, Def, Dim, Elements, Graph, Tensor};
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Runs kept for the percentiles of one stream; a faster model stops there.
const RUNS_MAX: usize = 1 << 24;
const PERCENTILES: [f64; 7] = [25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// One request after the other, on all cores.
    #[default]
    Sync,
    /// Several streams side by side, each on its share of the cores.
    Async,
    /// Several callers share all cores, as the load asks.
    Elastic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum EngineName {
    Deepsparse,
    Lacuna,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Pin {
    None,
    Core,
    Numa,
}

#[derive(clap::Args, Debug)]
pub struct Benchmark {
    /// ONNX or .lacuna file, run folder or .safetensors file of a run
    #[arg(value_name = "MODEL")]
    path: PathBuf,
    /// Images (samples) in one run
    #[arg(short, long = "batch_size", alias = "batch-size", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch_size: u32,
    /// Input shapes, such as "[1,3,224,224]" (also -shapes); the batch comes from -b
    #[arg(
        short,
        long = "input_shapes",
        visible_alias = "shapes",
        alias = "input-shapes",
        value_name = "SHAPES"
    )]
    input_shapes: Option<String>,
    /// Cores to use, all if not given (also -ncores)
    #[arg(long = "num_cores", visible_alias = "ncores", alias = "num-cores", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    num_cores: Option<u32>,
    /// How requests arrive
    #[arg(short, long, value_enum, default_value_t = Scenario::Sync)]
    scenario: Scenario,
    /// Seconds to measure
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    time: f64,
    /// Seconds to run before
    #[arg(short, long = "warmup_time", alias = "warmup-time", value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    warmup_time: f64,
    /// Streams of async, callers of elastic; one for each core if not given (also -nstreams)
    #[arg(long = "num_streams", visible_alias = "nstreams", alias = "num-streams", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    num_streams: Option<u32>,
    /// Where threads stay (also -pin): each on a core of its own with core and numa
    #[arg(long = "thread_pinning", visible_alias = "pin", alias = "thread-pinning", value_enum, default_value_t = Pin::None)]
    thread_pinning: Pin,
    /// The engine; both names mean this one
    #[arg(short, long, value_enum, default_value_t = EngineName::Lacuna)]
    engine: EngineName,
    /// Let f32 layers multiply in bfloat16, where the processor can: faster, with the error of factors of 8 bits
    #[arg(long)]
    bf16: bool,
    /// Measure which kernels are best, whatever was measured before, and keep nothing on disk
    #[arg(long = "no_cache", alias = "no-cache")]
    no_cache: bool,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
    /// Write the result as JSON to this file
    #[arg(short = 'x', long = "export_path", alias = "export-path", value_name = "FILE")]
    export_path: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|e| format!("{e}"))?;
    if (0.0..=86_400.0).contains(&value) { Ok(value) } else { Err("not 0 to 86400 seconds".into()) }
}

/// DeepSparse's long flags with one dash.
const ONE_DASH: &[&str] = &["-ncores", "-nstreams", "-shapes", "-pin"];

/// Gives the second dash to the flags of [`ONE_DASH`], where the verb is `benchmark`.
pub fn long_flags(mut words: Vec<OsString>) -> Vec<OsString> {
    if words.get(1).is_none_or(|verb| verb != "benchmark") {
        return words;
    }
    for word in &mut words {
        let Some(text) = word.to_str() else { continue };
        let flag = text.split('=').next().unwrap_or_default();
        if ONE_DASH.contains(&flag) {
            *word = format!("-{text}").into();
        }
    }
    words
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    pub batch: usize,
    /// Cores in all; all of the machine if absent.
    pub cores: Option<usize>,
    pub scenario: Scenario,
    /// Streams of async; one for each core if absent.
    pub streams: Option<usize>,
    pub warmup: Duration,
    pub time: Duration,
    pub tune: Tune,
    /// f32 layers may multiply in bfloat16.
    pub bf16: bool,
    /// Each thread stays on a core of its own.
    pub pin: bool,
}

impl Default for Plan {
    /// Batch 1 on all cores, for two seconds after half a second.
    fn default() -> Plan {
        let (warmup, time) = (Duration::from_millis(500), Duration::from_secs(2));
        let scenario = Scenario::Sync;
        let (tune, bf16, pin) = (Tune::On, false, false);
        Plan { batch: 1, cores: None, scenario, streams: None, warmup, time, tune, bf16, pin }
    }
}

/// What was measured. Times of runs are in milliseconds, over all streams.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    pub streams: usize,
    pub cores: usize,
    pub iterations: usize,
    pub seconds: f64,
    pub items_per_sec: f64,
    pub median: f64,
    pub mean: f64,
    pub std: f64,
    /// Percentile, milliseconds.
    pub percentiles: Vec<(f64, f64)>,
}

/// Measures a graph whose inputs have these dims, the batch included.
pub fn measure(graph: &Graph, shapes: &[Vec<usize>], plan: &Plan) -> Result<Measured> {
    let cores = lacuna_engine::Target::new(None, plan.cores)?.threads;
    let streams = match plan.scenario {
        Scenario::Sync => 1,
        Scenario::Async | Scenario::Elastic => plan.streams.unwrap_or(cores),
    };
    let threads = if plan.scenario == Scenario::Elastic { cores } else { (cores / streams).max(1) };
    let options = Options {
        threads: Some(threads),
        batch: Some(plan.batch),
        tune: plan.tune,
        bf16: plan.bf16,
        first_core: (plan.pin && plan.scenario != Scenario::Elastic).then_some(0),
        release_weights: true,
        ..Options::default()
    };
    let (pool, sessions) = match plan.scenario {
        Scenario::Elastic => (Some(Pool::new(graph, &options)?), Vec::new()),
        Scenario::Sync | Scenario::Async => {
            let first = Session::new(graph, &options)?;
            let more: Vec<Session> =
                (1..streams).map(|i| first.stream(threads, i * threads)).collect::<Result<_, _>>()?;
            (None, std::iter::once(first).chain(more).collect())
        }
    };
    let ports = match &pool {
        Some(pool) => pool.with(|session| session.inputs().to_vec()),
        None => sessions[0].inputs().to_vec(),
    };
    let inputs = random_inputs(&ports, shapes)?;
    let engines: Vec<Engine<'_>> = match &pool {
        Some(pool) => (0..streams).map(|_| Engine::Shared(pool)).collect(),
        None => sessions.into_iter().map(|session| Engine::Own(Box::new(session))).collect(),
    };
    let barrier = Barrier::new(streams);
    let started: Vec<Result<(Vec<u64>, f64)>> = std::thread::scope(|scope| {
        let (inputs, barrier) = (&inputs, &barrier);
        let start = |(i, engine): (usize, Engine<'_>)| {
            let pinned = match options.first_core {
                Some(_) => lacuna_engine::pin_thread(i * threads),
                None => Ok(()),
            };
            // Whatever happens, the others are not left waiting at the barrier.
            let ran = stream(engine, inputs, plan, barrier);
            pinned.map_err(|e| Failure::usage(format!("-pin: {e} (leave it out)")))?;
            ran
        };
        let threads: Vec<_> =
            engines.into_iter().enumerate().map(|one| scope.spawn(move || start(one))).collect();
        let bug = || Failure::new(Exit::Internal, "benchmark: a stream panicked");
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(bug()))).collect()
    });
    let (mut times, mut seconds) = (Vec::new(), 0.0f64);
    for stream in started {
        let (runs, took) = stream?;
        times.extend(runs);
        seconds = seconds.max(took);
    }
    Ok(summary(times, seconds, plan.batch, streams, cores))
}

/// What runs the requests of one stream.
enum Engine<'a> {
    Own(Box<Session>),
    Shared(&'a Pool),
}

impl Engine<'_> {
    fn with<R>(&mut self, f: impl FnOnce(&mut Session) -> R) -> R {
        match self {
            Engine::Own(session) => f(session),
            Engine::Shared(pool) => pool.with(f),
        }
    }
}

/// Runs one engine until the time is over: nanoseconds of each run, and seconds in all.
fn stream(
    mut engine: Engine<'_>,
    inputs: &[Tensor],
    plan: &Plan,
    barrier: &Barrier,
) -> Result<(Vec<u64>, f64)> {
    let refs: Vec<InputRef<'_>> = inputs.iter().map(InputRef::from).collect();
    // The first run finds what is wrong with the inputs, binds the batch and gives memory for the outputs.
    let first = engine.with(|session| session.run(inputs));
    barrier.wait();
    let mut tensors = first?;
    let mut outputs: Vec<OutputMut<'_>> = tensors.iter_mut().map(output).collect::<Result<_>>()?;
    let warm = Instant::now();
    while warm.elapsed() < plan.warmup {
        engine.with(|session| session.run_into(&refs, &mut outputs))?;
    }
    let mut times = Vec::with_capacity(1 << 16);
    let start = Instant::now();
    loop {
        let run = Instant::now();
        engine.with(|session| session.run_into(&refs, &mut outputs))?;
        times.push(run.elapsed().as_nanos() as u64);
        if start.elapsed() >= plan.time || times.len() == RUNS_MAX {
            return Ok((times, start.elapsed().as_secs_f64()));
        }
    }
}

fn output(t: &mut Tensor) -> Result<OutputMut<'_>> {
    Ok(match &mut t.elements {
        Elements::F32(v) => OutputMut::f32(v),
        Elements::I64(v) => OutputMut::i64(v),
        Elements::I32(v) => OutputMut::i32(v),
        Elements::I8(v) => OutputMut::i8(v),
        Elements::U8(v) => OutputMut::u8(v),
        Elements::Bool(_) => return Err(Failure::input("outputs of booleans cannot be timed")),
    })
}

fn summary(mut times: Vec<u64>, seconds: f64, batch: usize, streams: usize, cores: usize) -> Measured {
    times.sort_unstable();
    let ms = |ns: u64| ns as f64 / 1e6;
    let n = times.len();
    let mean = times.iter().map(|&t| ms(t)).sum::<f64>() / n as f64;
    let variance = times.iter().map(|&t| (ms(t) - mean).powi(2)).sum::<f64>() / n as f64;
    // Linear between neighbours, as numpy.
    let percentile = |p: f64| {
        let at = p / 100.0 * (n - 1) as f64;
        let (low, high) = (ms(times[at.floor() as usize]), ms(times[at.ceil() as usize]));
        low + (high - low) * at.fract()
    };
    Measured {
        streams,
        cores,
        iterations: n,
        seconds,
        items_per_sec: (batch * n) as f64 / seconds,
        median: percentile(50.0),
        mean,
        std: variance.sqrt(),
        percentiles: PERCENTILES.iter().map(|&p| (p, percentile(p))).collect(),
    }
}

/// One tensor per input: numbers in 0..1, or the whole numbers 0 and 1; always the same.
pub fn random_inputs(ports: &[Port], shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut draw = move || {
        // Xorshift (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 40
    };
    let mut tensors = Vec::new();
    for (port, dims) in ports.iter().zip(shapes) {
        let Some(n) = lacuna_ir::element_count(dims) else {
            return Err(Failure::usage(format!("input '{}': {dims:?} has too many elements", port.name)));
        };
        tensors.push(match port.dtype {
            DType::F32 => {
                Tensor::from_f32(dims, (0..n).map(|_| draw() as f32 / (1u64 << 24) as f32).collect())
            }
            DType::U8 => Tensor::from_u8(dims, (0..n).map(|_| draw() as u8).collect()),
            DType::I8 => Tensor::from_i8(dims, (0..n).map(|_| draw() as i8).collect()),
            // Rows of any table of embeddings, and masks.
            DType::I32 => Tensor::from_i32(dims, (0..n).map(|_| (draw() % 2) as i32).collect()),
            DType::I64 => Tensor::from_i64(dims, (0..n).map(|_| (draw() % 2) as i64).collect()),
            DType::Bool => Tensor::from_bool(dims, (0..n).map(|_| (draw() % 2) as u8).collect()),
        });
    }
    Ok(tensors)
}

/// The dims of every input: `text` (`[1,3,224,224]`, several with commas between) or the model's own, with `batch` as
/// first dimension where the model leaves that open.
pub fn input_shapes(graph: &Graph, text: Option<&str>, batch: usize) -> Result<Vec<Vec<usize>>> {
    let given: Vec<Vec<usize>> = match text {
        None => Vec::new(),
        Some(text) => serde_json::from_str(&format!("[{text}]")).map_err(|_| {
            Failure::usage(format!(
                "-shapes {text}: write \"[1,3,224,224]\", or \"[1,3,8],[1,8]\" for two inputs"
            ))
        })?,
    };
    if text.is_some() && given.len() != graph.inputs.len() {
        let (n, inputs) = (given.len(), graph.inputs.len());
        return Err(Failure::usage(format!("-shapes: {n} shapes for {inputs} inputs (give one for each)")));
    }
    let mut shapes = Vec::new();
    for (i, &v) in graph.inputs.iter().enumerate() {
        debug_assert_eq!(graph.value_def[v], Def::Input);
        let (name, own) = (&graph.value_name[v], graph.shape(v));
        if given.get(i).is_some_and(|g| g.len() != own.len()) {
            return Err(Failure::usage(format!("-shapes: input '{name}' has {} dimensions", own.len())));
        }
        let mut dims = Vec::new();
        for (d, dim) in own.iter().enumerate() {
            dims.push(match (dim, given.get(i)) {
                (Dim::Fixed(n), None) => *n as usize,
                (Dim::Fixed(n), Some(given)) if given[d] as u64 == *n => given[d],
                (Dim::Fixed(n), Some(given)) => {
                    let what = format!("dimension {d} of input '{name}' is {n}, not {}", given[d]);
                    return Err(Failure::usage(format!("-shapes: {what}")));
                }
                (_, _) if d == 0 => batch,
                (_, Some(given)) => given[d],
                (_, None) => {
                    let what = format!("dimension {d} of input '{name}' is open (give -shapes)");
                    return Err(Failure::usage(what));
                }
            });
        }
        shapes.push(dims);
    }
    Ok(shapes)
}

/// The batch that runs really have: the model's where it is fixed.
pub fn real_batch(shapes: &[Vec<usize>], wanted: usize) -> Result<usize> {
    match shapes.first().and_then(|dims| dims.first()) {
        Some(&batch) if batch != wanted => Err(Failure::usage(format!(
            "-b {wanted}: the model's batch is fixed to {batch} (use -b {batch}, or export it with an open batch)"
        ))),
        _ => Ok(wanted),
    }
}

pub fn run(options: Benchmark) -> Result<()> {
    let model = model_file::open(&options.path, Default::default(), None)?;
    let path = model.path().display().to_string();
    let graph = model.into_graph()?;
    let shapes = input_shapes(&graph, options.input_shapes.as_deref(), options.batch_size as usize)?;
    let plan = Plan {
        batch: real_batch(&shapes, options.batch_size as usize)?,
        cores: options.num_cores.map(|n| n as usize),
        scenario: options.scenario,
        streams: options.num_streams.map(|n| n as usize),
        warmup: Duration::from_secs_f64(options.warmup_time),
        time: Duration::from_secs_f64(options.time),
        tune: tune(options.no_cache),
        bf16: options.bf16,
        pin: options.thread_pinning != Pin::None,
    };
    if !options.quiet {
        remarks(&options);
    }
    let measured = measure(&graph, &shapes, &plan)?;
    let result = as_json(&options, &path, &shapes, &measured);
    if let Some(file) = &options.export_path {
        lacuna_train::checkpoint::write_atomic(file, format!("{result:#}\n").as_bytes())?;
    }
    if options.json {
        term::say_json(&result);
    } else if !options.quiet {
        show(&options, &path, &measured);
    }
    Ok(())
}

/// How the command chooses kernels: as measured, now or before.
pub fn tune(no_cache: bool) -> Tune {
    if no_cache { Tune::On } else { Tune::Cached }
}

fn remarks(options: &Benchmark) {
    if options.scenario == Scenario::Sync && options.num_streams.is_some_and(|n| n > 1) {
        term::note("note", "-nstreams: sync has one stream (use -s async)");
    }
    if options.scenario == Scenario::Elastic && options.thread_pinning != Pin::None {
        term::note("note", "-pin: callers of elastic go from core to core, and are not pinned");
    }
}

fn as_json(options: &Benchmark, path: &str, shapes: &[Vec<usize>], m: &Measured) -> Value {
    let (scenario, stream, scheduler) = match options.scenario {
        Scenario::Sync => ("sync", "singlestream", "single_stream"),
        Scenario::Async => ("async", "multistream", "multi_stream"),
        Scenario::Elastic => ("elastic", "elastic", "elastic"),
    };
    let mut result = Map::new();
    result.insert("scenario".into(), stream.into());
    result.insert("items_per_sec".into(), m.items_per_sec.into());
    result.insert("seconds_ran".into(), m.seconds.into());
    result.insert("iterations".into(), m.iterations.into());
    result.insert("median".into(), m.median.into());
    result.insert("mean".into(), m.mean.into());
    result.insert("std".into(), m.std.into());
    for (p, ms) in &m.percentiles {
        result.insert(format!("{p:.1}%"), (*ms).into());
    }
    json!({
        "engine": "lacuna",
        "version": training::VERSION,
        "orig_model_path": options.path.display().to_string(),
        "model_path": path,
        "batch_size": options.batch_size,
        "input_shapes": shapes,
        "num_cores": m.cores,
        "scenario": scenario,
        "scheduler": scheduler,
        "bf16": options.bf16,
        "seconds_to_run": options.time,
        "num_streams": m.streams,
        // A model with an op that the engine lacks does not load at all.
        "fraction_of_supported_ops": 1.0,
        "benchmark_result": result,
    })
}

fn show(options: &Benchmark, path: &str, m: &Measured) {
    let isa = lacuna_engine::Target::native().map_or_else(|_| String::new(), |t| format!(", {}", t.isa));
    let bf16 = if options.bf16 { ", bf16" } else { "" };
    term::say(format_args!(
        "{path}\nbatch {}, {} cores, {} streams{isa}{bf16}, {} runs in {:.1} s",
        options.batch_size, m.cores, m.streams, m.iterations, m.seconds
    ));
    term::say(format_args!(
        "{}",
        term::bold(&format!("{:.1} items/s, median {:.4} ms", m.items_per_sec, m.median))
    ));
    term::say(format_args!("mean {:.4} ms, std {:.4} ms", m.mean, m.std));
    let percentiles = m.percentiles.iter().map(|(p, ms)| format!("{p:.1}% {ms:.4}"));
    term::say(format_args!("ms at {}", percentiles.collect::<Vec<_>>().join(", ")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deepsparse_flags_with_one_dash_are_read() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let given = words("lacuna benchmark m.onnx -ncores 2 -b 4 -shapes=[1] -x -s sync");
        assert_eq!(
            long_flags(given),
            words("lacuna benchmark m.onnx --ncores 2 -b 4 --shapes=[1] -x -s sync")
        );
        let other = words("lacuna analyze -ncores");
        assert_eq!(long_flags(other.clone()), other);
    }

    #[test]
    fn percentiles_are_those_of_numpy() {
        let m = summary((1..=5).rev().map(|n| n * 1_000_000).collect(), 0.5, 2, 1, 1);
        assert_eq!((m.median, m.mean, m.items_per_sec), (3.0, 3.0, 20.0));
        assert!((m.std - 2.0f64.sqrt()).abs() < 1e-12);
        // numpy.percentile([1, 2, 3, 4, 5], [25, 90, 99.9])
        let at = |p: f64| m.percentiles.iter().find(|(q, _)| *q == p).unwrap().1;
        assert!(
            (at(25.0) - 2.0).abs() < 1e-12
                && (at(90.0) - 4.6).abs() < 1e-12
                && (at(99.9) - 4.996).abs() < 1e-12
        );
    }
}
