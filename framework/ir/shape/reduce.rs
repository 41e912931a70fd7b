//! Reductions.

use super::{Facts, Inputs, axis_index, one, typed, wrong_attr};
use crate::op::{Attr, Axes};
use crate::tensor::{DType, Dim};

/// Which axes are reduced, as flags. An empty list means all.
pub fn reduced_axes(axes: &Axes, rank: usize) -> Result<Vec<bool>, String> {
    let mut reduced = vec![axes.as_slice().is_empty(); rank];
    for &axis in axes.as_slice() {
        if std::mem::replace(&mut reduced[axis_index(axis as i64, rank)?], true) {
            return Err(format!("axis {axis} is given twice"));
        }
    }
    Ok(reduced)
}

pub fn reduce(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Reduce(a) = attr else { return Err(wrong_attr(attr)) };
    let x = typed(inputs, 0, DType::F32)?;
    let reduced = reduced_axes(&a.axes, x.dims.len())?;
    let mut dims = Vec::new();
    for (&dim, &gone) in x.dims.iter().zip(&reduced) {
        match (gone, a.keep_dims) {
            (true, _) if dim == Dim::Fixed(0) => return Err("cannot average over no elements".to_string()),
            (false, _) => dims.push(dim),
            (true, true) => dims.push(Dim::Fixed(1)),
            (true, false) => {}
        }
    }
    one(DType::F32, dims)
}
