//! Layers that can be masked and quantised. They hold parameters under the names and in the layouts of PyTorch
//! (`weight`, `bias`, `running_mean`, `running_var`; Linear weights [out, in]), so that a published state dict fits
//! without renaming. A convolution and the batch norm behind it are computed together ([`conv_norm`]), because
//! quantisation has to see the folded weight.

use crate::buffer::Buffer;
use crate::ops::{self, Act, Window};
use crate::quant::{Activation, Norm, Pass, Quant, WeightQuantizer, bias_on_grid};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal, Uniform};

/// Makes parameters: where they live and the seeded stream their values come from.
pub struct Init {
    pub device: Device,
    rng: ChaCha8Rng,
}

impl Init {
    pub fn new(device: &Device, seed: u64) -> Init {
        Init { device: device.clone(), rng: ChaCha8Rng::seed_from_u64(seed) }
    }

    fn param<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Param<Tensor<D>> {
        Param::from_data(TensorData::new(values, shape), &self.device)
    }

    fn constant<const D: usize>(&self, value: f32, shape: [usize; D]) -> Param<Tensor<D>> {
        self.param(vec![value; shape.iter().product()], shape)
    }

    /// Normal with variance 2 / fan_out (He et al., 2015), as torchvision's ResNets.
    fn he_normal(&mut self, shape: [usize; 4]) -> Param<Tensor<4>> {
        let [o, _, kh, kw] = shape;
        let normal = Normal::new(0.0, (2.0 / (o * kh * kw) as f32).sqrt()).expect("a finite deviation");
        let values = (0..shape.iter().product()).map(|_| normal.sample(&mut self.rng)).collect();
        self.param(values, shape)
    }

    /// Uniform in ± 1 / sqrt(fan_in), as PyTorch's Linear.
    fn fan_in_uniform<const D: usize>(&mut self, fan_in: usize, shape: [usize; D]) -> Param<Tensor<D>> {
        let bound = 1.0 / (fan_in as f32).sqrt();
        let uniform = Uniform::new_inclusive(-bound, bound).expect("a finite bound");
        let values = (0..shape.iter().product()).map(|_| uniform.sample(&mut self.rng)).collect();
        self.param(values, shape)
    }
}

/// weight [out, in, k, k]; square stride and zero padding; no bias (batch norm follows).
#[derive(Module, Debug)]
pub struct Conv2d {
    pub weight: Param<Tensor<4>>,
    pub weight_quantizer: WeightQuantizer,
    pub stride: usize,
    pub padding: usize,
}

impl Conv2d {
    pub fn new(c_in: usize, c_out: usize, kernel: usize, stride: usize, init: &mut Init) -> Conv2d {
        Conv2d {
            weight: init.he_normal([c_out, c_in, kernel, kernel]),
            weight_quantizer: WeightQuantizer::new(c_out, &init.device),
            stride,
            padding: kernel / 2,
        }
    }

    fn window(&self) -> Window {
        Window::new(self.stride, self.padding)
    }
}

/// Batch normalisation, PyTorch's defaults: eps 1e-5, momentum 0.1, unbiased variance in the running statistics.
#[derive(Module, Debug)]
pub struct BatchNorm {
    pub weight: Param<Tensor<1>>,
    pub bias: Param<Tensor<1>>,
    pub running_mean: Buffer<1>,
    pub running_var: Buffer<1>,
}

pub const NORM_EPS: f64 = 1e-5;
const NORM_MOMENTUM: f64 = 0.1;

impl BatchNorm {
    pub fn new(channels: usize, init: &mut Init) -> BatchNorm {
        BatchNorm {
            weight: init.constant(1.0, [channels]),
            bias: init.constant(0.0, [channels]),
            running_mean: Buffer::new(Tensor::zeros([channels], &init.device)),
            running_var: Buffer::new(Tensor::ones([channels], &init.device)),
        }
    }

    fn update(&self, mean: Tensor<1>, var: Tensor<1>, count: usize) {
        let unbiased = count as f64 / (count as f64 - 1.0).max(1.0);
        let blend = |old: Tensor<1>, new: Tensor<1>| {
            old.mul_scalar(1.0 - NORM_MOMENTUM) + new.without_autodiff().mul_scalar(NORM_MOMENTUM)
        };
        self.running_mean.set(blend(self.running_mean.get(), mean));
        self.running_var.set(blend(self.running_var.get(), var.mul_scalar(unbiased)));
    }

    /// gamma / sqrt(running variance + eps): what the weight of the convolution before is multiplied by when folded.
    fn fold_scale(&self) -> Tensor<1> {
        let deviation = like(self.running_var.get(), &self.weight.val()).add_scalar(NORM_EPS).sqrt();
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

/// Convolution, batch norm, the residual, then ReLU. Returns plain values: quantising them is the caller's choice.
pub fn conv_norm(
    x: &Activation<4>,
    conv: &Conv2d,
    norm: &BatchNorm,
    residual: Option<Tensor<4>>,
    act: bool,
    pass: &Pass,
) -> Tensor<4> {
    let training = x.x.device().is_autodiff();
    let batch_statistics = training && pass.norm == Norm::Batch;
    match (pass.quant, batch_statistics) {
        (Quant::Off, true) => norm_batch(convolve(x.x.clone(), conv.weight.val(), conv), norm, residual, act),
        // The weight is quantised as it will be deployed, folded, and scaled back for the batch's own statistics
        // (Jacob et al., 2018, section 3.2; PyTorch's ConvBn2d).
        (_, true) => {
            let scale = norm.fold_scale();
            let w = conv.weight.val();
            let w = conv.weight_quantizer.forward_unfolded(w.clone(), scale, pass).unwrap_or(w);
            norm_batch(convolve(x.x.clone(), w, conv), norm, residual, act)
        }
        (Quant::Off, false) => {
            let y = convolve(x.x.clone(), conv.weight.val(), conv);
            let (gamma, beta) = (norm.weight.val(), norm.bias.val());
            let (mean, var) = (like(norm.running_mean.get(), &gamma), like(norm.running_var.get(), &gamma));
            ops::batch_norm_eval(y, gamma, beta, mean, var, residual, NORM_EPS, relu_if(act))
        }
        (_, false) => {
            let scale = norm.fold_scale();
            let beta = norm.bias.val();
            let bias = beta.clone() - like(norm.running_mean.get(), &beta) * scale.clone();
            let folded = scale_rows(conv.weight.val(), scale.clone());
            let (w, bias) = match conv.weight_quantizer.forward(folded.clone(), Some(&scale), pass) {
                Some((w, scales)) => {
                    let bias = x.scale.map(|s| bias_on_grid(bias.clone(), s, &scales)).unwrap_or(bias);
                    (w, bias)
                }
                None => (folded, bias),
            };
            ops::conv2d_bias_act(x.x.clone(), w, bias, residual, conv.window(), relu_if(act), false)
        }
    }
}

fn convolve(x: Tensor<4>, w: Tensor<4>, conv: &Conv2d) -> Tensor<4> {
    ops::conv2d(x, w, None, conv.window(), false)
}

fn norm_batch(y: Tensor<4>, norm: &BatchNorm, residual: Option<Tensor<4>>, act: bool) -> Tensor<4> {
    let [n, _, h, w] = y.dims();
    let (gamma, beta) = (norm.weight.val(), norm.bias.val());
    let (y, mean, var) = ops::batch_norm(y, gamma, beta, residual, NORM_EPS, relu_if(act));
    norm.update(mean, var, n * h * w);
    y
}

fn relu_if(act: bool) -> Act {
    if act { Act::Relu } else { Act::None }
}

/// weight [out, in], bias [out].
#[derive(Module, Debug)]
pub struct Linear {
    pub weight: Param<Tensor<2>>,
    pub bias: Param<Tensor<1>>,
    pub weight_quantizer: WeightQuantizer,
}

impl Linear {
    pub fn new(c_in: usize, c_out: usize, init: &mut Init) -> Linear {
        Linear {
            weight: init.fan_in_uniform(c_in, [c_out, c_in]),
            bias: init.fan_in_uniform(c_in, [c_out]),
            weight_quantizer: WeightQuantizer::new(c_out, &init.device),
        }
    }

    /// y[n, out] of x[n, in].
    pub fn forward(&self, x: &Activation<2>, pass: &Pass) -> Tensor<2> {
        let (mut w, mut b) = (self.weight.val(), self.bias.val());
        if pass.quant != Quant::Off
            && let Some((quantised, scales)) = self.weight_quantizer.forward(w.clone(), None, pass)
        {
            w = quantised;
            b = x.scale.map(|s| bias_on_grid(b.clone(), s, &scales)).unwrap_or(b);
        }
        ops::linear(x.x.clone(), w, Some(b), false)
    }
}

/// [n, c, h, w] to [n, c, 1, 1].
pub fn global_average_pool(x: Tensor<4>) -> Tensor<4> {
    ops::global_average_pool(x)
}
