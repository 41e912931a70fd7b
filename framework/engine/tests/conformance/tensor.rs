//! Tensors of test cases: read from `.pb` files into the graph's element types, and compared in the file's.

use lacuna_ir::{DType, Elements, Tensor};
use lacuna_onnx::proto::TensorProto;
use lacuna_onnx::proto::tensor_proto::DataType;
use prost::Message;
use std::path::Path;

/// |a - b| <= absolute + relative * |b|.
#[derive(Clone, Copy)]
pub struct Bound {
    pub relative: f64,
    pub absolute: f64,
}

/// Ten times closer than ONNX's own runner asks for, which is [`WIDE`].
pub const CLOSE: Bound = Bound { relative: 1e-4, absolute: 1e-6 };
pub const WIDE: Bound = Bound { relative: 1e-3, absolute: 1e-7 };

/// A tensor of a case in the graph's types (which has f32 for all floats, i64 for integers it has no type for), and
/// the type that the file gives it.
pub struct Expected {
    pub tensor: Tensor,
    file: DataType,
}

pub fn read(path: &Path) -> Result<Expected, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let proto = TensorProto::decode(bytes.as_slice()).map_err(|e| format!("{}: {e}", path.display()))?;
    let file = DataType::try_from(proto.data_type).map_err(|e| e.to_string())?;
    let elements = elements(&proto, file).ok_or_else(|| format!("data of type {}", file.as_str_name()))?;
    let dims = proto.dims.iter().map(|&d| d as usize).collect();
    Ok(Expected { tensor: Tensor { dims, elements }, file })
}

fn elements(t: &TensorProto, file: DataType) -> Option<Elements> {
    let raw = |size: usize| t.raw_data.chunks_exact(size);
    // Eight little-endian bytes of each element of `size`, filled up with zeros.
    let words = |size: usize| {
        raw(size).map(|e| {
            let mut word = [0; 8];
            word[..e.len()].copy_from_slice(e);
            u64::from_le_bytes(word)
        })
    };
    let ints = |size: usize| -> Vec<u64> {
        let short = t.int32_data.iter().map(|&v| v as u64);
        words(size)
            .chain(short)
            .chain(t.int64_data.iter().map(|&v| v as u64))
            .chain(t.uint64_data.iter().copied())
            .collect()
    };
    let fours = |signed: bool| {
        let raw = t.raw_data.iter().copied().chain(t.int32_data.iter().map(|&v| v as u8));
        let both =
            raw.flat_map(|b| [b & 15, b >> 4]).map(move |v| if signed && v > 7 { v | 0xf0 } else { v });
        both.take(t.dims.iter().product::<i64>() as usize)
    };
    Some(match file {
        DataType::Int4 => Elements::I8(fours(true).map(|v| v as i8).collect()),
        DataType::Uint4 => Elements::U8(fours(false).collect()),
        DataType::Float => Elements::F32(
            words(4).map(|w| f32::from_bits(w as u32)).chain(t.float_data.iter().copied()).collect(),
        ),
        DataType::Double => {
            let wide = words(8).map(f64::from_bits).chain(t.double_data.iter().copied());
            Elements::F32(wide.map(|v| v as f32).collect())
        }
        DataType::Float16 => Elements::F32(ints(2).into_iter().map(|w| from_f16(w as u16)).collect()),
        DataType::Bfloat16 => {
            Elements::F32(ints(2).into_iter().map(|w| f32::from_bits((w as u32) << 16)).collect())
        }
        DataType::Int64 | DataType::Uint64 => Elements::I64(ints(8).into_iter().map(|w| w as i64).collect()),
        DataType::Uint32 => Elements::I64(ints(4).into_iter().map(|w| i64::from(w as u32)).collect()),
        DataType::Uint16 => Elements::I64(ints(2).into_iter().map(|w| i64::from(w as u16)).collect()),
        DataType::Int16 => Elements::I64(ints(2).into_iter().map(|w| i64::from(w as i16)).collect()),
        DataType::Int32 => Elements::I32(ints(4).into_iter().map(|w| w as i32).collect()),
        DataType::Uint8 => Elements::U8(ints(1).into_iter().map(|w| w as u8).collect()),
        DataType::Int8 => Elements::I8(ints(1).into_iter().map(|w| w as i8).collect()),
        DataType::Bool => Elements::Bool(ints(1).into_iter().map(|w| w as u8).collect()),
        _ => return None,
    })
}

/// IEEE 754 binary16.
fn from_f16(bits: u16) -> f32 {
    let (sign, exponent, fraction) = (u32::from(bits >> 15) << 31, bits >> 10 & 31, u32::from(bits & 1023));
    match exponent {
        0 => f32::from_bits(sign | (fraction as f32 * 2.0f32.powi(-24)).to_bits()),
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        e => f32::from_bits(sign | (u32::from(e) + 112) << 23 | fraction << 13),
    }
}

impl Expected {
    /// numpy has no bfloat16: its bits stand as uint16 in the files, where the graph has floats.
    pub fn in_graph_type(mut self, dtype: DType) -> Expected {
        if let (DType::F32, DataType::Uint16, Some(bits)) = (dtype, self.file, self.tensor.as_i64()) {
            let floats = bits.iter().map(|&b| f32::from_bits((b as u32) << 16)).collect();
            self.tensor.elements = Elements::F32(floats);
            self.file = DataType::Bfloat16;
        }
        self
    }

    /// What differs between a result and this tensor. Integers must be equal; floats are compared as the file's type
    /// holds them, so that a result that is more precise than the file is not held against it.
    pub fn compare(&self, got: &Tensor, bound: Bound) -> Result<(), String> {
        if got.dims != self.tensor.dims || got.dtype() != self.tensor.dtype() {
            let (want, dims) = (self.tensor.dtype(), &self.tensor.dims);
            return Err(format!("is {}{:?}, {want}{dims:?} is expected", got.dtype(), got.dims));
        }
        let (Some(got), Some(want)) = (got.as_f32(), self.tensor.as_f32()) else {
            return match got.elements == self.tensor.elements {
                true => Ok(()),
                false => Err(first_difference(got, &self.tensor)),
            };
        };
        // One unit in the last place of the file's type.
        let step = match self.file {
            DataType::Float16 => 2.0f64.powi(-10),
            DataType::Bfloat16 => 2.0f64.powi(-7),
            _ => 0.0,
        };
        for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
            let (g, w) = (f64::from(got), f64::from(want));
            let near = (g - w).abs() <= bound.absolute + bound.relative.max(step) * w.abs();
            if !(near || got == want || got.is_nan() && want.is_nan()) {
                return Err(format!("element {i} is {got}, {want} is expected"));
            }
        }
        Ok(())
    }
}

fn first_difference(got: &Tensor, want: &Tensor) -> String {
    let size = got.dtype().size();
    let pairs = got.bytes().chunks(size).zip(want.bytes().chunks(size));
    let at = pairs.into_iter().position(|(a, b)| a != b).unwrap_or(0);
    let show = |t: &Tensor| match &t.elements {
        Elements::I64(v) => v[at],
        Elements::I32(v) => v[at].into(),
        Elements::U8(v) | Elements::Bool(v) => v[at].into(),
        Elements::I8(v) => v[at].into(),
        Elements::F32(_) => 0,
    };
    format!("element {at} is {}, {} is expected", show(got), show(want))
}
