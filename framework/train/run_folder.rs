//! The folder of a run: where it is, and how the run was made.
//!
//! ```text
//! runs/train3/args.yaml      every option with its value, one a line
//!             recipe.yaml    the recipe's text as it was used
//!             command.txt    the command line, to be pasted again
//!             weights/       best.safetensors, last.safetensors
//!             results.csv, metrics.jsonl, events.out.tfevents.*   see `logs`
//!             checkpoint-N/  see `checkpoint`
//! ```

use crate::checkpoint::{Error, Result, write_atomic};
use crate::disk::{self, Disk, Real, read_limited};
use serde_json::Value;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const ARGS: &str = "args.yaml";
const RECIPE: &str = "recipe.yaml";
const COMMAND: &str = "command.txt";
const WEIGHTS: &str = "weights";
const FOLDERS_MAX: u32 = 100_000;
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// A folder that exists, with `weights/` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder {
    pub path: PathBuf,
}

impl RunFolder {
    /// Makes `root/name`, or where that exists `root/name2`, `name3`, ...; with `exist_ok` takes
    /// `root/name` as it is. Two processes that start together get different folders.
    pub fn create(root: &Path, name: &str, exist_ok: bool) -> Result<RunFolder> {
        let plain = Path::new(name).file_name().is_some_and(|n| n == name);
        if !plain || name.chars().any(char::is_control) {
            return Err(Error::argument("run name", format!("{name:?} is not the name of a folder")));
        }
        disk::create_dir_all(&Real, root)?;
        for n in 1..=FOLDERS_MAX {
            let path = root.join(if n == 1 { name.to_owned() } else { format!("{name}{n}") });
            match fs::create_dir(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && !(exist_ok && path.is_dir()) => {
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(Error::io(&path))?,
            }
            // What is saved in it later must not be lost with the folder's own name.
            Real.sync_dir(root).map_err(Error::io(root))?;
            disk::create_dir_all(&Real, &path.join(WEIGHTS))?;
            return Ok(RunFolder { path });
        }
        let why = format!("{} has {FOLDERS_MAX} runs of this name; choose another", root.display());
        Err(Error::argument("run name", why))
    }

    /// The folder of an earlier run, for resuming: it must hold `args.yaml`.
    pub fn open(path: &Path) -> Result<RunFolder> {
        if !path.join(ARGS).is_file() {
            let why = format!("{} has no {ARGS}; give the folder of a run, like runs/train", path.display());
            return Err(Error::argument("run folder", why));
        }
        disk::create_dir_all(&Real, &path.join(WEIGHTS))?;
        Ok(RunFolder { path: path.to_owned() })
    }

    /// `weights/<name>.safetensors`.
    pub fn weights(&self, name: &str) -> PathBuf {
        self.path.join(WEIGHTS).join(format!("{name}.safetensors"))
    }

    /// Writes `args.yaml`: `key: value` lines, values in JSON, which is YAML too. `args` must be an object.
    pub fn write_args(&self, args: &Value) -> Result<()> {
        let Value::Object(args) = args else {
            return Err(Error::argument("args", "not an object"));
        };
        let mut text = String::new();
        for (key, value) in args {
            if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(Error::argument("args", format!("key {key:?} is not a plain word")));
            }
            text += &format!("{key}: {}\n", yaml_scalar(value));
        }
        write_atomic(&self.path.join(ARGS), text.as_bytes())
    }

    /// Reads what [`RunFolder::write_args`] wrote, as an object.
    pub fn read_args(&self) -> Result<Value> {
        let path = self.path.join(ARGS);
        let mut args = serde_json::Map::new();
        for (i, line) in read_text(&path)?.lines().enumerate() {
            let parsed = line.split_once(": ").map(|(key, value)| (key, exact_value(value)));
            let Some((key, Ok(value))) = parsed else {
                let why = format!("line {}: '{line}' is not `key: value` with a JSON value", i + 1);
                return Err(Error::damaged(&path, why));
            };
            args.insert(key.to_owned(), value);
        }
        Ok(Value::Object(args))
    }

    /// Keeps the recipe's text byte for byte.
    pub fn write_recipe(&self, text: &str) -> Result<()> {
        write_atomic(&self.path.join(RECIPE), text.as_bytes())
    }

    pub fn read_recipe(&self) -> Result<String> {
        read_text(&self.path.join(RECIPE))
    }

    /// Writes the command line, quoted for a shell, and the version that ran it.
    pub fn write_command(&self, args: &[String], version: &str) -> Result<()> {
        let line = args.iter().map(|a| shell_quote(a)).collect::<Vec<_>>().join(" ");
        write_atomic(&self.path.join(COMMAND), format!("# lacuna {version}\n{line}\n").as_bytes())
    }
}

/// As JSON, and fractions to the last bit: see [`crate::exact`].
fn exact_value(text: &str) -> serde_json::Result<Value> {
    let value: Value = serde_json::from_str(text)?;
    let exact = text.parse::<f64>().ok().filter(|_| value.is_f64());
    Ok(exact.map_or(value, Value::from))
}

/// JSON, but floats without an exponent: YAML 1.1 takes `1e-5` for a string.
fn yaml_scalar(value: &Value) -> String {
    match value.as_f64().filter(|_| value.is_f64()) {
        Some(v) if v.fract() == 0.0 => format!("{v:.1}"),
        Some(v) => v.to_string(),
        None => value.to_string(),
    }
}

fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read_limited(&Real, path, TEXT_BYTES_MAX)?)
        .map_err(|e| Error::damaged(path, format!("not UTF-8: {e}")))
}

/// As POSIX shells read it: plain words stay, others are put in single quotes.
fn shell_quote(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn folders_are_numbered_and_reused_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("runs");
        let name = |exist_ok| {
            let run = RunFolder::create(&root, "train", exist_ok).unwrap();
            assert!(run.weights("best").parent().unwrap().is_dir());
            run.path.file_name().unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(
            [name(false), name(false), name(true), name(false)],
            ["train", "train2", "train", "train3"]
        );
        for bad in ["", ".", "..", "a/b", "/tmp", "a/", "a\n"] {
            assert!(matches!(RunFolder::create(&root, bad, false), Err(Error::Argument { .. })), "{bad:?}");
        }
        fs::write(root.join("file"), "").unwrap();
        let run = RunFolder::create(&root, "file", true).unwrap();
        assert_eq!(run.path, root.join("file2"));
    }

    #[test]
    fn what_was_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunFolder::create(dir.path(), "train", false).unwrap();
        assert!(matches!(RunFolder::open(&run.path), Err(Error::Argument { .. })));
        let args = json!({
            "model": "resnet20", "lr0": 0.1, "lr1": 1e-7, "big": 3e25,
            "odd": 3.957_359_611_988_068, "third": 0.1 / 3.0,
            "data": null, "note": "a: \"b\"\n#c", "cuts": [1, 2],
        });
        run.write_args(&args).unwrap();
        assert_eq!(RunFolder::open(&run.path).unwrap().read_args().unwrap(), args);
        let text = fs::read_to_string(run.path.join(ARGS)).unwrap();
        assert!(text.starts_with("model: \"resnet20\"\nlr0: 0.1\nlr1: 0.0000001\nbig: 30"), "{text}");
        assert!(run.write_args(&json!([])).is_err() && run.write_args(&json!({ "a b": 1 })).is_err());

        run.write_recipe("# Rezept\nmodifiers:\r\n").unwrap();
        assert_eq!(run.read_recipe().unwrap(), "# Rezept\nmodifiers:\r\n");
        let command = ["lacuna", "train", "--data", "my data", "it's", ""].map(str::to_owned);
        run.write_command(&command, "0.1.0").unwrap();
        let text = fs::read_to_string(run.path.join(COMMAND)).unwrap();
        assert_eq!(text, "# lacuna 0.1.0\nlacuna train --data 'my data' 'it'\\''s' ''\n");

        fs::write(run.path.join(ARGS), "model: \"a\"\nepochs=3\n").unwrap();
        assert!(matches!(run.read_args(), Err(Error::Damaged { why, .. }) if why.contains("line 2")));
        fs::write(run.path.join(RECIPE), [0xff]).unwrap();
        assert!(matches!(run.read_recipe(), Err(Error::Damaged { .. })));
        fs::write(run.path.join(RECIPE), vec![b' '; TEXT_BYTES_MAX as usize + 1]).unwrap();
        assert!(matches!(run.read_recipe(), Err(Error::TooLarge { .. })));
    }
}
