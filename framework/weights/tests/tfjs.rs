//! Manifests of TensorFlow.js: values, layouts, and what is refused. All files are *synthetic*.

use lacuna_weights::{Element, WeightFile};
use serde_json::{Value, json};
use std::path::Path;

fn open(dir: &Path, manifest: &Value, shards: &[(&str, Vec<u8>)]) -> Result<WeightFile, String> {
    for (name, bytes) in shards {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    let path = dir.join("manifest.json");
    std::fs::write(&path, manifest.to_string()).unwrap();
    WeightFile::open(&path).map_err(|e| e.to_string())
}

fn values<'a>(file: &'a WeightFile, name: &str) -> (&'a [usize], Vec<f32>) {
    let i = file.tensors.iter().position(|t| t.name == name).unwrap_or_else(|| panic!("no '{name}'"));
    (&file.tensors[i].dims, file.values(i))
}

#[test]
fn values_lie_in_shards_on_grids_and_in_other_layouts() {
    let dir = tempfile::tempdir().unwrap();
    let grid = json!({ "dtype": "uint8", "scale": 0.5, "min": -1.0 });
    let groups = json!([{
        "paths": ["a", "b"],
        "weights": [
            { "name": "plain", "dtype": "float32", "shape": [2] },
            { "name": "conv/weights", "dtype": "float32", "shape": [1, 2, 3, 2], "quantization": grid },
            { "name": "c/depthwise_weights", "dtype": "float32", "shape": [1, 2, 3, 1], "quantization": grid },
            { "name": "c/convolution_bn_offset", "dtype": "float32", "shape": [2], "quantization": grid },
            { "name": "count", "dtype": "int32", "shape": [] },
        ],
    }]);
    let floats: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    // The cut between the shards goes through a tensor.
    let bytes: Vec<u8> = (0..12).chain(0..6).chain([4, 0]).chain(7i32.to_le_bytes()).collect();
    let shards = [("a", [&floats[..], &bytes[..5]].concat()), ("b", bytes[5..].to_vec())];
    let whole = json!({ "format": "layers-model", "weightsManifest": groups });
    for manifest in [&groups, &whole] {
        let file = open(dir.path(), manifest, &shards).unwrap();
        assert_eq!(values(&file, "plain"), (&[2][..], vec![1.5, -2.0]));
        assert_eq!(values(&file, "count"), (&[][..], vec![7.0]));
        // Stored [h, w, in, out]: element (o, i, 0, x) is number (x * 3 + i) * 2 + o.
        let (dims, have) = values(&file, "conv/weights");
        assert_eq!(dims, [2, 3, 1, 2]);
        let number = |i: usize| ((i % 2) * 3 + i / 2 % 3) * 2 + i / 6;
        let want: Vec<f32> = (0..12).map(|i| number(i) as f32 * 0.5 - 1.0).collect();
        assert_eq!(have, want);
        // Stored [h, w, channels, 1]: element (c, 0, 0, x) is number x * 3 + c.
        let (dims, have) = values(&file, "c/depthwise_weights");
        assert_eq!((dims, have), (&[3, 1, 1, 2][..], vec![-1.0, 0.5, -0.5, 1.0, 0.0, 1.5]));
        // A norm that adds the offset and does nothing else.
        assert_eq!(values(&file, "c/BatchNorm/beta"), (&[2][..], vec![1.0, -1.0]));
        assert_eq!(values(&file, "c/BatchNorm/gamma").1, [1.0, 1.0]);
        assert_eq!(values(&file, "c/BatchNorm/moving_mean").1, [0.0, 0.0]);
        assert_eq!(values(&file, "c/BatchNorm/moving_variance").1, [0.999, 0.999]);
        assert_eq!(file.tensors.iter().find(|t| t.name == "conv/weights").unwrap().element, Element::U8);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let one = |shape: Value, dtype: &str, paths: Value| json!([{ "paths": paths, "weights": [{ "name": "w", "dtype": dtype, "shape": shape }] }]);
    let shard = [("a", vec![0u8; 8])];
    let refused = |manifest: Value, what: &str| {
        let error = open(dir.path(), &manifest, &shard).unwrap_err();
        assert!(error.contains(what), "{manifest}: {error}");
    };
    refused(one(json!([3]), "float32", json!(["a"])), "are not in its files");
    refused(one(json!([1]), "float32", json!(["a"])), "4 bytes that belong to no tensor");
    refused(one(json!([u64::MAX, 2]), "float32", json!(["a"])), "are not in its files");
    refused(one(json!([0, u64::MAX, u64::MAX, 3]), "float32", json!([])), "its size overflows");
    refused(one(json!([1, 1, 1, 1, 1, 1, 1, 1, 1]), "float32", json!(["a"])), "too many dimensions");
    refused(one(json!([-1]), "float32", json!(["a"])), "not a manifest");
    refused(one(json!([2]), "complex64", json!(["a"])), "complex64");
    refused(one(json!([2]), "float32", json!(["none"])), "none");
    for path in ["../a", "/etc/hostname", "x\\y", "c:a", "..", ""] {
        refused(one(json!([2]), "float32", json!([path])), "no file beside it");
    }
    let twice = json!({ "name": "w", "dtype": "float32", "shape": [1] });
    refused(json!([{ "paths": ["a"], "weights": [twice, twice] }]), "two tensors are named 'w'");
    refused(json!("text"), "not a manifest");
    refused(json!([7]), "not a manifest");
}
