//! Convolutions that make images larger.

use super::Init;
use crate::features::{self, Side};
use crate::ops::{self, Act, Window};
use crate::quant::{Activation, Pass, WeightQuantizer, bias_on_grid};
use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// weight [in, out, k, k], bias [out]; every pixel becomes `k` x `k` of them, which do not overlap.
///
/// Without overlap it is a mixture of channels, `k * k` filters for each output channel, whose results lie side by side: so it
/// is computed, pruned, quantised and exported. Each filter has a grid of its own, in the order [out, k, k].
#[derive(Module, Debug)]
pub struct ConvTranspose2d {
    pub weight: Param<Tensor<4>>,
    pub bias: Param<Tensor<1>>,
    pub weight_quantizer: WeightQuantizer,
}

impl ConvTranspose2d {
    /// PyTorch's first values.
    pub fn new(c_in: usize, c_out: usize, kernel: usize, init: &mut Init) -> ConvTranspose2d {
        let fan_in = c_out * kernel * kernel;
        ConvTranspose2d {
            weight: init.fan_in_uniform(fan_in, [c_in, c_out, kernel, kernel]),
            bias: init.fan_in_uniform(fan_in, [c_out]),
            weight_quantizer: WeightQuantizer::new(fan_in, &init.device),
        }
    }

    /// Not yet on a grid.
    pub fn forward(&self, x: &Activation<4>, pass: &Pass) -> Tensor<4> {
        let [c_in, c_out, k, _] = self.weight.dims();
        let filters = c_out * k * k;
        let (layer, weights) = (self.weight.id, &self.weight_quantizer);
        let x = weights.input(layer, x, pass);
        features::give_image(layer, Side::Input, &x.x);
        let w = self.weight.val().permute([1, 2, 3, 0]).reshape([filters, c_in, 1, 1]);
        let bias = Tensor::cat(vec![self.bias.val().reshape([c_out, 1]); k * k], 1).reshape([filters]);
        let (w, bias) = match weights.forward(w.clone(), None, pass) {
            Some(q) => {
                let bias = x.scale.map(|s| bias_on_grid(bias.clone(), s, &q.scales)).unwrap_or(bias);
                (q.w, bias)
            }
            None => (w, bias),
        };
        let [n, _, height, width] = x.x.dims();
        let window = Window::new(1, 0);
        let y = match x.scale {
            Some(_) => ops::conv2d_on_grids(x.x, w, bias, None, window, Act::None, pass.sparse),
            None => ops::conv2d(x.x, w, Some(bias), window, pass.sparse),
        };
        let apart = y.reshape([n, c_out, k, k, height, width]).permute([0, 1, 4, 2, 5, 3]);
        let y = apart.reshape([n, c_out, height * k, width * k]);
        features::give_image(layer, Side::Output, &y);
        y
    }
}
