//! From images to a sparse integer network in a few minutes:
//!
//!     cargo run --release --example train
//!
//! Trains a small ResNet on Fashion-MNIST, then prunes it to 90 % zeros and quantises it to int8 under a recipe, writes
//! three ONNX files and runs them on the engine. The images are the full set where the Debian package
//! `dataset-fashion-mnist` is installed or `--data` names it, otherwise the real subset in `examples/data`.
//!
//! An epoch is 8,000 images by default, so that this takes minutes on two cores. `--full` takes all of them, as the
//! figures in `benches/RESULTS.md` do.

use clap::Parser;
use lacuna::cli::benchmark::{Plan, input_shapes, measure};
use lacuna::cli::error::{Failure, Result};
use lacuna::cli::training::{self, Job, Place, Reporter, RunArgs};
use lacuna::cli::{classify, export, model_file, term};
use lacuna::ir::Graph;
use std::io::Write;
use std::path::{Path, PathBuf};

const RECIPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/image_classification");

#[derive(Parser)]
struct Args {
    /// Folder with the four Fashion-MNIST files
    #[arg(long)]
    data: Option<PathBuf>,
    /// All training images in every epoch instead of 8,000
    #[arg(long)]
    full: bool,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the run folders go
    #[arg(long, default_value = "runs")]
    project: PathBuf,
}

fn main() {
    if let Err(failure) = run(&Args::parse()) {
        term::error(&failure);
        std::process::exit(failure.exit as i32);
    }
}

fn run(args: &Args) -> Result<()> {
    term::say(term::bold("1. Train a dense network"));
    let dense = train(args, "dense", None)?;
    let dense_weights = dense.folder.weights("last");

    term::say(term::bold("2. Prune it to 90 % and quantise it to int8"));
    let sparse = train(args, "pruned90_quant", Some(dense_weights.clone()))?;

    term::say(term::bold("3. Export, and run on the engine"));
    let rows = [
        ("dense", "dense.onnx", dense_weights),
        ("pruned 90 %", "pruned.onnx", sparse.folder.weights("pruned")),
        ("pruned 90 % + int8", "model.onnx", sparse.folder.weights("last")),
    ];
    let mut table = Vec::new();
    for (what, file, weights) in rows {
        let graph = model_file::graph_of(&model_file::open_weights(&weights, None)?)?;
        let file = sparse.folder.path.join(file);
        let bytes = export::write(&graph, &file)?;
        let accuracy = classify::evaluate(&graph, sparse.test.require_images()?, None)?.top1;
        table.push(vec![
            what.to_string(),
            format!("{:.2} %", accuracy * 100.0),
            term::bytes(bytes),
            term::bytes(gzipped(&file)?),
            format!("{:.3} ms", latency(&graph, 1)?),
            format!("{:.2} ms", latency(&graph, 64)?),
        ]);
    }
    term::say(format_args!("\n{} test images; medians on this machine\n", sparse.test.len()));
    term::say(term::table(&["", ">top-1", ">ONNX file", ">gzipped", ">batch 1", ">batch 64"], &table));
    let model = sparse.folder.path.join("model.onnx");
    term::say(format_args!(
        "\nNext:\n  cargo run --release -- analyze {0}\n  cargo run --release -- benchmark {0} -b 64\n  \
         cargo run --release -- predict classify {0} IMAGE.png",
        model.display()
    ));
    Ok(())
}

/// One training under `recipes/.../resnet20-fashion_mnist-NAME.yaml`.
fn train(args: &Args, name: &str, weights: Option<PathBuf>) -> Result<Job> {
    let recipe = Path::new(RECIPES).join(format!("resnet20-fashion_mnist-{name}.yaml"));
    let mut run = RunArgs::new("resnet20", recipe);
    run.data = args.data.clone();
    run.weights = weights;
    run.train.seed = args.seed;
    run.train.max_images = (!args.full).then_some(8000);
    let place = Place { project: args.project.clone(), name: name.to_string(), exist_ok: false };
    let job = training::start(run, &place, &std::env::args().collect::<Vec<_>>())?;
    term::say(format_args!("{}\n{}\n", job.source, job.folder.path.display()));
    let mut reporter = Reporter::default();
    let outcome = training::run(&job, &mut |progress| reporter.show(progress));
    reporter.finish();
    outcome?;
    Ok(job)
}

/// Milliseconds of one run, the median of two seconds.
fn latency(graph: &Graph, batch: usize) -> Result<f64> {
    let shapes = input_shapes(graph, None, batch)?;
    let plan = Plan { batch, ..Plan::default() };
    Ok(measure(graph, &shapes, &plan)?.median)
}

/// Bytes of a file when compressed, as it would travel: what zeros save on disk.
fn gzipped(path: &Path) -> Result<u64> {
    let bytes = std::fs::read(path).map_err(|e| Failure::io(path, e))?;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&bytes)
        .and_then(|()| gzip.finish())
        .map(|out| out.len() as u64)
        .map_err(|e| Failure::io(path, e))
}
