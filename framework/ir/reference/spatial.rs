//! Windows over any number of dimensions, one position after another.
//!
//! f32 sums run over the window in row-major order, channels innermost last: each product and each sum is rounded.

use super::element::Number;
use super::{Inputs, Outputs, all_output_dims, f32s, optional, output_dims, tensor, wrong_attr};
use crate::op::{Attr, SpatialAttr};
use crate::shape;
use crate::tensor::{Elements, Tensor};

/// Calls `f` with every position of the window (of `positions`), and what it sees: pairs of a place in the kernel and
/// a place in the data (of `data` dims), both row-major. What lies in the padding is left out.
pub(super) fn windows(
    a: &SpatialAttr,
    data: &[usize],
    positions: &[usize],
    mut f: impl FnMut(usize, &[(usize, usize)]),
) {
    let n = data.len();
    let kernel: Vec<usize> = a.kernel[..n].iter().map(|&k| k as usize).collect();
    let (sizes, out, own) = (super::strides(&kernel), super::strides(positions), super::strides(data));
    let mut seen: Vec<(usize, usize)> = Vec::new();
    for at in 0..positions.iter().product() {
        seen.clear();
        for k in 0..kernel.iter().product() {
            let place = |d: usize| {
                let start = at / out[d] % positions[d] * a.stride[d] as usize;
                let inside = start + k / sizes[d] % kernel[d] * a.dilation[d] as usize;
                inside.checked_sub(a.before[d] as usize).filter(|&i| i < data[d]).map(|i| i * own[d])
            };
            let sum = (0..n).try_fold(0, |sum, d| Some(sum + place(d)?));
            seen.extend(sum.map(|i| (k, i)));
        }
        f(at, &seen);
    }
}

/// Sums over windows: `y[n,o,p] = fold over (c, k) of step(y, x, w, o)`, from `start(o)`.
fn correlate<X: Copy, W: Copy, Y: Copy>(
    a: &SpatialAttr,
    x: (&[usize], &[X]),
    w: (&[usize], &[W]),
    y_dims: &[usize],
    start: impl Fn(usize) -> Y,
    step: impl Fn(Y, X, W, usize) -> Y,
) -> Vec<Y> {
    let (c, o) = (x.0[1], y_dims[1]);
    let (group, pixels) = (a.group as usize, x.0[2..].iter().product::<usize>());
    let (cg, og) = (c / group, o / group);
    let taps: usize = w.0[2..].iter().product();
    let positions: usize = y_dims[2..].iter().product();
    let mut y: Vec<Y> = (0..y_dims.iter().product()).map(|i| start(i / positions % o)).collect();
    windows(a, &x.0[2..], &y_dims[2..], |at, seen| {
        for n in 0..y_dims[0] {
            for f in 0..o {
                let mut sum = y[(n * o + f) * positions + at];
                for ch in 0..cg {
                    let x = &x.1[(n * c + f / og * cg + ch) * pixels..][..pixels];
                    let w = &w.1[(f * cg + ch) * taps..][..taps];
                    for &(k, i) in seen {
                        sum = step(sum, x[i], w[k], f);
                    }
                }
                y[(n * o + f) * positions + at] = sum;
            }
        }
    });
    y
}

/// As `Conv`; the bias is added last.
pub fn conv_nd(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::conv_nd, attr, inputs)?;
    let Attr::Spatial(a) = attr else { return Err(wrong_attr(attr)) };
    let (x, w) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
    let (xs, ws) = ((&x.dims[..], f32s(inputs, 0)?), (&w.dims[..], f32s(inputs, 1)?));
    let mut y = correlate(a, xs, ws, &dims, |_| 0.0f32, |sum, x, w, _| sum + x * w);
    add_bias(inputs, &dims, &mut y)?;
    Ok(vec![Tensor::from_f32(&dims, y)])
}

fn add_bias(inputs: Inputs<'_>, dims: &[usize], y: &mut [f32]) -> Result<(), String> {
    if optional(inputs, 2).is_some() {
        let (bias, positions) = (f32s(inputs, 2)?, dims[2..].iter().product::<usize>().max(1));
        y.iter_mut().enumerate().for_each(|(i, y)| *y += bias[i / positions % dims[1]]);
    }
    Ok(())
}

/// Each element of x times the kernel, laid into the result; the bias is added last.
pub fn conv_transpose(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::conv_transpose, attr, inputs)?;
    let Attr::Spatial(a) = attr else { return Err(wrong_attr(attr)) };
    let (x, w) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
    let (xs, ws) = (f32s(inputs, 0)?, f32s(inputs, 1)?);
    let (c, o, group) = (x.dims[1], dims[1], a.group as usize);
    let (cg, og) = (c / group, o / group);
    let taps: usize = w.dims[2..].iter().product();
    let (from, to): (usize, usize) = (x.dims[2..].iter().product(), dims[2..].iter().product());
    let mut y = vec![0.0f32; dims.iter().product()];
    windows(a, &dims[2..], &x.dims[2..], |at, seen| {
        for (n, ch) in (0..dims[0]).flat_map(|n| (0..c).map(move |ch| (n, ch))) {
            let x = xs[(n * c + ch) * from + at];
            for f in 0..og {
                let w = &ws[(ch * og + f) * taps..][..taps];
                let y = &mut y[(n * o + ch / cg * og + f) * to..][..to];
                seen.iter().for_each(|&(k, i)| y[i] += x * w[k]);
            }
        }
    });
    add_bias(inputs, &dims, &mut y)?;
    Ok(vec![Tensor::from_f32(&dims, y)])
}

/// Folds each window of each channel; `f` gets the channel's elements, the places seen and the position.
fn pooled<T, Y>(
    a: &SpatialAttr,
    x: (&[usize], &[T]),
    y_dims: &[usize],
    f: impl Fn(&[T], &[(usize, usize)], usize, usize) -> Y,
) -> Vec<Y>
where
    Y: Copy + Default,
{
    let (from, to): (usize, usize) = (x.0[2..].iter().product(), y_dims[2..].iter().product());
    let mut y = vec![Y::default(); y_dims.iter().product()];
    windows(a, &x.0[2..], &y_dims[2..], |at, seen| {
        for plane in 0..x.0[0] * x.0[1] {
            y[plane * to + at] = f(&x.1[plane * from..][..from], seen, at, plane);
        }
    });
    y
}

/// The first of the largest. Places count elements of the whole input; column by column in `column_major` order.
pub fn max_pool_nd(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    fn all<T: Number>(a: &SpatialAttr, x: (&[usize], &[T]), y_dims: &[usize]) -> (Vec<T>, Vec<i64>) {
        let best = |x: &[T], seen: &[(usize, usize)]| {
            let better = |best: Option<usize>, &(_, i): &(usize, usize)| match best {
                Some(b) if !(x[i] > x[b] || x[i].is_nan()) => best,
                _ => Some(i),
            };
            seen.iter().fold(None, better)
        };
        let pixels: usize = x.0[2..].iter().product();
        let (own, n) = (super::strides(&x.0[2..]), x.0.len() - 2);
        let place = |i: usize| match a.column_major {
            false => i,
            // The first dimension runs fastest.
            true => (0..n).map(|d| i / own[d] % x.0[d + 2] * x.0[2..d + 2].iter().product::<usize>()).sum(),
        };
        let values = pooled(a, x, y_dims, |x, seen, _, _| best(x, seen).map_or(T::LOWEST, |i| x[i]));
        let places = pooled(a, x, y_dims, |x, seen, _, plane| {
            best(x, seen).map_or(-1, |i| (plane * pixels + place(i)) as i64)
        });
        (values, places)
    }
    let dims = all_output_dims(shape::max_pool_nd, attr, inputs)?.remove(0);
    let Attr::Spatial(a) = attr else { return Err(wrong_attr(attr)) };
    let x = tensor(inputs, 0)?;
    let (elements, places) = match &x.elements {
        Elements::F32(v) => {
            let (y, p) = all(a, (&x.dims, v), &dims);
            (Elements::F32(y), p)
        }
        Elements::U8(v) => {
            let (y, p) = all(a, (&x.dims, v), &dims);
            (Elements::U8(y), p)
        }
        Elements::I8(v) => {
            let (y, p) = all(a, (&x.dims, v), &dims);
            (Elements::I8(y), p)
        }
        _ => return Err(format!("input 0 is {}, it must be f32, u8 or i8", x.dtype())),
    };
    Ok(vec![Tensor { dims: dims.clone(), elements }, Tensor::from_i64(&dims, places)])
}

/// As `AveragePool`: what ceil mode adds beyond the padding does not count.
pub fn average_pool_nd(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::pool_nd, attr, inputs)?;
    let Attr::Spatial(a) = attr else { return Err(wrong_attr(attr)) };
    let x = tensor(inputs, 0)?;
    let out = super::strides(&dims[2..]);
    let counted = |at: usize| -> usize {
        let along = |d: usize| {
            let end = x.dims[d + 2] + a.before[d] as usize + a.after[d] as usize;
            let start = at / out[d] % dims[d + 2] * a.stride[d] as usize;
            (0..a.kernel[d] as usize).filter(|k| start + k * (a.dilation[d] as usize) < end).count()
        };
        (0..dims.len() - 2).map(along).product()
    };
    let y = pooled(a, (&x.dims, f32s(inputs, 0)?), &dims, |x, seen, at, _| {
        let sum = seen.iter().fold(0.0f32, |sum, &(_, i)| sum + x[i]);
        let count = if a.count_include_pad { counted(at) } else { seen.len() };
        if count == 0 { 0.0 } else { sum / count as f32 }
    });
    Ok(vec![Tensor::from_f32(&dims, y)])
}

/// `(Σ |x|^p)^(1/p)`.
pub fn lp_pool(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::pool_nd, attr, inputs)?;
    let Attr::Spatial(a) = attr else { return Err(wrong_attr(attr)) };
    let p = a.p as f32;
    let y = pooled(a, (&tensor(inputs, 0)?.dims, f32s(inputs, 0)?), &dims, |x, seen, _, _| {
        seen.iter().fold(0.0f32, |sum, &(_, i)| sum + x[i].abs().powf(p)).powf(1.0 / p)
    });
    Ok(vec![Tensor::from_f32(&dims, y)])
}

/// Values at their places, zeros elsewhere. Places count elements of a tensor of the size that the window undoes.
pub fn max_unpool(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::max_unpool, attr, inputs)?;
    let undone = output_dims(shape::max_unpool, attr, &inputs[..2])?;
    let places = tensor(inputs, 1)?.as_i64().ok_or("input 1 must be i64")?;
    let (from, to) = (super::strides(&undone), super::strides(&dims));
    let mut y = vec![0.0f32; dims.iter().product()];
    let size: usize = undone.iter().product();
    for (&x, &place) in f32s(inputs, 0)?.iter().zip(places) {
        let i = usize::try_from(place).ok().filter(|&i| i < size);
        let i = i.ok_or_else(|| format!("place {place} does not exist: there are {size} elements"))?;
        let at: Option<usize> = (0..dims.len()).try_fold(0, |sum, d| {
            let along = i / from[d] % undone[d];
            (along < dims[d]).then(|| sum + along * to[d])
        });
        y[at.ok_or_else(|| format!("place {place} lies outside of the shape"))?] = x;
    }
    Ok(vec![Tensor::from_f32(&dims, y)])
}

fn global(attr: &Attr, inputs: Inputs<'_>, f: impl Fn(&[f32]) -> f32) -> Outputs {
    let dims = output_dims(shape::global_pool, attr, inputs)?;
    let pixels: usize = tensor(inputs, 0)?.dims[2..].iter().product();
    Ok(vec![Tensor::from_f32(&dims, f32s(inputs, 0)?.chunks_exact(pixels).map(f).collect())])
}

pub fn global_max_pool(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    global(attr, inputs, |x| x.iter().fold(f32::NEG_INFINITY, |m, &x| super::element::larger(x, m)))
}

pub fn global_average_pool(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    global(attr, inputs, |x| x.iter().fold(0.0f32, |a, &b| a + b) / x.len() as f32)
}
