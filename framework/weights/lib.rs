//! Files of weights, read as tables of named tensors: PyTorch's `torch.save` in both of its forms, safetensors, and the
//! manifests of TensorFlow.js.
//!
//! ```text
//! .safetensors                        header of names, types, shapes, ranges; then the values
//! torch.save since 1.6, a ZIP         archive/data.pkl, archive/data/0, archive/data/1, ...
//! torch.save before that              five pickles back to back, then each storage: element count, values
//! TensorFlow.js                       a JSON file of names, types, shapes; values in files beside it
//! ```
//! A pickle is a program that may call anything. [`pickle`] runs none of it: it builds a tree of what would be called
//! with what, and [`torch`] recognises the few shapes of it that mean tensors. A file is read and checked as a whole
//! before any value is converted, and a value is converted only when it is asked for, so that no file can make this
//! crate allocate more than a small multiple of its own size.

#![forbid(unsafe_code)]

mod element;
pub mod hub;
mod pickle;
mod safetensors;
mod tfjs;
mod torch;
mod zip;

pub use element::Element;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest file that is read.
pub const FILE_BYTES_MAX: u64 = 8 << 30;
/// Most tensors of a file.
pub const TENSORS_MAX: usize = 1 << 17;
/// Most dimensions of a tensor.
pub const DIMS_MAX: usize = 8;
/// Longest name of a tensor.
pub const NAME_BYTES_MAX: usize = 1024;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {fault}", path = .path.display())]
pub struct Error {
    pub path: PathBuf,
    pub fault: Fault,
}

#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The content contradicts itself or its format.
    #[error("the file is damaged: {0}")]
    Damaged(String),
    /// A form that is not read; the text says what to do.
    #[error("not supported: {0}")]
    Unsupported(String),
    #[error("too large: {0}")]
    TooLarge(String),
}

impl Fault {
    fn damaged<T>(why: impl Into<String>) -> Result<T, Fault> {
        Err(Fault::Damaged(why.into()))
    }

    fn unsupported<T>(why: impl Into<String>) -> Result<T, Fault> {
        Err(Fault::Unsupported(why.into()))
    }
}

/// What a safetensors file says of itself, without reading its tensors.
pub fn safetensors_metadata(path: &Path) -> Result<BTreeMap<String, String>, Error> {
    let at = |fault| Error { path: path.to_owned(), fault };
    let file = std::fs::File::open(path).map_err(|e| at(e.into()))?;
    safetensors::metadata(file).map_err(at)
}

/// A tensor of a file: element (i, j, ...) lies `i * strides[0] + j * strides[1] + ...` elements behind `start`.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    pub name: String,
    pub dims: Vec<usize>,
    pub element: Element,
    /// Byte of the file.
    start: usize,
    strides: Vec<usize>,
    /// What stored elements are multiplied by, and what is added then, where they are steps of a grid.
    grid: Option<[f32; 2]>,
}

impl StoredTensor {
    /// A view of `bytes` (a range of the file): `offset` and `strides` are in elements.
    fn view(
        name: String,
        dims: Vec<usize>,
        element: Element,
        bytes: std::ops::Range<usize>,
        offset: usize,
        strides: Vec<usize>,
    ) -> Result<StoredTensor, Fault> {
        let bad = |why: &str| Fault::damaged(format!("tensor '{name}' {dims:?}: {why}"));
        if name.len() > NAME_BYTES_MAX {
            return Fault::damaged(format!("a name of {} bytes, at most {NAME_BYTES_MAX}", name.len()));
        }
        if dims.len() > DIMS_MAX || dims.len() != strides.len() {
            return bad("it has too many dimensions, or not a stride for each");
        }
        let stored = bytes.len() / element.size();
        let Some(count) = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) else {
            return bad("its size overflows");
        };
        // The largest place that is read, plus one.
        let reach = dims.iter().zip(&strides).try_fold(offset, |at, (&d, &s)| {
            d.saturating_sub(1).checked_mul(s).and_then(|step| at.checked_add(step))
        });
        match reach {
            _ if count == 0 => {}
            Some(last) if last < stored => {}
            _ => return bad(&format!("it reaches past the {stored} elements that are stored")),
        }
        if count > stored {
            return Fault::unsupported(format!(
                "tensor '{name}' {dims:?} repeats {stored} stored elements (save it with .contiguous())"
            ));
        }
        let start = bytes.start + if count == 0 { 0 } else { offset * element.size() };
        Ok(StoredTensor { name, dims, element, start, strides, grid: None })
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }
}

/// Bytes, the tensors among them, metadata.
type Stored = (Vec<u8>, Vec<StoredTensor>, BTreeMap<String, String>);

/// A file of weights in memory. No two tensors have one name.
#[derive(Debug)]
pub struct WeightFile {
    bytes: Vec<u8>,
    pub tensors: Vec<StoredTensor>,
    /// What a safetensors file says of itself.
    pub metadata: BTreeMap<String, String>,
}

impl WeightFile {
    /// Reads a file: a manifest of TensorFlow.js if it is called `.json`, otherwise its first bytes tell its form.
    pub fn open(path: &Path) -> Result<WeightFile, Error> {
        let at = |fault| Error { path: path.to_owned(), fault };
        let size = std::fs::metadata(path).map_err(|e| at(e.into()))?.len();
        if size > FILE_BYTES_MAX {
            return Err(at(Fault::TooLarge(format!("{size} bytes, at most {FILE_BYTES_MAX}"))));
        }
        let bytes = std::fs::read(path).map_err(|e| at(e.into()))?;
        match path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
            true => tfjs::open(&bytes, path.parent().unwrap_or(Path::new(""))).and_then(WeightFile::of),
            false => WeightFile::read(bytes),
        }
        .map_err(at)
    }

    /// As [`WeightFile::open`], of bytes in memory.
    pub fn read(bytes: Vec<u8>) -> Result<WeightFile, Fault> {
        let (tensors, metadata) = match bytes.as_slice() {
            [b'P', b'K', 3, 4, ..] => (torch::read_zip(&bytes)?, BTreeMap::new()),
            [0x80, 2..=5, ..] => (torch::read_legacy(&bytes)?, BTreeMap::new()),
            [_, _, _, _, _, _, _, _, b'{', ..] => safetensors::read(&bytes)?,
            _ => {
                let what = "neither a torch.save file (.pth, .pt, .bin) nor safetensors";
                return Fault::unsupported(format!("{what} (save the state dict as one of them)"));
            }
        };
        WeightFile::of((bytes, tensors, metadata))
    }

    fn of((bytes, tensors, metadata): Stored) -> Result<WeightFile, Fault> {
        let mut names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
            return Fault::damaged(format!("two tensors are named '{}'", twice[0]));
        }
        Ok(WeightFile { bytes, tensors, metadata })
    }

    /// The values of tensor `i`, row-major, as f32 (rounded from f64, exact from f16 and bf16).
    pub fn values(&self, i: usize) -> Vec<f32> {
        let t = &self.tensors[i];
        let mut out = Vec::with_capacity(t.elements());
        if t.elements() == 0 {
            return out;
        }
        // Rows of the last dimension; an odometer counts through the others.
        let (width, step) = match (t.dims.last(), t.strides.last()) {
            (Some(&d), Some(&s)) => (d, s),
            _ => (1, 0),
        };
        let outer = t.dims.len().saturating_sub(1);
        let mut at = vec![0usize; outer];
        loop {
            let row: usize = at.iter().zip(&t.strides).map(|(i, s)| i * s).sum();
            let first = t.start + row * t.element.size();
            t.element.convert(&self.bytes, first, step * t.element.size(), width, &mut out);
            let Some(axis) = (0..outer).rev().find(|&a| at[a] + 1 < t.dims[a]) else { break };
            at[axis] += 1;
            at[axis + 1..].fill(0);
        }
        if let Some([scale, least]) = t.grid {
            out.iter_mut().for_each(|v| *v = *v * scale + least);
        }
        out
    }
}
