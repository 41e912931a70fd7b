//! A training that is killed at any moment goes on to the same bytes.

mod common {
    pub mod runs;
}

use common::runs::{command, write_data};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const KILLS: usize = 25;
/// Trainings that may be started for them: on a machine that is suddenly faster, some end before they are killed.
const STARTS_MAX: usize = 80;
/// 8 steps of 16 images an epoch.
const TRAIN_IMAGES: usize = 128;
const STEPS: u64 = 32;
/// Optimiser, teacher, pruning: blocks by magnitude under a network that was trained before; and by the gradients of
/// images of its own, under the weights that it had itself when the first epoch was over.
const CASES: [(&str, &str, &str); 2] = [
    ("sgd", "teacher/train/weights/last.safetensors", "GMPruningModifier\n    mask_type: [1, 4]"),
    ("adamw", "self", "OBSPruningModifier\n    num_grads: 6\n    fisher_block_size: 8"),
];
/// Pruned in two epochs, distilled from the second on, quantised for the last two; observers stop in between.
const RECIPE: &str = "\
modifiers:
  - !EpochRangeModifier
    start_epoch: 0.0
    end_epoch: 4.0
  - !LearningRateFunctionModifier
    start_epoch: 0.0
    end_epoch: 4.0
    lr_func: cosine
    init_lr: 0.05
    final_lr: 0.001
  - !PRUNING
    params: ['re:layer.*weight']
    init_sparsity: 0.05
    final_sparsity: 0.9
    start_epoch: 0.0
    end_epoch: 2.0
    update_frequency: 0.25
  - !DistillationModifier
    start_epoch: 1.0
    hardness: 0.5
    temperature: 2.0
  - !QuantizationModifier
    start_epoch: 2.0
    disable_quantization_observer_epoch: 2.5
    freeze_bn_stats_epoch: 3.0
    scheme:
      input_activations: {num_bits: 8, symmetric: False}
      weights: {num_bits: 8, symmetric: True, strategy: channel}
";

#[test]
fn a_run_killed_at_any_moment_ends_in_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    write_data(&dir.path().join("data"), TRAIN_IMAGES, 50);
    train_teacher(dir.path());
    let whole = CASES.map(|case @ (optimizer, _, pruning)| {
        let recipe = RECIPE.replace("PRUNING", pruning);
        fs::write(dir.path().join(format!("{optimizer}.yaml")), recipe).unwrap();
        let begun = Instant::now();
        let project = dir.path().join(format!("whole-{optimizer}"));
        finish(start(dir.path(), &project, case));
        (case, begun.elapsed(), results(&project.join("train")))
    });

    let mut random = Random(20_261_127);
    let (mut kills, mut again, mut ended) = (0, 0, 0);
    for round in 0..STARTS_MAX {
        if kills == KILLS {
            break;
        }
        let (case, duration, expected) = &whole[round % 2];
        let project = dir.path().join(format!("killed-{round}"));
        let run = project.join("train");
        let child = start(dir.path(), &project, *case);
        // The folder is made before anything is trained: a run that has none was never begun.
        if !kill_within(child, *duration, &mut random, &run) {
            ended += 1;
            continue;
        }
        kills += 1;
        let from = newest_checkpoint(&run);
        // One in three is killed again while it goes on.
        if random.below(3) == 0 && kills < KILLS {
            let killed = kill_within(resume(&run), *duration / 3, &mut random, &run);
            (kills, again) = (kills + usize::from(killed), again + usize::from(killed));
        }
        // The folder says everything; without one the newest of the project is taken.
        finish(if round % 5 == 0 { resume_newest(&project) } else { resume(&run) });
        let found = results(&run);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (file, bytes) in &found {
            assert!(*bytes == expected[file], "{case:?}: {file} differs, killed after checkpoint {from:?}");
        }
    }
    println!(
        "{kills} kills, {again} of them of a run that went on; {ended} runs ended before they were killed"
    );
    assert_eq!(kills, KILLS);
}

/// An epoch without a recipe's help.
fn train_teacher(dir: &Path) {
    let recipe = "modifiers:\n  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 1.0}\n";
    fs::write(dir.join("teacher.yaml"), recipe).unwrap();
    let [data, recipe, project] = ["data", "teacher.yaml", "teacher"].map(|name| dir.join(name));
    let [data, recipe, project] = [&data, &recipe, &project].map(|path| path.to_str().unwrap());
    finish(spawn(&["train", "--recipe", recipe, "--data", data, "--project", project, "--batch", "16"]));
}

fn start(dir: &Path, project: &Path, (optimizer, teacher, _): (&str, &str, &str)) -> Child {
    let teacher = match teacher {
        "self" => teacher.to_owned(),
        file => dir.join(file).to_str().unwrap().to_owned(),
    };
    let [data, recipe, project] =
        [dir.join("data"), dir.join(format!("{optimizer}.yaml")), project.to_owned()]
            .map(|p| p.to_str().unwrap().to_owned());
    let words = ["--recipe", &recipe, "--data", &data, "--project", &project, "--optimizer", optimizer];
    let words = [&words[..], &["--teacher", &teacher]].concat();
    let numbers = ["--batch", "16", "--seed", "3", "--checkpoint-steps", "3", "--weight-decay", "0.001"];
    spawn(&[&["train"][..], &words, &numbers].concat())
}

fn resume(run: &Path) -> Child {
    spawn(&["train", "--resume", run.to_str().unwrap()])
}

fn resume_newest(project: &Path) -> Child {
    spawn(&["train", "--resume", "--project", project.to_str().unwrap()])
}

fn spawn(words: &[&str]) -> Child {
    command(words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(child: Child) {
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// Kills a training at a moment between the making of its folder and its usual end; false where it ended before.
fn kill_within(mut child: Child, duration: Duration, random: &mut Random, run: &Path) -> bool {
    let begun = Instant::now();
    let moment = duration.mul_f64(random.below(1000) as f64 / 1000.0);
    while begun.elapsed() < moment || !run.join("args.yaml").is_file() {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return false;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(newest_checkpoint(run).is_none_or(|newest| newest <= STEPS));
    !status.success()
}

/// The files of a finished run of which every byte follows from its arguments.
fn results(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names: Vec<String> = ["results.csv", "metrics.jsonl", "recipe.yaml"].map(str::to_owned).into();
    for folder in ["weights".to_owned(), format!("checkpoint-{STEPS}")] {
        for entry in fs::read_dir(run.join(&folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            // The state also holds the name of the event file, which is a time.
            if name.ends_with(".safetensors") {
                names.push(format!("{folder}/{name}"));
            }
        }
    }
    names.into_iter().map(|name| (name.clone(), fs::read(run.join(name)).unwrap())).collect()
}

/// Number of the newest checkpoint in a run folder.
fn newest_checkpoint(run: &Path) -> Option<u64> {
    let entries = fs::read_dir(run).ok()?;
    let number = |e: fs::DirEntry| e.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok();
    entries.flatten().filter_map(number).max()
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}
