//! safetensors files of f32: names, sizes and values, nothing that could be run.

use crate::checkpoint::{Error, Result};
use crate::disk::{Real, read_limited, write_atomically};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

/// Largest safetensors file that is read or written.
pub const FILE_BYTES_MAX: u64 = 8 << 30;
/// Largest safetensors header.
pub const HEADER_BYTES_MAX: u64 = 16 << 20;

/// A tensor as a file holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    pub name: String,
    pub dims: Vec<usize>,
    /// `dims` multiplied values, row-major.
    pub data: Vec<f32>,
}

/// Writes a safetensors file: under another name first, so that `path` is always old or new, never
/// half. Tensors stand in the given order and metadata sorted, so equal input gives equal bytes.
pub fn write_safetensors(
    path: &Path,
    tensors: &[NamedTensor],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    write_atomically(&Real, path, |w| encode(w, tensors, metadata))
}

/// The tensors of a safetensors file in the order they are stored; all must be f32.
pub fn read_safetensors(path: &Path) -> Result<Vec<NamedTensor>> {
    read_safetensors_metadata(path).map(|(tensors, _)| tensors)
}

/// As [`read_safetensors`], with the file's `__metadata__`.
pub fn read_safetensors_metadata(path: &Path) -> Result<(Vec<NamedTensor>, BTreeMap<String, String>)> {
    decode(&read_limited(&Real, path, FILE_BYTES_MAX)?, path)
}

/// Layout: header length (u64 LE), JSON header padded with spaces to 8 bytes, then the values back to back.
pub(crate) fn encode(
    w: &mut dyn Write,
    tensors: &[NamedTensor],
    metadata: &BTreeMap<String, String>,
) -> io::Result<()> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    let mut parts = Vec::with_capacity(tensors.len() + 1);
    if !metadata.is_empty() {
        parts.push(format!("\"__metadata__\":{}", serde_json::to_string(metadata)?));
    }
    let mut names = std::collections::HashSet::from(["__metadata__"]);
    let mut offset = 0usize;
    for NamedTensor { name, dims, data } in tensors {
        if !names.insert(name) {
            return Err(invalid(format!("two tensors are named '{name}'")));
        }
        if dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) != Some(data.len()) {
            return Err(invalid(format!("tensor '{name}' {dims:?} has {} values", data.len())));
        }
        let end = offset + data.len() * 4;
        let (name, dims) = (serde_json::to_string(name)?, serde_json::to_string(dims)?);
        parts
            .push(format!("{name}:{{\"dtype\":\"F32\",\"shape\":{dims},\"data_offsets\":[{offset},{end}]}}"));
        offset = end;
    }
    let mut header = format!("{{{}}}", parts.join(","));
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    if header.len() as u64 > HEADER_BYTES_MAX || offset as u64 > FILE_BYTES_MAX - HEADER_BYTES_MAX - 8 {
        return Err(invalid(format!(
            "{} tensors of {offset} bytes are too many for one file",
            tensors.len()
        )));
    }
    w.write_all(&(header.len() as u64).to_le_bytes())?;
    w.write_all(header.as_bytes())?;
    for values in tensors.iter().flat_map(|t| t.data.chunks(16 << 10)) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        w.write_all(&bytes)?;
    }
    Ok(())
}

pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<(Vec<NamedTensor>, BTreeMap<String, String>)> {
    let cut = |need: u64| {
        let why = format!("it is cut short: the header needs {need} bytes, the file has {}", bytes.len());
        Error::damaged(path, why)
    };
    let header = bytes.first_chunk::<8>().map(|n| u64::from_le_bytes(*n)).ok_or_else(|| cut(8))?;
    if header > HEADER_BYTES_MAX {
        let why =
            format!("a header of {header} bytes, at most {HEADER_BYTES_MAX}; is it a safetensors file?");
        return Err(Error::TooLarge { path: path.to_owned(), why });
    }
    if header + 8 > bytes.len() as u64 {
        return Err(cut(header + 8));
    }
    // Offsets, holes, overlaps and sizes are checked by the safetensors crate.
    let explain = |e: safetensors::SafeTensorError| match e {
        safetensors::SafeTensorError::MetadataIncompleteBuffer => {
            let why = format!("its {} bytes are not those the header describes; copy it again", bytes.len());
            Error::damaged(path, why)
        }
        e => Error::damaged(path, e.to_string()),
    };
    let (_, metadata) = safetensors::SafeTensors::read_metadata(bytes).map_err(explain)?;
    let file = safetensors::SafeTensors::deserialize(bytes).map_err(explain)?;
    let mut tensors = Vec::with_capacity(file.len());
    for name in metadata.offset_keys() {
        let view = file.tensor(&name).map_err(explain)?;
        if view.dtype() != safetensors::Dtype::F32 {
            let why = format!("tensor '{name}' is {:?}; only F32 is read, convert it first", view.dtype());
            return Err(Error::Unsupported { path: path.to_owned(), why });
        }
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        tensors.push(NamedTensor { data: values.collect(), dims: view.shape().to_vec(), name });
    }
    let metadata = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
    Ok((tensors, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tensor(name: &str, dims: &[usize], first: f32) -> NamedTensor {
        let n: usize = dims.iter().product();
        NamedTensor {
            name: name.into(),
            dims: dims.to_vec(),
            data: (0..n).map(|i| first + i as f32 * 0.5).collect(),
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn safetensors_files_round_trip_and_stay_equal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let mut tensors = vec![
            tensor("b \"quoted\"", &[2, 3], 1.0),
            tensor("a", &[], 7.0),
            tensor("long", &[300, 300], 0.0),
        ];
        tensors[0].data[1] = f32::NEG_INFINITY;
        let meta = BTreeMap::from([("seed".to_owned(), "42".to_owned()), ("command".into(), "a\nb".into())]);
        write_safetensors(&path, &tensors, &meta).unwrap();
        assert_eq!(read_safetensors_metadata(&path).unwrap(), (tensors.clone(), meta.clone()));
        assert_eq!(read_safetensors(&path).unwrap(), tensors);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
        write_safetensors(&path, &tensors, &meta).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);

        // A failed write keeps the file there was, and leaves nothing else.
        let twice = [tensor("a", &[1], 0.0), tensor("a", &[1], 0.0)];
        let wrong = [NamedTensor { name: "a".into(), dims: vec![2, usize::MAX], data: vec![0.0; 4] }];
        let reserved = [tensor("__metadata__", &[1], 0.0)];
        for bad in [&twice[..], &wrong, &reserved] {
            assert!(write_safetensors(&path, bad, &meta).is_err());
        }
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(names(dir.path()), ["w.safetensors"]);
    }

    #[test]
    fn hostile_safetensors_are_typed_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        write_safetensors(&path, &[tensor("a", &[4, 4], 1.0), tensor("b", &[2], 0.0)], &BTreeMap::new())
            .unwrap();
        let good = fs::read(&path).unwrap();
        for len in 0..good.len() {
            let e = decode(&good[..len], &path).expect_err("a cut file was accepted");
            assert!(matches!(e, Error::Damaged { .. }), "{len}: {e}");
        }
        let file = |header: &str, data: usize| {
            [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
        };
        let one = |fields: &str, data| file(&format!("{{\"a\":{{{fields}}}}}"), data);
        let damaged = [
            one("\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]", 4),
            one("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]", 8),
            one("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]", 4),
            one("\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]", 5),
            one("\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4],\"data_offsets\":[0,4]", 4),
            one("\"dtype\":\"F32\",\"shape\":[1099511627776],\"data_offsets\":[0,4398046511104]", 4),
            one("\"dtype\":\"X9\",\"shape\":[1],\"data_offsets\":[0,4]", 4),
            file("[1,2", 0),
            file(&"[".repeat(100_000), 0),
        ];
        for bytes in damaged {
            let e = decode(&bytes, &path).unwrap_err();
            assert!(matches!(e, Error::Damaged { .. }), "{e}");
        }
        let huge = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
        assert!(matches!(decode(&huge, &path), Err(Error::TooLarge { .. })));
        let f16 = one("\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]", 4);
        let e = decode(&f16, &path).unwrap_err();
        assert!(matches!(&e, Error::Unsupported { why, .. } if why.contains("'a' is F16")), "{e}");
        assert!(matches!(read_safetensors(&dir.path().join("none")), Err(Error::Io { .. })));
    }
}
