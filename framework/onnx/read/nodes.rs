//! Nodes become ops: each by its row of [`onnx_ops`].

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::order::reads;
use super::{Reader, Source, is_default_domain};
use crate::composite::MICROSOFT;
use crate::error::{Error, Result};
use crate::node::Node;
use crate::ops::{MICROSOFT_OPS, OnnxOp, Read, onnx_ops, params::read_params};
use crate::proto::TensorProto;
use crate::tensor::{self, Constant};
use lacuna_ir::params::{Params, params_of};
use lacuna_ir::{Attr, Id, OpKind, ValueId};
use std::collections::HashSet;

/// The most unsupported nodes of a file that an error names.
const LACKING_MAX: usize = 1000;

impl<'m> Reader<'m> {
    /// All nodes, in order. What is not supported does not stop this: the error names every such node, so that one look
    /// at a file says all that it lacks. Nodes that read what an unsupported one makes are looked up by name only.
    pub(super) fn read_nodes(&mut self, nodes: &[Node<'m>]) -> Result<()> {
        let mut lacking = Vec::new();
        let mut lost: HashSet<&str> = HashSet::new();
        for index in self.topological_order(nodes)? {
            let Some(node) = nodes.get(index) else { continue };
            if lacking.len() >= LACKING_MAX {
                break;
            }
            let read = match reads(node.proto).iter().any(|input| lost.contains(input)) {
                true => self.row_of(node).map(|_| false),
                false => self.read_node(node).map(|()| true),
            };
            match read {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error @ (Error::Unsupported { .. } | Error::UnsupportedDType { .. })) => {
                    lacking.push(error)
                }
                Err(Error::UnsupportedNodes { nodes }) => lacking.extend(nodes),
                // What is wrong with the file comes after what is missing here.
                Err(error) if lacking.is_empty() => return Err(error),
                Err(_) => {}
            }
            lost.extend(node.proto.output.iter().map(String::as_str).filter(|o| !o.is_empty()));
        }
        match (lacking.pop(), lacking.is_empty()) {
            (None, _) => Ok(()),
            (Some(only), true) => Err(only),
            (Some(last), false) => {
                lacking.push(last);
                Err(Error::UnsupportedNodes { nodes: lacking })
            }
        }
    }

    /// The row of the op table for a node. `None`: a constant, which needs none.
    fn row_of(&self, node: &Node<'_>) -> Result<Option<&'static OnnxOp>> {
        if node.proto.domain == MICROSOFT
            && let Some(row) = MICROSOFT_OPS.iter().find(|row| row.name == node.proto.op_type)
        {
            return Ok(Some(row));
        }
        if !is_default_domain(&node.proto.domain) {
            return Err(node.unsupported("; only the default domain is read: export without custom ops"));
        }
        if node.proto.op_type == "Constant" {
            return Ok(None);
        }
        let row = onnx_ops().find(|row| row.name == node.proto.op_type && !matches!(row.read, Read::Never));
        row.map(Some).ok_or_else(|| node.unsupported(" yet"))
    }

    fn read_node(&mut self, node: &Node<'m>) -> Result<()> {
        let proto = node.proto;
        let Some(row) = self.row_of(node)? else { return self.read_constant_node(node) };
        let numbers = match row.read {
            Read::Params => params_of(row.kind),
            _ => &[],
        };
        let known: Vec<&str> = row.attrs.iter().copied().chain(numbers.iter().map(|p| p.name)).collect();
        node.check_attributes(&known)?;
        if proto.output.iter().all(String::is_empty) {
            return Err(node.arity("it has no output with a name".to_string()));
        }
        self.capture_inputs(proto)?;
        let before = self.graph.value_name.len();
        let values = match row.read {
            Read::Op(read) => {
                let (attr, inputs) = read(self, node)?;
                self.add(row, node, attr, &inputs)?
            }
            Read::Params => {
                let attr = match numbers {
                    [] => Attr::None,
                    _ => Attr::Params(read_params(node, row.kind)?),
                };
                self.add(row, node, attr, &self.inputs(node)?)?
            }
            Read::Never => return Err(node.unsupported(" yet")),
            Read::Ops(read) => {
                let values = read(self, node)?;
                self.name_results(node, values, before)?
            }
        };
        for (i, output) in proto.output.iter().enumerate().filter(|(_, o)| !o.is_empty()) {
            match values.get(i) {
                Some(&value) => self.name(output, Source::Value(value)),
                None if row.spare_outputs => self.forget(output),
                None => return Err(node.unsupported(&format!(" with output number {i}, here '{output}'"))),
            }
        }
        Ok(())
    }

    /// Adds the op that a node is read as: its results are named as the node's outputs are.
    fn add(&mut self, row: &OnnxOp, node: &Node<'m>, attr: Attr, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let has =
            lacuna_ir::shape::infer(&self.graph, row.kind, &attr, inputs).map_or(1, |facts| facts.len());
        let listed = node.proto.output.iter().rposition(|o| !o.is_empty()).map_or(1, |i| i.saturating_add(1));
        let mut names = Vec::new();
        for output in node.proto.output.iter().take(listed.min(has)) {
            let unnamed = format!("{}.{}", node.name, names.len());
            names.push(if output.is_empty() { self.unused_name(&unnamed) } else { output.clone() });
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let made = self.graph.add_op(row.kind, attr, &node.name, inputs, &names)?;
        Ok(self.settled(row.kind, &attr, inputs, made))
    }

    /// Gives what a node was read as the names of its outputs. A value that was there before is copied.
    fn name_results(&mut self, node: &Node<'m>, values: Vec<ValueId>, before: usize) -> Result<Vec<ValueId>> {
        let mut named: Vec<ValueId> = Vec::with_capacity(values.len());
        for (value, output) in values.into_iter().zip(&node.proto.output) {
            let fresh = value.index() >= before && !self.graph.inputs.contains(&value);
            let own = fresh && !named.contains(&value);
            if output.is_empty() {
                named.push(value);
            } else if own {
                self.graph.rename(value, output);
                named.push(value);
            } else {
                let copy = OpKind::Identity;
                named.extend(self.graph.add_op(copy, Attr::None, &node.name, &[value], &[output])?);
            }
        }
        Ok(named)
    }

    /// Adds one of the ops that a node is read as, with one result.
    pub fn op(&mut self, node: &Node<'_>, kind: OpKind, attr: Attr, inputs: &[ValueId]) -> Result<ValueId> {
        let name = self.unused_name(&format!("{}.{}", node.name, kind.name()));
        let made = self.graph.add_op(kind, attr, &node.name, inputs, &[&name])?;
        let values = self.settled(kind, &attr, inputs, made);
        values.first().copied().ok_or_else(|| node.arity("it has no result".to_string()))
    }

    /// As [`Reader::op`], with as many results as the node has outputs.
    pub fn results(
        &mut self,
        node: &Node<'_>,
        kind: OpKind,
        attr: Attr,
        inputs: &[ValueId],
    ) -> Result<Vec<ValueId>> {
        let count = node.proto.output.iter().rposition(|o| !o.is_empty()).map_or(1, |i| i.saturating_add(1));
        self.some_results(node, kind, attr, inputs, count)
    }

    /// As [`Reader::op`], with so many results.
    pub fn some_results(
        &mut self,
        node: &Node<'_>,
        kind: OpKind,
        attr: Attr,
        inputs: &[ValueId],
        count: usize,
    ) -> Result<Vec<ValueId>> {
        let name = |i: usize| self.unused_name(&format!("{}.{}.{i}", node.name, kind.name()));
        let names: Vec<String> = (0..count).map(name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let made = self.graph.add_op(kind, attr, &node.name, inputs, &names)?;
        Ok(self.settled(kind, &attr, inputs, made))
    }

    /// A tensor that stands in an attribute.
    pub fn tensor(&mut self, t: &TensorProto, name: &str) -> Result<Constant> {
        tensor::read(t, name, &mut self.files)
    }

    /// A list that is an operand in the graph and an attribute in the file.
    pub fn list(&mut self, node: &Node<'_>, name: &str, values: &[i64]) -> Result<ValueId> {
        self.add_constant(&format!("{}.{name}", node.name), Constant::list_i64(values))
    }

    /// The dimensions of a value as an operand: a constant where they are numbers.
    pub fn shape_of(&mut self, node: &Node<'_>, x: ValueId) -> Result<ValueId> {
        let dims = self.graph.shape(x).iter().map(|d| d.fixed().and_then(|n| i64::try_from(n).ok()));
        match dims.collect::<Option<Vec<i64>>>() {
            Some(dims) => self.list(node, "shape", &dims),
            None => self.op(node, OpKind::Shape, Attr::Params(Params::usual(OpKind::Shape)), &[x]),
        }
    }

    fn read_constant_node(&mut self, node: &Node<'m>) -> Result<()> {
        node.check_attributes(&[
            "value",
            "sparse_value",
            "value_float",
            "value_floats",
            "value_int",
            "value_ints",
        ])?;
        let [output] = node.proto.output.as_slice() else {
            return Err(node.arity("it must have one output".to_string()));
        };
        let mut found: Vec<Constant> = Vec::new();
        if let Some(t) = node.tensor("value")? {
            found.push(tensor::read(t, output, &mut self.files)?);
        }
        if let Some(t) = node.sparse_tensor("sparse_value")? {
            found.push(tensor::read_sparse(t, output, &mut self.files)?);
        }
        if let Some(v) = node.float("value_float")? {
            found.push(Constant::scalar_f32(v));
        }
        found.extend(node.floats("value_floats")?.map(Constant::list_f32));
        if let Some(v) = node.int("value_int")? {
            found.push(Constant { dims: vec![], ..Constant::list_i64(&[v]) });
        }
        found.extend(node.ints("value_ints")?.map(Constant::list_i64));
        let Some(constant) = found.pop().filter(|_| found.is_empty()) else {
            return Err(node.arity("it must have exactly one value".to_string()));
        };
        let value = self.graph.add_const(output, constant.dtype, &constant.dims, constant.bytes)?;
        self.name(output, Source::Value(value));
        Ok(())
    }
}
