//! What every comparison with onnxruntime needs: a Python that has it, and tensors in its format.

use lacuna_ir::{DType, Tensor};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A Python with numpy, onnx and onnxruntime, or why there is none: `LACUNA_PYTHON`, else the venv in `target/py` of the
/// workspace `root`, else the system's. One that was asked for and lacks them is a failure.
pub fn python(root: &Path) -> Result<PathBuf, String> {
    let asked = std::env::var_os("LACUNA_PYTHON").map(PathBuf::from);
    let candidates = match &asked {
        Some(python) => vec![python.clone()],
        None => vec![root.join("target/py/bin/python"), PathBuf::from("python3")],
    };
    let mut why = String::new();
    for python in candidates {
        let run = Command::new(&python).args(["-c", "import numpy, onnx, onnxruntime"]).output();
        match run {
            Ok(out) if out.status.success() => return Ok(python),
            Ok(out) => why = String::from_utf8_lossy(&out.stderr).lines().last().unwrap_or("").to_string(),
            Err(e) => why = format!("{}: {e}", python.display()),
        }
    }
    assert!(asked.is_none(), "LACUNA_PYTHON is set, but: {why}");
    Err(why)
}

/// NumPy's format, version 1.0 (numpy.lib.format): magic, header length, header padded to 64 bytes, data.
#[allow(dead_code)] // Not every test writes what Python reads.
pub fn npy(tensor: &Tensor) -> Vec<u8> {
    let kind = match tensor.dtype() {
        DType::F32 => "<f4",
        DType::I64 => "<i8",
        DType::I32 => "<i4",
        DType::U8 => "|u1",
        DType::I8 => "|i1",
        DType::Bool => "|b1",
    };
    let dims: String = tensor.dims.iter().map(|d| format!("{d},")).collect();
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({dims}), }}");
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(tensor.bytes());
    bytes
}

/// A tensor that NumPy saved, in the format of [`npy`]; the error says what is not as expected.
#[allow(dead_code)] // Not every test reads what Python wrote.
pub fn read_npy(bytes: &[u8]) -> Result<Tensor, String> {
    let header_bytes = bytes.get(8..10).map(|b| 10 + u16::from_le_bytes([b[0], b[1]]) as usize);
    let header = header_bytes.and_then(|end| std::str::from_utf8(bytes.get(10..end)?).ok());
    let header = header.ok_or("it is cut off")?;
    let after = |key: &str| header.split_once(key).map(|(_, rest)| rest).ok_or(format!("it lacks {key}"));
    let kind = after("'descr': '")?.split('\'').next().unwrap_or_default();
    let dtype = match kind {
        "<f4" => DType::F32,
        "<i8" => DType::I64,
        "<i4" => DType::I32,
        "|u1" => DType::U8,
        "|i1" => DType::I8,
        "|b1" => DType::Bool,
        _ => return Err(format!("its elements are {kind}")),
    };
    if !after("'fortran_order': ")?.starts_with("False") {
        return Err("it is in column-major order".to_string());
    }
    let dims = after("'shape': (")?.split(')').next().unwrap_or_default();
    let dims: Result<Vec<usize>, _> =
        dims.split(',').map(str::trim).filter(|d| !d.is_empty()).map(str::parse).collect();
    let dims = dims.map_err(|e| format!("its shape: {e}"))?;
    Tensor::from_bytes(dtype, &dims, &bytes[header_bytes.unwrap_or_default()..])
        .ok_or_else(|| "its data are too short or too long".to_string())
}
