//! Results that no cache would hold until they are read: written around the caches, which saves fetching the lines first
//! and keeps in the caches what is still to be read.

/// Floats from which on a result is written so: half of a large last-level cache. (A smaller one may well be there
/// when the next layer reads it.)
const LARGE: usize = 1 << 22;

/// Memory for a block of a result of `len` floats, if it is written past the caches.
pub(crate) fn room(len: usize, block: usize) -> Vec<f32> {
    vec![0f32; if len >= LARGE { block } else { 0 }]
}

/// Writes a block of a result by `fill`, past the caches if there is a [`room`] for it. [`finish`] follows the last
/// block of a task.
pub(crate) fn write(room: &mut [f32], to: &mut [f32], fill: impl FnOnce(&mut [f32])) {
    if room.is_empty() {
        return fill(to);
    }
    let block = &mut room[..to.len()];
    fill(block);
    copy(block, to);
}

/// to = from, past the caches.
fn copy(from: &[f32], to: &mut [f32]) {
    assert_eq!(from.len(), to.len());
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_loadu_ps, _mm_stream_ps};
        let head = to.as_ptr().align_offset(16).min(to.len());
        let (from_head, from) = from.split_at(head);
        let (to_head, to) = to.split_at_mut(head);
        to_head.copy_from_slice(from_head);
        let (from, from_rest) = from.as_chunks::<4>();
        let (to, to_rest) = to.as_chunks_mut::<4>();
        for (to, from) in to.iter_mut().zip(from) {
            // SAFETY: both are 4 floats, `to` at a multiple of 16 bytes after its head; every x86-64 has SSE.
            unsafe { _mm_stream_ps(to.as_mut_ptr(), _mm_loadu_ps(from.as_ptr())) };
        }
        to_rest.copy_from_slice(from_rest);
    }
    #[cfg(not(target_arch = "x86_64"))]
    to.copy_from_slice(from);
}

/// Makes a task's blocks visible before whatever the task tells others.
pub(crate) fn finish() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}
