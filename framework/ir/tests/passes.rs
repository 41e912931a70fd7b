//! Passes keep what a graph computes; the verifier notices what breaks one.

use lacuna_ir::op::*;
use lacuna_ir::passes::{self, PASSES};
use lacuna_ir::{
    Attr, DType, Def, Dim, Elements, Graph, OpId, OpKind, Tensor, ValueId, interp, text, verify,
};

// ---- random graphs ---------------------------------------------------------------------------------

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % n
    }

    /// In -1..1.
    fn float(&mut self) -> f32 {
        self.below(2001) as f32 / 1000.0 - 1.0
    }

    fn tensor(&mut self, dims: &[usize]) -> Tensor {
        let n = dims.iter().product();
        Tensor::from_f32(dims, (0..n).map(|_| self.float()).collect())
    }
}

struct Build {
    g: Graph,
    rng: Rng,
    /// f32 values of four dimensions, the batch first.
    planes: Vec<ValueId>,
}

impl Build {
    fn op(&mut self, kind: OpKind, attr: Attr, inputs: &[ValueId]) -> ValueId {
        let name = format!("{}{}", kind.name().to_lowercase(), self.g.op_kind.len());
        // Now and then a name that another value has.
        let out = if self.rng.below(8) == 0 { "same".to_string() } else { name.clone() };
        self.g.add_op(kind, attr, &name, inputs, &[&out]).unwrap_or_else(|e| panic!("{e}"))[0]
    }

    fn constant(&mut self, dims: &[usize]) -> ValueId {
        let t = self.rng.tensor(dims);
        let name = format!("c{}.weight", self.g.consts.len());
        self.g.add_tensor(&name, &t)
    }

    fn dims(&self, v: ValueId) -> [usize; 3] {
        let d: Vec<usize> = self.g.shape(v)[1..].iter().map(|d| d.fixed().unwrap() as usize).collect();
        d.try_into().unwrap()
    }

    fn conv(&mut self, x: ValueId) -> ValueId {
        let [c, h, w] = self.dims(x);
        let group = if c.is_multiple_of(2) { 1 + self.rng.below(2) } else { 1 };
        let o = group * (1 + self.rng.below(2));
        let k = 1 + self.rng.below(h.min(w).min(3));
        let pads = std::array::from_fn(|_| self.rng.below(2) as u32);
        let stride = [1 + self.rng.below(2) as u32, 1];
        let weight = self.constant(&[o, c / group, k, k]);
        let bias = if self.rng.below(2) == 0 { self.constant(&[o]) } else { ValueId::NONE };
        let window = Window { kernel: [k as u32; 2], stride, dilation: [1, 1], pads };
        let inputs = if bias.is_none() { vec![x, weight] } else { vec![x, weight, bias] };
        self.op(OpKind::Conv, Attr::Conv(ConvAttr { window, group: group as u32 }), &inputs)
    }

    fn batch_norm(&mut self, x: ValueId, channels: usize) -> ValueId {
        let [scale, bias, mean] = [0; 3].map(|_| self.constant(&[channels]));
        let var = (0..channels).map(|_| self.rng.float().abs() + 0.5).collect();
        let var = self.g.add_tensor("var", &Tensor::from_f32(&[channels], var));
        self.op(OpKind::BatchNormalization, Attr::Epsilon(1e-5), &[x, scale, bias, mean, var])
    }

    /// A constant of `dims` that an op computes.
    fn computed(&mut self, dims: &[usize]) -> ValueId {
        let (a, b) = (self.constant(dims), self.constant(&[1]));
        let kind = [OpKind::Add, OpKind::Mul, OpKind::Sub][self.rng.below(3)];
        let v = self.op(kind, Attr::None, &[a, b]);
        if self.rng.below(2) == 0 { self.op(OpKind::Identity, Attr::None, &[v]) } else { v }
    }

    fn quantise(&mut self, x: ValueId) -> ValueId {
        let scale = self.g.add_tensor("scale", &Tensor::from_f32(&[], vec![0.05]));
        let zero = self.g.add_tensor("zero", &Tensor::from_u8(&[], vec![120]));
        let q = self.op(OpKind::QuantizeLinear, Attr::Axis(1), &[x, scale, zero]);
        self.op(OpKind::DequantizeLinear, Attr::Axis(1), &[q, scale, zero])
    }

    fn step(&mut self) {
        let x = self.planes[self.rng.below(self.planes.len())];
        let [c, h, w] = self.dims(x);
        let clip = Attr::Clip(ClipAttr { min: -0.5, max: 1.5 });
        let y = match self.rng.below(10) {
            0 => self.conv(x),
            1 | 2 => {
                let y = self.conv(x);
                let channels = self.dims(y)[0];
                self.batch_norm(y, channels)
            }
            3 => self.batch_norm(x, c),
            4 => self.op(OpKind::Relu, Attr::None, &[x]),
            5 => self.op(OpKind::Clip, clip, &[x]),
            6 => self.op(OpKind::Identity, Attr::None, &[x]),
            7 => {
                let side = if self.rng.below(2) == 0 { self.computed(&[c, 1, 1]) } else { x };
                self.op(OpKind::Add, Attr::None, &[x, side])
            }
            8 if h > 1 && w > 1 => {
                let window = Window { kernel: [2; 2], stride: [1; 2], dilation: [1; 2], pads: [0; 4] };
                let attr = Attr::Pool(PoolAttr { window, ceil_mode: false, count_include_pad: false });
                let kind = if self.rng.below(2) == 0 { OpKind::MaxPool } else { OpKind::AveragePool };
                self.op(kind, attr, &[x])
            }
            _ => self.quantise(x),
        };
        self.planes.push(y);
    }

    /// Flatten, Gemm, and sometimes a normalisation.
    fn head(&mut self) -> ValueId {
        let x = *self.planes.last().unwrap();
        let k: usize = self.dims(x).iter().product();
        let flat = self.op(OpKind::Flatten, Attr::Axis(1), &[x]);
        let trans_b = self.rng.below(2) == 0;
        let w = self.constant(&if trans_b { [3, k] } else { [k, 3] });
        let c = if self.rng.below(2) == 0 { self.constant(&[3]) } else { self.constant(&[1, 1]) };
        let gemm = Attr::Gemm(GemmAttr { alpha: 0.5, beta: 2.0, trans_a: false, trans_b });
        let y = self.op(OpKind::Gemm, gemm, &[flat, w, c]);
        if self.rng.below(2) == 0 { self.batch_norm(y, 3) } else { y }
    }
}

/// A valid graph that a seed decides.
fn random_graph(seed: u64) -> Graph {
    let mut b = Build { g: Graph::new("random"), rng: Rng(seed | 1), planes: Vec::new() };
    let n = Dim::Symbol(b.g.symbol("n"));
    let c = 1 + b.rng.below(4) as u64;
    let x = b.g.add_input("x", DType::F32, &[n, Dim::Fixed(c), Dim::Fixed(5), Dim::Fixed(6)]);
    b.planes.push(x);
    for _ in 0..2 + b.rng.below(8) {
        b.step();
    }
    let mut outputs = vec![b.head()];
    // Another output, which may be an Identity, an input, or read by others.
    let extra = b.planes[b.rng.below(b.planes.len())];
    if b.g.value_name[extra] != b.g.value_name[outputs[0]] {
        outputs.push(extra);
    }
    b.g.outputs = outputs;
    b.g
}

fn feed(g: &Graph, seed: u64) -> Vec<Tensor> {
    let mut rng = Rng(seed | 1);
    let dims =
        |v: ValueId| -> Vec<usize> { g.shape(v).iter().map(|d| d.fixed().unwrap_or(2) as usize).collect() };
    g.inputs.iter().map(|&v| rng.tensor(&dims(v))).collect()
}

fn same_bits(a: &[Tensor], b: &[Tensor]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.dims == b.dims && a.bytes() == b.bytes())
}

// ---- passes ----------------------------------------------------------------------------------------

#[test]
fn passes_keep_results_and_outputs_names() {
    let mut rewrites = vec![0; PASSES.len()];
    for seed in 0..400u64 {
        let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xd1b5_4a32_d192_ed03;
        let mut g = random_graph(seed);
        verify::verify(&g).unwrap();
        let inputs = feed(&g, seed);
        let quantised = g.op_kind.as_slice().contains(&OpKind::QuantizeLinear);
        let names: Vec<String> = g.outputs.iter().map(|&v| g.value_name[v].clone()).collect();
        let mut before = interp::run(&g, &inputs).unwrap();
        for (at, pass) in PASSES.iter().enumerate() {
            let text = text::print_full(&g);
            rewrites[at] += (pass.run)(&mut g).unwrap();
            verify::verify(&g).unwrap_or_else(|e| panic!("seed {seed:x}, {}: {e}\n{text}", pass.name));
            let after = interp::run(&g, &inputs).unwrap();
            if pass.name == "fold_batch_norm" {
                assert!(close(&before, &after, quantised), "seed {seed:x}: {before:?}\n{after:?}\n{text}");
            } else {
                assert!(same_bits(&before, &after), "seed {seed:x}, {}\n{text}", pass.name);
            }
            let now: Vec<&String> = g.outputs.iter().map(|&v| &g.value_name[v]).collect();
            assert!(names.iter().eq(now), "seed {seed:x}, {}: outputs are renamed", pass.name);
            before = after;
        }
    }
    // The graphs must have given every pass something to do.
    assert!(rewrites.iter().all(|&n| n > 50), "{rewrites:?}");
}

/// Equal but for roundings: 1e-4 of the largest element. A rounding that flips a quantiser moves a value by its
/// step (0.05), which the weights after it can enlarge; only the shape and finiteness are asked for then.
fn close(a: &[Tensor], b: &[Tensor], quantised: bool) -> bool {
    a.iter().zip(b).all(|(a, b)| {
        let (x, y) = (a.as_f32().unwrap(), b.as_f32().unwrap());
        let largest = x.iter().fold(1.0f32, |m, x| m.max(x.abs()));
        let near = |(x, y): (&f32, &f32)| {
            if quantised { y.is_finite() } else { (x - y).abs() <= 1e-4 * largest }
        };
        a.dims == b.dims && x.iter().zip(y).all(near)
    })
}

#[test]
fn random_graphs_survive_their_text() {
    for seed in 1..200u64 {
        let g = random_graph(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let full = text::print_full(&g);
        let back = text::parse(&full).unwrap_or_else(|e| panic!("{e}\n{full}"));
        assert_eq!(text::print_full(&back), full);
        let inputs = feed(&g, seed);
        assert!(same_bits(&interp::run(&g, &inputs).unwrap(), &interp::run(&back, &inputs).unwrap()));
        let compact = g.compact();
        verify::verify(&compact).unwrap();
        assert!(same_bits(&interp::run(&g, &inputs).unwrap(), &interp::run(&compact, &inputs).unwrap()));
    }
}

fn parse(source: &str) -> Graph {
    text::parse(source).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn batch_norm_folds_with_one_rounding() {
    // s = 3 / sqrt(8 + 1) = 1 and 4 / sqrt(63 + 1) = 0.5: exact.
    let source = "graph g
input %x: f32[n,1,1,1]
const %a.weight: f32[2,1,1,1] = {2.0, 3.0}
const %a.bias: f32[2] = {1.0, 2.0}
const %scale: f32[2] = {3.0, 4.0}
const %shift: f32[2] = {10.0, 20.0}
const %mean: f32[2] = {5.0, 6.0}
const %var: f32[2] = {8.0, 63.0}
%a: f32[n,2,1,1] = Conv(%x, %a.weight, %a.bias) kernel=[1,1]  # a
%y: f32[n,2,1,1] = BatchNormalization(%a, %scale, %shift, %mean, %var) epsilon=1.0  # norm
output %y";
    let mut g = parse(source);
    assert_eq!(passes::fold_batch_norm(&mut g), Ok(1));
    passes::drop_dead(&mut g).unwrap();
    let want = "graph g
input %x: f32[n,1,1,1]
const %a.weight: f32[2,1,1,1] = {2.0, 1.5}
const %a.bias: f32[2] = {6.0, 18.0}
%y: f32[n,2,1,1] = Conv(%x, %a.weight, %a.bias) kernel=[1,1]  # a
output %y
";
    assert_eq!(text::print(&g), want);

    // The result in between is an output, is read twice, or the variance is negative: nothing folds.
    for (from, to) in [
        ("output %y", "output %y\noutput %a"),
        ("output %y", "%z: f32[n,2,1,1] = Add(%a, %y)\noutput %z"),
        ("{8.0, 63.0}", "{-8.0, 63.0}"),
    ] {
        let mut g = parse(&source.replace(from, to));
        let before = text::print_full(&g);
        assert_eq!(passes::fold_batch_norm(&mut g), Ok(0));
        assert_eq!(text::print_full(&g), before);
    }
}

#[test]
fn two_norms_in_a_row_fold_one_at_a_time() {
    let mut g = parse(
        "graph g
input %x: f32[n,1,1,1]
const %w: f32[1,1,1,1] = {2.0}
const %one: f32[1] = {1.0}
const %zero: f32[1] = {0.0}
%a: f32[n,1,1,1] = Conv(%x, %w) kernel=[1,1]
%b: f32[n,1,1,1] = BatchNormalization(%a, %one, %zero, %one, %one) epsilon=0.0
%c: f32[n,1,1,1] = BatchNormalization(%b, %one, %one, %zero, %one) epsilon=0.0
output %c",
    );
    let inputs = [Tensor::from_f32(&[1, 1, 1, 1], vec![7.0])];
    assert_eq!(interp::run(&g, &inputs).unwrap()[0].as_f32().unwrap(), [14.0]);
    for want in [1, 1, 0] {
        assert_eq!(passes::fold_batch_norm(&mut g), Ok(want));
        verify::verify(&g).unwrap();
        assert_eq!(interp::run(&g, &inputs).unwrap()[0].as_f32().unwrap(), [14.0]);
    }
}

#[test]
fn constants_fold_but_not_what_dequantises_or_fails() {
    let mut g = parse(
        "graph g
const %a: i32[2] = {6, 7}
const %z: i32[1] = {0}
const %q: i8[2] = {-3, 4}
const %s: f32[] = {0.5}
const %qz: i8[] = {1}
%sum: i32[2] = Add(%a, %a)
%twice: i32[2] = Mul(%sum, %a)
%bad: i32[2] = Div(%twice, %z)
%w: f32[2] = DequantizeLinear(%q, %s, %qz) axis=0
output %twice
output %bad
output %w",
    );
    assert_eq!(passes::fold_const(&mut g), Ok(2));
    assert_eq!(passes::drop_dead(&mut g), Ok(0));
    verify::verify(&g).unwrap();
    let text = text::print(&g);
    assert!(text.contains("const %twice: i32[2] = {72, 98}"), "{text}");
    assert!(
        text.contains("%bad: i32[2] = Div(%twice, %z)") && text.contains("DequantizeLinear(%q"),
        "{text}"
    );
    assert!(!text.contains("const %a:"), "{text}");
}

#[test]
fn constants_that_would_grow_too_large_stay_ops() {
    let side = (passes::FOLD_ELEMENTS_MAX as f64).sqrt() as usize + 1;
    let mut g = Graph::new("g");
    let a = g.add_tensor("a", &Tensor::zeros(DType::F32, &[side, 1]));
    let b = g.add_tensor("b", &Tensor::zeros(DType::F32, &[1, side]));
    g.outputs = g.add_op(OpKind::Add, Attr::None, "sum", &[a, b], &["sum"]).unwrap();
    assert_eq!(passes::fold_const(&mut g), Ok(0));
    assert_eq!(g.order.len(), 1);
}

#[test]
fn identities_go_unless_an_output_needs_them() {
    // An input cannot be called %a too; %r is an output itself; of %b and %c one can give %s its name.
    let mut g = parse(
        "graph g
input %x: f32[n]
%a: f32[n] = Identity(%x)
%r: f32[n] = Relu(%x)
%q: f32[n] = Identity(%r)
%i: f32[n] = Identity(%x)
%s: f32[n] = Sqrt(%i)
%j: f32[n] = Identity(%s)
%b: f32[n] = Identity(%j)
%c: f32[n] = Identity(%j)
output %a
output %q
output %r
output %b
output %c",
    );
    assert_eq!(passes::drop_identity(&mut g), Ok(3));
    verify::verify(&g).unwrap();
    let want = "graph g
input %x: f32[n]
%a: f32[n] = Identity(%x)
%r: f32[n] = Relu(%x)
%q: f32[n] = Identity(%r)
%b: f32[n] = Sqrt(%x)
%c: f32[n] = Identity(%b)
output %a
output %q
output %r
output %b
output %c
";
    assert_eq!(text::print(&g), want);
}

#[test]
fn simplify_reports_each_pass() {
    let mut g =
        parse("graph g\ninput %x: f32[n]\n%i: f32[n] = Identity(%x)\n%y: f32[n] = Relu(%i)\noutput %y");
    let report = passes::simplify(&mut g).unwrap();
    assert_eq!(report, [("drop_identity", 1), ("fold_const", 0), ("fold_batch_norm", 0), ("drop_dead", 0)]);
    assert_eq!(text::print(&g), "graph g\ninput %x: f32[n]\n%y: f32[n] = Relu(%x)\noutput %y\n");
}

// ---- the verifier ----------------------------------------------------------------------------------

#[test]
fn the_verifier_notices_each_broken_invariant() {
    let source = "graph g
input %x: f32[n,2]
const %c: f32[2] = {1.0, 2.0}
%a: f32[n,2] = Add(%x, %c)  # a
%b: f32[n,2] = Relu(%a)  # b
output %b";
    type Break = fn(&mut Graph);
    assert_eq!(parse(source).value_name.as_slice(), ["x", "c", "a", "b"]);
    let breaks: [(&str, Break); 16] = [
        ("read", |g| g.order.swap(0, 1)),
        ("reads 'a' before", |g| g.order.retain(|op| op.0 != 0)),
        ("twice", |g| g.order.push(OpId(0))),
        ("does not exist", |g| g.order.push(OpId(9))),
        ("not in the order", |g| g.order.truncate(1)),
        ("value that does not exist", |g| g.operands[0] = ValueId(99)),
        ("input 0 is absent", |g| g.operands[0] = ValueId::NONE),
        ("inferred is", |g| g.value_dtype[ValueId(3)] = DType::I32),
        ("inferred is", |g| g.dims.swap(3, 4)),
        ("outside the pool", |g| g.value_shape[ValueId(0)].start = u32::MAX),
        ("defined otherwise", |g| g.value_def[ValueId(3)] = Def::Input),
        ("defined by nothing", |g| g.inputs.clear()),
        ("do not fill", |g| g.consts = [bytes_of(7)].into_iter().fold(Default::default(), push)),
        ("carries None attributes, not Axis", |g| g.op_attr[OpId(1)] = Attr::Axis(0)),
        ("distinct", |g| g.outputs.push(ValueId(3))),
        ("not empty", |g| g.value_name[ValueId(0)].clear()),
    ];
    for (why, brk) in breaks {
        let mut g = parse(source);
        brk(&mut g);
        let error = verify::verify(&g).expect_err(why).to_string();
        assert!(error.contains(why), "{why}: {error}");
    }
}

fn bytes_of(n: usize) -> bytes::Bytes {
    bytes::Bytes::from(vec![0; n])
}

fn push<I: lacuna_ir::Id, T>(mut column: lacuna_ir::IdVec<I, T>, row: T) -> lacuna_ir::IdVec<I, T> {
    column.push(row);
    column
}

#[test]
fn tensors_of_every_type_keep_their_bytes() {
    for dtype in DType::ALL {
        let bytes: Vec<u8> = (0..6 * dtype.size()).map(|i| i as u8).collect();
        let t = Tensor::from_bytes(dtype, &[2, 3], &bytes).unwrap();
        assert_eq!((t.dtype(), t.bytes(), t.len()), (dtype, &bytes[..], 6));
        assert!(Tensor::from_bytes(dtype, &[2, 4], &bytes).is_none());
        assert!(Tensor::from_bytes(dtype, &[usize::MAX, 2], &bytes).is_none());
        assert!(Tensor::from_bytes(dtype, &[0, usize::MAX], &[]).is_none());
        assert!(!matches!(Tensor::zeros(dtype, &[1]).elements, Elements::F32(_)) || dtype == DType::F32);
    }
}
