//! Tensors whose bytes lie in another file, beside the model's.
//!
//! The path in a model is not trusted: it is relative, does not climb, and nothing on the way is a link. Each file is
//! mapped once, and a tensor is a range of the map that was checked to lie inside it.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use crate::error::{Error, Result};
use crate::proto::TensorProto;
use crate::read::map;
use bytes::Bytes;
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

/// More files than this are not opened.
const FILES_MAX: usize = 4096;

/// The folder of the model, and what was mapped of it.
#[derive(Default)]
pub struct Files {
    /// Absent: the model came as bytes, and nothing lies beside it.
    folder: Option<PathBuf>,
    maps: HashMap<String, Bytes>,
}

impl Files {
    /// Of the model at `path`.
    pub fn beside(path: &Path) -> Files {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Files { folder: Some(folder.to_path_buf()), maps: HashMap::new() }
    }

    /// The bytes that `t.external_data` names; `want` of them, if it does not say how many.
    pub fn bytes(&mut self, t: &TensorProto, name: &str, want: usize) -> Result<Bytes> {
        let wrong = |what: String| Error::UnsupportedFeature { name: name.to_string(), what };
        let entry = |key: &str| t.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let number = |key: &str, absent: usize| match entry(key) {
            None => Ok(absent),
            Some(text) => {
                text.parse().map_err(|_| wrong(format!("its external data have the {key} '{text}'")))
            }
        };
        let location = entry("location").ok_or_else(|| wrong("its external data have no location".into()))?;
        let (offset, length) = (number("offset", 0)?, number("length", want)?);
        let file = self.file(location, name)?;
        let end = offset.checked_add(length).filter(|end| *end <= file.len());
        let end = end.ok_or_else(|| {
            let bytes = file.len();
            wrong(format!(
                "bytes {offset} to {offset} + {length} of '{location}' are asked for, it has {bytes}"
            ))
        })?;
        Ok(file.slice(offset..end))
    }

    fn file(&mut self, location: &str, name: &str) -> Result<Bytes> {
        let wrong = |why: &str| Error::UnsupportedFeature {
            name: name.to_string(),
            what: format!("its data lie in the file '{location}', {why}"),
        };
        if let Some(map) = self.maps.get(location) {
            return Ok(map.clone());
        }
        let folder = self
            .folder
            .as_ref()
            .ok_or_else(|| wrong("but the model was given as bytes: load it by its path"))?;
        if self.maps.len() >= FILES_MAX {
            return Err(wrong("one of too many"));
        }
        let mut path = folder.clone();
        for part in Path::new(location).components() {
            match part {
                Component::Normal(part) => path.push(part),
                Component::CurDir => continue,
                _ => return Err(wrong("which is not inside the model's folder")),
            }
            let found = std::fs::symlink_metadata(&path);
            let meta = found.map_err(|source| Error::Io { path: path.clone(), source })?;
            if meta.file_type().is_symlink() {
                return Err(wrong("which is a link; links are not followed"));
            }
        }
        let map = map(&path).map_err(|e| match e {
            e @ Error::Io { .. } => e,
            e => e.in_file(&path),
        })?;
        self.maps.insert(location.to_string(), map.clone());
        Ok(map)
    }
}
