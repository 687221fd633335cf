#!/usr/bin/env python3
"""Packs what tests and measures Tilework on a machine with a GPU into one folder, and a .tar.xz of it.

    python tools/bundle.py                          # into target/tilework-gpu-bundle and ….tar.xz
    python tools/bundle.py --out DIR

Needs Rust and a C++ compiler here; the other machine needs an NVIDIA GPU, its driver, NVRTC (of a
CUDA toolkit or of `pip install nvidia-cuda-nvrtc`), Python 3.9 and no Rust. There, `python3 run.py` in
the folder runs everything; tools/bundle/README.md, which is packed too, says what.

In it are the program, the tests that run on a device and the goldens, and the benches, all built for
release with the emulated device in them (so that the whole can be rehearsed), without their symbols.
"""

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

sys.dont_write_bytecode = True

ROOT = Path(__file__).resolve().parent.parent
NAME = "tilework-gpu-bundle"
# Of the archive, so that it can be sent.
LIMIT = 32 << 20
BENCHES = ["ops", "products", "train_step"]
# Beside the binaries; from the repository's root to the bundle's.
FILES = {"tools/bundle/run.py": "run.py", "tools/bundle/harness.py": "harness.py", "tools/bundle/README.md": "README.md", "tools/compare_pytorch.py": "tools/", "tools/compare_gpu.py": "tools/", "tools/compare_products.py": "tools/", "tools/networks.py": "tools/", "tests/goldens": "tests/goldens"}


def stop(problem):
    sys.exit(f"error: {problem}")


def built(command):
    """The executables that cargo built, by kind and name."""
    print("building:", " ".join(command), flush=True)
    done = subprocess.run([*command, "--message-format=json"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        stop("that does not build; see cargo's message above")
    found = {}
    for line in done.stdout.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("reason") == "compiler-artifact" and message.get("executable"):
            target = message["target"]
            # The program's own unit tests are an executable of its target too.
            if target["kind"][0] != "bin" or not message["profile"]["test"]:
                found[target["kind"][0], target["name"]] = Path(message["executable"])
    return found


def glibc(files):
    """The newest version of glibc that one of the programs asks for."""
    versions = {v for f in files for v in re.findall(rb"GLIBC_(\d+\.\d+(?:\.\d+)?)", f.read_bytes())}
    if not versions:
        stop("the programs name no version of glibc: this bundle is for Linux with glibc")
    return max((v.decode() for v in versions), key=lambda v: [int(n) for n in v.split(".")])


def git(*arguments):
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def size(folder):
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def mib(n):
    return f"{n / (1 << 20):.1f} MiB"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "target", help=f"where {NAME} and {NAME}.tar.xz go (default: target)")
    parser.add_argument("--jobs", "-j", type=int, help="cargo's jobs (default: its own choice)")
    args = parser.parse_args()
    if platform.system() != "Linux":
        stop(f"the bundle is made on Linux for Linux, and this is {platform.system()}")
    jobs = ["--jobs", str(args.jobs)] if args.jobs else []

    pick = lambda option, names: [word for name in names for word in (option, name)]
    cargo = ["--locked", "--no-run", "--features", "emulator", *jobs]
    # The program is built with the tests, with the emulated device in it as they have it.
    executables = built(["cargo", "test", "--release", *cargo, "--bin", "tilework", "--test", "device"])
    executables |= built(["cargo", "bench", *cargo, *pick("--bench", BENCHES)])

    folder = args.out.resolve() / NAME
    if folder.exists():
        if not (folder / "bundle.json").exists():
            stop(f"{folder} is there and is no bundle: remove it, or give another folder with --out")
        shutil.rmtree(folder)
    (folder / "bin").mkdir(parents=True)
    (folder / "tools").mkdir()
    wanted = {("bin", "tilework"): "tilework"}
    wanted |= {("test", "device"): "test-device"} | {("bench", name): f"bench-{name}" for name in BENCHES}
    for key, name in wanted.items():
        if key not in executables:
            stop(f"cargo built no {' '.join(key)}")
        shutil.copy2(executables[key], folder / "bin" / name)
    programs = sorted((folder / "bin").iterdir())
    strip = shutil.which("strip")
    if strip:
        subprocess.run([strip, "--strip-all", *programs], check=True)
    else:
        print("note: there is no strip (of binutils), so the programs keep their symbols", file=sys.stderr)
    for source, to in FILES.items():
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy2
        copy(ROOT / source, folder / to)

    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    about = {
        "tilework": tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"],
        "commit": commit + ("-dirty" if git("status", "--porcelain") else ""),
        "machine": platform.machine(),
        "glibc": glibc(programs),
    }
    (folder / "bundle.json").write_text(json.dumps(about, indent=1) + "\n")
    for program in programs:
        print(f"{mib(program.stat().st_size):>10}  {program.name}")
    archive = folder.parent / f"{NAME}.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(folder, NAME)
    if archive.stat().st_size > LIMIT:
        stop(f"{archive} has {mib(archive.stat().st_size)}, and at most {mib(LIMIT)} are allowed: leave a test out, or share code between them")
    print(f"{folder}: {mib(size(folder))}; {archive.name}: {mib(archive.stat().st_size)}; Linux on {about['machine']}, glibc {about['glibc']} or later")


if __name__ == "__main__":
    main()
