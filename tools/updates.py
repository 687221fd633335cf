"""Two hundred updates by PyTorch with clipping, groups, accumulation and averages: the part `updates` of goldens.py.

updates.json
    The network "layers" on "input" (c, h, w), initialised from "seed"; an epoch has "batches" batches of "batch" images,
    the last one of "last" images: batch t of every epoch is `batch(seed, t, …)` of goldens.py. One entry a case: "set",
    the recipe's keys as `--set` takes them; "epochs"; in float64 the "losses" of every seventh batch, the "parameters" at
    the end (`describe`), and with an average the "averaged" parameters and buffers and the loss "averaged_loss" of the
    averaged network in evaluation mode on batch 0.
"""

import torch
from torch.nn import functional as F
from torch.optim import lr_scheduler as S
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import networks

LAYERS = ["conv 3x3, 4 channels, no bias", "batch_norm", "relu", "flatten", "fc 10"]
SHAPE, SEED, BATCH, LAST, BATCHES = (2, 5, 5), 21, 6, 4, 8


def write(out, write_json, initialise, batch, describe):
    def run(keys, epochs, make, accumulate=1, clip=None, shrink=0.0, ema=None, scheduler=None, each="update"):
        net = networks.build(LAYERS, SHAPE)
        initialise(net, SEED)
        net.double()
        bias = [p for k, p in net.named_parameters() if k.endswith(".bias")]
        norm = [p for k, p in net.named_parameters() if k == "1.weight"]
        rest = [p for k, p in net.named_parameters() if not k.endswith(".bias") and k != "1.weight"]
        optimizer = make(net, rest, bias, norm)
        schedule = scheduler and scheduler(optimizer)
        average = ema and AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True)
        updates = epochs * -(-BATCHES // accumulate)
        losses, done = [], 0
        for epoch in range(epochs):
            for first in range(0, BATCHES, accumulate):
                group = range(first, min(first + accumulate, BATCHES))
                size = lambda t: LAST if t == BATCHES - 1 else BATCH
                optimizer.zero_grad()
                for t in group:
                    x, labels, _ = batch(SEED, t, size(t), SHAPE)
                    loss = F.cross_entropy(net(x.double()), labels)
                    (loss * size(t) / sum(map(size, group))).backward()
                    losses.append(loss.item())
                if clip:
                    clip(net.parameters())
                with torch.no_grad():
                    for g in optimizer.param_groups:
                        for p in g["params"]:
                            p.mul_(1 - g["lr"] * shrink)
                optimizer.step()
                done += 1
                if average:
                    average.update_parameters(net)
                if schedule and each == "update" and done < updates:
                    schedule.step()
            if schedule and each == "epoch":
                schedule.step()
        entry = {"set": keys, "epochs": epochs, "losses": losses[::7], "parameters": {k: describe(p) for k, p in net.named_parameters()}}
        if average:
            numbers = dict(average.module.named_parameters()) | {k: b for k, b in average.module.named_buffers() if b.is_floating_point()}
            entry["averaged"] = {k: describe(p) for k, p in numbers.items()}
            x, labels, _ = batch(SEED, 0, BATCH, SHAPE)
            average.eval()
            entry["averaged_loss"] = F.cross_entropy(average(x.double()), labels).item()
        return entry

    sgd = lambda **o: lambda net, *_: torch.optim.SGD(net.parameters(), foreach=False, **o)
    adam = lambda **o: lambda net, *_: torch.optim.Adam(net.parameters(), foreach=False, **o)
    clip_norm = lambda limit: lambda ps: torch.nn.utils.clip_grad_norm_(ps, limit)
    clip_value = lambda limit: lambda ps: torch.nn.utils.clip_grad_value_(ps, limit)

    def grouped(kind, bias_options, norm_options, **options):
        """Three groups: all that is in none, the biases, the batch-norm's weight."""
        def make(net, rest, bias, norm):
            return kind([{"params": rest}, {"params": bias, **bias_options}, {"params": norm, **norm_options}], foreach=False, **options)
        return make

    plain = 'optimizer={kind = "sgd", lr = 0.05, momentum = 0.9}'
    entries = [
        run([plain, "clip.norm=0.5"], 25, sgd(lr=0.05, momentum=0.9), clip=clip_norm(0.5)),
        run(['optimizer={kind = "adam", lr = 3e-3}', "clip.value=0.01"], 25, adam(lr=3e-3), clip=clip_value(0.01)),
        run(['optimizer={kind = "sgd", lr = 0.05, momentum = 0.9, nesterov = true, weight_decay = 0.1, decoupled = true}'], 25,
            sgd(lr=0.05, momentum=0.9, nesterov=True), shrink=0.1),
        run(['optimizer={kind = "sgd", lr = 0.05, weight_decay = 0.2, decoupled = true}'], 25, sgd(lr=0.05), shrink=0.2),
        run(['optimizer={kind = "sgd", lr = 0.05, momentum = 0.9, weight_decay = 0.01, groups = ['
             '{match = "*.bias", lr = 0.1, weight_decay = 0.0}, {match = "1.*", momentum = 0.5}]}',
             'schedule={kind = "steps", milestones = [10, 20]}'], 25,
            grouped(torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.0}, {"momentum": 0.5}, lr=0.05, momentum=0.9, weight_decay=0.01),
            scheduler=lambda o: S.MultiStepLR(o, [10, 20]), each="epoch"),
        run(['optimizer={kind = "adam", lr = 0.01, weight_decay = 1e-4, groups = [{match = "*.bias", lr = 0.02}, {match = "1.weight", lr = 1e-3}]}',
             'schedule={kind = "one-cycle"}', "clip.norm=1.0"], 25,
            grouped(torch.optim.Adam, {}, {}, weight_decay=1e-4), clip=clip_norm(1.0),
            scheduler=lambda o: S.OneCycleLR(o, [0.01, 0.02, 1e-3], 200)),
        run([plain, "accumulate=3", 'schedule={kind = "linear", end_factor = 0.1}'], 67, sgd(lr=0.05, momentum=0.9), accumulate=3,
            scheduler=lambda o: S.LinearLR(o, 1.0, 0.1, 201)),
        run([plain, "ema.decay=0.95"], 25, sgd(lr=0.05, momentum=0.9), ema=0.95),
        run(['optimizer={kind = "adamw", lr = 0.01, weight_decay = 0.05, groups = [{match = "*.bias", weight_decay = 0.0}, {match = "1.*", lr = 2e-3}]}',
             'schedule={kind = "one-cycle"}', "clip.norm=0.5", "accumulate=2", "ema.decay=0.4"], 50,
            grouped(torch.optim.AdamW, {"weight_decay": 0.0}, {}, weight_decay=0.05), accumulate=2, clip=clip_norm(0.5), ema=0.4,
            scheduler=lambda o: S.OneCycleLR(o, [0.01, 0.01, 2e-3], 200)),
    ]
    common = {"layers": LAYERS, "input": SHAPE, "seed": SEED, "batch": BATCH, "last": LAST, "batches": BATCHES}
    write_json(out / "updates.json", common | {"cases": entries})
    print(f"updates: {len(entries)} cases")
