"""Checks the event files of a run against its CSV files, with the tensorboard package.

    pip install tensorboard
    tilework train --tensorboard --max-steps 100
    python tools/check_tensorboard.py runs/quickstart-001

Every 51st, 101st, ... step must be there with its loss and rate, every epoch with its numbers at its last step, and nothing
twice. An evaluation in the middle of an epoch, where --max-steps ended, stays in the event files and not in metrics.csv.
"""

import csv
import pathlib
import sys

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

STRIDE = 50


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def main():
    run = pathlib.Path(sys.argv[1])
    events = EventAccumulator(str(run), size_guidance={SCALARS: 0})
    events.Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag, points in found.items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), f"{tag}: steps {steps}"
    steps = rows(run / "steps.csv")
    every = [row for row in steps if int(row["step"]) % STRIDE == 1]
    for tag, column in ("loss/batch", "loss"), ("lr", "lr"):
        expected = [(int(row["step"]), np.float32(row[column])) for row in every]
        assert [(s, np.float32(v)) for s, v in found[tag]] == expected, (tag, found[tag], expected)
    last = {row["epoch"]: int(row["step"]) for row in steps}
    epochs = rows(run / "metrics.csv")
    name = "val" if "val_loss" in epochs[0] else "test"
    checked = 0
    for split in "train", name:
        for what in "loss", "accuracy":
            points = dict(found[f"{what}/{split}"])
            for row in epochs:
                value, there = float(row[f"{split}_{what}"]), points[last[row["epoch"]]]
                assert np.float32(value) == np.float32(there), (what, split, row, there)
                checked += 1
    assert len(found["images_per_second"]) >= len(epochs)
    files = sorted(path.name for path in run.glob("events.out.tfevents.*"))
    print(f"{run}: {len(files)} event files, {len(every)} steps, {len(epochs)} epochs ({checked} values): all as in the CSV files")
    print(f"tags: {', '.join(found)}")


if __name__ == "__main__":
    main()
