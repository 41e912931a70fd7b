//! The f32 matrix product under the training convolutions: `c[m,n] (+)= Σ_k a[m,k] · b[k,n]`.
//!
//! `b` and `c` are row-major with unit column stride; `a` is read one element at a time (broadcast), so it may
//! have any two strides: weights, transposed weights and patches all go in without a copy. The sum over `k`
//! runs in order for every element, whatever the tile, so results do not depend on the blocking or the threads.

/// A read-only operand with any row and column stride, in elements.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub col: usize,
}

/// `c[i*ldc + j] = (acc ? c : 0) + Σ_k a(i,k) · b[k*ldb + j]` for `i < m`, `j < n`.
///
/// # Panics
/// If an operand is too short for its dimensions.
pub fn gemm(
    m: usize,
    n: usize,
    k: usize,
    a: Strided,
    b: &[f32],
    ldb: usize,
    c: &mut [f32],
    ldc: usize,
    acc: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(k == 0 || (m - 1) * a.row + (k - 1) * a.col < a.data.len(), "a is too short");
    assert!(k == 0 || (k - 1) * ldb + n <= b.len(), "b is too short");
    assert!((m - 1) * ldc + n <= c.len(), "c is too short");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: avx512f is present; the asserts above bound every address the tiles touch.
        unsafe { avx512::gemm(m, n, k, a, b, ldb, c, ldc, acc) };
        return;
    }
    portable(m, n, k, a, b, ldb, c, ldc, acc);
}

fn portable(
    m: usize,
    n: usize,
    k: usize,
    a: Strided,
    b: &[f32],
    ldb: usize,
    c: &mut [f32],
    ldc: usize,
    acc: bool,
) {
    const NR: usize = 16;
    for j0 in (0..n).step_by(NR) {
        let w = NR.min(n - j0);
        for i in 0..m {
            let mut sum = [0f32; NR];
            if acc {
                sum[..w].copy_from_slice(&c[i * ldc + j0..][..w]);
            }
            for p in 0..k {
                let x = a.data[i * a.row + p * a.col];
                for (s, &y) in sum.iter_mut().zip(&b[p * ldb + j0..][..w]) {
                    *s += x * y;
                }
            }
            c[i * ldc + j0..][..w].copy_from_slice(&sum[..w]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::Strided;
    use std::arch::x86_64::*;

    /// Rows of a tile: 8 rows x 3 vectors hold 24 accumulators, 3 operand vectors and a broadcast in 32 registers.
    const MR: usize = 8;

    /// # Safety
    /// avx512f; `a`, `b`, `c` are long enough for m, n, k and their strides (checked by the caller).
    #[target_feature(enable = "avx512f")]
    pub unsafe fn gemm(
        m: usize,
        n: usize,
        k: usize,
        a: Strided,
        b: &[f32],
        ldb: usize,
        c: &mut [f32],
        ldc: usize,
        acc: bool,
    ) {
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
                    TILES[rows - 1][vectors - 1](
                        k,
                        a.data.as_ptr().add(i * a.row),
                        (a.row, a.col),
                        b.as_ptr().add(j),
                        ldb,
                        c.as_mut_ptr().add(i * ldc + j),
                        ldc,
                        mask,
                        acc,
                    );
                }
                i += rows;
            }
            j += vectors * 16;
        }
    }

    type Tile =
        unsafe fn(usize, *const f32, (usize, usize), *const f32, usize, *mut f32, usize, __mmask16, bool);

    macro_rules! tiles {
        ($($rows:literal)*) => { [$([tile::<$rows, 1>, tile::<$rows, 2>, tile::<$rows, 3>],)*] };
    }
    const TILES: [[Tile; 3]; MR] = tiles!(1 2 3 4 5 6 7 8);

    /// `M` rows by `V` vectors of 16 columns; the last vector is masked.
    ///
    /// # Safety
    /// avx512f; `a` readable at `i*a_row + p*a_col` for `i < M, p < k`; `b` and `c` rows readable (and `c` writable)
    /// in all columns but those the mask clears.
    #[target_feature(enable = "avx512f")]
    unsafe fn tile<const M: usize, const V: usize>(
        k: usize,
        a: *const f32,
        (a_row, a_col): (usize, usize),
        b: *const f32,
        ldb: usize,
        c: *mut f32,
        ldc: usize,
        mask: __mmask16,
        acc: bool,
    ) {
        // SAFETY: as stated above.
        unsafe {
            let mut sum = [[_mm512_setzero_ps(); V]; M];
            if acc {
                for i in 0..M {
                    for v in 0..V - 1 {
                        sum[i][v] = _mm512_loadu_ps(c.add(i * ldc + v * 16));
                    }
                    sum[i][V - 1] = _mm512_maskz_loadu_ps(mask, c.add(i * ldc + (V - 1) * 16));
                }
            }
            for p in 0..k {
                let row = b.add(p * ldb);
                let mut y = [_mm512_setzero_ps(); V];
                for v in 0..V - 1 {
                    y[v] = _mm512_loadu_ps(row.add(v * 16));
                }
                y[V - 1] = _mm512_maskz_loadu_ps(mask, row.add((V - 1) * 16));
                for i in 0..M {
                    let x = _mm512_set1_ps(*a.add(i * a_row + p * a_col));
                    for v in 0..V {
                        sum[i][v] = _mm512_fmadd_ps(x, y[v], sum[i][v]);
                    }
                }
            }
            for i in 0..M {
                for v in 0..V - 1 {
                    _mm512_storeu_ps(c.add(i * ldc + v * 16), sum[i][v]);
                }
                _mm512_mask_storeu_ps(c.add(i * ldc + (V - 1) * 16), mask, sum[i][V - 1]);
            }
        }
    }
}
