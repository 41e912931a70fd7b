//! Recipes next to what is expected of them, as text: `golden/good` holds expansions and schedules, `golden/bad` what is
//! said about faulty ones. `UPDATE_GOLDEN=1 cargo test -p lacuna-recipe` writes the expectations anew.

use lacuna_recipe::{LayerRow, ParamRow, Recipe, compile, parse, render};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const STEPS_PER_EPOCH: u32 = 10;

/// A small model: two convolutions with batch norm, and a classifier.
fn model() -> (Vec<ParamRow>, Vec<LayerRow>) {
    let rows: [(&str, &[usize], bool); 8] = [
        ("conv1.weight", &[16, 1, 3, 3], true),
        ("bn1.weight", &[16], false),
        ("bn1.bias", &[16], false),
        ("layer1.0.conv1.weight", &[16, 16, 3, 3], true),
        ("layer1.0.conv2.weight", &[16, 16, 3, 3], true),
        ("layer1.0.bn2.weight", &[16], false),
        ("fc.weight", &[10, 16], true),
        ("fc.bias", &[10], false),
    ];
    table(&rows)
}

/// One layer of a transformer, and a classifier.
fn transformer() -> (Vec<ParamRow>, Vec<LayerRow>) {
    table(&[
        ("embeddings.word_embeddings.weight", &[100, 16], false),
        ("encoder.layer.0.attention.self.query.weight", &[16, 16], true),
        ("encoder.layer.0.attention.self.key.weight", &[16, 16], true),
        ("encoder.layer.0.attention.self.value.weight", &[16, 16], true),
        ("encoder.layer.0.attention.output.dense.weight", &[16, 16], true),
        ("encoder.layer.0.intermediate.dense.weight", &[64, 16], true),
        ("encoder.layer.0.output.dense.weight", &[16, 64], true),
        ("pooler.dense.weight", &[16, 16], true),
        ("classifier.weight", &[8, 16], true),
        ("classifier.bias", &[8], false),
    ])
}

fn table(rows: &[(&str, &[usize], bool)]) -> (Vec<ParamRow>, Vec<LayerRow>) {
    let params: Vec<ParamRow> = rows
        .iter()
        .map(|&(name, shape, prunable)| ParamRow { name: name.to_owned(), shape: shape.to_vec(), prunable })
        .collect();
    let layers = params.iter().filter(|p| p.prunable).map(|p| LayerRow {
        name: p.name.trim_end_matches(".weight").to_owned(),
        kind: if p.shape.len() == 4 { "Conv2d" } else { "Linear" }.to_owned(),
        has_weight: true,
        removable: p.shape.len() == 4 && p.shape[0] == p.shape[1],
        rectifies: false,
    });
    let layers = layers.collect();
    (params, layers)
}

#[test]
fn good_recipes_expand_and_compile_as_recorded() {
    check("good", |text, name| {
        let recipe = parse(text, name, &[]).unwrap_or_else(|found| panic!("{}", render(&found)));
        let (params, layers) = model();
        let schedule = compile(&recipe, &params, &layers, STEPS_PER_EPOCH)
            .unwrap_or_else(|found| panic!("{}", render(&found)));
        let mut out = recipe.expanded();
        let _ = write!(out, "\n{}", schedule.table());
        if !recipe.warnings.is_empty() {
            let _ = write!(out, "\n{}", render(&recipe.warnings));
        }
        out
    });
}

#[test]
fn bad_recipes_are_refused_with_the_recorded_words() {
    check("bad", |text, name| {
        let (params, layers) = model();
        let found = match parse(text, name, &[]) {
            Err(found) => found,
            Ok(recipe) => match compile(&recipe, &params, &layers, STEPS_PER_EPOCH) {
                Err(found) => found,
                Ok(_) => panic!("{name} is accepted"),
            },
        };
        render(&found)
    });
}

/// An expansion is a recipe itself, and expanding it changes nothing.
#[test]
fn expansions_expand_to_themselves() {
    for (path, text) in inputs("good") {
        let name = path.file_name().unwrap().to_str().unwrap();
        let once = parse(&text, name, &[]).unwrap().expanded();
        let twice = parse(&once, "expanded.yaml", &[])
            .unwrap_or_else(|found| panic!("{name}: {}\n{once}", render(&found)));
        assert_eq!(once, twice.expanded(), "{name}");
    }
}

fn check(folder: &str, run: impl Fn(&str, &str) -> String) {
    let inputs = inputs(folder);
    assert!(!inputs.is_empty(), "no recipes in golden/{folder}");
    for (path, text) in inputs {
        let found = run(&text, path.file_name().unwrap().to_str().unwrap());
        let expected = path.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&expected, &found).unwrap();
        }
        let wanted = std::fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(found, wanted, "{}", expected.display());
    }
}

fn inputs(folder: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "yaml" || e == "md"));
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// The recipes that are shipped compile, for parameters of ResNet-20's shapes, or of a transformer's.
#[test]
fn shipped_recipes_compile() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut checked = 0;
    for task in std::fs::read_dir(folder).unwrap() {
        let task = task.unwrap().path();
        let (params, layers) = if task.ends_with("text_classification") { transformer() } else { model() };
        for file in std::fs::read_dir(task).unwrap() {
            let path = file.unwrap().path();
            let recipe = Recipe::load(&path, &[]).unwrap_or_else(|found| panic!("{}", render(&found)));
            assert!(recipe.warnings.is_empty(), "{}", render(&recipe.warnings));
            let name = path.file_name().unwrap().to_str().unwrap();
            // What others name is compared with their own parameters where networks are at hand: tests/cli.rs.
            if ["resnet20-", "yolov5n-", "minilm_l6-"].iter().any(|model| name.starts_with(model)) {
                compile(&recipe, &params, &layers, 469).unwrap_or_else(|found| panic!("{}", render(&found)));
            }
            // It begins with the command to run, which may go on behind a backslash.
            let continued = recipe.text.lines().take_while(|line| line.ends_with('\\')).count();
            let last = recipe.text.lines().nth(continued).unwrap_or_default();
            assert!(recipe.text.starts_with("# lacuna train ") && last.ends_with(name), "{last}");
            checked += 1;
        }
    }
    assert!(checked >= 2);
}
