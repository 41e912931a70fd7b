//! Owned bytes on 64-byte boundaries: packed weights and the activation arena.

use std::ops::{Deref, DerefMut, Range};

/// Alignment of every buffer and every slot in it: one cache line, one AVX-512 register.
pub const LINE: usize = 64;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// `len` bytes that start on a 64-byte boundary. The allocation is rounded up to whole lines.
#[derive(Clone, Default)]
pub struct AlignedBytes {
    lines: Vec<Line>,
    len: usize,
}

impl AlignedBytes {
    pub fn zeroed(len: usize) -> AlignedBytes {
        AlignedBytes { lines: vec![Line([0; LINE]); len.div_ceil(LINE)], len }
    }

    /// As [`AlignedBytes::zeroed`]; `None` when there is not that much memory.
    pub fn try_zeroed(len: usize) -> Option<AlignedBytes> {
        let AlignedBytes { mut lines, .. } = AlignedBytes::with_room(len)?;
        lines.resize(len.div_ceil(LINE), Line([0; LINE]));
        Some(AlignedBytes { lines, len })
    }

    /// None, with room for `len` bytes of whole lines, which no memory is taken for before they are there.
    pub fn with_room(len: usize) -> Option<AlignedBytes> {
        let mut lines = Vec::new();
        lines.try_reserve_exact(len.div_ceil(LINE)).ok()?;
        ask_for_large_pages(lines.as_mut_ptr() as *mut u8, len);
        Some(AlignedBytes { lines, len: 0 })
    }

    /// Appends bytes, from the next whole line on, and says where they lie.
    pub fn append(&mut self, bytes: &[u8]) -> Range<usize> {
        let (whole, rest) = bytes.as_chunks::<LINE>();
        let begin = self.lines.len() * LINE;
        self.lines.extend(whole.iter().map(|&line| Line(line)));
        if !rest.is_empty() {
            let mut line = [0; LINE];
            line[..rest.len()].copy_from_slice(rest);
            self.lines.push(Line(line));
        }
        self.len = begin + bytes.len();
        begin..self.len
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn as_ptr(&self) -> *const u8 {
        self.lines.as_ptr().cast()
    }

    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.lines.as_mut_ptr().cast()
    }
}

/// Asks for pages of 2 MiB, before memory is touched: an arena of many megabytes has more ordinary pages than a processor
/// remembers addresses of.
fn ask_for_large_pages(start: *mut u8, len: usize) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 2 << 20;
        let skipped = start.align_offset(PAGE);
        if len >= 2 * PAGE + skipped {
            let whole = (len - skipped) / PAGE * PAGE;
            // SAFETY: the range is inside the allocation, whose contents and rights stay as they are. It is advice: nothing
            // depends on the answer.
            unsafe { libc::madvise(start.wrapping_add(skipped).cast(), whole, libc::MADV_HUGEPAGE) };
        }
    }
    let _ = (start, len);
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `lines` owns at least `len` initialised bytes without padding.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len) }
    }
}

impl std::fmt::Debug for AlignedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBytes({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_aligned_zero_and_exactly_as_long_as_asked() {
        assert!(AlignedBytes::try_zeroed(isize::MAX as usize - 4096).is_none());
        for len in [0, 1, 63, 64, 65, 1000] {
            assert!(AlignedBytes::try_zeroed(len).is_some_and(|b| b.len() == len));
            let mut b = AlignedBytes::zeroed(len);
            assert_eq!(b.len(), len);
            assert_eq!(b.as_ptr() as usize % LINE, 0);
            assert!(b.iter().all(|&x| x == 0));
            b.fill(7);
            assert_eq!(b.iter().filter(|&&x| x == 7).count(), len);
        }
    }

    #[test]
    fn appended_bytes_begin_on_lines_and_stay() {
        let mut b = AlignedBytes::with_room(256).unwrap();
        let ranges: Vec<_> = [64, 0, 1, 65].map(|len| (len, b.append(&vec![len as u8; len]))).to_vec();
        for (len, range) in ranges {
            assert_eq!((range.start % LINE, range.len()), (0, len));
            assert!(b[range].iter().all(|&x| x == len as u8));
        }
        assert_eq!(b.len(), 128 + 65);
    }
}
