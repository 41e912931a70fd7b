//! The last layer of a network, which tells classes apart: another one for other classes.

use crate::bert::Bert;
use crate::distilbert::DistilBert;
use crate::roberta::{Classes, Roberta};
use crate::{ModelRow, Network};
use burn::tensor::Device;
use lacuna_nn::layers::{Init, Linear};

impl ModelRow {
    /// The network with its first values, for as many classes as the data has.
    pub fn network(&self, classes: usize, device: &Device, seed: u64) -> Network {
        self.built(classes, Init::new(device, seed))
    }

    /// The network with weights that are zero, to be given others.
    pub fn empty(&self, classes: usize) -> Network {
        self.built(classes, Init::zeros(&Device::flex()))
    }

    fn built(&self, classes: usize, mut init: Init) -> Network {
        let mut net = (self.build)(&mut init);
        if classes != self.classes {
            set_classes(&mut net, classes, &mut init);
        }
        net
    }
}

/// Makes the layer anew whose parameters' names begin with [`ModelRow::head`].
fn set_classes(net: &mut Network, classes: usize, init: &mut Init) {
    let head = match net {
        Network::ResNet(net) => &mut net.fc,
        Network::MobileNet(net) => &mut net.classifier.fc,
        Network::MobileNetV2(net) => &mut net.classifier.fc,
        Network::MobileNetV3(net) => &mut net.classifier.fc,
        Network::EfficientNet(net) => &mut net._fc,
        Network::EfficientNetB(net) => &mut net.classifier.fc,
        Network::Bert(Bert { classifier: Some(head), .. }) => head,
        Network::DistilBert(DistilBert { classifier: Some(head), .. }) => head,
        Network::Roberta(Roberta { classifier: Some(Classes::Sequence(head)), .. }) => &mut head.out_proj,
        Network::Roberta(Roberta { classifier: Some(Classes::Tokens(head)), .. }) => head,
        // These have no classes of the data's.
        Network::Bert(_) | Network::DistilBert(_) | Network::Roberta(_) => return,
        Network::Yolo(net) => return net.set_classes(classes, init),
        Network::Ssd(net) => return net.set_classes(classes, init),
        Network::Yolact(net) => return net.set_classes(classes, init),
    };
    let [_, inputs] = head.weight.dims();
    *head = Linear::new(inputs, classes, init);
}

#[cfg(test)]
mod tests {
    use crate::MODELS;
    use lacuna_nn::params::ParamTable;

    #[test]
    fn only_the_head_changes_with_the_number_of_classes() {
        // A small one of each family.
        let names = [
            "resnet20",
            "mobilenet_v1_025",
            "mobilenet_v2",
            "mobilenet_v3_small",
            "efficientnet_lite0",
            "efficientnet_b0",
            "bert_tiny",
            "bert_tiny_tokens",
            "distilbert_base",
            "roberta_base",
            "roberta_base_tokens",
            "yolov3_tiny",
            "yolov5n",
            "yolov8n",
            "yolov8n_seg",
            "ssd_mobilenet_v1_face",
            "ssdlite320_mobilenet_v3_large",
        ];
        for name in names {
            let row = MODELS.iter().find(|row| row.name == name).expect(name);
            let [own, other] = [row.classes, 7].map(|classes| ParamTable::of(&row.empty(classes)));
            // A head may have other layers, too: the towers of YOLOv8 are as wide as there are classes, up to a hundred.
            let outside = |table: &ParamTable| -> Vec<(String, Vec<usize>)> {
                let rows = table.name.iter().cloned().zip(table.shape.iter().cloned());
                rows.filter(|(name, _)| !row.is_head(name)).collect()
            };
            assert!(outside(&own) == outside(&other), "{}", row.name);
            let both =
                (0..own.len()).filter_map(|i| Some((&own.shape[i], &other.shape[other.row(&own.name[i])?])));
            let changed = both.filter(|(own, other)| own != other);
            let found: Vec<_> = changed.map(|(own, other)| (own[0], other[0])).collect();
            // As many more as there are classes more, for each of the boxes at a place.
            let more = row.classes as i64 - 7;
            let follows = |&(own, other): &(usize, usize)| {
                let difference = own as i64 - other as i64;
                difference % more == 0 && difference / more > 0
            };
            assert!(found.iter().any(follows), "{}: {found:?}", row.name);
        }
    }
}
