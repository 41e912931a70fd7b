//! Where published weights are: what `zoo:NAME` stands for.

use crate::ModelRow;

/// A model, and the repository of Hugging Face's hub that has the weights which its names, shapes and
/// [`pixels`](ModelRow::pixels) are those of. A network of tokens stands for each of its purposes: what the repository
/// lacks, the layers of one purpose, starts anew in training, and is an error elsewhere.
const PLACES: &[(&str, &str)] = &[
    // torchvision's first weights, as timm keeps them.
    ("resnet18", "timm/resnet18.tv_in1k"),
    ("resnet34", "timm/resnet34.tv_in1k"),
    ("resnet50", "timm/resnet50.tv_in1k"),
    ("resnet101", "timm/resnet101.tv_in1k"),
    ("resnet152", "timm/resnet152.tv_in1k"),
    ("wide_resnet50_2", "timm/wide_resnet50_2.tv_in1k"),
    ("wide_resnet101_2", "timm/wide_resnet101_2.tv_in1k"),
    ("resnext50_32x4d", "timm/resnext50_32x4d.tv_in1k"),
    // TensorFlow's weights, whose padding Lite has.
    ("efficientnet_lite0", "timm/tf_efficientnet_lite0.in1k"),
    ("efficientnet_lite1", "timm/tf_efficientnet_lite1.in1k"),
    ("efficientnet_lite2", "timm/tf_efficientnet_lite2.in1k"),
    ("efficientnet_lite3", "timm/tf_efficientnet_lite3.in1k"),
    ("efficientnet_lite4", "timm/tf_efficientnet_lite4.in1k"),
    // timm's weights with even padding.
    ("efficientnet_b0", "timm/efficientnet_b0.ra_in1k"),
    ("efficientnet_b1", "timm/efficientnet_b1.ft_in1k"),
    ("efficientnet_b2", "timm/efficientnet_b2.ra_in1k"),
    ("efficientnet_b3", "timm/efficientnet_b3.ra2_in1k"),
    ("efficientnet_b4", "timm/efficientnet_b4.ra2_in1k"),
    ("bert_tiny", "google/bert_uncased_L-2_H-128_A-2"),
    ("bert_mini", "google/bert_uncased_L-4_H-256_A-4"),
    ("bert_small", "google/bert_uncased_L-4_H-512_A-8"),
    ("bert_medium", "google/bert_uncased_L-8_H-512_A-8"),
    ("bert_base", "google-bert/bert-base-uncased"),
    ("bert_large", "google-bert/bert-large-uncased"),
    ("minilm_l6", "sentence-transformers/all-MiniLM-L6-v2"),
    ("minilm_l12", "sentence-transformers/all-MiniLM-L12-v2"),
    ("distilbert_base", "distilbert/distilbert-base-uncased"),
    ("roberta_base", "FacebookAI/roberta-base"),
    ("roberta_large", "FacebookAI/roberta-large"),
];

/// What the names of the purposes of one network of tokens end with.
const PURPOSES: [&str; 4] = ["_tokens", "_qa", "_mlm", "_embed"];

impl ModelRow {
    /// The repository, `OWNER/NAME`, that has its published weights, if one is known.
    pub fn place(&self) -> Option<&'static str> {
        let name = PURPOSES.iter().find_map(|end| self.name.strip_suffix(end)).unwrap_or(self.name);
        PLACES.iter().find(|(model, _)| *model == name).map(|&(_, place)| place)
    }
}

#[cfg(test)]
mod tests {
    use super::{PLACES, PURPOSES};
    use crate::{InputShape, MODELS, find};

    #[test]
    fn every_place_is_of_a_model_and_purposes_share_it() {
        for (name, place) in PLACES {
            let row = find(name).unwrap_or_else(|| panic!("{name} is no model"));
            assert_eq!(row.place(), Some(*place));
            assert_eq!(place.split('/').count(), 2, "{place}");
        }
        for row in MODELS.iter().filter(|row| matches!(row.input, InputShape::Tokens { .. })) {
            assert!(
                row.place().is_some(),
                "{}: no place, or its name ends with none of {PURPOSES:?}",
                row.name
            );
        }
    }
}
