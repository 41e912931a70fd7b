#!/usr/bin/env python3
"""Latency of ONNX files on lacuna and on onnxruntime, in turns, so that a ratio holds when the machine's speed drifts.

    cargo build --release
    python3 -m venv target/py && target/py/bin/pip install -r tests/py/requirements.txt
    target/py/bin/python benches/peers.py target/release/lacuna MODEL.onnx... [--batch 1 64] [--rounds 7] [--cores 2]

Each round measures lacuna for a second (its own `benchmark` verb), then onnxruntime for a second (default
optimisations), on the same file, batch and number of cores. Printed are the medians over the rounds of each round's
median, in milliseconds, and the median of the rounds' ratios.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy as np
import onnxruntime as ort


def lacuna_ms(binary, model, batch, cores):
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out.json"
        words = [binary, "benchmark", model, "-b", str(batch), "-ncores", str(cores), "-t", "1", "-w", "0.3", "-x", str(out)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())["benchmark_result"]["median"]


def onnxruntime_ms(session, batch):
    port = session.get_inputs()[0]
    dims = [batch] + [d if isinstance(d, int) else 1 for d in port.shape[1:]]
    inputs = {port.name: np.random.default_rng(0).standard_normal(dims).astype(np.float32)}
    times, warm = [], time.perf_counter() + 0.3
    end = warm + 1
    while (begin := time.perf_counter()) < end:
        session.run(None, inputs)
        if begin >= warm:
            times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lacuna")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cores", type=int, default=2)
    args = parser.parse_args()
    print(f"onnxruntime {ort.__version__}, {args.cores} cores, {args.rounds} rounds\n")
    print("| file | batch | lacuna ms | onnxruntime ms | ratio |\n|---|--:|--:|--:|--:|")
    for model in args.models:
        options = ort.SessionOptions()
        options.intra_op_num_threads = args.cores
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for batch in args.batch:
            rounds = [(lacuna_ms(args.lacuna, model, batch, args.cores), onnxruntime_ms(session, batch)) for _ in range(args.rounds)]
            ours, theirs = (statistics.median(column) for column in zip(*rounds))
            ratio = statistics.median(t / o for o, t in rounds)
            print(f"| {pathlib.Path(model).name} | {batch} | {ours:.3f} | {theirs:.3f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
