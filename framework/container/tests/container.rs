//! Files read back to equal graphs, are small, and broken ones give errors.

use bytes::Bytes;
use lacuna_container::{Error, load, parse, save, to_bytes};
use lacuna_ir::op::{ConvAttr, Window};
use lacuna_ir::{Attr, DType, Dim, Graph, OpKind, Tensor, text};

/// A convolution in f32, and quantise/dequantise ops with constants of every type, with so many zeros in ten.
fn graph(zeros: u32) -> Graph {
    let mut state = 7u32;
    let mut draw = move |n: usize| -> Vec<i8> {
        let one = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if state >> 16 & 1023 < zeros * 1024 / 10 { 0 } else { (state >> 24) as i8 | 1 }
        };
        (0..n).map(one).collect()
    };
    let mut g = Graph::new("net");
    g.metadata.push(("made by".to_string(), "a test".to_string()));
    let batch = Dim::Symbol(g.symbol("batch"));
    let x = g.add_input("x", DType::F32, &[batch, Dim::Fixed(8), Dim::Fixed(9), Dim::Fixed(9)]);
    let w8 = g.add_tensor("w8", &Tensor::from_i8(&[24, 8, 3, 3], draw(24 * 72)));
    let scales = g.add_tensor("scales", &Tensor::from_f32(&[24], vec![0.25; 24]));
    let zero_points = g.add_tensor("zeros", &Tensor::from_i8(&[24], vec![0; 24]));
    let inputs = [w8, scales, zero_points];
    let w = g.add_op(OpKind::DequantizeLinear, Attr::Axis(0), "dq", &inputs, &["w"]).unwrap()[0];
    let window = Window { kernel: [3, 3], stride: [1, 1], dilation: [1, 1], pads: [1; 4] };
    let conv = Attr::Conv(ConvAttr { window, group: 1 });
    let y = g.add_op(OpKind::Conv, conv, "conv", &[x, w], &["y"]).unwrap()[0];
    let floats = draw(24 * 81).into_iter().map(|v| if v == 3 { -0.0 } else { v as f32 }).collect();
    let bias = g.add_tensor("bias", &Tensor::from_f32(&[1, 24, 9, 9], floats));
    let z = g.add_op(OpKind::Add, Attr::None, "add", &[y, bias], &["z"]).unwrap()[0];
    let shape = g.add_tensor("shape", &Tensor::from_i64(&[2], vec![0, -1]));
    let out = g.add_op(OpKind::Reshape, Attr::None, "reshape", &[z, shape], &["out"]).unwrap()[0];
    g.outputs.push(out);
    lacuna_ir::verify::verify(&g).unwrap();
    g
}

#[test]
fn graphs_read_back_equal_and_zeros_take_no_room() {
    let mut sizes = Vec::new();
    for zeros in [0, 5, 9, 10] {
        let g = graph(zeros);
        let file = to_bytes(&g).unwrap();
        let back = parse(Bytes::from(file.clone())).unwrap();
        assert_eq!(text::print_full(&back), text::print_full(&g));
        sizes.push(file.len());
    }
    assert!(sizes.is_sorted_by(|a, b| a > b), "{sizes:?}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.lacuna");
    let g = graph(9);
    assert_eq!(save(&g, &path).unwrap(), path.metadata().unwrap().len());
    assert_eq!(text::print_full(&load(&path).unwrap()), text::print_full(&g));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(
        matches!(load(folder.path()), Err(Error::InFile { source, .. }) if matches!(*source, Error::NotAFile))
    );
    assert!(matches!(load(folder.path().join("none")), Err(Error::Io { .. })));
    assert!(save(&g, folder.path().join("no/such/folder.lacuna")).is_err());
}

/// The file with its checksum made right.
fn sealed(mut file: Vec<u8>) -> Bytes {
    let sum = crc32c::crc32c(&file[12..]);
    file[8..12].copy_from_slice(&sum.to_le_bytes());
    Bytes::from(file)
}

#[test]
fn files_that_are_cut_off_give_errors() {
    let file = to_bytes(&graph(9)).unwrap();
    for end in 0..file.len() {
        assert!(parse(Bytes::copy_from_slice(&file[..end])).is_err(), "{end}");
        if end >= 24 {
            assert!(parse(sealed(file[..end].to_vec())).is_err(), "{end}");
        }
    }
    let mut longer = file.clone();
    longer.extend_from_slice(&[0; 64]);
    assert!(parse(sealed(longer)).is_err());
}

#[test]
fn a_flipped_bit_is_an_error_and_a_hostile_one_never_more_than_that() {
    let file = to_bytes(&graph(9)).unwrap();
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut broken = file.clone();
            broken[at] ^= 1 << bit;
            assert!(parse(Bytes::from(broken.clone())).is_err(), "byte {at} bit {bit}");
            // With the right checksum it may be another valid graph; it is read or refused.
            if at >= 12
                && (bit == at % 8 || at < 2000)
                && let Ok(g) = parse(sealed(broken))
            {
                lacuna_ir::verify::verify(&g).unwrap();
            }
        }
    }
}

#[test]
fn lengths_beyond_the_file_are_refused_before_anything_is_allocated() {
    let file = to_bytes(&graph(9)).unwrap();
    let text_len = u32::from_le_bytes(file[12..16].try_into().unwrap()) as usize;
    let first = (24 + text_len).next_multiple_of(64);
    let with = |at: usize, bytes: &[u8]| {
        let mut broken = file.clone();
        broken[at..at + bytes.len()].copy_from_slice(bytes);
        parse(sealed(broken)).unwrap_err().to_string()
    };
    let all = [0xff; 8];
    assert!(with(12, &all[..4]).contains("cut off"));
    assert!(with(16, &all[..4]).contains("cut off"));
    assert!(with(first + 4, &all[..4]).contains("fewer bits"));
    assert!(with(first + 8, &all).contains("cut off"));
    assert!(with(first, &all[..4]).contains("does not know"));
    assert!(with(first + 64, &all).contains("differ"));
    assert!(with(24, &all).contains("UTF-8"));
    assert!(matches!(parse(Bytes::from_static(b"\x08\x08onnx")), Err(Error::NotAContainer)));
}
