//! What can go wrong in training: where, what, what to do.

use lacuna_recipe::Diagnostic;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Disk(#[from] crate::checkpoint::Error),
    #[error(transparent)]
    Data(#[from] lacuna_data::Error),
    /// Diagnostics of a recipe, each with its place.
    #[error("{}", .0.iter().map(|d| d.to_string()).collect::<Vec<_>>().join("\n"))]
    Diagnostics(Vec<Diagnostic>),
    #[error("recipe: {0}")]
    Recipe(String),
    #[error("weights: {0}")]
    Weights(String),
    #[error("engine: {0}")]
    Engine(#[source] lacuna_engine::Error),
    #[error("resume: {0}")]
    Resume(String),
    #[error("step {step}: the loss is {loss}; lower the learning rate")]
    Diverged { step: u64, loss: f32 },
}

impl From<Vec<Diagnostic>> for Error {
    fn from(diagnostics: Vec<Diagnostic>) -> Self {
        Error::Diagnostics(diagnostics)
    }
}
