//! The tools around recipes: templates, the schema for editors, the difference of two recipes, the picture of a schedule.
//! `UPDATE_GOLDEN=1 cargo test -p lacuna-recipe` writes the texts in `golden/tools` anew.

use lacuna_recipe::{
    COMMON_KEYS, LayerRow, PRUNERS, ParamRow, RATES, TARGETS, TEMPLATES, Template, compile, diff, diff_text,
    json_schema, parse, picture, render, rows,
};
use serde_json::Value;
use std::path::Path;

fn golden(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tools").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{} is not up to date:\n{found}", path.display());
}

/// Every choice of `recipe new` gives a recipe without a word of complaint.
#[test]
fn every_template_is_a_recipe() {
    let mut made = 0;
    for (_, pruning) in PRUNERS {
        for (_, rate) in RATES {
            for (_, target) in TARGETS {
                for bits in 0..4 {
                    let template = Template {
                        pruning: *pruning,
                        rate: *rate,
                        target: *target,
                        quantization: bits & 1 == 1,
                        distillation: bits & 2 == 2,
                    };
                    let text = template.text("lacuna train");
                    made += 1;
                    if template.conflict().is_some() {
                        assert!(parse(&text, "new.yaml", &[]).is_err(), "{template:?}");
                        continue;
                    }
                    let recipe = parse(&text, "new.yaml", &[])
                        .unwrap_or_else(|found| panic!("{template:?}:\n{}\n{text}", render(&found)));
                    assert_eq!(render(&recipe.warnings), "", "{template:?}");
                    assert_eq!(recipe.max_epochs(), 30, "{template:?}");
                    // For a model that it fits it compiles, as far as its modifiers are carried out.
                    let model =
                        [ParamRow { name: "fc.weight".to_owned(), shape: vec![16, 16], prunable: true }];
                    for error in compile(&recipe, &model, &[layer("fc")], 10).err().unwrap_or_default() {
                        assert!(error.message.contains("not carried out yet"), "{template:?}: {error}");
                    }
                    // Another length is another recipe, with everything in its bounds.
                    let shorter = [("num_epochs".to_owned(), "24".to_owned())];
                    assert_eq!(parse(&text, "new.yaml", &shorter).unwrap().max_epochs(), 24);
                }
            }
        }
    }
    assert_eq!(made, 11 * 6 * 3 * 4);
}

#[test]
fn ready_made_templates_are_as_recorded() {
    let mut all = String::new();
    for (name, about, template) in TEMPLATES {
        all +=
            &format!("=== {name}: {about}\n{}\n", template.text("lacuna train --model MODEL --recipe FILE"));
    }
    golden("templates.txt", &all);
}

#[test]
fn the_schema_knows_every_key_of_every_class() {
    let schema = json_schema();
    let forms = schema["$defs"].as_object().unwrap();
    // Two classes and what all share stand for the rest, so that a row of the table may change without this text.
    let sample = ["sparsity", "mask", "ConstantPruningModifier", "LearningRateFunctionModifier"];
    let sample: Vec<String> = sample.iter().map(|name| format!("{name}: {:#}\n", forms[*name])).collect();
    golden("schema.txt", &sample.concat());
    for row in rows() {
        let known = forms.values().filter(|form| form["title"] == format!("!{}", row.class)).any(|form| {
            let keys = form["properties"].as_object().unwrap();
            row.keys.iter().chain(COMMON_KEYS).all(|key| keys.contains_key(key.name))
        });
        assert!(known, "{}", row.class);
    }
    // Every reference leads somewhere.
    let mut references = 0;
    let mut stack = vec![&schema];
    while let Some(value) = stack.pop() {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(target)) = map.get("$ref") {
                    assert!(forms.contains_key(target.trim_start_matches("#/$defs/")), "{target}");
                    references += 1;
                }
                stack.extend(map.values());
            }
            Value::Array(list) => stack.extend(list),
            _ => {}
        }
    }
    assert!(references > rows().count());
}

const BEFORE: &str = "lr: 1e-3
modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 10}
  - !SetLearningRateModifier {learning_rate: eval(lr), start_epoch: 0.0}
  - !GMPruningModifier {params: [a], init_sparsity: 0.05, final_sparsity: 0.8, start_epoch: 0, end_epoch: 5, update_frequency: 1}
  - !GMPruningModifier {params: [b], init_sparsity: 0.05, final_sparsity: 0.8, start_epoch: 0, end_epoch: 5, update_frequency: 1}
  - !ConstantPruningModifier {params: [c]}
  - !QuantizationModifier {start_epoch: 8, submodules: [a]}
";
/// The same in another order and spelling, but for four things.
const AFTER: &str = "other_modifiers:
  - !GMPruningModifier {update_frequency: 1.0, params: [b], final_sparsity: 0.9, init_sparsity: 0.05, start_epoch: 0, end_epoch: 5, log_types: x}
  - !GMPruningModifier {params: [a], init_sparsity: 0.05, final_sparsity: 0.8, start_epoch: 0, end_epoch: 5, update_frequency: 1, mask_type: unstructured}
modifiers:
  - !SetLearningRateModifier {learning_rate: 0.001}
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 12}
  - !SetWeightDecayModifier {weight_decay: 0.1}
  - !QuantizationModifier {start_epoch: 8, submodules: [a], weight_bits: 8}
";

#[test]
fn a_difference_is_shown_key_by_key() {
    let (before, after) = (parse(BEFORE, "a.yaml", &[]).unwrap(), parse(AFTER, "b.yaml", &[]).unwrap());
    golden("diff.txt", &diff_text(&before, &after));
    assert_eq!(diff_text(&before, &before), "");
    // The other way round the same modifiers differ.
    let back = diff(&after, &before);
    assert_eq!(back.len(), diff(&before, &after).len());
    assert_eq!(back.iter().filter(|d| d.first.is_none()).count(), 1);
}

/// A recipe is equal to what it expands to.
#[test]
fn an_expansion_is_no_difference() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/good");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let recipe = parse(&std::fs::read_to_string(&path).unwrap(), "r.yaml", &[]).unwrap();
            let expanded = parse(&recipe.expanded(), "expanded.yaml", &[]).unwrap();
            assert_eq!(diff_text(&recipe, &expanded), "", "{}", path.display());
        }
    }
}

const PICTURED: &str = "modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 10}
  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 0.1, final_lr: 0.0, start_epoch: 0, end_epoch: 10}
  - !GMPruningModifier {params: [big.weight], init_sparsity: 0.0, final_sparsity: 0.8, start_epoch: 2, end_epoch: 6, update_frequency: 2, inter_func: linear}
  - !GMPruningModifier {params: [small.weight], init_sparsity: 0.4, final_sparsity: 0.4, start_epoch: 2, end_epoch: 4, update_frequency: 2}
  - !QuantizationModifier {start_epoch: 8, disable_quantization_observer_epoch: 9}
";

fn layer(name: &str) -> LayerRow {
    LayerRow {
        name: name.to_owned(),
        kind: "Linear".to_owned(),
        has_weight: true,
        removable: false,
        rectifies: false,
    }
}

/// Weights: 300 big ones and 100 small ones, *synthetic*.
fn pictured() -> String {
    let row = |name: &str, shape: &[usize]| ParamRow {
        name: name.to_owned(),
        shape: shape.to_vec(),
        prunable: true,
    };
    let params = [row("big.weight", &[30, 10]), row("small.weight", &[10, 10])];
    let layers = ["big", "small"].map(layer);
    let recipe = parse(PICTURED, "r.yaml", &[]).unwrap();
    let schedule = compile(&recipe, &params, &layers, 10).unwrap();
    picture(&schedule, &params, "r.yaml for <model> & \"more\"")
}

#[test]
fn a_schedule_is_pictured() {
    let html = pictured();
    golden("picture.html", &html);
    assert!(!html.contains("<model>") && html.contains("&lt;model&gt; &amp; &quot;more&quot;"));
    assert!(!html.contains("http") && !html.contains("<script") && !html.contains("url("));
}

/// The bold line is the share of all weights: read back from the drawing, in pixels of 860 by 200 from (60, 10).
#[test]
fn the_drawn_lines_are_the_schedule() {
    let html = pictured();
    let points = |start: &str| -> Vec<(f64, f64)> {
        let line = html.lines().find(|line| line.starts_with(start)).unwrap();
        let list = line.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        list.split(' ')
            .map(|p| p.split_once(',').unwrap())
            .map(|(x, y)| {
                ((x.parse::<f64>().unwrap() - 60.0) / 86.0, 1.0 - (y.parse::<f64>().unwrap() - 10.0) / 200.0)
            })
            .collect()
    };
    let close = |found: &[(f64, f64)], expected: &[(f64, f64)]| {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (a, b) in found.iter().zip(expected) {
            assert!((a.0 - b.0).abs() < 0.01 && (a.1 - b.1).abs() < 0.005, "{found:?} {expected:?}");
        }
    };
    // Big weights are three quarters of all: 0.4 of them and 0.4 of the small ones are 0.4; 0.8 and 0.4 are 0.7.
    let all = points("<polyline class=\"all\"");
    let at = |epoch: f64| all.iter().rev().find(|p| p.0 <= epoch + 0.01).unwrap().1;
    for (epoch, share) in [(0.0, 0.0), (2.0, 0.1), (4.0, 0.4), (6.0, 0.7), (10.0, 0.7)] {
        assert!((at(epoch) - share).abs() < 0.005, "epoch {epoch}: {all:?}");
    }
    close(
        &points("<polyline stroke=\"#4472c4\""),
        &[(2.0, 0.0), (4.0, 0.0), (4.0, 0.4), (6.0, 0.4), (6.0, 0.8), (10.0, 0.8)],
    );
}
