//! Data sets, images and metrics: everything that turns files into batches of plain numbers.
//!
//! Nothing here knows a tensor library. A data set is an [`ImageSet`] (flat bytes and labels) or a
//! [`TextSet`] (flat numbers of tokens), a batch is a flat `Vec<f32>` in NCHW order or ids and a mask, and what is random is a pure function of
//! (seed, epoch, sample), so that a resumed run sees exactly the batches it would have seen.
//! Files are untrusted: sizes are checked before memory is taken, and every failure is an [`Error`].

#![forbid(unsafe_code)]

pub mod average_precision;
pub mod boxes;
pub mod detection;
mod error;
pub mod fashion_mnist;
pub mod idx;
pub mod image_folder;
pub mod images;
pub mod loader;
pub mod metrics;
pub mod mnist;
pub mod samples;
pub mod sets;
pub mod texts;

pub use boxes::BoxColumn;
pub use error::{Error, Result};
use image_folder::SET_BYTES_MAX;
pub use images::RgbImage8;
pub use loader::{Augment, Batch, BatchSpec, Batches, Pad, Prefetch, TokenBatch};
pub use samples::{Samples, SetRef};
pub use sets::{DataSet, Source};
pub use texts::TextSet;

/// A labelled set of images of one size, in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageSet {
    /// `n * h * w * c` bytes, NHWC.
    pub images: Vec<u8>,
    /// One class index for each image, below `classes.len()`.
    pub labels: Vec<u8>,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    /// Class names; the label is the index.
    pub classes: Vec<String>,
    /// Per channel, of pixels scaled to 0..1; a batch holds `(pixel / 255 - mean) / std`.
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
    /// Whether the mirror image of one is as good an example of its class: not so with digits.
    pub mirror: bool,
    /// Objects to find, of sets for detectors: `classes` are theirs, and labels mean nothing.
    pub boxes: Option<BoxColumn>,
}

impl ImageSet {
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The `h * w * c` bytes of image `i`.
    pub fn image(&self, i: usize) -> &[u8] {
        let len = self.h * self.w * self.c;
        &self.images[i * len..(i + 1) * len]
    }

    /// The first `n` images (all, where there are fewer).
    pub fn take(&self, n: usize) -> ImageSet {
        let n = n.min(self.len());
        ImageSet {
            images: self.images[..n * self.h * self.w * self.c].to_vec(),
            labels: self.labels[..n].to_vec(),
            classes: self.classes.clone(),
            mean: self.mean.clone(),
            std: self.std.clone(),
            boxes: self.boxes.as_ref().map(|boxes| boxes.take(n)),
            ..*self
        }
    }

    /// The same images with another height and width, and grey repeated where three channels are asked for.
    ///
    /// Errors: colours where one channel is asked for, or more bytes than a set may have.
    pub fn scaled(self, [c, h, w]: [usize; 3]) -> Result<ImageSet> {
        if self.c != 1 {
            return Err(Error::argument("image set", format!("has {} channels, {c} are asked for", self.c)));
        }
        let bytes = [h, w, c].iter().try_fold(self.len(), |n, &d| n.checked_mul(d));
        let Some(bytes) = bytes.filter(|&n| n as u64 <= SET_BYTES_MAX) else {
            let n = self.len();
            let why = format!(
                "{n} images of {c}x{h}x{w} are more than {SET_BYTES_MAX} bytes (choose a smaller size)"
            );
            return Err(Error::argument("image set", why));
        };
        let mut images = vec![0; bytes];
        for (i, to) in images.chunks_exact_mut(h * w * c).enumerate() {
            let pixels = self.image(i).iter().flat_map(|&p| [p; 3]).collect();
            let image = images::resize(&RgbImage8 { h: self.h, w: self.w, pixels }, h, w)?;
            images::to_channels(&image, to);
        }
        let [mean, std] = [&self.mean, &self.std].map(|of_grey| vec![of_grey[0]; c]);
        Ok(ImageSet { images, h, w, c, mean, std, ..self })
    }

    /// That the columns agree with each other; the loader asks once per epoch.
    pub fn check(&self) -> Result<()> {
        let bytes = [self.h, self.w, self.c].iter().try_fold(self.len(), |n, &d| n.checked_mul(d));
        if bytes != Some(self.images.len()) || self.h * self.w * self.c == 0 {
            let (n, h, w, c) = (self.len(), self.h, self.w, self.c);
            let have = self.images.len();
            return Err(Error::argument(
                "image set",
                format!("{n} images of {h}x{w}x{c} are not {have} bytes"),
            ));
        }
        if self.mean.len() != self.c || self.std.len() != self.c {
            return Err(Error::argument("image set", format!("needs {} values of mean and of std", self.c)));
        }
        if !self.mean.iter().all(|m| m.is_finite()) || !self.std.iter().all(|s| s.is_finite() && *s > 0.0) {
            return Err(Error::argument("image set", "mean and std must be finite, and std above 0"));
        }
        if let Some(boxes) = &self.boxes {
            boxes.check(self)?;
        }
        match self.labels.iter().position(|&l| usize::from(l) >= self.classes.len()) {
            Some(i) => {
                let (label, classes) = (self.labels[i], self.classes.len());
                Err(Error::argument(
                    "image set",
                    format!("image {i} has label {label}, of {classes} classes"),
                ))
            }
            None => Ok(()),
        }
    }
}
