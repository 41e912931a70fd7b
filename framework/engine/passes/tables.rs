//! Functions of one eight-bit value become tables.
//!
//! Whatever elementwise ops stand between the dequantised bytes of one value and a QuantizeLinear, there are only 256
//! results: `DQ -> Sigmoid -> Q`, `Q(Mul(DQ(x), DQ(Q(Sigmoid(DQ(x))))))` (SiLU as onnxruntime's tool quantises it),
//! a GELU written out, or `DQ -> Q` from one scale to another.

use super::rewrite::*;
use crate::error::Result;
use lacuna_ir::{Attr, DType, Graph, IdVec, OpId, OpKind, Tensor, ValueId};
use std::rc::Rc;

/// A value as a function of the bytes of `source`: element `q` is its value where the source holds `q`.
#[derive(Clone)]
struct Function {
    source: ValueId,
    values: Rc<[f32]>,
}

/// Bytes that are those of `source`, looked up.
#[derive(Clone)]
struct Table {
    source: ValueId,
    bytes: Rc<[u8]>,
}

/// What is known of an f32 value: as a function of the nearest bytes, and of the bytes that those are functions of.
#[derive(Clone, Default)]
struct Known {
    near: Option<Function>,
    far: Option<Function>,
}

/// Rewrites every QuantizeLinear of a function of one value's bytes.
pub fn lower_tables(g: &mut Graph) -> Result<usize> {
    let mut floats: IdVec<ValueId, Known> = IdVec::filled(Known::default(), g.value_name.len());
    let mut tables: IdVec<ValueId, Option<Table>> = IdVec::filled(None, g.value_name.len());
    let mut changes = 0;
    for op in g.order.clone() {
        let out = g.outputs_of(op)[0];
        match g.op_kind[op] {
            OpKind::DequantizeLinear => {
                if let Some((q, _)) = dequantised(g, out) {
                    floats[out] = dequantise(g, op, q, tables[q].as_ref());
                }
            }
            OpKind::QuantizeLinear => {
                let x = g.inputs_of(op)[0];
                if tensor_params(g, op).is_none() || g.value_dtype[out] != DType::U8 {
                    continue;
                }
                let Known { near, far } = floats[x].clone();
                let Some(f) = near.or(far).filter(|f| g.shape(f.source) == g.shape(out)) else { continue };
                let Some(table) = quantise(g, op, &f) else { continue };
                let deepest = match &tables[f.source] {
                    Some(first) => Table {
                        source: first.source,
                        bytes: first.bytes.iter().map(|&q| table[q as usize]).collect(),
                    },
                    None => Table { source: f.source, bytes: Rc::from(&table[..]) },
                };
                let y = look_up(g, op, f.source, &table)?;
                g.replace_uses(out, y);
                // Rows of new values: the tables are as long as the graph's.
                while floats.len() < g.value_name.len() {
                    floats.push(Known::default());
                    tables.push(None);
                }
                tables[y] = Some(deepest);
                changes += 1;
            }
            _ => floats[out] = elementwise(g, op, &floats),
        }
    }
    sweep(g);
    Ok(changes)
}

/// `QLookup` of `source`, named after `op` and placed before it.
pub fn look_up(g: &mut Graph, op: OpId, source: ValueId, table: &[u8]) -> Result<ValueId> {
    let name = g.op_name[op].clone();
    let table = constant(g, &format!("{name}/table"), &Tensor::from_u8(&[256], table.to_vec()));
    op_before(g, op, OpKind::QLookup, Attr::None, &name, &[source, table])
}

fn dequantise(g: &Graph, op: OpId, q: ValueId, table: Option<&Table>) -> Known {
    let values = |bytes: &[u8]| -> Option<Rc<[f32]>> {
        let x = Tensor::from_u8(&[256], bytes.to_vec());
        let [scale, zero] = [1, 2].map(|i| g.const_tensor(g.inputs_of(op)[i]));
        let (scale, zero) = (scale?, zero?);
        evaluate(g, op, &[Some(&x), Some(&scale), Some(&zero)])
    };
    let all: Vec<u8> = (0..=255).collect();
    let near = values(&all).map(|values| Function { source: q, values });
    let far = match table {
        Some(t) => values(&t.bytes).map(|values| Function { source: t.source, values }),
        None => near.clone(),
    };
    Known { near, far }
}

/// The table of a QuantizeLinear whose input is `f`.
fn quantise(g: &Graph, op: OpId, f: &Function) -> Option<Vec<u8>> {
    let x = Tensor::from_f32(&[256], f.values.to_vec());
    let (scale, zero) = (g.const_tensor(g.inputs_of(op)[1])?, g.const_tensor(g.inputs_of(op)[2])?);
    let y = (g.op_kind[op].row().eval)(&g.op_attr[op], &[Some(&x), Some(&scale), Some(&zero)]).ok()?;
    Some(y.first()?.as_u8()?.to_vec())
}

fn evaluate(g: &Graph, op: OpId, inputs: &[Option<&Tensor>]) -> Option<Rc<[f32]>> {
    let y = (g.op_kind[op].row().eval)(&g.op_attr[op], inputs).ok()?;
    y.first()?.as_f32().filter(|y| y.len() == 256).map(Rc::from)
}

/// An elementwise op on functions of one value and on single numbers is a function of that value.
fn elementwise(g: &Graph, op: OpId, floats: &IdVec<ValueId, Known>) -> Known {
    use OpKind::*;
    let unary = matches!(
        g.op_kind[op],
        Relu | Sigmoid
            | Clip
            | Sqrt
            | Identity
            | Erf
            | Tanh
            | HardSigmoid
            | HardSwish
            | LeakyRelu
            | Elu
            | Celu
            | Selu
            | ThresholdedRelu
            | Softplus
            | Softsign
            | Mish
            | Gelu
    );
    if !unary && !matches!(g.op_kind[op], Add | Sub | Mul | Div) {
        return Known::default();
    }
    let combine = |pick: fn(&Known) -> Option<&Function>| -> Option<Function> {
        let mut source = None;
        let mut operands = Vec::with_capacity(2);
        for &v in g.inputs_of(op) {
            operands.push(match (const_scalar(g, v), pick(&floats[v])) {
                (Some(x), _) => Tensor::from_f32(&[], vec![x]),
                (None, Some(f)) if *source.get_or_insert(f.source) == f.source => {
                    Tensor::from_f32(&[256], f.values.to_vec())
                }
                _ => return None,
            });
        }
        let operands: Vec<Option<&Tensor>> = operands.iter().map(Some).collect();
        Some(Function { source: source?, values: evaluate(g, op, &operands)? })
    };
    Known { near: combine(|k| k.near.as_ref()), far: combine(|k| k.far.as_ref()) }
}
