//! Detectors from weights or a file to boxes on a picture, through the command.

use burn::tensor::{Device, Tensor, TensorData};
use lacuna::cli::model_file;
use lacuna::data::RgbImage8;
use lacuna::data::images::load_image;
use lacuna::models::yolact::{Stages, Yolact, YolactSize};
use lacuna::models::yolo::{V8, Yolo, YoloSize};
use lacuna::models::yolo_layers::Masks;
use lacuna::models::{Network, Output, find, output_names};
use lacuna::nn::Classifier;
use lacuna::nn::capture::capture;
use lacuna::nn::layers::Init;
use lacuna::nn::params::{ParamTable, update_each};
use lacuna::nn::quant::{Norm, Pass};
use lacuna::pipelines::Detection;
use lacuna::pipelines::boxes::{Suppression, nms, suppress};
use lacuna::pipelines::draw::save_png;
use lacuna::pipelines::heads::{Head, Result as Map};
use lacuna::pipelines::letterbox::{Frame, Placement, letterbox};
use lacuna::pipelines::masks::mask;
use lacuna::pipelines::priors;
use lacuna::train::detection;
use lacuna::train::weights::{Metadata, save};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn run(words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    let out = command.args(words).env("LACUNA_CACHE", env!("CARGO_TARGET_TMPDIR")).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

/// A *synthetic* picture: a slope of colours with a bright rectangle.
fn picture() -> RgbImage8 {
    let (h, w) = (120, 160);
    let pixel = |i: usize| {
        let (y, x) = (i / w, i % w);
        let inside = (30..80).contains(&y) && (50..120).contains(&x);
        if inside { [250, 240, 30] } else { [(2 * y) as u8, x as u8, 60] }
    };
    RgbImage8 { h, w, pixels: (0..h * w).flat_map(pixel).collect() }
}

/// YOLOv5n with first weights finds nothing that means anything, but the command, the file and burn must find the same.
#[test]
fn the_command_finds_what_burn_finds() {
    let row = find("yolov5n").unwrap();
    let net = (row.build)(&mut Init::new(&Device::flex(), 7));
    // First biases say that nothing is there; without them scores are large.
    let table = ParamTable::of(&net);
    let is_bias = |row: usize| table.name[row].starts_with("model.24.") && table.name[row].ends_with(".bias");
    let net = update_each(net, |row, values| {
        if is_bias(row) {
            values.fill(0.0)
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (weights, image, onnx) = (at("yolov5n.safetensors"), at("picture.png"), at("yolov5n.onnx"));
    save(&net, Path::new(&weights), &Metadata::new()).unwrap();
    save_png(&picture(), Path::new(&image)).unwrap();

    let (boxed, placed) = letterbox(&picture(), 640, 640, Placement::Centre).unwrap();
    let x: Vec<f32> =
        (0..3).flat_map(|c| boxed.pixels.iter().skip(c).step_by(3).map(|&v| f32::from(v) / 255.0)).collect();
    let x = Tensor::<4>::from_data(TensorData::new(x, [1, 3, 640, 640]), &Device::flex());
    let trained = model_file::open_weights(Path::new(&weights), Some("yolov5n")).unwrap();
    let host = |output| match output {
        Output::Map(map) => (map.dims()[1..].to_vec(), map.into_data().try_to_vec::<f32>().unwrap()),
        Output::Logits(_) | Output::Table(_) => panic!("a YOLO gives maps"),
    };
    let maps: Vec<(Vec<usize>, Vec<f32>)> = net.outputs(x, &trained.pass).into_iter().map(host).collect();
    let maps: Vec<Map<'_>> = maps.iter().map(|(dims, values)| Map { dims, values }).collect();
    let graph = model_file::graph_of(&trained).unwrap();
    let head: Head = serde_json::from_str(graph.metadata("lacuna.head").unwrap()).unwrap();
    let want = nms(head.decode(&maps, [640, 640], 0.2), 0.45, 20);
    assert_eq!(want.len(), 20);

    let (code, _, text) = run(&["export", &weights, "--model", "yolov5n", "-o", &onnx]);
    assert_eq!(code, Some(0), "{text}");
    let drawn = at("drawn");
    let (code, json, text) = run(&[
        "predict", "detect", &onnx, &image, "--score", "0.2", "--most", "20", "--json", "--output", &drawn,
    ]);
    assert_eq!(code, Some(0), "{text}");
    let json: Value = serde_json::from_str(&json).unwrap();
    let objects = json["results"][0]["objects"].as_array().unwrap();
    assert_eq!(objects.len(), want.len());
    // Scores of first weights lie close together: the best is compared, and the scores of all.
    let number = |v: &Value| v.as_f64().unwrap() as f32;
    for (have, want) in objects.iter().zip(&want) {
        assert!((number(&have["score"]) - want.score).abs() < 1e-3, "{have} and {want:?}");
    }
    let corners = placed.undo(want[0].corners);
    for (have, want) in objects[0]["box"].as_array().unwrap().iter().zip(corners) {
        assert!((number(have) - want).abs() < 0.1, "{} and {corners:?}", objects[0]);
    }
    let annotated = load_image(&dir.path().join("drawn/picture.png")).unwrap();
    assert_eq!([annotated.h, annotated.w], [120, 160]);
    assert_ne!(annotated, picture());
}

const SMALL: YolactSize = YolactSize {
    name: "small",
    classes: 3,
    stages: Stages::ResNet(&[(8, 1), (8, 1), (8, 1), (16, 1)]),
    channels: 16,
    masks: 4,
};

const SMALL_YOLO: YoloSize = YoloSize {
    name: "small",
    classes: 3,
    plan: &V8,
    depth: 0.33,
    width: 0.125,
    most: 1024,
    masks: Some(Masks { count: 4, channels: 64 }),
};

#[test]
fn the_command_segments_as_yolact_does_in_burn() {
    let net = Network::Yolact(Yolact::new(&SMALL, &mut Init::new(&Device::flex(), 7)));
    let stretched = Frame { placement: Placement::Stretch, fill: 0 };
    segments_as_in_burn(&net, &Head::Priors(priors::yolact(SIZE)), stretched, Suppression::Fast);
}

#[test]
fn the_command_segments_as_yolov8_does_in_burn() {
    let net = Network::Yolo(Yolo::new(&SMALL_YOLO, &mut Init::new(&Device::flex(), 7)));
    // First biases say that nothing is there.
    let table = ParamTable::of(&net);
    let net = update_each(net, |row, values| {
        if table.name[row].starts_with("model.22.cv3.") && table.name[row].ends_with(".2.bias") {
            values.fill(0.0);
        }
    });
    let head = detection::head_of(&net.head().unwrap());
    segments_as_in_burn(&net, &head, Placement::Centre.into(), Suppression::Greedy);
}

/// Height and width of the inputs of small networks.
const SIZE: [usize; 2] = [96, 128];

/// A small network with first weights: what the command says of a picture, boxes, scores and every pixel of the masks, is what
/// burn's results mean.
fn segments_as_in_burn(net: &Network, head: &Head, frame: Frame, suppression: Suppression) {
    let size = SIZE;
    let pass = Pass { norm: Norm::Frozen, ..Pass::default() };
    let names = output_names(net);
    let mut graph =
        capture(net, "input", [1, 3, size[0], size[1]], &names, |m: &Network, x| m.outputs(x, &pass))
            .unwrap();
    for (key, text) in [
        ("lacuna.head", serde_json::to_string(head).unwrap()),
        ("lacuna.frame", serde_json::to_string(&frame).unwrap()),
        ("lacuna.mean", "[0.5, 0.5, 0.5]".into()),
        ("lacuna.std", "[0.25, 0.25, 0.25]".into()),
        ("lacuna.classes", r#"["a", "b", "c"]"#.into()),
    ] {
        graph.metadata.push((key.into(), text));
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (onnx, image, drawn) = (at("small.onnx"), at("picture.png"), at("drawn"));
    lacuna::onnx::save(&graph, &onnx, &Default::default()).unwrap();
    save_png(&picture(), Path::new(&image)).unwrap();

    let (boxed, placed) = letterbox(&picture(), size[0], size[1], frame).unwrap();
    let normal = |&v: &u8| (f32::from(v) / 255.0 - 0.5) / 0.25;
    let x: Vec<f32> = (0..3).flat_map(|c| boxed.pixels.iter().skip(c).step_by(3).map(normal)).collect();
    let x = Tensor::<4>::from_data(TensorData::new(x, [1, 3, size[0], size[1]]), &Device::flex());
    let host = |output| match output {
        Output::Map(map) => (map.dims()[1..].to_vec(), map.into_data().try_to_vec::<f32>().unwrap()),
        Output::Table(table) => (table.dims()[1..].to_vec(), table.into_data().try_to_vec::<f32>().unwrap()),
        Output::Logits(_) => panic!("no logits"),
    };
    let results: Vec<(Vec<usize>, Vec<f32>)> = net.outputs(x, &pass).into_iter().map(host).collect();
    let results: Vec<Map<'_>> = results.iter().map(|(dims, values)| Map { dims, values }).collect();
    let shapes: Vec<Vec<usize>> = results.iter().map(|r| r.dims.to_vec()).collect();
    let contents = head.contents(&shapes, size).unwrap();
    assert_eq!((contents.classes, contents.masks.unwrap().count), (3, 4));
    let candidates = head.candidates(&results, size, 0.2);
    let found: Vec<Detection> = candidates.iter().map(|c| c.detection).collect();
    let kept = suppress(&found, suppression, 0.45, 5);
    assert_eq!(kept.len(), 5, "of {}", found.len());

    let words =
        ["predict", "segment", &onnx, &image, "--score", "0.2", "--most", "5", "--json", "--output", &drawn];
    let (code, json, text) = run(&words);
    assert_eq!(code, Some(0), "{text}");
    let json: Value = serde_json::from_str(&json).unwrap();
    let objects = json["results"][0]["objects"].as_array().unwrap();
    assert_eq!(objects.len(), 5);
    let mut pixels = 0;
    for (object, i) in objects.iter().zip(kept) {
        let want = found[i];
        assert!((object["score"].as_f64().unwrap() as f32 - want.score).abs() < 1e-4, "{object} {want:?}");
        let coefficients = head.coefficients(&results, candidates[i].place);
        let corners = placed.undo(want.corners);
        let planes = results[results.len() - 1].values;
        let mask = mask(&coefficients, planes, contents.masks.unwrap(), size, &placed, corners);
        assert_eq!(object["segmentation"]["size"], serde_json::json!([120, 160]));
        let counts: Vec<u32> = serde_json::from_value(object["segmentation"]["counts"].clone()).unwrap();
        assert_eq!(counts.iter().sum::<u32>(), 120 * 160);
        // Values at the border of one half may fall on either side.
        let area = object["area"].as_u64().unwrap() as usize;
        assert!(area.abs_diff(mask.area()) <= 4, "{area} and {}", mask.area());
        pixels += area;
    }
    assert!(pixels > 0);
    let annotated = load_image(&dir.path().join("drawn/picture.png")).unwrap();
    assert_ne!(annotated, picture());

    // Boxes alone.
    let (code, table, text) = run(&["predict", "detect", &onnx, &image, "--score", "0.2", "--most", "1"]);
    assert!(code == Some(0) && table.contains("left top right bottom"), "{text}");
}

#[test]
fn what_is_no_detector_is_refused() {
    let net = (find("resnet20").unwrap().build)(&mut Init::new(&Device::flex(), 7));
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (weights, image) = (at("w.safetensors"), at("picture.png"));
    save(&net, Path::new(&weights), &Metadata::new()).unwrap();
    save_png(&picture(), Path::new(&image)).unwrap();
    let (code, _, text) = run(&["predict", "detect", &weights, &image, "--model", "resnet20"]);
    assert!(code == Some(3) && text.contains("not a detector"), "{code:?} {text}");
    let (code, _, text) =
        run(&["predict", "detect", &weights, &image, "--model", "resnet20", "--score", "2"]);
    assert!(code == Some(2) && text.contains("from 0 to 1"), "{code:?} {text}");
    let net = (find("yolov5n").unwrap().build)(&mut Init::new(&Device::flex(), 7));
    save(&net, Path::new(&weights), &Metadata::new()).unwrap();
    let (code, _, text) = run(&["predict", "segment", &weights, &image, "--model", "yolov5n"]);
    assert!(code == Some(3) && text.contains("no masks"), "{code:?} {text}");
}

/// Trains, goes on, exports and evaluates through the command. Few steps on *synthetic* pictures: that figures agree counts,
/// not how good they are.
#[test]
fn a_detector_trains_and_is_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for part in ["train", "val"] {
        std::fs::create_dir_all(dir.path().join("set").join(part)).unwrap();
        for i in 0..4 {
            let place = dir.path().join("set").join(part).join(format!("{i}"));
            save_png(&picture(), &place.with_extension("png")).unwrap();
            let object = "<object><name>sun</name><bndbox><xmin>50</xmin><ymin>30</ymin><xmax>120</xmax><ymax>80</ymax>\
                          </bndbox></object>";
            std::fs::write(place.with_extension("xml"), format!("<annotation>{object}</annotation>"))
                .unwrap();
        }
    }
    let recipe = "modifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 2}\n";
    std::fs::write(dir.path().join("r.yaml"), recipe).unwrap();
    let (data, recipe, runs) = (at("set"), at("r.yaml"), at("runs"));
    let train = [
        "train",
        "--model",
        "yolov5n",
        "--recipe",
        &recipe,
        "--data",
        &data,
        "--project",
        &runs,
        "--batch",
        "2",
    ];
    let rest =
        ["--image-size", "64", "--flip-vertical", "--mosaic", "0.5", "--optimizer", "adamw", "--seed", "3"];
    let (code, text, error) = run(&[&train[..], &rest].concat());
    assert_eq!(code, Some(0), "{text}{error}");
    assert!(text.contains("mAP50-95") && text.contains("4 training boxes"), "{text}");
    let csv = std::fs::read_to_string(dir.path().join("runs/train/results.csv")).unwrap();
    assert!(csv.starts_with("epoch,train/loss,train/lr,metrics/mAP50-95,metrics/mAP50,sparsity"), "{csv}");
    assert_eq!(csv.lines().count(), 3);

    // 64 x 48 of 160 x 120: burn measures in the input's pixels, the engine in the picture's own.
    let eval = |words: &[&str]| -> Value {
        let (code, json, error) = run(&[&["eval", "--json", "--data", &data], words].concat());
        assert_eq!(code, Some(0), "{error}");
        serde_json::from_str(&json).unwrap()
    };
    let folder = at("runs/train");
    let (burn, engine) = (eval(&[&folder, "--burn"]), eval(&[&folder]));
    assert_eq!([&burn["images"], &burn["boxes"], &engine["boxes"]], [4, 4, 4]);
    for score in ["mAP50", "mAP50-95"] {
        let (a, b) = (burn[score].as_f64().unwrap(), engine[score].as_f64().unwrap());
        assert!((a - b).abs() < 0.05, "{score}: {a} in burn, {b} on the engine");
    }
    assert_eq!(engine["classes"][0]["class"], "sun");
    assert!(engine["coco"]["APmedium"].is_number() && engine["coco"]["APsmall"].is_null(), "{engine}");
    let onnx = at("model.onnx");
    let (code, _, error) = run(&["export", &folder, "-o", &onnx]);
    assert_eq!(code, Some(0), "{error}");
    assert_eq!(eval(&[&onnx, "--part", "train", "--max-images", "3"])["images"], 3);

    let refused = |words: &[&str], says: &str| {
        let (code, _, error) = run(words);
        assert!(code == Some(2) && error.contains(says), "{code:?} {error}");
    };
    refused(&["eval", &folder], "give --data");
    refused(&["train", "--model", "yolov5n", "--recipe", &recipe], "give --data");
    refused(&[&train[..], &["--image-size", "100"]].concat(), "multiples of 32");
    refused(&["train", "--model", "resnet20", "--recipe", &recipe, "--mosaic", "1"], "no detector");
    let (code, _, error) = run(&["predict", "detect", &folder, &at("set/val/0.png")]);
    assert!(code == Some(0) || code == Some(2), "{error}");
}
