//! Channels that lie in another order than the graph's: fewer steps, the same bytes.

mod common;

use common::*;
use lacuna_engine::{Isa, KernelChoice, Options, Session};
use lacuna_ir::op::Axes;
use lacuna_ir::{Attr, Graph, OpKind, Tensor, ValueId, interp};

/// Slots of LaneGather that a session's weights take.
fn slots(session: &Session) -> u64 {
    let of = |step: &lacuna_engine::StepProfile| {
        step.slot_efficiency.filter(|_| step.kernel.contains("lanegather")).map(|e| step.nonzeros as f64 / e)
    };
    session.analyze().iter().filter_map(of).sum::<f64>().round() as u64
}

fn options(keep_values: bool) -> Options {
    Options { kernels: KernelChoice::Sparse, threads: Some(1), keep_values, ..Options::default() }
}

#[test]
fn networks_take_fewer_slots_and_give_the_same() {
    if Isa::detect() < Isa::Avx512Vbmi {
        println!("SKIP: this processor has no vpermb, and no kernel here gains from an order of channels");
        return;
    }
    for (name, make) in NETS.iter().filter(|(name, _)| ["resnet", "gated", "pyramid", "mlp"].contains(name)) {
        let g: Graph = make(true, 0.85);
        // Whoever looks at values finds them in the graph's order.
        let plain = Session::new(&g, &options(true)).unwrap();
        let mut ordered = Session::new(&g, &options(false)).unwrap();
        let (before, after) = (slots(&plain), slots(&ordered));
        println!("{name}: {before} slots, {after} in order");
        assert!(after < before, "{name}: {before} slots, {after} in order");
        let mut stream = ordered.stream(1, 0).unwrap();
        for batch in [1, 3, 2] {
            let x = [input(&g, batch, 5)];
            let want = interp::run(ordered.lowered(), &x).unwrap();
            assert_eq!(ordered.run(&x).unwrap(), want, "{name}, batch {batch}");
            assert_eq!(stream.run(&x).unwrap(), want, "{name}, batch {batch}");
        }
    }
}

/// The engine equals the interpreter at two batches, whatever order the channels have.
fn runs(g: &Graph) {
    let mut session = Session::new(g, &options(false)).unwrap();
    for batch in [1, 2] {
        let x = [input(g, batch, 9)];
        assert_eq!(session.run(&x).unwrap(), interp::run(session.lowered(), &x).unwrap());
    }
}

/// i8 weights `[k, n]` with one scale, of which one in eight is not zero.
fn matrix(n: &mut Net, dims: [usize; 2]) -> ValueId {
    let w =
        (0..dims[0] * dims[1]).map(|_| if n.rng.unit() < 0.125 { (n.rng.signed() * 90.0) as i8 } else { 0 });
    let w = Tensor::from_i8(&dims, w.collect());
    let w = n.tensor(&w);
    let s = n.tensor(&Tensor::from_f32(&[], vec![0.01]));
    let z = n.tensor(&Tensor::from_i8(&[], vec![0]));
    n.op(OpKind::DequantizeLinear, Attr::Axis(0), &[w, s, z])
}

/// A product of pixels and a convolution that wants a border around its result.
#[test]
fn a_product_may_write_for_a_reader_with_a_border() {
    let (mut n, x) = Net::new("bordered", true, 0.85, &[3, 6, 5]);
    let x = n.conv_relu(x, 64, 3, 1, 1);
    let perm = |axes: &[i64]| Attr::Perm(Axes::new(axes).unwrap());
    let x = n.op(OpKind::Transpose, perm(&[0, 2, 3, 1]), &[x]);
    let w = matrix(&mut n, [64, 48]);
    let x = n.op(OpKind::MatMul, Attr::None, &[x, w]);
    let x = n.act(x, 100);
    let x = n.op(OpKind::Transpose, perm(&[0, 3, 1, 2]), &[x]);
    let y = n.conv(x, 40, 3, 1, 1);
    let y = n.act(y, 120);
    let y = n.head(y, 5);
    let g = n.finish(&[y]);
    runs(&g);
    let session = Session::new(&g, &options(false)).unwrap();
    assert!(session.steps().iter().all(|step| step.kernel != "reference"), "{:?}", session.steps());
}

/// Channels of values that are joined with themselves until they are too many to be counted apart.
#[test]
fn a_value_may_be_joined_with_itself_again_and_again() {
    for joins in [1, 3, 10] {
        let (mut n, x) = Net::new("joined", true, 0.85, &[3, 3, 2]);
        let mut x = n.conv_relu(x, 32, 3, 1, 1);
        for _ in 0..joins {
            x = n.op(OpKind::Concat, Attr::Axis(1), &[x, x]);
            x = n.act(x, 0);
        }
        let y = n.conv_relu(x, 32, 1, 1, 0);
        let y = n.head(y, 3);
        runs(&n.finish(&[y]));
    }
}
