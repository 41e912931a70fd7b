//! Convolutions and pools: positions of a window along each dimension.

use super::{
    Element, Facts, InferInput, Inputs, check_clip, check_table, check_u8, check_zero, expect_dims,
    expect_dtype, expect_like, input, may_equal, one, optional, rank, show, typed, wrong_attr,
};
use crate::op::{Attr, ConvAttr, FusedConvAttr, PoolAttr, Window};
use crate::tensor::{DType, Dim};

/// Number of window positions along one dimension of `size` elements, or why there are none.
/// In ceil mode a last window that would start in the padding behind the data does not count.
fn positions(size: u64, w: &Window, d: usize, ceil: bool) -> Result<u64, String> {
    let (kernel, stride, dilation) = (w.kernel[d] as u64, w.stride[d] as u64, w.dilation[d] as u64);
    let (before, after) = (w.pads[d] as u64, w.pads[d + 2] as u64);
    if kernel == 0 || stride == 0 || dilation == 0 {
        return Err("kernel, stride and dilation must be at least 1".to_string());
    }
    let reach = (kernel - 1) * dilation + 1;
    let padded = size.checked_add(before + after).ok_or("padded size overflows: use smaller pads")?;
    let room = padded.checked_sub(reach).filter(|_| size > 0).ok_or_else(|| {
        format!("a window that spans {reach} does not fit {size} elements with pads {before} and {after}")
    })?;
    let mut n = room / stride + 1;
    if ceil && !room.is_multiple_of(stride) && n.saturating_mul(stride) < size + before {
        n += 1;
    }
    Ok(n)
}

/// Output height or width.
pub(super) fn window_dim(
    x: &InferInput<'_>,
    dim: Dim,
    w: &Window,
    d: usize,
    ceil: bool,
) -> Result<Dim, String> {
    let size = match dim {
        Dim::Fixed(size) => return Ok(Dim::Fixed(positions(size, w, d, ceil)?)),
        _ => Element::from(dim),
    };
    let (kernel, stride, dilation) = (w.kernel[d] as i64, w.stride[d] as i64, w.dilation[d] as i64);
    let (before, after) = (w.pads[d] as i64, w.pads[d + 2] as i64);
    if kernel == 0 || stride == 0 || dilation == 0 {
        return Err("kernel, stride and dilation must be at least 1".to_string());
    }
    let reach = (kernel - 1) * dilation + 1;
    // In ceil mode, whether a last window begins in the padding behind the data may hang on the size.
    if ceil && stride > reach - after {
        return Ok(Dim::Unknown);
    }
    let up = if ceil { stride - 1 } else { 0 };
    let room = x.symbols.add(size, Element::Number(before + after - reach + up));
    let steps = x.symbols.div(room, Element::Number(stride));
    Ok(x.symbols.to_dim(x.symbols.add(steps, Element::Number(1))))
}

/// Groups divide channels and filters; the kernel has the size that the weight has.
fn check_conv(attr: &ConvAttr, x_channels: Dim, w: [Dim; 4]) -> Result<(), String> {
    let [filters, w_channels, kh, kw] = w;
    let group = attr.group as u64;
    let divides = |n: Dim| n.fixed().is_none_or(|n| n.is_multiple_of(group));
    if group == 0 || !divides(filters) || !divides(x_channels) {
        return Err(format!(
            "group {group} must be at least 1 and divide the channels and filters, {}",
            show(&[x_channels, filters])
        ));
    }
    if let Some(channels) = x_channels.fixed().filter(|c| !may_equal(w_channels, Dim::Fixed(c / group))) {
        return Err(format!("input 1 must have {} channels per group", channels / group));
    }
    let kernel = attr.window.kernel;
    let fits = |have: Dim, want: u32| may_equal(have, Dim::Fixed(want as u64));
    if !fits(kh, kernel[0]) || !fits(kw, kernel[1]) {
        return Err(format!("kernel is {kernel:?}, but input 1 holds a kernel of {}", show(&[kh, kw])));
    }
    Ok(())
}

pub fn conv(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Conv(a) = attr else { return Err(wrong_attr(attr)) };
    let x = typed(inputs, 0, DType::F32)?;
    let [n, c, h, w] = rank(0, &x)?;
    let weight = rank::<4>(1, &typed(inputs, 1, DType::F32)?)?;
    check_conv(a, c, weight)?;
    if let Some(bias) = optional(inputs, 2) {
        expect_dtype(2, &bias, DType::F32)?;
        expect_like(2, &bias, &[weight[0]])?;
    }
    let h = window_dim(&x, h, &a.window, 0, false)?;
    let w = window_dim(&x, w, &a.window, 1, false)?;
    one(DType::F32, vec![n, weight[0], h, w])
}

/// Shape part of both NHWC convolutions: x[N,H,W,C], w[O,kh,kw,C/g] to [N,OH,OW,O].
fn conv_nhwc_dims(a: &ConvAttr, x: &InferInput<'_>, w: &InferInput<'_>) -> Result<[Dim; 4], String> {
    let [n, h, wd, c] = rank(0, x)?;
    let [o, kh, kw, wc] = rank(1, w)?;
    check_conv(a, c, [o, wc, kh, kw])?;
    Ok([n, window_dim(x, h, &a.window, 0, false)?, window_dim(x, wd, &a.window, 1, false)?, o])
}

pub fn conv_nhwc(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::FusedConv(a) = attr else { return Err(wrong_attr(attr)) };
    check_clip(a.clip.min, a.clip.max)?;
    let (x, w) = (typed(inputs, 0, DType::F32)?, typed(inputs, 1, DType::F32)?);
    let dims = conv_nhwc_dims(&a.conv, &x, &w)?;
    expect_dims(2, &typed(inputs, 2, DType::F32)?, &dims[3..])?;
    if let Some(r) = optional(inputs, 3) {
        expect_dtype(3, &r, DType::F32)?;
        expect_dims(3, &r, &dims)?;
    }
    one(DType::F32, dims.to_vec())
}

/// `stride * (size - 1) + kernel - pads` pixels along each side.
pub fn conv_transpose_nhwc(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::FusedConv(FusedConvAttr { conv: ConvAttr { window, group }, clip }) = attr else {
        return Err(wrong_attr(attr));
    };
    check_clip(clip.min, clip.max)?;
    if *group != 1 || window.dilation != [1, 1] {
        return Err("has one group, and dilations of 1".to_string());
    }
    let x = typed(inputs, 0, DType::F32)?;
    let [n, h, w, c] = rank(0, &x)?;
    let [o, kh, kw, wc] = rank(1, &typed(inputs, 1, DType::F32)?)?;
    let kernel = window.kernel.map(|k| Dim::Fixed(k.into()));
    if !may_equal(wc, c) || !may_equal(kh, kernel[0]) || !may_equal(kw, kernel[1]) {
        let weights = show(&[o, kh, kw, wc]);
        return Err(format!(
            "kernel {:?} on {} channels, but input 1 is {weights}",
            window.kernel,
            show(&[c])
        ));
    }
    expect_dims(2, &typed(inputs, 2, DType::F32)?, &[o])?;
    one(DType::F32, vec![n, spread_dim(&x, h, window, 0)?, spread_dim(&x, w, window, 1)?, o])
}

/// Height or width of what a transposed convolution makes.
fn spread_dim(x: &InferInput<'_>, dim: Dim, w: &Window, d: usize) -> Result<Dim, String> {
    let (kernel, stride) = (i64::from(w.kernel[d]), i64::from(w.stride[d]));
    if kernel == 0 || stride == 0 {
        return Err("kernel and stride must be at least 1".to_string());
    }
    let more = kernel - stride - i64::from(w.pads[d]) - i64::from(w.pads[d + 2]);
    if let Dim::Fixed(size) = dim {
        let left = i128::from(size) * i128::from(stride) + i128::from(more);
        let left = u64::try_from(left).ok().filter(|&left| left > 0 && size > 0);
        return left.map(Dim::Fixed).ok_or_else(|| format!("pads leave nothing of {size} elements"));
    }
    let spread = x.symbols.mul(Element::from(dim), Element::Number(stride));
    Ok(x.symbols.to_dim(x.symbols.add(spread, Element::Number(more))))
}

pub fn qconv(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::QConv(a) = attr else { return Err(wrong_attr(attr)) };
    if let Some(out) = &a.out {
        check_u8(out)?;
    }
    check_zero("x_zero", a.x_zero)?;
    check_zero("residual_zero", a.residual_zero)?;
    let (x, w) = (typed(inputs, 0, DType::U8)?, typed(inputs, 1, DType::I8)?);
    let dims = conv_nhwc_dims(&a.conv, &x, &w)?;
    expect_dims(2, &typed(inputs, 2, DType::I32)?, &dims[3..])?;
    expect_dims(3, &typed(inputs, 3, DType::F32)?, &dims[3..])?;
    let residual = optional(inputs, 4);
    if let Some(r) = &residual {
        expect_dtype(4, r, DType::U8)?;
        expect_dims(4, r, &dims)?;
    }
    if optional(inputs, 5).is_some() {
        check_table(inputs, 5)?;
    }
    if let Some(late) = &a.late {
        check_u8(&late.out)?;
        check_zero("late.zero", late.zero)?;
        if residual.is_none() {
            return Err("adds a late residual, but input 4 is absent".to_string());
        }
    }
    if a.out.is_none() && (residual.is_some() || optional(inputs, 5).is_some()) {
        return Err(
            "has a residual or a table, but its result is not u8: give it an output scale".to_string()
        );
    }
    one(if a.out.is_some() { DType::U8 } else { DType::F32 }, dims.to_vec())
}

/// A pad as wide as the window would make windows that see no data at all.
fn pool_dims(x: &InferInput<'_>, a: &PoolAttr, h: Dim, w: Dim) -> Result<[Dim; 2], String> {
    for d in 0..2 {
        let reach = (a.window.kernel[d] as u64).saturating_sub(1) * a.window.dilation[d] as u64 + 1;
        if a.window.pads[d] as u64 >= reach || a.window.pads[d + 2] as u64 >= reach {
            return Err(format!(
                "pads {:?} must be smaller than the window, which spans {reach}",
                a.window.pads
            ));
        }
    }
    Ok([window_dim(x, h, &a.window, 0, a.ceil_mode)?, window_dim(x, w, &a.window, 1, a.ceil_mode)?])
}

pub fn pool(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Pool(a) = attr else { return Err(wrong_attr(attr)) };
    let x = typed(inputs, 0, DType::F32)?;
    let [n, c, h, w] = rank(0, &x)?;
    let [h, w] = pool_dims(&x, a, h, w)?;
    one(DType::F32, vec![n, c, h, w])
}

pub fn pool_nhwc(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Pool(a) = attr else { return Err(wrong_attr(attr)) };
    let x = input(inputs, 0)?;
    if !matches!(x.dtype, DType::F32 | DType::U8) {
        return Err(format!("input 0 is {}, it must be f32 or u8", x.dtype));
    }
    let [n, h, w, c] = rank(0, &x)?;
    let [h, w] = pool_dims(&x, a, h, w)?;
    one(x.dtype, vec![n, h, w, c])
}

/// As [`pool_nhwc`], f32 only.
pub fn pool_nhwc_f32(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    typed(inputs, 0, DType::F32)?;
    pool_nhwc(attr, inputs)
}

fn not_empty(h: Dim, w: Dim) -> Result<(), String> {
    if [h, w].contains(&Dim::Fixed(0)) {
        return Err("cannot average over no elements: height or width of input 0 is 0".to_string());
    }
    Ok(())
}

pub fn global_pool_nhwc(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let [n, h, w, c] = rank(0, &typed(inputs, 0, DType::F32)?)?;
    not_empty(h, w)?;
    one(DType::F32, vec![n, Dim::Fixed(1), Dim::Fixed(1), c])
}

pub fn qglobal_pool(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::QPool(a) = attr else { return Err(wrong_attr(attr)) };
    check_u8(&a.out)?;
    check_zero("x_zero", a.x_zero)?;
    let [n, h, w, c] = rank(0, &typed(inputs, 0, DType::U8)?)?;
    not_empty(h, w)?;
    one(DType::U8, vec![n, Dim::Fixed(1), Dim::Fixed(1), c])
}
