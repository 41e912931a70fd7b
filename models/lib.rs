//! The models: one table of names, shapes and how to build them.
//!
//! Parameter names are those of the published PyTorch models, so that their weights fit without renaming.

pub mod bert;
pub mod distilbert;
pub mod efficientnet;
pub mod efficientnet_b;
pub mod head;
pub mod inverted;
pub mod mobilenet;
pub mod mobilenet_v2;
pub mod mobilenet_v3;
pub mod published;
pub mod resnet;
pub mod roberta;
pub mod ssd;
pub mod ssdlite;
pub mod text;
pub mod yolact;
pub mod yolo;
pub mod yolo_layers;
mod zoo;

use bert::{BERT_SIZES, Bert};
use burn::tensor::Tensor;
use distilbert::{DISTILBERT_SIZES, DistilBert};
use efficientnet::{EFFICIENTNET_SIZES, EfficientNet};
use efficientnet_b::{EFFICIENTNET_B_SIZES, EfficientNetB};
use lacuna_nn::capture::{Outputs, TensorId};
use lacuna_nn::layers::Init;
use lacuna_nn::quant::Pass;
use lacuna_nn::{BoxHead, Classifier, Input, one_of_modules};
use mobilenet::{MOBILENET_SIZES, MobileNet};
use mobilenet_v2::{MOBILENET_V2_SIZES, MobileNetV2};
use mobilenet_v3::{MOBILENET_V3_SIZES, MobileNetV3};
use resnet::{RESNET_SIZES, ResNet};
use roberta::{ROBERTA_SIZES, Roberta};
use ssd::{SSD_MOBILENET_SIZES, SSD_RESNET_SIZES, Ssd, SsdMobileNet, SsdResNet};
use ssdlite::{SSDLITE_SIZES, SsdLite};
use std::fmt;
use text::Purpose;
use yolact::{YOLACT_SIZES, Yolact};
use yolo::{YOLO_SIZES, Yolo};

/// What every row of [`MODELS`] builds: a member of one family.
#[derive(Clone, Debug)]
// A program holds one or two of these; a box would only hide the network.
#[allow(clippy::large_enum_variant)]
pub enum Network {
    ResNet(ResNet),
    MobileNet(MobileNet),
    MobileNetV2(MobileNetV2),
    MobileNetV3(MobileNetV3),
    EfficientNet(EfficientNet),
    EfficientNetB(EfficientNetB),
    Bert(Bert),
    DistilBert(DistilBert),
    Roberta(Roberta),
    Yolo(Yolo),
    Ssd(Ssd),
    Yolact(Yolact),
}

one_of_modules!(Network {
    ResNet,
    MobileNet,
    MobileNetV2,
    MobileNetV3,
    EfficientNet,
    EfficientNetB,
    Bert,
    DistilBert,
    Roberta,
    Yolo,
    Ssd,
    Yolact
});

impl Classifier for Network {
    fn forward(&self, x: impl Into<Input>, pass: &Pass) -> Tensor<2> {
        match self {
            Network::ResNet(net) => net.forward(x, pass),
            Network::MobileNet(net) => net.forward(x, pass),
            Network::MobileNetV2(net) => net.forward(x, pass),
            Network::MobileNetV3(net) => net.forward(x, pass),
            Network::EfficientNet(net) => net.forward(x, pass),
            Network::EfficientNetB(net) => net.forward(x, pass),
            Network::Bert(net) => net.forward(x, pass),
            Network::DistilBert(net) => net.forward(x, pass),
            Network::Roberta(net) => net.forward(x, pass),
            Network::Yolo(_) | Network::Ssd(_) | Network::Yolact(_) => {
                panic!("this network detects, it does not classify")
            }
        }
    }

    fn head(&self) -> Option<BoxHead> {
        match self {
            Network::Yolo(net) => Some(net.head()),
            _ => None,
        }
    }

    fn maps(&self, x: impl Into<Input>, pass: &Pass) -> Vec<Tensor<4>> {
        match self {
            Network::Yolo(net) => net.forward(x.into().images(), pass),
            _ => panic!("this network classifies, it does not detect"),
        }
    }
}

impl Network {
    /// What a network gives: logits [n, classes]; or what [`Purpose`] says of a network of tokens; or the raw maps of a
    /// detector, finest first, with those of masks behind them; or its tables of boxes and scores, and with masks those of coefficients, and prototypes. In
    /// training YOLACT has one map more, see [`yolact::Found`].
    ///
    /// # Panics
    /// If the network takes another kind of input.
    pub fn outputs(&self, x: impl Into<Input>, pass: &Pass) -> Vec<Output> {
        match self {
            Network::Yolo(net) => net.forward(x.into().images(), pass).into_iter().map(Output::Map).collect(),
            Network::Ssd(net) => net.forward(x.into().images(), pass).map(Output::Table).into(),
            Network::Bert(net) => net.outputs(x.into().tokens(), pass),
            Network::DistilBert(net) => net.outputs(x.into().tokens(), pass),
            Network::Roberta(net) => net.outputs(x.into().tokens(), pass),
            Network::Yolact(net) => {
                let found = net.forward(x.into().images(), pass);
                let tables = [found.boxes, found.scores, found.coefficients].map(Output::Table);
                let maps = [Some(found.prototypes), found.semantic].into_iter().flatten().map(Output::Map);
                tables.into_iter().chain(maps).collect()
            }
            net => vec![Output::Logits(net.forward(x, pass))],
        }
    }
}

impl Network {
    /// What it is for; of images, classes.
    pub fn purpose(&self) -> Purpose {
        match self {
            Network::Bert(net) => net.purpose,
            Network::DistilBert(net) => net.purpose,
            Network::Roberta(net) => net.purpose,
            _ => Purpose::Classes,
        }
    }

    /// Whether it tells the tokens of two texts apart by their types.
    pub fn has_token_types(&self) -> bool {
        matches!(self, Network::Bert(_))
    }
}

/// Names for the results of a network in a graph.
pub fn output_names(net: &Network) -> Vec<String> {
    let names: &[&str] = match net {
        Network::Yolo(net) => return net.head().names(),
        Network::Ssd(_) => &["boxes", "scores"],
        Network::Yolact(_) => &["boxes", "scores", "coefficients", "prototypes"],
        net => net.purpose().row().outputs,
    };
    names.iter().map(|&name| name.to_owned()).collect()
}

/// One result of a network.
#[derive(Clone, Debug)]
pub enum Output {
    Logits(Tensor<2>),
    /// [n, channels, h, w]
    Map(Tensor<4>),
    /// A row for each token, or a row or a column for each box.
    Table(Tensor<3>),
}

impl Outputs for Output {
    fn ids(self, ids: &mut Vec<Option<TensorId>>) {
        match self {
            Output::Logits(x) => x.ids(ids),
            Output::Map(x) => x.ids(ids),
            Output::Table(x) => x.ids(ids),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// An image to one of several classes.
    ImageClassification,
    /// A sequence of tokens to one of several classes.
    TextClassification,
    /// Every token of a sequence to one of several classes.
    TokenClassification,
    /// The first and the last token of the answer to a question about a text.
    QuestionAnswering,
    /// The words that masked tokens stand for.
    MaskedWords,
    /// A sequence of tokens to a vector of its meaning.
    TextEmbedding,
    /// An image to boxes, each of one of several classes.
    ObjectDetection,
    /// The same, with the pixels that belong to each.
    InstanceSegmentation,
}

impl Task {
    pub fn name(self) -> &'static str {
        match self {
            Task::ImageClassification => "image_classification",
            Task::TextClassification => "text_classification",
            Task::TokenClassification => "token_classification",
            Task::QuestionAnswering => "question_answering",
            Task::MaskedWords => "masked_lm",
            Task::TextEmbedding => "text_embedding",
            Task::ObjectDetection => "object_detection",
            Task::InstanceSegmentation => "instance_segmentation",
        }
    }

    /// Whether it learns from pictures with boxes.
    pub fn finds_boxes(self) -> bool {
        matches!(self, Task::ObjectDetection | Task::InstanceSegmentation)
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

/// -1 to 1: SSD on MobileNet.
pub const SIGNED: Pixels = Pixels { mean: [0.5; 3], std: [0.5; 3] };
/// Of ImageNet as bytes, rounded as dbolya/yolact has it.
pub const IMAGENET_BYTES: Pixels = Pixels {
    mean: [123.68 / 255.0, 116.78 / 255.0, 103.94 / 255.0],
    std: [58.40 / 255.0, 57.12 / 255.0, 57.38 / 255.0],
};

/// Plain 0..1: YOLO.
pub const UNIT: Pixels = Pixels { mean: [0.0; 3], std: [1.0; 3] };

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
    /// What names of the tensors begin with that depend on the number of classes, or come with them: words between `|`.
    pub head: &'static str,
    /// Of images: what the published weights expect pixels to be.
    pub pixels: Option<Pixels>,
    pub build: fn(&mut Init) -> Network,
}

const RESNET: &str = "He et al. 2016, arXiv:1512.03385, section 4.1; size as torchvision's";
const RESNET_SMALL: &str = "He et al. 2016, arXiv:1512.03385, section 4.2";
const RESNET_STRIDE: &str = "He et al. 2016, arXiv:1512.03385, section 4.2; stem of stride 2";
const RESNET_CIFAR: &str = "He et al. 2016, arXiv:1512.03385, section 4.1; stem for 32x32 images";
const WIDE_RESNET: &str = "Zagoruyko and Komodakis 2016, arXiv:1605.07146; size as torchvision's";
const RESNEXT: &str = "Xie et al. 2017, arXiv:1611.05431; size as torchvision's";
const MOBILENET: &str = "Howard et al. 2017, arXiv:1704.04861";
const MOBILENET_V2: &str = "Sandler et al. 2018, arXiv:1801.04381; size as torchvision's";
const MOBILENET_V3: &str = "Howard et al. 2019, arXiv:1905.02244; size as torchvision's";
const EFFICIENTNET: &str = "Tan and Le 2019, arXiv:1905.11946; size as torchvision's";
const EFFICIENTNET_LITE: &str = "Tan and Le 2019, arXiv:1905.11946; Lite variants of google/automl, 2020";
const BERT: &str = "Devlin et al. 2019, arXiv:1810.04805; size as Hugging Face's";
const BERT_MINIATURE: &str = "Turc et al. 2019, arXiv:1908.08962; size as Hugging Face's";
const MINILM: &str = "Wang et al. 2020, arXiv:2002.10957; size as Hugging Face's";
const DISTILBERT: &str = "Sanh et al. 2019, arXiv:1910.01108; size as Hugging Face's";
const ROBERTA: &str = "Liu et al. 2019, arXiv:1907.11692; size as Hugging Face's";

const YOLO_V3: &str =
    "Redmon and Farhadi 2018, arXiv:1804.02767; size as Ultralytics' summary of yolov3 (v9.5)";
const YOLO_V5: &str =
    "Jocher 2020, doi:10.5281/zenodo.3908559; size as Ultralytics' summary of yolov5 (v7.0)";

const YOLO_V3_TINY: &str =
    "Redmon and Farhadi 2018, arXiv:1804.02767; size as Ultralytics' summary of yolov3-tiny (v9.5)";
const YOLO_V8: &str = "Jocher et al. 2023, github.com/ultralytics/ultralytics; size as the summaries in its \
     cfg/models/v8/yolov8.yaml (8.4.190), less the 16 numbers of its DFL, which are not trained";
const YOLO_V8_SEG: &str = "Jocher et al. 2023, github.com/ultralytics/ultralytics; size of its \
     cfg/models/v8/yolov8-seg.yaml (of n the summary of the fused network, 3404320 parameters; of all docs/en/models/yolov8.md), \
     less the 16 numbers of its DFL, which are not trained";

const SSD_RESNET: &str = "Liu et al. 2016, arXiv:1512.02325; size of NVIDIA/DeepLearningExamples' PyTorch/Detection/SSD/ssd/model.py (729963d)";
const SSD_MOBILENET: &str = "Howard et al. 2017, arXiv:1704.04861, table 13 (6.8 M); size of TensorFlow's object \
     detection API, ssd_mobilenet_v1_coco";
const SSD_FACE: &str =
    "face-api.js, 2018, ssd_mobilenetv1: TensorFlow's SSD MobileNetV1 for faces; size of its weights";
const SSDLITE: &str = "Howard et al. 2019, arXiv:1905.02244, section 6.3; size as torchvision's";
const YOLACT: &str =
    "Bolya et al. 2019, arXiv:1904.02689; size of dbolya/yolact's yolact.py and backbone.py (902073d)";

const IMAGE_224: [usize; 3] = [3, 224, 224];

/// A classifier of images: family, size, input, parameters, source, head, pixels.
macro_rules! image {
    ($family:ident, $size:expr, $input:expr, $parameters:literal, $source:expr, $head:literal, $pixels:expr) => {
        ModelRow {
            name: $size.name,
            task: Task::ImageClassification,
            input: InputShape::Image($input),
            classes: $size.classes,
            parameters: $parameters,
            source: $source,
            head: $head,
            pixels: $pixels,
            build: |init| Network::$family($family::new(&$size, init)),
        }
    };
}

/// A network of tokens: family, size, name, purpose, parameters, source.
macro_rules! text {
    ($family:ident, $size:expr, $name:literal, $purpose:ident, $parameters:literal, $source:expr) => {
        ModelRow {
            name: $name,
            task: Purpose::$purpose.row().task,
            input: InputShape::Tokens { length: $family::LENGTH, vocabulary: $family::WORDS },
            classes: match Purpose::$purpose {
                Purpose::Classes | Purpose::Tags => $size.classes,
                Purpose::Span => 2,
                Purpose::Words => $family::WORDS,
                Purpose::Sentence => $size.width,
            },
            parameters: $parameters,
            source: $source,
            head: $family::head(Purpose::$purpose),
            pixels: None,
            build: |init| Network::$family($family::new(&$size, Purpose::$purpose, init)),
        }
    };
}

/// Ultralytics counts the whole numbers from 0 to 15, by which YOLOv8 decodes distances, among its parameters.
const DFL: usize = yolo_layers::BINS;

/// A detector of the 80 classes of COCO.
macro_rules! yolo {
    ($i:literal, $parameters:expr, $source:expr) => {
        ModelRow {
            name: YOLO_SIZES[$i].name,
            task: if YOLO_SIZES[$i].masks.is_some() {
                Task::InstanceSegmentation
            } else {
                Task::ObjectDetection
            },
            input: InputShape::Image([3, 640, 640]),
            classes: YOLO_SIZES[$i].classes,
            parameters: $parameters,
            source: $source,
            head: YOLO_SIZES[$i].plan.head,
            pixels: Some(UNIT),
            build: |init| Network::Yolo(Yolo::new(&YOLO_SIZES[$i], init)),
        }
    };
}

/// A detector with tables of prior boxes: which, size, side of the image, parameters, source, head, pixels.
macro_rules! ssd {
    ($kind:ident, $net:ident, $size:expr, $side:literal, $parameters:literal, $source:expr, $head:literal, $pixels:expr) => {
        ModelRow {
            name: $size.name,
            task: Task::ObjectDetection,
            input: InputShape::Image([3, $side, $side]),
            classes: $size.classes,
            parameters: $parameters,
            source: $source,
            head: $head,
            pixels: Some($pixels),
            build: |init| Network::Ssd(Ssd::$kind($net::new(&$size, init))),
        }
    };
}

macro_rules! yolact {
    ($i:literal, $parameters:literal, $pixels:expr) => {
        ModelRow {
            name: YOLACT_SIZES[$i].name,
            task: Task::InstanceSegmentation,
            input: InputShape::Image([3, 550, 550]),
            classes: YOLACT_SIZES[$i].classes,
            parameters: $parameters,
            source: YOLACT,
            // And the layer for the loss, of whose name nothing else begins.
            head: "prediction_layers.0.conf_layer.",
            pixels: Some($pixels),
            build: |init| Network::Yolact(Yolact::new(&YOLACT_SIZES[$i], init)),
        }
    };
}

pub const MODELS: &[ModelRow] = &[
    image!(ResNet, RESNET_SIZES[0], [1, 28, 28], 272_186, RESNET_STRIDE, "fc.", None),
    image!(ResNet, RESNET_SIZES[1], [3, 32, 32], 272_474, RESNET_SMALL, "fc.", None),
    image!(ResNet, RESNET_SIZES[2], [3, 32, 32], 11_173_962, RESNET_CIFAR, "fc.", None),
    image!(ResNet, RESNET_SIZES[3], IMAGE_224, 11_689_512, RESNET, "fc.", Some(IMAGENET)),
    image!(ResNet, RESNET_SIZES[4], IMAGE_224, 21_797_672, RESNET, "fc.", Some(IMAGENET)),
    image!(ResNet, RESNET_SIZES[5], IMAGE_224, 25_557_032, RESNET, "fc.", Some(IMAGENET)),
    image!(ResNet, RESNET_SIZES[6], IMAGE_224, 44_549_160, RESNET, "fc.", Some(IMAGENET)),
    image!(ResNet, RESNET_SIZES[7], IMAGE_224, 60_192_808, RESNET, "fc.", Some(IMAGENET)),
    image!(ResNet, RESNET_SIZES[8], IMAGE_224, 68_883_240, WIDE_RESNET, "fc.", Some(IMAGENET)),
    image!(ResNet, RESNET_SIZES[9], IMAGE_224, 126_886_696, WIDE_RESNET, "fc.", Some(IMAGENET)),
    image!(ResNet, RESNET_SIZES[10], IMAGE_224, 25_028_904, RESNEXT, "fc.", Some(IMAGENET)),
    image!(MobileNet, MOBILENET_SIZES[0], IMAGE_224, 4_231_976, MOBILENET, "classifier.fc.", Some(IMAGENET)),
    image!(MobileNet, MOBILENET_SIZES[1], IMAGE_224, 2_585_560, MOBILENET, "classifier.fc.", Some(IMAGENET)),
    image!(MobileNet, MOBILENET_SIZES[2], IMAGE_224, 1_331_592, MOBILENET, "classifier.fc.", Some(IMAGENET)),
    image!(MobileNet, MOBILENET_SIZES[3], IMAGE_224, 470_072, MOBILENET, "classifier.fc.", Some(IMAGENET)),
    image!(
        MobileNetV2,
        MOBILENET_V2_SIZES[0],
        IMAGE_224,
        3_504_872,
        MOBILENET_V2,
        "classifier.",
        Some(IMAGENET)
    ),
    image!(
        MobileNetV3,
        MOBILENET_V3_SIZES[0],
        IMAGE_224,
        2_542_856,
        MOBILENET_V3,
        "classifier.",
        Some(IMAGENET)
    ),
    image!(
        MobileNetV3,
        MOBILENET_V3_SIZES[1],
        IMAGE_224,
        5_483_032,
        MOBILENET_V3,
        "classifier.",
        Some(IMAGENET)
    ),
    image!(
        EfficientNet,
        EFFICIENTNET_SIZES[0],
        [3, 224, 224],
        4_652_008,
        EFFICIENTNET_LITE,
        "_fc.",
        Some(AROUND_127)
    ),
    image!(
        EfficientNet,
        EFFICIENTNET_SIZES[1],
        [3, 240, 240],
        5_416_680,
        EFFICIENTNET_LITE,
        "_fc.",
        Some(AROUND_127)
    ),
    image!(
        EfficientNet,
        EFFICIENTNET_SIZES[2],
        [3, 260, 260],
        6_092_072,
        EFFICIENTNET_LITE,
        "_fc.",
        Some(AROUND_127)
    ),
    image!(
        EfficientNet,
        EFFICIENTNET_SIZES[3],
        [3, 280, 280],
        8_197_096,
        EFFICIENTNET_LITE,
        "_fc.",
        Some(AROUND_127)
    ),
    image!(
        EfficientNet,
        EFFICIENTNET_SIZES[4],
        [3, 300, 300],
        13_006_568,
        EFFICIENTNET_LITE,
        "_fc.",
        Some(AROUND_127)
    ),
    image!(
        EfficientNetB,
        EFFICIENTNET_B_SIZES[0],
        [3, 224, 224],
        5_288_548,
        EFFICIENTNET,
        "classifier.",
        Some(IMAGENET)
    ),
    image!(
        EfficientNetB,
        EFFICIENTNET_B_SIZES[1],
        [3, 240, 240],
        7_794_184,
        EFFICIENTNET,
        "classifier.",
        Some(IMAGENET)
    ),
    image!(
        EfficientNetB,
        EFFICIENTNET_B_SIZES[2],
        [3, 288, 288],
        9_109_994,
        EFFICIENTNET,
        "classifier.",
        Some(IMAGENET)
    ),
    image!(
        EfficientNetB,
        EFFICIENTNET_B_SIZES[3],
        [3, 300, 300],
        12_233_232,
        EFFICIENTNET,
        "classifier.",
        Some(IMAGENET)
    ),
    image!(
        EfficientNetB,
        EFFICIENTNET_B_SIZES[4],
        [3, 380, 380],
        19_341_616,
        EFFICIENTNET,
        "classifier.",
        Some(IMAGENET)
    ),
    image!(
        EfficientNetB,
        EFFICIENTNET_B_SIZES[5],
        [3, 456, 456],
        30_389_784,
        EFFICIENTNET,
        "classifier.",
        Some(IMAGENET)
    ),
    image!(
        EfficientNetB,
        EFFICIENTNET_B_SIZES[6],
        [3, 528, 528],
        43_040_704,
        EFFICIENTNET,
        "classifier.",
        Some(IMAGENET)
    ),
    image!(
        EfficientNetB,
        EFFICIENTNET_B_SIZES[7],
        [3, 600, 600],
        66_347_960,
        EFFICIENTNET,
        "classifier.",
        Some(IMAGENET)
    ),
    text!(Bert, BERT_SIZES[0], "bert_tiny", Classes, 4_386_178, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[0], "bert_tiny_tokens", Tags, 4_369_666, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[0], "bert_tiny_qa", Span, 4_369_666, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[0], "bert_tiny_mlm", Words, 4_416_698, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[0], "bert_tiny_embed", Sentence, 4_385_920, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[1], "bert_mini", Classes, 11_171_074, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[1], "bert_mini_tokens", Tags, 11_105_282, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[1], "bert_mini_qa", Span, 11_105_282, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[1], "bert_mini_mlm", Words, 11_201_594, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[1], "bert_mini_embed", Sentence, 11_170_560, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[2], "bert_small", Classes, 28_764_674, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[2], "bert_small_tokens", Tags, 28_502_018, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[2], "bert_small_qa", Span, 28_502_018, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[2], "bert_small_mlm", Words, 28_795_194, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[2], "bert_small_embed", Sentence, 28_763_648, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[3], "bert_medium", Classes, 41_374_210, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[3], "bert_medium_tokens", Tags, 41_111_554, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[3], "bert_medium_qa", Span, 41_111_554, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[3], "bert_medium_mlm", Words, 41_404_730, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[3], "bert_medium_embed", Sentence, 41_373_184, BERT_MINIATURE),
    text!(Bert, BERT_SIZES[4], "bert_base", Classes, 109_483_778, BERT),
    text!(Bert, BERT_SIZES[4], "bert_base_tokens", Tags, 108_893_186, BERT),
    text!(Bert, BERT_SIZES[4], "bert_base_qa", Span, 108_893_186, BERT),
    text!(Bert, BERT_SIZES[4], "bert_base_mlm", Words, 109_514_298, BERT),
    text!(Bert, BERT_SIZES[4], "bert_base_embed", Sentence, 109_482_240, BERT),
    text!(Bert, BERT_SIZES[5], "bert_large", Classes, 335_143_938, BERT),
    text!(Bert, BERT_SIZES[5], "bert_large_tokens", Tags, 334_094_338, BERT),
    text!(Bert, BERT_SIZES[5], "bert_large_qa", Span, 334_094_338, BERT),
    text!(Bert, BERT_SIZES[5], "bert_large_mlm", Words, 335_174_458, BERT),
    text!(Bert, BERT_SIZES[5], "bert_large_embed", Sentence, 335_141_888, BERT),
    text!(Bert, BERT_SIZES[6], "minilm_l6", Classes, 22_713_986, MINILM),
    text!(Bert, BERT_SIZES[6], "minilm_l6_tokens", Tags, 22_566_146, MINILM),
    text!(Bert, BERT_SIZES[6], "minilm_l6_qa", Span, 22_566_146, MINILM),
    text!(Bert, BERT_SIZES[6], "minilm_l6_mlm", Words, 22_744_506, MINILM),
    text!(Bert, BERT_SIZES[6], "minilm_l6_embed", Sentence, 22_713_216, MINILM),
    text!(Bert, BERT_SIZES[7], "minilm_l12", Classes, 33_360_770, MINILM),
    text!(Bert, BERT_SIZES[7], "minilm_l12_tokens", Tags, 33_212_930, MINILM),
    text!(Bert, BERT_SIZES[7], "minilm_l12_qa", Span, 33_212_930, MINILM),
    text!(Bert, BERT_SIZES[7], "minilm_l12_mlm", Words, 33_391_290, MINILM),
    text!(Bert, BERT_SIZES[7], "minilm_l12_embed", Sentence, 33_360_000, MINILM),
    text!(DistilBert, DISTILBERT_SIZES[0], "distilbert_base", Classes, 66_955_010, DISTILBERT),
    text!(DistilBert, DISTILBERT_SIZES[0], "distilbert_base_tokens", Tags, 66_364_418, DISTILBERT),
    text!(DistilBert, DISTILBERT_SIZES[0], "distilbert_base_qa", Span, 66_364_418, DISTILBERT),
    text!(DistilBert, DISTILBERT_SIZES[0], "distilbert_base_mlm", Words, 66_985_530, DISTILBERT),
    text!(DistilBert, DISTILBERT_SIZES[0], "distilbert_base_embed", Sentence, 66_362_880, DISTILBERT),
    text!(Roberta, ROBERTA_SIZES[0], "roberta_base", Classes, 124_647_170, ROBERTA),
    text!(Roberta, ROBERTA_SIZES[0], "roberta_base_tokens", Tags, 124_056_578, ROBERTA),
    text!(Roberta, ROBERTA_SIZES[0], "roberta_base_qa", Span, 124_056_578, ROBERTA),
    text!(Roberta, ROBERTA_SIZES[0], "roberta_base_mlm", Words, 124_697_433, ROBERTA),
    text!(Roberta, ROBERTA_SIZES[0], "roberta_base_embed", Sentence, 124_645_632, ROBERTA),
    text!(Roberta, ROBERTA_SIZES[1], "roberta_large", Classes, 355_361_794, ROBERTA),
    text!(Roberta, ROBERTA_SIZES[1], "roberta_large_tokens", Tags, 354_312_194, ROBERTA),
    text!(Roberta, ROBERTA_SIZES[1], "roberta_large_qa", Span, 354_312_194, ROBERTA),
    text!(Roberta, ROBERTA_SIZES[1], "roberta_large_mlm", Words, 355_412_057, ROBERTA),
    text!(Roberta, ROBERTA_SIZES[1], "roberta_large_embed", Sentence, 355_359_744, ROBERTA),
    yolo!(0, 61_949_149, YOLO_V3),
    yolo!(1, 62_998_749, YOLO_V3),
    yolo!(2, 1_872_157, YOLO_V5),
    yolo!(3, 7_235_389, YOLO_V5),
    yolo!(4, 21_190_557, YOLO_V5),
    yolo!(5, 46_563_709, YOLO_V5),
    yolo!(6, 86_749_405, YOLO_V5),
    yolo!(7, 8_852_366, YOLO_V3_TINY),
    yolo!(8, 3_157_200 - DFL, YOLO_V8),
    yolo!(9, 11_166_560 - DFL, YOLO_V8),
    yolo!(10, 25_902_640 - DFL, YOLO_V8),
    yolo!(11, 43_691_520 - DFL, YOLO_V8),
    yolo!(12, 68_229_648 - DFL, YOLO_V8),
    yolo!(13, 3_409_968 - DFL, YOLO_V8_SEG),
    yolo!(14, 11_821_056 - DFL, YOLO_V8_SEG),
    yolo!(15, 27_285_968 - DFL, YOLO_V8_SEG),
    yolo!(16, 45_997_728 - DFL, YOLO_V8_SEG),
    yolo!(17, 71_827_888 - DFL, YOLO_V8_SEG),
    ssd!(ResNet, SsdResNet, SSD_RESNET_SIZES[0], 300, 22_894_902, SSD_RESNET, "conf.", IMAGENET),
    ssd!(MobileNet, SsdMobileNet, SSD_MOBILENET_SIZES[0], 300, 6_819_839, SSD_MOBILENET, "scores.", SIGNED),
    ssd!(MobileNet, SsdMobileNet, SSD_MOBILENET_SIZES[1], 512, 5_532_839, SSD_FACE, "scores.", SIGNED),
    ssd!(Lite, SsdLite, SSDLITE_SIZES[0], 320, 3_440_060, SSDLITE, "head.classification_head.", SIGNED),
    yolact!(0, 31_164_943, IMAGENET_BYTES),
    yolact!(1, 50_157_071, IMAGENET_BYTES),
    yolact!(2, 47_783_087, UNIT),
];

impl ModelRow {
    /// Whether a tensor belongs to the layers that tell classes apart.
    pub fn is_head(&self, name: &str) -> bool {
        published::is_head(self.head, name)
    }
}

/// The row of that name.
pub fn find(name: &str) -> Option<&'static ModelRow> {
    MODELS.iter().find(|row| row.name == name)
}
