//! What exporters of detectors leave: pixels cut into four images before the first convolution, and heads that become
//! rows of candidates at the end. Both copy images that need no copy.

use super::rewrite::*;
use crate::error::Result;
use crate::target::Target;
use bytes::Bytes;
use lacuna_ir::{Attr, Dim, Graph, OpId, OpKind, Tensor, Uses, ValueId};

/// A convolution of the four images of every second row and column ("Focus") is one of the image itself: its window has
/// twice the rows and columns, and it goes on by twice as many pixels. It has the same products.
pub fn join_phases(g: &mut Graph, _: &Target) -> Result<usize> {
    let uses = g.uses();
    let convs: Vec<OpId> = g.order.iter().copied().filter(|&op| g.op_kind[op] == OpKind::Conv).collect();
    let mut changes = 0;
    for op in convs {
        if let Some(found) = phases_before(g, &uses, op) {
            convolve_image(g, op, &found)?;
            changes += 1;
        }
    }
    sweep(g);
    Ok(changes)
}

struct Phases {
    image: ValueId,
    /// Row and column that image i of the four begins with.
    begin: Vec<[usize; 2]>,
    /// Quantise and dequantise between the four images and the convolution, if they do.
    quantise: Option<[OpId; 2]>,
    /// The constant that the weights are, and the op that dequantises it, if one does.
    weights: ValueId,
    dequantise: Option<OpId>,
}

fn phases_before(g: &Graph, uses: &Uses, op: OpId) -> Option<Phases> {
    let Attr::Conv(attr) = g.op_attr[op] else { return None };
    let window = attr.window;
    let doubles = window.stride.iter().chain(&window.pads).all(|n| n.checked_mul(2).is_some());
    (attr.group == 1 && window.dilation == [1, 1] && doubles).then_some(())?;
    let mut x = g.input_of(op, 0)?;
    let mut quantise = None;
    if let Some(after) = made_by(g, x, OpKind::DequantizeLinear) {
        let before = made_by(g, g.input_of(after, 0)?, OpKind::QuantizeLinear)?;
        tensor_params(g, before).and(tensor_params(g, after))?;
        quantise = Some([before, after]);
        x = g.input_of(before, 0)?;
    }
    let concat = made_by(g, x, OpKind::Concat).filter(|&c| g.op_attr[c] == Attr::Axis(1))?;
    sole_use(g, uses, g.input_of(op, 0)?)?;
    let cuts: Vec<_> = g.inputs_of(concat).iter().map(|&v| phase(g, v)).collect::<Option<_>>()?;
    let image = cuts.first()?.0;
    let begin: Vec<[usize; 2]> = cuts.iter().map(|&(_, begin)| begin).collect();
    let each_once = [[0, 0], [0, 1], [1, 0], [1, 1]].iter().all(|phase| begin.contains(phase));
    (begin.len() == 4 && each_once && cuts.iter().all(|cut| cut.0 == image)).then_some(())?;
    let w = g.input_of(op, 1)?;
    let dequantise = made_by(g, w, OpKind::DequantizeLinear);
    let weights = match dequantise {
        // Scales of channels of the result stay with them.
        Some(op) if matches!(g.op_attr[op], Attr::Axis(0)) || tensor_params(g, op).is_some() => {
            g.input_of(op, 0)?
        }
        Some(_) => return None,
        None => w,
    };
    g.const_bytes(weights)?;
    Some(Phases { image, begin, quantise, weights, dequantise })
}

/// The image of which `v` is every second row and column, and the first of each.
fn phase(g: &Graph, mut v: ValueId) -> Option<(ValueId, [usize; 2])> {
    let mut begin = [None; 2];
    while let Some(slice) = made_by(g, v, OpKind::Slice) {
        v = g.input_of(slice, 0)?;
        let numbers = |i: usize| Some(g.const_i64(g.input_of(slice, i)?)?.into_owned());
        let (starts, ends, axes, steps) = (numbers(1)?, numbers(2)?, numbers(3)?, numbers(4)?);
        for (i, &axis) in axes.iter().enumerate() {
            let Some(&Dim::Fixed(size)) = g.shape(v).get(usize::try_from(axis).ok()?) else { return None };
            let slot = begin.get_mut(usize::try_from(axis - 2).ok()?).filter(|slot| slot.is_none())?;
            let whole = size % 2 == 0 && *ends.get(i)? >= size as i64 && *steps.get(i)? == 2;
            let start = usize::try_from(*starts.get(i)?).ok()?;
            *slot = (whole && start < 2).then_some(Some(start))?;
        }
    }
    let [Some(row), Some(column)] = begin else { return None };
    (g.shape(v).len() == 4).then_some((v, [row, column]))
}

fn convolve_image(g: &mut Graph, op: OpId, found: &Phases) -> Result<()> {
    let Attr::Conv(mut attr) = g.op_attr[op] else { unreachable!("matched") };
    let again = |g: &mut Graph, op: OpId, x: ValueId| {
        let (kind, attr, name) = (g.op_kind[op], g.op_attr[op], g.op_name[op].clone());
        let mut inputs = g.inputs_of(op).to_vec();
        inputs[0] = x;
        op_before(g, op, kind, attr, &name, &inputs)
    };
    let dims = g.fixed_shape(found.weights).expect("constants have a shape");
    let bytes = g.const_bytes(found.weights).expect("matched").clone();
    let size = g.value_dtype[found.weights].size();
    let name = g.value_name[found.weights].clone();
    let [o, kh, kw] = [dims[0], dims[2], dims[3]];
    let c = dims[1] / 4;
    let wide = Bytes::from(spread(&bytes, size, [o, c, kh, kw], &found.begin));
    let mut w = shared_constant(g, &name, g.value_dtype[found.weights], &[o, c, 2 * kh, 2 * kw], wide)?;
    if let Some(dequantise) = found.dequantise {
        w = again(g, dequantise, w)?;
    }
    let mut x = found.image;
    for step in found.quantise.into_iter().flatten() {
        x = again(g, step, x)?;
    }
    let window = &mut attr.window;
    window.kernel.iter_mut().chain(&mut window.stride).chain(&mut window.pads).for_each(|n| *n *= 2);
    let mut inputs = g.inputs_of(op).to_vec();
    (inputs[0], inputs[1]) = (x, w);
    let (name, y) = (g.op_name[op].clone(), g.outputs_of(op)[0]);
    let joined = op_before(g, op, OpKind::Conv, Attr::Conv(attr), &name, &inputs)?;
    g.replace_uses(y, joined);
    Ok(())
}

/// `[o, 4c, kh, kw]` as `[o, c, 2kh, 2kw]`: channel `i * c + k` is channel k at row and column `begin[i]` of every two.
fn spread(w: &[u8], size: usize, [o, c, kh, kw]: [usize; 4], begin: &[[usize; 2]]) -> Vec<u8> {
    let mut wide = vec![0; w.len()];
    for (from, element) in w.chunks_exact(size).enumerate() {
        let (x, y, channel, filter) =
            (from % kw, from / kw % kh, from / (kw * kh) % (4 * c), from / (kw * kh * 4 * c));
        debug_assert!(filter < o);
        let [row, column] = begin[channel / c];
        let at = ((filter * c + channel % c) * 2 * kh + 2 * y + row) * 2 * kw + 2 * x + column;
        wide[at * size..][..size].copy_from_slice(element);
    }
    wide
}

/// Heads `[N,C,H,W]` that are reshaped to `[N,C,H*W]`, joined, and turned to `[N,all,C]`: each is turned before it is
/// reshaped, which costs nothing where its channels come last anyway.
pub fn turn_heads_first(g: &mut Graph, _: &Target) -> Result<usize> {
    let mut changes = 0;
    let uses = g.uses();
    for op in g.order.clone() {
        if let Some(heads) = heads_before(g, &uses, op) {
            turn_each(g, op, &heads)?;
            changes += 1;
        }
    }
    sweep(g);
    Ok(changes)
}

/// The heads, if `op` turns them.
fn heads_before(g: &Graph, uses: &Uses, op: OpId) -> Option<Vec<ValueId>> {
    (perm_of(g, op)? == [0, 2, 1]).then_some(())?;
    let x = g.input_of(op, 0)?;
    let concat = made_by(g, x, OpKind::Concat).filter(|&c| matches!(g.op_attr[c], Attr::Axis(2 | -1)))?;
    sole_use(g, uses, x)?;
    let head = |&flat: &ValueId| {
        let reshape = made_by(g, flat, OpKind::Reshape)?;
        let head = g.input_of(reshape, 0)?;
        let (from, to) = (g.shape(head), g.shape(flat));
        let channels = from.get(1)?.fixed()?;
        let channels = i64::try_from(channels).ok().filter(|&n| n > 0);
        (from.len() == 4 && to.len() == 3 && from[..2] == to[..2] && channels.is_some()).then_some(head)
    };
    g.inputs_of(concat).iter().map(head).collect()
}

fn turn_each(g: &mut Graph, op: OpId, heads: &[ValueId]) -> Result<()> {
    let (name, y) = (g.op_name[op].clone(), g.outputs_of(op)[0]);
    let mut rows = Vec::with_capacity(heads.len());
    for &head in heads {
        let channels = g.shape(head)[1].fixed().expect("matched") as i64;
        let turned = transpose_before(g, op, head, &TO_NHWC)?;
        let dims = constant(g, &name, &Tensor::from_i64(&[3], vec![0, -1, channels]));
        rows.push(op_before(g, op, OpKind::Reshape, Attr::None, &name, &[turned, dims])?);
    }
    let joined = op_before(g, op, OpKind::Concat, Attr::Axis(1), &name, &rows)?;
    g.replace_uses(y, joined);
    Ok(())
}
