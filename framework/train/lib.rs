//! Training under a recipe: the loop, what a recipe's events do to tensors, optimiser state, checkpoints and logs.
//!
//! ```text
//! Recipe ─ compile ─► Schedule ─┐
//! Samples ── Prefetch ─ batches ├─► fit: events, forward, loss, backward, step ─► RunFolder
//! module + State (columns) ─────┘
//! ```

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod columns;
pub mod detection;
mod disk;
pub mod error;
mod exact;
pub mod inputs;
pub mod logs;
pub mod loss;
pub mod masks;
pub mod modifiers;
pub mod optimizer;
pub mod quantize;
pub mod run_folder;
pub mod state;
pub mod tensor_file;
pub mod trainer;
pub mod validate;
pub mod weights;

pub use error::{Error, Result};
pub use loss::Teacher;
pub use optimizer::Optimizer;
pub use trainer::{Fit, Outcome, TrainArgs, fit, fit_with};
pub use validate::{evaluate, validate};
