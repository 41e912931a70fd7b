//! What a recipe may be made of beside modifiers: containers, groups, variables, overrides, stages, metadata,
//! composition. What each case must give is SparseML's rule, written out by hand.

use lacuna_recipe::{Data, Recipe, compose_staged, parse, parse_overrides, render};
use serde_json::{Value, json};

fn read(text: &str, name: &str) -> Recipe {
    parse(text, name, &[]).unwrap_or_else(|found| panic!("{}\n{text}", render(&found)))
}

fn with(text: &str, overrides: &str) -> Recipe {
    let overrides = parse_overrides(overrides).unwrap();
    parse(text, "r.yaml", &overrides).unwrap_or_else(|found| panic!("{}", render(&found)))
}

fn refusal(text: &str) -> String {
    render(&parse(text, "r.yaml", &[]).err().expect("refused"))
}

const EPOCHS: &str = "modifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 3}\n";

#[test]
fn cards_begin_after_anything_and_end_at_the_next_fence() {
    let licence = "<!--\nCopyright\n-->\n\n";
    for (open, close) in [("---", "---"), ("+++", "+++"), ("+++", "---"), ("  --- ", "---\r")] {
        let card = format!("{licence}{open}\n{EPOCHS}{close}\n# Title\n---\nmodifiers: nonsense\n");
        assert_eq!(read(&card, "card.md").max_epochs(), 3, "{card}");
        assert_eq!(read(&card, "CARD.MD").max_epochs(), 3);
    }
    assert_eq!(read(&format!("\u{feff}---\n{EPOCHS}---\n"), "r.md").max_epochs(), 3);
    // Lines are counted from the top of the file.
    let card = format!("{licence}---\nmodifiers:\n  - !Nonsense\n---\n");
    assert!(render(&parse(&card, "r.md", &[]).err().unwrap()).starts_with("r.md:7:5: error"));
    // A YAML file is no card: its `---` begins the document.
    assert_eq!(read(&format!("---\n{EPOCHS}"), "r.yaml").max_epochs(), 3);
}

#[test]
fn every_key_with_modifiers_in_its_name_is_a_group() {
    let recipe = read(
        "modifiers:\n - !EpochRangeModifier {start_epoch: 0, end_epoch: 1}
my_modifiers_too:\n - !SetWeightDecayModifier {weight_decay: 0.1}
pruning_modifiers:\n - !pytorch.ConstantPruningModifier {params: [a]}
empty_modifiers:
none_modifiers: []
",
        "r.yaml",
    );
    let found: Vec<(&str, &str)> = recipe.modifiers.iter().map(|m| (m.group.as_str(), m.class())).collect();
    assert_eq!(
        found,
        [
            ("modifiers", "EpochRangeModifier"),
            ("my_modifiers_too", "SetWeightDecayModifier"),
            ("pruning_modifiers", "ConstantPruningModifier"),
        ]
    );
    assert!(refusal("modifiers: 3\n").contains("`modifiers` must be a list of modifiers"));
    assert!(refusal("modifiers:\n - a: 1\n").contains("`{a: 1}` is not a modifier"));
}

/// Aliases, merges, `eval` of what comes later, of what is nested, of lists and texts.
#[test]
fn variables_reach_every_value() {
    let recipe = read(
        "base: &base {init_sparsity: 0.05, final_sparsity: 0.8, update_frequency: 0.5}
start: &start 2
end: eval(start + length * 2)
length: eval(half * 2)
half: 0.5
lr: 8e-5
who: ['re:.*conv.*', eval(last)]
last: fc.weight
curve: cosine
flag: yes
modifiers:
  - !GMPruningModifier
    <<: *base
    final_sparsity: 0.9
    params: eval(who)
    start_epoch: *start
    end_epoch: eval(end)
    leave_enabled: eval(flag)
  - !LearningRateFunctionModifier
    lr_func: eval(curve)
    init_lr: eval(lr * 10)
    final_lr: eval(lr)
    start_epoch: 0
    end_epoch: eval(round(end) % 7 + max(1, 2) - abs(-1) - min(1, 3) + int(0.9) + float(0))
",
        "r.yaml",
    );
    let expected = json!({"modifiers": [
        {"__class__": "GMPruningModifier", "final_sparsity": 0.9, "params": ["re:.*conv.*", "fc.weight"], "start_epoch": 2,
         "end_epoch": 4.0, "leave_enabled": true, "init_sparsity": 0.05, "update_frequency": 0.5},
        {"__class__": "LearningRateFunctionModifier", "lr_func": "cosine", "init_lr": 8e-5 * 10.0, "final_lr": "8e-5",
         "start_epoch": 0, "end_epoch": 4.0},
    ]});
    assert_eq!(recipe.expanded_json(false), expected);
}

#[test]
fn overrides_take_both_spellings_and_lists() {
    let text =
        "a: 1\nwho: [x]\nmodifiers:\n - !ConstantPruningModifier {params: eval(who), start_epoch: eval(a)}\n";
    let params = |recipe: &Recipe| recipe.expanded_json(false)["modifiers"][0]["params"].clone();
    assert_eq!(params(&with(text, r#"{"who": ["y", "re:z"], "a": 2.5}"#)), json!(["y", "re:z"]));
    assert_eq!(with(text, "a:2").modifiers[0].start_epoch(), 2.0);
    assert_eq!(with(text, "a=1e-1").modifiers[0].start_epoch(), 0.1);
    assert_eq!(with(text, "a = eval(2 ** 3)").modifiers[0].start_epoch(), 8.0);
    assert_eq!(params(&with(text, "who=__ALL__")), json!("__ALL__"));
    // A list is read as YAML, hostile ones too.
    let deep = format!("{{\"who\": {}1{}}}", "[".repeat(80), "]".repeat(80));
    let found = parse_overrides(&deep).map(|o| parse(text, "r.yaml", &o));
    assert!(matches!(found, Ok(Err(_)) | Err(_)));
}

const STAGED: &str = "
length: 4
rate: 0.1
__metadata__: {note: of the whole}
dense:
  __metadata__: {note: of the stage}
  end: eval(length)
  training_modifiers:
    - !EpochRangeModifier {start_epoch: 0, end_epoch: eval(end)}
    - !SetLearningRateModifier {learning_rate: eval(rate), start_epoch: 0}
pruning:
  __metadata__: null
  rate: 0.01
  length: 3
  end: eval(length * 2)
  training_modifiers:
    - !EpochRangeModifier {start_epoch: 4, end_epoch: eval(4 + end)}
    - !SetLearningRateModifier {learning_rate: eval(rate), start_epoch: 4}
";

#[test]
fn a_stage_sees_its_own_variables_first() {
    let recipe = read(STAGED, "r.yaml");
    assert_eq!(recipe.stages.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["dense", "pruning"]);
    let json = recipe.expanded_json(false);
    assert_eq!(json["dense"]["training_modifiers"][0]["end_epoch"], 4);
    assert_eq!(json["dense"]["training_modifiers"][1]["learning_rate"], 0.1);
    assert_eq!(json["pruning"]["training_modifiers"][0]["end_epoch"], 10);
    assert_eq!(json["pruning"]["training_modifiers"][1]["learning_rate"], 0.01);
    // An override reaches the variable of that name in every stage.
    let json = with(STAGED, "rate=0.5").expanded_json(false);
    assert_eq!(json["dense"]["training_modifiers"][1]["learning_rate"], 0.5);
    assert_eq!(json["pruning"]["training_modifiers"][1]["learning_rate"], 0.5);
}

#[test]
fn metadata_is_kept_and_is_no_variable() {
    let recipe = read(STAGED, "r.yaml");
    let note = |node| recipe.doc.show(node);
    assert_eq!(recipe.metadata.map(note).as_deref(), Some("{note: \"of the whole\"}"));
    assert_eq!(recipe.stages[0].metadata.map(note).as_deref(), Some("{note: \"of the stage\"}"));
    assert!(recipe.variables.iter().all(|(name, _)| name != "__metadata__"), "{:?}", recipe.variables);
}

const FIRST: &str = "
training_modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 4.5}
  - !LearningRateModifier {lr_class: ExponentialLR, lr_kwargs: {gamma: 0.9}, init_lr: 0.1, start_epoch: 0}
pruning_modifiers:
  - !ConstantPruningModifier {params: [__ALL__]}
  - !SetWeightDecayModifier {weight_decay: 0}
quantization_modifiers:
  - !QuantizationModifier {start_epoch: 2, freeze_bn_stats_epoch: 3}
";
const SECOND: &str = "
n: 2
modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: eval(n)}
  - !ConstantPruningModifier {params: [fc.weight]}
  - !QuantizationModifier {start_epoch: 1, disable_quantization_observer_epoch: 1.5}
  - !LearningRateModifier
    lr_class: MultiStepLR
    lr_kwargs: {milestones: [0.5, 1], gamma: 0.1}
    init_lr: 0.1
    start_epoch: 0
    end_epoch: 2
  - !LayerThinningModifier {param_group_dependency_map: {}, update_epochs: [0.25]}
";

fn composed(first: &str, second: &str, keep: bool) -> (Recipe, Value) {
    let (first, second) = (read(first, "first.yaml"), read(second, "second.yaml"));
    let text = compose_staged(&first, &second, keep).unwrap();
    let recipe = read(&text, "composed.yaml");
    let json = recipe.expanded_json(false);
    (recipe, json)
}

#[test]
fn a_second_recipe_follows_the_first() {
    let (recipe, json) = composed(FIRST, SECOND, false);
    // 4.5 epochs are five; what had no end ends with them, but quantisation, which has none.
    let expected = json!({
        "stage_0": {
            "training_modifiers": [
                {"__class__": "EpochRangeModifier", "start_epoch": 0, "end_epoch": 4.5},
                {"__class__": "LearningRateModifier", "lr_class": "ExponentialLR", "lr_kwargs": {"gamma": 0.9}, "init_lr": 0.1,
                 "start_epoch": 0, "end_epoch": 5.0},
            ],
            "pruning_modifiers": [
                {"__class__": "ConstantPruningModifier", "params": ["__ALL__"], "end_epoch": 5.0},
                {"__class__": "SetWeightDecayModifier", "weight_decay": 0},
            ],
            "quantization_modifiers": [
                {"__class__": "QuantizationModifier", "start_epoch": 2, "freeze_bn_stats_epoch": 3},
            ],
        },
        "stage_1": {"modifiers": [
            {"__class__": "EpochRangeModifier", "start_epoch": 5.0, "end_epoch": 7.0},
            {"__class__": "ConstantPruningModifier", "params": ["fc.weight"], "start_epoch": 5.0},
            {"__class__": "QuantizationModifier", "start_epoch": 6.0, "disable_quantization_observer_epoch": 6.5},
            {"__class__": "LearningRateModifier", "lr_class": "MultiStepLR", "lr_kwargs": {"milestones": [5.5, 6.0], "gamma": 0.1},
             "init_lr": 0.1, "start_epoch": 5.0, "end_epoch": 7.0},
            {"__class__": "LayerThinningModifier", "param_group_dependency_map": {}, "start_epoch": 5.0, "update_epochs": [5.25]},
        ]},
    });
    assert_eq!(json, expected);
    assert_eq!(recipe.max_epochs(), 7);
}

#[test]
fn a_second_recipe_may_keep_its_epochs() {
    let (_, json) = composed(FIRST, SECOND, true);
    assert_eq!(json["stage_0"], json!(read(FIRST, "r.yaml").expanded_json(false)));
    assert_eq!(json["stage_1"], json!(read(SECOND, "r.yaml").expanded_json(false)));
}

#[test]
fn composed_stages_keep_their_names_and_metadata() {
    let (recipe, _) = composed(STAGED, SECOND, false);
    let names = |recipe: &Recipe| recipe.stages.iter().map(|s| s.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&recipe), ["dense", "pruning", "stage_2"]);
    assert_eq!(
        recipe.stages[0].metadata.map(|n| recipe.doc.show(n)).as_deref(),
        Some("{note: \"of the stage\"}")
    );
    assert_eq!(recipe.stages[1].metadata.map(|n| recipe.doc.data(n)), Some(Data::Null));
    assert_eq!(recipe.stages[2].metadata, None);
    let (recipe, _) = composed(SECOND, STAGED, false);
    assert_eq!(names(&recipe), ["pre_dense", "dense", "pruning"]);
    assert_eq!(recipe.max_epochs(), 12);
    let staged = read(STAGED, "r.yaml");
    let error = compose_staged(&staged, &staged, false).unwrap_err();
    assert_eq!(error.to_string(), "r.yaml: error: both recipes have a stage `dense` (rename one of them)");
}

#[test]
fn keys_without_effect_are_accepted_and_reported_once() {
    let recipe = read(
        "modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 1, log_types: __ALL__}
  - !SetLearningRateModifier {learning_rate: 0.1, log_types: [a], constant_logging: true, end_epoch: 7}
",
        "r.yaml",
    );
    let warnings = render(&recipe.warnings);
    assert!(warnings.contains("`log_types` has no effect (2 places, here the first)"), "{warnings}");
    assert_eq!(recipe.max_epochs(), 1, "an end epoch without effect does not lengthen the training");
}
