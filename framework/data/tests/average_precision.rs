//! Average precision equals that of pycocotools on the same boxes, to 1e-6.

use lacuna_data::average_precision::{Guess, STATS, Scores, Truth, average_precision};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Left, top, width, height.
type Corner = [f64; 4];

/// The same boxes for both programs.
#[derive(Default)]
struct Case {
    images: u32,
    classes: u32,
    truths: Vec<(Truth, Corner)>,
    guesses: Vec<(Guess, Corner)>,
}

/// As COCO computes it.
fn overlap(guess: &Corner, truth: &Corner, crowd: bool) -> f64 {
    let side = |a: f64, b: f64, c: f64, d: f64| ((a + b).min(c + d) - a.max(c)).max(0.0);
    let common = side(guess[0], guess[2], truth[0], truth[2]) * side(guess[1], guess[3], truth[1], truth[3]);
    let (own, other) = (guess[2] * guess[3], truth[2] * truth[3]);
    common / if crowd { own } else { own + other - common }
}

impl Case {
    fn scores(&self) -> Scores {
        let truths: Vec<Truth> = self.truths.iter().map(|(t, _)| *t).collect();
        let guesses: Vec<Guess> = self.guesses.iter().map(|(g, _)| *g).collect();
        average_precision(&truths, &guesses, self.classes as usize, &|g, t| {
            overlap(&self.guesses[g].1, &self.truths[t].1, self.truths[t].0.crowd)
        })
    }

    fn json(&self) -> Value {
        let truth = |(i, (t, bbox)): (usize, &(Truth, Corner))| {
            json!({
                "id": i + 1, "image_id": t.image, "category_id": t.class, "bbox": bbox, "area": t.area,
                "iscrowd": u8::from(t.crowd),
            })
        };
        let guess = |(g, bbox): &(Guess, Corner)| json!({ "image_id": g.image, "category_id": g.class, "bbox": bbox, "score": g.score });
        json!({
            "images": (0..self.images).collect::<Vec<_>>(),
            "categories": (0..self.classes).collect::<Vec<_>>(),
            "annotations": self.truths.iter().enumerate().map(truth).collect::<Vec<_>>(),
            "detections": self.guesses.iter().map(guess).collect::<Vec<_>>(),
        })
    }

    fn find(&mut self, image: u32, class: u32, corner: Corner, score: f64) {
        let area = corner[2] * corner[3];
        self.guesses.push((Guess { image, class, area, score }, corner));
    }
}

/// Reproducible values in 0..1.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

/// *Synthetic* boxes, and guesses near and far from them: of all sizes, some crowds, some equal scores, more than a hundred
/// guesses of a class in some pictures, classes that are never there, or never found.
fn generated(seed: u64) -> Case {
    let mut r = Numbers(seed);
    let (images, classes) = (2 + (r.next() * 20.0) as u32, 1 + (r.next() * 6.0) as u32);
    let mut case = Case { images, classes: classes + 2, ..Case::default() };
    for image in 0..images {
        for _ in 0..(r.next() * r.next() * 40.0) as usize {
            let class = (r.next() * f64::from(classes)) as u32;
            let size = 10f64.powf(0.8 + 1.7 * r.next());
            // Some lie on whole pixels, where overlaps meet their limits exactly.
            let whole = r.next() < 0.3;
            let corner =
                [r.next() * 400.0, r.next() * 400.0, size * (0.6 + r.next()), size * (0.6 + r.next())];
            let corner = if whole { corner.map(|v| v.round().max(1.0)) } else { corner };
            let area = corner[2] * corner[3] * if r.next() < 0.3 { 0.4 + 0.6 * r.next() } else { 1.0 };
            let crowd = r.next() < 0.07;
            case.truths.push((Truth { image, class, area, crowd, ignored: false }, corner));
            for _ in 0..(r.next() * 3.5) as usize {
                let wide = 0.5 * r.next() * r.next();
                let mut near = |v: f64, size: f64| v + (r.next() - 0.5) * wide * size;
                let moved = [
                    near(corner[0], corner[2]),
                    near(corner[1], corner[3]),
                    near(corner[2], corner[2]),
                    near(corner[3], corner[3]),
                ];
                let moved = if whole { moved.map(f64::round) } else { moved };
                let class = if r.next() < 0.05 { classes + 1 } else { class };
                let score = (r.next() * 50.0).round() / 50.0;
                case.find(image, class, [moved[0], moved[1], moved[2].max(1.0), moved[3].max(1.0)], score);
            }
        }
        let many = if r.next() < 0.2 { 130 } else { (r.next() * 10.0) as usize };
        for _ in 0..many {
            let corner = [r.next() * 400.0, r.next() * 400.0, 2.0 + r.next() * 200.0, 2.0 + r.next() * 200.0];
            let score = r.next();
            case.find(image, 0, corner, score);
        }
    }
    case
}

/// The labelled Pascal VOC pictures of labelme, guesses near their boxes.
fn labelme(root: &Path) -> Option<Case> {
    let data = std::env::var_os("LACUNA_DATA").map_or_else(|| root.join("target/data"), PathBuf::from);
    let file =
        data.join("labelme/labelme-6.3.1/examples/instance_segmentation/data_dataset_coco/annotations.json");
    let json: Value = serde_json::from_str(&std::fs::read_to_string(file).ok()?).ok()?;
    let list = |key: &str| json[key].as_array().cloned().unwrap_or_default();
    let mut case = Case {
        images: list("images").len() as u32,
        classes: list("categories").len() as u32,
        ..Case::default()
    };
    let mut r = Numbers(5);
    for a in list("annotations") {
        let number = |key: &str| a[key].as_f64().unwrap();
        let bbox: Vec<f64> = a["bbox"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        let corner: Corner = bbox.try_into().unwrap();
        let (image, class) = (number("image_id") as u32, number("category_id") as u32);
        let truth =
            Truth { image, class, area: number("area"), crowd: number("iscrowd") != 0.0, ignored: false };
        case.truths.push((truth, corner));
        for _ in 0..2 {
            let near = corner.map(|v| v + 12.0 * (r.next() - 0.5));
            case.find(image, class, near, r.next());
        }
    }
    Some(case)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// `LACUNA_PYTHON`, the venv of CI or the system's, whichever has pycocotools.
fn python() -> Option<PathBuf> {
    let asked = std::env::var_os("LACUNA_PYTHON").map(PathBuf::from);
    let candidates = [asked, Some(root().join("target/py/bin/python")), Some(PathBuf::from("python3"))];
    candidates.into_iter().flatten().find(|python| {
        let run = Command::new(python).args(["-c", "import pycocotools.cocoeval"]).output();
        run.is_ok_and(|out| out.status.success())
    })
}

#[test]
fn scores_are_those_of_pycocotools() {
    let mut cases: Vec<Case> = (1..=40).map(generated).collect();
    match labelme(&root()) {
        Some(case) => cases.push(case),
        None => println!("SKIP the annotations of labelme: not in LACUNA_DATA or target/data"),
    }
    let Some(python) = python() else {
        return println!(
            "SKIP pycocotools: {} cases, no Python has it (tests/py/requirements.txt)",
            cases.len()
        );
    };
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(python);
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(root().join("tests/py/coco_scores.py"));
    for (i, case) in cases.iter().enumerate() {
        let file = dir.path().join(format!("{i}.json"));
        std::fs::write(&file, case.json().to_string()).unwrap();
        command.arg(file);
    }
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let wanted: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(wanted.len(), cases.len());
    let (mut worst, mut middling) = (0f64, 0);
    for (i, (case, want)) in cases.iter().zip(&wanted).enumerate() {
        let have = case.scores();
        // COCO's -1 is our nothing.
        for (s, name) in STATS.iter().enumerate() {
            let (have, want) = (have.stats[s].unwrap_or(-1.0), want["stats"][s].as_f64().unwrap());
            assert!((have - want).abs() <= 1e-6, "case {i}, {name}: {have}, pycocotools {want}");
            worst = worst.max((have - want).abs());
        }
        for (class, have) in have.per_class.iter().enumerate() {
            for (k, have) in have.unwrap_or([-1.0; 2]).into_iter().enumerate() {
                let want = want["categories"][class][k].as_f64().unwrap();
                assert!((have - want).abs() <= 1e-6, "case {i}, class {class}: {have}, pycocotools {want}");
            }
        }
        middling += usize::from((0.05..0.95).contains(&have.map()));
    }
    assert!(middling > cases.len() / 2, "most cases say nothing: {middling} of {}", cases.len());
    println!("{} cases equal pycocotools, the worst number by {worst:.1e}", cases.len());
}

/// One picture, by hand.
#[test]
fn difficult_objects_count_neither_for_nor_against() {
    let truth = |x: f64, ignored: bool| {
        (Truth { image: 0, class: 0, area: 100.0, crowd: false, ignored }, [x, 0.0, 10.0, 10.0])
    };
    let mut case = Case { images: 1, classes: 1, ..Case::default() };
    case.truths = vec![truth(0.0, false), truth(50.0, true)];
    case.find(0, 0, [50.0, 0.0, 10.0, 10.0], 0.9);
    case.find(0, 0, [0.0, 0.0, 10.0, 10.0], 0.8);
    let perfect = case.scores();
    assert!((perfect.map() - 1.0).abs() < 1e-9 && (perfect.map50() - 1.0).abs() < 1e-9);
    // Found twice, the second is wrong; and something small is not there to be found.
    case.find(0, 0, [50.0, 0.0, 10.0, 10.0], 0.85);
    let scores = case.scores();
    assert!((scores.map() - 0.5).abs() < 1e-9, "{:?}", scores.stats);
    assert_eq!(scores.stats[5], None);
    // Nothing found, and nothing there.
    case.guesses.clear();
    assert_eq!(case.scores().stats[0], Some(0.0));
    case.truths.clear();
    assert_eq!(case.scores().stats, [None; 12]);
    assert_eq!(case.scores().per_class, [None]);
}
