//! Pickles as data (Python's pickletools describes the opcodes): protocols 2 to 5, without the text opcodes of 0 and 1.
//!
//! Nothing is called. What a pickle would call becomes a [`Node::Object`] that says what, with what, and what would have
//! been put into it. Nodes lie in one table and refer to each other by number; a pickle may make cycles, so whoever
//! walks them counts.

use crate::Fault;
use std::collections::HashMap;

/// Most nodes of a pickle; each opcode makes at most one.
const NODES_MAX: usize = 1 << 22;
/// Largest pickle. Most opcodes are one byte, so this bounds what is built, too.
pub const PICKLE_BYTES_MAX: usize = 64 << 20;

/// Index of a node.
pub type Id = u32;

#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// A whole number of more than 64 bits, little-endian.
    Big(Vec<u8>),
    Float(f64),
    Str(String),
    Bytes,
    Tuple(Vec<Id>),
    /// Of sets, too.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global {
        module: String,
        name: String,
    },
    /// Of storages: the tuple that names one.
    Persistent(Id),
    Object(Object),
}

/// A call, as it stands in the pickle.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub class: Id,
    /// A tuple.
    pub args: Id,
    /// What `__setstate__` would get.
    pub state: Option<Id>,
    /// What would be set by key.
    pub items: Vec<(Id, Id)>,
}

#[derive(Debug, Default)]
pub struct Nodes(Vec<Node>);

impl Nodes {
    pub fn get(&self, id: Id) -> &Node {
        &self.0[id as usize]
    }

    pub fn str(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Node::Str(s) => Some(s),
            _ => None,
        }
    }

    pub fn int(&self, id: Id) -> Option<i64> {
        match self.get(id) {
            Node::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// Elements of a tuple or a list.
    pub fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Node::Tuple(ids) | Node::List(ids) => Some(ids),
            _ => None,
        }
    }

    /// (module, name) of a global.
    pub fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.get(id) {
            Node::Global { module, name } => Some((module, name)),
            _ => None,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.0.iter()
    }

    fn add(&mut self, node: Node) -> Result<Id, Fault> {
        if self.0.len() >= NODES_MAX {
            return Err(Fault::TooLarge(format!("a pickle of more than {NODES_MAX} values")));
        }
        self.0.push(node);
        Ok((self.0.len() - 1) as Id)
    }
}

/// Bytes that are read from the front.
pub struct Reader<'a> {
    bytes: &'a [u8],
    pub at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8], at: usize) -> Reader<'a> {
        Reader { bytes, at }
    }

    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return Fault::damaged(format!("it ends within {n} bytes of {}", self.at));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of at most 8 bytes.
    pub fn number(&mut self, size: usize) -> Result<u64, Fault> {
        Ok(self.take(size)?.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    fn length(&mut self, size: usize) -> Result<usize, Fault> {
        let n = self.number(size)?;
        usize::try_from(n).map_err(|_| Fault::Damaged(format!("a length of {n} bytes")))
    }

    fn text(&mut self, n: usize) -> Result<Node, Fault> {
        Ok(Node::Str(String::from_utf8_lossy(self.take(n)?).into_owned()))
    }

    fn line(&mut self) -> Result<String, Fault> {
        let rest = &self.bytes[self.at..];
        let Some(n) = rest.iter().take(1024).position(|&b| b == b'\n') else {
            return Fault::damaged("a name in a pickle does not end");
        };
        let line = self.take(n)?;
        self.at += 1;
        Ok(String::from_utf8_lossy(line).into_owned())
    }
}

/// Reads the pickle that begins at the reader, to its end.
pub fn load(reader: &mut Reader<'_>) -> Result<(Nodes, Id), Fault> {
    let begin = reader.at;
    let mut m =
        Machine { nodes: Nodes::default(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    loop {
        if reader.at - begin > PICKLE_BYTES_MAX {
            return Err(Fault::TooLarge(format!("a pickle of more than {PICKLE_BYTES_MAX} bytes")));
        }
        let at = reader.at;
        let opcode = reader.take(1)?[0];
        if opcode == b'.' {
            let root = m.pop()?;
            return Ok((m.nodes, root));
        }
        m.step(opcode, reader).map_err(|fault| match fault {
            Fault::Damaged(why) => Fault::Damaged(format!("pickle opcode {opcode:#04x} at byte {at}: {why}")),
            fault => fault,
        })?;
    }
}

struct Machine {
    nodes: Nodes,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine {
    fn step(&mut self, opcode: u8, r: &mut Reader<'_>) -> Result<(), Fault> {
        let node = match opcode {
            0x80 => return self.protocol(r.number(1)?),
            0x95 => return r.take(8).map(|_| ()),
            b'(' => {
                self.marks.push(self.stack.len());
                return Ok(());
            }
            b'0' => return self.pop().map(|_| ()),
            b'1' => return self.since_mark().map(|_| ()),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
                return Ok(());
            }
            b'q' => return self.remember(r.number(1)?),
            b'r' => return self.remember(r.number(4)?),
            0x94 => return self.remember(self.memo.len() as u64),
            b'h' => return self.recall(r.number(1)?),
            b'j' => return self.recall(r.number(4)?),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                return self.set_items(&[key, value]);
            }
            b'u' => {
                let items = self.since_mark()?;
                return self.set_items(&items);
            }
            b'a' => {
                let item = self.pop()?;
                return self.append(&[item]);
            }
            b'e' | 0x90 => {
                let items = self.since_mark()?;
                return self.append(&items);
            }
            b'b' => return self.build(),

            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'J' => Node::Int(i64::from(r.number(4)? as u32 as i32)),
            b'K' => Node::Int(r.number(1)? as i64),
            b'M' => Node::Int(r.number(2)? as i64),
            0x8a => whole(r)?,
            b'G' => Node::Float(f64::from_bits((r.number(8)?).swap_bytes())),
            b'X' | b'T' => {
                let n = r.length(4)?;
                r.text(n)?
            }
            0x8c | b'U' => {
                let n = r.length(1)?;
                r.text(n)?
            }
            0x8d => {
                let n = r.length(8)?;
                r.text(n)?
            }
            b'B' | b'C' | 0x8e | 0x96 => {
                let size = match opcode {
                    b'B' => 4,
                    b'C' => 1,
                    _ => 8,
                };
                let n = r.length(size)?;
                r.take(n)?;
                Node::Bytes
            }
            b')' => Node::Tuple(Vec::new()),
            b']' | 0x8f => Node::List(Vec::new()),
            b'}' => Node::Dict(Vec::new()),
            b't' => Node::Tuple(self.since_mark()?),
            b'l' | 0x91 => Node::List(self.since_mark()?),
            b'd' => {
                let items = self.since_mark()?;
                Node::Dict(pairs(&items)?)
            }
            0x85..=0x87 => {
                let n = usize::from(opcode - 0x84);
                let from = self.stack.len().checked_sub(n).filter(|&from| from >= self.floor());
                let Some(from) = from else { return Fault::damaged("the stack is too short") };
                Node::Tuple(self.stack.split_off(from))
            }
            b'c' => Node::Global { module: r.line()?, name: r.line()? },
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.nodes.str(module), self.nodes.str(name)) {
                    (Some(m), Some(n)) => Node::Global { module: m.to_owned(), name: n.to_owned() },
                    _ => return Fault::damaged("a class is named by something that is no text"),
                }
            }
            b'R' | 0x81 => {
                let (args, class) = (self.pop()?, self.pop()?);
                Node::Object(Object { class, args, state: None, items: Vec::new() })
            }
            0x92 => {
                let (_, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                Node::Object(Object { class, args, state: None, items: Vec::new() })
            }
            b'Q' => Node::Persistent(self.pop()?),
            opcode => {
                return Fault::unsupported(format!(
                    "pickle opcode {opcode:#04x} (save with torch.save's own pickle_protocol)"
                ));
            }
        };
        let id = self.nodes.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    fn protocol(&self, n: u64) -> Result<(), Fault> {
        if n > 5 { Fault::unsupported(format!("pickle protocol {n}, known are 2 to 5")) } else { Ok(()) }
    }

    /// What lies below the last mark is out of reach.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, Fault> {
        let reach = self.stack.len() > self.floor();
        self.stack.last().copied().filter(|_| reach).map_or_else(|| Fault::damaged("the stack is empty"), Ok)
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, Fault> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Fault::damaged("there is no mark"),
        }
    }

    fn remember(&mut self, key: u64) -> Result<(), Fault> {
        // Each key was written by an opcode of its own; the file's size bounds how many there are.
        self.memo.insert(key as u32, self.top()?);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), Fault> {
        match self.memo.get(&(key as u32)) {
            Some(&id) => {
                self.stack.push(id);
                Ok(())
            }
            None => Fault::damaged(format!("it recalls {key}, which was never remembered")),
        }
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), Fault> {
        let (pairs, top) = (pairs(items)?, self.top()?);
        match &mut self.nodes.0[top as usize] {
            Node::Dict(d) => d.extend(pairs),
            Node::Object(o) => o.items.extend(pairs),
            _ => return Fault::damaged("items are set in something that is no dictionary"),
        }
        Ok(())
    }

    fn append(&mut self, items: &[Id]) -> Result<(), Fault> {
        let top = self.top()?;
        match &mut self.nodes.0[top as usize] {
            Node::List(l) => l.extend(items),
            // What an unknown class does with them is its own affair.
            Node::Object(_) => {}
            _ => return Fault::damaged("items are appended to something that is no list"),
        }
        Ok(())
    }

    fn build(&mut self) -> Result<(), Fault> {
        let (state, top) = (self.pop()?, self.top()?);
        if let Node::Object(o) = &mut self.nodes.0[top as usize] {
            o.state = Some(state);
            return Ok(());
        }
        Fault::damaged("a state is given to something that is no object")
    }
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, Fault> {
    match items.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|&[k, v]| (k, v)).collect()),
        _ => Fault::damaged("a key has no value"),
    }
}

/// LONG1: a two's complement number of up to 255 bytes.
fn whole(r: &mut Reader<'_>) -> Result<Node, Fault> {
    let n = r.number(1)? as usize;
    let raw = r.take(n)?;
    if n > 8 {
        return Ok(Node::Big(raw.to_vec()));
    }
    let negative = raw.last().is_some_and(|b| b & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..n].copy_from_slice(raw);
    Ok(Node::Int(i64::from_le_bytes(wide)))
}
