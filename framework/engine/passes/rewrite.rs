//! Small tools the passes share: placing ops, following single uses, reading quantisation parameters.

use crate::error::Result;
use bytes::Bytes;
use lacuna_ir::op::{Axes, ClipAttr};
use lacuna_ir::{Attr, DType, Dim, Graph, OpId, OpKind, Tensor, Uses, ValueId};

pub const TO_NHWC: [i64; 4] = [0, 2, 3, 1];
pub const TO_NCHW: [i64; 4] = [0, 3, 1, 2];

/// Scale and zero point of a whole tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QParams {
    pub scale: f32,
    pub zero: i32,
}

/// Appends an op and places it right before `at` in the order. Its outputs are named after `name`.
pub fn op_before(
    g: &mut Graph,
    at: OpId,
    kind: OpKind,
    attr: Attr,
    name: &str,
    inputs: &[ValueId],
) -> Result<ValueId> {
    let out = format!("{name}:{}", g.value_name.len());
    let op = g.insert_op(kind, attr, name, inputs, &[&out])?;
    let position = g.order.iter().position(|&o| o == at).expect("the anchor is in the order");
    g.order.insert(position, op);
    Ok(g.outputs_of(op)[0])
}

pub fn perm_attr(perm: &[i64]) -> Attr {
    Attr::Perm(Axes::new(perm).expect("a permutation of at most eight axes"))
}

pub fn transpose_before(g: &mut Graph, at: OpId, x: ValueId, perm: &[i64]) -> Result<ValueId> {
    let name = format!("{}/transpose", g.value_name[x]);
    op_before(g, at, OpKind::Transpose, perm_attr(perm), &name, &[x])
}

/// Adds a constant under a name of its own.
pub fn constant(g: &mut Graph, name: &str, tensor: &Tensor) -> ValueId {
    let name = format!("{name}:{}", g.value_name.len());
    g.add_tensor(&name, tensor)
}

/// Takes ops that no output needs out of the order.
pub fn sweep(g: &mut Graph) {
    let mut live = vec![false; g.op_kind.len()];
    let mut stack = g.outputs.clone();
    while let Some(v) = stack.pop() {
        if let Some(op) = g.producer(v)
            && !std::mem::replace(&mut live[op.0 as usize], true)
        {
            stack.extend(g.inputs_of(op).iter().copied().filter(|v| !v.is_none()));
        }
    }
    g.order.retain(|op| live[op.0 as usize]);
}

/// The only op that reads `v`, if there is just one and `v` is not an output of the graph.
pub fn sole_use(g: &Graph, uses: &Uses, v: ValueId) -> Option<OpId> {
    match uses.of(v) {
        &[op] if !g.outputs.contains(&v) => Some(op),
        _ => None,
    }
}

/// The producer of `v`, if it is of that kind.
pub fn made_by(g: &Graph, v: ValueId, kind: OpKind) -> Option<OpId> {
    g.producer(v).filter(|&op| g.op_kind[op] == kind)
}

/// A one-element f32 constant.
pub fn const_scalar(g: &Graph, v: ValueId) -> Option<f32> {
    match *g.const_f32(v)? {
        [x] => Some(x),
        _ => None,
    }
}

/// A u8, i8 or i32 constant as i32.
pub fn const_ints(g: &Graph, v: ValueId) -> Option<Vec<i32>> {
    let t = g.const_tensor(v)?;
    match t.dtype() {
        DType::U8 => Some(t.as_u8()?.iter().map(|&x| x as i32).collect()),
        DType::I8 => Some(t.as_i8()?.iter().map(|&x| x as i32).collect()),
        DType::I32 => Some(t.as_i32()?.to_vec()),
        _ => None,
    }
}

/// Parameters of a Quantize/DequantizeLinear op that treats its whole tensor alike.
pub fn tensor_params(g: &Graph, op: OpId) -> Option<QParams> {
    let scale = const_scalar(g, g.input_of(op, 1)?)?;
    let zero = match *const_ints(g, g.input_of(op, 2)?)? {
        [z] => z,
        _ => return None,
    };
    (scale.is_finite() && scale > 0.0).then_some(QParams { scale, zero })
}

/// If `v` is a u8 tensor dequantised with one scale: the u8 tensor and its parameters.
pub fn dequantised(g: &Graph, v: ValueId) -> Option<(ValueId, QParams)> {
    let op = made_by(g, v, OpKind::DequantizeLinear)?;
    let q = g.input_of(op, 0)?;
    if g.value_dtype[q] != DType::U8 || g.const_bytes(q).is_some() {
        return None;
    }
    Some((q, tensor_params(g, op)?))
}

/// `clamp(clamp(x, inner), outer)` as one clamp.
pub fn compose_clips(inner: ClipAttr, outer: ClipAttr) -> ClipAttr {
    ClipAttr { min: inner.min.max(outer.min).min(outer.max), max: inner.max.max(outer.min).min(outer.max) }
}

pub const NO_CLIP: ClipAttr = ClipAttr { min: f32::NEG_INFINITY, max: f32::INFINITY };

/// What an activation that is a clamp clamps to.
pub fn clip_of(g: &Graph, op: OpId) -> Option<ClipAttr> {
    match (g.op_kind[op], g.op_attr[op]) {
        (OpKind::Relu, _) => Some(ClipAttr { min: 0.0, max: f32::INFINITY }),
        (OpKind::Clip, Attr::Clip(c)) if c.min <= c.max && g.inputs_of(op).len() == 1 => Some(c),
        _ => None,
    }
}

/// Whether `op` is the mean over height and width of an NCHW tensor, and keeps the axes.
pub fn spatial_mean(g: &Graph, op: OpId) -> Option<bool> {
    let x = g.input_of(op, 0)?;
    if g.shape(x).len() != 4 {
        return None;
    }
    match (g.op_kind[op], g.op_attr[op]) {
        (OpKind::GlobalAveragePool, _) => Some(true),
        (OpKind::ReduceMean, Attr::Reduce(r)) if g.inputs_of(op).len() == 1 => {
            let mut axes: Vec<i64> = r.axes.as_slice().iter().map(|&a| (a as i64).rem_euclid(4)).collect();
            axes.sort_unstable();
            (axes == [2, 3]).then_some(r.keep_dims)
        }
        _ => None,
    }
}

/// Whether a permutation of `dims` leaves the elements in their order (it only moves axes of length one).
pub fn keeps_order(dims: &[Dim], perm: &[i64]) -> bool {
    let moved: Vec<i64> = perm.iter().copied().filter(|&a| dims[a as usize] != Dim::Fixed(1)).collect();
    moved.is_sorted()
}

pub fn perm_of(g: &Graph, op: OpId) -> Option<Vec<i64>> {
    match g.op_attr[op] {
        Attr::Perm(a) if g.op_kind[op] == OpKind::Transpose => {
            // None given: the order is reversed.
            let rank = g.input_of(op, 0).map_or(0, |x| g.shape(x).len());
            lacuna_ir::shape::permutation(&a, rank).ok().map(|p| p.iter().map(|&x| x as i64).collect())
        }
        _ => None,
    }
}

/// Adds a constant that shares these bytes.
pub fn shared_constant(
    g: &mut Graph,
    name: &str,
    dtype: DType,
    dims: &[usize],
    bytes: Bytes,
) -> Result<ValueId> {
    let name = format!("{name}:{}", g.value_name.len());
    Ok(g.add_const(&name, dtype, dims, bytes)?)
}

/// `OIHW` to `OHWI` of elements of one or four bytes. Shares them where nothing moves.
pub fn to_ohwi(w: &Bytes, dims: [usize; 4]) -> Bytes {
    let [o, c, h, wd] = dims;
    let pixels = h * wd;
    if pixels == 1 || c == 1 || w.is_empty() {
        return w.clone();
    }
    let filter = w.len() / o;
    let mut out = Vec::with_capacity(w.len());
    for filter in w.chunks_exact(filter) {
        match filter.len() / (c * pixels) {
            1 => out.extend_from_slice(&transposed(filter, pixels)),
            _ => out.extend_from_slice(
                transposed(bytemuck::cast_slice::<u8, [u8; 4]>(filter), pixels).as_flattened(),
            ),
        }
    }
    Bytes::from(out)
}

/// `[K,N]` to `[N,K]`, in squares that fit the cache.
pub fn transposed<T: Copy + Default>(x: &[T], n: usize) -> Vec<T> {
    const SIDE: usize = 32;
    let k = x.len() / n.max(1);
    let mut out = vec![T::default(); x.len()];
    for i0 in (0..k).step_by(SIDE) {
        for o0 in (0..n).step_by(SIDE) {
            for i in i0..(i0 + SIDE).min(k) {
                for o in o0..(o0 + SIDE).min(n) {
                    out[o * k + i] = x[i * n + o];
                }
            }
        }
    }
    out
}
