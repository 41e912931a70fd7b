//! Graphs inside of the file's graph become graphs of their own (`lacuna_ir::flow`), or part of the one around them.
//!
//! What a body reads of the graphs around it is *captured*: constants are shared, other values become inputs of the body and
//! of its op. A small file can nest deeply, and some bodies are read more than once: [`NODES_MAX`] bounds the nodes that are
//! read in all.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::{Reader, Scope, Source, tensor_type};
use crate::error::{Error, Result};
use crate::functions::graphs_of;
use crate::node::Node;
use crate::proto::{GraphProto, NodeProto, ValueInfoProto};
use lacuna_ir::flow::BODIES_DEEP_MAX;
use lacuna_ir::{Attr, DType, Dim, Graph, OpKind, ValueId};
use std::collections::{HashMap, HashSet};

/// Nodes of bodies that are read in all, counted each time.
pub const NODES_MAX: usize = 1 << 17;
/// As how many nodes a body counts, however small it is.
const BODY_NODES: usize = 64;

/// Values that one body may read of the graphs around it.
const CAPTURES_MAX: usize = 1 << 10;

/// What a body reads of the graph around it.
#[derive(Default)]
pub struct Captures {
    /// Values of the graph around, in the order of the body's inputs for them, which stand behind its own.
    around: Vec<ValueId>,
    /// What each is inside: an input, or a constant.
    inside: HashMap<ValueId, ValueId>,
}

/// A graph around the one that is being read.
pub struct Outer {
    graph: Graph,
    widened: HashSet<ValueId>,
    captures: Captures,
}

/// A body that has been read, and the values of the graph around that its last inputs are.
pub(super) struct Body {
    pub graph: Graph,
    pub captures: Vec<ValueId>,
}

impl<'m> Reader<'m> {
    pub(super) fn branch(&mut self, node: &Node<'m>, proto: &'m GraphProto) -> Result<Body> {
        no_inputs(node, proto)?;
        self.body(node, &proto.name, nodes_of(proto), |r| r.read_contents(node, proto))
    }

    /// The values that a graph makes, whose nodes join the present one.
    pub(super) fn inline(&mut self, node: &Node<'m>, proto: &'m GraphProto) -> Result<Vec<ValueId>> {
        no_inputs(node, proto)?;
        self.spend(nodes_of(proto))?;
        self.scopes.push(Scope { names: HashMap::new(), level: self.outer.len() });
        let made = self.read_contents(node, proto);
        self.scopes.pop();
        made
    }

    /// A graph of its own: its inputs are added and its outputs made by `make`.
    pub(super) fn body(
        &mut self,
        node: &Node<'m>,
        name: &str,
        nodes: usize,
        make: impl FnOnce(&mut Reader<'m>) -> Result<Vec<ValueId>>,
    ) -> Result<Body> {
        self.spend(nodes)?;
        let level = self.outer.len().saturating_add(1);
        if level > BODIES_DEEP_MAX {
            let what = format!("graphs within graphs deeper than {BODIES_DEEP_MAX}");
            return Err(Error::UnsupportedFeature { name: node.name.clone(), what });
        }
        let mut graph = Graph::new(name);
        graph.symbols = self.graph.symbols.closed();
        self.outer.push(Outer {
            graph: std::mem::replace(&mut self.graph, graph),
            widened: std::mem::take(&mut self.widened),
            captures: std::mem::take(&mut self.captures),
        });
        self.scopes.push(Scope { names: HashMap::new(), level });
        let made = make(self).and_then(|outputs| self.set_outputs(node, &outputs));
        self.scopes.pop();
        let captures = match self.outer.pop() {
            Some(outer) => {
                graph = std::mem::replace(&mut self.graph, outer.graph);
                self.widened = outer.widened;
                std::mem::replace(&mut self.captures, outer.captures)
            }
            None => return Err(node.arity("is of no graph".to_string())),
        };
        made.map(|()| Body { graph, captures: captures.around })
    }

    /// Initialisers and nodes of a graph inside, and the values that are its outputs, cond first in loops.
    pub(super) fn read_contents(&mut self, node: &Node<'m>, proto: &'m GraphProto) -> Result<Vec<ValueId>> {
        self.read_initialisers(proto)?;
        self.read_all_nodes(proto)?;
        let by = format!("the outputs of a body of node '{}'", node.name);
        proto.output.iter().map(|output| self.seen(&output.name, &by)).collect()
    }

    /// A body's outputs are results of its ops, which is what runtimes of ONNX ask for, and have distinct names.
    fn set_outputs(&mut self, node: &Node<'_>, outputs: &[ValueId]) -> Result<()> {
        let mut names = HashSet::new();
        for (i, &v) in outputs.iter().enumerate() {
            let name = self.graph.value_name.get(v).cloned().unwrap_or_default();
            let mut own = v;
            if name.is_empty() || self.graph.producer(v).is_none() || !names.insert(name.clone()) {
                let mut copy =
                    if name.is_empty() { format!("{}.{i}", node.name) } else { format!("{name}.copy") };
                while self.find(&copy).is_some() || !names.insert(copy.clone()) {
                    copy.push('_');
                }
                let made = self.graph.add_op(OpKind::Identity, Attr::None, &copy, &[v], &[&copy])?;
                own = made.first().copied().unwrap_or(v);
            }
            self.graph.outputs.push(own);
        }
        Ok(())
    }

    pub(super) fn declare_formal(
        &mut self,
        node: &Node<'_>,
        formal: &'m ValueInfoProto,
        v: ValueId,
    ) -> Result<()> {
        if formal.r#type.is_some() {
            let (dtype, _) = tensor_type(formal)?;
            if dtype != self.dtype(v) {
                let why = format!("its body takes '{}' as {dtype}, it is {}", formal.name, self.dtype(v));
                return Err(node.arity(why));
            }
        }
        // The graph's inputs are named as the file's.
        if self.graph.inputs.contains(&v) && input_name(&self.graph, &formal.name) == formal.name {
            self.graph.rename(v, &formal.name);
        }
        self.declare("input of a body", &formal.name, Source::Value(v))
    }

    /// An input of the body that is being read.
    pub(super) fn own_input(&mut self, wanted: &str, dtype: DType, dims: &[Dim]) -> ValueId {
        let name = input_name(&self.graph, wanted);
        self.graph.add_input(&name, dtype, dims)
    }

    /// Makes inputs of all captures, in one order, for bodies of one op.
    #[allow(clippy::indexing_slicing)] // Captures are values of this graph.
    pub(super) fn agree(&self, bodies: &mut [Body]) -> Vec<ValueId> {
        let mut all: Vec<ValueId> = Vec::new();
        for v in bodies.iter().flat_map(|b| &b.captures) {
            if !all.contains(v) {
                all.push(*v);
            }
        }
        for body in bodies.iter_mut() {
            let own = body.graph.inputs.len().saturating_sub(body.captures.len());
            let captured = body.graph.inputs.split_off(own);
            for &v in &all {
                let has = body.captures.iter().position(|c| *c == v).and_then(|i| captured.get(i));
                if let Some(&input) = has {
                    body.graph.inputs.push(input);
                    continue;
                }
                // Those that are not back in the list yet count, too.
                let back = body.graph.inputs.len();
                body.graph.inputs.extend(&captured);
                let name = input_name(&body.graph, &self.graph.value_name[v]);
                body.graph.inputs.truncate(back);
                body.graph.add_input(&name, self.graph.value_dtype[v], self.graph.shape(v));
            }
        }
        all
    }

    // ---- captures ------------------------------------------------------------------------------------

    /// How many graphs lie around the present one.
    pub fn level(&self) -> usize {
        self.outer.len()
    }

    /// Makes what a node reads of the graphs around a value of this one.
    pub(super) fn capture_inputs(&mut self, proto: &'m NodeProto) -> Result<()> {
        for name in proto.input.iter().filter(|name| !name.is_empty()) {
            self.seen(name, "a node")?;
        }
        Ok(())
    }

    /// What a name means here.
    fn seen(&mut self, name: &'m str, by: &str) -> Result<ValueId> {
        let missing = || Error::MissingValue { value: name.to_string(), by: by.to_string() };
        let Some((scope, Source::Value(v))) = self.find(name) else { return Err(missing()) };
        let level = self.scopes.get(scope).map_or(0, |s| s.level);
        if level == self.outer.len() {
            return Ok(v);
        }
        let own = self.captured(level, v)?;
        self.name(name, Source::Value(own));
        Ok(own)
    }

    /// A value of the graph that `level` graphs lie around, inside of the present one.
    pub fn captured(&mut self, level: usize, mut value: ValueId) -> Result<ValueId> {
        for around in level..self.outer.len() {
            value = self.capture(around, value)?;
        }
        Ok(value)
    }

    /// As [`Reader::captured`], one graph further in.
    fn capture(&mut self, around: usize, value: ValueId) -> Result<ValueId> {
        let inner = around.saturating_add(1);
        let captures = self.outer.get(inner).map_or(&self.captures, |o| &o.captures);
        if let Some(&inside) = captures.inside.get(&value) {
            return Ok(inside);
        }
        let Some(outer) = self.outer.get(around) else { return Ok(value) };
        let g = &outer.graph;
        let (dtype, dims) = self.type_at(around, value);
        let name = g.value_name.get(value).cloned().unwrap_or_default();
        let bytes = g.const_bytes(value).cloned().zip(g.fixed_shape(value));
        let elements = g.value_elements.get(&value).cloned();
        let is_widened = outer.widened.contains(&value);
        let (graph, widened, captures) = match self.outer.get_mut(inner) {
            Some(o) => (&mut o.graph, &mut o.widened, &mut o.captures),
            None => (&mut self.graph, &mut self.widened, &mut self.captures),
        };
        let inside = match bytes {
            Some((bytes, dims)) => graph.add_const(&name, dtype, &dims, bytes)?,
            None => {
                if captures.around.len() >= CAPTURES_MAX {
                    let [got, max] = [CAPTURES_MAX.saturating_add(1), CAPTURES_MAX];
                    let [got, max] = [got, max].map(|n| u64::try_from(n).unwrap_or(u64::MAX));
                    return Err(Error::TooLarge {
                        what: "values that a body reads of the graph around it",
                        got,
                        max,
                    });
                }
                captures.around.push(value);
                graph.add_input(&input_name(graph, &name), dtype, &dims)
            }
        };
        if let Some(elements) = elements {
            graph.value_elements.insert(inside, elements);
        }
        widened.extend(Some(inside).filter(|_| is_widened));
        captures.inside.insert(value, inside);
        Ok(inside)
    }

    /// Type and shape of a value of one of the graphs around.
    #[allow(clippy::indexing_slicing)] // Values are looked up in the graph that they are of.
    pub(super) fn type_at(&self, level: usize, v: ValueId) -> (DType, Vec<Dim>) {
        let g = self.outer.get(level).map_or(&self.graph, |o| &o.graph);
        (g.value_dtype[v], g.shape(v).to_vec())
    }

    fn spend(&mut self, nodes: usize) -> Result<()> {
        let left = self.nodes_left.checked_sub(nodes.saturating_add(BODY_NODES));
        let max = u64::try_from(NODES_MAX).unwrap_or(u64::MAX);
        let what = "nodes of graphs within graphs, as often as they are read";
        self.nodes_left = left.ok_or(Error::TooLarge { what, got: max.saturating_add(1), max })?;
        Ok(())
    }
}

/// A name that no input of the graph has, like `wanted`.
fn input_name(g: &Graph, wanted: &str) -> String {
    let mut name = if wanted.is_empty() { "value".to_string() } else { wanted.to_string() };
    while g.inputs.iter().any(|&v| g.value_name.get(v) == Some(&name)) {
        name.push('_');
    }
    name
}

/// Nodes of a graph and those inside of it, and one for the graph.
pub(super) fn nodes_of(proto: &GraphProto) -> usize {
    let inner = proto.node.iter().flat_map(|n| &n.attribute).flat_map(graphs_of).map(nodes_of);
    inner.fold(proto.node.len().saturating_add(1), usize::saturating_add)
}

fn no_inputs(node: &Node<'_>, proto: &GraphProto) -> Result<()> {
    match proto.input.first() {
        Some(input) => Err(node.arity(format!("its branch takes '{}': branches take nothing", input.name))),
        None => Ok(()),
    }
}
