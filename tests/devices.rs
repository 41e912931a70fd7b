//! Both devices give the same results: forward, gradients, pruning steps, fake quantisation.
//!
//! Flex runs this project's own training ops, burn-ndarray plain burn ops, so this also holds one against the other
//! through a whole network.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use lacuna::cli::training::{DeviceName, device};
use lacuna::models::{InputShape, MODELS, Network};
use lacuna::nn::Classifier;
use lacuna::nn::layers::Init;
use lacuna::nn::params;
use lacuna::nn::quant::{Norm, Pass, Quant, host};
use lacuna::train::Optimizer;
use lacuna::train::state::State;

/// Images with something to tell apart, not noise alone.
fn images(n: usize, c: usize, h: usize, w: usize) -> TensorData {
    let value = |i: usize| ((i * 7919 % 1013) as f32 / 506.5 - 1.0) * ((i / (h * w)) as f32 * 0.37).sin();
    TensorData::new((0..n * c * h * w).map(value).collect::<Vec<f32>>(), [n, c, h, w])
}

fn targets(device: &Device) -> Tensor<2> {
    let one_hot = (0..40).map(|i| if i % 10 == i / 10 { 1.0f32 } else { 0.0 }).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(one_hot, [4, 10]), device)
}

struct Net {
    net: Network,
    state: State,
    device: Device,
}

impl Net {
    fn new(plain: Device) -> Net {
        let device = plain.autodiff();
        let net = (MODELS[0].build)(&mut Init::new(&device, 11));
        Net { state: State::new(&net, 1e-3), net, device }
    }

    /// One step of training on the same four images; the loss before it.
    fn step(&mut self, quant: Quant) -> f32 {
        self.state.pass = Pass { quant, norm: Norm::Batch, ..Pass::default() };
        let InputShape::Image([c, h, w]) = MODELS[0].input else { panic!("it takes images") };
        let logits = self.net.forward(Tensor::from_data(images(4, c, h, w), &self.device), &self.state.pass);
        let log_probability = burn::tensor::activation::log_softmax(logits, 1);
        let loss = (log_probability * targets(&self.device)).sum().neg();
        let value = loss.clone().into_scalar();
        self.net = self.state.step(self.net.clone(), loss.backward(), &Optimizer::SGD, 0.01);
        value
    }

    fn tensors(&self) -> Vec<Vec<f32>> {
        let mut all = Vec::new();
        params::for_each(&self.net, |_, w| all.push(w.to_vec()));
        all
    }

    /// Logits with fake quantisation on the ranges seen so far.
    fn logits(&self) -> Vec<f32> {
        let InputShape::Image([c, h, w]) = MODELS[0].input else { panic!("it takes images") };
        let x = Tensor::from_data(images(4, c, h, w), &self.device.clone().inner());
        host(
            self.net
                .valid()
                .forward(x, &Pass { quant: Quant::Frozen, norm: Norm::Frozen, ..Pass::default() }),
        )
    }
}

/// How far two updates of the same weights lie apart, of the length of the first: 1 where they have nothing in common.
fn distance(a: &[Vec<f32>], b: &[Vec<f32>], before: &[Vec<f32>]) -> f32 {
    let [mut apart, mut length] = [0.0f64; 2];
    for ((a, b), before) in a.iter().flatten().zip(b.iter().flatten()).zip(before.iter().flatten()) {
        apart += f64::from(a - b).powi(2);
        length += f64::from(a - before).powi(2);
    }
    (apart / length).sqrt() as f32
}

#[track_caller]
fn close(what: &str, a: &[f32], b: &[f32], bound: f32) {
    let largest = a.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(a.len() == b.len() && worst <= bound * largest, "{what}: {worst} off, largest element {largest}");
}

#[test]
fn every_device_trains_alike() {
    let mut flex = Net::new(device(DeviceName::Flex));
    let mut plain = vec![flex.step(Quant::Off)];
    let after_one = flex.tensors();
    plain.extend((0..2).map(|_| flex.step(Quant::Off)));
    println!("flex: losses {plain:?}");
    assert!(plain[2] < plain[0], "three steps on one batch lower the loss");
    let mut other = Net::new(device(DeviceName::Ndarray));
    let mut theirs = vec![other.step(Quant::Off)];
    for (row, (a, b)) in after_one.iter().zip(other.tensors()).enumerate() {
        // Batch norm's gradient is a difference of large sums: f32 keeps some three digits of it. Later steps start from
        // there, and a ReLU that opens on one device only moves a weight by more: of those, losses are compared.
        close(&format!("tensor {row} after a step"), a, &b, 0.01);
    }
    theirs.extend((0..2).map(|_| other.step(Quant::Off)));
    println!("ndarray: losses {theirs:?}");
    close("losses of plain steps", &plain, &theirs, 1e-4);

    // The largest weight of a channel lies at a tie of its grid, where the last bit of a weight decides: fake
    // quantisation is compared from the same bytes on.
    flex.step(Quant::Observe);
    let same = flex.tensors();
    other.net = params::update_each(other.net.clone(), |row, w| w.copy_from_slice(&same[row]));
    close("logits with fake quantisation", &flex.logits(), &other.logits(), 0.02);
    // Without momentum, an update is a gradient.
    for net in [&mut flex, &mut other] {
        net.state.moments.first.iter_mut().for_each(|row| row.fill(0.0));
    }
    let losses = [flex.step(Quant::Frozen), other.step(Quant::Frozen)];
    println!("a quantised step from the same bytes: losses {losses:?}");
    close("loss with fake quantisation", &losses[..1], &losses[1..], 0.02);
    let apart = distance(&flex.tensors(), &other.tensors(), &same);
    println!("their updates are {apart} of their length apart");
    assert!(apart < 0.1, "updates of a quantised step: {apart}");
}
