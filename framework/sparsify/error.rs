//! What can go wrong, and where.

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Options(String),
    /// Sample `sample` (counted from 0).
    #[error("sample {sample}: {why}")]
    Sample { sample: usize, why: String },
    #[error("layer '{layer}': {why}")]
    Layer { layer: String, why: String },
    #[error(transparent)]
    Graph(#[from] lacuna_ir::Error),
    #[error(transparent)]
    Engine(#[from] lacuna_engine::Error),
}
