//! Quantisation.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::{CHANNELS_MAX, OnnxOp, op, write_axis};
use crate::error::Result;
use crate::node::Node;
use crate::read::Reader;
use crate::tensor::Constant;
use bytes::Bytes;
use lacuna_ir::op::Attr;
use lacuna_ir::{DType, OpKind, ValueId};

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    op(
        "QuantizeLinear",
        OpKind::QuantizeLinear,
        &["axis", "block_size", "output_dtype", "saturate"],
        read_quantize,
        write_axis,
    ),
    op("DequantizeLinear", OpKind::DequantizeLinear, &["axis", "block_size"], read_dequantize, write_axis),
];

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
    if node.proto.op_type == "QuantizeLinear" && r.is_widened(zero) {
        return Err(node.unsupported(" to a type that graphs hold in a wider one; quantise to u8 or i8"));
    }
    if r.dtype(zero) == DType::I64 {
        return Err(node.unsupported(" to or from 16 bits; quantise to u8 or i8"));
    }
    Ok((Attr::Axis(node.axis(1)?), vec![x, scale, zero]))
}
