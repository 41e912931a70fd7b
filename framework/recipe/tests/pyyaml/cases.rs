//! Whole documents mean what PyYAML reads in them: `cases.json`, written by `make.py`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use crate::expand::node_json;
use serde_json::Value;

/// Documents that are read otherwise on purpose, and why.
const OTHERWISE: &[(&str, &str)] = &[
    ("a: &x 1\nb: &x 2", "PyYAML refuses to define an anchor anew, which YAML allows"),
    ("a: 2001-01-01", "dates stay text: no key of a recipe takes one"),
    ("a: !!binary", "bytes stay text: no key of a recipe takes them"),
    ("a: !!omap", "an ordered map stays a list of maps"),
    ("1: a", "a key shows as YAML, `true`, where Python counts it as 1"),
    ("a:\tb", "PyYAML refuses a tab where YAML allows one"),
    ("a: x\u{85}b: y", "U+0085 does not end a line in YAML 1.2"),
    ("a: !Foo 3", "a tagged scalar has the type that it would have without its tag"),
    ("m:\n- !Foo\n  a: 1", "a tag without a value is null, not the empty text"),
    ("a: =", "PyYAML knows no meaning for `=` and refuses it"),
    ("a: 12345678901234567890", "an integer beyond 64 bits is the nearest float"),
];

#[test]
fn documents_mean_what_pyyaml_reads() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("cases.json")).unwrap();
    let (mut same, mut other) = (0, 0);
    for case in &cases {
        let text = case["text"].as_str().unwrap();
        let theirs = case.get("value");
        let ours = super::parse(text, "case", 1).ok().map(|(doc, _)| node_json(&doc, doc.root()));
        let why = OTHERWISE.iter().find(|(start, _)| text.starts_with(start));
        match why {
            None => {
                assert_eq!(ours.as_ref(), theirs, "{text:?}");
                same += 1;
            }
            // A row that is no longer needed must go.
            Some((_, why)) => {
                assert_ne!(ours.as_ref(), theirs, "{text:?} is said to differ: {why}");
                other += 1;
            }
        }
    }
    assert_eq!(other, OTHERWISE.len());
    assert!(same > 80, "{same}");
}
