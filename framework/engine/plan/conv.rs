//! Convolutions and matrix products with constant weights: geometry, epilogue, kernel, split.

use super::build::{Builder, push};
use super::choose::{apply, pick_for};
use super::place::{Demand, Place};
use super::spread;
use super::weights::{Key, Request, Source};
use super::{ConvStep, Split, StepKind, Then};
use crate::error::{Error, Result};
use crate::kernels::{ConvGeom, QEpilogue};
use bytes::Bytes;
use lacuna_ir::op::{ConvAttr, FusedConvAttr, GemmAttr, QConvAttr, Requant};
use lacuna_ir::{Attr, ConstId, DType, Def, Dim, Graph, Id, OpId, OpKind, ValueId};

/// The value that `op` convolves, and the border it needs around it.
pub fn demand(g: &Graph, op: OpId) -> Option<(ValueId, Demand)> {
    let x = g.inputs_of(op)[0];
    let (conv, fill) = match g.op_attr[op] {
        Attr::FusedConv(a) if g.op_kind[op] == OpKind::FusedConvTranspose => {
            let (x_dims, y_dims) = (g.fixed_shape(x)?, g.fixed_shape(g.outputs_of(op)[0])?);
            return Some((x, Demand { border: spread::border(&a.conv.window, &x_dims, &y_dims), fill: 0 }));
        }
        Attr::QConv(a) => (a.conv, a.x_zero.clamp(0, 255) as u8),
        Attr::FusedConv(a) => (a.conv, 0),
        _ if g.op_kind[op] == OpKind::QGemm || gemm_weights(g, op).is_some() => {
            return Some((x, Demand::BARE));
        }
        _ => return None,
    };
    let (x_dims, y_dims) = (g.fixed_shape(x)?, g.fixed_shape(g.outputs_of(op)[0])?);
    Some((x, Demand { border: border(&conv, &x_dims, &y_dims), fill }))
}

/// Weights that nothing reads once they are packed, whatever the batch: their only readers are layers, and these
/// have one tap, or input rows of a fixed length.
pub fn packed_constants(g: &Graph) -> Vec<ConstId> {
    let mut kept = vec![false; g.consts.len()];
    let mut packed = vec![false; g.consts.len()];
    for &op in &g.order {
        for (i, &v) in g.inputs_of(op).iter().enumerate().filter(|(_, v)| !v.is_none()) {
            let Def::Const(c) = g.value_def[v] else { continue };
            let layer = match g.op_attr[op] {
                Attr::QConv(QConvAttr { conv, .. }) | Attr::FusedConv(FusedConvAttr { conv, .. }) => {
                    let row = &g.shape(g.inputs_of(op)[0])[2..];
                    let one_tap = match g.op_kind[op] {
                        OpKind::FusedConvTranspose => conv.window.kernel == conv.window.stride,
                        _ => conv.window.kernel == [1, 1],
                    };
                    one_tap || row.iter().all(|d| d.fixed().is_some())
                }
                _ => g.op_kind[op] == OpKind::QGemm || gemm_weights(g, op).is_some(),
            };
            match i == 1 && layer {
                true => packed[c.index()] = true,
                false => kept[c.index()] = true,
            }
        }
    }
    for &v in &g.outputs {
        if let Def::Const(c) = g.value_def[v] {
            kept[c.index()] = true;
        }
    }
    g.consts.ids().filter(|c| packed[c.index()] && !kept[c.index()]).collect()
}

/// Pixels that taps reach beyond the image: top, left, bottom, right.
fn border(conv: &ConvAttr, x: &[usize], y: &[usize]) -> [usize; 4] {
    let w = &conv.window;
    let beyond = |d: usize| {
        let reach =
            (y[1 + d] - 1) * w.stride[d] as usize + (w.kernel[d] as usize - 1) * w.dilation[d] as usize;
        (reach + 1).saturating_sub(w.pads[d] as usize + x[1 + d])
    };
    [w.pads[0] as usize, w.pads[1] as usize, beyond(0), beyond(1)]
}

/// The constant f32 weights of a Gemm or MatMul that a convolution kernel can run.
pub fn gemm_weights(g: &Graph, op: OpId) -> Option<Source> {
    let trans_b = match (g.op_kind[op], g.op_attr[op]) {
        (OpKind::Gemm, Attr::Gemm(GemmAttr { alpha: 1.0, beta: 1.0, trans_a: false, trans_b })) => trans_b,
        (OpKind::MatMul, _) => false,
        _ => return None,
    };
    if g.shape(g.inputs_of(op)[0]).len() < 2 {
        return None;
    }
    let b = g.input_of(op, 1)?;
    let w = f32_bytes(g, b)?;
    let [d0, d1] = g.fixed_shape(b)?[..] else { return None };
    let channels = if trans_b { d0 } else { d1 };
    let bias = match g.input_of(op, 2) {
        None => None,
        Some(c) => {
            let (bias, dims) = (f32_bytes(g, c)?, g.fixed_shape(c)?);
            let elements = bias.len() / 4;
            let fits = dims.last() == Some(&channels) && elements == channels;
            (fits || elements == 1).then_some(Some(bias))?
        }
    };
    Some(Source::F32 { w, bias, channels, transposed: !trans_b })
}

fn f32_bytes(g: &Graph, v: ValueId) -> Option<Bytes> {
    g.const_bytes(v).filter(|_| g.value_dtype[v] == DType::F32).cloned()
}

pub const NO_EPILOGUE: QEpilogue = QEpilogue {
    x_zero: 0,
    residual_mult: 0.0,
    residual_zero: 0,
    zero: 0,
    lo: 0,
    hi: 255,
    has_residual: false,
    out_f32: false,
    table: None,
    late: None,
    min: f32::NEG_INFINITY,
    max: f32::INFINITY,
};

fn quantised(x_zero: i32, out: Option<Requant>) -> QEpilogue {
    let base = QEpilogue { x_zero, ..NO_EPILOGUE };
    match out {
        Some(Requant { zero, lo, hi }) => QEpilogue { zero, lo, hi, ..base },
        None => QEpilogue { out_f32: true, ..base },
    }
}

/// The table of 256 bytes that is input `i`, if it is there.
fn table(b: &Builder<'_>, op: OpId, i: usize) -> Result<Option<[u8; 256]>> {
    let Some(v) = b.g.input_of(op, i) else { return Ok(None) };
    match b.g.const_bytes(v).and_then(|bytes| <[u8; 256]>::try_from(&bytes[..]).ok()) {
        Some(table) => Ok(Some(table)),
        None => b.error("its table must be a constant of 256 bytes"),
    }
}

/// `QConv` and `FusedConv`.
pub fn emit_conv(b: &mut Builder<'_>, op: OpId) -> Result<()> {
    let g = b.g;
    let (conv, dtype, residual_input, epilogue) = match g.op_attr[op] {
        Attr::QConv(a) => {
            if let Some(out) = a.out {
                b.eight_bit(out)?;
            }
            b.eight_bit_zeros(&[a.x_zero, a.residual_zero])?;
            let e = QEpilogue {
                residual_mult: a.residual_mult,
                residual_zero: a.residual_zero,
                late: a.late,
                table: table(b, op, 5)?,
                ..quantised(a.x_zero, a.out)
            };
            if let Some(late) = a.late {
                b.eight_bit(late.out)?;
                b.eight_bit_zeros(&[late.zero])?;
            }
            (a.conv, DType::U8, 4, e)
        }
        Attr::FusedConv(a) => {
            (a.conv, DType::F32, 3, QEpilogue { min: a.clip.min, max: a.clip.max, ..NO_EPILOGUE })
        }
        _ => return b.error("carries the wrong attributes"),
    };
    let (_, want) = demand(g, op).expect("a convolution has a demand");
    let x = b.input(op, 0)?;
    let fits = x.serves(want);
    let x = b.placed_for(x, dtype, fits, want)?;
    let residual = match g.input_of(op, residual_input) {
        Some(r) => {
            let r = b.place(r)?;
            let fits = r.serves(Demand::BARE);
            Some(b.placed_for(r, dtype, fits, Demand::BARE)?)
        }
        None => None,
    };
    let mut then = None;
    let y = match &residual {
        // The first layer of a chain may read what the last one adds.
        Some(r) if dtype == DType::F32 && !b.in_bands => b.output_over(&x, r)?,
        Some(_) => b.output_place()?,
        None => {
            let tail = b.tail(None);
            then = tail.then;
            b.place_behind(&tail)?
        }
    };
    let epilogue = QEpilogue { has_residual: residual.is_some(), ..epilogue };
    let geom = conv_geom(b, &conv, &x, &y, residual.as_ref())?;
    let source = source(b, op, dtype, epilogue.x_zero);
    emit(b, Key::new(op, 0, &geom), geom, epilogue, then, [Some(&x), Some(&y), residual.as_ref()], source)
}

pub fn conv_geom(
    b: &Builder<'_>,
    conv: &ConvAttr,
    x: &Place,
    y: &Place,
    r: Option<&Place>,
) -> Result<ConvGeom> {
    let w = &conv.window;
    let tap0 = x.origin - w.pads[0] as usize * x.strides[1] - w.pads[1] as usize * x.strides[2];
    let [r_image, r_row, r_pixel] = r.map_or([0; 3], |r| [r.strides[0], r.strides[1], r.strides[2]]);
    let u = |x: usize| narrow(b, x);
    Ok(ConvGeom {
        rows: u(y.dims[0] * y.dims[1])?,
        oh: u(y.dims[1])?,
        ow: u(y.dims[2])?,
        oc: u(y.dims[3])?,
        c: u(x.dims[3])?,
        group: conv.group,
        kh: w.kernel[0],
        kw: w.kernel[1],
        sh: w.stride[0],
        sw: w.stride[1],
        dh: w.dilation[0],
        dw: w.dilation[1],
        x_origin: u(tap0)?,
        x_image: u(x.strides[0])?,
        x_row: u(x.strides[1])?,
        x_pixel: u(x.strides[2])?,
        y_origin: u(y.origin)?,
        y_image: u(y.strides[0])?,
        y_row: u(y.strides[1])?,
        y_pixel: u(y.strides[2])?,
        r_origin: u(r.map_or(0, |r| r.origin))?,
        r_image: u(r_image)?,
        r_row: u(r_row)?,
        r_pixel: u(r_pixel)?,
    })
}

pub fn narrow(b: &Builder<'_>, x: usize) -> Result<u32> {
    match u32::try_from(x) {
        Ok(x) => Ok(x),
        Err(_) => b.error("its buffers are too large: use a smaller batch"),
    }
}

/// `QGemm`, and `Gemm` or `MatMul` with constant weights: a convolution of one row with M columns.
pub fn emit_gemm(b: &mut Builder<'_>, op: OpId) -> Result<()> {
    let g = b.g;
    let (dtype, epilogue) = match g.op_attr[op] {
        Attr::QGemm(a) => {
            b.eight_bit_zeros(&[a.x_zero])?;
            if let Some(out) = a.out {
                b.eight_bit(out)?;
            }
            (DType::U8, QEpilogue { table: table(b, op, 4)?, ..quantised(a.x_zero, a.out) })
        }
        _ => (DType::F32, NO_EPILOGUE),
    };
    let y_dtype = if dtype == DType::U8 && !epilogue.out_f32 { DType::U8 } else { DType::F32 };
    let x = b.input(op, 0)?;
    let fits = x.serves(Demand::BARE) && x.as_matrix().is_some();
    let x = b.placed_for(x, dtype, fits, Demand::BARE)?;
    let n = *b.dims(g.outputs_of(op)[0])?.last().expect("a matrix");
    let plain = dtype == DType::F32 && g.input_of(op, 2).is_none();
    let tail = b.tail(plain.then_some(n));
    let to = b.place_behind(&tail)?;
    // Who reads it may want a border around it.
    let y = match to.as_matrix() {
        Some(_) => to.clone(),
        None => b.new_place(y_dtype, &to.dims, None)?,
    };
    let (Some((m, x_pixel)), Some((_, y_pixel))) = (x.as_matrix(), y.as_matrix()) else {
        return Err(Error::Op {
            op: g.op_name[op].clone(),
            kind: g.op_kind[op].name(),
            why: "its rows do not lie one after another".to_string(),
        });
    };
    let k = narrow(b, *x.dims.last().expect("a matrix"))?;
    let geom = ConvGeom {
        x_origin: narrow(b, x.origin)?,
        x_pixel: narrow(b, x_pixel)?,
        y_origin: narrow(b, y.origin)?,
        y_pixel: narrow(b, y_pixel)?,
        ..ConvGeom::product(narrow(b, m)?, k, narrow(b, n)?)
    };
    let mut source = source(b, op, dtype, epilogue.x_zero);
    if let (Some(Source::F32 { bias, .. }), Some(added)) = (&mut source, tail.bias) {
        *bias = Some(added);
    }
    emit(b, Key::new(op, 0, &geom), geom, epilogue, tail.then, [Some(&x), Some(&y), None], source)?;
    if y == to { Ok(()) } else { b.copy(&y, &to, y_dtype) }
}

/// One convolution of the current op.
pub fn emit(
    b: &mut Builder<'_>,
    key: Key,
    geom: ConvGeom,
    epilogue: QEpilogue,
    then: Option<Then>,
    places: [Option<&Place>; 3],
    source: Option<Source>,
) -> Result<()> {
    let Some(source) = source else {
        return b.error("its weights must be constants");
    };
    let size = if matches!(source, Source::Int8 { .. }) { 1 } else { 4 };
    // Kernel, weights and split are filled in when they are chosen.
    let step = ConvStep { kernel: 0, geom, epilogue, weights: 0, split: Split::Rows, then };
    let row = push(&mut b.plan.convs, step);
    let operands: Vec<_> = places.into_iter().flatten().map(|p| (p.root, 0, size)).collect();
    b.step(StepKind::Conv, row, &operands, b.target.threads, "", 0);
    let (conv, step) = (row as usize, b.plan.steps() - 1);
    match b.weights.get(key) {
        Some(chosen) => {
            let (pick, ns) = pick_for(chosen, &geom, b.in_bands, b.target.threads);
            apply(&mut b.plan, conv, step, chosen, pick, ns);
        }
        None if source.is_released() && geom.depth() > 0 => {
            return b.error("its weights were given back, and this shape needs them packed otherwise: make a session for it");
        }
        None => {
            b.requests.layers.push(Request { key, conv, step, geom, banded: b.in_bands });
            b.requests.sources.push(source);
        }
    }
    Ok(())
}

/// The weights of `op`, if they are constants.
fn source(b: &Builder<'_>, op: OpId, dtype: DType, x_zero: i32) -> Option<Source> {
    let g = b.g;
    let inputs = g.inputs_of(op);
    let constant = |i: usize| g.const_bytes(inputs[i]).cloned();
    if dtype == DType::U8 {
        let (w, bias, mult) = (constant(1)?, constant(2)?, constant(3)?);
        // A weight of a depthwise layer has one channel.
        let one = g.shape(inputs[1]).last() == Some(&Dim::Fixed(1));
        let from = b.weights.orders.get(inputs[0]).filter(|_| !one);
        let to = b.weights.orders.get(g.outputs_of(op)[0]);
        return Some(Source::Int8 { w, bias, mult, x_zero, from, to });
    }
    gemm_weights(g, op).or_else(|| {
        let channels = g.fixed_shape(inputs[2])?.iter().product();
        Some(Source::F32 { w: constant(1)?, bias: Some(constant(2)?), channels, transposed: false })
    })
}
