//! Runs an ONNX file in the engine: `cargo run --release -p lacuna-engine --example run_onnx -- model.onnx --profile`.
//!
//! It compiles the file, feeds it seeded random inputs and prints the median time of a run. `--profile` adds a table
//! of steps, `--check` compares the outputs with those of the interpreter on the lowered graph.

#[path = "../../../tests/common/onnxruntime.rs"]
#[allow(dead_code)] // Its tensors, not its Python.
mod onnxruntime;

use clap::Parser;
use lacuna_engine::{InputRef, Isa, KernelChoice, Options, OutputMut, Port, Session, StepProfile, Tune};
use lacuna_ir::{DType, Elements, Tensor, interp};
use onnxruntime::{npy, read_npy};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Parser)]
#[command(about = "Runs an ONNX file in the engine on seeded random inputs")]
struct Args {
    file: PathBuf,
    /// Images or sequences at a time: what symbolic first dimensions become.
    #[arg(short, long, default_value_t = 1)]
    batch: usize,
    /// Threads; all cores if absent.
    #[arg(short = 'c', long)]
    threads: Option<usize>,
    /// Timed runs, after a fifth as many that are not.
    #[arg(short = 'n', long, default_value_t = 50)]
    runs: usize,
    /// Kernels up to this instruction set, e.g. avx2.
    #[arg(long, value_parser = |name: &str| Isa::from_name(name).ok_or("no such instruction set"))]
    isa: Option<Isa>,
    /// Dense kernels only, or sparse ones wherever there are any.
    #[arg(long, default_value = "auto", value_parser = kernel_choice)]
    kernels: KernelChoice,
    /// Lets f32 layers multiply in bfloat16.
    #[arg(long)]
    bf16: bool,
    /// Chooses kernels by measurement.
    #[arg(long)]
    tune: bool,
    /// Chooses kernels as measured before, or measures.
    #[arg(long)]
    cache: bool,
    /// Numbers the random inputs follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Prints every step's median time.
    #[arg(long)]
    profile: bool,
    /// Prints the time of each kind of step, all its steps together.
    #[arg(long)]
    kinds: bool,
    /// Prints the lowered graph.
    #[arg(long)]
    print: bool,
    /// Compares with the interpreter on the lowered graph (slow: use a small batch).
    #[arg(long)]
    check: bool,
    /// Writes the graph as a .lacuna file.
    #[arg(long)]
    pack: Option<PathBuf>,
    /// Feeds input_0.npy, input_1.npy, ... of this folder, and writes ours_0.npy, ... beside them.
    #[arg(long)]
    case: Option<PathBuf>,
    /// Answers each line of standard input, a number of seconds, with the median milliseconds of runs for so long.
    #[arg(long)]
    serve: bool,
    /// Writes inputs and outputs as raw little-endian files `in0`, `out0`, ... into this folder.
    #[arg(long)]
    dump: Option<PathBuf>,
}

fn kernel_choice(name: &str) -> Result<KernelChoice, String> {
    match name {
        "auto" => Ok(KernelChoice::Auto),
        "dense" => Ok(KernelChoice::Dense),
        "sparse" => Ok(KernelChoice::Sparse),
        _ => Err("use auto, dense or sparse".to_string()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let start = Instant::now();
    let graph = match args.file.extension().is_some_and(|e| e == "lacuna") {
        true => lacuna_container::load(&args.file)?,
        false => lacuna_onnx::load(&args.file)?,
    };
    let loaded = start.elapsed();
    if let Some(path) = &args.pack {
        println!("{}: {} bytes", path.display(), lacuna_container::save(&graph, path)?);
    }
    let start = Instant::now() - loaded;
    let options = Options {
        threads: args.threads,
        isa: args.isa,
        kernels: args.kernels,
        batch: args.case.is_none().then_some(args.batch),
        tune: match (args.tune, args.cache) {
            (_, true) => Tune::Cached,
            (true, false) => Tune::On,
            (false, false) => Tune::Off,
        },
        bf16: args.bf16,
        release_weights: !args.check,
        ..Options::default()
    };
    let mut session = Session::new(&graph, &options)?;
    let compiled = start.elapsed() - loaded;
    drop(graph);
    println!(
        "{}: loaded in {:.0} ms, compiled in {:.0} ms; {} steps, {} on {} threads; weights {:.1} MB, arena {:.1} MB",
        args.file.display(),
        loaded.as_secs_f64() * 1e3,
        compiled.as_secs_f64() * 1e3,
        session.steps().len(),
        session.target().isa,
        session.target().threads,
        session.weight_bytes() as f64 / 1e6,
        session.arena_bytes() as f64 / 1e6,
    );
    if args.print {
        print!("{}", lacuna_ir::text::print(session.lowered()));
    }
    let mut noise = Noise(args.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let inputs: Vec<Tensor> = match &args.case {
        None => session.inputs().iter().map(|port| random_input(port, args.batch, &mut noise)).collect(),
        Some(folder) => {
            let read = |i| Ok(read_npy(&std::fs::read(folder.join(format!("input_{i}.npy")))?)?);
            (0..session.inputs().len()).map(read).collect::<Result<_, Box<dyn Error>>>()?
        }
    };
    if let Some(folder) = &args.case {
        for (i, y) in session.run(&inputs)?.iter().enumerate() {
            std::fs::write(folder.join(format!("ours_{i}.npy")), npy(y))?;
        }
    }
    if args.serve {
        return serve(&mut session, &inputs);
    }
    if args.check {
        check(&mut session, &inputs)?;
    }
    if let Some(folder) = &args.dump {
        dump(folder, "in", &inputs)?;
        dump(folder, "out", &session.run(&inputs)?)?;
    }
    if args.runs > 0 {
        times_ms(&mut session, &inputs, |runs| runs >= args.runs / 5)?;
        let times = times_ms(&mut session, &inputs, |runs| runs >= args.runs)?;
        let (ms, best) = (times[times.len() / 2], times[0]);
        let each =
            if args.batch > 1 { format!(", {:.3} ms each", ms / args.batch as f64) } else { String::new() };
        println!("batch {}: median {ms:.3} ms of {} runs, best {best:.3}{each}", args.batch, args.runs);
        if let Some(mb) = peak_mb() {
            println!("peak memory {mb:.1} MB");
        }
    }
    if args.profile || args.kinds {
        let steps = session.profile(&inputs, args.runs.max(1))?;
        if args.profile {
            print_steps(&steps);
        }
        print_kinds(&steps);
    }
    Ok(())
}

/// xorshift64*: numbers that are the same on every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// The sum of twelve uniform numbers: mean 0, variance 1, nearly normal.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.next() as f32 / (1u64 << 53) as f32).sum::<f32>() - 6.0
    }
}

/// Normal floats; integers are 0 or 1, which any table of embeddings or mask has.
fn random_input(port: &Port, batch: usize, noise: &mut Noise) -> Tensor {
    let dims: Vec<usize> = port.dims.iter().map(|d| d.unwrap_or(batch)).collect();
    let n: usize = dims.iter().product();
    let mut bit = || noise.next() >> 20 & 1;
    let elements = match port.dtype {
        DType::F32 => Elements::F32((0..n).map(|_| noise.normal()).collect()),
        DType::I64 => Elements::I64((0..n).map(|_| bit() as i64).collect()),
        DType::I32 => Elements::I32((0..n).map(|_| bit() as i32).collect()),
        DType::U8 => Elements::U8((0..n).map(|_| noise.next() as u8).collect()),
        DType::I8 => Elements::I8((0..n).map(|_| noise.next() as i8).collect()),
        DType::Bool => Elements::Bool((0..n).map(|_| bit() as u8).collect()),
    };
    Tensor { dims, elements }
}

/// Times of runs, sorted, until `enough` says so of how many there are.
fn times_ms(
    session: &mut Session,
    inputs: &[Tensor],
    mut enough: impl FnMut(usize) -> bool,
) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut outputs = session.run(inputs)?;
    let inputs: Vec<InputRef<'_>> = inputs.iter().map(InputRef::from).collect();
    let mut times = Vec::new();
    while !enough(times.len()) {
        let mut views = outputs.iter_mut().map(output_of).collect::<Result<Vec<_>, _>>()?;
        let start = Instant::now();
        session.run_into(&inputs, &mut views)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn serve(session: &mut Session, inputs: &[Tensor]) -> Result<(), Box<dyn Error>> {
    println!("ready");
    for line in std::io::stdin().lines() {
        let seconds: f64 = line?.trim().parse()?;
        let start = Instant::now();
        let enough = |runs| runs > 0 && start.elapsed().as_secs_f64() >= seconds;
        let times = times_ms(session, inputs, enough)?;
        println!("{} {}", times[times.len() / 2], times[0]);
    }
    Ok(())
}

/// The most memory this process held at any time, where the system tells.
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = |line: &str| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok();
    Some(status.lines().find_map(kib)? * 1024.0 / 1e6)
}

fn output_of(t: &mut Tensor) -> Result<OutputMut<'_>, String> {
    Ok(match &mut t.elements {
        Elements::F32(v) => OutputMut::f32(v),
        Elements::I64(v) => OutputMut::i64(v),
        Elements::I32(v) => OutputMut::i32(v),
        Elements::U8(v) => OutputMut::u8(v),
        Elements::I8(v) => OutputMut::i8(v),
        Elements::Bool(_) => return Err("outputs of type bool are not timed".to_string()),
    })
}

/// Prints how far the engine is from the interpreter on the same graph.
fn check(session: &mut Session, inputs: &[Tensor]) -> Result<(), Box<dyn Error>> {
    let want = interp::run(session.lowered(), inputs)?;
    let got = session.run(inputs)?;
    for (port, (got, want)) in session.outputs().iter().zip(got.iter().zip(&want)) {
        let what = match (&got.elements, &want.elements) {
            (Elements::F32(a), Elements::F32(b)) => {
                let worst = a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
                let size = b.iter().fold(0.0f32, |m, b| m.max(b.abs()));
                let equal = a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
                match equal {
                    true => format!("equals the interpreter bit for bit, values up to {size}"),
                    false => format!("differs from the interpreter by up to {worst}, values up to {size}"),
                }
            }
            (a, b) if a == b => "equals the interpreter".to_string(),
            _ => "differs from the interpreter".to_string(),
        };
        println!("output {}: {what}", port.name);
    }
    Ok(())
}

fn dump(folder: &Path, name: &str, tensors: &[Tensor]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (i, tensor) in tensors.iter().enumerate() {
        std::fs::write(folder.join(format!("{name}{i}")), tensor.bytes())?;
    }
    Ok(())
}

fn ns(step: &StepProfile) -> f64 {
    step.measured_ns.unwrap_or(0.0)
}

fn print_steps(steps: &[StepProfile]) {
    let all: f64 = steps.iter().map(ns).sum();
    println!(
        "{:>8} {:>6} {:>8} {:>5} {:>5}  {:<16} {:<38} op",
        "us", "share", "expected", "dens", "slots", "kind", "kernel"
    );
    for step in steps {
        let density = if step.weights > 0 { format!("{:.2}", step.density) } else { String::new() };
        let slots = step.slot_efficiency.map_or(String::new(), |s| format!("{s:.2}"));
        println!(
            "{:>8.1} {:>5.1}% {:>8.1} {density:>5} {slots:>5}  {:<16} {:<38} {}  {}",
            ns(step) / 1e3,
            100.0 * ns(step) / all,
            step.estimated_ns / 1e3,
            step.kind,
            step.kernel,
            step.op,
            step.reason,
        );
    }
}

fn print_kinds(steps: &[StepProfile]) {
    let all: f64 = steps.iter().map(ns).sum();
    let mut kinds: Vec<(&str, &str, usize, f64)> = Vec::new();
    for step in steps {
        match kinds.iter_mut().find(|k| (k.0, k.1) == (step.kind, step.kernel)) {
            Some(k) => (k.2, k.3) = (k.2 + 1, k.3 + ns(step)),
            None => kinds.push((step.kind, step.kernel, 1, ns(step))),
        }
    }
    kinds.sort_by(|a, b| b.3.total_cmp(&a.3));
    println!("{:>9} {:>6} {:>6}  kind and kernel; {:.1} us in all", "us", "share", "steps", all / 1e3);
    for (kind, kernel, count, ns) in kinds {
        println!("{:>9.1} {:>5.1}% {count:>6}  {kind} {kernel}", ns / 1e3, 100.0 * ns / all);
    }
}
