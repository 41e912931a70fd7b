//! Neural-network layers on burn that can be masked, quantised, and captured into a [`lacuna_ir::Graph`].

pub mod buffer;
pub mod layers;
pub mod mark;
pub mod ops;
pub mod params;
pub mod quant;
