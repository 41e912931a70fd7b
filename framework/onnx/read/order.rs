//! The order of nodes.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::{Reader, Source};
use crate::error::{Error, Result};
use crate::functions::graphs_of;
use crate::node::Node;
use crate::proto::{GraphProto, NodeProto};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

impl Reader<'_> {
    /// Kahn's algorithm (Comm. ACM 5(11), 1962); among nodes that are ready the first of the file comes
    /// first, so a file that is in order keeps its order.
    pub(super) fn topological_order(&self, nodes: &[Node<'_>]) -> Result<Vec<usize>> {
        let innermost = self.scopes.len().saturating_sub(1);
        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
        let mut waits: Vec<usize> = vec![0; nodes.len()];
        for (index, (node, waits)) in nodes.iter().zip(&mut waits).enumerate() {
            for input in reads(node.proto) {
                match self.find(input) {
                    Some((scope, Source::Node(maker))) if scope == innermost => {
                        if let Some(readers) = readers.get_mut(maker) {
                            readers.push(index);
                        }
                        *waits = waits.saturating_add(1);
                    }
                    Some((_, Source::Value(_))) => {}
                    _ => {
                        let (value, by) = (input.to_string(), format!("node '{}'", node.name));
                        return Err(Error::MissingValue { value, by });
                    }
                }
            }
        }
        let ready = waits.iter().enumerate().filter(|(_, waits)| **waits == 0);
        let mut ready: BinaryHeap<Reverse<usize>> = ready.map(|(i, _)| Reverse(i)).collect();
        let mut order = Vec::with_capacity(nodes.len());
        while let Some(Reverse(index)) = ready.pop() {
            order.push(index);
            for &reader in readers.get(index).into_iter().flatten() {
                if let Some(waits) = waits.get_mut(reader) {
                    *waits = waits.saturating_sub(1);
                    if *waits == 0 {
                        ready.push(Reverse(reader));
                    }
                }
            }
        }
        match waits.iter().zip(nodes).find(|(waits, _)| **waits > 0) {
            Some((_, node)) => Err(Error::Cycle { node: node.name.clone() }),
            None => Ok(order),
        }
    }
}

/// Names that a node reads: its inputs, and what its bodies read of the graph that it stands in.
pub(super) fn reads(node: &NodeProto) -> Vec<&str> {
    let own = node.input.iter().map(String::as_str);
    let inner = node.attribute.iter().flat_map(graphs_of).flat_map(free_names);
    let mut seen = HashSet::new();
    own.filter(|i| !i.is_empty()).chain(inner.filter(|name| seen.insert(*name))).collect()
}

/// Names that a graph reads and does not make.
fn free_names(graph: &GraphProto) -> Vec<&str> {
    let inputs = graph.input.iter().map(|v| v.name.as_str());
    let dense = graph.initializer.iter().map(|t| t.name.as_str());
    let sparse = graph.sparse_initializer.iter().filter_map(|t| Some(t.values.as_ref()?.name.as_str()));
    let made = graph.node.iter().flat_map(|n| &n.output).map(String::as_str);
    let own: HashSet<&str> = inputs.chain(dense).chain(sparse).chain(made).collect();
    let read = graph.node.iter().flat_map(reads).chain(graph.output.iter().map(|v| v.name.as_str()));
    read.filter(|name| !name.is_empty() && !own.contains(name)).collect()
}
