//! Residual networks (He et al., 2016), wide ones (Zagoruyko and Komodakis, 2016) and ones with grouped convolutions (Xie
//! et al., 2017).
//!
//! Parameter names are torchvision's: `conv1`, `bn1`, `layer1.0.conv1`, ..., `layer2.0.downsample.0`, `fc`.

use burn::module::Module;
use burn::tensor::Tensor;
use lacuna_nn::buffer::Buffer;
use lacuna_nn::layers::{Act, BatchNorm, Conv2d, Init, Linear, conv_norm, global_average_pool, max_pool2d};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Pass};
use lacuna_nn::{Classifier, Input, removal};

/// What an image meets first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stem {
    /// A 3x3 convolution of that stride: for images of a few dozen pixels.
    Small { stride: usize },
    /// A 7x7 convolution and a max pool, a quarter of the size in all.
    ImageNet,
}

/// The kind of every block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1, 3x3 and 1x1 convolutions, the last to four times the channels. The middle one has `groups` groups, each of
    /// `group_width` channels for every 64 of the stage.
    Bottleneck { groups: usize, group_width: usize },
}

/// The bottleneck of the original paper.
pub const BOTTLENECK: BlockKind = BlockKind::Bottleneck { groups: 1, group_width: 64 };

/// One size of the family.
#[derive(Clone, Copy, Debug)]
pub struct ResNetSize {
    pub name: &'static str,
    pub in_channels: usize,
    pub classes: usize,
    pub stem: Stem,
    pub block: BlockKind,
    /// Channels and blocks of three or four stages; every stage but the first halves the image.
    pub stages: &'static [(usize, usize)],
}

const fn imagenet(name: &'static str, block: BlockKind, stages: &'static [(usize, usize)]) -> ResNetSize {
    ResNetSize { name, in_channels: 3, classes: 1000, stem: Stem::ImageNet, block, stages }
}

const fn small(
    name: &'static str,
    in_channels: usize,
    stride: usize,
    stages: &'static [(usize, usize)],
) -> ResNetSize {
    let stem = Stem::Small { stride };
    ResNetSize { name, in_channels, classes: 10, stem, block: BlockKind::Basic, stages }
}

const SHALLOW: &[(usize, usize)] = &[(16, 3), (32, 3), (64, 3)];
const STAGES_18: &[(usize, usize)] = &[(64, 2), (128, 2), (256, 2), (512, 2)];
pub(crate) const STAGES_50: &[(usize, usize)] = &[(64, 3), (128, 4), (256, 6), (512, 3)];
pub(crate) const STAGES_101: &[(usize, usize)] = &[(64, 3), (128, 4), (256, 23), (512, 3)];
const STAGES_152: &[(usize, usize)] = &[(64, 3), (128, 8), (256, 36), (512, 3)];
const WIDE: BlockKind = BlockKind::Bottleneck { groups: 1, group_width: 128 };

/// The small networks of section 4.2 of the paper (20 layers), for 28x28 grey and 32x32 colour images, and those of
/// section 4.1. The 28x28 one halves the image in its stem: a quarter of the arithmetic for a few tenths of a point on
/// Fashion-MNIST. ResNet-18 for 32x32 images has no other stem than one 3x3 convolution, as is usual on CIFAR-10.
pub const RESNET_SIZES: &[ResNetSize] = &[
    small("resnet20", 1, 2, SHALLOW),
    small("resnet20_cifar", 3, 1, SHALLOW),
    small("resnet18_cifar", 3, 1, STAGES_18),
    imagenet("resnet18", BlockKind::Basic, STAGES_18),
    imagenet("resnet34", BlockKind::Basic, STAGES_50),
    imagenet("resnet50", BOTTLENECK, STAGES_50),
    imagenet("resnet101", BOTTLENECK, STAGES_101),
    imagenet("resnet152", BOTTLENECK, STAGES_152),
    imagenet("wide_resnet50_2", WIDE, STAGES_50),
    imagenet("wide_resnet101_2", WIDE, STAGES_101),
    imagenet("resnext50_32x4d", BlockKind::Bottleneck { groups: 32, group_width: 4 }, STAGES_50),
];

/// Two or three convolutions around a shortcut. A basic block has no third.
#[derive(Module, Debug)]
pub struct Block {
    pub conv1: Conv2d,
    pub bn1: BatchNorm,
    pub act1: ActivationQuantizer,
    pub conv2: Conv2d,
    pub bn2: BatchNorm,
    pub conv3: Option<Conv2d>,
    pub bn3: Option<BatchNorm>,
    pub downsample: Option<(Conv2d, BatchNorm)>,
    pub downsample_quantizer: Option<ActivationQuantizer>,
    pub act2: ActivationQuantizer,
    pub act3: Option<ActivationQuantizer>,
    /// Of the whole block.
    pub removed: Option<Buffer<1>>,
}

impl Block {
    /// Of `c_in` channels, in a stage of `width`. The 3x3 convolution that is not the first has the stride in a bottleneck, as
    /// torchvision's.
    pub fn new(kind: BlockKind, c_in: usize, width: usize, stride: usize, init: &mut Init) -> Block {
        let c_out = kind.channels(width);
        let (deep, groups, width) = match kind {
            BlockKind::Basic => (false, 1, width),
            BlockKind::Bottleneck { groups, group_width } => {
                (true, groups, width * group_width / 64 * groups)
            }
        };
        let (kernel1, stride1, stride2) = if deep { (1, 1, stride) } else { (3, stride, 1) };
        let shortcut = stride != 1 || c_in != c_out;
        Block {
            conv1: Conv2d::new(c_in, width, kernel1, stride1, init),
            bn1: BatchNorm::new(width, init),
            act1: ActivationQuantizer::behind_relu(&init.device),
            conv2: Conv2d::grouped(width, width, 3, stride2, groups, init),
            bn2: BatchNorm::new(width, init),
            conv3: deep.then(|| Conv2d::new(width, c_out, 1, 1, init)),
            bn3: deep.then(|| BatchNorm::new(c_out, init)),
            downsample: shortcut
                .then(|| (Conv2d::new(c_in, c_out, 1, stride, init), BatchNorm::new(c_out, init))),
            downsample_quantizer: shortcut.then(|| ActivationQuantizer::new(&init.device)),
            act2: ActivationQuantizer::behind_relu(&init.device),
            act3: deep.then(|| ActivationQuantizer::behind_relu(&init.device)),
            removed: removal::new(!shortcut, &init.device),
        }
    }

    pub fn forward(&self, x: Activation<4>, pass: &Pass) -> Activation<4> {
        if removal::is_removed(&self.removed) {
            return x;
        }
        let layer = |x: &Activation<4>, conv, norm, residual, quantizer: &ActivationQuantizer| {
            conv_norm(x, conv, norm, residual, Act::Relu, quantizer, pass)
        };
        let (x, skip) = x.fork();
        let y = layer(&x, &self.conv1, &self.bn1, None, &self.act1);
        let shortcut = match (&self.downsample, &self.downsample_quantizer) {
            (Some((conv, norm)), Some(quantizer)) => {
                conv_norm(&skip, conv, norm, None, Act::None, quantizer, pass).x
            }
            _ => skip.x,
        };
        match (&self.conv3, &self.bn3, &self.act3) {
            (Some(conv3), Some(bn3), Some(act3)) => {
                let y = layer(&y, &self.conv2, &self.bn2, None, &self.act2);
                layer(&y, conv3, bn3, Some(shortcut), act3)
            }
            _ => layer(&y, &self.conv2, &self.bn2, Some(shortcut), &self.act2),
        }
    }
}

impl BlockKind {
    /// Channels that a block of `width` gives.
    pub fn channels(self, width: usize) -> usize {
        match self {
            BlockKind::Basic => width,
            BlockKind::Bottleneck { .. } => 4 * width,
        }
    }
}

/// Images [n, channels, h, w] to logits [n, classes]. `layer4` is empty where there are three stages.
#[derive(Module, Debug)]
pub struct ResNet {
    pub input: ActivationQuantizer,
    pub conv1: Conv2d,
    pub bn1: BatchNorm,
    pub act1: ActivationQuantizer,
    pub layer1: Vec<Block>,
    pub layer2: Vec<Block>,
    pub layer3: Vec<Block>,
    pub layer4: Vec<Block>,
    pub pool: ActivationQuantizer,
    pub fc: Linear,
    /// A 3x3 max pool of stride 2 follows the first convolution.
    pub max_pool: bool,
}

impl ResNet {
    pub fn new(size: &ResNetSize, init: &mut Init) -> ResNet {
        let first = size.stages[0].0;
        let conv1 = match size.stem {
            Stem::Small { stride } => Conv2d::new(size.in_channels, first, 3, stride, init),
            Stem::ImageNet => Conv2d::new(size.in_channels, first, 7, 2, init),
        };
        let bn1 = BatchNorm::new(first, init);
        let mut channels = first;
        let mut stage = |i: usize| -> Vec<Block> {
            let Some(&(width, blocks)) = size.stages.get(i) else { return Vec::new() };
            let block = |b: usize| {
                let stride = if i > 0 && b == 0 { 2 } else { 1 };
                let made = Block::new(size.block, channels, width, stride, init);
                channels = size.block.channels(width);
                made
            };
            (0..blocks).map(block).collect()
        };
        let [layer1, layer2, layer3, layer4] = [stage(0), stage(1), stage(2), stage(3)];
        ResNet {
            input: ActivationQuantizer::new(&init.device),
            conv1,
            bn1,
            act1: ActivationQuantizer::behind_relu(&init.device),
            layer1,
            layer2,
            layer3,
            layer4,
            pool: ActivationQuantizer::new(&init.device),
            fc: Linear::new(channels, size.classes, init),
            max_pool: size.stem == Stem::ImageNet,
        }
    }

    /// All blocks, in order.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        [&self.layer1, &self.layer2, &self.layer3, &self.layer4].into_iter().flatten()
    }
}

impl Classifier for ResNet {
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        let x = self.input.forward(x.into().images(), pass);
        let mut x = conv_norm(&x, &self.conv1, &self.bn1, None, Act::Relu, &self.act1, pass);
        if self.max_pool {
            x = x.map(|x| max_pool2d(x, 3, 2, 1));
        }
        for block in self.blocks() {
            x = block.forward(x, pass);
        }
        let pooled = self.pool.forward(global_average_pool(x.x), pass);
        let [n, c, _, _] = pooled.x.dims();
        self.fc.forward(&pooled.map(|x| x.reshape([n, c])), pass)
    }
}
