//! The graph: columns and pools, not a tree of boxes.
//!
//! Row `i` of every `op_*` column describes op `i`; row `v` of every `value_*` column describes value `v`.
//! Operand lists and dimensions live back to back in pools; constants are ranges of shared bytes, which may be
//! a mapped file. Execution order is a column of its own: an op that is not in `order` does not exist any more
//! (`passes::drop_dead` and [`Graph::compact`] clear the tables).

use crate::error::{Error, Result};
use crate::ids::{BodyId, ConstId, Id, IdVec, OpId, Range32, SymbolId, ValueId};
use crate::op::{Attr, OpKind};
use crate::symbols::{Element, SYMBOLS_MAX, Scope, Symbols};
use crate::tensor::{DType, Dim, Tensor, element_count};
use bytes::Bytes;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Def {
    /// Given by the caller at every run.
    Input,
    /// Bytes of the graph.
    Const(ConstId),
    /// Output number `1` of op `0`.
    Op(OpId, u32),
}

#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub name: String,

    pub op_kind: IdVec<OpId, OpKind>,
    pub op_attr: IdVec<OpId, Attr>,
    pub op_name: IdVec<OpId, String>,
    pub op_inputs: IdVec<OpId, Range32>,
    pub op_outputs: IdVec<OpId, Range32>,
    /// Execution order: each op after the ops it reads.
    pub order: Vec<OpId>,
    /// All input and output lists of ops, back to back.
    pub operands: Vec<ValueId>,

    pub value_name: IdVec<ValueId, String>,
    pub value_dtype: IdVec<ValueId, DType>,
    pub value_shape: IdVec<ValueId, Range32>,
    pub value_def: IdVec<ValueId, Def>,
    /// All shapes, back to back.
    pub dims: Vec<Dim>,
    /// Symbolic dimensions: names and definitions.
    pub symbols: Symbols,
    /// Elements of small integer results, as far as shapes and constants say what they are ([`crate::elements`]).
    pub value_elements: HashMap<ValueId, Vec<Element>>,

    /// Bytes of constants: little-endian, row-major, exactly as long as dtype and shape ask for.
    pub consts: IdVec<ConstId, Bytes>,

    /// Graphs that ops of this one run ([`crate::flow`]). What a body reads of this graph is an input of it.
    pub bodies: IdVec<BodyId, Arc<Graph>>,

    pub inputs: Vec<ValueId>,
    pub outputs: Vec<ValueId>,

    /// Free text that travels with the model (how it was made, labels, ...): key, value.
    pub metadata: Vec<(String, String)>,
}

impl Graph {
    pub fn new(name: &str) -> Graph {
        Graph { name: name.to_string(), ..Graph::default() }
    }

    // ---- reading -------------------------------------------------------------------------------

    pub fn inputs_of(&self, op: OpId) -> &[ValueId] {
        self.op_inputs[op].of(&self.operands)
    }

    pub fn outputs_of(&self, op: OpId) -> &[ValueId] {
        self.op_outputs[op].of(&self.operands)
    }

    /// Input `i` of `op`, if it is there.
    pub fn input_of(&self, op: OpId, i: usize) -> Option<ValueId> {
        self.inputs_of(op).get(i).copied().filter(|v| !v.is_none())
    }

    pub fn shape(&self, value: ValueId) -> &[Dim] {
        self.value_shape[value].of(&self.dims)
    }

    /// The shape as numbers, if no dimension is symbolic.
    pub fn fixed_shape(&self, value: ValueId) -> Option<Vec<usize>> {
        self.shape(value).iter().map(|d| d.fixed().and_then(|n| usize::try_from(n).ok())).collect()
    }

    pub fn const_bytes(&self, value: ValueId) -> Option<&Bytes> {
        match *self.value_def.get(value)? {
            Def::Const(c) => Some(&self.consts[c]),
            _ => None,
        }
    }

    /// A constant's elements without copying where its bytes happen to be aligned.
    pub fn const_elements<T: bytemuck::Pod>(&self, value: ValueId, dtype: DType) -> Option<Cow<'_, [T]>> {
        let bytes = self.const_bytes(value)?;
        if self.value_dtype[value] != dtype || dtype.size() != size_of::<T>() {
            return None;
        }
        Some(match bytemuck::try_cast_slice(bytes) {
            Ok(elements) => Cow::Borrowed(elements),
            Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(bytes)),
        })
    }

    pub fn const_f32(&self, value: ValueId) -> Option<Cow<'_, [f32]>> {
        self.const_elements(value, DType::F32)
    }

    pub fn const_i64(&self, value: ValueId) -> Option<Cow<'_, [i64]>> {
        self.const_elements(value, DType::I64)
    }

    /// A constant as an owned tensor.
    pub fn const_tensor(&self, value: ValueId) -> Option<Tensor> {
        Tensor::from_bytes(self.value_dtype[value], &self.fixed_shape(value)?, self.const_bytes(value)?)
    }

    /// The op that makes `value`.
    pub fn producer(&self, value: ValueId) -> Option<OpId> {
        match *self.value_def.get(value)? {
            Def::Op(op, _) => Some(op),
            _ => None,
        }
    }

    /// For every value, the live ops that read it, in execution order (twice if an op reads it twice).
    /// A side table: build it, use it, drop it.
    pub fn uses(&self) -> Uses {
        let mut count = vec![0u32; self.value_name.len() + 1];
        for &op in &self.order {
            for v in self.inputs_of(op).iter().filter(|v| !v.is_none()) {
                count[v.index() + 1] += 1;
            }
        }
        for i in 1..count.len() {
            count[i] += count[i - 1];
        }
        let mut ops = vec![OpId(0); *count.last().unwrap() as usize];
        let mut next = count.clone();
        for &op in &self.order {
            for v in self.inputs_of(op).iter().filter(|v| !v.is_none()) {
                ops[next[v.index()] as usize] = op;
                next[v.index()] += 1;
            }
        }
        Uses { start: count, ops }
    }

    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    // ---- building ------------------------------------------------------------------------------

    /// The symbol of that name, made if it is new: free, for the shapes of inputs.
    pub fn symbol(&mut self, name: &str) -> SymbolId {
        self.symbols.free(name)
    }

    fn add_value(&mut self, name: &str, dtype: DType, dims: &[Dim], def: Def) -> ValueId {
        let shape = Range32::append(&mut self.dims, dims);
        self.value_name.push(name.to_string());
        self.value_dtype.push(dtype);
        self.value_shape.push(shape);
        self.value_def.push(def)
    }

    pub fn add_input(&mut self, name: &str, dtype: DType, dims: &[Dim]) -> ValueId {
        let v = self.add_value(name, dtype, dims, Def::Input);
        self.inputs.push(v);
        v
    }

    /// Adds a constant. Its bytes must be as long as dtype and dims ask for.
    pub fn add_const(&mut self, name: &str, dtype: DType, dims: &[usize], bytes: Bytes) -> Result<ValueId> {
        let want = element_count(dims).and_then(|n| n.checked_mul(dtype.size()));
        if want != Some(bytes.len()) {
            return Err(Error::ConstLength {
                name: name.to_string(),
                dtype,
                dims: dims.to_vec(),
                bytes: bytes.len(),
            });
        }
        let c = self.consts.push(bytes);
        let dims: Vec<Dim> = dims.iter().map(|&d| Dim::Fixed(d as u64)).collect();
        Ok(self.add_value(name, dtype, &dims, Def::Const(c)))
    }

    pub fn add_tensor(&mut self, name: &str, tensor: &Tensor) -> ValueId {
        self.add_const(name, tensor.dtype(), &tensor.dims, tensor.to_shared_bytes())
            .expect("a tensor's bytes fit its dims")
    }

    /// Appends an op at the end of the order; dtype and shape of its outputs are inferred.
    /// `outputs` names the outputs (as many as the op kind has).
    pub fn add_op(
        &mut self,
        kind: OpKind,
        attr: Attr,
        name: &str,
        inputs: &[ValueId],
        outputs: &[&str],
    ) -> Result<Vec<ValueId>> {
        let op = self.insert_op(kind, attr, name, inputs, outputs)?;
        self.order.push(op);
        Ok(self.outputs_of(op).to_vec())
    }

    /// As [`Graph::add_op`], but the caller places the op in `order`.
    pub fn insert_op(
        &mut self,
        kind: OpKind,
        attr: Attr,
        name: &str,
        inputs: &[ValueId],
        outputs: &[&str],
    ) -> Result<OpId> {
        self.insert_op_with(kind, attr, name, inputs, outputs, &[])
    }

    /// As [`Graph::insert_op`]. Where the shape rule says [`Dim::Unknown`], output `i` has the dimension that
    /// `known[i]` has in that place, if there is such a list of that length, or else a new symbol named after it.
    pub fn insert_op_with(
        &mut self,
        kind: OpKind,
        attr: Attr,
        name: &str,
        inputs: &[ValueId],
        outputs: &[&str],
        known: &[&[Dim]],
    ) -> Result<OpId> {
        let fail = |why: String| Error::Op { op: name.to_string(), kind: kind.name(), why };
        let inferred = crate::shape::infer_all(self, kind, &attr, inputs).map_err(fail)?;
        let mut facts = inferred.facts;
        if facts.len() < outputs.len() || outputs.is_empty() {
            return Err(fail(format!("has {} outputs, {} were named", facts.len(), outputs.len())));
        }
        self.symbols.adopt(inferred.symbols);
        for (i, fact) in facts.iter_mut().enumerate().take(outputs.len()) {
            for axis in 0..fact.dims.len() {
                if fact.dims[axis] != Dim::Unknown {
                    continue;
                }
                let known = known.get(i).filter(|k| k.len() == fact.dims.len()).map(|k| k[axis]);
                fact.dims[axis] = match known {
                    Some(dim) if dim != Dim::Unknown => dim,
                    _ if self.symbols.len() >= SYMBOLS_MAX => {
                        return Err(fail(format!("makes more than {SYMBOLS_MAX} symbolic dimensions")));
                    }
                    _ => {
                        let unused = self.symbols.unused(&format!("{}.{axis}", outputs[i]));
                        Dim::Symbol(self.symbols.unknown(&unused))
                    }
                };
            }
        }
        let elements = self.work_out(kind, &attr, inputs, &facts);
        let op = OpId::from_index(self.op_kind.len());
        let ins = Range32::append(&mut self.operands, inputs);
        let mut outs = Vec::with_capacity(outputs.len());
        for (i, (out, fact)) in outputs.iter().zip(&facts).enumerate() {
            outs.push(self.add_value(out, fact.dtype, &fact.dims, Def::Op(op, i as u32)));
        }
        if let Some(elements) = elements {
            self.value_elements.insert(outs[0], elements);
        }
        let outs = Range32::append(&mut self.operands, &outs);
        self.op_kind.push(kind);
        self.op_attr.push(attr);
        self.op_name.push(name.to_string());
        self.op_inputs.push(ins);
        self.op_outputs.push(outs);
        Ok(op)
    }

    /// The elements of the first output of an op that is about to be added.
    fn work_out(
        &mut self,
        kind: OpKind,
        attr: &Attr,
        inputs: &[ValueId],
        facts: &[crate::shape::Fact],
    ) -> Option<Vec<Element>> {
        let scope = Scope::new(&self.symbols);
        let elements = crate::elements::evaluate(self, &scope, kind, attr, inputs, facts.first()?);
        let new = scope.into_new();
        // Without elements nothing refers to them.
        if elements.is_some() {
            self.symbols.adopt(new);
        }
        elements
    }

    // ---- changing ------------------------------------------------------------------------------

    pub fn rename(&mut self, value: ValueId, name: &str) {
        self.value_name[value] = name.to_string();
    }

    /// Every live op and every graph output that reads `from` reads `to` instead.
    pub fn replace_uses(&mut self, from: ValueId, to: ValueId) {
        for i in 0..self.order.len() {
            let inputs = self.op_inputs[self.order[i]];
            for v in inputs.of_mut(&mut self.operands) {
                if *v == from {
                    *v = to;
                }
            }
        }
        for v in &mut self.outputs {
            if *v == from {
                *v = to;
            }
        }
    }

    /// A copy without rows that nothing reaches from the outputs; inputs stay, order is kept.
    /// Ids change: side tables of the old graph are void.
    pub fn compact(&self) -> Graph {
        let mut live = vec![false; self.op_kind.len()];
        let mut stack: Vec<ValueId> = self.outputs.clone();
        while let Some(v) = stack.pop() {
            if let Some(op) = self.producer(v)
                && !std::mem::replace(&mut live[op.index()], true)
            {
                stack.extend(self.inputs_of(op).iter().copied().filter(|v| !v.is_none()));
            }
        }
        let mut g = Graph::new(&self.name);
        g.metadata = self.metadata.clone();
        g.symbols = self.symbols.clone();
        g.bodies = self.bodies.clone();
        let mut map: IdVec<ValueId, Option<ValueId>> = IdVec::filled(None, self.value_name.len());
        for &v in &self.inputs {
            map[v] = Some(g.add_input(&self.value_name[v], self.value_dtype[v], self.shape(v)));
        }
        for &op in self.order.iter().filter(|op| live[op.index()]) {
            let mut inputs = Vec::new();
            for &v in self.inputs_of(op) {
                inputs.push(if v.is_none() { v } else { self.copy_operand(v, &mut map, &mut g) });
            }
            let new = OpId::from_index(g.op_kind.len());
            let ins = Range32::append(&mut g.operands, &inputs);
            let mut outs = Vec::new();
            for (i, &v) in self.outputs_of(op).iter().enumerate() {
                let copy = g.add_value(
                    &self.value_name[v],
                    self.value_dtype[v],
                    self.shape(v),
                    Def::Op(new, i as u32),
                );
                map[v] = Some(copy);
                outs.push(copy);
            }
            let outs_copied = outs;
            let outs = Range32::append(&mut g.operands, &outs_copied);
            g.op_kind.push(self.op_kind[op]);
            g.op_attr.push(self.op_attr[op]);
            g.op_name.push(self.op_name[op].clone());
            g.op_inputs.push(ins);
            g.op_outputs.push(outs);
            g.order.push(new);
            for (&v, &copy) in self.outputs_of(op).iter().zip(&outs_copied) {
                if let Some(elements) = self.value_elements.get(&v) {
                    g.value_elements.insert(copy, elements.clone());
                }
            }
        }
        for &v in &self.outputs {
            let copy = self.copy_operand(v, &mut map, &mut g);
            g.outputs.push(copy);
        }
        g
    }

    fn copy_operand(&self, v: ValueId, map: &mut IdVec<ValueId, Option<ValueId>>, g: &mut Graph) -> ValueId {
        if let Some(copy) = map[v] {
            return copy;
        }
        let Def::Const(c) = self.value_def[v] else {
            panic!("value {:?} is read before it is made: verify the graph first", self.value_name[v]);
        };
        let c = g.consts.push(self.consts[c].clone());
        let copy = g.add_value(&self.value_name[v], self.value_dtype[v], self.shape(v), Def::Const(c));
        map[v] = Some(copy);
        copy
    }
}

/// Who reads each value; see [`Graph::uses`].
pub struct Uses {
    start: Vec<u32>,
    ops: Vec<OpId>,
}

impl Uses {
    pub fn of(&self, value: ValueId) -> &[OpId] {
        let i = value.index();
        &self.ops[self.start[i] as usize..self.start[i + 1] as usize]
    }
}
