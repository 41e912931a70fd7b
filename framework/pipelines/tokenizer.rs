//! Texts to numbers of tokens, as the network beside which a vocabulary lies was taught them: word pieces (Wu et al., 2016,
//! arXiv:1609.08144) as BERT cuts them.

use crate::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Most bytes of a vocabulary's file.
pub const FILE_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of one text.
pub const TEXT_BYTES_MAX: usize = lacuna_data::texts::TEXT_BYTES_MAX;
/// Names of files that hold one, in the order in which they are looked for.
pub const FILES: [&str; 1] = ["vocab.txt"];
/// Tokens of a text where nobody says how many.
pub const USUAL_TOKENS: usize = 128;
/// Longer words are unknown.
const WORD_LETTERS_MAX: usize = 100;

pub struct Tokenizer {
    pieces: HashMap<String, u32>,
    begin: u32,
    end: u32,
    unknown: u32,
    lower_case: bool,
    pub path: PathBuf,
    /// What shorter sequences are filled up with.
    pub filler: u32,
    /// Most tokens of a text, if nobody says.
    pub usual: usize,
}

impl Tokenizer {
    /// Reads a list of word pieces, one a line, as BERT's `vocab.txt` is one: of lower-case words, unless a
    /// `tokenizer_config.json` beside it says otherwise.
    ///
    /// Errors: a file that is too large, cannot be read, or lacks the tokens that begin and end a text.
    pub fn open(path: &Path) -> Result<Tokenizer> {
        let misfit = |why: &str| Error::Model { model: path.display().to_string(), why: why.to_owned() };
        let bytes = read(path)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| misfit("is not UTF-8: a list of word pieces is expected"))?;
        let pieces: HashMap<String, u32> = text.lines().map(str::to_owned).zip(0..).collect();
        let id = |name: &str| {
            let lacks =
                || misfit(&format!("has no {name}: a list of BERT's word pieces, vocab.txt, is expected"));
            pieces.get(name).copied().ok_or_else(lacks)
        };
        let (begin, end, unknown) = (id("[CLS]")?, id("[SEP]")?, id("[UNK]")?);
        let filler = id("[PAD]").unwrap_or(0);
        let lower_case = is_lower_case(path);
        let (path, usual) = (path.to_owned(), USUAL_TOKENS);
        Ok(Tokenizer { pieces, begin, end, unknown, lower_case, path, filler, usual })
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
        self.pieces.values().max().map_or(0, |&id| id as usize + 1)
    }

    /// At most `most` tokens of a text, those that begin and end it included.
    ///
    /// Errors: a text that is too long, or fewer tokens than two.
    pub fn encode(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        let wrong = |why: String| Error::Text { why };
        if text.len() > TEXT_BYTES_MAX {
            return Err(wrong(format!("it has {} bytes, at most {TEXT_BYTES_MAX}", text.len())));
        }
        if most < 2 {
            return Err(wrong(format!("{most} tokens are fewer than those that begin and end a text")));
        }
        let text = if self.lower_case { text.to_lowercase() } else { text.to_owned() };
        let mut ids = vec![self.begin];
        for word in words(&text) {
            if ids.len() >= most {
                break;
            }
            self.cut(word, &mut ids);
        }
        ids.truncate(most - 1);
        ids.push(self.end);
        Ok(ids)
    }

    /// As [`Tokenizer::encode`], of many texts.
    pub fn encode_all<T: AsRef<str>>(&self, texts: &[T], most: usize) -> Result<Vec<Vec<u32>>> {
        texts.iter().map(|text| self.encode(text.as_ref(), most)).collect()
    }

    /// The longest known beginnings of a word, one after the other; one unknown token if there is none somewhere.
    fn cut(&self, word: &str, ids: &mut Vec<u32>) {
        let (before, mut rest) = (ids.len(), word);
        while !rest.is_empty() && word.chars().count() <= WORD_LETTERS_MAX {
            let mark = if rest.len() == word.len() { "" } else { "##" };
            let mut ends = rest.char_indices().map(|(at, c)| at + c.len_utf8()).rev();
            let known = |end: usize| Some((*self.pieces.get(&format!("{mark}{}", &rest[..end]))?, end));
            let Some((id, end)) = ends.find_map(known) else { break };
            ids.push(id);
            rest = &rest[end..];
        }
        if !rest.is_empty() {
            ids.truncate(before);
            ids.push(self.unknown);
        }
    }
}

/// Signs of ASCII, and what Unicode calls punctuation in the blocks that texts take it from.
fn is_punctuation(c: char) -> bool {
    let others = matches!(c, '¡' | '§' | '«' | '¶' | '·' | '»' | '¿' | '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205e}');
    let wide = matches!(c, '\u{3001}'..='\u{3003}' | '\u{3008}'..='\u{3011}' | '\u{3014}'..='\u{301f}'
        | '\u{ff01}'..='\u{ff0f}' | '\u{ff1a}'..='\u{ff20}' | '\u{ff3b}'..='\u{ff40}' | '\u{ff5b}'..='\u{ff65}');
    c.is_ascii_punctuation() || others || wide
}

/// What stands between spaces and punctuation; a mark of punctuation and an ideograph are words of one letter.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let joins = |c: char| {
        let nothing = c.is_whitespace() || c.is_control() || c == '\u{fffd}';
        !(nothing || is_punctuation(c) || ('\u{4e00}'..='\u{9fff}').contains(&c))
    };
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c.is_control() || c == '\u{fffd}');
        let first = rest.chars().next()?;
        let run =
            if joins(first) { rest.find(|c| !joins(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
        let (word, behind) = rest.split_at(run);
        rest = behind;
        Some(word)
    })
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

/// Whether texts are made lower-case before they are cut, by a `tokenizer_config.json` beside the vocabulary.
fn is_lower_case(path: &Path) -> bool {
    let config = read(&path.with_file_name("tokenizer_config.json")).ok();
    let config: Option<serde_json::Value> = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    config.and_then(|c| c.get("do_lower_case")?.as_bool()).unwrap_or(true)
}
