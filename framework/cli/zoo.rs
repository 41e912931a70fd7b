//! `lacuna zoo`: the table of models.

use crate::error::{Failure, Result};
use crate::term;
use lacuna_models::{MODELS, ModelRow};
use serde_json::json;

#[derive(clap::Args, Debug)]
pub struct Zoo {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Every model: its task, input, classes, parameters, what zoo:MODEL stands for, and its source
    List(List),
}

#[derive(clap::Args, Debug)]
struct List {
    /// Models of this task only
    #[arg(long)]
    task: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(options: Zoo) -> Result<()> {
    let What::List(options) = options.what;
    let wanted = |row: &&ModelRow| options.task.as_deref().is_none_or(|task| row.task.name() == task);
    let rows: Vec<&ModelRow> = MODELS.iter().filter(wanted).collect();
    if rows.is_empty() {
        let mut tasks: Vec<&str> = MODELS.iter().map(|row| row.task.name()).collect();
        tasks.dedup();
        let task = options.task.unwrap_or_default();
        return Err(Failure::usage(format!("--task {task}: no model has it (tasks: {})", tasks.join(", "))));
    }
    if options.json {
        let row = |row: &&ModelRow| {
            json!({
                "name": row.name,
                "task": row.task.name(),
                "input": row.input.to_string(),
                "classes": row.classes,
                "parameters": row.parameters,
                "source": row.source,
                "weights": row.place(),
            })
        };
        term::say_json(&json!(rows.iter().map(row).collect::<Vec<_>>()));
        return Ok(());
    }
    let line = |row: &&ModelRow| {
        vec![
            row.name.to_owned(),
            row.task.name().to_owned(),
            row.input.to_string(),
            row.classes.to_string(),
            row.parameters.to_string(),
            row.place().unwrap_or("-").to_owned(),
            row.source.to_owned(),
        ]
    };
    let lines: Vec<Vec<String>> = rows.iter().map(line).collect();
    term::say(term::table(
        &["model", "task", "input", ">classes", ">parameters", "zoo: weights", "source"],
        &lines,
    ));
    Ok(())
}
