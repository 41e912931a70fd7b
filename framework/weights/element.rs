//! Types of stored elements.

use half::{bf16, f16};

/// All are stored little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

/// Element, name of PyTorch's storage class, name in safetensors.
const ELEMENTS: [(Element, &str, &str); 10] = [
    (Element::F64, "DoubleStorage", "F64"),
    (Element::F32, "FloatStorage", "F32"),
    (Element::F16, "HalfStorage", "F16"),
    (Element::BF16, "BFloat16Storage", "BF16"),
    (Element::I64, "LongStorage", "I64"),
    (Element::I32, "IntStorage", "I32"),
    (Element::I16, "ShortStorage", "I16"),
    (Element::I8, "CharStorage", "I8"),
    (Element::U8, "ByteStorage", "U8"),
    (Element::Bool, "BoolStorage", "BOOL"),
];

impl Element {
    pub(crate) fn of_torch(name: &str) -> Option<Element> {
        ELEMENTS.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    pub(crate) fn of_safetensors(name: &str) -> Option<Element> {
        ELEMENTS.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// Bytes.
    pub fn size(self) -> usize {
        match self {
            Element::F64 | Element::I64 => 8,
            Element::F32 | Element::I32 => 4,
            Element::F16 | Element::BF16 | Element::I16 => 2,
            Element::I8 | Element::U8 | Element::Bool => 1,
        }
    }

    /// Appends `n` elements of `bytes`, the first at `first`, `step` bytes apart, as f32.
    pub(crate) fn convert(self, bytes: &[u8], first: usize, step: usize, n: usize, out: &mut Vec<f32>) {
        macro_rules! each {
            ($size:literal, $of:expr) => {
                out.extend((0..n).map(|i| {
                    let mut raw = [0u8; $size];
                    raw.copy_from_slice(&bytes[first + i * step..][..$size]);
                    $of(raw)
                }))
            };
        }
        match self {
            Element::F64 => each!(8, |b| f64::from_le_bytes(b) as f32),
            Element::F32 => each!(4, f32::from_le_bytes),
            Element::F16 => each!(2, |b| f16::from_le_bytes(b).to_f32()),
            Element::BF16 => each!(2, |b| bf16::from_le_bytes(b).to_f32()),
            Element::I64 => each!(8, |b| i64::from_le_bytes(b) as f32),
            Element::I32 => each!(4, |b| i32::from_le_bytes(b) as f32),
            Element::I16 => each!(2, |b| f32::from(i16::from_le_bytes(b))),
            Element::I8 => each!(1, |b| f32::from(i8::from_le_bytes(b))),
            Element::U8 => each!(1, |b: [u8; 1]| f32::from(b[0])),
            Element::Bool => each!(1, |b: [u8; 1]| f32::from(u8::from(b[0] != 0))),
        }
    }
}
