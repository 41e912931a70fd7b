//! Hostile and oversized recipes: refused with a diagnostic, at the limit and one beyond it, without a panic and quickly.

use lacuna_recipe::{
    NODES_MAX, ParamRow, RECIPE_BYTES_MAX, Recipe, YAML_DEPTH_MAX, compile, parse, parse_overrides,
};

const MINIMAL: &str = "modifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 1}\n";

fn error(text: &str) -> String {
    parse(text, "r.yaml", &[]).err().expect("refused")[0].to_string()
}

#[test]
fn text_size() {
    let fill = |bytes: usize| format!("{MINIMAL}#{}", "x".repeat(bytes - MINIMAL.len() - 1));
    assert!(parse(&fill(RECIPE_BYTES_MAX), "r.yaml", &[]).is_ok());
    assert!(error(&fill(RECIPE_BYTES_MAX + 1)).contains("the limit is 1048576"));
}

#[test]
fn nesting() {
    // The outermost map is one level.
    let nested = |depth: usize| format!("a: {}{}\n{MINIMAL}", "[".repeat(depth), "]".repeat(depth));
    assert!(parse(&nested(YAML_DEPTH_MAX - 1), "r.yaml", &[]).is_ok());
    assert!(error(&nested(YAML_DEPTH_MAX)).contains("nested deeper than 64"));
    let deepest = error(&nested(200_000));
    assert!(deepest.contains("nested deeper than 64"), "{deepest}");
    let block: String = (0..300).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    assert!(error(&block).contains("nested deeper than 64"));
    // Aliases add up too: each level holds the one before.
    let mut chain = String::from("a0: &a0 [1]\n");
    for level in 1..100 {
        chain += &format!("a{level}: &a{level} [*a{}]\n", level - 1);
    }
    assert!(error(&(chain + MINIMAL)).contains("nested deeper than 64"));
}

#[test]
fn alias_bomb() {
    // Ten aliases a level: level n unfolds to more than 10^n nodes.
    let mut bomb = String::from("a0: &a0 [1]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb += &format!("a{level}: &a{level} [{aliases}]\n");
    }
    let found = error(&(bomb + MINIMAL));
    assert!(found.contains(&format!("unfold to more than {NODES_MAX} nodes")), "{found}");
}

/// A lone name in `eval` passes lists through, so it must be bounded like an alias.
#[test]
fn variable_bomb() {
    assert!(error(&format!("a: [eval(a)]\n{MINIMAL}")).contains("in a circle"));
    assert!(error(&format!("a: [eval(b)]\nb: {{k: [1, eval(a)]}}\n{MINIMAL}")).contains("in a circle"));
    let mut bomb = String::from("a0: [1]\n");
    for level in 1..25 {
        bomb += &format!("a{level}: [eval(a{0}), eval(a{0}), eval(a{0})]\n", level - 1);
    }
    assert!(error(&(bomb + MINIMAL)).contains("unfold to more nodes"));
    let mut chain = String::from("a0: [1]\n");
    for level in 1..100 {
        chain += &format!("a{level}: [eval(a{})]\n", level - 1);
    }
    assert!(error(&(chain + MINIMAL)).contains("unfold to more nodes"));
    // In its bounds it is allowed, also before the definition.
    let text = format!("m: eval(l)\nl: [eval(x), 3]\nx: 2\n{MINIMAL}");
    assert_eq!(parse(&text, "r.yaml", &[]).unwrap().variables[0].1, "[2, 3]");
}

#[test]
fn merge_bomb() {
    let entries: String = (0..2000).map(|n| format!("k{n}: 1, ")).collect();
    let mut text = format!("base: &base {{{entries}}}\n");
    for n in 0..5000 {
        text += &format!("m{n}: {{<<: *base}}\n");
    }
    assert!(error(&(text + MINIMAL)).contains("nodes"));
}

#[test]
fn expressions() {
    let with = |expression: &str| {
        format!(
            "modifiers:\n  - !EpochRangeModifier\n    start_epoch: 0\n    end_epoch: eval({expression})\n"
        )
    };
    assert!(error(&with(&"(".repeat(500))).contains("deeper"));
    assert!(error(&with(&vec!["1"; 400].join("+"))).contains("more than 256 parts"));
    assert!(error(&with(&" ".repeat(2000))).contains("longer than 1024"));
    assert!(error(&with("9 ** 9 ** 9 ** 9")).contains("64 bits"));
    // A long chain of variables.
    let mut chain = String::from("v0: 1\n");
    for n in 1..50 {
        chain = format!("v{n}: eval(v{})\n{chain}", n - 1);
    }
    assert!(error(&(chain + &with("v49"))).contains("more than 32 variables"));
}

#[test]
fn epochs_and_events() {
    let epochs =
        |end: &str| format!("modifiers:\n  - !EpochRangeModifier {{start_epoch: 0, end_epoch: {end}}}\n");
    let longest = parse(&epochs("1000000"), "r.yaml", &[]).unwrap();
    assert_eq!(longest.max_epochs(), 1_000_000);
    assert_eq!(compile(&longest, &[], &[], u32::MAX).unwrap().steps, 1_000_000 * u64::from(u32::MAX));
    for end in [
        "1000000.1",
        "-2",
        "-0.5",
        "1.0e+300",
        ".inf",
        ".nan",
        "99999999999999999999999999999999",
        "[]",
        "{}",
    ] {
        assert!(error(&epochs(end)).contains("`end_epoch` must be an epoch"), "{end}");
    }
    let pruning = "modifiers:
  - !GMPruningModifier {params: w, init_sparsity: 0, final_sparsity: 0.5, start_epoch: 0, end_epoch: 1000, update_frequency: -1}
";
    let recipe = parse(pruning, "r.yaml", &[]).unwrap();
    let params = [ParamRow { name: "w".to_owned(), shape: vec![2, 2], prunable: true }];
    assert_eq!(compile(&recipe, &params, &[], 1000).unwrap().events.len(), 1_000_001);
    assert!(
        compile(&recipe, &params, &[], 1100).unwrap_err()[0].message.contains("more than 1048576 events")
    );
    assert!(
        compile(&recipe, &params, &[], u32::MAX).unwrap_err()[0].message.contains("more than 1048576 events")
    );
    assert!(compile(&recipe, &params, &[], 0).unwrap_err()[0].message.contains("no steps"));
}

#[test]
fn bytes_that_are_no_recipe() {
    for text in [
        "",
        "\0",
        "\u{feff}",
        "---",
        "...",
        "%YAML 9.9\n---\n",
        "\t- a",
        "a: b: c",
        "? [",
        "!!",
        "&a",
        "*a",
        "- - - -",
        "{{{",
    ] {
        assert!(parse(text, "r.yaml", &[]).is_err(), "{text:?}");
        assert!(parse(text, "r.md", &[]).is_err(), "{text:?}");
    }
    assert!(
        Recipe::load("no/such/recipe.yaml", &[]).err().unwrap()[0]
            .to_string()
            .starts_with("no/such/recipe.yaml: error: ")
    );
}

/// Every recipe of the golden folder with one byte changed, at many places: read or refused, never a panic.
#[test]
fn mutated_recipes_are_read_or_refused() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/good");
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut tried = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "txt") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for _ in 0..400 {
            // xorshift64*: the same mutations on every run.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let mut bytes = text.clone().into_bytes();
            let at = (state % bytes.len() as u64) as usize;
            bytes[at] = b"\x00 \n\t:-[]{}&*!#'\"9e.,"[(state >> 40) as usize % 20];
            let Ok(mutated) = String::from_utf8(bytes) else { continue };
            if let Ok(recipe) = parse(&mutated, path.file_name().unwrap().to_str().unwrap(), &[]) {
                let _ = compile(&recipe, &[], &[], 10);
                let _ = recipe.expanded();
            }
            tried += 1;
        }
    }
    assert!(tried > 2000, "{tried}");
}

#[test]
fn overrides() {
    let text = format!(
        "a: &a 1\nb: eval(a * 10)\n{}",
        MINIMAL.replace("end_epoch: 1", "end_epoch: eval(*a + b)").replace("*a", "a")
    );
    let list = |text: &str| parse_overrides(text).unwrap();
    assert_eq!(list("a=2, b = x y"), [("a".to_owned(), "2".to_owned()), ("b".to_owned(), "x y".to_owned())]);
    assert_eq!(
        list(r#"{"a": 2.5, "b": "c"}"#),
        [("a".to_owned(), "2.5".to_owned()), ("b".to_owned(), "c".to_owned())]
    );
    assert!(parse_overrides("a").is_err() && parse_overrides("=1").is_err() && parse_overrides("{").is_err());
    assert!(list("").is_empty());

    assert_eq!(parse(&text, "r.yaml", &[]).unwrap().max_epochs(), 11);
    let recipe = parse(&text, "r.yaml", &list("a=2")).unwrap();
    assert_eq!(recipe.max_epochs(), 22);
    assert_eq!(recipe.variables, [("a".to_owned(), "2".to_owned()), ("b".to_owned(), "20".to_owned())]);
    assert_eq!(parse(&text, "r.yaml", &list("b=eval(a + 1)")).unwrap().max_epochs(), 3);
    let unknown = parse(&text, "r.yaml", &list("aa=2")).err().unwrap();
    assert_eq!(
        unknown[0].to_string(),
        "r.yaml: error: the recipe has no variable `aa` to set (did you mean `a`?)"
    );

    // Whatever refers to a variable by alias changes with it.
    let alias = "end: &end 1\nmodifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: *end}\n";
    assert_eq!(parse(alias, "r.yaml", &list("end=7")).unwrap().max_epochs(), 7);
}
