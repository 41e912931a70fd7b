//! Batches: shuffled, augmented, normalised, and ready one thread ahead of the trainer.
//!
//! Everything random is a pure function of numbers, never of time or threads: the order of an epoch
//! of (seed, epoch), what happens to an image of (seed, epoch, index of the image). So batch `k` of
//! epoch `e` can be made without making the ones before it, and a run resumed in the middle of an
//! epoch sees the same bytes as one that was never stopped.

use crate::boxes::{self, BatchBox};
use crate::error::{Error, Result};
use crate::{ImageSet, SetRef, TextSet};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

/// Batches that wait ready in a [`Prefetch`]; one more is being filled and one is being used.
const READY_MAX: usize = 3;
/// Sequences of a batch are as long as its longest, rounded up to a multiple of this: sizes come again.
const LENGTH_STEP: usize = 8;
/// Training batches whose sequences are sorted by length together, so that those of a batch are about as long.
const SORTED_BATCHES: usize = 32;
/// `u32::MAX` in a row or column map: outside the image, so a zero pixel.
const OUTSIDE: u32 = u32::MAX;

/// What lies outside the image after a shift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pad {
    /// Pixel value 0, before normalisation.
    Zero,
    /// Mirrored about the border pixel, which is not repeated.
    Reflect,
}

/// Random changes of a training image. [`Augment::NONE`] leaves it alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augment {
    /// Probability of a mirror image, left and right swapped.
    pub flip: f32,
    /// Shift by up to so many pixels in each direction ("pad and crop").
    pub shift: usize,
    pub pad: Pad,
    /// Probability of a cutout (DeVries and Taylor 2017, arXiv:1708.04552).
    pub cutout: f32,
    /// Side in pixels of the square that is set to the mean; its centre is anywhere in the image.
    pub cutout_side: usize,
}

impl Augment {
    pub const NONE: Augment = Augment { flip: 0.0, shift: 0, pad: Pad::Zero, cutout: 0.0, cutout_side: 0 };
    /// Mirror and pad-2 crop, for 28 to 32 pixel images.
    pub const SMALL: Augment = Augment { flip: 0.5, shift: 2, ..Augment::NONE };
}

/// Which batches to make of a set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchSpec {
    /// Images or texts in a batch.
    pub batch: usize,
    pub seed: u64,
    pub epoch: u64,
    pub shuffle: bool,
    pub augment: Augment,
    /// Leave out the last batch where it would be smaller.
    pub drop_last: bool,
    /// Use only the first so many images or texts of the set.
    pub max_images: Option<usize>,
}

impl BatchSpec {
    /// Shuffled, augmented, whole batches only.
    pub fn train(batch: usize, seed: u64, epoch: u64, augment: Augment) -> Self {
        BatchSpec { batch, seed, epoch, shuffle: true, augment, drop_last: true, max_images: None }
    }

    /// In the order of the set (texts from short to long), unchanged, every one once.
    pub fn eval(batch: usize) -> Self {
        let augment = Augment::NONE;
        BatchSpec { batch, seed: 0, epoch: 0, shuffle: false, augment, drop_last: false, max_images: None }
    }

    fn check(&self, set: SetRef<'_>) -> Result<()> {
        set.check()?;
        let a = &self.augment;
        if self.batch == 0 {
            return Err(Error::argument("batch", "must be at least 1"));
        }
        if set.is_empty() || self.max_images == Some(0) {
            return Err(Error::argument("data", "there is nothing to make batches of"));
        }
        if !(0.0..=1.0).contains(&a.flip) || !(0.0..=1.0).contains(&a.cutout) {
            return Err(Error::argument("augment", "a probability lies outside 0..=1"));
        }
        if u32::try_from(set.len()).is_err() {
            return Err(Error::argument("data", "more than 2^32 images or texts"));
        }
        if let SetRef::Images(&ImageSet { h, w, .. }) = set {
            if u32::try_from(h.max(w)).is_err() {
                return Err(Error::argument("images", "more than 2^32 pixels a side"));
            }
            if a.shift >= h.min(w) || a.cutout_side > 2 * h.max(w) {
                return Err(Error::argument(
                    "augment",
                    format!("shift or cutout is too large for {h}x{w} images"),
                ));
            }
        }
        if self.drop_last && self.count(set) < self.batch {
            let (n, b) = (self.count(set), self.batch);
            return Err(Error::argument("batch", format!("{n} fill no batch of {b}; use a smaller batch")));
        }
        Ok(())
    }

    /// Images or texts of an epoch.
    fn count(&self, set: SetRef<'_>) -> usize {
        self.max_images.map_or(set.len(), |max| max.min(set.len()))
    }

    /// Number of batches in an epoch of `set`; 0 for a batch size of 0.
    pub fn batches<'a>(&self, set: impl Into<SetRef<'a>>) -> usize {
        let n = self.count(set.into());
        match self.batch {
            0 => 0,
            b if self.drop_last => n / b,
            b => n.div_ceil(b),
        }
    }
}

/// `n` images or texts and their labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// `[n, c, h, w]`, row-major: `(pixel / 255 - mean) / std`.
    pub x: Vec<f32>,
    /// Class indices.
    pub y: Vec<i64>,
    /// Of sets for detectors: the objects that a network may learn from, in the order of the images.
    pub boxes: Vec<BatchBox>,
    /// Sizes of `x`: n, c, h, w.
    pub dims: [usize; 4],
    /// Of texts, which have no `x`.
    pub tokens: Option<TokenBatch>,
    /// Position in the epoch, from 0.
    pub index: usize,
}

/// Sequences of tokens, filled up to one length.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenBatch {
    /// `[n, tokens]`
    pub ids: Vec<i64>,
    /// `[n, tokens]`: 1 where a token is, 0 where a sequence was filled up.
    pub mask: Vec<f32>,
    /// n, tokens.
    pub dims: [usize; 2],
}

/// The batches of one epoch. `skip(k)` costs nothing: skipped batches are never made.
pub struct Batches<'a> {
    set: SetRef<'a>,
    spec: BatchSpec,
    order: Vec<u32>,
    /// Of images: normalised value of each byte, 256 for each channel.
    table: Vec<f32>,
    next: usize,
}

impl<'a> Batches<'a> {
    pub fn new(set: impl Into<SetRef<'a>>, spec: BatchSpec) -> Result<Self> {
        let set = set.into();
        spec.check(set)?;
        let n = u32::try_from(spec.count(set)).unwrap_or(u32::MAX);
        let mut order: Vec<u32> = (0..n).collect();
        if spec.shuffle {
            shuffle(&mut order, &mut rng(b"order", spec.seed, spec.epoch, 0));
        }
        let mut table = Vec::new();
        match set {
            SetRef::Images(set) => {
                let values = |c: usize| (0..256).map(move |v| (v as f32 / 255.0 - set.mean[c]) / set.std[c]);
                table.extend((0..set.c).flat_map(values));
            }
            SetRef::Texts(set) => order = by_length(set, &spec, order),
        }
        Ok(Batches { set, spec, order, table, next: 0 })
    }

    /// Fills `batch`, whose memory is reused; false at the end of the epoch.
    pub fn fill(&mut self, batch: &mut Batch) -> bool {
        if self.next >= self.spec.batches(self.set) {
            return false;
        }
        let start = self.next * self.spec.batch;
        let indices = &self.order[start..(start + self.spec.batch).min(self.order.len())];
        batch.index = self.next;
        batch.y.clear();
        batch.boxes.clear();
        match self.set {
            SetRef::Images(set) => self.fill_images(set, indices, batch),
            SetRef::Texts(set) => fill_tokens(set, indices, batch),
        }
        self.next += 1;
        true
    }

    fn fill_images(&self, set: &ImageSet, indices: &[u32], batch: &mut Batch) {
        let ImageSet { h, w, c, .. } = *set;
        batch.dims = [indices.len(), c, h, w];
        batch.x.resize(indices.len() * c * h * w, 0.0);
        if let Some(column) = &set.boxes {
            for ((n, &i), out) in (0..).zip(indices).zip(batch.x.chunks_exact_mut(c * h * w)) {
                batch.y.push(i64::from(set.labels[i as usize]));
                let mut made = match self.spec.augment == Augment::NONE {
                    true => boxes::plain(set, column, i as usize),
                    false => {
                        let mut rng = rng(b"augment", self.spec.seed, self.spec.epoch, u64::from(i));
                        boxes::augmented(set, column, i as usize, &self.order, &mut rng)
                    }
                };
                to_planes(&made.pixels, c, &self.table, out);
                batch.boxes.extend(made.boxes.drain(..).map(|b| BatchBox { image: n, ..b }));
            }
            return;
        }
        let (mut rows, mut cols) = (vec![0; h], vec![0; w]);
        for (&i, out) in indices.iter().zip(batch.x.chunks_exact_mut(c * h * w)) {
            batch.y.push(i64::from(set.labels[i as usize]));
            let change = Change::draw(&self.spec, h, w, i);
            change.maps(self.spec.augment.pad, &mut rows, &mut cols);
            render(set.image(i as usize), c, &rows, &cols, &self.table, out);
            cut_out(out, h, w, self.spec.augment.cutout_side, change.cutout);
        }
    }
}

/// An order in which sequences of a batch are about as long. For training, batches come in random order.
fn by_length(set: &TextSet, spec: &BatchSpec, mut order: Vec<u32>) -> Vec<u32> {
    let length = |&i: &u32| set.sequence(i as usize).len();
    if !spec.shuffle {
        order.sort_by_key(length);
        return order;
    }
    for part in order.chunks_mut(spec.batch * SORTED_BATCHES) {
        part.sort_by_key(length);
    }
    let whole = order.len() / spec.batch;
    let mut places: Vec<u32> = (0..whole as u32).collect();
    shuffle(&mut places, &mut rng(b"batches", spec.seed, spec.epoch, 0));
    let rest = order[whole * spec.batch..].iter();
    let batches = places.iter().flat_map(|&b| &order[b as usize * spec.batch..][..spec.batch]);
    batches.chain(rest).copied().collect()
}

fn fill_tokens(set: &TextSet, indices: &[u32], batch: &mut Batch) {
    let longest = indices.iter().map(|&i| set.sequence(i as usize).len()).max().unwrap_or(0);
    let length = longest.next_multiple_of(LENGTH_STEP);
    let tokens = batch.tokens.get_or_insert_default();
    tokens.dims = [indices.len(), length];
    tokens.ids.clear();
    tokens.mask.clear();
    for &i in indices {
        let sequence = set.sequence(i as usize);
        batch.y.push(i64::from(set.labels[i as usize]));
        tokens.ids.extend(sequence.iter().map(|&id| i64::from(id)));
        tokens.mask.extend(sequence.iter().map(|_| 1.0));
        let end = batch.y.len() * length;
        tokens.ids.resize(end, i64::from(set.filler));
        tokens.mask.resize(end, 0.0);
    }
}

impl Iterator for Batches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        self.fill(&mut batch).then_some(batch)
    }

    fn nth(&mut self, n: usize) -> Option<Batch> {
        self.next = self.next.saturating_add(n);
        self.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.spec.batches(self.set).saturating_sub(self.next);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Batches<'_> {}

/// What happens to one image.
#[derive(Debug, PartialEq)]
struct Change {
    flip: bool,
    /// Pixels by which the window moves down and right, negative for up and left.
    dy: i64,
    dx: i64,
    /// Centre (y, x) of the cutout.
    cutout: Option<(usize, usize)>,
}

impl Change {
    /// Draws always in the same order and number, so that switching one change off leaves the others.
    fn draw(spec: &BatchSpec, h: usize, w: usize, image: u32) -> Change {
        let a = &spec.augment;
        if *a == Augment::NONE {
            return Change { flip: false, dy: 0, dx: 0, cutout: None };
        }
        let mut rng = rng(b"augment", spec.seed, spec.epoch, u64::from(image));
        let span = 2 * a.shift + 1;
        let flip = chance(&mut rng, a.flip);
        let dy = below(&mut rng, span) as i64 - a.shift as i64;
        let dx = below(&mut rng, span) as i64 - a.shift as i64;
        let cut = chance(&mut rng, a.cutout);
        let centre = (below(&mut rng, h), below(&mut rng, w));
        Change { flip, dy, dx, cutout: cut.then_some(centre) }
    }

    /// For each row and column of the result, the one of the image it is taken from.
    fn maps(&self, pad: Pad, rows: &mut [u32], cols: &mut [u32]) {
        let (h, w) = (rows.len(), cols.len());
        for (y, row) in rows.iter_mut().enumerate() {
            *row = source(y as i64 + self.dy, h, pad);
        }
        for (x, col) in cols.iter_mut().enumerate() {
            let x = if self.flip { w - 1 - x } else { x };
            *col = source(x as i64 + self.dx, w, pad);
        }
    }
}

fn source(at: i64, len: usize, pad: Pad) -> u32 {
    let last = len as i64 - 1;
    match pad {
        _ if (0..=last).contains(&at) => at as u32,
        Pad::Zero => OUTSIDE,
        Pad::Reflect if at < 0 => -at as u32,
        Pad::Reflect => (2 * last - at) as u32,
    }
}

/// Gathers one NHWC byte image into one NCHW float image.
fn render(image: &[u8], channels: usize, rows: &[u32], cols: &[u32], table: &[f32], out: &mut [f32]) {
    let w = cols.len();
    for ch in 0..channels {
        let table = &table[ch * 256..(ch + 1) * 256];
        for (y, &row) in rows.iter().enumerate() {
            let out = &mut out[(ch * rows.len() + y) * w..][..w];
            if row == OUTSIDE {
                out.fill(table[0]);
                continue;
            }
            let line = &image[row as usize * w * channels..][..w * channels];
            for (o, &col) in out.iter_mut().zip(cols) {
                let pixel = if col == OUTSIDE { 0 } else { line[col as usize * channels + ch] };
                *o = table[usize::from(pixel)];
            }
        }
    }
}

/// NHWC bytes to NCHW floats.
fn to_planes(pixels: &[u8], channels: usize, table: &[f32], out: &mut [f32]) {
    let plane = out.len() / channels;
    for (ch, out) in out.chunks_exact_mut(plane).enumerate() {
        let table = &table[ch * 256..(ch + 1) * 256];
        for (to, &pixel) in out.iter_mut().zip(pixels.iter().skip(ch).step_by(channels)) {
            *to = table[usize::from(pixel)];
        }
    }
}

/// Sets the square around `centre`, cut at the borders, to 0, which is the mean.
fn cut_out(out: &mut [f32], h: usize, w: usize, side: usize, centre: Option<(usize, usize)>) {
    let Some((cy, cx)) = centre else { return };
    let range = |c: usize, len: usize| c.saturating_sub(side / 2)..(c + side - side / 2).min(len);
    for plane in out.chunks_exact_mut(h * w) {
        for y in range(cy, h) {
            plane[y * w..][range(cx, w)].fill(0.0);
        }
    }
}

/// An independent stream of random numbers for each purpose, seed, epoch and item.
fn rng(purpose: &[u8], seed: u64, epoch: u64, item: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..16 + purpose.len()].copy_from_slice(purpose);
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(item);
    rng
}

/// Uniform in `0..n`; the bias of the multiplication is below n / 2^64.
pub(crate) fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

pub(crate) fn chance(rng: &mut ChaCha8Rng, p: f32) -> bool {
    // 24 bits are exact in an f32, and 1.0 is above all of them.
    ((rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32) < p
}

/// Fisher and Yates, as in Durstenfeld 1964.
fn shuffle(order: &mut [u32], rng: &mut ChaCha8Rng) {
    for i in (1..order.len()).rev() {
        order.swap(i, below(rng, i + 1));
    }
}

/// [`Batches`] of one epoch after the other, made by a thread that stays a few batches ahead: also while the trainer
/// validates and saves between epochs. The batches are the same; give them back with [`Prefetch::recycle`] and no memory
/// is allocated after the first few.
pub struct Prefetch {
    ready: Option<Receiver<Batch>>,
    used: Sender<Batch>,
    worker: Option<thread::JoinHandle<()>>,
}

impl Prefetch {
    /// `count` batches from batch `first` of epoch `spec.epoch` on (0 for its beginning), going on into the epochs after.
    pub fn new<S>(set: Arc<S>, spec: BatchSpec, first: u64, count: u64) -> Result<Self>
    where
        S: Send + Sync + 'static,
        for<'a> &'a S: Into<SetRef<'a>>,
    {
        spec.check((&*set).into())?;
        let (send, ready) = sync_channel(READY_MAX);
        let (used, back) = channel();
        let worker = thread::Builder::new()
            .name("prefetch".into())
            .spawn(move || produce((&*set).into(), spec, first, count, &send, &back))
            .map_err(|e| Error::argument("prefetch", format!("no thread could be started: {e}")))?;
        Ok(Prefetch { ready: Some(ready), used, worker: Some(worker) })
    }

    /// Gives a batch's memory back for reuse.
    pub fn recycle(&self, batch: Batch) {
        // After the last batch the worker is gone, and the batch is simply dropped.
        let _ = self.used.send(batch);
    }
}

fn produce(
    set: SetRef<'_>,
    mut spec: BatchSpec,
    first: u64,
    mut count: u64,
    send: &SyncSender<Batch>,
    back: &Receiver<Batch>,
) {
    let mut next = usize::try_from(first).unwrap_or(usize::MAX);
    while count > 0 {
        let Ok(mut batches) = Batches::new(set, spec) else { return };
        batches.next = next;
        while count > 0 {
            let mut batch = back.try_recv().unwrap_or_default();
            if !batches.fill(&mut batch) {
                break;
            }
            if send.send(batch).is_err() {
                return;
            }
            count -= 1;
        }
        (spec.epoch, next) = (spec.epoch + 1, 0);
    }
}

impl Iterator for Prefetch {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        if let Some(batch) = self.ready.as_ref().and_then(|ready| ready.recv().ok()) {
            return Some(batch);
        }
        // The last batch was taken, or the worker panicked: that must not look like a short training.
        if let Some(worker) = self.worker.take() {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        None
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.ready = None; // a worker that waits to send is woken by the closed channel
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fashion_mnist;

    fn subset() -> ImageSet {
        fashion_mnist::load(fashion_mnist::subset_dir().as_deref()).unwrap().0.take(1000)
    }

    /// `n` images of 3x4 and 2 channels, all pixels different.
    fn tiny(n: usize) -> ImageSet {
        ImageSet {
            images: (0..n * 24).map(|i| (i % 251) as u8).collect(),
            labels: (0..n).map(|i| (i % 3) as u8).collect(),
            h: 3,
            w: 4,
            c: 2,
            classes: ["a", "b", "c"].map(str::to_owned).to_vec(),
            mean: vec![0.5, 0.25],
            std: vec![0.5, 2.0],
            mirror: true,
            boxes: None,
        }
    }

    fn full() -> Augment {
        Augment { flip: 0.5, shift: 2, pad: Pad::Reflect, cutout: 0.5, cutout_side: 8 }
    }

    #[test]
    fn eval_is_the_set_itself_in_nchw() {
        let set = tiny(5);
        let batches: Vec<_> = Batches::new(&set, BatchSpec::eval(2)).unwrap().collect();
        assert_eq!(batches.iter().map(|b| b.dims[0]).collect::<Vec<_>>(), [2, 2, 1]);
        assert_eq!(batches[1].y, [2, 0]);
        assert_eq!(batches[0].dims, [2, 2, 3, 4]);
        for (i, b) in batches.iter().enumerate() {
            for (k, &got) in b.x.iter().enumerate() {
                let (n, c, y, x) = (k / 24, k / 12 % 2, k / 4 % 3, k % 4);
                let pixel = f32::from(set.image(i * 2 + n)[(y * 4 + x) * 2 + c]);
                let want = (pixel / 255.0 - [0.5, 0.25][c]) / [0.5, 2.0][c];
                assert_eq!(got, want);
            }
        }
    }

    #[test]
    fn an_epoch_is_a_permutation_and_depends_on_seed_and_epoch() {
        let set = tiny(50);
        let order = |seed, epoch| {
            let b = Batches::new(&set, BatchSpec::train(7, seed, epoch, Augment::NONE)).unwrap();
            b.order.clone()
        };
        let mut sorted = order(1, 2);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_eq!(order(1, 2), order(1, 2));
        assert_ne!(order(1, 2), order(1, 3));
        assert_ne!(order(1, 2), order(2, 2));
        assert_eq!(Batches::new(&set, BatchSpec::train(7, 0, 0, Augment::NONE)).unwrap().count(), 7);
        let spec =
            BatchSpec { max_images: Some(10), drop_last: false, ..BatchSpec::train(7, 0, 0, Augment::NONE) };
        let batches = Batches::new(&set, spec).unwrap();
        assert!(batches.order.iter().all(|&i| i < 10));
        assert_eq!(batches.map(|b| b.y.len()).collect::<Vec<_>>(), [7, 3]);
    }

    #[test]
    fn skipping_and_prefetching_give_the_same_bytes() {
        let set = subset();
        let spec = BatchSpec::train(64, 7, 3, full());
        let all: Vec<_> = Batches::new(&set, spec).unwrap().collect();
        assert_eq!(all.len(), 15);
        let skipped: Vec<_> = Batches::new(&set, spec).unwrap().skip(9).collect();
        assert_eq!(skipped, all[9..]);
        assert_eq!(Batches::new(&set, spec).unwrap().skip(99).count(), 0);

        let set = Arc::new(set);
        let later = BatchSpec { epoch: 4, ..spec };
        let both: Vec<_> = all.iter().cloned().chain(Batches::new(&*set, later).unwrap()).collect();
        for (first, count) in [(0, 15), (4, 11), (4, 20), (15, 3), (0, 30), (3, 0)] {
            let mut prefetch = Prefetch::new(set.clone(), spec, first as u64, count as u64).unwrap();
            for want in &both[first..first + count] {
                let batch = prefetch.next().unwrap();
                assert_eq!(batch, *want);
                prefetch.recycle(batch);
            }
            assert!(prefetch.next().is_none());
        }
        drop(Prefetch::new(set, spec, 0, 15).unwrap()); // while the worker waits: must not hang
    }

    #[test]
    fn the_stream_of_a_seed_never_changes() {
        // A change here breaks the resuming of every run already started.
        let set = tiny(10);
        let batches = Batches::new(&set, BatchSpec::train(5, 42, 1, Augment::NONE)).unwrap();
        assert_eq!(batches.order, GOLDEN_ORDER);
        let spec = BatchSpec::train(5, 42, 1, full());
        assert_eq!(Change::draw(&spec, 28, 28, 7), GOLDEN_CHANGE);
    }

    const GOLDEN_ORDER: [u32; 10] = [2, 0, 3, 9, 5, 6, 7, 1, 4, 8];
    const GOLDEN_CHANGE: Change = Change { flip: true, dy: 1, dx: 1, cutout: Some((10, 11)) };

    #[test]
    fn changes_have_the_asked_frequencies() {
        let spec = BatchSpec::train(1, 5, 0, Augment { cutout: 0.25, ..full() });
        let changes: Vec<_> = (0..4000).map(|i| Change::draw(&spec, 28, 28, i)).collect();
        let share = |f: &dyn Fn(&Change) -> bool| changes.iter().filter(|c| f(c)).count() as f64 / 4000.0;
        // Five standard deviations are 0.04 at 0.5.
        assert!((share(&|c| c.flip) - 0.5).abs() < 0.04);
        assert!((share(&|c| c.cutout.is_some()) - 0.25).abs() < 0.04);
        for shift in -2..=2 {
            assert!((share(&|c| c.dx == shift) - 0.2).abs() < 0.04);
            assert!((share(&|c| c.dy == shift) - 0.2).abs() < 0.04);
        }
        assert!(changes.iter().any(|c| c.dx != c.dy));
        let always = BatchSpec::train(1, 5, 0, Augment { flip: 1.0, ..Augment::NONE });
        assert!((0..100).all(|i| Change::draw(&always, 28, 28, i).flip));
    }

    #[test]
    fn flip_shift_pad_and_cutout_move_the_right_pixels() {
        let (mut rows, mut cols) = ([0; 3], [0; 4]);
        let change = Change { flip: false, dy: -1, dx: 2, cutout: None };
        change.maps(Pad::Zero, &mut rows, &mut cols);
        assert_eq!((rows, cols), ([OUTSIDE, 0, 1], [2, 3, OUTSIDE, OUTSIDE]));
        change.maps(Pad::Reflect, &mut rows, &mut cols);
        assert_eq!((rows, cols), ([1, 0, 1], [2, 3, 2, 1]));
        Change { flip: true, dy: 0, dx: 0, cutout: None }.maps(Pad::Zero, &mut rows, &mut cols);
        assert_eq!((rows, cols), ([0, 1, 2], [3, 2, 1, 0]));

        let table: Vec<f32> = (0..256).map(|v| v as f32).collect();
        let mut out = [0.0; 4];
        render(&[10, 20, 30, 40], 1, &[1, OUTSIDE], &[OUTSIDE, 0], &table, &mut out);
        assert_eq!(out, [0.0, 30.0, 0.0, 0.0]);

        let mut out = vec![1.0; 5 * 6 * 2];
        cut_out(&mut out, 5, 6, 3, Some((0, 4)));
        let zeros: Vec<_> = (0..60).filter(|&i| out[i] == 0.0).collect();
        let plane = [3, 4, 5, 9, 10, 11];
        assert_eq!(zeros, plane.iter().copied().chain(plane.map(|i| i + 30)).collect::<Vec<_>>());
    }

    /// Sequences of 1 to 30 tokens; the first one says which it is.
    fn sequences(n: usize) -> TextSet {
        let mut set = TextSet {
            ids: Vec::new(),
            ends: Vec::new(),
            labels: (0..n).map(|i| (i % 3) as u32).collect(),
            classes: ["a", "b", "c"].map(str::to_owned).to_vec(),
            filler: 9999,
        };
        for i in 0..n {
            set.ids.push(i as u32);
            set.ids.extend(std::iter::repeat_n(7, i * 11 % 30));
            set.ends.push(set.ids.len());
        }
        set
    }

    #[test]
    fn texts_of_like_length_share_a_batch() {
        let set = sequences(700);
        let batches = |spec| -> Vec<Batch> { Batches::new(&set, spec).unwrap().collect() };
        let train = |epoch| batches(BatchSpec::train(8, 3, epoch, Augment::NONE));
        let all = train(0);
        assert_eq!(all.len(), 87);
        let mut seen = Vec::new();
        let (mut filled, mut places) = (0, 0);
        for batch in &all {
            let TokenBatch { ids, mask, dims: [n, length] } = batch.tokens.as_ref().unwrap();
            assert_eq!((*n, length % LENGTH_STEP, ids.len(), mask.len()), (8, 0, n * length, n * length));
            for (row, y) in batch.y.iter().enumerate() {
                let (ids, mask) = (&ids[row * length..][..*length], &mask[row * length..][..*length]);
                let i = ids[0] as usize;
                let own = set.sequence(i);
                assert_eq!(*y, (i % 3) as i64);
                assert!(ids[..own.len()].iter().zip(own).all(|(&a, &b)| a == i64::from(b)));
                assert!(ids[own.len()..].iter().all(|&id| id == 9999));
                assert_eq!(mask.iter().sum::<f32>(), own.len() as f32);
                seen.push(i);
                (filled, places) = (filled + length - own.len(), places + length);
            }
        }
        assert!(filled * 4 < places, "{filled} of {places} places are filled up");
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 696);
        assert_eq!(all, train(0));
        assert_ne!(all, train(1));
        let lengths: Vec<usize> = all.iter().map(|b| b.tokens.as_ref().unwrap().dims[1]).collect();
        assert!(lengths[..10].windows(2).any(|w| w[0] > w[1]), "from short to long: {lengths:?}");

        let eval = batches(BatchSpec::eval(64));
        assert_eq!(eval.iter().map(|b| b.y.len()).sum::<usize>(), 700);
        let ahead: Vec<Batch> =
            Prefetch::new(Arc::new(set.clone()), BatchSpec::eval(64), 2, 5).unwrap().collect();
        assert_eq!(ahead, eval[2..7]);
    }

    #[test]
    fn senseless_arguments_are_refused() {
        let set = tiny(5);
        let spec = BatchSpec::eval(2);
        let bad = [
            BatchSpec { batch: 0, ..spec },
            BatchSpec { batch: 6, drop_last: true, ..spec },
            BatchSpec { max_images: Some(0), ..spec },
            BatchSpec { augment: Augment { shift: 3, ..full() }, ..spec },
            BatchSpec { augment: Augment { flip: 1.5, ..Augment::NONE }, ..spec },
            BatchSpec { augment: Augment { cutout: f32::NAN, ..Augment::NONE }, ..spec },
            BatchSpec { augment: Augment { cutout_side: usize::MAX, ..Augment::NONE }, ..spec },
        ];
        for spec in bad {
            assert!(matches!(Batches::new(&set, spec), Err(Error::Argument { .. })), "{spec:?}");
        }
        for break_it in [
            |s: &mut ImageSet| s.labels.truncate(4),
            |s: &mut ImageSet| s.labels[0] = 3,
            |s: &mut ImageSet| s.std[1] = 0.0,
            |s: &mut ImageSet| s.mean.clear(),
            |s: &mut ImageSet| s.h = usize::MAX,
        ] {
            let mut set = tiny(5);
            break_it(&mut set);
            assert!(Batches::new(&set, spec).is_err());
        }
        assert!(Batches::new(&tiny(0), spec).is_err());
    }
}
