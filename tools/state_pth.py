"""Writes tests/goldens/state.pth: a small state dict by torch.save, with shared, strided and half storages.

    python tools/state_pth.py        # pip install torch
"""

from collections import OrderedDict
from pathlib import Path

import torch

w = torch.arange(6.0).reshape(2, 3)
state = OrderedDict(
    w=torch.nn.Parameter(w),
    t=w.t(),
    h=torch.tensor([1.5], dtype=torch.float16),
    b=torch.tensor([1.5], dtype=torch.bfloat16),
    n=torch.tensor(7),
)
torch.save(state, Path(__file__).parent.parent / "tests/goldens/state.pth")
