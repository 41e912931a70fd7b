//! Attention between quantised values becomes one integer op.
//!
//! ```text
//! q [B,T,HD] - Reshape - Transpose - DQ \
//! k [B,S,HD] - Reshape - Transpose - DQ - MatMul - (Div | Mul)* - [Add mask] - Softmax - Q - DQ \
//! v [B,S,HD] - Reshape - Transpose - DQ ------------------------------------------------------ MatMul - Q
//!     - Transpose - Reshape [B,T,HD]
//! ```

use super::lower_qdq::requant;
use super::rewrite::*;
use crate::error::Result;
use lacuna_ir::op::QAttentionAttr;
use lacuna_ir::{Attr, DType, Dim, Graph, OpId, OpKind, Uses, ValueId};

/// Swaps heads and tokens: `[B,T,H,D]` to `[B,H,T,D]` and back.
const HEADS_FIRST: [i64; 4] = [0, 2, 1, 3];
/// The same for keys, whose tokens come last: `[B,T,H,D]` to `[B,H,D,T]`.
const KEYS_LAST: [i64; 4] = [0, 2, 3, 1];

/// Rewrites the attention whose softmax is `op`.
pub fn lower_attention(g: &mut Graph, uses: &Uses, op: OpId) -> Result<bool> {
    let Some(Attention { inputs, attr, last }) = match_attention(g, uses, op) else { return Ok(false) };
    let name = g.op_name[op].clone();
    let attr = Attr::QAttention(attr);
    // What reads fewer keys than there are in a head's sums, and the like, stays as it is.
    if lacuna_ir::shape::infer(g, OpKind::QAttention, &attr, &inputs).is_err() {
        return Ok(false);
    }
    let y = op_before(g, last, OpKind::QAttention, attr, &name, &inputs)?;
    g.replace_uses(g.outputs_of(last)[0], y);
    Ok(true)
}

struct Attention {
    inputs: Vec<ValueId>,
    attr: QAttentionAttr,
    /// The reshape whose output is the result.
    last: OpId,
}

/// A value that heads share out: `[B,T,HD]`.
struct Heads {
    value: ValueId,
    params: QParams,
    count: u64,
}

fn match_attention(g: &Graph, uses: &Uses, softmax: OpId) -> Option<Attention> {
    let Attr::Axis(axis) = g.op_attr[softmax] else { return None };
    let scores = g.input_of(softmax, 0)?;
    (g.shape(scores).len() == 4 && matches!(axis, -1 | 3)).then_some(())?;
    let Scores { q, k, scale, mask } = match_scores(g, uses, scores)?;

    let quantise = sole_use(g, uses, g.outputs_of(softmax)[0])?;
    let p = quantised_by(g, quantise)?;
    let dequantise = sole_use(g, uses, g.outputs_of(quantise)[0])?;
    let (_, p_again) = dequantised(g, g.outputs_of(dequantise)[0])?;
    (p.zero == 0 && p_again == p).then_some(())?;
    let product =
        sole_use(g, uses, g.outputs_of(dequantise)[0]).filter(|&o| g.op_kind[o] == OpKind::MatMul)?;
    (g.input_of(product, 0)? == g.outputs_of(dequantise)[0]).then_some(())?;
    let v = heads(g, g.input_of(product, 1)?, &HEADS_FIRST)?;
    (q.count == k.count && k.count == v.count).then_some(())?;

    let quantise = sole_use(g, uses, g.outputs_of(product)[0])?;
    let out = quantised_by(g, quantise)?;
    let turn = sole_use(g, uses, g.outputs_of(quantise)[0])?;
    (perm_of(g, turn)? == HEADS_FIRST).then_some(())?;
    let last = sole_use(g, uses, g.outputs_of(turn)[0]).filter(|&o| g.op_kind[o] == OpKind::Reshape)?;
    (g.shape(g.outputs_of(last)[0]) == g.shape(q.value)).then_some(())?;

    let log2_e = std::f64::consts::LOG2_E;
    let real = |p: QParams| f64::from(p.scale);
    let attr = QAttentionAttr {
        heads: u32::try_from(q.count).ok()?,
        q_zero: q.params.zero,
        k_zero: k.params.zero,
        v_zero: v.params.zero,
        score_mult: finite(real(q.params) * real(k.params) * scale * log2_e)?,
        p_mult: finite(1.0 / real(p))?,
        out_mult: finite(real(p) * real(v.params) / real(out))?,
        out: requant(out.scale, out.zero, NO_CLIP),
    };
    let inputs = [q.value, k.value, v.value].into_iter().chain(mask).collect();
    Some(Attention { inputs, attr, last })
}

fn finite(x: f64) -> Option<f32> {
    let x = x as f32;
    x.is_finite().then_some(x)
}

/// The parameters of a QuantizeLinear to u8 that treats its whole tensor alike.
fn quantised_by(g: &Graph, op: OpId) -> Option<QParams> {
    let to_u8 = g.op_kind[op] == OpKind::QuantizeLinear && g.value_dtype[g.outputs_of(op)[0]] == DType::U8;
    if to_u8 { tensor_params(g, op) } else { None }
}

struct Scores {
    q: Heads,
    k: Heads,
    scale: f64,
    mask: Option<ValueId>,
}

/// `scores = q k * scale + mask`; each value on the way is read once.
fn match_scores(g: &Graph, uses: &Uses, scores: ValueId) -> Option<Scores> {
    let op = g.producer(scores)?;
    if g.op_kind[op] != OpKind::Add {
        return scaled_product(g, uses, scores, None);
    }
    let (a, b) = (g.input_of(op, 0)?, g.input_of(op, 1)?);
    let with = |product: ValueId, mask: ValueId| {
        sole_use(g, uses, product)?;
        scaled_product(g, uses, product, Some(mask)).filter(|_| g.value_dtype[mask] == DType::F32)
    };
    with(a, b).or_else(|| with(b, a))
}

fn scaled_product(g: &Graph, uses: &Uses, mut v: ValueId, mask: Option<ValueId>) -> Option<Scores> {
    let mut scale = 1.0f64;
    loop {
        let op = g.producer(v)?;
        sole_use(g, uses, v)?;
        let (a, b) = (g.input_of(op, 0)?, g.input_of(op, 1)?);
        match g.op_kind[op] {
            OpKind::MatMul => {
                let (q, k) = (heads(g, a, &HEADS_FIRST)?, heads(g, b, &KEYS_LAST)?);
                return Some(Scores { q, k, scale, mask });
            }
            OpKind::Div => (v, scale) = (a, scale / f64::from(const_scalar(g, b)?)),
            OpKind::Mul => match (const_scalar(g, a), const_scalar(g, b)) {
                (None, Some(s)) => (v, scale) = (a, scale * f64::from(s)),
                (Some(s), None) => (v, scale) = (b, scale * f64::from(s)),
                _ => return None,
            },
            _ => return None,
        }
    }
}

/// `v = DQ(Transpose(Reshape(value)))` where the reshape splits the last dimension into heads, and the transposes
/// together are `perm`.
fn heads(g: &Graph, v: ValueId, perm: &[i64; 4]) -> Option<Heads> {
    let (mut at, params) = dequantised(g, v)?;
    let mut turned: Vec<i64> = vec![0, 1, 2, 3];
    let split = loop {
        let op = g.producer(at)?;
        let inner = g.input_of(op, 0)?;
        match g.op_kind[op] {
            OpKind::Transpose => {
                let p = perm_of(g, op).filter(|p| p.len() == 4)?;
                turned = turned.iter().map(|&a| p[a as usize]).collect();
            }
            OpKind::Reshape => break op,
            _ => return None,
        }
        at = inner;
    };
    let value = g.input_of(split, 0)?;
    let (&[b, t, width], &[ob, ot, h, d]) = (g.shape(value), g.shape(g.outputs_of(split)[0])) else {
        return None;
    };
    let joined = h.fixed()?.checked_mul(d.fixed()?)?;
    let splits = (b, t, width) == (ob, ot, Dim::Fixed(joined));
    (splits && turned == perm && g.value_dtype[value] == DType::U8).then_some(())?;
    Some(Heads { value, params, count: h.fixed()? })
}
