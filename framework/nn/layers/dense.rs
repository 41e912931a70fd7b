//! Layers over the last axis: linear, layer norm, embedding.

use super::Init;
use crate::buffer::Buffer;
use crate::features::{self, Side};
use crate::ops;
use crate::quant::{Activation, ActivationQuantizer, Pass, WeightQuantizer, bias_on_grid};
use crate::removal;
use crate::scheme::LayerScheme;
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};

/// weight [out, in], bias [out].
#[derive(Module, Debug)]
pub struct Linear {
    pub weight: Param<Tensor<2>>,
    pub bias: Param<Tensor<1>>,
    pub weight_quantizer: WeightQuantizer,
    /// Where a scheme asks for quantised outputs.
    pub output_quantizer: ActivationQuantizer,
    /// See [`removal`].
    pub removed: Option<Buffer<1>>,
}

impl Linear {
    /// PyTorch's first values.
    pub fn new(c_in: usize, c_out: usize, init: &mut Init) -> Linear {
        let weight = init.fan_in_uniform(c_in, [c_out, c_in]);
        let bias = init.fan_in_uniform(c_in, [c_out]);
        Linear::of(weight, bias, init)
    }

    /// Normal weights and no bias, the first values of transformers.
    pub fn normal(c_in: usize, c_out: usize, deviation: f32, init: &mut Init) -> Linear {
        let weight = init.normal(deviation, [c_out, c_in]);
        let bias = init.constant(0.0, [c_out]);
        Linear::of(weight, bias, init)
    }

    fn of(weight: Param<Tensor<2>>, bias: Param<Tensor<1>>, init: &Init) -> Linear {
        let [c_out, c_in] = weight.dims();
        Linear {
            weight,
            bias,
            weight_quantizer: WeightQuantizer::new(c_out, &init.device),
            output_quantizer: ActivationQuantizer::with(None, &init.device),
            removed: removal::new(c_in == c_out, &init.device),
        }
    }

    /// y[.., out] of x[.., in].
    pub fn forward<const D: usize>(&self, x: &Activation<D>, pass: &Pass) -> Tensor<D> {
        if removal::is_removed(&self.removed) {
            return x.x.clone();
        }
        let (layer, weights) = (self.weight.id, &self.weight_quantizer);
        let x = weights.input(layer, x, pass);
        features::give_rows(layer, Side::Input, &x.x);
        let (mut w, mut b) = (self.weight.val(), self.bias.val());
        if let Some(q) = weights.forward(w.clone(), None, pass) {
            w = q.w;
            b = x.scale.map(|s| bias_on_grid(b.clone(), s, &q.scales)).unwrap_or(b);
        }
        let y = ops::linear(x.x, w, Some(b), pass.sparse);
        features::give_rows(layer, Side::Output, &y);
        match weights.layer(pass).output {
            Some(_) => self.output_quantizer.forward(y, pass).x,
            None => y,
        }
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

/// A row of weight [rows, width] per id. Stays f32 unless a scheme asks for quantised embeddings.
#[derive(Module, Debug)]
pub struct Embedding {
    pub weight: Param<Tensor<2>>,
    pub weight_quantizer: WeightQuantizer,
}

impl Embedding {
    pub fn new(rows: usize, width: usize, deviation: f32, init: &mut Init) -> Embedding {
        Embedding {
            weight: init.normal(deviation, [rows, width]),
            weight_quantizer: WeightQuantizer::with(LayerScheme::OFF, rows, &init.device),
        }
    }

    /// [n, tokens, width] of ids [n, tokens].
    pub fn forward(&self, ids: Tensor<2, Int>, pass: &Pass) -> Tensor<3> {
        ops::embedding(self.table(pass), ids)
    }

    /// `n` rows, the first at `from`.
    pub fn rows(&self, from: usize, n: usize, pass: &Pass) -> Tensor<2> {
        self.table(pass).narrow(0, from, n)
    }

    /// The table as it is computed with.
    pub fn table(&self, pass: &Pass) -> Tensor<2> {
        let w = self.weight.val();
        self.weight_quantizer.forward(w.clone(), None, pass).map_or(w, |q| q.w)
    }
}
