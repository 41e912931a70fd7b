//! What is known of the elements of small integer values: shape arithmetic, as exporters write it.
//!
//! `Shape -> Gather -> Concat -> Reshape` says in ops what a shape is. Here these ops are carried out on numbers and
//! symbols while the graph is built, so that the reshape's dimensions are known, and the ops are not needed to run it.
//! Ops that only move elements are carried out by their own reference functions, on marks in place of the elements.

use crate::graph::Graph;
use crate::ids::ValueId;
use crate::op::{Attr, OpKind};
use crate::shape::{Fact, broadcast_numbers, infer_tensors};
use crate::symbols::{Element, Scope};
use crate::tensor::{DType, Dim, Elements, Tensor, element_count};

/// Values with more elements are data.
pub const ELEMENTS_MAX: usize = 64;

/// The elements of the first output of an op that is about to join `g`, as far as they are known. `None`: nothing is,
/// or they are no small integers.
pub fn evaluate(
    g: &Graph,
    scope: &Scope<'_>,
    kind: OpKind,
    attr: &Attr,
    inputs: &[ValueId],
    fact: &Fact,
) -> Option<Vec<Element>> {
    let dims = small_dims(fact.dtype, &fact.dims)?;
    let count = element_count(&dims)?;
    let of = |i: usize| inputs.get(i).and_then(|&v| of_value(g, v));
    let found = match kind.name() {
        "Shape" => shape_of(attr, g.shape(*inputs.first()?)),
        "Size" => Some(vec![
            g.shape(*inputs.first()?).iter().fold(Element::Number(1), |n, &d| scope.mul(n, d.into())),
        ]),
        "Identity" | "Cast" => of(0).map(|x| x.1),
        "Add" | "Sub" | "Mul" | "Div" | "Equal" => {
            let (a, b) = (of(0)?, of(1)?);
            // Two unknown sides of one length leave nothing to say, but one known side may.
            pairwise(&dims, &[&a, &b], |e| arithmetic(scope, kind.name(), e[0], e[1]))
        }
        "Where" => {
            let (c, a, b) = (of(0)?, of(1)?, of(2)?);
            pairwise(&dims, &[&c, &a, &b], |e| match e[0] {
                Element::Number(0) => e[2],
                Element::Number(_) => e[1],
                _ if e[1] == e[2] => e[1],
                _ => Element::Unknown,
            })
        }
        "Concat" => moved(g, kind, attr, inputs, inputs.len()),
        "Gather" | "Unsqueeze" | "Squeeze" | "Reshape" | "Flatten" | "Transpose" | "Slice" | "Expand"
        | "Tile" => moved(g, kind, attr, inputs, 1),
        _ => numbers(g, kind, attr, inputs),
    }?;
    (found.len() == count && found.iter().any(|e| *e != Element::Unknown)).then_some(found)
}

/// Dims as numbers, of a small value of integers.
fn small_dims(dtype: DType, dims: &[Dim]) -> Option<Vec<usize>> {
    let integer = matches!(dtype, DType::I64 | DType::I32 | DType::Bool);
    let dims: Option<Vec<usize>> =
        dims.iter().map(|d| d.fixed().and_then(|n| usize::try_from(n).ok())).collect();
    dims.filter(|d| integer && element_count(d).is_some_and(|n| n <= ELEMENTS_MAX))
}

/// Dims and elements of a value, if some of them are known: of a constant, or worked out before.
fn of_value(g: &Graph, v: ValueId) -> Option<(Vec<usize>, Vec<Element>)> {
    if v.is_none() {
        return None;
    }
    let dims = small_dims(g.value_dtype[v], g.shape(v))?;
    if let Some(known) = g.value_elements.get(&v) {
        return Some((dims, known.clone()));
    }
    let t = g.const_tensor(v)?;
    let elements: Vec<i64> = match &t.elements {
        Elements::I64(x) => x.clone(),
        Elements::I32(x) => x.iter().map(|&x| i64::from(x)).collect(),
        Elements::Bool(x) => x.iter().map(|&x| i64::from(x)).collect(),
        _ => return None,
    };
    Some((dims, elements.into_iter().map(Element::Number).collect()))
}

/// `start` and `end` are the attributes of Shape since operator set 15.
fn shape_of(attr: &Attr, dims: &[Dim]) -> Option<Vec<Element>> {
    let rank = i64::try_from(dims.len()).ok()?;
    let (start, end) = match attr {
        Attr::Params(p) => (i64::from(p.bits[0]), i64::from(p.bits[1])),
        _ => (0, rank),
    };
    let place = |at: i64| (if at < 0 { at + rank } else { at }).clamp(0, rank) as usize;
    let (start, end) = (place(start), place(end));
    Some(dims.get(start..end.max(start))?.iter().map(|&d| d.into()).collect())
}

fn arithmetic(scope: &Scope<'_>, kind: &str, a: Element, b: Element) -> Element {
    match kind {
        "Add" => scope.add(a, b),
        "Sub" => scope.sub(a, b),
        "Mul" => scope.mul(a, b),
        "Equal" => match (a, b) {
            _ if a == b && a != Element::Unknown => Element::Number(1),
            (Element::Number(_), Element::Number(_)) => Element::Number(0),
            // What is no negative number is not equal to one.
            (Element::Number(n), s) | (s, Element::Number(n)) if n < 0 && scope.is_size(s) => {
                Element::Number(0)
            }
            _ => Element::Unknown,
        },
        // Quotients are rounded towards zero: downwards where nothing is negative.
        _ => match (a, b) {
            (Element::Number(a), Element::Number(b)) => {
                a.checked_div(b).map_or(Element::Unknown, Element::Number)
            }
            _ if scope.is_size(a) => scope.div(a, b),
            _ => Element::Unknown,
        },
    }
}

/// `f` of the elements that meet when the operands broadcast to `dims`.
fn pairwise(
    dims: &[usize],
    operands: &[&(Vec<usize>, Vec<Element>)],
    f: impl Fn(&[Element]) -> Element,
) -> Option<Vec<Element>> {
    let count = element_count(dims)?;
    for (own, _) in operands {
        if broadcast_numbers(own, dims).ok()? != dims {
            return None;
        }
    }
    let at = |own: &[usize], mut i: usize| {
        let (mut at, mut stride) = (0, 1);
        for d in (0..dims.len()).rev() {
            let place = i % dims[d];
            i /= dims[d];
            if let Some(k) = (d + own.len()).checked_sub(dims.len()) {
                at += if own[k] == 1 { 0 } else { place * stride };
                stride *= own[k];
            }
        }
        at
    };
    Some((0..count).map(|i| f(&operands.iter().map(|(own, e)| e[at(own, i)]).collect::<Vec<_>>())).collect())
}

/// An op that moves the elements of its first `data` inputs: run on marks, and the marks read back.
fn moved(g: &Graph, kind: OpKind, attr: &Attr, inputs: &[ValueId], data: usize) -> Option<Vec<Element>> {
    let mut marked = Vec::new();
    let mut tensors = Vec::with_capacity(inputs.len());
    for (i, &v) in inputs.iter().enumerate() {
        if v.is_none() {
            tensors.push(None);
            continue;
        }
        if i >= data {
            tensors.push(Some(known_tensor(g, v)?));
            continue;
        }
        let dims = small_dims(g.value_dtype[v], g.shape(v))?;
        let elements = match of_value(g, v) {
            Some((_, elements)) => elements,
            None => vec![Element::Unknown; element_count(&dims)?],
        };
        let first = i64::try_from(marked.len()).ok()?;
        let marks = (first..).take(elements.len()).collect();
        marked.extend(elements);
        tensors.push(Some(Tensor::from_i64(&dims, marks)));
    }
    let made = run(kind, attr, &tensors)?;
    made.as_i64()?.iter().map(|&mark| marked.get(usize::try_from(mark).ok()?).copied()).collect()
}

/// An op of numbers alone.
fn numbers(g: &Graph, kind: OpKind, attr: &Attr, inputs: &[ValueId]) -> Option<Vec<Element>> {
    let tensor = |&v: &ValueId| if v.is_none() { Some(None) } else { known_tensor(g, v).map(Some) };
    let tensors: Option<Vec<Option<Tensor>>> = inputs.iter().map(tensor).collect();
    let made = run(kind, attr, &tensors.filter(|t| !t.is_empty())?)?;
    Some(match &made.elements {
        Elements::I64(x) => x.iter().map(|&x| Element::Number(x)).collect(),
        Elements::I32(x) => x.iter().map(|&x| Element::Number(i64::from(x))).collect(),
        Elements::Bool(x) => x.iter().map(|&x| Element::Number(i64::from(x))).collect(),
        _ => return None,
    })
}

fn run(kind: OpKind, attr: &Attr, tensors: &[Option<Tensor>]) -> Option<Tensor> {
    let row = kind.row();
    let inputs: Vec<Option<&Tensor>> = tensors.iter().map(Option::as_ref).collect();
    let facts = infer_tensors(row.infer, attr, &inputs).ok()?;
    // Nothing is computed that may be large.
    for fact in &facts {
        let dims = crate::reference::fixed_dims(&fact.dims).ok()??;
        element_count(&dims).filter(|&n| n <= ELEMENTS_MAX)?;
    }
    (row.eval)(attr, &inputs).ok()?.into_iter().next()
}

/// A small value whose elements are all numbers.
fn known_tensor(g: &Graph, v: ValueId) -> Option<Tensor> {
    if let Some(known) = g.value_elements.get(&v) {
        let dims = small_dims(g.value_dtype[v], g.shape(v))?;
        let known: Option<Vec<i64>> = known.iter().map(|e| e.number()).collect();
        return tensor_of(g.value_dtype[v], &dims, &known?);
    }
    let bytes = g.const_bytes(v)?.len();
    if bytes > 8 * ELEMENTS_MAX { None } else { g.const_tensor(v) }
}

/// A tensor of these integers.
pub fn tensor_of(dtype: DType, dims: &[usize], elements: &[i64]) -> Option<Tensor> {
    if element_count(dims)? != elements.len() {
        return None;
    }
    Some(match dtype {
        DType::I64 => Tensor::from_i64(dims, elements.to_vec()),
        DType::I32 => {
            Tensor::from_i32(dims, elements.iter().map(|&x| i32::try_from(x).ok()).collect::<Option<_>>()?)
        }
        DType::Bool => Tensor::from_bool(dims, elements.iter().map(|&x| u8::from(x != 0)).collect()),
        _ => return None,
    })
}
