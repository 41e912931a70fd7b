//! Tensors of a file and constants of a graph. Raw data stay where they are: a range of the file's buffer.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use crate::error::{Error, Result};
use crate::external::Files;
use crate::proto::tensor_proto::{DataLocation, DataType};
use crate::proto::{SparseTensorProto, TensorProto};
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

/// Types that only files have: how many bits an element takes there, what it becomes, and how.
struct Foreign {
    stored: DataType,
    bits: usize,
    dtype: DType,
    /// All elements; the bytes are a whole number of them.
    convert: fn(&[u8], usize) -> Bytes,
}

/// Floats become f32, integers the next wider type of a graph.
const FOREIGN: &[Foreign] = &[
    Foreign { stored: DataType::Float16, bits: 16, dtype: DType::F32, convert: |b, _| each(b, float16) },
    Foreign { stored: DataType::Bfloat16, bits: 16, dtype: DType::F32, convert: |b, _| each(b, bfloat16) },
    Foreign { stored: DataType::Double, bits: 64, dtype: DType::F32, convert: |b, _| each(b, double) },
    Foreign { stored: DataType::Uint16, bits: 16, dtype: DType::I64, convert: |b, _| each(b, wide_u16) },
    Foreign { stored: DataType::Int16, bits: 16, dtype: DType::I64, convert: |b, _| each(b, wide_i16) },
    Foreign { stored: DataType::Uint32, bits: 32, dtype: DType::I64, convert: |b, _| each(b, wide_u32) },
    // What is beyond i64 wraps.
    Foreign {
        stored: DataType::Uint64,
        bits: 64,
        dtype: DType::I64,
        convert: |b, _| each(b, |e: [u8; 8]| e),
    },
    Foreign { stored: DataType::Uint4, bits: 4, dtype: DType::U8, convert: |b, n| unpack(b, n, 4, false) },
    Foreign { stored: DataType::Int4, bits: 4, dtype: DType::I8, convert: |b, n| unpack(b, n, 4, true) },
    Foreign { stored: DataType::Uint2, bits: 2, dtype: DType::U8, convert: |b, n| unpack(b, n, 2, false) },
    Foreign { stored: DataType::Int2, bits: 2, dtype: DType::I8, convert: |b, n| unpack(b, n, 2, true) },
];

fn foreign(code: i32) -> Option<&'static Foreign> {
    let stored = DataType::try_from(code).ok()?;
    FOREIGN.iter().find(|row| row.stored == stored)
}

fn each<const N: usize, const M: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> [u8; M]) -> Bytes {
    bytes.as_chunks::<N>().0.iter().flat_map(|e| convert(*e)).collect()
}

fn float16(e: [u8; 2]) -> [u8; 4] {
    half::f16::from_le_bytes(e).to_f32().to_le_bytes()
}

fn bfloat16([low, high]: [u8; 2]) -> [u8; 4] {
    [0, 0, low, high]
}

#[allow(clippy::as_conversions)] // Rounds to nearest; what is too large becomes infinite.
fn double(e: [u8; 8]) -> [u8; 4] {
    (f64::from_le_bytes(e) as f32).to_le_bytes()
}

fn wide_u16(e: [u8; 2]) -> [u8; 8] {
    i64::from(u16::from_le_bytes(e)).to_le_bytes()
}

fn wide_i16(e: [u8; 2]) -> [u8; 8] {
    i64::from(i16::from_le_bytes(e)).to_le_bytes()
}

fn wide_u32(e: [u8; 4]) -> [u8; 8] {
    i64::from(u32::from_le_bytes(e)).to_le_bytes()
}

/// `count` elements of `bits` bits (2 or 4), the lowest bits of a byte first.
fn unpack(bytes: &[u8], count: usize, bits: usize, signed: bool) -> Bytes {
    let above = 8u32.saturating_sub(u32::try_from(bits).unwrap_or(8));
    let element = |byte: u8, shift: u32| {
        let top = byte.wrapping_shl(above.saturating_sub(shift));
        match signed {
            true => (top.cast_signed() >> above).cast_unsigned(),
            false => top >> above,
        }
    };
    let all = bytes.iter().flat_map(|&byte| (0..8).step_by(bits).map(move |shift| element(byte, shift)));
    all.take(count).collect()
}

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

/// What an input or output, or a constant, of a type of files is in the graph.
pub fn graph_dtype(code: i32, name: &str) -> Result<DType> {
    foreign(code).map_or_else(|| dtype(code, name), |row| Ok(row.dtype))
}

/// Whether a type of files is one of integers that a graph holds in a wider one.
pub fn is_widened(code: i32) -> bool {
    foreign(code).is_some_and(|row| row.dtype != DType::F32 && row.stored != DataType::Uint64)
}

pub fn code(dtype: DType) -> i32 {
    DTYPES.iter().find(|row| row.0 == dtype).map_or(0, |row| row.1.into())
}

pub fn read(t: &TensorProto, name: &str, files: &mut Files) -> Result<Constant> {
    if t.segment.is_some() {
        let what = "a tensor in segments is not supported; save it in one piece".to_string();
        return Err(Error::UnsupportedFeature { name: name.to_string(), what });
    }
    let dtype = graph_dtype(t.data_type, name)?;
    let dims = dims(&t.dims, name)?;
    let too_many =
        || Error::Elements { name: name.to_string(), dims: format!("{dims:?}"), max: TENSOR_ELEMENTS_MAX };
    let elements = element_count(&dims).ok_or_else(too_many)?;
    let foreign = foreign(t.data_type);
    let bits = foreign.map_or(dtype.size().saturating_mul(8), |f| f.bits);
    let want = elements.checked_mul(bits).ok_or_else(too_many)?.div_ceil(8);
    let external = t.data_location == i32::from(DataLocation::External) || !t.external_data.is_empty();
    let bytes = if external { files.bytes(t, name, want)? } else { data(t, dtype, foreign, name)? };
    if bytes.len() != want {
        return Err(length(name, dtype, &dims, want, bytes.len()));
    }
    let bytes = foreign.map_or_else(|| bytes.clone(), |f| (f.convert)(&bytes, elements));
    if dtype == DType::Bool && bytes.iter().any(|&b| b > 1) {
        return Err(Error::Data { name: name.to_string(), why: "a bool is neither 0 nor 1".to_string() });
    }
    Ok(Constant { dtype, dims, bytes })
}

/// A dense tensor may take this many bytes, and [`DENSE_BYTES_PER_BYTE`] for each byte that its sparse form takes.
const DENSE_BYTES_BASE: usize = 1 << 20;
const DENSE_BYTES_PER_BYTE: usize = 64;

/// Values and where they stand: `indices` are i64 `[count]`, into the flat tensor, or `[count, rank]`. The rest is 0.
pub fn read_sparse(t: &SparseTensorProto, name: &str, files: &mut Files) -> Result<Constant> {
    let wrong = |why: &str| Error::Data { name: name.to_string(), why: format!("a sparse tensor {why}") };
    let part = |part: &Option<TensorProto>, files: &mut Files| match part {
        Some(t) => read(t, name, files),
        None => Err(wrong("lacks its values or indices")),
    };
    let (values, indices) = (part(&t.values, files)?, part(&t.indices, files)?);
    let dims = dims(&t.dims, name)?;
    let size = values.dtype.size();
    let bytes = element_count(&dims).and_then(|n| n.checked_mul(size));
    let stored = values.bytes.len().saturating_add(indices.bytes.len());
    let most = stored.saturating_mul(DENSE_BYTES_PER_BYTE).saturating_add(DENSE_BYTES_BASE);
    let bytes = bytes.filter(|n| *n <= most).ok_or_else(|| wrong("is too large when it is written out"))?;
    let columns = match *indices.dims {
        [n] if Some(&n) == values.dims.first() => 1,
        [n, rank] if Some(&n) == values.dims.first() && rank == dims.len() => rank,
        _ => return Err(wrong("has not one index for each value")),
    };
    if indices.dtype != DType::I64 || values.dims.len() != 1 {
        return Err(wrong("must have i64 indices and a list of values"));
    }
    // A flat index is one into a tensor of one dimension.
    let flat = [element_count(&dims).unwrap_or(0)];
    let axes = if columns == 1 { &flat[..] } else { &dims[..] };
    let mut dense = vec![0u8; bytes];
    let rows = indices.bytes.as_chunks::<8>().0.chunks(columns.max(1));
    for (row, value) in rows.zip(values.bytes.chunks(size)) {
        let mut at = Some(0usize);
        for (index, dim) in row.iter().zip(axes) {
            let index = usize::try_from(i64::from_le_bytes(*index)).ok().filter(|i| i < dim);
            at = at.zip(index).and_then(|(at, i)| at.checked_mul(*dim)?.checked_add(i));
        }
        let start = at.and_then(|at| at.checked_mul(size)).ok_or_else(|| wrong("has an index outside"))?;
        let place = start.checked_add(size).and_then(|end| dense.get_mut(start..end));
        place.ok_or_else(|| wrong("has an index outside"))?.copy_from_slice(value);
    }
    Ok(Constant { dtype: values.dtype, dims, bytes: Bytes::from(dense) })
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
fn data(t: &TensorProto, dtype: DType, foreign: Option<&Foreign>, name: &str) -> Result<Bytes> {
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
    let misplaced = || wrong(format!("elements of this type cannot stand in {field}"));
    if field == "raw_data" {
        return if cfg!(target_endian = "little") { Ok(t.raw_data.clone()) } else { Err(misplaced()) };
    }
    if let Some(foreign) = foreign {
        return foreign_data(t, foreign, field).ok_or_else(misplaced);
    }
    match (field, dtype) {
        ("float_data", DType::F32) => Ok(collect(&t.float_data, |v| v.to_le_bytes())),
        ("int64_data", DType::I64) => Ok(collect(&t.int64_data, |v| v.to_le_bytes())),
        ("int32_data", DType::I32) => Ok(collect(&t.int32_data, |v| v.to_le_bytes())),
        ("int32_data", DType::U8 | DType::Bool) => narrow(&t.int32_data, |v| u8::try_from(v).ok())
            .ok_or_else(|| wrong(format!("an element of int32_data does not fit {dtype}"))),
        ("int32_data", DType::I8) => {
            narrow(&t.int32_data, |v| i8::try_from(v).ok().map(|v| u8::from_le_bytes(v.to_le_bytes())))
                .ok_or_else(|| wrong("an element of int32_data does not fit i8".to_string()))
        }
        _ => Err(misplaced()),
    }
}

/// As the elements of raw data would be: narrow ones stand in int32_data, their upper bits are not looked at.
fn foreign_data(t: &TensorProto, foreign: &Foreign, field: &str) -> Option<Bytes> {
    match (field, foreign.stored, foreign.bits) {
        ("int32_data", _, 16) => Some(t.int32_data.iter().flat_map(|v| low(v.to_le_bytes())).collect()),
        ("int32_data", _, ..8) => Some(t.int32_data.iter().map(|v| v.to_le_bytes()[0]).collect()),
        ("double_data", DataType::Double, _) => Some(collect(&t.double_data, |v| v.to_le_bytes())),
        ("uint64_data", DataType::Uint64, _) => Some(collect(&t.uint64_data, |v| v.to_le_bytes())),
        ("uint64_data", DataType::Uint32, _) => {
            Some(t.uint64_data.iter().flat_map(|v| half_of(v.to_le_bytes())).collect())
        }
        _ => None,
    }
}

fn low([a, b, ..]: [u8; 4]) -> [u8; 2] {
    [a, b]
}

fn half_of([a, b, c, d, ..]: [u8; 8]) -> [u8; 4] {
    [a, b, c, d]
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
