//! Ops that a file may use and that are other ops put together: they are written out before the file is read.
//!
//! Here are the integer forms of onnxruntime's quantiser (QOperator): `QLinearX` is `QuantizeLinear(X(DequantizeLinear ..))`
//! by its definition, so that the engine finds the pairs it makes integer ops of; and the fused ops that
//! onnxruntime's optimiser leaves in the files it saves.

#![deny(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions
)]

use crate::error::{Error, Result};
use crate::functions::{graphs_of_mut, note_names};
use crate::proto::attribute_proto::AttributeType;
use crate::proto::{AttributeProto, GraphProto, NodeProto};
use crate::read::is_default_domain;
use std::collections::HashSet;

pub const MICROSOFT: &str = "com.microsoft";

/// One op that others stand for.
struct Composite {
    domain: &'static str,
    name: &'static str,
    /// The fewest and the most inputs.
    inputs: (usize, usize),
    write_out: fn(&NodeProto, &mut Parts<'_>) -> Result<(), String>,
}

const fn row(
    domain: &'static str,
    name: &'static str,
    inputs: (usize, usize),
    write_out: fn(&NodeProto, &mut Parts<'_>) -> Result<(), String>,
) -> Composite {
    Composite { domain, name, inputs, write_out }
}

const COMPOSITES: &[Composite] = &[
    row("", "QLinearConv", (8, 9), qlinear_conv),
    row("", "QLinearMatMul", (8, 8), qlinear_matmul),
    row(MICROSOFT, "QLinearConv", (8, 9), qlinear_conv),
    row(MICROSOFT, "QGemm", (6, 9), qgemm),
    row(MICROSOFT, "QLinearAdd", (7, 8), |n, p| qlinear_binary("Add", n, p)),
    row(MICROSOFT, "QLinearMul", (7, 8), |n, p| qlinear_binary("Mul", n, p)),
    row(MICROSOFT, "QLinearSigmoid", (4, 5), |n, p| qlinear_unary("Sigmoid", n, p)),
    row(MICROSOFT, "QLinearLeakyRelu", (4, 5), |n, p| qlinear_unary("LeakyRelu", n, p)),
    row(MICROSOFT, "QLinearSoftmax", (5, 5), |n, p| qlinear_unary("Softmax", n, p)),
    row(MICROSOFT, "QLinearAveragePool", (4, 5), |n, p| qlinear_unary("AveragePool", n, p)),
    row(MICROSOFT, "QLinearGlobalAveragePool", (5, 5), |n, p| qlinear_unary("GlobalAveragePool", n, p)),
    row(MICROSOFT, "QLinearReduceMean", (4, 5), |n, p| qlinear_unary("ReduceMean", n, p)),
    row(MICROSOFT, "QLinearConcat", (4, 2 + 3 * 64), qlinear_concat),
    row(MICROSOFT, "QLinearWhere", (9, 9), qlinear_where),
    row(MICROSOFT, "QuantizeLinear", (2, 3), |n, p| renamed("QuantizeLinear", n, p)),
    row(MICROSOFT, "DequantizeLinear", (2, 3), |n, p| renamed("DequantizeLinear", n, p)),
    row(MICROSOFT, "MatMulIntegerToFloat", (4, 7), matmul_to_float),
    row(MICROSOFT, "DynamicQuantizeMatMul", (3, 5), dynamic_matmul),
    row(MICROSOFT, "FusedConv", (2, 4), fused_conv),
    row(MICROSOFT, "FusedGemm", (2, 3), fused_gemm),
    row(MICROSOFT, "FusedMatMul", (2, 2), fused_matmul),
    row(MICROSOFT, "Gelu", (1, 1), gelu),
    row(MICROSOFT, "BiasGelu", (2, 2), gelu),
    row(MICROSOFT, "FastGelu", (1, 2), fast_gelu),
    row(MICROSOFT, "QuickGelu", (1, 1), quick_gelu),
    row(MICROSOFT, "SkipLayerNormalization", (3, 5), skip_layer_norm),
];

/// The nodes of a composite, as they are added.
struct Parts<'n> {
    nodes: Vec<NodeProto>,
    /// The composite's name and its first output's: those of the parts begin with them.
    name: String,
    output: String,
    taken: &'n mut HashSet<String>,
}

/// Replaces every composite of the graph and its sub-graphs.
pub fn write_out(graph: &mut GraphProto) -> Result<()> {
    if !has_composites(graph) {
        return Ok(());
    }
    let mut taken = HashSet::new();
    note_names(graph, &mut taken);
    in_graph(graph, &mut taken)
}

fn find(node: &NodeProto) -> Option<&'static Composite> {
    let domain = if is_default_domain(&node.domain) { "" } else { node.domain.as_str() };
    COMPOSITES.iter().find(|row| row.name == node.op_type && row.domain == domain)
}

fn has_composites(graph: &mut GraphProto) -> bool {
    graph.node.iter_mut().any(|node| {
        find(node).is_some() || node.attribute.iter_mut().flat_map(graphs_of_mut).any(has_composites)
    })
}

fn in_graph(graph: &mut GraphProto, taken: &mut HashSet<String>) -> Result<()> {
    let mut nodes = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        let Some(row) = find(&node) else {
            for inner in node.attribute.iter_mut().flat_map(graphs_of_mut) {
                in_graph(inner, taken)?;
            }
            nodes.push(node);
            continue;
        };
        let output = node.output.first().cloned().unwrap_or_default();
        let name = if node.name.is_empty() { output.clone() } else { node.name.clone() };
        let wrong = |why: String| Error::Arity { node: name.clone(), op: node.op_type.clone(), why };
        let (fewest, most) = row.inputs;
        if node.input.len() < fewest || node.input.len() > most {
            return Err(wrong(format!("it takes {fewest} to {most} inputs, not {}", node.input.len())));
        }
        if output.is_empty() {
            return Err(wrong("its first output has no name".to_string()));
        }
        let mut parts = Parts { nodes: Vec::new(), name: name.clone(), output, taken };
        (row.write_out)(&node, &mut parts).map_err(wrong)?;
        nodes.append(&mut parts.nodes);
    }
    graph.node = nodes;
    Ok(())
}

// ---- parts -----------------------------------------------------------------------------------------

impl Parts<'_> {
    fn push(&mut self, op: &str, inputs: &[&str], outputs: Vec<String>, attribute: Vec<AttributeProto>) {
        let used = inputs.iter().rposition(|i| !i.is_empty()).map_or(0, |i| i.saturating_add(1));
        let input = inputs.iter().take(used).map(|i| i.to_string()).collect();
        let name = format!("{}/{op}", self.name);
        let op_type = op.to_string();
        self.nodes.push(NodeProto {
            name,
            op_type,
            input,
            output: outputs,
            attribute,
            ..NodeProto::default()
        });
    }

    fn unused(&mut self, part: &str) -> String {
        let mut name = format!("{}/{part}", self.output);
        while !self.taken.insert(name.clone()) {
            name.push('_');
        }
        name
    }

    /// One op; its result gets a name of its own.
    fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let name = self.unused(op);
        self.push(op, inputs, vec![name.clone()], attributes);
        name
    }

    /// The op that makes the composite's result.
    fn last(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) {
        let output = self.output.clone();
        self.push(op, inputs, vec![output], attributes);
    }

    fn number(&mut self, value: f32) -> String {
        self.op("Constant", &[], vec![float("value_float", value)])
    }

    /// `DequantizeLinear` of three inputs that follow each other; `axis` is where a list of scales runs along.
    fn dequantised(&mut self, node: &NodeProto, first: usize, axis: i64) -> String {
        let [q, scale, zero] = [0, 1, 2].map(|i| input(node, first.saturating_add(i)));
        self.op("DequantizeLinear", &[q, scale, zero], vec![int("axis", axis)])
    }

    /// An i32 bias, in steps of the product of two scales.
    fn bias(&mut self, bias: &str, scales: [&str; 2]) -> String {
        if bias.is_empty() {
            return String::new();
        }
        let steps = self.op("Mul", &scales, vec![]);
        self.op("DequantizeLinear", &[bias, &steps], vec![int("axis", -1)])
    }

    /// `QuantizeLinear` to the scale and zero point at `first`.
    fn quantise_last(&mut self, x: &str, node: &NodeProto, first: usize) {
        let [scale, zero] = [input(node, first), input(node, first.saturating_add(1))];
        self.last("QuantizeLinear", &[x, scale, zero], vec![]);
    }
}

/// Input `i`, or "" if it is absent.
fn input(node: &NodeProto, i: usize) -> &str {
    node.input.get(i).map_or("", String::as_str)
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_string(),
        r#type: AttributeType::Int.into(),
        i,
        ..AttributeProto::default()
    }
}

fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto {
        name: name.to_string(),
        r#type: AttributeType::Float.into(),
        f,
        ..AttributeProto::default()
    }
}

/// The node's attributes but for these. Whether an op knows the others is asked where it is read.
fn others(node: &NodeProto, own: &[&str]) -> Vec<AttributeProto> {
    node.attribute.iter().filter(|a| !own.contains(&a.name.as_str())).cloned().collect()
}

fn attribute<'n>(node: &'n NodeProto, name: &str) -> Option<&'n AttributeProto> {
    node.attribute.iter().find(|a| a.name == name)
}

/// An attribute that must be absent or 0.
fn zero(node: &NodeProto, name: &str) -> Result<(), String> {
    match attribute(node, name) {
        Some(a) if a.i != 0 => Err(format!("'{name}' = {} is not supported", a.i)),
        _ => Ok(()),
    }
}

// ---- integer forms ---------------------------------------------------------------------------------

fn renamed(op: &str, node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    p.last(op, &[input(node, 0), input(node, 1), input(node, 2)], node.attribute.clone());
    Ok(())
}

fn qlinear_conv(node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    zero(node, "channels_last")?;
    let (x, w) = (p.dequantised(node, 0, 1), p.dequantised(node, 3, 0));
    let bias = p.bias(input(node, 8), [input(node, 1), input(node, 4)]);
    let y = p.op("Conv", &[&x, &w, &bias], others(node, &["channels_last"]));
    p.quantise_last(&y, node, 6);
    Ok(())
}

/// Scales of `a` run along its rows, those of `b` along its columns.
fn qlinear_matmul(node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    let (a, b) = (p.dequantised(node, 0, -2), p.dequantised(node, 3, -1));
    let y = p.op("MatMul", &[&a, &b], node.attribute.clone());
    p.quantise_last(&y, node, 6);
    Ok(())
}

/// Without a scale of the result it is f32. The bias counts in steps of `alpha` and both scales.
fn qgemm(node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    let rows = attribute(node, "transB").is_some_and(|a| a.i != 0);
    let (a, b) = (p.dequantised(node, 0, -1), p.dequantised(node, 3, if rows { 0 } else { 1 }));
    let alpha = attribute(node, "alpha").map_or(1.0, |a| a.f);
    let mut scale = input(node, 1).to_string();
    if alpha != 1.0 {
        let alpha = p.number(alpha);
        scale = p.op("Mul", &[&scale, &alpha], vec![]);
    }
    let bias = p.bias(input(node, 6), [&scale, input(node, 4)]);
    let attributes = node.attribute.clone();
    if input(node, 7).is_empty() {
        p.last("Gemm", &[&a, &b, &bias], attributes);
    } else {
        let y = p.op("Gemm", &[&a, &b, &bias], attributes);
        p.quantise_last(&y, node, 7);
    }
    Ok(())
}

fn qlinear_binary(op: &str, node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    let (a, b) = (p.dequantised(node, 0, 1), p.dequantised(node, 3, 1));
    let y = p.op(op, &[&a, &b], node.attribute.clone());
    p.quantise_last(&y, node, 6);
    Ok(())
}

fn qlinear_unary(op: &str, node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    zero(node, "channels_last")?;
    // A softmax of before operator set 13 runs over all axes from one on; the engine's over one.
    if let Some(opset) = attribute(node, "opset").filter(|a| a.i < 13) {
        return Err(format!("'opset' = {} is not supported: quantise a model of 13 or later", opset.i));
    }
    let x = p.dequantised(node, 0, 1);
    let y = p.op(op, &[&x], others(node, &["channels_last", "opset"]));
    p.quantise_last(&y, node, 3);
    Ok(())
}

/// The result's scale and zero point come first, then three inputs for each part.
fn qlinear_concat(node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    let parts: Vec<String> =
        (2..node.input.len()).step_by(3).map(|first| p.dequantised(node, first, 1)).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let y = p.op("Concat", &parts, node.attribute.clone());
    p.quantise_last(&y, node, 0);
    Ok(())
}

fn qlinear_where(node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    let (x, y) = (p.dequantised(node, 1, 1), p.dequantised(node, 4, 1));
    let z = p.op("Where", &[input(node, 0), &x, &y], node.attribute.clone());
    p.quantise_last(&z, node, 7);
    Ok(())
}

/// a, b, both scales, both zero points, bias.
fn matmul_to_float(node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    let [a, b, a_scale, b_scale, a_zero, b_zero, bias] = [0, 1, 2, 3, 4, 5, 6].map(|i| input(node, i));
    let a = p.op("DequantizeLinear", &[a, a_scale, a_zero], vec![int("axis", -2)]);
    let b = p.op("DequantizeLinear", &[b, b_scale, b_zero], vec![int("axis", -1)]);
    matmul_and_bias(node, p, &a, &b, bias)
}

/// a f32, b, its scale and zero point, bias.
fn dynamic_matmul(node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    let parts = ["quantised", "scale", "zero_point"].map(|part| p.unused(part));
    p.push("DynamicQuantizeLinear", &[input(node, 0)], parts.to_vec(), vec![]);
    let [q, scale, zero] = &parts;
    let a = p.op("DequantizeLinear", &[q, scale, zero], vec![]);
    let b = p.dequantised(node, 1, -1);
    matmul_and_bias(node, p, &a, &b, input(node, 4))
}

fn matmul_and_bias(node: &NodeProto, p: &mut Parts<'_>, a: &str, b: &str, bias: &str) -> Result<(), String> {
    if bias.is_empty() {
        p.last("MatMul", &[a, b], node.attribute.clone());
    } else {
        let y = p.op("MatMul", &[a, b], node.attribute.clone());
        p.last("Add", &[&y, bias], vec![]);
    }
    Ok(())
}

// ---- fused ops of onnxruntime's optimiser ------------------------------------------------------------

/// The fourth input is a residual that is added before the activation.
fn fused_conv(node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    let inputs = [input(node, 0), input(node, 1), input(node, 2)];
    let mut y = p.op("Conv", &inputs, others(node, &["activation", "activation_params"]));
    if !input(node, 3).is_empty() {
        y = p.op("Add", &[&y, input(node, 3)], vec![]);
    }
    let parameters = attribute(node, "activation_params").map_or(&[][..], |a| &a.floats);
    activation(node, p, &y, parameters)
}

fn fused_gemm(node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    let own = ["activation", "activation_alpha", "activation_beta", "activation_gamma"];
    let y = p.op("Gemm", &[input(node, 0), input(node, 1), input(node, 2)], others(node, &own));
    let parameters = own.iter().skip(1).filter_map(|name| attribute(node, name)).map(|a| a.f);
    activation(node, p, &y, &parameters.collect::<Vec<f32>>())
}

fn activation(node: &NodeProto, p: &mut Parts<'_>, y: &str, parameters: &[f32]) -> Result<(), String> {
    let name = attribute(node, "activation").map_or(Ok(""), |a| std::str::from_utf8(&a.s));
    let name = name.map_err(|_| "'activation' is not UTF-8")?;
    match (name, parameters) {
        ("Relu" | "Sigmoid" | "Tanh", _) => p.last(name, &[y], vec![]),
        ("", _) => p.last("Identity", &[y], vec![]),
        ("LeakyRelu", [alpha]) => p.last(name, &[y], vec![float("alpha", *alpha)]),
        ("HardSigmoid", [alpha, beta]) => {
            p.last(name, &[y], vec![float("alpha", *alpha), float("beta", *beta)]);
        }
        ("Clip", [min, max]) => {
            let (min, max) = (p.number(*min), p.number(*max));
            p.last(name, &[y, &min, &max], vec![]);
        }
        _ => return Err(format!("the activation '{name}' with {parameters:?} is not supported")),
    }
    Ok(())
}

fn fused_matmul(node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    for name in ["transA", "transB", "transBatchA", "transBatchB"] {
        zero(node, name)?;
    }
    let alpha = attribute(node, "alpha").map_or(1.0, |a| a.f);
    if alpha == 1.0 {
        p.last("MatMul", &[input(node, 0), input(node, 1)], vec![]);
    } else {
        let y = p.op("MatMul", &[input(node, 0), input(node, 1)], vec![]);
        let alpha = p.number(alpha);
        p.last("Mul", &[&y, &alpha], vec![]);
    }
    Ok(())
}

/// x, or x and a bias, through `x * 0.5 * (1 + erf(x / sqrt(2)))`.
fn gelu(node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    let x = with_bias(node, p);
    let (root, one, half) = (p.number(std::f32::consts::SQRT_2), p.number(1.0), p.number(0.5));
    let inner = p.op("Div", &[&x, &root], vec![]);
    let erf = p.op("Erf", &[&inner], vec![]);
    let sum = p.op("Add", &[&erf, &one], vec![]);
    let product = p.op("Mul", &[&x, &sum], vec![]);
    p.last("Mul", &[&product, &half], vec![]);
    Ok(())
}

/// `x * 0.5 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))` (Hendrycks and Gimpel 2016).
fn fast_gelu(node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    let x = with_bias(node, p);
    let [cube_factor, root, one, half] = [0.044_715, 0.797_884_6, 1.0, 0.5].map(|value| p.number(value));
    let square = p.op("Mul", &[&x, &x], vec![]);
    let cube = p.op("Mul", &[&square, &x], vec![]);
    let cube = p.op("Mul", &[&cube, &cube_factor], vec![]);
    let inner = p.op("Add", &[&x, &cube], vec![]);
    let inner = p.op("Mul", &[&inner, &root], vec![]);
    let tanh = p.op("Tanh", &[&inner], vec![]);
    let sum = p.op("Add", &[&tanh, &one], vec![]);
    let product = p.op("Mul", &[&x, &sum], vec![]);
    p.last("Mul", &[&product, &half], vec![]);
    Ok(())
}

fn with_bias(node: &NodeProto, p: &mut Parts<'_>) -> String {
    match input(node, 1) {
        "" => input(node, 0).to_string(),
        bias => p.op("Add", &[input(node, 0), bias], vec![]),
    }
}

fn quick_gelu(node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    let alpha = p.number(attribute(node, "alpha").map_or(1.702, |a| a.f));
    let inner = p.op("Mul", &[input(node, 0), &alpha], vec![]);
    let gate = p.op("Sigmoid", &[&inner], vec![]);
    p.last("Mul", &[input(node, 0), &gate], vec![]);
    Ok(())
}

/// x, what is added to it, scale, bias, and a bias of the sum. The fourth output, where it has a name, is the sum.
fn skip_layer_norm(node: &NodeProto, p: &mut Parts<'_>) -> Result<(), String> {
    let mut sum = p.op("Add", &[input(node, 0), input(node, 1)], vec![]);
    if !input(node, 4).is_empty() {
        sum = p.op("Add", &[&sum, input(node, 4)], vec![]);
    }
    if let Some(named) = node.output.get(3).filter(|o| !o.is_empty()) {
        p.push("Identity", &[&sum], vec![named.clone()], vec![]);
    }
    p.last("LayerNormalization", &[&sum, input(node, 2), input(node, 3)], node.attribute.clone());
    Ok(())
}
