//! A captured network computes what burn computes, in every state of training.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use lacuna_ir::{DType, Graph, OpKind, ValueId, interp, passes, text, verify};
use lacuna_models::resnet::{BlockKind, ResNet, ResNetSize, Stem};
use lacuna_nn::Classifier;
use lacuna_nn::buffer::Buffer;
use lacuna_nn::capture::capture;
use lacuna_nn::layers::{Act, BatchNorm, Conv2d, Init, Linear, conv_norm, global_average_pool};
use lacuna_nn::params::{ParamTable, Role, update_each};
use lacuna_nn::quant::{ActivationQuantizer, Norm, Pass, Quant, Quantized, bias_on_grid};

const SIZES: [(ResNetSize, [usize; 2]); 2] = [
    (
        ResNetSize {
            name: "grey",
            in_channels: 1,
            classes: 10,
            stem: Stem::Small { stride: 2 },
            block: BlockKind::Basic,
            stages: &[(8, 1), (16, 1), (16, 1)],
        },
        [28, 28],
    ),
    (
        ResNetSize {
            name: "colour",
            in_channels: 3,
            classes: 7,
            stem: Stem::Small { stride: 1 },
            block: BlockKind::Basic,
            stages: &[(4, 2), (8, 1), (12, 1)],
        },
        [12, 8],
    ),
];

const PLAIN: Pass = Pass { quant: Quant::Off, norm: Norm::Batch, sparse: false };
const OBSERVE: Pass = Pass { quant: Quant::Observe, norm: Norm::Batch, sparse: false };
const FROZEN: Pass = Pass { quant: Quant::Frozen, norm: Norm::Frozen, sparse: false };

/// Roughly normal: sums of uniform numbers.
fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| uniform() + uniform() + uniform()).collect()
}

fn host<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().try_to_vec().unwrap()
}

/// A network with norms that scale and shift, and three quarters of its weights zero.
fn pruned(size: &ResNetSize, device: &Device) -> ResNet {
    let net = ResNet::new(size, &mut Init::new(device, 11));
    let table = ParamTable::of(&net);
    update_each(net, |row, values| match table.role[row] {
        Role::Norm => {
            let shift = if table.name[row].ends_with("weight") { 1.0 } else { 0.0 };
            let noise = numbers(values.len(), row as u32);
            values.iter_mut().zip(noise).for_each(|(v, x)| *v = shift + 0.2 * x);
        }
        Role::Weight => {
            let noise = numbers(values.len(), row as u32);
            values.iter_mut().zip(noise).filter(|(_, x)| x.abs() < 1.15).for_each(|(v, _)| *v = 0.0);
        }
        Role::Bias | Role::Embedding | Role::Buffer => {}
    })
}

fn images(size: &ResNetSize, [h, w]: [usize; 2], n: usize, seed: u32) -> Tensor<4> {
    let shape = [n, size.in_channels, h, w];
    Tensor::from_data(TensorData::new(numbers(shape.iter().product(), seed), shape), &Device::flex())
}

/// Training passes without an optimiser: they move statistics and ranges.
fn stepped(size: &ResNetSize, image: [usize; 2], passes: &[Pass]) -> ResNet {
    let net = pruned(size, &Device::flex().autodiff());
    for (i, pass) in passes.iter().enumerate() {
        let x = images(size, image, 8, 50 + i as u32).mul_scalar(1.5).add_scalar(0.3);
        net.forward(Tensor::from_inner(x), pass);
    }
    net.valid()
}

fn captured(net: &ResNet, size: &ResNetSize, [h, w]: [usize; 2], pass: Pass) -> Graph {
    let forward = |net: &ResNet, x: Tensor<4>| net.forward(x, &pass);
    capture(net, "image", [1, size.in_channels, h, w], &["logits"], forward).unwrap()
}

fn run(g: &Graph, x: &Tensor<4>) -> Vec<f32> {
    let t = lacuna_ir::Tensor::from_f32(&x.dims(), host(x.clone()));
    interp::run(g, &[t]).unwrap()[0].as_f32().unwrap().to_vec()
}

/// Largest difference, in units of the largest element of `want`.
fn difference(have: &[f32], want: &[f32]) -> f32 {
    assert_eq!(have.len(), want.len());
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(largest > 1e-3, "a comparison with zeros says nothing");
    have.iter().zip(want).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

fn value(g: &Graph, name: &str) -> ValueId {
    let found: Vec<ValueId> = g.value_name.iter().filter(|(_, n)| *n == name).map(|(v, _)| v).collect();
    assert_eq!(found.len(), 1, "{name} in\n{}", text::print(g));
    found[0]
}

fn kinds(g: &Graph, kind: OpKind) -> usize {
    g.order.iter().filter(|&&op| g.op_kind[op] == kind).count()
}

fn assert_names(g: &Graph) {
    let mut values: Vec<&str> = g.value_name.iter().map(|(_, n)| n.as_str()).collect();
    let mut ops: Vec<&str> = g.op_name.iter().map(|(_, n)| n.as_str()).collect();
    for names in [&mut values, &mut ops] {
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert!(names.len() == all && !names.contains(&""), "{names:?}");
    }
}

#[test]
fn plain() {
    for (size, image) in &SIZES {
        for net in [stepped(size, *image, &[]), stepped(size, *image, &[PLAIN; 3])] {
            let g = captured(&net, size, *image, PLAIN);
            verify::verify(&g).unwrap();
            assert_names(&g);
            assert_eq!(kinds(&g, OpKind::Conv), kinds(&g, OpKind::BatchNormalization));
            assert_eq!(kinds(&g, OpKind::Gemm), 1);
            let mut folded = g.clone();
            let convs = kinds(&g, OpKind::Conv);
            assert_eq!(passes::fold_batch_norm(&mut folded).unwrap(), convs);
            passes::drop_dead(&mut folded).unwrap();
            verify::verify(&folded).unwrap();
            for n in [1, 2, 5] {
                let x = images(size, *image, n, n as u32);
                let want = host(net.forward(x.clone(), &PLAIN));
                for (what, g) in [("raw", &g), ("folded", &folded)] {
                    let d = difference(&run(g, &x), &want);
                    assert!(d <= 1e-5, "{} {what}, batch {n}: {d}", size.name);
                }
            }
            for name in ["layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "fc.bias"] {
                value(&g, name);
            }
            assert!(g.op_name.iter().any(|(_, n)| n == "layer3.0.downsample.1"));
        }
    }
}

#[test]
fn quantised() {
    for (size, image) in &SIZES {
        let net = stepped(size, *image, &[PLAIN, PLAIN, OBSERVE, OBSERVE, OBSERVE]);
        let g = captured(&net, size, *image, FROZEN);
        verify::verify(&g).unwrap();
        assert_names(&g);
        assert_eq!(kinds(&g, OpKind::BatchNormalization), 0);
        for n in [1, 2, 5] {
            let x = images(size, *image, n, 20 + n as u32);
            let want = host(net.forward(x.clone(), &FROZEN));
            let have = run(&g, &x);
            // Sums in another order may round an activation to its neighbour on the grid.
            let d = difference(&have, &want);
            assert!(d <= 0.02, "{}, batch {n}: {d}", size.name);
            let top = |row: &[f32]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
            for (have, want) in have.chunks(size.classes).zip(want.chunks(size.classes)) {
                assert_eq!(top(have), top(want));
            }
        }
        let evaluated = captured(&net, size, *image, OBSERVE);
        assert_eq!(text::print_full(&g), text::print_full(&evaluated), "evaluation does not observe");
    }
}

/// Before anything was observed there is no grid: quantised layers compute in f32, with norms folded.
#[test]
fn not_yet_observed() {
    let (size, image) = &SIZES[0];
    let net = stepped(size, *image, &[PLAIN; 2]);
    let g = captured(&net, size, *image, FROZEN);
    assert_eq!(kinds(&g, OpKind::QuantizeLinear) + kinds(&g, OpKind::BatchNormalization), 0);
    value(&g, "layer2.0.downsample.0.bias");
    let x = images(size, *image, 2, 3);
    assert!(difference(&run(&g, &x), &host(net.forward(x.clone(), &PLAIN))) <= 1e-5);
}

/// The integers of the graph are those of training, bit for bit.
#[test]
fn integers_of_a_layer() {
    let (size, image) = &SIZES[0];
    let net = stepped(size, *image, &[PLAIN, OBSERVE, OBSERVE]);
    let g = captured(&net, size, *image, FROZEN);
    let x = images(size, *image, 2, 77);
    let t = lacuna_ir::Tensor::from_f32(&x.dims(), host(x.clone()));
    let all = interp::run_all(&g, &[t]).unwrap();
    let f32s = |name: &str| all[value(&g, name)].as_ref().unwrap().as_f32().unwrap().to_vec();

    let input = net.input.forward(x, &FROZEN);
    assert_eq!(f32s("image_dequantized"), host(input.x.clone()));

    let scale = net.bn1.weight.val() / net.bn1.running_var.get().add_scalar(1e-5).sqrt();
    let folded = net.conv1.weight.val() * scale.clone().reshape([8, 1, 1, 1]);
    let Quantized { w, scales } = net.conv1.weight_quantizer.forward(folded, Some(&scale), &FROZEN).unwrap();
    let bias = net.bn1.bias.val() - net.bn1.running_mean.get() * scale;
    let bias = bias_on_grid(bias, input.site.unwrap().grid().unwrap().scale, &scales);
    assert_eq!(f32s("conv1.weight_dequantized"), host(w));
    assert_eq!(f32s("conv1.bias_dequantized"), host(bias));
    assert_eq!(f32s("conv1.weight_scale"), scales);

    let Quantized { w, scales } =
        net.fc.weight_quantizer.forward(net.fc.weight.val(), None, &FROZEN).unwrap();
    assert_eq!(f32s("fc.weight_dequantized"), host(w));
    assert_eq!(f32s("fc.weight_scale"), scales);
    let gemm = g.op_kind.ids().find(|&op| g.op_kind[op] == OpKind::Gemm).unwrap();
    let bias = g.inputs_of(gemm)[2];
    assert_eq!(g.value_name[bias], "fc.bias_dequantized");
    assert_eq!(g.value_dtype[value(&g, "fc.bias_quantized")], DType::I32);
    assert_eq!(g.value_dtype[value(&g, "layer2.0.downsample.0.bias_quantized")], DType::I32);
}

/// A pruned weight is the integer zero.
#[test]
fn zeros_stay() {
    for (size, image) in &SIZES {
        let net = stepped(size, *image, &[PLAIN, OBSERVE]);
        let g = captured(&net, size, *image, FROZEN);
        // Roles are told apart by gradients, which `valid` drops.
        let table = ParamTable::of(&pruned(size, &Device::flex().autodiff()));
        let mut weights = 0;
        lacuna_nn::params::for_each(&net, |row, values| {
            if table.role[row] != Role::Weight {
                return;
            }
            let v = value(&g, &format!("{}_quantized", table.name[row]));
            assert_eq!(g.fixed_shape(v).unwrap(), table.shape[row]);
            let q = g.const_elements::<i8>(v, DType::I8).unwrap();
            let zeros = values.iter().filter(|&&w| w == 0.0).count();
            assert!(zeros * 2 > values.len(), "{}: {zeros} of {}", table.name[row], values.len());
            assert!(q.iter().zip(values).all(|(&q, &w)| q == 0 || w != 0.0), "{}", table.name[row]);
            assert!(q.iter().any(|&q| q != 0));
            weights += 1;
        });
        assert_eq!(weights, kinds(&g, OpKind::Conv) + 1);
    }
}

#[derive(Module, Debug)]
struct Tiny {
    input: ActivationQuantizer,
    conv: Conv2d,
    bn: BatchNorm,
    act: ActivationQuantizer,
    pool: ActivationQuantizer,
    fc: Linear,
}

impl Tiny {
    fn new() -> Tiny {
        let device = Device::flex();
        let init = &mut Init::new(&device, 1);
        let net = Tiny {
            input: ActivationQuantizer::new(&device),
            conv: Conv2d::new(1, 2, 1, 2, init),
            bn: BatchNorm::new(2, init),
            act: ActivationQuantizer::new(&device),
            pool: ActivationQuantizer::new(&device),
            fc: Linear::new(2, 2, init),
        };
        let table = ParamTable::of(&net);
        update_each(net, |row, values| {
            let new: &[f32] = match table.name[row].as_str() {
                "conv.weight" => &[1.5, -3.0],
                "bn.weight" => &[2.0, 0.5],
                "bn.bias" => &[0.25, -1.0],
                "bn.running_mean" => &[1.0, -2.0],
                "bn.running_var" => &[4.0, 0.25],
                "fc.weight" => &[1.0, 0.0, -0.5, 0.75],
                "fc.bias" => &[0.125, -0.25],
                _ => return,
            };
            values.copy_from_slice(new);
        })
    }

    fn forward(&self, x: Tensor<4>, pass: &Pass) -> Tensor<2> {
        let x = self.input.forward(x, pass);
        let x = conv_norm(&x, &self.conv, &self.bn, None, Act::Relu, &self.act, pass);
        let pooled = self.pool.forward(global_average_pool(x.x), pass);
        let [n, c, _, _] = pooled.x.dims();
        self.fc.forward(&pooled.map(|x| x.reshape([n, c])), pass)
    }

    fn text(&self, pass: Pass) -> String {
        let forward = |net: &Tiny, x: Tensor<4>| net.forward(x, &pass);
        text::print(&capture(self, "x", [1, 1, 4, 4], &["y"], forward).unwrap())
    }
}

fn set<const D: usize>(range: &Buffer<D>, values: [f32; 2]) {
    let n = range.get().dims().iter().product::<usize>() / 2;
    let values: Vec<f32> = values.iter().flat_map(|&v| vec![v; n]).collect();
    let dims = range.get().dims();
    range.set(Tensor::from_data(TensorData::new(values, dims), &Device::flex()));
}

#[test]
fn text_of_a_tiny_network() {
    let net = Tiny::new();
    let plain = net.text(PLAIN);
    set(&net.input.range, [-2.0, 2.0]);
    set(&net.act.range, [0.0, 4.0]);
    set(&net.pool.range, [0.0, 3.0]);
    set(&net.conv.weight_quantizer.range, [-3.0, 1.5]);
    set(&net.fc.weight_quantizer.range, [-0.5, 1.0]);
    let quantised = net.text(FROZEN);
    assert!(plain == PLAIN_TEXT && quantised == QUANTISED_TEXT, "{plain}\n{quantised}");
}

const PLAIN_TEXT: &str = "\
graph Tiny
input %x: f32[batch,1,4,4]
const %conv.weight: f32[2,1,1,1] = {1.5, -3.0}
const %bn.weight: f32[2] = {2.0, 0.5}
const %bn.bias: f32[2] = {0.25, -1.0}
const %bn.running_mean: f32[2] = {1.0, -2.0}
const %bn.running_var: f32[2] = {4.0, 0.25}
const %reshape_0_shape: i64[2] = {0, 2}
const %fc.weight: f32[2,2] = {1.0, 0.0, -0.5, 0.75}
const %fc.bias: f32[2] = {0.125, -0.25}
%conv: f32[batch,2,2,2] = Conv(%x, %conv.weight) kernel=[1,1] stride=[2,2]  # conv
%bn: f32[batch,2,2,2] = BatchNormalization(%conv, %bn.weight, %bn.bias, %bn.running_mean, %bn.running_var) epsilon=1e-5  # bn
%relu_0: f32[batch,2,2,2] = Relu(%bn)  # relu_0
%global_average_pool_0: f32[batch,2,1,1] = GlobalAveragePool(%relu_0)  # global_average_pool_0
%reshape_0: f32[batch,2] = Reshape(%global_average_pool_0, %reshape_0_shape)  # reshape_0
%y: f32[batch,2] = Gemm(%reshape_0, %fc.weight, %fc.bias) trans_b=true  # fc
output %y
";

const QUANTISED_TEXT: &str = "\
graph Tiny
input %x: f32[batch,1,4,4]
const %x_scale: f32[] = {0.015686275}
const %x_zero_point: u8[] = {127}
const %conv.weight_quantized: i8[2,1,1,1] = {64, -127}
const %conv.weight_scale: f32[2] = {0.023529412, 0.023529412}
const %conv.weight_zero_point: i8[2] = {0, 0}
const %conv.bias_quantized: i32[2] = {-2032, 2709}
const %conv.bias_scale: f32[2] = {0.00036908884, 0.00036908884}
const %conv.bias_zero_point: i32[2] = {0, 0}
const %relu_0_scale: f32[] = {0.015686275}
const %relu_0_zero_point: u8[] = {0}
const %global_average_pool_0_scale: f32[] = {0.011764706}
const %global_average_pool_0_zero_point: u8[] = {0}
const %reshape_0_shape: i64[2] = {0, 2}
const %fc.weight_quantized: i8[2,2] = {127, 0, -64, 96}
const %fc.weight_scale: f32[2] = {0.007843138, 0.007843138}
const %fc.weight_zero_point: i8[2] = {0, 0}
const %fc.bias_quantized: i32[2] = {1355, -2709}
const %fc.bias_scale: f32[2] = {9.227221e-5, 9.227221e-5}
const %fc.bias_zero_point: i32[2] = {0, 0}
%x_quantized: u8[batch,1,4,4] = QuantizeLinear(%x, %x_scale, %x_zero_point) axis=1  # x_quantize
%x_dequantized: f32[batch,1,4,4] = DequantizeLinear(%x_quantized, %x_scale, %x_zero_point) axis=1  # x_dequantize
%conv.weight_dequantized: f32[2,1,1,1] = DequantizeLinear(%conv.weight_quantized, %conv.weight_scale, %conv.weight_zero_point) axis=0  # conv.weight_dequantize
%conv.bias_dequantized: f32[2] = DequantizeLinear(%conv.bias_quantized, %conv.bias_scale, %conv.bias_zero_point) axis=0  # conv.bias_dequantize
%conv: f32[batch,2,2,2] = Conv(%x_dequantized, %conv.weight_dequantized, %conv.bias_dequantized) kernel=[1,1] stride=[2,2]  # conv
%relu_0: f32[batch,2,2,2] = Relu(%conv)  # relu_0
%relu_0_quantized: u8[batch,2,2,2] = QuantizeLinear(%relu_0, %relu_0_scale, %relu_0_zero_point) axis=1  # relu_0_quantize
%relu_0_dequantized: f32[batch,2,2,2] = DequantizeLinear(%relu_0_quantized, %relu_0_scale, %relu_0_zero_point) axis=1  # relu_0_dequantize
%global_average_pool_0: f32[batch,2,1,1] = GlobalAveragePool(%relu_0_dequantized)  # global_average_pool_0
%global_average_pool_0_quantized: u8[batch,2,1,1] = QuantizeLinear(%global_average_pool_0, %global_average_pool_0_scale, %global_average_pool_0_zero_point) axis=1  # global_average_pool_0_quantize
%global_average_pool_0_dequantized: f32[batch,2,1,1] = DequantizeLinear(%global_average_pool_0_quantized, %global_average_pool_0_scale, %global_average_pool_0_zero_point) axis=1  # global_average_pool_0_dequantize
%reshape_0: f32[batch,2] = Reshape(%global_average_pool_0_dequantized, %reshape_0_shape)  # reshape_0
%fc.weight_dequantized: f32[2,2] = DequantizeLinear(%fc.weight_quantized, %fc.weight_scale, %fc.weight_zero_point) axis=0  # fc.weight_dequantize
%fc.bias_dequantized: f32[2] = DequantizeLinear(%fc.bias_quantized, %fc.bias_scale, %fc.bias_zero_point) axis=0  # fc.bias_dequantize
%y: f32[batch,2] = Gemm(%reshape_0, %fc.weight_dequantized, %fc.bias_dequantized) trans_b=true  # fc
output %y
";
