//! Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747): finds it on this machine and loads it.
//!
//! Three places are tried: the folder the user gave (only that one, if given), the Debian package
//! `dataset-fashion-mnist`, and the subset of 8,000 + 2,000 images committed with the examples.

use crate::ImageSet;
use crate::error::{Error, Result};
use crate::idx::{Idx, read_idx};
use std::fmt;
use std::path::{Path, PathBuf};

pub const CLASSES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];
/// Side of an image in pixels.
pub const SIDE: usize = 28;
/// Mean and standard deviation of all pixels of the 60,000 training images, scaled to 0..1.
pub const MEAN: f32 = 0.286_040_6;
pub const STD: f32 = 0.353_024_24;

/// Where the Debian package `dataset-fashion-mnist` installs the full set.
pub const SYSTEM_DIR: &str = "/usr/share/datasets/fashion-mnist";
const SUBSET_DIR: &str = "examples/data/fashion-mnist-subset";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The folder the caller gave.
    Given,
    /// The Debian package.
    System,
    /// The subset committed with the examples.
    Subset,
}

/// Which files were read; prints as one line for a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub place: Place,
    pub dir: PathBuf,
    /// Number of training images.
    pub train: usize,
    /// Number of test images.
    pub test: usize,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Source { dir, train, test, .. } = self;
        let part = self.part();
        write!(f, "Fashion-MNIST, {part}: {train} training + {test} test images ({})", dir.display())
    }
}

impl Source {
    /// How much of the data set it is.
    pub fn part(&self) -> &'static str {
        match (self.place, self.train) {
            (Place::Subset, _) => "committed subset",
            (_, 60_000) => "full set",
            _ => "given files",
        }
    }
}

/// Whether a folder holds any of the four files.
pub fn found_in(dir: &Path) -> bool {
    let splits = [
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ];
    splits.iter().any(|name| existing(dir, name).is_ok())
}

/// Loads (train, test, where from). With `dir`, only that folder is tried; it must hold the four
/// official IDX files, gzip or not.
pub fn load(dir: Option<&Path>) -> Result<(ImageSet, ImageSet, Source)> {
    let (place, dir) = match dir {
        Some(dir) => (Place::Given, dir.to_owned()),
        None => find(Path::new(SYSTEM_DIR))?,
    };
    let train = split(&dir, "train")?;
    let test = split(&dir, "t10k")?;
    let source = Source { place, dir, train: train.len(), test: test.len() };
    Ok((train, test, source))
}

/// The subset committed with the examples, wherever the full set is; tests and smoke runs use it.
pub fn subset_dir() -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let workspace = workspace.canonicalize().unwrap_or(workspace);
    let cwd = std::env::current_dir().unwrap_or_default();
    let roots = std::iter::once(workspace.as_path()).chain(cwd.ancestors());
    roots.map(|root| root.join(SUBSET_DIR)).find(|dir| dir.is_dir())
}

fn find(system: &Path) -> Result<(Place, PathBuf)> {
    if system.is_dir() {
        return Ok((Place::System, system.to_owned()));
    }
    subset_dir().map(|dir| (Place::Subset, dir)).ok_or_else(|| {
        Error::NotFound(format!(
            "Fashion-MNIST: neither {} nor {SUBSET_DIR} (here or in a folder above) exists; \
             give a folder with --data, or `apt-get install dataset-fashion-mnist`",
            system.display()
        ))
    })
}

fn split(dir: &Path, split: &str) -> Result<ImageSet> {
    let images_path = existing(dir, &format!("{split}-images-idx3-ubyte"))?;
    let labels_path = existing(dir, &format!("{split}-labels-idx1-ubyte"))?;
    let Idx { dims, data: images } = read_idx(&images_path)?;
    let labels = read_idx(&labels_path)?;
    let &[n, SIDE, SIDE] = dims.as_slice() else {
        return Err(Error::unsupported(
            &images_path,
            format!("sizes {dims:?}, expected [n, {SIDE}, {SIDE}]"),
        ));
    };
    if labels.dims != [n] {
        let why = format!("sizes {:?}, but {} has {n} images", labels.dims, images_path.display());
        return Err(Error::corrupt(&labels_path, why));
    }
    if n == 0 {
        return Err(Error::corrupt(&images_path, "it holds no image"));
    }
    if let Some(i) = labels.data.iter().position(|&l| usize::from(l) >= CLASSES.len()) {
        let why = format!("image {i} has label {}, of {} classes", labels.data[i], CLASSES.len());
        return Err(Error::corrupt(&labels_path, why));
    }
    Ok(ImageSet {
        images,
        labels: labels.data,
        h: SIDE,
        w: SIDE,
        c: 1,
        classes: CLASSES.map(str::to_owned).to_vec(),
        mean: vec![MEAN],
        std: vec![STD],
        mirror: true,
        boxes: None,
    })
}

/// `dir/name.gz` or `dir/name`.
fn existing(dir: &Path, name: &str) -> Result<PathBuf> {
    let candidates = [dir.join(format!("{name}.gz")), dir.join(name)];
    candidates.into_iter().find(|p| p.exists()).ok_or_else(|| {
        Error::NotFound(format!(
            "{}: no {name}.gz and no {name}; the four IDX files of Fashion-MNIST are expected there",
            dir.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subset() -> PathBuf {
        subset_dir().expect("the subset is committed under examples/data")
    }

    #[test]
    fn the_committed_subset_is_balanced_and_real() {
        let (train, test, source) = load(Some(&subset())).unwrap();
        assert_eq!((source.place, source.train, source.test), (Place::Given, 8_000, 2_000));
        for (set, per_class) in [(&train, 800), (&test, 200)] {
            set.check().unwrap();
            for class in 0..10u8 {
                assert_eq!(set.labels.iter().filter(|&&l| l == class).count(), per_class);
            }
        }
        // The first labels of the official files, as published.
        assert_eq!(train.labels[..10], [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]);
        assert_eq!(test.labels[..10], [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]);
        let mean =
            train.images.iter().map(|&p| f64::from(p)).sum::<f64>() / train.images.len() as f64 / 255.0;
        assert!((mean - f64::from(MEAN)).abs() < 0.005, "the subset's mean is {mean}");
    }

    #[test]
    fn the_full_set_where_installed_gives_the_stated_constants() {
        let (train, test, source) = load(None).unwrap();
        if source.place != Place::System {
            // Without the package `load` must have fallen back to the subset, in full.
            assert_eq!((source.place, train.len(), test.len()), (Place::Subset, 8_000, 2_000));
            return;
        }
        assert_eq!((train.len(), test.len()), (60_000, 10_000));
        let n = train.images.len() as f64;
        let (sum, squares) = train.images.iter().fold((0u64, 0u64), |(s, q), &p| {
            let p = u64::from(p);
            (s + p, q + p * p)
        });
        let mean = sum as f64 / n;
        let std = (squares as f64 / n - mean * mean).sqrt();
        assert!((mean / 255.0 - f64::from(MEAN)).abs() < 1e-7);
        assert!((std / 255.0 - f64::from(STD)).abs() < 1e-7);
        // The subset is the beginning of the full set.
        let (small, _, _) = load(Some(&subset())).unwrap();
        assert_eq!(small.image(0), train.image(0));
        assert_eq!(
            source.to_string(),
            format!("Fashion-MNIST, full set: 60000 training + 10000 test images ({SYSTEM_DIR})")
        );
    }

    #[test]
    fn without_the_package_the_subset_is_found() {
        let nowhere = find(Path::new("/nonexistent")).unwrap();
        assert_eq!(nowhere, (Place::Subset, subset()));
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(dir.path()).unwrap(), (Place::System, dir.path().to_owned()));
    }

    #[test]
    fn broken_folders_say_which_file() {
        let dir = tempfile::tempdir().unwrap();
        let e = load(Some(dir.path())).unwrap_err();
        assert!(matches!(&e, Error::NotFound(m) if m.contains("train-images-idx3-ubyte")), "{e}");

        for name in ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
        {
            std::fs::copy(subset().join(name), dir.path().join(name)).unwrap();
        }
        let images = std::fs::read(subset().join("t10k-images-idx3-ubyte.gz")).unwrap();
        let target = dir.path().join("t10k-images-idx3-ubyte.gz");
        std::fs::write(&target, &images[..images.len() / 2]).unwrap();
        let e = load(Some(dir.path())).unwrap_err();
        assert!(matches!(&e, Error::Truncated { path, .. } if *path == target), "{e}");

        // Labels of the wrong split: 8,000 labels for 2,000 images.
        std::fs::write(&target, &images).unwrap();
        std::fs::copy(
            dir.path().join("train-labels-idx1-ubyte.gz"),
            dir.path().join("t10k-labels-idx1-ubyte.gz"),
        )
        .unwrap();
        assert!(matches!(load(Some(dir.path())), Err(Error::Corrupt { .. })));

        let bad_labels = [&[0, 0, 8, 1, 0, 0, 7, 208][..], &[10; 2000]].concat();
        std::fs::write(dir.path().join("t10k-labels-idx1-ubyte.gz"), bad_labels).unwrap();
        let e = load(Some(dir.path())).unwrap_err();
        assert!(matches!(&e, Error::Corrupt { why, .. } if why.contains("label 10")), "{e}");
    }
}
