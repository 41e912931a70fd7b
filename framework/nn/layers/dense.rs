//! Layers over the last axis: linear, layer norm, embedding.

use super::Init;
use crate::ops;
use crate::quant::{Activation, Pass, Quant, WeightQuantizer, bias_on_grid};
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};

/// weight [out, in], bias [out].
#[derive(Module, Debug)]
pub struct Linear {
    pub weight: Param<Tensor<2>>,
    pub bias: Param<Tensor<1>>,
    pub weight_quantizer: WeightQuantizer,
}

impl Linear {
    /// PyTorch's first values.
    pub fn new(c_in: usize, c_out: usize, init: &mut Init) -> Linear {
        let weight = init.fan_in_uniform(c_in, [c_out, c_in]);
        let bias = init.fan_in_uniform(c_in, [c_out]);
        Linear { weight, bias, weight_quantizer: WeightQuantizer::new(c_out, &init.device) }
    }

    /// Normal weights and no bias, the first values of transformers.
    pub fn normal(c_in: usize, c_out: usize, deviation: f32, init: &mut Init) -> Linear {
        let weight = init.normal(deviation, [c_out, c_in]);
        let bias = init.constant(0.0, [c_out]);
        Linear { weight, bias, weight_quantizer: WeightQuantizer::new(c_out, &init.device) }
    }

    /// y[.., out] of x[.., in].
    pub fn forward<const D: usize>(&self, x: &Activation<D>, pass: &Pass) -> Tensor<D> {
        let (mut w, mut b) = (self.weight.val(), self.bias.val());
        if pass.quant != Quant::Off
            && let Some((quantised, scales)) = self.weight_quantizer.forward(w.clone(), None, pass)
        {
            w = quantised;
            b = x.scale.map(|s| bias_on_grid(b.clone(), s, &scales)).unwrap_or(b);
        }
        ops::linear(x.x.clone(), w, Some(b), pass.sparse)
    }
}

/// Layer normalisation (Ba et al., 2016) over the last axis.
#[derive(Module, Debug)]
pub struct LayerNorm {
    pub weight: Param<Tensor<1>>,
    pub bias: Param<Tensor<1>>,
    pub eps: f64,
}

impl LayerNorm {
    pub fn new(width: usize, eps: f64, init: &mut Init) -> LayerNorm {
        LayerNorm { weight: init.constant(1.0, [width]), bias: init.constant(0.0, [width]), eps }
    }

    /// The norm of x + residual.
    pub fn forward<const D: usize>(&self, x: Tensor<D>, residual: Option<Tensor<D>>) -> Tensor<D> {
        ops::layer_norm(x, residual, self.weight.val(), self.bias.val(), self.eps)
    }
}

/// A row of weight [rows, width] per id. Stays f32 when a model is quantised.
#[derive(Module, Debug)]
pub struct Embedding {
    pub weight: Param<Tensor<2>>,
}

impl Embedding {
    pub fn new(rows: usize, width: usize, deviation: f32, init: &mut Init) -> Embedding {
        Embedding { weight: init.normal(deviation, [rows, width]) }
    }

    /// [n, tokens, width] of ids [n, tokens].
    pub fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        ops::embedding(self.weight.val(), ids)
    }

    /// Rows 0..n.
    pub fn first(&self, n: usize) -> Tensor<2> {
        self.weight.val().narrow(0, 0, n)
    }
}
