//! YOLACT (Bolya et al., 2019, arXiv:1904.02689): boxes with coefficients from shared heads on a feature pyramid, and
//! prototypes that the coefficients mix into masks.
//!
//! Parameter names are those of dbolya/yolact: `backbone.layers.0.0.conv1`, `fpn.lat_layers.0`, `proto_net.8`,
//! `prediction_layers.0.bbox_layer`, `semantic_seg_conv`. What boxes are is said outside (`lacuna_pipelines::priors`).

use crate::resnet::{BOTTLENECK, Block, STAGES_50, STAGES_101};
use crate::ssd::{glorot, rows};
use burn::module::Module;
use burn::tensor::Tensor;
use lacuna_nn::layers::{
    Act, ActQuantizer, BatchNorm, BiasedConv, Conv2d, Init, conv_norm, max_pool2d, resize_bilinear,
};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Pass};
use lacuna_nn::{named_module, one_of_modules};

/// What a size begins with: width or channels, and blocks, of each stage.
#[derive(Clone, Copy, Debug)]
pub enum Stages {
    ResNet(&'static [(usize, usize)]),
    /// Channels inside of blocks; twice as many between them.
    DarkNet(&'static [(usize, usize)]),
}

/// One size.
#[derive(Clone, Copy, Debug)]
pub struct YolactSize {
    pub name: &'static str,
    /// Without the background.
    pub classes: usize,
    pub stages: Stages,
    /// Of the pyramid and everything behind it.
    pub channels: usize,
    /// Prototypes.
    pub masks: usize,
}

const DARKNET_53: &[(usize, usize)] = &[(32, 1), (64, 2), (128, 8), (256, 8), (512, 4)];

const fn size(name: &'static str, stages: Stages) -> YolactSize {
    YolactSize { name, classes: 80, stages, channels: 256, masks: 32 }
}

pub const YOLACT_SIZES: &[YolactSize] = &[
    size("yolact_resnet50", Stages::ResNet(STAGES_50)),
    size("yolact_resnet101", Stages::ResNet(STAGES_101)),
    size("yolact_darknet53", Stages::DarkNet(DARKNET_53)),
];

/// Boxes of a cell.
const PER_CELL: usize = 3;
/// Levels that are made of the backbone's, and levels behind them.
const LEVELS: usize = 3;
const MORE_LEVELS: usize = 2;

type ConvNorm = (Conv2d, BatchNorm);

/// ResNet without its last layer, its stages in one list.
#[derive(Module, Debug)]
pub struct ResNetBody {
    pub conv1: Conv2d,
    pub bn1: BatchNorm,
    pub act1: ActivationQuantizer,
    pub layers: Vec<Vec<Block>>,
}

/// Darknet-53 (Redmon and Farhadi, 2018, arXiv:1804.02767) without its last layer.
#[derive(Module, Debug)]
pub struct DarkNetBody {
    pub _preconv: ConvNorm,
    pub act: ActQuantizer,
    pub layers: Vec<Vec<DarkLayer>>,
    /// Of the convolutions that begin the stages.
    pub acts: Vec<ActQuantizer>,
}

/// What stands in a stage: a convolution that halves the image, then blocks.
#[derive(Clone, Debug)]
// A box would only hide the layer.
#[allow(clippy::large_enum_variant)]
pub enum DarkLayer {
    Halve(ConvNorm),
    Block(DarkBlock),
}

one_of_modules!(DarkLayer { Halve, Block });

/// Two convolutions around a shortcut.
#[derive(Module, Debug)]
pub struct DarkBlock {
    pub conv1: ConvNorm,
    pub conv2: ConvNorm,
    pub act1: ActQuantizer,
    pub act2: ActQuantizer,
    pub sum: ActivationQuantizer,
}

#[derive(Clone, Debug)]
// A box would only hide the layers.
#[allow(clippy::large_enum_variant)]
pub enum Backbone {
    ResNet(ResNetBody),
    DarkNet(DarkNetBody),
}

one_of_modules!(Backbone { ResNet, DarkNet });

/// Feature pyramid (Lin et al., 2017, arXiv:1612.03144). Layers that read the backbone, and those behind them, are listed from
/// the coarsest level.
#[derive(Module, Debug)]
pub struct Fpn {
    pub lat_layers: Vec<BiasedConv>,
    pub pred_layers: Vec<BiasedConv>,
    pub downsample_layers: Vec<BiasedConv>,
    pub sums: Vec<ActivationQuantizer>,
    /// Of all levels: they are read by the same layers.
    pub levels: ActQuantizer,
}

/// Convolutions at their places among activations, and the upsampling in the middle.
#[derive(Clone, Debug)]
pub struct ProtoNet {
    pub conv0: BiasedConv,
    pub conv2: BiasedConv,
    pub conv4: BiasedConv,
    pub conv8: BiasedConv,
    pub conv10: BiasedConv,
    pub acts: Vec<ActQuantizer>,
    pub upsampled: ActivationQuantizer,
}

named_module!(ProtoNet {
    conv0 => "0",
    conv2 => "2",
    conv4 => "4",
    conv8 => "8",
    conv10 => "10",
    acts => "acts",
    upsampled => "upsampled",
});

/// Heads that all levels share.
#[derive(Module, Debug)]
pub struct Prediction {
    pub upfeature: Vec<BiasedConv>,
    pub act: ActQuantizer,
    pub bbox_layer: BiasedConv,
    pub conf_layer: BiasedConv,
    pub mask_layer: BiasedConv,
}

/// Images [n, 3, h, w] to tables and prototypes.
#[derive(Module, Debug)]
pub struct Yolact {
    pub input: ActivationQuantizer,
    pub backbone: Backbone,
    pub fpn: Fpn,
    pub proto_net: ProtoNet,
    pub prediction_layers: Vec<Prediction>,
    pub semantic_seg_conv: BiasedConv,
}

/// What the network says of an image.
pub struct Found {
    /// Offsets [n, boxes, 4].
    pub boxes: Tensor<3>,
    /// Logits [n, boxes, 1 + classes], the background first.
    pub scores: Tensor<3>,
    /// [n, boxes, masks]
    pub coefficients: Tensor<3>,
    /// [n, masks, h / 4, w / 4]
    pub prototypes: Tensor<4>,
    /// Classes of the cells of the finest level, [n, classes, h / 8, w / 8]: only the loss reads it, and so it is there in
    /// training alone.
    pub semantic: Option<Tensor<4>>,
}

impl ResNetBody {
    fn new(stages: &[(usize, usize)], init: &mut Init) -> ResNetBody {
        let first = stages[0].0;
        let (conv1, bn1) = (Conv2d::new(3, first, 7, 2, init), BatchNorm::new(first, init));
        let mut channels = first;
        let mut layers = Vec::new();
        for (i, &(width, blocks)) in stages.iter().enumerate() {
            let block = |b: usize| {
                let stride = if i > 0 && b == 0 { 2 } else { 1 };
                let made = Block::new(BOTTLENECK, channels, width, stride, init);
                channels = BOTTLENECK.channels(width);
                made
            };
            layers.push((0..blocks).map(block).collect::<Vec<_>>());
        }
        ResNetBody { conv1, bn1, act1: ActivationQuantizer::behind_relu(&init.device), layers }
    }

    fn forward(&self, x: &Activation<4>, pass: &Pass) -> Vec<Activation<4>> {
        let x = conv_norm(x, &self.conv1, &self.bn1, None, Act::Relu, &self.act1, pass);
        stages(x.map(|x| max_pool2d(x, 3, 2, 1)), &self.layers, |x, block, _| block.forward(x, pass))
    }
}

impl DarkNetBody {
    fn new(stages: &[(usize, usize)], init: &mut Init) -> DarkNetBody {
        let act = |init: &Init| ActQuantizer::new(Act::Leaky, &init.device);
        let mut channels = stages[0].0;
        let _preconv = conv(3, channels, 3, 1, init);
        let mut layers = Vec::new();
        for &(inner, blocks) in stages {
            let mut stage = vec![DarkLayer::Halve(conv(channels, 2 * inner, 3, 2, init))];
            channels = 2 * inner;
            for _ in 0..blocks {
                stage.push(DarkLayer::Block(DarkBlock {
                    conv1: conv(channels, inner, 1, 1, init),
                    conv2: conv(inner, channels, 3, 1, init),
                    act1: act(init),
                    act2: act(init),
                    sum: ActivationQuantizer::new(&init.device),
                }));
            }
            layers.push(stage);
        }
        let acts = stages.iter().map(|_| act(init)).collect();
        DarkNetBody { _preconv, act: act(init), layers, acts }
    }

    fn forward(&self, x: &Activation<4>, pass: &Pass) -> Vec<Activation<4>> {
        let layer = |act: &ActQuantizer, x: &Activation<4>, (conv, norm): &ConvNorm| {
            act.conv_norm(x, conv, norm, None, pass)
        };
        let x = layer(&self.act, x, &self._preconv);
        stages(x, &self.layers, |x, part, stage| match part {
            DarkLayer::Halve(conv) => layer(&self.acts[stage], &x, conv),
            DarkLayer::Block(b) => {
                let (x, skip) = x.fork();
                let y = layer(&b.act2, &layer(&b.act1, &x, &b.conv1), &b.conv2);
                b.sum.forward(skip.x + y.x, pass)
            }
        })
    }
}

fn conv(c_in: usize, c_out: usize, kernel: usize, stride: usize, init: &mut Init) -> ConvNorm {
    (Conv2d::new(c_in, c_out, kernel, stride, init), BatchNorm::new(c_out, init))
}

/// What the last stages give, finest first. `layer` is told which stage it is in.
fn stages<T>(
    mut x: Activation<4>,
    stages: &[Vec<T>],
    layer: impl Fn(Activation<4>, &T, usize) -> Activation<4>,
) -> Vec<Activation<4>> {
    let mut given = Vec::new();
    for (i, parts) in stages.iter().enumerate() {
        x = parts.iter().fold(x, |x, part| layer(x, part, i));
        if i + LEVELS >= stages.len() {
            given.push(x.clone());
        }
    }
    given
}

impl Fpn {
    fn new(backbone: &[usize], channels: usize, init: &mut Init) -> Fpn {
        let device = init.device.clone();
        let mut same = |stride: usize| glorot(channels, channels, 3, init).with_stride(stride);
        let pred_layers = (0..LEVELS).map(|_| same(1)).collect();
        let downsample_layers = (0..MORE_LEVELS).map(|_| same(2)).collect();
        Fpn {
            lat_layers: backbone.iter().rev().map(|&c| glorot(c, channels, 1, init)).collect(),
            pred_layers,
            downsample_layers,
            sums: (0..LEVELS).map(|_| ActivationQuantizer::new(&device)).collect(),
            levels: ActQuantizer::new(Act::Relu, &device),
        }
    }

    /// Five levels, finest first, of three.
    fn forward(&self, backbone: &[Activation<4>], pass: &Pass) -> Vec<Activation<4>> {
        let mut sums: Vec<Activation<4>> = Vec::new();
        for ((lateral, quantizer), x) in self.lat_layers.iter().zip(&self.sums).zip(backbone.iter().rev()) {
            let mut y = lateral.forward(x, pass);
            if let Some(coarser) = sums.last() {
                let [_, _, h, w] = y.dims();
                y = y + resize_bilinear(coarser.x.clone(), [h, w]);
            }
            sums.push(quantizer.forward(y, pass));
        }
        let level =
            |(layer, x): (&BiasedConv, &Activation<4>)| self.levels.forward(layer.forward(x, pass), pass);
        let mut levels: Vec<Activation<4>> = self.pred_layers.iter().zip(&sums).map(level).collect();
        levels.reverse();
        for layer in &self.downsample_layers {
            // These are not rectified: they share the grid, which then has negative values, too.
            let y = layer.forward(&levels[levels.len() - 1], pass);
            levels.push(self.levels.after.forward(y, pass));
        }
        levels
    }
}

impl ProtoNet {
    fn new(channels: usize, masks: usize, init: &mut Init) -> ProtoNet {
        let device = init.device.clone();
        let mut same = || glorot(channels, channels, 3, init);
        let [conv0, conv2, conv4, conv8] = [same(), same(), same(), same()];
        ProtoNet {
            conv0,
            conv2,
            conv4,
            conv8,
            conv10: glorot(channels, masks, 1, init),
            acts: (0..4).map(|_| ActQuantizer::new(Act::Relu, &device)).collect(),
            upsampled: ActivationQuantizer::new(&device),
        }
    }

    fn forward(&self, x: &Activation<4>, pass: &Pass) -> Tensor<4> {
        let layer = |x: &Activation<4>, conv: &BiasedConv, i: usize| {
            self.acts[i].forward(conv.forward(x, pass), pass)
        };
        let x = layer(&layer(&layer(x, &self.conv0, 0), &self.conv2, 1), &self.conv4, 2);
        let [_, _, h, w] = x.x.dims();
        let x = self.upsampled.forward(resize_bilinear(x.x, [2 * h, 2 * w]), pass);
        let x = layer(&x, &self.conv8, 3);
        lacuna_nn::layers::activation(self.conv10.forward(&x, pass), Act::Relu)
    }
}

impl Yolact {
    pub fn new(size: &YolactSize, init: &mut Init) -> Yolact {
        let (backbone, channels) = match size.stages {
            Stages::ResNet(stages) => {
                let channels: Vec<usize> = stages.iter().map(|s| BOTTLENECK.channels(s.0)).collect();
                (Backbone::ResNet(ResNetBody::new(stages, init)), channels)
            }
            Stages::DarkNet(stages) => {
                let channels = stages.iter().map(|s| 2 * s.0).collect();
                (Backbone::DarkNet(DarkNetBody::new(stages, init)), channels)
            }
        };
        let c = size.channels;
        let mut head = |width: usize| glorot(c, PER_CELL * width, 3, init);
        let (bbox_layer, conf_layer, mask_layer) = (head(4), head(1 + size.classes), head(size.masks));
        Yolact {
            input: ActivationQuantizer::new(&init.device),
            backbone,
            fpn: Fpn::new(&channels[channels.len() - LEVELS..], c, init),
            proto_net: ProtoNet::new(c, size.masks, init),
            prediction_layers: vec![Prediction {
                upfeature: vec![glorot(c, c, 3, init)],
                act: ActQuantizer::new(Act::Relu, &init.device),
                bbox_layer,
                conf_layer,
                mask_layer,
            }],
            semantic_seg_conv: glorot(c, size.classes, 1, init),
        }
    }

    /// Makes the layers anew that tell classes apart.
    pub fn set_classes(&mut self, classes: usize, init: &mut Init) {
        let c = self.semantic_seg_conv.weight.dims()[1];
        self.prediction_layers[0].conf_layer = glorot(c, PER_CELL * (1 + classes), 3, init);
        self.semantic_seg_conv = glorot(c, classes, 1, init);
    }

    pub fn forward(&self, x: Tensor<4>, pass: &Pass) -> Found {
        let training = x.device().is_autodiff();
        let x = self.input.forward(x, pass);
        let backbone = match &self.backbone {
            Backbone::ResNet(body) => body.forward(&x, pass),
            Backbone::DarkNet(body) => body.forward(&x, pass),
        };
        let levels = self.fpn.forward(&backbone, pass);
        let heads = &self.prediction_layers[0];
        let (mut boxes, mut scores, mut coefficients) = (Vec::new(), Vec::new(), Vec::new());
        for x in &levels {
            let x = heads.act.forward(heads.upfeature[0].forward(x, pass), pass);
            boxes.push(heads.bbox_layer.forward(&x, pass));
            scores.push(heads.conf_layer.forward(&x, pass));
            coefficients.push(heads.mask_layer.forward(&x, pass));
        }
        let classes = self.semantic_seg_conv.weight.dims()[0];
        let masks = heads.mask_layer.weight.dims()[0] / PER_CELL;
        Found {
            boxes: rows(boxes, 4),
            scores: rows(scores, 1 + classes),
            coefficients: rows(coefficients, masks).tanh(),
            prototypes: self.proto_net.forward(&levels[0], pass),
            semantic: training.then(|| self.semantic_seg_conv.forward(&levels[0], pass)),
        }
    }
}
