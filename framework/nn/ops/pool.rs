//! Memory of large tensors, kept for the next tensor of that size. A training step asks for the same sizes over and
//! over; taken from the system each time, every one would be fresh pages to fault in and clear (a sixth of a step, measured).
//!
//! Blocks are whole huge pages where the system gives them. What is kept never makes the total exceed the largest
//! amount that was in use at once by more than a half: sizes of the forward pass wait while those of the backward pass
//! are in use.

use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty, Bytes};
use memmap2::MmapMut;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::sync::{LazyLock, Mutex, MutexGuard};

/// Smaller tensors come from the allocator, which keeps such blocks itself.
const SMALLEST: usize = 1 << 16;

#[derive(Default)]
struct Pool {
    /// Free blocks by size in bytes.
    free: HashMap<usize, Vec<MmapMut>>,
    kept: usize,
    used: usize,
    most_used: usize,
}

static POOL: LazyLock<Mutex<Pool>> = LazyLock::new(Mutex::default);

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Sizes are rounded up to an eighth of their power of two, so that near sizes share blocks.
fn rounded(bytes: usize) -> usize {
    bytes.next_multiple_of((bytes.next_power_of_two() / 16).max(4096))
}

/// Memory for `len` floats: initialised, with values that mean nothing.
///
/// # Panics
/// If the system has no such memory left, as any allocation does.
pub fn floats(len: usize) -> Bytes {
    let bytes = len * size_of::<f32>();
    if bytes < SMALLEST {
        return Bytes::from_elems(vec![0f32; len]);
    }
    let block = Block { memory: Some(take(rounded(bytes))) };
    // SAFETY: a block's memory is initialised: anonymous maps are zero, and tensors only write values over that.
    unsafe { Bytes::from_controller(Box::new(block), bytes) }
}

fn take(size: usize) -> MmapMut {
    let mut pool = pool();
    pool.used += size;
    pool.most_used = pool.most_used.max(pool.used);
    if let Some(block) = pool.free.get_mut(&size).and_then(Vec::pop) {
        pool.kept -= size;
        return block;
    }
    drop(pool);
    let block = MmapMut::map_anon(size).unwrap_or_else(|e| panic!("{size} bytes for a tensor: {e}"));
    // A system without huge pages says no; nothing depends on them.
    #[cfg(target_os = "linux")]
    let _ = block.advise(memmap2::Advice::HugePage);
    block
}

fn give_back(block: MmapMut) {
    let size = block.len();
    let mut pool = pool();
    pool.used -= size;
    if pool.used + pool.kept + size <= pool.most_used + pool.most_used / 2 {
        pool.kept += size;
        pool.free.entry(size).or_default().push(block);
    }
}

/// `None` only while it is dropped.
struct Block {
    memory: Option<MmapMut>,
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            give_back(memory);
        }
    }
}

impl AllocationController for Block {
    fn alloc_align(&self) -> usize {
        align_of::<u128>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Other
    }

    unsafe fn memory_mut(&mut self, _: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let memory = self.memory.as_deref_mut().unwrap_or_default();
        // SAFETY: u8 and MaybeUninit<u8> have one layout; the caller writes only initialised bytes.
        Ok(unsafe { &mut *(std::ptr::from_mut(memory) as *mut [MaybeUninit<u8>]) })
    }

    fn memory(&self, _: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let memory = self.memory.as_deref().unwrap_or_default();
        // SAFETY: u8 and MaybeUninit<u8> have one layout.
        Ok(unsafe { &*(std::ptr::from_ref(memory) as *const [MaybeUninit<u8>]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_serves_the_next_tensor_of_its_size() {
        let len = (7 << 20) + 12;
        let first = floats(len);
        let at = first.as_ptr();
        assert_eq!(first.len(), len * 4);
        drop(first);
        let second = floats(len + 3);
        assert_eq!(second.as_ptr(), at, "the rounded sizes are equal, and the block was free");
        let third = floats(len);
        assert_ne!(third.as_ptr(), at);
    }

    #[test]
    fn what_is_kept_is_bounded_by_what_was_used() {
        let blocks: Vec<Bytes> = (0..8).map(|i| floats((1 + i) << 18)).collect();
        drop(blocks);
        let pool = pool();
        assert!(pool.used + pool.kept <= pool.most_used + pool.most_used / 2);
    }
}
