//! The graph again, op by op, with other weights and with QuantizeLinear / DequantizeLinear pairs, or with layers that
//! quantise their inputs while they run.

use crate::error::Result;
use crate::layers::{Layer, Layers};
use crate::range::{Ranges, Scale};
use lacuna_ir::{Attr, DType, Def, Graph, IdVec, OpKind, Tensor, ValueId};

/// A layer's weights, and a step per output channel if they become integers.
type Weights = (Vec<f32>, Option<Vec<f32>>);

/// What is to be other in the new graph.
pub struct Edits {
    pub ranges: Ranges,
    /// Layers whose weights become integers quantise their inputs while they run.
    pub dynamic: bool,
    /// Of every layer.
    weights: IdVec<ValueId, Option<Weights>>,
    /// Constants with other elements.
    constants: IdVec<ValueId, Option<Vec<f32>>>,
    /// Biases of layers that have none, by the layer's weight.
    new_biases: IdVec<ValueId, Option<Vec<f32>>>,
}

impl Edits {
    pub fn none(g: &Graph) -> Edits {
        let values = g.value_name.len();
        Edits {
            ranges: Ranges::none(g),
            dynamic: false,
            weights: IdVec::filled(None, values),
            constants: IdVec::filled(None, values),
            new_biases: IdVec::filled(None, values),
        }
    }

    pub fn set_weight(&mut self, layer: &Layer, weights: Vec<f32>, scales: Option<Vec<f32>>) {
        self.weights[layer.weight] = Some((weights, scales));
    }

    fn is_integer(&self, layer: &Layer) -> bool {
        matches!(&self.weights[layer.weight], Some((_, Some(_))))
    }

    /// Adds `by` to a layer's bias. A matrix product that has none stays without.
    pub fn shift(&mut self, g: &Graph, layer: &Layer, by: &[f64]) {
        let add = |b: &[f32]| b.iter().zip(by).map(|(b, by)| (f64::from(*b) + by) as f32).collect();
        match layer.bias.and_then(|b| Some((b, g.const_f32(b)?))) {
            Some((bias, old)) => self.constants[bias] = Some(add(&old)),
            None if layer.takes_bias => {
                self.new_biases[layer.weight] = Some(add(&vec![0.0; layer.out_channels()]));
            }
            None => {}
        }
    }
}

pub fn rewrite(g: &Graph, layers: &Layers, edits: &Edits) -> Result<Graph> {
    let mut w = Writer {
        g,
        edits,
        new: Graph::new(&g.name),
        plain: IdVec::filled(None, g.value_name.len()),
        rounded: IdVec::filled(None, g.value_name.len()),
        ranged: IdVec::filled(None, g.value_name.len()),
    };
    w.new.metadata.clone_from(&g.metadata);
    w.new.symbols.clone_from(&g.symbols);
    w.new.bodies.clone_from(&g.bodies);
    for &v in &g.inputs {
        let input = w.new.add_input(&g.value_name[v], g.value_dtype[v], g.shape(v));
        w.made(v, input)?;
    }
    for &op in &g.order {
        let layer = layers.rows.iter().find(|l| l.op == op);
        let mut inputs = Vec::with_capacity(3);
        for &v in g.inputs_of(op) {
            inputs.push(if layer.is_some_and(|l| l.weight == v) { ValueId::NONE } else { w.read(v) });
        }
        if let Some(layer) = layer {
            if edits.dynamic && edits.is_integer(layer) {
                let y = w.dynamic_layer(layer, &inputs)?;
                w.made(g.outputs_of(op)[0], y)?;
                continue;
            }
            w.weigh(layer, &mut inputs)?;
        }
        let names: Vec<&str> = g.outputs_of(op).iter().map(|&v| g.value_name[v].as_str()).collect();
        let outputs = w.new.add_op(g.op_kind[op], g.op_attr[op], &g.op_name[op], &inputs, &names)?;
        for (&v, made) in g.outputs_of(op).iter().zip(outputs) {
            w.made(v, made)?;
        }
    }
    for &v in &g.outputs {
        let output = match w.plain[v] {
            Some(plain) => plain,
            None => w.read(v),
        };
        w.new.outputs.push(output);
    }
    Ok(w.new)
}

struct Writer<'a> {
    g: &'a Graph,
    edits: &'a Edits,
    new: Graph,
    plain: IdVec<ValueId, Option<ValueId>>,
    /// After its pair.
    rounded: IdVec<ValueId, Option<ValueId>>,
    /// Bytes, scale and zero point of the range it has in a run.
    ranged: IdVec<ValueId, Option<[ValueId; 3]>>,
}

impl Writer<'_> {
    /// What an op reads where it read `v`.
    fn read(&mut self, v: ValueId) -> ValueId {
        if v.is_none() {
            return v;
        }
        if let Some(new) = self.rounded[v].or(self.plain[v]) {
            return new;
        }
        let (g, name) = (self.g, &self.g.value_name[v]);
        let new = match (&self.edits.constants[v], g.value_def[v]) {
            (Some(elements), _) => {
                let dims = g.fixed_shape(v).expect("a constant's shape is fixed");
                self.new.add_tensor(name, &Tensor::from_f32(&dims, elements.clone()))
            }
            (None, Def::Const(c)) => {
                let dims = g.fixed_shape(v).expect("a constant's shape is fixed");
                let bytes = g.consts[c].clone();
                self.new.add_const(name, g.value_dtype[v], &dims, bytes).expect("a constant fills its shape")
            }
            _ => unreachable!("'{name}' is read before it is made: the graph was verified"),
        };
        self.plain[v] = Some(new);
        new
    }

    /// `new` stands for `v` from here on; a pair follows if `v` becomes eight-bit.
    fn made(&mut self, v: ValueId, new: ValueId) -> Result<()> {
        self.plain[v] = Some(new);
        let Some(Scale { scale, zero }) = self.edits.ranges.0[v] else { return Ok(()) };
        let name = self.g.value_name[v].clone();
        let scale = self.new.add_tensor(&format!("{name}_scale"), &Tensor::from_f32(&[], vec![scale]));
        let zero = self.new.add_tensor(&format!("{name}_zero_point"), &Tensor::from_u8(&[], vec![zero]));
        let q = self.op(OpKind::QuantizeLinear, Attr::Axis(1), &name, "quantized", &[new, scale, zero])?;
        let x = self.op(OpKind::DequantizeLinear, Attr::Axis(1), &name, "dequantized", &[q, scale, zero])?;
        self.rounded[v] = Some(x);
        Ok(())
    }

    /// Puts a layer's new weights, and its bias, among its operands.
    fn weigh(&mut self, layer: &Layer, inputs: &mut Vec<ValueId>) -> Result<()> {
        let name = self.g.value_name[layer.weight].clone();
        if let Some(bias) = &self.edits.new_biases[layer.weight] {
            inputs.resize(3, ValueId::NONE);
            inputs[2] =
                self.new.add_tensor(&format!("{name}_bias"), &Tensor::from_f32(&[bias.len()], bias.clone()));
        }
        let (weights, scales) = self.edits.weights[layer.weight].as_ref().expect("every layer has weights");
        let x_scale = self.edits.ranges.0[layer.x];
        let (Some(scales), Some(x_scale)) = (scales, x_scale) else {
            inputs[1] = self.new.add_tensor(&name, &Tensor::from_f32(&layer.dims, weights.clone()));
            return Ok(());
        };
        let integers = Tensor::from_i8(&layer.dims, layer.integers(weights, scales));
        let zeros = Tensor::from_i8(&[scales.len()], vec![0; scales.len()]);
        inputs[1] = self.dequantize(&name, &integers, scales, &zeros, layer.out_axis as i32)?;
        if let Some(&bias) = inputs.get(2).filter(|v| !v.is_none())
            && let Some(old) = self.new.const_f32(bias).filter(|b| b.len() == scales.len())
        {
            let steps: Vec<f32> = scales.iter().map(|s| s * x_scale.scale).collect();
            let ints: Vec<f64> = old
                .iter()
                .zip(&steps)
                .map(|(b, s)| (f64::from(*b) / f64::from(*s)).round_ties_even())
                .collect();
            if ints.iter().all(|i| i.abs() < f64::from(i32::MAX)) {
                let ints = Tensor::from_i32(&[steps.len()], ints.iter().map(|&i| i as i32).collect());
                let zeros = Tensor::from_i32(&[steps.len()], vec![0; steps.len()]);
                let name = self.new.value_name[bias].clone();
                inputs[2] = self.dequantize(&name, &ints, &steps, &zeros, 0)?;
            }
        }
        Ok(())
    }

    /// A layer as `Cast(ConvInteger(q, w, z)) * (scale * w_scale) + bias`, or with MatMulInteger, as onnxruntime's tool for
    /// dynamic quantisation writes it.
    fn dynamic_layer(&mut self, layer: &Layer, inputs: &[ValueId]) -> Result<ValueId> {
        let (weights, scales) = self.edits.weights[layer.weight].as_ref().expect("every layer has weights");
        let scales = scales.as_ref().expect("the layer is integer");
        let name = self.g.value_name[layer.weight].clone();
        let out = self.g.value_name[self.g.outputs_of(layer.op)[0]].clone();
        let conv = self.g.op_kind[layer.op] == OpKind::Conv;
        let mut integers = layer.integers(weights, scales);
        let mut dims = layer.dims.clone();
        if !conv && layer.out_axis == 0 {
            // MatMulInteger takes [K, N].
            let [n, k] = [dims[0], dims[1]];
            integers = (0..k * n).map(|i| integers[i % n * k + i / n]).collect();
            dims = vec![k, n];
        }
        // Channels lie along axis 1 of an image, along the last axis of a product.
        let along = |n: usize| if conv { [vec![1, n], vec![1; dims.len() - 2]].concat() } else { vec![n] };
        let channels = along(scales.len());
        let [q, scale, zero] = self.range_of_run(layer.x, inputs[0])?;
        let w = self.new.add_tensor(&format!("{name}_quantized"), &Tensor::from_i8(&dims, integers));
        let (kind, attr) = match conv {
            true => (OpKind::ConvInteger, self.g.op_attr[layer.op]),
            false => (OpKind::MatMulInteger, Attr::None),
        };
        let sum = self.op(kind, attr, &out, "integer", &[q, w, zero])?;
        let sum = self.op(OpKind::Cast, Attr::Cast(DType::F32), &out, "cast", &[sum])?;
        let steps = Tensor::from_f32(&channels, scales.clone());
        let steps = self.new.add_tensor(&format!("{name}_scale"), &steps);
        let steps = self.op(OpKind::Mul, Attr::None, &out, "scale", &[scale, steps])?;
        let bias = match (&self.edits.new_biases[layer.weight], inputs.get(2).filter(|v| !v.is_none())) {
            (Some(bias), _) => Some(bias.clone()),
            (None, Some(&bias)) => self.new.const_f32(bias).map(|b| b.into_owned()),
            (None, None) => None,
        };
        let Some(bias) = bias else { return self.op(OpKind::Mul, Attr::None, &out, "", &[sum, steps]) };
        let product = self.op(OpKind::Mul, Attr::None, &out, "product", &[sum, steps])?;
        // A bias of a Gemm may be one number.
        let dims = if bias.len() == scales.len() { channels } else { vec![bias.len()] };
        let bias = self.new.add_tensor(&format!("{name}_bias"), &Tensor::from_f32(&dims, bias));
        self.op(OpKind::Add, Attr::None, &out, "", &[product, bias])
    }

    /// `v`, which is `x` in the new graph, as bytes, with their scale and zero point; once for all its readers.
    fn range_of_run(&mut self, v: ValueId, x: ValueId) -> Result<[ValueId; 3]> {
        if let Some(ranged) = self.ranged[v] {
            return Ok(ranged);
        }
        let name = &self.g.value_name[v];
        let parts = ["quantized", "scale", "zero_point"].map(|part| format!("{name}_{part}"));
        let names = [parts[0].as_str(), parts[1].as_str(), parts[2].as_str()];
        let made = self.new.add_op(OpKind::DynamicQuantizeLinear, Attr::None, names[0], &[x], &names)?;
        let ranged = [made[0], made[1], made[2]];
        self.ranged[v] = Some(ranged);
        Ok(ranged)
    }

    /// An op of one result, called after the value `of` and, if it is not that value itself, its part in it.
    fn op(&mut self, kind: OpKind, attr: Attr, of: &str, part: &str, inputs: &[ValueId]) -> Result<ValueId> {
        let name = if part.is_empty() { of.to_string() } else { format!("{of}_{part}") };
        Ok(self.new.add_op(kind, attr, &name, inputs, &[&name])?[0])
    }

    fn dequantize(
        &mut self,
        name: &str,
        integers: &Tensor,
        scales: &[f32],
        zeros: &Tensor,
        axis: i32,
    ) -> Result<ValueId> {
        let q = self.new.add_tensor(&format!("{name}_quantized"), integers);
        let scale = Tensor::from_f32(&[scales.len()], scales.to_vec());
        let scale = self.new.add_tensor(&format!("{name}_scale"), &scale);
        let zero = self.new.add_tensor(&format!("{name}_zero_point"), zeros);
        self.op(OpKind::DequantizeLinear, Attr::Axis(axis), name, "dequantized", &[q, scale, zero])
    }
}
