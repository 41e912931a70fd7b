//! BERT (Devlin et al., 2019, arXiv:1810.04805) and MiniLM, which is built alike: token sequences to what a [`Purpose`] asks.
//!
//! Parameter names are those of Hugging Face's `BertModel`: `embeddings.word_embeddings`,
//! `encoder.layer.0.attention.self.query`, `encoder.layer.0.output.LayerNorm`, ..., `pooler.dense`; and of its heads:
//! `classifier`, `qa_outputs`, `cls.predictions`. Scores of words are products with `embeddings.word_embeddings`.
// A field has the name that its parameters have in the published weights.
#![allow(non_snake_case)]

use crate::Output as Result;
use crate::text::{self, DEVIATION, Purpose, first_token, key_mask, linear};
use burn::module::{Module, Param};
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
    /// Of sequences or tokens, for the purposes that have them.
    pub classes: usize,
    pub layers: usize,
    pub width: usize,
    pub heads: usize,
    /// Width between the two linear layers behind attention.
    pub inner: usize,
}

pub(crate) const fn size(name: &'static str, layers: usize, width: usize, heads: usize) -> BertSize {
    BertSize { name, classes: 2, layers, width, heads, inner: 4 * width }
}

pub const BERT_SIZES: &[BertSize] = &[
    size("bert_tiny", 2, 128, 2),
    size("bert_mini", 4, 256, 4),
    size("bert_small", 4, 512, 8),
    size("bert_medium", 8, 512, 8),
    size("bert_base", 12, 768, 12),
    size("bert_large", 24, 1024, 16),
    size("minilm_l6", 6, 384, 12),
    size("minilm_l12", 12, 384, 12),
];

/// What a family looks up for each token.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    pub words: usize,
    pub positions: usize,
    /// Row of the first token's position.
    pub first_position: usize,
    pub types: usize,
    /// Of all layer norms.
    pub eps: f64,
}

/// WordPiece of lower-case English; up to 512 tokens of two texts.
pub const TABLES: Tables = Tables { words: 30_522, positions: 512, first_position: 0, types: 2, eps: 1e-12 };

impl Tables {
    /// Most tokens in a sequence.
    pub const fn length(&self) -> usize {
        self.positions - self.first_position
    }
}

#[derive(Module, Debug)]
pub struct Embeddings {
    pub word_embeddings: Embedding,
    pub position_embeddings: Embedding,
    pub token_type_embeddings: Embedding,
    pub LayerNorm: LayerNorm,
    pub quantizer: ActivationQuantizer,
    pub first_position: usize,
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

/// What scores of words are made from.
#[derive(Module, Debug)]
pub struct Transform {
    pub dense: Linear,
    pub LayerNorm: LayerNorm,
}

#[derive(Module, Debug)]
pub struct Predictions {
    pub transform: Transform,
    pub bias: Param<Tensor<1>>,
}

#[derive(Module, Debug)]
pub struct Cls {
    pub predictions: Predictions,
}

/// Token ids [n, tokens] to what the purpose asks.
#[derive(Module, Debug)]
pub struct Bert {
    pub embeddings: Embeddings,
    pub encoder: Encoder,
    /// Published with every body that is no other head's; only classes read it.
    pub pooler: Option<Dense>,
    pub classifier: Option<Linear>,
    pub qa_outputs: Option<Linear>,
    pub cls: Option<Cls>,
    #[module(skip)]
    pub purpose: Purpose,
}

impl Output {
    fn new(c_in: usize, width: usize, eps: f64, init: &mut Init) -> Output {
        Output {
            dense: linear(c_in, width, init),
            LayerNorm: LayerNorm::new(width, eps, init),
            quantizer: ActivationQuantizer::new(&init.device),
        }
    }

    fn forward(&self, x: &Activation<3>, residual: Tensor<3>, pass: &Pass) -> Activation<3> {
        let y = self.dense.forward(x, pass);
        self.quantizer.forward(self.LayerNorm.forward(y, Some(residual)), pass)
    }
}

impl Dense {
    pub(crate) fn new(c_in: usize, c_out: usize, init: &mut Init) -> Dense {
        Dense { dense: linear(c_in, c_out, init), quantizer: ActivationQuantizer::new(&init.device) }
    }

    /// tanh of the linear layer of the first token.
    pub(crate) fn pool(&self, x: Activation<3>, pass: &Pass) -> Activation<2> {
        let y = tanh(self.dense.forward(&first_token(x), pass));
        self.quantizer.forward(y, pass)
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
    fn new(size: &BertSize, eps: f64, init: &mut Init) -> Layer {
        Layer {
            attention: Attention {
                inner: SelfAttention::new(size.width, size.heads, init),
                output: Output::new(size.width, size.width, eps, init),
            },
            intermediate: Dense::new(size.width, size.inner, init),
            output: Output::new(size.inner, size.width, eps, init),
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

impl Encoder {
    pub(crate) fn new(size: &BertSize, eps: f64, init: &mut Init) -> Encoder {
        Encoder { layer: (0..size.layers).map(|_| Layer::new(size, eps, init)).collect() }
    }

    pub(crate) fn forward(&self, x: Activation<3>, mask: &Option<Tensor<2>>, pass: &Pass) -> Activation<3> {
        let key_mask = key_mask(mask);
        self.layer.iter().fold(x, |x, layer| layer.forward(x, key_mask.clone(), pass))
    }
}

impl Embeddings {
    pub(crate) fn new(width: usize, tables: &Tables, init: &mut Init) -> Embeddings {
        Embeddings {
            word_embeddings: Embedding::new(tables.words, width, DEVIATION, init),
            position_embeddings: Embedding::new(tables.positions, width, DEVIATION, init),
            token_type_embeddings: Embedding::new(tables.types, width, DEVIATION, init),
            LayerNorm: LayerNorm::new(width, tables.eps, init),
            quantizer: ActivationQuantizer::new(&init.device),
            first_position: tables.first_position,
        }
    }

    pub(crate) fn forward(&self, tokens: Tokens, pass: &Pass) -> Activation<3> {
        let [_, length] = tokens.ids.dims();
        let most = self.position_embeddings.weight.dims()[0] - self.first_position;
        assert!(length <= most, "{length} tokens in a sequence, {most} is the most");
        let places = self.position_embeddings.rows(self.first_position, length, pass);
        let x = self.word_embeddings.forward(tokens.ids, pass);
        let x = match tokens.types {
            Some(types) => x + places.unsqueeze() + self.token_type_embeddings.forward(types, pass),
            None => x + (places + self.token_type_embeddings.rows(0, 1, pass)).unsqueeze(),
        };
        self.quantizer.forward(self.LayerNorm.forward(x, None), pass)
    }
}

impl Transform {
    pub(crate) fn new(width: usize, eps: f64, init: &mut Init) -> Transform {
        Transform { dense: linear(width, width, init), LayerNorm: LayerNorm::new(width, eps, init) }
    }

    pub(crate) fn forward(&self, x: &Activation<3>, pass: &Pass) -> Tensor<3> {
        self.LayerNorm.forward(activation(self.dense.forward(x, pass), Act::Gelu), None)
    }
}

impl Bert {
    /// Rows of the table of words.
    pub const WORDS: usize = TABLES.words;
    /// Most tokens in a sequence.
    pub const LENGTH: usize = TABLES.length();

    /// See [`crate::ModelRow::head`].
    pub const fn head(purpose: Purpose) -> &'static str {
        match purpose {
            Purpose::Classes | Purpose::Tags => "classifier.",
            Purpose::Span => "qa_outputs.",
            Purpose::Words | Purpose::Sentence => "",
        }
    }

    pub fn new(size: &BertSize, purpose: Purpose, init: &mut Init) -> Bert {
        let BertSize { width, classes, .. } = *size;
        let pooled = matches!(purpose, Purpose::Classes | Purpose::Sentence);
        let classified = matches!(purpose, Purpose::Classes | Purpose::Tags);
        Bert {
            embeddings: Embeddings::new(width, &TABLES, init),
            encoder: Encoder::new(size, TABLES.eps, init),
            pooler: pooled.then(|| Dense::new(width, width, init)),
            classifier: classified.then(|| linear(width, classes, init)),
            qa_outputs: (purpose == Purpose::Span).then(|| linear(width, 2, init)),
            cls: (purpose == Purpose::Words).then(|| Cls {
                predictions: Predictions {
                    transform: Transform::new(width, TABLES.eps, init),
                    bias: init.constant(0.0, [TABLES.words]),
                },
            }),
            purpose,
        }
    }

    /// What the purpose asks: see [`Purpose`].
    pub fn outputs(&self, tokens: Tokens, pass: &Pass) -> Vec<Result> {
        let mask = tokens.mask.clone();
        let x = self.encoder.forward(self.embeddings.forward(tokens, pass), &mask, pass);
        match (&self.pooler, &self.classifier, &self.qa_outputs, &self.cls) {
            (Some(pooler), Some(classifier), ..) => {
                vec![Result::Logits(classifier.forward(&pooler.pool(x, pass), pass))]
            }
            (_, Some(classifier), ..) => vec![Result::Table(classifier.forward(&x, pass))],
            (.., Some(qa), _) => text::span(qa.forward(&x, pass)),
            (.., Some(Cls { predictions })) => {
                let table = self.embeddings.word_embeddings.table(pass);
                vec![text::words(predictions.transform.forward(&x, pass), table, predictions.bias.val())]
            }
            _ => vec![Result::Logits(text::sentence(x.x, &mask))],
        }
    }
}

impl Classifier for Bert {
    /// # Panics
    /// If the network's purpose is another than classes.
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        text::only_logits(self.outputs(x.into().tokens(), pass))
    }
}
