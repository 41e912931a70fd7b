//! f32 convolutions, pools and means become their fused NHWC forms, with transposes at the borders
//! (`settle_layout` moves and cancels those). What quantisation left over is folded here too.

use super::lower_qdq::{pool_nhwc, resize_nhwc};
use super::rewrite::*;
use crate::error::Result;
use crate::target::Target;
use lacuna_ir::op::{ConvAttr, FusedConvAttr, SpatialAttr, Window};
use lacuna_ir::{Attr, DType, Graph, OpId, OpKind, Tensor, Uses, ValueId};

pub fn to_nhwc(g: &mut Graph, _: &Target) -> Result<usize> {
    let mut changes = dequantise_constants(g)? + lacuna_ir::passes::fold_const(g)?;
    let mut uses = g.uses();
    for op in g.order.clone() {
        let out = g.outputs_of(op)[0];
        if uses.of(out).is_empty() && !g.outputs.contains(&out) {
            continue;
        }
        let changed = match (g.op_kind[op], g.op_attr[op]) {
            (OpKind::Conv, _) => fuse_conv(g, &uses, op)?,
            (OpKind::ConvTranspose, _) => fuse_conv_transpose(g, &uses, op)?,
            (OpKind::BatchNormalization, _) => affine(g, op)?,
            (OpKind::MaxPool, Attr::Pool(attr)) => {
                replace(g, op, |g, x| pool_nhwc(g, op, OpKind::MaxPoolNhwc, attr, x))?
            }
            (OpKind::AveragePool, Attr::Pool(attr)) => {
                replace(g, op, |g, x| pool_nhwc(g, op, OpKind::AveragePoolNhwc, attr, x))?
            }
            (OpKind::Resize, _) => replace(g, op, |g, x| resize_nhwc(g, op, x))?,
            (OpKind::GlobalAveragePool | OpKind::ReduceMean, _) => mean_nhwc(g, op)?,
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

fn replace(
    g: &mut Graph,
    op: OpId,
    make: impl FnOnce(&mut Graph, ValueId) -> Result<ValueId>,
) -> Result<bool> {
    let x = g.inputs_of(op)[0];
    if g.shape(x).len() != 4 {
        return Ok(false);
    }
    let y = make(g, x)?;
    g.replace_uses(g.outputs_of(op)[0], y);
    Ok(true)
}

/// Weights that no integer op took are dequantised once, now.
fn dequantise_constants(g: &mut Graph) -> Result<usize> {
    let mut changes = 0;
    for op in g.order.clone() {
        if g.op_kind[op] != OpKind::DequantizeLinear {
            continue;
        }
        let tensors: Option<Vec<Tensor>> = g.inputs_of(op).iter().map(|&v| g.const_tensor(v)).collect();
        let Some(tensors) = tensors else { continue };
        let inputs: Vec<Option<&Tensor>> = tensors.iter().map(Some).collect();
        let made = (OpKind::DequantizeLinear.row().eval)(&g.op_attr[op], &inputs).map_err(|why| {
            lacuna_ir::Error::Op { op: g.op_name[op].clone(), kind: "DequantizeLinear", why }
        })?;
        let out = g.outputs_of(op)[0];
        let name = g.value_name[out].clone();
        let v = constant(g, &name, &made[0]);
        g.replace_uses(out, v);
        changes += 1;
    }
    sweep(g);
    Ok(changes)
}

/// `Conv [-> Add(residual)] [-> Relu|Clip]` becomes one `FusedConv`.
fn fuse_conv(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    let Attr::Conv(conv) = g.op_attr[op] else { return Ok(false) };
    let inputs = g.inputs_of(op).to_vec();
    let (x, Some(w)) = (inputs[0], g.const_bytes(inputs[1])) else { return Ok(false) };
    let Some(dims) = g.fixed_shape(inputs[1]).and_then(|dims| <[usize; 4]>::try_from(dims).ok()) else {
        return Ok(false);
    };
    let ohwi = to_ohwi(w, dims);
    let bias = match g.input_of(op, 2) {
        None => vec![0.0; dims[0]],
        Some(b) => match g.const_f32(b) {
            Some(b) => b.into_owned(),
            None => return Ok(false),
        },
    };
    let (last, residual, clip) = fusable_tail(g, uses, op, true);
    let name = g.op_name[op].clone();
    let mut inputs = vec![
        transpose_before(g, last, x, &TO_NHWC)?,
        shared_constant(
            g,
            &format!("{name}/weight"),
            DType::F32,
            &[dims[0], dims[2], dims[3], dims[1]],
            ohwi,
        )?,
        constant(g, &format!("{name}/bias"), &Tensor::from_f32(&[dims[0]], bias)),
    ];
    if let Some(r) = residual {
        inputs.push(transpose_before(g, last, r, &TO_NHWC)?);
    }
    let attr = Attr::FusedConv(FusedConvAttr { conv, clip });
    let y = op_before(g, last, OpKind::FusedConv, attr, &name, &inputs)?;
    let y = transpose_before(g, last, y, &TO_NCHW)?;
    g.replace_uses(g.outputs_of(last)[0], y);
    Ok(true)
}

/// `ConvTranspose [-> Relu|Clip]` of images becomes one `FusedConvTranspose`, if it has one group and no dilation.
fn fuse_conv_transpose(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    let Attr::Spatial(a) = g.op_attr[op] else { return Ok(false) };
    let inputs = g.inputs_of(op).to_vec();
    let (Some(window), Some(w)) = (spread_window(&a), g.const_f32(inputs[1])) else { return Ok(false) };
    let Some([c, o, kh, kw]) = g.fixed_shape(inputs[1]).and_then(|dims| <[usize; 4]>::try_from(dims).ok())
    else {
        return Ok(false);
    };
    let bias = match g.input_of(op, 2) {
        None => vec![0.0; o],
        Some(b) => match g.const_f32(b) {
            Some(b) => b.into_owned(),
            None => return Ok(false),
        },
    };
    // `[C, O * kh * kw]` to `[O * kh * kw, C]`.
    let w = Tensor::from_f32(&[o, kh, kw, c], transposed(&w, o * kh * kw));
    let (last, _, clip) = fusable_tail(g, uses, op, false);
    let name = g.op_name[op].clone();
    let inputs = [
        transpose_before(g, last, inputs[0], &TO_NHWC)?,
        constant(g, &format!("{name}/weight"), &w),
        constant(g, &format!("{name}/bias"), &Tensor::from_f32(&[o], bias)),
    ];
    let attr = Attr::FusedConv(FusedConvAttr { conv: ConvAttr { window, group: 1 }, clip });
    let y = op_before(g, last, OpKind::FusedConvTranspose, attr, &name, &inputs)?;
    let y = transpose_before(g, last, y, &TO_NCHW)?;
    g.replace_uses(g.outputs_of(last)[0], y);
    Ok(true)
}

/// What the engine's op has of a transposed convolution. Pixels that the result has more at its end are fewer cut off there.
fn spread_window(a: &SpatialAttr) -> Option<Window> {
    let two = |of: [u32; 3]| [of[0], of[1]];
    let after: Option<Vec<u32>> = (0..2).map(|d| a.after[d].checked_sub(a.output_padding[d])).collect();
    let after = after?;
    let pads = [a.before[0], a.before[1], after[0], after[1]];
    // A kernel that leaves gaps has outputs of no products.
    let fits =
        a.rank == 2 && a.group == 1 && (0..2).all(|d| a.dilation[d] == 1 && a.kernel[d] >= a.stride[d]);
    fits.then(|| Window { kernel: two(a.kernel), stride: two(a.stride), dilation: [1, 1], pads })
}

/// The last op that can run inside the convolution `op`, the residual (if one is wanted) and the clamp.
fn fusable_tail(
    g: &Graph,
    uses: &Uses,
    op: OpId,
    with_residual: bool,
) -> (OpId, Option<ValueId>, lacuna_ir::op::ClipAttr) {
    let (mut last, mut residual, mut clip) = (op, None, NO_CLIP);
    while let Some(next) = sole_use(g, uses, g.outputs_of(last)[0]) {
        let v = g.outputs_of(last)[0];
        match g.op_kind[next] {
            OpKind::Add if with_residual && residual.is_none() && clip == NO_CLIP => {
                let Some(&other) = g.inputs_of(next).iter().find(|&&x| x != v) else { break };
                if g.shape(other) != g.shape(v) || g.const_bytes(other).is_some() {
                    break;
                }
                residual = Some(other);
            }
            OpKind::Relu | OpKind::Clip => match clip_of(g, next) {
                Some(c) => clip = compose_clips(clip, c),
                None => break,
            },
            _ => break,
        }
        last = next;
    }
    (last, residual, clip)
}

fn mean_nhwc(g: &mut Graph, op: OpId) -> Result<bool> {
    let Some(keep_dims) = spatial_mean(g, op) else { return Ok(false) };
    if g.value_dtype[g.inputs_of(op)[0]] != DType::F32 {
        return Ok(false);
    }
    replace(g, op, |g, x| {
        let name = g.op_name[op].clone();
        let x = transpose_before(g, op, x, &TO_NHWC)?;
        let y = op_before(g, op, OpKind::GlobalAvgPoolNhwc, Attr::None, &name, &[x])?;
        let y = transpose_before(g, op, y, &TO_NCHW)?;
        if keep_dims {
            return Ok(y);
        }
        op_before(g, op, OpKind::Flatten, Attr::Axis(1), &format!("{name}/flatten"), &[y])
    })
}

/// A batch norm that no convolution took: `x * a + b` per channel.
fn affine(g: &mut Graph, op: OpId) -> Result<bool> {
    let inputs = g.inputs_of(op).to_vec();
    let Attr::Epsilon(epsilon) = g.op_attr[op] else { return Ok(false) };
    let stats: Option<Vec<Vec<f32>>> =
        inputs[1..].iter().map(|&v| g.const_f32(v).map(|c| c.into_owned())).collect();
    let rank = g.shape(inputs[0]).len();
    let (Some(stats), true) = (stats, rank >= 2) else { return Ok(false) };
    let [scale, bias, mean, var] = &stats[..] else { return Ok(false) };
    let n = scale.len();
    // In f32, step by step as onnxruntime: where values are rounded to bytes behind it, they are the same bytes.
    let a: Vec<f32> = (0..n).map(|i| scale[i] * (1.0 / (var[i] + epsilon).sqrt())).collect();
    let b: Vec<f32> = (0..n).map(|i| bias[i] - mean[i] * a[i]).collect();
    let mut dims = vec![1; rank];
    dims[1] = n;
    let name = g.op_name[op].clone();
    let a = constant(g, &format!("{name}/scale"), &Tensor::from_f32(&dims, a));
    let b = constant(g, &format!("{name}/shift"), &Tensor::from_f32(&dims, b));
    let y = op_before(g, op, OpKind::Mul, Attr::None, &name, &[inputs[0], a])?;
    let y = op_before(g, op, OpKind::Add, Attr::None, &format!("{name}/add"), &[y, b])?;
    g.replace_uses(g.outputs_of(op)[0], y);
    Ok(true)
}
