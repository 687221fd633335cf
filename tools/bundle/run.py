#!/usr/bin/env python3
"""Tests and measures Tilework on a machine with an NVIDIA GPU, its driver and NVRTC; no Rust is needed.

    python3 run.py                                  # everything, into the folder results
    python3 run.py --data path/to/cifar             # training on CIFAR-10 too
    python3 run.py --stages doctor,check,tests      # some stages
    python3 run.py --stages recipes --recipes a1-lenet,c2-conv --seeds 3 --data path/to/cifar
    python3 run.py --device emulated                # a rehearsal without a GPU: all stages, cut short

Every command's output goes to a log in the output folder, every result to results.md and everything
measured to results.json; all of them together are in results.tar.gz, the one file to take away. A
short table comes last. A stage that fails does not stop the others; the exit status is 1 if anything
failed.
"""

import argparse
import csv
import json
import os
import platform
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

sys.dont_write_bytecode = True

from harness import Report, stop, which

HERE = Path(__file__).resolve().parent
BIN = HERE / "bin"
TILEWORK = BIN / "tilework"
# Seconds of each stage, on a GPU and in a rehearsal.
LIMITS = {"doctor": (60, 60), "check": (300, 120), "tests": (600, 300), "train": (900, 300), "recipes": (3600, 120), "bench": (300, 120), "pytorch": (90, 90), "memcheck": (300, 60), "racecheck": (300, 60), "initcheck": (300, 60), "synccheck": (300, 60), "criterion": (400, 120), "products": (400, 120), "profile": (200, 10)}
# What compute-sanitizer exits with if it found something; the program itself never does.
FOUND = 99
# What a network must reach, of all its epochs, for its training to count as right.
MARKS = {"quickstart": 0.90, "a1-lenet": 0.48}


def doctor(stage, args):
    done = stage.command("doctor", [TILEWORK, "doctor"])
    if done:
        missing = [" ".join(line.split()[1:3]).rstrip(":,") for line in done.text.splitlines() if line.startswith("missing")]
        stage.row("doctor", done.status, done.seconds, ("missing: " + "; ".join(missing) if missing else "all there") if done.code == 0 else done.short())
    smi = which("nvidia-smi")
    if smi:
        fields = "name,driver_version,compute_cap,memory.total,clocks.max.sm,power.limit"
        done = stage.command("nvidia-smi", [smi, f"--query-gpu={fields}", "--format=csv,noheader"])
        if done:
            stage.row("nvidia-smi", done.status, done.seconds, done.last_line())


def check(stage, args):
    forms = [("ops", [])] if args.short else [("ops", ["--large"]), ("explicit convolution", ["conv2d", "--large", "--explicit-conv"])]
    for what, options in forms:
        done = stage.command(what, [TILEWORK, "check", "--device", args.device, *options])
        if not done:
            continue
        found = re.findall(r"^(\w+) +(b?f\d+) +(\d+) +([\d.e+-]+|inf) +([\d.e+-]+) +(ok|DIFFERS)", done.text, re.M)
        ops = [{"op": f"{op} {dtype}", "cases": int(n), "difference": float(d), "allowed": float(a), "ok": ok == "ok"} for op, dtype, n, d, a, ok in found]
        bad = [op["op"] for op in ops if not op["ok"]]
        text = f"{len(ops)} ops, {sum(op['cases'] for op in ops)} cases, largest difference {max((op['difference'] for op in ops), default=0):g}"
        stage.row(what, done.status, done.seconds, f"{', '.join(bad)} differ: see {done.log.name}" if bad else text if done.code == 0 else done.short(), ops=ops)


def test_result(done):
    """What a test binary said: a line for the table, and the names of what failed."""
    failed = re.findall(r"^test (\S+) \.\.\. FAILED", done.text, re.M)
    passed = len(re.findall(r"^test .*\.\.\. ok$", done.text, re.M))
    text = f"{passed} passed" + (f", {len(failed)} FAILED: {', '.join(failed)}" if failed else "")
    return (text if done.status == "ok" or failed else f"{text}; {done.short()}"), failed


def tests(stage, args):
    # In a rehearsal the quick ones: all of them are what `cargo test` is for.
    short = {"fused": ["relu"], "kernels_beyond": ["the_norm", "batch_norm"], "pools": ["biases"], "precision": ["the_cpu"], "recorded": ["captured"], "training": ["steps", "waiting"], "clusters": [], "wgmma": []}
    for name in ("clusters", "fused", "goldens", "half", "kernels", "kernels_beyond", "pools", "precision", "recorded", "training", "wgmma"):
        chosen = short.get(name, [""]) if args.short else [""]
        if not chosen:
            continue
        env = {"TILEWORK_DEVICE": args.device}
        if args.device == "emulated":
            env = {"TILEWORK_REQUIRE": "emulator"}
        done = stage.command(name, [BIN / "test-device", *(f"{name}::{part}" for part in chosen)], env=env)
        if done:
            text, failed = test_result(done)
            # A test that was renamed and is not found by its old name is no success.
            status = "FAILED" if done.status == "ok" and text.startswith("0 ") else done.status
            stage.row(name, status, done.seconds, text, failed=failed)


def sanitize(kind):
    """A stage that runs every op under one of compute-sanitizer's tools. Whether results are right is what
    `check` and `tests` are for: here a difference to the CPU is told and is no failure."""

    def run(stage, args):
        tool = args.sanitizer or which("compute-sanitizer", "/usr/local/cuda*/bin/compute-sanitizer", "/opt/cuda*/bin/compute-sanitizer")
        if not tool or (args.device != "cuda" and not args.sanitizer):
            return stage.row(kind, "skipped", result="needs a GPU" if tool else "there is no compute-sanitizer: it comes with the CUDA toolkit")
        done = stage.command(kind, [tool, "--tool", kind, "--error-exitcode", str(FOUND), TILEWORK, "check", "--device", args.device])
        if not done:
            return None
        begun = re.findall(r"^checking (\w+ \w+)$", done.text, re.M)
        ops = re.findall(r"^(\w+ +b?f\d+) +\d+ +\S+ +\S+ +(ok|DIFFERS)", done.text, re.M)
        differ = [op for op, how in ops if how != "ok"]
        summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", done.text)
        # Findings are printed as they come, the summary at the end: a cut run may have some.
        finding = re.search(r"^=+ (?:Invalid|Error:|Warning:|Uninitialized|Barrier error|Race).*", done.text, re.M)
        bad = done.code == FOUND or finding or any(not text.startswith("0 ") for text in summaries)
        # The program ends with 1 if an op differs; then all of them have run.
        whole = bool(ops) and done.code in (0, 1, FOUND) and not done.cut
        status = "FAILED" if bad else "ok" if whole else done.status
        text = "; ".join(summaries) or (finding.group(0).strip("= ") if finding else "no finding" if whole else "no finding so far" if done.cut else done.short())
        text += f"; {len(ops)} ops" if whole else f"; {len(begun)} ops begun, the last {begun[-1] if begun else 'none'}"
        text += f"; {', '.join(differ)} differ from the CPU" if differ else ""
        return stage.row(kind, status, done.seconds, text, ops=begun, differ=differ)

    return run


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def train(stage, args):
    """Trains with and without the recorded step, whose losses must be equal."""
    data = ["--data", args.data] if args.data else []
    have = args.data or cifar10_is_there(stage)
    short = ["--max-steps", "4", "--batch-size", "8"] if args.short else []
    jobs = [("quickstart", short, True, True)]
    # In two bytes the emulated device takes its time, and its tests cover it.
    jobs += [("quickstart", ["--precision", precision], True, True) for precision in ("f16", "bf16") if not args.short]
    if have:
        jobs += [("a1-lenet", [*data, *short], True, True), ("b1-bn-cnn", [*data, "--epochs", str(args.epochs)], False, False)]
    for recipe, options, both, marked in jobs:
        if args.short and recipe == "b1-bn-cnn":
            stage.row(recipe, "skipped", result="takes the emulated device too long")
            continue
        losses = []
        for graph in ([True, False] if both else [True]):
            what = " ".join([recipe, *(options[:2] if "--precision" in options else []), *([] if graph else ["--no-graph"])])
            out = stage.out / "runs" / what.replace(" --", "-").replace(" ", "-")
            command = [TILEWORK, "train", recipe, "--device", args.device, "--out", out, *options, *([] if graph else ["--no-graph"])]
            done = stage.command(what, command)
            if not done:
                continue
            try:
                run = next(out.iterdir())
                metrics = read_csv(run / "metrics.csv")[-1]
                losses.append([row["loss"] for row in read_csv(run / "steps.csv")])
            except (OSError, StopIteration, IndexError):
                stage.row(what, "FAILED" if done.code == 0 else done.status, done.seconds, done.short())
                continue
            accuracy, rate = float(metrics["test_accuracy"]), float(metrics["images_per_second"])
            wrong = marked and not args.short and accuracy < MARKS[recipe]
            text = f"{len(losses[-1])} steps, test accuracy {100 * accuracy:.2f} %, {rate:.0f} images/s"
            text += f"; must reach {100 * MARKS[recipe]:.0f} %" if wrong else ""
            stage.row(what, "FAILED" if wrong else done.status, done.seconds, text if done.code == 0 else done.short(), accuracy=accuracy, images_per_second=rate)
        if len(losses) == 2:
            same = losses[0] == losses[1]
            stage.row(f"{what.removesuffix(' --no-graph')}, both ways", "ok" if same else "FAILED", result="equal losses" if same else f"losses differ from step {1 + next((i for i, (a, b) in enumerate(zip(*losses)) if a != b), min(map(len, losses)))} on")
    if not have:
        stage.row("a1-lenet, b1-bn-cnn", "skipped", result="CIFAR-10 is not there: give its folder or .tar.gz with --data")


def cifar10_is_there(stage):
    """Whether CIFAR-10 is where Tilework looks for it."""
    done = stage.command("data info", [TILEWORK, "data", "info", "cifar10"])
    return done is not None and done.code == 0


def recipes(stage, args):
    """Trains recipes of the real data in full, with several seeds, one after the other or --at-once."""
    names = [name for name in args.recipes.split(",") if name] or (["c1-fully-connected"] if args.short else [])
    if not names or not args.data:
        return stage.row("recipes", "skipped", result="name them with --recipes, and the data with --data")
    short = ["--max-steps", "2", "--batch-size", "8"] if args.short else []

    def one(job):
        recipe, seed = job
        out = stage.out / "runs" / f"{recipe}-seed-{seed}"
        return recipe, seed, out, stage.command(f"{recipe} seed {seed}", [TILEWORK, "train", recipe, "--device", args.device, "--data", args.data, "--seed", seed, "--out", out, *short])

    accuracies = {}
    jobs = [(name, str(seed)) for name in names for seed in range(args.seeds)]
    with ThreadPoolExecutor(args.at_once) as pool:
        runs = [pool.submit(one, job) for job in jobs]
        for run in runs:
            recipe, seed, out, done = run.result()
            what = f"{recipe} seed {seed}"
            if not done:
                continue
            found = re.search(r"^test accuracy +([\d.]+) %", done.text, re.M)
            if not found:
                # What it had reached by then.
                rows = [row for path in out.glob("*/metrics.csv") for row in read_csv(path) if None not in row.values()]
                reached = "".join(f"; epoch {row['epoch']}: {100 * float(row.get('val_accuracy') or row['test_accuracy']):.2f} %" for row in rows[-1:])
                stage.row(what, "FAILED" if done.code == 0 else done.status, done.seconds, done.short() + reached)
                continue
            accuracies.setdefault(recipe, []).append(float(found[1]))
            told = [m[0] for m in (re.search(pattern, done.text, re.M) for pattern in (r"reported .*", r"best [\d.]+ %", r"[\d.]+ s (?:whitening|loading|training).*")) if m]
            stage.row(what, done.status, done.seconds, "; ".join([f"test accuracy {found[1]} %", *told]), accuracy=float(found[1]))
    for recipe, values in accuracies.items():
        stage.row(f"{recipe}, mean", "ok", result=f"{sum(values) / len(values):.2f} % of {len(values)} seeds: {', '.join(f'{v:.2f}' for v in values)}")
    return None


def bench(stage, args):
    """`tilework bench`: the kernels of a step, and the ceilings."""
    names = ("quickstart", "a1-lenet", "a8-third-conv", "b1-bn-cnn", "c4-conv-bn", "d1-resnet18", "d5-tiny", "e1-resnet9-onecycle")
    jobs = [*((name, []) for name in names), ("b1-bn-cnn", ["--batch-size", "256"])]
    jobs += [(name, ["--precision", "bf16"]) for name in names]
    if args.short:
        jobs = [(recipe, ["--batch-size", "2", "--steps", "2"]) for recipe in ("quickstart", "a1-lenet")]
    for recipe, options in jobs:
        what = " ".join([recipe, *options[:2]])
        done = stage.command(what, [TILEWORK, "bench", "--recipe", recipe, "--device", args.device, *options])
        if not done:
            continue
        row = re.compile(r"^(\w+(?:<[^>]*>)?) +(\d+) +([\d.]+) +([\d.]+) +([\d.]+) +(?:([\d.]+) +)?(\d+) %", re.M)
        names = ("kernel", "launches", "us", "mb", "gb_per_s", "gflop_per_s", "percent_of_ceiling")
        kernels = [dict(zip(names, [m[0], *(float(v) if v else None for v in m[1:])])) for m in row.findall(done.text)]
        times = re.search(r"all kernels ([\d.]+) µs.*a recorded step ([\d.]+) µs, a launched step ([\d.]+) µs", done.text)
        ceilings = re.search(r"ceilings, measured now: ([\d.]+) GB/s.*?([\d.]+) GFLOP/s", done.text)
        if done.code or not (times and ceilings and kernels):
            stage.row(what, "FAILED" if done.code == 0 else done.status, done.seconds, done.short())
            continue
        slow = max(kernels, key=lambda k: k["us"])
        stage.more.setdefault("ceilings", {"gb_per_s": float(ceilings[1]), "gflop_per_s": float(ceilings[2])})
        stage.more.setdefault("kernels", {})[what] = kernels
        text = f"kernels {float(times[1]):.0f} µs, recorded step {float(times[2]):.0f} µs, launched {float(times[3]):.0f} µs; slowest {slow['kernel']} {slow['us']:.0f} µs, {slow['percent_of_ceiling']:.0f} % of the ceiling"
        stage.row(what, "ok", done.seconds, text, kernels_us=float(times[1]), recorded_us=float(times[2]), launched_us=float(times[3]))
    if "ceilings" in stage.more:
        c = stage.more["ceilings"]
        stage.row("ceilings", "ok", result=f"{c['gb_per_s']:.1f} GB/s copied, {c['gflop_per_s']:.1f} GFLOP/s of f32 multiply-adds")


def criterion(stage, args):
    """The criterion benches; each prints a line with its numbers."""
    quick = [] if args.short else ["--warm-up-time", "0.1", "--measurement-time", "0.3", "--sample-size", "10"]
    jobs = [("train_step", {}), ("ops", {})] if args.short else [("train_step", {}), ("train_step", {"TILEWORK_BATCH_SIZE": "256"}), ("ops", {})]
    for name, env in jobs:
        what = name + "".join(f" at batch {v}" for v in env.values())
        env |= {"TILEWORK_DEVICE": args.device, "CRITERION_HOME": str(stage.out / "criterion")}
        done = stage.command(what, [BIN / f"bench-{name}", "--bench", "--noplot", *quick], env=env)
        if not done:
            continue
        lines = re.findall(r"^    = (.+?): ([\d.]+) µs, (.*)$", done.text, re.M)
        stage.row(what, done.status if lines else "FAILED", done.seconds, f"{len(lines)} benches" if done.code == 0 else done.short())
        for id, us, numbers in lines:
            stage.row(id, "ok", result=f"{us} µs, {numbers}", us=float(us))


def has_torch(stage, args):
    """Whether there is a PyTorch to compare with, on a GPU one that finds it; says so if not."""
    done = stage.command("torch", [args.python, "-c", "import torch; print(torch.__version__, torch.cuda.is_available())"])
    if not done:
        return False
    if done.code != 0:
        stage.row("PyTorch", "skipped", result=f"there is no torch for {args.python}: give a Python that has it with --python")
        return False
    if args.device == "cuda" and not done.last_line().endswith("True"):
        stage.row("PyTorch", "skipped", result=f"torch {done.last_line().split()[0]} finds no GPU")
        return False
    return True


def products(stage, args):
    """The products of the recipes' networks by themselves, and cuDNN's and cuBLAS's times beside them."""
    quick = [] if args.short else ["--warm-up-time", "0.05", "--measurement-time", "0.1", "--sample-size", "10"]
    env = {"TILEWORK_DEVICE": args.device, "CRITERION_HOME": str(stage.out / "criterion")}
    done = stage.command("bench", [BIN / "bench-products", "--bench", "--noplot", *quick], limit=0.6 * stage.left(), env=env)
    if not done:
        return
    count = len(re.findall(r"^    = \w+/products/", done.text, re.M))
    stage.row("bench", done.status if count else "FAILED", done.seconds, f"{count} products" if done.code == 0 else f"{count} products; {done.short()}")
    if not count or not has_torch(stage, args):
        return
    file = stage.out / "products.json"
    options = ["--device", "cuda" if args.device == "cuda" else "cpu", "--budget", f"{max(5.0, stage.left() - 15):.0f}", "--json", file]
    beside = stage.command("beside PyTorch", [args.python, HERE / "tools/compare_products.py", done.log, *options])
    if not beside:
        return
    if beside.code != 0 or not file.exists():
        stage.row("beside PyTorch", "FAILED" if beside.code == 0 else beside.status, beside.seconds, beside.short())
        return
    stage.more["products"] = result = json.loads(file.read_text())
    for line in result["summary"]:
        text = f"{line['products']} products, {line['as_fast']} at least as fast as PyTorch's, its time / ours {line['mean']:.2f} in the mean, {line['least']:.2f} at least"
        stage.row(line["what"], "ok", beside.seconds, text)


def pytorch(stage, args):
    if not has_torch(stage, args):
        return
    # PyTorch gets what our side and its own start leave of the stage.
    budget = max(10.0, stage.left() - (60 if args.short else 15))
    options = ["--networks", "a1-lenet@2", "--box", "15"] if args.short else ["--networks", args.networks]
    file = stage.out / "pytorch.json"
    command = [args.python, HERE / "tools/compare_pytorch.py", "--device", args.device, "--bench", BIN / "bench-train_step", "--json", file, "--budget", f"{budget:.0f}", *options]
    done = stage.command("side by side", command)
    if not done:
        return
    if done.code != 0 or not file.exists():
        stage.row("side by side", "FAILED" if done.code == 0 else done.status, done.seconds, done.short())
        # Each number was printed as it was measured.
        measured = re.findall(r"^(\S.*), ([\w ]+): ([\d.]+) ms$", done.text, re.M)
        for what in dict.fromkeys(what for what, _, _ in measured):
            stage.row(what, "ok", result="ms: " + ", ".join(f"{side} {ms}" for w, side, ms in measured if w == what))
        return
    result = json.loads(file.read_text())
    stage.more["pytorch"] = result
    for what, entry in result["networks"].items():
        ms = ", ".join(f"{side} {seconds * 1e3:.3f}" for side, seconds in entry["seconds"].items())
        ratio = f"PyTorch's fastest in f32 / ours: {entry['ratio']:.2f}" if entry["ratio"] else "no ratio"
        missing = "".join(f"; {side}: {why}" for side, why in entry["failed"].items() if not why.startswith("needs"))
        stage.row(what, "ok", done.seconds, f"{ratio}; ms: {ms}{missing}")
    if result["ended"]:
        stage.row("PyTorch's process", "CUT", result=result["ended"])


def profile(stage, args):
    """Nsight Compute's counters of the slowest kernels of a step."""
    tool = which("ncu", "/usr/local/cuda*/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")
    if args.device != "cuda" or not tool:
        return stage.row("ncu", "skipped", result="there is no ncu: it comes with the CUDA toolkit" if args.device == "cuda" else "needs a GPU")
    kernels = stage.more.get("kernels", {}).get("b1-bn-cnn", [])
    # ncu knows them without their template's arguments.
    slow = list(dict.fromkeys(k["kernel"].split("<")[0] for k in sorted(kernels, key=lambda k: -k["us"])[:6]))
    if not slow:
        return stage.row("ncu", "skipped", result="stage bench has measured no kernels of b1-bn-cnn")
    sections = [word for name in ("SpeedOfLight", "LaunchStats", "Occupancy", "MemoryWorkloadAnalysis", "WarpStateStats") for word in ("--section", name)]
    # Not the first step, in which the GPU warms up; the counters of a few launches are enough.
    command = [tool, *sections, "--kernel-name", f"regex:^({'|'.join(slow)})$", "--launch-skip", "40", "--launch-count", "24", TILEWORK, "bench", "--recipe", "b1-bn-cnn", "--device", "cuda", "--steps", "5"]
    done = stage.command("ncu", command)
    if done:
        # ncu ends well even where the driver forbids counters to ordinary users.
        denied = "ERR_NVGPUCTRPERM" in done.text
        status = "skipped" if denied else "FAILED" if "No kernels were profiled" in done.text else done.status
        stage.row("ncu", status, done.seconds, "the driver gives counters to root alone (ERR_NVGPUCTRPERM)" if denied else f"{', '.join(slow)}: see {done.log.name}" if done.code == 0 else done.short())
    return None


SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
STAGES = {f.__name__: f for f in (doctor, check, tests)}
STAGES |= {kind: sanitize(kind) for kind in SANITIZERS}
STAGES |= {f.__name__: f for f in (train, recipes, bench, pytorch, criterion, products, profile)}
# Of these it is asked whether they pass, not how long they take: neighbours run side by side.
UNTIMED = ("check", "tests", *SANITIZERS)


def starts(about):
    """Checks that the programs run on this machine at all."""
    if platform.system() != "Linux" or platform.machine() != about["machine"]:
        stop(f"this bundle was built for Linux on {about['machine']}, and this is {platform.system()} on {platform.machine()}: build one there with tools/bundle.py")
    number = lambda text: tuple(int(n) for n in text.split("."))
    libc, version = platform.libc_ver()
    if libc == "glibc" and version and number(version) < number(about["glibc"]):
        stop(f"the programs need glibc {about['glibc']}, and this machine has {version}: build the bundle on an older system with tools/bundle.py")
    code = os.spawnv(os.P_WAIT, str(TILEWORK), [str(TILEWORK), "--version"])
    if code != 0:
        stop(f"{TILEWORK} does not start (status {code}): was the bundle unpacked on a file system that runs programs?")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "emulated"], default="cuda", help="emulated: a rehearsal without a GPU, everything cut short")
    parser.add_argument("--out", type=Path, default=Path("results"), help="the output folder (default: results)")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated (default: all): " + ", ".join(STAGES))
    parser.add_argument("--data", type=Path, metavar="PATH", help="CIFAR-10: a folder or .tar.gz, as `tilework train --data` takes it")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of b1-bn-cnn (default 5)")
    parser.add_argument("--recipes", default="", metavar="NAME,…", help="what the stage recipes trains in full")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="with so many seeds each, from 0 on (default 1)")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="and so many side by side (default 1), which makes their times those of a shared GPU")
    parser.add_argument("--networks", default="a1-lenet,b1-bn-cnn", metavar="NAME[@BATCH],…", help="what is compared with PyTorch (default: %(default)s)")
    parser.add_argument("--limit", action="append", default=[], metavar="STAGE=SECONDS", help="another time limit of a stage; may be repeated")
    parser.add_argument("--total", type=float, default=1e9, metavar="SECONDS", help="a limit of the whole; what does not fit is skipped or cut")
    parser.add_argument("--python", default=sys.executable, help="the Python whose torch is compared with (default: this one)")
    parser.add_argument("--sanitizer", type=Path, metavar="FILE", help="compute-sanitizer (default: in the path, or in a CUDA toolkit); with --device emulated what is run in its place")
    args = parser.parse_args()
    if args.sanitizer:
        args.sanitizer = args.sanitizer.resolve()
    args.stages = [s for s in args.stages.split(",") if s]
    args.short = args.device == "emulated"
    if args.seeds < 1 or args.at_once < 1:
        parser.error("--seeds and --at-once must be at least 1")
    if unknown := [s for s in args.stages if s not in STAGES]:
        parser.error(f"unknown stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    limits = {stage: limit[args.short] for stage, limit in LIMITS.items()}
    for text in args.limit:
        stage, _, seconds = text.partition("=")
        if stage not in limits or not seconds.isdigit():
            parser.error(f"--limit {text}: write it as STAGE=SECONDS, e.g. tests=900")
        limits[stage] = int(seconds)
    args.limit = limits
    if args.data:
        args.data = args.data.resolve()
        if not args.data.exists():
            parser.error(f"--data: {args.data} is not there")
    return args


def main():
    args = arguments()
    about = json.loads((HERE / "bundle.json").read_text())
    starts(about)
    out = args.out.resolve()
    if out.exists() and any(out.iterdir()):
        stop(f"{out} is not empty: give another folder with --out")
    # The goldens are found through the first, as under cargo; compiled kernels stay with the results, or where they are
    # kept already.
    os.environ |= {"CARGO_MANIFEST_DIR": str(HERE), "NO_COLOR": "1"}
    os.environ.setdefault("TILEWORK_CACHE", str(out / "kernels"))
    about |= {"device": args.device, "on": platform.node(), "system": platform.platform(), "glibc here": platform.libc_ver()[1], "started": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    report = Report(out, about, args.total)
    # A command for every two processors.
    at_once = max(1, min(len(UNTIMED), (os.cpu_count() or 1) // 2))
    for untimed, names in groupby(args.stages, lambda name: name in UNTIMED and at_once > 1):
        run = lambda name: report.run(name, args.limit[name], lambda stage: STAGES[name](stage, args), untimed)
        report.side_by_side(at_once if untimed else 1, run, names)
        if report.interrupted:
            break
    print(f"\n{report.summary()}\n\n{report.verdict()}\nin {out}: results.tar.gz, with results.md, results.json and logs/")
    sys.exit(130 if report.interrupted else 1 if report.failures() else 0)


if __name__ == "__main__":
    main()
