//! The f32 matrix product under the training convolutions: `c[m,n] (+)= Σ_k a[m,k] · b[k,n]`.
//!
//! Rows of `a` and `b` may lie anywhere: each operand is a slice and the place where each row begins. That makes a
//! padded image its own patch matrix (row `(c, ky, kx)` is the image shifted by the tap), and lets weights, transposed
//! weights and patches all go in without a copy. The sum over `k` runs in order for every element, whatever the tile,
//! so results do not depend on blocking or threads.

/// Rows of an operand: row `i` begins at `starts[i]`; its elements are `step` apart.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub data: &'a [f32],
    pub starts: &'a [usize],
    /// Used of the left operand only, which is read one element at a time; rows of the right one are contiguous.
    pub step: usize,
}

/// `0, stride, 2·stride, ...`: where the rows of a plain matrix begin.
pub fn starts(rows: usize, stride: usize) -> Vec<usize> {
    (0..rows).map(|i| i * stride).collect()
}

/// `c[i*ldc + j] = (acc ? c : 0) + Σ_k a(i,k) · b(k,j)` for `i < a.starts.len()`, `j < n`, `k < b.starts.len()`.
///
/// # Panics
/// If an operand is too short for its dimensions.
pub fn gemm(n: usize, a: Rows, b: Rows, c: &mut [f32], ldc: usize, acc: bool) {
    let (m, k) = (a.starts.len(), b.starts.len());
    if m == 0 || n == 0 {
        return;
    }
    let last = |rows: Rows| rows.starts.iter().copied().max().unwrap_or(0);
    assert!(k == 0 || last(a) + (k - 1) * a.step < a.data.len(), "a is too short");
    assert!(k == 0 || last(b) + n <= b.data.len(), "b is too short");
    assert!((m - 1) * ldc + n <= c.len(), "c is too short");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: avx512f is present; the asserts above bound every address the tiles touch.
        unsafe { avx512::gemm(n, a, b, c, ldc, acc) };
        return;
    }
    portable(n, a, b, c, ldc, acc);
}

fn portable(n: usize, a: Rows, b: Rows, c: &mut [f32], ldc: usize, acc: bool) {
    const NR: usize = 16;
    for j0 in (0..n).step_by(NR) {
        let w = NR.min(n - j0);
        for (i, &row) in a.starts.iter().enumerate() {
            let mut sum = [0f32; NR];
            if acc {
                sum[..w].copy_from_slice(&c[i * ldc + j0..][..w]);
            }
            for (p, &start) in b.starts.iter().enumerate() {
                let x = a.data[row + p * a.step];
                for (s, &y) in sum.iter_mut().zip(&b.data[start + j0..][..w]) {
                    *s += x * y;
                }
            }
            c[i * ldc + j0..][..w].copy_from_slice(&sum[..w]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::Rows;
    use std::arch::x86_64::*;

    /// Rows of a tile: 8 rows x 3 vectors hold 24 accumulators, 3 operand vectors and a broadcast in 32 registers.
    const MR: usize = 8;

    /// # Safety
    /// avx512f; `a`, `b`, `c` are long enough for their rows and n (checked by the caller).
    #[target_feature(enable = "avx512f")]
    pub unsafe fn gemm(n: usize, a: Rows, b: Rows, c: &mut [f32], ldc: usize, acc: bool) {
        let m = a.starts.len();
        let mut j = 0;
        while j < n {
            let vectors = (n - j).div_ceil(16).min(3);
            let last = (n - j).min(vectors * 16) - (vectors - 1) * 16;
            let mask = (0xffffu32 >> (16 - last)) as __mmask16;
            let mut i = 0;
            while i < m {
                let rows = MR.min(m - i);
                // SAFETY: the tile covers rows i..i+rows and columns j..min(n, j+48), inside the checked bounds.
                unsafe {
                    let b_at = b.data.as_ptr().add(j);
                    let c_at = c.as_mut_ptr().add(i * ldc + j);
                    TILES[rows - 1][vectors - 1](a, i, b_at, b.starts, c_at, ldc, mask, acc);
                }
                i += rows;
            }
            j += vectors * 16;
        }
    }

    type Tile = unsafe fn(Rows, usize, *const f32, &[usize], *mut f32, usize, __mmask16, bool);

    macro_rules! tiles {
        ($($rows:literal)*) => { [$([tile::<$rows, 1>, tile::<$rows, 2>, tile::<$rows, 3>],)*] };
    }
    const TILES: [[Tile; 3]; MR] = tiles!(1 2 3 4 5 6 7 8);

    /// `M` rows of `a` from row `i` by `V` vectors of 16 columns; the last vector is masked.
    ///
    /// # Safety
    /// avx512f; rows `i..i+M` of `a` are readable at every k; rows of `b` and `c` are readable (and `c` writable) in
    /// all columns but those the mask clears.
    #[target_feature(enable = "avx512f")]
    unsafe fn tile<const M: usize, const V: usize>(
        a: Rows,
        i: usize,
        b: *const f32,
        b_starts: &[usize],
        c: *mut f32,
        ldc: usize,
        mask: __mmask16,
        acc: bool,
    ) {
        // SAFETY: as stated above.
        unsafe {
            let mut x_row = [std::ptr::null::<f32>(); M];
            for (r, row) in x_row.iter_mut().enumerate() {
                *row = a.data.as_ptr().add(a.starts[i + r]);
            }
            let mut sum = [[_mm512_setzero_ps(); V]; M];
            if acc {
                for r in 0..M {
                    for v in 0..V - 1 {
                        sum[r][v] = _mm512_loadu_ps(c.add(r * ldc + v * 16));
                    }
                    sum[r][V - 1] = _mm512_maskz_loadu_ps(mask, c.add(r * ldc + (V - 1) * 16));
                }
            }
            let mut at = 0;
            for &start in b_starts {
                let row = b.add(start);
                let mut y = [_mm512_setzero_ps(); V];
                for v in 0..V - 1 {
                    y[v] = _mm512_loadu_ps(row.add(v * 16));
                }
                y[V - 1] = _mm512_maskz_loadu_ps(mask, row.add((V - 1) * 16));
                for r in 0..M {
                    let x = _mm512_set1_ps(*x_row[r].add(at));
                    for v in 0..V {
                        sum[r][v] = _mm512_fmadd_ps(x, y[v], sum[r][v]);
                    }
                }
                at += a.step;
            }
            for r in 0..M {
                for v in 0..V - 1 {
                    _mm512_storeu_ps(c.add(r * ldc + v * 16), sum[r][v]);
                }
                _mm512_mask_storeu_ps(c.add(r * ldc + (V - 1) * 16), mask, sum[r][V - 1]);
            }
        }
    }
}
