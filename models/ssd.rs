//! SSD (Liu et al., 2016, arXiv:1512.02325): maps of falling size from a backbone and from layers behind it, and around every
//! place of them some prior boxes, each with offsets and scores.
//!
//! On ResNet-50 under the names of NVIDIA's DeepLearningExamples (`feature_extractor.feature_extractor.4.0.conv1`,
//! `additional_blocks.0.3`, `loc.0`, `conf.0`), and on MobileNet as TensorFlow's object detection API builds it, whose names
//! are rows of [`crate::published::NAMINGS`]. What boxes are, and what is the background, is said outside
//! (`lacuna_pipelines::priors`).

use crate::mobilenet::{SECTIONS, STEM};
use crate::resnet::{BOTTLENECK, Block, STAGES_50};
use crate::ssdlite::SsdLite;
use burn::module::Module;
use burn::tensor::Tensor;
use lacuna_nn::layers::{
    Act, ActQuantizer, BatchNorm, BiasedConv, Conv2d, Init, Padding, conv_norm, max_pool2d,
};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Pass};
use lacuna_nn::{named_module, one_of_modules};

/// A member of the family. Images [n, 3, h, w] to two tables, of offsets and of scores.
#[derive(Clone, Debug)]
// A box would only hide the network.
#[allow(clippy::large_enum_variant)]
pub enum Ssd {
    ResNet(SsdResNet),
    MobileNet(SsdMobileNet),
    Lite(SsdLite),
}

one_of_modules!(Ssd { ResNet, MobileNet, Lite });

impl Ssd {
    /// Offsets and scores of all boxes: [n, 4, boxes] and [n, 1 + classes, boxes] on ResNet, [n, boxes, 4] and [n, boxes,
    /// 1 + classes] of the others.
    pub fn forward(&self, x: Tensor<4>, pass: &Pass) -> [Tensor<3>; 2] {
        match self {
            Ssd::ResNet(net) => net.forward(x, pass),
            Ssd::MobileNet(net) => net.forward(x, pass),
            Ssd::Lite(net) => net.forward(x, pass),
        }
    }

    /// Makes the layers anew that tell classes apart.
    pub fn set_classes(&mut self, classes: usize, init: &mut Init) {
        let heads = match self {
            Ssd::ResNet(net) => net.conf.iter_mut().zip(&net.loc).collect::<Vec<_>>(),
            Ssd::MobileNet(net) => net.scores.iter_mut().zip(&net.boxes).collect(),
            Ssd::Lite(net) => net.head.pairs().collect(),
        };
        for (scores, boxes) in heads {
            let [_, c_in, kernel, _] = scores.weight.dims();
            let per_cell = boxes.weight.dims()[0] / 4;
            *scores = BiasedConv::new(c_in, per_cell * (1 + classes), kernel, init);
        }
    }
}

/// A convolution with the first values of Glorot and Bengio (2010): uniform in ± sqrt(6 / (inputs + outputs)); no bias.
pub fn glorot(c_in: usize, c_out: usize, kernel: usize, init: &mut Init) -> BiasedConv {
    let conv = BiasedConv::new(c_in, c_out, kernel, init);
    let ends = (c_in + c_out) * kernel * kernel;
    let weight = init.fan_in_uniform((ends / 6).max(1), conv.weight.dims());
    BiasedConv { weight, bias: init.constant(0.0, [c_out]), ..conv }
}

/// What heads say of the boxes of all levels: rows of `width`, cell after cell.
pub fn rows(maps: Vec<Tensor<4>>, width: usize) -> Tensor<3> {
    let one = |map: Tensor<4>| {
        let [n, c, h, w] = map.dims();
        map.permute([0, 2, 3, 1]).reshape([n, h * w * c / width, width])
    };
    Tensor::cat(maps.into_iter().map(one).collect(), 1)
}

/// Every head on its level.
pub fn apply(heads: &[BiasedConv], levels: &[Activation<4>], pass: &Pass) -> Vec<Tensor<4>> {
    heads.iter().zip(levels).map(|(head, x)| head.forward(x, pass)).collect()
}

/// One size on ResNet.
#[derive(Clone, Copy, Debug)]
pub struct SsdResNetSize {
    pub name: &'static str,
    /// Without the background.
    pub classes: usize,
    /// Width and blocks of the three stages that are left of a ResNet; the last keeps the image's size.
    pub stages: [(usize, usize); 3],
    pub extras: &'static [Extra],
    /// Boxes of a cell, of each level.
    pub per_cell: &'static [usize],
}

/// Two convolutions behind the backbone: channels between and behind, and whether the second halves the image. It cuts off its
/// edges otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Extra(pub usize, pub usize, pub bool);

pub const SSD_RESNET_SIZES: &[SsdResNetSize] = &[SsdResNetSize {
    name: "ssd300_resnet50",
    classes: 80,
    stages: [STAGES_50[0], STAGES_50[1], STAGES_50[2]],
    extras: &[
        Extra(256, 512, true),
        Extra(256, 512, true),
        Extra(128, 256, true),
        Extra(128, 256, false),
        Extra(128, 256, false),
    ],
    per_cell: &[4, 6, 6, 6, 4, 4],
}];

/// The layers of torchvision's ResNet by their places in it.
#[derive(Clone, Debug)]
pub struct Body {
    pub conv: Conv2d,
    pub norm: BatchNorm,
    pub act: ActivationQuantizer,
    pub layer1: Vec<Block>,
    pub layer2: Vec<Block>,
    pub layer3: Vec<Block>,
}

named_module!(Body {
    conv => "0",
    norm => "1",
    act => "act",
    layer1 => "4",
    layer2 => "5",
    layer3 => "6",
});

#[derive(Module, Debug)]
pub struct Extractor {
    pub feature_extractor: Body,
}

/// See [`Extra`].
#[derive(Clone, Debug)]
pub struct ExtraBlock {
    pub conv1: Conv2d,
    pub norm1: BatchNorm,
    pub act1: ActivationQuantizer,
    pub conv2: Conv2d,
    pub norm2: BatchNorm,
    pub act2: ActivationQuantizer,
}

named_module!(ExtraBlock {
    conv1 => "0",
    norm1 => "1",
    act1 => "act1",
    conv2 => "3",
    norm2 => "4",
    act2 => "act2",
});

#[derive(Module, Debug)]
pub struct SsdResNet {
    pub input: ActivationQuantizer,
    pub feature_extractor: Extractor,
    pub additional_blocks: Vec<ExtraBlock>,
    pub loc: Vec<BiasedConv>,
    pub conf: Vec<BiasedConv>,
}

impl SsdResNet {
    pub fn new(size: &SsdResNetSize, init: &mut Init) -> SsdResNet {
        let device = init.device.clone();
        let relu = || ActivationQuantizer::behind_relu(&device);
        let first = size.stages[0].0;
        let (conv, norm) = (Conv2d::new(3, first, 7, 2, init), BatchNorm::new(first, init));
        let mut channels = first;
        let [layer1, layer2, layer3] = [(0, 1), (1, 2), (2, 1)].map(|(stage, stride)| {
            let (width, blocks) = size.stages[stage];
            let block = |b: usize| {
                let made = Block::new(BOTTLENECK, channels, width, if b == 0 { stride } else { 1 }, init);
                channels = BOTTLENECK.channels(width);
                made
            };
            (0..blocks).map(block).collect::<Vec<_>>()
        });
        let body = Body { conv, norm, act: relu(), layer1, layer2, layer3 };
        let mut levels = vec![channels];
        let mut additional_blocks = Vec::new();
        for &Extra(inner, outer, halves) in size.extras {
            let conv2 = Conv2d::new(inner, outer, 3, if halves { 2 } else { 1 }, init);
            additional_blocks.push(ExtraBlock {
                conv1: Conv2d::new(channels, inner, 1, 1, init),
                norm1: BatchNorm::new(inner, init),
                act1: relu(),
                conv2: conv2.with_padding(Padding::Sides(usize::from(halves))),
                norm2: BatchNorm::new(outer, init),
                act2: relu(),
            });
            channels = outer;
            levels.push(channels);
        }
        let mut heads = |width: usize| -> Vec<BiasedConv> {
            let one = |(&c, per_cell): (&usize, &usize)| glorot(c, per_cell * width, 3, init);
            levels.iter().zip(size.per_cell).map(one).collect()
        };
        let (loc, conf) = (heads(4), heads(1 + size.classes));
        SsdResNet {
            input: ActivationQuantizer::new(&device),
            feature_extractor: Extractor { feature_extractor: body },
            additional_blocks,
            loc,
            conf,
        }
    }

    fn forward(&self, x: Tensor<4>, pass: &Pass) -> [Tensor<3>; 2] {
        let body = &self.feature_extractor.feature_extractor;
        let relu = |x: &Activation<4>, conv, norm, quantizer: &ActivationQuantizer| {
            conv_norm(x, conv, norm, None, Act::Relu, quantizer, pass)
        };
        let x = self.input.forward(x, pass);
        let x = relu(&x, &body.conv, &body.norm, &body.act).map(|x| max_pool2d(x, 3, 2, 1));
        let blocks = [&body.layer1, &body.layer2, &body.layer3].into_iter().flatten();
        let mut levels = vec![blocks.fold(x, |x, block| block.forward(x, pass))];
        for extra in &self.additional_blocks {
            let x = relu(&levels[levels.len() - 1], &extra.conv1, &extra.norm1, &extra.act1);
            levels.push(relu(&x, &extra.conv2, &extra.norm2, &extra.act2));
        }
        // Each of the numbers of a box is a block of channels there, with a channel for each box of a cell.
        let columns = |heads: &[BiasedConv], width: usize| {
            let one = |map: Tensor<4>| {
                let [n, c, h, w] = map.dims();
                map.reshape([n, width, c / width * h * w])
            };
            Tensor::cat(apply(heads, &levels, pass).into_iter().map(one).collect(), 2)
        };
        let per_cell = self.loc[0].weight.dims()[0] / 4;
        [columns(&self.loc, 4), columns(&self.conf, self.conf[0].weight.dims()[0] / per_cell)]
    }
}

/// One size on MobileNet.
#[derive(Clone, Copy, Debug)]
pub struct SsdMobileNetSize {
    pub name: &'static str,
    /// Without the background.
    pub classes: usize,
    /// Share of the paper's channels, in hundredths.
    pub width_percent: usize,
    /// Pictures were not stretched when it was trained, but filled up with black below or to the right.
    pub padded: bool,
}

pub const SSD_MOBILENET_SIZES: &[SsdMobileNetSize] = &[
    SsdMobileNetSize { name: "ssd_mobilenet_v1", classes: 90, width_percent: 100, padded: false },
    SsdMobileNetSize { name: "ssd_mobilenet_v1_face", classes: 2, width_percent: 100, padded: true },
];

/// Channels between and behind each pair of layers behind the backbone.
const SSD_MOBILENET_EXTRAS: [[usize; 2]; 4] = [[256, 512], [128, 256], [128, 256], [64, 128]];
const SSD_MOBILENET_PER_CELL: [usize; 6] = [3, 6, 6, 6, 6, 6];

/// Convolution, batch norm, ReLU6.
#[derive(Module, Debug)]
pub struct ConvNorm {
    pub conv: Conv2d,
    pub bn: BatchNorm,
    pub act: ActQuantizer,
}

impl ConvNorm {
    fn new(conv: Conv2d, init: &mut Init) -> ConvNorm {
        let c_out = conv.weight.dims()[0];
        ConvNorm {
            conv: conv.with_padding(Padding::Same),
            bn: BatchNorm::new(c_out, init).with(1e-3, 0.03),
            act: ActQuantizer::new(Act::Relu6, &init.device),
        }
    }

    fn forward(&self, x: &Activation<4>, pass: &Pass) -> Activation<4> {
        self.act.conv_norm(x, &self.conv, &self.bn, None, pass)
    }
}

/// A filter per channel, then a mixture of channels.
#[derive(Module, Debug)]
pub struct Separable {
    pub depth: ConvNorm,
    pub point: ConvNorm,
}

/// A place of the backbone, counted as TensorFlow does: the first convolution is number 0.
#[derive(Clone, Debug)]
// A box would only hide the layer.
#[allow(clippy::large_enum_variant)]
pub enum Layer {
    Stem(ConvNorm),
    Separable(Separable),
}

one_of_modules!(Layer { Stem, Separable });

#[derive(Module, Debug)]
pub struct SsdMobileNet {
    pub input: ActivationQuantizer,
    pub backbone: Vec<Layer>,
    pub extras: Vec<ConvNorm>,
    pub boxes: Vec<BiasedConv>,
    pub scores: Vec<BiasedConv>,
    pub padded: bool,
}

impl SsdMobileNet {
    pub fn new(size: &SsdMobileNetSize, init: &mut Init) -> SsdMobileNet {
        let scaled = |channels: usize| channels * size.width_percent / 100;
        let mut channels = scaled(STEM);
        let mut backbone = vec![Layer::Stem(ConvNorm::new(Conv2d::new(3, channels, 3, 2, init), init))];
        for (c_out, blocks, stride) in SECTIONS {
            for b in 0..blocks {
                let stride = if b == 0 { stride } else { 1 };
                let depth = ConvNorm::new(Conv2d::depthwise(channels, 3, stride, init), init);
                let point = ConvNorm::new(Conv2d::new(channels, scaled(c_out), 1, 1, init), init);
                backbone.push(Layer::Separable(Separable { depth, point }));
                channels = scaled(c_out);
            }
        }
        let mut levels = vec![scaled(SECTIONS[3].0), channels];
        let mut extras = Vec::new();
        for [inner, outer] in SSD_MOBILENET_EXTRAS {
            extras.push(ConvNorm::new(Conv2d::new(channels, scaled(inner), 1, 1, init), init));
            extras.push(ConvNorm::new(Conv2d::new(scaled(inner), scaled(outer), 3, 2, init), init));
            channels = scaled(outer);
            levels.push(channels);
        }
        let mut heads = |width: usize| -> Vec<BiasedConv> {
            let one = |(&c, per_cell): (&usize, usize)| BiasedConv::new(c, per_cell * width, 1, init);
            levels.iter().zip(SSD_MOBILENET_PER_CELL).map(one).collect()
        };
        let (boxes, scores) = (heads(4), heads(1 + size.classes));
        let input = ActivationQuantizer::new(&init.device);
        SsdMobileNet { input, backbone, extras, boxes, scores, padded: size.padded }
    }

    fn forward(&self, x: Tensor<4>, pass: &Pass) -> [Tensor<3>; 2] {
        /// The last block of 512 channels.
        const FIRST_LEVEL: usize = 11;
        let mut x = self.input.forward(x, pass);
        let mut levels = Vec::new();
        for (i, layer) in self.backbone.iter().enumerate() {
            x = match layer {
                Layer::Stem(conv) => conv.forward(&x, pass),
                Layer::Separable(s) => s.point.forward(&s.depth.forward(&x, pass), pass),
            };
            if i == FIRST_LEVEL {
                levels.push(x.clone());
            }
        }
        levels.push(x);
        for pair in self.extras.chunks_exact(2) {
            let x = pair[0].forward(&levels[levels.len() - 1], pass);
            levels.push(pair[1].forward(&x, pass));
        }
        let classes = self.scores[0].weight.dims()[0] / SSD_MOBILENET_PER_CELL[0];
        [rows(apply(&self.boxes, &levels, pass), 4), rows(apply(&self.scores, &levels, pass), classes)]
    }
}
