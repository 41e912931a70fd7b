//! Ops with bodies: what they do is in [`crate::flow`], which has the graph.

use super::{Inputs, Outputs};
use crate::op::Attr;

/// Without their bodies such ops make nothing.
pub fn of_bodies(_: &Attr, _: Inputs<'_>) -> Outputs {
    Err("runs a graph, which is not at hand here".to_string())
}
