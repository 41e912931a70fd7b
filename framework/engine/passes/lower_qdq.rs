//! Quantise/dequantise pairs become integer ops.
//!
//! First the pairs are moved together (a dequantise past what only moves values, a quantise before it, pairs that
//! undo each other away), functions of one byte become tables, then `DQ -> op -> [Add(DQ)] -> [Relu|Clip] -> Q` becomes one integer op.
//! What does not match stays as it is and runs in f32 between its Quantize and Dequantize ops.
//! The integer scheme is Jacob et al., "Quantization and Training of Neural Networks for Efficient
//! Integer-Arithmetic-Only Inference", CVPR 2018, with an f32 multiplier for the last step.

use super::add_norm::lower_norm;
use super::attention::lower_attention;
use super::rewrite::*;
use super::tables::lower_tables;
use crate::error::Result;
use crate::kernels::magnitude;
use crate::target::Target;
use bytes::Bytes;
use lacuna_ir::op::{
    ClipAttr, GemmAttr, PoolAttr, QAddAttr, QConvAttr, QGemmAttr, QMulAttr, QPoolAttr, Requant,
};
use lacuna_ir::{Attr, DType, Graph, OpId, OpKind, Tensor, Uses, ValueId};

pub fn lower_qdq(g: &mut Graph, _: &Target) -> Result<usize> {
    let mut changes = make_unsigned(g)?;
    loop {
        let n = gather_pairs(g)?;
        sweep(g);
        changes += n;
        if n == 0 {
            break;
        }
    }
    changes += lower_tables(g)?;
    let mut uses = g.uses();
    for op in g.order.clone() {
        let changed = match g.op_kind[op] {
            OpKind::Conv => lower_conv(g, &uses, op)?,
            OpKind::Gemm | OpKind::MatMul => lower_gemm(g, &uses, op)?,
            OpKind::Softmax => lower_attention(g, &uses, op)?,
            OpKind::LayerNormalization => lower_norm(g, &uses, op)?,
            OpKind::Add => lower_add(g, &uses, op)?,
            OpKind::Mul => lower_mul(g, &uses, op)?,
            OpKind::GlobalAveragePool | OpKind::ReduceMean => lower_mean(g, &uses, op)?,
            _ => false,
        };
        if changed {
            changes += 1;
            uses = g.uses();
        }
    }
    sweep(g);
    Ok(changes)
}

/// Signed activations become unsigned ones, all steps 128 higher: kernels read bytes from 0 to 255. The real values are the
/// same.
fn make_unsigned(g: &mut Graph) -> Result<usize> {
    let mut changes = 0;
    let uses = g.uses();
    for op in g.order.clone() {
        let q = g.outputs_of(op)[0];
        let signed = g.op_kind[op] == OpKind::QuantizeLinear && g.value_dtype[q] == DType::I8;
        let readers = uses.of(q).to_vec();
        let only_read_back = readers.iter().all(|&r| {
            g.op_kind[r] == OpKind::DequantizeLinear
                && g.input_of(r, 0) == Some(q)
                && tensor_params(g, r).is_some()
        });
        if !signed || g.outputs.contains(&q) || !only_read_back || tensor_params(g, op).is_none() {
            continue;
        }
        let byte = unsigned_again(g, op, None)?;
        for reader in readers {
            let y = unsigned_again(g, reader, Some(byte))?;
            g.replace_uses(g.outputs_of(reader)[0], y);
        }
        changes += 1;
    }
    Ok(changes)
}

/// The quantise or dequantise op `op` with its zero point as a u8, of `x` if given.
fn unsigned_again(g: &mut Graph, op: OpId, x: Option<ValueId>) -> Result<ValueId> {
    let zero = tensor_params(g, op).map_or(0, |p| p.zero) + 128;
    let name = g.op_name[op].clone();
    let zero = Tensor::from_u8(&[], vec![u8::try_from(zero).expect("an i8 and 128 is a u8")]);
    let mut inputs = g.inputs_of(op).to_vec();
    inputs[2] = constant(g, &format!("{name}/zero"), &zero);
    inputs[0] = x.unwrap_or(inputs[0]);
    op_before(g, op, g.op_kind[op], g.op_attr[op], &name, &inputs)
}

/// One sweep of the rules that bring quantise and dequantise ops together.
fn gather_pairs(g: &mut Graph) -> Result<usize> {
    let mut changes = 0;
    let mut uses = g.uses();
    for op in g.order.clone() {
        let out = g.outputs_of(op)[0];
        if uses.of(out).is_empty() && !g.outputs.contains(&out) {
            continue;
        }
        let changed = match g.op_kind[op] {
            OpKind::QuantizeLinear => {
                undo_pair(g, op)
                    || quantise_before_reshape(g, &uses, op)?
                    || quantise_before_parts(g, &uses, op)?
            }
            OpKind::Flatten | OpKind::Reshape | OpKind::Transpose => dequantise_after_reshape(g, op)?,
            // The first token, of which a sequence's classes are told.
            OpKind::Gather if g.input_of(op, 1).is_some_and(|index| g.const_i64(index).is_some()) => {
                dequantise_after_reshape(g, op)?
            }
            OpKind::MaxPool => dequantise_after_pool(g, op)?,
            OpKind::Resize => dequantise_after_resize(g, op)?,
            OpKind::Concat => dequantise_after_concat(g, op)?,
            OpKind::Slice => dequantise_after_slice(g, op)?,
            _ => false,
        };
        if changed {
            changes += 1;
            uses = g.uses();
        }
    }
    Ok(changes)
}

/// `Q(DQ(x))` with equal parameters is `x`: `rne(((q - z) * s) / s)` is `q - z` for every eight-bit `q`.
fn undo_pair(g: &mut Graph, op: OpId) -> bool {
    let Some((q, inner)) = g.input_of(op, 0).and_then(|x| dequantised(g, x)) else { return false };
    let out = g.outputs_of(op)[0];
    if g.value_dtype[out] != DType::U8 || tensor_params(g, op) != Some(inner) {
        return false;
    }
    g.replace_uses(out, q);
    true
}

/// `Q(reshape(x))` is `reshape(Q(x))`.
fn quantise_before_reshape(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    let Some(x) = g.input_of(op, 0) else { return Ok(false) };
    let Some(shape_op) = g.producer(x).filter(|&p| is_reshape(g, p)) else { return Ok(false) };
    let inner = g.inputs_of(shape_op)[0];
    if tensor_params(g, op).is_none() || sole_use(g, uses, x).is_none() || g.const_bytes(inner).is_some() {
        return Ok(false);
    }
    let mut inputs = g.inputs_of(op).to_vec();
    inputs[0] = inner;
    let name = g.op_name[op].clone();
    let q = op_before(g, op, OpKind::QuantizeLinear, g.op_attr[op], &name, &inputs)?;
    let y = reshape_again(g, op, shape_op, q)?;
    g.replace_uses(g.outputs_of(op)[0], y);
    Ok(true)
}

/// `reshape(DQ(x))` is `DQ(reshape(x))`.
fn dequantise_after_reshape(g: &mut Graph, op: OpId) -> Result<bool> {
    let x = g.inputs_of(op)[0];
    let Some((q, _)) = dequantised(g, x) else { return Ok(false) };
    let dq = g.producer(x).expect("a dequantised value has a producer");
    let y = reshape_again(g, op, op, q)?;
    finish_with_dequantise(g, op, dq, y)
}

/// `max(DQ(x))` is `DQ(max(x))`: dequantising is increasing.
fn dequantise_after_pool(g: &mut Graph, op: OpId) -> Result<bool> {
    let (x, Attr::Pool(attr)) = (g.inputs_of(op)[0], g.op_attr[op]) else { return Ok(false) };
    let Some((q, _)) = dequantised(g, x) else { return Ok(false) };
    let dq = g.producer(x).expect("a dequantised value has a producer");
    let y = pool_nhwc(g, op, OpKind::MaxPoolNhwc, attr, q)?;
    finish_with_dequantise(g, op, dq, y)
}

/// `resize(DQ(x))` is `DQ(resize(x))`.
fn dequantise_after_resize(g: &mut Graph, op: OpId) -> Result<bool> {
    let x = g.inputs_of(op)[0];
    let Some((q, _)) = dequantised(g, x) else { return Ok(false) };
    let dq = g.producer(x).expect("a dequantised value has a producer");
    let y = resize_nhwc(g, op, q)?;
    finish_with_dequantise(g, op, dq, y)
}

/// `slice(DQ(x))` is `DQ(slice(x))`.
fn dequantise_after_slice(g: &mut Graph, op: OpId) -> Result<bool> {
    let mut inputs = g.inputs_of(op).to_vec();
    let Some((q, _)) = dequantised(g, inputs[0]) else { return Ok(false) };
    let dq = g.producer(inputs[0]).expect("a dequantised value has a producer");
    inputs[0] = q;
    let name = g.op_name[op].clone();
    let y = op_before(g, op, OpKind::Slice, g.op_attr[op], &name, &inputs)?;
    finish_with_dequantise(g, op, dq, y)
}

/// `concat(DQ(a), DQ(b))` is `DQ(concat(a, b))` where the parameters are equal.
fn dequantise_after_concat(g: &mut Graph, op: OpId) -> Result<bool> {
    let inputs = g.inputs_of(op).to_vec();
    let parts: Option<Vec<(ValueId, QParams)>> = inputs.iter().map(|&v| dequantised(g, v)).collect();
    let Some(parts) = parts.filter(|p| p.iter().all(|x| x.1 == p[0].1)) else { return Ok(false) };
    let dq = g.producer(inputs[0]).expect("a dequantised value has a producer");
    let name = g.op_name[op].clone();
    let bytes: Vec<ValueId> = parts.iter().map(|p| p.0).collect();
    let y = op_before(g, op, OpKind::Concat, g.op_attr[op], &name, &bytes)?;
    finish_with_dequantise(g, op, dq, y)
}

/// `Q(concat(a, b))` is `concat(Q(a), Q(b))`; `Q(max(x))` is `max(Q(x))`, because quantising is increasing; and a
/// resize only repeats. Bytes move faster than floats, and the parts often were bytes before.
fn quantise_before_parts(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    let Some(x) = g.input_of(op, 0) else { return Ok(false) };
    let Some(maker) = g.producer(x).filter(|_| sole_use(g, uses, x).is_some()) else { return Ok(false) };
    let kind = g.op_kind[maker];
    let moves = matches!(kind, OpKind::Concat | OpKind::MaxPool | OpKind::Resize);
    let four_axes = g.shape(x).len() == 4;
    if !moves
        || !four_axes
        || tensor_params(g, op).is_none()
        || g.value_dtype[g.outputs_of(op)[0]] != DType::U8
    {
        return Ok(false);
    }
    let mut parts = g.inputs_of(maker).to_vec();
    for part in &mut parts {
        let mut inputs = g.inputs_of(op).to_vec();
        inputs[0] = *part;
        let name = g.op_name[op].clone();
        *part = op_before(g, op, OpKind::QuantizeLinear, g.op_attr[op], &name, &inputs)?;
    }
    let name = g.op_name[maker].clone();
    let y = match (kind, g.op_attr[maker]) {
        (OpKind::MaxPool, Attr::Pool(attr)) => {
            let x = transpose_before(g, op, parts[0], &TO_NHWC)?;
            let y = op_before(g, op, OpKind::MaxPoolNhwc, Attr::Pool(attr), &name, &[x])?;
            transpose_before(g, op, y, &TO_NCHW)?
        }
        (OpKind::Resize, attr) => {
            let x = transpose_before(g, op, parts[0], &TO_NHWC)?;
            let y = op_before(g, op, OpKind::ResizeNhwc, attr, &name, &[x])?;
            transpose_before(g, op, y, &TO_NCHW)?
        }
        (_, attr) => op_before(g, op, OpKind::Concat, attr, &name, &parts)?,
    };
    g.replace_uses(g.outputs_of(op)[0], y);
    Ok(true)
}

pub fn pool_nhwc(g: &mut Graph, at: OpId, kind: OpKind, attr: PoolAttr, x: ValueId) -> Result<ValueId> {
    let name = g.op_name[at].clone();
    let x = transpose_before(g, at, x, &TO_NHWC)?;
    let y = op_before(g, at, kind, Attr::Pool(attr), &name, &[x])?;
    transpose_before(g, at, y, &TO_NCHW)
}

pub fn resize_nhwc(g: &mut Graph, at: OpId, x: ValueId) -> Result<ValueId> {
    let name = g.op_name[at].clone();
    let x = transpose_before(g, at, x, &TO_NHWC)?;
    let y = op_before(g, at, OpKind::ResizeNhwc, g.op_attr[at], &name, &[x])?;
    transpose_before(g, at, y, &TO_NCHW)
}

fn finish_with_dequantise(g: &mut Graph, op: OpId, dq: OpId, y: ValueId) -> Result<bool> {
    let mut inputs = g.inputs_of(dq).to_vec();
    inputs[0] = y;
    let name = g.op_name[dq].clone();
    let z = op_before(g, op, OpKind::DequantizeLinear, g.op_attr[dq], &name, &inputs)?;
    g.replace_uses(g.outputs_of(op)[0], z);
    Ok(true)
}

fn is_reshape(g: &Graph, op: OpId) -> bool {
    matches!(g.op_kind[op], OpKind::Flatten | OpKind::Reshape | OpKind::Transpose)
}

/// The reshape `like`, of `x`, before `at`.
fn reshape_again(g: &mut Graph, at: OpId, like: OpId, x: ValueId) -> Result<ValueId> {
    let mut inputs = g.inputs_of(like).to_vec();
    inputs[0] = x;
    let name = g.op_name[like].clone();
    op_before(g, at, g.op_kind[like], g.op_attr[like], &name, &inputs)
}

/// What follows an op up to its QuantizeLinear.
struct Tail {
    /// The QuantizeLinear.
    last: OpId,
    scale: f32,
    out: Requant,
    residual: Option<(ValueId, QParams)>,
}

/// Follows `[Add(DQ)] -> [Relu|Clip]* -> Q` from `v`, each value read once.
fn tail(g: &Graph, uses: &Uses, mut v: ValueId, with_residual: bool) -> Option<Tail> {
    let mut residual = None;
    let mut clip = NO_CLIP;
    loop {
        let op = sole_use(g, uses, v)?;
        match g.op_kind[op] {
            OpKind::Add if with_residual && residual.is_none() && clip == NO_CLIP => {
                let other = *g.inputs_of(op).iter().find(|&&x| x != v)?;
                let (r, params) = dequantised(g, other)?;
                if g.shape(r) != g.shape(v) {
                    return None;
                }
                residual = Some((r, params));
            }
            OpKind::Relu | OpKind::Clip => clip = compose_clips(clip, clip_of(g, op)?),
            OpKind::QuantizeLinear => {
                let QParams { scale, zero } = tensor_params(g, op)?;
                if g.value_dtype[g.outputs_of(op)[0]] != DType::U8 {
                    return None;
                }
                return Some(Tail { last: op, scale, out: requant(scale, zero, clip), residual });
            }
            _ => return None,
        }
        v = g.outputs_of(op)[0];
    }
}

/// Quantising is increasing, so clamping before it is clamping after it between the quantised bounds.
pub fn requant(scale: f32, zero: i32, clip: ClipAttr) -> Requant {
    let q = |x: f32| ((x / scale).round_ties_even() as f64 + zero as f64).clamp(0.0, 255.0) as i32;
    Requant { zero, lo: q(clip.min), hi: q(clip.max) }
}

/// Symmetric eight-bit weights with a scale per output channel.
struct Weights {
    /// i8, as stored.
    bytes: Bytes,
    dims: Vec<usize>,
    scales: Vec<f32>,
}

/// Reads `v = DequantizeLinear(i8 constant)` whose output channels are axis `channels`.
fn weights(g: &Graph, v: ValueId, channels: usize) -> Option<Weights> {
    let op = made_by(g, v, OpKind::DequantizeLinear)?;
    let stored = g.input_of(op, 0)?;
    let bytes = g.const_bytes(stored).filter(|_| g.value_dtype[stored] == DType::I8)?.clone();
    let dims = g.fixed_shape(stored)?;
    let n = *dims.get(channels)?;
    let mut scales = g.const_f32(g.input_of(op, 1)?)?.into_owned();
    if scales.len() == 1 {
        scales = vec![scales[0]; n];
    } else {
        let Attr::Axis(axis) = g.op_attr[op] else { return None };
        if scales.len() != n || (axis as i64).rem_euclid(dims.len() as i64) != channels as i64 {
            return None;
        }
    }
    let symmetric = const_ints(g, g.input_of(op, 2)?)?.iter().all(|&z| z == 0);
    let usable = scales.iter().all(|s| s.is_finite() && *s > 0.0);
    (symmetric && usable).then_some(())?;
    Some(Weights { bytes, dims, scales })
}

/// The bias in steps of `x_scale * w_scale[o]`: i32 as stored, or f32 rounded to nearest even.
fn int_bias(g: &Graph, bias: Option<ValueId>, x_scale: f32, w_scales: &[f32]) -> Option<Vec<i32>> {
    let Some(bias) = bias else { return Some(vec![0; w_scales.len()]) };
    let steps: Vec<f64> = w_scales.iter().map(|&s| x_scale as f64 * s as f64).collect();
    let to_steps = |real: f64, step: f64| {
        let b = (real / step).round_ties_even();
        (b.abs() <= i32::MAX as f64).then_some(b as i32)
    };
    if let Some(real) = g.const_f32(bias) {
        if real.len() != steps.len() {
            return None;
        }
        return real.iter().zip(&steps).map(|(&b, &s)| to_steps(b as f64, s)).collect();
    }
    let op = made_by(g, bias, OpKind::DequantizeLinear)?;
    let ints = g.const_tensor(g.input_of(op, 0)?)?.as_i32()?.to_vec();
    let scales = g.const_f32(g.input_of(op, 1)?)?;
    let zeros = const_ints(g, g.input_of(op, 2)?)?;
    if ints.len() != steps.len() || zeros.iter().any(|&z| z != 0) {
        return None;
    }
    let scale = |o: usize| scales[if scales.len() == 1 { 0 } else { o }] as f64;
    (scales.len() == 1 || scales.len() == ints.len()).then_some(())?;
    (0..ints.len())
        .map(|o| match (scale(o) / steps[o] - 1.0).abs() < 1e-5 {
            true => Some(ints[o]),
            false => to_steps(ints[o] as f64 * scale(o), steps[o]),
        })
        .collect()
}

/// The most steps of a bias, so that sums have room beside it.
const BIAS_STEPS_MAX: f64 = (1 << 28) as f64;

/// Gives weights of channels whose f32 bias is too many steps for an i32 larger steps: such weights hardly count beside
/// it. (Channels that training switched off are like that.)
fn widen_steps(g: &Graph, bias: Option<ValueId>, x_scale: f32, w: &mut Weights) {
    let real = bias.and_then(|b| g.const_f32(b)).filter(|real| real.len() == w.scales.len());
    let Some(real) = real else { return };
    let steps = |o: usize, scale: f32| (real[o] as f64 / (x_scale as f64 * scale as f64)).abs();
    let is_wide = |o: &usize| (BIAS_STEPS_MAX..f64::INFINITY).contains(&steps(*o, w.scales[*o]));
    let wide: Vec<usize> = (0..real.len()).filter(is_wide).collect();
    if wide.is_empty() {
        return;
    }
    let mut bytes = w.bytes.to_vec();
    let per = bytes.len() / real.len();
    for o in wide {
        let factor = (steps(o, w.scales[o]) / BIAS_STEPS_MAX).log2().ceil().exp2();
        w.scales[o] *= factor as f32;
        for byte in &mut bytes[o * per..][..per] {
            *byte = (f64::from(*byte as i8) / factor).round_ties_even() as i8 as u8;
        }
    }
    w.bytes = bytes.into();
}

impl Weights {
    fn elements(&self) -> &[i8] {
        bytemuck::cast_slice(&self.bytes)
    }
}

/// Whether no input can overflow the i32 accumulator: `255 * Σ|w| + |bias| < 2^31` for every output channel.
fn accumulates(w: &[i8], bias: &[i32]) -> bool {
    let per = w.len() / bias.len().max(1);
    bias.iter().enumerate().all(|(o, &b)| {
        let sum = magnitude(&w[o * per..][..per]);
        (b as i64 + 255 * sum).max(255 * sum - b as i64 - 1) < 1 << 31
    })
}

/// From the accumulator to the output's scale, in f32 arithmetic as onnxruntime's, so that results are the same bytes;
/// nothing where one does not fit an f32.
fn multipliers(x_scale: f32, w_scales: &[f32], y_scale: f32) -> Option<Vec<f32>> {
    let multiplier = |&w: &f32| x_scale * w / y_scale;
    w_scales.iter().map(multiplier).map(|m| m.is_finite().then_some(m)).collect()
}

fn lower_conv(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    let Some(rewrite) = match_conv(g, uses, op) else { return Ok(false) };
    let ConvRewrite { x, w, bias, mult, attr, tail } = rewrite;
    let (last, name) = (tail.as_ref().map_or(op, |t| t.last), g.op_name[op].clone());
    let dims: [usize; 4] = w.dims.clone().try_into().expect("a conv's weights have four axes");
    let ohwi = to_ohwi(&w.bytes, dims);
    let mut inputs = vec![
        transpose_before(g, last, x, &TO_NHWC)?,
        shared_constant(
            g,
            &format!("{name}/weight"),
            DType::I8,
            &[dims[0], dims[2], dims[3], dims[1]],
            ohwi,
        )?,
        constant(g, &format!("{name}/bias"), &Tensor::from_i32(&[dims[0]], bias)),
        constant(g, &format!("{name}/mult"), &Tensor::from_f32(&[dims[0]], mult)),
    ];
    if let Some((r, _)) = tail.and_then(|t| t.residual) {
        inputs.push(transpose_before(g, last, r, &TO_NHWC)?);
    }
    let y = op_before(g, last, OpKind::QConv, Attr::QConv(attr), &name, &inputs)?;
    let y = transpose_before(g, last, y, &TO_NCHW)?;
    g.replace_uses(g.outputs_of(last)[0], y);
    Ok(true)
}

struct ConvRewrite {
    x: ValueId,
    w: Weights,
    bias: Vec<i32>,
    mult: Vec<f32>,
    attr: QConvAttr,
    /// Absent: the sums are read as f32.
    tail: Option<Tail>,
}

fn match_conv(g: &Graph, uses: &Uses, op: OpId) -> Option<ConvRewrite> {
    let Attr::Conv(conv) = g.op_attr[op] else { return None };
    let (x, x_params) = dequantised(g, g.input_of(op, 0)?)?;
    let mut w = weights(g, g.input_of(op, 1)?, 0)?;
    widen_steps(g, g.input_of(op, 2), x_params.scale, &mut w);
    let bias = int_bias(g, g.input_of(op, 2), x_params.scale, &w.scales)?;
    let tail = tail(g, uses, g.outputs_of(op)[0], true);
    // Depthwise kernels write bytes.
    (w.dims.len() == 4 && accumulates(w.elements(), &bias)).then_some(())?;
    (tail.is_some() || conv.group == 1).then_some(())?;
    let scale = tail.as_ref().map_or(1.0, |t| t.scale);
    let (residual_mult, residual_zero) = match tail.as_ref().and_then(|t| t.residual) {
        Some((_, r)) => ((r.scale as f64 / scale as f64) as f32, r.zero),
        None => (0.0, 0),
    };
    let out = tail.as_ref().map(|t| t.out);
    let attr = QConvAttr { conv, x_zero: x_params.zero, out, residual_mult, residual_zero, late: None };
    let mult = multipliers(x_params.scale, &w.scales, scale)?;
    Some(ConvRewrite { x, w, bias, mult, attr, tail })
}

/// `Gemm`, or `MatMul` with an optional `Add` of a constant bias.
fn lower_gemm(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    let Some(m) = match_gemm(g, uses, op) else { return Ok(false) };
    let name = g.op_name[op].clone();
    let n = m.bias.len();
    let k = m.w.len() / n.max(1);
    let at = m.tail.as_ref().map_or(m.end, |t| t.last);
    let inputs = [
        m.x,
        shared_constant(g, &format!("{name}/weight"), DType::I8, &[n, k], m.w)?,
        constant(g, &format!("{name}/bias"), &Tensor::from_i32(&[n], m.bias)),
        constant(g, &format!("{name}/mult"), &Tensor::from_f32(&[n], m.mult)),
    ];
    let attr = QGemmAttr { x_zero: m.x_zero, out: m.tail.as_ref().map(|t| t.out) };
    let y = op_before(g, at, OpKind::QGemm, Attr::QGemm(attr), &name, &inputs)?;
    g.replace_uses(g.outputs_of(at)[0], y);
    Ok(true)
}

struct GemmRewrite {
    x: ValueId,
    x_zero: i32,
    /// `[N,K]` of i8.
    w: Bytes,
    bias: Vec<i32>,
    mult: Vec<f32>,
    /// The op whose output is the f32 result with its bias.
    end: OpId,
    tail: Option<Tail>,
}

fn match_gemm(g: &Graph, uses: &Uses, op: OpId) -> Option<GemmRewrite> {
    let trans_b = match g.op_attr[op] {
        Attr::Gemm(GemmAttr { alpha: 1.0, beta: 1.0, trans_a: false, trans_b }) => trans_b,
        Attr::None => false,
        _ => return None,
    };
    let (x, params) = dequantised(g, g.input_of(op, 0)?)?;
    let w = weights(g, g.input_of(op, 1)?, if trans_b { 0 } else { 1 })?;
    (g.shape(x).len() >= 2 && w.dims.len() == 2).then_some(())?;
    let n = w.scales.len();
    let mut end = op;
    let mut bias = g.input_of(op, 2);
    if g.op_kind[op] == OpKind::MatMul
        && let Some(add) = sole_use(g, uses, g.outputs_of(op)[0]).filter(|&a| g.op_kind[a] == OpKind::Add)
    {
        let other = g.inputs_of(add).iter().copied().find(|&v| v != g.outputs_of(op)[0]);
        if let Some(b) = other
            && int_bias(g, Some(b), params.scale, &w.scales).is_some()
            && g.shape(b).len() == 1
        {
            (end, bias) = (add, Some(b));
        }
    }
    if bias.is_some_and(|b| g.shape(b).len() != 1) {
        return None;
    }
    let bias = int_bias(g, bias, params.scale, &w.scales)?;
    let bytes = match trans_b {
        true => w.bytes,
        false => Bytes::from(transposed(&w.bytes, n)),
    };
    accumulates(bytemuck::cast_slice(&bytes), &bias).then_some(())?;
    let tail = tail(g, uses, g.outputs_of(end)[0], false);
    let mult = multipliers(params.scale, &w.scales, tail.as_ref().map_or(1.0, |t| t.scale))?;
    Some(GemmRewrite { x, x_zero: params.zero, w: bytes, bias, mult, end, tail })
}

fn lower_add(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    let found = || {
        let (a, pa) = dequantised(g, g.input_of(op, 0)?)?;
        let (b, pb) = dequantised(g, g.input_of(op, 1)?)?;
        let tail = tail(g, uses, g.outputs_of(op)[0], false)?;
        (g.shape(a) == g.shape(b)).then_some((a, pa, b, pb, tail))
    };
    let Some((a, pa, b, pb, tail)) = found() else { return Ok(false) };
    let per_out = |p: QParams| (p.scale as f64 / tail.scale as f64) as f32;
    let attr = QAddAttr {
        a_mult: per_out(pa),
        a_zero: pa.zero,
        b_mult: per_out(pb),
        b_zero: pb.zero,
        out: tail.out,
    };
    let name = g.op_name[op].clone();
    let y = op_before(g, tail.last, OpKind::QAdd, Attr::QAdd(attr), &name, &[a, b])?;
    g.replace_uses(g.outputs_of(tail.last)[0], y);
    Ok(true)
}

/// A product of dequantised values, one of which may broadcast (a gate per channel).
fn lower_mul(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    let found = || {
        let (a, pa) = dequantised(g, g.input_of(op, 0)?)?;
        let (b, pb) = dequantised(g, g.input_of(op, 1)?)?;
        let tail = tail(g, uses, g.outputs_of(op)[0], false)?;
        Some((a, pa, b, pb, tail))
    };
    let Some((mut a, mut pa, mut b, mut pb, tail)) = found() else { return Ok(false) };
    // The factor is b.
    if g.shape(a) != g.shape(g.outputs_of(op)[0]) {
        (a, pa, b, pb) = (b, pb, a, pa);
    }
    let mult = (pa.scale as f64 * pb.scale as f64 / tail.scale as f64) as f32;
    if !mult.is_finite() {
        return Ok(false);
    }
    let attr = QMulAttr { a_zero: pa.zero, b_zero: pb.zero, mult, out: tail.out };
    let name = g.op_name[op].clone();
    let y = op_before(g, tail.last, OpKind::QMul, Attr::QMul(attr), &name, &[a, b])?;
    g.replace_uses(g.outputs_of(tail.last)[0], y);
    Ok(true)
}

fn lower_mean(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    let found = || {
        let keep_dims = spatial_mean(g, op)?;
        let (x, params) = dequantised(g, g.input_of(op, 0)?)?;
        let pixels = g.shape(x)[2].fixed()?.checked_mul(g.shape(x)[3].fixed()?)?;
        // The sum of all pixels fits i32.
        (pixels > 0 && pixels < 1 << 23).then_some(())?;
        let tail = tail(g, uses, g.outputs_of(op)[0], false)?;
        Some((x, params, pixels, keep_dims, tail))
    };
    let Some((x, params, pixels, keep_dims, tail)) = found() else { return Ok(false) };
    let mult = (params.scale as f64 / (tail.scale as f64 * pixels as f64)) as f32;
    let attr = QPoolAttr { x_zero: params.zero, mult, out: tail.out };
    let (last, name) = (tail.last, g.op_name[op].clone());
    let x = transpose_before(g, last, x, &TO_NHWC)?;
    let y = op_before(g, last, OpKind::QGlobalAvgPool, Attr::QPool(attr), &name, &[x])?;
    let mut y = transpose_before(g, last, y, &TO_NCHW)?;
    if !keep_dims {
        y = op_before(g, last, OpKind::Flatten, Attr::Axis(1), &format!("{name}/flatten"), &[y])?;
    }
    g.replace_uses(g.outputs_of(last)[0], y);
    Ok(true)
}
