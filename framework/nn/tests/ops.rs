//! Our training ops against burn's own, forward and backward, over shapes, strides and paddings; and the same bytes
//! on one thread and on two.

use burn::tensor::activation::relu;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, TensorData};
use lacuna_nn::ops::fake_quant::Grid;
use lacuna_nn::ops::{self, Act, Window, conv::ConvShape};

/// Reproducible values in -1..1 with no two alike.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn leaf<const D: usize>(dims: [usize; D], seed: u64) -> Tensor<D> {
    let data = TensorData::new(values(dims.iter().product(), seed), dims);
    Tensor::from_data(data, &Device::flex().autodiff()).require_grad()
}

fn host<const D: usize>(t: Tensor<D>) -> Vec<f32> {
    t.into_data().try_to_vec().unwrap()
}

#[track_caller]
fn close(what: &str, got: &[f32], want: &[f32], bound: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= bound * largest, "{what}[{i}]: {g} is not {w} (largest {largest})");
    }
}

/// n, c, h, w, o, kernel, stride, padding.
const CONVOLUTIONS: &[[usize; 8]] = &[
    [1, 1, 3, 3, 1, 3, 1, 1],
    [2, 1, 28, 28, 16, 3, 2, 1],
    [3, 16, 14, 14, 16, 3, 1, 1],
    [5, 16, 14, 14, 33, 3, 2, 1],
    [4, 7, 9, 5, 6, 1, 1, 0],
    [2, 8, 14, 14, 40, 1, 1, 0],
    [3, 16, 14, 13, 32, 1, 2, 0],
    [9, 3, 11, 8, 17, 5, 3, 2],
    [2, 64, 4, 4, 64, 3, 1, 1],
    [1, 2, 6, 6, 3, 3, 1, 0],
    [7, 3, 6, 7, 4, 5, 1, 2],
];

#[test]
fn convolution_and_its_gradients_equal_burns() {
    for (i, &[n, c, h, w, o, k, stride, pad]) in CONVOLUTIONS.iter().enumerate() {
        let what = format!("convolution {i}");
        let (x, weight) = (leaf([n, c, h, w], 1 + i as u64), leaf([o, c, k, k], 100 + i as u64));
        let options = ConvOptions::new([stride, stride], [pad, pad], [1, 1], 1);
        let theirs = burn::tensor::module::conv2d(x.clone(), weight.clone(), None, options);
        let ours = ops::conv2d(x.clone(), weight.clone(), None, Window::new(stride, pad));
        assert_eq!(ours.dims(), theirs.dims(), "{what}");
        let dy = Tensor::from_data(
            TensorData::new(values(ours.dims().iter().product(), 7), ours.dims()),
            &Device::flex().autodiff(),
        );
        close(&what, &host(ours.clone()), &host(theirs.clone()), 1e-5);
        let ours = (ours * dy.clone()).sum().backward();
        let theirs = (theirs * dy).sum().backward();
        for (name, ours, theirs) in [
            ("dx", x.grad(&ours).unwrap(), x.grad(&theirs).unwrap()),
            ("dw", weight.grad(&ours).unwrap(), weight.grad(&theirs).unwrap()),
        ] {
            close(&format!("{what} {name}"), &host(ours), &host(theirs), 2e-5);
        }
    }
}

#[test]
fn convolution_gradients_equal_finite_differences() {
    let s = ConvShape::new([2, 3, 5, 6], [4, 3, 3, 3], 2, 1);
    let (x, w) = (values(2 * 3 * 5 * 6, 1), values(4 * 3 * 9, 2));
    let dy = values(2 * 4 * s.oh * s.ow, 3);
    let loss = |x: &[f32], w: &[f32]| -> f64 {
        let y = ops::conv::forward(x, w, &s);
        y.iter().zip(&dy).map(|(a, b)| *a as f64 * *b as f64).sum()
    };
    let (dx, dw) = (ops::conv::input_gradient(&w, &dy, &s), ops::conv::weight_gradient(&x, &dy, &s));
    // The loss is linear in each argument, so a large step has no truncation error.
    let step = 0.5f32;
    for i in 0..x.len() {
        let mut moved = x.clone();
        moved[i] += step;
        let slope = (loss(&moved, &w) - loss(&x, &w)) / step as f64;
        assert!((slope - dx[i] as f64).abs() < 1e-4, "dx[{i}] {} is not {slope}", dx[i]);
    }
    for i in 0..w.len() {
        let mut moved = w.clone();
        moved[i] += step;
        let slope = (loss(&x, &moved) - loss(&x, &w)) / step as f64;
        assert!((slope - dw[i] as f64).abs() < 1e-4, "dw[{i}] {} is not {slope}", dw[i]);
    }
}

#[test]
fn batch_norm_and_its_gradients_equal_the_composed_form() {
    for (i, &(dims, with_residual, act)) in [
        ([4, 3, 5, 7], false, false),
        ([2, 16, 14, 14], false, true),
        ([3, 8, 4, 4], true, true),
        ([6, 5, 1, 1], true, false),
    ]
    .iter()
    .enumerate()
    {
        let [_, c, _, _] = dims;
        let eps = 1e-5;
        let x = leaf(dims, 11 + i as u64);
        let (gamma, beta) = (leaf([c], 21), leaf([c], 22));
        let residual = leaf(dims, 31);
        let given = with_residual.then(|| residual.clone());
        let (ours, mean, var) = ops::batch_norm(
            x.clone(),
            gamma.clone(),
            beta.clone(),
            given,
            eps,
            if act { Act::Relu } else { Act::None },
        );

        let m = x.clone().mean_dim(0).mean_dim(2).mean_dim(3);
        let centred = x.clone() - m.clone();
        let v = (centred.clone() * centred.clone()).mean_dim(0).mean_dim(2).mean_dim(3);
        let mut theirs = centred / (v.clone() + eps).sqrt() * gamma.clone().reshape([1, c, 1, 1])
            + beta.clone().reshape([1, c, 1, 1]);
        if with_residual {
            theirs = theirs + residual.clone();
        }
        if act {
            theirs = relu(theirs);
        }
        let what = format!("batch norm {i}");
        close(&what, &host(ours.clone()), &host(theirs.clone()), 1e-5);
        close(&format!("{what} mean"), &host(mean), &host(m), 1e-5);
        close(&format!("{what} variance"), &host(var), &host(v), 1e-5);
        let dy = Tensor::from_data(
            TensorData::new(values(dims.iter().product(), 9), dims),
            &Device::flex().autodiff(),
        );
        let ours = (ours * dy.clone()).sum().backward();
        let theirs = (theirs * dy).sum().backward();
        close(&format!("{what} dx"), &host(x.grad(&ours).unwrap()), &host(x.grad(&theirs).unwrap()), 1e-4);
        for p in [&gamma, &beta] {
            close(&what, &host(p.grad(&ours).unwrap()), &host(p.grad(&theirs).unwrap()), 1e-4);
        }
        if with_residual {
            let (a, b) = (residual.grad(&ours).unwrap(), residual.grad(&theirs).unwrap());
            close(&format!("{what} residual"), &host(a), &host(b), 1e-6);
        }
    }
}

#[test]
fn fake_quant_rounds_ties_to_even_and_passes_gradients_inside_only() {
    let grid = Grid { scale: 0.5, zero: 3, lo: 0, hi: 255 };
    let x = [-2.0f32, -1.75, -1.5, -0.25, 0.25, 0.75, 1.0, 126.0, 126.2, 126.25, 126.26, f32::MAX, f32::MIN];
    let y = [-1.5f32, -1.5, -1.5, 0.0, 0.0, 1.0, 1.0, 126.0, 126.0, 126.0, 126.0, 126.0, -1.5];
    let d = [0.0f32, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0];
    let device = Device::flex().autodiff();
    let x = Tensor::<1>::from_floats(x, &device).require_grad();
    let out = ops::fake_quant(x.clone(), grid);
    assert_eq!(host(out.clone()), y);
    let grads = out.sum().backward();
    assert_eq!(host(x.grad(&grads).unwrap()), d);
    for (x, y) in host(x).iter().zip(y) {
        let q = ((x / grid.scale).round_ties_even() as i64).saturating_add(3).clamp(0, 255);
        assert_eq!((q - 3) as f32 * grid.scale, y, "the expectation itself, from the definition, at {x}");
    }
}

#[test]
fn channels_have_their_own_grid() {
    let w = [0.3f32, -0.6, 10.0, 30.0];
    let scales = Tensor::<1>::from_floats([0.25, 8.0], &Device::flex());
    let out = ops::fake_quant_channels(
        Tensor::<1>::from_floats(w, &Device::flex()).reshape([2, 2]),
        scales,
        -128,
        127,
    );
    assert_eq!(host(out), [0.25, -0.5, 8.0, 32.0]);
}

#[test]
fn one_thread_and_two_give_the_same_bytes() {
    let s = ConvShape::new([13, 16, 14, 14], [32, 16, 3, 3], 2, 1);
    let (x, w) = (values(13 * 16 * 196, 1), values(32 * 16 * 9, 2));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let y = ops::conv::forward(&x, &w, &s);
            let n = ops::batch_norm::forward(&y, [13, 32, 49], &[1.5; 32], &[0.1; 32], None, 1e-5, true);
            let g = ops::batch_norm::backward(
                &y,
                &n.y,
                &n.y,
                [13, 32, 49],
                &[1.5; 32],
                &n.mean,
                &n.var,
                1e-5,
                true,
                false,
            );
            let dx = ops::conv::input_gradient(&w, &g.x, &s);
            let dw = ops::conv::weight_gradient(&x, &g.x, &s);
            [y, n.y, g.x, dx, dw].concat().iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
        })
    };
    let one = run(1);
    for threads in [2, 3] {
        assert!(one == run(threads), "{threads} threads differ from one");
    }
}
