//! Ops with bodies: what they make is what their graphs make of these operands.

use super::{Fact, Facts, InferInput, Inputs, expect_scalar, input, optional, show, typed};
use crate::flow::Bodies;
use crate::graph::Graph;
use crate::ids::{BodyId, Id, IdVec, SymbolId, ValueId};
use crate::op::{Attr, IfAttr, LoopAttr, OpKind};
use crate::symbols::{Element, Scope, SymbolDef};
use crate::tensor::{DType, Dim};

/// Ops with bodies have no rule that does without the graph.
pub fn of_bodies(_: &Attr, _: Inputs<'_>) -> Facts {
    Err("its bodies say what it makes".to_string())
}

/// The rule of an op with these bodies.
pub fn infer(bodies: &Bodies, scope: &Scope<'_>, attr: &Attr, inputs: Inputs<'_>) -> Facts {
    match attr {
        Attr::If(a) => choice(bodies, scope, a, inputs),
        Attr::Loop(a) => repeat(bodies, scope, a, inputs),
        _ => Err(super::wrong_attr(attr)),
    }
}

fn body_of(bodies: &Bodies, body: BodyId) -> Result<&Graph, String> {
    bodies.get(body).map(|b| &**b).ok_or_else(|| format!("{body:?} does not exist"))
}

/// The condition is input 0; both bodies take the others, and make results of the same types. A dimension in which they
/// differ is not known.
fn choice(bodies: &Bodies, scope: &Scope<'_>, a: &IfAttr, inputs: Inputs<'_>) -> Facts {
    let condition = typed(inputs, 0, DType::Bool)?;
    expect_scalar(0, &condition)?;
    let results = |body: BodyId| {
        let body = body_of(bodies, body)?;
        let known = bindings(body, &inputs[1..])?;
        let facts = body.outputs.iter().map(|&v| fact_of(body, v, &known, scope));
        Ok::<Vec<Fact>, String>(facts.collect())
    };
    let mut facts = results(a.then_body)?;
    let Some(other) = a.else_body else {
        let holds = condition.value().and_then(|t| t.as_bool()?.first().copied());
        return match holds {
            Some(0) => {
                Err("its condition does not hold for these sizes, and the file was read as if it did: \
                            give it inputs of other sizes"
                    .to_string())
            }
            _ => Ok(facts),
        };
    };
    let other = results(other)?;
    if facts.len() != other.len() {
        return Err(format!("its bodies make {} and {} results", facts.len(), other.len()));
    }
    for (i, (a, b)) in facts.iter_mut().zip(&other).enumerate() {
        if a.dtype != b.dtype || a.dims.len() != b.dims.len() {
            let [a, b] = [&*a, b].map(|f| format!("{}{}", f.dtype, show(&f.dims)));
            return Err(format!("result {i} is {a} or {b}: it must have one type and number of dimensions"));
        }
        for (a, &b) in a.dims.iter_mut().zip(&b.dims) {
            *a = if *a == b { b } else { Dim::Unknown };
        }
    }
    Ok(facts)
}

/// States keep their types and ranks; a dimension that a turn may change is not known afterwards.
fn repeat(bodies: &Bodies, scope: &Scope<'_>, a: &LoopAttr, inputs: Inputs<'_>) -> Facts {
    let body = body_of(bodies, a.body)?;
    let states = a.states as usize;
    if inputs.len() < states + 2 || body.outputs.len() < states + 1 {
        return Err(format!(
            "has {states} states, {} inputs and {} results of its body",
            inputs.len(),
            body.outputs.len()
        ));
    }
    for (i, dtype) in [(0, DType::I64), (1, DType::Bool)] {
        if optional(inputs, i).is_some() {
            expect_scalar(i, &typed(inputs, i, dtype)?)?;
        }
    }
    let of_body = |what: &str, list: &[ValueId], i: usize, dtype: DType| match list.get(i) {
        Some(&v) if body.value_dtype[v] == dtype && matches!(body.shape(v), [] | [Dim::Fixed(1)]) => Ok(()),
        _ => Err(format!("{what} {i} of its body must be one {dtype}")),
    };
    of_body("input", &body.inputs, 0, DType::I64)?;
    of_body("input", &body.inputs, 1, DType::Bool)?;
    of_body("result", &body.outputs, 0, DType::Bool)?;
    // The first two are the body's own: the number of the turn, and the condition.
    let mut known = IdVec::filled(None, body.symbols.len());
    if body.inputs.len() != inputs.len() {
        return Err(misfit(body, inputs.len()));
    }
    let mut facts = Vec::new();
    for k in 0..states {
        let (start, first, last) = (input(inputs, k + 2)?, body.inputs[k + 2], body.outputs[k + 1]);
        let [from, to] = [first, last].map(|v| (body.value_dtype[v], body.shape(v)));
        if start.dtype != from.0 || from.0 != to.0 || [from.1.len(), to.1.len()] != [start.dims.len(); 2] {
            let [from, to] = [from, to].map(|(dtype, dims)| format!("{dtype}{}", show(dims)));
            return Err(format!(
                "state {k} is {}{} before the first turn, {from} before and {to} after each: it must keep its type and number of dimensions",
                start.dtype,
                show(start.dims)
            ));
        }
        let mut dims = Vec::with_capacity(start.dims.len());
        for ((&s, &from), &to) in start.dims.iter().zip(from.1).zip(to.1) {
            if let (Some(n), Some(m)) = (from.fixed(), s.fixed().or(to.fixed()))
                && n != m
            {
                return Err(format!("state {k} has {m} in a dimension where its body takes {n}"));
            }
            dims.push(match (from, to) {
                (Dim::Fixed(n), _) => Dim::Fixed(n),
                (Dim::Symbol(a), Dim::Symbol(b)) if a == b => {
                    known[a] = Some(s);
                    s
                }
                _ if s.fixed().is_some() && s == to => s,
                _ => Dim::Unknown,
            });
        }
        facts.push(Fact { dtype: start.dtype, dims });
    }
    bind(body, &body.inputs[states + 2..], &inputs[states + 2..], &mut known)?;
    let turns = if runs_to_the_end(body, inputs) { turns(scope, inputs) } else { Dim::Unknown };
    for &v in &body.outputs[states + 1..] {
        let mut fact = fact_of(body, v, &known, scope);
        fact.dims.insert(0, turns);
        facts.push(fact);
    }
    facts.iter().try_for_each(|f| super::check_dims(&f.dims))?;
    Ok(facts)
}

/// Whether nothing but the number of turns ends the loop.
fn runs_to_the_end(body: &Graph, inputs: Inputs<'_>) -> bool {
    let holds = |t: &crate::tensor::Tensor| t.as_bool().is_some_and(|x| x.first() == Some(&1));
    let begins = optional(inputs, 1).is_none_or(|c| c.value().is_some_and(holds));
    let mut last = body.outputs[0];
    while let Some(op) = body.producer(last).filter(|&op| body.op_kind[op] == OpKind::Identity) {
        last = body.inputs_of(op)[0];
    }
    begins && (last == body.inputs[1] || body.const_tensor(last).is_some_and(|t| holds(&t)))
}

fn turns(scope: &Scope<'_>, inputs: Inputs<'_>) -> Dim {
    let element = optional(inputs, 0).and_then(|n| n.elements()).and_then(|e| e.first().copied());
    match element {
        Some(Element::Number(n)) => Dim::Fixed(u64::try_from(n).unwrap_or(0)),
        Some(e @ Element::Symbol(s)) if scope.is_size(e) => Dim::Symbol(s),
        _ => Dim::Unknown,
    }
}

type Known = IdVec<SymbolId, Option<Dim>>;

fn misfit(body: &Graph, given: usize) -> String {
    format!("its body '{}' takes {} values, not {given}", body.name, body.inputs.len())
}

/// What the symbols of a body's inputs are for these arguments.
fn bindings(body: &Graph, args: Inputs<'_>) -> Result<Known, String> {
    if body.inputs.len() != args.len() {
        return Err(misfit(body, args.len()));
    }
    let mut known = IdVec::filled(None, body.symbols.len());
    bind(body, &body.inputs, args, &mut known)?;
    Ok(known)
}

fn bind(body: &Graph, formal: &[ValueId], args: Inputs<'_>, known: &mut Known) -> Result<(), String> {
    for (&v, arg) in formal.iter().zip(args) {
        let name = &body.value_name[v];
        let fits =
            |arg: &InferInput<'_>| arg.dtype == body.value_dtype[v] && arg.dims.len() == body.shape(v).len();
        let Some(arg) = arg.filter(fits) else {
            let given = arg.map_or("nothing".to_string(), |a| format!("{}{}", a.dtype, show(a.dims)));
            let (dtype, dims) = (body.value_dtype[v], show(body.shape(v)));
            return Err(format!("its body takes {dtype}{dims} as '{name}', it is given {given}"));
        };
        for (&dim, &given) in body.shape(v).iter().zip(arg.dims) {
            let said = match dim {
                Dim::Symbol(s) => known[s].replace(given).unwrap_or(given),
                dim => dim,
            };
            if let (Some(a), Some(b)) = (said.fixed(), given.fixed())
                && a != b
            {
                return Err(format!("its body takes {a} in a dimension of '{name}', it is given {b}"));
            }
        }
    }
    Ok(())
}

/// Type and shape of a body's value outside of it.
fn fact_of(body: &Graph, v: ValueId, known: &Known, scope: &Scope<'_>) -> Fact {
    let dim = |d: &Dim| match *d {
        Dim::Symbol(s) => outside(body, s, known, scope),
        d => d,
    };
    Fact { dtype: body.value_dtype[v], dims: body.shape(v).iter().map(dim).collect() }
}

/// A body's symbol in symbols of the graph outside, where what it is made of is known there.
fn outside(body: &Graph, symbol: SymbolId, known: &Known, scope: &Scope<'_>) -> Dim {
    // Definitions rest on earlier symbols: first which are needed, then what they are.
    let mut needed = vec![false; symbol.index() + 1];
    needed[symbol.index()] = true;
    for i in (0..needed.len()).rev() {
        let s = SymbolId::from_index(i);
        if !needed[i] || known[s].is_some() {
            continue;
        }
        match body.symbols.def(s) {
            SymbolDef::Free | SymbolDef::Unknown => return Dim::Unknown,
            SymbolDef::Sum(sum) | SymbolDef::Quotient { of: sum, .. } => {
                sum.terms.iter().for_each(|(t, _)| needed[t.index()] = true);
            }
            SymbolDef::Product(a, b) => [a, b].iter().for_each(|t| needed[t.index()] = true),
        }
    }
    let mut is = vec![Element::Unknown; needed.len()];
    for i in (0..needed.len()).filter(|&i| needed[i]) {
        let s = SymbolId::from_index(i);
        let of = |s: SymbolId| is[s.index()];
        let sum = |sum: &crate::symbols::Sum| {
            sum.terms.iter().fold(Element::Number(sum.constant), |all, &(s, factor)| {
                scope.add(all, scope.mul(of(s), Element::Number(factor)))
            })
        };
        is[i] = match (known[s], body.symbols.def(s)) {
            (Some(dim), _) => dim.into(),
            (None, SymbolDef::Sum(of)) => sum(of),
            (None, SymbolDef::Quotient { of, by }) => scope.div(sum(of), Element::Number(*by)),
            (None, SymbolDef::Product(a, b)) => scope.mul(of(*a), of(*b)),
            (None, SymbolDef::Free | SymbolDef::Unknown) => Element::Unknown,
        };
    }
    match is[symbol.index()] {
        Element::Number(n) => u64::try_from(n).map_or(Dim::Unknown, Dim::Fixed),
        e => e.dim().unwrap_or(Dim::Unknown),
    }
}
