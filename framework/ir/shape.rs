//! Shape rules: dtype and shape of an op's outputs from those of its inputs.
//!
//! Graphs come from files, so a rule trusts nothing: it counts inputs, checks dtypes and ranks, does checked
//! arithmetic, and an error says which input is wrong and what to do. Symbolic dimensions (the batch) pass
//! through wherever the op does not need their number. The same rules run on numbers alone in the reference
//! functions ([`crate::reference::output_dims`]), so that an output is never allocated from an unchecked size.

use crate::graph::Graph;
use crate::ids::ValueId;
use crate::op::{Attr, Axes, ConvAttr, OpKind, PoolAttr, Requant, Window};
use crate::tensor::{DType, Dim, TENSOR_ELEMENTS_MAX, Tensor};

/// The most dimensions a value may have.
pub const RANK_MAX: usize = 8;

/// Rules see the elements of i64 constants up to this size: shapes and axes, not data.
const VALUE_BYTES_MAX: usize = 1024;

/// Dtype and shape of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    pub dtype: DType,
    pub dims: Vec<Dim>,
}

/// What a rule sees of one input.
#[derive(Clone, Copy, Debug)]
pub struct InferInput<'a> {
    pub dtype: DType,
    pub dims: &'a [Dim],
    /// The elements, where the input is a small i64 constant (a target shape, axes).
    pub value: Option<&'a Tensor>,
}

/// Runs the rule of `kind` on values of `g`.
pub fn infer(g: &Graph, kind: OpKind, attr: &Attr, inputs: &[ValueId]) -> Result<Vec<Fact>, String> {
    let row = kind.row();
    if inputs.len() < row.inputs.0 || inputs.len() > row.inputs.1 {
        return Err(format!("takes {} to {} inputs, not {}", row.inputs.0, row.inputs.1, inputs.len()));
    }
    if attr.variant() != row.attr {
        return Err(format!("carries {} attributes, not {}", row.attr, attr.variant()));
    }
    let constants: Vec<Option<Tensor>> = inputs
        .iter()
        .map(|&v| {
            let small = !v.is_none() && g.const_bytes(v).is_some_and(|b| b.len() <= VALUE_BYTES_MAX);
            if small && g.value_dtype[v] == DType::I64 { g.const_tensor(v) } else { None }
        })
        .collect();
    let mut seen = Vec::with_capacity(inputs.len());
    for (i, &v) in inputs.iter().enumerate() {
        if v.is_none() {
            if i < row.inputs.0 {
                return Err(format!("input {i} is absent"));
            }
            seen.push(None);
            continue;
        }
        seen.push(Some(InferInput {
            dtype: g.value_dtype[v],
            dims: g.shape(v),
            value: constants[i].as_ref(),
        }));
    }
    (row.infer)(attr, &seen)
}

/// Absent inputs are `None`.
pub type Inputs<'a> = &'a [Option<InferInput<'a>>];
pub type Facts = Result<Vec<Fact>, String>;
pub type Rule = fn(&Attr, Inputs<'_>) -> Facts;

// ---- what rules share ------------------------------------------------------------------------------

/// One output, refused when its rank or its fixed dimensions' product is beyond the limits.
fn one(dtype: DType, dims: Vec<Dim>) -> Facts {
    check_dims(&dims)?;
    Ok(vec![Fact { dtype, dims }])
}

/// Checks rank and the product of the fixed dimensions against [`RANK_MAX`] and [`TENSOR_ELEMENTS_MAX`].
pub fn check_dims(dims: &[Dim]) -> Result<(), String> {
    if dims.len() > RANK_MAX {
        return Err(format!("the shape has {} dimensions, at most {RANK_MAX} are supported", dims.len()));
    }
    // Zeros count as one here, as in `element_count`.
    let product = dims.iter().filter_map(|d| d.fixed()).try_fold(1u64, |p, d| p.checked_mul(d.max(1)));
    match product {
        Some(n) if n <= TENSOR_ELEMENTS_MAX => Ok(()),
        _ => Err(format!(
            "the shape {} has more than {TENSOR_ELEMENTS_MAX} elements: use smaller dimensions",
            show(dims)
        )),
    }
}

fn fixed_product(dims: &[Dim]) -> Option<u64> {
    dims.iter().filter_map(|d| d.fixed()).try_fold(1u64, |p, d| p.checked_mul(d))
}

fn show(dims: &[Dim]) -> String {
    let dims: Vec<String> = dims
        .iter()
        .map(|d| match d {
            Dim::Fixed(n) => n.to_string(),
            Dim::Symbol(s) => format!("{s:?}"),
        })
        .collect();
    format!("[{}]", dims.join(","))
}

fn input<'a>(inputs: Inputs<'a>, i: usize) -> Result<InferInput<'a>, String> {
    inputs.get(i).copied().flatten().ok_or_else(|| format!("input {i} is absent"))
}

fn optional<'a>(inputs: Inputs<'a>, i: usize) -> Option<InferInput<'a>> {
    inputs.get(i).copied().flatten()
}

fn typed<'a>(inputs: Inputs<'a>, i: usize, dtype: DType) -> Result<InferInput<'a>, String> {
    let x = input(inputs, i)?;
    expect_dtype(i, &x, dtype)?;
    Ok(x)
}

fn expect_dtype(i: usize, x: &InferInput<'_>, dtype: DType) -> Result<(), String> {
    if x.dtype != dtype {
        return Err(format!("input {i} is {}, it must be {dtype}", x.dtype));
    }
    Ok(())
}

fn expect_dims(i: usize, x: &InferInput<'_>, dims: &[Dim]) -> Result<(), String> {
    if x.dims != dims {
        return Err(format!("input {i} has shape {}, it must be {}", show(x.dims), show(dims)));
    }
    Ok(())
}

fn rank<const N: usize>(i: usize, x: &InferInput<'_>) -> Result<[Dim; N], String> {
    <[Dim; N]>::try_from(x.dims)
        .map_err(|_| format!("input {i} has {} dimensions, it must have {N}", x.dims.len()))
}

fn number(i: usize, what: &str, dim: Dim) -> Result<u64, String> {
    dim.fixed().ok_or_else(|| format!("{what} of input {i} is symbolic: fix it to a number"))
}

/// An axis counted from the front; `limit` is the first that is too large.
pub fn axis_index(axis: i64, limit: usize) -> Result<usize, String> {
    let n = limit as i64;
    let at = if axis < 0 { axis.saturating_add(n) } else { axis };
    if at < 0 || at >= n {
        return Err(format!("axis {axis} does not exist: it must be in {}..{}", -n, n));
    }
    Ok(at as usize)
}

fn wrong_attr(attr: &Attr) -> String {
    format!("cannot carry {} attributes", attr.variant())
}

fn check_clip(min: f32, max: f32) -> Result<(), String> {
    if min <= max { Ok(()) } else { Err(format!("clips to min {min}, max {max}: min must not exceed max")) }
}

fn check_u8(out: &Requant) -> Result<(), String> {
    let fits = |v: i32| (0..=255).contains(&v);
    if !fits(out.zero) || !fits(out.lo) || !fits(out.hi) || out.lo > out.hi {
        return Err(format!(
            "requantises to zero {} in {}..={}: u8 needs 0 <= lo <= hi <= 255",
            out.zero, out.lo, out.hi
        ));
    }
    Ok(())
}

fn check_zero(what: &str, zero: i32) -> Result<(), String> {
    if (0..=255).contains(&zero) { Ok(()) } else { Err(format!("{what} is {zero}: u8 needs 0..=255")) }
}

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

/// Output height or width. A symbolic one passes only where the window cannot change it.
fn window_dim(i: usize, dim: Dim, w: &Window, d: usize, ceil: bool) -> Result<Dim, String> {
    match dim {
        Dim::Fixed(size) => Ok(Dim::Fixed(positions(size, w, d, ceil)?)),
        Dim::Symbol(_) if w.kernel[d] == 1 && w.stride[d] == 1 && w.pads[d] == 0 && w.pads[d + 2] == 0 => {
            Ok(dim)
        }
        Dim::Symbol(_) => Err(format!("height and width of input {i} must be numbers under this window")),
    }
}

// ---- elementwise -----------------------------------------------------------------------------------

/// Output as input 0.
pub fn same(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = input(inputs, 0)?;
    one(x.dtype, x.dims.to_vec())
}

/// As [`same`], for numbers.
pub fn same_number(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    if input(inputs, 0)?.dtype == DType::Bool {
        return Err("input 0 is bool, it must be a number".to_string());
    }
    same(attr, inputs)
}

/// As [`same`], f32 only; also checks the bounds of Clip and the axis of Softmax.
pub fn same_f32(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = typed(inputs, 0, DType::F32)?;
    match attr {
        Attr::Clip(c) => check_clip(c.min, c.max)?,
        Attr::Axis(a) => {
            axis_index(*a as i64, x.dims.len())?;
        }
        _ => {}
    }
    one(x.dtype, x.dims.to_vec())
}

/// Batch normalisation: x[N,C,...] and four vectors of C, all f32.
pub fn first_f32(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Epsilon(epsilon) = attr else { return Err(wrong_attr(attr)) };
    check_epsilon(*epsilon)?;
    let x = typed(inputs, 0, DType::F32)?;
    let channels = *x.dims.get(1).ok_or("input 0 needs at least 2 dimensions [N,C,...]")?;
    number(0, "the channel dimension", channels)?;
    for i in 1..5 {
        expect_dims(i, &typed(inputs, i, DType::F32)?, &[channels])?;
    }
    one(x.dtype, x.dims.to_vec())
}

/// numpy broadcasting of two inputs of one dtype (f32, i64 or i32).
pub fn broadcast(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let (a, b) = (input(inputs, 0)?, input(inputs, 1)?);
    if !matches!(a.dtype, DType::F32 | DType::I64 | DType::I32) {
        return Err(format!("input 0 is {}, arithmetic takes f32, i64 or i32", a.dtype));
    }
    expect_dtype(1, &b, a.dtype)?;
    one(a.dtype, broadcast_dims(a.dims, b.dims)?)
}

/// The broadcast shape: a dimension meets its equal (a symbol: itself) or 1.
pub fn broadcast_dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>, String> {
    let n = a.len().max(b.len());
    let at = |dims: &[Dim], i: usize| (i + dims.len()).checked_sub(n).map_or(Dim::Fixed(1), |j| dims[j]);
    (0..n)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (Dim::Fixed(1), y) => Ok(y),
            (x, Dim::Fixed(1)) => Ok(x),
            _ => Err(format!("shapes {} and {} do not broadcast", show(a), show(b))),
        })
        .collect()
}

// ---- windows ---------------------------------------------------------------------------------------

/// Groups divide channels and filters; the kernel has the size that the weight has.
fn check_conv(attr: &ConvAttr, x_channels: Dim, w: [Dim; 4]) -> Result<(), String> {
    let [filters, w_channels, kh, kw] = w;
    let filters = number(1, "the filter count", filters)?;
    let channels = number(0, "the channel count", x_channels)?;
    let group = attr.group as u64;
    if group == 0 || !filters.is_multiple_of(group) || !channels.is_multiple_of(group) {
        return Err(format!(
            "group {group} must be at least 1 and divide {channels} channels and {filters} filters"
        ));
    }
    if w_channels != Dim::Fixed(channels / group) {
        return Err(format!("input 1 must have {} channels per group", channels / group));
    }
    let kernel = attr.window.kernel;
    if [kh, kw] != [Dim::Fixed(kernel[0] as u64), Dim::Fixed(kernel[1] as u64)] {
        return Err(format!("kernel is {kernel:?}, but input 1 holds a kernel of {}", show(&[kh, kw])));
    }
    Ok(())
}

pub fn conv(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Conv(a) = attr else { return Err(wrong_attr(attr)) };
    let [n, c, h, w] = rank(0, &typed(inputs, 0, DType::F32)?)?;
    let weight = rank::<4>(1, &typed(inputs, 1, DType::F32)?)?;
    check_conv(a, c, weight)?;
    if let Some(bias) = optional(inputs, 2) {
        expect_dtype(2, &bias, DType::F32)?;
        expect_dims(2, &bias, &[weight[0]])?;
    }
    let h = window_dim(0, h, &a.window, 0, false)?;
    let w = window_dim(0, w, &a.window, 1, false)?;
    one(DType::F32, vec![n, weight[0], h, w])
}

/// Shape part of both NHWC convolutions: x[N,H,W,C], w[O,kh,kw,C/g] to [N,OH,OW,O].
fn conv_nhwc_dims(a: &ConvAttr, x: &InferInput<'_>, w: &InferInput<'_>) -> Result<[Dim; 4], String> {
    let [n, h, wd, c] = rank(0, x)?;
    let [o, kh, kw, wc] = rank(1, w)?;
    check_conv(a, c, [o, wc, kh, kw])?;
    Ok([n, window_dim(0, h, &a.window, 0, false)?, window_dim(0, wd, &a.window, 1, false)?, o])
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

/// A table of one byte for every byte.
fn check_table(inputs: Inputs<'_>, i: usize) -> Result<(), String> {
    expect_dims(i, &typed(inputs, i, DType::U8)?, &[Dim::Fixed(256)])
}

pub fn qlookup(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = typed(inputs, 0, DType::U8)?;
    check_table(inputs, 1)?;
    one(DType::U8, x.dims.to_vec())
}

/// A pad as wide as the window would make windows that see no data at all.
fn pool_dims(a: &PoolAttr, h: Dim, w: Dim) -> Result<[Dim; 2], String> {
    for d in 0..2 {
        let reach = (a.window.kernel[d] as u64).saturating_sub(1) * a.window.dilation[d] as u64 + 1;
        if a.window.pads[d] as u64 >= reach || a.window.pads[d + 2] as u64 >= reach {
            return Err(format!(
                "pads {:?} must be smaller than the window, which spans {reach}",
                a.window.pads
            ));
        }
    }
    Ok([window_dim(0, h, &a.window, 0, a.ceil_mode)?, window_dim(0, w, &a.window, 1, a.ceil_mode)?])
}

pub fn pool(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Pool(a) = attr else { return Err(wrong_attr(attr)) };
    let [n, c, h, w] = rank(0, &typed(inputs, 0, DType::F32)?)?;
    let [h, w] = pool_dims(a, h, w)?;
    one(DType::F32, vec![n, c, h, w])
}

pub fn pool_nhwc(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Pool(a) = attr else { return Err(wrong_attr(attr)) };
    let x = input(inputs, 0)?;
    if !matches!(x.dtype, DType::F32 | DType::U8) {
        return Err(format!("input 0 is {}, it must be f32 or u8", x.dtype));
    }
    let [n, h, w, c] = rank(0, &x)?;
    let [h, w] = pool_dims(a, h, w)?;
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

pub fn global_pool(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let [n, c, h, w] = rank(0, &typed(inputs, 0, DType::F32)?)?;
    not_empty(h, w)?;
    one(DType::F32, vec![n, c, Dim::Fixed(1), Dim::Fixed(1)])
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

// ---- products --------------------------------------------------------------------------------------

pub fn gemm(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Gemm(a) = attr else { return Err(wrong_attr(attr)) };
    let [mut m, mut ka] = rank(0, &typed(inputs, 0, DType::F32)?)?;
    let [mut kb, mut n] = rank(1, &typed(inputs, 1, DType::F32)?)?;
    if a.trans_a {
        (m, ka) = (ka, m);
    }
    if a.trans_b {
        (kb, n) = (n, kb);
    }
    if ka != kb {
        return Err(format!("inner dimensions {} and {} differ", show(&[ka]), show(&[kb])));
    }
    if let Some(c) = optional(inputs, 2) {
        expect_dtype(2, &c, DType::F32)?;
        if broadcast_dims(c.dims, &[m, n])? != [m, n] {
            return Err(format!("input 2 of shape {} does not broadcast to {}", show(c.dims), show(&[m, n])));
        }
    }
    one(DType::F32, vec![m, n])
}

/// numpy rules: 1-D operands get a dimension that the result loses; leading dimensions broadcast.
pub fn matmul(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let (a, b) = (typed(inputs, 0, DType::F32)?, typed(inputs, 1, DType::F32)?);
    let (Some((&a_last, a_front)), Some((&b_last, b_front))) = (a.dims.split_last(), b.dims.split_last())
    else {
        return Err("a scalar has no matrix product: both inputs need a dimension".to_string());
    };
    let (a_batch, m) = a_front.split_last().map_or((a_front, None), |(m, batch)| (batch, Some(*m)));
    let (b_batch, kb, n) = match b_front.split_last() {
        Some((k, batch)) => (batch, *k, Some(b_last)),
        None => (b_front, b_last, None),
    };
    if a_last != kb {
        return Err(format!("inner dimensions of {} and {} differ", show(a.dims), show(b.dims)));
    }
    let mut dims = broadcast_dims(a_batch, b_batch)?;
    dims.extend(m);
    dims.extend(n);
    one(DType::F32, dims)
}

pub fn qgemm(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::QGemm(a) = attr else { return Err(wrong_attr(attr)) };
    check_zero("x_zero", a.x_zero)?;
    if let Some(out) = &a.out {
        check_u8(out)?;
    }
    let x = typed(inputs, 0, DType::U8)?;
    let (Some((&k, rows)), true) = (x.dims.split_last(), x.dims.len() >= 2) else {
        return Err(format!("input 0 has {} dimensions, it must have at least 2", x.dims.len()));
    };
    let [n, kw] = rank(1, &typed(inputs, 1, DType::I8)?)?;
    if k != kw {
        return Err(format!("inner dimensions {} and {} differ", show(&[k]), show(&[kw])));
    }
    number(1, "the row count", n)?;
    expect_dims(2, &typed(inputs, 2, DType::I32)?, &[n])?;
    expect_dims(3, &typed(inputs, 3, DType::F32)?, &[n])?;
    if optional(inputs, 4).is_some() {
        check_table(inputs, 4)?;
        if a.out.is_none() {
            return Err("has a table, but its result is not u8: give it an output scale".to_string());
        }
    }
    let dims = rows.iter().copied().chain([n]).collect();
    one(if a.out.is_some() { DType::U8 } else { DType::F32 }, dims)
}

/// Integer attention: q[B,T,HD], k and v[B,S,HD], mask[B or 1,1,1,S].
pub fn qattention(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::QAttention(a) = attr else { return Err(wrong_attr(attr)) };
    check_u8(&a.out)?;
    for (what, zero) in [("q_zero", a.q_zero), ("k_zero", a.k_zero), ("v_zero", a.v_zero)] {
        check_zero(what, zero)?;
    }
    let dims @ [batch, _, width] = rank::<3>(0, &typed(inputs, 0, DType::U8)?)?;
    let [_, keys, _] = rank::<3>(1, &typed(inputs, 1, DType::U8)?)?;
    for i in 1..3 {
        expect_dims(i, &typed(inputs, i, DType::U8)?, &[batch, keys, width])?;
    }
    let wide = number(0, "the width", width)?;
    if a.heads == 0 || wide == 0 || !wide.is_multiple_of(a.heads as u64) {
        return Err(format!("{} heads do not divide a width of {wide}", a.heads));
    }
    // Sums of 255 · 255 fit i32.
    if [keys, Dim::Fixed(wide / a.heads as u64)].iter().any(|d| d.fixed().is_some_and(|n| n > 1 << 15)) {
        return Err("more than 32768 keys, or as wide a head".to_string());
    }
    if keys == Dim::Fixed(0) {
        return Err("attends to no keys".to_string());
    }
    // Every rounded chance fits an i32.
    if !(a.p_mult > 0.0 && a.p_mult <= (1u32 << 20) as f32) {
        return Err(format!("p_mult is {}: it must be above 0 and at most 2^20", a.p_mult));
    }
    if let Some(mask) = optional(inputs, 3) {
        expect_dtype(3, &mask, DType::F32)?;
        let one = Dim::Fixed(1);
        let first = mask.dims.first().copied().filter(|d| *d == batch).unwrap_or(one);
        expect_dims(3, &mask, &[first, one, one, keys])?;
    }
    one(DType::U8, dims.to_vec())
}

/// Layer normalisation: scale and bias have the trailing dimensions of x.
pub fn layer_norm(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Norm(a) = attr else { return Err(wrong_attr(attr)) };
    check_epsilon(a.epsilon)?;
    let x = typed(inputs, 0, DType::F32)?;
    let axis = axis_index(a.axis as i64, x.dims.len())?;
    for i in 1..3 {
        if i == 1 || optional(inputs, i).is_some() {
            expect_dims(i, &typed(inputs, i, DType::F32)?, &x.dims[axis..])?;
        }
    }
    one(x.dtype, x.dims.to_vec())
}

/// Rows of u8 or f32, summed and normalised; a u8 result, an f32 result, or both.
pub fn add_norm(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::AddNorm(a) = attr else { return Err(wrong_attr(attr)) };
    check_epsilon(a.epsilon)?;
    let x = input(inputs, 0)?;
    let &width = x.dims.last().ok_or("input 0 needs a dimension")?;
    if number(0, "the width", width)? == 0 {
        return Err("cannot normalise rows of no elements".to_string());
    }
    for i in 1..3 {
        expect_dims(i, &typed(inputs, i, DType::F32)?, &[width])?;
    }
    let operands = [Some((0, x, a.a)), optional(inputs, 3).map(|b| (3, b, a.b))];
    for (i, operand, affine) in operands.into_iter().flatten() {
        if !matches!(operand.dtype, DType::F32 | DType::U8) {
            return Err(format!("input {i} is {}, it must be u8 or f32", operand.dtype));
        }
        check_zero("a zero point", affine.zero)?;
        expect_dims(i, &operand, x.dims)?;
    }
    let mut facts = Vec::with_capacity(2);
    if let Some(out) = &a.out {
        check_u8(out)?;
        facts.extend(one(DType::U8, x.dims.to_vec())?);
    }
    if a.keep {
        facts.extend(one(DType::F32, x.dims.to_vec())?);
    }
    if facts.is_empty() { Err("has no result: neither u8 nor f32".to_string()) } else { Ok(facts) }
}

fn check_epsilon(epsilon: f32) -> Result<(), String> {
    if epsilon.is_finite() && epsilon >= 0.0 {
        return Ok(());
    }
    Err(format!("epsilon is {epsilon}: it must be finite and not negative"))
}

pub fn qadd(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::QAdd(a) = attr else { return Err(wrong_attr(attr)) };
    check_u8(&a.out)?;
    check_zero("a_zero", a.a_zero)?;
    check_zero("b_zero", a.b_zero)?;
    let x = typed(inputs, 0, DType::U8)?;
    expect_dims(1, &typed(inputs, 1, DType::U8)?, x.dims)?;
    one(DType::U8, x.dims.to_vec())
}

pub fn qmul(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::QMul(a) = attr else { return Err(wrong_attr(attr)) };
    check_u8(&a.out)?;
    check_zero("a_zero", a.a_zero)?;
    check_zero("b_zero", a.b_zero)?;
    let (x, y) = (typed(inputs, 0, DType::U8)?, typed(inputs, 1, DType::U8)?);
    one(DType::U8, broadcast_dims(x.dims, y.dims)?)
}

// ---- reductions and layout -------------------------------------------------------------------------

/// Which axes are reduced, as flags. An empty list means all.
pub fn reduced_axes(axes: &Axes, rank: usize) -> Result<Vec<bool>, String> {
    let mut reduced = vec![axes.as_slice().is_empty(); rank];
    for &axis in axes.as_slice() {
        if std::mem::replace(&mut reduced[axis_index(axis as i64, rank)?], true) {
            return Err(format!("axis {axis} is given twice"));
        }
    }
    Ok(reduced)
}

pub fn reduce(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Reduce(a) = attr else { return Err(wrong_attr(attr)) };
    let x = typed(inputs, 0, DType::F32)?;
    let reduced = reduced_axes(&a.axes, x.dims.len())?;
    let mut dims = Vec::new();
    for (&dim, &gone) in x.dims.iter().zip(&reduced) {
        match (gone, a.keep_dims) {
            (true, _) if dim == Dim::Fixed(0) => return Err("cannot average over no elements".to_string()),
            (false, _) => dims.push(dim),
            (true, true) => dims.push(Dim::Fixed(1)),
            (true, false) => {}
        }
    }
    one(DType::F32, dims)
}

pub fn reshape(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = input(inputs, 0)?;
    let shape = typed(inputs, 1, DType::I64)?;
    let [_] = rank(1, &shape)?;
    let target =
        shape.value.and_then(Tensor::as_i64).ok_or("input 1 must be a constant: fold it or give a shape")?;
    one(x.dtype, reshape_dims(x.dims, target)?)
}

/// 0 copies the input's dimension of that place; one -1 takes what is left: a number, or the one symbolic
/// dimension that no other place took, if the numbers match without it.
pub fn reshape_dims(from: &[Dim], target: &[i64]) -> Result<Vec<Dim>, String> {
    let fail = |why: &str| format!("cannot reshape {} to {target:?}: {why}", show(from));
    if target.len() > RANK_MAX {
        return Err(format!(
            "target shape has {} dimensions, at most {RANK_MAX} are supported",
            target.len()
        ));
    }
    let mut left: Vec<Dim> = from.iter().copied().filter(|d| d.fixed().is_none()).collect();
    let mut dims = Vec::with_capacity(target.len());
    let mut hole = None;
    for (i, &t) in target.iter().enumerate() {
        let dim = match t {
            0 => *from.get(i).ok_or_else(|| fail("0 copies a dimension that the input does not have"))?,
            -1 if hole.is_none() => {
                hole = Some(i);
                Dim::Fixed(1)
            }
            -1 => return Err(fail("only one -1 is allowed")),
            n if n > 0 => Dim::Fixed(n as u64),
            _ => return Err(fail("a dimension must be positive, 0 or -1")),
        };
        if dim.fixed().is_none() {
            let at = left.iter().position(|&d| d == dim).ok_or_else(|| fail("a symbol is copied twice"))?;
            left.swap_remove(at);
        }
        dims.push(dim);
    }
    let have = fixed_product(from).ok_or_else(|| fail("too many elements"))?;
    let want = fixed_product(&dims).ok_or_else(|| fail("too many elements"))?;
    match (hole, left.as_slice()) {
        (None, []) if have == want => {}
        (Some(i), [symbol]) if have == want => dims[i] = *symbol,
        (Some(i), []) if want != 0 && have.is_multiple_of(want) => dims[i] = Dim::Fixed(have / want),
        (_, []) => return Err(fail("the element counts differ")),
        _ => return Err(fail("a symbolic dimension needs a 0 or a -1 in its place")),
    }
    Ok(dims)
}

pub fn flatten(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Axis(axis) = attr else { return Err(wrong_attr(attr)) };
    let x = input(inputs, 0)?;
    let rank = x.dims.len();
    let at = if *axis as i64 == rank as i64 { rank } else { axis_index(*axis as i64, rank)? };
    one(x.dtype, vec![merge(&x.dims[..at])?, merge(&x.dims[at..])?])
}

/// The product of dimensions as one: a symbol survives alone or among ones.
fn merge(dims: &[Dim]) -> Result<Dim, String> {
    let product = fixed_product(dims).ok_or_else(|| format!("{} has too many elements", show(dims)))?;
    let mut symbols = dims.iter().filter(|d| d.fixed().is_none());
    match (symbols.next(), symbols.next(), product) {
        (None, _, n) => Ok(Dim::Fixed(n)),
        (Some(&symbol), None, 1) => Ok(symbol),
        _ => {
            Err(format!("cannot merge the symbolic dimensions of {} into one: flatten elsewhere", show(dims)))
        }
    }
}

/// The permutation as indices; an empty one reverses.
pub fn permutation(perm: &Axes, rank: usize) -> Result<Vec<usize>, String> {
    if perm.as_slice().is_empty() {
        return Ok((0..rank).rev().collect());
    }
    let mut seen = vec![false; rank];
    let mut out = Vec::with_capacity(rank);
    for &p in perm.as_slice() {
        match usize::try_from(p).ok().filter(|&p| p < rank && !seen[p]) {
            Some(p) => {
                seen[p] = true;
                out.push(p);
            }
            None => return Err(format!("{perm:?} is not a permutation of {rank} axes")),
        }
    }
    if out.len() != rank { Err(format!("{perm:?} is not a permutation of {rank} axes")) } else { Ok(out) }
}

pub fn transpose(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Perm(perm) = attr else { return Err(wrong_attr(attr)) };
    let x = input(inputs, 0)?;
    let perm = permutation(perm, x.dims.len())?;
    one(x.dtype, perm.iter().map(|&p| x.dims[p]).collect())
}

/// The dtype becomes the attribute's.
pub fn cast(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Cast(dtype) = *attr else { return Err(wrong_attr(attr)) };
    one(dtype, input(inputs, 0)?.dims.to_vec())
}

/// The axes as flags over `rank` dimensions.
fn axis_flags(axes: &Axes, rank: usize) -> Result<Vec<bool>, String> {
    let mut flags = vec![false; rank];
    for &axis in axes.as_slice() {
        if std::mem::replace(&mut flags[axis_index(axis as i64, rank)?], true) {
            return Err(format!("axis {axis} is given twice"));
        }
    }
    Ok(flags)
}

/// Axes count dimensions of the result.
pub fn unsqueeze(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Axes(axes) = attr else { return Err(wrong_attr(attr)) };
    let x = input(inputs, 0)?;
    let new = axis_flags(axes, x.dims.len() + axes.as_slice().len())?;
    let mut old = x.dims.iter();
    let dims = new.iter().map(|&new| if new { Some(Dim::Fixed(1)) } else { old.next().copied() });
    one(x.dtype, dims.collect::<Option<Vec<Dim>>>().ok_or("the axes do not fit")?)
}

/// Without axes every dimension of 1 goes.
pub fn squeeze(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Axes(axes) = attr else { return Err(wrong_attr(attr)) };
    let x = input(inputs, 0)?;
    let is_one = |d: &Dim| *d == Dim::Fixed(1);
    let gone = match axes.as_slice() {
        [] => x.dims.iter().map(is_one).collect(),
        _ => axis_flags(axes, x.dims.len())?,
    };
    if let Some(at) = (0..gone.len()).find(|&i| gone[i] && !is_one(&x.dims[i])) {
        return Err(format!("dimension {at} of {} is not 1", show(x.dims)));
    }
    one(x.dtype, x.dims.iter().zip(gone).filter(|(_, gone)| !gone).map(|(&d, _)| d).collect())
}

/// The indices' dimensions stand in place of the axis.
pub fn gather(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Axis(axis) = attr else { return Err(wrong_attr(attr)) };
    let (x, indices) = (input(inputs, 0)?, input(inputs, 1)?);
    if !matches!(indices.dtype, DType::I64 | DType::I32) {
        return Err(format!("input 1 is {}, it must be i64 or i32", indices.dtype));
    }
    let axis = axis_index(*axis as i64, x.dims.len())?;
    one(x.dtype, [&x.dims[..axis], indices.dims, &x.dims[axis + 1..]].concat())
}

pub fn concat(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Axis(axis) = attr else { return Err(wrong_attr(attr)) };
    let first = input(inputs, 0)?;
    let axis = axis_index(*axis as i64, first.dims.len())?;
    let mut dims = first.dims.to_vec();
    for i in 1..inputs.len() {
        let x = input(inputs, i)?;
        expect_dtype(i, &x, first.dtype)?;
        let fits = x.dims.len() == dims.len() && (0..dims.len()).all(|d| d == axis || x.dims[d] == dims[d]);
        if !fits {
            return Err(format!(
                "input {i} of shape {} does not fit {} along axis {axis}",
                show(x.dims),
                show(&dims)
            ));
        }
        let (a, b) = (
            number(0, "the joined dimension", dims[axis])?,
            number(i, "the joined dimension", x.dims[axis])?,
        );
        dims[axis] = Dim::Fixed(a.checked_add(b).ok_or("the joined dimension overflows")?);
    }
    one(first.dtype, dims)
}

/// Height and width, larger by whole factors.
fn resized(attr: &Attr, h: Dim, w: Dim) -> Result<[Dim; 2], String> {
    let Attr::Resize(a) = attr else { return Err(wrong_attr(attr)) };
    let larger = |what: &str, dim: Dim, scale: u32| match (dim, scale) {
        (_, 0) => Err("scales must be at least 1".to_string()),
        (dim, 1) => Ok(dim),
        (dim, scale) => number(0, what, dim)?
            .checked_mul(scale as u64)
            .map(Dim::Fixed)
            .ok_or_else(|| format!("{what} times {scale} overflows")),
    };
    Ok([larger("the height", h, a.scale[0])?, larger("the width", w, a.scale[1])?])
}

pub fn resize(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = input(inputs, 0)?;
    let [n, c, h, w] = rank(0, &x)?;
    let [h, w] = resized(attr, h, w)?;
    one(x.dtype, vec![n, c, h, w])
}

pub fn resize_nhwc(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = input(inputs, 0)?;
    let [n, h, w, c] = rank(0, &x)?;
    let [h, w] = resized(attr, h, w)?;
    one(x.dtype, vec![n, h, w, c])
}

// ---- quantisation ----------------------------------------------------------------------------------

/// Scale (f32) and zero point agree, and fit x: one element each, or one for each index of the axis.
fn check_scales(attr: &Attr, inputs: Inputs<'_>) -> Result<(), String> {
    let Attr::Axis(axis) = attr else { return Err(wrong_attr(attr)) };
    let (x, scale, zero) = (input(inputs, 0)?, typed(inputs, 1, DType::F32)?, input(inputs, 2)?);
    if let [] | [Dim::Fixed(1)] = scale.dims {
        return match zero.dims {
            [] | [Dim::Fixed(1)] => Ok(()),
            _ => Err(format!("scale is one number, but the zero point has shape {}", show(zero.dims))),
        };
    }
    let [n] = rank(1, &scale)?;
    expect_dims(2, &zero, &[n])?;
    let axis = axis_index(*axis as i64, x.dims.len())?;
    if n.fixed().is_none() || x.dims[axis] != n {
        return Err(format!(
            "scale has shape {}, axis {axis} of input 0 has {}",
            show(&[n]),
            show(&x.dims[axis..=axis])
        ));
    }
    Ok(())
}

pub fn quantize(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = typed(inputs, 0, DType::F32)?;
    let zero = input(inputs, 2)?;
    if !matches!(zero.dtype, DType::U8 | DType::I8) {
        return Err(format!("the zero point is {}, it must be u8 or i8", zero.dtype));
    }
    check_scales(attr, inputs)?;
    one(zero.dtype, x.dims.to_vec())
}

pub fn dequantize(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = input(inputs, 0)?;
    if !matches!(x.dtype, DType::U8 | DType::I8 | DType::I32) {
        return Err(format!("input 0 is {}, it must be u8, i8 or i32", x.dtype));
    }
    expect_dtype(2, &input(inputs, 2)?, x.dtype)?;
    check_scales(attr, inputs)?;
    one(DType::F32, x.dims.to_vec())
}
