//! Writes what `torch.save` writes, byte by byte: pickles of protocol 2, and both forms of file.
#![allow(dead_code)]

/// A value of a pickle.
#[derive(Clone)]
pub enum Py {
    None,
    Int(i64),
    Str(&'static str),
    Tuple(Vec<Py>),
    List(Vec<Py>),
    Dict(Vec<(Py, Py)>),
    /// A class or function: module, name.
    Global(&'static str, &'static str),
    Call(Box<Py>, Vec<Py>),
    /// A call, the items set in it, and its state.
    Object(Box<Py>, Vec<(Py, Py)>, Box<Py>),
    Persistent(Box<Py>),
}

pub fn pickle(value: &Py) -> Vec<u8> {
    let mut out = vec![0x80, 2];
    put(value, &mut out);
    out.push(b'.');
    out
}

fn put_items(items: &[(Py, Py)], out: &mut Vec<u8>) {
    out.push(b'(');
    for (key, value) in items {
        put(key, out);
        put(value, out);
    }
    out.push(b'u');
}

fn put(value: &Py, out: &mut Vec<u8>) {
    match value {
        Py::None => out.push(b'N'),
        Py::Int(n) => {
            out.extend([0x8a, 8]);
            out.extend(n.to_le_bytes());
        }
        Py::Str(s) => {
            out.push(b'X');
            out.extend((s.len() as u32).to_le_bytes());
            out.extend(s.as_bytes());
        }
        Py::Tuple(items) => {
            out.push(b'(');
            items.iter().for_each(|item| put(item, out));
            out.push(b't');
        }
        Py::List(items) => {
            out.extend(b"](");
            items.iter().for_each(|item| put(item, out));
            out.push(b'e');
        }
        Py::Dict(items) => {
            out.push(b'}');
            put_items(items, out);
        }
        Py::Global(module, name) => out.extend(format!("c{module}\n{name}\n").as_bytes()),
        Py::Call(function, args) => {
            put(function, out);
            put(&Py::Tuple(args.clone()), out);
            out.push(b'R');
        }
        Py::Object(class, items, state) => {
            put(class, out);
            out.extend(b")R");
            put_items(items, out);
            put(state, out);
            out.push(b'b');
        }
        Py::Persistent(id) => {
            put(id, out);
            out.push(b'Q');
        }
    }
}

pub fn numbers(values: &[usize]) -> Py {
    Py::Tuple(values.iter().map(|&n| Py::Int(n as i64)).collect())
}

/// A tensor in storage `key`.
pub fn tensor(
    class: &'static str,
    key: &'static str,
    offset: usize,
    dims: &[usize],
    strides: &[usize],
) -> Py {
    let name = vec![
        Py::Str("storage"),
        Py::Global("torch", class),
        Py::Str(key),
        Py::Str("cpu"),
        Py::Int(0),
        // Of what larger storage it is a part: the older form only.
        Py::None,
    ];
    let storage = Py::Persistent(Box::new(Py::Tuple(name)));
    let args = vec![storage, Py::Int(offset as i64), numbers(dims), numbers(strides), Py::None, Py::None];
    Py::Call(Box::new(Py::Global("torch._utils", "_rebuild_tensor_v2")), args)
}

/// An OrderedDict with a `_metadata`, as `state_dict()` gives.
pub fn ordered(items: Vec<(&'static str, Py)>) -> Py {
    let items = items.into_iter().map(|(key, value)| (Py::Str(key), value)).collect();
    let state = Py::Dict(vec![(Py::Str("_metadata"), Py::Dict(vec![(Py::Str("version"), Py::Int(1))]))]);
    Py::Object(Box::new(Py::Global("collections", "OrderedDict")), items, Box::new(state))
}

pub type Storage = (&'static str, usize, Vec<u8>);

/// The form of before 1.6. A storage: its key, its number of elements, its bytes.
pub fn legacy(root: &Py, storages: &[Storage]) -> Vec<u8> {
    let mut out = vec![0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
    out.extend(pickle(&Py::Int(1001)));
    out.extend(pickle(&Py::Dict(vec![(Py::Str("protocol_version"), Py::Int(1001))])));
    out.extend(pickle(root));
    out.extend(pickle(&Py::List(storages.iter().map(|s| Py::Str(s.0)).collect())));
    for (_, count, bytes) in storages {
        out.extend((*count as u64).to_le_bytes());
        out.extend(bytes);
    }
    out
}

/// The form since 1.6.
pub fn zipped(root: &Py, storages: &[Storage]) -> Vec<u8> {
    let mut files = vec![("a/data.pkl".to_owned(), pickle(root)), ("a/byteorder".into(), b"little".to_vec())];
    files.extend(storages.iter().map(|(key, _, bytes)| (format!("a/data/{key}"), bytes.clone())));
    zip(&files)
}

/// Stored entries; checksums are left 0, which nobody reads.
pub fn zip(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in files {
        let (at, size, len) = (out.len() as u32, bytes.len() as u32, name.len() as u16);
        let mut common = vec![0; 10];
        common.extend([0; 4]);
        common.extend(size.to_le_bytes());
        common.extend(size.to_le_bytes());
        common.extend(len.to_le_bytes());
        common.extend([0, 0]);
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(bytes);
        directory.extend(b"PK\x01\x02\0\0");
        directory.extend(common);
        directory.extend([0; 10]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (at, size, count) = (out.len() as u32, directory.len() as u32, files.len() as u16);
    out.extend(directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend(count.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend(size.to_le_bytes());
    out.extend(at.to_le_bytes());
    out.extend([0, 0]);
    out
}

pub fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
