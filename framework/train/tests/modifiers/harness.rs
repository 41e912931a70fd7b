//! Trains a small network on synthetic images under a recipe, and shows every event and every step to a check.

use burn::module::Module;
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use lacuna_nn::layers::{Act, BatchNorm, Conv2d, Init, Linear, conv_norm, global_average_pool};
use lacuna_nn::params::{self, Role};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Norm, Pass};
use lacuna_nn::{Classifier, Input, ops};
use lacuna_recipe::{Event, Schedule};
use lacuna_train::modifiers;
use lacuna_train::optimizer::Optimizer;
use lacuna_train::state::State;
use lacuna_train::{trainer, weights};
use std::collections::BTreeMap;

pub const STEPS_PER_EPOCH: u32 = 4;
const BATCH: usize = 8;
const IMAGE: [usize; 3] = [2, 6, 6];
const CLASSES: usize = 3;

/// Three convolutions, the second around a shortcut, and a linear layer.
#[derive(Module, Debug)]
pub struct Tiny {
    conv1: Conv2d,
    bn1: BatchNorm,
    act1: ActivationQuantizer,
    conv2: Conv2d,
    bn2: BatchNorm,
    act2: ActivationQuantizer,
    conv3: Conv2d,
    bn3: BatchNorm,
    act3: ActivationQuantizer,
    pool: ActivationQuantizer,
    fc: Linear,
}

impl Tiny {
    fn new(init: &mut Init) -> Tiny {
        Tiny {
            conv1: Conv2d::new(2, 8, 3, 1, init),
            bn1: BatchNorm::new(8, init),
            act1: ActivationQuantizer::new(&init.device),
            conv2: Conv2d::new(8, 8, 3, 1, init),
            bn2: BatchNorm::new(8, init),
            act2: ActivationQuantizer::new(&init.device),
            conv3: Conv2d::new(8, 6, 3, 2, init),
            bn3: BatchNorm::new(6, init),
            act3: ActivationQuantizer::new(&init.device),
            pool: ActivationQuantizer::new(&init.device),
            fc: Linear::new(6, CLASSES, init),
        }
    }
}

impl Classifier for Tiny {
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        let x = Activation::plain(x.into().images());
        let (x, skip) = conv_norm(&x, &self.conv1, &self.bn1, None, Act::Relu, &self.act1, pass).fork();
        let x = conv_norm(&x, &self.conv2, &self.bn2, Some(skip.x), Act::Relu, &self.act2, pass);
        let x = conv_norm(&x, &self.conv3, &self.bn3, None, Act::Relu, &self.act3, pass);
        let pooled = self.pool.forward(global_average_pool(x.x), pass);
        let [n, c, _, _] = pooled.x.dims();
        self.fc.forward(&pooled.map(|x| x.reshape([n, c])), pass)
    }
}

pub type Tensors = BTreeMap<String, Vec<f32>>;

/// All of a training at one moment, by names of parameters.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Shot {
    pub weights: Tensors,
    pub masks: BTreeMap<String, Vec<u8>>,
    pub momentum: Tensors,
    /// Named `column/parameter`.
    pub columns: Tensors,
    /// Of a few images, as an evaluation computes them.
    pub logits: Vec<f32>,
}

pub enum Seen<'a> {
    Event {
        event: &'a Event,
        step: u64,
        before: &'a Shot,
        after: &'a Shot,
        /// Of the samples that the event took, in order.
        gradients: &'a [Tensors],
    },
    Step {
        step: u64,
        before: &'a Shot,
        after: &'a Shot,
        gradient: &'a Tensors,
    },
}

pub struct Training {
    net: Tiny,
    state: State,
    device: Device,
    pub schedule: Schedule,
    optimizer: Optimizer,
    lr: f64,
}

impl Training {
    /// `modifiers` are the lines of the list, without `- `.
    pub fn new(epochs: u32, modifiers: &[&str], optimizer: Optimizer) -> Training {
        let mut text =
            format!("modifiers:\n  - !EpochRangeModifier {{start_epoch: 0, end_epoch: {epochs}}}\n");
        modifiers.iter().for_each(|m| text += &format!("  - {m}\n"));
        let recipe = lacuna_recipe::parse(&text, "recipe.yaml", &[])
            .unwrap_or_else(|d| panic!("{text}{}", lacuna_recipe::render(&d)));
        let device = Device::flex().autodiff();
        let net = Tiny::new(&mut Init::new(&device, 3));
        let schedule =
            trainer::compile(&net, &recipe, STEPS_PER_EPOCH).unwrap_or_else(|e| panic!("{text}{e}"));
        let lr = if matches!(optimizer, Optimizer::Sgd { .. }) { 0.05 } else { 0.005 };
        let mut state = State::new(&net, 1e-3);
        state.image = Some(IMAGE);
        Training { state, net, device, schedule, optimizer, lr }
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.state.params.shape[self.state.params.row(name).unwrap()].clone()
    }

    /// Names of the rows that a schedule numbers.
    pub fn trained_names(&self) -> Vec<String> {
        self.state.recipe_rows().into_iter().map(|row| row.name).collect()
    }

    /// Changes weights before the training begins.
    pub fn with_weights(mut self, mut f: impl FnMut(&str, &mut [f32])) -> Training {
        let names = self.state.params.name.clone();
        self.net = params::update_each(self.net, |row, w| f(&names[row], w));
        self
    }

    pub fn shot(&self) -> Shot {
        let table = &self.state.params;
        let mut shot = Shot::default();
        params::for_each(&self.net, |row, w| {
            shot.weights.insert(table.name[row].clone(), w.to_vec());
        });
        for row in 0..table.len() {
            let name = || table.name[row].clone();
            if let Some(mask) = &self.state.mask[row] {
                shot.masks.insert(name(), mask.clone());
            }
            if !self.state.moments.first[row].is_empty() {
                shot.momentum.insert(name(), self.state.moments.first[row].clone());
            }
        }
        let pass = Pass { norm: Norm::Frozen, ..Pass::default() };
        let (x, _) = images(4711, &Device::flex());
        shot.logits = self.net.valid().forward(x, &pass).into_data().try_to_vec().unwrap();
        for column in self.state.column_tensors() {
            shot.columns.insert(column.name.split_once('/').unwrap().1.to_owned(), column.data);
        }
        shot
    }

    /// Trains from step `from` to the end. A saved and restored training goes on as if nothing had been.
    pub fn run(mut self, from: u64, mut check: impl FnMut(&Seen<'_>)) -> Training {
        for step in from..=self.schedule.steps {
            for event in self.schedule.events_at(step).to_vec() {
                self = self.apply(&event, step, &mut check);
            }
            if step < self.schedule.steps {
                self.state.watch(&self.schedule, step);
                self = self.step(step, &mut check);
            }
        }
        self
    }

    fn apply(mut self, event: &Event, step: u64, check: &mut impl FnMut(&Seen<'_>)) -> Training {
        let before = self.shot();
        let mut gradients = Vec::new();
        let (device, names) = (self.device.clone(), self.state.params.name.clone());
        let mut sample = |net: &Tiny, pass: &Pass, _: Option<usize>| {
            let seed = 1000 + step as usize * 100 + gradients.len();
            let found = gradients_of(net, pass, seed, &device);
            gradients.push(named(net, &found, &names));
            Ok(found)
        };
        let applied = modifiers::apply(&mut self.state, self.net, &self.schedule, event, &mut sample);
        (self.net, _) = applied.unwrap_or_else(|e| panic!("{event:?}: {e}"));
        let after = self.shot();
        self.check_masked(&after);
        check(&Seen::Event { event, step, before: &before, after: &after, gradients: &gradients });
        self
    }

    fn step(mut self, step: u64, check: &mut impl FnMut(&Seen<'_>)) -> Training {
        let before = self.shot();
        let gradients = gradients_of(&self.net, &self.state.training_pass(), step as usize, &self.device);
        let gradient = named(&self.net, &gradients, &self.state.params.name);
        self.net = self.state.step(self.net, gradients, &self.optimizer, self.lr);
        let after = self.shot();
        self.check_masked(&after);
        check(&Seen::Step { step, before: &before, after: &after, gradient: &gradient });
        self
    }

    /// A masked weight is exactly +0.0, and while there are masks no other weight has those bits.
    fn check_masked(&self, shot: &Shot) {
        let table = &self.state.params;
        for row in (0..table.len()).filter(|&row| table.role[row] == Role::Weight) {
            let name = &table.name[row];
            let mask = shot.masks.get(name);
            for (i, w) in shot.weights[name].iter().enumerate() {
                let masked = mask.is_some_and(|m| m[i] == 0);
                assert!(!masked || w.to_bits() == 0, "{name}[{i}] is masked and {w}");
                assert!(masked || shot.masks.is_empty() || w.to_bits() != 0, "{name}[{i}] is open and +0.0");
            }
        }
    }

    /// What a checkpoint holds, read into a new training.
    fn saved_and_restored(self, modifiers: impl Fn() -> Training) -> Training {
        let mut other = modifiers();
        let model = weights::tensors(&self.net, &self.state.params);
        let net = match self.state.is_thinned() {
            false => weights::put(other.net, &model).unwrap(),
            true => weights::put_thinned(other.net, &model, IMAGE).unwrap(),
        };
        other.state.thinned_from(&net, Some(self.state.full_shape.clone()));
        (other.state.weight_decay, other.state.trainable) =
            (self.state.weight_decay, self.state.trainable.clone());
        (other.state.pass.quant, other.state.pass.norm) = (self.state.pass.quant, self.state.pass.norm);
        let (first, second) = (self.state.first_moment_tensors(), self.state.second_moment_tensors());
        let (masks, columns) = (self.state.mask_tensors(), self.state.column_tensors());
        let steps = self.state.moments.steps.clone();
        other.net = other.state.restore(net, &first, &second, steps, &masks, &columns).unwrap();
        other
    }
}

/// A training that is saved and restored in a new process's state before each of its steps ends with the same bytes.
pub fn resumes_to_the_same_bytes(epochs: u32, modifiers: &[&str], optimizer: Optimizer) {
    let new = || Training::new(epochs, modifiers, optimizer);
    let through = new().run(0, |_| {}).shot();
    let mut training = new();
    for step in 0..training.schedule.steps {
        training = training.saved_and_restored(new);
        for event in training.schedule.events_at(step).to_vec() {
            training = training.apply(&event, step, &mut |_| {});
        }
        training.state.watch(&training.schedule, step);
        training = training.step(step, &mut |_| {});
    }
    let last = training.schedule.steps;
    training = training.saved_and_restored(new);
    let ended = training.run(last, |_| {}).shot();
    let bits = |t: &Tensors| -> Vec<u32> { t.values().flatten().map(|v| v.to_bits()).collect() };
    assert!(bits(&through.weights) == bits(&ended.weights), "{modifiers:?}: weights differ after resuming");
    assert!(through == ended, "{modifiers:?}: masks, momentum or columns differ after resuming");
}

/// Synthetic images: bars whose direction is the class, and noise.
fn images(seed: usize, device: &Device) -> (Tensor<4>, Tensor<1, Int>) {
    let [c, h, w] = IMAGE;
    let noise = |i: usize| ((i + seed * 7919) * 2_654_435_761 % 4093) as f32 / 2046.5 - 1.0;
    let label = |n: usize| (n + seed) % CLASSES;
    let pixel = |i: usize| {
        let (n, y, x) = (i / (c * h * w), i / w % h, i % w);
        let bar = [y, x, y + x][label(n)] % 3 == 0;
        0.3 * noise(i) + f32::from(u8::from(bar))
    };
    let x: Vec<f32> = (0..BATCH * c * h * w).map(pixel).collect();
    let labels: Vec<i64> = (0..BATCH).map(|n| label(n) as i64).collect();
    let x = Tensor::from_data(TensorData::new(x, [BATCH, c, h, w]), device);
    (x, Tensor::from_data(TensorData::new(labels, [BATCH]), device))
}

/// Of the mean cross-entropy.
fn gradients_of(net: &Tiny, pass: &Pass, seed: usize, device: &Device) -> Gradients {
    let (x, labels) = images(seed, device);
    ops::cross_entropy(net.forward(x, pass), labels).backward()
}

fn named(net: &Tiny, gradients: &Gradients, names: &[String]) -> Tensors {
    let mut out = Tensors::new();
    params::for_each_gradient(net, gradients, |row, g| {
        out.insert(names[row].clone(), g.to_vec());
    });
    out
}
