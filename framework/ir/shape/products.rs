//! Matrix products and attention.

use super::{
    Facts, Inputs, broadcast_dims, check_table, check_u8, check_zero, expect_dims, expect_dtype, may_equal,
    number, one, optional, rank, show, typed, wrong_attr,
};
use crate::op::Attr;
use crate::tensor::{DType, Dim};

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
    if !may_equal(ka, kb) {
        return Err(format!("inner dimensions {} and {} differ", show(&[ka]), show(&[kb])));
    }
    if let Some(c) = optional(inputs, 2) {
        expect_dtype(2, &c, DType::F32)?;
        let both = broadcast_dims(c.dims, &[m, n])?;
        if both.len() != 2 || !may_equal(both[0], m) || !may_equal(both[1], n) {
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
    if !may_equal(a_last, kb) {
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
