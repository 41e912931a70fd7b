//! Every op on values worked out by hand, and the convolutions against a second, differently written one.

use lacuna_ir::op::*;
use lacuna_ir::{DType, Dim, Elements, Graph, OPS, Tensor, ValueId, interp, verify};

struct Case {
    kind: OpKind,
    attr: Attr,
    inputs: Vec<Option<Tensor>>,
    want: Tensor,
}

fn case(kind: OpKind, attr: Attr, inputs: &[Tensor], want: Tensor) -> Case {
    Case { kind, attr, inputs: inputs.iter().cloned().map(Some).collect(), want }
}

fn f(dims: &[usize], x: &[f32]) -> Tensor {
    Tensor::from_f32(dims, x.to_vec())
}

fn u(dims: &[usize], x: &[u8]) -> Tensor {
    Tensor::from_u8(dims, x.to_vec())
}

fn i(dims: &[usize], x: &[i8]) -> Tensor {
    Tensor::from_i8(dims, x.to_vec())
}

fn n(dims: &[usize], x: &[i32]) -> Tensor {
    Tensor::from_i32(dims, x.to_vec())
}

fn l(dims: &[usize], x: &[i64]) -> Tensor {
    Tensor::from_i64(dims, x.to_vec())
}

fn window(kernel: u32, stride: u32, pads: [u32; 4]) -> Window {
    Window { kernel: [kernel; 2], stride: [stride; 2], dilation: [1, 1], pads }
}

fn conv(kernel: u32) -> ConvAttr {
    ConvAttr { window: window(kernel, 1, [0; 4]), group: 1 }
}

fn pool(kernel: u32, stride: u32, pads: [u32; 4], ceil_mode: bool, count_include_pad: bool) -> Attr {
    Attr::Pool(PoolAttr { window: window(kernel, stride, pads), ceil_mode, count_include_pad })
}

fn axes(list: &[i64]) -> Axes {
    Axes::new(list).unwrap()
}

const ONE_TO_NINE: [f32; 9] = [1., 2., 3., 4., 5., 6., 7., 8., 9.];

/// Model ops that compute on f32 planes and matrices.
fn model_cases() -> Vec<Case> {
    use OpKind::*;
    let x9 = || f(&[1, 1, 3, 3], &ONE_TO_NINE);
    let gemm = Attr::Gemm(GemmAttr { alpha: 2.0, beta: 3.0, trans_a: false, trans_b: true });
    let gemm_a = Attr::Gemm(GemmAttr { alpha: 1.0, beta: 1.0, trans_a: true, trans_b: false });
    vec![
        case(
            Conv,
            Attr::Conv(conv(2)),
            &[x9(), f(&[1, 1, 2, 2], &[1., 0., 0., 1.]), f(&[1], &[10.])],
            f(&[1, 1, 2, 2], &[16., 18., 22., 24.]),
        ),
        case(
            Gemm,
            gemm,
            &[f(&[1, 2], &[1., 2.]), f(&[2, 2], &[3., 4., 5., 6.]), f(&[2], &[1., -1.])],
            f(&[1, 2], &[25., 31.]),
        ),
        case(
            Gemm,
            gemm_a,
            &[f(&[2, 2], &[1., 2., 3., 4.]), f(&[2, 1], &[1., 10.]), f(&[2, 1], &[100., 200.])],
            f(&[2, 1], &[131., 242.]),
        ),
        case(MatMul, Attr::None, &[f(&[2, 2], &[1., 2., 3., 4.]), f(&[2], &[5., 6.])], f(&[2], &[17., 39.])),
        case(
            MatMul,
            Attr::None,
            &[f(&[2, 1, 2], &[1., 2., 3., 4.]), f(&[1, 2, 1], &[1., 10.])],
            f(&[2, 1, 1], &[21., 43.]),
        ),
        case(
            BatchNormalization,
            Attr::Epsilon(0.0),
            &[
                f(&[1, 2, 1, 1], &[3., 5.]),
                f(&[2], &[2., 1.]),
                f(&[2], &[1., 0.]),
                f(&[2], &[1., 5.]),
                f(&[2], &[4., 1.]),
            ],
            f(&[1, 2, 1, 1], &[3., 0.]),
        ),
        case(Relu, Attr::None, &[f(&[4], &[-1., 0., 2., -0.0])], f(&[4], &[0., 0., 2., 0.])),
        case(Sigmoid, Attr::None, &[f(&[3], &[0., 1000., -1000.])], f(&[3], &[0.5, 1., 0.])),
        case(
            Clip,
            Attr::Clip(ClipAttr { min: -1., max: 6. }),
            &[f(&[4], &[-2., 0.5, 9., f32::NAN])],
            f(&[4], &[-1., 0.5, 6., f32::NAN]),
        ),
        case(Identity, Attr::None, &[u(&[2], &[7, 0])], u(&[2], &[7, 0])),
        case(
            Add,
            Attr::None,
            &[f(&[2, 1], &[1., 2.]), f(&[2], &[10., 20.])],
            f(&[2, 2], &[11., 21., 12., 22.]),
        ),
        case(Sub, Attr::None, &[l(&[2], &[5, i64::MIN]), l(&[], &[1])], l(&[2], &[4, i64::MAX])),
        case(Mul, Attr::None, &[f(&[1], &[3.]), f(&[2, 1, 1], &[0.5, -2.])], f(&[2, 1, 1], &[1.5, -6.])),
        case(
            Div,
            Attr::None,
            &[n(&[3], &[-7, 7, i32::MIN]), n(&[3], &[2, 2, -1])],
            n(&[3], &[-3, 3, i32::MIN]),
        ),
        case(Erf, Attr::None, &[f(&[3], &[0., 9., -9.])], f(&[3], &[0., 1., -1.])),
        // Padding counts as the zero point: one pixel of 9 around it, twice and minus three times.
        case(
            ConvInteger,
            Attr::Conv(ConvAttr { window: Window { pads: [1; 4], ..conv(1).window }, group: 1 }),
            &[u(&[1, 1, 1, 1], &[14]), u(&[2, 1, 1, 1], &[9, 4]), u(&[], &[5]), u(&[2], &[7, 7])],
            n(&[1, 2, 3, 3], &[0, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0, 0, -27, 0, 0, 0, 0]),
        ),
        case(
            MatMulInteger,
            Attr::None,
            &[u(&[2, 2], &[1, 2, 3, 4]), i(&[2, 2], &[1, 2, 3, -4]), u(&[2], &[1, 0]), i(&[2], &[1, 0])],
            n(&[2, 2], &[2, -4, 8, -10]),
        ),
        // A range of -1 to 1.55 is 0.01 a step, and its zero point 100; one that is all positive begins at 0.
        case(
            DynamicQuantizeLinear,
            Attr::None,
            &[f(&[4], &[-1., 0., 0.126, 1.55])],
            u(&[4], &[0, 100, 113, 255]),
        ),
        case(DynamicQuantizeLinear, Attr::None, &[f(&[2], &[1., 2.55])], u(&[2], &[100, 255])),
        case(DynamicQuantizeLinear, Attr::None, &[f(&[2], &[0., 0.])], u(&[2], &[0, 0])),
        case(Tanh, Attr::None, &[f(&[3], &[0., 90., -90.])], f(&[3], &[0., 1., -1.])),
        case(
            LayerNormalization,
            Attr::Norm(NormAttr { axis: 1, epsilon: 0.0 }),
            &[f(&[2, 1, 2], &[1., 3., 8., 4.]), f(&[1, 2], &[2., 3.]), f(&[1, 2], &[0., 1.])],
            f(&[2, 1, 2], &[-2., 4., 2., -2.]),
        ),
        case(Sqrt, Attr::None, &[f(&[2], &[4., 2.])], f(&[2], &[2., std::f32::consts::SQRT_2])),
        case(MaxPool, pool(2, 2, [0; 4], true, false), &[x9()], f(&[1, 1, 2, 2], &[5., 6., 8., 9.])),
        case(
            AveragePool,
            pool(2, 1, [1, 1, 0, 0], false, false),
            &[f(&[1, 1, 2, 2], &[1., 2., 3., 4.])],
            f(&[1, 1, 2, 2], &[1., 1.5, 2., 2.5]),
        ),
        case(
            AveragePool,
            pool(2, 1, [1, 1, 0, 0], false, true),
            &[f(&[1, 1, 2, 2], &[1., 2., 3., 4.])],
            f(&[1, 1, 2, 2], &[0.25, 0.75, 1., 2.5]),
        ),
        // The last window lies half beyond the padding, which counts for nothing.
        case(AveragePool, pool(2, 2, [0; 4], true, true), &[x9()], f(&[1, 1, 2, 2], &[3., 4.5, 7.5, 9.])),
        case(GlobalAveragePool, Attr::None, &[x9()], f(&[1, 1, 1, 1], &[5.])),
    ]
}

/// Model ops that reduce, move and quantise.
fn layout_cases() -> Vec<Case> {
    use OpKind::*;
    let x6 = || f(&[2, 3], &[1., 2., 3., 4., 5., 6.]);
    let reduce = |list: &[i64], keep_dims| Attr::Reduce(ReduceAttr { axes: axes(list), keep_dims });
    vec![
        case(ReduceMean, reduce(&[-1], false), &[x6()], f(&[2], &[2., 5.])),
        case(ReduceMean, reduce(&[0], true), &[x6()], f(&[1, 3], &[2.5, 3.5, 4.5])),
        case(ReduceMean, reduce(&[], false), &[x6()], f(&[], &[3.5])),
        case(Softmax, Attr::Axis(-1), &[f(&[2, 2], &[1., 1., 0., -1000.])], f(&[2, 2], &[0.5, 0.5, 1., 0.])),
        case(Softmax, Attr::Axis(0), &[f(&[2, 1], &[7., 7.])], f(&[2, 1], &[0.5, 0.5])),
        case(Reshape, Attr::None, &[x6(), l(&[2], &[-1, 2])], f(&[3, 2], x6().as_f32().unwrap())),
        case(Unsqueeze, Attr::Axes(axes(&[0, -1])), &[u(&[2], &[1, 2])], u(&[1, 2, 1], &[1, 2])),
        case(Squeeze, Attr::Axes(axes(&[])), &[u(&[1, 2, 1], &[1, 2])], u(&[2], &[1, 2])),
        case(Squeeze, Attr::Axes(axes(&[-1])), &[u(&[1, 2, 1], &[1, 2])], u(&[1, 2], &[1, 2])),
        case(
            Gather,
            Attr::Axis(0),
            &[x6(), l(&[3], &[1, 0, -1])],
            f(&[3, 3], &[4., 5., 6., 1., 2., 3., 4., 5., 6.]),
        ),
        case(Gather, Attr::Axis(1), &[x6(), l(&[], &[-1])], f(&[2], &[3., 6.])),
        case(Gather, Attr::Axis(-1), &[x6(), n(&[1, 2], &[1, 0])], f(&[2, 1, 2], &[2., 1., 5., 4.])),
        case(Cast, Attr::Cast(DType::F32), &[n(&[2], &[-3, 7])], f(&[2], &[-3., 7.])),
        case(Cast, Attr::Cast(DType::I64), &[f(&[3], &[-1.9, 2.5, f32::NAN])], l(&[3], &[-1, 2, 0])),
        case(Cast, Attr::Cast(DType::U8), &[n(&[2], &[-1, 256])], u(&[2], &[255, 0])),
        case(Flatten, Attr::Axis(2), &[u(&[1, 2, 1, 2], &[1, 2, 3, 4])], u(&[2, 2], &[1, 2, 3, 4])),
        case(Transpose, Attr::Perm(axes(&[1, 0])), &[x6()], f(&[3, 2], &[1., 4., 2., 5., 3., 6.])),
        case(
            Transpose,
            Attr::Perm(axes(&[2, 0, 1])),
            &[i(&[1, 2, 3], &[1, 2, 3, 4, 5, 6])],
            i(&[3, 1, 2], &[1, 4, 2, 5, 3, 6]),
        ),
        case(
            Concat,
            Attr::Axis(1),
            &[x6(), f(&[2, 1], &[7., 8.])],
            f(&[2, 4], &[1., 2., 3., 7., 4., 5., 6., 8.]),
        ),
        case(
            Resize,
            Attr::Resize(ResizeAttr { scale: [1, 2] }),
            &[f(&[1, 2, 1, 2], &[1., 2., 3., 4.])],
            f(&[1, 2, 1, 4], &[1., 1., 2., 2., 3., 3., 4., 4.]),
        ),
        // Ties go to the even neighbour, then the zero point moves them.
        case(
            QuantizeLinear,
            Attr::Axis(0),
            &[f(&[7], &[0.5, 1.5, 2.5, -1000., f32::NAN, f32::INFINITY, -2.5]), f(&[], &[1.]), u(&[], &[3])],
            u(&[7], &[3, 5, 5, 0, 3, 255, 1]),
        ),
        case(
            QuantizeLinear,
            Attr::Axis(-1),
            &[f(&[2, 2], &[1., 1., -9., 64.]), f(&[2], &[0.5, 0.25]), i(&[2], &[0, -1])],
            i(&[2, 2], &[2, 3, -18, 127]),
        ),
        case(
            DequantizeLinear,
            Attr::Axis(0),
            &[i(&[2, 2], &[3, -1, 0, -128]), f(&[2], &[0.5, 2.]), i(&[2], &[1, -1])],
            f(&[2, 2], &[1., -1., 2., -254.]),
        ),
        case(
            DequantizeLinear,
            Attr::Axis(1),
            &[u(&[2], &[0, 255]), f(&[1], &[0.5]), u(&[1], &[255])],
            f(&[2], &[-127.5, 0.]),
        ),
        case(
            DequantizeLinear,
            Attr::Axis(0),
            &[n(&[2], &[-4, 1 << 24]), f(&[2], &[0.25, 2.]), n(&[2], &[0, 0])],
            f(&[2], &[-1., 33_554_432.]),
        ),
    ]
}

fn engine_cases() -> Vec<Case> {
    use OpKind::*;
    let out = |zero, lo| Requant { zero, lo, hi: 255 };
    let qconv = QConvAttr {
        conv: conv(1),
        x_zero: 10,
        out: Some(out(100, 100)),
        residual_mult: 0.25,
        residual_zero: 7,
        late: None,
    };
    let late = QConvAttr { late: Some(LateAdd { mult: 0.5, zero: 100, out: out(1, 0) }), ..qconv };
    let qgemm = |out| Attr::QGemm(QGemmAttr { x_zero: 1, out });
    let qgemm_in = [u(&[1, 2], &[1, 2]), i(&[2, 2], &[1, 2, 3, -4]), n(&[2], &[0, 1]), f(&[2], &[1.5, 0.25])];
    let qconv_in = [u(&[1, 1, 2, 1], &[10, 20]), i(&[1, 1, 1, 1], &[3]), n(&[1], &[5]), f(&[1], &[0.5])];
    let mut rank3 = qgemm_in.to_vec();
    rank3[0] = u(&[1, 1, 2], &[1, 2]);
    let half = Affine { mult: 0.5, zero: 0 };
    let add_norm = AddNormAttr { a: half, b: half, epsilon: 0.0, y_mult: 1.0, out: None, keep: true };
    let attention = QAttentionAttr {
        heads: 2,
        q_zero: 1,
        k_zero: 1,
        v_zero: 10,
        score_mult: 2.0,
        p_mult: 5.0,
        out_mult: 0.2,
        out: out(100, 0),
    };
    let mut with_residual = qconv_in.to_vec();
    with_residual.push(u(&[1, 1, 2, 1], &[11, 255]));
    // Reverses, so that 102 becomes 153 and 118 becomes 137.
    let reverse = u(&[256], &(0..=255).rev().collect::<Vec<u8>>());
    let looked_up: Vec<_> = qconv_in.iter().cloned().map(Some).chain([None, Some(reverse.clone())]).collect();
    let both: Vec<Tensor> = with_residual.iter().chain([&reverse]).cloned().collect();
    vec![
        case(
            FusedConv,
            Attr::FusedConv(FusedConvAttr { conv: conv(1), clip: ClipAttr { min: 0., max: 6. } }),
            &[
                f(&[1, 1, 2, 2], &[1., 2., 3., 4.]),
                f(&[1, 1, 1, 2], &[1., -1.]),
                f(&[1], &[0.5]),
                f(&[1, 1, 2, 1], &[10., -10.]),
            ],
            f(&[1, 1, 2, 1], &[6., 0.]),
        ),
        // 1, 10, 100 from the first element and 2, 20, 200 from the second, two rows further down; the first row is cut off.
        case(
            FusedConvTranspose,
            Attr::FusedConv(FusedConvAttr {
                conv: ConvAttr {
                    window: Window { kernel: [3, 1], stride: [2, 1], dilation: [1, 1], pads: [1, 0, 0, 0] },
                    group: 1,
                },
                clip: ClipAttr { min: 0., max: 150. },
            }),
            &[f(&[1, 2, 1, 1], &[1., 2.]), f(&[1, 3, 1, 1], &[1., 10., 100.]), f(&[1], &[0.5])],
            f(&[1, 4, 1, 1], &[10.5, 102.5, 20.5, 150.]),
        ),
        // 5·0.5 = 2.5 ties to 2; 35·0.5 = 17.5 ties to 18.
        // Rows 1, 3 and 2, 3 become -1, 1; times 3 and halved, 1.5 ties to 2.
        case(
            AddNorm,
            Attr::AddNorm(AddNormAttr { y_mult: 0.5, out: Some(out(10, 0)), ..add_norm }),
            &[
                u(&[2, 2], &[4, 8, 4, 6]),
                f(&[2], &[3., 3.]),
                f(&[2], &[0., 0.]),
                f(&[2, 2], &[-1., -1., 0., 0.]),
            ],
            u(&[2, 2], &[8, 12, 8, 12]),
        ),
        case(
            AddNorm,
            Attr::AddNorm(add_norm),
            &[f(&[1, 2], &[1., 3.]), f(&[2], &[3., 3.]), f(&[2], &[0., 1.])],
            f(&[1, 2], &[-3., 4.]),
        ),
        // Two heads of one channel: scores 2 and 0 (as powers of two) make 4/5 and 1/5; equal ones a tie, 2.5.
        case(
            QAttention,
            Attr::QAttention(attention),
            &[u(&[1, 1, 2], &[2, 3]), u(&[1, 2, 2], &[2, 5, 1, 5]), u(&[1, 2, 2], &[14, 20, 24, 255])],
            u(&[1, 1, 2], &[106, 202]),
        ),
        case(
            QAttention,
            Attr::QAttention(attention),
            &[
                u(&[1, 1, 2], &[2, 3]),
                u(&[1, 2, 2], &[2, 5, 1, 5]),
                u(&[1, 2, 2], &[14, 20, 24, 255]),
                f(&[1, 1, 1, 2], &[0., -1e4]),
            ],
            u(&[1, 1, 2], &[104, 110]),
        ),
        case(QGemm, qgemm(None), &rank3, f(&[1, 1, 2], &[3., -0.75])),
        case(QConv, Attr::QConv(qconv), &qconv_in, u(&[1, 1, 2, 1], &[102, 118])),
        case(QConv, Attr::QConv(QConvAttr { out: None, ..qconv }), &qconv_in, f(&[1, 1, 2, 1], &[2.5, 17.5])),
        // With (r - 7)·0.25 = 1 and 62: 3.5 and 79.5 tie to 4 and 80.
        case(QConv, Attr::QConv(qconv), &with_residual, u(&[1, 1, 2, 1], &[104, 180])),
        // Late: 102 and 118 first, then (2, 18) / 2 + (1, 62) and the zero point 1.
        case(QConv, Attr::QConv(late), &with_residual, u(&[1, 1, 2, 1], &[3, 72])),
        Case {
            kind: QConv,
            attr: Attr::QConv(qconv),
            inputs: looked_up,
            want: u(&[1, 1, 2, 1], &[153, 137]),
        },
        // The table comes first: (53, 37) / 2 = 26.5 and 18.5, plus (1, 62): 27.5 ties to 28, 80.5 to 80.
        case(QConv, Attr::QConv(late), &both, u(&[1, 1, 2, 1], &[29, 81])),
        case(Silu, Attr::None, &[f(&[2], &[0., 100.])], f(&[2], &[0., 100.])),
        // Steps of a half: 0.3 and 63.6 go to the nearest.
        case(
            DynamicCentred,
            Attr::None,
            &[f(&[4], &[-1.5, 0.3, 63.6, 126.])],
            f(&[4], &[-3., 1., 127., 252.]),
        ),
        case(
            QuantizeSilu,
            Attr::Axis(0),
            &[f(&[3], &[0., 50., -50.]), f(&[], &[0.5]), u(&[], &[3])],
            u(&[3], &[3, 103, 3]),
        ),
        case(QLookup, Attr::None, &[u(&[2], &[0, 7]), reverse.clone()], u(&[2], &[255, 248])),
        case(
            QMul,
            Attr::QMul(QMulAttr { a_zero: 2, b_zero: 1, mult: 0.25, out: out(10, 0) }),
            &[u(&[1, 2, 2], &[2, 4, 0, 255]), u(&[1, 1, 2], &[3, 0])],
            // Factors 0.5 and -0.25: 0, -0.5 (ties to 0), -1, -63.25.
            u(&[1, 2, 2], &[10, 10, 9, 0]),
        ),
        case(
            ResizeNhwc,
            Attr::Resize(ResizeAttr { scale: [2, 1] }),
            &[u(&[1, 2, 1, 2], &[1, 2, 3, 4])],
            u(&[1, 4, 1, 2], &[1, 2, 1, 2, 3, 4, 3, 4]),
        ),
        case(QGemm, qgemm(None), &qgemm_in, f(&[1, 2], &[3., -0.75])),
        case(QGemm, qgemm(Some(out(128, 0))), &qgemm_in, u(&[1, 2], &[131, 127])),
        case(
            QAdd,
            Attr::QAdd(QAddAttr { a_mult: 1., a_zero: 10, b_mult: 0.5, b_zero: 3, out: out(5, 5) }),
            &[u(&[3], &[10, 0, 0]), u(&[3], &[4, 255, 3])],
            u(&[3], &[5, 121, 5]),
        ),
        case(
            QGlobalAvgPool,
            Attr::QPool(QPoolAttr { x_zero: 1, mult: 0.5, out: out(0, 0) }),
            &[u(&[1, 1, 2, 2], &[1, 2, 4, 5])],
            u(&[1, 1, 1, 2], &[2, 2]),
        ),
        case(
            MaxPoolNhwc,
            pool(2, 2, [0; 4], false, false),
            &[u(&[1, 2, 2, 2], &[1, 80, 2, 70, 9, 60, 4, 50])],
            u(&[1, 1, 1, 2], &[9, 80]),
        ),
        case(
            MaxPoolNhwc,
            pool(2, 1, [1, 1, 0, 0], false, false),
            &[f(&[1, 1, 1, 2], &[-3., -4.])],
            f(&[1, 1, 1, 2], &[-3., -4.]),
        ),
        case(
            AveragePoolNhwc,
            pool(2, 2, [0; 4], false, false),
            &[f(&[1, 2, 2, 1], &[1., 2., 3., 6.])],
            f(&[1, 1, 1, 1], &[3.]),
        ),
        case(
            GlobalAvgPoolNhwc,
            Attr::None,
            &[f(&[1, 1, 2, 2], &[1., 2., 4., 8.])],
            f(&[1, 1, 1, 2], &[2.5, 5.]),
        ),
    ]
}

fn cases() -> Vec<Case> {
    model_cases().into_iter().chain(layout_cases()).chain(engine_cases()).collect()
}

fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    match (&a.elements, &b.elements) {
        (Elements::F32(x), Elements::F32(y)) => {
            let same = |(x, y): (&f32, &f32)| x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan());
            a.dims == b.dims && x.iter().zip(y).all(same)
        }
        _ => a == b,
    }
}

/// A graph of one op; i64 inputs become constants, as Reshape needs.
fn graph_of(c: &Case) -> (Graph, Vec<Tensor>) {
    let mut g = Graph::new("case");
    let mut operands = Vec::new();
    let mut fed = Vec::new();
    for (i, t) in c.inputs.iter().enumerate() {
        operands.push(match t {
            None => ValueId::NONE,
            Some(t) if t.as_i64().is_some() => g.add_tensor(&format!("c{i}"), t),
            Some(t) => {
                let dims: Vec<Dim> = t.dims.iter().map(|&d| Dim::Fixed(d as u64)).collect();
                fed.push(t.clone());
                g.add_input(&format!("x{i}"), t.dtype(), &dims)
            }
        });
    }
    g.outputs = g.add_op(c.kind, c.attr, "op", &operands, &["y"]).unwrap();
    (g, fed)
}

#[test]
fn every_case_gives_the_value_worked_out_by_hand() {
    for (at, c) in cases().iter().enumerate() {
        let (g, fed) = graph_of(c);
        verify::verify(&g).unwrap();
        let y = interp::run(&g, &fed).unwrap();
        assert!(same_bits(&y[0], &c.want), "case {at} {:?}: {:?}, want {:?}", c.kind, y[0], c.want);
    }
}

#[test]
fn rows_are_where_their_kind_says_and_engine_ops_have_a_case() {
    let cases = cases();
    for (at, row) in OPS.iter().enumerate() {
        assert_eq!(row.kind as usize, at);
        assert_eq!(OpKind::from_name(row.name), Some(row.kind));
        // Model ops are held against onnxruntime and the standard's node tests; only we know what engine ops mean.
        let own = row.level == Level::Engine;
        assert!(!own || cases.iter().any(|c| c.kind == row.kind), "{} has no case here", row.name);
    }
}

#[test]
fn rounding_is_the_same_wherever_an_integer_is_written() {
    use lacuna_ir::reference::quant::{quantize_value, requantize};
    let out = Requant { zero: 7, lo: 0, hi: 255 };
    for step in -4000..4000 {
        let x = step as f32 * 0.125;
        assert_eq!(requantize(x, out), quantize_value(x, 1.0, 7, 0, 255), "{x}");
    }
    // Exact where adding the zero point in f32 would round: 2^24 + 1 is no f32.
    let wide = Requant { zero: 1, lo: i32::MIN / 2, hi: i32::MAX / 2 };
    assert_eq!(requantize(16_777_216.0, wide), 16_777_217);
    assert_eq!(requantize(f32::NAN, Requant { zero: 7, lo: 3, hi: 9 }), 3);
    assert_eq!(quantize_value(f32::NAN, 1.0, 7, 0, 255), 7);
    assert_eq!(quantize_value(1.0, 0.0, 7, 0, 255), 255);
    // No panic whatever the numbers.
    requantize(f32::INFINITY, Requant { zero: i32::MIN, lo: i32::MAX, hi: i32::MIN });
    quantize_value(f32::INFINITY, -0.0, i32::MIN, i32::MIN, i32::MAX);
}

// ---- convolutions, a second time -------------------------------------------------------------------

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % n
    }
}

/// Convolution by scattering: every input pixel is added to the outputs that see it. NCHW, exact in i64.
fn scatter(x: &[i64], w: &[i64], x_dims: [usize; 4], y_dims: [usize; 4], a: &ConvAttr) -> Vec<i64> {
    let [batch, c, h, wd] = x_dims;
    let [_, o, oh, ow] = y_dims;
    let (group, win) = (a.group as usize, a.window);
    let [kh, kw] = win.kernel.map(|k| k as i64);
    let mut y = vec![0; batch * o * oh * ow];
    for (at, &x) in x.iter().enumerate() {
        let (ix, iy) = ((at % wd) as i64, (at / wd % h) as i64);
        let (ci, b) = (at / wd / h % c, at / wd / h / c);
        for (ky, kx) in (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))) {
            let ty = iy + win.pads[0] as i64 - ky * win.dilation[0] as i64;
            let tx = ix + win.pads[1] as i64 - kx * win.dilation[1] as i64;
            let (sy, sx) = (win.stride[0] as i64, win.stride[1] as i64);
            if ty < 0
                || tx < 0
                || ty % sy != 0
                || tx % sx != 0
                || ty / sy >= oh as i64
                || tx / sx >= ow as i64
            {
                continue;
            }
            let g = ci / (c / group);
            for oc in g * (o / group)..(g + 1) * (o / group) {
                let wi = ((oc * (c / group) + ci % (c / group)) as i64 * kh + ky) * kw + kx;
                y[((b * o + oc) * oh + (ty / sy) as usize) * ow + (tx / sx) as usize] += x * w[wi as usize];
            }
        }
    }
    y
}

/// Moves dimension 1 of four to the end.
fn to_last<T: Copy>(x: &[T], d: [usize; 4]) -> Vec<T> {
    let mut out = Vec::with_capacity(x.len());
    for n in 0..d[0] {
        for p in 0..d[2] * d[3] {
            out.extend((0..d[1]).map(|c| x[(n * d[1] + c) * d[2] * d[3] + p]));
        }
    }
    out
}

#[test]
fn convolutions_equal_a_scattering_one() {
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    for round in 0..300 {
        let group = 1 + rng.below(3);
        let (c, o) = (group * (1 + rng.below(3)), group * (1 + rng.below(3)));
        let mut two = |n: usize| [1 + rng.below(n) as u32, 1 + rng.below(n) as u32];
        let (kernel, stride, dilation) = (two(3), two(3), two(2));
        let pads = std::array::from_fn(|_| rng.below(3) as u32);
        let window = Window { kernel, stride, dilation, pads };
        let attr = ConvAttr { window, group: group as u32 };
        let x_dims = [1 + rng.below(2), c, 5 + rng.below(4), 5 + rng.below(4)];
        let w_dims = [o, c / group, kernel[0] as usize, kernel[1] as usize];
        let x: Vec<i64> = (0..x_dims.iter().product()).map(|_| rng.below(256) as i64).collect();
        let w: Vec<i64> = (0..w_dims.iter().product()).map(|_| rng.below(255) as i64 - 127).collect();
        let zero = rng.below(256) as i64;
        let shifted: Vec<i64> = x.iter().map(|&x| x - zero).collect();

        // All sums are integers below 2^24, so f32 is exact in any order.
        let floats = |v: &[i64]| v.iter().map(|&v| v as f32).collect::<Vec<_>>();
        let model = Case {
            kind: OpKind::Conv,
            attr: Attr::Conv(attr),
            inputs: vec![Some(f(&x_dims, &floats(&shifted))), Some(f(&w_dims, &floats(&w)))],
            want: f(&[], &[0.]),
        };
        let (g, fed) = graph_of(&model);
        let y = &interp::run(&g, &fed).unwrap()[0];
        let y_dims: [usize; 4] = y.dims.clone().try_into().unwrap();
        let want = scatter(&shifted, &w, x_dims, y_dims, &attr);
        assert_eq!(y.as_f32().unwrap(), floats(&want), "round {round}: {attr:?}");

        let nhwc = |d: [usize; 4]| [d[0], d[2], d[3], d[1]];
        let (x_last, w_last, want) = (to_last(&x, x_dims), to_last(&w, w_dims), to_last(&want, y_dims));
        let fused = Case {
            kind: OpKind::FusedConv,
            attr: Attr::FusedConv(FusedConvAttr {
                conv: attr,
                clip: ClipAttr { min: f32::NEG_INFINITY, max: f32::INFINITY },
            }),
            inputs: vec![
                Some(f(&nhwc(x_dims), &floats(&to_last(&shifted, x_dims)))),
                Some(f(&nhwc(w_dims), &floats(&w_last))),
                Some(f(&[o], &vec![0.; o])),
                None,
            ],
            want: f(&[], &[0.]),
        };
        let (g, fed) = graph_of(&fused);
        assert_eq!(
            interp::run(&g, &fed).unwrap()[0].as_f32().unwrap(),
            floats(&want),
            "round {round}: {attr:?}"
        );

        let mult = 1.0 / 64.0;
        let q = Case {
            kind: OpKind::QConv,
            attr: Attr::QConv(QConvAttr {
                conv: attr,
                x_zero: zero as i32,
                out: Some(Requant { zero: 128, lo: 0, hi: 255 }),
                residual_mult: 0.0,
                residual_zero: 0,
                late: None,
            }),
            inputs: vec![
                Some(u(&nhwc(x_dims), &x_last.iter().map(|&v| v as u8).collect::<Vec<_>>())),
                Some(i(&nhwc(w_dims), &w_last.iter().map(|&v| v as i8).collect::<Vec<_>>())),
                Some(n(&[o], &vec![1; o])),
                Some(f(&[o], &vec![mult; o])),
            ],
            want: f(&[], &[0.]),
        };
        let (g, fed) = graph_of(&q);
        // (acc + 1) / 64 rounded half to even in integers: no float is involved.
        let rounded = |acc: i64| {
            let (floor, rest) = ((acc + 1).div_euclid(64), (acc + 1).rem_euclid(64));
            let up = rest > 32 || (rest == 32 && floor % 2 != 0);
            (floor + i64::from(up) + 128).clamp(0, 255) as u8
        };
        let want: Vec<u8> = want.iter().map(|&acc| rounded(acc)).collect();
        assert_eq!(interp::run(&g, &fed).unwrap()[0].as_u8().unwrap(), want, "round {round}: {attr:?}");
    }
}
