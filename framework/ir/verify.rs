//! What must hold of a graph, checked in one sweep over its tables.
//!
//! 1. Columns of one table are equally long; every range lies inside its pool.
//! 2. Every value's definition points back at it: an input is in `inputs`, a constant has bytes, output `i` of an
//!    op is entry `i` of that op's output list, and no value is listed twice.
//! 3. A constant's bytes are exactly as long as its dtype and (fixed) shape ask for.
//! 4. Shapes respect the limits on rank and element count; symbols exist and have distinct names.
//! 5. `order` lists each live op once, and each op after the ops whose results it reads.
//! 6. An op has as many inputs as its row allows, carries the attribute variant of its row, and its outputs have
//!    the dtypes and shapes that its shape rule infers; where the rule cannot say, the graph may.
//! 7. Names of inputs are not empty and distinct; so are names of outputs, which a caller can read: each is an
//!    input, a constant or the result of a live op.
//! 8. All this holds of its bodies, which lie no deeper than [`crate::flow::BODIES_DEEP_MAX`] graphs within graphs.
//!
//! Ops that are not in `order` are dead rows: only (1) and (2) are asked of them. Every pass must keep all of this.

use crate::error::{Error, Result};
use crate::flow::BODIES_DEEP_MAX;
use crate::graph::{Def, Graph};
use crate::ids::{Id, OpId, Range32, ValueId};
use crate::shape;
use crate::tensor::{Dim, element_count};
use std::collections::HashSet;

/// Checks every invariant at the head of this file; the error names the op or value that breaks one.
pub fn verify(g: &Graph) -> Result<()> {
    verify_at(g, 0)
}

fn verify_at(g: &Graph, depth: usize) -> Result<()> {
    if depth > BODIES_DEEP_MAX {
        return invalid(format!("graphs lie within graphs deeper than {BODIES_DEEP_MAX}"));
    }
    // Rules of ops with bodies read them.
    for (id, body) in g.bodies.iter() {
        verify_at(body, depth + 1).map_err(|e| Error::Invalid(format!("{id:?} '{}': {e}", body.name)))?;
    }
    columns(g)?;
    shapes(g)?;
    definitions(g)?;
    constants(g)?;
    order(g)?;
    ends(g)
}

/// What can break when symbols become numbers: shapes, and what ops make of them. Constants may be empty.
pub fn verify_shapes(g: &Graph) -> Result<()> {
    shapes(g)?;
    order(g)
}

fn invalid<T>(why: String) -> Result<T> {
    Err(Error::Invalid(why))
}

fn inside(range: Range32, pool: usize) -> bool {
    range.start as usize + range.len as usize <= pool
}

fn columns(g: &Graph) -> Result<()> {
    let ops = g.op_kind.len();
    if [g.op_attr.len(), g.op_name.len(), g.op_inputs.len(), g.op_outputs.len()] != [ops; 4] {
        return invalid("the op columns differ in length".to_string());
    }
    let values = g.value_name.len();
    if [g.value_dtype.len(), g.value_shape.len(), g.value_def.len()] != [values; 3] {
        return invalid("the value columns differ in length".to_string());
    }
    for op in g.op_kind.ids() {
        if !inside(g.op_inputs[op], g.operands.len()) || !inside(g.op_outputs[op], g.operands.len()) {
            return invalid(format!("op '{}': an operand list lies outside the pool", g.op_name[op]));
        }
        let listed = g.inputs_of(op).iter().filter(|v| !v.is_none()).chain(g.outputs_of(op));
        if listed.copied().any(|v| v.index() >= values) {
            return invalid(format!("op '{}' names a value that does not exist", g.op_name[op]));
        }
    }
    if let Some((v, _)) = g.value_shape.iter().find(|(_, r)| !inside(**r, g.dims.len())) {
        return invalid(format!("value '{}': its shape lies outside the pool", g.value_name[v]));
    }
    if g.inputs.iter().chain(&g.outputs).any(|v| v.index() >= values) {
        return invalid("an input or output of the graph does not exist".to_string());
    }
    Ok(())
}

fn shapes(g: &Graph) -> Result<()> {
    let mut names = HashSet::new();
    if let Some(name) = g.symbols.as_slice().iter().find(|n| n.is_empty() || !names.insert(n.as_str())) {
        return invalid(format!("symbol '{name}': names of symbols must be distinct and not empty"));
    }
    for v in g.value_name.ids() {
        let unknown = |d: &Dim| match d {
            Dim::Fixed(_) => false,
            Dim::Symbol(s) => s.index() >= g.symbols.len(),
            Dim::Unknown => true,
        };
        if g.shape(v).iter().any(unknown) {
            return invalid(format!("value '{}' has a symbol that does not exist", g.value_name[v]));
        }
        shape::check_dims(g.shape(v))
            .or_else(|why| invalid(format!("value '{}': {why}", g.value_name[v])))?;
    }
    Ok(())
}

fn definitions(g: &Graph) -> Result<()> {
    let mut seen = vec![false; g.value_name.len()];
    let mut once = |v: ValueId| !std::mem::replace(&mut seen[v.index()], true);
    for &v in &g.inputs {
        if g.value_def[v] != Def::Input || !once(v) {
            return invalid(format!("input '{}' is listed twice or defined otherwise", g.value_name[v]));
        }
    }
    for op in g.op_kind.ids() {
        for (i, &v) in g.outputs_of(op).iter().enumerate() {
            if g.value_def[v] != Def::Op(op, i as u32) || !once(v) {
                let (value, op) = (&g.value_name[v], &g.op_name[op]);
                return invalid(format!(
                    "value '{value}', output {i} of op '{op}', is also defined otherwise"
                ));
            }
        }
    }
    for (v, def) in g.value_def.iter() {
        if !matches!(def, Def::Const(_)) && once(v) {
            return invalid(format!("value '{}' is defined by nothing that lists it", g.value_name[v]));
        }
    }
    Ok(())
}

fn constants(g: &Graph) -> Result<()> {
    for (v, def) in g.value_def.iter() {
        let Def::Const(c) = *def else { continue };
        let name = || g.value_name[v].clone();
        let Some(bytes) = g.consts.get(c) else {
            return invalid(format!("constant '{}' has no bytes", name()));
        };
        let Some(dims) = g.fixed_shape(v) else {
            return invalid(format!("constant '{}' has a symbolic dimension", name()));
        };
        let dtype = g.value_dtype[v];
        if element_count(&dims).and_then(|n| n.checked_mul(dtype.size())) != Some(bytes.len()) {
            return Err(Error::ConstLength { name: name(), dtype, dims, bytes: bytes.len() });
        }
    }
    Ok(())
}

fn order(g: &Graph) -> Result<()> {
    let mut done = vec![false; g.op_kind.len()];
    for &op in &g.order {
        if op.index() >= done.len() || done[op.index()] {
            return invalid(format!("{op:?} is in the order twice, or does not exist"));
        }
        for &v in g.inputs_of(op).iter().filter(|v| !v.is_none()) {
            if g.producer(v).is_some_and(|p| !done[p.index()]) {
                return fault(g, op, format!("reads '{}' before it is made", g.value_name[v]));
            }
        }
        done[op.index()] = true;
        facts(g, op)?;
    }
    match g.outputs.iter().find(|&&v| g.producer(v).is_some_and(|p| !done[p.index()])) {
        Some(&v) => {
            invalid(format!("output '{}' is the result of an op that is not in the order", g.value_name[v]))
        }
        None => Ok(()),
    }
}

fn fault<T>(g: &Graph, op: OpId, why: String) -> Result<T> {
    Err(Error::Op { op: g.op_name[op].clone(), kind: g.op_kind[op].name(), why })
}

fn facts(g: &Graph, op: OpId) -> Result<()> {
    let facts =
        shape::infer(g, g.op_kind[op], &g.op_attr[op], g.inputs_of(op)).or_else(|why| fault(g, op, why))?;
    let outputs = g.outputs_of(op);
    if outputs.is_empty() || outputs.len() > facts.len() {
        return fault(g, op, format!("lists {} outputs, it has {}", outputs.len(), facts.len()));
    }
    for (&v, fact) in outputs.iter().zip(&facts) {
        if g.value_dtype[v] != fact.dtype || !agree(g, g.shape(v), &fact.dims) {
            let (name, dtype, dims) = (&g.value_name[v], g.value_dtype[v], g.shape(v));
            return fault(
                g,
                op,
                format!("'{name}' is {dtype}{dims:?}, inferred is {}{:?}", fact.dtype, fact.dims),
            );
        }
    }
    Ok(())
}

/// Where the rule cannot say what a dimension is, or it rests on the data of a run, the graph may say more.
fn agree(g: &Graph, stored: &[Dim], inferred: &[Dim]) -> bool {
    let open = |d: Dim| g.symbols.is_open(d);
    let fits = |(&s, &i): (&Dim, &Dim)| s == i || open(s) || open(i);
    stored.len() == inferred.len() && stored.iter().zip(inferred).all(fits)
}

fn ends(g: &Graph) -> Result<()> {
    for (what, list) in [("input", &g.inputs), ("output", &g.outputs)] {
        let mut names = HashSet::new();
        for &v in list {
            let name = g.value_name[v].as_str();
            if name.is_empty() || !names.insert(name) {
                return invalid(format!("{what} '{name}': names of {what}s must be distinct and not empty"));
            }
        }
    }
    if g.outputs.is_empty() { invalid("the graph has no outputs".to_string()) } else { Ok(()) }
}
