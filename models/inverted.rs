//! Inverted bottlenecks (Sandler et al., 2018, arXiv:1801.04381) as torchvision holds them: a list of layers, whose places
//! are their names. MobileNetV2, V3 and EfficientNet are made of them.

use burn::tensor::Device;
use lacuna_nn::layers::{Act, ActQuantizer, BatchNorm, Conv2d, SqueezeExcite};
use lacuna_nn::one_of_modules;
use lacuna_nn::quant::{Activation, Pass};

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
