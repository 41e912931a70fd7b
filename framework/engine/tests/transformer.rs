//! Small transformers with quantise/dequantise pairs, as exporters write them: the engine's results are those of the
//! interpreter, bit for bit, on every row, for any batch and any number of threads.

mod common;

use common::Rng;
use lacuna_engine::{Isa, Options, Session};
use lacuna_ir::op::{Axes, GemmAttr, NormAttr};
use lacuna_ir::{Attr, DType, Dim, Graph, OpKind, Tensor, ValueId, interp};

/// Which values are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pairs {
    None,
    /// What products read.
    Inputs,
    /// What linear layers make, too.
    Everywhere,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    layers: usize,
    width: usize,
    heads: usize,
    tokens: usize,
}

struct Net {
    g: Graph,
    pairs: Pairs,
    /// Write shapes as PyTorch's exporters do: in ops.
    in_ops: bool,
    rng: Rng,
}

impl Net {
    fn op(&mut self, kind: OpKind, attr: Attr, inputs: &[ValueId]) -> ValueId {
        let name = format!("{}{}", kind.name().to_lowercase(), self.g.op_kind.len());
        self.g.add_op(kind, attr, &name, inputs, &[&format!("{name}_out")]).unwrap()[0]
    }

    fn plain(&mut self, kind: OpKind, inputs: &[ValueId]) -> ValueId {
        self.op(kind, Attr::None, inputs)
    }

    fn constant(&mut self, t: Tensor) -> ValueId {
        let name = format!("c{}", self.g.value_name.len());
        self.g.add_tensor(&name, &t)
    }

    fn scalar(&mut self, x: f32) -> ValueId {
        self.constant(Tensor::from_f32(&[], vec![x]))
    }

    fn noise(&mut self, dims: &[usize], size: f32) -> Tensor {
        let n = dims.iter().product();
        Tensor::from_f32(dims, (0..n).map(|_| self.rng.signed() * size).collect())
    }

    fn pair(&mut self, x: ValueId, range: f32, zero: u8) -> ValueId {
        let (s, z) = (self.scalar(range / 255.0), self.constant(Tensor::from_u8(&[], vec![zero])));
        let q = self.op(OpKind::QuantizeLinear, Attr::Axis(1), &[x, s, z]);
        self.op(OpKind::DequantizeLinear, Attr::Axis(1), &[q, s, z])
    }

    /// The operand of a product.
    fn operand(&mut self, x: ValueId, range: f32, zero: u8) -> ValueId {
        if self.pairs == Pairs::None { x } else { self.pair(x, range, zero) }
    }

    /// A matrix `[k,n]`, a third of it zero, dequantised from i8 per column if the net is quantised.
    fn weight(&mut self, k: usize, n: usize) -> ValueId {
        let Tensor { elements: lacuna_ir::Elements::F32(mut w), .. } =
            self.noise(&[k, n], 2.0 / (k as f32).sqrt())
        else {
            unreachable!("noise is f32")
        };
        w.iter_mut().step_by(3).for_each(|w| *w = 0.0);
        if self.pairs == Pairs::None {
            return self.constant(Tensor::from_f32(&[k, n], w));
        }
        let scales: Vec<f32> = (0..n)
            .map(|c| w.iter().skip(c).step_by(n).fold(1e-3f32, |m, w| m.max(w.abs())) / 127.0)
            .collect();
        let q = w.iter().enumerate().map(|(i, w)| (w / scales[i % n]).round_ties_even() as i8).collect();
        let q = self.constant(Tensor::from_i8(&[k, n], q));
        let (s, z) = (Tensor::from_f32(&[n], scales), Tensor::from_i8(&[n], vec![0; n]));
        let (s, z) = (self.constant(s), self.constant(z));
        self.op(OpKind::DequantizeLinear, Attr::Axis(1), &[q, s, z])
    }

    fn linear(&mut self, x: ValueId, k: usize, n: usize, zero: u8) -> ValueId {
        let (w, b) = (self.weight(k, n), self.noise(&[n], 0.3));
        let b = self.constant(b);
        let y = self.plain(OpKind::MatMul, &[x, w]);
        let y = self.plain(OpKind::Add, &[y, b]);
        if self.pairs == Pairs::Everywhere { self.pair(y, 6.0, zero) } else { y }
    }

    fn norm(&mut self, x: ValueId, width: usize) -> ValueId {
        let (scale, bias) = (self.noise(&[width], 2.0), self.noise(&[width], 0.5));
        let (scale, bias) = (self.constant(scale), self.constant(bias));
        let attr = Attr::Norm(NormAttr { axis: -1, epsilon: 1e-12 });
        let y = self.op(OpKind::LayerNormalization, attr, &[x, scale, bias]);
        if self.pairs == Pairs::Everywhere { self.pair(y, 8.0, 128) } else { y }
    }

    fn reshape(&mut self, x: ValueId, dims: &[i64]) -> ValueId {
        if self.in_ops {
            return self.reshape_in_ops(x, dims);
        }
        let dims = self.constant(Tensor::from_i64(&[dims.len()], dims.to_vec()));
        self.plain(OpKind::Reshape, &[x, dims])
    }

    /// `Shape -> Gather -> Unsqueeze`, joined with numbers by `Concat`.
    fn reshape_in_ops(&mut self, x: ValueId, dims: &[i64]) -> ValueId {
        let kind = OpKind::from_name("Shape").expect("asked before");
        let attr = match kind.row().attr {
            "None" => Attr::None,
            _ => {
                let mut bits = [0; lacuna_ir::params::PARAMS_MAX];
                bits[1] = i32::MAX;
                Attr::Params(lacuna_ir::params::Params { bits })
            }
        };
        let axis = Attr::Axes(Axes::new(&[0]).unwrap());
        let mut parts = Vec::new();
        for (i, &d) in dims.iter().enumerate() {
            let part = if d == 0 {
                let shape = self.op(kind, attr, &[x]);
                let place = self.constant(Tensor::from_i64(&[], vec![i as i64]));
                let one = self.op(OpKind::Gather, Attr::Axis(0), &[shape, place]);
                self.op(OpKind::Unsqueeze, axis, &[one])
            } else {
                self.constant(Tensor::from_i64(&[1], vec![d]))
            };
            parts.push(part);
        }
        let target = self.op(OpKind::Concat, Attr::Axis(0), &parts);
        self.plain(OpKind::Reshape, &[x, target])
    }

    fn transpose(&mut self, x: ValueId, perm: &[i64]) -> ValueId {
        self.op(OpKind::Transpose, Attr::Perm(Axes::new(perm).unwrap()), &[x])
    }

    fn attention(&mut self, x: ValueId, mask: ValueId, s: Shape) -> ValueId {
        let (heads, depth) = (s.heads as i64, (s.width / s.heads) as i64);
        // What is quantised already is not quantised twice with other parameters.
        let again = |net: &mut Net, v: ValueId, range, zero| match net.pairs {
            Pairs::Inputs => net.pair(v, range, zero),
            _ => v,
        };
        let mut sides = Vec::new();
        for (zero, perm) in [(125, [0, 2, 1, 3]), (131, [0, 2, 3, 1]), (128, [0, 2, 1, 3])] {
            let y = self.linear(x, s.width, s.width, zero);
            let y = self.reshape(y, &[0, 0, heads, depth]);
            // Keys turned in two steps are the same.
            let y = if perm[3] == 1 && heads % 2 == 1 {
                let y = self.transpose(y, &[0, 2, 1, 3]);
                self.transpose(y, &[0, 1, 3, 2])
            } else {
                self.transpose(y, &perm)
            };
            sides.push(again(self, y, 6.0, zero));
        }
        let scores = self.plain(OpKind::MatMul, &[sides[0], sides[1]]);
        let root = self.scalar((depth as f32).sqrt());
        let scores = self.plain(OpKind::Div, &[scores, root]);
        let scores = self.plain(OpKind::Add, &[scores, mask]);
        let p = self.op(OpKind::Softmax, Attr::Axis(-1), &[scores]);
        let p = self.operand(p, 1.0, 0);
        let y = self.plain(OpKind::MatMul, &[p, sides[2]]);
        let y = self.transpose(y, &[0, 2, 1, 3]);
        let y = self.reshape(y, &[0, 0, s.width as i64]);
        self.operand(y, 4.0, 120)
    }

    fn gelu(&mut self, x: ValueId) -> ValueId {
        let [root, one, half] = [2f32.sqrt(), 1.0, 0.5].map(|c| self.scalar(c));
        let e = self.plain(OpKind::Div, &[x, root]);
        let e = self.plain(OpKind::Erf, &[e]);
        let e = self.plain(OpKind::Add, &[e, one]);
        let y = self.plain(OpKind::Mul, &[x, e]);
        self.plain(OpKind::Mul, &[y, half])
    }
}

/// Where positions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Positions {
    /// A constant, as long as a sequence.
    Constant,
    /// Looked up by an input, in sequences of one length.
    Given,
    /// The same, in sequences of any length.
    GivenForAnyLength,
}

/// A BERT: embeddings, layers, the first token's pooling, two classes.
fn bert(pairs: Pairs, s: Shape, positions: Positions) -> Graph {
    bert_with(pairs, s, positions, false)
}

fn bert_with(pairs: Pairs, s: Shape, positions: Positions, in_ops: bool) -> Graph {
    let mut n = Net { g: Graph::new("bert"), pairs, in_ops, rng: Rng(11) };
    let batch = Dim::Symbol(n.g.symbol("batch"));
    let tokens = match positions {
        Positions::GivenForAnyLength => Dim::Symbol(n.g.symbol("tokens")),
        _ => Dim::Fixed(s.tokens as u64),
    };
    let dims = [batch, tokens];
    let ids = n.g.add_input("input_ids", DType::I64, &dims);
    let mask = n.g.add_input("attention_mask", DType::I64, &dims);
    let table = n.noise(&[50, s.width], 1.0);
    let table = n.constant(table);
    let positions = match positions {
        Positions::Constant => {
            let positions = n.noise(&[1, s.tokens, s.width], 1.0);
            n.constant(positions)
        }
        _ => {
            let ids = n.g.add_input("position_ids", DType::I64, &dims);
            let table = n.noise(&[200, s.width], 1.0);
            let table = n.constant(table);
            n.op(OpKind::Gather, Attr::Axis(0), &[table, ids])
        }
    };
    let words = n.op(OpKind::Gather, Attr::Axis(0), &[table, ids]);
    let x = n.plain(OpKind::Add, &[words, positions]);
    let mut x = n.norm(x, s.width);
    let mask = n.op(OpKind::Unsqueeze, Attr::Axes(Axes::new(&[1, 2]).unwrap()), &[mask]);
    let mask = n.op(OpKind::Cast, Attr::Cast(DType::F32), &[mask]);
    let (one, far) = (n.scalar(1.0), n.scalar(-10000.0));
    let mask = n.plain(OpKind::Sub, &[one, mask]);
    let mask = n.plain(OpKind::Mul, &[mask, far]);
    // Products read what is quantised; with pairs for inputs only, sums read what is not.
    let read = |n: &mut Net, x: ValueId| if pairs == Pairs::Inputs { n.pair(x, 8.0, 128) } else { x };
    for _ in 0..s.layers {
        let input = read(&mut n, x);
        let y = n.attention(input, mask, s);
        let y = n.linear(y, s.width, s.width, 128);
        let y = n.plain(OpKind::Add, &[y, x]);
        x = n.norm(y, s.width);
        let input = read(&mut n, x);
        let y = n.linear(input, s.width, 2 * s.width, 127);
        let y = n.gelu(y);
        let y = n.operand(y, 4.0, 12);
        let y = n.linear(y, 2 * s.width, s.width, 128);
        let y = n.plain(OpKind::Add, &[y, x]);
        x = n.norm(y, s.width);
    }
    let first = n.constant(Tensor::from_i64(&[], vec![0]));
    let x = n.op(OpKind::Gather, Attr::Axis(1), &[x, first]);
    let x = n.operand(x, 8.0, 128);
    let gemm = |n: &mut Net, x: ValueId, o: usize| {
        let (w, b) = (n.weight(s.width, o), n.noise(&[o], 0.3));
        let b = n.constant(b);
        let attr = GemmAttr { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false };
        n.op(OpKind::Gemm, Attr::Gemm(attr), &[x, w, b])
    };
    let y = gemm(&mut n, x, s.width);
    let y = n.plain(OpKind::Tanh, &[y]);
    let y = n.operand(y, 2.0, 128);
    let y = gemm(&mut n, y, 2);
    n.g.outputs = vec![y];
    lacuna_ir::verify::verify(&n.g).unwrap();
    n.g
}

/// Tokens, of which the last ones of some sequences are masked.
fn inputs(s: Shape, batch: usize) -> Vec<Tensor> {
    let n = batch * s.tokens;
    let ids = (0..n).map(|i| (i * 17 + 3) as i64 % 50).collect();
    let mask =
        (0..n).map(|i| i64::from(i % s.tokens < s.tokens - i / s.tokens % 3 * (s.tokens / 4))).collect();
    [ids, mask].map(|t| Tensor::from_i64(&[batch, s.tokens], t)).to_vec()
}

const SHAPES: [Shape; 4] = [
    Shape { layers: 2, width: 64, heads: 4, tokens: 19 },
    Shape { layers: 1, width: 128, heads: 2, tokens: 128 },
    Shape { layers: 1, width: 96, heads: 3, tokens: 70 },
    Shape { layers: 1, width: 42, heads: 7, tokens: 1 },
];

#[test]
fn quantised_transformers_equal_the_interpreter_bit_for_bit() {
    for s in SHAPES {
        for pairs in [Pairs::Inputs, Pairs::Everywhere] {
            let g = bert(pairs, s, Positions::Constant);
            for isa in Isa::available() {
                for threads in [1, 2, 3] {
                    let options = Options { isa: Some(isa), threads: Some(threads), ..Options::default() };
                    let mut session = Session::new(&g, &options).unwrap();
                    for batch in [1, 3] {
                        let x = inputs(s, batch);
                        let want = interp::run(session.lowered(), &x).unwrap();
                        let got = session.run(&x).unwrap();
                        // The last step is a tanh of f32, which every row takes from the same function.
                        assert_eq!(got, want, "{s:?} {pairs:?} {isa} {threads} threads, batch {batch}");
                    }
                }
            }
        }
    }
}

#[test]
fn integer_ops_take_all_products_and_attentions() {
    use OpKind::*;
    for s in SHAPES {
        for pairs in [Pairs::Inputs, Pairs::Everywhere] {
            let session = Session::new(&bert(pairs, s, Positions::Constant), &Options::default()).unwrap();
            let g = session.lowered();
            let count = |kind: OpKind| g.order.iter().filter(|&&op| g.op_kind[op] == kind).count();
            assert_eq!(count(QGemm), 6 * s.layers + 2);
            assert_eq!(count(QAttention), s.layers);
            assert_eq!(count(AddNorm), 2 * s.layers + 1);
            // The last layer's products of what the classifier does not read are left out: one token's stay.
            let rank_2 =
                |op: &&lacuna_ir::OpId| g.op_kind[**op] == QGemm && g.shape(g.outputs_of(**op)[0]).len() == 2;
            assert_eq!(g.order.iter().filter(rank_2).count(), 6);
            for kind in [MatMul, Gemm, Softmax, LayerNormalization, Reshape, Transpose] {
                assert_eq!(count(kind), 0, "{kind:?}");
            }
        }
    }
}

/// What lowering computes is what the pairs mean, up to roundings that fall the other way.
#[test]
fn lowered_transformers_compute_what_the_file_says() {
    for s in SHAPES {
        let x = inputs(s, 2);
        for pairs in [Pairs::None, Pairs::Inputs, Pairs::Everywhere] {
            let g = bert(pairs, s, Positions::Constant);
            let want = interp::run(&g, &x).unwrap();
            let got = Session::new(&g, &Options::default()).unwrap().run(&x).unwrap();
            let (got, want) = (got[0].as_f32().unwrap(), want[0].as_f32().unwrap());
            let worst = got.iter().zip(want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            let size = want.iter().fold(0.0f32, |m, b| m.max(b.abs()));
            let bound = if pairs == Pairs::None { 1e-4 } else { 0.05 };
            assert!(worst <= bound * size.max(1.0), "{s:?} {pairs:?}: {worst} off {size}");
        }
    }
}

/// One session serves sequences of any length: each length gives what a session for that length gives.
#[test]
fn any_length_gives_what_its_own_session_gives() {
    let shape = |tokens| Shape { layers: 1, width: 64, heads: 2, tokens };
    for pairs in [Pairs::None, Pairs::Inputs, Pairs::Everywhere] {
        let any = bert(pairs, shape(1), Positions::GivenForAnyLength);
        let mut any = Session::new(&any, &Options::default()).unwrap();
        for (batch, tokens) in [(1, 19), (3, 70), (1, 1), (2, 19), (1, 130)] {
            let s = shape(tokens);
            let mut x = inputs(s, batch);
            let places = (0..batch * tokens).map(|i| (i % tokens) as i64).collect();
            x.push(Tensor::from_i64(&[batch, tokens], places));
            let fixed = bert(pairs, s, Positions::Given);
            let want = Session::new(&fixed, &Options::default()).unwrap().run(&x).unwrap();
            let got = any.run(&x).unwrap();
            if pairs != Pairs::None {
                assert_eq!(got, want, "{pairs:?}, {batch} sequences of {tokens}");
                assert_eq!(interp::run(any.lowered(), &x).unwrap(), want);
                continue;
            }
            // Kernels that another length would choose add in another order.
            let (got, want) = (got[0].as_f32().unwrap(), want[0].as_f32().unwrap());
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5), "{got:?}, not {want:?}");
        }
    }
}

/// Shapes that are computed in ops, as exports of dynamic batch and length have them, cost nothing: the same ops are left,
/// and the same session serves any length.
#[test]
fn shapes_in_ops_lower_to_the_same_steps() {
    if OpKind::from_name("Shape").is_none() {
        println!("SKIP shapes_in_ops_lower_to_the_same_steps: there is no Shape op (1 skipped)");
        return;
    }
    let s = Shape { layers: 2, width: 64, heads: 4, tokens: 19 };
    for pairs in [Pairs::None, Pairs::Inputs, Pairs::Everywhere] {
        let [plain, in_ops] =
            [false, true].map(|in_ops| bert_with(pairs, s, Positions::GivenForAnyLength, in_ops));
        assert!(in_ops.order.len() > plain.order.len());
        let [mut plain, mut in_ops] = [plain, in_ops].map(|g| Session::new(&g, &Options::default()).unwrap());
        let kinds =
            |s: &Session| s.lowered().order.iter().map(|&op| s.lowered().op_kind[op]).collect::<Vec<_>>();
        assert_eq!(kinds(&in_ops), kinds(&plain), "{pairs:?}");
        assert!(in_ops.steps().iter().all(|step| step.kernel != "reference"), "{pairs:?}");
        for (batch, tokens) in [(1, 19), (3, 70), (2, 1)] {
            let s = Shape { tokens, ..s };
            let mut x = inputs(s, batch);
            let places = (0..batch * tokens).map(|i| (i % tokens) as i64).collect();
            x.push(Tensor::from_i64(&[batch, tokens], places));
            assert_eq!(in_ops.run(&x).unwrap(), plain.run(&x).unwrap(), "{pairs:?} {batch} x {tokens}");
        }
    }
}

/// A table of positions that is shorter than the usual length bounds the first binding, and refuses longer runs.
#[test]
fn a_network_of_short_sequences_makes_a_session() {
    let short = lacuna_ir::text::parse(
        "graph g
input %x: f32[n,t,4]
const %p: f32[3,4] = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0}
%y: f32[n,3,4] = Add(%x, %p)
output %y",
    );
    let mut session = Session::new(&short.unwrap(), &Options::default()).unwrap();
    assert_eq!(session.run(&[Tensor::from_f32(&[2, 3, 4], vec![1.0; 24])]).unwrap()[0].dims, [2, 3, 4]);
    assert!(session.run(&[Tensor::from_f32(&[2, 5, 4], vec![1.0; 40])]).is_err());
}
