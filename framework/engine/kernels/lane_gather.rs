//! LaneGather: int8 convolutions that skip every single zero weight.
//!
//! A sum is a register of 16 output channels of one pixel. One step is an offset and two registers: 64 indices and
//! 64 weights. `vpermb` lets each lane gather its own four bytes out of the 64 bytes of x at the offset, `vpdpbusd`
//! multiplies them with the lane's own four weights; the step is reused for up to 16 pixels. What a lane does not
//! need costs nothing; what it lacks is a slot with weight zero.
//!
//! ```text
//! format "LG16"; G = ceil(oc / 16) groups, S steps
//! table:  u32 first[G + 1]     steps of group g: first[g]..first[g + 1]
//!         u32 offset[S]        bytes from tap (0, 0) of a pixel to the step's window; a multiple of 32
//! args:   S, whether results are bounded ([`bounded`])
//! data:   per step { u8 index[16 lanes][4], i8 weight[16 lanes][4] }
//! ```
//!
//! The packer is earliest deadline first over windows that slide by 32 bytes: a step must take what lies in the
//! first half of its window and fills free slots from the second half. For given groups that is the fewest steps:
//! a later window covers all that was still optional. Positions are plain byte offsets over all taps, so windows
//! slide across taps and never care about window shape, stride or dilation.

use super::packed::{LANES, bounded, count_nonzeros, each_nonzero, expect, read, write};
use super::{ConvGeom, ConvWeights, KernelType, Packed};

#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
mod order;

pub(crate) use order::{Counts, order};

const FORMAT: &[u8; 4] = b"LG16";
const WINDOW: u32 = 64;
const SLIDE: u32 = 32;
/// Slots of one lane in one step.
const SLOTS: usize = 4;
const STEP_BYTES: usize = 2 * WINDOW as usize;

pub fn pack(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::Int8, weights);
    let ConvWeights::Int8 { w, .. } = *weights else {
        return write(FORMAT, weights, g, ([0; 4], &[]), 0, |_| ());
    };
    let taps = tap_offsets(g);
    let groups = (g.oc as usize).div_ceil(LANES);
    let (mut first, mut offsets, mut data) = (vec![0u32], Vec::new(), Vec::new());
    for group in 0..groups {
        let lanes: Vec<Vec<(u32, i8)>> =
            (0..LANES).map(|l| nonzeros(w, g, &taps, group * LANES + l)).collect();
        schedule(&lanes, &mut offsets, &mut data);
        first.push(offsets.len() as u32);
    }
    let steps = offsets.len();
    first.extend_from_slice(&offsets);
    let args = [steps as u32, u32::from(bounded(weights, g)), 0, 0];
    let mut packed = write(FORMAT, weights, g, (args, &first), data.len(), |out| out.copy_from_slice(&data));
    packed.steps = steps as u64;
    packed.slots = steps as u64 * WINDOW as u64;
    packed
}

/// Byte offset of every tap, in OHWI order.
fn tap_offsets(g: &ConvGeom) -> Vec<u32> {
    (0..g.kh).flat_map(|ky| (0..g.kw).map(move |kx| g.tap_at(ky, kx) as u32)).collect()
}

/// Offset and value of the nonzero weights of one output channel, by offset. Empty beyond the last channel.
fn nonzeros(w: &[i8], g: &ConvGeom, taps: &[u32], o: usize) -> Vec<(u32, i8)> {
    if o >= g.oc as usize {
        return Vec::new();
    }
    let row = &w[o * g.depth()..][..g.depth()];
    let mut found = Vec::with_capacity(count_nonzeros(row) as usize);
    for (tap, &at) in row.chunks_exact(g.c as usize).zip(taps) {
        each_nonzero(tap, |i, v| found.push((at + i as u32, v)));
    }
    // Rows of x may overlap (a view of a signal as lines): then a later tap can lie before an earlier one.
    found.sort_by_key(|&(at, _)| at);
    found
}

/// Appends the steps of one group.
fn schedule(lanes: &[Vec<(u32, i8)>], offsets: &mut Vec<u32>, data: &mut Vec<u8>) {
    let mut next = [0usize; LANES];
    let earliest = |next: &[usize; LANES]| {
        lanes.iter().zip(next).filter_map(|(lane, &n)| lane.get(n)).map(|&(at, _)| at / SLIDE * SLIDE).min()
    };
    while let Some(base) = earliest(&next) {
        let due = |lane: &[(u32, i8)], end: u32| lane.iter().take_while(|&&(at, _)| at < end).count();
        let steps =
            (0..LANES).map(|l| due(&lanes[l][next[l]..], base + SLIDE).div_ceil(SLOTS)).max().unwrap_or(0);
        for _ in 0..steps {
            let at = data.len();
            data.resize(at + STEP_BYTES, 0);
            let (index, weight) = data[at..].split_at_mut(WINDOW as usize);
            for (l, lane) in lanes.iter().enumerate() {
                let taken = due(&lane[next[l]..][..SLOTS.min(lane.len() - next[l])], base + WINDOW);
                for (slot, &(at, v)) in lane[next[l]..next[l] + taken].iter().enumerate() {
                    index[l * SLOTS + slot] = (at - base) as u8;
                    weight[l * SLOTS + slot] = v as u8;
                }
                next[l] += taken;
            }
            offsets.push(base);
        }
    }
}

/// The weights a packed blob holds, as `[O, kh, kw, C]`: the packer's inverse.
pub fn unpack(packed: &[u8], g: &ConvGeom) -> Vec<i8> {
    let s = read(FORMAT, g, packed);
    let groups = (g.oc as usize).div_ceil(LANES);
    let (first, offsets) = s.table.split_at(groups + 1);
    let taps = tap_offsets(g);
    let mut w = vec![0i8; g.oc as usize * g.depth()];
    for group in 0..groups {
        for step in first[group] as usize..first[group + 1] as usize {
            let (index, weight) = s.data[step * STEP_BYTES..][..STEP_BYTES].split_at(WINDOW as usize);
            for (slot, (&i, &v)) in index.iter().zip(weight).enumerate().filter(|(_, (_, v))| **v != 0) {
                let at = offsets[step] + i as u32;
                let tap =
                    taps.iter().rposition(|&t| t <= at && at < t + g.c).expect("a slot lies under a tap");
                let element = tap * g.c as usize + (at - taps[tap]) as usize;
                w[(group * LANES + slot / SLOTS) * g.depth() + element] = v as i8;
            }
        }
    }
    w
}
