//! Every device that is built in gives the same results: forward, gradients, pruning steps, fake quantisation.
//!
//! `cargo test --release --features ndarray --test devices` adds burn-ndarray to flex. Flex runs this project's own
//! training ops, the others plain burn ops, so this also holds one against the other through a whole network.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use lacuna::cli::training::{DEVICES, DeviceName, device};
use lacuna::models::MODELS;
use lacuna::nn::Classifier;
use lacuna::nn::layers::Init;
use lacuna::nn::params;
use lacuna::nn::quant::{Norm, Pass, Quant, host};
use lacuna::train::state::State;

/// Images with something to tell apart, not noise alone.
fn images(n: usize, c: usize, h: usize, w: usize) -> TensorData {
    let value = |i: usize| ((i * 7919 % 1013) as f32 / 506.5 - 1.0) * ((i / (h * w)) as f32 * 0.37).sin();
    TensorData::new((0..n * c * h * w).map(value).collect::<Vec<f32>>(), [n, c, h, w])
}

struct Ran {
    losses: Vec<f32>,
    weights: Vec<Vec<f32>>,
    logits: Vec<f32>,
}

/// Three plain steps, two steps with fake quantisation, then an evaluation with frozen ranges.
fn run(plain: &Device) -> Ran {
    let device = plain.clone().autodiff();
    let row = &MODELS[0];
    let mut net = (row.build)(&mut Init::new(&device, 11));
    let mut state = State::new(&net, 1e-3);
    let [c, h, w] = row.input;
    let x = images(4, c, h, w);
    let mut losses = Vec::new();
    for step in 0..5 {
        state.pass = Pass { quant: if step < 3 { Quant::Off } else { Quant::Observe }, norm: Norm::Batch };
        let logits = net.forward(Tensor::from_data(x.clone(), &device), &state.pass);
        let target = Tensor::<2>::from_data(
            TensorData::new(
                (0..40).map(|i| if i % 10 == i / 10 { 1.0f32 } else { 0.0 }).collect::<Vec<_>>(),
                [4, 10],
            ),
            &device,
        );
        let loss = (burn::tensor::activation::log_softmax(logits, 1) * target).sum().neg();
        losses.push(loss.clone().into_scalar());
        net = state.sgd_step(net, &loss.backward(), 0.01, 0.9);
    }
    let net = net.valid();
    let pass = Pass { quant: Quant::Frozen, norm: Norm::Frozen };
    let logits = host(net.forward(Tensor::from_data(x, plain), &pass));
    let mut weights = Vec::new();
    params::for_each(&net, |_, w| weights.push(w.to_vec()));
    Ran { losses, weights, logits }
}

#[test]
fn every_device_trains_alike() {
    let flex = run(&device(DeviceName::Flex).unwrap());
    assert!(flex.losses[2] < flex.losses[0], "three steps on one batch lower the loss: {:?}", flex.losses);
    println!("flex: losses {:?}", flex.losses);
    if !DEVICES.contains(&"ndarray") {
        println!("SKIP ndarray: 1 device, not built in (--features ndarray)");
        return;
    }
    let other = run(&device(DeviceName::Ndarray).unwrap());
    println!("ndarray: losses {:?}", other.losses);
    for (a, b) in flex.losses[..3].iter().zip(&other.losses) {
        assert!((a - b).abs() <= 1e-3 * a.abs(), "plain steps: {:?} and {:?}", flex.losses, other.losses);
    }
    // A value at a tie may round either way, so quantised steps agree less closely.
    for (a, b) in flex.losses[3..].iter().zip(&other.losses[3..]) {
        assert!((a - b).abs() <= 0.02 * a.abs(), "quantised steps: {:?} and {:?}", flex.losses, other.losses);
    }
    for (row, (a, b)) in flex.weights.iter().zip(&other.weights).enumerate() {
        let largest = a.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
        let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 0.05 * largest, "tensor {row}: {worst} off, largest element {largest}");
    }
    let top = |l: &[f32]| (0..10).max_by(|&i, &j| l[i].total_cmp(&l[j])).unwrap();
    for (a, b) in flex.logits.chunks(10).zip(other.logits.chunks(10)) {
        assert_eq!(top(a), top(b), "classes of the evaluation");
    }
}
