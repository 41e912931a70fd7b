//! [`Graph`] to ONNX file: operator set 17, IR version 8 (21 and 10 for graphs with ops that came later), initialisers
//! as raw data.
//!
//! Names are kept, symbolic dimensions become `dim_param`, every value carries its type and
//! shape. Only ops of the model level have a meaning in ONNX: a graph is exported before it is lowered.

use crate::error::{Error, Result};
use crate::ops::row_of;
use crate::proto::attribute_proto::AttributeType;
use crate::proto::tensor_shape_proto::{Dimension, dimension};
use crate::proto::{self, AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use crate::tensor::{self, Constant};
use lacuna_ir::op::Level;
use lacuna_ir::shape::RANK_MAX;
use lacuna_ir::{BodyId, DType, Def, Dim, Graph, IdVec, OpId, OpKind, ValueId};
use prost::Message;
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

pub const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;
/// What a graph is written in that has ops, or forms of them, which came later.
pub const OPSET_NEWER: i64 = 21;
const IR_VERSION_NEWER: i64 = 10;
/// Protobuf's own limit for one message.
pub const WRITE_BYTES_MAX: usize = (1 << 31) - 1;

#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Free text for people, shown by viewers: the model's `doc_string`.
    pub doc: String,
}

/// Writes `g` to `path`. The file is whole or not there: it is written beside and renamed.
pub fn save(g: &Graph, path: impl AsRef<Path>, options: &WriteOptions) -> Result<()> {
    let path = path.as_ref();
    let bytes = to_bytes(g, options)?;
    let temporary = temporary_name(path);
    let written = write_new(&temporary, &bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    let synced = written.and_then(|()| sync_directory(path));
    synced.map_err(|source| Error::Io { path: path.to_path_buf(), source })
}

/// In the same directory, so that the rename is one step; unique among processes and threads.
fn temporary_name(path: &Path) -> PathBuf {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}-{n}.tmp", std::process::id()));
    path.with_file_name(name)
}

fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the rename last. Where directories cannot be opened there is nothing to do.
fn sync_directory(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if cfg!(unix) { File::open(parent)?.sync_all() } else { Ok(()) }
}

/// The file's bytes.
pub fn to_bytes(g: &Graph, options: &WriteOptions) -> Result<Vec<u8>> {
    lacuna_ir::verify::verify(g)?;
    let (mut graph, needs) = write_graph(g, OPSET)?;
    let newer = needs > OPSET;
    let (opset, ir_version) = if newer { (OPSET_NEWER, IR_VERSION_NEWER) } else { (OPSET, IR_VERSION) };
    if newer {
        graph = write_graph(g, opset)?.0;
    }
    let model = ModelProto {
        ir_version,
        producer_name: "lacuna".to_string(),
        producer_version: env!("CARGO_PKG_VERSION").to_string(),
        doc_string: options.doc.clone(),
        opset_import: vec![proto::OperatorSetIdProto { domain: String::new(), version: opset }],
        graph: Some(graph),
        metadata_props: write_metadata(g)?,
        ..ModelProto::default()
    };
    let bytes = model.encoded_len();
    if bytes > WRITE_BYTES_MAX {
        let what = "size of the model, bytes (weights in separate files are not written yet)";
        return Err(Error::TooLarge { what, got: bytes as u64, max: WRITE_BYTES_MAX as u64 });
    }
    Ok(model.encode_to_vec())
}

fn write_metadata(g: &Graph) -> Result<Vec<proto::StringStringEntryProto>> {
    let mut keys = HashSet::new();
    g.metadata
        .iter()
        .map(|(key, value)| match keys.insert(key) {
            true => Ok(proto::StringStringEntryProto { key: key.clone(), value: value.clone() }),
            false => Err(Error::DuplicateName { what: "metadata", name: key.clone() }),
        })
        .collect()
}

/// What values are called in the file. ONNX has one space for inputs, constants and results.
struct Names {
    of: IdVec<ValueId, String>,
    taken: HashSet<String>,
}

impl Names {
    /// Inputs and outputs keep their names. Others do if they can: a name that is empty or taken is changed.
    fn new(g: &Graph, consts: &[ValueId]) -> Result<Names> {
        let mut names = Names { of: IdVec::filled(String::new(), g.value_name.len()), taken: HashSet::new() };
        for &v in g.inputs.iter().chain(g.outputs.iter().filter(|v| !g.inputs.contains(v))) {
            let name = &g.value_name[v];
            if name.is_empty() {
                let what = "an input or output without a name; give it one".to_string();
                return Err(Error::UnsupportedFeature { name: String::new(), what });
            }
            if !names.taken.insert(name.clone()) {
                return Err(Error::DuplicateName { what: "input or output", name: name.clone() });
            }
            names.of[v] = name.clone();
        }
        for &v in consts.iter().chain(g.order.iter().flat_map(|&op| g.outputs_of(op))) {
            if names.of[v].is_empty() {
                let name = &g.value_name[v];
                names.of[v] =
                    names.fresh(if name.is_empty() { format!("value_{}", v.0) } else { name.clone() });
            }
        }
        Ok(names)
    }

    fn fresh(&mut self, wanted: String) -> String {
        let mut name = wanted;
        while !self.taken.insert(name.clone()) {
            name.push('_');
        }
        name
    }
}

/// The graph in one operator set, and the one that it needs.
fn write_graph(g: &Graph, opset: i64) -> Result<(GraphProto, i64)> {
    let mut needs = OPSET;
    let mut proto = GraphProto { name: g.name.clone(), ..GraphProto::default() };
    if proto.name.is_empty() {
        proto.name = "graph".to_string(); // The checker asks for a name.
    }
    let consts = live_consts(g);
    let mut names = Names::new(g, &consts)?;
    proto.input.extend(g.inputs.iter().map(|&v| value_info(g, v, &names)));
    for &v in &consts {
        if let (Def::Const(c), Some(dims)) = (g.value_def[v], g.fixed_shape(v)) {
            proto.initializer.push(tensor::write(&names.of[v], g.value_dtype[v], &dims, g.consts[c].clone()));
        }
    }
    write_nodes(g, &mut names, &mut proto, opset, &mut needs)?;
    proto.output.extend(g.outputs.iter().map(|&v| value_info(g, v, &names)));
    Ok((proto, needs))
}

fn write_nodes(
    g: &Graph,
    names: &mut Names,
    proto: &mut GraphProto,
    opset: i64,
    needs: &mut i64,
) -> Result<()> {
    for &op in &g.order {
        let (nodes, needed) = write_node(g, op, names, &mut proto.initializer, opset)?;
        *needs = (*needs).max(needed);
        proto.node.extend(nodes);
        let inner = g.outputs_of(op).iter().filter(|v| !g.outputs.contains(v));
        proto.value_info.extend(inner.map(|&v| value_info(g, v, names)));
    }
    Ok(())
}

/// Constants that an op or an output reads, in the order of their rows.
fn live_consts(g: &Graph) -> Vec<ValueId> {
    let mut live: IdVec<ValueId, bool> = IdVec::filled(false, g.value_name.len());
    for &v in g.order.iter().flat_map(|&op| g.inputs_of(op)).chain(&g.outputs).filter(|v| !v.is_none()) {
        live[v] = true;
    }
    g.value_def.iter().filter(|(v, def)| matches!(def, Def::Const(_)) && live[*v]).map(|(v, _)| v).collect()
}

/// A node that is being written: the op's row adds attributes and inputs.
pub struct NodeOut<'a> {
    pub kind: OpKind,
    /// The operator set that is written.
    pub opset: i64,
    needs: i64,
    graph: &'a Graph,
    op: OpId,
    after: Option<NodeProto>,
    node: NodeProto,
    names: &'a mut Names,
    initializers: &'a mut Vec<TensorProto>,
}

fn write_node(
    g: &Graph,
    op: OpId,
    names: &mut Names,
    initializers: &mut Vec<TensorProto>,
    opset: i64,
) -> Result<(Vec<NodeProto>, i64)> {
    let (kind, name) = (g.op_kind[op], &g.op_name[op]);
    if kind.row().level != Level::Model {
        return Err(Error::EngineOp { op: name.clone(), kind: kind.name() });
    }
    let fail = |why: String| Error::NotExpressible { op: name.clone(), kind: kind.name(), why };
    let row = row_of(kind).ok_or_else(|| fail("it has no row in the table of ONNX ops".to_string()))?;
    let write = row.write.ok_or_else(|| fail("it is only read".to_string()))?;
    let text = |v: &ValueId| if v.is_none() { String::new() } else { names.of[*v].clone() };
    let mut input: Vec<String> = g.inputs_of(op).iter().map(text).collect();
    while input.last().is_some_and(String::is_empty) {
        input.pop();
    }
    let node = NodeProto {
        name: name.clone(),
        op_type: row.name.to_string(),
        input,
        output: g.outputs_of(op).iter().map(text).collect(),
        ..NodeProto::default()
    };
    let mut out = NodeOut { kind, opset, needs: OPSET, graph: g, op, after: None, node, names, initializers };
    out.needs(row.since);
    write(&g.op_attr[op], &mut out).map_err(fail)?;
    Ok((std::iter::once(out.node).chain(out.after).collect(), out.needs))
}

impl NodeOut<'_> {
    fn attribute(&mut self, name: &str, kind: AttributeType, value: AttributeProto) {
        self.node.attribute.push(AttributeProto { name: name.to_string(), r#type: kind.into(), ..value });
    }

    pub fn int(&mut self, name: &str, i: i64) {
        self.attribute(name, AttributeType::Int, AttributeProto { i, ..AttributeProto::default() });
    }

    pub fn float(&mut self, name: &str, f: f32) {
        self.attribute(name, AttributeType::Float, AttributeProto { f, ..AttributeProto::default() });
    }

    pub fn ints(&mut self, name: &str, ints: impl IntoIterator<Item = i64>) {
        let ints = ints.into_iter().collect();
        self.attribute(name, AttributeType::Ints, AttributeProto { ints, ..AttributeProto::default() });
    }

    pub fn text(&mut self, name: &str, text: &str) {
        let s = text.as_bytes().to_vec().into();
        self.attribute(name, AttributeType::String, AttributeProto { s, ..AttributeProto::default() });
    }

    /// The node is not what is meant before this operator set.
    pub fn needs(&mut self, opset: i64) {
        self.needs = self.needs.max(opset);
    }

    /// Takes input `i` away, which must be the last, and gives its elements. `None`: there is none.
    pub fn take_ints(&mut self, i: usize) -> Result<Option<Vec<i64>>, String> {
        let Some(v) = self.graph.input_of(self.op, i) else { return Ok(None) };
        self.node.input.truncate(i);
        while self.node.input.last().is_some_and(String::is_empty) {
            self.node.input.pop();
        }
        let list = self.graph.const_i64(v).map(|list| list.into_owned());
        list.map(Some).ok_or_else(|| format!("input {i} is computed: ONNX has it as an attribute"))
    }

    /// Takes attributes away that this form of the op has not.
    pub fn forget(&mut self, names: &[&str]) -> Result<(), String> {
        self.node.attribute.retain(|a| !names.contains(&a.name.as_str()));
        Ok(())
    }

    /// Writes the node as another op, and a second node of that op after it.
    pub fn twice(&mut self, name: &str, first: i64, second: i64) {
        let value = self.node.output.first().cloned().unwrap_or_default();
        let between = self.names.fresh(format!("{value}.{name}"));
        let cast = |input: String, output: String, to: i64| NodeProto {
            op_type: "Cast".to_string(),
            input: vec![input],
            output: vec![output],
            attribute: vec![AttributeProto {
                name: "to".to_string(),
                r#type: AttributeType::Int.into(),
                i: to,
                ..AttributeProto::default()
            }],
            ..NodeProto::default()
        };
        let input = self.node.input.first().cloned().unwrap_or_default();
        self.after = Some(cast(between.clone(), value, second));
        self.node = NodeProto { name: self.node.name.clone(), ..cast(input, between, first) };
    }

    pub fn texts(&mut self, name: &str, texts: &[&str]) {
        let strings = texts.iter().map(|t| t.as_bytes().to_vec().into()).collect();
        self.attribute(name, AttributeType::Strings, AttributeProto { strings, ..AttributeProto::default() });
    }

    /// How many inputs the node has so far.
    pub fn inputs(&self) -> usize {
        self.node.input.len()
    }

    /// One more input, which is left out.
    pub fn absent(&mut self) {
        self.node.input.push(String::new());
    }

    /// One more input, which is a constant of this node alone.
    pub fn constant(&mut self, suffix: &str, c: Constant) {
        let output = self.node.output.first().map_or("", String::as_str);
        let name = self.names.fresh(format!("{output}.{suffix}"));
        self.initializers.push(tensor::write(&name, c.dtype, &c.dims, c.bytes));
        self.node.input.push(name);
    }
}

impl NodeOut<'_> {
    /// Writes a body as an attribute. Its first `formal` inputs are the graph's; the others are what the op reads from
    /// input `first` on, by name.
    pub fn body(&mut self, name: &str, body: BodyId, first: usize, formal: usize) -> Result<(), String> {
        let g = self.graph.bodies.get(body).cloned().ok_or_else(|| format!("{body:?} does not exist"))?;
        let taken = std::mem::take(&mut self.names.taken);
        let mut names = Names { of: IdVec::filled(String::new(), g.value_name.len()), taken };
        for (&v, &around) in
            g.inputs.iter().skip(formal).zip(self.graph.inputs_of(self.op).iter().skip(first))
        {
            names.of[v] = self.names.of.get(around).cloned().unwrap_or_default();
        }
        let written = write_body(&g, formal, &mut names, self.opset);
        self.names.taken = names.taken;
        let (graph, needs) = written.map_err(|e| e.to_string())?;
        self.needs(needs);
        self.graph_attribute(name, graph);
        Ok(())
    }

    fn graph_attribute(&mut self, name: &str, graph: GraphProto) {
        let g = Some(Box::new(graph));
        self.attribute(name, AttributeType::Graph, AttributeProto { g, ..AttributeProto::default() });
    }

    /// What a body reads is no input of the node: `own` are.
    pub fn drop_captures(&mut self, own: usize) {
        self.node.input.truncate(own);
        while self.node.input.last().is_some_and(String::is_empty) {
            self.node.input.pop();
        }
    }

    /// A body for the case that must not be: it makes what `like` makes with another number of dimensions, and fails at that, because
    /// it looks up what is not there.
    pub fn failing_body(&mut self, name: &str, like: BodyId) -> Result<(), String> {
        let g = self.graph.bodies.get(like).cloned().ok_or_else(|| format!("{like:?} does not exist"))?;
        let condition = self.node.input.first().cloned().unwrap_or_default();
        let mut graph = GraphProto { name: "must_not_be".to_string(), ..GraphProto::default() };
        let node = |op: &str, input: [&str; 2], output: &str| NodeProto {
            op_type: op.to_string(),
            input: input.iter().filter(|i| !i.is_empty()).map(|i| i.to_string()).collect(),
            output: vec![output.to_string()],
            ..NodeProto::default()
        };
        let [one, list, number, far, at] = ["one", "list", "number", "far", "at"]
            .map(|part| self.names.fresh(format!("{condition}.{part}")));
        for (name, values) in [(&one, &[1][..]), (&far, &[5, 6])] {
            let Constant { dtype, dims, bytes } = Constant::list_i64(values);
            graph.initializer.push(tensor::write(name, dtype, &dims, bytes));
        }
        let to = AttributeProto {
            name: "to".to_string(),
            r#type: AttributeType::Int.into(),
            i: tensor::code(DType::I64).into(),
            ..AttributeProto::default()
        };
        graph.node.push(node("Reshape", [&condition, &one], &list));
        graph.node.push(NodeProto { attribute: vec![to], ..node("Cast", [&list, ""], &number) });
        graph.node.push(node("Add", [&number, &far], &at));
        for &v in &g.outputs {
            let [data, result] =
                ["data", "result"].map(|part| self.names.fresh(format!("{condition}.{part}")));
            let (rank, dtype) = (g.shape(v).len(), g.value_dtype[v]);
            let rank = if rank < RANK_MAX { rank + 1 } else { rank - 1 };
            let bytes = vec![0; dtype.size() << rank].into();
            graph.initializer.push(tensor::write(&data, dtype, &vec![2; rank], bytes));
            graph.node.push(node("Gather", [&data, &at], &result));
            graph.output.push(info(&result, tensor::code(dtype), vec![dimension::Value::DimValue(2); rank]));
        }
        self.graph_attribute(name, graph);
        Ok(())
    }
}

/// A body as a graph of the file. An output that no op makes, or that stands twice, is copied.
fn write_body(g: &Graph, formal: usize, names: &mut Names, opset: i64) -> Result<(GraphProto, i64)> {
    let mut needs = OPSET;
    let mut proto = GraphProto { name: g.name.clone(), ..GraphProto::default() };
    if proto.name.is_empty() {
        proto.name = "body".to_string();
    }
    let consts = live_consts(g);
    let results = g.order.iter().flat_map(|&op| g.outputs_of(op));
    for &v in g.inputs.iter().take(formal).chain(&consts).chain(results) {
        let name = &g.value_name[v];
        names.of[v] = names.fresh(if name.is_empty() { format!("value_{}", v.0) } else { name.clone() });
    }
    proto.input.extend(g.inputs.iter().take(formal).map(|&v| value_info(g, v, names)));
    for &v in &consts {
        if let (Def::Const(c), Some(dims)) = (g.value_def[v], g.fixed_shape(v)) {
            proto.initializer.push(tensor::write(&names.of[v], g.value_dtype[v], &dims, g.consts[c].clone()));
        }
    }
    write_nodes(g, names, &mut proto, opset, &mut needs)?;
    for (i, &v) in g.outputs.iter().enumerate() {
        let mut output = value_info(g, v, names);
        if g.producer(v).is_none() || g.outputs.iter().take(i).any(|&before| before == v) {
            let copy = names.fresh(format!("{}.copy", output.name));
            proto.node.push(NodeProto {
                op_type: "Identity".to_string(),
                input: vec![std::mem::replace(&mut output.name, copy.clone())],
                output: vec![copy],
                ..NodeProto::default()
            });
        }
        proto.output.push(output);
    }
    Ok((proto, needs))
}

fn value_info(g: &Graph, v: ValueId, names: &Names) -> ValueInfoProto {
    let dim = |dim: &Dim| match *dim {
        Dim::Fixed(n) => dimension::Value::DimValue(n as i64),
        Dim::Symbol(s) => dimension::Value::DimParam(g.symbols[s].clone()),
        Dim::Unknown => dimension::Value::DimParam("?".to_string()),
    };
    info(&names.of[v], tensor::code(g.value_dtype[v]), g.shape(v).iter().map(dim).collect())
}

fn info(name: &str, elem_type: i32, dims: Vec<dimension::Value>) -> ValueInfoProto {
    let dim = |value| Dimension { denotation: String::new(), value: Some(value) };
    let shape = proto::TensorShapeProto { dim: dims.into_iter().map(dim).collect() };
    let tensor = proto::type_proto::Tensor { elem_type, shape: Some(shape) };
    ValueInfoProto {
        name: name.to_string(),
        r#type: Some(proto::TypeProto {
            denotation: String::new(),
            value: Some(proto::type_proto::Value::TensorType(tensor)),
        }),
        ..ValueInfoProto::default()
    }
}
