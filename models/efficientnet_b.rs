//! EfficientNet B0 to B7 (Tan and Le, 2019, arXiv:1905.11946): inverted bottlenecks with squeeze-and-excitation and SiLU,
//! wider and deeper by size.
//!
//! Parameter names, padding and batch norms are torchvision's: `features.0.0`, `features.2.0.block.0.0`,
//! `features.2.0.block.2.fc1`, `classifier.1`. Weights that were trained in TensorFlow pad otherwise and do not fit here,
//! whatever their names. Stochastic depth and dropout, which have no parameters, are left out.

use crate::efficientnet::STAGES;
use crate::inverted::{self, Block, Feature, Head, Part, channels, pooled_features};
use burn::module::Module;
use burn::tensor::Tensor;
use lacuna_nn::layers::{Act, ActQuantizer, BatchNorm, Conv2d, Gate, Init, Linear, SqueezeExcite};
use lacuna_nn::quant::{ActivationQuantizer, Pass};
use lacuna_nn::{Classifier, Input};

/// One size of the family.
#[derive(Clone, Copy, Debug)]
pub struct EfficientNetBSize {
    pub name: &'static str,
    pub classes: usize,
    /// Height and width of the images that it was trained for.
    pub image: usize,
    /// Channels and blocks in multiples of those of [`STAGES`].
    pub width: f64,
    pub depth: f64,
    /// Batch norms of the large sizes: eps and momentum 1e-3 and 0.01, not 1e-5 and 0.1.
    pub large: bool,
}

const fn size(name: &'static str, image: usize, width: f64, depth: f64, large: bool) -> EfficientNetBSize {
    EfficientNetBSize { name, classes: 1000, image, width, depth, large }
}

pub const EFFICIENTNET_B_SIZES: &[EfficientNetBSize] = &[
    size("efficientnet_b0", 224, 1.0, 1.0, false),
    size("efficientnet_b1", 240, 1.0, 1.1, false),
    size("efficientnet_b2", 288, 1.1, 1.2, false),
    size("efficientnet_b3", 300, 1.2, 1.4, false),
    size("efficientnet_b4", 380, 1.4, 1.8, false),
    size("efficientnet_b5", 456, 1.6, 2.2, true),
    size("efficientnet_b6", 528, 1.8, 2.6, true),
    size("efficientnet_b7", 600, 2.0, 3.1, true),
];

const STEM: usize = 32;

/// Images [n, 3, h, w] to logits [n, classes].
#[derive(Module, Debug)]
pub struct EfficientNetB {
    pub input: ActivationQuantizer,
    pub features: Vec<Feature>,
    pub stem: ActQuantizer,
    pub last: ActQuantizer,
    pub pool: ActivationQuantizer,
    pub classifier: Head,
}

/// Makes layers with the batch norms of one size.
struct Maker<'a> {
    large: bool,
    init: &'a mut Init,
}

impl Maker<'_> {
    fn layer(&mut self, conv: fn(&mut Init, [usize; 4]) -> Conv2d, shape: [usize; 4]) -> (Conv2d, BatchNorm) {
        let norm = BatchNorm::new(shape[1], self.init);
        (conv(self.init, shape), if self.large { norm.with(1e-3, 0.01) } else { norm })
    }

    /// Shape: channels in and out, window, stride.
    fn dense(&mut self, shape: [usize; 4]) -> (Conv2d, BatchNorm) {
        self.layer(
            |init, [c_in, c_out, kernel, stride]| Conv2d::new(c_in, c_out, kernel, stride, init),
            shape,
        )
    }

    fn depthwise(&mut self, channels: usize, kernel: usize, stride: usize) -> (Conv2d, BatchNorm) {
        let conv =
            |init: &mut Init, [_, c, kernel, stride]: [usize; 4]| Conv2d::depthwise(c, kernel, stride, init);
        self.layer(conv, [channels, channels, kernel, stride])
    }

    fn block(&mut self, c_in: usize, c_out: usize, expand: usize, kernel: usize, stride: usize) -> Block {
        let wide = c_in * expand;
        let mut block = Vec::new();
        if expand != 1 {
            block.push(Part::ConvNorm(self.dense([c_in, wide, 1, 1])));
        }
        block.push(Part::ConvNorm(self.depthwise(wide, kernel, stride)));
        let acts = inverted::activations(block.len() + 1, Act::Silu, &self.init.device);
        let squeezed = (c_in / 4).max(1);
        block.push(Part::Excite(SqueezeExcite::new(wide, squeezed, Act::Silu, Gate::Sigmoid, self.init)));
        block.push(Part::ConvNorm(self.dense([wide, c_out, 1, 1])));
        Block { block, acts, shortcut: stride == 1 && c_in == c_out }
    }
}

impl EfficientNetB {
    pub fn new(size: &EfficientNetBSize, init: &mut Init) -> EfficientNetB {
        let device = init.device.clone();
        let mut maker = Maker { large: size.large, init };
        let mut c_in = channels(STEM as f64 * size.width);
        let mut features = vec![Feature::ConvNorm(maker.dense([3, c_in, 3, 2]))];
        for stage in &STAGES {
            let c_out = channels(stage.channels as f64 * size.width);
            let blocks = (stage.blocks as f64 * size.depth).ceil() as usize;
            let mut made = Vec::with_capacity(blocks);
            for b in 0..blocks {
                let stride = if b == 0 { stage.stride } else { 1 };
                made.push(maker.block(c_in, c_out, stage.expand, stage.kernel, stride));
                c_in = c_out;
            }
            features.push(Feature::Stage(made));
        }
        let last = 4 * c_in;
        features.push(Feature::ConvNorm(maker.dense([c_in, last, 1, 1])));
        let classifier = Head { fc: Linear::new(last, size.classes, maker.init) };
        let quantizer = || ActivationQuantizer::new(&device);
        let act = || ActQuantizer::new(Act::Silu, &device);
        EfficientNetB {
            input: quantizer(),
            features,
            stem: act(),
            last: act(),
            pool: quantizer(),
            classifier,
        }
    }
}

impl Classifier for EfficientNetB {
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        let x = self.input.forward(x.into().images(), pass);
        let x = pooled_features(&self.features, [&self.stem, &self.last], &self.pool, x, pass);
        self.classifier.fc.forward(&x, pass)
    }
}
