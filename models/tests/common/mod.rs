//! A small member of every kind of network, all of four classes, and values to feed them.
#![allow(dead_code)]

use burn::tensor::Device;
use lacuna_models::bert::{BERT_SIZES, Bert, BertSize};
use lacuna_models::distilbert::{DISTILBERT_SIZES, DistilBert};
use lacuna_models::efficientnet::{EFFICIENTNET_SIZES, EfficientNet};
use lacuna_models::efficientnet_b::{EFFICIENTNET_B_SIZES, EfficientNetB};
use lacuna_models::mobilenet::{MOBILENET_SIZES, MobileNet};
use lacuna_models::mobilenet_v2::{MOBILENET_V2_SIZES, MobileNetV2};
use lacuna_models::mobilenet_v3::{MOBILENET_V3_SIZES, MobileNetV3};
use lacuna_models::resnet::{BlockKind, RESNET_SIZES, ResNet};
use lacuna_models::roberta::{ROBERTA_SIZES, Roberta};
use lacuna_models::ssd::{Extra, SSD_MOBILENET_SIZES, SSD_RESNET_SIZES, Ssd, SsdMobileNet, SsdResNet};
use lacuna_models::ssdlite::{SSDLITE_SIZES, SsdLite};
use lacuna_models::text::{PURPOSES, Purpose};
use lacuna_models::yolact::{Stages, YOLACT_SIZES, Yolact};
use lacuna_models::yolo::{YOLO_SIZES, Yolo};
use lacuna_models::yolo_layers::Masks;
use lacuna_models::{MODELS, ModelRow, Network, Output};
use lacuna_nn::layers::Init;
use lacuna_nn::params::{ParamTable, update_each};

pub const CLASSES: usize = 4;

pub const BERT: BertSize =
    BertSize { name: "two layers", classes: CLASSES, layers: 2, width: 32, heads: 4, inner: 64 };

/// A small member of every kind of network that there is among the rows of [`MODELS`], all of four classes: the rows with fewer
/// and narrower layers, each kind once. Names are those of the first row of a kind; `cut` has thresholds behind its ReLUs. Each
/// has first values of its own, which no other row changes.
pub fn all(device: &Device, seed: u64) -> Vec<(String, Network)> {
    let (mut kinds, mut nets) = (Vec::new(), Vec::new());
    for row in MODELS {
        let init = || Init::new(device, seed);
        let Some((kind, net)) = small(row, &kinds, &mut init()) else { continue };
        if ["resnet50", "mobilenet_v2"].contains(&row.name) {
            nets.extend(small(row, &[], &mut init()).map(|(_, net)| (format!("{} cut", row.name), cut(net))));
        }
        nets.push((row.name.to_owned(), net));
        kinds.push(kind);
    }
    println!("{} rows are {} kinds of networks", MODELS.len(), kinds.len());
    nets
}

/// A row made small: what it is then, and the network; nothing if that is among the `known`.
///
/// # Panics
/// If it is of no family that is known here.
fn small(row: &ModelRow, known: &[String], init: &mut Init) -> Option<(String, Network)> {
    // The size that a row was made of, with other values in some of its fields.
    macro_rules! try_family {
        ($sizes:ident, $build:expr, |$size:ident| $($field:ident: $value:expr),*) => {
            if let Some($size) = $sizes.iter().find(|size| size.name == row.name) {
                let size = { let mut size = *$size; $(size.$field = $value;)* size.classes = CLASSES; size.name = ""; size };
                let kind = format!("{size:?}");
                return (!known.contains(&kind)).then(|| (kind, $build(&size, init)));
            }
        };
    }
    // Blocks of two filters or groups, of as many stages; the second stage keeps two.
    let stages = |stages: &[(usize, usize)]| -> &'static [(usize, usize)] {
        let small = |i: usize| (if i < 2 { 8 } else { 16 }, if i == 1 { 2 } else { 1 });
        let small: Box<[(usize, usize)]> = (0..stages.len()).map(small).collect();
        Box::leak(small)
    };
    try_family!(
        RESNET_SIZES,
        |size, init| Network::ResNet(ResNet::new(size, init)),
        |size| stages: stages(size.stages), block: match size.block {
            BlockKind::Bottleneck { groups: 2.., .. } => BlockKind::Bottleneck { groups: 4, group_width: 16 },
            block => block,
        }
    );
    try_family!(
        MOBILENET_SIZES,
        |size, init| Network::MobileNet(MobileNet::new(size, init)),
        |size| width_percent: 25
    );
    try_family!(
        MOBILENET_V2_SIZES,
        |size, init| Network::MobileNetV2(MobileNetV2::new(size, init)),
        |size| width: 0.5
    );
    try_family!(
        MOBILENET_V3_SIZES,
        |size, init| Network::MobileNetV3(MobileNetV3::new(size, init)),
        |size| width: 0.25, hidden: 32
    );
    try_family!(
        EFFICIENTNET_SIZES,
        |size, init| Network::EfficientNet(EfficientNet::new(size, init)),
        |size| image: 32, width: 0.3, depth: 0.5
    );
    try_family!(
        EFFICIENTNET_B_SIZES,
        |size, init| Network::EfficientNetB(EfficientNetB::new(size, init)),
        |size| image: 32, width: 0.25, depth: 0.5
    );
    try_family!(
        YOLO_SIZES,
        |size, init| Network::Yolo(Yolo::new(size, init)),
        |size| most: 1024,
        // Of v3 the widest layer has 1024 channels behind few that repeat, of its tiny size no layer repeats.
        width: match size.plan.rows.len() {
            28 => 0.03125,
            20 => 0.0625,
            _ => 0.125,
        },
        depth: if size.plan.rows.len() == 28 { 0.125 } else { 0.33 },
        masks: size.masks.map(|_| Masks { count: 4, channels: 64 })
    );
    try_family!(
        SSD_RESNET_SIZES,
        |size, init| Network::Ssd(Ssd::ResNet(SsdResNet::new(size, init))),
        |size| stages: [(8, 1), (8, 1), (16, 2)],
        extras: &[Extra(8, 16, true), Extra(8, 16, false)],
        per_cell: &[4, 6, 4]
    );
    try_family!(
        SSD_MOBILENET_SIZES,
        |size, init| Network::Ssd(Ssd::MobileNet(SsdMobileNet::new(size, init))),
        // How pictures are framed is no part of the network.
        |size| width_percent: 13, padded: false
    );
    try_family!(
        SSDLITE_SIZES,
        |size, init| Network::Ssd(Ssd::Lite(SsdLite::new(size, init))),
        |size| width: 0.25
    );
    try_family!(
        YOLACT_SIZES,
        |size, init| Network::Yolact(Yolact::new(size, init)),
        |size| channels: 16, masks: 4, stages: match size.stages {
            Stages::ResNet(_) => Stages::ResNet(&[(8, 1), (8, 1), (8, 2), (16, 1)]),
            Stages::DarkNet(_) => Stages::DarkNet(&[(4, 1), (4, 1), (8, 2), (8, 1), (16, 1)]),
        }
    );
    for purpose in PURPOSES.map(|of| of.purpose) {
        let is = |sizes: &[BertSize]| {
            sizes.iter().any(|size| format!("{}{}", size.name, purpose.row().suffix) == row.name)
        };
        type Build = fn(&BertSize, Purpose, &mut Init) -> Network;
        let families: [(&str, &[BertSize], Build); 3] = [
            ("BERT", BERT_SIZES, |size, purpose, init| Network::Bert(Bert::new(size, purpose, init))),
            ("DistilBERT", DISTILBERT_SIZES, |size, purpose, init| {
                Network::DistilBert(DistilBert::new(size, purpose, init))
            }),
            ("RoBERTa", ROBERTA_SIZES, |size, purpose, init| {
                Network::Roberta(Roberta::new(size, purpose, init))
            }),
        ];
        for (family, sizes, build) in families {
            if is(sizes) {
                let kind = format!("{family} {purpose:?}");
                return (!known.contains(&kind)).then(|| (kind, build(&BERT, purpose, init)));
            }
        }
    }
    panic!("no small member of the family of '{}': add it here", row.name)
}

/// A network whose ReLUs cut off what is not above 0.1.
fn cut(net: Network) -> Network {
    let names = ParamTable::of(&net).name;
    update_each(net, |row, values| {
        if names[row].ends_with(".threshold") {
            values.fill(0.1);
        }
    })
}

/// Height and width of an image that a network takes: YOLO halves it five times and doubles it again; SSD on ResNet cuts
/// the edges off a map of a sixteenth; YOLACT takes any, and these make factors that are no whole numbers.
pub fn image_size(net: &Network) -> [usize; 2] {
    match net {
        Network::Yolo(_) => [64, 32],
        Network::Ssd(_) => [64, 48],
        Network::Yolact(_) => [72, 40],
        _ => [33, 40],
    }
}

pub fn takes_tokens(net: &Network) -> bool {
    matches!(net, Network::Bert(_) | Network::DistilBert(_) | Network::Roberta(_))
}

/// Networks that take tokens: every family for every purpose.
pub fn of_tokens(device: &Device, seed: u64) -> Vec<(String, Network)> {
    all(device, seed).into_iter().filter(|(_, net)| takes_tokens(net)).collect()
}

/// Channels of the images that a network takes.
pub fn channels(net: &Network) -> usize {
    match net {
        Network::ResNet(net) => net.conv1.weight.dims()[1],
        _ => 3,
    }
}

/// Ids and mask of `n` sequences; sequence `i` has `3 + i % 4` tokens, and `filler` behind them.
pub fn tokens(n: usize, length: usize, filler: i64) -> (Vec<i64>, Vec<i64>) {
    let place = |i: usize| (i / length, i % length);
    let real = |i: usize| place(i).1 < 3 + place(i).0 % 4;
    let id = |i: usize| if real(i) { (place(i).0 * 1709 + place(i).1 * 37 + 1000) as i64 } else { filler };
    ((0..n * length).map(id).collect(), (0..n * length).map(|i| i64::from(real(i))).collect())
}

/// Reproducible values in -1..1.
pub fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = 12_345u32.wrapping_add(seed.wrapping_mul(2_654_435_761));
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub fn host(output: Output) -> Vec<f32> {
    match output {
        Output::Logits(x) => x.into_data().try_to_vec().unwrap(),
        Output::Table(x) => x.into_data().try_to_vec().unwrap(),
        Output::Map(x) => x.into_data().try_to_vec().unwrap(),
    }
}
