//! Dense int8 convolutions on AVX2, with 256-bit VNNI and exact without it. Panels of 16 channels in two registers.
//!
//! Without VNNI, `vpmaddubsw` would saturate, so weights are stored as i16 and each 4 bytes of x are split into two pairs
//! of 16-bit lanes, (x0, x2) by a mask and (x1, x3) by a shift; two `vpmaddwd` then add exact 32-bit sums.
//!
//! ```text
//! format "D16w", step of 4 neighbours: [pair (0,2), (1,3)][16 lanes][2] i16
//! format "D16v", step of 4 neighbours: [16 lanes][4] i8
//! ```

use super::dense_i8::{Block, Form, Results, Sums, run};
use super::packed::{LANES, Panels, expect};
use super::{ConvGeom, ConvWeights, KernelType, Operands, Packed, QEpilogue, lookup};
use lacuna_ir::op::Requant;
use std::arch::x86_64::*;

pub(super) fn pack_i8(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::Int8, weights);
    // Panels puts neighbour k of lane l at l * 4 + k of a step of 64.
    Panels::new(g, 4, 1).pack::<2>(b"D16w", weights, g, LANES, |slot| {
        let (step, lane, k) = (slot / 64, slot % 64 / 4, slot % 4);
        step * 64 + k % 2 * 32 + lane * 2 + k / 2
    })
}

pub(super) fn pack_avxvnni(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::Int8, weights);
    Panels::new(g, 4, 1).pack::<1>(b"D16v", weights, g, LANES, |slot| slot)
}

const WORDS: Form = Form {
    format: b"D16w",
    lane_bytes: 8,
    blocks: &[words::<1>, words::<2>, words::<3>, words::<4>],
    results: &RESULTS,
};

const RESULTS: Results = Results { requant, scale };

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_i8(o: &Operands<'_>) {
    // SAFETY: the caller's promise.
    unsafe { run(&WORDS, o) };
}

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_avxvnni(o: &Operands<'_>) {
    // The two encodings of 256-bit VNNI are two extensions; processors have either or both.
    let form = if is_x86_feature_detected!("avxvnni") { &AVX_VNNI } else { &AVX512_VL };
    // SAFETY: the caller's promise.
    unsafe { run(form, o) };
}

/// # Safety
/// AVX2 is there; `P` pixels from `block.x` belong to the tile.
#[target_feature(enable = "avx2,fma")]
unsafe fn words<const P: usize>(block: &Block<'_>, out: &mut Sums) {
    // SAFETY: `dense_i8` cut bias and weights to the panel's size; every run and its last step (at most
    // 3 bytes past the run) is readable for pixels of the tile.
    unsafe {
        let bias: *const __m256i = block.bias.cast();
        let mut acc = [[_mm256_loadu_si256(bias), _mm256_loadu_si256(bias.add(1))]; P];
        let low = _mm256_set1_epi32(0x00ff_00ff);
        let mut w: *const __m256i = block.weights.cast();
        for &run in block.table {
            let mut x = block.x.add(run as usize);
            for _ in 0..block.steps_per_run {
                for p in 0..P {
                    let quad = x.add(p * block.x_stride).cast::<i32>().read_unaligned();
                    let quad = _mm256_set1_epi32(quad);
                    let (even, odd) = (_mm256_and_si256(quad, low), _mm256_srli_epi16(quad, 8));
                    for v in 0..2 {
                        let a = _mm256_madd_epi16(even, _mm256_load_si256(w.add(v)));
                        let b = _mm256_madd_epi16(odd, _mm256_load_si256(w.add(v + 2)));
                        acc[p][v] = _mm256_add_epi32(acc[p][v], _mm256_add_epi32(a, b));
                    }
                }
                w = w.add(4);
                x = x.add(4);
            }
        }
        for p in 0..P {
            _mm256_storeu_si256(out[p].as_mut_ptr().cast(), acc[p][0]);
            _mm256_storeu_si256(out[p].as_mut_ptr().add(8).cast(), acc[p][1]);
        }
    }
}

/// Defines a form with VNNI by the encoding of its instruction.
macro_rules! quads {
    ($row:ident, $name:ident, $features:literal, $dot:ident) => {
        const $row: Form = Form {
            format: b"D16v",
            lane_bytes: 4,
            blocks: &[$name::<1>, $name::<2>, $name::<3>, $name::<4>, $name::<5>, $name::<6>],
            results: &RESULTS,
        };

        /// # Safety
        /// The processor has the features; `P` pixels from `block.x` belong to the tile.
        #[target_feature(enable = $features)]
        unsafe fn $name<const P: usize>(block: &Block<'_>, out: &mut Sums) {
            // SAFETY: as in `words`.
            unsafe {
                let bias: *const __m256i = block.bias.cast();
                let mut acc = [[_mm256_loadu_si256(bias), _mm256_loadu_si256(bias.add(1))]; P];
                let mut w: *const __m256i = block.weights.cast();
                for &run in block.table {
                    let mut x = block.x.add(run as usize);
                    for _ in 0..block.steps_per_run {
                        let weights = [_mm256_load_si256(w), _mm256_load_si256(w.add(1))];
                        for p in 0..P {
                            let quad = x.add(p * block.x_stride).cast::<i32>().read_unaligned();
                            let quad = _mm256_set1_epi32(quad);
                            acc[p][0] = $dot(acc[p][0], quad, weights[0]);
                            acc[p][1] = $dot(acc[p][1], quad, weights[1]);
                        }
                        w = w.add(2);
                        x = x.add(4);
                    }
                }
                for p in 0..P {
                    _mm256_storeu_si256(out[p].as_mut_ptr().cast(), acc[p][0]);
                    _mm256_storeu_si256(out[p].as_mut_ptr().add(8).cast(), acc[p][1]);
                }
            }
        }
    };
}

quads!(AVX_VNNI, quads_avxvnni, "avx2,avxvnni", _mm256_dpbusd_avx_epi32);
quads!(AVX512_VL, quads_avx512vl, "avx2,avx512vl,avx512vnni", _mm256_dpbusd_epi32);

/// `acc as f32 * mult` of 16 channels.
///
/// # Safety
/// AVX2 is there; 16 multipliers may be read.
#[target_feature(enable = "avx2")]
unsafe fn scale(mult: *const f32, acc: &[i32; LANES]) -> [f32; LANES] {
    let mut out = [0f32; LANES];
    for at in [0, 8] {
        // SAFETY: `mult` points at 16 floats, the arrays hold 16.
        unsafe {
            let f = _mm256_cvtepi32_ps(_mm256_loadu_si256(acc.as_ptr().add(at).cast()));
            _mm256_storeu_ps(out.as_mut_ptr().add(at), _mm256_mul_ps(f, _mm256_loadu_ps(mult.add(at))));
        }
    }
    out
}

/// [`QEpilogue::requant`] of 16 channels.
///
/// # Safety
/// AVX2 is there; 16 multipliers may be read.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn requant(
    mult: *const f32,
    e: &QEpilogue,
    acc: &[i32; LANES],
    residual: &[u8; LANES],
) -> [u8; LANES] {
    let mut f = [_mm256_setzero_ps(); 2];
    for v in 0..2 {
        // SAFETY: `mult` points at 16 floats, the array holds 16.
        unsafe {
            let sum = _mm256_cvtepi32_ps(_mm256_loadu_si256(acc.as_ptr().add(v * 8).cast()));
            f[v] = _mm256_mul_ps(sum, _mm256_loadu_ps(mult.add(v * 8)));
        }
    }
    if e.has_residual && e.late.is_none() {
        f = plus_residual(e, f, residual);
    }
    let mut q = rounded(f, Requant { zero: e.zero, lo: e.lo, hi: e.hi });
    if let Some(table) = &e.table {
        // SAFETY: the arrays hold 16 bytes.
        unsafe {
            let wide = _mm256_castsi128_si256(_mm_loadu_si128(q.as_ptr().cast()));
            let found = _mm256_castsi256_si128(lookup::shuffle_avx2(table, wide));
            _mm_storeu_si128(q.as_mut_ptr().cast(), found);
        }
    }
    if let (true, Some(late)) = (e.has_residual, e.late) {
        for v in 0..2 {
            // SAFETY: the array holds 16 bytes.
            let own = unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(q.as_ptr().add(v * 8).cast())) };
            let own = _mm256_cvtepi32_ps(_mm256_sub_epi32(own, _mm256_set1_epi32(late.zero)));
            f[v] = _mm256_mul_ps(own, _mm256_set1_ps(late.mult));
        }
        q = rounded(plus_residual(e, f, residual), late.out);
    }
    q
}

#[target_feature(enable = "avx2")]
fn plus_residual(e: &QEpilogue, mut f: [__m256; 2], residual: &[u8; LANES]) -> [__m256; 2] {
    for v in 0..2 {
        // SAFETY: the array holds 16 bytes.
        let r = unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(residual.as_ptr().add(v * 8).cast())) };
        let r = _mm256_cvtepi32_ps(_mm256_sub_epi32(r, _mm256_set1_epi32(e.residual_zero)));
        f[v] = _mm256_add_ps(f[v], _mm256_mul_ps(r, _mm256_set1_ps(e.residual_mult)));
    }
    f
}

#[target_feature(enable = "avx2")]
fn rounded(f: [__m256; 2], out: Requant) -> [u8; LANES] {
    let (lo, hi) = ((out.lo - out.zero) as f32, (out.hi - out.zero) as f32);
    let mut q = [_mm256_setzero_si256(); 2];
    for v in 0..2 {
        let f = _mm256_min_ps(_mm256_max_ps(f[v], _mm256_set1_ps(lo)), _mm256_set1_ps(hi));
        q[v] = _mm256_add_epi32(_mm256_cvtps_epi32(f), _mm256_set1_epi32(out.zero));
    }
    let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(q[0], q[1]));
    let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
    let mut out = [0; LANES];
    // SAFETY: `out` holds 16 bytes.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes) };
    out
}
