//! What networks of tokens share: what they are for, and the steps that families have in common.

use crate::{Output, Task};
use burn::tensor::Tensor;
use lacuna_nn::layers::{Init, Linear};
use lacuna_nn::ops;
use lacuna_nn::quant::Activation;

/// What a network of tokens gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Classes of a whole sequence.
    Classes,
    /// Classes of each token.
    Tags,
    /// Where an answer begins and ends.
    Span,
    /// The words that masked tokens stand for.
    Words,
    /// A vector of length one: sequences that mean the same have vectors that point the same way.
    Sentence,
}

/// A purpose, what names of its models end with, its task, and the names of its results.
#[derive(Clone, Copy, Debug)]
pub struct PurposeRow {
    pub purpose: Purpose,
    pub suffix: &'static str,
    pub task: Task,
    pub outputs: &'static [&'static str],
}

pub const PURPOSES: [PurposeRow; 5] = [
    row(Purpose::Classes, "", Task::TextClassification, &["logits"]),
    row(Purpose::Tags, "_tokens", Task::TokenClassification, &["logits"]),
    row(Purpose::Span, "_qa", Task::QuestionAnswering, &["start_logits", "end_logits"]),
    row(Purpose::Words, "_mlm", Task::MaskedWords, &["logits"]),
    row(Purpose::Sentence, "_embed", Task::TextEmbedding, &["sentence_embedding"]),
];

const fn row(
    purpose: Purpose,
    suffix: &'static str,
    task: Task,
    outputs: &'static [&'static str],
) -> PurposeRow {
    PurposeRow { purpose, suffix, task, outputs }
}

impl Purpose {
    pub const fn row(self) -> PurposeRow {
        PURPOSES[self as usize]
    }
}

/// Standard deviation of first weights.
pub const DEVIATION: f32 = 0.02;
/// What the score of a key that is no token becomes smaller by.
const MASKED: f64 = 1e9;

pub fn linear(c_in: usize, c_out: usize, init: &mut Init) -> Linear {
    Linear::normal(c_in, c_out, DEVIATION, init)
}

/// What is added to the scores of keys: 0 for tokens, and much less for what fills a sequence up.
pub fn key_mask(mask: &Option<Tensor<2>>) -> Option<Tensor<2>> {
    mask.clone().map(|mask| mask.sub_scalar(1.0).mul_scalar(MASKED))
}

/// The first token's row [n, width] of x [n, tokens, width].
pub fn first_token(x: Activation<3>) -> Activation<2> {
    let [n, _, width] = x.x.dims();
    x.map(|x| x.narrow(1, 0, 1).reshape([n, width]))
}

/// The mean of the rows of tokens, with length one: [n, width] of x [n, tokens, width] (Reimers and Gurevych, 2019,
/// arXiv:1908.10084).
pub fn sentence(x: Tensor<3>, mask: &Option<Tensor<2>>) -> Tensor<2> {
    let [n, _, width] = x.dims();
    let mean = match mask {
        Some(mask) => {
            let weights = mask.clone().unsqueeze_dim::<3>(2);
            (x * weights.clone()).sum_dim(1) / weights.sum_dim(1).clamp_min(1e-9)
        }
        None => x.mean_dim(1),
    };
    let mean = mean.reshape([n, width]);
    let length = (mean.clone() * mean.clone()).sum_dim(1).sqrt().clamp_min(1e-12);
    mean / length
}

/// Scores of every word [n, tokens, words] for x [n, tokens, width]: products with the rows of the table of words.
pub fn words(x: Tensor<3>, table: Tensor<2>, bias: Tensor<1>) -> Output {
    Output::Table(ops::linear(x, table, Some(bias), false))
}

/// Scores of every token as the first and as the last of an answer, each [n, tokens], of y [n, tokens, 2].
pub fn span(y: Tensor<3>) -> Vec<Output> {
    let [n, tokens, _] = y.dims();
    let end = |i| Output::Logits(y.clone().narrow(2, i, 1).reshape([n, tokens]));
    vec![end(0), end(1)]
}

/// The logits of a network for classes.
///
/// # Panics
/// If these are the results of another network.
pub(crate) fn only_logits(outputs: Vec<Output>) -> Tensor<2> {
    match <[Output; 1]>::try_from(outputs) {
        Ok([Output::Logits(logits)]) => logits,
        _ => panic!("this network gives no classes of sequences"),
    }
}
