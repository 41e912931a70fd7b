//! RoBERTa (Liu et al., 2019, arXiv:1907.11692): BERT's encoder with another vocabulary, one kind of text, and other heads.
//!
//! Parameter names are those of Hugging Face's `RobertaModel` and its heads: `classifier.dense`, `classifier.out_proj`,
//! `qa_outputs`, `lm_head.dense`, `lm_head.layer_norm`, `lm_head.bias`. Positions count from row 2; sequences are filled
//! up behind their tokens, and what fills them up is masked.

use crate::Output;
use crate::bert::{BertSize, Dense, Embeddings, Encoder, Tables, size};
use crate::text::{self, Purpose, first_token, linear};
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::activation::tanh;
use lacuna_nn::layers::{Act, Init, LayerNorm, Linear, activation};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Pass};
use lacuna_nn::{Classifier, Input, Tokens};

pub const ROBERTA_SIZES: &[BertSize] =
    &[size("roberta_base", 12, 768, 12), size("roberta_large", 24, 1024, 16)];

/// Byte-level BPE; up to 512 tokens of one text.
pub const TABLES: Tables = Tables { words: 50_265, positions: 514, first_position: 2, types: 1, eps: 1e-5 };

/// One linear layer for a sequence, two of them with a tanh between; for tokens the last alone.
#[derive(Module, Debug)]
pub struct Head {
    pub dense: Linear,
    pub quantizer: ActivationQuantizer,
    pub out_proj: Linear,
}

#[derive(Module, Debug)]
pub struct WordsHead {
    pub dense: Linear,
    pub layer_norm: LayerNorm,
    pub bias: Param<Tensor<1>>,
}

/// The layer that tells classes apart: of sequences or of tokens.
#[derive(Clone, Debug)]
// There is one of these in a network; a box would only hide the layers.
#[allow(clippy::large_enum_variant)]
pub enum Classes {
    Sequence(Head),
    Tokens(Linear),
}

lacuna_nn::one_of_modules!(Classes { Sequence, Tokens });

/// Token ids [n, tokens] to what the purpose asks.
#[derive(Module, Debug)]
pub struct Roberta {
    pub embeddings: Embeddings,
    pub encoder: Encoder,
    /// Published with bodies that have no other head; nothing reads it.
    pub pooler: Option<Dense>,
    pub classifier: Option<Classes>,
    pub qa_outputs: Option<Linear>,
    pub lm_head: Option<WordsHead>,
    #[module(skip)]
    pub purpose: Purpose,
}

impl Head {
    fn new(width: usize, classes: usize, init: &mut Init) -> Head {
        Head {
            dense: linear(width, width, init),
            quantizer: ActivationQuantizer::new(&init.device),
            out_proj: linear(width, classes, init),
        }
    }

    fn forward(&self, x: Activation<3>, pass: &Pass) -> Tensor<2> {
        let y = tanh(self.dense.forward(&first_token(x), pass));
        self.out_proj.forward(&self.quantizer.forward(y, pass), pass)
    }
}

impl WordsHead {
    fn new(width: usize, init: &mut Init) -> WordsHead {
        WordsHead {
            dense: linear(width, width, init),
            layer_norm: LayerNorm::new(width, TABLES.eps, init),
            bias: init.constant(0.0, [TABLES.words]),
        }
    }

    fn forward(&self, x: &Activation<3>, table: Tensor<2>, pass: &Pass) -> Output {
        let y = activation(self.dense.forward(x, pass), Act::Gelu);
        text::words(self.layer_norm.forward(y, None), table, self.bias.val())
    }
}

impl Roberta {
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

    pub fn new(size: &BertSize, purpose: Purpose, init: &mut Init) -> Roberta {
        let BertSize { width, classes, .. } = *size;
        Roberta {
            embeddings: Embeddings::new(width, &TABLES, init),
            encoder: Encoder::new(size, TABLES.eps, init),
            pooler: (purpose == Purpose::Sentence).then(|| Dense::new(width, width, init)),
            classifier: match purpose {
                Purpose::Classes => Some(Classes::Sequence(Head::new(width, classes, init))),
                Purpose::Tags => Some(Classes::Tokens(linear(width, classes, init))),
                _ => None,
            },
            qa_outputs: (purpose == Purpose::Span).then(|| linear(width, 2, init)),
            lm_head: (purpose == Purpose::Words).then(|| WordsHead::new(width, init)),
            purpose,
        }
    }

    /// What the purpose asks: see [`Purpose`]. Types of tokens do not matter.
    pub fn outputs(&self, tokens: Tokens, pass: &Pass) -> Vec<Output> {
        let (mask, tokens) = (tokens.mask.clone(), Tokens { types: None, ..tokens });
        let x = self.encoder.forward(self.embeddings.forward(tokens, pass), &mask, pass);
        match (&self.classifier, &self.qa_outputs, &self.lm_head) {
            (Some(Classes::Sequence(head)), ..) => vec![Output::Logits(head.forward(x, pass))],
            (Some(Classes::Tokens(classifier)), ..) => vec![Output::Table(classifier.forward(&x, pass))],
            (_, Some(qa), _) => text::span(qa.forward(&x, pass)),
            (.., Some(head)) => {
                vec![head.forward(&x, self.embeddings.word_embeddings.table(pass), pass)]
            }
            _ => vec![Output::Logits(text::sentence(x.x, &mask))],
        }
    }
}

impl Classifier for Roberta {
    /// # Panics
    /// If the network's purpose is another than classes.
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        text::only_logits(self.outputs(x.into().tokens(), pass))
    }
}
