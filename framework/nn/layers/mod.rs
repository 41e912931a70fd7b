//! Layers that can be masked and quantised. They hold parameters under the names and in the layouts of PyTorch
//! (`weight`, `bias`, `running_mean`, `running_var`; Linear weights [out, in]), so that a published state dict fits
//! without renaming. A convolution and the batch norm behind it are computed together ([`conv_norm`]), because
//! quantisation has to see the folded weight.

mod act;
mod biased;
mod conv;
mod dense;
mod excite;
mod init;
mod transposed;
mod upsample;

pub use crate::ops::{Act, activation, attention, global_average_pool, max_pool2d};
pub use act::ActQuantizer;
pub use biased::BiasedConv;
pub use conv::{BatchNorm, Conv2d, Padding, conv_norm};
pub use dense::{Embedding, LayerNorm, Linear};
pub use excite::{Gate, SqueezeExcite};
pub use init::Init;
pub use transposed::ConvTranspose2d;
pub use upsample::{resize_bilinear, upsample_nearest};
