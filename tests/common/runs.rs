//! Short trainings with the built command, on the beginning of the committed subset of Fashion-MNIST.

use lacuna::data::{ImageSet, fashion_mnist};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The command with these arguments.
pub fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    // Measured kernels are kept beside the build, not in the user's folder.
    command.args(words).stdin(Stdio::null()).env("LACUNA_CACHE", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// The first so many training and test images of the subset as the four files of Fashion-MNIST; the test set.
pub fn write_data(dir: &Path, train_images: usize, test_images: usize) -> ImageSet {
    fs::create_dir_all(dir).unwrap();
    let (train, test, _) = fashion_mnist::load(fashion_mnist::subset_dir().as_deref()).unwrap();
    let (train, test) = (train.take(train_images), test.take(test_images));
    for (set, name) in [(&train, "train"), (&test, "t10k")] {
        write_idx(dir.join(format!("{name}-images-idx3-ubyte")), &[set.len(), set.h, set.w], &set.images);
        write_idx(dir.join(format!("{name}-labels-idx1-ubyte")), &[set.len()], &set.labels);
    }
    test
}

fn write_idx(path: PathBuf, dims: &[usize], data: &[u8]) {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    dims.iter().for_each(|&d| bytes.extend((d as u32).to_be_bytes()));
    bytes.extend_from_slice(data);
    fs::write(path, bytes).unwrap();
}
