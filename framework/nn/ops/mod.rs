//! Training ops of our own.
//!
//! Every op here is a function on `Tensor`. On burn's flex device it runs the kernels of `lacuna-kernels` with their
//! own backward ([`flex`], through [`autodiff`]); on every other device, the capture device among them, it is a
//! composition of burn's ops ([`plain`]). Adding a faster op means a row of [`Op`], its two arms in [`flex`], and its
//! plain form.
//!
//! Images are [n, c, h, w] to whoever looks at a shape, and NHWC in memory: what a kernel makes is handed on as a view
//! with the strides of that order, which the next kernel takes as it is. An op of burn's that meets such a view sees
//! ordinary strides.

pub mod autodiff;
pub mod flex;
pub mod plain;
pub mod pool;
mod slices;

pub use crate::quant::Observed;
use autodiff::TrainOps;
use burn::backend::{Dispatch, DispatchDevice};
use burn::tensor::{Device, Int, Tensor};
pub use lacuna_kernels::activation::Act;
pub use lacuna_kernels::fake_quant::Grid;
pub use lacuna_kernels::shape::Window;
use std::sync::{Arc, LazyLock};

/// One op with its attributes; the comment lists its inputs, and its outputs if there are several.
#[derive(Clone, Debug)]
pub enum Op {
    /// x[n,c,h,w], w[o,c/groups,kh,kw], bias[o] if any. `sparse`: weights whose bits are 0 are masked. `exact`: products of
    /// grids, which no other algorithm may round.
    Conv { window: Window, sparse: bool, exact: bool },
    /// x, gamma[c], beta[c], residual if any -> y, mean[c], variance[c] (biased), and, if `observed`, the range[2] after it
    BatchNorm { eps: f64, act: Act, observed: Option<Observed> },
    /// x, scale[c], shift[c], residual if any: act(x * scale + shift + residual)
    Affine { act: Act },
    /// x[.., k], w[n, k], bias[n] if any
    Linear { sparse: bool },
    /// x, gamma, beta, residual if any: the norm of x + residual over the last axis
    LayerNorm { eps: f64 },
    /// x
    Activate(Act),
    /// x where it is above the threshold, else 0
    Above(f32),
    /// x: softmax over the last axis, or its logarithm
    Softmax { log: bool },
    /// q, k, v [batch, tokens, heads * width], additive mask [batch, keys] if any
    Attention { heads: usize },
    /// table[vocabulary, width]; ids of shape [n, tokens]
    Embedding { ids: Arc<[u32]>, shape: [usize; 2] },
    /// x[n,c,h,w] -> [n,c,1,1]
    GlobalAveragePool,
    /// x[n,c,h,w]
    MaxPool { kernel: usize, window: Window },
    /// logits[n, classes] -> the mean over n, [1]
    CrossEntropy { targets: Arc<[i64]> },
    /// x
    FakeQuant(Grid),
    /// x -> [smallest, largest], or of each row (first axis) [all smallest, all largest]
    Range { of_rows: bool },
    /// w, scales[o], and what the weight is folded with [o], if anything; [lo, hi] of all rows or of each
    FakeQuantWeight { limits: Arc<[[i32; 2]]> },
}

/// Whether the environment variable `LACUNA_TRAIN_OPS` is `plain`: every device runs burn's ops then, to compare with.
pub fn kernels_are_off() -> bool {
    static OFF: LazyLock<bool> =
        LazyLock::new(|| std::env::var("LACUNA_TRAIN_OPS").is_ok_and(|name| name == "plain"));
    *OFF
}

/// Whether tensors on this device take the kernels.
pub fn has_kernels(device: &Device) -> bool {
    if kernels_are_off() {
        return false;
    }
    matches!(device.as_dispatch(), DispatchDevice::Flex(_)) || {
        device.is_autodiff() && matches!(device.clone().inner().as_dispatch(), DispatchDevice::Flex(_))
    }
}

/// Inputs of different ranks, without their types.
macro_rules! inputs {
    ($($x:expr),* $(; $last:expr)?) => {{
        #[allow(unused_mut)]
        let mut list = vec![$($x.into_dispatch()),*];
        $(list.extend($last.map(|t| t.into_dispatch()));)?
        list
    }};
}

fn run<const D: usize>(op: Op, inputs: Vec<Dispatched>) -> Tensor<D> {
    next(&mut autodiff::run(op, inputs).into_iter())
}

type Dispatched = burn::backend::tensor::FloatTensor<Dispatch>;

fn next<const D: usize>(outputs: &mut impl Iterator<Item = Dispatched>) -> Tensor<D> {
    Tensor::from_dispatch(outputs.next().expect("an op has all its outputs"))
}

/// y[n,o,oh,ow] of x[n,c,h,w] and w[o, c / groups, kh, kw].
///
/// With `sparse`, a weight of bit pattern zero is masked: the op may skip it, and gives it no gradient.
pub fn conv2d(
    x: Tensor<4>,
    w: Tensor<4>,
    bias: Option<Tensor<1>>,
    window: Window,
    sparse: bool,
) -> Tensor<4> {
    if !has_kernels(&x.device()) {
        return plain::conv2d(x, w, bias, window);
    }
    run(Op::Conv { window, sparse, exact: false }, inputs!(x, w; bias))
}

/// [`conv2d`] of values on grids: sums are taken as the integer engine takes them.
pub fn conv2d_direct(x: Tensor<4>, w: Tensor<4>, window: Window, sparse: bool) -> Tensor<4> {
    if !has_kernels(&x.device()) {
        return plain::conv2d(x, w, None, window);
    }
    run(Op::Conv { window, sparse, exact: true }, inputs!(x, w))
}

/// Batch norm over a training batch (Ioffe and Szegedy, 2015), plus the residual, then `act`. Returns y and the batch's
/// mean and biased variance [c].
pub fn batch_norm(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    residual: Option<Tensor<4>>,
    eps: f64,
    act: Act,
) -> (Tensor<4>, Tensor<1>, Tensor<1>) {
    if !has_kernels(&x.device()) {
        return plain::batch_norm(x, gamma, beta, residual, eps, act);
    }
    let op = Op::BatchNorm { eps, act, observed: None };
    let mut out = autodiff::run(op, inputs!(x, gamma, beta; residual)).into_iter();
    (next(&mut out), next(&mut out), next(&mut out))
}

/// [`batch_norm`] whose result is observed and put on the grid of the range seen so far, in the same passes over memory.
/// Returns y, mean, variance and the range [2] after this batch.
pub fn batch_norm_observed(
    x: Tensor<4>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    residual: Option<Tensor<4>>,
    eps: f64,
    act: Act,
    observed: Observed,
) -> (Tensor<4>, Tensor<1>, Tensor<1>, Tensor<1>) {
    if !has_kernels(&x.device()) {
        let (y, mean, var) = plain::batch_norm(x, gamma, beta, residual, eps, act);
        let seen: Vec<f32> = plain::range(y.clone()).into_data().iter().collect();
        let observed = observed.after(seen[0], seen[1]);
        let range = Tensor::from_floats(observed.range, &mean.device());
        let y = observed.grid().map_or_else(|| y.clone(), |grid| plain::fake_quant(y.clone(), grid));
        return (y, mean, var, range);
    }
    let op = Op::BatchNorm { eps, act, observed: Some(observed) };
    let mut out = autodiff::run(op, inputs!(x, gamma, beta; residual)).into_iter();
    (next(&mut out), next(&mut out), next(&mut out), next(&mut out))
}

/// act(x * scale + shift + residual), scale and shift [c]: batch norm on known statistics, and a bias.
pub fn affine(
    x: Tensor<4>,
    scale: Tensor<1>,
    shift: Tensor<1>,
    residual: Option<Tensor<4>>,
    act: Act,
) -> Tensor<4> {
    if !has_kernels(&x.device()) {
        return plain::affine(x, scale, shift, residual, act);
    }
    run(Op::Affine { act }, inputs!(x, scale, shift; residual))
}

/// y[.., n] of x[.., k], w[n, k] and bias[n]. `sparse` as in [`conv2d`].
pub fn linear<const D: usize>(
    x: Tensor<D>,
    w: Tensor<2>,
    bias: Option<Tensor<1>>,
    sparse: bool,
) -> Tensor<D> {
    if !has_kernels(&x.device()) {
        return plain::linear(x, w, bias);
    }
    run(Op::Linear { sparse }, inputs!(x, w; bias))
}

/// Layer norm (Ba et al., 2016) of x + residual over the last axis.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    residual: Option<Tensor<D>>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    eps: f64,
) -> Tensor<D> {
    if !has_kernels(&x.device()) {
        return plain::layer_norm(x, residual, gamma, beta, eps);
    }
    run(Op::LayerNorm { eps }, inputs!(x, gamma, beta; residual))
}

pub fn activation<const D: usize>(x: Tensor<D>, act: Act) -> Tensor<D> {
    if !has_kernels(&x.device()) {
        return plain::activation(x, act);
    }
    run(Op::Activate(act), inputs!(x))
}

/// x where it is above `threshold`, else 0; its gradient goes where x goes.
pub fn above<const D: usize>(x: Tensor<D>, threshold: f32) -> Tensor<D> {
    if !has_kernels(&x.device()) {
        return plain::above(x, threshold);
    }
    run(Op::Above(threshold), inputs!(x))
}

/// softmax over the last axis.
pub fn softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !has_kernels(&x.device()) {
        return plain::softmax(x);
    }
    run(Op::Softmax { log: false }, inputs!(x))
}

/// log(softmax) over the last axis.
pub fn log_softmax<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !has_kernels(&x.device()) {
        return plain::log_softmax(x);
    }
    run(Op::Softmax { log: true }, inputs!(x))
}

/// Scaled dot-product attention (Vaswani et al., 2017) of `heads` heads side by side in the last axis; `key_mask`
/// [batch, keys] is added to the scores.
pub fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    key_mask: Option<Tensor<2>>,
    heads: usize,
) -> Tensor<3> {
    if !has_kernels(&q.device()) {
        return plain::attention(q, k, v, key_mask, heads);
    }
    run(Op::Attention { heads }, inputs!(q, k, v; key_mask))
}

/// Rows of a table [vocabulary, width] for ids [n, tokens].
///
/// # Panics
/// If an id is outside the table.
pub fn embedding(table: Tensor<2>, ids: Tensor<2, Int>) -> Tensor<3> {
    if !has_kernels(&table.device()) {
        return plain::embedding(table, ids);
    }
    let (shape, rows) = (ids.dims(), table.dims()[0]);
    let ids: Vec<u32> = host_integers(ids)
        .into_iter()
        .map(|id| match u32::try_from(id) {
            Ok(id) if (id as usize) < rows => id,
            _ => panic!("token {id} is outside a table of {rows} rows"),
        })
        .collect();
    run(Op::Embedding { ids: ids.into(), shape }, inputs!(table))
}

fn host_integers<const D: usize>(x: Tensor<D, Int>) -> Vec<i64> {
    x.into_data().iter::<i64>().collect()
}

/// [n, c, h, w] to [n, c, 1, 1].
pub fn global_average_pool(x: Tensor<4>) -> Tensor<4> {
    if !has_kernels(&x.device()) {
        return plain::global_average_pool(x);
    }
    run(Op::GlobalAveragePool, inputs!(x))
}

/// The largest of each window; padding never wins.
pub fn max_pool2d(x: Tensor<4>, kernel: usize, stride: usize, pad: usize) -> Tensor<4> {
    if !has_kernels(&x.device()) {
        return plain::max_pool2d(x, kernel, stride, pad);
    }
    run(Op::MaxPool { kernel, window: Window::new(stride, pad) }, inputs!(x))
}

/// Mean cross-entropy of logits [n, classes] and classes [n].
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>) -> Tensor<1> {
    if !has_kernels(&logits.device()) {
        return plain::cross_entropy(logits, targets);
    }
    run(Op::CrossEntropy { targets: host_integers(targets).into() }, inputs!(logits))
}

/// act(convolution + bias + residual) of values on grids: sums are taken as the integer engine takes them.
pub fn conv2d_on_grids(
    x: Tensor<4>,
    w: Tensor<4>,
    bias: Tensor<1>,
    residual: Option<Tensor<4>>,
    window: Window,
    act: Act,
    sparse: bool,
) -> Tensor<4> {
    if !has_kernels(&x.device()) {
        return plain::add_activate(plain::conv2d(x, w, Some(bias), window), residual, act);
    }
    let op = Op::Conv { window, sparse, exact: true };
    if residual.is_none() && act == Act::None {
        return run(op, inputs!(x, w, bias));
    }
    let ones = bias.ones_like();
    affine(run(op, inputs!(x, w)), ones, bias, residual, act)
}

/// Batch norm on known statistics, plus the residual, then `act`.
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
    if !has_kernels(&x.device()) {
        return plain::batch_norm_eval(x, gamma, beta, mean, var, residual, eps, act);
    }
    let scale = gamma / var.add_scalar(eps).sqrt();
    let shift = beta - mean * scale.clone();
    affine(x, scale, shift, residual, act)
}

/// x on `grid`, with the straight-through gradient.
pub fn fake_quant<const D: usize>(x: Tensor<D>, grid: Grid) -> Tensor<D> {
    if !has_kernels(&x.device()) {
        return plain::fake_quant(x, grid);
    }
    run(Op::FakeQuant(grid), inputs!(x))
}

/// [smallest, largest] element; not differentiable.
pub fn range<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    if !has_kernels(&x.device()) {
        return plain::range(x);
    }
    run::<1>(Op::Range { of_rows: false }, inputs!(x)).without_autodiff()
}

/// [rows smallest elements, rows largest] of the rows (first axis) of w; not differentiable.
pub fn row_ranges<const D: usize>(w: Tensor<D>) -> Tensor<1> {
    if !has_kernels(&w.device()) {
        return plain::row_ranges(w);
    }
    run::<1>(Op::Range { of_rows: true }, inputs!(w)).without_autodiff()
}

/// Row `i` (first axis) of w on the grid of scale `scales[i]`, taken after multiplying with `fold[i]` and divided by it
/// again; `limits` are the smallest and largest step of all rows or of each, from the step that means 0. With the straight-through gradient. Masked weights (bit pattern 0) stay so, and no other becomes one.
pub fn fake_quant_weight<const D: usize>(
    w: Tensor<D>,
    scales: Tensor<1>,
    fold: Option<Tensor<1>>,
    limits: &[[i32; 2]],
) -> Tensor<D> {
    if !has_kernels(&w.device()) {
        return plain::fake_quant_weight(w, scales, fold, limits);
    }
    run(Op::FakeQuantWeight { limits: limits.into() }, inputs!(w, scales; fold))
}

/// Two ends of one tensor, for a branch of a network: their gradients are added in one parallel pass. Both ends must
/// lead to the loss.
pub fn fork<const D: usize>(x: Tensor<D>) -> (Tensor<D>, Tensor<D>) {
    if !(x.device().is_autodiff() && has_kernels(&x.device())) {
        return (x.clone(), x);
    }
    let mut ends = <Dispatch as TrainOps>::train_fork(x.into_dispatch()).into_iter();
    (next(&mut ends), next(&mut ends))
}
