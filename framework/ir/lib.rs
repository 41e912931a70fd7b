//! Lacuna's one graph.
//!
//! Whatever trained a model and whatever file it came from, it becomes a [`Graph`]: tables with typed ids
//! ([`ids`]), one table of ops ([`op`]) with a shape rule ([`shape`]) and a reference function ([`mod@reference`])
//! each, a verifier ([`verify`]), a text form ([`text`]), an interpreter ([`interp`]), and the rewrites that
//! need no knowledge of a machine ([`passes`]).

#![forbid(unsafe_code)]

pub mod bind;
pub mod elements;
pub mod error;
pub mod flow;
pub mod graph;
pub mod ids;
pub mod interp;
pub mod op;
pub mod params;
pub mod passes;
pub mod reference;
pub mod shape;
pub mod symbols;
pub mod tensor;
pub mod text;
pub mod verify;

pub use error::{Error, Result};
pub use graph::{Def, Graph, Uses};
pub use ids::{BodyId, ConstId, Id, IdVec, OpId, Range32, SymbolId, ValueId};
pub use op::{Attr, OPS, OpKind};
pub use symbols::{Element, SymbolDef, Symbols};
pub use tensor::{DType, Dim, Elements, Tensor, element_count};
