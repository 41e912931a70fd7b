//! Weights of TensorFlow.js: a manifest in JSON, and files of values beside it.
//!
//! ```text
//! [{ "paths": ["shard1", ...], "weights": [{ "name", "shape", "dtype",
//!                                            "quantization": { "dtype": "uint8", "scale", "min" } }, ...] }, ...]
//! ```
//! or an object (`model.json`) that holds this list as `weightsManifest`. The values of a group lie one behind the other in
//! its files; quantised ones are `byte * scale + min`.
//!
//! Convolution weights [h, w, in, out] are given as [out, in, h, w], depthwise ones [h, w, channels, 1] as [channels, 1, h, w].
//! A convolution with a `convolution_bn_offset` had its batch norm folded when the file was made: it is given a norm of its
//! own again, that adds the offset.

use crate::{Element, FILE_BYTES_MAX, Fault, Stored, StoredTensor, TENSORS_MAX};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

const MANIFEST_BYTES_MAX: usize = 64 << 20;
/// Most files of values.
const SHARDS_MAX: usize = 1 << 12;
/// The eps of norms of TensorFlow's slim models, which folded ones had, too.
const EPS: f32 = 1e-3;
const FOLDED: &str = "/convolution_bn_offset";

#[derive(Deserialize)]
struct Group {
    paths: Vec<String>,
    weights: Vec<Weight>,
}

#[derive(Deserialize)]
struct Weight {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    quantization: Option<Grid>,
}

#[derive(Deserialize)]
struct Grid {
    dtype: String,
    scale: f32,
    min: f32,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Manifest {
    Groups(Vec<Group>),
    #[serde(rename_all = "camelCase")]
    Model {
        weights_manifest: Vec<Group>,
    },
}

/// All weights of a manifest whose files lie in `folder`.
pub fn open(manifest: &[u8], folder: &Path) -> Result<Stored, Fault> {
    if manifest.len() > MANIFEST_BYTES_MAX {
        let what = format!("a manifest of {} bytes, at most {MANIFEST_BYTES_MAX}", manifest.len());
        return Err(Fault::TooLarge(what));
    }
    let damaged = |e: serde_json::Error| Fault::Damaged(format!("not a manifest of TensorFlow.js: {e}"));
    let (Manifest::Groups(groups) | Manifest::Model { weights_manifest: groups }) =
        serde_json::from_slice(manifest).map_err(damaged)?;
    let shards: usize = groups.iter().map(|g| g.paths.len()).sum();
    let weights: usize = groups.iter().map(|g| g.weights.len()).sum();
    if shards > SHARDS_MAX || weights > TENSORS_MAX {
        return Err(Fault::TooLarge(format!("{shards} files and {weights} tensors")));
    }
    let (mut bytes, mut tensors) = (Vec::new(), Vec::new());
    for group in groups {
        let start = bytes.len();
        for path in &group.paths {
            read_shard(folder, path, &mut bytes)?;
        }
        place(&group.weights, start, bytes.len(), &mut tensors)?;
    }
    unfold(&mut tensors, &mut bytes);
    Ok((bytes, tensors, BTreeMap::new()))
}

/// Appends a file of the folder, and of no other.
fn read_shard(folder: &Path, name: &str, bytes: &mut Vec<u8>) -> Result<(), Fault> {
    if name.is_empty() || name.contains(['/', '\\', ':']) || name == ".." {
        return Fault::damaged(format!("its values are in '{name}', which is no file beside it"));
    }
    let path = folder.join(name);
    let beside =
        |e: std::io::Error| Fault::Io(std::io::Error::new(e.kind(), format!("{}: {e}", path.display())));
    let size = std::fs::metadata(&path).map_err(beside)?.len();
    if size.saturating_add(bytes.len() as u64) > FILE_BYTES_MAX {
        return Err(Fault::TooLarge(format!("its values have more than {FILE_BYTES_MAX} bytes")));
    }
    bytes.extend(std::fs::read(&path).map_err(beside)?);
    Ok(())
}

/// Weights one behind the other in `start..end`.
fn place(weights: &[Weight], start: usize, end: usize, tensors: &mut Vec<StoredTensor>) -> Result<(), Fault> {
    let mut at = start;
    for weight in weights {
        let Weight { name, shape, .. } = weight;
        let (element, grid) = stored(weight)?;
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let size = count.and_then(|n| n.checked_mul(element.size()));
        let Some(behind) = size.and_then(|size| at.checked_add(size)).filter(|&behind| behind <= end) else {
            return Fault::damaged(format!("the values of '{name}' {shape:?} are not in its files"));
        };
        // Axes in PyTorch's order.
        let order: Vec<usize> = match shape.len() {
            4 if name.contains("depthwise") => vec![2, 3, 0, 1],
            4 => vec![3, 2, 0, 1],
            rank => (0..rank).collect(),
        };
        let step = |axis: usize| shape[axis + 1..].iter().fold(1usize, |n, &d| n.saturating_mul(d));
        let (dims, strides) = order.iter().map(|&axis| (shape[axis], step(axis))).unzip();
        let tensor = StoredTensor::view(name.clone(), dims, element, at..behind, 0, strides)?;
        tensors.push(StoredTensor { grid, ..tensor });
        at = behind;
    }
    if at != end {
        return Fault::damaged(format!("its files have {} bytes that belong to no tensor", end - at));
    }
    Ok(())
}

fn stored(weight: &Weight) -> Result<(Element, Option<[f32; 2]>), Fault> {
    let (dtype, grid) = match &weight.quantization {
        Some(grid) => (grid.dtype.as_str(), Some([grid.scale, grid.min])),
        None => (weight.dtype.as_str(), None),
    };
    let element = match (dtype, &grid) {
        ("uint8", Some(_)) => Element::U8,
        ("float16", Some(_)) => return Ok((Element::F16, None)),
        ("float32", None) => Element::F32,
        ("int32", None) => Element::I32,
        ("bool" | "uint8", None) => Element::U8,
        _ => {
            let what = format!("tensor '{}' is {dtype} (convert it to float32 or uint8)", weight.name);
            return Fault::unsupported(what);
        }
    };
    Ok((element, grid))
}

/// Norms for the offsets of those that were folded: one, nought and `1 - EPS` for every channel, and the offset.
fn unfold(tensors: &mut Vec<StoredTensor>, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for value in [1.0, 0.0, 1.0 - EPS] {
        bytes.extend(f32::to_le_bytes(value));
    }
    let constants = ["gamma", "moving_mean", "moving_variance"];
    for i in 0..tensors.len() {
        let Some(layer) = tensors[i].name.strip_suffix(FOLDED).map(str::to_owned) else { continue };
        let dims = tensors[i].dims.clone();
        tensors[i].name = format!("{layer}/BatchNorm/beta");
        for (k, what) in constants.iter().enumerate() {
            tensors.push(StoredTensor {
                name: format!("{layer}/BatchNorm/{what}"),
                strides: vec![0; dims.len()],
                dims: dims.clone(),
                element: Element::F32,
                start: start + 4 * k,
                grid: None,
            });
        }
    }
}
