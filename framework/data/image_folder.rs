//! A folder of images as torchvision, timm and Ultralytics lay them out:
//!
//! ```text
//! DIR/train/CLASS/*.png|jpg|jpeg     DIR/val/CLASS/*     (or valid, validation, test)
//! ```
//! All images are decoded and resized once and held in memory as bytes. Classes are numbered in the order of their
//! names; images are in an order that follows from their names and is not that of the classes.

use crate::ImageSet;
use crate::error::{Error, Result};
use crate::images::{image_files, load_image, resize, to_channels};
use crate::sets::{DataSet, Source, mixed};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most classes: a label is a byte.
pub const CLASSES_MAX: usize = 256;
/// Most bytes of the pixels of a set, all in memory.
pub const SET_BYTES_MAX: u64 = 8 << 30;
/// Mean and standard deviation of ImageNet's training images, with which published weights were trained.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];
/// The same of grey images: the means of the three.
const GREY: (f32, f32) = (0.449, 0.226);

const TEST_NAMES: [&str; 4] = ["val", "valid", "validation", "test"];

pub fn found_in(dir: &Path) -> bool {
    dir.join("train").is_dir() && test_dir(dir).is_some()
}

pub(crate) fn test_dir(dir: &Path) -> Option<PathBuf> {
    TEST_NAMES.iter().map(|name| dir.join(name)).find(|dir| dir.is_dir())
}

/// Loads both sets, every image resized to `[channels (1 or 3), height, width]`.
///
/// Errors: an image that cannot be read, a test class that is no training class, too many classes or bytes.
pub fn load(dir: &Path, shape: [usize; 3]) -> Result<DataSet> {
    let test = test_dir(dir)
        .ok_or_else(|| Error::NotFound(format!("{}: no folder val or test beside train", dir.display())))?;
    let classes = class_folders(&dir.join("train"))?;
    if classes.len() > CLASSES_MAX {
        let why = format!("{} classes, at most {CLASSES_MAX}", classes.len());
        return Err(Error::unsupported(&dir.join("train"), why));
    }
    if let Some(stranger) = class_folders(&test)?.iter().find(|name| !classes.contains(name)) {
        let why = format!("class '{stranger}' is not among the {} of train", classes.len());
        return Err(Error::corrupt(&test, why));
    }
    let train = load_split(&dir.join("train"), &classes, shape)?;
    let test = load_split(&test, &classes, shape)?;
    let source = Source {
        name: dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned(),
        part: format!("folders of {} classes", classes.len()),
        dir: dir.to_owned(),
        of: "images",
        train: train.len(),
        test: test.len(),
    };
    Ok(DataSet { train, test, source })
}

/// The names of the folders in `dir`, one for each class, sorted.
///
/// # Errors
/// A folder that cannot be read, or has no folders.
pub fn class_folders(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let entry = entry.map_err(|e| Error::io(dir, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    if names.is_empty() {
        let what = "holds no folder per class (such as cat/1.jpg)";
        return Err(Error::NotFound(format!("{}: {what}", dir.display())));
    }
    Ok(names)
}

fn load_split(dir: &Path, classes: &[String], shape: [usize; 3]) -> Result<ImageSet> {
    let mut files = Vec::new();
    for (label, class) in classes.iter().enumerate() {
        let folder = dir.join(class);
        // A test set need not have images of every class.
        if folder.is_dir() {
            let label = u8::try_from(label).unwrap_or(u8::MAX);
            files.extend(image_files(&folder)?.into_iter().map(|path| (order_of(class, &path), label, path)));
        }
    }
    files.sort();
    let [c, h, w] = shape;
    let each = c * h * w;
    if !matches!(c, 1 | 3) || each == 0 {
        return Err(Error::argument("image shape", format!("{c}x{h}x{w}: 1 or 3 channels are read")));
    }
    let bytes = files.len() as u64 * each as u64;
    if bytes > SET_BYTES_MAX {
        let why = format!("{} images of {c}x{h}x{w} are {bytes} bytes, at most {SET_BYTES_MAX}", files.len());
        return Err(Error::too_large(dir, why));
    }
    let (mean, std) = match c {
        1 => (vec![GREY.0], vec![GREY.1]),
        _ => (MEAN.to_vec(), STD.to_vec()),
    };
    Ok(ImageSet {
        images: decode_all(&files, shape)?,
        labels: files.iter().map(|(_, label, _)| *label).collect(),
        h,
        w,
        c,
        classes: classes.to_vec(),
        mean,
        std,
        mirror: true,
        boxes: None,
    })
}

/// The bytes of all files, NHWC, decoded on all cores. Of several broken files the first is named.
fn decode_all(files: &[(u64, u8, PathBuf)], [c, h, w]: [usize; 3]) -> Result<Vec<u8>> {
    let mut images = vec![0; files.len() * c * h * w];
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let part = files.len().div_ceil(cores).max(1);
    let broken = AtomicUsize::new(usize::MAX);
    std::thread::scope(|scope| {
        let parts = files.chunks(part).zip(images.chunks_mut(part * c * h * w)).enumerate();
        for (p, (files, images)) in parts {
            let broken = &broken;
            scope.spawn(move || {
                for (i, ((.., path), out)) in files.iter().zip(images.chunks_exact_mut(c * h * w)).enumerate()
                {
                    let image = load_image(path).and_then(|image| resize(&image, h, w));
                    match image {
                        Ok(image) => to_channels(&image, out),
                        Err(_) => {
                            broken.fetch_min(p * part + i, Ordering::Relaxed);
                            return;
                        }
                    }
                }
            });
        }
    });
    match files.get(broken.into_inner()) {
        // Read again for its error; a file that was mended in between is as good as any.
        Some((.., path)) => Err(load_image(path)
            .and_then(|image| resize(&image, h, w))
            .err()
            .unwrap_or_else(|| Error::corrupt(path, "it changed while it was read; start again"))),
        None => Ok(images),
    }
}

/// Of a class and a file's name alone (FNV-1a, mixed): the same on every machine, wherever the folder lies.
fn order_of(class: &str, path: &Path) -> u64 {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let bytes = class.bytes().chain([b'/']).chain(name.bytes());
    mixed(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// *Synthetic*: one colour for each class.
    fn write_image(path: &Path, colour: [u8; 3]) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::from_pixel(9, 7, image::Rgb(colour)).save(path).unwrap();
    }

    fn folder(dir: &Path) {
        for (class, colour) in [("cat", [200, 10, 10]), ("dog", [10, 200, 10]), ("newt", [10, 10, 200])] {
            for i in 0..6 {
                write_image(&dir.join("train").join(class).join(format!("{i}.png")), colour);
            }
            write_image(&dir.join("val").join(class).join("a.png"), colour);
        }
    }

    #[test]
    fn classes_are_folders_and_images_are_resized() {
        let dir = tempfile::tempdir().unwrap();
        folder(dir.path());
        std::fs::write(dir.path().join("train/notes.txt"), "not a class").unwrap();
        let DataSet { train, test, source } = load(dir.path(), [3, 8, 8]).unwrap();
        train.check().unwrap();
        test.check().unwrap();
        assert_eq!((train.len(), test.len(), source.train), (18, 3, 18));
        assert_eq!(train.classes, ["cat", "dog", "newt"]);
        for set in [&train, &test] {
            for i in 0..set.len() {
                let class = usize::from(set.labels[i]);
                assert_eq!(set.image(i)[class], 200);
                assert!(set.image(i).chunks(3).all(|pixel| pixel == &set.image(i)[..3]));
            }
        }
        assert!(train.labels.windows(2).any(|w| w[0] > w[1]), "in the order of classes");
        let again = load(dir.path(), [3, 8, 8]).unwrap();
        assert_eq!(again.train, train);
        let grey = load(dir.path(), [1, 4, 5]).unwrap().test;
        assert_eq!((grey.c, grey.images.len(), grey.mean.len()), (1, 3 * 20, 1));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!found_in(dir.path()));
        folder(dir.path());
        assert!(found_in(dir.path()));
        assert!(matches!(load(dir.path(), [2, 8, 8]), Err(Error::Argument { .. })));
        assert!(matches!(load(dir.path(), [3, 1 << 20, 1 << 20]), Err(Error::TooLarge { .. })));
        let bad = dir.path().join("train/dog/bad.png");
        std::fs::write(&bad, b"no image at all").unwrap();
        let e = load(dir.path(), [3, 8, 8]).unwrap_err().to_string();
        assert!(e.contains("bad.png"), "{e}");
        std::fs::remove_file(&bad).unwrap();
        std::fs::create_dir(dir.path().join("train/empty")).unwrap();
        let e = load(dir.path(), [3, 8, 8]).unwrap_err().to_string();
        assert!(e.contains("empty"), "{e}");
        std::fs::remove_dir(dir.path().join("train/empty")).unwrap();
        write_image(&dir.path().join("val/bird/a.png"), [0; 3]);
        let e = load(dir.path(), [3, 8, 8]).unwrap_err().to_string();
        assert!(e.contains("bird"), "{e}");
    }
}
