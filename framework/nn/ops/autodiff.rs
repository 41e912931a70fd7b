//! How own ops enter burn: one dispatch point and one backward step for all of them.

use super::Op;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Backend, Dispatch, Flex, backend_extension};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

/// The kernels of a backend, on tensors without autodiff.
pub trait TrainKernels: Backend {
    /// What a forward pass keeps for its backward pass.
    type Saved: Clone + Send + Debug + 'static;

    /// Outputs of `op`; only the first may have a gradient.
    fn run(op: &Op, inputs: Vec<FloatTensor<Self>>) -> (Vec<FloatTensor<Self>>, Self::Saved);

    /// Gradients of the inputs that are `wanted`, from that of the first output.
    fn gradients(
        op: &Op,
        saved: Self::Saved,
        dy: FloatTensor<Self>,
        wanted: &[bool],
    ) -> Vec<Option<FloatTensor<Self>>>;

    fn add(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The ops as the dispatcher sees them, by number of inputs: it takes no lists.
#[backend_extension(Flex, Autodiff)]
pub trait TrainOps: Backend {
    fn train_1(op: Op, a: FloatTensor<Self>) -> Vec<FloatTensor<Self>>;
    fn train_2(op: Op, a: FloatTensor<Self>, b: FloatTensor<Self>) -> Vec<FloatTensor<Self>>;
    fn train_3(
        op: Op,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
    ) -> Vec<FloatTensor<Self>>;
    fn train_4(
        op: Op,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
    ) -> Vec<FloatTensor<Self>>;
    /// Two ends of x.
    fn train_fork(x: FloatTensor<Self>) -> Vec<FloatTensor<Self>>;
}

/// Runs an op of one to four inputs.
pub fn run(op: Op, inputs: Vec<FloatTensor<Dispatch>>) -> Vec<FloatTensor<Dispatch>> {
    let mut inputs = inputs.into_iter();
    match [inputs.next(), inputs.next(), inputs.next(), inputs.next()] {
        [Some(a), None, ..] => <Dispatch as TrainOps>::train_1(op, a),
        [Some(a), Some(b), None, _] => <Dispatch as TrainOps>::train_2(op, a, b),
        [Some(a), Some(b), Some(c), None] => <Dispatch as TrainOps>::train_3(op, a, b, c),
        [Some(a), Some(b), Some(c), Some(d)] => <Dispatch as TrainOps>::train_4(op, a, b, c, d),
        [None, ..] => Vec::new(),
    }
}

type Tensors<B> = Vec<FloatTensor<B>>;

impl TrainOps for Flex {
    fn train_1(op: Op, a: FloatTensor<Self>) -> Tensors<Self> {
        Self::run(&op, vec![a]).0
    }

    fn train_2(op: Op, a: FloatTensor<Self>, b: FloatTensor<Self>) -> Tensors<Self> {
        Self::run(&op, vec![a, b]).0
    }

    fn train_3(op: Op, a: FloatTensor<Self>, b: FloatTensor<Self>, c: FloatTensor<Self>) -> Tensors<Self> {
        Self::run(&op, vec![a, b, c]).0
    }

    fn train_4(
        op: Op,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
    ) -> Tensors<Self> {
        Self::run(&op, vec![a, b, c, d]).0
    }

    fn train_fork(x: FloatTensor<Self>) -> Tensors<Self> {
        vec![x.clone(), x]
    }
}

impl<B: TrainOps + TrainKernels, C: CheckpointStrategy> TrainOps for Autodiff<B, C> {
    fn train_1(op: Op, a: FloatTensor<Self>) -> Tensors<Self> {
        tracked::<B, C, 1>(op, [a])
    }

    fn train_2(op: Op, a: FloatTensor<Self>, b: FloatTensor<Self>) -> Tensors<Self> {
        tracked::<B, C, 2>(op, [a, b])
    }

    fn train_3(op: Op, a: FloatTensor<Self>, b: FloatTensor<Self>, c: FloatTensor<Self>) -> Tensors<Self> {
        tracked::<B, C, 3>(op, [a, b, c])
    }

    fn train_4(
        op: Op,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
    ) -> Tensors<Self> {
        tracked::<B, C, 4>(op, [a, b, c, d])
    }

    fn train_fork(x: FloatTensor<Self>) -> Tensors<Self> {
        let met = Meeting::<B>::default();
        let nodes = [x.node(), x.node()];
        let x = x.into_primitive();
        let end = |node| {
            let prep = Backward::<B, 1>::prepare::<C>(ForkBackward, [node]).compute_bound().stateful();
            match prep {
                OpsKind::Tracked(prep) => prep.finish(met.clone(), x.clone()),
                OpsKind::UnTracked(prep) => prep.finish(x.clone()),
            }
        };
        nodes.map(end).into()
    }
}

fn tracked<B: TrainKernels, C: CheckpointStrategy, const N: usize>(
    op: Op,
    inputs: [FloatTensor<Autodiff<B, C>>; N],
) -> Tensors<Autodiff<B, C>> {
    let parents: [NodeGuard; N] = inputs.each_ref().map(|x| x.node());
    let inputs = inputs.into_iter().map(|x| x.into_primitive()).collect();
    let prep = Backward::<B, N>::prepare::<C>(OpBackward, parents).compute_bound().stateful();
    let (outputs, saved) = B::run(&op, inputs);
    let mut outputs = outputs.into_iter();
    let Some(y) = outputs.next() else { return Vec::new() };
    let y = match prep {
        OpsKind::Tracked(prep) => prep.finish((op, saved), y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    };
    let rest = outputs.map(<Autodiff<B, C> as AutodiffBackend>::from_inner);
    std::iter::once(y).chain(rest).collect()
}

#[derive(Debug)]
struct OpBackward;

impl<B: TrainKernels, const N: usize> Backward<B, N> for OpBackward {
    type State = (Op, B::Saved);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let (op, saved) = ops.state;
        let found = B::gradients(&op, saved, dy, &wanted);
        for (node, grad) in ops.parents.into_iter().zip(found) {
            if let (Some(node), Some(grad)) = (node, grad) {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

/// Where the gradients of a fork's two ends meet: the first waits here, the second takes it and passes the sum on.
/// (burn would add them too, but serially and, for images, against the order of memory.)
struct Meeting<B: Backend>(Arc<Mutex<Option<FloatTensor<B>>>>);

impl<B: Backend> Default for Meeting<B> {
    fn default() -> Self {
        Meeting(Arc::default())
    }
}

impl<B: Backend> Clone for Meeting<B> {
    fn clone(&self) -> Self {
        Meeting(self.0.clone())
    }
}

impl<B: Backend> Debug for Meeting<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meeting")
    }
}

#[derive(Debug)]
struct ForkBackward;

impl<B: TrainKernels> Backward<B, 1> for ForkBackward {
    type State = Meeting<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let [Some(node)] = ops.parents else { return };
        let mut waiting = ops.state.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match waiting.take() {
            None => *waiting = Some(dy),
            Some(other) => grads.register::<B>(node.id, B::add(dy, other)),
        }
    }
}
