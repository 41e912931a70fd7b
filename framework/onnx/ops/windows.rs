//! Convolutions and pools: windows of one dimension become windows of two, those of three have kinds of their own.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::{OnnxOp, Read, plain, wrong};
use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::tensor::Constant;
use crate::write::NodeOut;
use lacuna_ir::op::{Attr, Axes, ConvAttr, PoolAttr, SpatialAttr, Window};
use lacuna_ir::{DType, OpKind, ValueId};

const CONV: &[&str] = &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];
const POOL: &[&str] = &[
    "auto_pad",
    "ceil_mode",
    "count_include_pad",
    "dilations",
    "kernel_shape",
    "p",
    "pads",
    "storage_order",
    "strides",
];
const TRANSPOSE: &[&str] =
    &["auto_pad", "dilations", "group", "kernel_shape", "output_padding", "output_shape", "pads", "strides"];

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    row("Conv", OpKind::Conv, CONV, Read::Ops(read_conv), write_conv),
    row("Conv", OpKind::ConvNd, &[], Read::Never, write_spatial),
    row("ConvTranspose", OpKind::ConvTranspose, TRANSPOSE, Read::Ops(read_conv_transpose), write_spatial),
    row("MaxPool", OpKind::MaxPool, POOL, Read::Ops(read_pool), write_max_pool),
    row("MaxPool", OpKind::MaxPoolNd, &[], Read::Never, write_spatial),
    row("AveragePool", OpKind::AveragePool, POOL, Read::Ops(read_pool), write_average_pool),
    row("AveragePool", OpKind::AveragePoolNd, &[], Read::Never, write_spatial),
    row("LpPool", OpKind::LpPool, POOL, Read::Ops(read_pool), write_spatial),
    row(
        "MaxUnpool",
        OpKind::MaxUnpool,
        &["kernel_shape", "pads", "strides"],
        Read::Ops(read_pool),
        write_spatial,
    ),
    plain("GlobalAveragePool", OpKind::GlobalAveragePool),
    plain("GlobalMaxPool", OpKind::GlobalMaxPool),
];

const fn row(
    name: &'static str,
    kind: OpKind,
    attrs: &'static [&'static str],
    read: Read,
    write: super::WriteFn,
) -> OnnxOp {
    OnnxOp { name, kind, attrs, read, write: Some(write), since: 0, spare_outputs: false }
}

// ---- attributes ------------------------------------------------------------------------------------

/// Sizes along each dimension: `n` of them, each between `min` and 2^31 - 1.
fn sizes(node: &Node<'_>, name: &str, n: usize, min: u32) -> Result<Option<Vec<u32>>> {
    let Some(ints) = node.ints(name)? else { return Ok(None) };
    if ints.len() != n {
        return Err(node.attribute(name, format!("has {} numbers, there must be {n}", ints.len())));
    }
    let size = |v: &i64| {
        let size = u32::try_from(*v).ok().filter(|v| *v >= min && *v <= u32::MAX >> 1);
        size.ok_or_else(|| node.attribute(name, format!("holds {v}, it must be in {min}..2^31")))
    };
    ints.iter().map(size).collect::<Result<Vec<u32>>>().map(Some)
}

fn fill(slots: &mut [u32; 3], sizes: &[u32]) {
    slots.iter_mut().zip(sizes).for_each(|(slot, size)| *slot = *size);
}

/// The window of a node over `x`, whose kernel has these sizes (of the weight), or those that the node gives.
fn read_window(r: &Reader<'_>, node: &Node<'_>, x: ValueId, weight: Option<Vec<u32>>) -> Result<SpatialAttr> {
    let dims = r.graph.shape(x);
    let n = dims.len().saturating_sub(2);
    let rank = u8::try_from(n).ok().filter(|n| (1..=3).contains(n));
    let rank = rank.ok_or_else(|| {
        node.unsupported(&format!(" of an input with {} dimensions: it may have 3, 4 or 5", dims.len()))
    })?;
    let given = sizes(node, "kernel_shape", n, 1)?;
    let kernel = match (weight, given) {
        (Some(weight), Some(given)) if weight != given => {
            return Err(node.attribute("kernel_shape", format!("is {given:?}, the weight has {weight:?}")));
        }
        (Some(kernel), _) | (None, Some(kernel)) => kernel,
        (None, None) => return Err(node.attribute("kernel_shape", "is absent, it is required")),
    };
    if kernel.len() != n {
        return Err(
            node.arity(format!("the weight is for {} spatial dimensions, the input has {n}", kernel.len()))
        );
    }
    let mut a = SpatialAttr { rank, ..SpatialAttr::default() };
    fill(&mut a.kernel, &kernel);
    fill(&mut a.stride, &sizes(node, "strides", n, 1)?.unwrap_or_default());
    fill(&mut a.dilation, &sizes(node, "dilations", n, 1)?.unwrap_or_default());
    let pads = sizes(node, "pads", n.saturating_mul(2), 0)?;
    if let Some((before, after)) = pads.as_deref().and_then(|pads| pads.split_at_checked(n)) {
        fill(&mut a.before, before);
        fill(&mut a.after, after);
    }
    let group = node.int("group")?.unwrap_or(1);
    a.group = u32::try_from(group)
        .ok()
        .filter(|g| *g >= 1)
        .ok_or_else(|| node.attribute("group", "must be at least 1 and below 2^32"))?;
    let p = node.int("p")?.unwrap_or(2);
    a.p =
        u32::try_from(p).ok().filter(|p| *p >= 1).ok_or_else(|| node.attribute("p", "must be at least 1"))?;
    a.ceil_mode = node.flag("ceil_mode", false)?;
    a.count_include_pad = node.flag("count_include_pad", false)?;
    a.column_major = node.flag("storage_order", false)?;
    if auto_pad(node)? != Some(Auto::Valid)
        && auto_pad(node)?.is_some()
        && pads.is_some_and(|p| p.iter().any(|p| *p > 0))
    {
        return Err(node.attribute("auto_pad", "stands beside 'pads'; only one of them may"));
    }
    Ok(a)
}

#[derive(Clone, Copy, PartialEq)]
enum Auto {
    Valid,
    /// The odd element of padding goes behind, or before.
    Same {
        upper: bool,
    },
}

fn auto_pad(node: &Node<'_>) -> Result<Option<Auto>> {
    Ok(match node.text("auto_pad")?.unwrap_or("NOTSET") {
        "NOTSET" => None,
        "VALID" => Some(Auto::Valid),
        "SAME_UPPER" => Some(Auto::Same { upper: true }),
        "SAME_LOWER" => Some(Auto::Same { upper: false }),
        other => return Err(node.attribute("auto_pad", format!("'{other}' is not known"))),
    })
}

/// The spatial dimensions of x as numbers, for pads that depend on them.
fn fixed_sizes(r: &Reader<'_>, node: &Node<'_>, x: ValueId) -> Result<Vec<u64>> {
    let dims = r.graph.shape(x).iter().skip(2).map(|d| d.fixed()).collect::<Option<Vec<u64>>>();
    dims.ok_or_else(|| {
        node.unsupported(
            " with auto_pad SAME where height or width is symbolic: fix them, or export explicit pads",
        )
    })
}

/// With `auto_pad` SAME the pads follow from the size of x.
fn resolve_same(r: &Reader<'_>, node: &Node<'_>, x: ValueId, a: &mut SpatialAttr) -> Result<()> {
    let Some(Auto::Same { upper }) = auto_pad(node)? else { return Ok(()) };
    let sizes = fixed_sizes(r, node, x)?;
    let windows = a.kernel.iter().zip(&a.stride).zip(&a.dilation);
    for ((size, ((k, s), d)), (before, after)) in
        sizes.iter().zip(windows).zip(a.before.iter_mut().zip(a.after.iter_mut()))
    {
        let pads = same_pads(*size, *k, *s, *d, upper);
        (*before, *after) = pads.ok_or_else(|| node.attribute("auto_pad", "pads are larger than 2^31"))?;
    }
    Ok(())
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

/// A window of two dimensions; one of one dimension is one row high.
fn flat(a: &SpatialAttr) -> Window {
    let [k0, k1, _] = a.kernel;
    let [s0, s1, _] = a.stride;
    let [d0, d1, _] = a.dilation;
    let ([b0, b1, _], [e0, e1, _]) = (a.before, a.after);
    match a.rank {
        1 => Window { kernel: [1, k0], stride: [1, s0], dilation: [1, d0], pads: [0, b0, 0, e0] },
        _ => Window { kernel: [k0, k1], stride: [s0, s1], dilation: [d0, d1], pads: [b0, b1, e0, e1] },
    }
}

fn row_axis(node: &Node<'_>) -> Result<Attr> {
    Axes::new(&[2]).map(Attr::Axes).ok_or_else(|| node.arity("no axis".to_string()))
}

/// `[N,C,L]` as `[N,C,1,L]`: a constant is only looked at otherwise.
fn raised(r: &mut Reader<'_>, node: &Node<'_>, x: ValueId) -> Result<ValueId> {
    let known = r.graph.fixed_shape(x).zip(r.graph.const_bytes(x).cloned());
    match known {
        Some((mut dims, bytes)) if dims.len() == 3 => {
            dims.insert(2, 1);
            r.add_constant(&format!("{}.raised", node.name), Constant { dtype: r.dtype(x), dims, bytes })
        }
        _ => r.op(node, OpKind::Unsqueeze, row_axis(node)?, &[x]),
    }
}

// ---- reading ---------------------------------------------------------------------------------------

/// The sizes of the kernel that a weight holds, if they are known.
fn weight_kernel(r: &Reader<'_>, node: &Node<'_>, w: ValueId) -> Result<Option<Vec<u32>>> {
    let Some(dims) = r.graph.fixed_shape(w) else { return Ok(None) };
    let size = |d: &usize| {
        let size = u32::try_from(*d).ok().filter(|k| (1..=u32::MAX >> 1).contains(k));
        size.ok_or_else(|| node.arity(format!("the weight is {dims:?}: kernels are in 1..2^31")))
    };
    dims.iter().skip(2).map(size).collect::<Result<Vec<u32>>>().map(Some)
}

fn read_conv(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let (x, w) = (r.required(node, 0)?, r.required(node, 1)?);
    let kernel = weight_kernel(r, node, w)?;
    let mut a = read_window(r, node, x, kernel)?;
    resolve_same(r, node, x, &mut a)?;
    let mut operands = r.inputs(node)?;
    let attr = Attr::Conv(ConvAttr { window: flat(&a), group: a.group });
    match a.rank {
        1 => {
            for operand in operands.iter_mut().take(2) {
                *operand = raised(r, node, *operand)?;
            }
            let y = r.op(node, OpKind::Conv, attr, &operands)?;
            Ok(vec![r.op(node, OpKind::Squeeze, row_axis(node)?, &[y])?])
        }
        2 => Ok(vec![r.op(node, OpKind::Conv, attr, &operands)?]),
        _ => Ok(vec![r.op(node, OpKind::ConvNd, Attr::Spatial(a), &operands)?]),
    }
}

/// A convolution over two dimensions, whatever its operands are.
pub(super) fn read_conv_2d(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let (x, w) = (r.required(node, 0)?, r.required(node, 1)?);
    let kernel = weight_kernel(r, node, w)?;
    let mut a = read_window(r, node, x, kernel)?;
    if a.rank != 2 {
        return Err(node.unsupported(" of inputs that are not 4-D"));
    }
    resolve_same(r, node, x, &mut a)?;
    Ok((Attr::Conv(ConvAttr { window: flat(&a), group: a.group }), r.inputs(node)?))
}

/// A pool with one result over floats of two dimensions is what the engine is fast at; one dimension becomes two.
fn read_pool(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let x = r.required(node, 0)?;
    let mut a = read_window(r, node, x, None)?;
    resolve_same(r, node, x, &mut a)?;
    let places = node.proto.output.get(1).is_some_and(|o| !o.is_empty());
    let plain = r.dtype(x) == DType::F32 && !places && a.rank < 3;
    let (ceil_mode, count_include_pad) = (a.ceil_mode, a.count_include_pad);
    let pool = Attr::Pool(PoolAttr { window: flat(&a), ceil_mode, count_include_pad });
    let (kind, general) = match node.proto.op_type.as_str() {
        "MaxPool" => (Some(OpKind::MaxPool).filter(|_| plain), OpKind::MaxPoolNd),
        "AveragePool" => (Some(OpKind::AveragePool).filter(|_| plain), OpKind::AveragePoolNd),
        "LpPool" => (None, OpKind::LpPool),
        _ => (None, OpKind::MaxUnpool),
    };
    match kind {
        Some(kind) if a.rank == 1 => {
            let x = raised(r, node, x)?;
            let y = r.op(node, kind, pool, &[x])?;
            Ok(vec![r.op(node, OpKind::Squeeze, row_axis(node)?, &[y])?])
        }
        Some(kind) => Ok(vec![r.op(node, kind, pool, &[x])?]),
        None => {
            let operands = r.inputs(node)?;
            r.results(node, general, Attr::Spatial(a), &operands)
        }
    }
}

/// `output_shape` and `auto_pad` SAME say how large the result is: the pads follow.
fn read_conv_transpose(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let (x, w) = (r.required(node, 0)?, r.required(node, 1)?);
    let kernel = weight_kernel(r, node, w)?;
    let mut a = read_window(r, node, x, kernel)?;
    let n = usize::from(a.rank);
    fill(&mut a.output_padding, &sizes(node, "output_padding", n, 0)?.unwrap_or_default());
    let wanted = sizes(node, "output_shape", n, 1)?;
    let auto = auto_pad(node)?;
    if wanted.is_some() || matches!(auto, Some(Auto::Same { .. })) {
        let upper = auto == Some(Auto::Same { upper: true });
        for (d, size) in fixed_sizes(r, node, x)?.into_iter().enumerate() {
            let pads = transposed_pads(&mut a, d, size, wanted.as_ref().and_then(|w| w.get(d)).copied());
            let (small, large) =
                pads.ok_or_else(|| node.attribute("output_shape", "is not what the window can make"))?;
            let (before, after) = if upper { (small, large) } else { (large, small) };
            if let (Some(b), Some(e)) = (a.before.get_mut(d), a.after.get_mut(d)) {
                (*b, *e) = (before, after);
            }
        }
    }
    let operands = r.inputs(node)?;
    Ok(vec![r.op(node, OpKind::ConvTranspose, Attr::Spatial(a), &operands)?])
}

/// The smaller and the larger half of what is cut off so that `wanted` elements (`stride` times as many as there are,
/// if not given) are left; what is missing is output padding.
fn transposed_pads(a: &mut SpatialAttr, d: usize, size: u64, wanted: Option<u32>) -> Option<(u32, u32)> {
    let (kernel, stride, dilation) = (*a.kernel.get(d)?, *a.stride.get(d)?, *a.dilation.get(d)?);
    let extra = a.output_padding.get_mut(d)?;
    let size = i64::try_from(size).ok()?;
    let reach = i64::from(kernel).checked_sub(1)?.checked_mul(dilation.into())?.checked_add(1)?;
    let full = i64::from(stride).checked_mul(size.checked_sub(1)?)?.checked_add(reach)?;
    let full = full.checked_add(i64::from(*extra))?;
    let wanted = wanted.map_or_else(|| size.checked_mul(stride.into()), |w| Some(i64::from(w)))?;
    let cut = full.checked_sub(wanted)?;
    if cut < 0 {
        *extra = extra.checked_add(u32::try_from(cut.unsigned_abs()).ok()?)?;
        return Some((0, 0));
    }
    let cut = u32::try_from(cut).ok()?;
    let small = cut >> 1;
    Some((small, cut.checked_sub(small)?))
}

/// Col2Im: the kernel is an operand, the rank is the image's.
pub(super) fn read_columns(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let image = r.required(node, 1)?;
    let n = match r.graph.shape(image) {
        [n] => n.fixed().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=3).contains(n)),
        _ => None,
    };
    let n = n.ok_or_else(|| node.unsupported(" of images that have not one to three dimensions"))?;
    let rank = u8::try_from(n).map_err(|_| node.arity("too many dimensions".to_string()))?;
    let mut a = SpatialAttr { rank, ..SpatialAttr::default() };
    fill(&mut a.stride, &sizes(node, "strides", n, 1)?.unwrap_or_default());
    fill(&mut a.dilation, &sizes(node, "dilations", n, 1)?.unwrap_or_default());
    if let Some((before, after)) =
        sizes(node, "pads", n.saturating_mul(2), 0)?.as_deref().and_then(|pads| pads.split_at_checked(n))
    {
        fill(&mut a.before, before);
        fill(&mut a.after, after);
    }
    let operands = r.inputs(node)?;
    Ok(vec![r.op(node, OpKind::Col2Im, Attr::Spatial(a), &operands)?])
}

// ---- writing ---------------------------------------------------------------------------------------

pub(super) fn write_columns(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    write_spatial(attr, out)?;
    out.forget(&["kernel_shape"])
}

fn write_spatial(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Spatial(a) = attr else { return Err(wrong(attr)) };
    let n = usize::from(a.rank);
    let list = |sizes: &[u32; 3]| -> Vec<i64> { sizes.iter().take(n).map(|s| i64::from(*s)).collect() };
    out.ints("kernel_shape", list(&a.kernel));
    out.ints("strides", list(&a.stride));
    out.ints("pads", list(&a.before).into_iter().chain(list(&a.after)));
    let dilated = list(&a.dilation).iter().any(|d| *d != 1);
    match out.kind {
        OpKind::AveragePoolNd if dilated => out.needs(19),
        OpKind::LpPool if dilated || a.ceil_mode => out.needs(18),
        _ => {}
    }
    if dilated {
        out.ints("dilations", list(&a.dilation));
    }
    match out.kind {
        OpKind::ConvNd | OpKind::ConvTranspose => {
            out.int("group", i64::from(a.group));
        }
        _ => {}
    }
    for (name, value, usual) in [
        ("ceil_mode", u32::from(a.ceil_mode), 0),
        ("count_include_pad", u32::from(a.count_include_pad), 0),
        ("storage_order", u32::from(a.column_major), 0),
        ("p", a.p, 2),
    ] {
        if value != usual {
            out.int(name, i64::from(value));
        }
    }
    if list(&a.output_padding).iter().any(|p| *p != 0) {
        out.ints("output_padding", list(&a.output_padding));
    }
    Ok(())
}

fn write_window(w: &Window, dilations: bool, out: &mut NodeOut<'_>) {
    out.ints("kernel_shape", w.kernel.map(i64::from));
    out.ints("strides", w.stride.map(i64::from));
    out.ints("pads", w.pads.map(i64::from));
    if dilations {
        out.ints("dilations", w.dilation.map(i64::from));
    }
}

pub(super) fn write_conv(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
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
    let dilated = pool.window.dilation != [1, 1];
    if dilated {
        out.needs(19);
    }
    write_window(&pool.window, dilated, out);
    out.int("ceil_mode", i64::from(pool.ceil_mode));
    out.int("count_include_pad", i64::from(pool.count_include_pad));
    Ok(())
}
