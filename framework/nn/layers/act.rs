//! Activations on grids.

use super::{BatchNorm, Conv2d, conv_norm};
use crate::ops::{self, Act};
use crate::quant::{Activation, ActivationQuantizer, Pass, Quant};
use burn::module::Module;
use burn::tensor::{Device, Tensor};

/// An activation and what puts it on a grid. What is not a clamp has its input on one, too: the integer engine then looks
/// its result up in a table of 256, which costs nothing behind a convolution.
#[derive(Module, Debug)]
pub struct ActQuantizer {
    pub before: Option<ActivationQuantizer>,
    pub after: ActivationQuantizer,
    #[module(skip)]
    pub act: Act,
}

impl ActQuantizer {
    pub fn new(act: Act, device: &Device) -> ActQuantizer {
        let rectifies = matches!(act, Act::Relu | Act::Relu6);
        let clamps = rectifies || act == Act::None;
        ActQuantizer {
            before: (!clamps).then(|| ActivationQuantizer::new(device)),
            after: match rectifies {
                true => ActivationQuantizer::behind_relu(device),
                false => ActivationQuantizer::new(device),
            },
            act,
        }
    }

    /// The activation of `y`.
    pub fn forward<const D: usize>(&self, y: Tensor<D>, pass: &Pass) -> Activation<D> {
        let y = match &self.before {
            Some(before) => before.forward(y, pass).x,
            None => y,
        };
        self.after.forward(if self.act == Act::None { y } else { ops::activation(y, self.act) }, pass)
    }

    /// Convolution, batch norm, the residual, and the activation.
    pub fn conv_norm(
        &self,
        x: &Activation<4>,
        conv: &Conv2d,
        norm: &BatchNorm,
        residual: Option<Tensor<4>>,
        pass: &Pass,
    ) -> Activation<4> {
        match &self.before {
            Some(before) if pass.quant != Quant::Off => {
                let y = conv_norm(x, conv, norm, residual, Act::None, before, pass);
                self.after.forward(ops::activation(y.x, self.act), pass)
            }
            _ => conv_norm(x, conv, norm, residual, self.act, &self.after, pass),
        }
    }
}
