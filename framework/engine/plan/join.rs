//! Values that are joined along their channels are written where the join has them, so that joining copies nothing.

use super::place::Demand;
use lacuna_ir::{Attr, DType, Graph, Id, OpId, OpKind, ValueId};

/// Where a value lies within a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    pub whole: ValueId,
    /// Its first channel there.
    pub channel: usize,
}

/// For every value, the slice of a join that it is written to, if any.
pub type Slices = Vec<Option<Slice>>;

/// Finds the slices and widens the demand on every join to what its parts' readers ask for.
pub fn slices(g: &Graph, demands: &mut [Option<Demand>]) -> Slices {
    let mut slices = vec![None; g.value_name.len()];
    // Later joins first, so that a join within a join knows where it lies.
    for &op in g.order.iter().rev().filter(|&&op| g.op_kind[op] == OpKind::Concat) {
        let whole = g.outputs_of(op)[0];
        let Attr::Axis(axis) = g.op_attr[op] else { continue };
        if g.shape(whole).len() != 4 || axis.rem_euclid(4) != 3 {
            continue;
        }
        let mut channel = 0;
        for (i, &part) in g.inputs_of(op).iter().enumerate() {
            if let Some(cut) = split_of(g, &g.inputs_of(op)[i..])
                && slices[cut.index()].is_none()
                && is_written(g, cut)
                && split_demand(g, demands, cut, part)
                && widen(demands, &slices, whole, demands[cut.index()])
            {
                slices[cut.index()] = Some(Slice { whole, channel });
            }
            let width = g.shape(part)[3].fixed().unwrap_or(0) as usize;
            // Whole registers of bytes, as in a buffer of its own.
            let aligned = channel % 16 == 0 || g.value_dtype[part] == DType::F32;
            let fits = aligned && slices[part.index()].is_none() && is_written(g, part);
            if fits && widen(demands, &slices, whole, demands[part.index()]) {
                slices[part.index()] = Some(Slice { whole, channel });
            }
            channel += width;
        }
    }
    slices
}

/// The f32 value whose parts, cut along channels, all follow here in order.
fn split_of(g: &Graph, joined: &[ValueId]) -> Option<ValueId> {
    let split = g.producer(joined[0]).filter(|&op| g.op_kind[op] == OpKind::Split)?;
    let axis = g.op_attr[split].numbers::<1>().ok()?[0].int();
    let whole = axis.rem_euclid(4) == 3 && joined.starts_with(g.outputs_of(split));
    let cut = g.inputs_of(split)[0];
    (whole && g.shape(cut).len() == 4 && g.value_dtype[cut] == DType::F32).then_some(cut)
}

/// Widens the demand on a value that is split to those on its parts, of which `part` is one. False where borders contradict
/// each other.
fn split_demand(g: &Graph, demands: &mut [Option<Demand>], cut: ValueId, part: ValueId) -> bool {
    let split = g.producer(part).expect("a part is made by a split");
    let mut all = demands[cut.index()];
    for demand in g.outputs_of(split).iter().filter_map(|y| demands[y.index()]) {
        match all.map_or(Some(demand), |known| known.join(demand)) {
            Some(wider) => all = Some(wider),
            None => return false,
        }
    }
    demands[cut.index()] = all;
    true
}

/// Widens the demand on `whole`, and on what that is a slice of. False where borders contradict each other.
fn widen(demands: &mut [Option<Demand>], slices: &Slices, whole: ValueId, part: Option<Demand>) -> bool {
    let Some(part) = part else { return true };
    let mut wider = Vec::new();
    let mut next = Some(whole);
    while let Some(v) = next {
        let known = demands[v.index()].unwrap_or(Demand::BARE);
        let Some(joined) = known.join(part) else { return false };
        wider.push((v, joined));
        next = slices[v.index()].map(|s| s.whole);
    }
    wider.into_iter().for_each(|(v, joined)| demands[v.index()] = Some(joined));
    true
}

/// Whether a step writes `v`, rather than giving other strides to a value that is there.
fn is_written(g: &Graph, v: ValueId) -> bool {
    use OpKind::*;
    let writes = |op: OpId| {
        let kind = g.op_kind[op];
        let integer = matches!(kind, QConv | QAdd | QMul | QLookup | QuantizeLinear | QuantizeSilu);
        let float = matches!(
            kind,
            FusedConv
                | FusedConvTranspose
                | Add
                | Mul
                | Sigmoid
                | Silu
                | HardSwish
                | LeakyRelu
                | Relu
                | Clip
                | DequantizeLinear
        );
        integer || float || matches!(kind, MaxPoolNhwc | AveragePoolNhwc | ResizeNhwc | Concat)
    };
    g.producer(v).is_some_and(writes)
}
