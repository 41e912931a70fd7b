//! Ops without a kernel run on the reference path: in any place of a network, on any number of threads; one that fails
//! stops the run with its name, and the session lives on.

use lacuna_engine::{Error, Options, Session};
use lacuna_ir::{Graph, Tensor, interp, text};

fn session(g: &Graph, threads: usize) -> Session {
    Session::new(g, &Options { threads: Some(threads), ..Options::default() }).unwrap()
}

/// Between fast steps, before padded convolutions (whose operands have borders), and in integers.
#[test]
fn slow_ops_stand_anywhere_in_a_network() {
    let g = text::parse(
        "graph g
input %x: f32[n,3,6,5]
input %i: i64[n,4]
const %w: f32[2,3,3,3] = {W}
const %v: f32[4,2,3,3] = {V}
const %three: i64[] = {3}
%a: f32[n,2,6,5] = Conv(%x, %w) kernel=[3,3] pads=[1,1,1,1]
%b: f32[n,2,6,5] = Softmax(%a) axis=1
%c: i64[n,2,6,5] = Cast(%b) to=i64
%d: f32[n,2,6,5] = Cast(%c) to=f32
%e: f32[n,2,6,5] = Add(%d, %a)
%f: f32[n,4,6,5] = Conv(%e, %v) kernel=[3,3] pads=[1,1,1,1]
%j: i64[n,4] = Mul(%i, %three)
%k: i64[n,4] = Add(%j, %i)
output %f
output %k"
            .replace("{W}", &list(54))
            .replace("{V}", &list(72))
            .as_str(),
    )
    .unwrap();
    for threads in [1, 2, 3] {
        let mut s = session(&g, threads);
        assert!(s.steps().iter().any(|step| step.kernel == "reference"), "{:?}", s.steps());
        for n in [1, 3, 2] {
            let x = (0..n * 90).map(|i| (i * 7 % 11) as f32 / 3.0).collect();
            let i = (0..n as i64 * 4).collect();
            let inputs = [Tensor::from_f32(&[n, 3, 6, 5], x), Tensor::from_i64(&[n, 4], i)];
            let (got, want) = (s.run(&inputs).unwrap(), interp::run(&g, &inputs).unwrap());
            assert_eq!(got[1], want[1]);
            let (a, b) = (got[0].as_f32().unwrap(), want[0].as_f32().unwrap());
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs().max(1.0)), "{threads} {n}");
        }
    }
}

/// Small numbers, written out as bytes.
fn list(n: usize) -> String {
    let bytes = (0..n).flat_map(|i| ((i * 5 % 7) as f32 - 3.0).to_le_bytes());
    let hex: String = bytes.map(|b| format!("{b:02x}")).collect();
    format!("hex {hex}")
}

#[test]
fn an_op_that_fails_stops_the_run_and_no_later_one() {
    let g = text::parse(
        "graph g
input %x: i64[n,64]
input %d: i64[n,64]
input %r: f32[n,64,300]
%q: i64[n,64] = Div(%x, %d)
%s: f32[n,64,300] = Relu(%r)
%t: f32[n,64,300] = Sigmoid(%s)
output %q
output %t",
    )
    .unwrap();
    for threads in [1, 2, 4] {
        let mut s = session(&g, threads);
        let inputs = |n: usize, zero: usize| {
            let mut d = vec![2; n * 64];
            d[zero] = 0;
            vec![
                Tensor::from_i64(&[n, 64], (0..n as i64 * 64).collect()),
                Tensor::from_i64(&[n, 64], d),
                Tensor::from_f32(&[n, 64, 300], vec![0.5; n * 64 * 300]),
            ]
        };
        for round in 0..50 {
            let e = s.run(&inputs(1 + round % 2, 17)).unwrap_err();
            assert!(matches!(&e, Error::Op { kind: "Div", .. }), "{e}");
            let mut good = inputs(1 + round % 2, 17);
            good[1] = Tensor::from_i64(&good[1].dims.clone(), vec![3; good[1].len()]);
            let got = s.run(&good).unwrap();
            assert_eq!(got[0], interp::run(&g, &good).unwrap()[0]);
        }
    }
}
