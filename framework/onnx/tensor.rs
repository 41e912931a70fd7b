//! Tensors of a file and constants of a graph. Raw data stay where they are: a range of the file's buffer.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use crate::error::{Error, Result};
use crate::proto::TensorProto;
use crate::proto::tensor_proto::{DataLocation, DataType};
use bytes::Bytes;
use lacuna_ir::tensor::TENSOR_ELEMENTS_MAX;
use lacuna_ir::{DType, element_count};

pub const RANK_MAX: usize = 8;
pub const DIM_MAX: i64 = 1 << 31;

/// Element types that a graph and a file share.
const DTYPES: &[(DType, DataType)] = &[
    (DType::F32, DataType::Float),
    (DType::I64, DataType::Int64),
    (DType::I32, DataType::Int32),
    (DType::U8, DataType::Uint8),
    (DType::I8, DataType::Int8),
    (DType::Bool, DataType::Bool),
];

/// An initialiser or the value of a Constant node, checked: `bytes` are as long as dtype and dims ask for.
#[derive(Clone, Debug)]
pub struct Constant {
    pub dtype: DType,
    pub dims: Vec<usize>,
    pub bytes: Bytes,
}

impl Constant {
    pub fn scalar_f32(value: f32) -> Constant {
        Constant { dtype: DType::F32, dims: vec![], bytes: Bytes::copy_from_slice(&value.to_le_bytes()) }
    }

    pub fn list_f32(values: &[f32]) -> Constant {
        Constant { dtype: DType::F32, dims: vec![values.len()], bytes: collect(values, |v| v.to_le_bytes()) }
    }

    pub fn list_i64(values: &[i64]) -> Constant {
        Constant { dtype: DType::I64, dims: vec![values.len()], bytes: collect(values, |v| v.to_le_bytes()) }
    }
}

pub fn dtype(code: i32, name: &str) -> Result<DType> {
    let data_type = DataType::try_from(code).ok();
    data_type.and_then(|t| DTYPES.iter().find(|row| row.1 == t)).map(|row| row.0).ok_or_else(|| {
        Error::UnsupportedDType {
            name: name.to_string(),
            dtype: data_type.map_or_else(|| format!("number {code}"), |t| t.as_str_name().to_string()),
        }
    })
}

pub fn code(dtype: DType) -> i32 {
    DTYPES.iter().find(|row| row.0 == dtype).map_or(0, |row| row.1.into())
}

pub fn read(t: &TensorProto, name: &str) -> Result<Constant> {
    let unsupported =
        |what: &str| Error::UnsupportedFeature { name: name.to_string(), what: what.to_string() };
    if t.data_location == i32::from(DataLocation::External) || !t.external_data.is_empty() {
        return Err(unsupported(
            "its data lie in another file, which is not read yet; save the model with save_as_external_data=False",
        ));
    }
    if t.segment.is_some() {
        return Err(unsupported("a tensor in segments is not supported; save it in one piece"));
    }
    let dtype = dtype(t.data_type, name)?;
    let dims = dims(&t.dims, name)?;
    let want = element_count(&dims).and_then(|n| n.checked_mul(dtype.size())).ok_or_else(|| {
        Error::Elements { name: name.to_string(), dims: format!("{dims:?}"), max: TENSOR_ELEMENTS_MAX }
    })?;
    let bytes = data(t, dtype, name)?;
    if bytes.len() != want {
        return Err(length(name, dtype, &dims, want, bytes.len()));
    }
    if dtype == DType::Bool && bytes.iter().any(|&b| b > 1) {
        return Err(Error::Data { name: name.to_string(), why: "a bool is neither 0 nor 1".to_string() });
    }
    Ok(Constant { dtype, dims, bytes })
}

/// The dimensions of a tensor that is in the file: none is symbolic.
fn dims(dims: &[i64], name: &str) -> Result<Vec<usize>> {
    if dims.len() > RANK_MAX {
        return Err(rank(name, dims.len()));
    }
    dims.iter()
        .enumerate()
        .map(|(axis, &dim)| {
            let why = match dim {
                0..=DIM_MAX => "does not fit this machine",
                ..0 => "a dimension cannot be negative",
                _ => "a dimension cannot be larger than 2^31",
            };
            let size = if dim <= DIM_MAX { usize::try_from(dim).ok() } else { None };
            size.ok_or(Error::Dimension { name: name.to_string(), axis, dim, why })
        })
        .collect()
}

pub fn rank(name: &str, rank: usize) -> Error {
    Error::UnsupportedFeature {
        name: name.to_string(),
        what: format!("{rank} dimensions, at most {RANK_MAX} are supported"),
    }
}

fn length(name: &str, dtype: DType, dims: &[usize], want: usize, got: usize) -> Error {
    Error::DataLength {
        name: name.to_string(),
        dtype: dtype.name(),
        dims: dims.iter().filter_map(|&d| u64::try_from(d).ok()).collect(),
        want: u64::try_from(want).unwrap_or(u64::MAX),
        got: u64::try_from(got).unwrap_or(u64::MAX),
    }
}

/// The elements as little-endian bytes, from whichever of the five fields holds them. What is allocated is at
/// most eight bytes per element that the file really holds.
fn data(t: &TensorProto, dtype: DType, name: &str) -> Result<Bytes> {
    let fields = [
        ("raw_data", !t.raw_data.is_empty()),
        ("float_data", !t.float_data.is_empty()),
        ("int32_data", !t.int32_data.is_empty()),
        ("int64_data", !t.int64_data.is_empty()),
        ("string_data", !t.string_data.is_empty()),
        ("double_data", !t.double_data.is_empty()),
        ("uint64_data", !t.uint64_data.is_empty()),
    ];
    let used: Vec<&str> = fields.iter().filter(|f| f.1).map(|f| f.0).collect();
    let wrong = |why: String| Error::Data { name: name.to_string(), why };
    let field = match used.as_slice() {
        [] => return Ok(Bytes::new()),
        [field] => *field,
        _ => {
            return Err(wrong(format!("its data stand in {}; one field must hold them", used.join(" and "))));
        }
    };
    match (field, dtype) {
        ("raw_data", _) if cfg!(target_endian = "little") => Ok(t.raw_data.clone()),
        ("float_data", DType::F32) => Ok(collect(&t.float_data, |v| v.to_le_bytes())),
        ("int64_data", DType::I64) => Ok(collect(&t.int64_data, |v| v.to_le_bytes())),
        ("int32_data", DType::I32) => Ok(collect(&t.int32_data, |v| v.to_le_bytes())),
        ("int32_data", DType::U8 | DType::Bool) => narrow(&t.int32_data, |v| u8::try_from(v).ok())
            .ok_or_else(|| wrong(format!("an element of int32_data does not fit {dtype}"))),
        ("int32_data", DType::I8) => {
            narrow(&t.int32_data, |v| i8::try_from(v).ok().map(|v| u8::from_le_bytes(v.to_le_bytes())))
                .ok_or_else(|| wrong("an element of int32_data does not fit i8".to_string()))
        }
        _ => Err(wrong(format!("elements of type {dtype} cannot stand in {field}"))),
    }
}

fn collect<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Bytes {
    values.iter().flat_map(|&v| bytes(v)).collect()
}

fn narrow(values: &[i32], byte: impl Fn(i32) -> Option<u8>) -> Option<Bytes> {
    values.iter().map(|&v| byte(v)).collect::<Option<Vec<u8>>>().map(Bytes::from)
}

/// A tensor of the file with these bytes; they are shared, not copied.
pub fn write(name: &str, dtype: DType, dims: &[usize], bytes: Bytes) -> TensorProto {
    TensorProto {
        name: name.to_string(),
        data_type: code(dtype),
        dims: dims.iter().filter_map(|&d| i64::try_from(d).ok()).collect(),
        raw_data: bytes,
        ..TensorProto::default()
    }
}
