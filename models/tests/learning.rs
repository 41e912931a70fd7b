//! A small member of every family learns a batch by heart, plain and quantised.

mod common;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use common::{BERT, all, image_size, values};
use lacuna_models::bert::Bert;
use lacuna_models::{Network, Output};
use lacuna_nn::layers::Init;
use lacuna_nn::quant::{Norm, Pass, Quant};
use lacuna_nn::{Classifier, Input, Tokens, ops, params};

const BATCH: usize = 8;
const TOKENS: usize = 6;

/// Ids; sequence `i` has `3 + i % 4` tokens, and `filler` behind them.
fn tokens(filler: i64, device: &Device) -> Tokens {
    let place = |i: usize| (i / TOKENS, i % TOKENS);
    let real = |i: usize| place(i).1 < 3 + place(i).0 % 4;
    let id = |i: usize| if real(i) { (place(i).0 * 1709 + place(i).1 * 37 + 1000) as i64 } else { filler };
    let ids: Vec<i64> = (0..BATCH * TOKENS).map(id).collect();
    let mask: Vec<f32> = (0..BATCH * TOKENS).map(|i| if real(i) { 1.0 } else { 0.0 }).collect();
    Tokens {
        ids: Tensor::from_data(TensorData::new(ids, [BATCH, TOKENS]), device),
        mask: Some(Tensor::from_data(TensorData::new(mask, [BATCH, TOKENS]), device)),
    }
}

fn batch(net: &Network, device: &Device) -> Input {
    match net {
        Network::Bert(_) => tokens(0, device).into(),
        _ => {
            // The smallest that detectors take.
            let detects = matches!(net, Network::Yolo(_) | Network::Ssd(_));
            let [h, w] = if detects { image_size(net) } else { [32, 32] };
            let x = TensorData::new(values(BATCH * 3 * h * w, 0), [BATCH, 3, h, w]);
            Tensor::<4>::from_data(x, device).into()
        }
    }
}

/// Classes for a classifier; for a detector, the distance of its maps to fixed ones.
fn loss(outputs: Vec<Output>, device: &Device) -> Tensor<1> {
    let one = |output| match output {
        Output::Logits(logits) => {
            let targets: Vec<i64> = (0..BATCH as i64).map(|i| i % 4).collect();
            let y = Tensor::<1, Int>::from_data(TensorData::new(targets, [BATCH]), device);
            ops::cross_entropy(logits, y)
        }
        Output::Map(map) => distance(map, device),
        Output::Table(table) => distance(table, device),
    };
    outputs.into_iter().map(one).reduce(|a, b| a + b).expect("a network has a result")
}

fn distance<const D: usize>(x: Tensor<D>, device: &Device) -> Tensor<1> {
    let dims = x.dims();
    let fixed = Tensor::from_data(TensorData::new(values(dims.iter().product(), 1), dims), device);
    (x - fixed).powi_scalar(2).mean()
}

/// All results of a network, one behind the other.
fn flat(outputs: Vec<Output>) -> Vec<f32> {
    let one = |output| -> Vec<f32> {
        match output {
            Output::Logits(x) => x.into_data().try_to_vec().unwrap(),
            Output::Map(x) => x.into_data().try_to_vec().unwrap(),
            Output::Table(x) => x.into_data().try_to_vec().unwrap(),
        }
    };
    outputs.into_iter().flat_map(one).collect()
}

/// Losses of steps of plain gradient descent on one batch.
fn losses(mut net: Network, pass: &Pass, steps: usize, device: &Device) -> (Network, Vec<f32>) {
    // Without Adam, first steps are slow in a transformer, and where a mean is over many boxes.
    let rate = if matches!(net, Network::Bert(_) | Network::Ssd(_)) { 0.2 } else { 0.05 };
    let mut losses = Vec::new();
    for _ in 0..steps {
        let loss = loss(net.outputs(batch(&net, device), pass), device);
        losses.push(loss.clone().into_scalar());
        let gradients = loss.backward();
        net = params::update_with_gradients(net, gradients, |rows| {
            for row in rows {
                row.values.iter_mut().zip(&*row.gradient).for_each(|(w, d)| *w -= rate * d);
            }
        });
    }
    (net, losses)
}

#[test]
fn losses_fall() {
    let device = Device::flex().autodiff();
    for (name, net) in all(&mut Init::new(&device, 3)) {
        let (net, plain) = losses(net, &Pass::default(), 12, &device);
        assert!(plain[11] < 0.9 * plain[0], "{name}: {plain:?}");
        let observe = Pass { quant: Quant::Observe, ..Pass::default() };
        let (net, quantised) = losses(net, &observe, 6, &device);
        assert!(quantised[5] < 0.9 * plain[0], "{name}: {quantised:?} after {plain:?}");
        let net = net.valid();
        let logits = |quant| -> Vec<f32> {
            let pass = Pass { quant, norm: Norm::Frozen, ..Pass::default() };
            flat(net.outputs(batch(&net, &Device::flex()), &pass))
        };
        let (plain, quantised) = (logits(Quant::Off), logits(Quant::Frozen));
        let size = |x: &mut dyn Iterator<Item = f32>| x.map(|v| v * v).sum::<f32>().sqrt();
        let off =
            size(&mut plain.iter().zip(&quantised).map(|(a, b)| a - b)) / size(&mut plain.iter().copied());
        // Running statistics have hardly moved in so few steps: values are far from what was observed.
        assert!(off > 0.0 && off < 0.75, "{name}: {off} off");
    }
}

#[test]
fn every_parameter_has_a_gradient() {
    let device = Device::flex().autodiff();
    for (name, net) in all(&mut Init::new(&device, 3)) {
        let square = |output| match output {
            Output::Logits(x) => x.powi_scalar(2).sum(),
            Output::Map(x) => x.powi_scalar(2).sum(),
            Output::Table(x) => x.powi_scalar(2).sum(),
        };
        let outputs = net.outputs(batch(&net, &device), &Pass::default());
        let loss = outputs.into_iter().map(square).reduce(|a, b| a + b).unwrap();
        let table = params::ParamTable::of(&net);
        let mut seen = vec![false; table.len()];
        params::update_with_gradients(net, loss.backward(), |rows| {
            for row in rows {
                seen[row.row] = row.gradient.iter().any(|&d| d != 0.0);
            }
        });
        for row in (0..table.len()).filter(|&row| table.role[row] != params::Role::Buffer) {
            // What a key's bias adds to the scores of a query is the same for every key, and softmax takes no notice.
            assert!(seen[row] || table.name[row].ends_with("key.bias"), "{name}: '{}'", table.name[row]);
        }
    }
}

#[test]
fn what_fills_a_sequence_up_does_not_matter() {
    let device = Device::flex();
    let net = Bert::new(&BERT, &mut Init::new(&device, 3));
    let logits =
        |x: Tokens| -> Vec<f32> { net.forward(x, &Pass::default()).into_data().try_to_vec().unwrap() };
    let filled = logits(tokens(0, &device));
    assert_eq!(filled, logits(tokens(777, &device)));
    let alone = Tokens { ids: tokens(0, &device).ids.slice([0..1, 0..3]), mask: None };
    for (a, b) in logits(alone).iter().zip(&filled) {
        assert!((a - b).abs() < 1e-5, "{a} alone, {b} filled up");
    }
}
