//! Forms in which files hold weights and ops that this crate does not write: other files, sparse tensors, narrow and
//! wide types, functions. What is read is compared with what was meant, and what is hostile is refused.

mod common;

use bytes::Bytes;
use common::build::*;
use lacuna_ir::{Graph, Tensor, interp};
use lacuna_onnx::proto::tensor_proto::{DataLocation, DataType};
use lacuna_onnx::proto::*;
use lacuna_onnx::{load, parse};
use prost::Message;

/// y = x + k, with x f32[4].
fn add_k(k: Option<TensorProto>) -> ModelProto {
    let mut m = model(17, vec![node("Add", &["x", "k"], &["y"], vec![])], k.into_iter().collect());
    m.graph.as_mut().unwrap().input[0] = value("x", DataType::Float, &[D::N(4)]);
    m
}

fn run(g: &Graph, x: &[f32]) -> Vec<f32> {
    let y = interp::run(g, &[Tensor::from_f32(&[x.len()], x.to_vec())]).unwrap();
    y[0].as_f32().unwrap().to_vec()
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: key.into(), value: value.into() }
}

fn external(entries: Vec<StringStringEntryProto>) -> TensorProto {
    TensorProto {
        external_data: entries,
        data_location: DataLocation::External as i32,
        ..raw("k", DataType::Float as i32, &[4], &[])
    }
}

#[test]
fn weights_in_another_file() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model.onnx");
    std::fs::create_dir(dir.path().join("parts")).unwrap();
    let floats: Vec<u8> = [9.0f32, 1.0, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(dir.path().join("parts/weights.bin"), &floats).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(dir.path().join("parts/weights.bin"), dir.path().join("link.bin")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(dir.path().join("parts"), dir.path().join("link")).unwrap();
    let read = |entries: Vec<StringStringEntryProto>| {
        std::fs::write(&model, add_k(Some(external(entries))).encode_to_vec()).unwrap();
        load(&model)
    };
    let at = |location: &str| entry("location", location);
    let found = read(vec![at("parts/weights.bin"), entry("offset", "4"), entry("length", "16")]).unwrap();
    assert_eq!(run(&found, &[0.5; 4]), [1.5, 2.5, 3.5, 4.5]);
    let found = read(vec![at("./parts/weights.bin"), entry("offset", "4")]).unwrap();
    assert_eq!(run(&found, &[0.0; 4]), [1.0, 2.0, 3.0, 4.0]);
    for (entries, says) in [
        (vec![entry("offset", "0")], "no location"),
        (vec![at("/etc/passwd")], "not inside the model's folder"),
        (vec![at("../weights.bin")], "not inside the model's folder"),
        (vec![at("parts/../../weights.bin")], "not inside the model's folder"),
        (vec![at("parts/nothing.bin")], "nothing.bin"),
        (vec![at("parts")], "not a regular file"),
        (vec![at("")], "not a regular file"),
        (vec![at("link.bin"), entry("offset", "4")], "link"),
        (vec![at("link/weights.bin"), entry("offset", "4")], "link"),
        (vec![at("parts/weights.bin"), entry("offset", "8")], "it has 20"),
        (vec![at("parts/weights.bin"), entry("offset", "18446744073709551615")], "it has 20"),
        (vec![at("parts/weights.bin"), entry("offset", "-4")], "the offset '-4'"),
        (vec![at("parts/weights.bin"), entry("length", "8")], "the file holds 8"),
    ] {
        let error = read(entries).expect_err(says).to_string();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
}

fn sparse(values: TensorProto, indices: TensorProto, dims: &[i64]) -> SparseTensorProto {
    SparseTensorProto { values: Some(values), indices: Some(indices), dims: dims.to_vec() }
}

#[test]
fn sparse_tensors_are_written_out() {
    let with = |t: SparseTensorProto| {
        let mut m = add_k(None);
        m.graph.as_mut().unwrap().sparse_initializer.push(t);
        parse(bytes(&m))
    };
    let values = || f32s("k", &[2], &[5.0, 7.0]);
    let flat = with(sparse(values(), i64s("", &[2], &[1, 3]), &[4])).unwrap();
    assert_eq!(run(&flat, &[1.0; 4]), [1.0, 6.0, 1.0, 8.0]);
    let pairs = with(sparse(values(), i64s("", &[2, 2], &[0, 2, 0, 0]), &[1, 4])).unwrap();
    assert_eq!(run(&pairs, &[0.0; 4]), [7.0, 0.0, 5.0, 0.0]);
    for (t, says) in [
        (sparse(values(), i64s("", &[2], &[1, 4]), &[4]), "outside"),
        (sparse(values(), i64s("", &[2], &[-1, 0]), &[4]), "outside"),
        (sparse(values(), i64s("", &[1], &[1]), &[4]), "one index for each"),
        (sparse(values(), i64s("", &[2, 2], &[0, 0, 0, 1]), &[4]), "one index for each"),
        (sparse(values(), i64s("", &[2], &[0, 1]), &[1 << 30]), "too large"),
        (sparse(values(), f32s("", &[2], &[0.0, 1.0]), &[4]), "i64"),
    ] {
        let error = with(t).expect_err(says).to_string();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
    // The same as the value of a node.
    let held = AttributeProto {
        name: "sparse_value".into(),
        r#type: attribute_proto::AttributeType::SparseTensor as i32,
        sparse_tensor: Some(sparse(values(), i64s("", &[2], &[0, 2]), &[4]).into()),
        ..AttributeProto::default()
    };
    let mut m = add_k(None);
    m.graph.as_mut().unwrap().node.insert(0, node("Constant", &[], &["k"], vec![held]));
    assert_eq!(run(&parse(bytes(&m)).unwrap(), &[0.0; 4]), [5.0, 0.0, 7.0, 0.0]);
}

#[test]
fn other_types_are_converted() {
    let f16 = [0x3c00u16, 0xc000, 0x0001, 0x7bff]; // 1, -2, the smallest and the largest.
    let bf16 = [0x3f80u16, 0xc000, 0x0080, 0x7f7f];
    let as_f32 = [1.0, -2.0, 5.960_464_5e-8, 65504.0];
    let raw16 = |v: &[u16]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let k = |t: TensorProto| run(&parse(bytes(&add_k(Some(t)))).unwrap(), &[0.0; 4]);
    assert_eq!(k(raw("k", DataType::Float16 as i32, &[4], &raw16(&f16))), as_f32);
    let ints: Vec<i32> = f16.iter().map(|v| i32::from(*v)).collect();
    assert_eq!(k(small("k", DataType::Float16, &[4], &ints)), as_f32);
    let wide: Vec<f32> = bf16.iter().map(|v| f32::from_bits(u32::from(*v) << 16)).collect();
    assert_eq!(k(raw("k", DataType::Bfloat16 as i32, &[4], &raw16(&bf16))), wide);
    let f64s: Vec<u8> = [1.0f64, -2.0, 0.1, 1e300].iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(k(raw("k", DataType::Double as i32, &[4], &f64s)), [1.0, -2.0, 0.1, f32::INFINITY]);

    // Integers: looked at as constants of the graph.
    let constant = |t: TensorProto| {
        let mut m = add_k(Some(f32s("k", &[4], &[0.0; 4])));
        m.graph.as_mut().unwrap().initializer.push(t);
        m.graph.as_mut().unwrap().output.push(ValueInfoProto { name: "c".into(), ..Default::default() });
        let g = parse(bytes(&m)).unwrap();
        g.const_tensor(g.outputs[1]).unwrap()
    };
    let four = constant(raw("c", DataType::Int4 as i32, &[3], &[0x8f, 0x07]));
    assert_eq!(four, Tensor::from_i8(&[3], vec![-1, -8, 7]));
    let four = constant(raw("c", DataType::Uint4 as i32, &[3], &[0x8f, 0x07]));
    assert_eq!(four, Tensor::from_u8(&[3], vec![15, 8, 7]));
    let four = constant(small("c", DataType::Uint4, &[4], &[0x8f, 0x07]));
    assert_eq!(four, Tensor::from_u8(&[4], vec![15, 8, 7, 0]));
    let two = constant(raw("c", DataType::Int2 as i32, &[5], &[0b11_10_01_00, 0b10]));
    assert_eq!(two, Tensor::from_i8(&[5], vec![0, 1, -2, -1, -2]));
    let sixteen = constant(raw("c", DataType::Uint16 as i32, &[2], &[255, 255, 1, 0]));
    assert_eq!(sixteen, Tensor::from_i64(&[2], vec![65535, 1]));
    let sixteen = constant(small("c", DataType::Int16, &[2], &[-3, 7]));
    assert_eq!(sixteen, Tensor::from_i64(&[2], vec![-3, 7]));
}

/// f(a, b) = (a + b, relu(a) scaled by an attribute), in a domain of its own.
fn function() -> FunctionProto {
    let mut constant = node("Constant", &[], &["c"], vec![float("value_float", 0.0)]);
    constant.attribute[0].ref_attr_name = "by".into();
    let body = vec![
        node("Add", &["a", "b"], &["sum"], vec![]),
        constant,
        node("Relu", &["a"], &["r"], vec![]),
        node("Mul", &["r", "c"], &["scaled"], vec![]),
    ];
    FunctionProto {
        name: "F".into(),
        domain: "own".into(),
        input: vec!["a".into(), "b".into()],
        output: vec!["sum".into(), "scaled".into()],
        attribute_proto: vec![float("by", 3.0)],
        node: body,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
        ..FunctionProto::default()
    }
}

fn call(name: &str, inputs: &[&str], outputs: &[&str], attrs: Vec<AttributeProto>) -> NodeProto {
    NodeProto { domain: "own".into(), ..node(name, inputs, outputs, attrs) }
}

fn with_functions(nodes: Vec<NodeProto>, functions: Vec<FunctionProto>) -> ModelProto {
    let mut m = model(17, nodes, vec![]);
    m.graph.as_mut().unwrap().input[0] = value("x", DataType::Float, &[D::N(4)]);
    m.functions = functions;
    m.opset_import.push(OperatorSetIdProto { domain: "own".into(), version: 1 });
    m
}

#[test]
fn functions_are_inlined() {
    // "sum" is a name of the caller, too; and G calls F.
    let g = FunctionProto {
        name: "G".into(),
        output: vec!["o".into()],
        input: vec!["i".into()],
        node: vec![call("F", &["i", "i"], &["twice", "o"], vec![])],
        ..function()
    };
    let nodes = vec![
        call("F", &["x", "x"], &["sum", "half"], vec![float("by", 0.5)]),
        call("G", &["sum"], &["six"], vec![]),
        node("Add", &["six", "half"], &["y"], vec![]),
    ];
    let read = parse(bytes(&with_functions(nodes, vec![function(), g.clone()]))).unwrap();
    assert_eq!(run(&read, &[1.0, -1.0, 2.0, 0.0]), [6.5, 0.0, 13.0, 0.0]);

    let y = |name: &str, inputs: &[&str]| vec![call(name, inputs, &["y"], vec![])];
    let recursive = FunctionProto { node: vec![call("G", &["i"], &["o"], vec![])], ..g.clone() };
    let older = FunctionProto {
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 13 }],
        ..function()
    };
    // Each of 16 functions calls the one before it ten times.
    let bomb: Vec<FunctionProto> = (0..16)
        .map(|i| FunctionProto {
            name: format!("B{i}"),
            node: match i {
                0 => vec![node("Relu", &["i"], &["o"], vec![])],
                _ => vec![call(&format!("B{}", i - 1), &["i"], &["o"], vec![]); 10],
            },
            ..g.clone()
        })
        .collect();
    for (m, says) in [
        (with_functions(y("G", &["x"]), vec![recursive]), "deeper than"),
        (with_functions(y("F", &["x"; 3]), vec![function()]), "takes 2 inputs"),
        (with_functions(y("F", &["x"; 2]), vec![function(), function()]), "'F'"),
        (with_functions(y("F", &["x"; 2]), vec![older]), "operator set 13"),
        (with_functions(y("B15", &["x"]), bomb), "nodes"),
        (with_functions(y("H", &["x"]), vec![function()]), "not supported"),
    ] {
        let error = parse(Bytes::from(m.encode_to_vec())).expect_err(says).to_string();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
}
