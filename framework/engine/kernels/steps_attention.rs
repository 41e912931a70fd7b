//! Integer attention, head by head: keys and values of a head are packed for dot products of four bytes, then blocks of
//! queries run through scores, softmax and context. Arithmetic: `lacuna_ir::reference::attention::row`.
//!
//! Scratch of one part, each piece on a line of its own (S keys, D channels of a head, R = [`QUERIES`]):
//! ```text
//! keys    [S up to 16 / 16][D up to 4 / 4][16 keys][4 channels] i8: k - 128, zeros beyond
//! values  [S up to 64 / 4][D up to 16 / 16][16 channels][4 keys] i8: v - 128, zeros beyond
//! column  [S up to 16] i32: what a score's sum starts from        shift [S up to 16] f32: the mask
//! scores  [R][S up to 16] i32      row [S up to 64] f32      chances [R][S up to 64] u8, zeros beyond
//! context [R][D up to 16] i32      zeros [D up to 16] i32
//! ```

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::{by_isa, requantize, share};
use crate::memory::LINE;
use crate::target::Isa;
use lacuna_ir::op::{QAttentionAttr, Requant};
use lacuna_ir::reference::fixed::{LANES, exp2_value, sum_lanes};

#[path = "steps_attention_product.rs"]
mod product;

use product::{Product, ROWS_MAX, Tiles, run_product};

/// Queries of one block.
pub const QUERIES: usize = ROWS_MAX;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionStep {
    pub batch: usize,
    /// Queries and keys of one sequence, channels of one head.
    pub tokens: usize,
    pub keys: usize,
    pub depth: usize,
    /// Blocks into which the queries of a head are cut, so that there is work for every thread.
    pub blocks: usize,
    /// Bytes from sequence to sequence and from token to token, of y, q, k, v.
    pub strides: [[usize; 2]; 4],
    /// Elements of the mask from sequence to sequence.
    pub mask: Option<usize>,
    pub attr: QAttentionAttr,
}

/// Operands of an [`AttentionStep`]; the mask is not read if there is none.
#[derive(Clone, Copy, Debug)]
pub struct AttentionOperands {
    pub y: *mut u8,
    pub q: *const u8,
    pub k: *const u8,
    pub v: *const u8,
    pub mask: *const f32,
    pub scratch: *mut u8,
}

/// Where the pieces of a part's scratch begin, and its length.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub keys: usize,
    pub values: usize,
    pub column: usize,
    pub shift: usize,
    pub scores: usize,
    pub row: usize,
    pub chances: usize,
    pub context: usize,
    pub zeros: usize,
    end: usize,
}

impl AttentionStep {
    fn heads(&self) -> usize {
        self.attr.heads as usize
    }

    pub fn units(&self) -> usize {
        self.batch * self.heads() * self.blocks
    }

    /// Bytes of scratch that one part needs.
    pub fn scratch_bytes(&self) -> usize {
        self.layout().end
    }

    /// Keys of scores, keys of chances, channels of context.
    pub fn padded(&self) -> [usize; 3] {
        [self.keys.next_multiple_of(16), self.keys.next_multiple_of(64), self.depth.next_multiple_of(16)]
    }

    fn layout(&self) -> Layout {
        let [keys, chances, depth] = self.padded();
        let mut end = 0;
        let mut piece = |bytes: usize| {
            let start = end;
            end += bytes.next_multiple_of(LINE);
            start
        };
        Layout {
            keys: piece(keys * self.depth.next_multiple_of(4)),
            values: piece(chances * depth),
            column: piece(keys * 4),
            shift: piece(keys * 4),
            scores: piece(QUERIES * keys * 4),
            row: piece(chances * 4),
            chances: piece(QUERIES * chances),
            context: piece(QUERIES * depth * 4),
            zeros: piece(depth * 4),
            end,
        }
    }
}

/// Runs one part of an attention.
///
/// # Safety
/// The processor has `isa`. Operands are the first elements of buffers that hold all that `s` addresses, with
/// `READ_AFTER` readable bytes behind q; scratch holds `s.scratch_bytes()` for every part, on a line. Nobody else
/// touches scratch or writes q, k, v and mask meanwhile, and other parts write other bytes of y.
pub unsafe fn run_attention(isa: Isa, s: &AttentionStep, p: AttentionOperands, part: usize, parts: usize) {
    let mut packed = usize::MAX;
    let mut tiles = Tiles::default();
    for unit in share(s.units(), part, parts) {
        let (sequence, block) = (unit / s.blocks, unit % s.blocks);
        // SAFETY: a unit is a head of a sequence and a share of its queries; scratch is this part's own.
        unsafe {
            let scratch = p.scratch.add(part * s.scratch_bytes());
            let head = Head::new(s, p, scratch, sequence);
            if packed != sequence {
                match wide(isa) {
                    #[cfg(target_arch = "x86_64")]
                    true => avx512::pack(s, &head),
                    _ => run_pack(isa, s, &head),
                }
                packed = sequence;
            }
            let queries = share(s.tokens, block, s.blocks);
            for first in queries.clone().step_by(QUERIES) {
                let rows = QUERIES.min(queries.end - first);
                run_block(isa, &mut tiles, s, &head, first, rows);
            }
        }
    }
}

/// Whether the vectors of `avx512` are there.
fn wide(isa: Isa) -> bool {
    cfg!(target_arch = "x86_64") && isa >= Isa::Avx512Vnni
}

/// One head of one sequence: where its operands begin, and scratch.
pub struct Head {
    pub y: *mut u8,
    pub q: *const u8,
    pub k: *const u8,
    pub v: *const u8,
    pub mask: *const f32,
    scratch: *mut u8,
    pub at: Layout,
}

impl Head {
    /// # Safety
    /// As [`run_attention`]; there are as many sequences and heads.
    unsafe fn new(s: &AttentionStep, p: AttentionOperands, scratch: *mut u8, unit: usize) -> Head {
        let (sequence, head) = (unit / s.heads(), unit % s.heads());
        let at = |i: usize| sequence * s.strides[i][0] + head * s.depth;
        // SAFETY: the caller's promise.
        unsafe {
            Head {
                y: p.y.add(at(0)),
                q: p.q.add(at(1)),
                k: p.k.add(at(2)),
                v: p.v.add(at(3)),
                mask: p.mask.add(s.mask.unwrap_or(0) * sequence),
                scratch,
                at: s.layout(),
            }
        }
    }

    /// Byte `at` of scratch.
    ///
    /// # Safety
    /// It lies inside scratch.
    #[cfg(target_arch = "x86_64")]
    pub unsafe fn scratch_at<T>(&self, at: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.scratch.add(at).cast() }
    }

    /// `len` elements of scratch from byte `at`.
    ///
    /// # Safety
    /// They lie inside one piece, and there is no other reference to them.
    #[allow(clippy::mut_from_ref, reason = "pieces of scratch do not overlap")]
    unsafe fn piece<T>(&self, at: usize, len: usize) -> &mut [T] {
        // SAFETY: the caller's promise; pieces begin on lines.
        unsafe { std::slice::from_raw_parts_mut(self.scratch.add(at).cast(), len) }
    }
}

by_isa! {
    /// Packs keys and values, and what scores get from keys and mask alone.
    ///
    /// # Safety
    /// As [`run_attention`].
    run_pack, pack, (s: &AttentionStep, head: &Head)
}

#[inline(always)]
unsafe fn pack(s: &AttentionStep, head: &Head) {
    let [keys, padded_keys, width] = s.padded();
    let groups = s.depth.div_ceil(4);
    let a = &s.attr;
    // SAFETY: key `j` and value `j` have `depth` bytes; slices are pieces of scratch, each taken once.
    unsafe {
        let packed = head.piece::<i8>(head.at.keys, keys * groups * 4);
        let column = head.piece::<i32>(head.at.column, keys);
        let shift = head.piece::<f32>(head.at.shift, keys);
        let key_shift = 128 - a.k_zero;
        for j in 0..s.keys {
            let key = std::slice::from_raw_parts(head.k.add(j * s.strides[2][1]), s.depth);
            let block = &mut packed[j / 16 * groups * 64..][..groups * 64];
            let mut sum = 0i32;
            for (slot, bytes) in block[j % 16 * 4..].chunks_mut(64).zip(key.chunks(4)) {
                for (i, slot) in slot[..4].iter_mut().enumerate() {
                    *slot = bytes.get(i).map_or(0, |&k| (k ^ 128) as i8);
                    sum += i32::from(*slot);
                }
            }
            column[j] = -a.q_zero * (sum + s.depth as i32 * key_shift);
            shift[j] = if s.mask.is_some() { *head.mask.add(j) * std::f32::consts::LOG2_E } else { 0.0 };
        }
        for j in s.keys..keys {
            packed[j / 16 * groups * 64..][..groups * 64][j % 16 * 4..]
                .chunks_mut(64)
                .for_each(|slot| slot[..4].fill(0));
        }
        head.piece::<i32>(head.at.zeros, width).fill(0);
        let packed = head.piece::<i8>(head.at.values, padded_keys * width);
        for (group, block) in packed.chunks_exact_mut(width * 4).enumerate() {
            let first = group * 4;
            if first + 4 <= s.keys {
                let rows: [&[u8]; 4] = std::array::from_fn(|i| {
                    std::slice::from_raw_parts(head.v.add((first + i) * s.strides[3][1]), s.depth)
                });
                for (d, slot) in block.chunks_exact_mut(4).take(s.depth).enumerate() {
                    (0..4).for_each(|i| slot[i] = (rows[i][d] ^ 128) as i8);
                }
                block[s.depth * 4..].fill(0);
            } else {
                block.fill(0);
                for j in first..s.keys.max(first) {
                    let row = std::slice::from_raw_parts(head.v.add(j * s.strides[3][1]), s.depth);
                    (0..s.depth).for_each(|d| block[d * 4 + j - first] = (row[d] ^ 128) as i8);
                }
            }
        }
    }
}

/// Scores, softmax and context of queries `first..first + rows`.
unsafe fn run_block(isa: Isa, tiles: &mut Tiles, s: &AttentionStep, head: &Head, first: usize, rows: usize) {
    let [keys, padded_keys, width] = s.padded();
    let groups = s.depth.div_ceil(4);
    // SAFETY: queries have `depth` bytes, and up to 3 more are readable; all else lies inside pieces of scratch as
    // long as `Layout` says.
    unsafe {
        let scores = Product {
            a: head.q.add(first * s.strides[1][1]),
            a_row: s.strides[1][1],
            rows,
            groups,
            b: head.scratch.add(head.at.keys).cast(),
            b_block: groups * 64,
            b_group: 64,
            blocks: keys / 16,
            init: head.scratch.add(head.at.column).cast(),
            c: head.scratch.add(head.at.scores).cast(),
            c_row: keys,
        };
        run_product(isa, tiles, &scores);
        match wide(isa) {
            #[cfg(target_arch = "x86_64")]
            true => avx512::softmax(s, head, first, rows),
            _ => run_softmax(isa, s, head, first, rows),
        }
        let context = Product {
            a: head.scratch.add(head.at.chances),
            a_row: padded_keys,
            rows,
            groups: padded_keys / 4,
            b: head.scratch.add(head.at.values).cast(),
            b_block: 64,
            b_group: width * 4,
            blocks: width / 16,
            init: head.scratch.add(head.at.zeros).cast(),
            c: head.scratch.add(head.at.context).cast(),
            c_row: width,
        };
        run_product(isa, tiles, &context);
        match wide(isa) {
            #[cfg(target_arch = "x86_64")]
            true => avx512::finish(s, head, first, rows),
            _ => run_finish(isa, s, head, first, rows),
        }
    }
}

by_isa! {
    /// From scores to chances of each row.
    ///
    /// # Safety
    /// As [`run_attention`]; the scores of these rows are there.
    run_softmax, softmax, (s: &AttentionStep, head: &Head, first: usize, rows: usize)
}

#[inline(always)]
unsafe fn softmax(s: &AttentionStep, head: &Head, first: usize, rows: usize) {
    let [keys, padded_keys, _] = s.padded();
    // SAFETY: pieces of scratch, each taken once; query `first + row` has `depth` bytes.
    unsafe {
        let shift = &*head.piece::<f32>(head.at.shift, keys);
        let scores = &*head.piece::<i32>(head.at.scores, rows * keys);
        let chances = head.piece::<u8>(head.at.chances, rows * padded_keys);
        let row = &mut head.piece::<f32>(head.at.row, keys)[..s.keys];
        for (i, (scores, chances)) in
            scores.chunks_exact(keys).zip(chances.chunks_exact_mut(padded_keys)).enumerate()
        {
            let query = std::slice::from_raw_parts(head.q.add((first + i) * s.strides[1][1]), s.depth);
            let sum: i32 = query.iter().map(|&q| i32::from(q)).sum();
            let own = (128 - s.attr.k_zero) * sum;
            let max = finish_scores(row, scores, shift, own, s.attr.score_mult);
            let sum = exponentials(row, max);
            let scale = s.attr.p_mult / sum;
            let eight_bit = Requant { zero: 0, lo: 0, hi: 255 };
            chances.iter_mut().zip(&*row).for_each(|(p, &e)| *p = requantize(e * scale, eight_bit));
            chances[s.keys..].fill(0);
        }
    }
}

/// Writes the scores as exponents of two and returns the largest.
#[inline(always)]
fn finish_scores(row: &mut [f32], scores: &[i32], shift: &[f32], own: i32, mult: f32) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let score = |j: usize| ((scores[j] + own) as f32).mul_add(mult, shift[j]);
    let whole = row.len() / LANES * LANES;
    for (block, row) in row[..whole].chunks_exact_mut(LANES).enumerate() {
        for lane in 0..LANES {
            let t = score(block * LANES + lane);
            row[lane] = t;
            lanes[lane] = if t > lanes[lane] { t } else { lanes[lane] };
        }
    }
    for j in whole..row.len() {
        row[j] = score(j);
        lanes[0] = if row[j] > lanes[0] { row[j] } else { lanes[0] };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |m, t| if t > m { t } else { m })
}

/// Raises two to each `row[j] - max`; returns the sum.
#[inline(always)]
fn exponentials(row: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut blocks = row.chunks_exact_mut(LANES);
    for block in &mut blocks {
        for lane in 0..LANES {
            block[lane] = exp2_value(block[lane] - max);
            lanes[lane] += block[lane];
        }
    }
    for (t, lane) in blocks.into_remainder().iter_mut().zip(&mut lanes) {
        *t = exp2_value(*t - max);
        *lane += *t;
    }
    sum_lanes(lanes)
}

by_isa! {
    /// From context to results.
    ///
    /// # Safety
    /// As [`run_attention`]; context and chances of these rows are there.
    run_finish, finish, (s: &AttentionStep, head: &Head, first: usize, rows: usize)
}

#[inline(always)]
unsafe fn finish(s: &AttentionStep, head: &Head, first: usize, rows: usize) {
    let [_, padded_keys, width] = s.padded();
    let a = &s.attr;
    // SAFETY: pieces of scratch; row `first + i` of y has `depth` bytes, which are this part's.
    unsafe {
        let chances = &*head.piece::<u8>(head.at.chances, rows * padded_keys);
        let context = &*head.piece::<i32>(head.at.context, rows * width);
        for (i, (context, chances)) in
            context.chunks_exact(width).zip(chances.chunks_exact(padded_keys)).enumerate()
        {
            let y = std::slice::from_raw_parts_mut(head.y.add((first + i) * s.strides[0][1]), s.depth);
            let sum: i32 = chances.iter().map(|&p| i32::from(p)).sum();
            let own = (128 - a.v_zero) * sum;
            y.iter_mut()
                .zip(context)
                .for_each(|(y, &c)| *y = requantize((c + own) as f32 * a.out_mult, a.out));
        }
    }
}
