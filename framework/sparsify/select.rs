//! Which values become eight-bit.
//!
//! The inputs of products (convolutions, matrix products) do. From there the wish goes backwards: through ops that only
//! move values, through sums and products of two values, and through functions of one value to that value, so that the
//! engine computes all of it on integers. What no product reads in the end (the raw results of a detector, say) stays f32.

use crate::layers::Layers;
use lacuna_ir::{DType, Def, Graph, IdVec, OpId, OpKind, ValueId};

/// Ops that move values: both sides have one scale.
const CARRIERS: &[&str] = &[
    "MaxPool",
    "Resize",
    "Reshape",
    "Transpose",
    "Flatten",
    "Concat",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
];
const MEANS: &[&str] = &["GlobalAveragePool", "AveragePool", "ReduceMean"];
/// Functions of one element, and of two where one is a number.
const ELEMENTWISE: &[&str] = &[
    "Relu",
    "Clip",
    "Sigmoid",
    "Sqrt",
    "Identity",
    "Erf",
    "Tanh",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Elu",
    "Gelu",
    "Softplus",
    "Mish",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Max",
    "Min",
];

#[derive(Clone, Copy, PartialEq)]
enum Wish {
    None,
    /// Wanted in eight bits by what follows, but not rounded itself: it goes into the op before.
    Through,
    Rounded,
}

pub fn moves_values(g: &Graph, op: OpId) -> bool {
    CARRIERS.contains(&g.op_kind[op].name())
}

/// The values of `g` that are to be quantised if the layers marked in `alone` stay f32.
pub fn values(g: &Graph, layers: &Layers, alone: &[bool]) -> IdVec<ValueId, bool> {
    let source = sources(g);
    let uses = g.uses();
    let mut wish: IdVec<ValueId, Wish> = IdVec::filled(Wish::None, g.value_name.len());
    let is_activation = |v: ValueId| {
        !v.is_none() && g.value_dtype[v] == DType::F32 && !matches!(g.value_def[v], Def::Const(_))
    };
    for &op in g.order.iter().rev() {
        let name = g.op_kind[op].name();
        let activations: Vec<ValueId> =
            g.inputs_of(op).iter().copied().filter(|&v| is_activation(v)).collect();
        if let Some(layer) = layers.rows.iter().position(|l| l.op == op) {
            if !alone[layer] && layers.rows[layer].kept.is_empty() {
                wish[layers.rows[layer].x] = Wish::Rounded;
            }
            continue;
        }
        if matches!(g.op_kind[op], OpKind::MatMul) && activations.len() == 2 {
            activations.iter().for_each(|&v| wish[v] = Wish::Rounded);
            continue;
        }
        let out = g.outputs_of(op)[0];
        if wish[out] == Wish::None {
            continue;
        }
        let through = |v: ValueId, wish: &mut IdVec<ValueId, Wish>| {
            if wish[v] == Wish::None {
                wish[v] = Wish::Through;
            }
        };
        if CARRIERS.contains(&name) || MEANS.contains(&name) {
            activations.iter().for_each(|&v| wish[v] = Wish::Rounded);
        } else if matches!(g.op_kind[op], OpKind::Relu | OpKind::Clip) || adds_bias(g, op) {
            activations.iter().for_each(|&v| through(v, &mut wish));
        } else if ELEMENTWISE.contains(&name) && source[out] != out {
            wish[source[out]] = Wish::Rounded;
        } else if matches!(g.op_kind[op], OpKind::Add | OpKind::Mul) && activations.len() == 2 {
            // The sum is part of one layer's last step: that layer's own result is never rounded.
            let joins =
                |v: ValueId| g.op_kind[op] == OpKind::Add && uses.of(v).len() == 1 && made_by_product(g, v);
            let joined = activations.iter().copied().find(|&v| joins(v));
            for &v in &activations {
                match Some(v) == joined {
                    true => through(v, &mut wish),
                    false => wish[v] = Wish::Rounded,
                }
            }
        }
    }
    let mut chosen = IdVec::filled(false, g.value_name.len());
    for v in wish.ids() {
        chosen[v] = wish[v] == Wish::Rounded && is_activation(v);
    }
    chosen
}

fn made_by_product(g: &Graph, v: ValueId) -> bool {
    g.producer(v).is_some_and(|op| match g.op_kind[op] {
        OpKind::Conv | OpKind::Gemm | OpKind::MatMul => true,
        _ => adds_bias(g, op),
    })
}

/// Whether `op` adds a constant vector to a matrix product.
fn adds_bias(g: &Graph, op: OpId) -> bool {
    let inputs = g.inputs_of(op);
    let product = |v: &ValueId| g.producer(*v).is_some_and(|p| g.op_kind[p] == OpKind::MatMul);
    let vector = |v: &ValueId| g.const_f32(*v).is_some_and(|c| c.len() > 1);
    g.op_kind[op] == OpKind::Add && inputs.iter().any(product) && inputs.iter().any(vector)
}

/// For each value the one that it is a function of, element by element; itself if it is none.
fn sources(g: &Graph) -> IdVec<ValueId, ValueId> {
    let mut source = IdVec::new();
    for v in g.value_name.ids() {
        source.push(v);
    }
    for &op in &g.order {
        if !ELEMENTWISE.contains(&g.op_kind[op].name()) {
            continue;
        }
        let mut of = None;
        let single = g.inputs_of(op).iter().filter(|v| !v.is_none()).all(|&v| match g.value_def[v] {
            Def::Const(_) => g.const_f32(v).is_some_and(|c| c.len() == 1),
            _ => *of.get_or_insert(source[v]) == source[v],
        });
        if let (true, Some(of)) = (single, of) {
            source[g.outputs_of(op)[0]] = of;
        }
    }
    source
}
