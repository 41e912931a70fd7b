//! Files that lie: each is a typed error, nothing is run, and nothing is allocated on their word.

mod common;

use common::*;
use lacuna_weights::{Fault, WeightFile};

fn fault(bytes: Vec<u8>) -> Fault {
    match WeightFile::read(bytes) {
        Ok(file) => panic!("it was read: {:?}", file.tensors),
        Err(fault) => fault,
    }
}

fn small() -> [Vec<u8>; 2] {
    let root = ordered(vec![
        ("a", tensor("FloatStorage", "0", 0, &[2, 2], &[2, 1])),
        ("b", tensor("HalfStorage", "1", 1, &[1], &[1])),
    ]);
    let storages = [("0", 4, f32s(&[1.0, 2.0, 3.0, 4.0])), ("1", 2, vec![0, 0, 0, 0x3c])];
    [legacy(&root, &storages), zipped(&root, &storages)]
}

#[test]
fn every_cut_is_an_error() {
    for bytes in small() {
        assert!(WeightFile::read(bytes.clone()).is_ok());
        for n in 0..bytes.len() {
            fault(bytes[..n].to_vec());
        }
    }
}

#[test]
fn no_flipped_byte_makes_it_panic() {
    for bytes in small() {
        for i in 0..bytes.len() {
            for flip in [0x01, 0x08, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[i] ^= flip;
                if let Ok(file) = WeightFile::read(bytes) {
                    (0..file.tensors.len()).for_each(|t| drop(file.values(t)));
                }
            }
        }
    }
}

/// The pickle asks for a file to be made; none is.
#[test]
fn nothing_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    let command: &'static str = Box::leak(format!("touch {}", made.display()).into_boxed_str());
    let call = Py::Call(Box::new(Py::Global("posix", "system")), vec![Py::Str(command)]);
    let root = ordered(vec![("call", call.clone()), ("a", tensor("FloatStorage", "0", 0, &[1], &[1]))]);
    let file = WeightFile::read(zipped(&root, &[("0", 1, f32s(&[1.0]))])).unwrap();
    assert_eq!(file.tensors.len(), 1);
    assert!(matches!(fault(zipped(&call, &[])), Fault::Unsupported(_)));
    assert!(!made.exists());
}

#[test]
fn shapes_stay_within_their_storage() {
    let read = |dims: &[usize], strides: &[usize], offset: usize| {
        let root = ordered(vec![("a", tensor("FloatStorage", "0", offset, dims, strides))]);
        WeightFile::read(zipped(&root, &[("0", 4, f32s(&[1.0; 4]))]))
    };
    assert!(read(&[2, 2], &[2, 1], 0).is_ok());
    let damaged: [(&[usize], &[usize], usize); 6] = [
        (&[2, 3], &[3, 1], 0),
        (&[2, 2], &[2, 1], 1),
        (&[2, 2], &[2], 0),
        (&[usize::MAX / 2, 4], &[4, 1], 0),
        (&[2], &[usize::MAX / 2], 2),
        (&[1; 9], &[1; 9], 0),
    ];
    for (dims, strides, offset) in damaged {
        let e = read(dims, strides, offset).unwrap_err();
        assert!(matches!(e, Fault::Damaged(_)), "{dims:?}: {e}");
    }
    // A gigabyte of one stored number.
    let e = read(&[1 << 28], &[0], 0).unwrap_err();
    assert!(matches!(e, Fault::Unsupported(_)), "{e}");
}

#[test]
fn claims_are_not_believed() {
    // Text of four gigabytes in a pickle of six bytes.
    let mut bytes = small()[0][..15].to_vec();
    bytes.extend([0x80, 2, b'X', 0xff, 0xff, 0xff, 0xff]);
    assert!(matches!(fault(bytes), Fault::Damaged(_)));
    // A storage of 2^61 elements.
    let root = ordered(vec![("a", tensor("FloatStorage", "0", 0, &[1], &[1]))]);
    assert!(matches!(fault(legacy(&root, &[("0", 1 << 61, f32s(&[1.0]))])), Fault::Damaged(_)));
    // A header of safetensors as large as memory.
    let mut bytes = (1u64 << 40).to_le_bytes().to_vec();
    bytes.extend(b"{}");
    assert!(matches!(fault(bytes), Fault::TooLarge(_)));
    assert!(matches!(fault(b"not weights at all".to_vec()), Fault::Unsupported(_)));
}

#[test]
fn depth_and_sharing_are_bounded() {
    let mut deep = tensor("FloatStorage", "0", 0, &[1], &[1]);
    for _ in 0..80 {
        deep = Py::Dict(vec![(Py::Str("d"), deep)]);
    }
    assert!(matches!(fault(zipped(&deep, &[("0", 1, f32s(&[1.0]))])), Fault::TooLarge(_)));
    // Each of 60 dictionaries holds the one before it twice: 2^60 paths in a few hundred bytes.
    let mut bytes = vec![0x80, 2, b'}', b'q', 0];
    for i in 0..60u8 {
        bytes.extend([b'}', b'(', b'U', 1, b'a', b'h', i, b'U', 1, b'b', b'h', i, b'u', b'q', i + 1]);
    }
    bytes.push(b'.');
    assert!(matches!(fault(zip(&[("a/data.pkl".into(), bytes)])), Fault::TooLarge(_)));
    // A dictionary that holds itself.
    let bytes = b"\x80\x02}q\x00U\x01ah\x00s.".to_vec();
    assert!(matches!(fault(zip(&[("a/data.pkl".into(), bytes)])), Fault::TooLarge(_)));
}

#[test]
fn what_is_not_plain_is_named() {
    let sparse = Py::Call(Box::new(Py::Global("torch._utils", "_rebuild_sparse_tensor")), vec![]);
    let e = fault(zipped(&ordered(vec![("s", sparse)]), &[]));
    assert!(e.to_string().contains("_rebuild_sparse_tensor") && e.to_string().contains("'s'"), "{e}");
    let complex = ordered(vec![("c", tensor("ComplexFloatStorage", "0", 0, &[1], &[1]))]);
    let e = fault(zipped(&complex, &[("0", 1, vec![0; 8])]));
    assert!(e.to_string().contains("ComplexFloatStorage"), "{e}");
    let missing = ordered(vec![("m", tensor("FloatStorage", "9", 0, &[1], &[1]))]);
    let e = fault(zipped(&missing, &[]));
    assert!(matches!(e, Fault::Damaged(_)) && e.to_string().contains("'9'"), "{e}");
    let twice = ordered(vec![
        ("a", tensor("FloatStorage", "0", 0, &[1], &[1])),
        ("a", tensor("FloatStorage", "0", 0, &[1], &[1])),
    ]);
    assert!(fault(zipped(&twice, &[("0", 1, f32s(&[1.0]))])).to_string().contains("two tensors"));
}
