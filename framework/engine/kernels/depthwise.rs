//! Depthwise convolutions (group = channels = outputs), 16 channels at a time in plain Rust the compiler vectorises.
//!
//! ```text
//! format "DW16", data: for each block of 16 channels, for each tap: [16], i8 or f32; args: taps
//! ```

use super::packed::{LANES, Sections, read, write};
use super::portable::store_i8;
use super::{ConvGeom, ConvWeights, Operands, Packed, Tile};

pub(super) const FORMAT: &[u8; 4] = b"DW16";

pub(super) fn pack(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    let taps = g.depth();
    let slots = taps * (g.oc as usize).next_multiple_of(LANES);
    let slot = |i: usize| (i / taps / LANES * taps + i % taps) * LANES + i / taps % LANES;
    let size = match weights {
        ConvWeights::Int8 { .. } => 1,
        ConvWeights::F32 { .. } => 4,
    };
    let mut packed =
        write(FORMAT, weights, g, ([taps as u32, 0, 0, 0], &[]), slots * size, |data| match *weights {
            ConvWeights::Int8 { w, .. } => w.iter().enumerate().for_each(|(i, &v)| data[slot(i)] = v as u8),
            ConvWeights::F32 { w, .. } => {
                let data: &mut [f32] = bytemuck::cast_slice_mut(data);
                w.iter().enumerate().for_each(|(i, &v)| data[slot(i)] = v);
            }
        });
    packed.steps = (slots / LANES) as u64;
    packed.slots = slots as u64;
    packed
}

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_i8(o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, x, r, y, ref tile } = o;
    let s = read(FORMAT, g, packed);
    let w: &[[i8; LANES]] = bytemuck::cast_slice(s.data);
    for_each_block(g, &s, tile, |first, block, row, col| {
        let mut acc: [i32; LANES] =
            s.bias[first..][..LANES].try_into().expect("bias is padded to whole blocks");
        let x_at = g.x_at(row, col) + first;
        for_each_tap(g, |x_tap, tap| {
            // SAFETY: the tap is readable; a last block of fewer channels reads at most 15 bytes more,
            // less than READ_AFTER, and multiplies them by zero.
            let xs: [u8; LANES] = unsafe { x.add(x_at + x_tap).cast::<[u8; LANES]>().read() };
            let ws = &w[block + tap];
            for l in 0..LANES {
                acc[l] = acc[l].wrapping_add(xs[l] as i32 * ws[l] as i32);
            }
        });
        for o in first..(first + LANES).min(tile.ocs.end as usize) {
            // SAFETY: pixel (row, col) and channel o belong to the tile.
            unsafe { store_i8(g, e, acc[o - first], s.mult[o], (row, col, o), r, y) };
        }
    });
}

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_f32(o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, ref tile, .. } = o;
    let (x, r, y) = o.floats();
    let s = read(FORMAT, g, packed);
    let w: &[[f32; LANES]] = bytemuck::cast_slice(s.data);
    let bias: &[f32] = bytemuck::cast_slice(s.bias);
    for_each_block(g, &s, tile, |first, block, row, col| {
        let mut acc: [f32; LANES] =
            bias[first..][..LANES].try_into().expect("bias is padded to whole blocks");
        let x_at = g.x_at(row, col) + first;
        for_each_tap(g, |x_tap, tap| {
            // SAFETY: as in `run_i8`: at most 60 bytes more, which only reach lanes that are not stored.
            let xs: [f32; LANES] = unsafe { x.add(x_at + x_tap).cast::<[f32; LANES]>().read() };
            let ws = &w[block + tap];
            for l in 0..LANES {
                acc[l] += xs[l] * ws[l];
            }
        });
        for o in first..(first + LANES).min(tile.ocs.end as usize) {
            // SAFETY: as in `run_i8`.
            unsafe {
                let residual = if e.has_residual { *r.add(g.r_at(row, col) + o) } else { 0.0 };
                *y.add(g.y_at(row, col) + o) = e.clip(acc[o - first] + residual);
            }
        }
    });
}

/// Calls `f(first channel, first tap's index in the data, row, col)` for every block of channels of every pixel.
fn for_each_block(g: &ConvGeom, s: &Sections<'_>, tile: &Tile, mut f: impl FnMut(usize, usize, u32, u32)) {
    tile.check(g, LANES);
    for row in tile.rows.clone() {
        for col in tile.cols.clone() {
            for first in tile.ocs.clone().step_by(LANES) {
                let first = first as usize;
                f(first, first / LANES * s.args[0] as usize, row, col);
            }
        }
    }
}

/// Calls `f(elements of x from tap (0, 0), tap)` for every tap.
fn for_each_tap(g: &ConvGeom, mut f: impl FnMut(usize, usize)) {
    for ky in 0..g.kh {
        for kx in 0..g.kw {
            f(g.tap_at(ky, kx), (ky * g.kw + kx) as usize);
        }
    }
}
