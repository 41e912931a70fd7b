//! A small network with *synthetic* weights, pruned and quantised: what the new graph holds, computed again here, and
//! that engine and interpreter agree on it.

use lacuna_engine::Session;
use lacuna_ir::op::{ConvAttr, GemmAttr, Window};
use lacuna_ir::{Attr, DType, Dim, Graph, OpKind, Tensor, ValueId, interp};
use lacuna_sparsify::{Error, Method, Oneshot, Options, Quantize, RangeRule, Structure, revert_until};

/// Numbers in -1..1 from a linear congruence (Knuth, MMIX).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn tensor(&mut self, dims: &[usize], scale: f32) -> Tensor {
        let n = dims.iter().product();
        Tensor::from_f32(dims, (0..n).map(|_| self.next() * scale).collect())
    }
}

struct Net {
    g: Graph,
    numbers: Numbers,
}

impl Net {
    fn op(&mut self, kind: OpKind, attr: Attr, name: &str, inputs: &[ValueId]) -> ValueId {
        self.g.add_op(kind, attr, name, inputs, &[&format!("{name}.out")]).unwrap()[0]
    }

    fn conv(
        &mut self,
        name: &str,
        x: ValueId,
        o: usize,
        i: usize,
        group: u32,
        k: u32,
        bias: bool,
    ) -> ValueId {
        let pad = k / 2;
        let window = Window { kernel: [k; 2], stride: [1; 2], dilation: [1; 2], pads: [pad; 4] };
        let dims = [o, i, k as usize, k as usize];
        let w = self.numbers.tensor(&dims, 0.4);
        let w = self.g.add_tensor(&format!("{name}.weight"), &w);
        let mut inputs = vec![x, w];
        if bias {
            let b = self.numbers.tensor(&[o], 0.1);
            inputs.push(self.g.add_tensor(&format!("{name}.bias"), &b));
        }
        self.op(OpKind::Conv, Attr::Conv(ConvAttr { window, group }), name, &inputs)
    }
}

/// First convolution, SiLU, a depthwise one, a residual sum, pooling and a linear layer.
fn net() -> Graph {
    let mut n = Net { g: Graph::new("synthetic"), numbers: Numbers(1) };
    let batch = n.g.symbol("batch");
    let dims = [Dim::Symbol(batch), Dim::Fixed(3), Dim::Fixed(8), Dim::Fixed(8)];
    let x = n.g.add_input("image", DType::F32, &dims);
    let stem = n.conv("stem", x, 16, 3, 1, 3, true);
    let gate = n.op(OpKind::Sigmoid, Attr::None, "gate", &[stem]);
    let silu = n.op(OpKind::Mul, Attr::None, "silu", &[stem, gate]);
    let deep = n.conv("deep", silu, 16, 1, 16, 3, true);
    let relu = n.op(OpKind::Relu, Attr::None, "relu", &[deep]);
    let point = n.conv("point", relu, 16, 16, 1, 1, false);
    let sum = n.op(OpKind::Add, Attr::None, "sum", &[point, silu]);
    let mean = n.op(OpKind::GlobalAveragePool, Attr::None, "mean", &[sum]);
    let flat = n.op(OpKind::Flatten, Attr::Axis(1), "flat", &[mean]);
    let w = n.numbers.tensor(&[10, 16], 0.5);
    let w = n.g.add_tensor("fc.weight", &w);
    let b = n.numbers.tensor(&[10], 0.1);
    let b = n.g.add_tensor("fc.bias", &b);
    let gemm = GemmAttr { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: true };
    let y = n.op(OpKind::Gemm, Attr::Gemm(gemm), "fc", &[flat, w, b]);
    n.g.outputs.push(y);
    lacuna_ir::verify::verify(&n.g).unwrap();
    n.g
}

fn samples(n: usize) -> Vec<Vec<Tensor>> {
    let mut numbers = Numbers(7);
    (0..n).map(|_| vec![numbers.tensor(&[1, 3, 8, 8], 1.0)]).collect()
}

fn weight<'a>(g: &'a Graph, name: &str) -> (ValueId, &'a [usize]) {
    let v = g.value_name.iter().find(|(_, n)| *n == name).unwrap_or_else(|| panic!("{name}")).0;
    (v, &[])
}

fn f32s(g: &Graph, name: &str) -> Vec<f32> {
    g.const_f32(weight(g, name).0).unwrap().into_owned()
}

fn i8s(g: &Graph, name: &str) -> Vec<i8> {
    g.const_tensor(weight(g, name).0).unwrap().as_i8().unwrap().to_vec()
}

fn run(g: &Graph, x: &[Tensor]) -> Vec<f32> {
    interp::run(g, x).unwrap()[0].as_f32().unwrap().to_vec()
}

fn options() -> Options {
    Options { threads: Some(1), ..Options::default() }
}

#[test]
fn magnitude_leaves_the_largest_weights_and_dense_layers() {
    let g = net();
    let oneshot = Oneshot::new(&g, &[], Options { sparsity: 0.75, ..options() }).unwrap();
    let (new, reports) = oneshot.apply(&[false; 4]).unwrap();
    assert_eq!(reports.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["stem", "deep", "point", "fc"]);
    assert_eq!(reports.iter().map(|r| r.zeros).collect::<Vec<_>>(), [0, 0, 192, 120]);
    for name in ["point.weight", "fc.weight"] {
        let (old, new) = (f32s(&g, name), f32s(&new, name));
        let mut sorted: Vec<f32> = old.iter().map(|w| w.abs()).collect();
        sorted.sort_by(f32::total_cmp);
        let threshold = sorted[old.len() * 3 / 4];
        for (a, b) in old.iter().zip(&new) {
            assert_eq!(*b, if a.abs() >= threshold { *a } else { 0.0 }, "{name}");
        }
    }
    assert_eq!(f32s(&new, "stem.weight"), f32s(&g, "stem.weight"));
    // The error of the report is that of the shape alone where nothing was measured.
    let (old, pruned) = (f32s(&g, "fc.weight"), f32s(&new, "fc.weight"));
    let energy = |w: &[f32]| w.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>();
    let lost = (energy(&old) - energy(&pruned)) / energy(&old);
    assert!((reports[3].error - lost).abs() < 1e-6, "{} is not {lost}", reports[3].error);
}

#[test]
fn samples_make_pruning_aware_of_activations() {
    let g = net();
    let mut samples = samples(4);
    // Channels of the linear layer's input, as the interpreter gives them.
    let mut energy = [0.0f64; 16];
    let flat = weight(&g, "flat.out").0;
    for sample in &mut samples {
        let values = interp::run_all(&g, sample).unwrap();
        let x = values[flat].as_ref().unwrap().as_f32().unwrap().to_vec();
        energy.iter_mut().zip(&x).for_each(|(e, &x)| *e += f64::from(x) * f64::from(x));
    }
    let method = Method::Activation;
    let options = Options { sparsity: 0.5, method, correct_biases: false, ..options() };
    let (new, _) = Oneshot::new(&g, &samples, options).unwrap().apply(&[false; 4]).unwrap();
    let (old, new) = (f32s(&g, "fc.weight"), f32s(&new, "fc.weight"));
    let score = |i: usize| f64::from(old[i].abs()) * energy[i % 16].sqrt();
    let mut order: Vec<usize> = (0..old.len()).collect();
    order.sort_by(|&a, &b| score(a).total_cmp(&score(b)));
    for (rank, &i) in order.iter().enumerate() {
        assert_eq!(new[i] == 0.0, rank < 80, "weight {i} of rank {rank}");
    }
}

#[test]
fn structures_hold_and_a_short_last_group_is_kept_or_counted() {
    let g = net();
    let structured = |structure: &str, sparsity: f64| {
        let structure: Structure = structure.parse().unwrap();
        let options = Options { sparsity, structure, ..options() };
        Oneshot::new(&g, &[], options)
            .and_then(|o| o.apply(&[false; 4]))
            .map(|(g, _)| f32s(&g, "point.weight"))
    };
    let two_of_four = structured("2:4", 0.5).unwrap();
    assert!(two_of_four.chunks(4).all(|w| w.iter().filter(|w| **w == 0.0).count() == 2));
    let blocks = structured("1x4", 0.5).unwrap();
    let zeros: Vec<usize> = blocks.chunks(4).map(|w| w.iter().filter(|w| **w == 0.0).count()).collect();
    assert!(zeros.iter().all(|&z| z == 0 || z == 4));
    assert_eq!(zeros.iter().filter(|&&z| z == 4).count(), 32);
    // 16 input channels in threes: five groups and a short one, which stays whole.
    let two_of_three = structured("2:3", 0.33).unwrap();
    for row in two_of_three.chunks(16) {
        assert!(row[..15].chunks(3).all(|w| w.iter().filter(|w| **w == 0.0).count() == 1));
        assert_ne!(row[15], 0.0);
    }
    assert!(matches!(structured("2:4", 0.9), Err(Error::Options(_))));
    for bad in ["4:2", "0:4", "2x4", "1x1", "block", ""] {
        assert!(bad.parse::<Structure>().is_err(), "{bad}");
    }
}

#[test]
fn quantised_graphs_hold_the_rounded_weights_and_run_on_integers() {
    let g = net();
    let samples = samples(8);
    for range in [RangeRule::MinMax, RangeRule::Percentile(0.9999), RangeRule::Entropy] {
        let options = Options { quantize: Quantize::Static, range, ..options() };
        let oneshot = Oneshot::new(&g, &samples, options).unwrap();
        let (new, reports) = oneshot.apply(&[false; 4]).unwrap();
        lacuna_ir::verify::verify(&new).unwrap();
        assert!(reports.iter().all(|r| r.quantized));
        // Per output channel: the largest weight is 127 steps.
        let (w, q) = (f32s(&g, "point.weight"), i8s(&new, "point.weight_quantized"));
        let scales = f32s(&new, "point.weight_scale");
        for (o, (w, q)) in w.chunks(16).zip(q.chunks(16)).enumerate() {
            let largest = w.iter().fold(0f32, |m, w| m.max(w.abs()));
            assert_eq!(scales[o], largest / 127.0);
            for (w, q) in w.iter().zip(q) {
                assert_eq!(f32::from(*q), (w / scales[o]).round_ties_even());
            }
        }
        // Everything between the input and the last sums is integer.
        let (lowered, _) =
            lacuna_engine::lower(&new, &lacuna_engine::Target::new(None, Some(1)).unwrap()).unwrap();
        let kinds: Vec<OpKind> = lowered.order.iter().map(|&op| lowered.op_kind[op]).collect();
        let float =
            [OpKind::Conv, OpKind::FusedConv, OpKind::Gemm, OpKind::Add, OpKind::Mul, OpKind::Sigmoid];
        assert!(!kinds.iter().any(|k| float.contains(k)), "{kinds:?}");

        let mut session =
            Session::new(&new, &lacuna_engine::Options { threads: Some(2), ..Default::default() }).unwrap();
        let (mut error, mut whole) = (0.0f64, 0.0f64);
        for x in &samples {
            let (want, got) = (run(&g, x), run(&new, x));
            let engine = session.run(x).unwrap()[0].as_f32().unwrap().to_vec();
            let lowered = run(&lowered, x);
            assert_eq!(engine, lowered, "engine and interpreter of the lowered graph");
            for (a, b) in want.iter().zip(&got) {
                error += f64::from(a - b).powi(2);
                whole += f64::from(*a).powi(2);
            }
        }
        assert!(error / whole < 1e-3, "{range:?}: relative error {}", error / whole);
    }
}

/// What onnxruntime's tool for dynamic quantisation writes, computed again for the last layer.
#[test]
fn dynamic_layers_round_their_inputs_in_each_run() {
    let g = net();
    let options = Options { quantize: Quantize::Dynamic, ..options() };
    let (new, reports) = Oneshot::new(&g, &[], options).unwrap().apply(&[false; 4]).unwrap();
    lacuna_ir::verify::verify(&new).unwrap();
    assert!(reports.iter().all(|r| r.quantized));
    let kinds = |kind: OpKind| new.order.iter().filter(|&&op| new.op_kind[op] == kind).count();
    assert_eq!([kinds(OpKind::ConvInteger), kinds(OpKind::MatMulInteger), kinds(OpKind::Conv)], [3, 1, 0]);
    let mut session = Session::new(&new, &Default::default()).unwrap();
    for x in samples(4) {
        let values = interp::run_all(&new, &x).unwrap();
        let flat = values[weight(&new, "flat.out").0].as_ref().unwrap().as_f32().unwrap().to_vec();
        let (lo, hi) = flat.iter().fold((0f32, 0f32), |(lo, hi), &x| (lo.min(x), hi.max(x)));
        let scale = (hi - lo) / 255.0;
        let zero = (-lo / scale).round_ties_even();
        let rounded: Vec<f32> =
            flat.iter().map(|x| ((x / scale).round_ties_even() + zero).clamp(0.0, 255.0) - zero).collect();
        let (w, scales) = (f32s(&g, "fc.weight"), f32s(&new, "fc.weight_scale"));
        let bias = f32s(&g, "fc.bias");
        let (got, engine) = (run(&new, &x), session.run(&x).unwrap()[0].as_f32().unwrap().to_vec());
        for o in 0..10 {
            let steps = |i: usize| (w[o * 16 + i] / scales[o]).round_ties_even();
            let sum: f32 = (0..16).map(|i| rounded[i] * steps(i)).sum();
            let want = sum * (scale * scales[o]) + bias[o];
            assert!((got[o] - want).abs() < 1e-6, "{} is not {want}", got[o]);
            assert!((engine[o] - want).abs() < 1e-3, "engine: {} is not {want}", engine[o]);
        }
    }
}

#[test]
fn biases_take_over_what_pruning_changes_on_average() {
    let g = net();
    let samples = samples(16);
    let mean_error = |correct_biases: bool| {
        let options = Options { sparsity: 0.6, correct_biases, ..options() };
        let (new, _) = Oneshot::new(&g, &samples, options).unwrap().apply(&[false; 4]).unwrap();
        let mut lost = [0.0f64; 10];
        for x in &samples {
            let (a, b) = (run(&g, x), run(&new, x));
            (0..10).for_each(|i| lost[i] += f64::from(a[i] - b[i]) / samples.len() as f64);
        }
        lost.iter().map(|l| l * l).sum::<f64>()
    };
    let (without, with) = (mean_error(false), mean_error(true));
    assert!(with < without / 20.0, "{with} is not far below {without}");
}

/// Weights that stay make up for those that go: the result is nearer to the dense one than with any mask alone, and the
/// zeros are as many and as grouped as asked for.
#[test]
fn reconstruction_beats_masks_alone() {
    let g = net();
    let samples = samples(32);
    let pruned = |method: Method, structure: &str| {
        let structure = structure.parse().unwrap();
        let options = Options { sparsity: 0.5, method, structure, ..options() };
        Oneshot::new(&g, &samples, options).unwrap().apply(&[false; 4]).unwrap()
    };
    for structure in ["unstructured", "2:4", "1x4"] {
        let error = |method: Method| {
            let (new, reports) = pruned(method, structure);
            assert_eq!(reports.iter().map(|r| r.zeros).collect::<Vec<_>>(), [0, 0, 128, 80], "{structure}");
            let difference = |x: &Vec<Tensor>| -> f64 {
                let (a, b) = (run(&g, x), run(&new, x));
                a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
            };
            samples.iter().map(difference).sum::<f64>()
        };
        let [magnitude, activation, rebuilt] =
            [Method::Magnitude, Method::Activation, Method::Reconstruction].map(error);
        assert!(
            rebuilt < 0.95 * magnitude.min(activation),
            "{structure}: {magnitude} {activation} {rebuilt}"
        );
    }
    let (new, _) = pruned(Method::Reconstruction, "2:4");
    let w = f32s(&new, "point.weight");
    assert!(w.chunks(4).all(|w| w.iter().filter(|w| **w == 0.0).count() == 2));
}

#[test]
fn layers_are_given_back_until_the_score_is_met() {
    let g = net();
    let samples = samples(4);
    let options = Options { sparsity: 0.9, quantize: Quantize::Static, ..options() };
    let oneshot = Oneshot::new(&g, &samples, options).unwrap();
    let (_, reports) = oneshot.apply(&[false; 4]).unwrap();
    // A score that asks for dense weights in the two layers with the largest errors.
    let mut worst: Vec<&lacuna_sparsify::LayerReport> = reports.iter().collect();
    worst.sort_by(|a, b| b.error.total_cmp(&a.error));
    let worst: Vec<&str> = worst.iter().map(|r| r.name.as_str()).collect();
    let score = |g: &Graph| -> Result<f64, Error> {
        let dense = |name: &&&str| g.value_name.iter().any(|(_, n)| *n == format!("{name}.weight"));
        Ok(worst.iter().take(2).filter(dense).count() as f64)
    };
    let found = revert_until(&oneshot, 2.0, score).unwrap();
    let kept: Vec<&str> =
        found.layers.iter().filter(|l| !l.kept.is_empty()).map(|l| l.name.as_str()).collect();
    assert_eq!(found.score, 2.0);
    assert_eq!(kept.len(), 2, "{kept:?}");
    assert!(kept.iter().all(|k| worst[..2].contains(k)));
    assert!(found.layers.iter().filter(|l| l.kept.is_empty()).all(|l| l.quantized));
    lacuna_ir::verify::verify(&found.graph).unwrap();
    // Nothing needs to be given back where the score is met at once; all is where it never is.
    assert_eq!(revert_until(&oneshot, -1.0, score).unwrap().evaluations, 1);
    let never = revert_until(&oneshot, 3.0, score).unwrap();
    assert!(never.layers.iter().all(|l| !l.kept.is_empty() && !l.quantized));
    assert_eq!(run(&never.graph, &samples[0]), run(&g, &samples[0]));
}

#[test]
fn names_can_be_kept_and_mistakes_are_named() {
    let g = net();
    let keep = vec![regex::Regex::new("^fc$").unwrap()];
    let options = Options { sparsity: 0.5, keep, ..options() };
    let (new, reports) = Oneshot::new(&g, &[], options).unwrap().apply(&[false; 4]).unwrap();
    assert_eq!(f32s(&new, "fc.weight"), f32s(&g, "fc.weight"));
    assert_eq!(reports[3].kept, "its name matches ^fc$");
    let fails = |samples: &[Vec<Tensor>], options: Options| {
        Oneshot::new(&g, samples, options).err().unwrap().to_string()
    };
    assert!(fails(&[], Options { sparsity: 1.0, ..self::options() }).contains("not in 0..1"));
    let method = Method::Reconstruction;
    assert!(fails(&[], Options { sparsity: 0.5, method, ..self::options() }).contains("give samples"));
    assert!(fails(&[], Options { quantize: Quantize::Static, ..self::options() }).contains("give samples"));
    let wrong = vec![vec![Tensor::from_f32(&[1, 3, 8, 9], vec![0.0; 216])]];
    assert!(fails(&wrong, Options { quantize: Quantize::Static, ..self::options() }).contains("sample 0"));
    let nan = vec![vec![Tensor::from_f32(&[1, 3, 8, 8], vec![f32::NAN; 192])]];
    assert!(fails(&nan, Options { quantize: Quantize::Static, ..self::options() }).contains("finite"));
}
