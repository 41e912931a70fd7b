//! Our training ops against burn's own and against finite differences, forward and backward, over shapes, strides,
//! groups and paddings; and the same bytes on one thread and on two.
//!
//! A case is a loss as a function of flat leaves, once with our op and once with its plain form on the same device.

use burn::tensor::{Device, Int, Tensor, TensorData};
use lacuna_nn::ops::{self, Act, Grid, Window, plain};

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

fn device() -> Device {
    Device::flex().autodiff()
}

fn leaf(values: &[f32]) -> Tensor<1> {
    Tensor::from_floats(values, &device()).require_grad()
}

fn constant<const D: usize>(dims: [usize; D], seed: u64) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values(dims.iter().product(), seed), dims), &device())
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

/// Σ y · weights with fixed weights, so that every element of y has its own slope.
fn weighed<const D: usize>(y: Tensor<D>) -> Tensor<1> {
    let dims = y.dims();
    (y * constant(dims, 77)).sum()
}

type Loss<'a> = &'a dyn Fn(&[Tensor<1>]) -> Tensor<1>;

/// The loss and its gradients at the leaves of `sizes` elements.
fn slopes(sizes: &[usize], loss: Loss<'_>) -> (f32, Vec<Vec<f32>>) {
    let leaves: Vec<Tensor<1>> =
        sizes.iter().enumerate().map(|(i, &n)| leaf(&values(n, 1 + i as u64))).collect();
    let value = loss(&leaves);
    let gradients = value.backward();
    let all =
        leaves.iter().map(|l| host(l.grad(&gradients).expect("every leaf leads to the loss"))).collect();
    (value.into_scalar(), all)
}

/// Our op equals its plain form and, along one direction of each leaf, finite differences.
#[track_caller]
fn check(what: &str, sizes: &[usize], ours: Loss<'_>, theirs: Loss<'_>) {
    let (value, gradients) = slopes(sizes, ours);
    let (plain_value, plain_gradients) = slopes(sizes, theirs);
    let scale = sizes[0] as f32;
    assert!((value - plain_value).abs() <= 1e-5 * scale.max(10.0), "{what}: {value} is not {plain_value}");
    for (i, (a, b)) in gradients.iter().zip(&plain_gradients).enumerate() {
        close(&format!("{what}, gradient of input {i}"), a, b, 2e-4);
    }
    for (i, gradient) in gradients.iter().enumerate() {
        let direction = values(sizes[i], 500 + i as u64);
        let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| *g as f64 * *d as f64).sum();
        let at = |step: f32| -> f64 {
            let leaves: Vec<Tensor<1>> = (0..sizes.len())
                .map(|l| {
                    let mut v = values(sizes[l], 1 + l as u64);
                    if l == i {
                        v.iter_mut().zip(&direction).for_each(|(v, d)| *v += step * d);
                    }
                    leaf(&v)
                })
                .collect();
            ours(&leaves).into_scalar::<f32>() as f64
        };
        // Small enough that few values cross a kink, large enough for f32 sums.
        let step = 1e-3f32;
        let measured = (at(step) - at(-step)) / (2.0 * step as f64);
        let size: f64 = gradient.iter().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
        assert!(
            (measured - slope).abs() <= 0.06 * size + 0.02,
            "{what}, input {i}: slope {slope}, finite difference {measured} (gradient of length {size})"
        );
    }
}

/// Image [n,c,h,w], output channels, kernel, and the window.
fn convolutions() -> Vec<([usize; 4], usize, [usize; 2], Window)> {
    let plain = |x, o, k: usize, stride, pad| (x, o, [k, k], Window::new(stride, pad));
    let mut all = vec![
        plain([1, 1, 3, 3], 1, 3, 1, 1),
        plain([2, 1, 28, 28], 16, 3, 2, 1),
        plain([3, 16, 14, 14], 16, 3, 1, 1),
        plain([5, 16, 14, 14], 33, 3, 2, 1),
        plain([4, 7, 9, 5], 6, 1, 1, 0),
        plain([2, 8, 14, 14], 40, 1, 1, 0),
        plain([3, 16, 14, 13], 32, 1, 2, 0),
        plain([9, 3, 11, 8], 17, 5, 3, 2),
        plain([2, 64, 4, 4], 64, 3, 1, 1),
        plain([1, 2, 6, 6], 3, 3, 1, 0),
        plain([7, 3, 6, 7], 4, 5, 1, 2),
        plain([2, 3, 20, 20], 8, 7, 2, 3),
        ([2, 6, 8, 9], 9, [3, 1], Window::new(1, 1)),
        ([2, 8, 9, 9], 12, [3, 3], Window::new(1, 1).grouped(4)),
        ([2, 8, 9, 9], 8, [3, 3], Window::new(2, 1).grouped(2)),
    ];
    for (c, k, stride) in [(1, 3, 1), (24, 3, 1), (24, 3, 2), (40, 5, 1), (17, 5, 2)] {
        all.push(([3, c, 11, 10], c, [k, k], Window::new(stride, k / 2).grouped(c)));
    }
    all.push(([2, 5, 9, 8], 4, [3, 3], Window { dilation: [2, 2], ..Window::new(1, 2) }));
    let uneven = Window { pad_begin: [0, 1], pad_end: [1, 2], ..Window::new(2, 0) };
    all.push(([2, 5, 8, 9], 4, [3, 3], uneven));
    all.push(([2, 20, 8, 8], 20, [3, 3], uneven.grouped(20)));
    all
}

#[test]
fn convolutions_have_burns_values_and_slopes() {
    for (x, o, [kh, kw], window) in convolutions() {
        let w = [o, x[1] / window.groups, kh, kw];
        let sizes = [x.iter().product(), w.iter().product(), o];
        let own = |l: &[Tensor<1>]| {
            let [x, w, b] =
                [l[0].clone().reshape(x), l[1].clone().reshape(w), l[2].clone().reshape([o, 1, 1, 1])];
            weighed(ops::conv2d(x, w, Some(b.reshape([o])), window, false))
        };
        let burns = |l: &[Tensor<1>]| {
            weighed(plain::conv2d(
                l[0].clone().reshape(x),
                l[1].clone().reshape(w),
                Some(l[2].clone()),
                window,
            ))
        };
        check(&format!("convolution of {x:?} by {w:?}, {window:?}"), &sizes, &own, &burns);
    }
}

const ACTS: [Act; 6] = [Act::None, Act::Relu, Act::Relu6, Act::Leaky, Act::Silu, Act::HardSwish];

#[test]
fn batch_norms_have_burns_values_and_slopes() {
    for (i, dims) in
        [[4, 3, 5, 7], [2, 16, 14, 14], [3, 8, 4, 4], [6, 5, 1, 1], [2, 40, 9, 3]].into_iter().enumerate()
    {
        for act in ACTS {
            for with_residual in [false, true] {
                let (n, c): (usize, usize) = (dims.iter().product(), dims[1]);
                let sizes = if with_residual { vec![n, c, c, n] } else { vec![n, c, c] };
                let residual = |l: &[Tensor<1>]| with_residual.then(|| l[3].clone().reshape(dims));
                let own = |l: &[Tensor<1>]| {
                    let x = l[0].clone().reshape(dims);
                    weighed(ops::batch_norm(x, l[1].clone(), l[2].clone(), residual(l), 1e-5, act).0)
                };
                let burns = |l: &[Tensor<1>]| {
                    let x = l[0].clone().reshape(dims);
                    weighed(plain::batch_norm(x, l[1].clone(), l[2].clone(), residual(l), 1e-5, act).0)
                };
                check(&format!("batch norm {i}, {act:?}, residual {with_residual}"), &sizes, &own, &burns);
                let own = |l: &[Tensor<1>]| {
                    let x = l[0].clone().reshape(dims);
                    weighed(ops::affine(x, l[1].clone(), l[2].clone(), residual(l), act))
                };
                let burns = |l: &[Tensor<1>]| {
                    let x = l[0].clone().reshape(dims);
                    weighed(plain::affine(x, l[1].clone(), l[2].clone(), residual(l), act))
                };
                check(&format!("affine {i}, {act:?}, residual {with_residual}"), &sizes, &own, &burns);
            }
        }
    }
}

#[test]
fn batch_norm_gives_the_batchs_statistics() {
    let x = constant([5, 7, 6, 4], 3);
    let ones = Tensor::<1>::ones([7], &device());
    let (_, mean, var) = ops::batch_norm(x.clone(), ones.clone(), ones.clone(), None, 1e-5, Act::None);
    let (_, plain_mean, plain_var) = plain::batch_norm(x, ones.clone(), ones, None, 1e-5, Act::None);
    close("mean", &host(mean), &host(plain_mean), 1e-5);
    close("variance", &host(var), &host(plain_var), 1e-5);
}

#[test]
fn linear_layers_have_burns_values_and_slopes() {
    for (n, t, k, o) in [(1, 1, 1, 1), (3, 5, 17, 9), (2, 16, 64, 48), (4, 33, 40, 130)] {
        let sizes = [n * t * k, o * k, o];
        let parts = |l: &[Tensor<1>]| {
            (l[0].clone().reshape([n, t, k]), l[1].clone().reshape([o, k]), Some(l[2].clone()))
        };
        let own = |l: &[Tensor<1>]| {
            let (x, w, b) = parts(l);
            weighed(ops::linear(x, w, b, false))
        };
        let burns = |l: &[Tensor<1>]| {
            let (x, w, b) = parts(l);
            weighed(plain::linear(x, w, b))
        };
        check(&format!("linear {n}x{t}x{k} to {o}"), &sizes, &own, &burns);
    }
}

#[test]
fn layer_norms_have_burns_values_and_slopes() {
    for (n, t, width) in [(1, 3, 7), (2, 5, 64), (3, 4, 100)] {
        let rows = n * t * width;
        for with_residual in [false, true] {
            let sizes = if with_residual { vec![rows, width, width, rows] } else { vec![rows, width, width] };
            let shape = [n, t, width];
            let residual = |l: &[Tensor<1>]| with_residual.then(|| l[3].clone().reshape(shape));
            let own = |l: &[Tensor<1>]| {
                let x = l[0].clone().reshape(shape);
                weighed(ops::layer_norm(x, residual(l), l[1].clone(), l[2].clone(), 1e-12))
            };
            let burns = |l: &[Tensor<1>]| {
                let x = l[0].clone().reshape(shape);
                weighed(plain::layer_norm(x, residual(l), l[1].clone(), l[2].clone(), 1e-12))
            };
            check(&format!("layer norm {shape:?}, residual {with_residual}"), &sizes, &own, &burns);
        }
    }
}

#[test]
fn activations_have_burns_values_and_slopes() {
    for act in
        [Act::Relu, Act::Relu6, Act::Leaky, Act::Silu, Act::HardSwish, Act::Sigmoid, Act::Gelu, Act::GeluTanh]
    {
        let shape = [3, 5, 7, 2];
        let scaled = |l: &[Tensor<1>]| l[0].clone().mul_scalar(4.0).reshape(shape);
        let own = |l: &[Tensor<1>]| weighed(ops::activation(scaled(l), act));
        let burns = |l: &[Tensor<1>]| weighed(plain::activation(scaled(l), act));
        check(&format!("{act:?}"), &[210], &own, &burns);
    }
}

#[test]
fn thresholds_have_burns_values_and_slopes() {
    let image = |l: &[Tensor<1>]| {
        let x = l[0].clone().mul_scalar(4.0).reshape([3, 5, 7, 2]);
        // Strides of another order than the shape's.
        ops::affine(x, Tensor::ones([5], &l[0].device()), Tensor::zeros([5], &l[0].device()), None, Act::None)
    };
    for threshold in [0.0, 0.7, 2.5] {
        let own = |l: &[Tensor<1>]| weighed(ops::above(image(l), threshold));
        let burns = |l: &[Tensor<1>]| weighed(plain::above(image(l), threshold));
        check(&format!("above {threshold}"), &[210], &own, &burns);
    }
    let x = Tensor::<1>::from_floats([0.5, 0.25, f32::NAN, -1.0, 0.75], &device());
    assert_eq!(host(ops::above(x, 0.5)), [0.0, 0.0, 0.0, 0.0, 0.75]);
}

#[test]
fn attention_has_burns_values_and_slopes() {
    for (batch, tokens, heads, width, masked) in
        [(1, 3, 1, 4, false), (2, 17, 2, 16, true), (3, 40, 4, 8, true)]
    {
        let shape = [batch, tokens, heads * width];
        let n: usize = shape.iter().product();
        let mask = || {
            masked.then(|| {
                let hidden = |i: usize| if i % tokens > tokens - 2 - i / tokens { -1e9f32 } else { 0.0 };
                let mask: Vec<f32> = (0..batch * tokens).map(hidden).collect();
                Tensor::<2>::from_data(TensorData::new(mask, [batch, tokens]), &device())
            })
        };
        let part = |l: &[Tensor<1>], i: usize| l[i].clone().mul_scalar(2.0).reshape(shape);
        let own =
            |l: &[Tensor<1>]| weighed(ops::attention(part(l, 0), part(l, 1), part(l, 2), mask(), heads));
        let burns =
            |l: &[Tensor<1>]| weighed(plain::attention(part(l, 0), part(l, 1), part(l, 2), mask(), heads));
        check(&format!("attention {shape:?} of {heads} heads, mask {masked}"), &[n, n, n], &own, &burns);
    }
}

#[test]
fn softmaxes_have_burns_values_and_slopes() {
    for (rows, width) in [(1, 1), (3, 7), (5, 40), (2, 130)] {
        let x = |l: &[Tensor<1>]| l[0].clone().mul_scalar(3.0).reshape([rows, width]);
        let own = |l: &[Tensor<1>]| weighed(ops::softmax(x(l)));
        let burns = |l: &[Tensor<1>]| weighed(plain::softmax(x(l)));
        check(&format!("softmax of {rows} x {width}"), &[rows * width], &own, &burns);
        let own = |l: &[Tensor<1>]| weighed(ops::log_softmax(x(l)));
        let burns = |l: &[Tensor<1>]| weighed(plain::log_softmax(x(l)));
        check(&format!("log softmax of {rows} x {width}"), &[rows * width], &own, &burns);
    }
}

#[test]
fn embeddings_gather_and_add_up() {
    let ids = || Tensor::<2, Int>::from_data(TensorData::new(vec![3i64, 0, 3, 10, 10, 3], [2, 3]), &device());
    let own = |l: &[Tensor<1>]| weighed(ops::embedding(l[0].clone().reshape([11, 5]), ids()));
    let burns = |l: &[Tensor<1>]| weighed(plain::embedding(l[0].clone().reshape([11, 5]), ids()));
    check("embedding", &[55], &own, &burns);
}

#[test]
#[should_panic(expected = "token 11 is outside a table of 11 rows")]
fn a_token_outside_the_table_is_refused() {
    let ids = Tensor::<2, Int>::from_data(TensorData::new(vec![0i64, 11], [1, 2]), &device());
    ops::embedding(constant([11, 5], 1), ids);
}

#[test]
fn pools_have_burns_values_and_slopes() {
    for dims in [[2, 5, 8, 7], [3, 16, 6, 6], [1, 33, 5, 9]] {
        let n: usize = dims.iter().product();
        let own = |l: &[Tensor<1>]| weighed(ops::global_average_pool(l[0].clone().reshape(dims)));
        let burns = |l: &[Tensor<1>]| weighed(plain::global_average_pool(l[0].clone().reshape(dims)));
        check(&format!("global average pool of {dims:?}"), &[n], &own, &burns);
        for (kernel, stride, pad) in [(3, 2, 1), (2, 2, 0), (3, 1, 1)] {
            let own =
                |l: &[Tensor<1>]| weighed(ops::max_pool2d(l[0].clone().reshape(dims), kernel, stride, pad));
            let burns =
                |l: &[Tensor<1>]| weighed(plain::max_pool2d(l[0].clone().reshape(dims), kernel, stride, pad));
            check(&format!("max pool of {dims:?}"), &[n], &own, &burns);
        }
    }
}

#[test]
fn cross_entropy_has_burns_values_and_slopes() {
    for (n, classes) in [(1, 2), (5, 10), (7, 33)] {
        let targets = || {
            let targets: Vec<i64> = (0..n).map(|i| (i * 5 % classes) as i64).collect();
            Tensor::<1, Int>::from_data(TensorData::new(targets, [n]), &device())
        };
        let logits = |l: &[Tensor<1>]| l[0].clone().mul_scalar(6.0).reshape([n, classes]);
        let own = |l: &[Tensor<1>]| ops::cross_entropy(logits(l), targets());
        let burns = |l: &[Tensor<1>]| plain::cross_entropy(logits(l), targets());
        check(&format!("cross entropy of {n} x {classes}"), &[n * classes], &own, &burns);
    }
}

#[test]
fn inputs_may_lie_anyhow_in_memory() {
    let window = Window::new(1, 1);
    let w = || constant([6, 4, 3, 3], 8);
    type Seen = fn(Tensor<4>) -> Tensor<4>;
    let views: [(&str, Seen); 4] = [
        ("some channels", |x| x.narrow(1, 1, 4)),
        ("turned", |x| x.narrow(1, 0, 4).swap_dims(2, 3)),
        ("some images of a convolution's result", |x| {
            ops::conv2d(x, constant([4, 6, 1, 1], 2), None, Window::new(1, 0), false).narrow(0, 1, 2)
        }),
        ("one channel four times", |x| x.narrow(1, 2, 1).expand([3, 4, 5, 7])),
    ];
    for (what, view) in views {
        let x = |l: &[Tensor<1>]| view(l[0].clone().reshape([3, 6, 5, 7]));
        let own = |l: &[Tensor<1>]| weighed(ops::conv2d(x(l), w(), None, window, false));
        let burns = |l: &[Tensor<1>]| weighed(plain::conv2d(x(l), w(), None, window));
        check(what, &[3 * 6 * 5 * 7], &own, &burns);
        let own = |l: &[Tensor<1>]| weighed(ops::activation(x(l), Act::Silu));
        let burns = |l: &[Tensor<1>]| weighed(plain::activation(x(l), Act::Silu));
        check(what, &[3 * 6 * 5 * 7], &own, &burns);
    }
    // One mask for all sequences; heads from one tensor.
    let mask = || constant([1, 5], 4).expand([2, 5]);
    let part = |l: &[Tensor<1>], i: usize| l[0].clone().reshape([2, 5, 24]).narrow(2, 8 * i, 8);
    let own = |l: &[Tensor<1>]| weighed(ops::attention(part(l, 0), part(l, 1), part(l, 2), Some(mask()), 2));
    let burns =
        |l: &[Tensor<1>]| weighed(plain::attention(part(l, 0), part(l, 1), part(l, 2), Some(mask()), 2));
    check("parts of one tensor", &[240], &own, &burns);
}

#[test]
fn a_fork_adds_the_gradients_of_its_ends() {
    let dims = [2, 20, 6, 5];
    let weight = constant([20, 20, 1, 1], 9);
    let loss = |x: Tensor<4>, forked: bool| {
        let (a, b) = if forked { ops::fork(x) } else { (x.clone(), x) };
        // One end through a convolution (NHWC in memory), the other as it came.
        weighed(ops::conv2d(a, weight.clone(), None, Window::new(1, 0), false) + b.mul_scalar(3.0))
    };
    let (_, forked) = slopes(&[1200], &|l| loss(l[0].clone().reshape(dims), true));
    let (_, plain) = slopes(&[1200], &|l| loss(l[0].clone().reshape(dims), false));
    close("fork", &forked[0], &plain[0], 1e-6);
}

#[test]
fn sparse_layers_equal_dense_ones_where_weights_are_open() {
    let masked = |n: usize, seed: u64| -> Vec<f32> {
        values(n, seed).into_iter().map(|v| if v.abs() < 0.9 { 0.0 } else { v }).collect()
    };
    let mut skipped = 0;
    // y, dx and dw; the last at open weights, because a layer that skips nothing has a gradient for all.
    let mut compare = |weight: &[f32], [y, dx, dw]: [Vec<f32>; 3], dense: [Vec<f32>; 3]| {
        let open = |dw: &[f32]| -> Vec<f32> {
            dw.iter().zip(weight).filter(|(_, w)| w.to_bits() != 0).map(|(d, _)| *d).collect()
        };
        close("sparse y", &y, &dense[0], 5e-5);
        close("sparse dx", &dx, &dense[1], 5e-5);
        close("sparse dw", &open(&dw), &open(&dense[2]), 5e-5);
        skipped += dw.iter().zip(weight).all(|(d, w)| w.to_bits() != 0 || *d == 0.0) as usize;
    };
    for (x, o, k, window) in [
        ([16, 64, 16, 16], 64, 3, Window::new(1, 1)),
        ([16, 64, 16, 16], 128, 3, Window::new(2, 1)),
        ([16, 64, 16, 16], 128, 1, Window::new(2, 0)),
        ([32, 256, 4, 4], 256, 3, Window::new(1, 1)),
    ] {
        let w_shape = [o, x[1], k, k];
        let weight = masked(w_shape.iter().product(), 5);
        let run = |sparse: bool| {
            let input = constant(x, 3).require_grad();
            let w = leaf(&weight);
            let y = ops::conv2d(input.clone(), w.clone().reshape(w_shape), None, window, sparse);
            let gradients = weighed(y.clone()).backward();
            [host(y), host(input.grad(&gradients).unwrap()), host(w.grad(&gradients).unwrap())]
        };
        compare(&weight, run(true), run(false));
    }
    let (m, k, n) = (2048, 256, 320);
    let weight = masked(n * k, 6);
    let run = |sparse: bool| {
        let (input, w) = (constant([m, k], 3).require_grad(), leaf(&weight));
        let y = ops::linear(input.clone(), w.clone().reshape([n, k]), None, sparse);
        let gradients = weighed(y.clone()).backward();
        [host(y), host(input.grad(&gradients).unwrap()), host(w.grad(&gradients).unwrap())]
    };
    compare(&weight, run(true), run(false));
    assert!(skipped >= 3, "masked weights are skipped in {skipped} layers of 5");
}

#[test]
fn fake_quant_rounds_ties_to_even_and_passes_gradients_inside_only() {
    let grid = Grid { scale: 0.5, zero: 3, lo: 0, hi: 255 };
    let x = [-2.0f32, -1.75, -1.5, -0.25, 0.25, 0.75, 1.0, 126.0, 126.2, 126.25, 126.26, f32::MAX, f32::MIN];
    let y = [-1.5f32, -1.5, -1.5, 0.0, 0.0, 1.0, 1.0, 126.0, 126.0, 126.0, 126.0, 126.0, -1.5];
    let d = [0.0f32, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0];
    let x = leaf(&x);
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
    let w = Tensor::<1>::from_floats([0.3f32, -0.6, 10.0, 30.0], &Device::flex()).reshape([2, 2]);
    let scales = Tensor::<1>::from_floats([0.25, 8.0], &Device::flex());
    let out = ops::fake_quant_weight(w, scales, None, &[[-128, 127]]);
    assert_eq!(host(out), [0.25, -0.5, 8.0, 32.0]);
}

#[test]
fn folded_weights_are_quantised_as_deployed_and_scaled_back() {
    let sizes = [24, 4];
    let scales = || Tensor::<1>::from_floats([0.03, 0.2, 0.01, 0.002], &device());
    let fold = |l: &[Tensor<1>]| l[1].clone().add_scalar(1.5);
    let w = |l: &[Tensor<1>]| l[0].clone().reshape([4, 6]);
    let (_, own) =
        slopes(&sizes, &|l| weighed(ops::fake_quant_weight(w(l), scales(), Some(fold(l)), &[[-128, 127]])));
    let (_, burns) =
        slopes(&sizes, &|l| weighed(plain::fake_quant_weight(w(l), scales(), Some(fold(l)), &[[-128, 127]])));
    close("folded weight", &own[0], &burns[0], 1e-5);
    close("fold", &own[1], &burns[1], 1e-4);
}

#[test]
fn quantising_keeps_masked_weights_apart_from_those_that_round_to_zero() {
    let w = Tensor::<1>::from_floats([0.0f32, 1e-6, -1e-6, -0.0, 0.5, 0.0], &Device::flex()).reshape([2, 3]);
    let scales = Tensor::<1>::from_floats([0.25, 0.25], &Device::flex());
    let fold = Tensor::<1>::from_floats([1.0, -2.0], &Device::flex());
    let bits: Vec<u32> = host(ops::fake_quant_weight(w, scales, Some(fold), &[[-128, 127]]))
        .iter()
        .map(|v| v.to_bits())
        .collect();
    let open_zero = (-0.0f32).to_bits();
    assert_eq!(bits, [0, open_zero, open_zero, open_zero, 0.5f32.to_bits(), 0]);
}

/// Every op once, forward and backward.
fn a_bit_of_everything() -> Vec<u32> {
    let image = leaf(&values(13 * 16 * 196, 1));
    let weight = leaf(&values(32 * 16 * 9, 2));
    let (gamma, beta) = (leaf(&values(32, 3)), leaf(&values(32, 4)));
    let x = ops::conv2d(
        image.clone().reshape([13, 16, 14, 14]),
        weight.clone().reshape([32, 16, 3, 3]),
        None,
        Window::new(2, 1),
        false,
    );
    let (x, _, _) = ops::batch_norm(x, gamma.clone(), beta.clone(), None, 1e-5, Act::Silu);
    let (a, b) = ops::fork(x);
    let x = ops::fake_quant(ops::max_pool2d(a, 3, 1, 1), Grid { scale: 0.01, zero: 128, lo: 0, hi: 255 }) + b;
    let tokens = x.permute([0, 2, 3, 1]).reshape([13, 49, 32]);
    let tokens = ops::layer_norm(tokens.clone(), Some(tokens), gamma.clone(), beta.clone(), 1e-6);
    let tokens = ops::attention(tokens.clone(), tokens.clone(), tokens, None, 4);
    let wide = leaf(&values(64 * 32, 5));
    let tokens = ops::activation(ops::linear(tokens, wide.clone().reshape([64, 32]), None, false), Act::Gelu);
    let loss = weighed(tokens);
    let gradients = loss.backward();
    let leaves = [image, weight, gamma, beta, wide];
    let gradients = leaves.iter().flat_map(|l| host(l.grad(&gradients).unwrap()));
    gradients.chain([loss.into_scalar::<f32>()]).map(f32::to_bits).collect()
}

#[test]
fn one_thread_and_two_give_the_same_bytes() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(a_bit_of_everything)
    };
    let one = run(1);
    for threads in [2, 3] {
        assert!(one == run(threads), "{threads} threads differ from one");
    }
}
