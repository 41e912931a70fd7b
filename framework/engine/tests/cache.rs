//! Measured choices on disk. One test, so that it can set the environment before there are threads.

mod common;

use common::*;
use lacuna_engine::{Isa, Options, Session, StepProfile, Target, Tune};
use std::path::PathBuf;
use std::{env, fs};

/// All but those of orders of channels.
fn files(folder: &PathBuf) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).map_or(Vec::new(), |entries| entries.map(|e| e.unwrap().path()).collect());
    all.into_iter().filter(|path| path.extension().is_none_or(|e| e != "orders")).collect()
}

#[test]
fn choices_are_kept_found_again_and_written_anew_when_they_are_broken() {
    let folder = env::temp_dir().join(format!("lacuna-cache-test-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    // SAFETY: the only test of this program, and no session has started a thread yet.
    unsafe { env::set_var("LACUNA_CACHE", &folder) };
    let g = resnet(true, 0.8);
    let options = Options { tune: Tune::Cached, threads: Some(2), batch: Some(16), ..Options::default() };
    let batches = [16, 15].map(|n| [input(&g, n, 5)]);
    let mut plain = Session::new(&g, &Options { threads: Some(1), ..Options::default() }).unwrap();
    let want = batches.each_ref().map(|x| plain.run(x).unwrap());
    let run = || {
        let mut session = Session::new(&g, &options).unwrap();
        let mut streams = [1, 2].map(|threads| session.stream(threads, 0).unwrap());
        for (x, want) in batches.iter().zip(&want) {
            assert_eq!(session.run(x).unwrap(), *want);
            for stream in &mut streams {
                assert_eq!(stream.run(x).unwrap(), *want);
            }
        }
        assert!(session.profile(&batches[0], 1).unwrap().iter().all(|step| step.measured_ns.is_some()));
        session.analyze()
    };
    let reasons = |steps: &[StepProfile]| steps.iter().map(|s| s.reason.clone()).collect::<Vec<_>>();

    let first = reasons(&run());
    let [file] = &files(&folder)[..] else { panic!("one file, not {:?}", files(&folder)) };
    let text = fs::read_to_string(file).unwrap();
    // What was measured stands in the file, and is not measured again.
    assert_eq!(reasons(&run()), first);

    // Results are the same however many images run at a time, and whether threads share them; numbers that do not divide
    // the batch count as all of it.
    let images = text.lines().find(|l| l.starts_with("images ")).unwrap();
    for n in [0, 1, 2, 4, 5, 8, 16, 32] {
        for apart in ["", " apart"] {
            fs::write(file, text.replace(images, &format!("images {n}{apart}"))).unwrap();
            run();
        }
    }

    // Whatever stands there instead, results are the same, and a whole file is there afterwards.
    let cut = text.as_bytes()[..text.len() / 2].to_vec();
    let foreign = b"\xff\xfe something else".to_vec();
    let renamed = text.replace("conv_", "vonc_").into_bytes();
    for broken in [Vec::new(), cut, foreign, renamed] {
        fs::write(file, broken).unwrap();
        run();
        let again = fs::read_to_string(file).unwrap();
        assert_eq!(again.lines().last(), text.lines().last());
    }
    assert_eq!(files(&folder).len(), 1, "no temporary file is left");

    // The same holds for orders of channels, and results are the same whatever order is read.
    let mut all = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path());
    let orders = all.find(|path| path.extension().is_some_and(|e| e == "orders"));
    assert_eq!(orders.is_some(), Target::native().unwrap().isa >= Isa::Avx512Vbmi);
    if let Some(file) = orders {
        let text = fs::read_to_string(&file).unwrap();
        let turned = text.lines().map(|line| match line.split_once(' ') {
            Some((class, order)) if class != "lacuna" && class != "end" => {
                let channels: Vec<&str> = order.split(' ').rev().collect();
                format!("{class} {}\n", channels.join(" "))
            }
            _ => format!("{line}\n"),
        });
        let turned: String = turned.collect();
        assert_ne!(turned, text);
        fs::write(&file, &turned).unwrap();
        run();
        assert_eq!(fs::read_to_string(&file).unwrap(), turned, "it is taken as it stands");
        for broken in [&text[..text.len() / 2], "", &text.replace("end", "dne")] {
            fs::write(&file, broken).unwrap();
            run();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
    }

    // Layers that run in bands are found again as such; the same layers one by one are others.
    let phone = mobile(128, 96);
    for (cache, bands) in [(40 << 10, 1), (usize::MAX / 4, 0)] {
        let options = Options { cache_bytes: Some(cache), batch: None, ..options };
        let session = || Session::new(&phone, &options).unwrap();
        let (first, again) = (session(), session());
        assert_eq!(first.analyze(), again.analyze());
        assert_eq!(again.steps().iter().filter(|s| s.kernel == "bands_of_lines").count(), bands);
        assert_eq!(again.steps().iter().any(|s| s.reason.contains("in bands")), bands > 0);
    }
    assert_eq!(files(&folder).len(), 3);

    // What was measured with products in bfloat16 is kept beside what was measured without, and not taken for it.
    let mut kept = 3;
    let can = |bf16: &bool| Target::native().unwrap().with_bf16(*bf16).is_ok();
    for bf16 in [true, false].into_iter().filter(can) {
        let options = Options { bf16, batch: None, threads: Some(1), ..options };
        let session = || Session::new(&mlp(false, 0.0), &options).unwrap();
        let (first, again) = (session(), session());
        assert_eq!(first.analyze(), again.analyze());
        assert!(
            bf16 || again.steps().iter().all(|s| !s.kernel.contains("bf16") && !s.reason.contains("bf16"))
        );
        kept += 1;
        assert_eq!(files(&folder).len(), kept);
    }

    // A folder that cannot be made is no error.
    // SAFETY: as above; sessions have ended with their threads.
    unsafe { env::set_var("LACUNA_CACHE", file.join("below")) };
    run();
    fs::remove_dir_all(&folder).unwrap();
}
