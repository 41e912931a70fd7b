//! Numbered tasks over threads.

use rayon::prelude::*;

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
