//! How kernels are chosen may change how long a run takes, never what it gives.

mod common;

use common::*;
use lacuna_engine::{Options, Pool, Session, Tune};

#[test]
fn integer_results_do_not_depend_on_measured_choices() {
    for &(name, make) in NETS {
        for sparsity in [0.0, 0.8] {
            let g = make(true, sparsity);
            for threads in [1, 2, 3] {
                let plain = Options { threads: Some(threads), ..Options::default() };
                let tuned = Options { tune: Tune::On, batch: Some(2), ..plain };
                let mut a = Session::new(&g, &plain).unwrap();
                let mut b = Session::new(&g, &tuned).unwrap();
                for batch in [2, 1, 3, 2] {
                    let x = [input(&g, batch, 5)];
                    assert_eq!(a.run(&x).unwrap(), b.run(&x).unwrap(), "{name} {threads} threads");
                }
            }
        }
    }
}

#[test]
fn measured_choices_say_what_was_measured() {
    let g = resnet(true, 0.8);
    let options = Options { tune: Tune::On, threads: Some(2), batch: Some(16), ..Options::default() };
    let session = Session::new(&g, &options).unwrap();
    assert!(session.steps().iter().any(|s| s.reason.contains("measured")));
}

#[test]
fn weights_that_were_given_back_are_not_missed() {
    for &(name, make) in NETS {
        for quantised in [false, true] {
            let g = make(quantised, 0.8);
            let mut kept = Session::new(&g, &Options::default()).unwrap();
            let mut lean =
                Session::new(&g, &Options { release_weights: true, ..Options::default() }).unwrap();
            let bytes = |s: &Session| s.lowered().consts.as_slice().iter().map(|c| c.len()).sum::<usize>();
            assert!(bytes(&lean) < bytes(&kept), "{name}");
            for batch in [1, 3, 1, 2] {
                let x = [input(&g, batch, 5)];
                assert_eq!(kept.run(&x).unwrap(), lean.run(&x).unwrap(), "{name} batch {batch}");
            }
        }
    }
}

#[test]
fn streams_share_weights_and_give_the_same() {
    let g = resnet(true, 0.8);
    let mut first = Session::new(&g, &Options { threads: Some(2), ..Options::default() }).unwrap();
    let mut others: Vec<Session> = (1..4).map(|n| first.stream(n, 0).unwrap()).collect();
    for batch in [1, 3] {
        let x = [input(&g, batch, 5)];
        let want = first.run(&x).unwrap();
        std::thread::scope(|scope| {
            for session in &mut others {
                scope.spawn(|| assert_eq!(session.run(&x).unwrap(), want));
            }
        });
    }
}

#[test]
fn a_pool_serves_more_callers_than_it_has_sessions() {
    let g = resnet(true, 0.8);
    for threads in [1, 2, 3] {
        let pool = Pool::new(&g, &Options { threads: Some(threads), ..Options::default() }).unwrap();
        assert_eq!(pool.cores(), threads);
        let x = [input(&g, 1, 5)];
        let want = pool.with(|s| s.run(&x)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..5 {
                scope.spawn(|| (0..20).for_each(|_| assert_eq!(pool.with(|s| s.run(&x)).unwrap(), want)));
            }
        });
    }
}

#[test]
fn pinned_sessions_run() {
    let g = resnet(true, 0.8);
    let options = Options { threads: Some(2), first_core: Some(0), ..Options::default() };
    let made = Session::new(&g, &options);
    assert_eq!(made.is_ok(), cfg!(target_os = "linux"));
    if let Ok(mut session) = made {
        session.run(&[input(&g, 1, 5)]).unwrap();
    }
}
