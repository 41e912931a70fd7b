//! The reference interpreter: runs a graph op by op with the functions of the op table.
//!
//! It is the meaning of a graph. Slow, allocating, and checked: inputs against the graph's dtypes and shapes
//! (a symbol is one number in a whole run), every result's size before it is computed, and the sum of what is
//! alive against [`RUN_BYTES_MAX`]. Values are dropped after their last use. The graph must have passed
//! [`crate::verify::verify`].

use crate::error::{Error, Result};
use crate::flow;
use crate::graph::{Def, Graph};
use crate::ids::{IdVec, OpId, SymbolId, ValueId};
use crate::reference::fixed_dims;
use crate::shape::infer_tensors;
use crate::tensor::{Dim, Tensor, element_count};
use std::borrow::Cow;

/// The most bytes of results that one run keeps alive at a time.
pub const RUN_BYTES_MAX: usize = 8 << 30;
/// The most ops that one run evaluates, turns of loops counted: a loop that does not end is an error.
pub const RUN_OPS_MAX: u64 = 1 << 24;

/// What a run may still take, its bodies' runs included.
#[derive(Clone, Debug)]
pub struct Budget {
    bytes_alive: usize,
    bytes_max: usize,
    ops_left: u64,
}

impl Budget {
    pub(crate) fn new() -> Budget {
        Budget { bytes_alive: 0, bytes_max: RUN_BYTES_MAX, ops_left: RUN_OPS_MAX }
    }

    pub(crate) fn bytes_alive(&self) -> usize {
        self.bytes_alive
    }

    /// Counts bytes that stay.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<()> {
        self.bytes_alive = self.bytes_alive.saturating_add(bytes);
        match self.bytes_alive > self.bytes_max {
            true => Err(Error::Invalid(too_many_bytes(self.bytes_max))),
            false => Ok(()),
        }
    }

    /// What has been held since is given back.
    pub(crate) fn release_to(&mut self, bytes: usize) {
        self.bytes_alive = bytes;
    }
}

fn too_many_bytes(max: usize) -> String {
    format!("the run needs more than {max} bytes: use a smaller batch")
}

/// Runs `g` on `inputs`, given in the order of `g.inputs`; returns the outputs in the order of `g.outputs`.
///
/// # Errors
/// [`Error::Input`] for an input that does not fit, [`Error::Op`] for an op that cannot be evaluated.
pub fn run(g: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    run_within(g, &inputs.iter().collect::<Vec<_>>(), &mut Budget::new())
}

/// As [`run`], as part of another run.
pub(crate) fn run_within(g: &Graph, inputs: &[&Tensor], budget: &mut Budget) -> Result<Vec<Tensor>> {
    let held = budget.bytes_alive;
    let values = evaluate(g, inputs, false, budget)?;
    budget.release_to(held);
    g.outputs
        .iter()
        .map(|&v| {
            values[v].clone().map(Cow::into_owned).ok_or_else(|| {
                Error::Invalid(format!(
                    "output '{}' is not made by any op: verify the graph",
                    g.value_name[v]
                ))
            })
        })
        .collect()
}

/// As [`run`], but returns every value of the graph, for comparisons layer by layer. `None`: a value that no
/// live op reads or makes.
pub fn run_all(g: &Graph, inputs: &[Tensor]) -> Result<IdVec<ValueId, Option<Tensor>>> {
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let values = evaluate(g, &inputs, true, &mut Budget::new())?;
    let mut owned = IdVec::new();
    for v in values.into_iter() {
        owned.push(v.map(Cow::into_owned));
    }
    Ok(owned)
}

/// As [`run`], with inputs given by name, in any order.
pub fn run_named(g: &Graph, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>> {
    if let Some((name, _)) = inputs.iter().find(|(n, _)| !g.inputs.iter().any(|&v| g.value_name[v] == *n)) {
        let known: Vec<&str> = g.inputs.iter().map(|&v| g.value_name[v].as_str()).collect();
        return Err(Error::Input {
            name: name.to_string(),
            why: format!("the graph has no such input: it has {known:?}"),
        });
    }
    let ordered: Result<Vec<Tensor>> =
        g.inputs
            .iter()
            .map(|&v| {
                let name = &g.value_name[v];
                inputs.iter().find(|(n, _)| n == name).map(|(_, t)| (*t).clone()).ok_or_else(|| {
                    Error::Input { name: name.clone(), why: "is missing: pass a tensor for it".to_string() }
                })
            })
            .collect();
    run(g, &ordered?)
}

type Values<'a> = IdVec<ValueId, Option<Cow<'a, Tensor>>>;

fn evaluate<'a>(g: &Graph, inputs: &[&'a Tensor], keep: bool, budget: &mut Budget) -> Result<Values<'a>> {
    let symbols = bind_inputs(g, inputs)?;
    let mut values: Values<'a> = IdVec::filled(None, g.value_name.len());
    for (&v, &t) in g.inputs.iter().zip(inputs) {
        values[v] = Some(Cow::Borrowed(t));
    }
    for &v in &g.outputs {
        load_const(g, v, &mut values)?;
    }
    let mut reads = reads_left(g);
    for &op in &g.order {
        for &v in g.inputs_of(op).iter().filter(|v| !v.is_none()) {
            load_const(g, v, &mut values)?;
        }
        let outputs = evaluate_op(g, op, &values, budget)?;
        for (&v, t) in g.outputs_of(op).iter().zip(outputs) {
            check_inferred(g, op, v, &t, &symbols)?;
            values[v] = Some(Cow::Owned(t));
        }
        let read = g.inputs_of(op).iter().chain(g.outputs_of(op)).copied().filter(|v| !v.is_none());
        for v in read.collect::<Vec<_>>() {
            reads[v] = reads[v].saturating_sub(u32::from(g.inputs_of(op).contains(&v)));
            if reads[v] == 0 && !keep {
                let freed = values[v].take();
                if g.producer(v).is_some() {
                    budget.bytes_alive -= freed.map_or(0, |t| t.bytes().len()).min(budget.bytes_alive);
                }
            }
        }
    }
    Ok(values)
}

/// How often each value is still to be read; a graph output is read once more, at the end.
fn reads_left(g: &Graph) -> IdVec<ValueId, u32> {
    let mut reads = IdVec::filled(0, g.value_name.len());
    let operands = g.order.iter().flat_map(|&op| g.inputs_of(op)).chain(&g.outputs);
    for &v in operands.filter(|v| !v.is_none()) {
        reads[v] += 1;
    }
    reads
}

/// Checks the inputs and finds the number each symbol stands for.
fn bind_inputs(g: &Graph, inputs: &[&Tensor]) -> Result<IdVec<SymbolId, Option<u64>>> {
    if inputs.len() != g.inputs.len() {
        return Err(Error::Invalid(format!("takes {} inputs, {} were given", g.inputs.len(), inputs.len())));
    }
    let mut bound: IdVec<SymbolId, Option<u64>> = IdVec::filled(None, g.symbols.len());
    for (&v, t) in g.inputs.iter().zip(inputs) {
        let fail = |why: String| Error::Input { name: g.value_name[v].clone(), why };
        if t.dtype() != g.value_dtype[v] {
            return Err(fail(format!("is {}, the graph takes {}", t.dtype(), g.value_dtype[v])));
        }
        let shape = g.shape(v);
        if element_count(&t.dims) != Some(t.len()) {
            return Err(fail(format!("has {} elements, its dims are {:?}", t.len(), t.dims)));
        }
        if shape.len() != t.dims.len() {
            return Err(fail(format!("has {} dimensions, the graph takes {}", t.dims.len(), shape.len())));
        }
        for (i, (&want, &have)) in shape.iter().zip(&t.dims).enumerate() {
            match want {
                Dim::Fixed(n) if n != have as u64 => {
                    return Err(fail(format!("has {have} in dimension {i}, the graph takes {n}")));
                }
                Dim::Symbol(s) if *bound[s].get_or_insert(have as u64) != have as u64 => {
                    let name = &g.symbols[s];
                    return Err(fail(format!("has {have} in dimension {i}, but '{name}' is {:?}", bound[s])));
                }
                _ => {}
            }
        }
    }
    for s in g.symbols.ids() {
        bound[s] = g.symbols.evaluate(s, bound.as_slice());
    }
    Ok(bound)
}

fn load_const(g: &Graph, v: ValueId, values: &mut Values<'_>) -> Result<()> {
    if values[v].is_none() && matches!(g.value_def[v], Def::Const(_)) {
        let t = g.const_tensor(v).ok_or_else(|| {
            Error::Invalid(format!(
                "constant '{}' does not fill its shape: verify the graph",
                g.value_name[v]
            ))
        })?;
        values[v] = Some(Cow::Owned(t));
    }
    Ok(())
}

fn evaluate_op(g: &Graph, op: OpId, values: &Values<'_>, budget: &mut Budget) -> Result<Vec<Tensor>> {
    let row = g.op_kind[op].row();
    let fail = |why: String| Error::Op { op: g.op_name[op].clone(), kind: row.name, why };
    let mut inputs: Vec<Option<&Tensor>> = Vec::with_capacity(g.inputs_of(op).len());
    for (i, &v) in g.inputs_of(op).iter().enumerate() {
        let t = if v.is_none() { None } else { values[v].as_deref() };
        if t.is_none() && !v.is_none() {
            return Err(fail(format!("input {i} ('{}') is read before it is made", g.value_name[v])));
        }
        inputs.push(t);
    }
    if inputs.len() < row.inputs.0 || inputs.len() > row.inputs.1 {
        return Err(fail(format!("takes {} to {} inputs, not {}", row.inputs.0, row.inputs.1, inputs.len())));
    }
    budget.ops_left = budget
        .ops_left
        .checked_sub(1)
        .ok_or_else(|| fail(format!("the run takes more than {RUN_OPS_MAX} ops: does a loop of it end?")))?;
    if flow::has_bodies(&g.op_attr[op]) {
        let outputs = flow::evaluate_within(&g.bodies, &g.op_attr[op], &inputs, budget).map_err(fail)?;
        budget.hold(outputs.iter().map(|t| t.bytes().len()).sum())?;
        return Ok(outputs);
    }
    let facts = infer_tensors(row.infer, &g.op_attr[op], &inputs).map_err(fail)?;
    let mut bytes = Some(budget.bytes_alive);
    for fact in &facts {
        // What data decide is no larger than what an op of that kind reads.
        let Some(dims) = fixed_dims(&fact.dims).map_err(fail)? else { continue };
        // Eight bytes an element is the most any dtype takes.
        let own = element_count(&dims).and_then(|n| n.checked_mul(8));
        bytes = bytes.zip(own).and_then(|(all, own)| all.checked_add(own));
    }
    if bytes.is_none_or(|b| b > budget.bytes_max) {
        return Err(fail(too_many_bytes(budget.bytes_max)));
    }
    let outputs = (row.eval)(&g.op_attr[op], &inputs).map_err(fail)?;
    budget.bytes_alive += outputs.iter().map(|t| t.bytes().len()).sum::<usize>();
    Ok(outputs)
}

/// A result must have the dtype and shape that the graph says, with symbols as bound.
fn check_inferred(
    g: &Graph,
    op: OpId,
    v: ValueId,
    t: &Tensor,
    symbols: &IdVec<SymbolId, Option<u64>>,
) -> Result<()> {
    let fits = |(&want, &have): (&Dim, &usize)| match want {
        Dim::Fixed(n) => n == have as u64,
        Dim::Symbol(s) => symbols[s].is_none_or(|n| n == have as u64),
        Dim::Unknown => true,
    };
    let shape = g.shape(v);
    if t.dtype() == g.value_dtype[v] && shape.len() == t.dims.len() && shape.iter().zip(&t.dims).all(fits) {
        return Ok(());
    }
    Err(Error::Op {
        op: g.op_name[op].clone(),
        kind: g.op_kind[op].name(),
        why: format!(
            "made {}{:?} where the graph says {}{shape:?}: verify the graph",
            t.dtype(),
            t.dims,
            g.value_dtype[v]
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain frees as it goes; values that wait for a late reader add up.
    #[test]
    fn what_is_alive_is_bounded() {
        let chain = "input %x: f32[4]
%a: f32[4] = Relu(%x)
%b: f32[4] = Relu(%a)
%c: f32[4] = Relu(%b)
%d: f32[4] = Relu(%c)
output %d";
        // Before each op one result of 16 bytes is alive, and the next is reckoned at 8 bytes an element.
        let inputs = [Tensor::from_f32(&[4], vec![1.0, -1.0, 2.0, -2.0])];
        let within = |g: &Graph, keep: bool, bytes_max: usize| {
            let mut budget = Budget { bytes_max, ..Budget::new() };
            evaluate(g, &inputs.iter().collect::<Vec<_>>(), keep, &mut budget).map(|_| ())
        };
        let g = crate::text::parse(chain).unwrap();
        assert!(within(&g, false, 48).is_ok());
        assert!(within(&g, false, 47).is_err());
        assert!(within(&g, true, 48).is_err());
        let late = crate::text::parse(&chain.replace("Relu(%c)", "Add(%a, %c)")).unwrap();
        let error = within(&late, false, 63).unwrap_err();
        assert!(error.to_string().contains("more than 63 bytes"), "{error}");
        assert!(within(&late, false, 64).is_ok());
    }

    /// A loop that does not end, and one whose parts fill the memory.
    #[test]
    fn loops_are_bounded() {
        let g = crate::text::parse(
            "input %x: f32[1]\nbody 0 on\ninput %turn: i64[]\ninput %goes_on: bool[]\ninput %x: f32[1]
%y: f32[1] = Relu(%x)\noutput %goes_on\noutput %y\nend
%y: f32[?\"y.0\",1] = Loop(_, _, %x) body=0 states=0\noutput %y",
        )
        .unwrap();
        let within = |budget: Budget| {
            let x = Tensor::from_f32(&[1], vec![1.0]);
            evaluate(&g, &[&x], false, &mut { budget }).map(|_| ()).unwrap_err().to_string()
        };
        let e = within(Budget { ops_left: 1000, ..Budget::new() });
        assert!(e.contains("does a loop of it end?"), "{e}");
        let e = within(Budget { bytes_max: 1000, ..Budget::new() });
        assert!(e.contains("more than 1000 bytes"), "{e}");
    }
}
