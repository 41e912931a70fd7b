#!/usr/bin/env python3
"""Checks ONNX files with the onnx package: check_onnx.py FILE...

Runs the full checker and strict shape inference, which also compares the shapes that the file states
with those that onnx infers. Prints one line per file ("ok FILE" or "FAIL FILE: why"); exit status 1 if any fails.
"""

import sys

import onnx


def check(path):
    """Raises an exception that says what is wrong with the file."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def main(paths):
    failed = 0
    for path in paths:
        try:
            check(path)
            print("ok", path)
        except Exception as error:  # Whatever the package raises is the finding.
            failed += 1
            print(f"FAIL {path}: {one_line(error)}")
    return 1 if failed else 0


def one_line(error):
    return f"{type(error).__name__}: {error}".replace("\n", " ")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
