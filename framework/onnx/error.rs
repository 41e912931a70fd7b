//! What can be wrong with an ONNX file, or with a graph that is to become one: where, what, and what to do.

use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way in which reading or writing fails. `node` is the node's name, or `#index (op_type)` where it has none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}", path = path.display())]
    InFile { path: PathBuf, source: Box<Error> },
    #[error("not a regular file")]
    NotAFile,
    #[error("{what}: {got}, the limit is {max}")]
    TooLarge { what: &'static str, got: u64, max: u64 },
    #[error(
        "the file is cut off, or not an ONNX model: at byte {at} a field of {need} bytes begins, {have} are left"
    )]
    Truncated { at: usize, need: u64, have: usize },
    #[error("not valid protobuf at byte {at}: {why}")]
    Wire { at: usize, why: &'static str },
    #[error("not valid protobuf: {0}")]
    Protobuf(#[from] prost::DecodeError),
    #[error("messages are nested deeper than {max}")]
    Nesting { max: usize },
    #[error("not an ONNX model: {why}")]
    NotOnnx { why: &'static str },
    #[error(
        "operator set {version} of domain '{domain}': versions {min} to {max} of the default domain are read; convert the model with onnx.version_converter"
    )]
    Opset { domain: String, version: i64, min: i64, max: i64 },
    #[error("node '{node}': {op} of domain '{domain}', operator set {opset}, is not supported{why}")]
    Unsupported { op: String, node: String, domain: String, opset: i64, why: String },
    #[error("{} nodes are not supported{}", nodes.len(), lines(nodes))]
    UnsupportedNodes { nodes: Vec<Error> },
    #[error("'{name}': {what}")]
    UnsupportedFeature { name: String, what: String },
    #[error("'{name}' has element type {dtype}; f32, i64, i32, u8, i8 and bool are read")]
    UnsupportedDType { name: String, dtype: String },
    #[error("node '{node}' ({op}): attribute '{attr}': {why}")]
    Attribute { node: String, op: String, attr: String, why: String },
    #[error("node '{node}' ({op}): {why}")]
    Arity { node: String, op: String, why: String },
    #[error("{what} name '{name}' stands twice")]
    DuplicateName { what: &'static str, name: String },
    #[error(
        "value '{value}', read by {by}, is not made by anything; the file was cut up or a step of its export failed"
    )]
    MissingValue { value: String, by: String },
    #[error("node '{node}' depends on its own result")]
    Cycle { node: String },
    #[error("tensor '{name}': {dtype}{dims:?} needs {want} bytes of data, the file holds {got}")]
    DataLength { name: String, dtype: &'static str, dims: Vec<u64>, want: u64, got: u64 },
    #[error("tensor '{name}': {why}")]
    Data { name: String, why: String },
    #[error("'{name}': dimension {dim} of axis {axis}: {why}")]
    Dimension { name: String, axis: usize, dim: i64, why: &'static str },
    #[error("'{name}' has more than {max} elements: {dims}")]
    Elements { name: String, dims: String, max: u64 },
    #[error("output '{name}' is declared as {declared} and computed as {computed}")]
    Declared { name: String, declared: String, computed: String },
    #[error(transparent)]
    Graph(#[from] lacuna_ir::Error),
    #[error(
        "op '{op}' ({kind}) cannot be written: it is an engine op; export the graph before it is lowered"
    )]
    EngineOp { op: String, kind: &'static str },
    #[error("op '{op}' ({kind}) cannot be written: {why}")]
    NotExpressible { op: String, kind: &'static str, why: String },
}

/// The most nodes that are listed one by one.
const LINES_MAX: usize = 50;

fn lines(nodes: &[Error]) -> String {
    let mut out = String::from(":");
    for node in nodes.iter().take(LINES_MAX) {
        out.push_str(&format!("\n  {node}"));
    }
    if nodes.len() > LINES_MAX {
        out.push_str("\n  ...");
    }
    out
}

impl Error {
    /// Says which file it was.
    pub(crate) fn in_file(self, path: &std::path::Path) -> Error {
        Error::InFile { path: path.to_path_buf(), source: Box::new(self) }
    }
}
