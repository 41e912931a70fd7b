//! Reader of IDX, the array format of MNIST and its kin, plain or gzip.
//!
//! ```text
//! byte  0  1  2      3      4 ..                4 + 4 * rank ..
//!       0  0  dtype  rank   rank sizes (u32 BE) values, the last dimension fastest
//! ```
//! Only dtype 8 (unsigned byte) is read: it is the only one these data sets use. Whether a file is
//! gzip is told by its first bytes, not by its name.

use crate::error::{Error, Result};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

/// The most values a file may claim (the MNIST-like sets have 47 million).
pub const IDX_BYTES_MAX: u64 = 1 << 30;
/// Most dimensions: images with channels have 4.
pub const IDX_RANK_MAX: u8 = 4;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const DTYPE_U8: u8 = 8;

/// An array of bytes, row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idx {
    pub dims: Vec<usize>,
    /// `dims` multiplied.
    pub data: Vec<u8>,
}

/// Reads a whole file. The product of the sizes is checked against [`IDX_BYTES_MAX`] first, and
/// memory grows with what the file really holds, so a lying header costs nothing.
pub fn read_idx(path: &Path) -> Result<Idx> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    if !file.metadata().map_err(|e| Error::io(path, e))?.is_file() {
        return Err(Error::unsupported(path, "not a regular file"));
    }
    let mut reader = BufReader::new(file);
    let mut magic = Vec::new();
    reader.by_ref().take(2).read_to_end(&mut magic).map_err(|e| Error::io(path, e))?;
    let whole = io::Cursor::new(magic.clone()).chain(reader);
    if magic == GZIP_MAGIC { parse(MultiGzDecoder::new(whole), path) } else { parse(whole, path) }
}

/// Parses an uncompressed stream to its end; `path` only names it in errors.
fn parse(mut reader: impl Read, path: &Path) -> Result<Idx> {
    let mut head = [0u8; 4];
    read_exact(&mut reader, &mut head, path, "the 4-byte header")?;
    let [zero_0, zero_1, dtype, rank] = head;
    if zero_0 != 0 || zero_1 != 0 {
        return Err(Error::unsupported(path, format!("not an IDX file (it begins with {head:02x?})")));
    }
    if dtype != DTYPE_U8 {
        return Err(Error::unsupported(
            path,
            format!("IDX element type {dtype:#04x}; only 0x08 (u8) is read"),
        ));
    }
    if rank == 0 || rank > IDX_RANK_MAX {
        return Err(Error::unsupported(path, format!("{rank} dimensions; 1 to {IDX_RANK_MAX} are read")));
    }
    let mut dims = Vec::new();
    for _ in 0..rank {
        let mut size = [0u8; 4];
        read_exact(&mut reader, &mut size, path, "the sizes")?;
        dims.push(u32::from_be_bytes(size));
    }
    let claimed = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::from(d)));
    let claimed = claimed
        .filter(|&n| n <= IDX_BYTES_MAX)
        .ok_or_else(|| Error::too_large(path, format!("sizes {dims:?} exceed {IDX_BYTES_MAX} bytes")))?;

    let mut data = Vec::new();
    // One byte more than claimed: it tells a longer file, and lets gzip reach and check its trailer.
    let read = reader.take(claimed + 1).read_to_end(&mut data).map_err(|e| stream_error(path, e))?;
    let read = u64::try_from(read).unwrap_or(u64::MAX);
    if read < claimed {
        let why = format!("sizes {dims:?} need {claimed} bytes, the file has {read}");
        return Err(Error::truncated(path, why));
    }
    if read > claimed {
        return Err(Error::corrupt(path, format!("more data than its sizes {dims:?} account for")));
    }
    let dims = dims.iter().map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect();
    Ok(Idx { dims, data })
}

fn read_exact(reader: &mut impl Read, into: &mut [u8], path: &Path, what: &str) -> Result<()> {
    reader.read_exact(into).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::truncated(path, format!("it ends inside {what}")),
        _ => stream_error(path, e),
    })
}

/// flate2 reports bad gzip data as I/O errors of these kinds; all others come from the disk.
fn stream_error(path: &Path, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::truncated(path, "the gzip stream ends early"),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            Error::corrupt(path, format!("gzip: {e}"))
        }
        _ => Error::io(path, e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, dims.len() as u8];
        dims.iter().for_each(|d| bytes.extend(d.to_be_bytes()));
        bytes.extend(data);
        bytes
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut enc = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        enc.write_all(bytes).unwrap();
        enc.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Idx> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read_idx(file.path())
    }

    #[test]
    fn plain_and_gzip_give_the_same_array() {
        let bytes = idx(&[2, 3], &[1, 2, 3, 4, 5, 6]);
        let want = Idx { dims: vec![2, 3], data: vec![1, 2, 3, 4, 5, 6] };
        assert_eq!(read(&bytes).unwrap(), want);
        assert_eq!(read(&gz(&bytes)).unwrap(), want);
        assert_eq!(read(&idx(&[0, 28], &[])).unwrap().data, Vec::<u8>::new());
    }

    #[test]
    fn every_cut_is_an_error() {
        let plain = idx(&[2, 3], &[1, 2, 3, 4, 5, 6]);
        for bytes in [gz(&plain), plain] {
            for len in 0..bytes.len() {
                let e = read(&bytes[..len]).unwrap_err();
                assert!(matches!(e, Error::Truncated { .. }), "{len} of {} bytes: {e}", bytes.len());
            }
        }
    }

    #[test]
    fn lying_headers_are_refused() {
        let huge = [&[0, 0, 8, 3][..], &[0xff; 12]].concat();
        assert!(matches!(read(&huge), Err(Error::TooLarge { .. })));
        assert!(matches!(read(&gz(&huge)), Err(Error::TooLarge { .. })));
        // Just at the limit, and the data is missing.
        assert!(matches!(read(&idx(&[1 << 30], &[7])), Err(Error::Truncated { .. })));
        assert!(matches!(read(&idx(&[(1 << 30) + 1], &[7])), Err(Error::TooLarge { .. })));
        assert!(matches!(read(&idx(&[2], &[1, 2, 3])), Err(Error::Corrupt { .. })));
        assert!(matches!(read(&[0, 0, 13, 1, 0, 0, 0, 0]), Err(Error::Unsupported { .. })));
        assert!(matches!(read(&[0, 0, 8, 0]), Err(Error::Unsupported { .. })));
        assert!(matches!(read(&[0, 0, 8, 200]), Err(Error::Unsupported { .. })));
        assert!(matches!(read(b"PK\x03\x04 a zip"), Err(Error::Unsupported { .. })));
    }

    #[test]
    fn damaged_gzip_is_found_by_its_checksum() {
        let good = gz(&idx(&[64], &[9; 64]));
        for at in [3, 12, good.len() - 6, good.len() - 2] {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            assert!(read(&bad).is_err(), "byte {at} flipped");
        }
        let mut trailing = good.clone();
        trailing.extend(b"junk");
        assert!(read(&trailing).is_err());
    }

    #[test]
    fn what_is_not_a_file_says_so() {
        assert!(matches!(read_idx(Path::new("/nonexistent/x")), Err(Error::Io { .. })));
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read_idx(dir.path()), Err(Error::Unsupported { .. })));
    }
}
