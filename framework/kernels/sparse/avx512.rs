//! The tile kernels with AVX-512: a line is a register.

use super::{Block, Entry, LANES, Line};
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
    fresh: bool,
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
                let mut acc = if fresh { _mm512_setzero_ps() } else { _mm512_load_ps(sum) };
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

/// Sums the lanes of as many lines as make whole sixteens.
#[target_feature(enable = "avx512f")]
pub fn sum_lines(lines: &[Line], sums: &mut [f32]) {
    for (lines, sums) in lines.chunks_exact(LANES).zip(sums.chunks_exact_mut(LANES)) {
        // SAFETY: a line is 16 aligned floats.
        let columns = transpose(std::array::from_fn(|i| unsafe { _mm512_load_ps(lines[i].0.as_ptr()) }));
        let mut sum = columns[0];
        for column in &columns[1..] {
            sum = _mm512_add_ps(sum, *column);
        }
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), sum) };
    }
}

/// # Safety
/// `open` has room for 16 entries more than `w` has elements.
#[target_feature(enable = "avx512f")]
pub unsafe fn compress(w: &[f32], open: &mut [Entry]) -> usize {
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    let sixteen = _mm512_set1_epi32(LANES as i32);
    let mut places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let mut count = 0;
    for w in w.chunks_exact(LANES) {
        // SAFETY: 16 elements are read; at most as many entries as elements came before, and room for 16 is left.
        unsafe {
            let values = _mm512_loadu_si512(w.as_ptr().cast());
            let mask = _mm512_test_epi32_mask(values, values);
            let open_values = _mm512_maskz_compress_epi32(mask, values);
            let open_places = _mm512_maskz_compress_epi32(mask, places);
            let to = open.as_mut_ptr().add(count).cast::<i32>();
            _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi32(open_values, low, open_places));
            if mask.count_ones() > 8 {
                let rest = _mm512_permutex2var_epi32(open_values, high, open_places);
                _mm512_storeu_si512(to.add(LANES).cast(), rest);
            }
            count += mask.count_ones() as usize;
        }
        places = _mm512_add_epi32(places, sixteen);
    }
    count
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
    let whole = if lanes == LANES { channels / LANES * LANES } else { 0 };
    for first in (0..whole).step_by(LANES) {
        // SAFETY: 16 whole lanes and channels.
        unsafe {
            let from = data.as_ptr().add(first);
            let row = |lane: usize| _mm512_loadu_ps(from.add(lane * stride));
            let to = lines.as_mut_ptr().add(first * plane);
            let columns = transpose([
                row(0),
                row(1),
                row(2),
                row(3),
                row(4),
                row(5),
                row(6),
                row(7),
                row(8),
                row(9),
                row(10),
                row(11),
                row(12),
                row(13),
                row(14),
                row(15),
            ]);
            for (channel, &column) in columns.iter().enumerate() {
                _mm512_store_ps(to.add(channel * plane).cast(), column);
            }
        }
    }
    for first in (whole..channels).step_by(LANES) {
        let count = (channels - first).min(LANES);
        let mask = (0xffffu32 >> (LANES - count)) as u16;
        let mut rows = [_mm512_setzero_ps(); LANES];
        // SAFETY: masked to the channels that exist; lanes from `lanes` on are not read.
        unsafe {
            let from = data.as_ptr().add(first);
            for (lane, row) in rows.iter_mut().enumerate().take(lanes) {
                *row = _mm512_maskz_loadu_ps(mask, from.add(lane * stride));
            }
            let to = lines.as_mut_ptr().add(first * plane);
            for (channel, &column) in transpose(rows).iter().enumerate().take(count) {
                _mm512_store_ps(to.add(channel * plane).cast(), column);
            }
        }
    }
}

/// # Safety
/// AVX-512F. `(channels - 1) * plane + 1` lines; `15 * stride` floats and `channels`, rounded up to 16, more.
#[target_feature(enable = "avx512f")]
pub unsafe fn scatter(lines: &[Line], plane: usize, channels: usize, stride: usize, data: &mut [f32]) {
    for first in (0..channels).step_by(LANES) {
        // SAFETY: by the contract.
        unsafe {
            let from = lines.as_ptr().add(first * plane);
            let to = data.as_mut_ptr().add(first);
            let column = |channel: usize| _mm512_load_ps(from.add(channel * plane).cast());
            let rows = if channels - first >= LANES {
                transpose(std::array::from_fn(column))
            } else {
                let mut columns = [_mm512_setzero_ps(); LANES];
                for (channel, to) in columns.iter_mut().enumerate().take(channels - first) {
                    *to = column(channel);
                }
                transpose(columns)
            };
            for (lane, &row) in rows.iter().enumerate() {
                _mm512_storeu_ps(to.add(lane * stride), row);
            }
        }
    }
}
