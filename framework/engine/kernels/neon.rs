//! What the int8 rows share on 64-bit ARM: results out of sums, and the instructions that `std::arch` does not have yet.

use super::packed::LANES;
use super::{ConvWeights, QEpilogue};
use lacuna_ir::op::Requant;
use std::arch::aarch64::*;
use std::arch::asm;

/// 16 sums or floats, four to a register.
pub(super) type Sums = [int32x4_t; 4];
pub(super) type Floats = [float32x4_t; 4];

/// The weights for signed activations `x - 128`, whose bits are those of x but for the first: as many products of 128 more are
/// in the bias as if x had a zero point 128 lower.
pub(super) fn for_signed_x<'a>(weights: &ConvWeights<'a>) -> ConvWeights<'a> {
    match *weights {
        ConvWeights::Int8 { w, bias, mult, x_zero } => {
            ConvWeights::Int8 { w, bias, mult, x_zero: x_zero.wrapping_sub(128) }
        }
        ConvWeights::F32 { .. } => *weights,
    }
}

/// The four bytes at `from`, and zeros.
///
/// # Safety
/// They are readable.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn quad(from: *const u8) -> uint8x16_t {
    // SAFETY: the caller's promise.
    let quad = unsafe { from.cast::<u32>().read_unaligned() };
    vreinterpretq_u8_u32(vsetq_lane_u32::<0>(quad, vdupq_n_u32(0)))
}

/// u8 activations as the signed bytes `x - 128`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn signed(x: uint8x16_t) -> int8x16_t {
    vreinterpretq_s8_u8(veorq_u8(x, vdupq_n_u8(0x80)))
}

/// Defines functions of one instruction that adds to sums.
macro_rules! adds {
    ($($(#[$doc:meta])* $name:ident, $features:literal, $instruction:literal, $a:ty, $b:ty;)*) => {$(
        $(#[$doc])*
        #[inline]
        #[target_feature(enable = $features)]
        pub(super) fn $name(mut acc: int32x4_t, a: $a, b: $b) -> int32x4_t {
            // SAFETY: registers only, and the function has the feature.
            unsafe {
                asm!(
                    $instruction,
                    acc = inout(vreg) acc,
                    a = in(vreg) a,
                    b = in(vreg) b,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            acc
        }
    )*};
}

adds! {
    /// To sum `i` the products of bytes `4 * i..` of `a` and the first four of `b`.
    sdot_0, "neon,dotprod", "sdot {acc:v}.4s, {a:v}.16b, {b:v}.4b[0]", int8x16_t, int8x16_t;
    /// The second four of `b`.
    sdot_1, "neon,dotprod", "sdot {acc:v}.4s, {a:v}.16b, {b:v}.4b[1]", int8x16_t, int8x16_t;
    /// The third four of `b`.
    sdot_2, "neon,dotprod", "sdot {acc:v}.4s, {a:v}.16b, {b:v}.4b[2]", int8x16_t, int8x16_t;
    /// The last four of `b`.
    sdot_3, "neon,dotprod", "sdot {acc:v}.4s, {a:v}.16b, {b:v}.4b[3]", int8x16_t, int8x16_t;
    /// [`sdot_0`] with unsigned `a`.
    usdot_0, "neon,i8mm", "usdot {acc:v}.4s, {a:v}.16b, {b:v}.4b[0]", uint8x16_t, int8x16_t;
    /// To sum `2 * i + j` the products of the eight bytes `i` of `a` and the eight bytes `j` of `b`.
    usmmla, "neon,i8mm", "usmmla {acc:v}.4s, {a:v}.16b, {b:v}.16b", uint8x16_t, int8x16_t;
}

/// `acc as f32 * mult`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn scaled(acc: Sums, mult: Floats) -> Floats {
    let mut f = mult;
    for i in 0..4 {
        f[i] = vmulq_f32(vcvtq_f32_s32(acc[i]), mult[i]);
    }
    f
}

/// The rest of [`QEpilogue::requant`], once 16 sums are scaled: operation by operation.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn finished(e: &QEpilogue, mut f: Floats, residual: uint8x16_t) -> uint8x16_t {
    if e.has_residual && e.late.is_none() {
        f = plus_residual(e, f, residual);
    }
    let mut q = rounded(f, Requant { zero: e.zero, lo: e.lo, hi: e.hi });
    if let Some(table) = &e.table {
        q = looked_up(table, q);
    }
    if let (true, Some(late)) = (e.has_residual, e.late) {
        let own = scaled_bytes(q, late.zero, late.mult);
        q = rounded(plus_residual(e, own, residual), late.out);
    }
    q
}

/// [`QEpilogue::requant`] of 16 channels.
///
/// # Safety
/// 16 multipliers may be read.
#[target_feature(enable = "neon")]
pub(super) unsafe fn requant(
    mult: *const f32,
    e: &QEpilogue,
    acc: &[i32; LANES],
    residual: &[u8; LANES],
) -> [u8; LANES] {
    let mut bytes = [0; LANES];
    // SAFETY: the caller's promise; the arrays hold 16 elements.
    unsafe {
        let f = scaled(loaded(acc), floats(mult));
        vst1q_u8(bytes.as_mut_ptr(), finished(e, f, vld1q_u8(residual.as_ptr())));
    }
    bytes
}

/// `acc as f32 * mult` of 16 channels.
///
/// # Safety
/// 16 multipliers may be read.
#[target_feature(enable = "neon")]
pub(super) unsafe fn scale(mult: *const f32, acc: &[i32; LANES]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    // SAFETY: the caller's promise; the array holds 16 floats.
    unsafe {
        let f = scaled(loaded(acc), floats(mult));
        f.into_iter().enumerate().for_each(|(i, f)| vst1q_f32(out.as_mut_ptr().add(i * 4), f));
    }
    out
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn loaded(sums: &[i32; LANES]) -> Sums {
    // SAFETY: the array holds four registers.
    [0, 4, 8, 12].map(|at| unsafe { vld1q_s32(sums.as_ptr().add(at)) })
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn stored(sums: Sums, to: &mut [i32; LANES]) {
    for (i, sum) in sums.into_iter().enumerate() {
        // SAFETY: the array holds four registers.
        unsafe { vst1q_s32(to.as_mut_ptr().add(i * 4), sum) };
    }
}

/// # Safety
/// 16 floats may be read.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn floats(from: *const f32) -> Floats {
    // SAFETY: the caller's promise.
    [0, 4, 8, 12].map(|at| unsafe { vld1q_f32(from.add(at)) })
}

/// `(q - zero) * mult` of bytes.
#[inline]
#[target_feature(enable = "neon")]
fn scaled_bytes(q: uint8x16_t, zero: i32, mult: f32) -> Floats {
    let (low, high) = (vmovl_u8(vget_low_u8(q)), vmovl_high_u8(q));
    let q = [
        vmovl_u16(vget_low_u16(low)),
        vmovl_high_u16(low),
        vmovl_u16(vget_low_u16(high)),
        vmovl_high_u16(high),
    ];
    scaled(q.map(|q| vsubq_s32(vreinterpretq_s32_u32(q), vdupq_n_s32(zero))), [vdupq_n_f32(mult); 4])
}

#[inline]
#[target_feature(enable = "neon")]
fn plus_residual(e: &QEpilogue, mut f: Floats, residual: uint8x16_t) -> Floats {
    let r = scaled_bytes(residual, e.residual_zero, e.residual_mult);
    for i in 0..4 {
        f[i] = vaddq_f32(f[i], r[i]);
    }
    f
}

/// Clamped, rounded to nearest even, and moved to the zero point: all sixteen are in 0..=255 then, so the narrowing loses
/// nothing.
#[inline]
#[target_feature(enable = "neon")]
fn rounded(f: Floats, out: Requant) -> uint8x16_t {
    let (lo, hi) = (vdupq_n_f32((out.lo - out.zero) as f32), vdupq_n_f32((out.hi - out.zero) as f32));
    let q = f.map(|f| vaddq_s32(vcvtnq_s32_f32(vminnmq_f32(vmaxnmq_f32(f, lo), hi)), vdupq_n_s32(out.zero)));
    let halves =
        [(0, 1), (2, 3)].map(|(a, b)| vuzp1q_u16(vreinterpretq_u16_s32(q[a]), vreinterpretq_u16_s32(q[b])));
    vuzp1q_u8(vreinterpretq_u8_u16(halves[0]), vreinterpretq_u8_u16(halves[1]))
}

/// `table[q]`: 64 entries at a time; an index beyond them leaves what was found so far.
#[inline]
#[target_feature(enable = "neon")]
fn looked_up(table: &[u8; 256], q: uint8x16_t) -> uint8x16_t {
    // SAFETY: 256 bytes are four times four registers.
    let quarters = [0, 64, 128, 192].map(|at| unsafe { vld1q_u8_x4(table.as_ptr().add(at)) });
    let below = |start: u8| vsubq_u8(q, vdupq_n_u8(start));
    let y = vqtbl4q_u8(quarters[0], q);
    let y = vqtbx4q_u8(y, quarters[1], below(64));
    let y = vqtbx4q_u8(y, quarters[2], below(128));
    vqtbx4q_u8(y, quarters[3], below(192))
}
