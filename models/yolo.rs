//! YOLO detectors: v3, v3-SPP and v3-tiny (Redmon and Farhadi, 2018, arXiv:1804.02767), v5 n to x, and v8 n to x with and
//! without masks, as Ultralytics builds them.
//!
//! Parameter names are Ultralytics': `model.0.conv.weight`, `model.2.m.0.cv1.bn.bias`, `model.24.m.0.weight`. A network is a
//! table of layers, each of which reads the one before it or the ones it names; sizes scale its channels and repeats. The
//! result is one map of raw scores for each level, finest first, and with masks their coefficients and prototypes behind them;
//! boxes are decoded outside (`lacuna-pipelines`).

use crate::yolo_layers::{
    AnchorHead, BINS, Bottleneck, C2f, C3, Concat, Conv, DistanceHead, Masks, PaddedPool, Spp, Sppf,
};
use burn::module::Module;
use burn::tensor::Tensor;
use lacuna_nn::layers::{Init, max_pool2d, upsample_nearest};
use lacuna_nn::quant::{Activation, ActivationQuantizer, Pass};
use lacuna_nn::{BoxHead, one_of_modules};

/// What a layer is: channels it gives before scaling, window, stride, shortcut.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Conv(usize, usize, usize),
    /// 6x6 of stride 2, padded by 2.
    Stem(usize),
    Bottleneck(usize, bool),
    C3(usize, bool),
    C2f(usize, bool),
    /// The largest of 2x2, of stride 2.
    Pool,
    /// A place without a layer: what pads is part of the next.
    Nothing,
    PaddedPool,
    Spp(usize),
    Sppf(usize),
    Upsample,
    Concat,
}

/// One layer: what it reads (relative if negative), how often it is repeated, what it is.
#[derive(Clone, Copy, Debug)]
pub struct Row(pub &'static [isize], pub usize, pub Kind);

/// Layers before the head, and which of them the head reads, finest first.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rows: &'static [Row],
    pub levels: &'static [usize],
    /// Widths and heights of the anchors of each level, in pixels; without them the head gives distances.
    pub anchors: &'static [[[f32; 2]; 3]],
    /// Pixels of the image for a pixel of each level.
    pub strides: &'static [usize],
    /// What the names of the head's tensors begin with.
    pub head: &'static str,
}

/// One size.
#[derive(Clone, Copy, Debug)]
pub struct YoloSize {
    pub name: &'static str,
    pub classes: usize,
    pub plan: &'static Plan,
    /// Repeats and channels in multiples of the plan's.
    pub depth: f64,
    pub width: f64,
    /// Most channels of the plan, before they are scaled.
    pub most: usize,
    /// Prototypes of masks, and channels on the way to them before they are scaled.
    pub masks: Option<Masks>,
}

const PREVIOUS: &[isize] = &[-1];

const fn row(repeats: usize, kind: Kind) -> Row {
    Row(PREVIOUS, repeats, kind)
}

const fn join(with: &'static [isize]) -> Row {
    Row(with, 1, Kind::Concat)
}

const ANCHORS: &[[[f32; 2]; 3]] = &[
    [[10.0, 13.0], [16.0, 30.0], [33.0, 23.0]],
    [[30.0, 61.0], [62.0, 45.0], [59.0, 119.0]],
    [[116.0, 90.0], [156.0, 198.0], [373.0, 326.0]],
];

pub const V5: Plan = Plan {
    rows: &[
        row(1, Kind::Stem(64)),
        row(1, Kind::Conv(128, 3, 2)),
        row(3, Kind::C3(128, true)),
        row(1, Kind::Conv(256, 3, 2)),
        row(6, Kind::C3(256, true)),
        row(1, Kind::Conv(512, 3, 2)),
        row(9, Kind::C3(512, true)),
        row(1, Kind::Conv(1024, 3, 2)),
        row(3, Kind::C3(1024, true)),
        row(1, Kind::Sppf(1024)),
        row(1, Kind::Conv(512, 1, 1)),
        row(1, Kind::Upsample),
        join(&[-1, 6]),
        row(3, Kind::C3(512, false)),
        row(1, Kind::Conv(256, 1, 1)),
        row(1, Kind::Upsample),
        join(&[-1, 4]),
        row(3, Kind::C3(256, false)),
        row(1, Kind::Conv(256, 3, 2)),
        join(&[-1, 14]),
        row(3, Kind::C3(512, false)),
        row(1, Kind::Conv(512, 3, 2)),
        join(&[-1, 10]),
        row(3, Kind::C3(1024, false)),
    ],
    levels: &[17, 20, 23],
    anchors: ANCHORS,
    strides: &[8, 16, 32],
    head: "model.24.",
};

/// v3 with or without pyramid pooling, which stands in the place of a convolution.
const fn v3(rows: &'static [Row]) -> Plan {
    Plan { rows, levels: &[27, 22, 15], anchors: ANCHORS, strides: &[8, 16, 32], head: "model.28." }
}

macro_rules! v3_rows {
    ($pool:expr) => {
        &[
            row(1, Kind::Conv(32, 3, 1)),
            row(1, Kind::Conv(64, 3, 2)),
            row(1, Kind::Bottleneck(64, true)),
            row(1, Kind::Conv(128, 3, 2)),
            row(2, Kind::Bottleneck(128, true)),
            row(1, Kind::Conv(256, 3, 2)),
            row(8, Kind::Bottleneck(256, true)),
            row(1, Kind::Conv(512, 3, 2)),
            row(8, Kind::Bottleneck(512, true)),
            row(1, Kind::Conv(1024, 3, 2)),
            row(4, Kind::Bottleneck(1024, true)),
            row(1, Kind::Bottleneck(1024, false)),
            row(1, $pool),
            row(1, Kind::Conv(1024, 3, 1)),
            row(1, Kind::Conv(512, 1, 1)),
            row(1, Kind::Conv(1024, 3, 1)),
            Row(&[-2], 1, Kind::Conv(256, 1, 1)),
            row(1, Kind::Upsample),
            join(&[-1, 8]),
            row(1, Kind::Bottleneck(512, false)),
            row(1, Kind::Bottleneck(512, false)),
            row(1, Kind::Conv(256, 1, 1)),
            row(1, Kind::Conv(512, 3, 1)),
            Row(&[-2], 1, Kind::Conv(128, 1, 1)),
            row(1, Kind::Upsample),
            join(&[-1, 6]),
            row(1, Kind::Bottleneck(256, false)),
            row(2, Kind::Bottleneck(256, false)),
        ]
    };
}

pub const V3: Plan = v3(v3_rows!(Kind::Conv(512, 1, 1)));
pub const V3_SPP: Plan = v3(v3_rows!(Kind::Spp(512)));

/// Layers of YOLOv3-tiny.
pub const V3_TINY: Plan = Plan {
    rows: &[
        row(1, Kind::Conv(16, 3, 1)),
        row(1, Kind::Pool),
        row(1, Kind::Conv(32, 3, 1)),
        row(1, Kind::Pool),
        row(1, Kind::Conv(64, 3, 1)),
        row(1, Kind::Pool),
        row(1, Kind::Conv(128, 3, 1)),
        row(1, Kind::Pool),
        row(1, Kind::Conv(256, 3, 1)),
        row(1, Kind::Pool),
        row(1, Kind::Conv(512, 3, 1)),
        row(1, Kind::Nothing),
        row(1, Kind::PaddedPool),
        row(1, Kind::Conv(1024, 3, 1)),
        row(1, Kind::Conv(256, 1, 1)),
        row(1, Kind::Conv(512, 3, 1)),
        Row(&[-2], 1, Kind::Conv(128, 1, 1)),
        row(1, Kind::Upsample),
        join(&[-1, 8]),
        row(1, Kind::Conv(256, 3, 1)),
    ],
    levels: &[19, 15],
    anchors: &[[[10.0, 14.0], [23.0, 27.0], [37.0, 58.0]], [[81.0, 82.0], [135.0, 169.0], [344.0, 319.0]]],
    strides: &[16, 32],
    head: "model.20.",
};

pub const V8: Plan = Plan {
    rows: &[
        row(1, Kind::Conv(64, 3, 2)),
        row(1, Kind::Conv(128, 3, 2)),
        row(3, Kind::C2f(128, true)),
        row(1, Kind::Conv(256, 3, 2)),
        row(6, Kind::C2f(256, true)),
        row(1, Kind::Conv(512, 3, 2)),
        row(6, Kind::C2f(512, true)),
        row(1, Kind::Conv(1024, 3, 2)),
        row(3, Kind::C2f(1024, true)),
        row(1, Kind::Sppf(1024)),
        row(1, Kind::Upsample),
        join(&[-1, 6]),
        row(3, Kind::C2f(512, false)),
        row(1, Kind::Upsample),
        join(&[-1, 4]),
        row(3, Kind::C2f(256, false)),
        row(1, Kind::Conv(256, 3, 2)),
        join(&[-1, 12]),
        row(3, Kind::C2f(512, false)),
        row(1, Kind::Conv(512, 3, 2)),
        join(&[-1, 9]),
        row(3, Kind::C2f(1024, false)),
    ],
    levels: &[15, 18, 21],
    anchors: &[],
    strides: &[8, 16, 32],
    head: "model.22.",
};

const fn size(name: &'static str, plan: &'static Plan, depth: f64, width: f64) -> YoloSize {
    limited(name, plan, depth, width, 1024)
}

const fn limited(name: &'static str, plan: &'static Plan, depth: f64, width: f64, most: usize) -> YoloSize {
    YoloSize { name, classes: 80, plan, depth, width, most, masks: None }
}

/// The size, with masks.
const fn segmenting(name: &'static str, size: &YoloSize) -> YoloSize {
    YoloSize { name, masks: Some(Masks { count: 32, channels: 256 }), ..*size }
}

const N: YoloSize = size("yolov8n", &V8, 0.33, 0.25);
const S: YoloSize = size("yolov8s", &V8, 0.33, 0.50);
const M: YoloSize = limited("yolov8m", &V8, 0.67, 0.75, 768);
const L: YoloSize = limited("yolov8l", &V8, 1.0, 1.0, 512);
const X: YoloSize = limited("yolov8x", &V8, 1.0, 1.25, 512);

pub const YOLO_SIZES: &[YoloSize] = &[
    size("yolov3", &V3, 1.0, 1.0),
    size("yolov3_spp", &V3_SPP, 1.0, 1.0),
    size("yolov5n", &V5, 0.33, 0.25),
    size("yolov5s", &V5, 0.33, 0.50),
    size("yolov5m", &V5, 0.67, 0.75),
    size("yolov5l", &V5, 1.0, 1.0),
    size("yolov5x", &V5, 1.33, 1.25),
    size("yolov3_tiny", &V3_TINY, 1.0, 1.0),
    N,
    S,
    M,
    L,
    X,
    segmenting("yolov8n_seg", &N),
    segmenting("yolov8s_seg", &S),
    segmenting("yolov8m_seg", &M),
    segmenting("yolov8l_seg", &L),
    segmenting("yolov8x_seg", &X),
];

/// What stands at one place of `model`.
#[derive(Clone, Debug)]
// A box would only hide the layer.
#[allow(clippy::large_enum_variant)]
pub enum Layer {
    Conv(Conv),
    Bottleneck(Bottleneck),
    Bottlenecks(Vec<Bottleneck>),
    C3(C3),
    C2f(C2f),
    PaddedPool(PaddedPool),
    Spp(Spp),
    Sppf(Sppf),
    Concat(Concat),
    Upsample(Bare),
    Pool(Bare),
    Nothing(Bare),
    Head(AnchorHead),
    Distances(DistanceHead),
}

one_of_modules!(Layer {
    Conv,
    Bottleneck,
    Bottlenecks,
    C3,
    C2f,
    PaddedPool,
    Spp,
    Sppf,
    Concat,
    Upsample,
    Pool,
    Nothing,
    Head,
    Distances
});

/// A layer that has no parameters but counts in the names of those that have.
#[derive(Module, Debug)]
pub struct Bare {
    pub parameters: usize,
}

/// Images [n, 3, h, w], both multiples of the largest stride, to raw maps.
#[derive(Module, Debug)]
pub struct Yolo {
    pub input: ActivationQuantizer,
    pub model: Vec<Layer>,
    #[module(skip)]
    pub plan: Plan,
}

impl YoloSize {
    /// Up to a multiple of 8.
    fn channels(&self, c: usize) -> usize {
        ((c.min(self.most) as f64 * self.width / 8.0).ceil() as usize) * 8
    }

    fn repeats(&self, n: usize) -> usize {
        if n > 1 { ((n as f64 * self.depth).round() as usize).max(1) } else { n }
    }
}

impl Row {
    /// The places that it reads, of a layer at `place`.
    fn reads(&self, place: usize) -> impl Iterator<Item = usize> {
        self.0.iter().map(move |&from| if from < 0 { place.wrapping_add_signed(from) } else { from as usize })
    }
}

impl Yolo {
    pub fn new(size: &YoloSize, init: &mut Init) -> Yolo {
        let input = ActivationQuantizer::new(&init.device);
        let mut channels: Vec<usize> = Vec::new();
        let mut model = Vec::new();
        for (place, row) in size.plan.rows.iter().enumerate() {
            // The first layer reads the image.
            let c_in: usize = row.reads(place).map(|at| channels.get(at).copied().unwrap_or(3)).sum();
            let (layer, c_out) = layer(row, size, c_in, init);
            model.push(layer);
            channels.push(c_out);
        }
        let levels: Vec<usize> = size.plan.levels.iter().map(|&at| channels[at]).collect();
        let masks = size.masks.map(|m| Masks { channels: size.channels(m.channels), ..m });
        model.push(head(&levels, size.plan, size.classes, masks, init));
        Yolo { input, model, plan: *size.plan }
    }

    /// Another head, for other classes.
    pub fn set_classes(&mut self, classes: usize, init: &mut Init) {
        let (levels, masks): (Vec<usize>, _) = match self.model.last() {
            Some(Layer::Head(head)) => (head.m.iter().map(|m| m.weight.dims()[1]).collect(), None),
            Some(Layer::Distances(head)) => {
                (head.cv2.iter().map(|tower| tower.first.conv.weight.dims()[1]).collect(), head.masks())
            }
            _ => unreachable!("a network ends in its head"),
        };
        self.model.pop();
        self.model.push(head(&levels, &self.plan, classes, masks, init));
    }

    /// How the maps say boxes.
    pub fn head(&self) -> BoxHead {
        let Plan { strides, anchors, .. } = self.plan;
        let strides = strides.to_vec();
        match self.model.last() {
            Some(Layer::Distances(head)) => {
                let masks = head.masks().map_or(0, |masks| masks.count);
                BoxHead::Distances { strides, bins: BINS, masks }
            }
            _ => BoxHead::Anchors { strides, anchors: anchors.iter().map(|level| level.to_vec()).collect() },
        }
    }

    /// The maps that [`Yolo::head`] tells of.
    pub fn forward(&self, x: Tensor<4>, pass: &Pass) -> Vec<Tensor<4>> {
        let x = self.input.forward(x, pass);
        let mut made: Vec<Activation<4>> = Vec::with_capacity(self.model.len());
        for (place, (layer, row)) in self.model.iter().zip(self.plan.rows).enumerate() {
            // The first layer reads the image.
            let mut parts: Vec<Activation<4>> =
                row.reads(place).map(|at| made.get(at).unwrap_or(&x).clone()).collect();
            let y = match (layer, parts.len()) {
                (Layer::Concat(concat), _) => concat.forward(parts, pass),
                _ => forward(layer, parts.swap_remove(0), pass),
            };
            made.push(y);
        }
        let levels: Vec<Activation<4>> = self.plan.levels.iter().map(|&at| made[at].clone()).collect();
        match self.model.last() {
            Some(Layer::Head(head)) => head.forward(&levels, pass),
            Some(Layer::Distances(head)) => head.forward(levels, pass),
            _ => unreachable!("a network ends in its head"),
        }
    }
}

fn head(levels: &[usize], plan: &Plan, classes: usize, masks: Option<Masks>, init: &mut Init) -> Layer {
    match plan.anchors.first() {
        None => Layer::Distances(DistanceHead::new(levels, plan.strides, classes, masks, init)),
        Some(anchors) => Layer::Head(AnchorHead::new(levels, plan.strides, anchors.len(), classes, init)),
    }
}

/// The layer of a row, and the channels that it gives.
fn layer(row: &Row, size: &YoloSize, c_in: usize, init: &mut Init) -> (Layer, usize) {
    let n = size.repeats(row.1);
    let scaled = |c: usize| size.channels(c);
    match row.2 {
        Kind::Conv(c, kernel, stride) => {
            (Layer::Conv(Conv::new(c_in, scaled(c), kernel, stride, init)), scaled(c))
        }
        Kind::Stem(c) => (Layer::Conv(Conv::padded(c_in, scaled(c), 6, 2, 2, init)), scaled(c)),
        Kind::Bottleneck(c, shortcut) => {
            let c = scaled(c);
            let mut one = |c_in: usize| Bottleneck::new(c_in, c, c / 2, 1, shortcut, init);
            match n {
                1 => (Layer::Bottleneck(one(c_in)), c),
                n => (Layer::Bottlenecks((0..n).map(|i| one(if i == 0 { c_in } else { c })).collect()), c),
            }
        }
        Kind::C3(c, shortcut) => (Layer::C3(C3::new(c_in, scaled(c), n, shortcut, init)), scaled(c)),
        Kind::C2f(c, shortcut) => (Layer::C2f(C2f::new(c_in, scaled(c), n, shortcut, init)), scaled(c)),
        Kind::Pool => (Layer::Pool(Bare { parameters: 0 }), c_in),
        Kind::Nothing => (Layer::Nothing(Bare { parameters: 0 }), c_in),
        Kind::PaddedPool => (Layer::PaddedPool(PaddedPool::new(&init.device)), c_in),
        Kind::Spp(c) => (Layer::Spp(Spp::new(c_in, scaled(c), init)), scaled(c)),
        Kind::Sppf(c) => (Layer::Sppf(Sppf::new(c_in, scaled(c), init)), scaled(c)),
        Kind::Concat => (Layer::Concat(Concat::new(&init.device)), c_in),
        Kind::Upsample => (Layer::Upsample(Bare { parameters: 0 }), c_in),
    }
}

fn forward(layer: &Layer, x: Activation<4>, pass: &Pass) -> Activation<4> {
    match layer {
        Layer::Conv(conv) => conv.forward(&x, pass),
        Layer::Bottleneck(b) => b.forward(x, pass),
        Layer::Bottlenecks(all) => all.iter().fold(x, |x, b| b.forward(x, pass)),
        Layer::C3(c3) => c3.forward(x, pass),
        Layer::Spp(spp) => spp.forward(&x, pass),
        Layer::Sppf(sppf) => sppf.forward(&x, pass),
        Layer::Upsample(_) => x.map(|x| upsample_nearest(x, 2)),
        Layer::C2f(c2f) => c2f.forward(&x, pass),
        Layer::Pool(_) => x.map(|x| max_pool2d(x, 2, 2, 0)),
        Layer::Nothing(_) => x,
        Layer::PaddedPool(pool) => pool.forward(x, pass),
        Layer::Concat(_) | Layer::Head(_) | Layer::Distances(_) => unreachable!("reads several layers"),
    }
}
