"""What PyTorch's schedulers give, step by step: the part `schedules` of goldens.py.

schedules.json
    One entry a setting: "schedule" as in a recipe, "epochs", updates an epoch ("batches"), the optimizer's "lr" and
    "momentum", and at each update its "lrs" and, where it changes, its "momenta".
"""

import math

import torch
from torch.optim import lr_scheduler as S


def write(out, write_json):
    def run(epochs, batches, make, each, momentum=0.9, lr=0.1):
        """The rates of all updates; `each` says whether the scheduler is stepped with each update or each epoch."""
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=momentum)
        scheduler = make(optimizer)
        lrs, momenta = [], []
        for epoch in range(epochs):
            for batch in range(batches):
                if each == "fraction":
                    scheduler.step(epoch + batch / batches)
                lrs.append(float(optimizer.param_groups[0]["lr"]))
                momenta.append(optimizer.param_groups[0]["momentum"])
                optimizer.step()
                if each == "update" and len(lrs) < epochs * batches:
                    scheduler.step()
            if each == "epoch":
                scheduler.step()
        return lrs, momenta

    def warm(updates, main):
        """A warm-up of so many updates, then the scheduler `main`."""
        def make(optimizer):
            first = S.LinearLR(optimizer, start_factor=1 / (updates + 1), total_iters=updates)
            return S.SequentialLR(optimizer, [first, main(optimizer)], milestones=[updates])
        return make

    cases = [
        ({"kind": "step", "every": 3, "gamma": 0.5}, 8, 4, lambda o: S.StepLR(o, 3, 0.5), "epoch"),
        ({"kind": "steps", "milestones": [1, 4, 6]}, 8, 3, lambda o: S.MultiStepLR(o, [1, 4, 6]), "epoch"),
        ({"kind": "steps", "milestones": [2, 3], "gamma": 0.3}, 5, 3, lambda o: S.MultiStepLR(o, [2, 3], 0.3), "epoch"),
        ({"kind": "cosine", "over": 20, "min": 0.01}, 8, 3, lambda o: S.CosineAnnealingLR(o, 20, 0.01), "epoch"),
        ({"kind": "cosine"}, 10, 5, lambda o: S.CosineAnnealingLR(o, 10), "epoch"),
        ({"kind": "warm-restarts", "t_0": 1}, 6, 8, lambda o: S.CosineAnnealingWarmRestarts(o, 1), "fraction"),
        ({"kind": "warm-restarts", "t_0": 2, "t_mult": 2, "min": 1e-3}, 20, 4,
         lambda o: S.CosineAnnealingWarmRestarts(o, 2, 2, 1e-3), "fraction"),
        ({"kind": "warm-restarts", "t_0": 1, "t_mult": 3}, 15, 8, lambda o: S.CosineAnnealingWarmRestarts(o, 1, 3), "fraction"),
        ({"kind": "linear"}, 4, 50, lambda o: S.LinearLR(o, 1.0, 0.0, 200), "update"),
        ({"kind": "linear", "end_factor": 0.2, "over": 3}, 5, 7, lambda o: S.LinearLR(o, 1.0, 0.2, 21), "update"),
        ({"kind": "one-cycle"}, 8, 25, lambda o: S.OneCycleLR(o, 0.1, 200), "update"),
        ({"kind": "one-cycle", "pct_start": 0.45, "div_factor": 10, "final_div_factor": 100, "base_momentum": 0.8, "max_momentum": 0.9},
         3, 11, lambda o: S.OneCycleLR(o, 0.1, 33, pct_start=0.45, div_factor=10, final_div_factor=100, base_momentum=0.8, max_momentum=0.9), "update"),
        ({"kind": "one-cycle", "cycle_momentum": False}, 1, 40, lambda o: S.OneCycleLR(o, 0.1, 40, cycle_momentum=False), "update"),
        ({"kind": "constant", "warmup": 1.5}, 4, 6, warm(9, lambda o: S.ConstantLR(o, 1.0, 1)), "update"),
        ({"kind": "linear", "warmup": 2}, 6, 5, warm(10, lambda o: S.LinearLR(o, 1.0, 0.0, 20)), "update"),
        ({"kind": "cosine", "warmup": 1}, 6, 5, warm(5, lambda o: S.LambdaLR(o, lambda t: (1 + math.cos(math.pi * (t // 5) / 5)) / 2)), "update"),
    ]
    entries = []
    for schedule, epochs, batches, make, each in cases:
        lrs, momenta = run(epochs, batches, make, each)
        entry = {"schedule": schedule, "epochs": epochs, "batches": batches, "lr": 0.1, "momentum": 0.9, "lrs": lrs}
        if len(set(momenta)) > 1:
            entry["momenta"] = momenta
        entries.append(entry)
    write_json(out / "schedules.json", entries)
    print(f"schedules: {len(entries)} settings")
