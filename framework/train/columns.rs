//! What modifiers remember from step to step: named columns over the rows of the parameter table. Checkpoints save all of
//! them as they are, so that a new modifier resumes without code of its own.

use crate::checkpoint::NamedTensor;
use crate::error::{Error, Result};
use lacuna_nn::params::ParamTable;
use std::collections::BTreeMap;

/// Values of weights that are masked and move on behind their masks: as long as the row, 0 where it is open.
pub const HIDDEN: &str = "hidden";
/// 1 where the optimiser may change a row that has [`HIDDEN`] values; all of it where there is no such column.
pub const MOVABLE: &str = "movable";

/// The columns of all modifiers. A column's name says what it is; each modifier has its own.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    values: BTreeMap<(u32, String, usize), Vec<f32>>,
}

impl Columns {
    /// The column `name` of the modifier with that number in the recipe, for one row.
    pub fn get(&self, modifier: u32, name: &str, row: usize) -> Option<&[f32]> {
        self.values.get(&(modifier, name.to_owned(), row)).map(Vec::as_slice)
    }

    /// As [`Columns::get`], to change: zeros where there was no column, `len` of them.
    pub fn at(&mut self, modifier: u32, name: &str, row: usize, len: usize) -> &mut [f32] {
        self.values.entry((modifier, name.to_owned(), row)).or_insert_with(|| vec![0.0; len])
    }

    pub fn set(&mut self, modifier: u32, name: &str, row: usize, values: Vec<f32>) {
        self.values.insert((modifier, name.to_owned(), row), values);
    }

    pub fn remove(&mut self, modifier: u32, name: &str, row: usize) -> Option<Vec<f32>> {
        self.values.remove(&(modifier, name.to_owned(), row))
    }

    /// Replaces every column by what `f(row, values)` makes of it.
    pub fn resize(&mut self, f: impl Fn(usize, &[f32]) -> Vec<f32>) {
        self.values.iter_mut().for_each(|((_, _, row), values)| *values = f(*row, values));
    }

    /// Whether some modifier keeps values behind the mask of this row.
    pub fn is_hidden(&self, row: usize) -> bool {
        self.values.keys().any(|(_, name, r)| name == HIDDEN && *r == row)
    }

    /// Named `modifier/column/parameter`.
    pub fn tensors(&self, params: &ParamTable) -> Vec<NamedTensor> {
        let tensor = |((modifier, name, row), values): (&(u32, String, usize), &Vec<f32>)| NamedTensor {
            name: format!("{modifier}/{name}/{}", params.name[*row]),
            dims: vec![values.len()],
            data: values.clone(),
        };
        self.values.iter().map(tensor).collect()
    }

    /// What [`Columns::tensors`] gave.
    ///
    /// Errors: tensors of another model.
    pub fn restore(params: &ParamTable, tensors: &[NamedTensor]) -> Result<Columns> {
        let mut columns = Columns::default();
        for t in tensors {
            let mut parts = t.name.splitn(3, '/');
            let key = (parts.next().and_then(|n| n.parse().ok()), parts.next(), parts.next());
            let (Some(modifier), Some(name), Some(row)) = key else {
                return Err(Error::Weights(format!(
                    "the checkpoint's column '{}' is not understood",
                    t.name
                )));
            };
            let Some(row) = params.row(row) else {
                return Err(Error::Weights(format!("the checkpoint's '{}' is of another model", t.name)));
            };
            // Kernels take these two as long as their row.
            if [HIDDEN, MOVABLE].contains(&name) && t.data.len() != params.elements(row) {
                return Err(Error::Weights(format!("the checkpoint's '{}' has another size", t.name)));
            }
            columns.set(modifier, name, row, t.data.clone());
        }
        Ok(columns)
    }
}
