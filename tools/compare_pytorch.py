"""Times training steps of Tilework and PyTorch side by side on this machine's CPU.

Install and run:

    pip install torch
    python tools/compare_pytorch.py                                 # a1-lenet and b1-bn-cnn
    python tools/compare_pytorch.py --networks all --rounds 3 --json compare.json

A step is the same on both sides: gradients cleared, forward, cross-entropy, backward, one SGD update
with momentum 0.9, on one batch that stays in memory. Tilework is timed by its criterion bench
`train_step`; PyTorch twice, with images and weights in NCHW and in channels_last.

The sides take turns, one process per measurement, so that what else happens on the machine hits all
three alike; a measurement is the median of what fits in its seconds, and the table shows the median
of the rounds. A measurement during which other processes used the CPU is marked "!" and left out of
the median while there are others. Where all of a side's are disturbed, its median is marked too, and
the ratio means nothing: PyTorch's threads wait for each other at every op and lose far more than
their share when one of them is held up.
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
SIDES = {"ours": "Tilework", "nchw": "PyTorch NCHW", "channels_last": "PyTorch channels_last"}
NAMES = ["a1-lenet", "b1-bn-cnn", "c1-fully-connected", "c2-conv", "c3-conv-padded", "c4-conv-bn", "c5-deep-conv-bn"]
BUSY = 0.1  # cores that others may use before a measurement counts as disturbed


def worker(name, side, seconds, warm_up, threads):
    """Prints the median seconds of PyTorch's training step; runs in a process of its own."""
    import torch
    from torch.nn import functional as F

    import networks

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layers, batch = networks.RECIPES[name]
    shape = (3, 32, 32)
    net = networks.build(layers, shape)
    x, labels = torch.randn(batch, *shape), torch.randint(0, 10, (batch,))
    if side == "channels_last":
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()

    def steps(limit, at_least):
        times, start = [], time.perf_counter()
        while len(times) < at_least or time.perf_counter() - start < limit:
            before = time.perf_counter()
            step()
            times.append(time.perf_counter() - before)
        return times

    steps(warm_up, 3)
    print(json.dumps({"seconds": statistics.median(steps(seconds, 5)), "torch": torch.__version__}))


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


def available(bench):
    """Names of the networks that the bench times."""
    done = subprocess.run([bench, "--bench", "--list"], cwd=ROOT, capture_output=True, text=True)
    lines = [line.removesuffix(": benchmark") for line in done.stdout.splitlines()]
    return {line.removeprefix("train_step/") for line in lines if line.startswith("train_step/")}


def measure_ours(bench, name, args):
    with tempfile.TemporaryDirectory(prefix="compare_pytorch.") as home:
        options = ["--warm-up-time", args.warm_up, "--measurement-time", args.seconds, "--sample-size", 20, "--noplot"]
        env = {"CRITERION_HOME": home, "RAYON_NUM_THREADS": str(args.threads)}
        _, others = watched([bench, "--bench", f"^train_step/{name}$", *map(str, options)], env)
        estimates = Path(home, "train_step", name, "new", "estimates.json")
        if not estimates.exists():
            sys.exit(f"the bench left no {estimates.relative_to(home)}: does it still time train_step/{name}?")
        return json.loads(estimates.read_text())["median"]["point_estimate"] * 1e-9, others


def measure_theirs(side, name, args):
    command = [sys.executable, __file__, "--worker", name, side, *map(str, (args.seconds, args.warm_up, args.threads))]
    out, others = watched(command, {"OMP_NUM_THREADS": str(args.threads)})
    result = json.loads(out)
    return result["seconds"], others, result["torch"]


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="a1-lenet,b1-bn-cnn", help=f"comma-separated, or all: {', '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each side (default 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), help="threads for both (default: the cores)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a measurement (default 3)")
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds before each measurement (default 1)")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="wait up to so long before each measurement until the machine is idle (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    args = parser.parse_args()
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    names = NAMES if args.networks == "all" else args.networks.split(",")
    if unknown := [n for n in names if n not in NAMES]:
        parser.error(f"unknown network {', '.join(unknown)}; there are {', '.join(NAMES)}")

    bench = build_bench()
    timed = available(bench)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: the load average is {load:.2f}: something else is running (or just was: the build); the times may not hold")

    result = {"processor": processor(), "threads": args.threads, "seconds": args.seconds, "load_at_start": load, "torch": None, "networks": {}}
    disturbed = 0
    for name in names:
        sides = [s for s in SIDES if s != "ours" or name in timed]
        rounds = []
        for number in range(args.rounds):
            # Each side in turn goes first.
            order = sides[number % len(sides) :] + sides[: number % len(sides)]
            row = {}
            for side in order:
                wait_for_quiet(args.wait)
                if side == "ours":
                    seconds, others = measure_ours(bench, name, args)
                else:
                    seconds, others, result["torch"] = measure_theirs(side, name, args)
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
        result["networks"][name] = {"rounds": rounds, "median": median, "doubtful": doubtful}

    rows = [["network", "batch", *SIDES.values(), "PyTorch's faster / ours"]]
    import networks

    for name, entry in result["networks"].items():
        median, mark = entry["median"], {s: "!" if s in entry["doubtful"] else "" for s in SIDES}
        faster = min(median[s] for s in SIDES if s != "ours")
        entry["ratio"] = faster / median["ours"] if "ours" in median else None
        cells = [f"{median[s] * 1e3:.3f} ms{mark[s]}" if s in median else "not in the bench" for s in SIDES]
        ratio = f"{entry['ratio']:.2f}{'!' * bool(entry['doubtful'])}" if entry["ratio"] else "-"
        rows.append([name, str(networks.RECIPES[name][1]), *cells, ratio])
    print(f"\n{result['processor']}, {args.threads} threads, PyTorch {result['torch']}; step time, median of {args.rounds} rounds; above 1 we are faster\n")
    print(table(rows))
    if disturbed:
        print(f"\nwarning: {disturbed} measurements (!) while other processes used the CPU: run again on a quiet machine before quoting")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        name, side, seconds, warm_up, threads = sys.argv[2:]
        worker(name, side, float(seconds), float(warm_up), int(threads))
    else:
        main()
