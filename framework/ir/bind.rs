//! Binding: a graph of symbols becomes one of numbers.
//!
//! Given what the free symbols are, and the contents of those inputs that decide shapes ([`shape_inputs`]), one walk in
//! order infers every shape again and evaluates what rests on shapes and small constants alone. What is left either
//! has a fixed shape, or its size rests on data (NonZero of an activation): that, and what reads it, is the *tail*,
//! which only a run can size. Rows keep their ids.

use crate::error::{Error, Result};
use crate::graph::{Def, Graph};
use crate::ids::{Id, OpId, Range32, ValueId};
use crate::op::OpKind;
use crate::reference::fixed_dims;
use crate::shape::{infer_all, infer_tensors};
use crate::tensor::{Dim, Tensor, element_count};

/// What is evaluated while binding makes no more elements than this.
const EVALUATED_ELEMENTS_MAX: usize = 1 << 16;
/// Inputs with more elements are data, whatever reads them.
const SHAPE_INPUT_ELEMENTS_MAX: u64 = 256;

/// A graph after binding.
pub struct Bound {
    /// The graph with the ids it had: shapes are numbers, evaluated values are constants, `order` lists what is left
    /// to run before the tail. Shapes of the tail's results may have symbols.
    pub graph: Graph,
    /// What runs after that, in order, because data decide its sizes.
    pub tail: Vec<OpId>,
    /// Values that are constants of this binding only.
    pub computed: Vec<ValueId>,
}

impl Bound {
    /// The tail as a graph of its own with the same ids, and the values that it reads, which are its inputs. Its
    /// outputs are those of the graph that it makes.
    pub fn tail_graph(&self) -> (Graph, Vec<ValueId>) {
        let mut tail = self.graph.clone();
        tail.order.clone_from(&self.tail);
        tail.inputs.clear();
        let made = self.in_tail();
        tail.outputs.retain(|v| made[v.index()]);
        let reads = self.tail.iter().flat_map(|&op| self.graph.inputs_of(op).to_vec());
        let mut seen = vec![false; made.len()];
        for v in reads.filter(|v| !v.is_none()) {
            let constant = matches!(tail.value_def[v], Def::Const(_));
            if !made[v.index()] && !constant && !std::mem::replace(&mut seen[v.index()], true) {
                tail.value_def[v] = Def::Input;
                tail.inputs.push(v);
            }
        }
        let inputs = tail.inputs.clone();
        (tail, inputs)
    }

    /// Which values the tail makes.
    pub fn in_tail(&self) -> Vec<bool> {
        let mut made = vec![false; self.graph.value_name.len()];
        for &op in &self.tail {
            self.graph.outputs_of(op).iter().for_each(|v| made[v.index()] = true);
        }
        made
    }
}

/// Binds `g`: `symbols` says what the free symbols are, `contents` what these inputs (by number) hold.
///
/// # Errors
/// [`Error::Op`] for an op whose operands do not fit with these numbers, [`Error::Invalid`] for an input whose shape
/// is not given.
pub fn bind(g: &Graph, symbols: &[Option<u64>], contents: &[(usize, Tensor)]) -> Result<Bound> {
    let mut known = symbols.to_vec();
    known.resize(g.symbols.len(), None);
    for s in g.symbols.ids() {
        known[s.index()] = g.symbols.evaluate(s, &known);
    }
    let mut b = Bound { graph: g.clone(), tail: Vec::new(), computed: Vec::new() };
    for &v in &g.inputs {
        let fixed = |d: &Dim| match *d {
            Dim::Symbol(s) => known[s.index()].map(Dim::Fixed),
            d => Some(d),
        };
        let dims: Option<Vec<Dim>> = g.shape(v).iter().map(fixed).collect();
        let dims = dims.ok_or_else(|| {
            Error::Invalid(format!("input '{}' has a dimension that nothing says", g.value_name[v]))
        })?;
        set_shape(&mut b.graph, v, &dims);
    }
    for (input, tensor) in contents {
        let v = *g.inputs.get(*input).ok_or_else(|| Error::Invalid(format!("there is no input {input}")))?;
        b.compute(v, tensor);
    }
    let mut open = vec![false; g.value_name.len()];
    let mut left = Vec::with_capacity(g.order.len());
    for &op in &g.order {
        let read = g.inputs_of(op).iter().filter(|v| !v.is_none());
        if read.clone().any(|v| open[v.index()]) || !b.settle(g, op, &known)? {
            b.tail.push(op);
            g.outputs_of(op).iter().for_each(|v| open[v.index()] = true);
        } else if !b.evaluate(op) {
            left.push(op);
        }
    }
    b.graph.order = left;
    Ok(b)
}

fn set_shape(g: &mut Graph, v: ValueId, dims: &[Dim]) {
    if g.shape(v) != dims {
        g.value_shape[v] = Range32::append(&mut g.dims, dims);
    }
}

impl Bound {
    /// Gives the op's results their shapes. False: data decide them.
    fn settle(&mut self, g: &Graph, op: OpId, known: &[Option<u64>]) -> Result<bool> {
        let fail = |why: String| Error::Op { op: g.op_name[op].clone(), kind: g.op_kind[op].name(), why };
        let b = &mut self.graph;
        let inferred = infer_all(b, g.op_kind[op], &g.op_attr[op], g.inputs_of(op)).map_err(fail)?;
        let outputs = g.outputs_of(op);
        let mut shapes = Vec::with_capacity(outputs.len());
        for (&v, fact) in outputs.iter().zip(inferred.facts) {
            let mut dims = fact.dims;
            let stored = g.shape(v);
            let fits = |(&d, &s): (&Dim, &Dim)| d.fixed().is_none() || s.fixed().is_none() || d == s;
            if stored.len() != dims.len() || !dims.iter().zip(stored).all(fits) {
                let name = &g.value_name[v];
                return Err(fail(format!("'{name}' becomes {dims:?}, the graph says {stored:?}")));
            }
            for (d, &s) in dims.iter_mut().zip(stored) {
                for said in [*d, s] {
                    *d = match said {
                        _ if d.fixed().is_some() => *d,
                        Dim::Symbol(s) => known[s.index()].map_or(said, Dim::Fixed),
                        said => said,
                    };
                }
            }
            if dims.iter().any(|d| d.fixed().is_none()) {
                shapes.clear();
                break;
            }
            crate::shape::check_dims(&dims).map_err(fail)?;
            shapes.push(dims);
        }
        if shapes.len() == outputs.len() {
            for (&v, dims) in outputs.iter().zip(&shapes) {
                set_shape(b, v, dims);
            }
            return Ok(true);
        }
        // Of constants, sizes are known once they are evaluated.
        Ok(self.evaluate(op))
    }

    /// Makes constants of an op's results, where shapes and small constants say what they are.
    fn evaluate(&mut self, op: OpId) -> bool {
        let g = &self.graph;
        let outputs = g.outputs_of(op).to_vec();
        if outputs.iter().all(|&v| matches!(g.value_def[v], Def::Const(_))) {
            return true;
        }
        match self.results(op) {
            Some(tensors) if tensors.len() >= outputs.len() => {
                outputs.iter().zip(&tensors).for_each(|(&v, t)| self.compute(v, t));
                true
            }
            _ => false,
        }
    }

    fn results(&self, op: OpId) -> Option<Vec<Tensor>> {
        let g = &self.graph;
        let (row, attr) = (g.op_kind[op].row(), &g.op_attr[op]);
        if row.name == "Shape" || row.name == "Size" {
            return shape_result(g, op);
        }
        let tensor = |&v: &ValueId| match v.is_none() {
            true => Some(None),
            false if g.const_bytes(v)?.len() > 8 * EVALUATED_ELEMENTS_MAX => None,
            false => g.const_tensor(v).map(Some),
        };
        // Layers are never evaluated here, whatever they read: engines keep what these make in an order of their own.
        use OpKind::*;
        if matches!(row.kind, Conv | FusedConv | FusedConvTranspose | QConv | QGemm) {
            return None;
        }
        if g.inputs_of(op).iter().any(|&v| !v.is_none() && g.const_bytes(v).is_none()) {
            return None;
        }
        let tensors: Vec<Option<Tensor>> = g.inputs_of(op).iter().map(tensor).collect::<Option<_>>()?;
        let inputs: Vec<Option<&Tensor>> = tensors.iter().map(Option::as_ref).collect();
        for fact in infer_tensors(row.infer, attr, &inputs).ok()? {
            // What data decide is no larger than what is read.
            let Some(dims) = fixed_dims(&fact.dims).ok()? else { continue };
            element_count(&dims).filter(|&n| n <= EVALUATED_ELEMENTS_MAX)?;
        }
        (row.eval)(attr, &inputs).ok()
    }

    fn compute(&mut self, v: ValueId, t: &Tensor) {
        let dims: Vec<Dim> = t.dims.iter().map(|&d| Dim::Fixed(d as u64)).collect();
        set_shape(&mut self.graph, v, &dims);
        let c = self.graph.consts.push(t.to_shared_bytes());
        self.graph.value_def[v] = Def::Const(c);
        self.computed.push(v);
    }
}

/// What Shape and Size say, which read no data.
fn shape_result(g: &Graph, op: OpId) -> Option<Vec<Tensor>> {
    let out = *g.outputs_of(op).first()?;
    let fact = crate::shape::Fact { dtype: g.value_dtype[out], dims: g.shape(out).to_vec() };
    let scope = crate::symbols::Scope::new(&g.symbols);
    let elements =
        crate::elements::evaluate(g, &scope, g.op_kind[op], &g.op_attr[op], g.inputs_of(op), &fact)?;
    let numbers: Vec<i64> = elements.iter().map(|e| e.number()).collect::<Option<_>>()?;
    Some(vec![crate::elements::tensor_of(fact.dtype, &g.fixed_shape(out)?, &numbers)?])
}

/// The inputs (by number) whose contents decide shapes: a rule asked for what is made of them, and nothing but small
/// values lies between.
pub fn shape_inputs(g: &Graph) -> Vec<usize> {
    let mut found = vec![false; g.inputs.len()];
    for &op in &g.order {
        let inputs = g.inputs_of(op);
        let Ok(inferred) = infer_all(g, g.op_kind[op], &g.op_attr[op], inputs) else { continue };
        if !inferred.facts.iter().any(|f| f.dims.contains(&Dim::Unknown)) {
            continue;
        }
        let missed = (0..inputs.len()).filter(|i| inferred.missed >> i.min(&63) & 1 == 1);
        for i in missed {
            if let Some(sources) = sources_of(g, inputs[i]) {
                sources.into_iter().for_each(|i| found[i] = true);
            }
        }
    }
    (0..found.len()).filter(|&i| found[i]).collect()
}

/// The inputs that a small value is made of. `None`: data take part.
fn sources_of(g: &Graph, v: ValueId) -> Option<Vec<usize>> {
    let mut seen = vec![false; g.value_name.len()];
    let (mut stack, mut sources) = (vec![v], Vec::new());
    while let Some(v) = stack.pop() {
        if v.is_none() || std::mem::replace(&mut seen[v.index()], true) {
            continue;
        }
        match g.value_def[v] {
            Def::Const(_) => {}
            _ if !is_small(g, v) => return None,
            Def::Input => sources.push(g.inputs.iter().position(|&i| i == v)?),
            // Of these only the shape is read.
            Def::Op(op, _) if matches!(g.op_kind[op].name(), "Shape" | "Size") => {}
            Def::Op(op, _) => stack.extend(g.inputs_of(op)),
        }
    }
    Some(sources)
}

fn is_small(g: &Graph, v: ValueId) -> bool {
    let dims = g.shape(v);
    let fixed = dims.iter().filter_map(|d| d.fixed()).try_fold(1u64, |n, d| n.checked_mul(d));
    dims.len() <= 1
        || fixed.is_some_and(|n| n <= SHAPE_INPUT_ELEMENTS_MAX) && dims.iter().all(|d| d.fixed().is_some())
}
