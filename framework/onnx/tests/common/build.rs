//! Builds files message by message: the ones that other exporters write, and the ones nobody should.
#![allow(dead_code)] // Each test file uses its part.

use bytes::Bytes;
use lacuna_onnx::proto::attribute_proto::AttributeType;
use lacuna_onnx::proto::tensor_proto::DataType;
use lacuna_onnx::proto::tensor_shape_proto::{Dimension, dimension};
use lacuna_onnx::proto::*;
use prost::Message;

/// A declared dimension: a number, a name, or neither.
#[derive(Clone, Copy)]
pub enum D {
    N(i64),
    P(&'static str),
    Unknown,
}

pub fn shape(dims: &[D]) -> TensorShapeProto {
    let dim = dims.iter().map(|d| Dimension {
        denotation: String::new(),
        value: match d {
            D::N(n) => Some(dimension::Value::DimValue(*n)),
            D::P(p) => Some(dimension::Value::DimParam(p.to_string())),
            D::Unknown => None,
        },
    });
    TensorShapeProto { dim: dim.collect() }
}

pub fn value(name: &str, dtype: DataType, dims: &[D]) -> ValueInfoProto {
    let tensor = type_proto::Tensor { elem_type: dtype as i32, shape: Some(shape(dims)) };
    ValueInfoProto {
        name: name.to_string(),
        r#type: Some(TypeProto {
            denotation: String::new(),
            value: Some(type_proto::Value::TensorType(tensor)),
        }),
        ..ValueInfoProto::default()
    }
}

/// An output with an element type and no shape.
pub fn output(name: &str, dtype: DataType) -> ValueInfoProto {
    let mut info = value(name, dtype, &[]);
    if let Some(TypeProto { value: Some(type_proto::Value::TensorType(t)), .. }) = &mut info.r#type {
        t.shape = None;
    }
    info
}

pub fn f32s(name: &str, dims: &[i64], data: &[f32]) -> TensorProto {
    TensorProto {
        name: name.to_string(),
        dims: dims.to_vec(),
        data_type: DataType::Float as i32,
        float_data: data.to_vec(),
        ..TensorProto::default()
    }
}

pub fn i64s(name: &str, dims: &[i64], data: &[i64]) -> TensorProto {
    TensorProto {
        name: name.to_string(),
        dims: dims.to_vec(),
        data_type: DataType::Int64 as i32,
        int64_data: data.to_vec(),
        ..TensorProto::default()
    }
}

/// A tensor whose elements stand in `int32_data`, as those of small types may.
pub fn small(name: &str, dtype: DataType, dims: &[i64], data: &[i32]) -> TensorProto {
    TensorProto {
        name: name.to_string(),
        dims: dims.to_vec(),
        data_type: dtype as i32,
        int32_data: data.to_vec(),
        ..TensorProto::default()
    }
}

pub fn raw(name: &str, dtype: i32, dims: &[i64], data: &[u8]) -> TensorProto {
    TensorProto {
        name: name.to_string(),
        dims: dims.to_vec(),
        data_type: dtype,
        raw_data: Bytes::copy_from_slice(data),
        ..TensorProto::default()
    }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: name.to_string(), r#type: kind as i32, ..AttributeProto::default() }
}

pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i, ..attribute(name, AttributeType::Int) }
}

pub fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { f, ..attribute(name, AttributeType::Float) }
}

pub fn floats(name: &str, floats: &[f32]) -> AttributeProto {
    AttributeProto { floats: floats.to_vec(), ..attribute(name, AttributeType::Floats) }
}

pub fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { ints: ints.to_vec(), ..attribute(name, AttributeType::Ints) }
}

pub fn string(name: &str, text: &str) -> AttributeProto {
    AttributeProto { s: Bytes::copy_from_slice(text.as_bytes()), ..attribute(name, AttributeType::String) }
}

pub fn tensor(name: &str, t: TensorProto) -> AttributeProto {
    AttributeProto { t: Some(Box::new(t)), ..attribute(name, AttributeType::Tensor) }
}

/// A graph as an attribute. Inputs and outputs are f32 of any shape, unless they are given.
pub fn body(
    name: &str,
    inputs: Vec<ValueInfoProto>,
    nodes: Vec<NodeProto>,
    outputs: &[&str],
) -> AttributeProto {
    let graph = GraphProto {
        name: name.to_string(),
        node: nodes,
        input: inputs,
        output: outputs
            .iter()
            .map(|o| ValueInfoProto { name: o.to_string(), ..Default::default() })
            .collect(),
        ..GraphProto::default()
    };
    AttributeProto { g: Some(Box::new(graph)), ..attribute(name, AttributeType::Graph) }
}

pub fn node(op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: op.to_string(),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        attribute,
        ..NodeProto::default()
    }
}

/// A model from x f32[2,3,6,5] to y, an f32 of any shape.
pub fn model(opset: i64, node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> ModelProto {
    let dims = [D::N(2), D::N(3), D::N(6), D::N(5)];
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: opset }],
        graph: Some(GraphProto {
            name: "test".to_string(),
            node,
            initializer,
            input: vec![value("x", DataType::Float, &dims)],
            output: vec![output("y", DataType::Float)],
            ..GraphProto::default()
        }),
        ..ModelProto::default()
    }
}

pub fn bytes(model: &ModelProto) -> Bytes {
    Bytes::from(model.encode_to_vec())
}
