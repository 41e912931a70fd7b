//! What is on a picture: a classifier's file, a picture, and its five most likely classes.
//!
//! ```text
//! cargo run --release --example classify_image -- efficientnet-lite0.onnx cat.jpg
//! ```
//! Files that `lacuna export` or `lacuna train` wrote say themselves how they want their pixels.

use lacuna::cli::classify::Classifier;
use lacuna::data::images::{load_image, to_nchw};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [model, picture] = <[String; 2]>::try_from(std::env::args().skip(1).collect::<Vec<_>>())
        .map_err(|_| "give a model file and a picture")?;
    let graph = lacuna::onnx::load(&model)?;
    let list = |key: &str| graph.metadata(key).ok_or(format!("{model}: says no {key}"));
    let mean: Vec<f32> = serde_json::from_str(list("lacuna.mean")?)?;
    let std: Vec<f32> = serde_json::from_str(list("lacuna.std")?)?;
    let names: Vec<String> = graph.metadata("lacuna.classes").map_or(Ok(vec![]), serde_json::from_str)?;

    let mut classifier = Classifier::new(&graph, None)?;
    let [_, h, w] = classifier.input;
    let pixels = to_nchw(&load_image(picture.as_ref())?, h, w, &mean, &std)?;
    let logits = classifier.logits(&pixels, 1)?;
    let probability = classifier.probabilities(&logits);

    let mut classes: Vec<usize> = (0..probability.len()).collect();
    classes.sort_by(|&a, &b| probability[b].total_cmp(&probability[a]));
    for class in classes.into_iter().take(5) {
        let name = names.get(class).cloned().unwrap_or(format!("class {class}"));
        println!("{:6.2} %  {name}", probability[class] * 100.0);
    }
    Ok(())
}
