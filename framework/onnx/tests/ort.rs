//! Every op against onnxruntime: files that this crate writes pass onnx's checker, and onnxruntime computes
//! what the interpreter computes.
//!
//! Needs a Python with `tests/py/requirements.txt`: `$LACUNA_PYTHON`, or `target/py/bin/python`, or `python3`.
//! Where none has the packages the test prints `SKIP onnxruntime: ...`; a `$LACUNA_PYTHON` that lacks them fails.

mod common;
#[path = "../../../tests/common/onnxruntime.rs"]
mod onnxruntime;

use common::{Random, build, foreign};
use lacuna_ir::{Elements, Tensor, interp, verify};
use lacuna_onnx::proto::{ModelProto, type_proto};
use lacuna_onnx::{WriteOptions, parse, to_bytes};
use onnxruntime::{npy, python};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn write_case(dir: &Path, model: &[u8], inputs: &[Tensor], outputs: &[Tensor]) {
    fs::create_dir(dir).unwrap();
    fs::write(dir.join("model.onnx"), model).unwrap();
    for (kind, tensors) in [("input", inputs), ("output", outputs)] {
        for (i, tensor) in tensors.iter().enumerate() {
            fs::write(dir.join(format!("{kind}_{i}.npy")), npy(tensor)).unwrap();
        }
    }
}

/// Reads the file and runs it on random inputs; symbolic dimensions are 2.
fn run_foreign(name: &str, mut model: ModelProto) -> (ModelProto, Vec<Tensor>, Vec<Tensor>) {
    let graph = parse(build::bytes(&model)).unwrap_or_else(|e| panic!("{name}: {e}"));
    verify::verify(&graph).unwrap();
    let mut random = Random(11);
    let inputs: Vec<Tensor> = (graph.inputs.iter())
        .map(|&v| {
            let dims: Vec<usize> = graph.shape(v).iter().map(|d| d.fixed().unwrap_or(2) as usize).collect();
            random.tensor(graph.value_dtype[v], &dims)
        })
        .collect();
    let outputs = interp::run(&graph, &inputs).unwrap_or_else(|e| panic!("{name}: {e}"));
    // The checker wants a shape at the output: ours, which it compares with its own.
    let declared =
        model.graph.as_mut().and_then(|g| g.output[0].r#type.as_mut()).and_then(|t| t.value.as_mut());
    let Some(type_proto::Value::TensorType(declared)) = declared else { panic!("{name}: y has no type") };
    let dims: Vec<build::D> = (graph.shape(graph.outputs[0]).iter())
        .map(|d| d.fixed().map_or(build::D::Unknown, |n| build::D::N(n as i64)))
        .collect();
    declared.shape = Some(build::shape(&dims));
    (model, inputs, outputs)
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
    let python = match python(&root()) {
        Ok(python) => python,
        Err(why) => return println!("SKIP onnxruntime: {} cases, {why}", cases.len()),
    };
    let dir = tempfile::tempdir().unwrap();
    let mut names: Vec<String> = Vec::new();
    for case in &cases {
        let outputs = interp::run(&case.graph, &case.inputs).unwrap();
        let file = to_bytes(&case.graph, &WriteOptions::default()).unwrap();
        write_case(&dir.path().join(&case.name), &file, &case.inputs, &outputs);
        names.push(case.name.clone());
    }
    // Files as others write them: what we read is what onnxruntime reads.
    for (name, model) in foreign::models() {
        let (model, inputs, outputs) = run_foreign(&name, model);
        write_case(&dir.path().join(&name), &build::bytes(&model), &inputs, &outputs);
        names.push(name);
    }
    // Canaries: the comparison must find these.
    for name in ["block", "QuantizeLinear_u8", "Identity_i64"] {
        let case = cases.iter().find(|c| c.name == name).unwrap();
        let outputs = interp::run(&case.graph, &case.inputs).unwrap();
        let outputs: Vec<Tensor> = outputs.iter().map(wrong).collect();
        let file = to_bytes(&case.graph, &WriteOptions::default()).unwrap();
        write_case(&dir.path().join(format!("canary_{name}")), &file, &case.inputs, &outputs);
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
