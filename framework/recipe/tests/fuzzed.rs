//! The seeds of the fuzz targets, and every input on which one of them failed once: they must hold for ever.

mod properties;

use std::path::Path;

#[test]
fn recipes() {
    let mut seeds = texts("tests/golden/good");
    seeds.extend(texts("tests/golden/bad"));
    seeds.extend(texts("tests/fuzzed/recipe_parse"));
    seeds.iter().for_each(|text| properties::recipe(text));
    assert!(seeds.len() > 30, "{}", seeds.len());
}

#[test]
fn expressions() {
    let seeds = texts("tests/fuzzed/recipe_expr");
    seeds.iter().for_each(|text| properties::expression(text));
    assert!(seeds.len() > 5, "{}", seeds.len());
}

fn texts(folder: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().filter_map(|path| String::from_utf8(std::fs::read(path).unwrap()).ok()).collect()
}
