//! Detectors from weights or a file to boxes on a picture, through the command.

use burn::tensor::{Device, Tensor, TensorData};
use lacuna::cli::model_file;
use lacuna::data::RgbImage8;
use lacuna::data::images::load_image;
use lacuna::models::{Output, find};
use lacuna::nn::layers::Init;
use lacuna::pipelines::boxes::nms;
use lacuna::pipelines::draw::save_png;
use lacuna::pipelines::heads::{Head, Result as Map};
use lacuna::pipelines::letterbox::{Placement, letterbox};
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
        Output::Logits(_) => panic!("a detector gives maps"),
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
}
