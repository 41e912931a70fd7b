//! Shape rules: dtype and shape of an op's outputs from those of its inputs.
//!
//! Graphs come from files, so a rule trusts nothing: it counts inputs, checks dtypes and ranks, does checked
//! arithmetic, and an error says which input is wrong and what to do. Symbolic dimensions (the batch) pass
//! through wherever the op does not need their number. The same rules run on numbers alone in the reference
//! functions ([`crate::reference::output_dims`]), so that an output is never allocated from an unchecked size.
//!
//! One file per family, as in `reference/`; here is what they share.

mod elementwise;
mod flow;
mod integer;
mod layout;
mod norm;
mod products;
mod quant;
mod recurrent;
mod reduce;
mod sample;
mod scatter;
mod slice;
mod spatial;
mod windows;

pub use elementwise::*;
pub use flow::of_bodies;
pub use integer::*;
pub use layout::*;
pub use norm::*;
pub use products::*;
pub use quant::*;
pub use recurrent::*;
pub use reduce::*;
pub use sample::*;
pub use scatter::*;
pub use slice::*;
pub use spatial::*;
pub use windows::*;

use crate::elements::tensor_of;
use crate::graph::Graph;
use crate::ids::Id;
use crate::ids::ValueId;
use crate::op::{Attr, OpKind, Requant};
use crate::symbols::{Element, Scope, SymbolDef, Symbols};
use crate::tensor::{DType, Dim, Elements, TENSOR_ELEMENTS_MAX, Tensor};
use std::borrow::Cow;
use std::cell::Cell;

/// The most dimensions a value may have.
pub const RANK_MAX: usize = 8;

/// Rules see the elements of constants up to this size: shapes, axes, bounds, not data.
pub const VALUE_BYTES_MAX: usize = 1024;

/// Dtype and shape of a value. A dimension that the rule cannot say is [`Dim::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    pub dtype: DType,
    pub dims: Vec<Dim>,
}

/// What a rule sees of one input.
#[derive(Clone, Copy)]
pub struct InferInput<'a> {
    pub dtype: DType,
    pub dims: &'a [Dim],
    /// What the symbols among `dims` are, and arithmetic on them.
    pub symbols: &'a Scope<'a>,
    known: &'a Known<'a>,
}

/// What is known of an input's elements.
struct Known<'a> {
    value: Option<Cow<'a, Tensor>>,
    elements: Option<&'a [Element]>,
    /// Whether the rule asked for elements that are not known.
    missed: Cell<bool>,
}

impl<'a> InferInput<'a> {
    /// The elements, where the input is a small constant (a target shape, axes, bounds).
    pub fn value(&self) -> Option<&'a Tensor> {
        self.known.missed.set(self.known.missed.get() || self.known.value.is_none());
        self.known.value.as_deref()
    }

    /// The elements of an i64 or i32 input, where all are known.
    pub fn ints(&self) -> Option<Vec<i64>> {
        ints_of(self.value()?)
    }

    /// As [`InferInput::ints`], where some may be known as symbols only, or not at all.
    pub fn elements(&self) -> Option<Vec<Element>> {
        match (&self.known.value, self.known.elements) {
            (None, Some(elements)) => {
                let all = elements.iter().all(|e| *e != Element::Unknown);
                self.known.missed.set(self.known.missed.get() || !all);
                Some(elements.to_vec())
            }
            _ => Some(self.ints()?.into_iter().map(Element::Number).collect()),
        }
    }
}

fn ints_of(t: &Tensor) -> Option<Vec<i64>> {
    match &t.elements {
        Elements::I64(x) => Some(x.clone()),
        Elements::I32(x) => Some(x.iter().map(|&x| i64::from(x)).collect()),
        _ => None,
    }
}

/// What a rule makes of an op's inputs.
pub struct Inferred {
    pub facts: Vec<Fact>,
    /// Symbols that facts refer to and the graph does not have yet: they count on from its last one
    /// ([`crate::symbols::Symbols::adopt`]).
    pub symbols: Vec<SymbolDef>,
    /// Inputs whose elements the rule asked for and that are not known, as bits; the last bit stands for all from
    /// there on.
    pub missed: u64,
}

/// Runs the rule of `kind` on values of `g`. Facts may have [`Dim::Unknown`], and so where the graph lacks the symbol.
pub fn infer(g: &Graph, kind: OpKind, attr: &Attr, inputs: &[ValueId]) -> Result<Vec<Fact>, String> {
    let Inferred { mut facts, symbols, .. } = infer_all(g, kind, attr, inputs)?;
    if !symbols.is_empty() {
        let foreign = |d: &Dim| matches!(d, Dim::Symbol(s) if s.index() >= g.symbols.len());
        let dims = facts.iter_mut().flat_map(|f| &mut f.dims);
        dims.filter(|d| foreign(d)).for_each(|d| *d = Dim::Unknown);
    }
    Ok(facts)
}

/// As [`infer`], with the symbols that the rule made and what it lacked.
pub fn infer_all(g: &Graph, kind: OpKind, attr: &Attr, inputs: &[ValueId]) -> Result<Inferred, String> {
    let row = kind.row();
    if inputs.len() < row.inputs.0 || inputs.len() > row.inputs.1 {
        return Err(format!("takes {} to {} inputs, not {}", row.inputs.0, row.inputs.1, inputs.len()));
    }
    if attr.variant() != row.attr {
        return Err(format!("carries {} attributes, not {}", row.attr, attr.variant()));
    }
    // A loop may lack what ends it.
    let fewest = if kind == OpKind::Loop { 0 } else { row.inputs.0 };
    if let Some(i) = inputs.iter().take(fewest).position(|v| v.is_none()) {
        return Err(format!("input {i} is absent"));
    }
    let known: Vec<Known<'_>> = inputs.iter().map(|&v| known_of(g, v)).collect();
    let scope = Scope::new(&g.symbols);
    let see = |i: usize| {
        let (v, known) = (inputs[i], &known[i]);
        let row =
            |v: ValueId| InferInput { dtype: g.value_dtype[v], dims: g.shape(v), symbols: &scope, known };
        (!v.is_none()).then(|| row(v))
    };
    let seen: Vec<Option<InferInput<'_>>> = (0..inputs.len()).map(see).collect();
    let facts = match attr {
        Attr::If(_) | Attr::Loop(_) => flow::infer(&g.bodies, &scope, attr, &seen)?,
        _ => (row.infer)(attr, &seen)?,
    };
    let bit = |i: usize| 1u64 << i.min(63);
    let missed =
        known.iter().enumerate().filter(|(_, k)| k.missed.get()).fold(0, |bits, (i, _)| bits | bit(i));
    Ok(Inferred { facts, symbols: scope.into_new(), missed })
}

fn known_of(g: &Graph, v: ValueId) -> Known<'_> {
    let small = !v.is_none() && g.const_bytes(v).is_some_and(|b| b.len() <= VALUE_BYTES_MAX);
    let elements = g.value_elements.get(&v).map(Vec::as_slice);
    let value = match elements {
        _ if small => g.const_tensor(v),
        Some(elements) => {
            let numbers: Option<Vec<i64>> = elements.iter().map(|e| e.number()).collect();
            numbers.zip(g.fixed_shape(v)).and_then(|(n, dims)| tensor_of(g.value_dtype[v], &dims, &n))
        }
        None => None,
    };
    Known { value: value.map(Cow::Owned), elements, missed: Cell::new(false) }
}

/// Runs a rule on tensors: all is known of them.
pub fn infer_tensors(rule: Rule, attr: &Attr, inputs: &[Option<&Tensor>]) -> Facts {
    with_tensors(inputs, |_, seen| rule(attr, seen))
}

/// As [`infer_tensors`], for an op with bodies.
pub fn infer_bodies(bodies: &crate::flow::Bodies, attr: &Attr, inputs: &[Option<&Tensor>]) -> Facts {
    with_tensors(inputs, |scope, seen| flow::infer(bodies, scope, attr, seen))
}

fn with_tensors(inputs: &[Option<&Tensor>], rule: impl Fn(&Scope<'_>, Inputs<'_>) -> Facts) -> Facts {
    let dims: Vec<Vec<Dim>> = inputs
        .iter()
        .map(|t| t.map_or(Vec::new(), |t| t.dims.iter().map(|&d| Dim::Fixed(d as u64)).collect()))
        .collect();
    let known: Vec<Known<'_>> = inputs
        .iter()
        .map(|t| Known { value: t.map(Cow::Borrowed), elements: None, missed: Cell::new(false) })
        .collect();
    let symbols = Symbols::default();
    let scope = Scope::new(&symbols);
    let see = |i: usize| {
        let see =
            |t: &Tensor| InferInput { dtype: t.dtype(), dims: &dims[i], symbols: &scope, known: &known[i] };
        inputs[i].map(see)
    };
    let seen: Vec<Option<InferInput<'_>>> = (0..inputs.len()).map(see).collect();
    rule(&scope, &seen)
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

fn show(dims: &[Dim]) -> String {
    let dims: Vec<String> = dims
        .iter()
        .map(|d| match d {
            Dim::Fixed(n) => n.to_string(),
            Dim::Symbol(s) => format!("{s:?}"),
            Dim::Unknown => "?".to_string(),
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
        [] => Ok(()),
        &[n] if may_equal(n, Dim::Fixed(1)) => Ok(()),
        dims => Err(format!("input {i} has shape {}, it must be one number", show(dims))),
    }
}

/// The elements of an f32 operand, where they are known.
fn known_floats(x: &InferInput<'_>) -> Option<Vec<f32>> {
    x.value()?.as_f32().map(<[f32]>::to_vec)
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

/// As [`expect_dims`], where a symbol may turn out to be any number.
fn expect_like(i: usize, x: &InferInput<'_>, dims: &[Dim]) -> Result<(), String> {
    if x.dims.len() == dims.len() && x.dims.iter().zip(dims).all(|(&a, &b)| may_equal(a, b)) {
        return Ok(());
    }
    Err(format!("input {i} has shape {}, it must be {}", show(x.dims), show(dims)))
}

/// Numbers are equal or not; a symbol may turn out to be any number.
fn may_equal(a: Dim, b: Dim) -> bool {
    a.fixed().is_none() || b.fixed().is_none() || a == b
}

/// One dimension for two that must be equal: a number where one is known.
fn joined(a: Dim, b: Dim) -> Dim {
    if a.fixed().is_some() {
        a
    } else if b.fixed().is_some() || a == Dim::Unknown {
        b
    } else {
        a
    }
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
