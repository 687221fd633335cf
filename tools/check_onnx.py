"""Checks the ONNX models that `tilework export` writes, with onnx and onnxruntime.

    pip install onnx onnxruntime numpy pillow
    python tools/check_onnx.py                        # every built-in recipe
    python tools/check_onnx.py b1-bn-cnn --program target/debug/tilework

Each recipe's network, and one that has every kind of layer, is trained for a few steps on random pictures. Its model goes
through `onnx.checker`, and is run on other pictures, from pixels and from normalised images. The logarithms of the
probabilities are compared with those of `tilework predict`, which takes the same pictures: they may differ by 1e-4 of the
span from the smallest to the largest.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import tomllib

import numpy as np
import onnx
import onnxruntime
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
PICTURES = 8
STEPS = 3
EVERY_LAYER = """
epochs = 1
batch_size = 20
ema = { decay = 0.5 }
loss = "nll"
layers = [
    "conv 5x3, 12 channels, stride 2x1, pad 2x1, no bias", "batch_norm, no scale, eps 1e-3", "gelu",
    { residual = ["conv 3x3, 12 channels, pad 1, init dirac", "batch_norm, frozen", "silu"], after = ["relu"] },
    { residual = ["conv 1x1, 8 channels"], shortcut = ["conv 1x1, 8 channels"] },
    "max_pool 3x3, stride 1, pad 1", "avg_pool 3x3, stride 2, pad 1", "avg_pool 3x2, stride 1, pad 1x0, exclude_pad",
    "adaptive_max_pool 4x5", "adaptive_avg_pool 2x5", "dropout 0.5",
    { name = "head", layers = ["flatten", "fc 24, no bias, init unit_std", "scale 1/8", "gelu"] }, "fc 10", "log_softmax",
]
data = { source = "shapes", mean = [0.4, 0.5, 0.6], std = [0.2, 0.25, 0.3] }
optimizer = { kind = "adam", lr = 1e-3 }
"""


def pictures(folder, classes, per_class, size, random):
    for c in range(classes):
        place = folder / f"class{c:02}"
        place.mkdir(parents=True)
        for i in range(per_class):
            pixels = random.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{i}.png")


def log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def check(name, recipe, program, place, weights):
    """The largest difference from pixels and from normalised images, the number of nodes, the size of the file."""

    def tilework(*args):
        done = subprocess.run([program, *map(str, args)], cwd=place, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{name}: tilework {args[0]} failed:\n{done.stderr}")
        return done.stdout

    spec = tomllib.loads(recipe)
    size = spec["data"].get("size", 32)
    classes = 20 if "coarse" in spec["data"]["source"] else 10
    random = np.random.default_rng(0)
    pictures(place / "data/train", classes, 60 // classes, size, random)
    pictures(place / "data/test", classes, 1, size, random)
    pictures(place / "look", 1, PICTURES, size, random)
    (place / "recipe.toml").write_text(recipe)
    keys = {"data.source": "image-folder", "data.size": size, "data.validation": 0, "batch_size": 60 // STEPS}
    # A recipe may change the images of predictions at random, and average over views of them: no part of the network.
    keys |= {"augment.test": "false", "tta": "one"}
    if "pretrained" in spec:
        keys["pretrained.file"] = weights
    keys = [part for k, v in keys.items() for part in ("--set", f"{k}={v}")]
    tilework("train", "recipe.toml", "--data", "data", "--device", "cpu", "--epochs", 1, "--lr", 1e-4, *keys)
    run = place / "runs/recipe-001"
    lines = tilework("predict", run, "look", "--top", classes, "--json", "--device", "cpu").splitlines()
    lines = {pathlib.Path(line["image"]).name: line["predictions"] for line in map(json.loads, lines)}
    assert len(lines) == PICTURES
    images, expected = [], []
    for file in sorted((place / "look").rglob("*.png")):
        images.append(np.asarray(Image.open(file), np.float32).transpose(2, 0, 1) / 255)
        of = {p["class"]: p["probability"] for p in lines[file.name]}
        expected.append([np.log(of[f"class{c:02}"]) for c in range(classes)])
    images, expected = np.stack(images), np.array(expected)
    mean, std = (np.float32(spec["data"][k]).reshape(1, 3, 1, 1) for k in ("mean", "std"))
    worst = []
    for option, x in ([], images), (["--normalised"], (images - mean) / std):
        tilework("export", run, "--onnx", "net.onnx", "--safetensors", "net.safetensors", *option)
        model = onnx.load(place / "net.onnx")
        onnx.checker.check_model(model, full_check=True)
        about = {p.key: p.value for p in model.metadata_props}
        assert json.loads(about["classes"]) == [f"class{c:02}" for c in range(classes)] and "[data]" in about["recipe"]
        session = onnxruntime.InferenceSession(place / "net.onnx", providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"images": x})
        alone = np.concatenate([session.run(["logits"], {"images": x[i : i + 1]})[0] for i in range(len(x))])
        assert np.allclose(alone, logits, atol=1e-4 * abs(logits).max())
        worst.append(float(abs(log_softmax(np.float64(logits)) - expected).max() / np.ptp(expected)))
    best = run / "best" if (run / "best").exists() else run / "last"
    assert (place / "net.safetensors").read_bytes() == (best / "model.safetensors").read_bytes()
    return worst, len(model.graph.node), (place / "net.onnx").stat().st_size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="names of built-in recipes [default: all]")
    parser.add_argument("--program", default=ROOT / "target/release/tilework", type=pathlib.Path)
    args = parser.parse_args()
    program = args.program.resolve()
    recipes = {p.stem: p.read_text() for p in sorted((ROOT / "src/recipes").glob("*.toml"))}
    recipes["every layer"] = EVERY_LAYER
    wrong = [name for name in args.recipes if name not in recipes]
    if wrong:
        sys.exit(f"no recipe {', '.join(wrong)}; there are {', '.join(recipes)}")
    failed = 0
    print(f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}; differences as parts of the logits' span")
    print(f"{'recipe':<22}{'nodes':>6}{'KiB':>8}{'pixels':>10}{'normalised':>12}")
    with tempfile.TemporaryDirectory() as top:
        weights = pathlib.Path(top) / "resnet18.safetensors"
        for name in args.recipes or recipes:
            place = pathlib.Path(top) / name.replace(" ", "-")
            place.mkdir()
            if "[pretrained]" in recipes[name] and not weights.exists():
                before = pathlib.Path(top) / "before"
                before.mkdir()
                check("d1-resnet18", recipes["d1-resnet18"], program, before, None)
                (before / "net.safetensors").rename(weights)
            worst, nodes, size = check(name, recipes[name], program, place, weights)
            bad = not all(w <= 1e-4 for w in worst)
            failed += bad
            print(f"{name:<22}{nodes:>6}{size // 1024:>8}{worst[0]:>10.1e}{worst[1]:>12.1e}{'  WRONG' if bad else ''}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
