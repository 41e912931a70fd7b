//! Inverted bottlenecks (Sandler et al., 2018, arXiv:1801.04381) as torchvision holds them: a list of layers, whose places
//! are their names. MobileNetV2, V3 and EfficientNet are lists of them.

use burn::module::Module;
use burn::tensor::Device;
use lacuna_nn::layers::{Act, ActQuantizer, BatchNorm, Conv2d, Linear, SqueezeExcite, global_average_pool};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Pass};
use lacuna_nn::{named_module, one_of_modules};

/// What stands at one place of the list.
#[derive(Clone, Debug)]
// A box would only hide the layer.
#[allow(clippy::large_enum_variant)]
pub enum Part {
    ConvNorm((Conv2d, BatchNorm)),
    Excite(SqueezeExcite),
    /// A convolution whose norm stands at the next place.
    Conv(Conv2d),
    Norm(BatchNorm),
}

one_of_modules!(Part { ConvNorm, Excite, Conv, Norm });

/// One bottleneck.
#[derive(Module, Debug)]
pub struct Block {
    pub block: Vec<Part>,
    pub acts: Vec<ActQuantizer>,
    pub shortcut: bool,
}

/// [`Block`] under the name that it has in MobileNetV2.
#[derive(Module, Debug)]
pub struct ConvBlock {
    pub conv: Vec<Part>,
    pub acts: Vec<ActQuantizer>,
    pub shortcut: bool,
}

/// What stands at one place of a network's `features`.
#[derive(Clone, Debug)]
// A box would only hide the layer.
#[allow(clippy::large_enum_variant)]
pub enum Feature {
    ConvNorm((Conv2d, BatchNorm)),
    ConvBlock(ConvBlock),
    Block(Block),
    Stage(Vec<Block>),
}

one_of_modules!(Feature { ConvNorm, ConvBlock, Block, Stage });

/// The linear layer behind a dropout, which has no parameters and is left out.
#[derive(Clone, Debug)]
pub struct Head {
    pub fc: Linear,
}

named_module!(Head { fc => "1" });

impl Block {
    pub fn forward(&self, x: Activation<4>, pass: &Pass) -> Activation<4> {
        forward(&self.block, &self.acts, self.shortcut, x, pass)
    }
}

impl Feature {
    /// `act` is that of a convolution.
    pub fn forward(&self, x: Activation<4>, act: &ActQuantizer, pass: &Pass) -> Activation<4> {
        match self {
            Feature::ConvNorm((conv, norm)) => act.conv_norm(&x, conv, norm, None, pass),
            Feature::ConvBlock(b) => forward(&b.conv, &b.acts, b.shortcut, x, pass),
            Feature::Block(b) => b.forward(x, pass),
            Feature::Stage(blocks) => blocks.iter().fold(x, |x, b| b.forward(x, pass)),
        }
    }
}

/// All of `features`, whose first and last are convolutions, and the mean of each channel.
pub fn pooled_features(
    features: &[Feature],
    [first, last]: [&ActQuantizer; 2],
    pool: &ActivationQuantizer,
    x: Activation<4>,
    pass: &Pass,
) -> Activation<2> {
    let one =
        |x, (i, feature): (usize, &Feature)| feature.forward(x, if i == 0 { first } else { last }, pass);
    let x = features.iter().enumerate().fold(x, one);
    let pooled = pool.forward(global_average_pool(x.x), pass);
    let [n, c, _, _] = pooled.x.dims();
    pooled.map(|x| x.reshape([n, c]))
}

/// The activations of `n` convolutions: `act`, and none behind the last, which the shortcut is added to.
pub fn activations(n: usize, act: Act, device: &Device) -> Vec<ActQuantizer> {
    (0..n).map(|i| ActQuantizer::new(if i + 1 == n { Act::None } else { act }, device)).collect()
}

/// All parts in order. `acts`: one for each convolution.
///
/// # Panics
/// If a convolution has no activation, or a [`Part::Conv`] no norm behind it.
pub fn forward(
    parts: &[Part],
    acts: &[ActQuantizer],
    shortcut: bool,
    x: Activation<4>,
    pass: &Pass,
) -> Activation<4> {
    let (mut x, mut residual) = match shortcut {
        true => {
            let (x, skip) = x.fork();
            (x, Some(skip.x))
        }
        false => (x, None),
    };
    let mut next = acts.iter();
    for (i, part) in parts.iter().enumerate() {
        let (conv, norm) = match (part, parts.get(i + 1)) {
            (Part::ConvNorm((conv, norm)), _) | (Part::Conv(conv), Some(Part::Norm(norm))) => (conv, norm),
            (Part::Excite(gate), _) => {
                x = gate.forward(x, pass);
                continue;
            }
            (Part::Norm(_), _) => continue,
            (Part::Conv(_), _) => unreachable!("a convolution has its norm behind it"),
        };
        let act = next.next().expect("an activation for each convolution");
        let residual = if next.len() == 0 { residual.take() } else { None };
        x = act.conv_norm(&x, conv, norm, residual, pass);
    }
    x
}

/// The multiple of 8 that is nearest, at least 8, and not below nine tenths (torchvision's `_make_divisible`).
pub fn channels(scaled: f64) -> usize {
    let nearest = ((scaled + 4.0) as usize / 8 * 8).max(8);
    if (nearest as f64) < 0.9 * scaled { nearest + 8 } else { nearest }
}
