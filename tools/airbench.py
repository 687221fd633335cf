"""Muon, whitening and twenty steps of the recipe `airbench94` by PyTorch: the part `airbench` of goldens.py.

airbench.json
    "muon": a parameter of shape "shape" (O, I, H, W, or out, in), whose "start" and "grads" are numbers in PyTorch's order,
    "after" each step in float64, at the rates "lr", with "momentum", "decay", "steps" of the iteration and "normalise".
    "whiten": the filters (float64) of a "kernel" from the images of `batch(seed, 0, batch, input)`: eigenvectors by
    torch.linalg.eigh in rising order of their eigenvalues, each with its largest component positive, then the negatives.
    "steps": the mean losses of steps of the recipe, its layers of 64 and 256 channels with "widths" in their place, with its
    optimizer and its rates times "factor", from weights drawn by `initialise` and then changed as the recipe says (whitened
    by batch 0), on batches without random changes, in float32 and float64; its parameters and running statistics after
    them (`describe`); "views": then the outputs for batch 0 in evaluation mode by the mean of six views. "spread" is the
    largest relative difference of float32 and float64 in the losses, "drift" that of a whole tensor. At the recipe's own
    rates, and more so at its widths, noise grows a hundredfold in a few steps, and after ten of them float32 and float64
    differ in the third digit: hence a tenth of the rates for twenty steps, six at the whole, and two at the whole width.
"""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import philox

SHAPE = (3, 32, 32)


def newton_schulz(g, steps):
    """A matrix with the singular vectors of g whose singular values are about 1."""
    x = g / (g.norm() + 1e-7)
    if x.shape[0] > x.shape[1]:
        return newton_schulz(g.T, steps).T
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x


class Muon:
    def __init__(self, params, momentum, steps, normalise, decay=0.0):
        self.params, self.options = [(p, torch.zeros_like(p)) for p in params], (momentum, steps, normalise, decay)

    @torch.no_grad()
    def step(self, lr):
        momentum, steps, normalise, decay = self.options
        for p, v in self.params:
            v.mul_(momentum).add_(p.grad)
            u = newton_schulz((p.grad + momentum * v).flatten(1), steps).reshape(p.shape)
            if normalise:
                p.mul_(p.shape[0] ** 0.5 / p.norm())
            p.mul_(1 - lr * decay).sub_(lr * u)


def whitened(images, size, eps=5e-4):
    """2k filters for images [n, c, h, w] in float64, k the numbers in a patch."""
    c = images.shape[1]
    patches = F.unfold(images, size).transpose(1, 2).reshape(-1, c * size * size)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    vectors = vectors.T
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    filters = vectors * largest.sign() / (values + eps).sqrt()[:, None]
    return torch.cat([filters, -filters]).reshape(-1, c, size, size)


class Group(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        norm = lambda: nn.BatchNorm2d(b, eps=1e-12, momentum=0.4)
        self.conv1, self.norm1 = nn.Conv2d(a, b, 3, padding=1, bias=False), norm()
        self.conv2, self.norm2 = nn.Conv2d(b, b, 3, padding=1, bias=False), norm()

    def forward(self, x):
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Network(nn.Module):
    def __init__(self, narrow, wide):
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.group1, self.group2, self.group3 = Group(24, narrow), Group(narrow, wide), Group(wide, wide)
        self.head = nn.Linear(wide, 10, bias=False)

    def forward(self, x):
        x = self.group3(self.group2(self.group1(F.gelu(self.whiten(x)))))
        return self.head(F.max_pool2d(x, 3).flatten(1)) / 256


@torch.no_grad()
def start(net, images):
    for group in (net.group1, net.group2, net.group3):
        for conv in (group.conv1, group.conv2):
            nn.init.dirac_(conv.weight[: conv.weight.shape[1]])
        group.norm1.weight.requires_grad_(False)
        group.norm2.weight.requires_grad_(False)
    net.head.weight.copy_((net.head.weight.double() / net.head.weight.double().std()).float())
    net.whiten.weight.copy_(whitened(images.double(), 2).float())
    net.whiten.weight.requires_grad_(False)


def six_views(net, x):
    pair = lambda x: (net(x) + net(x.flip(3))) / 2
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    return pair(x) / 2 + pair(padded[:, :, 2:, 2:]) / 4 + pair(padded[:, :, :-2, :-2]) / 4


def run(net, batch, seed, n, steps, factor):
    dtype = net.head.weight.dtype
    biases = [p for k, p in net.named_parameters() if k.endswith(".bias") and k != "whiten.bias"]
    groups = [
        {"params": biases, "lr": 0.053, "weight_decay": 0.004 / 0.053},
        {"params": [net.head.weight], "lr": 0.67, "weight_decay": 0.004 / 0.67},
        {"params": [net.whiten.bias], "lr": 0.053, "weight_decay": 0.004 / 0.053},
    ]
    sgd = torch.optim.SGD(groups, lr=1.0, momentum=0.85, nesterov=True, foreach=False)
    muon = Muon([p for p in net.parameters() if p.dim() == 4 and p.requires_grad], 0.6, 3, True)
    first, losses = [g["lr"] for g in sgd.param_groups], []
    for t in range(steps):
        x, labels, _ = batch(seed, t, n, SHAPE)
        net.zero_grad()
        loss = F.cross_entropy(net(x.to(dtype)), labels, label_smoothing=0.2, reduction="sum")
        loss.backward()
        for group, lr, over in zip(sgd.param_groups, first, (200, 200, 75)):
            group["lr"] = factor * lr * (1 - t / over)
        sgd.step()
        muon.step(factor * 0.24 * (1 - t / 200))
        losses.append(loss.item() / n)
    numbers = {k: v for k, v in net.state_dict().items() if v.is_floating_point()}
    net.eval()
    with torch.no_grad():
        views = six_views(net, batch(seed, 0, n, SHAPE)[0].to(dtype))
    return losses, numbers, views


def muon_case(number, shape, momentum, steps, normalise, decay, rates):
    n = int(np.prod(shape))
    draw = lambda id: 2 * philox.uniform(n, seed=9, id=id).astype(np.float64) - 1
    begin, grads = draw(100 * number), [draw(100 * number + 1 + t) for t in range(len(rates))]
    p = nn.Parameter(torch.from_numpy(begin.copy()).reshape(shape))
    muon, after = Muon([p], momentum, steps, normalise, decay), []
    for lr, g in zip(rates, grads):
        p.grad = torch.from_numpy(g.copy()).reshape(shape)
        muon.step(lr)
        after.append(p.detach().flatten().tolist())
    options = {"shape": shape, "momentum": momentum, "steps": steps, "normalise": normalise, "decay": decay, "lr": rates}
    return options | {"start": begin.tolist(), "grads": [g.tolist() for g in grads], "after": after}


def write(out, write_json, initialise, batch, describe):
    cases = [
        ((4, 2, 3, 2), 0.6, 3, True, 0.0, [0.24, 0.2, 0.1]),
        ((5, 7), 0.95, 5, False, 0.1, [0.02, 0.05]),
        ((7, 3), 0.0, 3, True, 0.0, [0.3, 0.1]),
        ((9, 1, 2, 2), 0.9, 5, True, 0.5, [0.1, 0.1, 0.0]),
    ]
    muon = [muon_case(i + 1, *case) for i, case in enumerate(cases)]
    whiten = []
    for seed, n, shape, size in [(3, 6, (3, 9, 7), 2), (4, 9, (2, 6, 6), 3)]:
        images = batch(seed, 0, n, shape)[0].double()
        entry = {"input": shape, "batch": n, "seed": seed, "kernel": size}
        whiten.append(entry | {"filters": whitened(images, size).flatten().tolist()})
    assert sum(p.numel() for p in Network(64, 256).parameters()) == 1_972_792
    runs = []
    for widths, n, seed, factor, steps in [((32, 32), 16, 2, 0.1, 20), ((32, 32), 16, 2, 1.0, 6), ((64, 256), 8, 51, 1.0, 2)]:
        net = Network(*widths)
        initialise(net, seed)
        start(net, batch(seed, 0, n, SHAPE)[0])
        (single, rounded, _), (double, numbers, views) = (run(copy.deepcopy(net).to(d), batch, seed, n, steps, factor) for d in (torch.float32, torch.float64))
        spread = max(abs(a - b) / b for a, b in zip(single, double))
        drift = max(((rounded[k] - v).norm() / v.norm()).item() for k, v in numbers.items() if v.norm() > 0)
        print(f"  airbench94 {widths} {double[0]:7.4f} ->{double[-1]:7.4f} spread {spread:.0e} drift {drift:.0e}", flush=True)
        assert spread < 1e-6 and drift < 1e-3, "float32 is no witness; try another seed"
        entry = {"widths": widths, "input": SHAPE, "batch": n, "seed": seed, "factor": factor, "losses": {"f32": single, "f64": double}}
        entry |= {"spread": spread, "drift": drift, "views": views.tolist()}
        runs.append(entry | {"numbers": {k: describe(v) for k, v in numbers.items()}})
    write_json(out / "airbench.json", {"muon": muon, "whiten": whiten, "steps": runs})
