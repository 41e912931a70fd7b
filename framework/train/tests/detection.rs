//! The losses of detectors: their derivatives are those that burn finds for the same formulas written as tensor ops, which
//! also give the values; what answers for a box is counted out another way.

use burn::tensor::{Device, Tensor, TensorData, activation};
use lacuna_data::boxes::BatchBox;
use lacuna_nn::BoxHead;
use lacuna_train::detection::{Map, complete_iou, loss, on_maps};

/// Reproducible values in -1..1.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn many(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| 2.0 * self.next()).collect()
    }
}

const IMAGES: usize = 2;
const SIZE: [usize; 2] = [64, 96];

/// Maps of a head for [`IMAGES`] images of [`SIZE`].
fn maps(strides: &[usize], channels: usize, seed: u64) -> Vec<([usize; 4], Vec<f32>)> {
    let mut r = Numbers(seed);
    let map = |&s: &usize| {
        let dims = [IMAGES, channels, SIZE[0] / s, SIZE[1] / s];
        (dims, r.many(dims.iter().product()))
    };
    strides.iter().map(map).collect()
}

fn boxes(classes: u32, n: usize, seed: u64) -> Vec<BatchBox> {
    let mut r = Numbers(seed);
    let one = |i: usize| {
        let (x, y) = (48.0 + 44.0 * r.next(), 32.0 + 28.0 * r.next());
        let (w, h) = (14.0 + 10.0 * r.next(), 14.0 + 10.0 * r.next());
        let corners = [(x - w).max(0.0), (y - h).max(0.0), (x + w).min(96.0), (y + h).min(64.0)];
        BatchBox { image: (i % IMAGES) as u32, class: i as u32 * 5 % classes, corners }
    };
    let mut all: Vec<BatchBox> = (0..n).map(one).collect();
    all.sort_by_key(|b| b.image);
    all
}

fn views(maps: &[([usize; 4], Vec<f32>)]) -> Vec<Map<'_>> {
    maps.iter().map(|(dims, values)| Map { dims: *dims, values }).collect()
}

fn tensors(maps: &[([usize; 4], Vec<f32>)]) -> Vec<Tensor<4>> {
    let device = Device::flex().autodiff();
    let tensor = |(dims, values): &([usize; 4], Vec<f32>)| {
        Tensor::<4>::from_data(TensorData::new(values.clone(), *dims), &device).require_grad()
    };
    maps.iter().map(tensor).collect()
}

/// The values of one cell's channels, as a tensor [channels].
fn at(map: &Tensor<4>, image: usize, channels: std::ops::Range<usize>, y: usize, x: usize) -> Tensor<1> {
    let n = channels.len();
    map.clone().slice([image..image + 1, channels, y..y + 1, x..x + 1]).reshape([n])
}

fn pick(x: &Tensor<1>, i: usize) -> Tensor<1> {
    x.clone().narrow(0, i, 1)
}

/// Complete IoU of middle and size with a box, as tensor ops.
fn ciou(b: [Tensor<1>; 4], truth: [f32; 4]) -> Tensor<1> {
    let [x, y, w, h] = b;
    let (x0, x1) = (x.clone() - w.clone() / 2.0, x.clone() + w.clone() / 2.0);
    let (y0, y1) = (y.clone() - h.clone() / 2.0, y.clone() + h.clone() / 2.0);
    let [tx0, ty0, tx1, ty1] = truth;
    let (tw, th) = (tx1 - tx0, ty1 - ty0);
    let iw = (x1.clone().clamp_max(tx1) - x0.clone().clamp_min(tx0)).clamp_min(0.0);
    let ih = (y1.clone().clamp_max(ty1) - y0.clone().clamp_min(ty0)).clamp_min(0.0);
    let common = iw * ih;
    let iou = common.clone() / (w.clone() * h.clone() + tw * th - common);
    let cw = x1.clamp_min(tx1) - x0.clamp_max(tx0);
    let ch = y1.clamp_min(ty1) - y0.clamp_max(ty0);
    let off = (x - (tx0 + tx1) / 2.0).powi_scalar(2) + (y - (ty0 + ty1) / 2.0).powi_scalar(2);
    let aspect =
        ((w / h).atan() * -1.0 + (tw / th).atan()).powi_scalar(2) * (4.0 / std::f64::consts::PI.powi(2));
    let v: f32 = aspect.clone().into_scalar();
    let i: f32 = iou.clone().into_scalar();
    let weight = v / (v - i + 1.0);
    iou - off / (cw.powi_scalar(2) + ch.powi_scalar(2)) - aspect * weight
}

fn bce(logits: Tensor<1>, target: f32) -> Tensor<1> {
    // x max(0) - x t + ln(1 + e^-|x|)
    logits.clone().clamp_min(0.0) - logits.clone() * target + ((logits.abs() * -1.0).exp() + 1.0).log()
}

fn close(what: &str, have: f64, want: f64, scale: f64) {
    assert!((have - want).abs() <= 2e-4 * scale.max(want.abs()), "{what}: {have}, not {want}");
}

/// The loss and every derivative against what burn says.
fn compare(
    head: &BoxHead,
    maps: &[([usize; 4], Vec<f32>)],
    boxes: &[BatchBox],
    want: Tensor<1>,
    leaves: &[Tensor<4>],
) {
    let have = loss(head, &views(maps), boxes);
    let value: f32 = want.clone().into_scalar();
    close("value", have.value, f64::from(value), 1e-3);
    let gradients = want.backward();
    for (level, (leaf, own)) in leaves.iter().zip(&have.gradients).enumerate() {
        let theirs: Vec<f32> = leaf.grad(&gradients).unwrap().into_data().try_into_vec().unwrap();
        let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(largest > 0.0);
        for (i, (a, b)) in own.iter().zip(&theirs).enumerate() {
            close(&format!("map {level}, element {i}"), f64::from(*a), f64::from(*b), f64::from(largest));
        }
    }
    // As a tensor it has the same value and gives the same derivatives.
    let own = tensors(maps);
    let tensor = on_maps(head, own.clone(), boxes);
    close("tensor", f64::from(tensor.clone().into_scalar::<f32>()), have.value, 1e-3);
    let gradients = tensor.backward();
    for (leaf, wanted) in own.iter().zip(&have.gradients) {
        let given: Vec<f32> = leaf.grad(&gradients).unwrap().into_data().try_into_vec().unwrap();
        assert_eq!(&given, wanted);
    }
}

#[test]
fn complete_iou_has_known_values() {
    let same = complete_iou([1.0, 2.0, 5.0, 9.0], [1.0, 2.0, 5.0, 9.0]).0;
    assert!((same - 1.0).abs() < 1e-6);
    // Side by side: no overlap, a third of the diagonal's square away, alike in shape.
    let beside = complete_iou([0.0, 0.0, 2.0, 2.0], [4.0, 0.0, 6.0, 2.0]).0;
    assert!((beside + 16.0 / 40.0).abs() < 1e-6, "{beside}");
    // Crossed around one middle: a third, less the difference of shapes.
    let turn = (0.5f64.atan() - 2f64.atan()).powi(2) * 4.0 / std::f64::consts::PI.powi(2);
    let tall = complete_iou([-1.0, -2.0, 1.0, 2.0], [-2.0, -1.0, 2.0, 1.0]).0;
    let want = 1.0 / 3.0 - turn * turn / (turn - 1.0 / 3.0 + 1.0);
    assert!((tall - want).abs() < 1e-5, "{tall}, not {want}");
}

#[test]
fn the_loss_of_anchors() {
    let strides = vec![8, 16];
    let anchors = vec![vec![[10.0, 13.0], [30.0, 12.0]], vec![[25.0, 40.0], [60.0, 20.0]]];
    for (classes, n) in [(3usize, 6), (1, 6), (3, 0)] {
        let head = BoxHead::Anchors { strides: strides.clone(), anchors: anchors.clone() };
        let maps = maps(&strides, head.channels(classes), 3);
        let boxes = boxes(classes as u32, n, 17);
        let leaves = tensors(&maps);
        let mut total: Option<Tensor<1>> = None;
        let mut answering = 0;
        for (level, map) in leaves.iter().enumerate() {
            let [_, _, h, w] = map.dims();
            let s = strides[level] as f32;
            let (mut box_terms, mut class_terms) = (Vec::new(), Vec::new());
            let mut overlap = vec![0f32; IMAGES * 2 * h * w];
            // Every cell and anchor of every box is asked whether it answers.
            for b in &boxes {
                let t = b.corners.map(|v| v / s);
                let (tx, ty) = ((t[0] + t[2]) / 2.0, (t[1] + t[3]) / 2.0);
                for (a, anchor) in anchors[level].iter().enumerate() {
                    let ratios = [(t[2] - t[0]) * s / anchor[0], (t[3] - t[1]) * s / anchor[1]];
                    if ratios.iter().any(|r| *r >= 4.0 || *r <= 0.25) {
                        continue;
                    }
                    for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                        let (off_x, off_y) = (tx - x as f32 - 0.5, ty - y as f32 - 0.5);
                        let (own_x, own_y) = (off_x.abs() <= 0.5, off_y.abs() <= 0.5);
                        let beside = (own_y && off_x.abs() < 1.0) || (own_x && off_y.abs() < 1.0);
                        if !beside {
                            continue;
                        }
                        answering += 1;
                        let first = a * (5 + classes);
                        let raw = at(map, b.image as usize, first..first + 5 + classes, y, x);
                        let p = activation::sigmoid(raw.clone());
                        let found = [
                            pick(&p, 0) * 2.0 - 0.5 + x as f32,
                            pick(&p, 1) * 2.0 - 0.5 + y as f32,
                            (pick(&p, 2) * 2.0).powi_scalar(2) * (anchor[0] / s),
                            (pick(&p, 3) * 2.0).powi_scalar(2) * (anchor[1] / s),
                        ];
                        let iou = ciou(found, t);
                        let place = &mut overlap[((b.image as usize * 2 + a) * h + y) * w + x];
                        *place = place.max(iou.clone().into_scalar::<f32>());
                        box_terms.push(iou * -1.0 + 1.0);
                        for class in 0..classes {
                            let target = f32::from(u8::from(class as u32 == b.class));
                            class_terms.push(bce(pick(&raw, 5 + class), target));
                        }
                    }
                }
            }
            let mean = |terms: Vec<Tensor<1>>| Tensor::cat(terms, 0).mean();
            let side = 96.0 / 640.0;
            let mut objects = Vec::new();
            for (i, target) in overlap.iter().enumerate() {
                let (image, a, y, x) = (i / (2 * h * w), i / (h * w) % 2, i / w % h, i % w);
                let channel = a * (5 + classes) + 4;
                objects.push(bce(at(map, image, channel..channel + 1, y, x), *target));
            }
            let balance = [4.0, 1.0][level];
            let mut sum = mean(objects) * (1.5 * side * side * balance);
            if !box_terms.is_empty() {
                sum = sum + mean(box_terms) * (0.05 * 1.5);
                if classes > 1 {
                    sum = sum + mean(class_terms) * (0.5 * 1.5 * classes as f32 / 80.0);
                }
            }
            let sum = sum * IMAGES as f32;
            total = Some(match total {
                Some(total) => total + sum,
                None => sum,
            });
        }
        assert!(n == 0 || answering > 20, "{answering}");
        compare(&head, &maps, &boxes, total.unwrap(), &leaves);
    }
}

#[test]
fn the_loss_of_distances() {
    let (strides, bins) = (vec![8, 16], 5usize);
    for (classes, n) in [(3usize, 7), (1, 4), (3, 0)] {
        let head = BoxHead::Distances { strides: strides.clone(), bins, masks: 0 };
        let maps = maps(&strides, head.channels(classes), 5);
        let boxes = boxes(classes as u32, n, 29);
        let leaves = tensors(&maps);
        // Level, y, x of every cell.
        let mut cells = Vec::new();
        for (level, map) in leaves.iter().enumerate() {
            let [_, _, h, w] = map.dims();
            cells.extend((0..h).flat_map(|y| (0..w).map(move |x| (level, y, x))));
        }
        let middle = |&(level, y, x): &(usize, usize, usize)| {
            let s = strides[level] as f32;
            [(x as f32 + 0.5) * s, (y as f32 + 0.5) * s]
        };
        let raw = |image: usize, cell: &(usize, usize, usize)| {
            at(&leaves[cell.0], image, 0..4 * bins + classes, cell.1, cell.2)
        };
        let distances = |raw: &Tensor<1>| -> [Tensor<1>; 4] {
            std::array::from_fn(|side| {
                let shares = activation::softmax(raw.clone().narrow(0, side * bins, bins), 0);
                let counts: Vec<f32> = (0..bins).map(|b| b as f32).collect();
                let counts = Tensor::<1>::from_data(TensorData::new(counts, [bins]), &raw.device());
                (shares * counts).sum()
            })
        };
        let overlap = |raw: &Tensor<1>, cell: &(usize, usize, usize), truth: [f32; 4]| {
            let s = strides[cell.0] as f32;
            let [cx, cy] = middle(cell);
            let [l, t, r, b] = distances(raw);
            let x = (r.clone() - l.clone()) * (s / 2.0) + cx;
            let y = (b.clone() - t.clone()) * (s / 2.0) + cy;
            ciou([x, y, (r + l) * s, (b + t) * s], truth)
        };
        // Tables over cells and boxes: metric and overlap, -1 where the cell lies outside of the box.
        let mut metric = vec![vec![-1f32; boxes.len()]; cells.len()];
        let mut overlaps = metric.clone();
        for (j, b) in boxes.iter().enumerate() {
            for (i, cell) in cells.iter().enumerate() {
                let [x, y] = middle(cell);
                if x > b.corners[0] && x < b.corners[2] && y > b.corners[1] && y < b.corners[3] {
                    let raw = raw(b.image as usize, cell);
                    let o = overlap(&raw, cell, b.corners).into_scalar::<f32>().max(0.0);
                    let score: f32 =
                        activation::sigmoid(pick(&raw, 4 * bins + b.class as usize)).into_scalar();
                    (overlaps[i][j], metric[i][j]) = (o, score.sqrt() * o.powi(6));
                }
            }
        }
        // Cells that a box chose: fewer than ten cells in it are better.
        let better = |i: usize, j: usize| {
            (0..cells.len())
                .filter(|&k| metric[k][j] > metric[i][j] || (metric[k][j] == metric[i][j] && k < i))
                .count()
        };
        let mut of = vec![[None; IMAGES]; cells.len()];
        for i in 0..cells.len() {
            for image in 0..IMAGES {
                let here = |j: &usize| boxes[*j].image as usize == image && metric[i][*j] >= 0.0;
                let choosing: Vec<usize> =
                    (0..boxes.len()).filter(here).filter(|&j| better(i, j) < 10).collect();
                of[i][image] = match choosing.as_slice() {
                    [] => None,
                    [one] => Some(*one),
                    _ => (0..boxes.len())
                        .filter(here)
                        .max_by(|&a, &b| overlaps[i][a].total_cmp(&overlaps[i][b])),
                };
            }
        }
        let most = |table: &Vec<Vec<f32>>, j: usize| {
            (0..cells.len()).filter(|&i| of[i].contains(&Some(j))).map(|i| table[i][j]).fold(0f32, f32::max)
        };
        let target = |i: usize, image: usize| {
            of[i][image].map(|j: usize| (j, metric[i][j] * most(&overlaps, j) / (most(&metric, j) + 1e-9)))
        };
        let mut sum = 0f32;
        let mut terms: Vec<Tensor<1>> = Vec::new();
        for image in 0..IMAGES {
            for (i, cell) in cells.iter().enumerate() {
                let raw = raw(image, cell);
                let target = target(i, image);
                for class in 0..classes {
                    let t = target.filter(|(j, _)| boxes[*j].class as usize == class).map_or(0.0, |(_, t)| t);
                    terms.push(bce(pick(&raw, 4 * bins + class), t) * 0.5);
                }
                let Some((j, score)) = target else { continue };
                sum += score;
                let b = &boxes[j];
                terms.push((overlap(&raw, cell, b.corners) * -1.0 + 1.0) * (7.5 * score));
                let s = strides[cell.0] as f32;
                let [cx, cy] = middle(cell);
                let sides = [cx - b.corners[0], cy - b.corners[1], b.corners[2] - cx, b.corners[3] - cy];
                for (side, distance) in sides.iter().enumerate() {
                    let d = (distance / s).clamp(0.0, bins as f32 - 1.01);
                    let low = d.floor();
                    let shares = activation::log_softmax(raw.clone().narrow(0, side * bins, bins), 0);
                    let wanted = pick(&shares, low as usize) * (low + 1.0 - d)
                        + pick(&shares, low as usize + 1) * (d - low);
                    terms.push(wanted * (-1.5 * score / 4.0));
                }
            }
        }
        let total = Tensor::cat(terms, 0).sum() * (IMAGES as f32 / sum.max(1.0));
        assert!(n == 0 || of.iter().flatten().flatten().count() > 15);
        compare(&head, &maps, &boxes, total, &leaves);
    }
}
