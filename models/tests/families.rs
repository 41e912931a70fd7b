//! Every family on its way out: captured, written as ONNX, read back, lowered and run. Plain: the interpreter computes what
//! burn computes, the engine what the interpreter computes, and onnxruntime too, where a Python has it. Quantised: the
//! engine's bytes are the interpreter's.

mod common;
#[path = "../../tests/common/onnxruntime.rs"]
mod onnxruntime;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use common::{all, channels, host, image_size, takes_tokens, tokens, values};
use lacuna_engine::{Options, Session};
use lacuna_ir::{DType, Graph, OpId, OpKind, Tensor as Plain, interp, passes};
use lacuna_models::{Network, output_names};
use lacuna_nn::capture::{capture, capture_tokens};
use lacuna_nn::quant::{Norm, Pass, Quant};
use lacuna_nn::{Input, Tokens};
use std::path::{Path, PathBuf};

const PLAIN: Pass = Pass { quant: Quant::Off, norm: Norm::Batch, sparse: false };
const OBSERVE: Pass = Pass { quant: Quant::Observe, norm: Norm::Batch, sparse: false };
const FROZEN: Pass = Pass { quant: Quant::Frozen, norm: Norm::Frozen, sparse: false };

/// What a network takes, as inputs of its graph: `n` images, or sequences of up to `length` tokens.
fn inputs(net: &Network, n: usize, length: usize, seed: u32) -> Vec<Plain> {
    if !takes_tokens(net) {
        let [h, w] = image_size(net);
        let c = channels(net);
        return vec![Plain::from_f32(&[n, c, h, w], values(n * c * h * w, seed))];
    }
    let (ids, mask) = tokens(n, length, 0);
    let ids = ids.into_iter().map(|id| (id + 7 * i64::from(seed)) % 30_000).collect();
    let types = (0..n * length).map(|i| i64::from(i % length > 1)).collect();
    let all = [ids, mask, types].map(|x| Plain::from_i64(&[n, length], x));
    all.into_iter().take(if net.has_token_types() { 3 } else { 2 }).collect()
}

/// The same as the network's own forward pass takes it.
fn given(x: &[Plain], device: &Device) -> Input {
    if let [image] = x {
        let data = TensorData::new(image.as_f32().unwrap().to_vec(), image.dims.clone());
        return Tensor::<4>::from_data(data, device).into();
    }
    let tensor = |x: &Plain| {
        Tensor::<2, Int>::from_data(TensorData::new(x.as_i64().unwrap().to_vec(), x.dims.clone()), device)
    };
    let tokens =
        Tokens { ids: tensor(&x[0]), mask: Some(tensor(&x[1]).float()), types: x.get(2).map(tensor) };
    tokens.into()
}

/// Passes that move running statistics and observed ranges as training does.
fn stepped(net: &Network, passes: &[Pass]) {
    for (i, pass) in passes.iter().enumerate() {
        net.outputs(given(&inputs(net, 8, 6, i as u32), &Device::flex().autodiff()), pass);
    }
}

/// The graph as a file holds it.
fn written(net: &Network, pass: &Pass) -> Graph {
    let names = output_names(net);
    let graph = if takes_tokens(net) {
        capture_tokens(net, net.has_token_types(), &names, |net, x| net.outputs(x, pass))
    } else {
        let [h, w] = image_size(net);
        capture(net, "image", [1, channels(net), h, w], &names, |net, x: Tensor<4>| net.outputs(x, pass))
    };
    lacuna_onnx::parse(bytes(&graph.unwrap()).into()).unwrap()
}

fn bytes(graph: &Graph) -> Vec<u8> {
    lacuna_onnx::to_bytes(graph, &lacuna_onnx::WriteOptions::default()).unwrap()
}

fn in_burn(net: &Network, x: &[Plain], pass: &Pass) -> Vec<Vec<f32>> {
    net.outputs(given(x, &Device::flex()), pass).into_iter().map(host).collect()
}

/// Largest difference, in units of the largest element of `want`, of all results.
fn off(have: &[Plain], want: &[Vec<f32>]) -> f32 {
    let one = |(have, want): (&Plain, &Vec<f32>)| {
        let have = have.as_f32().unwrap();
        assert_eq!(have.len(), want.len());
        let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(largest > 1e-3, "a comparison with zeros says nothing");
        have.iter().zip(want).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
    };
    assert_eq!(have.len(), want.len());
    have.iter().zip(want).map(one).fold(0.0, f32::max)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

#[test]
fn plain_networks_mean_the_same_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let mut cases = Vec::new();
    for (name, net) in all(&Device::flex().autodiff(), 5) {
        stepped(&net, &[PLAIN; 2]);
        let net = net.valid();
        let x = inputs(&net, 2, 6, 9);
        let want = in_burn(&net, &x, &PLAIN);
        let mut graph = written(&net, &PLAIN);
        let interpreted = interp::run(&graph, &x).unwrap();
        let d = off(&interpreted, &want);
        assert!(d <= 1e-5, "{name}: the graph is off by {d}");

        let case = dir.path().join(name.replace(' ', "_"));
        std::fs::create_dir(&case).unwrap();
        std::fs::write(case.join("model.onnx"), bytes(&graph)).unwrap();
        for (i, input) in x.iter().enumerate() {
            std::fs::write(case.join(format!("input_{i}.npy")), onnxruntime::npy(input)).unwrap();
        }
        for (i, output) in interpreted.iter().enumerate() {
            std::fs::write(case.join(format!("output_{i}.npy")), onnxruntime::npy(output)).unwrap();
        }
        cases.push(case);

        passes::simplify(&mut graph).unwrap();
        let mut session = Session::new(&graph, &Options { threads: Some(1), ..Options::default() }).unwrap();
        // Another batch, and sequences of another length, in the same session.
        for x in [x, inputs(&net, 3, 11, 4)] {
            let have = session.run(&x).unwrap();
            let d = off(&have, &in_burn(&net, &x, &PLAIN));
            assert!(d <= 2e-5, "{name}: the engine is off by {d}");
        }
    }
    let python = match onnxruntime::python(&root()) {
        Ok(python) => python,
        Err(why) => return println!("SKIP onnxruntime: {} families, {why}", cases.len()),
    };
    let mut command = std::process::Command::new(python);
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(root().join("tests/py/compare_ort.py")).args(&cases);
    let out = command.output().unwrap();
    println!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success());
}

#[test]
fn quantised_networks_are_integers_of_the_interpreter() {
    for (name, net) in all(&Device::flex().autodiff(), 5) {
        stepped(&net, &[PLAIN, PLAIN, OBSERVE, OBSERVE]);
        let net = net.valid();
        let graph = written(&net, &FROZEN);
        let x = inputs(&net, 2, 6, 9);
        let want = in_burn(&net, &x, &FROZEN);
        let options = Options { threads: Some(1), keep_values: true, ..Options::default() };
        let mut session = Session::new(&graph, &options).unwrap();
        let have = session.run(&x).unwrap();
        // Sums in another order may round an activation to its neighbour on the grid.
        let d = off(&have, &want);
        assert!(d <= 0.05, "{name}: the engine is off by {d}");

        let lowered = session.lowered().clone();
        let values = interp::run_all(&lowered, &x).unwrap();
        let (mut integers, mut floats) = (0, 0);
        for v in lowered.value_name.ids().filter(|&v| lowered.producer(v).is_some()) {
            let (Some(want), Some(have)) = (&values[v], session.value(v)) else { continue };
            match lowered.value_dtype[v] {
                DType::U8 => {
                    assert_eq!(have.as_u8(), want.as_u8(), "{name}: '{}'", lowered.value_name[v]);
                    integers += 1;
                }
                _ => floats += 1,
            }
        }
        println!("{name}: {integers} integer tensors are equal, {floats} are float");
        assert!(integers > 0);
        // Every product with a weight is one of integers, but for the scores of words, whose weight is a table.
        let count = |g: &Graph, is: &dyn Fn(OpId) -> bool| g.order.iter().filter(|&&op| is(op)).count();
        let weighted = |op: OpId| {
            let weight = graph.input_of(op, 1).and_then(|w| graph.producer(w));
            matches!(graph.op_kind[op], OpKind::Conv | OpKind::Gemm | OpKind::MatMul)
                && weight.is_some_and(|w| graph.op_kind[w] == OpKind::DequantizeLinear)
        };
        let products = count(&graph, &weighted);
        let integers = count(&lowered, &|op| matches!(lowered.op_kind[op], OpKind::QConv | OpKind::QGemm));
        println!("{name}: {integers} of {products} products are integer");
        assert!(products > 0 && integers == products, "{name}: {integers} of {products} products");
    }
}
