"""The recipes' networks for PyTorch, written as the same layer lists that Tilework reads.

A network is a list of layers, one text each; the numbers in a state dict's keys ("3.weight") count
all of them, as nn.Sequential does:

    conv 5x5, 16 channels [, stride 2 | 2x1] [, pad 1 | 1x0] [, no bias]     sizes: height x width
    fc 120 [, no bias]
    batch_norm [, eps 1e-5] [, momentum 0.1] [, frozen]
    relu
    max_pool 2x2 [, stride 2] [, pad 1]                                      stride: the kernel's size
    avg_pool 2x2 [, stride 2] [, pad 1] [, exclude_pad]
    adaptive_max_pool 1x1
    adaptive_avg_pool 1x1
    dropout 0.5
    flatten
    log_softmax
    resnet18 10 [, dropout 0.3]                                              torchvision's, with ten outputs
    {"residual": [layers]}                                                   x + f(x)

`build(layers, (channels, height, width))` makes the module, and works out the input sizes of the
layers by running one image of zeros through what is built so far.
"""

import torch
from torch import nn


class Residual(nn.Sequential):
    """x + f(x), where f is the sequence of inner layers."""

    def forward(self, x):
        return x + super().forward(x)


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch-norm that stays in evaluation: its running statistics normalise and do not move."""

    def train(self, mode=True):
        return super().train(False)


def pair(text):
    """ "2" -> (2, 2); "2x1" -> (2, 1)."""
    parts = [int(p) for p in text.split("x")]
    return (parts[0], parts[-1])


def layer(spec, shape):
    """The module for one layer, given the shape (without the batch) of what goes in."""
    if isinstance(spec, dict):
        return build(spec["residual"], shape, Residual)
    head, *options = [part.strip() for part in spec.split(",")]
    kind, _, size = head.partition(" ")
    bias = "no bias" not in options
    option = dict(o.split(" ", 1) for o in options if o not in ("no bias", "exclude_pad", "frozen"))
    stride, pad = option.get("stride"), pair(option.get("pad", "0"))
    match kind:
        case "conv":
            channels = next(int(o.split()[0]) for o in options if o.endswith("channels"))
            return nn.Conv2d(shape[0], channels, pair(size), pair(stride or "1"), pad, bias=bias)
        case "fc":
            return nn.Linear(shape[0], int(size), bias=bias)
        case "batch_norm":
            kind = FrozenBatchNorm if "frozen" in options else nn.BatchNorm2d
            return kind(shape[0], float(option.get("eps", 1e-5)), float(option.get("momentum", 0.1)))
        case "relu":
            return nn.ReLU()
        case "max_pool":
            return nn.MaxPool2d(pair(size), pair(stride or size), pad)
        case "avg_pool":
            return nn.AvgPool2d(pair(size), pair(stride or size), pad, count_include_pad="exclude_pad" not in options)
        case "adaptive_max_pool":
            return nn.AdaptiveMaxPool2d(pair(size))
        case "adaptive_avg_pool":
            return nn.AdaptiveAvgPool2d(pair(size))
        case "dropout":
            return nn.Dropout(float(size))
        case "flatten":
            return nn.Flatten()
        case "log_softmax":
            return nn.LogSoftmax(1)
        case "resnet18":
            import torchvision

            net = torchvision.models.resnet18(num_classes=int(size))
            if "dropout" in option:
                net.fc = nn.Sequential(nn.Dropout(float(option["dropout"])), net.fc)
            return net
    raise ValueError(f"unknown layer: {spec}")


def build(layers, shape, kind=nn.Sequential):
    """The module for a list of layers and an input of `shape` (channels, height, width)."""
    modules = []
    with torch.no_grad():
        x = torch.zeros(1, *shape)
        for spec in layers:
            modules.append(layer(spec, tuple(x.shape[1:])))
            x = modules[-1].eval()(x)
            modules[-1].train()
    return kind(*modules)


def head(*sizes, dropout_after=()):
    """Fully connected layers with a ReLU after each but the last, and dropout after those of these numbers."""
    drop = lambda i: ["dropout 0.1"] if i in dropout_after else []
    return [spec for i, size in enumerate(sizes[:-1], 1) for spec in (f"fc {size}", "relu", *drop(i))] + [f"fc {sizes[-1]}"]


def lenet(c1, c2, *fc, dropout_after=()):
    convs = [spec for c in (c1, c2) for spec in (f"conv 5x5, {c} channels", "relu", "max_pool 2x2")]
    return [*convs, "flatten", *head(*fc, dropout_after=dropout_after)]


def third_conv():
    convs = ["conv 5x5, 64 channels", "relu", "max_pool 2x2", "conv 5x5, 128 channels", "relu", "conv 5x5, 256 channels", "relu", "max_pool 2x2"]
    return [*convs, "flatten", *head(1600, 800, 400, 200, 100, 50, 10, dropout_after=(3, 5))]


def bn_cnn(p):
    def pair_of_convs(*channels):
        return [spec for c in channels for spec in (f"conv 3x3, {c} channels", "batch_norm", "relu")]

    drop = f"dropout {p}"
    return [
        *[*pair_of_convs(16, 32), "max_pool 2x2, stride 2", drop],
        *[*pair_of_convs(64, 128), "max_pool 1x1, stride 1", drop],
        *[*pair_of_convs(256, 512), "max_pool 1x1, stride 1", drop],
        *["flatten", "fc 1024", "relu", drop, "fc 256", "relu", "fc 10"],
    ]


def conv_net(pad):
    convs = [spec for c in (20, 40, 80) for spec in (f"conv 3x3, {c} channels, stride 2{pad}", "relu")]
    return [*convs, "adaptive_max_pool 1x1", "flatten", "fc 10"]


def conv_bn_net(deep):
    layers = ["conv 5x5, 10 channels, pad 2"]
    for c in (20, 40, 80, 160):
        layers += [f"conv 3x3, {c} channels, stride 2, pad 1, no bias", "relu", "batch_norm"]
        if deep:
            layers += [f"conv 3x3, {c} channels, pad 1, no bias", "relu", "batch_norm"]
    return [*layers, "adaptive_max_pool 1x1", "flatten", "fc 10"]


def resnet9(classes):
    def block(*channels):
        return [spec for c in channels for spec in (f"conv 3x3, {c} channels, pad 1", "batch_norm", "relu")]

    wide = [*block(64, 128), "max_pool 2x2", {"residual": block(128, 128)}]
    deep = [*block(256), "max_pool 2x2", *block(512), "max_pool 2x2", {"residual": block(512, 512)}]
    return [*wide, *deep, "max_pool 4x4", "flatten", f"fc {classes}"]


# name -> (layers, the recipe's batch size); for images of 3 x 32 x 32 but for those in SIZES.
RECIPES = {
    "a1-lenet": (lenet(6, 16, 120, 84, 10), 4),
    "a7-wider": (lenet(64, 128, 1600, 800, 400, 200, 100, 50, 10, dropout_after=(3, 5)), 4),
    "a8-third-conv": (third_conv(), 4),
    "b1-bn-cnn": (bn_cnn(0.5), 16),
    "c1-fully-connected": (["flatten", *head(40, 10)], 256),
    "c2-conv": (conv_net(""), 256),
    "c3-conv-padded": (conv_net(", pad 1"), 256),
    "c4-conv-bn": (conv_bn_net(False), 256),
    "c5-deep-conv-bn": (conv_bn_net(True), 256),
    "d1-resnet18": (["resnet18 10"], 128),
    "d5-tiny": (["resnet18 10, dropout 0.3"], 128),
    "e1-resnet9-onecycle": (resnet9(20), 64),
}
# Those that are trained with Adam; the others with SGD of momentum 0.9.
ADAM = ["d1-resnet18", "d5-tiny", "e1-resnet9-onecycle"]
SIZES = {"d5-tiny": 224}
