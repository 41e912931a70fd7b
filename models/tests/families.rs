//! Every family on its way out: captured, written as ONNX, read back, lowered and run. Plain: the interpreter computes what
//! burn computes, the engine what the interpreter computes, and onnxruntime too, where a Python has it. Quantised: the
//! engine's bytes are the interpreter's.

mod common;
#[path = "../../tests/common/onnxruntime.rs"]
mod onnxruntime;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use common::{image_size, of_images, values};
use lacuna_engine::{Options, Session};
use lacuna_ir::{DType, Graph, OpKind, Tensor as Plain, interp, passes};
use lacuna_models::{Network, Output, output_names};
use lacuna_nn::capture::capture;
use lacuna_nn::layers::Init;
use lacuna_nn::quant::{Norm, Pass, Quant};
use std::path::{Path, PathBuf};

const PLAIN: Pass = Pass { quant: Quant::Off, norm: Norm::Batch, sparse: false };
const OBSERVE: Pass = Pass { quant: Quant::Observe, norm: Norm::Batch, sparse: false };
const FROZEN: Pass = Pass { quant: Quant::Frozen, norm: Norm::Frozen, sparse: false };

fn image(net: &Network, n: usize, seed: u32) -> TensorData {
    let [h, w] = image_size(net);
    TensorData::new(values(n * 3 * h * w, seed), [n, 3, h, w])
}

/// Passes that move running statistics and observed ranges as training does.
fn stepped(net: &Network, passes: &[Pass]) {
    for (i, pass) in passes.iter().enumerate() {
        let x = Tensor::<4>::from_data(image(net, 8, i as u32), &Device::flex().autodiff());
        net.outputs(x, pass);
    }
}

/// The graph as a file holds it.
fn written(net: &Network, pass: &Pass) -> Graph {
    let [h, w] = image_size(net);
    let names = output_names(net);
    let graph = capture(net, "image", [1, 3, h, w], &names, |net, x| net.outputs(x, pass)).unwrap();
    lacuna_onnx::parse(bytes(&graph).into()).unwrap()
}

fn bytes(graph: &Graph) -> Vec<u8> {
    lacuna_onnx::to_bytes(graph, &lacuna_onnx::WriteOptions::default()).unwrap()
}

fn in_burn(net: &Network, x: &TensorData, pass: &Pass) -> Vec<Vec<f32>> {
    let x = Tensor::<4>::from_data(x.clone(), &Device::flex());
    let host = |output| -> Vec<f32> {
        match output {
            Output::Logits(x) => x.into_data().try_to_vec().unwrap(),
            Output::Map(x) => x.into_data().try_to_vec().unwrap(),
            Output::Table(x) => x.into_data().try_to_vec().unwrap(),
        }
    };
    net.outputs(x, pass).into_iter().map(host).collect()
}

fn plain(x: &TensorData) -> Plain {
    Plain::from_f32(&x.shape().to_vec(), x.as_slice::<f32>().unwrap().to_vec())
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
    for (name, net) in of_images(&mut Init::new(&Device::flex().autodiff(), 5)) {
        stepped(&net, &[PLAIN; 2]);
        let net = net.valid();
        let x = image(&net, 2, 9);
        let want = in_burn(&net, &x, &PLAIN);
        let mut graph = written(&net, &PLAIN);
        let interpreted = interp::run(&graph, &[plain(&x)]).unwrap();
        let d = off(&interpreted, &want);
        assert!(d <= 1e-5, "{name}: the graph is off by {d}");

        let case = dir.path().join(name.replace(' ', "_"));
        std::fs::create_dir(&case).unwrap();
        std::fs::write(case.join("model.onnx"), bytes(&graph)).unwrap();
        std::fs::write(case.join("input_0.npy"), onnxruntime::npy(&plain(&x))).unwrap();
        for (i, output) in interpreted.iter().enumerate() {
            std::fs::write(case.join(format!("output_{i}.npy")), onnxruntime::npy(output)).unwrap();
        }
        cases.push(case);

        passes::simplify(&mut graph).unwrap();
        let mut session = Session::new(&graph, &Options { threads: Some(1), ..Options::default() }).unwrap();
        let have = session.run(&[plain(&x)]).unwrap();
        let d = off(&have, &want);
        assert!(d <= 2e-5, "{name}: the engine is off by {d}");
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
    for (name, net) in of_images(&mut Init::new(&Device::flex().autodiff(), 5)) {
        stepped(&net, &[PLAIN, PLAIN, OBSERVE, OBSERVE]);
        let net = net.valid();
        let graph = written(&net, &FROZEN);
        let x = image(&net, 2, 9);
        let want = in_burn(&net, &x, &FROZEN);
        let options = Options { threads: Some(1), keep_values: true, ..Options::default() };
        let mut session = Session::new(&graph, &options).unwrap();
        let have = session.run(&[plain(&x)]).unwrap();
        // Sums in another order may round an activation to its neighbour on the grid.
        let d = off(&have, &want);
        assert!(d <= 0.05, "{name}: the engine is off by {d}");

        let lowered = session.lowered().clone();
        let values = interp::run_all(&lowered, &[plain(&x)]).unwrap();
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
        // Every product is one of integers.
        let kinds = |g: &Graph, kinds: [OpKind; 2]| {
            g.order.iter().filter(|&&op| kinds.contains(&g.op_kind[op])).count()
        };
        let products = kinds(&graph, [OpKind::Conv, OpKind::Gemm]);
        assert_eq!(kinds(&lowered, [OpKind::QConv, OpKind::QGemm]), products, "{name}");
    }
}
