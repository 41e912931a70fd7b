"""Counts the multiplications of a network: all of them, and those with a weight that is not zero.

    python3 benches/peers/macs.py FILE-fp32.onnx      # prints {"all": N, "nonzero": N}, of one image or text
"""

import json
import math
import sys

import numpy as np
import onnx
from onnx import numpy_helper


def count(path):
    graph = onnx.load(path).graph
    weights = {t.name: t for t in graph.initializer}
    shapes = {
        v.name: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim]
        for v in [*graph.input, *graph.output, *graph.value_info]
    }
    every = nonzero = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        out = shapes[node.output[0]]
        if node.input[1] not in weights:
            every += math.prod(out) * shapes[node.input[0]][-1]
            nonzero += math.prod(out) * shapes[node.input[0]][-1]
            continue
        w = numpy_helper.to_array(weights[node.input[1]])
        # How often each weight is used: for every pixel, or for every row.
        uses = math.prod(out[2:]) if node.op_type == "Conv" else math.prod(out[:-1])
        every += w.size * uses
        nonzero += int(np.count_nonzero(w)) * uses
    return {"all": every, "nonzero": nonzero}


if __name__ == "__main__":
    print(json.dumps(count(sys.argv[1])))
