//! Element types, dimensions and plain tensors (the interpreter's values, and how constants are made).

use crate::ids::SymbolId;
use bytes::Bytes;
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    I64,
    I32,
    U8,
    I8,
    Bool,
}

impl DType {
    pub const ALL: [DType; 6] = [DType::F32, DType::I64, DType::I32, DType::U8, DType::I8, DType::Bool];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::U8 | DType::I8 | DType::Bool => 1,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::I64 => "i64",
            DType::I32 => "i32",
            DType::U8 => "u8",
            DType::I8 => "i8",
            DType::Bool => "bool",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One dimension of a shape: a number, or a symbol that a run binds (the batch, a length).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    Fixed(u64),
    Symbol(SymbolId),
    /// What a shape rule cannot say. Only in facts ([`crate::shape::Fact`]): a graph has a symbol in its place.
    Unknown,
}

impl Dim {
    pub fn fixed(self) -> Option<u64> {
        match self {
            Dim::Fixed(n) => Some(n),
            Dim::Symbol(_) | Dim::Unknown => None,
        }
    }
}

/// The most elements any one tensor may have: a shape that asks for more is refused before anything is allocated.
pub const TENSOR_ELEMENTS_MAX: u64 = 1 << 33;

/// Product of fixed dimensions; `None` when it passes [`TENSOR_ELEMENTS_MAX`]. Zeros do not excuse the others,
/// so that strides and partial products of accepted dims never overflow.
pub fn element_count(dims: &[usize]) -> Option<usize> {
    let mut limit: u64 = 1;
    for &d in dims {
        limit = limit.checked_mul(d.max(1) as u64).filter(|&n| n <= TENSOR_ELEMENTS_MAX)?;
    }
    Some(if dims.contains(&0) { 0 } else { limit as usize })
}

/// The elements of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    F32(Vec<f32>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    U8(Vec<u8>),
    I8(Vec<i8>),
    Bool(Vec<u8>),
}

/// A dense row-major tensor that owns its elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dims: Vec<usize>,
    pub elements: Elements,
}

macro_rules! accessors {
    ($($variant:ident $ty:ty, $new:ident, $get:ident;)*) => {$(
        pub fn $new(dims: &[usize], elements: Vec<$ty>) -> Tensor {
            assert_eq!(element_count(dims), Some(elements.len()), "dims {dims:?} do not hold {} elements", elements.len());
            Tensor { dims: dims.to_vec(), elements: Elements::$variant(elements) }
        }

        /// The elements, if they are of this type.
        pub fn $get(&self) -> Option<&[$ty]> {
            match &self.elements {
                Elements::$variant(v) => Some(v),
                _ => None,
            }
        }
    )*};
}

impl Tensor {
    accessors! {
        F32 f32, from_f32, as_f32;
        I64 i64, from_i64, as_i64;
        I32 i32, from_i32, as_i32;
        U8 u8, from_u8, as_u8;
        I8 i8, from_i8, as_i8;
        Bool u8, from_bool, as_bool;
    }

    pub fn zeros(dtype: DType, dims: &[usize]) -> Tensor {
        let n = element_count(dims).expect("a tensor's dims are checked before it is made");
        let elements = match dtype {
            DType::F32 => Elements::F32(vec![0.0; n]),
            DType::I64 => Elements::I64(vec![0; n]),
            DType::I32 => Elements::I32(vec![0; n]),
            DType::U8 => Elements::U8(vec![0; n]),
            DType::I8 => Elements::I8(vec![0; n]),
            DType::Bool => Elements::Bool(vec![0; n]),
        };
        Tensor { dims: dims.to_vec(), elements }
    }

    pub fn dtype(&self) -> DType {
        match self.elements {
            Elements::F32(_) => DType::F32,
            Elements::I64(_) => DType::I64,
            Elements::I32(_) => DType::I32,
            Elements::U8(_) => DType::U8,
            Elements::I8(_) => DType::I8,
            Elements::Bool(_) => DType::Bool,
        }
    }

    pub fn len(&self) -> usize {
        match &self.elements {
            Elements::F32(v) => v.len(),
            Elements::I64(v) => v.len(),
            Elements::I32(v) => v.len(),
            Elements::U8(v) | Elements::Bool(v) => v.len(),
            Elements::I8(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as bytes in the machine's order (little-endian on every supported target).
    pub fn bytes(&self) -> &[u8] {
        match &self.elements {
            Elements::F32(v) => bytemuck::cast_slice(v),
            Elements::I64(v) => bytemuck::cast_slice(v),
            Elements::I32(v) => bytemuck::cast_slice(v),
            Elements::U8(v) | Elements::Bool(v) => v,
            Elements::I8(v) => bytemuck::cast_slice(v),
        }
    }

    /// Copies `bytes` (little-endian) into a tensor. `None` when the length is not what dtype and dims ask for.
    pub fn from_bytes(dtype: DType, dims: &[usize], bytes: &[u8]) -> Option<Tensor> {
        if element_count(dims)?.checked_mul(dtype.size())? != bytes.len() {
            return None;
        }
        let elements = match dtype {
            DType::F32 => Elements::F32(bytemuck::pod_collect_to_vec(bytes)),
            DType::I64 => Elements::I64(bytemuck::pod_collect_to_vec(bytes)),
            DType::I32 => Elements::I32(bytemuck::pod_collect_to_vec(bytes)),
            DType::U8 => Elements::U8(bytes.to_vec()),
            DType::I8 => Elements::I8(bytemuck::pod_collect_to_vec(bytes)),
            DType::Bool => Elements::Bool(bytes.to_vec()),
        };
        Some(Tensor { dims: dims.to_vec(), elements })
    }

    /// The elements as shared bytes, to be stored as a constant. Copies once.
    pub fn to_shared_bytes(&self) -> Bytes {
        Bytes::copy_from_slice(self.bytes())
    }
}
