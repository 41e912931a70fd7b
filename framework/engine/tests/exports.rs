//! Files as PyTorch's two exporters, Keras and tf2onnx write them, one convolutional network and one transformer each:
//! the engine and the interpreter compute what onnxruntime computed, for each batch and length.
//!
//! `tests/py/make_exports.py` made `tests/data/exports`: small networks with real layers and random weights.

#[allow(dead_code)] // Of it, files of arrays are read here.
#[path = "../../../tests/common/onnxruntime.rs"]
mod onnxruntime;

use lacuna_engine::{Options, Session};
use lacuna_ir::{Tensor, interp};
use onnxruntime::read_npy;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// Largest difference, relative to a tensor's largest magnitude.
const RELATIVE: f32 = 1e-5;

/// Files that do not run yet. One that does must leave this list.
const NOT_YET: &[&str] = &[];

fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

fn tensors(case: &Path, kind: &str) -> Vec<Tensor> {
    let file = |i: usize| case.join(format!("{kind}_{i}.npy"));
    (0..).map(file).take_while(|f| f.exists()).map(|f| read_npy(&fs::read(f).unwrap()).unwrap()).collect()
}

fn run(folder: &Path) -> Result<(), Box<dyn Error>> {
    let graph = lacuna_onnx::load(folder.join("model.onnx"))?;
    let mut session = Session::new(&graph, &Options { threads: Some(2), ..Options::default() })?;
    for case in folders(folder) {
        let (inputs, want) = (tensors(&case, "input"), tensors(&case, "output"));
        compare(&format!("{}, engine", case.display()), &session.run(&inputs)?, &want)?;
        compare(&format!("{}, interpreter", case.display()), &interp::run(&graph, &inputs)?, &want)?;
    }
    Ok(())
}

fn compare(what: &str, got: &[Tensor], want: &[Tensor]) -> Result<(), String> {
    assert!(!want.is_empty(), "{what}: there is nothing to compare with");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        if got.dims != want.dims {
            return Err(format!("{what}: output {i} is {:?}, {:?} is expected", got.dims, want.dims));
        }
        let (Some(got), Some(want)) = (got.as_f32(), want.as_f32()) else {
            return Err(format!("{what}: output {i} is not f32"));
        };
        let size = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let off = got.iter().zip(want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        if off > RELATIVE * size || got.iter().any(|x| x.is_nan()) {
            return Err(format!("{what}: output {i} is off by {off}, values are up to {size}"));
        }
    }
    Ok(())
}

#[test]
fn files_of_every_exporter_run() {
    let all = folders(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/exports"));
    assert_eq!(all.len(), 8, "two networks of four exporters");
    let mut failed = Vec::new();
    for folder in all {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        match (run(&folder), NOT_YET.contains(&name.as_str())) {
            (Ok(()), false) => println!("ok {name}"),
            (Err(why), true) => println!("not yet {name}: {why}"),
            (Ok(()), true) => failed.push(format!("{name} runs now")),
            (Err(why), false) => failed.push(format!("{name}: {why}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
