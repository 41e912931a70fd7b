//! Every recipe of the compatibility corpus against what SparseML's own code read in it (`oracle.json`).
//! The corpus is not part of the repository: without it the tests say so and pass.

use lacuna_recipe::{Absent, COMMON_KEYS, Data, Document, NodeId, Recipe, parse};
use serde_json::Value;
use std::path::PathBuf;

fn corpus() -> Option<(PathBuf, Vec<Value>)> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/corpus/recipes"));
    let Ok(text) = std::fs::read_to_string(folder.join("oracle.json")) else {
        println!("skipped: no corpus at {}, 0 of 96 recipes compared", folder.display());
        return None;
    };
    let oracle: Vec<Value> = serde_json::from_str(&text).expect("oracle.json is JSON");
    Some((folder, oracle))
}

#[test]
fn classic_recipes_evaluate_as_in_sparseml() {
    let Some((folder, oracle)) = corpus() else { return };
    let mut compared = 0;
    let mut modifiers = 0;
    for row in oracle.iter().filter(|row| row.get("expanded").is_some()) {
        let file = row["file"].as_str().unwrap();
        let recipe = Recipe::load(folder.join(file), &[])
            .unwrap_or_else(|found| panic!("{file}:\n{}", lacuna_recipe::render(&found)));
        let groups = row["expanded"].as_object().unwrap();
        let expected_count: usize = groups.values().map(|list| list.as_array().unwrap().len()).sum();
        assert_eq!(recipe.modifiers.len(), expected_count, "{file}");
        for (group, list) in groups {
            let ours: Vec<_> = recipe.modifiers.iter().filter(|m| m.group == *group).collect();
            let list = list.as_array().unwrap();
            assert_eq!(ours.len(), list.len(), "{file}: {group}");
            for (ours, theirs) in ours.iter().zip(list) {
                same_modifier(&recipe, ours, theirs).unwrap_or_else(|what| panic!("{file}: {group}: {what}"));
                modifiers += 1;
            }
        }
        compared += 1;
    }
    assert_eq!(compared, 60);
    println!("{compared} recipes with {modifiers} modifiers are equal");
}

fn same_modifier(recipe: &Recipe, ours: &lacuna_recipe::Modifier, theirs: &Value) -> Result<(), String> {
    let theirs = theirs.as_object().ok_or("not an object")?;
    if theirs["__class__"] != ours.class() {
        return Err(format!("{} is {}", theirs["__class__"], ours.class()));
    }
    let mut expected = 0;
    for (key, value) in theirs.iter().filter(|(key, _)| *key != "__class__") {
        let known = ours.row.keys.iter().chain(COMMON_KEYS).find(|row| row.name == key);
        let known = known.ok_or_else(|| format!("{} has no key {key}", ours.class()))?;
        if known.default == Absent::Dropped {
            continue;
        }
        expected += 1;
        let arg =
            ours.args.iter().find(|arg| arg.key.name == key).ok_or_else(|| format!("{key} is missing"))?;
        if !same_value(&recipe.doc, arg.value, value) {
            return Err(format!("{}: {key} is {}, not {value}", ours.class(), recipe.doc.show(arg.value)));
        }
    }
    if expected == ours.args.len() { Ok(()) } else { Err(format!("{} has keys of its own", ours.class())) }
}

/// Equal as numbers where both are numbers, however they are written.
fn same_value(doc: &Document, node: NodeId, value: &Value) -> bool {
    let number = |value: &Value| match value {
        Value::Bool(value) => Some(f64::from(u8::from(*value))),
        Value::String(text) => text.parse().ok(),
        value => value.as_f64(),
    };
    match (doc.data(node), value) {
        (Data::Null, Value::Null) => true,
        (Data::Bool(ours), value) => number(value) == Some(f64::from(u8::from(ours))),
        (Data::Int(ours), value) => number(value) == Some(ours as f64),
        (Data::Float(ours), value) => number(value) == Some(ours),
        (Data::Text(_), Value::String(theirs)) => doc.text(node) == Some(theirs),
        (Data::List(_), Value::Array(theirs)) => {
            let ours = doc.list(node);
            ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(&a, b)| same_value(doc, a, b))
        }
        (Data::Map(_), Value::Object(theirs)) => {
            doc.map(node).count() == theirs.len()
                && doc.map(node).all(|(key, ours)| {
                    let name = doc.text(key).map_or_else(|| doc.show(key), str::to_owned);
                    theirs.get(&name).is_some_and(|theirs| same_value(doc, ours, theirs))
                })
        }
        _ => false,
    }
}

#[test]
fn recipes_that_sparseml_cannot_read_name_the_alias_and_its_line() {
    let Some((folder, oracle)) = corpus() else { return };
    let failing: Vec<&Value> = oracle.iter().filter(|row| row["loads_in_sparseml"] == false).collect();
    assert_eq!(failing.len(), 2);
    for row in failing {
        let path = folder.join(row["file"].as_str().unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        let line = text.lines().position(|line| line.contains("*pruning_recovery_end_lr")).unwrap() + 1;
        let found = Recipe::load(&path, &[]).err().expect("an undefined alias is an error");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].line as usize, found[0].column), (line, 15));
        assert_eq!(found[0].message, "undefined alias `*pruning_recovery_end_lr`");
        assert!(found[0].help.contains("pruning_recovery_start_lr"), "{}", found[0]);
    }
}

#[test]
fn session_recipes_are_reported_modifier_by_modifier() {
    let Some((folder, oracle)) = corpus() else { return };
    let mut reported = 0;
    let session: Vec<&Value> =
        oracle.iter().filter(|row| row["kind"].as_str().unwrap().starts_with("new")).collect();
    assert_eq!(session.len(), 34);
    for row in session {
        let file = row["file"].as_str().unwrap();
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        let mut found = Vec::new();
        for recipe in embedded_recipes(&text) {
            found.extend(parse(&recipe, file, &[]).err().expect("the session style is not supported yet"));
        }
        let expected: usize =
            row["modifiers"].as_object().unwrap().values().map(|n| n.as_u64().unwrap() as usize).sum();
        assert_eq!(found.len(), expected, "{file}:\n{}", lacuna_recipe::render(&found));
        for diagnostic in &found {
            let class = diagnostic.message.split('`').nth(1).unwrap();
            assert!(row["modifiers"].get(class).is_some(), "{file}: {diagnostic}");
            assert!(diagnostic.message.contains("session style"), "{file}: {diagnostic}");
        }
        reported += found.len();
    }
    println!("{reported} modifiers of the session style reported by name");
}

/// Some files are test settings whose recipes stand in block texts (`first_recipe: |`); the others are recipes.
fn embedded_recipes(text: &str) -> Vec<String> {
    let mut recipes: Vec<String> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let top_level = !line.starts_with(' ') && !line.is_empty();
        if top_level {
            inside = line.trim_end().ends_with(": |");
            recipes.extend(inside.then(String::new));
        } else if inside {
            recipes.last_mut().unwrap().push_str(&format!("{line}\n"));
        }
    }
    if recipes.is_empty() { vec![text.to_owned()] } else { recipes }
}

/// No prefix of a real recipe may panic: each is read or refused.
#[test]
fn truncated_recipes_are_read_or_refused() {
    let Some((folder, oracle)) = corpus() else { return };
    let mut cuts = 0;
    for row in oracle.iter().step_by(5) {
        let file = row["file"].as_str().unwrap();
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        let step = (text.len() / 40).max(1);
        for end in (0..text.len()).step_by(step).filter(|&end| text.is_char_boundary(end)) {
            let _ = parse(&text[..end], file, &[]);
            cuts += 1;
        }
    }
    assert!(cuts > 500, "{cuts}");
}
