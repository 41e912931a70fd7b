//! Numbered tasks over threads, and memory they work in.

use crate::scratch::{self, Buffer};
use rayon::prelude::*;
use std::cell::RefCell;

/// Floats a task should handle at least: below that, handing it over costs more than it brings.
pub const TASK_FLOATS: usize = 1 << 14;

/// Runs `run(0)`, ... `run(tasks - 1)`, on several threads if there are several tasks.
pub fn each(tasks: usize, run: impl Fn(usize) + Sync + Send) {
    match tasks {
        0 => {}
        1 => run(0),
        _ => (0..tasks).into_par_iter().for_each(run),
    }
}

/// Rows of `width` that one task should take, of `rows` in all: at most 64 tasks, none needlessly small.
pub fn rows_per_task(rows: usize, width: usize) -> usize {
    rows.div_ceil(64).max(TASK_FLOATS / width.max(1)).max(1)
}

thread_local! {
    static SCRATCH: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
}

/// Gives `run` parts of this thread's scratch memory, as long as `lens` and each starting at a cache line. They hold
/// anything (of earlier calls). The memory stays with the thread for the next call.
pub fn with_scratch<const N: usize, R>(lens: [usize; N], run: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    scratch::with(&SCRATCH, |buffer| {
        let mut rest = buffer.at_least(lens.iter().map(|len| len.next_multiple_of(16)).sum());
        run(lens.map(|len| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(16));
            rest = behind;
            &mut part[..len]
        }))
    })
}
