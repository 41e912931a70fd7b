//! Ops that move elements and compute nothing.

use super::{
    Facts, Inputs, RANK_MAX, axis_index, expect_dtype, fixed_product, input, number, one, rank, show, typed,
    wrong_attr,
};
use crate::op::{Attr, Axes};
use crate::tensor::{DType, Dim, Tensor};

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
