//! A JSON schema of recipes, from the table of modifiers: editors complete and check keys by it.
//!
//! YAML has tags and JSON has not. Editors (the YAML language server, for one) check the map behind a tag where they know
//! the tag: `x-custom-tags` lists what their setting needs.

use crate::modifier_table::{Absent, COMMON_KEYS, EPOCH_MAX, KeyRow, ModifierRow, Type, rows};
use serde_json::{Map, Value, json};

/// The schema, draft 2020-12.
pub fn json_schema() -> Value {
    let mut definitions = Map::new();
    let mut forms: Vec<String> = Vec::new();
    for row in rows() {
        let earlier =
            forms.iter().filter(|name| name.trim_end_matches(char::is_numeric) == row.class).count();
        // A class with several forms has several definitions.
        let name = if earlier == 0 { row.class.to_owned() } else { format!("{}{}", row.class, earlier + 1) };
        definitions.insert(name.clone(), definition(row));
        forms.push(name);
    }
    let any: Vec<Value> = forms.iter().map(|name| json!({ "$ref": format!("#/$defs/{name}") })).collect();
    for (name, ty) in SHARED {
        definitions.insert((*name).to_owned(), json!({ "anyOf": alternatives(*ty) }));
    }
    definitions.insert("modifier".to_owned(), json!({ "anyOf": any }));
    definitions.insert("group".to_owned(), group());
    let mut tags: Vec<String> = rows().map(|row| format!("!{} mapping", row.class)).collect();
    tags.dedup();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Lacuna recipe",
        "description": "Groups of modifiers, variables beside them, or stages of both.",
        "type": "object",
        "patternProperties": { "modifiers": { "$ref": "#/$defs/group" } },
        "additionalProperties": {
            "description": "A variable for `eval(...)`, or a stage.",
            "anyOf": [
                { "not": { "type": "object" } },
                { "type": "object", "patternProperties": { "modifiers": { "$ref": "#/$defs/group" } } }
            ]
        },
        "x-custom-tags": tags,
        "$defs": definitions,
    })
}

/// A list of modifiers, or the session style's map from class to arguments.
fn group() -> Value {
    json!({
        "anyOf": [
            { "type": "array", "items": { "$ref": "#/$defs/modifier" } },
            { "type": "object" },
            { "type": "null" }
        ]
    })
}

fn definition(row: &ModifierRow) -> Value {
    let keys = || row.keys.iter().chain(COMMON_KEYS);
    let properties: Map<String, Value> = keys().map(|key| (key.name.to_owned(), property(key))).collect();
    let required: Vec<&str> = keys().filter(|key| key.default == Absent::Required).map(|k| k.name).collect();
    json!({
        "title": format!("!{}", row.class),
        "description": row.does,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

/// Types that many keys have, as definitions of their own.
const SHARED: &[(&str, Type)] = &[
    ("epoch", Type::Epoch),
    ("frequency", Type::Frequency),
    ("number", Type::Float),
    ("sparsity", Type::Sparsity),
    ("initSparsity", Type::InitSparsity),
    ("finalSparsity", Type::FinalSparsity),
    ("integer", Type::Int),
    ("boolean", Type::Bool),
    ("text", Type::Text),
    ("names", Type::Names),
    ("parameters", Type::Params),
    ("mask", Type::Mask),
    ("map", Type::Map),
    ("scheme", Type::Scheme),
];

/// What one key takes, or an expression.
fn property(key: &KeyRow) -> Value {
    if key.ty == Type::Any {
        return with_default(json!({}), key.default);
    }
    let mut any = match SHARED.iter().find(|(_, ty)| *ty == key.ty) {
        Some((name, _)) => vec![json!({ "$ref": format!("#/$defs/{name}") })],
        None => alternatives(key.ty),
    };
    if key.default == Absent::Null {
        any.push(json!({ "enum": [null, "null", "None"] }));
    }
    let schema = match any.as_slice() {
        [only] => only.clone(),
        _ => json!({ "anyOf": any }),
    };
    with_default(schema, key.default)
}

/// The alternatives of a type, an expression among them.
fn alternatives(ty: Type) -> Vec<Value> {
    let mut any = types(ty);
    if !any.is_empty() {
        any.push(json!({ "type": "string", "pattern": r"^eval\(.*\)$" }));
    }
    any
}

fn with_default(mut schema: Value, default: Absent) -> Value {
    let value = match default {
        Absent::Required => return schema,
        Absent::Dropped => {
            schema["deprecated"] = true.into();
            return schema;
        }
        Absent::Null => Value::Null,
        Absent::Bool(value) => value.into(),
        Absent::Int(value) => value.into(),
        Absent::Float(value) => value.into(),
        Absent::Text(value) => value.into(),
        Absent::Empty => json!([]),
    };
    schema["default"] = value;
    schema
}

/// The alternatives of a type; none for anything at all. Numbers may be texts: YAML 1.1 reads `8e-5` as one.
fn types(ty: Type) -> Vec<Value> {
    let number = |limits: Value| {
        let mut number = json!({ "type": "number" });
        for (key, limit) in limits.as_object().into_iter().flatten() {
            number[key] = limit.clone();
        }
        vec![number, json!({ "type": "string", "pattern": r"^[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$" })]
    };
    let sparsity = || number(json!({ "minimum": 0, "exclusiveMaximum": 1 }));
    let and = |mut first: Vec<Value>, more: Value| {
        first.push(more);
        first
    };
    let names = || {
        vec![
            json!({ "type": "string" }),
            json!({ "type": "array", "items": { "type": ["string", "integer"] } }),
        ]
    };
    match ty {
        Type::Any => Vec::new(),
        Type::Epoch => and(number(json!({ "minimum": 0, "maximum": EPOCH_MAX })), json!({ "const": -1 })),
        Type::Frequency => {
            and(number(json!({ "exclusiveMinimum": 0, "maximum": EPOCH_MAX })), json!({ "const": -1 }))
        }
        Type::Float => number(json!({})),
        Type::Between(low, high) => number(json!({ "minimum": low, "maximum": high })),
        Type::Sparsity => sparsity(),
        Type::InitSparsity => and(sparsity(), json!({ "const": "__FROM_PARAM__" })),
        Type::FinalSparsity => and(sparsity(), json!({ "type": "object" })),
        Type::Int => vec![json!({ "type": "integer" })],
        Type::Bool => vec![json!({ "type": "boolean" }), json!({ "enum": [0, 1] })],
        Type::Text => vec![json!({ "type": "string" })],
        Type::OneOf(words) => vec![json!({ "enum": words })],
        Type::Params | Type::Names => names(),
        Type::Ints => vec![json!({ "type": "array", "items": { "type": "integer" } })],
        Type::Mask => vec![
            json!({ "enum": ["unstructured", "block4", "filter", "channel", "tensorrt"] }),
            json!({ "type": "string", "pattern": "^[0-9]+:[0-9]+$" }),
            json!({ "type": "array", "items": { "type": "integer" }, "minItems": 2, "maxItems": 2 }),
        ],
        Type::Map | Type::Options => vec![json!({ "type": "object" })],
        Type::Scheme => {
            vec![json!({ "enum": ["default", "deepsparse", "tensorrt"] }), json!({ "type": "object" })]
        }
    }
}
