//! Names of a captured graph's values and ops: module paths where there is a weight, `relu_0`, `relu_1`, ...
//! elsewhere; all distinct, and the same at every capture of one module.

use lacuna_ir::{Attr, Graph, Id, OpId, OpKind, ValueId};
use std::collections::{HashMap, HashSet};

/// Constants come in with the path of the parameter they descend from, or without a name; all else is unnamed.
pub fn name_all(g: &mut Graph, inputs: &[&str], outputs: &[&str]) {
    let ends: Vec<(ValueId, &str)> = g
        .inputs
        .iter()
        .copied()
        .zip(inputs.iter().copied())
        .chain(g.outputs.iter().copied().zip(outputs.iter().copied()))
        .collect();
    for &(v, name) in &ends {
        g.value_name[v] = name.to_string();
    }
    let mut counts = HashMap::new();
    for op in g.order.clone() {
        match g.op_kind[op] {
            OpKind::QuantizeLinear => name_quantize(g, op),
            OpKind::DequantizeLinear => name_dequantize(g, op, &mut counts),
            kind => {
                let name = module_path(g, op).unwrap_or_else(|| numbered(&mut counts, kind.name()));
                name_operands(g, op, &name);
                name_value(g, g.outputs_of(op)[0], name.clone());
                g.op_name[op] = name;
            }
        }
    }
    make_distinct(g, &ends);
}

/// Sets a name unless there is one.
fn name_value(g: &mut Graph, v: ValueId, name: String) {
    if g.value_name[v].is_empty() {
        g.value_name[v] = name;
    }
}

/// `GlobalAveragePool` becomes `global_average_pool_0`.
fn numbered(counts: &mut HashMap<String, usize>, kind: &str) -> String {
    let mut name = String::new();
    for (i, c) in kind.char_indices() {
        if c.is_ascii_uppercase() && i > 0 {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
    }
    let count = counts.entry(name.clone()).or_insert(0);
    *count += 1;
    format!("{name}_{}", *count - 1)
}

/// The module that holds the weight of a convolution, a matrix product, a normalisation or an embedding.
fn module_path(g: &Graph, op: OpId) -> Option<String> {
    use OpKind::*;
    let place = match g.op_kind[op] {
        Conv | Gemm | MatMul | BatchNormalization | LayerNormalization => 1,
        Gather => 0,
        _ => return None,
    };
    let weight = root_const(g, g.input_of(op, place)?)?;
    g.value_name[weight].rsplit_once('.').map(|(module, _)| module.to_string())
}

/// The constant behind a value: itself, or what is dequantised.
pub fn root_const(g: &Graph, v: ValueId) -> Option<ValueId> {
    if g.const_bytes(v).is_some() {
        return Some(v);
    }
    let op = g.producer(v).filter(|&op| g.op_kind[op] == OpKind::DequantizeLinear)?;
    g.input_of(op, 0).filter(|&q| g.const_bytes(q).is_some())
}

fn name_grid(g: &mut Graph, op: OpId, base: &str) {
    for (i, suffix) in [(1, "scale"), (2, "zero_point")] {
        if let Some(v) = g.input_of(op, i) {
            name_value(g, v, format!("{base}_{suffix}"));
        }
    }
}

fn name_quantize(g: &mut Graph, op: OpId) {
    let base = g.value_name[g.inputs_of(op)[0]].clone();
    name_grid(g, op, &base);
    name_value(g, g.outputs_of(op)[0], format!("{base}_quantized"));
    g.op_name[op] = format!("{base}_quantize");
}

fn name_dequantize(g: &mut Graph, op: OpId, counts: &mut HashMap<String, usize>) {
    let q = g.inputs_of(op)[0];
    let base = match g.value_name[q].as_str() {
        "" => numbered(counts, "constant"),
        name => name.strip_suffix("_quantized").unwrap_or(name).to_string(),
    };
    g.value_name[q] = format!("{base}_quantized");
    name_grid(g, op, &base);
    name_value(g, g.outputs_of(op)[0], format!("{base}_dequantized"));
    g.op_name[op] = format!("{base}_dequantize");
}

/// Constants that descend from no parameter.
fn name_operands(g: &mut Graph, op: OpId, name: &str) {
    let what = match (g.op_kind[op], g.op_attr[op]) {
        (OpKind::Reshape, _) => "shape",
        (_, Attr::None) => "operand",
        _ => "constant",
    };
    for v in g.inputs_of(op).to_vec() {
        if !v.is_none() {
            name_value(g, v, format!("{name}_{what}"));
        }
    }
}

/// A name that is taken gets `_2`, `_3`, ...; the ends of the graph keep theirs.
fn make_distinct(g: &mut Graph, ends: &[(ValueId, &str)]) {
    let mut taken: HashSet<String> = ends.iter().map(|(_, name)| name.to_string()).collect();
    for v in (0..g.value_name.len()).map(ValueId::from_index) {
        if !ends.iter().any(|&(end, _)| end == v) {
            g.value_name[v] = distinct(&mut taken, &g.value_name[v]);
        }
    }
    let mut taken = HashSet::new();
    for op in g.order.clone() {
        g.op_name[op] = distinct(&mut taken, &g.op_name[op]);
    }
}

fn distinct(taken: &mut HashSet<String>, name: &str) -> String {
    let numbered = (2..).map(|i| format!("{name}_{i}"));
    let free = std::iter::once(name.to_string()).chain(numbered).find(|n| !taken.contains(n));
    let free = free.expect("numbers do not run out");
    taken.insert(free.clone());
    free
}
