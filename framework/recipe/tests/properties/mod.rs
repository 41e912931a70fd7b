//! What holds for any text whatever, as a recipe and as an expression. The fuzz targets of `fuzz/` call these
//! functions with what they make up; `fuzzed.rs` calls them with the seeds and with everything found so far.

#![allow(dead_code, reason = "each fuzz target calls one of them")]

use lacuna_recipe::{LayerRow, Number, ParamRow, compile, evaluate, parse};

/// A text is read or refused, as YAML and as a card. What is read compiles or is refused, and its expansion is a recipe
/// that expands to itself.
pub fn recipe(text: &str) {
    for source in ["r.yaml", "r.md"] {
        let recipe = match parse(text, source, &[]) {
            Ok(recipe) => recipe,
            Err(found) => {
                assert!(!found.is_empty(), "refused without a reason");
                continue;
            }
        };
        let _ = compile(&recipe, &model(), &layers(), 7);
        let once = recipe.expanded();
        if once.len() > lacuna_recipe::RECIPE_BYTES_MAX {
            continue;
        }
        let again = parse(&once, "expanded.yaml", &[])
            .unwrap_or_else(|found| panic!("{}\n{once}", lacuna_recipe::render(&found)));
        assert_eq!(once, again.expanded());
    }
}

/// An expression has a finite value or is refused, and parentheses around it change nothing.
pub fn expression(text: &str) {
    let run = |text: &str| {
        evaluate(text, &mut |name| match name {
            "n" => Ok(Number::Int(10)),
            "x" => Ok(Number::Float(0.5)),
            _ => Err(format!("no `{name}`")),
        })
    };
    let Ok(value) = run(text) else { return };
    assert!(value.as_f64().is_finite(), "{value:?}");
    // The parentheses may be what exceeds a limit.
    if let Ok(same) = run(&format!("({text})")) {
        assert_eq!(value, same);
    }
}

/// A convolution, its batch norm and a classifier: *synthetic*.
fn model() -> Vec<ParamRow> {
    let rows: [(&str, &[usize], bool); 4] = [
        ("conv1.weight", &[16, 1, 3, 3], true),
        ("bn1.weight", &[16], false),
        ("fc.weight", &[10, 16], true),
        ("fc.bias", &[10], false),
    ];
    let row = |&(name, shape, prunable): &(&str, &[usize], bool)| ParamRow {
        name: name.to_owned(),
        shape: shape.to_vec(),
        prunable,
    };
    rows.iter().map(row).collect()
}

fn layers() -> Vec<LayerRow> {
    let row = |name: &str, kind: &str| LayerRow {
        name: name.to_owned(),
        kind: kind.to_owned(),
        has_weight: true,
        removable: kind == "Conv2d",
        rectifies: false,
    };
    let relu = LayerRow { has_weight: false, rectifies: true, ..row("act1", "ActivationQuantizer") };
    vec![row("conv1", "Conv2d"), relu, row("fc", "Linear")]
}
