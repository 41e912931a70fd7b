//! Files that are wrong: each gets the error that names what is wrong, quickly, in little memory, without a panic.

mod common;

use bytes::Bytes;
use common::build::*;
use lacuna_ir::{Attr, DType, Dim, Graph, OpKind, verify};
use lacuna_onnx::proto::tensor_proto::{DataLocation, DataType, Segment};
use lacuna_onnx::proto::*;
use lacuna_onnx::{Error, WriteOptions, load, save, to_bytes};
use prost::Message;
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Names of all variants, so that a test can ask that each was seen. The match has no wildcard: a new variant
/// does not compile until it stands here, and then fails until a case makes it.
macro_rules! variants {
    ($($name:ident),*) => {
        const VARIANTS: &[&str] = &[$(stringify!($name)),*];
        fn variant(e: &Error) -> &'static str {
            match e { $(Error::$name { .. } => stringify!($name),)* }
        }
    };
}

variants!(
    Io,
    InFile,
    NotAFile,
    TooLarge,
    Truncated,
    Wire,
    Protobuf,
    Nesting,
    NotOnnx,
    Opset,
    Unsupported,
    UnsupportedFeature,
    UnsupportedNodes,
    UnsupportedDType,
    Attribute,
    Arity,
    DuplicateName,
    MissingValue,
    Cycle,
    DataLength,
    Data,
    Dimension,
    Elements,
    Declared,
    Graph,
    EngineOp,
    NotExpressible
);

/// Runs cases and counts which variants came out.
#[derive(Default)]
struct Seen {
    variants: BTreeSet<&'static str>,
    cases: usize,
}

impl Seen {
    /// The error must be of that variant and its text must contain `says`.
    fn error(&mut self, label: &str, result: Result<Graph, Error>, want: &str, says: &str) {
        let Err(error) = result else { panic!("{label}: was accepted, {want} was expected") };
        assert_eq!(variant(&error), want, "{label}: {error}");
        let text = error.to_string();
        assert!(text.contains(says), "{label}: {text:?} does not say {says:?}");
        assert!(text.len() < 1000, "{label}: a message of {} bytes", text.len());
        self.variants.insert(variant(&error));
        self.cases += 1;
    }

    fn model(&mut self, label: &str, m: ModelProto, want: &str, says: &str) {
        self.error(label, read(bytes(&m)), want, says);
    }

    /// A model of one node.
    fn node(
        &mut self,
        label: &str,
        opset: i64,
        n: NodeProto,
        consts: &[TensorProto],
        want: &str,
        says: &str,
    ) {
        self.model(label, model(opset, vec![n], consts.to_vec()), want, says);
    }
}

/// One test, because what it asks of memory and of the variants concerns all cases together.
#[test]
fn hostile_files() {
    let mut seen = Seen::default();
    wire(&mut seen);
    models(&mut seen);
    names(&mut seen);
    tensors(&mut seen);
    declarations(&mut seen);
    windows(&mut seen);
    ops(&mut seen);
    files(&mut seen);
    writing(&mut seen);
    let missing: Vec<&str> = VARIANTS.iter().copied().filter(|v| !seen.variants.contains(v)).collect();
    assert!(missing.is_empty(), "no case makes {missing:?}");
    assert!(seen.cases >= 100, "only {} cases", seen.cases);
    println!("{} cases", seen.cases);
}

/// Reads a file, in little memory.
fn read(file: Bytes) -> Result<Graph, Error> {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = lacuna_onnx::parse(file);
    let grown = PEAK.load(Relaxed).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes were allocated at a time");
    result
}

/// What is allocated, of all threads, and the most it ever was: memory counts even if nothing was written to it.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: passes every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

fn relu() -> ModelProto {
    model(17, vec![node("Relu", &["x"], &["y"], vec![])], vec![])
}

fn graph(m: &mut ModelProto) -> &mut GraphProto {
    m.graph.as_mut().unwrap()
}

// ---- the wire format -------------------------------------------------------------------------------

/// A field that holds bytes, as protobuf writes it.
fn field(number: u64, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(number << 3 | 2, &mut out);
    varint(content.len() as u64, &mut out);
    out.extend_from_slice(content);
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

fn wire(seen: &mut Seen) {
    let whole = whole_file();
    for sixteenth in 1..16 {
        let cut = whole.slice(..whole.len() * sixteenth / 16);
        seen.error(&format!("cut at {sixteenth}/16"), read(cut), "Truncated", "cut off");
    }
    seen.error("empty", read(Bytes::new()), "NotOnnx", "IR version");
    seen.error("text", read(Bytes::from_static(b"{\"model\": 1}\n")), "Wire", "byte 0");
    seen.error("a picture", read(Bytes::from_static(b"\x89PNG\r\n\x1a\n")), "Truncated", "not an ONNX model");
    let raw = |bytes: &[u8]| read(Bytes::copy_from_slice(bytes));
    seen.error(
        "length of 2^60",
        raw(&[0x3a, 255, 255, 255, 255, 255, 255, 255, 255, 15]),
        "Truncated",
        "byte 0",
    );
    seen.error(
        "length of 2^64-1",
        raw(&[0x3a, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
        "Truncated",
        "",
    );
    seen.error(
        "number of 11 bytes",
        raw(&[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
        "Wire",
        "ten",
    );
    seen.error("number cut off", raw(&[0x08, 0x80]), "Truncated", "");
    seen.error("group", raw(&[0x3b, 0x3c]), "Wire", "type");
    let long_node = [0x0a, 100, 1, 1];
    let mut file = field(7, &long_node);
    file.extend([0; 200]);
    seen.error("a node longer than its graph", raw(&file), "Wire", "after the message");
    seen.error("a number where a graph belongs", raw(&[0x08, 8, 0x38, 1]), "Protobuf", "");
    seen.error("a name that is not UTF-8", raw(&field(7, &field(2, &[0xff, 0xfe]))), "Protobuf", "");

    // Graphs in attributes of nodes of graphs ..., 3,000 deep.
    let mut nested = Vec::new();
    for _ in 0..1000 {
        nested = field(1, &field(5, &field(6, &nested)));
    }
    seen.error("nested 3,000 deep", raw(&field(7, &nested)), "Nesting", "64");
    // Types of sequences of types.
    let mut nested = Vec::new();
    for _ in 0..200 {
        nested = field(4, &field(1, &nested));
    }
    seen.error("type nested", raw(&field(7, &field(11, &field(2, &nested)))), "Nesting", "64");

    // Two bytes each on disk, hundreds in memory.
    for (label, path) in [("nodes", &[][..]), ("attributes", &[1][..]), ("tensors in attributes", &[1, 5])] {
        let empty: &[u8] = match path.len() {
            0 => &[0x0a, 0],
            1 => &[0x2a, 0],
            _ => &[0x52, 0],
        };
        let mut content = empty.repeat(500_000);
        for number in path.iter().rev() {
            content = field(*number, &content);
        }
        let says = if path.is_empty() { "nodes" } else { "memory" };
        seen.error(&format!("500,000 empty {label}"), raw(&field(7, &content)), "TooLarge", says);
    }
}

fn whole_file() -> Bytes {
    let case = common::cases().into_iter().find(|c| c.name == "block").unwrap();
    Bytes::from(to_bytes(&case.graph, &WriteOptions::default()).unwrap())
}

/// No cut and no flipped bit panics; what is accepted is a valid graph.
#[test]
fn every_cut_and_flip() {
    let whole = whole_file();
    for cut in 0..whole.len() {
        if let Ok(g) = read(whole.slice(..cut)) {
            verify::verify(&g).unwrap();
        }
    }
    let mut random = common::Random(3);
    let mut accepted = 0;
    for at in 0..whole.len() {
        for _ in 0..8 {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 1 << (random.bits() % 8);
            if random.bits().is_multiple_of(4) {
                let other = random.bits() as usize % bytes.len();
                bytes[other] = random.bits() as u8;
            }
            if let Ok(g) = read(Bytes::from(bytes)) {
                verify::verify(&g).unwrap_or_else(|e| panic!("byte {at}: {e}"));
                accepted += 1;
            }
        }
    }
    assert!(accepted > 0, "flips in names and weights are no errors");
}

// ---- model and graph -------------------------------------------------------------------------------

fn models(seen: &mut Seen) {
    seen.model("no IR version", ModelProto { ir_version: 0, ..relu() }, "NotOnnx", "IR version");
    seen.model("no graph", ModelProto { graph: None, ..relu() }, "NotOnnx", "graph");
    seen.model("no operator set", ModelProto { opset_import: vec![], ..relu() }, "NotOnnx", "operator set");
    for version in [0, 29, -1, i64::MAX] {
        let mut m = relu();
        m.opset_import[0].version = version;
        seen.model("operator set", m, "Opset", &version.to_string());
    }
    let mut m = relu();
    m.opset_import.push(OperatorSetIdProto { domain: "ai.onnx".into(), version: 13 });
    seen.model("two operator sets", m, "DuplicateName", "ai.onnx");
    let mut m = relu();
    m.metadata_props = vec![StringStringEntryProto { key: "k".into(), value: "v".into() }; 2];
    seen.model("metadata twice", m, "DuplicateName", "'k'");
    let mut m = relu();
    graph(&mut m).output.clear();
    seen.model("no outputs", m, "NotOnnx", "outputs");
    let mut m = relu();
    graph(&mut m).sparse_initializer.push(SparseTensorProto::default());
    seen.model("sparse initialiser", m, "Data", "lacks its values");
    // Every node that is not supported is named, and one that only reads what such a node makes is not.
    let many = vec![
        node("Foo", &["x"], &["a"], vec![]),
        node("Relu", &["a"], &["b"], vec![]),
        node("Bar", &["b"], &["c"], vec![]),
        node("Dropout", &["x"], &["d"], vec![int("seed", 1), int("qux", 1)]),
        node("Relu", &["c"], &["y"], vec![]),
    ];
    let two = "2 nodes are not supported:\n  node 'a': Foo of domain '', operator set 17, is not supported yet\n  node 'c': Bar";
    seen.model("two unsupported nodes", model(17, many, vec![]), "UnsupportedNodes", two);
    let bombs = (0..60_000).map(|i| node("Foo", &["x"], &[&format!("v{i}")], vec![])).collect();
    let Err(error) = read(Bytes::from(model(17, bombs, vec![]).encode_to_vec())) else { panic!("accepted") };
    assert!(error.to_string().starts_with("1000 nodes are not supported"), "{error}");
    let cycle = vec![node("Relu", &["b"], &["y"], vec![]), node("Relu", &["y"], &["b"], vec![])];
    seen.model("cycle", model(17, cycle, vec![]), "Cycle", "'y'");
    seen.node("cycle of one", 17, node("Add", &["x", "y"], &["y"], vec![]), &[], "Cycle", "'y'");
    let named = field(1, &field(3, b"a node with a name"));
    let many = read(Bytes::from(field(7, &named.repeat((1 << 16) + 1))));
    seen.error("too many nodes", many, "TooLarge", "nodes: 65537");
    seen.node(
        "missing value",
        17,
        node("Relu", &["z"], &["y"], vec![]),
        &[],
        "MissingValue",
        "'z', read by node 'y'",
    );
    seen.node("missing output", 17, node("Relu", &["x"], &["q"], vec![]), &[], "MissingValue", "'y'");
}

fn names(seen: &mut Seen) {
    let k = || f32s("k", &[], &[1.0]);
    seen.model("initialiser twice", model(17, vec![], vec![k(), k()]), "DuplicateName", "'k'");
    let twice = vec![node("Relu", &["x"], &["y"], vec![]); 2];
    seen.model("value twice", model(17, twice, vec![]), "DuplicateName", "'y'");
    seen.node("value named as input", 17, node("Relu", &["x"], &["x"], vec![]), &[], "DuplicateName", "'x'");
    seen.node(
        "value named as constant",
        17,
        node("Relu", &["x"], &["k"], vec![]),
        &[k()],
        "DuplicateName",
        "'k'",
    );
    let mut m = relu();
    graph(&mut m).output.push(output("y", DataType::Float));
    seen.model("output twice", m, "DuplicateName", "'y'");
    let mut m = relu();
    let x = graph(&mut m).input[0].clone();
    graph(&mut m).input.push(x);
    seen.model("input twice", m, "DuplicateName", "'x'");
    seen.model(
        "no name",
        model(17, vec![], vec![f32s("", &[], &[1.0])]),
        "UnsupportedFeature",
        "without a name",
    );
    let long = "n".repeat(5000);
    seen.model("long name", model(17, vec![], vec![f32s(&long, &[], &[1.0])]), "TooLarge", "name");
    let mut m = relu();
    for i in 0..300 {
        graph(&mut m).input.push(value(&format!("i{i}"), DataType::Float, &[D::Unknown]));
    }
    seen.model("too many symbols", m, "TooLarge", "symbol");
}

// ---- tensors ---------------------------------------------------------------------------------------

fn tensors(seen: &mut Seen) {
    let mut tensor = |label: &str, t: TensorProto, want: &str, says: &str| {
        seen.model(label, model(17, vec![node("Relu", &["x"], &["y"], vec![])], vec![t]), want, says);
    };
    let f = DataType::Float as i32;
    tensor(
        "raw too short",
        raw("k", f, &[2], &[0; 7]),
        "DataLength",
        "needs 8 bytes of data, the file holds 7",
    );
    tensor("raw too long", raw("k", f, &[2], &[0; 9]), "DataLength", "'k'");
    tensor("raw absent", raw("k", f, &[2], &[]), "DataLength", "holds 0");
    tensor("2^30 elements in 4 bytes", raw("k", f, &[1 << 30], &[0; 4]), "DataLength", "4294967296");
    tensor("float_data too short", f32s("k", &[3], &[1.0, 2.0]), "DataLength", "12");
    tensor("scalar with 2", i64s("k", &[], &[1, 2]), "DataLength", "needs 8");
    tensor("negative", raw("k", f, &[2, -1], &[]), "Dimension", "axis 1");
    tensor("2^31 + 1", raw("k", f, &[(1 << 31) + 1], &[]), "Dimension", "2147483649");
    tensor("2^63 - 1", raw("k", f, &[i64::MAX], &[]), "Dimension", "2^31");
    tensor("product overflows", raw("k", f, &[1 << 31, 1 << 31, 1 << 31], &[]), "Elements", "'k'");
    tensor("product too large", raw("k", f, &[1 << 31, 8], &[]), "Elements", "'k'");
    tensor("rank 9", raw("k", f, &[1; 9], &[0; 4]), "UnsupportedFeature", "9 dimensions");
    tensor("rank 100,000", raw("k", f, &vec![1; 100_000], &[0; 4]), "UnsupportedFeature", "dimensions");
    tensor("f64", raw("k", DataType::Double as i32, &[], &[0; 4]), "DataLength", "needs 8");
    tensor("string", raw("k", DataType::String as i32, &[], &[]), "UnsupportedDType", "STRING");
    tensor("int4", raw("k", DataType::Int4 as i32, &[3], &[0; 3]), "DataLength", "needs 2");
    tensor("f8", raw("k", DataType::Float8e5m2 as i32, &[3], &[0; 3]), "UnsupportedDType", "FLOAT8E5M2");
    tensor("f16 as floats", TensorProto { data_type: 10, ..f32s("k", &[1], &[1.0]) }, "Data", "float_data");
    tensor("type 99", raw("k", 99, &[], &[]), "UnsupportedDType", "99");
    tensor("type -1", raw("k", -1, &[], &[]), "UnsupportedDType", "-1");
    tensor("type 0", raw("k", 0, &[], &[]), "UnsupportedDType", "UNDEFINED");
    tensor(
        "two fields",
        TensorProto { float_data: vec![1.0], ..raw("k", f, &[1], &[0; 4]) },
        "Data",
        "raw_data and float_data",
    );
    tensor("f32 in int64_data", TensorProto { data_type: f, ..i64s("k", &[1], &[1]) }, "Data", "int64_data");
    tensor("300 as u8", small("k", DataType::Uint8, &[1], &[300]), "Data", "u8");
    tensor("200 as i8", small("k", DataType::Int8, &[1], &[200]), "Data", "i8");
    tensor("2 as bool", raw("k", DataType::Bool as i32, &[1], &[2]), "Data", "bool");
    let entry = StringStringEntryProto { key: "location".into(), value: "../../etc/passwd".into() };
    let external = TensorProto {
        external_data: vec![entry],
        data_location: DataLocation::External as i32,
        ..raw("k", f, &[1], &[])
    };
    tensor("external data", external, "UnsupportedFeature", "given as bytes");
    let segment = TensorProto { segment: Some(Segment { begin: 0, end: 1 }), ..raw("k", f, &[1], &[0; 4]) };
    tensor("segment", segment, "UnsupportedFeature", "segments");
}

fn declarations(seen: &mut Seen) {
    let mut input = |label: &str, info: ValueInfoProto, want: &str, says: &str| {
        let mut m = relu();
        graph(&mut m).input.push(info);
        seen.model(label, m, want, says);
    };
    let f = |dims: &[D]| value("i", DataType::Float, dims);
    input("negative dimension", f(&[D::N(3), D::N(-2)]), "Dimension", "axis 1");
    input("smallest dimension", f(&[D::N(i64::MIN)]), "Dimension", "negative");
    input("2^40", f(&[D::N(1 << 40)]), "Dimension", "2^31");
    input("overflow", f(&[D::N(1 << 31); 3]), "Elements", "'i'");
    input("rank 9", f(&[D::N(1); 9]), "UnsupportedFeature", "9 dimensions");
    input("f8", value("i", DataType::Float8e4m3fn, &[]), "UnsupportedDType", "FLOAT8E4M3FN");
    input("no shape", output("i", DataType::Float), "UnsupportedFeature", "without a shape");
    input(
        "no type",
        ValueInfoProto { name: "i".into(), ..Default::default() },
        "UnsupportedFeature",
        "no type",
    );
    let sequence =
        TypeProto { value: Some(type_proto::Value::SequenceType(Box::default())), denotation: String::new() };
    let info = ValueInfoProto { name: "i".into(), r#type: Some(sequence), ..Default::default() };
    input("sequence", info, "UnsupportedFeature", "sequence");
    for (label, dtype, dims) in [
        ("other rank", DataType::Float, &[D::N(2)][..]),
        ("other size", DataType::Float, &[D::N(2), D::N(3), D::N(6), D::N(6)]),
        ("other type", DataType::Int32, &[D::N(2), D::N(3), D::N(6), D::N(5)]),
    ] {
        let mut m = relu();
        graph(&mut m).output[0] = value("y", dtype, dims);
        seen.model(label, m, "Declared", "computed as f32[2,3,6,5]");
    }
}

// ---- ops -------------------------------------------------------------------------------------------

fn windows(seen: &mut Seen) {
    let w = || f32s("w", &[4, 3, 1, 1], &[0.5; 12]);
    let mut conv = |label: &str, attrs: Vec<AttributeProto>, want: &str, says: &str| {
        seen.node(label, 17, node("Conv", &["x", "w"], &["y"], attrs), &[w()], want, says);
    };
    conv("group 0", vec![int("group", 0)], "Attribute", "'group'");
    conv("group -1", vec![int("group", -1)], "Attribute", "'group'");
    conv("group 2", vec![int("group", 2)], "Graph", "group 2");
    conv("stride 0", vec![ints("strides", &[1, 0])], "Attribute", "'strides'");
    conv("dilation 0", vec![ints("dilations", &[0, 1])], "Attribute", "'dilations'");
    conv("pads -1", vec![ints("pads", &[0, 0, -1, 0])], "Attribute", "'pads'");
    conv("pads 2^31", vec![ints("pads", &[0, 0, 1 << 31, 0])], "Attribute", "'pads'");
    conv("pads 2^31 - 1", vec![ints("pads", &[(1 << 31) - 1; 4])], "Graph", "elements");
    conv("two pads", vec![ints("pads", &[0, 0])], "Attribute", "'pads'");
    conv("other kernel", vec![ints("kernel_shape", &[3, 3])], "Attribute", "[1, 1]");
    conv("unknown attribute", vec![int("sparsity", 1)], "Attribute", "not known");
    conv("attribute twice", vec![int("group", 1), int("group", 1)], "Attribute", "twice");
    conv("float for int", vec![float("group", 1.0)], "Attribute", "FLOAT");
    conv("int for ints", vec![int("strides", 1)], "Attribute", "INT");
    let untyped = |t| AttributeProto { r#type: t, ..int("group", 1) };
    conv("no attribute type", vec![untyped(0)], "Attribute", "UNDEFINED");
    conv("attribute type 77", vec![untyped(77)], "Attribute", "77");
    let of_function = AttributeProto { ref_attr_name: "g".into(), ..int("group", 1) };
    conv("attribute of a function", vec![of_function], "Attribute", "function");
    conv("auto_pad unknown", vec![string("auto_pad", "SOME")], "Attribute", "SOME");
    let both = vec![string("auto_pad", "SAME_UPPER"), ints("pads", &[1, 1, 1, 1])];
    conv("auto_pad and pads", both, "Attribute", "'auto_pad'");
    let wide = vec![string("auto_pad", "SAME_UPPER"), ints("strides", &[1 << 30, 1])];
    let kernel = f32s("w", &[1, 3, 3, 1], &[0.5; 9]);
    let reach = vec![string("auto_pad", "SAME_UPPER"), ints("dilations", &[(1 << 31) - 1, 1])];
    assert!(read(bytes(&model(17, vec![node("Conv", &["x", "w"], &["y"], wide)], vec![w()]))).is_ok());
    seen.node(
        "auto_pad overflows",
        17,
        node("Conv", &["x", "w"], &["y"], reach),
        &[kernel],
        "Attribute",
        "'auto_pad'",
    );

    let mut symbolic =
        model(17, vec![node("Conv", &["x", "w"], &["y"], vec![string("auto_pad", "SAME_LOWER")])], vec![w()]);
    graph(&mut symbolic).input[0] = value("x", DataType::Float, &[D::N(1), D::N(3), D::P("h"), D::N(5)]);
    seen.model("auto_pad of symbolic height", symbolic, "Unsupported", "symbolic");
    let line = f32s("w", &[4, 3, 1], &[0.5; 12]);
    seen.node(
        "1-D convolution",
        17,
        node("Conv", &["x", "w"], &["y"], vec![]),
        &[line],
        "Arity",
        "dimensions",
    );
    let empty = f32s("w", &[4, 3, 0, 1], &[]);
    seen.node("empty kernel", 17, node("Conv", &["x", "w"], &["y"], vec![]), &[empty], "Arity", "kernel");
    seen.node(
        "convolution without weight",
        17,
        node("Conv", &["x"], &["y"], vec![]),
        &[],
        "Arity",
        "input 1",
    );
    let one_d = node("MaxPool", &["x"], &["y"], vec![ints("kernel_shape", &[2])]);
    seen.node("1-D pool", 17, one_d, &[], "Attribute", "kernel_shape");
    seen.node(
        "pool without kernel",
        17,
        node("MaxPool", &["x"], &["y"], vec![]),
        &[],
        "Attribute",
        "required",
    );
    let huge = node("MaxPool", &["x"], &["y"], vec![ints("kernel_shape", &[1 << 20, 1])]);
    seen.node("pool larger than its input", 17, huge, &[], "Graph", "MaxPool");
    let three = node("MaxPool", &["x"], &["y", "i", "j"], vec![ints("kernel_shape", &[1, 1])]);
    seen.node("pool with three results", 17, three, &[], "Graph", "outputs");
}

fn ops(seen: &mut Seen) {
    let mut one = |label: &str, opset: i64, n: NodeProto, consts: &[TensorProto], want: &str, says: &str| {
        seen.node(label, opset, n, consts, want, says);
    };
    let on_x = |op: &str, attrs: Vec<AttributeProto>| node(op, &["x"], &["y"], attrs);
    one(
        "unknown op",
        17,
        on_x("Frobnicate", vec![]),
        &[],
        "Unsupported",
        "Frobnicate of domain '', operator set 17",
    );
    let custom = NodeProto { domain: "com.example".into(), ..on_x("Relu", vec![]) };
    one("unknown domain", 17, custom, &[], "Unsupported", "com.example");
    let branch =
        AttributeProto { name: "body".into(), r#type: 5, g: Some(Box::default()), ..Default::default() };
    one("loop of nothing", 17, on_x("Loop", vec![branch]), &[], "Arity", "its body takes 0 values");
    one("no output name", 17, node("Relu", &["x"], &[""], vec![]), &[], "Arity", "output");
    one("two inputs for Relu", 17, node("Relu", &["x", "x"], &["y"], vec![]), &[], "Graph", "inputs");
    one("no inputs for Relu", 17, node("Relu", &[], &["y"], vec![]), &[], "Graph", "inputs");
    one(
        "shapes that do not broadcast",
        17,
        node("Add", &["x", "k"], &["y"], vec![]),
        &[f32s("k", &[4], &[0.0; 4])],
        "Graph",
        "broadcast",
    );
    one("Softmax 11, no such axis", 11, on_x("Softmax", vec![int("axis", 4)]), &[], "Attribute", "axis");
    one("Softmax, axis 2^40", 17, on_x("Softmax", vec![int("axis", 1 << 40)]), &[], "Attribute", "axis");
    one("Softmax, axis 9", 17, on_x("Softmax", vec![int("axis", 9)]), &[], "Graph", "axis");
    one("Concat without axis", 17, on_x("Concat", vec![]), &[], "Attribute", "required");
    one(
        "Transpose twice the same",
        17,
        on_x("Transpose", vec![ints("perm", &[0, 0, 1, 2])]),
        &[],
        "Graph",
        "permutation",
    );
    one("Transpose of 9 axes", 17, on_x("Transpose", vec![ints("perm", &[0; 9])]), &[], "Attribute", "perm");
    let reshape = node("Reshape", &["x", "s"], &["y"], vec![]);
    one("Reshape to 2^60", 17, reshape.clone(), &[i64s("s", &[2], &[1 << 30, 1 << 30])], "Graph", "reshape");
    one("Reshape, two holes", 17, reshape.clone(), &[i64s("s", &[2], &[-1, -1])], "Graph", "-1");
    one("Reshape, f32 shape", 17, reshape, &[f32s("s", &[1], &[180.0])], "Arity", "i64");
    let zero = node("Reshape", &["x", "s"], &["y"], vec![int("allowzero", 1)]);
    one("Reshape, allowzero", 17, zero, &[i64s("s", &[2], &[0, 180])], "Unsupported", "allowzero");
    one("Reshape, computed", 17, node("Reshape", &["x", "x"], &["y"], vec![]), &[], "Arity", "i64");
    one("Clip, computed", 17, node("Clip", &["x", "x"], &["y"], vec![]), &[], "Graph", "one number");
    let nan = f32s("lo", &[], &[f32::NAN]);
    one("Clip, NaN", 17, node("Clip", &["x", "lo"], &["y"], vec![]), &[nan], "Attribute", "not a number");
    let pair = f32s("lo", &[2], &[0.0, 1.0]);
    one("Clip, two bounds", 17, node("Clip", &["x", "lo"], &["y"], vec![]), &[pair], "Arity", "'min'");
    let lo = f32s("lo", &[], &[0.0]);
    let both = node("Clip", &["x", "lo"], &["y"], vec![float("min", 0.0)]);
    one("Clip, twice", 17, both, &[lo], "Attribute", "'min'");
    one(
        "Gemm, NaN",
        17,
        node("Gemm", &["x", "x"], &["y"], vec![float("alpha", f32::NAN)]),
        &[],
        "Attribute",
        "finite",
    );
    one(
        "Gemm, transA 2",
        17,
        node("Gemm", &["x", "x"], &["y"], vec![int("transA", 2)]),
        &[],
        "Attribute",
        "0 or 1",
    );
    let vectors: Vec<TensorProto> = ["s", "b", "m", "v"].iter().map(|n| f32s(n, &[3], &[1.0; 3])).collect();
    let norm =
        |outputs: &[&str], attrs| node("BatchNormalization", &["x", "s", "b", "m", "v"], outputs, attrs);
    one("norm, five outputs", 11, norm(&["y", "m1", "v1"], vec![]), &vectors, "Unsupported", "m1");
    one(
        "norm in training",
        15,
        norm(&["y"], vec![int("training_mode", 1)]),
        &vectors,
        "Unsupported",
        "training",
    );
    let training = TensorProto { data_type: DataType::Bool as i32, ..raw("t", 0, &[], &[1]) };
    let ratio = f32s("r", &[], &[0.5]);
    one(
        "dropout in training",
        13,
        node("Dropout", &["x", "r", "t"], &["y"], vec![]),
        &[ratio, training],
        "Unsupported",
        "training",
    );
    one(
        "reduce, axes as before",
        18,
        on_x("ReduceMean", vec![ints("axes", &[1])]),
        &[],
        "Attribute",
        "input",
    );
    one("reduce, axis 200", 17, on_x("ReduceMean", vec![ints("axes", &[200])]), &[], "Attribute", "axes");
    let scale = f32s("s", &[], &[0.1]);
    let quantize = |attrs| node("QuantizeLinear", &["x", "s"], &["y"], attrs);
    one(
        "blocks",
        21,
        quantize(vec![int("block_size", 2)]),
        std::slice::from_ref(&scale),
        "Unsupported",
        "blocks",
    );
    one(
        "int4",
        21,
        quantize(vec![int("output_dtype", 22)]),
        std::slice::from_ref(&scale),
        "UnsupportedDType",
        "INT4",
    );
    one("scale of rank 2", 21, quantize(vec![]), &[f32s("s", &[3, 1], &[0.1; 3])], "Unsupported", "scale");
    one(
        "scale for other axis",
        21,
        quantize(vec![int("axis", 2)]),
        &[f32s("s", &[3], &[0.1; 3])],
        "Graph",
        "axis 2",
    );
    let constant = |attrs| node("Constant", &[], &["y"], attrs);
    one("constant, no value", 17, constant(vec![]), &[], "Arity", "one value");
    one(
        "constant, two values",
        17,
        constant(vec![int("value_int", 1), float("value_float", 1.0)]),
        &[],
        "Arity",
        "one value",
    );
    one("constant, text", 17, constant(vec![string("value_string", "a")]), &[], "Attribute", "value_string");
    let bad = raw("", DataType::Float as i32, &[3], &[0; 8]);
    one("constant, wrong length", 17, constant(vec![tensor("value", bad)]), &[], "DataLength", "'y'");
    let hollow = AttributeProto { t: None, ..tensor("value", TensorProto::default()) };
    one("constant, no tensor", 17, constant(vec![hollow]), &[], "Attribute", "holds no tensor");
}

// ---- the file system, and writing ------------------------------------------------------------------

fn files(seen: &mut Seen) {
    let dir = tempfile::tempdir().unwrap();
    seen.error("no file", load(dir.path().join("none.onnx")), "Io", "none.onnx");
    let inner = |e: Error| match e {
        Error::InFile { source, .. } => *source,
        e => e,
    };
    seen.error("a directory", load(dir.path()), "InFile", "not a regular file");
    seen.error("a directory", load(dir.path()).map_err(inner), "NotAFile", "");
    let path = dir.path().join("m.onnx");
    std::fs::write(&path, b"").unwrap();
    seen.error("empty file", load(&path).map_err(inner), "NotOnnx", "empty");
    std::fs::write(&path, &whole_file()[..100]).unwrap();
    seen.error("cut file", load(&path), "InFile", "m.onnx");
    seen.error("cut file", load(&path).map_err(inner), "Truncated", "cut off");
    let sparse = std::fs::File::create(&path).unwrap();
    if sparse.set_len((8 << 30) + 1).is_ok() {
        seen.error("9 GiB file", load(&path).map_err(inner), "TooLarge", "size of the file");
    }
}

fn writing(seen: &mut Seen) {
    let dims = [Dim::Fixed(1), Dim::Fixed(4), Dim::Fixed(4), Dim::Fixed(2)];
    let mut g = Graph::new("g");
    let x = g.add_input("x", DType::F32, &dims);
    let mut engine = g.clone();
    let pooled = engine.add_op(OpKind::GlobalAvgPoolNhwc, Attr::None, "pool", &[x], &["y"]);
    engine.outputs = pooled.unwrap();
    let write = |g: &Graph| to_bytes(g, &WriteOptions::default()).map(|_| Graph::default());
    seen.error("engine op", write(&engine), "EngineOp", "'pool' (GlobalAvgPoolNhwc)");

    let huge = lacuna_ir::op::ResizeAttr { scale: [1 << 17, 1] };
    let mut large = g.clone();
    large.outputs = large.add_op(OpKind::Resize, Attr::Resize(huge), "up", &[x], &["y"]).unwrap();
    seen.error("a scale beyond f32's whole numbers", write(&large), "NotExpressible", "too large");

    let mut same = g.clone();
    same.outputs = same.add_op(OpKind::Relu, Attr::None, "relu", &[x], &["x"]).unwrap();
    seen.error("output named as input", write(&same), "DuplicateName", "'x'");
    let path = std::env::temp_dir().join("lacuna-never-written.onnx");
    assert!(save(&same, &path, &WriteOptions::default()).is_err() && !path.exists());
}
