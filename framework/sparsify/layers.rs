//! The layers of a graph: convolutions and matrix products whose weights are f32 constants.

use lacuna_ir::{Attr, Graph, OpId, OpKind, ValueId};

/// Inputs of at most this many channels are pictures: a layer that reads them is a network's first.
const PICTURE_CHANNELS: usize = 4;

/// One layer. `dims` are those of its weight.
#[derive(Clone, Debug)]
pub struct Layer {
    pub op: OpId,
    pub name: String,
    pub x: ValueId,
    pub weight: ValueId,
    pub dims: Vec<usize>,
    /// Axes of the weight that stand for output and input channels.
    pub out_axis: usize,
    pub in_axis: usize,
    pub group: usize,
    /// Axis of `x` that holds its channels.
    pub x_axis: usize,
    /// The constant that is added per output channel: an operand, or that of an Add which alone reads the result.
    pub bias: Option<ValueId>,
    /// Whether a bias can be added as an operand.
    pub takes_bias: bool,
    /// First and depthwise layers stay dense: they have few weights, and each matters.
    pub prunable: bool,
    /// Why the layer is left alone; empty if it is not.
    pub kept: String,
}

#[derive(Clone, Debug)]
pub struct Layers {
    pub rows: Vec<Layer>,
}

/// The layers of `g` in execution order. A weight that two ops share belongs to the first of them; a layer whose name
/// matches one of `keep` is left alone.
pub fn layers(g: &Graph, keep: &[regex::Regex]) -> Layers {
    let uses = g.uses();
    let mut rows: Vec<Layer> = Vec::new();
    for &op in &g.order {
        let Some(mut layer) = layer(g, &uses, op) else { continue };
        if rows.iter().any(|l| l.weight == layer.weight) {
            continue;
        }
        if uses.of(layer.weight).len() > 1 {
            layer.kept = "other ops read its weights too".to_string();
        }
        if let Some(pattern) = keep.iter().find(|p| p.is_match(&layer.name)) {
            layer.kept = format!("its name matches {pattern}");
        }
        rows.push(layer);
    }
    Layers { rows }
}

fn layer(g: &Graph, uses: &lacuna_ir::Uses, op: OpId) -> Option<Layer> {
    let (x, weight) = (g.input_of(op, 0)?, g.input_of(op, 1)?);
    g.const_f32(weight).filter(|w| !w.is_empty() && w.iter().all(|w| w.is_finite()))?;
    if g.const_bytes(x).is_some() {
        return None;
    }
    let dims = g.fixed_shape(weight)?;
    let rank = g.shape(x).len();
    let (out_axis, in_axis, group, x_axis) = match (g.op_kind[op], g.op_attr[op]) {
        (OpKind::Conv, Attr::Conv(conv)) => (0, 1, conv.group as usize, 1),
        (OpKind::Gemm, Attr::Gemm(a)) if !a.trans_a && a.alpha == 1.0 && a.beta == 1.0 => match a.trans_b {
            true => (0, 1, 1, 1),
            false => (1, 0, 1, 1),
        },
        (OpKind::MatMul, _) if dims.len() == 2 && rank >= 1 => (1, 0, 1, rank - 1),
        _ => return None,
    };
    let outputs = dims[out_axis];
    let operand = g.input_of(op, 2);
    let bias = match g.op_kind[op] {
        OpKind::MatMul => added_bias(g, uses, op, outputs),
        _ => operand.filter(|&b| is_vector(g, b, outputs)),
    };
    let depthwise = group > 1 && dims[in_axis] == 1;
    Some(Layer {
        op,
        name: g.op_name[op].clone(),
        x,
        weight,
        takes_bias: g.op_kind[op] != OpKind::MatMul && operand.is_none(),
        bias,
        prunable: !depthwise && dims[in_axis] * group > PICTURE_CHANNELS,
        out_axis,
        in_axis,
        group,
        x_axis,
        dims,
        kept: String::new(),
    })
}

fn is_vector(g: &Graph, v: ValueId, n: usize) -> bool {
    g.const_f32(v).is_some_and(|b| b.len() == n)
        && g.shape(v).last().and_then(|d| d.fixed()) == Some(n as u64)
}

/// The constant that the only reader of a product, an Add, adds per output channel.
fn added_bias(g: &Graph, uses: &lacuna_ir::Uses, op: OpId, outputs: usize) -> Option<ValueId> {
    let y = g.outputs_of(op)[0];
    let [add] = *uses.of(y) else { return None };
    if g.op_kind[add] != OpKind::Add || g.outputs.contains(&y) {
        return None;
    }
    let other = *g.inputs_of(add).iter().find(|&&v| v != y)?;
    (is_vector(g, other, outputs) && uses.of(other).len() == 1).then_some(other)
}

impl Layer {
    pub fn out_channels(&self) -> usize {
        self.dims[self.out_axis]
    }

    /// Channels of `x`.
    pub fn in_channels(&self) -> usize {
        self.dims[self.in_axis] * self.group
    }

    /// Output channel, and channel of `x`, of element `i` of the weight.
    pub fn channels(&self, i: usize) -> (usize, usize) {
        let at = |axis: usize| i / self.dims[axis + 1..].iter().product::<usize>() % self.dims[axis];
        let (out, within) = (at(self.out_axis), at(self.in_axis));
        let per_group = self.out_channels() / self.group.max(1);
        (out, out / per_group.max(1) * self.dims[self.in_axis] + within)
    }

    /// A step per output channel, such that the largest weight of each is 127 of them.
    pub fn weight_scales(&self, w: &[f32]) -> Vec<f32> {
        let mut largest = vec![0f32; self.out_channels()];
        for (i, w) in w.iter().enumerate() {
            let l = &mut largest[self.channels(i).0];
            *l = l.max(w.abs());
        }
        // A channel of zeros has any step; one so small that its square vanishes would be no number downstream.
        largest.iter().map(|&m| m.max(1e-8) / 127.0).collect()
    }

    /// The integers that weights become.
    pub fn integers(&self, w: &[f32], scales: &[f32]) -> Vec<i8> {
        let one = |(i, w): (usize, &f32)| {
            (w / scales[self.channels(i).0]).round_ties_even().clamp(-127.0, 127.0) as i8
        };
        w.iter().enumerate().map(one).collect()
    }

    /// Weights as the integers stand for them.
    pub fn rounded(&self, w: &[f32], scales: &[f32]) -> Vec<f32> {
        let integers = self.integers(w, scales);
        integers.iter().enumerate().map(|(i, &q)| q as f32 * scales[self.channels(i).0]).collect()
    }

    /// What each output channel loses on average when `old` weights become `new`, given the mean of each channel of `x`.
    /// Padding is passed over.
    pub fn lost_mean(&self, old: &[f32], new: &[f32], mean: &[f64]) -> Vec<f64> {
        let mut lost = vec![0.0; self.out_channels()];
        for (i, (a, b)) in old.iter().zip(new).enumerate() {
            let (out, channel) = self.channels(i);
            lost[out] += (f64::from(*a) - f64::from(*b)) * mean[channel];
        }
        lost
    }

    /// See [`LayerReport::error`](crate::LayerReport::error). Channels count as independent.
    pub fn relative_error(&self, old: &[f32], new: &[f32], energy: Option<&[f64]>) -> f64 {
        let (mut error, mut whole) = (0.0, 0.0);
        for (i, (a, b)) in old.iter().zip(new).enumerate() {
            let energy = energy.map_or(1.0, |e| e[self.channels(i).1]);
            error += f64::from(a - b).powi(2) * energy;
            whole += f64::from(*a).powi(2) * energy;
        }
        if whole > 0.0 { error / whole } else { 0.0 }
    }
}
