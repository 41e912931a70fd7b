//! `lacuna export`: trained weights to an ONNX file.

use crate::error::{Failure, Result};
use crate::model_file::{self, Model, WeightRow, WeightsName};
use crate::term;
use lacuna_ir::Graph;
use lacuna_onnx::WriteOptions;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(clap::Args, Debug)]
pub struct Export {
    /// Run folder, or a file of weights: of a run, or published (.safetensors, or PyTorch's .pth, .pt, .bin; or zoo:MODEL
    /// or hf:OWNER/NAME)
    #[arg(value_name = "RUN|WEIGHTS")]
    path: PathBuf,
    /// File to write, ONNX or .lacuna [default: model.onnx in the run folder, or beside the weights; here for zoo: and hf: names]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Which weights of a run folder
    #[arg(long, value_enum, default_value_t = WeightsName::Best)]
    name: WeightsName,
    /// Model that the weights are for, where the file does not name it (see lacuna zoo list)
    #[arg(long)]
    model: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(options: Export) -> Result<()> {
    let model = model_file::open(&options.path, options.name, options.model.as_deref())?;
    if let Model::File { path, .. } = &model {
        let what = "is a model file already (give the run folder, or a .safetensors file; see lacuna pack)";
        return Err(Failure::usage(format!("{}: {what}", path.display())));
    }
    let output = options.output.unwrap_or_else(|| match options.path.is_dir() {
        true => options.path.join("model.onnx"),
        false if !options.path.exists() => PathBuf::from("model.onnx"),
        false => options.path.with_extension("onnx"),
    });
    let from = model.path().display().to_string();
    let graph = model.into_graph()?;
    let bytes = match model_file::is_container(&output) {
        true => write_container(&graph, &output)?,
        false => write(&graph, &output)?,
    };
    let rows = model_file::weight_rows(&graph);
    let output = output.display().to_string();
    if options.json {
        term::say_json(&json!({ "weights": from, "onnx": output, "bytes": bytes, "tensors": rows }));
        return Ok(());
    }
    term::say(weights_table(&rows));
    term::say(format_args!("\n{from} -> {output}  ({})", term::bytes(bytes)));
    term::say(format_args!("\nNext:\n  lacuna analyze {output}\n  lacuna benchmark {output} -b 1"));
    Ok(())
}

/// Writes a graph with what its metadata says as the model's description; returns the size of the file.
pub fn write(graph: &Graph, path: &Path) -> Result<u64> {
    let doc = graph.metadata("lacuna.command").unwrap_or_default().to_owned();
    lacuna_onnx::save(graph, path, &WriteOptions { doc })?;
    Ok(path.metadata().map_err(|e| Failure::io(path, e))?.len())
}

/// Writes a graph as a .lacuna file; returns the size of the file.
pub fn write_container(graph: &Graph, path: &Path) -> Result<u64> {
    Ok(lacuna_container::save(graph, path)?)
}

fn weights_table(rows: &[WeightRow]) -> String {
    let cells = |r: &WeightRow| vec![r.tensor.clone(), r.dtype.to_owned(), term::zeros(r.zeros, r.elements)];
    let mut lines: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let sum = |f: fn(&WeightRow) -> u64| rows.iter().map(f).sum::<u64>();
    lines.push(vec!["all".to_owned(), String::new(), term::zeros(sum(|r| r.zeros), sum(|r| r.elements))]);
    term::table(&["tensor", "type", ">zeros"], &lines)
}
