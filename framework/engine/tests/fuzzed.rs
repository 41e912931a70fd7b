//! The seeds of the fuzz targets for ONNX files, and every input on which one of them failed once: they must hold for ever.

mod properties;

use std::path::Path;

#[test]
fn onnx_files() {
    let seeds = files("../../tests/data/exports");
    assert!(seeds.len() >= 8, "{}", seeds.len());
    for bytes in seeds.iter().chain(&files("tests/fuzzed")) {
        properties::load(bytes);
        properties::load_and_run(bytes);
        // Every file cut short, and with a byte changed here and there.
        for at in (0..bytes.len()).step_by(bytes.len() / 16 + 1) {
            properties::load_and_run(&bytes[..at]);
            let mut changed = bytes.clone();
            changed[at] ^= 0x15;
            properties::load_and_run(&changed);
        }
    }
}

/// The .onnx files of a folder and its sub-folders.
fn files(folder: &str) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        let mut paths: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "onnx") {
                found.push(std::fs::read(path).unwrap());
            }
        }
    }
    found
}
