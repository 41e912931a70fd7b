//! What two recipes do differently: modifiers of the second beside those of the first, key by key, after evaluation.
//!
//! Modifiers of one class are paired: first those that are equal, then those that differ in the fewest keys. A key that one
//! recipe leaves out has its default there. Numbers are compared as numbers, however they are written.

use crate::diagnostic::Pos;
use crate::expand::node_json;
use crate::modifier::Modifier;
use crate::modifier_table::{Absent, COMMON_KEYS, Type};
use crate::recipe::Recipe;
use crate::value::numeric_text;
use crate::yaml_scalar::cut;
use serde_json::Value;
use std::fmt::Write as _;

/// Most modifiers of one class whose pairs are searched for; of more, the first goes with the first.
const SEARCH_MAX: usize = 1000;

/// One modifier that differs. Without a place it is missing on that side, and `keys` is empty.
#[derive(Clone, PartialEq, Debug)]
pub struct Difference {
    pub class: &'static str,
    pub first: Option<Pos>,
    pub second: Option<Pos>,
    pub keys: Vec<KeyDifference>,
}

/// A key whose value differs, with what it is on each side.
#[derive(Clone, PartialEq, Debug)]
pub struct KeyDifference {
    pub name: &'static str,
    pub first: Value,
    pub second: Value,
}

/// Everything that differs, class by class in the order of the recipes.
pub fn diff(first: &Recipe, second: &Recipe) -> Vec<Difference> {
    let mut classes: Vec<&'static str> = Vec::new();
    for modifier in first.modifiers.iter().chain(&second.modifiers) {
        if !classes.contains(&modifier.class()) {
            classes.push(modifier.class());
        }
    }
    classes.into_iter().flat_map(|class| diff_class(class, first, second)).collect()
}

/// [`diff`] as text; empty where nothing differs.
pub fn diff_text(first: &Recipe, second: &Recipe) -> String {
    let mut out = String::new();
    let (a, b) = (&first.source, &second.source);
    if first.max_epochs() != second.max_epochs() {
        let _ = writeln!(out, "length: {} -> {} epochs", first.max_epochs(), second.max_epochs());
    }
    for difference in diff(first, second) {
        let class = difference.class;
        let _ = match (difference.first, difference.second) {
            (Some(at), None) => writeln!(out, "- {class} ({a}:{})", at.line),
            (None, Some(at)) => writeln!(out, "+ {class} ({b}:{})", at.line),
            (Some(at), Some(and)) => writeln!(out, "~ {class} ({a}:{}, {b}:{})", at.line, and.line),
            (None, None) => Ok(()),
        };
        for key in difference.keys {
            let (before, after) = (cut(&key.first.to_string()), cut(&key.second.to_string()));
            let _ = writeln!(out, "    {}: {before} -> {after}", key.name);
        }
    }
    out
}

fn diff_class(class: &'static str, first: &Recipe, second: &Recipe) -> Vec<Difference> {
    let of = |recipe: &Recipe| {
        let own = recipe.modifiers.iter().filter(|m| m.class() == class);
        own.map(|m| (m.pos, values(recipe, m))).collect::<Vec<_>>()
    };
    let (ours, mut theirs) = (of(first), of(second));
    let search = ours.len().max(theirs.len()) <= SEARCH_MAX;
    // Equal ones first, so that none of them is taken by one that is only near.
    let mut left = Vec::new();
    for (pos, values) in ours {
        match theirs.iter().position(|(_, other)| *other == values).filter(|_| search) {
            Some(same) => {
                theirs.remove(same);
            }
            None => left.push((pos, values)),
        }
    }
    let mut found = Vec::new();
    for (pos, values) in left {
        let nearest = match search {
            true => (0..theirs.len()).min_by_key(|&n| differing(&values, &theirs[n].1).len()),
            false => (!theirs.is_empty()).then_some(0),
        };
        let Some(nearest) = nearest else {
            found.push(Difference { class, first: Some(pos), second: None, keys: Vec::new() });
            continue;
        };
        let (at, other) = theirs.remove(nearest);
        let keys = differing(&values, &other);
        if !keys.is_empty() {
            found.push(Difference { class, first: Some(pos), second: Some(at), keys });
        }
    }
    let added = |(pos, _)| Difference { class, first: None, second: Some(pos), keys: Vec::new() };
    found.extend(theirs.into_iter().map(added));
    found
}

type Values = Vec<(&'static str, Value)>;

/// Every key that has an effect with its value or default, numbers as numbers; null is left out.
fn values(recipe: &Recipe, modifier: &Modifier) -> Values {
    let keys = modifier.row.keys.iter().chain(COMMON_KEYS);
    let effective = keys.filter(|key| key.default != Absent::Dropped && key.ty != Type::Options);
    let mut values: Values = Vec::new();
    for key in effective {
        let given = modifier.args.iter().find(|arg| arg.key.name == key.name);
        let value = match (given, key.default) {
            (Some(arg), _) => numbers(node_json(&recipe.doc, arg.value)),
            (None, Absent::Bool(value)) => value.into(),
            (None, Absent::Int(value)) => numbers(value.into()),
            (None, Absent::Float(value)) => value.into(),
            (None, Absent::Text(value)) => value.into(),
            (None, Absent::Empty) => Value::Array(Vec::new()),
            // Only the session style may leave such a key out.
            (None, Absent::Required) => (-1.0).into(),
            (None, Absent::Null | Absent::Dropped) => Value::Null,
        };
        values.push((key.name, value));
    }
    values
}

/// Numbers and texts that spell numbers as floats, in lists and maps too; `null` and `None` as null.
fn numbers(value: Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().map_or(Value::Null, Value::from),
        Value::String(text) if text == "null" || text == "None" => Value::Null,
        Value::String(text) => numeric_text(&text).map_or(Value::String(text), Value::from),
        Value::Array(list) => list.into_iter().map(numbers).collect(),
        Value::Object(map) => Value::Object(map.into_iter().map(|(key, v)| (key, numbers(v))).collect()),
        value => value,
    }
}

fn differing(first: &Values, second: &Values) -> Vec<KeyDifference> {
    let value = |values: &Values, name| {
        values.iter().find(|(key, _)| *key == name).map_or(Value::Null, |(_, value)| value.clone())
    };
    // Two forms of a class have different keys.
    let mut names: Vec<&'static str> = first.iter().map(|(name, _)| *name).collect();
    names
        .extend(second.iter().map(|(name, _)| *name).filter(|name| first.iter().all(|(key, _)| key != name)));
    let pairs = names.into_iter().map(|name| KeyDifference {
        name,
        first: value(first, name),
        second: value(second, name),
    });
    pairs.filter(|key| key.first != key.second).collect()
}
