//! MobileNetV3 (Howard et al., 2019, arXiv:1905.02244): inverted bottlenecks, some with squeeze-and-excitation, ReLU in the
//! first and hard-swish in the later ones.
//!
//! Parameter names are torchvision's: `features.0.0`, `features.4.block.0.0`, `features.4.block.2.fc1`, `classifier.0`,
//! `classifier.3`. Batch norms have its eps of 1e-3.

use crate::inverted::{self, Block, Feature, Part, channels, pooled_features};
use burn::module::Module;
use burn::tensor::Tensor;
use lacuna_nn::layers::{Act, ActQuantizer, BatchNorm, Conv2d, Gate, Init, Linear, SqueezeExcite};
use lacuna_nn::quant::{ActivationQuantizer, Pass};
use lacuna_nn::{Classifier, Input, named_module};

/// One block: window, channels inside and out, squeeze-and-excitation, hard-swish, stride.
#[derive(Clone, Copy, Debug)]
pub struct Bneck(pub usize, pub usize, pub usize, pub bool, pub bool, pub usize);

/// One size of the family.
#[derive(Clone, Copy, Debug)]
pub struct MobileNetV3Size {
    pub name: &'static str,
    pub classes: usize,
    /// Channels in multiples of those of `blocks`.
    pub width: f64,
    pub blocks: &'static [Bneck],
    /// Between the two linear layers.
    pub hidden: usize,
}

/// Table 1 of the paper.
pub const LARGE: &[Bneck] = &[
    Bneck(3, 16, 16, false, false, 1),
    Bneck(3, 64, 24, false, false, 2),
    Bneck(3, 72, 24, false, false, 1),
    Bneck(5, 72, 40, true, false, 2),
    Bneck(5, 120, 40, true, false, 1),
    Bneck(5, 120, 40, true, false, 1),
    Bneck(3, 240, 80, false, true, 2),
    Bneck(3, 200, 80, false, true, 1),
    Bneck(3, 184, 80, false, true, 1),
    Bneck(3, 184, 80, false, true, 1),
    Bneck(3, 480, 112, true, true, 1),
    Bneck(3, 672, 112, true, true, 1),
    Bneck(5, 672, 160, true, true, 2),
    Bneck(5, 960, 160, true, true, 1),
    Bneck(5, 960, 160, true, true, 1),
];

/// Table 2 of the paper.
pub const SMALL: &[Bneck] = &[
    Bneck(3, 16, 16, true, false, 2),
    Bneck(3, 72, 24, false, false, 2),
    Bneck(3, 88, 24, false, false, 1),
    Bneck(5, 96, 40, true, true, 2),
    Bneck(5, 240, 40, true, true, 1),
    Bneck(5, 240, 40, true, true, 1),
    Bneck(5, 120, 48, true, true, 1),
    Bneck(5, 144, 48, true, true, 1),
    Bneck(5, 288, 96, true, true, 2),
    Bneck(5, 576, 96, true, true, 1),
    Bneck(5, 576, 96, true, true, 1),
];

pub const MOBILENET_V3_SIZES: &[MobileNetV3Size] = &[
    MobileNetV3Size { name: "mobilenet_v3_small", classes: 1000, width: 1.0, blocks: SMALL, hidden: 1024 },
    MobileNetV3Size { name: "mobilenet_v3_large", classes: 1000, width: 1.0, blocks: LARGE, hidden: 1280 },
];

pub(crate) const STEM: usize = 16;
/// Of batch norms.
pub(crate) const EPS: f64 = 1e-3;

/// Two linear layers; an activation and a dropout stand between them in torchvision's list.
#[derive(Clone, Debug)]
pub struct Head {
    pub hidden: Linear,
    pub fc: Linear,
}

named_module!(Head { hidden => "0", fc => "3" });

/// Images [n, 3, h, w] to logits [n, classes].
#[derive(Module, Debug)]
pub struct MobileNetV3 {
    pub input: ActivationQuantizer,
    pub features: Vec<Feature>,
    pub stem: ActQuantizer,
    pub last: ActQuantizer,
    pub pool: ActivationQuantizer,
    pub classifier: Head,
    pub hidden: ActQuantizer,
}

/// Share of a new batch in the running statistics.
const MOMENTUM: f64 = 0.01;

fn norm(channels: usize, init: &mut Init) -> BatchNorm {
    BatchNorm::new(channels, init).with(EPS, MOMENTUM)
}

/// The block of a row, of `wide` channels inside.
pub fn block(b: &Bneck, [c_in, wide, c_out]: [usize; 3], momentum: f64, init: &mut Init) -> Block {
    let &Bneck(kernel, _, _, excite, swish, stride) = b;
    let act = if swish { Act::HardSwish } else { Act::Relu };
    let norm = |channels: usize, init: &mut Init| BatchNorm::new(channels, init).with(EPS, momentum);
    let mut block = Vec::new();
    if wide != c_in {
        block.push(Part::ConvNorm((Conv2d::new(c_in, wide, 1, 1, init), norm(wide, init))));
    }
    block.push(Part::ConvNorm((Conv2d::depthwise(wide, kernel, stride, init), norm(wide, init))));
    let acts = inverted::activations(block.len() + 1, act, &init.device);
    if excite {
        let squeezed = channels(wide as f64 / 4.0);
        block.push(Part::Excite(SqueezeExcite::new(wide, squeezed, Act::Relu, Gate::HardSigmoid, init)));
    }
    block.push(Part::ConvNorm((Conv2d::new(wide, c_out, 1, 1, init), norm(c_out, init))));
    Block { block, acts, shortcut: stride == 1 && c_in == c_out }
}

impl MobileNetV3 {
    pub fn new(size: &MobileNetV3Size, init: &mut Init) -> MobileNetV3 {
        let scaled = |c: usize| channels(c as f64 * size.width);
        let mut c_in = scaled(STEM);
        let mut features = vec![Feature::ConvNorm((Conv2d::new(3, c_in, 3, 2, init), norm(c_in, init)))];
        for b in size.blocks {
            let c_out = scaled(b.2);
            features.push(Feature::Block(block(b, [c_in, scaled(b.1), c_out], MOMENTUM, init)));
            c_in = c_out;
        }
        let last = 6 * c_in;
        features.push(Feature::ConvNorm((Conv2d::new(c_in, last, 1, 1, init), norm(last, init))));
        let classifier = Head {
            hidden: Linear::new(last, size.hidden, init),
            fc: Linear::new(size.hidden, size.classes, init),
        };
        let quantizer = || ActivationQuantizer::new(&init.device);
        let swish = || ActQuantizer::new(Act::HardSwish, &init.device);
        MobileNetV3 {
            input: quantizer(),
            features,
            stem: swish(),
            last: swish(),
            pool: quantizer(),
            classifier,
            hidden: swish(),
        }
    }
}

impl Classifier for MobileNetV3 {
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        let x = self.input.forward(x.into().images(), pass);
        let x = pooled_features(&self.features, [&self.stem, &self.last], &self.pool, x, pass);
        let hidden = self.hidden.forward(self.classifier.hidden.forward(&x, pass), pass);
        self.classifier.fc.forward(&hidden, pass)
    }
}
