//! Every recipe of the compatibility corpus against what SparseML's own code read in it (`oracle.json`).

use lacuna_recipe::{Recipe, Status, parse, render};
use serde_json::Value;
use std::path::PathBuf;

fn corpus() -> (PathBuf, Vec<Value>) {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus"));
    let text = std::fs::read_to_string(folder.join("oracle.json")).expect("oracle.json is there");
    let oracle: Vec<Value> = serde_json::from_str(&text).expect("oracle.json is JSON");
    assert_eq!(oracle.len(), 96);
    (folder, oracle)
}

#[test]
fn classic_recipes_evaluate_as_in_sparseml() {
    let (folder, oracle) = corpus();
    let mut compared = 0;
    for row in oracle.iter().filter(|row| row.get("expanded").is_some()) {
        let file = row["file"].as_str().unwrap();
        let recipe = Recipe::load(folder.join(file), &[])
            .unwrap_or_else(|found| panic!("{file}:\n{}", render(&found)));
        same(&recipe.expanded_json(false), &row["expanded"]).unwrap_or_else(|what| panic!("{file}: {what}"));
        compared += 1;
    }
    assert_eq!(compared, 60);
}

/// Equal as numbers where both are numbers, however they are written; the error names the first place that differs.
fn same(ours: &Value, theirs: &Value) -> Result<(), String> {
    let number = |value: &Value| match value {
        Value::Bool(value) => Some(f64::from(u8::from(*value))),
        Value::String(text) => text.parse().ok(),
        value => value.as_f64(),
    };
    match (ours, theirs) {
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .try_for_each(|(i, (a, b))| same(a, b).map_err(|e| format!("[{i}]{e}"))),
        (Value::Object(a), Value::Object(b)) if a.len() == b.len() => b.iter().try_for_each(|(key, b)| {
            let a = a.get(key).ok_or_else(|| format!(".{key} is missing"))?;
            same(a, b).map_err(|e| format!(".{key}{e}"))
        }),
        (a, b) if a == b || (number(a).is_some() && number(a) == number(b)) => Ok(()),
        (a, b) => Err(format!(" is {a}, not {b}")),
    }
}

#[test]
fn recipes_that_sparseml_cannot_read_name_the_alias_and_its_line() {
    let (folder, oracle) = corpus();
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
    let (folder, oracle) = corpus();
    let session: Vec<&Value> =
        oracle.iter().filter(|row| row["kind"].as_str().unwrap().starts_with("new")).collect();
    assert_eq!(session.len(), 34);
    let (mut of_use, mut refused) = (0, 0);
    for row in session {
        let file = row["file"].as_str().unwrap();
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        let mut counts = std::collections::BTreeMap::new();
        for recipe in embedded_recipes(&text) {
            // This file leaves its variables to the command line.
            let args = ["start_quant_epoch", "warm_up_epochs", "pruning_epochs"]
                .map(|n| (n.to_owned(), "3".to_owned()));
            let args = if file.contains("e2e_recipe") { &args[..] } else { &[] };
            let recipe = parse(&recipe, file, args).unwrap_or_else(|found| panic!("{}", render(&found)));
            for modifier in &recipe.modifiers {
                *counts.entry(modifier.class().to_owned()).or_insert(0) += 1;
                match modifier.row.status {
                    Status::NotApplicable(why) => {
                        assert!(why.contains("language models"), "{why}");
                        refused += 1;
                    }
                    Status::Implemented => of_use += 1,
                    Status::Custom => panic!("{}", modifier.class()),
                }
            }
        }
        let expected = row["modifiers"].as_object().unwrap();
        let expected = expected.iter().map(|(name, n)| (name.clone(), n.as_u64().unwrap())).collect();
        assert_eq!(counts, expected, "{file}");
    }
    println!("{of_use} modifiers of the session style are of use here, {refused} are refused by name");
    assert!(of_use > 20 && refused > 30, "{of_use} {refused}");
}

/// Without its arguments the recipe says which one is missing and where.
#[test]
fn a_session_recipe_names_the_variable_that_it_lacks() {
    let (folder, oracle) = corpus();
    let file =
        oracle.iter().map(|row| row["file"].as_str().unwrap()).find(|f| f.contains("e2e_recipe")).unwrap();
    let found = Recipe::load(folder.join(file), &[]).err().expect("it needs three variables");
    assert_eq!((found[0].line, found[0].column), (4, 14));
    assert!(found[0].message.contains("there is no variable `start_quant_epoch`"), "{}", found[0]);
    assert!(found[0].help.contains("--recipe-args start_quant_epoch=..."), "{}", found[0]);
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
    let (folder, oracle) = corpus();
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
