//! Graph to file to graph: the same text, the same results, every op.

mod common;

use bytes::Bytes;
use lacuna_ir::op::Level;
use lacuna_ir::{Attr, DType, Dim, Graph, OPS, OpKind, interp, text, verify};
use lacuna_onnx::ops::{OnnxOp, Read, onnx_ops};
use lacuna_onnx::{WriteOptions, load, parse, save, to_bytes};

#[test]
fn every_model_op_has_one_row_that_writes() {
    for op in OPS {
        let rows: Vec<_> = onnx_ops().filter(|row| row.kind == op.kind && row.write.is_some()).collect();
        match op.level {
            Level::Model => {
                assert_eq!(rows.len(), 1, "{}", op.name);
                let only_written = matches!(rows[0].read, Read::Never);
                assert!(only_written || rows[0].name == op.name, "{}", op.name);
            }
            Level::Engine => assert!(rows.is_empty(), "{} has no meaning in ONNX", op.name),
        }
    }
    for (i, row) in onnx_ops().enumerate() {
        let read = |r: &OnnxOp| !matches!(r.read, Read::Never);
        let twice = onnx_ops().take(i).any(|r| r.name == row.name && read(r) && read(row));
        assert!(!twice, "{} stands twice", row.name);
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
        // Rounding through a type that graphs have not is two casts in a file.
        let casts = case.graph.order.iter().any(|&op| case.graph.op_kind[op] == OpKind::RoundFloat);
        if !casts {
            assert_eq!(text::print_full(&case.graph), text::print_full(&again));
        }
        let want = interp::run(&case.graph, &case.inputs).unwrap();
        assert_eq!(interp::run(&again, &case.inputs).unwrap(), want, "{}", case.name);
        if !casts {
            assert_eq!(to_bytes(&again, &WriteOptions::default()).unwrap(), bytes, "{}", case.name);
        }
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

/// onnxruntime refuses this combination, the ONNX text allows it: 6 rows under a span of 3, 5 columns under 5.
#[test]
fn same_padding_counts_the_dilation() {
    use common::build::*;
    let dilated = vec![string("auto_pad", "SAME_UPPER"), ints("dilations", &[2, 2])];
    let conv = vec![node("Conv", &["x", "w"], &["y"], dilated)];
    let graph = parse(bytes(&model(17, conv, vec![f32s("w", &[1, 3, 2, 3], &[0.5; 18])]))).unwrap();
    let Attr::Conv(conv) = graph.op_attr[graph.order[0]] else { panic!("not a convolution") };
    assert_eq!(conv.window.pads, [1, 2, 1, 2]);
    assert_eq!(graph.fixed_shape(graph.outputs[0]).unwrap(), [2, 1, 6, 5]);
}

#[test]
fn nodes_out_of_order_are_sorted() {
    use common::build::*;
    let nodes = vec![
        node("Sqrt", &["c"], &["y"], vec![]),
        node("Sigmoid", &["b"], &["c"], vec![]),
        node("Relu", &["x"], &["b"], vec![]),
    ];
    let graph = parse(bytes(&model(17, nodes, vec![]))).unwrap();
    verify::verify(&graph).unwrap();
    let kinds: Vec<&str> = graph.order.iter().map(|&op| graph.op_kind[op].name()).collect();
    assert_eq!(kinds, ["Relu", "Sigmoid", "Sqrt"]);
}

/// Inside a graph names may be empty or stand twice (passes make such); in a file they cannot.
#[test]
fn names_are_made_distinct() {
    let mut g = Graph::new("names");
    let x = g.add_input("x", DType::F32, &[Dim::Fixed(2)]);
    let mut v = x;
    for name in ["t", "t", "x", ""] {
        v = g.add_op(OpKind::Relu, Attr::None, "", &[v], &[name]).unwrap()[0];
    }
    g.outputs = g.add_op(OpKind::Relu, Attr::None, "", &[v], &["t_"]).unwrap();
    let again = parse(Bytes::from(to_bytes(&g, &WriteOptions::default()).unwrap())).unwrap();
    let names: Vec<&str> = again.value_name.as_slice().iter().map(String::as_str).collect();
    assert_eq!(names, ["x", "t", "t__", "x_", "value_4", "t_"]);
}

/// What other exporters write is read into a valid graph, and what is written of it reads back the same.
#[test]
fn foreign_forms_become_ours() {
    for (name, model) in common::foreign::models() {
        let graph = parse(common::build::bytes(&model)).unwrap_or_else(|e| panic!("{name}: {e}"));
        verify::verify(&graph).unwrap();
        // Values of one name are told apart in a file: then it is the second time that keeps all names.
        let again = |g: &Graph| parse(to_bytes(g, &WriteOptions::default()).unwrap().into()).unwrap();
        let graph = if name.starts_with("dynamic_lstm") { again(&graph) } else { graph };
        match to_bytes(&graph, &WriteOptions::default()) {
            Ok(file) => {
                assert_eq!(text::print_full(&parse(file.into()).unwrap()), text::print_full(&graph), "{name}")
            }
            Err(e) => panic!("{name}: {e}"),
        }
    }
}
