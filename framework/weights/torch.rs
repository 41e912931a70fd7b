//! `torch.save` files: which nodes of the pickle are tensors, under which names, and where their values lie.
//!
//! Three kinds of things are saved in practice, and all are read: a state dict; a dictionary that holds one (under
//! `state_dict`, `model` and the like); and a whole module, pickled as it is, as Ultralytics does. Of the latter only
//! the dictionaries `_parameters`, `_buffers` and `_modules` are looked at: they say what its state dict would be.

use crate::pickle::{self, Id, Node, Nodes, Object, Reader};
use crate::{Element, Fault, NAME_BYTES_MAX, StoredTensor, TENSORS_MAX, zip};
use std::collections::HashMap;
use std::ops::Range;

/// Deepest nesting of dictionaries and modules.
const DEPTH_MAX: usize = 64;
/// Most nodes that are looked at; a pickle of shared nodes has more paths than nodes.
const VISITS_MAX: usize = 1 << 20;
/// Keys under which a checkpoint holds its state dict, the first that is there counts. Averages are what is deployed.
const WRAPPERS: [&str; 7] = ["ema", "state_dict", "model_state_dict", "model", "net", "params", "weights"];

/// The first pickle of the older form, `0x1950a86a20f9469cfc6c`, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The second.
const VERSION: i64 = 1001;

/// Where a storage lies, by the key that the pickle calls it.
type Storages = HashMap<String, Range<usize>>;

pub fn read_zip(bytes: &[u8]) -> Result<Vec<StoredTensor>, Fault> {
    let entries = zip::entries(bytes)?;
    let Some((path, range)) = entries.iter().find(|(name, _)| name.ends_with("/data.pkl")) else {
        let what = "the ZIP archive has no data.pkl: not written by torch.save (save the state dict with it)";
        return Fault::unsupported(what);
    };
    let folder = path.trim_end_matches("data.pkl");
    if let Some(order) = entries.get(&format!("{folder}byteorder"))
        && &bytes[order.clone()] != b"little"
    {
        return Fault::unsupported("its values are big-endian (save it on another machine)");
    }
    let (nodes, root) = pickle::load(&mut Reader::new(&bytes[range.clone()], 0))?;
    let data = format!("{folder}data/");
    let storages = entries.iter().filter_map(|(name, range)| {
        let key = name.strip_prefix(&data)?;
        Some((key.to_owned(), range.clone()))
    });
    tensors(&nodes, root, &storages.collect())
}

/// Pickles of a magic number, a version, facts about the machine, the object, and the keys of its storages; then each
/// storage in the order of its key: a 64-bit count of elements, and the elements.
pub fn read_legacy(bytes: &[u8]) -> Result<Vec<StoredTensor>, Fault> {
    let mut r = Reader::new(bytes, 0);
    let (nodes, magic) = pickle::load(&mut r)?;
    if *nodes.get(magic) != Node::Big(MAGIC.to_vec()) {
        return Fault::unsupported(
            "a pickle that torch.save did not write (save the state dict with torch.save)",
        );
    }
    let (nodes, version) = pickle::load(&mut r)?;
    if nodes.int(version) != Some(VERSION) {
        return Fault::unsupported(format!("the torch.save version is not {VERSION}"));
    }
    let (nodes, machine) = pickle::load(&mut r)?;
    if let Node::Dict(items) = nodes.get(machine)
        && let Some((_, value)) = items.iter().find(|(key, _)| nodes.str(*key) == Some("little_endian"))
        && *nodes.get(*value) != Node::Bool(true)
    {
        return Fault::unsupported("its values are big-endian (save it on another machine)");
    }
    let (nodes, root) = pickle::load(&mut r)?;
    let elements = elements_of_storages(&nodes);
    let (names, list) = pickle::load(&mut r)?;
    let Some(keys) = names.sequence(list) else { return Fault::damaged("it has no list of storages") };
    let mut storages = Storages::new();
    for &key in keys {
        let Some(key) = names.str(key) else { return Fault::damaged("the key of a storage is no text") };
        let Some(element) = elements.get(key) else {
            return Fault::damaged(format!("no tensor says what storage '{key}' holds"));
        };
        let count = r.number(8)?;
        let size = usize::try_from(count).ok().and_then(|n| n.checked_mul(element.size()));
        let Some(size) = size else { return Fault::damaged(format!("a storage of {count} elements")) };
        let begin = r.at;
        r.take(size)?;
        storages.insert(key.to_owned(), begin..r.at);
    }
    tensors(&nodes, root, &storages)
}

/// The element of every storage that a pickle mentions, by key.
fn elements_of_storages(nodes: &Nodes) -> HashMap<&str, Element> {
    nodes
        .iter()
        .filter_map(|node| match node {
            Node::Persistent(id) => storage_of(nodes, *id).ok(),
            _ => None,
        })
        .map(|(element, key, _)| (key, element))
        .collect()
}

/// `('storage', torch.FloatStorage, key, location, count)`, in the older form with a sixth that says of what larger
/// storage it is a part: element, key, and the first element of the part.
fn storage_of(nodes: &Nodes, id: Id) -> Result<(Element, &str, usize), Fault> {
    let parts = nodes.sequence(id).unwrap_or_default();
    let [tag, class, key, _, _, rest @ ..] = parts else {
        return Fault::damaged("a storage is not named by a tuple of five");
    };
    let Some(key) = nodes.str(*key).filter(|_| nodes.str(*tag) == Some("storage")) else {
        return Fault::damaged("a storage has no key");
    };
    let Some((_, name)) = nodes.global(*class) else { return Fault::damaged("a storage has no type") };
    let Some(element) = Element::of_torch(name) else {
        return Fault::unsupported(format!(
            "elements of torch.{name} (convert the tensors to float32 first)"
        ));
    };
    let first = match rest.first().map(|&id| (nodes.get(id), nodes.sequence(id))) {
        Some((_, Some([_, offset, _]))) => nodes
            .int(*offset)
            .and_then(|n| usize::try_from(n).ok())
            .map_or_else(|| Fault::damaged(format!("a part of storage '{key}' begins nowhere")), Ok)?,
        _ => 0,
    };
    Ok((element, key, first))
}

/// All tensors of the state dict below `root`, in its order.
fn tensors(nodes: &Nodes, root: Id, storages: &Storages) -> Result<Vec<StoredTensor>, Fault> {
    let mut w = Walk { nodes, storages, visits: 0, found: Vec::new() };
    w.walk(state_dict(nodes, root), "", 0)?;
    if w.found.is_empty() {
        return Fault::unsupported("there is no tensor in it (save model.state_dict() with torch.save)");
    }
    Ok(w.found)
}

/// Follows [`WRAPPERS`] down to what holds tensors.
fn state_dict(nodes: &Nodes, mut root: Id) -> Id {
    // A checkpoint in a checkpoint is rare, and a cycle of them ends here.
    for _ in 0..4 {
        let items = entries(nodes, root);
        if items.iter().any(|&(_, value)| is_tensor(nodes, value)) {
            break;
        }
        let named = |key: &str| items.iter().find(|(k, _)| nodes.str(*k) == Some(key)).map(|&(_, v)| v);
        let holds = |&id: &Id| matches!(nodes.get(id), Node::Dict(_) | Node::Object(_));
        match WRAPPERS.iter().find_map(|key| named(key).filter(holds)) {
            Some(inner) => root = inner,
            None => break,
        }
    }
    root
}

/// What a dictionary, ordered or not, holds.
fn entries(nodes: &Nodes, id: Id) -> Vec<(Id, Id)> {
    match nodes.get(id) {
        Node::Dict(items) => items.clone(),
        Node::Object(object) => {
            // Python 2 gave OrderedDict a list of pairs.
            let first = nodes.sequence(object.args).and_then(|args| args.first());
            let listed = first.and_then(|&list| nodes.sequence(list)).unwrap_or_default();
            let pair = |&id: &Id| match nodes.sequence(id) {
                Some(&[key, value]) => Some((key, value)),
                _ => None,
            };
            let ordered = nodes.global(object.class) == Some(("collections", "OrderedDict"));
            let listed = listed.iter().filter(|_| ordered).filter_map(pair);
            listed.chain(object.items.iter().copied()).collect()
        }
        _ => Vec::new(),
    }
}

fn call<'a>(nodes: &'a Nodes, object: &Object) -> (&'a str, &'a str) {
    nodes.global(object.class).unwrap_or_default()
}

const REBUILD: &str = "torch._utils";
const TENSORS: [&str; 2] = ["_rebuild_tensor", "_rebuild_tensor_v2"];
const PARAMETERS: [&str; 2] = ["_rebuild_parameter", "_rebuild_parameter_with_state"];

fn is_tensor(nodes: &Nodes, id: Id) -> bool {
    match nodes.get(id) {
        Node::Object(object) => {
            let (module, name) = call(nodes, object);
            module == REBUILD && (TENSORS.contains(&name) || PARAMETERS.contains(&name))
        }
        _ => false,
    }
}

struct Walk<'a> {
    nodes: &'a Nodes,
    storages: &'a Storages,
    visits: usize,
    found: Vec<StoredTensor>,
}

impl Walk<'_> {
    fn walk(&mut self, id: Id, path: &str, depth: usize) -> Result<(), Fault> {
        let items = entries(self.nodes, id);
        self.visits += 1 + items.len();
        if depth > DEPTH_MAX || self.visits > VISITS_MAX || self.found.len() > TENSORS_MAX {
            return Err(Fault::TooLarge(format!(
                "dictionaries {DEPTH_MAX} deep, {VISITS_MAX} values or {TENSORS_MAX} tensors are the most"
            )));
        }
        if path.len() > NAME_BYTES_MAX {
            return Fault::damaged(format!("a name of {} bytes, at most {NAME_BYTES_MAX}", path.len()));
        }
        let nodes = self.nodes;
        if let Node::Object(object) = nodes.get(id) {
            let (module, name) = call(nodes, object);
            let args = nodes.sequence(object.args).unwrap_or_default();
            if module == REBUILD && PARAMETERS.contains(&name) {
                let Some(&inner) = args.first() else {
                    return Fault::damaged("a parameter without a tensor");
                };
                return self.walk(inner, path, depth + 1);
            }
            if module == REBUILD && TENSORS.contains(&name) {
                self.found.push(self.tensor(args, path)?);
                return Ok(());
            }
            if module == REBUILD {
                return Fault::unsupported(format!(
                    "'{path}' is made by {module}.{name} (save plain, dense tensors)"
                ));
            }
            if let Some(state) = object.state {
                self.module(state, path, depth)?;
            }
        }
        for (key, value) in items {
            if let Some(key) = nodes.str(key) {
                self.walk(value, &join(path, key), depth + 1)?;
            }
        }
        Ok(())
    }

    /// What a pickled module's state dict would be.
    fn module(&mut self, state: Id, path: &str, depth: usize) -> Result<(), Fault> {
        let nodes = self.nodes;
        for (part, value) in entries(nodes, state) {
            if !matches!(nodes.str(part), Some("_parameters" | "_buffers" | "_modules")) {
                continue;
            }
            let items = entries(nodes, value);
            self.visits += 1 + items.len();
            for (key, value) in items {
                if let Some(key) = nodes.str(key) {
                    self.walk(value, &join(path, key), depth + 1)?;
                }
            }
        }
        Ok(())
    }

    /// Of `(storage, offset, dims, strides, ...)`.
    fn tensor(&self, args: &[Id], path: &str) -> Result<StoredTensor, Fault> {
        let nodes = self.nodes;
        let [storage, offset, dims, strides, ..] = args else {
            return Fault::damaged(format!("tensor '{path}' has {} of 4 attributes", args.len()));
        };
        let Node::Persistent(id) = nodes.get(*storage) else {
            return Fault::damaged(format!("tensor '{path}' has no storage"));
        };
        let (element, key, first) = storage_of(nodes, *id)?;
        let Some(bytes) = self.storages.get(key) else {
            return Fault::damaged(format!(
                "tensor '{path}': storage '{key}' is missing (copy the file again)"
            ));
        };
        let small = |&id: &Id| nodes.int(id).and_then(|n| usize::try_from(n).ok());
        let numbers = |id: Id| nodes.sequence(id)?.iter().map(small).collect::<Option<Vec<usize>>>();
        let place = small(offset).and_then(|n| n.checked_add(first));
        let (Some(offset), Some(dims), Some(strides)) = (place, numbers(*dims), numbers(*strides)) else {
            return Fault::damaged(format!("tensor '{path}': its shape is not whole numbers from 0"));
        };
        StoredTensor::view(path.to_owned(), dims, element, bytes.clone(), offset, strides)
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
