//! c = a * b for the small matrices of one attention head: everything in cache, columns in whole vectors.

use crate::isa::Isa;

/// Columns of a panel of [`Right`].
pub const PANEL: usize = 64;

/// The left factor: element (i, l) at `i * row + l * step`, so a transposed matrix is one with its strides exchanged.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub step: usize,
}

/// The right factor: element (l, j) at `j / 64 * panel + l * step + j % 64`. A matrix in row order has 64 for `panel`.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    pub data: &'a [f32],
    pub step: usize,
    pub panel: usize,
}

/// Sizes of a product: c is [rows][columns], and `depth` products are summed for each element.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
}

/// c = a * b, or c += a * b if `add`; rows of `c` are `c_row` apart. `columns` is a multiple of 16.
pub fn product(sizes: Sizes, a: Left, b: Right, c: &mut [f32], c_row: usize, add: bool) {
    let Sizes { rows, columns, depth } = sizes;
    assert!(columns.is_multiple_of(16) && rows > 0 && columns > 0 && depth > 0);
    assert!(a.data.len() > (rows - 1) * a.row + (depth - 1) * a.step);
    let last_panel = (columns - 1) / PANEL;
    let in_last = columns - last_panel * PANEL;
    assert!(b.data.len() >= last_panel * b.panel + (depth - 1) * b.step + in_last);
    assert!(last_panel == 0 || b.data.len() >= (last_panel - 1) * b.panel + (depth - 1) * b.step + PANEL);
    assert!(c_row >= columns && c.len() >= (rows - 1) * c_row + columns);
    match Isa::best() {
        // SAFETY: the processor has these instructions; the bounds they rely on are checked above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::product(sizes, a, b, c.as_mut_ptr(), c_row, add) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::product(sizes, a, b, c.as_mut_ptr(), c_row, add) },
        _ => portable(sizes, a, b, c, c_row, add),
    }
}

fn portable(sizes: Sizes, a: Left, b: Right, c: &mut [f32], c_row: usize, add: bool) {
    for from in (0..sizes.columns).step_by(16) {
        let b_from = from / PANEL * b.panel + from % PANEL;
        for i in 0..sizes.rows {
            let mut sums = [0.0_f32; 16];
            for l in 0..sizes.depth {
                let factor = a.data[i * a.row + l * a.step];
                let b_row = &b.data[b_from + l * b.step..][..16];
                for (sum, b) in sums.iter_mut().zip(b_row) {
                    *sum += factor * b;
                }
            }
            for (c, sum) in c[i * c_row + from..][..16].iter_mut().zip(sums) {
                *c = if add { *c + sum } else { sum };
            }
        }
    }
}

/// The product in tiles that stay in registers: up to `$rows` rows of `$vectors` vectors (`$narrow_rows` of half as many).
macro_rules! tiled {
    ($name:ident, $features:literal, $float:ident, $lanes:literal, $vectors:literal, $rows:literal, $narrow_rows:literal,
     $zero:ident, $load:ident, $store:ident, $broadcast:ident, $fma:ident, $add:ident) => {
        #[cfg(target_arch = "x86_64")]
        mod $name {
            use super::{Left, PANEL, Right, Sizes};
            use std::arch::x86_64::{$add, $broadcast, $float, $fma, $load, $store, $zero};

            /// # Safety
            /// The processor has the instructions, and every element named by `sizes` lies inside its slice.
            #[target_feature(enable = $features)]
            pub unsafe fn product(sizes: Sizes, a: Left, b: Right, c: *mut f32, c_row: usize, add: bool) {
                let mut from = 0;
                while from < sizes.columns {
                    let to_panel_end = PANEL - from % PANEL;
                    let vectors = ((sizes.columns - from).min(to_panel_end) / $lanes).min($vectors);
                    let most = if vectors * 2 <= $vectors { $narrow_rows } else { $rows };
                    let b_at = from / PANEL * b.panel + from % PANEL;
                    let mut i = 0;
                    let mut tiles = sizes.rows.div_ceil(most);
                    while tiles > 0 {
                        // Tiles of nearly equal height: no small one is left for the end.
                        let rows = (sizes.rows - i).div_ceil(tiles);
                        // SAFETY: rows i.. and columns from.. of the matrices, inside by the caller's promise.
                        unsafe {
                            let a_at = a.data.as_ptr().add(i * a.row);
                            let b_at = b.data.as_ptr().add(b_at);
                            let c_at = c.add(i * c_row + from);
                            let strides = [a.row, a.step, b.step, c_row];
                            tile_of(rows, vectors, sizes.depth, a_at, b_at, c_at, strides, add);
                        }
                        i += rows;
                        tiles -= 1;
                    }
                    from += vectors * $lanes;
                }
            }

            #[target_feature(enable = $features)]
            unsafe fn tile_of(
                rows: usize,
                vectors: usize,
                depth: usize,
                a: *const f32,
                b: *const f32,
                c: *mut f32,
                strides: [usize; 4],
                add: bool,
            ) {
                macro_rules! choose {
                    ($r:literal: $v:literal) => {
                        // SAFETY: by the caller's promise.
                        unsafe { tile::<$r, $v>(depth, a, b, c, strides, add) }
                    };
                }
                macro_rules! choose_vectors {
                            ($r:literal) => {
                                match vectors {
                                    1 => choose!($r: 1),
                                    2 => choose!($r: 2),
                                    3 if $r <= $rows && $vectors > 2 => choose!($r: 3),
                                    4 if $r <= $rows && $vectors > 2 => choose!($r: 4),
                                    _ => unreachable!(),
                                }
                            };
                        }
                match rows {
                    1 => choose_vectors!(1),
                    2 => choose_vectors!(2),
                    3 => choose_vectors!(3),
                    4 => choose_vectors!(4),
                    5 => choose_vectors!(5),
                    6 => choose_vectors!(6),
                    7 => choose_vectors!(7),
                    8 => choose_vectors!(8),
                    9 => choose_vectors!(9),
                    10 => choose_vectors!(10),
                    11 => choose_vectors!(11),
                    12 => choose_vectors!(12),
                    _ => unreachable!(),
                }
            }

            /// # Safety
            /// `R` rows and `V` vectors of columns are inside the matrices at `a`, `b` and `c`.
            #[target_feature(enable = $features)]
            unsafe fn tile<const R: usize, const V: usize>(
                depth: usize,
                mut a: *const f32,
                mut b: *const f32,
                c: *mut f32,
                [a_row, a_step, b_step, c_row]: [usize; 4],
                add: bool,
            ) {
                let mut sums: [[$float; V]; R] = [[$zero(); V]; R];
                // SAFETY: reads of `R` rows and `V` vectors at each of `depth` steps, inside by the caller's promise.
                unsafe {
                    for _ in 0..depth {
                        let mut b_row = [$zero(); V];
                        for v in 0..V {
                            b_row[v] = $load(b.add(v * $lanes));
                        }
                        for r in 0..R {
                            let factor = $broadcast(*a.add(r * a_row));
                            for v in 0..V {
                                sums[r][v] = $fma(factor, b_row[v], sums[r][v]);
                            }
                        }
                        // Past the last step these point outside, unread.
                        a = a.wrapping_add(a_step);
                        b = b.wrapping_add(b_step);
                    }
                    for r in 0..R {
                        for v in 0..V {
                            let at = c.add(r * c_row + v * $lanes);
                            let sum = sums[r][v];
                            $store(at, if add { $add($load(at), sum) } else { sum });
                        }
                    }
                }
            }
        }
    };
}

tiled!(
    avx512,
    "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl",
    __m512,
    16,
    4,
    6,
    12,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps
);
tiled!(
    avx2,
    "avx2,fma",
    __m256,
    8,
    2,
    6,
    12,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps
);
