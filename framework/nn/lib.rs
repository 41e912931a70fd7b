//! Neural-network layers on burn that can be masked, quantised, and captured into a [`lacuna_ir::Graph`].

pub mod buffer;
pub mod capture;
pub mod features;
pub mod flow;
pub mod layers;
pub mod mark;
pub mod module;
pub mod ops;
pub mod params;
pub mod quant;
pub mod removal;
pub mod scheme;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};

/// A batch of token sequences of one length.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// [n, tokens]
    pub ids: Tensor<2, Int>,
    /// [n, tokens]: 1 where a token is, 0 where a sequence was filled up. Nothing is filled up if absent.
    pub mask: Option<Tensor<2>>,
    /// [n, tokens]: which of two texts a token is of. All are of the first if absent.
    pub types: Option<Tensor<2, Int>>,
}

impl Tokens {
    /// Of one text each, with nothing filled up.
    pub fn of(ids: Tensor<2, Int>) -> Tokens {
        Tokens { ids, mask: None, types: None }
    }
}

/// A batch of what a network takes.
#[derive(Clone, Debug)]
// There is one of these at a time; a box would only hide the tensors.
#[allow(clippy::large_enum_variant)]
pub enum Input {
    /// [n, c, h, w]
    Images(Tensor<4>),
    Tokens(Tokens),
}

impl From<Tensor<4>> for Input {
    fn from(x: Tensor<4>) -> Input {
        Input::Images(x)
    }
}

impl From<Tokens> for Input {
    fn from(x: Tokens) -> Input {
        Input::Tokens(x)
    }
}

impl Input {
    /// Images or sequences.
    pub fn count(&self) -> usize {
        match self {
            Input::Images(x) => x.dims()[0],
            Input::Tokens(x) => x.ids.dims()[0],
        }
    }

    pub fn device(&self) -> Device {
        match self {
            Input::Images(x) => x.device(),
            Input::Tokens(x) => x.ids.device(),
        }
    }

    /// For a network that is not trained.
    pub fn without_autodiff(self) -> Input {
        match self {
            Input::Images(x) => Input::Images(x.without_autodiff()),
            Input::Tokens(Tokens { ids, mask, types }) => Input::Tokens(Tokens {
                ids: ids.without_autodiff(),
                mask: mask.map(Tensor::without_autodiff),
                types: types.map(Tensor::without_autodiff),
            }),
        }
    }

    /// # Panics
    /// If these are tokens.
    pub fn images(self) -> Tensor<4> {
        match self {
            Input::Images(x) => x,
            Input::Tokens(_) => panic!("this network takes images, it was given tokens"),
        }
    }

    /// # Panics
    /// If these are images.
    pub fn tokens(self) -> Tokens {
        match self {
            Input::Tokens(x) => x,
            Input::Images(_) => panic!("this network takes tokens, it was given images"),
        }
    }
}

/// A module that turns a batch of n images or token sequences into logits [n, classes]; or, if it has a head for boxes,
/// images into maps.
pub trait Classifier: Module + 'static {
    /// # Panics
    /// If the network takes another kind of input, or detects.
    fn forward(&self, x: impl Into<Input>, pass: &quant::Pass) -> Tensor<2>;

    /// How the maps of a network that detects say boxes.
    fn head(&self) -> Option<BoxHead> {
        None
    }

    /// The maps of a network that detects: [n, channels, h, w] for each level, finest first.
    ///
    /// # Panics
    /// If the network takes another kind of input, or classifies.
    fn maps(&self, _: impl Into<Input>, _: &quant::Pass) -> Vec<Tensor<4>> {
        panic!("this network classifies, it does not detect")
    }

    /// Whatever it gives.
    ///
    /// # Panics
    /// If the network takes another kind of input.
    fn results(&self, x: impl Into<Input>, pass: &quant::Pass) -> Results {
        match self.head() {
            Some(_) => Results::Maps(self.maps(x, pass)),
            None => Results::Logits(self.forward(x, pass)),
        }
    }
}

/// How maps say boxes. Lengths are in pixels of the image.
#[derive(Clone, Debug, PartialEq)]
pub enum BoxHead {
    /// A map [anchors * (5 + classes), h, w] for each level: boxes as changes of anchors (YOLOv3 and v5).
    Anchors { strides: Vec<usize>, anchors: Vec<Vec<[f32; 2]>> },
    /// A map [4 * bins + classes, h, w] for each level: distances to the sides as distributions (YOLOv8). With masks, behind
    /// these a map of coefficients [masks, h, w] for each level, and prototypes [masks, h, w].
    Distances { strides: Vec<usize>, bins: usize, masks: usize },
}

impl BoxHead {
    /// Channels of every map of boxes.
    pub fn channels(&self, classes: usize) -> usize {
        match self {
            BoxHead::Anchors { anchors, .. } => anchors.first().map_or(0, Vec::len) * (5 + classes),
            BoxHead::Distances { bins, .. } => 4 * bins + classes,
        }
    }

    /// Names for the maps in a graph.
    pub fn names(&self) -> Vec<String> {
        let levels = self.strides().len();
        let maps = (0..levels).map(|level| format!("map{level}"));
        match self {
            BoxHead::Distances { masks: 1.., .. } => {
                let coefficients = (0..levels).map(|level| format!("coefficients{level}"));
                maps.chain(coefficients).chain(["prototypes".to_owned()]).collect()
            }
            BoxHead::Anchors { .. } | BoxHead::Distances { .. } => maps.collect(),
        }
    }

    pub fn strides(&self) -> &[usize] {
        match self {
            BoxHead::Anchors { strides, .. } | BoxHead::Distances { strides, .. } => strides,
        }
    }
}

/// What a network gives.
#[derive(Clone, Debug)]
// There is one of these at a time; a box would only hide the tensors.
#[allow(clippy::large_enum_variant)]
pub enum Results {
    Logits(Tensor<2>),
    Maps(Vec<Tensor<4>>),
}

impl Results {
    /// Names for them in a graph.
    pub fn names(head: Option<&BoxHead>) -> Vec<String> {
        match head {
            None => vec!["logits".to_owned()],
            Some(head) => head.names(),
        }
    }
}

impl capture::Outputs for Results {
    fn ids(self, ids: &mut Vec<Option<capture::TensorId>>) {
        match self {
            Results::Logits(x) => x.ids(ids),
            Results::Maps(maps) => maps.ids(ids),
        }
    }
}
