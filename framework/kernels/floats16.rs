//! Arithmetic on 16 floats at a time, in plain Rust that compiles to the vectors of the instruction set around it.

pub const LANES: usize = 16;
pub type Lanes = [f32; LANES];

/// `rest` (fewer than 16), then `fill`.
#[inline(always)]
pub fn tail(rest: &[f32], fill: f32) -> Lanes {
    let mut lanes = [fill; LANES];
    if !rest.is_empty() {
        for i in 0..LANES {
            lanes[i] = if i < rest.len() { rest[i] } else { fill };
        }
    }
    lanes
}

#[inline(always)]
pub fn map(x: Lanes, f: impl Fn(f32) -> f32) -> Lanes {
    let mut y = [0.0; LANES];
    for i in 0..LANES {
        y[i] = f(x[i]);
    }
    y
}

#[inline(always)]
pub fn zip(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut y = [0.0; LANES];
    for i in 0..LANES {
        y[i] = f(a[i], b[i]);
    }
    y
}

#[inline(always)]
pub fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Halves are combined with halves, down to one.
#[inline(always)]
pub fn fold(x: Lanes, f: impl Fn(f32, f32) -> f32) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| f(x[i], x[i + 8]));
    let four: [f32; 4] = std::array::from_fn(|i| f(eight[i], eight[i + 4]));
    f(f(four[0], four[2]), f(four[1], four[3]))
}

#[inline(always)]
pub fn sum(x: Lanes) -> f32 {
    fold(x, |a, b| a + b)
}
