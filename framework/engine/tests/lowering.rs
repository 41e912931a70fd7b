//! The forms in which other tools write quantised graphs, and what they must become.

mod common;

use common::*;
use lacuna_engine::{Isa, Options, Session, Target, lower};
use lacuna_ir::op::{Axes, ClipAttr, GemmAttr, ReduceAttr};
use lacuna_ir::{Attr, Graph, OpId, OpKind, Tensor, ValueId, interp};

fn lowered(g: &Graph) -> Graph {
    lower(g, &Target::new(Some(Isa::Portable), Some(1)).unwrap()).unwrap().0
}

/// Kinds in execution order, layout ops left out.
fn kinds(g: &Graph) -> Vec<OpKind> {
    let layout = [OpKind::Transpose, OpKind::Flatten, OpKind::Reshape];
    g.order.iter().map(|&op| g.op_kind[op]).filter(|k| !layout.contains(k)).collect()
}

fn only(g: &Graph, kind: OpKind) -> OpId {
    let all: Vec<OpId> = g.order.iter().copied().filter(|&op| g.op_kind[op] == kind).collect();
    assert_eq!(all.len(), 1, "{kind:?} in {:?}", kinds(g));
    all[0]
}

/// What the engine gives, which equals what the interpreter gives for the lowered graph.
fn runs_as_lowered(g: &Graph) -> Vec<Tensor> {
    let x = [input(g, 2, 9)];
    let mut session = Session::new(g, &Options::default()).unwrap();
    let got = session.run(&x).unwrap();
    assert_eq!(got, interp::run(session.lowered(), &x).unwrap());
    got
}

/// The engine equals the interpreter of the lowered graph, and both are near the graph as written.
fn runs(g: &Graph) {
    let x = [input(g, 2, 9)];
    let got = runs_as_lowered(g);
    for (got, want) in got.iter().zip(&interp::run(g, &x).unwrap()) {
        let (got, want) = (got.as_f32().unwrap(), want.as_f32().unwrap());
        let near = got.iter().zip(want).filter(|(a, b)| (*a - *b).abs() < 1e-4).count();
        assert!(near * 100 >= want.len() * 98, "{near} of {} are near", want.len());
    }
}

/// i8 weights with one scale for all.
fn tensor_weight(n: &mut Net, dims: &[usize], scale: f32) -> ValueId {
    let w = (0..dims.iter().product()).map(|_| (n.rng.signed() * 90.0) as i8).collect();
    let w = n.tensor(&Tensor::from_i8(dims, w));
    let s = n.tensor(&Tensor::from_f32(&[], vec![scale]));
    let z = n.tensor(&Tensor::from_i8(&[], vec![0]));
    n.op(OpKind::DequantizeLinear, Attr::Axis(0), &[w, s, z])
}

fn conv_of(n: &mut Net, inputs: &[ValueId], pad: u32, k: u32) -> ValueId {
    let attr = lacuna_ir::op::ConvAttr { window: window(k, 1, pad, 1), group: 1 };
    n.op(OpKind::Conv, Attr::Conv(attr), inputs)
}

#[test]
fn a_bias_in_i32_is_taken_as_it_is() {
    let (mut n, x) = Net::new("bias", true, 0.0, &[4, 6, 6]);
    let w = tensor_weight(&mut n, &[5, 4, 3, 3], 0.01);
    let bias = vec![100, -2_000_000, 0, 7, 123_456];
    let b = n.tensor(&Tensor::from_i32(&[5], bias.clone()));
    let s = n.tensor(&Tensor::from_f32(&[5], vec![ACT_SCALE * 0.01; 5]));
    let z = n.tensor(&Tensor::from_i32(&[5], vec![0; 5]));
    let b = n.op(OpKind::DequantizeLinear, Attr::Axis(0), &[b, s, z]);
    let y = conv_of(&mut n, &[x, w, b], 1, 3);
    let y = n.op(OpKind::Clip, Attr::Clip(ClipAttr { min: -0.5, max: 1.0 }), &[y]);
    let y = n.act(y, 60);
    let g = n.finish(&[y]);
    let low = lowered(&g);
    let op = only(&low, OpKind::QConv);
    assert_eq!(low.const_tensor(low.inputs_of(op)[2]).unwrap().as_i32().unwrap(), bias);
    let Attr::QConv(a) = low.op_attr[op] else { panic!() };
    // -0.5 and 1.0 in steps of 4/255 around 60.
    let out = a.out.unwrap();
    assert_eq!((out.zero, out.lo, out.hi), (60, 60 - 32, 60 + 64));
    runs(&g);
}

#[test]
fn an_f32_bias_is_rounded_to_the_accumulators_steps() {
    let (mut n, x) = Net::new("bias", true, 0.0, &[4, 3, 3]);
    let w = tensor_weight(&mut n, &[2, 4, 1, 1], 0.01);
    let step = ACT_SCALE as f64 * 0.01f32 as f64;
    let b = n.tensor(&Tensor::from_f32(&[2], vec![(10.4 * step) as f32, (-7.6 * step) as f32]));
    let y = conv_of(&mut n, &[x, w, b], 0, 1);
    let y = n.act(y, 128);
    let g = n.finish(&[y]);
    let low = lowered(&g);
    let op = only(&low, OpKind::QConv);
    assert_eq!(low.const_tensor(low.inputs_of(op)[2]).unwrap().as_i32().unwrap(), [10, -8]);
}

/// A channel that training switched off has weights of nearly nothing, and so small a step that its bias is too many.
#[test]
fn a_bias_of_too_many_steps_gets_larger_ones() {
    let (mut n, x) = Net::new("bias", true, 0.0, &[4, 5, 5]);
    let w = (0..3 * 4).map(|_| (n.rng.signed() * 90.0) as i8).collect();
    let w = n.tensor(&Tensor::from_i8(&[3, 4, 1, 1], w));
    let s = n.tensor(&Tensor::from_f32(&[3], vec![0.01, 1e-16, 0.02]));
    let z = n.tensor(&Tensor::from_i8(&[3], vec![0; 3]));
    let w = n.op(OpKind::DequantizeLinear, Attr::Axis(0), &[w, s, z]);
    let b = n.tensor(&Tensor::from_f32(&[3], vec![0.1, 0.7, -0.2]));
    let y = conv_of(&mut n, &[x, w, b], 0, 1);
    let y = n.relu(y);
    let y = n.act(y, 0);
    let g = n.finish(&[y]);
    let low = lowered(&g);
    let op = only(&low, OpKind::QConv);
    let bias = low.const_tensor(low.inputs_of(op)[2]).unwrap().as_i32().unwrap().to_vec();
    assert!(bias[1] > 1 << 26 && bias[0] < 1 << 12, "{bias:?}");
    runs(&g);
}

#[test]
fn weights_stored_as_f32_before_a_quantise_op_are_taken_too() {
    let (mut n, x) = Net::new("qdq weights", true, 0.0, &[4, 5, 5]);
    let w: Vec<f32> = (0..6 * 4).map(|_| n.rng.signed()).collect();
    let w = n.tensor(&Tensor::from_f32(&[6, 4, 1, 1], w));
    let s = n.tensor(&Tensor::from_f32(&[6], vec![1.0 / 127.0; 6]));
    let z = n.tensor(&Tensor::from_i8(&[6], vec![0; 6]));
    let q = n.op(OpKind::QuantizeLinear, Attr::Axis(0), &[w, s, z]);
    let w = n.op(OpKind::DequantizeLinear, Attr::Axis(0), &[q, s, z]);
    let y = conv_of(&mut n, &[x, w], 0, 1);
    let y = n.relu(y);
    let y = n.act(y, 0);
    let g = n.finish(&[y]);
    assert_eq!(kinds(&lowered(&g)), [OpKind::QuantizeLinear, OpKind::QConv, OpKind::DequantizeLinear]);
    runs(&g);
}

#[test]
fn matmul_and_add_become_one_product() {
    for bias_first in [false, true] {
        let (mut n, x) = Net::new("matmul", true, 0.0, &[12]);
        let w: Vec<i8> = (0..12 * 7).map(|i| (i * 5 % 200) as i8).collect();
        let w = n.tensor(&Tensor::from_i8(&[12, 7], w));
        let s = n.tensor(&Tensor::from_f32(&[7], (1..8).map(|i| i as f32 * 1e-3).collect()));
        let z = n.tensor(&Tensor::from_i8(&[7], vec![0; 7]));
        let w = n.op(OpKind::DequantizeLinear, Attr::Axis(1), &[w, s, z]);
        let y = n.op(OpKind::MatMul, Attr::None, &[x, w]);
        let b = n.bias(7);
        let y = n.op(OpKind::Add, Attr::None, &if bias_first { [b, y] } else { [y, b] });
        let g = n.finish(&[y]);
        assert_eq!(kinds(&lowered(&g)), [OpKind::QuantizeLinear, OpKind::QGemm]);
        let low = lowered(&g);
        let Attr::QGemm(a) = low.op_attr[only(&low, OpKind::QGemm)] else { panic!() };
        assert!(a.out.is_none());
        let x = [input(&g, 3, 2)];
        let mut session = Session::new(&g, &Options::default()).unwrap();
        assert_eq!(session.run(&x).unwrap(), interp::run(session.lowered(), &x).unwrap());
    }
}

#[test]
fn a_mean_over_height_and_width_without_kept_axes() {
    for axes in [[2, 3], [-1, -2]] {
        let (mut n, x) = Net::new("mean", true, 0.0, &[20, 5, 4]);
        let attr = ReduceAttr { axes: Axes::new(&axes).unwrap(), keep_dims: false };
        let y = n.op(OpKind::ReduceMean, Attr::Reduce(attr), &[x]);
        let y = n.act(y, 120);
        let w = tensor_weight(&mut n, &[3, 20], 0.02);
        let attr = GemmAttr { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: true };
        let y = n.op(OpKind::Gemm, Attr::Gemm(attr), &[y, w]);
        let g = n.finish(&[y]);
        assert_eq!(kinds(&lowered(&g)), [OpKind::QuantizeLinear, OpKind::QGlobalAvgPool, OpKind::QGemm]);
        let x = [input(&g, 3, 2)];
        let mut session = Session::new(&g, &Options::default()).unwrap();
        assert_eq!(session.run(&x).unwrap(), interp::run(session.lowered(), &x).unwrap());
    }
}

/// What the integer scheme cannot express runs in f32 between its quantise and dequantise ops.
#[test]
fn what_does_not_match_stays_in_f32_and_right() {
    // Asymmetric weights.
    let (mut n, x) = Net::new("asymmetric", true, 0.0, &[4, 5, 5]);
    let w = n.tensor(&Tensor::from_i8(&[3, 4, 1, 1], (0..12).map(|i| i * 9 - 50).collect()));
    let s = n.tensor(&Tensor::from_f32(&[], vec![0.01]));
    let z = n.tensor(&Tensor::from_i8(&[], vec![5]));
    let w = n.op(OpKind::DequantizeLinear, Attr::Axis(0), &[w, s, z]);
    let y = conv_of(&mut n, &[x, w], 0, 1);
    let y = n.act(y, 128);
    let g = n.finish(&[y]);
    let low = lowered(&g);
    only(&low, OpKind::FusedConv);
    assert!(!kinds(&low).contains(&OpKind::QConv));
    let x = [input(&g, 2, 4)];
    let want = interp::run(&g, &x).unwrap();
    let got = Session::new(&g, &Options::default()).unwrap().run(&x).unwrap();
    let off = |a: &f32, b: &f32| (a - b).abs() > 1e-6;
    let (got, want) = (got[0].as_f32().unwrap(), want[0].as_f32().unwrap());
    assert!(got.iter().zip(want).filter(|(a, b)| off(a, b)).count() <= 1);

    // A bias that no steps hold.
    let (mut n, x) = Net::new("large bias", true, 0.0, &[4, 3, 3]);
    let w = tensor_weight(&mut n, &[1, 4, 1, 1], 1e-9);
    let b = n.tensor(&Tensor::from_f32(&[1], vec![f32::INFINITY]));
    let y = conv_of(&mut n, &[x, w, b], 0, 1);
    let y = n.act(y, 0);
    let g = n.finish(&[y]);
    only(&lowered(&g), OpKind::FusedConv);

    // A result that something else reads in f32 as well.
    let (mut n, x) = Net::new("read twice", true, 0.0, &[4, 3, 3]);
    let w = tensor_weight(&mut n, &[4, 4, 1, 1], 0.01);
    let y = conv_of(&mut n, &[x, w], 0, 1);
    let q = n.act(y, 128);
    let g = n.finish(&[q, y]);
    let low = lowered(&g);
    assert!(matches!(low.op_attr[only(&low, OpKind::QConv)], Attr::QConv(a) if a.out.is_none()));
    runs(&g);
}

/// Quantise and dequantise ops with different scales in a row are not the identity.
#[test]
fn only_equal_pairs_cancel() {
    let (mut n, x) = Net::new("pairs", true, 0.0, &[5]);
    let same = n.act(x, 120);
    let other = n.act_scaled(same, 100, 0.05);
    let g = n.finish(&[other]);
    use OpKind::{DequantizeLinear, QLookup, QuantizeLinear};
    assert_eq!(kinds(&lowered(&g)), [QuantizeLinear, QLookup, DequantizeLinear]);
    let x = [input(&g, 4, 4)];
    let got = Session::new(&g, &Options::default()).unwrap().run(&x).unwrap();
    assert_eq!(got, interp::run(&g, &x).unwrap());
}

fn count(g: &Graph, kind: OpKind) -> usize {
    kinds(g).iter().filter(|&&k| k == kind).count()
}

/// Ops of a lowered graph that are not integer convolutions, and their number.
fn beside_convolutions(g: &Graph) -> Vec<OpKind> {
    kinds(g).into_iter().filter(|k| *k != OpKind::QConv).collect()
}

#[test]
fn gates_and_silu_of_bytes_are_tables_and_products() {
    use OpKind::*;
    let g = gated(true, 0.5);
    let low = lowered(&g);
    // Every SiLU, every sigmoid and the residual sum are inside the convolutions.
    let want = [QuantizeLinear, QGlobalAvgPool, QMul, QGlobalAvgPool, QMul, QGlobalAvgPool, QGemm];
    assert_eq!(beside_convolutions(&low), want);
    let convs: Vec<OpId> = low.order.iter().copied().filter(|&op| low.op_kind[op] == QConv).collect();
    assert_eq!(convs.iter().filter(|&&op| low.input_of(op, 5).is_some()).count(), 10);
    let late = |op: &&OpId| matches!(low.op_attr[**op], Attr::QConv(a) if a.late.is_some());
    assert_eq!(convs.iter().filter(late).count(), 1);
    runs_as_lowered(&g);
}

#[test]
fn joins_resizes_and_pools_move_bytes() {
    use OpKind::*;
    let g = pyramid(true, 0.5);
    let low = lowered(&g);
    assert_eq!(beside_convolutions(&low), [QuantizeLinear, ResizeNhwc, MaxPoolNhwc, Concat, Concat]);
    // Whoever makes a part of a join writes it there.
    let session = Session::new(&g, &Options::default()).unwrap();
    assert!(session.steps().iter().all(|s| s.kind != "Concat"));
    // The last convolution's sums leave as floats.
    let last = *low.order.iter().rfind(|&&op| low.op_kind[op] == QConv).unwrap();
    assert!(matches!(low.op_attr[last], Attr::QConv(a) if a.out.is_none()));
    runs_as_lowered(&g);
}

#[test]
fn a_join_of_other_scales_changes_them_in_tables() {
    let (mut n, x) = Net::new("scales", true, 0.0, &[4, 6, 6]);
    let a = n.conv(x, 16, 1, 1, 0);
    let a = n.act_scaled(a, 100, 0.011);
    let b = n.conv(x, 16, 3, 1, 1);
    let b = n.act_scaled(b, 128, 0.02);
    let y = n.op(OpKind::Concat, Attr::Axis(1), &[a, b]);
    let y = n.act_scaled(y, 120, 0.018);
    let y = n.conv(y, 8, 1, 1, 0);
    let g = n.finish(&[y]);
    let low = lowered(&g);
    assert_eq!(beside_convolutions(&low), [OpKind::QuantizeLinear, OpKind::Concat]);
    let tables =
        low.order.iter().filter(|&&op| low.op_kind[op] == OpKind::QConv && low.input_of(op, 5).is_some());
    assert_eq!(tables.count(), 2);
    runs(&g);
}

/// A value with two readers keeps its bytes; what each makes of them is a table of its own.
#[test]
fn a_value_that_others_read_is_not_looked_up_in_place() {
    let (mut n, x) = Net::new("two", true, 0.0, &[4, 5, 5]);
    let y = n.conv(x, 16, 1, 1, 0);
    let y = n.act(y, 128);
    let s = n.op(OpKind::Sigmoid, Attr::None, &[y]);
    let s = n.act_scaled(s, 0, 1.0 / 256.0);
    let a = n.conv(s, 8, 1, 1, 0);
    let b = n.conv(y, 8, 1, 1, 0);
    let g = n.finish(&[a, b]);
    let low = lowered(&g);
    assert_eq!(count(&low, OpKind::QLookup), 1);
    assert_eq!(count(&low, OpKind::QConv), 3);
    runs(&g);
}

/// As [`runs`], for graphs whose f32 sums the engine makes in another order than the interpreter.
fn runs_near(g: &Graph) {
    let x = [input(g, 2, 9)];
    let got = Session::new(g, &Options::default()).unwrap().run(&x).unwrap();
    let want = interp::run(g, &x).unwrap();
    for (got, want) in got.iter().zip(&want) {
        assert_eq!(got.dims, want.dims);
        let (got, want) = (got.as_f32().unwrap(), want.as_f32().unwrap());
        let near = got.iter().zip(want).filter(|(a, b)| (*a - *b).abs() < 1e-4).count();
        assert!(near * 100 >= want.len() * 98, "{near} of {} are near", want.len());
    }
}

/// Every second row and column of x, from this row and column on: two cuts in a row, or one along both axes.
fn phase(n: &mut Net, x: ValueId, begin: [i64; 2], at_once: bool) -> ValueId {
    let numbers = |n: &mut Net, v: &[i64]| n.tensor(&Tensor::from_i64(&[v.len()], v.to_vec()));
    let cut = |n: &mut Net, x, axes: &[i64], begin: &[i64]| {
        let lists = [begin, &vec![i64::MAX; axes.len()], axes, &vec![2; axes.len()]].map(|v| numbers(n, v));
        n.op(OpKind::Slice, Attr::None, &[x, lists[0], lists[1], lists[2], lists[3]])
    };
    match at_once {
        true => cut(n, x, &[2, 3], &begin),
        false => {
            let rows = cut(n, x, &[2], &begin[..1]);
            cut(n, rows, &[3], &begin[1..])
        }
    }
}

fn focus(quantised: bool, at_once: bool, size: [usize; 2], begin: [[i64; 2]; 4], stride: u32) -> Graph {
    let (mut n, x) = Net::new("focus", quantised, 0.0, &[3, size[0], size[1]]);
    let parts = begin.map(|begin| phase(&mut n, x, begin, at_once));
    let y = n.op(OpKind::Concat, Attr::Axis(1), &parts);
    let y = n.act(y, 120);
    let y = n.conv_relu(y, 8, 3, stride, 1);
    n.finish(&[y])
}

#[test]
fn a_convolution_of_four_phases_is_one_of_the_image() {
    let yolo = [[0, 0], [1, 0], [0, 1], [1, 1]];
    for (quantised, at_once, stride) in
        [(false, false, 1), (false, true, 2), (true, false, 1), (true, true, 1)]
    {
        for begin in [yolo, [[1, 1], [0, 1], [0, 0], [1, 0]]] {
            let g = focus(quantised, at_once, [12, 8], begin, stride);
            let low = lowered(&g);
            assert!(
                !kinds(&low).iter().any(|k| matches!(k, OpKind::Slice | OpKind::Concat)),
                "{:?}",
                kinds(&low)
            );
            runs_near(&g);
        }
    }
    // A phase twice.
    let twice = focus(false, true, [12, 8], [[0, 0], [1, 0], [0, 0], [1, 1]], 1);
    assert!(kinds(&lowered(&twice)).contains(&OpKind::Concat));
    runs_near(&twice);
}

/// The second convolution reads a value that the pass has made.
#[test]
fn a_convolution_may_follow_that_of_four_phases() {
    let (mut n, x) = Net::new("focus", false, 0.0, &[3, 12, 8]);
    let parts = [[0, 0], [1, 0], [0, 1], [1, 1]].map(|begin| phase(&mut n, x, begin, true));
    let y = n.op(OpKind::Concat, Attr::Axis(1), &parts);
    let y = n.conv(y, 8, 3, 1, 1);
    let y = n.conv(y, 8, 3, 1, 1);
    let g = n.finish(&[y]);
    assert!(!kinds(&lowered(&g)).contains(&OpKind::Concat));
    runs_near(&g);
}

#[test]
fn heads_are_turned_before_they_are_joined() {
    for quantised in [false, true] {
        let (mut n, x) = Net::new("heads", quantised, 0.0, &[3, 8, 8]);
        let a = n.conv_relu(x, 16, 3, 1, 1);
        let b = n.conv_relu(a, 16, 3, 2, 1);
        let flat: Vec<ValueId> = [a, b]
            .map(|x| {
                let y = n.conv(x, 7, 1, 1, 0);
                let dims = n.tensor(&Tensor::from_i64(&[3], vec![0, 7, -1]));
                n.op(OpKind::Reshape, Attr::None, &[y, dims])
            })
            .to_vec();
        let y = n.op(OpKind::Concat, Attr::Axis(2), &flat);
        let perm = Attr::Perm(Axes::new(&[0, 2, 1]).unwrap());
        let y = n.op(OpKind::Transpose, perm, &[y]);
        let g = n.finish(&[y]);
        let low = lowered(&g);
        // That of the input is left.
        let turns = low.order.iter().filter(|&&op| low.op_kind[op] == OpKind::Transpose).count();
        assert_eq!(turns, 1, "{:?}", kinds(&low));
        runs_near(&g);
    }
}
