//! Arithmetic on 16 floats at a time, in plain Rust that compiles to the vectors of the instruction set around it.

pub const LANES: usize = 16;
pub type Lanes = [f32; LANES];

/// `rest` (fewer than 16), then `fill`.
#[inline(always)]
pub fn tail(rest: &[f32], fill: f32) -> Lanes {
    let mut lanes = [fill; LANES];
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = x;
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
pub fn fold(mut x: Lanes, f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            x[i] = f(x[i], x[i + half]);
        }
    }
    x[0]
}

#[inline(always)]
pub fn sum(x: Lanes) -> f32 {
    fold(x, |a, b| a + b)
}

/// e^x within 2 units of the last place; 0 below -87.3 (where e^x would be subnormal), about 2.2e38 above 88.3; NaN
/// stays NaN. The polynomial is that of Cephes' `expf` (Moshier, 1989).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.3;
    const HIGHEST: f32 = 88.3;
    /// 1.5 * 2^23: adding it leaves a float's nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < LOWEST { LOWEST } else { x };
    let clamped = if clamped > HIGHEST { HIGHEST } else { clamped };
    // e^x = 2^n e^r with |r| <= ln(2) / 2; ln 2 in two parts, so that n times the first is exact.
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.000_000_1e-1] {
        p = p * r + coefficient;
    }
    let p = p * (r * r) + (r + 1.0);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    if x < LOWEST { 0.0 } else { p * power }
}
