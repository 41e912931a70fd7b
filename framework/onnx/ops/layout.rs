//! Ops that move elements and compute nothing.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::{OnnxOp, op, write_axis, write_plain, wrong};
use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::tensor::Constant;
use crate::write::NodeOut;
use lacuna_ir::op::{Attr, Axes, ResizeAttr};
use lacuna_ir::{Dim, OpKind, ValueId};

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    op("Reshape", OpKind::Reshape, &["allowzero"], read_reshape, write_plain),
    op("Flatten", OpKind::Flatten, &["axis"], read_flatten, write_axis),
    op("Transpose", OpKind::Transpose, &["perm"], read_transpose, write_transpose),
    op("Concat", OpKind::Concat, &["axis"], read_concat, write_axis),
    op("Gather", OpKind::Gather, &["axis"], read_gather, write_axis),
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
];

/// In the graph a 0 copies the input's dimension; with `allowzero` it would be a dimension of size zero.
fn read_reshape(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let shape = r.constant(node, 1)?.and_then(|v| r.graph.const_i64(v));
    let shape = shape.ok_or_else(|| node.arity("its shape must be an i64 list".to_string()))?;
    if node.flag("allowzero", false)? && shape.contains(&0) {
        return Err(node.unsupported(" to a tensor without elements (allowzero)"));
    }
    Ok((Attr::None, r.inputs(node)?))
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
