//! The op table: one row per kind of op, with its name, arity, level, shape rule and reference function.
//!
//! There are two levels in one table. *Model* ops have ONNX names and meaning (NCHW). *Engine* ops are what
//! the engine's passes rewrite them into: NHWC, fused, integer. Both have a reference function, so that the
//! interpreter can run a graph before and after every pass, and every fast kernel has something plain to equal.
//!
//! Adding an op touches three places: a row here (with a rule in `shape/`), a function in `reference/`,
//! a row in the ONNX table; and a kernel row in the engine where it pays.

use crate::ids::BodyId;
use crate::params::Params;
use crate::reference;
use crate::shape;
use crate::tensor::DType;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// ONNX meaning, NCHW layout: what files hold and what training captures.
    Model,
    /// NHWC, fused, integer where it can be: what the engine's passes make.
    Engine,
}

/// Strides, pads and friends of a 2-D window. `pads` are top, left, bottom, right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub kernel: [u32; 2],
    pub stride: [u32; 2],
    pub dilation: [u32; 2],
    pub pads: [u32; 4],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvAttr {
    pub window: Window,
    pub group: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolAttr {
    pub window: Window,
    pub ceil_mode: bool,
    pub count_include_pad: bool,
}

/// A window over one to three spatial dimensions, and what else such ops carry: entries from `rank` on mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpatialAttr {
    pub rank: u8,
    pub kernel: [u32; 3],
    pub stride: [u32; 3],
    pub dilation: [u32; 3],
    pub before: [u32; 3],
    pub after: [u32; 3],
    pub group: u32,
    /// Elements that the result of a transposed convolution has more, at its end.
    pub output_padding: [u32; 3],
    /// The norm of LpPool.
    pub p: u32,
    pub ceil_mode: bool,
    pub count_include_pad: bool,
    /// Places of largest elements count down columns.
    pub column_major: bool,
}

impl Default for SpatialAttr {
    fn default() -> SpatialAttr {
        SpatialAttr {
            rank: 2,
            kernel: [1; 3],
            stride: [1; 3],
            dilation: [1; 3],
            before: [0; 3],
            after: [0; 3],
            group: 1,
            output_padding: [0; 3],
            p: 2,
            ceil_mode: false,
            count_include_pad: false,
            column_major: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GemmAttr {
    pub alpha: f32,
    pub beta: f32,
    pub trans_a: bool,
    pub trans_b: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipAttr {
    pub min: f32,
    pub max: f32,
}

/// A list of at most eight small numbers (a permutation, reduced axes).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Axes {
    pub len: u8,
    pub axes: [i8; 8],
}

impl Axes {
    pub fn as_slice(&self) -> &[i8] {
        &self.axes[..self.len as usize]
    }

    /// `None` when there are more than eight or one does not fit.
    pub fn new(axes: &[i64]) -> Option<Axes> {
        let mut a = Axes { len: u8::try_from(axes.len()).ok().filter(|&n| n <= 8)?, axes: [0; 8] };
        for (slot, &axis) in a.axes.iter_mut().zip(axes) {
            *slot = i8::try_from(axis).ok()?;
        }
        Some(a)
    }
}

/// A short text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Equation {
    len: u8,
    text: [u8; 64],
}

impl Equation {
    /// `None` when it is longer than 64 bytes, or not of letters, dots, commas and `->`. Spaces are dropped.
    pub fn new(text: &str) -> Option<Equation> {
        let bytes: Vec<u8> = text.bytes().filter(|b| *b != b' ').collect();
        let known = |b: &u8| b.is_ascii_alphabetic() || matches!(b, b'.' | b',' | b'-' | b'>');
        if bytes.len() > 64 || !bytes.iter().all(known) {
            return None;
        }
        let mut e = Equation { len: bytes.len() as u8, text: [0; 64] };
        e.text[..bytes.len()].copy_from_slice(&bytes);
        Some(e)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl std::fmt::Debug for Equation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

impl std::fmt::Debug for Axes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_slice().fmt(f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReduceAttr {
    /// Empty: all axes.
    pub axes: Axes,
    pub keep_dims: bool,
}

/// How an integer op writes its result: `q = rne(clamp(f, lo - zero, hi - zero)) + zero` where `f` is the
/// f32 result in units of the output's scale and `rne` rounds to nearest, ties to even; not a number becomes `lo`
/// ([`reference::quant::requantize`]). A fused ReLU is `lo = zero`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requant {
    pub zero: i32,
    pub lo: i32,
    pub hi: i32,
}

/// A fused NHWC f32 convolution: `y = clamp(conv(x, w) + bias + residual, min, max)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FusedConvAttr {
    pub conv: ConvAttr,
    pub clip: ClipAttr,
}

/// An integer NHWC convolution, see [`OpKind::QConv`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QConvAttr {
    pub conv: ConvAttr,
    /// Zero point of `x`; padded positions hold it.
    pub x_zero: i32,
    /// Absent: the result is f32, without residual or table.
    pub out: Option<Requant>,
    /// Scale of the residual in units of the output's scale, and its zero point.
    pub residual_mult: f32,
    pub residual_zero: i32,
    /// Present: the residual is added once the result has been rounded (and looked up), as [`OpKind::QAdd`] does.
    pub late: Option<LateAdd>,
}

/// How the eight-bit result of a convolution takes part in a sum with its residual: `mult` is its scale in units of the
/// sum's, and `out` how the sum is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LateAdd {
    pub mult: f32,
    pub zero: i32,
    pub out: Requant,
}

/// An integer matrix product, see [`OpKind::QGemm`]. `out` is absent when the result is f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QGemmAttr {
    pub x_zero: i32,
    pub out: Option<Requant>,
}

/// Integer add, see [`OpKind::QAdd`]: scales of both sides in units of the output's scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QAddAttr {
    pub a_mult: f32,
    pub a_zero: i32,
    pub b_mult: f32,
    pub b_zero: i32,
    pub out: Requant,
}

/// Integer product, see [`OpKind::QMul`]. `mult` is the product of both scales in units of the output's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QMulAttr {
    pub a_zero: i32,
    pub b_zero: i32,
    pub mult: f32,
    pub out: Requant,
}

/// How many rows and columns a pixel becomes, see [`OpKind::Resize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResizeAttr {
    pub scale: [u32; 2],
}

/// Integer global average, see [`OpKind::QGlobalAvgPool`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QPoolAttr {
    pub x_zero: i32,
    /// Scale of x divided by (scale of y × pixels).
    pub mult: f32,
    pub out: Requant,
}

/// A normalisation over the dimensions from `axis` on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormAttr {
    pub axis: i32,
    pub epsilon: f32,
}

/// What an eight-bit operand stands for: `(q - zero) * mult`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    pub mult: f32,
    pub zero: i32,
}

/// Sum and normalisation of rows, see [`OpKind::AddNorm`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AddNormAttr {
    /// Meaning of `a` and `b` where they are u8.
    pub a: Affine,
    pub b: Affine,
    pub epsilon: f32,
    /// From the f32 result to units of the u8 result's scale.
    pub y_mult: f32,
    /// Absent: there is no u8 result.
    pub out: Option<Requant>,
    /// Whether there is an f32 result. There is one if `out` is absent.
    pub keep: bool,
}

/// Integer attention, see [`OpKind::QAttention`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QAttentionAttr {
    pub heads: u32,
    pub q_zero: i32,
    pub k_zero: i32,
    pub v_zero: i32,
    /// From the integer product of q and k to the exponent of two: both scales, the attention's own, and log2(e).
    pub score_mult: f32,
    /// One over the scale of the probabilities, whose zero point is 0.
    pub p_mult: f32,
    /// From the integer product of probabilities and v to units of the output's scale.
    pub out_mult: f32,
    pub out: Requant,
}

/// The graphs of a choice, see [`OpKind::If`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IfAttr {
    pub then_body: BodyId,
    /// Absent: the condition must hold. What is made of it otherwise has another number of dimensions, which a value
    /// of a graph cannot have.
    pub else_body: Option<BodyId>,
}

/// The graph that a loop repeats, see [`OpKind::Loop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopAttr {
    pub body: BodyId,
    /// Values that one turn hands to the next.
    pub states: u32,
}

/// Attributes of one op: a small `Copy` value, one column of the graph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Attr {
    None,
    Conv(ConvAttr),
    Pool(PoolAttr),
    Gemm(GemmAttr),
    Clip(ClipAttr),
    /// Epsilon of a normalisation.
    Epsilon(f32),
    /// One axis (Softmax, Concat, Flatten, Quantize/DequantizeLinear).
    Axis(i32),
    Perm(Axes),
    Reduce(ReduceAttr),
    FusedConv(FusedConvAttr),
    QConv(QConvAttr),
    QGemm(QGemmAttr),
    QAdd(QAddAttr),
    QPool(QPoolAttr),
    Norm(NormAttr),
    /// The dtype that Cast makes.
    Cast(DType),
    /// A list of axes (Squeeze, Unsqueeze).
    Axes(Axes),
    AddNorm(AddNormAttr),
    QAttention(QAttentionAttr),
    QMul(QMulAttr),
    Resize(ResizeAttr),
    /// Numbers by the names that [`crate::params`] gives the kind.
    Params(Params),
    Spatial(SpatialAttr),
    /// The equation of an einsum.
    Equation(Equation),
    If(IfAttr),
    Loop(LoopAttr),
}

/// One kind of op. `inputs` is the fewest and the most; a trailing optional input may be `ValueId::NONE`.
pub struct OpRow {
    pub kind: OpKind,
    pub name: &'static str,
    pub level: Level,
    pub inputs: (usize, usize),
    /// The `Attr` variant this kind carries, by name.
    pub attr: &'static str,
    pub infer: shape::Rule,
    /// Plain evaluation; inputs are checked by `infer` first. Absent inputs are `None`.
    pub eval: reference::Eval,
}

macro_rules! ops {
    ($($(#[$doc:meta])* $kind:ident $level:ident $min:literal..=$max:literal $attr:ident $infer:ident $($eval:ident)::+;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum OpKind { $($(#[$doc])* $kind,)* }

        /// Row `k as usize` describes kind `k`.
        pub const OPS: &[OpRow] = &[$(OpRow {
            kind: OpKind::$kind,
            name: stringify!($kind),
            level: Level::$level,
            inputs: ($min, $max),
            attr: stringify!($attr),
            infer: shape::$infer,
            eval: reference::$($eval)::+,
        },)*];
    };
}

ops! {
    // kind              level  inputs   attr     shape rule      reference function
    /// `x[N,C,H,W]`, `w[O,C/g,kh,kw]`, optional `bias[O]`.
    Conv                 Model  2..=3    Conv     conv            conv::conv;
    /// `a[M,K]`, `b[K,N]`, optional c broadcast to `[M,N]`.
    Gemm                 Model  2..=3    Gemm     gemm            gemm::gemm;
    /// numpy matmul.
    MatMul               Model  2..=2    None     matmul          gemm::matmul;
    /// x, scale, bias, mean, var: inference form.
    BatchNormalization   Model  5..=5    Epsilon  first_f32       norm::batch_norm;
    Relu                 Model  1..=1    None     same_number     elementwise::relu;
    Sigmoid              Model  1..=1    None     same_f32        elementwise::sigmoid;
    /// Bounds are attributes of an f32 clip, or operands.
    Clip                 Model  1..=3    Clip     clip            elementwise::clip;
    Identity             Model  1..=1    None     same            elementwise::identity;
    Add                  Model  2..=2    None     broadcast       elementwise::add;
    Sub                  Model  2..=2    None     broadcast       elementwise::sub;
    Mul                  Model  2..=2    None     broadcast       elementwise::mul;
    Div                  Model  2..=2    None     broadcast       elementwise::div;
    /// Correctly rounded square root.
    Sqrt                 Model  1..=1    None     same_f32        elementwise::sqrt;
    MaxPool              Model  1..=1    Pool     pool            pool::max_pool;
    AveragePool          Model  1..=1    Pool     pool            pool::average_pool;
    GlobalAveragePool    Model  1..=1    None     global_pool     spatial::global_average_pool;
    /// Axes are attributes or an operand; none given means all.
    ReduceMean           Model  1..=2    Reduce   reduce          reduce::mean;
    /// Softmax along one axis (the meaning since opset 13).
    Softmax              Model  1..=1    Axis     same_f32        reduce::softmax;
    /// Second input: the target shape, i64 (0 copies, -1 infers).
    Reshape              Model  2..=2    None     reshape         layout::reshape;
    /// [d0 * .. * d(axis-1), d(axis) * ..].
    Flatten              Model  1..=1    Axis     flatten         layout::flatten;
    Transpose            Model  1..=1    Perm     transpose       layout::transpose;
    Concat               Model  1..=64   Axis     concat          layout::concat;
    /// x, indices (i64 or i32) along one axis; a negative one counts from the end.
    Gather               Model  2..=2    Axis     gather          layout::gather;
    /// x, scale and optional bias over the trailing dimensions: `(x - mean) / sqrt(var + epsilon) * scale + bias`.
    LayerNormalization   Model  2..=3    Norm     layer_norm      norm::layer_norm;
    /// The error function, within 5e-7.
    Erf                  Model  1..=1    None     same_f32        elementwise::erf;
    Tanh                 Model  1..=1    None     same_f32        elementwise::tanh;
    /// Floats become integers towards zero and within i64; integers wrap.
    Cast                 Model  1..=1    Cast     cast            elementwise::cast;
    /// New dimensions of 1, at these axes of the result: attributes, or an operand.
    Unsqueeze            Model  1..=2    Axes     unsqueeze       layout::unsqueeze;
    /// Drops dimensions of 1: these (attributes, or an operand), or all.
    Squeeze              Model  1..=2    Axes     squeeze         layout::squeeze;
    /// x `[N,C,H,W]`: each pixel becomes `scale[0]` x `scale[1]` pixels (ONNX: nearest, asymmetric, floor).
    Resize               Model  1..=1    Resize   resize          layout::resize;
    /// x f32, scale, zero point: `clamp(rne(x / scale) + zero)`. The zero point's dtype is the result's; per axis if scale is 1-D with more than one element.
    QuantizeLinear       Model  3..=3    Axis     quantize        quant::quantize_linear;
    /// q, scale, zero point: `(q - zero) * scale`.
    DequantizeLinear     Model  3..=3    Axis     dequantize      quant::dequantize_linear;

    // One element at a time.
    Abs                  Model  1..=1    None     same_number     unary::abs;
    Neg                  Model  1..=1    None     same_number     unary::neg;
    Sign                 Model  1..=1    None     same_number     unary::sign;
    Ceil                 Model  1..=1    None     same_f32        unary::ceil;
    Floor                Model  1..=1    None     same_f32        unary::floor;
    /// To nearest, ties to even.
    Round                Model  1..=1    None     same_f32        unary::round;
    Exp                  Model  1..=1    None     same_f32        unary::exp;
    Log                  Model  1..=1    None     same_f32        unary::log;
    Reciprocal           Model  1..=1    None     same_f32        unary::reciprocal;
    Sin                  Model  1..=1    None     same_f32        unary::sin;
    Cos                  Model  1..=1    None     same_f32        unary::cos;
    Tan                  Model  1..=1    None     same_f32        unary::tan;
    Asin                 Model  1..=1    None     same_f32        unary::asin;
    Acos                 Model  1..=1    None     same_f32        unary::acos;
    Atan                 Model  1..=1    None     same_f32        unary::atan;
    Sinh                 Model  1..=1    None     same_f32        unary::sinh;
    Cosh                 Model  1..=1    None     same_f32        unary::cosh;
    Asinh                Model  1..=1    None     same_f32        unary::asinh;
    Acosh                Model  1..=1    None     same_f32        unary::acosh;
    Atanh                Model  1..=1    None     same_f32        unary::atanh;
    Softsign             Model  1..=1    None     same_f32        unary::softsign;
    Softplus             Model  1..=1    None     same_f32        unary::softplus;
    Mish                 Model  1..=1    None     same_f32        unary::mish;
    HardSwish            Model  1..=1    None     same_f32        unary::hard_swish;
    Elu                  Model  1..=1    Params   same_f32        unary::elu;
    Celu                 Model  1..=1    Params   same_f32        unary::celu;
    Selu                 Model  1..=1    Params   same_f32        unary::selu;
    LeakyRelu            Model  1..=1    Params   same_f32        unary::leaky_relu;
    ThresholdedRelu      Model  1..=1    Params   same_f32        unary::thresholded_relu;
    HardSigmoid          Model  1..=1    Params   same_f32        unary::hard_sigmoid;
    Gelu                 Model  1..=1    Params   same_f32        unary::gelu;
    Shrink               Model  1..=1    Params   same_number     unary::shrink;
    Not                  Model  1..=1    None     same_bool       unary::not;
    BitwiseNot           Model  1..=1    None     same_integer    unary::bitwise_not;
    IsNaN                Model  1..=1    None     f32_to_bool     unary::is_nan;
    IsInf                Model  1..=1    Params   f32_to_bool     unary::is_inf;

    // Elements that broadcast.
    /// The result has the base's dtype.
    Pow                  Model  2..=2    None     broadcast_pow   binary::pow;
    Mod                  Model  2..=2    Params   broadcast       binary::modulo;
    BitShift             Model  2..=2    Params   broadcast_integer binary::bit_shift;
    BitwiseAnd           Model  2..=2    None     broadcast_integer binary::bitwise_and;
    BitwiseOr            Model  2..=2    None     broadcast_integer binary::bitwise_or;
    BitwiseXor           Model  2..=2    None     broadcast_integer binary::bitwise_xor;
    And                  Model  2..=2    None     broadcast_bool  binary::and;
    Or                   Model  2..=2    None     broadcast_bool  binary::or;
    Xor                  Model  2..=2    None     broadcast_bool  binary::xor;
    Equal                Model  2..=2    None     broadcast_compare binary::equal;
    Less                 Model  2..=2    None     broadcast_compare binary::less;
    Greater              Model  2..=2    None     broadcast_compare binary::greater;
    LessOrEqual          Model  2..=2    None     broadcast_compare binary::less_or_equal;
    GreaterOrEqual       Model  2..=2    None     broadcast_compare binary::greater_or_equal;
    Sum                  Model  1..=64   None     variadic        binary::sum;
    Mean                 Model  1..=64   None     variadic_f32    binary::mean;
    Max                  Model  1..=64   None     variadic        binary::max;
    Min                  Model  1..=64   None     variadic        binary::min;
    /// x, slope (which broadcasts to x).
    PRelu                Model  2..=2    None     prelu           binary::prelu;
    /// x, shape (i64 list): x repeated along dimensions of 1, as both broadcast.
    Expand               Model  2..=2    None     expand          binary::expand;
    /// condition bool, x, y: x where it holds.
    Where                Model  3..=3    None     choose          binary::choose;

    // Integers, and ranges that are found at run time.
    /// x and w (u8 or i8) as in `Conv`, their zero points (absent: 0; w's for each filter, or one for all), to i32.
    ConvInteger          Model  2..=4    Conv     conv_integer    integer::conv_integer;
    /// a and b (u8 or i8) as in `MatMul`, their zero points (absent: 0; for each row of a and column of b, or one), to i32.
    MatMulInteger        Model  2..=4    None     matmul_integer  integer::matmul_integer;
    /// x to u8 over the range that holds 0 and all of x; then the scale and the zero point: [`reference::integer::dynamic_range`].
    DynamicQuantizeLinear Model 1..=1    None     dynamic_quantize integer::dynamic_quantize;
    // Along axes: x and optional axes.
    ReduceSum            Model  1..=2    Reduce   reduce_number   reduce::sum;
    ReduceProd           Model  1..=2    Reduce   reduce_number   reduce::prod;
    ReduceMax            Model  1..=2    Reduce   reduce_any      reduce::max;
    ReduceMin            Model  1..=2    Reduce   reduce_any      reduce::min;
    ReduceL1             Model  1..=2    Reduce   reduce_number   reduce::l1;
    ReduceL2             Model  1..=2    Reduce   reduce_f32      reduce::l2;
    ReduceSumSquare      Model  1..=2    Reduce   reduce_number   reduce::sum_square;
    ReduceLogSum         Model  1..=2    Reduce   reduce_f32      reduce::log_sum;
    ReduceLogSumExp      Model  1..=2    Reduce   reduce_f32      reduce::log_sum_exp;
    ArgMax               Model  1..=1    Params   arg_reduce      reduce::arg_max;
    ArgMin               Model  1..=1    Params   arg_reduce      reduce::arg_min;
    LogSoftmax           Model  1..=1    Axis     same_f32        reduce::log_softmax;
    Hardmax              Model  1..=1    Axis     same_f32        reduce::hardmax;
    /// x and the axis.
    CumSum               Model  2..=2    Params   cum_sum         slice::cum_sum;
    /// x and k: values and indices of the largest or smallest; of equal ones the first.
    TopK                 Model  2..=2    Params   top_k           scatter::top_k;

    // Parts of a tensor.
    /// Dimensions `start..end` of x.
    Shape                Model  1..=1    Params   shape_of        slice::shape_of;
    /// x, starts, ends, optional axes and steps.
    Slice                Model  3..=5    None     slice           slice::slice;
    /// x and optional sizes; as many results as sizes, or `num_outputs`.
    Split                Model  1..=2    Params   split           slice::split;
    /// x, pads (begins, then ends), optional value and axes.
    Pad                  Model  2..=4    Params   pad             slice::pad;
    /// x and how often each dimension is repeated.
    Tile                 Model  2..=2    None     tile            slice::tile;
    /// start, limit, delta.
    Range                Model  3..=3    None     range           slice::range;
    /// x and an optional diagonal.
    Trilu                Model  1..=2    Params   trilu           slice::trilu;
    /// f32 of the shape of x; `dtype` is what ONNX calls that.
    EyeLike              Model  1..=1    Params   eye_like        slice::eye_like;
    DepthToSpace         Model  1..=1    Params   depth_to_space  slice::depth_to_space;
    SpaceToDepth         Model  1..=1    Params   space_to_depth  slice::space_to_depth;
    /// x and how much of each sequence is reversed.
    ReverseSequence      Model  2..=2    Params   reverse_sequence slice::reverse_sequence;
    /// x and a shape, on these axes or all.
    CenterCropPad        Model  2..=2    Axes     center_crop_pad slice::center_crop_pad;

    // By index.
    GatherElements       Model  2..=2    Axis     gather_elements scatter::gather_elements;
    GatherND             Model  2..=2    Params   gather_nd       scatter::gather_nd;
    /// x, indices, updates.
    ScatterElements      Model  3..=3    Params   scatter_elements scatter::scatter_elements;
    ScatterND            Model  3..=3    Params   scatter_nd      scatter::scatter_nd;
    /// indices, depth, values `[off, on]`.
    OneHot               Model  3..=3    Params   one_hot         scatter::one_hot;
    NonZero              Model  1..=1    None     non_zero        scatter::non_zero;
    /// x and a condition.
    Compress             Model  2..=2    Params   compress        scatter::compress;
    /// Distinct elements, their first places, what each became, how often each is there.
    Unique               Model  1..=1    Params   unique          scatter::unique;
    /// boxes, scores, optional limit a class, overlap and score: rows of (batch, class, box).
    NonMaxSuppression    Model  2..=5    Params   non_max_suppression scatter::non_max_suppression;

    // Windows over any number of dimensions.
    /// As Conv, over one to three dimensions.
    ConvNd               Model  2..=3    Spatial  conv_nd         spatial::conv_nd;
    /// `x[N,C,..]`, `w[C,O/g,..]`, optional `bias[O]`.
    ConvTranspose        Model  2..=3    Spatial  conv_transpose  spatial::conv_transpose;
    /// Largest elements, and their places in x.
    MaxPoolNd            Model  1..=1    Spatial  max_pool_nd     spatial::max_pool_nd;
    AveragePoolNd        Model  1..=1    Spatial  pool_nd         spatial::average_pool_nd;
    LpPool               Model  1..=1    Spatial  pool_nd         spatial::lp_pool;
    /// Values, their places, optional shape of the result.
    MaxUnpool            Model  2..=3    Spatial  max_unpool      spatial::max_unpool;
    GlobalMaxPool        Model  1..=1    None     global_pool     spatial::global_max_pool;

    // Images: places between elements.
    /// x, region, scales or sizes (the other is absent), and the axes that these are of. ONNX calls it Resize.
    Interpolate          Model  1..=5    Params   interpolate     sample::interpolate;
    /// x `[N,C,..]`, grid `[N,..,rank]`.
    GridSample           Model  2..=2    Params   grid_sample     sample::grid_sample;
    /// theta, size.
    AffineGrid           Model  2..=2    Params   affine_grid     sample::affine_grid;
    /// x, regions, the image of each.
    RoiAlign             Model  3..=3    Params   roi_align       sample::roi_align;
    /// columns, image size, block size; the window's kernel is the block.
    Col2Im               Model  3..=3    Spatial  col2im          sample::col2im;

    // Norms, sums and losses with a plain form only.
    /// x `[N,C,..]`, scale, bias.
    InstanceNormalization Model 3..=3    Epsilon  channel_norm    loss::instance_norm;
    /// x `[N,C,..]`, scale and bias for each channel.
    GroupNormalization   Model  3..=3    Params   channel_norm    loss::group_norm;
    LRN                  Model  1..=1    Params   lrn             loss::lrn;
    Einsum               Model  1..=8    Equation einsum          loss::einsum;
    Det                  Model  1..=1    None     det             loss::det;
    /// log chances, targets, optional weights.
    NegativeLogLikelihoodLoss Model 2..=3 Params  loss            loss::negative_log_likelihood;
    /// scores, targets, optional weights: the loss, and the log chances.
    SoftmaxCrossEntropyLoss Model 2..=3  Params   cross_entropy   loss::cross_entropy;

    // Recurrent: x, w, r, optional bias, lengths, state (cell, peepholes). All states, the last, (the last cell).
    LSTM                 Model  3..=8    Params   lstm            recurrent::lstm;
    GRU                  Model  3..=6    Params   gru             recurrent::gru;
    RNN                  Model  3..=6    Params   rnn             recurrent::rnn;

    /// x rounded through a narrower type of floats, which the graph has not.
    RoundFloat           Model  1..=1    Params   same_f32        unary::round_float;

    // Ops that run other graphs: their rules and what they do are in [`crate::flow`], which sees these.
    /// condition, then what both bodies read: results of one of them.
    If                   Model  1..=1024 If       of_bodies       flow::of_bodies;
    /// Optional number of turns (i64), optional condition, states, then what else the body reads. The body reads the
    /// turn's number, the condition, states, and that; it makes the condition of the next turn, states, and parts.
    /// Results: the last states, and of each part those of all turns, one after the other in a new first dimension.
    Loop                 Model  2..=1024 Loop     of_bodies       flow::of_bodies;

    // ---- engine ops
    /// The bytes of `DynamicQuantizeLinear` without their zero point, as f32, and their scale.
    DynamicCentred       Engine 1..=1    None     dynamic_centred integer::dynamic_centred;
    /// x `f32[N,H,W,C]`, w `f32[O,kh,kw,C/g]`, bias `f32[O]`, optional residual `f32[N,OH,OW,O]`.
    FusedConv            Engine 3..=4    FusedConv conv_nhwc      conv::fused_conv;
    /// x `f32[N,H,W,C]`, w `f32[O,kh,kw,C]`, bias `f32[O]`: every pixel of x adds a kernel to the result, pads are cut off
    /// it, and then comes the clamp. One group, dilations of 1.
    FusedConvTranspose   Engine 3..=3    FusedConv conv_transpose_nhwc conv::fused_conv_transpose;
    /// x `u8[N,H,W,C]`, w `i8[O,kh,kw,C/g]`, bias `i32[O]`, mult `f32[O]`, optional residual `u8[N,OH,OW,O]`, optional
    /// table `u8[256]`.
    ///
    /// `acc = bias[o] + Σ (x - x_zero) · w` in i32; `f = acc as f32 * mult[o]`; with a residual
    /// `f = f + (r - residual_zero) as f32 * residual_mult` (two roundings, never fused); then `out` ([`Requant`]);
    /// with a table `q = table[q]`. A late residual ([`LateAdd`]) is left out of `f` and added after that:
    /// `f = (q - late.zero) as f32 * late.mult + (r - residual_zero) as f32 * residual_mult`, then `late.out`.
    /// The result is f32 `f` itself when `out` is absent.
    QConv                Engine 4..=6    QConv    qconv           conv::qconv;
    /// x `u8[..,K]`, w `i8[N,K]`, bias `i32[N]`, mult `f32[N]`, to `[..,N]`. `f` as in `QConv`; result f32 `f` itself when `out` is absent.
    /// Optional table `u8[256]`, for u8 results: `table[q]`.
    QGemm                Engine 4..=5    QGemm    qgemm           gemm::qgemm;
    /// `x / (1 + exp(-x))`, as one sequence of f32 operations: [`reference::fixed::silu_value`].
    Silu                 Engine 1..=1    None     same_f32        elementwise::silu;
    /// `QuantizeLinear` of `Silu`.
    QuantizeSilu         Engine 3..=3    Axis     quantize        quant::quantize_silu;
    /// q u8 of any shape, table `u8[256]`: `table[q]`. Any function of one eight-bit value.
    QLookup              Engine 2..=2    None     qlookup         quant::qlookup;
    /// a u8, b u8, which broadcast: `f = (a - a_zero) as f32 * ((b - b_zero) as f32 * mult)`, then `out`.
    QMul                 Engine 2..=2    QMul     qmul            quant::qmul;
    /// a u8, b u8 of one shape: `f = (a - a_zero) as f32 * a_mult + (b - b_zero) as f32 * b_mult`, then `out`.
    QAdd                 Engine 2..=2    QAdd     qadd            quant::qadd;
    /// x `u8[N,H,W,C]` to `u8[N,1,1,C]`: `f = (Σ (x - x_zero)) as f32 * mult`, then `out`.
    QGlobalAvgPool       Engine 1..=1    QPool    qglobal_pool    pool::qglobal_avg_pool;
    /// x `[N,H,W,C]`, as `Resize`.
    ResizeNhwc           Engine 1..=1    Resize   resize_nhwc     layout::resize_nhwc;
    /// x `f32[N,H,W,C]` or `u8[N,H,W,C]`.
    MaxPoolNhwc          Engine 1..=1    Pool     pool_nhwc       pool::max_pool_nhwc;
    /// x `f32[N,H,W,C]`.
    AveragePoolNhwc      Engine 1..=1    Pool     pool_nhwc_f32   pool::average_pool_nhwc;
    /// x `f32[N,H,W,C]` to `f32[N,1,1,C]`.
    GlobalAvgPoolNhwc    Engine 1..=1    None     global_pool_nhwc pool::global_avg_pool_nhwc;
    /// a `[..,C]` (u8 or f32), scale `f32[C]`, bias `f32[C]`, optional b like a (u8 or f32): normalised rows of `a + b`,
    /// as u8, then as f32 ([`AddNormAttr`] says which). One sequence of f32 operations: [`reference::norm::add_norm`].
    AddNorm              Engine 3..=4    AddNorm  add_norm        norm::add_norm;
    /// q `u8[B,T,H*D]`, k and v `u8[B,S,H*D]`, optional mask `f32[B or 1,1,1,S]` that is added to scores, to `u8[B,T,H*D]`.
    /// The arithmetic is that of [`reference::attention::row`].
    QAttention           Engine 3..=4    QAttention qattention    attention::qattention;
}

impl OpKind {
    pub fn row(self) -> &'static OpRow {
        &OPS[self as usize]
    }

    pub fn name(self) -> &'static str {
        self.row().name
    }

    pub fn from_name(name: &str) -> Option<OpKind> {
        OPS.iter().find(|row| row.name == name).map(|row| row.kind)
    }
}

impl Attr {
    /// The variant's name, as in [`OpRow::attr`].
    pub fn variant(&self) -> &'static str {
        match self {
            Attr::None => "None",
            Attr::Conv(_) => "Conv",
            Attr::Pool(_) => "Pool",
            Attr::Gemm(_) => "Gemm",
            Attr::Clip(_) => "Clip",
            Attr::Epsilon(_) => "Epsilon",
            Attr::Axis(_) => "Axis",
            Attr::Perm(_) => "Perm",
            Attr::Reduce(_) => "Reduce",
            Attr::FusedConv(_) => "FusedConv",
            Attr::QConv(_) => "QConv",
            Attr::QGemm(_) => "QGemm",
            Attr::QAdd(_) => "QAdd",
            Attr::QPool(_) => "QPool",
            Attr::Norm(_) => "Norm",
            Attr::Cast(_) => "Cast",
            Attr::Axes(_) => "Axes",
            Attr::AddNorm(_) => "AddNorm",
            Attr::QAttention(_) => "QAttention",
            Attr::QMul(_) => "QMul",
            Attr::Resize(_) => "Resize",
            Attr::Params(_) => "Params",
            Attr::Spatial(_) => "Spatial",
            Attr::Equation(_) => "Equation",
            Attr::If(_) => "If",
            Attr::Loop(_) => "Loop",
        }
    }
}
