//! The models: one table of names, shapes and how to build them.
//!
//! Parameter names are those of the published PyTorch models, so that their weights fit without renaming.

pub mod bert;
pub mod efficientnet;
pub mod mobilenet;
pub mod published;
pub mod resnet;

use bert::{BERT_SIZES, Bert};
use burn::tensor::Tensor;
use efficientnet::{EFFICIENTNET_SIZES, EfficientNet};
use lacuna_nn::layers::Init;
use lacuna_nn::quant::Pass;
use lacuna_nn::{Classifier, Input, one_of_modules};
use mobilenet::{MOBILENET_SIZES, MobileNet};
use resnet::{RESNET_SIZES, ResNet};
use std::fmt;

/// What every row of [`MODELS`] builds: a member of one family.
#[derive(Clone, Debug)]
// A program holds one or two of these; a box would only hide the network.
#[allow(clippy::large_enum_variant)]
pub enum Network {
    ResNet(ResNet),
    MobileNet(MobileNet),
    EfficientNet(EfficientNet),
    Bert(Bert),
}

one_of_modules!(Network { ResNet, MobileNet, EfficientNet, Bert });

impl Classifier for Network {
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        match self {
            Network::ResNet(net) => net.forward(x, pass),
            Network::MobileNet(net) => net.forward(x, pass),
            Network::EfficientNet(net) => net.forward(x, pass),
            Network::Bert(net) => net.forward(x, pass),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// An image to one of several classes.
    ImageClassification,
    /// A sequence of tokens to one of several classes.
    TextClassification,
}

impl Task {
    pub fn name(self) -> &'static str {
        match self {
            Task::ImageClassification => "image_classification",
            Task::TextClassification => "text_classification",
        }
    }
}

/// What a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputShape {
    /// Channels, height and width; other sizes give logits too.
    Image([usize; 3]),
    /// Token ids below `vocabulary`, at most `length` of them.
    Tokens { length: usize, vocabulary: usize },
}

impl fmt::Display for InputShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InputShape::Image([c, h, w]) => write!(f, "{c}x{h}x{w} images"),
            InputShape::Tokens { length, vocabulary } => {
                write!(f, "sequences of up to {length} tokens of {vocabulary}")
            }
        }
    }
}

/// Mean and standard deviation of each channel that are taken off pixels in 0..1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pixels {
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

/// Of ImageNet, as torchvision's and timm's weights have it.
pub const IMAGENET: Pixels = Pixels { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
/// (x - 127) / 128 of bytes x: EfficientNet-Lite.
pub const AROUND_127: Pixels = Pixels { mean: [127.0 / 255.0; 3], std: [128.0 / 255.0; 3] };

/// One model.
pub struct ModelRow {
    pub name: &'static str,
    pub task: Task,
    pub input: InputShape,
    pub classes: usize,
    /// Trained elements; running statistics and observed ranges are not counted.
    pub parameters: usize,
    /// Where the architecture was published.
    pub source: &'static str,
    /// What names of the tensors begin with that depend on the number of classes.
    pub head: &'static str,
    /// Of images: what the published weights expect pixels to be.
    pub pixels: Option<Pixels>,
    pub build: fn(&mut Init) -> Network,
}

const RESNET: &str = "He et al. 2016, arXiv:1512.03385, section 4.1";
const RESNET_SMALL: &str = "He et al. 2016, arXiv:1512.03385, section 4.2";
const MOBILENET: &str = "Howard et al. 2017, arXiv:1704.04861";
const EFFICIENTNET: &str = "Tan and Le 2019, arXiv:1905.11946; Lite variants of google/automl, 2020";
const BERT: &str = "Devlin et al. 2019, arXiv:1810.04805";
const BERT_MINIATURE: &str = "Turc et al. 2019, arXiv:1908.08962";
const MINILM: &str = "Wang et al. 2020, arXiv:2002.10957";

macro_rules! resnet {
    ($i:literal, $side:literal, $parameters:literal, $source:expr) => {
        ModelRow {
            name: RESNET_SIZES[$i].name,
            task: Task::ImageClassification,
            input: InputShape::Image([RESNET_SIZES[$i].in_channels, $side, $side]),
            classes: RESNET_SIZES[$i].classes,
            parameters: $parameters,
            source: $source,
            head: "fc.",
            pixels: if RESNET_SIZES[$i].classes == 1000 { Some(IMAGENET) } else { None },
            build: |init| Network::ResNet(ResNet::new(&RESNET_SIZES[$i], init)),
        }
    };
}

macro_rules! mobilenet {
    ($i:literal, $parameters:literal) => {
        ModelRow {
            name: MOBILENET_SIZES[$i].name,
            task: Task::ImageClassification,
            input: InputShape::Image([3, 224, 224]),
            classes: MOBILENET_SIZES[$i].classes,
            parameters: $parameters,
            source: MOBILENET,
            head: "classifier.fc.",
            pixels: Some(IMAGENET),
            build: |init| Network::MobileNet(MobileNet::new(&MOBILENET_SIZES[$i], init)),
        }
    };
}

macro_rules! efficientnet {
    ($i:literal, $parameters:literal) => {
        ModelRow {
            name: EFFICIENTNET_SIZES[$i].name,
            task: Task::ImageClassification,
            input: InputShape::Image([3, EFFICIENTNET_SIZES[$i].image, EFFICIENTNET_SIZES[$i].image]),
            classes: EFFICIENTNET_SIZES[$i].classes,
            parameters: $parameters,
            source: EFFICIENTNET,
            head: "_fc.",
            pixels: Some(AROUND_127),
            build: |init| Network::EfficientNet(EfficientNet::new(&EFFICIENTNET_SIZES[$i], init)),
        }
    };
}

macro_rules! bert {
    ($i:literal, $parameters:literal, $source:expr) => {
        ModelRow {
            name: BERT_SIZES[$i].name,
            task: Task::TextClassification,
            input: InputShape::Tokens { length: bert::POSITIONS, vocabulary: bert::VOCABULARY },
            classes: BERT_SIZES[$i].classes,
            parameters: $parameters,
            source: $source,
            head: "classifier.",
            pixels: None,
            build: |init| Network::Bert(Bert::new(&BERT_SIZES[$i], init)),
        }
    };
}

pub const MODELS: &[ModelRow] = &[
    resnet!(0, 28, 272_186, "He et al. 2016, arXiv:1512.03385, section 4.2; stem of stride 2"),
    resnet!(1, 32, 272_474, RESNET_SMALL),
    resnet!(2, 32, 11_173_962, "He et al. 2016, arXiv:1512.03385, section 4.1; stem for 32x32 images"),
    resnet!(3, 224, 11_689_512, RESNET),
    resnet!(4, 224, 21_797_672, RESNET),
    resnet!(5, 224, 25_557_032, RESNET),
    mobilenet!(0, 4_231_976),
    mobilenet!(1, 2_585_560),
    mobilenet!(2, 1_331_592),
    mobilenet!(3, 470_072),
    efficientnet!(0, 4_652_008),
    efficientnet!(1, 5_416_680),
    efficientnet!(2, 6_092_072),
    efficientnet!(3, 8_197_096),
    efficientnet!(4, 13_006_568),
    bert!(0, 4_386_178, BERT_MINIATURE),
    bert!(1, 11_171_074, BERT_MINIATURE),
    bert!(2, 28_764_674, BERT_MINIATURE),
    bert!(3, 41_374_210, BERT_MINIATURE),
    bert!(4, 109_483_778, BERT),
    bert!(5, 22_713_986, MINILM),
];

/// The row of that name.
pub fn find(name: &str) -> Option<&'static ModelRow> {
    MODELS.iter().find(|row| row.name == name)
}
