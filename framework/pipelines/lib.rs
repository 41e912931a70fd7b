//! What stands before and behind a session, by task: pictures in, findings out. Evaluation and the command line share it.
//!
//! ```text
//! picture ─► letterbox ─► session ─► heads (maps or rows to boxes) ─► suppress ─► boxes of the picture ─► draw
//!                                      head_table says which of them     └─► masks ─┘
//! ```
//! No burn: whoever only deploys needs this, the engine and a file reader.

#![forbid(unsafe_code)]

pub mod boxes;
pub mod classes;
pub mod detector;
pub mod draw;
pub mod head_table;
pub mod heads;
pub mod inputs;
pub mod letterbox;
pub mod masks;
pub mod priors;
pub mod scores;

pub use boxes::Detection;
pub use detector::Detector;

/// What can go wrong between a picture and its findings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The graph is not one of this task; the text says why and what to do.
    #[error("{model}: {why}")]
    Model { model: String, why: String },
    #[error(transparent)]
    Data(#[from] lacuna_data::Error),
    #[error(transparent)]
    Engine(#[from] lacuna_engine::Error),
    #[error("{path}: {why}", path = .path.display())]
    Write { path: std::path::PathBuf, why: String },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
