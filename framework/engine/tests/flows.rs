//! Ops that run other graphs, in a plan: as steps of the reference path, or behind it where data decide sizes.

use lacuna_engine::{Options, Session};
use lacuna_ir::{Graph, Tensor, interp};

fn graph(text: &str) -> Graph {
    lacuna_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}"))
}

fn session(g: &Graph, threads: usize) -> Session {
    Session::new(g, &Options { threads: Some(threads), ..Options::default() })
        .unwrap_or_else(|e| panic!("{e}"))
}

/// Between two ops with kernels; the session binds another batch, and is asked for another branch.
#[test]
fn a_choice_is_a_step_among_others() {
    let g = graph(
        r#"input %c: bool[]
input %x: f32[n,4]
%a: f32[n,4] = Relu(%x)
body 0 double
  symbol "n"
  input %a: f32[n,4]
  input %x: f32[n,4]
  %b: f32[n,4] = Add(%a, %a)
  output %b
end
body 1 back
  symbol "n"
  input %a: f32[n,4]
  input %x: f32[n,4]
  %b: f32[n,4] = Sub(%a, %x)
  output %b
end
%b: f32[n,4] = If(%c, %a, %x) then=0 else=1  # choose
%y: f32[n,4] = Mul(%b, %b)
output %y
"#,
    );
    for threads in [1, 2] {
        let mut session = session(&g, threads);
        for (n, c) in [(1, 1), (1, 0), (3, 0), (3, 1)] {
            let x = Tensor::from_f32(&[n, 4], (0..4 * n).map(|i| i as f32 - 3.0).collect());
            let inputs = [Tensor::from_bool(&[], vec![c]), x];
            assert_eq!(session.run(&inputs).unwrap(), interp::run(&g, &inputs).unwrap(), "{n} {c}");
        }
        let step = session.analyze().into_iter().find(|s| s.op == "choose").expect("the choice is a step");
        assert_eq!((step.kind, step.kernel), ("If", "reference"));
        assert!(step.reason.contains("body runs as a session of its own: 2 ops"), "{}", step.reason);
    }
}

/// A number of turns that the caller gives is part of the binding: the loop is a step then.
#[test]
fn a_loop_of_given_turns_is_a_step() {
    let g = graph(
        r#"input %trips: i64[]
input %x: f32[n]
%a: f32[n] = Relu(%x)
body 0 halve
  symbol "n"
  input %turn: i64[]
  input %goes_on: bool[]
  input %s: f32[n]
  const %half: f32[] = {0.5}
  %t: f32[n] = Mul(%s, %half)
  %u: f32[n] = Relu(%t)
  output %goes_on
  output %t
  output %u
end
%last: f32[n], %all: f32[?"all.0",n] = Loop(%trips, _, %a) body=0 states=1  # halves
%y: f32[?"all.0",n] = Sigmoid(%all)
output %last
output %y
"#,
    );
    let mut session = session(&g, 2);
    for (trips, n) in [(3, 2), (0, 2), (5, 4)] {
        let x = Tensor::from_f32(&[n], (0..n).map(|i| i as f32 + 0.5).collect());
        let inputs = [Tensor::from_i64(&[], vec![trips]), x];
        assert_eq!(session.run(&inputs).unwrap(), interp::run(&g, &inputs).unwrap(), "{trips} turns");
    }
    assert!(session.tail().is_empty());
}

/// What a body refuses stops the run with the op's name, and the session is as it was.
#[test]
fn a_body_that_fails_stops_the_run() {
    let g = graph(
        r#"input %c: bool[]
input %x: f32[n,1]
body 0 squeezed
  symbol "n"
  input %x: f32[n,1]
  %y: f32[n] = Squeeze(%x) axes=[1]
  output %y
end
%y: f32[n] = If(%c, %x) then=0  # must
output %y
"#,
    );
    let mut session = session(&g, 1);
    let inputs = |c| [Tensor::from_bool(&[], vec![c]), Tensor::from_f32(&[2, 1], vec![1.0, 2.0])];
    let e = session.run(&inputs(0)).unwrap_err().to_string();
    assert!(e.contains("'must'") && e.contains("does not hold"), "{e}");
    assert_eq!(session.run(&inputs(1)).unwrap(), [Tensor::from_f32(&[2], vec![1.0, 2.0])]);
}
