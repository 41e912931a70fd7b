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

thread_local! {
    static PARTS: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
}

/// Gives `run` parts of this thread's scratch memory, as long as `lens` and each starting at a cache line. They hold
/// anything (of earlier calls). The memory stays with the thread for the next call.
pub(crate) fn with_parts<const N: usize, R>(lens: [usize; N], run: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    with(&PARTS, |buffer| {
        let mut rest = buffer.at_least(lens.iter().map(|len| len.next_multiple_of(16)).sum());
        run(lens.map(|len| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(16));
            rest = behind;
            &mut part[..len]
        }))
    })
}
