//! `lacuna recipe expand|diff|compose|new|schema`: recipes as texts, without a model.

use crate::error::{Failure, Result, place_and_message};
use crate::{term, training};
use lacuna_recipe::{
    KeyDifference, PRUNERS, RATES, Recipe, TARGETS, TEMPLATES, Template, compose_staged, diff, diff_text,
};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(clap::Args, Debug)]
pub struct Expand {
    #[arg(value_name = "FILE", help = "Recipe: YAML, or Markdown with YAML front matter")]
    file: PathBuf,
    /// Values for the recipe's variables: name=value,... or a JSON object
    #[arg(long, value_name = "K=V,...", default_value = "", hide_default_value = true)]
    recipe_args: String,
    /// Also the keys that the recipe leaves out, with what they are then
    #[arg(long)]
    defaults: bool,
    /// Write a recipe in the classic style, with every default, in place of JSON
    #[arg(long, conflicts_with = "defaults")]
    yaml: bool,
}

#[derive(clap::Args, Debug)]
pub struct Diff {
    #[arg(value_name = "A")]
    first: PathBuf,
    #[arg(value_name = "B")]
    second: PathBuf,
    /// Values for the variables of both: name=value,... or a JSON object
    #[arg(long, value_name = "K=V,...", default_value = "", hide_default_value = true)]
    recipe_args: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
pub struct Compose {
    #[arg(value_name = "BASE", help = "What was done first")]
    base: PathBuf,
    #[arg(value_name = "ADDITIONAL", help = "What comes after it")]
    additional: PathBuf,
    /// Leave the second recipe's epochs as they are, instead of counting them from the end of the first
    #[arg(long)]
    keep_original_epochs: bool,
    /// File to write [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub struct New {
    /// Ready-made choices; the options below change them [default: dense]
    #[arg(long, value_name = "NAME", value_parser = names_of(TEMPLATES.iter().map(|row| row.0)))]
    template: Option<String>,
    /// How weights are chosen; `true` is gmp
    #[arg(long, value_name = "HOW", num_args = 0..=1, default_missing_value = "true", value_parser = names_of(PRUNERS.iter().map(|row| row.0)))]
    pruning: Option<String>,
    /// Quantise at the end
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    quantization: Option<bool>,
    /// Course of the learning rate
    #[arg(long, value_name = "HOW", value_parser = names_of(RATES.iter().map(|row| row.0)))]
    lr: Option<String>,
    /// What the result runs on: vnni prunes blocks of four, tensorrt two of four
    #[arg(long, value_name = "WHAT", value_parser = names_of(TARGETS.iter().map(|row| row.0)))]
    target: Option<String>,
    /// Put a teacher's outputs into the loss
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    distillation: Option<bool>,
    /// Model named in the command on the first line
    #[arg(long, default_value = "resnet20")]
    model: String,
    /// File to write [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// List the templates
    #[arg(long)]
    list: bool,
}

fn names_of(names: impl Iterator<Item = &'static str>) -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(names.collect::<Vec<_>>())
}

pub fn expand(options: Expand) -> Result<()> {
    let recipe = training::load_recipe(&options.file, &options.recipe_args)?;
    remarks(&recipe);
    if options.yaml {
        term::say(recipe.expanded().trim_end());
    } else {
        term::say_json(&recipe.expanded_json(options.defaults));
    }
    Ok(())
}

pub fn compare(options: Diff) -> Result<()> {
    let load = |path: &Path| training::load_recipe(path, &options.recipe_args);
    let (first, second) = (load(&options.first)?, load(&options.second)?);
    if options.json {
        let key = |k: KeyDifference| (k.name.to_owned(), json!({ "first": k.first, "second": k.second }));
        let line = |pos: Option<lacuna_recipe::Pos>| pos.map(|pos| pos.line);
        let rows: Vec<Value> = diff(&first, &second)
            .into_iter()
            .map(|d| {
                let keys: serde_json::Map<String, Value> = d.keys.into_iter().map(key).collect();
                json!({ "modifier": d.class, "first_line": line(d.first), "second_line": line(d.second), "keys": keys })
            })
            .collect();
        term::say_json(&json!({
            "epochs": [first.max_epochs(), second.max_epochs()],
            "modifiers": rows,
        }));
        return Ok(());
    }
    match diff_text(&first, &second).trim_end() {
        "" => term::say("no difference"),
        text => term::say(text),
    }
    Ok(())
}

pub fn compose(options: Compose) -> Result<()> {
    let (base, additional) = (Recipe::load(&options.base, &[])?, Recipe::load(&options.additional, &[])?);
    let text = compose_staged(&base, &additional, options.keep_original_epochs)?;
    deliver(options.output.as_deref(), &text)
}

pub fn new(options: New) -> Result<()> {
    if options.list {
        let rows: Vec<Vec<String>> =
            TEMPLATES.iter().map(|(name, about, _)| vec![name.to_string(), about.to_string()]).collect();
        term::say(term::table(&["template", "for"], &rows).trim_end());
        return Ok(());
    }
    let named = options.template.as_deref().unwrap_or("dense");
    let mut template = chosen(TEMPLATES.iter().map(|row| (row.0, row.2)), named)?;
    if let Some(name) = &options.pruning {
        template.pruning = chosen(PRUNERS.iter().copied(), name)?;
    }
    if let Some(name) = &options.lr {
        template.rate = chosen(RATES.iter().copied(), name)?;
    }
    if let Some(name) = &options.target {
        template.target = chosen(TARGETS.iter().copied(), name)?;
    }
    template.quantization = options.quantization.unwrap_or(template.quantization);
    template.distillation = options.distillation.unwrap_or(template.distillation);
    if let Some(reason) = template.conflict() {
        return Err(Failure::usage(format!("--target: {reason} (choose another target or way of pruning)")));
    }
    deliver(options.output.as_deref(), &template_text(&template, &options))
}

fn template_text(template: &Template, options: &New) -> String {
    let file = options.output.as_ref().map_or("FILE".to_owned(), |path| path.display().to_string());
    template.text(&format!("lacuna train --model {} --recipe {file}", options.model))
}

/// The parser of the command line has refused every other name.
fn chosen<T>(mut rows: impl Iterator<Item = (&'static str, T)>, name: &str) -> Result<T> {
    let found = rows.find(|row| row.0 == name).map(|row| row.1);
    found.ok_or_else(|| Failure::usage(format!("{name}: there is no such choice")))
}

pub fn schema() -> Result<()> {
    term::say_json(&lacuna_recipe::json_schema());
    Ok(())
}

/// What was found in a recipe that can be used all the same.
pub fn remarks(recipe: &Recipe) {
    recipe.warnings.iter().for_each(|warning| term::note("warning", place_and_message(warning)));
}

/// Writes a new file, or to stdout. A file that is there already stays as it is.
fn deliver(path: Option<&Path>, text: &str) -> Result<()> {
    let Some(path) = path else {
        term::say(text.trim_end());
        return Ok(());
    };
    let mut file =
        OpenOptions::new().write(true).create_new(true).open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::input(format!("{}: is there already (name another file)", path.display()))
            }
            _ => Failure::io(path, e),
        })?;
    file.write_all(text.as_bytes()).map_err(|e| Failure::io(path, e))?;
    term::say(format_args!("{}: written", path.display()));
    Ok(())
}
