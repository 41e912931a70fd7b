//! Dense int8 convolutions on AMX: 1,024 products per cycle, eight times those of the vector units.
//!
//! A block is up to 32 pixels x 32 channels: four tiles of sums, two of pixels, two of weights. A pixel tile is loaded
//! straight from the activations, since 16 neighbouring pixels of NHWC memory are 16 rows at a constant distance; one
//! step takes 64 bytes of each. A block's sums are stored, and become results while the next block multiplies: the
//! tile unit and the vector units work at the same time.
//!
//! ```text
//! format "AMXi", data: panels of 32 channels (the last one of 16 or 32), for each run, for each step, for each 16 channels:
//!         [16 quads of the run][16 channels][4] i8, one tile of 1 KiB
//! table:  byte offset in x of every run          args: steps per run, runs between stores
//! ```
//! A run is a stretch of x that one output reads: one row of its window where that takes fewer steps than its taps one by
//! one. Bytes of x between the channels of a run's taps, and behind it, meet weights of zero.

use super::dense_avx512::{Requant, lanes_before};
use super::packed::{LANES, Sections, expect, read, write};
use super::{ConvGeom, ConvWeights, KernelType, Packed, QEpilogue, READ_AFTER, Tile};
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

const FORMAT: &[u8; 4] = b"AMXi";
/// Pixels of a tile.
const PIXELS: usize = 16;
/// Bytes of a run that one step takes.
const STEP: usize = 64;
const PANEL: usize = 32;
const TILE_BYTES: usize = 1024;
/// Bytes of weights that stay in the second-level cache while pixels stream by.
const CHUNK_BYTES: usize = 1 << 20;

/// Steps between two stores of some tile, at most. After more than 32 the next store takes 280 ns instead of 14, seen on
/// Granite Rapids and nowhere documented: a store that nobody reads keeps the tile unit's queue short.
const STEPS_PER_STORE: usize = 24;

/// How a window is read: offsets of the runs, and their length.
struct Runs {
    table: Vec<u32>,
    /// Taps of a stretch of x, side by side, and the runs it is cut into.
    taps: usize,
    pieces: usize,
    steps: usize,
}

fn runs(g: &ConvGeom) -> Runs {
    let (kw, c, pixel) = (g.kw as usize, g.c as usize, g.x_pixel as usize);
    let row = ((kw - 1) * pixel + c).div_ceil(STEP);
    let joined = kw > 1 && g.dw == 1 && row < kw * c.div_ceil(STEP);
    let (taps, all) = if joined { (kw, row) } else { (1, c.div_ceil(STEP)) };
    // Cut so that at most one step of zeros is added: it reads no further than READ_AFTER.
    let cut = |pieces: &usize| all.next_multiple_of(*pieces) - all <= 1;
    let pieces = (all.div_ceil(STEPS_PER_STORE)..=all).find(cut).unwrap_or(1);
    let steps = all.div_ceil(pieces);
    let table = (0..g.kh)
        .flat_map(|ky| (0..g.kw).step_by(taps).map(move |kx| g.tap_at(ky, kx)))
        .flat_map(|tap| (0..pieces).map(move |i| (tap + i * steps * STEP) as u32))
        .collect();
    Runs { table, taps, pieces, steps }
}

fn runs_per_store(runs: &Runs) -> u32 {
    (STEPS_PER_STORE / runs.steps).max(1) as u32
}

/// A run's last step may begin behind the channels and reads 64 bytes.
const _: () = assert!(READ_AFTER >= 2 * STEP);

pub(super) fn pack_i8(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::Int8, weights);
    let runs = runs(g);
    let steps = runs.table.len() * runs.steps;
    let (oc, c, kw) = (g.oc as usize, g.c as usize, g.kw as usize);
    let lanes = oc.next_multiple_of(LANES);
    let bytes = lanes * steps * STEP;
    let mut packed = write(
        FORMAT,
        weights,
        g,
        ([runs.steps as u32, runs_per_store(&runs), 0, 0], &runs.table),
        bytes,
        |data| {
            let ConvWeights::Int8 { w, .. } = *weights else { return };
            for o in 0..oc {
                let first = o / PANEL * PANEL;
                let tiles = (lanes - first).min(PANEL) / LANES;
                let panel = first * steps * STEP + (o - first) / LANES * TILE_BYTES + o % LANES * 4;
                for (tap, channels) in w[o * g.depth()..][..g.depth()].chunks_exact(c).enumerate() {
                    let (ky, kx) = (tap / kw, tap % kw);
                    let run = (ky * kw + kx) / runs.taps * runs.pieces;
                    let start = kx % runs.taps * g.x_pixel as usize;
                    for (i, &v) in channels.iter().enumerate() {
                        let at = start + i;
                        let step = run * runs.steps + at / STEP;
                        data[panel + step * tiles * TILE_BYTES + at % STEP / 4 * 64 + at % 4] = v as u8;
                    }
                }
            }
        },
    );
    packed.steps = (steps * lanes / LANES) as u64;
    packed.slots = bytes as u64;
    packed
}

/// A pixel tile: where it starts in x, and where those of its rows that are outputs lie in y and in the residual.
#[derive(Clone, Copy)]
struct Pixels {
    x: usize,
    count: usize,
    row: [u8; PIXELS],
    y: [u32; PIXELS],
    r: [u32; PIXELS],
}

const NO_PIXELS: Pixels = Pixels { x: 0, count: 0, row: [0; PIXELS], y: [0; PIXELS], r: [0; PIXELS] };

/// One or two pixel tiles that share a pass over the weights.
#[derive(Clone, Copy)]
struct Block {
    tiles: [Pixels; 2],
    count: usize,
}

/// Sums of a block and a panel, 16 pixels x 16 channels each: first pixel tile and both channel tiles, then the second;
/// behind them room for the stores that nobody reads.
#[repr(align(64))]
struct Sums([[[i32; LANES]; PIXELS]; 5]);

struct Call<'a> {
    g: &'a ConvGeom,
    sections: &'a Sections<'a>,
    requant: &'a Requant,
    has_residual: bool,
    /// Bytes of an element of y.
    y_size: usize,
    /// First channel that is not the tile's.
    end: usize,
    x: *const u8,
    y: *mut u8,
    r: *const u8,
}

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_i8(
    g: &ConvGeom,
    e: &QEpilogue,
    packed: &[u8],
    x: *const u8,
    r: *const u8,
    y: *mut u8,
    tile: &Tile,
) {
    // SAFETY: the caller's promise includes the processor's instruction set.
    unsafe { run(g, e, packed, [x, r], y, tile) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
unsafe fn run(g: &ConvGeom, e: &QEpilogue, packed: &[u8], [x, r]: [*const u8; 2], y: *mut u8, tile: &Tile) {
    let sections = read(FORMAT, g, packed);
    let requant = Requant::new_vbmi(e);
    let (g, tile) = g.flattened(tile, e.has_residual);
    let call = Call {
        g: &g,
        sections: &sections,
        requant: &requant,
        has_residual: e.has_residual,
        y_size: requant.y_size(),
        end: tile.ocs.end as usize,
        x,
        y,
        r,
    };
    if tile.rows.is_empty() || tile.cols.is_empty() {
        return;
    }
    let walk = Walk::new(&g, &tile);
    // SAFETY: the row's instruction set includes AMX.
    unsafe { configure(walk.rows) };
    let panel_bytes = sections.table.len() * sections.args[0] as usize * STEP * PANEL;
    let panels = tile.ocs.start as usize / PANEL..(tile.ocs.end as usize).div_ceil(PANEL);
    let chunk = (CHUNK_BYTES / panel_bytes).max(1);
    let mut first = panels.start;
    while first < panels.end {
        let own = first..(first + chunk).min(panels.end);
        // SAFETY: the tile's pixels and channels are the call's.
        unsafe { walk.each_block(&call, own.clone()) };
        first = own.end;
    }
    // SAFETY: as for `configure`.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// The order in which a tile's pixels are taken: stretches of positions at one distance in x, cut into pixel tiles. A
/// stretch is one output row, or all rows of an image, with the positions between rows computed and dropped, where
/// that takes fewer pixel tiles.
struct Walk<'a> {
    g: &'a ConvGeom,
    tile: &'a Tile,
    /// Positions from row to row of a stretch; 0 where a stretch is one row.
    pitch: usize,
    /// Rows of the pixel tiles: 16, or all positions where a stretch has fewer.
    rows: usize,
}

impl Walk<'_> {
    fn new<'a>(g: &'a ConvGeom, tile: &'a Tile) -> Walk<'a> {
        let (step, line) = (g.x_step(), g.x_line());
        let cols = tile.cols.len();
        let rows_of_image = tile.rows.len().min(g.oh as usize);
        let mut walk = Walk { g, tile, pitch: 0, rows: cols.min(PIXELS) };
        if step > 0 && line % step == 0 && rows_of_image > 1 {
            let pitch = line / step;
            let together = ((rows_of_image - 1) * pitch + cols).div_ceil(PIXELS);
            // The stretches at a tile's ends may be shorter, but all need full pixel tiles.
            let shortest = shortest_stretch(g, tile);
            if together < rows_of_image * cols.div_ceil(PIXELS) && (shortest - 1) * pitch + cols >= PIXELS {
                (walk.pitch, walk.rows) = (pitch, PIXELS);
            }
        }
        walk
    }

    /// Takes every block of the tile through the panels.
    ///
    /// # Safety
    /// Tiles are configured; the call's pointers serve the tile.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn each_block(&self, call: &Call<'_>, panels: Range<usize>) {
        let mut state = Pipeline {
            sums: [const { Sums([[[0; LANES]; PIXELS]; 5]) }; 2],
            blocks: [NO_BLOCK; 2],
            now: 0,
            pending: None,
        };
        let mut row = self.tile.rows.start;
        while row < self.tile.rows.end {
            let image_end = (row / self.g.oh + 1) * self.g.oh;
            let end = if self.pitch == 0 { row + 1 } else { image_end.min(self.tile.rows.end) };
            let length = (end - row - 1) as usize * self.pitch + self.tile.cols.len();
            let mut at = 0;
            loop {
                // The last pixel tile of a stretch ends with it: some pixels are computed twice, none beyond it read.
                let start = at.min(length.saturating_sub(self.rows));
                let pixels = self.pixels(call, row, start);
                let block = &mut state.blocks[state.now];
                block.tiles[block.count] = pixels;
                block.count += 1;
                if block.count == 2 {
                    // SAFETY: the pixels belong to the tile.
                    unsafe { state.multiply(call, panels.clone()) };
                }
                at += self.rows;
                if at >= length {
                    break;
                }
            }
            row = end;
        }
        if state.blocks[state.now].count > 0 {
            // SAFETY: as above.
            unsafe { state.multiply(call, panels) };
        }
        // SAFETY: as above.
        unsafe { state.finish(call) };
    }

    /// The pixel tile that begins `start` positions behind the first pixel of `row`.
    fn pixels(&self, call: &Call<'_>, row: u32, start: usize) -> Pixels {
        let (g, cols) = (self.g, self.tile.cols.len());
        let first = self.tile.cols.start;
        let mut p = Pixels { x: g.x_at(row, first) + start * g.x_step(), ..NO_PIXELS };
        let (mut line, mut col) = match self.pitch {
            0 => (row, start),
            pitch => (row + (start / pitch) as u32, start % pitch),
        };
        for i in 0..self.rows {
            if col < cols {
                let at = first + col as u32;
                p.row[p.count] = i as u8;
                p.y[p.count] = g.y_at(line, at) as u32;
                if call.has_residual {
                    p.r[p.count] = g.r_at(line, at) as u32;
                }
                p.count += 1;
            }
            col += 1;
            if col == self.pitch {
                (line, col) = (line + 1, 0);
            }
        }
        p
    }
}

/// Rows of the shortest stretch, if a stretch is all of the tile's rows of an image.
fn shortest_stretch(g: &ConvGeom, tile: &Tile) -> usize {
    let head = (g.oh - tile.rows.start % g.oh).min(tile.rows.len() as u32);
    let tail = match tile.rows.end % g.oh {
        0 => g.oh,
        rows => rows,
    };
    head.min(tail).min(tile.rows.len() as u32) as usize
}

const NO_BLOCK: Block = Block { tiles: [NO_PIXELS; 2], count: 0 };

/// Two blocks and two sets of sums: one is multiplied while the other's sums become results.
struct Pipeline {
    sums: [Sums; 2],
    blocks: [Block; 2],
    /// The block that is filled.
    now: usize,
    /// Sums that are no results yet: which, whose, and of which panel.
    pending: Option<(usize, usize, usize)>,
}

impl Pipeline {
    /// Multiplies the present block with the panels, finishing what was pending, and begins another block.
    ///
    /// # Safety
    /// As [`Walk::each_block`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn multiply(&mut self, call: &Call<'_>, panels: Range<usize>) {
        for panel in panels {
            let to = self.pending.map_or(0, |(sums, ..)| 1 - sums);
            let block = &self.blocks[self.now];
            // SAFETY: the caller's promise.
            unsafe { products(call, block, panel, &mut self.sums[to]) };
            // SAFETY: as above.
            unsafe { self.finish(call) };
            self.pending = Some((to, self.now, panel));
        }
        self.now = 1 - self.now;
        // The other block was finished above, with its last panel: the present one is pending at most.
        self.blocks[self.now].count = 0;
    }

    /// # Safety
    /// As [`Walk::each_block`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn finish(&mut self, call: &Call<'_>) {
        if let Some((sums, block, panel)) = self.pending.take() {
            // SAFETY: the caller's promise.
            unsafe { results(call, &self.blocks[block], panel, &self.sums[sums]) };
        }
    }
}

/// 64 bytes that say how large the eight tiles are: four of sums and two of pixels with so many rows, two of weights.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    columns: [u16; 16],
    rows: [u8; 16],
}

/// # Safety
/// The processor has AMX and the process may use it.
unsafe fn configure(rows: usize) {
    let mut c = Config { palette: 1, start_row: 0, reserved: [0; 14], columns: [0; 16], rows: [0; 16] };
    c.columns[..8].fill(64);
    c.rows[..6].fill(rows as u8);
    c.rows[6..8].fill(16);
    // SAFETY: a valid configuration.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const c, options(nostack, readonly)) };
}

/// Defines the product of a number of pixel tiles and channel tiles: sums start at the bias.
macro_rules! tile_product {
    ($name:ident, channels $channels:literal, bias [$($bias:literal)*], steps [$($step:literal)*], store [$($store:literal)*]) => {
        /// # Safety
        /// Tiles are configured; `x` and `x2` begin pixel tiles whose runs may be read; `weights` is the panel's, `bias` its
        /// channels', and `sums` takes the sums.
        #[inline(always)]
        unsafe fn $name(s: &Sections<'_>, stride: usize, [x, x2]: [*const u8; 2], mut weights: *const u8, bias: *const i32, sums: *mut Sums) {
            // SAFETY: `read` cut the table to its runs, of which there is at least one, with at least one step.
            unsafe {
                asm!($($bias,)* bias = in(reg) bias, zero = in(reg) 0usize, options(nostack, readonly));
                for (i, runs) in s.table.chunks(s.args[1] as usize).enumerate() {
                    if i > 0 {
                        asm!("tilestored [{sums} + {line} + 4096], tmm4", line = in(reg) 64usize, sums = in(reg) sums, options(nostack));
                    }
                    asm!(
                        "/* {b} {x2} */",
                        "2:",
                        "mov {a:e}, dword ptr [{run}]",
                        "add {run}, 4",
                        "lea {b}, [{a} + {x2}]",
                        "add {a}, {x}",
                        "mov {n:e}, {steps:e}",
                        "3:",
                        $($step,)*
                        "add {a}, 64",
                        "add {b}, 64",
                        concat!("add {w}, 1024 * ", $channels),
                        "dec {n:e}",
                        "jnz 3b",
                        "dec {runs:e}",
                        "jnz 2b",
                        run = inout(reg) runs.as_ptr() => _,
                        runs = inout(reg) runs.len() => _,
                        steps = in(reg) s.args[0],
                        w = inout(reg) weights,
                        x = in(reg) x,
                        x2 = in(reg) x2,
                        s = in(reg) stride,
                        a = out(reg) _,
                        b = out(reg) _,
                        n = out(reg) _,
                        line = in(reg) 64usize,
                        options(nostack, readonly)
                    );
                }
                asm!($($store,)* line = in(reg) 64usize, sums = in(reg) sums, options(nostack));
            }
        }
    };
}

tile_product! { two_by_two, channels 2,
    bias [
        "tileloadd tmm0, [{bias} + {zero}]" "tileloadd tmm1, [{bias} + {zero} + 64]"
        "tileloadd tmm2, [{bias} + {zero}]" "tileloadd tmm3, [{bias} + {zero} + 64]"
    ],
    steps [
        "tileloadd tmm6, [{w} + {line}]"
        "tileloadd tmm4, [{a} + {s}]"
        "tdpbusd tmm0, tmm4, tmm6"
        "tileloadd tmm5, [{b} + {s}]"
        "tdpbusd tmm2, tmm5, tmm6"
        "tileloadd tmm7, [{w} + {line} + 1024]"
        "tdpbusd tmm1, tmm4, tmm7"
        "tdpbusd tmm3, tmm5, tmm7"
    ],
    store [
        "tilestored [{sums} + {line}], tmm0" "tilestored [{sums} + {line} + 1024], tmm1"
        "tilestored [{sums} + {line} + 2048], tmm2" "tilestored [{sums} + {line} + 3072], tmm3"
    ]
}

tile_product! { one_by_two, channels 2,
    bias ["tileloadd tmm0, [{bias} + {zero}]" "tileloadd tmm1, [{bias} + {zero} + 64]"],
    steps [
        "tileloadd tmm4, [{a} + {s}]"
        "tileloadd tmm6, [{w} + {line}]"
        "tdpbusd tmm0, tmm4, tmm6"
        "tileloadd tmm7, [{w} + {line} + 1024]"
        "tdpbusd tmm1, tmm4, tmm7"
    ],
    store ["tilestored [{sums} + {line}], tmm0" "tilestored [{sums} + {line} + 1024], tmm1"]
}

tile_product! { two_by_one, channels 1,
    bias ["tileloadd tmm0, [{bias} + {zero}]" "tileloadd tmm2, [{bias} + {zero}]"],
    steps [
        "tileloadd tmm4, [{a} + {s}]"
        "tileloadd tmm6, [{w} + {line}]"
        "tdpbusd tmm0, tmm4, tmm6"
        "tileloadd tmm5, [{b} + {s}]"
        "tdpbusd tmm2, tmm5, tmm6"
    ],
    store ["tilestored [{sums} + {line}], tmm0" "tilestored [{sums} + {line} + 2048], tmm2"]
}

tile_product! { one_by_one, channels 1,
    bias ["tileloadd tmm0, [{bias} + {zero}]"],
    steps [
        "tileloadd tmm4, [{a} + {s}]"
        "tileloadd tmm6, [{w} + {line}]"
        "tdpbusd tmm0, tmm4, tmm6"
    ],
    store ["tilestored [{sums} + {line}], tmm0"]
}

/// Channel tiles of a panel.
fn channel_tiles(oc: usize, panel: usize) -> usize {
    (oc.next_multiple_of(LANES) - panel * PANEL).min(PANEL) / LANES
}

/// The sums of a block and a panel.
///
/// # Safety
/// As [`Walk::each_block`].
#[inline]
unsafe fn products(call: &Call<'_>, block: &Block, panel: usize, sums: &mut Sums) {
    let s = call.sections;
    let steps = s.table.len() * s.args[0] as usize;
    let weights = s.data[panel * PANEL * steps * STEP..].as_ptr();
    let bias = s.bias[panel * PANEL..].as_ptr();
    let x = block.tiles.each_ref().map(|t| call.x.wrapping_add(t.x));
    let stride = call.g.x_step();
    // SAFETY: the caller's promise; a block of one tile leaves the second address alone.
    unsafe {
        match (block.count, channel_tiles(call.g.oc as usize, panel)) {
            (2, 2) => two_by_two(s, stride, x, weights, bias, sums),
            (1, 2) => one_by_two(s, stride, x, weights, bias, sums),
            (2, _) => two_by_one(s, stride, x, weights, bias, sums),
            _ => one_by_one(s, stride, x, weights, bias, sums),
        }
    }
}

/// Writes a block's results of one panel.
///
/// # Safety
/// As [`Walk::each_block`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn results(call: &Call<'_>, block: &Block, panel: usize, sums: &Sums) {
    let (q, size) = (call.requant, call.y_size);
    for v in 0..channel_tiles(call.g.oc as usize, panel) {
        let channel = panel * PANEL + v * LANES;
        let mask = lanes_before(channel, call.end);
        if mask == 0 {
            break;
        }
        // SAFETY: `read` cut the multipliers to whole vectors.
        let mult = unsafe { _mm512_loadu_ps(call.sections.mult.as_ptr().add(channel)) };
        let (y, r) = (call.y.wrapping_add(channel * size), call.r.wrapping_add(channel));
        for (t, p) in block.tiles[..block.count].iter().enumerate() {
            let tile = &sums.0[t * 2 + v];
            let row = |i: usize| {
                // SAFETY: a row of sums is one vector, on its boundary.
                let acc = unsafe { _mm512_load_si512(tile[p.row[i] as usize].as_ptr().cast()) };
                (acc, mult, y.wrapping_add(p.y[i] as usize * size), r.wrapping_add(p.r[i] as usize))
            };
            let mut i = 0;
            if mask == 0xffff && !q.out_f32 {
                while i + 4 <= p.count {
                    // SAFETY: all 16 channels of these pixels are the tile's.
                    unsafe { q.store_four([row(i), row(i + 1), row(i + 2), row(i + 3)]) };
                    i += 4;
                }
            }
            for i in i..p.count {
                let (acc, mult, y, r) = row(i);
                // SAFETY: the mask keeps to the tile's channels.
                unsafe { q.store(acc, mult, mask, y, r) };
            }
        }
    }
}
