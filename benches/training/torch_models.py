"""The compared networks in plain PyTorch, without anything of another library: same shapes, parameters and paddings as
the rows of crate `lacuna-models`."""

import torch
import torch.nn.functional as F
from torch import nn


class ActivationFakeQuant(nn.Module):
    """Unsigned 8-bit affine grid from a moving average of batch minima and maxima; `quant` switches it on."""

    def __init__(self):
        super().__init__()
        self.quant = False
        self.register_buffer("lo", torch.tensor(float("inf")))
        self.register_buffer("hi", torch.tensor(float("-inf")))
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32))
        self.register_buffer("on", torch.ones(1, dtype=torch.int64))

    def forward(self, x):
        if not self.quant:
            return x
        return torch.fused_moving_avg_obs_fake_quant(
            x, self.on, self.on, self.lo, self.hi, self.scale, self.zero, 0.01, 0, 255, -1, False, False)


class WeightFakeQuant(nn.Module):
    """Symmetric signed 8-bit grid for each output channel."""

    def __init__(self, channels):
        super().__init__()
        self.quant = False
        self.register_buffer("lo", torch.full((channels,), float("inf")))
        self.register_buffer("hi", torch.full((channels,), float("-inf")))
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("zero", torch.zeros(channels, dtype=torch.int32))
        self.register_buffer("on", torch.ones(1, dtype=torch.int64))

    def forward(self, w):
        return torch.fused_moving_avg_obs_fake_quant(
            w, self.on, self.on, self.lo, self.hi, self.scale, self.zero, 0.01, -128, 127, 0, True, True)


def set_quant(net, quant):
    for module in net.modules():
        if isinstance(module, (ActivationFakeQuant, WeightFakeQuant)):
            module.quant = quant


class ConvNorm(nn.Module):
    """Convolution and batch norm, then a residual and an activation; the folded weight is what is quantised."""

    def __init__(self, c_in, c_out, kernel, stride=1, groups=1, act=None, eps=1e-5, same=False):
        super().__init__()
        # "same" of TensorFlow: what is missing at stride 2 goes to the right and the bottom.
        self.pad = same and stride == 2
        padding = 0 if self.pad else kernel // 2
        self.kernel, self.act = kernel, act
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out")
        self.bn = nn.BatchNorm2d(c_out, eps=eps)
        self.weight_quant = WeightFakeQuant(c_out)
        self.act_quant = ActivationFakeQuant()

    def forward(self, x, residual=None):
        if self.pad:
            before = (self.kernel - 2) // 2
            after = self.kernel - 2 - before
            x = F.pad(x, (before, after, before, after))
        w = self.conv.weight
        if self.weight_quant.quant:
            fold = (self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)).reshape(-1, 1, 1, 1)
            w = self.weight_quant(w * fold) / fold
        y = self.bn(F.conv2d(x, w, None, self.conv.stride, self.conv.padding, 1, self.conv.groups))
        if residual is not None:
            y += residual
        if self.act == "relu":
            y = F.relu(y, inplace=True)
        elif self.act == "relu6":
            y = F.relu6(y, inplace=True)
        return self.act_quant(y)


class Head(nn.Module):
    """Global average and a linear layer."""

    def __init__(self, channels, classes):
        super().__init__()
        self.pool_quant = ActivationFakeQuant()
        self.fc = nn.Linear(channels, classes)
        self.weight_quant = WeightFakeQuant(classes)

    def forward(self, x):
        x = self.pool_quant(F.adaptive_avg_pool2d(x, 1)).flatten(1)
        w = self.weight_quant(self.fc.weight) if self.weight_quant.quant else self.fc.weight
        return F.linear(x, w, self.fc.bias)


class BasicBlock(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1 = ConvNorm(c_in, c_out, 3, stride, act="relu")
        self.conv2 = ConvNorm(c_out, c_out, 3, act="relu")
        self.downsample = ConvNorm(c_in, c_out, 1, stride) if stride != 1 or c_in != c_out else None

    def forward(self, x):
        return self.conv2(self.conv1(x), x if self.downsample is None else self.downsample(x))


class ImageNet(nn.Module):
    """Layers in a row between the quantiser of the input and the head."""

    def __init__(self, layers, channels, classes):
        super().__init__()
        self.input_quant = ActivationFakeQuant()
        self.layers = nn.Sequential(*layers)
        self.head = Head(channels, classes)

    def forward(self, x):
        return self.head(self.layers(self.input_quant(x)))


def resnet(in_channels, stem_stride, stages, classes):
    """ResNet of basic blocks with a 3x3 stem; every stage but the first halves the image."""
    c = stages[0][0]
    layers = [ConvNorm(in_channels, c, 3, stem_stride, act="relu")]
    for s, (c_out, blocks) in enumerate(stages):
        for b in range(blocks):
            layers.append(BasicBlock(c, c_out, 2 if s > 0 and b == 0 else 1))
            c = c_out
    return ImageNet(layers, c, classes)


def mobilenet_v1():
    layers, c = [ConvNorm(3, 32, 3, 2, act="relu")], 32
    for c_out, stride in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)] + [(512, 1)] * 5 + [(1024, 2), (1024, 1)]:
        layers += [ConvNorm(c, c, 3, stride, groups=c, act="relu"), ConvNorm(c, c_out, 1, act="relu")]
        c = c_out
    return ImageNet(layers, c, 1000)


class MBConv(nn.Module):
    """Inverted bottleneck: widen, depthwise, narrow."""

    def __init__(self, c_in, c_out, kernel, stride, expand):
        super().__init__()
        wide = c_in * expand
        same = dict(eps=1e-3, same=True)
        self.expand = ConvNorm(c_in, wide, 1, act="relu6", **same) if expand != 1 else None
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide, act="relu6", **same)
        self.narrow = ConvNorm(wide, c_out, 1, **same)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x):
        y = x if self.expand is None else self.expand(x)
        return self.narrow(self.depthwise(y), x if self.residual else None)


def efficientnet_lite0():
    layers, c = [ConvNorm(3, 32, 3, 2, act="relu6", eps=1e-3, same=True)], 32
    for kernel, stride, expand, c_out, blocks in [(3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3),
                                                  (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1)]:
        for b in range(blocks):
            layers.append(MBConv(c, c_out, kernel, stride if b == 0 else 1, expand))
            c = c_out
    layers.append(ConvNorm(c, 1280, 1, act="relu6", eps=1e-3, same=True))
    return ImageNet(layers, 1280, 1000)


class BertLayer(nn.Module):
    """Post-norm encoder layer, erf GELU."""

    def __init__(self, width, heads, inner):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attention_output, self.attention_norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.intermediate, self.output = nn.Linear(width, inner), nn.Linear(inner, width)
        self.output_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x, mask):
        n, tokens, width = x.shape
        split = lambda t: t.view(n, tokens, self.heads, width // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(split(self.query(x)), split(self.key(x)), split(self.value(x)), attn_mask=mask)
        x = self.attention_norm(x + self.attention_output(y.transpose(1, 2).reshape(n, tokens, width)))
        return self.output_norm(x + self.output(F.gelu(self.intermediate(x))))


class Bert(nn.Module):
    """Token ids [n, tokens] and a mask of the real ones to logits [n, 2], by the first token's state."""

    def __init__(self, layers, width, heads, inner, vocabulary=30522, positions=512):
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.types, self.norm = nn.Embedding(2, width), nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(BertLayer(width, heads, inner) for _ in range(layers))
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 2)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, ids, mask):
        place = torch.arange(ids.shape[1])
        x = self.norm(self.words(ids) + self.positions(place) + self.types(torch.zeros_like(ids)))
        mask = mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))
