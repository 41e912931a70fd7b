#!/usr/bin/env python3
"""Cuts the class-balanced Fashion-MNIST subset beside this script from the official files.

    python3 make_subset.py /usr/share/datasets/fashion-mnist fashion-mnist-subset

First come, first taken: walking each official file from index 0, an image is kept while its class
still has room (800 of each class from train, 200 of each from t10k). The order of the official file
is kept and no pixel is changed. Running it again gives the same bytes inside the gzip files.
"""
import gzip
import pathlib
import struct
import sys

CLASSES = 10
PER_CLASS = {"train": 800, "t10k": 200}


def idx(path, dims):
    data = gzip.decompress(path.read_bytes())
    shape = struct.unpack(f">{dims}I", data[4 : 4 + 4 * dims])
    assert data[:4] == bytes([0, 0, 8, dims]), f"{path}: not an IDX file of u8 with {dims} dimensions"
    return shape, data[4 + 4 * dims :]


def write(path, dims, body):
    head = bytes([0, 0, 8, len(dims)]) + struct.pack(f">{len(dims)}I", *dims)
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as out:
        out.write(head + body)


def cut(source, target, split, per_class):
    (n, h, w), pixels = idx(source / f"{split}-images-idx3-ubyte.gz", 3)
    (m,), labels = idx(source / f"{split}-labels-idx1-ubyte.gz", 1)
    assert n == m and len(pixels) == n * h * w and len(labels) == n
    room, kept = [per_class] * CLASSES, []
    for i, label in enumerate(labels):
        if room[label]:
            room[label] -= 1
            kept.append(i)
    assert not any(room), f"{split}: a class has fewer than {per_class} images"
    body = b"".join(pixels[i * h * w : (i + 1) * h * w] for i in kept)
    write(target / f"{split}-images-idx3-ubyte.gz", (len(kept), h, w), body)
    write(target / f"{split}-labels-idx1-ubyte.gz", (len(kept),), bytes(labels[i] for i in kept))
    print(f"{split}: {len(kept)} of {n} images, official indices {kept[0]}..={kept[-1]}")


if __name__ == "__main__":
    source, target = map(pathlib.Path, sys.argv[1:3])
    for split, per_class in PER_CLASS.items():
        cut(source, target, split, per_class)
