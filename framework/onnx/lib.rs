//! ONNX files and Lacuna's graph: [`load`] and [`parse`] read operator sets 7 to 28, [`save`] and [`to_bytes`]
//! write operator set 17 (21 where an op came later). Nothing else knows protobuf.
//!
//! One table, [`ops::FAMILIES`], says how each op is read and written. Files are not trusted: whatever is wrong
//! with one is an [`Error`] that says where and what, found before memory is allocated for it.

#![deny(unsafe_code)]

mod composite;
mod error;
mod external;
mod functions;
mod node;
pub mod ops;
#[doc(hidden)]
pub mod proto;
pub mod read;
mod scan;
mod tensor;
pub mod write;

pub use error::{Error, Result};
pub use read::{load, parse};
pub use write::{WriteOptions, save, to_bytes};
