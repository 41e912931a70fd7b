//! Packed weights: every convolution's in its kernel's own order, and constant operands, each in a blob of its own.
//!
//! Packing happens once per op: a new batch finds its weights here. While a plan is emitted, layers whose weights
//! are not packed yet become requests; [`pack`] then packs all of them side by side, each for the kernels that may
//! win. Blobs are shared: streams of one model read the same bytes. At last the layers' blobs are laid behind each other in the
//! order in which they run: in memory of large pages, and so that what a kernel fetches ahead is the next layer's.

use super::choose::{How, Known, Pick, Ranked, rank};
use super::order::{self, Orders};
use super::side_by_side::side_by_side;
use super::{Plan, StepKind};
use crate::kernels::{CONV_KERNELS, ConvGeom, ConvWeights, Method, each_nonzero};
use crate::memory::{AlignedBytes, LINE};
use crate::passes;
use bytes::Bytes;
use lacuna_ir::{OpId, ValueId};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// Where a blob lies, for the length of a run.
#[derive(Clone, Copy, Debug)]
pub struct Blob {
    pub start: *const u8,
    pub len: usize,
}

/// Packed weights depend on the op, on which of its convolutions it is if there are several, and, where a window has more
/// than one tap, on the strides of x.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(OpId, u32, u32, u32);

impl Key {
    pub fn new(op: OpId, part: u32, geom: &ConvGeom) -> Key {
        match (geom.kh, geom.kw) {
            (1, 1) => Key(op, part, 0, 0),
            _ => Key(op, part, geom.x_row, geom.x_pixel),
        }
    }
}

/// A kernel and its packed weights.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Row of `CONV_KERNELS`.
    pub kernel: usize,
    pub blob: u32,
    /// Elements of the weights, and how many of them are not zero.
    pub weights: u64,
    pub nonzeros: u64,
    pub slots: u64,
    /// Why this kernel, with the figures for the geometry it was chosen for.
    pub reason: String,
    /// Measurement also says how to share this geometry out.
    pub measured: Option<(ConvGeom, Pick)>,
}

impl Chosen {
    /// Share of a sparse kernel's slots that hold a weight.
    pub fn slot_efficiency(&self) -> Option<f64> {
        let of = |slots: u64| if slots == 0 { 1.0 } else { self.nonzeros as f64 / slots as f64 };
        (CONV_KERNELS[self.kernel].method == Method::Sparse).then(|| of(self.slots))
    }
}

/// Weights as the graph has them. They share its bytes, and are given back when the layer is packed.
#[derive(Clone, Debug)]
pub enum Source {
    Int8 {
        w: Bytes,
        bias: Bytes,
        mult: Bytes,
        x_zero: i32,
        /// New orders of input and output channels, if they have one.
        from: Option<Arc<[u32]>>,
        to: Option<Arc<[u32]>>,
    },
    F32 {
        w: Bytes,
        /// One per channel, one for all, or none.
        bias: Option<Bytes>,
        channels: usize,
        /// `w` is `[K,N]`, not `[N,K]`.
        transposed: bool,
    },
}

/// Elements in bytes of any alignment.
fn elements<T: bytemuck::Pod>(bytes: &Bytes) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(elements) => Cow::Borrowed(elements),
        Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(bytes)),
    }
}

/// Weights `[to][taps][from]`: rows and columns in their new orders.
fn weights_in_order(w: &[i8], rows: usize, from: Option<&[u32]>, to: Option<&[u32]>) -> Vec<i8> {
    let row = w.len() / rows.max(1);
    let places = from.map(order::inverse);
    let mut ordered = vec![0; w.len()];
    for (o, ordered) in ordered.chunks_exact_mut(row.max(1)).enumerate() {
        let row = &w[to.map_or(o, |to| to[o] as usize) * row..][..row];
        let Some(places) = &places else {
            ordered.copy_from_slice(row);
            continue;
        };
        for (tap, ordered) in row.chunks_exact(places.len()).zip(ordered.chunks_exact_mut(places.len())) {
            each_nonzero(tap, |i, v| ordered[places[i] as usize] = v);
        }
    }
    ordered
}

fn in_order<T: Copy>(x: &[T], order: &[u32]) -> Vec<T> {
    order.iter().map(|&from| x[from as usize]).collect()
}

impl Source {
    /// Whether the bytes were given back after an earlier packing.
    pub fn is_released(&self) -> bool {
        self.stored().is_empty()
    }

    /// The weights, as stored.
    pub fn stored(&self) -> &[u8] {
        let (Source::Int8 { w, .. } | Source::F32 { w, .. }) = self;
        w
    }

    /// Calls `f` with the weights as kernels pack them.
    fn with<R>(&self, f: impl FnOnce(&ConvWeights<'_>) -> R) -> R {
        match self {
            Source::Int8 { w, bias, mult, x_zero, from, to } => {
                let (mut w, mut bias, mut mult) = (elements(w), elements(bias), elements(mult));
                if from.is_some() || to.is_some() {
                    w = Cow::Owned(weights_in_order(&w, bias.len(), from.as_deref(), to.as_deref()));
                }
                if let Some(to) = to {
                    (bias, mult) = (in_order(&bias, to).into(), in_order(&mult, to).into());
                }
                f(&ConvWeights::Int8 { w: &w, bias: &bias, mult: &mult, x_zero: *x_zero })
            }
            Source::F32 { w, bias, channels, transposed } => {
                let stored = elements::<f32>(w);
                let n = *channels;
                let w = match transposed {
                    false => stored,
                    true => Cow::Owned(passes::transposed(&stored, n)),
                };
                let bias = match bias.as_ref().map(elements::<f32>) {
                    None => Cow::Owned(vec![0.0; n]),
                    Some(one) if one.len() != n => Cow::Owned(vec![one[0]; n]),
                    Some(bias) => bias,
                };
                f(&ConvWeights::F32 { w: &w, bias: &bias })
            }
        }
    }
}

/// A layer of a plan that has no kernel yet.
#[derive(Clone, Debug)]
pub struct Request {
    pub key: Key,
    /// Its row in `Plan::convs`, and its step.
    pub conv: usize,
    pub step: usize,
    pub geom: ConvGeom,
    /// Whether it runs a band of lines at a time, with others.
    pub banded: bool,
}

/// The layers that wait for packing: row `i` of each column is one layer.
#[derive(Debug, Default)]
pub struct Requests {
    pub layers: Vec<Request>,
    pub sources: Vec<Source>,
}

/// A blob's bytes, in memory that may hold others too.
#[derive(Clone, Debug, Default)]
struct Stored {
    memory: Arc<AlignedBytes>,
    range: Range<usize>,
}

impl From<AlignedBytes> for Stored {
    fn from(bytes: AlignedBytes) -> Stored {
        Stored { range: 0..bytes.len(), memory: Arc::new(bytes) }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Weights {
    /// Orders of channels, for as long as anything is packed.
    pub orders: Orders,
    blobs: Vec<Stored>,
    chosen: HashMap<Key, Chosen>,
    constants: HashMap<ValueId, u32>,
    zeros: HashMap<usize, u32>,
    /// Constants in an order of a step's own.
    packed: HashMap<ValueId, u32>,
    /// Numbers of blobs that were given back, to be used again.
    free: Vec<u32>,
}

impl Weights {
    pub fn push(&mut self, bytes: AlignedBytes) -> u32 {
        self.blobs.push(bytes.into());
        u32::try_from(self.blobs.len() - 1).expect("fewer blobs than values")
    }

    /// Gives a blob's bytes back; its number stays.
    pub fn release(&mut self, blob: u32) {
        self.blobs[blob as usize] = Stored::default();
    }

    /// The blob of a constant operand.
    pub fn constant(&mut self, v: ValueId, bytes: &[u8]) -> u32 {
        if let Some(&blob) = self.constants.get(&v) {
            return blob;
        }
        let mut copy = AlignedBytes::zeroed(bytes.len());
        copy.copy_from_slice(bytes);
        let blob = self.push(copy);
        self.constants.insert(v, blob);
        blob
    }

    /// A blob for a constant of one plan.
    pub fn computed(&mut self, bytes: &[u8]) -> u32 {
        let mut copy = AlignedBytes::zeroed(bytes.len());
        copy.copy_from_slice(bytes);
        match self.free.pop() {
            Some(blob) => {
                self.blobs[blob as usize] = copy.into();
                blob
            }
            None => self.push(copy),
        }
    }

    /// Gives a blob back, whose number another may have.
    pub fn reuse(&mut self, blob: u32) {
        self.release(blob);
        self.free.push(blob);
    }

    /// The blob of that many zeros: an operand that the graph leaves out.
    pub fn zeros(&mut self, len: usize) -> u32 {
        if let Some(&blob) = self.zeros.get(&len) {
            return blob;
        }
        let blob = self.push(AlignedBytes::zeroed(len));
        self.zeros.insert(len, blob);
        blob
    }

    /// The blob of a constant that one step reads in an order of its own, which `pack` makes.
    pub fn packed(&mut self, v: ValueId, pack: impl FnOnce() -> AlignedBytes) -> u32 {
        if let Some(&blob) = self.packed.get(&v) {
            return blob;
        }
        let blob = self.push(pack());
        self.packed.insert(v, blob);
        blob
    }

    pub fn get(&self, key: Key) -> Option<&Chosen> {
        self.chosen.get(&key)
    }

    pub fn insert(&mut self, key: Key, chosen: Chosen) {
        self.chosen.insert(key, chosen);
    }

    /// Bytes of all blobs.
    pub fn bytes(&self) -> usize {
        self.blobs.iter().map(|b| b.range.len()).sum()
    }

    /// Where every blob lies, for as long as nothing is added or released.
    pub fn table(&self) -> Vec<Blob> {
        let blob = |b: &Stored| Blob { start: b.memory[b.range.clone()].as_ptr(), len: b.range.len() };
        self.blobs.iter().map(blob).collect()
    }

    /// Lays the blobs of a plan's layers behind each other. They stay where they are if there is no memory for that.
    pub fn lay_out(&mut self, plan: &Plan) {
        let mut seen = HashSet::new();
        let layers = (0..plan.steps()).filter(|&step| plan.step_kind[step] == StepKind::Conv);
        let blobs = layers.map(|step| plan.convs[plan.step_row[step] as usize].weights);
        let blobs: Vec<u32> = blobs.filter(|&blob| seen.insert(blob)).collect();
        let len = |blob: &u32| self.blobs[*blob as usize].range.len().next_multiple_of(LINE);
        let Some(mut memory) = AlignedBytes::with_room(blobs.iter().map(len).sum()) else { return };
        for &blob in &blobs {
            let stored = std::mem::take(&mut self.blobs[blob as usize]);
            // A blob's old memory goes before the next is copied.
            self.blobs[blob as usize].range = memory.append(&stored.memory[stored.range]);
        }
        let memory = Arc::new(memory);
        blobs.iter().for_each(|&blob| self.blobs[blob as usize].memory = memory.clone());
    }
}

/// Packs every layer for its best kernels, on as many threads as the plan is for; `None` where no kernel runs the
/// geometry. `known` has a row per layer, or none. A source's bytes go when its layer is done, not when all are.
pub fn pack(layers: &[Request], sources: Vec<Source>, known: &[Known], how: &How<'_>) -> Vec<Option<Ranked>> {
    let sources: Vec<Mutex<Option<Source>>> = sources.into_iter().map(|s| Mutex::new(Some(s))).collect();
    side_by_side(how.target.threads, layers.len(), |i| {
        let source = sources[i].lock().expect("no thread panics with it").take();
        source?.with(|weights| rank(&layers[i].geom, weights, how, known.get(i)))
    })
}
