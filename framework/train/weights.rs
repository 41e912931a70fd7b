//! Weights of a module as a safetensors file: one tensor for each row of its table, under its name, and how it was
//! made as metadata.

use crate::checkpoint::{NamedTensor, read_safetensors_metadata, write_safetensors};
use crate::error::{Error, Result};
use crate::modifiers::channels::{Member, groups};
use burn::module::Module;
use lacuna_nn::Classifier;
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

/// Metadata of a network from which channels were removed: the size of its images, as `1x28x28`.
pub const THINNED: &str = "lacuna.thinned";

/// Reads weights into a module; every tensor must be there, with its shape, but for [`params::is_optional`] ones.
pub fn load<M: Classifier>(module: M, path: &Path) -> Result<(M, Metadata)> {
    let (tensors, metadata) = read_safetensors_metadata(path)?;
    let module = put_described(module, &tensors, &metadata);
    Ok((module.map_err(|why| Error::Weights(format!("{}: {why}", path.display())))?, metadata))
}

/// As [`put`], where the metadata says so as [`put_thinned`].
pub fn put_described<M: Classifier>(
    module: M,
    tensors: &[NamedTensor],
    metadata: &Metadata,
) -> Result<M, String> {
    let Some(image) = metadata.get(THINNED) else { return put(module, tensors) };
    let sides: Vec<usize> = image.split('x').filter_map(|n| n.parse().ok()).collect();
    let [c, h, w] = sides[..] else {
        return Err(format!("{THINNED} is '{image}'; it is a size such as 1x28x28"));
    };
    if [c, h, w].iter().any(|n| !(1..=IMAGE_SIDE_MAX).contains(n)) {
        return Err(format!("{THINNED} is '{image}'; sides are 1 to {IMAGE_SIDE_MAX}"));
    }
    put_thinned(module, tensors, [c, h, w])
}

/// Largest side of images that a file of weights may name.
const IMAGE_SIDE_MAX: usize = 4096;

/// As [`put`], from a network of this kind from which channels were removed; `image` is a size that it takes (channels,
/// height, width). The module becomes as small.
pub fn put_thinned<M: Classifier>(
    module: M,
    tensors: &[NamedTensor],
    image: [usize; 3],
) -> Result<M, String> {
    let table = ParamTable::of(&module);
    let mut sizes: Vec<Vec<usize>> = table.shape.clone();
    for group in groups(&module, image)? {
        let of = |row: usize| tensors.iter().find(|t| t.name == table.name[row]);
        let size = |m: &Member| of(m.row).and_then(|t| t.dims.get(m.axis).copied()).unwrap_or(0);
        let Some(first) = group.members.first() else { continue };
        if !(1..=group.size).contains(&size(first)) {
            return Err(format!(
                "'{}' has {} of {} channels",
                table.name[first.row],
                size(first),
                group.size
            ));
        }
        for member in &group.members {
            sizes[member.row][member.axis] = size(first);
        }
    }
    // Now a tensor must have just the sides that its groups have.
    let by_name = matched(&table, &sizes, tensors)?;
    Ok(params::resize_each(module, |row, _| Some((by_name[row]?.data.clone(), sizes[row].clone()))))
}

/// Replaces every tensor of the module by the one of its name.
pub fn put<M: Module>(module: M, tensors: &[NamedTensor]) -> Result<M, String> {
    let table = ParamTable::of(&module);
    let by_name = matched(&table, &table.shape, tensors)?;
    Ok(params::update_each(module, |row, values| {
        if let Some(t) = by_name[row] {
            values.copy_from_slice(&t.data);
        }
    }))
}

/// For each row of the table the tensor of its name, which has the given shape; an optional one may be missing.
fn matched<'t>(
    table: &ParamTable,
    shapes: &[Vec<usize>],
    tensors: &'t [NamedTensor],
) -> Result<Vec<Option<&'t NamedTensor>>, String> {
    let by_name: BTreeMap<&str, &NamedTensor> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut missing = Vec::new();
    for (name, shape) in table.name.iter().zip(shapes) {
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
    Ok(table.name.iter().map(|name| by_name.get(name.as_str()).copied()).collect())
}

/// The first few names of a list.
fn first(names: &[&str]) -> String {
    let shown = names.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 5 { format!("{shown}, ...") } else { shown }
}
