//! Shape rules: dtype and shape of an op's outputs from those of its inputs.

use crate::graph::Graph;
use crate::ids::ValueId;
use crate::op::{Attr, OpKind};
use crate::tensor::{DType, Dim, Tensor};

/// Dtype and shape of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    pub dtype: DType,
    pub dims: Vec<Dim>,
}

/// What a rule sees of one input.
#[derive(Clone, Copy, Debug)]
pub struct InferInput<'a> {
    pub dtype: DType,
    pub dims: &'a [Dim],
    /// The elements, where the input is an i64 constant (a target shape, axes).
    pub value: Option<&'a Tensor>,
}

/// Runs the rule of `kind` on values of `g`.
pub fn infer(g: &Graph, kind: OpKind, attr: &Attr, inputs: &[ValueId]) -> Result<Vec<Fact>, String> {
    let row = kind.row();
    if inputs.len() < row.inputs.0 || inputs.len() > row.inputs.1 {
        return Err(format!("takes {} to {} inputs, not {}", row.inputs.0, row.inputs.1, inputs.len()));
    }
    if attr.variant() != row.attr {
        return Err(format!("carries {} attributes, not {}", row.attr, attr.variant()));
    }
    let constants: Vec<Option<Tensor>> = inputs
        .iter()
        .map(|&v| if !v.is_none() && g.value_dtype[v] == DType::I64 { g.const_tensor(v) } else { None })
        .collect();
    let mut seen = Vec::with_capacity(inputs.len());
    for (i, &v) in inputs.iter().enumerate() {
        if v.is_none() {
            if i < row.inputs.0 {
                return Err(format!("input {i} is absent"));
            }
            seen.push(None);
            continue;
        }
        seen.push(Some(InferInput { dtype: g.value_dtype[v], dims: g.shape(v), value: constants[i].as_ref() }));
    }
    (row.infer)(attr, &seen)
}
