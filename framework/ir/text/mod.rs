//! The text form of a graph: one line per input, constant, op and output.
//!
//! ```text
//! graph resnet20
//! meta "recipe" "prune 90 %"
//! input %input: f32[batch,1,28,28]
//! const %conv1.weight: f32[16,1,3,3] = brief 1f83d9abfb41bd6b nonzero 14/144
//! const %shape: i64[2] = {0, -1}
//! %c: f32[batch,16,14,14] = Conv(%input, %conv1.weight) kernel=[3,3] stride=[2,2] pads=[1,1,1,1]  # conv1
//! body 0 choice
//!   symbol batch
//!   input %x: f32[batch,16,14,14]
//!   %y: f32[batch,16,14,14] = Relu(%x)
//!   output %y
//! end
//! output %c
//! ```
//!
//! Names with other characters than letters, digits, `_ . / -` stand in double quotes. Values of one name are told
//! apart by `@2`, `@3`, in the order of the text; an absent input is `_`; attributes that have their usual value
//! are left out; a line that begins with `#` is a comment. Bodies of an op stand before it, between `body` with a
//! number that counts up within the graph, and `end`. Small constants are printed in decimal (f32 bit for bit);
//! larger ones in full as `hex` of their little-endian bytes ([`print_full`], which [`parse`] reads back), or
//! in brief as a hash and a density ([`print()`]), for people and golden files, or as the number of a `blob` that is kept
//! elsewhere ([`print_with_blobs`]).

mod attributes;
mod parse;

pub use parse::{TEXT_BYTES_MAX, TEXT_LINES_MAX, TEXT_SYMBOLS_MAX, parse, parse_with_blobs};
pub(crate) use parse::{quoted_name, start_of};

use crate::flow::bodies_of;
use crate::graph::{Def, Graph};
use crate::ids::{BodyId, Id, IdVec, SymbolId, ValueId};
use crate::op::*;
use crate::symbols::SymbolDef;
use crate::tensor::{DType, Dim, Elements};
use attributes::{attr_fields, f32_text};
use bytes::Bytes;
use std::collections::HashMap;
use std::fmt::Write;

/// Constants of up to this many elements are printed in decimal.
const INLINE_ELEMENTS_MAX: usize = 16;

/// The text with large constants in brief. The graph must be valid.
pub fn print(g: &Graph) -> String {
    print_with(g, &mut Large::InBrief)
}

/// The text with every byte of every constant; `parse(&print_full(g))` is `g` without its dead rows.
pub fn print_full(g: &Graph) -> String {
    print_with(g, &mut Large::InFull)
}

/// The text without the bytes of large constants: `blob 3` stands for the fourth entry of the list, for
/// [`parse_with_blobs`]. Entries have the type of their elements.
pub fn print_with_blobs(g: &Graph) -> (String, Vec<(DType, Bytes)>) {
    let mut blobs = Vec::new();
    let text = print_with(g, &mut Large::Elsewhere(&mut blobs));
    (text, blobs)
}

/// How large constants are printed.
enum Large<'a> {
    InFull,
    InBrief,
    /// By number; the list grows.
    Elsewhere(&'a mut Vec<(DType, Bytes)>),
}

fn print_with(g: &Graph, large: &mut Large<'_>) -> String {
    let mut out = format!("graph {}\n", quoted(&g.name));
    for (key, value) in &g.metadata {
        writeln!(out, "meta {} {}", quote(key), quote(value)).unwrap();
    }
    print_lines(g, large, &mut out);
    out
}

/// A body, as its lines stand before the op that it is of.
fn print_body(body: &Graph, number: usize, large: &mut Large<'_>, out: &mut String) {
    writeln!(out, "body {number} {}", quoted(&body.name)).unwrap();
    let mut inner = String::new();
    // Shapes may be defined by what no input shows plainly.
    for s in body.symbols.ids().filter(|&s| *body.symbols.def(s) == SymbolDef::Free) {
        writeln!(inner, "symbol {}", quote(&body.symbols[s])).unwrap();
    }
    print_lines(body, large, &mut inner);
    inner.lines().for_each(|line| writeln!(out, "  {line}").unwrap());
    out.push_str("end\n");
}

fn print_lines(g: &Graph, large: &mut Large<'_>, out: &mut String) {
    let consts = live_consts(g);
    let handles = handles(g, &consts);
    for &v in &g.inputs {
        writeln!(out, "input {}: {}", handles[v], value_type(g, v)).unwrap();
    }
    for &v in &consts {
        let elements = const_text(g, v, large);
        writeln!(out, "const {}: {} = {elements}", handles[v], value_type(g, v)).unwrap();
    }
    let mut printed: HashMap<BodyId, usize> = HashMap::new();
    for &op in &g.order {
        let mut attr = g.op_attr[op];
        for body in bodies_of(&attr) {
            let number = printed.len();
            if let std::collections::hash_map::Entry::Vacant(new) = printed.entry(body) {
                print_body(&g.bodies[body], number, large, out);
                new.insert(number);
            }
        }
        attr = renumbered(attr, |body| BodyId::from_index(printed[&body]));
        let results: Vec<String> =
            g.outputs_of(op).iter().map(|&v| format!("{}: {}", handles[v], value_type(g, v))).collect();
        let operands: Vec<&str> =
            g.inputs_of(op).iter().map(|&v| if v.is_none() { "_" } else { handles[v].as_str() }).collect();
        write!(out, "{} = {}({})", results.join(", "), g.op_kind[op].name(), operands.join(", ")).unwrap();
        for (key, value) in attr_fields(g.op_kind[op], &attr) {
            write!(out, " {key}={value}").unwrap();
        }
        if !g.op_name[op].is_empty() {
            write!(out, "  # {}", quoted(&g.op_name[op])).unwrap();
        }
        out.push('\n');
    }
    for &v in &g.outputs {
        writeln!(out, "output {}", handles[v]).unwrap();
    }
}

/// The attribute with other numbers for its bodies.
fn renumbered(attr: Attr, to: impl Fn(BodyId) -> BodyId) -> Attr {
    match attr {
        Attr::If(a) => Attr::If(IfAttr { then_body: to(a.then_body), else_body: a.else_body.map(to) }),
        Attr::Loop(a) => Attr::Loop(LoopAttr { body: to(a.body), ..a }),
        attr => attr,
    }
}

/// Constants that a live op or an output reads, in the order of their rows.
fn live_consts(g: &Graph) -> Vec<ValueId> {
    let mut live = IdVec::filled(false, g.value_name.len());
    for &v in g.order.iter().flat_map(|&op| g.inputs_of(op)).chain(&g.outputs).filter(|v| !v.is_none()) {
        live[v] = true;
    }
    g.value_def.iter().filter(|(v, def)| matches!(def, Def::Const(_)) && live[*v]).map(|(v, _)| v).collect()
}

/// How each value is written: its name, and which one of that name it is.
fn handles(g: &Graph, consts: &[ValueId]) -> IdVec<ValueId, String> {
    let mut handles = IdVec::filled(String::new(), g.value_name.len());
    let mut count: HashMap<&str, usize> = HashMap::new();
    let results = g.order.iter().flat_map(|&op| g.outputs_of(op));
    for &v in g.inputs.iter().chain(consts).chain(results) {
        let n = count.entry(&g.value_name[v]).or_default();
        *n += 1;
        handles[v] = format!("%{}", quoted(&g.value_name[v]));
        if *n > 1 {
            write!(handles[v], "@{n}").unwrap();
        }
    }
    handles
}

fn value_type(g: &Graph, v: ValueId) -> String {
    let dims: Vec<String> = g
        .shape(v)
        .iter()
        .map(|d| match *d {
            Dim::Fixed(n) => n.to_string(),
            Dim::Symbol(s) => symbol_text(g, s),
            Dim::Unknown => "?".to_string(),
        })
        .collect();
    format!("{}[{}]", g.value_dtype[v], dims.join(","))
}

fn symbol_text(g: &Graph, s: SymbolId) -> String {
    let name = &g.symbols[s];
    match g.symbols.def(s) {
        // A symbol must not look like a number.
        SymbolDef::Free if name.starts_with(|c: char| c.is_ascii_digit()) => quote(name),
        SymbolDef::Free => quoted(name),
        SymbolDef::Unknown => format!("?{}", quote(name)),
        def => format!("({})", g.symbols.text_of(def)),
    }
}

fn const_text(g: &Graph, v: ValueId, large: &mut Large<'_>) -> String {
    if let Large::Elsewhere(blobs) = large
        && let Some(bytes) =
            g.const_bytes(v).filter(|b| b.len() > INLINE_ELEMENTS_MAX * g.value_dtype[v].size())
    {
        blobs.push((g.value_dtype[v], bytes.clone()));
        return format!("blob {}", blobs.len() - 1);
    }
    let Some(t) = g.const_tensor(v) else { return "invalid".to_string() };
    if t.len() <= INLINE_ELEMENTS_MAX {
        let elements: Vec<String> = match &t.elements {
            Elements::F32(x) => x.iter().map(|&x| f32_text(x)).collect(),
            Elements::I64(x) => x.iter().map(|x| x.to_string()).collect(),
            Elements::I32(x) => x.iter().map(|x| x.to_string()).collect(),
            Elements::U8(x) | Elements::Bool(x) => x.iter().map(|x| x.to_string()).collect(),
            Elements::I8(x) => x.iter().map(|x| x.to_string()).collect(),
        };
        return format!("{{{}}}", elements.join(", "));
    }
    if let Large::InFull = large {
        let mut hex = String::with_capacity(4 + 2 * t.bytes().len());
        hex.push_str("hex ");
        for &b in t.bytes() {
            hex.push(HEX[usize::from(b >> 4)] as char);
            hex.push(HEX[usize::from(b & 15)] as char);
        }
        return hex;
    }
    let nonzero = t.bytes().chunks_exact(t.dtype().size()).filter(|e| e.iter().any(|&b| b != 0)).count();
    format!("brief {:016x} nonzero {nonzero}/{}", fnv64(t.bytes()), t.len())
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// FNV-1a, 64 bits (Fowler, Noll, Vo): tells constants apart in golden files.
fn fnv64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-')
}

/// The name itself where it is plain, else in quotes.
fn quoted(name: &str) -> String {
    if !name.is_empty() && name != "_" && name.chars().all(is_plain) { name.to_string() } else { quote(name) }
}

pub(crate) fn quote(s: &str) -> String {
    let mut out = String::from('"');
    for c in s.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() || c == '\u{2028}' || c == '\u{2029}' => {
                write!(out, "\\u{{{:x}}}", c as u32).unwrap()
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
