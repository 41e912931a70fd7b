//! What the table says of a model is what is built; names are the published ones.

use burn::tensor::{Device, Int, Tensor};
use lacuna_models::bert::BERT_SIZES;
use lacuna_models::distilbert::DISTILBERT_SIZES;
use lacuna_models::efficientnet::EFFICIENTNET_SIZES;
use lacuna_models::efficientnet_b::EFFICIENTNET_B_SIZES;
use lacuna_models::mobilenet::MOBILENET_SIZES;
use lacuna_models::mobilenet_v2::MOBILENET_V2_SIZES;
use lacuna_models::mobilenet_v3::MOBILENET_V3_SIZES;
use lacuna_models::resnet::RESNET_SIZES;
use lacuna_models::roberta::ROBERTA_SIZES;
use lacuna_models::ssd::{SSD_MOBILENET_SIZES, SSD_RESNET_SIZES, Ssd};
use lacuna_models::ssdlite::SSDLITE_SIZES;
use lacuna_models::text::{PURPOSES, Purpose};
use lacuna_models::yolact::YOLACT_SIZES;
use lacuna_models::yolo::YOLO_SIZES;
use lacuna_models::{InputShape, MODELS, Network, Output, Task, find};
use lacuna_nn::layers::Init;
use lacuna_nn::params::ParamTable;
use lacuna_nn::quant::Pass;
use lacuna_nn::{Classifier, Input, Tokens};

fn built(name: &str) -> Network {
    // Numbers of tensors and their shapes are asked for, not values.
    let row = find(name).unwrap_or_else(|| panic!("no model is named {name}"));
    (row.build)(&mut Init::zeros(&Device::flex()))
}

#[test]
fn rows_say_what_they_build() {
    for row in MODELS {
        let net = built(row.name);
        assert_eq!(ParamTable::of(&net).trained_elements(), row.parameters, "{}", row.name);
        let x: Input = match row.input {
            // Images and sequences of any size do; large ones would take seconds.
            InputShape::Image([c, h, _]) => {
                // YOLO halves an image five times and doubles it again; the last maps of an SSD on ResNet need all of it.
                let [h, w] = match net {
                    Network::Yolo(_) => [32, 64],
                    Network::Ssd(Ssd::ResNet(_)) => [h; 2],
                    _ => [h.min(33), h.min(40)],
                };
                Tensor::<4>::zeros([2, c, h, w], &Device::flex()).into()
            }
            InputShape::Tokens { .. } => {
                let ids = Tensor::<2, Int>::from_ints([[101, 7592, 102], [101, 30521, 102]], &Device::flex());
                Tokens::of(ids).into()
            }
        };
        let (mut tables, mut maps) = (Vec::new(), Vec::new());
        let span = net.purpose() == Purpose::Span;
        for output in net.outputs(x, &Pass::default()) {
            match output {
                Output::Logits(ends) if span => assert_eq!(ends.dims(), [2, 3], "{}", row.name),
                Output::Table(x) if matches!(row.input, InputShape::Tokens { .. }) => {
                    assert_eq!(x.dims(), [2, 3, row.classes], "{}", row.name)
                }
                Output::Logits(logits) => assert_eq!(logits.dims(), [2, row.classes], "{}", row.name),
                Output::Map(map) => maps.push(map.dims()),
                Output::Table(table) => tables.push(table.dims()),
            }
        }
        let (scores, name) = (1 + row.classes, row.name);
        let of_boxes = |stride: usize| {
            [2, net.head().map_or(0, |head| head.channels(row.classes)), 32 / stride, 64 / stride]
        };
        let of_masks = |stride: usize| [2, 32, 32 / stride, 64 / stride];
        let want: Vec<[usize; 4]> = match &net {
            Network::Yolo(_) => {
                let head = net.head().unwrap();
                let boxes = head.strides().iter().map(|&s| of_boxes(s));
                match row.task {
                    Task::InstanceSegmentation => boxes.chain([8, 16, 32, 4].map(of_masks)).collect(),
                    _ => boxes.collect(),
                }
            }
            Network::Yolact(_) => vec![[2, 32, 10, 10]],
            _ => vec![],
        };
        assert_eq!(maps, want, "{name}");
        match (&net, tables.as_slice()) {
            (Network::Ssd(Ssd::ResNet(_)), tables) => {
                assert_eq!(tables, [[2, 4, 8732], [2, scores, 8732]], "{name}")
            }
            (Network::Ssd(_) | Network::Yolact(_), &[boxes, others, ref coefficients @ ..]) => {
                let n = boxes[1];
                assert_eq!([boxes, others], [[2, n, 4], [2, n, scores]], "{name}");
                assert!(coefficients.iter().all(|dims| *dims == [2, n, 32]), "{name}: {coefficients:?}");
            }
            (_, tables) => assert!(tables.is_empty(), "{name}: {tables:?}"),
        }
    }
}

#[test]
fn every_size_of_a_family_is_a_row_and_names_are_unique() {
    let texts = BERT_SIZES.iter().chain(DISTILBERT_SIZES).chain(ROBERTA_SIZES);
    let texts: Vec<String> =
        texts.flat_map(|s| PURPOSES.map(|row| format!("{}{}", s.name, row.suffix))).collect();
    let sizes: Vec<&str> = [
        RESNET_SIZES.iter().map(|s| s.name).collect::<Vec<_>>(),
        MOBILENET_SIZES.iter().map(|s| s.name).collect(),
        MOBILENET_V2_SIZES.iter().map(|s| s.name).collect(),
        MOBILENET_V3_SIZES.iter().map(|s| s.name).collect(),
        EFFICIENTNET_SIZES.iter().map(|s| s.name).collect(),
        EFFICIENTNET_B_SIZES.iter().map(|s| s.name).collect(),
        texts.iter().map(String::as_str).collect(),
        YOLO_SIZES.iter().map(|s| s.name).collect(),
        SSD_RESNET_SIZES.iter().map(|s| s.name).collect(),
        SSD_MOBILENET_SIZES.iter().map(|s| s.name).collect(),
        SSDLITE_SIZES.iter().map(|s| s.name).collect(),
        YOLACT_SIZES.iter().map(|s| s.name).collect(),
    ]
    .concat();
    let rows: Vec<&str> = MODELS.iter().map(|row| row.name).collect();
    assert_eq!(rows, sizes);
    let mut names = rows.clone();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), rows.len());
}

/// Tensors of published state dicts, without the counters of batch norms (`num_batches_tracked`).
const PUBLISHED: [(&str, usize, &[&str]); 25] = [
    (
        "resnet18",
        102,
        &[
            "conv1.weight",
            "bn1.running_mean",
            "layer1.0.conv2.weight",
            "layer2.0.downsample.1.bias",
            "fc.bias",
        ],
    ),
    (
        "resnet50",
        267,
        &["layer1.0.downsample.0.weight", "layer3.5.conv3.weight", "layer4.2.bn3.running_var", "fc.weight"],
    ),
    ("resnext50_32x4d", 267, &["layer1.0.conv2.weight", "layer4.0.downsample.0.weight"]),
    (
        "mobilenet_v2",
        262,
        &[
            "features.0.0.weight",
            "features.1.conv.0.0.weight",
            "features.1.conv.1.weight",
            "features.1.conv.2.running_mean",
            "features.17.conv.0.1.weight",
            "features.17.conv.2.weight",
            "features.17.conv.3.running_var",
            "features.18.1.bias",
            "classifier.1.weight",
        ],
    ),
    (
        "mobilenet_v3_small",
        210,
        &[
            "features.0.1.running_mean",
            "features.1.block.0.0.weight",
            "features.1.block.1.fc1.weight",
            "features.1.block.2.0.weight",
            "features.4.block.2.fc2.bias",
            "features.11.block.3.1.weight",
            "features.12.0.weight",
            "classifier.0.bias",
            "classifier.3.weight",
        ],
    ),
    (
        "efficientnet_b0",
        311,
        &[
            "features.0.0.weight",
            "features.1.0.block.0.0.weight",
            "features.1.0.block.1.fc1.weight",
            "features.1.0.block.2.1.running_var",
            "features.7.0.block.3.0.weight",
            "features.8.0.weight",
            "classifier.1.bias",
        ],
    ),
    (
        "yolov5s",
        // Convolutions with the four tensors of their norms, and three with a bias.
        57 * 5 + 3 * 2,
        &["model.0.conv.weight", "model.24.m.2.bias"],
    ),
    (
        "yolov8n",
        // The numbers from 0 to 15 that published files hold, too, are no parameters here.
        57 * 5 + 6 * 2,
        &[
            "model.2.m.0.cv2.bn.running_var",
            "model.9.cv2.conv.weight",
            "model.22.cv2.0.0.conv.weight",
            "model.22.cv3.2.2.bias",
        ],
    ),
    (
        "yolov8n_seg",
        // For masks, two convolutions and one with a bias on each level, three for the prototypes, and one that enlarges.
        57 * 5 + 6 * 2 + 3 * (2 * 5 + 2) + 3 * 5 + 2,
        &[
            "model.22.cv4.0.0.conv.weight",
            "model.22.cv4.2.1.bn.running_mean",
            "model.22.cv4.1.2.bias",
            "model.22.proto.cv1.conv.weight",
            "model.22.proto.upsample.weight",
            "model.22.proto.upsample.bias",
            "model.22.proto.cv3.bn.weight",
        ],
    ),
    ("yolov3_tiny", 11 * 5 + 2 * 2, &["model.0.conv.weight", "model.19.bn.bias", "model.20.m.1.weight"]),
    ("yolov3", 72 * 5 + 3 * 2, &["model.4.1.cv2.conv.weight", "model.28.m.0.bias"]),
    (
        "ssd300_resnet50",
        // 43 convolutions of the ResNet and 10 behind it, with their norms, and 12 with a bias.
        53 * 5 + 12 * 2,
        &[
            "feature_extractor.feature_extractor.0.weight",
            "feature_extractor.feature_extractor.1.running_mean",
            "feature_extractor.feature_extractor.4.0.downsample.0.weight",
            "feature_extractor.feature_extractor.6.5.bn3.bias",
            "additional_blocks.0.0.weight",
            "additional_blocks.4.4.running_var",
            "loc.5.bias",
            "conf.0.weight",
        ],
    ),
    (
        "ssdlite320_mobilenet_v3_large",
        // Of the backbone 46 convolutions with norms and 8 gates, behind it 12 with norms; 12 predictors.
        (46 + 12) * 5 + 8 * 4 + 12 * 7,
        &[
            "backbone.features.0.0.0.weight",
            "backbone.features.0.1.block.0.1.bias",
            "backbone.features.0.13.0.weight",
            "backbone.features.1.0.0.1.running_var",
            "backbone.features.1.0.1.fc2.weight",
            "backbone.features.1.0.2.0.weight",
            "backbone.features.1.2.block.3.1.weight",
            "backbone.features.1.3.0.weight",
            "backbone.extra.3.2.1.running_mean",
            "head.classification_head.module_list.0.0.0.weight",
            "head.classification_head.module_list.5.1.bias",
            "head.regression_head.module_list.2.0.1.weight",
        ],
    ),
    (
        "yolact_resnet50",
        53 * 5 + (8 + 5 + 4 + 1) * 2,
        &[
            "backbone.conv1.weight",
            "backbone.layers.0.0.downsample.1.running_var",
            "backbone.layers.3.2.conv3.weight",
            "fpn.lat_layers.0.weight",
            "fpn.pred_layers.2.bias",
            "fpn.downsample_layers.1.weight",
            "proto_net.0.weight",
            "proto_net.8.bias",
            "proto_net.10.weight",
            "prediction_layers.0.upfeature.0.weight",
            "prediction_layers.0.bbox_layer.bias",
            "prediction_layers.0.conf_layer.weight",
            "prediction_layers.0.mask_layer.weight",
            "semantic_seg_conv.weight",
        ],
    ),
    (
        "yolact_darknet53",
        52 * 5 + (8 + 5 + 4 + 1) * 2,
        &[
            "backbone._preconv.0.weight",
            "backbone.layers.0.0.1.running_mean",
            "backbone.layers.4.4.conv2.0.weight",
            "fpn.lat_layers.2.bias",
        ],
    ),
    (
        "mobilenet_v1",
        137,
        &[
            "input.conv.weight",
            "sections.0.0.depth.conv.weight",
            "sections.4.1.point.bn.weight",
            "classifier.fc.bias",
        ],
    ),
    (
        "efficientnet_lite0",
        247,
        &[
            "_conv_stem.weight",
            "_bn0.running_var",
            "_blocks.0._depthwise_conv.weight",
            "_blocks.0._project_conv.weight",
            "_blocks.1._expand_conv.weight",
            "_blocks.15._bn2.bias",
            "_conv_head.weight",
            "_bn1.weight",
            "_fc.weight",
        ],
    ),
    (
        "minilm_l6",
        105,
        &[
            "embeddings.word_embeddings.weight",
            "embeddings.position_embeddings.weight",
            "embeddings.token_type_embeddings.weight",
            "embeddings.LayerNorm.bias",
            "encoder.layer.0.attention.self.query.weight",
            "encoder.layer.0.attention.output.dense.bias",
            "encoder.layer.5.attention.output.LayerNorm.weight",
            "encoder.layer.5.intermediate.dense.weight",
            "encoder.layer.5.output.LayerNorm.weight",
            "pooler.dense.weight",
            "classifier.weight",
        ],
    ),
    // Bodies of Hugging Face: BertModel has 5 tensors of embeddings, 16 of each layer and 2 of the pooler.
    ("bert_base_embed", 5 + 12 * 16 + 2, &["encoder.layer.11.output.dense.weight", "pooler.dense.bias"]),
    (
        "bert_base_mlm",
        5 + 12 * 16 + 5,
        &[
            "cls.predictions.transform.dense.weight",
            "cls.predictions.transform.LayerNorm.bias",
            "cls.predictions.bias",
        ],
    ),
    ("bert_base_qa", 5 + 12 * 16 + 2, &["qa_outputs.weight"]),
    (
        "distilbert_base",
        4 + 6 * 16 + 4,
        &[
            "embeddings.LayerNorm.weight",
            "transformer.layer.5.attention.q_lin.weight",
            "transformer.layer.0.attention.out_lin.bias",
            "transformer.layer.0.sa_layer_norm.weight",
            "transformer.layer.0.ffn.lin1.weight",
            "transformer.layer.0.ffn.lin2.bias",
            "transformer.layer.5.output_layer_norm.bias",
            "pre_classifier.weight",
            "classifier.bias",
        ],
    ),
    (
        "distilbert_base_mlm",
        4 + 6 * 16 + 5,
        &["vocab_transform.weight", "vocab_layer_norm.bias", "vocab_projector.bias"],
    ),
    (
        "roberta_base",
        5 + 12 * 16 + 4,
        &["classifier.dense.weight", "classifier.out_proj.bias", "embeddings.token_type_embeddings.weight"],
    ),
    (
        "roberta_base_mlm",
        5 + 12 * 16 + 5,
        &["lm_head.dense.weight", "lm_head.layer_norm.weight", "lm_head.bias"],
    ),
];

#[test]
fn names_are_the_published_ones() {
    for (model, tensors, names) in PUBLISHED {
        let table = ParamTable::of(&built(model));
        let of_quantisers = |name: &&String| {
            [".range", ".step", ".scheme", ".removed", ".threshold"].iter().any(|end| name.ends_with(end))
        };
        assert_eq!(table.name.iter().filter(|name| !of_quantisers(name)).count(), tensors, "{model}");
        for name in names {
            assert!(table.row(name).is_some(), "{model} has no '{name}'");
        }
    }
}

#[test]
#[should_panic(expected = "takes images")]
fn a_network_of_images_takes_no_tokens() {
    let ids = Tensor::<2, Int>::zeros([1, 2], &Device::flex());
    built("resnet20").forward(Tokens::of(ids), &Pass::default());
}
