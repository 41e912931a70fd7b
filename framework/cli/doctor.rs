//! `lacuna doctor`: what the machine has and what of it will be used.

use crate::error::Result;
use crate::{term, training};
use lacuna_data::fashion_mnist;
use lacuna_engine::kernels::CONV_KERNELS;
use lacuna_engine::{Isa, Target};
use lacuna_models::MODELS;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(clap::Args, Debug)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(options: Doctor) -> Result<()> {
    // An impossible LACUNA_ISA is the first thing to know.
    let target = Target::native()?;
    let report = json!({
        "lacuna": training::VERSION,
        "processor": processor(),
        "isa": { "best": Isa::detect().name(), "used": target.isa.name(),
                 "available": Isa::available().map(Isa::name).collect::<Vec<_>>() },
        "kernels": kernels(target.isa),
        "devices": training::DEVICES,
        "models": MODELS.iter().map(|m| m.name).collect::<Vec<_>>(),
        "data": data(),
        "onnx": {
            "reads_opsets": [lacuna_onnx::read::OPSET_MIN, lacuna_onnx::read::OPSET_MAX],
            "writes_opset": lacuna_onnx::write::OPSET,
        },
    });
    if options.json {
        term::say_json(&report);
    } else {
        show(&report);
    }
    Ok(())
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
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let memory = read("/proc/meminfo").unwrap_or_default();
    let kib =
        memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    json!({
        "name": field("model name"),
        "threads": cores,
        "cores": field("cpu cores").and_then(|n| n.parse::<u64>().ok()),
        "memory_bytes": kib.map(|kib: u64| kib * 1024),
        "caches": caches(),
        "huge_pages": read("/sys/kernel/mm/transparent_hugepage/enabled"),
    })
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
    let row = |k: &lacuna_engine::kernels::ConvKernel| json!({ "name": k.name, "isa": k.isa.name(), "sparse": k.sparse, "runs_here": k.isa <= used });
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
    let mut rows = vec![
        ("lacuna", text(&report["lacuna"])),
        ("processor", or(&cpu["name"], "unknown")),
        ("threads", format!("{} ({} cores)", cpu["threads"], or(&cpu["cores"], "unknown number of"))),
        ("memory", cpu["memory_bytes"].as_u64().map_or("unknown".into(), term::bytes)),
        ("caches", if caches.is_empty() { "unknown".into() } else { caches.join(", ") }),
        ("huge pages", or(&cpu["huge_pages"], "unknown")),
        (
            "kernels",
            format!(
                "{} (this processor has {})",
                text(&report["isa"]["used"]),
                list(&report["isa"]["available"])
            ),
        ),
        ("devices", list(&report["devices"])),
        ("models", list(&report["models"])),
    ];
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
            vec![
                text(&k["name"]),
                text(&k["isa"]),
                yes(&k["sparse"], "sparse"),
                yes(&k["runs_here"], "runs here"),
            ]
        })
        .collect();
    term::say(format_args!("\n{}", term::table(&["convolution kernel", "needs", "", ""], &lines)));
}
