//! Pictures with boxes become inputs of one size, and their boxes go along.

use lacuna_data::boxes::BoxAugment;
use lacuna_data::{BatchSpec, Batches, Error};
use lacuna_pipelines::inputs::{Inputs, load};
use std::fs;
use std::path::Path;

/// *Synthetic*: two pictures of 60 x 40 for each part, the same boxes in both.
fn folder(dir: &Path) {
    for part in ["train", "val"] {
        let dir = dir.join(part);
        fs::create_dir(&dir).unwrap();
        for name in ["a", "b"] {
            let pixels: Vec<u8> = (0..60 * 40).flat_map(|i| [(i % 60) as u8, (i / 60) as u8, 9]).collect();
            image::save_buffer(dir.join(format!("{name}.png")), &pixels, 60, 40, image::ColorType::Rgb8)
                .unwrap();
            let object = |name: &str, at: [f32; 4], difficult: u8| {
                let [x0, y0, x1, y1] = at;
                format!(
                    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin>\
                     <ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
                )
            };
            let objects =
                object("dog", [10.0, 4.5, 30.0, 24.5], 0) + &object("cat", [30.0, 10.0, 60.0, 40.0], 1);
            fs::write(dir.join(format!("{name}.xml")), format!("<annotation>{objects}</annotation>"))
                .unwrap();
        }
    }
}

#[test]
fn boxes_are_where_the_pixels_are() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path());
    let inputs = Inputs { size: [64, 64], tile: None, augment: BoxAugment::NONE };
    let set = load(dir.path(), &inputs).unwrap();
    set.train.check().unwrap();
    assert_eq!((set.train.len(), set.source.test), (2, 2));
    assert_eq!(set.train.classes, ["cat", "dog"]);
    let boxes = set.train.boxes.as_ref().unwrap();
    // 60 x 40 becomes 64 x 43, ten rows below the upper edge.
    let want = [10.0 * 64.0 / 60.0, 10.0 + 4.5 * 43.0 / 40.0, 32.0, 10.0 + 24.5 * 43.0 / 40.0];
    for (have, want) in boxes.of(0)[0].corners.iter().zip(want) {
        assert!((have - want).abs() < 1e-4, "{:?}", boxes.of(0));
    }
    assert!(boxes.of(0)[1].ignored && boxes.of(1).len() == 2);
    let batch = Batches::new(&set.train, BatchSpec::eval(2)).unwrap().next().unwrap();
    assert_eq!((batch.dims, batch.boxes.len()), ([2, 3, 64, 64], 2), "what is difficult is no example");
    assert!((batch.x[0] - 114.0 / 255.0).abs() < 1e-6);

    let large = Inputs { size: [1 << 20, 1 << 20], ..inputs };
    assert!(matches!(load(dir.path(), &large), Err(Error::TooLarge { .. })));
    let tiled = load(dir.path(), &Inputs { size: [32, 32], tile: Some(20), ..inputs }).unwrap();
    // The middles of both boxes lie in tiles of their own.
    assert_eq!((tiled.train.len(), tiled.train.boxes.unwrap().labels.len()), (4, 4));
}
