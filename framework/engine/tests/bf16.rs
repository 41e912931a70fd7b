//! Products in bfloat16: never unless they are asked for, and then only where rounding is allowed.

mod common;

use common::*;
use lacuna_engine::kernels::{CONV_KERNELS, KernelType};
use lacuna_engine::{Error, Isa, KernelChoice, Options, Session, Target, Tune};
use lacuna_ir::op::GemmAttr;
use lacuna_ir::{Attr, Graph, OpKind, Tensor};

const ASKED: Options = Options {
    threads: Some(1),
    isa: None,
    kernels: KernelChoice::Auto,
    batch: Some(2),
    tune: Tune::Off,
    first_core: None,
    cache_bytes: None,
    bf16: true,
    keep_values: false,
    release_weights: false,
};

/// Whether a session may be asked for them here; says so if not.
fn present(test: &str) -> bool {
    let target = Target::native().and_then(|target| target.with_bf16(true));
    if let Err(why) = &target {
        println!("skipped {test}: {why}");
    }
    target.is_ok()
}

/// Steps whose products are bfloat16.
fn bf16_steps(session: &Session) -> usize {
    let is_bf16 = |name: &str| CONV_KERNELS.iter().any(|k| k.name == name && k.dtype == KernelType::Bf16);
    session.steps().iter().filter(|step| is_bf16(step.kernel)).count()
}

#[test]
fn nothing_is_rounded_unless_asked() {
    for &(name, make) in NETS {
        for tune in [Tune::Off, Tune::On] {
            let options = Options { bf16: false, tune, ..ASKED };
            let session = Session::new(&make(false, 0.0), &options).unwrap();
            assert_eq!(bf16_steps(&session), 0, "{name} {tune:?}");
        }
    }
}

#[test]
fn results_stay_near_those_of_f32() {
    if !present("results_stay_near_those_of_f32") {
        return;
    }
    for &(name, make) in NETS {
        let g = make(false, 0.0);
        let mut exact = Session::new(&g, &Options { bf16: false, ..ASKED }).unwrap();
        for tune in [Tune::Off, Tune::On] {
            for threads in [1, 2] {
                let options = Options { tune, threads: Some(threads), ..ASKED };
                let mut session = Session::new(&g, &options).unwrap();
                let steps = bf16_steps(&session);
                assert!(steps > 0 || tune == Tune::On, "{name}: no step in bfloat16");
                // Sessions beside it, and other batches, take the same kernels.
                let mut streams = [1, 2].map(|threads| session.stream(threads, 0).unwrap());
                for batch in [2, 3] {
                    let x = [input(&g, batch, 5)];
                    let (want, got) = (exact.run(&x).unwrap(), session.run(&x).unwrap());
                    assert_near(&want, &got, name);
                    assert!(steps == 0 || want != got, "{name}: nothing was rounded");
                    for stream in &mut streams {
                        assert_near(&want, &stream.run(&x).unwrap(), name);
                        assert_eq!(bf16_steps(stream), steps, "{name}");
                    }
                }
            }
        }
    }
}

/// Every factor errs by 2^-8 of itself at most: a few layers by some percent of their largest result.
fn assert_near(want: &[Tensor], got: &[Tensor], name: &str) {
    for (want, got) in want.iter().zip(got) {
        let (want, got) = (want.as_f32().unwrap(), got.as_f32().unwrap());
        let largest = want.iter().fold(0f32, |most, v| most.max(v.abs()));
        let error = want.iter().zip(got).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(error <= 0.03 * largest, "{name}: {error} of {largest}");
    }
}

/// Weights of whole numbers stand for integers, whose sums callers expect to be exact.
#[test]
fn whole_weights_are_multiplied_exactly() {
    if !present("whole_weights_are_multiplied_exactly") {
        return;
    }
    for (step, rounded) in [(1.0, 0), (0.5, 1)] {
        for tune in [Tune::Off, Tune::On] {
            let options = Options { kernels: KernelChoice::Dense, tune, ..ASKED };
            let session = Session::new(&product_of(step), &options).unwrap();
            let steps = bf16_steps(&session);
            assert!(steps == rounded || (steps < rounded && tune == Tune::On), "{step}: {steps}");
        }
    }
}

/// One matrix product with weights that are multiples of `step`.
fn product_of(step: f32) -> Graph {
    let (mut net, x) = Net::new("product", false, 0.0, &[200]);
    let w = (0..64 * 200).map(|i| (i % 7) as f32 * step).collect();
    let w = net.tensor(&Tensor::from_f32(&[64, 200], w));
    let b = net.bias(64);
    let attr = GemmAttr { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: true };
    let y = net.op(OpKind::Gemm, Attr::Gemm(attr), &[x, w, b]);
    net.finish(&[y])
}

#[test]
fn asking_in_vain_is_an_error() {
    let g = mlp(false, 0.0);
    let refused = |options: Options| match Session::new(&g, &options).err() {
        Some(Error::Options(why)) => assert!(why.starts_with("bf16: "), "{why}"),
        other => panic!("{other:?}"),
    };
    refused(Options { isa: Some(Isa::Portable), ..ASKED });
    if !present("products in bfloat16") {
        refused(ASKED);
    }
}
