//! Choices and loops.
//!
//! A choice whose condition is known when it is read is its branch: the branch's nodes join the graph around it. `Scan` is a
//! loop that takes the parts of its operands by number. A loop's body may be read more than once, until it is known which
//! dimensions its turns change.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::bodies::{Body, nodes_of};
use super::{Reader, tensor_type};
use crate::error::{Error, Result};
use crate::node::Node;
use crate::proto::{GraphProto, ValueInfoProto};
use lacuna_ir::op::{Axes, IfAttr, LoopAttr};
use lacuna_ir::params::Params;
use lacuna_ir::{Attr, DType, Dim, Element, Graph, OpKind, Tensor, ValueId};
use std::collections::HashSet;
use std::sync::Arc;

// ---- choices ---------------------------------------------------------------------------------------

pub fn read_if<'m>(r: &mut Reader<'m>, node: &Node<'m>) -> Result<Vec<ValueId>> {
    let condition = r.required(node, 0)?;
    let [yes, no] = [node.graph("then_branch")?, node.graph("else_branch")?];
    if let Some(holds) = r.known_flag(condition) {
        return r.inline(node, if holds { yes } else { no });
    }
    let (mut yes, mut no) = both(r.branch(node, yes), r.branch(node, no))?;
    even_out(&mut yes.graph, &mut no.graph)?;
    let [a, b] = [&yes, &no].map(|body| types(&body.graph));
    if a.len() != b.len() || a.iter().zip(&b).any(|(a, b)| a.0 != b.0) {
        return Err(
            node.arity(format!("its branches make {a:?} and {b:?}: they must agree in number and types"))
        );
    }
    // A value has one number of dimensions: where branches differ in that, as those of a squeeze of a dimension that
    // may be 1 do, the file is read as if the condition held.
    let guess = a != b;
    let mut bodies = if guess { vec![yes] } else { vec![yes, no] };
    let captures = r.agree(&mut bodies);
    let mut ids = bodies.into_iter().map(|body| r.graph.bodies.push(Arc::new(body.graph)));
    let Some(then_body) = ids.next() else { return Ok(Vec::new()) };
    let attr = Attr::If(IfAttr { then_body, else_body: ids.next() });
    let inputs: Vec<ValueId> = std::iter::once(condition).chain(captures).collect();
    r.some_results(node, OpKind::If, attr, &inputs, a.len())
}

/// Where one branch makes a scalar and the other a list of one, both make the list.
#[allow(clippy::indexing_slicing)] // The graphs' own outputs.
fn even_out(yes: &mut Graph, no: &mut Graph) -> Result<()> {
    let is_one = |g: &Graph, v: ValueId| g.shape(v).iter().all(|d| *d == Dim::Fixed(1));
    for i in 0..yes.outputs.len().min(no.outputs.len()) {
        let [a, b] = [yes.outputs[i], no.outputs[i]];
        if !is_one(yes, a) || !is_one(no, b) {
            continue;
        }
        let rank = yes.shape(a).len().max(no.shape(b).len());
        for (g, v) in [(&mut *yes, a), (&mut *no, b)] {
            if g.shape(v).len() < rank {
                let mut name = format!("{}.list", g.value_name[v]);
                while g.outputs.iter().any(|&o| g.value_name[o] == name) {
                    name.push('_');
                }
                let dims = g.add_tensor(&format!("{name}.dims"), &Tensor::from_i64(&[rank], vec![1; rank]));
                let made = g.add_op(OpKind::Reshape, Attr::None, &name, &[v, dims], &[&name])?;
                g.outputs[i] = made[0];
            }
        }
    }
    Ok(())
}

/// Types and ranks of what a body makes.
#[allow(clippy::indexing_slicing)] // The graph's own outputs.
fn types(g: &Graph) -> Vec<(DType, usize)> {
    g.outputs.iter().map(|&v| (g.value_dtype[v], g.shape(v).len())).collect()
}

/// Both, or what both lack.
fn both(a: Result<Body>, b: Result<Body>) -> Result<(Body, Body)> {
    let lacks = |e: Error| match e {
        Error::UnsupportedNodes { nodes } => Ok(nodes),
        e @ (Error::Unsupported { .. } | Error::UnsupportedDType { .. }) => Ok(vec![e]),
        e => Err(e),
    };
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(e), Ok(_)) | (Ok(_), Err(e)) => Err(e),
        (Err(a), Err(b)) => {
            let nodes = lacks(a)?.into_iter().chain(lacks(b)?).collect();
            Err(Error::UnsupportedNodes { nodes })
        }
    }
}

// ---- loops -----------------------------------------------------------------------------------------

pub fn read_loop<'m>(r: &mut Reader<'m>, node: &Node<'m>) -> Result<Vec<ValueId>> {
    let proto = node.graph("body")?;
    let operands = node.proto.input.len().max(2);
    let states = (2..operands).map(|i| r.required(node, i)).collect::<Result<Vec<ValueId>>>()?;
    let ends = [r.input(node, 0)?.unwrap_or(ValueId::NONE), r.input(node, 1)?.unwrap_or(ValueId::NONE)];
    let takes = states.len().saturating_add(2);
    if proto.input.len() != takes || proto.output.len() <= states.len() {
        return Err(node.arity(format!(
            "its body takes {} values and makes {}: with {} states it must take {takes} and make at least {}",
            proto.input.len(),
            proto.output.len(),
            states.len(),
            states.len().saturating_add(1)
        )));
    }
    let one = [dims_of(proto.input.first(), DType::I64), dims_of(proto.input.get(1), DType::Bool)];
    let turns = Turns { name: &proto.name, nodes: nodes_of(proto), one, ends, states: &states };
    r.repeat(node, &turns, &mut |r, own| {
        own.iter().zip(&proto.input).try_for_each(|(&v, formal)| r.declare_formal(node, formal, v))?;
        r.read_contents(node, proto)
    })
}

/// A loop that is to be made: see [`Reader::repeat`].
pub struct Turns<'a> {
    /// The body's name, and about how many nodes it has.
    pub name: &'a str,
    pub nodes: usize,
    /// How the number of the turn and the condition are shaped: one element each.
    pub one: [Vec<Dim>; 2],
    /// The number of turns and the condition of the first, which may be absent.
    pub ends: [ValueId; 2],
    pub states: &'a [ValueId],
}

impl<'a> Turns<'a> {
    /// So many turns, whatever is computed.
    pub fn of(name: &'a str, nodes: usize, count: ValueId, states: &'a [ValueId]) -> Turns<'a> {
        Turns { name, nodes, one: [vec![], vec![]], ends: [count, ValueId::NONE], states }
    }
}

/// Makes a body: of the number of the turn, the condition and the states the condition of the next turn, the states, and
/// parts.
type Make<'f, 'm> = dyn FnMut(&mut Reader<'m>, &[ValueId]) -> Result<Vec<ValueId>> + 'f;

/// What a scan takes one by one, and what it makes so.
#[derive(Clone, Copy)]
struct Way {
    axis: i64,
    backwards: bool,
}

fn ways(node: &Node<'_>, kind: &str, count: usize) -> Result<Vec<Way>> {
    let [axes, directions] = [format!("scan_{kind}_axes"), format!("scan_{kind}_directions")];
    let list = |name: &str| match node.ints(name)? {
        Some(given) if given.len() != count => {
            Err(node.attribute(name, format!("has {} numbers, it must have {count}", given.len())))
        }
        given => Ok(given.map_or(vec![0; count], <[i64]>::to_vec)),
    };
    let directions = list(&directions)?.into_iter().map(|d| d != 0);
    let ways = list(&axes)?.into_iter().zip(directions);
    Ok(ways.map(|(axis, backwards)| Way { axis, backwards }).collect())
}

/// Before operator set 9 a scan runs over each sample of a batch, which is the first dimension of all it takes and makes.
pub fn read_scan<'m>(r: &mut Reader<'m>, node: &Node<'m>) -> Result<Vec<ValueId>> {
    let proto = node.graph("body")?;
    let samples = node.opset < 9;
    if samples && r.input(node, 0)?.is_some() {
        return Err(node.unsupported(" with lengths for each sample; export it for operator set 9 or later"));
    }
    let own = usize::from(samples)..node.proto.input.len().max(1);
    let operands = own.map(|i| r.required(node, i)).collect::<Result<Vec<ValueId>>>()?;
    let takes = node.int("num_scan_inputs")?.and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    let first = takes.and_then(|n| operands.len().checked_sub(n));
    let Some(first) = first.filter(|_| proto.input.len() == operands.len()) else {
        let why = format!("takes {} values, its body {}", operands.len(), proto.input.len());
        return Err(node.attribute("num_scan_inputs", why));
    };
    let (states, parts) = operands.split_at(first);
    let Some(made) = proto.output.len().checked_sub(states.len()) else {
        return Err(node.arity(format!("its body makes {} of {first} states", proto.output.len())));
    };
    let mut into = ways(node, if samples { "none" } else { "input" }, parts.len())?;
    let out = ways(node, if samples { "none" } else { "output" }, made)?;
    if samples {
        let directions = node.ints("directions")?.unwrap_or_default();
        into.iter_mut().zip(directions).for_each(|(way, &d)| way.backwards = d != 0);
        let one_by_one = |r: &mut Reader<'m>, own: &[ValueId]| {
            let [sample, condition, ..] = *own else { return Ok(Vec::new()) };
            let around = r.outer.len().saturating_sub(1);
            let mut own = Vec::with_capacity(operands.len());
            for &v in &operands {
                let all = r.captured(around, v)?;
                own.push(r.op(node, OpKind::Gather, Attr::Axis(0), &[all, sample])?);
            }
            let (states, parts) = own.split_at(first);
            let made = r.scan(node, proto, states, parts, &into, &out)?;
            Ok(std::iter::once(condition).chain(made).collect())
        };
        let of = operands.first().copied().unwrap_or(ValueId::NONE);
        let count = r.size_of(node, of, 0)?;
        let turns = Turns::of("samples", nodes_of(proto), count, &[]);
        return r.repeat(node, &turns, &mut { one_by_one });
    }
    r.scan(node, proto, states, parts, &into, &out)
}

impl<'m> Reader<'m> {
    fn scan(
        &mut self,
        node: &Node<'m>,
        proto: &'m GraphProto,
        states: &[ValueId],
        parts: &[ValueId],
        into: &[Way],
        out: &[Way],
    ) -> Result<Vec<ValueId>> {
        let (Some(&x), Some(way)) = (parts.first(), into.first()) else { return Ok(Vec::new()) };
        let turns = self.size_of(node, x, way.axis)?;
        let one = self.list(node, "one", &[1])?;
        let last = self.op(node, OpKind::Sub, Attr::None, &[turns, one])?;
        let last = self.op(node, OpKind::Squeeze, Attr::Axes(no_axes()), &[last])?;
        let level = self.outer.len();
        let turns = Turns::of(&proto.name, nodes_of(proto), turns, states);
        let mut made = self.repeat(node, &turns, &mut |r, own| {
            let [turn, condition, own @ ..] = own else { return Ok(Vec::new()) };
            let mut formals = proto.input.iter();
            for (&v, formal) in own.iter().zip(formals.by_ref()) {
                r.declare_formal(node, formal, v)?;
            }
            for ((&x, way), formal) in parts.iter().zip(into).zip(formals) {
                let x = r.captured(level, x)?;
                let mut at = *turn;
                if way.backwards {
                    let last = r.captured(level, last)?;
                    at = r.op(node, OpKind::Sub, Attr::None, &[last, at])?;
                }
                let axis = i32::try_from(way.axis).unwrap_or(i32::MAX);
                let part = r.op(node, OpKind::Gather, Attr::Axis(axis), &[x, at])?;
                r.declare_formal(node, formal, part)?;
            }
            let made = r.read_contents(node, proto)?;
            Ok(std::iter::once(*condition).chain(made).collect())
        })?;
        for (v, way) in made.iter_mut().skip(states.len()).zip(out) {
            *v = self.laid_out(node, *v, way.axis, way.backwards)?;
        }
        Ok(made)
    }

    /// Parts that lie along the first dimension, along another one or from the end.
    pub fn laid_out(
        &mut self,
        node: &Node<'_>,
        mut v: ValueId,
        axis: i64,
        backwards: bool,
    ) -> Result<ValueId> {
        if backwards {
            let lists = [[-1], [i64::MIN], [0], [-1]];
            let mut operands = vec![v];
            for (list, name) in lists.iter().zip(["starts", "ends", "axes", "steps"]) {
                operands.push(self.list(node, name, list)?);
            }
            v = self.op(node, OpKind::Slice, Attr::None, &operands)?;
        }
        let rank = i64::try_from(self.graph.shape(v).len()).unwrap_or(0);
        let at = axis;
        let axis = if axis < 0 { axis.saturating_add(rank) } else { axis };
        if !(0..rank).contains(&axis) {
            return Err(node.attribute("scan_output_axes", format!("holds {at}")));
        }
        if axis == 0 {
            return Ok(v);
        }
        // Dimension 0 moves to the axis.
        let order = (1..=axis).chain(std::iter::once(0)).chain(axis.saturating_add(1)..rank);
        let perm = Axes::new(&order.collect::<Vec<i64>>())
            .ok_or_else(|| node.arity("has too many dimensions".to_string()))?;
        self.op(node, OpKind::Transpose, Attr::Perm(perm), &[v])
    }

    /// The size of `x` along an axis, as a list of one.
    pub fn size_of(&mut self, node: &Node<'_>, x: ValueId, axis: i64) -> Result<ValueId> {
        let rank = i64::try_from(self.graph.shape(x).len()).unwrap_or(0);
        let at = if axis < 0 { axis.saturating_add(rank) } else { axis };
        let Some(at) = i32::try_from(at).ok().filter(|&at| at >= 0 && i64::from(at) < rank) else {
            return Err(node.arity(format!("takes parts along axis {axis} of a value of {rank} dimensions")));
        };
        let part = Params::usual(OpKind::Shape).with(OpKind::Shape, "start", at).with(
            OpKind::Shape,
            "end",
            at.saturating_add(1),
        );
        self.op(node, OpKind::Shape, Attr::Params(part), &[x])
    }

    /// A loop whose body is what `make` makes. It is made again, until no turn changes a dimension that is taken to stay.
    pub fn repeat(
        &mut self,
        node: &Node<'m>,
        turns: &Turns<'_>,
        make: &mut Make<'_, 'm>,
    ) -> Result<Vec<ValueId>> {
        let Turns { one, ends, states, .. } = turns;
        // The dims of each state that turns change.
        let mut changes: Vec<HashSet<usize>> = vec![HashSet::new(); states.len()];
        let body = loop {
            let made = self.body(node, turns.name, turns.nodes, |r| {
                let mut own = vec![
                    r.own_input("turn", DType::I64, &one[0]),
                    r.own_input("goes_on", DType::Bool, &one[1]),
                ];
                let around = r.outer.len().saturating_sub(1);
                for ((&v, changes), k) in states.iter().zip(&changes).zip(0..) {
                    let (dtype, mut dims) = r.type_at(around, v);
                    for (axis, dim) in dims.iter_mut().enumerate().filter(|(axis, _)| changes.contains(axis))
                    {
                        let name = r.unused_symbol(&format!("state{k}.{axis}"));
                        *dim = Dim::Symbol(r.graph.symbol(&name));
                    }
                    own.push(r.own_input(&format!("state{k}"), dtype, &dims));
                }
                make(r, &own)
            })?;
            let mut again = false;
            for ((own, end), (changes, k)) in (made.graph.inputs.iter().skip(2))
                .zip(made.graph.outputs.iter().skip(1))
                .zip(changes.iter_mut().zip(0..))
            {
                let [from, to] = [made.graph.shape(*own), made.graph.shape(*end)];
                if from.len() != to.len() {
                    let why = format!(
                        "a turn makes {} dimensions of the {} of state {k}: it must keep their number",
                        to.len(),
                        from.len()
                    );
                    return Err(node.arity(why));
                }
                let differ = from.iter().zip(to).enumerate().filter(|(_, (a, b))| a != b);
                differ.for_each(|(axis, _)| again |= changes.insert(axis));
            }
            if !again {
                break made;
            }
        };
        let mut bodies = vec![body];
        let captures = self.agree(&mut bodies);
        let Some(Body { graph, .. }) = bodies.pop() else { return Ok(Vec::new()) };
        let results = graph.outputs.len().saturating_sub(1);
        let count = u32::try_from(states.len()).unwrap_or(u32::MAX);
        let attr = Attr::Loop(LoopAttr { body: self.graph.bodies.push(Arc::new(graph)), states: count });
        let inputs: Vec<ValueId> = ends.iter().chain(*states).copied().chain(captures).collect();
        self.some_results(node, OpKind::Loop, attr, &inputs, results)
    }

    /// Whether a condition holds, where constants and shapes say it.
    fn known_flag(&self, v: ValueId) -> Option<bool> {
        if let Some(elements) = self.graph.value_elements.get(&v) {
            return match elements.as_slice() {
                [Element::Number(n)] => Some(*n != 0),
                _ => None,
            };
        }
        let t = self.graph.const_bytes(v).filter(|b| b.len() == 1).and(self.graph.const_tensor(v))?;
        t.as_bool()?.first().map(|&c| c != 0)
    }
}

/// The number of a turn and the condition are scalars, or lists of one if the file says so.
fn dims_of(formal: Option<&ValueInfoProto>, dtype: DType) -> Vec<Dim> {
    match formal.map(tensor_type) {
        Some(Ok((declared, Some(shape)))) if declared == dtype && shape.dim.len() == 1 => vec![Dim::Fixed(1)],
        _ => Vec::new(),
    }
}

/// Squeeze: all dimensions of 1.
fn no_axes() -> Axes {
    Axes { len: 0, axes: [0; 8] }
}
