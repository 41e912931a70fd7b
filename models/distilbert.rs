//! DistilBERT (Sanh et al., 2019, arXiv:1910.01108): half of BERT's layers, no types of tokens, no pooler.
//!
//! Parameter names are those of Hugging Face's `DistilBertModel`: `transformer.layer.0.attention.q_lin`,
//! `transformer.layer.0.sa_layer_norm`, `transformer.layer.0.ffn.lin1`, ...; and of its heads: `pre_classifier`, `classifier`,
//! `qa_outputs`, `vocab_transform`, `vocab_layer_norm`, `vocab_projector.bias`.
// A field has the name that its parameters have in the published weights.
#![allow(non_snake_case)]

use crate::Output;
use crate::bert::{BertSize, TABLES, size};
use crate::text::{self, DEVIATION, Purpose, first_token, key_mask, linear};
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use lacuna_nn::buffer::Buffer;
use lacuna_nn::layers::{Act, Embedding, Init, LayerNorm, Linear, activation, attention};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Pass};
use lacuna_nn::{Classifier, Input, Tokens, removal};

pub const DISTILBERT_SIZES: &[BertSize] = &[size("distilbert_base", 6, 768, 12)];

#[derive(Module, Debug)]
pub struct Embeddings {
    pub word_embeddings: Embedding,
    pub position_embeddings: Embedding,
    pub LayerNorm: LayerNorm,
    pub quantizer: ActivationQuantizer,
}

#[derive(Module, Debug)]
pub struct Attention {
    pub q_lin: Linear,
    pub k_lin: Linear,
    pub v_lin: Linear,
    pub quantizer: ActivationQuantizer,
    pub out_lin: Linear,
    pub heads: usize,
}

#[derive(Module, Debug)]
pub struct FeedForward {
    pub lin1: Linear,
    pub quantizer: ActivationQuantizer,
    pub lin2: Linear,
}

#[derive(Module, Debug)]
pub struct Layer {
    pub attention: Attention,
    pub sa_layer_norm: LayerNorm,
    pub attention_quantizer: ActivationQuantizer,
    pub ffn: FeedForward,
    pub output_layer_norm: LayerNorm,
    pub quantizer: ActivationQuantizer,
    /// Of the whole layer.
    pub removed: Option<Buffer<1>>,
}

#[derive(Module, Debug)]
pub struct Transformer {
    pub layer: Vec<Layer>,
}

/// The table is that of the words.
#[derive(Module, Debug)]
pub struct Projector {
    pub bias: Param<Tensor<1>>,
}

/// Token ids [n, tokens] to what the purpose asks.
#[derive(Module, Debug)]
pub struct DistilBert {
    pub embeddings: Embeddings,
    pub transformer: Transformer,
    pub pre_classifier: Option<Linear>,
    pub classifier: Option<Linear>,
    pub qa_outputs: Option<Linear>,
    pub vocab_transform: Option<Linear>,
    pub vocab_layer_norm: Option<LayerNorm>,
    pub vocab_projector: Option<Projector>,
    /// Of what `classifier` reads.
    pub quantizer: ActivationQuantizer,
    #[module(skip)]
    pub purpose: Purpose,
}

impl Embeddings {
    fn new(width: usize, init: &mut Init) -> Embeddings {
        Embeddings {
            word_embeddings: Embedding::new(TABLES.words, width, DEVIATION, init),
            position_embeddings: Embedding::new(TABLES.positions, width, DEVIATION, init),
            LayerNorm: LayerNorm::new(width, TABLES.eps, init),
            quantizer: ActivationQuantizer::new(&init.device),
        }
    }

    fn forward(&self, tokens: Tokens, pass: &Pass) -> Activation<3> {
        let [_, length] = tokens.ids.dims();
        let most = self.position_embeddings.weight.dims()[0];
        assert!(length <= most, "{length} tokens in a sequence, {most} is the most");
        let places = self.position_embeddings.rows(0, length, pass);
        let x = self.word_embeddings.forward(tokens.ids, pass) + places.unsqueeze();
        self.quantizer.forward(self.LayerNorm.forward(x, None), pass)
    }
}

impl Layer {
    fn new(size: &BertSize, init: &mut Init) -> Layer {
        let BertSize { width, inner, heads, .. } = *size;
        Layer {
            attention: Attention {
                q_lin: linear(width, width, init),
                k_lin: linear(width, width, init),
                v_lin: linear(width, width, init),
                quantizer: ActivationQuantizer::new(&init.device),
                out_lin: linear(width, width, init),
                heads,
            },
            sa_layer_norm: LayerNorm::new(width, TABLES.eps, init),
            attention_quantizer: ActivationQuantizer::new(&init.device),
            ffn: FeedForward {
                lin1: linear(width, inner, init),
                quantizer: ActivationQuantizer::new(&init.device),
                lin2: linear(inner, width, init),
            },
            output_layer_norm: LayerNorm::new(width, TABLES.eps, init),
            quantizer: ActivationQuantizer::new(&init.device),
            removed: removal::new(true, &init.device),
        }
    }

    fn forward(&self, x: Activation<3>, key_mask: Option<Tensor<2>>, pass: &Pass) -> Activation<3> {
        if removal::is_removed(&self.removed) {
            return x;
        }
        let (x, skip) = x.fork();
        let y = self.attention.forward(x, key_mask, pass);
        let y = self.sa_layer_norm.forward(y, Some(skip.x));
        let (x, skip) = self.attention_quantizer.forward(y, pass).fork();
        let y = self.output_layer_norm.forward(self.ffn.forward(&x, pass), Some(skip.x));
        self.quantizer.forward(y, pass)
    }
}

impl Attention {
    fn forward(&self, x: Activation<3>, key_mask: Option<Tensor<2>>, pass: &Pass) -> Tensor<3> {
        let (x, for_value) = x.fork();
        let (for_query, for_key) = x.fork();
        let q = self.q_lin.forward(&for_query, pass);
        let k = self.k_lin.forward(&for_key, pass);
        let v = self.v_lin.forward(&for_value, pass);
        let y = self.quantizer.forward(attention(q, k, v, key_mask, self.heads), pass);
        self.out_lin.forward(&y, pass)
    }
}

impl FeedForward {
    fn forward(&self, x: &Activation<3>, pass: &Pass) -> Tensor<3> {
        let y = activation(self.lin1.forward(x, pass), Act::Gelu);
        self.lin2.forward(&self.quantizer.forward(y, pass), pass)
    }
}

impl DistilBert {
    /// Rows of the table of words.
    pub const WORDS: usize = TABLES.words;
    /// Most tokens in a sequence.
    pub const LENGTH: usize = TABLES.length();

    /// See [`crate::ModelRow::head`].
    pub const fn head(purpose: Purpose) -> &'static str {
        match purpose {
            Purpose::Classes => "pre_classifier.|classifier.",
            Purpose::Tags => "classifier.",
            Purpose::Span => "qa_outputs.",
            Purpose::Words | Purpose::Sentence => "",
        }
    }

    pub fn new(size: &BertSize, purpose: Purpose, init: &mut Init) -> DistilBert {
        let BertSize { width, classes, .. } = *size;
        let (of_words, of_sequence) = (purpose == Purpose::Words, purpose == Purpose::Classes);
        let classified = of_sequence || purpose == Purpose::Tags;
        DistilBert {
            embeddings: Embeddings::new(width, init),
            transformer: Transformer { layer: (0..size.layers).map(|_| Layer::new(size, init)).collect() },
            pre_classifier: of_sequence.then(|| linear(width, width, init)),
            classifier: classified.then(|| linear(width, classes, init)),
            qa_outputs: (purpose == Purpose::Span).then(|| linear(width, 2, init)),
            vocab_transform: of_words.then(|| linear(width, width, init)),
            vocab_layer_norm: of_words.then(|| LayerNorm::new(width, TABLES.eps, init)),
            vocab_projector: of_words.then(|| Projector { bias: init.constant(0.0, [TABLES.words]) }),
            quantizer: ActivationQuantizer::new(&init.device),
            purpose,
        }
    }

    /// What the purpose asks: see [`Purpose`]. Types of tokens do not matter.
    pub fn outputs(&self, tokens: Tokens, pass: &Pass) -> Vec<Output> {
        let mask = tokens.mask.clone();
        let key_mask = key_mask(&mask);
        let mut x = self.embeddings.forward(tokens, pass);
        for layer in &self.transformer.layer {
            x = layer.forward(x, key_mask.clone(), pass);
        }
        if let (Some(before), Some(classifier)) = (&self.pre_classifier, &self.classifier) {
            let y = activation(before.forward(&first_token(x), pass), Act::Relu);
            return vec![Output::Logits(classifier.forward(&self.quantizer.forward(y, pass), pass))];
        }
        if let Some(classifier) = &self.classifier {
            return vec![Output::Table(classifier.forward(&x, pass))];
        }
        if let Some(qa) = &self.qa_outputs {
            return text::span(qa.forward(&x, pass));
        }
        match (&self.vocab_transform, &self.vocab_layer_norm, &self.vocab_projector) {
            (Some(transform), Some(norm), Some(projector)) => {
                let y = norm.forward(activation(transform.forward(&x, pass), Act::Gelu), None);
                let table = self.embeddings.word_embeddings.table(pass);
                vec![text::words(y, table, projector.bias.val())]
            }
            _ => vec![Output::Logits(text::sentence(x.x, &mask))],
        }
    }
}

impl Classifier for DistilBert {
    /// # Panics
    /// If the network's purpose is another than classes.
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        text::only_logits(self.outputs(x.into().tokens(), pass))
    }
}
