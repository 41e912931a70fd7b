//! Shape rules: dtype and shape of an op's outputs from those of its inputs.
//!
//! Graphs come from files, so a rule trusts nothing: it counts inputs, checks dtypes and ranks, does checked
//! arithmetic, and an error says which input is wrong and what to do. Symbolic dimensions (the batch) pass
//! through wherever the op does not need their number. The same rules run on numbers alone in the reference
//! functions ([`crate::reference::output_dims`]), so that an output is never allocated from an unchecked size.
//!
//! One file per family, as in `reference/`; here is what they share.

mod elementwise;
mod layout;
mod norm;
mod products;
mod quant;
mod reduce;
mod windows;

pub use elementwise::*;
pub use layout::*;
pub use norm::*;
pub use products::*;
pub use quant::*;
pub use reduce::*;
pub use windows::*;

use crate::graph::Graph;
use crate::ids::ValueId;
use crate::op::{Attr, OpKind, Requant};
use crate::tensor::{DType, Dim, Elements, TENSOR_ELEMENTS_MAX, Tensor};

/// The most dimensions a value may have.
pub const RANK_MAX: usize = 8;

/// Rules see the elements of constants up to this size: shapes, axes and scales, not data.
const VALUE_BYTES_MAX: usize = 1024;

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
    /// The elements, where the input is a small constant (a target shape, axes, scales).
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
        .map(|&v| {
            let small = !v.is_none() && g.const_bytes(v).is_some_and(|b| b.len() <= VALUE_BYTES_MAX);
            if small { g.const_tensor(v) } else { None }
        })
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
        seen.push(Some(InferInput {
            dtype: g.value_dtype[v],
            dims: g.shape(v),
            value: constants[i].as_ref(),
        }));
    }
    (row.infer)(attr, &seen)
}

/// Absent inputs are `None`.
pub type Inputs<'a> = &'a [Option<InferInput<'a>>];
pub type Facts = Result<Vec<Fact>, String>;
pub type Rule = fn(&Attr, Inputs<'_>) -> Facts;

// ---- what rules share ------------------------------------------------------------------------------

/// One output, refused when its rank or its fixed dimensions' product is beyond the limits.
fn one(dtype: DType, dims: Vec<Dim>) -> Facts {
    check_dims(&dims)?;
    Ok(vec![Fact { dtype, dims }])
}

/// Checks rank and the product of the fixed dimensions against [`RANK_MAX`] and [`TENSOR_ELEMENTS_MAX`].
pub fn check_dims(dims: &[Dim]) -> Result<(), String> {
    if dims.len() > RANK_MAX {
        return Err(format!("the shape has {} dimensions, at most {RANK_MAX} are supported", dims.len()));
    }
    // Zeros count as one here, as in `element_count`.
    let product = dims.iter().filter_map(|d| d.fixed()).try_fold(1u64, |p, d| p.checked_mul(d.max(1)));
    match product {
        Some(n) if n <= TENSOR_ELEMENTS_MAX => Ok(()),
        _ => Err(format!(
            "the shape {} has more than {TENSOR_ELEMENTS_MAX} elements: use smaller dimensions",
            show(dims)
        )),
    }
}

fn fixed_product(dims: &[Dim]) -> Option<u64> {
    dims.iter().filter_map(|d| d.fixed()).try_fold(1u64, |p, d| p.checked_mul(d))
}

fn show(dims: &[Dim]) -> String {
    let dims: Vec<String> = dims
        .iter()
        .map(|d| match d {
            Dim::Fixed(n) => n.to_string(),
            Dim::Symbol(s) => format!("{s:?}"),
        })
        .collect();
    format!("[{}]", dims.join(","))
}

fn input<'a>(inputs: Inputs<'a>, i: usize) -> Result<InferInput<'a>, String> {
    inputs.get(i).copied().flatten().ok_or_else(|| format!("input {i} is absent"))
}

fn optional<'a>(inputs: Inputs<'a>, i: usize) -> Option<InferInput<'a>> {
    inputs.get(i).copied().flatten()
}

fn typed<'a>(inputs: Inputs<'a>, i: usize, dtype: DType) -> Result<InferInput<'a>, String> {
    let x = input(inputs, i)?;
    expect_dtype(i, &x, dtype)?;
    Ok(x)
}

fn expect_dtype(i: usize, x: &InferInput<'_>, dtype: DType) -> Result<(), String> {
    if x.dtype != dtype {
        return Err(format!("input {i} is {}, it must be {dtype}", x.dtype));
    }
    Ok(())
}

fn expect_dims(i: usize, x: &InferInput<'_>, dims: &[Dim]) -> Result<(), String> {
    if x.dims != dims {
        return Err(format!("input {i} has shape {}, it must be {}", show(x.dims), show(dims)));
    }
    Ok(())
}

/// One element: `[]` or `[1]`.
fn expect_scalar(i: usize, x: &InferInput<'_>) -> Result<(), String> {
    match x.dims {
        [] | [Dim::Fixed(1)] => Ok(()),
        dims => Err(format!("input {i} has shape {}, it must be one number", show(dims))),
    }
}

/// The elements of an integer operand, where they are known.
fn known_ints(x: &InferInput<'_>) -> Option<Vec<i64>> {
    match &x.value?.elements {
        Elements::I64(v) => Some(v.clone()),
        Elements::I32(v) => Some(v.iter().map(|&v| i64::from(v)).collect()),
        _ => None,
    }
}

/// Numbers of an operand as sizes, none negative.
fn sizes(i: usize, values: &[i64]) -> Result<Vec<u64>, String> {
    let size =
        |&v: &i64| u64::try_from(v).map_err(|_| format!("input {i} holds {v}: a size is not negative"));
    values.iter().map(size).collect()
}

/// How many elements a list has that is an operand: its only dimension.
fn list_len(i: usize, x: &InferInput<'_>) -> Result<usize, String> {
    let [n] = rank(i, x)?;
    let n = number(i, "the length", n)?;
    usize::try_from(n).ok().filter(|&n| n <= LIST_MAX).ok_or_else(|| format!("input {i} lists {n} numbers"))
}

/// The most numbers of a list that is an operand (shapes, axes, sizes of parts).
const LIST_MAX: usize = 4096;

/// A dimension that rests on what is computed.
fn unknown(what: &str) -> Result<Dim, String> {
    Err(format!("{what} rests on an operand that is not known: make it a constant"))
}

fn rank<const N: usize>(i: usize, x: &InferInput<'_>) -> Result<[Dim; N], String> {
    <[Dim; N]>::try_from(x.dims)
        .map_err(|_| format!("input {i} has {} dimensions, it must have {N}", x.dims.len()))
}

fn number(i: usize, what: &str, dim: Dim) -> Result<u64, String> {
    dim.fixed().ok_or_else(|| format!("{what} of input {i} is symbolic: fix it to a number"))
}

/// An axis counted from the front; `limit` is the first that is too large.
pub fn axis_index(axis: i64, limit: usize) -> Result<usize, String> {
    let n = limit as i64;
    let at = if axis < 0 { axis.saturating_add(n) } else { axis };
    if at < 0 || at >= n {
        return Err(format!("axis {axis} does not exist: it must be in {}..{}", -n, n));
    }
    Ok(at as usize)
}

fn wrong_attr(attr: &Attr) -> String {
    format!("cannot carry {} attributes", attr.variant())
}

fn check_clip(min: f32, max: f32) -> Result<(), String> {
    if min <= max { Ok(()) } else { Err(format!("clips to min {min}, max {max}: min must not exceed max")) }
}

fn check_u8(out: &Requant) -> Result<(), String> {
    let fits = |v: i32| (0..=255).contains(&v);
    if !fits(out.zero) || !fits(out.lo) || !fits(out.hi) || out.lo > out.hi {
        return Err(format!(
            "requantises to zero {} in {}..={}: u8 needs 0 <= lo <= hi <= 255",
            out.zero, out.lo, out.hi
        ));
    }
    Ok(())
}

fn check_zero(what: &str, zero: i32) -> Result<(), String> {
    if (0..=255).contains(&zero) { Ok(()) } else { Err(format!("{what} is {zero}: u8 needs 0..=255")) }
}
