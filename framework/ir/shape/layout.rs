//! Ops that move elements and compute nothing.

use super::{
    Element, Facts, InferInput, Inputs, RANK_MAX, axis_index, expect_dtype, input, joined, list_len,
    may_equal, number, one, optional, rank, show, typed, wrong_attr,
};
use crate::op::{Attr, Axes};
use crate::tensor::{DType, Dim};

pub fn reshape(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = input(inputs, 0)?;
    let shape = typed(inputs, 1, DType::I64)?;
    let [len] = rank(1, &shape)?;
    let target = match shape.elements() {
        Some(target) => target,
        None => {
            let len = number(1, "the length", len)?;
            vec![Element::Unknown; usize::try_from(len).unwrap_or(usize::MAX).min(RANK_MAX + 1)]
        }
    };
    one(x.dtype, reshape_dims(&x, &target)?)
}

/// 0 copies the input's dimension of that place; one -1 takes what is left.
fn reshape_dims(x: &InferInput<'_>, target: &[Element]) -> Result<Vec<Dim>, String> {
    let from = x.dims;
    if target.len() > RANK_MAX {
        return Err(format!("target shape has more dimensions than the {RANK_MAX} that are supported"));
    }
    let fail = |why: &str| {
        let target: Vec<Dim> = target.iter().map(|e| e.dim().unwrap_or(Dim::Unknown)).collect();
        format!("cannot reshape {} to {}: {why}", show(from), show(&target))
    };
    let mut dims = Vec::with_capacity(target.len());
    let mut hole = None;
    for (i, &t) in target.iter().enumerate() {
        dims.push(match t {
            Element::Number(0) => {
                *from.get(i).ok_or_else(|| fail("0 copies a dimension that the input does not have"))?
            }
            Element::Number(-1) if hole.is_none() => {
                hole = Some(i);
                Dim::Fixed(1)
            }
            Element::Number(-1) => return Err(fail("only one -1 is allowed")),
            t => t.dim().ok_or_else(|| fail("a dimension must be positive, 0 or -1"))?,
        });
    }
    // A dimension that is not known may be the -1.
    let Some(i) = hole.or(dims.iter().position(|&d| d == Dim::Unknown)) else {
        let (have, want) = (x.symbols.product_of(from), x.symbols.product_of(&dims));
        return match may_equal(have, want) {
            true => Ok(dims),
            false => Err(fail("the element counts differ")),
        };
    };
    if dims.iter().filter(|&&d| d == Dim::Unknown).count() > usize::from(hole.is_none()) {
        dims[i] = Dim::Unknown;
        return Ok(dims);
    }
    dims[i] = Dim::Fixed(1);
    let (have, want) = (x.symbols.product_of(from), x.symbols.product_of(&dims));
    dims[i] = match (have, want) {
        (Dim::Fixed(have), Dim::Fixed(want)) if want != 0 && have.is_multiple_of(want) => {
            Dim::Fixed(have / want)
        }
        (Dim::Fixed(_), Dim::Fixed(_)) => return Err(fail("the element counts differ")),
        (have, want) => x.symbols.to_dim(x.symbols.div(have.into(), want.into())),
    };
    Ok(dims)
}

pub fn flatten(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Axis(axis) = attr else { return Err(wrong_attr(attr)) };
    let x = input(inputs, 0)?;
    let rank = x.dims.len();
    let at = if *axis as i64 == rank as i64 { rank } else { axis_index(*axis as i64, rank)? };
    let (front, back) = x.dims.split_at(at);
    one(x.dtype, vec![x.symbols.product_of(front), x.symbols.product_of(back)])
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

/// The axes of an attribute, or those that an operand lists; `Err(count)` where only their count is known.
fn axes_of(axes: &Axes, inputs: Inputs<'_>) -> Result<Result<Axes, usize>, String> {
    let Some(list) = optional(inputs, 1) else { return Ok(Ok(*axes)) };
    if !axes.as_slice().is_empty() {
        return Err("has axes as attributes and as an operand".to_string());
    }
    expect_dtype(1, &list, DType::I64)?;
    let count = list_len(1, &list)?;
    match list.ints() {
        Some(axes) => Axes::new(&axes).map(Ok).ok_or_else(|| format!("{axes:?} are not at most 8 axes")),
        None => Ok(Err(count)),
    }
}

/// Axes count dimensions of the result.
pub fn unsqueeze(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Axes(axes) = attr else { return Err(wrong_attr(attr)) };
    let x = input(inputs, 0)?;
    let axes = match axes_of(axes, inputs)? {
        Ok(axes) => axes,
        Err(count) => return one(x.dtype, vec![Dim::Unknown; (x.dims.len() + count).min(RANK_MAX + 1)]),
    };
    let new = axis_flags(&axes, x.dims.len() + axes.as_slice().len())?;
    let mut old = x.dims.iter();
    let dims = new.iter().map(|&new| if new { Some(Dim::Fixed(1)) } else { old.next().copied() });
    one(x.dtype, dims.collect::<Option<Vec<Dim>>>().ok_or("the axes do not fit")?)
}

/// Without axes every dimension of 1 goes.
pub fn squeeze(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Axes(axes) = attr else { return Err(wrong_attr(attr)) };
    let x = input(inputs, 0)?;
    let is_one = |d: &Dim| *d == Dim::Fixed(1);
    let axes = match axes_of(axes, inputs)? {
        Ok(axes) => axes,
        Err(count) => {
            let left = x.dims.len().checked_sub(count).ok_or("more axes than dimensions")?;
            return one(x.dtype, vec![Dim::Unknown; left]);
        }
    };
    let gone = match axes.as_slice() {
        [] if inputs.len() == 1 => x.dims.iter().map(is_one).collect(),
        _ => axis_flags(&axes, x.dims.len())?,
    };
    if let Some(at) = (0..gone.len()).find(|&i| gone[i] && !may_equal(x.dims[i], Dim::Fixed(1))) {
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
        let like = |d: usize| d == axis || may_equal(x.dims[d], dims[d]);
        let fits = x.dims.len() == dims.len() && (0..dims.len()).all(like);
        if !fits {
            return Err(format!(
                "input {i} of shape {} does not fit {} along axis {axis}",
                show(x.dims),
                show(&dims)
            ));
        }
        for d in (0..dims.len()).filter(|&d| d != axis) {
            dims[d] = joined(dims[d], x.dims[d]);
        }
        dims[axis] = x.symbols.add_dims(dims[axis], x.dims[axis]);
    }
    one(first.dtype, dims)
}

/// Height and width, larger by whole factors.
fn resized(x: &InferInput<'_>, attr: &Attr, h: Dim, w: Dim) -> Result<[Dim; 2], String> {
    let Attr::Resize(a) = attr else { return Err(wrong_attr(attr)) };
    if a.scale.contains(&0) {
        return Err("scales must be at least 1".to_string());
    }
    let larger = |dim: Dim, scale: u32| {
        let scaled = x.symbols.mul(dim.into(), Element::Number(scale.into()));
        x.symbols.to_dim(scaled)
    };
    Ok([larger(h, a.scale[0]), larger(w, a.scale[1])])
}

pub fn resize(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = input(inputs, 0)?;
    let [n, c, h, w] = rank(0, &x)?;
    let [h, w] = resized(&x, attr, h, w)?;
    one(x.dtype, vec![n, c, h, w])
}

pub fn resize_nhwc(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = input(inputs, 0)?;
    let [n, h, w, c] = rank(0, &x)?;
    let [h, w] = resized(&x, attr, h, w)?;
    one(x.dtype, vec![n, h, w, c])
}
