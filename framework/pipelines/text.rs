//! Networks of tokens on the engine: texts in, vectors of their meaning or classes out.

use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use lacuna_data::TextSet;
use lacuna_engine::{Options, Session};
use lacuna_ir::{DType, Graph, OpKind, Tensor};

/// Texts in a run.
const BATCH: usize = 32;
/// Sequences of a run are as long as its longest, rounded up to a multiple of this.
const LENGTH_STEP: usize = 8;

/// What an input of a graph is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feed {
    Ids,
    /// 1 where a token is.
    Mask,
    /// Which of two texts a token is of: the first.
    Types,
}

const FEEDS: [(&str, Feed); 3] =
    [("input_ids", Feed::Ids), ("attention_mask", Feed::Mask), ("token_type_ids", Feed::Types)];

/// The result that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    /// [n, width]
    Rows,
    /// [n, tokens, width]: the mean over tokens is a text's.
    Tokens,
}

struct Network {
    session: Session,
    feeds: Vec<(Feed, DType)>,
    output: usize,
    reads: Reads,
    filler: u32,
    model: String,
}

impl Network {
    /// Compiles a graph of integer inputs `[n, tokens]` that are called as Hugging Face calls them.
    fn new(graph: &Graph, filler: u32, reads: &[Reads], threads: Option<usize>) -> Result<Network> {
        let misfit = |why: String| Error::Model { model: graph.name.clone(), why };
        let session = Session::new(graph, &Options { threads, ..Options::default() })?;
        let mut feeds = Vec::new();
        for input in session.inputs() {
            let feed = FEEDS.iter().find(|(name, _)| input.name.contains(name)).map(|(_, feed)| *feed);
            match (feed, input.dtype, input.dims.len()) {
                (Some(feed), DType::I64 | DType::I32, 2) => feeds.push((feed, input.dtype)),
                _ => {
                    let names = FEEDS.map(|(name, _)| name).join(", ");
                    return Err(misfit(format!(
                        "not a network of tokens: input '{}' is none of {names} (see `lacuna analyze`)",
                        input.name
                    )));
                }
            }
        }
        if !feeds.iter().any(|(feed, _)| *feed == Feed::Ids) {
            return Err(misfit("not a network of tokens: no input is called input_ids".into()));
        }
        let named = |kind: Reads| {
            let rank = if kind == Reads::Rows { 2 } else { 3 };
            let fits = |o: &lacuna_engine::Port| o.dtype == DType::F32 && o.dims.len() == rank;
            session.outputs().iter().position(fits).map(|output| (output, kind))
        };
        // What sentence-transformers calls so is a text's vector whatever else there is.
        let own = |o: &lacuna_engine::Port| o.name == "sentence_embedding" && o.dims.len() == 2;
        let own = session.outputs().iter().position(own).map(|output| (output, Reads::Rows));
        let (output, reads) = own
            .or_else(|| reads.iter().find_map(|&kind| named(kind)))
            .ok_or_else(|| misfit("no result is a row of numbers for each text".into()))?;
        Ok(Network { session, feeds, output, reads, filler, model: graph.name.clone() })
    }

    /// A row for each sequence.
    fn rows(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        order.sort_by_key(|&i| sequences[i].len());
        let mut rows = vec![Vec::new(); sequences.len()];
        for part in order.chunks(BATCH) {
            let batch: Vec<&[u32]> = part.iter().map(|&i| sequences[i]).collect();
            for (&i, row) in part.iter().zip(self.run(&batch)?) {
                rows[i] = row;
            }
        }
        Ok(rows)
    }

    fn run(&mut self, batch: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let longest = batch.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let dims = [batch.len(), longest.next_multiple_of(LENGTH_STEP)];
        let of = |feed: Feed| -> Vec<i64> {
            let place = |(ids, at): (&[u32], usize)| match (feed, ids.get(at)) {
                (Feed::Types, _) => 0,
                (Feed::Mask, id) => i64::from(id.is_some()),
                (Feed::Ids, id) => i64::from(id.copied().unwrap_or(self.filler)),
            };
            batch.iter().flat_map(|&ids| (0..dims[1]).map(move |at| (ids, at))).map(place).collect()
        };
        let input = |&(feed, dtype): &(Feed, DType)| match dtype {
            DType::I64 => Tensor::from_i64(&dims, of(feed)),
            _ => Tensor::from_i32(&dims, of(feed).into_iter().map(|v| v as i32).collect()),
        };
        let inputs: Vec<Tensor> = self.feeds.iter().map(input).collect();
        let results = self.session.run(&inputs)?;
        let result = results.get(self.output).and_then(|t| Some((t.dims.as_slice(), t.as_f32()?)));
        match (self.reads, result) {
            (Reads::Rows, Some((&[n, width], values))) if n == batch.len() && width > 0 => {
                Ok(values.chunks_exact(width).map(<[f32]>::to_vec).collect())
            }
            (Reads::Tokens, Some((&[n, tokens, width], values))) if n == batch.len() && tokens == dims[1] => {
                let text = |i: usize| mean(&values[i * tokens * width..][..batch[i].len() * width], width);
                Ok((0..n).map(text).collect())
            }
            (_, found) => Err(Error::Model {
                model: self.model.clone(),
                why: format!("{dims:?} tokens gave {:?}", found.map(|(dims, _)| dims)),
            }),
        }
    }
}

/// The mean of rows.
fn mean(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0.0; width];
    for row in rows.chunks_exact(width.max(1)) {
        sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
    }
    let count = (rows.len() / width.max(1)).max(1) as f32;
    sum.into_iter().map(|s| s / count).collect()
}

/// Texts to vectors of length one.
pub struct Embedder {
    network: Network,
    tokenizer: Tokenizer,
    /// Most tokens of a text.
    most: usize,
}

impl Embedder {
    /// Compiles a graph whose result is a vector for each text, or one for each token, of which the mean is taken. A text is
    /// cut behind `most` tokens (as the vocabulary's file says, if absent).
    ///
    /// # Errors
    /// A graph that is no such network, or one that the engine cannot run.
    pub fn new(
        graph: &Graph,
        tokenizer: Tokenizer,
        most: Option<usize>,
        threads: Option<usize>,
    ) -> Result<Embedder> {
        let network = Network::new(graph, tokenizer.filler, &[Reads::Tokens, Reads::Rows], threads)?;
        let most = most.unwrap_or(tokenizer.usual);
        Ok(Embedder { network, tokenizer, most })
    }

    /// A vector for each text.
    pub fn embed<T: AsRef<str>>(&mut self, texts: &[T]) -> Result<Vec<Vec<f32>>> {
        let sequences = self.tokenizer.encode_all(texts, self.most)?;
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let mut rows = self.network.rows(&sequences)?;
        for row in &mut rows {
            let length = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
            row.iter_mut().for_each(|v| *v /= length);
        }
        Ok(rows)
    }
}

/// The cosine of the angle between two vectors of length one.
pub fn similarity(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Texts, or their tokens, to classes.
pub struct TextClassifier {
    network: Network,
    gives_probabilities: bool,
}

impl TextClassifier {
    /// Compiles a graph whose result is `[n, classes]`. Sequences are filled up with `filler`.
    ///
    /// # Errors
    /// As [`Embedder::new`].
    pub fn new(graph: &Graph, filler: u32, threads: Option<usize>) -> Result<TextClassifier> {
        let network = Network::new(graph, filler, &[Reads::Rows], threads)?;
        let last = graph.outputs.get(network.output).and_then(|&v| graph.producer(v));
        let gives_probabilities = last.is_some_and(|op| graph.op_kind[op] == OpKind::Softmax);
        Ok(TextClassifier { network, gives_probabilities })
    }

    /// A row of logits for each sequence of tokens.
    pub fn logits(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        self.network.rows(sequences)
    }

    /// Probabilities of the classes of each sequence.
    pub fn probabilities(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let mut rows = self.logits(sequences)?;
        for row in rows.iter_mut().filter(|_| !self.gives_probabilities) {
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|v| *v = (*v - top).exp());
            let sum: f32 = row.iter().sum();
            row.iter_mut().for_each(|v| *v /= sum);
        }
        Ok(rows)
    }

    /// How many sequences of a set are put into their own class; `step` is told how many more are done.
    pub fn correct(&mut self, set: &TextSet, mut step: impl FnMut(u64)) -> Result<usize> {
        let mut correct = 0;
        let all: Vec<usize> = (0..set.len()).collect();
        for part in all.chunks(8 * BATCH) {
            let sequences: Vec<&[u32]> = part.iter().map(|&i| set.sequence(i)).collect();
            for (&i, row) in part.iter().zip(self.logits(&sequences)?) {
                correct += usize::from(lacuna_data::metrics::argmax(&row) == set.labels[i] as usize);
            }
            step(part.len() as u64);
        }
        Ok(correct)
    }
}

/// The tokens of texts as a set: `labels` are numbers of `classes`.
pub fn text_set(
    tokenizer: &Tokenizer,
    texts: &[String],
    labels: Vec<u32>,
    classes: Vec<String>,
    most: usize,
) -> Result<TextSet> {
    let mut set = TextSet { ids: Vec::new(), ends: Vec::new(), labels, classes, filler: tokenizer.filler };
    for sequence in tokenizer.encode_all(texts, most)? {
        set.ids.extend(sequence);
        set.ends.push(set.ids.len());
    }
    Ok(set)
}
