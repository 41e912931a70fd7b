//! Captures modules that know nothing of this framework, and what cannot be captured.

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{
    BatchNorm, BatchNormConfig, Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig,
    PaddingConfig2d,
};
use burn::tensor::activation::{gelu, leaky_relu, relu, sigmoid, softmax};
use burn::tensor::module::{adaptive_avg_pool2d, avg_pool2d};
use burn::tensor::ops::AvgPoolOptions;
use burn::tensor::{Device, Int, Tensor, TensorData};
use lacuna_ir::{Dim, Graph, OpKind, interp, passes, text, verify};
use lacuna_nn::Tokens;
use lacuna_nn::capture::{CaptureError, capture, capture_tokens};
use lacuna_nn::layers::resize_bilinear;
use lacuna_nn::quant::bias_on_grid;

fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn tensor<const D: usize>(shape: [usize; D], seed: u32) -> Tensor<D> {
    Tensor::from_data(TensorData::new(numbers(shape.iter().product(), seed), shape), &Device::flex())
}

fn host<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().try_to_vec().unwrap()
}

/// Runs the graph on the elements of `x`.
fn run<const D: usize>(g: &Graph, x: &Tensor<D>) -> Vec<lacuna_ir::Tensor> {
    let t = lacuna_ir::Tensor::from_f32(&x.dims(), host(x.clone()));
    interp::run(g, &[t]).unwrap()
}

#[track_caller]
fn assert_close(have: &lacuna_ir::Tensor, want: &[f32]) {
    let have = have.as_f32().unwrap();
    assert_eq!(have.len(), want.len());
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(largest > 0.0, "a comparison with zeros says nothing");
    for (i, (a, b)) in have.iter().zip(want).enumerate() {
        assert!((a - b).abs() <= 1e-5 * largest, "element {i}: {a} where burn has {b} (largest {largest})");
    }
}

#[derive(Module, Debug)]
struct Net {
    conv: Conv2d,
    norm: BatchNorm,
    pool: MaxPool2d,
    fc: Linear,
}

impl Net {
    fn new(device: &Device) -> Net {
        let padding = PaddingConfig2d::Explicit(1, 0, 2, 1);
        Net {
            conv: Conv2dConfig::new([2, 4], [3, 3]).with_padding(padding).with_groups(2).init(device),
            norm: BatchNormConfig::new(4).init(device),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            fc: LinearConfig::new(4 * 4 * 3, 5).init(device),
        }
    }

    fn features(&self, x: Tensor<4>) -> Tensor<2> {
        self.pool.forward(relu(self.norm.forward(self.conv.forward(x)))).flatten(1, 3)
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        self.fc.forward(self.features(x))
    }
}

/// After a few training batches, so that the running statistics are not those of a new layer.
fn trained() -> Net {
    let net = Net::new(&Device::flex().autodiff());
    for step in 0..3 {
        let x = tensor([8, 2, 8, 8], 100 + step).mul_scalar(3.0).add_scalar(0.7);
        net.forward(Tensor::from_inner(x));
    }
    net.valid()
}

#[test]
fn any_burn_module() {
    let net = trained();
    let x = tensor([3, 2, 8, 8], 1);
    let want = host(net.forward(x.clone()));
    let g = capture(&net, "image", [1, 2, 8, 8], &["logits"], Net::forward).unwrap();
    assert_close(&run(&g, &x)[0], &want);
    assert_eq!(host(net.forward(x.clone())), want, "capturing must not change or move the module");

    let kinds: Vec<&str> = g.order.iter().map(|&op| g.op_kind[op].name()).collect();
    assert_eq!(kinds, ["Conv", "BatchNormalization", "Relu", "MaxPool", "Reshape", "Gemm"]);
    let ops: Vec<&str> = g.order.iter().map(|&op| g.op_name[op].as_str()).collect();
    assert_eq!(ops, ["conv", "norm", "relu_0", "max_pool_0", "reshape_0", "fc"]);
    for name in ["image", "logits", "conv.weight", "norm.gamma", "norm.running_var", "fc.bias"] {
        assert_eq!(g.value_name.iter().filter(|(_, n)| *n == name).count(), 1, "{name}");
    }
    let batch = g.symbols.iter().find(|(_, n)| *n == "batch").map(|(id, _)| Dim::Symbol(id)).unwrap();
    assert_eq!(g.shape(g.inputs[0]), [batch, Dim::Fixed(2), Dim::Fixed(8), Dim::Fixed(8)]);
    assert_eq!(g.shape(g.outputs[0]), [batch, Dim::Fixed(5)]);

    let mut folded = g.clone();
    assert_eq!(passes::fold_batch_norm(&mut folded).unwrap(), 1);
    passes::drop_dead(&mut folded).unwrap();
    verify::verify(&folded).unwrap();
    assert_close(&run(&folded, &x)[0], &want);
    assert!(folded.value_name.iter().any(|(_, n)| n == "conv.weight"));
}

#[test]
fn same_text_at_every_capture() {
    let net = trained();
    let once = || text::print_full(&capture(&net, "x", [9, 2, 8, 8], &["y"], Net::forward).unwrap());
    assert_eq!(once(), once());
}

#[test]
fn several_outputs_of_any_rank() {
    let net = trained();
    let forward = |net: &Net, x: Tensor<4>| {
        let a = relu(net.conv.forward(x));
        (a.clone(), vec![a.clone().flatten::<2>(1, 3), a.flatten::<2>(1, 3)])
    };
    let g = capture(&net, "x", [1, 2, 8, 8], &["a", "b", "c"], forward).unwrap();
    let x = tensor([2, 2, 8, 8], 4);
    let (a, rest) = forward(&net, x.clone());
    let have = run(&g, &x);
    assert_close(&have[0], &host(a));
    for (have, want) in have[1..].iter().zip(rest) {
        assert_close(have, &host(want));
    }
    let names: Vec<&str> = g.outputs.iter().map(|&v| g.value_name[v].as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[test]
fn a_tensor_returned_twice_or_returned_as_it_came() {
    let net = trained();
    let forward = |net: &Net, x: Tensor<4>| {
        let y = net.features(x.clone());
        (y.clone(), y, x, net.fc.weight.val())
    };
    let g = capture(&net, "x", [1, 2, 8, 8], &["a", "b", "same", "weight"], forward).unwrap();
    let x = tensor([2, 2, 8, 8], 5);
    let want = host(net.features(x.clone()));
    let have = run(&g, &x);
    assert_close(&have[0], &want);
    assert_close(&have[1], &want);
    assert_close(&have[2], &host(x));
    assert_close(&have[3], &host(net.fc.weight.val()));
}

#[derive(Module, Debug)]
struct Scale {
    by: Param<Tensor<4>>,
}

#[test]
fn arithmetic_and_shapes() {
    let net = Scale { by: Param::from_tensor(tensor([1, 3, 1, 1], 8)) };
    let forward = |net: &Scale, x: Tensor<4>| {
        let small = adaptive_avg_pool2d(x.clone(), [2, 2]);
        let same =
            avg_pool2d(x.clone(), AvgPoolOptions::new([3, 3]).with_stride([2, 2]).with_padding([1, 1]));
        let a = (sigmoid(x) * net.by.val().sqrt().add_scalar(1.0)).clamp(-0.4, 0.6).sub_scalar(0.1);
        let b = (-a.clone()).add_scalar(2.0).recip().permute([0, 2, 3, 1]).swap_dims(1, 2);
        let c = softmax(b.reshape([0, -1, 3]), 2).mean_dim(1);
        let d = Tensor::cat(vec![small.clone(), small / 2.0, same.clone() - same.div_scalar(3.0)], 1);
        (c, d, a.clamp_min(0.0).clamp_max(0.3) + Tensor::ones([1, 3, 1, 1], &net.by.device()))
    };
    // The square root of a parameter must exist.
    let net = Scale { by: net.by.map(|t| t.abs()) };
    let g = capture(&net, "x", [1, 3, 4, 4], &["c", "d", "e"], forward).unwrap();
    let x = tensor([5, 3, 4, 4], 9);
    let (c, d, e) = forward(&net, x.clone());
    let have = run(&g, &x);
    assert_close(&have[0], &host(c));
    assert_close(&have[1], &host(d));
    assert_close(&have[2], &host(e));
    assert!(g.order.iter().all(|&op| g.op_kind[op] != OpKind::Sqrt), "parameters alone are evaluated");
}

/// Sizes whose quotient is no whole number, and one that f32 rounds down.
#[test]
fn values_between_pixels() {
    let net = trained();
    for ([h, w], size) in [([5, 9], [9, 18]), ([18, 35], [35, 69]), ([3, 7], [10, 1])] {
        let forward = |_: &Net, x: Tensor<4>| leaky_relu(resize_bilinear(x, size), 0.1).tanh();
        let x = tensor([2, 3, h, w], 4);
        let g = capture(&net, "x", [1, 3, h, w], &["y"], forward).unwrap();
        let kinds: Vec<&str> = g.order.iter().map(|&op| g.op_kind[op].name()).collect();
        assert_eq!(kinds, ["Interpolate", "LeakyRelu", "Tanh"]);
        assert_close(&run(&g, &x)[0], &host(forward(&net, x.clone())));
    }
}

#[test]
fn matrix_products() {
    let net = LinearConfig::new(6, 4).init(&Device::flex());
    let forward = |net: &Linear, x: Tensor<3>| {
        let w = net.weight.val();
        let rows = x.clone().mean_dim(1).reshape([0, 6]);
        let o = 4;
        let own = rows.clone().matmul(w.clone()) + net.bias.as_ref().unwrap().val().reshape([1, o]);
        let plain = rows.clone().matmul(w.clone());
        let shared = plain.clone() + net.bias.as_ref().unwrap().val().reshape([1, o]);
        (net.forward(x.clone()), own, plain * shared, x.clone().matmul(x.swap_dims(1, 2)))
    };
    let g = capture(&net, "x", [1, 3, 6], &["a", "b", "c", "d"], forward).unwrap();
    let x = tensor([2, 3, 6], 3);
    let (a, b, c, d) = forward(&net, x.clone());
    let have = run(&g, &x);
    assert_close(&have[0], &host(a));
    assert_close(&have[1], &host(b));
    assert_close(&have[2], &host(c));
    assert_close(&have[3], &host(d));
    let gemms = g.order.iter().filter(|&&op| g.op_kind[op] == OpKind::Gemm);
    let operands: Vec<usize> = gemms.map(|&op| g.inputs_of(op).len()).collect();
    assert_eq!(operands, [3, 2], "a product that is read twice keeps its own result");
}

#[derive(Module, Debug)]
struct Sequence {
    table: Embedding,
    places: Param<Tensor<2>>,
    norm: LayerNorm,
    fc: Linear,
}

#[test]
fn sequences_of_any_length() {
    let device = Device::flex();
    let net = Sequence {
        table: EmbeddingConfig::new(20, 6).init(&device),
        places: Param::from_tensor(tensor([12, 6], 3)),
        norm: LayerNormConfig::new(6).init(&device),
        fc: LinearConfig::new(6, 4).init(&device),
    };
    let forward = |net: &Sequence, x: Tokens| {
        let [n, length] = x.ids.dims();
        // Positions count from the third row on.
        let x_places = net.places.val().narrow(0, 2, length).unsqueeze();
        let (mask, types) =
            (x.mask.unwrap().unsqueeze_dim::<3>(2), x.types.unwrap().float().unsqueeze_dim::<3>(2));
        let y = gelu(net.norm.forward(net.table.forward(x.ids) + x_places + types)) * mask.clone();
        let y = net.fc.forward(y);
        let first = y.clone().narrow(1, 0, 1).reshape([n, 4]).tanh();
        let mean = (y.clone().sum_dim(1) / mask.sum_dim(1)).reshape([n, 4]);
        let half = y.clone().narrow(2, 1, 2);
        (first, mean, half, y.clone().matmul(y.swap_dims(1, 2)))
    };
    let names = ["first", "mean", "half", "product"];
    let g = capture_tokens(&net, true, &names, forward).unwrap();
    let inputs: Vec<&str> = g.inputs.iter().map(|&v| g.value_name[v].as_str()).collect();
    assert_eq!(inputs, ["input_ids", "attention_mask", "token_type_ids"]);
    for (n, length) in [(1, 1), (2, 5), (4, 10)] {
        let numbers = |f: &dyn Fn(usize) -> i64| (0..n * length).map(f).collect::<Vec<i64>>();
        let lists = [
            numbers(&|i| (i * 7 % 20) as i64),
            numbers(&|i| i64::from(i % length <= i / length)),
            numbers(&|i| (i % 2) as i64),
        ];
        let [ids, mask, types] =
            lists.clone().map(|x| Tensor::<2, Int>::from_data(TensorData::new(x, [n, length]), &device));
        let (a, b, c, d) = forward(&net, Tokens { ids, mask: Some(mask.float()), types: Some(types) });
        let have = interp::run(&g, &lists.map(|x| lacuna_ir::Tensor::from_i64(&[n, length], x))).unwrap();
        assert_close(&have[0], &host(a));
        assert_close(&have[1], &host(b));
        assert_close(&have[2], &host(c));
        assert_close(&have[3], &host(d));
    }
    // No more positions than there are rows.
    let long = lacuna_ir::Tensor::from_i64(&[1, 11], vec![1; 11]);
    assert!(interp::run(&g, &[long.clone(), long.clone(), long]).is_err());
}

// ---- what cannot be captured -----------------------------------------------------------------------

fn error<const D: usize, O: lacuna_nn::capture::Outputs>(
    shape: [usize; D],
    forward: impl Fn(&Net, Tensor<D>) -> O,
) -> CaptureError {
    let names: Vec<&str> = vec!["y"];
    capture(&trained(), "x", shape, &names, forward).unwrap_err()
}

#[test]
fn unknown_op_is_named_with_the_parameter_before_it() {
    let e = error([1, 2, 8, 8], |net, x| net.fc.forward(net.features(x).log()));
    let CaptureError::Op { op, near, .. } = &e else { panic!("{e}") };
    assert_eq!((op.as_str(), near.as_str()), ("Log", "norm.gamma"));
    assert!(e.to_string().contains("op Log near 'norm.gamma'"), "{e}");
}

#[test]
fn unknown_op_without_effect_does_not_matter() {
    let forward = |net: &Net, x: Tensor<4>| {
        let _ = x.clone().log();
        net.forward(x)
    };
    capture(&trained(), "x", [1, 2, 8, 8], &["y"], forward).unwrap();
}

#[test]
fn numbers_that_follow_the_batch_size() {
    let e = error([1, 2, 8, 8], |net, x| {
        let n = x.dims()[0] as f32;
        net.forward(x) / n
    });
    assert!(
        matches!(&e, CaptureError::Batch { op, near, .. } if op == "DivScalar" && near == "fc.weight"),
        "{e}"
    );

    let e = error([1, 2, 8, 8], |_, x| {
        let [n, c, h, w] = x.dims();
        x.reshape([n * c, h * w])
    });
    assert!(matches!(&e, CaptureError::Batch { op, .. } if op == "Reshape"), "{e}");

    let e = error([1, 2, 8, 8], |net, x| if x.dims()[0] > 2 { relu(net.forward(x)) } else { net.forward(x) });
    assert!(matches!(&e, CaptureError::Batch { op, .. } if op == "Relu"), "{e}");

    let e = error([1, 2, 8, 8], |net, x| {
        let noise = Tensor::ones([x.dims()[0], 5], &x.device());
        net.forward(x) + noise
    });
    assert!(matches!(&e, CaptureError::Op { op, .. } if op == "Ones"), "{e}");
}

#[test]
fn forward_pass_that_stops() {
    let e = error([1, 2, 8, 8], |net, x| {
        let _ = x.clone().into_data();
        net.forward(x)
    });
    assert!(matches!(&e, CaptureError::Forward { batch: 2, .. }), "{e}");
    let e = error([1, 3, 8, 8], Net::forward);
    assert!(matches!(&e, CaptureError::Forward { .. }), "a shape that does not fit: {e}");
    capture(&trained(), "x", [1, 2, 8, 8], &["y"], Net::forward).expect("the device is free again");
}

#[test]
fn names_and_outputs_that_do_not_fit() {
    let net = trained();
    let e = capture(&net, "x", [1, 2, 8, 8], &["x"], Net::forward).unwrap_err();
    assert!(matches!(&e, CaptureError::Name(name) if name == "x"), "{e}");
    let e = capture(&net, "x", [1, 2, 8, 8], &["a", "b"], Net::forward).unwrap_err();
    assert!(matches!(e, CaptureError::Output { index: 1, .. }), "{e}");
    let e = error([1, 2, 8, 8], |_, x: Tensor<4>| Tensor::<1>::ones([x.dims()[1]], &Device::flex()));
    assert!(matches!(e, CaptureError::Output { index: 0, .. }), "{e}");
    let e = error([1, 2, 8, 8], |net, _: Tensor<4>| net.fc.weight.val());
    assert!(matches!(e, CaptureError::Output { .. }), "{e}");
}

// ---- grids -----------------------------------------------------------------------------------------

#[test]
fn biases_far_out_on_their_grid() {
    let values = [3.5e-9, -2.5e-9, 0.75, -0.3, 40.0, -40.0, 0.008_388_5];
    let scales = [1e-9f32; 7];
    let net = Scale { by: Param::from_tensor(tensor([1, 1, 1, 1], 1)) };
    let forward = |_: &Scale, x: Tensor<2>| {
        let bias = Tensor::<1>::from_floats(values, &x.device());
        x + bias_on_grid(bias, 1.0, &scales).reshape([1, 7])
    };
    let g = capture(&net, "x", [1, 7], &["y"], forward).unwrap();
    let x: Tensor<2> = Tensor::zeros([1, 7], &Device::flex());
    let have = run(&g, &x);
    let (lo, hi) = (i32::MIN as f32, i32::MAX as f32);
    let on_grid = |(v, s): (&f32, &f32)| (v / s).round_ties_even().max(lo).min(hi) * s;
    let want: Vec<f32> = values.iter().zip(&scales).map(on_grid).collect();
    assert_eq!(have[0].as_f32().unwrap(), want);
    assert!(
        (have[0].as_f32().unwrap()[2] - 0.75).abs() < 1e-6,
        "whole numbers above 2^23 are on the grid too"
    );
}
