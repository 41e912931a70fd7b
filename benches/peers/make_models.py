#!/usr/bin/env python3
"""The networks of the comparison with other runtimes, as ONNX files with seeded random weights (*synthetic*).

    python3 benches/peers/make_models.py OUT [--models resnet50 ...] [--sparsity 0 0.9 ...]

For each network and sparsity it writes `NAME-SPARSITY-fp32.onnx` and two int8 files with QuantizeLinear /
DequantizeLinear pairs, because runtimes differ in what they fuse:

* `-int8.onnx`: every activation is quantised, as onnxruntime's own tool does it;
* `-int8i.onnx`: only the inputs of convolutions, matrix products and residual sums are, as NNCF does it.

Weights are normal (He); pruning is by magnitude, layer by layer, and leaves the first and all depthwise convolutions
dense, as the models of SparseZoo do. int8 weights are symmetric per channel, activations u8 per tensor with ranges
from two random inputs. Speed does not depend on what the weights are, only on how many are zero and where.
"""

import argparse
import pathlib

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


class Net:
    """Nodes and weights of one network; methods append a layer and return its output's name."""

    def __init__(self, sparsity, seed=0):
        self.sparsity, self.rng = sparsity, np.random.default_rng(seed)
        self.nodes, self.weights, self.names = [], {}, {}

    def name(self, kind):
        self.names[kind] = self.names.get(kind, 0) + 1
        return f"{kind}_{self.names[kind]}"

    def const(self, value, kind="const"):
        name = self.name(kind)
        self.weights[name] = np.array(value, order="C")
        return name

    def op(self, kind, inputs, **attrs):
        out = self.name(kind.lower())
        self.nodes.append(helper.make_node(kind, inputs, [out], name=out, **attrs))
        return out

    def pruned(self, shape, fan_in, prune, gain):
        sparsity = self.sparsity if prune else 0.0
        w = self.rng.standard_normal(shape, dtype=np.float32)
        if sparsity > 0:
            flat = np.abs(w).ravel()
            k = int(round(sparsity * flat.size))
            w.ravel()[np.argpartition(flat, k - 1)[:k]] = 0.0
        # The same variance of the sums at every sparsity.
        return w * np.float32(gain / np.sqrt(max(np.mean(w.astype(np.float64) ** 2), 1e-9) * fan_in))

    def conv(self, x, cin, cout, k, stride=1, group=1, act=None, prune=True, gain=None):
        gain = gain or (np.sqrt(2.0) if act in ("relu", "relu6") else 1.2 if act == "silu" else 1.0)
        w = self.pruned((cout, cin // group, k, k), cin // group * k * k, prune and group == 1, gain)
        b = self.rng.standard_normal(cout).astype(np.float32) * 0.1
        pad = (k - 1) // 2 if k != 6 else 2
        y = self.op(
            "Conv", [x, self.const(w, "weight"), self.const(b, "bias")],
            kernel_shape=[k, k], strides=[stride] * 2, pads=[pad] * 4, group=group,
        )
        return self.act(y, act)

    def act(self, y, act):
        if act == "relu":
            return self.op("Relu", [y])
        if act == "relu6":
            return self.op("Clip", [y, self.const(np.float32(0)), self.const(np.float32(6))])
        if act == "silu":
            return self.op("Mul", [y, self.op("Sigmoid", [y])])
        if act == "sigmoid":
            return self.op("Sigmoid", [y])
        return y

    def gemm(self, x, k, n):
        w = self.pruned((n, k), k, True, 1.0)
        b = self.rng.standard_normal(n).astype(np.float32) * 0.1
        return self.op("Gemm", [x, self.const(w, "weight"), self.const(b, "bias")], transB=1)

    def linear(self, x, k, n):
        """`x @ w + b`, as PyTorch writes a linear layer of three dimensions."""
        w = self.pruned((k, n), k, True, 1.0)
        b = self.rng.standard_normal(n).astype(np.float32) * 0.1
        return self.op("Add", [self.op("MatMul", [x, self.const(w, "weight")]), self.const(b, "bias")])


def resnet50(net):
    x = net.conv("input", 3, 64, 7, 2, act="relu", prune=False)
    x = net.op("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    c = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            y = net.conv(x, c, width, 1, act="relu")
            y = net.conv(y, width, width, 3, stride, act="relu")
            y = net.conv(y, width, width * 4, 1, gain=0.5)
            if block == 0:
                x = net.conv(x, c, width * 4, 1, stride)
            x = net.op("Relu", [net.op("Add", [y, x])])
            c = width * 4
    x = net.op("Flatten", [net.op("GlobalAveragePool", [x])], axis=1)
    return net.gemm(x, c, 1000)


def mobilenet_v1(net):
    x = net.conv("input", 3, 32, 3, 2, act="relu", prune=False)
    c = 32
    for width, stride in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]:
        x = net.conv(x, c, c, 3, stride, group=c, act="relu")
        x = net.conv(x, c, width, 1, act="relu")
        c = width
    x = net.op("Flatten", [net.op("GlobalAveragePool", [x])], axis=1)
    return net.gemm(x, c, 1000)


def efficientnet_b0(net):
    x = net.conv("input", 3, 32, 3, 2, act="silu", prune=False)
    c = 32
    rows = [(1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)]
    for expand, k, first, width, repeats in rows:
        for i in range(repeats):
            stride, mid = first if i == 0 else 1, c * expand
            y = net.conv(x, c, mid, 1, act="silu") if expand > 1 else x
            y = net.conv(y, mid, mid, k, stride, group=mid, act="silu")
            squeeze = max(1, c // 4)
            s = net.op("GlobalAveragePool", [y])
            s = net.conv(s, mid, squeeze, 1, act="silu")
            s = net.conv(s, squeeze, mid, 1, act="sigmoid")
            y = net.op("Mul", [y, s])
            y = net.conv(y, mid, width, 1)
            x = net.op("Add", [y, x]) if stride == 1 and c == width else y
            c = width
    x = net.conv(x, c, 1280, 1, act="silu")
    x = net.op("Flatten", [net.op("GlobalAveragePool", [x])], axis=1)
    return net.gemm(x, 1280, 1000)


def yolov5s(net):
    """Version 6: CSP backbone, SPPF, PAN; the raw maps of the three heads, as exported for other runtimes."""

    def c3(x, cin, cout, n, shortcut=True):
        mid = cout // 2
        a = net.conv(x, cin, mid, 1, act="silu")
        for _ in range(n):
            y = net.conv(net.conv(a, mid, mid, 1, act="silu"), mid, mid, 3, act="silu")
            a = net.op("Add", [a, y]) if shortcut else y
        b = net.conv(x, cin, mid, 1, act="silu")
        return net.conv(net.op("Concat", [a, b], axis=1), 2 * mid, cout, 1, act="silu")

    def up(x):
        scales = net.const(np.array([1, 1, 2, 2], np.float32))
        return net.op("Resize", [x, "", scales], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")

    x = net.conv("input", 3, 32, 6, 2, act="silu", prune=False)
    x = net.conv(x, 32, 64, 3, 2, act="silu")
    x = c3(x, 64, 64, 1)
    x = net.conv(x, 64, 128, 3, 2, act="silu")
    p3 = c3(x, 128, 128, 2)
    x = net.conv(p3, 128, 256, 3, 2, act="silu")
    p4 = c3(x, 256, 256, 3)
    x = net.conv(p4, 256, 512, 3, 2, act="silu")
    x = c3(x, 512, 512, 1)
    x = net.conv(x, 512, 256, 1, act="silu")
    pools = [x]
    for _ in range(3):
        pools.append(net.op("MaxPool", [pools[-1]], kernel_shape=[5, 5], strides=[1, 1], pads=[2] * 4))
    x = net.conv(net.op("Concat", pools, axis=1), 1024, 512, 1, act="silu")
    h5 = net.conv(x, 512, 256, 1, act="silu")
    x = c3(net.op("Concat", [up(h5), p4], axis=1), 512, 256, 1, False)
    h4 = net.conv(x, 256, 128, 1, act="silu")
    d3 = c3(net.op("Concat", [up(h4), p3], axis=1), 256, 128, 1, False)
    x = net.conv(d3, 128, 128, 3, 2, act="silu")
    d4 = c3(net.op("Concat", [x, h4], axis=1), 256, 256, 1, False)
    x = net.conv(d4, 256, 256, 3, 2, act="silu")
    d5 = c3(net.op("Concat", [x, h5], axis=1), 512, 512, 1, False)
    return [net.conv(d, c, 255, 1) for d, c in ((d3, 128), (d4, 256), (d5, 512))]


def bert_base(net, tokens):
    h, heads = 768, 12

    def norm(x):
        return net.op("LayerNormalization", [x, net.const(np.ones(h, np.float32)), net.const(np.zeros(h, np.float32))], axis=-1, epsilon=1e-12)

    def shaped(x, *dims):
        return net.op("Reshape", [x, net.const(np.array(dims, np.int64))])

    table = lambda n: net.const(net.rng.standard_normal((n, h), dtype=np.float32) * 0.5, "weight")
    words = net.op("Gather", [table(30522), "input_ids"], axis=0)
    kinds = net.op("Gather", [table(2), "token_type_ids"], axis=0)
    x = net.op("Add", [net.op("Add", [words, kinds]), net.const(net.rng.standard_normal((1, tokens, h)).astype(np.float32) * 0.5)])
    x = norm(x)
    mask = net.op("Cast", [net.op("Unsqueeze", ["attention_mask", net.const(np.array([1, 2], np.int64))])], to=TensorProto.FLOAT)
    mask = net.op("Mul", [net.op("Sub", [net.const(np.float32(1)), mask]), net.const(np.float32(-10000))])
    for _ in range(12):
        q, k, v = (shaped(net.linear(x, h, h), 0, 0, heads, h // heads) for _ in range(3))
        q, v = (net.op("Transpose", [t], perm=[0, 2, 1, 3]) for t in (q, v))
        k = net.op("Transpose", [k], perm=[0, 2, 3, 1])
        s = net.op("Div", [net.op("MatMul", [q, k]), net.const(np.float32(np.sqrt(h / heads)))])
        p = net.op("Softmax", [net.op("Add", [s, mask])], axis=-1)
        y = net.op("Transpose", [net.op("MatMul", [p, v])], perm=[0, 2, 1, 3])
        y = net.linear(shaped(y, 0, 0, h), h, h)
        x = norm(net.op("Add", [y, x]))
        y = net.linear(x, h, 4 * h)
        e = net.op("Erf", [net.op("Div", [y, net.const(np.float32(np.sqrt(2)))])])
        y = net.op("Mul", [net.op("Mul", [y, net.op("Add", [e, net.const(np.float32(1))])]), net.const(np.float32(0.5))])
        x = norm(net.op("Add", [net.linear(y, 4 * h, h), x]))
    first = net.op("Gather", [x, net.const(np.int64(0))], axis=1)
    return net.gemm(net.op("Tanh", [net.gemm(first, h, h)]), h, 2)


def images(side):
    return [("input", TensorProto.FLOAT, ["batch", 3, side, side])]


def sentences(tokens):
    return [(n, TensorProto.INT64, ["batch", tokens]) for n in ("input_ids", "attention_mask", "token_type_ids")]


MODELS = {
    "resnet50": (resnet50, images(224)),
    "mobilenet_v1": (mobilenet_v1, images(224)),
    "efficientnet_b0": (efficientnet_b0, images(224)),
    "yolov5s": (yolov5s, images(640)),
    "bert_base_128": (lambda net: bert_base(net, 128), sentences(128)),
    "bert_base_384": (lambda net: bert_base(net, 384), sentences(384)),
}


def example_inputs(ports, batch, rng):
    out = {}
    for name, kind, dims in ports:
        shape = [batch, *dims[1:]]
        if kind == TensorProto.FLOAT:
            out[name] = rng.standard_normal(shape, dtype=np.float32)
        elif name == "attention_mask":
            out[name] = np.ones(shape, np.int64)
        else:
            out[name] = rng.integers(0, 2 if name == "token_type_ids" else 30522, shape)
    return out


def model_of(nodes, weights, ports, outputs, name):
    inputs = [helper.make_tensor_value_info(*port) for port in ports]
    outs = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
    tensors = [numpy_helper.from_array(w, n) for n, w in weights.items()]
    graph = helper.make_graph(nodes, name, inputs, outs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="lacuna-benches")
    model.ir_version = 8
    return onnx.shape_inference.infer_shapes(model)


# Ops that may run on integers, and ops that a quantised value passes unchanged.
PRODUCTS = {"Conv", "Gemm", "MatMul"}
CARRIES = {"MaxPool", "Resize", "Reshape", "Transpose", "Flatten", "Concat"}
EVERYWHERE = PRODUCTS | CARRIES | {"Add", "Mul", "Sigmoid", "GlobalAveragePool"}


def quantised(nodes, weights, ports, outputs, name, everywhere):
    """The same network with QuantizeLinear / DequantizeLinear pairs."""
    makers = {n.output[0]: n for n in nodes}
    readers = {}
    for n in nodes:
        for i in n.input:
            readers.setdefault(i, []).append(n)
    text = any(kind != TensorProto.FLOAT for _, kind, _ in ports)

    def activation(v):
        return v and v not in weights and (v in makers or any(v == p[0] and p[1] == TensorProto.FLOAT for p in ports))

    def wanted(n, v):
        """Whether op `n` reads `v` quantised."""
        if not activation(v):
            return False
        if text or not everywhere:
            return n.op_type in PRODUCTS or (
                not text and n.op_type == "Add" and (makers[v].op_type != "Conv" or len(readers[v]) > 1))
        return n.op_type in EVERYWHERE

    chosen = {v for n in nodes for v in n.input if wanted(n, v)}
    if text and everywhere:
        # The results of linear layers too: an integer product then writes integers.
        chosen |= {n.output[0] for n in nodes if n.op_type == "Add" and makers.get(n.input[0]) is not None
                   and makers[n.input[0]].op_type == "MatMul" and n.input[1] in weights}
    ranges = calibrate(nodes, weights, ports, chosen, name)
    # Ops that carry values along have one scale on both sides: group them.
    group = {v: v for v in chosen}

    def root(v):
        while group[v] != v:
            v = group[v]
        return v

    for n in nodes:
        if n.op_type in CARRIES:
            for v in n.input:
                if v in chosen and n.output[0] in chosen:
                    group[root(v)] = root(n.output[0])
    params = {}
    for v in chosen:
        lo = min(ranges[u][0] for u in chosen if root(u) == root(v))
        hi = max(ranges[u][1] for u in chosen if root(u) == root(v))
        scale = np.float32(max(hi - lo, 1e-6) / 255)
        params[v] = (scale, np.uint8(np.clip(round(-lo / scale), 0, 255)))
    out, consts = [], dict(weights)

    def pair(v):
        s, z = f"{v}_scale", f"{v}_zero"
        consts[s], consts[z] = params[v]
        out.append(helper.make_node("QuantizeLinear", [v, s, z], [f"{v}_q"], name=f"{v}_quantize"))
        out.append(helper.make_node("DequantizeLinear", [f"{v}_q", s, z], [f"{v}_dq"], name=f"{v}_dequantize"))

    for p in ports:
        if p[0] in chosen:
            pair(p[0])
    for n in nodes:
        inputs = [f"{v}_dq" if v in chosen and wanted(n, v) else v for v in n.input]
        if everywhere and text and n.op_type != "MatMul":
            # Whoever reads a quantised result of a linear layer reads it as it was rounded.
            inputs = [f"{v}_dq" if v in chosen else v for v in n.input]
        if n.op_type in PRODUCTS and n.input[1] in weights and n.input[0] in chosen:
            w = weights[n.input[1]]
            axis = 1 if n.op_type == "MatMul" else 0
            others = tuple(i for i in range(w.ndim) if i != axis)
            scale = (np.maximum(np.abs(w).max(axis=others), 1e-8) / 127).astype(np.float32)
            steps = scale.reshape([-1 if i == axis else 1 for i in range(w.ndim)])
            q, s, z, dq = (f"{n.input[1]}_{part}" for part in ("q", "scale", "zero", "dq"))
            consts.pop(n.input[1], None)
            consts[q] = np.clip(np.rint(w / steps), -127, 127).astype(np.int8)
            consts[s], consts[z] = scale, np.zeros(len(scale), np.int8)
            out.append(helper.make_node("DequantizeLinear", [q, s, z], [dq], name=f"{n.input[1]}_dequantize", axis=axis))
            inputs[1] = dq
            if len(inputs) > 2:
                both = (scale * params[n.input[0]][0]).astype(np.float32)
                b, bs, bz, bdq = (f"{n.input[2]}_{part}" for part in ("q", "scale", "zero", "dq"))
                consts[b] = np.rint(consts.pop(n.input[2]) / both).astype(np.int32)
                consts[bs], consts[bz] = both, np.zeros(len(both), np.int32)
                out.append(helper.make_node("DequantizeLinear", [b, bs, bz], [bdq], name=f"{n.input[2]}_dequantize", axis=0))
                inputs[2] = bdq
        copy = onnx.NodeProto()
        copy.CopyFrom(n)
        copy.input[:] = inputs
        out.append(copy)
        if n.output[0] in chosen:
            pair(n.output[0])
    return model_of(out, consts, ports, outputs, name)


def calibrate(nodes, weights, ports, chosen, name):
    values = sorted(v for v in chosen if v not in [p[0] for p in ports])
    model = model_of(nodes, weights, ports, values, name)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = example_inputs(ports, 2, np.random.default_rng(7))
    ranges = dict(zip(values, ((min(float(a.min()), 0.0), max(float(a.max()), 0.0)) for a in session.run(values, inputs))))
    ranges |= {p[0]: (float(inputs[p[0]].min()), float(inputs[p[0]].max())) for p in ports if p[0] in chosen}
    return ranges


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.9])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.models:
        build, ports = MODELS[name]
        for sparsity in args.sparsity:
            net = Net(sparsity)
            outputs = build(net)
            outputs = outputs if isinstance(outputs, list) else [outputs]
            stem = f"{name}-{round(sparsity * 1000) / 10:g}"
            files = {
                "fp32": model_of(net.nodes, net.weights, ports, outputs, name),
                "int8": quantised(net.nodes, net.weights, ports, outputs, name, True),
                "int8i": quantised(net.nodes, net.weights, ports, outputs, name, False),
            }
            for kind, model in files.items():
                path = args.out / f"{stem}-{kind}.onnx"
                onnx.save(model, path)
                print(path, f"{path.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
