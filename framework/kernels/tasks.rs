//! Numbered tasks over threads, and memory they work in.

use rayon::prelude::*;
use std::cell::Cell;

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

/// A cache line: what scratch memory is made of, so that it is aligned.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    static SCRATCH: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Gives `run` parts of this thread's scratch memory, as long as `lens` and each starting at a cache line. They hold
/// anything (of earlier calls). The memory stays with the thread for the next call.
pub fn with_scratch<const N: usize, R>(lens: [usize; N], run: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    let lines = lens.iter().map(|len| len.div_ceil(16)).sum();
    // Taken out while in use: should this thread meet another task inside `run`, that one gets memory of its own.
    let mut memory = SCRATCH.take();
    if memory.len() < lines {
        memory.resize(lines, Line([0.0; 16]));
    }
    let mut rest: &mut [f32] = {
        let all = memory.as_mut_slice();
        // SAFETY: a `Line` is 16 floats and nothing else, so the slice is as many floats.
        unsafe { std::slice::from_raw_parts_mut(all.as_mut_ptr().cast::<f32>(), all.len() * 16) }
    };
    let parts = lens.map(|len| {
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(len.div_ceil(16) * 16);
        rest = behind;
        &mut part[..len]
    });
    let result = run(parts);
    SCRATCH.set(memory);
    result
}
