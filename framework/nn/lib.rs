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
use burn::tensor::{Int, Tensor};

/// A batch of token sequences of one length.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// [n, tokens]
    pub ids: Tensor<2, Int>,
    /// [n, tokens]: 1 where a token is, 0 where a sequence was filled up. Nothing is filled up if absent.
    pub mask: Option<Tensor<2>>,
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

/// A module that turns a batch of n images or token sequences into logits [n, classes].
pub trait Classifier: Module + 'static {
    /// # Panics
    /// If the network takes another kind of input.
    fn forward(&self, x: impl Into<Input>, pass: &quant::Pass) -> Tensor<2>;
}
