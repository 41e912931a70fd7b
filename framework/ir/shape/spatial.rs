//! Windows over any number of dimensions: convolutions, their transposes, pools, and integer convolutions.

use super::{
    Fact, Facts, InferInput, Inputs, check_dims, expect_dims, expect_dtype, input, number, one, optional,
    rank, show, typed, window_dim, wrong_attr,
};
use crate::op::{Attr, SpatialAttr, Window};
use crate::tensor::{DType, Dim};

/// The window along spatial dimension `d`, as the first dimension of a 2-D one.
fn along(a: &SpatialAttr, d: usize) -> Window {
    Window {
        kernel: [a.kernel[d], 1],
        stride: [a.stride[d], 1],
        dilation: [a.dilation[d], 1],
        pads: [a.before[d], 0, a.after[d], 0],
    }
}

fn spatial_rank(a: &SpatialAttr, i: usize, x: &InferInput<'_>) -> Result<usize, String> {
    let n = usize::from(a.rank);
    if !(1..=3).contains(&n) || x.dims.len() != n + 2 {
        return Err(format!("input {i} has {} dimensions, a window of {n} needs {}", x.dims.len(), n + 2));
    }
    Ok(n)
}

/// `x[N,C,...]`, `w[O,C/g,...]` to `[N,O,...]`.
fn conv_dims(
    a: &SpatialAttr,
    x: &InferInput<'_>,
    w: &InferInput<'_>,
    at: [usize; 2],
) -> Result<Vec<Dim>, String> {
    let n = spatial_rank(a, at[0], x)?;
    spatial_rank(a, at[1], w)?;
    let (filters, channels) =
        (number(at[1], "the filter count", w.dims[0])?, number(at[0], "the channel count", x.dims[1])?);
    let group = u64::from(a.group);
    if group == 0 || !filters.is_multiple_of(group) || !channels.is_multiple_of(group) {
        return Err(format!("group {group} must divide {channels} channels and {filters} filters"));
    }
    if w.dims[1] != Dim::Fixed(channels / group) {
        return Err(format!("input {} must have {} channels per group", at[1], channels / group));
    }
    if (0..n).any(|d| w.dims[d + 2] != Dim::Fixed(a.kernel[d].into())) {
        return Err(format!("kernel is {:?}, but input {} is {}", &a.kernel[..n], at[1], show(w.dims)));
    }
    let mut dims = vec![x.dims[0], w.dims[0]];
    for d in 0..n {
        dims.push(window_dim(x, x.dims[d + 2], &along(a, d), 0, false)?);
    }
    Ok(dims)
}

pub fn conv_nd(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Spatial(a) = attr else { return Err(wrong_attr(attr)) };
    let (x, w) = (typed(inputs, 0, DType::F32)?, typed(inputs, 1, DType::F32)?);
    let dims = conv_dims(a, &x, &w, [0, 1])?;
    if let Some(bias) = optional(inputs, 2) {
        expect_dtype(2, &bias, DType::F32)?;
        expect_dims(2, &bias, &dims[1..2])?;
    }
    one(DType::F32, dims)
}

/// `x[N,C,...]`, `w[C,O/g,...]`, optional `bias[O]`: every element of x adds a kernel to the result.
pub fn conv_transpose(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Spatial(a) = attr else { return Err(wrong_attr(attr)) };
    let (x, w) = (typed(inputs, 0, DType::F32)?, typed(inputs, 1, DType::F32)?);
    let n = spatial_rank(a, 0, &x)?;
    spatial_rank(a, 1, &w)?;
    let (channels, group) = (number(0, "the channel count", x.dims[1])?, u64::from(a.group));
    if group == 0 || !channels.is_multiple_of(group) || w.dims[0] != x.dims[1] {
        return Err(format!("group {group} and weights {} do not fit {channels} channels", show(w.dims)));
    }
    let filters = number(1, "the filter count", w.dims[1])?.checked_mul(group).ok_or("too many filters")?;
    if let Some(bias) = optional(inputs, 2) {
        expect_dtype(2, &bias, DType::F32)?;
        expect_dims(2, &bias, &[Dim::Fixed(filters)])?;
    }
    let mut dims = vec![x.dims[0], Dim::Fixed(filters)];
    for d in 0..n {
        if w.dims[d + 2] != Dim::Fixed(a.kernel[d].into()) {
            return Err(format!("kernel is {:?}, but input 1 is {}", &a.kernel[..n], show(w.dims)));
        }
        dims.push(match x.dims[d + 2] {
            Dim::Fixed(size) => Dim::Fixed(transposed_size(a, d, size)?),
            _ => Dim::Unknown,
        });
    }
    one(DType::F32, dims)
}

/// `stride * (size - 1) + output_padding + reach - pads`.
fn transposed_size(a: &SpatialAttr, d: usize, size: u64) -> Result<u64, String> {
    let wide = |v: u32| i128::from(v);
    if a.kernel[d] == 0 || a.stride[d] == 0 || a.dilation[d] == 0 || size == 0 {
        return Err("kernel, stride, dilation and size must be at least 1".to_string());
    }
    let reach = (wide(a.kernel[d]) - 1) * wide(a.dilation[d]) + 1;
    let full = wide(a.stride[d]) * (i128::from(size) - 1) + wide(a.output_padding[d]) + reach;
    let left = full - wide(a.before[d]) - wide(a.after[d]);
    u64::try_from(left).ok().filter(|&n| n > 0).ok_or_else(|| format!("the pads leave {left} elements"))
}

fn pool_nd_dims(a: &SpatialAttr, x: &InferInput<'_>) -> Result<Vec<Dim>, String> {
    let n = spatial_rank(a, 0, x)?;
    let mut dims = x.dims[..2].to_vec();
    for d in 0..n {
        let reach = u64::from(a.kernel[d]).saturating_sub(1) * u64::from(a.dilation[d]) + 1;
        if u64::from(a.before[d]) >= reach || u64::from(a.after[d]) >= reach {
            return Err(format!("pads must be smaller than the window, which spans {reach}"));
        }
        dims.push(window_dim(x, x.dims[d + 2], &along(a, d), 0, a.ceil_mode)?);
    }
    Ok(dims)
}

/// Largest elements, and where in x they stand.
pub fn max_pool_nd(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Spatial(a) = attr else { return Err(wrong_attr(attr)) };
    let x = input(inputs, 0)?;
    if !matches!(x.dtype, DType::F32 | DType::U8 | DType::I8) {
        return Err(format!("input 0 is {}, it must be f32, u8 or i8", x.dtype));
    }
    let dims = pool_nd_dims(a, &x)?;
    check_dims(&dims)?;
    Ok(vec![Fact { dtype: x.dtype, dims: dims.clone() }, Fact { dtype: DType::I64, dims }])
}

pub fn pool_nd(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Spatial(a) = attr else { return Err(wrong_attr(attr)) };
    one(DType::F32, pool_nd_dims(a, &typed(inputs, 0, DType::F32)?)?)
}

/// Values, where they go, and the optional shape of the result.
pub fn max_unpool(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Spatial(a) = attr else { return Err(wrong_attr(attr)) };
    let (x, places) = (typed(inputs, 0, DType::F32)?, typed(inputs, 1, DType::I64)?);
    expect_dims(1, &places, x.dims)?;
    let n = spatial_rank(a, 0, &x)?;
    let mut dims = x.dims[..2].to_vec();
    for d in 0..n {
        dims.push(match x.dims[d + 2] {
            Dim::Fixed(size) => Dim::Fixed(transposed_size(a, d, size)?),
            _ => Dim::Unknown,
        });
    }
    if let Some(shape) = optional(inputs, 2) {
        expect_dtype(2, &shape, DType::I64)?;
        let [len] = rank(2, &shape)?;
        if len != Dim::Fixed(dims.len() as u64) {
            return Err(format!("input 2 must list {} dimensions", dims.len()));
        }
        match shape.ints() {
            Some(shape) => dims = super::sizes(2, &shape)?.into_iter().map(Dim::Fixed).collect(),
            None => dims.fill(Dim::Unknown),
        }
    }
    one(DType::F32, dims)
}

/// Global pools: x `[N,C,...]` to `[N,C,1,...]`.
pub fn global_pool(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = typed(inputs, 0, DType::F32)?;
    if x.dims.len() < 3 {
        return Err(format!("input 0 has {} dimensions, it must have at least 3", x.dims.len()));
    }
    if x.dims[2..].contains(&Dim::Fixed(0)) {
        return Err("cannot take the largest of or average over no elements".to_string());
    }
    let ones = vec![Dim::Fixed(1); x.dims.len() - 2];
    one(DType::F32, [&x.dims[..2], &ones].concat())
}
