//! A detector on the engine: pictures in, boxes out.

use crate::boxes::{Detection, nms};
use crate::heads::{Head, Result as Output};
use crate::letterbox::{Placement, letterbox};
use crate::{Error, Result};
use lacuna_data::RgbImage8;
use lacuna_engine::{Options, Session};
use lacuna_ir::{DType, Graph, Tensor};

/// What counts as found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Least score.
    pub score: f32,
    /// Most overlap (intersection over union) with a better box of the same class.
    pub overlap: f32,
    /// Most boxes of a picture.
    pub most: usize,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds { score: 0.25, overlap: 0.45, most: 300 }
    }
}

/// What a network expects of pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Pixels {
    placement: Placement,
    /// Blue first.
    bgr: bool,
    /// What bytes are divided by.
    divisor: f32,
}

pub struct Detector {
    session: Session,
    head: Head,
    pixels: Pixels,
    /// Height and width of the network's input.
    pub size: [usize; 2],
    /// Names of the classes; numbers where nobody says them.
    pub classes: Vec<String>,
    batch: usize,
}

impl Detector {
    /// Compiles a graph of one f32 input `[n, 3, h, w]`. Its metadata `lacuna.head` and `lacuna.classes` say how to read its
    /// results; of others' files the shapes do. `size` is for a model that leaves height and width open.
    ///
    /// # Errors
    /// A graph that is no such detector, or one that the engine cannot run.
    pub fn new(graph: &Graph, threads: Option<usize>) -> Result<Detector> {
        let misfit = |why: String| Error::Model {
            model: graph.name.clone(),
            why: format!("not a detector that is known: {why} (see `lacuna analyze`)"),
        };
        let mut session = Session::new(graph, &Options { threads, ..Options::default() })?;
        let [input] = session.inputs() else {
            return Err(misfit(format!("it has {} inputs", session.inputs().len())));
        };
        let &[batch, Some(3), Some(h), Some(w)] = input.dims.as_slice() else {
            return Err(misfit(format!("input '{}' is not [n, 3, height, width] of known size", input.name)));
        };
        if input.dtype != DType::F32 || h * w == 0 || session.outputs().iter().any(|o| o.dtype != DType::F32)
        {
            return Err(misfit("input and results must be f32".into()));
        }
        let batch = batch.unwrap_or(1).max(1);
        // Whatever a file says of its shapes, what it computes is what counts.
        let shapes: Vec<Vec<usize>> = session
            .run(&[Tensor::from_f32(&[batch, 3, h, w], vec![0.0; batch * 3 * h * w])])?
            .iter()
            .map(|t| t.dims.get(1..).unwrap_or_default().to_vec())
            .collect();
        let head = match graph.metadata("lacuna.head") {
            Some(text) => {
                serde_json::from_str(text).map_err(|e| misfit(format!("metadata lacuna.head: {e}")))?
            }
            None => {
                Head::of_shapes(&shapes, [h, w]).ok_or_else(|| misfit(format!("results of {shapes:?}")))?
            }
        };
        let classes = head
            .classes(&shapes, [h, w])
            .ok_or_else(|| misfit(format!("results of {shapes:?} do not fit a head of {head:?}")))?;
        let pixels = match head {
            Head::Grid { .. } => Pixels { placement: Placement::TopLeft, bgr: true, divisor: 1.0 },
            _ => Pixels { placement: Placement::Centre, bgr: false, divisor: 255.0 },
        };
        let classes = names(graph, classes).map_err(misfit)?;
        Ok(Detector { session, head, pixels, size: [h, w], classes, batch })
    }

    /// The objects of a picture, best first, in its own pixels.
    pub fn detect(&mut self, picture: &RgbImage8, thresholds: &Thresholds) -> Result<Vec<Detection>> {
        let [h, w] = self.size;
        let (boxed, placed) = letterbox(picture, h, w, self.pixels.placement)?;
        // A fixed batch is filled up with black pictures.
        let mut x = vec![0.0; self.batch * 3 * h * w];
        for (channel, plane) in x[..3 * h * w].chunks_exact_mut(h * w).enumerate() {
            let from = if self.pixels.bgr { 2 - channel } else { channel };
            for (to, rgb) in plane.iter_mut().zip(boxed.pixels.chunks_exact(3)) {
                *to = f32::from(rgb[from]) / self.pixels.divisor;
            }
        }
        let results = self.session.run(&[Tensor::from_f32(&[self.batch, 3, h, w], x)])?;
        let first = |t| -> Option<Output<'_>> {
            let t: &Tensor = t;
            let dims = t.dims.get(1..)?;
            Some(Output { dims, values: t.as_f32()?.get(..dims.iter().product())? })
        };
        let outputs: Vec<Output<'_>> = results.iter().filter_map(first).collect();
        let found = self.head.decode(&outputs, self.size, thresholds.score);
        let kept = nms(found, thresholds.overlap, thresholds.most);
        Ok(kept.into_iter().map(|d| Detection { corners: placed.undo(d.corners), ..d }).collect())
    }
}

/// The names in the metadata, those of COCO for its 80, or numbers.
fn names(graph: &Graph, classes: usize) -> std::result::Result<Vec<String>, String> {
    if let Some(text) = graph.metadata("lacuna.classes") {
        let names: Vec<String> =
            serde_json::from_str(text).map_err(|e| format!("metadata lacuna.classes: {e}"))?;
        if names.len() != classes {
            return Err(format!("metadata lacuna.classes has {} names for {classes} classes", names.len()));
        }
        return Ok(names);
    }
    if classes == COCO.len() {
        return Ok(COCO.iter().map(|&name| name.to_owned()).collect());
    }
    Ok((0..classes).map(|i| i.to_string()).collect())
}

/// The categories of COCO (Lin et al., 2014, arXiv:1405.0312), in the order in which detectors count them.
pub const COCO: [&str; 80] = [
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
];
