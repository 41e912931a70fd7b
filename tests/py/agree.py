#!/usr/bin/env python3
"""Compares a classifier's logits with onnxruntime's: agree.py MODEL.onnx INPUT.npy LOGITS.npy TOP1 ATOL.

Runs MODEL on INPUT (batches of 500) with onnxruntime's default optimisations and prints one line of JSON: the share of
rows with the same top-1 and the largest difference of logits relative to their largest magnitude. Exit status 1 if
the share is below TOP1 or the difference above ATOL.
"""

import json
import sys

import numpy as np
import onnxruntime as ort

import exact


def main():
    model, inputs, logits, top1, atol = sys.argv[1:]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    session = exact.session(model, options)
    x, ours = np.load(inputs), np.load(logits)
    name = session.get_inputs()[0].name
    theirs = np.concatenate([session.run(None, {name: x[i : i + 500]})[0] for i in range(0, len(x), 500)])
    agree = float((theirs.argmax(1) == ours.argmax(1)).mean())
    off = float(np.abs(theirs - ours).max() / np.abs(theirs).max())
    print(json.dumps({"images": len(x), "top1_agreement": agree, "largest_difference": off}))
    return 0 if agree >= float(top1) and off <= float(atol) else 1


if __name__ == "__main__":
    sys.exit(main())
