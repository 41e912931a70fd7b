#!/usr/bin/env python3
"""Makes the files of tests/data/exports: small networks with real layers and random weights, as exporters write them.

    make_exports.py torch|tensorflow FOLDER

Each exporter writes a CNN and a transformer: FOLDER/NAME/model.onnx, with FOLDER/NAME/CASE/input_I.npy and
output_I.npy: what onnxruntime makes of the inputs, for two batches. Packages, each set in an environment of its own:

    torch 2.15.0, onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.31.1
    tensorflow-cpu 2.21.0 (Keras 3.15.1), tf2onnx 1.17.0, onnx 1.23.2, onnxruntime 1.31.1
"""

import pathlib
import sys

import numpy as np
import onnx
import onnxruntime as ort

SEED = 7


def save(folder, name, cases):
    """Adds the cases to a file that was written: {case: inputs in the order of the model's}."""
    clean(folder / name / "model.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(folder / name / "model.onnx"), options, providers=["CPUExecutionProvider"])
    for case, inputs in cases.items():
        (folder / name / case).mkdir(parents=True, exist_ok=True)
        for i, array in enumerate(inputs):
            np.save(folder / name / case / f"input_{i}.npy", array)
        outputs = session.run(None, {port.name: x for port, x in zip(session.get_inputs(), inputs)})
        for i, array in enumerate(outputs):
            np.save(folder / name / case / f"output_{i}.npy", array)
    print(name, (folder / name / "model.onnx").stat().st_size, "bytes")


def clean(path):
    """Takes out what tells of the machine that wrote the file, and of its source."""
    model = onnx.load(path)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.save(model, path)


def image_cases(layout):
    random = np.random.default_rng(SEED)
    shape = lambda n: (n, 3, 24, 24) if layout == "nchw" else (n, 24, 24, 3)
    return {case: [random.normal(size=shape(n)).astype(np.float32)] for case, n in (("one", 1), ("three", 3))}


VOCABULARY, WIDTH, HEADS, LENGTH = 50, 32, 4, 16


def token_cases(length=None):
    """ids and mask; the tail of the last row is padding."""
    random, cases = np.random.default_rng(SEED), {}
    for case, n, tokens in (("one", 1, length or 7), ("three", 3, length or 12)):
        ids = random.integers(1, VOCABULARY, (n, tokens))
        mask = np.ones_like(ids)
        mask[-1, tokens - 2 :] = 0
        cases[case] = [ids, mask]
    return cases


# ---- PyTorch -------------------------------------------------------------------------------------------------------


def with_torch(folder):
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(SEED)

    class Residual(nn.Module):
        """An inverted residual block with squeeze and excitation (Howard et al. 2019)."""

        def __init__(self, channels):
            super().__init__()
            wide = 3 * channels
            self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish())
            self.depthwise = nn.Sequential(
                nn.Conv2d(wide, wide, 5, padding=2, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.SiLU()
            )
            self.squeeze = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 8, 1), nn.ReLU(), nn.Conv2d(8, wide, 1), nn.Hardsigmoid()
            )
            self.project = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels))

        def forward(self, x):
            y = self.depthwise(self.expand(x))
            return x + self.project(y * self.squeeze(y))

    class Cnn(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
            self.block = Residual(16)
            self.pool = nn.MaxPool2d(3, 2, 1)
            self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.GELU())
            self.mix = nn.Conv2d(32, 24, 3, padding=1)
            self.norm = nn.GroupNorm(4, 24)
            self.head = nn.Linear(24, 10)

        def forward(self, x):
            x = self.block(self.stem(x))
            deep = F.interpolate(self.deep(self.pool(x)), scale_factor=2.0, mode="nearest")
            x = F.leaky_relu(self.norm(self.mix(torch.cat([x, deep], 1))), 0.1)
            return self.head(x.mean((2, 3)))

    class Layer(nn.Module):
        """Attention and two linear layers, each behind a norm and beside a residual (Vaswani et al. 2017)."""

        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
            self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])

        def forward(self, x, mask):
            n, t, _ = x.shape
            q, k, v = self.qkv(x).view(n, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = self.norms[0](x + self.out(y.transpose(1, 2).reshape(n, t, WIDTH)))
            return self.norms[1](x + self.down(F.gelu(self.up(x))))

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
            self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
            self.layers = nn.ModuleList([Layer(), Layer()])
            self.head = nn.Linear(WIDTH, 3)

        def forward(self, ids, mask):
            x = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1])))
            added = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e4
            for layer in self.layers:
                x = layer(x, added)
            weight = mask[:, :, None].to(x.dtype)
            return self.head((x * weight).sum(1) / weight.sum(1).clamp(min=1e-9))

    def trained(model):
        """Statistics and scales that are not those of a fresh network."""
        for m in model.modules():
            if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias, std=0.2)
            if isinstance(m, nn.BatchNorm2d):
                nn.init.normal_(m.running_mean, std=0.2)
                nn.init.uniform_(m.running_var, 0.5, 1.5)
        return model.eval()

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=LENGTH)
    tensors = lambda arrays: tuple(torch.from_numpy(a) for a in arrays)
    for name, model, cases, names, axes, shapes in (
        ("cnn", Cnn(), image_cases("nchw"), ["x"], {"x": {0: "batch"}}, ({0: batch},)),
        (
            "transformer",
            Transformer(),
            token_cases(),
            ["ids", "mask"],
            {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}},
            ({0: batch, 1: length}, {0: batch, 1: length}),
        ),
    ):
        model, example = trained(model), tensors(cases["three"])
        for exporter in ("torchscript", "dynamo"):
            title = f"torch_{exporter}_{name}"
            (folder / title).mkdir(parents=True, exist_ok=True)
            path, common = folder / title / "model.onnx", {"input_names": names, "output_names": ["y"]}
            if exporter == "dynamo":
                program = torch.onnx.export(model, example, dynamo=True, dynamic_shapes=shapes, **common)
                program.save(path, include_initializers=True)
            else:
                torch.onnx.export(model, example, path, dynamo=False, opset_version=17, dynamic_axes=axes, **common)
            save(folder, title, cases)


# ---- Keras and TensorFlow ------------------------------------------------------------------------------------------


def with_tensorflow(folder):
    import keras
    import tensorflow as tf
    import tf2onnx
    from keras import layers, ops

    keras.utils.set_random_seed(SEED)

    def cnn():
        x = inputs = keras.Input((24, 24, 3), name="x")
        x = layers.Conv2D(16, 3, 2, "same", use_bias=False)(x)
        x = y = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        y = layers.DepthwiseConv2D(5, padding="same")(y)
        y = layers.Activation("swish")(layers.BatchNormalization()(y))
        x = layers.Add()([x, layers.Conv2D(16, 1)(y)])
        y = layers.UpSampling2D(2)(layers.MaxPooling2D(2)(x))
        x = layers.SeparableConv2D(24, 3, activation="relu")(layers.Concatenate()([x, y]))
        x = layers.AveragePooling2D(2)(layers.ZeroPadding2D(1)(x))
        x = layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, layers.Dense(10, "softmax")(x))

    class Places(layers.Layer):
        """Adds a vector for each place."""

        def build(self, shape):
            self.places = self.add_weight(shape=(shape[1], shape[2]), initializer="random_normal", name="places")

        def call(self, x):
            return x + self.places

    def tanh_gelu(x):  # The exact one is an op that tf2onnx does not know.
        return ops.gelu(x, approximate=True)

    def transformer():
        ids = keras.Input((LENGTH,), dtype="int32", name="ids")
        mask = keras.Input((LENGTH,), dtype="int32", name="mask")
        x = Places()(layers.Embedding(VOCABULARY, WIDTH)(ids))
        allowed = ops.cast(mask, "bool")[:, None, :]
        for _ in range(2):
            y = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(x, x, attention_mask=allowed)
            x = layers.LayerNormalization()(x + y)
            y = layers.Dense(WIDTH)(layers.Dense(2 * WIDTH, tanh_gelu)(x))
            x = layers.LayerNormalization()(x + y)
        return keras.Model([ids, mask], layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))

    def tf_cnn(random):
        weight = lambda *shape: random.normal(size=shape, scale=0.2).astype(np.float32)
        w1, w2, w3, w4 = weight(3, 3, 3, 16), weight(3, 3, 16, 2), weight(1, 1, 32, 16), weight(16, 10)
        mean, variance, offset, scale = weight(16), weight(16) ** 2 + 0.5, weight(16), weight(16) + 1

        @tf.function(input_signature=[tf.TensorSpec((None, 24, 24, 3), tf.float32, name="x")])
        def network(x):
            x = tf.nn.conv2d(x, w1, 2, "SAME")
            x = tf.nn.relu6(tf.nn.batch_normalization(x, mean, variance, offset, scale, 1e-3))
            y = tf.nn.depthwise_conv2d(x, w2, [1, 1, 1, 1], "SAME")
            y = tf.nn.leaky_relu(tf.nn.conv2d(y, w3, 1, "VALID"), 0.1)
            x = tf.nn.max_pool2d(x + y * tf.sigmoid(y), 3, 2, "SAME")
            x = tf.image.resize(x, (12, 12), "nearest")
            x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
            return tf.matmul(tf.reduce_mean(x, [1, 2]), w4)

        return network

    def tf_transformer(random):
        weight = lambda *shape: random.normal(size=shape, scale=0.2).astype(np.float32)
        words, places, head = weight(VOCABULARY, WIDTH), weight(LENGTH, WIDTH), weight(WIDTH, 3)
        rows = [[weight(WIDTH, WIDTH) for _ in range(4)] + [weight(WIDTH, 64), weight(64, WIDTH)] for _ in range(2)]

        def norm(x):
            mean, variance = tf.nn.moments(x, -1, keepdims=True)
            return (x - mean) * tf.math.rsqrt(variance + 1e-5)

        def gelu(x):
            return 0.5 * x * (1 + tf.math.erf(x / np.float32(np.sqrt(2))))

        @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int32, name=n) for n in ("ids", "mask")])
        def network(ids, mask):
            n, t = tf.shape(ids)[0], tf.shape(ids)[1]
            x = tf.gather(words, ids) + tf.constant(places)[:t]
            added = tf.cast(1 - mask, tf.float32)[:, None, None, :] * -1e4
            split = lambda y: tf.transpose(tf.reshape(y, (n, t, HEADS, WIDTH // HEADS)), (0, 2, 1, 3))
            for wq, wk, wv, wo, up, down in rows:
                q, k, v = (split(tf.einsum("ntc,cd->ntd", x, w)) for w in (wq, wk, wv))
                scores = tf.matmul(q, k, transpose_b=True) / np.float32(np.sqrt(WIDTH // HEADS)) + added
                y = tf.transpose(tf.matmul(tf.nn.softmax(scores), v), (0, 2, 1, 3))
                x = norm(x + tf.einsum("ntc,cd->ntd", tf.reshape(y, (n, t, WIDTH)), wo))
                x = norm(x + tf.einsum("ntc,cd->ntd", gelu(tf.einsum("ntc,cd->ntd", x, up)), down))
            return tf.matmul(tf.reduce_mean(x, 1), head)

        return network

    random = np.random.default_rng(SEED)
    as_i32 = lambda cases: {case: [a.astype(np.int32) for a in arrays] for case, arrays in cases.items()}
    for name, model, cases in (
        ("keras_cnn", cnn(), image_cases("nhwc")),
        ("keras_transformer", transformer(), as_i32(token_cases(LENGTH))),
    ):
        for weight in model.weights:  # Statistics and offsets that are not those of a fresh network.
            noise = random.uniform(0, 0.4, weight.shape)
            if weight.path.rsplit("/")[-1] in ("moving_mean", "moving_variance", "beta", "gamma", "bias"):
                weight.assign(weight + noise)
        (folder / name).mkdir(parents=True, exist_ok=True)
        model(cases["three"][0] if len(cases["three"]) == 1 else cases["three"])  # It wants to have been called.
        model.export(str(folder / name / "model.onnx"), format="onnx", verbose=False)
        save(folder, name, cases)
    for name, network, cases in (
        ("tf2onnx_cnn", tf_cnn(random), image_cases("nhwc")),
        ("tf2onnx_transformer", tf_transformer(random), as_i32(token_cases())),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        path = str(folder / name / "model.onnx")
        tf2onnx.convert.from_function(network, network.input_signature, opset=17, output_path=path)
        save(folder, name, cases)


if __name__ == "__main__":
    {"torch": with_torch, "tensorflow": with_tensorflow}[sys.argv[1]](pathlib.Path(sys.argv[2]))
