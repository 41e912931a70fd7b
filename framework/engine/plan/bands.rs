//! Chains of f32 layers, a band of lines at a time: a layer's lines are still in the second-level cache when the next layer
//! reads them, and what lies between two layers never is in memory as a whole.
//!
//! ```text
//! window of what lies between two layers, one for each thread:
//!     lines that the next layer has read and reads again | lines that were just made | room
//! ```
//! When there is no room for a layer's next lines, those that the next layer needs no more leave the window and the others
//! move to its start. Lines above and below the image are lines of zeros in the window. Layers have steps, kernels and
//! measured times as if they ran alone; a step behind these runs them.

use super::build::{Builder, Tail, push};
use super::exec::{Bases, run_tile};
use super::place::{Demand, Place};
use super::{ConvStep, Plan, StepKind, conv};
use crate::error::{Error, Result};
use crate::kernels::steps::share;
use crate::kernels::{ConvGeom, Tile};
use lacuna_ir::op::ConvAttr;
use lacuna_ir::{Attr, DType, Graph, OpId, OpKind, Range32, ValueId};
use std::time::Instant;

/// A layer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BandLayer {
    /// Its step, which does nothing by itself.
    pub step: u32,
    /// Lines above the image that the first line of its result reads.
    above: u32,
    /// Lines that the window of its result has room for; none for the last layer, whose result is whole.
    room: u32,
    /// Elements of these windows that nobody writes: their borders at both sides must hold zeros.
    borders: bool,
}

/// A chain: each layer reads what the one before makes, and nothing else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BandStep {
    pub layers: Range32,
    /// Lines of the last layer's result that are made at a time.
    pub lines: u32,
}

/// The most layers of a chain.
const LAYERS_MAX: usize = 16;
/// A value is worth a window if it is so many times as large as the second-level cache: others stay near enough as they are.
const LARGE: usize = 2;
/// What is in use while a band is made, in second-level caches: a little more than fits, because not all of it is read again.
const IN_USE: f64 = 1.5;
/// Threads begin in the middle of an image: the work that they do twice, as a share of all, is at most this.
const TWICE_MAX: f64 = 0.03;

/// Lines of an image, rows of a window and its steps that are counted without overflow.
const LINES_MAX: usize = 1 << 24;
const REACH_MAX: usize = 1 << 12;
const STRIDE_MAX: usize = 1 << 6;

/// What a chain is made of before it is planned.
struct Link {
    op: OpId,
    conv: ConvAttr,
    /// Whether it adds what lies in memory as a whole: then it is the last of its chain.
    residual: bool,
    /// The result, after what is done where it is written.
    y: ValueId,
    /// `[n, h, w, c]` of x and of the result.
    x: [usize; 4],
    out: [usize; 4],
    /// Bytes of the weights.
    weights: usize,
}

impl Link {
    /// Lines of x that `lines` of the result read.
    fn read(&self, lines: usize) -> usize {
        let w = &self.conv.window;
        (lines - 1) * w.stride[0] as usize + (w.kernel[0] as usize - 1) * w.dilation[0] as usize + 1
    }

    fn stride(&self) -> usize {
        self.conv.window.stride[0] as usize
    }

    /// Whether no number is too large to count with.
    fn is_sane(&self) -> bool {
        let beside = self.conv.window.pads[0].max(self.conv.window.pads[2]) as usize;
        let window = self.read(1).max(beside) <= REACH_MAX && self.stride() <= STRIDE_MAX;
        window && self.x[1].max(self.out[1]) <= LINES_MAX
    }

    fn is_depthwise(&self) -> bool {
        self.conv.group > 1
    }

    /// Products for a line of the result.
    fn work(&self) -> f64 {
        (self.weights / 4 * self.out[2]) as f64
    }
}

/// Bytes of a line of an image: n, h, w, c.
fn line_bytes([_, _, w, c]: [usize; 4]) -> usize {
    4 * w * c
}

/// The layer that `op` is, if it can be part of a chain: its line of results rests on few lines of x, all of it is f32 with
/// constant weights, and no faster algorithm wants larger pieces.
fn link(b: &mut Builder<'_>, op: OpId) -> Option<Link> {
    let g = b.g;
    let Attr::FusedConv(a) = g.op_attr[op] else { return None };
    let inputs = g.inputs_of(op);
    let plain = g.op_kind[op] == OpKind::FusedConv && b.lasts(op);
    let f32 = |v: ValueId| g.value_dtype[v] == DType::F32;
    if !plain || inputs.len() < 3 || !f32(inputs[0]) || !f32(g.outputs_of(op)[0]) {
        return None;
    }
    g.const_bytes(inputs[1]).zip(g.const_bytes(inputs[2]))?;
    let x: [usize; 4] = g.fixed_shape(inputs[0])?.try_into().ok()?;
    let out: [usize; 4] = g.fixed_shape(g.outputs_of(op)[0])?.try_into().ok()?;
    let w = &a.conv.window;
    let depthwise = a.conv.group as usize == x[3] && x[3] == out[3];
    let one_group = a.conv.group == 1 && (w.kernel == [1, 1] || w.stride != [1, 1]);
    if x.contains(&0) || out.contains(&0) || !(depthwise || one_group) {
        return None;
    }
    b.op = op;
    let residual = g.input_of(op, 3).is_some();
    let tail = if residual { Tail::default() } else { b.tail(None) };
    let y = g.outputs_of(*tail.ops.last().unwrap_or(&op))[0];
    let weights = 4 * out[3] * w.kernel.iter().product::<u32>() as usize * x[3] / a.conv.group as usize;
    Some(Link { op, conv: a.conv, residual, y, x, out, weights }).filter(Link::is_sane)
}

/// Lines of every layer's result that are made for a band of `lines`, in the middle of an image.
fn made(chain: &[Link], lines: usize) -> Vec<usize> {
    let mut made = vec![lines; chain.len()];
    for i in (1..chain.len()).rev() {
        made[i - 1] = made[i] * chain[i].stride();
    }
    made
}

/// The same for the first band, for which nothing is there yet.
fn made_first(chain: &[Link], lines: usize) -> Vec<usize> {
    let mut made = vec![lines; chain.len()];
    for i in (1..chain.len()).rev() {
        made[i - 1] = chain[i].read(made[i]);
    }
    made
}

/// Bytes in use while a band of `lines` is made, in the middle of an image.
fn in_use(chain: &[Link], lines: usize) -> usize {
    let own = |(link, lines): (&Link, usize)| link.read(lines) * line_bytes(link.x) + link.weights;
    lines * line_bytes(chain[chain.len() - 1].out)
        + chain.iter().zip(made(chain, lines)).map(own).sum::<usize>()
}

/// Share of the work that is done twice because several threads begin in the middle.
fn done_twice(chain: &[Link], lines: usize, threads: usize) -> f64 {
    let (mut twice, mut all) = (0.0, 0.0);
    for ((link, usual), first) in chain.iter().zip(made(chain, lines)).zip(made_first(chain, lines)) {
        twice += ((first - usual.min(first)) * (threads - 1)) as f64 * link.work();
        all += (link.out[0] * link.out[1]) as f64 * link.work();
    }
    twice / all
}

/// The longest chain from `op` on that pays, and lines of a band.
fn chain(b: &mut Builder<'_>, op: OpId) -> Option<(Vec<Link>, usize)> {
    let g: &Graph = b.g;
    let (cache, threads) = (b.target.cache_bytes, b.target.threads);
    let pays = |chain: &[Link], lines: usize| {
        let fits = in_use(chain, lines) as f64 <= IN_USE * cache as f64;
        fits && done_twice(chain, lines, threads) <= TWICE_MAX
    };
    let mut chain = vec![link(b, op)?];
    while chain.len() < LAYERS_MAX {
        let end = &chain[chain.len() - 1];
        let bytes = end.out.iter().fold(4, |bytes: usize, &d| bytes.saturating_mul(d));
        let large = !end.residual && bytes > cache.saturating_mul(LARGE);
        let Some(reader) = b.sole_reader(end.y).filter(|_| large) else { break };
        if g.input_of(reader, 0) != Some(end.y) || !b.is_next(end.op, reader) || !b.is_unplaced(end.y) {
            break;
        }
        let Some(next) = link(b, reader) else { break };
        chain.push(next);
        if !pays(&chain, 1) {
            chain.pop();
            break;
        }
    }
    // Layers that only multiply wait for the multiplications, not for memory.
    if chain.len() < 2 || !chain.iter().any(Link::is_depthwise) {
        return None;
    }
    // No more than a thread's own: windows are for lines that are made one after another.
    let [n, h, ..] = chain[chain.len() - 1].out;
    let lines = (1..=(n * h).div_ceil(threads).min(h)).take_while(|&lines| pays(&chain, lines)).last()?;
    Some((chain, lines))
}

/// Emits the chain that begins with `op`, if there is one that pays.
pub fn emit(b: &mut Builder<'_>, op: OpId) -> Result<bool> {
    let found = chain(b, op);
    b.op = op;
    let Some((chain, lines)) = found else { return Ok(false) };
    let (made, made_first) = (made(&chain, lines), made_first(&chain, lines));
    let parts = b.target.threads;
    let (mut layers, mut operands) = (Vec::new(), Vec::new());
    for (i, link) in chain.iter().enumerate() {
        b.op = link.op;
        let mut layer = BandLayer { step: 0, above: link.conv.window.pads[0], room: 0, borders: false };
        if let Some(next) = chain.get(i + 1) {
            let Some((_, demand)) = conv::demand(b.g, next.op) else { return b.error("nothing reads it") };
            // Lines that are read again move to the window's start every second time only.
            let room = made_first[i] + if next.read(1) > next.stride() { made[i] } else { 0 };
            window(b, link.y, &link.out, demand, room, parts)?;
            layer.room = room as u32;
            layer.borders = demand.border[1] + demand.border[3] > 0;
        }
        b.in_bands = true;
        let emitted = conv::emit_conv(b, link.op);
        b.in_bands = false;
        emitted?;
        layer.step = b.plan.steps() as u32 - 1;
        operands.extend(b.operands_of(b.plan.steps() - 1));
        layers.push(layer);
        b.leave_out(link.op);
    }
    let layers = Range32::append(&mut b.plan.band_layers, &layers);
    let row = push(&mut b.plan.bands, BandStep { layers, lines: lines as u32 });
    b.step(StepKind::Bands, row, &operands, parts, "bands_of_lines", 0);
    Ok(true)
}

/// Where `v` is while a chain runs: `room` lines for each of `parts` threads. The place reads as that of the whole image,
/// whose lines all lie where they would be if the window began with the border above it.
fn window(
    b: &mut Builder<'_>,
    v: ValueId,
    dims: &[usize; 4],
    demand: Demand,
    room: usize,
    parts: usize,
) -> Result<()> {
    let [top, left, _, right] = demand.border;
    let bare = Demand { border: [0, left, 0, right], ..demand };
    let lines = Place::in_buffer(0, DType::F32, &[parts, room, dims[2], dims[3]], Some(bare));
    let Some((lines, _)) = lines else {
        return Err(Error::TooLarge { bytes: u64::MAX, max: u32::MAX as u64 });
    };
    let buffer = b.new_place(DType::F32, &[parts, lines.strides[0]], None)?;
    let origin = lines.origin + top * lines.strides[1];
    let place = Place {
        root: buffer.root,
        origin,
        dims: dims.to_vec(),
        border: demand.border,
        fill: demand.fill,
        ..lines
    };
    b.set_place(v, place);
    Ok(())
}

/// Where a layer is in an image: lines of its result, which may lie outside the image.
#[derive(Clone, Copy, Default)]
struct At {
    /// That at the start of its window, and the first that is read again.
    base: i32,
    keep: i32,
    /// The first that is not made yet, and that before which this band ends.
    next: i32,
    end: i32,
}

/// A thread's view of a chain.
struct Chain<'a> {
    plan: &'a Plan,
    bases: &'a Bases,
    layers: &'a [BandLayer],
    part: usize,
}

/// Runs part `part` of `parts` of a chain. The nanoseconds of its layers are added to `times`, and the result is their sum.
///
/// # Safety
/// As [`super::run_step`].
pub unsafe fn run(
    plan: &Plan,
    bases: &Bases,
    step: &BandStep,
    part: usize,
    parts: usize,
    mut times: Option<&mut [u64]>,
) -> u64 {
    let layers = step.layers.of(&plan.band_layers);
    let chain = Chain { plan, bases, layers, part };
    let last = layers.len() - 1;
    let (rows, oh) = (chain.conv(last).geom.rows as usize, chain.conv(last).geom.oh as usize);
    let own = share(rows, part, parts);
    if own.is_empty() {
        return 0;
    }
    // SAFETY: the caller's promise; windows are this thread's alone.
    unsafe { (0..last).for_each(|i| chain.clear_borders(i)) };
    let mut spent = 0;
    for image in own.start / oh..own.end.div_ceil(oh) {
        let lines = own.start.max(image * oh) - image * oh..own.end.min((image + 1) * oh) - image * oh;
        let mut at = chain.before(lines.start as i32);
        for band in lines.clone().step_by(step.lines as usize) {
            chain.look_ahead(&mut at, (band + step.lines as usize).min(lines.end) as i32);
            for (i, layer) in layers.iter().enumerate() {
                let begin = times.is_some().then(Instant::now);
                // SAFETY: as above; what the layer reads was made before.
                unsafe { chain.go_on(i, image as u32, &mut at) };
                if let (Some(times), Some(begin)) = (times.as_deref_mut(), begin) {
                    let ns = begin.elapsed().as_nanos() as u64;
                    times[layer.step as usize] += ns;
                    spent += ns;
                }
            }
        }
    }
    spent
}

impl Chain<'_> {
    fn conv(&self, i: usize) -> &ConvStep {
        &self.plan.convs[self.plan.step_row[self.layers[i].step as usize] as usize]
    }

    /// x, y and residual of layer `i`.
    ///
    /// # Safety (of this and what follows)
    /// As [`run`].
    unsafe fn operands(&self, i: usize) -> [*mut u8; 3] {
        let slots = self.plan.step_args[self.layers[i].step as usize].of(&self.plan.args);
        // SAFETY: operands of the layer's own step.
        let at = |i: usize| slots.get(i).map_or(std::ptr::null_mut(), |&slot| unsafe { self.bases.at(slot) });
        [at(0), at(1), at(2)]
    }

    /// Line `line` of the window of layer `i`'s result, borders included.
    unsafe fn line(&self, i: usize, line: i32) -> *mut f32 {
        let g = &self.conv(i).geom;
        let at = self.part * g.y_image as usize + line as usize * g.y_row as usize;
        // SAFETY: the caller's promise.
        unsafe { self.operands(i)[1].cast::<f32>().wrapping_add(at) }
    }

    /// Makes zeros of the borders at both sides of a window, which nobody writes afterwards.
    unsafe fn clear_borders(&self, i: usize) {
        if self.layers[i].borders {
            let elements = self.layers[i].room as usize * self.conv(i).geom.y_row as usize;
            // SAFETY: the whole window.
            unsafe { std::ptr::write_bytes(self.line(i, 0), 0, elements) };
        }
    }

    /// The first line of x that line `line` of layer `i`'s result reads.
    fn first_read(&self, i: usize, line: i32) -> i32 {
        line * self.conv(i).geom.sh as i32 - self.layers[i].above as i32
    }

    /// Where layers are before line `first` of the last one's result is made.
    fn before(&self, first: i32) -> [At; LAYERS_MAX] {
        let (mut at, last) = ([At::default(); LAYERS_MAX], self.layers.len() - 1);
        at[last].next = first;
        for i in (1..=last).rev() {
            let first = self.first_read(i, at[i].next.max(0));
            (at[i - 1].base, at[i - 1].next) = (first, first);
        }
        at
    }

    /// Says which lines every layer makes, so that the last one can make those before `end`.
    fn look_ahead(&self, at: &mut [At; LAYERS_MAX], end: i32) {
        let last = self.layers.len() - 1;
        at[last].end = end;
        for i in (1..=last).rev() {
            let g = &self.conv(i).geom;
            let (next, end) = (at[i].next.max(0), at[i].end.min(g.oh as i32));
            let x = &mut at[i - 1];
            x.keep = self.first_read(i, next);
            // Lines that a window with gaps leaves out are not made.
            x.next = x.next.max(x.keep);
            let reach = ((g.kh - 1) * g.dh) as i32 + 1;
            x.end = if end > next { x.next.max(self.first_read(i, end - 1) + reach) } else { x.next };
        }
    }

    /// Makes a layer's lines of this band.
    unsafe fn go_on(&self, i: usize, image: u32, at: &mut [At; LAYERS_MAX]) {
        let (conv, last) = (self.conv(i), self.layers.len() - 1);
        let g = &conv.geom;
        if i < last {
            // SAFETY: the caller's promise.
            unsafe { self.make_room(i, &mut at[i]) };
        }
        let lines = at[i].next.max(0)..at[i].end.min(g.oh as i32);
        at[i].next = at[i].end;
        if lines.is_empty() {
            return;
        }
        let row = image * g.oh + lines.start as u32;
        let in_window = |place: u32, image: u32, line: i32, row: u32| {
            place as usize + self.part * image as usize + line as usize * row as usize
        };
        let x = match i {
            0 => g.x_at(row, 0),
            _ => in_window(g.x_origin, g.x_image, self.first_read(i, lines.start) - at[i - 1].base, g.x_row),
        };
        let y = match i == last {
            true => g.y_at(row, 0),
            // The origin is that of a window that begins with the border above the image.
            false => {
                let origin = g.y_origin - self.layers[i + 1].above * g.y_row;
                in_window(origin, g.y_image, lines.start - at[i].base, g.y_row)
            }
        };
        let rows = lines.len() as u32;
        let r = if conv.epilogue.has_residual { g.r_at(row, 0) } else { 0 };
        let [x_origin, y_origin, r_origin] = [x, y, r].map(|origin| origin as u32);
        let band = ConvGeom { rows, oh: rows, x_origin, y_origin, r_origin, ..*g };
        let tile = Tile { rows: 0..rows, cols: 0..g.ow, ocs: 0..g.oc };
        // SAFETY: `look_ahead` has all lines that are read in x's window, `make_room` has room in y's; the other operands are
        // whole.
        unsafe {
            run_tile(conv, &band, self.bases, self.operands(i), &tile);
        }
    }

    /// Room in the window of layer `i`'s result for the lines of this band, those outside the image as zeros.
    unsafe fn make_room(&self, i: usize, at: &mut At) {
        let (g, room) = (&self.conv(i).geom, self.layers[i].room as i32);
        if at.end > at.base + room && at.keep > at.base {
            let kept = (at.next - at.keep) as usize * g.y_row as usize;
            // SAFETY: lines from `base` to `next` are in the window, and `keep` is not behind `next`.
            unsafe { std::ptr::copy(self.line(i, at.keep - at.base), self.line(i, 0), kept) };
            at.base = at.keep;
        }
        assert!(at.end == at.next || at.end <= at.base + room, "a window has room for what a band needs");
        for line in (at.next..at.end).filter(|line| !(0..g.oh as i32).contains(line)) {
            // SAFETY: a line in the window, as was just asserted.
            unsafe { std::ptr::write_bytes(self.line(i, line - at.base), 0, g.y_row as usize) };
        }
    }
}
