"""Steps of the recipes' networks and the logits of a ResNet-18 by PyTorch: the part `recipes` of goldens.py.

recipes.json
    "recipes": the losses of some steps of SGD (momentum 0.9, cross-entropy) of a recipe's network with the keys "set",
    from weights and batches that both sides draw (see `initialise` and `batch` in goldens.py), in float32 and in float64. "spread" is
    the largest relative difference of the two.
    "resnet18": float64 logits of torchvision's ResNet-18 with ten classes in evaluation mode, all of whose tensors are
    drawn in the order of "keys", on batch 0.
    The networks are written here as torchvision has them, or with torch.nn alone; nothing is read from the recipes.
"""

import copy
import math

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import networks
import philox


class ResNet9(nn.Module):
    def __init__(self, classes):
        super().__init__()

        def block(a, b, pool=False):
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), *([nn.MaxPool2d(2)] if pool else []))

        self.conv1, self.conv2 = block(3, 64), block(64, 128, True)
        self.res1 = nn.Sequential(block(128, 128), block(128, 128))
        self.conv3, self.conv4 = block(128, 256, True), block(256, 512, True)
        self.res2 = nn.Sequential(block(512, 512), block(512, 512))
        self.classifier = nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(512, classes))

    def forward(self, x):
        x = self.conv2(self.conv1(x))
        x = self.conv4(self.conv3(self.res1(x) + x))
        return self.classifier(self.res2(x) + x)


def resnet18(*head):
    net = torchvision.models.resnet18(weights=None)
    net.fc = nn.Sequential(*head) if len(head) > 1 else head[0]
    return net


def frozen(net):
    """The same with batch-norms whose statistics stay."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = networks.FrozenBatchNorm
            module.eval()
    return net


def third_conv(*fc):
    conv = ["conv 5x5, 64 channels", "relu", "max_pool 2x2", "conv 5x5, 128 channels", "relu", "conv 5x5, 256 channels", "relu", "max_pool 2x2"]
    return [*conv, "flatten", *networks.head(*fc)]


def listed(layers):
    return networks.build(layers, (3, 32, 32))


def draw(tensors, seed):
    """Tensor i of `tensors` from the stream with id INIT + i, counted in PyTorch's layout.

    A tensor of two axes or more is (2u - 1) * bound in float32, bound = sqrt(6 / fan_in) rounded to float32, and so is
    the bias that follows it. A batch-norm's variance and weight are u + 0.5, its bias and mean u - 0.5.
    """
    fan_in = None
    with torch.no_grad():
        for i, (key, p) in enumerate(tensors):
            u = torch.from_numpy(philox.uniform(p.numel(), seed=seed, id=philox.INIT + i)).reshape(p.shape)
            if p.dim() > 1:
                fan_in = p[0].numel()
            elif key.endswith((".weight", ".running_var")):
                p.copy_(u + 0.5)
                fan_in = None
                continue
            elif fan_in is None:
                p.copy_(u - 0.5)
                continue
            p.copy_((2 * u - 1) * np.float32(math.sqrt(6 / fan_in)))


def losses(net, batch, size, classes, n, seed, lr, steps):
    dtype = next(net.parameters()).dtype
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    out = []
    for t in range(steps):
        x, labels, _ = batch(seed, t, n, (3, size, size), classes)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x.to(dtype)), labels)
        loss.backward()
        optimizer.step()
        out.append(loss.item())
    return out


def write(out, write_json, initialise, batch):
    still = ["model.dropout=0"]
    fc18 = lambda: resnet18(nn.Linear(512, 10))

    def d3():
        net = resnet18(nn.Linear(512, 256), nn.ReLU(), nn.Identity(), nn.Linear(256, 10))
        for child in list(net.children())[:5]:
            child.requires_grad_(False)
        return net

    d5 = lambda: resnet18(nn.Identity(), nn.Linear(512, 10))
    plan = [
        # name, network, set, height and width, classes, batch, seed, rate, steps
        ("a3-deeper-head", lambda: listed(networks.lenet(6, 16, 200, 100, 50, 10)), [], 32, 10, 4, 31, 1e-2, 10),
        ("a6-wide-dropout", lambda: listed(networks.lenet(32, 64, 800, 400, 200, 100, 50, 10)), still, 32, 10, 4, 32, 1e-2, 10),
        ("a7-wider", lambda: listed(networks.lenet(64, 128, 1600, 800, 400, 200, 100, 50, 10)), still, 32, 10, 4, 33, 1e-2, 3),
        ("a8-third-conv", lambda: listed(third_conv(1600, 800, 400, 200, 100, 50, 10)), still, 32, 10, 4, 34, 1e-2, 3),
        ("d1-resnet18", fc18, [], 32, 10, 8, 35, 1e-3, 3),
        ("d2-finetune", lambda: frozen(fc18()), ["frozen_batch_norm=true"], 32, 10, 4, 36, 1e-3, 2),
        ("d3-freeze6", d3, still, 32, 10, 8, 37, 1e-3, 2),
        ("d5-tiny", d5, still, 64, 10, 4, 38, 3e-4, 2),
        ("e1-resnet9-onecycle", lambda: ResNet9(20), [], 32, 20, 2, 39, 1e-3, 2),
    ]
    recipes = []
    for name, make, set, size, classes, n, seed, lr, steps in plan:
        net = make()
        initialise(net, seed, normal=isinstance(net, torchvision.models.ResNet))
        single, double = (losses(copy.deepcopy(net).to(d), batch, size, classes, n, seed, lr, steps) for d in (torch.float32, torch.float64))
        spread = max(abs(a - b) / b for a, b in zip(single, double))
        print(f"  {name:20s}{double[0]:7.4f} ->{double[-1]:7.4f} spread {spread:.0e}", flush=True)
        assert spread < 3e-5, f"{name}: float32 is no witness; try another seed"
        entry = {"name": name, "set": set, "input": (3, size, size), "classes": classes, "batch": n, "seed": seed, "lr": lr}
        recipes.append(entry | {"losses": {"f32": single, "f64": double}, "spread": spread})
    net = fc18().eval()
    state = {k: v for k, v in net.state_dict().items() if v.is_floating_point()}
    draw(state.items(), 40)
    x, _, _ = batch(40, 0, 2, (3, 64, 64))
    with torch.no_grad():
        logits = net.double()(x.double())
    print("  resnet18 logits:", *(" ".join(f"{v:.2f}" for v in row) for row in logits), sep="\n    ")
    golden = {"input": (3, 64, 64), "batch": 2, "seed": 40, "keys": list(state), "logits": logits.tolist()}
    write_json(out / "recipes.json", {"recipes": recipes, "resnet18": golden})
