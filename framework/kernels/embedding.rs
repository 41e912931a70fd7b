//! Rows of a table by number, and the gradient of the table: dense, with the rows that were not asked zero.

use crate::shared::Shared;
use crate::tasks::{TASK_FLOATS, each, rows_per_task};

/// A number of a row, as tensors hold it.
pub trait RowId: Copy + Sync {
    /// As an index; beyond every table if negative.
    fn index(self) -> usize;
}

impl RowId for i64 {
    fn index(self) -> usize {
        usize::try_from(self).unwrap_or(usize::MAX)
    }
}

impl RowId for i32 {
    fn index(self) -> usize {
        usize::try_from(self).unwrap_or(usize::MAX)
    }
}

impl RowId for u32 {
    fn index(self) -> usize {
        self as usize
    }
}

/// The position of the first id that is not a row of a table of `vocabulary` rows.
pub fn first_bad_id<I: RowId>(ids: &[I], vocabulary: usize) -> Option<usize> {
    ids.iter().position(|id| id.index() >= vocabulary)
}

/// Writes row `ids[i]` of `table` `[vocabulary][width]` to row i of `out` `[ids][width]`.
///
/// # Panics
/// If an id is not a row of the table (see [`first_bad_id`]), or a slice does not hold whole rows.
pub fn forward<I: RowId>(table: &[f32], width: usize, ids: &[I], out: &mut [f32]) {
    assert!(width > 0 && table.len().is_multiple_of(width) && out.len() == ids.len() * width);
    let per_task = rows_per_task(ids.len(), width);
    let out = Shared::new(out);
    each(ids.len().div_ceil(per_task), |task| {
        let from = task * per_task;
        let ids = &ids[from..][..per_task.min(ids.len() - from)];
        // SAFETY: tasks have rows of their own.
        let out = unsafe { out.part(from * width, ids.len() * width) };
        for (id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
            out.copy_from_slice(&table[id.index() * width..][..width]);
        }
    });
}

/// Writes the gradient of the whole table `[vocabulary][width]` from `dy` `[ids][width]`: row r is the sum of the rows of
/// `dy` whose id is r, in their order, or 0.
///
/// # Panics
/// As [`forward`].
pub fn backward<I: RowId>(ids: &[I], dy: &[f32], width: usize, d_table: &mut [f32]) {
    assert!(width > 0 && d_table.len().is_multiple_of(width) && dy.len() == ids.len() * width);
    let vocabulary = d_table.len() / width;
    if let Some(bad) = first_bad_id(ids, vocabulary) {
        panic!("id number {bad} is not one of {vocabulary} rows");
    }
    // A task has a range of the table's rows: it makes them zero and adds to them while they are in cache.
    let per_task = (4 * TASK_FLOATS / width).max(1);
    let tasks = vocabulary.div_ceil(per_task);
    let positions = by_task(ids, per_task, tasks);
    let d_table = Shared::new(d_table);
    each(tasks, |task| {
        let first = task * per_task;
        let rows = per_task.min(vocabulary - first);
        // SAFETY: tasks have rows of their own.
        let part = unsafe { d_table.part(first * width, rows * width) };
        part.fill(0.0);
        for &position in positions.of(task) {
            let row = ids[position as usize].index() - first;
            let dy = &dy[position as usize * width..][..width];
            for (sum, dy) in part[row * width..][..width].iter_mut().zip(dy) {
                *sum += dy;
            }
        }
    });
}

/// Positions of ids, sorted by the task that has their row and, within a task, by position.
struct Positions {
    ends: Vec<u32>,
    positions: Vec<u32>,
}

impl Positions {
    fn of(&self, task: usize) -> &[u32] {
        let from = if task == 0 { 0 } else { self.ends[task - 1] as usize };
        &self.positions[from..self.ends[task] as usize]
    }
}

/// A counting sort.
fn by_task<I: RowId>(ids: &[I], per_task: usize, tasks: usize) -> Positions {
    assert!(u32::try_from(ids.len()).is_ok(), "{} ids", ids.len());
    let mut ends = vec![0_u32; tasks];
    for id in ids {
        ends[id.index() / per_task] += 1;
    }
    let mut before = 0;
    for end in &mut ends {
        // For now where a task's positions begin; each one placed moves it on, so it ends as their end.
        before += std::mem::replace(end, before);
    }
    let mut positions = vec![0_u32; ids.len()];
    for (position, id) in ids.iter().enumerate() {
        let next = &mut ends[id.index() / per_task];
        positions[*next as usize] = position as u32;
        *next += 1;
    }
    Positions { ends, positions }
}
