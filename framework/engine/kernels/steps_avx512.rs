//! Row steps on AVX-512: normalisation and the softmax of integer attention, operation by operation as
//! `lacuna_ir::reference` says.

use super::attention::{AttentionStep, Head, QUERIES};
use super::rows::{NormOperands, NormStep};
use lacuna_ir::op::Requant;
use lacuna_ir::reference::fixed::{EXP2, EXP2_MIN, ROUND};
use lacuna_ir::reference::norm::offset;
use std::arch::x86_64::*;

/// All lanes.
const ALL: __mmask16 = 0xffff;

/// The lanes of the vector at element `at` that lie before `end`.
fn lanes_before(at: usize, end: usize) -> __mmask16 {
    match end.saturating_sub(at) {
        16.. => ALL,
        n => (1 << n) - 1,
    }
}

/// Sums in 64 lanes.
type Lanes = [__m512; 4];

/// The masks of 64 lanes at element `at` that lie before `end`.
fn masks_before(at: usize, end: usize) -> [__mmask16; 4] {
    [0, 16, 32, 48].map(|d| lanes_before(at + d, end))
}

/// `lacuna_ir::reference::fixed::sum_lanes`.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn sum_lanes(x: Lanes) -> f32 {
    let x = _mm512_add_ps(_mm512_add_ps(x[0], x[2]), _mm512_add_ps(x[1], x[3]));
    let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

/// `lacuna_ir::reference::fixed::exp2_value` of every lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp2(x: __m512) -> __m512 {
    let x = _mm512_max_ps(x, _mm512_set1_ps(EXP2_MIN));
    let shifted = _mm512_add_ps(x, _mm512_set1_ps(ROUND));
    let f = _mm512_sub_ps(x, _mm512_sub_ps(shifted, _mm512_set1_ps(ROUND)));
    let mut p = _mm512_set1_ps(EXP2[3]);
    for c in [EXP2[2], EXP2[1], EXP2[0], 1.0] {
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
    }
    let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), power))
}

/// `lacuna_ir::reference::quant::requantize`, in lanes.
#[derive(Clone, Copy)]
struct Rounding {
    lo: __m512,
    hi: __m512,
    zero: __m512i,
    zero_words: __m512i,
}

impl Rounding {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(out: Requant) -> Rounding {
        Rounding {
            lo: _mm512_set1_ps((out.lo - out.zero) as f32),
            hi: _mm512_set1_ps((out.hi - out.zero) as f32),
            zero: _mm512_set1_epi32(out.zero),
            zero_words: _mm512_set1_epi16(out.zero as i16),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn whole(&self, f: __m512) -> __m512i {
        // The maximum takes its second operand where the first is not a number.
        _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(f, self.lo), self.hi))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn sixteen(&self, f: __m512) -> __m128i {
        _mm512_cvtepi32_epi8(_mm512_add_epi32(self.whole(f), self.zero))
    }

    /// Four neighbours of sixteen as 64 bytes in their order.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn sixty_four(&self, f: [__m512; 4]) -> __m512i {
        let [a, b, c, d] = [self.whole(f[0]), self.whole(f[1]), self.whole(f[2]), self.whole(f[3])];
        join(a, b, c, d, self.zero_words)
    }
}

/// Four neighbours of sixteen words plus `zero`, saturated to bytes in their order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn join(a: __m512i, b: __m512i, c: __m512i, d: __m512i, zero: __m512i) -> __m512i {
    let low = _mm512_adds_epi16(_mm512_packs_epi32(a, b), zero);
    let high = _mm512_adds_epi16(_mm512_packs_epi32(c, d), zero);
    // Packing works within 128 bits: four bytes of each operand in turn.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high))
}

/// Normalises one row; operands begin there.
///
/// # Safety
/// AVX-512 F, BW, DQ and VL are there; as `rows::run_norm`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn norm_row(s: &NormStep, p: NormOperands) {
    // SAFETY: the caller's promise.
    unsafe {
        let sum = match (s.a.affine.is_some(), s.b.map(|b| b.affine.is_some())) {
            (false, None) => sum_rows::<false, false, false>(s, p),
            (true, None) => sum_rows::<true, false, false>(s, p),
            (false, Some(false)) => sum_rows::<false, true, false>(s, p),
            (true, Some(false)) => sum_rows::<true, true, false>(s, p),
            (false, Some(true)) => sum_rows::<false, true, true>(s, p),
            (true, Some(true)) => sum_rows::<true, true, true>(s, p),
        };
        let mean = _mm512_set1_ps(sum_lanes(sum) / s.len as f32);
        let mut squares = [_mm512_setzero_ps(); 4];
        let whole = s.len / 64 * 64;
        for i in (0..whole).step_by(64) {
            for (k, squares) in squares.iter_mut().enumerate() {
                let d = _mm512_sub_ps(_mm512_loadu_ps(p.x.add(i + 16 * k)), mean);
                *squares = _mm512_fmadd_ps(d, d, *squares);
            }
        }
        if whole < s.len {
            let masks = masks_before(whole, s.len);
            for (k, squares) in squares.iter_mut().enumerate() {
                let x = _mm512_maskz_loadu_ps(masks[k], p.x.add(whole + 16 * k));
                let d = _mm512_maskz_sub_ps(masks[k], x, mean);
                *squares = _mm512_fmadd_ps(d, d, *squares);
            }
        }
        let inverse = 1.0 / (sum_lanes(squares) / s.len as f32 + s.epsilon).sqrt();
        finish_rows(s, p, mean, _mm512_set1_ps(inverse));
    }
}

/// Writes the sum of the operands' rows to x; returns the sums of its lanes. `A` and `B`: whether the operand is u8.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn sum_rows<const A: bool, const BOTH: bool, const B: bool>(s: &NormStep, p: NormOperands) -> Lanes {
    let affine = [s.a.affine, s.b.and_then(|b| b.affine)];
    let [a_mult, b_mult] = affine.map(|m| _mm512_set1_ps(m.map_or(1.0, |m| m.mult)));
    let offset = _mm512_set1_ps(offset(affine[0], affine[1]));
    let sixteen = |i: usize, mask: __mmask16| {
        // SAFETY: lanes in `mask` are elements of the row.
        unsafe {
            let bytes = |p: *const u8| {
                _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, p.add(i).cast())))
            };
            let floats = |p: *const u8| _mm512_maskz_loadu_ps(mask, p.cast::<f32>().add(i));
            let mut x = match (A, BOTH, B) {
                (false, false, _) => floats(p.a),
                (false, true, false) => _mm512_add_ps(floats(p.a), floats(p.b)),
                (false, true, true) => _mm512_add_ps(floats(p.a), offset),
                (true, true, false) => _mm512_add_ps(floats(p.b), offset),
                (true, ..) => offset,
            };
            if BOTH && B {
                x = _mm512_fmadd_ps(bytes(p.b), b_mult, x);
            }
            if A {
                x = _mm512_fmadd_ps(bytes(p.a), a_mult, x);
            }
            _mm512_mask_storeu_ps(p.x.add(i), mask, x);
            x
        }
    };
    let mut sums = [_mm512_setzero_ps(); 4];
    let whole = s.len / 64 * 64;
    for i in (0..whole).step_by(64) {
        for (k, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_add_ps(*sum, sixteen(i + 16 * k, ALL));
        }
    }
    if whole < s.len {
        for (k, sum) in sums.iter_mut().enumerate() {
            let mask = lanes_before(whole + 16 * k, s.len);
            *sum = _mm512_mask_add_ps(*sum, mask, *sum, sixteen(whole + 16 * k, mask));
        }
    }
    sums
}

/// From the sums in x to results.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn finish_rows(s: &NormStep, p: NormOperands, mean: __m512, inverse: __m512) {
    let keep = s.f32_stride.is_some();
    // A macro: as a closure it would be called, four times for 64 elements.
    macro_rules! normal {
        ($i:expr, $mask:expr) => {{
            let (i, mask): (usize, __mmask16) = ($i, $mask);
            // SAFETY: lanes in `mask` are elements of the row, of scale and of bias.
            unsafe {
                let d = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, p.x.add(i)), mean);
                let (scale, bias) =
                    (_mm512_maskz_loadu_ps(mask, p.scale.add(i)), _mm512_maskz_loadu_ps(mask, p.bias.add(i)));
                let x = _mm512_fmadd_ps(_mm512_mul_ps(d, inverse), scale, bias);
                if keep {
                    _mm512_mask_storeu_ps(p.x.add(i), mask, x);
                }
                x
            }
        }};
    }
    let Some((out, _)) = s.out else {
        for i in (0..s.len).step_by(16) {
            normal!(i, lanes_before(i, s.len));
        }
        return;
    };
    let (round, y_mult) = (Rounding::new(out), _mm512_set1_ps(s.y_mult));
    let mut i = 0;
    while i + 64 <= s.len {
        let x = [normal!(i, ALL), normal!(i + 16, ALL), normal!(i + 32, ALL), normal!(i + 48, ALL)];
        let x = x.map(|x| _mm512_mul_ps(x, y_mult));
        // SAFETY: these 64 elements are the row's.
        unsafe { _mm512_storeu_si512(p.y.add(i).cast(), round.sixty_four(x)) };
        i += 64;
    }
    while i < s.len {
        let mask = lanes_before(i, s.len);
        let bytes = round.sixteen(_mm512_mul_ps(normal!(i, mask), y_mult));
        // SAFETY: lanes in `mask` are elements of the row.
        unsafe { _mm_mask_storeu_epi8(p.y.add(i).cast(), mask, bytes) };
        i += 16;
    }
}

/// From scores to chances of queries `first..first + rows`. Scores become exponents of two, then exponentials, where they
/// are, one pass over all rows after the other: rows do not wait for each other's sums.
///
/// # Safety
/// AVX-512 F, BW, DQ, VL and VNNI are there; as `attention::run_attention`, with the scores of these rows there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn softmax(s: &AttentionStep, head: &Head, first: usize, rows: usize) {
    let [keys, padded_keys, _] = s.padded();
    let mult = _mm512_set1_ps(s.attr.score_mult);
    let whole = s.keys / 64 * 64;
    let tail = masks_before(whole, s.keys);
    let mut maxima = [0.0f32; QUERIES];
    let mut sums = [1.0f32; QUERIES];
    // SAFETY: pieces of scratch, as long as `padded` says; query `first + i` has `depth` bytes; masks keep to the keys.
    unsafe {
        let shift = head.scratch_at::<f32>(head.at.shift);
        let row_at = |i: usize| head.scratch_at::<f32>(head.at.scores).add(i * keys);
        for (i, max) in maxima.iter_mut().enumerate().take(rows) {
            let row = row_at(i);
            let sum = byte_sum(head.q.add((first + i) * s.strides[1][1]), s.depth);
            let own = _mm512_set1_epi32((128 - s.attr.k_zero) * sum);
            let score = |j: usize, mask: __mmask16| {
                let product = _mm512_maskz_loadu_epi32(mask, row.add(j).cast());
                let f = _mm512_cvtepi32_ps(_mm512_add_epi32(product, own));
                let t = _mm512_fmadd_ps(f, mult, _mm512_maskz_loadu_ps(mask, shift.add(j)));
                _mm512_mask_storeu_ps(row.add(j), mask, t);
                t
            };
            let mut lanes = [_mm512_set1_ps(f32::NEG_INFINITY); 4];
            for j in (0..whole).step_by(64) {
                for (k, lanes) in lanes.iter_mut().enumerate() {
                    *lanes = _mm512_max_ps(score(j + 16 * k, ALL), *lanes);
                }
            }
            if whole < s.keys {
                for (k, lanes) in lanes.iter_mut().enumerate() {
                    *lanes = _mm512_mask_max_ps(*lanes, tail[k], score(whole + 16 * k, tail[k]), *lanes);
                }
            }
            let pair = _mm512_max_ps(_mm512_max_ps(lanes[0], lanes[2]), _mm512_max_ps(lanes[1], lanes[3]));
            *max = _mm512_reduce_max_ps(pair);
        }
        for (i, sum) in sums.iter_mut().enumerate().take(rows) {
            let (row, max) = (row_at(i), _mm512_set1_ps(maxima[i]));
            let power = |j: usize, mask: __mmask16| {
                let e = exp2(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, row.add(j)), max));
                _mm512_mask_storeu_ps(row.add(j), mask, e);
                e
            };
            let mut lanes = [_mm512_setzero_ps(); 4];
            for j in (0..whole).step_by(64) {
                for (k, lanes) in lanes.iter_mut().enumerate() {
                    *lanes = _mm512_add_ps(*lanes, power(j + 16 * k, ALL));
                }
            }
            if whole < s.keys {
                for (k, lanes) in lanes.iter_mut().enumerate() {
                    *lanes = _mm512_mask_add_ps(*lanes, tail[k], *lanes, power(whole + 16 * k, tail[k]));
                }
            }
            *sum = sum_lanes(lanes);
        }
        // Chances are not negative, and no larger than `p_mult`, which fits.
        for (i, sum) in sums.iter().enumerate().take(rows) {
            let (row, scale) = (row_at(i), _mm512_set1_ps(s.attr.p_mult / sum));
            let chances = head.scratch_at::<u8>(head.at.chances).add(i * padded_keys);
            let zero = _mm512_setzero_si512();
            let chance = |j: usize, mask: __mmask16| {
                _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, row.add(j)), scale))
            };
            for j in (0..whole).step_by(64) {
                let [a, b, c, d] = [0, 16, 32, 48].map(|d| chance(j + d, ALL));
                _mm512_storeu_si512(chances.add(j).cast(), join(a, b, c, d, zero));
            }
            if whole < s.keys {
                let [a, b, c, d] = [0, 1, 2, 3].map(|k| chance(whole + 16 * k, tail[k]));
                _mm512_storeu_si512(chances.add(whole).cast(), join(a, b, c, d, zero));
            }
        }
    }
}

/// From context to results of queries `first..first + rows`.
///
/// # Safety
/// As [`softmax`], with context and chances of these rows there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn finish(s: &AttentionStep, head: &Head, first: usize, rows: usize) {
    let [_, padded_keys, width] = s.padded();
    let (round, mult) = (Rounding::new(s.attr.out), _mm512_set1_ps(s.attr.out_mult));
    // SAFETY: as in `softmax`; row `first + i` of y has `depth` bytes.
    unsafe {
        for i in 0..rows {
            let sum = byte_sum(head.scratch_at::<u8>(head.at.chances).add(i * padded_keys), padded_keys);
            let own = _mm512_set1_epi32((128 - s.attr.v_zero) * sum);
            let context = head.scratch_at::<i32>(head.at.context).add(i * width);
            let y = head.y.add((first + i) * s.strides[0][1]);
            let result = |d: usize| {
                let acc = _mm512_add_epi32(_mm512_loadu_si512(context.add(d).cast()), own);
                _mm512_mul_ps(_mm512_cvtepi32_ps(acc), mult)
            };
            let mut d = 0;
            while d + 64 <= s.depth {
                let bytes = round.sixty_four([result(d), result(d + 16), result(d + 32), result(d + 48)]);
                _mm512_storeu_si512(y.add(d).cast(), bytes);
                d += 64;
            }
            while d < s.depth {
                _mm_mask_storeu_epi8(y.add(d).cast(), lanes_before(d, s.depth), round.sixteen(result(d)));
                d += 16;
            }
        }
    }
}

/// The sum of `len` bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn byte_sum(p: *const u8, len: usize) -> i32 {
    let mut sum = _mm512_setzero_si512();
    for i in (0..len).step_by(64) {
        let mask = if len - i >= 64 { u64::MAX } else { (1 << (len - i)) - 1 };
        // SAFETY: bytes in `mask` are before `len`.
        let bytes = unsafe { _mm512_maskz_loadu_epi8(mask, p.add(i).cast()) };
        sum = _mm512_add_epi64(sum, _mm512_sad_epu8(bytes, _mm512_setzero_si512()));
    }
    _mm512_reduce_add_epi64(sum) as i32
}

/// Packs keys and values, and what scores get from keys and mask alone.
///
/// # Safety
/// As [`softmax`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub unsafe fn pack(s: &AttentionStep, head: &Head) {
    let [keys, padded_keys, width] = s.padded();
    let groups = s.depth.div_ceil(4);
    let a = &s.attr;
    let key_shift = s.depth as i32 * (128 - a.k_zero);
    let sign = _mm512_set1_epi8(-128);
    // SAFETY: pieces of scratch, as long as `padded` says; rows of keys and values have `depth` bytes, of the mask
    // `keys` elements, and masks keep to them.
    unsafe {
        for j in (0..keys).step_by(16) {
            let mut sum = _mm512_setzero_si512();
            for first in (0..groups).step_by(16) {
                let left = s.depth - first * 4;
                let mask = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
                let mut rows = [_mm512_setzero_si512(); 16];
                for (i, row) in rows.iter_mut().enumerate() {
                    if j + i < s.keys {
                        let key = head.k.add((j + i) * s.strides[2][1] + first * 4);
                        let bytes = _mm512_maskz_loadu_epi8(mask, key.cast());
                        *row = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(bytes, sign));
                    }
                }
                let turned = transpose(rows);
                let to = head.scratch_at::<u8>(head.at.keys).add(j * groups * 4 + first * 64);
                for (g, &four) in turned.iter().enumerate().take(groups - first) {
                    _mm512_storeu_si512(to.add(g * 64).cast(), four);
                    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), four);
                }
            }
            let column = _mm512_add_epi32(sum, _mm512_set1_epi32(key_shift));
            let column = _mm512_mullo_epi32(column, _mm512_set1_epi32(-a.q_zero));
            _mm512_storeu_si512(head.scratch_at::<i32>(head.at.column).add(j).cast(), column);
            let mask = if s.mask.is_some() { lanes_before(j, s.keys) } else { 0 };
            let shift = _mm512_maskz_loadu_ps(mask, head.mask.add(j));
            let shift = _mm512_mul_ps(shift, _mm512_set1_ps(std::f32::consts::LOG2_E));
            _mm512_storeu_ps(head.scratch_at::<f32>(head.at.shift).add(j), shift);
        }
        for d in (0..width).step_by(16) {
            _mm512_storeu_si512(head.scratch_at::<i32>(head.at.zeros).add(d).cast(), _mm512_setzero_si512());
        }
        for j in (0..padded_keys).step_by(4) {
            for first in (0..s.depth).step_by(64) {
                let left = s.depth - first;
                let mask = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
                let mut rows = [_mm512_setzero_si512(); 4];
                for (i, row) in rows.iter_mut().enumerate() {
                    if j + i < s.keys {
                        let value = head.v.add((j + i) * s.strides[3][1] + first);
                        let bytes = _mm512_maskz_loadu_epi8(mask, value.cast());
                        *row = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(bytes, sign));
                    }
                }
                let to = head.scratch_at::<u8>(head.at.values).add(j * width + first * 4);
                for (block, four) in interleave(rows).into_iter().enumerate().take((width - first) / 16) {
                    _mm512_storeu_si512(to.add(block * 64).cast(), four);
                }
            }
        }
    }
}

/// Word `i` of row `j` becomes word `j` of row `i`.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(x: [__m512i; 16]) -> [__m512i; 16] {
    let mut a = x;
    for i in (0..16).step_by(2) {
        (a[i], a[i + 1]) = (_mm512_unpacklo_epi32(x[i], x[i + 1]), _mm512_unpackhi_epi32(x[i], x[i + 1]));
    }
    // Row 4 * i + k of `b`: column k of each 128 bits of rows 4 * i to 4 * i + 3.
    let mut b = a;
    for i in (0..16).step_by(4) {
        (b[i], b[i + 1]) = (_mm512_unpacklo_epi64(a[i], a[i + 2]), _mm512_unpackhi_epi64(a[i], a[i + 2]));
        (b[i + 2], b[i + 3]) =
            (_mm512_unpacklo_epi64(a[i + 1], a[i + 3]), _mm512_unpackhi_epi64(a[i + 1], a[i + 3]));
    }
    let mut y = b;
    for k in 0..4 {
        let turned = transpose_quarters([b[k], b[4 + k], b[8 + k], b[12 + k]]);
        (0..4).for_each(|q| y[4 * q + k] = turned[q]);
    }
    y
}

/// Quarter `i` of row `j` becomes quarter `j` of row `i`.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_quarters([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let ab_low = _mm512_shuffle_i64x2::<0b01_00_01_00>(a, b);
    let ab_high = _mm512_shuffle_i64x2::<0b11_10_11_10>(a, b);
    let cd_low = _mm512_shuffle_i64x2::<0b01_00_01_00>(c, d);
    let cd_high = _mm512_shuffle_i64x2::<0b11_10_11_10>(c, d);
    [
        _mm512_shuffle_i64x2::<0b10_00_10_00>(ab_low, cd_low),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(ab_low, cd_low),
        _mm512_shuffle_i64x2::<0b10_00_10_00>(ab_high, cd_high),
        _mm512_shuffle_i64x2::<0b11_01_11_01>(ab_high, cd_high),
    ]
}

/// Byte `d` of row `j` becomes byte `4 * d + j`, of 256.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab_low, ab_high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
    let (cd_low, cd_high) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
    transpose_quarters([
        _mm512_unpacklo_epi16(ab_low, cd_low),
        _mm512_unpackhi_epi16(ab_low, cd_low),
        _mm512_unpacklo_epi16(ab_high, cd_high),
        _mm512_unpackhi_epi16(ab_high, cd_high),
    ])
}
