//! Calls of functions that a file defines for itself are replaced by the functions' bodies.
//!
//! A body's values get new names, `call/value`, so that every call has its own. What a body becomes is bounded
//! before it is built: [`NODES_MAX`] nodes and [`BYTES_MAX`] bytes of them, [`DEPTH_MAX`] calls within calls.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use crate::error::{Error, Result};
use crate::proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto};
use crate::read::{default_version, is_default_domain};
use prost::Message;
use std::collections::{HashMap, HashSet};

/// Nodes that calls become, of all calls together.
const NODES_MAX: usize = 1 << 17;
/// Encoded bytes of these nodes, but for the data of tensors, which are shared.
const BYTES_MAX: usize = 32 << 20;
/// Calls within calls. Functions cannot call themselves.
const DEPTH_MAX: usize = 32;

/// Replaces every call in `model.graph`, in its sub-graphs and in what it becomes.
pub fn inline(model: &mut ModelProto) -> Result<()> {
    let functions = std::mem::take(&mut model.functions);
    let Some(graph) = model.graph.as_mut().filter(|_| !functions.is_empty()) else { return Ok(()) };
    let version = default_version(&model.opset_import);
    let mut by_name = HashMap::with_capacity(functions.len());
    for f in &functions {
        let other = default_version(&f.opset_import).filter(|v| Some(*v) != version);
        if let Some(other) = other {
            let what = format!(
                "a function written for operator set {other} in a model of {}: convert the model",
                version.unwrap_or_default()
            );
            return Err(Error::UnsupportedFeature { name: f.name.clone(), what });
        }
        if by_name.insert((f.domain.as_str(), f.name.as_str(), f.overload.as_str()), f).is_some() {
            return Err(Error::DuplicateName { what: "function", name: f.name.clone() });
        }
    }
    let mut inliner = Inliner { functions: by_name, names: HashSet::new(), nodes: 0, bytes: 0 };
    note_names(graph, &mut inliner.names);
    inliner.graph(graph, 0)
}

type Key<'f> = (&'f str, &'f str, &'f str);

struct Inliner<'f> {
    functions: HashMap<Key<'f>, &'f FunctionProto>,
    /// Names of values that are taken.
    names: HashSet<String>,
    nodes: usize,
    bytes: usize,
}

/// What names inside a body, or a graph inside of it, stand for outside.
type Names = HashMap<String, String>;

impl<'f> Inliner<'f> {
    fn graph(&mut self, graph: &mut GraphProto, depth: usize) -> Result<()> {
        let mut nodes = Vec::with_capacity(graph.node.len());
        for node in std::mem::take(&mut graph.node) {
            self.node(node, depth, &mut nodes)?;
        }
        graph.node = nodes;
        Ok(())
    }

    /// Appends the node, or what it stands for, to `out`.
    fn node(&mut self, mut node: NodeProto, depth: usize, out: &mut Vec<NodeProto>) -> Result<()> {
        let domain = if is_default_domain(&node.domain) { "" } else { node.domain.as_str() };
        let key = (domain, node.op_type.as_str(), node.overload.as_str());
        let called = self.functions.get(&key).copied();
        let Some(f) = called else {
            for inner in node.attribute.iter_mut().flat_map(graphs_of_mut) {
                self.graph(inner, depth)?;
            }
            out.push(node);
            return Ok(());
        };
        if depth >= DEPTH_MAX {
            let what = format!("functions that call each other deeper than {DEPTH_MAX}, or themselves");
            return Err(Error::UnsupportedFeature { name: f.name.clone(), what });
        }
        if node.input.len() > f.input.len() || node.output.len() > f.output.len() {
            let why = format!("the function takes {} inputs and makes {}", f.input.len(), f.output.len());
            return Err(Error::Arity { node: node.name.clone(), op: node.op_type.clone(), why });
        }
        let mut names = Names::new();
        for (i, inner) in f.input.iter().enumerate() {
            names.insert(inner.clone(), node.input.get(i).cloned().unwrap_or_default());
        }
        for (inner, outer) in f.output.iter().zip(&node.output).filter(|(_, outer)| !outer.is_empty()) {
            // An input that is handed on has a name already; the copy gets the other.
            if names.contains_key(inner) {
                let input = vec![names.get(inner).cloned().unwrap_or_default()];
                let output = vec![outer.clone()];
                out.push(NodeProto {
                    op_type: "Identity".to_string(),
                    input,
                    output,
                    ..NodeProto::default()
                });
            } else {
                names.insert(inner.clone(), outer.clone());
            }
        }
        let call = if node.name.is_empty() {
            node.output.first().cloned().unwrap_or_default()
        } else {
            node.name.clone()
        };
        for body in &f.node {
            self.nodes = self.nodes.saturating_add(1);
            self.bytes = self.bytes.saturating_add(bytes_of(body));
            if self.nodes > NODES_MAX || self.bytes > BYTES_MAX {
                let what = format!("its functions become more than {NODES_MAX} nodes or {BYTES_MAX} bytes");
                return Err(Error::UnsupportedFeature { name: f.name.clone(), what });
            }
            let mut copy = body.clone();
            copy.name = if body.name.is_empty() { String::new() } else { format!("{call}/{}", body.name) };
            for attribute in &mut copy.attribute {
                given(attribute, &node, f);
            }
            // An attribute of the caller that is not given, and has no default, is not given inside either.
            copy.attribute.retain(|a| a.ref_attr_name.is_empty());
            self.rename(&mut copy, &call, &mut names, &node, f);
            self.node(copy, depth.saturating_add(1), out)?;
        }
        Ok(())
    }

    /// Gives the values of a body's node their names outside.
    fn rename(
        &mut self,
        node: &mut NodeProto,
        call: &str,
        names: &mut Names,
        caller: &NodeProto,
        f: &FunctionProto,
    ) {
        for input in node.input.iter_mut().filter(|i| !i.is_empty()) {
            if let Some(outer) = names.get(input) {
                input.clone_from(outer);
            }
        }
        for output in node.output.iter_mut().filter(|o| !o.is_empty()) {
            if !names.contains_key(output) {
                let name = self.unused(call, output);
                names.insert(output.clone(), name);
            }
            if let Some(outer) = names.get(output) {
                output.clone_from(outer);
            }
        }
        for attribute in &mut node.attribute {
            for inner in graphs_of_mut(attribute) {
                // Names that a graph inside makes are its own.
                let mut own = names.clone();
                self.rename_graph(inner, call, &mut own, caller, f);
            }
        }
    }

    fn rename_graph(
        &mut self,
        graph: &mut GraphProto,
        call: &str,
        names: &mut Names,
        caller: &NodeProto,
        f: &FunctionProto,
    ) {
        let inputs = graph.input.iter_mut().map(|v| &mut v.name);
        for name in inputs.chain(graph.initializer.iter_mut().map(|t| &mut t.name)) {
            let outer = self.unused(call, name);
            names.insert(std::mem::replace(name, outer.clone()), outer);
        }
        for node in &mut graph.node {
            for output in node.output.iter().filter(|o| !o.is_empty()) {
                let outer = self.unused(call, output);
                names.insert(output.clone(), outer);
            }
            for attribute in &mut node.attribute {
                given(attribute, caller, f);
            }
            node.attribute.retain(|a| a.ref_attr_name.is_empty());
            self.rename(node, call, names, caller, f);
        }
        for output in &mut graph.output {
            if let Some(outer) = names.get(&output.name) {
                output.name.clone_from(outer);
            }
        }
    }

    fn unused(&mut self, call: &str, name: &str) -> String {
        let mut fresh = format!("{call}/{name}");
        while !self.names.insert(fresh.clone()) {
            fresh.push('_');
        }
        fresh
    }
}

/// Adds the names of all values of the graph and its sub-graphs to `names`.
pub fn note_names(graph: &GraphProto, names: &mut HashSet<String>) {
    names.extend(graph.input.iter().chain(&graph.output).map(|v| v.name.clone()));
    names.extend(graph.initializer.iter().map(|t| t.name.clone()));
    names.extend(graph.sparse_initializer.iter().filter_map(|t| Some(t.values.as_ref()?.name.clone())));
    for node in &graph.node {
        names.extend(node.output.iter().cloned());
        for inner in node.attribute.iter().flat_map(graphs_of) {
            note_names(inner, names);
        }
    }
}

/// An attribute that refers to one of the call's becomes that one, or the function's default; otherwise it stays.
fn given(attribute: &mut AttributeProto, call: &NodeProto, f: &FunctionProto) {
    let wanted = &attribute.ref_attr_name;
    if wanted.is_empty() {
        return;
    }
    if let Some(found) = call.attribute.iter().chain(&f.attribute_proto).find(|a| a.name == *wanted) {
        let name = attribute.name.clone();
        *attribute = AttributeProto { name, ..found.clone() };
    }
}

/// The graphs that an attribute holds.
pub fn graphs_of(attribute: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
    attribute.g.as_deref().into_iter().chain(&attribute.graphs)
}

/// The graphs that an attribute holds.
pub fn graphs_of_mut(attribute: &mut AttributeProto) -> impl Iterator<Item = &mut GraphProto> {
    attribute.g.as_deref_mut().into_iter().chain(&mut attribute.graphs)
}

fn bytes_of(node: &NodeProto) -> usize {
    let tensors = node.attribute.iter().flat_map(|a| a.t.as_deref().into_iter().chain(&a.tensors));
    let shared = tensors.fold(0usize, |sum, t| sum.saturating_add(t.raw_data.len()));
    node.encoded_len().saturating_sub(shared)
}
