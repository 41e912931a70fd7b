//! Labelled texts: from files of rows to sequences of tokens.
//!
//! ```text
//! .tab          Orange's: names of the columns, their types, which is the class; a row for each text
//! .tsv .txt     text TAB label, with or without a line of names
//! .csv          the same with commas, and quotes around what has some
//! ```
//! Texts become tokens elsewhere (`lacuna_pipelines::text`); a [`TextSet`] holds numbers alone.

use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Most bytes of a file.
pub const FILE_BYTES_MAX: u64 = 1 << 30;
/// Most bytes of one text: more than any network reads.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Most classes.
pub const CLASSES_MAX: usize = 1 << 16;

/// Labelled texts as a file has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    pub texts: Vec<String>,
    /// Name of the class of each.
    pub labels: Vec<String>,
}

/// Labelled sequences of tokens, in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextSet {
    /// Of all sequences, back to back.
    pub ids: Vec<u32>,
    /// Where each sequence ends in `ids`.
    pub ends: Vec<usize>,
    /// One class index for each, below `classes.len()`.
    pub labels: Vec<u32>,
    pub classes: Vec<String>,
    /// What shorter sequences of a batch are filled up with.
    pub filler: u32,
}

impl TextSet {
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The tokens of sequence `i`.
    pub fn sequence(&self, i: usize) -> &[u32] {
        let begin = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.ids[begin..self.ends[i]]
    }

    /// The first `n` sequences (all, where there are fewer).
    pub fn take(&self, n: usize) -> TextSet {
        let n = n.min(self.len());
        let end = if n == 0 { 0 } else { self.ends[n - 1] };
        TextSet {
            ids: self.ids[..end].to_vec(),
            ends: self.ends[..n].to_vec(),
            labels: self.labels[..n].to_vec(),
            classes: self.classes.clone(),
            filler: self.filler,
        }
    }

    /// That the columns agree with each other; the loader asks once per epoch.
    pub fn check(&self) -> Result<()> {
        let rises = self.ends.windows(2).all(|w| w[0] < w[1]) && self.ends.first() != Some(&0);
        let fits =
            self.ends.len() == self.labels.len() && self.ends.last().copied().unwrap_or(0) == self.ids.len();
        if !(rises && fits) {
            return Err(Error::argument("text set", "its sequences are not those of its ends and labels"));
        }
        match self.labels.iter().find(|&&l| l as usize >= self.classes.len()) {
            Some(label) => {
                Err(Error::argument("text set", format!("label {label}, of {} classes", self.classes.len())))
            }
            None => Ok(()),
        }
    }
}

/// What the training file's name has where the test file's has one of [`TEST_WORDS`].
const TRAIN_WORD: &str = "train";
const TEST_WORDS: [&str; 5] = ["test", "val", "valid", "validation", "dev"];
const EXTENSIONS: [&str; 4] = ["tab", "tsv", "csv", "txt"];

/// The files of a training and a test set: `path` is the training file, whose name says `train` where that of the test file
/// beside it says `test` (or `val`, `valid`, `validation`, `dev`); or a folder with one such pair.
pub fn find_pair(path: &Path) -> Result<[PathBuf; 2]> {
    let train = match path.is_dir() {
        true => training_file(path)?,
        false => path.to_owned(),
    };
    let name = train.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some(at) = name.rfind(TRAIN_WORD) else {
        let why = format!(
            "the name '{name}' does not say `train`, so that no test file is known; call them like reviews-train.tsv and reviews-test.tsv"
        );
        return Err(Error::NotFound(format!("{}: {why}", train.display())));
    };
    let test = |word: &&str| {
        train.with_file_name(format!("{}{word}{}", &name[..at], &name[at + TRAIN_WORD.len()..]))
    };
    match TEST_WORDS.iter().map(&test).find(|path| path.is_file()) {
        Some(test) => Ok([train, test]),
        None => Err(Error::NotFound(format!(
            "{}: no test file is beside it, as {} would be",
            train.display(),
            test(&TEST_WORDS[0]).display()
        ))),
    }
}

/// The only file of a folder that is called as training files are.
fn training_file(dir: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let named = path.file_stem().is_some_and(|stem| stem.to_string_lossy().contains(TRAIN_WORD));
        if named && is_text_file(&path) {
            found.push(path);
        }
    }
    found.sort();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Error::NotFound(format!(
            "{}: no file of texts in it is called like train.tsv",
            dir.display()
        ))),
        n => Err(Error::NotFound(format!("{}: {n} training files are in it; name one", dir.display()))),
    }
}

/// Whether a file is called as files of texts are.
pub fn is_text_file(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    path.is_file() && EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Names of classes of both sets, sorted, and their numbers for each.
///
/// Errors: a test class that no training text has, too many classes.
pub fn class_numbers(train: &Texts, test: &Texts) -> Result<(Vec<String>, Vec<u32>, Vec<u32>)> {
    let mut classes: Vec<String> = train.labels.clone();
    classes.sort_unstable();
    classes.dedup();
    if classes.len() > CLASSES_MAX {
        return Err(Error::argument("texts", format!("{} classes, at most {CLASSES_MAX}", classes.len())));
    }
    let (train, test) = (numbers_of(train, &classes)?, numbers_of(test, &classes)?);
    Ok((classes, train, test))
}

/// The number of each text's class among `classes`.
///
/// Errors: a class that is not among them.
pub fn numbers_of(texts: &Texts, classes: &[String]) -> Result<Vec<u32>> {
    let numbers: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
    let number = |label: &String| {
        let unknown =
            || Error::argument("texts", format!("class '{label}' is none of the {} known", classes.len()));
        numbers.get(label.as_str()).copied().ok_or_else(unknown)
    };
    texts.labels.iter().map(number).collect()
}

/// Reads a file of labelled texts.
///
/// Errors: too large, not UTF-8, rows without a text or a label, each with its line.
pub fn load(path: &Path) -> Result<Texts> {
    let size = path.metadata().map_err(|e| Error::io(path, e))?.len();
    if size > FILE_BYTES_MAX {
        return Err(Error::too_large(path, format!("{size} bytes, at most {FILE_BYTES_MAX}")));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let text = String::from_utf8(bytes).map_err(|e| Error::corrupt(path, format!("not UTF-8: {e}")))?;
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let rows = match extension.as_str() {
        "csv" => quoted_rows(&text).map_err(|why| Error::corrupt(path, why))?,
        _ => text
            .lines()
            .enumerate()
            .map(|(i, line)| (i + 1, line.split('\t').map(str::to_owned).collect()))
            .collect(),
    };
    read_rows(rows, extension == "tab").map_err(|why| Error::corrupt(path, why))
}

/// The number of a line, and its columns.
type Row = (usize, Vec<String>);

fn read_rows(rows: Vec<Row>, orange: bool) -> Result<Texts, String> {
    let mut rows =
        rows.into_iter().filter(|(_, columns)| columns.iter().any(|c| !c.trim().is_empty())).peekable();
    let [text, label] = if orange { orange_columns(&mut rows)? } else { named_columns(&mut rows)? };
    let mut found = Texts::default();
    for (line, mut columns) in rows {
        let count = columns.len();
        let mut column = |i: usize| columns.get_mut(i).map(std::mem::take).filter(|c| !c.trim().is_empty());
        let (Some(label), Some(text)) = (column(label), column(text)) else {
            return Err(format!(
                "line {line} has {count} columns, and no text or no label in columns {} and {}",
                text + 1,
                label + 1
            ));
        };
        if text.len() > TEXT_BYTES_MAX {
            return Err(format!("line {line} has a text of {} bytes, at most {TEXT_BYTES_MAX}", text.len()));
        }
        found.texts.push(text);
        found.labels.push(label.trim().to_owned());
    }
    if found.texts.is_empty() { Err("there are no texts in it".into()) } else { Ok(found) }
}

/// Places of text and label by Orange's three header lines: names, types, and what columns are for.
fn orange_columns(rows: &mut impl Iterator<Item = Row>) -> Result<[usize; 2], String> {
    let mut header =
        || rows.next().map(|(_, columns)| columns).ok_or("it lacks the three header lines of .tab files");
    let (_, types, flags) = (header()?, header()?, header()?);
    let is = |columns: &[String], what: &[&str]| columns.iter().position(|c| what.contains(&c.trim()));
    let label = is(&flags, &["class"]).ok_or("no column is the class by its third line")?;
    let text = is(&types, &["string", "s", "text"]).ok_or("no column is a string by its second line")?;
    Ok([text, label])
}

const TEXT_NAMES: [&str; 5] = ["text", "sentence", "review", "document", "content"];
const LABEL_NAMES: [&str; 5] = ["label", "class", "category", "target", "sentiment"];

/// Places of text and label by a line of names, or the first two columns.
fn named_columns(rows: &mut std::iter::Peekable<impl Iterator<Item = Row>>) -> Result<[usize; 2], String> {
    let Some((_, first)) = rows.peek() else { return Ok([0, 1]) };
    let is =
        |names: &[&str]| first.iter().position(|c| names.contains(&c.trim().to_ascii_lowercase().as_str()));
    match (is(&TEXT_NAMES), is(&LABEL_NAMES)) {
        (Some(text), Some(label)) if text != label => {
            rows.next();
            Ok([text, label])
        }
        _ => Ok([0, 1]),
    }
}

/// Comma-separated values (RFC 4180): quotes around a column let it have commas, line breaks, and doubled quotes.
fn quoted_rows(text: &str) -> Result<Vec<Row>, String> {
    let (mut rows, mut columns, mut column) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut begin, mut quoted) = (1, 1, false);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == '\n' {
            line += 1;
        }
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                column.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if column.is_empty() => quoted = true,
            ',' if !quoted => columns.push(std::mem::take(&mut column)),
            '\r' if !quoted && letters.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                columns.push(std::mem::take(&mut column));
                rows.push((begin, std::mem::take(&mut columns)));
                begin = line;
            }
            letter => column.push(letter),
        }
    }
    if quoted {
        return Err(format!("the quote in the row at line {begin} does not end"));
    }
    if !column.is_empty() || !columns.is_empty() {
        columns.push(column);
        rows.push((begin, columns));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn texts(rows: &[(&str, &str)]) -> Texts {
        Texts {
            texts: rows.iter().map(|r| r.0.to_owned()).collect(),
            labels: rows.iter().map(|r| r.1.to_owned()).collect(),
        }
    }

    #[test]
    fn rows_of_every_kind() {
        let two = texts(&[("a cat, asleep", "pet"), ("a \"train\"", "thing")]);
        let cases = [
            ("a.tab", "Category\tText\nd\tstring\nclass\t\n\npet\ta cat, asleep\nthing\ta \"train\"\n"),
            ("a.tsv", "a cat, asleep\tpet\na \"train\"\tthing\n"),
            ("a.tsv", "label\ttext\r\npet\ta cat, asleep\r\nthing\ta \"train\"\r\n"),
            ("a.csv", "\"a cat, asleep\",pet\r\n\"a \"\"train\"\"\",thing"),
            ("a.csv", "id,label,sentence\n1,pet,\"a cat, asleep\"\n2,thing,\"a \"\"train\"\"\"\n"),
        ];
        for (name, text) in cases {
            assert_eq!(load(&written(name, text).1).unwrap(), two, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("a.tab", "Category\tText\n", "three header lines"),
            ("a.tab", "C\tT\nd\tstring\n\t\nx\ty\n", "there are no texts"),
            ("a.tab", "C\tT\nd\tstring\nmeta\tmeta\nx\ty\n", "no column is the class"),
            ("a.tsv", "one\tlabel\nonly a text\n", "line 2 has 1 columns"),
            ("a.tsv", "", "no texts"),
            ("a.csv", "\"open,x\n", "does not end"),
        ];
        for (name, text, want) in cases {
            let (_dir, path) = written(name, text);
            let e = load(&path).unwrap_err().to_string();
            assert!(e.contains(want) || e.contains("no column"), "{text:?}: {e}");
        }
        let (_dir, path) = written("a.tsv", "x");
        std::fs::write(&path, [0xff, b'\t', b'x']).unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("UTF-8"));
    }

    #[test]
    fn test_files_stand_beside_training_files() {
        let dir = tempfile::tempdir().unwrap();
        let [train, test] = ["r8-train.tab", "r8-test.tab"].map(|name| dir.path().join(name));
        std::fs::write(&train, "x").unwrap();
        let e = find_pair(&train).unwrap_err().to_string();
        assert!(e.contains("r8-test.tab"), "{e}");
        std::fs::write(&test, "x").unwrap();
        assert_eq!(find_pair(&train).unwrap(), [train.clone(), test.clone()]);
        assert_eq!(find_pair(dir.path()).unwrap(), [train, test.clone()]);
        assert!(find_pair(&test).unwrap_err().to_string().contains("does not say `train`"));
    }

    #[test]
    fn classes_are_those_of_training() {
        let train = texts(&[("a", "y"), ("b", "x"), ("c", "y")]);
        let (classes, numbers, of_test) = class_numbers(&train, &texts(&[("d", "x")])).unwrap();
        assert_eq!(
            (classes, numbers, of_test),
            (vec!["x".to_owned(), "y".to_owned()], vec![1, 0, 1], vec![0])
        );
        assert!(class_numbers(&train, &texts(&[("d", "z")])).is_err());
    }

    #[test]
    fn columns_that_do_not_agree_are_refused() {
        let set = TextSet {
            ids: vec![1, 2, 3],
            ends: vec![1, 3],
            labels: vec![0, 1],
            classes: vec!["a".into(), "b".into()],
            filler: 0,
        };
        set.check().unwrap();
        assert_eq!((set.sequence(1), set.take(1).ids.as_slice()), (&[2, 3][..], &[1][..]));
        for break_it in [
            |s: &mut TextSet| s.ends[1] = 2,
            |s: &mut TextSet| s.labels[0] = 2,
            |s: &mut TextSet| s.ends[0] = 0,
            |s: &mut TextSet| s.labels.truncate(1),
        ] {
            let mut set = set.clone();
            break_it(&mut set);
            assert!(set.check().is_err());
        }
    }
}
