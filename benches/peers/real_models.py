#!/usr/bin/env python3
"""lacuna and onnxruntime on real models with real inputs (tests/py/real_models.py), in turns, so that ratios hold when the
machine's speed drifts.

    tests/py/fetch_models.sh target/data
    cargo build --release -p lacuna-engine --example run_onnx
    target/py/bin/python benches/peers/real_models.py --write

Each contender is a process of its own that loads the file and answers with times. A round gives every contender of a case
--seconds; a ratio is the median of the rounds' ratios of onnxruntime's time to lacuna's, so above 1 lacuna is faster.
Models whose packages are not there are left out. With --oneshot the command `lacuna oneshot` prunes and quantises the
networks for images, and what it makes is compared with the fastest that onnxruntime has for the same network: the f32
file, or its own int8 file (QDQ or QOperator, per channel, calibrated on the same photos).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Before this folder, which has a file of the same name as that of the cases.
sys.path.insert(0, str(ROOT / "tests/py"))

import compare  # noqa: E402
import real_models  # noqa: E402

# Cases that are not single requests.
LEFT_OUT = {("efficientnet_lite0", "all")}
# Networks for images that are pruned and quantised, and onnxruntime's int8 file of each.
ONESHOT = {
    "efficientnet_lite0": "efficientnet_lite0_qdq",
    "yolox_nano": "yolox_nano_qoperator",
    "yolov8n": "yolov8n_qdq",
    "resnet50_thin": None,
    "ssd_mobilenetv1": None,
}
WARM_SECONDS = 0.2


class Contender:
    """A process that says it is ready, and answers a number of seconds with two times: their median and their least."""

    def __init__(self, words, cores):
        own = sorted(os.sched_getaffinity(0))[:cores]
        pipe = subprocess.PIPE
        stay = lambda: os.sched_setaffinity(0, own)
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, preexec_fn=stay)
        while (line := self.answer()) != "ready":
            if not line:
                raise RuntimeError(f"{words} ended")
        self.measure(WARM_SECONDS)

    def answer(self):
        return self.process.stdout.readline().strip()

    def measure(self, seconds):
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return float(self.answer().split()[0])

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def ours(args, file, case):
    words = [args.run_onnx, file, "--case", case, "-c", str(args.cores), "--serve", "--cache"]
    return Contender(words, args.cores)


def theirs(args, file, case):
    return Contender([sys.executable, __file__, "--peer", file, case, str(args.cores)], args.cores)


def peer(file, case, cores):
    """What [`theirs`] starts: onnxruntime with its default optimisations."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = int(cores)
    options.log_severity_level = 3
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feeds = {p.name: np.load(pathlib.Path(case) / f"input_{i}.npy") for i, p in enumerate(session.get_inputs())}
    # Outputs are not bound: some files declare other ranks than they have.
    print("ready", flush=True)
    for line in sys.stdin:
        times, end = [], time.perf_counter() + float(line)
        while (begin := time.perf_counter()) < end or not times:
            session.run(None, feeds)
            times.append(1e3 * (time.perf_counter() - begin))
        print(statistics.median(times), min(times), flush=True)


def compared(args, our_file, their_files, case):
    """Median milliseconds of lacuna and of onnxruntime's fastest file, the ratio, and which file that is."""
    running = {"lacuna": ours(args, our_file, case), **{f: theirs(args, f, case) for f in their_files}}
    rounds = [{name: c.measure(args.seconds) for name, c in running.items()} for _ in range(args.rounds)]
    for contender in running.values():
        contender.close()
    median = lambda name: statistics.median(times[name] for times in rounds)
    best = min(their_files, key=median)
    ratio = statistics.median(times[best] / times["lacuna"] for times in rounds)
    return median("lacuna"), median(best), ratio, best


def prepared(args, names):
    """{name: folder with its file and cases}."""
    data, folders = real_models.Data(args.data), {}
    for name in names:
        folder = args.cases / name
        try:
            real_models.prepare(data, folder, real_models.MODELS[name])
            folders[name] = folder
        except real_models.Absent as why:
            print(f"SKIP {name}: {why}", file=sys.stderr)
    return folders


def dense_lines(args):
    names = [n for n, (_, _, kind) in real_models.MODELS.items() if kind == "f32" and wanted(args, n)]
    lines, ratios = [], {}
    for name, folder in prepared(args, names).items():
        file = str(folder / "model.onnx")
        for case in sorted(p.parent for p in folder.glob("*/input_0.npy")):
            if (name, case.name) in LEFT_OUT:
                continue
            lacuna, onnxruntime, ratio, _ = compared(args, file, [file], str(case))
            ratios.setdefault(name, []).append(ratio)
            lines.append(f"| {name} | {case.name} | {lacuna:.2f} | {onnxruntime:.2f} | **{ratio:.2f}** |")
            print(lines[-1], file=sys.stderr, flush=True)
    by_model = [statistics.geometric_mean(r) for r in ratios.values()]
    if by_model:
        lines.append(f"| geometric mean over {len(by_model)} models | | | | **{statistics.geometric_mean(by_model):.2f}** |")
    return lines


def oneshot_lines(args):
    lines = []
    names = [n for n in ONESHOT if wanted(args, n)]
    folders = prepared(args, names + [q for n, q in ONESHOT.items() if q and n in names])
    for name in (n for n in names if n in folders):
        made, file = args.cases / f"{name}-oneshot.onnx", folders[name] / "model.onnx"
        cases = sorted(p.parent for p in folders[name].glob("*/input_0.npy"))
        case = next(c for c in cases if (name, c.name) not in LEFT_OUT)
        if not made.exists():
            oneshot(args, file, cases, made)
        quantised = folders.get(ONESHOT[name])
        theirs = [str(file), *([str(quantised / "model.onnx")] if quantised else [])]
        lacuna, onnxruntime, ratio, best = compared(args, str(made), theirs, str(case))
        kind = "f32" if best == str(file) else "int8"
        lines.append(f"| {name} | {case.name} | {lacuna:.2f} | {onnxruntime:.2f} | {kind} | **{ratio:.2f}** |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def oneshot(args, file, cases, made):
    """Prunes and quantises a file, with the inputs of all cases as calibration data."""
    import numpy as np
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    constants = {t.name for t in graph.initializer}
    names = [port.name for port in graph.input if port.name not in constants]
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            header, data = {}, b""
            for i, port in enumerate(names):
                array = np.load(case / f"input_{i}.npy")
                begin, data = len(data), data + array.tobytes()
                header[port] = {"dtype": "F32", "shape": array.shape, "data_offsets": [begin, len(data)]}
            text = json.dumps(header).encode()
            path = pathlib.Path(folder) / f"{case.name}.safetensors"
            path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        words = [args.lacuna, "oneshot", file, "--sparsity", "0.8", "--quantize", "static", "--calib", folder, "-o", made]
        subprocess.run(words, check=True, stdout=sys.stderr)


def wanted(args, name):
    return not args.models or any(part in name for part in args.models)


def report(args):
    import onnxruntime

    shown = [w for w in sys.argv[1:] if w != "--write"]
    flags = [f for f in ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8") if compare.has(f)]
    text = [
        f"## Real models beside onnxruntime ({time.strftime('%Y-%m-%d')})",
        "",
        "```",
        " ".join(["target/py/bin/python benches/peers/real_models.py", *shown]),
        "```",
        "",
        f"{compare.cpu_field('model name')}, family {compare.cpu_field('cpu family')}, model {compare.cpu_field('model')}; "
        f"{args.cores} cores; {', '.join(flags)}. lacuna {compare.commit()}, onnxruntime {onnxruntime.__version__}. Published weights, photos, "
        f"text and sentences as `tests/py/real_models.py` makes them; {args.rounds} rounds of {args.seconds:g} s for each contender, "
        "in turns. Milliseconds of a run; a ratio above 1: lacuna is faster.",
        "",
        "Dense f32 files, the same for both:",
        "",
        "| model | input | lacuna | onnxruntime | ratio |",
        "|---|---|--:|--:|--:|",
        *dense_lines(args),
    ]
    if args.oneshot:
        text += [
            "",
            "`lacuna oneshot --sparsity 0.8 --quantize static`, against the faster of onnxruntime's f32 file and its own int8 file:",
            "",
            "| model | input | lacuna | onnxruntime | its file | ratio |",
            "|---|---|--:|--:|---|--:|",
            *oneshot_lines(args),
        ]
    return "\n".join(text) + "\n"


def main():
    if sys.argv[1:2] == ["--peer"]:
        return peer(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="only models whose name contains one of these")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "target/data")
    parser.add_argument("--cases", type=pathlib.Path, default=ROOT / "target/real_models", help="where files and inputs are made")
    parser.add_argument("--run-onnx", default=ROOT / "target/release/examples/run_onnx")
    parser.add_argument("--lacuna", default=ROOT / "target/release/lacuna", help="the command, for --oneshot")
    parser.add_argument("--oneshot", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="replace the section of benches/RESULTS.md")
    args = parser.parse_args()
    text = report(args)
    print(text)
    if args.write:
        compare.write_section("real models", text)


if __name__ == "__main__":
    main()
