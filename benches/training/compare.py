#!/usr/bin/env python3
"""One training step on lacuna and in PyTorch, in turns, so that a ratio holds when the machine's speed drifts.

    cargo build --release --example training_step
    python3 -m venv target/torch && target/torch/bin/pip install -r benches/training/requirements.txt
    target/torch/bin/python benches/training/compare.py [ROW...] [--threads 2] [--steps 21] [--json out.json]
                                                        [--preload libtcmalloc_minimal.so.4]

A row is a network, or a network with `+pruned90` (nine of ten weights masked) or `+int8` (fake quantisation). Every side
is a process of its own that answers `step N` with the milliseconds of N steps; the sides take turns of a few steps. A
network is compared with PyTorch; a row with `+` is also compared with its plain network, on each side.

PyTorch runs eagerly with the fused optimiser, in the faster of its two layouts (tried first). `--preload` adds PyTorch
under an allocator of the reader's choice, as PyTorch's tuning guide proposes; lacuna never runs under it.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
LACUNA = HERE.parent.parent / "target/release/examples/training_step"
IMAGE_ROWS = ["resnet20", "resnet18_cifar", "mobilenet_v1", "efficientnet_lite0"]
ROWS = IMAGE_ROWS + ["bert_mini", "minilm_l6", "resnet18_cifar+pruned90", "bert_mini+pruned90", "resnet20+int8",
                     "resnet18_cifar+int8", "mobilenet_v1+int8"]
WARM_STEPS = 3


class Side:
    """A process that runs training steps of one row."""

    def __init__(self, label, row, command, env):
        self.label, self.row, self.rounds, self.losses = label, row, [], []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, **env})
        self.about = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.label} ended without an answer: {' '.join(map(str, self.process.args))}")
        return json.loads(line)

    def ask(self, command):
        print(command, file=self.process.stdin, flush=True)
        return self.answer()

    def step(self, count, timed=True):
        answer = self.ask(f"step {count}")
        self.losses += answer["losses"]
        if timed:
            self.rounds.append(answer["ms"])

    def end(self):
        self.peak_mb = self.ask("memory")["peak_mb"]
        self.process.communicate("quit\n")

    def ms(self):
        return [ms for turn in self.rounds for ms in turn]


def lacuna(args, row):
    # Rayon's pool is the whole of lacuna's threads.
    return Side("lacuna", row, [args.lacuna, row], {"RAYON_NUM_THREADS": str(args.threads)})


def torch(args, row, layout, preload=None):
    label = "PyTorch" if preload is None else "PyTorch, allocator"
    env = {"OMP_NUM_THREADS": str(args.threads)} | ({"LD_PRELOAD": preload} if preload else {})
    words = [sys.executable, HERE / "torch_step.py", row, "--threads", str(args.threads), "--layout", layout]
    return Side(label, row, words, env)


def take_turns(sides, count):
    for side in sides:
        side.step(count)


def run(sides, args):
    for side in sides:
        side.step(WARM_STEPS, timed=False)
    for _ in range(-(-args.steps // args.turn)):
        take_turns(sides, args.turn)
    for side in sides:
        side.end()


def faster_layout(args, row):
    if row.partition("+")[0] not in IMAGE_ROWS:
        return "contiguous"
    sides = [torch(args, row, layout) for layout in ("contiguous", "channels_last")]
    run(sides, argparse.Namespace(steps=2 * args.turn, turn=args.turn))
    contiguous, channels_last = (statistics.median(side.ms()) for side in sides)
    return "contiguous" if contiguous < channels_last else "channels_last"


def ratio(over, under):
    """Median, and quartiles over the turns, of the first side's time over the second's."""
    turns = [statistics.median(a) / statistics.median(b) for a, b in zip(over.rounds, under.rounds)]
    low, _, high = statistics.quantiles(turns, n=4) if len(turns) > 1 else turns * 3
    return statistics.median(over.ms()) / statistics.median(under.ms()), low, high


def told(side):
    low, middle, high = statistics.quantiles(side.ms(), n=4)
    losses = " ".join(f"{loss:.3f}" for loss in side.losses[:2] + side.losses[-2:])
    return (f"| {side.row} | {side.label} | {middle:.1f} | {low:.1f} to {high:.1f} | {side.peak_mb:.0f} "
            f"| {side.about['idle_mb']:.0f} | {losses} |")


def measure(args, row):
    plain = row.partition("+")[0]
    rows = [row] if row == plain else [row, plain]
    layout = args.layout or faster_layout(args, row)
    sides = []
    for name in rows:
        sides += [lacuna(args, name)] if args.lacuna.exists() else []
        if args.preload is None or not args.preload_only:
            sides.append(torch(args, name, layout))
        if args.preload is not None:
            sides.append(torch(args, name, layout, args.preload))
    run(sides, args)
    for side in sides:
        print(told(side), flush=True)
    ratios = []
    ours = [side for side in sides if side.label == "lacuna" and side.row == row]
    for mine in ours:
        ratios += [(f"{other.label} / lacuna", other, mine) for other in sides if other.row == row and other is not mine]
    if row != plain:
        ratios += [(f"{row} / {plain}, {a.label}", a, b) for a in sides for b in sides
                   if a.label == b.label and a.row == row and b.row == plain]
    told_ratios = [(name, *ratio(over, under)) for name, over, under in ratios]
    record = dict(row=row, layout=layout, ratios=told_ratios,
                  sides=[dict(label=s.label, row=s.row, about=s.about, rounds=s.rounds, losses=s.losses, peak_mb=s.peak_mb)
                         for s in sides])
    return record


def processor():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    field = lambda name: next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
    flags = field("flags").split()
    return f"{field('model name') or platform.processor()}; " + " ".join(f for f in flags if f in ("avx2", "fma", "avx512f"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--lacuna", type=pathlib.Path, default=LACUNA)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--turn", type=int, default=3, help="steps of a side before the next one's")
    parser.add_argument("--layout", choices=["contiguous", "channels_last"], help="PyTorch's, instead of trying both")
    parser.add_argument("--preload", help="path of an allocator to run PyTorch under too")
    parser.add_argument("--preload-only", action="store_true", help="leave PyTorch without it out")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    print(f"{processor()}; {args.threads} threads; {time.strftime('%Y-%m-%d')}\n")
    print("| row | side | ms a step | quartiles | peak MB | before the model MB | first and last losses |")
    print("|---|---|--:|--:|--:|--:|---|")
    records = [measure(args, row) for row in args.rows or ROWS]
    print("\n| row | ratio | median | quartiles over turns |\n|---|---|--:|--:|")
    for record in records:
        for name, middle, low, high in record["ratios"]:
            print(f"| {record['row']} | {name} | {middle:.2f} | {low:.2f} to {high:.2f} |")
    print("\nVersions: " + "; ".join(sorted({side["about"]["version"] for r in records for side in r["sides"]})))
    if args.json:
        args.json.write_text(json.dumps(dict(processor=processor(), threads=args.threads, rows=records), indent=1))


if __name__ == "__main__":
    main()
