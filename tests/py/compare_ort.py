#!/usr/bin/env python3
"""Checks models and compares their results with onnxruntime's: compare_ort.py [--rtol R] [--optimise] CASE...

A CASE is a directory with model.onnx, input_0.npy, input_1.npy, ... in the order of the model's inputs, and
output_0.npy, ... : the results that are expected. Each model is checked as check_onnx.py does and run with
onnxruntime on one thread, without graph optimisations unless --optimise is given. Integers must be equal; a float may
be off by R (default 1e-5) times the largest finite magnitude of its tensor. NaN equals NaN.

Prints one line per case ("ok CASE error=E" or "FAIL CASE: why"); exit status 1 if any fails.
"""

import argparse
import pathlib
import sys

import numpy as np
import onnxruntime as ort

import exact
from check_onnx import check, one_line


def run(path, optimise):
    """The model's outputs for the case's inputs."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = exact.session(path / "model.onnx", options)
    inputs = {x.name: np.load(path / f"input_{i}.npy") for i, x in enumerate(session.get_inputs())}
    return session.run(None, inputs)


def difference(got, want, rtol):
    """The largest error relative to the tensor's magnitude; raises ValueError where it is too large."""
    if got.dtype != want.dtype or got.shape != want.shape:
        raise ValueError(f"is {want.dtype}{list(want.shape)}, onnxruntime has {got.dtype}{list(got.shape)}")
    if want.dtype != np.float32:
        differ = int(np.count_nonzero(got != want))
        if differ:
            at = np.argwhere(got != want)[0]
            raise ValueError(f"{differ} of {want.size} differ, first at {at.tolist()}: {want[tuple(at)]}, onnxruntime has {got[tuple(at)]}")
        return 0.0
    finite = np.isfinite(want)
    if not np.array_equal(np.where(finite, 0, got), np.where(finite, 0, want), equal_nan=True):
        raise ValueError("infinite or undefined elements differ")
    if not finite.any():
        return 0.0
    wide = want[finite].astype(np.float64)
    scale = np.abs(wide).max()
    error = np.abs(got[finite].astype(np.float64) - wide)
    relative = float(error.max() / scale) if scale > 0 else float(error.max())
    if not relative <= rtol:
        raise ValueError(f"off by {relative:.3g} of the largest magnitude {scale:.3g}, {rtol:g} is allowed")
    return relative


def compare(path, rtol, optimise):
    check(str(path / "model.onnx"))
    worst = 0.0
    outputs = run(path, optimise)
    if len(outputs) != len(list(path.glob("output_*.npy"))):
        raise ValueError(f"onnxruntime returns {len(outputs)} outputs")
    for i, got in enumerate(outputs):
        try:
            worst = max(worst, difference(got, np.load(path / f"output_{i}.npy"), rtol))
        except ValueError as error:
            raise ValueError(f"output {i} {error}") from None
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtol", type=float, default=1e-5)
    parser.add_argument("--optimise", action="store_true")
    parser.add_argument("cases", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    failed = 0
    for path in args.cases:
        try:
            print(f"ok {path.name} error={compare(path, args.rtol, args.optimise):.3g}")
        except Exception as error:  # Whatever onnx or onnxruntime raises is the finding.
            failed += 1
            print(f"FAIL {path.name}: {one_line(error)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
