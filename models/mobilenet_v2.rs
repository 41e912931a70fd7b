//! MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381): inverted bottlenecks with ReLU6.
//!
//! Parameter names are torchvision's: `features.0.0`, `features.2.conv.0.0`, `features.2.conv.2`, `classifier.1`.

use crate::inverted::{self, ConvBlock, Feature, Head, Part, channels, pooled_features};
use burn::module::Module;
use burn::tensor::Tensor;
use lacuna_nn::layers::{Act, ActQuantizer, BatchNorm, Conv2d, Init, Linear};
use lacuna_nn::quant::{ActivationQuantizer, Pass};
use lacuna_nn::{Classifier, Input};

/// One size of the family.
#[derive(Clone, Copy, Debug)]
pub struct MobileNetV2Size {
    pub name: &'static str,
    pub classes: usize,
    /// Channels in multiples of those of [`STAGES`].
    pub width: f64,
}

pub const MOBILENET_V2_SIZES: &[MobileNetV2Size] =
    &[MobileNetV2Size { name: "mobilenet_v2", classes: 1000, width: 1.0 }];

/// Table 2 of the paper: expansion, channels, blocks, stride of the first.
const STAGES: [(usize, usize, usize, usize); 7] = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
];
const STEM: usize = 32;
const HEAD: usize = 1280;

/// Images [n, 3, h, w] to logits [n, classes].
#[derive(Module, Debug)]
pub struct MobileNetV2 {
    pub input: ActivationQuantizer,
    pub features: Vec<Feature>,
    pub stem: ActQuantizer,
    pub last: ActQuantizer,
    pub pool: ActivationQuantizer,
    pub classifier: Head,
}

fn block(c_in: usize, c_out: usize, expand: usize, stride: usize, init: &mut Init) -> ConvBlock {
    let wide = c_in * expand;
    let mut conv = Vec::new();
    if expand != 1 {
        conv.push(Part::ConvNorm((Conv2d::new(c_in, wide, 1, 1, init), BatchNorm::new(wide, init))));
    }
    conv.push(Part::ConvNorm((Conv2d::depthwise(wide, 3, stride, init), BatchNorm::new(wide, init))));
    let acts = inverted::activations(conv.len() + 1, Act::Relu6, &init.device);
    conv.push(Part::Conv(Conv2d::new(wide, c_out, 1, 1, init)));
    conv.push(Part::Norm(BatchNorm::new(c_out, init)));
    ConvBlock { conv, acts, shortcut: stride == 1 && c_in == c_out }
}

impl MobileNetV2 {
    pub fn new(size: &MobileNetV2Size, init: &mut Init) -> MobileNetV2 {
        let scaled = |c: usize| channels(c as f64 * size.width);
        let stem = scaled(STEM);
        let mut features =
            vec![Feature::ConvNorm((Conv2d::new(3, stem, 3, 2, init), BatchNorm::new(stem, init)))];
        let mut c_in = stem;
        for (expand, c_out, blocks, stride) in STAGES {
            let c_out = scaled(c_out);
            for b in 0..blocks {
                let stride = if b == 0 { stride } else { 1 };
                features.push(Feature::ConvBlock(block(c_in, c_out, expand, stride, init)));
                c_in = c_out;
            }
        }
        // Narrow networks keep the full width at the end.
        let head = channels(HEAD as f64 * size.width.max(1.0));
        features.push(Feature::ConvNorm((Conv2d::new(c_in, head, 1, 1, init), BatchNorm::new(head, init))));
        let quantizer = || ActivationQuantizer::new(&init.device);
        let act = || ActQuantizer::new(Act::Relu6, &init.device);
        let (input, stem, last, pool) = (quantizer(), act(), act(), quantizer());
        let classifier = Head { fc: Linear::new(head, size.classes, init) };
        MobileNetV2 { input, features, stem, last, pool, classifier }
    }
}

impl Classifier for MobileNetV2 {
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        let x = self.input.forward(x.into().images(), pass);
        let x = pooled_features(&self.features, [&self.stem, &self.last], &self.pool, x, pass);
        self.classifier.fc.forward(&x, pass)
    }
}
