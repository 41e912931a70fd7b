//! Quantisation schemes, layer by layer: a recipe gives each layer its own; training computes what the formulas say, and
//! the engine computes what training does. Images are *synthetic*.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use lacuna_engine::{InputRef, Options, OutputMut, Session};
use lacuna_ir::{DType, Graph, interp};
use lacuna_nn::capture::capture;
use lacuna_nn::layers::{Act, BatchNorm, Conv2d, Init, Linear, conv_norm, global_average_pool, max_pool2d};
use lacuna_nn::params::{self, ParamTable, Role};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Norm, Pass, Quant};
use lacuna_nn::{Classifier, Input};
use lacuna_recipe::{Action, Recipe};
use lacuna_train::{quantize, trainer};

/// Every kind of layer that quantises: a convolution, a depthwise one, a sum, a pool, a linear layer. Its output is
/// quantised too, so that all of it can be compared in steps.
#[derive(Module, Debug)]
struct Net {
    image: ActivationQuantizer,
    stem: Conv2d,
    stem_norm: BatchNorm,
    stem_out: ActivationQuantizer,
    depth: Conv2d,
    depth_norm: BatchNorm,
    depth_out: ActivationQuantizer,
    point: Conv2d,
    point_norm: BatchNorm,
    sum: ActivationQuantizer,
    side: Conv2d,
    side_norm: BatchNorm,
    side_out: ActivationQuantizer,
    pool: ActivationQuantizer,
    fc: Linear,
    logits: ActivationQuantizer,
}

impl Net {
    fn new(device: &Device) -> Net {
        let init = &mut Init::new(device, 7);
        let net = Net {
            image: ActivationQuantizer::new(device),
            stem: Conv2d::new(2, 8, 3, 1, init),
            stem_norm: BatchNorm::new(8, init),
            stem_out: ActivationQuantizer::new(device),
            depth: Conv2d::depthwise(8, 3, 1, init),
            depth_norm: BatchNorm::new(8, init),
            depth_out: ActivationQuantizer::new(device),
            point: Conv2d::new(8, 8, 1, 1, init),
            point_norm: BatchNorm::new(8, init),
            sum: ActivationQuantizer::new(device),
            side: Conv2d::new(8, 8, 1, 1, init),
            side_norm: BatchNorm::new(8, init),
            side_out: ActivationQuantizer::new(device),
            pool: ActivationQuantizer::new(device),
            fc: Linear::new(8, 5, init),
            logits: ActivationQuantizer::new(device),
        };
        let table = ParamTable::of(&net);
        params::update_each(net, |row, values| {
            if table.role[row] == Role::Norm {
                let base = if table.name[row].ends_with("weight") { 1.0 } else { 0.1 };
                values.iter_mut().enumerate().for_each(|(i, v)| *v = base + 0.07 * (i as f32 - 3.0));
            }
        })
    }
}

impl Classifier for Net {
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        let x = self.image.forward(x.into().images(), pass);
        let x = conv_norm(&x, &self.stem, &self.stem_norm, None, Act::Relu, &self.stem_out, pass);
        let (x, skip) = x.fork();
        let (skip, sided) = skip.fork();
        let y = conv_norm(&x, &self.depth, &self.depth_norm, None, Act::Relu6, &self.depth_out, pass);
        let side =
            conv_norm(&sided, &self.side, &self.side_norm, Some(skip.x), Act::None, &self.side_out, pass);
        let y = conv_norm(&y, &self.point, &self.point_norm, Some(side.x), Act::Relu, &self.sum, pass);
        let y = self.pool.forward(global_average_pool(y.x), pass);
        let [n, c, _, _] = y.x.dims();
        let y: Activation<2> = y.map(|y| y.reshape([n, c]));
        self.logits.forward(self.fc.forward(&y, pass), pass).x
    }
}

const LAYERS: [&str; 5] = ["stem", "depth", "point", "side", "fc"];
const DIMS: [usize; 4] = [16, 2, 9, 11];

fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| uniform() + uniform() + uniform()).collect()
}

fn images(seed: u32) -> Vec<f32> {
    numbers(DIMS.iter().product(), seed).iter().map(|x| 1.5 * x + 0.3).collect()
}

fn host<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().try_to_vec().unwrap()
}

fn recipe(modifier: &str) -> Recipe {
    let text = format!(
        "modifiers:\n  - !EpochRangeModifier {{start_epoch: 0, end_epoch: 1}}\n  - !QuantizationModifier\n{}",
        modifier.lines().map(|line| format!("    {}\n", line.trim_end())).collect::<String>()
    );
    lacuna_recipe::parse(&text, "r.yaml", &[]).unwrap_or_else(|e| panic!("{}", lacuna_recipe::render(&e)))
}

/// A network with statistics of its own, in the state in which the recipe's quantisation begins.
fn quantised(modifier: &str) -> Net {
    let device = Device::flex().autodiff();
    let net = Net::new(&device);
    let plain = Pass::default();
    let x = |seed| Tensor::<4>::from_data(TensorData::new(images(seed), DIMS), &device);
    for seed in 0..3 {
        net.forward(x(seed), &plain);
    }
    begin(net, modifier, [1, 2, 9, 11])
}

const OBSERVE: Pass = Pass { quant: Quant::Observe, norm: Norm::Batch, sparse: false };
const FROZEN: Pass = Pass { quant: Quant::Frozen, norm: Norm::Frozen, sparse: false };

/// After some training passes with observers on.
fn observed(modifier: &str) -> Net {
    let net = quantised(modifier);
    let device = Device::flex().autodiff();
    for seed in 10..14 {
        net.forward(Tensor::<4>::from_data(TensorData::new(images(seed), DIMS), &device), &OBSERVE);
    }
    net.valid()
}

fn graph(net: &Net) -> Graph {
    capture(net, "image", [1, 2, 9, 11], &["logits"], |net, x: Tensor<4>| net.forward(x, &FROZEN)).unwrap()
}

/// Name, what the recipe says, and the layers whose weights are integers in the file.
const SCHEMES: &[(&str, &str, &[&str])] = &[
    ("the default", "start_epoch: 0", &LAYERS),
    ("by channel", "start_epoch: 0\nscheme: {weights: {symmetric: true, strategy: channel}}", &LAYERS),
    ("tensorrt", "start_epoch: 0\nscheme: tensorrt", &LAYERS),
    (
        "weights only",
        "start_epoch: 0\nscheme: {input_activations: null, weights: {symmetric: true}}",
        &LAYERS,
    ),
    ("activations only", "start_epoch: 0\nscheme: {weights: null}", &[]),
    (
        "four bits",
        "start_epoch: 0\nscheme:\n  input_activations: {num_bits: 4}\n  weights: {num_bits: 4, symmetric: true, strategy: channel}",
        &LAYERS,
    ),
    (
        "few signed bits",
        "start_epoch: 0\nscheme:\n  input_activations: {num_bits: 5, symmetric: true}\n  weights: {num_bits: 3, symmetric: true}",
        &LAYERS,
    ),
    (
        "weights with a zero point",
        "start_epoch: 0\nscheme: {weights: {symmetric: false, strategy: channel}}",
        &LAYERS,
    ),
    ("one zero point for all", "start_epoch: 0\nscheme: {weights: {symmetric: false}}", &LAYERS),
    ("outputs too", "start_epoch: 0\nscheme: {output_activations: {num_bits: 8}}", &LAYERS),
    (
        "outputs otherwise",
        "start_epoch: 0\nscheme: {output_activations: {num_bits: 6, symmetric: true}}",
        &LAYERS,
    ),
    ("a layer ignored", "start_epoch: 0\nignore: [depth]", &["stem", "point", "side", "fc"]),
    ("a type ignored", "start_epoch: 0\nignore: [Linear]", &["stem", "depth", "point", "side"]),
    ("convolutions ignored", "start_epoch: 0\nignore: [Conv2d]", &["fc"]),
    (
        "a branch otherwise",
        "start_epoch: 0\nscheme_overrides:\n  side: {input_activations: {num_bits: 4}, weights: {symmetric: true, strategy: channel}}",
        &LAYERS,
    ),
    ("the older form", "start_epoch: 0\nsubmodules: [stem, depth, point, side, fc]", &LAYERS),
    (
        "parts of the older form",
        "start_epoch: 0\nsubmodules: [stem, side]\nreduce_range: True",
        &["stem", "side"],
    ),
];

fn integer_weights(g: &Graph) -> Vec<&'static str> {
    let is_integer = |name: &str| {
        g.value_name.iter().any(|(v, n)| {
            n == &format!("{name}.weight_quantized") && matches!(g.value_dtype[v], DType::I8 | DType::U8)
        })
    };
    LAYERS.into_iter().filter(|name| is_integer(name)).collect()
}

/// The file's weights, the interpreter, the engine and the forward pass, for every scheme.
#[test]
fn the_engine_computes_what_training_does_under_every_scheme() {
    for (name, modifier, integers) in SCHEMES {
        let net = observed(modifier);
        let g = graph(&net);
        assert_eq!(integer_weights(&g), *integers, "{name}");
        let x = images(99);
        let ours = host(
            net.forward(Tensor::<4>::from_data(TensorData::new(x.clone(), DIMS), &Device::flex()), &FROZEN),
        );
        let input = lacuna_ir::Tensor::from_f32(&DIMS, x.clone());
        let interpreted = interp::run(&g, &[input]).unwrap()[0].as_f32().unwrap().to_vec();
        let mut session = Session::new(&g, &Options::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut engine = vec![0.0; ours.len()];
        session
            .run_into(&[InputRef::f32(&DIMS, &x)], &mut [OutputMut::f32(&mut engine)])
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let range = ours.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(range > 0.05, "{name}: logits {ours:?}");
        for (what, theirs) in [("interpreter", &interpreted), ("engine", &engine)] {
            let off = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(off <= 0.02 * range, "{name}, {what}: {off} of {range}");
        }
    }
}

// ---- one layer at a time ----------------------------------------------------------------------------

/// One layer between two quantisers, so that both sides compute it from the same integers.
#[derive(Module, Debug)]
struct One {
    image: ActivationQuantizer,
    conv: Conv2d,
    norm: BatchNorm,
    fc: Linear,
    out: ActivationQuantizer,
    #[module(skip)]
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Conv,
    ConvRelu,
    Depthwise,
    Sum,
    MaxPool,
    AveragePool,
    Linear,
}

const KINDS: [Kind; 7] =
    [Kind::Conv, Kind::ConvRelu, Kind::Depthwise, Kind::Sum, Kind::MaxPool, Kind::AveragePool, Kind::Linear];
const CHANNELS: usize = 12;
const ONE_DIMS: [usize; 4] = [32, CHANNELS, 9, 10];

impl One {
    fn new(kind: Kind, device: &Device) -> One {
        let init = &mut Init::new(device, 3);
        let conv = match kind {
            Kind::Depthwise => Conv2d::depthwise(CHANNELS, 3, 1, init),
            _ => Conv2d::new(CHANNELS, CHANNELS, 3, 1, init),
        };
        One {
            image: ActivationQuantizer::new(device),
            conv,
            norm: BatchNorm::new(CHANNELS, init),
            fc: Linear::new(CHANNELS, CHANNELS, init),
            out: ActivationQuantizer::new(device),
            kind,
        }
    }
}

impl Classifier for One {
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        let x = self.image.forward(x.into().images(), pass);
        let conv = |x: &Activation<4>, residual, act| {
            conv_norm(x, &self.conv, &self.norm, residual, act, &self.out, pass).x
        };
        let y = match self.kind {
            Kind::Conv | Kind::Depthwise => conv(&x, None, Act::None),
            Kind::ConvRelu => conv(&x, None, Act::Relu),
            Kind::Sum => {
                let (x, skip) = x.fork();
                conv(&x, Some(skip.x), Act::Relu)
            }
            Kind::MaxPool => conv(&x.map(|x| max_pool2d(x, 3, 2, 1)), None, Act::None),
            Kind::AveragePool => self.out.forward(global_average_pool(x.x), pass).x,
            Kind::Linear => {
                let [n, c, h, w] = x.x.dims();
                let x = x.map(|x| x.permute([0, 2, 3, 1]).reshape([n * h * w, c]));
                return self.out.forward(self.fc.forward(&x, pass), pass).x;
            }
        };
        let [n, c, h, w] = y.dims();
        y.reshape([n, c * h * w])
    }
}

/// Training and engine give the same steps but for float ties: at most one in a thousand differs, by one step.
#[test]
fn every_kind_of_layer_has_the_integers_of_training() {
    let elements = ONE_DIMS.iter().product();
    let (mut differing, mut all) = (0, 0);
    for (name, modifier, _) in &SCHEMES[..11] {
        for kind in KINDS {
            let device = Device::flex().autodiff();
            let x = |seed| numbers(elements, seed).iter().map(|x| 1.5 * x + 0.3).collect::<Vec<f32>>();
            // A linear layer takes its images one by one here, so that rows of its input are rows of the batch.
            let dims = match kind {
                Kind::Linear => [ONE_DIMS[0] * ONE_DIMS[2] * ONE_DIMS[3], CHANNELS, 1, 1],
                _ => ONE_DIMS,
            };
            let net = One::new(kind, &device);
            let input = |seed| Tensor::<4>::from_data(TensorData::new(x(seed), dims), &device);
            net.forward(input(1), &Pass::default());
            let net = begin(net, modifier, [1, dims[1], dims[2], dims[3]]);
            for seed in 2..5 {
                net.forward(input(seed), &OBSERVE);
            }
            let net = net.valid();
            let shape = [1, dims[1], dims[2], dims[3]];
            let g = capture(&net, "x", shape, &["y"], |net, x: Tensor<4>| net.forward(x, &FROZEN))
                .unwrap_or_else(|e| panic!("{name}, {kind:?}: {e}"));
            let fresh = Tensor::<4>::from_data(TensorData::new(x(9), dims), &Device::flex());
            let ours = host(net.forward(fresh, &FROZEN));
            let mut engine = vec![0.0; ours.len()];
            let mut session = Session::new(&g, &Options::default()).unwrap();
            session
                .run_into(&[InputRef::f32(&dims, &x(9))], &mut [OutputMut::f32(&mut engine)])
                .unwrap_or_else(|e| panic!("{name}, {kind:?}: {e}"));
            let range = host(net.out.range.get());
            let written = host(net.out.scheme.get());
            if written[0] == 0.0 {
                // Outputs in f32.
                let off = ours.iter().zip(&engine).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                assert!(off <= 1e-4 * (range[1] - range[0]), "{name}, {kind:?}: {off}");
                continue;
            }
            let scale = grid_by_hand(range[0], range[1], written[0] as u32, written[1] != 0.0).0;
            let mut here = 0;
            for (a, b) in ours.iter().zip(&engine) {
                let steps = ((a - b) / scale).abs();
                assert!(steps < 1.001, "{name}, {kind:?}: {a} and {b} are {steps} steps apart");
                here += usize::from(steps > 0.001);
            }
            let bound = (ours.len() / 1000).max(1);
            assert!(here <= bound, "{name}, {kind:?}: {here} of {} differ", ours.len());
            (differing, all) = (differing + here, all + ours.len());
        }
    }
    println!("{differing} of {all} values differ, each by one step");
    assert!(all > 500_000 && differing * 1000 <= all);
}

/// Quantisation begins in a network, as the recipe's modifier has it.
fn begin<M: Classifier>(net: M, modifier: &str, image: [usize; 4]) -> M {
    let flow = quantize::flow(&net, Tensor::<4>::zeros(image, &Device::flex()));
    let schedule = trainer::compile(&net, &recipe(modifier), 4).unwrap_or_else(|e| panic!("{e}"));
    let start = schedule.events.iter().find_map(|event| match event.action {
        Action::StartQuantization(scheme) => Some(scheme),
        _ => None,
    });
    let (scheme, table) = (start.unwrap(), ParamTable::of(&net));
    quantize::assign(net, &table, &flow, schedule.layers(scheme.layers), scheme.fuse, false)
}

// ---- by hand ----------------------------------------------------------------------------------------

/// Scale, zero point, smallest and largest step of a range, by PyTorch's formulas.
fn grid_by_hand(min: f32, max: f32, bits: u32, symmetric: bool) -> (f32, f32, f32, f32) {
    let (min, max, steps) = (min.min(0.0), max.max(0.0), (2f32).powi(bits as i32) - 1.0);
    if symmetric {
        let half = 2f32.powi(bits as i32 - 1);
        return ((-min).max(max) / (steps / 2.0), 0.0, -half, half - 1.0);
    }
    let scale = (max - min) / steps;
    (scale, (0.0 - (min / scale).round_ties_even()).clamp(0.0, steps), 0.0, steps)
}

fn on_grid(x: f32, (scale, zero, lo, hi): (f32, f32, f32, f32)) -> f32 {
    (((x / scale).round_ties_even() + zero).clamp(lo, hi) - zero) * scale
}

/// A linear layer under every combination of bits, symmetry and granularity, from observers to result.
#[test]
fn a_linear_layer_is_what_the_formulas_say() {
    let (inputs, outputs, batch) = (7, 5, 6);
    let device = Device::flex().autodiff();
    for bits in [2u32, 3, 4, 5, 6, 7, 8] {
        for (symmetric_x, symmetric_w, channel) in
            [(false, true, true), (true, true, false), (false, false, true), (true, false, false)]
        {
            let strategy = if channel { "channel" } else { "tensor" };
            let modifier = format!(
                "start_epoch: 0\nscheme:\n  input_activations: {{num_bits: {bits}, symmetric: {symmetric_x}}}\n  \
                 weights: {{num_bits: {bits}, symmetric: {symmetric_w}, strategy: {strategy}}}"
            );
            let net = Rows::new(inputs, outputs, &device);
            let net = begin(net, &modifier, [1, inputs, 1, 1]);
            let (mut x_range, mut seen_any) = ([0f32; 2], false);
            for seed in 0..4 {
                let x: Vec<f32> =
                    numbers(batch * inputs, seed).iter().map(|x| x * (seed + 1) as f32).collect();
                let lo = x.iter().copied().fold(f32::INFINITY, f32::min);
                let hi = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                x_range = match seen_any {
                    false => [lo, hi],
                    true => [0.99 * x_range[0] + 0.01 * lo, 0.99 * x_range[1] + 0.01 * hi],
                };
                seen_any = true;
                let t = Tensor::<4>::from_data(TensorData::new(x, [batch, inputs, 1, 1]), &device);
                net.forward(t, &OBSERVE);
            }
            let observed = host(net.image.range.get());
            for (a, b) in observed.iter().zip(x_range) {
                assert!((a - b).abs() <= 1e-5 * b.abs(), "{observed:?} is not {x_range:?}");
            }
            let net = net.valid();
            let x = numbers(batch * inputs, 77);
            let have = net.forward(
                Tensor::<4>::from_data(TensorData::new(x.clone(), [batch, inputs, 1, 1]), &Device::flex()),
                &FROZEN,
            );
            let (w, b) = (host(net.fc.weight.val()), host(net.fc.bias.val()));
            let range_of = |w: &[f32]| {
                w.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &v| (lo.min(v), hi.max(v)))
            };
            let x_grid = grid_by_hand(observed[0], observed[1], bits, symmetric_x);
            for (i, have) in host(have).iter().enumerate() {
                let (row, o) = (i / outputs, i % outputs);
                let own = &w[o * inputs..][..inputs];
                let (lo, hi) = range_of(if channel { own } else { &w });
                let w_grid = grid_by_hand(lo, hi, bits, symmetric_w);
                let products = own.iter().zip(&x[row * inputs..]);
                let sum: f64 =
                    products.map(|(&w, &x)| on_grid(w, w_grid) as f64 * on_grid(x, x_grid) as f64).sum();
                let step = x_grid.0 * w_grid.0;
                let want = sum + ((b[o] / step).round_ties_even() * step) as f64;
                assert!(
                    (*have as f64 - want).abs() <= 1e-5 * (1.0 + want.abs()),
                    "{modifier}: {have}, not {want}"
                );
            }
        }
    }
}

/// A linear layer on the channels of an image of one pixel; its result is not quantised.
#[derive(Module, Debug)]
struct Rows {
    image: ActivationQuantizer,
    fc: Linear,
}

impl Rows {
    fn new(inputs: usize, outputs: usize, device: &Device) -> Rows {
        let init = &mut Init::new(device, 5);
        Rows { image: ActivationQuantizer::new(device), fc: Linear::new(inputs, outputs, init) }
    }
}

impl Classifier for Rows {
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        let x = self.image.forward(x.into().images(), pass);
        let [n, c, _, _] = x.x.dims();
        self.fc.forward(&x.map(|x| x.reshape([n, c])), pass)
    }
}

/// The folded weight's range is the moving average of what every pass folds it with.
#[test]
fn folded_weights_are_observed_as_they_are_deployed() {
    let net = quantised("start_epoch: 0\nscheme: {weights: {symmetric: true, strategy: channel}}");
    let device = Device::flex().autodiff();
    let per = 2 * 9;
    let mut ranges: Vec<[f32; 2]> = Vec::new();
    for seed in 10..14 {
        let (w, gamma) = (host(net.stem.weight.val()), host(net.stem_norm.weight.val()));
        let var = host(net.stem_norm.running_var.get());
        let seen: Vec<[f32; 2]> = (0..8)
            .map(|c| {
                let f = gamma[c] / (var[c] + 1e-5).sqrt();
                let folded = w[c * per..][..per].iter().map(|w| w * f);
                folded.fold([f32::INFINITY, f32::NEG_INFINITY], |[lo, hi], v| [lo.min(v), hi.max(v)])
            })
            .collect();
        ranges = match ranges.is_empty() {
            true => seen,
            false => ranges
                .iter()
                .zip(&seen)
                .map(|(old, new)| [0, 1].map(|end| 0.99 * old[end] + 0.01 * new[end]))
                .collect(),
        };
        net.forward(Tensor::<4>::from_data(TensorData::new(images(seed), DIMS), &device), &OBSERVE);
    }
    let have = host(net.stem.weight_quantizer.range.get());
    for (c, range) in ranges.iter().enumerate() {
        for (end, want) in range.iter().enumerate() {
            let have = have[end * 8 + c];
            assert!((have - want).abs() <= 1e-5 * want.abs(), "channel {c}: {have} is not {want}");
        }
    }
}

/// Layers that read one place and ask for different grids each have their own.
#[test]
fn layers_that_disagree_quantise_their_own_inputs() {
    let net = observed(
        "start_epoch: 0\nignore: [depth]\nscheme_overrides: {side: {input_activations: {num_bits: 4}, weights: {symmetric: true}}}",
    );
    assert_eq!(host(net.stem_out.scheme.get())[0], 0.0, "the place only observes");
    assert_eq!(host(net.depth_out.scheme.get())[0], 8.0, "point alone reads it");
    let g = graph(&net);
    let convs = g.order.iter().filter(|&&op| g.op_kind[op] == lacuna_ir::OpKind::Conv);
    let by_producer: Vec<(String, Option<&str>)> = convs
        .map(|&op| {
            let made = g.producer(g.inputs_of(op)[0]).map(|p| g.op_kind[p].name());
            (g.op_name[op].clone(), made)
        })
        .collect();
    let reads = |name: &str| by_producer.iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!(reads("depth"), Some("Relu"));
    assert_eq!(reads("side"), Some("DequantizeLinear"));
    assert_eq!(reads("point"), Some("DequantizeLinear"));
}
