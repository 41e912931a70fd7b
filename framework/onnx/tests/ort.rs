//! Every op against onnxruntime: files that this crate writes pass onnx's checker, and onnxruntime computes
//! what the interpreter computes.
//!
//! Needs a Python with `tests/py/requirements.txt`: `$LACUNA_PYTHON`, or `target/py/bin/python`, or `python3`.
//! Where none has the packages the test prints `SKIP onnxruntime: ...`; a `$LACUNA_PYTHON` that lacks them fails.

mod common;

use lacuna_ir::{DType, Elements, Tensor, interp};
use lacuna_onnx::{WriteOptions, save};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A Python that has the packages, or why there is none.
fn python() -> Result<PathBuf, String> {
    let asked = std::env::var_os("LACUNA_PYTHON").map(PathBuf::from);
    let candidates = match &asked {
        Some(python) => vec![python.clone()],
        None => vec![root().join("target/py/bin/python"), PathBuf::from("python3")],
    };
    let mut why = String::new();
    for python in candidates {
        let run = Command::new(&python).args(["-c", "import numpy, onnx, onnxruntime"]).output();
        match run {
            Ok(out) if out.status.success() => return Ok(python),
            Ok(out) => why = String::from_utf8_lossy(&out.stderr).lines().last().unwrap_or("").to_string(),
            Err(e) => why = format!("{}: {e}", python.display()),
        }
    }
    assert!(asked.is_none(), "LACUNA_PYTHON is set, but: {why}");
    Err(why)
}

/// NumPy's format, version 1.0 (numpy.lib.format): magic, header length, header padded to 64 bytes, data.
fn npy(tensor: &Tensor) -> Vec<u8> {
    let kind = match tensor.dtype() {
        DType::F32 => "<f4",
        DType::I64 => "<i8",
        DType::I32 => "<i4",
        DType::U8 => "|u1",
        DType::I8 => "|i1",
        DType::Bool => "|b1",
    };
    let dims: String = tensor.dims.iter().map(|d| format!("{d},")).collect();
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({dims}), }}");
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(tensor.bytes());
    bytes
}

fn write_case(dir: &Path, case: &common::Case, outputs: &[Tensor]) {
    fs::create_dir(dir).unwrap();
    save(&case.graph, dir.join("model.onnx"), &WriteOptions::default()).unwrap();
    for (kind, tensors) in [("input", case.inputs.as_slice()), ("output", outputs)] {
        for (i, tensor) in tensors.iter().enumerate() {
            fs::write(dir.join(format!("{kind}_{i}.npy")), npy(tensor)).unwrap();
        }
    }
}

/// The tensor with one element off: by one step, or by 1e-4 of the largest magnitude.
fn wrong(tensor: &Tensor) -> Tensor {
    let mut wrong = tensor.clone();
    match &mut wrong.elements {
        Elements::F32(v) => v[0] += 1e-4 * v.iter().fold(0.0f32, |m, x| m.max(x.abs())),
        Elements::I64(v) => v[0] += 1,
        Elements::I32(v) => v[0] += 1,
        Elements::U8(v) => v[0] ^= 1,
        Elements::I8(v) => v[0] ^= 1,
        Elements::Bool(v) => v[0] ^= 1,
    }
    wrong
}

#[test]
fn onnxruntime_agrees_on_every_op() {
    let cases = common::cases();
    let python = match python() {
        Ok(python) => python,
        Err(why) => return println!("SKIP onnxruntime: {} cases, {why}", cases.len()),
    };
    let dir = tempfile::tempdir().unwrap();
    let mut names: Vec<String> = Vec::new();
    for case in &cases {
        let outputs = interp::run(&case.graph, &case.inputs).unwrap();
        write_case(&dir.path().join(&case.name), case, &outputs);
        names.push(case.name.clone());
    }
    // Canaries: the comparison must find these.
    for name in ["block", "QuantizeLinear_u8", "Identity_i64"] {
        let case = cases.iter().find(|c| c.name == name).unwrap();
        let outputs = interp::run(&case.graph, &case.inputs).unwrap();
        let outputs: Vec<Tensor> = outputs.iter().map(wrong).collect();
        write_case(&dir.path().join(format!("canary_{name}")), case, &outputs);
        names.push(format!("canary_{name}"));
    }
    let script = root().join("tests/py/compare_ort.py");
    let paths = names.iter().map(|name| dir.path().join(name));
    let out =
        Command::new(python).env("PYTHONDONTWRITEBYTECODE", "1").arg(script).args(paths).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    println!("{text}{}", String::from_utf8_lossy(&out.stderr));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), names.len(), "one line per case");
    for (line, name) in lines.iter().zip(&names) {
        let want = if name.starts_with("canary_") { format!("FAIL {name}: ") } else { format!("ok {name} ") };
        assert!(line.starts_with(&want), "{line}");
    }
}
