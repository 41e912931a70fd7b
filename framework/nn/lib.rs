//! Neural-network layers on burn that can be masked, quantised, and captured into a [`lacuna_ir::Graph`].

pub mod buffer;
pub mod capture;
pub mod layers;
pub mod mark;
pub mod ops;
pub mod params;
pub mod quant;

use burn::module::Module;
use burn::tensor::Tensor;

/// A module that turns images [n, c, h, w] into logits [n, classes].
pub trait Classifier: Module + 'static {
    fn forward(&self, x: Tensor<4>, pass: &quant::Pass) -> Tensor<2>;
}
