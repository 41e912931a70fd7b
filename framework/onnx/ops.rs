//! The table of ONNX ops: for each its kind in the graph, how to read a node of it and how to write one.
//!
//! Rows say what differs between operator sets 11 to 21; what is written is operator set 17. An op that ONNX
//! has under more than one name (Dropout does nothing at inference) has rows that are only read.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::tensor::Constant;
use crate::write::NodeOut;
use bytes::Bytes;
use lacuna_ir::op::{
    Attr, Axes, ClipAttr, ConvAttr, GemmAttr, NormAttr, PoolAttr, ReduceAttr, ResizeAttr, Window,
};
use lacuna_ir::{DType, Dim, OpKind, ValueId};

/// One ONNX op.
pub struct OnnxOp {
    pub name: &'static str,
    pub kind: OpKind,
    /// Attributes that may stand at a node; another one is an error.
    pub attrs: &'static [&'static str],
    /// The attributes and operands of the op in the graph.
    pub read: ReadFn,
    /// Writes attributes and extra inputs; operands are there already. `None`: `kind` is written under another name.
    pub write: Option<WriteFn>,
    /// Outputs after the first may have names, as long as nothing reads them.
    pub spare_outputs: bool,
}

type ReadFn = fn(&mut Reader<'_>, &Node<'_>) -> Result<(Attr, Vec<ValueId>)>;
/// The error says what ONNX cannot express.
type WriteFn = fn(&Attr, &mut NodeOut<'_>) -> Result<(), String>;

/// A scale for each of more channels than this has a zero point for each in the file.
const CHANNELS_MAX: usize = 1 << 20;

const fn op(
    name: &'static str,
    kind: OpKind,
    attrs: &'static [&'static str],
    read: ReadFn,
    write: WriteFn,
) -> OnnxOp {
    OnnxOp { name, kind, attrs, read, write: Some(write), spare_outputs: false }
}

pub const ONNX_OPS: &[OnnxOp] = &[
    op(
        "Conv",
        OpKind::Conv,
        &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"],
        read_conv,
        write_conv,
    ),
    op("Gemm", OpKind::Gemm, &["alpha", "beta", "transA", "transB"], read_gemm, write_gemm),
    op("MatMul", OpKind::MatMul, &[], read_plain, write_plain),
    op(
        "BatchNormalization",
        OpKind::BatchNormalization,
        &["epsilon", "momentum", "training_mode"],
        read_batch_norm,
        write_batch_norm,
    ),
    op("Relu", OpKind::Relu, &[], read_plain, write_plain),
    op("Sigmoid", OpKind::Sigmoid, &[], read_plain, write_plain),
    op("Clip", OpKind::Clip, &["min", "max"], read_clip, write_clip),
    op("Identity", OpKind::Identity, &[], read_plain, write_plain),
    OnnxOp {
        name: "Dropout",
        kind: OpKind::Identity,
        attrs: &["ratio", "seed"],
        read: read_dropout,
        write: None,
        spare_outputs: true,
    },
    op("Add", OpKind::Add, &[], read_plain, write_plain),
    op("Sub", OpKind::Sub, &[], read_plain, write_plain),
    op("Mul", OpKind::Mul, &[], read_plain, write_plain),
    op("Div", OpKind::Div, &[], read_plain, write_plain),
    op("Sqrt", OpKind::Sqrt, &[], read_plain, write_plain),
    op(
        "MaxPool",
        OpKind::MaxPool,
        &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order", "strides"],
        read_pool,
        write_max_pool,
    ),
    op(
        "AveragePool",
        OpKind::AveragePool,
        &["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"],
        read_pool,
        write_average_pool,
    ),
    op("GlobalAveragePool", OpKind::GlobalAveragePool, &[], read_plain, write_plain),
    op(
        "ReduceMean",
        OpKind::ReduceMean,
        &["axes", "keepdims", "noop_with_empty_axes"],
        read_reduce_mean,
        write_reduce_mean,
    ),
    op("Softmax", OpKind::Softmax, &["axis"], read_softmax, write_axis),
    op("Reshape", OpKind::Reshape, &["allowzero"], read_reshape, write_plain),
    op("Flatten", OpKind::Flatten, &["axis"], read_flatten, write_axis),
    op("Transpose", OpKind::Transpose, &["perm"], read_transpose, write_transpose),
    op("Concat", OpKind::Concat, &["axis"], read_concat, write_axis),
    op("Gather", OpKind::Gather, &["axis"], read_gather, write_axis),
    OnnxOp {
        spare_outputs: true,
        ..op(
            "LayerNormalization",
            OpKind::LayerNormalization,
            &["axis", "epsilon", "stash_type"],
            read_layer_norm,
            write_layer_norm,
        )
    },
    op("Erf", OpKind::Erf, &[], read_plain, write_plain),
    op("Tanh", OpKind::Tanh, &[], read_plain, write_plain),
    op("Cast", OpKind::Cast, &["to", "saturate"], read_cast, write_cast),
    op("Unsqueeze", OpKind::Unsqueeze, &["axes"], read_axes, write_axes),
    op("Squeeze", OpKind::Squeeze, &["axes"], read_axes, write_axes),
    op(
        "Resize",
        OpKind::Resize,
        &[
            "antialias",
            "axes",
            "coordinate_transformation_mode",
            "cubic_coeff_a",
            "exclude_outside",
            "extrapolation_value",
            "keep_aspect_ratio_policy",
            "mode",
            "nearest_mode",
        ],
        read_resize,
        write_resize,
    ),
    op(
        "QuantizeLinear",
        OpKind::QuantizeLinear,
        &["axis", "block_size", "output_dtype", "saturate"],
        read_quantize,
        write_axis,
    ),
    op("DequantizeLinear", OpKind::DequantizeLinear, &["axis", "block_size"], read_dequantize, write_axis),
];

// ---- ops without attributes ------------------------------------------------------------------------

fn read_plain(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    Ok((Attr::None, r.inputs(node)?))
}

fn write_plain(_: &Attr, _: &mut NodeOut<'_>) -> Result<(), String> {
    Ok(())
}

/// At inference Dropout copies its input. The ratio does not matter then.
fn read_dropout(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    if let Some(training) = r.constant(node, 2)?
        && r.graph.const_bytes(training).is_some_and(|bytes| bytes.iter().any(|&b| b != 0))
    {
        return Err(node.unsupported(" in training mode; export the model for inference"));
    }
    Ok((Attr::None, vec![r.required(node, 0)?]))
}

// ---- one axis --------------------------------------------------------------------------------------

fn write_axis(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Axis(axis) = attr else { return Err(wrong(attr)) };
    out.int("axis", i64::from(*axis));
    Ok(())
}

fn read_flatten(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    Ok((Attr::Axis(node.axis(1)?), r.inputs(node)?))
}

fn read_concat(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    if node.int("axis")?.is_none() {
        return Err(node.attribute("axis", "is absent, it is required"));
    }
    Ok((Attr::Axis(node.axis(0)?), r.inputs(node)?))
}

fn read_gather(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    Ok((Attr::Axis(node.axis(0)?), r.inputs(node)?))
}

/// Before operator set 13 the input was flattened to two dimensions at `axis`, and a softmax taken over the
/// whole second one. That is a softmax along one axis if all dimensions from `axis` on but that one are 1.
fn read_softmax(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    if node.opset >= 13 {
        return Ok((Attr::Axis(node.axis(-1)?), r.inputs(node)?));
    }
    let axis = node.axis(1)?;
    let x = r.required(node, 0)?;
    let dims = r.graph.shape(x);
    let rank = i64::try_from(dims.len()).unwrap_or(i64::MAX);
    let front = if axis < 0 { i64::from(axis).saturating_add(rank) } else { i64::from(axis) };
    let front = usize::try_from(front).ok().filter(|f| *f < dims.len());
    let front = front
        .ok_or_else(|| node.attribute("axis", format!("{axis} does not exist: the input has {rank}")))?;
    let mut wide = dims.iter().enumerate().skip(front).filter(|(_, d)| **d != Dim::Fixed(1));
    let axis = wide.next().map_or(dims.len().saturating_sub(1), |(i, _)| i);
    if wide.next().is_some() {
        return Err(node.unsupported(" over several axes at once; export with operator set 13 or later"));
    }
    let axis = i32::try_from(axis).map_err(|_| node.attribute("axis", "is out of range"))?;
    Ok((Attr::Axis(axis), r.inputs(node)?))
}

// ---- windows ---------------------------------------------------------------------------------------

fn read_conv(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let (x, w) = (r.required(node, 0)?, r.required(node, 1)?);
    let (x_rank, w_dims) = (r.graph.shape(x).len(), r.graph.fixed_shape(w));
    let kernel = match w_dims.as_deref() {
        Some([_, _, kh, kw]) if x_rank == 4 => [*kh, *kw],
        Some(dims) => {
            let (x, w) = (x_rank, dims.len());
            return Err(node.unsupported(&format!(
                " of an input with {x} and a weight with {w} dimensions: only 2-D, both 4"
            )));
        }
        None => return Err(node.unsupported(" with a weight of symbolic shape")),
    };
    let mut sizes = [0; 2];
    for (size, dim) in sizes.iter_mut().zip(kernel) {
        *size = u32::try_from(dim).ok().filter(|k| (1..=u32::MAX >> 1).contains(k)).ok_or_else(|| {
            node.arity(format!("the weight's kernel is {kernel:?}, each must be in 1..2^31"))
        })?;
    }
    if let Some(given) = node.sizes::<2>("kernel_shape", 1)?
        && given != sizes
    {
        return Err(node.attribute("kernel_shape", format!("is {given:?}, the weight has {sizes:?}")));
    }
    let group = node.int("group")?.unwrap_or(1);
    let group = u32::try_from(group).ok().filter(|g| *g >= 1);
    let group = group.ok_or_else(|| node.attribute("group", "must be at least 1 and below 2^32"))?;
    let window = read_window(r, node, x, sizes)?;
    Ok((Attr::Conv(ConvAttr { window, group }), r.inputs(node)?))
}

fn read_pool(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let x = r.required(node, 0)?;
    let kernel = node.sizes::<2>("kernel_shape", 1)?;
    let kernel = kernel.ok_or_else(|| node.attribute("kernel_shape", "is absent, it is required"))?;
    node.flag("storage_order", false)?;
    let attr = PoolAttr {
        window: read_window(r, node, x, kernel)?,
        ceil_mode: node.flag("ceil_mode", false)?,
        count_include_pad: node.flag("count_include_pad", false)?,
    };
    Ok((Attr::Pool(attr), r.inputs(node)?))
}

fn read_window(r: &Reader<'_>, node: &Node<'_>, x: ValueId, kernel: [u32; 2]) -> Result<Window> {
    let stride = node.sizes::<2>("strides", 1)?.unwrap_or([1, 1]);
    let dilation = node.sizes::<2>("dilations", 1)?.unwrap_or([1, 1]);
    let given = node.sizes::<4>("pads", 0)?;
    let window = Window { kernel, stride, dilation, pads: given.unwrap_or([0; 4]) };
    let upper = match node.text("auto_pad")?.unwrap_or("NOTSET") {
        "NOTSET" => return Ok(window),
        _ if given.is_some_and(|pads| pads != [0; 4]) => {
            return Err(node.attribute("auto_pad", "stands beside 'pads'; only one of them may"));
        }
        "VALID" => return Ok(window),
        "SAME_UPPER" => true,
        "SAME_LOWER" => false,
        other => return Err(node.attribute("auto_pad", format!("'{other}' is not known"))),
    };
    let [_, _, h, w] = r.graph.shape(x) else {
        return Err(node.unsupported(" of an input that is not 4-D"));
    };
    let (Some(h), Some(w)) = (h.fixed(), w.fixed()) else {
        return Err(node.unsupported(
            " with auto_pad SAME where height or width is symbolic: fix them, or export explicit pads",
        ));
    };
    let too_large = || node.attribute("auto_pad", "pads are larger than 2^31");
    let [kh, kw] = kernel;
    let [sh, sw] = stride;
    let [dh, dw] = dilation;
    let (top, bottom) = same_pads(h, kh, sh, dh, upper).ok_or_else(too_large)?;
    let (left, right) = same_pads(w, kw, sw, dw, upper).ok_or_else(too_large)?;
    Ok(Window { pads: [top, left, bottom, right], ..window })
}

/// Pads before and after that give `ceil(size / stride)` positions; the odd one goes behind if `upper`.
fn same_pads(size: u64, kernel: u32, stride: u32, dilation: u32, upper: bool) -> Option<(u32, u32)> {
    let steps = size.div_ceil(u64::from(stride)).checked_sub(1)?;
    let reach = u64::from(kernel).checked_sub(1)?.checked_mul(u64::from(dilation))?.checked_add(1)?;
    let total = steps.checked_mul(u64::from(stride))?.checked_add(reach)?.saturating_sub(size);
    let total = u32::try_from(total).ok().filter(|t| *t <= u32::MAX >> 1)?;
    let small = total >> 1;
    let large = total.checked_sub(small)?;
    Some(if upper { (small, large) } else { (large, small) })
}

fn write_window(w: &Window, dilations: bool, out: &mut NodeOut<'_>) {
    out.ints("kernel_shape", w.kernel.map(i64::from));
    out.ints("strides", w.stride.map(i64::from));
    out.ints("pads", w.pads.map(i64::from));
    if dilations {
        out.ints("dilations", w.dilation.map(i64::from));
    }
}

fn write_conv(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Conv(conv) = attr else { return Err(wrong(attr)) };
    write_window(&conv.window, true, out);
    out.int("group", i64::from(conv.group));
    Ok(())
}

fn write_max_pool(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Pool(pool) = attr else { return Err(wrong(attr)) };
    write_window(&pool.window, true, out);
    out.int("ceil_mode", i64::from(pool.ceil_mode));
    Ok(())
}

/// Dilated average pooling came with operator set 19.
fn write_average_pool(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Pool(pool) = attr else { return Err(wrong(attr)) };
    if pool.window.dilation != [1, 1] {
        return Err("average pooling with a dilation needs operator set 19, 17 is written".to_string());
    }
    write_window(&pool.window, false, out);
    out.int("ceil_mode", i64::from(pool.ceil_mode));
    out.int("count_include_pad", i64::from(pool.count_include_pad));
    Ok(())
}

// ---- the rest --------------------------------------------------------------------------------------

fn read_gemm(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let attr = GemmAttr {
        alpha: node.finite("alpha", 1.0)?,
        beta: node.finite("beta", 1.0)?,
        trans_a: node.flag("transA", false)?,
        trans_b: node.flag("transB", false)?,
    };
    Ok((Attr::Gemm(attr), r.inputs(node)?))
}

fn write_gemm(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Gemm(gemm) = attr else { return Err(wrong(attr)) };
    out.float("alpha", gemm.alpha);
    out.float("beta", gemm.beta);
    out.int("transA", i64::from(gemm.trans_a));
    out.int("transB", i64::from(gemm.trans_b));
    Ok(())
}

fn read_batch_norm(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    if node.flag("training_mode", false)? {
        return Err(node.unsupported(" in training mode; export the model for inference"));
    }
    node.finite("momentum", 0.9)?;
    Ok((Attr::Epsilon(node.finite("epsilon", 1e-5)?), r.inputs(node)?))
}

fn write_batch_norm(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Epsilon(epsilon) = attr else { return Err(wrong(attr)) };
    out.float("epsilon", *epsilon);
    Ok(())
}

/// Bounds are inputs since operator set 11; some exporters go on writing them as attributes.
fn read_clip(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let bound = |i: usize, name: &str, absent: f32| -> Result<f32> {
        let input = match r.constant(node, i)? {
            None => None,
            Some(v) => match r.graph.const_f32(v).as_deref() {
                Some([bound]) => Some(*bound),
                _ => return Err(node.arity(format!("'{name}' must be one f32"))),
            },
        };
        match (input, node.float(name)?) {
            (Some(_), Some(_)) => Err(node.attribute(name, "stands beside the input of that name")),
            (Some(v), None) | (None, Some(v)) if v.is_nan() => Err(node.attribute(name, "is not a number")),
            (input, attr) => Ok(input.or(attr).unwrap_or(absent)),
        }
    };
    let attr = ClipAttr { min: bound(1, "min", f32::NEG_INFINITY)?, max: bound(2, "max", f32::INFINITY)? };
    if node.proto.input.len() > 3 {
        return Err(node.arity(format!("it takes 1 to 3 inputs, not {}", node.proto.input.len())));
    }
    Ok((Attr::Clip(attr), vec![r.required(node, 0)?]))
}

fn write_clip(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Clip(clip) = attr else { return Err(wrong(attr)) };
    if clip.min > f32::NEG_INFINITY {
        out.constant("min", Constant::scalar_f32(clip.min));
    } else if clip.max < f32::INFINITY {
        out.absent();
    }
    if clip.max < f32::INFINITY {
        out.constant("max", Constant::scalar_f32(clip.max));
    }
    Ok(())
}

/// Axes are an attribute up to operator set 17, an input from 18 on.
fn read_reduce_mean(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let from_input = match r.constant(node, 1)? {
        None => None,
        Some(v) => Some(
            r.graph
                .const_i64(v)
                .ok_or_else(|| node.arity(format!("axes are {}, they must be i64", r.dtype(v))))?,
        ),
    };
    let (attr, input) = (node.ints("axes")?, from_input.as_deref());
    if attr.is_some() && node.opset >= 18 {
        return Err(node.attribute("axes", "is an input since operator set 18"));
    }
    if node.proto.input.len() > 2 || (input.is_some() && node.opset < 18) {
        return Err(node.arity("it takes x and, from operator set 18 on, axes".to_string()));
    }
    let axes = input.or(attr).unwrap_or_default();
    if axes.is_empty() && node.flag("noop_with_empty_axes", false)? {
        return Err(node.unsupported(" without axes where that means to do nothing; remove the node"));
    }
    let axes =
        Axes::new(axes).ok_or_else(|| node.attribute("axes", format!("{axes:?} are not at most 8 axes")))?;
    let attr = ReduceAttr { axes, keep_dims: node.flag("keepdims", true)? };
    Ok((Attr::Reduce(attr), vec![r.required(node, 0)?]))
}

fn write_reduce_mean(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Reduce(reduce) = attr else { return Err(wrong(attr)) };
    if !reduce.axes.as_slice().is_empty() {
        out.ints("axes", reduce.axes.as_slice().iter().map(|a| i64::from(*a)));
    }
    out.int("keepdims", i64::from(reduce.keep_dims));
    Ok(())
}

/// In the graph a 0 copies the input's dimension; with `allowzero` it would be a dimension of size zero.
fn read_reshape(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let shape = r.constant(node, 1)?.and_then(|v| r.graph.const_i64(v));
    let shape = shape.ok_or_else(|| node.arity("its shape must be an i64 list".to_string()))?;
    if node.flag("allowzero", false)? && shape.contains(&0) {
        return Err(node.unsupported(" to a tensor without elements (allowzero)"));
    }
    Ok((Attr::None, r.inputs(node)?))
}

/// In the graph sums are f32, whatever `stash_type` says.
fn read_layer_norm(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    node.int("stash_type")?;
    let attr = NormAttr { axis: node.axis(-1)?, epsilon: node.finite("epsilon", 1e-5)? };
    Ok((Attr::Norm(attr), r.inputs(node)?))
}

fn write_layer_norm(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Norm(norm) = attr else { return Err(wrong(attr)) };
    out.int("axis", i64::from(norm.axis));
    out.float("epsilon", norm.epsilon);
    Ok(())
}

fn read_cast(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    node.flag("saturate", true)?;
    let code = node.int("to")?.ok_or_else(|| node.attribute("to", "is absent, it is required"))?;
    let code = i32::try_from(code).map_err(|_| node.attribute("to", format!("is {code}")))?;
    Ok((Attr::Cast(crate::tensor::dtype(code, &node.name)?), r.inputs(node)?))
}

fn write_cast(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Cast(dtype) = attr else { return Err(wrong(attr)) };
    out.int("to", i64::from(crate::tensor::code(*dtype)));
    Ok(())
}

/// Axes are an attribute before operator set 13, an input from then on; Squeeze may have none.
fn read_axes(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let input = match r.constant(node, 1)? {
        None => None,
        Some(v) => {
            let axes = r.graph.const_i64(v);
            Some(axes.ok_or_else(|| node.arity(format!("axes are {}, they must be i64", r.dtype(v))))?)
        }
    };
    let attr = node.ints("axes")?;
    if (attr.is_some() && node.opset >= 13) || (input.is_some() && node.opset < 13) {
        return Err(node.attribute("axes", "is an input since operator set 13, an attribute before"));
    }
    let axes = match (input.as_deref(), attr) {
        (Some(axes), _) | (None, Some(axes)) => axes,
        (None, None) if node.proto.op_type == "Squeeze" => &[],
        (None, None) => return Err(node.attribute("axes", "is absent, it is required")),
    };
    let axes =
        Axes::new(axes).ok_or_else(|| node.attribute("axes", format!("{axes:?} are not at most 8 axes")))?;
    Ok((Attr::Axes(axes), vec![r.required(node, 0)?]))
}

fn write_axes(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Axes(axes) = attr else { return Err(wrong(attr)) };
    if !axes.as_slice().is_empty() {
        let axes: Vec<i64> = axes.as_slice().iter().map(|a| i64::from(*a)).collect();
        out.constant("axes", Constant::list_i64(&axes));
    }
    Ok(())
}

fn read_transpose(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let perm = node.ints("perm")?.unwrap_or_default();
    let perm =
        Axes::new(perm).ok_or_else(|| node.attribute("perm", format!("{perm:?} are not at most 8 axes")))?;
    Ok((Attr::Perm(perm), r.inputs(node)?))
}

fn write_transpose(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Perm(perm) = attr else { return Err(wrong(attr)) };
    if !perm.as_slice().is_empty() {
        out.ints("perm", perm.as_slice().iter().map(|a| i64::from(*a)));
    }
    Ok(())
}

/// The nearest neighbour, enlarged by whole factors: then asymmetric coordinates rounded down and half-pixel ones
/// rounded to nearest both repeat every pixel. The region of interest is for cropping modes only.
fn read_resize(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let x = r.required(node, 0)?;
    let mode = node.text("mode")?.unwrap_or("nearest");
    let coordinates = node.text("coordinate_transformation_mode")?.unwrap_or("half_pixel");
    let nearest = node.text("nearest_mode")?.unwrap_or("round_prefer_floor");
    let repeats = match coordinates {
        "asymmetric" => nearest == "floor",
        "half_pixel" => matches!(nearest, "round_prefer_floor" | "round_prefer_ceil"),
        _ => false,
    };
    if mode != "nearest" || !repeats {
        return Err(node.unsupported(&format!(
            " in mode '{mode}' with coordinates '{coordinates}' and rounding '{nearest}': \
             only nearest with asymmetric and floor, or half_pixel"
        )));
    }
    if node.ints("axes")?.is_some() {
        return Err(node.unsupported(" with 'axes': give a scale for every dimension"));
    }
    let [_, _, h, w] = *r.graph.shape(x) else {
        return Err(node.unsupported(" of an input that is not 4-D"));
    };
    let scales = match (r.constant(node, 2)?, r.constant(node, 3)?) {
        (Some(scales), None) => r.graph.const_f32(scales).map(|s| s.into_owned()),
        (None, Some(sizes)) => r.graph.const_i64(sizes).and_then(|s| match (s.as_ref(), h, w) {
            ([_, _, oh, ow], Dim::Fixed(h), Dim::Fixed(w)) => {
                // A quotient that is no whole number is refused below, and sizes beyond 2^24 with it.
                let ratio = |size: i64, from: u64| {
                    let size = u64::try_from(size).ok()?;
                    let whole = size.checked_rem(from)? == 0;
                    let times = u16::try_from(size.checked_div(from)?).ok()?;
                    Some(if whole { f32::from(times) } else { 0.0 })
                };
                Some(vec![1.0, 1.0, ratio(*oh, h)?, ratio(*ow, w)?])
            }
            _ => None,
        }),
        _ => None,
    };
    let scale = |s: f32| (1..=64u8).find(|n| f32::from(*n) == s).map(u32::from);
    match scales.as_deref() {
        Some([1.0, 1.0, h, w]) if scale(*h).is_some() && scale(*w).is_some() => {
            let scale = [scale(*h).unwrap_or(1), scale(*w).unwrap_or(1)];
            Ok((Attr::Resize(ResizeAttr { scale }), vec![x]))
        }
        _ => Err(node.unsupported(" by anything but constant whole factors up to 64 of height and width")),
    }
}

fn write_resize(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Resize(resize) = attr else { return Err(wrong(attr)) };
    let mut scales = [1.0; 4];
    for (to, from) in scales.iter_mut().skip(2).zip(resize.scale) {
        *to = u16::try_from(from).map(f32::from).map_err(|_| format!("a scale of {from} is too large"))?;
    }
    out.text("mode", "nearest");
    out.text("coordinate_transformation_mode", "asymmetric");
    out.text("nearest_mode", "floor");
    out.absent();
    out.constant("scales", Constant::list_f32(&scales));
    Ok(())
}

fn read_quantize(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    node.flag("saturate", true)?;
    let dtype = match node.int("output_dtype")? {
        None | Some(0) => None,
        Some(code) => {
            let code =
                i32::try_from(code).map_err(|_| node.attribute("output_dtype", format!("is {code}")))?;
            Some(crate::tensor::dtype(code, &node.name)?)
        }
    };
    let (attr, inputs) = read_scaled(r, node, dtype.unwrap_or(DType::U8))?;
    if let (Some(want), [_, _, zero]) = (dtype, inputs.as_slice())
        && r.dtype(*zero) != want
    {
        return Err(node.attribute("output_dtype", "differs from the type of the zero point"));
    }
    Ok((attr, inputs))
}

fn read_dequantize(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let x = r.required(node, 0)?;
    let dtype = r.dtype(x);
    read_scaled(r, node, dtype)
}

/// x, scale and zero point; a zero point that is left out is 0, of type `zero`.
fn read_scaled(r: &mut Reader<'_>, node: &Node<'_>, zero: DType) -> Result<(Attr, Vec<ValueId>)> {
    if node.int("block_size")?.unwrap_or(0) != 0 {
        return Err(node.unsupported(" in blocks; quantise per tensor or per channel"));
    }
    if node.proto.input.len() > 3 {
        return Err(node.arity(format!("it takes 2 or 3 inputs, not {}", node.proto.input.len())));
    }
    let (x, scale) = (r.required(node, 0)?, r.required(node, 1)?);
    let zero = match r.input(node, 2)? {
        Some(zero) => zero,
        None => {
            let dims = r.graph.fixed_shape(scale);
            let dims = dims.filter(|d| d.len() <= 1 && d.iter().all(|n| *n <= CHANNELS_MAX));
            let dims = dims.ok_or_else(|| {
                node.unsupported(" with a scale that is neither a number nor a list of them")
            })?;
            let elements: usize = dims.iter().product();
            let bytes = Bytes::from(vec![0; elements.saturating_mul(zero.size())]);
            let output = node.proto.output.first().map_or(node.name.as_str(), String::as_str);
            r.add_constant(&format!("{output}.zero_point"), Constant { dtype: zero, dims, bytes })?
        }
    };
    Ok((Attr::Axis(node.axis(1)?), vec![x, scale, zero]))
}

fn wrong(attr: &Attr) -> String {
    format!("cannot carry {} attributes", attr.variant())
}

/// The row under which ops of `kind` are written.
pub fn row_of(kind: OpKind) -> Option<&'static OnnxOp> {
    ONNX_OPS.iter().find(|row| row.kind == kind && row.write.is_some())
}
