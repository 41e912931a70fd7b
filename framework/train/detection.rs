//! Losses of detectors: raw maps against the boxes that are there.
//!
//! Plain numbers go in; the loss and its derivative by every element of the maps come out. Which cell answers for which box
//! depends on the values, so the losses are computed here, in one pass over the maps, and not as a graph of tensor ops;
//! [`on_maps`] puts them into burn's.
//!
//! ```text
//! anchors   YOLOv3 and v5: a box is matched to anchors of like shape; overlap, objectness, classes
//! aligned   YOLOv8: a box is matched to the cells that score and overlap best; overlap, distances, classes
//! ```

mod aligned;
mod anchors;
mod overlap;

use burn::tensor::{Tensor, TensorData};
use lacuna_data::boxes::BatchBox;
use lacuna_nn::BoxHead;
use lacuna_pipelines::heads::Head;
pub use overlap::complete_iou;

/// The raw scores of one level, [n, c, h, w].
#[derive(Clone, Copy, Debug)]
pub struct Map<'a> {
    pub dims: [usize; 4],
    pub values: &'a [f32],
}

/// A loss and its derivatives.
#[derive(Clone, Debug, PartialEq)]
pub struct BoxLoss {
    /// The sum over the images of the batch.
    pub value: f64,
    /// Weighted parts of it: boxes, objects or distances, classes.
    pub parts: [f64; 3],
    /// By every element of each map.
    pub gradients: Vec<Vec<f32>>,
}

/// The loss of the maps of a batch.
///
/// # Panics
/// If the maps are not those of the head, or a box has a class that they have not.
pub fn loss(head: &BoxHead, maps: &[Map<'_>], boxes: &[BatchBox]) -> BoxLoss {
    match head {
        BoxHead::Anchors { strides, anchors } => anchors::loss(strides, anchors, maps, boxes),
        BoxHead::Distances { strides, bins, .. } => {
            aligned::loss(strides, *bins, &maps[..strides.len()], boxes)
        }
    }
}

/// [`loss`] as a tensor whose backward pass gives the maps their derivatives.
pub fn on_maps(head: &BoxHead, maps: Vec<Tensor<4>>, boxes: &[BatchBox]) -> Tensor<1> {
    let host = |map: &Tensor<4>| -> Vec<f32> {
        map.clone().without_autodiff().into_data().try_into_vec().expect("maps are f32")
    };
    let values: Vec<Vec<f32>> = maps.iter().map(host).collect();
    let views: Vec<Map<'_>> =
        maps.iter().zip(&values).map(|(map, values)| Map { dims: map.dims(), values }).collect();
    let found = loss(head, &views, boxes);
    // A linear function with these derivatives, moved to the loss's value.
    let linear = |(map, gradient): (Tensor<4>, Vec<f32>)| {
        let (dims, device) = (map.dims(), map.device());
        (map * Tensor::from_data(TensorData::new(gradient, dims), &device)).sum()
    };
    let sum = maps.into_iter().zip(found.gradients).map(linear).reduce(|a, b| a + b);
    let sum = sum.expect("a detector has a map");
    let here: f32 = sum.clone().without_autodiff().into_scalar();
    sum.add_scalar(found.value - f64::from(here))
}

/// How the same head is decoded.
pub fn head_of(head: &BoxHead) -> Head {
    match head.clone() {
        BoxHead::Anchors { strides, anchors } => Head::Anchors { strides, anchors },
        BoxHead::Distances { strides, bins, .. } => Head::Dfl { strides, bins },
    }
}

fn sigmoid(x: f32) -> f64 {
    1.0 / (1.0 + (-f64::from(x)).exp())
}

/// Cross-entropy of a logit and a target in 0..1.
fn cross_entropy(logit: f32, target: f64) -> f64 {
    let x = f64::from(logit);
    x.max(0.0) - x * target + (-x.abs()).exp().ln_1p()
}
