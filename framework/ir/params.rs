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
        _ => &[],
    }
}
