//! The tile kernels with AVX-512: a line is a register.

use super::{Block, LANES, Line};
use std::arch::x86_64::*;

/// # Safety
/// AVX-512F. Every offset that an entry names, plus the tile, lies in `block.lines`; rows' entries lie in
/// `block.entries`; `sums` holds a tile per row and `fresh` a value per row.
#[target_feature(enable = "avx512f")]
pub unsafe fn accumulate<const R: usize, const C: usize>(
    block: &Block,
    fresh: Option<&[f32]>,
    sums: &mut [Line],
) {
    let rows = block.starts.len() - 1;
    let lines = block.lines.as_ptr().cast::<f32>();
    let (starts, entries, offsets) = (block.starts.as_ptr(), block.entries.as_ptr(), block.offsets.as_ptr());
    let step = block.step * LANES;
    // SAFETY: by the contract, all places below are inside their slices.
    unsafe {
        for r in 0..rows {
            let (from, to) = (*starts.add(r) as usize, *starts.add(r + 1) as usize);
            let tile = sums.as_mut_ptr().add(r * R * C).cast::<f32>();
            let mut acc = [[_mm512_setzero_ps(); C]; R];
            match fresh {
                Some(fresh) => acc = [[_mm512_set1_ps(*fresh.as_ptr().add(r)); C]; R],
                None if from == to => continue,
                None => {
                    for (i, row) in acc.iter_mut().enumerate() {
                        for (j, acc) in row.iter_mut().enumerate() {
                            *acc = _mm512_load_ps(tile.add((i * C + j) * LANES));
                        }
                    }
                }
            }
            let (mut entry, last) = (entries.add(from), entries.add(to));
            while entry < last {
                let value = _mm512_set1_ps((*entry).value);
                let x = lines.add(*offsets.add((*entry).place as usize) as usize * LANES);
                for (i, row) in acc.iter_mut().enumerate() {
                    for (j, acc) in row.iter_mut().enumerate() {
                        *acc = _mm512_fmadd_ps(value, _mm512_load_ps(x.add(i * step + j * LANES)), *acc);
                    }
                }
                entry = entry.add(1);
            }
            for (i, row) in acc.iter().enumerate() {
                for (j, &acc) in row.iter().enumerate() {
                    _mm512_store_ps(tile.add((i * C + j) * LANES), acc);
                }
            }
        }
    }
}

/// # Safety
/// As [`accumulate`]; `sums` holds a line per entry of the rows; row r's tile lies in `others[r * plane..]`.
#[target_feature(enable = "avx512f")]
pub unsafe fn correlate<const R: usize, const C: usize>(
    block: &Block,
    (others, plane, others_step): (&[Line], usize, usize),
    sums: &mut [Line],
) {
    let rows = block.starts.len() - 1;
    let lines = block.lines.as_ptr().cast::<f32>();
    let (starts, entries, offsets) = (block.starts.as_ptr(), block.entries.as_ptr(), block.offsets.as_ptr());
    let (step, others_step) = (block.step * LANES, others_step * LANES);
    let mut sum = sums.as_mut_ptr().cast::<f32>();
    // SAFETY: by the contract, all places below are inside their slices.
    unsafe {
        for r in 0..rows {
            let (from, to) = (*starts.add(r) as usize, *starts.add(r + 1) as usize);
            if from == to {
                continue;
            }
            let tile = others.as_ptr().add(r * plane).cast::<f32>();
            let mut other = [[_mm512_setzero_ps(); C]; R];
            for (i, row) in other.iter_mut().enumerate() {
                for (j, other) in row.iter_mut().enumerate() {
                    *other = _mm512_load_ps(tile.add(i * others_step + j * LANES));
                }
            }
            let (mut entry, last) = (entries.add(from), entries.add(to));
            while entry < last {
                let x = lines.add(*offsets.add((*entry).place as usize) as usize * LANES);
                let mut acc = _mm512_load_ps(sum);
                for (i, row) in other.iter().enumerate() {
                    for (j, &other) in row.iter().enumerate() {
                        acc = _mm512_fmadd_ps(other, _mm512_load_ps(x.add(i * step + j * LANES)), acc);
                    }
                }
                _mm512_store_ps(sum, acc);
                (entry, sum) = (entry.add(1), sum.add(LANES));
            }
        }
    }
}

/// Columns to rows, in four rounds of exchanges between registers.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(r: [__m512; 16]) -> [__m512; 16] {
    let zero = _mm512_setzero_ps();
    let (mut a, mut b) = ([zero; 16], [zero; 16]);
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    let pd = _mm512_castps_pd;
    let ps = _mm512_castpd_ps;
    for i in 0..4 {
        b[4 * i] = ps(_mm512_unpacklo_pd(pd(a[4 * i]), pd(a[4 * i + 2])));
        b[4 * i + 1] = ps(_mm512_unpackhi_pd(pd(a[4 * i]), pd(a[4 * i + 2])));
        b[4 * i + 2] = ps(_mm512_unpacklo_pd(pd(a[4 * i + 1]), pd(a[4 * i + 3])));
        b[4 * i + 3] = ps(_mm512_unpackhi_pd(pd(a[4 * i + 1]), pd(a[4 * i + 3])));
    }
    for i in 0..4 {
        a[i] = _mm512_shuffle_f32x4::<0x88>(b[i], b[i + 4]);
        a[i + 4] = _mm512_shuffle_f32x4::<0xdd>(b[i], b[i + 4]);
        a[i + 8] = _mm512_shuffle_f32x4::<0x88>(b[i + 8], b[i + 12]);
        a[i + 12] = _mm512_shuffle_f32x4::<0xdd>(b[i + 8], b[i + 12]);
    }
    for i in 0..8 {
        b[i] = _mm512_shuffle_f32x4::<0x88>(a[i], a[i + 8]);
        b[i + 8] = _mm512_shuffle_f32x4::<0xdd>(a[i], a[i + 8]);
    }
    b
}

/// # Safety
/// AVX-512F. `(lanes - 1) * stride + channels` floats of data, `(channels - 1) * plane + 1` lines; `0 < lanes <= 16`.
#[target_feature(enable = "avx512f")]
pub unsafe fn gather(
    data: &[f32],
    stride: usize,
    lanes: usize,
    channels: usize,
    plane: usize,
    lines: &mut [Line],
) {
    for first in (0..channels).step_by(LANES) {
        let count = (channels - first).min(LANES);
        let mask = (0xffffu32 >> (LANES - count)) as u16;
        let mut rows = [_mm512_setzero_ps(); LANES];
        // SAFETY: masked to the channels that exist; lanes from `lanes` on are not read.
        unsafe {
            let from = data.as_ptr().add(first);
            if lanes == LANES && count == LANES {
                for (lane, row) in rows.iter_mut().enumerate() {
                    *row = _mm512_loadu_ps(from.add(lane * stride));
                }
            } else {
                for (lane, row) in rows.iter_mut().enumerate().take(lanes) {
                    *row = _mm512_maskz_loadu_ps(mask, from.add(lane * stride));
                }
            }
            let columns = transpose(rows);
            let to = lines.as_mut_ptr().add(first * plane);
            if count == LANES {
                for (channel, &column) in columns.iter().enumerate() {
                    _mm512_store_ps(to.add(channel * plane).cast(), column);
                }
            } else {
                for (channel, &column) in columns.iter().enumerate().take(count) {
                    _mm512_store_ps(to.add(channel * plane).cast(), column);
                }
            }
        }
    }
}

/// # Safety
/// AVX-512F. `(channels - 1) * plane + 1` lines; every row is empty or of `channels <= 16` elements.
#[target_feature(enable = "avx512f")]
pub unsafe fn scatter(lines: &[Line], plane: usize, channels: usize, rows: [&mut [f32]; LANES]) {
    let mask = (0xffffu32 >> (LANES - channels)) as u16;
    let mut columns = [_mm512_setzero_ps(); LANES];
    // SAFETY: by the contract.
    unsafe {
        for (channel, column) in columns.iter_mut().enumerate().take(channels) {
            *column = _mm512_load_ps(lines.as_ptr().add(channel * plane).cast());
        }
        let transposed = transpose(columns);
        for (row, &values) in rows.into_iter().zip(&transposed) {
            if !row.is_empty() {
                _mm512_mask_storeu_ps(row.as_mut_ptr(), mask, values);
            }
        }
    }
}
