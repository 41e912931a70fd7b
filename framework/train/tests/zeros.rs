//! A weight that its mask leaves open stays apart from zero when it is quantised.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use lacuna_models::yolo::{V8, Yolo, YoloSize};
use lacuna_models::yolo_layers::Masks;
use lacuna_models::{MODELS, Network, output_names};
use lacuna_nn::capture::capture;
use lacuna_nn::layers::Init;
use lacuna_nn::params::{self, Role};
use lacuna_nn::quant::{Norm, Pass, Quant};
use lacuna_train::state::State;

#[test]
fn open_weights_do_not_round_to_zero() {
    let init = &mut Init::new(&Device::flex().autodiff(), 5);
    check((MODELS[0].build)(init), [2, 1, 28, 28]);
    // With a transposed convolution.
    let masks = Some(Masks { count: 4, channels: 64 });
    let size =
        YoloSize { name: "small", classes: 3, plan: &V8, depth: 0.33, width: 0.125, most: 1024, masks };
    check(Network::Yolo(Yolo::new(&size, init)), [2, 3, 32, 64]);
}

fn check(mut net: Network, dims: [usize; 4]) {
    let device = Device::flex().autodiff();
    let mut state = State::new(&net, 0.0);
    let weights: Vec<usize> =
        (0..state.params.len()).filter(|&row| state.params.role[row] == Role::Weight).collect();
    // Every second weight is masked, every tenth of the others is far below a step of its grid.
    let half = |row: usize, state: &State| (0..state.params.elements(row)).map(|i| (i % 2) as u8).collect();
    net = params::update_each(net, |row, w| {
        if weights.contains(&row) {
            for (i, w) in w.iter_mut().enumerate() {
                *w *= if i % 2 == 0 {
                    0.0
                } else if i % 20 == 1 {
                    1e-6
                } else {
                    1.0
                };
            }
        }
    });
    let masks: Vec<_> = weights.iter().map(|&row| (row, Some(half(row, &state)))).collect();
    net = state.set_masks(net, masks);
    (state.pass.quant, state.pass.norm) = (Quant::Observe, Norm::Frozen);
    net.outputs(Tensor::<4>::ones(dims, &device), &state.pass);
    let zeros = |net: &Network| {
        let pass = Pass { quant: Quant::Frozen, norm: Norm::Frozen, ..Pass::default() };
        let names = output_names(net);
        let shape = [1, dims[1], dims[2], dims[3]];
        let outputs = |m: &Network, x: Tensor<4>| m.outputs(x, &pass);
        let g = capture(&net.valid(), "x", shape, &names, outputs).unwrap();
        let count = |&row: &usize| {
            let name = format!("{}_quantized", state.params.name[row]);
            let v = g.value_name.iter().find(|(_, n)| **n == name).unwrap().0;
            g.const_tensor(v).unwrap().as_i8().unwrap().iter().filter(|q| **q == 0).count()
        };
        weights.iter().map(count).collect::<Vec<_>>()
    };
    let masked: Vec<usize> =
        state.mask.iter().flatten().map(|mask| mask.iter().filter(|m| **m == 0).count()).collect();
    let before = zeros(&net);
    assert!(
        before.iter().zip(&masked).all(|(b, m)| b > m),
        "rounding adds zeros: {before:?}, masked {masked:?}"
    );
    let net = state.keep_open_weights_off_zero(net);
    assert_eq!(zeros(&net), masked);
}
