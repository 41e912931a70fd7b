//! EfficientNet-Lite (Tan and Le, 2019, arXiv:1905.11946; the Lite variants of google/automl): inverted bottlenecks
//! without squeeze-and-excitation, ReLU6.
//!
//! Parameter names are those of the PyTorch checkpoints converted from TensorFlow (`efficientnet_lite0_pytorch`):
//! `_conv_stem`, `_bn0`, `_blocks.1._expand_conv`, `_blocks.1._bn0`, `_depthwise_conv`, `_bn1`, `_project_conv`, `_bn2`,
//! `_conv_head`, `_bn1`, `_fc`. Padding and batch norm are TensorFlow's too.

use crate::inverted::channels;
use burn::module::Module;
use burn::tensor::Tensor;
use lacuna_nn::layers::{Act, BatchNorm, Conv2d, Init, Linear, Padding, conv_norm, global_average_pool};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Pass};
use lacuna_nn::{Classifier, Input};

/// One size of the family.
#[derive(Clone, Copy, Debug)]
pub struct EfficientNetSize {
    pub name: &'static str,
    pub classes: usize,
    /// Height and width of the images that it was trained for.
    pub image: usize,
    /// Channels in multiples of those of [`STAGES`].
    pub width: f64,
    /// Blocks in multiples of those of [`STAGES`].
    pub depth: f64,
}

const fn lite(name: &'static str, image: usize, width: f64, depth: f64) -> EfficientNetSize {
    EfficientNetSize { name, classes: 1000, image, width, depth }
}

pub const EFFICIENTNET_SIZES: &[EfficientNetSize] = &[
    lite("efficientnet_lite0", 224, 1.0, 1.0),
    lite("efficientnet_lite1", 240, 1.0, 1.1),
    lite("efficientnet_lite2", 260, 1.1, 1.2),
    lite("efficientnet_lite3", 280, 1.2, 1.4),
    lite("efficientnet_lite4", 300, 1.4, 1.8),
];

/// Blocks of one stage: how many, window, stride of the first, expansion, channels.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    pub blocks: usize,
    pub kernel: usize,
    pub stride: usize,
    pub expand: usize,
    pub channels: usize,
}

const fn stage(blocks: usize, kernel: usize, stride: usize, expand: usize, channels: usize) -> Stage {
    Stage { blocks, kernel, stride, expand, channels }
}

pub const STAGES: [Stage; 7] = [
    stage(1, 3, 1, 1, 16),
    stage(2, 3, 2, 6, 24),
    stage(2, 5, 2, 6, 40),
    stage(3, 3, 2, 6, 80),
    stage(3, 5, 1, 6, 112),
    stage(4, 5, 2, 6, 192),
    stage(1, 3, 1, 6, 320),
];

/// The Lite variants do not scale the first and the last convolution.
const STEM: usize = 32;
const HEAD: usize = 1280;

impl EfficientNetSize {
    /// The Lite variants do not repeat the blocks of the first and the last stage more often.
    fn blocks(&self, i: usize) -> usize {
        let blocks = STAGES[i].blocks;
        if i == 0 || i + 1 == STAGES.len() { blocks } else { (blocks as f64 * self.depth).ceil() as usize }
    }
}

fn same(conv: Conv2d) -> Conv2d {
    conv.with_padding(Padding::Same)
}

fn norm(channels: usize, init: &mut Init) -> BatchNorm {
    BatchNorm::new(channels, init).with(1e-3, 0.01)
}

/// A pointwise convolution to more channels, a depthwise one, and a pointwise one to fewer, around a shortcut where input
/// and output have one shape. The first is absent if it would not widen.
#[derive(Module, Debug)]
pub struct Block {
    pub _expand_conv: Option<Conv2d>,
    pub _bn0: Option<BatchNorm>,
    pub act0: Option<ActivationQuantizer>,
    pub _depthwise_conv: Conv2d,
    pub _bn1: BatchNorm,
    pub act1: ActivationQuantizer,
    pub _project_conv: Conv2d,
    pub _bn2: BatchNorm,
    pub output: ActivationQuantizer,
    pub shortcut: bool,
}

impl Block {
    fn new(c_in: usize, c_out: usize, kernel: usize, stride: usize, expand: usize, init: &mut Init) -> Block {
        let (wide, widens) = (c_in * expand, expand != 1);
        Block {
            _expand_conv: widens.then(|| same(Conv2d::new(c_in, wide, 1, 1, init))),
            _bn0: widens.then(|| norm(wide, init)),
            act0: widens.then(|| ActivationQuantizer::behind_relu(&init.device)),
            _depthwise_conv: same(Conv2d::depthwise(wide, kernel, stride, init)),
            _bn1: norm(wide, init),
            act1: ActivationQuantizer::behind_relu(&init.device),
            _project_conv: same(Conv2d::new(wide, c_out, 1, 1, init)),
            _bn2: norm(c_out, init),
            output: ActivationQuantizer::new(&init.device),
            shortcut: stride == 1 && c_in == c_out,
        }
    }

    fn forward(&self, x: Activation<4>, pass: &Pass) -> Activation<4> {
        let (x, residual) = match self.shortcut {
            true => {
                let (x, skip) = x.fork();
                (x, Some(skip.x))
            }
            false => (x, None),
        };
        let y = match (&self._expand_conv, &self._bn0, &self.act0) {
            (Some(conv), Some(norm), Some(act)) => conv_norm(&x, conv, norm, None, Act::Relu6, act, pass),
            _ => x,
        };
        let y = conv_norm(&y, &self._depthwise_conv, &self._bn1, None, Act::Relu6, &self.act1, pass);
        conv_norm(&y, &self._project_conv, &self._bn2, residual, Act::None, &self.output, pass)
    }
}

/// Images [n, 3, h, w] to logits [n, classes].
#[derive(Module, Debug)]
pub struct EfficientNet {
    pub input: ActivationQuantizer,
    pub _conv_stem: Conv2d,
    pub _bn0: BatchNorm,
    pub act0: ActivationQuantizer,
    pub _blocks: Vec<Block>,
    pub _conv_head: Conv2d,
    pub _bn1: BatchNorm,
    pub act1: ActivationQuantizer,
    pub pool: ActivationQuantizer,
    pub _fc: Linear,
}

impl EfficientNet {
    pub fn new(size: &EfficientNetSize, init: &mut Init) -> EfficientNet {
        let device = init.device.clone();
        let quantizer = || ActivationQuantizer::new(&device);
        let stem = same(Conv2d::new(3, STEM, 3, 2, init));
        let stem_norm = norm(STEM, init);
        let mut c_in = STEM;
        let mut blocks = Vec::new();
        for (i, stage) in STAGES.iter().enumerate() {
            let c_out = channels(stage.channels as f64 * size.width);
            for b in 0..size.blocks(i) {
                let stride = if b == 0 { stage.stride } else { 1 };
                blocks.push(Block::new(c_in, c_out, stage.kernel, stride, stage.expand, init));
                c_in = c_out;
            }
        }
        EfficientNet {
            input: quantizer(),
            _conv_stem: stem,
            _bn0: stem_norm,
            act0: ActivationQuantizer::behind_relu(&device),
            _blocks: blocks,
            _conv_head: same(Conv2d::new(c_in, HEAD, 1, 1, init)),
            _bn1: norm(HEAD, init),
            act1: ActivationQuantizer::behind_relu(&device),
            pool: quantizer(),
            _fc: Linear::new(HEAD, size.classes, init),
        }
    }
}

impl Classifier for EfficientNet {
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        let x = self.input.forward(x.into().images(), pass);
        let mut x = conv_norm(&x, &self._conv_stem, &self._bn0, None, Act::Relu6, &self.act0, pass);
        for block in &self._blocks {
            x = block.forward(x, pass);
        }
        let x = conv_norm(&x, &self._conv_head, &self._bn1, None, Act::Relu6, &self.act1, pass);
        let pooled = self.pool.forward(global_average_pool(x.x), pass);
        let [n, c, _, _] = pooled.x.dims();
        self._fc.forward(&pooled.map(|x| x.reshape([n, c])), pass)
    }
}
