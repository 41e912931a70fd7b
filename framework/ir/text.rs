//! The text form of a graph: one line per input, constant, op and output.
//!
//! ```text
//! graph resnet20
//! meta "recipe" "prune 90 %"
//! input %input: f32[batch,1,28,28]
//! const %conv1.weight: f32[16,1,3,3] = brief 1f83d9abfb41bd6b nonzero 14/144
//! const %shape: i64[2] = {0, -1}
//! %c: f32[batch,16,14,14] = Conv(%input, %conv1.weight) kernel=[3,3] stride=[2,2] pads=[1,1,1,1]  # conv1
//! output %c
//! ```
//!
//! Names with other characters than letters, digits, `_ . / -` stand in double quotes. Values of one name are told
//! apart by `@2`, `@3`, in the order of the text; an absent input is `_`; attributes that have their usual value
//! are left out; a line that begins with `#` is a comment. Small constants are printed in decimal (f32 bit for bit);
//! larger ones in full as `hex` of their little-endian bytes ([`print_full`], which [`parse`] reads back), or
//! in brief as a hash and a density ([`print()`]), for people and golden files, or as the number of a `blob` that is kept
//! elsewhere ([`print_with_blobs`]).

use crate::error::{Error, Result};
use crate::graph::{Def, Graph};
use crate::ids::{IdVec, SymbolId, ValueId};
use crate::op::*;
use crate::params::{Params, Usual, params_of};
use crate::symbols::{Scope, SymbolDef};
use crate::tensor::{DType, Dim, Elements, Tensor, element_count};
use bytes::Bytes;
use std::collections::HashMap;
use std::fmt::Write;

/// The longest text that [`parse`] reads.
pub const TEXT_BYTES_MAX: usize = 1 << 30;
/// The most lines, and so the most ops, that [`parse`] reads.
pub const TEXT_LINES_MAX: usize = 1 << 20;
/// The most distinct symbols that [`parse`] reads.
pub const TEXT_SYMBOLS_MAX: usize = crate::symbols::SYMBOLS_MAX;
/// The most results of one op that [`parse`] reads.
const OP_OUTPUTS_MAX: usize = 256;
/// Constants of up to this many elements are printed in decimal.
const INLINE_ELEMENTS_MAX: usize = 16;

// ---- printing --------------------------------------------------------------------------------------

/// The text with large constants in brief. The graph must be valid.
pub fn print(g: &Graph) -> String {
    print_with(g, &mut Large::InBrief)
}

/// The text with every byte of every constant; `parse(&print_full(g))` is `g` without its dead rows.
pub fn print_full(g: &Graph) -> String {
    print_with(g, &mut Large::InFull)
}

/// The text without the bytes of large constants: `blob 3` stands for those of the fourth value of the list, for
/// [`parse_with_blobs`].
pub fn print_with_blobs(g: &Graph) -> (String, Vec<ValueId>) {
    let mut blobs = Vec::new();
    let text = print_with(g, &mut Large::Elsewhere(&mut blobs));
    (text, blobs)
}

/// How large constants are printed.
enum Large<'a> {
    InFull,
    InBrief,
    /// By number; the list grows.
    Elsewhere(&'a mut Vec<ValueId>),
}

fn print_with(g: &Graph, large: &mut Large<'_>) -> String {
    let consts = live_consts(g);
    let handles = handles(g, &consts);
    let mut out = format!("graph {}\n", quoted(&g.name));
    for (key, value) in &g.metadata {
        writeln!(out, "meta {} {}", quote(key), quote(value)).unwrap();
    }
    for &v in &g.inputs {
        writeln!(out, "input {}: {}", handles[v], value_type(g, v)).unwrap();
    }
    for &v in &consts {
        let elements = const_text(g, v, large);
        writeln!(out, "const {}: {} = {elements}", handles[v], value_type(g, v)).unwrap();
    }
    for &op in &g.order {
        let results: Vec<String> =
            g.outputs_of(op).iter().map(|&v| format!("{}: {}", handles[v], value_type(g, v))).collect();
        let operands: Vec<&str> =
            g.inputs_of(op).iter().map(|&v| if v.is_none() { "_" } else { handles[v].as_str() }).collect();
        write!(out, "{} = {}({})", results.join(", "), g.op_kind[op].name(), operands.join(", ")).unwrap();
        for (key, value) in attr_fields(g.op_kind[op], &g.op_attr[op]) {
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
    out
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
        && g.const_bytes(v).is_some_and(|bytes| bytes.len() > INLINE_ELEMENTS_MAX * g.value_dtype[v].size())
    {
        blobs.push(v);
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

/// The shortest decimal that reads back as the same bits; not a number as its bits.
fn f32_text(x: f32) -> String {
    if x.is_nan() { format!("0x{:08x}", x.to_bits()) } else { format!("{x:?}") }
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

// ---- attributes ------------------------------------------------------------------------------------

type Fields = Vec<(&'static str, String)>;

fn list<T: ToString>(items: &[T]) -> String {
    format!("[{}]", items.iter().map(T::to_string).collect::<Vec<_>>().join(","))
}

/// What is printed of an attribute; [`attr_from`] reads the same fields.
fn attr_fields(kind: OpKind, attr: &Attr) -> Fields {
    let mut f = Fields::new();
    match attr {
        Attr::None => {}
        Attr::Conv(c) => conv_fields(&mut f, c),
        Attr::Pool(p) => {
            window_fields(&mut f, &p.window);
            flag(&mut f, "ceil_mode", p.ceil_mode);
            flag(&mut f, "count_include_pad", p.count_include_pad);
        }
        Attr::Gemm(g) => {
            unless(&mut f, "alpha", f32_text(g.alpha), g.alpha.to_bits() == 1f32.to_bits());
            unless(&mut f, "beta", f32_text(g.beta), g.beta.to_bits() == 1f32.to_bits());
            flag(&mut f, "trans_a", g.trans_a);
            flag(&mut f, "trans_b", g.trans_b);
        }
        Attr::Clip(c) => f.extend([("min", f32_text(c.min)), ("max", f32_text(c.max))]),
        Attr::Epsilon(e) => f.push(("epsilon", f32_text(*e))),
        Attr::Axis(a) => f.push(("axis", a.to_string())),
        Attr::Perm(p) => f.push(("perm", list(p.as_slice()))),
        Attr::Reduce(r) => {
            f.push(("axes", list(r.axes.as_slice())));
            flag(&mut f, "keep_dims", r.keep_dims);
        }
        Attr::FusedConv(c) => {
            conv_fields(&mut f, &c.conv);
            unless(&mut f, "min", f32_text(c.clip.min), c.clip.min == f32::NEG_INFINITY);
            unless(&mut f, "max", f32_text(c.clip.max), c.clip.max == f32::INFINITY);
        }
        Attr::QConv(q) => {
            conv_fields(&mut f, &q.conv);
            f.push(("x_zero", q.x_zero.to_string()));
            if let Some(out) = &q.out {
                requant_fields(&mut f, out);
            }
            unless(&mut f, "residual_mult", f32_text(q.residual_mult), q.residual_mult.to_bits() == 0);
            unless(&mut f, "residual_zero", q.residual_zero.to_string(), q.residual_zero == 0);
            if let Some(late) = &q.late {
                f.extend([("late_mult", f32_text(late.mult)), ("late_zero", late.zero.to_string())]);
                f.push(("late_out", list(&[late.out.zero, late.out.lo, late.out.hi])));
            }
        }
        Attr::QGemm(q) => {
            f.push(("x_zero", q.x_zero.to_string()));
            if let Some(out) = &q.out {
                requant_fields(&mut f, out);
            }
        }
        Attr::QAdd(q) => {
            f.extend([("a_mult", f32_text(q.a_mult)), ("a_zero", q.a_zero.to_string())]);
            f.extend([("b_mult", f32_text(q.b_mult)), ("b_zero", q.b_zero.to_string())]);
            requant_fields(&mut f, &q.out);
        }
        Attr::QPool(q) => {
            f.extend([("x_zero", q.x_zero.to_string()), ("mult", f32_text(q.mult))]);
            requant_fields(&mut f, &q.out);
        }
        Attr::Norm(n) => f.extend([("axis", n.axis.to_string()), ("epsilon", f32_text(n.epsilon))]),
        Attr::Cast(dtype) => f.push(("to", dtype.to_string())),
        Attr::Axes(a) => f.push(("axes", list(a.as_slice()))),
        Attr::AddNorm(n) => {
            f.extend([("a_mult", f32_text(n.a.mult)), ("a_zero", n.a.zero.to_string())]);
            f.extend([("b_mult", f32_text(n.b.mult)), ("b_zero", n.b.zero.to_string())]);
            f.extend([("epsilon", f32_text(n.epsilon)), ("y_mult", f32_text(n.y_mult))]);
            flag(&mut f, "keep", n.keep);
            if let Some(out) = &n.out {
                requant_fields(&mut f, out);
            }
        }
        Attr::QAttention(a) => {
            f.extend([("heads", a.heads.to_string()), ("q_zero", a.q_zero.to_string())]);
            f.extend([("k_zero", a.k_zero.to_string()), ("v_zero", a.v_zero.to_string())]);
            f.extend([("score_mult", f32_text(a.score_mult)), ("p_mult", f32_text(a.p_mult))]);
            f.push(("out_mult", f32_text(a.out_mult)));
            requant_fields(&mut f, &a.out);
        }
        Attr::QMul(q) => {
            f.extend([("a_zero", q.a_zero.to_string()), ("b_zero", q.b_zero.to_string())]);
            f.push(("mult", f32_text(q.mult)));
            requant_fields(&mut f, &q.out);
        }
        Attr::Resize(r) => f.push(("scale", list(&r.scale))),
        Attr::Spatial(a) => {
            let usual = SpatialAttr::default();
            let n = usize::from(a.rank).min(3);
            let lists = [
                ("kernel", a.kernel, [u32::MAX; 3]),
                ("stride", a.stride, usual.stride),
                ("dilation", a.dilation, usual.dilation),
                ("before", a.before, usual.before),
                ("after", a.after, usual.after),
                ("output_padding", a.output_padding, usual.output_padding),
            ];
            for (key, sizes, usual) in lists {
                unless(&mut f, key, list(&sizes[..n]), sizes[..n] == usual[..n]);
            }
            unless(&mut f, "group", a.group.to_string(), a.group == usual.group);
            unless(&mut f, "p", a.p.to_string(), a.p == usual.p);
            flag(&mut f, "ceil_mode", a.ceil_mode);
            flag(&mut f, "count_include_pad", a.count_include_pad);
            flag(&mut f, "column_major", a.column_major);
        }
        Attr::Equation(e) => f.push(("equation", quote(e.as_str()))),
        Attr::Params(p) => {
            for (param, &bits) in params_of(kind).iter().zip(&p.bits) {
                unless(&mut f, param.name, param_text(param.usual, bits), bits == param.usual.bits());
            }
        }
    }
    f
}

fn param_text(usual: Usual, bits: i32) -> String {
    match usual {
        Usual::Int(_) => bits.to_string(),
        Usual::Flag(_) => (bits != 0).to_string(),
        Usual::Float(_) => f32_text(f32::from_bits(bits as u32)),
        Usual::Choice(names) => names.get(bits as usize).unwrap_or(&"invalid").to_string(),
    }
}

fn unless(f: &mut Fields, key: &'static str, value: String, usual: bool) {
    if !usual {
        f.push((key, value));
    }
}

fn flag(f: &mut Fields, key: &'static str, on: bool) {
    unless(f, key, "true".to_string(), !on);
}

fn window_fields(f: &mut Fields, w: &Window) {
    f.push(("kernel", list(&w.kernel)));
    unless(f, "stride", list(&w.stride), w.stride == [1, 1]);
    unless(f, "dilation", list(&w.dilation), w.dilation == [1, 1]);
    unless(f, "pads", list(&w.pads), w.pads == [0; 4]);
}

fn conv_fields(f: &mut Fields, c: &ConvAttr) {
    window_fields(f, &c.window);
    unless(f, "group", c.group.to_string(), c.group == 1);
}

fn requant_fields(f: &mut Fields, q: &Requant) {
    f.extend([("zero", q.zero.to_string()), ("lo", q.lo.to_string()), ("hi", q.hi.to_string())]);
}

/// Fields as read; what no attribute takes is an error.
struct Read<'a> {
    fields: Vec<(&'a str, &'a str)>,
}

impl<'a> Read<'a> {
    fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.fields.iter().position(|(k, _)| *k == key)?;
        Some(self.fields.remove(at).1)
    }

    fn number<T: std::str::FromStr>(&mut self, key: &str, usual: Option<T>) -> Result<T, String> {
        match self.take(key) {
            Some(text) => text.parse().map_err(|_| format!("{key}={text} is not a number that fits")),
            None => usual.ok_or_else(|| format!("{key} is missing")),
        }
    }

    fn float(&mut self, key: &str, usual: Option<f32>) -> Result<f32, String> {
        match self.take(key) {
            Some(text) => f32_from(text).ok_or_else(|| format!("{key}={text} is not a number")),
            None => usual.ok_or_else(|| format!("{key} is missing")),
        }
    }

    fn flag(&mut self, key: &str) -> Result<bool, String> {
        match self.take(key) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(text) => Err(format!("{key}={text} must be true or false")),
        }
    }

    fn list<T: std::str::FromStr>(&mut self, key: &str) -> Result<Option<Vec<T>>, String> {
        let Some(text) = self.take(key) else { return Ok(None) };
        let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        let items: Option<Vec<T>> = match inner {
            Some("") => Some(Vec::new()),
            Some(inner) => inner.split(',').map(|t| t.trim().parse().ok()).collect(),
            None => None,
        };
        items.map(Some).ok_or_else(|| format!("{key}={text} must be a list of numbers that fit, as [1,2]"))
    }

    fn array<const N: usize>(&mut self, key: &str, usual: Option<[u32; N]>) -> Result<[u32; N], String> {
        match self.list::<u32>(key)? {
            Some(items) => items.try_into().map_err(|_| format!("{key} must have {N} numbers")),
            None => usual.ok_or_else(|| format!("{key} is missing")),
        }
    }

    fn axes(&mut self, key: &str) -> Result<Axes, String> {
        let items = self.list::<i64>(key)?.ok_or_else(|| format!("{key} is missing"))?;
        Axes::new(&items).ok_or_else(|| format!("{key} must be at most eight small numbers"))
    }

    fn affine(&mut self, mult: &str, zero: &str) -> Result<Affine, String> {
        Ok(Affine { mult: self.float(mult, None)?, zero: self.number(zero, None)? })
    }

    fn window(&mut self) -> Result<Window, String> {
        Ok(Window {
            kernel: self.array("kernel", None)?,
            stride: self.array("stride", Some([1, 1]))?,
            dilation: self.array("dilation", Some([1, 1]))?,
            pads: self.array("pads", Some([0; 4]))?,
        })
    }

    fn conv(&mut self) -> Result<ConvAttr, String> {
        Ok(ConvAttr { window: self.window()?, group: self.number("group", Some(1))? })
    }

    fn requant(&mut self) -> Result<Requant, String> {
        Ok(Requant {
            zero: self.number("zero", None)?,
            lo: self.number("lo", None)?,
            hi: self.number("hi", None)?,
        })
    }

    fn optional_requant(&mut self) -> Result<Option<Requant>, String> {
        if self.fields.iter().any(|(k, _)| *k == "zero") { self.requant().map(Some) } else { Ok(None) }
    }

    fn spatial(&mut self) -> Result<SpatialAttr, String> {
        let kernel = self.list::<u32>("kernel")?.ok_or("kernel is missing")?;
        let n = kernel.len();
        let rank =
            u8::try_from(n).ok().filter(|n| (1..=3).contains(n)).ok_or("kernel must have 1 to 3 numbers")?;
        let mut a = SpatialAttr { rank, ..SpatialAttr::default() };
        a.kernel[..n].copy_from_slice(&kernel);
        for (key, slots) in [
            ("stride", &mut a.stride),
            ("dilation", &mut a.dilation),
            ("before", &mut a.before),
            ("after", &mut a.after),
            ("output_padding", &mut a.output_padding),
        ] {
            match self.list::<u32>(key)? {
                Some(sizes) if sizes.len() == n => slots[..n].copy_from_slice(&sizes),
                Some(_) => return Err(format!("{key} must have {n} numbers")),
                None => {}
            }
        }
        a.group = self.number("group", Some(a.group))?;
        a.p = self.number("p", Some(a.p))?;
        a.ceil_mode = self.flag("ceil_mode")?;
        a.count_include_pad = self.flag("count_include_pad")?;
        a.column_major = self.flag("column_major")?;
        Ok(a)
    }

    fn params(&mut self, kind: OpKind) -> Result<Params, String> {
        let mut params = Params::usual(kind);
        for (param, slot) in params_of(kind).iter().zip(&mut params.bits) {
            let Some(text) = self.take(param.name) else { continue };
            let bits = match param.usual {
                Usual::Int(_) => text.parse().ok(),
                Usual::Flag(_) => text.parse().ok().map(i32::from as fn(bool) -> i32),
                Usual::Float(_) => f32_from(text).map(|v| v.to_bits() as i32),
                Usual::Choice(names) => names.iter().position(|n| *n == text).map(|i| i as i32),
            };
            *slot = bits.ok_or_else(|| format!("{}={text} is not one of its values", param.name))?;
        }
        Ok(params)
    }

    fn late_add(&mut self) -> Result<Option<LateAdd>, String> {
        let Some(out) = self.list::<i32>("late_out")? else { return Ok(None) };
        let [zero, lo, hi] = out[..] else { return Err("late_out must have 3 numbers".to_string()) };
        let (mult, own_zero) = (self.float("late_mult", None)?, self.number("late_zero", None)?);
        Ok(Some(LateAdd { mult, zero: own_zero, out: Requant { zero, lo, hi } }))
    }
}

/// The attribute of an op of `kind` from its fields.
fn attr_from(kind: OpKind, r: &mut Read<'_>) -> Result<Attr, String> {
    Ok(match kind.row().attr {
        "Params" => Attr::Params(r.params(kind)?),
        "Spatial" => Attr::Spatial(r.spatial()?),
        "Equation" => {
            let text = r.take("equation").and_then(|t| t.strip_prefix('"')?.strip_suffix('"'));
            let equation = text.and_then(Equation::new);
            Attr::Equation(equation.ok_or("equation must be a short list of letters in double quotes")?)
        }
        "Conv" => Attr::Conv(r.conv()?),
        "Pool" => Attr::Pool(PoolAttr {
            window: r.window()?,
            ceil_mode: r.flag("ceil_mode")?,
            count_include_pad: r.flag("count_include_pad")?,
        }),
        "Gemm" => Attr::Gemm(GemmAttr {
            alpha: r.float("alpha", Some(1.0))?,
            beta: r.float("beta", Some(1.0))?,
            trans_a: r.flag("trans_a")?,
            trans_b: r.flag("trans_b")?,
        }),
        "Clip" => Attr::Clip(ClipAttr { min: r.float("min", None)?, max: r.float("max", None)? }),
        "Epsilon" => Attr::Epsilon(r.float("epsilon", None)?),
        "Axis" => Attr::Axis(r.number("axis", None)?),
        "Perm" => Attr::Perm(r.axes("perm")?),
        "Reduce" => Attr::Reduce(ReduceAttr { axes: r.axes("axes")?, keep_dims: r.flag("keep_dims")? }),
        "FusedConv" => Attr::FusedConv(FusedConvAttr {
            conv: r.conv()?,
            clip: ClipAttr {
                min: r.float("min", Some(f32::NEG_INFINITY))?,
                max: r.float("max", Some(f32::INFINITY))?,
            },
        }),
        "QConv" => Attr::QConv(QConvAttr {
            conv: r.conv()?,
            x_zero: r.number("x_zero", None)?,
            out: r.optional_requant()?,
            residual_mult: r.float("residual_mult", Some(0.0))?,
            residual_zero: r.number("residual_zero", Some(0))?,
            late: r.late_add()?,
        }),
        "QGemm" => Attr::QGemm(QGemmAttr { x_zero: r.number("x_zero", None)?, out: r.optional_requant()? }),
        "QAdd" => Attr::QAdd(QAddAttr {
            a_mult: r.float("a_mult", None)?,
            a_zero: r.number("a_zero", None)?,
            b_mult: r.float("b_mult", None)?,
            b_zero: r.number("b_zero", None)?,
            out: r.requant()?,
        }),
        "QPool" => Attr::QPool(QPoolAttr {
            x_zero: r.number("x_zero", None)?,
            mult: r.float("mult", None)?,
            out: r.requant()?,
        }),
        "Norm" => Attr::Norm(NormAttr { axis: r.number("axis", None)?, epsilon: r.float("epsilon", None)? }),
        "Cast" => {
            let name = r.take("to").ok_or("to is missing")?;
            let dtype = DType::ALL.into_iter().find(|d| d.name() == name);
            Attr::Cast(dtype.ok_or_else(|| format!("to={name} is no element type"))?)
        }
        "Axes" => Attr::Axes(r.axes("axes")?),
        "AddNorm" => {
            let (a, b) = (r.affine("a_mult", "a_zero")?, r.affine("b_mult", "b_zero")?);
            let (epsilon, y_mult) = (r.float("epsilon", None)?, r.float("y_mult", None)?);
            let keep = r.flag("keep")?;
            let has_out = r.fields.iter().any(|(k, _)| *k == "zero");
            let out = if has_out { Some(r.requant()?) } else { None };
            Attr::AddNorm(AddNormAttr { a, b, epsilon, y_mult, out, keep })
        }
        "QAttention" => Attr::QAttention(QAttentionAttr {
            heads: r.number("heads", None)?,
            q_zero: r.number("q_zero", None)?,
            k_zero: r.number("k_zero", None)?,
            v_zero: r.number("v_zero", None)?,
            score_mult: r.float("score_mult", None)?,
            p_mult: r.float("p_mult", None)?,
            out_mult: r.float("out_mult", None)?,
            out: r.requant()?,
        }),
        "QMul" => Attr::QMul(QMulAttr {
            a_zero: r.number("a_zero", None)?,
            b_zero: r.number("b_zero", None)?,
            mult: r.float("mult", None)?,
            out: r.requant()?,
        }),
        "Resize" => Attr::Resize(ResizeAttr { scale: r.array("scale", None)? }),
        _ => Attr::None,
    })
}

// ---- parsing ---------------------------------------------------------------------------------------

/// Reads a graph. The text may come from anywhere: it is checked line by line, shapes are inferred and must equal
/// what is written, and the result has passed [`crate::verify::verify`].
///
/// # Errors
/// [`Error::Text`] with the number of the line, or what the verifier finds.
pub fn parse(text: &str) -> Result<Graph> {
    parse_with_blobs(text, &[])
}

/// As [`parse`], where `blob 3` stands for the fourth of these bytes. They are shared, not copied.
pub fn parse_with_blobs(text: &str, blobs: &[Bytes]) -> Result<Graph> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Error::Text { line: 1, why: format!("the text is longer than {TEXT_BYTES_MAX} bytes") });
    }
    let mut parser = Parser { g: Graph::new(""), values: HashMap::new(), blobs };
    for (i, line) in text.lines().enumerate() {
        let fail = |why: String| Error::Text { line: i + 1, why };
        if i >= TEXT_LINES_MAX {
            return Err(fail(format!("more than {TEXT_LINES_MAX} lines")));
        }
        parser.line(line.trim()).map_err(fail)?;
    }
    crate::verify::verify(&parser.g)?;
    Ok(parser.g)
}

struct Parser<'a> {
    g: Graph,
    blobs: &'a [Bytes],
    /// All values of a name, in the order of the text.
    values: HashMap<String, Vec<ValueId>>,
}

struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn eat(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        let found = self.rest.strip_prefix(token);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) {
            Ok(())
        } else {
            Err(format!("expected '{token}' before '{}'", start_of(self.rest)))
        }
    }

    fn plain(&mut self) -> &'a str {
        self.rest = self.rest.trim_start();
        let end = self.rest.find(|c| !is_plain(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    /// A plain or a quoted name; and whether it was quoted.
    fn name(&mut self) -> Result<(String, bool), String> {
        if !self.eat("\"") {
            let word = self.plain();
            let here = start_of(self.rest);
            return if word.is_empty() {
                Err(format!("expected a name before '{here}'"))
            } else {
                Ok((word.into(), false))
            };
        }
        let mut out = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[i + 1..];
                    return Ok((out, true));
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('u') => {
                        let code: String = chars
                            .by_ref()
                            .map(|(_, c)| c)
                            .skip(1)
                            .take_while(|&c| c != '}')
                            .take(7)
                            .collect();
                        let c = u32::from_str_radix(&code, 16).ok().and_then(char::from_u32);
                        out.push(
                            c.ok_or("an escape \\u{..} must name a character by its hexadecimal number")?,
                        );
                    }
                    Some(c @ ('"' | '\\')) => out.push(c),
                    _ => return Err("unknown escape in a quoted name: use \\\" \\\\ or \\u{..}".to_string()),
                },
                c => out.push(c),
            }
        }
        Err("a quoted name has no closing quote".to_string())
    }

    fn end(&mut self) -> Result<(), String> {
        let rest = self.rest.trim();
        if rest.is_empty() { Ok(()) } else { Err(format!("unexpected '{}'", start_of(rest))) }
    }
}

pub(crate) fn start_of(text: &str) -> String {
    text.chars().take(24).collect()
}

/// The quoted name at the start of `text`, and what follows it.
pub(crate) fn quoted_name(text: &str) -> Result<(String, &str), String> {
    let mut c = Cursor { rest: text };
    let (name, _) = c.name()?;
    Ok((name, c.rest))
}

fn f32_from(text: &str) -> Option<f32> {
    match text.strip_prefix("0x") {
        Some(bits) => u32::from_str_radix(bits, 16).ok().map(f32::from_bits),
        None => text.parse().ok(),
    }
}

impl Parser<'_> {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let mut c = Cursor { rest: line };
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        if line.starts_with('%') {
            return self.op(&mut c);
        }
        match c.plain() {
            "graph" => self.g.name = c.name()?.0,
            "meta" => {
                let (key, value) = (c.name()?.0, c.name()?.0);
                self.g.metadata.push((key, value));
            }
            "input" => {
                let name = self.definition(&mut c)?;
                let (dtype, dims) = self.value_type(&mut c)?;
                let v = self.g.add_input(&name, dtype, &dims);
                self.values.entry(name).or_default().push(v);
            }
            "const" => self.constant(&mut c)?,
            "output" => {
                let v = self.operand(&mut c)?;
                self.g.outputs.push(v);
            }
            word => {
                return Err(format!(
                    "a line begins with graph, meta, input, const, output or %, not '{word}'"
                ));
            }
        }
        c.end()
    }

    /// `%name` or `%name@2`: the name and which one of it, from 0.
    fn handle(&self, c: &mut Cursor<'_>) -> Result<(String, usize), String> {
        c.expect("%")?;
        let (name, _) = c.name()?;
        if !c.rest.starts_with('@') {
            return Ok((name, 0));
        }
        c.expect("@")?;
        let number: usize = c.plain().parse().map_err(|_| "'@' takes a number".to_string())?;
        Ok((name, number.checked_sub(1).ok_or("'@' counts from 1")?))
    }

    /// The left side of a line that makes a value, up to the colon. Values of one name must count up.
    fn definition(&self, c: &mut Cursor<'_>) -> Result<String, String> {
        let (name, number) = self.handle(c)?;
        c.expect(":")?;
        let next = self.values.get(&name).map_or(0, Vec::len);
        if number != next {
            return Err(format!(
                "'%{name}' is here for the {}. time: write it as '%{name}@{}'",
                next + 1,
                next + 1
            ));
        }
        Ok(name)
    }

    fn operand(&self, c: &mut Cursor<'_>) -> Result<ValueId, String> {
        let (name, number) = self.handle(c)?;
        let value = self.values.get(&name).and_then(|v| v.get(number));
        value
            .copied()
            .ok_or_else(|| format!("'%{name}' (number {}) is not made by any line above", number + 1))
    }

    fn value_type(&mut self, c: &mut Cursor<'_>) -> Result<(DType, Vec<Dim>), String> {
        let word = c.plain();
        let dtype = DType::ALL.into_iter().find(|d| d.name() == word);
        let dtype =
            dtype.ok_or_else(|| format!("'{word}' is no element type: use f32, i64, i32, u8, i8 or bool"))?;
        c.expect("[")?;
        let mut dims = Vec::new();
        while !c.eat("]") {
            if !dims.is_empty() {
                c.expect(",")?;
            }
            if let Some(dim) = self.expression(c)? {
                dims.push(dim);
                continue;
            }
            let (name, quoted) = c.name()?;
            if !quoted && name.starts_with(|c: char| c.is_ascii_digit()) {
                dims.push(Dim::Fixed(
                    name.parse().map_err(|_| format!("'{name}' is no dimension that fits"))?,
                ));
            } else {
                dims.push(Dim::Symbol(self.g.symbol(&name)));
            }
            if dims.len() > crate::shape::RANK_MAX || self.g.symbols.len() > TEXT_SYMBOLS_MAX {
                return Err(format!(
                    "at most {} dimensions and {TEXT_SYMBOLS_MAX} symbols are supported",
                    crate::shape::RANK_MAX
                ));
            }
        }
        crate::shape::check_dims(&dims)?;
        Ok((dtype, dims))
    }

    /// A dimension that is defined by others, `(h+1)`, or that data decide, `?"name"`.
    fn expression(&mut self, c: &mut Cursor<'_>) -> Result<Option<Dim>, String> {
        if c.eat("?") {
            let (name, _) = c.name()?;
            return Ok(Some(Dim::Symbol(self.g.symbols.unknown(&name))));
        }
        c.rest = c.rest.trim_start();
        if !c.rest.starts_with('(') {
            return Ok(None);
        }
        let scope = Scope::new(&self.g.symbols);
        let find = |name: &str, unknown: bool| {
            let found = self.g.symbols.named(name)?;
            let is = self.g.symbols.def(found);
            (*is == if unknown { SymbolDef::Unknown } else { SymbolDef::Free }).then_some(found)
        };
        let (e, rest) = crate::symbols::text::parse(c.rest, &scope, &find)?;
        c.rest = rest;
        let new = scope.into_new();
        self.g.symbols.adopt(new);
        let dim = e.dim().filter(|d| *d != Dim::Unknown);
        Ok(Some(dim.ok_or("an expression is negative, or passes the limits on expressions")?))
    }

    fn constant(&mut self, c: &mut Cursor<'_>) -> Result<(), String> {
        let name = self.definition(c)?;
        let (dtype, dims) = self.value_type(c)?;
        let dims: Option<Vec<usize>> =
            dims.iter().map(|d| d.fixed().and_then(|n| usize::try_from(n).ok())).collect();
        let dims = dims.ok_or("a constant's dimensions must be numbers")?;
        c.expect("=")?;
        // Every element is written out or given, so the line is as long as what is allocated.
        let bytes: Bytes = if c.eat("{") {
            let (inner, rest) = c.rest.split_once('}').ok_or("a list of elements has no closing '}'")?;
            c.rest = rest;
            elements_from(dtype, inner)?.into()
        } else if c.eat("hex") {
            let digits = c.plain();
            hex_bytes(digits).ok_or("hex takes pairs of hexadecimal digits")?.into()
        } else if c.eat("blob") {
            let number = c.plain();
            let blob = number.parse().ok().and_then(|i: usize| self.blobs.get(i));
            blob.ok_or_else(|| format!("there is no blob {number}"))?.clone()
        } else if c.eat("brief") {
            return Err("this text lacks the elements of its constants: print the graph in full".to_string());
        } else {
            return Err("a constant's elements are written {1, 2} or hex 0a0b".to_string());
        };
        let want = element_count(&dims).and_then(|n| n.checked_mul(dtype.size()));
        if want != Some(bytes.len()) {
            return Err(format!("{} bytes do not fill {dtype}{dims:?}", bytes.len()));
        }
        let v = self.g.add_const(&name, dtype, &dims, bytes).map_err(|e| e.to_string())?;
        self.values.entry(name).or_default().push(v);
        Ok(())
    }

    fn op(&mut self, c: &mut Cursor<'_>) -> Result<(), String> {
        let (mut names, mut types) = (Vec::<String>::new(), Vec::new());
        while names.is_empty() || c.eat(",") {
            let name = self.definition(c)?;
            if names.contains(&name) || names.len() >= OP_OUTPUTS_MAX {
                return Err(format!("'%{name}' is made twice by one line, or is one of too many results"));
            }
            names.push(name);
            types.push(self.value_type(c)?);
        }
        c.expect("=")?;
        let word = c.plain();
        let kind = OpKind::from_name(word).ok_or_else(|| format!("'{word}' is no kind of op"))?;
        c.expect("(")?;
        let mut inputs = Vec::new();
        while !c.eat(")") {
            if !inputs.is_empty() {
                c.expect(",")?;
            }
            inputs.push(if c.eat("_") { ValueId::NONE } else { self.operand(c)? });
        }
        let (attr, op_name) = attr_and_name(kind, c)?;
        let outputs: Vec<&str> = names.iter().map(String::as_str).collect();
        let known: Vec<&[Dim]> = types.iter().map(|(_, dims)| dims.as_slice()).collect();
        let made = self.g.insert_op_with(kind, attr, &op_name, &inputs, &outputs, &known);
        let op = made.map_err(|e| e.to_string())?;
        self.g.order.push(op);
        let made = self.g.outputs_of(op).to_vec();
        for ((&v, (dtype, dims)), name) in made.iter().zip(&types).zip(names) {
            if self.g.value_dtype[v] != *dtype || self.g.shape(v) != dims {
                let inferred = value_type(&self.g, v);
                return Err(format!("'%{name}' is not what is written: {} makes {inferred}", kind.name()));
            }
            self.values.entry(name).or_default().push(v);
        }
        c.end()
    }
}

/// The tail of an op's line: `key=value` fields, then `# name`.
fn attr_and_name(kind: OpKind, c: &mut Cursor<'_>) -> Result<(Attr, String), String> {
    let mut read = Read { fields: Vec::new() };
    let mut name = String::new();
    loop {
        if c.eat("#") {
            name = c.name()?.0;
            break;
        }
        let key = c.plain();
        if key.is_empty() {
            break;
        }
        c.expect("=")?;
        let end = c.rest.find(char::is_whitespace).unwrap_or(c.rest.len());
        let (value, rest) = c.rest.split_at(end);
        c.rest = rest;
        if read.fields.len() >= 32 || read.fields.iter().any(|(k, _)| *k == key) {
            return Err(format!("{key} is given twice, or there are too many fields"));
        }
        read.fields.push((key, value));
    }
    let attr = attr_from(kind, &mut read)?;
    match read.fields.first() {
        Some((key, _)) => Err(format!("{} has no field '{key}'", kind.name())),
        None => Ok((attr, name)),
    }
}

fn elements_from(dtype: DType, text: &str) -> Result<Vec<u8>, String> {
    fn all<T>(words: &[&str], f: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
        words.iter().map(|w| f(w).ok_or_else(|| format!("'{w}' is no element of this type"))).collect()
    }
    let words: Vec<&str> =
        if text.trim().is_empty() { Vec::new() } else { text.split(',').map(str::trim).collect() };
    let n = [words.len()];
    let t = match dtype {
        DType::F32 => Tensor::from_f32(&n, all(&words, f32_from)?),
        DType::I64 => Tensor::from_i64(&n, all(&words, |w| w.parse().ok())?),
        DType::I32 => Tensor::from_i32(&n, all(&words, |w| w.parse().ok())?),
        DType::U8 => Tensor::from_u8(&n, all(&words, |w| w.parse().ok())?),
        DType::Bool => Tensor::from_bool(&n, all(&words, |w| w.parse().ok())?),
        DType::I8 => Tensor::from_i8(&n, all(&words, |w| w.parse().ok())?),
    };
    Ok(t.bytes().to_vec())
}

fn hex_bytes(digits: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|p| Some(digit(p[0])? << 4 | digit(*p.get(1)?)?)).collect()
}
