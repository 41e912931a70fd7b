//! What can be wrong with a graph: where, what, and what to do.

use crate::tensor::DType;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("constant '{name}': {bytes} bytes do not fill {dtype}{dims:?}")]
    ConstLength { name: String, dtype: DType, dims: Vec<usize>, bytes: usize },
    #[error("op '{op}' ({kind}): {why}")]
    Op { op: String, kind: &'static str, why: String },
    #[error("graph: {0}")]
    Invalid(String),
    #[error("input '{name}': {why}")]
    Input { name: String, why: String },
    #[error("line {line}: {why}")]
    Text { line: usize, why: String },
}
