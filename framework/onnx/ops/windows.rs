//! Convolutions and pools.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::{OnnxOp, op, read_plain, write_plain, wrong};
use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::write::NodeOut;
use lacuna_ir::op::{Attr, ConvAttr, PoolAttr, Window};
use lacuna_ir::{OpKind, ValueId};

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    op(
        "Conv",
        OpKind::Conv,
        &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"],
        read_conv,
        write_conv,
    ),
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
];

pub fn read_conv(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
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

pub fn write_conv(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
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
