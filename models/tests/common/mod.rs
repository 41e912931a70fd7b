//! A small member of every family, all of four classes, and values to feed them.
#![allow(dead_code)]

use lacuna_models::bert::{Bert, BertSize};
use lacuna_models::distilbert::DistilBert;
use lacuna_models::efficientnet::{EfficientNet, EfficientNetSize};
use lacuna_models::efficientnet_b::{EfficientNetB, EfficientNetBSize};
use lacuna_models::mobilenet::{MobileNet, MobileNetSize};
use lacuna_models::mobilenet_v2::{MobileNetV2, MobileNetV2Size};
use lacuna_models::mobilenet_v3::{LARGE, MobileNetV3, MobileNetV3Size, SMALL};
use lacuna_models::resnet::{BOTTLENECK, BlockKind, ResNet, ResNetSize, Stem};
use lacuna_models::roberta::Roberta;
use lacuna_models::ssd::{Extra, Ssd, SsdMobileNet, SsdMobileNetSize, SsdResNet, SsdResNetSize};
use lacuna_models::ssdlite::{SsdLite, SsdLiteSize};
use lacuna_models::text::PURPOSES;
use lacuna_models::yolact::{Stages, Yolact, YolactSize};
use lacuna_models::yolo::{V3_SPP, V3_TINY, V5, V8, Yolo, YoloSize};
use lacuna_models::{Network, Output};
use lacuna_nn::layers::Init;
use lacuna_nn::params::{ParamTable, update_each};

pub const CLASSES: usize = 4;

const fn resnet(name: &'static str, block: BlockKind, stages: &'static [(usize, usize)]) -> ResNetSize {
    ResNetSize { name, in_channels: 3, classes: CLASSES, stem: Stem::ImageNet, block, stages }
}

const BOTTLENECKS: ResNetSize = resnet("bottlenecks", BOTTLENECK, &[(8, 1), (8, 2), (16, 1), (16, 1)]);
const GROUPS: BlockKind = BlockKind::Bottleneck { groups: 4, group_width: 16 };
const GROUPED: ResNetSize = resnet("groups", GROUPS, &[(8, 1), (16, 1)]);
const MOBILENET: MobileNetSize = MobileNetSize { name: "quarter", classes: CLASSES, width_percent: 25 };
const MOBILENET_V2: MobileNetV2Size = MobileNetV2Size { name: "half", classes: CLASSES, width: 0.5 };
const MOBILENET_V3: [MobileNetV3Size; 2] = [
    MobileNetV3Size { name: "small", classes: CLASSES, width: 0.25, blocks: SMALL, hidden: 32 },
    MobileNetV3Size { name: "large", classes: CLASSES, width: 0.25, blocks: LARGE, hidden: 32 },
];
const EFFICIENTNET: EfficientNetSize =
    EfficientNetSize { name: "narrow", classes: CLASSES, image: 32, width: 0.3, depth: 0.5 };
const EFFICIENTNET_B: EfficientNetBSize =
    EfficientNetBSize { name: "narrow", classes: CLASSES, image: 32, width: 0.25, depth: 0.5, large: false };
pub const BERT: BertSize =
    BertSize { name: "two layers", classes: CLASSES, layers: 2, width: 32, heads: 4, inner: 64 };

const YOLO: [YoloSize; 4] = [
    YoloSize { name: "v5", classes: CLASSES, plan: &V5, depth: 0.33, width: 0.125, most: 1024 },
    YoloSize { name: "v3", classes: CLASSES, plan: &V3_SPP, depth: 0.125, width: 0.03125, most: 1024 },
    YoloSize { name: "v8", classes: CLASSES, plan: &V8, depth: 0.33, width: 0.125, most: 1024 },
    YoloSize { name: "tiny", classes: CLASSES, plan: &V3_TINY, depth: 1.0, width: 0.0625, most: 1024 },
];

const SSD_RESNET: SsdResNetSize = SsdResNetSize {
    name: "small",
    classes: CLASSES,
    stages: [(8, 1), (8, 1), (16, 2)],
    extras: &[Extra(8, 16, true), Extra(8, 16, false)],
    per_cell: &[4, 6, 4],
};
const SSD_MOBILENET: SsdMobileNetSize =
    SsdMobileNetSize { name: "eighth", classes: CLASSES, width_percent: 13, padded: false };
const SSDLITE: SsdLiteSize = SsdLiteSize { name: "quarter", classes: CLASSES, width: 0.25 };
const YOLACT: [YolactSize; 2] = [
    yolact("resnet", Stages::ResNet(&[(8, 1), (8, 1), (8, 2), (16, 1)])),
    yolact("darknet", Stages::DarkNet(&[(4, 1), (4, 1), (8, 2), (8, 1), (16, 1)])),
];

const fn yolact(name: &'static str, stages: Stages) -> YolactSize {
    YolactSize { name, classes: CLASSES, stages, channels: 16, masks: 4 }
}

/// Networks that take images of three channels.
pub fn of_images(init: &mut Init) -> Vec<(&'static str, Network)> {
    vec![
        ("ResNet", Network::ResNet(ResNet::new(&BOTTLENECKS, init))),
        ("ResNet with thresholds", cut(Network::ResNet(ResNet::new(&BOTTLENECKS, init)))),
        ("ResNeXt", Network::ResNet(ResNet::new(&GROUPED, init))),
        ("MobileNet", Network::MobileNet(MobileNet::new(&MOBILENET, init))),
        ("MobileNetV2", Network::MobileNetV2(MobileNetV2::new(&MOBILENET_V2, init))),
        ("MobileNetV2 with thresholds", cut(Network::MobileNetV2(MobileNetV2::new(&MOBILENET_V2, init)))),
        ("MobileNetV3 small", Network::MobileNetV3(MobileNetV3::new(&MOBILENET_V3[0], init))),
        ("MobileNetV3 large", Network::MobileNetV3(MobileNetV3::new(&MOBILENET_V3[1], init))),
        ("EfficientNet-Lite", Network::EfficientNet(EfficientNet::new(&EFFICIENTNET, init))),
        ("EfficientNet-B", Network::EfficientNetB(EfficientNetB::new(&EFFICIENTNET_B, init))),
        ("YOLOv5", Network::Yolo(Yolo::new(&YOLO[0], init))),
        ("YOLOv3-SPP", Network::Yolo(Yolo::new(&YOLO[1], init))),
        ("YOLOv8", Network::Yolo(Yolo::new(&YOLO[2], init))),
        ("YOLOv3-tiny", Network::Yolo(Yolo::new(&YOLO[3], init))),
        ("SSD on ResNet", Network::Ssd(Ssd::ResNet(SsdResNet::new(&SSD_RESNET, init)))),
        ("SSD on MobileNet", Network::Ssd(Ssd::MobileNet(SsdMobileNet::new(&SSD_MOBILENET, init)))),
        ("SSDLite", Network::Ssd(Ssd::Lite(SsdLite::new(&SSDLITE, init)))),
        ("YOLACT on ResNet", Network::Yolact(Yolact::new(&YOLACT[0], init))),
        ("YOLACT on DarkNet", Network::Yolact(Yolact::new(&YOLACT[1], init))),
    ]
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

/// Networks that take tokens: every family for every purpose.
pub fn of_tokens(init: &mut Init) -> Vec<(&'static str, Network)> {
    let mut all = Vec::new();
    for purpose in PURPOSES.map(|row| row.purpose) {
        all.push(("BERT", Network::Bert(Bert::new(&BERT, purpose, init))));
        all.push(("DistilBERT", Network::DistilBert(DistilBert::new(&BERT, purpose, init))));
        all.push(("RoBERTa", Network::Roberta(Roberta::new(&BERT, purpose, init))));
    }
    all
}

pub fn takes_tokens(net: &Network) -> bool {
    matches!(net, Network::Bert(_) | Network::DistilBert(_) | Network::Roberta(_))
}

pub fn all(init: &mut Init) -> Vec<(&'static str, Network)> {
    let mut all = of_images(init);
    all.extend(of_tokens(init));
    all
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
