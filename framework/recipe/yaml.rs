//! YAML text to one flat table of nodes, each with its line and column.
//!
//! Syntax (indentation, quoting, anchors) comes from the event parser `granit-parser`; what a plain scalar *means*
//! is YAML 1.1 as PyYAML reads it, because that is what recipes were written against: `8e-5` is text,
//! `yes` is true, `2:4` is 124, `010` is 8.
//!
//! ```text
//! rows    [ pos | tag | data | origin ]     data of a list or map = a range of `items`
//! items   [ row, row, ... ]                 a map stores key, value, key, value
//! ```
//! An alias becomes a row of its own that shares the data of the anchored row, so aliases cost no memory;
//! `NODES_MAX` bounds the tree that they would unfold to.

#![deny(
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]

use crate::diagnostic::{Diagnostic, Pos, did_you_mean};
use granit_parser::{ErrorKind, Event, Options, Parser, ScalarStyle, Span, Tag};

use crate::yaml_scalar::{cut, int_to_float, resolve_plain, show_float, show_text};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

/// Largest recipe text, in bytes.
pub const RECIPE_BYTES_MAX: usize = 1 << 20;
/// Deepest nesting of lists and maps, aliases followed.
pub const YAML_DEPTH_MAX: usize = 64;
/// Most nodes in the tree that the text unfolds to, aliases followed.
pub const NODES_MAX: u32 = 1 << 18;

/// A row of a [`Document`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct NodeId(u32);

impl NodeId {
    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

/// What a node holds. `Text` is a range of the document's text pool; `List` and `Map` are ranges of its items.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Data {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Slice),
    List(Slice),
    Map(Slice),
    /// The plain key `<<`: gone once its map is closed.
    Merge,
}

/// Start and end in one of the document's pools.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slice {
    start: u32,
    end: u32,
}

impl Slice {
    fn range(self) -> Range<usize> {
        index(self.start)..index(self.end)
    }
}

#[derive(Clone, Copy)]
struct Row {
    pos: Pos,
    /// Name after the `!` of a local tag, such as `GMPruningModifier`.
    tag: Option<Slice>,
    data: Data,
    /// The anchored row that this row is an alias of; otherwise the row itself.
    origin: NodeId,
    /// Nodes in the unfolded tree below and including this row.
    size: u32,
    /// Levels of that tree.
    height: u32,
}

/// A parsed YAML document. Rows stand in the order of the text, so a node's own descendants follow it.
#[derive(Clone)]
pub struct Document {
    rows: Vec<Row>,
    items: Vec<NodeId>,
    text: String,
    root: NodeId,
}

impl Document {
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// All rows in the order of the text.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..to_u32(self.rows.len())).map(NodeId)
    }

    pub fn pos(&self, id: NodeId) -> Pos {
        self.row(id).pos
    }

    pub fn data(&self, id: NodeId) -> Data {
        self.row(id).data
    }

    /// The name after `!`, where the node has a local tag.
    pub fn tag(&self, id: NodeId) -> Option<&str> {
        self.row(id).tag.map(|slice| self.str(slice))
    }

    /// The text of a text node.
    pub fn text(&self, id: NodeId) -> Option<&str> {
        match self.data(id) {
            Data::Text(slice) => Some(self.str(slice)),
            _ => None,
        }
    }

    /// The elements of a list; empty for anything else.
    pub fn list(&self, id: NodeId) -> &[NodeId] {
        match self.data(id) {
            Data::List(slice) => self.items.get(slice.range()).unwrap_or_default(),
            _ => &[],
        }
    }

    /// The (key, value) pairs of a map; none for anything else.
    pub fn map(&self, id: NodeId) -> impl Iterator<Item = (NodeId, NodeId)> {
        let items = match self.data(id) {
            Data::Map(slice) => self.items.get(slice.range()).unwrap_or_default(),
            _ => &[],
        };
        items.as_chunks::<2>().0.iter().map(|&[key, value]| (key, value))
    }

    fn is_scalar(&self, id: NodeId) -> bool {
        !matches!(self.data(id), Data::List(_) | Data::Map(_))
    }

    pub fn is_map(&self, id: NodeId) -> bool {
        matches!(self.data(id), Data::Map(_))
    }

    /// What the node says on one line: scalars as YAML 1.1 would read them back, lists and maps in flow form.
    pub fn show(&self, id: NodeId) -> String {
        match self.data(id) {
            Data::Null => "null".to_owned(),
            Data::Bool(value) => value.to_string(),
            Data::Int(value) => value.to_string(),
            Data::Float(value) => show_float(value),
            Data::Text(slice) => show_text(self.str(slice)),
            Data::Merge => "<<".to_owned(),
            Data::List(_) => {
                let parts: Vec<String> = self.list(id).iter().map(|&item| self.show(item)).collect();
                format!("[{}]", parts.join(", "))
            }
            Data::Map(_) => {
                let parts: Vec<String> = self
                    .map(id)
                    .map(|(key, value)| format!("{}: {}", self.show(key), self.show(value)))
                    .collect();
                format!("{{{}}}", parts.join(", "))
            }
        }
    }

    /// [`Document::show`] for a message, cut to a line.
    pub(crate) fn brief(&self, id: NodeId) -> String {
        cut(&self.show(id))
    }

    /// Replaces what one node holds (an evaluated expression). Positions stay.
    pub(crate) fn set(&mut self, id: NodeId, data: Data) {
        if let Some(row) = self.rows.get_mut(index(id.0)) {
            row.data = data;
        }
    }

    /// Replaces what a node holds, and what every alias of it holds.
    pub(crate) fn set_with_aliases(&mut self, id: NodeId, data: Data) {
        let origin = self.row(id).origin;
        for row in self.rows.iter_mut().filter(|row| row.origin == origin) {
            row.data = data;
        }
    }

    /// A new row, outside of the tree, for a scalar written plainly.
    pub(crate) fn add_scalar(&mut self, text: &str) -> NodeId {
        let data = self.scalar(text);
        let id = NodeId(to_u32(self.rows.len()));
        self.rows.push(Row { pos: Pos::default(), tag: None, data, origin: id, size: 1, height: 1 });
        id
    }

    /// Takes another document's rows in, outside of the tree; returns the row of its root.
    pub(crate) fn graft(&mut self, other: &Document) -> NodeId {
        let rows = to_u32(self.rows.len());
        let (items, text) = (to_u32(self.items.len()), to_u32(self.text.len()));
        let id = |id: NodeId| NodeId(id.0.saturating_add(rows));
        let moved = |slice: Slice, by: u32| Slice {
            start: slice.start.saturating_add(by),
            end: slice.end.saturating_add(by),
        };
        self.rows.extend(other.rows.iter().map(|row| Row {
            pos: Pos::default(),
            tag: row.tag.map(|tag| moved(tag, text)),
            data: match row.data {
                Data::Text(slice) => Data::Text(moved(slice, text)),
                Data::List(slice) => Data::List(moved(slice, items)),
                Data::Map(slice) => Data::Map(moved(slice, items)),
                data => data,
            },
            origin: id(row.origin),
            ..*row
        }));
        self.items.extend(other.items.iter().map(|&item| id(item)));
        self.text.push_str(&other.text);
        id(other.root)
    }

    /// Data for a scalar written plainly, as YAML 1.1 reads it.
    pub(crate) fn scalar(&mut self, text: &str) -> Data {
        resolve_plain(text).unwrap_or_else(|| Data::Text(self.push_text(text)))
    }

    /// The rows below `id` in the text, itself included; rows that its aliases point to are elsewhere.
    pub(crate) fn subtree(&self, id: NodeId) -> Range<u32> {
        let mut last = id;
        let mut stack = vec![id];
        while let Some(node) = stack.pop() {
            last = last.max(node);
            let items = match self.data(node) {
                Data::List(slice) | Data::Map(slice) => self.items.get(slice.range()).unwrap_or_default(),
                _ => &[],
            };
            stack.extend(items.iter().filter(|&&item| item > node));
        }
        id.0..last.0.saturating_add(1)
    }

    fn row(&self, id: NodeId) -> &Row {
        #[expect(clippy::indexing_slicing, reason = "ids are only made by the builder, which pushed the row")]
        &self.rows[index(id.0)]
    }

    fn str(&self, slice: Slice) -> &str {
        self.text.get(slice.range()).unwrap_or_default()
    }

    fn push_text(&mut self, text: &str) -> Slice {
        let start = to_u32(self.text.len());
        self.text.push_str(text);
        Slice { start, end: to_u32(self.text.len()) }
    }
}

/// Parses one YAML document. `first_line` is the number of the text's first line in its file (1 for a whole file).
///
/// Of a key given twice the last value counts, with a warning; where one of the values is a list or a map outside of a
/// modifier it is an error.
///
/// Errors: syntax, unknown alias, repeated key, a limit exceeded, more than one document; the first one found.
pub fn parse(text: &str, file: &str, first_line: u32) -> Result<(Document, Vec<Diagnostic>), Diagnostic> {
    if text.len() > RECIPE_BYTES_MAX {
        let message = format!("the recipe is {} bytes long; the limit is {RECIPE_BYTES_MAX}", text.len());
        return Err(Diagnostic::error(file, Pos::default(), message, ""));
    }
    let options = granit_parser::options! {
        emit_comments: false,
        emit_anchor_events: true,
        emit_unresolved_aliases: true,
    };
    Builder::new(file, first_line).build(text, options)
}

/// A list or map whose end has not been seen yet.
struct Frame {
    node: NodeId,
    children: Vec<NodeId>,
    is_map: bool,
}

struct Builder<'a> {
    file: &'a str,
    first_line: u32,
    doc: Document,
    frames: Vec<Frame>,
    /// Anchor number of the parser to the anchored row.
    anchors: HashMap<usize, NodeId>,
    anchor_names: Vec<String>,
    /// The row made last, which an anchor event that follows belongs to.
    last: NodeId,
    documents: u32,
    warnings: Vec<Diagnostic>,
}

impl<'a> Builder<'a> {
    fn new(file: &'a str, first_line: u32) -> Builder<'a> {
        let doc = Document { rows: Vec::new(), items: Vec::new(), text: String::new(), root: NodeId(0) };
        Builder {
            file,
            first_line,
            doc,
            frames: Vec::new(),
            anchors: HashMap::new(),
            anchor_names: Vec::new(),
            last: NodeId(0),
            documents: 0,
            warnings: Vec::new(),
        }
    }

    fn build(mut self, text: &str, options: Options) -> Result<(Document, Vec<Diagnostic>), Diagnostic> {
        for next in Parser::new_from_str_with_options(text, options) {
            match next {
                Ok((event, span)) => self.event(&event, &span)?,
                Err(error) => {
                    let pos = self.place(error.marker().line(), error.marker().col());
                    if matches!(error.kind(), ErrorKind::RecursionLimitExceeded) {
                        return Err(self.too_deep(pos));
                    }
                    return Err(self.error(pos, format!("invalid YAML: {}", error.kind()), ""));
                }
            }
        }
        if self.doc.rows.is_empty() {
            let pos = Pos { line: self.first_line, column: 1 };
            self.push(pos, None, Data::Null);
        }
        Ok((self.doc, self.warnings))
    }

    fn event(&mut self, event: &Event<'_>, span: &Span) -> Result<(), Diagnostic> {
        let start = span.tag_start.unwrap_or(span.start);
        let pos = self.place(start.line(), start.col());
        match event {
            Event::DocumentStart(..) => {
                self.documents = self.documents.saturating_add(1);
                if self.documents > 1 {
                    return Err(self.error(pos, "a recipe is one YAML document, here a second begins", ""));
                }
            }
            Event::Scalar(text, style, ..) => {
                let (tag, data) = self.scalar(event, text, *style, pos)?;
                let id = self.push(pos, tag, data);
                self.attach(id)?;
            }
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                if self.frames.len() >= YAML_DEPTH_MAX {
                    return Err(self.too_deep(pos));
                }
                let is_map = matches!(event, Event::MappingStart(..));
                let tag = self.local_tag(event, pos)?;
                let node = self.push(pos, tag, Data::Null);
                self.frames.push(Frame { node, children: Vec::new(), is_map });
            }
            Event::SequenceEnd | Event::MappingEnd => self.close()?,
            Event::Anchor(number, name) => {
                self.anchors.insert(*number, self.last);
                self.anchor_names.push(name.to_string());
            }
            Event::Alias(number) => self.alias(*number, pos)?,
            Event::UnresolvedAlias(name) => {
                let mut help = did_you_mean(name, self.anchor_names.iter().map(String::as_str));
                if help.is_empty() {
                    help = format!("define it first, as in `key: &{name} value`");
                }
                return Err(self.error(pos, format!("undefined alias `*{name}`"), help));
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, pos: Pos, tag: Option<Slice>, data: Data) -> NodeId {
        let id = NodeId(to_u32(self.doc.rows.len()));
        self.doc.rows.push(Row { pos, tag, data, origin: id, size: 1, height: 1 });
        self.last = id;
        id
    }

    /// Puts a finished node into the list or map that is open around it.
    fn attach(&mut self, id: NodeId) -> Result<(), Diagnostic> {
        if let Some(frame) = self.frames.last_mut() {
            frame.children.push(id);
        } else {
            self.doc.root = id;
        }
        let row = *self.doc.row(id);
        if row.size > NODES_MAX {
            let message = format!("aliases unfold to more than {NODES_MAX} nodes");
            return Err(self.error(row.pos, message, "a recipe needs a few thousand at most"));
        }
        if index(row.height).saturating_add(self.frames.len()) > YAML_DEPTH_MAX.saturating_add(1) {
            return Err(self.too_deep(row.pos));
        }
        Ok(())
    }

    fn alias(&mut self, number: usize, pos: Pos) -> Result<(), Diagnostic> {
        let target = self.anchors.get(&number).copied();
        let open = self.frames.iter().any(|frame| Some(frame.node) == target);
        let Some(target) = target.filter(|_| !open) else {
            return Err(self.error(pos, "this alias refers to the node that it stands in", ""));
        };
        let source = *self.doc.row(target);
        let id = self.push(pos, source.tag, source.data);
        if let Some(row) = self.doc.rows.last_mut() {
            *row = Row { pos, ..source };
        }
        self.attach(id)
    }

    fn close(&mut self) -> Result<(), Diagnostic> {
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        let children = if frame.is_map { self.map_children(&frame)? } else { frame.children };
        let start = to_u32(self.doc.items.len());
        let (mut size, mut height) = (1_u32, 0);
        for &child in &children {
            size = size.saturating_add(self.doc.row(child).size);
            height = height.max(self.doc.row(child).height);
        }
        // Merge keys copy entries, so items are bounded here as well as by the text.
        if self.doc.items.len().saturating_add(children.len()) > index(NODES_MAX).saturating_mul(4) {
            return Err(self.error(self.doc.pos(frame.node), "too many nodes", ""));
        }
        self.doc.items.extend(children);
        let slice = Slice { start, end: to_u32(self.doc.items.len()) };
        let data = if frame.is_map { Data::Map(slice) } else { Data::List(slice) };
        if let Some(row) = self.doc.rows.get_mut(index(frame.node.0)) {
            *row = Row { data, size, height: height.saturating_add(1), ..*row };
        }
        self.attach(frame.node)
    }

    /// The entries of a closing map: keys checked for repeats, `<<` replaced by what it merges in.
    fn map_children(&mut self, frame: &Frame) -> Result<Vec<NodeId>, Diagnostic> {
        let doc = &self.doc;
        // Key to the place of its value in `children`.
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut children = Vec::with_capacity(frame.children.len());
        let mut merged = Vec::new();
        for &[key, value] in frame.children.as_chunks::<2>().0 {
            match doc.data(key) {
                Data::Merge if matches!(doc.data(value), Data::List(_)) => merged.extend(doc.list(value)),
                Data::Merge => merged.push(value),
                Data::List(_) | Data::Map(_) => {
                    return Err(self.error(doc.pos(key), "a key must be a single word or number", ""));
                }
                _ => match seen.entry(doc.show(key)) {
                    Entry::Vacant(entry) => {
                        entry.insert(children.len().saturating_add(1));
                        children.extend([key, value]);
                    }
                    // PyYAML takes the last value without a word. Of two lists it would lose one with all that is in it.
                    Entry::Occupied(entry)
                        if doc.tag(frame.node).is_some()
                            || (doc.is_scalar(value) && {
                                children.get(*entry.get()).is_some_and(|&first| doc.is_scalar(first))
                            }) =>
                    {
                        let message =
                            format!("the key `{}` is given twice, the last value counts", doc.brief(key));
                        self.warnings.push(Diagnostic::warning(self.file, doc.pos(key), message, ""));
                        if let Some(slot) = children.get_mut(*entry.get()) {
                            *slot = value;
                        }
                    }
                    Entry::Occupied(_) => {
                        let message = format!("the key `{}` is given twice", doc.brief(key));
                        return Err(self.error(doc.pos(key), message, "keep one of them"));
                    }
                },
            }
        }
        for source in merged {
            if !doc.is_map(source) {
                return Err(self.error(doc.pos(source), "`<<` can only merge maps", ""));
            }
            for (key, value) in doc.map(source) {
                if let Entry::Vacant(entry) = seen.entry(doc.show(key)) {
                    entry.insert(children.len().saturating_add(1));
                    children.extend([key, value]);
                }
            }
        }
        Ok(children)
    }

    fn scalar(
        &mut self,
        event: &Event<'_>,
        text: &str,
        style: ScalarStyle,
        pos: Pos,
    ) -> Result<(Option<Slice>, Data), Diagnostic> {
        let core = event.tag().and_then(yaml_org).map(str::to_owned);
        let Some(kind) = core else {
            let tag = self.local_tag(event, pos)?;
            let data = if style == ScalarStyle::Plain { self.doc.scalar(text) } else { self.literal(text) };
            return Ok((tag, data));
        };
        let data = match kind.as_str() {
            "str" | "binary" | "timestamp" => self.literal(text),
            _ => match (kind.as_str(), self.doc.scalar(text)) {
                ("float", Data::Int(value)) => Data::Float(int_to_float(value)),
                ("float", Data::Text(_)) => match text.parse() {
                    Ok(value) => Data::Float(value),
                    Err(_) => return Err(self.error(pos, format!("`{text}` is no float"), "")),
                },
                ("float", data @ Data::Float(_))
                | ("int", data @ Data::Int(_))
                | ("bool", data @ Data::Bool(_))
                | ("null", data @ Data::Null) => data,
                _ => return Err(self.error(pos, format!("`{text}` is no {kind}"), "")),
            },
        };
        Ok((None, data))
    }

    fn literal(&mut self, text: &str) -> Data {
        Data::Text(self.doc.push_text(text))
    }

    /// The name of a `!Name` tag. Tags that ask for objects of a programming language are refused.
    fn local_tag(&mut self, event: &Event<'_>, pos: Pos) -> Result<Option<Slice>, Diagnostic> {
        let Some(tag) = event.tag() else { return Ok(None) };
        if tag.handle() == "!" && !tag.suffix().is_empty() {
            return Ok(Some(self.doc.push_text(tag.suffix())));
        }
        match yaml_org(tag) {
            // Sets are maps without values, ordered maps are lists of maps with one key.
            Some("map" | "seq" | "set" | "omap" | "pairs") => Ok(None),
            // `!` alone asks for nothing.
            _ if tag.suffix().is_empty() || tag.suffix() == "!" => Ok(None),
            _ => {
                Err(self.error(pos, format!("unknown tag `{tag}`"), "modifiers are written `!NameModifier`"))
            }
        }
    }

    fn place(&self, line: usize, column: usize) -> Pos {
        let line = to_u32(line).saturating_sub(1).saturating_add(self.first_line);
        Pos { line, column: to_u32(column).saturating_add(1) }
    }

    fn too_deep(&self, pos: Pos) -> Diagnostic {
        self.error(pos, format!("nested deeper than {YAML_DEPTH_MAX} levels"), "")
    }

    fn error(&self, pos: Pos, message: impl Into<String>, help: impl Into<String>) -> Diagnostic {
        Diagnostic::error(self.file, pos, message, help)
    }
}

/// What a tag of yaml.org asks for: `!!str`, `!!binary`.
fn yaml_org(tag: &Tag) -> Option<&str> {
    const NAMESPACE: &str = "tag:yaml.org,2002:";
    tag.core_suffix().or_else(|| (tag.handle() == NAMESPACE).then(|| tag.suffix()))
}

fn to_u32(value: usize) -> u32 {
    // The text is at most 1 MiB, so rows, items and offsets stay far below 2^32.
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[expect(clippy::as_conversions, reason = "u32 to usize never loses on the 32- and 64-bit machines served")]
fn index(value: u32) -> usize {
    value as usize
}

#[cfg(test)]
#[path = "tests/pyyaml/cases.rs"]
mod pyyaml_cases;
