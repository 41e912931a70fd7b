//! A small member of every family learns a batch by heart, plain and quantised.

mod common;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use common::{all, channels, host, image_size, of_tokens, takes_tokens, values};
use lacuna_models::text::Purpose;
use lacuna_models::{Network, Output};
use lacuna_nn::quant::{Norm, Pass, Quant};
use lacuna_nn::{Input, Tokens, ops, params};

const BATCH: usize = 8;
const TOKENS: usize = 6;

/// See [`common::tokens`].
fn tokens(filler: i64, device: &Device) -> Tokens {
    let (ids, mask) = common::tokens(BATCH, TOKENS, filler);
    let mask: Vec<f32> = mask.into_iter().map(|m| m as f32).collect();
    Tokens {
        ids: Tensor::from_data(TensorData::new(ids, [BATCH, TOKENS]), device),
        mask: Some(Tensor::from_data(TensorData::new(mask, [BATCH, TOKENS]), device)),
        types: None,
    }
}

fn batch(net: &Network, device: &Device) -> Input {
    match net {
        net if takes_tokens(net) => tokens(0, device).into(),
        _ => {
            // The smallest that detectors take.
            let detects = matches!(net, Network::Yolo(_) | Network::Ssd(_) | Network::Yolact(_));
            let [h, w] = if detects { image_size(net) } else { [32, 32] };
            let c = channels(net);
            let x = TensorData::new(values(BATCH * c * h * w, 0), [BATCH, c, h, w]);
            Tensor::<4>::from_data(x, device).into()
        }
    }
}

/// Classes for a classifier, of sequences or tokens; for a detector, the distance of its maps to fixed ones; for vectors of
/// meaning, that to fixed vectors.
fn loss(purpose: Purpose, outputs: Vec<Output>, device: &Device) -> Tensor<1> {
    let fixed = |n: usize| values(n, 1);
    let classes = |logits: Tensor<2>| {
        let n = logits.dims()[0];
        let targets: Vec<i64> = (0..n as i64).map(|i| i % 4).collect();
        ops::cross_entropy(logits, Tensor::<1, Int>::from_data(TensorData::new(targets, [n]), device))
    };
    let one = |output| match output {
        Output::Logits(x) if purpose == Purpose::Sentence => {
            let dims = x.dims();
            let fixed = Tensor::from_data(TensorData::new(fixed(dims.iter().product()), dims), device);
            (x - fixed).powi_scalar(2).sum()
        }
        Output::Logits(logits) => classes(logits),
        Output::Table(x) if matches!(purpose, Purpose::Tags | Purpose::Words) => {
            let [n, tokens, k] = x.dims();
            classes(x.reshape([n * tokens, k]))
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
    outputs.into_iter().flat_map(host).collect()
}

/// Losses of steps of plain gradient descent on one batch.
fn losses(mut net: Network, pass: &Pass, steps: usize, device: &Device) -> (Network, Vec<f32>) {
    // Without Adam, first steps are slow in a transformer, and where a mean is over many boxes; without norms in a pyramid, large ones
    // go astray.
    let rate = match net.purpose() {
        Purpose::Sentence => 0.02,
        Purpose::Words => 1.0,
        _ if takes_tokens(&net) => 0.2,
        _ if matches!(net, Network::Ssd(_)) => 0.2,
        _ if matches!(&net, Network::Yolo(net) if net.plan.anchors.is_empty()) => 0.2,
        _ if matches!(net, Network::Yolact(_)) => 0.01,
        _ => 0.05,
    };
    let mut losses = Vec::new();
    for _ in 0..steps {
        let loss = loss(net.purpose(), net.outputs(batch(&net, device), pass), device);
        losses.push(loss.clone().into_scalar());
        let gradients = loss.backward();
        let most = if takes_tokens(&net) { 0.5 } else { f32::INFINITY };
        net = params::update_with_gradients(net, gradients, |rows| {
            // As transformers are trained: a gradient that is too long is made shorter.
            let length = rows.iter().flat_map(|row| &*row.gradient).map(|d| d * d).sum::<f32>().sqrt();
            let rate = rate * (most / length).min(1.0);
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
    for (name, net) in all(&device, 3) {
        let name = format!("{name} {:?}", net.purpose());
        let steps = if takes_tokens(&net) { 20 } else { 12 };
        let (net, plain) = losses(net, &Pass::default(), steps, &device);
        assert!(plain[steps - 1] < 0.9 * plain[0], "{name}: {plain:?}");
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
    for (name, net) in all(&device, 3) {
        let square = |output| match output {
            // Of vectors of length one the sum of squares says nothing.
            Output::Logits(x) => (x - 0.1).powi_scalar(2).sum(),
            Output::Table(x) => x.powi_scalar(2).sum(),
            Output::Map(x) => x.powi_scalar(2).sum(),
        };
        let outputs = net.outputs(batch(&net, &device), &Pass::default());
        let loss = outputs.into_iter().map(square).reduce(|a, b| a + b).unwrap();
        let (table, net_purpose) = (params::ParamTable::of(&net), net.purpose());
        let mut seen = vec![false; table.len()];
        params::update_with_gradients(net, loss.backward(), |rows| {
            for row in rows {
                seen[row.row] = row.gradient.iter().any(|&d| d != 0.0);
            }
        });
        for row in (0..table.len()).filter(|&row| table.role[row] != params::Role::Buffer) {
            // What a key's bias adds to the scores of a query is the same for every key, and softmax takes no notice.
            let no_effect = ["key.bias", "k_lin.bias"].iter().any(|end| table.name[row].ends_with(end));
            // A body's pooler is there to be complete.
            let unread = net_purpose == Purpose::Sentence && table.name[row].starts_with("pooler.");
            assert!(seen[row] || no_effect || unread, "{name} {net_purpose:?}: '{}'", table.name[row]);
        }
    }
}

#[test]
fn what_fills_a_sequence_up_does_not_matter() {
    let device = Device::flex();
    for (name, net) in of_tokens(&device, 3) {
        let results = |x: Tokens| flat(net.outputs(x, &Pass::default()));
        let filled = results(tokens(0, &device));
        let alone = results(Tokens::of(tokens(0, &device).ids.slice([0..1, 0..3])));
        if matches!(net.purpose(), Purpose::Classes | Purpose::Sentence) {
            assert_eq!(filled, results(tokens(777, &device)), "{name}");
        }
        // Results of tokens stand token by token; those of one end of an answer come before the other's.
        let own = if net.purpose() == Purpose::Span { &alone[..3] } else { &alone[..] };
        for (a, b) in own.iter().zip(&filled) {
            assert!((a - b).abs() < 1e-5, "{name} {:?}: {a} alone, {b} filled up", net.purpose());
        }
    }
}
