//! `lacuna analyze`: every step of the compiled plan, with its kernel, its zeros and its time, as text, JSON or a page.

use crate::benchmark::{self, input_shapes, random_inputs, real_batch};
use crate::error::Result;
use crate::model_file::{self, WeightsName};
use crate::{picture, term};
use lacuna_engine::{Options, Session, StepProfile, Tune};
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub struct Analyze {
    /// ONNX or .lacuna file, run folder or .safetensors file of a run
    #[arg(value_name = "MODEL")]
    path: PathBuf,
    /// Which weights of a run folder
    #[arg(long, value_enum, default_value_t = WeightsName::Best)]
    name: WeightsName,
    /// Images (samples) in one run
    #[arg(short, long = "batch_size", alias = "batch-size", alias = "batch", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch_size: u32,
    /// Input shapes, such as "[1,3,224,224]"; the batch comes from -b
    #[arg(short, long = "input_shapes", alias = "input-shapes", value_name = "SHAPES")]
    input_shapes: Option<String>,
    /// Threads; all cores if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Let f32 layers multiply in bfloat16, where the processor can: faster, with the error of factors of 8 bits
    #[arg(long)]
    bf16: bool,
    /// Runs to measure (0: only estimate)
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    runs: u32,
    /// Measure which kernels are best, whatever was measured before, and keep nothing on disk
    #[arg(long)]
    no_cache: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write a page with a picture of the steps to this file, too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// A step with what is counted and shared out.
pub struct Row {
    pub step: StepProfile,
    pub zeros: u64,
    pub share: f64,
}

impl Row {
    /// Measured milliseconds, or estimated ones where nothing was measured.
    pub fn ms(&self) -> f64 {
        ms(&self.step)
    }
}

fn ms(step: &StepProfile) -> f64 {
    step.measured_ns.unwrap_or(step.estimated_ns) / 1e6
}

pub fn run(options: Analyze) -> Result<()> {
    let model = model_file::open(&options.path, options.name, None)?;
    let path = model.path().display().to_string();
    let graph = model.into_graph()?;
    let shapes = input_shapes(&graph, options.input_shapes.as_deref(), options.batch_size as usize)?;
    let batch = real_batch(&shapes, options.batch_size as usize)?;
    let threads = options.threads.map(|n| n as usize);
    let tune = match options.runs {
        0 => Tune::Off,
        _ => benchmark::tune(options.no_cache),
    };
    let engine = Options {
        threads,
        batch: Some(batch),
        tune,
        bf16: options.bf16,
        release_weights: true,
        ..Options::default()
    };
    let mut session = Session::new(&graph, &engine)?;
    let steps = match options.runs {
        0 => session.analyze(),
        runs => session.profile(&random_inputs(session.inputs(), &shapes)?, runs as usize)?,
    };
    let total: f64 = steps.iter().map(ms).sum();
    let rows: Vec<Row> = steps
        .into_iter()
        .zip(session.steps())
        .map(|(step, info)| {
            let share = ms(&step) / total.max(f64::MIN_POSITIVE);
            Row { zeros: info.weights.saturating_sub(info.nonzeros), share, step }
        })
        .collect();
    let tensors = model_file::weight_rows(&graph);
    let measured = options.runs > 0;
    if let Some(file) = &options.html {
        let page = picture::page(&path, &facts(&session, batch, total, measured, &rows), &rows);
        lacuna_train::checkpoint::write_atomic(file, page.as_bytes())?;
    }
    if options.json {
        let target = session.target();
        term::say_json(&json!({
            "model": path,
            "batch_size": batch,
            "isa": target.isa.name(),
            "bf16": target.bf16,
            "threads": target.threads,
            "arena_bytes": session.arena_bytes(),
            "weight_bytes": session.weight_bytes(),
            "measured": measured,
            "total_ms": total,
            "passes": session.passes().iter()
                .map(|p| json!({ "pass": p.pass, "changes": p.changes, "ops": p.ops })).collect::<Vec<_>>(),
            "tensors": tensors,
            "steps": rows.iter().map(as_json).collect::<Vec<_>>(),
            "tail": session.tail().iter()
                .map(|(op, kind)| json!({ "op": op, "kind": kind })).collect::<Vec<_>>(),
        }));
        return Ok(());
    }
    show(&path, &session, batch, total, measured, &rows);
    Ok(())
}

/// What stands above the picture.
fn facts(
    session: &Session,
    batch: usize,
    total: f64,
    measured: bool,
    rows: &[Row],
) -> Vec<(&'static str, String)> {
    let target = session.target();
    let (zeros, all) = rows.iter().fold((0, 0), |(z, n), row| (z + row.zeros, n + row.step.weights));
    vec![
        (if measured { "measured" } else { "estimated" }, format!("{total:.4} ms")),
        ("steps", rows.len().to_string()),
        ("batch", batch.to_string()),
        ("threads", target.threads.to_string()),
        ("instructions", target.isa.to_string()),
        ("packed weights", term::bytes(session.weight_bytes() as u64)),
        ("zeros", term::zeros(zeros, all)),
        ("activations", term::bytes(session.arena_bytes() as u64)),
    ]
}

fn as_json(row: &Row) -> Value {
    let s = &row.step;
    json!({
        "op": s.op,
        "kind": s.kind,
        "kernel": s.kernel,
        "weights": s.weights,
        "zeros": row.zeros,
        "density": s.density,
        "slot_efficiency": s.slot_efficiency,
        "estimated_ms": s.estimated_ns / 1e6,
        "measured_ms": s.measured_ns.map(|ns| ns / 1e6),
        "share": row.share,
        "reason": s.reason,
    })
}

fn show(path: &str, session: &Session, batch: usize, total: f64, measured: bool, rows: &[Row]) {
    let cells = |row: &Row| {
        let s = &row.step;
        vec![
            s.op.clone(),
            s.kernel.to_owned(),
            term::zeros(row.zeros, s.weights),
            s.slot_efficiency.map_or(String::new(), |e| format!("{:.0} %", e * 100.0)),
            format!("{:.4}", s.estimated_ns / 1e6),
            s.measured_ns.map_or(String::new(), |ns| format!("{:.4}", ns / 1e6)),
            format!("{:.1} %", row.share * 100.0),
            s.reason.clone(),
        ]
    };
    let lines: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let titles = ["op", "kernel", ">zeros", ">slots", ">est. ms", ">ms", ">share", "why"];
    term::say(term::table(&titles, &lines));
    let target = session.target();
    let (zeros, all) = rows.iter().fold((0, 0), |(z, n), row| (z + row.zeros, n + row.step.weights));
    term::say(format_args!(
        "\n{path}: {} steps, {total:.4} ms {}, batch {batch}, {} threads, {}\nweights {} packed, {} zero; activations {}",
        rows.len(),
        if measured { "measured" } else { "estimated" },
        target.threads,
        target.isa,
        term::bytes(session.weight_bytes() as u64),
        term::zeros(zeros, all),
        term::bytes(session.arena_bytes() as u64),
    ));
    show_slow(session, rows);
}

/// What has no kernel, and what data size.
fn show_slow(session: &Session, rows: &[Row]) {
    let slow = rows.iter().filter(|row| row.step.kernel == "reference").count();
    if slow > 0 {
        term::say(format_args!(
            "{slow} steps run on the reference path, plainly and on one thread: their column 'why' says what they lack"
        ));
    }
    let tail = session.tail();
    if !tail.is_empty() {
        term::say("after these steps the interpreter runs, because data decide the sizes of results:");
        for (op, kind) in tail {
            term::say(format_args!("  {op} ({kind})"));
        }
    }
}
