#!/usr/bin/env python3
"""Sentence embeddings in numpy, from published files of MiniLM (BERT) alone: minilm.py FOLDER TEXTS OUT.npy

FOLDER has model.safetensors, vocab.txt and config.json; TEXTS a text in each line, of ASCII; OUT.npy gets a row of
length one for each, the mean over its tokens. Nothing of lacuna, of a tokeniser library or of a runtime is used, and
sums are taken in float64: what this computes is what the others must.
"""

import json
import pathlib
import re
import struct
import sys

import numpy as np

TOKENS_MAX = 128


def tensors(path):
    """The tensors of a safetensors file, as float64."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    kinds = {"F32": np.float32, "F16": np.float16, "I64": np.int64}
    found = {}
    for name, about in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + at for at in about["data_offsets"])
            values = np.frombuffer(data[begin:end], kinds[about["dtype"]])
            found[name] = values.reshape(about["shape"]).astype(np.float64)
    return found


def pieces(word, vocabulary):
    """The longest known beginnings of a word, one after the other."""
    found, at = [], 0
    while at < len(word):
        ends = (end for end in range(len(word), at, -1) if ("##" * (at > 0) + word[at:end]) in vocabulary)
        end = next(ends, None)
        if end is None:
            return ["[UNK]"]
        found.append("##" * (at > 0) + word[at:end])
        at = end
    return found


def token_ids(text, vocabulary):
    words = re.findall(r"[a-z0-9]+|[^a-z0-9\s]", text.lower())
    inner = [piece for word in words for piece in pieces(word, vocabulary)]
    return [vocabulary[piece] for piece in ["[CLS]", *inner[: TOKENS_MAX - 2], "[SEP]"]]


def erf(x):
    """Abramowitz and Stegun, 7.1.5 and 7.1.23: a series near 0, a continued fraction farther out."""
    x = np.asarray(x, np.float64)
    near = np.clip(x, -3, 3)
    term, total = near.copy(), near.copy()
    for n in range(1, 80):
        term = -term * near * near / n
        total = total + term / (2 * n + 1)
    far = np.maximum(np.abs(x), 3)
    fraction = far.copy()
    for k in range(60, 0, -1):
        fraction = far + (k / 2) / fraction
    tail = np.sign(x) * (1 - np.exp(-far * far) / fraction / np.sqrt(np.pi))
    return np.where(np.abs(x) <= 3, total * 2 / np.sqrt(np.pi), tail)


class Bert:
    def __init__(self, folder):
        self.w = tensors(folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        self.layers, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
        self.eps = config["layer_norm_eps"]

    def linear(self, name, x):
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.eps)
        return x * self.w[name + ".weight"] + self.w[name + ".bias"]

    def hidden(self, ids):
        """[tokens, width] of one text."""
        e, n = "embeddings.", len(ids)
        x = self.w[e + "word_embeddings.weight"][ids] + self.w[e + "position_embeddings.weight"][:n]
        x = self.norm(e + "LayerNorm", x + self.w[e + "token_type_embeddings.weight"][0])
        for i in range(self.layers):
            layer = f"encoder.layer.{i}."
            q, k, v = (
                self.linear(f"{layer}attention.self.{part}", x).reshape(n, self.heads, -1).swapaxes(0, 1)
                for part in ("query", "key", "value")
            )
            scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
            p = np.exp(scores - scores.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            y = (p @ v).swapaxes(0, 1).reshape(n, -1)
            x = self.norm(f"{layer}attention.output.LayerNorm", x + self.linear(f"{layer}attention.output.dense", y))
            y = self.linear(f"{layer}intermediate.dense", x)
            y = y * (1 + erf(y / np.sqrt(2))) / 2
            x = self.norm(f"{layer}output.LayerNorm", x + self.linear(f"{layer}output.dense", y))
        return x


def main(folder, texts, out):
    folder = pathlib.Path(folder)
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {word: i for i, word in enumerate(words)}
    bert = Bert(folder)
    rows = []
    for text in pathlib.Path(texts).read_text(encoding="ascii").splitlines():
        mean = bert.hidden(token_ids(text, vocabulary)).mean(0)
        rows.append(mean / np.linalg.norm(mean))
    np.save(out, np.array(rows, np.float32))


if __name__ == "__main__":
    main(*sys.argv[1:])
