//! What can go wrong between a graph and its results: where, what, and what to do.

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Graph(#[from] lacuna_ir::Error),
    #[error("options: {0}")]
    Options(String),
    #[error("op '{op}' ({kind}): {why}")]
    Op { op: String, kind: &'static str, why: String },
    #[error("pass {pass}: {why}")]
    Pass { pass: &'static str, why: String },
    #[error("input '{name}': {why}")]
    Input { name: String, why: String },
    #[error("output '{name}': {why}")]
    Output { name: String, why: String },
    #[error("the activations need {bytes} bytes, the limit is {max}: use a smaller batch")]
    TooLarge { bytes: u64, max: u64 },
    #[error("the activations need {bytes} bytes, which the system does not give: use a smaller batch")]
    OutOfMemory { bytes: u64 },
}
