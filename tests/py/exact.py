"""onnxruntime sessions whose products of integers are exact on every processor.

On processors with AVX2 and without VNNI onnxruntime multiplies u8 with s8 by an instruction that adds pairs of products
in 16 bits, with saturation: what it computes there is not what the file says (its documentation of quantisation advises
smaller weights). Its products of u8 with u8 are exact. So where a probe saturates, weights of s8 are shifted to u8, 128
higher like their zero points: the same numbers. Elsewhere the file is run as it is.
"""

import functools
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

# Inputs of each op that are weights, and those of their zero points.
WEIGHTS = {
    "QLinearConv": [(3, 5)],
    "QLinearMatMul": [(3, 5)],
    "QGemm": [(3, 5)],
    "ConvInteger": [(1, 3)],
    "MatMulInteger": [(1, 3)],
    "MatMulIntegerToFloat": [(1, 5)],
    "DynamicQuantizeMatMul": [(1, 3)],
    "DynamicQuantizeLSTM": [(1, 9), (2, 11)],
    "DequantizeLinear": [(0, 2)],
}


def session(model, options):
    """A session for a file (path) or for bytes."""
    if saturates():
        proto = onnx.load(model) if not isinstance(model, bytes) else onnx.load_from_string(model)
        if shift(proto.graph):
            model = proto.SerializeToString()
    model = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@functools.cache
def saturates():
    """Whether 255 · 127, four times, is less than that here."""
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "probe",
        [tensor("x", TensorProto.UINT8, [1, 64])],
        [tensor("y", TensorProto.INT32, [1, 16])],
        [numpy_helper.from_array(np.full((64, 16), 127, np.int8), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    probe = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = int(probe.run(None, {"x": np.full((1, 64), 255, np.uint8)})[0].min())
    if found != 64 * 255 * 127:
        print("onnxruntime saturates here: it gets s8 weights as u8", file=sys.stderr)
    return found != 64 * 255 * 127


def shift(graph):
    """Shifts all weights of s8, in place, and says whether there are any."""
    tensors = {t.name: t for t in graph.initializer}
    shifted = set()

    def up(name):
        if name not in shifted:
            values = numpy_helper.to_array(tensors[name]).astype(np.int16) + 128
            tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.uint8), name))
            shifted.add(name)

    for node in graph.node:
        for weight, zero in WEIGHTS.get(node.op_type, []):
            name = node.input[weight] if weight < len(node.input) else ""
            if name not in tensors or tensors[name].data_type != TensorProto.INT8 and name not in shifted:
                continue
            up(name)
            node.input.extend([""] * (zero + 1 - len(node.input)))
            if not node.input[zero]:
                scale = tensors.get(node.input[1]) if node.op_type == "DequantizeLinear" else None
                dims = tuple(scale.dims) if scale else ()
                node.input[zero] = f"{node.output[0]}.zero"
                graph.initializer.append(numpy_helper.from_array(np.full(dims, 128, np.uint8), node.input[zero]))
            elif node.input[zero] in tensors:
                up(node.input[zero])
            elif not node.input[zero].endswith(".zero"):
                raise ValueError(f"{node.name}: the zero point of a weight is computed")
    return bool(shifted)
