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

/// The small seeds with some of their bytes changed, at random but the same in every run. `LACUNA_FUZZ_RUNS` asks for more
/// than the usual number of changes to each.
#[test]
fn onnx_files_changed_at_random() {
    let runs = std::env::var("LACUNA_FUZZ_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let mut state = 1u64;
    // splitmix64 (Steele et al., OOPSLA 2014).
    let mut random = |below: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
    };
    let seeds = files("tests/fuzzed");
    assert!(!seeds.is_empty());
    for seed in &seeds {
        for _ in 0..runs {
            let mut bytes = seed.clone();
            for _ in 0..1 + random(4) {
                let at = random(bytes.len());
                match random(4) {
                    0 => bytes[at] ^= 1 << random(8),
                    1 => bytes[at] = random(256) as u8,
                    2 => bytes[at] = seed[random(seed.len())],
                    _ => {
                        let (from, len) = (random(seed.len()), random(12));
                        let part = &seed[from..(from + len).min(seed.len())];
                        bytes.splice(at..at + random(bytes.len() - at), part.iter().copied());
                        bytes.push(0);
                    }
                }
            }
            properties::load(&bytes);
            properties::load_and_run(&bytes);
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
