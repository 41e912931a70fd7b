//! int8 convolutions on AMX: 1,024 products per cycle, eight times those of the vector units. Zeros are multiplied, too; the
//! sparse row saves what their weights take to arrive.
//!
//! A block is up to 32 pixels x 32 channels: four tiles of sums, two of pixels, two of weights. A pixel tile is loaded
//! straight from the activations, since 16 neighbouring pixels of NHWC memory are 16 rows at a constant distance; one
//! step takes 64 bytes of each. A block's sums are stored and become results between the steps of the next block: the
//! tile unit and the vector units work at the same time, but only where a few instructions of one follow a few of
//! the other, because products that wait fill the processor's queues.
//!
//! ```text
//! format "AMXi", data: panels of 32 channels (the last one of 16 or 32), for each run, for each step, for each 16 channels:
//!         [16 quads of the run][16 channels][4] i8, one tile of 1 KiB
//! table:  byte offset in x of every run          args: steps per run, runs between stores, 1 if results are bounded, runs
//! ```
//! A run is a stretch of x that one output reads: one row of its window where that takes fewer steps than its taps one by
//! one. Bytes of x between the channels of a run's taps, and behind it, meet weights of zero.
//!
//! ```text
//! format "AMXs", data: for each panel: u64 mask[rows of 64 bytes of the panel above], bit i set where byte i is not zero,
//!         then the bytes that are not zero, in order; at least 64 more bytes are readable behind the last
//! table:  runs as above, then the byte offset of every panel in the data
//! ```
//! Weights that arrive from far away are the limit where pixels are few. The second format is a quarter of the first at 90 %
//! zeros; a chunk of it is expanded into the cache at hand (`vpexpandb`), and then read like the first.

use super::dense_avx512::{Requant, lanes_before};
use super::packed::{LANES, Sections, bounded, expect, read, write};
use super::{ConvGeom, ConvWeights, KernelType, Operands, Packed, READ_AFTER, Tile, blocks};
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

const FORMAT: &[u8; 4] = b"AMXi";
const FORMAT_SPARSE: &[u8; 4] = b"AMXs";
/// Pixels of a tile.
const PIXELS: usize = 16;
/// Bytes of a run that one step takes.
const STEP: usize = 64;
const PANEL: usize = 32;
const TILE_BYTES: usize = 1024;
/// Bytes of weights that stay in the nearest cache while pixels stream by: a step waits if both its operands come from the
/// second one. Larger panels stream by while the pixels of a block stay, as many as the second-level cache holds.
const NEAR_BYTES: usize = 20 << 10;
const FAR_BYTES: usize = 256 << 10;
/// Bytes that a chunk of sparse weights is expanded into, on the stack.
const EXPANDED_BYTES: usize = 160 << 10;
/// Lines of coming weights that a step fetches: a step's own are 32.
const LINES_AHEAD: usize = 12;
/// Bytes of x that stay in the second-level cache while all weights stream by.
const BAND_BYTES: usize = 512 << 10;

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

/// A run's last step may begin behind the channels and reads 64 bytes.
const _: () = assert!(READ_AFTER >= 2 * STEP);

pub(super) fn pack_i8(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::Int8, weights);
    let runs = runs(g);
    let bytes = panel_bytes(&runs) * (g.oc as usize).next_multiple_of(LANES) / PANEL;
    let args = args(&runs, weights, g);
    let mut packed =
        write(FORMAT, weights, g, (args, &runs.table), bytes, |data| lay_out(weights, g, &runs, data));
    packed.steps = (bytes / TILE_BYTES) as u64;
    packed.slots = bytes as u64;
    packed
}

pub(super) fn pack_i8_sparse(weights: &ConvWeights<'_>, g: &ConvGeom) -> Packed {
    expect(KernelType::Int8, weights);
    let runs = runs(g);
    let mut dense = vec![0; panel_bytes(&runs) * (g.oc as usize).next_multiple_of(LANES) / PANEL];
    lay_out(weights, g, &runs, &mut dense);
    let (mut table, mut data) = (runs.table.clone(), Vec::new());
    for panel in dense.chunks(panel_bytes(&runs)) {
        table.push(data.len() as u32);
        let mask = |row: &[u8]| row.iter().enumerate().fold(0u64, |m, (i, &v)| m | u64::from(v != 0) << i);
        data.extend(panel.chunks(STEP).flat_map(|row| mask(row).to_le_bytes()));
        data.extend(panel.iter().filter(|&&v| v != 0));
        // Masks are read as numbers.
        data.resize(data.len().next_multiple_of(8), 0);
    }
    data.resize(data.len() + STEP, 0);
    let args = args(&runs, weights, g);
    let mut packed =
        write(FORMAT_SPARSE, weights, g, (args, &table), data.len(), |out| out.copy_from_slice(&data));
    packed.steps = (dense.len() / TILE_BYTES) as u64;
    packed.slots = dense.len() as u64;
    packed
}

/// Whether a panel can be expanded.
pub(super) fn expands(g: &ConvGeom) -> bool {
    g.group == 1 && panel_bytes(&runs(g)) <= EXPANDED_BYTES
}

/// Bytes of 32 channels.
fn panel_bytes(runs: &Runs) -> usize {
    runs.table.len() * runs.steps * STEP * PANEL
}

fn args(runs: &Runs, weights: &ConvWeights<'_>, g: &ConvGeom) -> [u32; 4] {
    let runs_per_store = (STEPS_PER_STORE / runs.steps).max(1);
    [runs.steps as u32, runs_per_store as u32, u32::from(bounded(weights, g)), runs.table.len() as u32]
}

/// Puts all weights where the first format has them; `data` is zeros.
fn lay_out(weights: &ConvWeights<'_>, g: &ConvGeom, runs: &Runs, data: &mut [u8]) {
    let ConvWeights::Int8 { w, .. } = *weights else { return };
    let (oc, c, kw) = (g.oc as usize, g.c as usize, g.kw as usize);
    let lanes = oc.next_multiple_of(LANES);
    let steps = runs.table.len() * runs.steps;
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
}

/// A pixel tile: where it starts in x, and where those of its rows that are outputs lie in y and in the residual.
#[derive(Clone, Copy)]
struct Pixels {
    x: usize,
    count: usize,
    /// Where their sums lie in a tile of sums.
    sum: [u32; PIXELS],
    y: [u32; PIXELS],
    r: [u32; PIXELS],
}

const NO_PIXELS: Pixels = Pixels { x: 0, count: 0, sum: [0; PIXELS], y: [0; PIXELS], r: [0; PIXELS] };

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
    runs: &'a [u32],
    panel_bytes: usize,
    /// Dense weights from this panel on.
    weights: *const u8,
    first_panel: usize,
    requant: &'a Requant,
    /// Whether results need no more than `store_four_plain`.
    plain: bool,
    /// Or than `store_four_late`.
    late: bool,
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
pub(super) unsafe fn run_i8(o: &Operands<'_>) {
    // SAFETY: the caller's promise includes the processor's instruction set.
    unsafe { run(FORMAT, chunks_as_they_are, o) }
}

/// # Safety
/// See [`super::RunFn`].
pub(super) unsafe fn run_i8_sparse(o: &Operands<'_>) {
    // SAFETY: the caller's promise includes the processor's instruction set.
    unsafe { run(FORMAT_SPARSE, chunks_expanded, o) }
}

/// Takes pixels through all chunks of panels.
type Chunks = unsafe fn(&Walk<'_>, &mut Call<'_>, &mut Pipeline, Range<usize>);

/// Cuts a tile so that what a part reads of x stays in the second-level cache: a single row by pixels, rows by images or, where
/// an image is too large, by lines.
fn each_band(g: &ConvGeom, tile: &Tile, mut take: impl FnMut(&Tile)) {
    if tile.rows.len() == 1 {
        let most = (BAND_BYTES / g.x_step().max(1)).max(2 * PIXELS) / (2 * PIXELS) * (2 * PIXELS);
        for cols in blocks(tile.cols.clone(), u32::try_from(most).unwrap_or(u32::MAX)) {
            take(&Tile { cols, ..tile.clone() });
        }
        return;
    }
    let most = u32::try_from(BAND_BYTES / g.x_line().max(1)).unwrap_or(u32::MAX).max(1);
    let mut row = tile.rows.start;
    while row < tile.rows.end {
        let image = row / g.oh;
        let end = match most / g.oh {
            0 => (row + most).min((image + 1) * g.oh),
            images => image.saturating_add(images).saturating_mul(g.oh),
        };
        let rows = row..end.min(tile.rows.end);
        row = rows.end;
        take(&Tile { rows, ..tile.clone() });
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
unsafe fn run(format: &[u8; 4], chunks: Chunks, o: &Operands<'_>) {
    let &Operands { geom: ref g, epilogue: ref e, packed, x, r, y, ref tile } = o;
    let sections = &read(format, g, packed);
    let requant = Requant::new_vbmi(e).bounded(sections.args[2] != 0);
    let (g, tile) = g.flattened(tile, e.has_residual);
    if tile.rows.is_empty() || tile.cols.is_empty() {
        return;
    }
    let runs = &sections.table[..sections.args[3] as usize];
    let mut call = Call {
        g: &g,
        sections,
        runs,
        panel_bytes: runs.len() * sections.args[0] as usize * STEP * PANEL,
        weights: sections.data.as_ptr(),
        first_panel: 0,
        requant: &requant,
        plain: requant.is_plain(),
        late: requant.is_late(),
        y_size: requant.y_size(),
        end: tile.ocs.end as usize,
        x,
        y,
        r,
    };
    let panels = tile.ocs.start as usize / PANEL..(tile.ocs.end as usize).div_ceil(PANEL);
    // One for all chunks: making it clears some kilobytes.
    let mut state = Pipeline {
        sums: [const { Sums([[[0; LANES]; PIXELS]; 5]) }; 2],
        blocks: [NO_BLOCK; 2],
        now: 0,
        pending: None,
        ahead: std::ptr::null()..std::ptr::null(),
        fetch: false,
    };
    each_band(&g, &tile, |band| {
        let walk = Walk::new(&g, band);
        // SAFETY: the row's instruction set includes AMX; the tile's pixels and channels are the call's.
        unsafe {
            configure(walk.rows);
            chunks(&walk, &mut call, &mut state, panels.clone());
        }
    });
    // SAFETY: as for `configure`.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// # Safety
/// As [`Walk::each_block`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
unsafe fn chunks_as_they_are(
    walk: &Walk<'_>,
    call: &mut Call<'_>,
    state: &mut Pipeline,
    panels: Range<usize>,
) {
    let (data, bytes) = (call.sections.data, call.panel_bytes);
    let chunk = match NEAR_BYTES / bytes {
        0 => (FAR_BYTES / bytes).max(1),
        panels => panels,
    };
    let mut first = panels.start;
    while first < panels.end {
        let own = first..(first + chunk).min(panels.end);
        // So little stays in the second-level cache by itself; the last panel may be half a panel.
        let next = if data.len() < FAR_BYTES {
            own.end..own.end
        } else {
            own.end..(own.end + chunk).min(panels.end)
        };
        let ahead = &data[(next.start * bytes).min(data.len())..(next.end * bytes).min(data.len())];
        // SAFETY: the caller's promise.
        unsafe { walk.each_block(call, state, own.clone(), ahead) };
        first = own.end;
    }
}

/// # Safety
/// As [`Walk::each_block`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2")]
unsafe fn chunks_expanded(walk: &Walk<'_>, call: &mut Call<'_>, state: &mut Pipeline, panels: Range<usize>) {
    #[repr(align(64))]
    struct Expanded([MaybeUninit<u8>; EXPANDED_BYTES]);
    let mut room = Expanded([const { MaybeUninit::uninit() }; EXPANDED_BYTES]);
    let to = room.0.as_mut_ptr().cast::<u8>();
    // Small enough to stay in the nearest cache where panels are.
    let chunk = (NEAR_BYTES / call.panel_bytes).max(1);
    let offsets = &call.sections.table[call.runs.len()..];
    let mut first = panels.start;
    while first < panels.end {
        let own = first..(first + chunk).min(panels.end);
        for panel in own.clone() {
            let lines = call.panel_bytes / PANEL * channel_tiles(call.g.oc as usize, panel) * LANES / STEP;
            let from = &call.sections.data[offsets[panel] as usize..];
            // SAFETY: a chunk is at most one panel or NEAR_BYTES, both at most EXPANDED_BYTES (`expands`).
            unsafe { expand(from, lines, to.add((panel - own.start) * call.panel_bytes)) };
        }
        (call.weights, call.first_panel) = (to, own.start);
        // SAFETY: the caller's promise; the panels' weights were written above.
        unsafe { walk.each_block(call, state, own.clone(), &[]) };
        first = own.end;
    }
}

/// Writes `lines` lines of 64 bytes at `to`, from their masks and what is not zero.
///
/// # Safety
/// The processor has VBMI2; `to` has room, on a boundary of 64 bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
unsafe fn expand(from: &[u8], lines: usize, to: *mut u8) {
    let (masks, values) = from.split_at(lines * 8);
    let masks: &[u64] = bytemuck::cast_slice(masks);
    let mut at = 0;
    for (i, &mask) in masks.iter().enumerate() {
        // Every line is read as if it were full, but never behind the data: 64 bytes follow the last.
        debug_assert!(at + STEP <= values.len());
        // SAFETY: as said, and the caller's promise.
        unsafe {
            let line = _mm512_loadu_si512(values.as_ptr().add(at).cast());
            _mm512_store_si512(to.add(i * STEP).cast(), _mm512_maskz_expand_epi8(mask, line));
        }
        at += mask.count_ones() as usize;
    }
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

    /// Takes every block of the tile through the panels. Leaves nothing pending.
    ///
    /// # Safety
    /// Tiles are configured; the call's pointers serve the tile.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
    unsafe fn each_block(&self, call: &Call<'_>, state: &mut Pipeline, panels: Range<usize>, ahead: &[u8]) {
        (state.ahead, state.fetch) = (ahead.as_ptr_range(), false);
        let rows = &self.tile.rows;
        let mut row = rows.start;
        while row < rows.end {
            let image_end = (row / self.g.oh + 1) * self.g.oh;
            let end = if self.pitch == 0 { row + 1 } else { image_end.min(rows.end) };
            let length = (end - row - 1) as usize * self.pitch + self.tile.cols.len();
            let first = self.first_pixel(call, row);
            let mut at = 0;
            loop {
                // The last pixel tile of a stretch ends with it: some pixels are computed twice, none beyond it read.
                let start = at.min(length.saturating_sub(self.rows));
                let block = &mut state.blocks[state.now];
                self.fill(&mut block.tiles[block.count], &first, start);
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

    /// Where the stretch that begins with `row` begins in x, y and the residual.
    fn first_pixel(&self, call: &Call<'_>, row: u32) -> [usize; 3] {
        let col = self.tile.cols.start;
        let r = if call.requant.has_residual() { self.g.r_at(row, col) } else { 0 };
        [self.g.x_at(row, col), self.g.y_at(row, col), r]
    }

    /// The pixel tile that begins `start` positions behind a stretch's first pixel.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn fill(&self, p: &mut Pixels, &[x, y, r]: &[usize; 3], start: usize) {
        let g = self.g;
        p.x = x + start * g.x_step();
        let vector = |n: usize| _mm512_set1_epi32(n as i32);
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        // Without rows below there is no pitch that a column could pass.
        let of_row = if self.pitch == 0 { i32::MAX as usize } else { self.pitch };
        let (mut line, mut col) = (vector(start / of_row), _mm512_add_epi32(vector(start % of_row), lanes));
        if self.pitch != 0 {
            let (one, pitch) = (vector(1), vector(of_row));
            loop {
                let beyond = _mm512_cmpge_epu32_mask(col, pitch);
                if beyond == 0 {
                    break;
                }
                col = _mm512_mask_sub_epi32(col, beyond, col, pitch);
                line = _mm512_mask_add_epi32(line, beyond, line, one);
            }
        }
        let outputs = _mm512_cmplt_epu32_mask(col, vector(self.tile.cols.len()))
            & _mm512_cmplt_epu32_mask(lanes, vector(self.rows));
        let place = |first: usize, row: u32, pixel: u32| {
            let lines = _mm512_mullo_epi32(line, vector(row as usize));
            let cols = _mm512_mullo_epi32(col, vector(pixel as usize));
            _mm512_add_epi32(vector(first), _mm512_add_epi32(lines, cols))
        };
        p.count = outputs.count_ones() as usize;
        // SAFETY: each array is one vector.
        unsafe {
            let sums = _mm512_mullo_epi32(lanes, vector(LANES));
            _mm512_storeu_si512(p.sum.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(outputs, sums));
            let ys = place(y, g.y_row, g.y_pixel);
            _mm512_storeu_si512(p.y.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(outputs, ys));
            let rs = place(r, g.r_row, g.r_pixel);
            _mm512_storeu_si512(p.r.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(outputs, rs));
        }
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
    /// Weights that come after these, to be fetched into the second-level cache meanwhile: those of the first block are still
    /// on their way when it begins, those of the next ones need not be.
    ahead: Range<*const u8>,
    fetch: bool,
}

impl Pipeline {
    /// Multiplies the present block with the panels, finishing what was pending, and begins another block.
    ///
    /// # Safety
    /// As [`Walk::each_block`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
    unsafe fn multiply(&mut self, call: &Call<'_>, panels: Range<usize>) {
        for panel in panels {
            let to = self.pending.map_or(0, |(sums, ..)| 1 - sums);
            let block = &self.blocks[self.now];
            let mut results = Results::none();
            if let Some((from, block, panel)) = self.pending {
                results = Results::new(call, &self.blocks[block], panel, &raw const self.sums[from]);
            }
            let sums = &raw mut self.sums[to];
            let mut nothing = std::ptr::null()..std::ptr::null();
            let ahead = if self.fetch { &mut self.ahead } else { &mut nothing };
            // SAFETY: the caller's promise; `sums` are not those of the results.
            unsafe {
                match (block.count, channel_tiles(call.g.oc as usize, panel)) {
                    (2, 2) => products::<2, 2>(call, block, panel, sums, results, ahead),
                    (1, 2) => products::<1, 2>(call, block, panel, sums, results, ahead),
                    (2, _) => products::<2, 1>(call, block, panel, sums, results, ahead),
                    _ => products::<1, 1>(call, block, panel, sums, results, ahead),
                }
            }
            self.pending = Some((to, self.now, panel));
        }
        self.fetch = true;
        self.now = 1 - self.now;
        // The other block was finished above, with its last panel: the present one is pending at most.
        self.blocks[self.now].count = 0;
    }

    /// # Safety
    /// As [`Walk::each_block`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
    unsafe fn finish(&mut self, call: &Call<'_>) {
        if let Some((sums, block, panel)) = self.pending.take() {
            let mut results = Results::new(call, &self.blocks[block], panel, &raw const self.sums[sums]);
            for _ in 0..results.groups {
                // SAFETY: the caller's promise.
                unsafe { results.write(call) };
            }
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

/// Channel tiles of a panel.
fn channel_tiles(oc: usize, panel: usize) -> usize {
    (oc.next_multiple_of(LANES) - panel * PANEL).min(PANEL) / LANES
}

/// The sums of a block of P pixel tiles and a panel of C channel tiles, from their bias; `results` are written meanwhile.
///
/// # Safety
/// As [`Walk::each_block`]; the results' sums are not `sums`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
unsafe fn products<const P: usize, const C: usize>(
    call: &Call<'_>,
    block: &Block,
    panel: usize,
    sums: *mut Sums,
    mut results: Results<'_>,
    ahead: &mut Range<*const u8>,
) {
    let s = call.sections;
    let steps = s.args[0] as usize;
    let all_steps = call.runs.len() * steps;
    let mut weights = call.weights.wrapping_add((panel - call.first_panel) * call.panel_bytes);
    let bias = s.bias[panel * PANEL..].as_ptr();
    let stride = call.g.x_step();
    let [x, x2] = block.tiles.each_ref().map(|t| call.x.wrapping_add(t.x));
    // Groups of results that are due: spread over the steps as evenly as can be.
    let groups = results.groups;
    let mut due = 0;
    // SAFETY: the runs of the block's pixel tiles may be read, the weights hold the panel, the sums four tiles.
    unsafe {
        begin::<P, C>(bias);
        for (i, runs) in call.runs.chunks(s.args[1] as usize).enumerate() {
            if i > 0 {
                asm!("tilestored [{sums} + {line} + 4096], tmm4", line = in(reg) 64usize, sums = in(reg) sums, options(nostack));
            }
            for &run in runs {
                let mut at = run as usize;
                for _ in 0..steps {
                    step::<P, C>(x.wrapping_add(at), x2.wrapping_add(at), stride, weights);
                    at += STEP;
                    weights = weights.wrapping_add(C * TILE_BYTES);
                    if ahead.start < ahead.end {
                        for line in 0..LINES_AHEAD {
                            _mm_prefetch::<_MM_HINT_T1>(ahead.start.wrapping_add(line * STEP).cast());
                        }
                        ahead.start = ahead.start.wrapping_add(LINES_AHEAD * STEP);
                    }
                    due += groups;
                    while due >= all_steps {
                        results.write(call);
                        due -= all_steps;
                    }
                }
            }
        }
        end::<P, C>(sums);
    }
}

/// Sums of P pixel tiles and C channel tiles become the bias, of which every pixel is one row.
///
/// # Safety
/// Tiles are configured; 16 * C channels may be read at `bias`.
#[inline(always)]
unsafe fn begin<const P: usize, const C: usize>(bias: *const i32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tileloadd tmm0, [{0} + {1}]", in(reg) bias, in(reg) 0usize, options(nostack, readonly));
        if C == 2 {
            asm!("tileloadd tmm1, [{0} + {1} + 64]", in(reg) bias, in(reg) 0usize, options(nostack, readonly));
        }
        if P == 2 {
            asm!("tileloadd tmm2, [{0} + {1}]", in(reg) bias, in(reg) 0usize, options(nostack, readonly));
        }
        if P == 2 && C == 2 {
            asm!("tileloadd tmm3, [{0} + {1} + 64]", in(reg) bias, in(reg) 0usize, options(nostack, readonly));
        }
    }
}

/// Adds the products of 64 bytes of every pixel of P tiles, at `a` and `b`, with C tiles of weights.
///
/// # Safety
/// Tiles are configured; 64 bytes may be read at every pixel, 1 KiB * C at `w`.
#[inline(always)]
unsafe fn step<const P: usize, const C: usize>(a: *const u8, b: *const u8, stride: usize, w: *const u8) {
    // SAFETY: the caller's promise.
    unsafe {
        match (P, C) {
            (2, 2) => asm!(
                "tileloadd tmm6, [{w} + {line}]",
                "tileloadd tmm4, [{a} + {s}]",
                "tdpbusd tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{b} + {s}]",
                "tdpbusd tmm2, tmm5, tmm6",
                "tileloadd tmm7, [{w} + {line} + 1024]",
                "tdpbusd tmm1, tmm4, tmm7",
                "tdpbusd tmm3, tmm5, tmm7",
                a = in(reg) a, b = in(reg) b, s = in(reg) stride, w = in(reg) w, line = in(reg) 64usize,
                options(nostack, readonly)
            ),
            (1, 2) => asm!(
                "tileloadd tmm6, [{w} + {line}]",
                "tileloadd tmm4, [{a} + {s}]",
                "tdpbusd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w} + {line} + 1024]",
                "tdpbusd tmm1, tmm4, tmm7",
                a = in(reg) a, s = in(reg) stride, w = in(reg) w, line = in(reg) 64usize,
                options(nostack, readonly)
            ),
            (2, _) => asm!(
                "tileloadd tmm6, [{w} + {line}]",
                "tileloadd tmm4, [{a} + {s}]",
                "tdpbusd tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{b} + {s}]",
                "tdpbusd tmm2, tmm5, tmm6",
                a = in(reg) a, b = in(reg) b, s = in(reg) stride, w = in(reg) w, line = in(reg) 64usize,
                options(nostack, readonly)
            ),
            _ => asm!(
                "tileloadd tmm6, [{w} + {line}]",
                "tileloadd tmm4, [{a} + {s}]",
                "tdpbusd tmm0, tmm4, tmm6",
                a = in(reg) a, s = in(reg) stride, w = in(reg) w, line = in(reg) 64usize,
                options(nostack, readonly)
            ),
        }
    }
}

/// Stores the sums.
///
/// # Safety
/// Tiles are configured; `sums` may be written.
#[inline(always)]
unsafe fn end<const P: usize, const C: usize>(sums: *mut Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tilestored [{0} + {1}], tmm0", in(reg) sums, in(reg) 64usize, options(nostack));
        if C == 2 {
            asm!("tilestored [{0} + {1} + 1024], tmm1", in(reg) sums, in(reg) 64usize, options(nostack));
        }
        if P == 2 {
            asm!("tilestored [{0} + {1} + 2048], tmm2", in(reg) sums, in(reg) 64usize, options(nostack));
        }
        if P == 2 && C == 2 {
            asm!("tilestored [{0} + {1} + 3072], tmm3", in(reg) sums, in(reg) 64usize, options(nostack));
        }
    }
}

/// Results of a block and a panel that are still to be written, in groups of up to four pixels x 16 channels: channel tile by
/// channel tile, in each pixel tile by pixel tile.
struct Results<'a> {
    block: &'a Block,
    sums: *const Sums,
    /// First channel of the panel.
    channel: usize,
    channel_tiles: usize,
    /// Groups in all.
    groups: usize,
    /// The next group: its channel tile, pixel tile and first pixel.
    v: usize,
    t: usize,
    i: usize,
    /// Its channel tile is whole and its results are bytes.
    whole: bool,
}

impl Results<'_> {
    fn none() -> Results<'static> {
        const EMPTY: &Block = &NO_BLOCK;
        let sums = std::ptr::null();
        Results {
            block: EMPTY,
            sums,
            channel: 0,
            channel_tiles: 0,
            groups: 0,
            v: 0,
            t: 0,
            i: 0,
            whole: false,
        }
    }

    fn new<'a>(call: &Call<'_>, block: &'a Block, panel: usize, sums: *const Sums) -> Results<'a> {
        let channel = panel * PANEL;
        let wanted = call.end.saturating_sub(channel).div_ceil(LANES);
        let channel_tiles = channel_tiles(call.g.oc as usize, panel).min(wanted);
        let of_tile = |t: &Pixels| t.count.div_ceil(4);
        let groups = block.tiles[..block.count].iter().map(of_tile).sum::<usize>() * channel_tiles;
        let whole = call.y_size == 1 && channel + LANES <= call.end;
        Results { block, sums, channel, channel_tiles, groups, v: 0, t: 0, i: 0, whole }
    }

    /// Writes the next group, if there is one.
    ///
    /// # Safety
    /// As [`Walk::each_block`]; nobody writes the sums meanwhile.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
    unsafe fn write(&mut self, call: &Call<'_>) {
        if self.v == self.channel_tiles {
            return;
        }
        // SAFETY: `v`, `t` and `i` stay below the channel tiles (at most two), pixel tiles and pixels of the block.
        unsafe {
            let p = self.block.tiles.get_unchecked(self.t);
            let tile = (&raw const (*self.sums).0).cast::<i32>().add((self.t * 2 + self.v) * PIXELS * LANES);
            let channel = self.channel + self.v * LANES;
            match self.whole && self.i + 4 <= p.count {
                true if call.plain => write_four::<PLAIN>(call, p, self.i, tile, channel),
                true if call.late => write_four_late(call, p, self.i, tile, channel),
                true => write_four_of_any_kind(call, p, self.i, tile, channel),
                false => write_some(call, p, self.i, tile, channel),
            }
            self.i += 4;
            if self.i >= p.count {
                (self.t, self.i) = (self.t + 1, 0);
                if self.t == self.block.count {
                    (self.v, self.t) = (self.v + 1, 0);
                    self.whole = call.y_size == 1 && self.channel + (self.v + 1) * LANES <= call.end;
                }
            }
        }
    }
}

/// What lies between sums and results: a multiplication and perhaps a residual; a late residual; anything.
const PLAIN: u8 = 0;
const LATE: u8 = 1;
const ANY: u8 = 2;

/// Four pixels, 16 channels.
///
/// # Safety
/// `tile` is the pixel tile's sums for the channels from `channel`, which are the call's; so are pixels i..i + 4.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
unsafe fn write_four<const KIND: u8>(
    call: &Call<'_>,
    p: &Pixels,
    i: usize,
    tile: *const i32,
    channel: usize,
) {
    // SAFETY: the caller's promise; a row of sums is one vector, on its boundary; the multipliers are whole vectors.
    unsafe {
        let mult = _mm512_loadu_ps(call.sections.mult.as_ptr().add(channel));
        let (sums, ys, rs) = (p.sum.as_ptr().add(i), p.y.as_ptr().add(i), p.r.as_ptr().add(i));
        let (y, r) = (call.y.wrapping_add(channel), call.r.wrapping_add(channel));
        macro_rules! row {
            ($k:literal) => {
                (
                    _mm512_load_si512(tile.add(*sums.add($k) as usize).cast()),
                    mult,
                    y.wrapping_add(*ys.add($k) as usize),
                    r.wrapping_add(*rs.add($k) as usize),
                )
            };
        }
        match KIND {
            PLAIN => call.requant.store_four_plain::<false>([row!(0), row!(1), row!(2), row!(3)]),
            LATE => call.requant.store_four_late::<false>([row!(0), row!(1), row!(2), row!(3)]),
            _ => call.requant.store_four([row!(0), row!(1), row!(2), row!(3)]),
        }
    }
}

/// [`write_four`] with late residuals: too large to be repeated in every loop.
///
/// # Safety
/// As [`write_four`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
unsafe fn write_four_late(call: &Call<'_>, p: &Pixels, i: usize, tile: *const i32, channel: usize) {
    // SAFETY: the caller's promise.
    unsafe { write_four::<LATE>(call, p, i, tile, channel) };
}

/// [`write_four`] with tables and whatever else.
///
/// # Safety
/// As [`write_four`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
unsafe fn write_four_of_any_kind(call: &Call<'_>, p: &Pixels, i: usize, tile: *const i32, channel: usize) {
    // SAFETY: the caller's promise.
    unsafe { write_four::<ANY>(call, p, i, tile, channel) };
}

/// Up to four pixels, the channels of 16 that are the call's, with any epilogue.
///
/// # Safety
/// As [`write_four`], for as many pixels and channels as there are.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
unsafe fn write_some(call: &Call<'_>, p: &Pixels, first: usize, tile: *const i32, channel: usize) {
    let (y, r) = (call.y.wrapping_add(channel * call.y_size), call.r.wrapping_add(channel));
    let pixels = 4.min(p.count - first);
    // SAFETY: the caller's promise, as in `write_four`; the mask keeps to the call's channels.
    unsafe {
        let mult = _mm512_loadu_ps(call.sections.mult.as_ptr().add(channel));
        let mut sums = [_mm512_setzero_si512(); 4];
        for k in 0..pixels {
            sums[k] = _mm512_load_si512(tile.add(p.sum[first + k] as usize).cast());
        }
        let place = |k: usize| {
            let (at, r_at) = (p.y[first + k] as usize * call.y_size, p.r[first + k] as usize);
            (mult, y.wrapping_add(at), r.wrapping_add(r_at))
        };
        call.requant.store_all(&sums[..pixels], lanes_before(channel, call.end), place);
    }
}
