//! MobileNet (Howard et al., 2017, arXiv:1704.04861): a depthwise and a pointwise convolution in place of every 3x3 one.
//!
//! Parameter names are those of SparseML's MobileNet, which the published recipes for it are written for: `input.conv`,
//! `input.bn`, `sections.1.0.depth.conv`, `sections.1.0.point.bn`, ..., `classifier.fc`.

use burn::module::Module;
use burn::tensor::Tensor;
use lacuna_nn::layers::{Act, BatchNorm, Conv2d, Init, Linear, conv_norm, global_average_pool};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Pass};
use lacuna_nn::{Classifier, Input};

/// One size of the family.
#[derive(Clone, Copy, Debug)]
pub struct MobileNetSize {
    pub name: &'static str,
    pub classes: usize,
    /// Share of the channels of the paper's table 1, in hundredths.
    pub width_percent: usize,
}

pub const MOBILENET_SIZES: &[MobileNetSize] = &[
    MobileNetSize { name: "mobilenet_v1", classes: 1000, width_percent: 100 },
    MobileNetSize { name: "mobilenet_v1_075", classes: 1000, width_percent: 75 },
    MobileNetSize { name: "mobilenet_v1_050", classes: 1000, width_percent: 50 },
    MobileNetSize { name: "mobilenet_v1_025", classes: 1000, width_percent: 25 },
];

/// Channels of the first convolution.
pub(crate) const STEM: usize = 32;

/// Channels, blocks, and stride of the first block of each section.
pub(crate) const SECTIONS: [(usize, usize, usize); 5] =
    [(64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2)];

/// Convolution, batch norm, ReLU.
#[derive(Module, Debug)]
pub struct ConvNorm {
    pub conv: Conv2d,
    pub bn: BatchNorm,
    pub act: ActivationQuantizer,
}

impl ConvNorm {
    fn new(conv: Conv2d, init: &mut Init) -> ConvNorm {
        let c_out = conv.weight.dims()[0];
        ConvNorm {
            conv,
            bn: BatchNorm::new(c_out, init),
            act: ActivationQuantizer::behind_relu(&init.device),
        }
    }

    fn forward(&self, x: &Activation<4>, pass: &Pass) -> Activation<4> {
        conv_norm(x, &self.conv, &self.bn, None, Act::Relu, &self.act, pass)
    }
}

/// A filter per channel, then a mixture of channels.
#[derive(Module, Debug)]
pub struct Block {
    pub depth: ConvNorm,
    pub point: ConvNorm,
}

/// The linear layer, under its published name.
#[derive(Module, Debug)]
pub struct Head {
    pub pool: ActivationQuantizer,
    pub fc: Linear,
}

/// Images [n, 3, h, w] to logits [n, classes].
#[derive(Module, Debug)]
pub struct MobileNet {
    pub image: ActivationQuantizer,
    pub input: ConvNorm,
    pub sections: Vec<Vec<Block>>,
    pub classifier: Head,
}

impl MobileNet {
    pub fn new(size: &MobileNetSize, init: &mut Init) -> MobileNet {
        let scaled = |channels: usize| channels * size.width_percent / 100;
        let mut channels = scaled(STEM);
        let input = ConvNorm::new(Conv2d::new(3, channels, 3, 2, init), init);
        let mut block = |c_out: usize, stride: usize| {
            let depth = ConvNorm::new(Conv2d::depthwise(channels, 3, stride, init), init);
            let point = ConvNorm::new(Conv2d::new(channels, c_out, 1, 1, init), init);
            channels = c_out;
            Block { depth, point }
        };
        let mut section = |(c_out, blocks, stride): (usize, usize, usize)| -> Vec<Block> {
            (0..blocks).map(|b| block(scaled(c_out), if b == 0 { stride } else { 1 })).collect()
        };
        let sections = SECTIONS.into_iter().map(&mut section).collect();
        let classifier = Head {
            pool: ActivationQuantizer::new(&init.device),
            fc: Linear::new(channels, size.classes, init),
        };
        MobileNet { image: ActivationQuantizer::new(&init.device), input, sections, classifier }
    }
}

impl Classifier for MobileNet {
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        let x = self.image.forward(x.into().images(), pass);
        let mut x = self.input.forward(&x, pass);
        for block in self.sections.iter().flatten() {
            x = block.point.forward(&block.depth.forward(&x, pass), pass);
        }
        let Head { pool, fc } = &self.classifier;
        let pooled = pool.forward(global_average_pool(x.x), pass);
        let [n, c, _, _] = pooled.x.dims();
        fc.forward(&pooled.map(|x| x.reshape([n, c])), pass)
    }
}
