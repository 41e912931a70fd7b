//! Layers that can be left out: those that give what they take. A row `removed` of the parameter table says whether the
//! identity stands in a layer's place, so that it is saved and exported with the weights.

use crate::buffer::Buffer;
use burn::tensor::{Device, Tensor};

/// For a layer that runs; `None` for one that cannot be left out.
pub fn new(keeps_shape: bool, device: &Device) -> Option<Buffer<1>> {
    keeps_shape.then(|| Buffer::new(Tensor::zeros([1], device)))
}

/// Whether the identity stands in the layer's place.
pub fn is_removed(removed: &Option<Buffer<1>>) -> bool {
    removed.as_ref().is_some_and(|removed| crate::quant::host(removed.get()).first() == Some(&1.0))
}
