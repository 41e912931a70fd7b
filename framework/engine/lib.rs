//! Lacuna's engine: from a graph to results, fast, on a CPU.
//!
//! [`passes`] lower a graph to NHWC, fused, integer ops; `plan` packs weights, picks kernels and lays out the
//! arena; [`kernels`] do the work; `workers` share it out; a [`Session`] is what callers hold.

mod affinity;
mod batch;
mod binding;
pub mod error;
pub mod kernels;
pub mod memory;
pub mod passes;
mod plan;
pub mod pool;
pub mod session;
pub mod target;
mod trial;
mod workers;

pub use affinity::pin_thread;
pub use error::{Error, Result};
pub use memory::AlignedBytes;
pub use passes::{PASSES, PassReport, lower};
pub use plan::{KernelChoice, StepInfo, cache_folder};
pub use pool::Pool;
pub use session::{InputRef, Options, OutputMut, Port, Session, StepProfile, Tune};
pub use target::{Isa, Target};
