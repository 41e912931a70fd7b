//! Convolutions with a bias and no norm: heads of detectors, gates.

use super::{Conv2d, Init, Padding};
use crate::features::{self, Side};
use crate::ops::{self, Act};
use crate::quant::{Activation, ActivationQuantizer, Pass, WeightQuantizer, bias_on_grid};
use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// weight [out, in / groups, k, k], bias [out]; square window, padded by half of it.
#[derive(Module, Debug)]
pub struct BiasedConv {
    pub weight: Param<Tensor<4>>,
    pub bias: Param<Tensor<1>>,
    pub weight_quantizer: WeightQuantizer,
    /// Where a scheme asks for quantised outputs.
    pub output_quantizer: ActivationQuantizer,
    pub stride: usize,
    pub groups: usize,
    #[module(skip)]
    pub padding: Padding,
}

impl BiasedConv {
    /// PyTorch's first values.
    pub fn new(c_in: usize, c_out: usize, kernel: usize, init: &mut Init) -> BiasedConv {
        BiasedConv::grouped(c_in, c_out, kernel, 1, init)
    }

    /// `groups` convolutions side by side, each of its share of the channels.
    ///
    /// # Panics
    /// If the groups do not divide the channels.
    pub fn grouped(c_in: usize, c_out: usize, kernel: usize, groups: usize, init: &mut Init) -> BiasedConv {
        let fan_in = c_in / groups * kernel * kernel;
        let Conv2d { weight_quantizer, stride, groups, padding, .. } =
            Conv2d::grouped(c_in, c_out, kernel, 1, groups, init);
        BiasedConv {
            weight: init.fan_in_uniform(fan_in, [c_out, c_in / groups, kernel, kernel]),
            bias: init.fan_in_uniform(fan_in, [c_out]),
            weight_quantizer,
            output_quantizer: ActivationQuantizer::with(None, &init.device),
            stride,
            groups,
            padding,
        }
    }

    pub fn with_stride(self, stride: usize) -> BiasedConv {
        BiasedConv { stride, ..self }
    }

    /// convolution + bias, not yet on a grid.
    pub fn forward(&self, x: &Activation<4>, pass: &Pass) -> Tensor<4> {
        let [_, _, height, width] = x.x.dims();
        let window = super::conv::window(
            self.padding,
            self.weight.dims()[2],
            self.stride,
            self.groups,
            [height, width],
        );
        let (layer, weights) = (self.weight.id, &self.weight_quantizer);
        let x = weights.input(layer, x, pass);
        features::give_image(layer, Side::Input, &x.x);
        let (w, bias) = (self.weight.val(), self.bias.val());
        let (w, bias) = match weights.forward(w.clone(), None, pass) {
            Some(q) => {
                let bias = x.scale.map(|s| bias_on_grid(bias.clone(), s, &q.scales)).unwrap_or(bias);
                (q.w, bias)
            }
            None => (w, bias),
        };
        let y = match x.scale {
            Some(_) => ops::conv2d_on_grids(x.x, w, bias, None, window, Act::None, pass.sparse),
            None => ops::conv2d(x.x, w, Some(bias), window, pass.sparse),
        };
        features::give_image(layer, Side::Output, &y);
        match weights.layer(pass).output {
            Some(_) => self.output_quantizer.forward(y, pass).x,
            None => y,
        }
    }
}
