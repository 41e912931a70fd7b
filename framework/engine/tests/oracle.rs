//! The engine against the reference interpreter of the lowered graph: every value, every kernel row.

mod common;

use common::*;
use lacuna_engine::{Isa, KernelChoice, Options, Session, lower};
use lacuna_ir::{DType, Graph, OpKind, Tensor, interp};

const SPARSITIES: [f32; 4] = [0.0, 0.5, 0.9, 1.0];
const BATCHES: [usize; 3] = [1, 2, 5];

/// Float sums may be in any order: the difference may be this share of the tensor's largest element (or of 1).
const F32_TOLERANCE: f32 = 2e-5;

fn compare(what: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.dims, want.dims, "{what}");
    let (Some(a), Some(b)) = (got.as_f32(), want.as_f32()) else {
        if got != want {
            let at = got.bytes().iter().zip(want.bytes()).position(|(a, b)| a != b).unwrap();
            panic!("{what} {:?}: element {at} is {}, not {}", got.dims, got.bytes()[at], want.bytes()[at]);
        }
        return;
    };
    let scale = b.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= F32_TOLERANCE * scale, "{what} {:?}: element {i} is {a}, not {b}", got.dims);
    }
}

/// Every value that the engine and the interpreter both have.
fn check(what: &str, session: &mut Session, batch: usize) {
    let x = input(session.lowered(), batch, 11 + batch as u64);
    let got = session.run(std::slice::from_ref(&x)).unwrap();
    let lowered = session.lowered().clone();
    let values = interp::run_all(&lowered, std::slice::from_ref(&x)).unwrap();
    let mut compared = 0;
    for v in lowered.value_name.ids() {
        if let (Some(want), Some(got)) = (&values[v], session.value(v)) {
            compare(&format!("{what} batch {batch}: {}", lowered.value_name[v]), &got, want);
            compared += 1;
        }
    }
    assert!(compared >= lowered.order.len() / 2, "{what}: only {compared} values were compared");
    for (i, got) in got.iter().enumerate() {
        compare(
            &format!("{what} batch {batch}: output {i}"),
            got,
            values[lowered.outputs[i]].as_ref().unwrap(),
        );
    }
}

fn sweep(quantised: bool, make: Make, name: &str) {
    for sparsity in SPARSITIES {
        let g = make(quantised, sparsity);
        for isa in Isa::available() {
            for threads in [1, 2] {
                for kernels in [KernelChoice::Auto, KernelChoice::Dense, KernelChoice::Sparse] {
                    let options = Options {
                        threads: Some(threads),
                        isa: Some(isa),
                        kernels,
                        keep_values: true,
                        ..Options::default()
                    };
                    let mut session = Session::new(&g, &options).unwrap();
                    for batch in BATCHES {
                        let what = format!("{name} sparsity {sparsity} {isa} {threads} threads {kernels:?}");
                        check(&what, &mut session, batch);
                    }
                }
            }
        }
    }
}

macro_rules! sweeps {
    ($($name:ident $quantised:literal $net:ident;)*) => {$(
        #[test]
        fn $name() {
            sweep($quantised, $net, stringify!($name));
        }
    )*};
}

sweeps! {
    f32_resnet false resnet;
    f32_odd false odd;
    f32_mlp false mlp;
    f32_branches false branches;
    f32_gated false gated;
    f32_pyramid false pyramid;
    qdq_resnet true resnet;
    qdq_odd true odd;
    qdq_mlp true mlp;
    qdq_branches true branches;
    qdq_gated true gated;
    qdq_pyramid true pyramid;
}

/// Reusing arena slots changes nothing, and one session can go back and forth between batches.
#[test]
fn results_do_not_depend_on_slot_reuse_threads_or_history() {
    for &(name, make) in NETS {
        let g = make(true, 0.9);
        let kept = Options { threads: Some(1), keep_values: true, ..Options::default() };
        let mut a = Session::new(&g, &kept).unwrap();
        let reuse = Options { threads: Some(3), ..Options::default() };
        let mut b = Session::new(&g, &reuse).unwrap();
        for batch in [3, 1, 4, 3] {
            for seed in 0..3 {
                let x = [input(&g, batch, seed)];
                assert_eq!(a.run(&x).unwrap(), b.run(&x).unwrap(), "{name} batch {batch}");
            }
        }
        assert!(b.arena_bytes() < a.arena_bytes(), "{name}");
    }
}

fn count(g: &Graph, kind: OpKind) -> usize {
    g.order.iter().filter(|&&op| g.op_kind[op] == kind).count()
}

#[test]
fn a_quantised_residual_net_lowers_to_integer_ops_only() {
    let g = resnet(true, 0.5);
    let target = lacuna_engine::Target::new(Some(Isa::Portable), Some(1)).unwrap();
    let (lowered, reports) = lower(&g, &target).unwrap();
    assert_eq!(count(&lowered, OpKind::QConv), count(&g, OpKind::Conv));
    assert_eq!(count(&lowered, OpKind::QGemm), 1);
    assert_eq!(count(&lowered, OpKind::QGlobalAvgPool), 1);
    assert_eq!(count(&lowered, OpKind::QuantizeLinear), 1);
    assert_eq!(count(&lowered, OpKind::DequantizeLinear), 0);
    // The one transpose left makes the one-channel input NHWC and moves nothing.
    assert_eq!(count(&lowered, OpKind::Transpose), 1);
    // Residual adds are inside the convolutions.
    assert_eq!(count(&lowered, OpKind::Add) + count(&lowered, OpKind::QAdd), 0);
    let with_residual =
        |op: &&lacuna_ir::OpId| lowered.op_kind[**op] == OpKind::QConv && lowered.inputs_of(**op).len() == 5;
    assert_eq!(lowered.order.iter().filter(with_residual).count(), 3);
    assert!(reports.iter().any(|r| r.pass == "lower_qdq" && r.changes > 0));
}

#[test]
fn an_f32_residual_net_fuses_everything_into_its_convolutions() {
    let g = resnet(false, 0.0);
    let target = lacuna_engine::Target::new(Some(Isa::Portable), Some(1)).unwrap();
    let (lowered, _) = lower(&g, &target).unwrap();
    assert_eq!(count(&lowered, OpKind::FusedConv), count(&g, OpKind::Conv));
    for kind in [OpKind::Relu, OpKind::Add, OpKind::Conv] {
        assert_eq!(count(&lowered, kind), 0, "{kind:?}");
    }
    assert_eq!(count(&lowered, OpKind::Transpose), 1);
}

/// Lowering keeps the meaning: f32 graphs up to rounding; quantised ones up to the rare value that float
/// rounding moves across a tie.
#[test]
fn lowering_keeps_the_meaning() {
    let target = lacuna_engine::Target::new(Some(Isa::Portable), Some(1)).unwrap();
    for &(name, make) in NETS {
        for quantised in [false, true] {
            let g = make(quantised, 0.5);
            let (lowered, _) = lower(&g, &target).unwrap();
            let x = [input(&g, 2, 3)];
            let (a, b) = (interp::run(&g, &x).unwrap(), interp::run(&lowered, &x).unwrap());
            for (a, b) in a.iter().zip(&b) {
                assert_eq!(a.dims, b.dims);
                let (a, b) = (a.as_f32().unwrap(), b.as_f32().unwrap());
                let scale = a.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
                let far = |tolerance: f32| {
                    a.iter().zip(b).filter(|(a, b)| (*a - *b).abs() > tolerance * scale).count()
                };
                if quantised {
                    assert_eq!(far(0.05), 0, "{name}");
                } else {
                    assert_eq!(far(1e-5), 0, "{name}");
                }
            }
        }
    }
}

#[test]
fn sparse_kernels_are_chosen_for_sparse_layers_where_there_are_such() {
    if Isa::detect() < Isa::Avx512Vbmi {
        return;
    }
    let sparse_convs = |sparsity: f32| {
        let session = Session::new(
            &resnet(true, sparsity),
            &Options { threads: Some(1), isa: Some(Isa::Avx512Vbmi), ..Options::default() },
        )
        .unwrap();
        let rows = session.analyze();
        let convs: Vec<_> = rows.into_iter().filter(|r| r.weights > 1000).collect();
        let sparse = convs.iter().filter(|r| r.slot_efficiency.is_some()).count();
        for r in &convs {
            assert!((r.density - (1.0 - sparsity as f64)).abs() < 0.06, "{}: {}", r.op, r.density);
            assert!(r.reason.contains("density"), "{}", r.reason);
        }
        (sparse, convs.len())
    };
    let (sparse, all) = sparse_convs(0.95);
    assert!(sparse * 2 > all, "{sparse} of {all}");
    assert_eq!(sparse_convs(0.0).0, 0);
}

#[test]
fn values_of_every_dtype_and_constant_or_direct_outputs_pass_through() {
    let (mut n, x) = Net::new("through", false, 0.0, &[3]);
    let c = n.tensor(&Tensor::from_i64(&[2], vec![5, -6]));
    let y = n.relu(x);
    let t = n.op(OpKind::Transpose, lacuna_ir::Attr::Perm(lacuna_ir::op::Axes::new(&[1, 0]).unwrap()), &[y]);
    let g = n.finish(&[x, c, t]);
    let mut s = Session::new(&g, &Options::default()).unwrap();
    let x = Tensor::from_f32(&[2, 3], vec![1.0, -2.0, 3.0, -4.0, 5.0, -6.0]);
    let out = s.run(std::slice::from_ref(&x)).unwrap();
    assert_eq!(out[0], x);
    assert_eq!(out[1].as_i64().unwrap(), [5, -6]);
    assert_eq!(out[2].as_f32().unwrap(), [1.0, 0.0, 0.0, 5.0, 3.0, 0.0]);
    assert_eq!(s.outputs()[2].dtype, DType::F32);
}
