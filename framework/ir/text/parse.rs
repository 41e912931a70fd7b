//! Reading the text form: line by line, with a cursor over each.

use super::attributes::{Read, attr_from, f32_from};
use super::{is_plain, value_type};
use crate::error::{Error, Result};
use crate::flow::BODIES_DEEP_MAX;
use crate::graph::Graph;
use crate::ids::ValueId;
use crate::op::{Attr, OpKind};
use crate::symbols::{Scope, SymbolDef};
use crate::tensor::{DType, Dim, Tensor, element_count};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;

/// The longest text that [`parse`] reads.
pub const TEXT_BYTES_MAX: usize = 1 << 30;
/// The most lines, and so the most ops, that [`parse`] reads.
pub const TEXT_LINES_MAX: usize = 1 << 20;
/// The most distinct symbols that [`parse`] reads.
pub const TEXT_SYMBOLS_MAX: usize = crate::symbols::SYMBOLS_MAX;
/// The most results of one op that [`parse`] reads.
const OP_OUTPUTS_MAX: usize = 256;
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
    let mut parser = Parser { g: Graph::new(""), values: HashMap::new(), outer: Vec::new(), blobs };
    for (i, line) in text.lines().enumerate() {
        let fail = |why: String| Error::Text { line: i + 1, why };
        if i >= TEXT_LINES_MAX {
            return Err(fail(format!("more than {TEXT_LINES_MAX} lines")));
        }
        parser.line(line.trim()).map_err(fail)?;
    }
    if !parser.outer.is_empty() {
        let why = "a body has no 'end'".to_string();
        return Err(Error::Text { line: text.lines().count().max(1), why });
    }
    crate::verify::verify(&parser.g)?;
    Ok(parser.g)
}

struct Parser<'a> {
    g: Graph,
    blobs: &'a [Bytes],
    /// All values of a name, in the order of the text.
    values: Names,
    /// The graphs that the present one lies in, and their values.
    outer: Vec<(Graph, Names)>,
}

type Names = HashMap<String, Vec<ValueId>>;

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
            "body" => {
                let (number, name) = (c.plain(), c.name()?.0);
                if number.parse() != Ok(self.g.bodies.len()) {
                    return Err(format!("'{number}' must be {}: bodies count up", self.g.bodies.len()));
                }
                if self.outer.len() >= BODIES_DEEP_MAX {
                    return Err(format!("graphs lie within graphs deeper than {BODIES_DEEP_MAX}"));
                }
                let outer = std::mem::replace(&mut self.g, Graph::new(&name));
                self.outer.push((outer, std::mem::take(&mut self.values)));
            }
            "end" => {
                let (outer, values) = self.outer.pop().ok_or("'end' ends no body")?;
                let body = std::mem::replace(&mut self.g, outer);
                self.g.bodies.push(Arc::new(body));
                self.values = values;
            }
            "symbol" => {
                if self.g.symbols.len() >= TEXT_SYMBOLS_MAX {
                    return Err(format!("at most {TEXT_SYMBOLS_MAX} symbols are supported"));
                }
                let name = c.name()?.0;
                self.g.symbol(&name);
            }
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
                    "a line begins with graph, meta, symbol, body, end, input, const, output or %, not '{word}'"
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
