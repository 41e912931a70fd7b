//! Products of integers, and quantisation to a range that is found at run time.

use super::windows::{read_conv_2d, write_conv};
use super::{OnnxOp, op, plain};
use lacuna_ir::OpKind;

/// The rows of this family.
pub const OPS: &[OnnxOp] = &[
    op(
        "ConvInteger",
        OpKind::ConvInteger,
        &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"],
        read_conv_2d,
        write_conv,
    ),
    plain("MatMulInteger", OpKind::MatMulInteger),
    plain("DynamicQuantizeLinear", OpKind::DynamicQuantizeLinear),
];
