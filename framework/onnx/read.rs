//! ONNX file to [`Graph`].
//!
//! The bytes are not trusted. They are scanned before they are decoded (`scan.rs`), every size is checked in
//! wide arithmetic before it is used, names are resolved through one table, and an op that is not in
//! [`onnx_ops`](crate::ops::onnx_ops) is an error that names it. Weights are not copied: a constant is a
//! range of the file's buffer.
//!
//! Order of work: constants and inputs are declared, nodes are ordered, then each node's row of `FAMILIES`
//! turns it into an op. Bounds and axes that become attributes stay behind as constants that nothing reads.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use crate::error::{Error, Result};
use crate::external::Files;
use crate::node::Node;
use crate::ops::{OnnxOp, Read, onnx_ops, params::read_params};
use crate::proto::tensor_shape_proto::{Dimension, dimension::Value as DimValue};
use crate::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto, ValueInfoProto, type_proto,
};
use crate::scan;
use crate::tensor::{self, Constant, DIM_MAX, RANK_MAX};
use crate::{composite, functions};
use bytes::Bytes;
use lacuna_ir::params::{Params, params_of};
use lacuna_ir::shape::VALUE_BYTES_MAX;
use lacuna_ir::tensor::TENSOR_ELEMENTS_MAX;
use lacuna_ir::{Attr, DType, Dim, Graph, Id, OpKind, Tensor, ValueId, element_count};
use prost::Message;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::fs::File;
use std::path::Path;

/// Largest file that is read.
pub const FILE_BYTES_MAX: u64 = 8 << 30;
/// Versions of the default operator set that are read. A form of an op that a row does not know has other attributes or
/// operands, which is an error.
pub const OPSET_MIN: i64 = 1;
pub const OPSET_MAX: i64 = 28;
/// The most unsupported nodes of a file that an error names.
const LACKING_MAX: usize = 1000;
/// Ops of shape arithmetic: done at once where all they read is known and small. What quantises weights is not among
/// them, nor what takes long.
const AT_ONCE: &[OpKind] = &[
    OpKind::Shape,
    OpKind::Add,
    OpKind::Sub,
    OpKind::Mul,
    OpKind::Div,
    OpKind::Mod,
    OpKind::Neg,
    OpKind::Floor,
    OpKind::Ceil,
    OpKind::Min,
    OpKind::Max,
    OpKind::Equal,
    OpKind::Less,
    OpKind::Greater,
    OpKind::And,
    OpKind::Or,
    OpKind::Not,
    OpKind::Where,
    OpKind::Cast,
    OpKind::Concat,
    OpKind::Slice,
    OpKind::Gather,
    OpKind::Squeeze,
    OpKind::Unsqueeze,
    OpKind::Reshape,
    OpKind::Expand,
    OpKind::Range,
    OpKind::ReduceProd,
    OpKind::ScatterElements,
    OpKind::ScatterND,
];
const NAME_BYTES_MAX: usize = 4096;
/// The most symbols among the dimensions of inputs.
const SYMBOLS_MAX: usize = 256;

/// Reads a model from a file, which is mapped into memory: weights stay there and are paged in when used. So are files
/// beside it in which weights lie.
pub fn load(path: impl AsRef<Path>) -> Result<Graph> {
    let path = path.as_ref();
    map(path).and_then(|file| read_model(file, Files::beside(path))).map_err(|e| match e {
        e @ Error::Io { .. } => e,
        e => e.in_file(path),
    })
}

/// A file's bytes, mapped.
#[allow(unsafe_code)]
pub(crate) fn map(path: &Path) -> Result<Bytes> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    // Asked before opening: opening a pipe would wait for a writer.
    let meta = std::fs::metadata(path).map_err(io)?;
    if !meta.is_file() {
        return Err(Error::NotAFile);
    }
    let file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(Error::TooLarge { what: "size of the file, bytes", got: bytes, max: FILE_BYTES_MAX });
    }
    if bytes == 0 {
        return Err(Error::NotOnnx { why: "the file is empty" });
    }
    // SAFETY: the map is read-only and private, and lives as long as the `Bytes` that own it. That nobody
    // shortens or rewrites the file meanwhile is the caller's part; this crate's own `save` never does: it
    // writes a new file and renames it.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
    Ok(Bytes::from_owner(map))
}

/// Reads a model from bytes. Constants of the graph are ranges of `file`; they cannot lie in other files.
pub fn parse(file: Bytes) -> Result<Graph> {
    read_model(file, Files::default())
}

fn read_model(file: Bytes, files: Files) -> Result<Graph> {
    scan::check(&file)?;
    let mut model = ModelProto::decode(file)?;
    if model.ir_version < 3 {
        return Err(Error::NotOnnx {
            why: "it has no IR version, or one below 3 (before initialisers were fixed)",
        });
    }
    let opset = opset(&model)?;
    functions::inline(&mut model)?;
    model.graph.as_mut().map_or(Ok(()), composite::write_out)?;
    let proto = model.graph.as_ref().ok_or(Error::NotOnnx { why: "it holds no graph" })?;
    let mut graph = read_graph(proto, opset, files)?;
    let mut keys = HashSet::with_capacity(model.metadata_props.len());
    for entry in &model.metadata_props {
        if !keys.insert(entry.key.as_str()) {
            return Err(Error::DuplicateName { what: "metadata", name: entry.key.clone() });
        }
        graph.metadata.push((entry.key.clone(), entry.value.clone()));
    }
    Ok(graph)
}

pub fn is_default_domain(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

/// The version of the default operator set among these, if there is just one.
pub fn default_version(imports: &[OperatorSetIdProto]) -> Option<i64> {
    let mut versions = imports.iter().filter(|o| is_default_domain(&o.domain)).map(|o| o.version);
    versions.next().filter(|_| versions.next().is_none())
}

/// The version of the default operator set that the model was written for. Other domains matter where an op is of one.
fn opset(model: &ModelProto) -> Result<i64> {
    match default_version(&model.opset_import) {
        Some(version) if (OPSET_MIN..=OPSET_MAX).contains(&version) => Ok(version),
        Some(version) => Err(Error::Opset { domain: String::new(), version, min: OPSET_MIN, max: OPSET_MAX }),
        None if model.opset_import.iter().any(|o| is_default_domain(&o.domain)) => {
            Err(Error::DuplicateName { what: "operator set", name: "ai.onnx".to_string() })
        }
        // Ops of other domains only: they are refused by name.
        None if !model.opset_import.is_empty() => Ok(OPSET_MAX),
        None => Err(Error::NotOnnx { why: "it names no version of the default operator set" }),
    }
}

/// What a name stands for.
#[derive(Clone, Copy)]
enum Source {
    Value(ValueId),
    /// Will be made by that node.
    Node(usize),
}

/// The graph as far as it is read, and what names mean.
pub struct Reader<'m> {
    pub graph: Graph,
    names: HashMap<&'m str, Source>,
    files: Files,
    /// Inputs and constants of integer types that the graph holds in wider ones.
    widened: HashSet<ValueId>,
}

fn read_graph(proto: &GraphProto, opset: i64, files: Files) -> Result<Graph> {
    let mut r =
        Reader { graph: Graph::new(&proto.name), names: HashMap::new(), files, widened: HashSet::new() };
    for sparse in &proto.sparse_initializer {
        let name = sparse.values.as_ref().map_or("", |v| v.name.as_str());
        let constant = tensor::read_sparse(sparse, name, &mut r.files)?;
        let value = r.graph.add_const(name, constant.dtype, &constant.dims, constant.bytes)?;
        r.declare("initialiser", name, Source::Value(value))?;
    }
    for tensor in &proto.initializer {
        let constant = tensor::read(tensor, &tensor.name, &mut r.files)?;
        let value = r.graph.add_const(&tensor.name, constant.dtype, &constant.dims, constant.bytes)?;
        r.widened.extend(Some(value).filter(|_| tensor::is_widened(tensor.data_type)));
        r.declare("initialiser", &tensor.name, Source::Value(value))?;
    }
    for input in &proto.input {
        r.declare_input(input)?;
    }
    let mut nodes = Vec::with_capacity(proto.node.len());
    for (index, node) in proto.node.iter().enumerate() {
        nodes.push(Node::new(node, index, opset));
        r.declare_outputs(node, index)?;
    }
    r.read_nodes(&nodes)?;
    if proto.output.is_empty() {
        return Err(Error::NotOnnx { why: "its graph has no outputs" });
    }
    let mut outputs = HashSet::with_capacity(proto.output.len());
    for output in &proto.output {
        if !outputs.insert(output.name.as_str()) {
            return Err(Error::DuplicateName { what: "output", name: output.name.clone() });
        }
        r.read_output(output)?;
    }
    Ok(r.graph)
}

impl<'m> Reader<'m> {
    // ---- declarations ------------------------------------------------------------------------------

    fn declare(&mut self, what: &'static str, name: &'m str, source: Source) -> Result<()> {
        if name.len() > NAME_BYTES_MAX {
            let got = u64::try_from(name.len()).unwrap_or(u64::MAX);
            return Err(Error::TooLarge { what: "bytes of a name", got, max: 4096 });
        }
        if name.is_empty() {
            let what = format!("{what} without a name; give it one");
            return Err(Error::UnsupportedFeature { name: String::new(), what });
        }
        match self.names.insert(name, source) {
            None => Ok(()),
            Some(_) => Err(Error::DuplicateName { what, name: name.to_string() }),
        }
    }

    /// An initialiser that is listed as an input too (IR 3 asked for that) is a constant.
    fn declare_input(&mut self, input: &'m ValueInfoProto) -> Result<()> {
        let (dtype, shape) = tensor_type(input)?;
        if let Some(&Source::Value(value)) = self.names.get(input.name.as_str())
            && self.graph.const_bytes(value).is_some()
        {
            return Ok(());
        }
        let shape = shape.ok_or_else(|| Error::UnsupportedFeature {
            name: input.name.clone(),
            what: "an input without a shape; give it one, with a name for each dynamic dimension".to_string(),
        })?;
        let mut dims = Vec::with_capacity(shape.dim.len());
        let mut elements: u64 = 1;
        for (axis, dim) in shape.dim.iter().enumerate() {
            let dim = match &dim.value {
                // Some exporters write -1 or "?" for a dimension of which nothing is known.
                Some(DimValue::DimValue(n)) if *n != -1 => Dim::Fixed(input_dim(&input.name, axis, *n)?),
                Some(DimValue::DimParam(symbol)) if !matches!(symbol.as_str(), "" | "?") => {
                    self.symbol(symbol)?
                }
                _ => {
                    let name = self.unused_symbol(&format!("{}.{axis}", input.name));
                    self.symbol(&name)?
                }
            };
            elements = dim.fixed().map_or(Some(elements), |n| elements.checked_mul(n)).unwrap_or(u64::MAX);
            dims.push(dim);
        }
        if elements > TENSOR_ELEMENTS_MAX {
            let dims = format!("{dims:?}");
            return Err(Error::Elements { name: input.name.clone(), dims, max: TENSOR_ELEMENTS_MAX });
        }
        let value = self.graph.add_input(&input.name, dtype, &dims);
        self.widened.extend(Some(value).filter(|_| tensor::is_widened(element_code(input))));
        self.declare("input", &input.name, Source::Value(value))
    }

    fn symbol(&mut self, name: &str) -> Result<Dim> {
        if self.graph.symbols.len() >= SYMBOLS_MAX {
            return Err(Error::TooLarge { what: "symbolic dimensions", got: 257, max: 256 });
        }
        Ok(Dim::Symbol(self.graph.symbol(name)))
    }

    fn unused_symbol(&self, wanted: &str) -> String {
        self.graph.symbols.unused(wanted)
    }

    fn declare_outputs(&mut self, node: &'m NodeProto, index: usize) -> Result<()> {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            self.declare("value", output, Source::Node(index))?;
        }
        Ok(())
    }

    // ---- order -------------------------------------------------------------------------------------

    /// Kahn's algorithm (Comm. ACM 5(11), 1962); among nodes that are ready the first of the file comes
    /// first, so a file that is in order keeps its order.
    fn topological_order(&self, nodes: &[Node<'_>]) -> Result<Vec<usize>> {
        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
        let mut waits: Vec<usize> = vec![0; nodes.len()];
        for (index, (node, waits)) in nodes.iter().zip(&mut waits).enumerate() {
            for input in node.proto.input.iter().filter(|i| !i.is_empty()) {
                let missing =
                    || Error::MissingValue { value: input.clone(), by: format!("node '{}'", node.name) };
                if let Source::Node(maker) = self.names.get(input.as_str()).ok_or_else(missing)? {
                    if let Some(readers) = readers.get_mut(*maker) {
                        readers.push(index);
                    }
                    *waits = waits.saturating_add(1);
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

    // ---- nodes -------------------------------------------------------------------------------------

    /// All nodes, in order. What is not supported does not stop this: the error names every such node, so that one look
    /// at a file says all that it lacks. Nodes that read what an unsupported one makes are looked up by name only.
    fn read_nodes(&mut self, nodes: &[Node<'m>]) -> Result<()> {
        let mut lacking = Vec::new();
        let mut lost: HashSet<&str> = HashSet::new();
        for index in self.topological_order(nodes)? {
            let Some(node) = nodes.get(index) else { continue };
            if lacking.len() >= LACKING_MAX {
                break;
            }
            let read = match node.proto.input.iter().any(|input| lost.contains(input.as_str())) {
                true => self.row_of(node).map(|_| false),
                false => self.read_node(node).map(|()| true),
            };
            match read {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error @ (Error::Unsupported { .. } | Error::UnsupportedDType { .. })) => {
                    lacking.push(error)
                }
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
                Some(&value) => drop(self.names.insert(output, Source::Value(value))),
                None if row.spare_outputs => drop(self.names.remove(output.as_str())),
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
            let own = value.index() >= before && !named.contains(&value);
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

    /// What is computed of small constants, or is the shape of a value, is a constant at once: rules then see it. The op
    /// was the last of the order.
    fn settled(&mut self, kind: OpKind, attr: &Attr, inputs: &[ValueId], made: Vec<ValueId>) -> Vec<ValueId> {
        match self.evaluated(kind, attr, inputs, &made) {
            Some(constants) => {
                self.graph.order.pop();
                constants
            }
            None => made,
        }
    }

    fn evaluated(
        &mut self,
        kind: OpKind,
        attr: &Attr,
        inputs: &[ValueId],
        made: &[ValueId],
    ) -> Option<Vec<ValueId>> {
        if !AT_ONCE.contains(&kind) {
            return None;
        }
        let small = |g: &Graph, v: &ValueId| {
            let dims = g.fixed_shape(*v)?;
            let bytes = element_count(&dims)?.checked_mul(8)?;
            (bytes <= VALUE_BYTES_MAX).then_some(())
        };
        for v in made {
            small(&self.graph, v)?;
        }
        let mut operands: Vec<Option<Tensor>> = Vec::with_capacity(inputs.len());
        for v in inputs {
            operands.push(match v.is_none() {
                true => None,
                // A shape does not depend on the elements.
                false if kind == OpKind::Shape => {
                    let dims = self.graph.fixed_shape(*v)?.iter().map(|d| i64::try_from(*d).ok()).collect();
                    return self.constant_shape(attr, dims, made);
                }
                false => {
                    self.graph.const_bytes(*v).filter(|b| b.len() <= VALUE_BYTES_MAX)?;
                    Some(self.graph.const_tensor(*v)?)
                }
            });
        }
        let operands: Vec<Option<&Tensor>> = operands.iter().map(Option::as_ref).collect();
        let results = (kind.row().eval)(attr, &operands).ok()?;
        Some(self.constants(made, &results))
    }

    fn constant_shape(
        &mut self,
        attr: &Attr,
        dims: Option<Vec<i64>>,
        made: &[ValueId],
    ) -> Option<Vec<ValueId>> {
        let dims = dims?;
        let (start, end) = lacuna_ir::shape::shape_range(attr, dims.len()).ok()?;
        let part = dims.get(start..end)?.to_vec();
        let tensor = Tensor::from_i64(&[part.len()], part);
        Some(self.constants(made, &[tensor]))
    }

    fn constants(&mut self, made: &[ValueId], results: &[Tensor]) -> Vec<ValueId> {
        let of = |(v, t): (&ValueId, &Tensor)| {
            let name = self.graph.value_name.get(*v).cloned().unwrap_or_default();
            self.graph.add_tensor(&name, t)
        };
        made.iter().zip(results).map(of).collect()
    }

    /// A name that nothing in the file has.
    fn unused_name(&self, wanted: &str) -> String {
        let mut name = wanted.to_string();
        while self.names.contains_key(name.as_str()) {
            name.push('_');
        }
        name
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
        if let Some(source) = self.names.get_mut(output.as_str()) {
            *source = Source::Value(value);
        }
        Ok(())
    }

    fn read_output(&mut self, output: &ValueInfoProto) -> Result<()> {
        let name = output.name.as_str();
        let value = self.value(name, "the graph's outputs")?;
        self.graph.outputs.push(value);
        if output.r#type.is_none() {
            return Ok(());
        }
        let (dtype, shape) = tensor_type(output)?;
        let computed = self.graph.shape(value);
        let agree = |declared: &Dimension, computed: &Dim| match (&declared.value, computed.fixed()) {
            (Some(DimValue::DimValue(n)), Some(computed)) => *n == -1 || u64::try_from(*n) == Ok(computed),
            _ => true,
        };
        // A shape with names is what an exporter guessed: where it has another rank it is passed over.
        let guessed = |d: &Dimension| matches!(d.value, Some(DimValue::DimParam(_)));
        let agrees = shape.is_none_or(|shape| match shape.dim.len() == computed.len() {
            true => shape.dim.iter().zip(computed).all(|(d, c)| agree(d, c)),
            false => shape.dim.iter().any(guessed),
        });
        if dtype == self.dtype(value) && agrees {
            return Ok(());
        }
        let declared = shape.map_or_else(String::new, |s| list(s.dim.iter().map(show_declared)));
        let computed = list(computed.iter().map(|dim| match dim {
            Dim::Fixed(n) => n.to_string(),
            Dim::Symbol(s) => self.graph.symbols.get(*s).cloned().unwrap_or_default(),
            Dim::Unknown => "?".to_string(),
        }));
        Err(Error::Declared {
            name: name.to_string(),
            declared: format!("{dtype}{declared}"),
            computed: format!("{}{computed}", self.dtype(value)),
        })
    }

    // ---- operands, for the rows of the op table --------------------------------------------------------

    fn value(&self, name: &str, by: &str) -> Result<ValueId> {
        match self.names.get(name) {
            Some(Source::Value(value)) => Ok(*value),
            _ => Err(Error::MissingValue { value: name.to_string(), by: by.to_string() }),
        }
    }

    /// Element type of a value of this graph.
    #[allow(clippy::indexing_slicing)] // Every id that a reader hands out is a row of its own graph.
    pub fn dtype(&self, value: ValueId) -> DType {
        self.graph.value_dtype[value]
    }

    /// Whether a value is of an integer type that the graph holds in a wider one.
    pub fn is_widened(&self, value: ValueId) -> bool {
        self.widened.contains(&value)
    }

    /// Input `i` as a value of the graph, if it is there.
    pub fn input(&self, node: &Node<'_>, i: usize) -> Result<Option<ValueId>> {
        match node.proto.input.get(i).filter(|name| !name.is_empty()) {
            Some(name) => self.value(name, &format!("node '{}'", node.name)).map(Some),
            None => Ok(None),
        }
    }

    pub fn required(&self, node: &Node<'_>, i: usize) -> Result<ValueId> {
        self.input(node, i)?.ok_or_else(|| node.arity(format!("input {i} is absent")))
    }

    /// All inputs. Absent ones at the end are dropped, others are `ValueId::NONE`.
    pub fn inputs(&self, node: &Node<'_>) -> Result<Vec<ValueId>> {
        let given =
            node.proto.input.iter().rposition(|name| !name.is_empty()).map_or(0, |i| i.saturating_add(1));
        (0..given).map(|i| Ok(self.input(node, i)?.unwrap_or(ValueId::NONE))).collect()
    }

    /// Input `i`, if it is there, which must be a constant: data that the op's attributes are made of.
    pub fn constant(&self, node: &Node<'_>, i: usize) -> Result<Option<ValueId>> {
        match self.input(node, i)? {
            Some(value) if self.graph.const_bytes(value).is_none() => {
                Err(node.unsupported(&format!(" where input {i} is computed: it must be a constant")))
            }
            value => Ok(value),
        }
    }

    /// Adds a constant that the file leaves out, named after `wanted` and not as anything in the file.
    pub fn add_constant(&mut self, wanted: &str, constant: Constant) -> Result<ValueId> {
        let name = self.unused_name(wanted);
        Ok(self.graph.add_const(&name, constant.dtype, &constant.dims, constant.bytes)?)
    }
}

fn show_declared(dim: &Dimension) -> String {
    match &dim.value {
        Some(DimValue::DimValue(n)) => n.to_string(),
        Some(DimValue::DimParam(name)) => name.clone(),
        None => "?".to_string(),
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

fn input_dim(name: &str, axis: usize, dim: i64) -> Result<u64> {
    let why = match dim {
        ..0 => "a dimension cannot be negative; a dynamic one has a name (dim_param)",
        0..=DIM_MAX => return Ok(dim.unsigned_abs()),
        _ => "a dimension cannot be larger than 2^31",
    };
    Err(Error::Dimension { name: name.to_string(), axis, dim, why })
}

fn element_code(info: &ValueInfoProto) -> i32 {
    match info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(type_proto::Value::TensorType(t)) => t.elem_type,
        _ => 0,
    }
}

/// Element type and shape that the file gives to an input or output.
fn tensor_type(info: &ValueInfoProto) -> Result<(DType, Option<&crate::proto::TensorShapeProto>)> {
    let Some(TypeProto { value: Some(type_proto::Value::TensorType(t)), .. }) = &info.r#type else {
        let what =
            "not a tensor (a sequence, map or optional, or no type at all); only tensors are supported";
        return Err(Error::UnsupportedFeature { name: info.name.clone(), what: what.to_string() });
    };
    if let Some(shape) = t.shape.as_ref().filter(|s| s.dim.len() > RANK_MAX) {
        return Err(tensor::rank(&info.name, shape.dim.len()));
    }
    Ok((tensor::graph_dtype(t.elem_type, &info.name)?, t.shape.as_ref()))
}
