//! Boxes beside the pixels of an [`ImageSet`], and what augmentation does to both: mosaics, shifts, mirror images, colours.

use crate::ImageSet;
use crate::error::{Error, Result};
use crate::loader::{below, chance};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

/// An object in the pixels of an image of a set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Label {
    pub class: u32,
    /// Left, top, right, bottom.
    pub corners: [f32; 4],
    pub area: f64,
    pub crowd: bool,
    pub ignored: bool,
}

/// The objects of all images of a set, side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct BoxColumn {
    pub labels: Vec<Label>,
    /// Where the objects of each image begin, and where those of the last end.
    pub first: Vec<usize>,
    /// What happens to training images.
    pub augment: BoxAugment,
}

/// An object that a network may learn from, of an image of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchBox {
    /// Place in the batch.
    pub image: u32,
    pub class: u32,
    /// Left, top, right, bottom in pixels of the batch.
    pub corners: [f32; 4],
}

/// Random changes of a training image and its boxes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoxAugment {
    /// Probability of swapping left and right.
    pub flip: f32,
    /// Probability of swapping top and bottom: good for pictures from above.
    pub flip_vertical: f32,
    /// Probability of windows of four images around a random point (Bochkovskiy et al., 2020, arXiv:2004.10934).
    pub mosaic: f32,
    /// Shift by up to this share of the size in each direction, grey where nothing is.
    pub shift: f32,
    /// Most change of hue (in turns), saturation and value (as shares).
    pub colour: [f32; 3],
}

impl BoxAugment {
    pub const NONE: BoxAugment =
        BoxAugment { flip: 0.0, flip_vertical: 0.0, mosaic: 0.0, shift: 0.0, colour: [0.0; 3] };
    /// Mirror images, small shifts and changes of colour.
    pub const MILD: BoxAugment =
        BoxAugment { flip: 0.5, flip_vertical: 0.0, mosaic: 0.0, shift: 0.1, colour: [0.015, 0.7, 0.4] };
}

/// The grey of all channels where no picture is, with which YOLO networks were trained.
pub const GREY: u8 = 114;

/// Least share of a box, and pixels of its sides, that must be left of it to count.
const VISIBLE_MIN: f32 = 0.2;
const SIDE_MIN: f32 = 2.0;

impl BoxColumn {
    pub fn new(augment: BoxAugment) -> BoxColumn {
        BoxColumn { labels: Vec::new(), first: vec![0], augment }
    }

    /// The objects of one more image.
    pub fn push(&mut self, labels: impl Iterator<Item = Label>) {
        self.labels.extend(labels);
        self.first.push(self.labels.len());
    }

    pub fn of(&self, image: usize) -> &[Label] {
        &self.labels[self.first[image]..self.first[image + 1]]
    }

    /// Of the first `n` images.
    pub fn take(&self, n: usize) -> BoxColumn {
        let first = self.first[..=n].to_vec();
        BoxColumn { labels: self.labels[..first[n]].to_vec(), first, augment: self.augment }
    }

    /// That the columns agree with each other and with the set.
    pub(crate) fn check(&self, set: &ImageSet) -> Result<()> {
        let rising = self.first.first() == Some(&0) && self.first.windows(2).all(|w| w[0] <= w[1]);
        if !rising || self.first.len() != set.len() + 1 || self.first.last() != Some(&self.labels.len()) {
            return Err(Error::argument("boxes", "the ranges of images are not those of the boxes"));
        }
        if let Some(label) = self.labels.iter().find(|label| label.class as usize >= set.classes.len()) {
            let why = format!("a box has class {}, of {}", label.class, set.classes.len());
            return Err(Error::argument("boxes", why));
        }
        let a = &self.augment;
        let shares = [a.flip, a.flip_vertical, a.mosaic, a.shift, a.colour[0], a.colour[1], a.colour[2]];
        match shares.iter().all(|share| (0.0..=1.0).contains(share)) {
            true if set.c == 3 => Ok(()),
            true => Err(Error::argument("boxes", "images have three channels")),
            false => Err(Error::argument("augment", "a probability or share lies outside 0..=1")),
        }
    }
}

/// An image on its way into a batch; its boxes say nothing of their place there.
pub(crate) struct Made {
    pub pixels: Vec<u8>,
    pub boxes: Vec<BatchBox>,
}

/// An image as it is.
pub(crate) fn plain(set: &ImageSet, column: &BoxColumn, image: usize) -> Made {
    let usable = column.of(image).iter().filter(|label| !label.crowd && !label.ignored);
    let boxes = usable.map(|l| BatchBox { image: 0, class: l.class, corners: l.corners });
    Made { pixels: set.image(image).to_vec(), boxes: boxes.collect() }
}

/// An image after random changes; `others` are the images that a mosaic may take. Draws always in the same order and number,
/// so that switching one change off leaves the others.
pub(crate) fn augmented(
    set: &ImageSet,
    column: &BoxColumn,
    image: usize,
    others: &[u32],
    rng: &mut ChaCha8Rng,
) -> Made {
    let ImageSet { h, w, .. } = *set;
    let a = &column.augment;
    let (mosaic, flip, flip_vertical) =
        (chance(rng, a.mosaic), chance(rng, a.flip), chance(rng, a.flip_vertical));
    // The middle of a mosaic, between a quarter and three quarters.
    let middle = [h / 4 + below(rng, h / 2 + 1), w / 4 + below(rng, w / 2 + 1)];
    let offset = |rng: &mut ChaCha8Rng, size: usize| {
        let most = (a.shift * size as f32) as usize;
        below(rng, 2 * most + 1) as i64 - most as i64
    };
    let shift = [offset(rng, h), offset(rng, w)];
    let gains = a.colour.map(|most| (unit(rng) * 2.0 - 1.0) * most);
    let mut made = Made { pixels: vec![GREY; h * w * 3], boxes: Vec::new() };
    if mosaic {
        for quarter in 0..4 {
            let (top, bottom) = if quarter < 2 { (0, middle[0]) } else { (middle[0], h) };
            let (left, right) = if quarter % 2 == 0 { (0, middle[1]) } else { (middle[1], w) };
            let from = if quarter == 0 { image } else { others[below(rng, others.len())] as usize };
            let inner = [below(rng, h - (bottom - top) + 1), below(rng, w - (right - left) + 1)];
            let move_by = [top as i64 - inner[0] as i64, left as i64 - inner[1] as i64];
            copy_window(set, column, from, [top, left, bottom, right], move_by, &mut made);
        }
    } else {
        copy_window(set, column, image, [0, 0, h, w], shift, &mut made);
    }
    if flip {
        for row in made.pixels.chunks_exact_mut(w * 3) {
            (0..w / 2).for_each(|x| (0..3).for_each(|c| row.swap(x * 3 + c, (w - 1 - x) * 3 + c)));
        }
        made.boxes.iter_mut().for_each(|b| {
            (b.corners[0], b.corners[2]) = (w as f32 - b.corners[2], w as f32 - b.corners[0]);
        });
    }
    if flip_vertical {
        for y in 0..h / 2 {
            let (upper, lower) = made.pixels.split_at_mut((h - 1 - y) * w * 3);
            upper[y * w * 3..][..w * 3].swap_with_slice(&mut lower[..w * 3]);
        }
        made.boxes.iter_mut().for_each(|b| {
            (b.corners[1], b.corners[3]) = (h as f32 - b.corners[3], h as f32 - b.corners[1]);
        });
    }
    if gains != [0.0; 3] {
        made.pixels.chunks_exact_mut(3).for_each(|pixel| recolour(pixel, gains));
    }
    made
}

/// Uniform in 0..1.
fn unit(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32
}

/// Fills the window (top, left, bottom, right) with an image moved down and right by `by`, and adds what is seen of its
/// boxes.
fn copy_window(
    set: &ImageSet,
    column: &BoxColumn,
    image: usize,
    [top, left, bottom, right]: [usize; 4],
    by: [i64; 2],
    made: &mut Made,
) {
    let ImageSet { h, w, .. } = *set;
    let pixels = set.image(image);
    // Columns of the window that the moved image covers.
    let clip = |at: i64| at.clamp(left as i64, right as i64) as usize;
    let (x0, x1) = (clip(by[1]), clip(by[1] + w as i64));
    for y in top..bottom {
        let from_y = y as i64 - by[0];
        if (0..h as i64).contains(&from_y) && x0 < x1 {
            let from = (from_y as usize * w + (x0 as i64 - by[1]) as usize) * 3;
            let to = (y * w + x0) * 3;
            made.pixels[to..to + (x1 - x0) * 3].copy_from_slice(&pixels[from..from + (x1 - x0) * 3]);
        }
    }
    let edges = [left, top, right, bottom].map(|v| v as f32);
    for label in plain_labels(column, image) {
        let [x0, y0, x1, y1] = label.corners;
        let (dy, dx) = (by[0] as f32, by[1] as f32);
        let seen = [
            (x0 + dx).max(edges[0]),
            (y0 + dy).max(edges[1]),
            (x1 + dx).min(edges[2]),
            (y1 + dy).min(edges[3]),
        ];
        let (width, height) = (seen[2] - seen[0], seen[3] - seen[1]);
        let visible = width.min(height) >= SIDE_MIN && width * height >= VISIBLE_MIN * (x1 - x0) * (y1 - y0);
        if visible {
            made.boxes.push(BatchBox { image: 0, class: label.class, corners: seen });
        }
    }
}

fn plain_labels(column: &BoxColumn, image: usize) -> impl Iterator<Item = &Label> {
    column.of(image).iter().filter(|label| !label.crowd && !label.ignored)
}

/// Turns the hue and stretches saturation and value of a pixel (Smith, 1978, "Color gamut transform pairs").
fn recolour(pixel: &mut [u8], [hue, saturation, value]: [f32; 3]) {
    let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(f32::from);
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    let chroma = most - least;
    let sector = match chroma {
        0.0 => 0.0,
        _ if most == r => ((g - b) / chroma).rem_euclid(6.0),
        _ if most == g => (b - r) / chroma + 2.0,
        _ => (r - g) / chroma + 4.0,
    };
    let sector = (sector + 6.0 * hue).rem_euclid(6.0);
    let most_then = (most * (1.0 + value)).clamp(0.0, 255.0);
    let share = if most > 0.0 { (chroma / most * (1.0 + saturation)).clamp(0.0, 1.0) } else { 0.0 };
    // One channel after the other: how far it is from the brightest, which turns with the hue.
    for (channel, turn) in pixel.iter_mut().zip([5.0, 3.0, 1.0]) {
        let k = (turn + sector).rem_euclid(6.0);
        let off = k.min(4.0 - k).clamp(0.0, 1.0);
        *channel = (most_then * (1.0 - share * off) + 0.5) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::{Augment, BatchSpec, Batches};

    /// *Synthetic* images: grey, each object a filled rectangle of its own bright colour.
    fn set(n: usize, augment: BoxAugment) -> ImageSet {
        let (h, w) = (40, 48);
        let mut column = BoxColumn::new(augment);
        let mut images = Vec::new();
        for i in 0..n {
            let mut image = vec![GREY; h * w * 3];
            let (x, y) = (4 + i % 7 * 3, 5 + i % 5 * 4);
            let corners = [x as f32, y as f32, (x + 16) as f32, (y + 12) as f32];
            for py in y..y + 12 {
                for px in x..x + 16 {
                    image[(py * w + px) * 3..][..3].copy_from_slice(&[250, (20 + i) as u8, 10]);
                }
            }
            images.extend(image);
            let label = Label { class: (i % 2) as u32, corners, area: 192.0, crowd: false, ignored: false };
            let crowd = Label { crowd: true, ..label };
            column.push([label, crowd].into_iter());
        }
        let classes = ["even", "odd"].map(str::to_owned).to_vec();
        let (mean, std) = (vec![0.0; 3], vec![1.0; 3]);
        ImageSet {
            images,
            labels: vec![0; n],
            h,
            w,
            c: 3,
            classes,
            mean,
            std,
            mirror: true,
            boxes: Some(column),
        }
    }

    fn train(seed: u64, epoch: u64) -> BatchSpec {
        BatchSpec::train(4, seed, epoch, Augment::SMALL)
    }

    /// Whatever happens to an image, red is where a box is and nowhere else.
    fn boxes_lie_on_red(augment: BoxAugment) -> usize {
        let set = set(9, augment);
        let mut seen = 0;
        for epoch in 0..20 {
            for batch in Batches::new(&set, train(3, epoch)).unwrap() {
                let [n, c, h, w] = batch.dims;
                for image in 0..n {
                    let red = |y: usize, x: usize| {
                        let at = |ch: usize| batch.x[((image * c + ch) * h + y) * w + x];
                        at(0) > 0.6 && at(1) < 0.4
                    };
                    let mut covered = vec![false; h * w];
                    for b in batch.boxes.iter().filter(|b| b.image as usize == image) {
                        let [x0, y0, x1, y1] = b.corners.map(|v| v as usize);
                        assert!(x1 <= w && y1 <= h && x0 < x1 && y0 < y1, "{b:?}");
                        for y in y0..y1 {
                            for x in x0..x1 {
                                assert!(red(y, x), "{b:?} at {y}, {x}");
                                covered[y * w + x] = true;
                            }
                        }
                        seen += 1;
                    }
                    let loose = (0..h * w).filter(|&i| red(i / w, i % w) && !covered[i]).count();
                    // Slivers of objects that a window leaves out have no box.
                    assert!(loose <= 4 * 40, "{loose} red pixels are in no box");
                }
            }
        }
        seen
    }

    #[test]
    fn boxes_go_where_their_objects_go() {
        let none = BoxAugment::NONE;
        assert_eq!(boxes_lie_on_red(none), 20 * 8);
        assert_eq!(boxes_lie_on_red(BoxAugment { flip: 0.5, ..none }), 20 * 8);
        assert_eq!(boxes_lie_on_red(BoxAugment { flip_vertical: 0.5, shift: 0.0, ..none }), 20 * 8);
        assert!(boxes_lie_on_red(BoxAugment { flip: 0.5, flip_vertical: 0.5, shift: 0.3, ..none }) > 100);
        assert!(boxes_lie_on_red(BoxAugment { mosaic: 1.0, ..none }) > 200);
        // A little colour leaves red red.
        assert_eq!(boxes_lie_on_red(BoxAugment { flip: 0.5, colour: [0.02, 0.2, 0.2], ..none }), 20 * 8);
    }

    #[test]
    fn batches_follow_from_seed_epoch_and_position() {
        let all = BoxAugment { flip_vertical: 0.5, mosaic: 0.5, ..BoxAugment::MILD };
        let set = set(9, all);
        let batch = |seed, epoch, at| Batches::new(&set, train(seed, epoch)).unwrap().nth(at).unwrap();
        assert_eq!(batch(1, 2, 1), Batches::new(&set, train(1, 2)).unwrap().last().unwrap());
        assert_ne!(batch(1, 2, 1), batch(1, 3, 1));
        assert_ne!(batch(1, 2, 1), batch(2, 2, 1));
        let plain = Batches::new(&set, BatchSpec::eval(4)).unwrap().next().unwrap();
        assert_eq!(plain.boxes.len(), 4, "crowds are no examples");
        assert_eq!(plain.boxes[2].corners, [10.0, 13.0, 26.0, 25.0]);
        assert_eq!((plain.boxes[1].image, plain.boxes[1].class), (1, 1));
        assert_eq!(set.take(3).boxes.unwrap().labels.len(), 6);
    }

    #[test]
    fn colours_turn_as_they_should() {
        let turned = |rgb: [u8; 3], gains| {
            let mut pixel = rgb;
            recolour(&mut pixel, gains);
            pixel
        };
        for rgb in [[0, 0, 0], [255, 255, 255], [10, 200, 30], [250, 20, 10], [3, 3, 90], [7, 9, 8]] {
            assert_eq!(turned(rgb, [0.0; 3]), rgb);
        }
        assert_eq!(turned([200, 0, 0], [1.0 / 3.0, 0.0, 0.0]), [0, 200, 0]);
        assert_eq!(turned([200, 0, 0], [-1.0 / 3.0, 0.0, 0.0]), [0, 0, 200]);
        assert_eq!(turned([200, 100, 100], [0.0, -1.0, 0.0]), [200, 200, 200]);
        assert_eq!(turned([100, 50, 50], [0.0, 0.0, 0.5]), [150, 75, 75]);
    }

    #[test]
    fn columns_that_do_not_agree_are_refused() {
        let good = set(4, BoxAugment::NONE);
        good.check().unwrap();
        let with = |change: fn(&mut BoxColumn)| {
            let mut bad = good.clone();
            change(bad.boxes.as_mut().unwrap());
            bad.check().unwrap_err().to_string()
        };
        assert!(with(|b| b.first[2] = 1).contains("ranges"));
        assert!(with(|b| b.labels.truncate(3)).contains("ranges"));
        assert!(with(|b| b.labels[0].class = 2).contains("class 2"));
        assert!(with(|b| b.augment.flip = 1.5).contains("0..=1"));
    }
}
