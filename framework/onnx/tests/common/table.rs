//! Cases for ops whose attributes are numbers, or that have none: one row each.

use super::{BATCH, Cases, axes};
use lacuna_ir::op::{Equation, ReduceAttr, SpatialAttr};
use lacuna_ir::params::{Params, Usual, params_of};
use lacuna_ir::{Attr, DType, OpKind, Tensor};

/// The usual numbers of `kind` with some replaced.
pub fn numbers(kind: OpKind, changed: &[(&str, f32)]) -> Attr {
    let mut params = Params::usual(kind);
    for (name, v) in changed {
        let i = params_of(kind)
            .iter()
            .position(|p| p.name == *name)
            .unwrap_or_else(|| panic!("{kind:?}: {name}"));
        params.bits[i] = match params_of(kind)[i].usual {
            Usual::Float(_) => v.to_bits() as i32,
            _ => *v as i32,
        };
    }
    if params_of(kind).is_empty() { Attr::None } else { Attr::Params(params) }
}

const X: &[usize] = &[BATCH, 4, 5];

pub fn elementwise(c: &mut Cases) {
    use OpKind::*;
    // What goes in: any float, or shifted and scaled into the function's domain.
    for (kind, scale, shift) in [
        (Abs, 1.0, 0.0),
        (Neg, 1.0, 0.0),
        (Sign, 1.0, 0.0),
        (Ceil, 1.0, 0.0),
        (Floor, 1.0, 0.0),
        (Round, 2.0, 0.0),
        (Exp, 1.0, 0.0),
        (Log, 1.0, 2.5),
        (Reciprocal, 1.0, 2.5),
        (Sin, 1.0, 0.0),
        (Cos, 1.0, 0.0),
        (Tan, 0.5, 0.0),
        (Asin, 0.45, 0.0),
        (Acos, 0.45, 0.0),
        (Atan, 1.0, 0.0),
        (Sinh, 1.0, 0.0),
        (Cosh, 1.0, 0.0),
        (Asinh, 1.0, 0.0),
        (Acosh, 1.0, 3.5),
        (Atanh, 0.45, 0.0),
        (Softsign, 1.0, 0.0),
        (Softplus, 1.0, 0.0),
        (Mish, 1.0, 0.0),
        (HardSwish, 2.0, 0.0),
        (IsNaN, 1.0, 0.0),
    ] {
        let x = c.float(X, scale, shift);
        c.given("f32", kind, Attr::None, x, vec![]);
    }
    for (label, kind, changed) in [
        ("usual", Elu, &[][..]),
        ("half", Elu, &[("alpha", 0.5)]),
        ("half", Celu, &[("alpha", 0.5)]),
        ("usual", Selu, &[]),
        ("own", Selu, &[("alpha", 1.5), ("gamma", 2.0)]),
        ("usual", LeakyRelu, &[]),
        ("third", LeakyRelu, &[("alpha", 0.3)]),
        ("usual", ThresholdedRelu, &[]),
        ("sixth", HardSigmoid, &[("alpha", 0.1667)]),
        ("exact", Gelu, &[]),
        ("tanh", Gelu, &[("approximate", 1.0)]),
        ("usual", Shrink, &[]),
        ("soft", Shrink, &[("bias", 0.5), ("lambd", 0.7)]),
        ("positive", IsInf, &[("detect_negative", 0.0)]),
    ] {
        c.one(label, kind, numbers(kind, changed), (DType::F32, X), vec![]);
    }
    c.one("bool", Not, Attr::None, (DType::Bool, X), vec![]);
    c.one("u8", BitwiseNot, Attr::None, (DType::U8, X), vec![]);
    for kind in [And, Or, Xor] {
        let b = c.random(DType::Bool, &[4, 1]);
        c.one("bool", kind, Attr::None, (DType::Bool, X), vec![b]);
    }
    for kind in [BitwiseAnd, BitwiseOr, BitwiseXor] {
        let b = c.random(DType::I32, &[5]);
        c.one("i32", kind, Attr::None, (DType::I32, X), vec![b]);
    }
    for kind in [Equal, Less, Greater, LessOrEqual, GreaterOrEqual] {
        let b = c.random(DType::I64, &[4, 1]);
        c.one("i64", kind, Attr::None, (DType::I64, X), vec![b]);
        let b = c.random(DType::F32, &[5]);
        c.one("f32", kind, Attr::None, (DType::F32, X), vec![b]);
    }
    let by = |n: u8| Tensor::from_u8(&[5], vec![0, 1, 2, 7, n]);
    c.one("left", BitShift, numbers(BitShift, &[]), (DType::U8, X), vec![by(3)]);
    c.one("right", BitShift, numbers(BitShift, &[("direction", 1.0)]), (DType::U8, X), vec![by(4)]);
    let b = Tensor::from_i64(&[5], vec![3, -4, 7, 1, -2]);
    c.one("i64", Mod, numbers(Mod, &[]), (DType::I64, X), vec![b]);
    let b = c.float(&[5], 1.0, 2.5);
    c.one("f32", Mod, numbers(Mod, &[("fmod", 1.0)]), (DType::F32, X), vec![b]);
    let x = c.float(X, 1.0, 2.5);
    let b = Tensor::from_f32(&[5], vec![0.0, 1.0, 2.0, -1.5, 0.5]);
    c.given("f32", Pow, Attr::None, x, vec![b]);
    let b = Tensor::from_i64(&[], vec![3]);
    c.one("mixed", Pow, Attr::None, (DType::F32, X), vec![b]);
    for kind in [Sum, Mean, Max, Min] {
        let (a, b) = (c.random(DType::F32, &[5]), c.random(DType::F32, &[4, 1]));
        c.one("three", kind, Attr::None, (DType::F32, X), vec![a, b]);
        c.one("one", kind, Attr::None, (DType::F32, X), vec![]);
    }
    let b = c.random(DType::I64, &[5]);
    c.one("i64", Max, Attr::None, (DType::I64, X), vec![b]);
    let slope = c.random(DType::F32, &[4, 1]);
    c.one("channel", PRelu, Attr::None, (DType::F32, X), vec![slope]);
    let (a, b) = (c.random(DType::F32, &[4, 1]), c.random(DType::F32, &[5]));
    c.one("broadcast", Where, Attr::None, (DType::Bool, X), vec![a, b]);
    c.one(
        "wide",
        Expand,
        Attr::None,
        (DType::F32, &[2, 1, 5]),
        vec![Tensor::from_i64(&[4], vec![2, 1, 3, 1])],
    );
}

fn list(v: &[i64]) -> Tensor {
    Tensor::from_i64(&[v.len()], v.to_vec())
}

fn number(v: i64) -> Tensor {
    Tensor::from_i64(&[], vec![v])
}

pub fn along_axes(c: &mut Cases) {
    use OpKind::*;
    for kind in [ReduceSum, ReduceProd, ReduceMax, ReduceMin, ReduceL1, ReduceL2, ReduceSumSquare] {
        for (label, a, keep_dims) in [("all", &[][..], false), ("one", &[-1], true), ("two", &[1, 2], false)]
        {
            let attr = Attr::Reduce(ReduceAttr { axes: axes(a), keep_dims });
            c.one(label, kind, attr, (DType::F32, X), vec![]);
        }
    }
    let attr = Attr::Reduce(ReduceAttr { axes: axes(&[1]), keep_dims: true });
    c.one("i32", ReduceSum, attr, (DType::I32, X), vec![]);
    for kind in [ReduceLogSum, ReduceLogSumExp] {
        let x = c.float(X, 1.0, 2.5);
        c.given("one", kind, attr, x, vec![]);
    }
    for kind in [ArgMax, ArgMin] {
        c.one("first", kind, numbers(kind, &[]), (DType::F32, X), vec![]);
        let last = [("axis", -1.0), ("keepdims", 0.0), ("select_last_index", 1.0)];
        c.one("last", kind, numbers(kind, &last), (DType::I32, X), vec![]);
    }
    for kind in [LogSoftmax, Hardmax] {
        c.one("last", kind, Attr::Axis(-1), (DType::F32, X), vec![]);
        c.one("middle", kind, Attr::Axis(1), (DType::F32, X), vec![]);
    }
    c.one("plain", CumSum, numbers(CumSum, &[]), (DType::F32, X), vec![number(1)]);
    let back = numbers(CumSum, &[("exclusive", 1.0), ("reverse", 1.0)]);
    c.one("back", CumSum, back, (DType::I64, X), vec![number(-1)]);
    c.one("largest", TopK, numbers(TopK, &[]), (DType::F32, X), vec![list(&[3])]);
    let least = numbers(TopK, &[("axis", 1.0), ("largest", 0.0)]);
    c.one("least", TopK, least, (DType::F32, X), vec![list(&[2])]);
}

pub fn parts(c: &mut Cases) {
    use OpKind::*;
    let x: (DType, &[usize]) = (DType::F32, X);
    c.one("all", Shape, numbers(Shape, &[]), (DType::F32, X), vec![]);
    c.one("front", Shape, numbers(Shape, &[("end", -1.0)]), (DType::F32, X), vec![]);
    c.one("ends", Slice, Attr::None, (DType::F32, &[2, 4, 5]), vec![list(&[0, -3]), list(&[9, -1])]);
    let steps = vec![list(&[-1, 0]), list(&[-9, 99]), list(&[2, 1]), list(&[-2, 3])];
    c.one("steps", Slice, Attr::None, x, steps);
    c.one("sizes", Split, numbers(Split, &[("axis", 2.0)]), x, vec![list(&[2, 3])]);
    c.one("equal", Split, numbers(Split, &[("axis", 2.0), ("num_outputs", 3.0)]), x, vec![]);
    for (label, mode) in [("constant", 0.0), ("reflect", 1.0), ("edge", 2.0), ("wrap", 3.0)] {
        let pads = list(&[0, 1, 2, 0, 2, 1]);
        c.one(label, Pad, numbers(Pad, &[("mode", mode)]), x, vec![pads]);
    }
    let value = Tensor::from_f32(&[], vec![1.5]);
    c.one("axes", Pad, numbers(Pad, &[]), x, vec![list(&[1, -1]), value, list(&[1])]);
    c.one("some", Tile, Attr::None, x, vec![list(&[1, 2, 3])]);
    c.given("i64", Range, Attr::None, number(10), vec![number(-2), number(-5)]);
    let half = Tensor::from_f32(&[], vec![0.5]);
    c.given("f32", Range, Attr::None, half.clone(), vec![Tensor::from_f32(&[], vec![2.2]), half]);
    c.one("upper", Trilu, numbers(Trilu, &[]), x, vec![number(1)]);
    c.one("lower", Trilu, numbers(Trilu, &[("upper", 0.0)]), (DType::I64, X), vec![]);
    let eye = numbers(EyeLike, &[("k", -1.0), ("dtype", 1.0)]);
    c.one("below", EyeLike, eye, (DType::F32, &[4, 5]), vec![]);
    for (label, mode) in [("DCR", 0.0), ("CRD", 1.0)] {
        let attr = numbers(DepthToSpace, &[("blocksize", 2.0), ("mode", mode)]);
        c.one(label, DepthToSpace, attr, (DType::F32, &[BATCH, 8, 2, 3]), vec![]);
    }
    let attr = numbers(SpaceToDepth, &[("blocksize", 2.0)]);
    c.one("two", SpaceToDepth, attr, (DType::F32, &[BATCH, 2, 4, 6]), vec![]);
    let lengths = list(&[1, 2, 3, 4]);
    c.one("time", ReverseSequence, numbers(ReverseSequence, &[]), (DType::F32, &[4, 4, 2]), vec![lengths]);
    c.one("all", CenterCropPad, Attr::Axes(axes(&[])), x, vec![list(&[5, 3, 6])]);
    c.one("axes", CenterCropPad, Attr::Axes(axes(&[2, -2])), x, vec![list(&[4, 7])]);
}

pub fn by_index(c: &mut Cases) {
    use OpKind::*;
    let indices = || Tensor::from_i64(&[2, 2, 3], vec![0, 1, -1, 3, 2, 0, -4, 1, 2, 0, 3, 3]);
    c.one("middle", GatherElements, Attr::Axis(1), (DType::F32, &[2, 4, 3]), vec![indices()]);
    let rows = Tensor::from_i64(&[2, 2], vec![1, -1, 0, 2]);
    c.one("pairs", GatherND, numbers(GatherND, &[]), (DType::F32, &[2, 4, 5]), vec![rows.clone()]);
    let in_batch = Tensor::from_i64(&[2, 1, 1], vec![1, 3]);
    c.one(
        "batch",
        GatherND,
        numbers(GatherND, &[("batch_dims", 1.0)]),
        (DType::F32, &[2, 4, 5]),
        vec![in_batch],
    );
    let spread = || Tensor::from_i64(&[2, 2, 3], vec![0, 1, -1, 3, 2, 0, -4, 1, 2, 0, 3, 3]);
    for (label, reduction) in [("set", 0.0), ("add", 1.0), ("mul", 2.0), ("max", 3.0), ("min", 4.0)] {
        let updates = c.random(DType::F32, &[2, 2, 3]);
        let attr = numbers(ScatterElements, &[("axis", 1.0), ("reduction", reduction)]);
        c.one(label, ScatterElements, attr, (DType::F32, &[2, 4, 3]), vec![spread(), updates]);
        let updates = c.random(DType::F32, &[2, 5]);
        let attr = numbers(ScatterND, &[("reduction", reduction)]);
        c.one(label, ScatterND, attr, (DType::F32, &[2, 4, 5]), vec![rows.clone(), updates]);
    }
    let values = Tensor::from_f32(&[2], vec![-1.0, 2.0]);
    let x_indices = Tensor::from_i64(&[BATCH, 2], vec![0, 1, -1, 5, 9, 2]);
    c.given("last", OneHot, numbers(OneHot, &[]), x_indices.clone(), vec![number(4), values.clone()]);
    c.given("first", OneHot, numbers(OneHot, &[("axis", 0.0)]), x_indices, vec![number(3), values]);
}

/// A window over three dimensions with these sizes, the same along each.
fn spatial(kernel: [u32; 3], stride: u32, pads: [u32; 2]) -> SpatialAttr {
    let (before, after) = ([pads[0]; 3], [pads[1]; 3]);
    SpatialAttr { rank: 3, kernel, stride: [stride; 3], before, after, ..SpatialAttr::default() }
}

fn flat(a: SpatialAttr) -> SpatialAttr {
    SpatialAttr { rank: 2, ..a }
}

pub fn windows(c: &mut Cases) {
    use OpKind::*;
    let x3: (DType, &[usize]) = (DType::F32, &[BATCH, 4, 5, 6, 4]);
    let x2: (DType, &[usize]) = (DType::F32, &[BATCH, 4, 6, 5]);
    let grouped = SpatialAttr { group: 2, dilation: [1, 2, 1], ..spatial([2, 3, 2], 2, [1, 0]) };
    let (w, bias) = (c.random(DType::F32, &[6, 2, 2, 3, 2]), c.random(DType::F32, &[6]));
    c.one("3d", ConvNd, Attr::Spatial(grouped), x3, vec![w, bias]);
    let up = SpatialAttr { output_padding: [1, 0, 0], ..flat(spatial([3, 2, 1], 2, [1, 0])) };
    let (w, bias) = (c.random(DType::F32, &[4, 3, 3, 2]), c.random(DType::F32, &[3]));
    c.one("2d", ConvTranspose, Attr::Spatial(up), x2, vec![w, bias]);
    let up = SpatialAttr { group: 2, dilation: [1, 1, 2], ..spatial([2, 2, 3], 1, [0, 1]) };
    let w = c.random(DType::F32, &[4, 1, 2, 2, 3]);
    c.one("3d", ConvTranspose, Attr::Spatial(up), x3, vec![w]);
    c.one("3d", MaxPoolNd, Attr::Spatial(spatial([2, 3, 2], 2, [1, 0])), x3, vec![]);
    let ceil = SpatialAttr { ceil_mode: true, ..flat(spatial([3, 2, 1], 2, [0, 1])) };
    c.one("u8", MaxPoolNd, Attr::Spatial(ceil), (DType::U8, x2.1), vec![]);
    let counted = SpatialAttr { count_include_pad: true, ..spatial([2, 3, 2], 2, [1, 0]) };
    c.one("3d", AveragePoolNd, Attr::Spatial(counted), x3, vec![]);
    let three = SpatialAttr { p: 3, ..flat(spatial([3, 2, 1], 2, [0, 1])) };
    c.one("2d", LpPool, Attr::Spatial(three), x2, vec![]);
    let places = Tensor::from_i64(&[2, 1, 2, 2], vec![5, 7, 13, 15, 16, 19, 24, 27]);
    let undo = flat(spatial([2, 2, 1], 2, [0, 0]));
    c.one("2d", MaxUnpool, Attr::Spatial(undo), (DType::F32, &[2, 1, 2, 2]), vec![places]);
    c.one("3d", GlobalMaxPool, Attr::None, x3, vec![]);
    c.one("3d", GlobalAveragePool, Attr::None, x3, vec![]);
    let condition = Tensor::from_bool(&[4], vec![1, 0, 1, 1]);
    c.one("middle", Compress, numbers(Compress, &[("axis", 1.0)]), (DType::F32, X), vec![condition]);
    c.one("bool", NonZero, Attr::None, (DType::Bool, &[4, 3]), vec![]);
    let x = Tensor::from_f32(&[7], vec![2.0, 1.0, 1.0, 3.0, 4.0, 3.0, 2.0]);
    c.given("sorted", Unique, numbers(Unique, &[]), x.clone(), vec![]);
    c.given("as they come", Unique, numbers(Unique, &[("sorted", 0.0)]), x, vec![]);
    let boxes = vec![0.0, 0.0, 1.0, 1.0, 0.0, 0.1, 1.0, 1.1, 0.0, 10.0, 1.0, 11.0];
    let scores = Tensor::from_f32(&[1, 2, 3], vec![0.9, 0.75, 0.6, 0.3, 0.95, 0.5]);
    let limits = [list(&[2]), Tensor::from_f32(&[1], vec![0.5]), Tensor::from_f32(&[1], vec![0.4])];
    let operands = [scores].into_iter().chain(limits).collect();
    c.given(
        "corners",
        NonMaxSuppression,
        numbers(NonMaxSuppression, &[]),
        Tensor::from_f32(&[1, 3, 4], boxes),
        operands,
    );
}

pub fn images(c: &mut Cases) {
    use OpKind::*;
    let x: (DType, &[usize]) = (DType::F32, &[2, 3, 4, 5]);
    for (label, mode) in [("nearest", 0.0), ("linear", 1.0), ("cubic", 2.0)] {
        let scales = Tensor::from_f32(&[4], vec![1.0, 1.0, 1.7, 0.6]);
        let attr = numbers(Interpolate, &[("mode", mode)]);
        c.absent(label, Interpolate, attr, x, vec![None, Some(scales)]);
        let attr = numbers(Interpolate, &[("mode", mode), ("coordinate_transformation_mode", 2.0)]);
        c.absent(
            &format!("{label}_sizes"),
            Interpolate,
            attr,
            x,
            vec![None, None, Some(list(&[2, 3, 7, 3]))],
        );
    }
    let attr = numbers(Interpolate, &[("mode", 1.0), ("antialias", 1.0)]);
    let scales = Tensor::from_f32(&[4], vec![1.0, 1.0, 0.5, 0.6]);
    c.absent("antialias", Interpolate, attr, x, vec![None, Some(scales)]);
    for (label, mode, padding, align) in [
        ("linear", 0.0, 0.0, 0.0),
        ("nearest", 1.0, 1.0, 1.0),
        ("cubic", 2.0, 2.0, 0.0),
        ("mirror", 0.0, 2.0, 1.0),
    ] {
        let grid = c.float(&[2, 3, 2, 2], 0.7, 0.0);
        let attr =
            numbers(GridSample, &[("mode", mode), ("padding_mode", padding), ("align_corners", align)]);
        c.one(label, GridSample, attr, x, vec![grid]);
    }
    let size = list(&[2, 1, 3, 4]);
    c.one("2d", AffineGrid, numbers(AffineGrid, &[]), (DType::F32, &[2, 2, 3]), vec![size]);
    let rois = Tensor::from_f32(&[2, 4], vec![0.5, 0.0, 3.5, 3.0, 1.0, 1.0, 4.0, 2.5]);
    let attr = numbers(RoiAlign, &[("output_height", 2.0), ("output_width", 3.0), ("sampling_ratio", 2.0)]);
    c.one("avg", RoiAlign, attr, x, vec![rois, list(&[1, 0])]);
    let window = flat(spatial([1, 1, 1], 1, [0, 0]));
    let sizes = vec![list(&[3, 4]), list(&[2, 2])];
    c.one("2d", Col2Im, Attr::Spatial(window), (DType::F32, &[BATCH, 8, 6]), sizes);
    let (scale, bias) = (c.random(DType::F32, &[4]), c.random(DType::F32, &[4]));
    let four: (DType, &[usize]) = (DType::F32, &[BATCH, 4, 5, 2]);
    c.one("4d", InstanceNormalization, Attr::Epsilon(1e-3), four, vec![scale.clone(), bias.clone()]);
    let groups = numbers(GroupNormalization, &[("num_groups", 2.0)]);
    c.one("two", GroupNormalization, groups, four, vec![scale, bias]);
    let attr = numbers(LRN, &[("size", 3.0), ("alpha", 0.5), ("bias", 2.0)]);
    c.one("three", LRN, attr, four, vec![]);
}

pub fn sums(c: &mut Cases) {
    use OpKind::*;
    let equation = |text: &str| Attr::Equation(Equation::new(text).unwrap());
    let b = c.random(DType::F32, &[5, 2]);
    c.one("product", Einsum, equation("...ij,jk->...ik"), (DType::F32, X), vec![b]);
    c.one("diagonal", Einsum, equation("bii->bi"), (DType::F32, &[2, 4, 4]), vec![]);
    c.one("implicit", Einsum, equation("ba"), (DType::F32, &[2, 4]), vec![]);
    c.one("matrices", Det, Attr::None, (DType::F32, &[2, 3, 3]), vec![]);
    let targets = || Tensor::from_i64(&[2, 4], vec![0, 2, 1, 1, 2, 0, 0, 1]);
    let x: (DType, &[usize]) = (DType::F32, &[2, 3, 4]);
    for kind in [NegativeLogLikelihoodLoss, SoftmaxCrossEntropyLoss] {
        for (label, reduction) in [("mean", 0.0), ("none", 1.0), ("sum", 2.0)] {
            let weights = c.float(&[3], 0.2, 1.0);
            let attr = numbers(kind, &[("reduction", reduction), ("ignore_index", 1.0)]);
            c.one(label, kind, attr, x, vec![targets(), weights]);
        }
        c.one("plain", kind, numbers(kind, &[]), x, vec![targets()]);
    }
    for (kind, gates) in [(LSTM, 4), (GRU, 3), (RNN, 1)] {
        for (label, dirs, direction) in [("forward", 1, 0.0), ("reverse", 1, 1.0), ("both", 2, 2.0)] {
            let usual: &[(&str, f32)] = match kind {
                LSTM => &[("g", 1.0), ("h", 1.0), ("g_back", 1.0), ("h_back", 1.0)],
                GRU => &[("g", 1.0), ("g_back", 1.0), ("linear_before_reset", 1.0)],
                _ => &[("f", 1.0), ("f_back", 1.0)],
            };
            let usual: Vec<(&str, f32)> =
                usual.iter().copied().filter(|u| dirs == 2 || !u.0.ends_with("back")).collect();
            let changed = [usual.as_slice(), &[("direction", direction), ("hidden_size", 4.0)]].concat();
            let (w, r) = (c.float(&[dirs, gates * 4, 3], 0.3, 0.0), c.float(&[dirs, gates * 4, 4], 0.3, 0.0));
            let bias = c.float(&[dirs, gates * 8], 0.3, 0.0);
            let lengths = Tensor::from_i32(&[2], vec![5, 3]);
            let state = c.random(DType::F32, &[dirs, 2, 4]);
            c.one(
                label,
                kind,
                numbers(kind, &changed),
                (DType::F32, &[5, 2, 3]),
                vec![w, r, bias, lengths, state],
            );
        }
    }
    c.one("half", RoundFloat, numbers(RoundFloat, &[]), (DType::F32, X), vec![]);
    c.one("brain", RoundFloat, numbers(RoundFloat, &[("to", 1.0)]), (DType::F32, X), vec![]);
}
