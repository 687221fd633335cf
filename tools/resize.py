"""Writes tests/goldens/resize.json: images resized by torchvision, bilinear with antialias. Needs torch and torchvision."""

import json
from pathlib import Path

import torch
from torchvision.transforms.functional import resize

H, W = 23, 17
image = torch.tensor(
    [[[(37 * x + 59 * y + 83 * c + x * y) % 256 for x in range(W)] for y in range(H)] for c in range(3)],
    dtype=torch.uint8,
)
sizes = {str(n): resize(image, [n, n], antialias=True).permute(1, 2, 0).flatten().tolist() for n in (7, 20, 31)}
out = Path(__file__).parent.parent / "tests" / "goldens" / "resize.json"
out.write_text(json.dumps({"height": H, "width": W, "sizes": sizes}) + "\n")
