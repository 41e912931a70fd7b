//! Residual networks (He et al., 2016): the small ones for 28x28 and 32x32 images.
//!
//! Parameter names are torchvision's: `conv1`, `bn1`, `layer1.0.conv1`, ..., `layer2.0.downsample.0`, `fc`.

use burn::module::Module;
use burn::tensor::Tensor;
use lacuna_nn::Classifier;
use lacuna_nn::layers::{BatchNorm, Conv2d, Init, Linear, conv_norm, global_average_pool};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Pass};

/// One size of the family.
#[derive(Clone, Copy, Debug)]
pub struct ResNetSize {
    pub name: &'static str,
    pub in_channels: usize,
    pub classes: usize,
    pub stem_stride: usize,
    /// Channels and blocks of each stage; every stage but the first halves the image.
    pub stages: [(usize, usize); 3],
}

/// The small networks of section 4.2 of the paper (20 layers), for 28x28 grey and 32x32 colour images. The 28x28 one
/// halves the image in its stem: a quarter of the arithmetic for a few tenths of a point on Fashion-MNIST.
pub const RESNET_SIZES: &[ResNetSize] = &[
    ResNetSize {
        name: "resnet20",
        in_channels: 1,
        classes: 10,
        stem_stride: 2,
        stages: [(16, 3), (32, 3), (64, 3)],
    },
    ResNetSize {
        name: "resnet20_cifar",
        in_channels: 3,
        classes: 10,
        stem_stride: 1,
        stages: [(16, 3), (32, 3), (64, 3)],
    },
];

/// Two 3x3 convolutions around a shortcut.
#[derive(Module, Debug)]
pub struct BasicBlock {
    pub conv1: Conv2d,
    pub bn1: BatchNorm,
    pub act1: ActivationQuantizer,
    pub conv2: Conv2d,
    pub bn2: BatchNorm,
    pub downsample: Option<(Conv2d, BatchNorm)>,
    pub downsample_quantizer: Option<ActivationQuantizer>,
    pub act2: ActivationQuantizer,
}

impl BasicBlock {
    fn new(c_in: usize, c_out: usize, stride: usize, init: &mut Init) -> BasicBlock {
        let shortcut = stride != 1 || c_in != c_out;
        BasicBlock {
            conv1: Conv2d::new(c_in, c_out, 3, stride, init),
            bn1: BatchNorm::new(c_out, init),
            act1: ActivationQuantizer::new(&init.device),
            conv2: Conv2d::new(c_out, c_out, 3, 1, init),
            bn2: BatchNorm::new(c_out, init),
            downsample: shortcut
                .then(|| (Conv2d::new(c_in, c_out, 1, stride, init), BatchNorm::new(c_out, init))),
            downsample_quantizer: shortcut.then(|| ActivationQuantizer::new(&init.device)),
            act2: ActivationQuantizer::new(&init.device),
        }
    }

    fn forward(&self, x: Activation<4>, pass: &Pass) -> Activation<4> {
        let y = self.act1.forward(conv_norm(&x, &self.conv1, &self.bn1, None, true, pass), pass);
        let shortcut = match (&self.downsample, &self.downsample_quantizer) {
            (Some((conv, norm)), Some(quantizer)) => {
                quantizer.forward(conv_norm(&x, conv, norm, None, false, pass), pass).x
            }
            _ => x.x,
        };
        self.act2.forward(conv_norm(&y, &self.conv2, &self.bn2, Some(shortcut), true, pass), pass)
    }
}

/// Images [n, channels, h, w] to logits [n, classes].
#[derive(Module, Debug)]
pub struct ResNet {
    pub input: ActivationQuantizer,
    pub conv1: Conv2d,
    pub bn1: BatchNorm,
    pub act1: ActivationQuantizer,
    pub layer1: Vec<BasicBlock>,
    pub layer2: Vec<BasicBlock>,
    pub layer3: Vec<BasicBlock>,
    pub pool: ActivationQuantizer,
    pub fc: Linear,
}

impl ResNet {
    pub fn new(size: &ResNetSize, init: &mut Init) -> ResNet {
        let [(c1, n1), (c2, n2), (c3, n3)] = size.stages;
        let stage = |c_in: usize, c_out: usize, blocks: usize, stride: usize, init: &mut Init| {
            (0..blocks)
                .map(|i| {
                    BasicBlock::new(
                        if i == 0 { c_in } else { c_out },
                        c_out,
                        if i == 0 { stride } else { 1 },
                        init,
                    )
                })
                .collect::<Vec<_>>()
        };
        ResNet {
            input: ActivationQuantizer::new(&init.device),
            conv1: Conv2d::new(size.in_channels, c1, 3, size.stem_stride, init),
            bn1: BatchNorm::new(c1, init),
            act1: ActivationQuantizer::new(&init.device),
            layer1: stage(c1, c1, n1, 1, init),
            layer2: stage(c1, c2, n2, 2, init),
            layer3: stage(c2, c3, n3, 2, init),
            pool: ActivationQuantizer::new(&init.device),
            fc: Linear::new(c3, size.classes, init),
        }
    }
}

impl Classifier for ResNet {
    fn forward(&self, x: Tensor<4>, pass: &Pass) -> Tensor<2> {
        let x = self.input.forward(x, pass);
        let mut x = self.act1.forward(conv_norm(&x, &self.conv1, &self.bn1, None, true, pass), pass);
        for block in self.layer1.iter().chain(&self.layer2).chain(&self.layer3) {
            x = block.forward(x, pass);
        }
        let pooled = self.pool.forward(global_average_pool(x.x), pass);
        let [n, c, _, _] = pooled.x.dims();
        self.fc.forward(&Activation { x: pooled.x.reshape([n, c]), scale: pooled.scale }, pass)
    }
}
