//! Optimisers on a whole network: zeros under masks, memory, threads.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use lacuna_models::{InputShape, MODELS, Network};
use lacuna_nn::Classifier;
use lacuna_nn::layers::Init;
use lacuna_nn::params::{self, Role};
use lacuna_recipe::Scope;
use lacuna_train::optimizer::Optimizer;
use lacuna_train::state::State;
use lacuna_train::{masks, weights};

const ALL: [Optimizer; 4] =
    [Optimizer::SGD, Optimizer::Sgd { momentum: 0.9, nesterov: true }, Optimizer::ADAM, Optimizer::ADAMW];

struct Training {
    net: Network,
    state: State,
    device: Device,
}

impl Training {
    fn new() -> Training {
        let device = Device::flex().autodiff();
        let net = (MODELS[0].build)(&mut Init::new(&device, 9));
        Training { state: State::new(&net, 1e-3), net, device }
    }

    fn gradients(&self) -> burn::tensor::Gradients {
        let InputShape::Image([c, h, w]) = MODELS[0].input else { panic!("it takes images") };
        let pixel = |i: usize| (i * 7919 % 1013) as f32 / 506.5 - 1.0;
        let x: Vec<f32> = (0..8 * c * h * w).map(pixel).collect();
        let x = Tensor::<4>::from_data(TensorData::new(x, [8, c, h, w]), &self.device);
        let y = self.net.forward(x, &self.state.pass);
        (y.clone() * y).mean().backward()
    }

    fn step(mut self, optimizer: &Optimizer) -> Training {
        let gradients = self.gradients();
        self.net = self.state.step(self.net, gradients, optimizer, 0.01);
        self
    }

    fn bits(&self) -> Vec<Vec<u32>> {
        let mut all = Vec::new();
        params::for_each(&self.net, |_, w| all.push(w.iter().map(|v| v.to_bits()).collect()));
        all
    }

    fn prunable(&self) -> Vec<usize> {
        let table = &self.state.params;
        (0..table.len()).filter(|&row| table.role[row] == Role::Weight).collect()
    }

    /// Masks 80 % of every prunable tensor but the first, in which some open weights become zero.
    fn pruned(mut self) -> Training {
        let rows = self.prunable();
        self.net = params::update_each(self.net, |row, w| {
            if row == rows[0] {
                w[..4].fill(0.0);
            }
        });
        let mut found = Vec::new();
        params::for_each(&self.net, |row, w| {
            if rows[1..].contains(&row) {
                found.push((row, masks::by_magnitude(&[w], 0.8, Scope::Uniform).pop()));
            }
        });
        self.net = self.state.set_masks(self.net, found);
        self
    }
}

#[test]
fn masked_weights_stay_positive_zeros_and_open_ones_never_are() {
    for optimizer in ALL {
        let mut t = Training::new().step(&optimizer).pruned();
        assert!(t.state.pass.sparse);
        for steps in 0..3 {
            let bits = t.bits();
            for row in t.prunable() {
                let open = |i: usize| t.state.mask[row].as_ref().is_none_or(|m| m[i] == 1);
                let wrong =
                    bits[row].iter().enumerate().filter(|(i, bits)| (**bits == 0) == open(*i)).count();
                assert_eq!(wrong, 0, "{optimizer:?}, row {row} after {steps} steps");
            }
            assert!(bits[t.prunable()[0]][..4].iter().all(|&b| steps > 0 || b == (-0.0f32).to_bits()));
            t = t.step(&optimizer);
        }
        for row in t.prunable() {
            let masked = t.state.mask[row].iter().flatten().map(|&m| m == 0);
            let moments = t.state.moments.first[row].iter().zip(masked);
            assert!(moments.filter(|(_, masked)| *masked).all(|(v, _)| *v == 0.0), "{optimizer:?}");
        }
        let rows = t.prunable();
        t.net = t.state.set_masks(t.net, rows.into_iter().map(|row| (row, None)));
        assert!(!t.state.pass.sparse);
    }
}

#[test]
fn files_of_weights_hold_no_negative_zeros() {
    let t = Training::new().pruned();
    let negative = |net: &Network| {
        let mut count = 0;
        params::for_each(net, |_, w| count += w.iter().filter(|v| v.to_bits() == 1 << 31).count());
        count
    };
    assert!(negative(&t.net) >= 4);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    weights::save(&t.net, &path, &Default::default()).unwrap();
    assert_eq!(negative(&weights::load(Training::new().net, &path).unwrap().0), 0);
    assert_eq!(negative(&weights::plain_zeros(t.net.valid())), 0);
}

/// A step that copied a tensor out of the module would leave its values at another address.
#[test]
fn steps_change_weights_in_place() {
    let addresses = |t: &mut Training| {
        let mut found = Vec::new();
        let gradients = t.gradients();
        let net = std::mem::replace(&mut t.net, (MODELS[0].build)(&mut Init::new(&t.device, 0)));
        t.net = params::update_with_gradients(net, gradients, |updates| {
            found = updates.iter().map(|u| (u.row, u.values.as_ptr() as usize, u.values.len())).collect();
        });
        found
    };
    let mut t = Training::new();
    let first = addresses(&mut t);
    assert_eq!(first.len(), t.state.params.role.iter().filter(|&&role| role != Role::Buffer).count());
    assert!(first.iter().all(|&(row, _, len)| len == t.state.params.elements(row)));
    t = t.step(&Optimizer::SGD);
    assert_eq!(addresses(&mut t), first);
}

#[test]
fn one_thread_and_two_give_the_same_bits() {
    let train = |optimizer: Optimizer, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let t = (0..3).fold(Training::new(), |t, _| t.step(&optimizer)).pruned();
            (0..3).fold(t, |t, _| t.step(&optimizer)).bits()
        })
    };
    for optimizer in [Optimizer::SGD, Optimizer::ADAMW] {
        assert!(train(optimizer, 1) == train(optimizer, 2), "{optimizer:?}");
    }
}
