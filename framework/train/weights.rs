//! Weights of a module as a safetensors file: one tensor for each row of its table, under its name, and how it was
//! made as metadata.

use crate::checkpoint::{NamedTensor, read_safetensors_metadata, write_safetensors};
use crate::error::{Error, Result};
use burn::module::Module;
use lacuna_nn::params::{self, ParamTable};
use std::collections::BTreeMap;
use std::path::Path;

/// How a file of weights was made: key, value.
pub type Metadata = BTreeMap<String, String>;

/// The tensors of a module, buffers included, in table order.
pub fn tensors<M: Module>(module: &M, table: &ParamTable) -> Vec<NamedTensor> {
    let mut out = Vec::with_capacity(table.len());
    params::for_each(module, |row, data| {
        out.push(NamedTensor {
            name: table.name[row].clone(),
            dims: table.shape[row].clone(),
            data: data.to_vec(),
        });
    });
    out
}

/// Writes the weights of a module, atomically, every zero as +0.0.
pub fn save<M: Module>(module: &M, path: &Path, metadata: &Metadata) -> Result<()> {
    let table = ParamTable::of(module);
    let mut tensors = tensors(module, &table);
    tensors.iter_mut().for_each(|t| clear_zeros(&mut t.data));
    Ok(write_safetensors(path, &tensors, metadata)?)
}

/// The module with every zero as +0.0: its signs mean something to training only (see [`crate::state`]).
pub fn plain_zeros<M: Module>(module: M) -> M {
    params::update_each(module, |_, values| clear_zeros(values))
}

fn clear_zeros(values: &mut [f32]) {
    values.iter_mut().filter(|v| **v == 0.0).for_each(|v| *v = 0.0);
}

/// Reads weights into a module; every tensor must be there, with its shape, but for [`params::is_optional`] ones.
pub fn load<M: Module>(module: M, path: &Path) -> Result<(M, Metadata)> {
    let (tensors, metadata) = read_safetensors_metadata(path)?;
    let module = put(module, &tensors).map_err(|why| Error::Weights(format!("{}: {why}", path.display())))?;
    Ok((module, metadata))
}

/// Replaces every tensor of the module by the one of its name.
pub fn put<M: Module>(module: M, tensors: &[NamedTensor]) -> Result<M, String> {
    let table = ParamTable::of(&module);
    let by_name: BTreeMap<&str, &NamedTensor> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut missing = Vec::new();
    for (name, shape) in table.name.iter().zip(&table.shape) {
        match by_name.get(name.as_str()) {
            None if params::is_optional(name) => {}
            None => missing.push(name.as_str()),
            Some(t) if t.dims != *shape => {
                return Err(format!("'{name}' is {:?} in the file and {shape:?} in the model", t.dims));
            }
            Some(_) => {}
        }
    }
    if !missing.is_empty() {
        return Err(format!("{} of {} tensors are missing: {}", missing.len(), table.len(), first(&missing)));
    }
    let known: std::collections::BTreeSet<&str> = table.name.iter().map(String::as_str).collect();
    let unused: Vec<&str> = by_name.keys().copied().filter(|name| !known.contains(name)).collect();
    if !unused.is_empty() {
        return Err(format!("{} tensors belong to no layer of this model: {}", unused.len(), first(&unused)));
    }
    Ok(params::update_each(module, |row, values| {
        if let Some(t) = by_name.get(table.name[row].as_str()) {
            values.copy_from_slice(&t.data);
        }
    }))
}

/// The first few names of a list.
fn first(names: &[&str]) -> String {
    let shown = names.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 5 { format!("{shown}, ...") } else { shown }
}
