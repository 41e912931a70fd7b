//! Recorded ops become rows of the op table.
//!
//! What depends on parameters alone is evaluated on the way with the table's reference functions, so that a weight
//! that was scaled, masked or quantised is a constant when its layer is reached.

use super::CaptureError;
use super::name::root_const;
use super::record::{Extent, InputSpec, Trace, op_name};
use crate::mark::{ABOVE, FAKE_QUANT, FAKE_QUANT_CHANNELS};
use crate::ops::Grid;
use burn_capture::TensorId;
use burn_ir::*;
use lacuna_ir::op::{Axes, ClipAttr, ConvAttr, GemmAttr, NormAttr, PoolAttr, ReduceAttr, ResizeAttr, Window};
use lacuna_ir::params::Params;
use lacuna_ir::{Attr, DType, Dim, Graph, OpKind, Tensor, ValueId};
use std::collections::{HashMap, HashSet};

/// The graph of a trace. Constants that descend from a parameter carry its path; ops and other values have no
/// names yet.
pub fn lower(trace: &Trace, specs: &[InputSpec<'_>], name: &str) -> Result<Graph, CaptureError> {
    let mut l = Lower {
        trace,
        g: Graph::new(name),
        value: HashMap::new(),
        reads: HashMap::new(),
        parameters: HashSet::new(),
        transposed: HashMap::new(),
        reshaped: HashMap::new(),
        expanded: HashMap::new(),
        matrices: HashMap::new(),
        counted: None,
    };
    let live = live_ops(trace);
    for t in live.iter().flat_map(|op| op.inputs()) {
        *l.reads.entry(t.id).or_insert(0) += 1;
    }
    for id in &trace.outputs {
        *l.reads.entry(*id).or_insert(0) += 1;
    }
    for (&id, spec) in trace.inputs.iter().zip(specs) {
        let dims = l.dims_of(&spec.dims);
        let x = l.g.add_input("", if spec.integers { DType::I64 } else { DType::F32 }, &dims);
        l.value.insert(id, x);
    }
    for op in live {
        let done = match op {
            OperationIr::Init(_) => Ok(()),
            op => l.op(op),
        };
        done.map_err(|why| CaptureError::Op { op: op_name(op), near: trace.near(op), why })?;
    }
    for (index, &id) in trace.outputs.iter().enumerate() {
        let v = l.output(id).map_err(|why| CaptureError::Output { index, why })?;
        l.g.outputs.push(v);
    }
    Ok(l.g)
}

/// The ops that an output depends on, in the order in which they were recorded.
fn live_ops(trace: &Trace) -> Vec<&OperationIr> {
    let mut needed: HashSet<TensorId> = trace.outputs.iter().copied().collect();
    let mut live = Vec::new();
    for op in trace.ops.iter().rev() {
        if op.outputs().any(|t| needed.contains(&t.id)) {
            needed.extend(op.inputs().map(|t| t.id));
            live.push(op);
        }
    }
    live.reverse();
    live
}

/// What is built, and what is known about recorded tensors and about values.
struct Lower<'a> {
    trace: &'a Trace,
    g: Graph,
    value: HashMap<TensorId, ValueId>,
    /// How often live ops and outputs read each recorded tensor.
    reads: HashMap<TensorId, usize>,
    /// Constants that are parameters as they are.
    parameters: HashSet<ValueId>,
    /// Transposed matrices and reshaped vectors made from parameters, and what they were made from.
    transposed: HashMap<ValueId, ValueId>,
    reshaped: HashMap<ValueId, ValueId>,
    /// Parameters with dimensions of one before them, and the matrices that they are.
    matrices: HashMap<ValueId, ValueId>,
    /// Values with a dimension of one put in, and what they were without it.
    expanded: HashMap<ValueId, ValueId>,
    /// 0, 1, ... up to the length of sequences.
    counted: Option<ValueId>,
}

type Step<T> = Result<T, String>;

fn unsupported<T>() -> Step<T> {
    Err("the graph has no such op: leave it out, or write it with supported ones".to_string())
}

/// The limits of a bias.
const ACCUMULATOR: &[i32] = &crate::quant::ACCUMULATOR;

impl Lower<'_> {
    fn op(&mut self, op: &OperationIr) -> Step<()> {
        match op {
            OperationIr::BaseFloat(op) => self.base(op),
            OperationIr::Int(IntOperationIr::IntoFloat(op)) => {
                self.unary(OpKind::Cast, Attr::Cast(DType::F32), &op.input, &op.out)
            }
            OperationIr::NumericFloat(_, op) => self.numeric(op),
            OperationIr::Float(_, op) => self.float(op),
            OperationIr::Activation(op) => self.activation(op),
            OperationIr::Module(op) => self.module(op),
            OperationIr::Custom(op) => self.custom(op),
            _ => unsupported(),
        }
    }

    // ---- values --------------------------------------------------------------------------------

    fn dims(&mut self, id: TensorId) -> Option<Vec<Dim>> {
        let extents = self.trace.extents.get(&id)?;
        Some(self.dims_of(extents))
    }

    fn dims_of(&mut self, extents: &[Extent]) -> Vec<Dim> {
        let dim = |e: &Extent| match *e {
            Extent::Fixed(n) => Dim::Fixed(n as u64),
            Extent::Batch => Dim::Symbol(self.g.symbol("batch")),
            Extent::Length => Dim::Symbol(self.g.symbol("tokens")),
        };
        extents.iter().map(dim).collect()
    }

    /// The extents of a recorded tensor, if one is not a number.
    fn is_open(&self, id: TensorId) -> bool {
        self.trace.extents.get(&id).is_some_and(|e| e.iter().any(|e| !matches!(e, Extent::Fixed(_))))
    }

    /// The value of a recorded tensor; its constant, when it is read for the first time.
    fn read(&mut self, t: &TensorIr) -> Step<ValueId> {
        self.read_id(t.id)
    }

    fn read_id(&mut self, id: TensorId) -> Step<ValueId> {
        if let Some(&v) = self.value.get(&id) {
            return Ok(v);
        }
        let data = self.trace.values.get(&id).ok_or("it reads a tensor that no recorded op makes")?;
        if self.is_open(id) {
            return Err("it reads a constant as large as the batch: let it broadcast instead".to_string());
        }
        let elements: Vec<f32> = data
            .as_slice()
            .map(<[f32]>::to_vec)
            .map_err(|_| format!("it reads a constant of {:?}, only F32 is supported", data.dtype()))?;
        let path = self.trace.paths.get(&id);
        let v = self.constant(path.map_or("", String::as_str), &data.shape().to_vec(), elements);
        if path.is_some() {
            self.parameters.insert(v);
        }
        self.value.insert(id, v);
        Ok(v)
    }

    fn constant(&mut self, name: &str, dims: &[usize], elements: Vec<f32>) -> ValueId {
        self.g.add_tensor(name, &Tensor::from_f32(dims, elements))
    }

    fn scalar(&mut self, x: f32) -> ValueId {
        self.constant("", &[], vec![x])
    }

    /// Binds a recorded result. Both shape rules, burn's and the graph's, must agree.
    fn bind(&mut self, out: &TensorIr, v: ValueId) -> Step<()> {
        let want = self.dims(out.id).ok_or("its result has no shape")?;
        if self.g.shape(v) != want {
            return Err(format!("its result is {want:?}, the graph's op gives {:?}", self.g.shape(v)));
        }
        self.value.insert(out.id, v);
        Ok(())
    }

    /// Adds an op, or evaluates it if it reads constants only. DequantizeLinear stays: the integers are what matters.
    fn emit(&mut self, kind: OpKind, attr: Attr, inputs: &[ValueId]) -> Step<ValueId> {
        let constant = |&v: &ValueId| v.is_none() || self.g.const_bytes(v).is_some();
        if kind != OpKind::DequantizeLinear && inputs.iter().all(constant) {
            return self.evaluate(kind, attr, inputs);
        }
        let made = self.g.add_op(kind, attr, "", inputs, &[""]).map_err(|e| match e {
            lacuna_ir::Error::Op { kind, why, .. } => format!("{kind} {why}"),
            e => e.to_string(),
        })?;
        Ok(made[0])
    }

    /// The result carries the path of the largest operand that has one.
    fn evaluate(&mut self, kind: OpKind, attr: Attr, inputs: &[ValueId]) -> Step<ValueId> {
        let tensors: Vec<Option<Tensor>> = inputs.iter().map(|&v| self.g.const_tensor(v)).collect();
        let seen: Vec<Option<&Tensor>> = tensors.iter().map(Option::as_ref).collect();
        let result = (kind.row().eval)(&attr, &seen)?.swap_remove(0);
        let mut path = (String::new(), 0);
        for (&v, t) in inputs.iter().zip(&seen) {
            let len = t.map_or(0, Tensor::len);
            if len > path.1 && !self.g.value_name[v].is_empty() {
                path = (self.g.value_name[v].clone(), len);
            }
        }
        Ok(self.g.add_tensor(&path.0, &result))
    }

    fn unary(&mut self, kind: OpKind, attr: Attr, input: &TensorIr, out: &TensorIr) -> Step<()> {
        let x = self.read(input)?;
        let y = self.emit(kind, attr, &[x])?;
        self.bind(out, y)
    }

    fn binary(&mut self, kind: OpKind, op: &BinaryOpIr) -> Step<()> {
        let (a, b) = (self.read(&op.lhs)?, self.read(&op.rhs)?);
        let y = self.emit(kind, Attr::None, &[a, b])?;
        self.bind(&op.out, y)
    }

    fn with_scalar(&mut self, kind: OpKind, op: &ScalarOpIr) -> Step<()> {
        let a = self.read(&op.lhs)?;
        let b = self.scalar(op.rhs.elem());
        let y = self.emit(kind, Attr::None, &[a, b])?;
        self.bind(&op.out, y)
    }

    /// Every graph output is a value of its own, made by an op.
    fn output(&mut self, id: TensorId) -> Step<ValueId> {
        let v = self.read_id(id)?;
        if self.g.producer(v).is_some() && !self.g.outputs.contains(&v) {
            return Ok(v);
        }
        let made = self.g.add_op(OpKind::Identity, Attr::None, "", &[v], &[""]).map_err(|e| e.to_string())?;
        Ok(made[0])
    }

    // ---- arithmetic ----------------------------------------------------------------------------

    fn numeric(&mut self, op: &NumericOperationIr) -> Step<()> {
        use NumericOperationIr as N;
        match op {
            N::Add(op) => self.add(op),
            N::Sub(op) => self.binary(OpKind::Sub, op),
            N::Mul(op) => self.binary(OpKind::Mul, op),
            N::Div(op) => self.binary(OpKind::Div, op),
            N::AddScalar(op) => self.with_scalar(OpKind::Add, op),
            N::SubScalar(op) => self.with_scalar(OpKind::Sub, op),
            N::MulScalar(op) => self.with_scalar(OpKind::Mul, op),
            N::DivScalar(op) => self.with_scalar(OpKind::Div, op),
            N::Neg(op) => {
                let (x, minus) = (self.read(&op.input)?, self.scalar(-1.0));
                let y = self.emit(OpKind::Mul, Attr::None, &[x, minus])?;
                self.bind(&op.out, y)
            }
            N::MeanDim(op) => self.reduce(OpKind::ReduceMean, op),
            N::SumDim(op) => self.reduce(OpKind::ReduceSum, op),
            N::Clamp(op) => self.clip(&op.tensor, op.min.elem(), op.max.elem(), &op.out),
            N::ClampMin(op) => self.clip(&op.lhs, op.rhs.elem(), f32::INFINITY, &op.out),
            N::ClampMax(op) => self.clip(&op.lhs, f32::NEG_INFINITY, op.rhs.elem(), &op.out),
            N::Full(op) => self.fill(&op.out, op.value.elem()),
            _ => unsupported(),
        }
    }

    fn reduce(&mut self, kind: OpKind, op: &ReduceDimOpIr) -> Step<()> {
        let axes = Axes::new(&[op.axis as i64]).ok_or("its axis is too large")?;
        self.unary(kind, Attr::Reduce(ReduceAttr { axes, keep_dims: true }), &op.input, &op.out)
    }

    fn float(&mut self, op: &FloatOperationIr) -> Step<()> {
        use FloatOperationIr as F;
        match op {
            F::Tanh(op) => self.unary(OpKind::Tanh, Attr::None, &op.input, &op.out),
            F::Sqrt(op) => self.unary(OpKind::Sqrt, Attr::None, &op.input, &op.out),
            F::Recip(op) => {
                let (one, x) = (self.scalar(1.0), self.read(&op.input)?);
                let y = self.emit(OpKind::Div, Attr::None, &[one, x])?;
                self.bind(&op.out, y)
            }
            F::Matmul(op) => {
                let (a, b) = (self.read(&op.lhs)?, self.read(&op.rhs)?);
                let y = self.matmul(a, b)?;
                self.bind(&op.out, y)
            }
            _ => unsupported(),
        }
    }

    fn activation(&mut self, op: &ActivationOperationIr) -> Step<()> {
        use ActivationOperationIr as A;
        match op {
            A::Relu(op) => self.unary(OpKind::Relu, Attr::None, &op.input, &op.out),
            A::LeakyRelu(op) => {
                let kind = OpKind::LeakyRelu;
                let alpha = op.rhs.elem::<f32>().to_bits() as i32;
                let attr = Attr::Params(Params::usual(kind).with(kind, "alpha", alpha));
                self.unary(kind, attr, &op.lhs, &op.out)
            }
            A::Sigmoid(op) => self.unary(OpKind::Sigmoid, Attr::None, &op.input, &op.out),
            A::HardSigmoid(op) => self.hard_sigmoid(op),
            A::Gelu(op) => self.gelu(op),
            A::Softmax(op) => self.unary(OpKind::Softmax, Attr::Axis(op.axis as i32), &op.input, &op.out),
            _ => unsupported(),
        }
    }

    /// clamp(alpha x + beta, 0, 1)
    fn hard_sigmoid(&mut self, op: &HardSigmoidOpIr) -> Step<()> {
        let x = self.read(&op.tensor)?;
        let (alpha, beta) = (self.scalar(op.alpha.elem()), self.scalar(op.beta.elem()));
        let y = self.emit(OpKind::Mul, Attr::None, &[x, alpha])?;
        let y = self.emit(OpKind::Add, Attr::None, &[y, beta])?;
        let y = self.emit(OpKind::Clip, Attr::Clip(ClipAttr { min: 0.0, max: 1.0 }), &[y])?;
        self.bind(&op.out, y)
    }

    /// x (1 + erf(x / sqrt(2))) / 2 written out: an op of its own is younger than most readers.
    fn gelu(&mut self, op: &UnaryOpIr) -> Step<()> {
        let x = self.read(&op.input)?;
        let [root, one, half] = [std::f32::consts::SQRT_2, 1.0, 0.5].map(|c| self.scalar(c));
        let e = self.emit(OpKind::Div, Attr::None, &[x, root])?;
        let e = self.emit(OpKind::Erf, Attr::None, &[e])?;
        let e = self.emit(OpKind::Add, Attr::None, &[e, one])?;
        let y = self.emit(OpKind::Mul, Attr::None, &[x, e])?;
        let y = self.emit(OpKind::Mul, Attr::None, &[y, half])?;
        self.bind(&op.out, y)
    }

    fn clip(&mut self, x: &TensorIr, min: f32, max: f32, out: &TensorIr) -> Step<()> {
        self.unary(OpKind::Clip, Attr::Clip(ClipAttr { min, max }), x, out)
    }

    fn fill(&mut self, out: &TensorIr, x: f32) -> Step<()> {
        let dims = out.shape.to_vec();
        if self.is_open(out.id) {
            return Err("it makes a constant as large as the batch: let it broadcast instead".to_string());
        }
        let v = self.constant("", &dims, vec![x; dims.iter().product()]);
        self.bind(out, v)
    }

    // ---- shapes --------------------------------------------------------------------------------

    fn base(&mut self, op: &BaseOperationIr) -> Step<()> {
        use BaseOperationIr as B;
        match op {
            B::Reshape(op) => self.reshape(&op.input, &op.out),
            B::SwapDims(op) => {
                let mut axes: Vec<usize> = (0..op.input.shape.num_dims()).collect();
                axes.swap(op.dim1, op.dim2);
                self.transpose(&op.input, &axes, &op.out)
            }
            B::Permute(op) => self.transpose(&op.input, &op.axes, &op.out),
            B::Slice(op) => self.slice(op),
            B::Cat(op) => {
                let parts: Vec<ValueId> = op.tensors.iter().map(|t| self.read(t)).collect::<Step<_>>()?;
                let y = self.emit(OpKind::Concat, Attr::Axis(op.dim as i32), &parts)?;
                self.bind(&op.out, y)
            }
            B::Zeros(op) => self.fill(&op.out, 0.0),
            B::Ones(op) => self.fill(&op.out, 1.0),
            // These change nothing where shapes and types are equal, and are refused where not.
            B::Expand(op) => self.same(&op.input, &op.out),
            B::Cast(op) => self.same(&op.input, &op.out),
            _ => unsupported(),
        }
    }

    fn same(&mut self, input: &TensorIr, out: &TensorIr) -> Step<()> {
        if input.dtype != out.dtype || self.trace.extents.get(&input.id) != self.trace.extents.get(&out.id) {
            return unsupported();
        }
        let x = self.read(input)?;
        self.bind(out, x)
    }

    fn reshape(&mut self, input: &TensorIr, out: &TensorIr) -> Step<()> {
        let x = self.read(input)?;
        let target = self.dims(out.id).ok_or("its result has no shape")?;
        if self.g.shape(x) == target {
            return self.bind(out, x);
        }
        if let Some(&inner) = self.expanded.get(&x).filter(|&&inner| self.g.shape(inner) == target) {
            return self.bind(out, inner);
        }
        // A symbol is copied from its place (0) or is what is left (-1).
        let from = self.g.shape(x);
        let place = |(i, d): (usize, &Dim)| match d {
            Dim::Fixed(n) => *n as i64,
            Dim::Symbol(_) if from.get(i) == Some(d) => 0,
            Dim::Symbol(_) | Dim::Unknown => -1,
        };
        let shape: Vec<i64> = target.iter().enumerate().map(place).collect();
        let shape = self.g.add_tensor("", &Tensor::from_i64(&[shape.len()], shape));
        let y = self.emit(OpKind::Reshape, Attr::None, &[x, shape])?;
        let ones =
            target.len().checked_sub(2).is_some_and(|n| target[..n].iter().all(|&d| d == Dim::Fixed(1)));
        if ones && root_const(&self.g, x).is_some() && target[target.len() - 2..] == *self.g.shape(x) {
            self.matrices.insert(y, x);
        }
        if self.g.shape(x).len() == 1 && root_const(&self.g, x).is_some() {
            self.reshaped.insert(y, x);
        }
        self.bind(out, y)
    }

    /// Parts of dimensions that are numbers, one place of others, and of parameters as many rows as there are tokens.
    fn slice(&mut self, op: &SliceOpIr) -> Step<()> {
        let (from, to) = (self.trace.extents.get(&op.tensor.id), self.trace.extents.get(&op.out.id));
        let (Some(from), Some(to)) = (from, to) else { return unsupported() };
        let mut x = self.read(&op.tensor)?;
        for (axis, range) in op.ranges.iter().enumerate() {
            let (start, step) = (range.start as i64, range.step as i64);
            x = match (from[axis], to[axis]) {
                (a, b) if a == b && start == 0 && step == 1 => x,
                (Extent::Fixed(_), Extent::Fixed(n)) => {
                    self.part(x, axis, start, start + step * n as i64, step)?
                }
                (Extent::Batch | Extent::Length, Extent::Fixed(1)) => self.place(x, axis, start)?,
                (Extent::Fixed(_), Extent::Length) if root_const(&self.g, x).is_some() && step == 1 => {
                    let rest = if start == 0 { x } else { self.part(x, axis, start, i64::MAX, 1)? };
                    let rows = self.counted()?;
                    self.emit(OpKind::Gather, Attr::Axis(axis as i32), &[rest, rows])?
                }
                _ => return Err("it takes a part of a dimension that a run decides".to_string()),
            };
        }
        self.bind(&op.out, x)
    }

    fn part(&mut self, x: ValueId, axis: usize, start: i64, end: i64, step: i64) -> Step<ValueId> {
        let list = |n: i64| Tensor::from_i64(&[1], vec![n]);
        let operands = [start, end, axis as i64, step].map(|n| self.g.add_tensor("", &list(n)));
        let inputs: Vec<ValueId> = [x].into_iter().chain(operands).collect();
        self.emit(OpKind::Slice, Attr::None, &inputs)
    }

    /// What stands at one place of an axis, which stays as a dimension of one.
    fn place(&mut self, x: ValueId, axis: usize, at: i64) -> Step<ValueId> {
        let at = self.g.add_tensor("", &Tensor::from_i64(&[], vec![at]));
        let one = self.emit(OpKind::Gather, Attr::Axis(axis as i32), &[x, at])?;
        let axes = Axes::new(&[axis as i64]).ok_or("its axis is too large")?;
        let y = self.emit(OpKind::Unsqueeze, Attr::Axes(axes), &[one])?;
        self.expanded.insert(y, one);
        Ok(y)
    }

    /// 0, 1, ... up to the length of the sequences that are given.
    fn counted(&mut self) -> Step<ValueId> {
        if let Some(v) = self.counted {
            return Ok(v);
        }
        let tokens = Dim::Symbol(self.g.symbol("tokens"));
        let long = |&x: &ValueId| Some((x, self.g.shape(x).iter().position(|&d| d == tokens)?));
        let (x, axis) = self.g.inputs.iter().find_map(long).ok_or("no input is as long as sequences are")?;
        let numbers = [axis as i64, 0, 1];
        let [axis, zero, one] = numbers.map(|n| self.g.add_tensor("", &Tensor::from_i64(&[], vec![n])));
        let shape = self.emit(OpKind::Shape, Attr::Params(Params::usual(OpKind::Shape)), &[x])?;
        let length = self.emit(OpKind::Gather, Attr::Axis(0), &[shape, axis])?;
        let counted = self.emit(OpKind::Range, Attr::None, &[zero, length, one])?;
        self.counted = Some(counted);
        Ok(counted)
    }

    fn transpose(&mut self, input: &TensorIr, axes: &[usize], out: &TensorIr) -> Step<()> {
        let x = self.read(input)?;
        let perm: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
        let perm = Attr::Perm(Axes::new(&perm).ok_or("it has too many dimensions")?);
        let y = match self.dequantised_rows(x).filter(|_| axes == [1, 0]) {
            // The integers are turned, so that who looks for a weight finds what it was dequantised from.
            Some([q, scale, zero]) => {
                let q = self.emit(OpKind::Transpose, perm, &[q])?;
                self.emit(OpKind::DequantizeLinear, Attr::Axis(1), &[q, scale, zero])?
            }
            None => self.emit(OpKind::Transpose, perm, &[x])?,
        };
        if axes == [1, 0] && root_const(&self.g, x).is_some() {
            self.transposed.insert(y, x);
        }
        self.bind(out, y)
    }

    /// The operands of the dequantisation that made `v` of a constant, row by row.
    fn dequantised_rows(&self, v: ValueId) -> Option<[ValueId; 3]> {
        let op = self.g.producer(v).filter(|_| root_const(&self.g, v).is_some())?;
        let by_row = self.g.op_attr[op] == Attr::Axis(0);
        self.g.inputs_of(op).try_into().ok().filter(|_| by_row)
    }

    // ---- layers --------------------------------------------------------------------------------

    /// A product with a parameter is a Gemm; one with a transposed parameter reads the parameter itself.
    fn matmul(&mut self, a: ValueId, b: ValueId) -> Step<ValueId> {
        let b = self.matrices.get(&b).copied().unwrap_or(b);
        let (w, trans_b) = match self.transposed.get(&b) {
            Some(&w) => (w, true),
            None => (b, false),
        };
        let matrices = self.g.shape(a).len() == 2 && self.g.shape(w).len() == 2;
        if matrices && root_const(&self.g, w).is_some() {
            let attr = GemmAttr { alpha: 1.0, beta: 1.0, trans_a: false, trans_b };
            return self.emit(OpKind::Gemm, Attr::Gemm(attr), &[a, w]);
        }
        self.emit(OpKind::MatMul, Attr::None, &[a, b])
    }

    /// The sum of a Gemm that nobody else reads and a parameter per column becomes the Gemm's own third operand.
    fn add(&mut self, op: &BinaryOpIr) -> Step<()> {
        for (product, bias) in [(&op.lhs, &op.rhs), (&op.rhs, &op.lhs)] {
            let (y, b) = (self.read(product)?, self.read(bias)?);
            let b = self.reshaped.get(&b).copied().unwrap_or(b);
            let Some(gemm) = self.g.producer(y).filter(|&op| self.g.op_kind[op] == OpKind::Gemm) else {
                if let Some(weight) = self.weight_of_rows(y, b) {
                    self.adopt(b, weight);
                    let y = self.emit(OpKind::Add, Attr::None, &[y, b])?;
                    return self.bind(&op.out, y);
                }
                continue;
            };
            let columns = self.g.shape(y)[1];
            let per_column = self.g.shape(b) == [columns] || self.g.shape(b) == [Dim::Fixed(1), columns];
            let free = self.g.inputs_of(gemm).len() == 2 && self.reads.get(&product.id) == Some(&1);
            if free && per_column && root_const(&self.g, b).is_some() {
                let (x, w) = (self.g.inputs_of(gemm)[0], self.g.inputs_of(gemm)[1]);
                self.adopt(b, w);
                let y = self.emit(OpKind::Gemm, self.g.op_attr[gemm], &[x, w, b])?;
                return self.bind(&op.out, y);
            }
        }
        self.binary(OpKind::Add, op)
    }

    /// The weight of the product `y` of rows, if `b` is a parameter for each of its columns.
    fn weight_of_rows(&self, y: ValueId, b: ValueId) -> Option<ValueId> {
        let product = self.g.producer(y).filter(|&op| self.g.op_kind[op] == OpKind::MatMul)?;
        let weight = self.g.input_of(product, 1).filter(|&w| root_const(&self.g, w).is_some())?;
        let per_column = self.g.shape(b).len() == 1 && self.g.shape(b).last() == self.g.shape(y).last();
        (per_column && root_const(&self.g, b).is_some()).then_some(weight)
    }

    /// A bias that was computed takes the name that its layer would give it: `conv1.bias` beside `conv1.weight`.
    fn adopt(&mut self, bias: ValueId, weight: ValueId) {
        let (Some(b), Some(w)) = (root_const(&self.g, bias), root_const(&self.g, weight)) else { return };
        if let Some(module) = self.g.value_name[w].strip_suffix(".weight")
            && !self.parameters.contains(&b)
        {
            self.g.value_name[b] = format!("{module}.bias");
        }
    }

    fn module(&mut self, op: &ModuleOperationIr) -> Step<()> {
        use ModuleOperationIr as M;
        match op {
            M::Conv2d(op) => self.conv2d(op),
            M::Linear(op) => self.linear(op),
            M::BatchNorm(op) => {
                let mut inputs = Vec::with_capacity(5);
                for t in [&op.x, &op.gamma, &op.beta, &op.mean, &op.variance] {
                    inputs.push(self.read(t)?);
                }
                let y = self.emit(OpKind::BatchNormalization, Attr::Epsilon(op.epsilon.elem()), &inputs)?;
                self.bind(&op.out, y)
            }
            M::MaxPool2d(op) => {
                let [ph, pw] = op.padding;
                let attr = PoolAttr {
                    window: window(op.kernel_size, op.stride, op.dilation, [ph, pw, ph, pw])?,
                    ceil_mode: op.ceil_mode,
                    count_include_pad: false,
                };
                self.unary(OpKind::MaxPool, Attr::Pool(attr), &op.x, &op.out)
            }
            M::AvgPool2d(op) => {
                let [ph, pw] = op.padding;
                let attr = PoolAttr {
                    window: window(op.kernel_size, op.stride, [1, 1], [ph, pw, ph, pw])?,
                    ceil_mode: op.ceil_mode,
                    count_include_pad: op.count_include_pad,
                };
                self.unary(OpKind::AveragePool, Attr::Pool(attr), &op.x, &op.out)
            }
            M::AdaptiveAvgPool2d(op) => self.adaptive_average_pool(op),
            M::Interpolate(op) => self.interpolate(op),
            M::Embedding(op) => {
                let (table, ids) = (self.read(&op.weights)?, self.read(&op.indices)?);
                let y = self.emit(OpKind::Gather, Attr::Axis(0), &[table, ids])?;
                self.bind(&op.out, y)
            }
            M::LayerNorm(op) => {
                let mut inputs = vec![self.read(&op.input)?, self.read(&op.gamma)?];
                inputs.extend(op.beta.as_ref().map(|beta| self.read(beta)).transpose()?);
                let attr = NormAttr { axis: -1, epsilon: op.epsilon.elem() };
                let y = self.emit(OpKind::LayerNormalization, Attr::Norm(attr), &inputs)?;
                self.bind(&op.out, y)
            }
            _ => unsupported(),
        }
    }

    fn conv2d(&mut self, op: &Conv2dOpIr) -> Step<()> {
        let mut inputs = vec![self.read(&op.x)?, self.read(&op.weight)?];
        if let Some(bias) = &op.bias {
            inputs.push(self.read(bias)?);
            self.adopt(inputs[2], inputs[1]);
        }
        let [_, _, kh, kw] = op.weight.shape.dims();
        let [(top, bottom), (left, right)] = op.options.padding;
        let attr = ConvAttr {
            window: window([kh, kw], op.options.stride, op.options.dilation, [top, left, bottom, right])?,
            group: small(op.options.groups)?,
        };
        let y = self.emit(OpKind::Conv, Attr::Conv(attr), &inputs)?;
        self.bind(&op.out, y)
    }

    /// burn's own linear layer: weight [in, out].
    fn linear(&mut self, op: &LinearOpIr) -> Step<()> {
        let (x, w) = (self.read(&op.x)?, self.read(&op.weight)?);
        let bias = op.bias.as_ref().map(|b| self.read(b)).transpose()?;
        if let Some(b) = bias {
            self.adopt(b, w);
        }
        if self.g.shape(x).len() == 2 {
            let attr = GemmAttr { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false };
            let inputs: Vec<ValueId> = [x, w].into_iter().chain(bias).collect();
            let y = self.emit(OpKind::Gemm, Attr::Gemm(attr), &inputs)?;
            return self.bind(&op.out, y);
        }
        let mut y = self.emit(OpKind::MatMul, Attr::None, &[x, w])?;
        if let Some(b) = bias {
            y = self.emit(OpKind::Add, Attr::None, &[y, b])?;
        }
        self.bind(&op.out, y)
    }

    fn adaptive_average_pool(&mut self, op: &AdaptiveAvgPool2dOpIr) -> Step<()> {
        if op.output_size == [1, 1] {
            return self.unary(OpKind::GlobalAveragePool, Attr::None, &op.x, &op.out);
        }
        let [_, _, h, w] = op.x.shape.dims();
        let [oh, ow] = op.output_size;
        if oh == 0 || ow == 0 || h % oh != 0 || w % ow != 0 {
            return Err(format!(
                "windows of {h}x{w} into {oh}x{ow} are not of one size: use sizes that divide"
            ));
        }
        let kernel = [h / oh, w / ow];
        let window = window(kernel, kernel, [1, 1], [0; 4])?;
        let attr = PoolAttr { window, ceil_mode: false, count_include_pad: false };
        self.unary(OpKind::AveragePool, Attr::Pool(attr), &op.x, &op.out)
    }

    /// Nearest pixels, a whole number of times larger; or pixels between, of any size.
    fn interpolate(&mut self, op: &InterpolateOpIr) -> Step<()> {
        let [_, _, h, w] = op.x.shape.dims();
        let [oh, ow] = op.output_size;
        if matches!(op.options.mode, InterpolateModeIr::Bilinear) && !op.options.align_corners && h * w > 0 {
            return self.interpolate_between(op, [[h, oh], [w, ow]]);
        }
        let whole = h > 0 && w > 0 && oh.is_multiple_of(h) && ow.is_multiple_of(w);
        if !matches!(op.options.mode, InterpolateModeIr::Nearest) || !whole {
            let what = format!("{:?} of {h}x{w} to {oh}x{ow}", op.options.mode);
            return Err(format!(
                "{what}: only nearest pixels, a whole number of times larger, and bilinear without aligned corners are supported"
            ));
        }
        let scale = [small(oh / h)?, small(ow / w)?];
        self.unary(OpKind::Resize, Attr::Resize(ResizeAttr { scale }), &op.x, &op.out)
    }

    /// `sizes`: before and after, of rows and of columns. The batch has no number, so that factors say them.
    fn interpolate_between(&mut self, op: &InterpolateOpIr, sizes: [[usize; 2]; 2]) -> Step<()> {
        let kind = OpKind::Interpolate;
        let [rows, columns] = sizes.map(|[from, to]| factor(from, to));
        let x = self.read(&op.x)?;
        let scales = self.constant("", &[4], vec![1.0, 1.0, rows, columns]);
        let linear = Attr::Params(Params::usual(kind).with(kind, "mode", 1));
        let y = self.emit(kind, linear, &[x, ValueId::NONE, scales])?;
        self.bind(&op.out, y)
    }

    // ---- quantisation --------------------------------------------------------------------------

    fn custom(&mut self, op: &CustomOpIr) -> Step<()> {
        let int = |i: usize| op.scalars.get(i).map(|s| s.elem::<i32>()).ok_or("it lacks a scalar");
        match (op.id.as_str(), op.inputs.as_slice(), op.outputs.as_slice()) {
            (FAKE_QUANT, [x], [out]) => {
                let scale = op.scalars.first().ok_or("it lacks its scale")?.elem::<f32>();
                let grid = Grid { scale, zero: int(1)?, lo: int(2)?, hi: int(3)? };
                let y = self.activation_grid(x, grid)?;
                self.bind(out, y)
            }
            (ABOVE, [x], [out]) => {
                let threshold = op.scalars.first().ok_or("it lacks its threshold")?.elem::<f32>();
                let kind = OpKind::ThresholdedRelu;
                let alpha = Params::usual(kind).with(kind, "alpha", threshold.to_bits() as i32);
                self.unary(kind, Attr::Params(alpha), x, out)
            }
            (FAKE_QUANT_CHANNELS, [x, scales], [out]) => {
                let (x, scales) = (self.read(x)?, self.read(scales)?);
                let limits: Vec<i32> = op.scalars.iter().map(|s| s.elem::<i32>()).collect();
                let y = match limits.as_slice() {
                    ACCUMULATOR => self.accumulator_grid(x, scales)?,
                    limits => self.weight_grid(x, scales, limits)?,
                };
                self.bind(out, y)
            }
            _ => unsupported(),
        }
    }

    /// Quantised and back. A grid of fewer than eight bits is part of one of eight: values beyond it are clipped to its ends.
    fn activation_grid(&mut self, x: &TensorIr, grid: Grid) -> Step<ValueId> {
        let mut x = self.read(x)?;
        let zero = match grid.lo {
            0 => {
                Tensor::from_u8(&[], vec![u8::try_from(grid.zero).map_err(|_| "its zero point is no byte")?])
            }
            _ => {
                Tensor::from_i8(&[], vec![i8::try_from(grid.zero).map_err(|_| "its zero point is no byte")?])
            }
        };
        if grid.hi - grid.lo != 255 {
            let end = |q: i32| (q - grid.zero) as f32 * grid.scale;
            let clip = Attr::Clip(ClipAttr { min: end(grid.lo), max: end(grid.hi) });
            x = self.emit(OpKind::Clip, clip, &[x])?;
        }
        let (scale, zero) = (self.scalar(grid.scale), self.g.add_tensor("", &zero));
        let q = self.emit(OpKind::QuantizeLinear, Attr::Axis(1), &[x, scale, zero])?;
        self.emit(OpKind::DequantizeLinear, Attr::Axis(1), &[q, scale, zero])
    }

    /// A weight on the grids of its rows: i8 around zero, or u8 with a zero point for each row where one reaches farther.
    /// `limits` are [lo, hi] of all rows or of one after the other.
    fn weight_grid(&mut self, w: ValueId, scales: ValueId, limits: &[i32]) -> Step<ValueId> {
        let dims = self.g.fixed_shape(w).ok_or("its weight is not constant")?;
        let (Some(values), Some(s)) = (self.g.const_f32(w), self.g.const_f32(scales)) else {
            return Err("a quantised weight must depend on parameters alone".to_string());
        };
        let (rows, name) = (s.len(), self.g.value_name[w].clone());
        let limits: Vec<[i32; 2]> = limits.chunks_exact(2).map(|l| [l[0], l[1]]).collect();
        if rows == 0 || dims.first() != Some(&rows) || !(limits.len() == 1 || limits.len() == rows) {
            return Err(format!("{rows} scales and {} limits for a weight {dims:?}", limits.len()));
        }
        let of = |row: usize| limits[if limits.len() == 1 { 0 } else { row }];
        let per = values.len() / rows;
        let whole = |(i, &w): (usize, &f32)| {
            let [lo, hi] = of(i / per);
            (w / s[i / per]).round_ties_even().max(lo as f32).min(hi as f32) as i32
        };
        let steps: Vec<i32> = values.iter().enumerate().map(whole).collect();
        let signed = limits.iter().all(|&[lo, hi]| lo >= -128 && hi <= 127);
        let (q, zero) = if signed {
            let q = steps.iter().map(|&q| q as i8).collect();
            (Tensor::from_i8(&dims, q), Tensor::from_i8(&[rows], vec![0; rows]))
        } else {
            // The smallest step is 0, so zero is as far from it as the limits say.
            let zeros: Option<Vec<u8>> = (0..rows).map(|row| u8::try_from(-of(row)[0]).ok()).collect();
            let zeros = zeros.ok_or("its limits are wider than a byte")?;
            let byte = |(i, &q): (usize, &i32)| u8::try_from(q + i32::from(zeros[i / per])).ok();
            let q: Option<Vec<u8>> = steps.iter().enumerate().map(byte).collect();
            (
                Tensor::from_u8(&dims, q.ok_or("its limits are wider than a byte")?),
                Tensor::from_u8(&[rows], zeros),
            )
        };
        let (q, zero) = (self.g.add_tensor(&name, &q), self.g.add_tensor("", &zero));
        self.emit(OpKind::DequantizeLinear, Attr::Axis(0), &[q, scales, zero])
    }

    /// A bias as i32 in multiples of its scales. QuantizeLinear has no i32 form, so the integers are computed here,
    /// as [`crate::ops::fake_quant`] rounds and clamps.
    fn accumulator_grid(&mut self, bias: ValueId, scales: ValueId) -> Step<ValueId> {
        let (Some(b), Some(s)) = (self.g.const_f32(bias), self.g.const_f32(scales)) else {
            return Err("a bias on an i32 grid must depend on parameters alone".to_string());
        };
        if b.len() != s.len() {
            return Err(format!("{} biases have {} scales", b.len(), s.len()));
        }
        let (lo, hi) = (i32::MIN as f32, i32::MAX as f32);
        let whole = |(b, s): (&f32, &f32)| (b / s).round_ties_even().max(lo).min(hi) as i32;
        let q: Vec<i32> = b.iter().zip(&*s).map(whole).collect();
        let n = q.len();
        let name = self.g.value_name[bias].clone();
        let q = self.g.add_tensor(&name, &Tensor::from_i32(&[n], q));
        let zero = self.g.add_tensor("", &Tensor::zeros(DType::I32, &[n]));
        self.emit(OpKind::DequantizeLinear, Attr::Axis(0), &[q, scales, zero])
    }
}

/// The least number that is not below `to / from` and of which `from` times is not below `to`, so that the whole part of
/// that is `to`.
fn factor(from: usize, to: usize) -> f32 {
    let factor = to as f32 / from as f32;
    let reaches = |f: f32| (from as f32 * f).floor() >= to as f32 && from as f64 * f64::from(f) >= to as f64;
    if reaches(factor) { factor } else { factor.next_up() }
}

fn small(n: usize) -> Step<u32> {
    u32::try_from(n).map_err(|_| format!("{n} is too large"))
}

/// `pads`: top, left, bottom, right.
fn window(kernel: [usize; 2], stride: [usize; 2], dilation: [usize; 2], pads: [usize; 4]) -> Step<Window> {
    let pair = |a: [usize; 2]| -> Step<[u32; 2]> { Ok([small(a[0])?, small(a[1])?]) };
    let ([top, left], [bottom, right]) = (pair([pads[0], pads[1]])?, pair([pads[2], pads[3]])?);
    Ok(Window {
        kernel: pair(kernel)?,
        stride: pair(stride)?,
        dilation: pair(dilation)?,
        pads: [top, left, bottom, right],
    })
}
