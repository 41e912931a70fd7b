//! Convolution and batch norm, alone and together.

use super::Init;
use crate::buffer::Buffer;
use crate::features::{self, Side};
use crate::flow::{self, Meeting};
use crate::ops::{self, Act, Window};
use crate::quant::{
    Activation, ActivationQuantizer, LayerInput, Norm, Pass, Quant, WeightQuantizer, bias_on_grid,
};
use crate::removal;
use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// Zeros around an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// The same number on all sides.
    Sides(usize),
    /// As many as make the output `ceil(size / stride)` large, an odd one below and to the right: TensorFlow's "same".
    Same,
}

/// weight [out, in / groups, k, k]; square window; no bias (batch norm follows).
#[derive(Module, Debug)]
pub struct Conv2d {
    pub weight: Param<Tensor<4>>,
    pub weight_quantizer: WeightQuantizer,
    pub stride: usize,
    pub groups: usize,
    /// Each channel is a group of its own, also after some were removed.
    pub depthwise: bool,
    #[module(skip)]
    pub padding: Padding,
    /// See [`removal`].
    pub removed: Option<Buffer<1>>,
}

impl Conv2d {
    /// One group; padded on all sides by half the window.
    pub fn new(c_in: usize, c_out: usize, kernel: usize, stride: usize, init: &mut Init) -> Conv2d {
        Conv2d::grouped(c_in, c_out, kernel, stride, 1, init)
    }

    /// One filter per channel.
    pub fn depthwise(channels: usize, kernel: usize, stride: usize, init: &mut Init) -> Conv2d {
        Conv2d::grouped(channels, channels, kernel, stride, channels, init)
    }

    /// `groups` convolutions side by side, each of its share of the channels.
    ///
    /// # Panics
    /// If the groups do not divide the channels.
    pub fn grouped(
        c_in: usize,
        c_out: usize,
        kernel: usize,
        stride: usize,
        groups: usize,
        init: &mut Init,
    ) -> Conv2d {
        let whole = c_in.is_multiple_of(groups) && c_out.is_multiple_of(groups);
        assert!(whole, "{c_in} to {c_out} channels in {groups} groups");
        Conv2d {
            weight: init.he_normal(groups, [c_out, c_in / groups, kernel, kernel]),
            weight_quantizer: WeightQuantizer::new(c_out, &init.device),
            stride,
            groups,
            depthwise: groups > 1 && groups == c_in && groups == c_out,
            padding: Padding::Sides(kernel / 2),
            removed: removal::new(stride == 1 && c_in == c_out && kernel % 2 == 1, &init.device),
        }
    }

    pub fn with_padding(self, padding: Padding) -> Conv2d {
        let keeps_shape = padding == Padding::Same || padding == self.padding;
        Conv2d { padding, removed: self.removed.filter(|_| keeps_shape), ..self }
    }

    /// How the window moves over an image of `size` (height, width).
    pub fn window(&self, size: [usize; 2]) -> Window {
        let [outputs, _, kernel, _] = self.weight.dims();
        let groups = if self.depthwise { outputs } else { self.groups };
        window(self.padding, kernel, self.stride, groups, size)
    }
}

/// How a window of `kernel` moves over an image of `size` (height, width).
pub(super) fn window(
    padding: Padding,
    kernel: usize,
    stride: usize,
    groups: usize,
    size: [usize; 2],
) -> Window {
    let pads = |size: usize| match padding {
        Padding::Sides(pad) => [pad, pad],
        Padding::Same => {
            let reach = (size.div_ceil(stride) - 1) * stride + kernel;
            let total = reach.saturating_sub(size);
            [total / 2, total - total / 2]
        }
    };
    let ([top, bottom], [left, right]) = (pads(size[0]), pads(size[1]));
    Window { pad_begin: [top, left], pad_end: [bottom, right], ..Window::new(stride, 0).grouped(groups) }
}

/// Batch normalisation; unbiased variance in the running statistics.
#[derive(Module, Debug)]
pub struct BatchNorm {
    pub weight: Param<Tensor<1>>,
    pub bias: Param<Tensor<1>>,
    pub running_mean: Buffer<1>,
    pub running_var: Buffer<1>,
    pub eps: f64,
    /// Share of a new batch in the running statistics.
    pub momentum: f64,
}

impl BatchNorm {
    /// PyTorch's eps 1e-5 and momentum 0.1.
    pub fn new(channels: usize, init: &mut Init) -> BatchNorm {
        BatchNorm {
            weight: init.constant(1.0, [channels]),
            bias: init.constant(0.0, [channels]),
            running_mean: Buffer::new(Tensor::zeros([channels], &init.device)),
            running_var: Buffer::new(Tensor::ones([channels], &init.device)),
            eps: 1e-5,
            momentum: 0.1,
        }
    }

    pub fn with(self, eps: f64, momentum: f64) -> BatchNorm {
        BatchNorm { eps, momentum, ..self }
    }

    fn update(&self, mean: Tensor<1>, var: Tensor<1>, count: usize) {
        let unbiased = count as f64 / (count as f64 - 1.0).max(1.0);
        let blend = |old: Tensor<1>, new: Tensor<1>| {
            old.mul_scalar(1.0 - self.momentum) + new.without_autodiff().mul_scalar(self.momentum)
        };
        self.running_mean.set(blend(self.running_mean.get(), mean));
        self.running_var.set(blend(self.running_var.get(), var.mul_scalar(unbiased)));
    }

    /// gamma / sqrt(running variance + eps): what the weight of the convolution before is multiplied by when folded.
    fn fold_scale(&self) -> Tensor<1> {
        let deviation = like(self.running_var.get(), &self.weight.val()).add_scalar(self.eps).sqrt();
        self.weight.val() / deviation
    }
}

/// Moves a buffer's value to where `other` is tracked, as a constant.
fn like(value: Tensor<1>, other: &Tensor<1>) -> Tensor<1> {
    if other.device().is_autodiff() { Tensor::from_inner(value) } else { value }
}

/// Scales row `i` (axis 0) of a weight.
fn scale_rows(w: Tensor<4>, scale: Tensor<1>) -> Tensor<4> {
    let o = scale.dims()[0];
    w * scale.reshape([o, 1, 1, 1])
}

/// Convolution, batch norm, the residual, `act`, and the quantiser of the result.
pub fn conv_norm(
    x: &Activation<4>,
    conv: &Conv2d,
    norm: &BatchNorm,
    residual: Option<Tensor<4>>,
    act: Act,
    quantizer: &ActivationQuantizer,
    pass: &Pass,
) -> Activation<4> {
    let (layer, weights) = (conv.weight.id, &conv.weight_quantizer);
    let scheme = weights.layer(pass);
    let removed = removal::is_removed(&conv.removed);
    let x = match removed {
        true => LayerInput { x: x.x.clone(), scale: None },
        false => weights.input(layer, x, pass),
    };
    flow::note(Meeting::Makes { layer, site: quantizer.range.id() });
    features::give_image(layer, Side::Input, &x.x);
    let training = x.x.device().is_autodiff();
    let batch_statistics = training && pass.norm == Norm::Batch;
    let quantised = scheme.weight.is_some() && !removed;
    if quantised && scheme.folded && !batch_statistics {
        return conv_folded(x, conv, norm, residual, act, quantizer, pass);
    }
    let w = conv.weight.val();
    let w = match (quantised, scheme.folded) {
        // The weight is quantised as it will be deployed, folded, and scaled back for the batch's own statistics
        // (Jacob et al., 2018, section 3.2; PyTorch's ConvBn2d).
        (true, true) => weights.forward_unfolded(w.clone(), norm.fold_scale(), pass).unwrap_or(w),
        (true, false) => weights.forward(w.clone(), None, pass).map_or(w, |q| q.w),
        (false, _) => w,
    };
    let y = if removed { x.x } else { convolve(&x, w, conv, pass) };
    features::give_image(layer, Side::Output, &y);
    let (gamma, beta) = (norm.weight.val(), norm.bias.val());
    if !batch_statistics {
        let (mean, var) = (like(norm.running_mean.get(), &gamma), like(norm.running_var.get(), &gamma));
        let y = ops::batch_norm_eval(y, gamma, beta, mean, var, residual, norm.eps, act);
        return quantizer.forward(y, pass);
    }
    let count = y.dims().iter().product::<usize>() / y.dims()[1];
    if pass.quant == Quant::Off {
        let (y, mean, var) = ops::batch_norm(y, gamma, beta, residual, norm.eps, act);
        norm.update(mean, var, count);
        return quantizer.forward(y, pass);
    }
    let observed = quantizer.observed(pass);
    let (y, mean, var, range) = ops::batch_norm_observed(y, gamma, beta, residual, norm.eps, act, observed);
    norm.update(mean, var, count);
    quantizer.cut(Activation { x: y, site: Some(quantizer.remember(range, observed.args)) })
}

/// [`conv_norm`] with the norm folded into the weight and its bias, as it will be deployed.
fn conv_folded(
    x: LayerInput<4>,
    conv: &Conv2d,
    norm: &BatchNorm,
    residual: Option<Tensor<4>>,
    act: Act,
    quantizer: &ActivationQuantizer,
    pass: &Pass,
) -> Activation<4> {
    let scale = norm.fold_scale();
    let beta = norm.bias.val();
    let bias = beta.clone() - like(norm.running_mean.get(), &beta) * scale.clone();
    let folded = scale_rows(conv.weight.val(), scale.clone());
    let (w, bias) = match conv.weight_quantizer.forward(folded.clone(), Some(&scale), pass) {
        Some(q) => {
            let bias = x.scale.map(|s| bias_on_grid(bias.clone(), s, &q.scales)).unwrap_or(bias);
            (q.w, bias)
        }
        None => (folded, bias),
    };
    let [_, _, height, width] = x.x.dims();
    let window = conv.window([height, width]);
    let y = if features::wanted(conv.weight.id, Side::Output) {
        // What the convolution gives before its norm is a step on the way then.
        let y = convolve(&x, w, conv, pass);
        let channels = scale.dims()[0];
        features::give_image(conv.weight.id, Side::Output, &(y.clone() / scale.reshape([1, channels, 1, 1])));
        ops::affine(y, bias.ones_like(), bias, residual, act)
    } else {
        ops::conv2d_on_grids(x.x, w, bias, residual, window, act, pass.sparse)
    };
    quantizer.forward(y, pass)
}

fn convolve(x: &LayerInput<4>, w: Tensor<4>, conv: &Conv2d, pass: &Pass) -> Tensor<4> {
    let [_, _, height, width] = x.x.dims();
    let window = conv.window([height, width]);
    match x.scale {
        None => ops::conv2d(x.x.clone(), w, None, window, pass.sparse),
        // Winograd's rounding would move values across the ties of their grids.
        Some(_) => ops::conv2d_direct(x.x.clone(), w, window, pass.sparse),
    }
}
