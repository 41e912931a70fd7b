//! The step loop of dense int8 on AVX-512 VNNI.
//!
//! One `asm!` block per size of a block of registers, because the compiler spills sums of the larger ones. Sums are
//! zmm0 to zmm23, weights zmm24 to zmm27, and zmm28 holds four bytes of one pixel for all lanes.

use super::{Panel, Pixels, Requant, lanes_before};
use std::arch::asm;
use std::arch::x86_64::*;

type BlockFn = unsafe fn(&Panel<'_>, &Requant, Pixels);

/// Blocks of 1 to 6 or 12 pixels, by vectors of a panel.
pub(super) const BLOCKS: [&[BlockFn]; 4] = [
    &[v1_p1, v1_p2, v1_p3, v1_p4, v1_p5, v1_p6, v1_p7, v1_p8, v1_p9, v1_p10, v1_p11, v1_p12],
    &[v2_p1, v2_p2, v2_p3, v2_p4, v2_p5, v2_p6, v2_p7, v2_p8, v2_p9, v2_p10, v2_p11, v2_p12],
    &[v3_p1, v3_p2, v3_p3, v3_p4, v3_p5, v3_p6],
    &[v4_p1, v4_p2, v4_p3, v4_p4, v4_p5, v4_p6],
];

/// Where a vector of channels of a pixel begins in y and in the residual.
#[inline(always)]
fn addresses(panel: &Panel<'_>, q: &Requant, at: Pixels, (pixel, v): (usize, usize)) -> (*mut u8, *const u8) {
    let y = at.y.wrapping_add(pixel * panel.y_stride + v * 16 * q.y_size());
    (y, at.r.wrapping_add(pixel * panel.r_stride + v * 16))
}

/// Stores a block that ends within a vector or whose results are more than bytes of its own sums.
///
/// # Safety
/// AVX-512 is there; the block's pixels belong to the tile; `mult` has one entry per vector of the panel.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn store_each(panel: &Panel<'_>, q: &Requant, at: Pixels, mult: &[__m512], sums: &[__m512i]) {
    let vectors = mult.len();
    if panel.first + vectors * 16 <= panel.end {
        let row = |i: usize| {
            let (y, r) = addresses(panel, q, at, (i / vectors, i % vectors));
            (mult[i % vectors], y, r)
        };
        // SAFETY: all vectors are whole and the tile's.
        return unsafe { q.store_all(sums, 0xffff, row) };
    }
    for (i, &sum) in sums.iter().enumerate() {
        let (pixel, v) = (i / vectors, i % vectors);
        let (y, r) = addresses(panel, q, at, (pixel, v));
        // SAFETY: the mask keeps to the tile's channels.
        unsafe { q.store(sum, mult[v], lanes_before(panel.first + v * 16, panel.end), y, r) };
    }
}

/// Where a step of pixel `aN` or of pixel `6 + N` lies, as an operand.
#[rustfmt::skip]
macro_rules! operand {
    (a0) => { "dword ptr [{a}]" };
    (a1) => { "dword ptr [{a} + {s}]" };
    (a2) => { "dword ptr [{a} + {s} * 2]" };
    (a3) => { "dword ptr [{a} + {s3}]" };
    (a4) => { "dword ptr [{a} + {s} * 4]" };
    (a5) => { "dword ptr [{a} + {s5}]" };
    (b0) => { "dword ptr [{b}]" };
    (b1) => { "dword ptr [{b} + {s}]" };
    (b2) => { "dword ptr [{b} + {s} * 2]" };
    (b3) => { "dword ptr [{b} + {s3}]" };
    (b4) => { "dword ptr [{b} + {s} * 4]" };
    (b5) => { "dword ptr [{b} + {s5}]" };
}

/// Vectors, registers of the weights, then one row per pixel: a function that computes this pixel and those above,
/// the address, and for each vector its sum's register, index and weights. Defines all functions.
macro_rules! int8_blocks {
    ($v:literal, $weights:tt, [$($done:tt)*]) => {};
    ($v:literal, $weights:tt, [$($done:tt)*] ($name:ident $($row:tt)*) $($rest:tt)*) => {
        int8_blocks!(@define $name $v $weights $($done)* ($($row)*));
        int8_blocks!($v, $weights, [$($done)* ($($row)*)] $($rest)*);
    };
    (@define $name:ident $v:literal [$(($wreg:literal $wat:literal))*]
        $(($pixel:ident $(($acc:tt $i:literal $w:literal))*))*) => {
        /// # Safety
        /// AVX-512 VNNI is there; the block's pixels belong to the tile, and the panel has as many vectors.
        #[allow(clippy::modulo_one, reason = "a panel may have one vector")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        unsafe fn $name(panel: &Panel<'_>, q: &Requant, at: Pixels) {
            const V: usize = $v;
            const JOINED: bool = V == 4;
            let s = panel.sections;
            // SAFETY: `read` and `for_each_block` cut bias, mult, table and weights to the panel's size; every run and
            // its last step (at most 3 bytes past the run) is readable for pixels of the tile. A convolution has at
            // least one run of at least one step.
            unsafe {
                let mut bias = [_mm512_setzero_si512(); V];
                let mut mult = [_mm512_setzero_ps(); V];
                let mut masks = [0; V];
                for v in 0..V {
                    let first = panel.first + v * 16;
                    bias[v] = _mm512_loadu_si512(s.bias.as_ptr().add(first).cast());
                    mult[v] = _mm512_loadu_ps(s.mult.as_ptr().add(first));
                    masks[v] = lanes_before(first, panel.end);
                }
                // Sums are named one by one from here on: the compiler keeps an indexed array in memory.
                let mut acc = [$($(bias[$i % V]),*),*];
                asm!(
                    "/* {s} {s3} {s5} */",
                    "2:",
                    "mov {a:e}, dword ptr [{run}]",
                    "add {run}, 4",
                    "add {a}, {x}",
                    "lea {b}, [{a} + {s3} * 2]",
                    "mov {n:e}, {steps:e}",
                    "3:",
                    $(concat!("vmovdqa64 ", $wreg, ", [{weights} + ", $wat, "]"),)*
                    $(
                        concat!("vpbroadcastd zmm28, ", operand!($pixel)),
                        $(concat!("vpdpbusd ", $acc, ", zmm28, ", $w),)*
                    )*
                    concat!("add {weights}, 64 * ", $v),
                    "add {a}, 4",
                    "add {b}, 4",
                    "dec {n:e}",
                    "jnz 3b",
                    "dec {runs:e}",
                    "jnz 2b",
                    run = inout(reg) s.table.as_ptr() => _,
                    runs = inout(reg) s.table.len() => _,
                    steps = in(reg) s.args[0],
                    weights = inout(reg) panel.weights => _,
                    x = in(reg) at.x,
                    s = in(reg) panel.x_stride,
                    s3 = in(reg) panel.x_stride.wrapping_mul(3),
                    s5 = in(reg) panel.x_stride.wrapping_mul(5),
                    a = out(reg) _,
                    b = out(reg) _,
                    n = out(reg) _,
                    $($(inout($acc) acc[$i],)*)*
                    out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _,
                    options(nostack, readonly)
                );
                let row = |i: usize, acc: __m512i| {
                    let (y, r) = addresses(panel, q, at, (i / V, i % V));
                    (acc, mult[i % V], y, r)
                };
                let whole = masks[V - 1] == 0xffff;
                if whole && q.is_plain() {
                    store_fours!(q.store_four_plain<JOINED>, row, acc, $($($i)*)*);
                } else if whole && q.is_late() {
                    store_fours!(q.store_four_late<JOINED>, row, acc, $($($i)*)*);
                } else if whole && q.is_table() {
                    store_fours!(q.store_four_table<JOINED>, row, acc, $($($i)*)*);
                } else {
                    // A copy: sums whose address is taken would live in memory from the start.
                    let sums = [$($(acc[$i]),*),*];
                    store_each(panel, q, at, &mult, &sums);
                }
            }
        }
    };
}

#[rustfmt::skip]
int8_blocks! { 1, [("zmm24" 0)], []
    (v1_p1 a0 ("zmm0" 0 "zmm24"))
    (v1_p2 a1 ("zmm1" 1 "zmm24"))
    (v1_p3 a2 ("zmm2" 2 "zmm24"))
    (v1_p4 a3 ("zmm3" 3 "zmm24"))
    (v1_p5 a4 ("zmm4" 4 "zmm24"))
    (v1_p6 a5 ("zmm5" 5 "zmm24"))
    (v1_p7 b0 ("zmm6" 6 "zmm24"))
    (v1_p8 b1 ("zmm7" 7 "zmm24"))
    (v1_p9 b2 ("zmm8" 8 "zmm24"))
    (v1_p10 b3 ("zmm9" 9 "zmm24"))
    (v1_p11 b4 ("zmm10" 10 "zmm24"))
    (v1_p12 b5 ("zmm11" 11 "zmm24"))
}

#[rustfmt::skip]
int8_blocks! { 2, [("zmm24" 0) ("zmm25" 64)], []
    (v2_p1 a0 ("zmm0" 0 "zmm24") ("zmm1" 1 "zmm25"))
    (v2_p2 a1 ("zmm2" 2 "zmm24") ("zmm3" 3 "zmm25"))
    (v2_p3 a2 ("zmm4" 4 "zmm24") ("zmm5" 5 "zmm25"))
    (v2_p4 a3 ("zmm6" 6 "zmm24") ("zmm7" 7 "zmm25"))
    (v2_p5 a4 ("zmm8" 8 "zmm24") ("zmm9" 9 "zmm25"))
    (v2_p6 a5 ("zmm10" 10 "zmm24") ("zmm11" 11 "zmm25"))
    (v2_p7 b0 ("zmm12" 12 "zmm24") ("zmm13" 13 "zmm25"))
    (v2_p8 b1 ("zmm14" 14 "zmm24") ("zmm15" 15 "zmm25"))
    (v2_p9 b2 ("zmm16" 16 "zmm24") ("zmm17" 17 "zmm25"))
    (v2_p10 b3 ("zmm18" 18 "zmm24") ("zmm19" 19 "zmm25"))
    (v2_p11 b4 ("zmm20" 20 "zmm24") ("zmm21" 21 "zmm25"))
    (v2_p12 b5 ("zmm22" 22 "zmm24") ("zmm23" 23 "zmm25"))
}

#[rustfmt::skip]
int8_blocks! { 3, [("zmm24" 0) ("zmm25" 64) ("zmm26" 128)], []
    (v3_p1 a0 ("zmm0" 0 "zmm24") ("zmm1" 1 "zmm25") ("zmm2" 2 "zmm26"))
    (v3_p2 a1 ("zmm3" 3 "zmm24") ("zmm4" 4 "zmm25") ("zmm5" 5 "zmm26"))
    (v3_p3 a2 ("zmm6" 6 "zmm24") ("zmm7" 7 "zmm25") ("zmm8" 8 "zmm26"))
    (v3_p4 a3 ("zmm9" 9 "zmm24") ("zmm10" 10 "zmm25") ("zmm11" 11 "zmm26"))
    (v3_p5 a4 ("zmm12" 12 "zmm24") ("zmm13" 13 "zmm25") ("zmm14" 14 "zmm26"))
    (v3_p6 a5 ("zmm15" 15 "zmm24") ("zmm16" 16 "zmm25") ("zmm17" 17 "zmm26"))
}

#[rustfmt::skip]
int8_blocks! { 4, [("zmm24" 0) ("zmm25" 64) ("zmm26" 128) ("zmm27" 192)], []
    (v4_p1 a0 ("zmm0" 0 "zmm24") ("zmm1" 1 "zmm25") ("zmm2" 2 "zmm26") ("zmm3" 3 "zmm27"))
    (v4_p2 a1 ("zmm4" 4 "zmm24") ("zmm5" 5 "zmm25") ("zmm6" 6 "zmm26") ("zmm7" 7 "zmm27"))
    (v4_p3 a2 ("zmm8" 8 "zmm24") ("zmm9" 9 "zmm25") ("zmm10" 10 "zmm26") ("zmm11" 11 "zmm27"))
    (v4_p4 a3 ("zmm12" 12 "zmm24") ("zmm13" 13 "zmm25") ("zmm14" 14 "zmm26") ("zmm15" 15 "zmm27"))
    (v4_p5 a4 ("zmm16" 16 "zmm24") ("zmm17" 17 "zmm25") ("zmm18" 18 "zmm26") ("zmm19" 19 "zmm27"))
    (v4_p6 a5 ("zmm20" 20 "zmm24") ("zmm21" 21 "zmm25") ("zmm22" 22 "zmm26") ("zmm23" 23 "zmm27"))
}
