//! Dense int8 convolutions on NEON: exact on any 64-bit ARM processor, by dot products, and by products of small matrices.
//! Panels of 16 channels.
//!
//! Without dot products, bytes become 16-bit numbers, and widening multiplications add exact products of 16 channels and one
//! element. `sdot` multiplies signed bytes, so x becomes `x - 128`, and the bias makes up for it. `usmmla` takes x as it
//! is: it adds the products of two pixels and two channels, eight elements each.
//!
//! ```text
//! format "D16h", step of 8 neighbours: [8][16 lanes] i16
//! format "D16s", step of 4 neighbours: [16 lanes][4] i8, for x - 128
//! format "D16m", step of 8 neighbours: [16 lanes][8] i8
//! ```

use super::dense_i8::{Block, Form, Results, Sums, run};
use super::neon::{self, for_signed_x, sdot_0, sdot_1, sdot_2, sdot_3, signed, usmmla};
use super::packed::{LANES, Panels, expect};
use super::{ConvGeom, ConvWeights, KernelType, Operands, Packed};
use std::arch::aarch64::*;

const RESULTS: Results = Results { requant: neon::requant, scale: neon::scale };

const WORDS: Form = Form {
    format: b"D16h",
    lane_bytes: 16,
    blocks: &[words::<1>, words::<2>, words::<3>, words::<4>],
    results: &RESULTS,
};

/// Sums of six pixels, their x and weights would be more than the 32 registers.
const QUADS: Form = Form {
    format: b"D16s",
    lane_bytes: 4,
    blocks: &[quads::<1>, quads::<2>, quads::<3>, quads::<4>, quads::<5>],
    results: &RESULTS,
};

const PAIRS: Form = Form {
    format: b"D16m",
    lane_bytes: 8,
    blocks: &[pairs::<1, 1>, pairs::<2, 1>, pairs::<3, 2>, pairs::<4, 2>, pairs::<5, 3>, pairs::<6, 3>],
    results: &RESULTS,
};

pub(super) fn pack_neon(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::Int8, weights);
    // Panels puts neighbour k of lane l at l * 8 + k of a step of 128.
    Panels::new(g, 8, 1).pack::<2>(WORDS.format, weights, g, LANES, |slot| {
        let (step, lane, k) = (slot / 128, slot % 128 / 8, slot % 8);
        step * 128 + k * 16 + lane
    })
}

pub(super) fn pack_neondot(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::Int8, weights);
    Panels::new(g, 4, 1).pack::<1>(QUADS.format, &for_signed_x(weights), g, LANES, |slot| slot)
}

pub(super) fn pack_neoni8mm(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::Int8, weights);
    Panels::new(g, 8, 1).pack::<1>(PAIRS.format, weights, g, LANES, |slot| slot)
}

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_neon(o: &Operands<'_>) {
    // SAFETY: the caller's promise.
    unsafe { run(&WORDS, o) };
}

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_neondot(o: &Operands<'_>) {
    // SAFETY: the caller's promise.
    unsafe { run(&QUADS, o) };
}

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_neoni8mm(o: &Operands<'_>) {
    // SAFETY: the caller's promise.
    unsafe { run(&PAIRS, o) };
}

/// # Safety
/// `P` pixels from `block.x` belong to the tile.
#[target_feature(enable = "neon")]
unsafe fn words<const P: usize>(block: &Block<'_>, out: &mut Sums) {
    // SAFETY: `dense_i8` cut bias and weights to the panel's size; every run and its last step (at most
    // 7 bytes past the run) is readable for pixels of the tile.
    unsafe {
        let mut acc = [neon::loaded(&block.bias.cast::<[i32; LANES]>().read()); P];
        let mut w: *const i16 = block.weights.cast();
        for &run in block.table {
            let mut x = block.x.add(run as usize);
            for _ in 0..block.steps_per_run {
                let mut xs = [vdupq_n_s16(0); P];
                for p in 0..P {
                    xs[p] = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(x.add(p * block.x_stride))));
                }
                // Of each register of x the multiplication takes one element, whose number is part of the instruction.
                macro_rules! element {
                    ($k:literal) => {
                        let (low, high) = (vld1q_s16(w.add($k * 16)), vld1q_s16(w.add($k * 16 + 8)));
                        for p in 0..P {
                            acc[p][0] = vmlal_laneq_s16::<$k>(acc[p][0], vget_low_s16(low), xs[p]);
                            acc[p][1] = vmlal_high_laneq_s16::<$k>(acc[p][1], low, xs[p]);
                            acc[p][2] = vmlal_laneq_s16::<$k>(acc[p][2], vget_low_s16(high), xs[p]);
                            acc[p][3] = vmlal_high_laneq_s16::<$k>(acc[p][3], high, xs[p]);
                        }
                    };
                }
                element!(0);
                element!(1);
                element!(2);
                element!(3);
                element!(4);
                element!(5);
                element!(6);
                element!(7);
                w = w.add(128);
                x = x.add(8);
            }
        }
        for p in 0..P {
            neon::stored(acc[p], &mut out[p]);
        }
    }
}

/// # Safety
/// The processor has dot products; `P` pixels from `block.x` belong to the tile.
#[target_feature(enable = "neon,dotprod")]
unsafe fn quads<const P: usize>(block: &Block<'_>, out: &mut Sums) {
    // SAFETY: as in `words`; at most 3 bytes past the run are read.
    unsafe {
        let mut acc = [neon::loaded(&block.bias.cast::<[i32; LANES]>().read()); P];
        let mut w: *const i8 = block.weights.cast();
        for &run in block.table {
            let mut x = block.x.add(run as usize);
            // One step: `$sdot` says which four elements of a register of x are its own.
            macro_rules! step {
                ($sdot:ident, $xs:ident) => {
                    for v in 0..4 {
                        let weights = vld1q_s8(w.add(v * 16));
                        for p in 0..P {
                            acc[p][v] = $sdot(acc[p][v], weights, $xs[p]);
                        }
                    }
                    w = w.add(64);
                };
            }
            let mut xs = [vdupq_n_s8(0); P];
            for _ in 0..block.steps_per_run / 4 {
                for p in 0..P {
                    xs[p] = signed(vld1q_u8(x.add(p * block.x_stride)));
                }
                step!(sdot_0, xs);
                step!(sdot_1, xs);
                step!(sdot_2, xs);
                step!(sdot_3, xs);
                x = x.add(16);
            }
            for _ in 0..block.steps_per_run % 4 {
                for p in 0..P {
                    xs[p] = signed(neon::quad(x.add(p * block.x_stride)));
                }
                step!(sdot_0, xs);
                x = x.add(4);
            }
        }
        for p in 0..P {
            neon::stored(acc[p], &mut out[p]);
        }
    }
}

/// `P` pixels, two of them in each of `R` registers; the last of an odd number is there twice.
///
/// # Safety
/// The processor has products of matrices of bytes; `P` pixels from `block.x` belong to the tile.
#[target_feature(enable = "neon,i8mm")]
unsafe fn pairs<const P: usize, const R: usize>(block: &Block<'_>, out: &mut Sums) {
    // SAFETY: as in `words`.
    unsafe {
        // Sums of two pixels, one after the other, and channels 2 * v and 2 * v + 1.
        let mut acc = [[vdupq_n_s32(0); 8]; R];
        for v in 0..8 {
            let bias = vreinterpretq_s32_s64(vld1q_dup_s64(block.bias.add(2 * v).cast()));
            for r in 0..R {
                acc[r][v] = bias;
            }
        }
        let mut w: *const i8 = block.weights.cast();
        for &run in block.table {
            let mut x = block.x.add(run as usize);
            for _ in 0..block.steps_per_run {
                let mut xs = [vdupq_n_u8(0); R];
                for r in 0..R {
                    let [a, b] = [2 * r, (2 * r + 1).min(P - 1)].map(|p| vld1_u8(x.add(p * block.x_stride)));
                    xs[r] = vcombine_u8(a, b);
                }
                for v in 0..8 {
                    let weights = vld1q_s8(w.add(v * 16));
                    for r in 0..R {
                        acc[r][v] = usmmla(acc[r][v], xs[r], weights);
                    }
                }
                w = w.add(128);
                x = x.add(8);
            }
        }
        for p in 0..P {
            let mut sums = [vdupq_n_s32(0); 4];
            for v in 0..4 {
                let [a, b] = [acc[p / 2][2 * v], acc[p / 2][2 * v + 1]].map(|s| vreinterpretq_s64_s32(s));
                sums[v] = vreinterpretq_s32_s64(if p % 2 == 0 { vzip1q_s64(a, b) } else { vzip2q_s64(a, b) });
            }
            neon::stored(sums, &mut out[p]);
        }
    }
}
