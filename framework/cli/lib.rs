//! The command `lacuna`: one verb per file, one table of verbs.
//!
//! [`main`] parses, finds the verb's row in [`VERBS`] and runs it. Results go to stdout, remarks and errors to stderr
//! as `error: where: what (what to do)`; [`error::EXITS`] lists the exit codes. [`training`], [`model_file`],
//! [`classify`] and [`benchmark::measure`] are plain functions that programs may call too.

#![forbid(unsafe_code)]

pub mod analyze;
pub mod benchmark;
pub mod classify;
pub mod detect;
pub mod doctor;
pub mod error;
pub mod eval;
pub mod eval_boxes;
pub mod export;
pub mod model_file;
pub mod oneshot;
pub mod pack;
pub mod picture;
pub mod predict;
pub mod recipe;
pub mod recipe_tools;
pub mod samples;
pub mod term;
pub mod texts;
pub mod train;
pub mod training;
pub mod zoo;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use error::{EXITS, Exit, Failure, Result};
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// One verb: its help, its arguments, what it does.
pub struct Verb {
    pub name: &'static str,
    pub about: &'static str,
    /// Command lines; a backslash and a line break may stand in one.
    pub examples: &'static [&'static str],
    pub arguments: fn(Command) -> Command,
    pub run: fn(&ArgMatches) -> Result<()>,
}

const RECIPE: &str = "recipes/image_classification/resnet20-fashion_mnist-pruned90_quant.yaml";

pub const VERBS: &[Verb] = &[
    Verb {
        name: "train",
        about: "Train a model under a recipe: prune and quantise while it learns",
        examples: &[
            "lacuna train --model resnet20 \\\n      --recipe recipes/image_classification/resnet20-fashion_mnist-pruned90_quant.yaml",
            "lacuna train --model resnet20 --recipe my.yaml --recipe-args num_epochs=10,final_sparsity=0.95 --seed 1",
            "lacuna train --model resnet20 --recipe my.yaml --optimizer adamw --lr 0.002",
            "lacuna train --model yolov5n --data trees --tile 400 --image-size 320 --optimizer adamw \\\n      --recipe recipes/object_detection/yolov5n-deepforest-dense.yaml",
            "lacuna train --model minilm_l6 --weights minilm/model.safetensors --data reviews-train.tsv \\\n      --recipe my.yaml --optimizer adamw --lr 0.00005 --batch 16",
            "lacuna train --resume runs/train",
        ],
        arguments: train::Train::augment_args,
        run: |m| train::run(parsed(m)?),
    },
    Verb {
        name: "eval",
        about: "Measure the accuracy of a model on the test set",
        examples: &[
            "lacuna eval runs/train",
            "lacuna eval runs/train/model.onnx --json",
            "lacuna eval runs/train --name last --burn",
            "lacuna eval runs/yolo --data trees --tile 400",
            "lacuna eval runs/train --data reviews-test.tsv",
        ],
        arguments: eval::Eval::augment_args,
        run: |m| eval::run(parsed(m)?),
    },
    Verb {
        name: "predict",
        about: "Run a model on your own images and texts",
        examples: &[
            "lacuna predict classify runs/train/model.onnx shoe.png",
            "lacuna predict classify runs/train images/ --top 3 --json",
            "lacuna predict detect yolov5s.onnx street.jpg --output boxes/",
            "lacuna predict segment yolov8n-seg.onnx street.jpg --json",
            "lacuna predict embed model.safetensors --model minilm_l6_embed one two three",
            "lacuna predict classify-text runs/train ticket.txt",
        ],
        arguments: predict::Predict::augment_args,
        run: |m| predict::run(parsed(m)?),
    },
    Verb {
        name: "export",
        about: "Write trained weights as an ONNX file (operator set 17)",
        examples: &[
            "lacuna export runs/train",
            "lacuna export runs/train --name pruned -o pruned.onnx",
            "lacuna export resnet50.pth --model resnet50 -o resnet50.onnx",
        ],
        arguments: export::Export::augment_args,
        run: |m| export::run(parsed(m)?),
    },
    Verb {
        name: "pack",
        about: "Write any model as a .lacuna file, in which zeros take no room",
        examples: &["lacuna pack model.onnx", "lacuna pack runs/train -o small.lacuna"],
        arguments: pack::Pack::augment_args,
        run: |m| pack::run(parsed(m)?),
    },
    Verb {
        name: "oneshot",
        about: "Prune and quantise a trained model without training it further",
        examples: &[
            "lacuna oneshot model.onnx --sparsity 0.5 -o sparse.onnx",
            "lacuna oneshot model.onnx --quantize static --calib photos/ --mean 0.485,0.456,0.406 \\\n      --std 0.229,0.224,0.225",
            "lacuna oneshot model.onnx --sparsity 0.7 --quantize static --calib photos/ --mean 0.5 --std 0.5 \\\n      --eval labelled/ --max-drop 1",
        ],
        arguments: oneshot::OneshotCommand::augment_args,
        run: |m| oneshot::run(parsed(m)?),
    },
    Verb {
        name: "benchmark",
        about: "Time a model on this machine (flags and JSON keys of deepsparse.benchmark)",
        examples: &[
            "lacuna benchmark model.onnx",
            "lacuna benchmark model.onnx -b 64 -t 5 -ncores 2 -x out.json",
            "lacuna benchmark model.onnx -s async -nstreams 2 -pin core",
            "lacuna benchmark model.lacuna -s elastic -nstreams 8",
        ],
        arguments: benchmark::Benchmark::augment_args,
        run: |m| benchmark::run(parsed(m)?),
    },
    Verb {
        name: "analyze",
        about: "Show for every step which kernel runs, how sparse it is and what it costs",
        examples: &["lacuna analyze model.onnx", "lacuna analyze model.onnx -b 64 --json"],
        arguments: analyze::Analyze::augment_args,
        run: |m| analyze::run(parsed(m)?),
    },
    Verb {
        name: "recipe",
        about: "Check, plan, compare or make a recipe",
        examples: &[
            "lacuna recipe new --template pruning_quantization -o my.yaml",
            "lacuna recipe check my.yaml --model resnet20",
            "lacuna recipe plan my.yaml --model resnet20 --steps-per-epoch 937",
        ],
        arguments: recipe::RecipeCommand::augment_args,
        run: |m| recipe::run(parsed(m)?),
    },
    Verb {
        name: "zoo",
        about: "List the models that can be built, with their published sizes",
        examples: &["lacuna zoo list", "lacuna zoo list --task image_classification --json"],
        arguments: zoo::Zoo::augment_args,
        run: |m| zoo::run(parsed(m)?),
    },
    Verb {
        name: "doctor",
        about: "Show what lacuna finds on this machine: processor, kernels, devices, data sets",
        examples: &["lacuna doctor", "lacuna doctor --device flex --format json"],
        arguments: doctor::Doctor::augment_args,
        run: |m| doctor::run(parsed(m)?),
    },
];

fn parsed<T: FromArgMatches>(matches: &ArgMatches) -> Result<T> {
    T::from_arg_matches(matches).map_err(|e| Failure::usage(e.to_string()))
}

/// The examples of a verb, as help shows them.
fn examples(lines: &[&str]) -> String {
    lines.iter().fold("Examples:".to_owned(), |text, line| format!("{text}\n  {line}"))
}

/// The whole command line.
pub fn command() -> Command {
    let codes = EXITS.iter().map(|(exit, meaning)| format!("\n  {:>2}  {meaning}", *exit as u8));
    let after = format!(
        "Exit codes:{}\n\nStart here:\n  lacuna doctor\n  lacuna train --model resnet20 \\\n      --recipe {RECIPE}",
        codes.collect::<String>()
    );
    let verbs = VERBS.iter().map(|verb| {
        (verb.arguments)(Command::new(verb.name).about(verb.about).after_help(examples(verb.examples)))
    });
    Command::new("lacuna")
        .about("Prune and quantise neural networks, and run them fast on CPUs")
        .version(training::VERSION)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(verbs)
        .after_help(after)
}

/// Parses the command line of this process and runs it.
pub fn main() -> ExitCode {
    run(std::env::args_os().collect())
}

/// As [`main`], for any command line; the first word is the program's name.
pub fn run(words: Vec<OsString>) -> ExitCode {
    let matches = match command().try_get_matches_from(benchmark::long_flags(words)) {
        Ok(matches) => matches,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.exit_code() == 0 { Exit::Ok } else { Exit::Usage } as u8);
        }
    };
    let verb = matches.subcommand().and_then(|(name, m)| Some((VERBS.iter().find(|v| v.name == name)?, m)));
    let Some((verb, matches)) = verb else { return ExitCode::from(Exit::Usage as u8) };
    // A panic is a bug wherever it comes from; the default hook has said where.
    let ended = catch_unwind(AssertUnwindSafe(|| (verb.run)(matches))).unwrap_or_else(|_| {
        let issues = concat!(env!("CARGO_PKG_REPOSITORY"), "/issues");
        Err(Failure::new(Exit::Internal, format!("lacuna {}: a bug (report it: {issues})", verb.name)))
    });
    match ended {
        Ok(()) => ExitCode::from(Exit::Ok as u8),
        Err(failure) => {
            failure.messages.iter().for_each(term::error);
            ExitCode::from(failure.exit as u8)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_its_examples_parse() {
        command().debug_assert();
        for verb in VERBS {
            for line in verb.examples {
                let line = line.replace('\\', "");
                let words = line.split_whitespace().map(OsString::from).collect();
                let parsed = command().try_get_matches_from(benchmark::long_flags(words));
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            }
        }
    }
}
