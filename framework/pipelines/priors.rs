//! Prior boxes (Liu et al., 2016, arXiv:1512.02325, there "default boxes"): what a network says of a place is how an
//! object's box differs from a box of known size in that place.
//!
//! A plan has one [`Level`] for each map of the network; the functions below are the plans of published networks.

use serde::{Deserialize, Serialize};

/// How two tables, of boxes and of scores, are to be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Priors {
    pub levels: Vec<Level>,
    pub order: Order,
    /// Offsets are y, x, height, width; x, y, width, height otherwise.
    pub y_first: bool,
    /// What offsets of centres, and logarithms of sizes, are multiplied by.
    pub variances: [f32; 2],
    pub scores: Scores,
}

/// The boxes around the middles of the cells of one map. Lengths are in widths and heights of the image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Level {
    /// Rows and columns.
    pub cells: [usize; 2],
    /// Width and height of a cell.
    pub step: [f32; 2],
    /// Width and height of each box of a cell.
    pub sizes: Vec<[f32; 2]>,
}

/// Which comes after which within a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// All boxes of the first cell, all of the second, ...
    Cells,
    /// The first box of all cells, the second of all, ...
    Sizes,
}

/// What scores are before they are shares. The first class is the background in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scores {
    Softmax,
    Sigmoid,
    /// They are shares already.
    Shares,
}

impl Level {
    fn len(&self) -> usize {
        self.cells[0].saturating_mul(self.cells[1]).saturating_mul(self.sizes.len())
    }
}

impl Priors {
    /// Number of boxes.
    pub fn len(&self) -> usize {
        self.levels.iter().fold(0usize, |n, level| n.saturating_add(level.len()))
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Centre x and y, width and height of every box, in widths and heights of the image.
    pub fn boxes(&self) -> impl Iterator<Item = [f32; 4]> + '_ {
        self.levels.iter().flat_map(move |level| {
            let ([rows, columns], sizes) = (level.cells, level.sizes.len());
            (0..level.len()).map(move |i| {
                let (cell, size) = match self.order {
                    Order::Cells => (i / sizes, i % sizes),
                    Order::Sizes => (i % (rows * columns), i / (rows * columns)),
                };
                let middle = |place: usize, step: f32| ((place as f32 + 0.5) * step).min(1.0);
                let [w, h] = level.sizes[size];
                [middle(cell % columns, level.step[0]), middle(cell / columns, level.step[1]), w, h]
            })
        })
    }
}

/// Cells that fill the image.
fn level(cells: [usize; 2], sizes: Vec<[f32; 2]>) -> Level {
    let step = [1.0 / cells[1].max(1) as f32, 1.0 / cells[0].max(1) as f32];
    Level { cells, step, sizes }
}

/// A map for every entry of `strides`, each halving rounded up.
fn cells_of(size: [usize; 2], strides: &[usize]) -> Vec<[usize; 2]> {
    strides.iter().map(|&s| size.map(|side| side.div_ceil(s))).collect()
}

/// A box of that scale and ratio of width to height.
fn shape(scale: f32, ratio: f32) -> [f32; 2] {
    [scale * ratio.sqrt(), scale / ratio.sqrt()]
}

fn squares_and_ratios(scale: f32, next: f32, ratios: &[f32]) -> Vec<[f32; 2]> {
    let squares = [[scale; 2], [(scale * next).sqrt(); 2]];
    let others = ratios.iter().flat_map(|&r| [shape(scale, r), shape(scale, 1.0 / r)]);
    squares.into_iter().chain(others).collect()
}

/// SSD300 on ResNet as NVIDIA's DeepLearningExamples has it: 8,732 boxes, those of Liu et al. for COCO.
pub fn ssd300() -> Priors {
    /// Cells of a side, pixels from one to the next, ratios.
    const LEVELS: [(usize, f32, &[f32]); 6] = [
        (38, 8.0, &[2.0]),
        (19, 16.0, &[2.0, 3.0]),
        (10, 32.0, &[2.0, 3.0]),
        (5, 64.0, &[2.0, 3.0]),
        (3, 100.0, &[2.0]),
        (1, 300.0, &[2.0]),
    ];
    const SIZES: [f32; 7] = [21.0, 45.0, 99.0, 153.0, 207.0, 261.0, 315.0];
    let one = |(i, (side, step, ratios)): (usize, (usize, f32, &[f32]))| {
        let sizes = squares_and_ratios(SIZES[i] / 300.0, SIZES[i + 1] / 300.0, ratios);
        let inside = |v: f32| v.clamp(0.0, 1.0);
        Level {
            cells: [side; 2],
            step: [step / 300.0; 2],
            sizes: sizes.into_iter().map(|s| s.map(inside)).collect(),
        }
    };
    Priors {
        levels: LEVELS.into_iter().enumerate().map(one).collect(),
        order: Order::Sizes,
        y_first: false,
        variances: [0.1, 0.2],
        scores: Scores::Softmax,
    }
}

const SSD_STRIDES: [usize; 6] = [16, 32, 64, 128, 256, 512];

/// Scales from 0.2 to 0.95 of the image, and 1 behind them.
fn scales(levels: usize) -> Vec<f32> {
    let step = 0.75 / (levels as f32 - 1.0);
    (0..levels).map(|i| 0.2 + step * i as f32).chain([1.0]).collect()
}

/// SSDLite as torchvision has it: 3,234 boxes of a 320x320 image.
pub fn ssdlite(size: [usize; 2]) -> Priors {
    let scales = scales(SSD_STRIDES.len());
    let one = |(i, cells): (usize, [usize; 2])| {
        let sizes = squares_and_ratios(scales[i], scales[i + 1], &[2.0, 3.0]);
        level(cells, sizes.into_iter().map(|s| s.map(|v| v.clamp(0.0, 1.0))).collect())
    };
    Priors {
        levels: cells_of(size, &SSD_STRIDES).into_iter().enumerate().map(one).collect(),
        order: Order::Cells,
        y_first: false,
        variances: [0.1, 0.2],
        scores: Scores::Softmax,
    }
}

/// SSD on MobileNet as TensorFlow's object detection API has it: 1,917 boxes of a 300x300 image, 5,118 of 512x512.
pub fn ssd_mobilenet(size: [usize; 2]) -> Priors {
    // As written there: not quite a third.
    const RATIOS: [f32; 4] = [2.0, 0.5, 3.0, 0.3333];
    let scales = scales(SSD_STRIDES.len());
    let one = |(i, cells): (usize, [usize; 2])| {
        let sizes = match i {
            0 => vec![shape(0.1, 1.0), shape(scales[0], 2.0), shape(scales[0], 0.5)],
            _ => {
                let squares = [[scales[i]; 2], [(scales[i] * scales[i + 1]).sqrt(); 2]];
                squares.into_iter().chain(RATIOS.iter().map(|&r| shape(scales[i], r))).collect()
            }
        };
        level(cells, sizes)
    };
    Priors {
        levels: cells_of(size, &SSD_STRIDES).into_iter().enumerate().map(one).collect(),
        order: Order::Cells,
        y_first: true,
        variances: [0.1, 0.2],
        scores: Scores::Sigmoid,
    }
}

/// YOLACT (Bolya et al., 2019, arXiv:1904.02689): 19,248 boxes of a 550x550 image. They are squares: a ratio changes both
/// sides there, and that is how the published weights were trained.
pub fn yolact(size: [usize; 2]) -> Priors {
    const SIDES: [f32; 5] = [24.0, 48.0, 96.0, 192.0, 384.0];
    const RATIOS: [f32; 3] = [1.0, 0.5, 2.0];
    let one = |(cells, side): ([usize; 2], f32)| {
        let sides = RATIOS.iter().map(|ratio| side * ratio.sqrt());
        level(cells, sides.map(|side| [side / size[1] as f32, side / size[0] as f32]).collect())
    };
    Priors {
        levels: cells_of(size, &[8, 16, 32, 64, 128]).into_iter().zip(SIDES).map(one).collect(),
        order: Order::Cells,
        y_first: false,
        variances: [0.1, 0.2],
        scores: Scores::Softmax,
    }
}
