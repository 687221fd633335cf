"""Writes tests/goldens/resize.json: images resized and rotated by torchvision. Needs torch and torchvision.

"sizes": the image of `image(23, 17, 3)` resized to a square, bilinear with antialias, as bytes. "enlarged": the image of
`image(8, 6, 3)` resized to a square, and "rotated": the image of `image(11, 14, 3)` rotated against the clock by so many
degrees, bilinear, black outside; both in units of a grey level, height x width x channels.
"""

import json
from pathlib import Path

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize, rotate


def image(h, w, channels):
    values = [[[(37 * x + 59 * y + 83 * c + x * y) % 256 for x in range(w)] for y in range(h)] for c in range(channels)]
    return torch.tensor(values, dtype=torch.uint8)


def listed(tensor):
    return [round(v, 3) for v in tensor.permute(1, 2, 0).flatten().tolist()]


H, W = 23, 17
sizes = {str(n): resize(image(H, W, 3), [n, n], antialias=True).permute(1, 2, 0).flatten().tolist() for n in (7, 20, 31)}
enlarged = {str(n): listed(resize(image(8, 6, 3).double(), [n, n], antialias=True)) for n in (8, 20)}
turns = (-170, -45, -7.5, 30, 90)
rotated = {str(a): listed(rotate(image(11, 14, 3).double(), a, InterpolationMode.BILINEAR)) for a in turns}
out = Path(__file__).parent.parent / "tests" / "goldens" / "resize.json"
out.write_text(json.dumps({"height": H, "width": W, "sizes": sizes, "enlarged": enlarged, "rotated": rotated}) + "\n")
