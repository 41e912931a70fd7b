//! The product of attention: rows of u8 by packed columns of i8, sums in i32.

use super::by_isa;
use crate::target::Isa;

/// `c[i][16 * n + lane] = Σ a[i][4 * g + j] * b[n][g][lane][j]` over groups `g` and `j < 4`.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub a: *const u8,
    /// Bytes from row to row.
    pub a_row: usize,
    pub rows: usize,
    /// Fours of products in one sum.
    pub groups: usize,
    pub b: *const i8,
    /// Bytes from 16 columns to the next, and from group to group.
    pub b_block: usize,
    pub b_group: usize,
    /// Sixteens of columns.
    pub blocks: usize,
    pub c: *mut i32,
    /// Elements from row to row.
    pub c_row: usize,
}

/// # Safety
/// The processor has `isa`. `a` holds `4 * groups` bytes of every row, `b` and `c` all that the product addresses,
/// and nobody else touches `c`.
pub unsafe fn run_product(isa: Isa, p: &Product) {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512Vnni {
            return avx512::product(p);
        }
        run_plain(isa, p)
    }
}

by_isa! {
    /// # Safety
    /// As [`run_product`].
    run_plain, plain, (p: &Product)
}

#[inline(always)]
unsafe fn plain(p: &Product) {
    for row in 0..p.rows {
        for block in 0..p.blocks {
            let mut sums = [0i32; 16];
            // SAFETY: group `g` of this row and block lies inside a and b (`run_product`).
            unsafe {
                for g in 0..p.groups {
                    let a = p.a.add(row * p.a_row + 4 * g);
                    let b = p.b.add(block * p.b_block + g * p.b_group);
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        for j in 0..4 {
                            *sum += i32::from(*a.add(j)) * i32::from(*b.add(4 * lane + j));
                        }
                    }
                }
                p.c.add(row * p.c_row + 16 * block).cast::<[i32; 16]>().write(sums);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::Product;
    use std::arch::x86_64::*;

    /// # Safety
    /// AVX-512 VNNI is there, and as [`super::run_product`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub unsafe fn product(p: &Product) {
        let mut row = 0;
        // SAFETY: tiles lie inside the product.
        unsafe {
            while row < p.rows {
                match p.rows - row {
                    4.. => row += strip::<4>(p, row),
                    2..4 => row += strip::<2>(p, row),
                    _ => row += strip::<1>(p, row),
                }
            }
        }
    }

    /// `R` rows, all columns; returns `R`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn strip<const R: usize>(p: &Product, row: usize) -> usize {
        let mut block = 0;
        // SAFETY: as in `product`.
        unsafe {
            while block < p.blocks {
                match p.blocks - block {
                    4.. => block += tile::<R, 4>(p, row, block),
                    2..4 => block += tile::<R, 2>(p, row, block),
                    _ => block += tile::<R, 1>(p, row, block),
                }
            }
        }
        R
    }

    /// `R` rows and `N` sixteens of columns in registers; returns `N`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn tile<const R: usize, const N: usize>(p: &Product, row: usize, block: usize) -> usize {
        let mut sums = [[_mm512_setzero_si512(); N]; R];
        // SAFETY: group `g` of these rows and columns lies inside a and b, and the tile inside c.
        unsafe {
            let mut a = p.a.add(row * p.a_row);
            let mut b = p.b.add(block * p.b_block);
            for _ in 0..p.groups {
                let columns: [__m512i; N] =
                    std::array::from_fn(|n| _mm512_loadu_si512(b.add(n * p.b_block).cast()));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let four = _mm512_set1_epi32(a.add(r * p.a_row).cast::<i32>().read_unaligned());
                    for (sum, &column) in sums.iter_mut().zip(&columns) {
                        *sum = _mm512_dpbusd_epi32(*sum, four, column);
                    }
                }
                a = a.add(4);
                b = b.add(p.b_group);
            }
            for (r, sums) in sums.iter().enumerate() {
                for (n, &sum) in sums.iter().enumerate() {
                    _mm512_storeu_si512(p.c.add((row + r) * p.c_row + 16 * (block + n)).cast(), sum);
                }
            }
        }
        N
    }
}
