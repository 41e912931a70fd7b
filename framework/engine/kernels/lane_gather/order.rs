//! Which output channels share a group.
//!
//! A group takes as many steps as the lane that needs most of them, window by window: lanes whose nonzero weights lie in
//! like places waste the fewest slots. [`order`] builds one group after the other. It begins with the fullest channel
//! that is left and adds the one that asks for the fewest further steps, the fullest of those, until there are 16.

use super::{LANES, SLIDE, SLOTS};
use crate::kernels::packed::each_nonzero;
use std::cmp::Reverse;

/// The most channels that are looked at for a place in a group, and the least.
const CANDIDATES: [usize; 2] = [256, 32];
/// Looks at a piece of a channel: so many cost some ten milliseconds.
const LOOKS: usize = 32 << 20;

/// How many nonzero weights each output channel has in each piece of [`SLIDE`] bytes of x: `[pieces][channels]`. Between
/// pieces that windows do not slide across there is an empty one.
pub(crate) struct Counts {
    channels: usize,
    pieces: Vec<u8>,
}

impl Counts {
    pub fn new(channels: usize) -> Counts {
        Counts { channels, pieces: Vec::new() }
    }

    /// Adds those of weights `[channels, kh, kw, c]`, the input channels of which lie at `places`, or as they are.
    pub fn push(&mut self, w: &[i8], [kh, kw, c]: [usize; 3], places: Option<&[u32]>) {
        let per_row = (kw * c).div_ceil(SLIDE as usize) + 1;
        let begin = self.pieces.len();
        self.pieces.resize(begin + kh * per_row * self.channels, 0);
        for (channel, weights) in w.chunks_exact((kh * kw * c).max(1)).enumerate() {
            for (tap, weights) in weights.chunks_exact(c).enumerate() {
                let (first, at) = (begin + tap / kw * per_row * self.channels + channel, tap % kw * c);
                each_nonzero(weights, |i, _| {
                    let at = at + places.map_or(i, |places| places[i] as usize);
                    self.pieces[first + at / SLIDE as usize * self.channels] += 1;
                });
            }
        }
    }

    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.chunks_exact(self.channels.max(1))
    }
}

/// Steps of a group, piece by piece into `steps`, and in all: the packer's schedule.
#[inline(always)]
fn schedule(group: &[[u8; LANES]], steps: &mut [u8]) -> u32 {
    let mut taken = [0u8; LANES];
    let mut all = 0;
    for (counts, steps) in group.iter().zip(steps) {
        let due: [u8; LANES] = std::array::from_fn(|l| counts[l].saturating_sub(taken[l]));
        let most = due.iter().fold(0, |most, &n| most.max(n));
        *steps = most.div_ceil(SLOTS as u8);
        all += *steps as u32;
        // Free slots are for what lies in the next piece.
        taken = due.map(|n| *steps * SLOTS as u8 - n);
    }
    all
}

/// Steps of all groups if the channels are in that order.
#[inline(always)]
fn steps(counts: &Counts, order: impl Iterator<Item = u32>) -> u32 {
    let order: Vec<u32> = order.collect();
    let mut group = vec![[0; LANES]; counts.pieces().count()];
    let mut each = vec![0; group.len()];
    let in_group = |channels: &[u32]| {
        for (lanes, piece) in group.iter_mut().zip(counts.pieces()) {
            *lanes = [0; LANES];
            lanes.iter_mut().zip(channels).for_each(|(lane, &channel)| *lane = piece[channel as usize]);
        }
        schedule(&group, &mut each)
    };
    order.chunks(LANES).map(in_group).sum()
}

/// An order of the channels that takes fewer steps than the one they have, if one is found.
pub(crate) fn order(counts: &Counts) -> Option<Vec<u32>> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
        // SAFETY: the processor has what the function asks for.
        return unsafe { order_avx512(counts) };
    }
    order_portable(counts)
}

/// The same, compiled for bytes in wide registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bw,avx512vl")]
fn order_avx512(counts: &Counts) -> Option<Vec<u32>> {
    order_portable(counts)
}

#[inline(always)]
fn order_portable(counts: &Counts) -> Option<Vec<u32>> {
    let channels = counts.channels as u32;
    let found = grouped(counts);
    (steps(counts, found.iter().copied()) < steps(counts, 0..channels)).then_some(found)
}

/// Channels that may be next: column `i` of every table is one.
struct Candidates {
    channel: Vec<u32>,
    nonzeros: Vec<u32>,
    /// `[pieces][columns]`
    pieces: Vec<u8>,
}

impl Candidates {
    fn len(&self) -> usize {
        self.channel.len()
    }

    /// Puts a channel into column `i`, or takes the column away.
    fn replace(&mut self, i: usize, next: Option<(u32, u32)>, counts: &Counts) {
        let columns = (self.pieces.len() / counts.pieces().count().max(1)).max(1);
        let last = self.len() - 1;
        match next {
            Some((channel, nonzeros)) => {
                (self.channel[i], self.nonzeros[i]) = (channel, nonzeros);
                for (column, piece) in self.pieces.chunks_exact_mut(columns).zip(counts.pieces()) {
                    column[i] = piece[channel as usize];
                }
            }
            None => {
                self.channel.swap_remove(i);
                self.nonzeros.swap_remove(i);
                self.pieces.chunks_exact_mut(columns).for_each(|column| column[i] = column[last]);
            }
        }
    }

    /// Slots that each column lacks in a group of so many steps, of those that are left.
    #[inline(always)]
    fn lacking(&self, steps: &[u8], lacking: &mut [u16], taken: &mut [u8]) {
        const FOUR: u8 = SLOTS as u8;
        lacking.fill(0);
        taken.fill(0);
        for (column, &steps) in self.pieces.chunks_exact(taken.len().max(1)).zip(steps) {
            let slots = steps * FOUR;
            for ((&count, taken), lacking) in column.iter().zip(&mut *taken).zip(&mut *lacking) {
                let due = count.saturating_sub(*taken);
                let more = (due.saturating_sub(slots) + (FOUR - 1)) & !(FOUR - 1);
                *lacking = lacking.saturating_add(more as u16);
                *taken = slots + more - due;
            }
        }
    }
}

#[inline(always)]
fn grouped(counts: &Counts) -> Vec<u32> {
    let pieces = counts.pieces().count();
    let mut nonzeros = vec![0u32; counts.channels];
    for piece in counts.pieces() {
        nonzeros.iter_mut().zip(piece).for_each(|(sum, &n)| *sum += n as u32);
    }
    let mut queue: Vec<u32> = (0..counts.channels as u32).collect();
    queue.sort_by_key(|&channel| Reverse(nonzeros[channel as usize]));
    let [most, least] = CANDIDATES;
    let columns = (LOOKS / (pieces * counts.channels).max(1)).clamp(least, most).min(counts.channels);
    let mut queue = queue.into_iter().map(|channel| (channel, nonzeros[channel as usize]));
    let mut candidates = Candidates {
        channel: vec![0; columns],
        nonzeros: vec![0; columns],
        pieces: vec![0; pieces * columns],
    };
    for i in 0..columns {
        candidates.replace(i, queue.next(), counts);
    }
    let (mut lacking, mut taken) = (vec![0; columns], vec![0; columns]);
    let (mut group, mut steps) = (vec![[0; LANES]; pieces], vec![0; pieces]);
    let mut order = Vec::with_capacity(counts.channels);
    while candidates.len() > 0 {
        let lane = order.len() % LANES;
        if lane == 0 {
            group.fill([0; LANES]);
            lacking.fill(0);
        } else {
            candidates.lacking(&steps, &mut lacking, &mut taken);
        }
        let best = (0..candidates.len()).min_by_key(|&i| (lacking[i], Reverse(candidates.nonzeros[i])));
        let best = best.expect("there are candidates");
        let channel = candidates.channel[best];
        order.push(channel);
        for (lanes, piece) in group.iter_mut().zip(counts.pieces()) {
            lanes[lane] = piece[channel as usize];
        }
        schedule(&group, &mut steps);
        candidates.replace(best, queue.next(), counts);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{ConvGeom, ConvWeights};

    /// Weights `[channels, depth]` of which so many in 100 are not zero, more of them in some rows than in others.
    fn weights(channels: usize, depth: usize, percent: u64) -> Vec<i8> {
        let mut seed = 77u64;
        let mut random = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            seed >> 33
        };
        (0..channels * depth)
            .map(|i| {
                let skewed = percent / 2 + percent * (i / depth % 5) as u64 / 4;
                i8::from(random() % 100 < skewed)
            })
            .collect()
    }

    fn packed_steps(w: &[i8], channels: usize, depth: usize) -> u64 {
        let g = ConvGeom::product(1, depth as u32, channels as u32);
        let (bias, mult) = (vec![0; channels], vec![1.0; channels]);
        super::super::pack(&ConvWeights::Int8 { w, bias: &bias, mult: &mult, x_zero: 0 }, &g).steps
    }

    #[test]
    fn an_order_takes_the_steps_that_the_packer_takes_and_fewer_than_none() {
        for (channels, depth, percent) in [(64, 64, 5), (256, 64, 10), (100, 300, 20), (44, 1000, 10)] {
            let w = weights(channels, depth, percent);
            let mut counts = Counts::new(channels);
            counts.push(&w, [1, 1, depth], None);
            let before = packed_steps(&w, channels, depth);
            assert_eq!(steps(&counts, 0..channels as u32) as u64, before);
            let order = order(&counts).expect("rows differ");
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..channels as u32));
            let ordered: Vec<i8> =
                order.iter().flat_map(|&o| &w[o as usize * depth..][..depth]).copied().collect();
            let after = packed_steps(&ordered, channels, depth);
            assert_eq!(steps(&counts, order.iter().copied()) as u64, after);
            assert!(after < before, "{channels} x {depth}: {before} steps, {after} in order");
        }
    }

    #[test]
    fn columns_count_where_they_lie() {
        // One weight in channel 70 of 96, which lies at place 3.
        let mut w = vec![0; 96];
        w[70] = 1;
        let mut places: Vec<u32> = (0..96).collect();
        (places[70], places[3]) = (3, 70);
        let mut counts = Counts::new(1);
        counts.push(&w, [1, 1, 96], Some(&places));
        counts.push(&w, [1, 1, 96], None);
        assert_eq!(counts.pieces, [1, 0, 0, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn nothing_to_gain_is_no_order() {
        let mut counts = Counts::new(48);
        counts.push(&[1; 48 * 64], [1, 1, 64], None);
        assert_eq!(order(&counts), None);
        assert_eq!(order(&Counts::new(0)), None);
        assert_eq!(order(&Counts::new(5)), None);
    }
}
