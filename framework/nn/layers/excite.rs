//! Squeeze-and-excitation (Hu et al., 2018, arXiv:1709.01507): every channel is multiplied by a number between 0 and 1 that
//! two small layers make of the means of all channels.

use super::{ActQuantizer, BiasedConv, Init};
use crate::ops::{self, Act};
use crate::quant::{Activation, ActivationQuantizer, Pass};
use burn::module::Module;
use burn::tensor::activation::{hard_sigmoid, sigmoid};

/// What makes numbers between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    Sigmoid,
    /// clamp(x / 6 + 1/2, 0, 1)
    HardSigmoid,
}

/// `fc1` and `fc2` are 1x1 convolutions, as in torchvision.
#[derive(Module, Debug)]
pub struct SqueezeExcite {
    pub fc1: BiasedConv,
    pub fc2: BiasedConv,
    pub pool: ActivationQuantizer,
    pub act: ActQuantizer,
    pub gate_input: ActivationQuantizer,
    pub gate: ActivationQuantizer,
    pub output: ActivationQuantizer,
    #[module(skip)]
    pub kind: Gate,
}

impl SqueezeExcite {
    /// Of `channels`, with `squeezed` between the two layers and `inner` behind the first.
    pub fn new(channels: usize, squeezed: usize, inner: Act, kind: Gate, init: &mut Init) -> SqueezeExcite {
        SqueezeExcite {
            fc1: BiasedConv::new(channels, squeezed, 1, init),
            fc2: BiasedConv::new(squeezed, channels, 1, init),
            pool: ActivationQuantizer::new(&init.device),
            act: ActQuantizer::new(inner, &init.device),
            gate_input: ActivationQuantizer::new(&init.device),
            gate: ActivationQuantizer::new(&init.device),
            output: ActivationQuantizer::new(&init.device),
            kind,
        }
    }

    pub fn forward(&self, x: Activation<4>, pass: &Pass) -> Activation<4> {
        let (x, squeezed) = x.fork();
        let y = self.pool.forward(ops::global_average_pool(squeezed.x), pass);
        let y = self.act.forward(self.fc1.forward(&y, pass), pass);
        let y = self.gate_input.forward(self.fc2.forward(&y, pass), pass).x;
        let y = match self.kind {
            Gate::Sigmoid => sigmoid(y),
            Gate::HardSigmoid => hard_sigmoid(y, 1.0 / 6.0, 0.5),
        };
        let gate = self.gate.forward(y, pass);
        self.output.forward(x.x * gate.x, pass)
    }
}
