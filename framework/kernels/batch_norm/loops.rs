//! The loops of batch normalisation over a block: whole groups of rows and perhaps a part of one. Values per column are
//! given for a group.

use crate::activation::{Act, Function, with_function};
use crate::by_isa;

/// Lanes of columns whose sums are kept in registers.
pub(super) const LANES: usize = 64;

/// Values of y that pass a gradient, where y was put on a grid.
pub(super) type Inside = Option<(f32, f32)>;

/// Runs `$body` with `$pull(z, dy)` as the gradient before `$act` and the grid behind it.
macro_rules! with_gradient {
    ($act:expr, $inside:expr, $pull:ident => $body:expr) => {
        with_function!($act, F => match $inside {
            None => {
                let $pull = |z: f32, dy: f32| F::gradient(z, dy);
                $body
            }
            Some(inside) => {
                let $pull = |z: f32, dy: f32| gated::<F>(z, inside, dy);
                $body
            }
        })
    };
}

by_isa! {
    /// Adds, for each column of the groups in x, Σ (x - pivot) and Σ (x - pivot)².
    pub(super) fn add_moments(x: &[f32], pivot: &[f32], sum: &mut [f64], square: &mut [f64]) {
        accumulate(x, x, [pivot], sum, square, |x, _, [pivot]| {
            let d = x - pivot;
            (d, d * d)
        });
    }
}

by_isa! {
    /// Adds, for each column of the groups in x, Σ dz and Σ dz (x - center).
    pub(super) fn add_products(x: &[f32], dz: &[f32], center: &[f32], sum: &mut [f64], product: &mut [f64]) {
        accumulate(x, dz, [center], sum, product, |x, dz, [center]| (dz, dz * (x - center)));
    }
}

by_isa! {
    /// [`add_products`] of [`gradient`]'s dz.
    pub(super) fn add_gradient_products(
        act: Act, x: &[f32], dy: &[f32], scale: &[f32], shift: &[f32], inside: Inside, center: &[f32],
        sum: &mut [f64], product: &mut [f64],
    ) {
        let columns = [scale, shift, center];
        with_gradient!(act, inside, pull => {
            accumulate(x, dy, columns, sum, product, |x, dy, [scale, shift, center]| {
                let dz = pull(x * scale + shift, dy);
                (dz, dz * (x - center))
            })
        });
    }
}

/// Adds the two results of `f(a, b, values of the column)` over the groups in a and b to the sums of their columns.
#[inline(always)]
fn accumulate<const N: usize>(
    a: &[f32],
    b: &[f32],
    columns: [&[f32]; N],
    first: &mut [f64],
    second: &mut [f64],
    f: impl Fn(f32, f32, [f32; N]) -> (f32, f32),
) {
    let width = first.len();
    assert!(a.len() == b.len() && second.len() == width && columns.iter().all(|c| c.len() == width));
    let groups = a.len() / width;
    for at in (0..width).step_by(LANES) {
        let columns: [&[f32; LANES]; N] =
            columns.map(|c| c[at..][..LANES].try_into().expect("a group is a multiple of the lanes"));
        let (mut u, mut v) = ([0f32; LANES], [0f32; LANES]);
        for group in 0..groups {
            let (a, b) = (&a[group * width + at..][..LANES], &b[group * width + at..][..LANES]);
            for l in 0..LANES {
                let (p, q) = f(a[l], b[l], columns.map(|c| c[l]));
                u[l] += p;
                v[l] += q;
            }
        }
        for l in 0..LANES {
            first[at + l] += u[l] as f64;
            second[at + l] += v[l] as f64;
        }
    }
    // The last rows, which are no whole group.
    for (i, (&a, &b)) in a[groups * width..].iter().zip(&b[groups * width..]).enumerate() {
        let (p, q) = f(a, b, columns.map(|c| c[i]));
        first[i] += p as f64;
        second[i] += q as f64;
    }
}

by_isa! {
    /// Widens the range of each column by the groups in x.
    pub(super) fn widen(x: &[f32], lo: &mut [f32], hi: &mut [f32]) {
        for x in x.chunks(lo.len()) {
            for ((lo, hi), &x) in lo.iter_mut().zip(hi.iter_mut()).zip(x) {
                *lo = if x < *lo { x } else { *lo };
                *hi = if x > *hi { x } else { *hi };
            }
        }
    }
}

by_isa! {
    /// y = act(x · scale + shift).
    pub(super) fn affine(act: Act, x: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) {
        let (scale, shift) = (scale, &shift[..scale.len()]);
        with_function!(act, F => for (x, y) in x.chunks(scale.len()).zip(y.chunks_mut(scale.len())) {
            for (((y, &x), &scale), &shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                *y = F::value(x * scale + shift);
            }
        })
    }
}

by_isa! {
    /// y = act(x · scale + shift + r).
    pub(super) fn affine_residual(act: Act, x: &[f32], r: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) {
        let width = scale.len();
        with_function!(act, F => for ((x, r), y) in x.chunks(width).zip(r.chunks(width)).zip(y.chunks_mut(width)) {
            for ((((y, &x), &r), &scale), &shift) in y.iter_mut().zip(x).zip(r).zip(scale).zip(shift) {
                *y = F::value(x * scale + shift + r);
            }
        })
    }
}

by_isa! {
    /// dz, the gradient before the activation and the grid behind it.
    pub(super) fn gradient(act: Act, x: &[f32], scale: &[f32], shift: &[f32], inside: Inside, dy: &[f32], dz: &mut [f32]) {
        let width = scale.len();
        let groups = x.chunks(width).zip(dy.chunks(width)).zip(dz.chunks_mut(width));
        with_gradient!(act, inside, pull => for ((x, dy), dz) in groups {
            for ((((dz, &x), &dy), &scale), &shift) in dz.iter_mut().zip(x).zip(dy).zip(scale).zip(shift) {
                *dz = pull(x * scale + shift, dy);
            }
        })
    }
}

by_isa! {
    /// [`gradient`] where a residual r was added.
    pub(super) fn gradient_residual(
        act: Act, x: &[f32], r: &[f32], scale: &[f32], shift: &[f32], inside: Inside, dy: &[f32], dz: &mut [f32],
    ) {
        let width = scale.len();
        let groups = x.chunks(width).zip(r.chunks(width)).zip(dy.chunks(width)).zip(dz.chunks_mut(width));
        with_gradient!(act, inside, pull => for (((x, r), dy), dz) in groups {
            let columns = dz.iter_mut().zip(x).zip(r).zip(dy).zip(scale).zip(shift);
            for (((((dz, &x), &r), &dy), &scale), &shift) in columns {
                *dz = pull(x * scale + shift + r, dy);
            }
        })
    }
}

/// The gradient of the activation where the grid behind it passes one.
#[inline(always)]
fn gated<F: Function>(z: f32, (lo, hi): (f32, f32), dy: f32) -> f32 {
    let y = F::value(z);
    F::gradient(z, if y >= lo && y <= hi { dy } else { 0.0 })
}

by_isa! {
    /// dz by the result of an activation whose derivative it tells.
    pub(super) fn gradient_of_output(act: Act, y: &[f32], dy: &[f32], dz: &mut [f32]) {
        with_function!(act, F => for ((dz, &y), &dy) in dz.iter_mut().zip(y).zip(dy) {
            *dz = F::gradient(y, dy);
        })
    }
}

by_isa! {
    /// dx = dz · scale + x · slope + offset.
    pub(super) fn finish(x: &[f32], dz: &[f32], scale: &[f32], slope: &[f32], offset: &[f32], dx: &mut [f32]) {
        let width = scale.len();
        for ((x, dz), dx) in x.chunks(width).zip(dz.chunks(width)).zip(dx.chunks_mut(width)) {
            let columns = dx.iter_mut().zip(x).zip(dz).zip(scale).zip(slope).zip(offset);
            for (((((dx, &x), &dz), &scale), &slope), &offset) in columns {
                *dx = dz * scale + (x * slope + offset);
            }
        }
    }
}

by_isa! {
    /// [`finish`] of [`gradient`]'s dz.
    pub(super) fn finish_gradient(
        act: Act, x: &[f32], dy: &[f32], scale: &[f32], shift: &[f32], inside: Inside, slope: &[f32],
        offset: &[f32], dx: &mut [f32],
    ) {
        let width = scale.len();
        let groups = x.chunks(width).zip(dy.chunks(width)).zip(dx.chunks_mut(width));
        with_gradient!(act, inside, pull => for ((x, dy), dx) in groups {
            let columns = dx.iter_mut().zip(x).zip(dy).zip(scale).zip(shift).zip(slope).zip(offset);
            for ((((((dx, &x), &dy), &scale), &shift), &slope), &offset) in columns {
                *dx = pull(x * scale + shift, dy) * scale + (x * slope + offset);
            }
        })
    }
}

by_isa! {
    /// [`finish`] of the dz in dx.
    pub(super) fn finish_in_place(x: &[f32], scale: &[f32], slope: &[f32], offset: &[f32], dx: &mut [f32]) {
        let width = scale.len();
        for (x, dx) in x.chunks(width).zip(dx.chunks_mut(width)) {
            for ((((dx, &x), &scale), &slope), &offset) in dx.iter_mut().zip(x).zip(scale).zip(slope).zip(offset) {
                *dx = *dx * scale + (x * slope + offset);
            }
        }
    }
}
