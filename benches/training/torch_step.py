#!/usr/bin/env python3
"""One training step in PyTorch on the CPU: the other side of `compare.py`.

    torch_step.py ROW [--threads 2] [--layout contiguous|channels_last] [--optimizer fused|foreach|loop]
                      [--compile] [--profile STEPS]

Reads commands from stdin and answers each with one line of JSON: `step N` runs N steps (their milliseconds and losses),
`memory` says the peak resident set in MB, `quit` ends. A step is what a training loop does on a batch that lies in
memory: forward, loss, its value, backward, optimiser.
"""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

import torch_models as models

RESNET18 = [(64, 2), (128, 2), (256, 2), (512, 2)]
RESNET20 = [(16, 3), (32, 3), (64, 3)]

# Network, batch, input (channels, height, width; or tokens), classes.
NETWORKS = {
    "resnet20": (lambda: models.resnet(1, 2, RESNET20, 10), 64, (1, 28, 28), 10),
    "resnet18_cifar": (lambda: models.resnet(3, 1, RESNET18, 10), 32, (3, 32, 32), 10),
    "mobilenet_v1": (models.mobilenet_v1, 32, (3, 96, 96), 1000),
    "efficientnet_lite0": (models.efficientnet_lite0, 8, (3, 224, 224), 1000),
    "bert_mini": (lambda: models.Bert(4, 256, 4, 1024), 32, (128,), 2),
    "minilm_l6": (lambda: models.Bert(6, 384, 12, 1536), 16, (128,), 2),
}
VARIANTS = ("", "+pruned90", "+int8")
BATCHES = 4


def make_batches(batch, shape, classes, layout):
    """A few batches of noise with fixed labels: enough to see the loss fall."""
    made = []
    for _ in range(BATCHES):
        labels = torch.randint(0, classes, (batch,))
        if len(shape) == 3:
            images = torch.randn(batch, *shape)
            made.append(((images.to(memory_format=layout),), labels))
        else:
            tokens = shape[0]
            lengths = torch.randint(tokens // 2, tokens + 1, (batch, 1))
            made.append(((torch.randint(0, 30522, (batch, tokens)), torch.arange(tokens)[None, :] < lengths), labels))
    return made


def is_weight(p):
    return p.dim() > 1


def magnitude_masks(net, sparsity):
    """The smallest weights of each convolution and linear layer, embeddings left alone."""
    embeddings = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    masked = [p for p in net.parameters() if is_weight(p) and id(p) not in embeddings]
    masks = []
    with torch.no_grad():
        for p in masked:
            threshold = p.abs().flatten().kthvalue(max(1, round(p.numel() * sparsity))).values
            masks.append((p.abs() > threshold).to(p.dtype))
            p *= masks[-1]
    return masked, masks


class Step:
    def __init__(self, name, layout, optimizer, compiled):
        torch.manual_seed(0)
        name, _, variant = name.partition("+")
        build, batch, shape, classes = NETWORKS[name]
        layout = getattr(torch, layout + "_format") if layout == "contiguous" else getattr(torch, layout)
        net = build().train()
        if len(shape) == 3:
            net = net.to(memory_format=layout)
        models.set_quant(net, variant == "int8")
        self.masked, self.masks = magnitude_masks(net, 0.9) if variant == "pruned90" else ([], [])
        self.net, self.parameters = net, sum(p.numel() for p in net.parameters())
        decayed = [p for p in net.parameters() if is_weight(p)]
        others = [p for p in net.parameters() if not is_weight(p)]
        how = {"fused": dict(fused=True), "foreach": dict(foreach=True), "loop": dict(foreach=False)}[optimizer]
        groups = [dict(params=decayed), dict(params=others, weight_decay=0.0)]
        if len(shape) == 3:
            self.optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4, **how)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.01, **how)
        self.forward = torch.compile(net) if compiled else net
        self.batches, self.steps = make_batches(batch, shape, classes, layout), 0

    def run(self):
        x, labels = self.batches[self.steps % BATCHES]
        self.steps += 1
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(self.forward(*x), labels)
        value = loss.item()
        loss.backward()
        self.optimizer.step()
        if self.masks:
            with torch.no_grad():
                torch._foreach_mul_(self.masked, self.masks)
        return value


def peak_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def profile(step, steps):
    from torch.profiler import ProfilerActivity
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as run:
        for _ in range(steps):
            step.run()
    print(run.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", help="|".join(NETWORKS) + " with " + "|".join(VARIANTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layout", choices=["contiguous", "channels_last"], default="contiguous")
    parser.add_argument("--optimizer", choices=["fused", "foreach", "loop"], default="fused")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    idle_mb = peak_mb()
    step = Step(args.row, args.layout, args.optimizer, args.compile)
    if args.profile:
        for _ in range(3):
            step.run()
        return profile(step, args.profile)
    answer = lambda **fields: print(json.dumps(fields), flush=True)
    answer(version=f"PyTorch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})", parameters=step.parameters, threads=torch.get_num_threads(),
           idle_mb=idle_mb)
    for line in sys.stdin:
        match line.split():
            case ["step", count]:
                ms, losses = [], []
                for _ in range(int(count)):
                    begin = time.perf_counter()
                    losses.append(step.run())
                    ms.append((time.perf_counter() - begin) * 1e3)
                answer(ms=ms, losses=losses)
            case ["memory"]:
                answer(peak_mb=peak_mb())
            case ["quit"]:
                return


if __name__ == "__main__":
    main()
