//! Transposition of f32 matrices, and between the two orders of images.

use crate::isa::Isa;
use crate::shared::Shared;
use rayon::prelude::*;

/// Elements of a task.
const TASK: usize = 1 << 15;

/// `out[cols][rows]` = the transpose of `x[rows][cols]`.
///
/// # Panics
/// If a slice is not of rows * cols elements.
pub fn transpose(x: &[f32], rows: usize, cols: usize, out: &mut [f32]) {
    many(x, 1, rows, cols, out);
}

/// Images `x[n][c][hw]` to `out[n][hw][c]`.
///
/// # Panics
/// If a slice is not of n * c * hw elements.
pub fn nchw_to_nhwc(x: &[f32], n: usize, c: usize, hw: usize, out: &mut [f32]) {
    many(x, n, c, hw, out);
}

/// Images `x[n][hw][c]` to `out[n][c][hw]`.
///
/// # Panics
/// If a slice is not of n * c * hw elements.
pub fn nhwc_to_nchw(x: &[f32], n: usize, c: usize, hw: usize, out: &mut [f32]) {
    many(x, n, hw, c, out);
}

/// Transposes each of n matrices.
fn many(x: &[f32], n: usize, rows: usize, cols: usize, out: &mut [f32]) {
    let len = rows * cols;
    assert!(x.len() == n * len && out.len() == n * len, "{n} matrices of {rows} x {cols}");
    if x.is_empty() {
        return;
    }
    if rows == 1 || cols == 1 {
        out.copy_from_slice(x);
        return;
    }
    // Bands of columns become rows of the result, so that a task writes one contiguous stretch.
    let band = (TASK / rows).next_multiple_of(16).clamp(16, cols.next_multiple_of(16));
    let bands = cols.div_ceil(band);
    let shared = Shared::new(out);
    let isa = Isa::best();
    let task = |i: usize| {
        let (image, first) = (i / bands, i % bands * band);
        let width = band.min(cols - first);
        // SAFETY: bands are disjoint rows of the result.
        let out = unsafe { shared.part(image * len + first * rows, width * rows) };
        scatter(isa, &x[image * len + first..(image + 1) * len], rows, width, cols, out, rows, |j| j * rows);
    };
    // Small images are dealt out several at a time.
    (0..n * bands).into_par_iter().with_min_len((TASK / (band * rows)).max(1)).for_each(task);
}

/// `out[to(j) + i] = x[i * pitch + j]` for `i < rows`, `j < cols`, and 0 for `rows <= i < lanes`. At most 16 lanes follow
/// the last multiple of 16 rows.
///
/// # Panics
/// If `x` is too short or `to` leads outside of `out`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn scatter(
    isa: Isa,
    x: &[f32],
    rows: usize,
    cols: usize,
    pitch: usize,
    out: &mut [f32],
    lanes: usize,
    to: impl Fn(usize) -> usize,
) {
    let len = out.len();
    let inside = |j: usize| {
        let at = to(j);
        assert!(at <= len && lanes <= len - at, "{lanes} elements from {at} on, of {len}");
        at
    };
    // SAFETY: `inside` checks what is written.
    unsafe { scatter_to(isa, x, rows, cols, pitch, out.as_mut_ptr(), lanes, inside) };
}

/// [`scatter`] into a buffer that others write too.
///
/// # Panics
/// If `x` is too short.
///
/// # Safety
/// `lanes` elements from each `to(j)` on may be written, and nobody else uses them.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn scatter_to(
    isa: Isa,
    x: &[f32],
    rows: usize,
    cols: usize,
    pitch: usize,
    out: *mut f32,
    lanes: usize,
    to: impl Fn(usize) -> usize,
) {
    assert!(rows <= lanes && lanes <= rows.next_multiple_of(16));
    if rows == 0 || cols == 0 {
        return;
    }
    assert!((rows - 1) * pitch + cols <= x.len(), "{rows} rows of {cols} in {} elements", x.len());
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 {
        // SAFETY: `Isa` says that the processor has AVX-512; `x` is long enough (checked above).
        unsafe { avx512::scatter(x, rows, cols, pitch, out, lanes, to) };
        return;
    }
    let _ = isa;
    for i in (0..lanes).step_by(16) {
        for j in 0..cols {
            for l in i..lanes.min(i + 16) {
                // SAFETY: as the caller promises.
                unsafe { *out.add(to(j) + l) = if l < rows { x[l * pitch + j] } else { 0.0 } };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    /// # Safety
    /// AVX-512 F; `x` has `rows` rows of `cols` elements, `pitch` apart; otherwise as of [`super::scatter_to`].
    #[target_feature(enable = "avx512f")]
    pub unsafe fn scatter(
        x: &[f32],
        rows: usize,
        cols: usize,
        pitch: usize,
        out: *mut f32,
        lanes: usize,
        to: impl Fn(usize) -> usize,
    ) {
        let (down, right) = (lanes.div_ceil(16), cols.div_ceil(16));
        for block in 0..down * right {
            // Along the longer side, which is contiguous in memory on one of both ends.
            let (i, j) =
                if down > right { (block % down, block / down) } else { (block / right, block % right) };
            let (i, j) = (i * 16, j * 16);
            // SAFETY: as the caller promises; masks leave out what is beyond `cols` and `lanes`.
            unsafe {
                if i + 16 <= rows && j + 16 <= cols {
                    let mut r = [_mm512_setzero_ps(); 16];
                    for l in 0..16 {
                        r[l] = _mm512_loadu_ps(x.as_ptr().add((i + l) * pitch + j));
                    }
                    let r = transposed(r);
                    for k in 0..16 {
                        _mm512_storeu_ps(out.add(to(j + k) + i), r[k]);
                    }
                } else {
                    let first = |count: usize| (0xffffu32 >> (16 - count.min(16))) as __mmask16;
                    let (width, used) = (first(cols - j), first(lanes - i));
                    let mut r = [_mm512_setzero_ps(); 16];
                    for l in 0..16 {
                        let mask = if i + l < rows { width } else { 0 };
                        r[l] = _mm512_maskz_loadu_ps(mask, x.as_ptr().wrapping_add((i + l) * pitch + j));
                    }
                    let r = transposed(r);
                    for k in 0..16 {
                        if j + k < cols {
                            _mm512_mask_storeu_ps(out.add(to(j + k) + i), used, r[k]);
                        }
                    }
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transposed(r: [__m512; 16]) -> [__m512; 16] {
        let mut t = r;
        for h in 0..8 {
            let i = 2 * h;
            t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
            t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
        }
        // u[4 i + k]: columns k, 4 + k, 8 + k, 12 + k of rows 4 i.., one in each quarter.
        let mut u = t;
        let d = |v| _mm512_castps_pd(v);
        for q in 0..4 {
            let i = 4 * q;
            u[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(t[i]), d(t[i + 2])));
            u[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(t[i]), d(t[i + 2])));
            u[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(d(t[i + 1]), d(t[i + 3])));
            u[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(d(t[i + 1]), d(t[i + 3])));
        }
        let mut out = u;
        for k in 0..4 {
            let even = [0, 8].map(|h| _mm512_shuffle_f32x4::<0x88>(u[h + k], u[h + 4 + k]));
            let odd = [0, 8].map(|h| _mm512_shuffle_f32x4::<0xdd>(u[h + k], u[h + 4 + k]));
            out[k] = _mm512_shuffle_f32x4::<0x88>(even[0], even[1]);
            out[4 + k] = _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]);
            out[8 + k] = _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]);
            out[12 + k] = _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_transposes_and_fills_up_with_zeros() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            for (rows, cols, pitch) in [(1usize, 1, 1), (16, 16, 16), (17, 33, 40), (48, 5, 5), (31, 64, 64)]
            {
                let x: Vec<f32> = (0..rows * pitch).map(|i| i as f32 + 1.0).collect();
                let lanes = rows.next_multiple_of(16);
                let mut out = vec![f32::NAN; cols * lanes];
                scatter(isa, &x, rows, cols, pitch, &mut out, lanes, |j| j * lanes);
                for (at, &v) in out.iter().enumerate() {
                    let (j, i) = (at / lanes, at % lanes);
                    let expected = if i < rows { x[i * pitch + j] } else { 0.0 };
                    assert_eq!(v, expected, "{} {rows} x {cols}: ({i}, {j})", isa.name());
                }
            }
        }
    }

    #[test]
    fn images_of_every_size_change_order_and_back() {
        for (n, c, hw) in [(1, 1, 7), (3, 3, 49), (2, 64, 784), (5, 20, 1), (1, 300, 500), (0, 3, 4)] {
            let x: Vec<f32> = (0..n * c * hw).map(|i| i as f32).collect();
            let (mut nhwc, mut back) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
            nchw_to_nhwc(&x, n, c, hw, &mut nhwc);
            for (at, &v) in nhwc.iter().enumerate() {
                let (image, pixel, channel) = (at / (c * hw), at / c % hw, at % c);
                assert_eq!(v, x[(image * c + channel) * hw + pixel]);
            }
            nhwc_to_nchw(&nhwc, n, c, hw, &mut back);
            assert_eq!(back, x);
        }
    }
}
