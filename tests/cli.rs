//! The command `lacuna` as its users meet it: the built binary, real files, exit codes and messages.

mod common {
    pub mod runs;
}

use common::runs::{command, write_data};
use lacuna::cli::VERBS;
use lacuna::cli::error::EXITS;
use lacuna::cli::training::{self, Compat, Place, RunArgs};
use lacuna::data::{ImageSet, fashion_mnist};
use lacuna::ir::op::{Attr, ConvAttr, GemmAttr, OpKind, Window};
use lacuna::ir::{DType, Dim, Graph, Tensor};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::OnceLock;
use tempfile::TempDir;

const TRAIN_IMAGES: usize = 256;
const TEST_IMAGES: usize = 100;
/// 8 steps of 32 images an epoch: pruned in two epochs, then quantised for two.
const RECIPE: &str = "\
num_epochs: 4.0
modifiers:
  - !EpochRangeModifier
    start_epoch: 0.0
    end_epoch: eval(num_epochs)
  - !SetLearningRateModifier
    start_epoch: 0.0
    learning_rate: 0.05
  - !GMPruningModifier
    params: __ALL_PRUNABLE__
    init_sparsity: 0.05
    final_sparsity: 0.9
    start_epoch: 0.0
    end_epoch: 2.0
    update_frequency: 0.25
  - !QuantizationModifier
    start_epoch: 2.0
    disable_quantization_observer_epoch: 3.0
    freeze_bn_stats_epoch: 3.0
    scheme:
      input_activations: {num_bits: 8, symmetric: False}
      weights: {num_bits: 8, symmetric: True, strategy: channel}
";

fn run(words: &[&str]) -> Output {
    command(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must succeed; its stdout.
fn works(words: &[&str]) -> String {
    let out = run(words);
    assert_eq!(out.status.code(), Some(0), "{words:?}: {}", text(&out.stderr));
    text(&out.stdout)
}

fn json(words: &[&str]) -> Value {
    let out = works(words);
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{words:?}: {e}: {out}"))
}

/// Runs a command that must end with `code` and an error that holds all of `needles`; its stderr.
fn fails(words: &[&str], code: i32, needles: &[&str]) -> String {
    let out = run(words);
    let stderr = text(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{words:?}: {stderr}");
    assert!(stderr.starts_with("error: "), "{words:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{words:?}: {stderr}");
    for needle in needles {
        assert!(stderr.contains(needle), "{words:?}: no '{needle}' in: {stderr}");
    }
    stderr
}

fn str_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn write_png(set: &ImageSet, i: usize, path: &Path) {
    let image = image::GrayImage::from_raw(set.w as u32, set.h as u32, set.image(i).to_vec()).unwrap();
    image.save(path).unwrap();
}

/// A folder with data, a recipe, and one finished run, made once for all tests.
struct Shared {
    dir: TempDir,
    test: ImageSet,
    /// What the training printed.
    printed: String,
}

impl Shared {
    fn path(&self, name: &str) -> String {
        str_of(&self.dir.path().join(name)).to_owned()
    }
}

fn train_words<'a>(data: &'a str, recipe: &'a str, project: &'a str) -> Vec<&'a str> {
    vec![
        "train",
        "--recipe",
        recipe,
        "--data",
        data,
        "--batch",
        "32",
        "--seed",
        "3",
        "--checkpoint-steps",
        "3",
        "--project",
        project,
    ]
}

fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    SHARED.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let test = write_data(&dir.path().join("data"), TRAIN_IMAGES, TEST_IMAGES);
        fs::write(dir.path().join("recipe.yaml"), RECIPE).unwrap();
        let mut shared = Shared { dir, test, printed: String::new() };
        let [data, recipe, project] = ["data", "recipe.yaml", "whole"].map(|name| shared.path(name));
        shared.printed = works(&train_words(&data, &recipe, &project));
        shared
    })
}

/// A small classifier of 8x8 images, written as ONNX.
fn write_onnx(path: &Path) {
    let mut g = Graph::new("tiny");
    let batch = g.symbol("batch");
    let dims = [Dim::Symbol(batch), Dim::Fixed(1), Dim::Fixed(8), Dim::Fixed(8)];
    let x = g.add_input("image", DType::F32, &dims);
    let numbers = |n: usize| (0..n).map(|i| ((i * 7919 % 64) as f32 - 32.0) / 64.0).collect::<Vec<f32>>();
    let w = g.add_tensor("conv.weight", &Tensor::from_f32(&[4, 1, 3, 3], numbers(36)));
    let window = Window { kernel: [3, 3], stride: [1, 1], dilation: [1, 1], pads: [1, 1, 1, 1] };
    let attr = Attr::Conv(ConvAttr { window, group: 1 });
    let y = g.add_op(OpKind::Conv, attr, "conv", &[x, w], &["conv_out"]).unwrap();
    let y = g.add_op(OpKind::Relu, Attr::None, "relu", &y, &["relu_out"]).unwrap();
    let y = g.add_op(OpKind::GlobalAveragePool, Attr::None, "pool", &y, &["pool_out"]).unwrap();
    let y = g.add_op(OpKind::Flatten, Attr::Axis(1), "flatten", &y, &["flat"]).unwrap();
    let w = g.add_tensor("fc.weight", &Tensor::from_f32(&[3, 4], numbers(12)));
    let attr = Attr::Gemm(GemmAttr { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: true });
    g.outputs = g.add_op(OpKind::Gemm, attr, "fc", &[y[0], w], &["logits"]).unwrap();
    g.metadata.push(("lacuna.mean".into(), "[0.5]".into()));
    g.metadata.push(("lacuna.std".into(), "[0.5]".into()));
    lacuna::onnx::save(&g, path, &Default::default()).unwrap();
}

#[test]
fn help_of_every_verb_lists_an_example() {
    let all = works(&["--help"]);
    for (exit, meaning) in EXITS {
        assert!(all.contains(&format!("{:>2}  {meaning}", *exit as u8)), "{all}");
    }
    for verb in VERBS {
        assert!(all.contains(&format!("  {:<9}  {}", verb.name, verb.about)), "{all}");
        for help in ["--help", "-h"] {
            let page = works(&[verb.name, help]);
            let examples = page.split("Examples:").nth(1).unwrap_or_default();
            assert!(examples.contains(&format!("  lacuna {}", verb.name)), "{page}");
        }
    }
    for nested in [["predict", "classify"], ["recipe", "check"], ["recipe", "plan"]] {
        let page = works(&[nested[0], nested[1], "--help"]);
        assert!(page.contains(&format!("Examples:\n  lacuna {} {}", nested[0], nested[1])), "{page}");
    }
}

#[test]
fn senseless_command_lines_end_with_2() {
    fails(&["trian"], 2, &["trian"]);
    fails(&["train"], 2, &["--recipe"]);
    fails(&["train", "--recipe", "r.yaml", "--lr", "nan"], 2, &["--lr"]);
    fails(&["train", "--recipe", "r.yaml", "--batch", "0"], 2, &["--batch"]);
    fails(&["benchmark", "m.onnx", "-s", "often"], 2, &["often", "sync"]);
    let recipe = shared().path("recipe.yaml");
    fails(&["train", "--recipe", &recipe, "--model", "resnet21"], 2, &["resnet21", "resnet20"]);
    let large = ["train", "--recipe", &recipe, "--model", "resnet18", "--image-size", "4096"];
    fails(&large, 2, &["3x4096x4096", "smaller size"]);
    fails(&["recipe", "plan", &recipe, "--model", "resnet20", "--recipe-args", "=3"], 2, &["--recipe-args"]);
}

#[test]
fn a_pattern_that_matches_nothing_is_found_before_training() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.yaml");
    fs::write(&path, RECIPE.replace("__ALL_PRUNABLE__", "[\"re:layre1.*weight\"]")).unwrap();
    let (path, project) = (str_of(&path), dir.path().join("runs"));
    let line = RECIPE.lines().position(|l| l.contains("__ALL_PRUNABLE__")).unwrap() + 1;
    let place = format!("error: {path}:{line}:14: no parameter matches `re:layre1.*weight`");
    fails(&["recipe", "check", path, "--model", "resnet20"], 3, &[&place]);
    fails(&["recipe", "plan", path, "--model", "resnet20", "--steps-per-epoch", "9"], 3, &[&place]);
    fails(&train_words(&shared().path("data"), path, str_of(&project)), 3, &[&place]);
    assert!(!project.exists(), "a run that could not begin left a folder");

    let out = run(&["recipe", "check", path, "--model", "resnet20", "--json"]);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let diagnostic = &report["diagnostics"][0];
    assert_eq!((out.status.code(), &report["ok"]), (Some(3), &Value::Bool(false)));
    assert_eq!((diagnostic["line"].as_u64(), diagnostic["column"].as_u64()), (Some(line as u64), Some(14)));
    // Without a model only the recipe itself is checked.
    works(&["recipe", "check", path]);
}

#[test]
fn a_mistake_in_a_recipe_is_shown_in_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.yaml");
    fs::write(&path, RECIPE.replace("final_sparsity", "final_sparsty")).unwrap();
    let path = str_of(&path);
    let shown = format!(
        "error: {path}:12:5: `!GMPruningModifier` has no key `final_sparsty` (did you mean `final_sparsity`?)\n  12 |     final_sparsty: 0.9\n     |     ^\n"
    );
    fails(&["recipe", "check", path], 3, &[&shown]);
}

#[test]
fn every_shipped_recipe_fits_its_model() {
    let mut checked = 0;
    for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/image_classification")).unwrap() {
        let path = file.unwrap().path();
        // MODEL-DATA-WAY.yaml
        let model = path.file_name().unwrap().to_str().unwrap().split('-').next().unwrap();
        let said = works(&["recipe", "check", str_of(&path), "--model", model]);
        assert!(said.contains(&format!("every pattern matches {model}")), "{said}");
        checked += 1;
    }
    assert!(checked >= 6, "{checked}");
}

#[test]
fn a_session_recipe_is_reported_modifier_by_modifier() {
    let recipe = "framework/recipe/tests/corpus/main__integrations__huggingface-transformers__tutorials__text-generation__example_alternating_recipe.yaml";
    let path = format!("{}/{recipe}", env!("CARGO_MANIFEST_DIR"));
    let said = works(&["recipe", "check", &path]);
    for line in [
        "SparseGPTModifier            2  not applicable here: it prunes",
        "ConstantPruningModifier      2  carried out",
    ] {
        assert!(said.contains(line), "{said}");
    }
    fails(
        &["recipe", "check", &path, "--model", "resnet20"],
        3,
        &["`!SparseGPTModifier` does not apply here"],
    );
}

#[test]
fn recipes_are_made_expanded_compared_and_composed() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (pruning, both, staged) = (file("pruning.yaml"), file("both.yaml"), file("staged.yaml"));
    works(&["recipe", "new", "--template", "pruning", "-o", &pruning]);
    works(&[
        "recipe",
        "new",
        "--pruning",
        "--quantization",
        "--lr",
        "linear",
        "--target",
        "vnni",
        "-o",
        &both,
    ]);
    fails(&["recipe", "new", "-o", &pruning], 3, &["pruning.yaml: is there already"]);
    fails(&["recipe", "new", "--pruning", "obs", "--target", "tensorrt"], 2, &["--target"]);
    let text = works(&["recipe", "new", "--template", "pruning"]);
    assert!(text.starts_with("# lacuna train --model resnet20 --recipe FILE\n"), "{text}");
    assert!(works(&["recipe", "new", "--list"]).contains("pruning_quantization"));
    works(&["recipe", "check", &both, "--model", "resnet20"]);

    let expanded = json(&["recipe", "expand", &pruning, "--recipe-args", "num_epochs=10"]);
    let modifier = &expanded["pruning_modifiers"][0];
    assert_eq!(
        (&modifier["__class__"], modifier["end_epoch"].as_f64()),
        (&"MagnitudePruningModifier".into(), Some(6.0))
    );
    assert!(modifier.get("leave_enabled").is_none());
    let defaults = json(&["recipe", "expand", &pruning, "--defaults"]);
    assert_eq!(defaults["pruning_modifiers"][0]["leave_enabled"], true);
    let classic = file("classic.yaml");
    fs::write(&classic, works(&["recipe", "expand", &pruning, "--yaml"])).unwrap();
    assert_eq!(works(&["recipe", "diff", &pruning, &classic]), "no difference\n");

    let difference = works(&["recipe", "diff", &pruning, &both]);
    for line in [
        "    end_epoch: 18.0 -> 15.0\n",
        "    mask_type: \"unstructured\" -> \"block4\"\n",
        "+ QuantizationModifier (",
    ] {
        assert!(difference.contains(line), "{difference}");
    }
    let difference = json(&["recipe", "diff", &pruning, &both, "--json"]);
    assert_eq!(difference["modifiers"][1]["keys"]["end_epoch"]["second"], 15.0);

    works(&["recipe", "compose", &pruning, &both, "-o", &staged]);
    let expanded = json(&["recipe", "expand", &staged]);
    assert_eq!(expanded["stage_1"]["training_modifiers"][0]["end_epoch"], 60.0);
    let kept = file("kept.yaml");
    fs::write(&kept, works(&["recipe", "compose", &pruning, &both, "--keep-original-epochs"])).unwrap();
    let expanded = json(&["recipe", "expand", &kept]);
    assert_eq!(expanded["stage_1"]["training_modifiers"][0]["end_epoch"], 30);

    let schema = json(&["recipe", "schema"]);
    assert_eq!(
        schema["$defs"]["EpochRangeModifier"]["required"],
        serde_json::json!(["start_epoch", "end_epoch"])
    );
}

#[test]
fn a_plan_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let (recipe, page) = (dir.path().join("r.yaml"), dir.path().join("plan.html"));
    fs::write(&recipe, RECIPE).unwrap();
    let words = [
        "recipe",
        "plan",
        str_of(&recipe),
        "--model",
        "resnet20",
        "--steps-per-epoch",
        "8",
        "--html",
        str_of(&page),
    ];
    let plan = json(&[&words[..], &["--format", "json"]].concat());
    assert_eq!(plan["steps"], 32);
    let html = fs::read_to_string(&page).unwrap();
    assert!(
        html.contains("GMPruningModifier, 22 tensors")
            && html.contains("quantised")
            && html.contains("class=\"all\"")
    );
}

#[test]
fn a_recipe_is_planned_for_a_model() {
    let recipe = shared().path("recipe.yaml");
    let words = ["recipe", "plan", &recipe, "--model", "resnet20", "--steps-per-epoch", "8"];
    let table = works(&words);
    assert!(
        table.contains("sparsity 0.9000") && table.ends_with("4 epochs of 8 steps: 32 steps\n"),
        "{table}"
    );
    let plan = json(&[&words[..], &["--json", "--recipe-args", "num_epochs=5"]].concat());
    assert_eq!(plan["steps"], 40);
    let pruned = plan["events"].as_array().unwrap().iter().find(|e| e["step"] == 16 && e["matched"] == 22);
    assert!(pruned.is_some(), "{plan}");
}

#[test]
fn cut_off_files_are_named_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole.onnx");
    write_onnx(&whole);
    let weights = PathBuf::from(shared().path("whole/train/weights/best.safetensors"));
    for (whole, name) in [(&whole, "cut.onnx"), (&weights, "cut.safetensors")] {
        let bytes = fs::read(whole).unwrap();
        let cut = dir.path().join(name);
        let path = str_of(&cut);
        for eighth in 0..8 {
            fs::write(&cut, &bytes[..bytes.len() * eighth / 8]).unwrap();
            fails(&["eval", path], 3, &[name]);
        }
        fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
        for verb in ["analyze", "benchmark"] {
            fails(&[verb, path], 3, &[name]);
        }
        fails(&["predict", "classify", path, "image.png"], 3, &[name]);
    }
    fails(&["export", str_of(&dir.path().join("cut.safetensors"))], 3, &["cut.safetensors"]);
    fails(&["eval", str_of(&dir.path().join("none.onnx"))], 3, &["none.onnx"]);
    fails(&["eval", str_of(dir.path())], 3, &["args.yaml"]);
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fails(&["eval", &shared().path("whole/train"), "--data", str_of(&data)], 4, &["train-images-idx3-ubyte"]);
}

#[test]
fn a_corrupt_image_does_not_stop_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("tiny.onnx");
    write_onnx(&model);
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    for i in 0..3 {
        write_png(&shared().test, i, &images.join(format!("{i}.png")));
    }
    let bytes = fs::read(images.join("1.png")).unwrap();
    fs::write(images.join("1.png"), &bytes[..bytes.len() / 2]).unwrap();
    fs::write(images.join("3.png"), b"not an image at all").unwrap();

    let words = ["predict", "classify", str_of(&model), str_of(&images), "--json"];
    fails(&words, 4, &["1.png", "3.png", "2 of 4"]);
    let report: Value = serde_json::from_slice(&run(&words).stdout).unwrap();
    let names = |list: &str| -> Vec<String> {
        let name = |v: &Value| v["image"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        report[list].as_array().unwrap().iter().map(name).collect()
    };
    assert_eq!(
        (names("results"), names("errors")),
        (vec!["0.png".into(), "2.png".into()], vec!["1.png".into(), "3.png".into()])
    );
    // Without names in the metadata, classes are numbers.
    assert!(["0", "1", "2"].contains(&report["results"][0]["classes"][0]["label"].as_str().unwrap()));
    fails(&["predict", "classify", str_of(&model), str_of(&dir.path().join("none.png"))], 4, &["none.png"]);
}

#[test]
fn benchmark_takes_the_flags_of_deepsparse_and_writes_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (model, file) = (dir.path().join("tiny.onnx"), dir.path().join("out.json"));
    write_onnx(&model);
    let (model, file) = (str_of(&model), str_of(&file));
    let cases: &[(&[&str], u64, u64, &str, u64)] = &[
        (&["-b", "1", "-ncores", "1"], 1, 1, "sync", 1),
        (&["-b", "4", "-ncores", "2", "-s", "async", "-nstreams", "2"], 4, 2, "async", 2),
        (
            &["--batch_size=2", "-ncores=2", "-s", "elastic", "-pin", "core", "-e", "deepsparse"],
            2,
            2,
            "elastic",
            2,
        ),
        (&["-b", "3", "-ncores", "1", "-shapes", "[3,1,8,8]"], 3, 1, "sync", 1),
    ];
    for (flags, batch, cores, scenario, streams) in cases {
        let words = [&["benchmark", model, "-t", "0.1", "-w", "0", "-q", "-x", file], *flags].concat();
        assert_eq!(works(&words), "", "-q prints nothing");
        let r: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        for key in [
            "engine",
            "version",
            "orig_model_path",
            "model_path",
            "batch_size",
            "input_shapes",
            "num_cores",
            "scenario",
            "scheduler",
            "seconds_to_run",
            "num_streams",
            "fraction_of_supported_ops",
        ] {
            assert!(!r[key].is_null(), "{flags:?}: no {key} in {r}");
        }
        assert_eq!((&r["batch_size"], &r["num_cores"]), (&Value::from(*batch), &Value::from(*cores)));
        assert_eq!((&r["scenario"], &r["num_streams"]), (&Value::from(*scenario), &Value::from(*streams)));
        assert_eq!(r["input_shapes"], serde_json::json!([[batch, 1, 8, 8]]));
        let result =
            |key: &str| r["benchmark_result"][key].as_f64().unwrap_or_else(|| panic!("no {key} in {r}"));
        let runs = result("iterations");
        assert!(runs >= 1.0 && result("seconds_ran") >= 0.1 && result("std") >= 0.0);
        let rate = runs * *batch as f64 / result("seconds_ran");
        assert!((result("items_per_sec") / rate - 1.0).abs() < 1e-9);
        let points = ["25.0%", "50.0%", "75.0%", "90.0%", "95.0%", "99.0%", "99.9%"].map(result);
        assert!(points.is_sorted() && points[0] > 0.0, "{points:?}");
        assert_eq!(result("median"), points[1]);
        // In milliseconds: as many runs as there were took as long as they did.
        let busy = result("mean") * runs / 1e3;
        assert!(busy <= result("seconds_ran") * *streams as f64 * 1.001, "{r}");
    }
    // In bfloat16 where the processor multiplies it; elsewhere the flag is refused.
    let words = ["benchmark", model, "--bf16", "-t", "0.1", "-w", "0", "-q", "-x", file];
    if lacuna::engine::target::has_bf16() {
        works(&words);
        let r: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        assert_eq!(r["bf16"], true);
        assert_eq!(json(&["analyze", model, "--bf16", "--runs", "0", "--json"])["bf16"], true);
    } else {
        fails(&words, 2, &["bf16", "leave it out"]);
    }
    fails(&["benchmark", model, "-shapes", "[1,3,8,8]"], 2, &["image", "dimension 1"]);
    fails(&["benchmark", model, "-shapes", "1x3"], 2, &["-shapes"]);
}

#[test]
fn a_packed_model_is_read_by_the_verbs_that_read_onnx() {
    let dir = tempfile::tempdir().unwrap();
    let (model, packed) = (dir.path().join("tiny.onnx"), dir.path().join("tiny.lacuna"));
    write_onnx(&model);
    let said = json(&["pack", str_of(&model), "--json"]);
    assert_eq!(said["lacuna"], str_of(&packed));
    assert_eq!(said["bytes"], packed.metadata().unwrap().len());
    let steps = |path: &Path| json(&["analyze", str_of(path), "--runs", "0", "--json"])["steps"].clone();
    assert_eq!(steps(&packed), steps(&model));
    let again = dir.path().join("again.lacuna");
    works(&["pack", str_of(&packed), "-o", str_of(&again)]);
    assert_eq!(fs::read(&again).unwrap(), fs::read(&packed).unwrap());
    works(&["benchmark", str_of(&packed), "-t", "0.05", "-w", "0", "--no-cache"]);
    let mut cut = fs::read(&packed).unwrap();
    cut.truncate(cut.len() / 2);
    fs::write(&again, cut).unwrap();
    fails(&["analyze", str_of(&again)], 3, &["again.lacuna", "cut off"]);
}

#[test]
fn a_run_is_trained_exported_evaluated_and_used() {
    let shared = shared();
    let (run, data) = (shared.path("whole/train"), shared.path("data"));
    let position = |needle: &str| {
        shared.printed.find(needle).unwrap_or_else(|| panic!("no {needle}: {}", shared.printed))
    };
    assert!(position("4 epochs of 8 steps") < position("top-1"), "the schedule comes first");
    position(&format!("lacuna export {run}"));
    for file in [
        "args.yaml",
        "recipe.yaml",
        "command.txt",
        "results.csv",
        "metrics.jsonl",
        "weights/last.safetensors",
    ] {
        assert!(Path::new(&run).join(file).is_file(), "no {file}");
    }
    assert_eq!(fs::read_to_string(shared.path("whole/train/recipe.yaml")).unwrap(), RECIPE);
    assert_eq!(fs::read_to_string(shared.path("whole/train/results.csv")).unwrap().lines().count(), 5);

    let onnx = shared.path("int8.onnx");
    let exported = json(&["export", &run, "-o", &onnx, "--json"]);
    assert_eq!(exported["bytes"], fs::metadata(&onnx).unwrap().len());
    let graph = lacuna::onnx::load(&onnx).unwrap();
    for (key, value) in [
        ("model", "resnet20"),
        ("recipe", RECIPE),
        ("seed", "3"),
        ("quant", "frozen"),
        ("std", "[0.35302424]"),
    ] {
        assert_eq!(graph.metadata(&format!("lacuna.{key}")), Some(value));
    }
    assert!(graph.metadata("lacuna.command").unwrap().starts_with("lacuna train --model resnet20 --recipe "));

    let burn = json(&["eval", &run, "--data", &data, "--burn", "--json"]);
    let engine = json(&["eval", &run, "--data", &data, "--json"]);
    let file = json(&["eval", &onnx, "--data", &data, "--json"]);
    assert_eq!((&engine["correct"], &engine["images"]), (&file["correct"], &Value::from(TEST_IMAGES)));
    // Float and integer arithmetic may differ at a tie of two classes.
    let off = burn["correct"].as_i64().unwrap() - engine["correct"].as_i64().unwrap();
    assert!(off.abs() <= 1, "burn {burn}, engine {engine}");
    fails(&["eval", &onnx, "--burn"], 2, &["--burn"]);

    // Predictions of single images add up to the evaluation.
    let images = shared.dir.path().join("images");
    fs::create_dir_all(&images).unwrap();
    (0..TEST_IMAGES).for_each(|i| write_png(&shared.test, i, &images.join(format!("{i:03}.png"))));
    let found = json(&["predict", "classify", &onnx, str_of(&images), "--top", "10", "--json"]);
    let results = found["results"].as_array().unwrap();
    assert_eq!(results.len(), TEST_IMAGES);
    let mut correct = 0;
    for (result, &label) in results.iter().zip(&shared.test.labels) {
        let classes = result["classes"].as_array().unwrap();
        let scores: Vec<f64> = classes.iter().map(|c| c["score"].as_f64().unwrap()).collect();
        assert!(scores.len() == 10 && scores.windows(2).all(|w| w[0] >= w[1]));
        assert!((scores.iter().sum::<f64>() - 1.0).abs() < 1e-4);
        assert_eq!(
            classes[0]["label"],
            fashion_mnist::CLASSES[classes[0]["class"].as_u64().unwrap() as usize]
        );
        correct += u64::from(classes[0]["class"] == label);
    }
    assert_eq!(engine["correct"], correct);
    let table = works(&["predict", "classify", &run, str_of(&images.join("000.png")), "--top", "2"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(!table.contains('\x1b'), "colour without a terminal");
}

#[test]
fn zeros_are_the_same_in_checkpoint_file_and_engine() {
    let shared = shared();
    let onnx = shared.path("zeros.onnx");
    works(&["export", &shared.path("whole/train"), "-o", &onnx]);
    let bytes = fs::read(shared.path("whole/train/weights/best.safetensors")).unwrap();
    let weights = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let report = json(&["analyze", &onnx, "--json", "--runs", "2"]);
    let (tensors, steps) = (report["tensors"].as_array().unwrap(), report["steps"].as_array().unwrap());
    assert_eq!(tensors.len(), 22);
    for tensor in tensors {
        let (op, elements, zeros) = (
            tensor["op"].as_str().unwrap(),
            tensor["elements"].as_u64().unwrap(),
            tensor["zeros"].as_u64().unwrap(),
        );
        let trained = weights.tensor(&format!("{op}.weight")).unwrap();
        let trained =
            trained.data().chunks_exact(4).filter(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]) == 0.0);
        let aim = (elements as f64 * 0.9).round_ties_even() as u64;
        assert!(trained.count().abs_diff(aim as usize) <= 1, "{op}: checkpoint");
        assert!(zeros.abs_diff(aim) <= 1, "{op}: {zeros} of {elements}, not {aim}");
        let step = steps.iter().find(|s| s["op"] == op && s["weights"] != 0).unwrap();
        assert_eq!(
            (&step["weights"], &step["zeros"]),
            (&tensor["elements"], &tensor["zeros"]),
            "{op}: engine"
        );
        assert!(!step["kernel"].as_str().unwrap().is_empty());
    }
    let shares: f64 = steps.iter().map(|s| s["share"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-6);
}

#[test]
fn threads_do_not_change_the_weights() {
    let shared = shared();
    let [data, recipe] = ["data", "recipe.yaml"].map(|name| shared.path(name));
    for optimizer in ["sgd", "adamw"] {
        let weights = ["1", "2"].map(|threads| {
            let project = shared.path(&format!("{optimizer}-{threads}"));
            let mut words = train_words(&data, &recipe, &project);
            words.extend(["--optimizer", optimizer, "--max-images", "128", "--recipe-args", "num_epochs=3"]);
            let out = command(&words).env("RAYON_NUM_THREADS", threads).output().unwrap();
            assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
            let page = text(&out.stdout);
            assert!(page.contains("top-1 by the engine"), "{page}");
            fs::read(Path::new(&project).join("train/weights/last.safetensors")).unwrap()
        });
        assert!(weights[0] == weights[1], "{optimizer}");
    }
}

#[test]
fn numbers_of_another_optimizer_are_refused() {
    for (optimizer, flags) in [("adam", ["--momentum", "0.5"]), ("sgd", ["--beta1", "0.8"])] {
        let words = [&["train", "--recipe", "none.yaml", "--optimizer", optimizer][..], &flags].concat();
        fails(&words, 2, &[flags[0], "--optimizer"]);
    }
    fails(
        &["train", "--recipe", "none.yaml", "--optimizer", "adam", "--beta2", "1"],
        2,
        &["--beta2", "below 1"],
    );
}

#[test]
fn a_pruned_network_learns_other_classes_and_keeps_its_zeros() {
    const CLASSES: usize = 3;
    let shared = shared();
    let dir = tempfile::tempdir().unwrap();
    let (train, test, _) = fashion_mnist::load(fashion_mnist::subset_dir().as_deref()).unwrap();
    for (set, name, images) in [(&train, "train", 160), (&test, "val", 60)] {
        for i in (0..images).filter(|&i| usize::from(set.labels[i]) < CLASSES) {
            let class = dir.path().join("images").join(name).join(format!("class{}", set.labels[i]));
            fs::create_dir_all(&class).unwrap();
            write_png(set, i, &class.join(format!("{i}.png")));
        }
    }
    let recipe = dir.path().join("transfer.yaml");
    let body = "modifiers:\n  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 2.0}\n  \
        - !SetLearningRateModifier {start_epoch: 0.0, learning_rate: 0.02}\n  \
        - !ConstantPruningModifier {start_epoch: 0.0, params: ['re:conv1.weight', 're:layer.*weight']}\n";
    fs::write(&recipe, body).unwrap();
    let [data, recipe, project] = ["images", "transfer.yaml", "runs"].map(|n| dir.path().join(n));
    let [data, recipe, project] = [str_of(&data), str_of(&recipe), str_of(&project)];
    let pruned = shared.path("whole/train/weights/pruned.safetensors");
    let words = ["train", "--recipe", recipe, "--data", data, "--project", project];
    let words = [&words[..], &["--batch", "16", "--weights", &pruned]].concat();
    let out = run(&words);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("fc.weight"), "the new layer is named: {}", text(&out.stderr));

    let read = |path: &Path| -> Vec<(String, Vec<usize>, Vec<u8>)> {
        let bytes = fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut all: Vec<_> = file
            .iter()
            .map(|(name, t)| {
                let zeros = t.data().chunks_exact(4).map(|b| u8::from(b == [0; 4])).collect();
                (name.to_owned(), t.shape().to_vec(), zeros)
            })
            .collect();
        all.sort();
        all
    };
    let run_folder = Path::new(project).join("train");
    let (before, after) = (read(Path::new(&pruned)), read(&run_folder.join("weights/last.safetensors")));
    let mut layers = 0;
    for ((name, dims, zeros), (other, now, found)) in before.iter().zip(&after) {
        assert_eq!(name, other);
        if name == "fc.weight" {
            assert_eq!((now[0], found.contains(&1)), (CLASSES, false), "the head is new and dense");
        } else if dims.len() == 4 {
            assert!(zeros == found && zeros.contains(&1), "{name}: the zeros moved");
            layers += 1;
        }
    }
    assert_eq!(layers, 21);
    let run_folder = str_of(&run_folder);
    let scored = json(&["eval", run_folder, "--data", data, "--json"]);
    let images = (0..60).filter(|&i| usize::from(test.labels[i]) < CLASSES).count();
    assert_eq!(scored["images"], images);
    fails(&["eval", run_folder, "--data", &shared.path("data")], 3, &["of 3 classes", "of 10"]);
    let onnx = str_of(&dir.path().join("m.onnx")).to_owned();
    works(&["export", run_folder, "-o", &onnx]);
    let classes = lacuna::onnx::load(&onnx).unwrap().metadata("lacuna.classes").unwrap().to_owned();
    assert_eq!(classes, r#"["class0","class1","class2"]"#);
    fails(&["train", "--recipe", recipe, "--reset-head"], 2, &["--weights"]);
}

/// A run's folder is made, nothing is trained, and the command goes on with it: what it does stands in the folder alone.
#[test]
fn blocks_of_sparseml_are_planned_and_kept_by_a_resumed_run() {
    let dir = tempfile::tempdir().unwrap();
    let [data, recipe, project] = ["data", "recipe.yaml", "runs"].map(|name| dir.path().join(name));
    write_data(&data, 32, 10);
    let keys = "params: ['re:.*conv2.weight'], init_sparsity: 0.5, final_sparsity: 0.5, start_epoch: 0, end_epoch: 1";
    let pruning = format!("GMPruningModifier {{{keys}, update_frequency: 1, mask_type: [2, 4]}}");
    fs::write(&recipe, format!("modifiers:\n  - !{pruning}\n")).unwrap();
    let plan = ["recipe", "plan", str_of(&recipe), "--model", "resnet20", "--steps-per-epoch", "1"];
    let compat = [&plan[..], &["--compat", "sparseml"]].concat();
    assert!(works(&plan).contains(", blocks [2, 4]"));
    assert!(works(&compat).contains(", SparseML's blocks [2, 4]"));
    works(&["recipe", "check", str_of(&recipe), "--model", "resnet20", "--compat", "sparseml"]);
    fails(&["recipe", "check", str_of(&recipe), "--compat", "other"], 2, &["--compat", "sparseml"]);

    let mut args = RunArgs::new("resnet20", &recipe);
    (args.compat, args.data, args.train.batch) = (Some(Compat::SparseMl), Some(data), 32);
    assert!(args.command().contains(" --compat sparseml "));
    let place = Place { project, name: "train".to_owned(), exist_ok: false };
    let run = training::start(args, &place, &[]).unwrap().folder.path;
    works(&["train", "--resume", str_of(&run)]);
    let bytes = fs::read(run.join("weights/last.safetensors")).unwrap();
    let weights = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let blocks = weights.iter().filter(|(name, _)| name.ends_with("conv2.weight"));
    let mut tensors = 0;
    for (name, weight) in blocks {
        let [outputs, inputs, 3, 3] = *weight.shape() else { panic!("{name}: {:?}", weight.shape()) };
        let zero = |pair: usize, position: usize| {
            let at = (pair * 9 + position) * 4;
            f32::from_le_bytes(weight.data()[at..at + 4].try_into().unwrap()) == 0.0
        };
        let uniform =
            |pairs: &[usize], position| pairs.iter().all(|&p| zero(p, position) == zero(pairs[0], position));
        let runs = (0..outputs * inputs / 8).map(|run| Vec::from_iter(run * 8..run * 8 + 8));
        assert!(
            runs.flat_map(|run| (0..9).map(move |p| (run.clone(), p))).all(|(run, p)| uniform(&run, p)),
            "{name}"
        );
        // The first tile of 2 x 4 at every position: by chance some, never all, are of one kind.
        let tile = [0, 1, 2, 3, inputs, inputs + 1, inputs + 2, inputs + 3];
        assert!((0..9).any(|p| !uniform(&tile, p)), "{name}: tiles");
        let zeros = (0..outputs * inputs)
            .flat_map(|pair| (0..9).map(move |p| (pair, p)))
            .filter(|&(o, p)| zero(o, p));
        assert_eq!(zeros.count(), outputs * inputs * 9 / 2, "{name}");
        tensors += 1;
    }
    assert_eq!(tensors, 9);
}

#[test]
fn a_damaged_run_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    fs::create_dir(&run).unwrap();
    fails(&["train", "--resume", str_of(&run)], 3, &["args.yaml"]);
    fs::write(run.join("args.yaml"), "model: \"resnet20\"\n").unwrap();
    fails(&["train", "--resume", str_of(&run)], 3, &["args.yaml", "recipe"]);
    fails(&["train", "--resume", "--project", str_of(&dir.path().join("none"))], 3, &["none"]);
    fails(&["train", "--resume", str_of(&run), "--recipe", "other.yaml"], 2, &["--recipe"]);
}

#[test]
fn weights_are_found_by_the_name_of_their_hub() {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = dir.path().join("models--shared--run/snapshots/main");
    fs::create_dir_all(&snapshot).unwrap();
    fs::copy(shared().path("whole/train/weights/last.safetensors"), snapshot.join("model.safetensors"))
        .unwrap();
    let output = dir.path().join("model.onnx");
    let export = |name: &str| {
        let mut export = command(&["export", name, "-o", str_of(&output)]);
        export.env("HF_HUB_CACHE", dir.path()).output().unwrap()
    };
    let out = export("hf:shared/run");
    assert!(out.status.success() && output.is_file(), "{}", text(&out.stderr));
    let out = export("hf:shared/other");
    assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("downloads nothing"), "{}", text(&out.stderr));
    // The same places by the names of models: one that is not kept here, one that nobody published, none.
    let out = export("zoo:resnet18");
    assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("models--timm--resnet18.tv_in1k"), "{}", text(&out.stderr));
    for (name, what) in [("zoo:resnet20", "no place of published weights"), ("zoo:resnet", "resnet")] {
        let out = export(name);
        assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
        assert!(text(&out.stderr).contains(what), "{}", text(&out.stderr));
    }
}

#[test]
fn the_second_device_trains() {
    let shared = shared();
    let [data, recipe, project] = ["data", "recipe.yaml", "ndarray"].map(|name| shared.path(name));
    let mut words = train_words(&data, &recipe, &project);
    words.extend(["--device", "ndarray", "--max-images", "64", "--recipe-args", "num_epochs=3"]);
    assert!(works(&words).contains("3 epochs of 2 steps"));
    let report = json(&["doctor", "--json"]);
    let names: Vec<_> = report["training"].as_array().unwrap().iter().map(|row| &row["name"]).collect();
    assert_eq!(names, ["flex", "ndarray"]);
}

#[test]
fn doctor_says_what_the_engine_uses() {
    let report = json(&["doctor", "--json"]);
    let target = lacuna::engine::Target::native().unwrap();
    assert_eq!(report["isa"]["used"], target.isa.name());
    let kernels = report["kernels"].as_array().unwrap();
    assert!(kernels.iter().any(|k| k["isa"] == "portable" && k["runs_here"] == true));
    assert_eq!(report["isa"], json(&["doctor", "--format", "json"])["isa"]);
    assert_eq!(report["training_isa"]["available"][0], "portable");
    assert_eq!([&report["device"]["name"], &report["device"]["path"]], ["flex", "own kernels"]);
    assert!(
        report["processor"]["memory_available_bytes"].as_u64()
            <= report["processor"]["memory_bytes"].as_u64()
    );
    let second = &report["processor"]["second_core"];
    let measured = second["gain"].as_f64() > Some(0.0) && second["round_trip_ns"].as_f64() > Some(0.0);
    assert_eq!(measured, std::thread::available_parallelism().unwrap().get() > 1, "{second}");
    assert_eq!(json(&["doctor", "--json", "--threads", "3"])["threads"]["training"], 3);
    let page = works(&["doctor"]);
    assert!(page.contains("flex: own kernels (") && page.contains("instructions "), "{page}");
    assert!(page.contains(target.isa.name()) && page.contains("resnet20"), "{page}");
    let out = command(&["doctor"]).env("LACUNA_ISA", "sse9").output().unwrap();
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
    let out = command(&["doctor", "--json"]).env("LACUNA_ISA", "portable").output().unwrap();
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    for isa in ["isa", "training_isa"] {
        assert_eq!([&report[isa]["used"], &report[isa]["why"]], ["portable", "LACUNA_ISA is portable"]);
    }
}
