//! Steps on rows: look-ups, normalisations, attention.

use super::StepKind;
use super::build::{Builder, operand, push};
use super::place::{Demand, Place, Root, dense_strides};
use crate::error::Result;
use crate::kernels::steps::{AttentionStep, GatherStep, NormStep, QUERIES, RowOperand, index_in};
use lacuna_ir::op::{AddNormAttr, Affine, NormAttr, QAttentionAttr};
use lacuna_ir::{DType, Def, OpId};

/// `place`, or a dense copy of it.
fn dense(b: &mut Builder<'_>, place: Place, dtype: DType) -> Result<Place> {
    if place.strides == dense_strides(&place.dims) {
        return Ok(place);
    }
    let line = b.new_place(dtype, &[place.dims.iter().product()], None)?;
    let copy = Place { dims: place.dims.clone(), strides: dense_strides(&place.dims), ..line };
    b.copy(&place, &copy, dtype)?;
    Ok(copy)
}

pub fn emit_gather(b: &mut Builder<'_>, op: OpId, axis: i32) -> Result<()> {
    let g = b.g;
    let (x_value, index_value) = (g.inputs_of(op)[0], g.inputs_of(op)[1]);
    let dtype = g.value_dtype[x_value];
    let x = b.input(op, 0)?;
    let axis = (axis as i64).rem_euclid(x.dims.len().max(1) as i64) as usize;
    let limit = x.dims[axis];
    if limit == 0 {
        return b.error("there are no rows to choose from");
    }
    // One known row is a view.
    let constant = g.const_tensor(index_value).filter(|t| t.dims.is_empty());
    if let Some(&[i]) = constant.as_ref().and_then(|t| t.as_i64()) {
        let mut row = Place { border: [0; 4], fill: 0, ..x };
        row.origin += index_in(i, limit) * row.strides[axis];
        row.dims.remove(axis);
        row.strides.remove(axis);
        return b.view(Some(row), dtype);
    }
    if let Def::Input = g.value_def[index_value]
        && let Some(input) = g.inputs.iter().position(|&v| v == index_value)
    {
        b.plan.index_limits.push((input, limit));
    }
    let x = dense(b, x, dtype)?;
    let indices = b.input(op, 1)?;
    let index_dtype = g.value_dtype[index_value];
    let indices = dense(b, indices, index_dtype)?;
    let y = b.output_place()?;
    let direct = y.strides == dense_strides(&y.dims);
    let line = match direct {
        true => y.clone(),
        false => b.new_place(dtype, &[y.dims.iter().product()], None)?,
    };
    let step = GatherStep {
        outer: x.dims[..axis].iter().product(),
        limit,
        indices: indices.dims.iter().product(),
        inner_bytes: x.dims[axis + 1..].iter().product::<usize>() * dtype.size(),
        wide: index_dtype == DType::I64,
    };
    let bytes = step.units() * step.inner_bytes;
    let parts = b.parts(bytes / 4).min(step.units());
    let operands = [operand(&line, dtype), operand(&x, dtype), operand(&indices, index_dtype)];
    let row = push(&mut b.plan.gathers, step);
    b.step(StepKind::Gather, row, &operands, parts, "gather_rows", 2 * bytes);
    if direct {
        return Ok(());
    }
    let made = Place { dims: y.dims.clone(), strides: dense_strides(&y.dims), ..line };
    b.copy(&made, &y, dtype)
}

pub fn emit_layer_norm(b: &mut Builder<'_>, op: OpId, norm: NormAttr) -> Result<()> {
    let g = b.g;
    let dims = b.dims(g.inputs_of(op)[0])?;
    let axis = (norm.axis as i64).rem_euclid(dims.len().max(1) as i64) as usize;
    let len = dims[axis..].iter().product();
    let none = Affine { mult: 1.0, zero: 0 };
    let attr = AddNormAttr { a: none, b: none, epsilon: norm.epsilon, y_mult: 1.0, out: None, keep: true };
    emit_norm(b, op, attr, len, [Some(0), None, Some(1), g.input_of(op, 2).map(|_| 2)], "layer_norm_f32")
}

pub fn emit_add_norm(b: &mut Builder<'_>, op: OpId, norm: AddNormAttr) -> Result<()> {
    let g = b.g;
    if let Some(out) = norm.out {
        b.eight_bit(out)?;
    }
    b.eight_bit_zeros(&[norm.a.zero, norm.b.zero])?;
    let len = b.dims(g.inputs_of(op)[0])?.last().copied().unwrap_or(1);
    emit_norm(b, op, norm, len, [Some(0), g.input_of(op, 3).map(|_| 3), Some(1), Some(2)], "add_norm")
}

/// Rows of `len` elements; `inputs` are the numbers of a, b, scale and bias among the op's inputs.
fn emit_norm(
    b: &mut Builder<'_>,
    op: OpId,
    norm: AddNormAttr,
    len: usize,
    inputs: [Option<usize>; 4],
    kernel: &'static str,
) -> Result<()> {
    let g = b.g;
    let mut operands = Vec::with_capacity(6);
    let mut row_operands = [None; 2];
    let mut rows = 0;
    for (slot, (input, affine)) in [(inputs[0], norm.a), (inputs[1], norm.b)].into_iter().enumerate() {
        let Some(i) = input else { continue };
        let dtype = g.value_dtype[g.inputs_of(op)[i]];
        let place = b.input(op, i)?;
        let (place, stride) = match as_rows(&place, len) {
            Some((n, stride)) => {
                rows = n;
                (place, stride)
            }
            None => {
                rows = place.dims.iter().product::<usize>() / len;
                (dense(b, place, dtype)?, len)
            }
        };
        row_operands[slot] = Some(RowOperand { stride, affine: (dtype == DType::U8).then_some(affine) });
        operands.push(operand(&place, dtype));
    }
    let Some(a) = row_operands[0] else { return b.error("has no operand") };
    if row_operands[1].is_none() {
        operands.push(operands[0]);
    }
    let vector = |b: &mut Builder<'_>, input: Option<usize>| match input {
        Some(i) => b.input(op, i),
        None => Ok(Place::dense(Root::Const(b.weights.zeros(len * 4)), &[len])),
    };
    for input in &inputs[2..] {
        let place = vector(b, *input)?;
        let place = dense(b, place, DType::F32)?;
        operands.push(operand(&place, DType::F32));
    }
    // Results, each a matrix of rows; one that is laid out otherwise is copied there.
    let mut copies = Vec::new();
    let mut result = |b: &mut Builder<'_>, i: usize, dtype: DType| -> Result<(Place, usize)> {
        let y = b.output_place_of(i)?;
        if let Some((_, stride)) = as_rows(&y, len) {
            return Ok((y, stride));
        }
        let line = b.new_place(dtype, &[rows * len], None)?;
        copies.push((
            Place { dims: y.dims.clone(), strides: dense_strides(&y.dims), ..line.clone() },
            y,
            dtype,
        ));
        Ok((line, len))
    };
    let quantised = match norm.out {
        Some(out) => Some((out, result(b, 0, DType::U8)?)),
        None => None,
    };
    let elements = rows * len;
    let parts = b.parts(elements).min(rows);
    let (real, f32_stride) = match norm.keep {
        true => {
            let (place, stride) = result(b, usize::from(norm.out.is_some()), DType::F32)?;
            (place, Some(stride))
        }
        false => (b.new_place(DType::F32, &[parts * len], None)?, None),
    };
    let real_operand = operand(&real, DType::F32);
    let y_operand = quantised.as_ref().map_or(real_operand, |(_, (y, _))| operand(y, DType::U8));
    operands.splice(0..0, [y_operand, real_operand]);
    let step = NormStep {
        rows,
        len,
        a,
        b: row_operands[1],
        epsilon: norm.epsilon,
        y_mult: norm.y_mult,
        out: quantised.map(|(out, (_, stride))| (out, stride)),
        f32_stride,
    };
    let row = push(&mut b.plan.norms, step);
    b.step(StepKind::Norm, row, &operands, parts, kernel, elements * 8);
    for (from, to, dtype) in copies {
        b.copy(&from, &to, dtype)?;
    }
    Ok(())
}

/// The elements as rows of `len`, and elements from row to row.
fn as_rows(place: &Place, len: usize) -> Option<(usize, usize)> {
    let rows = place.dims.iter().product::<usize>() / len;
    let matrix = place.reshaped(&[rows, len])?;
    (matrix.strides[1] == 1 || len == 1).then_some((rows, matrix.strides[0]))
}

pub fn emit_attention(b: &mut Builder<'_>, op: OpId, attr: QAttentionAttr) -> Result<()> {
    b.eight_bit(attr.out)?;
    b.eight_bit_zeros(&[attr.q_zero, attr.k_zero, attr.v_zero])?;
    let mut places = Vec::with_capacity(3);
    for i in 0..3 {
        let place = b.input(op, i)?;
        let fits = place.serves(Demand::BARE);
        places.push(b.placed_for(place, DType::U8, fits, Demand::BARE)?);
    }
    let mask = match b.g.input_of(op, 3) {
        Some(mask) => {
            let place = b.place(mask)?;
            let fits = place.strides.last() == Some(&1);
            Some(if fits { place } else { dense(b, place, DType::F32)? })
        }
        None => None,
    };
    let y = b.output_place()?;
    let [batch, tokens, width] = y.dims[..] else { return b.error("works on rows of tokens") };
    let keys = places[1].dims[1];
    let depth = width / attr.heads as usize;
    let two = |p: &Place| [p.strides[0], p.strides[1]];
    let mut step = AttentionStep {
        batch,
        tokens,
        keys,
        depth,
        blocks: 1,
        strides: [two(&y), two(&places[0]), two(&places[1]), two(&places[2])],
        mask: mask.as_ref().map(|m| if m.dims[0] == 1 { 0 } else { m.strides[0] }),
        attr,
    };
    // A head is one thread's work, unless that leaves threads without any, or one with much more than another.
    let (threads, most) = (b.target.threads, tokens.div_ceil(QUERIES));
    let share = |blocks: usize| {
        let units = batch * attr.heads as usize * blocks;
        units as f64 / (units.div_ceil(threads) * threads) as f64
    };
    while step.blocks < most && share(step.blocks) < 0.9 {
        step.blocks += 1;
    }
    let work = batch * tokens * keys * width;
    let parts = b.parts(work / 16).min(step.units());
    let scratch = b.new_place(DType::U8, &[parts * step.scratch_bytes()], None)?;
    let mask = mask.map_or(operand(&places[0], DType::U8), |m| operand(&m, DType::F32));
    let [q, k, v] = &places[..] else { return b.error("has no operands") };
    let operands = [&y, q, k, v].map(|p| operand(p, DType::U8));
    let operands = operands.into_iter().chain([mask, operand(&scratch, DType::U8)]).collect::<Vec<_>>();
    let row = push(&mut b.plan.attentions, step);
    b.step(StepKind::Attention, row, &operands, parts, "attention_u8", work / 8);
    Ok(())
}
