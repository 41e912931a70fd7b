//! Ops that take parts of a tensor, repeat or pad it, and ops that make tensors of a shape.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::params::{read_params, write_params};
use super::{OnnxOp, Read, function, op, params, plain, since, wrong};
use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::tensor::Constant;
use crate::write::NodeOut;
use lacuna_ir::op::{Attr, Axes, ReduceAttr};
use lacuna_ir::params::Params;
use lacuna_ir::{DType, OpKind, ValueId};

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    params("Shape", OpKind::Shape, &[]),
    function("Size", &[], read_size),
    OnnxOp {
        read: Read::Ops(read_slice),
        attrs: &["starts", "ends", "axes"],
        ..plain("Slice", OpKind::Slice)
    },
    OnnxOp {
        attrs: &["axis", "split", "num_outputs"],
        read: Read::Ops(read_split),
        write: Some(write_split),
        ..params("Split", OpKind::Split, &[])
    },
    OnnxOp {
        attrs: &["mode", "pads", "value"],
        read: Read::Ops(read_pad),
        write: Some(write_pad),
        ..params("Pad", OpKind::Pad, &[])
    },
    plain("Tile", OpKind::Tile),
    plain("Range", OpKind::Range),
    function("ConstantOfShape", &["value"], read_constant_of_shape),
    params("Trilu", OpKind::Trilu, &[]),
    OnnxOp {
        read: Read::Ops(read_eye_like),
        attrs: &["dtype", "k"],
        ..params("EyeLike", OpKind::EyeLike, &[])
    },
    params("DepthToSpace", OpKind::DepthToSpace, &[]),
    params("SpaceToDepth", OpKind::SpaceToDepth, &[]),
    params("ReverseSequence", OpKind::ReverseSequence, &[]),
    OnnxOp {
        since: 18,
        ..op("CenterCropPad", OpKind::CenterCropPad, &["axes"], read_center_crop_pad, write_center_crop_pad)
    },
    params("NonMaxSuppression", OpKind::NonMaxSuppression, &[]),
    params("Compress", OpKind::Compress, &[]),
    params("Unique", OpKind::Unique, &[]),
    plain("NonZero", OpKind::NonZero),
    since(0, "OneHot", OpKind::OneHot),
];

/// The product of the dimensions.
fn read_size(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let x = r.required(node, 0)?;
    let shape = r.op(node, OpKind::Shape, Attr::Params(Params::usual(OpKind::Shape)), &[x])?;
    let all = Axes::new(&[]).ok_or_else(|| node.arity("no axes".to_string()))?;
    let attr = Attr::Reduce(ReduceAttr { axes: all, keep_dims: false });
    Ok(vec![r.op(node, OpKind::ReduceProd, attr, &[shape])?])
}

/// Bounds and axes are attributes before operator set 10.
fn read_slice(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let mut operands = r.inputs(node)?;
    if let (Some(starts), Some(ends)) = (node.ints("starts")?, node.ints("ends")?) {
        if node.opset >= 10 {
            return Err(node.attribute("starts", "is an input since operator set 10"));
        }
        operands.truncate(1);
        operands.push(r.list(node, "starts", starts)?);
        operands.push(r.list(node, "ends", ends)?);
        if let Some(axes) = node.ints("axes")? {
            operands.push(r.list(node, "axes", axes)?);
        }
    }
    Ok(vec![r.op(node, OpKind::Slice, Attr::None, &operands)?])
}

/// Sizes are an attribute before operator set 13. Without sizes there are as many equal parts as outputs.
fn read_split(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let mut operands = r.inputs(node)?;
    if let Some(sizes) = node.ints("split")? {
        if node.opset >= 13 {
            return Err(node.attribute("split", "is an input since operator set 13"));
        }
        operands.push(r.list(node, "split", sizes)?);
    }
    let outputs = i32::try_from(node.proto.output.len()).unwrap_or(i32::MAX);
    if let Some(n) = node.int("num_outputs")?
        && n != i64::from(outputs)
    {
        return Err(node.attribute("num_outputs", format!("is {n}, the node has {outputs}")));
    }
    let parts = if operands.len() > 1 { 0 } else { outputs };
    let numbers = Params::usual(OpKind::Split).with(OpKind::Split, "axis", node.axis(0)?).with(
        OpKind::Split,
        "num_outputs",
        parts,
    );
    r.results(node, OpKind::Split, Attr::Params(numbers), &operands)
}

fn write_split(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    if out.inputs() < 2 {
        out.needs(18);
    }
    write_params(attr, out)
}

/// Pads and value are attributes before operator set 11.
fn read_pad(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let mut operands = r.inputs(node)?;
    if let Some(pads) = node.ints("pads")? {
        if node.opset >= 11 {
            return Err(node.attribute("pads", "is an input since operator set 11"));
        }
        operands.truncate(1);
        operands.push(r.list(node, "pads", pads)?);
        let value = Constant::scalar_f32(node.float("value")?.unwrap_or(0.0));
        operands.push(r.add_constant(&format!("{}.value", node.name), value)?);
    }
    let attr = Attr::Params(read_params(node, OpKind::Pad)?);
    Ok(vec![r.op(node, OpKind::Pad, attr, &operands)?])
}

fn write_pad(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    out.needs(match attr.numbers::<1>()?.map(|p| p.choice()) {
        [3] => 19,
        _ if out.inputs() > 3 => 18,
        _ => 0,
    });
    write_params(attr, out)
}

/// One element, repeated to the shape.
fn read_constant_of_shape(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let shape = r.required(node, 0)?;
    let value = match node.tensor("value")? {
        Some(t) => Constant { dims: vec![], ..r.tensor(t, &node.name)? },
        None => Constant::scalar_f32(0.0),
    };
    if value.bytes.len() != value.dtype.size() {
        return Err(node.attribute("value", "must be one element"));
    }
    let value = r.add_constant(&format!("{}.value", node.name), value)?;
    Ok(vec![r.op(node, OpKind::Expand, Attr::None, &[value, shape])?])
}

/// The identity in f32, then of the type that is asked for: that of the input unless the node says another.
fn read_eye_like(r: &mut Reader<'_>, node: &Node<'_>) -> Result<Vec<ValueId>> {
    let x = r.required(node, 0)?;
    let dtype = match node.int("dtype")? {
        None => r.dtype(x),
        Some(code) => crate::tensor::dtype(i32::try_from(code).unwrap_or(-1), &node.name)?,
    };
    let kind = OpKind::EyeLike;
    let float = crate::tensor::code(DType::F32);
    let eye = r.op(node, kind, Attr::Params(read_params(node, kind)?.with(kind, "dtype", float)), &[x])?;
    match dtype {
        DType::F32 => Ok(vec![eye]),
        dtype => Ok(vec![r.op(node, OpKind::Cast, Attr::Cast(dtype), &[eye])?]),
    }
}

fn read_center_crop_pad(r: &mut Reader<'_>, node: &Node<'_>) -> Result<(Attr, Vec<ValueId>)> {
    let axes = node.ints("axes")?.unwrap_or_default();
    let axes =
        Axes::new(axes).ok_or_else(|| node.attribute("axes", format!("{axes:?} are not at most 8 axes")))?;
    Ok((Attr::Axes(axes), r.inputs(node)?))
}

fn write_center_crop_pad(attr: &Attr, out: &mut NodeOut<'_>) -> Result<(), String> {
    let Attr::Axes(axes) = attr else { return Err(wrong(attr)) };
    if !axes.as_slice().is_empty() {
        out.ints("axes", axes.as_slice().iter().map(|a| i64::from(*a)));
    }
    Ok(())
}
