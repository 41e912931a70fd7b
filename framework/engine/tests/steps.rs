//! Every op of the table that the engine runs by itself, in shapes that take each path, against the interpreter.

mod common;

use common::*;
use lacuna_engine::{Isa, Options, Session};
use lacuna_ir::op::*;
use lacuna_ir::params::Params;
use lacuna_ir::{Attr, DType, Dim, Elements, Graph, OpKind, Tensor, ValueId, interp};

struct Case {
    g: Graph,
    inputs: Vec<Tensor>,
    rng: Rng,
}

impl Case {
    fn new(name: &str) -> Case {
        Case { g: Graph::new(name), inputs: Vec::new(), rng: Rng(5) }
    }

    fn f32s(&mut self, dims: &[usize]) -> Tensor {
        let n = dims.iter().product();
        Tensor::from_f32(dims, (0..n).map(|_| self.rng.signed() * 3.0).collect())
    }

    fn input(&mut self, dims: &[usize]) -> ValueId {
        let t = self.f32s(dims);
        self.input_of(t)
    }

    /// An input; a first dimension of 3 is symbolic.
    fn input_of(&mut self, t: Tensor) -> ValueId {
        let symbolic = t.dims.first() == Some(&3);
        self.input_as(t, symbolic)
    }

    fn input_as(&mut self, t: Tensor, symbolic: bool) -> ValueId {
        let symbol = self.g.symbol("N");
        let mut dims: Vec<Dim> = t.dims.iter().map(|&d| Dim::Fixed(d as u64)).collect();
        if symbolic {
            dims[0] = Dim::Symbol(symbol);
        }
        let name = format!("x{}", self.inputs.len());
        let dtype = t.dtype();
        self.inputs.push(t);
        self.g.add_input(&name, dtype, &dims)
    }

    fn constant(&mut self, t: Tensor) -> ValueId {
        let name = format!("c{}", self.g.value_name.len());
        self.g.add_tensor(&name, &t)
    }

    fn op(&mut self, kind: OpKind, attr: Attr, inputs: &[ValueId]) -> ValueId {
        let name = format!("op{}", self.g.op_kind.len());
        self.g.add_op(kind, attr, &name, inputs, &[&format!("{name}_out")]).unwrap()[0]
    }

    fn g_with_outputs(&self, outputs: &[ValueId]) -> Graph {
        let mut g = self.g.clone();
        g.outputs = outputs.to_vec();
        g
    }

    /// Runs the graph on every row and both thread counts, and compares; ints and moved floats exactly.
    fn check(mut self, outputs: &[ValueId], tolerance: f32) {
        self.g.outputs = outputs.to_vec();
        let want = interp::run(&self.g, &self.inputs).unwrap();
        for isa in Isa::available() {
            for threads in [1, 2] {
                let options = Options { threads: Some(threads), isa: Some(isa), ..Options::default() };
                let mut session = Session::new(&self.g, &options).unwrap();
                let got = session.run(&self.inputs).unwrap();
                for (got, want) in got.iter().zip(&want) {
                    let what = format!("{} {isa} {threads} threads", self.g.name);
                    assert_eq!(got.dims, want.dims, "{what}");
                    match (got.as_f32(), want.as_f32()) {
                        (Some(a), Some(b)) => {
                            for (a, b) in a.iter().zip(b) {
                                let near = (a - b).abs() <= tolerance * b.abs().max(1.0);
                                assert!(near || (a.is_nan() && b.is_nan()), "{what}: {a}, not {b}");
                            }
                        }
                        _ => assert_eq!(got, want, "{what}"),
                    }
                }
            }
        }
    }
}

fn axes(a: &[i64]) -> Axes {
    Axes::new(a).unwrap()
}

const ODD_SHAPES: &[&[usize]] = &[&[3, 5, 7, 9], &[3, 1000], &[1], &[3, 1, 8192], &[2, 3, 2, 2, 5]];

#[test]
fn unary_ops() {
    for &dims in ODD_SHAPES {
        for (kind, attr) in [
            (OpKind::Relu, Attr::None),
            (OpKind::Sigmoid, Attr::None),
            (OpKind::Silu, Attr::None),
            (OpKind::Sqrt, Attr::None),
            (OpKind::Erf, Attr::None),
            (OpKind::HardSwish, Attr::None),
            (OpKind::HardSigmoid, Attr::Params(Params::usual(OpKind::HardSigmoid))),
            (OpKind::LeakyRelu, Attr::Params(Params::usual(OpKind::LeakyRelu))),
            (OpKind::Gelu, Attr::Params(Params::usual(OpKind::Gelu))),
            (OpKind::Tanh, Attr::None),
            (OpKind::Cast, Attr::Cast(DType::I64)),
            (OpKind::Cast, Attr::Cast(DType::I32)),
            (OpKind::Cast, Attr::Cast(DType::F32)),
            (OpKind::Unsqueeze, Attr::Axes(axes(&[0, -1]))),
            (OpKind::Clip, Attr::Clip(ClipAttr { min: -0.5, max: 1.0 })),
        ] {
            let mut c = Case::new(kind.name());
            let x = c.input(dims);
            let y = c.op(kind, attr, &[x]);
            // Exponentials of the engine's own, and a product for a quotient.
            let near = matches!(kind, OpKind::Sigmoid | OpKind::HardSwish);
            c.check(&[y], if near { 1e-6 } else { 0.0 });
        }
    }
}

#[test]
fn odd_floats_go_through_like_in_the_reference() {
    for (kind, attr) in
        [(OpKind::Relu, Attr::None), (OpKind::Clip, Attr::Clip(ClipAttr { min: -0.5, max: 1.0 }))]
    {
        let mut c = Case::new(kind.name());
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MIN_POSITIVE];
        let x = c.input_of(Tensor::from_f32(&[5], odd.to_vec()));
        let y = c.op(kind, attr, &[x]);
        c.g.outputs = vec![y];
        let want = interp::run(&c.g, &c.inputs).unwrap();
        let got = Session::new(&c.g, &Options::default()).unwrap().run(&c.inputs).unwrap();
        let bits = |t: &Tensor| t.as_f32().unwrap().iter().map(|x| (x.is_nan(), *x)).collect::<Vec<_>>();
        for (a, b) in bits(&got[0]).iter().zip(&bits(&want[0])) {
            assert!(a.0 == b.0 && (a.0 || a.1 == b.1), "{a:?} {b:?}");
        }
    }
}

#[test]
fn casts_to_f32_and_dropped_dimensions() {
    for t in [
        Tensor::from_i64(&[3, 5], (0..15).map(|i| i * 1_000_003 - 7).collect()),
        Tensor::from_i32(&[3, 5], (0..15).map(|i| i * 100_000_003 - 7).collect()),
        Tensor::from_u8(&[3, 5], (0..15).map(|i| i * 17).collect()),
        Tensor::from_bool(&[3, 5], (0..15).map(|i| i % 2).collect()),
    ] {
        let mut c = Case::new("cast");
        let x = c.input_of(t);
        let y = c.op(OpKind::Cast, Attr::Cast(DType::F32), &[x]);
        let z = c.op(OpKind::Unsqueeze, Attr::Axes(axes(&[1, 2])), &[y]);
        let w = c.op(OpKind::Squeeze, Attr::Axes(axes(&[-2])), &[z]);
        c.check(&[y, w], 0.0);
    }
}

#[test]
fn rows_are_looked_up_along_any_axis() {
    let some = || Tensor::from_i64(&[3, 4], vec![0, 4, -1, 2, 3, 3, -5, 1, 0, 0, 1, 2]);
    for axis in [0, 1, -1] {
        for constant in [false, true] {
            let mut c = Case::new("gather");
            let x = c.input(&[5, 5, 5]);
            let turned = c.op(OpKind::Transpose, Attr::Perm(axes(&[1, 2, 0])), &[x]);
            let i = if constant { c.constant(some()) } else { c.input_of(some()) };
            let y = c.op(OpKind::Gather, Attr::Axis(axis), &[x, i]);
            let z = c.op(OpKind::Gather, Attr::Axis(axis), &[turned, i]);
            let one = c.constant(Tensor::from_i64(&[], vec![-2]));
            let w = c.op(OpKind::Gather, Attr::Axis(axis), &[turned, one]);
            let relu = c.op(OpKind::Relu, Attr::None, &[w]);
            c.check(&[y, z, w, relu], 0.0);
        }
    }
    let mut c = Case::new("embedding");
    let table = c.f32s(&[100, 768]);
    let table = c.constant(table);
    let ids = c.input_of(Tensor::from_i32(&[3, 20], (0..60).map(|i| i * 37 % 100).collect()));
    let y = c.op(OpKind::Gather, Attr::Axis(0), &[table, ids]);
    c.check(&[y], 0.0);
}

#[test]
fn an_index_that_is_out_of_range_is_refused() {
    let mut c = Case::new("gather");
    let table = c.f32s(&[4, 3]);
    let table = c.constant(table);
    let ids = c.input_of(Tensor::from_i64(&[2], vec![1, 2]));
    let y = c.op(OpKind::Gather, Attr::Axis(0), &[table, ids]);
    c.g.outputs = vec![y];
    let mut session = Session::new(&c.g, &Options::default()).unwrap();
    for (ids, fits) in [([3, -4], true), ([0, 4], false), ([-5, 0], false), ([i64::MAX, 0], false)] {
        let got = session.run(&[Tensor::from_i64(&[2], ids.to_vec())]);
        assert_eq!(got.is_ok(), fits, "{ids:?}: {got:?}");
    }
}

#[test]
fn layer_norms_equal_the_reference() {
    for (dims, axis) in
        [(&[3usize, 5, 768][..], -1), (&[3, 7, 37], 2), (&[3, 4, 5], 1), (&[9], 0), (&[3, 1], -1)]
    {
        for bias in [false, true] {
            let mut c = Case::new("layer norm");
            let x = c.input(dims);
            let own = &dims[(axis + dims.len() as i32) as usize % dims.len()..];
            let vectors: Vec<Tensor> = (0..1 + usize::from(bias)).map(|_| c.f32s(own)).collect();
            let mut inputs = vec![x];
            inputs.extend(vectors.into_iter().map(|t| c.constant(t)));
            let attr = Attr::Norm(NormAttr { axis, epsilon: 1e-5 });
            let y = c.op(OpKind::LayerNormalization, attr, &inputs);
            c.check(&[y], 0.0);
        }
    }
}

#[test]
fn sums_are_normalised_and_rounded_in_one_step() {
    let out = Requant { zero: 120, lo: 0, hi: 255 };
    for len in [1, 5, 16, 37, 768] {
        for (a_u8, b) in
            [(true, None), (true, Some(true)), (true, Some(false)), (false, Some(true)), (false, Some(false))]
        {
            for (out, keep) in [(Some(out), false), (Some(out), true), (None, true)] {
                let mut c = Case::new("add norm");
                let operand = |c: &mut Case, u8: bool, seed: usize| match u8 {
                    true => {
                        let q = (0..3 * 7 * len).map(|i| (i * 37 * (seed + 1) % 256) as u8).collect();
                        c.input_of(Tensor::from_u8(&[3, 7, len], q))
                    }
                    false => c.input(&[3, 7, len]),
                };
                let a = operand(&mut c, a_u8, 0);
                let (scale, bias) = (c.f32s(&[len]), c.f32s(&[len]));
                let mut inputs = vec![a, c.constant(scale), c.constant(bias)];
                inputs.extend(b.map(|u8| operand(&mut c, u8, 1)));
                let attr = Attr::AddNorm(AddNormAttr {
                    a: Affine { mult: 0.013, zero: 3 },
                    b: Affine { mult: 0.021, zero: 130 },
                    epsilon: 1e-12,
                    y_mult: 40.0,
                    out,
                    keep,
                });
                let names = ["y", "x"];
                let results = usize::from(out.is_some()) + usize::from(keep);
                let y = c.g.add_op(OpKind::AddNorm, attr, "norm", &inputs, &names[..results]).unwrap();
                c.check(&y, 0.0);
            }
        }
    }
}

#[test]
fn binary_ops_broadcast() {
    let shapes: &[(&[usize], &[usize])] = &[
        (&[3, 5, 7, 9], &[3, 5, 7, 9]),
        (&[3, 5, 7, 9], &[1]),
        (&[3, 5, 7, 9], &[5, 1, 1]),
        (&[3, 1, 7, 1], &[5, 1, 9]),
        (&[3, 8200], &[3, 1]),
        (&[7], &[3, 1]),
        (&[], &[3, 2]),
    ];
    for &(a, b) in shapes {
        for kind in [OpKind::Add, OpKind::Sub, OpKind::Mul, OpKind::Div] {
            for constant in [false, true] {
                let mut c = Case::new(kind.name());
                let t = c.f32s(a);
                let x = c.input_as(t, !constant && a.first() == Some(&3));
                let t = c.f32s(b);
                let y = if constant { c.constant(t) } else { c.input_of(t) };
                let z = c.op(kind, Attr::None, &[x, y]);
                c.check(&[z], 0.0);
            }
        }
    }
}

#[test]
fn moving_ops() {
    let mut c = Case::new("transpose");
    let x = c.input(&[3, 5, 7, 9]);
    let outs: Vec<ValueId> = [[0, 2, 3, 1], [3, 2, 1, 0], [1, 0, 3, 2], [0, 1, 2, 3]]
        .iter()
        .map(|p| c.op(OpKind::Transpose, Attr::Perm(axes(p)), &[x]))
        .collect();
    // A reshape of a transposed value needs its elements in their new order.
    let mut moved = outs.clone();
    let fixed = c.constant(Tensor::from_f32(&[4, 6], (0..24).map(|x| x as f32).collect()));
    let row = c.input(&[4, 6]);
    let sum = c.op(OpKind::Add, Attr::None, &[row, fixed]);
    let turned = c.op(OpKind::Transpose, Attr::Perm(axes(&[1, 0])), &[sum]);
    let flat = c.constant(Tensor::from_i64(&[2], vec![3, 8]));
    moved.push(c.op(OpKind::Reshape, Attr::None, &[turned, flat]));
    c.check(&moved, 0.0);

    for dims in [[3, 16, 16, 16], [2, 5, 40, 255], [1, 9, 15, 17], [3, 20, 20, 33]] {
        let mut c = Case::new("turn");
        let x = c.input(&dims);
        let y = c.op(OpKind::Transpose, Attr::Perm(axes(&[0, 3, 1, 2])), &[x]);
        c.check(&[y], 0.0);
    }

    for axis in [0, 1, 3] {
        let mut c = Case::new("split");
        let x = c.input(&[4, 6, 5, 8]);
        let halves = Params::usual(OpKind::Split);
        let halves = halves.with(OpKind::Split, "axis", axis).with(OpKind::Split, "num_outputs", 2);
        let parts = c.g.add_op(OpKind::Split, Attr::Params(halves), "split", &[x], &["a", "b"]).unwrap();
        let sum = c.op(OpKind::Add, Attr::None, &[parts[1], parts[0]]);
        let turned = c.op(OpKind::Transpose, Attr::Perm(axes(&[0, 2, 3, 1])), &[parts[1]]);
        c.check(&[parts[0], sum, turned], 0.0);
    }

    for axis in [0, 1, 2, -1] {
        let mut c = Case::new("concat");
        let (a, b) = (c.input(&[2, 4, 6]), c.input(&[2, 4, 6]));
        let r = c.op(OpKind::Relu, Attr::None, &[b]);
        let y = c.op(OpKind::Concat, Attr::Axis(axis), &[a, r, a]);
        let z = c.op(OpKind::Flatten, Attr::Axis(2), &[y]);
        let i = c.op(OpKind::Identity, Attr::None, &[z]);
        c.check(&[y, i], 0.0);
    }
}

#[test]
fn quantise_and_dequantise_per_tensor_and_per_axis() {
    for (dims, axis) in [(&[3usize, 5, 4, 6][..], 1), (&[4, 37][..], -1), (&[3, 20000][..], 1)] {
        for per_axis in [false, true] {
            for signed in [false, true] {
                let n = if per_axis { dims[(axis + dims.len() as i32) as usize % dims.len()] } else { 1 };
                let mut c = Case::new("quantise");
                let x = c.input(dims);
                let scales = Tensor::from_f32(&[n], (0..n).map(|i| 0.01 + (i % 100) as f32 * 1e-3).collect());
                let zero = if signed {
                    Tensor::from_i8(&[n], (0..n).map(|i| (i % 9) as i8 - 4).collect())
                } else {
                    Tensor::from_u8(&[n], (0..n).map(|i| 100 + (i % 50) as u8).collect())
                };
                let (s, z) = (c.constant(scales), c.constant(zero));
                let q = c.op(OpKind::QuantizeLinear, Attr::Axis(axis), &[x, s, z]);
                let d = c.op(OpKind::DequantizeLinear, Attr::Axis(axis), &[q, s, z]);
                c.check(&[q, d], 0.0);
            }
        }
    }
    let mut c = Case::new("dequantise i32");
    let x = c.input_of(Tensor::from_i32(&[3, 4], (0..12).map(|i| i * 100_000_001 - 600_000_000).collect()));
    let s = c.constant(Tensor::from_f32(&[4], vec![0.1, 1.0, 2.0, 1e-9]));
    let z = c.constant(Tensor::from_i32(&[4], vec![0; 4]));
    let y = c.op(OpKind::DequantizeLinear, Attr::Axis(1), &[x, s, z]);
    c.check(&[y], 0.0);
}

#[test]
fn reductions_and_softmax() {
    for keep_dims in [false, true] {
        for a in [&[1][..], &[-1], &[0, 2], &[2, 3], &[1, 2, 3], &[]] {
            let mut c = Case::new("mean");
            let x = c.input(&[3, 4, 5, 6]);
            let y = c.op(OpKind::ReduceMean, Attr::Reduce(ReduceAttr { axes: axes(a), keep_dims }), &[x]);
            c.check(&[y], 1e-6);
        }
    }
    for axis in [0, 1, 2, -1] {
        let mut c = Case::new("softmax");
        let x = c.input(&[3, 7, 11]);
        let y = c.op(OpKind::Softmax, Attr::Axis(axis), &[x]);
        c.check(&[y], 1e-6);
    }
}

#[test]
fn pools_in_all_their_modes() {
    for ceil_mode in [false, true] {
        for count_include_pad in [false, true] {
            for window in [
                window(2, 2, 0, 1),
                window(3, 2, 1, 1),
                window(2, 1, 0, 2),
                window(5, 1, 2, 1),
                Window { kernel: [4, 7], stride: [2, 1], dilation: [1, 1], pads: [3, 0, 1, 2] },
                Window { kernel: [3, 2], stride: [2, 3], dilation: [1, 1], pads: [1, 0, 2, 1] },
            ] {
                for kind in [OpKind::MaxPool, OpKind::AveragePool] {
                    let attr = Attr::Pool(PoolAttr { window, ceil_mode, count_include_pad });
                    let mut c = Case::new(kind.name());
                    let x = c.input(&[3, 11, 9, 8]);
                    let Ok(y) = c.g.add_op(kind, attr, "pool", &[x], &["y"]) else { continue };
                    c.check(&y, 1e-6);
                }
            }
        }
    }
    let mut c = Case::new("global");
    let x = c.input(&[3, 70, 4, 5]);
    let y = c.op(OpKind::GlobalAveragePool, Attr::None, &[x]);
    c.check(&[y], 1e-6);
}

#[test]
fn matrix_products_of_run_time_operands() {
    let shapes: &[(&[usize], &[usize])] = &[
        (&[5, 7], &[7, 6]),
        (&[3, 5, 7], &[3, 7, 6]),
        (&[3, 2, 5, 7], &[2, 7, 6]),
        (&[3, 1, 5, 7], &[4, 7, 6]),
        (&[7], &[7, 6]),
        (&[3, 5, 7], &[7]),
        (&[3, 64, 70], &[70, 65]),
        // More rows and steps than are multiplied in one go.
        (&[2, 101, 300], &[2, 300, 66]),
    ];
    for &(a, b) in shapes {
        for constant in [false, true] {
            let mut c = Case::new("matmul");
            let t = c.f32s(a);
            let x = c.input_as(t, !constant && a.first() == Some(&3));
            let t = c.f32s(b);
            let w = if constant { c.constant(t) } else { c.input_of(t) };
            let y = c.op(OpKind::MatMul, Attr::None, &[x, w]);
            c.check(&[y], 1e-4);
        }
    }
    // As in attention: q times k with its last two dimensions turned, and the result turned.
    let mut c = Case::new("turned");
    let (q, k) = (c.input(&[2, 100, 4, 32]), c.input(&[2, 37, 4, 32]));
    let turned = |c: &mut Case, x, p: &[i64]| c.op(OpKind::Transpose, Attr::Perm(axes(p)), &[x]);
    let (q, k) = (turned(&mut c, q, &[0, 2, 1, 3]), turned(&mut c, k, &[0, 2, 3, 1]));
    let scores = c.op(OpKind::MatMul, Attr::None, &[q, k]);
    let y = turned(&mut c, scores, &[0, 2, 1, 3]);
    c.check(&[scores, y], 1e-4);
    for (trans_a, trans_b) in [(false, false), (false, true), (true, false), (true, true)] {
        for c_dims in [&[][..], &[6], &[1, 6], &[5, 1], &[5, 6]] {
            for constant in [false, true] {
                let mut c = Case::new("gemm");
                let x = c.input(if trans_a { &[7, 5] } else { &[5, 7] });
                let t = c.f32s(if trans_b { &[6, 7] } else { &[7, 6] });
                let w = if constant { c.constant(t) } else { c.input_of(t) };
                let bias = c.f32s(c_dims);
                let bias = if constant { c.constant(bias) } else { c.input_of(bias) };
                let (alpha, beta) = if constant { (1.0, 1.0) } else { (0.5, -2.0) };
                let attr = Attr::Gemm(GemmAttr { alpha, beta, trans_a, trans_b });
                let y = c.op(OpKind::Gemm, attr, &[x, w, bias]);
                c.check(&[y], 1e-4);
            }
        }
    }
}

/// Activations are done where convolutions write, unless something else reads what they write; joins of any number of
/// channels are written in place.
#[test]
fn activations_after_convolutions() {
    for (kind, attr) in [
        (OpKind::Silu, Attr::None),
        (OpKind::HardSwish, Attr::None),
        (OpKind::Sigmoid, Attr::None),
        (OpKind::LeakyRelu, Attr::Params(Params::usual(OpKind::LeakyRelu))),
        (OpKind::HardSigmoid, Attr::Params(Params::usual(OpKind::HardSigmoid))),
        (OpKind::Gelu, Attr::Params(Params::usual(OpKind::Gelu))),
    ] {
        let mut c = Case::new(kind.name());
        let x = c.input(&[3, 9, 13, 11]);
        let a = conv(&mut c, x, [20, 9, 3]);
        let a = c.op(kind, attr, &[a]);
        let b = conv(&mut c, a, [13, 20, 1]);
        let b = c.op(kind, attr, &[b]);
        let joined = c.op(OpKind::Concat, Attr::Axis(1), &[a, b]);
        let read_twice = conv(&mut c, joined, [8, 33, 3]);
        let y = c.op(kind, attr, &[read_twice]);
        let z = c.op(OpKind::Add, Attr::None, &[y, read_twice]);
        c.check(&[z, joined], 1e-5);
    }
}

/// A convolution with `[outputs, inputs, window]`, of the size of its input.
fn conv(c: &mut Case, x: ValueId, [o, i, k]: [usize; 3]) -> ValueId {
    let mut w = c.f32s(&[o, i, k, k]);
    if let Elements::F32(w) = &mut w.elements {
        w.iter_mut().for_each(|w| *w /= (i * k * k) as f32);
    }
    let (w, bias) = (c.constant(w), c.f32s(&[o]));
    let bias = c.constant(bias);
    let window = window(k as u32, 1, k as u32 / 2, 1);
    c.op(OpKind::Conv, Attr::Conv(ConvAttr { window, group: 1 }), &[x, w, bias])
}

#[test]
fn batch_norm_without_a_convolution() {
    let mut c = Case::new("norm");
    let x = c.input(&[3, 4, 5, 6]);
    let stats: Vec<ValueId> = (0..4)
        .map(|i| c.constant(Tensor::from_f32(&[4], (0..4).map(|j| 0.5 + (i * j) as f32 * 0.3).collect())))
        .collect();
    let y =
        c.op(OpKind::BatchNormalization, Attr::Epsilon(1e-5), &[x, stats[0], stats[1], stats[2], stats[3]]);
    c.check(&[y], 1e-5);
}

/// Windows over bytes, with channels that fill registers and that do not.
#[test]
fn pools_of_bytes() {
    for channels in [1, 5, 64, 130] {
        for window in [
            window(2, 2, 0, 1),
            window(3, 2, 1, 1),
            window(5, 1, 2, 1),
            window(2, 1, 0, 2),
            Window { kernel: [3, 2], stride: [2, 3], dilation: [1, 1], pads: [1, 0, 2, 1] },
        ] {
            let mut c = Case::new("u8 pool");
            let bytes: Vec<u8> = (0..3 * channels * 9 * 8).map(|i| (i * 37 % 256) as u8).collect();
            let x = c.input_of(Tensor::from_u8(&[3, channels, 9, 8], bytes));
            let (s, z) =
                (c.constant(Tensor::from_f32(&[], vec![0.5])), c.constant(Tensor::from_u8(&[], vec![9])));
            let d = c.op(OpKind::DequantizeLinear, Attr::Axis(1), &[x, s, z]);
            let attr = PoolAttr { window, ceil_mode: false, count_include_pad: false };
            let pooled = c.op(OpKind::MaxPool, Attr::Pool(attr), &[d]);
            let q = c.op(OpKind::QuantizeLinear, Attr::Axis(1), &[pooled, s, z]);
            let session = Session::new(&c.g_with_outputs(&[q]), &Options::default()).unwrap();
            assert!(session.steps().iter().any(|s| s.kernel == "max_pool_u8"), "{window:?}");
            c.check(&[q], 0.0);
        }
    }
}

/// Means of bytes over more pixels than 16 bits can sum, with channels that fill registers and that do not.
#[test]
fn means_of_bytes() {
    for dims in [[3, 5, 4, 3], [1, 130, 3, 300], [3, 40, 30, 9], [2, 64, 1, 600]] {
        let mut c = Case::new("u8 mean");
        let bytes: Vec<u8> =
            (0..dims.iter().product()).map(|i: usize| (255 - i % 7 * (i % 3)) as u8).collect();
        let x = c.input_of(Tensor::from_u8(&dims, bytes));
        let (s, z) =
            (c.constant(Tensor::from_f32(&[], vec![0.5])), c.constant(Tensor::from_u8(&[], vec![9])));
        let d = c.op(OpKind::DequantizeLinear, Attr::Axis(1), &[x, s, z]);
        let mean = c.op(OpKind::GlobalAveragePool, Attr::None, &[d]);
        let q = c.op(OpKind::QuantizeLinear, Attr::Axis(1), &[mean, s, z]);
        let session = Session::new(&c.g_with_outputs(&[q]), &Options::default()).unwrap();
        assert!(session.steps().iter().any(|s| s.kernel == "global_mean_u8"), "{dims:?}");
        c.check(&[q], 0.0);
    }
}

/// A quantised net's input may come in u8; its values travel in integers from the first op to the last.
#[test]
fn u8_inputs_and_outputs() {
    let mut c = Case::new("u8");
    let bytes: Vec<u8> = (0..3 * 4 * 6 * 5).map(|i| (i * 37 % 256) as u8).collect();
    let x = c.input_of(Tensor::from_u8(&[3, 4, 6, 5], bytes));
    let (s, z) = (c.constant(Tensor::from_f32(&[], vec![0.02])), c.constant(Tensor::from_u8(&[], vec![7])));
    let d = c.op(OpKind::DequantizeLinear, Attr::Axis(1), &[x, s, z]);
    let pooled = c.op(OpKind::MaxPool, pool(3, 1, 1), &[d]);
    let q = c.op(OpKind::QuantizeLinear, Attr::Axis(1), &[pooled, s, z]);
    c.check(&[q], 0.0);
}

impl Case {
    fn bytes(&mut self, dims: &[usize]) -> ValueId {
        let t = self.random_bytes(dims);
        self.input_of(t)
    }

    fn random_bytes(&mut self, dims: &[usize]) -> Tensor {
        let n = dims.iter().product();
        Tensor::from_u8(dims, (0..n).map(|_| (self.rng.unit() * 256.0) as u8).collect())
    }
}

#[test]
fn integer_sums_products_and_tables() {
    let out = Requant { zero: 9, lo: 3, hi: 250 };
    let add = QAddAttr { a_mult: 0.5, a_zero: 7, b_mult: 0.31, b_zero: 128, out };
    let mul = QMulAttr { a_zero: 30, b_zero: 3, mult: 0.004, out };
    for dims in [&[3usize, 5, 7, 9][..], &[3, 4, 5, 64], &[2, 3, 2, 200], &[1], &[3, 40000], &[2, 6, 9, 1]] {
        let mut c = Case::new("integers");
        let (a, b) = (c.bytes(dims), c.bytes(dims));
        let table = c.random_bytes(&[256]);
        let table = c.constant(table);
        let sum = c.op(OpKind::QAdd, Attr::QAdd(add), &[a, b]);
        let product = c.op(OpKind::QMul, Attr::QMul(mul), &[a, b]);
        let looked_up = c.op(OpKind::QLookup, Attr::None, &[a, table]);
        c.check(&[sum, product, looked_up], 0.0);
    }
    // A factor per channel of an image, per pixel, for all.
    for (a, b) in [
        (&[3usize, 5, 7, 70][..], &[3usize, 1, 1, 70][..]),
        (&[2, 16, 16, 128], &[2, 1, 1, 128]),
        (&[3, 9, 7, 20], &[3, 9, 7, 1]),
        (&[3, 1, 1, 64], &[3, 5, 5, 64]),
        (&[3, 6, 5, 33], &[1]),
    ] {
        let mut c = Case::new("products");
        let (a, b) = (c.bytes(a), c.bytes(b));
        let y = c.op(OpKind::QMul, Attr::QMul(mul), &[a, b]);
        c.check(&[y], 0.0);
    }
}

#[test]
fn quantised_silu() {
    for dims in [&[3usize, 5, 7, 70][..], &[3, 40000], &[5], &[1, 17, 1, 3]] {
        let mut c = Case::new("silu");
        let x = c.input(dims);
        let (s, z) =
            (c.constant(Tensor::from_f32(&[], vec![0.011])), c.constant(Tensor::from_u8(&[], vec![26])));
        let q = c.op(OpKind::QuantizeSilu, Attr::Axis(0), &[x, s, z]);
        // Found by the passes too, in the form that files have.
        let gate = c.op(OpKind::Sigmoid, Attr::None, &[x]);
        let y = c.op(OpKind::Mul, Attr::None, &[gate, x]);
        c.check(&[q, y], 1e-5);
    }
}

#[test]
fn pixels_are_repeated() {
    for scale in [[1, 1], [2, 2], [1, 3], [4, 1]] {
        for channels in [1, 3, 64] {
            let mut c = Case::new("resize");
            let x = c.input(&[3, channels, 5, 4]);
            let y = c.op(OpKind::Resize, Attr::Resize(ResizeAttr { scale }), &[x]);
            let q = c.bytes(&[3, 5, 4, channels]);
            let z = c.op(OpKind::ResizeNhwc, Attr::Resize(ResizeAttr { scale }), &[q]);
            c.check(&[y, z], 0.0);
        }
    }
}

#[test]
fn many_threads_meet_again_and_again() {
    let g = resnet(true, 0.9);
    let x = [input(&g, 2, 1)];
    let want =
        Session::new(&g, &Options { threads: Some(1), ..Options::default() }).unwrap().run(&x).unwrap();
    let mut s = Session::new(&g, &Options { threads: Some(5), ..Options::default() }).unwrap();
    for _ in 0..200 {
        assert_eq!(s.run(&x).unwrap(), want);
    }
    let rows = s.profile(&x, 3).unwrap();
    assert!(rows.iter().all(|r| r.measured_ns.is_some()));
    // Sessions can move to another thread.
    std::thread::spawn(move || assert_eq!(s.run(&x).unwrap(), want)).join().unwrap();
}

/// Kernels as wide as their strides and wider, pixels that are cut off and added, one channel and many, between layers that
/// need borders; and the forms that run plainly.
#[test]
fn transposed_convolutions() {
    let plain = SpatialAttr { kernel: [2, 2, 1], stride: [2, 2, 1], ..SpatialAttr::default() };
    let three = SpatialAttr { kernel: [3, 3, 1], before: [1, 1, 0], after: [1, 1, 0], ..plain };
    let fast = [
        plain,
        SpatialAttr { kernel: [3, 1, 1], stride: [3, 1, 1], ..plain },
        SpatialAttr { kernel: [1, 4, 1], stride: [1, 4, 1], after: [0, 1, 0], ..plain },
        three,
        SpatialAttr { output_padding: [1, 1, 0], ..three },
        SpatialAttr { kernel: [4, 4, 1], before: [1, 1, 0], after: [1, 1, 0], ..plain },
        SpatialAttr { kernel: [3, 5, 1], stride: [1, 3, 1], before: [0, 4, 0], after: [2, 1, 0], ..plain },
    ];
    let slow = [
        SpatialAttr { output_padding: [1, 0, 0], ..plain },
        SpatialAttr { kernel: [1, 2, 1], ..plain },
        SpatialAttr { dilation: [2, 1, 1], ..three },
        SpatialAttr { group: 2, ..plain },
    ];
    for (attr, steps_of_its_own) in fast.map(|a| (a, true)).into_iter().chain(slow.map(|a| (a, false))) {
        for channels in [1, 2, 8, 24] {
            let mut c = Case::new("conv transpose");
            let (kernel, groups) = (attr.kernel.map(|k| k as usize), attr.group as usize);
            let x = c.input(&[3, 6, 5, 4]);
            let weights = [
                vec![channels * groups, 6, 3, 3],
                vec![channels * groups, channels, kernel[0], kernel[1]],
                vec![6, channels * groups, 3, 3],
                vec![6, 2, kernel[0], kernel[1]],
                vec![2 * groups],
            ];
            let [first, up, second, last, bias] = weights.map(|dims| {
                let w = c.f32s(&dims).as_f32().unwrap().iter().map(|w| w * 0.05).collect();
                c.constant(Tensor::from_f32(&dims, w))
            });
            let conv = Attr::Conv(ConvAttr { window: window(3, 1, 1, 1), group: 1 });
            let y = c.op(OpKind::Conv, conv, &[x, first]);
            let y = c.op(OpKind::ConvTranspose, Attr::Spatial(attr), &[y, up]);
            let shift = c.f32s(&[1, channels * groups, 1, 1]);
            let shift = c.constant(shift);
            let y = c.op(OpKind::Add, Attr::None, &[y, shift]);
            let y = c.op(OpKind::Relu, Attr::None, &[y]);
            let y = c.op(OpKind::Conv, conv, &[y, second]);
            let y = c.op(OpKind::ConvTranspose, Attr::Spatial(attr), &[y, last, bias]);
            let y = c.op(OpKind::LeakyRelu, Attr::Params(Params::usual(OpKind::LeakyRelu)), &[y]);
            let session = Session::new(&c.g_with_outputs(&[y]), &Options::default()).unwrap();
            let plainly = session.steps().iter().any(|s| s.kernel == "reference");
            assert_eq!(plainly, !steps_of_its_own, "{attr:?}");
            c.check(&[y], 2e-5);
        }
    }
}

/// Both directions and each alone, states that are given and that are not, sizes that fill panels and that do not; and what
/// runs plainly.
#[test]
fn recurrent_layers() {
    for (direction, hidden, batch, given) in
        [(0, 5, 3, false), (1, 24, 1, true), (2, 40, 2, true), (2, 16, 50, false), (0, 70, 1, false)]
    {
        for clipped in [false, true] {
            let mut c = Case::new("lstm");
            let dirs = if direction == 2 { 2 } else { 1 };
            let x = c.input(&[4, batch, 9]);
            let dims = [vec![dirs, 4 * hidden, 9], vec![dirs, 4 * hidden, hidden], vec![dirs, 8 * hidden]];
            let [w, r, bias] = dims.map(|dims| {
                let w = c.f32s(&dims).as_f32().unwrap().iter().map(|w| w * 0.1).collect();
                c.constant(Tensor::from_f32(&dims, w))
            });
            let mut inputs = vec![x, w, r, bias];
            if given {
                let (state, cell) = (c.input(&[dirs, batch, hidden]), c.input(&[dirs, batch, hidden]));
                inputs.extend([ValueId::NONE, state, cell]);
            }
            let tangents = ["g", "h", "g_back", "h_back"].map(|name| (name, 1));
            let clip = if clipped { 0.5f32 } else { f32::INFINITY };
            let numbers =
                [("direction", direction), ("clip", clip.to_bits() as i32)].into_iter().chain(tangents);
            let numbers =
                numbers.fold(Params::usual(OpKind::LSTM), |p, (name, bits)| p.with(OpKind::LSTM, name, bits));
            let outputs = ["y", "state", "cell"];
            let attr = Attr::Params(numbers);
            let made = c.g.add_op(OpKind::LSTM, attr, "lstm", &inputs, &outputs).unwrap().to_vec();
            let session = Session::new(&c.g_with_outputs(&made), &Options::default()).unwrap();
            assert_eq!(session.steps().iter().any(|s| s.kernel == "lstm_f32"), !clipped);
            c.check(&made, 1e-5);
        }
    }
}

#[test]
fn choices_spreads_and_sums() {
    for dims in ODD_SHAPES {
        let mut c = Case::new("where");
        let (x, roots) = (c.input(dims), c.f32s(&[1]));
        let roots = c.constant(roots);
        let other = c.op(OpKind::Add, Attr::None, &[x, roots]);
        // Half of the roots are of negative numbers.
        let root = c.op(OpKind::Sqrt, Attr::None, &[other]);
        let nan = c.op(OpKind::IsNaN, Attr::None, &[root]);
        let one = c.constant(Tensor::from_f32(&[1], vec![7.5]));
        let chosen = [[one, root], [root, one], [x, root], [root, x], [one, one]]
            .map(|[a, b]| c.op(OpKind::Where, Attr::None, &[nan, a, b]));
        c.check(&chosen, 0.0);
    }
    let mut c = Case::new("expand and sum");
    let x = c.input(&[3, 1, 40]);
    let shape = c.constant(Tensor::from_i64(&[4], vec![2, 1, 5, 40]));
    let wide = c.op(OpKind::Expand, Attr::None, &[x, shape]);
    let sums = [vec![2], vec![-1, 0], vec![1, 3]].map(|list| {
        let axes = c.constant(Tensor::from_i64(&[list.len()], list));
        let attr = Attr::Reduce(ReduceAttr { axes: self::axes(&[]), keep_dims: true });
        c.op(OpKind::ReduceSum, attr, &[wide, axes])
    });
    c.check(&[&[wide][..], &sums].concat(), 1e-5);
}

/// What is done where a layer's results are written: a bias, an activation, a factor and an addend, in one step or as many as
/// there are ops.
#[test]
fn tails_of_layers() {
    for reader in [false, true] {
        let mut c = Case::new("tails");
        let x = c.input(&[3, 6, 7, 90]);
        let w = c.f32s(&[20, 6, 3, 3]);
        let w = c.constant(w);
        let conv = Attr::Conv(ConvAttr { window: window(3, 1, 1, 1), group: 1 });
        let y = c.op(OpKind::Conv, conv, &[x, w]);
        let y = c.op(OpKind::HardSwish, Attr::None, &[y]);
        let (scale, shift) =
            (c.constant(Tensor::from_f32(&[1], vec![0.7])), c.constant(Tensor::from_f32(&[1], vec![-3.0])));
        let scaled = c.op(OpKind::Mul, Attr::None, &[scale, y]);
        let y = c.op(OpKind::Add, Attr::None, &[scaled, shift]);
        let w = c.f32s(&[90, 37]);
        let (w, bias) = (c.constant(w), c.f32s(&[1, 37]));
        let bias = c.constant(bias);
        let z = c.op(OpKind::MatMul, Attr::None, &[y, w]);
        let z = c.op(OpKind::Add, Attr::None, &[z, bias]);
        let z = c.op(OpKind::Silu, Attr::None, &[z]);
        let z = c.op(OpKind::Add, Attr::None, &[z, shift]);
        let outputs = if reader { vec![z, scaled] } else { vec![z] };
        let session = Session::new(&c.g_with_outputs(&outputs), &Options::default()).unwrap();
        let adds = session.steps().iter().filter(|s| s.kernel == "add_f32").count();
        assert_eq!(adds, usize::from(reader));
        c.check(&outputs, 1e-4);
    }
}

/// Thousands of numbers in a row lose digits that sums of sums keep.
#[test]
fn means_of_many_floats() {
    let (channels, side) = (70, 90);
    let x: Vec<f32> = (0..channels * side * side).map(|i| 40.0 + (i * 37 % 101) as f32 * 0.31).collect();
    let mut c = Case::new("f32 mean");
    let v = c.input_of(Tensor::from_f32(&[1, channels, side, side], x.clone()));
    let mean = c.op(OpKind::GlobalAveragePool, Attr::None, &[v]);
    let mut session = Session::new(&c.g_with_outputs(&[mean]), &Options::default()).unwrap();
    let got = session.run(&c.inputs).unwrap();
    for (x, &got) in x.chunks_exact(side * side).zip(got[0].as_f32().unwrap()) {
        let want = x.iter().map(|&x| f64::from(x)).sum::<f64>() / (side * side) as f64;
        assert!((f64::from(got) - want).abs() <= 1.5e-6 * want, "{got} for {want}");
    }
}

/// A value that is cut along its channels and joined again with what was made of the parts is written where the join has it.
#[test]
fn splits_that_are_joined_again() {
    let conv = |pad| Attr::Conv(ConvAttr { window: window(1 + 2 * pad, 1, pad, 1), group: 1 });
    let sized = |c: &mut Case, dims: &[usize]| {
        let w = c.f32s(dims).as_f32().unwrap().iter().map(|w| w * 0.1).collect();
        c.constant(Tensor::from_f32(dims, w))
    };
    for (parts, in_order) in [(2, true), (3, true), (2, false)] {
        let mut c = Case::new("split and join");
        let x = c.input(&[3, 5, 7, 6]);
        let w = sized(&mut c, &[parts * 8, 5, 1, 1]);
        let y = c.op(OpKind::Conv, conv(0), &[x, w]);
        let y = c.op(OpKind::Silu, Attr::None, &[y]);
        let attr = Attr::Params(Params::usual(OpKind::Split).with(OpKind::Split, "axis", 1));
        let sizes = c.constant(Tensor::from_i64(&[parts], vec![8; parts]));
        let names: Vec<String> = (0..parts).map(|i| format!("part{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut all = c.g.add_op(OpKind::Split, attr, "split", &[y, sizes], &names).unwrap().to_vec();
        let w = sized(&mut c, &[8, 8, 3, 3]);
        let made = c.op(OpKind::Conv, conv(1), &[all[parts - 1], w]);
        if !in_order {
            all.reverse();
        }
        all.push(made);
        let joined = c.op(OpKind::Concat, Attr::Axis(1), &all);
        let w = sized(&mut c, &[4, parts * 8 + 8, 3, 3]);
        let y = c.op(OpKind::Conv, conv(1), &[joined, w]);
        let session = Session::new(&c.g_with_outputs(&[y]), &Options::default()).unwrap();
        let copies = session.steps().iter().filter(|s| s.kind == "Concat" || s.kind == "Split").count();
        assert_eq!(copies == 0, in_order);
        c.check(&[y], 1e-5);
    }
}
