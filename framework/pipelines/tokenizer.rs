//! Texts to numbers of tokens, as the network beside which a vocabulary lies was taught them.

use crate::{Error, Result};
use std::path::{Path, PathBuf};
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{PostProcessor, Tokenizer as Inner, TruncationParams};

/// Most bytes of a vocabulary's file.
pub const FILE_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of one text.
pub const TEXT_BYTES_MAX: usize = lacuna_data::texts::TEXT_BYTES_MAX;
/// Names of files that hold one, in the order in which they are looked for.
pub const FILES: [&str; 2] = ["tokenizer.json", "vocab.txt"];
/// Tokens of a text where nobody says how many.
pub const USUAL_TOKENS: usize = 128;

pub struct Tokenizer {
    inner: Inner,
    pub path: PathBuf,
    /// What shorter sequences are filled up with.
    pub filler: u32,
    /// Most tokens of a text, as the file says it.
    pub usual: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or a list of word pieces as BERT's `vocab.txt` is one: of lower-case words, unless a
    /// `tokenizer_config.json` beside it says otherwise.
    ///
    /// Errors: a file that is too large, cannot be read, or lacks the tokens that begin and end a text.
    pub fn open(path: &Path) -> Result<Tokenizer> {
        let misfit = |why: String| Error::Model { model: path.display().to_string(), why };
        let bytes = read(path)?;
        let is_json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
        let mut inner = match is_json {
            true => Inner::from_bytes(&bytes).map_err(|e| misfit(format!("no vocabulary: {e}")))?,
            false => word_pieces(path, &bytes)?,
        };
        let usual = inner.get_truncation().map_or(USUAL_TOKENS, |t| t.max_length).max(1);
        let padding = inner.get_padding().map(|padding| padding.pad_id);
        let named = ["[PAD]", "<pad>"].iter().find_map(|name| inner.token_to_id(name));
        let filler = padding.or(named).unwrap_or(0);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| misfit(e.to_string()))?;
        Ok(Tokenizer { inner, path: path.to_owned(), filler, usual })
    }

    /// The vocabulary in the folder of a model's file, or in the run folder that the file lies in.
    pub fn beside(model: &Path) -> Result<Tokenizer> {
        let folders = if model.is_dir() { Some(model) } else { model.parent() };
        let folders: Vec<&Path> = folders.into_iter().chain(folders.and_then(Path::parent)).collect();
        let files = folders.iter().take(2).flat_map(|folder| FILES.map(|name| folder.join(name)));
        match files.into_iter().find(|path| path.is_file()) {
            Some(path) => Tokenizer::open(&path),
            None => Err(Error::Model {
                model: model.display().to_string(),
                why: format!("no {} is beside it (give one with --tokenizer)", FILES.join(" or ")),
            }),
        }
    }

    /// Numbers that tokens have are below this.
    pub fn words(&self) -> usize {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |id| id as usize + 1)
    }

    /// At most `most` tokens of a text, those that begin and end it included.
    ///
    /// Errors: a text that is too long, and whatever the vocabulary cannot say.
    pub fn encode(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        self.encode_all(&[text], most).map(|mut all| all.swap_remove(0))
    }

    /// As [`Tokenizer::encode`], of many texts.
    pub fn encode_all<T: AsRef<str>>(&self, texts: &[T], most: usize) -> Result<Vec<Vec<u32>>> {
        let wrong = |why: String| Error::Text { why };
        let mut inner = self.inner.clone();
        // The library subtracts without looking.
        let added = inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if most < added {
            return Err(wrong(format!("{most} tokens: {added} begin and end a text")));
        }
        let truncation = TruncationParams { max_length: most, ..TruncationParams::default() };
        inner.with_truncation(Some(truncation)).map_err(|e| wrong(format!("{most} tokens: {e}")))?;
        let one = |text: &T| {
            let text = text.as_ref();
            if text.len() > TEXT_BYTES_MAX {
                return Err(wrong(format!("it has {} bytes, at most {TEXT_BYTES_MAX}", text.len())));
            }
            let tokens = inner.encode_fast(text, true).map_err(|e| wrong(e.to_string()))?;
            match tokens.get_ids() {
                [] => Err(wrong("it has no tokens".into())),
                ids => Ok(ids.to_vec()),
            }
        };
        texts.iter().map(one).collect()
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |source| Error::Data(lacuna_data::Error::Io { path: path.to_owned(), source });
    let size = path.metadata().map_err(failed)?.len();
    if size > FILE_BYTES_MAX {
        let why = format!("{size} bytes, at most {FILE_BYTES_MAX}");
        return Err(Error::Data(lacuna_data::Error::TooLarge { path: path.to_owned(), why }));
    }
    std::fs::read(path).map_err(failed)
}

/// BERT's tokeniser of a list of word pieces, one a line.
fn word_pieces(path: &Path, bytes: &[u8]) -> Result<Inner> {
    let misfit = |why: &str| Error::Model { model: path.display().to_string(), why: why.to_owned() };
    let text =
        std::str::from_utf8(bytes).map_err(|_| misfit("is not UTF-8: a list of word pieces is expected"))?;
    let lines = text.lines().map(|line| line.trim_end_matches('\r').to_owned());
    let pieces: Vocab = (0u32..).zip(lines).map(|(id, piece)| (piece, id)).collect();
    let model = WordPiece::builder().vocab(pieces).unk_token("[UNK]".into()).build();
    let mut inner = Inner::new(model.map_err(|e| misfit(&e.to_string()))?);
    let id = |name: &str| {
        let id = inner.token_to_id(name);
        id.map(|id| (name.to_owned(), id)).ok_or_else(|| misfit(&format!("has no {name}: is it BERT's?")))
    };
    let (begin, end, _) = (id("[CLS]")?, id("[SEP]")?, id("[UNK]")?);
    let normalizer = BertNormalizer::new(true, true, None, is_lower_case(path));
    inner.with_normalizer(Some(normalizer)).map_err(|e| misfit(&e.to_string()))?;
    inner.with_pre_tokenizer(Some(BertPreTokenizer));
    inner.with_post_processor(Some(BertProcessing::new(end, begin)));
    Ok(inner)
}

/// Whether texts are made lower-case before they are cut, by a `tokenizer_config.json` beside the vocabulary.
fn is_lower_case(path: &Path) -> bool {
    let config = read(&path.with_file_name("tokenizer_config.json")).ok();
    let config: Option<serde_json::Value> = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    config.and_then(|c| c.get("do_lower_case")?.as_bool()).unwrap_or(true)
}
