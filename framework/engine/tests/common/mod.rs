//! Small graphs in f32 and in quantise/dequantise form, with weights of a chosen sparsity.
#![allow(dead_code)]

use bytes::Bytes;
use lacuna_ir::op::{ClipAttr, ConvAttr, GemmAttr, PoolAttr, ResizeAttr, Window};
use lacuna_ir::{Attr, DType, Dim, Graph, OpKind, Tensor, ValueId};

pub struct Rng(pub u64);

impl Rng {
    pub fn unit(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    pub fn signed(&mut self) -> f32 {
        self.unit() * 2.0 - 1.0
    }
}

pub struct Net {
    pub g: Graph,
    pub quantised: bool,
    pub sparsity: f32,
    pub rng: Rng,
}

pub const ACT_SCALE: f32 = 4.0 / 255.0;

impl Net {
    pub fn new(name: &str, quantised: bool, sparsity: f32, input: &[usize]) -> (Net, ValueId) {
        let mut g = Graph::new(name);
        let n = g.symbol("N");
        let mut dims = vec![Dim::Symbol(n)];
        dims.extend(input.iter().map(|&d| Dim::Fixed(d as u64)));
        let x = g.add_input("x", DType::F32, &dims);
        let mut net = Net { g, quantised, sparsity, rng: Rng(7 + (sparsity * 100.0) as u64) };
        let x = net.act(x, 120);
        (net, x)
    }

    pub fn op(&mut self, kind: OpKind, attr: Attr, inputs: &[ValueId]) -> ValueId {
        let i = self.g.op_kind.len();
        let name = format!("{}{}", kind.name().to_lowercase(), i);
        self.g.add_op(kind, attr, &name, inputs, &[&format!("{name}_out")]).unwrap()[0]
    }

    pub fn tensor(&mut self, t: &Tensor) -> ValueId {
        let name = format!("c{}", self.g.value_name.len());
        self.g.add_tensor(&name, t)
    }

    /// Quantises and dequantises an activation, if the net is quantised.
    pub fn act(&mut self, x: ValueId, zero: u8) -> ValueId {
        self.act_scaled(x, zero, ACT_SCALE)
    }

    pub fn act_scaled(&mut self, x: ValueId, zero: u8, scale: f32) -> ValueId {
        if !self.quantised {
            return x;
        }
        let s = self.tensor(&Tensor::from_f32(&[], vec![scale]));
        let z = self.tensor(&Tensor::from_u8(&[], vec![zero]));
        let q = self.op(OpKind::QuantizeLinear, Attr::Axis(1), &[x, s, z]);
        self.op(OpKind::DequantizeLinear, Attr::Axis(1), &[q, s, z])
    }

    /// A weight of this shape, pruned, and dequantised from i8 per row if the net is quantised.
    pub fn weight(&mut self, dims: &[usize]) -> ValueId {
        let k: usize = dims[1..].iter().product();
        let amplitude = 2.0 / (k as f32 * (1.0 - self.sparsity).max(0.05)).sqrt();
        let w: Vec<f32> = (0..dims[0] * k)
            .map(|_| {
                let keep = self.rng.unit() >= self.sparsity;
                let w = self.rng.signed() * amplitude;
                if keep { w } else { 0.0 }
            })
            .collect();
        if !self.quantised {
            return self.tensor(&Tensor::from_f32(dims, w));
        }
        let scales: Vec<f32> = (0..dims[0])
            .map(|o| w[o * k..][..k].iter().fold(1e-3f32, |m, x| m.max(x.abs())) / 127.0)
            .collect();
        let q: Vec<i8> =
            w.iter().enumerate().map(|(i, x)| (x / scales[i / k]).round_ties_even() as i8).collect();
        let zeros = self.tensor(&Tensor::from_i8(&[dims[0]], vec![0; dims[0]]));
        let q = self.tensor(&Tensor::from_i8(dims, q));
        let s = self.tensor(&Tensor::from_f32(&[dims[0]], scales));
        self.op(OpKind::DequantizeLinear, Attr::Axis(0), &[q, s, zeros])
    }

    pub fn bias(&mut self, n: usize) -> ValueId {
        let b: Vec<f32> = (0..n).map(|_| self.rng.signed() * 0.3).collect();
        self.tensor(&Tensor::from_f32(&[n], b))
    }

    pub fn conv_raw(&mut self, x: ValueId, o: usize, window: Window, group: u32) -> ValueId {
        let c = self.g.shape(x)[1].fixed().unwrap() as usize;
        let [kh, kw] = window.kernel.map(|k| k as usize);
        let w = self.weight(&[o, c / group as usize, kh, kw]);
        let b = self.bias(o);
        self.op(OpKind::Conv, Attr::Conv(ConvAttr { window, group }), &[x, w, b])
    }

    pub fn conv(&mut self, x: ValueId, o: usize, k: u32, stride: u32, pad: u32) -> ValueId {
        self.conv_raw(x, o, window(k, stride, pad, 1), 1)
    }

    pub fn relu(&mut self, x: ValueId) -> ValueId {
        self.op(OpKind::Relu, Attr::None, &[x])
    }

    pub fn conv_relu(&mut self, x: ValueId, o: usize, k: u32, stride: u32, pad: u32) -> ValueId {
        let y = self.conv(x, o, k, stride, pad);
        let y = self.relu(y);
        self.act(y, 0)
    }

    /// Two 3x3 convolutions around a skip, which is projected when the shape changes.
    pub fn block(&mut self, x: ValueId, o: usize, stride: u32) -> ValueId {
        let c = self.g.shape(x)[1].fixed().unwrap() as usize;
        let y = self.conv_relu(x, o, 3, stride, 1);
        let y = self.conv(y, o, 3, 1, 1);
        let skip = if stride != 1 || o != c {
            let skip = self.conv(x, o, 1, stride, 0);
            self.act(skip, 128)
        } else {
            x
        };
        let y = self.op(OpKind::Add, Attr::None, &[y, skip]);
        let y = self.relu(y);
        self.act(y, 0)
    }

    pub fn gate(&mut self, y: ValueId) -> ValueId {
        let s = self.op(OpKind::Sigmoid, Attr::None, &[y]);
        self.act_scaled(s, 0, 1.0 / 255.0)
    }

    /// `y * sigmoid(y)`, each value quantised.
    pub fn silu(&mut self, y: ValueId) -> ValueId {
        let y = self.act(y, 128);
        let s = self.gate(y);
        let y = self.op(OpKind::Mul, Attr::None, &[y, s]);
        self.act(y, 20)
    }

    pub fn inverted_bottleneck(&mut self, x: ValueId, o: usize, stride: u32) -> ValueId {
        let c = self.g.shape(x)[1].fixed().unwrap() as usize;
        let mid = 3 * c;
        let y = self.conv(x, mid, 1, 1, 0);
        let y = self.silu(y);
        let y = self.conv_raw(y, mid, window(3, stride, 1, 1), mid as u32);
        let y = self.silu(y);
        let s = self.op(OpKind::GlobalAveragePool, Attr::None, &[y]);
        let s = self.act(s, 100);
        let s = self.conv(s, 6, 1, 1, 0);
        let s = self.silu(s);
        let s = self.conv(s, mid, 1, 1, 0);
        let s = self.act(s, 128);
        let s = self.gate(s);
        let y = self.op(OpKind::Mul, Attr::None, &[y, s]);
        let y = self.act(y, 40);
        let y = self.conv(y, o, 1, 1, 0);
        let y = self.act(y, 120);
        if stride != 1 || o != c {
            return y;
        }
        let y = self.op(OpKind::Add, Attr::None, &[y, x]);
        self.act(y, 110)
    }

    pub fn gemm(&mut self, x: ValueId, n: usize) -> ValueId {
        let k = self.g.shape(x)[1].fixed().unwrap() as usize;
        let w = self.weight(&[n, k]);
        let b = self.bias(n);
        let attr = GemmAttr { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: true };
        self.op(OpKind::Gemm, Attr::Gemm(attr), &[x, w, b])
    }

    pub fn head(&mut self, x: ValueId, classes: usize) -> ValueId {
        let y = self.op(OpKind::GlobalAveragePool, Attr::None, &[x]);
        let y = self.act(y, 0);
        let y = self.op(OpKind::Flatten, Attr::Axis(1), &[y]);
        self.gemm(y, classes)
    }

    pub fn finish(mut self, outputs: &[ValueId]) -> Graph {
        self.g.outputs = outputs.to_vec();
        lacuna_ir::verify::verify(&self.g).unwrap();
        self.g
    }
}

pub fn window(k: u32, stride: u32, pad: u32, dilation: u32) -> Window {
    Window { kernel: [k; 2], stride: [stride; 2], dilation: [dilation; 2], pads: [pad; 4] }
}

pub fn pool(k: u32, stride: u32, pad: u32) -> Attr {
    Attr::Pool(PoolAttr { window: window(k, stride, pad, 1), ceil_mode: false, count_include_pad: false })
}

/// A CIFAR-like residual net on 1-channel images.
pub fn resnet(quantised: bool, sparsity: f32) -> Graph {
    let (mut n, x) = Net::new("resnet", quantised, sparsity, &[1, 14, 14]);
    let x = n.conv_relu(x, 16, 3, 1, 1);
    let x = n.block(x, 16, 1);
    let x = n.block(x, 32, 2);
    let x = n.block(x, 64, 2);
    let y = n.head(x, 10);
    n.finish(&[y])
}

/// Odd sizes: 3 channels, uneven padding, dilation, a max pool, channels that fill no register.
pub fn odd(quantised: bool, sparsity: f32) -> Graph {
    let (mut n, x) = Net::new("odd", quantised, sparsity, &[3, 17, 13]);
    let x = n.conv_relu(x, 17, 5, 2, 2);
    let x = n.op(OpKind::MaxPool, pool(3, 2, 1), &[x]);
    let x = n.act(x, 0);
    let uneven = Window { kernel: [3, 2], stride: [1, 1], dilation: [1, 2], pads: [2, 0, 1, 3] };
    let x = n.conv_raw(x, 33, uneven, 1);
    let x = n.op(OpKind::Clip, Attr::Clip(ClipAttr { min: 0.0, max: 2.0 }), &[x]);
    let x = n.act(x, 3);
    let x = n.conv_relu(x, 70, 1, 1, 0);
    let y = n.head(x, 7);
    n.finish(&[y])
}

/// Matrix products only, one of them MatMul + Add and wider than one register block.
pub fn mlp(quantised: bool, sparsity: f32) -> Graph {
    let (mut n, x) = Net::new("mlp", quantised, sparsity, &[2, 5, 7]);
    let x = n.op(OpKind::Flatten, Attr::Axis(1), &[x]);
    let x = n.gemm(x, 130);
    let x = n.relu(x);
    let x = n.act(x, 0);
    let x = if quantised { n.gemm(x, 33) } else { matmul_add(&mut n, x, 130, 33) };
    let x = n.act(x, 128);
    let y = n.gemm(x, 5);
    let y = n.op(OpKind::Softmax, Attr::Axis(-1), &[y]);
    n.finish(&[y])
}

fn matmul_add(n: &mut Net, x: ValueId, k: usize, o: usize) -> ValueId {
    let w = n.weight(&[k, o]);
    let y = n.op(OpKind::MatMul, Attr::None, &[x, w]);
    let b = n.bias(o);
    n.op(OpKind::Add, Attr::None, &[y, b])
}

/// Branches: concat, a gate per channel, a standalone add, an average pool, a depthwise and a grouped
/// convolution, an output in the middle, and a value padded with two different zero points.
pub fn branches(quantised: bool, sparsity: f32) -> Graph {
    let (mut n, x) = Net::new("branches", quantised, sparsity, &[4, 9, 11]);
    let a = n.conv(x, 20, 3, 1, 1);
    let a = n.act(a, 100);
    let b = n.conv_relu(x, 20, 1, 1, 0);
    let sum = n.op(OpKind::Add, Attr::None, &[a, b]);
    let sum = n.relu(sum);
    let sum = n.act_scaled(sum, 0, 0.03);
    let depthwise = n.conv_raw(sum, 20, window(3, 1, 1, 1), 20);
    let depthwise = n.relu(depthwise);
    let depthwise = n.act(depthwise, 0);
    let grouped = n.conv_raw(sum, 24, window(3, 1, 1, 1), 4);
    let grouped = n.act(grouped, 128);
    let cat = n.op(OpKind::Concat, Attr::Axis(1), &[depthwise, grouped]);
    let gate = n.op(OpKind::GlobalAveragePool, Attr::None, &[cat]);
    let gate = n.op(OpKind::Sigmoid, Attr::None, &[gate]);
    let gated = n.op(OpKind::Mul, Attr::None, &[cat, gate]);
    let channel = Tensor::from_f32(&[44, 1, 1], (0..44).map(|i| i as f32 * 0.02).collect());
    let channel = n.tensor(&channel);
    let shifted = n.op(OpKind::Sub, Attr::None, &[gated, channel]);
    let pooled = n.op(OpKind::AveragePool, pool(3, 2, 1), &[shifted]);
    let pooled = n.act(pooled, 90);
    let y = n.conv_relu(pooled, 16, 3, 1, 1);
    let y = n.head(y, 3);
    n.finish(&[y, sum])
}

/// Inverted bottlenecks with squeeze and excitation, one of them around a skip; every value is quantised, as
/// onnxruntime's own tool does it.
pub fn gated(quantised: bool, sparsity: f32) -> Graph {
    let (mut n, x) = Net::new("gated", quantised, sparsity, &[3, 16, 12]);
    let x = n.conv(x, 16, 3, 2, 1);
    let x = n.silu(x);
    let x = n.inverted_bottleneck(x, 24, 2);
    let x = n.inverted_bottleneck(x, 24, 1);
    let x = n.conv(x, 70, 1, 1, 0);
    let x = n.silu(x);
    let y = n.head(x, 5);
    n.finish(&[y])
}

/// Joins of a pooled, a resized and a plain value, and a join of joins; the result leaves without a scale of its own.
pub fn pyramid(quantised: bool, sparsity: f32) -> Graph {
    let (mut n, x) = Net::new("pyramid", quantised, sparsity, &[3, 8, 12]);
    let a = n.conv_relu(x, 32, 3, 1, 1);
    let b = n.conv_relu(a, 48, 3, 2, 1);
    let up = n.op(OpKind::Resize, Attr::Resize(ResizeAttr { scale: [2, 2] }), &[b]);
    let up = n.act(up, 0);
    let pooled = n.op(OpKind::MaxPool, pool(3, 1, 1), &[a]);
    let pooled = n.act(pooled, 0);
    let all = n.op(OpKind::Concat, Attr::Axis(1), &[pooled, up, a]);
    let all = n.act(all, 0);
    let c = n.conv_relu(a, 16, 1, 1, 0);
    let both = n.op(OpKind::Concat, Attr::Axis(1), &[all, c]);
    let both = n.act(both, 0);
    let y = n.conv_relu(both, 40, 1, 1, 0);
    let y = n.conv(y, 18, 1, 1, 0);
    n.finish(&[y])
}

/// Quantised or not, and the share of zeros among the weights.
pub type Make = fn(bool, f32) -> Graph;

pub const NETS: &[(&str, Make)] = &[
    ("resnet", resnet),
    ("odd", odd),
    ("mlp", mlp),
    ("branches", branches),
    ("gated", gated),
    ("pyramid", pyramid),
];

/// A first layer, and two pairs of a depthwise layer and one of single taps.
pub fn mobile(h: usize, w: usize) -> Graph {
    let (mut net, x) = Net::new("mobile", false, 0.5, &[3, h, w]);
    let mut x = net.conv_relu(x, 16, 3, 2, 1);
    for (c, stride) in [(32, 1), (48, 2)] {
        let from = net.g.shape(x)[1].fixed().unwrap() as usize;
        x = net.conv_raw(x, from, window(3, stride, 1, 1), from as u32);
        x = net.relu(x);
        x = net.conv_relu(x, c, 1, 1, 0);
    }
    net.finish(&[x])
}

/// An input of that batch for the graph's only input.
pub fn input(g: &Graph, batch: usize, seed: u64) -> Tensor {
    let mut dims: Vec<usize> = vec![batch];
    dims.extend(g.shape(g.inputs[0])[1..].iter().map(|d| d.fixed().unwrap() as usize));
    let mut rng = Rng(seed);
    let x = (0..dims.iter().product()).map(|_| rng.signed() * 2.0).collect();
    Tensor::from_f32(&dims, x)
}

pub fn bytes_of(x: &[f32]) -> Bytes {
    Bytes::copy_from_slice(bytemuck::cast_slice(x))
}
