//! Numbers that an op carries, by name: the table of what each kind of op has beside its operands.
//!
//! Ops whose attributes are a handful of numbers, flags and choices share one variant, [`Attr::Params`]. Their names,
//! types and usual values stand here, once; the text form and the ONNX table read them. Names are ONNX's.

use crate::op::{Attr, OpKind};

/// The most numbers one op carries.
pub const PARAMS_MAX: usize = 12;

/// Values of one op, in the order of its row of [`params_of`]: `i32`, or the bits of an `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    pub bits: [i32; PARAMS_MAX],
}

/// What a number means, with its usual value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Usual {
    Int(i32),
    Flag(bool),
    Float(f32),
    /// The names that may stand for it, the first is the usual one.
    Choice(&'static [&'static str]),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Param {
    pub name: &'static str,
    pub usual: Usual,
}

/// One number of an op, as the functions that evaluate it read it.
#[derive(Clone, Copy, Debug)]
pub struct Number(i32);

impl Number {
    pub fn int(self) -> i64 {
        i64::from(self.0)
    }

    pub fn flag(self) -> bool {
        self.0 != 0
    }

    pub fn float(self) -> f32 {
        f32::from_bits(self.0 as u32)
    }

    /// Index among the names of a choice.
    pub fn choice(self) -> usize {
        self.0 as usize
    }
}

impl Usual {
    pub fn bits(self) -> i32 {
        match self {
            Usual::Int(v) => v,
            Usual::Flag(v) => i32::from(v),
            Usual::Float(v) => v.to_bits() as i32,
            Usual::Choice(_) => 0,
        }
    }
}

impl Params {
    /// The usual values of `kind`.
    pub fn usual(kind: OpKind) -> Params {
        let mut bits = [0; PARAMS_MAX];
        bits.iter_mut().zip(params_of(kind)).for_each(|(slot, param)| *slot = param.usual.bits());
        Params { bits }
    }

    /// With one value replaced. A name that `kind` does not have changes nothing.
    pub fn with(mut self, kind: OpKind, name: &str, bits: i32) -> Params {
        if let Some(i) = params_of(kind).iter().position(|param| param.name == name) {
            self.bits[i] = bits;
        }
        self
    }
}

impl Attr {
    /// The first `N` numbers of an op that carries [`Attr::Params`].
    ///
    /// # Errors
    /// The variant, if it is another one.
    pub fn numbers<const N: usize>(&self) -> Result<[Number; N], String> {
        const { assert!(N <= PARAMS_MAX) };
        match self {
            Attr::Params(p) => Ok(std::array::from_fn(|i| Number(p.bits[i]))),
            _ => Err(format!("cannot carry {} attributes", self.variant())),
        }
    }
}

const fn int(name: &'static str, usual: i32) -> Param {
    Param { name, usual: Usual::Int(usual) }
}

const fn flag(name: &'static str, usual: bool) -> Param {
    Param { name, usual: Usual::Flag(usual) }
}

const fn float(name: &'static str, usual: f32) -> Param {
    Param { name, usual: Usual::Float(usual) }
}

const fn choice(name: &'static str, names: &'static [&'static str]) -> Param {
    Param { name, usual: Usual::Choice(names) }
}

const REDUCTIONS: &[&str] = &["none", "add", "mul", "max", "min"];

const LOSSES: &[&str] = &["mean", "none", "sum"];
/// Activations of recurrent ops.
pub const ACTIVATIONS: &[&str] = &[
    "Sigmoid",
    "Tanh",
    "Relu",
    "Affine",
    "LeakyRelu",
    "ThresholdedRelu",
    "ScaledTanh",
    "HardSigmoid",
    "Elu",
    "Softsign",
    "Softplus",
];
const DIRECTIONS: &[&str] = &["forward", "reverse", "bidirectional"];

/// The numbers of `kind`; none for kinds that carry something else.
pub const fn params_of(kind: OpKind) -> &'static [Param] {
    match kind {
        OpKind::Elu | OpKind::Celu | OpKind::ThresholdedRelu => const { &[float("alpha", 1.0)] },
        OpKind::LeakyRelu => const { &[float("alpha", 0.01)] },
        OpKind::Selu => const { &[float("alpha", 1.673_263_2), float("gamma", 1.050_701)] },
        OpKind::HardSigmoid => const { &[float("alpha", 0.2), float("beta", 0.5)] },
        OpKind::Shrink => const { &[float("lambd", 0.5), float("bias", 0.0)] },
        OpKind::Gelu => const { &[choice("approximate", &["none", "tanh"])] },
        OpKind::IsInf => const { &[flag("detect_negative", true), flag("detect_positive", true)] },
        OpKind::Mod => const { &[flag("fmod", false)] },
        OpKind::BitShift => const { &[choice("direction", &["LEFT", "RIGHT"])] },
        OpKind::ArgMax | OpKind::ArgMin => {
            const { &[int("axis", 0), flag("keepdims", true), flag("select_last_index", false)] }
        }
        OpKind::TopK => const { &[int("axis", -1), flag("largest", true), flag("sorted", true)] },
        OpKind::CumSum => const { &[flag("exclusive", false), flag("reverse", false)] },
        OpKind::Shape => const { &[int("start", 0), int("end", i32::MAX)] },
        OpKind::Split => const { &[int("axis", 0), int("num_outputs", 0)] },
        OpKind::Pad => const { &[choice("mode", &["constant", "reflect", "edge", "wrap"])] },
        OpKind::GatherND => const { &[int("batch_dims", 0)] },
        OpKind::ScatterElements => const { &[int("axis", 0), choice("reduction", REDUCTIONS)] },
        OpKind::ScatterND => const { &[choice("reduction", REDUCTIONS)] },
        OpKind::OneHot => const { &[int("axis", -1)] },
        OpKind::Trilu => const { &[flag("upper", true)] },
        OpKind::EyeLike => const { &[int("k", 0), int("dtype", 0)] },
        OpKind::DepthToSpace => const { &[int("blocksize", 0), choice("mode", &["DCR", "CRD"])] },
        OpKind::SpaceToDepth => const { &[int("blocksize", 0)] },
        OpKind::ReverseSequence => const { &[int("batch_axis", 1), int("time_axis", 0)] },
        OpKind::Compress => const { &[int("axis", i32::MAX)] },
        OpKind::Unique => const { &[int("axis", i32::MAX), flag("sorted", true)] },
        OpKind::NonMaxSuppression => const { &[int("center_point_box", 0)] },
        OpKind::LRN => {
            const { &[float("alpha", 1e-4), float("beta", 0.75), float("bias", 1.0), int("size", 1)] }
        }
        OpKind::GroupNormalization => const { &[float("epsilon", 1e-5), int("num_groups", 1)] },
        OpKind::NegativeLogLikelihoodLoss | OpKind::SoftmaxCrossEntropyLoss => {
            const { &[choice("reduction", LOSSES), int("ignore_index", i32::MIN)] }
        }
        OpKind::GridSample => {
            const {
                &[
                    choice("mode", &["linear", "nearest", "cubic"]),
                    choice("padding_mode", &["zeros", "border", "reflection"]),
                    flag("align_corners", false),
                ]
            }
        }
        OpKind::AffineGrid => const { &[flag("align_corners", false)] },
        OpKind::RoiAlign => {
            const {
                &[
                    choice("mode", &["avg", "max"]),
                    int("output_height", 1),
                    int("output_width", 1),
                    int("sampling_ratio", 0),
                    float("spatial_scale", 1.0),
                    choice("coordinate_transformation_mode", &["half_pixel", "output_half_pixel"]),
                ]
            }
        }
        OpKind::Interpolate => {
            const {
                &[
                    choice("mode", &["nearest", "linear", "cubic"]),
                    choice(
                        "coordinate_transformation_mode",
                        &[
                            "half_pixel",
                            "asymmetric",
                            "align_corners",
                            "pytorch_half_pixel",
                            "tf_crop_and_resize",
                            "half_pixel_symmetric",
                            "tf_half_pixel_for_nn",
                        ],
                    ),
                    choice("nearest_mode", &["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
                    float("cubic_coeff_a", -0.75),
                    flag("exclude_outside", false),
                    float("extrapolation_value", 0.0),
                    flag("antialias", false),
                    choice("keep_aspect_ratio_policy", &["stretch", "not_larger", "not_smaller"]),
                ]
            }
        }
        OpKind::LSTM => {
            const {
                &[
                    choice("direction", DIRECTIONS),
                    int("hidden_size", 0),
                    float("clip", f32::INFINITY),
                    flag("layout", false),
                    flag("input_forget", false),
                    choice("f", ACTIVATIONS),
                    choice("g", ACTIVATIONS),
                    choice("h", ACTIVATIONS),
                    choice("f_back", ACTIVATIONS),
                    choice("g_back", ACTIVATIONS),
                    choice("h_back", ACTIVATIONS),
                ]
            }
        }
        OpKind::GRU => {
            const {
                &[
                    choice("direction", DIRECTIONS),
                    int("hidden_size", 0),
                    float("clip", f32::INFINITY),
                    flag("layout", false),
                    flag("linear_before_reset", false),
                    choice("f", ACTIVATIONS),
                    choice("g", ACTIVATIONS),
                    choice("f_back", ACTIVATIONS),
                    choice("g_back", ACTIVATIONS),
                ]
            }
        }
        OpKind::RNN => {
            const {
                &[
                    choice("direction", DIRECTIONS),
                    int("hidden_size", 0),
                    float("clip", f32::INFINITY),
                    flag("layout", false),
                    choice("f", ACTIVATIONS),
                    choice("f_back", ACTIVATIONS),
                ]
            }
        }
        OpKind::RoundFloat => const { &[choice("to", &["FLOAT16", "BFLOAT16"])] },
        _ => &[],
    }
}
