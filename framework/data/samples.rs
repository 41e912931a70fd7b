//! What a training learns from, whatever its kind: images or texts.

use crate::{Error, ImageSet, Result, TextSet};

/// A labelled set.
#[derive(Debug, Clone, PartialEq)]
pub enum Samples {
    Images(ImageSet),
    Texts(TextSet),
}

/// The same, borrowed.
#[derive(Debug, Clone, Copy)]
pub enum SetRef<'a> {
    Images(&'a ImageSet),
    Texts(&'a TextSet),
}

impl<'a> From<&'a ImageSet> for SetRef<'a> {
    fn from(set: &'a ImageSet) -> Self {
        SetRef::Images(set)
    }
}

impl<'a> From<&'a TextSet> for SetRef<'a> {
    fn from(set: &'a TextSet) -> Self {
        SetRef::Texts(set)
    }
}

impl<'a> From<&'a Samples> for SetRef<'a> {
    fn from(set: &'a Samples) -> Self {
        match set {
            Samples::Images(set) => SetRef::Images(set),
            Samples::Texts(set) => SetRef::Texts(set),
        }
    }
}

impl From<ImageSet> for Samples {
    fn from(set: ImageSet) -> Self {
        Samples::Images(set)
    }
}

impl From<TextSet> for Samples {
    fn from(set: TextSet) -> Self {
        Samples::Texts(set)
    }
}

impl SetRef<'_> {
    pub fn len(&self) -> usize {
        match self {
            SetRef::Images(set) => set.len(),
            SetRef::Texts(set) => set.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn check(&self) -> Result<()> {
        match self {
            SetRef::Images(set) => set.check(),
            SetRef::Texts(set) => set.check(),
        }
    }
}

impl Samples {
    pub fn len(&self) -> usize {
        SetRef::from(self).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Class names; the label is the index.
    pub fn classes(&self) -> &[String] {
        match self {
            Samples::Images(set) => &set.classes,
            Samples::Texts(set) => &set.classes,
        }
    }

    /// The images, where it is a set of them.
    pub fn images(&self) -> Option<&ImageSet> {
        match self {
            Samples::Images(set) => Some(set),
            Samples::Texts(_) => None,
        }
    }

    /// As [`Samples::images`], for who can use nothing else.
    pub fn require_images(&self) -> Result<&ImageSet> {
        self.images().ok_or_else(|| Error::argument("data", "texts, where images are needed"))
    }

    /// The first `n` (all, where there are fewer).
    pub fn take(&self, n: usize) -> Samples {
        match self {
            Samples::Images(set) => set.take(n).into(),
            Samples::Texts(set) => set.take(n).into(),
        }
    }
}
