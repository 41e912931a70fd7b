//! safetensors: the crate of that name checks offsets, holes, overlaps and sizes.

use crate::{Element, Fault, StoredTensor, TENSORS_MAX};
use std::collections::BTreeMap;
use std::io::Read;

const HEADER_BYTES_MAX: u64 = 64 << 20;

type Found = (Vec<StoredTensor>, BTreeMap<String, String>);

pub fn read(bytes: &[u8]) -> Result<Found, Fault> {
    let header = bytes.first_chunk::<8>().map_or(0, |n| u64::from_le_bytes(*n));
    if header > HEADER_BYTES_MAX {
        return Err(Fault::TooLarge(format!("a header of {header} bytes, at most {HEADER_BYTES_MAX}")));
    }
    let damaged = |e: safetensors::SafeTensorError| Fault::Damaged(e.to_string());
    let (_, metadata) = safetensors::SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let file = safetensors::SafeTensors::deserialize(bytes).map_err(damaged)?;
    if file.len() > TENSORS_MAX {
        return Err(Fault::TooLarge(format!("{} tensors, at most {TENSORS_MAX}", file.len())));
    }
    let values = 8 + header as usize;
    let mut tensors = Vec::with_capacity(file.len());
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let (from, to) = info.data_offsets;
        let dtype = format!("{:?}", info.dtype);
        let Some(element) = Element::of_safetensors(&dtype) else {
            return Fault::unsupported(format!("tensor '{name}' is {dtype} (convert it to F32 first)"));
        };
        let dims = info.shape.clone();
        let strides = contiguous(&dims)
            .ok_or_else(|| Fault::Damaged(format!("tensor '{name}' {dims:?}: its size overflows")))?;
        tensors.push(StoredTensor::view(name, dims, element, values + from..values + to, 0, strides)?);
    }
    Ok((tensors, metadata.metadata().clone().unwrap_or_default().into_iter().collect()))
}

/// The metadata of a file of which only the header is read.
pub fn metadata(mut file: impl Read) -> Result<BTreeMap<String, String>, Fault> {
    let mut head = [0; 8];
    file.read_exact(&mut head)?;
    let len = u64::from_le_bytes(head);
    if len > HEADER_BYTES_MAX {
        return Err(Fault::TooLarge(format!("a header of {len} bytes, at most {HEADER_BYTES_MAX}")));
    }
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes)?;
    let header: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| Fault::Damaged(e.to_string()))?;
    let texts = header.get("__metadata__").and_then(|m| m.as_object()).into_iter().flatten();
    Ok(texts.filter_map(|(key, text)| Some((key.clone(), text.as_str()?.to_owned()))).collect())
}

/// Strides of a row-major tensor.
fn contiguous(dims: &[usize]) -> Option<Vec<usize>> {
    let mut strides = vec![1usize; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i].checked_mul(dims[i])?;
    }
    Some(strides)
}
