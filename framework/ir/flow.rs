//! Ops that run other graphs: choices and loops.
//!
//! Their graphs, the *bodies*, are a table of the graph they stand in ([`Graph::bodies`]), each with tables of its own.
//! What a body reads of the graph outside is an input of the op and of the body, so that passes and plans see every
//! use of a value; constants it has itself. Shapes inside are symbolic wherever a caller may say what they are: a
//! symbol of a body is what the body's inputs say in one turn.

use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::ids::{BodyId, IdVec, ValueId};
use crate::interp::{Budget, run_within};
use crate::op::{Attr, IfAttr, LoopAttr};
use crate::reference::Inputs;
use crate::shape::{Fact, infer_bodies};
use crate::tensor::{Dim, Elements, Tensor};
use std::sync::Arc;

/// Graphs within graphs.
pub const BODIES_DEEP_MAX: usize = 16;

pub type Bodies = IdVec<BodyId, Arc<Graph>>;

/// The bodies of an op.
pub fn bodies_of(attr: &Attr) -> impl Iterator<Item = BodyId> + use<> {
    let [a, b] = match *attr {
        Attr::If(IfAttr { then_body, else_body }) => [Some(then_body), else_body],
        Attr::Loop(LoopAttr { body, .. }) => [Some(body), None],
        _ => [None, None],
    };
    a.into_iter().chain(b)
}

pub fn has_bodies(attr: &Attr) -> bool {
    matches!(attr, Attr::If(_) | Attr::Loop(_))
}

/// Ops of the graph's bodies, and of theirs.
pub fn inner_ops(bodies: &Bodies, attr: &Attr) -> usize {
    let of_body = |id: BodyId| {
        let Some(body) = bodies.get(id) else { return 0 };
        let inner = body.order.iter().map(|&op| inner_ops(&body.bodies, &body.op_attr[op]));
        body.order.len() + inner.sum::<usize>()
    };
    bodies_of(attr).map(of_body).sum()
}

/// What an op with bodies makes of these inputs.
///
/// # Errors
/// What is wrong with the inputs, or with an op inside.
pub fn evaluate(bodies: &Bodies, attr: &Attr, inputs: Inputs<'_>) -> Result<Vec<Tensor>, String> {
    evaluate_within(bodies, attr, inputs, &mut Budget::new())
}

pub(crate) fn evaluate_within(
    bodies: &Bodies,
    attr: &Attr,
    inputs: Inputs<'_>,
    budget: &mut Budget,
) -> Result<Vec<Tensor>, String> {
    // The op's own rule says which inputs fit, and what a loop of no turns makes.
    let facts = infer_bodies(bodies, attr, inputs)?;
    match attr {
        Attr::If(a) => choose(bodies, a, inputs, budget).map_err(|e| e.to_string()),
        Attr::Loop(a) => repeat(bodies, a, inputs, &facts, budget).map_err(|e| e.to_string()),
        _ => Err(format!("{} attributes have no bodies", attr.variant())),
    }
}

fn flag(t: Option<&Tensor>) -> Option<bool> {
    t?.as_bool()?.first().map(|&c| c != 0)
}

fn all<'t>(inputs: &[Option<&'t Tensor>]) -> Result<Vec<&'t Tensor>> {
    let absent = || Error::Invalid("an input of a body is absent".to_string());
    inputs.iter().map(|t| t.ok_or_else(absent)).collect()
}

fn choose(bodies: &Bodies, a: &IfAttr, inputs: Inputs<'_>, budget: &mut Budget) -> Result<Vec<Tensor>> {
    let holds = flag(inputs[0]).unwrap_or(false);
    let body = if holds { Some(a.then_body) } else { a.else_body };
    let body = body.ok_or_else(|| Error::Invalid("the condition does not hold".to_string()))?;
    run_within(&bodies[body], &all(&inputs[1..])?, budget)
}

fn repeat(
    bodies: &Bodies,
    a: &LoopAttr,
    inputs: Inputs<'_>,
    facts: &[Fact],
    budget: &mut Budget,
) -> Result<Vec<Tensor>> {
    let (body, states) = (&bodies[a.body], a.states as usize);
    let turns = inputs[0].and_then(|t| t.as_i64()?.first().copied()).unwrap_or(i64::MAX);
    let mut goes_on = flag(inputs[1]).unwrap_or(true);
    let mut state: Vec<Tensor> = all(&inputs[2..2 + states])?.into_iter().cloned().collect();
    let captured = all(&inputs[2 + states..])?;
    let mut parts = vec![Parts::default(); body.outputs.len() - 1 - states];
    let held = budget.bytes_alive();
    let scalar = |v: ValueId, elements: Elements| Tensor { dims: vec![1; body.shape(v).len()], elements };
    let mut turn = 0;
    while turn < turns && goes_on {
        let number = scalar(body.inputs[0], Elements::I64(vec![turn]));
        let condition = scalar(body.inputs[1], Elements::Bool(vec![u8::from(goes_on)]));
        let args: Vec<&Tensor> =
            [&number, &condition].into_iter().chain(&state).chain(captured.iter().copied()).collect();
        let mut made = run_within(body, &args, budget)?.into_iter();
        goes_on = flag(made.next().as_ref()).unwrap_or(false);
        state = made.by_ref().take(states).collect();
        for (all, part) in parts.iter_mut().zip(made) {
            budget.hold(part.bytes().len())?;
            all.push(part)?;
        }
        turn += 1;
    }
    budget.release_to(held);
    let gathered = parts.into_iter().zip(&facts[states..]).map(|(parts, fact)| parts.stacked(turn, fact));
    Ok(state.into_iter().chain(gathered).collect())
}

/// What the turns of a loop make, back to back.
#[derive(Clone, Default)]
struct Parts {
    all: Option<Tensor>,
}

impl Parts {
    fn push(&mut self, part: Tensor) -> Result<()> {
        let Some(all) = &mut self.all else {
            self.all = Some(part);
            return Ok(());
        };
        let fits = all.dims == part.dims;
        match (&mut all.elements, part.elements) {
            (Elements::F32(a), Elements::F32(b)) if fits => a.extend(b),
            (Elements::I64(a), Elements::I64(b)) if fits => a.extend(b),
            (Elements::I32(a), Elements::I32(b)) if fits => a.extend(b),
            (Elements::U8(a), Elements::U8(b)) | (Elements::Bool(a), Elements::Bool(b)) if fits => {
                a.extend(b)
            }
            (Elements::I8(a), Elements::I8(b)) if fits => a.extend(b),
            _ => {
                let why = format!("a part is {:?} in one turn and {:?} in another", all.dims, part.dims);
                return Err(Error::Invalid(why));
            }
        }
        Ok(())
    }

    /// With the turns as first dimension. Of no turns, what the op's rule says; what that does not say is 0.
    fn stacked(self, turns: i64, fact: &Fact) -> Tensor {
        match self.all {
            Some(mut all) => {
                all.dims.insert(0, turns as usize);
                all
            }
            None => {
                let mut dims: Vec<usize> =
                    fact.dims.iter().map(|d: &Dim| d.fixed().map_or(0, |n| n as usize)).collect();
                dims[0] = 0;
                Tensor::zeros(fact.dtype, &dims)
            }
        }
    }
}
