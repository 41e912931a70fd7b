//! BERT (Devlin et al., 2019, arXiv:1810.04805) with a pooler and a classifier: token sequences to classes.
//!
//! Parameter names are those of Hugging Face's `BertModel`: `embeddings.word_embeddings`,
//! `encoder.layer.0.attention.self.query`, `encoder.layer.0.output.LayerNorm`, ..., `pooler.dense`; and `classifier`.
//! All tokens are of the first type, that is, of one sequence.
// A field has the name that its parameters have in the published weights.
#![allow(non_snake_case)]

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::tanh;
use lacuna_nn::buffer::Buffer;
use lacuna_nn::layers::{Act, Embedding, Init, LayerNorm, Linear, activation, attention};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Pass};
use lacuna_nn::{Classifier, Input, Tokens, named_module, removal};

/// One size of the family.
#[derive(Clone, Copy, Debug)]
pub struct BertSize {
    pub name: &'static str,
    pub classes: usize,
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    /// Width between the two linear layers behind attention.
    pub inner: usize,
}

const fn size(name: &'static str, layers: usize, width: usize, heads: usize) -> BertSize {
    BertSize { name, classes: 2, layers, width, heads, inner: 4 * width }
}

pub const BERT_SIZES: &[BertSize] = &[
    size("bert_tiny", 2, 128, 2),
    size("bert_mini", 4, 256, 4),
    size("bert_small", 4, 512, 8),
    size("bert_medium", 8, 512, 8),
    size("bert_base", 12, 768, 12),
    size("minilm_l6", 6, 384, 12),
];

/// Rows of the table of tokens, WordPiece of lower-case English.
pub const VOCABULARY: usize = 30_522;
/// Most tokens in a sequence.
pub const POSITIONS: usize = 512;
const TYPES: usize = 2;
const EPS: f64 = 1e-12;
/// Of first weights, around 0.
const DEVIATION: f32 = 0.02;
/// What the score of a key that is no token becomes smaller by.
const MASKED: f64 = 1e9;

#[derive(Module, Debug)]
pub struct Embeddings {
    pub word_embeddings: Embedding,
    pub position_embeddings: Embedding,
    pub token_type_embeddings: Embedding,
    pub LayerNorm: LayerNorm,
    pub quantizer: ActivationQuantizer,
}

#[derive(Module, Debug)]
pub struct SelfAttention {
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub quantizer: ActivationQuantizer,
    pub heads: usize,
}

/// A linear layer and the norm of its sum with what entered the sublayer.
#[derive(Module, Debug)]
pub struct Output {
    pub dense: Linear,
    pub LayerNorm: LayerNorm,
    pub quantizer: ActivationQuantizer,
}

#[derive(Clone, Debug)]
pub struct Attention {
    pub inner: SelfAttention,
    pub output: Output,
}

named_module!(Attention { inner => "self", output => "output" });

/// A linear layer and its activation.
#[derive(Module, Debug)]
pub struct Dense {
    pub dense: Linear,
    pub quantizer: ActivationQuantizer,
}

#[derive(Module, Debug)]
pub struct Layer {
    pub attention: Attention,
    pub intermediate: Dense,
    pub output: Output,
    /// Of the whole layer.
    pub removed: Option<Buffer<1>>,
}

#[derive(Module, Debug)]
pub struct Encoder {
    pub layer: Vec<Layer>,
}

/// Token ids [n, tokens] to logits [n, classes].
#[derive(Module, Debug)]
pub struct Bert {
    pub embeddings: Embeddings,
    pub encoder: Encoder,
    pub pooler: Dense,
    pub classifier: Linear,
}

fn linear(c_in: usize, c_out: usize, init: &mut Init) -> Linear {
    Linear::normal(c_in, c_out, DEVIATION, init)
}

impl Output {
    fn new(c_in: usize, width: usize, init: &mut Init) -> Output {
        Output {
            dense: linear(c_in, width, init),
            LayerNorm: LayerNorm::new(width, EPS, init),
            quantizer: ActivationQuantizer::new(&init.device),
        }
    }

    fn forward(&self, x: &Activation<3>, residual: Tensor<3>, pass: &Pass) -> Activation<3> {
        let y = self.dense.forward(x, pass);
        self.quantizer.forward(self.LayerNorm.forward(y, Some(residual)), pass)
    }
}

impl Dense {
    fn new(c_in: usize, c_out: usize, init: &mut Init) -> Dense {
        Dense { dense: linear(c_in, c_out, init), quantizer: ActivationQuantizer::new(&init.device) }
    }
}

impl SelfAttention {
    fn new(width: usize, heads: usize, init: &mut Init) -> SelfAttention {
        SelfAttention {
            query: linear(width, width, init),
            key: linear(width, width, init),
            value: linear(width, width, init),
            quantizer: ActivationQuantizer::new(&init.device),
            heads,
        }
    }

    fn forward(&self, x: Activation<3>, key_mask: Option<Tensor<2>>, pass: &Pass) -> Activation<3> {
        let (x, for_value) = x.fork();
        let (for_query, for_key) = x.fork();
        let q = self.query.forward(&for_query, pass);
        let k = self.key.forward(&for_key, pass);
        let v = self.value.forward(&for_value, pass);
        self.quantizer.forward(attention(q, k, v, key_mask, self.heads), pass)
    }
}

impl Layer {
    fn new(size: &BertSize, init: &mut Init) -> Layer {
        Layer {
            attention: Attention {
                inner: SelfAttention::new(size.width, size.heads, init),
                output: Output::new(size.width, size.width, init),
            },
            intermediate: Dense::new(size.width, size.inner, init),
            output: Output::new(size.inner, size.width, init),
            removed: removal::new(true, &init.device),
        }
    }

    fn forward(&self, x: Activation<3>, key_mask: Option<Tensor<2>>, pass: &Pass) -> Activation<3> {
        if removal::is_removed(&self.removed) {
            return x;
        }
        let (x, skip) = x.fork();
        let y = self.attention.inner.forward(x, key_mask, pass);
        let (x, skip) = self.attention.output.forward(&y, skip.x, pass).fork();
        let y = activation(self.intermediate.dense.forward(&x, pass), Act::Gelu);
        let y = self.intermediate.quantizer.forward(y, pass);
        self.output.forward(&y, skip.x, pass)
    }
}

impl Embeddings {
    fn new(width: usize, init: &mut Init) -> Embeddings {
        Embeddings {
            word_embeddings: Embedding::new(VOCABULARY, width, DEVIATION, init),
            position_embeddings: Embedding::new(POSITIONS, width, DEVIATION, init),
            token_type_embeddings: Embedding::new(TYPES, width, DEVIATION, init),
            LayerNorm: LayerNorm::new(width, EPS, init),
            quantizer: ActivationQuantizer::new(&init.device),
        }
    }
}

impl Bert {
    pub fn new(size: &BertSize, init: &mut Init) -> Bert {
        Bert {
            embeddings: Embeddings::new(size.width, init),
            encoder: Encoder { layer: (0..size.layers).map(|_| Layer::new(size, init)).collect() },
            pooler: Dense::new(size.width, size.width, init),
            classifier: linear(size.width, size.classes, init),
        }
    }
}

impl Classifier for Bert {
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        let Tokens { ids, mask } = x.into().tokens();
        let [n, tokens] = ids.dims();
        assert!(tokens <= POSITIONS, "{tokens} tokens in a sequence, {POSITIONS} is the most");
        let key_mask = mask.map(|mask| mask.sub_scalar(1.0).mul_scalar(MASKED));
        let e = &self.embeddings;
        let places = e.position_embeddings.first(tokens, pass) + e.token_type_embeddings.first(1, pass);
        let x = e.word_embeddings.forward(ids, pass) + places.unsqueeze();
        let mut x = e.quantizer.forward(e.LayerNorm.forward(x, None), pass);
        for layer in &self.encoder.layer {
            x = layer.forward(x, key_mask.clone(), pass);
        }
        let width = x.x.dims()[2];
        let first = x.map(|x| x.narrow(1, 0, 1).reshape([n, width]));
        let pooled = tanh(self.pooler.dense.forward(&first, pass));
        self.classifier.forward(&self.pooler.quantizer.forward(pooled, pass), pass)
    }
}
