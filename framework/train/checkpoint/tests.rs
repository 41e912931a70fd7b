use super::*;
use serde_json::json;
use std::fs;

fn tensor(name: &str, dims: &[usize], first: f32) -> NamedTensor {
    let n: usize = dims.iter().product();
    NamedTensor {
        name: name.into(),
        dims: dims.to_vec(),
        data: (0..n).map(|i| first + i as f32 * 0.5).collect(),
    }
}

/// Tensors and state that follow from the step, so that a mixture of two steps is seen.
fn save_step(dir: &Path, step: u64) -> Result<PathBuf> {
    let first = step as f32;
    let model = [tensor("conv1.weight", &[40, 3, 3, 50], first), tensor("fc.bias", &[7], -first)];
    let optimizer = [tensor("conv1.weight", &[40, 3, 3, 50], 2.0 * first)];
    save(dir, step, &[("model", &model), ("optimizer", &optimizer), ("masks", &[])], &json!({ "step": step }))
}

fn check_step(c: &Checkpoint) {
    let first = c.step as f32;
    assert_eq!(c.state, json!({ "step": c.step }));
    assert_eq!(c.files.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["model", "optimizer", "masks"]);
    let model = c.file("model").unwrap();
    assert_eq!(model[0], tensor("conv1.weight", &[40, 3, 3, 50], first));
    assert_eq!(model[1], tensor("fc.bias", &[7], -first));
    assert_eq!(c.file("optimizer").unwrap()[0].data[0], 2.0 * first);
    assert!(c.file("masks").unwrap().is_empty() && c.file("other").is_err());
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn latest(dir: &Path) -> Checkpoint {
    let c = load_latest(dir).unwrap().expect("a checkpoint");
    check_step(&c);
    c
}

#[test]
fn the_newest_is_loaded_and_older_ones_go() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    assert!(load_latest(&run).unwrap().is_none());
    for step in [90, 100, 1100, 100, 1200] {
        save_step(&run, step).unwrap();
    }
    assert_eq!(latest(&run).step, 1200);
    assert_eq!(names(&run), ["checkpoint-1100", "checkpoint-1200"]);
    clear(&run).unwrap();
    assert!(load_latest(&run).unwrap().is_none() && names(&run).is_empty());
}

/// A real process is killed while it saves without pause.
#[test]
fn a_killed_writer_always_leaves_a_checkpoint() {
    const DIR: &str = "LACUNA_TEST_KILLED_WRITER";
    if let Some(dir) = std::env::var_os(DIR) {
        let last = load_latest(Path::new(&dir)).unwrap().map_or(0, |c| c.step);
        (last + 1..last + 2000).for_each(|step| drop(save_step(Path::new(&dir), step).unwrap()));
        return; // bounded, should nobody kill it
    }
    let dir = tempfile::tempdir().unwrap();
    let this_test = std::thread::current().name().unwrap().to_owned();
    let mut newest = 0;
    for round in 0..25u64 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &this_test, "--nocapture"])
            .env(DIR, dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Wait until it has saved, then for a moment that differs from round to round.
        let start = std::time::Instant::now();
        let saved = |f: Found| f.rank == Rank::Complete && f.step > newest;
        while !list(&Real, dir.path()).unwrap().into_iter().any(saved) && start.elapsed().as_secs() < 100 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        std::thread::sleep(std::time::Duration::from_micros(round * 7_919 % 30_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let c = latest(dir.path());
        assert!(c.warnings.is_empty(), "{:?}", c.warnings);
        assert!(c.step > newest, "went back from {newest} to {}", c.step);
        newest = c.step;
    }
}

#[test]
fn damage_is_found_and_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    save_step(dir.path(), 1).unwrap();
    let path = save_step(dir.path(), 2).unwrap();
    for name in names(&path) {
        let file = path.join(name);
        let good = fs::read(&file).unwrap();
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for bad in [flipped, good[..good.len() - 1].to_vec(), Vec::new()] {
            fs::write(&file, bad).unwrap();
            let c = latest(dir.path());
            assert_eq!((c.step, c.warnings.len()), (1, 1));
            assert!(c.warnings[0].contains("checkpoint-2"), "{}", c.warnings[0]);
        }
        fs::remove_file(&file).unwrap();
        assert_eq!(latest(dir.path()).step, 1);
        fs::write(&file, good).unwrap();
    }
    assert_eq!(latest(dir.path()).step, 2);
    for step in [1, 2] {
        fs::write(dir.path().join(format!("checkpoint-{step}/state.json")), "{}").unwrap();
    }
    let e = load_latest(dir.path()).unwrap_err();
    assert!(matches!(&e, Error::NoValidCheckpoint { reasons, .. } if reasons.len() == 2), "{e}");
}

#[test]
fn names_of_files_are_plain_and_different() {
    let dir = tempfile::tempdir().unwrap();
    assert!(save(dir.path(), 1, &[("../x", &[])], &json!(0)).is_err());
    assert!(save(dir.path(), 1, &[("x", &[]), ("x", &[])], &json!(0)).is_err());
}

#[test]
fn a_manifest_cannot_name_files_elsewhere() {
    let forge = |line: &str| {
        let body = format!("{MANIFEST_MAGIC}\nstep 1\n{line}\n");
        parse_manifest(format!("{body}end {}\n", sha256_hex(body.as_bytes())).as_bytes(), 1)
    };
    assert!(forge("00 5 model.safetensors").is_ok());
    for bad in
        ["00 5 ../model.safetensors", "00 5 /etc/passwd", "00 x state.json", "00", "00 5 a/b.safetensors"]
    {
        assert!(forge(bad).is_err(), "{bad}");
    }
    assert!(parse_manifest(b"end ", 1).is_err() && parse_manifest(&[0xff], 1).is_err());
}
