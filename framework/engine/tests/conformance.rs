//! The node tests of the ONNX standard: every case, in three configurations (the interpreter, the engine on one
//! thread, the engine on two).
//!
//! The cases are those of the PyPI wheel `onnx` 1.16.2, folder `onnx/backend/test/data`: its sets `node`, `simple`,
//! `pytorch-converted` and `pytorch-operator`. They are looked for in `LACUNA_ONNX_TESTDATA` (that folder), else in
//! `target/onnx-testdata` of the workspace, where `.ci/run` unpacks them. A case is a model, inputs and outputs.
//!
//! `conformance.txt` beside this file lists every case that does not pass, and why. A case that is not listed must
//! pass, a listed one must not: it is refused by a typed error that names what is not supported, or is one of the few
//! whose expected results we do not follow (`DEVIATIONS`).
//! `UPDATE_GOLDEN=1` writes the list anew. `LACUNA_ONNX_CASE=text` runs the cases that have `text` in their names, and
//! prints what became of each; `LACUNA_ONNX_RUN=interpreter` leaves the engine out.

#[path = "conformance/tensor.rs"]
mod tensor;

use lacuna_engine::{Options, Session};
use lacuna_ir::{Graph, Tensor, ValueId, interp};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use tensor::{CLOSE, Expected, WIDE};

const SETS: [&str; 4] = ["node", "pytorch-converted", "pytorch-operator", "simple"];
/// Cases of each set in the wheel: fewer would mean that some went missing.
const CASES: [usize; 4] = [1282, 82, 35, 23];
const UNSUPPORTED: &str = "unsupported: ";

fn data() -> Option<PathBuf> {
    let asked = std::env::var_os("LACUNA_ONNX_TESTDATA").map(PathBuf::from);
    if let Some(folder) = &asked {
        assert!(folder.join("node").is_dir(), "LACUNA_ONNX_TESTDATA: {} has no 'node'", folder.display());
    }
    let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/onnx-testdata");
    asked.or(Some(usual)).filter(|folder| folder.join("node").is_dir())
}

fn manifest() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance.txt")
}

/// Case by case: why it does not pass.
fn listed() -> BTreeMap<String, String> {
    let text = fs::read_to_string(manifest()).unwrap_or_default();
    let rows = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let split = |row: &str| {
        let (case, why) = row.split_once("  ").unwrap_or_else(|| panic!("conformance.txt: '{row}'"));
        (case.to_string(), why.trim().to_string())
    };
    rows.map(split).collect()
}

fn folders(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).unwrap_or_else(|e| panic!("{}: {e}", of.display()));
    let mut folders: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    folders
}

/// The tensors `input_0.pb`, `input_1.pb`, ... of a folder.
fn tensors(folder: &Path, kind: &str) -> Result<Vec<Expected>, String> {
    let path = |i: usize| folder.join(format!("{kind}_{i}.pb"));
    (0..).map(path).take_while(|path| path.exists()).map(|path| tensor::read(&path)).collect()
}

fn refused(e: &lacuna_onnx::Error) -> bool {
    use lacuna_onnx::Error::*;
    match e {
        InFile { source, .. } => refused(source),
        Unsupported { .. }
        | UnsupportedNodes { .. }
        | UnsupportedFeature { .. }
        | UnsupportedDType { .. }
        | Opset { .. } => true,
        _ => false,
    }
}

/// The error without the path of the file, in one line.
fn reason(e: &lacuna_onnx::Error) -> String {
    match e {
        lacuna_onnx::Error::InFile { source, .. } => reason(source),
        e => e.to_string().replace('\n', " "),
    }
}

fn engine(graph: &Graph, inputs: &[Tensor], threads: usize) -> Result<Vec<Tensor>, String> {
    let options = Options { threads: Some(threads), ..Options::default() };
    let mut session = Session::new(graph, &options).map_err(|e| e.to_string())?;
    session.run(inputs).map_err(|e| e.to_string())
}

/// Cases whose expected results are not followed, and why.
const DEVIATIONS: [(&str, &str); 5] = [
    ("node/test_averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True", CEIL),
    ("node/test_qlinearmatmul_2D_int8_float16", WRAPS),
    ("node/test_qlinearmatmul_2D_int8_float32", WRAPS),
    ("node/test_qlinearmatmul_3D_int8_float16", WRAPS),
    ("node/test_qlinearmatmul_3D_int8_float32", WRAPS),
];
const CEIL: &str = "the file counts elements beyond the padding; onnxruntime and PyTorch do not";
const WRAPS: &str = "results beyond i8 wrap in the file; the standard's text and onnxruntime saturate";
const DEVIATES: &str = "deviates: ";

/// Cases whose expected results are written with four digits.
const FEW_DIGITS: [&str; 3] =
    ["node/test_gridsample_bicubic", "node/test_roialign_aligned_false", "node/test_roialign_aligned_true"];

type Run = fn(&Graph, &[Tensor]) -> Result<Vec<Tensor>, String>;

const CONFIGURATIONS: [(&str, Run); 3] = [
    ("interpreter", |g, inputs| interp::run(g, inputs).map_err(|e| e.to_string())),
    ("engine, 1 thread", |g, inputs| engine(g, inputs, 1)),
    ("engine, 2 threads", |g, inputs| engine(g, inputs, 2)),
];

/// Runs one case in every configuration.
fn check(folder: &Path) -> Result<(), String> {
    let graph = match lacuna_onnx::load(folder.join("model.onnx")) {
        Ok(graph) => graph,
        Err(e) if refused(&e) => return Err(format!("{UNSUPPORTED}{}", reason(&e))),
        Err(e) => return Err(format!("load: {}", reason(&e))),
    };
    lacuna_ir::verify::verify(&graph).map_err(|e| format!("verify: {e}"))?;
    for set in folders(folder) {
        let like = |(t, v): (Expected, &ValueId)| t.in_graph_type(graph.value_dtype[*v]);
        let inputs = tensors(&set, "input")?.into_iter().zip(&graph.inputs).map(like);
        let inputs: Vec<Tensor> = inputs.map(|t| t.tensor).collect();
        let expected: Vec<Expected> =
            tensors(&set, "output")?.into_iter().zip(&graph.outputs).map(like).collect();
        let only = std::env::var("LACUNA_ONNX_RUN").ok();
        let bound = if FEW_DIGITS.iter().any(|case| folder.ends_with(case)) { WIDE } else { CLOSE };
        for (name, run) in
            CONFIGURATIONS.iter().filter(|c| only.as_ref().is_none_or(|only| c.0.starts_with(only)))
        {
            let outputs = run(&graph, &inputs).map_err(|e| format!("{name}: {e}"))?;
            if outputs.len() != expected.len() {
                return Err(format!("{name}: {} outputs, {} expected", outputs.len(), expected.len()));
            }
            for (i, (output, expected)) in outputs.iter().zip(&expected).enumerate() {
                expected.compare(output, bound).map_err(|why| format!("{name}: output {i}: {why}"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_node_tests_of_the_standard_pass() {
    let listed = listed();
    let Some(data) = data() else {
        let total: usize = CASES.iter().sum();
        return println!(
            "SKIP ONNX node tests: {total} cases, there is no target/onnx-testdata (.ci/run fetches it)"
        );
    };
    let only = std::env::var("LACUNA_ONNX_CASE").ok();
    let mut text = String::from(
        "# Cases of the ONNX node tests (onnx 1.16.2) that do not pass, and why; see conformance.rs.\n",
    );
    let (mut found, mut faults) = (BTreeMap::new(), Vec::new());
    for (set, count) in SETS.iter().zip(CASES) {
        let cases = folders(&data.join(set));
        assert_eq!(cases.len(), count, "{set}: cases are missing, or of another version");
        let mut passed = 0;
        for folder in cases {
            let case = format!("{set}/{}", folder.file_name().unwrap().to_string_lossy());
            if only.as_ref().is_some_and(|part| !case.contains(part.as_str())) {
                continue;
            }
            let result = catch_unwind(|| check(&folder)).unwrap_or_else(|_| Err("panic".to_string()));
            if only.is_some() {
                println!("{case}: {}", result.as_ref().err().map_or("ok", String::as_str));
            }
            let deviation = DEVIATIONS.iter().find(|d| d.0 == case).filter(|_| result.is_err());
            let result = deviation.map_or(result, |d| Err(format!("{DEVIATES}{}", d.1)));
            match result {
                Ok(()) => passed += 1,
                Err(why) => drop(found.insert(case, why)),
            }
        }
        println!("{set}: {passed} of {count} pass");
        writeln!(text, "# {set}: {passed} of {count} pass").unwrap();
    }
    found.iter().for_each(|(case, why)| writeln!(text, "{case}  {why}").unwrap());
    if only.is_some() || std::env::var_os("LACUNA_ONNX_RUN").is_some() {
        found.iter().for_each(|(case, why)| println!("{case}  {why}"));
        return;
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        return fs::write(manifest(), text).unwrap();
    }
    for (case, why) in &found {
        let refused = why.starts_with(UNSUPPORTED) || why.starts_with(DEVIATES);
        if !refused {
            faults.push(format!("{case} fails: {why}"));
        }
        match listed.get(case) {
            _ if !refused => {}
            None => faults.push(format!("{case} fails: {why}")),
            Some(was) if was.starts_with(UNSUPPORTED) != why.starts_with(UNSUPPORTED) => {
                faults.push(format!("{case} is listed as '{was}', but: {why}"));
            }
            Some(_) => {}
        }
    }
    let stale = listed.keys().filter(|case| !found.contains_key(*case));
    faults.extend(
        stale.map(|case| format!("{case} is listed in conformance.txt, but passes or does not exist")),
    );
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
