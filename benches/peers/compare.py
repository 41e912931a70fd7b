#!/usr/bin/env python3
"""lacuna, onnxruntime and openvino on the same networks and cores, in turns, so that ratios hold when the machine's
speed drifts.

    cargo build --release
    python3 benches/peers/compare.py --venv target/peers --models target/peer-models

With --venv the script makes a virtual environment, installs onnxruntime and openvino from PyPI and goes on in it. Networks
that are not in the folder are made there (make_models.py). Then, for each row of ROWS and each batch:

* a short look at every mode finds the best of each contender: which of the files of the same network (pruned or dense,
  every activation quantised or inputs of products only, fp32), one request at a time or several in flight, and for
  openvino f32 or bf16 arithmetic;
* rounds, in each of which every contender's best mode runs for --seconds. Times are medians over the rounds, ratios are
  medians of the rounds' ratios: above 1, lacuna is faster.

Each contender is a process of its own. A time is that of one batch: the median run with one request at a time, wall time
over runs with several. --isa limits lacuna and openvino to what lesser processors have.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE.parent / "RESULTS.md"
PACKAGES = ["numpy", "onnx", "onnxruntime", "openvino"]

# Name, sparsity in percent, type, batches, ratio asked for at each. fp32 rows are against onnxruntime's fp32.
ROWS = [
    ("resnet50", 90, "int8", {1: 3.0, 16: 3.0}),
    ("resnet50", 95, "int8", {1: 4.0, 16: 4.2}),
    ("resnet50", 90, "fp32", {1: 3.5, 16: 4.0}),
    ("resnet50", 0, "int8", {1: 1.0, 16: 1.0}),
    ("resnet50", 0, "fp32", {1: 1.0, 16: 1.0}),
    ("mobilenet_v1", 80, "int8", {1: 1.8, 16: 1.8}),
    ("efficientnet_b0", 80, "int8", {1: 1.5, 16: 1.5}),
    ("yolov5s", 80, "int8", {1: 2.2}),
    ("bert_base_128", 90, "int8", {1: 3.8, 16: 3.5}),
    ("bert_base_384", 80, "int8", {1: 2.2}),
]
# Networks whose speed on one core and whose memory are compared too.
CORES_ROWS = [("resnet50", 90), ("bert_base_128", 90)]
RSS_ROW = ("resnet50", 90)

# What --isa sets for lacuna and for openvino. onnxruntime's kernels cannot be limited.
ISA_LIMITS = {
    "avx2": ("avx2", "AVX2"),
    "avxvnni": ("avxvnni", "AVX2_VNNI"),
    "avx512": ("avx512vbmi", "AVX512_CORE_VNNI"),
}
LOOK_SECONDS = 0.4
# openvino's several requests run in the rounds too unless they were slower than this in the first look.
CLOSE = 1.15


def environment(args):
    """lacuna keeps which kernels were best; another build's measurements are of no use here."""
    own = {**os.environ, "LACUNA_CACHE": args.cache}
    if args.isa:
        own["LACUNA_ISA"], own["ONEDNN_MAX_CPU_ISA"] = ISA_LIMITS[args.isa]
    return own


class Peer:
    """A process of peer.py."""

    def __init__(self, args, mode, batch, cores):
        runtime, path, *rest = mode
        words = [sys.executable, HERE / "peer.py", runtime, path, str(batch), str(cores), *rest]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment(args))
        self.about = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended")
        return json.loads(line)

    def ask(self, what):
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self.answer()

    def measure(self, seconds):
        return self.ask(seconds)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def is_command(lacuna):
    """Whether that is the command, and not the engine's example, which knows less."""
    return pathlib.Path(lacuna).name != "run_onnx"


class Lacuna:
    """The command's `benchmark`, or the engine's example `run_onnx`: a fresh process for each measurement."""

    def __init__(self, args, mode, batch, cores):
        self.binary, (_, self.path, self.scenario) = args.lacuna, mode
        self.batch, self.cores, self.env = batch, cores, environment(args)
        self.peak_megabytes, self.about = 0.0, {}

    def run(self, words):
        own = sorted(os.sched_getaffinity(0))[: self.cores]
        stay = lambda: os.sched_setaffinity(0, own)
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=self.env, preexec_fn=stay) as process:
            # The peak is gone with the process: look at it until then.
            status = pathlib.Path(f"/proc/{process.pid}/status")
            while process.poll() is None:
                with contextlib.suppress(OSError, StopIteration):
                    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
                    self.peak_megabytes = max(self.peak_megabytes, int(peak.split()[1]) / 1024)
                time.sleep(0.02)
            out = process.stdout.read()
        if process.returncode:
            raise RuntimeError(f"{words} ended with {process.returncode}")
        return out

    def measure(self, seconds):
        if not is_command(self.binary):
            # It takes a number of runs: the first few tell how many fill the time.
            words = [self.binary, self.path, "-b", str(self.batch), "-c", str(self.cores), "-n"]
            median = lambda runs: float(self.run([*words, str(runs)]).split("median ")[1].split(" ms")[0])
            return median(max(3, int(seconds * 1e3 / median(3))))
        result = self.benchmark(seconds)["benchmark_result"]
        return result["median"] if self.scenario == "sync" else 1e3 * self.batch / result["items_per_sec"]

    def benchmark(self, seconds):
        """What the command's `benchmark` writes as JSON."""
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "out.json"
            self.run([
                self.binary, "benchmark", self.path, "-q", "-b", str(self.batch), "-ncores", str(self.cores),
                "-pin", "core", "-s", self.scenario, "-t", str(seconds), "-w", "0.2", "-x", str(out),
            ])
            return json.loads(out.read_text())

    def close(self):
        pass


def start(args, mode, batch, cores):
    return (Lacuna if mode[0] == "lacuna" else Peer)(args, mode, batch, cores)


def mode_name(mode):
    runtime, path, *rest = mode
    words = {"sync": "one request", "latency": "one request", "async": "several", "throughput": "several"}
    return ", ".join([pathlib.Path(path).stem.split("-", 1)[-1], *(words.get(w, w) for w in rest)])


def several(mode):
    return mode[-1] == "async" or "throughput" in mode


def contenders(args, row):
    """{title: modes of which the best is to be found}."""
    if isinstance(row, pathlib.Path):
        files = [row]
        quantised = b"QuantizeLinear" in row.read_bytes()
    else:
        name, sparsity, kind, _ = row
        quantised = kind == "int8"
        kinds = ["int8", "int8i", "fp32"] if quantised else ["fp32"]
        files = [args.models / f"{name}-{sparsity}-{k}.onnx" for k in kinds]
    ours = [f for f in files if not quantised or len(files) == 1 or "int8" in f.stem]
    bf16 = has("amx_bf16") or has("avx512_bf16")
    # The float parts of quantised networks run in what openvino would choose by itself.
    chosen = "bf16" if bf16 and args.isa is None else "f32"
    found = {"lacuna": [("lacuna", str(f), "sync") for f in ours]}
    if is_command(args.lacuna):
        found["lacuna, several"] = [("lacuna", str(f), "async") for f in ours]
    found["onnxruntime"] = [("onnxruntime", str(f)) for f in files]
    for title, hint in (("openvino", "latency"), ("openvino, several", "throughput")):
        if quantised:
            found[title] = [("openvino", str(f), hint, chosen) for f in files]
        else:
            found[title] = [("openvino", str(f), hint, "f32") for f in files]
            if bf16 and args.isa is None:
                found[f"{title}, bf16"] = [("openvino", str(f), hint, "bf16") for f in files]
    return found


def look(args, modes, batch):
    """The fastest of the modes, running, and its time. Of the peers' best pruned file the dense one is tried too."""
    best, best_ms, tried = None, float("inf"), list(modes)
    for mode in tried:
        try:
            running = start(args, mode, batch, args.cores)
            ms = running.measure(LOOK_SECONDS)
        except RuntimeError as error:
            print(f"    cannot run: {error}", file=sys.stderr, flush=True)
            continue
        running.mode = mode
        print(f"    {ms:9.3f} ms  {mode[0]}: {mode_name(mode)}", file=sys.stderr, flush=True)
        if ms < best_ms:
            best, running, best_ms = running, best, ms
        if running:
            running.close()
        dense = dense_variant(best.mode)
        if mode is tried[-1] and dense and dense not in tried:
            tried.append(dense)
    return best, best_ms


def dense_variant(mode):
    """The same mode on the network without zeros, if that is there. Zeros are what lacuna is for."""
    runtime, path, *rest = mode
    name, *parts = pathlib.Path(path).stem.split("-")
    dense = pathlib.Path(path).with_name(f"{name}-0-{parts[-1]}.onnx") if len(parts) == 2 else None
    return (runtime, str(dense), *rest) if runtime != "lacuna" and dense and dense.exists() else None


def compare(args, row, batch):
    """Median milliseconds, every round's times, and the mode, of each contender that took part in the rounds."""
    running, times = {}, {}
    try:
        first_look = {}
        for title, modes in contenders(args, row).items():
            best, first_look[title] = look(args, modes, batch)
            if best:
                running[title] = best
        for title in [t for t in running if t.startswith("openvino, several")]:
            if first_look[title] > CLOSE * first_look[title.replace(", several", "")]:
                running.pop(title).close()
        times = {title: [] for title in running}
        for _ in range(args.rounds):
            for title, contender in running.items():
                times[title].append(contender.measure(args.seconds))
    finally:
        for contender in running.values():
            contender.close()
    return {t: (statistics.median(ms), ms, running[t].mode) for t, ms in times.items()}


def ratio(found, ours, theirs):
    return statistics.median(t / o for o, t in zip(found[ours][1], found[theirs][1]))


def fastest(found, titles):
    return min(titles, key=lambda t: found[t][0])


def row_name(row):
    return row.name if isinstance(row, pathlib.Path) else f"{row[0]} {row[1]} % {row[2]}" if row[1] else f"{row[0]} dense {row[2]}"


def comparison_lines(args, row, batch):
    """A line of each table: best against best, one request at a time, and how lacuna's time compares with the limit."""
    print(f"{row_name(row)}, batch {batch}", file=sys.stderr, flush=True)
    found = compare(args, row, batch)
    target = None if isinstance(row, pathlib.Path) or args.isa else row[3].get(batch)
    against_onnxruntime = not isinstance(row, pathlib.Path) and row[2] == "fp32"
    peers = [t for t in found if not t.startswith("lacuna")]
    if args.isa:
        peers.remove("onnxruntime")
    elif against_onnxruntime:
        peers = ["onnxruntime"]
    ours, theirs = fastest(found, [t for t in found if t.startswith("lacuna")]), fastest(found, peers)
    single = [t for t in peers if not several(found[t][2])]
    single_theirs = fastest(found, single)
    got = ratio(found, ours, theirs)
    cell = lambda t: f"{found[t][0]:.3f}" if t in found else "–"
    best_openvino = fastest(found, [t for t in found if t.startswith("openvino")])
    modes = "; ".join(f"{found[t][2][0]}: {mode_name(found[t][2])}" for t in dict.fromkeys([ours, "onnxruntime", best_openvino]))
    asked = f"{target:.1f}" if target else ""
    best = f"| {row_name(row)} | {batch} | {cell(ours)} | {cell('onnxruntime')} | {cell(best_openvino)} | **{got:.2f}** | {asked} | {modes} |"
    openvino = [cell(t) for t in ("openvino", "openvino, several", "openvino, bf16", "openvino, several, bf16")]
    every = f"| {row_name(row)} | {batch} | {cell('lacuna')} | {cell('lacuna, several')} | {cell('onnxruntime')} | {' | '.join(openvino)} | {ratio(found, 'lacuna', single_theirs):.2f} |"
    limit = None if isinstance(row, pathlib.Path) else limit_line(args, row, batch, found[ours][0])
    print(f"  {ratio(found, ours, theirs):.2f} (asked for {asked or 'nothing'}): {modes}", file=sys.stderr, flush=True)
    return best, every, limit


def limit_line(args, row, batch, ms):
    """What part of the processor's peak a time is, by the multiplications that a dense and a sparse run must make."""
    name, sparsity, kind, _ = row
    words = [sys.executable, HERE / "macs.py", args.models / f"{name}-{sparsity}-fp32.onnx"]
    macs = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    per_cycle = {t: batch * macs[t] / (ms * 1e-3 * args.clock * 1e9 * args.cores) for t in macs}
    vector = vector_peak(kind)
    share = lambda t, peak: f"{100 * per_cycle[t] / peak:.0f} %"
    amx = [share("all", 1024), share("nonzero", 1024)] if kind == "int8" and has("amx_int8") and not args.isa else ["–", "–"]
    return (
        f"| {row_name(row)} | {batch} | {macs['all'] / 1e9:.2f} | {macs['nonzero'] / 1e9:.3f} | {per_cycle['all']:.0f} | {share('all', vector)} | "
        f"{share('nonzero', vector)} | {' | '.join(amx)} |"
    )


def vector_peak(kind):
    """Multiplications per cycle and core: two 512-bit units on Intel's servers, one (or two halves) on Zen 4."""
    units = 2 if "Intel" in cpu_field("vendor_id") else 1
    return units * (64 if kind == "int8" else 16)


def cores_lines(args):
    lines = []
    for name, sparsity in CORES_ROWS:
        if not wanted(args, (name, sparsity, "int8", {})):
            continue
        path = str(args.models / f"{name}-{sparsity}-int8.onnx")
        one, two = Lacuna(args, ("lacuna", path, "sync"), 1, 1), Lacuna(args, ("lacuna", path, "sync"), 1, args.cores)
        rounds = []
        for _ in range(args.rounds):
            second = (is_command(args.lacuna) and doctor(args.lacuna)["second_core"]) or {"gain": math.nan, "round_trip_ns": math.nan}
            a, b = one.measure(args.seconds), two.measure(args.seconds)
            rounds.append((a, b, a / b, second["gain"], second["round_trip_ns"]))
        a, b, gain, most, trip = (statistics.median(column) for column in zip(*rounds))
        lines.append(f"| {name} {sparsity} % int8 | {a:.3f} | {b:.3f} | {gain:.2f} | {most:.2f} | {trip:.0f} |")
    return lines


def rss_lines(args):
    name, sparsity = RSS_ROW
    path = str(args.models / f"{name}-{sparsity}-int8.onnx")
    # The first process measures which kernels are best, with all their weights in memory; the second knows.
    for _ in range(2):
        ours = Lacuna(args, ("lacuna", path, "sync"), 1, args.cores)
        ours.measure(LOOK_SECONDS)
    lines = [f"| lacuna | {ours.peak_megabytes:.0f} |"]
    for mode in (("onnxruntime", path), ("openvino", path, "latency", "bf16" if has("amx_bf16") else "f32")):
        peer = Peer(args, mode, 1, args.cores)
        lines.append(f"| {mode[0]} | {peer.ask('rss'):.0f} |")
        peer.close()
    return lines


def cpu_field(name):
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "unknown")


def has(flag):
    return flag in cpu_field("flags").split()


def doctor(lacuna):
    """What `lacuna doctor` measures of the processor."""
    words = [lacuna, "doctor", "--json"]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)["processor"]


def go_into(venv):
    python = venv / "bin" / "python"
    if pathlib.Path(sys.prefix) == venv.resolve():
        return
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    imports = "import " + ", ".join(PACKAGES)
    if subprocess.run([python, "-c", imports], capture_output=True).returncode:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    os.execv(python, [python, *sys.argv])


def make_missing(args, rows):
    """Files of all rows that are not there yet."""
    for name, sparsity, kind, _ in rows:
        if not (args.models / f"{name}-{sparsity}-{kind}.onnx").exists():
            words = [sys.executable, HERE / "make_models.py", args.models, "--models", name, "--sparsity", str(sparsity / 100)]
            subprocess.run(words, check=True, stdout=sys.stderr)


def wanted(args, row):
    return not args.rows or any(part in f"{row[0]}-{row[1]}-{row[2]}" for part in args.rows)


def commit():
    return subprocess.run(["git", "-C", HERE, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()


def report(args, rows):
    version = lambda package: subprocess.run(
        [sys.executable, "-c", f"import importlib.metadata as m; print(m.version('{package}'))"], capture_output=True, text=True
    ).stdout.strip()
    flags = [f for f in ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512vbmi", "avx512_bf16", "amx_int8", "amx_bf16") if has(f)]
    title = "Networks beside onnxruntime and openvino" + (f", limited to {args.isa}" if args.isa else "")
    shown = ["--isa " + args.isa] if args.isa else []
    shown += ["--rows " + " ".join(args.rows)] if args.rows else []
    text = [
        f"## {title} ({time.strftime('%Y-%m-%d')})",
        "",
        "```",
        " ".join(["python3 benches/peers/compare.py --venv target/peers --models target/peer-models", *shown]),
        "```",
        "",
        f"{cpu_field('model name')}, family {cpu_field('cpu family')}, model {cpu_field('model')}, at {args.clock:.2f} GHz; {args.cores} cores; {', '.join(flags)}. "
        f"lacuna {commit()}, onnxruntime {version('onnxruntime')}, openvino {version('openvino')}. *Synthetic* weights "
        f"(`make_models.py`), {args.rounds} rounds of {args.seconds:g} s for each contender, in turns. Milliseconds of one batch.",
    ]
    if args.isa:
        lacuna, onednn = ISA_LIMITS[args.isa]
        text += [
            "",
            f"`LACUNA_ISA={lacuna}` for lacuna, `ONEDNN_MAX_CPU_ISA={onednn}` for openvino. onnxruntime has no such limit: it "
            "uses all that the processor has, and is not among the peers of the ratio.",
        ]
    lines = [comparison_lines(args, row, batch) for row in rows for batch in batches(args, row)]
    best, every, limits = zip(*lines)
    text += [
        "",
        "Best against best: the faster of one request at a time and several in flight (then a time is wall time over runs),"
        " on whichever file of the same network suits the runtime; ratio of the best peer's time to lacuna's. fp32 rows are"
        " against onnxruntime.",
        "",
        "| network | batch | lacuna | onnxruntime | openvino | ratio | asked for | modes |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
        *best,
        "",
        "Every mode that came near its runtime's best; the ratio is of one request at a time on both sides.",
        "",
        "| network | batch | lacuna | lacuna, several | onnxruntime | openvino | openvino, several | openvino, bf16 | openvino, several, bf16 | ratio |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        *every,
    ]
    if any(limits):
        text += [
            "",
            "How near lacuna's best time is to what the cores can do at all: multiplications of the dense network and of its"
            " nonzero weights, per cycle and core, as a part of the peak of vector products (VNNI or FMA) and of AMX tiles.",
            "",
            "| network | batch | GMAC | nonzero | dense MAC/cycle | dense, of vectors | nonzero, of vectors | dense, of AMX | nonzero, of AMX |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
            *filter(None, limits),
        ]
    if cores := cores_lines(args):
        text += [
            "",
            f"lacuna on one core and on {args.cores}, batch 1, one request at a time. Beside it what a second thread gained in the same"
            " rounds where two share nothing, and how long a word took between them, both by `lacuna doctor`: a host may put two"
            " virtual cores on one core, or far apart.",
            "",
            "| network | 1 core | all | gain | most that a second thread gains | round trip, ns |",
            "|---|--:|--:|--:|--:|--:|",
            *cores,
        ]
    if wanted(args, (*RSS_ROW, "int8", {})) and not args.isa:
        text += ["", f"Peak memory of a process that runs {RSS_ROW[0]} {RSS_ROW[1]} % int8 (VmHWM; the peers' with Python), MB:", ""]
        text += ["| | MB |", "|---|--:|", *rss_lines(args)]
    return "\n".join(text) + "\n"


def batches(args, row):
    if isinstance(row, pathlib.Path):
        return args.batch or [1, 16]
    return [b for b in row[3] if not args.batch or b in args.batch]


def write_section(name, text):
    """Puts the text between this section's marks, which stand at the end of the page the first time."""
    begin, end = f"<!-- peers {name}: begin -->\n", f"<!-- peers {name}: end -->\n"
    page = RESULTS.read_text()
    if begin not in page:
        page = f"{page.rstrip()}\n\n{begin}{end}"
    head, rest = page.split(begin)
    RESULTS.write_text(head + begin + text + end + rest.split(end)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=pathlib.Path, help="more ONNX files to compare")
    parser.add_argument("--lacuna", default=HERE.parents[1] / "target/release/lacuna", help="the command, or the example run_onnx")
    parser.add_argument("--models", type=pathlib.Path, default=HERE.parents[1] / "target/peer-models")
    parser.add_argument("--venv", type=pathlib.Path, help="install the peers there and go on with its Python")
    parser.add_argument("--rows", nargs="+", help="only rows whose NAME-SPARSITY-TYPE contains one of these; 'none' for files only")
    parser.add_argument("--batch", type=int, nargs="+", help="only these batches")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.8)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--clock", type=float, help="GHz; measured by `lacuna doctor` if not given")
    parser.add_argument("--isa", choices=ISA_LIMITS)
    parser.add_argument("--write", action="store_true", help="replace the section of benches/RESULTS.md")
    args = parser.parse_args()
    if args.venv:
        go_into(args.venv)
    args.clock = args.clock or doctor(args.lacuna)["clock_ghz"]
    rows = [row for row in ROWS if wanted(args, row)]
    if not rows and not args.files:
        parser.error("no row has such a name, and no files are given")
    make_missing(args, rows)
    with tempfile.TemporaryDirectory() as args.cache:
        text = report(args, [*rows, *args.files])
    print(text)
    if args.write:
        write_section(args.isa or "native", text)


if __name__ == "__main__":
    main()
