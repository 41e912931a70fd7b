//! The loss of YOLOv5 (Jocher, 2020, doi:10.5281/zenodo.3908559), which its YOLOv3 is trained with too.
//!
//! A box belongs to every anchor whose width and height are within a factor of four of its own, and there to the cell that
//! it is centred in, the nearer neighbour in its row and the nearer one in its column. Such a cell and anchor is to give
//! the box (complete IoU), its class, and the overlap that it reached as its objectness; all others an objectness of 0.

use super::overlap::complete_iou;
use super::{BoxLoss, Map, cross_entropy, sigmoid};
use lacuna_data::boxes::BatchBox;

/// Most ratio of a side of a box and of an anchor, either way.
const RATIO_MAX: f64 = 4.0;
/// Weights of the parts at three levels of 640 pixels and 80 classes.
const GAIN_BOX: f64 = 0.05;
const GAIN_OBJECT: f64 = 1.0;
const GAIN_CLASS: f64 = 0.5;
/// Weights of objectness on each level, finest first.
const BALANCE: [f64; 5] = [4.0, 1.0, 0.4, 0.06, 0.02];

/// A cell and anchor that answers for a box.
struct Answer {
    image: usize,
    anchor: usize,
    x: usize,
    y: usize,
    class: usize,
    /// Corners in cells, of the box less the cell's own place.
    corners: [f64; 4],
}

pub(super) fn loss(
    strides: &[usize],
    anchors: &[Vec<[f32; 2]>],
    maps: &[Map<'_>],
    boxes: &[BatchBox],
) -> BoxLoss {
    let mut total = BoxLoss { value: 0.0, parts: [0.0; 3], gradients: Vec::new() };
    for (level, ((&stride, anchors), map)) in strides.iter().zip(anchors).zip(maps).enumerate() {
        let [n, c, h, w] = map.dims;
        let (per_anchor, cells, batch) = (c / anchors.len(), h * w, n as f64);
        let classes = per_anchor - 5;
        let levels = 3.0 / strides.len() as f64;
        let side = (h.max(w) * stride) as f64 / 640.0;
        let gains = [
            GAIN_BOX * levels * batch,
            GAIN_OBJECT * levels * side * side * BALANCE[level.min(4)] * batch,
            GAIN_CLASS * levels * classes as f64 / 80.0 * batch,
        ];
        let mut gradient = vec![0.0; map.values.len()];
        let mut overlap = vec![0.0; n * anchors.len() * cells];
        let answers = answers(stride as f64, anchors, [h, w], boxes);
        let share = 1.0 / answers.len().max(1) as f64;
        for a in &answers {
            let at = |channel: usize| ((a.image * c + a.anchor * per_anchor + channel) * h + a.y) * w + a.x;
            let s = [0, 1, 2, 3].map(|channel| sigmoid(map.values[at(channel)]));
            let anchor = anchors[a.anchor].map(|side| f64::from(side) / stride as f64);
            let (x, y) = (2.0 * s[0] - 0.5, 2.0 * s[1] - 0.5);
            let (bw, bh) = (4.0 * s[2] * s[2] * anchor[0], 4.0 * s[3] * s[3] * anchor[1]);
            let found = [x - bw / 2.0, y - bh / 2.0, x + bw / 2.0, y + bh / 2.0];
            let (iou, d) = complete_iou(found, a.corners);
            total.parts[0] += gains[0] * share * (1.0 - iou);
            // By middle and size, then by the logits behind the sigmoids.
            let by = [d[0] + d[2], d[1] + d[3], (d[2] - d[0]) / 2.0, (d[3] - d[1]) / 2.0];
            let slope = |i: usize| match i {
                0 | 1 => 2.0 * s[i] * (1.0 - s[i]),
                _ => 8.0 * s[i] * s[i] * (1.0 - s[i]) * anchor[i - 2],
            };
            for i in 0..4 {
                gradient[at(i)] -= (gains[0] * share * by[i] * slope(i)) as f32;
            }
            // Where two boxes meet the better overlap counts.
            let place = &mut overlap[(a.image * anchors.len() + a.anchor) * cells + a.y * w + a.x];
            *place = f64::max(*place, iou.max(0.0));
            // With one class there is nothing to tell apart.
            if classes > 1 {
                let share = share / classes as f64;
                for class in 0..classes {
                    let target = f64::from(u8::from(class == a.class));
                    let logit = map.values[at(5 + class)];
                    total.parts[2] += gains[2] * share * cross_entropy(logit, target);
                    gradient[at(5 + class)] += (gains[2] * share * (sigmoid(logit) - target)) as f32;
                }
            }
        }
        let share = gains[1] / overlap.len() as f64;
        for (i, &target) in overlap.iter().enumerate() {
            let at = (i / cells * per_anchor + 4) * cells + i % cells;
            total.parts[1] += share * cross_entropy(map.values[at], target);
            gradient[at] = (share * (sigmoid(map.values[at]) - target)) as f32;
        }
        total.gradients.push(gradient);
    }
    total.value = total.parts.iter().sum();
    total
}

fn answers(stride: f64, anchors: &[[f32; 2]], [h, w]: [usize; 2], boxes: &[BatchBox]) -> Vec<Answer> {
    let mut found = Vec::new();
    for b in boxes {
        let [x0, y0, x1, y1] = b.corners.map(|v| f64::from(v) / stride);
        let (x, y) = ((x0 + x1) / 2.0, (y0 + y1) / 2.0);
        let (column, row) = (cell(x, w), cell(y, h));
        let cells = [
            Some((column, row)),
            neighbour(x, column, w).map(|column| (column, row)),
            neighbour(y, row, h).map(|row| (column, row)),
        ];
        for (anchor, size) in anchors.iter().enumerate() {
            let alike = |side: f64, anchor: f32| {
                let ratio = side * stride / f64::from(anchor);
                ratio.max(1.0 / ratio) < RATIO_MAX
            };
            if alike(x1 - x0, size[0]) && alike(y1 - y0, size[1]) {
                found.extend(cells.iter().flatten().map(|&(column, row)| {
                    let (left, top) = (column as f64, row as f64);
                    let corners = [x0 - left, y0 - top, x1 - left, y1 - top];
                    let (image, class) = (b.image as usize, b.class as usize);
                    Answer { image, anchor, x: column, y: row, class, corners }
                }));
            }
        }
    }
    found
}

fn cell(at: f64, cells: usize) -> usize {
    (at.max(0.0) as usize).min(cells - 1)
}

/// The cell on the side of its own on which the middle lies, if there is one.
fn neighbour(at: f64, own: usize, cells: usize) -> Option<usize> {
    let within = at - own as f64;
    if within < 0.5 {
        own.checked_sub(1)
    } else if within > 0.5 {
        Some(own + 1).filter(|&next| next < cells)
    } else {
        None
    }
}
