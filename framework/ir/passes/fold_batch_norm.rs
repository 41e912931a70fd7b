//! Folds batch normalisation into the convolution, transposed one or matrix product before it (Jacob et al. 2018, section 3.2), and so
//! constants that are added to its channels or multiplied with them: biases and normalisations that a file writes out.

use super::Redirect;
use crate::error::Result;
use crate::graph::Graph;
use crate::ids::{Id, OpId, ValueId};
use crate::op::{Attr, OpKind};
use crate::tensor::Tensor;

/// With `s = scale / sqrt(var + epsilon)`, the weight becomes `w · s` and the bias `(b - mean) · s + bias`, computed in
/// f64 and rounded once: results change by roundings. Only where every parameter is a constant and nobody else
/// reads the result in between. The new op keeps the convolution's name and the parameters' names.
pub fn fold_batch_norm(g: &mut Graph) -> Result<usize> {
    let uses = g.uses();
    let mut redirect = Redirect::new(g);
    let mut kept: Vec<Option<OpId>> = Vec::with_capacity(g.order.len());
    let order = std::mem::take(&mut g.order);
    let mut place = vec![usize::MAX; g.op_kind.len()];
    let values = g.value_name.len();
    let mut rewrites = 0;
    for op in order {
        redirect.inputs(g, op);
        let before = normalised(g, op);
        // What was made during this walk has no uses yet: of two normalisations in a row one folds now.
        let old = before.filter(|v| v.index() < values);
        let single = old.filter(|v| uses.of(*v).len() == 1 && !g.outputs.contains(v));
        let linear = single.and_then(|v| g.producer(v));
        if let Some(linear) = linear
            && let Some(folded) = fold(g, linear, op)?
        {
            kept[place[linear.index()]] = None;
            redirect.set(g.outputs_of(op)[0], g.outputs_of(folded)[0]);
            kept.push(Some(folded));
            rewrites += 1;
            continue;
        }
        place[op.index()] = kept.len();
        kept.push(Some(op));
    }
    redirect.outputs(g);
    g.order = kept.into_iter().flatten().collect();
    Ok(rewrites)
}

/// What `op` normalises, or adds a constant to, or multiplies by one.
fn normalised(g: &Graph, op: OpId) -> Option<ValueId> {
    let (a, b) = (g.input_of(op, 0)?, g.input_of(op, 1));
    match g.op_kind[op] {
        OpKind::BatchNormalization => Some(a),
        OpKind::Add | OpKind::Sub | OpKind::Mul | OpKind::Div => match (g.const_f32(a), g.const_f32(b?)) {
            (None, Some(_)) => Some(a),
            // A constant divided by what was computed is not linear.
            (Some(_), None) if g.op_kind[op] != OpKind::Div => b,
            _ => None,
        },
        _ => None,
    }
}

/// Makes the op that does the work of `linear` and `norm`, if they can be folded.
fn fold(g: &mut Graph, linear: OpId, norm: OpId) -> Result<Option<OpId>> {
    let weight = match (g.op_kind[linear], g.input_of(linear, 1)) {
        (OpKind::Conv | OpKind::Gemm, Some(w)) => w,
        // With groups the weights of one output channel lie at several places.
        (OpKind::ConvTranspose, Some(w)) if matches!(g.op_attr[linear], Attr::Spatial(a) if a.group == 1) => {
            w
        }
        _ => return Ok(None),
    };
    let found = match g.op_kind[norm] {
        OpKind::BatchNormalization => scale_and_shift(g, norm),
        _ => per_channel(g, linear, norm),
    };
    let Some((scale, shift)) = found else { return Ok(None) };
    let Some(bias) = constant_bias(g, linear, scale.len()) else { return Ok(None) };
    let Some((w, dims)) = g.const_f32(weight).zip(g.fixed_shape(weight)) else { return Ok(None) };

    let mut attr = g.op_attr[linear];
    let mut beta = 1.0f64;
    // Element i of the weight belongs to output channel i / run % channels.
    let run = match &mut attr {
        Attr::Gemm(a) => {
            beta = f64::from(std::mem::replace(&mut a.beta, 1.0));
            if a.trans_b { dims[1] } else { 1 }
        }
        Attr::Spatial(_) => dims[2..].iter().product(),
        _ => dims[1..].iter().product(),
    };
    let channel = |i: usize| i / run.max(1) % scale.len();
    let w: Vec<f32> = w.iter().enumerate().map(|(i, &w)| (f64::from(w) * scale[channel(i)]) as f32).collect();
    let b: Vec<f32> =
        (0..scale.len()).map(|c| (beta * f64::from(bias[c]) * scale[c] + shift[c]) as f32).collect();

    let weight_name = g.value_name[weight].clone();
    let bias_name = match g.input_of(linear, 2) {
        Some(b) => g.value_name[b].clone(),
        None => format!("{}.bias", weight_name.strip_suffix(".weight").unwrap_or(&weight_name)),
    };
    let x = g.inputs_of(linear)[0];
    let w = g.add_tensor(&weight_name, &Tensor::from_f32(&dims, w));
    let b = g.add_tensor(&bias_name, &Tensor::from_f32(&[b.len()], b));
    let (name, out) = (g.op_name[linear].clone(), g.value_name[g.outputs_of(norm)[0]].clone());
    g.insert_op(g.op_kind[linear], attr, &name, &[x, w, b], &[&out]).map(Some)
}

/// `scale / sqrt(var + epsilon)` and `bias - mean · that`, per channel; `None` if not constant or not finite.
fn scale_and_shift(g: &Graph, norm: OpId) -> Option<(Vec<f64>, Vec<f64>)> {
    let Attr::Epsilon(epsilon) = g.op_attr[norm] else { return None };
    let vector = |i: usize| g.input_of(norm, i).and_then(|v| g.const_f32(v));
    let (scale, bias, mean, var) = (vector(1)?, vector(2)?, vector(3)?, vector(4)?);
    let s: Vec<f64> = scale
        .iter()
        .zip(&*var)
        .map(|(&s, &v)| f64::from(s) / (f64::from(v) + f64::from(epsilon)).sqrt())
        .collect();
    let shift: Vec<f64> = (0..s.len()).map(|c| f64::from(bias[c]) - f64::from(mean[c]) * s[c]).collect();
    let finite = !s.is_empty() && s.iter().chain(&shift).all(|v| v.is_finite());
    finite.then_some((s, shift))
}

/// What an elementwise op with one constant does to each channel, if it treats a channel alike.
fn per_channel(g: &Graph, linear: OpId, op: OpId) -> Option<(Vec<f64>, Vec<f64>)> {
    let y = g.outputs_of(linear)[0];
    let rank = g.shape(y).len();
    // Channels are the second dimension of four, or of two.
    let channels = usize::try_from(g.shape(y).get(1)?.fixed()?).ok()?;
    let from_first = g.input_of(op, 0).filter(|&v| v != y);
    let constant = from_first.or(g.input_of(op, 1))?;
    let (values, dims) = (g.const_f32(constant)?, g.fixed_shape(constant)?);
    (dims.len() <= rank && g.shape(g.outputs_of(op)[0]) == g.shape(y)).then_some(())?;
    let axis = dims.len().checked_sub(rank - 1);
    let spread = dims.iter().enumerate().all(|(i, &d)| d == 1 || Some(i) == axis && d == channels);
    (spread && channels > 0).then_some(())?;
    let values: Vec<f64> = (0..channels).map(|c| f64::from(values[c % values.len()])).collect();
    let all = |v: f64| vec![v; channels];
    let found = match (g.op_kind[op], from_first.is_some()) {
        (OpKind::Add, _) => (all(1.0), values),
        (OpKind::Sub, false) => (all(1.0), values.iter().map(|v| -v).collect()),
        (OpKind::Sub, true) => (all(-1.0), values),
        (OpKind::Mul, _) => (values, all(0.0)),
        (OpKind::Div, false) => (values.iter().map(|v| 1.0 / v).collect(), all(0.0)),
        _ => return None,
    };
    found.0.iter().chain(&found.1).all(|v| v.is_finite()).then_some(found)
}

/// The bias per channel (zeros if there is none); `None` if it is not constant or not per channel.
fn constant_bias(g: &Graph, linear: OpId, channels: usize) -> Option<Vec<f32>> {
    let Some(v) = g.input_of(linear, 2) else { return Some(vec![0.0; channels]) };
    let per_channel = |v: ValueId| match g.fixed_shape(v)?.as_slice() {
        [] | [1] | [1, 1] => Some(vec![g.const_f32(v)?[0]; channels]),
        [n] | [1, n] if *n == channels => Some(g.const_f32(v)?.to_vec()),
        _ => None,
    };
    per_channel(v)
}
