//! Shape arithmetic on numbers that are known is done while the file is read.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use super::Reader;
use lacuna_ir::shape::VALUE_BYTES_MAX;
use lacuna_ir::{Attr, Graph, OpKind, Tensor, ValueId, element_count};

/// Ops of shape arithmetic: done at once where all they read is known and small. What quantises weights is not among
/// them, nor what takes long.
const AT_ONCE: &[OpKind] = &[
    OpKind::Shape,
    OpKind::Add,
    OpKind::Sub,
    OpKind::Mul,
    OpKind::Div,
    OpKind::Mod,
    OpKind::Neg,
    OpKind::Floor,
    OpKind::Ceil,
    OpKind::Min,
    OpKind::Max,
    OpKind::Equal,
    OpKind::Less,
    OpKind::Greater,
    OpKind::And,
    OpKind::Or,
    OpKind::Not,
    OpKind::Where,
    OpKind::Cast,
    OpKind::Concat,
    OpKind::Slice,
    OpKind::Gather,
    OpKind::Squeeze,
    OpKind::Unsqueeze,
    OpKind::Reshape,
    OpKind::Expand,
    OpKind::Range,
    OpKind::ReduceProd,
    OpKind::ScatterElements,
    OpKind::ScatterND,
];

impl Reader<'_> {
    /// What is computed of small constants, or is the shape of a value, is a constant at once: rules then see it. The op
    /// was the last of the order.
    pub(super) fn settled(
        &mut self,
        kind: OpKind,
        attr: &Attr,
        inputs: &[ValueId],
        made: Vec<ValueId>,
    ) -> Vec<ValueId> {
        match self.evaluated(kind, attr, inputs, &made) {
            Some(constants) => {
                self.graph.order.pop();
                constants
            }
            None => made,
        }
    }

    fn evaluated(
        &mut self,
        kind: OpKind,
        attr: &Attr,
        inputs: &[ValueId],
        made: &[ValueId],
    ) -> Option<Vec<ValueId>> {
        if !AT_ONCE.contains(&kind) {
            return None;
        }
        let small = |g: &Graph, v: &ValueId| {
            let dims = g.fixed_shape(*v)?;
            let bytes = element_count(&dims)?.checked_mul(8)?;
            (bytes <= VALUE_BYTES_MAX).then_some(())
        };
        for v in made {
            small(&self.graph, v)?;
        }
        let mut operands: Vec<Option<Tensor>> = Vec::with_capacity(inputs.len());
        for v in inputs {
            operands.push(match v.is_none() {
                true => None,
                // A shape does not depend on the elements.
                false if kind == OpKind::Shape => {
                    let dims = self.graph.fixed_shape(*v)?.iter().map(|d| i64::try_from(*d).ok()).collect();
                    return self.constant_shape(attr, dims, made);
                }
                false => {
                    self.graph.const_bytes(*v).filter(|b| b.len() <= VALUE_BYTES_MAX)?;
                    Some(self.graph.const_tensor(*v)?)
                }
            });
        }
        let operands: Vec<Option<&Tensor>> = operands.iter().map(Option::as_ref).collect();
        let results = (kind.row().eval)(attr, &operands).ok()?;
        Some(self.constants(made, &results))
    }

    fn constant_shape(
        &mut self,
        attr: &Attr,
        dims: Option<Vec<i64>>,
        made: &[ValueId],
    ) -> Option<Vec<ValueId>> {
        let dims = dims?;
        let (start, end) = lacuna_ir::shape::shape_range(attr, dims.len()).ok()?;
        let part = dims.get(start..end)?.to_vec();
        let tensor = Tensor::from_i64(&[part.len()], part);
        Some(self.constants(made, &[tensor]))
    }

    fn constants(&mut self, made: &[ValueId], results: &[Tensor]) -> Vec<ValueId> {
        let of = |(v, t): (&ValueId, &Tensor)| {
            let name = self.graph.value_name.get(*v).cloned().unwrap_or_default();
            self.graph.add_tensor(&name, t)
        };
        made.iter().zip(results).map(of).collect()
    }
}
