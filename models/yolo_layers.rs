//! What YOLO networks are made of, under Ultralytics' names: convolutions with batch norm and SiLU, residual and
//! cross-stage blocks, pyramid pooling, and the two kinds of detection heads.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use lacuna_nn::layers::{
    Act, ActQuantizer, BatchNorm, BiasedConv, Conv2d, ConvTranspose2d, Init, Padding, max_pool2d,
};
use lacuna_nn::named_module;
use lacuna_nn::quant::{Activation, ActivationQuantizer, Pass};

/// Convolution, batch norm, SiLU.
#[derive(Module, Debug)]
pub struct Conv {
    pub conv: Conv2d,
    pub bn: BatchNorm,
    pub act: ActQuantizer,
}

impl Conv {
    pub fn new(c_in: usize, c_out: usize, kernel: usize, stride: usize, init: &mut Init) -> Conv {
        Conv::padded(c_in, c_out, kernel, stride, kernel / 2, init)
    }

    pub fn padded(
        c_in: usize,
        c_out: usize,
        kernel: usize,
        stride: usize,
        pad: usize,
        init: &mut Init,
    ) -> Conv {
        Conv {
            conv: Conv2d::new(c_in, c_out, kernel, stride, init).with_padding(Padding::Sides(pad)),
            bn: BatchNorm::new(c_out, init).with(1e-3, 0.03),
            act: ActQuantizer::new(Act::Silu, &init.device),
        }
    }

    pub fn forward(&self, x: &Activation<4>, pass: &Pass) -> Activation<4> {
        self.act.conv_norm(x, &self.conv, &self.bn, None, pass)
    }
}

/// Parts side by side, on one grid.
fn concat(parts: Vec<Activation<4>>, quantizer: &ActivationQuantizer, pass: &Pass) -> Activation<4> {
    quantizer.forward(Tensor::cat(parts.into_iter().map(|p| p.x).collect(), 1), pass)
}

/// Two convolutions, and what entered them added where asked.
#[derive(Module, Debug)]
pub struct Bottleneck {
    pub cv1: Conv,
    pub cv2: Conv,
    /// Of the sum.
    pub sum: Option<ActivationQuantizer>,
}

impl Bottleneck {
    /// `kernel` of the first convolution; the second has 3x3. A shortcut needs as many channels before as behind it.
    pub fn new(
        c_in: usize,
        c_out: usize,
        inner: usize,
        kernel: usize,
        shortcut: bool,
        init: &mut Init,
    ) -> Bottleneck {
        Bottleneck {
            cv1: Conv::new(c_in, inner, kernel, 1, init),
            cv2: Conv::new(inner, c_out, 3, 1, init),
            sum: (shortcut && c_in == c_out).then(|| ActivationQuantizer::new(&init.device)),
        }
    }

    pub fn forward(&self, x: Activation<4>, pass: &Pass) -> Activation<4> {
        let Some(sum) = &self.sum else {
            return self.cv2.forward(&self.cv1.forward(&x, pass), pass);
        };
        let (x, skip) = x.fork();
        let y = self.cv2.forward(&self.cv1.forward(&x, pass), pass);
        sum.forward(skip.x + y.x, pass)
    }
}

/// Cross-stage partial block of YOLOv5: half of the channels through bottlenecks, half past them (Wang et al., 2020,
/// arXiv:1911.11929).
#[derive(Module, Debug)]
pub struct C3 {
    pub cv1: Conv,
    pub cv2: Conv,
    pub cv3: Conv,
    pub m: Vec<Bottleneck>,
    pub cat: ActivationQuantizer,
}

impl C3 {
    pub fn new(c_in: usize, c_out: usize, n: usize, shortcut: bool, init: &mut Init) -> C3 {
        let inner = c_out / 2;
        C3 {
            cv1: Conv::new(c_in, inner, 1, 1, init),
            cv2: Conv::new(c_in, inner, 1, 1, init),
            cv3: Conv::new(2 * inner, c_out, 1, 1, init),
            m: (0..n).map(|_| Bottleneck::new(inner, inner, inner, 1, shortcut, init)).collect(),
            cat: ActivationQuantizer::new(&init.device),
        }
    }

    pub fn forward(&self, x: Activation<4>, pass: &Pass) -> Activation<4> {
        let (x, past) = x.fork();
        let mut y = self.cv1.forward(&x, pass);
        for m in &self.m {
            y = m.forward(y, pass);
        }
        let past = self.cv2.forward(&past, pass);
        self.cv3.forward(&concat(vec![y, past], &self.cat, pass), pass)
    }
}

/// Cross-stage partial block of YOLOv8: half of the channels through bottlenecks, and everything that was made on the way
/// beside it (Jocher et al., 2023, github.com/ultralytics/ultralytics).
#[derive(Module, Debug)]
pub struct C2f {
    pub cv1: Conv,
    pub cv2: Conv,
    pub m: Vec<Bottleneck>,
    pub cat: ActivationQuantizer,
}

impl C2f {
    pub fn new(c_in: usize, c_out: usize, n: usize, shortcut: bool, init: &mut Init) -> C2f {
        let inner = c_out / 2;
        C2f {
            cv1: Conv::new(c_in, 2 * inner, 1, 1, init),
            cv2: Conv::new((2 + n) * inner, c_out, 1, 1, init),
            m: (0..n).map(|_| Bottleneck::new(inner, inner, inner, 3, shortcut, init)).collect(),
            cat: ActivationQuantizer::new(&init.device),
        }
    }

    pub fn forward(&self, x: &Activation<4>, pass: &Pass) -> Activation<4> {
        let (first, second) = self.cv1.forward(x, pass).fork();
        let [_, channels, ..] = first.x.dims();
        let mut last = second.map(|x| x.slice_dim(1, channels / 2..channels));
        let mut parts = vec![first.map(|x| x.slice_dim(1, 0..channels / 2))];
        for m in &self.m {
            let (x, kept) = last.fork();
            parts.push(kept);
            last = m.forward(x, pass);
        }
        parts.push(last);
        self.cv2.forward(&concat(parts, &self.cat, pass), pass)
    }
}

/// Zeros at the right and the bottom, and the largest of 2x2 at every pixel.
#[derive(Module, Debug)]
pub struct PaddedPool {
    pub pad: ActivationQuantizer,
}

impl PaddedPool {
    pub fn new(device: &Device) -> PaddedPool {
        PaddedPool { pad: ActivationQuantizer::new(device) }
    }

    pub fn forward(&self, x: Activation<4>, pass: &Pass) -> Activation<4> {
        // Zeros as large as the batch: the last column and row times nothing.
        let edge = |x: &Tensor<4>, dim: usize| {
            let size = x.dims()[dim];
            x.clone().slice_dim(dim, size - 1..size).mul_scalar(0.0)
        };
        let column = edge(&x.x, 3);
        let wide = Tensor::cat(vec![x.x, column], 3);
        let row = edge(&wide, 2);
        let padded = self.pad.forward(Tensor::cat(vec![wide, row], 2), pass);
        padded.map(|x| max_pool2d(x, 2, 1, 0))
    }
}

/// Pyramid pooling in a row: three max pools of 5x5, one behind the other, beside what entered them.
#[derive(Module, Debug)]
pub struct Sppf {
    pub cv1: Conv,
    pub cv2: Conv,
}

impl Sppf {
    pub fn new(c_in: usize, c_out: usize, init: &mut Init) -> Sppf {
        let inner = c_in / 2;
        Sppf { cv1: Conv::new(c_in, inner, 1, 1, init), cv2: Conv::new(4 * inner, c_out, 1, 1, init) }
    }

    pub fn forward(&self, x: &Activation<4>, pass: &Pass) -> Activation<4> {
        let x = self.cv1.forward(x, pass);
        let a = max_pool2d(x.x.clone(), 5, 1, 2);
        let b = max_pool2d(a.clone(), 5, 1, 2);
        let c = max_pool2d(b.clone(), 5, 1, 2);
        self.cv2.forward(&on_grid_of(&x, vec![x.x.clone(), a, b, c]), pass)
    }
}

/// Pyramid pooling side by side (He et al., 2015, arXiv:1406.4729): max pools of 5x5, 9x9 and 13x13.
#[derive(Module, Debug)]
pub struct Spp {
    pub cv1: Conv,
    pub cv2: Conv,
}

impl Spp {
    pub fn new(c_in: usize, c_out: usize, init: &mut Init) -> Spp {
        let inner = c_in / 2;
        Spp { cv1: Conv::new(c_in, inner, 1, 1, init), cv2: Conv::new(4 * inner, c_out, 1, 1, init) }
    }

    pub fn forward(&self, x: &Activation<4>, pass: &Pass) -> Activation<4> {
        let x = self.cv1.forward(x, pass);
        let pools = [5, 9, 13].map(|k| max_pool2d(x.x.clone(), k, 1, k / 2));
        let parts = std::iter::once(x.x.clone()).chain(pools).collect();
        self.cv2.forward(&on_grid_of(&x, parts), pass)
    }
}

/// Max pools move values about: all parts lie on the grid of what was pooled.
fn on_grid_of(x: &Activation<4>, parts: Vec<Tensor<4>>) -> Activation<4> {
    x.clone().map(|_| Tensor::cat(parts, 1))
}

/// What joins the outputs of several layers.
#[derive(Module, Debug)]
pub struct Concat {
    pub cat: ActivationQuantizer,
}

impl Concat {
    pub fn new(device: &Device) -> Concat {
        Concat { cat: ActivationQuantizer::new(device) }
    }

    pub fn forward(&self, parts: Vec<Activation<4>>, pass: &Pass) -> Activation<4> {
        concat(parts, &self.cat, pass)
    }
}

/// A bias, a new parameter, with something added to each channel.
fn raised(bias: &Param<Tensor<1>>, by: impl Fn(usize) -> f32, init: &Init) -> Param<Tensor<1>> {
    let mut values: Vec<f32> = bias.val().into_data().try_into_vec().expect("parameters are f32");
    values.iter_mut().enumerate().for_each(|(channel, value)| *value += by(channel));
    let shape = [values.len()];
    Param::from_data(TensorData::new(values, shape), &init.device)
}

/// Heads of YOLOv3 and v5: for each level a map of `anchors * (5 + classes)` channels.
#[derive(Module, Debug)]
pub struct AnchorHead {
    pub m: Vec<BiasedConv>,
}

impl AnchorHead {
    /// Biases say at first that an image of 640 pixels has eight objects on each level, and that classes are rare (Lin et
    /// al., 2017, arXiv:1708.02002, section 4.1).
    pub fn new(
        levels: &[usize],
        strides: &[usize],
        anchors: usize,
        classes: usize,
        init: &mut Init,
    ) -> AnchorHead {
        let level = |(&c, &stride): (&usize, &usize)| {
            let mut m = BiasedConv::new(c, anchors * (5 + classes), 1, init);
            let cells = (640.0 / stride as f32).powi(2);
            let of_channel = |channel: usize| match channel {
                0..4 => 0.0,
                4 => (8.0 / cells).ln(),
                _ => (0.6 / (classes as f32 - 0.99999)).ln(),
            };
            m.bias = raised(&m.bias, |channel| of_channel(channel % (5 + classes)), init);
            m
        };
        AnchorHead { m: levels.iter().zip(strides).map(level).collect() }
    }

    pub fn forward(&self, levels: &[Activation<4>], pass: &Pass) -> Vec<Tensor<4>> {
        self.m.iter().zip(levels).map(|(m, x)| m.forward(x, pass)).collect()
    }
}

/// Two convolutions and one without a norm.
#[derive(Clone, Debug)]
pub struct Tower {
    pub first: Conv,
    pub second: Conv,
    pub last: BiasedConv,
}

named_module!(Tower { first => "0", second => "1", last => "2" });

impl Tower {
    fn new(c_in: usize, inner: usize, c_out: usize, init: &mut Init) -> Tower {
        Tower {
            first: Conv::new(c_in, inner, 3, 1, init),
            second: Conv::new(inner, inner, 3, 1, init),
            last: BiasedConv::new(inner, c_out, 1, init),
        }
    }

    fn forward(&self, x: &Activation<4>, pass: &Pass) -> Tensor<4> {
        self.last.forward(&self.second.forward(&self.first.forward(x, pass), pass), pass)
    }
}

/// Heads of YOLOv8: for each level a map of distances to four sides, `bins` channels each, and of classes; and where masks
/// are found, of coefficients, which prototypes are multiplied by (Bolya et al., 2019, arXiv:1904.02689).
#[derive(Module, Debug)]
pub struct DistanceHead {
    /// Distances.
    pub cv2: Vec<Tower>,
    /// Classes.
    pub cv3: Vec<Tower>,
    /// Coefficients; without masks there are none.
    pub cv4: Vec<Tower>,
    pub proto: Option<Proto>,
}

/// Distances are told apart in so many steps.
pub const BINS: usize = 16;

/// Prototypes, and channels on the way to them.
#[derive(Clone, Copy, Debug)]
pub struct Masks {
    pub count: usize,
    pub channels: usize,
}

/// Prototypes, twice as large as the finest level.
#[derive(Module, Debug)]
pub struct Proto {
    pub cv1: Conv,
    pub upsample: ConvTranspose2d,
    pub upsampled: ActivationQuantizer,
    pub cv2: Conv,
    pub cv3: Conv,
}

impl Proto {
    fn new(c_in: usize, masks: Masks, init: &mut Init) -> Proto {
        let c = masks.channels;
        Proto {
            cv1: Conv::new(c_in, c, 3, 1, init),
            upsample: ConvTranspose2d::new(c, c, 2, init),
            upsampled: ActivationQuantizer::new(&init.device),
            cv2: Conv::new(c, c, 3, 1, init),
            cv3: Conv::new(c, masks.count, 1, 1, init),
        }
    }

    fn forward(&self, x: &Activation<4>, pass: &Pass) -> Tensor<4> {
        let x = self.upsample.forward(&self.cv1.forward(x, pass), pass);
        let x = self.cv2.forward(&self.upsampled.forward(x, pass), pass);
        self.cv3.forward(&x, pass).x
    }
}

impl DistanceHead {
    /// Biases say at first that an image of 640 pixels has five objects on each level.
    pub fn new(
        levels: &[usize],
        strides: &[usize],
        classes: usize,
        masks: Option<Masks>,
        init: &mut Init,
    ) -> DistanceHead {
        let inner = (levels[0] / 4).max(4 * BINS);
        let inner_classes = levels[0].max(classes.min(100));
        let distances = |c: usize, init: &mut Init| {
            let mut tower = Tower::new(c, inner, 4 * BINS, init);
            tower.last.bias = init.constant(1.0, [4 * BINS]);
            tower
        };
        let of_classes = |c: usize, stride: usize, init: &mut Init| {
            let mut tower = Tower::new(c, inner_classes, classes, init);
            let cells = (640.0 / stride as f32).powi(2);
            tower.last.bias = init.constant((5.0 / classes as f32 / cells).ln(), [classes]);
            tower
        };
        let cv2 = levels.iter().map(|&c| distances(c, init)).collect();
        let cv3 = levels.iter().zip(strides).map(|(&c, &stride)| of_classes(c, stride, init)).collect();
        let cv4 = masks.map_or_else(Vec::new, |masks| {
            let inner = (levels[0] / 4).max(masks.count);
            levels.iter().map(|&c| Tower::new(c, inner, masks.count, init)).collect()
        });
        DistanceHead { cv2, cv3, cv4, proto: masks.map(|masks| Proto::new(levels[0], masks, init)) }
    }

    /// What it finds of masks.
    pub fn masks(&self) -> Option<Masks> {
        let proto = self.proto.as_ref()?;
        let of = |conv: &Conv| conv.conv.weight.dims()[0];
        Some(Masks { count: of(&proto.cv3), channels: of(&proto.cv1) })
    }

    /// Maps of boxes, then of coefficients, finest first, and the prototypes.
    pub fn forward(&self, levels: Vec<Activation<4>>, pass: &Pass) -> Vec<Tensor<4>> {
        let boxes = |(x, (distances, classes)): (&Activation<4>, (&Tower, &Tower))| {
            Tensor::cat(vec![distances.forward(x, pass), classes.forward(x, pass)], 1)
        };
        let mut maps: Vec<Tensor<4>> = levels.iter().zip(self.cv2.iter().zip(&self.cv3)).map(boxes).collect();
        maps.extend(self.cv4.iter().zip(&levels).map(|(tower, x)| tower.forward(x, pass)));
        maps.extend(self.proto.iter().map(|proto| proto.forward(&levels[0], pass)));
        maps
    }
}
