//! Checkpoints on a simulated file system that stops at every change and forgets what was not synchronised.

use super::*;
use crate::disk::simulated::{Random, Simulated, Survives};
use serde_json::json;

/// Ways in which a crash leaves what was not synchronised, besides all and nothing.
const TORN: u64 = 12;
const DIR: &str = "runs/train";

fn ways(seed: u64) -> impl Iterator<Item = Survives> {
    let torn = (0..TORN).map(move |i| Survives::Some { seed: seed.wrapping_mul(TORN) + i });
    [Survives::Everything, Survives::Nothing].into_iter().chain(torn)
}

/// A checkpoint of which every file follows from `version`, so that a mixture of two is seen. The model is large
/// enough to be written in several pieces.
fn save_version(disk: &Simulated, step: u64, version: u64) -> Result<PathBuf> {
    let tensor = |n: usize| {
        let data = (0..n).map(|i| version as f32 + i as f32 * 0.5).collect();
        [NamedTensor { name: "weight".into(), dims: vec![n], data }]
    };
    let (model, masks) = (tensor(20_000), tensor(300));
    let state = json!({ "step": step, "version": version });
    save_on(disk, Path::new(DIR), step, &[("model", &model), ("masks", &masks)], &state)
}

/// The step and version of the newest checkpoint, of which every byte is checked.
fn newest(disk: &Simulated) -> Option<(u64, u64)> {
    let found = load_latest_on(disk, Path::new(DIR)).expect("damaged ones are passed over")?;
    assert!(found.warnings.is_empty(), "a crash is not damage: {:?}", found.warnings);
    let (step, version) = (found.state["step"].as_u64()?, found.state["version"].as_u64()?);
    assert_eq!(step, found.step);
    for (name, len) in [("model", 20_000), ("masks", 300)] {
        let values = &found.file(name).unwrap()[0].data;
        assert_eq!(values.len(), len);
        assert!(values.iter().enumerate().all(|(i, &v)| v == version as f32 + i as f32 * 0.5), "{name}");
    }
    Some((step, version))
}

fn leftovers(disk: &Simulated) -> Vec<std::ffi::OsString> {
    let entries = disk.entries(Path::new(DIR)).unwrap();
    let names = entries.into_iter().map(|(name, _)| name);
    names.filter(|name| name.to_str().is_some_and(|name| name.contains('.'))).collect()
}

/// What is saved before the crash, and the step that is being saved: the first, the second, one that makes an older
/// one go, and one that replaces another of the same step.
const CASES: [(&[u64], u64); 4] = [(&[], 10), (&[10], 20), (&[10, 20], 30), (&[10, 20], 20)];

#[test]
fn a_crash_at_any_change_loses_nothing_that_was_saved() {
    let mut images = 0;
    for (before, step) in CASES {
        let start = Simulated::new();
        for (version, &step) in before.iter().enumerate() {
            save_version(&start, step, version as u64).unwrap();
        }
        let (old, version) = (newest(&start), before.len() as u64);
        let mut crash_at = 0;
        loop {
            let disk = start.copy();
            disk.fail_after(crash_at, false);
            let saved = save_version(&disk, step, version);
            for survives in ways(crash_at) {
                let disk = disk.after_crash(survives);
                let found = newest(&disk);
                let new = found == Some((step, version));
                assert!(
                    new || (saved.is_err() && found == old),
                    "{survives:?}, change {crash_at}: {found:?}"
                );
                // The next save succeeds and leaves no rubbish.
                save_version(&disk, 40, 9).unwrap();
                assert_eq!(newest(&disk.after_crash(Survives::Nothing)), Some((40, 9)));
                assert_eq!(leftovers(&disk), [""; 0]);
                images += 1;
            }
            if saved.is_ok() {
                break;
            }
            crash_at += 1;
        }
        assert!(crash_at > 15, "only {crash_at} changes were made");
    }
    println!("{images} disks after crashes");
}

/// Crash after crash, each at a random change of a random save, as a run on a bad machine has it.
#[test]
fn many_crashes_in_a_row_lose_nothing_that_was_saved() {
    for seed in 0..150 {
        let mut random = Random(seed);
        let mut disk = Simulated::new();
        // Newest that was saved, and those that were being saved when a crash came since.
        let (mut sure, mut maybe) = (None, Vec::new());
        for version in 0..12 {
            let from = newest(&disk).map_or(0, |(step, _)| step);
            let step = from + random.below(3) as u64; // 0: the same step again
            disk.fail_after(random.below(60) as u64, false);
            match save_version(&disk, step, version) {
                Ok(_) => (sure, maybe) = (Some((step, version)), Vec::new()),
                Err(_) => maybe.push((step, version)),
            }
            if random.below(4) > 0 || !maybe.is_empty() {
                let way = random.below(TORN as usize + 2);
                disk = disk.after_crash(ways(seed * 12 + version).nth(way).unwrap());
            }
            let found = newest(&disk);
            assert!(
                found == sure || maybe.iter().any(|&m| found == Some(m)),
                "seed {seed}: {found:?}, {sure:?}"
            );
            (sure, maybe) = (found, Vec::new());
        }
    }
}

/// One change fails, as on a full disk, and the process goes on.
#[test]
fn a_full_disk_is_an_error_and_the_next_save_succeeds() {
    for (before, step) in CASES {
        let start = Simulated::new();
        for (version, &step) in before.iter().enumerate() {
            save_version(&start, step, version as u64).unwrap();
        }
        let (old, first) = (newest(&start), start.changes());
        save_version(&start.copy(), step, 7).unwrap();
        for fail_at in 0.. {
            let disk = start.copy();
            disk.fail_after(fail_at, true);
            match save_version(&disk, step, 7) {
                Ok(_) => {
                    assert!(disk.changes() - first <= fail_at, "an error was passed over");
                    break;
                }
                Err(e) => assert!(matches!(&e, Error::Io { .. }), "{e}"),
            }
            for survives in ways(fail_at) {
                let found = newest(&disk.after_crash(survives));
                assert!(found == old || found == Some((step, 7)), "{fail_at}: {found:?}");
            }
            save_version(&disk, 50, 8).unwrap();
            assert_eq!((newest(&disk), leftovers(&disk)), (Some((50, 8)), vec![]));
        }
    }
}

#[test]
fn a_file_is_old_or_new_after_a_crash_at_any_change() {
    let path = Path::new("runs/weights.bin");
    let contents = |version: u8| vec![version; 200_000];
    let start = Simulated::new();
    disk::create_dir_all(&start, Path::new("runs")).unwrap();
    disk::write_atomically(&start, path, |w| w.write_all(&contents(1))).unwrap();
    for crash_at in 0.. {
        let disk = start.copy();
        disk.fail_after(crash_at, false);
        let written = disk::write_atomically(&disk, path, |w| w.write_all(&contents(2)));
        for survives in ways(crash_at) {
            let found = disk.after_crash(survives).read(path).expect("the file is there");
            assert!(found == contents(2) || (written.is_err() && found == contents(1)), "change {crash_at}");
        }
        if written.is_ok() {
            assert!(crash_at >= 5, "only {crash_at} changes were made");
            break;
        }
    }
}

/// The simulation itself: it must find what is wrong, or the tests above say nothing.
#[test]
fn a_writer_that_does_not_wait_is_caught() {
    let (tmp, path) = (Path::new("runs/f.tmp"), Path::new("runs/f"));
    let write = |disk: &Simulated, version: u8, sync_file: bool, sync_folder: bool| -> io::Result<()> {
        let mut file = disk.create(tmp)?;
        file.write_all(&[version; 4000])?;
        if sync_file {
            file.sync()?;
        }
        disk.rename(tmp, path)?;
        if sync_folder { disk.sync_dir(Path::new("runs")) } else { Ok(()) }
    };
    let broken = |sync_file, sync_folder| {
        let disk = Simulated::new();
        disk::create_dir_all(&disk, Path::new("runs")).unwrap();
        write(&disk, 1, true, true).unwrap();
        write(&disk, 2, sync_file, sync_folder).unwrap();
        let bad = |way: Survives| disk.after_crash(way).read(path).is_ok_and(|found| found != [2; 4000]);
        (0..100).map(|seed| Survives::Some { seed }).any(bad)
    };
    assert!(broken(false, true), "a file renamed before its content is on the disk");
    assert!(broken(true, false), "a name that may be lost after the writer was told all is well");
    assert!(!broken(true, true));

    let disk = Simulated::new();
    disk.create_dir(Path::new("runs")).unwrap();
    write(&disk, 1, true, true).unwrap();
    let lost = disk.after_crash(Survives::Nothing);
    assert!(!lost.exists(path), "the folder's own name was never synchronised");
}
