//! Threads for work that is done once, while a session is made: its own threads run plans only.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What `work` makes of every number below `count`: on up to `threads` threads, which end with the call. Where the system gives
/// no more threads, the caller does all.
pub fn side_by_side<R: Send + Sync>(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> R + Sync,
) -> Vec<R> {
    let results: Vec<OnceLock<R>> = (0..count).map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let take = || {
        loop {
            let i = next.fetch_add(1, Relaxed);
            let Some(result) = results.get(i) else { return };
            let _ = result.set(work(i));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(count) {
            let _ = std::thread::Builder::new().spawn_scoped(scope, take);
        }
        take();
    });
    results.into_iter().map(|r| r.into_inner().expect("every number was taken")).collect()
}
