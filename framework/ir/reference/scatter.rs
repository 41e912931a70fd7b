//! Ops that read or write by index, and ops whose results are as long as the data say.

use super::element::{Number, larger, on_numbers, on_pairs, smaller};
use super::layout::pick;
use super::slice::{int, ints};
use super::{Inputs, Outputs, f32s, optional, output_dims, strides, tensor, wrong_attr};
use crate::op::Attr;
use crate::shape::{self, NO_AXIS};
use crate::tensor::{Elements, Tensor};
use std::cmp::Ordering;

/// An index of `size` elements, which may count from the end.
fn place(index: i64, size: usize) -> Result<usize, String> {
    let at = if index < 0 { index.saturating_add(size as i64) } else { index };
    let place = usize::try_from(at).ok().filter(|&i| i < size);
    place.ok_or_else(|| format!("index {index} does not exist: there are {size} elements"))
}

pub fn gather_elements(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::gather_elements, attr, inputs)?;
    let Attr::Axis(axis) = attr else { return Err(wrong_attr(attr)) };
    let x = tensor(inputs, 0)?;
    let axis = shape::axis_index((*axis).into(), dims.len())?;
    let places = elements_of(&x.dims, &dims, axis, &ints(tensor(inputs, 1)?)?)?;
    Ok(vec![pick(x, dims, |i| places[i])])
}

/// Where in x element `i` of the indices points: at its own place, but for the axis.
fn elements_of(x: &[usize], dims: &[usize], axis: usize, indices: &[i64]) -> Result<Vec<usize>, String> {
    let (own, out) = (strides(x), strides(dims));
    let at = |(i, &index): (usize, &i64)| {
        let others: usize =
            (0..dims.len()).filter(|&d| d != axis).map(|d| i / out[d] % dims[d] * own[d]).sum();
        Ok(others + place(index, x[axis])? * own[axis])
    };
    indices.iter().enumerate().map(at).collect()
}

/// Where each of the indices' rows points: the first element of a run of what is left of x's dimensions.
fn rows_of(x: &[usize], batch: usize, indices: &Tensor) -> Result<(Vec<usize>, usize), String> {
    let k = *indices.dims.last().ok_or("input 1 needs a dimension")?;
    let list = ints(indices)?;
    let own = strides(x);
    let run = x[batch + k..].iter().product();
    let per_batch: usize = indices.dims[batch..indices.dims.len() - 1].iter().product();
    let rows: usize = indices.dims[..indices.dims.len() - 1].iter().product();
    let mut places = Vec::new();
    for row in 0..rows {
        // Batches of x lie one after another.
        let block: usize = x[batch..].iter().product();
        let mut at = row / per_batch * block;
        for d in 0..k {
            at += place(list[row * k + d], x[batch + d])? * own[batch + d];
        }
        places.push(at);
    }
    Ok((places, run))
}

pub fn gather_nd(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::gather_nd, attr, inputs)?;
    let batch = attr.numbers::<1>()?[0].int() as usize;
    let x = tensor(inputs, 0)?;
    let (places, run) = rows_of(&x.dims, batch, tensor(inputs, 1)?)?;
    Ok(vec![pick(x, dims, |i| places[i / run] + i % run)])
}

/// The old element, and what comes: what stays. `reduction` is none, add, mul, max or min.
fn reduced<T: Number>(reduction: usize, old: T, new: T) -> T {
    match reduction {
        1 => old.add(new),
        2 => old.mul(new),
        3 => larger(old, new),
        4 => smaller(old, new),
        _ => new,
    }
}

/// x with `updates[i]` at `places[i]`.
fn scattered(x: &Tensor, updates: &Tensor, places: &[usize], reduction: usize) -> Outputs {
    fn all<T: Number>(x: &[T], updates: &[T], places: &[usize], reduction: usize) -> Vec<T> {
        let mut y = x.to_vec();
        places.iter().zip(updates).for_each(|(&at, &new)| y[at] = reduced(reduction, y[at], new));
        y
    }
    let elements = match (&x.elements, &updates.elements) {
        (Elements::Bool(x), Elements::Bool(new)) if reduction == 0 => {
            let mut y = x.clone();
            places.iter().zip(new).for_each(|(&at, &new)| y[at] = new);
            Elements::Bool(y)
        }
        (x, new) => on_pairs!([F32, I64, I32, U8, I8] x, new, (x, new) => all(x, new, places, reduction)),
    };
    Ok(vec![Tensor { dims: x.dims.clone(), elements }])
}

pub fn scatter_elements(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    output_dims(shape::scatter_elements, attr, inputs)?;
    let [axis, reduction] = attr.numbers()?;
    let (x, indices) = (tensor(inputs, 0)?, tensor(inputs, 1)?);
    let axis = shape::axis_index(axis.int(), x.dims.len())?;
    let places = elements_of(&x.dims, &indices.dims, axis, &ints(indices)?)?;
    scattered(x, tensor(inputs, 2)?, &places, reduction.choice())
}

pub fn scatter_nd(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    output_dims(shape::scatter_nd, attr, inputs)?;
    let x = tensor(inputs, 0)?;
    let (rows, run) = rows_of(&x.dims, 0, tensor(inputs, 1)?)?;
    let places: Vec<usize> = rows.iter().flat_map(|&row| row..row + run).collect();
    scattered(x, tensor(inputs, 2)?, &places, attr.numbers::<1>()?[0].choice())
}

pub fn one_hot(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::one_hot, attr, inputs)?;
    let (indices, values) = (tensor(inputs, 0)?, tensor(inputs, 2)?);
    let axis = shape::axis_index(attr.numbers::<1>()?[0].int(), dims.len())?;
    let (depth, inner) = (dims[axis], dims[axis + 1..].iter().product::<usize>());
    let list: Vec<i64> = match &indices.elements {
        Elements::F32(v) => v.iter().map(|&v| v as i64).collect(),
        Elements::U8(v) | Elements::Bool(v) => v.iter().map(|&v| v.into()).collect(),
        Elements::I8(v) => v.iter().map(|&v| v.into()).collect(),
        _ => ints(indices)?,
    };
    // 0 is off, 1 is on; an index that does not exist is nowhere on.
    let on = |i: usize| {
        let (outer, at, inside) = (i / (depth * inner), i / inner % depth, i % inner);
        let index = list[outer * inner + inside];
        usize::from(index == at as i64 || index.saturating_add(depth as i64) == at as i64)
    };
    Ok(vec![pick(values, dims, on)])
}

pub fn non_zero(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    shape::infer_tensors(shape::non_zero, attr, inputs)?;
    let x = tensor(inputs, 0)?;
    let own = strides(&x.dims);
    let mut places: Vec<usize> = Vec::new();
    match &x.elements {
        Elements::Bool(v) => places.extend((0..v.len()).filter(|&i| v[i] != 0)),
        other => drop(on_numbers!(other, v => {
            places.extend((0..v.len()).filter(|&i| v[i] != Default::default()));
            Vec::new()
        })),
    }
    let y = (0..x.dims.len())
        .flat_map(|d| places.iter().map(|&i| (i / own[d] % x.dims[d]) as i64).collect::<Vec<_>>());
    Ok(vec![Tensor::from_i64(&[x.dims.len(), places.len()], y.collect())])
}

/// A condition shorter than the axis leaves the rest out.
pub fn compress(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    shape::infer_tensors(shape::compress, attr, inputs)?;
    let x = tensor(inputs, 0)?;
    let condition = tensor(inputs, 1)?.as_bool().ok_or("input 1 must be bool")?;
    let (mut dims, size, inner) = match attr.numbers::<1>()?[0].int() {
        NO_AXIS => (vec![0], x.len(), 1),
        axis => {
            let axis = shape::axis_index(axis, x.dims.len())?;
            (x.dims.clone(), x.dims[axis], x.dims[axis + 1..].iter().product())
        }
    };
    if condition.len() > size {
        return Err(format!("input 1 has {} elements for {size}", condition.len()));
    }
    let chosen: Vec<usize> = (0..condition.len()).filter(|&i| condition[i] != 0).collect();
    match attr.numbers::<1>()?[0].int() {
        NO_AXIS => dims[0] = chosen.len(),
        axis => {
            let axis = shape::axis_index(axis, x.dims.len())?;
            dims[axis] = chosen.len();
        }
    }
    let run = chosen.len() * inner;
    Ok(vec![pick(x, dims, |i| (i / run * size + chosen[i % run / inner]) * inner + i % inner)])
}

fn ordered<T: PartialOrd>(a: &T, b: &T) -> Ordering {
    a.partial_cmp(b).unwrap_or(Ordering::Equal)
}

/// The order of two runs of elements.
fn compare_runs(x: &Elements, a: std::ops::Range<usize>, b: std::ops::Range<usize>) -> Ordering {
    fn of<T: PartialOrd>(a: &[T], b: &[T]) -> Ordering {
        a.iter().zip(b).map(|(a, b)| ordered(a, b)).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
    }
    match x {
        Elements::F32(x) => of(&x[a], &x[b]),
        Elements::I64(x) => of(&x[a], &x[b]),
        Elements::I32(x) => of(&x[a], &x[b]),
        Elements::U8(x) | Elements::Bool(x) => of(&x[a], &x[b]),
        Elements::I8(x) => of(&x[a], &x[b]),
    }
}

pub fn unique(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    shape::infer_tensors(shape::unique, attr, inputs)?;
    let [axis, sorted] = attr.numbers()?;
    let x = tensor(inputs, 0)?;
    let axis = match axis.int() {
        NO_AXIS => None,
        axis => Some(shape::axis_index(axis, x.dims.len())?),
    };
    // Slices of the axis as runs: the axis is moved to the front.
    let (n, inner) = axis.map_or((x.len(), 1), |a| (x.dims[a], x.dims[a + 1..].iter().product()));
    let run = x.len() / n.max(1);
    let from = |i: usize| (i % run / inner * n + i / run) * inner + i % inner;
    let moved = pick(x, vec![n, run], from);
    let range = |i: usize| i * run..(i + 1) * run;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| compare_runs(&moved.elements, range(a), range(b)).then(a.cmp(&b)));
    // Runs that are equal are neighbours now; the first of them stands for all.
    let (mut firsts, mut class) = (Vec::<usize>::new(), vec![0; n]);
    for (k, &i) in order.iter().enumerate() {
        let new = k == 0 || compare_runs(&moved.elements, range(order[k - 1]), range(i)).is_ne();
        if new {
            firsts.push(i);
        }
        class[i] = firsts.len() - 1;
    }
    let mut rank: Vec<usize> = (0..firsts.len()).collect();
    if !sorted.flag() {
        rank.sort_by_key(|&k| firsts[k]);
    }
    let mut new_of = vec![0; rank.len()];
    rank.iter().enumerate().for_each(|(new, &old)| new_of[old] = new);
    let firsts: Vec<usize> = rank.iter().map(|&k| firsts[k]).collect();
    let inverse: Vec<i64> = class.iter().map(|&k| new_of[k] as i64).collect();
    let mut counts = vec![0i64; firsts.len()];
    inverse.iter().for_each(|&k| counts[k as usize] += 1);
    let mut dims = x.dims.clone();
    match axis {
        Some(axis) => dims[axis] = firsts.len(),
        None => dims = vec![firsts.len()],
    }
    let count = firsts.len();
    // Back: the axis to its place.
    let back = |i: usize| (i / inner % count, i / (inner * count) * inner + i % inner);
    let y = pick(&moved, dims, |i| firsts[back(i).0] * run + back(i).1);
    let list = |v: Vec<i64>| Tensor::from_i64(&[v.len()], v);
    Ok(vec![y, list(firsts.iter().map(|&i| i as i64).collect()), list(inverse), list(counts)])
}

/// Equal elements: the lower index first.
pub fn top_k(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = output_dims(shape::top_k, attr, inputs)?;
    let [axis, largest] = attr.numbers()?;
    let x = tensor(inputs, 0)?;
    let axis = shape::axis_index(axis.int(), dims.len())?;
    let (n, k, inner) = (x.dims[axis], dims[axis], x.dims[axis + 1..].iter().product::<usize>());
    let mut indices = vec![0i64; dims.iter().product()];
    if !indices.is_empty() {
        for line in 0..x.len() / n {
            let start = line / inner * n * inner + line % inner;
            let mut order: Vec<usize> = (0..n).collect();
            let at = |i: usize| start + i * inner..start + i * inner + 1;
            let by = |&a: &usize, &b: &usize| {
                let order = compare_runs(&x.elements, at(a), at(b));
                (if largest.flag() { order.reverse() } else { order }).then(a.cmp(&b))
            };
            order.sort_by(by);
            for (j, &i) in order[..k].iter().enumerate() {
                indices[line / inner * k * inner + line % inner + j * inner] = i as i64;
            }
        }
    }
    let from = |i: usize| (i / (inner * k) * n + indices[i] as usize) * inner + i % inner;
    Ok(vec![pick(x, dims.clone(), from), Tensor::from_i64(&dims, indices.clone())])
}

/// Greedy suppression, class by class: the best box left, then those that overlap it too much go.
pub fn non_max_suppression(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    shape::infer_tensors(shape::non_max_suppression, attr, inputs)?;
    let centred = attr.numbers::<1>()?[0].int() == 1;
    let (boxes, scores) = (f32s(inputs, 0)?, f32s(inputs, 1)?);
    let float = |i: usize, absent: f32| {
        optional(inputs, i).and_then(|t| t.as_f32()?.first().copied()).unwrap_or(absent)
    };
    let (most, overlap, least) = (int(inputs, 2, 0)?, float(3, 0.0), float(4, f32::NEG_INFINITY));
    let [b, c, n] = tensor(inputs, 1)?.dims[..] else {
        return Err("input 1 must have 3 dimensions".to_string());
    };
    // Top, left, bottom, right.
    let corners = |i: usize| -> [f32; 4] {
        let [a, b, c, d] = std::array::from_fn(|k| boxes[i * 4 + k]);
        match centred {
            // x, y, width, height.
            true => [b - d / 2.0, a - c / 2.0, b + d / 2.0, a + c / 2.0],
            // y, x of any two corners that face each other.
            false => [a.min(c), b.min(d), a.max(c), b.max(d)],
        }
    };
    let mut kept: Vec<i64> = Vec::new();
    for (batch, class) in (0..b).flat_map(|batch| (0..c).map(move |class| (batch, class))) {
        let score = |i: usize| scores[(batch * c + class) * n + i];
        let mut order: Vec<usize> = (0..n).filter(|&i| score(i) > least).collect();
        order.sort_by(|&i, &j| score(j).total_cmp(&score(i)).then(i.cmp(&j)));
        let mut chosen: Vec<usize> = Vec::new();
        for i in order {
            if chosen.len() as i64 >= most {
                break;
            }
            let box_i = corners(batch * n + i);
            if chosen.iter().all(|&j| intersection_over_union(box_i, corners(batch * n + j)) <= overlap) {
                chosen.push(i);
            }
        }
        kept.extend(chosen.iter().flat_map(|&i| [batch as i64, class as i64, i as i64]));
    }
    Ok(vec![Tensor::from_i64(&[kept.len() / 3, 3], kept)])
}

fn intersection_over_union(a: [f32; 4], b: [f32; 4]) -> f32 {
    let area = |r: [f32; 4]| (r[2] - r[0]).max(0.0) * (r[3] - r[1]).max(0.0);
    let both = area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    let either = area(a) + area(b) - both;
    if either > 0.0 { both / either } else { 0.0 }
}
