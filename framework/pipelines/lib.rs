//! What stands before and behind a session, by task: pictures or texts in, findings out. Evaluation and the command line
//! share it.
//!
//! ```text
//! picture ─► letterbox ─► session ─► heads (maps or rows to boxes) ─► suppress ─► boxes of the picture ─► draw
//!                                      head_table says which of them     └─► masks ─┘
//! text    ─► tokenizer ─► session ─► vectors of meaning, or probabilities of classes
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
pub mod text;
pub mod tokenizer;

pub use boxes::Detection;
pub use detector::Detector;
pub use text::{Embedder, TextClassifier};
pub use tokenizer::Tokenizer;

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
    /// A text that cannot be used.
    #[error("text: {why}")]
    Text { why: String },
    #[error("{path}: {why}", path = .path.display())]
    Write { path: std::path::PathBuf, why: String },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
