//! f32 kernels on plain slices: what training and the engine both compute with. No burn, no graph, no files.
//!
//! Images are NHWC, weights as PyTorch stores them; every result is written into a slice of the caller's. Work is cut
//! into tasks by shape alone and every sum is taken in a fixed order, so that results are the same bytes on any number of
//! threads. Each kernel has a portable form and faster ones by instruction set ([`isa`]).

pub mod activation;
pub mod add;
pub mod attention;
pub mod batch_norm;
pub mod conv;
pub mod depthwise;
pub mod embedding;
pub mod fake_quant;
pub mod gemm;
pub mod isa;
pub mod lanes;
pub mod layer_norm;
pub mod loss;
pub mod optimizer;
pub mod pool;
mod scratch;
pub mod shape;
pub mod shared;
pub mod softmax;
pub mod sparse;
mod stream;
mod tasks;
pub mod transpose;
mod vector;
pub mod winograd;

pub use shape::ConvShape;
