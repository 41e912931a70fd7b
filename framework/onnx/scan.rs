//! A walk over the wire format before anything is decoded.
//!
//! Two bytes of a file can ask for an empty message, which in memory is hundreds: a small file must not become
//! gigabytes. The walk visits every field that the decoder would keep, adds up what the decoded structs will
//! take, and stops at a budget that grows with the file; it finds truncation and deep nesting on the way and
//! says at which byte. It allocates a stack of at most [`NESTING_MAX`] entries.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use crate::error::{Error, Result};
use crate::proto::{self as p, tensor_proto, tensor_shape_proto, type_proto};

/// Messages within messages.
pub const NESTING_MAX: usize = 64;
/// What decoded messages may take: this, and [`MESSAGE_BYTES_PER_BYTE`] for each byte of the file.
const MESSAGE_BYTES_BASE: u64 = 16 << 20;
const MESSAGE_BYTES_PER_BYTE: u64 = 32;
/// ... but never more than this. Weights do not count: they stay in the file's buffer.
const MESSAGE_BYTES_MAX: u64 = 4 << 30;
/// Nodes of all graphs of the file.
const NODES_MAX: u64 = 1 << 16;
/// A string or bytes field that is kept costs its header in memory.
const TEXT_BYTES: u64 = 32;

/// One kind of message: what it takes in memory, and which of its fields hold messages of which kind.
struct Kind {
    bytes: usize,
    fields: &'static [(u64, M)],
}

macro_rules! kinds {
    ($($name:ident $ty:ty { $($field:literal $child:ident),* })*) => {
        #[derive(Clone, Copy)]
        enum M { $($name),* }

        fn kind(m: M) -> &'static Kind {
            match m {
                $(M::$name => &const { Kind { bytes: size_of::<$ty>(), fields: &[$(($field, M::$child)),*] } },)*
            }
        }
    };
}

kinds! {
    Model p::ModelProto { 7 Graph, 8 Opset, 14 Entry, 20 Training, 25 Function, 26 Device }
    Graph p::GraphProto { 1 Node, 5 Tensor, 11 Value, 12 Value, 13 Value, 14 Annotation, 15 Sparse, 16 Entry }
    Node p::NodeProto { 5 Attribute, 9 Entry, 10 NodeDevice }
    Attribute p::AttributeProto {
        5 Tensor, 6 Graph, 10 Tensor, 11 Graph, 14 Type, 15 Type, 22 Sparse, 23 Sparse
    }
    Tensor p::TensorProto { 3 Segment, 13 Entry, 16 Entry }
    Sparse p::SparseTensorProto { 1 Tensor, 2 Tensor }
    Segment tensor_proto::Segment {}
    Value p::ValueInfoProto { 2 Type, 4 Entry }
    Type p::TypeProto { 1 TypeTensor, 4 TypeSequence, 5 TypeMap, 7 TypeOpaque, 8 TypeSparse, 9 TypeOptional }
    TypeTensor type_proto::Tensor { 2 Shape }
    TypeSparse type_proto::SparseTensor { 2 Shape }
    TypeSequence type_proto::Sequence { 1 Type }
    TypeMap type_proto::Map { 2 Type }
    TypeOptional type_proto::Optional { 1 Type }
    TypeOpaque type_proto::Opaque {}
    Shape p::TensorShapeProto { 1 Dim }
    Dim tensor_shape_proto::Dimension {}
    Entry p::StringStringEntryProto {}
    Opset p::OperatorSetIdProto {}
    Annotation p::TensorAnnotation { 2 Entry }
    Training p::TrainingInfoProto { 1 Graph, 2 Graph, 3 Entry, 4 Entry }
    Function p::FunctionProto { 7 Node, 9 Opset, 11 Attribute, 12 Value, 14 Entry }
    Device p::DeviceConfigurationProto {}
    NodeDevice p::NodeDeviceConfigurationProto { 2 Sharding }
    Sharding p::ShardingSpecProto { 3 IntEntry, 4 ShardedDim }
    IntEntry p::IntIntListEntryProto {}
    ShardedDim p::ShardedDimProto { 2 SimpleDim }
    SimpleDim p::SimpleShardedDimProto {}
}

/// Checks that `file` is whole, nested no deeper than [`NESTING_MAX`], and decodes within the budget.
pub fn check(file: &[u8]) -> Result<()> {
    let file_bytes = u64::try_from(file.len()).unwrap_or(u64::MAX);
    let max = file_bytes
        .saturating_mul(MESSAGE_BYTES_PER_BYTE)
        .saturating_add(MESSAGE_BYTES_BASE)
        .min(MESSAGE_BYTES_MAX);
    let mut spent: u64 = 0;
    let mut nodes: u64 = 0;
    let mut at = 0;
    let mut open: Vec<(usize, M)> = vec![(file.len(), M::Model)];
    while let Some(&(end, message)) = open.last() {
        if at == end {
            open.pop();
            continue;
        }
        let start = at;
        let tag = varint(file, &mut at, end)?;
        let skip = match tag & 7 {
            0 => {
                varint(file, &mut at, end)?;
                continue;
            }
            1 => 8,
            2 => varint(file, &mut at, end)?,
            5 => 4,
            _ => return Err(Error::Wire { at: start, why: "a field of a type that ONNX does not use" }),
        };
        let stop = usize::try_from(skip).ok().and_then(|n| at.checked_add(n));
        let stop = match stop {
            Some(stop) if stop <= end => stop,
            Some(stop) if stop <= file.len() => {
                return Err(Error::Wire { at: start, why: "a field ends after the message that holds it" });
            }
            _ => return Err(Error::Truncated { at: start, need: skip, have: file.len().saturating_sub(at) }),
        };
        let child = kind(message).fields.iter().find(|f| f.0 == tag >> 3).map(|f| f.1);
        if tag & 7 != 2 || child.is_none() {
            spent = spent.saturating_add(if tag & 7 == 2 { TEXT_BYTES } else { 8 });
            at = stop;
        } else if let Some(child) = child {
            if open.len() >= NESTING_MAX {
                return Err(Error::Nesting { max: NESTING_MAX });
            }
            spent = spent.saturating_add(u64::try_from(kind(child).bytes).unwrap_or(u64::MAX));
            open.push((stop, child));
            nodes = nodes.saturating_add(u64::from(matches!(child, M::Node)));
        }
        if nodes > NODES_MAX {
            return Err(Error::TooLarge { what: "nodes", got: nodes, max: NODES_MAX });
        }
        if spent > max {
            return Err(Error::TooLarge { what: "memory for the file's messages, bytes", got: spent, max });
        }
    }
    Ok(())
}

fn varint(file: &[u8], at: &mut usize, end: usize) -> Result<u64> {
    let start = *at;
    let mut value: u64 = 0;
    for shift in (0..64).step_by(7) {
        let Some(&byte) = file.get(*at).filter(|_| *at < end) else {
            return Err(match end == file.len() {
                true => Error::Truncated { at: start, need: 1, have: 0 },
                false => Error::Wire { at: start, why: "a number ends after the message that holds it" },
            });
        };
        *at = at.saturating_add(1);
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Error::Wire { at: start, why: "a number is longer than ten bytes" })
}
