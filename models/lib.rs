//! The models: one table of names, shapes and how to build them.
//!
//! Parameter names are those of the published PyTorch models, so that their weights fit without renaming.

pub mod resnet;

use lacuna_nn::layers::Init;
use resnet::{RESNET_SIZES, ResNet};

/// What every row of [`MODELS`] builds.
pub type Network = ResNet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// An image to one of several classes.
    ImageClassification,
}

impl Task {
    pub fn name(self) -> &'static str {
        match self {
            Task::ImageClassification => "image_classification",
        }
    }
}

/// One model.
pub struct ModelRow {
    pub name: &'static str,
    pub task: Task,
    /// Channels, height and width of an image.
    pub input: [usize; 3],
    pub classes: usize,
    /// Trained elements; running statistics and observed ranges are not counted.
    pub parameters: usize,
    /// Where the architecture was published.
    pub source: &'static str,
    pub build: fn(&mut Init) -> Network,
}

pub const MODELS: &[ModelRow] = &[
    ModelRow {
        name: RESNET_SIZES[0].name,
        task: Task::ImageClassification,
        input: [RESNET_SIZES[0].in_channels, 28, 28],
        classes: RESNET_SIZES[0].classes,
        parameters: 272_186,
        source: "He et al. 2016, arXiv:1512.03385, section 4.2; stem of stride 2",
        build: |init| ResNet::new(&RESNET_SIZES[0], init),
    },
    ModelRow {
        name: RESNET_SIZES[1].name,
        task: Task::ImageClassification,
        input: [RESNET_SIZES[1].in_channels, 32, 32],
        classes: RESNET_SIZES[1].classes,
        parameters: 272_474,
        source: "He et al. 2016, arXiv:1512.03385, section 4.2",
        build: |init| ResNet::new(&RESNET_SIZES[1], init),
    },
];

/// The row of that name.
pub fn find(name: &str) -> Option<&'static ModelRow> {
    MODELS.iter().find(|row| row.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tensor};
    use lacuna_nn::Classifier;
    use lacuna_nn::params::ParamTable;
    use lacuna_nn::quant::Pass;

    #[test]
    fn rows_say_what_they_build() {
        let device = Device::flex();
        for row in MODELS {
            let net = (row.build)(&mut Init::new(&device, 0));
            assert_eq!(ParamTable::of(&net).trained_elements(), row.parameters, "{}", row.name);
            let [c, h, w] = row.input;
            let logits = net.forward(Tensor::zeros([2, c, h, w], &device), &Pass::default());
            assert_eq!(logits.dims(), [2, row.classes], "{}", row.name);
        }
    }

    #[test]
    fn every_size_of_a_family_is_a_row_and_names_are_unique() {
        assert!(RESNET_SIZES.iter().all(|size| find(size.name).is_some()));
        let mut names: Vec<&str> = MODELS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), MODELS.len());
    }
}
