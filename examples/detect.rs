//! Which objects are on a picture, and where: a detector's ONNX file, a picture, and one with the boxes drawn on it.
//!
//! ```text
//! cargo run --release --example detect -- yolox_nano.onnx street.jpg street_boxes.png
//! ```
//! How the results of a network are to be read is told from the file, or from their shapes.

use lacuna::data::images::load_image;
use lacuna::pipelines::Detector;
use lacuna::pipelines::detector::Thresholds;
use lacuna::pipelines::draw::{draw, save_png};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [model, picture, drawn] = <[String; 3]>::try_from(std::env::args().skip(1).collect::<Vec<_>>())
        .map_err(|_| "give a model file, a picture, and where to draw the boxes")?;
    let mut detector = Detector::new(&lacuna::onnx::load(model)?, None)?;

    let mut pixels = load_image(picture.as_ref())?;
    let found = detector.detect(&pixels, &Thresholds::default())?;
    for object in &found {
        let [left, top, right, bottom] = object.corners;
        let name = &detector.classes[object.class];
        println!("{:.3} {name}: {left:.0}, {top:.0} to {right:.0}, {bottom:.0}", object.score);
    }
    draw(&mut pixels, &found, &detector.classes);
    save_png(&pixels, drawn.as_ref())?;
    Ok(())
}
