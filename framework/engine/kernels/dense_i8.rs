//! What the dense int8 rows with panels of 16 channels share: how a tile is cut into blocks of pixels of one panel, and how
//! a block's sums become results. A row brings its format and its vector code.

use super::packed::{LANES, Sections, read};
use super::{ConvGeom, Operands, QEpilogue, Tile, blocks};

/// The most pixels of a block.
pub(super) const PIXELS_MAX: usize = 6;

/// Sums of a block: 16 channels of each pixel.
pub(super) type Sums = [[i32; LANES]; PIXELS_MAX];

/// A row's format, and the vector code that reads it.
pub(super) struct Form {
    pub format: &'static [u8; 4],
    /// Bytes of all weights of a lane and step.
    pub lane_bytes: usize,
    /// By pixels of a block, from 1 on.
    pub blocks: &'static [unsafe fn(&Block<'_>, &mut Sums)],
    pub results: &'static Results,
}

/// What becomes of the sums of 16 channels, given their multipliers.
pub(super) struct Results {
    /// [`QEpilogue::requant`] of each, with its byte of the residual.
    pub requant: unsafe fn(*const f32, &QEpilogue, &[i32; LANES], &[u8; LANES]) -> [u8; LANES],
    /// `acc as f32 * mult`.
    pub scale: unsafe fn(*const f32, &[i32; LANES]) -> [f32; LANES],
}

/// A block of pixels of one panel of up to 16 channels. Strides are bytes.
pub(super) struct Block<'a> {
    pub table: &'a [u32],
    pub steps_per_run: u32,
    pub weights: *const u8,
    pub bias: *const i32,
    pub mult: *const f32,
    pub x: *const u8,
    pub x_stride: usize,
}

/// # Safety
/// See [`super::RunFn`]; the processor has what the form's code needs.
pub(super) unsafe fn run(form: &Form, o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, x, r, y, ref tile } = o;
    let s = read(form.format, g, packed);
    for_each_block(form, g, &s, tile, e.has_residual, x, |flat, block, first, row, cols| {
        let mut acc = [[0i32; LANES]; PIXELS_MAX];
        // SAFETY: the caller vouches for the processor and for the pixels and channels of the tile.
        unsafe {
            (form.blocks[cols.len() - 1])(&block, &mut acc);
            let n = (tile.ocs.end as usize - first).min(LANES);
            for (acc, col) in acc.iter().zip(cols) {
                let y_at = flat.y_at(row, col) + first;
                if e.out_f32 {
                    let f = (form.results.scale)(block.mult, acc);
                    y.cast::<f32>().add(y_at).copy_from_nonoverlapping(f.as_ptr(), n);
                    continue;
                }
                let mut residual = [0u8; LANES];
                if e.has_residual {
                    let r = r.add(flat.r_at(row, col) + first);
                    match n {
                        LANES => residual = r.cast::<[u8; LANES]>().read(),
                        _ => r.copy_to_nonoverlapping(residual.as_mut_ptr(), n),
                    }
                }
                let bytes = (form.results.requant)(block.mult, e, acc, &residual);
                match n {
                    LANES => y.add(y_at).cast::<[u8; LANES]>().write(bytes),
                    _ => y.add(y_at).copy_from_nonoverlapping(bytes.as_ptr(), n),
                }
            }
        }
    });
}

/// Calls `each(geometry, block, first channel, row, columns)`, panels outside and pixels inside. A block's bias, multipliers
/// and weights are those of a whole panel: 16, 16 and a step's times the steps of all runs.
fn for_each_block(
    form: &Form,
    g: &ConvGeom,
    s: &Sections<'_>,
    tile: &Tile,
    residual: bool,
    x: *const u8,
    mut each: impl FnMut(&ConvGeom, Block<'_>, usize, u32, std::ops::Range<u32>),
) {
    tile.check(g, LANES);
    let (flat, tile) = g.flattened(tile, residual);
    let panel_bytes = s.table.len() * s.args[0] as usize * LANES * form.lane_bytes;
    for first in tile.ocs.clone().step_by(LANES) {
        let first = first as usize;
        let weights = &s.data[first / LANES * panel_bytes..][..panel_bytes];
        for row in tile.rows.clone() {
            for cols in blocks(tile.cols.clone(), form.blocks.len() as u32) {
                let block = Block {
                    table: s.table,
                    steps_per_run: s.args[0],
                    weights: weights.as_ptr(),
                    bias: s.bias[first..first + LANES].as_ptr(),
                    mult: s.mult[first..first + LANES].as_ptr(),
                    x: x.wrapping_add(flat.x_at(row, cols.start)),
                    x_stride: flat.x_step(),
                };
                each(&flat, block, first, row, cols);
            }
        }
    }
}
