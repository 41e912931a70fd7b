//! Functions of two or more elements that broadcast: powers, remainders, comparisons, logic, choices.

use super::element::{Number, larger, on_all, on_numbers, on_pairs, smaller};
use super::elementwise::pairs;
use super::{Inputs, Outputs, optional, output_dims, tensor};
use crate::op::Attr;
use crate::shape;
use crate::tensor::{Elements, Tensor};

type Slice<'a, T> = (&'a [usize], &'a [T]);

fn zip<A: Copy, B: Copy, R>(
    a: Slice<'_, A>,
    b: Slice<'_, B>,
    dims: &[usize],
    f: impl Fn(A, B) -> R,
) -> Vec<R> {
    let mut out = Vec::new();
    pairs(a, b, dims, |a, b| out.push(f(a, b)));
    out
}

fn all_or<T: Copy + Default>(made: Vec<Option<T>>, why: &str) -> Result<Vec<T>, String> {
    made.into_iter().collect::<Option<Vec<T>>>().ok_or_else(|| why.to_string())
}

/// The base's type is the result's. Integers to a whole power wrap; other powers are taken in f64.
pub fn pow(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    fn powers<T: Number, E: Number>(a: Slice<'_, T>, b: Slice<'_, E>, dims: &[usize]) -> Vec<T> {
        zip(a, b, dims, |a, b| T::from_f64(a.to_f64().powf(b.to_f64())))
    }
    fn whole(a: i64, b: i64) -> i64 {
        match u32::try_from(b) {
            Ok(b) => a.wrapping_pow(b),
            Err(_) => (a as f64).powf(b as f64) as i64,
        }
    }
    let dims = output_dims(shape::broadcast_pow, attr, inputs)?;
    let (a, b) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
    let elements = match (&a.elements, &b.elements) {
        (Elements::F32(x), Elements::F32(y)) => {
            Elements::F32(zip((&a.dims, x), (&b.dims, y), &dims, f32::powf))
        }
        (Elements::I64(x), Elements::I64(y)) => Elements::I64(zip((&a.dims, x), (&b.dims, y), &dims, whole)),
        (Elements::I32(x), Elements::I32(y)) => {
            let power = |x, y| whole(i64::from(x), i64::from(y)) as i32;
            Elements::I32(zip((&a.dims, x), (&b.dims, y), &dims, power))
        }
        (x, y) => on_numbers!(x, x => match y {
            Elements::F32(y) => powers((&a.dims, x), (&b.dims, y), &dims),
            Elements::I64(y) => powers((&a.dims, x), (&b.dims, y), &dims),
            Elements::I32(y) => powers((&a.dims, x), (&b.dims, y), &dims),
            Elements::U8(y) => powers((&a.dims, x), (&b.dims, y), &dims),
            Elements::I8(y) => powers((&a.dims, x), (&b.dims, y), &dims),
            Elements::Bool(_) => return Err("the exponent is bool, it must be a number".to_string()),
        }),
    };
    Ok(vec![Tensor { dims, elements }])
}

/// With `fmod` the remainder has the sign of the dividend, else of the divisor.
pub fn modulo(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    fn remainder<T: Number>(a: T, b: T, fmod: bool) -> Option<T> {
        let r = a.rem(b)?;
        let zero = T::default();
        Some(if !fmod && r != zero && (r < zero) != (b < zero) { r.add(b) } else { r })
    }
    let dims = output_dims(shape::broadcast, attr, inputs)?;
    let fmod = attr.numbers::<1>()?[0].flag();
    let (a, b) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
    let why = "a remainder of integers by zero: change the divisor";
    let elements = on_pairs!([F32, I64, I32, U8, I8] &a.elements, &b.elements, (x, y) =>
        all_or(zip((&a.dims, x), (&b.dims, y), &dims, |x, y| remainder(x, y, fmod)), why)?);
    Ok(vec![Tensor { dims, elements }])
}

/// Zeros come in; a shift by all bits or more gives 0.
pub fn bit_shift(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::broadcast_integer, attr, inputs)?;
    let right = attr.numbers::<1>()?[0].choice() == 1;
    let (a, b) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
    let shift = |x: u64, by: i64| match u32::try_from(by) {
        Ok(by) if right => x.checked_shr(by).unwrap_or(0),
        Ok(by) => x.checked_shl(by).unwrap_or(0),
        Err(_) => 0,
    };
    let elements = match (&a.elements, &b.elements) {
        (Elements::U8(x), Elements::U8(y)) => {
            Elements::U8(zip((&a.dims, x), (&b.dims, y), &dims, |x, y| shift(x.into(), y.into()) as u8))
        }
        (Elements::I32(x), Elements::I32(y)) => {
            let shifted = |x, y: i32| shift(u64::from(x as u32), y.into()) as i32;
            Elements::I32(zip((&a.dims, x), (&b.dims, y), &dims, shifted))
        }
        (Elements::I8(x), Elements::I8(y)) => {
            let shifted = |x, y: i8| shift(u64::from(x as u8), y.into()) as i8;
            Elements::I8(zip((&a.dims, x), (&b.dims, y), &dims, shifted))
        }
        (Elements::I64(x), Elements::I64(y)) => {
            Elements::I64(zip((&a.dims, x), (&b.dims, y), &dims, |x, y| shift(x as u64, y) as i64))
        }
        _ => return Err("inputs must be two integers of one type".to_string()),
    };
    Ok(vec![Tensor { dims, elements }])
}

macro_rules! bitwise {
    ($($name:ident $rule:ident [$($kind:ident),*] $op:tt;)*) => {$(
        pub fn $name(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
            let dims = output_dims(shape::$rule, attr, inputs)?;
            let (a, b) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
            let elements = on_pairs!([$($kind),*] &a.elements, &b.elements, (x, y) =>
                zip((&a.dims, x), (&b.dims, y), &dims, |x, y| x $op y));
            Ok(vec![Tensor { dims, elements }])
        }
    )*};
}

bitwise! {
    bitwise_and broadcast_integer [I64, I32, U8, I8] &;
    bitwise_or broadcast_integer [I64, I32, U8, I8] |;
    bitwise_xor broadcast_integer [I64, I32, U8, I8] ^;
    and broadcast_bool [Bool] &;
    or broadcast_bool [Bool] |;
    xor broadcast_bool [Bool] ^;
}

macro_rules! comparisons {
    ($($name:ident $op:tt;)*) => {$(
        pub fn $name(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
            fn compare<T: PartialOrd + Copy>(a: Slice<'_, T>, b: Slice<'_, T>, dims: &[usize]) -> Vec<u8> {
                zip(a, b, dims, |a, b| u8::from(a $op b))
            }
            let dims = output_dims(shape::broadcast_compare, attr, inputs)?;
            let (a, b) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
            let y = match (&a.elements, &b.elements) {
                (Elements::F32(x), Elements::F32(y)) => compare((&a.dims, x), (&b.dims, y), &dims),
                (Elements::I64(x), Elements::I64(y)) => compare((&a.dims, x), (&b.dims, y), &dims),
                (Elements::I32(x), Elements::I32(y)) => compare((&a.dims, x), (&b.dims, y), &dims),
                (Elements::U8(x), Elements::U8(y)) | (Elements::Bool(x), Elements::Bool(y)) => {
                    compare((&a.dims, x), (&b.dims, y), &dims)
                }
                (Elements::I8(x), Elements::I8(y)) => compare((&a.dims, x), (&b.dims, y), &dims),
                _ => return Err("the inputs must be of one type".to_string()),
            };
            Ok(vec![Tensor::from_bool(&dims, y)])
        }
    )*};
}

comparisons! {
    equal ==;
    less <;
    greater >;
    less_or_equal <=;
    greater_or_equal >=;
}

/// Folds all inputs, first to last.
fn fold(
    attr: &Attr,
    inputs: Inputs<'_>,
    f: impl Fn(&Tensor, &Tensor, &[usize]) -> Result<Elements, String>,
) -> Outputs {
    let dims = output_dims(shape::variadic, attr, inputs)?;
    let mut sum = tensor(inputs, 0)?.clone();
    for i in 1..inputs.len() {
        let x = tensor(inputs, i)?;
        let wide = shape::broadcast_numbers(&sum.dims, &x.dims)?;
        sum = Tensor { elements: f(&sum, x, &wide)?, dims: wide };
    }
    sum.dims = dims;
    Ok(vec![sum])
}

macro_rules! folds {
    ($($name:ident: $f:expr;)*) => {$(
        pub fn $name(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
            fold(attr, inputs, |a, b, dims| Ok(on_pairs!([F32, I64, I32, U8, I8] &a.elements, &b.elements, (x, y) =>
                zip((&a.dims, x), (&b.dims, y), dims, $f))))
        }
    )*};
}

folds! {
    sum: Number::add;
    max: larger;
    min: smaller;
}

pub fn mean(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let mut total = sum(attr, inputs)?;
    if let Some(Elements::F32(y)) = total.first_mut().map(|t| &mut t.elements) {
        y.iter_mut().for_each(|y| *y /= inputs.len() as f32);
        return Ok(total);
    }
    Err("the inputs must be f32".to_string())
}

/// The slope broadcasts to x.
pub fn prelu(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::prelu, attr, inputs)?;
    let (x, slope) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
    let elements = on_pairs!([F32, I64, I32, U8, I8] &x.elements, &slope.elements, (a, b) =>
        zip((&x.dims, a), (&slope.dims, b), &dims, |a, b| if a < Default::default() { Number::mul(a, b) } else { a }));
    Ok(vec![Tensor { dims, elements }])
}

/// Between bounds that are operands; either may be absent.
pub fn clip_between(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    fn bounded<T: Number>(x: &[T], low: Option<&T>, high: Option<&T>) -> Vec<T> {
        let low = |x: T| low.map_or(x, |&l| if x < l { l } else { x });
        x.iter().map(|&x| low(x)).map(|x| high.map_or(x, |&h| if x > h { h } else { x })).collect()
    }
    let dims = output_dims(shape::clip, attr, inputs)?;
    let bound = |i: usize| optional(inputs, i).map(|t| &t.elements);
    macro_rules! of {
        ($kind:ident, $x:expr) => {{
            let number = |e: Option<&'_ Elements>| match e {
                Some(Elements::$kind(v)) => v.first().copied(),
                _ => None,
            };
            Elements::$kind(bounded($x, number(bound(1)).as_ref(), number(bound(2)).as_ref()))
        }};
    }
    let elements = match &tensor(inputs, 0)?.elements {
        Elements::F32(x) => of!(F32, x),
        Elements::I64(x) => of!(I64, x),
        Elements::I32(x) => of!(I32, x),
        Elements::U8(x) => of!(U8, x),
        Elements::I8(x) => of!(I8, x),
        Elements::Bool(_) => return Err("input 0 is bool, it must be a number".to_string()),
    };
    Ok(vec![Tensor { dims, elements }])
}

/// x where the condition holds, y elsewhere.
pub fn choose(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::choose, attr, inputs)?;
    let (condition, a, b) = (tensor(inputs, 0)?, tensor(inputs, 1)?, tensor(inputs, 2)?);
    let chosen = condition.as_bool().ok_or("input 0 must be bool")?;
    // Where each element comes from, in a and in b.
    let places = |t: &Tensor| -> Vec<usize> {
        let own: Vec<usize> = (0..t.len()).collect();
        zip((&t.dims, &own), (&condition.dims, chosen), &dims, |i, _| i)
    };
    let (from_a, from_b) = (places(a), places(b));
    let which = zip((&condition.dims, chosen), (&dims, &vec![(); from_a.len()]), &dims, |c, ()| c != 0);
    macro_rules! of {
        ($x:expr, $y:expr) => {
            (0..which.len()).map(|i| if which[i] { $x[from_a[i]] } else { $y[from_b[i]] }).collect()
        };
    }
    let elements = on_pairs!([F32, I64, I32, U8, I8, Bool] &a.elements, &b.elements, (x, y) => of!(x, y));
    Ok(vec![Tensor { dims, elements }])
}

/// The input, repeated along dimensions of 1 to a shape that is the second operand.
pub fn expand(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::expand, attr, inputs)?;
    let x = tensor(inputs, 0)?;
    let blank = vec![(); dims.iter().product()];
    let elements = on_all!(&x.elements, v => zip((&x.dims, v), (&dims, &blank), &dims, |v, ()| v));
    Ok(vec![Tensor { dims, elements }])
}
