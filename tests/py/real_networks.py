"""Networks whose packages hold weights only, as ONNX: EfficientNet-Lite0 and the SSD-MobileNetV1 face detector."""

import json
import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import pth


class Network:
    """Nodes and constants in the order in which they are added."""

    def __init__(self, name):
        self.name, self.nodes, self.constants = name, [], {}

    def constant(self, name, array):
        self.constants.setdefault(name, np.ascontiguousarray(array))
        return name

    def add(self, op, inputs, output=None, **attributes):
        output = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def relu6(self, x):
        low, high = self.constant("zero", np.float32(0)), self.constant("six", np.float32(6))
        return self.add("Clip", [x, low, high])

    def batch_norm(self, x, parameters, epsilon):
        return self.add("BatchNormalization", [x, *(self.constant(*p) for p in parameters)], epsilon=epsilon)

    def save(self, path, inputs, outputs):
        info = lambda ports: [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in ports.items()]
        constants = [numpy_helper.from_array(a, n) for n, a in self.constants.items()]
        graph = helper.make_graph(self.nodes, self.name, info(inputs), info(outputs), constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, path)


# Repeats, kernel, stride, channels out of each stage of inverted residual blocks.
LITE0 = [(1, 3, 1, 16), (2, 3, 2, 24), (2, 5, 2, 40), (3, 3, 2, 80), (3, 5, 1, 112), (4, 5, 2, 192), (1, 3, 1, 320)]


def lite0(weights, path):
    """EfficientNet-Lite0 with its batch norms unfolded: x [n,3,224,224] to y [n,1000]."""
    state, net = pth.load(weights), Network("efficientnet_lite0")
    bn_parts = ("weight", "bias", "running_mean", "running_var")

    def conv(x, size, key, norm, stride=1, group=1, relu6=True):
        weight = state[f"{key}.weight"]
        kernel, out = weight.shape[2], -(-size // stride)
        pad = max((out - 1) * stride + kernel - size, 0)  # "same" as TensorFlow means it: the odd one goes behind.
        pads = [pad // 2, pad // 2, pad - pad // 2, pad - pad // 2]
        x = plain_conv(x, key, weight, kernel, stride, pads, group)
        x = net.batch_norm(x, [(f"{norm}.{p}", state[f"{norm}.{p}"]) for p in bn_parts], 1e-3)
        return (net.relu6(x) if relu6 else x), out

    def plain_conv(x, key, weight, kernel, stride, pads, group):
        weight = net.constant(f"{key}.weight", weight)
        return net.add("Conv", [x, weight], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads, group=group)

    x, size = conv("x", 224, "_conv_stem", "_bn0", stride=2)
    block, channels = 0, 32
    for repeats, kernel, first_stride, out in LITE0:
        for i in range(repeats):
            b, before, stride = f"_blocks.{block}.", x, first_stride if i == 0 else 1
            if f"{b}_expand_conv.weight" in state:
                x, size = conv(x, size, f"{b}_expand_conv", f"{b}_bn0")
            depthwise = state[f"{b}_depthwise_conv.weight"]
            assert depthwise.shape[2] == kernel, (block, depthwise.shape)
            x, size = conv(x, size, f"{b}_depthwise_conv", f"{b}_bn1", stride, group=depthwise.shape[0])
            x, size = conv(x, size, f"{b}_project_conv", f"{b}_bn2", relu6=False)
            if stride == 1 and channels == out:
                x = net.add("Add", [x, before])
            block, channels = block + 1, out
    x, _ = conv(x, size, "_conv_head", "_bn1")
    x = net.add("Flatten", [net.add("GlobalAveragePool", [x])])
    fc = [net.constant(f"_fc.{p}", state[f"_fc.{p}"]) for p in ("weight", "bias")]
    net.add("Gemm", [x, *fc], "y", transB=1)
    net.save(path, {"x": ["n", 3, 224, 224]}, {"y": ["n", 1000]})


def ssd_face(folder, path):
    """SSD-MobileNetV1: x [1,3,512,512] to boxes [1,5118,4] and scores [1,5118,3]. Weights are stored as u8 with a scale."""
    stored, state, at = (folder / "ssd_mobilenetv1_model.bin").read_bytes(), {}, 0
    for entry in json.loads((folder / "ssd_mobilenetv1_model-weights_manifest.json").read_text())[0]["weights"]:
        count, quantised = math.prod(entry["shape"]), entry.get("quantization")
        array = np.frombuffer(stored, np.uint8 if quantised else np.float32, count, at)
        at += array.nbytes
        if quantised:
            array = array.astype(np.float32) * quantised["scale"] + quantised["min"]
        state[entry["name"]] = array.reshape(entry["shape"]).astype(np.float32)
    assert at == len(stored), (at, len(stored))
    net = Network("ssd_mobilenetv1")

    def pointwise(x, key, stride=1, relu6=True, bias="convolution_bn_offset"):
        weight = state[f"{key}/weights"].transpose(3, 2, 0, 1)
        inputs = [x, net.constant(f"{key}/weights", weight), net.constant(f"{key}/{bias}", state[f"{key}/{bias}"])]
        kernel = list(weight.shape[2:])
        y = net.add("Conv", inputs, kernel_shape=kernel, strides=[stride, stride], auto_pad="SAME_UPPER")
        return net.relu6(y) if relu6 else y

    def depthwise(x, key, stride):
        weight = state[f"{key}/depthwise_weights"].transpose(2, 3, 0, 1)
        inputs, group = [x, net.constant(f"{key}/weights", weight)], weight.shape[0]
        sizes = {"kernel_shape": [3, 3], "strides": [stride, stride], "group": group}
        y = net.add("Conv", inputs, auto_pad="SAME_UPPER", **sizes)
        parts = [f"{key}/BatchNorm/{p}" for p in ("gamma", "beta", "moving_mean", "moving_variance")]
        return net.relu6(net.batch_norm(y, [(p, state[p]) for p in parts], 0.0010000000474974513))

    x = pointwise("x", "MobilenetV1/Conv2d_0_pointwise", 2)
    features = []
    for i in range(1, 14):
        x = depthwise(x, f"MobilenetV1/Conv2d_{i}_depthwise", 2 if i in (2, 4, 6, 12) else 1)
        x = pointwise(x, f"MobilenetV1/Conv2d_{i}_pointwise")
        if i in (11, 13):
            features.append(x)
    for i in range(0, 8, 2):
        x = pointwise(pointwise(x, f"Prediction/Conv2d_{i}_pointwise"), f"Prediction/Conv2d_{i + 1}_pointwise", 2)
        features.append(x)
    boxes, classes = [], []
    for i, x in enumerate(features):
        for found, part, width in ((boxes, "BoxEncodingPredictor", 4), (classes, "ClassPredictor", 3)):
            y = pointwise(x, f"Prediction/BoxPredictor_{i}/{part}", relu6=False, bias="biases")
            y = net.add("Transpose", [y], perm=[0, 2, 3, 1])
            found.append(net.add("Reshape", [y, net.constant(f"rows_of_{width}", np.array([0, -1, width]))]))
    net.add("Concat", boxes, "boxes", axis=1)
    net.add("Sigmoid", [net.add("Concat", classes, axis=1)], "scores")
    net.save(path, {"x": [1, 3, 512, 512]}, {"boxes": [1, 5118, 4], "scores": [1, 5118, 3]})
