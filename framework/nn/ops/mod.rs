//! Training ops of our own on burn's flex device, through burn's `backend_extension`.
//!
//! Every op here has the same two faces: a function on `Tensor` that any device runs (with plain burn ops where the
//! device is not flex), and slice kernels in the files below with their own backward. Adding a faster op means one
//! kernel file, one method of [`TrainKernels`], one forward with its backward here.

pub mod batch_norm;
pub mod conv;
pub mod fake_quant;
pub mod gemm;
pub mod plain;

use self::conv::ConvShape;
use self::fake_quant::Grid;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, AutodiffBackend, Dispatch, DispatchDevice, Flex, TensorMetadata, backend_extension,
};
use burn::tensor::{Bytes, DType, Device, Shape, Tensor};
use burn_flex::{FlexTensor, Layout};
pub use lacuna_kernels::shape::Window;
pub use plain::{
    Act, activation, affine, attention, batch_norm_eval, cross_entropy, embedding, gelu, global_average_pool,
    layer_norm, linear, max_pool2d,
};

/// The kernels: forward and backward, on tensors without autodiff.
pub trait TrainKernels: burn::backend::Backend {
    fn k_conv(x: FloatTensor<Self>, w: FloatTensor<Self>, stride: usize, pad: usize) -> FloatTensor<Self>;
    fn k_conv_dx(
        x: [usize; 4],
        w: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        stride: usize,
        pad: usize,
    ) -> FloatTensor<Self>;
    fn k_conv_dw(
        x: FloatTensor<Self>,
        w: [usize; 4],
        dy: FloatTensor<Self>,
        stride: usize,
        pad: usize,
    ) -> FloatTensor<Self>;
    /// y, mean, variance.
    fn k_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: Option<FloatTensor<Self>>,
        eps: f64,
        relu: bool,
    ) -> [FloatTensor<Self>; 3];
    /// Gradients of x, gamma, beta and, when asked for, of the residual.
    fn k_norm_backward(
        saved: &NormSaved<Self>,
        dy: FloatTensor<Self>,
        with_residual: bool,
    ) -> [Option<FloatTensor<Self>>; 4];
    fn k_fake_quant(x: FloatTensor<Self>, grid: Grid) -> FloatTensor<Self>;
    fn k_fake_quant_dx(x: FloatTensor<Self>, dy: FloatTensor<Self>, grid: Grid) -> FloatTensor<Self>;
    fn k_fake_quant_channels(
        x: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        lo: i32,
        hi: i32,
    ) -> FloatTensor<Self>;
    fn k_fake_quant_channels_dx(
        x: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        lo: i32,
        hi: i32,
    ) -> FloatTensor<Self>;
}

/// What batch norm's backward needs of its forward.
#[derive(Clone, Debug)]
pub struct NormSaved<B: burn::backend::Backend> {
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    y: FloatTensor<B>,
    mean: FloatTensor<B>,
    var: FloatTensor<B>,
    eps: f64,
    relu: bool,
}

/// The ops as the dispatcher sees them.
#[backend_extension(Flex, Autodiff)]
pub trait TrainOps: burn::backend::Backend {
    fn train_conv(x: FloatTensor<Self>, w: FloatTensor<Self>, stride: usize, pad: usize)
    -> FloatTensor<Self>;
    fn train_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f64,
        relu: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    fn train_norm_add(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        eps: f64,
        relu: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    fn train_fake_quant(x: FloatTensor<Self>, grid: Grid) -> FloatTensor<Self>;
    fn train_fake_quant_channels(
        x: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        lo: i32,
        hi: i32,
    ) -> FloatTensor<Self>;
}

// ---- tensor functions --------------------------------------------------------------------------

/// Whether tensors on this device take the kernels of this module.
pub fn has_kernels(device: &Device) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Flex(_)) || {
        device.is_autodiff() && matches!(device.clone().inner().as_dispatch(), DispatchDevice::Flex(_))
    }
}

/// y[n,o,oh,ow] of x[n,c,h,w] and w[o, c / groups, kh, kw].
pub fn conv2d(x: Tensor<4>, w: Tensor<4>, bias: Option<Tensor<1>>, window: Window) -> Tensor<4> {
    let ([stride, _], [pad, _]) = (window.stride, window.pad_begin);
    if !has_kernels(&x.device()) || window != Window::new(stride, pad) {
        return plain::conv2d(x, w, bias, window);
    }
    let y = Tensor::from_dispatch(<Dispatch as TrainOps>::train_conv(
        x.into_dispatch(),
        w.into_dispatch(),
        stride,
        pad,
    ));
    match bias {
        Some(bias) => {
            let o = bias.dims()[0];
            y + bias.reshape([1, o, 1, 1])
        }
        None => y,
    }
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
    if !has_kernels(&x.device()) || !matches!(act, Act::None | Act::Relu) {
        return plain::batch_norm(x, gamma, beta, residual, eps, act);
    }
    let relu = act == Act::Relu;
    let (x, gamma, beta) = (x.into_dispatch(), gamma.into_dispatch(), beta.into_dispatch());
    let (y, mean, var) = match residual {
        None => <Dispatch as TrainOps>::train_norm(x, gamma, beta, eps, relu),
        Some(r) => <Dispatch as TrainOps>::train_norm_add(x, gamma, beta, r.into_dispatch(), eps, relu),
    };
    (Tensor::from_dispatch(y), Tensor::from_dispatch(mean), Tensor::from_dispatch(var))
}

/// x on `grid`, with the straight-through gradient.
pub fn fake_quant<const D: usize>(x: Tensor<D>, grid: Grid) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as TrainOps>::train_fake_quant(x.into_dispatch(), grid))
}

/// Row `i` of `x` (first axis) on the symmetric grid of scale `scales[i]`, with the straight-through gradient.
pub fn fake_quant_channels<const D: usize>(x: Tensor<D>, scales: Tensor<1>, lo: i32, hi: i32) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as TrainOps>::train_fake_quant_channels(
        x.into_dispatch(),
        scales.into_dispatch(),
        lo,
        hi,
    ))
}

// ---- flex --------------------------------------------------------------------------------------

fn tensor(values: Vec<f32>, shape: &[usize]) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(Shape::from(shape.to_vec())), DType::F32)
}

fn dims4(shape: &Shape) -> [usize; 4] {
    shape.dims()
}

/// [batch, channels, everything else].
fn channel_dims(shape: &Shape) -> [usize; 3] {
    let [n, c, h, w] = dims4(shape);
    [n, c, h * w]
}

impl TrainKernels for Flex {
    fn k_conv(x: FlexTensor, w: FlexTensor, stride: usize, pad: usize) -> FlexTensor {
        let (x, w) = (x.to_contiguous(), w.to_contiguous());
        let s = ConvShape::new(dims4(&x.shape()), dims4(&w.shape()), stride, pad);
        tensor(conv::forward(x.storage(), w.storage(), &s), &[s.n, s.o, s.oh, s.ow])
    }

    fn k_conv_dx(x: [usize; 4], w: FlexTensor, dy: FlexTensor, stride: usize, pad: usize) -> FlexTensor {
        let (w, dy) = (w.to_contiguous(), dy.to_contiguous());
        let s = ConvShape::new(x, dims4(&w.shape()), stride, pad);
        tensor(conv::input_gradient(w.storage(), dy.storage(), &s), &x)
    }

    fn k_conv_dw(x: FlexTensor, w: [usize; 4], dy: FlexTensor, stride: usize, pad: usize) -> FlexTensor {
        let (x, dy) = (x.to_contiguous(), dy.to_contiguous());
        let s = ConvShape::new(dims4(&x.shape()), w, stride, pad);
        tensor(conv::weight_gradient(x.storage(), dy.storage(), &s), &w)
    }

    fn k_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        residual: Option<FlexTensor>,
        eps: f64,
        relu: bool,
    ) -> [FlexTensor; 3] {
        let x = x.to_contiguous();
        let residual = residual.map(|r| r.to_contiguous());
        let shape = dims4(&x.shape());
        let c = shape[1];
        let out = batch_norm::forward(
            x.storage(),
            channel_dims(&x.shape()),
            gamma.to_contiguous().storage(),
            beta.to_contiguous().storage(),
            residual.as_ref().map(|r| r.storage()),
            eps,
            relu,
        );
        [tensor(out.y, &shape), tensor(out.mean, &[c]), tensor(out.var, &[c])]
    }

    fn k_norm_backward(
        saved: &NormSaved<Flex>,
        dy: FlexTensor,
        with_residual: bool,
    ) -> [Option<FlexTensor>; 4] {
        let (x, dy) = (saved.x.to_contiguous(), dy.to_contiguous());
        let shape = dims4(&x.shape());
        let g = batch_norm::backward(
            x.storage(),
            saved.y.storage(),
            dy.storage(),
            channel_dims(&x.shape()),
            saved.gamma.to_contiguous().storage(),
            saved.mean.storage(),
            saved.var.storage(),
            saved.eps,
            saved.relu,
            with_residual,
        );
        [
            Some(tensor(g.x, &shape)),
            Some(tensor(g.gamma, &[shape[1]])),
            Some(tensor(g.beta, &[shape[1]])),
            with_residual.then(|| tensor(g.residual, &shape)),
        ]
    }

    fn k_fake_quant(x: FlexTensor, grid: Grid) -> FlexTensor {
        let x = x.to_contiguous();
        tensor(fake_quant::forward(x.storage(), grid), &x.shape().to_vec())
    }

    fn k_fake_quant_dx(x: FlexTensor, dy: FlexTensor, grid: Grid) -> FlexTensor {
        let (x, dy) = (x.to_contiguous(), dy.to_contiguous());
        tensor(fake_quant::backward(x.storage(), dy.storage(), grid), &x.shape().to_vec())
    }

    fn k_fake_quant_channels(x: FlexTensor, scales: FlexTensor, lo: i32, hi: i32) -> FlexTensor {
        let (x, scales) = (x.to_contiguous(), scales.to_contiguous());
        tensor(fake_quant::forward_channels(x.storage(), scales.storage(), lo, hi), &x.shape().to_vec())
    }

    fn k_fake_quant_channels_dx(
        x: FlexTensor,
        scales: FlexTensor,
        dy: FlexTensor,
        lo: i32,
        hi: i32,
    ) -> FlexTensor {
        let (x, scales, dy) = (x.to_contiguous(), scales.to_contiguous(), dy.to_contiguous());
        let dx = fake_quant::backward_channels(x.storage(), dy.storage(), scales.storage(), lo, hi);
        tensor(dx, &x.shape().to_vec())
    }
}

impl TrainOps for Flex {
    fn train_conv(x: FlexTensor, w: FlexTensor, stride: usize, pad: usize) -> FlexTensor {
        Self::k_conv(x, w, stride, pad)
    }

    fn train_norm(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        eps: f64,
        relu: bool,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        Self::k_norm(x, gamma, beta, None, eps, relu).into()
    }

    fn train_norm_add(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        residual: FlexTensor,
        eps: f64,
        relu: bool,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        Self::k_norm(x, gamma, beta, Some(residual), eps, relu).into()
    }

    fn train_fake_quant(x: FlexTensor, grid: Grid) -> FlexTensor {
        Self::k_fake_quant(x, grid)
    }

    fn train_fake_quant_channels(x: FlexTensor, scales: FlexTensor, lo: i32, hi: i32) -> FlexTensor {
        Self::k_fake_quant_channels(x, scales, lo, hi)
    }
}

// ---- autodiff ----------------------------------------------------------------------------------

#[derive(Debug)]
struct ConvBackward;

impl<B: TrainKernels> Backward<B, 2> for ConvBackward {
    type State = (NodeId, NodeId, usize, usize);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let [x_node, w_node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (x, w, stride, pad) = ops.state;
        let x: FloatTensor<B> = saved.retrieve_node_output(x);
        let w: FloatTensor<B> = saved.retrieve_node_output(w);
        if let Some(node) = x_node {
            let dx = B::k_conv_dx(dims4(&x.shape()), w.clone(), dy.clone(), stride, pad);
            grads.register::<B>(node.id, dx);
        }
        if let Some(node) = w_node {
            grads.register::<B>(node.id, B::k_conv_dw(x, dims4(&w.shape()), dy, stride, pad));
        }
    }
}

/// Parents: x, gamma, beta and, if there are four, the residual.
#[derive(Debug)]
struct NormBackward;

impl<B: TrainKernels, const N: usize> Backward<B, N> for NormBackward {
    type State = NormSaved<B>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let found = B::k_norm_backward(&ops.state, dy, N == 4);
        for (node, grad) in ops.parents.into_iter().zip(found) {
            if let (Some(node), Some(grad)) = (node, grad) {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

/// y, mean, variance.
type NormOutput<B> = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>);

fn norm<B: TrainKernels, C: CheckpointStrategy, const N: usize>(
    parents: [NodeGuard; N],
    [x, gamma, beta]: [FloatTensor<Autodiff<B, C>>; 3],
    residual: Option<FloatTensor<Autodiff<B, C>>>,
    eps: f64,
    relu: bool,
) -> NormOutput<Autodiff<B, C>> {
    let prep = Backward::<B, N>::prepare::<C>(NormBackward, parents).compute_bound().stateful();
    let (x, gamma, beta) = (x.into_primitive(), gamma.into_primitive(), beta.into_primitive());
    let residual = residual.map(|r| r.into_primitive());
    let [y, mean, var] = B::k_norm(x.clone(), gamma.clone(), beta, residual, eps, relu);
    let m = <Autodiff<B, C> as AutodiffBackend>::from_inner(mean.clone());
    let v = <Autodiff<B, C> as AutodiffBackend>::from_inner(var.clone());
    let y = match prep {
        OpsKind::Tracked(prep) => prep.finish(NormSaved { x, gamma, y: y.clone(), mean, var, eps, relu }, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    };
    (y, m, v)
}

#[derive(Debug)]
struct FakeQuantBackward;

impl<B: TrainKernels> Backward<B, 1> for FakeQuantBackward {
    type State = (NodeId, Grid);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let [node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (x, grid) = ops.state;
        let x: FloatTensor<B> = saved.retrieve_node_output(x);
        if let Some(node) = node {
            grads.register::<B>(node.id, B::k_fake_quant_dx(x, dy, grid));
        }
    }
}

#[derive(Debug)]
struct FakeQuantChannelsBackward;

impl<B: TrainKernels> Backward<B, 1> for FakeQuantChannelsBackward {
    type State = (NodeId, FloatTensor<B>, i32, i32);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, saved: &mut Checkpointer) {
        let [node] = ops.parents;
        let dy = grads.consume::<B>(&ops.node);
        let (x, scales, lo, hi) = ops.state;
        let x: FloatTensor<B> = saved.retrieve_node_output(x);
        if let Some(node) = node {
            grads.register::<B>(node.id, B::k_fake_quant_channels_dx(x, scales, dy, lo, hi));
        }
    }
}

impl<B: TrainOps + TrainKernels, C: CheckpointStrategy> TrainOps for Autodiff<B, C> {
    fn train_conv(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        stride: usize,
        pad: usize,
    ) -> FloatTensor<Self> {
        match ConvBackward.prepare::<C>([x.node(), w.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), prep.checkpoint(&w), stride, pad);
                prep.finish(state, B::k_conv(x.into_primitive(), w.into_primitive(), stride, pad))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::k_conv(x.into_primitive(), w.into_primitive(), stride, pad))
            }
        }
    }

    fn train_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f64,
        relu: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let parents = [x.node(), gamma.node(), beta.node()];
        norm::<B, C, 3>(parents, [x, gamma, beta], None, eps, relu)
    }

    fn train_norm_add(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        residual: FloatTensor<Self>,
        eps: f64,
        relu: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let parents = [x.node(), gamma.node(), beta.node(), residual.node()];
        norm::<B, C, 4>(parents, [x, gamma, beta], Some(residual), eps, relu)
    }

    fn train_fake_quant(x: FloatTensor<Self>, grid: Grid) -> FloatTensor<Self> {
        match FakeQuantBackward.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), grid);
                prep.finish(state, B::k_fake_quant(x.into_primitive(), grid))
            }
            OpsKind::UnTracked(prep) => prep.finish(B::k_fake_quant(x.into_primitive(), grid)),
        }
    }

    fn train_fake_quant_channels(
        x: FloatTensor<Self>,
        scales: FloatTensor<Self>,
        lo: i32,
        hi: i32,
    ) -> FloatTensor<Self> {
        let scales = scales.into_primitive();
        match FakeQuantChannelsBackward.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let state = (prep.checkpoint(&x), scales.clone(), lo, hi);
                prep.finish(state, B::k_fake_quant_channels(x.into_primitive(), scales, lo, hi))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::k_fake_quant_channels(x.into_primitive(), scales, lo, hi))
            }
        }
    }
}
