//! Published files under the names that others use, and what a report says of files that do not fit. `LACUNA_DATA` (or
//! `target/data`) is the folder that holds unpacked packages (see `tests/py/fetch_models.sh`).

use burn::tensor::{Device, Tensor, TensorData};
use lacuna_engine::{Options, Session};
use lacuna_models::published::{self, NAMINGS, Report};
use lacuna_models::resnet::{BlockKind, ResNet, ResNetSize, Stem};
use lacuna_models::{Network, find};
use lacuna_nn::Classifier;
use lacuna_nn::layers::Init;
use lacuna_nn::params::{ParamTable, Role, for_each, update_each};
use lacuna_nn::quant::{Norm, Pass};
use lacuna_weights::WeightFile;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const SMALL: ResNetSize = ResNetSize {
    name: "small",
    in_channels: 1,
    classes: 3,
    stem: Stem::Small { stride: 1 },
    block: BlockKind::Basic,
    stages: &[(2, 1), (4, 1)],
};

fn net(seed: u64) -> Network {
    Network::ResNet(ResNet::new(&SMALL, &mut Init::new(&Device::flex(), seed)))
}

fn values(net: &Network) -> Vec<(String, Vec<f32>)> {
    let table = ParamTable::of(net);
    let mut all = Vec::new();
    for_each(net, |row, values| all.push((table.name[row].clone(), values.to_vec())));
    all
}

/// A safetensors file of one-dimensional or given shapes.
fn file(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> WeightFile {
    let (mut header, mut data) = (Vec::new(), Vec::new());
    for (name, dims, values) in tensors {
        let begin = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        header.push(format!(
            "\"{name}\":{{\"dtype\":\"F32\",\"shape\":{dims:?},\"data_offsets\":[{begin},{}]}}",
            data.len()
        ));
    }
    let header = format!("{{{}}}", header.join(","));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    WeightFile::read(bytes).unwrap()
}

/// The tensors of a network as others save them: without what observers saw, with counters, after data parallelism.
fn others(net: &Network) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let table = ParamTable::of(net);
    let mut tensors = Vec::new();
    for_each(net, |row, values| {
        let name = &table.name[row];
        if ![".range", ".step", ".scheme", ".removed", ".threshold"].iter().any(|end| name.ends_with(end)) {
            tensors.push((format!("module.{name}"), table.shape[row].clone(), values.to_vec()));
        }
    });
    tensors.push(("module.bn1.num_batches_tracked".into(), vec![], vec![7.0]));
    tensors
}

#[test]
fn a_file_of_others_is_loaded_whole() {
    let (from, to) = (net(1), net(2));
    let tensors = others(&from);
    let (loaded, report) = published::load(to, &file(&tensors));
    let whole = Report { naming: "the network's own", loaded: tensors.len() - 1, ..Report::default() };
    assert_eq!(report, whole);
    assert!(report.complete_but(None));
    assert_eq!(values(&loaded), values(&from));
}

#[test]
fn a_report_says_what_does_not_fit() {
    let from = net(1);
    let mut tensors = others(&from);
    tensors.retain(|(name, ..)| name != "module.layer1.0.conv2.weight");
    let head = tensors.iter_mut().find(|(name, ..)| name == "module.fc.weight").unwrap();
    (head.1, head.2) = (vec![2, 4], vec![0.0; 8]);
    tensors.push(("extra".into(), vec![1], vec![0.0]));
    let before = net(2);
    let (loaded, report) = published::load(before.clone(), &file(&tensors));
    assert_eq!(report.missing, ["layer1.0.conv2.weight"]);
    assert_eq!(report.unused, ["extra"]);
    assert_eq!(report.misshaped[0].name, "fc.weight");
    assert!(!report.complete_but(Some("fc.")));
    let text = report.to_string();
    for part in ["1 missing: layer1.0.conv2.weight", "'fc.weight' [2, 4], not [3, 4]", "1 unused: extra"] {
        assert!(text.contains(part), "{text}");
    }
    // What did not fit stays as it was.
    let of = |net: &Network, name: &str| values(net).into_iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!(of(&loaded, "fc.weight"), of(&before, "fc.weight"));
    assert_eq!(of(&loaded, "conv1.weight"), of(&from, "conv1.weight"));

    // A new layer for other classes, on a body that is complete.
    let mut tensors = others(&from);
    tensors.retain(|(name, ..)| !name.starts_with("module.fc."));
    let (_, report) = published::load(net(2), &file(&tensors));
    assert!(report.complete_but(Some("fc.")) && !report.complete_but(None));
}

/// A row of the table of names, a model, and names of theirs and ours.
type Case = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Names of timm's and Hugging Face's files, spot-checked against those of the networks.
#[test]
fn names_of_other_projects() {
    let cases: [Case; 4] = [
        (
            "TensorFlow's SSD",
            "ssd_mobilenet_v1_face",
            &[
                ("MobilenetV1/Conv2d_0_pointwise/weights", "backbone.0.conv.weight"),
                ("MobilenetV1/Conv2d_0_pointwise/BatchNorm/beta", "backbone.0.bn.bias"),
                ("MobilenetV1/Conv2d_13_depthwise/depthwise_weights", "backbone.13.depth.conv.weight"),
                (
                    "MobilenetV1/Conv2d_13_depthwise/BatchNorm/moving_variance",
                    "backbone.13.depth.bn.running_var",
                ),
                ("MobilenetV1/Conv2d_2_pointwise/BatchNorm/gamma", "backbone.2.point.bn.weight"),
                ("Prediction/Conv2d_7_pointwise/weights", "extras.7.conv.weight"),
                ("Prediction/BoxPredictor_0/BoxEncodingPredictor/biases", "boxes.0.bias"),
                ("Prediction/BoxPredictor_5/ClassPredictor/weights", "scores.5.weight"),
            ],
        ),
        (
            "timm's EfficientNet",
            "efficientnet_b0",
            &[
                ("conv_stem.weight", "features.0.0.weight"),
                ("blocks.0.0.conv_dw.weight", "features.1.0.block.0.0.weight"),
                ("blocks.0.0.se.conv_reduce.bias", "features.1.0.block.1.fc1.bias"),
                ("blocks.0.0.conv_pw.weight", "features.1.0.block.2.0.weight"),
                ("blocks.3.2.conv_pw.weight", "features.4.2.block.0.0.weight"),
                ("blocks.3.2.bn2.running_var", "features.4.2.block.1.1.running_var"),
                ("blocks.3.2.se.conv_expand.weight", "features.4.2.block.2.fc2.weight"),
                ("blocks.6.0.conv_pwl.weight", "features.7.0.block.3.0.weight"),
                ("blocks.6.0.bn3.bias", "features.7.0.block.3.1.bias"),
                ("bn2.weight", "features.8.1.weight"),
                ("classifier.bias", "classifier.1.bias"),
            ],
        ),
        (
            "timm's EfficientNet-Lite",
            "efficientnet_lite0",
            &[
                ("conv_stem.weight", "_conv_stem.weight"),
                ("bn1.running_mean", "_bn0.running_mean"),
                ("blocks.0.0.conv_dw.weight", "_blocks.0._depthwise_conv.weight"),
                ("blocks.0.0.bn1.weight", "_blocks.0._bn1.weight"),
                ("blocks.0.0.conv_pw.weight", "_blocks.0._project_conv.weight"),
                ("blocks.0.0.bn2.bias", "_blocks.0._bn2.bias"),
                ("blocks.1.0.conv_pw.weight", "_blocks.1._expand_conv.weight"),
                ("blocks.1.1.bn1.weight", "_blocks.2._bn0.weight"),
                ("blocks.2.0.conv_dw.weight", "_blocks.3._depthwise_conv.weight"),
                ("blocks.2.0.bn2.weight", "_blocks.3._bn1.weight"),
                ("blocks.2.0.conv_pwl.weight", "_blocks.3._project_conv.weight"),
                ("blocks.2.0.bn3.weight", "_blocks.3._bn2.weight"),
                ("conv_head.weight", "_conv_head.weight"),
                ("bn2.weight", "_bn1.weight"),
                ("classifier.bias", "_fc.bias"),
            ],
        ),
        (
            "Hugging Face",
            "bert_tiny",
            &[
                ("bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
                (
                    "bert.encoder.layer.1.attention.self.query.weight",
                    "encoder.layer.1.attention.self.query.weight",
                ),
                ("bert.pooler.dense.bias", "pooler.dense.bias"),
                ("classifier.weight", "classifier.weight"),
            ],
        ),
    ];
    for (naming, model, names) in cases {
        let naming = NAMINGS.iter().find(|n| n.name == naming).unwrap();
        let table = ParamTable::of(&(find(model).unwrap().build)(&mut Init::new(&Device::flex(), 0)));
        let theirs: Vec<&str> = names.iter().map(|n| n.0).collect();
        for (have, (theirs, ours)) in naming.apply(&theirs).iter().zip(names) {
            assert_eq!(have, ours, "of {theirs}");
            assert!(table.row(have).is_some(), "{model} has no '{have}'");
        }
    }
}

/// Weights of YOLOv8n that others trained and exported, in the network that is built here: it says the same of a picture, every
/// score and every box, as the file's own graph does on the engine.
#[test]
fn yolov8n_is_the_published_one() {
    let given = std::env::var_os("LACUNA_DATA").map(PathBuf::from);
    let dir = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/data"));
    let path = dir.join("nudenet/nudenet/320n.onnx");
    if !path.exists() {
        return println!("SKIP 1: {} is not there", path.display());
    }
    let graph = lacuna_onnx::load(&path).unwrap();
    let constants: HashMap<&str, Vec<f32>> = graph
        .value_name
        .iter()
        .filter_map(|(v, name)| Some((name.as_str(), graph.const_tensor(v)?.as_f32()?.to_vec())))
        .collect();
    let classes = constants["model.22.cv3.0.2.bias"].len();
    let net = find("yolov8n").unwrap().empty(classes);
    let table = ParamTable::of(&net);
    let mut norms = 0;
    let net = update_each(net, |row, values| {
        let name = &table.name[row];
        // The exporter folded every norm into the convolution before it: what is left of one adds the bias.
        let folded = name.rsplit_once(".bn.").map(|(layer, field)| (format!("{layer}.conv.bias"), field));
        let from = match &folded {
            Some((_, "weight")) => vec![1.0; values.len()],
            Some((_, "running_mean")) => vec![0.0; values.len()],
            Some((_, "running_var")) => vec![1.0 - 1e-3; values.len()],
            Some((bias, _)) => {
                norms += 1;
                constants[bias.as_str()].clone()
            }
            None if table.role[row] == Role::Buffer => return,
            None => constants[name.as_str()].clone(),
        };
        assert_eq!(from.len(), values.len(), "{name}");
        *values = from;
    });
    assert_eq!(norms, 57);

    // *Synthetic*: waves of colours.
    const SIDE: usize = 160;
    let pixel = |i: usize| ((i % SIDE) as f32 / 9.0).sin() * ((i / SIDE) as f32 / 13.0).cos() / 2.0 + 0.5;
    let x: Vec<f32> = (0..3 * SIDE * SIDE).map(pixel).collect();
    let mut session = Session::new(&graph, &Options::default()).unwrap();
    let input = lacuna_ir::Tensor::from_f32(&[1, 3, SIDE, SIDE], x.clone());
    let theirs = session.run(&[input]).unwrap().remove(0);
    let x = Tensor::<4>::from_data(TensorData::new(x, [1, 3, SIDE, SIDE]), &Device::flex());
    let maps = net.maps(x, &Pass { norm: Norm::Frozen, ..Pass::default() });

    // Theirs is decoded: [4 + classes, boxes] of centre, size and shares.
    let boxes = theirs.dims[2];
    let at = |row: usize, place: usize| theirs.as_f32().unwrap()[row * boxes + place];
    const BINS: usize = 16;
    let (mut first, mut scores, mut sides, mut largest) = (0, 0f32, 0f32, 0f32);
    for (map, stride) in maps.into_iter().zip([8.0, 16.0, 32.0]) {
        let [_, channels, h, w] = map.dims();
        assert_eq!((channels, h), (4 * BINS + classes, SIDE / stride as usize));
        let values: Vec<f32> = map.into_data().try_to_vec().unwrap();
        for cell in 0..h * w {
            let raw = |channel: usize| values[channel * h * w + cell];
            for class in 0..classes {
                let share = 1.0 / (1.0 + (-raw(4 * BINS + class)).exp());
                scores = scores.max((share / at(4 + class, first + cell) - 1.0).abs());
            }
            let distance = |side: usize| {
                let powers: Vec<f32> = (0..BINS).map(|bin| raw(side * BINS + bin).exp()).collect();
                let mean: f32 = powers.iter().enumerate().map(|(bin, p)| bin as f32 * p).sum();
                mean / powers.iter().sum::<f32>()
            };
            let [left, top, right, bottom] = [0, 1, 2, 3].map(distance);
            let middle = [(cell % w) as f32 + 0.5, (cell / w) as f32 + 0.5];
            let ours = [
                middle[0] + (right - left) / 2.0,
                middle[1] + (bottom - top) / 2.0,
                left + right,
                top + bottom,
            ];
            for (row, ours) in ours.into_iter().enumerate() {
                sides = sides.max((ours * stride - at(row, first + cell)).abs());
                largest = largest.max(at(row, first + cell));
            }
        }
        first += h * w;
    }
    assert_eq!(first, boxes);
    println!(
        "YOLOv8n on {boxes} boxes: scores differ by {scores} of theirs at most, sides by {sides} pixels of {largest}"
    );
    assert!(scores < 1e-3 && sides < 1e-4 * largest, "{scores} of the scores, {sides} of {largest} pixels");
}
