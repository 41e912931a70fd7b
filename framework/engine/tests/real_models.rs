//! Real models on real inputs: what the engine computes is what onnxruntime computes, and tasks with labels are solved.
//!
//! `tests/py/real_models.py` has the table of models, makes the cases and judges the results. It needs a Python with
//! `tests/py/requirements.txt` (see `tests/common/onnxruntime.rs`) and the packages that `tests/py/fetch_models.sh`
//! fetches, in `$LACUNA_DATA` or `target/data`; what is missing is skipped, with the reason. `LACUNA_MODELS=a,b` runs
//! these models only.

#[path = "../../../tests/common/onnxruntime.rs"]
mod onnxruntime;

use lacuna_engine::{Options, Session};
use lacuna_ir::Tensor;
use onnxruntime::{npy, python, read_npy};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Models that do not run yet, or not closely enough. One that does may leave this list.
const NOT_YET: &[&str] = &[];

/// The cases are made once and stay.
fn cases_folder(root: &Path) -> PathBuf {
    root.join("target/real_models")
}

/// One line of the script per model: its first word, the name, the rest.
fn script(verb: &str, names: &[String]) -> Option<Vec<(String, String, String)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let python = match python(&root) {
        Ok(python) => python,
        Err(why) => {
            println!("SKIP real models: {why}");
            return None;
        }
    };
    let data = std::env::var_os("LACUNA_DATA").map_or(root.join("target/data"), PathBuf::from);
    let out = Command::new(python)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(root.join("tests/py/real_models.py"))
        .arg(verb)
        .args([data, cases_folder(&root)])
        .args(names)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let errors = String::from_utf8_lossy(&out.stderr);
    let lines = text.lines().map(|line| {
        let mut words = line.splitn(3, ' ').map(str::to_string);
        [words.next(), words.next(), words.next()].map(Option::unwrap_or_default).into()
    });
    let lines: Vec<(String, String, String)> = lines.collect();
    assert!(!lines.is_empty(), "{verb} says nothing: {errors}");
    Some(lines)
}

/// Runs every case of a model and writes the results beside those of onnxruntime.
fn run(folder: &Path) -> Result<(), Box<dyn Error>> {
    let graph = lacuna_onnx::load(folder.join("model.onnx"))?;
    let mut session = Session::new(&graph, &Options { threads: Some(2), ..Options::default() })?;
    drop(graph);
    for case in fs::read_dir(folder)?.map(|entry| entry.unwrap().path()).filter(|p| p.is_dir()) {
        let load = |i: usize| -> Result<Tensor, Box<dyn Error>> {
            Ok(read_npy(&fs::read(case.join(format!("input_{i}.npy")))?)?)
        };
        let inputs: Result<Vec<Tensor>, _> = (0..session.inputs().len()).map(load).collect();
        for (i, y) in session.run(&inputs?)?.iter().enumerate() {
            fs::write(case.join(format!("ours_{i}.npy")), npy(y))?;
        }
    }
    Ok(())
}

#[test]
fn real_models_agree_with_onnxruntime() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let asked = std::env::var("LACUNA_MODELS").unwrap_or_default();
    let asked: Vec<String> = asked.split(',').filter(|n| !n.is_empty()).map(str::to_string).collect();
    let Some(prepared) = script("prepare", &asked) else { return };
    let (mut runs, mut refused, mut failed, mut skipped) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (verdict, name, rest) in prepared {
        match verdict.as_str() {
            "ok" => match run(&cases_folder(&root).join(&name)) {
                Ok(()) => runs.push(name),
                Err(e) => refused.push((name, e.to_string())),
            },
            "SKIP" => {
                println!("SKIP {name}: {rest}");
                skipped += 1;
            }
            _ => failed.push(format!("{name} could not be prepared: {rest}")),
        }
    }
    let judged = if runs.is_empty() { Vec::new() } else { script("judge", &runs).unwrap() };
    let mut agree = 0;
    for (verdict, name, rest) in judged {
        println!("{verdict} {name} {rest}");
        match verdict.as_str() {
            "ok" if NOT_YET.contains(&name.as_str()) => {
                failed.push(format!("{name}: agrees now, take it off the list"))
            }
            "ok" => agree += 1,
            _ => refused.push((name, rest)),
        }
    }
    for (name, why) in refused {
        match NOT_YET.contains(&name.as_str()) {
            true => println!("not yet {name}: {why}"),
            false => failed.push(format!("{name}: {why}")),
        }
    }
    println!("{agree} models agree, {skipped} skipped");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
