//! `lacuna pack`: any model as a `.lacuna` file, in which zeros take no room.

use crate::error::Result;
use crate::model_file::{self, WeightsName};
use crate::{export, term};
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args, Debug)]
pub struct Pack {
    /// ONNX file, .lacuna file, run folder or .safetensors file of a run
    #[arg(value_name = "MODEL")]
    path: PathBuf,
    /// File to write [default: model.lacuna in the run folder, or beside the model]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Which weights of a run folder
    #[arg(long, value_enum, default_value_t = WeightsName::Best)]
    name: WeightsName,
    /// Architecture of a .safetensors file that does not name it
    #[arg(long)]
    model: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(options: Pack) -> Result<()> {
    let model = model_file::open(&options.path, options.name, options.model.as_deref())?;
    let output = options.output.unwrap_or_else(|| match options.path.is_dir() {
        true => options.path.join("model.lacuna"),
        false => options.path.with_extension("lacuna"),
    });
    let from = model.path().to_owned();
    let before = from.metadata().map_or(0, |meta| meta.len());
    let bytes = export::write_container(&model.into_graph()?, &output)?;
    let (from, output) = (from.display().to_string(), output.display().to_string());
    if options.json {
        term::say_json(&json!({ "model": from, "bytes_before": before, "lacuna": output, "bytes": bytes }));
        return Ok(());
    }
    term::say(format_args!("{from} ({}) -> {output} ({})", term::bytes(before), term::bytes(bytes)));
    term::say(format_args!("\nNext:\n  lacuna benchmark {output} -b 1"));
    Ok(())
}
