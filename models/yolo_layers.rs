//! What YOLO networks are made of, under Ultralytics' names: convolutions with batch norm and SiLU, residual and
//! cross-stage blocks, pyramid pooling, and the two kinds of detection heads.

use crate::yolo::Plan;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use lacuna_nn::layers::{Act, ActQuantizer, BatchNorm, BiasedConv, Conv2d, Init, Padding, max_pool2d};
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
    pub fn new(levels: &[usize], plan: &Plan, classes: usize, init: &mut Init) -> AnchorHead {
        let anchors = plan.anchors[0].len();
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
        AnchorHead { m: levels.iter().zip(plan.strides).map(level).collect() }
    }

    pub fn forward(&self, levels: &[Activation<4>], pass: &Pass) -> Vec<Tensor<4>> {
        self.m.iter().zip(levels).map(|(m, x)| m.forward(x, pass)).collect()
    }
}
