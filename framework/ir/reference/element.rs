//! What the element types of numbers share, so that a reference function is written once for all of them.

/// A type of number that tensors hold. Integers wrap.
pub trait Number: Copy + PartialOrd + Default + 'static {
    const ONE: Self;
    /// The value that every other one is at least, and at most.
    const LOWEST: Self;
    const HIGHEST: Self;
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    /// Integers divide towards zero, and not by zero.
    fn div(self, b: Self) -> Option<Self>;
    /// The remainder with the sign of the dividend; for integers not of zero.
    fn rem(self, b: Self) -> Option<Self>;
    fn to_f64(self) -> f64;
    /// Towards zero and within the type's range for integers; rounded for floats.
    fn from_f64(v: f64) -> Self;
    fn is_nan(self) -> bool;
}

macro_rules! integers {
    ($($ty:ty),*) => {$(
        impl Number for $ty {
            const ONE: Self = 1;
            const LOWEST: Self = <$ty>::MIN;
            const HIGHEST: Self = <$ty>::MAX;
            fn add(self, b: Self) -> Self { self.wrapping_add(b) }
            fn sub(self, b: Self) -> Self { self.wrapping_sub(b) }
            fn mul(self, b: Self) -> Self { self.wrapping_mul(b) }
            fn div(self, b: Self) -> Option<Self> { (b != 0).then(|| self.wrapping_div(b)) }
            fn rem(self, b: Self) -> Option<Self> { (b != 0).then(|| self.wrapping_rem(b)) }
            fn to_f64(self) -> f64 { self as f64 }
            fn from_f64(v: f64) -> Self { v as $ty }
            fn is_nan(self) -> bool { false }
        }
    )*};
}

integers!(i64, i32, u8, i8);

impl Number for f32 {
    const ONE: Self = 1.0;
    const LOWEST: Self = f32::NEG_INFINITY;
    const HIGHEST: Self = f32::INFINITY;
    fn add(self, b: Self) -> Self {
        self + b
    }
    fn sub(self, b: Self) -> Self {
        self - b
    }
    fn mul(self, b: Self) -> Self {
        self * b
    }
    fn div(self, b: Self) -> Option<Self> {
        Some(self / b)
    }
    fn rem(self, b: Self) -> Option<Self> {
        Some(self % b)
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f64(v: f64) -> Self {
        v as f32
    }
    fn is_nan(self) -> bool {
        f32::is_nan(self)
    }
}

/// The larger; not a number wins.
pub fn larger<T: Number>(a: T, b: T) -> T {
    if a > b || a.is_nan() { a } else { b }
}

/// The smaller; not a number wins.
pub fn smaller<T: Number>(a: T, b: T) -> T {
    if a < b || a.is_nan() { a } else { b }
}

/// `$f` over the elements `$x` of any type of number, as elements of that type; bools are an error.
macro_rules! on_numbers {
    ($elements:expr, $x:ident => $f:expr) => {
        match $elements {
            Elements::F32($x) => Elements::F32($f),
            Elements::I64($x) => Elements::I64($f),
            Elements::I32($x) => Elements::I32($f),
            Elements::U8($x) => Elements::U8($f),
            Elements::I8($x) => Elements::I8($f),
            Elements::Bool(_) => return Err("an input is bool, it must be a number".to_string()),
        }
    };
}

/// As `on_numbers`, over integers.
macro_rules! on_integers {
    ($elements:expr, $x:ident => $f:expr) => {
        match $elements {
            Elements::I64($x) => Elements::I64($f),
            Elements::I32($x) => Elements::I32($f),
            Elements::U8($x) => Elements::U8($f),
            Elements::I8($x) => Elements::I8($f),
            _ => return Err("an input must be an integer".to_string()),
        }
    };
}

/// As `on_numbers`, over any elements: bools are bytes of 0 and 1.
macro_rules! on_all {
    ($elements:expr, $x:ident => $f:expr) => {
        match $elements {
            Elements::F32($x) => Elements::F32($f),
            Elements::I64($x) => Elements::I64($f),
            Elements::I32($x) => Elements::I32($f),
            Elements::U8($x) => Elements::U8($f),
            Elements::I8($x) => Elements::I8($f),
            Elements::Bool($x) => Elements::Bool($f),
        }
    };
}

/// `$f` over the elements of two tensors of one type; `$wrap` makes the result, the kinds are those listed.
macro_rules! on_pairs {
    ([$($kind:ident),*] $a:expr, $b:expr, ($x:ident, $y:ident) => $f:expr) => {
        match ($a, $b) {
            $((Elements::$kind($x), Elements::$kind($y)) => Elements::$kind($f),)*
            _ => return Err("the inputs are of types that do not go together here".to_string()),
        }
    };
}

pub(crate) use {on_all, on_integers, on_numbers, on_pairs};
