//! Every op of [`ops`](super) as a composition of burn's own ops: what a device without kernels of ours runs, the
//! capture device among them, and what the kernels are tested against.
//!
//! Each form is the one that [`capture`](crate::capture) lowers to the fewest rows.

use super::{Act, Grid};
use crate::mark;
use burn::tensor::activation::{gelu, gelu_approximate, hard_swish, leaky_relu, relu, relu6, sigmoid, silu};
use burn::tensor::module;
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{Int, Tensor};
use lacuna_kernels::activation::LEAK;
use lacuna_kernels::shape::Window;

/// y[n,o,oh,ow] of x[n,c,h,w], w[o, c / groups, kh, kw] and bias[o].
pub fn conv2d(x: Tensor<4>, w: Tensor<4>, bias: Option<Tensor<1>>, window: Window) -> Tensor<4> {
    let Window { stride, pad_begin, pad_end, dilation, groups } = window;
    let padding = [(pad_begin[0], pad_end[0]), (pad_begin[1], pad_end[1])];
    module::conv2d(x, w, bias, ConvOptions::new_with_padding(stride, padding, dilation, groups))
}

/// Batch norm over a training batch, then the residual, then `act`. Returns y and the batch's mean and biased variance.
pub fn batch_norm(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    residual: Option<Tensor<4>>,
    eps: f64,
    act: Act,
) -> (Tensor<4>, Tensor<1>, Tensor<1>) {
    let out = module::batch_norm_train(x, gamma, beta, eps);
    (add_activate(out.output, residual, act), out.mean, out.variance)
}

/// Batch norm with known statistics, then the residual, then `act`.
pub fn batch_norm_eval(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    mean: Tensor<1>,
    var: Tensor<1>,
    residual: Option<Tensor<4>>,
    eps: f64,
    act: Act,
) -> Tensor<4> {
    add_activate(module::batch_norm(x, gamma, beta, mean, var, eps), residual, act)
}

/// act(x + residual).
pub fn add_activate(x: Tensor<4>, residual: Option<Tensor<4>>, act: Act) -> Tensor<4> {
    let x = match residual {
        Some(residual) => x + residual,
        None => x,
    };
    activation(x, act)
}

/// act(x * scale + shift + residual) with scale and shift by channel.
pub fn affine(
    x: Tensor<4>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    residual: Option<Tensor<4>>,
    act: Act,
) -> Tensor<4> {
    let c = x.dims()[1];
    let y = x * scale.reshape([1, c, 1, 1]) + shift.reshape([1, c, 1, 1]);
    add_activate(y, residual, act)
}

/// y[.., out] of x[.., in], w[out, in] and bias[out].
pub fn linear<const D: usize>(x: Tensor<D>, w: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    // While recording, the product stays one: burn's own may fold tokens into the batch, as it suits their numbers.
    if D > 2 && !mark::is_capture(&x.device()) {
        return module::linear(x, w.transpose(), bias);
    }
    let y = x.matmul(w.transpose().unsqueeze());
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

/// Layer norm (Ba et al., 2016) of x + residual over the last axis.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    residual: Option<Tensor<D>>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    eps: f64,
) -> Tensor<D> {
    let x = match residual {
        Some(residual) => x + residual,
        None => x,
    };
    module::layer_norm(x, gamma, Some(beta), eps)
}

pub fn activation<const D: usize>(x: Tensor<D>, act: Act) -> Tensor<D> {
    match act {
        Act::None => x,
        Act::Relu => relu(x),
        Act::Relu6 => relu6(x),
        Act::Leaky => leaky_relu(x, f64::from(LEAK)),
        Act::Silu => silu(x),
        Act::HardSwish => hard_swish(x),
        Act::Sigmoid => sigmoid(x),
        Act::Gelu => gelu(x),
        Act::GeluTanh => gelu_approximate(x),
    }
}

/// x where it is above `threshold`, else 0.
pub fn above<const D: usize>(x: Tensor<D>, threshold: f32) -> Tensor<D> {
    if mark::is_capture(&x.device()) {
        return mark::above(x, threshold);
    }
    let outside = x.clone().lower_equal_elem(threshold);
    x.mask_fill(outside, 0.0)
}

/// softmax over the last axis.
pub fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    burn::tensor::activation::softmax(x, D - 1)
}

/// log(softmax) over the last axis.
pub fn log_softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    burn::tensor::activation::log_softmax(x, D - 1)
}

/// Scaled dot-product attention (Vaswani et al., 2017) of `heads` heads that lie side by side in the last axis of q, k, v
/// [batch, tokens, heads * d]. `key_mask` [batch, keys] is added to every query's scores.
pub fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    key_mask: Option<Tensor<2>>,
    heads: usize,
) -> Tensor<3> {
    let [batch, tokens, width] = q.dims();
    let d = width / heads;
    let split = |x: Tensor<3>| {
        let keys = x.dims()[1];
        x.reshape([batch, keys, heads, d]).swap_dims(1, 2)
    };
    let (q, k, v) = (split(q), split(k), split(v));
    let scores = q.matmul(k.swap_dims(2, 3)).div_scalar((d as f64).sqrt());
    let scores = match key_mask {
        Some(mask) => {
            let keys = mask.dims()[1];
            scores + mask.reshape([batch, 1, 1, keys])
        }
        None => scores,
    };
    softmax(scores).matmul(v).swap_dims(1, 2).reshape([batch, tokens, width])
}

/// Rows `ids` [n, tokens] of a table [rows, width].
pub fn embedding(table: Tensor<2>, ids: Tensor<2, Int>) -> Tensor<3> {
    module::embedding(table, ids)
}

/// [n, c, h, w] to [n, c, 1, 1].
pub fn global_average_pool(x: Tensor<4>) -> Tensor<4> {
    module::adaptive_avg_pool2d(x, [1, 1])
}

/// The largest element of each square window; padding is never the largest.
pub fn max_pool2d(x: Tensor<4>, kernel: usize, stride: usize, pad: usize) -> Tensor<4> {
    let options = MaxPoolOptions::new([kernel; 2]).with_stride([stride; 2]).with_padding([pad; 2]);
    module::max_pool2d(x, options)
}

/// Mean over the batch of -log softmax(logits)[target]: logits [n, classes], targets [n].
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    let n = targets.dims()[0];
    log_softmax(logits).gather(1, targets.reshape([n, 1])).mean().neg()
}

/// [smallest, largest] element.
pub fn range<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let x = x.without_autodiff();
    Tensor::cat(vec![x.clone().min(), x.max()], 0)
}

/// [smallest of each row, largest of each row], rows along the first axis.
pub fn row_ranges<const D: usize>(w: Tensor<D>) -> Tensor<1> {
    let rows = w.dims()[0];
    let w = w.without_autodiff().reshape([rows as i32, -1]);
    let (min, max): (Tensor<2>, Tensor<2>) = (w.clone().min_dim(1), w.max_dim(1));
    Tensor::cat(vec![min.reshape([rows]), max.reshape([rows])], 0)
}

/// x on `grid`; the capture device records it as one op.
pub fn fake_quant<const D: usize>(x: Tensor<D>, grid: Grid) -> Tensor<D> {
    if mark::is_capture(&x.device()) {
        return mark::fake_quant(x, grid);
    }
    let (lo, hi) = ((grid.lo - grid.zero) as f32, (grid.hi - grid.zero) as f32);
    let v = x.clone().detach().div_scalar(grid.scale).round();
    let inside = v.clone().greater_equal_elem(lo).bool_and(v.clone().lower_equal_elem(hi));
    straight_through(x, v.clamp(lo, hi).mul_scalar(grid.scale), inside.float())
}

/// Rows (first axis) of w on grids, folded by `fold` for the purpose; the capture device records it as one op.
pub fn fake_quant_weight<const D: usize>(
    w: Tensor<D>,
    scales: Tensor<1>,
    fold: Option<Tensor<1>>,
    limits: &[[i32; 2]],
) -> Tensor<D> {
    let mut by_row = [1; D];
    by_row[0] = scales.dims()[0];
    if let Some(fold) = fold {
        let fold: Tensor<D> = fold.reshape(by_row);
        return fake_quant_weight(w * fold.clone(), scales, None, limits) / fold;
    }
    if mark::is_capture(&w.device()) {
        return mark::fake_quant_channels(w, scales, limits);
    }
    let s: Tensor<D> = scales.reshape(by_row);
    let mut limit = |end: usize| -> Tensor<D> {
        let values: Vec<f32> = limits.iter().map(|l| l[end] as f32).collect();
        by_row[0] = limits.len();
        Tensor::<1>::from_floats(values.as_slice(), &w.device()).reshape(by_row)
    };
    let (lo, hi) = (limit(0), limit(1));
    let v = (w.clone().detach() / s.clone()).round();
    let inside = v.clone().greater_equal(lo.clone()).bool_and(v.clone().lower_equal(hi.clone()));
    straight_through(w, v.max_pair(lo).min_pair(hi) * s, inside.float())
}

/// Value `q`, gradient of `x` where `inside` is one.
fn straight_through<const D: usize>(x: Tensor<D>, q: Tensor<D>, inside: Tensor<D>) -> Tensor<D> {
    let masked = x * inside;
    masked.clone() + (q - masked.detach())
}
