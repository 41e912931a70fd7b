//! A recipe after evaluation as JSON, in the form that SparseML's own reading of it has: groups of modifiers, each a
//! class and the keys that the recipe gives.
//!
//! ```text
//! {"pruning_modifiers": [{"__class__": "GMPruningModifier", "start_epoch": 0.0, ...}, ...], ...}
//! ```
//! The groups of a staged recipe stand below the names of their stages. Numbers that YAML 1.1 takes for text (`8e-5`) stay
//! text, as they do there.

use crate::modifier::Modifier;
use crate::modifier_table::{Absent, COMMON_KEYS, Type};
use crate::recipe::Recipe;
use crate::yaml::{Data, Document, NodeId};
use serde_json::{Map, Value, json};

impl Recipe {
    /// The evaluated recipe as JSON. With `defaults`, also the keys that the recipe does not give.
    pub fn expanded_json(&self, defaults: bool) -> Value {
        let mut out = Map::new();
        for modifier in &self.modifiers {
            let groups = match modifier.stage {
                None => &mut out,
                Some(stage) => child(&mut out, &self.stages[stage as usize].name),
            };
            let list = groups.entry(&modifier.group).or_insert_with(|| json!([]));
            if let Value::Array(list) = list {
                list.push(modifier_json(&self.doc, modifier, defaults));
            }
        }
        Value::Object(out)
    }
}

/// The map of that name, made where there is none. (A group with the name of a stage would be one already.)
fn child<'a>(map: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let entry = map.entry(name).or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    entry.as_object_mut().expect("made an object above")
}

fn modifier_json(doc: &Document, modifier: &Modifier, defaults: bool) -> Value {
    let mut out = Map::new();
    out.insert("__class__".to_owned(), modifier.class().into());
    for arg in &modifier.args {
        out.insert(arg.key.name.to_owned(), node_json(doc, arg.value));
    }
    let keys = modifier.row.keys.iter().chain(COMMON_KEYS);
    for key in keys.filter(|key| defaults && modifier.args.iter().all(|arg| arg.key.name != key.name)) {
        let value = match key.default {
            Absent::Dropped => continue,
            _ if key.ty == Type::Options => continue,
            Absent::Null => Value::Null,
            Absent::Bool(value) => value.into(),
            Absent::Int(value) => value.into(),
            Absent::Float(value) => value.into(),
            Absent::Text(value) => value.into(),
            Absent::Empty => json!([]),
            // Only the session style may leave such a key out.
            Absent::Required => json!(-1.0),
        };
        out.insert(key.name.to_owned(), value);
    }
    Value::Object(out)
}

/// A node as JSON. JSON has no infinities: they are texts.
pub(crate) fn node_json(doc: &Document, node: NodeId) -> Value {
    let name = |key| doc.text(key).map_or_else(|| doc.show(key), str::to_owned);
    match doc.data(node) {
        Data::Null => Value::Null,
        Data::Bool(value) => value.into(),
        Data::Int(value) => value.into(),
        Data::Float(value) if value.is_finite() => value.into(),
        Data::Float(_) | Data::Merge => doc.show(node).into(),
        Data::Text(_) => doc.text(node).into(),
        Data::List(_) => doc.list(node).iter().map(|&item| node_json(doc, item)).collect(),
        Data::Map(_) => {
            Value::Object(doc.map(node).map(|(key, value)| (name(key), node_json(doc, value))).collect())
        }
    }
}
