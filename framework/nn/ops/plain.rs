//! Every op of [`ops`](super) as a composition of burn's own ops: what a device without kernels of ours runs, the
//! capture device among them, and what the kernels are tested against.
//!
//! Each form is the one that [`capture`](crate::capture) lowers to the fewest rows.

use burn::tensor::activation::{hard_swish, log_softmax, relu, relu6, silu, softmax};
use burn::tensor::module;
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{Int, Tensor};
use lacuna_kernels::shape::Window;

/// An elementwise function behind a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    None,
    Relu,
    /// min(max(x, 0), 6) (Krizhevsky, 2010).
    Relu6,
    /// x * sigmoid(x).
    Silu,
    /// x * relu6(x + 3) / 6 (Howard et al., 2019).
    HardSwish,
}

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
fn add_activate(x: Tensor<4>, residual: Option<Tensor<4>>, act: Act) -> Tensor<4> {
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
    if D > 2 {
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

/// x * Φ(x) by the error function (Hendrycks and Gimpel, 2016).
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    burn::tensor::activation::gelu(x)
}

pub fn activation<const D: usize>(x: Tensor<D>, act: Act) -> Tensor<D> {
    match act {
        Act::None => x,
        Act::Relu => relu(x),
        Act::Relu6 => relu6(x),
        Act::Silu => silu(x),
        Act::HardSwish => hard_swish(x),
    }
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
    softmax(scores, 3).matmul(v).swap_dims(1, 2).reshape([batch, tokens, width])
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
    log_softmax(logits, 1).gather(1, targets.reshape([n, 1])).mean().neg()
}
