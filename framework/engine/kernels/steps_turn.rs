//! Copies that turn rows into columns (channels last to channels first), on AVX-512, 16 by 16 elements at a time.

use super::{ARGS_MAX, MapOp, MapStep, Nd, share};
use crate::target::Isa;

/// Runs one part of a copy that turns a plane of 32-bit elements, and says whether it was one.
///
/// # Safety
/// As [`super::run_map`].
pub unsafe fn run_map(isa: Isa, s: &MapStep, p: [*mut u8; ARGS_MAX], part: usize, parts: usize) -> bool {
    let nd = &s.nd;
    let Some(row) = nd.rank.checked_sub(2) else { return false };
    if s.op == MapOp::Copy4 && nd.strides[0][row] == 1 {
        let (y, x) = (p[0].cast(), p[1].cast());
        // SAFETY: the caller's promise.
        unsafe {
            match nd.dims[row] {
                3 => weave::<3>(nd, y, x, part, parts),
                4 => weave::<4>(nd, y, x, part, parts),
                _ => return false,
            }
        }
        return true;
    }
    let turns = nd.strides[0][row + 1] == 1 && nd.strides[1][row] == 1 && nd.strides[1][row + 1] != 1;
    if s.op != MapOp::Copy4 || isa < Isa::Avx512Vnni || !turns {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise; the processor has AVX-512.
    unsafe {
        avx512::turn(nd, p[0].cast(), p[1].cast(), part, parts)
    };
    let _ = (p, part, parts);
    cfg!(target_arch = "x86_64")
}

/// Planes into pixels of `C` channels: each pixel is written at once.
///
/// # Safety
/// Both operands hold what `nd` addresses.
unsafe fn weave<const C: usize>(nd: &Nd, y: *mut u32, x: *const u32, part: usize, parts: usize) {
    let row = nd.rank - 2;
    let (width, pixel) = (nd.dims[row + 1], nd.strides[0][row + 1]);
    let [plane, column] = [0, 1].map(|d| nd.strides[1][row + d]);
    let mut outer = *nd;
    (outer.dims[row], outer.dims[row + 1]) = (1, 1);
    let lines = share(outer.elements(), part, parts);
    let mut line = 0;
    outer.each(0, 1, |at, _| {
        if lines.contains(&line) {
            for i in 0..width {
                for c in 0..C {
                    // SAFETY: an element of this line.
                    unsafe { *y.add(at[0] + i * pixel + c) = *x.add(at[1] + i * column + c * plane) };
                }
            }
        }
        line += 1;
    });
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::super::{ARGS_MAX, Nd, share};
    use std::arch::x86_64::*;

    /// Columns of y that are written at a time: a few lines of each of its rows.
    const BLOCK: usize = 64;

    /// The last two dimensions are rows of y, which lie side by side in x, and columns.
    ///
    /// # Safety
    /// AVX-512 is there; both operands hold what `nd` addresses.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn turn(nd: &Nd, y: *mut u32, x: *const u32, part: usize, parts: usize) {
        let row = nd.rank - 2;
        let (rows, columns) = (nd.dims[row], nd.dims[row + 1]);
        let (y_row, x_column) = (nd.strides[0][row], nd.strides[1][row + 1]);
        let mut outer = *nd;
        (outer.dims[row], outer.dims[row + 1]) = (1, 1);
        // Columns before the first whole line of y: lines that are written whole need not be read first.
        let before = y.align_offset(64) % 16;
        let own = share((columns + 15).div_ceil(BLOCK) + 1, part, parts);
        outer.each(0, 1, |at: [usize; ARGS_MAX], _| {
            for block in own.clone() {
                let column = |b: usize| (b * BLOCK + before).saturating_sub(BLOCK).min(columns);
                for r in (0..rows).step_by(16) {
                    let mut c = column(block);
                    while c < column(block + 1) {
                        let end = if c < before { before } else { c + 16 }.min(column(block + 1));
                        // SAFETY: these rows and columns are elements of both operands.
                        unsafe {
                            let (y, x) = (y.add(at[0] + r * y_row + c), x.add(at[1] + r + c * x_column));
                            tile((rows - r).min(16), end - c, (y, y_row), (x, x_column));
                        }
                        c = end;
                    }
                }
            }
        });
        _mm_sfence();
    }

    /// # Safety
    /// AVX-512 is there; `rows` rows of `columns` elements may be written at y, `columns` runs of `rows` read at x.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn tile(
        rows: usize,
        columns: usize,
        (y, y_row): (*mut u32, usize),
        (x, x_column): (*const u32, usize),
    ) {
        let mask = |n: usize| ((1u32 << n) - 1) as __mmask16;
        let mut v = [_mm512_setzero_si512(); 16];
        for (i, v) in v.iter_mut().enumerate().take(columns) {
            // SAFETY: masked to the rows.
            *v = unsafe { _mm512_maskz_loadu_epi32(mask(rows), x.add(i * x_column).cast()) };
        }
        let v = turned(v);
        for (i, &v) in v.iter().enumerate().take(rows) {
            // SAFETY: masked to the columns.
            unsafe {
                let y = y.add(i * y_row);
                if columns == 16 && y.addr().is_multiple_of(64) {
                    _mm512_stream_si512(y.cast(), v);
                } else {
                    _mm512_mask_storeu_epi32(y.cast(), mask(columns), v);
                }
            }
        }
    }

    /// Element `j` of register `i` becomes element `i` of register `j`: pairs of registers are interleaved within their
    /// 128-bit lanes, by one element and by two, then the lanes are turned.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn turned(v: [__m512i; 16]) -> [__m512i; 16] {
        let mut a = v;
        for i in 0..8 {
            a[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
            a[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
        }
        // b[4 * i + j]: lane l holds element 4 * l + j of registers 4 * i..
        let mut b = a;
        for i in 0..4 {
            let [p, q, r, s] = [a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3]];
            b[4 * i] = _mm512_unpacklo_epi64(p, r);
            b[4 * i + 1] = _mm512_unpackhi_epi64(p, r);
            b[4 * i + 2] = _mm512_unpacklo_epi64(q, s);
            b[4 * i + 3] = _mm512_unpackhi_epi64(q, s);
        }
        let mut out = b;
        for j in 0..4 {
            let [p, q, r, s] = [b[j], b[4 + j], b[8 + j], b[12 + j]];
            let (low, high) = (_mm512_shuffle_i32x4::<0x88>(p, q), _mm512_shuffle_i32x4::<0xdd>(p, q));
            let (low2, high2) = (_mm512_shuffle_i32x4::<0x88>(r, s), _mm512_shuffle_i32x4::<0xdd>(r, s));
            out[j] = _mm512_shuffle_i32x4::<0x88>(low, low2);
            out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
            out[4 + j] = _mm512_shuffle_i32x4::<0x88>(high, high2);
            out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
        }
        out
    }
}
