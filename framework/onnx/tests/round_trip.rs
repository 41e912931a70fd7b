//! Graph to file to graph: the same text, the same results, every op.

mod common;

use bytes::Bytes;
use lacuna_ir::op::Level;
use lacuna_ir::{OPS, interp, text, verify};
use lacuna_onnx::ops::ONNX_OPS;
use lacuna_onnx::{WriteOptions, load, parse, save, to_bytes};

#[test]
fn every_model_op_has_one_row_that_writes() {
    for op in OPS {
        let rows: Vec<_> = ONNX_OPS.iter().filter(|row| row.kind == op.kind && row.write.is_some()).collect();
        match op.level {
            Level::Model => {
                assert_eq!(rows.len(), 1, "{}", op.name);
                assert_eq!(rows[0].name, op.name);
            }
            Level::Engine => assert!(rows.is_empty(), "{} has no meaning in ONNX", op.name),
        }
    }
    for (i, row) in ONNX_OPS.iter().enumerate() {
        assert!(ONNX_OPS[..i].iter().all(|r| r.name != row.name), "{} stands twice", row.name);
    }
}

#[test]
fn every_model_op_has_a_case() {
    let cases = common::cases();
    for op in OPS.iter().filter(|op| op.level == Level::Model) {
        let tested = cases.iter().any(|c| c.graph.order.iter().any(|o| c.graph.op_kind[*o] == op.kind));
        assert!(tested, "no case in tests/common/mod.rs has a {}", op.name);
    }
}

#[test]
fn round_trip_keeps_text_and_results() {
    for case in common::cases() {
        let bytes = to_bytes(&case.graph, &WriteOptions::default()).unwrap();
        let again = parse(Bytes::from(bytes.clone())).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        verify::verify(&again).unwrap();
        assert_eq!(text::print_full(&case.graph), text::print_full(&again));
        let want = interp::run(&case.graph, &case.inputs).unwrap();
        assert_eq!(interp::run(&again, &case.inputs).unwrap(), want, "{}", case.name);
        assert_eq!(to_bytes(&again, &WriteOptions::default()).unwrap(), bytes, "{}", case.name);
    }
}

#[test]
fn constants_are_not_copied() {
    let case = common::cases().swap_remove(0);
    let file = Bytes::from(to_bytes(&case.graph, &WriteOptions::default()).unwrap());
    let range = file.as_ptr_range();
    let graph = parse(file.clone()).unwrap();
    assert!(!graph.consts.is_empty());
    for (_, c) in graph.consts.iter() {
        assert!(range.contains(&c.as_ptr()), "a constant was copied out of the file");
    }
}

#[test]
fn a_saved_file_is_whole_and_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    let cases = common::cases();
    for case in cases.iter().take(2) {
        // The second replaces the first, which is still mapped.
        let before = path.exists().then(|| (load(&path).unwrap(), text::print_full(&load(&path).unwrap())));
        save(&case.graph, &path, &WriteOptions { doc: "made by a test".into() }).unwrap();
        if let Some((mapped, printed)) = before {
            assert_eq!(text::print_full(&mapped), printed);
        }
        assert_eq!(text::print_full(&load(&path).unwrap()), text::print_full(&case.graph));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");

    let nowhere = dir.path().join("none").join("model.onnx");
    let error = save(&cases[0].graph, &nowhere, &WriteOptions::default()).unwrap_err();
    assert!(matches!(error, lacuna_onnx::Error::Io { .. }), "{error}");
}
