//! The product of attention: rows of u8 by packed columns of i8, sums in i32.

use super::by_isa;
use crate::target::Isa;

/// `c[i][16 * n + lane] = init[16 * n + lane] + Σ a[i][4 * g + j] * b[n][g][lane][j]` over groups `g` and `j < 4`.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub a: *const u8,
    /// Bytes from row to row.
    pub a_row: usize,
    /// At most [`ROWS_MAX`].
    pub rows: usize,
    /// Fours of products in one sum.
    pub groups: usize,
    pub b: *const i8,
    /// Bytes from 16 columns to the next, and from group to group.
    pub b_block: usize,
    pub b_group: usize,
    /// Sixteens of columns.
    pub blocks: usize,
    /// What the sums of every row start from.
    pub init: *const i32,
    pub c: *mut i32,
    /// Elements from row to row.
    pub c_row: usize,
}

pub const ROWS_MAX: usize = 32;

/// What the processor was told of tiles, if anything.
#[derive(Default)]
pub struct Tiles {
    /// Rows and bytes of a row.
    #[cfg(target_arch = "x86_64")]
    shape: Option<(usize, usize)>,
}

#[cfg(target_arch = "x86_64")]
impl Drop for Tiles {
    fn drop(&mut self) {
        if self.shape.is_some() {
            // SAFETY: only a processor with tiles was told of any.
            unsafe { amx::release() };
        }
    }
}

/// # Safety
/// The processor has `isa`. `a` holds `4 * groups` bytes of every row, `b`, `init` and `c` all that the product
/// addresses, and nobody else touches `c`.
pub unsafe fn run_product(isa: Isa, tiles: &mut Tiles, p: &Product) {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Amx && amx::fits(p) {
            return amx::product(tiles, p);
        } else if isa >= Isa::Avx512Vnni {
            return avx512::product(p);
        }
        let _ = tiles;
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
            // SAFETY: group `g` of this row and block lies inside a and b (`run_product`).
            unsafe {
                let mut sums = p.init.add(16 * block).cast::<[i32; 16]>().read();
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
        // SAFETY: group `g` of these rows and columns lies inside a and b, and the tile inside c.
        unsafe {
            let init: [__m512i; N] =
                std::array::from_fn(|n| _mm512_loadu_si512(p.init.add(16 * (block + n)).cast()));
            let mut sums = [init; R];
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

#[cfg(target_arch = "x86_64")]
mod amx {
    use super::{Product, Tiles};
    use std::arch::asm;

    /// Rows of a tile.
    const TILE: usize = 16;

    /// 64 bytes that say how large the eight tiles are: sums of the first sixteen rows in two, of the next in two, one of
    /// either's rows, two of columns.
    #[repr(C, align(64))]
    struct Config {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        bytes: [u16; 16],
        rows: [u8; 16],
    }

    /// Whether sums are whole tiles, or less than one.
    pub fn fits(p: &Product) -> bool {
        p.groups <= TILE || p.groups.is_multiple_of(TILE)
    }

    /// # Safety
    /// The processor has AMX and the process may use it.
    unsafe fn configure(rows: usize, bytes: usize) {
        let [first, second] = [rows.min(TILE) as u8, rows.saturating_sub(TILE) as u8];
        let mut c = Config { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        c.rows[..8].copy_from_slice(&[first, first, second, second, first, second, 0, 0]);
        c.rows[6..8].fill((bytes / 4) as u8);
        c.bytes[..8].fill(64);
        c.bytes[4..6].fill(bytes as u16);
        for i in 0..8 {
            if c.rows[i] == 0 {
                c.bytes[i] = 0;
            }
        }
        // SAFETY: a valid configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const c, options(nostack, readonly)) };
    }

    /// # Safety
    /// The processor has AMX and the process may use it.
    pub unsafe fn release() {
        // SAFETY: the caller's promise.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    /// Defines the product of a number of row tiles and column tiles.
    macro_rules! tile_product {
        ($name:ident, init [$($init:literal)*], step [$($step:literal)*], store [$($store:literal)*]) => {
            /// # Safety
            /// Tiles are configured for the product; `row` and `block` begin as many tiles.
            #[inline(always)]
            unsafe fn $name(p: &Product, row: usize, block: usize) {
                // SAFETY: all tiles lie inside the product.
                unsafe {
                    let a = p.a.add(row * p.a_row);
                    let b = p.b.add(block * p.b_block);
                    let c = p.c.add(row * p.c_row + block * 16);
                    asm!(
                        "/* {a2} {b2} {c2} */",
                        $($init,)*
                        "2:",
                        $($step,)*
                        "add {a}, 64",
                        "add {a2}, 64",
                        "add {b}, {deep}",
                        "add {b2}, {deep}",
                        "dec {n}",
                        "jnz 2b",
                        $($store,)*
                        init = in(reg) p.init.add(16 * block),
                        zero = in(reg) 0usize,
                        a = inout(reg) a => _,
                        a2 = inout(reg) a.wrapping_add(16 * p.a_row) => _,
                        s = in(reg) p.a_row,
                        b = inout(reg) b => _,
                        b2 = inout(reg) b.wrapping_add(p.b_block) => _,
                        t = in(reg) p.b_group,
                        deep = in(reg) p.b_group * 16,
                        c = in(reg) c,
                        c2 = in(reg) c.wrapping_add(16 * p.c_row),
                        u = in(reg) p.c_row * 4,
                        n = inout(reg) p.groups.div_ceil(TILE) => _,
                        options(nostack)
                    );
                }
            }
        };
    }

    tile_product! { two_by_two,
        init [
            "tileloadd tmm0, [{init} + {zero}]" "tileloadd tmm1, [{init} + {zero} + 64]"
            "tileloadd tmm2, [{init} + {zero}]" "tileloadd tmm3, [{init} + {zero} + 64]"
        ],
        step [
            "tileloadd tmm6, [{b} + {t}]"
            "tileloadd tmm4, [{a} + {s}]"
            "tdpbusd tmm0, tmm4, tmm6"
            "tileloadd tmm5, [{a2} + {s}]"
            "tdpbusd tmm2, tmm5, tmm6"
            "tileloadd tmm7, [{b2} + {t}]"
            "tdpbusd tmm1, tmm4, tmm7"
            "tdpbusd tmm3, tmm5, tmm7"
        ],
        store [
            "tilestored [{c} + {u}], tmm0" "tilestored [{c} + {u} + 64], tmm1"
            "tilestored [{c2} + {u}], tmm2" "tilestored [{c2} + {u} + 64], tmm3"
        ]
    }

    tile_product! { two_by_one,
        init ["tileloadd tmm0, [{init} + {zero}]" "tileloadd tmm2, [{init} + {zero}]"],
        step [
            "tileloadd tmm6, [{b} + {t}]"
            "tileloadd tmm4, [{a} + {s}]"
            "tdpbusd tmm0, tmm4, tmm6"
            "tileloadd tmm5, [{a2} + {s}]"
            "tdpbusd tmm2, tmm5, tmm6"
        ],
        store ["tilestored [{c} + {u}], tmm0" "tilestored [{c2} + {u}], tmm2"]
    }

    tile_product! { one_by_two,
        init ["tileloadd tmm0, [{init} + {zero}]" "tileloadd tmm1, [{init} + {zero} + 64]"],
        step [
            "tileloadd tmm4, [{a} + {s}]"
            "tileloadd tmm6, [{b} + {t}]"
            "tdpbusd tmm0, tmm4, tmm6"
            "tileloadd tmm7, [{b2} + {t}]"
            "tdpbusd tmm1, tmm4, tmm7"
        ],
        store ["tilestored [{c} + {u}], tmm0" "tilestored [{c} + {u} + 64], tmm1"]
    }

    tile_product! { one_by_one,
        init ["tileloadd tmm0, [{init} + {zero}]"],
        step [
            "tileloadd tmm4, [{a} + {s}]"
            "tileloadd tmm6, [{b} + {t}]"
            "tdpbusd tmm0, tmm4, tmm6"
        ],
        store ["tilestored [{c} + {u}], tmm0"]
    }

    /// # Safety
    /// AMX is there, and as [`super::run_product`], for a product that [`fits`].
    pub unsafe fn product(tiles: &mut Tiles, p: &Product) {
        let shape = (p.rows, p.groups.min(TILE) * 4);
        // SAFETY: the caller's promise; the tiles that each function takes are there.
        unsafe {
            if tiles.shape != Some(shape) {
                configure(shape.0, shape.1);
                tiles.shape = Some(shape);
            }
            let mut block = 0;
            while block < p.blocks {
                let pair = p.blocks - block > 1;
                match (p.rows > TILE, pair) {
                    (true, true) => two_by_two(p, 0, block),
                    (true, false) => two_by_one(p, 0, block),
                    (false, true) => one_by_two(p, 0, block),
                    (false, false) => one_by_one(p, 0, block),
                }
                block += 1 + usize::from(pair);
            }
        }
    }
}
