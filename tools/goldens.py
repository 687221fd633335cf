"""Writes the PyTorch results that Tilework's tests compare with, to tests/goldens/.

Install and run (CPU is enough; about a minute):

    pip install torch torchvision numpy safetensors
    python tools/goldens.py                  # everything
    python tools/goldens.py ops optim        # only these parts: ops, optim, networks, schedules, updates, recipes
    python tools/goldens.py --out DIR        # somewhere else, to compare with what is committed

Nothing here depends on a random generator of PyTorch's but the weights of state_dict_*.safetensors
(torch.manual_seed): all other inputs come from Tilework's own Philox (philox.py), so a run on the
same machine and PyTorch writes the same bytes. On another CPU the float32 losses of networks.json
may differ in their last digits.

What is written, all in PyTorch's layouts (NCHW, OIHW, [out, in]):

ops.safetensors, ops.json
    float64 results per op. The JSON lists {"op", "case", "params", "tensors"}; tensors maps a role
    to a name in the safetensors file. Roles: inputs (x, w, b, gamma, beta, ...), the result y, the
    gradient gy that comes in from above, and the gradient g<input> for each input that has one.

optim.json
    Seven float64 parameters, twelve given gradients, the rate of each step, the parameters after
    each step.

schedules.json, updates.json, recipes.json, airbench.json
    See schedules.py, updates.py and trajectories.py.

networks.json
    "networks": twenty training steps of each (c5: twelve), from weights and batches that both sides draw
    from Philox (see `initialise` and `batch`), in float32 and in float64.
    "state_dicts": the two committed state dicts, with the logits for one batch.
    Numbers come as {"f32": ..., "f64": ...}. A gradient that is zero but for rounding (the bias of a
    convolution before a batch-norm) has an f64 norm near 1e-17 and an f32 norm near 1e-8: compare
    with a tolerance relative to the network's largest norm. "drift" is how far the float32 run is
    from the float64 one; "spread" is the same over five float32 runs, four of them from weights
    disturbed by one millionth: what another order of summation may do. "losses" holds a value per
    step. A float32 engine can be held to a few times the spread, a float64 one to 1e-9 or so.
"""

import argparse
import json
import math
import sys
from pathlib import Path

sys.dont_write_bytecode = True

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import airbench
import networks
import philox
import schedules
import trajectories
import updates


# ---------------------------------------------------------------- JSON that reads and diffs well


def dump(value, indent=""):
    """JSON with one line for whatever fits in 150 characters."""
    line = json.dumps(value)
    if len(indent) + len(line) <= 150 or not isinstance(value, (dict, list)):
        return line
    inner = indent + " "
    if isinstance(value, dict):
        rows = [f"{inner}{json.dumps(k)}: {dump(v, inner)}" for k, v in value.items()]
    else:
        rows = [inner + dump(v, inner) for v in value]
    return "\n".join(["{" if isinstance(value, dict) else "[", ",\n".join(rows), indent + ("}" if isinstance(value, dict) else "]")])


def write_json(path, value):
    path.write_text(dump(value) + "\n")


def write_safetensors(path, tensors):
    save_file(tensors, path)
    path.chmod(0o644)


# ---------------------------------------------------------------- ops


class Ops:
    """Collects the cases of every op."""

    def __init__(self):
        self.entries, self.tensors, self.draws = [], {}, 0

    def uniform(self, *shape, low=-2.0, high=2.0):
        """A float64 tensor; each call draws from a stream of its own."""
        self.draws += 1
        u = philox.uniform(math.prod(shape), seed=2024, id=self.draws).astype(np.float64)
        return torch.from_numpy(low + (high - low) * u).reshape(shape)

    def integers(self, *shape, low=-2, high=2):
        """A float64 tensor of whole numbers low..=high: full of ties and zeros."""
        return torch.floor(self.uniform(*shape, low=low, high=high + 1))

    def labels(self, n, classes):
        self.draws += 1
        return torch.from_numpy(philox.below(n, classes, seed=2024, id=self.draws))

    def add(self, op, case, params, inputs, f, constants=(), gy=None, after=None):
        """Runs y = f(**inputs) and its gradient, and records them.

        `inputs` that are floating point get a gradient, unless named in `constants`. `after` gives
        more tensors to record once f has run.
        """
        leaves = {k: v.clone() for k, v in inputs.items()}
        wanted = [k for k, v in leaves.items() if v.is_floating_point() and k not in constants]
        for k in wanted:
            leaves[k].requires_grad_()
        y = f(**leaves)
        assert y.dtype == torch.float64
        gy = self.uniform(*y.shape) if gy is None else gy
        grads = torch.autograd.grad(y, [leaves[k] for k in wanted], gy)
        record = {**inputs, "y": y, "gy": gy, **{"g" + k: g for k, g in zip(wanted, grads)}, **(after() if after else {})}
        index = sum(e["op"] == op for e in self.entries)
        names = {role: f"{op}.{index}.{role}" for role in record}
        for role, tensor in record.items():
            assert tensor.isfinite().all(), f"{op} {case}: {role} is not finite"
            self.tensors[names[role]] = tensor.detach().clone().contiguous()
        self.entries.append({"op": op, "case": case, "params": params, "tensors": names})
        return record


def conv2d(ops):
    def case(name, n, cin, h, w, cout, kernel, stride=(1, 1), padding=(0, 0), bias=True):
        inputs = {"x": ops.uniform(n, cin, h, w), "w": ops.uniform(cout, cin, *kernel, low=-1, high=1)}
        if bias:
            inputs["b"] = ops.uniform(cout)
        params = {"stride": stride, "padding": padding}
        ops.add("conv2d", name, params, inputs, lambda x, w, b=None: F.conv2d(x, w, b, stride, padding))

    case("5x5 on rgb", 2, 3, 12, 12, 6, (5, 5))
    case("3x3 padded, no bias", 2, 4, 7, 9, 5, (3, 3), padding=(1, 1), bias=False)
    case("stride 2, last row and column unused", 3, 3, 8, 10, 4, (3, 3), stride=(2, 2))
    case("stride 2 padded", 2, 5, 9, 7, 8, (3, 3), stride=(2, 2), padding=(1, 1))
    case("kernel, stride and padding all non-square", 2, 3, 11, 8, 7, (5, 3), stride=(2, 1), padding=(2, 0))
    case("wide kernel, stride 1x3", 1, 2, 5, 13, 3, (1, 4), stride=(1, 3), padding=(0, 2))
    case("1x1", 2, 7, 5, 3, 9, (1, 1))
    case("1x1, stride larger than the kernel", 2, 3, 7, 8, 4, (1, 1), stride=(3, 2), bias=False)
    case("kernel as large as the image", 4, 3, 5, 6, 10, (5, 6))
    case("one pixel, padding makes the window", 1, 3, 1, 1, 4, (3, 3), padding=(1, 1))
    case("one of everything", 1, 1, 1, 1, 1, (1, 1))
    case("padding beyond the kernel's half", 1, 2, 4, 3, 3, (3, 3), padding=(2, 2))
    case("padding as large as the kernel: whole windows in it", 2, 2, 3, 4, 2, (2, 2), padding=(2, 2))
    case("many channels", 2, 19, 6, 7, 33, (3, 3), padding=(1, 1))
    case("stem: 7x7, stride 2, pad 3", 1, 3, 17, 15, 6, (7, 7), stride=(2, 2), padding=(3, 3), bias=False)


def linear(ops):
    def case(name, n, i, o, bias=True):
        inputs = {"x": ops.uniform(n, i), "w": ops.uniform(o, i, low=-1, high=1)}
        if bias:
            inputs["b"] = ops.uniform(o)
        ops.add("linear", name, {}, inputs, lambda x, w, b=None: F.linear(x, w, b))

    case("batch 4", 4, 12, 7)
    case("no bias", 3, 5, 9, bias=False)
    case("batch 1", 1, 33, 10)
    case("one output", 6, 8, 1)
    case("one input", 5, 1, 4)
    case("one of everything", 1, 1, 1)
    case("past one tile", 17, 65, 67)
    case("a long sum", 2, 1025, 3, bias=False)


def elementwise(ops):
    def relu(name, x):
        ops.add("relu", name, {}, {"x": x}, lambda x: F.relu(x))

    relu("both signs", ops.uniform(2, 3, 4, 5))
    relu("exact zeros: gradient 0 there", ops.integers(3, 2, 5, 3, low=-1, high=1))
    relu("all negative", ops.uniform(1, 2, 3, 3, low=-3, high=-1))
    relu("negative zero", torch.tensor([[-0.0, 0.0, 1e-300, -1e-300]], dtype=torch.float64))
    relu("one element", ops.uniform(1, 1, 1, 1, low=0.5))
    relu("two axes", ops.uniform(4, 7))

    for name, shape in [("4 axes", (2, 3, 4, 5)), ("2 axes", (3, 7)), ("one element", (1, 1, 1, 1)), ("odd length", (1, 3, 7, 11))]:
        ops.add("add", name, {}, {"a": ops.uniform(*shape), "b": ops.uniform(*shape)}, lambda a, b: a + b)

    for name, shape in [("channel-major", (2, 3, 4, 5)), ("batch 1", (1, 4, 2, 3)), ("one pixel", (3, 5, 1, 1)), ("one channel", (2, 1, 3, 4))]:
        ops.add("flatten", name, {}, {"x": ops.uniform(*shape)}, lambda x: x.flatten(1))


def first_maximum(x, kernel, stride, padding):
    """Flat index (in h x w) of each window's first maximum in row-major order, the slow way."""
    n, c, h, w = x.shape
    oh, ow = ((size + 2 * p - k) // s + 1 for size, k, s, p in zip((h, w), kernel, stride, padding))
    out = torch.empty(n, c, oh, ow, dtype=torch.int64)
    for image, channel, i, j in np.ndindex(n, c, oh, ow):
        window = [
            (r, q)
            for r in range(i * stride[0] - padding[0], i * stride[0] - padding[0] + kernel[0])
            for q in range(j * stride[1] - padding[1], j * stride[1] - padding[1] + kernel[1])
            if 0 <= r < h and 0 <= q < w
        ]
        r, q = max(window, key=lambda at: x[image, channel, *at])  # max() keeps the first
        out[image, channel, i, j] = r * w + q
    return out


def pools(ops):
    def max_pool(name, x, kernel, stride=None, padding=(0, 0)):
        stride = stride or kernel
        _, at = F.max_pool2d(x, kernel, stride, padding, return_indices=True)
        assert torch.equal(at, first_maximum(x, kernel, stride, padding)), f"max_pool2d {name}: not the first maximum"
        params = {"kernel": kernel, "stride": stride, "padding": padding}
        ops.add("max_pool2d", name, params, {"x": x}, lambda x: F.max_pool2d(x, kernel, stride, padding))

    max_pool("2x2", ops.uniform(2, 3, 6, 8), (2, 2))
    max_pool("2x2, odd size: last row and column unused", ops.uniform(2, 3, 7, 5), (2, 2))
    max_pool("1x1 / 1 is the identity", ops.uniform(2, 3, 4, 5), (1, 1))
    max_pool("overlapping 3x3 / 2 padded", ops.uniform(2, 4, 9, 7), (3, 3), (2, 2), (1, 1))
    max_pool("ties: the first in the window", ops.integers(2, 3, 8, 6), (2, 2))
    max_pool("ties, overlapping, padded", ops.integers(2, 3, 7, 9), (3, 3), (1, 1), (1, 1))
    max_pool("all equal, overlapping, padded", torch.full((1, 2, 5, 6), 0.25, dtype=torch.float64), (3, 3), (2, 2), (1, 1))
    max_pool("all negative: padding must not win", ops.uniform(2, 2, 5, 5, low=-9, high=-1), (3, 3), (2, 2), (1, 1))
    max_pool("kernel, stride, padding all non-square", ops.uniform(2, 3, 9, 8), (3, 2), (2, 1), (1, 0))
    max_pool("wide kernel padded, ties", ops.integers(1, 2, 4, 9, low=-1, high=1), (1, 4), (2, 3), (0, 2))
    max_pool("stride larger than the kernel", ops.uniform(1, 3, 8, 10), (2, 2), (3, 4))
    max_pool("one pixel", ops.uniform(3, 4, 1, 1), (1, 1))
    max_pool("one pixel, padded", ops.uniform(1, 4, 1, 1), (3, 3), (1, 1), (1, 1))
    max_pool("the whole image", ops.uniform(2, 3, 4, 4), (4, 4))
    max_pool("more channels than a block", ops.uniform(1, 35, 5, 4), (2, 2), (1, 1))

    shapes = [
        ("to one", (2, 5, 4, 6), (1, 1)),
        ("to one, odd", (3, 4, 7, 3), (1, 1)),
        ("dividing", (2, 3, 6, 8), (3, 2)),
        ("not dividing: windows overlap", (2, 3, 7, 5), (3, 3)),
        ("not dividing, non-square", (1, 4, 10, 7), (4, 5)),
        ("the same size", (2, 2, 3, 4), (3, 4)),
        ("larger than the input", (1, 3, 3, 2), (5, 4)),
        ("one pixel", (2, 3, 1, 1), (1, 1)),
        ("one pixel to many", (1, 2, 1, 1), (2, 3)),
        ("batch 1, many channels", (1, 37, 4, 4), (1, 1)),
    ]
    for op, f in [("adaptive_max_pool2d", F.adaptive_max_pool2d), ("adaptive_avg_pool2d", F.adaptive_avg_pool2d)]:
        for name, shape, size in shapes:
            ops.add(op, name, {"output": size}, {"x": ops.uniform(*shape)}, lambda x: f(x, size))
    for name, shape, size in [("ties, to one", (2, 3, 4, 5), (1, 1)), ("ties, windows overlap", (2, 2, 7, 8), (3, 3))]:
        x = ops.integers(*shape, low=-1, high=1)
        ops.add("adaptive_max_pool2d", name, {"output": size}, {"x": x}, lambda x: F.adaptive_max_pool2d(x, size))
    equal = torch.full((1, 2, 5, 4), -0.5, dtype=torch.float64)
    ops.add("adaptive_max_pool2d", "all equal", {"output": (2, 3)}, {"x": equal}, lambda x: F.adaptive_max_pool2d(x, (2, 3)))


def batch_norm(ops):
    def case(name, x, train=True, momentum=0.1, eps=1e-5):
        c = x.shape[1]
        inputs = {
            "x": x,
            "gamma": ops.uniform(c, low=-0.5, high=1.5),
            "beta": ops.uniform(c),
            "running_mean": ops.uniform(c),
            "running_var": ops.uniform(c, low=0.5, high=2.5),
        }
        mean, var = inputs["running_mean"].clone(), inputs["running_var"].clone()

        def f(x, gamma, beta, **_):
            return F.batch_norm(x, mean, var, gamma, beta, train, momentum, eps)

        params = {"train": train, "momentum": momentum, "eps": eps}
        statistics = ("running_mean", "running_var")
        ops.add("batch_norm2d", name, params, inputs, f, statistics, after=lambda: {"running_mean_after": mean, "running_var_after": var})

    case("train", ops.uniform(4, 3, 5, 6))
    case("train, batch 1", ops.uniform(1, 5, 3, 4))
    case("train, one pixel", ops.uniform(6, 4, 1, 1))
    case("train, two values per channel", ops.uniform(2, 3, 1, 1))
    case("train, one channel", ops.uniform(3, 1, 4, 3))
    case("train, momentum 0.3, eps 1e-3", ops.uniform(2, 4, 3, 5), momentum=0.3, eps=1e-3)
    case("train, momentum 1: the last batch alone", ops.uniform(2, 2, 4, 4), momentum=1.0)
    case("train, momentum 0: nothing moves", ops.uniform(2, 2, 4, 4), momentum=0.0)
    case("train, mean far from zero", 1000 + 0.01 * ops.uniform(3, 3, 5, 4))
    case("train, constant channels: variance 0", torch.tensor([0.5, -3.0, 0.0], dtype=torch.float64).reshape(1, 3, 1, 1).expand(2, 3, 4, 4).contiguous())
    case("train, many channels", ops.uniform(2, 37, 3, 3))
    case("eval", ops.uniform(4, 3, 5, 6), train=False)
    case("eval, one value per channel", ops.uniform(1, 4, 1, 1), train=False)
    case("eval, eps 1e-3", ops.uniform(2, 5, 3, 2), train=False, eps=1e-3)


def losses(ops):
    def pair(n, classes, **kw):
        return {"x": ops.uniform(n, classes, **kw), "labels": ops.labels(n, classes)}

    def scalar():
        return ops.uniform(1, low=0.5, high=1.5).reshape(())

    def cross_entropy(name, inputs, smoothing=0.0, gy=None):
        params = {"label_smoothing": smoothing, "reduction": "mean"}
        f = lambda x, labels: F.cross_entropy(x, labels, label_smoothing=smoothing)
        ops.add("cross_entropy", name, params, inputs, f, gy=scalar() if gy is None else gy)

    one = torch.tensor(1.0, dtype=torch.float64)
    extreme = torch.tensor([[1e3, -1e3, 0, 1e3], [-1e3, -1e3, -1e3, -1e3], [1e3, 1e3, 1e3, 999.0]], dtype=torch.float64)
    for smoothing in (0.0, 0.1):
        tail = f", smoothing {smoothing}" if smoothing else ""
        cross_entropy("gy 1" + tail, pair(4, 10), smoothing, one)
        cross_entropy("gy not 1" + tail, pair(7, 5), smoothing)
        cross_entropy("batch 1" + tail, pair(1, 10), smoothing)
        cross_entropy("large logits" + tail, {"x": extreme, "labels": torch.tensor([1, 2, 3])}, smoothing)
        cross_entropy("large random logits" + tail, pair(5, 6, low=-1e3, high=1e3), smoothing)
        cross_entropy("equal logits" + tail, {"x": torch.full((3, 4), 7.0, dtype=torch.float64), "labels": torch.tensor([0, 3, 1])}, smoothing)
        cross_entropy("one class" + tail, pair(3, 1), smoothing)
        cross_entropy("a hundred classes" + tail, pair(3, 100), smoothing)
    cross_entropy("two classes, smoothing 0.5", pair(4, 2), 0.5)

    def log_softmax(name, x):
        ops.add("log_softmax", name, {}, {"x": x}, lambda x: F.log_softmax(x, 1))

    log_softmax("ten classes", ops.uniform(4, 10))
    log_softmax("batch 1", ops.uniform(1, 7))
    log_softmax("large logits", extreme)
    log_softmax("one class", ops.uniform(3, 1))
    log_softmax("a hundred classes", ops.uniform(2, 100, low=-20, high=20))

    for name, n, classes in [("ten classes", 4, 10), ("batch 1", 1, 3), ("two classes", 9, 2)]:
        ops.add("nll", name, {"reduction": "mean"}, pair(n, classes, low=-4, high=-0.1), lambda x, labels: F.nll_loss(x, labels), gy=scalar())
        composed = lambda x, labels: F.nll_loss(F.log_softmax(x, 1), labels)
        ops.add("log_softmax_nll", name, {"reduction": "mean"}, pair(n, classes), composed, gy=scalar())
    ops.add("log_softmax_nll", "large logits", {"reduction": "mean"}, {"x": extreme, "labels": torch.tensor([1, 2, 3])}, composed, gy=one)


def activations(ops):
    for name, x in [("around 0", ops.uniform(2, 3, 4, 5)), ("far from 0", ops.uniform(3, 17, low=-12, high=12))]:
        ops.add("silu", name, {}, {"x": x}, lambda x: F.silu(x))
        ops.add("gelu", name, {}, {"x": x}, lambda x: F.gelu(x))


def scale(ops):
    for factor in (1 / 256, -1.7, 0.0):
        ops.add("scale", f"by {factor:.3f}", {"factor": factor}, {"x": ops.uniform(2, 3, 4, 5)}, lambda x: factor * x)


def avg_pools(ops):
    def case(name, shape, kernel, stride=None, padding=(0, 0), include_pad=True):
        stride = stride or kernel
        params = {"kernel": kernel, "stride": stride, "padding": padding, "count_include_pad": include_pad}
        f = lambda x: F.avg_pool2d(x, kernel, stride, padding, count_include_pad=include_pad)
        ops.add("avg_pool2d", name, params, {"x": ops.uniform(*shape)}, f)

    case("2x2", (2, 3, 6, 8), (2, 2))
    case("2x2, odd size: last row and column unused", (2, 3, 7, 5), (2, 2))
    case("overlapping 3x3 / 2 padded", (2, 4, 9, 7), (3, 3), (2, 2), (1, 1))
    case("overlapping 3x3 / 2, padding left out", (2, 4, 9, 7), (3, 3), (2, 2), (1, 1), False)
    case("kernel, stride, padding all non-square", (2, 3, 9, 8), (3, 2), (2, 1), (1, 0))
    case("wide kernel, padding left out", (1, 2, 4, 9), (1, 4), (2, 3), (0, 2), False)
    case("stride larger than the kernel", (1, 3, 8, 10), (2, 2), (3, 4))
    case("one pixel, padding left out", (1, 4, 1, 1), (3, 3), (1, 1), (1, 1), False)
    case("the whole image", (2, 3, 4, 4), (4, 4))


def write_ops(out):
    ops = Ops()
    for room in (conv2d, linear, elementwise, pools, batch_norm, losses, activations, avg_pools, scale):
        room(ops)
    write_safetensors(out / "ops.safetensors", ops.tensors)
    write_json(out / "ops.json", ops.entries)
    size = (out / "ops.safetensors").stat().st_size
    counts = {}
    for e in ops.entries:
        counts[e["op"]] = counts.get(e["op"], 0) + 1
    print(f"ops: {len(ops.entries)} cases, {size / 1e6:.2f} MB:", ", ".join(f"{k} {v}" for k, v in counts.items()))


# ---------------------------------------------------------------- optimizers


def write_optim(out):
    steps, n = 12, 7
    draw = lambda count, id, low, high: low + (high - low) * philox.uniform(count, seed=7, id=id).astype(np.float64)
    cosine = [0.05 * (1 + math.cos(math.pi * t / steps)) / 2 for t in range(steps)]
    cases = [
        ("sgd", "plain", 0.1, {}),
        ("sgd", "momentum", 0.1, {"momentum": 0.9}),
        ("sgd", "momentum, varying rate", cosine, {"momentum": 0.9}),
        ("sgd", "nesterov", 0.1, {"momentum": 0.9, "nesterov": True}),
        ("sgd", "weight decay", 0.1, {"weight_decay": 0.05}),
        ("sgd", "momentum and weight decay", 0.03, {"momentum": 0.8, "weight_decay": 5e-4}),
        ("sgd", "nesterov and weight decay, varying rate", cosine, {"momentum": 0.95, "nesterov": True, "weight_decay": 0.01}),
        ("adam", "defaults", 1e-3, {}),
        ("adam", "large rate", 0.1, {}),
        ("adam", "varying rate", cosine, {}),
        ("adam", "weight decay", 0.01, {"weight_decay": 0.1}),
        ("adam", "other betas and eps", 0.02, {"betas": (0.8, 0.95), "eps": 1e-3}),
        ("adamw", "defaults", 1e-3, {}),
        ("adamw", "no weight decay", 0.01, {"weight_decay": 0.0}),
        ("adamw", "weight decay, varying rate", cosine, {"weight_decay": 0.2}),
        ("adamw", "other betas and eps", 0.02, {"betas": (0.85, 0.9), "eps": 1e-2, "weight_decay": 0.05}),
    ]
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    entries = []
    for number, (kind, name, lr, options) in enumerate(cases):
        start = draw(n, 100 + number, -1, 1)
        grads = draw(steps * n, 200 + number, -1, 1).reshape(steps, n)
        grads[:, 5] *= 1e-7  # far below eps: Adam's eps decides
        grads[:, 6] = 0  # never any gradient: only weight decay moves it
        rates = lr if isinstance(lr, list) else [lr] * steps
        p = torch.nn.Parameter(torch.from_numpy(start.copy()))
        optimizer = kinds[kind]([p], lr=rates[0], foreach=False, **options)
        group = {k: optimizer.param_groups[0][k] for k in ("momentum", "dampening", "nesterov", "betas", "eps", "weight_decay") if k in optimizer.param_groups[0]}
        after = []
        for rate, g in zip(rates, grads):
            optimizer.param_groups[0]["lr"] = rate
            p.grad = torch.from_numpy(g.copy())
            optimizer.step()
            after.append(p.detach().tolist())
        entries.append({"optimizer": kind, "case": name, "params": group, "start": start.tolist(), "lr": rates, "grads": grads.tolist(), "after": after})
    write_json(out / "optim.json", entries)
    print(f"optim: {len(entries)} cases")


# ---------------------------------------------------------------- networks

MOMENTUM = 0.9

ODD_KERNELS = [
    *["conv 5x3, 8 channels, stride 2x1, pad 2x0", "relu"],
    *["conv 1x4, 12 channels, pad 0x2, no bias", "batch_norm, eps 1e-3, momentum 0.3", "relu"],
    *["max_pool 2x2, stride 2, pad 1", "adaptive_avg_pool 3x2", "flatten", "fc 20, no bias", "relu", "dropout 0", "fc 10", "log_softmax"],
]
ODD_RESIDUAL = [
    *["conv 3x3, 12 channels, stride 2, pad 1", "batch_norm", "relu"],
    {"residual": ["conv 3x3, 12 channels, pad 1, no bias", "batch_norm", "relu", "conv 1x3, 12 channels, pad 0x1", "batch_norm"]},
    *["relu", {"residual": ["conv 3x1, 12 channels, pad 1x0", "relu"]}, "max_pool 2x2"],
    *["conv 3x3, 16 channels, no bias", "relu", "adaptive_avg_pool 1x1", "flatten", "fc 10"],
]
TINY_BN = [
    *["conv 3x3, 4 channels, stride 2, no bias", "batch_norm", "relu"],
    {"residual": ["conv 3x3, 4 channels, pad 1", "batch_norm"]},
    *["max_pool 2x2", "flatten", "fc 10"],
]


def initialise(net, seed, normal=False):
    """Weights from Philox: parameter p of net.parameters() uses the stream with id INIT + p.

    Weights and biases of convolutions and linear layers are (2u - 1) * bound in float32, with
    bound = 1 / sqrt(fan_in) rounded to float32; a bias has its layer's fan_in. Element i is counted
    in Tilework's memory order: O, H, W, I for convolutions. Batch-norm starts at 1 and 0; its
    parameters count, but draw nothing. With `normal` the weights of convolutions are normal (Box,
    Muller) with variance 2 / fan_out: a block of four random words makes two of them.
    """
    owners = [(m, k, p) for m in net.modules() for k, p in m.named_parameters(recurse=False)]
    assert all(a is b for (_, _, a), b in zip(owners, net.parameters(), strict=True))
    with torch.no_grad():
        for index, (module, kind, p) in enumerate(owners):
            if isinstance(module, torch.nn.BatchNorm2d):
                p.fill_(1.0 if kind == "weight" else 0.0)
                continue
            fan_in = module.weight[0].numel()
            if normal and p.dim() == 4:
                o, i, h, w = p.shape
                blocks = philox.words(2 * p.numel(), seed=seed, id=philox.INIT + index).reshape(-1, 4).astype(np.float64)
                radius = np.sqrt(-2 * np.log((blocks[:, 0] + 1) / 2**32) * 2 / (o * h * w))
                angle = blocks[:, 1] / 2**32 * 2 * math.pi
                value = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)
                p.copy_(torch.from_numpy(value).reshape(o, h, w, i).permute(0, 3, 1, 2))
                continue
            u = philox.uniform(p.numel(), seed=seed, id=philox.INIT + index)
            value = torch.from_numpy((np.float32(2) * u - np.float32(1)) * np.float32(1 / math.sqrt(fan_in)))
            if p.dim() == 4:
                o, i, h, w = p.shape
                p.copy_(value.reshape(o, h, w, i).permute(0, 3, 1, 2))
            else:
                p.copy_(value.reshape(p.shape))


def batch(seed, t, n, shape, classes=10):
    """Batch t: pixels (uint8, counted in the order n, h, w, c) and labels 0..classes.

    Pixels become (pixel / 255 - 0.5) / 0.5 in float32.
    """
    c, h, w = shape
    pixels = (philox.words(n * h * w * c, seed=seed, epoch=1, step=t, id=philox.SHAPES) >> np.uint32(24)).astype(np.uint8)
    labels = philox.below(n, classes, seed=seed, epoch=2, step=t, id=philox.SHAPES)
    x = torch.from_numpy(pixels.reshape(n, h, w, c)).permute(0, 3, 1, 2).contiguous().float()
    return (x / 255 - 0.5) / 0.5, torch.from_numpy(labels), pixels


def norm(tensor):
    return tensor.detach().double().norm().item()


def describe(tensor):
    """L2 norm, and up to four entries with their flat indices in PyTorch's layout."""
    flat = tensor.detach().reshape(-1)
    at = sorted({0, flat.numel() // 3, 2 * flat.numel() // 3, flat.numel() - 1})
    return {"norm": norm(tensor), "at": at, "values": [flat[i].item() for i in at]}


def perturb(net, seed):
    """Moves every parameter by up to one millionth of itself: ten times float32's rounding."""
    with torch.no_grad():
        for index, p in enumerate(net.parameters()):
            u = torch.from_numpy(philox.uniform(p.numel(), seed=seed, epoch=3, id=philox.INIT + index))
            p.mul_(1 + 1e-6 * (2 * u - 1).reshape(p.shape))


def train(layers, loss, shape, n, seed, lr, steps, dtype, disturbance=None):
    net = networks.build(layers, shape)
    initialise(net, seed)
    if disturbance is not None:
        perturb(net, disturbance)
    net.to(dtype)
    start = {k: describe(p) for k, p in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=MOMENTUM)
    criterion = {"cross_entropy": F.cross_entropy, "nll": F.nll_loss}[loss]
    run = {"losses": []}
    for t in range(steps):
        x, labels, _ = batch(seed, t, n, shape)
        optimizer.zero_grad()
        y = net(x.to(dtype))
        value = criterion(y, labels)
        value.backward()
        if t == 0:
            run["logits"] = y.detach()
            run["gradients"] = {k: (p.grad.double().sum().item(), norm(p.grad)) for k, p in net.named_parameters()}
        optimizer.step()
        run["losses"].append(value.item())
    run["parameters"] = {k: describe(p) for k, p in net.named_parameters()}
    run["buffers"] = {k: describe(b) for k, b in net.named_buffers() if b.is_floating_point()}
    return start, run


def both(a, b):
    return {"f32": a, "f64": b}


def distance(run, exact):
    """How far a run is from the float64 one, relative to what is compared."""

    def norms(key):
        """By the larger of the tensor's own norm and a hundredth of the largest in the network."""
        floor = 1e-2 * max((v["norm"] for v in exact[key].values()), default=1)
        return max((abs(run[key][k]["norm"] - v["norm"]) / max(v["norm"], floor) for k, v in exact[key].items()), default=0.0)

    large = max(g for _, g in exact["gradients"].values())
    return {
        "losses": [abs(a - b) / abs(b) for a, b in zip(run["losses"], exact["losses"])],
        "logits": ((run["logits"].double() - exact["logits"]).abs().max() / exact["logits"].abs().max()).item(),
        "gradients": max(abs(run["gradients"][k][1] - g) / max(g, 1e-2 * large) for k, (_, g) in exact["gradients"].items()),
        "parameters": norms("parameters"),
        "buffers": norms("buffers"),
    }


def network(name, layers, loss, shape, n, seed, lr, steps=20):
    common = (layers, loss, shape, n, seed, lr, steps)
    _, double = train(*common, torch.float64)
    start, single = train(*common, torch.float32)
    _, labels, pixels = batch(seed, 0, n, shape)

    # A ReLU, a maximum or a nearly dead batch-norm channel that falls the other way multiplies
    # rounding errors: what a comparison can ask for depends on the network, so it is measured.
    drift = distance(single, double)
    spread = drift
    for disturbance in range(4):
        d = distance(train(*common, torch.float32, disturbance)[1], double)
        spread = {k: list(map(max, v, d[k])) if k == "losses" else max(v, d[k]) for k, v in spread.items()}
    for label, d in [("float32", drift), ("disturbed", spread)]:
        short = {**d, "losses": max(d["losses"])}
        print(f"  {name:20s}{double['losses'][0]:7.4f} ->{double['losses'][-1]:7.4f} {label:10s}", *(f"{k} {v:.0e}" for k, v in short.items()), flush=True)
    assert max(spread["losses"]) < 1e-4, f"{name}: float32 is no witness; try another seed"

    def table(key):
        return {k: {"at": v["at"], "norm": both(v["norm"], double[key][k]["norm"]), "values": both(v["values"], double[key][k]["values"])} for k, v in single[key].items()}

    return {
        "name": name,
        "layers": layers,
        "loss": loss,
        "input": shape,
        "batch": n,
        "seed": seed,
        "lr": lr,
        "momentum": MOMENTUM,
        "steps": steps,
        "initial": start,
        "first_batch": {"pixels": pixels[:16].tolist(), "pixel_sum": int(pixels.sum(dtype=np.int64)), "labels": labels.tolist()},
        "losses": both(single["losses"], double["losses"]),
        "logits": both(single["logits"].tolist(), double["logits"].tolist()),
        "gradients": {k: {"sum": both(s, double["gradients"][k][0]), "norm": both(g, double["gradients"][k][1])} for k, (s, g) in single["gradients"].items()},
        "parameters": table("parameters"),
        "buffers": table("buffers"),
        "drift": drift,
        "spread": spread,
    }


def state_dict(out, file, layers, shape, n, seed, steps):
    """PyTorch's own initial weights (after a few steps, so that running statistics are not 0 and 1),
    and what the network makes of one batch in eval mode."""
    torch.manual_seed(0)
    net = networks.build(layers, shape)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=MOMENTUM)
    for t in range(steps):
        x, labels, _ = batch(seed, t + 1, n, shape)
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()
    write_safetensors(out / file, {k: v.contiguous() for k, v in net.state_dict().items()})
    x, labels, _ = batch(seed, 0, n, shape)
    net.eval()
    with torch.no_grad():
        single = net(x).tolist()
        double = net.double()(x.double())
    entry = {"file": file, "layers": layers, "input": shape, "batch": n, "seed": seed, "mode": "eval"}
    entry |= {"keys": list(net.state_dict()), "labels": labels.tolist(), "loss": F.cross_entropy(double, labels).item()}
    return entry | {"logits": both(single, double.tolist())}


def write_networks(out):
    rgb = (3, 32, 32)
    recipe = lambda name: networks.RECIPES[name][0]
    plan = [
        ("a1-lenet", recipe("a1-lenet"), "cross_entropy", rgb, 4, 1, 1e-3),
        ("b1-bn-cnn", networks.bn_cnn(0), "cross_entropy", rgb, 16, 22, 1e-3),
        ("c1-fully-connected", recipe("c1-fully-connected"), "cross_entropy", rgb, 8, 3, 1e-2),
        ("c2-conv", recipe("c2-conv"), "cross_entropy", rgb, 8, 4, 1e-2),
        ("c3-conv-padded", recipe("c3-conv-padded"), "cross_entropy", rgb, 8, 5, 1e-2),
        ("c4-conv-bn", recipe("c4-conv-bn"), "cross_entropy", rgb, 8, 35, 1e-3),
        ("c5-deep-conv-bn", recipe("c5-deep-conv-bn"), "cross_entropy", rgb, 8, 458, 1e-3, 12),
        ("odd-kernels", ODD_KERNELS, "nll", (3, 27, 22), 5, (1 << 40) + 8, 1e-2),
        ("odd-residual", ODD_RESIDUAL, "cross_entropy", (3, 20, 28), 7, 69, 1e-2),
    ]
    # ReLU before batch-norm over few values per channel amplifies rounding: a nearly dead channel is
    # scaled by up to 1 / sqrt(eps). Hence c4 and c5 with a small rate, c5 for twelve steps only,
    # and seeds with a small spread for them, b1 and odd-residual.
    print("networks (losses of the first and last step; how far from float64):")
    dicts = [
        state_dict(out, "state_dict_a1.safetensors", recipe("a1-lenet"), rgb, 4, 10, steps=0),
        state_dict(out, "state_dict_bn.safetensors", TINY_BN, (3, 13, 11), 6, 11, steps=3),
    ]
    write_json(out / "networks.json", {"networks": [network(*entry) for entry in plan], "state_dicts": dicts})


# ---------------------------------------------------------------- command line

PARTS = {
    "ops": write_ops,
    "optim": write_optim,
    "networks": write_networks,
    "schedules": lambda out: schedules.write(out, write_json),
    "updates": lambda out: updates.write(out, write_json, initialise, batch, describe),
    "recipes": lambda out: trajectories.write(out, write_json, initialise, batch),
    "airbench": lambda out: airbench.write(out, write_json, initialise, batch, describe),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "tests" / "goldens", help="folder to write to")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; parts are {', '.join(PARTS)}")
    torch.set_num_threads(2)
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"PyTorch {torch.__version__}, numpy {np.__version__}")
    for part in args.parts or PARTS:
        PARTS[part](args.out)
