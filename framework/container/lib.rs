//! Lacuna's own model file, `.lacuna`: a graph whose zeros take no room.
//!
//! ```text
//! byte 0   "LACUNA1\n"
//! byte 8   u32 CRC-32C of all that follows, u32 bytes of the text, u32 blobs, u32 zero
//! byte 24  the graph as text, UTF-8 (see lacuna_ir::text); its large constants are `blob 0`, `blob 1`, ...
//!          zeros up to a multiple of 64
//! blob     u32 coding, u32 elements, u64 bytes of data, zeros up to 64; the data; zeros up to a multiple of 64
//! ...
//! ```
//! Coding 0 is plain: an element is a byte, and data are the constant's bytes. Codings 1 and 4 leave zeros out:
//! elements have so many bytes, the data are a bit for each of them, lowest first, and then the bytes of those whose
//! bit is set. Each blob takes the shorter one. Numbers and constants are little-endian.
//!
//! A file is not trusted: lengths are checked before they are used, what is allocated for a blob is at most 32 times
//! what the file holds of it, and whatever is wrong is an [`Error`].

#![forbid(unsafe_code)]
#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use bytes::Bytes;
use lacuna_ir::{Graph, text};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"LACUNA1\n";
/// Bytes before the text.
const HEAD: usize = 24;
/// Everything begins at a multiple of this, so that constants can be read where they lie.
const LINE: usize = 64;
/// Largest file that is read.
pub const FILE_BYTES_MAX: u64 = 8 << 30;
/// What all constants of a file may take in memory.
pub const CONSTANT_BYTES_MAX: usize = 16 << 30;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way in which reading or writing fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {source}", path = path.display())]
    InFile { path: PathBuf, source: Box<Error> },
    #[error("not a regular file")]
    NotAFile,
    #[error("not a .lacuna file, or one of a newer version")]
    NotAContainer,
    #[error("{what}: {got}, the limit is {max}")]
    TooLarge { what: &'static str, got: u64, max: u64 },
    #[error("the file is cut off at byte {at}")]
    Truncated { at: usize },
    #[error("the file is damaged: its checksum is {got:08x}, it says {want:08x}")]
    Checksum { want: u32, got: u32 },
    #[error("blob {blob}: {why}")]
    Blob { blob: usize, why: &'static str },
    #[error("the graph's text is damaged: {0}")]
    Text(&'static str),
    #[error(transparent)]
    Graph(#[from] lacuna_ir::Error),
}

/// Whether a file that begins so is meant to be one of these.
pub fn is_container(begin: &[u8]) -> bool {
    begin.starts_with(MAGIC)
}

// ---- writing ---------------------------------------------------------------------------------------

/// Writes `g` to `path` and returns the file's size. The file is whole or not there: it is written beside and renamed.
pub fn save(g: &Graph, path: impl AsRef<Path>) -> Result<u64> {
    let path = path.as_ref();
    let bytes = to_bytes(g)?;
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        Error::Io { path: path.to_path_buf(), source }
    })?;
    Ok(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
}

/// The file's bytes. Rows that nothing reads are left out.
pub fn to_bytes(g: &Graph) -> Result<Vec<u8>> {
    lacuna_ir::verify::verify(g)?;
    let (text, blobs) = text::print_with_blobs(g);
    let mut file = Vec::new();
    file.extend_from_slice(MAGIC);
    let large = |what, got| Error::TooLarge { what, got, max: u64::from(u32::MAX) };
    for (what, n) in [("", 0), ("bytes of the graph's text", text.len()), ("constants", blobs.len()), ("", 0)]
    {
        let n = u32::try_from(n).map_err(|_| large(what, u64::try_from(n).unwrap_or(u64::MAX)))?;
        file.extend_from_slice(&n.to_le_bytes());
    }
    file.extend_from_slice(text.as_bytes());
    fill_line(&mut file);
    for (dtype, bytes) in blobs {
        let (coding, elements, data) = encode(&bytes, dtype.size());
        let elements = u32::try_from(elements).map_err(|_| large("elements of a constant", u64::MAX))?;
        file.extend_from_slice(&coding.to_le_bytes());
        file.extend_from_slice(&elements.to_le_bytes());
        file.extend_from_slice(&u64::try_from(data.len()).unwrap_or(u64::MAX).to_le_bytes());
        fill_line(&mut file);
        file.extend_from_slice(&data);
        fill_line(&mut file);
    }
    let sum = crc32c::crc32c(file.get(12..).unwrap_or_default());
    if let Some(place) = file.get_mut(8..12) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
    Ok(file)
}

fn fill_line(file: &mut Vec<u8>) {
    file.resize(file.len().next_multiple_of(LINE), 0);
}

/// Coding, elements and data of a constant.
fn encode(bytes: &[u8], size: usize) -> (u32, usize, Vec<u8>) {
    let plain = || (0, bytes.len(), bytes.to_vec());
    let coding = match size {
        1 => 1,
        4 => 4,
        _ => return plain(),
    };
    let elements = bytes.chunks_exact(size);
    let count = elements.len();
    let mut data = vec![0u8; count.div_ceil(8)];
    let mut nonzero = Vec::new();
    for (mask, eight) in data.iter_mut().zip(bytes.chunks(size.saturating_mul(8))) {
        for (bit, element) in eight.chunks_exact(size).enumerate() {
            // -0.0 has a bit, and is kept.
            if element.iter().any(|&b| b != 0) {
                *mask |= 1 << bit;
                nonzero.extend_from_slice(element);
            }
        }
    }
    if data.len().saturating_add(nonzero.len()) >= bytes.len() {
        return plain();
    }
    data.extend_from_slice(&nonzero);
    (coding, count, data)
}

// ---- reading ---------------------------------------------------------------------------------------

/// Reads a model from a file.
pub fn load(path: impl AsRef<Path>) -> Result<Graph> {
    let path = path.as_ref();
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let inner = || {
        // Asked before opening: opening a pipe would wait for a writer.
        let meta = fs::metadata(path).map_err(io)?;
        if !meta.is_file() {
            return Err(Error::NotAFile);
        }
        if meta.len() > FILE_BYTES_MAX {
            let what = "size of the file, bytes";
            return Err(Error::TooLarge { what, got: meta.len(), max: FILE_BYTES_MAX });
        }
        let mut file = Vec::new();
        File::open(path).map_err(io)?.take(FILE_BYTES_MAX).read_to_end(&mut file).map_err(io)?;
        parse(Bytes::from(file))
    };
    inner().map_err(|e| match e {
        e @ Error::Io { .. } => e,
        e => Error::InFile { path: path.to_path_buf(), source: Box::new(e) },
    })
}

/// A place in a file, which only moves over bytes that are there.
struct Cursor {
    file: Bytes,
    at: usize,
}

impl Cursor {
    fn take(&mut self, len: usize) -> Result<Bytes> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.file.len());
        let end = end.ok_or(Error::Truncated { at: self.file.len() })?;
        let bytes = self.file.slice(self.at..end);
        self.at = end;
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        let at = self.at;
        <[u8; N]>::try_from(self.take(N)?.as_ref()).map_err(|_| Error::Truncated { at })
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.number()?))
    }

    /// Moves to the next multiple of [`LINE`], over zeros.
    fn line(&mut self) -> Result<bool> {
        let gap = self.at.next_multiple_of(LINE).saturating_sub(self.at);
        Ok(self.take(gap)?.iter().all(|&b| b == 0))
    }
}

fn usize_of(n: impl TryInto<usize>) -> usize {
    // A length that does not fit this machine is longer than any file on it.
    n.try_into().unwrap_or(usize::MAX)
}

/// Reads a model from bytes. Constants that are stored plainly are ranges of `file`.
pub fn parse(file: Bytes) -> Result<Graph> {
    if !is_container(&file) {
        return Err(Error::NotAContainer);
    }
    let mut c = Cursor { file, at: MAGIC.len() };
    let want = c.u32()?;
    let got = crc32c::crc32c(c.file.get(c.at..).unwrap_or_default());
    let (text_len, blobs, zero) = (usize_of(c.u32()?), usize_of(c.u32()?), c.u32()?);
    // What is missing is told before what is wrong.
    debug_assert_eq!(c.at, HEAD);
    let text = c.take(text_len)?;
    if got != want {
        return Err(Error::Checksum { want, got });
    }
    if !c.line()? || zero != 0 {
        return Err(Error::Text("what follows it is not zero"));
    }
    let text = std::str::from_utf8(&text).map_err(|_| Error::Text("it is not UTF-8"))?;
    let (mut constants, mut total) = (Vec::new(), 0usize);
    for blob in 0..blobs {
        let bytes = read_blob(&mut c, blob, &mut total)?;
        constants.push(bytes);
    }
    if c.at != c.file.len() {
        return Err(Error::Blob { blob: blobs, why: "something follows the last one" });
    }
    Ok(text::parse_with_blobs(text, &constants)?)
}

fn read_blob(c: &mut Cursor, blob: usize, total: &mut usize) -> Result<Bytes> {
    let wrong = |why| Error::Blob { blob, why };
    let (coding, elements) = (c.u32()?, usize_of(c.u32()?));
    let len = usize_of(u64::from_le_bytes(c.number()?));
    if !c.line()? {
        return Err(wrong("what follows its head is not zero"));
    }
    let data = c.take(len)?;
    if !c.line()? {
        return Err(wrong("what follows it is not zero"));
    }
    let size = match coding {
        0 if elements == len => 1,
        0 => return Err(wrong("its length is not its number of elements")),
        1 => 1,
        4 => 4,
        _ => return Err(wrong("it is coded in a way that this version does not know")),
    };
    // The mask is there: what is allocated is at most 32 bytes for each of its own.
    if coding != 0 && elements.div_ceil(8) > len {
        return Err(wrong("it has fewer bits than elements"));
    }
    *total = elements.saturating_mul(size).saturating_add(*total);
    if *total > CONSTANT_BYTES_MAX {
        let [got, max] = [*total, CONSTANT_BYTES_MAX].map(|n| u64::try_from(n).unwrap_or(u64::MAX));
        return Err(Error::TooLarge { what: "bytes of all constants", got, max });
    }
    match coding {
        0 => Ok(data),
        _ => decode(&data, elements, size)
            .map(Bytes::from)
            .ok_or_else(|| wrong("its bits and its data differ")),
    }
}

/// The bytes of so many elements. `None` if the set bits are not as many as the elements that follow them, or one
/// stands beyond the last element.
fn decode(data: &[u8], elements: usize, size: usize) -> Option<Vec<u8>> {
    let (mask, nonzero) = data.split_at_checked(elements.div_ceil(8))?;
    let set: usize = mask.iter().map(|m| usize_of(m.count_ones())).sum();
    if set.checked_mul(size)? != nonzero.len() {
        return None;
    }
    let mut out = vec![0u8; elements.checked_mul(size)?];
    let mut next = nonzero.chunks_exact(size);
    for (&mask, eight) in mask.iter().zip(out.chunks_mut(size.checked_mul(8)?)) {
        let mut left = mask;
        while left != 0 {
            let bit = usize_of(left.trailing_zeros());
            let at = bit.checked_mul(size)?;
            eight.get_mut(at..at.checked_add(size)?)?.copy_from_slice(next.next()?);
            left &= left.wrapping_sub(1);
        }
    }
    Some(out)
}
