//! What the depthwise int8 rows with blocks of 16 channels share: up to four neighbouring outputs of a block at a time, and how
//! their sums become results. Weights are packed as the portable row packs them. A row brings its vector code.

use super::depthwise::FORMAT;
use super::packed::{LANES, read};
use super::{ConvGeom, Operands, QEpilogue, blocks};

/// The most outputs at a time.
pub(super) const OUTPUTS: usize = 4;
const TAPS_MAX: usize = 64;

pub(super) type Sums = [[i32; LANES]; OUTPUTS];

/// The vector code of a row.
pub(super) struct Code {
    /// By outputs, from 1 on.
    pub sums: [unsafe fn(&Job<'_>, &mut Sums); OUTPUTS],
    /// [`QEpilogue::requant`] of 16 channels, given their multipliers, sums and residual.
    pub requant: unsafe fn(*const f32, &QEpilogue, &[i32; LANES], &[u8; LANES]) -> [u8; LANES],
}

/// Outputs that lie in one row, of one block of channels.
pub(super) struct Job<'a> {
    /// Tap (0, 0) of the first output.
    pub x: *const u8,
    /// Bytes from one output to the next.
    pub x_output: usize,
    /// Bytes from tap (0, 0) to each tap.
    pub taps: &'a [usize],
    pub weights: &'a [[i8; LANES]],
    pub bias: &'a [i32; LANES],
}

/// One channel is a matrix product too, whose results may be floats.
pub(super) fn supports(g: &ConvGeom) -> bool {
    super::depthwise(g) && g.c > 1 && u64::from(g.kh) * u64::from(g.kw) <= TAPS_MAX as u64
}

/// # Safety
/// See [`super::RunFn`]; the processor has what the code needs.
pub(super) unsafe fn run(code: &Code, o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, x, r, y, ref tile } = o;
    tile.check(g, LANES);
    let s = read(FORMAT, g, packed);
    let weights: &[[i8; LANES]] = bytemuck::cast_slice(s.data);
    let mut taps = [0; TAPS_MAX];
    let taps = &mut taps[..g.depth()];
    for (i, tap) in taps.iter_mut().enumerate() {
        *tap = g.tap_at(i as u32 / g.kw, i as u32 % g.kw);
    }
    for row in tile.rows.clone() {
        for cols in blocks(tile.cols.clone(), OUTPUTS as u32) {
            for first in (tile.ocs.start as usize..tile.ocs.end as usize).step_by(LANES) {
                let job = Job {
                    x: x.wrapping_add(g.x_at(row, cols.start) + first),
                    x_output: g.x_step(),
                    taps,
                    weights: &weights[first / LANES * taps.len()..][..taps.len()],
                    bias: s.bias[first..][..LANES].try_into().expect("bias is padded to whole blocks"),
                };
                let mut sums = [[0; LANES]; OUTPUTS];
                let lanes = LANES.min(tile.ocs.end as usize - first);
                // SAFETY: the processor has what the code needs; all taps of these outputs are readable, of a last block of fewer
                // channels with at most 15 bytes more, less than READ_AFTER; pixels and channels belong to the tile.
                unsafe {
                    (code.sums[cols.len() - 1])(&job, &mut sums);
                    for (sums, col) in sums.iter().zip(cols.clone()) {
                        let mut residual = [0; LANES];
                        if e.has_residual {
                            r.add(g.r_at(row, col) + first)
                                .copy_to_nonoverlapping(residual.as_mut_ptr(), lanes);
                        }
                        let bytes = (code.requant)(s.mult[first..].as_ptr(), e, sums, &residual);
                        let y = y.add(g.y_at(row, col) + first);
                        match lanes {
                            LANES => y.cast::<[u8; LANES]>().write(bytes),
                            _ => y.copy_from_nonoverlapping(bytes.as_ptr(), lanes),
                        }
                    }
                }
            }
        }
    }
}
