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

mod at_once;
mod bodies;
pub(crate) mod control;
mod nodes;
mod order;

use crate::error::{Error, Result};
use crate::external::Files;
use crate::node::Node;
use crate::proto::tensor_shape_proto::{Dimension, dimension::Value as DimValue};
use crate::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TypeProto, ValueInfoProto, type_proto,
};
use crate::scan;
use crate::tensor::{self, Constant, DIM_MAX, RANK_MAX};
use crate::{composite, functions};
use bodies::{Captures, Outer};
use bytes::Bytes;
use lacuna_ir::tensor::TENSOR_ELEMENTS_MAX;
use lacuna_ir::{DType, Dim, Graph, ValueId};
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;

/// Largest file that is read.
pub const FILE_BYTES_MAX: u64 = 8 << 30;
/// Versions of the default operator set that are read. A form of an op that a row does not know has other attributes or
/// operands, which is an error.
pub const OPSET_MIN: i64 = 1;
pub const OPSET_MAX: i64 = 28;
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

/// What names mean in one graph of the file. It may be part of the graph around it, as the branch of a choice that is
/// known.
struct Scope<'m> {
    names: HashMap<&'m str, Source>,
    /// How many graphs lie around the one that these values are of.
    level: usize,
}

/// The graph as far as it is read, and what names mean.
pub struct Reader<'m> {
    pub graph: Graph,
    /// The innermost last. Graphs inside see the names of those around them.
    scopes: Vec<Scope<'m>>,
    files: Files,
    opset: i64,
    /// Inputs and constants of integer types that the graph holds in wider ones.
    widened: HashSet<ValueId>,
    captures: Captures,
    /// The graphs around this one, which is a body, the outermost first.
    outer: Vec<Outer>,
    /// Nodes of bodies that may be read yet: some are read more than once.
    nodes_left: usize,
}

fn read_graph(proto: &GraphProto, opset: i64, files: Files) -> Result<Graph> {
    let mut r = Reader {
        graph: Graph::new(&proto.name),
        scopes: vec![Scope { names: HashMap::new(), level: 0 }],
        files,
        opset,
        widened: HashSet::new(),
        captures: Captures::default(),
        outer: Vec::new(),
        nodes_left: bodies::NODES_MAX,
    };
    r.read_initialisers(proto)?;
    for input in &proto.input {
        r.declare_input(input)?;
    }
    r.read_all_nodes(proto)?;
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

    fn read_initialisers(&mut self, proto: &'m GraphProto) -> Result<()> {
        for sparse in &proto.sparse_initializer {
            let name = sparse.values.as_ref().map_or("", |v| v.name.as_str());
            let constant = tensor::read_sparse(sparse, name, &mut self.files)?;
            let value = self.graph.add_const(name, constant.dtype, &constant.dims, constant.bytes)?;
            self.declare("initialiser", name, Source::Value(value))?;
        }
        for tensor in &proto.initializer {
            let constant = tensor::read(tensor, &tensor.name, &mut self.files)?;
            let value = self.graph.add_const(&tensor.name, constant.dtype, &constant.dims, constant.bytes)?;
            self.widened.extend(Some(value).filter(|_| tensor::is_widened(tensor.data_type)));
            self.declare("initialiser", &tensor.name, Source::Value(value))?;
        }
        Ok(())
    }

    fn read_all_nodes(&mut self, proto: &'m GraphProto) -> Result<()> {
        let mut nodes = Vec::with_capacity(proto.node.len());
        for (index, node) in proto.node.iter().enumerate() {
            nodes.push(Node::new(node, index, self.opset));
            self.declare_outputs(node, index)?;
        }
        self.read_nodes(&nodes)
    }

    fn declare(&mut self, what: &'static str, name: &'m str, source: Source) -> Result<()> {
        if name.len() > NAME_BYTES_MAX {
            let got = u64::try_from(name.len()).unwrap_or(u64::MAX);
            return Err(Error::TooLarge { what: "bytes of a name", got, max: 4096 });
        }
        if name.is_empty() {
            let what = format!("{what} without a name; give it one");
            return Err(Error::UnsupportedFeature { name: String::new(), what });
        }
        match self.scopes.last_mut().and_then(|s| s.names.insert(name, source)) {
            None => Ok(()),
            Some(_) => Err(Error::DuplicateName { what, name: name.to_string() }),
        }
    }

    /// An initialiser that is listed as an input too (IR 3 asked for that) is a constant.
    fn declare_input(&mut self, input: &'m ValueInfoProto) -> Result<()> {
        let (dtype, shape) = tensor_type(input)?;
        if let Some((_, Source::Value(value))) = self.find(&input.name)
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

    // ---- names -------------------------------------------------------------------------------------

    /// What a name means in the innermost scope that has it, and which that is.
    fn find(&self, name: &str) -> Option<(usize, Source)> {
        let scopes = self.scopes.iter().enumerate().rev();
        scopes.filter_map(|(i, scope)| Some((i, *scope.names.get(name)?))).next()
    }

    fn name(&mut self, name: &'m str, source: Source) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.names.insert(name, source);
        }
    }

    fn forget(&mut self, name: &str) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.names.remove(name);
        }
    }

    /// A name that nothing in the file has.
    fn unused_name(&self, wanted: &str) -> String {
        let mut name = wanted.to_string();
        while self.find(&name).is_some() {
            name.push('_');
        }
        name
    }

    // ---- operands, for the rows of the op table --------------------------------------------------------

    /// A value of this graph; what a body reads of those around it is captured already.
    fn value(&self, name: &str, by: &str) -> Result<ValueId> {
        match self.find(name) {
            Some((_, Source::Value(value))) => Ok(value),
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
