//! Reference functions: what each op means, in plain scalar code.
//!
//! One file per family. A function of the op table takes whole tensors, asks the op's own shape rule for the
//! size of its output (so that nothing is allocated from an unchecked size) and calls a loop over slices.
//! The loops are public: the engine's portable kernels are these very functions, and its fast kernels are
//! tested against them. Sums run in one documented order; nothing is fused or reassociated behind the reader's
//! back, except integer sums, which wrap and therefore do not depend on order.

pub mod attention;
pub mod binary;
pub mod conv;
pub mod element;
pub mod elementwise;
pub mod fixed;
pub mod flow;
pub mod gemm;
pub mod integer;
pub mod layout;
pub mod loss;
pub mod norm;
pub mod pool;
pub mod quant;
pub mod recurrent;
pub mod reduce;
pub mod sample;
pub mod scatter;
pub mod slice;
pub mod spatial;
pub mod unary;

use crate::op::Attr;
use crate::shape::{Fact, Rule, infer_tensors};
use crate::tensor::{Dim, Tensor, element_count};

pub type Inputs<'a> = &'a [Option<&'a Tensor>];
pub type Outputs = Result<Vec<Tensor>, String>;
pub type Eval = fn(&Attr, Inputs<'_>) -> Outputs;

/// Dims of the first output, as the op's shape rule gives them for these very tensors. A rule that accepts
/// the inputs vouches for dtypes, ranks and lengths, which the functions below it then take for granted.
pub fn output_dims(rule: Rule, attr: &Attr, inputs: Inputs<'_>) -> Result<Vec<usize>, String> {
    let facts = infer_tensors(rule, attr, inputs)?;
    fixed(facts.first().ok_or("the shape rule gives no output")?)
}

/// As [`output_dims`], of every output.
pub fn all_output_dims(rule: Rule, attr: &Attr, inputs: Inputs<'_>) -> Result<Vec<Vec<usize>>, String> {
    infer_tensors(rule, attr, inputs)?.iter().map(fixed).collect()
}

fn fixed(fact: &Fact) -> Result<Vec<usize>, String> {
    fixed_dims(&fact.dims)?.ok_or_else(|| "the data decide the size of the result".to_string())
}

/// The dims as numbers; `None` if the rule does not know them without looking at data. Too large is an error.
pub fn fixed_dims(dims: &[Dim]) -> Result<Option<Vec<usize>>, String> {
    if dims.contains(&Dim::Unknown) {
        return Ok(None);
    }
    let dims: Option<Vec<usize>> =
        dims.iter().map(|d| d.fixed().and_then(|n| usize::try_from(n).ok())).collect();
    let fits = dims.filter(|d| element_count(d).is_some());
    fits.map(Some).ok_or_else(|| "the result is too large".to_string())
}

pub(crate) fn wrong_attr(attr: &Attr) -> String {
    format!("cannot carry {} attributes", attr.variant())
}

pub(crate) fn f32s<'a>(inputs: Inputs<'a>, i: usize) -> Result<&'a [f32], String> {
    tensor(inputs, i)?.as_f32().ok_or_else(|| format!("input {i} must be f32"))
}

pub(crate) fn u8s<'a>(inputs: Inputs<'a>, i: usize) -> Result<&'a [u8], String> {
    tensor(inputs, i)?.as_u8().ok_or_else(|| format!("input {i} must be u8"))
}

pub(crate) fn i8s<'a>(inputs: Inputs<'a>, i: usize) -> Result<&'a [i8], String> {
    tensor(inputs, i)?.as_i8().ok_or_else(|| format!("input {i} must be i8"))
}

pub(crate) fn i32s<'a>(inputs: Inputs<'a>, i: usize) -> Result<&'a [i32], String> {
    tensor(inputs, i)?.as_i32().ok_or_else(|| format!("input {i} must be i32"))
}

pub(crate) fn tensor<'a>(inputs: Inputs<'a>, i: usize) -> Result<&'a Tensor, String> {
    optional(inputs, i).ok_or_else(|| format!("input {i} is absent"))
}

pub(crate) fn optional<'a>(inputs: Inputs<'a>, i: usize) -> Option<&'a Tensor> {
    inputs.get(i).copied().flatten()
}

/// Row-major strides, in elements.
pub fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i];
    }
    strides
}
