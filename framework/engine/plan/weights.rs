//! The packed-weight arena: every convolution's weights in its kernel's own order, and constant operands.
//!
//! Packing happens once per op: a new batch finds its weights here. Kernels are chosen here too, because the
//! choice rests on what packing gives.

use super::cost::conv_ns;
use crate::kernels::{CONV_KERNELS, ConvGeom, ConvKernel, ConvWeights, KernelType, Packed};
use crate::memory::{AlignedBytes, LINE};
use crate::target::{Isa, Target};
use lacuna_ir::{OpId, ValueId};
use std::collections::HashMap;
use std::ops::Range;

/// Which kernels the planner may choose from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelChoice {
    /// The cheaper one by the cost model.
    #[default]
    Auto,
    /// Sparse kernels only where there is no dense one.
    Dense,
    /// Dense kernels only where there is no sparse one.
    Sparse,
}

/// A kernel and its packed weights.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Row of `CONV_KERNELS`.
    pub kernel: usize,
    pub bytes: Range<usize>,
    pub weights: u64,
    pub nonzeros: u64,
    pub slots: u64,
    /// Why this kernel, with the estimates for the geometry it was chosen for.
    pub reason: String,
}

impl Chosen {
    /// Share of a sparse kernel's slots that hold a weight.
    pub fn slot_efficiency(&self) -> Option<f64> {
        let of = |slots: u64| if slots == 0 { 1.0 } else { self.nonzeros as f64 / slots as f64 };
        CONV_KERNELS[self.kernel].sparse.then(|| of(self.slots))
    }

    /// Estimated nanoseconds on one thread.
    pub fn estimated_ns(&self, geom: &ConvGeom) -> f64 {
        conv_ns(&CONV_KERNELS[self.kernel], geom, self.slots)
    }
}

#[derive(Debug, Default)]
pub struct Weights {
    /// What a run reads.
    pub bytes: AlignedBytes,
    /// Packed since `bytes` was made; they follow it.
    pending: Vec<AlignedBytes>,
    end: usize,
    /// Weights depend on the op and on the strides of x.
    chosen: HashMap<(OpId, u32, u32), Chosen>,
    constants: HashMap<ValueId, usize>,
}

impl Weights {
    fn push(&mut self, bytes: AlignedBytes) -> Range<usize> {
        let start = self.end;
        let range = start..start + bytes.len();
        // Kernels may read a line past what they were given.
        self.end = (range.end + LINE).next_multiple_of(LINE);
        self.pending.push(bytes);
        range
    }

    /// Byte offset of a constant operand.
    pub fn constant(&mut self, v: ValueId, bytes: &[u8]) -> usize {
        if let Some(&at) = self.constants.get(&v) {
            return at;
        }
        let mut copy = AlignedBytes::zeroed(bytes.len());
        copy.copy_from_slice(bytes);
        let at = self.push(copy).start;
        self.constants.insert(v, at);
        at
    }

    /// Moves what was packed lately behind what was packed before.
    pub fn seal(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let mut bytes = AlignedBytes::zeroed(self.end);
        bytes[..self.bytes.len()].copy_from_slice(&self.bytes);
        let mut at = self.bytes.len();
        for part in self.pending.drain(..) {
            bytes[at..at + part.len()].copy_from_slice(&part);
            at = (at + part.len() + LINE).next_multiple_of(LINE);
        }
        self.bytes = bytes;
    }

    /// The kernel for `op` and its packed weights. `None` if no kernel does this geometry.
    pub fn choose(
        &mut self,
        op: OpId,
        geom: &ConvGeom,
        weights: &ConvWeights<'_>,
        target: &Target,
        choice: KernelChoice,
    ) -> Option<Chosen> {
        let key = (op, geom.x_row, geom.x_pixel);
        if let Some(known) = self.chosen.get(&key) {
            return Some(known.clone());
        }
        let (mut chosen, packed) = pick(geom, weights, target.isa, choice)?;
        chosen.bytes = self.push(packed.bytes);
        self.chosen.insert(key, chosen.clone());
        Some(chosen)
    }
}

fn type_of(weights: &ConvWeights<'_>) -> KernelType {
    match weights {
        ConvWeights::Int8 { .. } => KernelType::Int8,
        ConvWeights::F32 { .. } => KernelType::F32,
    }
}

/// Elements of the weights and how many are not zero.
fn count(weights: &ConvWeights<'_>) -> (u64, u64) {
    match weights {
        ConvWeights::Int8 { w, .. } => (w.len() as u64, w.iter().filter(|&&x| x != 0).count() as u64),
        ConvWeights::F32 { w, .. } => (w.len() as u64, w.iter().filter(|&&x| x != 0.0).count() as u64),
    }
}

/// Packs for the best dense row and for every sparse row that may win, and keeps the cheapest.
fn pick(
    geom: &ConvGeom,
    weights: &ConvWeights<'_>,
    isa: Isa,
    choice: KernelChoice,
) -> Option<(Chosen, Packed)> {
    let usable = |k: &ConvKernel| k.isa <= isa && k.dtype == type_of(weights) && (k.supports)(geom);
    let rows: Vec<usize> = (0..CONV_KERNELS.len()).filter(|&i| usable(&CONV_KERNELS[i])).collect();
    let (elements, nonzeros) = count(weights);
    let density = nonzeros as f64 / elements.max(1) as f64;
    let mut sparse: Vec<usize> = rows.iter().copied().filter(|&i| CONV_KERNELS[i].sparse).collect();
    // Later rows are faster.
    let dense = rows.iter().copied().rfind(|&i| !CONV_KERNELS[i].sparse);
    // Above three quarters no sparse kernel can win: packing for it would be wasted.
    let skip_sparse = match choice {
        KernelChoice::Auto => density > 0.75,
        KernelChoice::Dense => dense.is_some(),
        KernelChoice::Sparse => false,
    };
    if skip_sparse && dense.is_some() {
        sparse.clear();
    }
    let skip_dense = choice == KernelChoice::Sparse && !sparse.is_empty();
    let candidates = sparse.into_iter().chain(dense.filter(|_| !skip_dense));
    let mut tried: Vec<(f64, usize, Packed)> = candidates
        .map(|i| {
            let packed = (CONV_KERNELS[i].pack)(weights, geom);
            (conv_ns(&CONV_KERNELS[i], geom, packed.slots), i, packed)
        })
        .collect();
    tried.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut reason = format!("density {density:.3}");
    for (ns, i, packed) in &tried {
        let fill = packed.nonzeros as f64 / packed.slots.max(1) as f64;
        reason += &match CONV_KERNELS[*i].sparse {
            true => format!("; sparse {:.1} us at slot efficiency {fill:.2}", ns / 1e3),
            false => format!("; dense {:.1} us", ns / 1e3),
        };
    }
    match choice {
        _ if tried.len() > 1 => {}
        KernelChoice::Auto if density > 0.75 => reason += "; too dense for a sparse kernel",
        KernelChoice::Auto => reason += "; the only kind of kernel for this",
        KernelChoice::Dense | KernelChoice::Sparse => reason += "; as asked",
    }
    let (_, kernel, packed) = tried.into_iter().next()?;
    let (nonzeros, slots) = (packed.nonzeros, packed.slots);
    let chosen = Chosen { kernel, bytes: 0..0, weights: elements, nonzeros, slots, reason };
    Some((chosen, packed))
}
