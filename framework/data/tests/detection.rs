//! Annotation files of three formats to boxes, tiles and inputs; and what is wrong with bad ones.

use lacuna_data::RgbImage8;
use lacuna_data::detection::{self, BoxSet, Part, Reader};
use std::fs;
use std::path::{Path, PathBuf};

/// The same three objects in two *synthetic* pictures of 60 x 40, for each format.
fn picture(path: &Path, w: u32, h: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let pixels: Vec<u8> = (0..w * h).flat_map(|i| [(i % w) as u8, (i / w) as u8, 9]).collect();
    image::save_buffer(path, &pixels, w, h, image::ColorType::Rgb8).unwrap();
}

fn text(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn xml(objects: &[(&str, [&str; 4], &str)]) -> String {
    let object = |(name, [x0, y0, x1, y1], extra): &(&str, [&str; 4], &str)| {
        format!(
            "<object><name>{name}</name>{extra}<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>\
             <ymax>{y1}</ymax></bndbox></object>\n"
        )
    };
    format!("<annotation><size/>\n{}</annotation>", objects.iter().map(object).collect::<String>())
}

fn voc(dir: &Path) {
    for part in ["train", "val"] {
        picture(&dir.join(part).join("a.1.png"), 60, 40);
        picture(&dir.join(part).join("b.png"), 60, 40);
        let a = [
            ("dog", ["10", "4.5", "30", "24.5"], ""),
            ("cat", ["30", "10", "61", "40"], "<difficult>1</difficult>"),
        ];
        text(&dir.join(part).join("a.1.xml"), &xml(&a));
        text(&dir.join(part).join("b.xml"), &xml(&[("cat", ["0", "0", "15", "10"], "<difficult/>")]));
    }
}

fn yolo(dir: &Path) {
    text(&dir.join("data.yaml"), "path: .\nnames: # of animals\n  0: cat\n  1: 'dog'\nnc: 2\n");
    for part in ["train", "val"] {
        picture(&dir.join("images").join(part).join("a.png"), 60, 40);
        picture(&dir.join("images").join(part).join("b.png"), 60, 40);
        picture(&dir.join("images").join(part).join("empty.png"), 60, 40);
        let labels = dir.join("labels").join(part);
        text(&labels.join("a.txt"), "1 0.33333333 0.3625 0.33333333 0.5\n0 0.75 0.625 0.5 0.75\n");
        text(&labels.join("b.txt"), "0 0.125 0.125 0.25 0.25\n\n");
    }
}

fn coco(dir: &Path) {
    for part in ["train", "val"] {
        picture(&dir.join(part).join("a.png"), 60, 40);
        picture(&dir.join(part).join("b.png"), 60, 40);
        let json = r#"{"images": [{"id": 7, "file_name": "b.png", "width": 60, "height": 40},
              {"id": 3, "file_name": "a.png", "width": 60, "height": 40}],
            "annotations": [
              {"id": 1, "image_id": 3, "category_id": 18, "bbox": [10, 4.5, 20, 20], "area": 250.5, "iscrowd": 0},
              {"id": 2, "image_id": 7, "category_id": 17, "bbox": [0, 0, 15, 10]},
              {"id": 3, "image_id": 3, "category_id": 17, "bbox": [30, 10, 30, 30], "iscrowd": 1},
              {"id": 4, "image_id": 3, "category_id": 17, "bbox": [30, 10, 30, 0]}],
            "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]}"#;
        text(&dir.join(format!("annotations/instances_{part}.json")), json);
    }
}

fn made(make: fn(&Path)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    dir
}

#[test]
fn three_formats_say_the_same() {
    for (make, pictures, flags) in
        [(voc as fn(&Path), 2, [false, true]), (yolo, 3, [false; 2]), (coco, 2, [true, false])]
    {
        let dir = made(make);
        for part in [Part::Train, Part::Test] {
            let set = detection::open(dir.path(), part).unwrap();
            assert_eq!(set.classes, ["cat", "dog"]);
            assert_eq!(set.pictures.len(), pictures);
            let of = |picture: usize, i: usize| set.objects_of(picture)[i];
            let dog = of(0, 0);
            for (have, want) in dog.corners.iter().zip([10.0, 4.5, 30.0, 24.5]) {
                assert!((have - want).abs() < 1e-4, "{dog:?}");
            }
            assert_eq!((dog.class, of(0, 1).class), (1, 0));
            assert_eq!(of(0, 1).corners, [30.0, 10.0, 60.0, 40.0], "cut at the edge");
            assert_eq!([of(0, 1).crowd, of(0, 1).ignored], flags);
            assert_eq!(
                (of(1, 0).corners, of(1, 0).area, set.objects.len()),
                ([0.0, 0.0, 15.0, 10.0], 150.0, 3)
            );
            assert!(dog.area == 250.5 || (dog.area - 400.0).abs() < 1e-3);
        }
    }
}

#[test]
fn tiles_cover_a_picture_and_share_its_objects() {
    let dir = tempfile::tempdir().unwrap();
    picture(&dir.path().join("large.png"), 250, 110);
    // In the first tile, across two, and in the corner.
    let objects = [
        ("tree", ["5", "5", "25", "25"], ""),
        ("tree", ["90", "40", "106", "60"], ""),
        ("tree", ["230", "90", "250", "110"], ""),
    ];
    text(&dir.path().join("large.xml"), &xml(&objects));
    let set = detection::open(dir.path(), Part::Test).unwrap().tiled(Some(100)).unwrap();
    let parts: Vec<[usize; 4]> = set.pictures.iter().map(|p| p.part.unwrap()).collect();
    assert_eq!(parts, [[0, 0, 100, 100], [200, 100, 250, 110]]);
    assert_eq!(set.objects_of(0).len(), 2);
    let cut = set.objects_of(0)[1];
    assert_eq!((cut.corners, cut.area), ([90.0, 40.0, 100.0, 60.0], 200.0));
    assert_eq!(set.objects_of(1)[0].corners, [30.0, 0.0, 50.0, 10.0]);
    let RgbImage8 { h, w, pixels } = Reader::default().read(&set.pictures[1]).unwrap();
    assert_eq!((h, w, &pixels[..3]), (10, 50, &[200u8, 100, 9][..]));
    // A tile larger than the picture is the picture.
    let whole = detection::open(dir.path(), Part::Test).unwrap().tiled(Some(999)).unwrap();
    assert_eq!(whole.pictures[0].part, Some([0, 0, 250, 110]));
    assert!(detection::open(dir.path(), Part::Test).unwrap().tiled(Some(0)).is_err());
}

/// What a change to a good folder gives.
fn refused(make: fn(&Path), change: impl Fn(&Path)) -> String {
    let dir = made(make);
    change(dir.path());
    detection::open(dir.path(), Part::Train).unwrap_err().to_string()
}

#[test]
fn bad_annotations_are_named() {
    let a = |dir: &Path| dir.join("train/a.1.xml");
    let with = |objects: &[(&str, [&str; 4], &str)]| refused(voc, |dir| text(&a(dir), &xml(objects)));
    let says = |have: String, words: &[&str]| {
        assert!(words.iter().all(|word| have.contains(word)), "{have}");
    };
    says(with(&[("cat", ["10", "4", "70", "24"], "")]), &["a.1.xml", "box 0", "'cat'", "60x40"]);
    says(with(&[("cat", ["10", "4", "10", "24"], "")]), &["empty"]);
    says(with(&[("cat", ["10", "4", "12", "NaN"], "")]), &["line 2", "<ymax>", "'NaN'"]);
    says(with(&[("cat", ["ten", "4", "12", "9"], "")]), &["<xmin>", "'ten'"]);
    says(with(&[("", ["1", "4", "12", "9"], "")]), &["<name>"]);
    says(refused(voc, |dir| text(&a(dir), "<annotation><object></annotation>")), &["a.1.xml", "damaged"]);
    says(refused(voc, |dir| text(&a(dir), "<svg/>")), &["<svg>", "Pascal VOC"]);
    says(refused(voc, |dir| fs::remove_file(dir.join("train/b.png")).unwrap()), &["b.xml", "no picture"]);
    says(refused(voc, |dir| fs::write(a(dir), [0xff, 0xfe]).unwrap()), &["UTF-8"]);

    let labels = |words: &'static str| refused(yolo, move |dir| text(&dir.join("labels/train/a.txt"), words));
    says(labels("0 0.5 0.5 0.1"), &["a.txt", "line 1", "4 words"]);
    says(labels("2 0.5 0.5 0.1 0.1"), &["class 2", "names 2"]);
    says(labels("\n1 0.5 1.5 0.1 0.1"), &["line 2", "'1.5'", "share"]);
    says(labels("1 0.5 0.5 0 0.1"), &["empty"]);
    says(labels("x 0.5 0.5 0 0.1"), &["'x'"]);
    let names = |yaml: &'static str| refused(yolo, move |dir| text(&dir.join("data.yaml"), yaml));
    says(names("nc: 2"), &["data.yaml", "names"]);
    says(names("names:\n  1: cat"), &["'1: cat'", "0"]);
    says(names("names: 5"), &["names: 5"]);
    says(refused(yolo, |dir| fs::remove_file(dir.join("data.yaml")).unwrap()), &["no data.yaml"]);

    let json = |from: &'static str, to: &'static str| {
        refused(coco, move |dir| {
            let file = dir.join("annotations/instances_train.json");
            let changed = fs::read_to_string(&file).unwrap().replacen(from, to, 1);
            fs::write(file, changed).unwrap();
        })
    };
    says(json("\"category_id\": 18", "\"category_id\": 5"), &["annotation 0", "category 5"]);
    says(json("\"image_id\": 3", "\"image_id\": 4"), &["annotation 0", "image 4"]);
    says(json("\"id\": 7", "\"id\": 3"), &["twice"]);
    says(json("a.png", "../../a.png"), &["does not lie below"]);
    says(json("a.png", "none.png"), &["none.png"]);
    says(json("[10, 4.5, 20, 20]", "[10, 4.5, 20]"), &["not as COCO writes it"]);
    says(json("[10, 4.5, 20, 20]", "[10, 4.5, -20, 20]"), &["empty"]);
    says(json("\"width\": 60", "\"width\": 12"), &["12x40"]);

    let empty = tempfile::tempdir().unwrap();
    let e = detection::open(empty.path(), Part::Train).unwrap_err().to_string();
    assert!(detection::FORMATS.iter().all(|format| e.contains(format.holds)), "{e}");
    let dir = made(voc);
    let strange = detection::open(dir.path(), Part::Test).unwrap().with_classes(&["dog".into()], dir.path());
    says(strange.unwrap_err().to_string(), &["'cat'"]);
}

/// Broken bytes of any kind are errors or other boxes, never a panic.
#[test]
fn changed_bytes_never_panic() {
    for (make, file) in [
        (voc as fn(&Path), "train/a.1.xml"),
        (yolo, "labels/train/a.txt"),
        (yolo, "data.yaml"),
        (coco, "annotations/instances_train.json"),
    ] {
        let dir = made(make);
        let path = dir.path().join(file);
        let good = fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(2) {
            for value in [b'0', b'"', 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                fs::write(&path, &bad).unwrap();
                let _ = detection::open(dir.path(), Part::Train);
            }
        }
    }
}

fn examples(kind: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let data = std::env::var_os("LACUNA_DATA").map_or_else(|| root.join("target/data"), PathBuf::from);
    Some(data.join("labelme/labelme-6.3.1/examples").join(kind)).filter(|dir| dir.is_dir())
}

#[test]
fn real_annotations_of_labelme() {
    let (Some(voc), Some(coco)) =
        (examples("bbox_detection/data_dataset_voc"), examples("instance_segmentation/data_dataset_coco"))
    else {
        return println!("SKIP the annotations of labelme: not in LACUNA_DATA or target/data");
    };
    let voc: BoxSet = detection::open(&voc, Part::Test).unwrap();
    assert_eq!((voc.pictures.len(), voc.objects.len()), (3, 9));
    assert!(voc.classes.iter().any(|name| name == "person"));
    let coco = detection::open(&coco, Part::Test).unwrap();
    assert_eq!((coco.pictures.len(), coco.objects.len(), coco.classes.len()), (3, 12, 21));
    assert!(coco.objects.iter().all(|o| o.area > 0.0));
    assert_eq!(Reader::default().read(&coco.pictures[0]).unwrap().w, 500);
}
