//! Plain convolutions for every geometry, groups included: what any processor runs, and the fallback of all rows.
//!
//! ```text
//! format "OHWI", data: the weights as they come, [O, kh, kw, C / group], i8 or f32
//! ```

use super::packed::{read, write};
use super::{ConvGeom, ConvWeights, Operands, Packed, QEpilogue, Tile};

const FORMAT: &[u8; 4] = b"OHWI";

pub(super) fn pack(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    let bytes: &[u8] = match *weights {
        ConvWeights::Int8 { w, .. } => bytemuck::cast_slice(w),
        ConvWeights::F32 { w, .. } => bytemuck::cast_slice(w),
    };
    let mut packed =
        write(FORMAT, weights, g, ([0; 4], &[]), bytes.len(), |data| data.copy_from_slice(bytes));
    packed.steps = g.oc as u64 * g.depth() as u64;
    packed.slots = packed.steps;
    packed
}

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_i8(o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, x, r, y, ref tile } = o;
    let s = read(FORMAT, g, packed);
    let w: &[i8] = bytemuck::cast_slice(s.data);
    for_each_output(g, tile, |o, x_at, row, col| {
        let mut acc = s.bias[o];
        for_each_tap(g, o, |x_tap, w_at, len| {
            // SAFETY: a tap of an output of the tile is readable for all channels of its group.
            let xs = unsafe { std::slice::from_raw_parts(x.add(x_at + x_tap), len) };
            for (&a, &b) in xs.iter().zip(&w[w_at..][..len]) {
                acc = acc.wrapping_add(a as i32 * b as i32);
            }
        });
        // SAFETY: pixel (row, col) and channel o belong to the tile.
        unsafe { store_i8(g, e, acc, s.mult[o], (row, col, o), r, y) };
    });
}

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_f32(o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, ref tile, .. } = o;
    let (x, r, y) = o.floats();
    let s = read(FORMAT, g, packed);
    let w: &[f32] = bytemuck::cast_slice(s.data);
    for_each_output(g, tile, |o, x_at, row, col| {
        let mut acc = f32::from_bits(s.bias[o] as u32);
        for_each_tap(g, o, |x_tap, w_at, len| {
            // SAFETY: as in `run_i8`; buffers are aligned for f32 and offsets count elements.
            let xs = unsafe { std::slice::from_raw_parts(x.add(x_at + x_tap), len) };
            for (&a, &b) in xs.iter().zip(&w[w_at..][..len]) {
                acc += a * b;
            }
        });
        // SAFETY: as in `run_i8`.
        unsafe {
            if e.has_residual {
                acc += *r.add(g.r_at(row, col) + o);
            }
            *y.add(g.y_at(row, col) + o) = e.clip(acc);
        }
    });
}

/// Calls `f(channel, element of x under tap (0, 0) of the channel's group, row, col)` for every output of a tile.
fn for_each_output(g: &ConvGeom, tile: &Tile, mut f: impl FnMut(usize, usize, u32, u32)) {
    let (in_group, out_group) = ((g.c / g.group) as usize, (g.oc / g.group) as usize);
    for row in tile.rows.clone() {
        for col in tile.cols.clone() {
            let x_at = g.x_at(row, col);
            for o in tile.ocs.clone() {
                let o = o as usize;
                f(o, x_at + o / out_group * in_group, row, col);
            }
        }
    }
}

/// Calls `f(elements of x from tap (0, 0), first weight, channels)` for every tap of channel `o`.
fn for_each_tap(g: &ConvGeom, o: usize, mut f: impl FnMut(usize, usize, usize)) {
    let len = (g.c / g.group) as usize;
    let mut w_at = o * g.depth();
    for ky in 0..g.kh {
        for kx in 0..g.kw {
            f(g.tap_at(ky, kx), w_at, len);
            w_at += len;
        }
    }
}

/// Writes one output of an integer row: requantised, or f32 as it is.
///
/// # Safety
/// The output at (row, col, channel) lies inside `y`, and inside the residual if there is one.
pub(super) unsafe fn store_i8(
    g: &ConvGeom,
    e: &QEpilogue,
    acc: i32,
    mult: f32,
    (row, col, o): (u32, u32, usize),
    r: *const u8,
    y: *mut u8,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let at = g.y_at(row, col) + o;
        if e.out_f32 {
            y.cast::<f32>().add(at).write_unaligned(acc as f32 * mult);
        } else {
            let residual = e.has_residual.then(|| *r.add(g.r_at(row, col) + o));
            *y.add(at) = e.requant(acc, mult, residual);
        }
    }
}
