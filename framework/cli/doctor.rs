//! `lacuna doctor`: what the machine has and what of it will be used.

use crate::error::Result;
use crate::training::DeviceName;
use crate::{term, training};
use clap::ValueEnum;
use lacuna_data::fashion_mnist;
use lacuna_engine::kernels::CONV_KERNELS;
use lacuna_engine::{Isa, Target, pin_thread};
use lacuna_kernels::isa::Isa as TrainingIsa;
use lacuna_models::MODELS;
use lacuna_nn::ops::{has_kernels, kernels_are_off};
use serde_json::{Value, json};
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

#[derive(clap::Args, Debug)]
pub struct Doctor {
    /// Device that a training would be asked to use
    #[arg(long, value_enum, default_value_t = DeviceName::Flex)]
    device: DeviceName,
    /// Threads that a training would be given; all cores if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// How to print the report
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Print JSON, as --format json
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

pub fn run(options: Doctor) -> Result<()> {
    training::set_threads(options.threads.map(|n| n as usize))?;
    // An impossible LACUNA_ISA is the first thing to know.
    let target = Target::native()?;
    let asked = std::env::var("LACUNA_ISA").ok();
    let report = json!({
        "lacuna": training::VERSION,
        "processor": processor(),
        "isa": { "best": Isa::detect().name(), "used": target.isa.name(),
                 "available": Isa::available().map(Isa::name).collect::<Vec<_>>(),
                 "why": why_isa(asked.as_deref()) },
        "training_isa": training_isa(asked.as_deref()),
        "threads": { "engine": target.threads, "training": rayon::current_num_threads(),
                     "rayon_num_threads": std::env::var("RAYON_NUM_THREADS").ok() },
        "cache": lacuna_engine::cache_folder().map(|f| f.display().to_string()),
        "kernels": kernels(target.isa),
        "device": device_path(options.device),
        "training": DeviceName::value_variants().iter().map(|name| device_path(*name)).collect::<Vec<_>>(),
        "models": MODELS.iter().map(|m| m.name).collect::<Vec<_>>(),
        "data": data(),
        "onnx": {
            "reads_opsets": [lacuna_onnx::read::OPSET_MIN, lacuna_onnx::read::OPSET_MAX],
            "writes_opset": lacuna_onnx::write::OPSET,
        },
    });
    if options.json || options.format == Format::Json {
        term::say_json(&report);
    } else {
        show(&report);
    }
    Ok(())
}

fn why_isa(asked: Option<&str>) -> String {
    match asked {
        Some(name) => format!("LACUNA_ISA is {name}"),
        None => "the best this processor has".into(),
    }
}

/// The instruction set of the kernels that a training runs.
fn training_isa(asked: Option<&str>) -> Value {
    let available: Vec<_> = TrainingIsa::ALL.into_iter().filter(|isa| isa.is_supported()).collect();
    json!({
        "best": available.last().map(|isa| isa.name()),
        "used": TrainingIsa::best().name(),
        "available": available.iter().map(|isa| isa.name()).collect::<Vec<_>>(),
        "why": why_isa(asked),
    })
}

/// What computes a training step on a device.
fn device_path(name: DeviceName) -> Value {
    let (path, why) = match has_kernels(&training::device(name)) {
        _ if kernels_are_off() => ("plain burn ops", "LACUNA_TRAIN_OPS is plain"),
        true => ("own kernels", "its tensors lie in plain memory, which lacuna's kernels read and write"),
        false => ("plain burn ops", "lacuna's kernels work on tensors of the flex device only"),
    };
    let name = name.to_possible_value().map(|v| v.get_name().to_owned());
    json!({ "name": name, "path": path, "why": why })
}

/// A short text file of the system, trimmed.
fn read(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned()).filter(|text| !text.is_empty())
}

fn processor() -> Value {
    let info = read("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = thread::available_parallelism().map_or(1, |n| n.get());
    let memory = read("/proc/meminfo").unwrap_or_default();
    let bytes = |key: &str| {
        let kib = |l: &str| l.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
        memory.lines().find_map(kib).map(|kib| kib * 1024)
    };
    json!({
        "name": field("model name"),
        "threads": cores,
        "cores": field("cpu cores").and_then(|n| n.parse::<u64>().ok()),
        "clock_ghz": clock_ghz(),
        "second_core": (cores > 1).then(second_core),
        "instruction_sets": instruction_sets(),
        "memory_bytes": bytes("MemTotal:"),
        "memory_available_bytes": bytes("MemAvailable:"),
        "caches": caches(),
        "huge_pages": read("/sys/kernel/mm/transparent_hugepage/enabled"),
    })
}

/// The clock under load, from a chain of multiplications (3 cycles) and exclusive ors (1 cycle) that wait for each other.
#[cfg(target_arch = "x86_64")]
fn clock_ghz() -> Option<f64> {
    const LINKS: u32 = 2_000_000;
    let factor = black_box(0x2545_f491_4f6c_dd1du64);
    let run = || {
        let start = Instant::now();
        black_box((0..LINKS).fold(factor, |x, _| x.wrapping_mul(factor) ^ factor));
        start.elapsed().as_secs_f64()
    };
    // The quickest of several: the processor has sped up, and nothing else ran.
    let seconds = (0..10).map(|_| run()).fold(f64::INFINITY, f64::min);
    Some(4.0 * LINKS as f64 / seconds / 1e9)
}

/// Other processors take other times for a multiplication.
#[cfg(not(target_arch = "x86_64"))]
fn clock_ghz() -> Option<f64> {
    None
}

/// What a second thread can gain where the two share nothing, and how long a word takes from one to the other and back. Two
/// virtual cores of a busy host may be threads of one core (no gain), or belong to distant caches (a third of a microsecond and more).
fn second_core() -> Value {
    let work = |_| {
        let start = Instant::now();
        // Sums that do not wait for each other fill a core by themselves.
        let sums =
            (0..2_000_000u64).fold([0u64; 8], |sums, i| sums.map(|sum| black_box(sum.wrapping_add(i))));
        black_box(sums);
        start.elapsed().as_secs_f64()
    };
    let slowest = |cores: usize| on_cores(cores, work).into_iter().fold(0.0, f64::max);
    let gain = median((0..9).map(|_| 2.0 * slowest(1) / slowest(2)));
    json!({ "gain": gain, "round_trip_ns": median((0..9).map(|_| round_trip_ns())) })
}

/// Two threads take turns in writing the next number to one word.
fn round_trip_ns() -> f64 {
    const TRIPS: u32 = 2000;
    let word = AtomicU32::new(0);
    let seconds = on_cores(2, |core| {
        let mut start = Instant::now();
        for trip in 0..=TRIPS {
            let mine = 2 * trip + core as u32;
            // Who waits for long lets others run: where threads cannot be pinned, the other may need this core.
            for spin in 1u32.. {
                match word.load(Ordering::Acquire) == mine {
                    true => break,
                    false if spin.is_multiple_of(4096) => thread::yield_now(),
                    false => std::hint::spin_loop(),
                }
            }
            if trip == 0 {
                start = Instant::now();
            }
            word.store(mine + 1, Ordering::Release);
        }
        start.elapsed().as_secs_f64()
    });
    // The second has been written to when it begins: both are awake.
    seconds[1] * 1e9 / f64::from(TRIPS)
}

/// What the same work gives on each of so many cores, at the same time.
fn on_cores<T: Send>(cores: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let start = Barrier::new(cores);
    let on_core = |core: usize| {
        // Where this does not work, the system places the threads.
        let _ = pin_thread(core);
        start.wait();
        work(core)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|core| scope.spawn(move || on_core(core))).collect();
        threads.into_iter().map(|thread| thread.join().expect("the work does not panic")).collect()
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What this processor has of the instruction sets that kernels ask for.
#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> Vec<&'static str> {
    macro_rules! detected {
        ($($name:tt)*) => { [$(($name, is_x86_feature_detected!($name))),*] };
    }
    let sets = detected!("avx" "avx2" "fma" "f16c" "avxvnni" "avx512f" "avx512bw" "avx512dq" "avx512vl"
                         "avx512vnni" "avx512vbmi" "avx512bf16");
    sets.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn instruction_sets() -> Vec<&'static str> {
    Vec::new()
}

fn caches() -> Vec<Value> {
    let root = PathBuf::from("/sys/devices/system/cpu/cpu0/cache");
    let cache = |i: usize| {
        let get = |file: &str| read(root.join(format!("index{i}")).join(file));
        Some(
            json!({ "level": get("level")?, "type": get("type")?, "size": get("size")?, "shared_by": get("shared_cpu_list") }),
        )
    };
    (0..8).filter_map(cache).collect()
}

fn kernels(used: Isa) -> Vec<Value> {
    let row = |k: &lacuna_engine::kernels::ConvKernel| json!({ "name": k.name, "isa": k.isa.name(), "method": k.kind(), "runs_here": k.isa <= used && k.is_available() });
    CONV_KERNELS.iter().map(row).collect()
}

fn data() -> Vec<Value> {
    let row = |what: &str, dir: Option<PathBuf>, help: &str| {
        let dir = dir.filter(|dir| dir.is_dir()).map(|dir| dir.display().to_string());
        json!({ "name": what, "found": dir.is_some(), "path": dir, "help": help })
    };
    vec![
        row("Fashion-MNIST", Some(fashion_mnist::SYSTEM_DIR.into()), "apt-get install dataset-fashion-mnist"),
        row("Fashion-MNIST subset", fashion_mnist::subset_dir(), "run lacuna in its source folder"),
    ]
}

fn show(report: &Value) {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let list = |v: &Value| v.as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(", ");
    let cpu = &report["processor"];
    let or = |v: &Value, other: &str| if v.is_null() { other.to_owned() } else { text(v) };
    let cache = |c: &Value| {
        format!("L{} {} {}", text(&c["level"]), text(&c["type"]).to_lowercase(), text(&c["size"]))
    };
    let caches: Vec<String> = cpu["caches"].as_array().into_iter().flatten().map(cache).collect();
    let bytes = |key: &str| cpu[key].as_u64().map_or("unknown".into(), term::bytes);
    let isa = |v: &Value| {
        format!("{}, {} (there are {})", text(&v["used"]), text(&v["why"]), list(&v["available"]))
    };
    let second = &cpu["second_core"];
    let second_core = match (second["gain"].as_f64(), second["round_trip_ns"].as_f64()) {
        (Some(gain), Some(ns)) => {
            format!("two threads do {gain:.2} times the work of one; a word goes to and fro in {ns:.0} ns")
        }
        _ => "none".into(),
    };
    let mut rows = vec![
        ("lacuna", text(&report["lacuna"])),
        ("processor", or(&cpu["name"], "unknown")),
        (
            "threads",
            format!(
                "{} ({} cores{}); training uses {}, the engine {}",
                cpu["threads"],
                or(&cpu["cores"], "unknown number of"),
                cpu["clock_ghz"].as_f64().map_or(String::new(), |ghz| format!(" at {ghz:.2} GHz")),
                report["threads"]["training"],
                report["threads"]["engine"]
            ),
        ),
        ("second core", second_core),
        ("memory", format!("{}, {} available", bytes("memory_bytes"), bytes("memory_available_bytes"))),
        ("caches", if caches.is_empty() { "unknown".into() } else { caches.join(", ") }),
        ("huge pages", or(&cpu["huge_pages"], "unknown")),
        ("instructions", list(&cpu["instruction_sets"])),
        ("engine", isa(&report["isa"])),
        ("training", isa(&report["training_isa"])),
        ("cache", or(&report["cache"], "none: measured kernels are not kept (set LACUNA_CACHE)")),
        ("device", text(&report["device"]["name"])),
    ];
    for device in report["training"].as_array().into_iter().flatten() {
        let [name, path, why] = ["name", "path", "why"].map(|key| text(&device[key]));
        rows.push(("", format!("{name}: {path} ({why})")));
    }
    rows.push(("models", list(&report["models"])));
    for set in report["data"].as_array().into_iter().flatten() {
        let found = set["found"] == true;
        let place = if found { text(&set["path"]) } else { format!("not found ({})", text(&set["help"])) };
        rows.push(("data", format!("{}: {place}", text(&set["name"]))));
    }
    let opsets = &report["onnx"]["reads_opsets"];
    rows.push((
        "onnx",
        format!(
            "reads operator sets {} to {}, writes {}",
            opsets[0], opsets[1], report["onnx"]["writes_opset"]
        ),
    ));
    for (title, value) in rows {
        // Padded before it is made bold: escape codes have a width for `format!`.
        term::say(format_args!("{} {value}", term::bold(&format!("{title:<12}"))));
    }
    let kernels = report["kernels"].as_array().into_iter().flatten();
    let yes = |v: &Value, yes: &str| if v == true { yes.to_owned() } else { String::new() };
    let lines: Vec<Vec<String>> = kernels
        .map(|k| {
            vec![text(&k["name"]), text(&k["isa"]), text(&k["method"]), yes(&k["runs_here"], "runs here")]
        })
        .collect();
    term::say(format_args!("\n{}", term::table(&["convolution kernel", "needs", "", ""], &lines)));
}
