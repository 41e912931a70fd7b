//! From a recipe to the integer engine, on real images.
//!
//! A small network is trained for a few seconds under a pruning and quantisation recipe (or, with `LACUNA_RUN`, read
//! from the folder of a finished run), captured, exported, read back, and run three ways: by burn with fake
//! quantisation, by the reference interpreter, and by the engine.

#[path = "common/onnxruntime.rs"]
mod onnxruntime;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use lacuna_data::{BatchSpec, Batches, ImageSet, fashion_mnist};
use lacuna_engine::{Options, Session};
use lacuna_ir::op::{Attr, OpKind};
use lacuna_ir::{DType, Graph, Tensor as Plain, ValueId, interp, passes};
use lacuna_models::resnet::{RESNET_SIZES, ResNet};
use lacuna_nn::Classifier;
use lacuna_nn::capture::capture;
use lacuna_nn::layers::{Act, BatchNorm, Conv2d, Init, conv_norm};
use lacuna_nn::params::{self, ParamTable, Role};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Norm, Pass, Quant, host};
use lacuna_nn::scheme::Args;
use lacuna_train::{Fit, TrainArgs, run_folder::RunFolder, trainer::Progress, weights};
use onnxruntime::{npy, python};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

const RECIPE: &str = "
modifiers:
  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 8.0}
  - !LearningRateFunctionModifier {start_epoch: 0.0, end_epoch: 6.0, lr_func: cosine, init_lr: 0.1, final_lr: 0.01}
  - !LearningRateFunctionModifier {start_epoch: 6.0, end_epoch: 8.0, lr_func: linear, init_lr: 0.01, final_lr: 0.001}
  - !GMPruningModifier
    params: __ALL_PRUNABLE__
    init_sparsity: 0.05
    final_sparsity: 0.90
    start_epoch: 2.0
    end_epoch: 5.0
    update_frequency: 0.25
  - !QuantizationModifier
    start_epoch: 6.0
    disable_quantization_observer_epoch: 7.0
    freeze_bn_stats_epoch: 7.5
    scheme:
      input_activations: {num_bits: 8, symmetric: False}
      weights: {num_bits: 8, symmetric: True, strategy: channel}
";

struct Trained {
    module: Mutex<ResNet>,
    /// Weights before quantisation.
    pruned: Mutex<ResNet>,
    pass: Pass,
    test: ImageSet,
    /// As captured: QuantizeLinear / DequantizeLinear around f32 ops.
    graph: Graph,
}

fn data() -> (ImageSet, ImageSet) {
    let (train, test, source) = fashion_mnist::load(None).expect("the committed subset is there");
    println!("data: {source}");
    (train, test)
}

fn trained() -> &'static Trained {
    static TRAINED: OnceLock<Trained> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let (train, test) = data();
        let device = Device::flex().autodiff();
        let fresh = || ResNet::new(&RESNET_SIZES[0], &mut Init::new(&device, 3));
        let given = std::env::var_os("LACUNA_RUN").map(PathBuf::from);
        let temp = tempfile::tempdir().unwrap();
        let folder = match &given {
            Some(run) => run.clone(),
            None => train_for_a_moment(fresh(), train, &test, temp.path()),
        };
        let read = |name: &str| {
            let file = folder.join("weights").join(format!("{name}.safetensors"));
            weights::load(fresh(), &file).unwrap_or_else(|e| panic!("{e}")).0.valid()
        };
        let (module, pruned) = (read("last"), read("pruned"));
        let pass = Pass { quant: Quant::Frozen, norm: Norm::Frozen, ..Pass::default() };
        let graph =
            capture(&module, "input", [1, 1, 28, 28], &["logits"], |m, x| m.forward(x, &pass)).unwrap();
        Trained { module: Mutex::new(module), pruned: Mutex::new(pruned), pass, test, graph }
    })
}

fn train_for_a_moment(module: ResNet, train: ImageSet, test: &ImageSet, root: &Path) -> PathBuf {
    let recipe = lacuna_recipe::parse(RECIPE, "end_to_end.yaml", &[]).unwrap();
    let folder = RunFolder::create(root, "run", false).unwrap();
    let mut report = |p: Progress<'_>| {
        if let Progress::Epoch(row) = p {
            println!(
                "epoch {} loss {:.3} accuracy {:.3} sparsity {:.3}",
                row.epoch, row.loss, row.accuracy, row.sparsity
            );
        }
    };
    let outcome = lacuna_train::fit(
        module,
        Fit {
            args: TrainArgs { max_images: Some(1280), ..TrainArgs::default() },
            recipe: &recipe,
            train: Arc::new(train.into()),
            test: &test.take(500).into(),
            folder: &folder,
            metadata: Default::default(),
            resume: false,
            report: &mut report,
        },
    )
    .unwrap();
    assert!(outcome.accuracy > 0.5, "ten classes, {} after a few seconds of training", outcome.accuracy);
    folder.path
}

/// The first `n` test images, normalised, NCHW.
fn images(set: &ImageSet, n: usize) -> Plain {
    let mut x = Vec::new();
    for batch in Batches::new(set, BatchSpec { max_images: Some(n), ..BatchSpec::eval(250) }).unwrap() {
        x.extend(batch.x);
    }
    Plain::from_f32(&[n.min(set.len()), 1, 28, 28], x)
}

fn chunk(x: &Plain, from: usize, n: usize) -> Plain {
    let image = x.len() / x.dims[0];
    let n = n.min(x.dims[0] - from);
    Plain::from_f32(&[n, 1, 28, 28], x.as_f32().unwrap()[from * image..(from + n) * image].to_vec())
}

/// Logits of all images, a few hundred at a time.
fn engine_logits(session: &mut Session, x: &Plain) -> Vec<f32> {
    let mut logits = Vec::new();
    for from in (0..x.dims[0]).step_by(250) {
        let out = session.run(&[chunk(x, from, 250)]).unwrap();
        logits.extend_from_slice(out[0].as_f32().unwrap());
    }
    logits
}

fn burn_logits(module: &ResNet, pass: &Pass, x: &Plain) -> Vec<f32> {
    let mut logits = Vec::new();
    for from in (0..x.dims[0]).step_by(250) {
        let part = chunk(x, from, 250);
        let dims: [usize; 4] = part.dims.clone().try_into().unwrap();
        let x =
            Tensor::<4>::from_data(TensorData::new(part.as_f32().unwrap().to_vec(), dims), &Device::flex());
        logits.extend(host(module.forward(x, pass)));
    }
    logits
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap()
}

fn top1_agreement(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let same = a.chunks(10).zip(b.chunks(10)).filter(|(a, b)| argmax(a) == argmax(b)).count();
    same as f64 / (a.len() / 10) as f64
}

#[test]
fn engine_equals_the_interpreter_on_every_integer_tensor_of_1000_images() {
    let t = trained();
    let x = images(&t.test, 1000);
    // What a user's file holds: written, read back, lowered.
    let bytes = lacuna_onnx::to_bytes(&t.graph, &Default::default()).unwrap();
    let read = lacuna_onnx::parse(bytes.into()).unwrap();
    let mut session = Session::new(&read, &Options { keep_values: true, ..Options::default() }).unwrap();
    let lowered = session.lowered().clone();
    let integer_ops =
        lowered.order.iter().filter(|&&op| matches!(lowered.op_kind[op], OpKind::QConv | OpKind::QGemm));
    assert_eq!(integer_ops.count(), 22, "19 convolutions, 2 shortcuts and the classifier are all integer");
    let (mut tensors, mut elements) = (0, 0usize);
    for from in (0..1000).step_by(100) {
        let x = chunk(&x, from, 100);
        let got_logits = session.run(std::slice::from_ref(&x)).unwrap();
        let want = interp::run_all(&lowered, std::slice::from_ref(&x)).unwrap();
        tensors = 0;
        for (v, want) in want.iter() {
            let produced = lowered.producer(v).is_some();
            let (Some(want), true, DType::U8) = (want, produced, lowered.value_dtype[v]) else { continue };
            let got = session.value(v);
            let Some(got) = got else { continue };
            assert_eq!(got.as_u8(), want.as_u8(), "images {from}.., '{}'", lowered.value_name[v]);
            tensors += 1;
            elements += want.len();
        }
        let want_logits = want[lowered.outputs[0]].as_ref().unwrap();
        assert_eq!(
            got_logits[0].as_f32().unwrap(),
            want_logits.as_f32().unwrap(),
            "logits of images {from}.."
        );
    }
    println!("{tensors} integer tensors, {elements} elements, all equal");
    assert!(tensors >= 22, "only {tensors} integer tensors could be compared");
}

/// One quantised convolution of the model and where its output is quantised.
struct Layer<'a> {
    name: String,
    conv: &'a Conv2d,
    norm: &'a BatchNorm,
    input: &'a ActivationQuantizer,
    residual: Option<&'a ActivationQuantizer>,
    act: Act,
    output: &'a ActivationQuantizer,
}

fn layers(m: &ResNet) -> Vec<Layer<'_>> {
    let mut all = vec![Layer {
        name: "conv1".into(),
        conv: &m.conv1,
        norm: &m.bn1,
        input: &m.input,
        residual: None,
        act: Act::Relu,
        output: &m.act1,
    }];
    let mut input = &m.act1;
    for (stage, blocks) in [&m.layer1, &m.layer2, &m.layer3].into_iter().enumerate() {
        for (i, b) in blocks.iter().enumerate() {
            let path = format!("layer{}.{i}", stage + 1);
            let layer = |name: &str, conv, norm, input, residual, act, output| Layer {
                name: format!("{path}.{name}"),
                conv,
                norm,
                input,
                residual,
                act,
                output,
            };
            all.push(layer("conv1", &b.conv1, &b.bn1, input, None, Act::Relu, &b.act1));
            let shortcut = match (&b.downsample, &b.downsample_quantizer) {
                (Some((conv, norm)), Some(quantizer)) => {
                    all.push(layer("downsample.0", conv, norm, input, None, Act::None, quantizer));
                    quantizer
                }
                _ => input,
            };
            all.push(layer("conv2", &b.conv2, &b.bn2, &b.act1, Some(shortcut), Act::Relu, &b.act2));
            input = &b.act2;
        }
    }
    all
}

/// u8 NHWC on a quantiser's grid to the f32 NCHW tensor that training sees.
fn dequantised(q: &Plain, quantizer: &ActivationQuantizer) -> Activation<4> {
    let grid = grid(quantizer);
    let [n, h, w, c]: [usize; 4] = q.dims.clone().try_into().unwrap();
    let q = q.as_u8().unwrap();
    let mut x = Vec::with_capacity(q.len());
    for i in 0..n {
        for ch in 0..c {
            for p in 0..h * w {
                x.push((q[(i * h * w + p) * c + ch] as i32 - grid.zero) as f32 * grid.scale);
            }
        }
    }
    let x = Tensor::from_data(TensorData::new(x, [n, c, h, w]), &Device::flex());
    Activation { x, site: Some(quantizer.remember(quantizer.range.get(), Some(Args::ACTIVATION))) }
}

fn grid(quantizer: &ActivationQuantizer) -> lacuna_nn::ops::Grid {
    let range = host(quantizer.range.get());
    Args::ACTIVATION.grid(range[0], range[1])
}

#[test]
fn fake_quantised_layers_differ_from_the_engine_at_float_ties_only() {
    let t = trained();
    let m = t.module.lock().unwrap();
    let lowered = lacuna_engine::lower(&t.graph, &lacuna_engine::Target::native().unwrap()).unwrap().0;
    let values = interp::run_all(&lowered, &[images(&t.test, 100)]).unwrap();
    let op_named = |name: &str| {
        let found = lowered.order.iter().copied().find(|&op| lowered.op_name[op] == name);
        found.unwrap_or_else(|| panic!("no op is named '{name}'"))
    };
    let value = |v: ValueId| values[v].clone().or_else(|| lowered.const_tensor(v)).unwrap();
    let (mut differing, mut all) = (0usize, 0usize);
    for layer in layers(&m) {
        let op = op_named(&layer.name);
        let ins = lowered.inputs_of(op).to_vec();
        let Attr::QConv(attr) = lowered.op_attr[op] else {
            panic!("'{}' is not an integer convolution", layer.name)
        };
        let x_q = value(ins[0]);
        let x = dequantised(&x_q, layer.input);
        let residual_q = layer.residual.map(|quantizer| (value(ins[4]), quantizer));
        let residual = residual_q.as_ref().map(|(q, quantizer)| dequantised(q, quantizer).x);
        let y = conv_norm(&x, layer.conv, layer.norm, residual, layer.act, layer.output, &t.pass);
        let out_grid = grid(layer.output);
        let [n, c, h, w] = y.x.dims();
        let ours = host(y.x);
        let want = value(lowered.outputs_of(op)[0]);
        assert_eq!(want.dims, [n, h, w, c], "{}", layer.name);
        let (want, mut wrong) = (want.as_u8().unwrap().to_vec(), 0usize);
        for i in 0..n {
            for ch in 0..c {
                for p in 0..h * w {
                    let q = (ours[(i * c + ch) * h * w + p] / out_grid.scale).round_ties_even() as i32
                        + out_grid.zero;
                    let at = (i * h * w + p) * c + ch;
                    if q == want[at] as i32 {
                        continue;
                    }
                    wrong += 1;
                    assert!(
                        (q - want[at] as i32).abs() == 1,
                        "{}[{at}]: {q} against {}",
                        layer.name,
                        want[at]
                    );
                    let exact = exact_value(&lowered, &values, &ins, &attr, at, [h, w, c]);
                    let distance = (exact - exact.floor() - 0.5).abs();
                    assert!(
                        distance < 1e-3,
                        "{}[{at}]: {exact} is no tie, yet {q} and {}",
                        layer.name,
                        want[at]
                    );
                }
            }
        }
        assert!(
            wrong as f64 <= 0.001 * want.len() as f64,
            "{}: {wrong} of {} differ",
            layer.name,
            want.len()
        );
        differing += wrong;
        all += want.len();
    }
    println!("{differing} of {all} quantised values differ, each by one step at a tie of the exact value");
}

/// The requantised value of one output before rounding, in f64 from the integers: what both sides approximate.
fn exact_value(
    g: &Graph,
    values: &lacuna_ir::IdVec<ValueId, Option<Plain>>,
    ins: &[ValueId],
    attr: &lacuna_ir::op::QConvAttr,
    at: usize,
    [h, w, c]: [usize; 3],
) -> f64 {
    let value = |v: ValueId| values[v].clone().or_else(|| g.const_tensor(v)).unwrap();
    let (x, weight, bias, mult) = (value(ins[0]), value(ins[1]), value(ins[2]), value(ins[3]));
    let (o, p, image) = (at % c, at / c % (h * w), at / (c * h * w));
    let (oy, ox) = (p / w, p % w);
    let window = attr.conv.window;
    let [_, xh, xw, xc]: [usize; 4] = x.dims.clone().try_into().unwrap();
    let (kh, kw) = (window.kernel[0] as usize, window.kernel[1] as usize);
    let (x, weight) = (x.as_u8().unwrap().to_vec(), weight.as_i8().unwrap().to_vec());
    let mut acc = bias.as_i32().unwrap()[o] as i64;
    for ky in 0..kh {
        for kx in 0..kw {
            let iy = (oy * window.stride[0] as usize + ky) as i64 - window.pads[0] as i64;
            let ix = (ox * window.stride[1] as usize + kx) as i64 - window.pads[1] as i64;
            if iy < 0 || ix < 0 || iy >= xh as i64 || ix >= xw as i64 {
                continue;
            }
            for ch in 0..xc {
                let q =
                    x[((image * xh + iy as usize) * xw + ix as usize) * xc + ch] as i64 - attr.x_zero as i64;
                acc += q * weight[((o * kh + ky) * kw + kx) * xc + ch] as i64;
            }
        }
    }
    let mut exact = acc as f64 * mult.as_f32().unwrap()[o] as f64;
    if let Some(&r) = ins.get(4) {
        exact +=
            (value(r).as_u8().unwrap()[at] as i32 - attr.residual_zero) as f64 * attr.residual_mult as f64;
    }
    exact
}

#[test]
fn engine_and_training_agree_on_the_class() {
    let t = trained();
    let x = images(&t.test, t.test.len());
    let ours = burn_logits(&t.module.lock().unwrap(), &t.pass, &x);
    let mut session = Session::new(&t.graph, &Options::default()).unwrap();
    let engine = engine_logits(&mut session, &x);
    let agreement = top1_agreement(&ours, &engine);
    println!("top-1 of {} images: {:.4} agree", t.test.len(), agreement);
    assert!(agreement >= 0.999, "{agreement}");
}

/// 90 % ± 1 element of every tensor: in the checkpoint, in the int8 file, and as the engine packed it.
#[test]
fn zeros_stay_zero_from_training_to_the_packed_weights() {
    let t = trained();
    let m = t.module.lock().unwrap();
    let table = ParamTable::of(&*m);
    let session = Session::new(&t.graph, &Options::default()).unwrap();
    let profile = session.analyze();
    let mut checked = 0;
    params::for_each(&*m, |row, w| {
        if table.role[row] != Role::Weight {
            return;
        }
        let name = &table.name[row];
        let zeros = w.iter().filter(|v| **v == 0.0).count();
        let asked = 0.9 * w.len() as f64;
        assert!((zeros as f64 - asked).abs() <= 1.0, "{name}: {zeros} of {} are zero", w.len());
        let v = t.graph.value_name.iter().find(|(_, n)| **n == format!("{name}_quantized")).unwrap().0;
        let q: Vec<i8> = t.graph.const_tensor(v).unwrap().as_i8().unwrap().to_vec();
        assert!(
            w.iter().zip(&q).all(|(w, q)| *w != 0.0 || *q == 0),
            "{name}: a masked weight is not zero in int8"
        );
        let in_file = q.iter().filter(|q| **q == 0).count();
        assert!((in_file as f64 - asked).abs() <= 1.0, "{name}: {in_file} of {} are zero in int8", q.len());
        let op = name.strip_suffix(".weight").unwrap();
        let packed = profile.iter().find(|p| p.op == op && p.weights > 0);
        let packed = packed.unwrap_or_else(|| panic!("no step with weights is named '{op}'"));
        let packed = (packed.weights, packed.weights - packed.nonzeros);
        assert_eq!(packed, (q.len() as u64, in_file as u64), "{name} as the engine packed it");
        println!(
            "{name}: {zeros} of {} are zero in the checkpoint, {in_file} in the file and the engine",
            w.len()
        );
        checked += 1;
    });
    assert_eq!(checked, 22);
}

#[test]
fn onnxruntime_agrees_on_the_exported_files() {
    let python = match python(Path::new(env!("CARGO_MANIFEST_DIR"))) {
        Ok(python) => python,
        Err(why) => {
            println!("SKIP onnxruntime: 3 models, {why}");
            return;
        }
    };
    let t = trained();
    let dir = tempfile::tempdir().unwrap();
    let x = images(&t.test, t.test.len());
    std::fs::write(dir.path().join("x.npy"), npy(&x)).unwrap();
    let off = Pass::default();
    let plain = |m: &ResNet| {
        let mut g = capture(m, "input", [1, 1, 28, 28], &["logits"], |m, x| m.forward(x, &off)).unwrap();
        passes::fold_batch_norm(&mut g).unwrap();
        g.compact()
    };
    let dense = ResNet::new(&RESNET_SIZES[0], &mut Init::new(&Device::flex(), 5));
    let models = [
        ("dense", plain(&dense), 1e-4),
        ("pruned", plain(&t.pruned.lock().unwrap()), 1e-4),
        ("int8", t.graph.clone(), 0.05),
    ];
    for (name, graph, atol) in models {
        let file = dir.path().join(format!("{name}.onnx"));
        lacuna_onnx::save(&graph, &file, &Default::default()).unwrap();
        let read = lacuna_onnx::load(&file).unwrap();
        let logits = engine_logits(&mut Session::new(&read, &Options::default()).unwrap(), &x);
        let ours = dir.path().join("logits.npy");
        std::fs::write(&ours, npy(&Plain::from_f32(&[logits.len() / 10, 10], logits))).unwrap();
        run(&python, &["check_onnx.py".into(), file.display().to_string()]);
        let args = [
            file.display().to_string(),
            dir.path().join("x.npy").display().to_string(),
            ours.display().to_string(),
        ];
        let said = run(
            &python,
            &[&["agree.py".to_string()], &args[..], &["0.999".into(), atol.to_string()]].concat(),
        );
        println!("{name}: {}", said.trim());
    }
}

fn run(python: &Path, args: &[String]) -> String {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/py");
    let out = Command::new(python).arg(scripts.join(&args[0])).args(&args[1..]).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{args:?}: {said}{}", String::from_utf8_lossy(&out.stderr));
    said
}
