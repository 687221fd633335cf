"""Times training steps of Tilework and PyTorch side by side on this machine's CPU or GPU.

Install and run:

    pip install torch
    python tools/compare_pytorch.py                                 # a1-lenet and b1-bn-cnn
    python tools/compare_pytorch.py --networks all --rounds 3 --json compare.json
    python tools/compare_pytorch.py --device cuda                   # on the GPU
    python tools/compare_pytorch.py --device cuda --networks b1-bn-cnn,b1-bn-cnn@256   # at the recipe's batch size, and at 256

A step is the same on both sides: gradients cleared, forward, cross-entropy, backward, one update by the
recipe's optimizer (SGD with momentum 0.9, or Adam), on one batch that stays in memory. Tilework is timed by its criterion bench
`train_step`; PyTorch twice, with images and weights in NCHW and in channels_last.

The sides take turns, one process per measurement, so that what else happens on the machine hits all
three alike; a measurement is the median of what fits in its seconds, and the table shows the median
of the rounds. A measurement during which other processes used the CPU is marked "!" and left out of
the median while there are others. Where all of a side's are disturbed, its median is marked too, and
the ratio means nothing: PyTorch's threads wait for each other at every op and lose far more than
their share when one of them is held up.

On a GPU all is done within --budget seconds, as tools/compare_gpu.py says, which is called for it.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True

ROOT = Path(__file__).resolve().parent.parent
LAYOUTS = {"nchw": "PyTorch NCHW", "channels_last": "PyTorch channels_last"}
SIDES = {"ours": "Tilework", **LAYOUTS}
NAMES = ["a1-lenet", "a7-wider", "a8-third-conv", "b1-bn-cnn", "c1-fully-connected", "c2-conv", "c3-conv-padded", "c4-conv-bn", "c5-deep-conv-bn", "d1-resnet18", "d5-tiny", "e1-resnet9-onecycle"]
BUSY = 0.1  # cores that others may use before a measurement counts as disturbed


def worker(args):
    """Prints the median seconds of PyTorch's training step on the CPU; runs in a process of its own."""
    import torch

    import compare_gpu
    import networks

    torch.set_num_threads(args["threads"])
    name = args["name"]
    step = compare_gpu.make(("nhwc",) if args["side"] == "channels_last" else (), "cpu", name, networks.RECIPES[name][1])
    compare_gpu.several(step, "cpu", args["warm_up"], 3)
    seconds = statistics.median(compare_gpu.several(step, "cpu", args["seconds"], 5))
    print(json.dumps({"seconds": seconds, "torch": torch.__version__}))


def busy_seconds():
    """CPU seconds that all processes have used since boot; None where /proc does not tell."""
    try:
        fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    idle = fields[3] + fields[4]
    return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")


def watched(command, env):
    """Runs a command; gives its output and how many cores other processes kept busy meanwhile."""
    own = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    cpu, used, start = busy_seconds(), own(), time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    if cpu is None:
        return done.stdout, 0.0
    others = busy_seconds() - cpu - (own() - used)
    return done.stdout, max(0.0, others / (time.monotonic() - start))


def wait_for_quiet(limit):
    """Returns when the machine has idled for a second, or after `limit` seconds."""
    start, quiet = time.monotonic(), 0
    while quiet < 4 and time.monotonic() - start < limit:
        before = busy_seconds()
        time.sleep(0.25)
        quiet = quiet + 1 if before is None or busy_seconds() - before <= 0.25 * BUSY else 0


def build_bench():
    """Builds the bench and gives the path of its executable."""
    command = ["cargo", "bench", "--bench", "train_step", "--no-run", "--message-format=json"]
    print("building:", " ".join(command), file=sys.stderr)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit("the bench does not build; see cargo's message above")
    for line in done.stdout.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == "train_step" and message.get("executable"):
            return message["executable"]
    sys.exit("cargo built no executable for the bench train_step")


def available(bench, args):
    """Names of the networks that the bench times."""
    env = {**os.environ, "TILEWORK_DEVICE": args.device}
    done = subprocess.run([bench, "--bench", "--list"], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"the bench does not run:\n{done.stdout}{done.stderr}")
    lines = [line.removesuffix(": benchmark") for line in done.stdout.splitlines()]
    return {line.removeprefix(group(args)).split("/")[0] for line in lines if line.startswith(group(args))}


def group(args):
    """What the ids of the bench's measurements begin with."""
    return "train_step/" if args.device == "cpu" else f"{args.device}/train_step/"


def measure_ours(bench, names, sides, args, batch=0):
    """Seconds by network and side, and the cores that others kept busy meanwhile."""
    ids = {(name, side): name if side == "ours" else f"{name}/{side}" for name in names for side in sides}
    with tempfile.TemporaryDirectory(prefix="compare_pytorch.") as home:
        options = ["--warm-up-time", args.warm_up, "--measurement-time", args.seconds, "--sample-size", 20 if args.device == "cpu" else 10, "--noplot"]
        env = {"CRITERION_HOME": home, "RAYON_NUM_THREADS": str(args.threads), "TILEWORK_DEVICE": args.device}
        if batch:
            env["TILEWORK_BATCH_SIZE"] = str(batch)
        pattern = f"^{group(args)}({'|'.join(ids.values())})$"
        _, others = watched([bench, "--bench", pattern, *map(str, options)], env)
        seconds = {name: {} for name in names}
        for (name, side), id in ids.items():
            # Criterion turns the slashes of the group's name into underscores.
            estimates = Path(home, group(args)[:-1].replace("/", "_"), id, "new", "estimates.json")
            if not estimates.exists():
                sys.exit(f"the bench left no {estimates.relative_to(home)}: does it still time {group(args)}{id}?")
            seconds[name][side] = json.loads(estimates.read_text())["median"]["point_estimate"] * 1e-9
        return seconds, others


def measure_theirs(side, name, args):
    """PyTorch's seconds and version, and the cores that others kept busy meanwhile."""
    about = {"name": name, "side": side} | {key: getattr(args, key) for key in ("seconds", "warm_up", "threads")}
    out, others = watched([sys.executable, __file__, "--worker", json.dumps(about)], {"OMP_NUM_THREADS": str(args.threads)})
    return json.loads(out.splitlines()[-1]), others


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(rows):
    """Left-aligned first column, right-aligned others."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]) for row in rows)


def on_gpu(jobs, timed, bench, args):
    """The GPU's comparison, or its rehearsal."""
    import compare_gpu

    ours = lambda names, batch: measure_ours(bench, [n for n in names if n in timed], compare_gpu.OURS, args, batch)[0]
    result = compare_gpu.compare(jobs, ours, args)
    print(table(compare_gpu.report(result)))
    return result


def on_cpu(jobs, timed, bench, args):
    """Rounds in which each side is measured in a process of its own, in another order each time."""
    result = {"networks": {}}
    disturbed = 0
    for name, _ in jobs:
        sides = [side for side in SIDES if side != "ours" or name in timed]
        rounds = []
        for number in range(args.rounds):
            row = {}
            for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
                wait_for_quiet(args.wait)
                if side == "ours":
                    seconds, others = measure_ours(bench, [name], [side], args)
                    seconds = seconds[name][side]
                else:
                    theirs, others = measure_theirs(side, name, args)
                    seconds, result["torch"] = theirs["seconds"], theirs["torch"]
                row[side] = {"seconds": seconds, "others": others}
                disturbed += others > BUSY
            rounds.append(row)
            cells = [f"{SIDES[s]} {row[s]['seconds'] * 1e3:.3f}{'!' if row[s]['others'] > BUSY else ''}" for s in sides]
            print(f"{name} round {number + 1}: {', '.join(cells)} ms", flush=True)
        median, doubtful = {}, []
        for side in sides:
            calm = [r[side]["seconds"] for r in rounds if r[side]["others"] <= BUSY]
            median[side] = statistics.median(calm or [r[side]["seconds"] for r in rounds])
            doubtful += [] if calm else [side]
        ratio = min(s for side, s in median.items() if side != "ours") / median["ours"] if "ours" in median else None
        result["networks"][name] = {"rounds": rounds, "median": median, "doubtful": doubtful, "ratio": ratio}

    rows = [["network", *SIDES.values(), "the faster PyTorch / Tilework"]]
    for name, entry in result["networks"].items():
        cell = lambda side: f"{entry['median'][side] * 1e3:.3f} ms{'!' if side in entry['doubtful'] else ''}" if side in entry["median"] else "not in the bench"
        rows.append([name, *map(cell, SIDES), f"{entry['ratio']:.2f}{'!' * bool(entry['doubtful'])}" if entry["ratio"] else "-"])
    print(f"\n{processor()}, {args.threads} threads, PyTorch {result.get('torch')}; step time, median of {args.rounds} rounds; above 1 we are faster\n")
    print(table(rows))
    if disturbed:
        print(f"\nwarning: {disturbed} measurements (!) while other processes used the CPU: run again on a quiet machine before quoting")
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="a1-lenet,b1-bn-cnn", help=f"comma-separated, or all: {', '.join(NAMES)}; on a GPU also NAME@BATCH, for another batch size than the recipe's")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (default 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), help="threads for both (default: the cores)")
    parser.add_argument("--device", choices=["cpu", "cuda", "emulated"], default="cpu", help="where both compute (default cpu)")
    parser.add_argument("--budget", type=float, default=60.0, metavar="SECONDS", help="all the time that PyTorch gets on a GPU (default 60)")
    parser.add_argument("--box", type=float, default=25.0, metavar="SECONDS", help="the most that one of its sides gets there (default 25)")
    parser.add_argument("--bench", type=Path, metavar="FILE", help="the bench train_step, built already (default: built by cargo)")
    parser.add_argument("--seconds", type=float, help="length of a measurement (default 3, on a GPU 0.4)")
    parser.add_argument("--warm-up", type=float, help="seconds before each measurement (default 1, on a GPU 0.3)")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait up to so long before each measurement until the machine is idle (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    args = parser.parse_args()
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    seconds, warm_up = (3.0, 1.0) if args.device == "cpu" else (0.4, 0.3)
    args.seconds = args.seconds or seconds
    args.warm_up = args.warm_up or warm_up
    # A step of d5-tiny takes seconds on a CPU, and the bench leaves it out there.
    every = [n for n in NAMES if args.device != "cpu" or n != "d5-tiny"]
    jobs = []
    for text in every if args.networks == "all" else args.networks.split(","):
        name, at, batch = text.partition("@")
        if name not in NAMES:
            parser.error(f"unknown network {name}; there are {', '.join(NAMES)}")
        if at and (args.device == "cpu" or not batch.isdigit()):
            parser.error(f"--networks {text}: a batch size is a number, and needs --device cuda")
        jobs.append((name, int(batch or 0)))

    bench = args.bench.resolve() if args.bench else build_bench()
    timed = available(bench, args)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: the load average is {load:.2f}: something else is running (or just was: the build); the times may not hold")

    about = {"device": args.device, "processor": processor(), "threads": args.threads, "seconds": args.seconds, "load_at_start": load}
    result = about | (on_cpu if args.device == "cpu" else on_gpu)(jobs, timed, bench, args)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(json.loads(sys.argv[2]))
    else:
        main()
