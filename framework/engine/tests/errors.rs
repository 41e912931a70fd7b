//! Wrong inputs, outputs, options and graphs get typed errors, and a session survives them.

mod common;

use common::*;
use lacuna_engine::{Error, InputRef, Isa, Options, OutputMut, Session};
use lacuna_ir::params::Params;
use lacuna_ir::{Attr, DType, Dim, Graph, OpKind, Tensor};

fn session() -> Session {
    Session::new(&mlp(true, 0.5), &Options { threads: Some(1), ..Options::default() }).unwrap()
}

#[test]
fn inputs_that_do_not_fit_are_refused_by_name() {
    let mut s = session();
    let wrong = [
        vec![],
        vec![Tensor::zeros(DType::F32, &[1, 2, 5, 6])],
        vec![Tensor::zeros(DType::F32, &[1, 2, 5])],
        vec![Tensor::zeros(DType::U8, &[1, 2, 5, 7])],
        vec![Tensor::zeros(DType::F32, &[0, 2, 5, 7])],
        vec![Tensor::zeros(DType::F32, &[1, 2, 5, 7]), Tensor::zeros(DType::F32, &[1])],
    ];
    for inputs in &wrong {
        let e = s.run(inputs).unwrap_err();
        assert!(matches!(e, Error::Input { .. }), "{e}");
    }
    let e = s.run(&wrong[1]).unwrap_err().to_string();
    assert!(e.contains("'x'") && e.contains("f32[any,2,5,7]") && e.contains("[1, 2, 5, 6]"), "{e}");
    assert_eq!(s.run(&[input(s.lowered(), 2, 1)]).unwrap()[0].dims, [2, 5]);
}

#[test]
fn a_view_must_be_as_long_as_its_dims_say() {
    let mut s = session();
    let x = vec![0.0f32; 70];
    let mut y = vec![0.0f32; 5];
    for dims in [[1, 2, 5, 7], [1, 2, 5, 7]] {
        let short = InputRef::f32(&dims, &x[..69]);
        assert!(matches!(s.run_into(&[short], &mut [OutputMut::f32(&mut y)]), Err(Error::Input { .. })));
    }
    let whole = InputRef::f32(&[1, 2, 5, 7], &x);
    let e = s.run_into(&[whole], &mut [OutputMut::f32(&mut y[..4])]).unwrap_err();
    assert!(matches!(e, Error::Output { .. }), "{e}");
    assert!(matches!(s.run_into(&[whole], &mut []), Err(Error::Output { .. })));
    let mut bytes = [0u8; 20];
    assert!(matches!(s.run_into(&[whole], &mut [OutputMut::u8(&mut bytes)]), Err(Error::Output { .. })));
    s.run_into(&[whole], &mut [OutputMut::f32(&mut y)]).unwrap();
}

#[test]
fn impossible_bindings_leave_the_session_as_it_was() {
    let mut s = session();
    assert!(s.bind(0).is_err());
    assert!(s.bind(1 << 40).is_err());
    assert!(s.bind(usize::MAX).is_err());
    let x = input(s.lowered(), 1, 1);
    s.run(&[x]).unwrap();
}

#[test]
fn impossible_options_are_refused() {
    let g = mlp(false, 0.0);
    let e = Session::new(&g, &Options { threads: Some(0), ..Options::default() }).err().unwrap();
    assert!(matches!(e, Error::Options(_)), "{e}");
    if Isa::detect() < Isa::Avx512Vbmi {
        let options = Options { isa: Some(Isa::Avx512Vbmi), ..Options::default() };
        assert!(matches!(Session::new(&g, &options), Err(Error::Options(_))));
    }
}

#[test]
fn a_graph_that_is_broken_is_refused_and_one_without_kernels_runs_plainly() {
    let mut broken = mlp(false, 0.0);
    broken.order.reverse();
    assert!(matches!(Session::new(&broken, &Options::default()), Err(Error::Graph(_))));

    // A convolution whose weights arrive at run time.
    let mut g = Graph::new("dynamic");
    let x = g.add_input("x", DType::F32, &[1, 2, 4, 4].map(Dim::Fixed));
    let w = g.add_input("w", DType::F32, &[3, 2, 1, 1].map(Dim::Fixed));
    let attr = lacuna_ir::op::ConvAttr { window: window(1, 1, 0, 1), group: 1 };
    let y = g.add_op(OpKind::Conv, Attr::Conv(attr), "c", &[x, w], &["y"]).unwrap();
    g.outputs = y;
    // It runs on the reference path, which says so.
    let mut s = Session::new(&g, &Options::default()).unwrap();
    let step = s.steps().iter().find(|step| step.kernel == "reference").unwrap();
    assert_eq!((step.kind, step.reason.as_str()), ("Conv", "no kernel runs this op on these operands"));
    let inputs =
        [Tensor::from_f32(&[1, 2, 4, 4], vec![0.5; 32]), Tensor::from_f32(&[3, 2, 1, 1], vec![2.0; 6])];
    assert_eq!(s.run(&inputs).unwrap(), lacuna_ir::interp::run(&g, &inputs).unwrap());
}

/// Timing a plan that has nothing to do returns too.
#[test]
fn an_output_that_is_an_empty_input_is_tuned() {
    let mut g = Graph::new("empty");
    let n = Dim::Symbol(g.symbol("N"));
    let x = g.add_input("x", DType::F32, &[n, Dim::Fixed(0)]);
    g.outputs.push(x);
    let tune = lacuna_engine::Tune::On;
    let options = Options { threads: Some(2), batch: Some(8), tune, ..Options::default() };
    let mut s = Session::new(&g, &options).unwrap();
    assert_eq!(s.run(&[Tensor::zeros(DType::F32, &[8, 0])]).unwrap()[0].dims, [8, 0]);
}

/// Fuzzing found the second, reading for the like the others.
#[test]
fn there_is_nothing_to_read_from_what_is_empty() {
    let mut g = Graph::new("rows");
    let x = g.add_input("x", DType::F32, &[0, 3].map(Dim::Fixed));
    let i = g.add_input("i", DType::I64, &[Dim::Fixed(2)]);
    let sum = g.add_op(OpKind::Add, Attr::None, "sum", &[i, i], &["s"]).unwrap()[0];
    g.outputs = g.add_op(OpKind::Gather, Attr::Axis(0), "rows", &[x, sum], &["y"]).unwrap();
    let mut s = Session::new(&g, &Options::default()).unwrap();
    let inputs = [Tensor::zeros(DType::F32, &[0, 3]), Tensor::zeros(DType::I64, &[2])];
    let e = s.run(&inputs).unwrap_err();
    assert!(matches!(&e, Error::Op { op, .. } if op == "rows"), "{e}");
    assert!(lacuna_ir::interp::run(&g, &inputs).is_err());

    let mut g = Graph::new("samples");
    let x = g.add_input("x", DType::F32, &[1, 1, 3, 0].map(Dim::Fixed));
    let grid = g.add_input("grid", DType::F32, &[1, 2, 2, 2].map(Dim::Fixed));
    let usual = Attr::Params(Params::usual(OpKind::GridSample));
    let e = g.add_op(OpKind::GridSample, usual, "samples", &[x, grid], &["y"]).unwrap_err().to_string();
    assert!(e.contains("samples") && e.contains("nothing to take samples of"), "{e}");

    let mut g = Graph::new("clipped");
    let x = g.add_input("x", DType::F32, &[4, 1, 2].map(Dim::Fixed));
    let w = g.add_input("w", DType::F32, &[1, 3, 2].map(Dim::Fixed));
    let r = g.add_input("r", DType::F32, &[1, 3, 3].map(Dim::Fixed));
    for clip in [-1.0, f32::NAN] {
        let attr = Params::usual(OpKind::RNN).with(OpKind::RNN, "clip", clip.to_bits() as i32);
        let e = g.add_op(OpKind::RNN, Attr::Params(attr), "rnn", &[x, w, r], &["y", "h"]).unwrap_err();
        assert!(e.to_string().contains("must be a bound"), "{e}");
    }
}
