"""Several requests at a time against one: what each network of `compare.py` gives per second, in lacuna alone.

    python3 benches/peers/streams.py --models target/peer-models

For each row and batch, rounds in which `lacuna benchmark` runs once with one request at a time on all cores (`sync`) and
once with as many streams as there are cores, a core each (`async`); a process each, the first of the two by turns. Items
per second are streams x batch over the mean time of a run, which no stream's last, half-shared run distorts as it does
wall time. The gain is the median of the rounds' ratios.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import compare


def items_per_second(args, path, batch, scenario):
    found = compare.Lacuna(args, ("lacuna", path, scenario), batch, args.cores).benchmark(args.seconds)
    return found["num_streams"] * batch * 1e3 / found["benchmark_result"]["mean"]


def line(args, row, batch):
    name, sparsity, kind, _ = row
    path = str(args.models / f"{name}-{sparsity}-{kind}.onnx")
    found = {"sync": [], "async": []}
    for turn in range(args.rounds):
        for scenario in sorted(found, reverse=turn % 2 == 0):
            found[scenario].append(items_per_second(args, path, batch, scenario))
    one, several = (statistics.median(found[s]) for s in ("sync", "async"))
    gain = statistics.median(b / a for a, b in zip(found["sync"], found["async"]))
    text = f"| {compare.row_name(row)} | {batch} | {one:.1f} | {several:.1f} | {gain:.3f} |"
    print(text, flush=True)
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lacuna", default=compare.HERE.parents[1] / "target/release/lacuna")
    parser.add_argument("--models", type=pathlib.Path, default=compare.HERE.parents[1] / "target/peer-models")
    parser.add_argument("--rows", nargs="+", help="only rows whose NAME-SPARSITY-TYPE contains one of these")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="replace the section of benches/RESULTS.md")
    args = parser.parse_args()
    args.isa = None
    rows = [row for row in compare.ROWS if compare.wanted(args, row)]
    compare.make_missing(args, rows)
    with tempfile.TemporaryDirectory() as args.cache:
        lines = [line(args, row, batch) for row in rows for batch in row[3]]
    text = [
        f"## Several requests at a time ({time.strftime('%Y-%m-%d')})",
        "",
        "```",
        "python3 benches/peers/streams.py --models target/peer-models",
        "```",
        "",
        f"lacuna {compare.commit()}, {compare.cpu_field('model name')}, {args.cores} cores: items per second with one request at a time on all cores, and with a"
        f" stream on each; {args.rounds} rounds of {args.seconds:g} s in turns, medians.",
        "",
        "| network | batch | one | several | gain |",
        "|---|--:|--:|--:|--:|",
        *lines,
    ]
    if args.write:
        compare.write_section("streams", "\n".join(text) + "\n")


if __name__ == "__main__":
    main()
