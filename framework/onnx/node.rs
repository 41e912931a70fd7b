//! One node of a file: its attributes by name and type, and errors that name it.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use crate::error::{Error, Result};
use crate::proto::attribute_proto::AttributeType;
use crate::proto::{AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto};

pub struct Node<'m> {
    pub proto: &'m NodeProto,
    /// The node's name; where it has none, that of its first output, or its place and op.
    pub name: String,
    pub opset: i64,
}

impl<'m> Node<'m> {
    pub fn new(proto: &'m NodeProto, index: usize, opset: i64) -> Node<'m> {
        let name = match (proto.name.as_str(), proto.output.first().map(String::as_str)) {
            ("", None | Some("")) => format!("#{index} ({})", proto.op_type),
            ("", Some(output)) => output.to_string(),
            (name, _) => name.to_string(),
        };
        Node { proto, name, opset }
    }

    // ---- errors ------------------------------------------------------------------------------------

    pub fn unsupported(&self, why: &str) -> Error {
        Error::Unsupported {
            op: self.proto.op_type.clone(),
            node: self.name.clone(),
            domain: self.proto.domain.clone(),
            opset: self.opset,
            why: why.to_string(),
        }
    }

    pub fn arity(&self, why: String) -> Error {
        Error::Arity { node: self.name.clone(), op: self.proto.op_type.clone(), why }
    }

    pub fn attribute(&self, attr: &str, why: impl Into<String>) -> Error {
        Error::Attribute {
            node: self.name.clone(),
            op: self.proto.op_type.clone(),
            attr: attr.to_string(),
            why: why.into(),
        }
    }

    // ---- attributes --------------------------------------------------------------------------------

    /// Every attribute is one that the op's row knows, once: one that is passed over could change the meaning.
    pub fn check_attributes(&self, known: &[&str]) -> Result<()> {
        for (i, attr) in self.proto.attribute.iter().enumerate() {
            if !known.contains(&attr.name.as_str()) {
                return Err(self.attribute(&attr.name, "is not known for this op"));
            }
            if self.proto.attribute.iter().take(i).any(|a| a.name == attr.name) {
                return Err(self.attribute(&attr.name, "stands twice"));
            }
            if !attr.ref_attr_name.is_empty() {
                return Err(
                    self.attribute(&attr.name, "refers to a function's attribute, outside of a function")
                );
            }
        }
        Ok(())
    }

    fn typed(&self, name: &str, want: AttributeType) -> Result<Option<&'m AttributeProto>> {
        let Some(attr) = self.proto.attribute.iter().find(|a| a.name == name) else { return Ok(None) };
        match AttributeType::try_from(attr.r#type) {
            Ok(got) if got == want => Ok(Some(attr)),
            Ok(got) => {
                Err(self.attribute(name, format!("is {}, not {}", got.as_str_name(), want.as_str_name())))
            }
            Err(_) => Err(self.attribute(name, format!("is of unknown type {}", attr.r#type))),
        }
    }

    pub fn int(&self, name: &str) -> Result<Option<i64>> {
        Ok(self.typed(name, AttributeType::Int)?.map(|a| a.i))
    }

    pub fn ints(&self, name: &str) -> Result<Option<&'m [i64]>> {
        Ok(self.typed(name, AttributeType::Ints)?.map(|a| a.ints.as_slice()))
    }

    pub fn floats(&self, name: &str) -> Result<Option<&'m [f32]>> {
        Ok(self.typed(name, AttributeType::Floats)?.map(|a| a.floats.as_slice()))
    }

    pub fn float(&self, name: &str) -> Result<Option<f32>> {
        Ok(self.typed(name, AttributeType::Float)?.map(|a| a.f))
    }

    /// A number that takes part in arithmetic.
    pub fn finite(&self, name: &str, default: f32) -> Result<f32> {
        match self.float(name)? {
            Some(v) if !v.is_finite() => Err(self.attribute(name, format!("is {v}, it must be finite"))),
            v => Ok(v.unwrap_or(default)),
        }
    }

    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.int(name)? {
            None => Ok(default),
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            Some(v) => Err(self.attribute(name, format!("is {v}, it must be 0 or 1"))),
        }
    }

    pub fn text(&self, name: &str) -> Result<Option<&'m str>> {
        let Some(attr) = self.typed(name, AttributeType::String)? else { return Ok(None) };
        std::str::from_utf8(&attr.s).map(Some).map_err(|_| self.attribute(name, "is not UTF-8"))
    }

    pub fn texts(&self, name: &str) -> Result<Option<Vec<&'m str>>> {
        let Some(attr) = self.typed(name, AttributeType::Strings)? else { return Ok(None) };
        let text =
            |s: &'m bytes::Bytes| std::str::from_utf8(s).map_err(|_| self.attribute(name, "is not UTF-8"));
        attr.strings.iter().map(text).collect::<Result<Vec<&str>>>().map(Some)
    }

    pub fn tensor(&self, name: &str) -> Result<Option<&'m TensorProto>> {
        match self.typed(name, AttributeType::Tensor)? {
            Some(AttributeProto { t: Some(t), .. }) => Ok(Some(t)),
            Some(_) => Err(self.attribute(name, "holds no tensor")),
            None => Ok(None),
        }
    }

    pub fn sparse_tensor(&self, name: &str) -> Result<Option<&'m SparseTensorProto>> {
        match self.typed(name, AttributeType::SparseTensor)? {
            Some(AttributeProto { sparse_tensor: Some(t), .. }) => Ok(Some(t)),
            Some(_) => Err(self.attribute(name, "holds no tensor")),
            None => Ok(None),
        }
    }

    /// A graph that must be there.
    pub fn graph(&self, name: &str) -> Result<&'m GraphProto> {
        match self.typed(name, AttributeType::Graph)? {
            Some(AttributeProto { g: Some(graph), .. }) => Ok(graph),
            Some(_) => Err(self.attribute(name, "holds no graph")),
            None => Err(self.attribute(name, "is absent, it is required")),
        }
    }

    pub fn axis(&self, default: i64) -> Result<i32> {
        let axis = self.int("axis")?.unwrap_or(default);
        i32::try_from(axis).map_err(|_| self.attribute("axis", format!("{axis} is no axis")))
    }

    /// `N` sizes of a window: each between `min` and 2^31 - 1.
    pub fn sizes<const N: usize>(&self, name: &str, min: u32) -> Result<Option<[u32; N]>> {
        let Some(ints) = self.ints(name)? else { return Ok(None) };
        let ints = <[i64; N]>::try_from(ints).map_err(|_| {
            self.unsupported(&format!(
                " with {} numbers in '{name}': windows are 2-D and take {N}",
                ints.len()
            ))
        })?;
        let mut sizes = [0; N];
        for (size, int) in sizes.iter_mut().zip(ints) {
            *size = u32::try_from(int)
                .ok()
                .filter(|v| *v >= min && *v <= u32::MAX >> 1)
                .ok_or_else(|| self.attribute(name, format!("holds {int}, it must be in {min}..2^31")))?;
        }
        Ok(Some(sizes))
    }
}
