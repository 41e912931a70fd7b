//! A detector on the engine: pictures in, boxes out, and masks where the network finds them.

use crate::boxes::{Detection, Suppression, suppress};
use crate::classes;
use crate::head_table::{self, HEADS, HeadRow, Pixels};
use crate::heads::{Candidate, Contents, Head, Result as Output};
use crate::letterbox::{Letterbox, letterbox};
use crate::masks::{Mask, mask};
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

/// What a caller says of a model whose file does not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// A row of [`HEADS`].
    pub head: Option<String>,
    /// Height and width of the network's input.
    pub size: Option<[usize; 2]>,
    /// Names of the classes.
    pub classes: Option<Vec<String>>,
}

/// Height and width where neither the model nor the caller says them.
const SIDE: usize = 640;
/// Longest side of an input.
pub const SIDE_MAX: usize = 8192;

pub struct Detector {
    session: Session,
    head: Head,
    contents: Contents,
    pixels: Pixels,
    suppression: Suppression,
    /// Height and width of the network's input.
    pub size: [usize; 2],
    /// Names of the classes; numbers where nobody says them.
    pub classes: Vec<String>,
    batch: usize,
}

/// An object with its outline.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    pub detection: Detection,
    /// Of the picture's size.
    pub mask: Mask,
}

impl Detector {
    /// [`Detector::with`] of a model that says everything itself.
    pub fn new(graph: &Graph, threads: Option<usize>) -> Result<Detector> {
        Detector::with(graph, threads, &Reading::default())
    }

    /// Compiles a graph of one f32 input `[n, 3, h, w]`. Its metadata `lacuna.head` and `lacuna.classes` say how to read its
    /// results; of others' files the caller does, or the shapes do.
    ///
    /// # Errors
    /// A graph that is no such detector, or one that the engine cannot run.
    pub fn with(graph: &Graph, threads: Option<usize>, reading: &Reading) -> Result<Detector> {
        let misfit = |why: String| Error::Model {
            model: graph.name.clone(),
            why: format!("not a detector that is known: {why} (see `lacuna analyze`)"),
        };
        let mut session = Session::new(graph, &Options { threads, ..Options::default() })?;
        let [input] = session.inputs() else {
            return Err(misfit(format!("it has {} inputs", session.inputs().len())));
        };
        let &[batch, Some(3), h, w] = input.dims.as_slice() else {
            return Err(misfit(format!("input '{}' is not [n, 3, height, width]", input.name)));
        };
        let open = reading.size.or(image_size(graph)).unwrap_or([SIDE; 2]);
        let size = [h.unwrap_or(open[0]), w.unwrap_or(open[1])];
        if let Some([ah, aw]) = reading.size.filter(|asked| *asked != size) {
            return Err(misfit(format!("it takes {}x{} pixels, not {ah}x{aw}", size[0], size[1])));
        }
        if !size.iter().all(|side| (1..=SIDE_MAX).contains(side)) {
            return Err(misfit(format!("an input of {}x{} pixels (1 to {SIDE_MAX})", size[0], size[1])));
        }
        if input.dtype != DType::F32 || session.outputs().iter().any(|o| o.dtype != DType::F32) {
            return Err(misfit("input and results must be f32".into()));
        }
        let batch = batch.unwrap_or(1).max(1);
        let [h, w] = size;
        // Whatever a file says of its shapes, what it computes is what counts.
        let shapes: Vec<Vec<usize>> = session
            .run(&[Tensor::from_f32(&[batch, 3, h, w], vec![0.0; batch * 3 * h * w])])?
            .iter()
            .map(|t| t.dims.get(1..).unwrap_or_default().to_vec())
            .collect();
        let (row, head) = read_head(graph, reading, &shapes, size).map_err(misfit)?;
        let contents = head
            .contents(&shapes, size)
            .ok_or_else(|| misfit(format!("results of {shapes:?} do not fit a head of {head:?}")))?;
        let classes = match &reading.classes {
            Some(given) if given.len() == contents.classes => given.clone(),
            Some(given) => {
                return Err(misfit(format!("{} names for {} classes", given.len(), contents.classes)));
            }
            None => classes::names(graph, contents.classes).map_err(misfit)?,
        };
        let pixels = said_pixels(graph, row.pixels).map_err(misfit)?;
        Ok(Detector { session, head, contents, pixels, suppression: row.suppression, size, classes, batch })
    }

    /// Whether it finds masks, too.
    pub fn has_masks(&self) -> bool {
        self.contents.masks.is_some()
    }

    /// The objects of a picture, best first, in its own pixels.
    pub fn detect(&mut self, picture: &RgbImage8, thresholds: &Thresholds) -> Result<Vec<Detection>> {
        let (results, placed) = self.run(picture)?;
        let kept = self.kept(&results, thresholds);
        Ok(kept.into_iter().map(|c| of_picture(c.detection, &placed)).collect())
    }

    /// The objects of a picture with their masks, best first.
    ///
    /// # Errors
    /// A network without masks.
    pub fn segment(&mut self, picture: &RgbImage8, thresholds: &Thresholds) -> Result<Vec<Segment>> {
        let Some(prototypes) = self.contents.masks else {
            let why = "it finds boxes and no masks (use `lacuna predict detect`)".into();
            return Err(Error::Model { model: self.session.lowered().name.clone(), why });
        };
        let (results, placed) = self.run(picture)?;
        let outputs = one_picture(&results);
        let Some(planes) = outputs.last() else { return Ok(Vec::new()) };
        let one = |c: Candidate| {
            let detection = of_picture(c.detection, &placed);
            let coefficients = self.head.coefficients(&outputs, c.place);
            let mask = mask(&coefficients, planes.values, prototypes, self.size, &placed, detection.corners);
            Segment { detection, mask }
        };
        Ok(self.kept(&results, thresholds).into_iter().map(one).collect())
    }

    /// The network's results, and where the picture lay.
    fn run(&mut self, picture: &RgbImage8) -> Result<(Vec<Tensor>, Letterbox)> {
        let [h, w] = self.size;
        let (boxed, placed) = letterbox(picture, h, w, self.pixels.frame)?;
        // A fixed batch is filled up with zeros.
        let mut x = vec![0.0; self.batch * 3 * h * w];
        for (channel, plane) in x[..3 * h * w].chunks_exact_mut(h * w).enumerate() {
            let from = if self.pixels.bgr { 2 - channel } else { channel };
            let (mean, std) = (self.pixels.mean[channel], self.pixels.std[channel]);
            for (to, rgb) in plane.iter_mut().zip(boxed.pixels.chunks_exact(3)) {
                *to = (f32::from(rgb[from]) / 255.0 - mean) / std;
            }
        }
        Ok((self.session.run(&[Tensor::from_f32(&[self.batch, 3, h, w], x)])?, placed))
    }

    /// What stays of the boxes of the first picture, best first, in pixels of the network's input.
    fn kept(&self, results: &[Tensor], thresholds: &Thresholds) -> Vec<Candidate> {
        let candidates = self.head.candidates(&one_picture(results), self.size, thresholds.score);
        let found: Vec<Detection> = candidates.iter().map(|c| c.detection).collect();
        let kept = suppress(&found, self.suppression, thresholds.overlap, thresholds.most);
        kept.into_iter().map(|i| candidates[i]).collect()
    }
}

fn of_picture(d: Detection, placed: &Letterbox) -> Detection {
    Detection { corners: placed.undo(d.corners), ..d }
}

/// The results for the first picture of a batch.
fn one_picture(results: &[Tensor]) -> Vec<Output<'_>> {
    fn first(t: &Tensor) -> Option<Output<'_>> {
        let dims = t.dims.get(1..)?;
        Some(Output { dims, values: t.as_f32()?.get(..dims.iter().product())? })
    }
    results.iter().filter_map(first).collect()
}

/// The head: as the caller says, as the file does, or as shapes do.
fn read_head(
    graph: &Graph,
    reading: &Reading,
    shapes: &[Vec<usize>],
    size: [usize; 2],
) -> std::result::Result<(&'static HeadRow, Head), String> {
    let known = || HEADS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
    if let Some(name) = &reading.head {
        let row = head_table::find(name).ok_or_else(|| format!("no head is named '{name}' ({})", known()))?;
        let head = (row.of_shapes)(shapes, size)
            .ok_or_else(|| format!("results of {shapes:?} are not those of '{name}', {}", row.about))?;
        return Ok((row, head));
    }
    match graph.metadata("lacuna.head") {
        Some(text) => {
            let head = serde_json::from_str(text).map_err(|e| format!("metadata lacuna.head: {e}"))?;
            Ok((head_table::of_head(&head, shapes.len()), head))
        }
        None => head_table::of_shapes(shapes, size)
            .ok_or_else(|| format!("results of {shapes:?} (--head says which: {})", known())),
    }
}

/// What the file says of pixels in place of what networks with such a head usually expect.
fn said_pixels(graph: &Graph, usual: Pixels) -> std::result::Result<Pixels, String> {
    fn said<T: serde::de::DeserializeOwned>(
        graph: &Graph,
        key: &str,
        usual: T,
    ) -> std::result::Result<T, String> {
        match graph.metadata(key) {
            Some(text) => serde_json::from_str(text).map_err(|e| format!("metadata {key}: {e}")),
            None => Ok(usual),
        }
    }
    let pixels = Pixels {
        frame: said(graph, "lacuna.frame", usual.frame)?,
        mean: said(graph, "lacuna.mean", usual.mean)?,
        std: said(graph, "lacuna.std", usual.std)?,
        ..usual
    };
    if !pixels.std.iter().all(|s| s.is_finite() && *s > 0.0) {
        return Err(format!("metadata lacuna.std: {:?} must be finite, and above 0", pixels.std));
    }
    Ok(pixels)
}

/// Height and width as Ultralytics' exports say them.
fn image_size(graph: &Graph) -> Option<[usize; 2]> {
    serde_json::from_str(graph.metadata("imgsz")?).ok()
}
