//! The part of an LSTM that goes from step to step.

use super::{by_isa, share};
use crate::memory::AlignedBytes;
use crate::target::Isa;
use lacuna_ir::reference::fixed::{sigmoid_value, tanh_value};

mod tile {
    pub use lacuna_kernels::gemm::tile::*;
    pub use lacuna_kernels::isa::Isa;
}

/// Gates are input, output, forget, cell: `[seq, batch, dirs, 4, hidden]`, which hold the input's part and biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LstmStep {
    pub seq: usize,
    pub batch: usize,
    pub hidden: usize,
    pub dirs: usize,
    /// The only direction there is goes from the end.
    pub backwards: bool,
    /// Columns of a panel of the recurrent weights.
    pub panel: usize,
    /// Elements of y from step to step, direction to direction, sequence to sequence.
    pub y: [usize; 3],
}

/// Rows that are multiplied with one panel after the other.
const ROWS: usize = 48;

/// Columns of a panel for this processor's tiles.
pub fn recurrent_panel(isa: Isa) -> usize {
    match isa.of_tiles() {
        tile::Isa::Avx512 => tile::MOST_COLUMNS,
        _ => 16,
    }
}

/// Recurrent weights `f32[dirs, rows, hidden]` as panels: for each direction and each panel of its rows, `[hidden, panel]`.
/// The last panel of a direction may be narrower.
pub fn pack_recurrent(isa: Isa, r: &[u8], rows: usize, hidden: usize) -> AlignedBytes {
    let r: Vec<f32> = bytemuck::pod_collect_to_vec(r);
    let mut packed = AlignedBytes::zeroed(r.len() * 4);
    let to: &mut [f32] = bytemuck::cast_slice_mut(&mut packed);
    for (r, to) in r.chunks_exact(rows * hidden).zip(to.chunks_exact_mut(rows * hidden)) {
        let panel = recurrent_panel(isa) * hidden;
        for (r, to) in r.chunks(panel).zip(to.chunks_mut(panel)) {
            let columns = r.len() / hidden;
            for (j, row) in r.chunks_exact(hidden).enumerate() {
                row.iter().enumerate().for_each(|(k, &v)| to[k * columns + j] = v);
            }
        }
    }
    packed
}

/// Runs the directions of one part.
///
/// # Safety
/// The processor has `isa`. Operands are y, state and cell (each dense, `[dirs, batch, hidden]`, which hold where to begin), gates
/// and packed weights, of the step's sizes; nobody else uses those of this part's directions.
pub unsafe fn run_lstm(
    isa: Isa,
    s: &LstmStep,
    [y, state, cell, gates, r]: [*mut f32; 5],
    part: usize,
    parts: usize,
) {
    let (row, line) = (4 * s.hidden, s.dirs * 4 * s.hidden);
    for dir in share(s.dirs, part, parts) {
        let r = r.cast_const().wrapping_add(dir * row * s.hidden);
        for step in 0..s.seq {
            let t = if dir == 1 || s.backwards { s.seq - 1 - step } else { step };
            for block in (0..s.batch).step_by(ROWS) {
                let mut rows = [tile::Row { a: 0, c: 0 }; ROWS];
                let rows = &mut rows[..ROWS.min(s.batch - block)];
                for (n, to) in (block..).zip(rows.iter_mut()) {
                    let c = (t * s.batch + n) * line + dir * row;
                    *to = tile::Row { a: (dir * s.batch + n) * s.hidden, c };
                }
                for first in (0..row).step_by(s.panel) {
                    let columns = s.panel.min(row - first);
                    let product = tile::Product {
                        a: state,
                        runs: &[0],
                        run_len: s.hidden,
                        a_step: 1,
                        b: r.wrapping_add(first * s.hidden),
                        b_step: columns,
                        c: gates.wrapping_add(first),
                        columns,
                        first: tile::First::Sum,
                        last: None,
                        ahead: None,
                    };
                    // SAFETY: states, gates of this step and panels are whole (the caller's promise).
                    unsafe { tile::run(isa.of_tiles(), &product, rows) };
                }
            }
            for n in 0..s.batch {
                let own = (dir * s.batch + n) * s.hidden;
                // SAFETY: as above; y's row of this step, direction and sequence.
                unsafe {
                    let gates = gates.add((t * s.batch + n) * line + dir * row);
                    let y = y.add(t * s.y[0] + dir * s.y[1] + n * s.y[2]);
                    run_cell(isa, gates, cell.add(own), state.add(own), y, s.hidden);
                }
            }
        }
    }
}

by_isa! {
    /// # Safety
    /// The processor has `isa`; `4 * n` gates, and `n` elements of each of the others, which are nobody else's.
    run_cell, cell, (gates: *mut f32, c: *mut f32, state: *mut f32, y: *mut f32, n: usize)
}

/// Loops over one gate after the other, which the compiler makes vectors of.
#[inline(always)]
unsafe fn cell(gates: *mut f32, c: *mut f32, state: *mut f32, y: *mut f32, n: usize) {
    // SAFETY: the caller's promise.
    let (gates, c, state, y) = unsafe {
        let own = |p: *mut f32, n: usize| std::slice::from_raw_parts_mut(p, n);
        (own(gates, 4 * n), own(c, n), own(state, n), own(y, n))
    };
    let (sigmoids, new) = gates.split_at_mut(3 * n);
    for gate in sigmoids.iter_mut() {
        *gate = sigmoid_value(*gate);
    }
    let (input, rest) = sigmoids.split_at(n);
    let (output, forget) = rest.split_at(n);
    for i in 0..n {
        c[i] = forget[i] * c[i] + input[i] * tanh_value(new[i]);
    }
    for i in 0..n {
        state[i] = output[i] * tanh_value(c[i]);
    }
    y.copy_from_slice(state);
}
