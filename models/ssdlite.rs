//! SSDLite (Sandler et al., 2018, arXiv:1801.04381, section 6.2) on MobileNetV3 (Howard et al., 2019, arXiv:1905.02244, section
//! 6.3): SSD whose heads, and layers behind the backbone, are depthwise and pointwise convolutions.
//!
//! Parameter names are torchvision's: `backbone.features.0.1.block.0.0`, `backbone.features.1.0.0.0`, `backbone.extra.0.1.0`,
//! `head.classification_head.module_list.0.0.0`, `head.regression_head.module_list.0.1`.

use crate::inverted::{self, Feature, Part};
use crate::mobilenet_v3::{Bneck, EPS, LARGE, STEM, block};
use crate::ssd::rows;
use burn::module::Module;
use burn::tensor::Tensor;
use lacuna_nn::layers::{Act, ActQuantizer, BatchNorm, BiasedConv, Conv2d, Init};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Pass};
use lacuna_nn::{named_module, one_of_modules};

/// One size.
#[derive(Clone, Copy, Debug)]
pub struct SsdLiteSize {
    pub name: &'static str,
    /// Without the background.
    pub classes: usize,
    /// Channels in multiples of those of [`LARGE`].
    pub width: f64,
}

pub const SSDLITE_SIZES: &[SsdLiteSize] =
    &[SsdLiteSize { name: "ssdlite320_mobilenet_v3_large", classes: 90, width: 1.0 }];

/// Of the blocks of [`LARGE`] the one that begins the last stage: what its expansion gives is the first level. From it on,
/// the network is half as wide as the classifier.
const TAIL: usize = 12;
/// Channels of the layers behind the backbone.
const EXTRAS: [usize; 4] = [512, 256, 256, 128];
const PER_CELL: usize = 6;
const MOMENTUM: f64 = 0.03;

type ConvNorm = (Conv2d, BatchNorm);

/// What stands at one place of a list of features.
#[derive(Clone, Debug)]
// A box would only hide the layer.
#[allow(clippy::large_enum_variant)]
pub enum Place {
    Feature(Feature),
    /// A block without its first layer.
    Rest(Vec<Part>),
}

one_of_modules!(Place { Feature, Rest });

#[derive(Module, Debug)]
pub struct Backbone {
    /// Up to the expansion of the last stage, and from there on.
    pub features: Vec<Vec<Place>>,
    pub extra: Vec<Vec<ConvNorm>>,
    /// Of the convolutions among the features: the first, the expansion, the last.
    pub stem: ActQuantizer,
    pub expansion: ActQuantizer,
    pub last: ActQuantizer,
    /// Of the block that is cut in two, behind its first layer.
    pub rest: Vec<ActQuantizer>,
    pub extra_acts: Vec<Vec<ActQuantizer>>,
}

/// A depthwise convolution and a pointwise one.
#[derive(Clone, Debug)]
pub struct Predictor {
    pub depth: ConvNorm,
    pub act: ActQuantizer,
    pub point: BiasedConv,
}

named_module!(Predictor { depth => "0", act => "act", point => "1" });

#[derive(Module, Debug)]
pub struct Predictors {
    pub module_list: Vec<Predictor>,
}

#[derive(Module, Debug)]
pub struct Head {
    pub classification_head: Predictors,
    pub regression_head: Predictors,
}

#[derive(Module, Debug)]
pub struct SsdLite {
    pub input: ActivationQuantizer,
    pub backbone: Backbone,
    pub head: Head,
}

fn norm(conv: Conv2d, init: &mut Init) -> ConvNorm {
    let c_out = conv.weight.dims()[0];
    (conv, BatchNorm::new(c_out, init).with(EPS, MOMENTUM))
}

fn point(c_in: usize, c_out: usize, init: &mut Init) -> ConvNorm {
    let conv = Conv2d::new(c_in, c_out, 1, 1, init);
    norm(conv, init)
}

fn depth(channels: usize, stride: usize, init: &mut Init) -> ConvNorm {
    let conv = Conv2d::depthwise(channels, 3, stride, init);
    norm(conv, init)
}

impl Head {
    /// The last layers of scores and boxes, level by level.
    pub fn pairs(&mut self) -> impl Iterator<Item = (&mut BiasedConv, &BiasedConv)> {
        let scores = self.classification_head.module_list.iter_mut().map(|p| &mut p.point);
        scores.zip(self.regression_head.module_list.iter().map(|p| &p.point))
    }
}

impl Predictors {
    fn new(levels: &[usize], width: usize, init: &mut Init) -> Predictors {
        let mut one = |&c: &usize| Predictor {
            depth: depth(c, 1, init),
            act: ActQuantizer::new(Act::Relu6, &init.device),
            point: BiasedConv::new(c, PER_CELL * width, 1, init),
        };
        Predictors { module_list: levels.iter().map(&mut one).collect() }
    }

    fn forward(&self, levels: &[Activation<4>], pass: &Pass) -> Tensor<3> {
        let one = |(p, x): (&Predictor, &Activation<4>)| {
            let x = p.act.conv_norm(x, &p.depth.0, &p.depth.1, None, pass);
            p.point.forward(&x, pass)
        };
        let maps: Vec<Tensor<4>> = self.module_list.iter().zip(levels).map(one).collect();
        rows(maps, self.module_list[0].point.weight.dims()[0] / PER_CELL)
    }
}

impl SsdLite {
    pub fn new(size: &SsdLiteSize, init: &mut Init) -> SsdLite {
        let scaled = |c: usize| inverted::channels(c as f64 * size.width);
        let device = init.device.clone();
        let act = |act: Act| ActQuantizer::new(act, &device);
        let mut c_in = scaled(STEM);
        let stem = Conv2d::new(3, c_in, 3, 2, init);
        let mut first = vec![Place::Feature(Feature::ConvNorm(norm(stem, init)))];
        let (mut second, mut rest, mut levels) = (Vec::new(), Vec::new(), Vec::new());
        for (i, row) in LARGE.iter().enumerate() {
            let mut row = *row;
            if i >= TAIL {
                row.2 /= 2;
            }
            if i > TAIL {
                row.1 /= 2;
            }
            let Bneck(_, wide, c_out, ..) = row;
            let mut made = block(&row, [c_in, scaled(wide), scaled(c_out)], MOMENTUM, init);
            c_in = scaled(c_out);
            if i != TAIL {
                let list = if i < TAIL { &mut first } else { &mut second };
                list.push(Place::Feature(Feature::Block(made)));
                continue;
            }
            // The block is cut in two. It changes the size of the image, so that it has no shortcut.
            levels.push(scaled(wide));
            let expansion = made.block.remove(0);
            let Part::ConvNorm(expansion) = expansion else {
                unreachable!("a block of the last stage expands")
            };
            first.push(Place::Feature(Feature::ConvNorm(expansion)));
            second.push(Place::Rest(made.block));
            rest = made.acts.split_off(1);
        }
        let last = 6 * c_in;
        second.push(Place::Feature(Feature::ConvNorm(point(c_in, last, init))));
        levels.push(last);

        let (mut extra, mut extra_acts) = (Vec::new(), Vec::new());
        let mut c_in = last;
        for c_out in EXTRAS.map(scaled) {
            let inner = c_out / 2;
            extra.push(vec![point(c_in, inner, init), depth(inner, 2, init), point(inner, c_out, init)]);
            extra_acts.push((0..3).map(|_| act(Act::Relu6)).collect());
            c_in = c_out;
            levels.push(c_out);
        }
        let backbone = Backbone {
            features: vec![first, second],
            extra,
            stem: act(Act::HardSwish),
            expansion: act(Act::HardSwish),
            last: act(Act::HardSwish),
            rest,
            extra_acts,
        };
        let head = Head {
            classification_head: Predictors::new(&levels, 1 + size.classes, init),
            regression_head: Predictors::new(&levels, 4, init),
        };
        SsdLite { input: ActivationQuantizer::new(&device), backbone, head }
    }

    pub fn forward(&self, x: Tensor<4>, pass: &Pass) -> [Tensor<3>; 2] {
        let b = &self.backbone;
        let run = |list: &[Place], acts: [&ActQuantizer; 2], x: Activation<4>| {
            let one = |x, (i, place): (usize, &Place)| match place {
                Place::Feature(feature) => feature.forward(x, acts[usize::from(i > 0)], pass),
                Place::Rest(parts) => inverted::forward(parts, &b.rest, false, x, pass),
            };
            list.iter().enumerate().fold(x, one)
        };
        let x = self.input.forward(x, pass);
        let mut levels = vec![run(&b.features[0], [&b.stem, &b.expansion], x)];
        levels.push(run(&b.features[1], [&b.last; 2], levels[0].clone()));
        for (layers, acts) in b.extra.iter().zip(&b.extra_acts) {
            let x = levels[levels.len() - 1].clone();
            let one = |x: Activation<4>, ((conv, norm), act): (&ConvNorm, &ActQuantizer)| {
                act.conv_norm(&x, conv, norm, None, pass)
            };
            levels.push(layers.iter().zip(acts).fold(x, one));
        }
        [
            self.head.regression_head.forward(&levels, pass),
            self.head.classification_head.forward(&levels, pass),
        ]
    }
}
