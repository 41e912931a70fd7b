//! Transposed convolutions of stride s: s plain ones along each side, each of which writes every s-th output.
//!
//! Output `oy` gets something from kernel row `ky` and input row `iy` where `oy + pad = iy * stride + ky`. So the outputs
//! `first, first + stride, ...` see the kernel rows `tap, tap + stride, ...` only, from the last to the first, and input
//! rows next to each other: a convolution of stride 1, whose results lie `stride` apart. Nothing is multiplied that
//! is not needed, and nothing is moved afterwards. Columns likewise.

use super::build::Builder;
use super::conv::{NO_EPILOGUE, emit, narrow};
use super::place::{Demand, Place};
use super::weights::{Key, Source};
use crate::error::Result;
use crate::kernels::{ConvGeom, QEpilogue};
use bytes::Bytes;
use lacuna_ir::op::{FusedConvAttr, Window};
use lacuna_ir::{DType, OpId};

/// The outputs of one dimension that see the same elements of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Phase {
    /// The first output, and how many there are, `stride` apart.
    first: usize,
    outputs: usize,
    /// The first element of the kernel, and how many there are, `stride` apart.
    tap: usize,
    taps: usize,
    /// The input under the first tap of the first output: before the image if negative.
    begin: isize,
}

/// Phases of dimension `d` with `size` outputs. The kernel is no shorter than the stride, so each has a tap.
fn phases(w: &Window, d: usize, size: usize) -> impl Iterator<Item = Phase> {
    let (kernel, stride, pad) = (w.kernel[d] as usize, w.stride[d] as usize, w.pads[d] as usize);
    (0..stride.min(size)).map(move |first| {
        let (tap, ahead) = ((first + pad) % stride, (first + pad) / stride);
        let taps = (kernel - tap).div_ceil(stride);
        let outputs = (size - first).div_ceil(stride);
        Phase { first, outputs, tap, taps, begin: ahead as isize - (taps as isize - 1) }
    })
}

/// Pixels that taps reach beyond the image: top, left, bottom, right.
pub fn border(w: &Window, x: &[usize], y: &[usize]) -> [usize; 4] {
    let along = |d: usize| {
        let beyond = |p: Phase| p.begin + (p.outputs + p.taps - 1) as isize - x[1 + d] as isize;
        let before = phases(w, d, y[1 + d]).map(|p| -p.begin).max();
        let after = phases(w, d, y[1 + d]).map(beyond).max();
        [before, after].map(|reach| reach.unwrap_or(0).max(0) as usize)
    };
    let ([top, bottom], [left, right]) = (along(0), along(1));
    [top, left, bottom, right]
}

/// Several steps, which write an output of the current op together.
pub fn emit_conv_transpose(b: &mut Builder<'_>, op: OpId, attr: FusedConvAttr) -> Result<()> {
    let (g, w) = (b.g, attr.conv.window);
    let (weights, bias) = (g.const_bytes(g.inputs_of(op)[1]), g.const_bytes(g.inputs_of(op)[2]));
    let (Some(weights), Some(bias)) = (weights.cloned(), bias.cloned()) else {
        return b.error("its weights must be constants");
    };
    let y_dims = b.dims(g.outputs_of(op)[0])?;
    let x = b.input(op, 0)?;
    let want = Demand { border: border(&w, &x.dims, &y_dims), fill: 0 };
    let fits = x.serves(want);
    let x = b.placed_for(x, DType::F32, fits, want)?;
    let tail = b.tail(None);
    let y = b.place_behind(&tail)?;
    let epilogue = QEpilogue { min: attr.clip.min, max: attr.clip.max, ..NO_EPILOGUE };
    // Columns whose phases see the same inputs are channels of one convolution, if they lie side by side.
    let same = w.kernel[1] == w.stride[1] && w.pads[1] == 0 && y_dims[2].is_multiple_of(w.stride[1] as usize);
    let joined = same && y.strides[2] == y_dims[3];
    let columns = |d: usize| phases(&w, d, y_dims[1 + d]);
    let across: Vec<Phase> = columns(1).take(if joined { 1 } else { usize::MAX }).collect();
    let mut part = 0;
    for down in columns(0) {
        for &right in &across {
            let kernel = Kernel { window: &w, down, right, joined, channels: [y_dims[3], x.dims[3]] };
            let geom = kernel.geom(b, &x, &y)?;
            let source = Some(kernel.source(&weights, &bias));
            emit(
                b,
                Key::new(op, part, &geom),
                geom,
                epilogue,
                tail.then,
                [Some(&x), Some(&y), None],
                source,
            )?;
            part += 1;
        }
    }
    Ok(())
}

/// The part of a kernel that one phase of rows and one of columns see.
struct Kernel<'a> {
    window: &'a Window,
    down: Phase,
    right: Phase,
    /// All columns of the kernel, as channels.
    joined: bool,
    /// Of y and of x.
    channels: [usize; 2],
}

impl Kernel<'_> {
    fn geom(&self, b: &Builder<'_>, x: &Place, y: &Place) -> Result<ConvGeom> {
        let (down, right, [o, c]) = (self.down, self.right, self.channels);
        let u = |n: usize| narrow(b, n);
        let [sh, sw] = self.window.stride.map(|s| s as usize);
        // The border holds every tap, so this is not before the buffer.
        let begin =
            x.origin as isize + down.begin * x.strides[1] as isize + right.begin * x.strides[2] as isize;
        let begin = usize::try_from(begin).or_else(|_| b.error("its border is too narrow"))?;
        Ok(ConvGeom {
            rows: u(y.dims[0] * down.outputs)?,
            oh: u(down.outputs)?,
            ow: u(right.outputs)?,
            oc: u(if self.joined { sw * o } else { o })?,
            c: u(c)?,
            group: 1,
            kh: u(down.taps)?,
            kw: u(right.taps)?,
            sh: 1,
            sw: 1,
            dh: 1,
            dw: 1,
            x_origin: u(begin)?,
            x_image: u(x.strides[0])?,
            x_row: u(x.strides[1])?,
            x_pixel: u(x.strides[2])?,
            y_origin: u(y.origin + down.first * y.strides[1] + right.first * y.strides[2])?,
            y_image: u(y.strides[0])?,
            y_row: u(sh * y.strides[1])?,
            y_pixel: u(sw * y.strides[2])?,
            ..ConvGeom::default()
        })
    }

    /// `[O, kh, kw, C]` as the convolution has it: rows and columns of the phase, the last first.
    fn source(&self, w: &Bytes, bias: &Bytes) -> Source {
        let (down, right, [o, c]) = (self.down, self.right, self.channels);
        let [kh, kw] = self.window.kernel.map(|k| k as usize);
        let [sh, sw] = self.window.stride.map(|s| s as usize);
        let copies = if self.joined { sw } else { 1 };
        let pixel = c * DType::F32.size();
        let mut own = Vec::with_capacity(copies * o * down.taps * right.taps * pixel);
        // Given back after an earlier packing: what was packed is known by its key.
        let filters = if w.is_empty() { 0 } else { o };
        for (column, f) in (0..copies).flat_map(|column| (0..filters).map(move |f| (column, f))) {
            for (i, j) in (0..down.taps).flat_map(|i| (0..right.taps).map(move |j| (i, j))) {
                let ky = down.tap + sh * (down.taps - 1 - i);
                let kx = column + right.tap + sw * (right.taps - 1 - j);
                own.extend_from_slice(&w[((f * kh + ky) * kw + kx) * pixel..][..pixel]);
            }
        }
        let bias = Bytes::from(bias.repeat(copies));
        Source::F32 { w: Bytes::from(own), bias: Some(bias), channels: copies * o, transposed: false }
    }
}
