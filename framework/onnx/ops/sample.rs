//! Resizing and sampling of images.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::params::{choice, read_params, write_params};
use super::windows::{read_columns, write_columns};
use super::{OnnxOp, Read, params, since, wrong};
use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::tensor::Constant;
use crate::write::NodeOut;
use lacuna_ir::op::{Attr, ResizeAttr};
use lacuna_ir::params::Params;
use lacuna_ir::{Dim, OpKind, ValueId};

const RESIZE: &[&str] = &[
    "antialias",
    "axes",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "extrapolation_value",
    "keep_aspect_ratio_policy",
    "mode",
    "nearest_mode",
];

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    row("Resize", OpKind::Resize, RESIZE, Read::Ops(read_resize), write_resize),
    row("Resize", OpKind::Interpolate, &[], Read::Never, write_interpolate),
    OnnxOp {
        write: None,
        ..row("Upsample", OpKind::Interpolate, &["mode", "scales"], Read::Ops(read_upsample), write_params)
    },
    OnnxOp {
        read: Read::Ops(read_grid_sample),
        attrs: &["mode", "padding_mode", "align_corners"],
        write: Some(write_grid_sample),
        ..params("GridSample", OpKind::GridSample, &[])
    },
    since(20, "AffineGrid", OpKind::AffineGrid),
    OnnxOp {
        read: Read::Ops(read_roi_align),
        attrs: &[
            "mode",
            "output_height",
            "output_width",
            "sampling_ratio",
            "spatial_scale",
            "coordinate_transformation_mode",
        ],
        ..params("RoiAlign", OpKind::RoiAlign, &[])
    },
    OnnxOp {
        since: 18,
        ..row(
            "Col2Im",
            OpKind::Col2Im,
            &["dilations", "pads", "strides"],
            Read::Ops(read_columns),
            write_columns,
        )
    },
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

/// An operand that is there and lists something.
fn listed(r: &Reader<'_>, node: &Node<'_>, i: usize) -> Result<Option<ValueId>> {
    Ok(r.input(node, i)?.filter(|v| r.graph.shape(*v) != [Dim::Fixed(0)]))
}

fn read_resize(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let x = r.required(node, 0)?;
    if node.opset >= 11
        && let Some(attr) = whole_factors(r, node, x)?
    {
        return Ok(vec![r.op(node, OpKind::Resize, Attr::Resize(attr), &[x])?]);
    }
    let kind = OpKind::Interpolate;
    let mut numbers = read_params(node, kind)?;
    if node.opset < 11 {
        numbers = numbers.with(kind, "coordinate_transformation_mode", 1).with(kind, "nearest_mode", 2);
        return interpolate(r, node, numbers, [None, listed(r, node, 1)?, None], None);
    }
    let operands = [listed(r, node, 1)?, listed(r, node, 2)?, listed(r, node, 3)?];
    let axes = node.ints("axes")?;
    interpolate(r, node, numbers, operands, axes)
}

/// `operands`: region, scales, sizes.
fn interpolate(
    r: &mut Reader<'_>,
    node: &Node<'_>,
    numbers: Params,
    operands: [Option<ValueId>; 3],
    axes: Option<&[i64]>,
) -> Result<Vec<ValueId>> {
    let [roi, scales, sizes] = operands.map(|v| v.unwrap_or(ValueId::NONE));
    let mut inputs = vec![r.required(node, 0)?, roi, scales];
    match axes {
        Some(axes) => inputs.extend([sizes, r.list(node, "axes", axes)?]),
        None => inputs.extend(operands.last().copied().flatten()),
    }
    Ok(vec![r.op(node, OpKind::Interpolate, Attr::Params(numbers), &inputs)?])
}

/// Nearest or linear, of asymmetric coordinates rounded down. Scales are an attribute before operator set 9.
fn read_upsample(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let kind = OpKind::Interpolate;
    let mode = choice(node, "mode", &["nearest", "linear"], node.text("mode")?.unwrap_or("nearest"))?;
    let numbers = Params::usual(kind)
        .with(kind, "mode", mode)
        .with(kind, "coordinate_transformation_mode", 1)
        .with(kind, "nearest_mode", 2);
    let scales = match node.floats("scales")? {
        Some(scales) if node.opset < 9 => {
            Some(r.add_constant(&format!("{}.scales", node.name), Constant::list_f32(scales))?)
        }
        _ => r.input(node, 1)?,
    };
    interpolate(r, node, numbers, [None, scales, None], None)
}

/// The nearest neighbour, enlarged by whole factors: then asymmetric coordinates rounded down (TensorFlow's half-pixel ones, too) and half-pixel ones
/// rounded to nearest both repeat every pixel. The region of interest is for cropping modes only.
fn whole_factors(r: &Reader<'_>, node: &Node<'_>, x: ValueId) -> Result<Option<ResizeAttr>> {
    let mode = node.text("mode")?.unwrap_or("nearest");
    let coordinates = node.text("coordinate_transformation_mode")?.unwrap_or("half_pixel");
    let nearest = node.text("nearest_mode")?.unwrap_or("round_prefer_floor");
    let repeats = match coordinates {
        "asymmetric" | "tf_half_pixel_for_nn" => nearest == "floor",
        "half_pixel" => matches!(nearest, "round_prefer_floor" | "round_prefer_ceil"),
        _ => false,
    };
    let stretch = node.text("keep_aspect_ratio_policy")?.is_none_or(|p| p == "stretch");
    let [_, _, h, w] = *r.graph.shape(x) else { return Ok(None) };
    if mode != "nearest" || !repeats || !stretch || node.ints("axes")?.is_some() {
        return Ok(None);
    }
    let scales = match (listed(r, node, 2)?, listed(r, node, 3)?) {
        (Some(scales), None) => r.graph.const_f32(scales).map(|s| s.into_owned()),
        (None, Some(sizes)) => r.graph.const_i64(sizes).and_then(|s| match (s.as_ref(), h, w) {
            ([_, _, oh, ow], Dim::Fixed(h), Dim::Fixed(w)) => {
                // A quotient that is no whole number is not one below, and neither are sizes beyond 2^24.
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
    Ok(match scales.as_deref() {
        Some([1.0, 1.0, h, w]) => scale(*h).zip(scale(*w)).map(|(h, w)| ResizeAttr { scale: [h, w] }),
        _ => None,
    })
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

fn write_interpolate(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let [.., antialias, policy] = attr.numbers::<8>()?;
    if let Some(axes) = out.take_ints(4)? {
        out.ints("axes", axes);
        out.needs(18);
    }
    let symmetric = attr.numbers::<2>()?.last().is_some_and(|p| p.choice() == 5);
    out.needs(match (antialias.flag() || policy.choice() > 0, symmetric) {
        (_, true) => 19,
        (true, _) => 18,
        _ => 0,
    });
    write_params(attr, out)?;
    if antialias.flag() || policy.choice() > 0 {
        Ok(())
    } else {
        out.forget(&["antialias", "keep_aspect_ratio_policy"])
    }
}

/// Names of modes changed with operator set 20.
fn read_grid_sample(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let kind = OpKind::GridSample;
    let mode = match node.text("mode")?.unwrap_or("linear") {
        "bilinear" => "linear",
        "bicubic" => "cubic",
        mode => mode,
    };
    let padding = node.text("padding_mode")?.unwrap_or("zeros");
    let numbers = Params::usual(kind)
        .with(kind, "mode", choice(node, "mode", &["linear", "nearest", "cubic"], mode)?)
        .with(
            kind,
            "padding_mode",
            choice(node, "padding_mode", &["zeros", "border", "reflection"], padding)?,
        )
        .with(kind, "align_corners", i32::from(node.flag("align_corners", false)?));
    let operands = r.inputs(node)?;
    Ok(vec![r.op(node, kind, Attr::Params(numbers), &operands)?])
}

fn write_grid_sample(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    out.needs(20);
    write_params(attr, out)
}

/// Regions were aligned otherwise before operator set 16.
fn read_roi_align(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let kind = OpKind::RoiAlign;
    let mut numbers = read_params(node, kind)?;
    if node.opset < 16 {
        numbers = numbers.with(kind, "coordinate_transformation_mode", 1);
    }
    let operands = r.inputs(node)?;
    Ok(vec![r.op(node, kind, Attr::Params(numbers), &operands)?])
}
