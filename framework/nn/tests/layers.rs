//! Padding, groups, activations and ranks of layers.

use burn::tensor::module::conv_transpose2d;
use burn::tensor::ops::ConvTransposeOptions;
use burn::tensor::{Device, Tensor, TensorData};
use lacuna_nn::layers::{
    self, Act, BatchNorm, Conv2d, ConvTranspose2d, Embedding, Init, LayerNorm, Linear, Padding,
};
use lacuna_nn::params::{ParamTable, Role, update_each};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Norm, Pass, Quant};

fn host<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().try_to_vec().unwrap()
}

fn values<const D: usize>(dims: [usize; D]) -> Tensor<D> {
    let n: usize = dims.iter().product();
    let values: Vec<f32> = (0..n).map(|i| ((i * 7919 + 13) % 211) as f32 / 50.0 - 2.0).collect();
    Tensor::from_data(TensorData::new(values, dims), &Device::flex())
}

/// With a quantiser that has seen nothing, and so does nothing.
fn conv_norm(
    x: &Activation<4>,
    conv: &Conv2d,
    norm: &BatchNorm,
    residual: Option<Tensor<4>>,
    act: Act,
    pass: &Pass,
) -> Tensor<4> {
    let quantizer = ActivationQuantizer::new(&Device::flex());
    layers::conv_norm(x, conv, norm, residual, act, &quantizer, pass).x
}

#[track_caller]
fn close(a: Tensor<4>, b: Tensor<4>) {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (host(a), host(b));
    assert!(b.iter().any(|v| v.abs() > 0.1), "a comparison with zeros says nothing");
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        assert!((a - b).abs() < 1e-4, "element {i}: {a} is not {b}");
    }
}

#[test]
fn same_padding_is_tensorflows() {
    let init = &mut Init::new(&Device::flex(), 0);
    // Window, stride, size; zeros before and behind.
    let cases = [
        (3, 2, 224, 0, 1),
        (5, 2, 112, 1, 2),
        (5, 2, 7, 2, 2),
        (3, 1, 7, 1, 1),
        (1, 1, 7, 0, 0),
        (1, 2, 8, 0, 0),
        (3, 2, 1, 1, 1),
    ];
    for (kernel, stride, size, begin, end) in cases {
        let conv = Conv2d::new(2, 2, kernel, stride, init).with_padding(Padding::Same);
        let window = conv.window([size, 2 * size]);
        assert_eq!((window.pad_begin[0], window.pad_end[0]), (begin, end), "{kernel} by {stride} on {size}");
        let norm = BatchNorm::new(2, init);
        let x = Activation::plain(values([1, 2, size, 2 * size]));
        let y = conv_norm(&x, &conv, &norm, None, Act::None, &Pass::default());
        assert_eq!(y.dims(), [1, 2, size.div_ceil(stride), (2 * size).div_ceil(stride)]);
    }
    assert_eq!(Conv2d::new(2, 2, 5, 2, init).window([9, 9]).pad_end, [2, 2], "half the window by default");
}

/// Results and every derivative are those of burn's own op.
#[test]
fn a_transposed_convolution_without_overlap_is_burns() {
    let device = Device::flex().autodiff();
    for k in [2, 3] {
        let layer = ConvTranspose2d::new(5, 4, k, &mut Init::new(&device, 3));
        let run = |ours: bool| {
            let x = Tensor::from_inner(values([2, 5, 3, 4])).require_grad();
            let y = match ours {
                true => layer.forward(&Activation::plain(x.clone()), &Pass::default()),
                false => {
                    let options = ConvTransposeOptions::new([k, k], [0, 0], [0, 0], [1, 1], 1);
                    conv_transpose2d(x.clone(), layer.weight.val(), Some(layer.bias.val()), options)
                }
            };
            let gradients = (y.clone() * Tensor::from_inner(values([2, 4, 3 * k, 4 * k]))).sum().backward();
            let of = |x: &Tensor<4>| x.grad(&gradients).unwrap();
            let bias = layer.bias.val().grad(&gradients).unwrap().reshape([1, 1, 1, 4]);
            [y.inner(), of(&x), of(&layer.weight.val()), bias]
        };
        for (ours, theirs) in run(true).into_iter().zip(run(false)) {
            close(ours, theirs);
        }
    }
}

#[test]
fn a_convolution_in_groups_is_one_of_each_group() {
    let init = &mut Init::new(&Device::flex(), 1);
    let conv = Conv2d::grouped(6, 4, 3, 2, 2, init);
    let norm = BatchNorm::new(4, init);
    let x = values([2, 6, 7, 8]);
    let all = conv_norm(&Activation::plain(x.clone()), &conv, &norm, None, Act::None, &Pass::default());
    let parts = (0..2).map(|g| {
        let mut part = Conv2d::new(3, 2, 3, 2, init);
        part.weight = burn::module::Param::from_tensor(conv.weight.val().narrow(0, 2 * g, 2));
        let x = Activation::plain(x.clone().narrow(1, 3 * g, 3));
        conv_norm(&x, &part, &BatchNorm::new(2, init), None, Act::None, &Pass::default())
    });
    close(all, Tensor::cat(parts.collect(), 1));
}

/// A quantised layer that has seen nothing computes what the plain one does, with its norm folded.
#[test]
fn folding_keeps_what_a_layer_computes() {
    let init = &mut Init::new(&Device::flex(), 2);
    let acts = [Act::None, Act::Relu, Act::Relu6, Act::Silu, Act::HardSwish];
    for (i, act) in acts.into_iter().enumerate() {
        let conv = Conv2d::depthwise(5, 3, 1 + i % 2, init).with_padding(Padding::Same);
        let norm = BatchNorm::new(5, init).with(1e-3, 0.01);
        norm.running_mean.set(values([5]));
        norm.running_var.set(values([5]).abs() + 0.1);
        let norm = update_each(norm, |row, v| {
            if row < 2 {
                v.iter_mut().enumerate().for_each(|(i, v)| *v += 0.3 * i as f32);
            }
        });
        let x = Activation::plain(values([2, 5, 6, 7]));
        let run = |quant, residual| {
            conv_norm(&x, &conv, &norm, residual, act, &Pass { quant, norm: Norm::Frozen, ..Pass::default() })
        };
        let residual = run(Quant::Off, None) * 0.5;
        close(run(Quant::Frozen, None), run(Quant::Off, None));
        close(run(Quant::Frozen, Some(residual.clone())), run(Quant::Off, Some(residual)));
    }
}

#[test]
fn eps_and_momentum_are_the_layers_own() {
    let device = Device::flex().autodiff();
    let init = &mut Init::new(&device, 2);
    let conv = Conv2d::new(1, 1, 1, 1, init);
    let conv = update_each(conv, |row, v| {
        if row == 0 {
            v.fill(1.0);
        }
    });
    let norm = BatchNorm::new(1, init).with(0.5, 0.25);
    let x = Tensor::<1>::from_floats([0.0, 2.0, 4.0, 6.0], &device).reshape([4, 1, 1, 1]);
    let y = conv_norm(&Activation::plain(x), &conv, &norm, None, Act::None, &Pass::default());
    // Mean 3, variance 5, of a sample 20 / 3.
    let scale = 1.0 / 5.5f32.sqrt();
    for (y, want) in host(y).iter().zip([-3.0, -1.0, 1.0, 3.0]) {
        assert!((y - want * scale).abs() < 1e-5, "{y} is not {}", want * scale);
    }
    assert!((host(norm.running_mean.get())[0] - 0.75).abs() < 1e-6);
    assert!((host(norm.running_var.get())[0] - (0.75 + 0.25 * 20.0 / 3.0)).abs() < 1e-5);
}

#[test]
fn layers_over_the_last_axis_take_any_rank() {
    let init = &mut Init::new(&Device::flex(), 2);
    let x = values([2, 3, 8]);
    let rows: Tensor<2> = x.clone().reshape([6, 8]);
    let pass = Pass::default();
    let linear = Linear::new(8, 5, init);
    let have = linear.forward(&Activation::plain(x.clone()), &pass);
    let want = linear.forward(&Activation::plain(rows.clone()), &pass);
    close(have.reshape([1, 1, 6, 5]), want.reshape([1, 1, 6, 5]));

    let norm = LayerNorm::new(8, 1e-5, init);
    let have = norm.forward(x.clone(), Some(x.clone()));
    let twice = rows * 2.0;
    let centred = twice.clone() - twice.mean_dim(1);
    let deviation = (centred.clone().powi_scalar(2).mean_dim(1) + 1e-5).sqrt();
    close(have.reshape([1, 1, 6, 8]), (centred / deviation).reshape([1, 1, 6, 8]));

    let table = Embedding::new(4, 3, 1.0, init);
    let ids = Tensor::<2, burn::tensor::Int>::from_ints([[3, 0], [1, 1]], &Device::flex());
    let w = host(table.weight.val());
    let want: Vec<f32> = [3usize, 0, 1, 1].iter().flat_map(|&i| w[3 * i..3 * i + 3].to_vec()).collect();
    assert_eq!(host(table.forward(ids, &Pass::default())), want);
    assert_eq!(host(table.rows(0, 2, &Pass::default())), w[..6]);
    assert_eq!(ParamTable::of(&table).role, [Role::Embedding, Role::Buffer, Role::Buffer, Role::Buffer]);
}
