//! One small graph, or a few, for every op that ONNX has: what the round trip and the comparison with
//! onnxruntime iterate. Inputs are random but the same in every run.
#![allow(dead_code)] // Each test file uses its part.

pub mod build;
pub mod flow;
pub mod foreign;
pub mod table;
pub mod traps;

use lacuna_ir::op::*;
use lacuna_ir::{Attr, DType, Dim, Graph, OpKind, Tensor, ValueId};

pub struct Case {
    pub name: String,
    pub graph: Graph,
    pub inputs: Vec<Tensor>,
}

/// splitmix64 (Steele et al., OOPSLA 2014).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e3779b97f4a7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        z ^ (z >> 31)
    }

    /// In -2..2.
    pub fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    }

    pub fn tensor(&mut self, dtype: DType, dims: &[usize]) -> Tensor {
        let n: usize = dims.iter().product();
        match dtype {
            DType::F32 => Tensor::from_f32(dims, (0..n).map(|_| self.float()).collect()),
            DType::I64 => Tensor::from_i64(dims, (0..n).map(|_| self.bits() as i64 % 100).collect()),
            DType::I32 => Tensor::from_i32(dims, (0..n).map(|_| self.bits() as i32 % 1000).collect()),
            DType::U8 => Tensor::from_u8(dims, (0..n).map(|_| self.bits() as u8).collect()),
            DType::I8 => Tensor::from_i8(dims, (0..n).map(|_| self.bits() as i8).collect()),
            DType::Bool => Tensor::from_bool(dims, (0..n).map(|_| self.bits() as u8 & 1).collect()),
        }
    }

    /// As [`Random::tensor`] of f32, in 0.5..4.5: for divisors, variances, scales.
    pub fn positive(&mut self, dims: &[usize]) -> Tensor {
        let n: usize = dims.iter().product();
        Tensor::from_f32(dims, (0..n).map(|_| self.float() + 2.5).collect())
    }
}

/// Collects cases. `x[batch, ..]` has a symbolic batch, bound to 3.
pub struct Cases {
    pub cases: Vec<Case>,
    random: Random,
}

const BATCH: usize = 3;

impl Cases {
    /// A graph of one op. `x`: an input with symbolic batch; then constants.
    fn one(&mut self, label: &str, kind: OpKind, attr: Attr, x: (DType, &[usize]), consts: Vec<Tensor>) {
        let data = self.random.tensor(x.0, x.1);
        self.given(label, kind, attr, data, consts);
    }

    fn random(&mut self, dtype: DType, dims: &[usize]) -> Tensor {
        self.random.tensor(dtype, dims)
    }

    /// Floats of -2..2, scaled and shifted.
    fn float(&mut self, dims: &[usize], scale: f32, shift: f32) -> Tensor {
        let n = dims.iter().product();
        Tensor::from_f32(dims, (0..n).map(|_| self.random.float() * scale + shift).collect())
    }

    /// As `one`, where some constants are absent.
    fn absent(
        &mut self,
        label: &str,
        kind: OpKind,
        attr: Attr,
        x: (DType, &[usize]),
        consts: Vec<Option<Tensor>>,
    ) {
        let data = self.random.tensor(x.0, x.1);
        self.add(label, kind, attr, data, consts);
    }

    fn given(&mut self, label: &str, kind: OpKind, attr: Attr, x: Tensor, consts: Vec<Tensor>) {
        self.add(label, kind, attr, x, consts.into_iter().map(Some).collect());
    }

    fn add(&mut self, label: &str, kind: OpKind, attr: Attr, x: Tensor, consts: Vec<Option<Tensor>>) {
        let name = format!("{}_{label}", kind.name());
        let mut g = Graph::new(&name);
        let batch = g.symbol("batch");
        let dims: Vec<Dim> = x.dims.iter().map(|&d| Dim::Fixed(d as u64)).collect();
        let mut dims = dims;
        if dims.first() == Some(&Dim::Fixed(BATCH as u64)) {
            dims[0] = Dim::Symbol(batch);
        }
        let mut operands = vec![g.add_input("x", x.dtype(), &dims)];
        for (i, c) in consts.iter().enumerate() {
            operands.push(c.as_ref().map_or(ValueId::NONE, |c| g.add_tensor(&format!("c{i}"), c)));
        }
        let results = lacuna_ir::shape::infer(&g, kind, &attr, &operands).map_or(1, |facts| facts.len());
        let y = g.add_op(kind, attr, "the op", &operands, &["y", "y1", "y2", "y3"][..results]);
        g.outputs = y.unwrap_or_else(|e| panic!("{name}: {e}"));
        g.metadata.push(("case".to_string(), name.clone()));
        self.cases.push(Case { name, graph: g, inputs: vec![x] });
    }
}

fn window(kernel: [u32; 2], stride: [u32; 2], dilation: [u32; 2], pads: [u32; 4]) -> Window {
    Window { kernel, stride, dilation, pads }
}

pub fn axes(a: &[i64]) -> Axes {
    Axes::new(a).unwrap()
}

/// At least one case for every op of the model level; `every_model_op_has_a_case` asks for that.
pub fn cases() -> Vec<Case> {
    let mut c = Cases { cases: Vec::new(), random: Random(7) };
    windows(&mut c);
    products(&mut c);
    elementwise(&mut c);
    table::elementwise(&mut c);
    table::along_axes(&mut c);
    table::parts(&mut c);
    table::by_index(&mut c);
    table::windows(&mut c);
    table::images(&mut c);
    table::sums(&mut c);
    reductions_and_layout(&mut c);
    quantisation(&mut c);
    c.cases.push(several_ops(&mut c.random));
    c.cases.extend(flow::cases());
    c.cases
}

fn windows(c: &mut Cases) {
    let convs = [
        ("3x3", [8, 5, 3, 3], 1, window([3, 3], [1, 1], [1, 1], [1, 1, 1, 1])),
        ("stride", [8, 5, 3, 2], 1, window([3, 2], [2, 3], [1, 1], [0, 1, 2, 0])),
        ("dilated", [4, 5, 2, 3], 1, window([2, 3], [1, 2], [3, 2], [2, 2, 1, 1])),
        ("depthwise", [5, 1, 3, 3], 5, window([3, 3], [1, 1], [1, 1], [1, 1, 1, 1])),
    ];
    for (label, w, group, window) in convs {
        let dims: Vec<usize> = w.to_vec();
        let weight = c.random.tensor(DType::F32, &dims);
        let bias = c.random.tensor(DType::F32, &dims[..1]);
        let attr = Attr::Conv(ConvAttr { window, group });
        c.one(label, OpKind::Conv, attr, (DType::F32, &[BATCH, 5, 9, 8]), vec![weight.clone(), bias]);
        c.one(&format!("{label}_nobias"), OpKind::Conv, attr, (DType::F32, &[BATCH, 5, 9, 8]), vec![weight]);
    }
    let pool =
        |window, ceil_mode, count_include_pad| Attr::Pool(PoolAttr { window, ceil_mode, count_include_pad });
    let x: (DType, &[usize]) = (DType::F32, &[BATCH, 4, 9, 8]);
    let two = window([2, 2], [2, 2], [1, 1], [0; 4]);
    let three = window([3, 3], [2, 2], [1, 1], [1; 4]);
    c.one("2x2", OpKind::MaxPool, pool(two, false, false), x, vec![]);
    c.one("padded", OpKind::MaxPool, pool(three, false, false), x, vec![]);
    c.one("ceil", OpKind::MaxPool, pool(three, true, false), x, vec![]);
    c.one(
        "dilated",
        OpKind::MaxPool,
        pool(window([2, 3], [1, 1], [2, 2], [1, 0, 1, 2]), false, false),
        x,
        vec![],
    );
    c.one("2x2", OpKind::AveragePool, pool(two, false, false), x, vec![]);
    c.one("padded", OpKind::AveragePool, pool(three, false, false), x, vec![]);
    c.one("counted", OpKind::AveragePool, pool(three, false, true), x, vec![]);
    c.one("ceil", OpKind::AveragePool, pool(two, true, false), x, vec![]);
    c.one("global", OpKind::GlobalAveragePool, Attr::None, x, vec![]);
}

fn products(c: &mut Cases) {
    for (label, trans_a, trans_b, bias) in [
        ("plain", false, false, Some(vec![7])),
        ("nobias", false, true, None),
        ("column", false, true, Some(vec![BATCH, 1])),
        ("trans_a", true, false, Some(vec![1, 7])),
    ] {
        let attr = Attr::Gemm(GemmAttr { alpha: 0.5, beta: 2.0, trans_a, trans_b });
        let x: &[usize] = if trans_a { &[6, 5] } else { &[BATCH, 6] };
        let mut consts = vec![c.random.tensor(DType::F32, if trans_b { &[7, 6] } else { &[6, 7] })];
        consts.extend(bias.map(|dims| c.random.tensor(DType::F32, &dims)));
        let mut data = c.random.tensor(DType::F32, x);
        if label == "column" {
            data = c.random.tensor(DType::F32, &[1, 6]); // Batch 1: not symbolic.
            consts[1] = c.random.tensor(DType::F32, &[1, 1]);
        }
        c.given(label, OpKind::Gemm, attr, data, consts);
    }
    for (label, a, b) in [
        ("2d", vec![BATCH, 6], vec![6, 4]),
        ("batched", vec![BATCH, 2, 5, 6], vec![2, 6, 4]),
        ("vector", vec![BATCH, 6], vec![6]),
    ] {
        let b = c.random.tensor(DType::F32, &b);
        c.one(label, OpKind::MatMul, Attr::None, (DType::F32, &a), vec![b]);
    }
    let mut consts: Vec<Tensor> = (0..3).map(|_| c.random.tensor(DType::F32, &[4])).collect();
    consts.push(c.random.positive(&[4]));
    c.one("4d", OpKind::BatchNormalization, Attr::Epsilon(1e-3), (DType::F32, &[BATCH, 4, 5, 2]), consts);
}

fn elementwise(c: &mut Cases) {
    let x: (DType, &[usize]) = (DType::F32, &[BATCH, 4, 5]);
    for kind in [OpKind::Relu, OpKind::Sigmoid, OpKind::Identity, OpKind::Erf, OpKind::Tanh] {
        c.one("f32", kind, Attr::None, x, vec![]);
    }
    c.one("i64", OpKind::Identity, Attr::None, (DType::I64, &[BATCH, 4]), vec![]);
    let positive = c.random.positive(&[BATCH, 4, 5]);
    c.given("f32", OpKind::Sqrt, Attr::None, positive, vec![]);
    c.one("i64_f32", OpKind::Cast, Attr::Cast(DType::F32), (DType::I64, &[BATCH, 4]), vec![]);
    c.one("f32_i32", OpKind::Cast, Attr::Cast(DType::I32), x, vec![]);
    for (label, min, max) in [
        ("both", -0.5, 1.5),
        ("min", -0.5, f32::INFINITY),
        ("max", f32::NEG_INFINITY, 0.25),
        ("none", f32::NEG_INFINITY, f32::INFINITY),
    ] {
        c.one(label, OpKind::Clip, Attr::Clip(ClipAttr { min, max }), x, vec![]);
    }
    for kind in [OpKind::Add, OpKind::Sub, OpKind::Mul, OpKind::Div] {
        let b = c.random.positive(&[4, 1]);
        c.one("broadcast", kind, Attr::None, x, vec![b]);
    }
    let b = c.random.tensor(DType::I32, &[4]);
    c.one("i32", OpKind::Add, Attr::None, (DType::I32, &[BATCH, 4]), vec![b]);
}

fn reductions_and_layout(c: &mut Cases) {
    let x: (DType, &[usize]) = (DType::F32, &[BATCH, 4, 5]);
    for (label, list, keep_dims) in [
        ("spatial", vec![1, 2], true),
        ("last", vec![-1], false),
        ("all", vec![], true),
        ("all_gone", vec![], false),
    ] {
        c.one(
            label,
            OpKind::ReduceMean,
            Attr::Reduce(ReduceAttr { axes: axes(&list), keep_dims }),
            x,
            vec![],
        );
    }
    c.one("last", OpKind::Softmax, Attr::Axis(-1), x, vec![]);
    c.one("middle", OpKind::Softmax, Attr::Axis(1), x, vec![]);
    c.one("batch", OpKind::Reshape, Attr::None, x, vec![Tensor::from_i64(&[3], vec![0, 2, -1])]);
    c.one("two", OpKind::Unsqueeze, Attr::Axes(axes(&[1, -1])), x, vec![]);
    c.one("one", OpKind::Squeeze, Attr::Axes(axes(&[-2])), (DType::F32, &[BATCH, 1, 5]), vec![]);
    c.one("all", OpKind::Squeeze, Attr::Axes(axes(&[])), (DType::F32, &[BATCH, 1, 5, 1]), vec![]);
    c.one("row", OpKind::Gather, Attr::Axis(1), x, vec![Tensor::from_i64(&[], vec![-1])]);
    c.one("some", OpKind::Gather, Attr::Axis(-1), x, vec![Tensor::from_i64(&[2, 2], vec![4, 0, 1, -2])]);
    let (scale, bias) = (c.random.tensor(DType::F32, &[5]), c.random.tensor(DType::F32, &[5]));
    let norm = |axis| Attr::Norm(NormAttr { axis, epsilon: 1e-3 });
    c.one("last", OpKind::LayerNormalization, norm(-1), x, vec![scale, bias]);
    let scale = c.random.tensor(DType::F32, &[4, 5]);
    c.one("nobias", OpKind::LayerNormalization, norm(1), x, vec![scale]);
    c.one("first", OpKind::Flatten, Attr::Axis(1), x, vec![]);
    c.one("back", OpKind::Flatten, Attr::Axis(-2), x, vec![]);
    c.one("nhwc", OpKind::Transpose, Attr::Perm(axes(&[0, 2, 1])), x, vec![]);
    c.one("reverse", OpKind::Transpose, Attr::Perm(axes(&[])), x, vec![]);
    let (a, b) = (c.random.tensor(DType::F32, &[2, 3, 5]), c.random.tensor(DType::F32, &[2, 1, 5]));
    c.one("middle", OpKind::Concat, Attr::Axis(-2), (DType::F32, &[2, 4, 5]), vec![a, b]);
    let attr = Attr::Resize(ResizeAttr { scale: [2, 3] });
    c.one("uneven", OpKind::Resize, attr, (DType::F32, &[BATCH, 4, 5, 3]), vec![]);
    let b = c.random.tensor(DType::I64, &[2]);
    c.one("i64", OpKind::Concat, Attr::Axis(0), (DType::I64, &[5]), vec![b]);
}

fn quantisation(c: &mut Cases) {
    let x: &[usize] = &[BATCH, 4, 5];
    let scale = || Tensor::from_f32(&[], vec![0.02]);
    let per_axis = || Tensor::from_f32(&[4], vec![0.5, 0.013, 0.02, 0.0078125]);
    let u8_zero = Tensor::from_u8(&[], vec![117]);
    let (quantize, dequantize) = (OpKind::QuantizeLinear, OpKind::DequantizeLinear);
    c.one("u8", quantize, Attr::Axis(1), (DType::F32, x), vec![scale(), u8_zero.clone()]);
    c.one("i8", quantize, Attr::Axis(1), (DType::F32, x), vec![scale(), Tensor::from_i8(&[], vec![-3])]);
    let zeros = Tensor::from_i8(&[4], vec![0; 4]);
    c.one("i8_axis", quantize, Attr::Axis(1), (DType::F32, x), vec![per_axis(), zeros.clone()]);
    // Halves: ties go to the even neighbour.
    let ties = Tensor::from_f32(&[8], vec![-1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.5, 1000.0]);
    let one = Tensor::from_f32(&[], vec![1.0]);
    c.given("ties", quantize, Attr::Axis(0), ties, vec![one, Tensor::from_u8(&[], vec![10])]);
    c.one("u8", dequantize, Attr::Axis(1), (DType::U8, x), vec![scale(), u8_zero]);
    c.one("i8_axis", dequantize, Attr::Axis(1), (DType::I8, x), vec![per_axis(), zeros]);
    let zeros = Tensor::from_i32(&[4], vec![0; 4]);
    c.one("i32_axis", dequantize, Attr::Axis(-2), (DType::I32, x), vec![per_axis(), zeros]);
    c.one("f32", OpKind::DynamicQuantizeLinear, Attr::None, (DType::F32, x), vec![]);
    let b = c.random.tensor(DType::I8, &[5, 3]);
    let zeros = vec![b, Tensor::from_u8(&[], vec![100]), Tensor::from_i8(&[], vec![3])];
    c.one("zeros", OpKind::MatMulInteger, Attr::None, (DType::U8, x), zeros);
    let b = c.random.tensor(DType::U8, &[5, 3]);
    c.one("plain", OpKind::MatMulInteger, Attr::None, (DType::U8, x), vec![b]);
    let conv = ConvAttr { window: window([3, 2], [2, 1], [1, 1], [1, 0, 1, 1]), group: 2 };
    let w = c.random.tensor(DType::U8, &[6, 2, 3, 2]);
    let zeros = vec![w, Tensor::from_u8(&[], vec![100]), Tensor::from_u8(&[], vec![120])];
    c.one("grouped", OpKind::ConvInteger, Attr::Conv(conv), (DType::U8, &[BATCH, 4, 6, 5]), zeros);
}

/// A quantised residual block: two inputs, two outputs, values read twice, a constant read twice.
fn several_ops(random: &mut Random) -> Case {
    let mut g = Graph::new("block");
    let batch = Dim::Symbol(g.symbol("batch"));
    let dims = [batch, Dim::Fixed(4), Dim::Fixed(6), Dim::Fixed(6)];
    let (a, b) = (g.add_input("in a", DType::F32, &dims), g.add_input("b", DType::F32, &dims));
    let scale = g.add_tensor("act.scale", &Tensor::from_f32(&[], vec![0.05]));
    let zero = g.add_tensor("act.zero", &Tensor::from_u8(&[], vec![128]));
    let w = g.add_tensor("w", &random.tensor(DType::I8, &[4, 4, 1, 1]));
    let w_scale = g.add_tensor("w.scale", &Tensor::from_f32(&[4], vec![0.01, 0.02, 0.03, 0.015625]));
    let w_zero = g.add_tensor("w.zero", &Tensor::from_i8(&[4], vec![0; 4]));
    let mut op = |kind, attr, name: &str, ins: &[ValueId], out: &str| {
        g.add_op(kind, attr, name, ins, &[out]).unwrap()[0]
    };
    let (quantize, dequantize) = (OpKind::QuantizeLinear, OpKind::DequantizeLinear);
    let aq = op(quantize, Attr::Axis(0), "quantize", &[a, scale, zero], "aq");
    let ad = op(dequantize, Attr::Axis(0), "dequantize", &[aq, scale, zero], "ad");
    let wd = op(dequantize, Attr::Axis(0), "dequantize_w", &[w, w_scale, w_zero], "wd");
    let conv = ConvAttr { window: window([1, 1], [1, 1], [1, 1], [0; 4]), group: 1 };
    let y = op(OpKind::Conv, Attr::Conv(conv), "conv", &[ad, wd], "conv.out");
    let sum = op(OpKind::Add, Attr::None, "add", &[y, b], "sum");
    let relu = op(OpKind::Clip, Attr::Clip(ClipAttr { min: 0.0, max: 6.0 }), "relu6", &[sum], "relu");
    let q = op(quantize, Attr::Axis(0), "requantize", &[relu, scale, zero], "q");
    g.outputs = vec![sum, q];
    let x = [BATCH, 4, 6, 6];
    Case {
        name: "block".into(),
        graph: g,
        inputs: vec![random.tensor(DType::F32, &x), random.tensor(DType::F32, &x)],
    }
}
