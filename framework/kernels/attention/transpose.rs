//! A matrix with its rows laid out as columns, for the right factor of a product.

use super::Rows;
use super::product::PANEL;
use crate::isa::Isa;

/// Writes rows `row..row + rows` of x, columns `x.first..x.first + width`, transposed into panels of 64:
/// element (i, l) to `i / 64 * 64 * width + l * 64 + i % 64`. What is left of the last vector of 16 is zero.
pub fn into_panels(x: Rows, row: usize, rows: usize, width: usize, panels: &mut [f32]) {
    assert!(panels.len() >= rows.div_ceil(PANEL) * PANEL * width);
    let mut done = 0;
    for panel in panels.chunks_exact_mut(PANEL * width).take(rows.div_ceil(PANEL)) {
        let here = (rows - done).min(PANEL);
        #[cfg(target_arch = "x86_64")]
        let squares = if Isa::best() >= Isa::Avx2 { (here / 8 * 8, width / 8 * 8) } else { (0, 0) };
        #[cfg(not(target_arch = "x86_64"))]
        let squares = (0, 0);
        #[cfg(target_arch = "x86_64")]
        if squares.0 > 0 && squares.1 > 0 {
            let first = (row + done) * x.stride + x.first;
            let all = &x.data[first..first + (squares.0 - 1) * x.stride + squares.1];
            // SAFETY: the processor has AVX2; `all` ends with the last row of the squares, and the panel holds `width`
            // rows of 64.
            unsafe { avx2::squares(all.as_ptr(), x.stride, squares, panel.as_mut_ptr()) }
        }
        for i in 0..here {
            let from = if i < squares.0 { squares.1 } else { 0 };
            for (l, &value) in x.at(row + done + i, width).iter().enumerate().skip(from) {
                panel[l * PANEL + i] = value;
            }
        }
        for row in panel.chunks_exact_mut(PANEL) {
            row[here..here.next_multiple_of(16)].fill(0.0);
        }
        done += here;
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::PANEL;
    use std::arch::x86_64::*;

    /// Transposes `rows` x `columns` (multiples of 8) floats in squares of 8 x 8.
    ///
    /// # Safety
    /// The processor has AVX2; `from` holds `rows` rows, `stride` apart, of `columns` floats, and `to` as many columns
    /// as rows of 64, with `rows` at most 64.
    #[target_feature(enable = "avx2")]
    pub unsafe fn squares(from: *const f32, stride: usize, (rows, columns): (usize, usize), to: *mut f32) {
        for i in (0..rows).step_by(8) {
            for l in (0..columns).step_by(8) {
                // SAFETY: 8 rows from i and 8 columns from l, inside by the caller's promise.
                unsafe { square(from.add(i * stride + l), stride, to.add(l * PANEL + i)) }
            }
        }
    }

    /// # Safety
    /// As above, for one square.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn square(from: *const f32, stride: usize, to: *mut f32) {
        // SAFETY: 8 rows of 8 floats are read and written, inside by the caller's promise.
        unsafe {
            // Each vector holds 4 floats of row k and 4 of row k + 4: the halves are exchanged by the loads.
            let mut left = [_mm256_setzero_ps(); 4];
            let mut right = left;
            for k in 0..4 {
                let at = from.add(k * stride);
                let below = from.add((k + 4) * stride);
                left[k] =
                    _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(_mm_loadu_ps(at)), _mm_loadu_ps(below));
                let (at, below) = (at.add(4), below.add(4));
                right[k] =
                    _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(_mm_loadu_ps(at)), _mm_loadu_ps(below));
            }
            for (half, rows) in [left, right].into_iter().enumerate() {
                let ab_low = _mm256_unpacklo_ps(rows[0], rows[1]);
                let ab_high = _mm256_unpackhi_ps(rows[0], rows[1]);
                let cd_low = _mm256_unpacklo_ps(rows[2], rows[3]);
                let cd_high = _mm256_unpackhi_ps(rows[2], rows[3]);
                let to = to.add(half * 4 * PANEL);
                _mm256_storeu_ps(to, _mm256_shuffle_ps::<0x44>(ab_low, cd_low));
                _mm256_storeu_ps(to.add(PANEL), _mm256_shuffle_ps::<0xEE>(ab_low, cd_low));
                _mm256_storeu_ps(to.add(2 * PANEL), _mm256_shuffle_ps::<0x44>(ab_high, cd_high));
                _mm256_storeu_ps(to.add(3 * PANEL), _mm256_shuffle_ps::<0xEE>(ab_high, cd_high));
            }
        }
    }
}
