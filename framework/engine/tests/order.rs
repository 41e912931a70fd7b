//! Channels that lie in another order than the graph's: fewer steps, the same bytes.

mod common;

use common::*;
use lacuna_engine::{Isa, KernelChoice, Options, Session};
use lacuna_ir::{Graph, interp};

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
