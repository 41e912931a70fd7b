//! What can be wrong with data: where, what, and what to do.

use std::path::{Path, PathBuf};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}", path = .path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// The file ends before what its header promises.
    #[error("{path}: the file is cut short: {why}; copy or download it again", path = .path.display())]
    Truncated { path: PathBuf, why: String },
    /// The content contradicts itself or its format.
    #[error("{path}: the file is damaged: {why}", path = .path.display())]
    Corrupt { path: PathBuf, why: String },
    #[error("{path}: not supported: {why}", path = .path.display())]
    Unsupported { path: PathBuf, why: String },
    /// A size in a header is above the limit; nothing was allocated.
    #[error("{path}: too large: {why}", path = .path.display())]
    TooLarge { path: PathBuf, why: String },
    #[error("{0}")]
    NotFound(String),
    /// A caller's argument does not make sense.
    #[error("{what}: {why}")]
    Argument { what: &'static str, why: String },
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Error::Io { path: path.to_owned(), source }
    }

    pub(crate) fn truncated(path: &Path, why: impl Into<String>) -> Self {
        Error::Truncated { path: path.to_owned(), why: why.into() }
    }

    pub(crate) fn corrupt(path: &Path, why: impl Into<String>) -> Self {
        Error::Corrupt { path: path.to_owned(), why: why.into() }
    }

    pub(crate) fn unsupported(path: &Path, why: impl Into<String>) -> Self {
        Error::Unsupported { path: path.to_owned(), why: why.into() }
    }

    pub(crate) fn too_large(path: &Path, why: impl Into<String>) -> Self {
        Error::TooLarge { path: path.to_owned(), why: why.into() }
    }

    pub(crate) fn argument(what: &'static str, why: impl Into<String>) -> Self {
        Error::Argument { what, why: why.into() }
    }
}
