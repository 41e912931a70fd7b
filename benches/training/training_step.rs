//! One training step as `lacuna train` runs it: our side of `compare.py`, which says how both are measured.
//!
//!     training_step ROW
//!
//! A row is a model of [`lacuna::models::MODELS`], or one with `+pruned90` or `+int8` behind it. Commands come on stdin
//! and each is answered with one line of JSON: `step N` runs N steps (their milliseconds and losses), `memory` says the
//! peak resident set in MB, `quit` ends. Threads are rayon's: `RAYON_NUM_THREADS`.

use burn::tensor::{Device, Int, Tensor, TensorData};
use lacuna::models::{self, InputShape, Network};
use lacuna::nn::layers::Init;
use lacuna::nn::params::ParamTable;
use lacuna::nn::{Classifier, Tokens, ops};
use lacuna::train::state::State;
use lacuna::train::{Optimizer, modifiers, trainer};
use serde_json::json;
use std::io::{BufRead, Write};
use std::time::Instant;

/// Images or sequences of a step; the side of images where it is not the model's own.
const BATCH: &[(&str, usize, Option<usize>)] = &[
    ("resnet20", 64, None),
    ("resnet18_cifar", 32, None),
    ("mobilenet_v1", 32, Some(96)),
    ("efficientnet_lite0", 8, Some(224)),
    ("bert_mini", 32, None),
    ("minilm_l6", 16, None),
];
/// Different batches that the steps go through.
const BATCHES: usize = 4;
/// Of a sequence.
const TOKENS: usize = 128;

const PRUNED90: &str = "
training_modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 1.0}
  - !GMPruningModifier {params: __ALL_PRUNABLE__, init_sparsity: 0.9, final_sparsity: 0.9, start_epoch: 0.0, end_epoch: 1.0, update_frequency: 1.0, mask_type: unstructured}
";
const INT8: &str = "
training_modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 1.0}
  - !QuantizationModifier
    start_epoch: 0.0
    scheme:
      input_activations: {num_bits: 8, symmetric: False}
      weights: {num_bits: 8, symmetric: True, strategy: channel}
";

/// Images or token ids, and what they are.
struct Batch {
    input: Data,
    labels: Vec<i64>,
}

enum Data {
    Images(Vec<f32>, [usize; 4]),
    /// And 1 for each that is there, 0 where a sequence was filled up.
    Tokens(Vec<i64>, Vec<f32>, [usize; 2]),
}

struct Training {
    module: Network,
    state: State,
    device: Device,
    batches: Vec<Batch>,
    optimizer: Optimizer,
    lr: f64,
    steps: usize,
}

fn main() {
    // A training runs inside the pool, as one of its threads.
    rayon::scope(|_| serve());
}

fn serve() {
    let name = std::env::args().nth(1).expect("usage: training_step ROW");
    let idle_mb = peak_mb();
    let mut training = Training::new(&name);
    let about = json!({
        "version": format!("lacuna {}", env!("CARGO_PKG_VERSION")),
        "parameters": ParamTable::of(&training.module).trained_elements(),
        "threads": rayon::current_num_threads(),
        "idle_mb": idle_mb,
    });
    answer(&about);
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("stdin is text");
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["step", count] => {
                let (mut ms, mut losses) = (Vec::new(), Vec::new());
                for _ in 0..count.parse().expect("step N") {
                    let begin = Instant::now();
                    let loss;
                    (training, loss) = training.step();
                    losses.push(loss);
                    ms.push(begin.elapsed().as_secs_f64() * 1e3);
                }
                answer(&json!({ "ms": ms, "losses": losses }));
            }
            ["memory"] => answer(&json!({ "peak_mb": peak_mb() })),
            ["quit"] => return,
            _ => panic!("step N, memory or quit, not: {line}"),
        }
    }
}

impl Training {
    fn new(name: &str) -> Training {
        let (model, variant) = name.split_once('+').unwrap_or((name, ""));
        let row = models::find(model).unwrap_or_else(|| panic!("no model {model}"));
        let (_, batch, side) =
            BATCH.iter().find(|(name, ..)| *name == model).expect("a batch for each model");
        let device = Device::flex().autodiff();
        let mut module = (row.build)(&mut Init::new(&device, 0));
        let (optimizer, lr, weight_decay) = match row.input {
            InputShape::Image(_) => (Optimizer::SGD, 0.01, 1e-4),
            InputShape::Tokens { .. } => (Optimizer::ADAMW, 1e-4, 0.01),
        };
        let mut state = State::new(&module, weight_decay);
        let recipe = match variant {
            "" => None,
            "pruned90" => Some(PRUNED90),
            "int8" => Some(INT8),
            _ => panic!("no variant {variant}"),
        };
        if let Some(text) = recipe {
            let recipe = lacuna::recipe::parse(text, variant, &[]).expect("a sound recipe");
            let schedule = trainer::compile(&module, &recipe, 1).expect("a recipe for any model");
            for event in schedule.events_at(0) {
                (module, _) = modifiers::apply(&mut state, module, &schedule, event, &mut modifiers::no_data)
                    .expect("an action for any model");
            }
        }
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        let shape = match (row.input, side) {
            (InputShape::Image([c, ..]), &Some(side)) => InputShape::Image([c, side, side]),
            (shape, _) => shape,
        };
        let batches = (0..BATCHES).map(|_| noise(shape, row.classes, *batch, &mut random)).collect();
        Training { module, state, device, batches, optimizer, lr, steps: 0 }
    }

    /// Forward, loss, backward, update.
    fn step(mut self) -> (Training, f32) {
        let batch = &mut self.batches[self.steps % BATCHES];
        self.steps += 1;
        let labels = TensorData::new(batch.labels.clone(), [batch.labels.len()]);
        let labels = Tensor::<1, Int>::from_data(labels, &self.device);
        let (logits, images) = match &mut batch.input {
            Data::Images(x, dims) => {
                // As in training, the memory of the images is lent to the tensors of the step.
                let x = Tensor::<4>::from_data(TensorData::new(std::mem::take(x), *dims), &self.device);
                (self.module.forward(x.clone(), &self.state.pass), Some(x))
            }
            Data::Tokens(ids, mask, dims) => {
                let ids = Tensor::from_data(TensorData::new(ids.clone(), *dims), &self.device);
                let mask = Tensor::from_data(TensorData::new(mask.clone(), *dims), &self.device);
                (self.module.forward(Tokens { ids, mask: Some(mask), types: None }, &self.state.pass), None)
            }
        };
        let loss = ops::cross_entropy(logits, labels);
        let value = loss.clone().into_scalar();
        self.module = self.state.step(self.module, loss.backward(), &self.optimizer, self.lr);
        if let (Some(images), Data::Images(x, _)) = (images, &mut batch.input) {
            *x = images.without_autodiff().into_data().try_into_vec().expect("images are f32");
        }
        (self, value)
    }
}

struct Random(u64);

impl Random {
    /// Uniform in 0 to 1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// A batch of noise of variance one, or of random tokens, with labels that stay: enough to see the loss fall.
fn noise(shape: InputShape, classes: usize, batch: usize, random: &mut Random) -> Batch {
    let input = match shape {
        InputShape::Image([c, h, w]) => {
            let x = (0..batch * c * h * w).map(|_| (random.next() - 0.5) * 12f32.sqrt()).collect();
            Data::Images(x, [batch, c, h, w])
        }
        InputShape::Tokens { vocabulary, .. } => {
            let ids = (0..batch * TOKENS).map(|_| (random.next() * vocabulary as f32) as i64).collect();
            let lengths = (0..batch).map(|_| TOKENS / 2 + (random.next() * (TOKENS / 2 + 1) as f32) as usize);
            let mask =
                lengths.flat_map(|length| (0..TOKENS).map(move |i| (i < length) as u8 as f32)).collect();
            Data::Tokens(ids, mask, [batch, TOKENS])
        }
    };
    let labels = (0..batch).map(|_| (random.next() * classes as f32) as i64).collect();
    Batch { input, labels }
}

/// Highest resident set of this process so far.
fn peak_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    let kb: f64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number");
    kb / 1024.0
}

fn answer(fields: &serde_json::Value) {
    println!("{fields}");
    std::io::stdout().flush().expect("stdout");
}
