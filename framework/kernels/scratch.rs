//! Memory that a thread keeps between calls.

use std::cell::RefCell;
use std::thread::LocalKey;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Floats from the start of a cache line.
#[derive(Default)]
pub(crate) struct Buffer(Vec<Line>);

impl Buffer {
    pub const fn new() -> Buffer {
        Buffer(Vec::new())
    }

    /// The first `len` floats; they hold what was last written there, or zeros.
    pub fn at_least(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; 16]));
        }
        // SAFETY: a line is 16 initialised floats without gaps, and there are enough of them.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), len) }
    }

    /// All floats it has.
    pub fn filled(&self) -> &[f32] {
        // SAFETY: a line is 16 initialised floats without gaps.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 16) }
    }
}

/// Calls `f` with the thread's buffer. It is taken out meanwhile: a call that rayon runs on this thread inside `f` finds
/// an empty one and not a borrowed one.
pub(crate) fn with<T: Default, R>(buffer: &'static LocalKey<RefCell<T>>, f: impl FnOnce(&mut T) -> R) -> R {
    let mut taken = buffer.take();
    let result = f(&mut taken);
    buffer.set(taken);
    result
}
