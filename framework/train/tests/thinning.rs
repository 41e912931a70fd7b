//! Real networks get really smaller: in their files, in their graphs, and in the engine.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use lacuna_engine::{InputRef, Options, OutputMut, Session};
use lacuna_models::{InputShape, Network, find};
use lacuna_nn::Classifier;
use lacuna_nn::capture::capture;
use lacuna_nn::layers::Init;
use lacuna_nn::params::ParamTable;
use lacuna_nn::quant::{Norm, Pass};
use lacuna_recipe::MaskStructure;
use lacuna_train::checkpoint::NamedTensor;
use lacuna_train::modifiers::{structured, thinning};
use lacuna_train::state::State;
use lacuna_train::weights::{self, Metadata, THINNED};

struct Thinned {
    net: Network,
    before: Vec<f32>,
    image: [usize; 3],
    elements: [usize; 2],
}

/// The network with half of the filters of each group removed.
fn thinned(name: &str, image: [usize; 3]) -> Thinned {
    let row = find(name).unwrap();
    let net = (row.build)(&mut Init::new(&Device::flex().autodiff(), 4));
    let InputShape::Image([channels, ..]) = row.input else { panic!("images") };
    assert_eq!(channels, image[0]);
    let mut state = State::new(&net, 0.0);
    state.image = Some(image);
    let rows: Vec<usize> = (0..state.params.len())
        .filter(|&r| state.recipe_rows().iter().any(|p| p.prunable && p.name == state.params.name[r]))
        .collect();
    let full = state.params.trained_elements();
    let net = structured::set_sparsity(&mut state, net, &rows, 0.5, MaskStructure::Filter).unwrap();
    let before = logits(&net.valid(), image);
    let net = thinning::thin(&mut state, net, MaskStructure::Filter).unwrap();
    assert!(state.is_thinned() && state.mask.iter().all(Option::is_none) && !state.pass.sparse);
    let elements = [full, state.params.trained_elements()];
    Thinned { net: net.valid(), before, image, elements }
}

fn pixels([c, h, w]: [usize; 3]) -> Vec<f32> {
    (0..2 * c * h * w).map(|i| (i * 7919 % 1013) as f32 / 506.5 - 1.0).collect()
}

fn logits(net: &Network, image: [usize; 3]) -> Vec<f32> {
    let [c, h, w] = image;
    let x = Tensor::<4>::from_data(TensorData::new(pixels(image), [2, c, h, w]), &Device::flex());
    let pass = Pass { norm: Norm::Frozen, ..Pass::default() };
    net.forward(x, &pass).into_data().try_to_vec().unwrap()
}

fn close(a: &[f32], b: &[f32]) {
    let size = a.iter().fold(0.0f32, |size, v| size.max(v.abs()));
    assert!(size > 0.0 && a.len() == b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= 1e-4 * size, "{a} {b}");
    }
}

/// Residual sums, and depthwise convolutions.
#[test]
fn a_thinned_network_gives_the_same_results_and_the_engine_runs_it() {
    for (name, image) in [("resnet20", [1, 28, 28]), ("mobilenet_v1_025", [3, 64, 64])] {
        let t = thinned(name, image);
        let [full, left] = t.elements;
        assert!(left * 2 < full, "{name}: {left} of {full} parameters are left");
        let found = logits(&t.net, t.image);
        close(&t.before, &found);

        let [c, h, w] = t.image;
        let pass = Pass { norm: Norm::Frozen, ..Pass::default() };
        let g = capture(&t.net, "x", [1, c, h, w], &["y"], |m, x| m.forward(x, &pass)).unwrap();
        let constants: usize = g.consts.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(constants < 4 * full / 2, "{name}: the graph holds {constants} bytes");
        let mut session = Session::new(&g, &Options { batch: Some(2), ..Options::default() }).unwrap();
        let mut y = vec![0.0; found.len()];
        session
            .run_into(&[InputRef::f32(&[2, c, h, w], &pixels(t.image))], &mut [OutputMut::f32(&mut y)])
            .unwrap();
        close(&found, &y);
    }
}

#[test]
fn files_of_thinned_networks_are_read_and_damaged_ones_refused() {
    let t = thinned("resnet20", [1, 28, 28]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let metadata = Metadata::from([(THINNED.to_owned(), "1x28x28".to_owned())]);
    weights::save(&t.net, &path, &metadata).unwrap();
    let fresh = || (find("resnet20").unwrap().build)(&mut Init::new(&Device::flex(), 8));
    let (read, _) = weights::load(fresh(), &path).unwrap();
    assert_eq!(logits(&read, t.image), logits(&t.net, t.image));

    let tensors = || weights::tensors(&t.net, &ParamTable::of(&t.net));
    let refused = |tensors: &[NamedTensor], metadata: &[(&str, &str)]| {
        let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        weights::put_described(fresh(), tensors, &metadata).err().unwrap()
    };
    assert!(refused(&tensors(), &[]).contains("in the model"));
    for image in ["", "1x28", "1x28x28x28", "0x28x28", "1x28x99999"] {
        assert!(refused(&tensors(), &[(THINNED, image)]).contains(THINNED), "{image}");
    }
    let whole = [(THINNED, "1x28x28")];
    // One tensor of a group is of another size, and all of it are larger than the network.
    let mut odd = tensors();
    let bn = odd.iter_mut().find(|t| t.name == "layer1.0.bn1.bias").unwrap();
    (bn.dims, bn.data) = (vec![bn.dims[0] - 1], bn.data[1..].to_vec());
    assert!(refused(&odd, &whole).contains("layer1.0.bn1.bias"));
    let mut large = tensors();
    let conv = large.iter_mut().find(|t| t.name == "layer1.0.conv1.weight").unwrap();
    conv.dims[0] = 1 << 40;
    assert!(refused(&large, &whole).contains("channels"));
}
